//! A model of the state table as rules over plain numbers, and random lives of a breaker against it.

use super::*;

const LEASE_MS: u64 = 700;
const OPEN_MS: u64 = 1000;

/// The table, in another style: what holds now is a few numbers, and each event is a rule.
#[derive(Debug, Clone)]
struct Model {
    threshold: u32,
    probes: usize,
    successes_needed: u32,
    word: &'static str,
    /// When the state began that ends by time, and how long it lasts.
    since: u64,
    lasts: Option<u64>,
    failures: u32,
    last_failure: Option<u64>,
    trips: u32,
    generation: u64,
    leases: Vec<u64>,
    successes: u32,
    answers: u64,
    log: Vec<(&'static str, &'static str, &'static str)>,
}

/// A ticket: its generation, the lease of a probe, and how many answers there were before it.
type Given = (u64, Option<u64>, u64);

impl Model {
    fn go(&mut self, word: &'static str, reason: &'static str, since: u64, lasts: Option<u64>) {
        self.log.push((self.word, word, reason));
        (self.word, self.since, self.lasts) = (word, since, lasts);
        self.generation += 1;
        self.leases.clear();
        self.successes = 0;
    }

    fn trip(&mut self, reason: &'static str, since: u64) {
        self.trips += 1;
        self.go("open", reason, since, Some(OPEN_MS));
    }

    fn time(&mut self, now: u64) {
        if self.word == "half_open"
            && let Some(first) = self.leases.iter().min().copied().filter(|first| *first <= now)
        {
            self.failures += 1;
            self.last_failure = Some(first);
            self.trip("probe_lease_expired", first);
        }
        if self.word.starts_with("forced")
            && let Some(lasts) = self.lasts
            && self.since + lasts <= now
        {
            (self.failures, self.trips) = (0, 0);
            self.go("closed", "forced_until_over", now, None);
        }
    }

    /// A ticket, or when to ask again.
    fn acquire(&mut self, now: u64) -> Result<Given, Option<u64>> {
        self.time(now);
        let rest = self.lasts.map(|lasts| (self.since + lasts).saturating_sub(now));
        if self.word == "open" && rest == Some(0) {
            self.go("half_open", "timer", now, None);
        }
        match self.word {
            "closed" | "forced_closed" => Ok((self.generation, None, self.answers)),
            "half_open" if self.leases.len() < self.probes => {
                self.leases.push(now + LEASE_MS);
                Ok((self.generation, Some(now + LEASE_MS), self.answers))
            }
            "half_open" => {
                let first = self.leases.iter().min().copied().unwrap_or(now);
                Err(Some(first.saturating_sub(now).min(1000)))
            }
            _ => Err(rest),
        }
    }

    fn report(&mut self, ticket: Given, verdict: Verdict, now: u64) -> bool {
        self.time(now);
        if ticket.0 != self.generation {
            return false;
        }
        let verdict = match (verdict, self.answers - ticket.2) {
            (Verdict::Unanswered, 0) => Verdict::Failure,
            (Verdict::Unanswered, _) => Verdict::Neutral,
            (verdict, _) => verdict,
        };
        if verdict == Verdict::Failure {
            self.last_failure = Some(now);
        }
        let answered = matches!(verdict, Verdict::Success | Verdict::Answered);
        self.answers += u64::from(answered);
        match self.word {
            "half_open" => {
                if let Some(at) = self.leases.iter().position(|lease| Some(*lease) == ticket.1) {
                    self.leases.remove(at);
                }
                if answered {
                    self.successes += 1;
                    if self.successes >= self.successes_needed {
                        (self.failures, self.trips) = (0, 0);
                        self.go("closed", "probe_succeeded", now, None);
                    }
                } else if verdict == Verdict::Failure {
                    self.failures += 1;
                    self.trip("probe_failed", now);
                }
            }
            _ => match verdict {
                Verdict::Success => self.failures = 0,
                Verdict::Failure => {
                    self.failures += 1;
                    if self.word == "closed" && self.failures >= self.threshold {
                        self.trip("failures", now);
                    }
                }
                Verdict::Answered | Verdict::Neutral | Verdict::Unanswered => {}
            },
        }
        true
    }

    fn command(&mut self, command: Command, now: u64) {
        (self.failures, self.trips) = (0, 0);
        let millis = |during: Option<Duration>| {
            during.map(|during| u64::try_from(during.as_millis()).unwrap())
        };
        match command {
            Command::ForceOpen { during } => self.go("forced_open", "forced", now, millis(during)),
            Command::ForceClosed { during } => {
                self.go("forced_closed", "forced", now, millis(during));
            }
            Command::Reset => self.go("closed", "reset", now, None),
            Command::Changed => self.go("closed", "changed", now, None),
        }
    }

