//! The MCP endpoint: which era a request belongs to, and what both eras share.
//!
//! Changes when the downstream side of the protocol changes. The era is decided for each request;
//! nothing of a connection is remembered (specification 2026-07-28, basic/versioning).

mod legacy;
mod listen;
mod lists;
mod methods;
mod modern;
mod render;
mod reply;
mod resume;
mod rounds;
mod session;
mod stream;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Method, Response, StatusCode};
use serde_json::value::RawValue;

use super::Edge;
use super::auth::RequestContext;
use super::door::Body;
use super::sessions::Session;
use super::tally::Denied;
use crate::error::ErrorCode;
use crate::metrics::AuthFailure;
use crate::model::{CallerTrace, ClientInfo, Era, ProtocolVersion, Scope, cut_after};
use crate::protocol::{
    CallParams, Incoming, ModernMeta, RawObject, RequestMeta, RpcErrorCode, is_batch,
};
use crate::router::{Refusal, RefusedAt};

pub use listen::Listeners;
pub(super) use listen::tell_session;
use reply::rpc_error;
pub(super) use session::Live;

static SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
static VERSION_HEADER: HeaderName = HeaderName::from_static("mcp-protocol-version");
static METHOD_HEADER: HeaderName = HeaderName::from_static("mcp-method");
static NAME_HEADER: HeaderName = HeaderName::from_static("mcp-name");

/// What we declare to clients of both eras. Which servers there are, and what they offer, can
/// change at any moment, so everything that could be asked for is declared.
const CAPABILITIES: &str = r#"{"tools":{"listChanged":true},"prompts":{"listChanged":true},"resources":{"subscribe":true,"listChanged":true},"completions":{},"logging":{}}"#;

/// What `initialize` and `server/discover` tell a client that asks how to use us.
const INSTRUCTIONS: &str =
    "One endpoint in front of several MCP servers. A tool is named SERVER__TOOL.";

/// Answers `POST /mcp`, and the same at a view.
pub(super) async fn post(
    edge: &Arc<Edge>,
    context: RequestContext,
    headers: &HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let announced =
        headers.get(&VERSION_HEADER).map(|value| value.to_str().unwrap_or_default().trim());
    let known = announced.map(ProtocolVersion::parse);
    let version = known.flatten();
    let request = Refusing { edge, context: &context, body: &body, version, who: Who::default() };
    let batch = is_batch(&body) && !matches!(known, Some(Some(v)) if v.era() == Era::Modern);
    let parsed = if batch { Ok(Incoming::nothing()) } else { Incoming::parse(&body) };
    if [&VERSION_HEADER, &SESSION_ID].iter().any(|name| headers.get_all(*name).iter().count() > 1) {
        let message = "the headers MCP-Protocol-Version and Mcp-Session-Id must not stand twice";
        let (status, code) = (StatusCode::BAD_REQUEST, RpcErrorCode::HeaderMismatch);
        return request.turn_away(parsed.as_ref().ok(), status, code, message, None).await;
    }
    if let Some((status, message)) = check_content(headers) {
        let code = RpcErrorCode::InvalidRequest;
        return request.turn_away(parsed.as_ref().ok(), status, code, message, None).await;
    }
    if let Some(refused) = may_call(edge, &context, &Method::POST) {
        let status = StatusCode::FORBIDDEN;
        let code = RpcErrorCode::Internal;
        return request.turn_away(parsed.as_ref().ok(), status, code, &refused, None).await;
    }
    let incoming = match parsed {
        Ok(incoming) => incoming,
        Err(error) => {
            // It may have been a call; nobody can tell.
            let (id, status) = (error.id.as_deref(), StatusCode::BAD_REQUEST);
            let told = Told { status, code: error.code, message: &error.message };
            request.record(id, None, String::new(), told).await;
            return rpc_error(status, id, error.code, &error.message, None);
        }
    };
    let (method, params) = match &incoming {
        Incoming::Request { method, params, .. } | Incoming::Notification { method, params } => {
            (method.as_ref(), *params)
        }
        Incoming::Response { .. } => ("", None),
    };
    match (announced, known.flatten()) {
        (_, version) if method == "initialize" && !ModernMeta::is_present(params) => {
            let version = version.filter(|version| version.era() == Era::Legacy);
            legacy::post(edge, context, headers, &body, &incoming, version).await
        }
        (Some(_), Some(version)) if version.era() == Era::Modern => {
            modern::post(edge, context, headers, &body, &incoming, version).await
        }
        (Some(_), Some(version)) if batch => {
            Box::pin(legacy::post_batch(edge, context, headers, &body, Some(version))).await
        }
        (None, _) if batch => {
            Box::pin(legacy::post_batch(edge, context, headers, &body, None)).await
        }
        (Some(_), Some(version)) => {
            legacy::post(edge, context, headers, &body, &incoming, Some(version)).await
        }
        (Some(text), None) => request.unsupported_version(&incoming, text).await,
        (None, _) if ModernMeta::is_present(params) => {
            let message = "the header MCP-Protocol-Version is missing; a request with a protocol version in `_meta` needs it";
            let status = StatusCode::BAD_REQUEST;
            let code = RpcErrorCode::HeaderMismatch;
            let said = ModernMeta::parse(params).ok();
            let version = said.and_then(|said| ProtocolVersion::parse(&said.version));
            let request = Refusing { version, ..request };
            request.turn_away(Some(&incoming), status, code, message, None).await
        }
        (None, _) => legacy::post(edge, context, headers, &body, &incoming, None).await,
    }
}

