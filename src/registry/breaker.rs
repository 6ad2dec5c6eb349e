//! [`ServerBreaker`]: the lock around a breaker, and what follows from its transitions.
//!
//! Changes when a transition has another consequence. When states change is `policy`'s.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;

use super::breakers::Stored;
use crate::clock;
use crate::metrics::BreakerMetrics;
use crate::model::{
    BreakerEvent, BreakerRow, BreakerState, ServerName, ServerSettings, Timestamp, ToolName,
    TraceId, TransitionReason, Uptime,
};
use crate::policy::{
    Breaker, BreakerStatus, Budget, Command, Rejection, Ticket, Transition, Verdict,
};

/// Characters kept of a failure's text.
const ERROR_TEXT: usize = 500;

/// The breaker of a server, or of one tool of it, with the budget of its retries. A lock for each, held
/// for some arithmetic and never over an await.
#[derive(Debug)]
pub struct ServerBreaker {
    server: ServerName,
    tool: Option<ToolName>,
    core: Mutex<Core>,
    /// One for the server and what stood in its place before: calls under way there are repeated here.
    budget: Arc<Mutex<Budget>>,
    metrics: BreakerMetrics,
    journal: mpsc::Sender<BreakerEvent>,
}

#[derive(Debug)]
struct Core {
    breaker: Breaker,
    last_error: Option<String>,
    last_error_at: Option<Timestamp>,
    /// Who forced the present state, and why.
    forced: Option<Order>,
    /// Something changed that is not in the database yet.
    unsaved: bool,
    /// Its server is gone: what calls under way still report is nobody's.
    retired: bool,
    /// Kept, so that a call allocates nothing.
    transitions: Vec<Transition>,
}

/// Which attempt at a call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The first.
    First,
    /// One that repeats another.
    Repeat,
}

/// Who changed a breaker, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Who.
    pub actor: String,
    /// Why, in that person's words.
    pub note: Option<String>,
}

/// A breaker as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerView {
    /// Whose breaker.
    pub server: ServerName,
    /// The tool, where breakers are for single tools.
    pub tool: Option<ToolName>,
    /// How it stands.
    pub status: BreakerStatus,
    /// Why it stands so; `None` where it was never otherwise.
    pub reason: Option<TransitionReason>,
    /// When its state ends by time; `None` also when that time is over and only an attempt is missing.
    pub until: Option<Timestamp>,
    /// Why an attempt would be refused now; `None` when it would not.
    pub refusal: Option<Rejection>,
    /// The last counted failure.
    pub last_error: Option<String>,
    /// When that was; `None` also when it was before the start of the router.
    pub last_error_at: Option<Timestamp>,
    /// Who forced the present state, and why.
    pub forced: Option<Order>,
}

/// The right to make one attempt. Dropped without a report it says nothing of the server: the caller
/// went away.
#[derive(Debug)]
#[must_use = "an attempt must be reported"]
pub struct Permit<'a> {
    breaker: &'a ServerBreaker,
    ticket: Ticket,
    began: Uptime,
    open: bool,
    trace: Option<TraceId>,
}

/// What a transition came of.
#[derive(Debug)]
struct Cause {
    /// The failure, without what must not be shown.
    text: String,
    /// The trace of the call that failed.
    trace: Option<TraceId>,
}

impl ServerBreaker {
    /// The breaker as it was stored, or a new one.
    pub(super) fn new(
        server: ServerName,
        tool: Option<ToolName>,
        settings: &ServerSettings,
        stored: Option<Stored>,
        metrics: BreakerMetrics,
        journal: mpsc::Sender<BreakerEvent>,
    ) -> Self {
        let (now, wall) = (clock::uptime(), clock::timestamp());
        let numbers = settings.breaker.clone();
        let (stored, forced) = match stored {
            Some(Stored { row, forced }) => (Some(row), forced),
            None => (None, None),
        };
        let breaker = match &stored {
            Some(row) => Breaker::restore(numbers, &row.record, wall, now),
            None => Breaker::new(numbers),
        };
        let was = stored.as_ref().map(|row| row.record.state);
        // What was given another end, because the clock went back or the configuration gives less, keeps
        // it over the next restart: else each would give the time once more.
        let ends = breaker.record(now, wall).ends_at();
        let moved = stored.as_ref().is_some_and(|row| row.record.ends_at() != ends);
        let core = Core {
            breaker,
            last_error_at: stored.as_ref().and_then(|row| row.record.last_failure_at),
            last_error: stored.and_then(|row| row.last_error),
            forced,
            unsaved: moved,
            retired: false,
            transitions: Vec::new(),
        };
        let budget = Arc::new(Mutex::new(Budget::new(settings.retry.budget, now)));
        let breaker = Self { server, tool, core: Mutex::new(core), budget, metrics, journal };
        {
            let mut core = breaker.core.lock();
            if was == Some(BreakerState::HalfOpen) {
                let restored = core.breaker.restored(now);
                core.transitions.push(restored);
            }
            breaker.follow(&mut core, now, None, None);
            breaker.show(core.breaker.status(now), wall);
        }
        breaker
    }

