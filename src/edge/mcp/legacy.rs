//! Clients of the legacy era: handshake, sessions, batches, and the dialect without a session.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde_json::value::RawValue;

use super::listen;
use super::methods::{Asked, labels};
use super::reply::{Reply, json, rpc_error};
use super::session::SUBSCRIPTIONS;
use super::stream::event_stream;
use super::{INSTRUCTIONS, Refusing, SESSION_ID, Who, shown, strict};
use crate::catalogue::ResourceRoute;
use crate::clock;
use crate::edge::Edge;
use crate::edge::auth::RequestContext;
use crate::edge::door::{Body, new_id};
use crate::edge::sessions::Session;
use crate::error::ErrorCode;
use crate::model::{ClientInfo, Era, ProtocolVersion};
use crate::protocol::{
    Answer, Incoming, LogLevel, PeerIdentity, RawObject, RequestId, RpcErrorCode, batch,
    result_response,
};

/// How long servers may take to hear what a client says to all of them. The client waits for it, so
/// that one client has only so much of this under way.
const SIDE: Duration = Duration::from_secs(2);
const ROOTS_CHANGED: &str = "notifications/roots/list_changed";
static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Messages one batch may have.
const BATCH: usize = 100;

/// Who a legacy message comes from.
struct Sender<'a> {
    edge: &'a Arc<Edge>,
    context: RequestContext,
    headers: &'a HeaderMap,
    body: &'a Bytes,
    session: Option<Arc<Session>>,
    version: ProtocolVersion,
}

impl<'a> Sender<'a> {
    /// Finds the session that the headers name.
    fn new(
        edge: &'a Arc<Edge>,
        context: RequestContext,
        headers: &'a HeaderMap,
        body: &'a Bytes,
        announced: Option<ProtocolVersion>,
    ) -> Result<Self, (RequestContext, &'static str)> {
        let session = match headers.get(&SESSION_ID) {
            None => None,
            Some(presented) => match edge.sessions.find(presented.as_bytes(), &context) {
                Some(session) => Some(session),
                None => return Err((context, NO_SESSION)),
            },
        };
        let version = announced
            .or_else(|| session.as_ref().map(|session| session.version))
            // What the specification says to assume (2025-11-25, basic/transports).
            .unwrap_or(ProtocolVersion::V2025_03_26);
        Ok(Self { edge, context, headers, body, session, version })
    }
}

const NO_ID: &str = "the header Mcp-Session-Id is missing";
const NO_SESSION: &str = "there is no such session; begin a new one with initialize";

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
    let sender = match Sender::new(edge, context, headers, body, announced) {
        Ok(sender) => sender,
        Err((context, message)) => {
            let (version, who) = (announced, Who::default());
            let request = Refusing { edge, context: &context, body, version, who };
            let code = RpcErrorCode::InvalidRequest;
            let status = StatusCode::NOT_FOUND;
            return request.turn_away(Some(incoming), status, code, message, None).await;
        }
    };
    sender.take(&sender.context, incoming).await.respond().await
}

/// Answers a batch, which only 2025-03-26 has: its requests together, in one array.
pub(super) async fn post_batch(
    edge: &Arc<Edge>,
    context: RequestContext,
    headers: &HeaderMap,
    body: &Bytes,
    announced: Option<ProtocolVersion>,
) -> Response<Body> {
    let sender = match Sender::new(edge, context, headers, body, announced) {
        Ok(sender) => sender,
        Err((_, message)) => return refuse(StatusCode::NOT_FOUND, message),
    };
    if sender.version != ProtocolVersion::V2025_03_26 {
        let message = format!(
            "protocol version {} has no batches; send one message per request",
            sender.version
        );
        return refuse(StatusCode::BAD_REQUEST, &message);
    }
    let messages = match batch(body, BATCH) {
        Ok(messages) => messages,
        Err(error) => {
            return rpc_error(StatusCode::BAD_REQUEST, None, error.code, &error.message, None);
        }
    };
    let answering = messages.into_iter().enumerate().map(|(at, message)| {
        let sender = &sender;
        async move {
            // The first is the HTTP request's own; the others need ids of their own in the ledger.
            let id = if at == 0 { sender.context.id } else { new_id() };
            let context = RequestContext { id, ..sender.context.clone() };
            sender.take_of_batch(&context, message).await
        }
    });
    let answers: Vec<Vec<u8>> = join_all(answering).await.into_iter().flatten().collect();
    if answers.is_empty() {
        return super::reply::empty(StatusCode::ACCEPTED);
    }
    let mut array = vec![b'['];
    array.extend_from_slice(&answers.join(&b','));
    array.push(b']');
    json(StatusCode::OK, array)
}

