//! [`Pace`]: whether a commit waits for more calls before it syncs. PURE: time comes in as a value.
//!
//! Changes when it is decided otherwise what is worth waiting for. While one commit syncs, the calls of
//! the one before are answered and their callers call again. Committed at once, what came meanwhile
//! leaves those for the next sync, and each call waits for two. Where they come back quickly it is
//! better to wait for them: the same sync is shared by all. That is decided by what was seen: another
//! moment is worth it as long as calls come faster in it than the ledger has taken them on average.

use std::time::Duration;

use crate::model::Uptime;

/// After a wait that was in vain, commits are made without one: twice as many each time, up to this.
const LONGEST_PAUSE: u32 = 16;
/// A shorter look says nothing about how fast calls come.
const SHORTEST_LOOK: Duration = Duration::from_micros(500);
/// The timer makes a look up to this long. Where a commit takes less, nobody gains by waiting.
const LONGEST_LOOK: Duration = Duration::from_millis(2);

/// What the last commit says about the next.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Who was let go by the last commit or waited already when it ended: so many may come.
    expected: usize,
    /// When it ended.
    ended: Uptime,
    /// How long it took.
    took: Duration,
    /// The same with the wait before it.
    cycle: Duration,
    /// When the wait for the next began.
    began: Option<Uptime>,
    /// When was last looked how many wait, and how many did.
    looked: Option<(Uptime, usize)>,
    /// Calls that it let go.
    released: usize,
    /// Commits that are made without waiting.
    pause: u32,
    /// How many there were after the last wait that was in vain.
    paused: u32,
}

impl Pace {
    /// A commit that began at `since` ended now and let `released` calls go; `waiting` more came while it
    /// went on.
    pub(super) fn committed(
        &mut self,
        released: usize,
        waiting: usize,
        since: Uptime,
        now: Uptime,
    ) {
        self.took = now.since(since);
        self.cycle = now.since(self.began.take().unwrap_or(since));
        self.ended = now;
        self.expected = released.saturating_add(waiting);
        self.released = released;
        self.looked = None;
        self.pause = self.pause.saturating_sub(1);
    }

    /// How many calls the next commit may take.
    pub(super) const fn expected(&self) -> usize {
        self.expected
    }

