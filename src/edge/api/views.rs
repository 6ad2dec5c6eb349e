//! The views over HTTP.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde::Serialize;

use super::Shared;
use crate::model::{ServerName, ViewName};

#[derive(Serialize)]
struct View {
    name: ViewName,
    path: String,
    description: String,
    /// Absent: all servers.
    servers: Option<Vec<ServerName>>,
    allow: Vec<String>,
    deny: Vec<String>,
    tools: usize,
}

#[derive(Serialize)]
struct Views {
    total: usize,
    views: Vec<View>,
}

pub(super) async fn list(State(edge): State<Shared>) -> impl IntoResponse {
    let catalogue = edge.catalogue(None);
    let views: Vec<View> = catalogue
        .views()
        .iter()
        .map(|(name, view)| View {
            name: name.clone(),
            path: format!("/mcp/v/{name}"),
            description: view.spec.description.clone(),
            servers: view.spec.servers.as_ref().map(|servers| servers.iter().cloned().collect()),
            allow: view.spec.tools.allow.clone(),
            deny: view.spec.tools.deny.clone(),
            tools: view.catalogue.entries().len(),
        })
        .collect();
    Json(Views { total: views.len(), views })
}
