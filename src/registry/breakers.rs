//! [`Breakers`]: the breakers of all servers, their way into the database and out of it.
//!
//! Changes when what survives a restart does. A call never waits for the database: a transition goes
//! into a queue, and the count of failures is stored within a second.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::breaker::ServerBreaker;
use crate::clock;
use crate::metrics::Metrics;
use crate::model::{
    BreakerEvent, BreakerRow, BreakerState, ServerName, ServerSettings, ToolName, TransitionReason,
};
use crate::policy::Command;
use crate::store::{Store, StoreError};

/// Transitions that wait to be stored. More are not kept: a breaker that changes its state this often
/// within the time of a commit has nothing to tell that the others do not.
const QUEUE: usize = 4096;
/// How often counts are stored, and what time alone causes is done.
const EVERY: Duration = Duration::from_millis(500);

type Key = (ServerName, Option<ToolName>);

/// All breakers of a router.
#[derive(Debug)]
pub struct Breakers {
    store: Store,
    metrics: Arc<Metrics>,
    live: Mutex<BTreeMap<Key, Arc<ServerBreaker>>>,
    /// What was stored when we started, until its server is there.
    stored: Mutex<HashMap<Key, BreakerRow>>,
    sender: mpsc::Sender<BreakerEvent>,
    receiver: tokio::sync::Mutex<mpsc::Receiver<BreakerEvent>>,
}

impl Breakers {
    /// Reads what was stored.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn load(store: Store, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        let rows = store.breakers().await?;
        let stored = rows.into_iter().map(|row| ((row.server.clone(), row.tool.clone()), row));
        let (sender, receiver) = mpsc::channel(QUEUE);
        Ok(Self {
            stored: Mutex::new(stored.collect()),
            store,
            metrics,
            live: Mutex::default(),
            sender,
            receiver: tokio::sync::Mutex::new(receiver),
        })
    }

    /// The breaker of a server, or of one tool of it: the one there is, with other numbers if they
    /// changed, else the stored one, else a new one.
    pub(super) fn of(
        &self,
        server: &ServerName,
        tool: Option<&ToolName>,
        settings: &ServerSettings,
    ) -> Arc<ServerBreaker> {
        let key = (server.clone(), tool.cloned());
        let mut live = self.live.lock();
        if let Some(breaker) = live.get(&key) {
            breaker.configure(settings);
            return Arc::clone(breaker);
        }
        let breaker = Arc::new(ServerBreaker::new(
            server.clone(),
            tool.cloned(),
            settings,
            self.stored.lock().remove(&key),
            self.metrics.breaker(server, tool.is_none()),
            self.sender.clone(),
        ));
        live.insert(key, Arc::clone(&breaker));
        breaker
    }

    /// The breakers of a server: its own first, then those of its tools.
    #[must_use]
    pub fn of_server(&self, server: &ServerName) -> Vec<Arc<ServerBreaker>> {
        let live = self.live.lock();
        let from = (server.clone(), None);
        let own = live.range(from..).take_while(|((name, _), _)| name == server);
        own.map(|(_, breaker)| Arc::clone(breaker)).collect()
    }

    /// The server is another thing now: what is known of its failures no longer holds.
    pub(super) fn changed(&self, server: &ServerName) {
        let mut stored = self.stored.lock();
        let gone: Vec<_> = stored.extract_if(|(name, _), _| name == server).collect();
        drop(stored);
        for ((server, tool), row) in gone {
            let event = BreakerEvent {
                id: 0,
                server,
                tool,
                at: clock::timestamp(),
                from: row.record.state,
                to: BreakerState::Closed,
                reason: TransitionReason::Changed,
                failures: 0,
                trips: 0,
                open_for: None,
                error: None,
                actor: None,
                note: None,
            };
            if row.record.state != BreakerState::Closed
                && let Err(error) = self.sender.try_send(event)
            {
                tracing::warn!(%error, "a transition of a breaker is missing from the history");
            }
        }
        for breaker in self.of_server(server) {
            breaker.command(Command::Changed, None);
        }
    }

    /// The server is gone.
    pub(super) fn forget(&self, server: &ServerName) {
        self.stored.lock().retain(|(name, _), _| name != server);
        self.live.lock().retain(|(name, _), _| name != server);
    }

    /// Stores what changes until `stop`, and once more then.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut receiver = self.receiver.lock().await;
        let mut events = Vec::new();
        loop {
            let stopped = tokio::select! {
                () = stop.cancelled() => true,
                // Also wakes for a transition, so that it is stored at once.
                count = receiver.recv_many(&mut events, QUEUE) => count == 0,
                () = tokio::time::sleep(EVERY) => false,
            };
            self.store(&mut events).await;
            if stopped {
                return;
            }
        }
    }

    /// Stores what is not stored yet; for the end, when the calls are over.
    pub async fn flush(&self) {
        let mut events = Vec::new();
        if let Ok(mut receiver) = self.receiver.try_lock() {
            while let Ok(event) = receiver.try_recv() {
                events.push(event);
            }
        }
        self.store(&mut events).await;
    }

    async fn store(&self, events: &mut Vec<BreakerEvent>) {
        let live: Vec<_> = self.live.lock().values().cloned().collect();
        let changed: Vec<_> =
            live.iter().filter_map(|breaker| breaker.settle().map(|row| (breaker, row))).collect();
        if changed.is_empty() && events.is_empty() {
            return;
        }
        let rows: Vec<_> = changed.iter().map(|(_, row)| row.clone()).collect();
        match self.store.save_breakers(&rows, events).await {
            Ok(()) => events.clear(),
            Err(error) => {
                tracing::warn!(%error, "the state of breakers could not be stored: {error}");
                changed.iter().for_each(|(breaker, _)| breaker.unsaved());
                let surplus = events.len().saturating_sub(QUEUE);
                events.drain(..surplus);
            }
        }
    }
}
