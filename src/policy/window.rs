//! [`Window`]: how many of the last attempts failed or were slow.
//!
//! Exact counts in a ring of ten parts of the span, not a moving average: a rate that opens a breaker
//! must be one that a person can check.

use std::time::Duration;

use crate::model::Uptime;

/// Parts of a span. What is older than a span is forgotten one part at a time.
const PARTS: usize = 10;

/// Counts of attempts over a span of time.
#[derive(Debug, Clone)]
pub(super) struct Window {
    part: Duration,
    parts: [Count; PARTS],
    /// The number of the part that is being filled, since the start of time.
    filling: u64,
}

/// Attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Count {
    pub(super) all: u64,
    pub(super) failed: u64,
    pub(super) slow: u64,
}

impl Count {
    /// `some` of all; nothing of nothing.
    #[expect(clippy::cast_precision_loss, reason = "counts of calls in a span are far below 2^52")]
    pub(super) fn rate(&self, some: u64) -> f64 {
        if self.all == 0 { 0.0 } else { some as f64 / self.all as f64 }
    }
}

impl Window {
    pub(super) fn new(span: Duration) -> Self {
        let parts = u32::try_from(PARTS).unwrap_or(1);
        let part = (span / parts).max(Duration::from_millis(1));
        Self { part, parts: [Count::default(); PARTS], filling: 0 }
    }

    pub(super) fn add(&mut self, now: Uptime, failed: bool, slow: bool) {
        self.advance(now);
        let at = self.place(self.filling);
        if let Some(count) = self.parts.get_mut(at) {
            count.all += 1;
            count.failed += u64::from(failed);
            count.slow += u64::from(slow);
        }
    }

    pub(super) fn sum(&mut self, now: Uptime) -> Count {
        self.advance(now);
        self.parts.iter().fold(Count::default(), |sum, part| Count {
            all: sum.all + part.all,
            failed: sum.failed + part.failed,
            slow: sum.slow + part.slow,
        })
    }

    pub(super) fn clear(&mut self) {
        self.parts = [Count::default(); PARTS];
    }

    fn advance(&mut self, now: Uptime) {
        let number = now.since(Uptime::default()).as_nanos() / self.part.as_nanos().max(1);
        let number = u64::try_from(number).unwrap_or(u64::MAX);
        // Two threads may come with times in the wrong order; what is earlier goes where we are.
        let behind = number.saturating_sub(self.filling);
        if behind >= PARTS as u64 {
            self.clear();
        } else {
            for passed in 1..=behind {
                let at = self.place(self.filling.saturating_add(passed));
                if let Some(part) = self.parts.get_mut(at) {
                    *part = Count::default();
                }
            }
        }
        self.filling = self.filling.max(number);
    }

    fn place(&self, number: u64) -> usize {
        usize::try_from(number % PARTS as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_span_is_forgotten() {
        let mut window = Window::new(Duration::from_secs(10));
        let at = Uptime::from_millis;
        for second in 0..10 {
            window.add(at(second * 1000), second % 2 == 0, second == 9);
        }
        assert_eq!(window.sum(at(9_999)), Count { all: 10, failed: 5, slow: 1 });
        assert_eq!(window.sum(at(10_000)), Count { all: 9, failed: 4, slow: 1 });
        assert_eq!(window.sum(at(18_500)), Count { all: 1, failed: 0, slow: 1 });
        assert_eq!(window.sum(at(19_000)), Count::default());
        window.add(at(1_000_000), true, false);
        window.add(at(999_000), true, false);
        assert_eq!(window.sum(at(1_000_000)).all, 2);
        assert_eq!(window.sum(at(2_000_000)), Count::default());
    }
}
