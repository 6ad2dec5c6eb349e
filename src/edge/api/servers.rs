//! The registry over HTTP.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Shared, body, breakers};
use crate::config::{self, expand};
use crate::edge::auth::RequestContext;
use crate::edge::error::ApiError;
use crate::edge::{Edge, FIRST_CONTACT};
use crate::error::ErrorCode;
use crate::model::{
    AuthKind, BreakerState, Caller, ServerName, ServerSource, ServerSpec, TransportKind,
    TransportSpec, cut_after,
};
use crate::protocol::RawObject;
use crate::registry::{RegistryError, ServerHandle, changed_keys};
use crate::store::EventRow;

#[derive(Serialize)]
struct Latency {
    p50: f64,
    p95: f64,
}

/// One server, as lists show it.
#[derive(Serialize)]
struct ServerView {
    name: String,
    transport: TransportKind,
    target: String,
    description: String,
    enabled: bool,
    source: ServerSource,
    state: &'static str,
    protocol_version: Option<String>,
    /// `modern`, `legacy`, `sse` or `jsonrpc`: what was found to work.
    dialect: Option<String>,
    tools: usize,
    stale: bool,
    /// The state of the server's own circuit breaker.
    breaker: BreakerState,
    last_error: Option<String>,
    last_error_at: Option<String>,
    last_discovery_at: Option<String>,
    in_flight: i64,
    /// Sessions at the server that belong to one requester each; 0 where all share one.
    upstream_sessions: usize,
    /// Of a child process and its descendants; nothing for a server that is none.
    processes: Option<u64>,
    resident_bytes: Option<u64>,
    latency_ms: Option<Latency>,
    revision: i64,
    created_at: String,
}

/// Elements of one list that the server gives and that are not offered.
#[derive(Serialize)]
struct LeftOut {
    /// `tools`, `prompts`, `resources` or `resourceTemplates`.
    list: &'static str,
    count: usize,
    /// Why the first of them is.
    reason: String,
}

#[derive(Serialize)]
struct ServerDetail {
    #[serde(flatten)]
    view: ServerView,
    left_out: Vec<LeftOut>,
    /// The server's own, then those of its tools where they have some.
    circuit_breakers: Vec<breakers::Standing>,
    spec: serde_json::Value,
    server_info: Option<Box<RawValue>>,
    instructions: Option<String>,
    stderr: Vec<String>,
}

#[derive(Serialize)]
struct ServerList {
    servers: Vec<ServerView>,
    total: usize,
}

fn view(edge: &Edge, handle: &ServerHandle) -> ServerView {
    let catalogue = edge.discovery.catalogue().load();
    let status = handle.status();
    let state = handle.state().as_str();
    let tools = catalogue.counts().get(&handle.name).copied().unwrap_or(0);
    let children = handle.child_usage();
    let fresh = state == "up" && status.tried && status.discovery.error.is_none();
    ServerView {
        name: handle.name.as_str().to_owned(),
        transport: handle.spec.transport.kind(),
        target: handle.display_target(),
        description: handle.spec.description.clone(),
        enabled: handle.enabled,
        source: handle.source,
        state,
        protocol_version: status.discovery.protocol_version,
        dialect: status.discovery.dialect,
        tools,
        stale: tools > 0 && !fresh,
        breaker: handle.breaker.status().state,
        last_error: status.discovery.error,
        last_error_at: status.discovery.error_at.map(|at| at.to_string()),
        last_discovery_at: status.discovery.ok_at.map(|at| at.to_string()),
        in_flight: handle.metrics.inflight.get(),
        upstream_sessions: handle.sessions(),
        processes: children.map(|usage| usage.processes),
        resident_bytes: children.map(|usage| usage.resident_bytes),
        latency_ms: handle.latency_ms().map(|[p50, p95]| Latency { p50, p95 }),
        revision: handle.revision,
        created_at: handle.created_at.to_string(),
    }
}

fn detail(edge: &Edge, handle: &ServerHandle) -> ServerDetail {
    let discovery = handle.status().discovery;
    let left_out = edge.discovery.left_out(&handle.name).into_iter().map(|lack| LeftOut {
        list: lack.list.member(),
        count: lack.count,
        reason: handle.scrub(&lack.reason),
    });
    ServerDetail {
        view: view(edge, handle),
        left_out: left_out.collect(),
        circuit_breakers: breakers::of_server(edge, handle),
        spec: config::server_to_json(&handle.spec),
        server_info: discovery.server_info.and_then(|raw| RawValue::from_string(raw).ok()),
        instructions: discovery.instructions,
        stderr: handle.stderr_tail(),
    }
}

