//! The MCP endpoint: which era a request belongs to, and what both eras share.
//!
//! Changes when the downstream side of the protocol changes. The era is decided for each request;
//! nothing of a connection is remembered (specification 2026-07-28, basic/versioning).

mod legacy;
mod modern;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{Either, Full};

use super::Edge;
use super::auth::RequestContext;
use super::door::Body;
use crate::error::ErrorCode;
use crate::metrics::AuthFailure;
use crate::model::{Entrance, Era, ProtocolVersion, Scope};
use crate::protocol::{
    AnswerKind, CallParams, Incoming, ModernMeta, RpcErrorCode, error_for, error_response,
    result_for, result_response,
};
use crate::router::{CallAnswer, Refusal, RouteError};

pub(super) static SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
static VERSION_HEADER: HeaderName = HeaderName::from_static("mcp-protocol-version");
static METHOD_HEADER: HeaderName = HeaderName::from_static("mcp-method");
static NAME_HEADER: HeaderName = HeaderName::from_static("mcp-name");

/// Answers `POST /mcp`.
pub(super) async fn post(
    edge: &Arc<Edge>,
    context: RequestContext,
    headers: &HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let parsed = Incoming::parse(&body);
    let request = Request { edge, context: &context, body: &body };
    if let Some((status, message)) = check_content(headers) {
        let code = RpcErrorCode::InvalidRequest;
        return request.turn_away(parsed.as_ref().ok(), status, code, message, None).await;
    }
    if !context.caller.may(Scope::Call) {
        edge.metrics.auth_failure(AuthFailure::Scope);
        let message = format!("the key `{}` lacks the scope `call`", context.caller.name);
        let status = StatusCode::FORBIDDEN;
        let code = RpcErrorCode::Internal;
        return request.turn_away(parsed.as_ref().ok(), status, code, &message, None).await;
    }
    let incoming = match parsed {
        Ok(incoming) => incoming,
        Err(error) => {
            // It may have been a call; nobody can tell.
            request.record(String::new(), &error.message, StatusCode::BAD_REQUEST).await;
            let id = error.id.as_deref();
            return rpc_error(StatusCode::BAD_REQUEST, id, error.code, &error.message, None);
        }
    };
    let (method, params) = match &incoming {
        Incoming::Request { method, params, .. } | Incoming::Notification { method, params } => {
            (method.as_ref(), *params)
        }
        Incoming::Response => ("", None),
    };
    let announced =
        headers.get(&VERSION_HEADER).map(|value| value.to_str().unwrap_or_default().trim());
    match announced {
        _ if method == "initialize" => {
            legacy::post(edge, context, headers, &body, &incoming, None).await
        }
        Some(text) => match ProtocolVersion::parse(text) {
            Some(version) if version.era() == Era::Modern => {
                modern::post(edge, context, headers, &body, &incoming, version).await
            }
            Some(version) => {
                legacy::post(edge, context, headers, &body, &incoming, Some(version)).await
            }
            None => request.unsupported_version(&incoming, text).await,
        },
        None if ModernMeta::is_present(params) => {
            let message = "the header MCP-Protocol-Version is missing; a request with a protocol version in `_meta` needs it";
            let status = StatusCode::BAD_REQUEST;
            let code = RpcErrorCode::HeaderMismatch;
            request.turn_away(Some(&incoming), status, code, message, None).await
        }
        None => legacy::post(edge, context, headers, &body, &incoming, None).await,
    }
}

/// A request that may be turned away before there is a call.
struct Request<'a> {
    edge: &'a Edge,
    context: &'a RequestContext,
    body: &'a Bytes,
}

