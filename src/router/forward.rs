//! [`Router::forward`]: a request other than a tool call, to the server that owns its subject.
//!
//! Prompts, resources and completion take the same way as calls (a place at the server, one
//! deadline, one attempt), are in the same figures, and make no ledger entry: the ledger is of tool
//! calls.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::answer::code_of;
use super::record::trace_of;
use super::spans::{self, Ended};
use super::upstream::{UpstreamError, UpstreamFailure, is_server_fault};
use super::{RouteError, Router, UpstreamAnswer};
use crate::clock;
use crate::error::ErrorCode;
use crate::metrics::CallLabels;
use crate::model::{
    AuthKind, CallId, Caller, CallerTrace, Entrance, Failure, Outcome, ProtocolVersion, Requester,
    ResultsLevel, SessionRef, SpanId, ToolTarget, Uptime, Via,
};
use crate::policy::{self, Deadline, Verdict};
use crate::pool::{PoolError, Relay, Urgency};
use crate::protocol::{AnswerKind, OutgoingRequest, RawObject, ResultFacts};
use crate::registry::{LeaseError, Permit, ServerHandle, Turn};
use crate::telemetry::Operation;

use super::attempt::{InFlight, LEASE_MARGIN, Trial};

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
    /// On what it came.
    pub via: Via,
    /// What it is about as its client knows it, where that is a name or an address of the catalogue.
    pub exposed: Option<Arc<str>>,
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
        let mut underway = Underway::new(self, forward);
        let answer = self.admit_and_forward(relay, &mut underway).await;
        underway.told = Some(told(forward, &answer));
        answer
    }

    /// Puts into figures and trace that a request ended because its client did not give what its
    /// server asked for.
    pub fn forward_unanswered(&self, forward: &Forward) {
        let (code, entrance) = (ErrorCode::InputRequired, Entrance::Mcp(forward.version));
        let mut underway = Underway::new(self, forward);
        underway.told = Some((Some(code), Ended::refused(code, entrance)));
    }

    async fn admit_and_forward(
        &self,
        relay: Option<&Arc<Relay>>,
        underway: &mut Underway<'_>,
    ) -> Result<UpstreamAnswer, RouteError> {
        let forward = underway.forward;
        let server = &forward.server;
        if !server.enabled {
            return Err(RouteError::ServerDisabled { server: server.name.clone() });
        }
        let deadline = Deadline::new(underway.began, server.settings.call_deadline);
        let waiting = |change| server.metrics.queue_depth.add(change);
        let place = server.limiter.enter(deadline.left(underway.began), waiting).await;
        let _place = place.ok().ok_or_else(|| RouteError::Overloaded {
            server: server.name.clone(),
            limit: server.settings.max_concurrency,
        })?;
        self.forward_once(deadline, relay, underway).await
    }

    async fn forward_once(
        &self,
        deadline: Deadline,
        relay: Option<&Arc<Relay>>,
        underway: &mut Underway<'_>,
    ) -> Result<UpstreamAnswer, RouteError> {
        let forward = underway.forward;
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
        underway.attempt_begins(began);
        let _inflight = InFlight::new(&server.metrics.inflight);
        let session = forward.session.as_deref();
        let requester = Requester { id: forward.id, caller: &forward.caller, session };
        let trace = trace_of(underway.operation.as_ref(), forward.trace.as_deref());
        let trial = Trial { trace, ..Trial::of(limit) };
        let leased = tokio::time::timeout(limit, server.lease_for(&requester, urgency)).await;
        let waited = || Err(PoolError::Waited { waited: limit }.into());
        let lease = match leased.unwrap_or_else(|_elapsed| waited()) {
            Ok(lease) => lease,
            Err(LeaseError::Pool(error)) => {
                underway.attempt_failed(error.failure());
                return Err(self.failed(forward, permit, error.into(), trial));
            }
            Err(LeaseError::SessionsFull { limit }) => {
                underway.attempt = None;
                return Err(RouteError::SessionsFull { server: server.name.clone(), limit });
            }
            Err(LeaseError::SessionEnded) => {
                underway.attempt = None;
                return Err(RouteError::SessionEnded { server: server.name.clone() });
            }
        };
        underway.attempt_speaks(lease.peer().version);
        let text = |bytes: &'_ Option<Bytes>| {
            bytes.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok()).map(str::to_owned)
        };
        let (params, capabilities) = (text(&forward.params), text(&forward.client_capabilities));
        let params = params.as_deref().and_then(|text| RawObject::parse(text).ok());
        let wishes = relay.map(|relay| relay.wishes());
        let caller = forward.trace.as_deref();
        let operation = underway.operation.as_ref();
        let trace = match operation {
            Some(operation) => {
                let span = underway.attempt.as_ref().and_then(|attempt| attempt.span);
                operation.outgoing(span, caller.and_then(|caller| caller.baggage.as_deref()))
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
            underway.attempt_failed(error.failure());
            return Err(self.failed(forward, permit, error.into(), trial));
        }
        let answered = lease.request(&request, left, relay).await;
        match answered {
            Ok(answer) if is_server_fault(&answer) => {
                let outcome = Outcome::RpcError;
                let ended = Ended::answered(outcome, spans::rpc_code(&answer.value));
                underway.attempt_ends(clock::uptime(), outcome, ended);
                let trial = Trial { trace: trial.trace, ..Trial::ended(server, &lease, left) };
                self.failed(forward, permit, UpstreamError::Answered(answer), trial).into_answer()
            }
            Ok(answer) => {
                let now = clock::uptime();
                let facts = match answer.kind {
                    AnswerKind::Result => ResultFacts::of(&answer.value),
                    AnswerKind::Error => ResultFacts::default(),
                };
                let outcome = match answer.kind {
                    AnswerKind::Result => Outcome::Ok,
                    AnswerKind::Error => Outcome::RpcError,
                };
                let answer =
                    UpstreamAnswer { kind: answer.kind, value: answer.value, facts, outcome };
                underway.attempt_ends(now, outcome, Ended::answered(outcome, answer.rpc_code()));
                server.answered(now.since(began), clock::timestamp());
                let verdict = match outcome {
                    Outcome::Ok => Verdict::Success,
                    _ => Verdict::Answered,
                };
                permit.report(verdict, now, None);
                Ok(answer)
            }
            Err(error) => {
                underway.attempt_failed(error.failure());
                let trial = Trial { trace: trial.trace, ..Trial::ended(server, &lease, left) };
                Err(self.failed(forward, permit, error.into(), trial))
            }
        }
    }

    /// Whether nothing would be kept of the results of a tool that its server says nothing of.
    fn keeps_no_results(&self, forward: &Forward) -> bool {
        let target = ToolTarget { server: Some(forward.server.name.clone()), tool: String::new() };
        let client = forward.session.as_ref().map(|session| session.client.name.as_str());
        let levels = self.discovery.recording_of(&target).levels;
        levels.of_call(&forward.caller.name, client).1 == ResultsLevel::None
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
        let in_our_words = self.keeps_no_results(forward);
        let trial = Trial { in_our_words, ..trial };
        let verdict = trial.verdict(server, &error, promised, permit.is_probe());
        let subject = format!("{} at", forward.method);
        if let Some(status) = error.http_status().filter(|_| !error.is_second_hand()) {
            server.answered_status(status);
        }
        // Nothing of this kind changes anything, so that a repeat is safe.
        let failed = UpstreamFailure::new(server, subject, error, trial.limit, true);
        let problem = self.audit.redacted(&failed.kept_problem(in_our_words));
        permit.traced(trial.trace).report(verdict, clock::uptime(), Some(&problem));
        RouteError::Upstream(Box::new(failed))
    }
}