pub(super) fn find(edge: &Edge, name: &str) -> Result<Arc<ServerHandle>, ApiError> {
    edge.registry.server(name).ok_or_else(|| {
        let server = cut_after(name, 64);
        RegistryError::Unknown { nearest: edge.registry.nearest(&server), server }.into()
    })
}

/// A server that may be asked for something.
fn find_enabled(edge: &Edge, name: &str) -> Result<Arc<ServerHandle>, ApiError> {
    let handle = find(edge, name)?;
    if !handle.enabled {
        let detail = format!("the server `{name}` is disabled; enable it first");
        return Err(ApiError::new(ErrorCode::Conflict, detail));
    }
    Ok(handle)
}

fn parse_name(name: &str) -> Result<ServerName, ApiError> {
    ServerName::parse(name).map_err(|error| ApiError::invalid(format!("`name`: {error}")))
}

pub(super) async fn list(State(edge): State<Shared>) -> impl IntoResponse {
    let servers: Vec<ServerView> =
        edge.registry.servers().values().map(|handle| view(&edge, handle)).collect();
    Json(ServerList { total: servers.len(), servers })
}

pub(super) async fn show(
    State(edge): State<Shared>,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(Json(detail(&edge, find(&edge, &name)?.as_ref())))
}

pub(super) async fn add(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = body::bytes(&edge, body).await?;
    let text = std::str::from_utf8(&body)
        .map_err(|error| ApiError::invalid(format!("the body is not UTF-8: {error}")))?;
    let object = RawObject::parse(text)
        .map_err(|error| ApiError::invalid(format!("the body is not a JSON object: {error}")))?;
    let name =
        body::string(&object, "name")?.ok_or_else(|| ApiError::invalid("`name` is missing"))?;
    let name = parse_name(&name)?;
    let spec = read_spec(&edge, &context.caller, &name, &object)?;
    let handle = edge.registry.add(&name, &spec).await?;
    note(&edge, &context.caller, "server.added", &name, &spec).await;
    first_contact(&edge, &handle).await;
    Ok((StatusCode::CREATED, Json(detail(&edge, &handle))).into_response())
}

pub(super) async fn replace(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    Path(name): Path<String>,
    body: Body,
) -> Result<impl IntoResponse, ApiError> {
    let known = find(&edge, &name)?;
    let body = body::bytes(&edge, body).await?;
    let text = std::str::from_utf8(&body)
        .map_err(|error| ApiError::invalid(format!("the body is not UTF-8: {error}")))?;
    let object = RawObject::parse(text)
        .map_err(|error| ApiError::invalid(format!("the body is not a JSON object: {error}")))?;
    if body::string(&object, "name")?.is_some_and(|said| said != name) {
        return Err(ApiError::invalid("`name` differs from the name in the path"));
    }
    let spec = read_spec(&edge, &context.caller, &known.name, &object)?;
    let handle = edge.registry.replace(&known.name, &spec).await?;
    let changed = changed_keys(&known.spec, &spec);
    let mut told = config::server_to_json(&spec);
    if let Some(told) = told.as_object_mut() {
        told.insert("changed".to_owned(), serde_json::json!(changed));
    }
    note_detail(&edge, &context.caller, "server.changed", &known.name, &told).await;
    first_contact(&edge, &handle).await;
    Ok(Json(detail(&edge, &handle)))
}

