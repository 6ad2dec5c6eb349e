//! `GET /mcp/audit/events`: what the ledger has beside calls.
//!
//! Changes when it can be asked for differently.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;

use super::{PAGE, event_kind, point};
use crate::edge::api::Shared;
use crate::edge::api::query::{self, Asked};
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
    limit: Option<String>,
    cursor: Option<String>,
}

pub(in crate::edge::api) async fn events(
    State(edge): State<Shared>,
    Asked(query): Asked<EventParameters>,
) -> Result<impl IntoResponse, ApiError> {
    let filter = EntryFilter {
        kind: event_kind(query.kind)?,
        actor: query.actor,
        subject: query.subject,
        since: query.since.as_deref().map(|text| point("since", text)).transpose()?,
        until: query.until.as_deref().map(|text| point("until", text)).transpose()?,
    };
    query::span(filter.since, filter.until)?;
    let limit = query::limit(query.limit.as_deref(), PAGE)?;
    // Whoever asks after an act has been answered expects to find it.
    edge.audit.flush().await;
    Ok(Json(edge.ledger.events(&filter, query.cursor.as_deref(), limit).await?))
}
