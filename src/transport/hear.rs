//! Hearing an HTTP server that speaks on its own: the stream it is given for that, opened again
//! whenever it ends.
//!
//! Changes when the rules of these streams do. Legacy: `GET` at the endpoint, and
//! `resources/subscribe` for each resource. Modern: one `subscriptions/listen` that says all.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Offers;
use super::endpoint::{Endpoint, SESSION_ID, Talk, is_event_stream};
use super::events::{LAST_EVENT_ID, LONGEST_RETRY, Place, RETRY, Stream};
use super::http::{HttpConnection, Session, name_request};
use crate::clock;
use crate::model::Era;
use crate::protocol::{OutgoingRequest, RawObject};

/// A stream that lasted this long was no failure, however it ended.
const LASTED: Duration = Duration::from_secs(10);

/// Hears the server until the connection ends or nobody has it any more.
pub(super) async fn run(connection: Weak<HttpConnection>, ended: CancellationToken) {
    let Some(first) = connection.upgrade() else { return };
    let mut wanted = first.endpoint().hearing.subscriptions.clone();
    let (era, offers) = (first.session().version.era(), first.peer().offers);
    drop(first);
    let hearing = async {
        match era {
            Era::Legacy => legacy(&connection, &mut wanted, offers).await,
            Era::Modern => modern(&connection, &mut wanted, offers).await,
        }
    };
    tokio::select! {
        () = hearing => {}
        () = ended.cancelled() => {}
    }
}

/// Waits between tries: what the server asked for, or longer with each failure.
struct Waits {
    failures: u32,
    asked: Option<Duration>,
}

impl Waits {
    async fn pause(&mut self, lasted: Duration) {
        self.failures = if lasted >= LASTED { 0 } else { self.failures.saturating_add(1) };
        let doubled = RETRY.saturating_mul(1 << self.failures.saturating_sub(1).min(6));
        let wait = self.asked.unwrap_or_default().max(doubled.min(LONGEST_RETRY));
        tokio::time::sleep(wait).await;
    }
}

/// Keeps the `GET` stream of a legacy session open, and its subscriptions in force.
async fn legacy(
    connection: &Weak<HttpConnection>,
    wanted: &mut watch::Receiver<Arc<BTreeSet<String>>>,
    offers: Offers,
) {
    let mut waits = Waits { failures: 0, asked: None };
    let mut place = Place::default();
    let mut generation = None;
    let (mut offered, mut again, mut renewed) = (true, false, false);
    loop {
        let Some(held) = connection.upgrade() else { return };
        let (endpoint, session) = (held.endpoint().clone(), held.session());
        drop(held);
        if generation != Some(session.generation) {
            generation = Some(session.generation);
            place = Place::default();
        }
        let began = clock::uptime();
        let streaming = async {
            if offered {
                get(&endpoint, &session, &mut place, again).await
            } else {
                std::future::pending().await
            }
        };
        let subscribing = async {
            if offers.subscriptions {
                keep_subscribed(connection, wanted).await;
            }
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            end = streaming => end,
            () = subscribing => GetEnd::Over,
        };
        waits.asked = place.retry;
        match end {
            GetEnd::NotOffered => {
                offered = false;
                endpoint.give_up_hearing(offers);
            }
            // A session that was made a moment ago is not gone: the server has no such stream.
            GetEnd::SessionGone if renewed => {
                offered = false;
                endpoint.give_up_hearing(offers);
            }
            GetEnd::SessionGone => {
                let Some(held) = connection.upgrade() else { return };
                renewed = held.renew(&session).await.is_ok();
                drop(held);
                waits.pause(clock::uptime().since(began)).await;
            }
            GetEnd::Over => {
                (again, renewed) = (true, false);
                waits.pause(clock::uptime().since(began)).await;
            }
        }
    }
}

enum GetEnd {
    /// The server has no such stream.
    NotOffered,
    /// It no longer knows the session.
    SessionGone,
    /// The stream ended or could not be opened.
    Over,
}

async fn get(endpoint: &Endpoint, session: &Session, place: &mut Place, again: bool) -> GetEnd {
    let mut headers = session.headers.clone();
    headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
    let last = place.last_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok());
    if let Some(last) = last {
        headers.insert(LAST_EVENT_ID, last);
    }
    let Ok(exchange) = endpoint.get(headers).await else { return GetEnd::Over };
    if !is_event_stream(&exchange) {
        let status = exchange.status();
        exchange.finish().await;
        return match status.as_u16() {
            404 if session.headers.contains_key(SESSION_ID) => GetEnd::SessionGone,
            200..=299 | 400 | 404 | 405 | 406 | 415 | 501 => GetEnd::NotOffered,
            // Not now: a limit, a stream of ours that the server has not seen end, a proxy's trouble.
            _ => GetEnd::Over,
        };
    }
    if again && place.last_id.is_none() {
        // What happened while nobody listened is not told.
        endpoint.hearing.all_lists_may_have_changed();
    }
    let talk = Talk { session: Some(&session.headers), relay: None };
    if let Err(error) = endpoint.read_stream(exchange, Stream::Own { id: None }, talk, place).await
    {
        tracing::debug!(%error, "the stream of a server's own messages broke");
    }
    GetEnd::Over
}

