//! [`Throttle`]: keeps calls back when they end faster than they are written.
//!
//! Changes when calls are kept back otherwise. How much may wait is `backlog.rs`'s.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// What waits for the writer, and the calls that are not sent because of that.
#[derive(Debug)]
pub(super) struct Throttle {
    /// Weight of the finished calls that the writer has not taken. Changed under the lock of the queue.
    waiting: AtomicUsize,
    /// How much there may be before others are kept back.
    most: AtomicUsize,
    /// Calls that are, and what lets one of them go on.
    kept_back: AtomicUsize,
    eased: Notify,
}

/// A call that is kept back, also when its caller does not wait for that.
struct KeptBack<'a>(&'a AtomicUsize);

impl<'a> KeptBack<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for KeptBack<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Throttle {
    /// Without a limit.
    pub(super) fn new() -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            most: AtomicUsize::new(usize::MAX),
            kept_back: AtomicUsize::new(0),
            eased: Notify::new(),
        }
    }

    /// Weight of what waits.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether more waits than should.
    pub(super) fn is_on(&self) -> bool {
        self.waiting() >= self.most.load(Ordering::Relaxed)
    }

    /// Resolves when that is over, and after `longest` in any case.
    pub(super) async fn keep_back(&self, longest: Duration) {
        let _counted = KeptBack::new(&self.kept_back);
        let eased = async {
            while self.is_on() {
                self.eased.notified().await;
            }
        };
        let _served_all_the_same = tokio::time::timeout(longest, eased).await;
    }

    /// More waits by this weight.
    pub(super) fn add(&self, weight: usize) {
        self.waiting.fetch_add(weight, Ordering::Relaxed);
    }

    /// Less does: as many of the calls that are kept back go on as there is room for.
    pub(super) fn take(&self, weight: usize) {
        let left = self.waiting.fetch_sub(weight, Ordering::Relaxed).saturating_sub(weight);
        let room = self.most.load(Ordering::Relaxed).saturating_sub(left);
        for _ in 0..room.min(self.kept_back.load(Ordering::Relaxed)) {
            self.eased.notify_one();
        }
    }

    /// From now on so much may wait.
    pub(super) fn limit(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Keeps nobody back until there is a limit again.
    pub(super) fn ease(&self) {
        self.limit(usize::MAX);
        self.eased.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream::FuturesUnordered;
    use futures_util::{FutureExt as _, StreamExt as _};

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    /// Not all at once; and one that nobody waits for any more is not counted.
    #[tokio::test]
    async fn as_many_go_on_as_there_is_room_for() {
        let throttle = Throttle::new();
        throttle.add(10);
        assert!(!throttle.is_on(), "no limit");
        throttle.limit(10);
        assert!(throttle.is_on());
        let mut calls: FuturesUnordered<_> = (0..6).map(|_| throttle.keep_back(LONG)).collect();
        let kept_back = || throttle.kept_back.load(Ordering::Relaxed);
        assert!(calls.next().now_or_never().is_none(), "all are kept back");
        assert_eq!(kept_back(), 6);
        throttle.take(2);
        let mut go_on = 0;
        while calls.next().now_or_never().is_some() {
            go_on += 1;
        }
        assert_eq!((go_on, kept_back()), (2, 4));
        throttle.ease();
        assert!(calls.next().now_or_never().is_some(), "there is no limit any more");
        drop(calls);
        assert_eq!(kept_back(), 0, "whoever went away");
    }

    #[tokio::test]
    async fn nobody_is_kept_back_for_long() {
        let throttle = Throttle::new();
        throttle.limit(0);
        throttle.keep_back(Duration::from_millis(20)).await;
        assert!(throttle.is_on());
    }
}
