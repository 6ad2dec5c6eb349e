//! [`SseConnection`]: HTTP+SSE of 2024-11-05. One event stream carries everything the server says;
//! what we say is posted to the address that the stream's first event names.
//!
//! Changes when that transport's rules are read differently. The session is the stream: when it
//! ends, all that was under way on it fails, and whoever owns the connection opens another.
//!
//! Two tasks for each connection: one reads the stream; one posts what nobody waits for, in order.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::Method;
use http::header::{self, HeaderMap, HeaderValue};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use url::Url;

use super::aside::{self, Aside, Asides};
use super::channel::{Call, Carrier, Channel, Reply, Ticket, keep_subscribed};
use super::endpoint::{Endpoint, is_event_stream, shown};
use super::error::{Sent, TransportError, sample};
use super::handshake;
use super::http::trace_request;
use super::pace::Pace;
use super::refusal::{answers_for_no_session, is_session_gone, is_session_unknown};
use super::relay::Relay;
use super::socket::Exchange;
use super::{ConnectOptions, PeerInfo};
use crate::clock;
use crate::model::Failure;
use crate::protocol::{
    Answer, MessageKind, OutgoingRequest, SseEvent, SseParser, message_kind, render_notification,
};

/// The connect may take the whole limit of the opening, and says better why it failed.
const AFTER_CONNECT: Duration = Duration::from_millis(100);
/// How long the acknowledgement of a request may come after its answer, so that its connection can
/// be used again.
const ACKNOWLEDGEMENT: Duration = Duration::from_millis(250);

/// A conversation over HTTP+SSE. Dropping it closes the stream.
pub struct SseConnection {
    shared: Arc<Shared>,
    peer: PeerInfo,
    _stop_on_drop: DropGuard,
}

struct Shared {
    channel: Channel,
    /// Where messages are posted.
    posts: Arc<Endpoint>,
    aside: Aside,
    /// The server ended the session.
    lost: CancellationToken,
    /// The handshake is done.
    greeted: AtomicBool,
}

impl SseConnection {
    /// Opens the stream at `url`, which is where `stream` is, and does the handshake.
    pub(super) async fn open(
        stream: &Endpoint,
        url: &Url,
        options: &ConnectOptions,
        tasks: &TaskTracker,
    ) -> Result<Self, TransportError> {
        let limit = options.connect_timeout;
        let opening = begin(stream, url, options);
        let opened = match tokio::time::timeout(limit + AFTER_CONNECT, opening).await {
            Ok(opened) => opened,
            Err(_elapsed) => Err(TransportError::NoEndpoint { address: shown(url), limit }),
        };
        let (events, posts) = opened.map_err(|error| match error {
            TransportError::Rejected { .. }
            | TransportError::ContentType { .. }
            | TransportError::StreamEnded => {
                TransportError::NotMcp { address: shown(url), source: Box::new(error) }
            }
            other => other,
        })?;
        let (aside, asides) = aside::queue();
        let shared = Arc::new(Shared {
            channel: Channel::new(options, tasks),
            posts: Arc::new(posts),
            aside,
            lost: CancellationToken::new(),
            greeted: AtomicBool::new(false),
        });
        let stop = shared.channel.stop.clone().drop_guard();
        tasks.spawn(Arc::clone(&shared).read(events));
        tasks.spawn(post_in_order(asides, Arc::clone(&shared.posts), shared.channel.ended.clone()));
        let peer = shared.greet(limit).await?;
        shared.greeted.store(true, Ordering::Release);
        if peer.offers.subscriptions {
            let (shared, version) = (Arc::clone(&shared), peer.version);
            tasks.spawn(async move {
                let mut wanted = shared.channel.hearing.subscriptions.clone();
                tokio::select! {
                    () = keep_subscribed(&*shared, version, &mut wanted) => {}
                    () = shared.channel.ended.cancelled() => {}
                }
            });
        }
        Ok(Self { shared, peer, _stop_on_drop: stop })
    }

    pub(super) const fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    pub(super) fn is_alive(&self) -> bool {
        self.shared.channel.is_alive() && !self.shared.lost.is_cancelled()
    }

