//! [`Children`]: the child processes of one server, over all its connections.
//!
//! Changes when the rules for starting a child again do, or what is known of children.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::TransportError;
use crate::guard::{ProcessTable, Usage};
use crate::model::Uptime;

/// In which time failed starts are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// How many of them there may be. An opening can start two processes (the second if the first
/// dies of the modern probe), so a child that ends at once is started nine times a minute at most.
const FAILED_STARTS: usize = 8;

/// The child processes of one server. Cheap to clone; all clones are about the same processes.
#[derive(Clone, Default)]
pub struct Children {
    guard: Option<Arc<Path>>,
    /// Whether a start is one after another child.
    again: bool,
    running: Arc<Running>,
    failed: Arc<Mutex<Failed>>,
    turns: Turns,
}

/// So many may start at a time as may fail in a minute: where each client has a child of its own, many
/// can be wanted at once, before the first has shown that they all fail.
#[derive(Clone)]
struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(FAILED_STARTS)))
    }
}

#[derive(Default)]
struct Running {
    /// Process ids of those that were started here, and whether they are guards.
    started: Mutex<BTreeMap<u32, bool>>,
    restarts: AtomicU64,
}

#[derive(Default)]
struct Failed {
    /// When starts failed, the last of them at the end.
    at: VecDeque<Uptime>,
    last: Option<Arc<TransportError>>,
}

impl fmt::Debug for Children {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Children").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl Children {
    /// No children yet. With the program of guards, each will have one ([`crate::guard`]); without,
    /// they are process groups, which end in order with the router and not when it is killed.
    #[must_use]
    pub fn new(guard: Option<&Path>) -> Self {
        Self { guard: guard.map(Into::into), ..Self::default() }
    }

    /// The children of the same server with another specification: those of the old one still
    /// count while they end, and what happened to them says nothing about the new ones.
    #[must_use]
    pub fn of_successor(&self) -> Self {
        Self { failed: Arc::default(), again: false, ..self.clone() }
    }

    /// The same for starts that follow another one of the same connection.
    #[must_use]
    pub(crate) fn again(&self) -> Self {
        Self { again: true, ..self.clone() }
    }

    /// Waits until a start may begin; it ends when what is given is dropped.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // Never closed, so always given.
        Arc::clone(&self.turns.0).acquire_owned().await.ok()
    }

    pub(super) fn guard(&self) -> Option<&Path> {
        self.guard.as_deref()
    }

    /// Notes a start. The child counts until the value is dropped.
    pub(super) fn started(&self, pid: u32, is_guard: bool) -> Started {
        self.running.started.lock().insert(pid, is_guard);
        if self.again {
            self.running.restarts.fetch_add(1, Ordering::Relaxed);
        }
        Started { running: Arc::clone(&self.running), pid }
    }

    /// Notes that a child ended before it was of use, or soon after.
    pub(crate) fn failed(&self, now: Uptime) {
        let mut failed = self.failed.lock();
        failed.at.push_back(now);
        while failed.at.len() > FAILED_STARTS {
            failed.at.pop_front();
        }
    }

    /// Notes why a connection could not be opened or was lost.
    pub(crate) fn failed_with(&self, error: &Arc<TransportError>) {
        self.failed.lock().last = Some(Arc::clone(error));
    }

    /// Forgets what failed: somebody wants a try now.
    pub(crate) fn forget(&self) {
        *self.failed.lock() = Failed::default();
    }

    /// How long no child should be started because too many failed lately, and how the last did.
    pub(crate) fn wait(&self, now: Uptime) -> Option<(Arc<TransportError>, Duration)> {
        let failed = self.failed.lock();
        let first = failed.at.front().filter(|_| failed.at.len() >= FAILED_STARTS)?;
        let wait = WINDOW.checked_sub(now.since(*first)).filter(|wait| !wait.is_zero())?;
        Some((failed.last.clone()?, wait))
    }

    /// Whether any runs.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.running.started.lock().is_empty()
    }

    /// How many were started here and run, whatever they started.
    #[must_use]
    pub fn count(&self) -> usize {
        self.running.started.lock().len()
    }

    /// How many there are with all their descendants, guards left out, and what they take.
    #[must_use]
    pub fn usage(&self, table: &ProcessTable) -> Usage {
        let mut sum = Usage::default();
        for (pid, is_guard) in &*self.running.started.lock() {
            let Ok(pid) = i32::try_from(*pid) else { continue };
            let one = if *is_guard { table.usage_below(pid) } else { table.usage_of(pid) };
            sum.processes = sum.processes.saturating_add(one.processes);
            sum.resident_bytes = sum.resident_bytes.saturating_add(one.resident_bytes);
        }
        sum
    }

    /// How many were started after another one since this was last asked.
    #[must_use]
    pub fn take_restarts(&self) -> u64 {
        self.running.restarts.swap(0, Ordering::Relaxed)
    }
}

/// A child that runs.
pub(super) struct Started {
    running: Arc<Running>,
    pid: u32,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.running.started.lock().remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_fails_and_fails_is_started_ten_times_a_minute_at_most() {
        let children = Children::default();
        children.failed_with(&Arc::new(TransportError::Closed));
        let mut starts: Vec<u64> = Vec::new();
        for second in 0..600 {
            let now = Uptime::from_millis(second * 1000);
            if children.wait(now).is_none() {
                // As an opening whose child dies of the probe and then of the handshake.
                for _ in 0..2 {
                    children.failed(now);
                    starts.push(second);
                }
            }
            let lately = starts.iter().filter(|start| **start + 60 > second).count();
            assert!(lately <= 10, "{lately} in the minute before {second} s");
        }
        assert!(starts.len() > 60, "it goes on being tried: {}", starts.len());
        children.forget();
        assert!(children.wait(Uptime::from_millis(600_000)).is_none());
    }

    #[test]
    fn what_failed_of_an_old_specification_does_not_hold_up_the_new_one() {
        let old = Children::default();
        old.failed_with(&Arc::new(TransportError::Closed));
        (0..10).for_each(|_| old.failed(Uptime::from_millis(0)));
        let started = old.again().started(1, true);
        let new = old.of_successor();
        assert!(old.wait(Uptime::from_millis(1)).is_some());
        assert!(new.wait(Uptime::from_millis(1)).is_none());
        assert!(new.any());
        assert_eq!((new.take_restarts(), old.take_restarts()), (1, 0));
        drop(started);
        assert!(!new.any());
    }
}