/// Subscribes to what is wanted and follows as that changes; ends when the connection is gone.
async fn keep_subscribed(
    connection: &Weak<HttpConnection>,
    wanted: &mut watch::Receiver<Arc<BTreeSet<String>>>,
) {
    let mut now = Arc::<BTreeSet<String>>::default();
    loop {
        let next = Arc::clone(&wanted.borrow_and_update());
        for (uri, method) in changes(&now, &next) {
            let Some(held) = connection.upgrade() else { return };
            let request = OutgoingRequest { uri: Some(uri), ..OutgoingRequest::new(method) };
            if let Err(error) = held.request(&request, SUBSCRIBE, None).await {
                tracing::debug!(%error, uri, method, "a subscription was not changed");
            }
        }
        now = next;
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// What to ask for to come from `now` to `next`: each resource with the method.
pub(super) fn changes<'a>(
    now: &'a BTreeSet<String>,
    next: &'a BTreeSet<String>,
) -> impl Iterator<Item = (&'a str, &'static str)> {
    let gone = now.difference(next).map(|uri| (uri.as_str(), "resources/unsubscribe"));
    gone.chain(next.difference(now).map(|uri| (uri.as_str(), "resources/subscribe")))
}

/// How long a server may take to confirm a subscription.
pub(super) const SUBSCRIBE: Duration = Duration::from_secs(10);

/// Keeps a `subscriptions/listen` open for what the server offers and what is wanted of it.
async fn modern(
    connection: &Weak<HttpConnection>,
    wanted: &mut watch::Receiver<Arc<BTreeSet<String>>>,
    offers: Offers,
) {
    let mut waits = Waits { failures: 0, asked: None };
    let mut before = false;
    loop {
        let resources = if offers.subscriptions {
            Arc::clone(&wanted.borrow_and_update())
        } else {
            Arc::default()
        };
        let changed = async {
            if !offers.subscriptions || wanted.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        if !offers.some_list_changes && resources.is_empty() {
            changed.await;
            continue;
        }
        let began = clock::uptime();
        let listening = async {
            let Some(held) = connection.upgrade() else { return ListenEnd::Gone };
            let (endpoint, session, id) = (held.endpoint().clone(), held.session(), held.next_id());
            drop(held);
            listen(&endpoint, &session, id, &filter(offers, &resources), before).await
        };
        let end = tokio::select! {
            end = listening => end,
            () = changed => continue,
        };
        match end {
            ListenEnd::Gone => return,
            ListenEnd::Refused => {
                tracing::debug!("the server does not let us listen");
                if let Some(held) = connection.upgrade() {
                    held.endpoint().give_up_hearing(offers);
                }
                std::future::pending::<()>().await;
            }
            ListenEnd::Over => {
                before = true;
                waits.pause(clock::uptime().since(began)).await;
            }
        }
    }
}

enum ListenEnd {
    /// Nobody has the connection any more.
    Gone,
    /// The server knows no such request.
    Refused,
    /// The stream ended.
    Over,
}

/// The parameters of a `subscriptions/listen`.
pub(super) fn filter(offers: Offers, resources: &BTreeSet<String>) -> String {
    let mut filter = serde_json::Map::new();
    for (key, offered) in [
        ("toolsListChanged", offers.tools),
        ("promptsListChanged", offers.prompts),
        ("resourcesListChanged", offers.resources),
    ] {
        if offers.some_list_changes && offered {
            filter.insert(key.to_owned(), true.into());
        }
    }
    if !resources.is_empty() {
        let uris: Vec<&str> = resources.iter().map(String::as_str).collect();
        filter.insert("resourceSubscriptions".to_owned(), uris.into());
    }
    format!(r#"{{"notifications":{}}}"#, serde_json::Value::Object(filter))
}

async fn listen(
    endpoint: &Endpoint,
    session: &Session,
    id: u64,
    params: &str,
    again: bool,
) -> ListenEnd {
    let params = RawObject::parse(params).unwrap_or_default();
    let request =
        OutgoingRequest { params: Some(&params), ..OutgoingRequest::new("subscriptions/listen") };
    let mut headers: HeaderMap = session.headers.clone();
    name_request(&mut headers, &request);
    let Ok(exchange) = endpoint.post(headers, request.render(id, session.version)).await else {
        return ListenEnd::Over;
    };
    if !is_event_stream(&exchange) {
        let status = exchange.status();
        let refused = (status.is_client_error() || status.is_success())
            && !matches!(status.as_u16(), 401 | 403 | 408 | 409 | 429);
        exchange.finish().await;
        return if refused { ListenEnd::Refused } else { ListenEnd::Over };
    }
    if again {
        // What happened while nobody listened is not told.
        endpoint.hearing.all_lists_may_have_changed();
    }
    let mut place = Place::default();
    let stream = Stream::Own { id: Some(id) };
    if let Err(error) = endpoint.read_stream(exchange, stream, Talk::default(), &mut place).await {
        tracing::debug!(%error, "the stream of a subscription broke");
    }
    ListenEnd::Over
}