    pub(super) async fn request(
        &self,
        request: &OutgoingRequest<'_>,
        limit: Duration,
        relay: Option<&Arc<Relay>>,
    ) -> Result<Answer, TransportError> {
        let id = self.shared.channel.next_id();
        let body = request.render(id, self.peer.version);
        let mut headers = self.shared.posts.headers.clone();
        trace_request(&mut headers, request);
        self.shared.ask(id, (headers, body), limit, relay).await
    }

    pub(super) fn notify(&self, method: &str, params: Option<&str>) {
        self.shared.tell(render_notification(method, params));
    }

    pub(super) async fn close(&self) {
        self.shared.channel.stop.cancel();
        self.shared.channel.ended.cancelled().await;
        self.shared.posts.sockets.close();
    }

    /// That the server ended the session, when it did.
    pub(super) fn death(&self) -> Option<TransportError> {
        self.shared.lost.is_cancelled().then_some(TransportError::StreamLost { sent: Sent::No })
    }
}

impl fmt::Debug for SseConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SseConnection")
            .field("address", &self.shared.posts.sockets.address())
            .field("version", &self.peer.version)
            .finish_non_exhaustive()
    }
}

/// Opens the stream and reads up to its `endpoint` event.
async fn begin(
    stream: &Endpoint,
    url: &Url,
    options: &ConnectOptions,
) -> Result<(Events, Endpoint), TransportError> {
    let mut headers = stream.headers.clone();
    headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
    let exchange = stream.get(headers).await?;
    if !is_event_stream(&exchange) {
        return Err(stream.refused(exchange).await);
    }
    let mut events = Events::new(exchange, options);
    while let Some(event) = events.next().await? {
        if event.event == "endpoint" {
            let posts = post_address(url, &event.data)?;
            let posts = stream.at(&posts).ok_or_else(|| TransportError::Address {
                address: shown(&posts),
                reason: "the path that the server wants messages at is not valid",
            })?;
            return Ok((events, posts));
        }
    }
    Err(TransportError::StreamEnded)
}

/// Where messages are posted: what the `endpoint` event says, seen from the stream's address. Only
/// the same origin is believed, or a server could send our requests and the credentials in their
/// headers to any host that we reach.
fn post_address(stream: &Url, named: &[u8]) -> Result<Url, TransportError> {
    let foreign = |found: String| TransportError::ForeignEndpoint { address: shown(stream), found };
    let text = std::str::from_utf8(named).ok().ok_or_else(|| foreign(sample(named)))?;
    let address = stream.join(text.trim()).ok().ok_or_else(|| foreign(sample(named)))?;
    if address.origin() != stream.origin() {
        return Err(foreign(shown(&address)));
    }
    Ok(address)
}

/// The events of a stream, one by one.
struct Events {
    exchange: Exchange,
    parser: SseParser,
    /// What was received and not read yet.
    unread: Bytes,
    limit: u64,
    /// The longest silence within an event.
    stall: Option<Duration>,
    pace: Pace,
    /// Events since the last frame that were no answers.
    talk: u64,
}

impl Events {
    fn new(exchange: Exchange, options: &ConnectOptions) -> Self {
        let limit = options.max_response_size;
        let parser = SseParser::new(usize::try_from(limit).unwrap_or(usize::MAX));
        let pace = Pace::new(Pace::shared_stream(limit), clock::uptime());
        let stall = options.stall_timeout;
        Self { exchange, parser, unread: Bytes::new(), limit, stall, pace, talk: 0 }
    }

