//! When a server is asked for its lists: at once when it appears, goes away or comes back, soon
//! when it says that a list changed, else in turns; and when it is only asked whether it is there.
//! PURE.
//!
//! Changes when the rules of freshness do.

use std::time::Duration;

use crate::model::Uptime;
use crate::pool::ListKind;

/// The first repeat after a failure; doubles up to the health interval.
const FIRST_REPEAT: Duration = Duration::from_secs(1);
/// How long after the first notice the lists are asked for: a server that changes much at once
/// says so many times.
const SETTLE: Duration = Duration::from_millis(200);
/// Notices lead to at most one listing in this time, however many there are.
const CALM: Duration = Duration::from_secs(1);
/// The longest time for which a server's word that its lists stay the same is believed.
const LONGEST_TTL: Duration = Duration::from_secs(3600);
/// How much rarer the lists of a server are asked for that says when they change.
const TRUST: u32 = 10;

/// Which lists of a server to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    pub(super) tools: bool,
    pub(super) prompts: bool,
    /// Resources and templates.
    pub(super) resources: bool,
}

impl Wanted {
    pub(super) const ALL: Self = Self { tools: true, prompts: true, resources: true };

    pub(super) const fn of(kind: ListKind) -> Self {
        Self {
            tools: matches!(kind, ListKind::Tools),
            prompts: matches!(kind, ListKind::Prompts),
            resources: matches!(kind, ListKind::Resources),
        }
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            tools: self.tools || other.tools,
            prompts: self.prompts || other.prompts,
            resources: self.resources || other.resources,
        }
    }
}

/// What to do with a server now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Ask for these lists.
    List(Wanted),
    /// Ask for a sign of life.
    Check,
}

/// When a server is asked, and for what.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    /// When all lists are due.
    list: Uptime,
    /// What notices asked for, and when that is due.
    noticed: Option<(Wanted, Uptime)>,
    /// When a sign of life is due.
    check: Uptime,
    /// When lists were last begun to be asked for.
    began: Option<Uptime>,
    busy: bool,
    failures: u32,
    /// Whether it was up when last looked at.
    up: bool,
    /// Whether its lists were asked for once.
    asked: bool,
    /// Its own number for [`share`].
    seed: f64,
    /// How many intervals it had.
    turn: u32,
}

impl Turns {
    /// All lists of the server with this name are due now.
    pub(super) fn new(server: &str, now: Uptime) -> Self {
        Self {
            list: now,
            noticed: None,
            check: now,
            began: None,
            busy: false,
            failures: 0,
            up: false,
            asked: false,
            seed: seed(server),
            turn: 0,
        }
    }

    /// Whether its lists were asked for once.
    pub(super) const fn asked(&self) -> bool {
        self.asked
    }

    /// When there is something to do next; `None` while something is done.
    pub(super) fn next(&self) -> Option<Uptime> {
        let noticed = self.noticed.map_or(self.list, |(_, due)| due);
        (!self.busy).then(|| self.list.min(noticed).min(self.check))
    }

    /// What is due, which then is under way until [`Self::listed`] or [`Self::checked`].
    pub(super) fn begin(&mut self, now: Uptime) -> Option<Action> {
        if self.busy {
            return None;
        }
        let action = match self.noticed {
            _ if self.list <= now => Action::List(Wanted::ALL),
            Some((wanted, due)) if due <= now => Action::List(wanted),
            _ if self.check <= now => Action::Check,
            _ => return None,
        };
        self.busy = true;
        if let Action::List(_) = action {
            self.noticed = None;
            self.began = Some(now);
        }
        Some(action)
    }

    /// The server said that lists changed, or something happened after which they may have.
    pub(super) fn notice(&mut self, wanted: Wanted, now: Uptime) {
        let calm = self.began.map_or(now, |began| began.plus(CALM));
        let (before, due) = self.noticed.unwrap_or((Wanted::default(), now.plus(SETTLE).max(calm)));
        self.noticed = Some((before.and(wanted), due));
    }

    /// Lists were asked for: all of them, or those that notices asked for.
    pub(super) fn listed(&mut self, outcome: Listing, now: Uptime) {
        self.busy = false;
        self.asked = true;
        let Listing { wanted, ok, interval, poll } = outcome;
        match (ok, wanted == Wanted::ALL) {
            (true, true) => {
                self.failures = 0;
                self.up = true;
                let turn = self.spread(interval);
                self.check = now.plus(turn);
                // Of one turn: where both are as far away, it is one question.
                self.list = now.plus(if poll == interval { turn } else { self.spread(poll) });
            }
            (true, false) => {
                let turn = self.spread(interval);
                self.check = self.check.max(now.plus(turn));
            }
            // Whether it was the server or the one list shows when all are asked for.
            (false, false) => self.list = now.plus(FIRST_REPEAT),
            (false, true) => self.failed(interval, now),
        }
    }