impl Sender<'_> {
    async fn take_of_batch(&self, context: &RequestContext, message: &RawValue) -> Option<Vec<u8>> {
        let incoming = match Incoming::parse(message.get().as_bytes()) {
            Ok(Incoming::Request { id, method, .. }) if method == "initialize" => {
                let message = "initialize must not be part of a batch";
                let code = RpcErrorCode::InvalidRequest;
                return Reply::error(StatusCode::OK, Some(id), code, message).message().await;
            }
            Ok(incoming) => incoming,
            Err(error) => {
                let id = error.id.as_deref();
                let code = error.code.number();
                return Some(crate::protocol::error_response(id, code, &error.message, None));
            }
        };
        self.take(context, &incoming).await.message().await
    }

    async fn take(&self, context: &RequestContext, incoming: &Incoming<'_>) -> Reply {
        match incoming {
            Incoming::Request { id, method, params } => {
                self.request(context, *id, method, *params).await
            }
            Incoming::Notification { method, params } => match &self.session {
                Some(session) => {
                    self.notified(session, method, *params).await;
                    Reply::Empty(StatusCode::ACCEPTED)
                }
                None => session_needed(None),
            },
            Incoming::Response { id, kind, value } => match &self.session {
                Some(session) => {
                    let value = Bytes::copy_from_slice(value.get().as_bytes());
                    session.live().questions.answer(id.get(), Answer::new(*kind, value));
                    Reply::Empty(StatusCode::ACCEPTED)
                }
                None => session_needed(None),
            },
        }
    }

    async fn notified(&self, session: &Arc<Session>, method: &str, params: Option<&RawValue>) {
        match method {
            "notifications/cancelled" => {
                let params = params.and_then(|raw| RawObject::parse(raw.get()).ok());
                if let Some(id) = params.as_ref().and_then(|params| params.get("requestId")) {
                    session.live().cancel(id.get());
                }
            }
            "notifications/initialized" => {}
            // A server that has asked this client for its roots hears of new ones.
            ROOTS_CHANGED => {
                let registry = &self.edge.registry;
                let telling = registry.notify_session(&session.reference, ROOTS_CHANGED);
                let _ = tokio::time::timeout(SIDE, telling).await;
            }
            other => tracing::debug!(method = other, "a notification of a client has no effect"),
        }
    }

    async fn request(
        &self,
        context: &RequestContext,
        id: RequestId<'_>,
        method: &str,
        params: Option<&RawValue>,
    ) -> Reply {
        // The predecessor's clients call and list without a handshake.
        if self.session.is_none() && !matches!(method, "tools/call" | "tools/list") {
            return session_needed(Some(id));
        }
        let asked = Asked {
            edge: self.edge,
            context,
            headers: self.headers,
            body: self.body,
            version: self.version,
            id,
            params,
            session: self.session.as_ref(),
            client: None,
            capabilities: None,
            log_level: None,
        };
        if let Some(reply) = asked.answer(method).await {
            return reply;
        }
        match (method, &self.session) {
            ("ping", _) => Reply::result(id, b"{}"),
            ("logging/setLevel", Some(session)) => set_level(&asked, session).await,
            ("resources/subscribe", Some(session)) => subscribe(&asked, session),
            ("resources/unsubscribe", Some(session)) => unsubscribe(&asked, session),
            _ => {
                let message = format!("the method `{}` is not known here", shown(method));
                Reply::error(StatusCode::OK, Some(id), RpcErrorCode::MethodNotFound, &message)
            }
        }
    }
}

/// The least severe log messages that the client wants from now on.
async fn set_level(asked: &Asked<'_>, session: &Arc<Session>) -> Reply {
    let members = match asked.members() {
        Ok(members) => members,
        Err(message) => return asked.invalid(&message),
    };
    let level = members.get_str("level").and_then(|text| LogLevel::parse(&text));
    let Some(level) = level else {
        let names: Vec<&str> = LogLevel::ALL.iter().map(|level| level.as_str()).collect();
        return asked.invalid(&format!("`level` must be one of {}", names.join(", ")));
    };
    session.live().set_log_level(level);
    let setting = asked.edge.registry.set_log_level(&session.reference, level);
    let _ = tokio::time::timeout(SIDE, setting).await;
    Reply::result(asked.id, b"{}")
}

fn subscribe(asked: &Asked<'_>, session: &Arc<Session>) -> Reply {
    let members = match asked.members() {
        Ok(members) => members,
        Err(message) => return asked.invalid(&message),
    };
    let Some(uri) = members.get_str("uri") else { return asked.invalid("`uri` must be a string") };
    let catalogue = asked.catalogue();
    let route = match catalogue.find_resource(&uri) {
        Ok(route) => route,
        Err(why) => return asked.no_resource(&uri, &why),
    };
    if route.server.keeps_sessions() {
        session.live().own_subscriptions.lock().insert(route.uri.clone(), uri.into_owned());
        return own_subscription(asked, "resources/subscribe", route, &members);
    }
    let watched = match listen::Watched::new(&route.server, route.uri) {
        Ok(watched) => watched,
        Err(error) => return asked.invalid(&error.to_string()),
    };
    let mut subscriptions = session.live().subscriptions.lock();
    if subscriptions.len() >= SUBSCRIPTIONS {
        return asked.invalid(&format!("a session may subscribe to {SUBSCRIPTIONS} resources"));
    }
    subscriptions.insert(uri.into_owned(), watched);
    Reply::result(asked.id, b"{}")
}

