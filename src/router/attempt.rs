//! One attempt at the upstream: ask the breaker, connect if needed, send, classify, tell the breaker.
//!
//! Whether there is another is `again.rs`'s.

use std::time::Duration;

use crate::audit::AuditUnavailable;
use crate::catalogue::CatalogueEntry;
use crate::clock;
use crate::model::{
    BreakerProbe, BreakerScope, CallerTrace, Era, Failure, Outcome, TraceId, Uptime,
};
use crate::policy::{self, Deadline, Verdict};
use crate::pool::{PoolError, Urgency};
use crate::protocol::{AnswerKind, OutgoingRequest, RawObject, ResultFacts};
use crate::registry::{LeaseError, Permit, ServerHandle, SessionLease, Turn};

use super::record::{AttemptEnd, CallRecord};
use super::upstream::{UpstreamError, UpstreamFailure, is_server_fault};
use super::{RouteError, UpstreamAnswer};

/// A probe may take this much longer than its call, before it counts as lost.
pub(super) const LEASE_MARGIN: Duration = Duration::from_secs(1);

/// Sends the call once.
///
/// # Errors
/// [`RouteError::BreakerOpen`] when no attempt may be made; [`RouteError::Upstream`] with the class of
/// the failure; where the server is isolated, also [`RouteError::SessionsFull`] and
/// [`RouteError::SessionEnded`].
pub(super) async fn attempt(
    entry: &CatalogueEntry,
    deadline: Deadline,
    record: &mut CallRecord,
) -> Result<UpstreamAnswer, RouteError> {
    let server = &entry.server;
    let began = clock::uptime();
    let timeout = deadline.attempt(began, entry.timeout);
    let turn = if record.attempts() == 0 { Turn::First } else { Turn::Repeat };
    let mut permits = Permits::acquire(entry, began, deadline.left(began), turn)?;
    record.attempt_begins(began, permits.is_probe());
    let _inflight = InFlight::new(&server.metrics.inflight);
    let requester = record.call.requester();
    let leased = tokio::time::timeout(timeout, server.lease_for(&requester, permits.urgency()));
    let waited = || Err(PoolError::Waited { waited: timeout }.into());
    let lease = match leased.await.unwrap_or_else(|_elapsed| waited()) {
        Ok(lease) => lease,
        Err(LeaseError::Pool(error)) => {
            return Err(fail(entry, record, permits, error.into(), Trial::of(timeout)));
        }
        Err(LeaseError::SessionsFull { limit }) => {
            record.attempt_withdrawn();
            return Err(RouteError::SessionsFull { server: server.name.clone(), limit });
        }
        Err(LeaseError::SessionEnded) => {
            record.attempt_withdrawn();
            return Err(RouteError::SessionEnded { server: server.name.clone() });
        }
    };
    if permits.wants_life(server.settings.breaker.probe) {
        let left = deadline.attempt(clock::uptime(), entry.timeout);
        // Boxed: few attempts are probes.
        if let Err(error) = Box::pin(show_life(&lease, left)).await {
            let trial = Trial::ended(server, &lease, left);
            return Err(fail(entry, record, permits, error, trial));
        }
        permits.lives(clock::uptime());
    }
    record.sending(lease.peer().version);
    let params = record.call.params.clone();
    let parsed = params
        .as_deref()
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .and_then(|text| RawObject::parse(text).ok());
    let arguments = record.call.arguments.clone();
    let capabilities = record.call.client_capabilities.clone();
    let relay = record.relay.clone();
    let param_headers = match entry.definition.param_headers.is_empty() {
        true => Vec::new(),
        false => entry
            .definition
            .param_headers
            .render(arguments.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok())),
    };
    let wishes = relay.as_ref().map(|relay| relay.wishes());
    let (caller, operation) = (record.call.trace.clone(), record.operation.clone());
    let trace = match &operation {
        Some(operation) => {
            let baggage = caller.as_deref().and_then(|caller| caller.baggage.as_deref());
            operation.outgoing(record.attempt_span(), baggage)
        }
        None => caller.as_deref().map(CallerTrace::unchanged).unwrap_or_default(),
    };
    let mut key = [0; 36];
    let request = OutgoingRequest {
        params: parsed.as_ref(),
        name: Some(entry.tool.as_str()),
        // With `params` of the caller's own the arguments are in there.
        arguments: match parsed {
            Some(_) => None,
            None => arguments.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok()),
        },
        client_capabilities: capabilities
            .as_deref()
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or("{}"),
        headers: &param_headers,
        progress: wishes.is_some_and(|wishes| wishes.progress_token.is_some()),
        log_level: wishes.filter(|wishes| wishes.asks_for_log).and_then(|wishes| wishes.log_level),
        idempotency_key: Some(record.call.id.encode(&mut key)),
        trace,
        sent_as: operation.as_deref().map(|operation| &operation.sent_as),
        ..OutgoingRequest::new("tools/call")
    };
    let left = deadline.attempt(clock::uptime(), entry.timeout);
    if left.is_zero() {
        // What is sent now would be cut off at once, and might run all the same.
        let error = PoolError::Waited { waited: timeout };
        return Err(fail(entry, record, permits, error.into(), Trial::of(timeout)));
    }
    if record.wants_intent(entry) {
        // Boxed: it is not on the way of calls that are recorded when they are over.
        match Box::pin(record.intend(entry, left)).await {
            Ok(waited) => permits.waited(waited),
            Err(_) => {
                record.attempt_withdrawn();
                return Err(RouteError::AuditUnavailable(AuditUnavailable::NotWritable));
            }
        }
    }
    let left = deadline.attempt(clock::uptime(), entry.timeout);
    match lease.request(&request, left, relay.as_ref()).await {
        Ok(answer) if is_server_fault(&answer) => {
            let trial = Trial::ended(server, &lease, left);
            Err(fail(entry, record, permits, UpstreamError::Answered(answer), trial))
        }
        Ok(answer) => {
            let now = clock::uptime();
            let facts = match answer.kind {
                AnswerKind::Result => ResultFacts::of(&answer.value),
                AnswerKind::Error => ResultFacts::default(),
            };
            let outcome = match (answer.kind, facts.is_error) {
                (AnswerKind::Error, _) => Outcome::RpcError,
                (AnswerKind::Result, true) => Outcome::ToolError,
                (AnswerKind::Result, false) => Outcome::Ok,
            };
            let answer = UpstreamAnswer { kind: answer.kind, value: answer.value, facts, outcome };
            let rpc_code = if record.is_traced() { answer.rpc_code() } else { None };
            let took = record.attempt_ends(now, AttemptEnd::answered(outcome, rpc_code));
            permits.answered(outcome, now);
            server.answered(took, clock::timestamp());
            Ok(answer)
        }
        Err(error) => {
            let trial = Trial::ended(server, &lease, left);
            Err(fail(entry, record, permits, error.into(), trial))
        }
    }
}