    /// A sign of life came, or did not.
    pub(super) fn checked(&mut self, ok: bool, interval: Duration, now: Uptime) {
        self.busy = false;
        if ok {
            self.up = true;
            let turn = self.spread(interval);
            self.check = now.plus(turn);
        } else {
            self.failed(interval, now);
        }
    }

    /// Looks whether calls succeed again, or fail: then it is asked without waiting for its turn.
    pub(super) fn look(&mut self, up: bool, now: Uptime) {
        if self.busy {
            return;
        }
        if up == (self.failures > 0) && self.up != up {
            self.list = now;
        }
        self.up = up;
    }

    fn failed(&mut self, interval: Duration, now: Uptime) {
        self.failures = self.failures.saturating_add(1);
        self.up = false;
        let doublings = self.failures.saturating_sub(1).min(16);
        let wait = FIRST_REPEAT.saturating_mul(1 << doublings).min(interval);
        // Servers that went away together must not be asked together for as long as they are away.
        self.list = now.plus(self.spread(wait));
        self.check = self.list;
    }

    /// The next interval, or wait.
    fn spread(&mut self, interval: Duration) -> Duration {
        self.turn = self.turn.wrapping_add(1);
        interval.mul_f64(share(self.seed, self.turn))
    }
}

/// What part of an interval turn number `turn` of a server waits, from 0.8 to 1.2; `seed`, from 0 to 1, is
/// the server's.
///
/// No two turns in a row are as long: the multiples of the golden ratio, without their whole parts, are
/// spread evenly from the first on, and neighbours are far apart. So even a sum of them hardly strays from
/// the mean, and servers that started together would stay together: each has a mean of its own, too.
fn share(seed: f64, turn: u32) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let mean = 0.9 + 0.2 * seed;
    // Not where the mean says: what is alike in one should not be in the other.
    let start = seed * 1009.0;
    mean + 0.2 * ((start + f64::from(turn) * GOLDEN).fract() - 0.5)
}

/// A number from 0 to 1 out of a name: FNV-1a, and the last step of MurmurHash3, without which names that
/// differ in their last letter are neighbours.
fn seed(name: &str) -> f64 {
    let mut hash = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    for (shift, factor) in [(16, 0x85eb_ca6b), (13, 0xc2b2_ae35), (16, 1)] {
        hash = (hash ^ (hash >> shift)).wrapping_mul(factor);
    }
    f64::from(hash) / f64::from(u32::MAX)
}

/// How lists were had.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listing {
    /// Which.
    pub(super) wanted: Wanted,
    /// Whether the server answered as it should.
    pub(super) ok: bool,
    /// The time between two signs of life.
    pub(super) interval: Duration,
    /// The time until all lists are asked for again.
    pub(super) poll: Duration,
}

