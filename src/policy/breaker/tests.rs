//! The state table, case by case, and against a model of it.

mod model;
mod schedules;
mod threads;

use super::*;

fn at(millis: u64) -> Uptime {
    Uptime::from_millis(millis)
}

const LEASE: Duration = Duration::from_secs(1);

/// A breaker with a clock that is moved by hand.
struct Bench {
    breaker: Breaker,
    now: u64,
    seen: Vec<Transition>,
}

impl Bench {
    fn new(settings: BreakerSettings) -> Self {
        Self { breaker: Breaker::new(settings), now: 1_000_000, seen: Vec::new() }
    }

    fn acquire(&mut self) -> Result<Ticket, Rejection> {
        self.breaker.acquire(at(self.now), LEASE, 0.5, &mut self.seen)
    }

    fn report(&mut self, ticket: Ticket, verdict: Verdict) -> bool {
        self.took(ticket, verdict, Duration::ZERO)
    }

    fn took(&mut self, ticket: Ticket, verdict: Verdict, took: Duration) -> bool {
        self.breaker.report(ticket, verdict, took, at(self.now), 0.5, &mut self.seen)
    }

    fn attempt(&mut self, verdict: Verdict) {
        let ticket = self.acquire().expect("a ticket");
        assert!(self.report(ticket, verdict));
    }

    fn fail(&mut self, times: u32) {
        (0..times).for_each(|_| self.attempt(Verdict::Failure));
    }

    fn state(&self) -> BreakerState {
        self.breaker.state()
    }

    fn reasons(&self) -> Vec<TransitionReason> {
        self.seen.iter().map(|transition| transition.reason).collect()
    }
}

fn settings() -> BreakerSettings {
    BreakerSettings::default()
}

#[test]
fn tool_error_neutral() {
    let mut bench = Bench::new(settings());
    bench.fail(4);
    (0..100).for_each(|_| bench.attempt(Verdict::Answered));
    assert_eq!(bench.state(), BreakerState::Closed);
    bench.fail(1);
    assert_eq!(bench.state(), BreakerState::Open);
    bench.now += 30_000;
    bench.attempt(Verdict::Answered);
    assert_eq!(bench.state(), BreakerState::Closed);
    assert_eq!(bench.breaker.failures(), 0);
}

#[test]
fn an_answered_error_ends_a_row_of_failures_only_where_that_is_wanted() {
    let mut bench = Bench::new(BreakerSettings { tool_error_resets: true, ..settings() });
    bench.fail(4);
    bench.attempt(Verdict::Answered);
    bench.fail(4);
    assert_eq!(bench.state(), BreakerState::Closed);
    bench.attempt(Verdict::Neutral);
    bench.fail(1);
    assert_eq!(bench.state(), BreakerState::Open);
}

/// An attempt that was not answered in a caller's own short time is a failure only where the server
/// answers nobody; a probe is no other.
#[test]
fn what_was_not_answered_counts_when_nobody_was() {
    let mut bench = Bench::new(BreakerSettings { threshold: 3, ..settings() });
    for answer in [Verdict::Success, Verdict::Answered] {
        for _ in 0..10 {
            let hasty = bench.acquire().unwrap();
            bench.attempt(answer);
            assert!(bench.report(hasty, Verdict::Unanswered));
            assert_eq!(bench.breaker.failures(), 0, "{answer:?}");
        }
    }
    // A failure of another is no answer, nor is what was answered before.
    let hasty = bench.acquire().unwrap();
    bench.attempt(Verdict::Neutral);
    bench.fail(1);
    bench.report(hasty, Verdict::Unanswered);
    assert_eq!((bench.state(), bench.breaker.failures()), (BreakerState::Closed, 2));
    bench.attempt(Verdict::Unanswered);
    assert_eq!(bench.state(), BreakerState::Open);
    bench.now += 30_000;
    bench.attempt(Verdict::Unanswered);
    assert_eq!(bench.state(), BreakerState::Open);
    assert_eq!(bench.reasons().last(), Some(&TransitionReason::ProbeFailed));
    bench.now += 30_000;
    bench.attempt(Verdict::Success);
    assert_eq!(bench.state(), BreakerState::Closed);
}

