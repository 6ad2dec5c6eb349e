//! [`Breakers`]: the breakers of all servers, their way into the database and out of it.
//!
//! Changes when what survives a restart does. A call never waits for the database: a transition goes
//! into a queue, and the count of failures is stored within a second.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::breaker::{Order, ServerBreaker, tell};
use crate::clock;
use crate::metrics::Metrics;
use crate::model::{
    BreakerEvent, BreakerRecord, BreakerRow, BreakerState, ServerName, ServerSettings, ToolName,
    TransitionReason,
};
use crate::store::{Store, StoreError};

/// Transitions that wait to be stored. More are not kept: a breaker that changes its state this often
/// within the time of a commit has nothing to tell that the others do not.
const QUEUE: usize = 4096;
/// How often counts are stored, and what time alone causes is done.
const EVERY: Duration = Duration::from_millis(500);

/// Readers of the history that wait for it to be complete; more get it as it is.
const READERS: usize = 64;
/// How long a reader waits for a database that hangs; then it gets the history as it is.
const PATIENCE: Duration = Duration::from_secs(2);

type Key = (ServerName, Option<ToolName>);

/// All breakers of a router.
#[derive(Debug)]
pub struct Breakers {
    metrics: Arc<Metrics>,
    live: Mutex<BTreeMap<Key, Arc<ServerBreaker>>>,
    /// What was stored when we started, until its server is there.
    stored: Mutex<HashMap<Key, Stored>>,
    /// Rows that are no longer true, of breakers that are not live.
    outdated: Mutex<Vec<BreakerRow>>,
    sender: mpsc::Sender<BreakerEvent>,
    readers: mpsc::Sender<oneshot::Sender<bool>>,
    inbox: tokio::sync::Mutex<Inbox>,
}

/// A breaker as it was stored, and who forced it, if somebody did.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) row: BreakerRow,
    pub(super) forced: Option<Order>,
}

#[derive(Debug)]
struct Inbox {
    events: mpsc::Receiver<BreakerEvent>,
    readers: mpsc::Receiver<oneshot::Sender<bool>>,
    /// Taken out of the queue and not stored yet.
    pending: Vec<BreakerEvent>,
    /// How many of these the log has.
    told: usize,
    /// Whether the last try to store failed.
    failing: bool,
}

impl Breakers {
    /// Reads what was stored.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn load(store: &Store, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        let mut stored = HashMap::new();
        for row in store.breakers().await? {
            let forced = who_forced(store, &row).await?;
            stored.insert((row.server.clone(), row.tool.clone()), Stored { row, forced });
        }
        let (sender, events) = mpsc::channel(QUEUE);
        let (readers, waiting) = mpsc::channel(READERS);
        Ok(Self {
            stored: Mutex::new(stored),
            outdated: Mutex::default(),
            metrics,
            live: Mutex::default(),
            sender,
            readers,
            inbox: tokio::sync::Mutex::new(Inbox {
                events,
                readers: waiting,
                pending: Vec::new(),
                told: 0,
                failing: false,
            }),
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
        let own = live.range(of(server)).take_while(|((name, _), _)| name == server);
        own.map(|(_, breaker)| Arc::clone(breaker)).collect()
    }

    /// The server is another thing now: what is known of its failures no longer holds.
    pub(super) fn changed(&self, server: &ServerName) {
        let mut stored = self.stored.lock();
        let gone: Vec<_> = stored.extract_if(|(name, _), _| name == server).collect();
        drop(stored);
        for ((server, tool), Stored { row, .. }) in gone {
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
                trace_id: None,
            };
            if event.from != BreakerState::Closed
                && let Err(error) = self.sender.try_send(event)
            {
                tracing::warn!(%error, "a transition of a breaker is missing from the history");
            }
            // Else it would come back with the next start.
            self.outdated.lock().push(begun_anew(row));
        }
        let mut live = self.live.lock();
        for (_, breaker) in live.range_mut(of(server)).take_while(|((name, _), _)| name == server) {
            *breaker = Arc::new(breaker.successor());
        }
    }

    /// The server is gone.
    pub(super) fn forget(&self, server: &ServerName) {
        self.stored.lock().retain(|(name, _), _| name != server);
        self.outdated.lock().retain(|row| row.server != *server);
        self.live.lock().retain(|(name, _), breaker| {
            let stays = name != server;
            if !stays {
                breaker.retire();
            }
            stays
        });
    }