/// What a failed attempt had to go with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    /// Its time.
    pub(super) limit: Duration,
    /// Whether we closed its connection.
    pub(super) ours: bool,
    /// Where its call can be found.
    pub(super) trace: Option<TraceId>,
    /// Whether nothing is kept of what the server says.
    pub(super) in_our_words: bool,
}

impl Trial {
    pub(super) const fn of(limit: Duration) -> Self {
        Self { limit, ours: false, trace: None, in_our_words: false }
    }

    /// One that failed over `lease`, which is given up if it is dead by now. That must not look as if
    /// we had closed it before.
    pub(super) fn ended(server: &ServerHandle, lease: &SessionLease, limit: Duration) -> Self {
        let ours = lease.has_ended();
        if !lease.is_alive() {
            server.give_up(lease);
        }
        Self { ours, ..Self::of(limit) }
    }

    /// What the failure says of the server, which was promised `promised` for an answer.
    pub(super) fn verdict(
        self,
        server: &ServerHandle,
        error: &UpstreamError,
        promised: Duration,
        is_probe: bool,
    ) -> Verdict {
        let verdict = if self.ours || is_probe && error.is_second_hand() {
            Verdict::Neutral
        } else if error.ran_out_of_time(server.settings.connect_timeout) {
            policy::verdict_of_silence(self.limit, promised)
        } else {
            policy::verdict_of(error.blame(), server.settings.breaker.count_http_4xx)
        };
        if verdict == Verdict::Failure && error.failure() == Failure::NotSent {
            let problem = match self.in_our_words {
                true => error.in_our_words(),
                false => error.to_string(),
            };
            server.unreachable(&problem, clock::timestamp(), self.trace);
        }
        verdict
    }
}

/// Asks a server for a sign of life that runs nothing, before a caller's tool is risked on it.
async fn show_life(lease: &SessionLease, limit: Duration) -> Result<(), UpstreamError> {
    let method = match lease.peer().version.era() {
        Era::Legacy => "ping",
        Era::Modern => "server/discover",
    };
    // An error is an answer, and an answer proves life. So does a status that is not the server's own
    // failure: the call is to show whether it is turned away, too.
    match lease.request(&OutgoingRequest::new(method), limit, None).await {
        Ok(_answer) => Ok(()),
        Err(error) if error.http_status().is_some_and(|status| status < 500) => Ok(()),
        // The call itself was not sent.
        Err(error) => Err(UpstreamError::NoLife(error)),
    }
}

