//! The ledger over HTTP.

mod chain;
mod events;
mod export;
mod tail;

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use http::Uri;
use serde::Deserialize;
use url::form_urlencoded;

use super::Shared;
use super::query::{self, Asked};
use crate::edge::auth::RequestContext;
use crate::edge::error::ApiError;
use crate::error::ErrorCode;
use crate::model::{CallId, Outcome, Timestamp, TraceId, cut_after, nearest, parse_duration};
use crate::store::AuditFilter;

pub(super) use events::events;
pub(super) use export::export;
pub(super) use tail::tail;

/// Rows of a page unless asked otherwise.
const PAGE: u16 = 100;

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
    trace: Option<String>,
    since: Option<String>,
    until: Option<String>,
    text: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// Reads the parameters of a request that has some of its own beside those of the list.
fn with_own<const N: usize>(
    text: &str,
    names: [&str; N],
) -> Result<([Option<String>; N], AuditParameters), ApiError> {
    let mut own = [const { None }; N];
    let mut rest = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        let place = names.iter().position(|own| *own == name);
        let Some(place) = place.and_then(|at| own.get_mut(at)) else {
            rest.append_pair(&name, &value);
            continue;
        };
        if place.replace(value.into_owned()).is_some() {
            return Err(ApiError::invalid(format!("`{name}` is there twice")));
        }
    }
    let uri = Uri::builder().path_and_query(format!("/?{}", rest.finish())).build();
    let uri = uri.map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok((own, query::read_beside(&uri, &names)?))
}

fn is_true(name: &str, value: Option<&str>) -> Result<bool, ApiError> {
    match value {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(ApiError::invalid(format!("`{name}` is `true` or `false`"))),
    }
}

/// A kind of events, or with a `*` at its end all that begin so.
fn event_kind(kind: Option<String>) -> Result<Option<String>, ApiError> {
    match kind {
        Some(kind) if kind.trim_end_matches('*').contains('*') => {
            Err(ApiError::invalid("`kind`: a `*` stands at the end alone, as in `server.*`"))
        }
        kind => Ok(kind),
    }
}

/// A point in time: RFC 3339, a date, milliseconds since the epoch, or a duration back from now.
pub(super) fn point(key: &str, text: &str) -> Result<Timestamp, ApiError> {
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
        let text = cut_after(text, 64);
        // What a `+` before the offset becomes where it was not encoded.
        let blank = text.rsplit_once(' ').is_some_and(|(before, after)| {
            format!("{before}+{after}").parse::<jiff::Timestamp>().is_ok()
        });
        let hint = if blank { "; in a query a `+` is written `%2B`" } else { "" };
        ApiError::invalid(format!(
            "`{key}`: `{text}` is neither a time (2026-11-24T10:00:00Z, 2026-11-24) nor a span back from now (1h){hint}"
        ))
    })
}

pub(super) fn outcome(text: &str) -> Result<Outcome, ApiError> {
    Outcome::parse(text).ok_or_else(|| {
        let names = Outcome::ALL.map(Outcome::as_str);
        let like = nearest(text, names.iter().copied(), 1);
        let hint = match like.first() {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("outcomes are {}", names.join(", ")),
        };
        ApiError::invalid(format!("`outcome`: `{text}` is not one; {hint}"))
    })
}

fn trace(text: &str) -> Result<TraceId, ApiError> {
    TraceId::parse(&text.to_ascii_lowercase()).ok_or_else(|| {
        let shown: String = text.chars().take(64).collect();
        ApiError::invalid(format!(
            "`trace`: `{shown}` is not the id of a trace; that is 32 hexadecimal digits, not all zeros"
        ))
    })
}

fn filter(query: &AuditParameters) -> Result<AuditFilter, ApiError> {
    let outcome = query.outcome.as_deref().map(outcome).transpose()?;
    let since = query.since.as_deref().map(|text| point("since", text)).transpose()?;
    let until = query.until.as_deref().map(|text| point("until", text)).transpose()?;
    query::span(since, until)?;
    Ok(AuditFilter {
        server: query.server.clone(),
        tool: query.tool.clone(),
        outcome,
        caller: query.caller.clone(),
        session: query.session.clone(),
        error_code: query.error_code.clone(),
        view: query.view.clone(),
        trace: query.trace.as_deref().map(trace).transpose()?,
        since,
        until,
        text: query.text.clone(),
    })
}

/// The filter of a request that gives all that matches, in whatever order it likes.
fn unpaged(query: &AuditParameters, what: &str) -> Result<AuditFilter, ApiError> {
    let paging = [("limit", query.limit.is_some()), ("cursor", query.cursor.is_some())];
    match paging.into_iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(ApiError::invalid(format!(
            "`{name}`: {what} has no pages; bound it with `since` and `until`, or use GET /mcp/audit"
        ))),
        None => filter(query),
    }
}

pub(super) async fn list(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    Asked(query): Asked<AuditParameters>,
) -> Result<impl IntoResponse, ApiError> {
    let limit = query::limit(query.limit.as_deref(), PAGE)?;
    let filter = filter(&query)?;
    // Whoever asks after a call has come back expects to find it.
    edge.audit.flush().await;
    searched(&edge, &context, &query);
    let page = edge.ledger.page(&filter, query.cursor.as_deref(), limit).await?;
    Ok(Json(page))
}

/// A search looks into payloads: what it finds says what is in them.
fn searched(edge: &Shared, context: &RequestContext, query: &AuditParameters) {
    if let Some(text) = &query.text {
        edge.payloads_searched(context, text);
    }
}

pub(super) async fn show(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let parsed = CallId::parse(&id).ok_or_else(|| {
        let id = cut_after(&id, 64);
        ApiError::invalid(format!("`{id}` is not a call id; ids look like 0193e0a4-…"))
    })?;
    edge.audit.flush().await;
    match edge.ledger.get(parsed).await? {
        Some(call) => {
            if call.arguments.is_some() || call.result.is_some() {
                edge.payloads_read(&context, parsed);
            }
            Ok(Json(call))
        }
        None => Err(ApiError::new(
            ErrorCode::NotFound,
            format!("there is no call {parsed} in the ledger"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_whose_plus_became_a_blank_is_refused_with_the_way_to_write_it() {
        let said = |text| point("since", text).unwrap_err().detail;
        assert!(said("2026-11-29T22:00:00 02:00").ends_with("a `+` is written `%2B`"));
        assert!(!said("2026-11-29T22:00:00 x").contains("%2B"));
        assert!(point("since", "2026-11-29T22:00:00+02:00").is_ok());
    }
}
