//! Calls that never were: refused before there was one to route, or for want of a place in the ledger.
//!
//! Changes when what is told of them does. They are in every figure that calls are in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::record::{class_of, trace_of};
use super::{CallAnswer, RouteError, Router, spans};
use crate::audit::{Attempts, AuditEntry, AuditUnavailable, ToolLabel};
use crate::clock;
use crate::error::ErrorCode;
use crate::metrics::CallLabels;
use crate::model::{
    ArgumentsLevel, AuthKind, CallId, Caller, CallerClass, CallerTrace, ClientInfo, Entrance,
    Outcome, ProtocolVersion, ResultsLevel, SessionRef, ToolCall, TraceId, Uptime, Via, ViewName,
};
use crate::telemetry::Operation;

/// Through which door a refused request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedAt {
    /// An MCP endpoint, with the protocol version as far as it was known.
    Mcp(Option<ProtocolVersion>),
    /// `POST /mcp/call`.
    Rest,
}

impl RefusedAt {
    /// What ledger and metrics count it as: without a version as the last one that had sessions.
    fn entrance(self) -> Entrance {
        match self {
            Self::Mcp(version) => Entrance::Mcp(version.unwrap_or(ProtocolVersion::LATEST_LEGACY)),
            Self::Rest => Entrance::Rest,
        }
    }

    /// The version, where it is known.
    pub(super) const fn version(self) -> Option<ProtocolVersion> {
        match self {
            Self::Mcp(version) => version,
            Self::Rest => None,
        }
    }
}

/// A refusal before there was a call to route.
#[derive(Debug)]
pub struct Refusal {
    /// The request's id.
    pub id: CallId,
    /// Who asked, as far as known.
    pub caller: Arc<Caller>,
    /// Through which door.
    pub at: RefusedAt,
    /// On what.
    pub via: Via,
    /// The legacy session it belongs to, where it was found.
    pub session: Option<Arc<SessionRef>>,
    /// What a client without a session said of itself, where it could be read.
    pub client: Option<ClientInfo>,
    /// The id of its JSON-RPC request, as JSON, where it could be read.
    pub request_id: Option<Bytes>,
    /// At which view.
    pub view: Option<ViewName>,
    /// To which trace it belongs, where its sender says so.
    pub trace: Option<Arc<CallerTrace>>,
    /// The tool asked for, where it could be read.
    pub tool: String,
    /// Why it was refused.
    pub code: ErrorCode,
    /// The same for people.
    pub message: String,
    /// The status it was answered with.
    pub http_status: u16,
    /// The code of the JSON-RPC error it was answered with, where it was one.
    pub rpc_code: Option<i64>,
    /// Bytes of the request body.
    pub request_bytes: u64,
}

impl Router {
    /// Puts a refusal on record that happened before there was a call to route: no key, no
    /// permission, malformed parameters. Its time is that from here on, which is next to nothing.
    pub async fn refuse(&self, refusal: Refusal) {
        let began = clock::uptime();
        let operation = self.begin(refusal.trace.as_deref());
        let slot = self.audit.admit().await;
        let now = clock::uptime();
        let total = now.since(began);
        if let Some(operation) = &operation {
            operation.ends(now, spans::refusal(&refusal));
        }
        let labels = CallLabels {
            entrance: refusal.at.entrance(),
            over_socket: refusal.caller.auth == AuthKind::Socket,
            error: Some(refusal.code),
        };
        self.other.observe_call(labels, total);
        if let Some(view) = self.view_metrics(refusal.view.as_ref()) {
            view.count(Outcome::Refused);
        }
        let client = refusal.session.as_ref().map(|session| session.client.as_ref());
        let client = client.or(refusal.client.as_ref());
        let named = client.is_some_and(|client| !client.name.is_empty());
        let class = CallerClass::of(refusal.caller.auth, named);
        match slot {
            Ok(slot) => {
                let trace = trace_of(operation.as_ref(), refusal.trace.as_deref());
                slot.record(entry(refusal, class, trace, total));
            }
            Err(_) => self.metrics.audit.ended(class, Outcome::Refused),
        }
    }

    /// A call that the ledger has no place for: it is in the figures and in its trace, and has no row.
    pub(super) fn unrecorded(
        &self,
        call: &ToolCall,
        operation: Option<&Operation>,
        started: Uptime,
        why: AuditUnavailable,
    ) -> CallAnswer {
        let (error, now) = (RouteError::AuditUnavailable(why), clock::uptime());
        let total = now.since(started);
        if let Some(operation) = operation {
            let ended = spans::Ended::refused(error.code(), call.entrance);
            operation.ends(now, spans::call(call, None, (Outcome::Refused, 0), ended));
        }
        let entry = self.lookup(&call.target, call.view.as_ref()).ok();
        let labels = CallLabels {
            entrance: call.entrance,
            over_socket: call.caller.auth == AuthKind::Socket,
            error: Some(error.code()),
        };
        entry.as_ref().map_or(&self.other, |entry| &entry.metrics).observe_call(labels, total);
        if let Some(view) = self.view_metrics(call.view.as_ref()) {
            view.count(Outcome::Refused);
        }
        self.metrics.audit.ended(class_of(call), Outcome::Refused);
        CallAnswer::unrecorded(call, error, total)
    }
}

fn entry(
    refusal: Refusal,
    class: CallerClass,
    trace_id: Option<TraceId>,
    total: Duration,
) -> AuditEntry {
    AuditEntry {
        id: refusal.id,
        started_at: clock::timestamp(),
        caller: Arc::clone(&refusal.caller.name),
        class,
        session: refusal.session.as_ref().map(|session| Arc::clone(&session.hash)),
        client: match refusal.session {
            Some(session) => Some(Arc::clone(&session.client)),
            None => refusal.client.map(Arc::new),
        },
        entrance: refusal.at.entrance(),
        view: refusal.view,
        tool: ToolLabel::asked(&refusal.tool),
        upstream_tool: None,
        server: None,
        definition_hash: None,
        outcome: Outcome::Refused,
        error_code: Some(refusal.code),
        error: Some(refusal.message),
        failure: None,
        http_status: refusal.http_status,
        attempts: 0,
        attempt_list: Attempts::default(),
        queue: Duration::ZERO,
        upstream: Duration::ZERO,
        total,
        request_bytes: refusal.request_bytes,
        response_bytes: 0,
        arguments: None,
        arguments_bytes: 0,
        result: None,
        levels: (ArgumentsLevel::None, ResultsLevel::None),
        pointers: None,
        trace_id,
        remote: refusal.via.address(),
        breaker: None,
    }
}