/// The version that a request's headers announce, where they say one that we know.
pub(super) fn announced(headers: &HeaderMap) -> Option<ProtocolVersion> {
    let mut values = headers.get_all(&VERSION_HEADER).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    ProtocolVersion::parse(value.to_str().ok()?.trim())
}

/// Answers `GET /mcp`, a session's stream, and `DELETE /mcp`, its end; `None` for other methods,
/// and for clients of the modern era, which has neither.
pub(super) async fn of_session(
    edge: &Arc<Edge>,
    context: &RequestContext,
    method: &Method,
    headers: &HeaderMap,
) -> Option<Response<Body>> {
    let version = headers
        .get(&VERSION_HEADER)
        .map(|value| value.to_str().ok().and_then(|text| ProtocolVersion::parse(text.trim())));
    let has_session = headers.contains_key(&SESSION_ID);
    match version {
        Some(Some(version)) if version.era() == Era::Modern => return None,
        Some(None) => {
            let message = "the protocol version in MCP-Protocol-Version is not supported";
            let code = RpcErrorCode::InvalidRequest;
            return Some(rpc_error(StatusCode::BAD_REQUEST, None, code, message, None));
        }
        Some(Some(_)) => {}
        None if !has_session => return None,
        None => {}
    }
    if !matches!(*method, Method::GET | Method::DELETE) {
        return None;
    }
    if let Some(refused) = may_call(edge, context, method) {
        let code = RpcErrorCode::Internal;
        return Some(rpc_error(StatusCode::FORBIDDEN, None, code, &refused, None));
    }
    if *method == Method::DELETE {
        return Some(legacy::delete(edge, context, headers).await);
    }
    if !accepts(headers, &["text/event-stream", "text/*", "*/*"]) {
        let message = "the Accept header must list text/event-stream";
        let code = RpcErrorCode::InvalidRequest;
        return Some(rpc_error(StatusCode::NOT_ACCEPTABLE, None, code, message, None));
    }
    Some(legacy::stream(edge, context, headers))
}

/// Why the caller may not use the endpoint.
fn may_call(edge: &Edge, context: &RequestContext, method: &Method) -> Option<String> {
    (!context.caller.may(Scope::Call)).then(|| {
        let says = format!("the key `{}` lacks the scope `call`", context.caller.name);
        let path = if context.view.is_some() { "/mcp/v/{view}" } else { "/mcp" };
        let (caller, peer) = (&context.caller.name, context.via.address());
        edge.denied(AuthFailure::Scope, &Denied { caller, method, path, peer, says: &says });
        says
    })
}

/// A request that may be turned away before there is a call.
struct Refusing<'a> {
    edge: &'a Edge,
    context: &'a RequestContext,
    body: &'a Bytes,
    /// As far as it is known.
    version: Option<ProtocolVersion>,
    who: Who<'a>,
}

/// Which client it is, as far as that is known.
#[derive(Default)]
struct Who<'a> {
    session: Option<&'a Arc<Session>>,
    client: Option<&'a ClientInfo>,
}

/// What the client is told.
#[derive(Clone, Copy)]
struct Told<'a> {
    status: StatusCode,
    code: RpcErrorCode,
    message: &'a str,
}

