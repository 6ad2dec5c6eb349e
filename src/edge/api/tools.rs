//! The catalogue over HTTP.

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::query::Asked;
use super::{Shared, servers};
use crate::catalogue::{KnownTool, Lookup};
use crate::edge::Edge;
use crate::edge::auth::RequestContext;
use crate::edge::error::ApiError;
use crate::error::ErrorCode;
use crate::model::{
    ServerName, Timestamp, ToolName, ToolStatus, ToolTarget, ViewName, cut_after, did_you_mean,
};
use crate::protocol::{RawObject, ToolDefinition};

/// Entries of one tool's history that are shown.
const HISTORY: u16 = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    search: Option<String>,
    server: Option<String>,
    view: Option<String>,
}

#[derive(Serialize)]
struct ToolView {
    name: Option<String>,
    tool: String,
    server_name: String,
    title: Option<String>,
    description: Option<String>,
    input_schema: Option<Box<RawValue>>,
    output_schema: Option<Box<RawValue>>,
    annotations: Option<Box<RawValue>>,
    /// Whether it is declared to change nothing, and that may be believed.
    read_only: bool,
    status: ToolStatus,
    definition_hash: String,
    first_seen_at: String,
    last_seen_at: String,
}

#[derive(Serialize)]
struct ToolList {
    tools: Vec<ToolView>,
    total: usize,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn view(
    name: Option<&str>,
    server: &ServerName,
    definition: &ToolDefinition,
    read_only: bool,
    status: ToolStatus,
    seen: (Timestamp, Timestamp),
) -> ToolView {
    let text = std::str::from_utf8(&definition.raw).unwrap_or("{}");
    let members = RawObject::parse(text).unwrap_or_default();
    let member = |key: &str| members.get(key).map(ToOwned::to_owned);
    ToolView {
        name: name.map(ToOwned::to_owned),
        tool: definition.name.as_str().to_owned(),
        server_name: server.as_str().to_owned(),
        title: definition.title.clone(),
        description: definition.description.clone(),
        input_schema: member("inputSchema"),
        output_schema: member("outputSchema"),
        annotations: member("annotations"),
        read_only,
        status,
        definition_hash: hex(&definition.hash),
        first_seen_at: seen.0.to_string(),
        last_seen_at: seen.1.to_string(),
    }
}

fn inactive(tool: &KnownTool) -> ToolView {
    let row = &tool.row;
    let seen = (row.first_seen_at, row.last_seen_at);
    view(None, &row.server, &tool.definition, false, row.status, seen)
}

fn collect(
    edge: &Edge,
    within: Option<&ViewName>,
    server: Option<&str>,
    search: Option<&str>,
) -> ToolList {
    let search = search.map(str::to_lowercase);
    let found = |tool: &ToolView| {
        search.as_ref().is_none_or(|wanted| {
            [
                tool.name.as_deref(),
                Some(&tool.tool),
                tool.title.as_deref(),
                tool.description.as_deref(),
            ]
            .into_iter()
            .flatten()
            .any(|text| text.to_lowercase().contains(wanted))
        })
    };
    let catalogue = edge.catalogue(within);
    let wanted = |name: &ServerName| server.is_none_or(|server| server == name.as_str());
    let callable =
        catalogue.entries().iter().filter(|entry| wanted(&entry.server.name)).map(|entry| {
            let seen = (entry.first_seen_at, entry.last_seen_at);
            view(
                Some(entry.exposed.as_str()),
                &entry.server.name,
                &entry.definition,
                entry.is_read_only(),
                entry.status,
                seen,
            )
        });
    let held = edge.discovery.inactive();
    let held = held
        .iter()
        .filter(|tool| tool.row.status == ToolStatus::Held && wanted(&tool.row.server))
        .filter(|tool| {
            let row = &tool.row;
            within.is_none()
                || catalogue
                    .parts()
                    .held
                    .iter()
                    .any(|(server, name)| *server == row.server && *name == row.tool)
        })
        .map(inactive);
    let tools: Vec<ToolView> = callable.chain(held).filter(found).collect();
    ToolList { total: tools.len(), tools }
}

pub(super) async fn list(
    State(edge): State<Shared>,
    Asked(filter): Asked<Filter>,
) -> Result<impl IntoResponse, ApiError> {
    let view = filter.view.as_deref().map(|name| edge.view(name)).transpose()?;
    Ok(Json(collect(&edge, view.as_ref(), filter.server.as_deref(), filter.search.as_deref())))
}

pub(super) async fn of_server(
    State(edge): State<Shared>,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let handle = servers::find(&edge, &name)?;
    Ok(Json(collect(&edge, None, Some(handle.name.as_str()), None)))
}

/// Finds server and upstream name of a tool, also of one that is gone or held.
fn locate(edge: &Edge, name: &str) -> Result<(ServerName, ToolName), ApiError> {
    let target = ToolTarget { tool: name.to_owned(), server: None };
    let catalogue = edge.discovery.catalogue().load();
    if let Lookup::Found(entry) = catalogue.lookup(&target) {
        return Ok((entry.server.name.clone(), entry.tool.clone()));
    }
    let inactive = edge.discovery.inactive();
    let found = inactive.iter().find(|tool| {
        tool.row.tool.as_str() == name || format!("{}__{}", tool.row.server, tool.row.tool) == name
    });
    match found {
        Some(tool) => Ok((tool.row.server.clone(), tool.row.tool.clone())),
        None => {
            let names = catalogue.entries().iter().map(|entry| entry.exposed.as_str());
            let nearest = crate::model::nearest(name, names, 3);
            let name = cut_after(name, 128);
            let detail = format!("there is no tool `{name}`{}", did_you_mean(&nearest));
            Err(ApiError { nearest, ..ApiError::new(ErrorCode::ToolNotFound, detail) })
        }
    }
}

#[derive(Serialize)]
struct HistoryView {
    server: String,
    tool: String,
    kind: &'static str,
    old_hash: Option<String>,
    new_hash: Option<String>,
    at: String,
    by: Option<String>,
}

#[derive(Serialize)]
struct History {
    history: Vec<HistoryView>,
}

pub(super) async fn history(
    State(edge): State<Shared>,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let (server, tool) = locate(&edge, &name)?;
    let rows = edge.store.tool_history(&server, &tool, HISTORY).await?;
    let history = rows
        .into_iter()
        .map(|row| HistoryView {
            server: row.server.as_str().to_owned(),
            tool: row.tool.as_str().to_owned(),
            kind: row.kind.as_str(),
            old_hash: row.old_hash.map(|hash| hex(&hash)),
            new_hash: row.new_hash.map(|hash| hex(&hash)),
            at: row.at.to_string(),
            by: row.by,
        })
        .collect();
    Ok(Json(History { history }))
}

#[derive(Serialize)]
struct Approved {
    server: String,
    tool: String,
    name: Option<String>,
}

pub(super) async fn approve(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let (server, tool) = locate(&edge, &name)?;
    if !edge.discovery.approve(&server, &tool, &context.caller.name).await? {
        let detail = format!("the tool `{tool}` of server `{server}` does not wait for approval");
        return Err(ApiError::new(ErrorCode::Conflict, detail));
    }
    let name = edge.exposed_name(server.as_str(), &tool).map(|name| name.as_str().to_owned());
    let (server, tool) = (server.as_str().to_owned(), tool.as_str().to_owned());
    Ok(Json(Approved { server, tool, name }))
}