    /// The last event was an answer that somebody waited for.
    fn was_answer(&mut self, event: &SseEvent) {
        self.pace.give_back(event.data.len());
        self.talk = self.talk.saturating_sub(1);
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<SseEvent>, TransportError> {
        loop {
            let mut unread: &[u8] = &self.unread;
            let event = self.parser.next_event(&mut unread);
            let read = self.unread.len() - unread.len();
            self.unread.advance(read);
            match event {
                Err(_too_large) => {
                    return Err(TransportError::ResponseTooLarge { limit: self.limit });
                }
                Ok(Some(event)) => {
                    self.talk += 1;
                    return Ok(Some(event));
                }
                Ok(None) => {}
            }
            // Between events the server may be silent for days.
            let stall = self.stall.filter(|_| self.parser.is_within_event());
            let frame = self.exchange.frame_in(stall).await;
            let Some(bytes) = frame.transpose()? else { return Ok(None) };
            self.pace.keep(bytes.len(), std::mem::take(&mut self.talk)).await;
            self.unread = bytes;
            tokio::task::coop::consume_budget().await;
        }
    }
}

/// Posts one message after the other, until the end.
async fn post_in_order(mut asides: Asides, posts: Arc<Endpoint>, ended: CancellationToken) {
    let posting = async {
        while let Some(body) = asides.next().await {
            posts.tell(Method::POST, posts.headers.clone(), body).await;
        }
    };
    tokio::select! {
        () = posting => {}
        () = ended.cancelled() => {}
    }
}

/// The headers and the body of a request.
type Message = (HeaderMap, Vec<u8>);

/// Posts one request; what comes back is of interest only when it is no acknowledgement.
async fn post(
    posts: Arc<Endpoint>,
    id: u64,
    (headers, body): Message,
    ticket: Arc<Ticket>,
) -> Result<Option<Answer>, TransportError> {
    let exchange = posts.post_if(headers, body, || ticket.take()).await?;
    posts.acknowledged(exchange, id).await
}

impl Carrier for Shared {
    fn channel(&self) -> &Channel {
        &self.channel
    }

    fn tell(&self, message: Vec<u8>) {
        if !self.aside.push(message) {
            tracing::debug!(server.name = %self.channel.server, "dropped a message to a server that is slow to take them");
        }
    }

    async fn exchange(
        &self,
        id: u64,
        bytes: Vec<u8>,
        limit: Duration,
        relay: Option<&Arc<Relay>>,
    ) -> Reply {
        self.ask(id, (self.posts.headers.clone(), bytes), limit, relay).await
    }

    fn gone(&self) -> TransportError {
        if self.lost.is_cancelled() {
            TransportError::StreamLost { sent: Sent::No }
        } else {
            TransportError::Closed
        }
    }
}

impl Shared {
    /// Sends a rendered request and waits for its answer, at most `limit`.
    async fn ask(
        &self,
        id: u64,
        message: Message,
        limit: Duration,
        relay: Option<&Arc<Relay>>,
    ) -> Reply {
        let mut call = self.register(id, relay)?;
        match tokio::time::timeout(limit, self.converse(id, message, &mut call)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(self.posts.out_of_time(&call.ticket, limit)),
        }
    }

    /// Posts a request and waits for its answer on the stream, whichever comes first.
    async fn converse(&self, id: u64, message: Message, call: &mut Call<'_, Self>) -> Reply {
        let posting = post(Arc::clone(&self.posts), id, message, Arc::clone(&call.ticket));
        let mut posting = Box::pin(posting);
        let posted = tokio::select! {
            biased;
            posted = &mut posting => posted,
            reply = call.reply() => {
                if reply.is_ok() {
                    self.channel.tasks.spawn(tokio::time::timeout(ACKNOWLEDGEMENT, posting));
                }
                return reply;
            }
        };
        match posted {
            Ok(None) => call.reply().await,
            Ok(Some(answer)) => {
                call.let_go();
                if answers_for_no_session(&answer) {
                    self.lost.cancel();
                    let body = sample(&answer.value);
                    return Err(TransportError::Forgotten { status: 404, body });
                }
                Ok(answer)
            }
            Err(TransportError::Rejected { status, body }) if is_session_gone(status, &body) => {
                self.lost.cancel();
                call.let_go();
                Err(match is_session_unknown(status, &body) {
                    true => TransportError::Forgotten { status, body },
                    false => TransportError::Rejected { status, body },
                })
            }
            Err(error) => {
                if error.failure() != Failure::Ambiguous {
                    call.let_go();
                }
                Err(error)
            }
        }
    }

