//! [`Breaker`]: whether an attempt at a server may be made, decided from how the last ones ended.
//!
//! The states and their order are those of Nygard's circuit breaker. Three things are added, each
//! against a fault that breakers in the field have:
//!
//! - Admission and change of state are one step: when the open period is over, exactly as many
//!   [`Ticket`]s as there are probes are given out, however many ask at that moment.
//! - A ticket carries the generation it was given in. Every transition begins a new one, and what is
//!   reported with an old ticket changes nothing: a hundred calls that were under way when the breaker
//!   opened say nothing of the server as it is after.
//! - A probe's ticket is leased. One that never reports counts as a failure when its lease is over, so
//!   that no lost probe can hold the breaker half-open.
//!
//! Time and random numbers are arguments. The lock around it, and what happens on a transition, are
//! the registry's.

use std::time::Duration;

use super::window::Window;
use crate::model::{
    BreakerRecord, BreakerSettings, BreakerState, Timestamp, TransitionReason, Uptime,
};

/// The right to make one attempt. Report it exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    generation: u64,
    /// Answers that were reported before it was given.
    answers: u64,
    /// When a probe must have reported; `None` for an attempt through a closed breaker.
    lease_until: Option<Uptime>,
}

impl Ticket {
    /// Whether its attempt decides over a half-open breaker.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.lease_until.is_some()
    }
}

/// What an attempt says of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered with a result.
    Success,
    /// It answered with an error of its own, or a result that says `isError`: it is alive, and while
    /// closed that is all it says.
    Answered,
    /// It did not answer properly.
    Failure,
    /// It did not answer in a time shorter than it is promised: a failure if nobody else had an answer
    /// meanwhile either, and nothing if somebody had.
    Unanswered,
    /// Nothing: the caller went away, or the server turned the attempt away.
    Neutral,
}

/// Why no ticket is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The breaker is open.
    Open {
        /// When it lets a probe through; `None` when only an operator will close it.
        retry_after: Option<Duration>,
    },
    /// All probes are under way.
    Probing {
        /// When to ask again.
        retry_after: Duration,
    },
}

impl Rejection {
    /// When to ask again, where that is known.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Open { retry_after } => *retry_after,
            Self::Probing { retry_after } => Some(*retry_after),
        }
    }

    /// The state that refuses.
    #[must_use]
    pub const fn state(&self) -> BreakerState {
        match self {
            Self::Open { .. } => BreakerState::Open,
            Self::Probing { .. } => BreakerState::HalfOpen,
        }
    }
}

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub from: BreakerState,
    /// The state after.
    pub to: BreakerState,
    /// Why.
    pub reason: TransitionReason,
    /// When: may lie before the moment it was found out, as with a lease that ran out unseen.
    pub at: Uptime,
    /// Failures in a row at that moment.
    pub failures: u32,
    /// Openings since it was last closed by success.
    pub trips: u32,
    /// How long the new state is to last, where that is known.
    pub open_for: Option<Duration>,
}

/// What an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Refuse all attempts, for a time or until told otherwise.
    ForceOpen {
        /// How long.
        during: Option<Duration>,
    },
    /// Let all attempts through, for a time or until told otherwise.
    ForceClosed {
        /// How long.
        during: Option<Duration>,
    },
    /// Begin anew, closed.
    Reset,
    /// Begin anew, because the server is another thing now.
    Changed,
}

/// How a breaker stands, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerStatus {
    /// The state.
    pub state: BreakerState,
    /// Counted failures in a row.
    pub failures: u32,
    /// Openings since it was last closed by success.
    pub trips: u32,
    /// Counts transitions.
    pub generation: u64,
    /// How long the state lasts from now, where it ends by time.
    pub rest: Option<Duration>,
    /// Probes under way.
    pub probing: u32,
}

/// The longest advice to wait while a probe is under way: it may report at any moment.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// The breaker of one server. Its rules for users are in `docs/resilience.md`.
#[derive(Debug, Clone)]
pub struct Breaker {
    settings: BreakerSettings,
    state: State,
    /// Begins anew with every transition.
    generation: u64,
    failures: u32,
    trips: u32,
    window: Option<Window>,
    last_failure: Option<Uptime>,
    reason: Option<TransitionReason>,
    /// Answers that were reported.
    answers: u64,
}