/// How long lists that were had may be left alone: as long as the server says they stay the same
/// (from the health interval to an hour), ten intervals where it promised to say when they change,
/// else one interval.
pub(super) fn poll(interval: Duration, ttl: Option<Duration>, announced: bool) -> Duration {
    match ttl {
        Some(ttl) => ttl.min(LONGEST_TTL).max(interval),
        None if announced => interval.saturating_mul(TRUST),
        None => interval,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn at(millis: u64) -> Uptime {
        Uptime::from_millis(millis)
    }

    fn good(wanted: Wanted, poll: Duration) -> Listing {
        Listing { wanted, ok: true, interval: INTERVAL, poll }
    }

    /// Turns of a server whose lists were had at `now`.
    fn listed(poll: Duration, now: Uptime) -> Turns {
        let mut turns = Turns::new("server", now);
        assert_eq!(turns.begin(now), Some(Action::List(Wanted::ALL)));
        assert_eq!((turns.next(), turns.begin(now)), (None, None), "one thing at a time");
        turns.listed(good(Wanted::ALL, poll), now);
        turns
    }

    #[test]
    fn between_two_listings_the_server_is_asked_for_a_sign_of_life() {
        let mut turns = listed(INTERVAL * 10, at(0));
        let mut checks = 0;
        let now = loop {
            let now = turns.next().unwrap();
            match turns.begin(now).unwrap() {
                Action::Check => turns.checked(true, INTERVAL, now),
                Action::List(wanted) => {
                    assert_eq!(wanted, Wanted::ALL);
                    break now;
                }
            }
            checks += 1;
        };
        assert!((8..=11).contains(&checks), "{checks}");
        assert!(now >= at(240_000) && now <= at(360_000), "{now:?}");
    }

    #[test]
    fn without_a_promise_every_turn_is_a_listing() {
        let mut turns = listed(INTERVAL, at(0));
        let now = turns.next().unwrap();
        assert_eq!(turns.begin(now), Some(Action::List(Wanted::ALL)));
    }

    #[test]
    fn a_notice_is_followed_soon_and_kinds_come_together() {
        let mut turns = listed(INTERVAL, at(0));
        turns.notice(Wanted::of(ListKind::Tools), at(5000));
        turns.notice(Wanted::of(ListKind::Resources), at(5150));
        assert_eq!(turns.next(), Some(at(5200)));
        assert_eq!(turns.begin(at(5199)), None);
        let wanted = Wanted { tools: true, prompts: false, resources: true };
        assert_eq!(turns.begin(at(5200)), Some(Action::List(wanted)));
        turns.notice(Wanted::of(ListKind::Tools), at(5300));
        assert_eq!(turns.begin(at(9000)), None, "still under way");
        turns.listed(good(wanted, INTERVAL), at(5400));
        assert_eq!(turns.next(), Some(at(6200)), "not lost, and not sooner than a second later");
    }

    #[test]
    fn a_flood_of_notices_leads_to_one_listing_a_second() {
        let mut turns = listed(INTERVAL * 10, at(0));
        let mut listings = 0;
        for now in (0..10_000).map(at) {
            turns.notice(Wanted::ALL, now);
            if let Some(Action::List(wanted)) = turns.begin(now) {
                listings += 1;
                turns.listed(good(wanted, INTERVAL * 10), now);
            }
        }
        assert_eq!(listings, 9, "one a second after the first");
    }

    #[test]
    fn failures_are_repeated_with_growing_waits_and_a_return_is_seen_at_once() {
        let mut turns = listed(INTERVAL * 10, at(0));
        let now = turns.next().unwrap();
        assert_eq!(turns.begin(now), Some(Action::Check));
        turns.checked(false, INTERVAL, now);
        let mut waits = Vec::new();
        let mut before = now;
        for _ in 0..7 {
            let now = turns.next().unwrap();
            waits.push(now.since(before));
            assert_eq!(turns.begin(now), Some(Action::List(Wanted::ALL)));
            turns.listed(Listing { ok: false, ..good(Wanted::ALL, INTERVAL) }, now);
            before = now;
        }
        for (wait, seconds) in waits.iter().zip([1, 2, 4, 8, 16, 30, 30]) {
            let near = Duration::from_secs(seconds);
            assert!(near.mul_f64(0.8) <= *wait && *wait <= near.mul_f64(1.2), "{waits:?}");
        }
        let now = before.plus(FIRST_REPEAT / 2);
        turns.look(false, now);
        assert_eq!(turns.begin(now), None);
        turns.look(true, now);
        assert_eq!(turns.begin(now), Some(Action::List(Wanted::ALL)));
    }

    #[test]
    fn a_list_that_fails_on_its_own_leads_to_all() {
        let mut turns = listed(INTERVAL * 10, at(0));
        turns.notice(Wanted::of(ListKind::Prompts), at(2000));
        let Some(Action::List(wanted)) = turns.begin(at(2200)) else { panic!() };
        turns.listed(Listing { ok: false, ..good(wanted, INTERVAL) }, at(2300));
        assert_eq!(turns.next(), Some(at(3300)));
        assert_eq!(turns.begin(at(3300)), Some(Action::List(Wanted::ALL)));
    }

    #[test]
    fn promises_are_believed_within_bounds() {
        let seconds = Duration::from_secs;
        assert_eq!(poll(INTERVAL, None, false), INTERVAL);
        assert_eq!(poll(INTERVAL, None, true), INTERVAL * 10);
        assert_eq!(poll(INTERVAL, Some(Duration::ZERO), true), INTERVAL);
        assert_eq!(poll(INTERVAL, Some(seconds(600)), false), seconds(600));
        assert_eq!(poll(INTERVAL, Some(Duration::MAX), false), seconds(3600));
        assert_eq!(poll(seconds(7200), Some(seconds(1)), false), seconds(7200));
    }

    /// When a server gives its signs of life, by turns of its own.
    fn beats(name: &str, count: usize) -> Vec<Uptime> {
        let mut turns = listed(Duration::from_secs(10_000_000), at(0));
        turns.seed = seed(name);
        let mut beats = Vec::new();
        while beats.len() < count {
            let now = turns.next().unwrap();
            match turns.begin(now).unwrap() {
                Action::Check => turns.checked(true, INTERVAL, now),
                Action::List(wanted) => turns.listed(good(wanted, INTERVAL), now),
            }
            beats.push(now);
        }
        beats
    }

    #[test]
    fn no_two_turns_in_a_row_are_as_long() {
        for name in ["a", "b", "search", "search2", "tickets"] {
            let beats = beats(name, 200);
            let waits: Vec<Duration> =
                beats.windows(2).map(|pair| pair[1].since(pair[0])).collect();
            for pair in waits.windows(2) {
                let [one, next] = pair else { panic!() };
                assert!(one.abs_diff(*next) > INTERVAL / 20, "{name}: {one:?}, {next:?}");
            }
            for wait in &waits {
                assert!(*wait >= INTERVAL.mul_f64(0.8) && *wait <= INTERVAL.mul_f64(1.2));
            }
        }
    }

    #[test]
    fn two_servers_do_not_beat_in_phase() {
        let names = ["a", "b", "ab", "ba", "search", "search2", "tickets", "s0", "s1", "s2", "s3"];
        for (number, one) in names.iter().enumerate() {
            for other in &names[number + 1..] {
                // At each of the one's beats, how far away the other's nearest is: with independent
                // ones within a tenth of an interval in a fifth of all cases.
                let (ones, others) = (beats(one, 400), beats(other, 400));
                let near = |beat: &Uptime| {
                    others
                        .iter()
                        .any(|other| other.since(*beat).max(beat.since(*other)) < INTERVAL / 10)
                };
                let together = ones.iter().filter(|beat| near(beat)).count();
                assert!(together < 400 / 2, "{one} and {other} beat together {together} times");
            }
        }
    }

    #[test]
    fn servers_that_are_away_together_are_not_asked_together() {
        // As twenty behind one address that refuses, or answers 401, for five minutes.
        const SERVERS: u64 = 20;
        const SHORT: Duration = Duration::from_secs(4);
        let mut asked = vec![0_u64; 4 * 300];
        for number in 0..SERVERS {
            let mut turns = Turns::new(&format!("s{number}"), at(0));
            loop {
                let now = turns.next().unwrap();
                let quarter = usize::try_from(now.since(at(0)).as_millis() / 250).unwrap();
                let Some(quarter) = asked.get_mut(quarter) else { break };
                *quarter += 1;
                assert_eq!(turns.begin(now), Some(Action::List(Wanted::ALL)));
                let failed = Listing { ok: false, interval: SHORT, ..good(Wanted::ALL, SHORT) };
                turns.listed(failed, now);
            }
        }
        assert_eq!(asked[0], SERVERS, "at the start there is nothing to wait for");
        assert!(asked[1..40].iter().all(|asked| *asked <= SERVERS * 3 / 4), "{asked:?}");
        assert!(asked[40..].iter().all(|asked| *asked <= SERVERS / 2), "{asked:?}");
    }

    proptest! {
        #[test]
        fn each_turn_is_near_an_interval(name in ".{0,40}", turn in any::<u32>()) {
            let (now, next) = (share(seed(&name), turn), share(seed(&name), turn.wrapping_add(1)));
            prop_assert!((0.8..=1.2).contains(&now), "{now}");
            if turn < u32::MAX {
                prop_assert!((now - next).abs() > 0.05, "{now} {next}");
            }
        }

        #[test]
        fn whatever_happens_there_is_always_a_next_time(
            steps in proptest::collection::vec((0..4_u8, any::<bool>(), 0..40_000_u64), 0..60),
        ) {
            let mut turns = Turns::new("x", at(0));
            let mut now = 0;
            for (step, ok, wait) in steps {
                now += wait;
                match step {
                    0 => turns.notice(Wanted::of(ListKind::Prompts), at(now)),
                    1 => turns.look(ok, at(now)),
                    _ => match turns.begin(at(now)) {
                        Some(Action::List(wanted)) => {
                            turns.listed(Listing { ok, ..good(wanted, INTERVAL) }, at(now));
                        }
                        Some(Action::Check) => turns.checked(ok, INTERVAL, at(now)),
                        None => {}
                    },
                }
                let next = turns.next();
                prop_assert!(next.is_some_and(|next| next.since(at(now)) <= INTERVAL * 2));
            }
        }
    }
}
