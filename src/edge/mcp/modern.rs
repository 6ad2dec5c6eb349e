//! Clients of the modern era: each request says everything, headers and body must agree.
//!
//! Source: specification 2026-07-28, basic/transports/streamable-http and server/discover.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use serde_json::value::RawValue;

use super::methods::Asked;
use super::reply::{Reply, empty, rpc_error};
use super::{
    CAPABILITIES, INSTRUCTIONS, METHOD_HEADER, NAME_HEADER, Refusing, Who, listen, shown,
    supported_versions,
};
use crate::clock;
use crate::edge::Edge;
use crate::edge::auth::RequestContext;
use crate::edge::door::Body;
use crate::model::ProtocolVersion;
use crate::protocol::{
    Incoming, ModernMeta, PeerIdentity, RawObject, RpcErrorCode, SERVER_INFO, decode_header,
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
        Incoming::Response { .. } => {
            let message =
                "this protocol version has no requests of servers, so nothing to respond to";
            let code = RpcErrorCode::InvalidRequest;
            return rpc_error(StatusCode::BAD_REQUEST, None, code, message, None);
        }
    };
    let (version_said, who) = (Some(version), Who::default());
    let request = &Refusing { edge, context: &context, body, version: version_said, who };
    let bad = |code: RpcErrorCode, message: String| async move {
        let status = StatusCode::BAD_REQUEST;
        request.turn_away(Some(incoming), status, code, &message, None).await
    };
    let meta = match ModernMeta::parse(params) {
        Ok(meta) => meta,
        Err(message) => return bad(RpcErrorCode::InvalidParams, message).await,
    };
    if meta.version != version.as_str() {
        let message = format!(
            "the header MCP-Protocol-Version says {version} and `_meta` says {}",
            shown(&meta.version)
        );
        return bad(RpcErrorCode::HeaderMismatch, message).await;
    }
    if let Err(message) = check_headers(headers, method, params) {
        return bad(RpcErrorCode::HeaderMismatch, message).await;
    }
    let asked = Asked {
        edge,
        context: &context,
        headers,
        body,
        version,
        id,
        params,
        session: None,
        client: meta.client,
        capabilities: Some(meta.client_capabilities),
        log_level: meta.log_level,
    };
    let reply = match asked.answer(method).await {
        Some(reply) => reply,
        None => match method {
            "server/discover" => discover(&asked),
            "subscriptions/listen" => listen::listen(&asked),
            _ => {
                let message = format!("the method `{}` is not known here", shown(method));
                let code = RpcErrorCode::MethodNotFound;
                Reply::error(StatusCode::NOT_FOUND, Some(id), code, &message)
            }
        },
    };
    reply.respond().await
}

/// `Mcp-Method` must be the body's method; `Mcp-Name` what the request is about.
fn check_headers(
    headers: &HeaderMap,
    method: &str,
    params: Option<&RawValue>,
) -> Result<(), String> {
    let mut values = headers.get_all(&METHOD_HEADER).iter();
    match (values.next().map(|value| value.to_str().unwrap_or_default().trim()), values.next()) {
        (Some(announced), None) if announced == method => {}
        (Some(announced), None) => {
            return Err(format!(
                "the header Mcp-Method says `{}` and the body `{}`",
                shown(announced),
                shown(method)
            ));
        }
        (Some(_), Some(_)) => return Err("the header Mcp-Method stands twice".to_owned()),
        (None, _) => return Err("the header Mcp-Method is missing".to_owned()),
    }
    let member = match method {
        "tools/call" | "prompts/get" => "name",
        "resources/read" => "uri",
        "tasks/get" | "tasks/update" | "tasks/cancel" => "taskId",
        _ => return Ok(()),
    };
    let params = params.and_then(|raw| RawObject::parse(raw.get()).ok());
    // What is no string is refused for that, later.
    let Some(name) = params.as_ref().and_then(|params| params.get_str(member)) else {
        return Ok(());
    };
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
        Err(format!(
            "the header Mcp-Name says `{}` and the body `{}`",
            shown(&announced),
            shown(&name)
        ))
    }
}

fn discover(asked: &Asked<'_>) -> Reply {
    let began = clock::uptime();
    let result = format!(
        r#"{{"resultType":"complete","supportedVersions":{},"capabilities":{CAPABILITIES},"instructions":{},"ttlMs":0,"cacheScope":"private","_meta":{{"{SERVER_INFO}":{}}}}}"#,
        serde_json::Value::from(supported_versions()),
        serde_json::Value::from(INSTRUCTIONS),
        PeerIdentity::JSON
    );
    let took = clock::uptime().since(began);
    asked.edge.metrics.observe_operation("server/discover", asked.labels(None), took);
    Reply::result(asked.id, result.as_bytes())
}
