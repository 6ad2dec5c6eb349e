//! What the router came to, as a JSON-RPC message in the form of the client's era.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::value::RawValue;

use super::reply::Answered;
use super::rounds::Leg;
use crate::error::ErrorCode;
use crate::model::{Era, ServerName};
use crate::protocol::{
    AnswerKind, RawObject, RpcErrorCode, cacheable_result_for, error_for, error_response,
    result_for, result_response,
};
use crate::router::{CallAnswer, RouteError, UpstreamAnswer};

/// A client that must declare more to be served (2026-07-28, basic/index).
const MISSING_CAPABILITY: &str = "-32021";

/// The answer to a `tools/call`; `id` is raw JSON.
pub(super) fn call(id: &Bytes, era: Era, answer: &CallAnswer) -> Answered {
    match &answer.result {
        Ok(upstream) => upstream_answer(id, era, upstream, false),
        Err(error) => failure(id, error, answer.attempts),
    }
}

/// The answer to a request that was sent on.
pub(super) fn forwarded(id: &Bytes, era: Era, answer: &Leg, cacheable: bool) -> Answered {
    match answer {
        Ok(upstream) => upstream_answer(id, era, upstream, cacheable),
        Err(error) => failure(id, error, 1),
    }
}

/// The error for a call that needs what the client cannot give.
pub(super) fn no_input(id: &Bytes, problem: &str) -> Answered {
    let code = RpcErrorCode::Internal.number();
    Answered {
        status: StatusCode::OK,
        message: error_response(Some(text(id)), code, problem, None),
    }
}

fn upstream_answer(id: &Bytes, era: Era, upstream: &UpstreamAnswer, cacheable: bool) -> Answered {
    match upstream.kind {
        AnswerKind::Result => {
            let shape = if cacheable { cacheable_result_for } else { result_for };
            let value = shape(era, &upstream.value, upstream.facts);
            Answered {
                status: StatusCode::OK,
                message: result_response(text(id), "result", &value),
            }
        }
        AnswerKind::Error => {
            let value = error_for(era, &upstream.value);
            let status = match era {
                Era::Modern if code(&value) == Some(MISSING_CAPABILITY) => StatusCode::BAD_REQUEST,
                Era::Modern | Era::Legacy => StatusCode::OK,
            };
            Answered { status, message: result_response(text(id), "error", &value) }
        }
    }
}

fn failure(id: &Bytes, error: &RouteError, attempts: u32) -> Answered {
    let data = error_data(error, attempts);
    let code = error.code().json_rpc_code();
    let message = error_response(Some(text(id)), code, &error.to_string(), Some(&data));
    Answered { status: StatusCode::OK, message }
}

fn text(id: &Bytes) -> &str {
    std::str::from_utf8(id).unwrap_or("null")
}

fn code(error: &[u8]) -> Option<&str> {
    RawObject::parse(std::str::from_utf8(error).ok()?).ok()?.get("code").map(RawValue::get)
}

/// The extension that we do not offer, so nothing upstream must count on it.
const TASKS: &str = "io.modelcontextprotocol/tasks";

/// A client's capabilities without tasks.
pub(super) fn without_tasks(capabilities: Bytes) -> Bytes {
    if memchr::memmem::find(&capabilities, TASKS.as_bytes()).is_none() {
        return capabilities;
    }
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(&capabilities) else {
        return Bytes::from_static(b"{}");
    };
    if let Some(extensions) = value.get_mut("extensions").and_then(|e| e.as_object_mut()) {
        extensions.remove(TASKS);
    }
    value.to_string().into()
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
        server: error.server().map(ServerName::as_str),
        outcome: error.knowledge().as_str(),
        attempts,
        retriable: error.retriable(),
        retry_after_ms: error.retry_after().map(millis),
        nearest: error.nearest(),
    };
    serde_json::to_string(&data).unwrap_or_else(|_| "{}".to_owned())
}

/// Up, so that whoever keeps to it does not come too early.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