    /// Stores what changes until `stop`, and once more then.
    pub(super) async fn run(&self, store: &Store, stop: CancellationToken) {
        let mut inbox = self.inbox.lock().await;
        loop {
            let mut reader = None;
            let Inbox { events, readers, pending, .. } = &mut *inbox;
            let stopped = tokio::select! {
                () = stop.cancelled() => true,
                // Also wakes for a transition, so that it is stored at once.
                count = events.recv_many(pending, QUEUE) => count == 0,
                waiting = readers.recv() => {
                    reader = waiting;
                    false
                }
                () = tokio::time::sleep(EVERY) => false,
            };
            self.store(store, &mut inbox).await;
            if let Some(reader) = reader {
                // Who does not wait any more needs no answer.
                let _ = reader.send(!inbox.failing);
            }
            if stopped {
                return;
            }
            if inbox.failing {
                // What is in the queue would wake us at once, in vain.
                tokio::time::sleep(EVERY).await;
            }
        }
    }

    /// Resolves when every transition until now is in the history, or when that takes too long: whoever
    /// looks after a transition expects to find it. Whether it is.
    pub async fn written(&self) -> bool {
        let (done, written) = oneshot::channel();
        self.readers.try_send(done).is_ok()
            && matches!(tokio::time::timeout(PATIENCE, written).await, Ok(Ok(true)))
    }

    /// Stores what is not stored yet; for the end, when the calls are over.
    pub(super) async fn flush(&self, store: &Store) {
        let mut inbox = self.inbox.lock().await;
        self.store(store, &mut inbox).await;
    }

    /// Shows of each server how many of its tools' breakers are open, of those that decide over calls:
    /// a tool that is gone, or has no breaker of its own any more, keeps nobody waiting.
    fn show_tools_open(&self) {
        let live = self.live.lock();
        let mut breakers = live.iter().peekable();
        // Each server's own comes before those of its tools.
        while let Some(((server, _), own)) = breakers.next() {
            let mut open = 0;
            while let Some((_, of_tool)) =
                breakers.next_if(|((name, tool), _)| name == server && tool.is_some())
            {
                open += usize::from(Arc::strong_count(of_tool) > 1 && of_tool.is_open());
            }
            own.show_tools_open(open);
        }
    }

    async fn store(&self, store: &Store, inbox: &mut Inbox) {
        self.show_tools_open();
        // A server can list other tools each time; of those that are gone only what failed is kept.
        self.live.lock().retain(|(_, tool), breaker| {
            tool.is_none() || Arc::strong_count(breaker) > 1 || !breaker.is_as_new()
        });
        let live: Vec<_> = self.live.lock().values().cloned().collect();
        let changed: Vec<_> =
            live.iter().filter_map(|breaker| breaker.settle().map(|row| (breaker, row))).collect();
        // After settling, which can add to it.
        while let Ok(event) = inbox.events.try_recv() {
            inbox.pending.push(event);
        }
        inbox.pending.iter().skip(inbox.told).for_each(tell);
        inbox.told = inbox.pending.len();
        let outdated = std::mem::take(&mut *self.outdated.lock());
        if changed.is_empty() && outdated.is_empty() && inbox.pending.is_empty() {
            return;
        }
        // What is live now comes after what it was.
        let rows: Vec<_> =
            outdated.iter().chain(changed.iter().map(|(_, row)| row)).cloned().collect();
        match store.save_breakers(&rows, &inbox.pending).await {
            Ok(()) => {
                inbox.pending.clear();
                inbox.told = 0;
                inbox.failing = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut inbox.failing, true) {
                    tracing::warn!(%error, "the state of breakers could not be stored, and will be when the database takes it: {error}");
                }
                changed.iter().for_each(|(breaker, _)| breaker.unsaved());
                self.outdated.lock().splice(..0, outdated);
                let surplus = inbox.pending.len().saturating_sub(QUEUE);
                inbox.pending.drain(..surplus);
                inbox.told = inbox.pending.len();
            }
        }
    }
}

/// All of one server, its own first.
fn of(server: &ServerName) -> std::ops::RangeFrom<Key> {
    (server.clone(), None)..
}

/// The row of a breaker that was stored, after its server became another thing.
fn begun_anew(row: BreakerRow) -> BreakerRow {
    BreakerRow {
        record: BreakerRecord {
            state: BreakerState::Closed,
            failures: 0,
            trips: 0,
            generation: row.record.generation.saturating_add(1),
            opened_at: None,
            open_for: None,
            last_failure_at: None,
            reason: Some(TransitionReason::Changed),
        },
        last_error: None,
        ..row
    }
}