/// The attempt at a server.
struct Attempt {
    began: Uptime,
    /// The id of its span, where it is recorded.
    span: Option<SpanId>,
    /// The version spoken, once that is known.
    version: Option<ProtocolVersion>,
}

/// A request under way, which leaves its figures and spans whatever becomes of it; dropped before it
/// ended, its client went away.
struct Underway<'a> {
    router: &'a Router,
    forward: &'a Forward,
    operation: Option<Operation>,
    began: Uptime,
    /// While there is one.
    attempt: Option<Attempt>,
    /// What the client is told.
    told: Option<(Option<ErrorCode>, Ended)>,
}

impl<'a> Underway<'a> {
    fn new(router: &'a Router, forward: &'a Forward) -> Self {
        let operation = router.begin(forward.trace.as_deref());
        Self { router, forward, operation, began: clock::uptime(), attempt: None, told: None }
    }

    fn attempt_begins(&mut self, began: Uptime) {
        let span = self.operation.as_ref().and_then(Operation::attempt);
        self.attempt = Some(Attempt { began, span, version: None });
    }

    fn attempt_speaks(&mut self, version: ProtocolVersion) {
        if let Some(attempt) = &mut self.attempt {
            attempt.version = Some(version);
        }
    }

    fn attempt_failed(&mut self, failure: Failure) {
        let outcome = policy::outcome_of(failure);
        self.attempt_ends(clock::uptime(), outcome, Ended::failed(outcome));
    }

    fn attempt_ends(&mut self, now: Uptime, outcome: Outcome, ended: Ended) {
        let Some(Attempt { began, span, version }) = self.attempt.take() else { return };
        let (forward, server) = (self.forward, &self.forward.server);
        let how = (server.spec.transport.kind(), outcome);
        let took = now.since(began);
        self.router.metrics.observe_forwarded(forward.method, &server.name, version, how, took);
        if let Some((operation, span)) = self.operation.as_ref().zip(span) {
            let sent_as = operation.sent_as.load(Ordering::Relaxed);
            let clean = |text: &str| self.router.audit.redacted(text);
            let said = spans::forward_attempt(forward, version, sent_as, ended, &clean);
            operation.attempted(span, began, now, said);
        }
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let now = clock::uptime();
        self.attempt_ends(now, Outcome::Cancelled, Ended::failed(Outcome::Cancelled));
        let entrance = Entrance::Mcp(self.forward.version);
        let (error, ended) = self.told.take().unwrap_or_else(|| {
            (Some(ErrorCode::Cancelled), Ended::refused(ErrorCode::Cancelled, entrance))
        });
        let over_socket = self.forward.caller.auth == AuthKind::Socket;
        let labels = CallLabels { entrance, over_socket, error };
        let took = now.since(self.began);
        self.router.metrics.observe_operation(self.forward.method, labels, took);
        if let Some(operation) = self.operation.as_ref().filter(|known| known.trace().is_some()) {
            let clean = |text: &str| self.router.audit.redacted(text);
            operation.ends(now, spans::forwarded(self.forward, ended, &clean));
        }
    }
}

fn told(
    forward: &Forward,
    answer: &Result<UpstreamAnswer, RouteError>,
) -> (Option<ErrorCode>, Ended) {
    match answer {
        Ok(answer) => (code_of(answer.outcome), Ended::answered(answer.outcome, answer.rpc_code())),
        Err(error) => {
            (Some(error.code()), Ended::refused(error.code(), Entrance::Mcp(forward.version)))
        }
    }
}