#[derive(Debug, Clone)]
enum State {
    Closed,
    Open { since: Uptime, open_for: Duration },
    HalfOpen { leases: Vec<Uptime>, successes: u32 },
    Forced { kind: Forced, since: Uptime, during: Option<Duration> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forced {
    Open,
    Closed,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(settings: BreakerSettings) -> Self {
        let window = window_of(&settings);
        Self {
            settings,
            state: State::Closed,
            generation: 0,
            failures: 0,
            trips: 0,
            window,
            last_failure: None,
            reason: None,
            answers: 0,
        }
    }

    /// The breaker that `record` was taken of, after a restart at `now` and `wall`.
    ///
    /// An open one has the rest of its time, at most the time the settings give now; when the wall
    /// clock went back, the whole of it. A half-open one is open with nothing left, because its
    /// probes ended with the process. A forced one stays forced.
    #[must_use]
    pub fn restore(
        settings: BreakerSettings,
        record: &BreakerRecord,
        wall: Timestamp,
        now: Uptime,
    ) -> Self {
        let mut breaker = Self::new(settings);
        breaker.generation = record.generation.saturating_add(1);
        breaker.trips = record.trips;
        breaker.reason = record.reason;
        let rest = |open_for: Duration| match record.opened_at {
            Some(opened_at) if wall >= opened_at => open_for.saturating_sub(wall.since(opened_at)),
            Some(_) | None => open_for,
        };
        match record.state {
            BreakerState::Closed => {
                let fresh = record
                    .last_failure_at
                    .is_some_and(|at| wall >= at && wall.since(at) < breaker.settings.open_for);
                if fresh {
                    breaker.failures =
                        record.failures.min(breaker.settings.threshold.saturating_sub(1));
                    breaker.last_failure = Some(now);
                }
            }
            BreakerState::Open => {
                breaker.failures = record.failures;
                let longest = breaker.open_for(record.trips, 1.0);
                let open_for = rest(record.open_for.unwrap_or(longest)).min(longest);
                breaker.state = State::Open { since: now, open_for };
            }
            BreakerState::HalfOpen => {
                breaker.failures = record.failures;
                breaker.state = State::Open { since: now, open_for: Duration::ZERO };
                breaker.reason = Some(TransitionReason::Restored);
            }
            BreakerState::ForcedOpen | BreakerState::ForcedClosed => {
                let kind = match record.state {
                    BreakerState::ForcedOpen => Forced::Open,
                    _ => Forced::Closed,
                };
                let during = record.open_for.map(rest);
                breaker.failures = record.failures;
                breaker.state = State::Forced { kind, since: now, during };
            }
        }
        breaker
    }

    /// What is to survive the process, at `now` and `wall`.
    #[must_use]
    pub fn record(&self, now: Uptime, wall: Timestamp) -> BreakerRecord {
        let began = |since: Uptime| wall.minus(now.since(since));
        let (opened_at, open_for) = match &self.state {
            State::Closed | State::HalfOpen { .. } => (None, None),
            State::Open { since, open_for } => (Some(began(*since)), Some(*open_for)),
            State::Forced { since, during, .. } => (Some(began(*since)), *during),
        };
        BreakerRecord {
            state: self.state(),
            failures: self.failures,
            trips: self.trips,
            generation: self.generation,
            opened_at,
            open_for,
            last_failure_at: self.last_failure.map(began),
            reason: self.reason,
        }
    }

    /// The state as it was last settled.
    #[must_use]
    pub const fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
            State::Forced { kind: Forced::Open, .. } => BreakerState::ForcedOpen,
            State::Forced { kind: Forced::Closed, .. } => BreakerState::ForcedClosed,
        }
    }

    /// Counted failures in a row.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Why it is in its state; `None` where it was never in another.
    #[must_use]
    pub const fn reason(&self) -> Option<TransitionReason> {
        self.reason
    }