/// Where the server keeps a session for this client alone, it keeps the subscription too.
fn own_subscription(
    asked: &Asked<'_>,
    method: &'static str,
    route: ResourceRoute,
    members: &RawObject<'_>,
) -> Reply {
    let mut forward = asked.forward(method, &route.server);
    forward.uri = Some(route.uri);
    let asked_for = members.get_str("uri").filter(|uri| asked.catalogue().lists_resource(uri));
    forward.exposed = asked_for.map(|uri| Arc::from(&*uri));
    asked.pass_on(forward, members, false)
}

fn unsubscribe(asked: &Asked<'_>, session: &Arc<Session>) -> Reply {
    let members = match asked.members() {
        Ok(members) => members,
        Err(message) => return asked.invalid(&message),
    };
    let Some(uri) = members.get_str("uri") else { return asked.invalid("`uri` must be a string") };
    let watched = session.live().subscriptions.lock().remove(uri.as_ref());
    if watched.is_none()
        && let Ok(route) = asked.catalogue().find_resource(&uri)
        && route.server.keeps_sessions()
    {
        session.live().own_subscriptions.lock().remove(&route.uri);
        return own_subscription(asked, "resources/unsubscribe", route, &members);
    }
    Reply::result(asked.id, b"{}")
}

async fn initialize(
    edge: &Edge,
    context: &RequestContext,
    id: RequestId<'_>,
    params: Option<&RawValue>,
) -> Response<Body> {
    let began = clock::uptime();
    let measure = |version, error| {
        let labels = labels(context, version, error);
        edge.metrics.observe_operation("initialize", labels, clock::uptime().since(began));
    };
    let invalid = |message: &str| {
        measure(ProtocolVersion::LATEST_LEGACY, Some(ErrorCode::InvalidRequest));
        rpc_error(StatusCode::OK, Some(id.json()), RpcErrorCode::InvalidParams, message, None)
    };
    let members = match strict(params) {
        Ok(members) => members,
        Err(message) => return invalid(&message),
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
        .map(|client| ClientInfo {
            // It is stored with the session.
            name: edge.audit.redacted(&client.name),
            version: edge.audit.redacted(&client.version),
        })
        .unwrap_or_default();
    let capabilities = members.get("capabilities").map(RawValue::get);
    let session = match edge.sessions.create(context, version, client, capabilities).await {
        Ok(session) => session,
        Err(error) => {
            measure(version, Some(error.code));
            let status =
                StatusCode::from_u16(error.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            return rpc_error(status, Some(id.json()), RpcErrorCode::Internal, &error.detail, None);
        }
    };
    let result = format!(
        r#"{{"protocolVersion":"{version}","capabilities":{},"serverInfo":{},"instructions":{}}}"#,
        super::CAPABILITIES,
        PeerIdentity::JSON,
        serde_json::Value::from(INSTRUCTIONS)
    );
    let mut response =
        json(StatusCode::OK, result_response(id.json(), "result", result.as_bytes()));
    if let Ok(value) = HeaderValue::from_str(&session) {
        response.headers_mut().insert(SESSION_ID.clone(), value);
    }
    measure(version, None);
    response
}

fn refuse(status: StatusCode, message: &str) -> Response<Body> {
    rpc_error(status, None, RpcErrorCode::InvalidRequest, message, None)
}

/// Opens the stream of a session for what belongs to no request.
pub(super) fn stream(
    edge: &Arc<Edge>,
    context: &RequestContext,
    headers: &HeaderMap,
) -> Response<Body> {
    let Some(id) = headers.get(&SESSION_ID).map(HeaderValue::as_bytes) else {
        return refuse(StatusCode::BAD_REQUEST, NO_ID);
    };
    let Some(session) = edge.sessions.find(id, context) else {
        return refuse(StatusCode::NOT_FOUND, NO_SESSION);
    };
    let last = headers.get(&LAST_EVENT_ID).and_then(|value| value.to_str().ok());
    let Some(last) = last else { return listen::session_stream(edge, &session) };
    match session.live().journals.resume(last) {
        Some(rest) => event_stream(rest),
        None => refuse(StatusCode::GONE, "the stream of that event is no longer kept"),
    }
}

/// Ends a session at its client's wish.
pub(super) async fn delete(
    edge: &Arc<Edge>,
    context: &RequestContext,
    headers: &HeaderMap,
) -> Response<Body> {
    let Some(id) = headers.get(&SESSION_ID).map(HeaderValue::as_bytes) else {
        return refuse(StatusCode::BAD_REQUEST, NO_ID);
    };
    match edge.sessions.end(id, context).await {
        Ok(true) => super::reply::empty(StatusCode::NO_CONTENT),
        Ok(false) => refuse(StatusCode::NOT_FOUND, NO_SESSION),
        Err(error) => {
            tracing::error!(%error, "a session could not be ended: {error}");
            refuse(StatusCode::SERVICE_UNAVAILABLE, "the session could not be ended; try again")
        }
    }
}

fn session_needed(id: Option<RequestId<'_>>) -> Reply {
    let message = "a session is needed; begin with initialize and send its Mcp-Session-Id";
    Reply::error(StatusCode::BAD_REQUEST, id, RpcErrorCode::InvalidRequest, message)
}
