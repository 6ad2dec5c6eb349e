//! Clients of the modern era: each request says everything, headers and body must agree.
//!
//! Source: specification 2026-07-28, basic/transports/streamable-http and server/discover.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use serde_json::value::RawValue;

use super::{
    METHOD_HEADER, NAME_HEADER, Request, check_cursor, empty, json, render_call, rpc_error,
    supported_versions,
};
use crate::clock;
use crate::edge::auth::RequestContext;
use crate::edge::door::Body;
use crate::edge::{Edge, INSTRUCTIONS};
use crate::model::{Entrance, Era, ProtocolVersion, ToolCall, ToolTarget};
use crate::protocol::{
    CallParams, Incoming, ModernMeta, PeerIdentity, RequestId, RpcErrorCode, SERVER_INFO,
    decode_header, result_response,
};

/// Answers a modern message; `version` is the header's.
pub(super) async fn post(
    edge: &Arc<Edge>,
    context: RequestContext,
    headers: &HeaderMap,
    body: &Bytes,
    incoming: &Incoming<'_>,
    version: ProtocolVersion,
) -> Response<Body> {
    let (id, method, params) = match incoming {
        Incoming::Request { id, method, params } => (*id, method.as_ref(), *params),
        Incoming::Notification { .. } => return empty(StatusCode::ACCEPTED),
        Incoming::Response => {
            let message =
                "this protocol version has no requests of servers, so nothing to respond to";
            return rpc_error(
                StatusCode::BAD_REQUEST,
                None,
                RpcErrorCode::InvalidRequest,
                message,
                None,
            );
        }
    };
    let request = &Request { edge, context: &context, body };
    let bad = |code: RpcErrorCode, message: String| async move {
        let status = StatusCode::BAD_REQUEST;
        request.turn_away(Some(incoming), status, code, &message, None).await
    };
    let meta = match ModernMeta::parse(params) {
        Ok(meta) => meta,
        Err(message) => return bad(RpcErrorCode::InvalidParams, message).await,
    };
    if meta.version != version.as_str() {
        if ProtocolVersion::parse(&meta.version).is_none() {
            return request.unsupported_version(incoming, &meta.version).await;
        }
        let message = format!(
            "the header MCP-Protocol-Version says {version} and `_meta` says {}",
            meta.version
        );
        return bad(RpcErrorCode::HeaderMismatch, message).await;
    }
    let call = (method == "tools/call").then(|| CallParams::parse(params));
    let name = call.as_ref().and_then(|call| call.as_ref().ok()).map(|call| call.name.as_ref());
    if let Err(message) = check_headers(headers, method, name) {
        return bad(RpcErrorCode::HeaderMismatch, message).await;
    }
    match (method, call) {
        ("tools/call", Some(Ok(call))) => {
            let slice = |raw: &RawValue| body.slice_ref(raw.get().as_bytes());
            let call = ToolCall {
                id: context.id,
                caller: context.caller,
                session: None,
                client: meta.client,
                client_capabilities: Some(body.slice_ref(meta.client_capabilities.as_bytes())),
                entrance: Entrance::Mcp(version),
                target: ToolTarget { tool: call.name.into_owned(), server: None },
                arguments: call.arguments.map(slice),
                params: params.map(slice),
                deadline: None,
                request_bytes: body.len() as u64,
            };
            // Here the end of the connection is the cancellation: the future is simply dropped.
            let answer = edge.router.call(call, None).await;
            render_call(id.json(), Era::Modern, &answer)
        }
        ("tools/call", Some(Err(message))) => {
            request.record(String::new(), &message, StatusCode::BAD_REQUEST).await;
            rpc_error(StatusCode::OK, Some(id.json()), RpcErrorCode::InvalidParams, &message, None)
        }
        ("tools/list", _) => list(edge, id, params, version),
        ("server/discover", _) => discover(edge, id, version),
        _ => {
            let message = format!(
                "the method `{}` is not known here",
                method.chars().take(64).collect::<String>()
            );
            let code = RpcErrorCode::MethodNotFound;
            rpc_error(StatusCode::NOT_FOUND, Some(id.json()), code, &message, None)
        }
    }
}

/// `Mcp-Method` must be the body's method; `Mcp-Name` the name in its parameters.
fn check_headers(headers: &HeaderMap, method: &str, name: Option<&str>) -> Result<(), String> {
    let mut values = headers.get_all(&METHOD_HEADER).iter();
    match (values.next().map(|value| value.to_str().unwrap_or_default().trim()), values.next()) {
        (Some(announced), None) if announced == method => {}
        (Some(announced), None) => {
            return Err(format!(
                "the header Mcp-Method says `{announced}` and the body `{method}`"
            ));
        }
        (Some(_), Some(_)) => return Err("the header Mcp-Method stands twice".to_owned()),
        (None, _) => return Err("the header Mcp-Method is missing".to_owned()),
    }
    let Some(name) = name else { return Ok(()) };
    let mut values = headers.get_all(&NAME_HEADER).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err("the header Mcp-Name is missing or stands twice".to_owned());
    };
    let announced =
        value.to_str().ok().ok_or_else(|| "the header Mcp-Name is not ASCII".to_owned())?;
    let announced = decode_header(announced).map_err(|error| format!("Mcp-Name: {error}"))?;
    if announced == name {
        Ok(())
    } else {
        Err(format!("the header Mcp-Name says `{announced}` and the body `{name}`"))
    }
}

fn list(
    edge: &Edge,
    id: RequestId<'_>,
    params: Option<&RawValue>,
    version: ProtocolVersion,
) -> Response<Body> {
    let began = clock::uptime();
    if let Err(message) = check_cursor(params) {
        return rpc_error(
            StatusCode::OK,
            Some(id.json()),
            RpcErrorCode::InvalidParams,
            &message,
            None,
        );
    }
    let catalogue = edge.discovery.catalogue().load();
    let listing = catalogue.listing();
    let mut result = Vec::with_capacity(listing.len() + 256);
    result.extend_from_slice(br#"{"resultType":"complete","tools":["#);
    result.extend_from_slice(listing);
    // Servers of the legacy era may change their tools at any moment, so nothing may be kept.
    result.extend_from_slice(br#"],"ttlMs":0,"cacheScope":"private","_meta":{""#);
    result.extend_from_slice(SERVER_INFO.as_bytes());
    result.extend_from_slice(b"\":");
    result.extend_from_slice(PeerIdentity::JSON.as_bytes());
    result.extend_from_slice(b"}}");
    edge.metrics.observe_operation("tools/list", version, true, clock::uptime().since(began));
    json(StatusCode::OK, result_response(id.json(), "result", &result))
}

fn discover(edge: &Edge, id: RequestId<'_>, version: ProtocolVersion) -> Response<Body> {
    let began = clock::uptime();
    let result = format!(
        r#"{{"resultType":"complete","supportedVersions":{},"capabilities":{{"tools":{{}}}},"instructions":{},"ttlMs":0,"cacheScope":"private","_meta":{{"{SERVER_INFO}":{}}}}}"#,
        serde_json::Value::from(supported_versions()),
        serde_json::Value::from(INSTRUCTIONS),
        PeerIdentity::JSON
    );
    edge.metrics.observe_operation("server/discover", version, true, clock::uptime().since(began));
    json(StatusCode::OK, result_response(id.json(), "result", result.as_bytes()))
}
