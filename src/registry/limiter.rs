//! [`Limiter`]: how many calls may be at one server, and how many may wait.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

/// As many may wait for a free place; more would only grow old in the queue.
const QUEUE: u32 = 256;
/// The longest wait for a free place.
const PATIENCE: Duration = Duration::from_secs(1);

/// As many calls may wait for their next attempt, and this many for each place if that is more. Where a
/// tool is quick and the delay long, nearly all callers of a server that fails now and then wait.
const SLEEPERS: u32 = 1024;
const SLEEPERS_PER_PLACE: u32 = 8;
/// The most of them at any server: each holds its place in the ledger's queue, which has four times as
/// many for all servers together.
const MOST_SLEEPERS: u32 = 4096;
/// What they may hold together, in bytes of their requests; the last to find room may hold more.
const ASLEEP: u64 = 64 * 1024 * 1024;

/// A place at a server; dropping it frees it.
#[derive(Debug)]
pub struct Place<'a>(#[expect(dead_code, reason = "held for its drop")] SemaphorePermit<'a>);

/// The server is busy and so is its queue, or no place came free in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overloaded;

/// The waiting room in front of a server. Without it one slow server would fill memory with calls.
#[derive(Debug)]
pub struct Limiter {
    places: Semaphore,
    waiting: AtomicU32,
    sleeping: AtomicU32,
    /// How many may.
    sleepers: u32,
    /// Bytes of those that sleep.
    asleep: AtomicU64,
}

/// A call that waits for its next attempt; dropping it ends the wait.
#[derive(Debug)]
pub struct Sleeper<'a> {
    limiter: &'a Limiter,
    bytes: u64,
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.limiter.sleeping.fetch_sub(1, Ordering::AcqRel);
        self.limiter.asleep.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Limiter {
    /// A limiter with `places` places.
    #[must_use]
    pub fn new(places: u32) -> Self {
        let sleepers = places.saturating_mul(SLEEPERS_PER_PLACE).clamp(SLEEPERS, MOST_SLEEPERS);
        let places = usize::try_from(places).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            places: Semaphore::new(places),
            waiting: AtomicU32::new(0),
            sleeping: AtomicU32::new(0),
            sleepers,
            asleep: AtomicU64::new(0),
        }
    }

    /// Notes a call that waits for its next attempt and holds `bytes` as long, unless too many do or
    /// they hold too much.
    pub fn sleep(&self, bytes: u64) -> Option<Sleeper<'_>> {
        let before = self.sleeping.fetch_add(1, Ordering::AcqRel);
        let held = self.asleep.fetch_add(bytes, Ordering::AcqRel);
        // Else it gives both back as it is dropped.
        let sleeper = Sleeper { limiter: self, bytes };
        (before < self.sleepers && held < ASLEEP).then_some(sleeper)
    }

    /// Takes a place if one is free.
    pub fn try_enter(&self) -> Option<Place<'_>> {
        self.places.try_acquire().ok().map(Place)
    }

    /// Takes a place; waits at most a second, at most `left`. `on_wait` is told +1 and -1 around
    /// a wait. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Overloaded`] when the queue is full or the wait was in vain.
    pub async fn enter(
        &self,
        left: Duration,
        on_wait: impl Fn(i64),
    ) -> Result<Place<'_>, Overloaded> {
        if let Ok(permit) = self.places.try_acquire() {
            return Ok(Place(permit));
        }
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= QUEUE {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(Overloaded);
        }
        on_wait(1);
        let _leave = Leave { waiting: &self.waiting, on_wait: &on_wait };
        match tokio::time::timeout(left.min(PATIENCE), self.places.acquire()).await {
            Ok(Ok(permit)) => Ok(Place(permit)),
            Ok(Err(_)) | Err(_) => Err(Overloaded),
        }
    }
}

struct Leave<'a, F: Fn(i64)> {
    waiting: &'a AtomicU32,
    on_wait: &'a F,
}

impl<F: Fn(i64)> Drop for Leave<'_, F> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        (self.on_wait)(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_comes_free_or_the_wait_ends() {
        let limiter = Limiter::new(1);
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(20));
        let place = limiter.enter(long, |_| {}).await.unwrap();
        assert_eq!(limiter.enter(short, |_| {}).await.unwrap_err(), Overloaded);
        let waiting = limiter.enter(long, |_| {});
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(place);
        assert!(waiting.await.is_ok());
        assert_eq!(limiter.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn only_so_many_calls_wait_for_their_next_attempt() {
        for (places, most) in [(1, 1024), (64, 1024), (400, 3200), (100_000, 4096)] {
            let limiter = Limiter::new(places);
            let mut sleepers: Vec<_> = (0..most).filter_map(|_| limiter.sleep(1)).collect();
            assert_eq!(sleepers.len(), most);
            assert!(limiter.sleep(1).is_none() && limiter.sleep(1).is_none());
            sleepers.pop();
            assert!(limiter.sleep(1).is_some());
            drop(sleepers);
            assert_eq!(limiter.sleeping.load(Ordering::Relaxed), 0);
            assert_eq!(limiter.asleep.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn calls_that_wait_hold_only_so_much() {
        let limiter = Limiter::new(1);
        let large = limiter.sleep(2 * ASLEEP);
        assert!(large.is_some(), "one that is too large for any room waits where no other does");
        assert!(limiter.sleep(0).is_none());
        drop(large);
        let half = limiter.sleep(ASLEEP / 2);
        assert!(half.is_some() && limiter.sleep(ASLEEP / 2).is_some());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let limiter = Limiter::new(1);
        let long = Duration::from_secs(60);
        let _place = limiter.enter(long, |_| {}).await.unwrap();
        let mut queue: Vec<_> = (0..QUEUE).map(|_| Box::pin(limiter.enter(long, |_| {}))).collect();
        for waiting in &mut queue {
            assert!(futures_util::poll!(waiting).is_pending());
        }
        let mut one_more = Box::pin(limiter.enter(long, |_| {}));
        assert!(matches!(
            futures_util::poll!(&mut one_more),
            std::task::Poll::Ready(Err(Overloaded))
        ));
        queue.clear();
        assert_eq!(limiter.waiting.load(Ordering::Relaxed), 0);
    }
}