pub(super) async fn remove(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let known = find(&edge, &name)?;
    edge.registry.remove(&known.name).await?;
    note(&edge, &context.caller, "server.removed", &known.name, &known.spec).await;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn enable(
    state: State<Shared>,
    context: Extension<RequestContext>,
    name: Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    switch(state, context, name, true).await
}

pub(super) async fn disable(
    state: State<Shared>,
    context: Extension<RequestContext>,
    name: Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    switch(state, context, name, false).await
}

async fn switch(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    Path(name): Path<String>,
    enabled: bool,
) -> Result<Json<ServerDetail>, ApiError> {
    let known = find(&edge, &name)?;
    let handle = edge.registry.set_enabled(&known.name, enabled).await?;
    let kind = if enabled { "server.enabled" } else { "server.disabled" };
    note(&edge, &context.caller, kind, &known.name, &known.spec).await;
    if enabled {
        first_contact(&edge, &handle).await;
    }
    Ok(Json(detail(&edge, &handle)))
}

pub(super) async fn refresh(
    State(edge): State<Shared>,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let handle = find_enabled(&edge, &name)?;
    // The outcome is in the state that is answered; a failure is not a failure of this request.
    let _ = edge.discovery.discover(&handle).await;
    Ok(Json(detail(&edge, &handle)))
}

/// Opens a new connection, and says whether the server works over it.
pub(super) async fn reconnect(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let handle = find_enabled(&edge, &name)?;
    let handle = edge.registry.reconnect(&handle.name)?;
    note(&edge, &context.caller, "server.reconnected", &handle.name, &handle.spec).await;
    first_contact(&edge, &handle).await;
    Ok(Json(detail(&edge, &handle)))
}

/// Asks a new server for its tools, so that the answer can say whether it works; a slow one goes
/// on in the background.
async fn first_contact(edge: &Shared, handle: &Arc<ServerHandle>) {
    if !handle.enabled {
        return;
    }
    let (discovery, handle) = (Arc::clone(&edge.discovery), Arc::clone(handle));
    let asking = edge.tasks.spawn(async move { discovery.discover(&handle).await.is_ok() });
    let _ = tokio::time::timeout(FIRST_CONTACT, asking).await;
}

/// Reads a specification and applies the rules for what came over the network: no reference to
/// our environment, no program but the configured ones.
fn read_spec(
    edge: &Edge,
    caller: &Caller,
    name: &ServerName,
    object: &RawObject<'_>,
) -> Result<ServerSpec, ApiError> {
    let over_socket = caller.auth == AuthKind::Socket;
    let mut members = Vec::new();
    let mut command_id = None;
    for (key, value) in object.iter() {
        match key {
            "name" => {}
            "command_id" if !over_socket => command_id = body::string(object, "command_id")?,
            _ => members.push(format!("{}:{}", serde_json::Value::from(key), value.get())),
        }
    }
    if let Some(id) = command_id {
        let settings = edge.settings.load();
        let command = settings.stdio_commands.get(&id).ok_or_else(|| {
            ApiError::invalid(format!("`command_id`: `{id}` is not one of admin.stdio_commands"))
        })?;
        // Environment and folder would change what a permitted program does.
        for key in ["command", "args", "env", "cwd", "url", "headers"] {
            if object.get(key).is_some() {
                return Err(ApiError::invalid(format!(
                    "`command_id` stands for a configured program; leave `{key}` out"
                )));
            }
        }
        members.push(format!(r#""command":{}"#, serde_json::Value::from(command.command.as_str())));
        members.push(format!(r#""args":{}"#, serde_json::Value::from(command.args.clone())));
        return Ok(config::server_from_json(
            name,
            format!("{{{}}}", members.join(",")).as_bytes(),
        )?);
    }
    let spec = config::server_from_json(name, format!("{{{}}}", members.join(",")).as_bytes())?;
    if over_socket {
        return Ok(spec);
    }
    if let TransportSpec::Stdio { .. } = spec.transport {
        let detail = "programs are not started over HTTP; use `switchyard servers add` on the machine, or a command_id of admin.stdio_commands";
        return Err(ApiError::new(ErrorCode::Permission, detail));
    }
    let reference = match &spec.transport {
        TransportSpec::Http { url, headers }
        | TransportSpec::Sse { url, headers }
        | TransportSpec::Jsonrpc { url, headers } => {
            headers.values().chain(std::iter::once(url)).any(|text| expand::has_reference(text))
        }
        TransportSpec::Stdio { .. } => false,
    };
    if reference {
        let detail = "`${…}` is only expanded for servers of the file and the admin socket";
        return Err(ApiError::invalid(detail));
    }
    Ok(spec)
}

async fn note(edge: &Edge, caller: &Caller, kind: &str, server: &ServerName, spec: &ServerSpec) {
    note_detail(edge, caller, kind, server, &config::server_to_json(spec)).await;
}

async fn note_detail(
    edge: &Edge,
    caller: &Caller,
    kind: &str,
    server: &ServerName,
    detail: &serde_json::Value,
) {
    let event = EventRow {
        at: crate::clock::timestamp(),
        actor: caller.name.as_ref().to_owned(),
        kind: kind.to_owned(),
        subject: server.as_str().to_owned(),
        detail: detail.to_string(),
    };
    if let Err(error) = edge.store.append_event(&event).await {
        tracing::error!(%error, "an administrative act could not be recorded: {error}");
    }
    tracing::info!(server.name = %server, actor = %caller.name, kind, "{kind} {server} by {}", caller.name);
}