    /// The process ends at `now`, and another begins whose clock says `later`; between the two, the
    /// wall clock moved by `wall`.
    fn restart(&mut self, now: u64, wall: i64, later: u64) {
        let aged = |since: u64| i64::try_from(now - since).unwrap() + wall;
        self.generation += 1;
        self.leases.clear();
        self.successes = 0;
        match self.word {
            "closed" => {
                let open = i64::try_from(OPEN_MS).unwrap();
                let fresh = self.last_failure.is_some_and(|at| (0..open).contains(&aged(at)));
                self.failures = if fresh { self.failures.min(self.threshold - 1) } else { 0 };
                self.last_failure = fresh.then_some(later);
            }
            "half_open" => {
                (self.word, self.lasts) = ("open", Some(0));
                self.last_failure = None;
            }
            _ => {
                let age = aged(self.since);
                self.lasts = self.lasts.map(|lasts| match u64::try_from(age) {
                    Ok(age) => lasts.saturating_sub(age),
                    Err(_the_clock_went_back) => lasts,
                });
                self.last_failure = None;
            }
        }
        self.since = later;
    }
}

fn settings_of(model: &Model) -> BreakerSettings {
    let open_for = Duration::from_millis(OPEN_MS);
    BreakerSettings {
        threshold: model.threshold,
        probes: u32::try_from(model.probes).unwrap(),
        successes: model.successes_needed,
        open_for,
        open_for_max: open_for,
        ..BreakerSettings::default()
    }
}

/// One life: some events, compared after each.
fn live(seed: u64, events: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model = Model {
        threshold: random.u32(1..6),
        probes: random.usize(1..4),
        successes_needed: random.u32(1..3),
        word: "closed",
        since: 0,
        lasts: None,
        failures: 0,
        last_failure: None,
        trips: 0,
        generation: 0,
        leases: Vec::new(),
        successes: 0,
        answers: 0,
        log: Vec::new(),
    };
    let settings = settings_of(&model);
    let mut breaker = Breaker::new(settings.clone());
    let (mut now, mut wall) = (10_000_u64, 1_000_000_000_000_i64);
    let mut tickets: Vec<(Ticket, Given)> = Vec::new();
    let mut seen = Vec::new();
    let verdicts = [
        Verdict::Success,
        Verdict::Answered,
        Verdict::Failure,
        Verdict::Unanswered,
        Verdict::Neutral,
    ];
    for step in 0..events {
        let what = random.u32(0..100);
        let note = || format!("seed {seed}, step {step}, event {what}");
        match what {
            0..40 => {
                let lease = Duration::from_millis(LEASE_MS);
                let got = breaker.acquire(at(now), lease, 0.5, &mut seen);
                match (got, model.acquire(now)) {
                    (Ok(ticket), Ok(expected)) => {
                        assert_eq!(ticket.is_probe(), expected.1.is_some(), "{}", note());
                        tickets.push((ticket, expected));
                    }
                    (Err(rejection), Err(expected)) => {
                        let expected = expected.map(Duration::from_millis);
                        assert_eq!(rejection.retry_after(), expected, "{}", note());
                    }
                    (got, expected) => panic!("{}: {got:?} and not {expected:?}", note()),
                }
            }
            40..78 if !tickets.is_empty() => {
                let at_hand = random.usize(0..tickets.len());
                // Some report twice.
                let (ticket, expected) = match random.u32(0..20) {
                    0 => tickets[at_hand],
                    _ => tickets.swap_remove(at_hand),
                };
                let verdict = verdicts[random.usize(0..verdicts.len())];
                let heard =
                    breaker.report(ticket, verdict, Duration::ZERO, at(now), 0.5, &mut seen);
                assert_eq!(heard, model.report(expected, verdict, now), "{}", note());
            }
            78..95 => {
                now += [0, 1, 50, 300, 701, 999, 1000, 5000][random.usize(0..8)];
                breaker.settle(at(now), 0.5, &mut seen);
                model.time(now);
            }
            95..98 => {
                let during = random.bool().then(|| Duration::from_millis(random.u64(0..3000)));
                let command = match random.u32(0..4) {
                    0 => Command::ForceOpen { during },
                    1 => Command::ForceClosed { during },
                    2 => Command::Reset,
                    _ => Command::Changed,
                };
                let was_closed = model.word == "closed";
                seen.extend(breaker.command(command, at(now)));
                model.command(command, now);
                if command == Command::Changed && was_closed {
                    // There is nothing to tell.
                    model.log.pop();
                }
            }
            98 => {
                let jump = random.i64(-5000..5000);
                let record = breaker.record(at(now), Timestamp::from_millis(wall));
                wall += jump;
                let later = random.u64(10_000..20_000);
                let on_wall = Timestamp::from_millis(wall);
                breaker = Breaker::restore(settings.clone(), &record, on_wall, at(later));
                model.restart(now, jump, later);
                now = later;
                // The process that held them is gone.
                tickets.clear();
            }
            _ => breaker.configure(settings.clone(), at(now)),
        }
        let status = breaker.status(at(now));
        assert_eq!(status.state.as_str(), model.word, "{}", note());
        assert_eq!(
            (status.failures, status.trips, status.generation),
            (model.failures, model.trips, model.generation),
            "{} {model:?}",
            note()
        );
        let transitions = seen.iter().map(|transition| {
            (transition.from.as_str(), transition.to.as_str(), transition.reason.as_str())
        });
        assert!(transitions.eq(model.log.iter().copied()), "{}: {seen:?}", note());
        seen.clear();
        model.log.clear();
        // What must hold whatever the model says.
        let probing = usize::try_from(status.probing).unwrap();
        assert!(probing <= model.probes, "{}: {probing} probes", note());
        if status.state == BreakerState::Closed {
            assert!(status.failures < model.threshold, "{}", note());
        }
        if status.state == BreakerState::Open {
            assert!(status.rest <= Some(Duration::from_millis(OPEN_MS)), "{}", note());
        }
    }
}

/// A million lives: short ones, which begin anew too often to come far, and some long ones; with
/// `SWITCHYARD_TEST_FULL` all are long.
#[test]
#[expect(clippy::disallowed_methods, reason = "the full figure takes minutes")]
fn state_machine_model() {
    const LIVES: u64 = 1_000_000;
    let full = std::env::var("SWITCHYARD_TEST_FULL").is_ok_and(|value| value == "1");
    let long = if full { LIVES } else { 4_000 };
    let length = |seed| if seed < long { 120 } else { 12 };
    let lives = |seeds: std::ops::Range<u64>| seeds.for_each(|seed| live(seed, length(seed)));
    std::thread::scope(|scope| {
        scope.spawn(|| lives(0..LIVES / 2));
        lives(LIVES / 2..LIVES);
    });
}