fn fail(
    entry: &CatalogueEntry,
    record: &mut CallRecord,
    permits: Permits<'_>,
    error: UpstreamError,
    trial: Trial,
) -> RouteError {
    let server = &entry.server;
    let promised = entry.timeout.min(server.settings.call_deadline_for(entry.timeout));
    let in_our_words = record.in_our_words();
    let trial = Trial { trace: record.trace(), in_our_words, ..trial };
    let verdict = trial.verdict(server, &error, promised, permits.is_probe());
    let subject = format!("tool `{}` of", entry.tool);
    if let Some(status) = error.http_status().filter(|_| !error.is_second_hand()) {
        server.answered_status(status);
    }
    let failed = UpstreamFailure::new(server, subject, error, trial.limit, replay_safe(entry));
    let kept = failed.kept_problem(in_our_words);
    let now = clock::uptime();
    if matches!(verdict, Verdict::Failure | Verdict::Unanswered) {
        let problem = record.redacted(&kept);
        permits.failed(failed.failure, verdict, now, &problem, trial.trace);
    } else {
        permits.neutral(now);
    }
    record.attempt_ends(
        now,
        AttemptEnd {
            outcome: policy::outcome_of(failed.failure),
            failure: Some(failed.failure),
            error: Some(kept),
            http_status: failed.source.http_status(),
            rpc_code: None,
        },
    );
    RouteError::Upstream(Box::new(failed))
}

/// Whether the tool is declared safe to run again.
pub(super) fn replay_safe(entry: &CatalogueEntry) -> bool {
    policy::replay_safe(
        entry.replay,
        entry.server.spec.trust_annotations,
        entry.definition.read_only,
        entry.definition.idempotent,
    )
}

/// The permit of the server's breaker and, where tools have their own, that of the tool's.
struct Permits<'a> {
    /// `None` when it was reported before the attempt was over.
    server: Option<Permit<'a>>,
    tool: Option<Permit<'a>>,
    scope: BreakerScope,
}

impl<'a> Permits<'a> {
    fn acquire(
        entry: &'a CatalogueEntry,
        now: Uptime,
        left: Duration,
        turn: Turn,
    ) -> Result<Self, RouteError> {
        let breaker = &entry.server.breaker;
        let lease =
            entry.server.settings.breaker.lease.unwrap_or(left.saturating_add(LEASE_MARGIN));
        let server = breaker
            .acquire(now, lease, turn)
            .map_err(|rejection| RouteError::breaker(breaker, rejection))?;
        let tool = match &entry.breaker {
            None => None,
            Some(breaker) => Some(
                breaker
                    .acquire(now, lease, turn)
                    .map_err(|rejection| RouteError::breaker(breaker, rejection))?,
            ),
        };
        let scope = entry.server.settings.breaker.scope;
        Ok(Self { server: Some(server), tool, scope })
    }

    fn is_probe(&self) -> bool {
        [&self.server, &self.tool].into_iter().flatten().any(Permit::is_probe)
    }

    /// A probe that is answered out of the memory of the last try would say nothing.
    fn urgency(&self) -> Urgency {
        if self.is_probe() { Urgency::AtOnce } else { Urgency::Patient }
    }

    /// Whether the server must give a sign of life first. Where tools have breakers of their own,
    /// the server's waits for nothing but that: a tool that hangs must not hold the others up.
    fn wants_life(&self, probe: BreakerProbe) -> bool {
        self.is_probe() && probe == BreakerProbe::Active
            || self.scope == BreakerScope::Tool
                && self.server.as_ref().is_some_and(Permit::is_probe)
    }

    /// The attempt waited so long for ourselves.
    fn waited(&mut self, wait: Duration) {
        for permit in [&mut self.server, &mut self.tool].into_iter().flatten() {
            permit.waited(wait);
        }
    }

    /// The server gave a sign of life.
    fn lives(&mut self, now: Uptime) {
        if self.scope == BreakerScope::Tool
            && let Some(server) = self.server.take()
        {
            server.report(Verdict::Answered, now, None);
        }
    }

    fn answered(self, outcome: Outcome, now: Uptime) {
        let verdict = match outcome {
            Outcome::Ok => Verdict::Success,
            _ => Verdict::Answered,
        };
        for permit in [self.server, self.tool].into_iter().flatten() {
            permit.report(verdict, now, None);
        }
    }

    fn neutral(self, now: Uptime) {
        for permit in [self.server, self.tool].into_iter().flatten() {
            permit.report(Verdict::Neutral, now, None);
        }
    }

    /// With a breaker for each tool, what shows that the server is away counts for the server, and
    /// what one tool may have caused counts for the tool.
    fn failed(
        self,
        failure: Failure,
        verdict: Verdict,
        now: Uptime,
        problem: &str,
        trace: Option<TraceId>,
    ) {
        let of_the_tool =
            self.tool.is_some() && matches!(failure, Failure::Timeout | Failure::Ambiguous);
        let (counts, other) =
            if of_the_tool { (self.tool, self.server) } else { (self.server, self.tool) };
        if let Some(counts) = counts {
            counts.traced(trace).report(verdict, now, Some(&problem));
        }
        if let Some(other) = other {
            other.report(Verdict::Neutral, now, None);
        }
    }
}

/// Counts a call or another request in flight for as long as it lives.
pub(super) struct InFlight<'a>(&'a prometheus::IntGauge);

impl<'a> InFlight<'a> {
    pub(super) fn new(gauge: &'a prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