    /// The transition by which [`Self::restore`] made an open breaker of a half-open one, at `now`.
    #[must_use]
    pub const fn restored(&self, now: Uptime) -> Transition {
        Transition {
            from: BreakerState::HalfOpen,
            to: BreakerState::Open,
            reason: TransitionReason::Restored,
            at: now,
            failures: self.failures,
            trips: self.trips,
            open_for: Some(Duration::ZERO),
        }
    }

    /// How it stands at `now`.
    #[must_use]
    pub fn status(&self, now: Uptime) -> BreakerStatus {
        let rest = match &self.state {
            State::Closed | State::HalfOpen { .. } => None,
            State::Open { since, open_for } => Some(open_for.saturating_sub(now.since(*since))),
            State::Forced { since, during, .. } => {
                during.map(|during| during.saturating_sub(now.since(*since)))
            }
        };
        let probing = match &self.state {
            State::HalfOpen { leases, .. } => u32::try_from(leases.len()).unwrap_or(u32::MAX),
            State::Closed | State::Open { .. } | State::Forced { .. } => 0,
        };
        BreakerStatus {
            state: self.state(),
            failures: self.failures,
            trips: self.trips,
            generation: self.generation,
            rest,
            probing,
        }
    }

    /// Why an attempt at `now` would be refused, in the state as it was last settled; for people, who
    /// look and take nothing.
    #[must_use]
    pub fn refusal(&self, now: Uptime) -> Option<Rejection> {
        match &self.state {
            State::Closed | State::Forced { kind: Forced::Closed, .. } => None,
            State::Forced { kind: Forced::Open, .. } => {
                Some(Rejection::Open { retry_after: self.status(now).rest })
            }
            State::Open { since, open_for } => {
                let rest = open_for.saturating_sub(now.since(*since));
                (!rest.is_zero()).then_some(Rejection::Open { retry_after: Some(rest) })
            }
            State::HalfOpen { leases, .. } => self
                .all_probes_out(leases)
                .then(|| Rejection::Probing { retry_after: patience(leases, now) }),
        }
    }

    fn all_probes_out(&self, leases: &[Uptime]) -> bool {
        leases.len() >= usize::try_from(self.settings.probes).unwrap_or(usize::MAX)
    }

    /// Asks for the right to make an attempt; `lease` is how long it may take to report if it is to
    /// be a probe. `random` is from 0 to 1. Transitions that this causes are added to `transitions`.
    ///
    /// # Errors
    /// [`Rejection`]; the attempt must not be made.
    pub fn acquire(
        &mut self,
        now: Uptime,
        lease: Duration,
        random: f64,
        transitions: &mut Vec<Transition>,
    ) -> Result<Ticket, Rejection> {
        self.settle(now, random, transitions);
        let (generation, answers) = (self.generation, self.answers);
        match &mut self.state {
            State::Closed | State::Forced { kind: Forced::Closed, .. } => {
                Ok(Ticket { generation, answers, lease_until: None })
            }
            State::Forced { kind: Forced::Open, since, during } => Err(Rejection::Open {
                retry_after: during.map(|during| during.saturating_sub(now.since(*since))),
            }),
            State::Open { since, open_for } => {
                let rest = open_for.saturating_sub(now.since(*since));
                if !rest.is_zero() {
                    return Err(Rejection::Open { retry_after: Some(rest) });
                }
                let lease_until = now.plus(lease);
                let leases = vec![lease_until];
                let half_open = State::HalfOpen { leases, successes: 0 };
                transitions.push(self.become_state(half_open, TransitionReason::Timer, now));
                let (generation, lease_until) = (self.generation, Some(lease_until));
                Ok(Ticket { generation, answers, lease_until })
            }
            State::HalfOpen { leases, .. } => {
                if leases.len() < usize::try_from(self.settings.probes).unwrap_or(usize::MAX) {
                    let lease_until = now.plus(lease);
                    leases.push(lease_until);
                    return Ok(Ticket { generation, answers, lease_until: Some(lease_until) });
                }
                Err(Rejection::Probing { retry_after: patience(leases, now) })
            }
        }
    }

