//! One attempt at the upstream: connect if needed, send, classify.
//!
//! Retries will loop here: every failure leaves with its class, and nothing but this file sleeps.

use crate::catalogue::CatalogueEntry;
use crate::clock;
use crate::model::{Failure, Outcome};
use crate::policy::{self, Deadline};
use crate::pool::PoolError;
use crate::protocol::{AnswerKind, OutgoingRequest, RawObject, ResultFacts};

use super::error::UpstreamError;
use super::record::CallRecord;
use super::{RouteError, UpstreamAnswer};

/// Sends the call once.
///
/// # Errors
/// [`RouteError::Upstream`] with the class of the failure.
pub(super) async fn attempt(
    entry: &CatalogueEntry,
    deadline: Deadline,
    record: &mut CallRecord,
) -> Result<UpstreamAnswer, RouteError> {
    let server = &entry.server;
    let began = clock::uptime();
    let timeout = deadline.attempt(began, entry.timeout);
    record.attempt_begins(began);
    let _inflight = InFlight::new(&server.metrics.inflight);
    let lease = match tokio::time::timeout(timeout, server.lease()).await {
        Ok(Ok(lease)) => lease,
        Ok(Err(error)) => return Err(fail(entry, record, error.into(), timeout)),
        Err(_) => {
            let error = PoolError::Waited { waited: timeout };
            return Err(fail(entry, record, error.into(), timeout));
        }
    };
    record.sending(lease.peer().version);
    let params = record.call.params.clone();
    let parsed = params
        .as_deref()
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .and_then(|text| RawObject::parse(text).ok());
    let arguments = record.call.arguments.clone();
    let capabilities = record.call.client_capabilities.clone();
    let relay = record.relay.clone();
    let wishes = relay.as_ref().map(|relay| relay.wishes());
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
        progress: wishes.is_some_and(|wishes| wishes.progress_token.is_some()),
        log_level: wishes.and_then(|wishes| wishes.log_level),
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
            record.attempt_ends(now, outcome);
            server.answered(now.since(began), clock::timestamp());
            Ok(UpstreamAnswer { kind: answer.kind, value: answer.value, facts, outcome })
        }
        Err(error) => {
            if !lease.is_alive() {
                server.invalidate(&lease);
            }
            Err(fail(entry, record, error.into(), left))
        }
    }
}

fn fail(
    entry: &CatalogueEntry,
    record: &mut CallRecord,
    error: UpstreamError,
    timeout: std::time::Duration,
) -> RouteError {
    let failure = error.failure();
    record.attempt_ends(clock::uptime(), policy::outcome_of(failure));
    if matches!(failure, Failure::NotSent) {
        entry.server.unreachable(&error.to_string(), clock::timestamp());
    }
    let replay_safe = policy::replay_safe(
        entry.replay,
        entry.server.spec.trust_annotations,
        entry.definition.read_only,
        entry.definition.idempotent,
    );
    RouteError::Upstream {
        server: entry.server.name.clone(),
        tool: entry.tool.clone(),
        repeat_is_safe: policy::repeat_is_safe(failure, replay_safe),
        timeout,
        problem: entry.server.scrub(&error.to_string()),
        source: error,
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