/// Who brought a breaker into its forced state, as the history has it.
async fn who_forced(store: &Store, row: &BreakerRow) -> Result<Option<Order>, StoreError> {
    if !matches!(row.record.state, BreakerState::ForcedOpen | BreakerState::ForcedClosed) {
        return Ok(None);
    }
    let last = store.breaker_transitions(&row.server, row.tool.as_ref(), 1, None).await?;
    let forced = last.into_iter().find(|event| event.to == row.record.state);
    Ok(forced.and_then(|event| event.actor.map(|actor| Order { actor, note: event.note })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Knobs, RetryBudget, Timestamp, Uptime};
    use crate::policy::Verdict;
    use crate::registry::Turn;

    fn fail(breaker: &ServerBreaker) {
        let now = Uptime::from_millis(1);
        let permit = breaker.acquire(now, Duration::from_secs(1), Turn::First).unwrap();
        permit.report(Verdict::Failure, now, Some(&"refused"));
    }

    #[tokio::test]
    async fn of_tools_that_are_gone_only_what_failed_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let breakers = Breakers::load(&store, Metrics::new().unwrap()).await.unwrap();
        let settings = ServerSettings::resolve(&Knobs::default());
        let server = ServerName::parse("s").unwrap();
        let of = |tool: &str| {
            let tool = ToolName::parse(tool).unwrap();
            breakers.of(&server, Some(&tool), &settings)
        };
        let own = breakers.of(&server, None, &settings);
        let held = of("held");
        fail(&of("failed"));
        for number in 0..100 {
            drop(of(&format!("brief_{number}")));
        }
        assert_eq!(breakers.of_server(&server).len(), 103);
        breakers.flush(&store).await;
        let left: Vec<_> =
            breakers.of_server(&server).iter().map(|breaker| breaker.view().tool).collect();
        let tool = |name: &str| Some(ToolName::parse(name).unwrap());
        assert_eq!(left, [None, tool("failed"), tool("held")]);
        assert_eq!(of("failed").view().status.failures, 1);
        drop((own, held));
    }

    #[tokio::test]
    async fn a_server_and_what_it_was_before_have_one_budget() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let breakers = Breakers::load(&store, Metrics::new().unwrap()).await.unwrap();
        let mut settings = ServerSettings::resolve(&Knobs::default());
        settings.retry.budget = RetryBudget { ratio: 1.0, min_per_second: 0.0, cap: 100.0 };
        let server = ServerName::parse("s").unwrap();
        let calls = |breaker: &ServerBreaker| {
            let now = Uptime::from_millis(1);
            drop(breaker.acquire(now, Duration::from_secs(1), Turn::First).unwrap());
        };
        let before = breakers.of(&server, None, &settings);
        (0..3).for_each(|_| calls(&before));
        breakers.changed(&server);
        let now = breakers.of(&server, None, &settings);
        assert!(!Arc::ptr_eq(&before, &now));
        calls(&now);
        assert!(before.take_retry() && now.take_retry() && before.take_retry() && now.take_retry());
        assert!(!before.take_retry() && !now.take_retry());
        before.put_retry_back();
        assert!(now.take_retry() && !before.take_retry());
    }

    /// Else each start would give the time once more.
    #[tokio::test]
    async fn an_end_that_a_start_moved_is_to_be_stored() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let settings = ServerSettings::resolve(&Knobs::default());
        let period = settings.breaker.open_for;
        let server = ServerName::parse("s").unwrap();
        let (hour, now) = (Duration::from_secs(3600), clock::timestamp());
        let row = |tool: &str, state: BreakerState, opened_at: Timestamp, open_for: Duration| {
            let record = BreakerRecord {
                state,
                failures: 5,
                trips: 1,
                generation: 1,
                opened_at: Some(opened_at),
                open_for: Some(open_for),
                last_failure_at: None,
                reason: None,
            };
            let tool = ToolName::parse(tool).ok();
            BreakerRow { server: server.clone(), tool, record, last_error: None }
        };
        let rows = [
            row("", BreakerState::Open, now.plus(hour), period),
            row("back", BreakerState::Open, now.plus(hour), period),
            row("forced", BreakerState::ForcedOpen, now.plus(hour), period),
            // The configuration gave more then.
            row("less", BreakerState::Open, now, hour),
        ];
        let breakers = Breakers::load(&store, Metrics::new().unwrap()).await.unwrap();
        for row in rows {
            let key = (row.server.clone(), row.tool.clone());
            breakers.stored.lock().insert(key.clone(), Stored { row, forced: None });
            let breaker = breakers.of(&server, key.1.as_ref(), &settings);
            let row = breaker.settle().expect("it is to be stored");
            let latest = clock::timestamp().plus(period);
            assert!(row.record.ends_at().unwrap() <= latest, "{row:?}");
        }
    }
}