impl Refusing<'_> {
    /// Answers with an error; a `tools/call` among the refused is put on record.
    async fn turn_away(
        &self,
        incoming: Option<&Incoming<'_>>,
        status: StatusCode,
        code: RpcErrorCode,
        message: &str,
        data: Option<&str>,
    ) -> Response<Body> {
        let mut id = None;
        if let Some(Incoming::Request { id: found, method, params }) = incoming {
            id = Some(found.json());
            if method == "tools/call" {
                let tool = CallParams::parse(*params).map(|call| call.name.into_owned());
                let told = Told { status, code, message };
                self.record(id, *params, tool.unwrap_or_default(), told).await;
            }
        }
        rpc_error(status, id, code, message, data)
    }

    async fn unsupported_version(
        &self,
        incoming: &Incoming<'_>,
        requested: &str,
    ) -> Response<Body> {
        let data = serde_json::json!({ "supported": supported_versions(), "requested": requested });
        let shown = cut_after(requested, 64);
        let message = format!("protocol version `{shown}` is not supported");
        let code = RpcErrorCode::UnsupportedVersion;
        let data = data.to_string();
        self.turn_away(Some(incoming), StatusCode::BAD_REQUEST, code, &message, Some(&data)).await
    }

    /// Puts a refused call on record; `id` is that of its request, as JSON.
    async fn record(
        &self,
        id: Option<&str>,
        params: Option<&RawValue>,
        tool: String,
        told: Told<'_>,
    ) {
        let members = params.and_then(|raw| RawObject::parse(raw.get()).ok());
        let meta = members.as_ref().and_then(|members| RequestMeta::of(members).ok());
        let said = meta.and_then(|meta| CallerTrace::read(&meta.trace));
        let refusal = Refusal {
            id: self.context.id,
            caller: Arc::clone(&self.context.caller),
            at: RefusedAt::Mcp(self.version),
            via: self.context.via,
            session: self.who.session.map(|session| Arc::clone(&session.reference)),
            client: self.who.client.cloned(),
            request_id: id.map(|id| Bytes::copy_from_slice(id.as_bytes())),
            view: self.context.view.clone(),
            trace: CallerTrace::of_request(said, self.context.trace.as_ref()),
            tool,
            code: match told.status {
                StatusCode::FORBIDDEN => ErrorCode::Permission,
                _ => ErrorCode::InvalidRequest,
            },
            message: told.message.to_owned(),
            http_status: told.status.as_u16(),
            rpc_code: Some(told.code.number()),
            request_bytes: self.body.len() as u64,
        };
        self.edge.router.refuse(refusal).await;
    }
}

/// A body must say that it is JSON, and the client must take at least one of our two types.
fn check_content(headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    let is_json = headers.get(CONTENT_TYPE).is_some_and(|value| {
        let media = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
        media.trim().eq_ignore_ascii_case("application/json")
    });
    if !is_json {
        let message = "the Content-Type must be application/json";
        return Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let message = "the Accept header must list application/json and text/event-stream";
    let acceptable = accepts(headers, &ACCEPTABLE);
    (!acceptable).then_some((StatusCode::NOT_ACCEPTABLE, message))
}

const ACCEPTABLE: [&str; 5] =
    ["application/json", "text/event-stream", "*/*", "application/*", "text/*"];

/// Whether the client takes one of these media types; it does when it does not say.
fn accepts(headers: &HeaderMap, known: &[&str]) -> bool {
    let mut accepts = headers.get_all(ACCEPT).iter().peekable();
    accepts.peek().is_none()
        || accepts.any(|value| {
            value.to_str().unwrap_or_default().split(',').any(|range| {
                let range = range.split(';').next().unwrap_or_default().trim();
                known.iter().any(|known| range.eq_ignore_ascii_case(known))
            })
        })
}

/// Every version we speak to clients, newest first. 2024-11-05 needs another transport.
fn supported_versions() -> Vec<&'static str> {
    ProtocolVersion::ALL
        .iter()
        .rev()
        .filter(|version| **version != ProtocolVersion::V2024_11_05)
        .map(|version| version.as_str())
        .collect()
}

/// Names in messages are cut: they may be anything.
fn shown(text: &str) -> String {
    cut_after(text, 64)
}

/// `params` as an object, strictly read.
fn strict(params: Option<&RawValue>) -> Result<RawObject<'_>, String> {
    RawObject::parse(params.map_or("{}", RawValue::get))
        .map_err(|error| format!("`params`: {error}"))
}
