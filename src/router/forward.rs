//! [`Router::forward`]: a request other than a tool call, to the server that owns its subject.
//!
//! Prompts, resources and completion take the same way as calls (a place at the server, one
//! deadline, one attempt) and make no ledger entry: the ledger is of tool calls.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::record::trace_of;
use super::spans::{self, Ended};
use super::upstream::{UpstreamError, UpstreamFailure, is_server_fault};
use super::{RouteError, Router, UpstreamAnswer};
use crate::clock;
use crate::error::ErrorCode;
use crate::model::{
    CallId, Caller, CallerTrace, Entrance, Outcome, ProtocolVersion, Requester, SessionRef,
};
use crate::policy::{self, Deadline, Verdict};
use crate::pool::{PoolError, Relay, TransportError, Urgency};
use crate::protocol::{Answer, AnswerKind, OutgoingRequest, RawObject, ResultFacts};
use crate::registry::{LeaseError, Permit, ServerHandle, Turn};
use crate::telemetry::Operation;

use super::attempt::{LEASE_MARGIN, Trial};

/// A request and where it goes.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The request's id.
    pub id: CallId,
    /// Who makes it.
    pub caller: Arc<Caller>,
    /// The legacy session it belongs to, if any.
    pub session: Option<Arc<SessionRef>>,
    /// JSON-RPC method.
    pub method: &'static str,
    /// The server that owns what the request is about.
    pub server: Arc<ServerHandle>,
    /// The version in force for the request, for the metrics.
    pub version: ProtocolVersion,
    /// `params` as received.
    pub params: Option<Bytes>,
    /// The server's own name for the prompt, in the place of the caller's.
    pub name: Option<String>,
    /// The server's own address of the resource, in the place of the caller's.
    pub uri: Option<String>,
    /// `ref` of a completion as the server knows it, as JSON.
    pub reference: Option<String>,
    /// What the client can do, as JSON.
    pub client_capabilities: Option<Bytes>,
    /// To which trace it belongs, where the client says so.
    pub trace: Option<Arc<CallerTrace>>,
    /// The id of its JSON-RPC request, as JSON.
    pub request_id: Option<Bytes>,
}

impl Router {
    /// Forwards one request. Dropping the future cancels it at the server.
    ///
    /// # Errors
    /// As [`Router::call`].
    pub async fn forward(
        &self,
        forward: &Forward,
        relay: Option<&Arc<Relay>>,
    ) -> Result<UpstreamAnswer, RouteError> {
        let operation = self.begin(forward.trace.as_deref());
        let mut span = operation.map(|operation| Underway { forward, operation, ended: None });
        let operation = span.as_ref().map(|span| &span.operation);
        let answer = self.admit_and_forward(forward, relay, operation).await;
        if let Some(span) = &mut span {
            span.ended = Some(ended_for_client(forward, &answer));
        }
        answer
    }

    async fn admit_and_forward(
        &self,
        forward: &Forward,
        relay: Option<&Arc<Relay>>,
        operation: Option<&Operation>,
    ) -> Result<UpstreamAnswer, RouteError> {
        let server = &forward.server;
        if !server.enabled {
            return Err(RouteError::ServerDisabled { server: server.name.clone() });
        }
        let began = clock::uptime();
        let deadline = Deadline::new(began, server.settings.call_deadline);
        let waiting = |change| server.metrics.queue_depth.add(change);
        let place = server.limiter.enter(deadline.left(began), waiting).await;
        let _place = place.ok().ok_or_else(|| RouteError::Overloaded {
            server: server.name.clone(),
            limit: server.settings.max_concurrency,
        })?;
        let answer = self.forward_once(forward, deadline, relay, operation).await;
        let took = clock::uptime().since(began);
        let ok = answer.as_ref().is_ok_and(|answer| answer.outcome == Outcome::Ok);
        self.metrics.observe_operation(forward.method, forward.version, ok, took);
        answer
    }

