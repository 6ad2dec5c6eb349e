//! `GET /mcp/audit/events`: what the ledger has beside calls.
//!
//! Changes when it can be asked for differently.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::IntoResponse;
use serde::Deserialize;

use super::{LARGEST_PAGE, PAGE, event_kind, point};
use crate::edge::api::Shared;
use crate::edge::error::ApiError;
use crate::store::EntryFilter;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::edge::api) struct EventParameters {
    kind: Option<String>,
    actor: Option<String>,
    subject: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<u16>,
    cursor: Option<String>,
}

pub(in crate::edge::api) async fn events(
    State(edge): State<Shared>,
    query: Result<Query<EventParameters>, QueryRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let filter = EntryFilter {
        kind: event_kind(query.kind)?,
        actor: query.actor,
        subject: query.subject,
        since: query.since.as_deref().map(|text| point("since", text)).transpose()?,
        until: query.until.as_deref().map(|text| point("until", text)).transpose()?,
    };
    let limit = query.limit.unwrap_or(PAGE).clamp(1, LARGEST_PAGE);
    // Whoever asks after an act has been answered expects to find it.
    edge.audit.flush().await;
    Ok(Json(edge.ledger.events(&filter, query.cursor.as_deref(), limit).await?))
}
