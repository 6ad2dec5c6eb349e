//! [`Backlog`]: how many finished calls may wait for the ledger. PURE: durations come in as values.
//!
//! Changes when it is decided otherwise how old a row may become before it is on record. The writer has
//! one of few processors at most, and where calls keep all of them busy no more than its share of one: calls that
//! end faster than it writes would wait longer and longer. How long goes by how many there are and what each takes,
//! which is as long as it took lately. What the disk takes to sync is not in it: that takes as long for
//! few calls as for many, and keeping calls back would not make it shorter. Calls are weighed: one with large
//! arguments is as much work as many without.

use std::time::Duration;

use super::BATCH;

/// The work that may wait. Before it as much may be under way, and both are synced: with a disk that takes 40 ms for
/// that, the last of them is on record in 200 ms, which `batched` promises.
const MOST: Duration = Duration::from_millis(60);
/// May wait however long it takes: a writer that was held up once must not hold up all.
const LEAST: usize = 512;
/// Waits at most: what one commit takes. Otherwise the last of it would wait for several syncs.
const LARGEST: usize = BATCH;
/// What a call without payloads takes, before any was seen.
const USUAL: Duration = Duration::from_micros(40);
/// Commits of less say how quick the writer is at least, not how slow: most of what they take is the same
/// for one call and for many.
const TELLING: usize = 128;
/// So many bytes of arguments and result are about as much work as all the rest of a call.
const UNIT: usize = 1024;

/// What a call with so many bytes of arguments and result weighs: the work it is, in that of a call without any.
pub(super) const fn weight(bytes: usize) -> usize {
    1 + bytes / UNIT
}

/// What writing calls took lately.
#[derive(Debug)]
pub(super) struct Backlog {
    /// Each unit of their weight.
    each: Duration,
}

impl Default for Backlog {
    fn default() -> Self {
        Self { each: USUAL }
    }
}

impl Backlog {
    /// Calls of that weight were written in `took`, but for the sync.
    pub(super) fn wrote(&mut self, weight: usize, took: Duration) {
        let units = u32::try_from(weight).unwrap_or(u32::MAX);
        let Some(each) = took.checked_div(units) else { return };
        if weight < TELLING && each > self.each {
            return;
        }
        // What is slow is believed at once, what is quick after a few times.
        self.each = each.max(self.each.saturating_mul(3) / 4 + each / 4);
    }

    /// The weight of calls that may wait.
    pub(super) fn limit(&self) -> usize {
        let weight = MOST.as_nanos().checked_div(self.each.as_nanos()).unwrap_or(u128::MAX);
        usize::try_from(weight).unwrap_or(usize::MAX).clamp(LEAST, LARGEST)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn the_limit_goes_by_what_calls_took() {
        let mut backlog = Backlog::default();
        let first = backlog.limit();
        assert!((LEAST..LARGEST).contains(&first), "bounded before anything is known");
        backlog.wrote(0, micros(5));
        assert_eq!(backlog.limit(), first);
        for _ in 0..60 {
            backlog.wrote(1000, micros(20_000));
        }
        assert!((2_950..=3_000).contains(&backlog.limit()), "{backlog:?}");
        backlog.wrote(1000, micros(60_000));
        assert_eq!(backlog.limit(), 1_000, "slow at once");
        backlog.wrote(1000, micros(20_000));
        assert!((1_001..2_000).contains(&backlog.limit()), "quick by and by");
        let limit = backlog.limit();
        backlog.wrote(TELLING - 1, micros(500_000));
        assert_eq!(backlog.limit(), limit, "a few calls after a rest say little");
        backlog.wrote(TELLING, Duration::MAX);
        assert_eq!(backlog.limit(), LEAST);
        for _ in 0..200 {
            backlog.wrote(1000, Duration::ZERO);
        }
        assert_eq!(backlog.limit(), LARGEST);
    }

    proptest! {
        #[test]
        fn what_may_wait_takes_no_longer_than_it_should(
            batches in proptest::collection::vec((1_usize..5_000, 0_u64..1_000_000), 1..50)
        ) {
            let mut backlog = Backlog::default();
            for (weight, took) in batches {
                backlog.wrote(weight, micros(took));
                let limit = backlog.limit();
                prop_assert!((LEAST..=LARGEST).contains(&limit));
                let each = micros(took).as_nanos() / weight as u128;
                prop_assert!(weight < TELLING || limit == LEAST || limit as u128 * each <= MOST.as_nanos());
            }
        }
    }
}
