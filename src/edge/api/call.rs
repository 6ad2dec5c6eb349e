//! `POST /mcp/call`: one tool call in plain JSON.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use std::sync::Arc;

use super::{Shared, body};
use crate::edge::Edge;
use crate::edge::auth::RequestContext;
use crate::edge::error::ApiError;
use crate::error::ErrorCode;
use crate::model::{
    ClientInfo, Entrance, Outcome, REPLAY_CLIENT, REPLAY_HEADER, ServerName, ToolCall, ToolTarget,
};
use crate::protocol::{RawObject, first_text};
use crate::router::{CallAnswer, Refusal, RefusedAt};

/// As long as a tool's own name may be, and a server's name before it.
const TOOL_NAME_LIMIT: usize = 1200;
const KEYS: [&str; 5] = ["tool_name", "name", "server_name", "arguments", "timeout"];

pub(super) async fn call(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let read = body::bytes(&edge, body).await.and_then(|bytes| {
        let mut call = parse(&bytes, &context)?;
        call.client = headers.contains_key(REPLAY_HEADER).then(|| ClientInfo {
            name: REPLAY_CLIENT.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        });
        Ok((call, bytes.len()))
    });
    match read {
        Ok((call, _)) => {
            let answer = edge.router.call(call, None).await;
            render(&answer)
        }
        Err(error) => {
            refuse(&edge, &context, &error).await;
            Err(error)
        }
    }
}

/// Puts a call that was not let through on record.
pub(super) async fn refuse(edge: &Edge, context: &RequestContext, error: &ApiError) {
    let refusal = Refusal {
        id: context.id,
        caller: Arc::clone(&context.caller),
        at: RefusedAt::Rest,
        via: context.via,
        session: None,
        client: None,
        request_id: None,
        view: None,
        trace: context.trace.clone(),
        tool: String::new(),
        code: error.code,
        message: error.detail.clone(),
        http_status: error.status(),
        rpc_code: None,
        request_bytes: 0,
    };
    edge.router.refuse(refusal).await;
}

fn parse(bytes: &Bytes, context: &RequestContext) -> Result<ToolCall, ApiError> {
    let object = body::object(bytes, &KEYS)?;
    let tool = match (body::string(&object, "tool_name")?, body::string(&object, "name")?) {
        (Some(tool), None) | (None, Some(tool)) => tool,
        (None, None) => return Err(ApiError::invalid("`tool_name` is missing")),
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("`tool_name` and `name` are the same thing; give one"));
        }
    };
    if tool.len() > TOOL_NAME_LIMIT {
        return Err(ApiError::invalid(format!(
            "`tool_name` is longer than {TOOL_NAME_LIMIT} bytes"
        )));
    }
    let server = body::string(&object, "server_name")?
        .map(|name| ServerName::parse(&name))
        .transpose()
        .map_err(|error| ApiError::invalid(format!("`server_name`: {error}")))?;
    let arguments = object.get("arguments").filter(|raw| raw.get() != "null");
    if arguments.is_some_and(|raw| !raw.get().starts_with('{')) {
        return Err(ApiError::invalid("`arguments` must be an object"));
    }
    Ok(ToolCall {
        id: context.id,
        caller: Arc::clone(&context.caller),
        session: None,
        client: None,
        client_capabilities: None,
        entrance: Entrance::Rest,
        via: context.via,
        view: None,
        trace: context.trace.clone(),
        request_id: None,
        target: ToolTarget { tool, server },
        params: None,
        arguments: arguments.map(|raw| bytes.slice_ref(raw.get().as_bytes())),
        deadline: body::span(&object, "timeout")?,
        request_bytes: bytes.len() as u64,
    })
}

/// The predecessor's result object; `data` is the upstream's result, byte for byte.
fn render(answer: &CallAnswer) -> Result<Response, ApiError> {
    let code = answer.error_code();
    let (success, data, error) = match &answer.result {
        Ok(upstream) => match upstream.outcome {
            Outcome::Ok => (true, Some(&upstream.value), None),
            Outcome::ToolError => {
                let text = first_text(&upstream.value);
                (
                    false,
                    Some(&upstream.value),
                    Some(text.unwrap_or_else(|| "the tool reported an error".to_owned())),
                )
            }
            _ => (false, None, Some(rpc_message(&upstream.value))),
        },
        Err(error) => (false, None, Some(error.to_string())),
    };
    let json = |value: serde_json::Value| value.to_string();
    let mut out = Vec::with_capacity(256 + data.map_or(0, |data| data.len()));
    let mut push = |text: &str| out.extend_from_slice(text.as_bytes());
    push(if success { r#"{"success":true,"data":"# } else { r#"{"success":false,"data":"# });
    match data {
        Some(data) => out.extend_from_slice(data),
        None => out.extend_from_slice(b"null"),
    }
    let mut push = |text: &str| out.extend_from_slice(text.as_bytes());
    push(r#","error":"#);
    push(&json(error.into()));
    push(r#","error_code":"#);
    push(&json(code.map(ErrorCode::as_str).into()));
    push(r#","tool_name":"#);
    push(&json(answer.tool.as_str().into()));
    push(r#","server_name":"#);
    push(&json(answer.server.as_ref().map(ServerName::as_str).into()));
    push(&format!(
        r#","execution_time_ms":{:.3},"request_id":"{}","attempts":{}"#,
        answer.total.as_secs_f64() * 1000.0,
        answer.id,
        answer.attempts
    ));
    let mut status = 200;
    let mut retry_after = None;
    if let Err(error) = &answer.result {
        status = error.code().http_status();
        retry_after = error.retry_after();
        push(r#","reason":"#);
        push(&json(error.reason().into()));
        push(&format!(
            r#","outcome":"{}","retriable":{}"#,
            error.knowledge().as_str(),
            error.retriable()
        ));
        if let Some(wait) = retry_after {
            push(&format!(r#","retry_after_ms":{}"#, wait.as_nanos().div_ceil(1_000_000)));
        }
        if !error.nearest().is_empty() {
            push(r#","nearest":"#);
            push(&json(error.nearest().into()));
        }
    }
    push("}");
    let mut response = Response::new(Body::from(out));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == 503 {
        // Up, so that whoever keeps to it does not come too early.
        let seconds = retry_after.map_or(1, |wait| wait.as_nanos().div_ceil(1_000_000_000).max(1));
        let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    Ok(response)
}

fn rpc_message(error: &[u8]) -> String {
    let text = std::str::from_utf8(error).ok();
    text.and_then(|text| RawObject::parse(text).ok())
        .and_then(|object| object.get_str("message").map(std::borrow::Cow::into_owned))
        .unwrap_or_else(|| "the server answered with an error".to_owned())
}