#[test]
fn an_open_breaker_refuses_until_its_time_is_over_and_then_lets_one_probe_through() {
    let mut bench = Bench::new(settings());
    bench.fail(5);
    bench.now += 12_000;
    let rest = Duration::from_secs(18);
    assert_eq!(bench.acquire(), Err(Rejection::Open { retry_after: Some(rest) }));
    bench.now += 18_000;
    let probe = bench.acquire().unwrap();
    assert!(probe.is_probe());
    let refused = bench.acquire().unwrap_err();
    assert_eq!(refused, Rejection::Probing { retry_after: Duration::from_secs(1) });
    assert!(bench.report(probe, Verdict::Neutral));
    assert_eq!(bench.state(), BreakerState::HalfOpen);
    let probe = bench.acquire().unwrap();
    bench.report(probe, Verdict::Failure);
    assert_eq!(bench.state(), BreakerState::Open);
    bench.now += 30_000;
    bench.attempt(Verdict::Success);
    use TransitionReason::{Failures, ProbeFailed, ProbeSucceeded, Timer};
    assert_eq!(bench.reasons(), [Failures, Timer, ProbeFailed, Timer, ProbeSucceeded]);
    assert_eq!(bench.breaker.status(at(bench.now)).trips, 0);
}

#[test]
fn a_probe_that_never_reports_counts_as_a_failure_when_its_lease_is_over() {
    let mut bench = Bench::new(settings());
    bench.fail(5);
    bench.now += 30_000;
    let lost = bench.acquire().unwrap();
    bench.now += 999;
    assert!(bench.acquire().is_err());
    // Seen late: the open period began when the lease was over.
    bench.now += 11_001;
    let rest = Duration::from_secs(19);
    assert_eq!(bench.acquire(), Err(Rejection::Open { retry_after: Some(rest) }));
    let last = bench.seen.last().unwrap();
    assert_eq!(
        (last.reason, last.at),
        (TransitionReason::ProbeLeaseExpired, at(bench.now - 11_000))
    );
    assert!(!bench.report(lost, Verdict::Success), "what it says now is of an earlier generation");
    assert_eq!(bench.state(), BreakerState::Open);
}

#[test]
fn late_results_change_nothing() {
    let mut bench = Bench::new(settings());
    let flight: Vec<_> = (0..100).map(|_| bench.acquire().unwrap()).collect();
    bench.fail(5);
    let before = bench.seen.len();
    for (number, ticket) in flight.into_iter().enumerate() {
        let verdict = if number % 2 == 0 { Verdict::Success } else { Verdict::Failure };
        assert!(!bench.report(ticket, verdict));
    }
    assert_eq!((bench.state(), bench.seen.len()), (BreakerState::Open, before));
}

#[test]
fn several_probes_close_it_together() {
    let mut bench = Bench::new(BreakerSettings { probes: 3, successes: 2, ..settings() });
    bench.fail(5);
    bench.now += 30_000;
    let probes: Vec<_> = (0..3).map(|_| bench.acquire().unwrap()).collect();
    assert!(bench.acquire().is_err());
    bench.report(probes[0], Verdict::Success);
    assert_eq!(bench.state(), BreakerState::HalfOpen);
    assert!(bench.acquire().is_ok());
    bench.report(probes[1], Verdict::Success);
    assert_eq!(bench.state(), BreakerState::Closed);
    assert!(!bench.report(probes[2], Verdict::Failure));
}

#[test]
fn the_open_period_grows_with_each_opening_in_a_row_up_to_its_most() {
    let longest = Duration::from_secs(100);
    for (random, share) in [(0.0, 0.5_f64), (0.5, 0.75), (1.0, 1.0)] {
        let mut breaker =
            Breaker::new(BreakerSettings { threshold: 1, open_for_max: longest, ..settings() });
        let (mut now, mut seen) = (0, Vec::new());
        for full in [30.0_f64, 60.0, 100.0, 100.0, 100.0] {
            let ticket = breaker.acquire(at(now), LEASE, random, &mut seen).unwrap();
            breaker.report(ticket, Verdict::Failure, Duration::ZERO, at(now), random, &mut seen);
            let open_for = seen.last().unwrap().open_for.unwrap();
            let expected = if full > 30.0 { (full * share).max(30.0) } else { 30.0 };
            assert_eq!(open_for, Duration::from_secs_f64(expected), "{full} {random}");
            now += u64::try_from(open_for.as_millis()).unwrap();
        }
    }
}