    /// Asks at `now` for the right to make an attempt, which reports within `lease` if it is to be a
    /// probe. The first attempt at a call earns a part of a retry.
    ///
    /// # Errors
    /// [`Rejection`]; the attempt must not be made.
    pub fn acquire(
        &self,
        now: Uptime,
        lease: Duration,
        turn: Turn,
    ) -> Result<Permit<'_>, Rejection> {
        let mut core = self.core.lock();
        let Core { breaker, transitions, .. } = &mut *core;
        let ticket = breaker.acquire(now, lease, random(), transitions);
        self.follow(&mut core, now, None, None);
        drop(core);
        if turn == Turn::First && ticket.is_ok() {
            self.budget.lock().deposit();
        }
        match ticket {
            Ok(ticket) => Ok(Permit { breaker: self, ticket, began: now, open: true, trace: None }),
            Err(rejection) => {
                self.metrics.rejections.inc();
                Err(rejection)
            }
        }
    }

    /// Refuses a call that would have to wait in a queue first, if an attempt would be refused now.
    #[must_use]
    pub fn refuses(&self) -> Option<Rejection> {
        let rejection = self.would_refuse();
        if rejection.is_some() {
            self.metrics.rejections.inc();
        }
        rejection
    }

    /// Whether an attempt would be refused now, without asking for one.
    #[must_use]
    pub fn would_refuse(&self) -> Option<Rejection> {
        let now = clock::uptime();
        // A probe under way may be back before the place in the queue is free.
        let open = |refusal: &Rejection| matches!(refusal, Rejection::Open { .. });
        self.settled(now).breaker.refusal(now).filter(open)
    }

    /// Whether the budget has a retry left; takes it out.
    #[must_use]
    pub fn take_retry(&self) -> bool {
        self.budget.lock().withdraw(clock::uptime())
    }

    /// A retry that was taken out was not made.
    pub fn put_retry_back(&self) {
        self.budget.lock().put_back();
    }

    /// Does what an operator wants.
    pub fn command(&self, command: Command, order: Option<&Order>) {
        let now = clock::uptime();
        self.command_locked(&mut self.settled(now), command, order, now);
    }

    fn command_locked(
        &self,
        core: &mut Core,
        command: Command,
        order: Option<&Order>,
        now: Uptime,
    ) {
        let transition = core.breaker.command(command, now);
        core.transitions.extend(transition);
        core.unsaved = true;
        core.forced = order.cloned();
        self.follow(core, now, None, order);
    }

    /// The breaker of what stands here now, after the server became another thing. This one is
    /// nobody's from here on: calls that are under way at what stood here before ask and report here,
    /// and decide over nothing.
    pub(super) fn successor(&self) -> Self {
        let now = clock::uptime();
        let mut core = self.settled(now);
        self.command_locked(&mut core, Command::Changed, None, now);
        core.retired = true;
        let successor = Core {
            breaker: core.breaker.clone(),
            // The failures of what stood here before are not this one's.
            last_error: None,
            last_error_at: None,
            forced: None,
            unsaved: true,
            retired: false,
            transitions: Vec::new(),
        };
        Self {
            server: self.server.clone(),
            tool: self.tool.clone(),
            core: Mutex::new(successor),
            budget: Arc::clone(&self.budget),
            metrics: self.metrics.clone(),
            journal: self.journal.clone(),
        }
    }

    /// Takes over other numbers.
    pub(super) fn configure(&self, settings: &ServerSettings) {
        let now = clock::uptime();
        let mut core = self.settled(now);
        core.breaker.configure(settings.breaker.clone(), now);
        self.budget.lock().configure(settings.retry.budget);
        core.unsaved = true;
        self.show(core.breaker.status(now), clock::timestamp());
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> BreakerStatus {
        let now = clock::uptime();
        self.settled(now).breaker.status(now)
    }

    /// All that is shown of it.
    #[must_use]
    pub fn view(&self) -> BreakerView {
        let (now, wall) = (clock::uptime(), clock::timestamp());
        let core = self.settled(now);
        let status = core.breaker.status(now);
        BreakerView {
            server: self.server.clone(),
            tool: self.tool.clone(),
            status,
            reason: core.breaker.reason(),
            until: status.rest.filter(|rest| !rest.is_zero()).map(|rest| wall.plus(rest)),
            refusal: core.breaker.refusal(now),
            last_error: core.last_error.clone(),
            last_error_at: core.last_error_at,
            forced: core.forced.clone(),
        }
    }

    /// Does what time alone causes before anybody looks: a state whose time is over is not shown.
    fn settled(&self, now: Uptime) -> MutexGuard<'_, Core> {
        let mut core = self.core.lock();
        let Core { breaker, transitions, .. } = &mut *core;
        breaker.settle(now, random(), transitions);
        self.follow(&mut core, now, None, None);
        core
    }

    /// Does what time alone causes, and gives what is to be stored, if anything changed.
    pub(super) fn settle(&self) -> Option<BreakerRow> {
        let (now, wall) = (clock::uptime(), clock::timestamp());
        let mut core = self.settled(now);
        if core.retired || !std::mem::take(&mut core.unsaved) {
            return None;
        }
        Some(BreakerRow {
            server: self.server.clone(),
            tool: self.tool.clone(),
            record: core.breaker.record(now, wall),
            last_error: core.last_error.clone(),
        })
    }

    /// The server is gone, and perhaps another of its name is there.
    pub(super) fn retire(&self) {
        self.core.lock().retired = true;
    }

    /// Whether it stands as a new one would, in the database too.
    pub(super) fn is_as_new(&self) -> bool {
        let core = self.core.lock();
        let closed = core.breaker.state() == BreakerState::Closed;
        closed && core.breaker.failures() == 0 && !core.unsaved
    }

    /// Whether it keeps attempts back by itself.
    pub(super) fn is_open(&self) -> bool {
        let state = self.core.lock().breaker.state();
        matches!(state, BreakerState::Open | BreakerState::HalfOpen)
    }

    /// Shows how many of its server's tools have an open breaker of their own.
    pub(super) fn show_tools_open(&self, tools: usize) {
        self.metrics.set_tools_open(tools);
    }

    /// What [`Self::settle`] gave could not be stored.
    pub(super) fn unsaved(&self) {
        self.core.lock().unsaved = true;
    }

    fn report(
        &self,
        ticket: Ticket,
        verdict: Verdict,
        began: Uptime,
        now: Uptime,
        error: Option<&dyn std::fmt::Display>,
        trace: Option<TraceId>,
    ) {
        let mut core = self.core.lock();
        let before = core.breaker.failures();
        let Core { breaker, transitions, retired, .. } = &mut *core;
        let verdict = breaker.weigh(ticket, verdict);
        let heard = breaker.report(ticket, verdict, now.since(began), now, random(), transitions);
        if !heard || *retired {
            self.metrics.stale_results.inc();
        }
        let cause = (heard && verdict == Verdict::Failure).then(|| {
            let text = error.map(ToString::to_string).unwrap_or_default();
            Cause { text: text.chars().take(ERROR_TEXT).collect(), trace }
        });
        if let Some(cause) = &cause {
            core.last_error = Some(cause.text.clone());
            core.last_error_at = Some(clock::timestamp());
        }
        core.unsaved |= core.breaker.failures() != before;
        self.follow(&mut core, now, cause.as_ref(), None);
    }

    /// Everything that a transition causes. Under the lock, so that the history has them in order.
    fn follow(&self, core: &mut Core, now: Uptime, cause: Option<&Cause>, order: Option<&Order>) {
        if core.retired {
            core.transitions.clear();
        }
        if core.transitions.is_empty() {
            return;
        }
        let wall = clock::timestamp();
        let transitions = std::mem::take(&mut core.transitions);
        for transition in &transitions {
            let event = self.event(core, transition, now, wall, cause, order);
            self.metrics.count_transition(transition.from, transition.to, transition.reason);
            if let Err(error) = self.journal.try_send(event) {
                tracing::warn!(server.name = %self.server, %error, "a transition of a breaker is missing from the history: {error}");
            }
        }
        core.transitions = transitions;
        core.transitions.clear();
        core.unsaved = true;
        if !matches!(core.breaker.state(), BreakerState::ForcedOpen | BreakerState::ForcedClosed) {
            core.forced = None;
        }
        self.show(core.breaker.status(now), wall);
    }

    fn event(
        &self,
        core: &Core,
        transition: &Transition,
        now: Uptime,
        wall: Timestamp,
        cause: Option<&Cause>,
        order: Option<&Order>,
    ) -> BreakerEvent {
        let text = cause.map(|cause| cause.text.clone());
        let error = match transition.reason {
            TransitionReason::Failures
            | TransitionReason::FailureRate
            | TransitionReason::ProbeFailed => text,
            TransitionReason::SlowCalls => text.or_else(|| {
                Some("too many of the last attempts were slower than slow_call".to_owned())
            }),
            TransitionReason::ProbeLeaseExpired => {
                Some("the probe did not report before its lease was over".to_owned())
            }
            TransitionReason::Timer
            | TransitionReason::ProbeSucceeded
            | TransitionReason::Forced
            | TransitionReason::ForcedUntilOver
            | TransitionReason::Reset
            | TransitionReason::Changed
            | TransitionReason::Restored => None,
        };
        let order = order.or(core.forced.as_ref()).filter(|_| {
            matches!(transition.reason, TransitionReason::Forced | TransitionReason::Reset)
        });
        BreakerEvent {
            id: 0,
            server: self.server.clone(),
            tool: self.tool.clone(),
            at: wall.minus(now.since(transition.at)),
            from: transition.from,
            to: transition.to,
            reason: transition.reason,
            failures: transition.failures,
            trips: transition.trips,
            open_for: transition.open_for,
            error,
            actor: order.map(|order| order.actor.clone()),
            note: order.and_then(|order| order.note.clone()),
            trace_id: cause.and_then(|cause| cause.trace),
        }
    }

    fn show(&self, status: BreakerStatus, wall: Timestamp) {
        let until = matches!(status.state, BreakerState::Open | BreakerState::ForcedOpen)
            .then(|| status.rest.map(|rest| wall.plus(rest)))
            .flatten();
        self.metrics.set_state(status.state, until);
    }
}

