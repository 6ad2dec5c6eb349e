//! The loop that asks each server in its turn.
//!
//! Changes when what gives a server a turn changes; when turns are due is `schedule`'s.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::Discovery;
use super::ask::Asked;
use crate::catalogue::schedule::{self, Action, Listing, Turns, Wanted};
use crate::clock;
use crate::model::{ServerName, Uptime};
use crate::registry::{ServerHandle, ServerState};

/// How often it is looked whether a server went away or came back between its turns.
const LOOK: Duration = Duration::from_secs(1);

/// A server and its turns.
#[derive(Debug)]
struct Plan {
    handle: Arc<ServerHandle>,
    turns: Turns,
    /// Connections that had been opened when its lists were last asked for.
    connects: Option<u64>,
}

/// What `run` has had done.
enum Done {
    Listed(Wanted, Asked),
    Checked(bool),
}

impl Discovery {
    /// Asks servers when they appear, when they come back, when they say that something changed,
    /// and from time to time, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut registry_changed = self.registry.subscribe();
        let mut plan: HashMap<ServerName, Plan> = HashMap::new();
        let mut asking = FuturesUnordered::new();
        loop {
            let now = clock::uptime();
            let servers = self.registry.servers();
            // A handle kept here for a server that is disabled would keep its connections open.
            plan.retain(|name, _| servers.get(name).is_some_and(|handle| handle.enabled));
            let notices = std::mem::take(&mut *self.notices.lock());
            for handle in servers.values().filter(|handle| handle.enabled) {
                let entry =
                    plan.entry(handle.name.clone()).or_insert_with(|| Plan::new(handle, now));
                if !Arc::ptr_eq(&entry.handle, handle) {
                    *entry = Plan::new(handle, now);
                }
                if let Some(wanted) = notices.get(&handle.name) {
                    entry.turns.notice(*wanted, now);
                }
                if let Some(action) = entry.turns.begin(now) {
                    let (this, handle) = (Arc::clone(&self), Arc::clone(handle));
                    asking.push(Box::pin(async move {
                        let done = match action {
                            Action::List(wanted) => {
                                Done::Listed(wanted, this.ask(&handle, wanted).await)
                            }
                            Action::Check => Done::Checked(this.check(&handle).await),
                        };
                        (handle, done)
                    }));
                }
            }
            if !self.start_up_done() && plan.values().all(|plan| plan.turns.asked()) {
                self.started.send_replace(true);
            }
            let next = plan.values().filter_map(|plan| plan.turns.next()).min();
            let wait = next.map_or(LOOK, |next| next.since(now));
            tokio::select! {
                () = stop.cancelled() => return,
                changed = registry_changed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.rebuild();
                }
                () = self.noticed.notified() => {}
                Some((handle, done)) = asking.next() => {
                    let interval = self.settings.load().health_check_interval;
                    if let Some(entry) = plan.get_mut(&handle.name)
                        && Arc::ptr_eq(&entry.handle, &handle)
                    {
                        entry.finished(&done, interval, clock::uptime());
                    }
                }
                () = tokio::time::sleep(wait.clamp(Duration::from_millis(10), LOOK)) => {
                    let now = clock::uptime();
                    for entry in plan.values_mut() {
                        entry.look(now);
                    }
                }
            }
        }
    }
}

impl Plan {
    fn new(handle: &Arc<ServerHandle>, now: Uptime) -> Self {
        let turns = Turns::new(handle.name.as_str(), now);
        Self { handle: Arc::clone(handle), turns, connects: None }
    }

    fn finished(&mut self, done: &Done, interval: Duration, now: Uptime) {
        match done {
            Done::Listed(wanted, asked) => {
                let ok = asked.tools.is_ok() && (asked.offers || *wanted == Wanted::ALL);
                // A list that cannot be had is asked for again in the usual time.
                let poll = match asked.offers {
                    true => schedule::poll(interval, asked.ttl, asked.announces),
                    false => interval,
                };
                if *wanted == Wanted::ALL {
                    self.connects = Some(asked.connects);
                }
                self.turns.listed(Listing { wanted: *wanted, ok, interval, poll }, now);
            }
            Done::Checked(ok) => self.turns.checked(*ok, interval, now),
        }
    }

    /// Sees what happened between its turns.
    fn look(&mut self, now: Uptime) {
        // Who does not let us in, or answers calls and cannot be asked for its tools, is asked in its
        // turn only.
        let up = self.handle.state() == ServerState::Up
            && !self.handle.is_unauthorized()
            && !self.handle.is_unlisted();
        self.turns.look(up, now);
        // Behind a new connection may be a new program.
        let connects = self.handle.connects();
        if self.connects.is_some_and(|before| before != connects) {
            self.connects = Some(connects);
            self.turns.notice(Wanted::ALL, now);
        }
    }
}