    /// Says how an attempt ended that took `took`. Whether that was heard: what is said with a ticket
    /// of an earlier generation is not.
    pub fn report(
        &mut self,
        ticket: Ticket,
        verdict: Verdict,
        took: Duration,
        now: Uptime,
        random: f64,
        transitions: &mut Vec<Transition>,
    ) -> bool {
        self.settle(now, random, transitions);
        if ticket.generation != self.generation {
            return false;
        }
        let verdict = self.weigh(ticket, verdict);
        if matches!(verdict, Verdict::Success | Verdict::Answered) {
            self.answers = self.answers.wrapping_add(1);
        }
        if verdict == Verdict::Failure {
            self.last_failure = Some(now);
        }
        match (&mut self.state, ticket.lease_until) {
            (State::Closed, _) => {
                let tripped = self.count(verdict, took, now);
                if let Some(reason) = tripped {
                    transitions.push(self.trip(reason, now, random));
                }
            }
            (State::HalfOpen { leases, successes }, Some(lease)) => {
                if let Some(at) = leases.iter().position(|until| *until == lease) {
                    leases.swap_remove(at);
                }
                match verdict {
                    Verdict::Success | Verdict::Answered => {
                        *successes = successes.saturating_add(1);
                        if *successes >= self.settings.successes {
                            self.failures = 0;
                            self.trips = 0;
                            let reason = TransitionReason::ProbeSucceeded;
                            transitions.push(self.become_state(State::Closed, reason, now));
                        }
                    }
                    Verdict::Failure => {
                        self.failures = self.failures.saturating_add(1);
                        transitions.push(self.trip(TransitionReason::ProbeFailed, now, random));
                    }
                    Verdict::Neutral | Verdict::Unanswered => {}
                }
            }
            // Forced states count for the eye only; a half-open one has no tickets without a lease,
            // and an open one none at all.
            (State::Forced { .. }, _) => self.count_only(verdict),
            (State::HalfOpen { .. }, None) | (State::Open { .. }, _) => {}
        }
        true
    }