impl Request<'_> {
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
                self.record(tool.unwrap_or_default(), message, status).await;
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
        let shown: String = requested.chars().take(64).collect();
        let message = format!("protocol version `{shown}` is not supported");
        let code = RpcErrorCode::UnsupportedVersion;
        let data = data.to_string();
        self.turn_away(Some(incoming), StatusCode::BAD_REQUEST, code, &message, Some(&data)).await
    }

    /// Puts a refused call on record.
    async fn record(&self, tool: String, message: &str, status: StatusCode) {
        let refusal = Refusal {
            id: self.context.id,
            caller: Arc::clone(&self.context.caller),
            entrance: Entrance::Mcp(ProtocolVersion::LATEST_LEGACY),
            tool,
            code: match status {
                StatusCode::FORBIDDEN => ErrorCode::Permission,
                _ => ErrorCode::InvalidRequest,
            },
            message: message.to_owned(),
            http_status: status.as_u16(),
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
    let mut accepts = headers.get_all(ACCEPT).iter().peekable();
    let acceptable = accepts.peek().is_none()
        || accepts.any(|value| {
            value.to_str().unwrap_or_default().split(',').any(|range| {
                let range = range.split(';').next().unwrap_or_default().trim();
                ACCEPTABLE.iter().any(|known| range.eq_ignore_ascii_case(known))
            })
        });
    let message = "the Accept header must list application/json and text/event-stream";
    (!acceptable).then_some((StatusCode::NOT_ACCEPTABLE, message))
}

const ACCEPTABLE: [&str; 5] =
    ["application/json", "text/event-stream", "*/*", "application/*", "text/*"];

/// Every version we speak to clients, newest first. 2024-11-05 needs another transport.
fn supported_versions() -> Vec<&'static str> {
    ProtocolVersion::ALL
        .iter()
        .rev()
        .filter(|version| **version != ProtocolVersion::V2024_11_05)
        .map(|version| version.as_str())
        .collect()
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

fn rpc_error(
    status: StatusCode,
    id: Option<&str>,
    code: RpcErrorCode,
    message: &str,
    data: Option<&str>,
) -> Response<Body> {
    json(status, error_response(id, code.number(), message, data))
}

/// The answer to a `tools/call`.
fn render_call(id: &str, era: Era, answer: &CallAnswer) -> Response<Body> {
    let body = match &answer.result {
        Ok(upstream) => match upstream.kind {
            AnswerKind::Result => {
                let value = result_for(era, &upstream.value, upstream.facts);
                result_response(id, "result", &value)
            }
            AnswerKind::Error => result_response(id, "error", &error_for(era, &upstream.value)),
        },
        Err(error) => {
            let data = error_data(error, answer.attempts);
            error_response(Some(id), error.code().json_rpc_code(), &error.to_string(), Some(&data))
        }
    };
    json(StatusCode::OK, body)
}

fn error_data(error: &RouteError, attempts: u32) -> String {
    #[derive(serde::Serialize)]
    struct Data<'a> {
        error_code: ErrorCode,
        reason: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        server: Option<&'a str>,
        outcome: &'static str,
        attempts: u32,
        retriable: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        nearest: &'a [String],
    }
    let data = Data {
        error_code: error.code(),
        reason: error.reason(),
        server: error.server().map(crate::model::ServerName::as_str),
        outcome: error.knowledge().as_str(),
        attempts,
        retriable: error.retriable(),
        retry_after_ms: error.retry_after().map(millis),
        nearest: error.nearest(),
    };
    serde_json::to_string(&data).unwrap_or_else(|_| "{}".to_owned())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `params.cursor` of a list request: everything fits one page, so no cursor is ever ours.
fn check_cursor(params: Option<&serde_json::value::RawValue>) -> Result<(), String> {
    let Some(params) = params else { return Ok(()) };
    let members =
        crate::protocol::RawObject::parse(params.get()).map_err(|error| error.to_string())?;
    match members.get("cursor").map(serde_json::value::RawValue::get) {
        None | Some("null") => Ok(()),
        Some(_) => Err("the cursor is not one of this server; begin without a cursor".to_owned()),
    }
}