    async fn forward_once(
        &self,
        forward: &Forward,
        deadline: Deadline,
        relay: Option<&Arc<Relay>>,
        operation: Option<&Operation>,
    ) -> Result<UpstreamAnswer, RouteError> {
        let server = &forward.server;
        let began = clock::uptime();
        let limit = deadline.attempt(began, server.settings.timeout);
        // It may take its time twice: for the connection, and for the answer.
        let rest = deadline.left(began).saturating_add(LEASE_MARGIN);
        let lease = server.settings.breaker.lease.unwrap_or(rest);
        let permit = server
            .breaker
            .acquire(began, lease, Turn::First)
            .map_err(|rejection| RouteError::breaker(&server.breaker, rejection))?;
        let urgency = if permit.is_probe() { Urgency::AtOnce } else { Urgency::Patient };
        let attempt = operation.and_then(Operation::attempt);
        let note = |version: Option<ProtocolVersion>, ended: Ended| {
            if let Some((operation, attempt)) = operation.zip(attempt) {
                let sent_as = operation.sent_as.load(Ordering::Relaxed);
                let said = spans::forward_attempt(forward, version, sent_as, ended);
                operation.attempted(attempt, began, clock::uptime(), said);
            }
        };
        let session = forward.session.as_deref();
        let requester = Requester { id: forward.id, caller: &forward.caller, session };
        let trace = trace_of(operation, forward.trace.as_deref());
        let trial = Trial { trace, ..Trial::of(limit) };
        let leased = tokio::time::timeout(limit, server.lease_for(&requester, urgency)).await;
        let waited = || Err(PoolError::Waited { waited: limit }.into());
        let lease = match leased.unwrap_or_else(|_elapsed| waited()) {
            Ok(lease) => lease,
            Err(LeaseError::Pool(error)) => {
                note(None, Ended::failed(policy::outcome_of(error.failure())));
                return Err(self.failed(forward, permit, error.into(), trial));
            }
            Err(LeaseError::SessionsFull { limit }) => {
                return Err(RouteError::SessionsFull { server: server.name.clone(), limit });
            }
            Err(LeaseError::SessionEnded) => {
                return Err(RouteError::SessionEnded { server: server.name.clone() });
            }
        };
        let text = |bytes: &'_ Option<Bytes>| {
            bytes.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok()).map(str::to_owned)
        };
        let (params, capabilities) = (text(&forward.params), text(&forward.client_capabilities));
        let params = params.as_deref().and_then(|text| RawObject::parse(text).ok());
        let wishes = relay.map(|relay| relay.wishes());
        let caller = forward.trace.as_deref();
        let trace = match operation {
            Some(operation) => {
                operation.outgoing(attempt, caller.and_then(|caller| caller.baggage.as_deref()))
            }
            None => caller.map(CallerTrace::unchanged).unwrap_or_default(),
        };
        let request = OutgoingRequest {
            params: params.as_ref(),
            name: forward.name.as_deref(),
            uri: forward.uri.as_deref(),
            reference: forward.reference.as_deref(),
            client_capabilities: capabilities.as_deref().unwrap_or("{}"),
            progress: wishes.is_some_and(|wishes| wishes.progress_token.is_some()),
            log_level: wishes
                .filter(|wishes| wishes.asks_for_log)
                .and_then(|wishes| wishes.log_level),
            trace,
            sent_as: operation.map(|operation| &operation.sent_as),
            ..OutgoingRequest::new(forward.method)
        };
        let left = deadline.attempt(clock::uptime(), server.settings.timeout);
        if left.is_zero() {
            let error = PoolError::Waited { waited: limit };
            note(None, Ended::failed(policy::outcome_of(error.failure())));
            return Err(self.failed(forward, permit, error.into(), trial));
        }
        let answered = lease.request(&request, left, relay).await;
        note(Some(lease.peer().version), ended_at_server(&answered));
        match answered {
            Ok(answer) if is_server_fault(&answer) => {
                let trial = Trial { trace: trial.trace, ..Trial::ended(server, &lease, left) };
                self.failed(forward, permit, UpstreamError::Answered(answer), trial).into_answer()
            }
            Ok(answer) => {
                let now = clock::uptime();
                server.answered(now.since(began), clock::timestamp());
                let facts = match answer.kind {
                    AnswerKind::Result => ResultFacts::of(&answer.value),
                    AnswerKind::Error => ResultFacts::default(),
                };
                let outcome = match answer.kind {
                    AnswerKind::Result => Outcome::Ok,
                    AnswerKind::Error => Outcome::RpcError,
                };
                let verdict = match outcome {
                    Outcome::Ok => Verdict::Success,
                    _ => Verdict::Answered,
                };
                permit.report(verdict, now, None);
                Ok(UpstreamAnswer { kind: answer.kind, value: answer.value, facts, outcome })
            }
            Err(error) => {
                let trial = Trial { trace: trial.trace, ..Trial::ended(server, &lease, left) };
                Err(self.failed(forward, permit, error.into(), trial))
            }
        }
    }

    fn failed(
        &self,
        forward: &Forward,
        permit: Permit<'_>,
        error: UpstreamError,
        trial: Trial,
    ) -> RouteError {
        let server = &forward.server;
        let promised = server.settings.timeout.min(server.settings.call_deadline);
        let verdict = trial.verdict(server, &error, promised, permit.is_probe());
        let subject = format!("{} at", forward.method);
        // Nothing of this kind changes anything, so that a repeat is safe.
        let failed = UpstreamFailure::new(server, subject, error, trial.limit, true);
        let problem = self.audit.redacted(&failed.problem);
        permit.traced(trial.trace).report(verdict, clock::uptime(), Some(&problem));
        RouteError::Upstream(Box::new(failed))
    }
}

/// A request under way; dropped before it ended, its client went away.
struct Underway<'a> {
    forward: &'a Forward,
    operation: Operation,
    ended: Option<Ended>,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let cancelled =
            || Ended::refused(ErrorCode::Cancelled, Entrance::Mcp(self.forward.version));
        let ended = self.ended.take().unwrap_or_else(cancelled);
        if self.operation.trace().is_some() {
            self.operation.ends(clock::uptime(), spans::forwarded(self.forward, ended));
        }
    }
}

fn ended_for_client(forward: &Forward, answer: &Result<UpstreamAnswer, RouteError>) -> Ended {
    match answer {
        Ok(answer) => Ended::answered(answer.outcome, answer.rpc_code()),
        Err(error) => Ended::refused(error.code(), Entrance::Mcp(forward.version)),
    }
}

fn ended_at_server(answer: &Result<Answer, TransportError>) -> Ended {
    match answer {
        Ok(Answer { kind: AnswerKind::Result, .. }) => Ended::answered(Outcome::Ok, None),
        Ok(Answer { kind: AnswerKind::Error, value, .. }) => {
            Ended::answered(Outcome::RpcError, spans::rpc_code(value))
        }
        Err(error) => Ended::failed(policy::outcome_of(error.failure())),
    }
}