    /// What `verdict` on the attempt of `ticket` comes to: [`Verdict::Unanswered`] is a failure or
    /// nothing, all others are what they are.
    #[must_use]
    pub const fn weigh(&self, ticket: Ticket, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Unanswered if ticket.answers == self.answers => Verdict::Failure,
            Verdict::Unanswered => Verdict::Neutral,
            Verdict::Success | Verdict::Answered | Verdict::Failure | Verdict::Neutral => verdict,
        }
    }

    /// Does what time alone causes: a lease that ran out, a forced state whose time is over.
    pub fn settle(&mut self, now: Uptime, random: f64, transitions: &mut Vec<Transition>) {
        match &self.state {
            State::HalfOpen { leases, .. } => {
                let Some(first) = leases.iter().min().copied() else { return };
                if first <= now {
                    self.failures = self.failures.saturating_add(1);
                    self.last_failure = Some(first);
                    let reason = TransitionReason::ProbeLeaseExpired;
                    transitions.push(self.trip(reason, first, random));
                }
            }
            State::Forced { since, during: Some(during), .. } => {
                let over = since.plus(*during);
                if over <= now {
                    self.failures = 0;
                    self.trips = 0;
                    let reason = TransitionReason::ForcedUntilOver;
                    transitions.push(self.become_state(State::Closed, reason, over));
                }
            }
            State::Closed | State::Open { .. } | State::Forced { during: None, .. } => {}
        }
    }

    /// Does what an operator wants. `None` where nothing is to be told: it was closed and still is,
    /// because the server is another thing now.
    pub fn command(&mut self, command: Command, now: Uptime) -> Option<Transition> {
        let (state, reason) = match command {
            Command::ForceOpen { during } => {
                (State::Forced { kind: Forced::Open, since: now, during }, TransitionReason::Forced)
            }
            Command::ForceClosed { during } => (
                State::Forced { kind: Forced::Closed, since: now, during },
                TransitionReason::Forced,
            ),
            Command::Reset => (State::Closed, TransitionReason::Reset),
            Command::Changed => (State::Closed, TransitionReason::Changed),
        };
        self.failures = 0;
        self.trips = 0;
        let was_closed = matches!(self.state, State::Closed);
        let transition = self.become_state(state, reason, now);
        (command != Command::Changed || !was_closed).then_some(transition)
    }

    /// Takes over other numbers. An open breaker stays open no longer than they give it.
    pub fn configure(&mut self, settings: BreakerSettings, now: Uptime) {
        if settings == self.settings {
            return;
        }
        if (settings.window, settings.slow_call) != (self.settings.window, self.settings.slow_call)
        {
            self.window = window_of(&settings);
        }
        self.settings = settings;
        self.failures = match self.state {
            State::Closed => self.failures.min(self.settings.threshold.saturating_sub(1)),
            _ => self.failures,
        };
        let longest = self.open_for(self.trips, 1.0);
        if let State::Open { since, open_for } = &mut self.state {
            let passed = now.since(*since);
            let rest = open_for.saturating_sub(passed).min(longest);
            *open_for = passed.saturating_add(rest);
        }
    }

    /// Counts in the closed state; gives the reason to open.
    fn count(&mut self, verdict: Verdict, took: Duration, now: Uptime) -> Option<TransitionReason> {
        self.count_only(verdict);
        if verdict == Verdict::Neutral {
            return None;
        }
        if verdict == Verdict::Failure && self.failures >= self.settings.threshold {
            return Some(TransitionReason::Failures);
        }
        let window = self.window.as_mut()?;
        let slow = self.settings.slow_call.is_some_and(|limit| took >= limit);
        window.add(now, verdict == Verdict::Failure, slow);
        let seen = window.sum(now);
        if seen.all < u64::from(self.settings.min_calls.max(1)) {
            return None;
        }
        if verdict == Verdict::Failure && seen.rate(seen.failed) >= self.settings.window_rate {
            return Some(TransitionReason::FailureRate);
        }
        (slow && seen.rate(seen.slow) >= self.settings.slow_call_rate)
            .then_some(TransitionReason::SlowCalls)
    }

    fn count_only(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Success => self.failures = 0,
            Verdict::Answered if self.settings.tool_error_resets => self.failures = 0,
            Verdict::Failure => self.failures = self.failures.saturating_add(1),
            Verdict::Answered | Verdict::Neutral | Verdict::Unanswered => {}
        }
    }

    fn trip(&mut self, reason: TransitionReason, at: Uptime, random: f64) -> Transition {
        self.trips = self.trips.saturating_add(1);
        let open_for = self.open_for(self.trips, random);
        self.become_state(State::Open { since: at, open_for }, reason, at)
    }

    fn become_state(&mut self, state: State, reason: TransitionReason, at: Uptime) -> Transition {
        let from = self.state();
        self.state = state;
        self.generation = self.generation.saturating_add(1);
        self.reason = Some(reason);
        if let Some(window) = &mut self.window {
            window.clear();
        }
        let open_for = match &self.state {
            State::Open { open_for, .. } => Some(*open_for),
            State::Forced { during, .. } => *during,
            State::Closed | State::HalfOpen { .. } => None,
        };
        let (failures, trips) = (self.failures, self.trips);
        Transition { from, to: self.state(), reason, at, failures, trips, open_for }
    }

    /// How long the opening number `trips` in a row lasts. Without growth always the same; with it,
    /// the time doubles and is spread over its upper half (equal jitter), so that many routers do
    /// not probe in one beat.
    fn open_for(&self, trips: u32, random: f64) -> Duration {
        let base = self.settings.open_for;
        let doublings = trips.saturating_sub(1).min(31);
        if doublings == 0 || self.settings.open_for_max <= base {
            return base;
        }
        let grown = base.saturating_mul(1 << doublings).min(self.settings.open_for_max);
        let spread = grown.div_f64(2.0);
        spread.saturating_add(spread.mul_f64(random.clamp(0.0, 1.0))).max(base)
    }
}

/// When to ask again while all probes are under way.
fn patience(leases: &[Uptime], now: Uptime) -> Duration {
    let rest = leases.iter().map(|until| until.since(now)).min();
    rest.unwrap_or_default().min(PROBE_PATIENCE)
}

fn window_of(settings: &BreakerSettings) -> Option<Window> {
    settings.window.map(Window::new)
}

#[cfg(test)]
mod tests;
