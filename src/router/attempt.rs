//! One attempt at the upstream: connect if needed, send, classify.
//!
//! Retries will loop here: every failure leaves with its class, and nothing but this file sleeps.

use crate::catalogue::CatalogueEntry;
use crate::clock;
use crate::model::{Failure, Outcome};
use crate::policy::{self, Deadline};
use crate::pool::PoolError;
use crate::protocol::{AnswerKind, OutgoingRequest, RawObject, ResultFacts};
use crate::registry::{LeaseError, ServerHandle};

use super::error::UpstreamError;
use super::record::CallRecord;
use super::{RouteError, UpstreamAnswer};

/// Sends the call once.
///
/// # Errors
/// [`RouteError::Upstream`] with the class of the failure; where the server is isolated, also
/// [`RouteError::SessionsFull`] and [`RouteError::SessionEnded`].
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
    let leased = tokio::time::timeout(timeout, server.lease_for(&record.call.requester())).await;
    let lease = match leased.unwrap_or(Err(PoolError::Waited { waited: timeout }.into())) {
        Ok(lease) => lease,
        Err(LeaseError::Pool(error)) => {
            note_unreachable(&entry.server, error.failure(), &error);
            return Err(fail(entry, record, error.into(), timeout));
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
                server.give_up(&lease);
            }
            // A session that ended was closed by us, and says nothing of the server.
            if !lease.has_ended() {
                note_unreachable(&entry.server, error.failure(), &error);
            }
            Err(fail(entry, record, error.into(), left))
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

fn fail(
    entry: &CatalogueEntry,
    record: &mut CallRecord,
    error: UpstreamError,
    timeout: std::time::Duration,
) -> RouteError {
    let failure = error.failure();
    record.attempt_ends(clock::uptime(), policy::outcome_of(failure));
    let replay_safe = policy::replay_safe(
        entry.replay,
        entry.server.spec.trust_annotations,
        entry.definition.read_only,
        entry.definition.idempotent,
    );
    RouteError::Upstream {
        server: entry.server.name.clone(),
        subject: format!("tool `{}` of", entry.tool),
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
