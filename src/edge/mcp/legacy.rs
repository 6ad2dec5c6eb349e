//! Clients of the legacy era: handshake, sessions, and the dialect without a session.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::value::RawValue;

use super::{Request, SESSION_ID, check_cursor, empty, json, render_call, rpc_error};
use crate::clock;
use crate::edge::auth::RequestContext;
use crate::edge::detach::Detached;
use crate::edge::door::Body;
use crate::edge::sessions::Session;
use crate::edge::{Edge, INSTRUCTIONS};
use crate::model::{ClientInfo, Entrance, Era, ProtocolVersion, ToolCall, ToolTarget};
use crate::protocol::{
    CallParams, Incoming, PeerIdentity, RawObject, RequestId, RpcErrorCode, result_response,
};

/// A legacy request in its session, if it has one.
struct Legacy<'a> {
    edge: &'a Arc<Edge>,
    context: RequestContext,
    body: &'a Bytes,
    session: Option<Arc<Session>>,
    version: ProtocolVersion,
}

/// Answers a legacy message. `announced` is the version in the header.
pub(super) async fn post(
    edge: &Arc<Edge>,
    context: RequestContext,
    headers: &HeaderMap,
    body: &Bytes,
    incoming: &Incoming<'_>,
    announced: Option<ProtocolVersion>,
) -> Response<Body> {
    if let Incoming::Request { id, method, params } = incoming
        && method == "initialize"
    {
        return initialize(edge, &context, *id, *params).await;
    }
    let session = match headers.get(&SESSION_ID) {
        None => None,
        Some(presented) => match edge.sessions.find(presented.as_bytes(), &context.caller) {
            Some(session) => Some(session),
            None => {
                let message = "there is no such session; begin a new one with initialize";
                let request = Request { edge, context: &context, body };
                let code = RpcErrorCode::InvalidRequest;
                let status = StatusCode::NOT_FOUND;
                return request.turn_away(Some(incoming), status, code, message, None).await;
            }
        },
    };
    let version = announced
        .or_else(|| session.as_ref().map(|session| session.version))
        // What the specification says to assume (2025-11-25, basic/transports).
        .unwrap_or(ProtocolVersion::V2025_03_26);
    let legacy = Legacy { edge, context, body, session, version };
    match incoming {
        Incoming::Request { id, method, params } => legacy.request(*id, method, *params).await,
        Incoming::Notification { .. } | Incoming::Response => match legacy.session {
            Some(_) => empty(StatusCode::ACCEPTED),
            None => session_needed(None),
        },
    }
}

impl Legacy<'_> {
    async fn request(
        self,
        id: RequestId<'_>,
        method: &str,
        params: Option<&RawValue>,
    ) -> Response<Body> {
        match method {
            // The predecessor's clients call and list without a handshake.
            "tools/call" => self.call(id, params).await,
            "tools/list" => self.list(id, params),
            _ if self.session.is_none() => session_needed(Some(id)),
            "ping" => json(StatusCode::OK, result_response(id.json(), "result", b"{}")),
            _ => {
                let message = format!("the method `{}` is not known here", shown(method));
                rpc_error(
                    StatusCode::OK,
                    Some(id.json()),
                    RpcErrorCode::MethodNotFound,
                    &message,
                    None,
                )
            }
        }
    }

    fn list(&self, id: RequestId<'_>, params: Option<&RawValue>) -> Response<Body> {
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
        let catalogue = self.edge.discovery.catalogue().load();
        let listing = catalogue.listing();
        let mut result = Vec::with_capacity(listing.len() + 16);
        result.extend_from_slice(br#"{"tools":["#);
        result.extend_from_slice(listing);
        result.extend_from_slice(b"]}");
        let took = clock::uptime().since(began);
        self.edge.metrics.observe_operation("tools/list", self.version, true, took);
        json(StatusCode::OK, result_response(id.json(), "result", &result))
    }

    async fn call(self, id: RequestId<'_>, params: Option<&RawValue>) -> Response<Body> {
        let parsed = match CallParams::parse(params) {
            Ok(parsed) => parsed,
            Err(message) => {
                let request = Request { edge: self.edge, context: &self.context, body: self.body };
                request.record(String::new(), &message, StatusCode::BAD_REQUEST).await;
                let code = RpcErrorCode::InvalidParams;
                return rpc_error(StatusCode::OK, Some(id.json()), code, &message, None);
            }
        };
        let slice = |raw: &RawValue| self.body.slice_ref(raw.get().as_bytes());
        let call = ToolCall {
            id: self.context.id,
            caller: self.context.caller,
            session: self.session.as_ref().map(|session| session.reference.clone()),
            client: None,
            client_capabilities: None,
            entrance: Entrance::Mcp(self.version),
            target: ToolTarget { tool: parsed.name.into_owned(), server: None },
            arguments: parsed.arguments.map(slice),
            params: params.map(slice),
            deadline: None,
            request_bytes: self.body.len() as u64,
        };
        let router = Arc::clone(&self.edge.router);
        let call = async move { router.call(call, None).await };
        let answer = Detached::new(call, &self.edge.calls).await;
        render_call(id.json(), Era::Legacy, &answer)
    }
}

async fn initialize(
    edge: &Edge,
    context: &RequestContext,
    id: RequestId<'_>,
    params: Option<&RawValue>,
) -> Response<Body> {
    let began = clock::uptime();
    let invalid = |message: &str| {
        rpc_error(StatusCode::OK, Some(id.json()), RpcErrorCode::InvalidParams, message, None)
    };
    let members = match RawObject::parse(params.map_or("{}", RawValue::get)) {
        Ok(members) => members,
        Err(error) => return invalid(&format!("`params`: {error}")),
    };
    let Some(requested) = members.get_str("protocolVersion") else {
        return invalid("`params.protocolVersion` must be a string");
    };
    // A version of the modern era is never agreed on here.
    let version = ProtocolVersion::parse(&requested)
        .filter(|version| version.era() == Era::Legacy)
        .unwrap_or(ProtocolVersion::LATEST_LEGACY);
    let client = members
        .get("clientInfo")
        .and_then(|raw| ClientInfo::from_json(raw.get()))
        .unwrap_or_default();
    let capabilities =
        members.get("capabilities").map(|raw| raw.get().to_owned()).filter(|raw| raw.len() <= 2048);
    let session = match edge.sessions.create(&context.caller, version, client, capabilities).await {
        Ok(session) => session,
        Err(error) => {
            let status =
                StatusCode::from_u16(error.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            return rpc_error(status, Some(id.json()), RpcErrorCode::Internal, &error.detail, None);
        }
    };
    let result = format!(
        r#"{{"protocolVersion":"{version}","capabilities":{{"tools":{{}}}},"serverInfo":{},"instructions":{}}}"#,
        PeerIdentity::JSON,
        serde_json::Value::from(INSTRUCTIONS)
    );
    let mut response =
        json(StatusCode::OK, result_response(id.json(), "result", result.as_bytes()));
    if let Ok(value) = HeaderValue::from_str(&session) {
        response.headers_mut().insert(SESSION_ID.clone(), value);
    }
    edge.metrics.observe_operation("initialize", version, true, clock::uptime().since(began));
    response
}

fn session_needed(id: Option<RequestId<'_>>) -> Response<Body> {
    let message = "a session is needed; begin with initialize and send its Mcp-Session-Id";
    let id = id.map(|id| id.json());
    rpc_error(StatusCode::BAD_REQUEST, id, RpcErrorCode::InvalidRequest, message, None)
}

fn shown(method: &str) -> String {
    method.chars().take(64).collect()
}