#[test]
fn a_rate_of_failures_opens_it_when_there_were_enough_attempts() {
    let mut bench = Bench::new(BreakerSettings {
        window: Some(Duration::from_secs(30)),
        window_rate: 0.5,
        min_calls: 20,
        ..settings()
    });
    for _ in 0..9 {
        bench.attempt(Verdict::Success);
        bench.attempt(Verdict::Failure);
    }
    bench.attempt(Verdict::Success);
    assert_eq!(bench.state(), BreakerState::Closed);
    bench.attempt(Verdict::Failure);
    assert_eq!(
        (bench.state(), bench.reasons()),
        (BreakerState::Open, vec![TransitionReason::FailureRate])
    );
}

#[test]
fn slow_attempts_open_it_where_they_are_counted() {
    let mut bench = Bench::new(BreakerSettings {
        window: Some(Duration::from_secs(30)),
        window_rate: f64::INFINITY,
        slow_call: Some(Duration::from_millis(100)),
        slow_call_rate: 1.0,
        min_calls: 3,
        ..settings()
    });
    for (took, state) in [
        (99, BreakerState::Closed),
        (100, BreakerState::Closed),
        (100, BreakerState::Closed),
        (100, BreakerState::Closed),
    ] {
        let ticket = bench.acquire().unwrap();
        bench.took(ticket, Verdict::Success, Duration::from_millis(took));
        assert_eq!(bench.state(), state);
    }
    // The fast one is forgotten with its span, and the slow ones of now are all there are.
    bench.now += 40_000;
    for _ in 0..3 {
        let ticket = bench.acquire().unwrap();
        bench.took(ticket, Verdict::Success, Duration::from_secs(1));
    }
    assert_eq!(bench.reasons(), [TransitionReason::SlowCalls]);
}

#[test]
fn an_operators_word_wins_over_results() {
    let mut bench = Bench::new(settings());
    let flight = bench.acquire().unwrap();
    let during = Some(Duration::from_secs(60));
    bench.breaker.command(Command::ForceOpen { during }, at(bench.now));
    assert!(!bench.report(flight, Verdict::Success));
    bench.now += 59_000;
    let rest = Some(Duration::from_secs(1));
    assert_eq!(bench.acquire(), Err(Rejection::Open { retry_after: rest }));
    bench.now += 1_000;
    assert!(bench.acquire().is_ok());
    assert_eq!(bench.reasons(), [TransitionReason::ForcedUntilOver]);
    bench.breaker.command(Command::ForceClosed { during: None }, at(bench.now));
    bench.fail(50);
    assert_eq!(bench.state(), BreakerState::ForcedClosed);
    bench.breaker.command(Command::ForceOpen { during: None }, at(bench.now));
    bench.now += 1_000_000_000;
    assert_eq!(bench.acquire(), Err(Rejection::Open { retry_after: None }));
    bench.breaker.command(Command::Reset, at(bench.now));
    assert_eq!((bench.state(), bench.breaker.failures()), (BreakerState::Closed, 0));
}

fn restored(record: &BreakerRecord, wall: i64) -> Breaker {
    Breaker::restore(settings(), record, Timestamp::from_millis(wall), at(500))
}

fn open_record(opened_at: i64, open_for: u64) -> BreakerRecord {
    BreakerRecord {
        state: BreakerState::Open,
        failures: 5,
        trips: 1,
        generation: 7,
        opened_at: Some(Timestamp::from_millis(opened_at)),
        open_for: Some(Duration::from_millis(open_for)),
        last_failure_at: Some(Timestamp::from_millis(opened_at)),
        reason: Some(TransitionReason::Failures),
    }
}

