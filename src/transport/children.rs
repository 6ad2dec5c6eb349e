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
use tokio::sync::Notify;

use super::error::TransportError;
use crate::clock;
use crate::guard::{ProcessTable, Usage};
use crate::model::Uptime;

/// In which time failed starts are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// How many of them there may be, those that are not known to have failed yet included.
const STARTS: usize = 10;
/// How many processes an opening can start: the second if the first dies of the modern probe.
const OPENING: usize = 2;

/// The child processes of one server. Cheap to clone; all clones are about the same processes.
#[derive(Clone, Default)]
pub struct Children {
    guard: Option<Arc<Path>>,
    /// Whether a start is one after another child.
    again: bool,
    running: Arc<Running>,
    starts: Arc<Starts>,
}

/// The starts of one specification.
#[derive(Default)]
struct Starts {
    failed: Mutex<Failed>,
    /// Children that ended by themselves and that no start has followed yet.
    unreplaced: AtomicU64,
    /// Something changed for those that wait for their turn.
    freed: Notify,
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
    /// When room was made for somebody who wanted a try.
    pardoned: Option<Uptime>,
    /// Openings under way: where each client has a child of its own, many can be wanted at once,
    /// before the first has shown that they all fail.
    openings: usize,
}

impl Failed {
    /// How long to wait until an opening cannot make too many starts fail in a minute, were it alone.
    fn wait(&mut self, now: Uptime) -> Duration {
        while self.at.front().is_some_and(|first| now.since(*first) >= WINDOW) {
            self.at.pop_front();
        }
        // So many have to be a minute ago first.
        let surplus = (self.at.len() + OPENING).saturating_sub(STARTS);
        let last = surplus.checked_sub(1).and_then(|at| self.at.get(at));
        last.map(|last| WINDOW.saturating_sub(now.since(*last))).unwrap_or_default()
    }

    /// Whether there may be one more beside those under way.
    fn has_room(&self) -> bool {
        self.openings == 0 || self.at.len() + OPENING * (self.openings + 1) <= STARTS
    }
}

