//! `GET /mcp/audit/tail`: calls as they are committed, as server-sent events.
//!
//! Changes when a tail can be asked for differently.
//!
//! A tail looks into the database after what it gave last, so that whoever reads slowly, or comes
//! back with `Last-Event-ID`, misses nothing, and calls know nothing of tails. It looks again when
//! it has given all there is, [`PAUSE`] later.

use std::convert::Infallible;
use std::time::Duration;
use std::vec;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use super::{AuditParameters, searched, unpaged};
use crate::audit::CallRecord;
use crate::clock;
use crate::edge::api::Shared;
use crate::edge::auth::{Door, RequestContext};
use crate::edge::door::MayBeCut;
use crate::edge::error::ApiError;
use crate::model::{AuthKind, Scope, Uptime};
use crate::store::AuditFilter;

/// Between two looks at a ledger that has nothing new; it commits a few times in this time.
const PAUSE: Duration = Duration::from_millis(200);
/// A silent stream says this often that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// How long clients wait before they come back.
const COME_BACK: Duration = Duration::from_millis(500);
/// Calls read at once.
const STRETCH: u16 = 1000;

static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Where a tail goes on: after the event that the client had last.
fn taken_up(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let Some(value) = headers.get(&LAST_EVENT_ID) else { return Ok(None) };
    let seq = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    seq.filter(|seq: &i64| *seq >= 0).map(Some).ok_or_else(|| {
        ApiError::invalid("`Last-Event-ID` is not the id of an event of this stream")
    })
}

pub(in crate::edge::api) async fn tail(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    headers: HeaderMap,
    query: Result<Query<AuditParameters>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let filter = unpaged(&query, "a tail")?;
    searched(&edge, &context, &query);
    let newest = edge.ledger.newest().await?;
    // Beyond the newest: of a ledger that was replaced by an older one since.
    let after = taken_up(&headers)?.unwrap_or(newest).min(newest);
    // What can be refused is refused before the stream begins.
    let first = edge.ledger.following(&filter, after, STRETCH).await?;
    let key = (context.caller.auth == AuthKind::Key).then(|| {
        let key = headers.get(AUTHORIZATION).cloned();
        key.into_iter().map(|key| (AUTHORIZATION, key)).collect()
    });
    let tail = Tail {
        edge,
        filter,
        key,
        after,
        reached: first.reached,
        calls: first.calls.into_iter(),
        silent_since: None,
    };
    let events = futures_util::stream::unfold(tail, |mut tail| async move {
        let event = tail.next().await?;
        tail.silent_since = Some(clock::uptime());
        Some((Ok::<_, Infallible>(event), tail))
    });
    let mut response = Sse::new(events).into_response();
    // Proxies that gather answers would hold events back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.extensions_mut().insert(MayBeCut);
    Ok(response)
}

struct Tail {
    edge: Shared,
    filter: AuditFilter,
    /// The header with the key, when it came with one.
    key: Option<HeaderMap>,
    /// Where it began.
    after: i64,
    /// Up to here the ledger was looked at.
    reached: i64,
    calls: vec::IntoIter<CallRecord>,
    /// When it last said something; `None` before the first time.
    silent_since: Option<Uptime>,
}

impl Tail {
    /// The next event; `None` when the stream has to end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.edge.stop.is_cancelled() {
                return None;
            }
            // An event without data tells nobody but sets the id: whoever comes back before the
            // first call goes on from the beginning of this stream, and after hours without one
            // need not have the ledger searched again from there.
            let mark = |seq: i64| Event::default().id(seq.to_string());
            let Some(since) = self.silent_since else {
                return Some(mark(self.after).retry(COME_BACK));
            };
            if let Some(call) = self.calls.next() {
                return mark(call.seq).json_data(&call).ok();
            }
            if clock::uptime().since(since) >= SIGN_OF_LIFE {
                return Some(mark(self.reached).comment("nothing new"));
            }
            if !self.is_allowed() {
                return None;
            }
            match self.edge.ledger.following(&self.filter, self.reached, STRETCH).await {
                Ok(stretch) if stretch.reached > self.reached => {
                    self.reached = stretch.reached;
                    self.calls = stretch.calls.into_iter();
                    continue;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the tail of the ledger could not be read: {error}");
                    return None;
                }
            }
            tokio::select! {
                () = self.edge.stop.cancelled() => return None,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Whether the key it was opened with is still in force and allows it.
    fn is_allowed(&self) -> bool {
        self.key.as_ref().is_none_or(|key| {
            let settings = self.edge.settings.load();
            let caller = self.edge.keys.identify(key, Door::Network, &settings);
            caller.is_ok_and(|caller| caller.may(Scope::Audit))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_taken_up_by_the_id_of_an_event() {
        let from = |id: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(&LAST_EVENT_ID, HeaderValue::from_static(id));
            taken_up(&headers).ok()
        };
        assert_eq!(taken_up(&HeaderMap::new()).ok(), Some(None));
        assert_eq!(from("17"), Some(Some(17)));
        assert_eq!(from("0"), Some(Some(0)));
        for wrong in ["", "-1", "x", "1.5", "99999999999999999999"] {
            assert_eq!(from(wrong), None, "{wrong}");
        }
    }
}
