//! `GET /mcp/audit/tail`: calls as they are committed, and what is on record beside them where that is asked for, as
//! server-sent events.
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
use axum::extract::{RawQuery, State};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use super::{event_kind, is_true, searched, unpaged, with_own};
use crate::audit::Told;
use crate::clock;
use crate::edge::api::Shared;
use crate::edge::auth::{Door, RequestContext};
use crate::edge::door::MayBeCut;
use crate::edge::error::ApiError;
use crate::model::{AuthKind, Scope, Uptime};
use crate::store::{AuditFilter, EntryFilter};

/// Between two looks at a ledger that has nothing new; it commits a few times in this time.
const PAUSE: Duration = Duration::from_millis(200);
/// A silent stream says this often that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// How long clients wait before they come back.
const COME_BACK: Duration = Duration::from_millis(500);
/// Calls read at once, and what is beside them.
const STRETCH: u16 = 1000;

/// The type of what is no call. Calls have none: they are messages to whoever knows nothing of others.
const ENTRY: &str = "entry";

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
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = query.unwrap_or_default();
    let ([events, kind], query) = with_own(&query, ["events", "kind"])?;
    let filter = unpaged(&query, "a tail")?;
    let events = entries(is_true("events", events.as_deref())?, kind, &filter)?;
    searched(&edge, &context, &query);
    let newest = match events {
        None => edge.ledger.newest().await?,
        Some(_) => edge.ledger.end().await?,
    };
    // Beyond the newest: of a ledger that was replaced by an older one since.
    let after = taken_up(&headers)?.unwrap_or(newest).min(newest);
    // What can be refused is refused before the stream begins.
    let first = edge.ledger.following(&filter, events.as_ref(), after, STRETCH).await?;
    let key = (context.caller.auth == AuthKind::Key).then(|| {
        let key = headers.get(AUTHORIZATION).cloned();
        key.into_iter().map(|key| (AUTHORIZATION, key)).collect()
    });
    let tail = Tail {
        edge,
        filter,
        events,
        key,
        after,
        reached: first.reached,
        told: first.told.into_iter(),
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

/// What is given beside calls. The other filters are about calls alone.
fn entries(
    wanted: bool,
    kind: Option<String>,
    filter: &AuditFilter,
) -> Result<Option<EntryFilter>, ApiError> {
    if !wanted && kind.is_some() {
        return Err(ApiError::invalid("`kind` is of events; say `events=true`, too"));
    }
    let kind = event_kind(kind)?;
    let (since, until) = (filter.since, filter.until);
    Ok(wanted.then(|| EntryFilter { kind, since, until, ..EntryFilter::default() }))
}

struct Tail {
    edge: Shared,
    filter: AuditFilter,
    /// What is given beside calls, if anything is.
    events: Option<EntryFilter>,
    /// The header with the key, when it came with one.
    key: Option<HeaderMap>,
    /// Where it began.
    after: i64,
    /// Up to here the ledger was looked at.
    reached: i64,
    told: vec::IntoIter<Told>,
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
            if let Some(told) = self.told.next() {
                let event = mark(told.seq());
                let event = match &told {
                    Told::Call(call) => event.json_data(call),
                    Told::Event(entry) => event.event(ENTRY).json_data(entry),
                };
                return event.ok();
            }
            if clock::uptime().since(since) >= SIGN_OF_LIFE {
                return Some(mark(self.reached).comment("nothing new"));
            }
            if !self.is_allowed() {
                return None;
            }
            let events = self.events.as_ref();
            match self.edge.ledger.following(&self.filter, events, self.reached, STRETCH).await {
                Ok(stretch) if stretch.reached > self.reached => {
                    self.reached = stretch.reached;
                    self.told = stretch.told.into_iter();
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