/// A breaker that opens is worth a line in the log; a call that it refuses is not. Not under the lock
/// of the breaker: a log can block.
pub(super) fn tell(event: &BreakerEvent) {
    let BreakerEvent { server, from, to, reason, .. } = event;
    let (from, to, reason) = (from.as_str(), to.as_str(), reason.as_str());
    let tool = event.tool.as_ref().map(|tool| format!(" for tool {tool}")).unwrap_or_default();
    let error = event.error.as_deref().unwrap_or_default();
    let by = event.actor.as_deref().map(|actor| format!(" by {actor}")).unwrap_or_default();
    let colon = if error.is_empty() { "" } else { ": " };
    let trace = event.trace_id.map(tracing::field::display);
    let message = format!(
        "the breaker of server {server}{tool} went from {from} to {to}{by} ({reason}){colon}{error}"
    );
    match event.to {
        BreakerState::Open => {
            tracing::warn!(server.name = %server, breaker.from = from, breaker.to = to, breaker.reason = reason, trace_id = trace, "{message}");
        }
        _ => {
            tracing::info!(server.name = %server, breaker.from = from, breaker.to = to, breaker.reason = reason, trace_id = trace, "{message}");
        }
    }
}

impl Permit<'_> {
    /// Whether the attempt decides over a half-open breaker.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.ticket.is_probe()
    }

    /// The attempt is one of a call in this trace, which the log names if the breaker changes with it.
    pub fn traced(mut self, trace: Option<TraceId>) -> Self {
        self.trace = trace;
        self
    }

    /// The attempt waited so long for ourselves: that is not the server's time.
    pub fn waited(&mut self, wait: Duration) {
        self.began = self.began.plus(wait);
    }

    /// Says how the attempt ended at `now`; `error` must be free of secrets.
    pub fn report(mut self, verdict: Verdict, now: Uptime, error: Option<&dyn std::fmt::Display>) {
        self.open = false;
        self.breaker.report(self.ticket, verdict, self.began, now, error, self.trace);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.open {
            let now = clock::uptime();
            self.breaker.report(self.ticket, Verdict::Neutral, self.began, now, None, None);
        }
    }
}

/// From 0 to 1; spread is all it is for.
fn random() -> f64 {
    fastrand::f64()
}