/// The right to start children for one connection. Dropped when it is open, or failed.
pub(crate) struct Turn(Arc<Starts>);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut failed = self.0.failed.lock();
        failed.openings = failed.openings.saturating_sub(1);
        drop(failed);
        self.0.freed.notify_waiters();
    }
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
        Self { starts: Arc::default(), again: false, ..self.clone() }
    }

    /// The same for starts that follow another one of the same connection.
    #[must_use]
    pub(crate) fn again(&self) -> Self {
        Self { again: true, ..self.clone() }
    }

    /// Waits until an opening may begin beside those under way.
    ///
    /// # Errors
    /// When too many starts failed lately: how the last did, and how long there should be none.
    pub(crate) async fn turn(&self) -> Result<Turn, (Arc<TransportError>, Duration)> {
        loop {
            let freed = self.starts.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // Before it is looked, so that nothing that happens then is missed.
            freed.as_mut().enable();
            if let Some(refusal) = self.wait(clock::uptime()) {
                return Err(refusal);
            }
            {
                let mut failed = self.starts.failed.lock();
                if failed.has_room() {
                    failed.openings += 1;
                    return Ok(Turn(Arc::clone(&self.starts)));
                }
            }
            freed.await;
        }
    }

    pub(super) fn guard(&self) -> Option<&Path> {
        self.guard.as_deref()
    }

    /// Notes a start. The child counts until the value is dropped.
    pub(super) fn started(&self, pid: u32, is_guard: bool) -> Started {
        self.running.started.lock().insert(pid, is_guard);
        // Where each client, or each call, has a child of its own, it is another one's connection that
        // starts the next.
        let less = |count: u64| count.checked_sub(1);
        let replaces =
            self.starts.unreplaced.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok();
        if self.again || replaces {
            self.running.restarts.fetch_add(1, Ordering::Relaxed);
        }
        Started { running: Arc::clone(&self.running), pid }
    }

    /// Notes that a child ended before it was of use, or soon after.
    pub(crate) fn failed(&self, now: Uptime) {
        self.ended();
        let mut failed = self.starts.failed.lock();
        failed.at.push_back(now);
        while failed.at.len() > STARTS {
            failed.at.pop_front();
        }
    }

    /// Notes that a child ended by itself that had been of use.
    pub(crate) fn ended(&self) {
        self.starts.unreplaced.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes why a connection could not be opened or was lost.
    pub(crate) fn failed_with(&self, error: &Arc<TransportError>) {
        self.starts.failed.lock().last = Some(Arc::clone(error));
    }

    /// Makes room for one opening: somebody wants a try now. Once a minute at most, for whoever asks
    /// again and again would start children in a circle, too.
    pub(crate) fn pardon(&self, now: Uptime) {
        let mut failed = self.starts.failed.lock();
        let lately = failed.pardoned.is_some_and(|last| now.since(last) < WINDOW);
        if lately || failed.wait(now).is_zero() {
            return;
        }
        let surplus = (failed.at.len() + OPENING).saturating_sub(STARTS);
        failed.at.drain(..surplus);
        failed.pardoned = Some(now);
        drop(failed);
        self.starts.freed.notify_waiters();
    }

    /// How long no child should be started because too many failed lately, and how the last did.
    pub(crate) fn wait(&self, now: Uptime) -> Option<(Arc<TransportError>, Duration)> {
        let mut failed = self.starts.failed.lock();
        let wait = failed.wait(now);
        if wait.is_zero() { None } else { Some((failed.last.clone()?, wait)) }
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
    }

    #[test]
    fn whoever_wants_a_try_has_one_a_minute_beside_the_ten() {
        let children = Children::default();
        children.failed_with(&Arc::new(TransportError::Closed));
        let mut starts: Vec<u64> = Vec::new();
        for second in 0..600 {
            let now = Uptime::from_millis(second * 1000);
            children.pardon(now);
            if children.wait(now).is_none() {
                for _ in 0..OPENING {
                    children.failed(now);
                    starts.push(second);
                }
            }
            let lately = starts.iter().filter(|start| **start + 60 > second).count();
            assert!(lately <= STARTS + OPENING, "{lately} in the minute before {second} s");
        }
        // What is not needed is not spent.
        let children = Children::default();
        children.failed_with(&Arc::new(TransportError::Closed));
        let now = Uptime::from_millis(0);
        children.pardon(now);
        (0..STARTS).for_each(|_| children.failed(now));
        assert!(children.wait(now).is_some());
        children.pardon(now);
        assert!(children.wait(now).is_none());
    }

    #[test]
    fn a_start_after_a_child_that_ended_by_itself_is_a_restart() {
        let children = Children::default();
        let start = |children: &Children| drop(children.started(1, true));
        start(&children);
        // Another one's, while the first is well.
        start(&children);
        assert_eq!(children.take_restarts(), 0);
        children.failed(Uptime::from_millis(0));
        children.ended();
        // Of the same connection or not, each counts once.
        start(&children.again());
        start(&children);
        start(&children);
        assert_eq!(children.take_restarts(), 2);
    }

    /// Many openings at once that all fail after a while, as each starts one child or two.
    #[tokio::test]
    async fn openings_under_way_count_before_they_have_failed() {
        for each in [1, OPENING] {
            let children = Children::default();
            children.failed_with(&Arc::new(TransportError::Closed));
            let started = std::sync::atomic::AtomicUsize::new(0);
            let openings = (0..100).map(|_| async {
                let Ok(_turn) = children.turn().await else { return false };
                for _ in 0..each {
                    started.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    children.failed(clock::uptime());
                }
                true
            });
            let opened = futures_util::future::join_all(openings).await;
            let started = started.into_inner();
            assert!((STARTS - 1..=STARTS).contains(&started), "{started} of {each}");
            assert!(opened.iter().filter(|opened| **opened).count() <= STARTS);
            assert_eq!(children.starts.failed.lock().openings, 0);
        }
    }

    #[tokio::test]
    async fn openings_that_succeed_take_their_turns_and_none_is_refused() {
        let children = Children::default();
        let most = std::sync::atomic::AtomicUsize::new(0);
        let openings = (0..40).map(|_| async {
            let turn = children.turn().await;
            most.fetch_max(children.starts.failed.lock().openings, Ordering::Relaxed);
            tokio::task::yield_now().await;
            assert!(turn.is_ok());
        });
        futures_util::future::join_all(openings).await;
        assert_eq!(most.into_inner(), STARTS / OPENING);
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
