//! One attempt at the upstream: ask the breaker, connect if needed, send, classify, tell the breaker.
//!
//! Whether there is another is `again.rs`'s.

use std::time::Duration;

use crate::catalogue::CatalogueEntry;
use crate::clock;
use crate::model::{BreakerProbe, Era, Failure, Outcome, Uptime};
use crate::policy::{self, Deadline, Verdict};
use crate::pool::PoolError;
use crate::protocol::{AnswerKind, OutgoingRequest, RawObject, ResultFacts};
use crate::registry::{LeaseError, Permit, ServerHandle, SessionLease, Turn};

use super::error::{UpstreamError, UpstreamFailure};
use super::record::{AttemptEnd, CallRecord};
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
    let permits = Permits::acquire(entry, began, deadline.left(began), turn)?;
    record.attempt_begins(began, permits.is_probe());
    let _inflight = InFlight::new(&server.metrics.inflight);
    if permits.is_probe() {
        // A probe that is answered out of the memory of the last try would say nothing.
        server.try_at_once();
    }
    let leased = tokio::time::timeout(timeout, server.lease_for(&record.call.requester())).await;
    let lease = match leased.unwrap_or(Err(PoolError::Waited { waited: timeout }.into())) {
        Ok(lease) => lease,
        Err(LeaseError::Pool(error)) => {
            note_unreachable(&entry.server, error.failure(), &error);
            return Err(fail(entry, record, permits, error.into(), timeout));
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
    if permits.is_probe() && server.settings.breaker.probe == BreakerProbe::Active {
        let left = deadline.attempt(clock::uptime(), entry.timeout);
        // Boxed: few attempts are probes.
        if let Err(error) = Box::pin(show_life(server, &lease, left)).await {
            return Err(fail(entry, record, permits, error, left));
        }
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
        ..OutgoingRequest::new("tools/call")
    };
    let left = deadline.attempt(clock::uptime(), entry.timeout);
    match lease.request(&request, left, relay.as_ref()).await {
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
            record.attempt_ends(now, AttemptEnd::answered(outcome));
            permits.answered(outcome, now);
            server.answered(now.since(began), clock::timestamp());
            Ok(UpstreamAnswer { kind: answer.kind, value: answer.value, facts, outcome })
        }
        Err(error) => {
            if !lease.is_alive() {
                server.give_up(&lease);
            }
            // A session that ended was closed by us, and says nothing of the server.
            if !lease.has_ended() {
                note_unreachable(&entry.server, error.failure(), &error);
            }
            Err(fail(entry, record, permits, error.into(), left))
        }
    }
}

/// Tells the server's handle of a failure that shows that the server cannot be reached.
pub(super) fn note_unreachable(
    server: &ServerHandle,
    failure: Failure,
    error: &dyn std::fmt::Display,
) {
    if failure == Failure::NotSent {
        server.unreachable(&error.to_string(), clock::timestamp());
    }
}

/// Asks a server for a sign of life that runs nothing, before a caller's tool is risked on it.
async fn show_life(
    server: &ServerHandle,
    lease: &SessionLease,
    limit: Duration,
) -> Result<(), UpstreamError> {
    let method = match lease.peer().version.era() {
        Era::Legacy => "ping",
        Era::Modern => "server/discover",
    };
    // An error is an answer, and an answer proves life.
    match lease.request(&OutgoingRequest::new(method), limit, None).await {
        Ok(_answer) => Ok(()),
        Err(error) => {
            if !lease.is_alive() {
                server.give_up(lease);
            }
            // The call itself was not sent.
            Err(UpstreamError::NoLife(error))
        }
    }
}

fn fail(
    entry: &CatalogueEntry,
    record: &mut CallRecord,
    permits: Permits<'_>,
    error: UpstreamError,
    timeout: Duration,
) -> RouteError {
    let settings = &entry.server.settings;
    let failure = error.failure_at(settings.unavailable_is_refusal);
    let problem = entry.server.scrub(&error.to_string());
    let now = clock::uptime();
    // A caller may be in more of a hurry than the server was ever promised to bear, and earlier
    // attempts may have left little. A tenth goes by before the attempt: callers often give the very
    // limit of the server.
    let promised = entry.timeout.min(settings.call_deadline);
    let cut_short = timeout < promised.saturating_sub(promised / 10);
    let no_trial =
        cut_short && error.ran_out_of_time() || permits.is_probe() && error.is_second_hand();
    let verdict = match no_trial {
        true => Verdict::Neutral,
        false => policy::verdict_of(error.blame(), settings.breaker.count_http_4xx),
    };
    permits.failed(verdict, failure, now, &problem);
    record.attempt_ends(
        now,
        AttemptEnd {
            outcome: policy::outcome_of(failure),
            failure: Some(failure),
            error: Some(problem.clone()),
            http_status: error.http_status(),
        },
    );
    let replay_safe = replay_safe(entry);
    RouteError::Upstream(Box::new(UpstreamFailure {
        server: entry.server.name.clone(),
        subject: format!("tool `{}` of", entry.tool),
        repeat_is_safe: policy::repeat_is_safe(failure.knowledge(), replay_safe),
        timeout,
        problem,
        failure,
        known: failure.knowledge(),
        retry_after: error.retry_after(),
        source: error,
    }))
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
    server: Permit<'a>,
    tool: Option<Permit<'a>>,
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
        Ok(Self { server, tool })
    }

    fn is_probe(&self) -> bool {
        self.server.is_probe() || self.tool.as_ref().is_some_and(Permit::is_probe)
    }

    fn answered(self, outcome: Outcome, now: Uptime) {
        let verdict = match outcome {
            Outcome::Ok => Verdict::Success,
            _ => Verdict::Answered,
        };
        self.server.report(verdict, now, None);
        if let Some(tool) = self.tool {
            tool.report(verdict, now, None);
        }
    }

    /// With a breaker for each tool, what shows that the server is away counts for the server, and
    /// what one tool may have caused counts for the tool.
    fn failed(self, verdict: Verdict, failure: Failure, now: Uptime, problem: &str) {
        let Some(tool) = self.tool else {
            return self.server.report(verdict, now, Some(&problem));
        };
        let of_the_tool = matches!(failure, Failure::Timeout | Failure::Ambiguous);
        let (counts, other) = if of_the_tool { (tool, self.server) } else { (self.server, tool) };
        counts.report(verdict, now, Some(&problem));
        other.report(Verdict::Neutral, now, None);
    }
}

/// Counts a call in flight for as long as it lives.
struct InFlight<'a>(&'a prometheus::IntGauge);

impl<'a> InFlight<'a> {
    fn new(gauge: &'a prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