    /// Whether to wait another moment, while `waiting` calls do.
    pub(super) fn waits(&mut self, waiting: usize, now: Uptime) -> bool {
        self.began.get_or_insert(now);
        if waiting >= self.expected && self.looked.is_some() {
            self.paused = 0;
        }
        let too_quick = self.took < LONGEST_LOOK;
        // What was seen before a quiet time says nothing. Nor is more lost than one commit's time.
        let too_late = now.since(self.ended) >= self.took;
        if waiting >= self.expected || self.pause > 0 || too_quick || too_late {
            return false;
        }
        let Some((looked, before)) = self.looked else {
            self.looked = Some((now, waiting));
            return true;
        };
        let time = now.since(looked);
        if time < SHORTEST_LOOK {
            return true;
        }
        let came = waiting.saturating_sub(before);
        // Half as fast again as on average: calls that come evenly are not made to wait.
        let pays = came as u128 * 2 * self.cycle.as_micros()
            >= self.released as u128 * 3 * time.as_micros();
        if pays && came > 0 {
            self.looked = Some((now, waiting));
            return true;
        }
        self.paused = self.paused.saturating_mul(2).clamp(1, LONGEST_PAUSE);
        self.pause = self.paused;
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// Commits in a model: `callers` who call again `think` after their answer, and a ledger of which a
    /// commit takes `commit` and a look as long as it may. Calls per second, and the mean wait.
    fn run(
        callers: usize,
        think: impl Fn(usize) -> Duration,
        commit: Duration,
        paced: bool,
    ) -> (f64, Duration) {
        let mut pace = Pace::default();
        let mut now = Uptime::from_millis(0);
        let mut coming: Vec<Uptime> = (0..callers).map(|n| now.plus(think(n))).collect();
        let (mut done, mut waited, mut next) = (0_usize, Duration::ZERO, callers);
        while now < Uptime::from_millis(1_000) {
            let waiting = |coming: &[Uptime], now| coming.iter().filter(|at| **at <= now).count();
            if waiting(&coming, now) == 0 {
                now = coming.iter().copied().min().unwrap_or(now);
            }
            while paced && pace.waits(waiting(&coming, now), now) {
                // The one that makes it enough ends the wait.
                let mut later: Vec<_> = coming.iter().copied().filter(|at| *at > now).collect();
                later.sort_unstable();
                let lacking = pace.expected() - waiting(&coming, now);
                let enough = lacking.checked_sub(1).and_then(|n| later.get(n).copied());
                let look = now.plus(LONGEST_LOOK);
                now = enough.map_or(look, |enough| enough.min(look));
            }
            let (batch, rest): (Vec<_>, Vec<_>) = coming.iter().partition(|at| **at <= now);
            let since = now;
            now = now.plus(commit);
            done += batch.len();
            waited += batch.iter().map(|at| now.since(*at)).sum::<Duration>();
            coming = rest;
            pace.committed(batch.len(), waiting(&coming, now), since, now);
            coming.extend(batch.iter().enumerate().map(|(n, _)| now.plus(think(next + n))));
            next += batch.len();
        }
        let mean = waited / u32::try_from(done.max(1)).unwrap();
        (done as f64, mean)
    }

    /// One after the other, `apart` microseconds apart.
    fn spread(apart: u64) -> impl Fn(usize) -> Duration {
        move |n| Duration::from_micros(200 + (n % 64) as u64 * apart)
    }

    #[test]
    fn callers_that_come_back_at_once_share_one_sync() {
        for (callers, apart) in [(64, 20), (64, 40), (8, 20), (2, 20)] {
            let commit = micros(4_500);
            let (plain, _) = run(callers, spread(apart), commit, false);
            let (paced, _) = run(callers, spread(apart), commit, true);
            assert!(paced > plain * 1.18, "{callers} callers: {paced:.0} against {plain:.0}");
        }
    }

    #[test]
    fn where_the_disk_is_quick_nobody_waits() {
        for commit in [50, 120, 500, 1_000, 1_900] {
            for callers in [1, 2, 3, 5, 8, 64] {
                for apart in [0, 20, 100, 700] {
                    let plain = run(callers, spread(apart), micros(commit), false);
                    assert_eq!(run(callers, spread(apart), micros(commit), true), plain);
                }
            }
        }
    }

    #[test]
    fn who_does_not_come_back_soon_is_not_waited_for() {
        for callers in [1, 2, 5, 64, 500] {
            for commit in [2_500, 4_500, 20_000] {
                let think = |n: usize| Duration::from_micros(100_000 + (n * 7919 % 64_000) as u64);
                let (plain, wait) = run(callers, think, micros(commit), false);
                let (paced, longer) = run(callers, think, micros(commit), true);
                let case = format!("{callers} callers, {commit} us");
                assert!(paced > plain * 0.97, "{case}: {paced:.0} against {plain:.0}");
                assert!(longer < wait.mul_f64(1.2), "{case}: {longer:?} against {wait:?}");
            }
        }
    }

    #[test]
    fn one_caller_waits_for_nobody() {
        let mut pace = Pace::default();
        let mut now = Uptime::from_millis(0);
        for _ in 0..100 {
            now = now.plus(Duration::from_millis(1));
            assert!(!pace.waits(1, now));
            let since = now;
            now = now.plus(Duration::from_millis(4));
            pace.committed(1, 0, since, now);
        }
    }

    proptest! {
        #[test]
        fn a_wait_is_never_longer_than_the_commit_before(
            commits in proptest::collection::vec((1..200_usize, 0..200_usize, 1..20_u64), 1..50),
            step in 1..2_000_u64,
        ) {
            let mut pace = Pace::default();
            let mut now = Uptime::from_millis(0);
            for (taken, waiting, millis) in commits {
                let since = now;
                now = now.plus(Duration::from_millis(millis));
                pace.committed(taken, waiting, since, now);
                let (ended, took) = (now, now.since(since));
                let mut came = waiting;
                while pace.waits(came, now) {
                    prop_assert!(came < pace.expected());
                    prop_assert!(now.since(ended) < took);
                    prop_assert!(took >= LONGEST_LOOK);
                    now = now.plus(Duration::from_micros(step));
                    came += 1;
                }
            }
        }
    }
}
