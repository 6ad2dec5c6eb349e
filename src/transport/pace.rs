//! [`Pace`]: how fast a server may speak on its own.
//!
//! Changes when what is fair of a stream without an end does. A stream that is not read any further
//! stops its server, so nothing is lost: whoever says more than anybody can hear is heard slowly.

use std::time::Duration;

use crate::clock;
use crate::model::Uptime;

/// What an event costs beside its bytes: it is parsed, looked up and perhaps passed on.
const EVENT: u64 = 1024;

/// How much may come: a stock that fills with time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    /// Bytes in a second.
    per_second: u64,
    /// Bytes at once.
    burst: u64,
}

/// Counts what came on one stream.
#[derive(Debug)]
pub(super) struct Pace {
    allowance: Allowance,
    /// When all of the stock will be there again, if nothing else comes.
    full_at: Uptime,
}

impl Pace {
    /// For a stream of notifications: some 15,000 at once, then some 900 in a second. That is more
    /// than lists and resources change, and reading it costs a few percent of a processor at most.
    pub(super) const OWN_STREAM: Allowance =
        Allowance { per_second: 1024 * 1024, burst: 16 * 1024 * 1024 };

    /// For what a child writes on standard error. It is only kept in part and not understood, and
    /// at this rate that costs a few percent of a processor.
    pub(super) const STANDARD_ERROR: Allowance =
        Allowance { per_second: 64 * 1024 * 1024, burst: 64 * 1024 * 1024 };

    /// For what is no answer on a stream that carries all answers, which may have `largest` bytes:
    /// what many calls report meanwhile is on it, too. What comes is known to be an answer when all
    /// of it is there, so there has to be room for one, and for the beginning of another.
    pub(super) fn shared_stream(largest: u64) -> Allowance {
        let burst = largest.saturating_mul(2).max(32 * 1024 * 1024);
        Allowance { per_second: 4 * 1024 * 1024, burst }
    }

    pub(super) const fn new(allowance: Allowance, now: Uptime) -> Self {
        Self { allowance, full_at: now }
    }

    /// Takes so much from the stock; how long to wait until there is some again.
    fn take(&mut self, bytes: usize, events: u64, now: Uptime) -> Duration {
        let Allowance { per_second, burst } = self.allowance;
        let cost = events.saturating_mul(EVENT).saturating_add(bytes as u64);
        let from = self.full_at.max(now);
        self.full_at = from.plus(time_for(cost, per_second));
        self.full_at.since(now).saturating_sub(time_for(burst, per_second))
    }

    /// So many of the bytes were what is wanted: an answer.
    pub(super) fn give_back(&mut self, bytes: usize) {
        let time = time_for(bytes as u64, self.allowance.per_second);
        let full_at = self.full_at.since(Uptime::default()).saturating_sub(time);
        self.full_at = Uptime::from_duration(full_at);
    }

    /// Waits, where too much came.
    pub(super) async fn keep(&mut self, bytes: usize, events: u64) {
        let wait = self.take(bytes, events, clock::uptime());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

fn time_for(bytes: u64, per_second: u64) -> Duration {
    Duration::from_nanos(
        u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(per_second.max(1)))
            .unwrap_or(u64::MAX),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SLOW: Allowance = Allowance { per_second: 1000, burst: 5000 };

    fn at(millis: u64) -> Uptime {
        Uptime::from_millis(millis)
    }

    #[test]
    fn a_burst_is_free_and_what_follows_waits() {
        let mut pace = Pace::new(SLOW, at(0));
        assert_eq!(pace.take(5000, 0, at(0)), Duration::ZERO);
        assert_eq!(pace.take(1000, 0, at(0)), Duration::from_secs(1));
        assert_eq!(pace.take(0, 0, at(1000)), Duration::ZERO);
        assert_eq!(pace.take(500, 0, at(1000)), Duration::from_millis(500));
        // A long silence fills the stock, and not beyond.
        assert_eq!(pace.take(5001, 0, at(3_600_000)), Duration::from_millis(1));
    }

    #[test]
    fn answers_are_free() {
        let mut pace = Pace::new(SLOW, at(10_000));
        for _ in 0..100 {
            assert_eq!(pace.take(5000, 0, at(10_000)), Duration::ZERO);
            pace.give_back(5000);
        }
        // Nobody saves for later.
        pace.give_back(5000);
        assert_eq!(pace.take(5000, 0, at(10_000)), Duration::ZERO);
        assert!(pace.take(1, 0, at(10_000)) > Duration::ZERO);
    }

    #[test]
    fn the_largest_answer_is_free_however_large_it_may_be() {
        for largest in [0, 1 << 20, 1 << 26, 1 << 34] {
            let mut pace = Pace::new(Pace::shared_stream(largest), at(0));
            for _ in 0..10 {
                let bytes = usize::try_from(largest).unwrap();
                assert_eq!(pace.take(bytes, 1, at(0)), Duration::ZERO, "{largest}");
                pace.give_back(bytes);
            }
        }
    }

    #[test]
    fn an_event_costs_more_than_its_bytes() {
        let mut pace = Pace::new(SLOW, at(0));
        assert_eq!(pace.take(0, 4, at(0)), Duration::ZERO);
        assert!(pace.take(0, 1, at(0)) > Duration::ZERO);
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_rate(
            steps in proptest::collection::vec((0_usize..4000, 0_u64..3000), 1..60)
        ) {
            let mut pace = Pace::new(SLOW, at(0));
            let (mut now, mut taken) = (0_u64, 0_u64);
            for (bytes, pause) in steps {
                now += pause;
                taken += bytes as u64;
                let wait = pace.take(bytes, 0, at(now));
                now += u64::try_from(wait.as_millis()).unwrap() + 1;
                prop_assert!(taken <= 5000 + now);
            }
        }
    }
}