    async fn greet(&self, limit: Duration) -> Result<PeerInfo, TransportError> {
        let id = self.channel.next_id();
        let body = handshake::render_initialize(id, &self.channel.hearing.client_capabilities);
        let mut call = self.register(id, None)?;
        let message = (self.posts.headers.clone(), body);
        let reply = tokio::time::timeout(limit, self.converse(id, message, &mut call)).await;
        // Never cancelled: the specification forbids that for `initialize`.
        call.let_go();
        let answer = match reply {
            Ok(reply) => reply?,
            Err(_elapsed) => return Err(TransportError::Timeout { elapsed: limit }),
        };
        let peer = handshake::read_initialize(&answer)?;
        let ready = render_notification("notifications/initialized", None);
        self.posts.tell(Method::POST, self.posts.headers.clone(), ready).await;
        Ok(peer)
    }

    /// Reads the stream to its end, and tells everybody.
    async fn read(self: Arc<Self>, mut events: Events) {
        let reading = async {
            loop {
                match events.next().await {
                    Ok(Some(event)) => {
                        if self.take(&event) {
                            events.was_answer(&event);
                        }
                        // A frame can hold tens of thousands of them.
                        tokio::task::coop::consume_budget().await;
                    }
                    Ok(None) => return None,
                    Err(error) => return Some(error),
                }
            }
        };
        let (error, by_server) = tokio::select! {
            () = self.channel.stop.cancelled() => (None, false),
            () = self.lost.cancelled() => (None, true),
            error = reading => (error, true),
        };
        if by_server {
            self.lost.cancel();
            match &error {
                Some(error) => {
                    tracing::info!(server.name = %self.channel.server, %error, "the event stream broke");
                }
                None => {
                    tracing::info!(server.name = %self.channel.server, "the event stream ended");
                }
            }
        }
        self.channel.end(|sent| match (&error, sent) {
            (Some(TransportError::ResponseTooLarge { limit }), Sent::Yes) => {
                TransportError::ResponseTooLarge { limit: *limit }
            }
            (Some(TransportError::Stalled { silence }), Sent::Yes) => {
                TransportError::Stalled { silence: *silence }
            }
            (_, sent) => TransportError::StreamLost { sent },
        });
        self.channel.ended.cancel();
        if by_server && self.greeted.load(Ordering::Acquire) {
            // What changes until the next stream is open is not told.
            self.channel.hearing.all_lists_may_have_changed();
        }
    }

    /// Takes an event to whom it concerns; whether it was an answer that somebody waited for.
    fn take(self: &Arc<Self>, event: &SseEvent) -> bool {
        if event.event != "message" || event.data.is_empty() {
            return false;
        }
        match message_kind(&event.data) {
            Ok(MessageKind::Answer(id)) => return self.channel.take_answer(id, &event.data),
            Ok(MessageKind::Request { id, method }) => self.take_request(id, method, &event.data),
            Ok(MessageKind::Notification { method }) => {
                self.channel.take_notification(method, &event.data);
            }
            Err(error) => {
                tracing::debug!(server.name = %self.channel.server, %error, "an event that is no message");
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_posted_to_the_streams_origin_only() {
        let at = |stream: &str, named: &str| {
            post_address(&Url::parse(stream).unwrap(), named.as_bytes())
                .map(|url| url.to_string())
                .map_err(|error| error.to_string())
        };
        for (stream, named, found) in [
            ("http://h:1/sse", "/messages?s=1", "http://h:1/messages?s=1"),
            ("http://h:1/a/sse?x=1", "messages", "http://h:1/a/messages"),
            ("http://h:1/a/sse", "?s=1", "http://h:1/a/sse?s=1"),
            ("http://h/sse", "http://h:80/m", "http://h/m"),
            ("https://h/sse", " https://H/m\n", "https://h/m"),
        ] {
            assert_eq!(at(stream, named).as_deref(), Ok(found), "{stream} {named}");
        }
        for named in [
            "http://other/m",
            "//other/m",
            "https://h:1/m",
            "http://h:2/m",
            "http://h/m",
            "http://h.evil:1/m",
            "http://h:1@other/m",
            "\\\\other\\m",
            "file:///etc/passwd",
            "data:text/plain,x",
            "http://[::1",
        ] {
            let error = at("http://h:1/sse", named).unwrap_err();
            assert!(error.contains("another origin"), "{named}: {error}");
        }
        assert!(post_address(&Url::parse("http://h/").unwrap(), b"\xff").is_err());
    }
}