#[test]
fn an_open_breaker_comes_back_with_the_rest_of_its_time() {
    let wall = 1_000_000_000;
    for (passed, rest) in [
        // Open with 12 s left, 2 s down.
        (20_000, 10_000),
        (30_000, 0),
        (86_400_000, 0),
        // The clock went back: the whole period, and never more.
        (-3_600_000, 30_000),
        (0, 30_000),
    ] {
        let breaker = restored(&open_record(wall - passed, 30_000), wall);
        let status = breaker.status(at(500));
        assert_eq!(status.state, BreakerState::Open);
        assert_eq!(status.rest, Some(Duration::from_millis(rest)), "{passed}");
        assert_eq!((status.trips, status.generation), (1, 8));
    }
    // The settings give less than they did.
    let rest = restored(&open_record(wall, 300_000), wall).status(at(500)).rest;
    assert_eq!(rest, Some(Duration::from_secs(30)));
}

#[test]
fn other_states_come_back_as_they_mean_it() {
    let wall = 1_000_000_000;
    let half = BreakerRecord { state: BreakerState::HalfOpen, ..open_record(wall, 30_000) };
    let status = restored(&half, wall).status(at(500));
    assert_eq!((status.state, status.rest), (BreakerState::Open, Some(Duration::ZERO)));

    let forced = BreakerRecord { state: BreakerState::ForcedOpen, ..open_record(wall, 600_000) };
    let status = restored(&forced, wall + 60_000).status(at(500));
    assert_eq!(
        (status.state, status.rest),
        (BreakerState::ForcedOpen, Some(Duration::from_secs(540)))
    );
    let endless = BreakerRecord { open_for: None, ..forced };
    assert_eq!(restored(&endless, wall + 60_000).status(at(500)).rest, None);

    let counted = |age: i64, failures: u32| {
        let record = BreakerRecord {
            state: BreakerState::Closed,
            failures,
            last_failure_at: Some(Timestamp::from_millis(wall - age)),
            ..BreakerRecord::default()
        };
        restored(&record, wall).failures()
    };
    assert_eq!(counted(29_999, 3), 3);
    assert_eq!(counted(30_000, 3), 0);
    assert_eq!(counted(-1, 3), 0);
    assert_eq!(counted(0, 900), 4, "a start alone opens nothing");
}

#[test]
fn what_is_recorded_comes_back() {
    let mut bench = Bench::new(settings());
    bench.fail(5);
    bench.now += 18_000;
    let wall = Timestamp::from_millis(1_000_000_000);
    let record = bench.breaker.record(at(bench.now), wall);
    assert_eq!(record.opened_at, Some(wall.minus(Duration::from_secs(18))));
    let later = wall.plus(Duration::from_secs(2));
    let back = Breaker::restore(settings(), &record, later, at(3));
    assert_eq!(back.status(at(3)).rest, Some(Duration::from_secs(10)));
}

#[test]
fn a_wall_clock_that_jumps_while_it_runs_changes_nothing() {
    let day = Duration::from_secs(86_400);
    let wall = Timestamp::from_millis(1_000_000_000_000);
    let mut bench = Bench::new(settings());
    bench.fail(5);
    bench.now += 18_000;
    let rest = Duration::from_secs(12);
    for wall in [wall, wall.plus(day), wall.minus(day)] {
        let record = bench.breaker.record(at(bench.now), wall);
        assert_eq!(bench.breaker.status(at(bench.now)).rest, Some(rest));
        assert_eq!(bench.acquire(), Err(Rejection::Open { retry_after: Some(rest) }));
        // What is stored after the jump is right on the clock as it is then.
        let back = Breaker::restore(settings(), &record, wall, at(3));
        assert_eq!(back.status(at(3)).rest, Some(rest));
    }
}

#[test]
fn other_numbers_shorten_what_is_under_way_and_open_nothing() {
    let mut bench = Bench::new(settings());
    bench.fail(4);
    bench.breaker.configure(BreakerSettings { threshold: 2, ..settings() }, at(bench.now));
    assert_eq!((bench.state(), bench.breaker.failures()), (BreakerState::Closed, 1));
    bench.fail(1);
    assert_eq!(bench.state(), BreakerState::Open);
    bench.now += 5_000;
    let short = Duration::from_secs(10);
    let less = BreakerSettings { open_for: short, open_for_max: short, ..settings() };
    bench.breaker.configure(less, at(bench.now));
    assert_eq!(bench.breaker.status(at(bench.now)).rest, Some(short));
    bench.breaker.configure(settings(), at(bench.now));
    assert_eq!(
        bench.breaker.status(at(bench.now)).rest,
        Some(short),
        "more time lengthens nothing"
    );
}
