//! The ledger over HTTP.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use serde::Deserialize;

use super::Shared;
use crate::audit::CallRecord;
use crate::edge::error::ApiError;
use crate::error::ErrorCode;
use crate::model::{
    CallId, Outcome, ServerName, Timestamp, ToolName, ViewName, nearest, parse_duration,
};
use crate::store::AuditFilter;

/// Rows of a page unless asked otherwise.
const PAGE: u16 = 100;
/// Rows of a page at most.
const LARGEST_PAGE: u16 = 1000;
/// How often the tail looks for new rows; the ledger commits no faster.
const TAIL: Duration = Duration::from_millis(200);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditParameters {
    server: Option<String>,
    tool: Option<String>,
    outcome: Option<String>,
    caller: Option<String>,
    session: Option<String>,
    error_code: Option<String>,
    view: Option<String>,
    since: Option<String>,
    until: Option<String>,
    text: Option<String>,
    limit: Option<u16>,
    cursor: Option<String>,
}

/// A point in time: RFC 3339, a date, milliseconds since the epoch, or a duration back from now.
fn point(key: &str, text: &str) -> Result<Timestamp, ApiError> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(Timestamp::from_millis(at.as_millisecond()));
    }
    if let Ok(date) = text.parse::<jiff::civil::Date>()
        && let Ok(midnight) = format!("{date}T00:00:00Z").parse::<jiff::Timestamp>()
    {
        return Ok(Timestamp::from_millis(midnight.as_millisecond()));
    }
    // Twelve digits and more are milliseconds of this century; fewer are seconds back.
    if text.len() >= 12
        && text.bytes().all(|b| b.is_ascii_digit())
        && let Ok(millis) = text.parse()
    {
        return Ok(Timestamp::from_millis(millis));
    }
    parse_duration(text).map(|span| crate::clock::timestamp().minus(span)).ok().ok_or_else(|| {
        ApiError::invalid(format!(
            "`{key}`: `{text}` is neither a time (2026-11-24T10:00:00Z, 2026-11-24) nor a span back from now (1h)"
        ))
    })
}

fn filter(query: &AuditParameters) -> Result<AuditFilter, ApiError> {
    let outcome = match query.outcome.as_deref() {
        None => None,
        Some(text) => Some(Outcome::parse(text).ok_or_else(|| {
            let names = Outcome::ALL.map(Outcome::as_str);
            let like = nearest(text, names.iter().copied(), 1);
            let hint = match like.first() {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("outcomes are {}", names.join(", ")),
            };
            ApiError::invalid(format!("`outcome`: `{text}` is not one; {hint}"))
        })?),
    };
    Ok(AuditFilter {
        server: query.server.clone(),
        tool: query.tool.clone(),
        outcome,
        caller: query.caller.clone(),
        session: query.session.clone(),
        error_code: query.error_code.clone(),
        view: query.view.clone(),
        since: query.since.as_deref().map(|text| point("since", text)).transpose()?,
        until: query.until.as_deref().map(|text| point("until", text)).transpose()?,
        text: query.text.clone(),
    })
}

pub(super) async fn list(
    State(edge): State<Shared>,
    query: Result<Query<AuditParameters>, QueryRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, LARGEST_PAGE);
    // Whoever asks after a call has come back expects to find it.
    edge.audit.flush().await;
    let page = edge.ledger.page(&filter(&query)?, query.cursor.as_deref(), limit).await?;
    Ok(Json(page))
}

pub(super) async fn show(
    State(edge): State<Shared>,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let parsed = CallId::parse(&id).ok_or_else(|| {
        let id: String = id.chars().take(64).collect();
        ApiError::invalid(format!("`{id}` is not a call id; ids look like 0193e0a4-…"))
    })?;
    edge.audit.flush().await;
    match edge.ledger.get(parsed).await? {
        Some(call) => Ok(Json(call)),
        None => Err(ApiError::new(
            ErrorCode::NotFound,
            format!("there is no call {parsed} in the ledger"),
        )),
    }
}

/// Whether a new row is one that a tail with this filter shows. Payloads are not looked into.
fn matches(filter: &AuditFilter, row: &CallRecord) -> bool {
    fn is(wanted: Option<&String>, have: Option<&str>) -> bool {
        wanted.is_none_or(|wanted| have == Some(wanted))
    }
    let text = filter.text.as_ref().map(|text| text.to_ascii_lowercase());
    is(filter.server.as_ref(), row.server.as_ref().map(ServerName::as_str))
        && (is(filter.tool.as_ref(), Some(&row.tool))
            || is(filter.tool.as_ref(), row.upstream_tool.as_ref().map(ToolName::as_str)))
        && filter.outcome.is_none_or(|outcome| outcome == row.outcome)
        && is(filter.caller.as_ref(), Some(&row.caller))
        && is(filter.session.as_ref(), row.session.as_deref())
        && is(filter.error_code.as_ref(), row.error_code.map(ErrorCode::as_str))
        && is(filter.view.as_ref(), row.view.as_ref().map(ViewName::as_str))
        && text.is_none_or(|text| {
            row.error.as_ref().is_some_and(|error| error.to_ascii_lowercase().contains(&text))
        })
}

/// New rows as they are committed.
pub(super) async fn tail(
    State(edge): State<Shared>,
    query: Result<Query<AuditParameters>, QueryRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let filter = filter(&query)?;
    let newest = edge.ledger.page(&AuditFilter::default(), None, 1).await?;
    let last = newest.calls.first().map_or(0, |row| row.seq);
    let stop = edge.stop.clone();
    let state = (edge, filter, last, Vec::<CallRecord>::new().into_iter());
    let rows = futures_util::stream::unfold(state, move |(edge, filter, mut last, mut rows)| {
        let stop = stop.clone();
        async move {
            loop {
                if let Some(row) = rows.next() {
                    let event = Event::default().json_data(&row).unwrap_or_default();
                    return Some((Ok::<_, Infallible>(event), (edge, filter, last, rows)));
                }
                tokio::select! {
                    () = stop.cancelled() => return None,
                    () = tokio::time::sleep(TAIL) => {}
                }
                match edge.ledger.after(last, LARGEST_PAGE).await {
                    Ok(new) => {
                        last = new.last().map_or(last, |row| row.seq);
                        let wanted: Vec<_> =
                            new.into_iter().filter(|row| matches(&filter, row)).collect();
                        rows = wanted.into_iter();
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the tail of the ledger could not be read: {error}");
                        return None;
                    }
                }
            }
        }
    });
    Ok(Sse::new(rows).keep_alive(KeepAlive::default()))
}
