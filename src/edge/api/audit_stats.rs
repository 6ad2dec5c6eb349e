//! Sums of the ledger over HTTP.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;

use super::Shared;
use super::audit::{outcome, point};
use super::query::{self, Asked};
use crate::clock;
use crate::edge::error::ApiError;
use crate::store::{AuditFilter, StatsBy, StatsPer, StatsQuery};

/// How far back sums go unless asked otherwise.
const SINCE: Duration = Duration::from_hours(24);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatsParameters {
    by: Option<String>,
    per: Option<String>,
    server: Option<String>,
    tool: Option<String>,
    outcome: Option<String>,
    caller: Option<String>,
    since: Option<String>,
    until: Option<String>,
}

fn by(text: &str) -> Result<StatsBy, ApiError> {
    match text {
        "server" => Ok(StatsBy::Server),
        "tool" => Ok(StatsBy::Tool),
        "caller" => Ok(StatsBy::Caller),
        _ => Err(ApiError::invalid(format!(
            "`by`: `{text}` is none of `server`, `tool` and `caller`"
        ))),
    }
}

fn per(text: &str) -> Result<StatsPer, ApiError> {
    match text {
        "hour" => Ok(StatsPer::Hour),
        "day" => Ok(StatsPer::Day),
        "total" => Ok(StatsPer::Total),
        _ => {
            Err(ApiError::invalid(format!("`per`: `{text}` is none of `hour`, `day` and `total`")))
        }
    }
}

pub(super) async fn stats(
    State(edge): State<Shared>,
    Asked(query): Asked<StatsParameters>,
) -> Result<impl IntoResponse, ApiError> {
    let now = clock::timestamp();
    let time = |key: &str, text: Option<&str>| text.map(|text| point(key, text)).transpose();
    let wanted = StatsQuery {
        by: query.by.as_deref().map(by).transpose()?.unwrap_or(StatsBy::Server),
        per: query.per.as_deref().map(per).transpose()?.unwrap_or(StatsPer::Total),
        since: time("since", query.since.as_deref())?.unwrap_or_else(|| now.minus(SINCE)),
        until: time("until", query.until.as_deref())?.unwrap_or(now),
        within: Vec::new(),
        filter: AuditFilter {
            server: query.server,
            tool: query.tool,
            outcome: query.outcome.as_deref().map(outcome).transpose()?,
            caller: query.caller,
            ..AuditFilter::default()
        },
    };
    query::span(Some(wanted.since), Some(wanted.until))?;
    // As in a list: whoever asks after a call has come back expects it to be counted.
    edge.audit.flush().await;
    Ok(Json(edge.ledger.stats(&wanted).await?))
}
