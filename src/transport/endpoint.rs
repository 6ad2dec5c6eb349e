//! [`Endpoint`]: POST a message to one address and read what comes back.
//!
//! Changes when bodies or content types are read differently. Statuses that are no success are
//! `refusal.rs`, event streams are `events.rs`.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::Full;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use url::Url;

use super::channel::Ticket;
use super::error::{SAMPLE, Sent, TransportError, sample};
use super::relay::Relay;
use super::socket::{Exchange, HttpClient, SocketPool};
use super::{ConnectOptions, Hearing, Offers};
use crate::protocol::Answer;

pub(super) const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
pub(super) const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

/// Bound of messages of ours that nobody waits for.
const SIDE_MESSAGE: Duration = Duration::from_secs(5);
/// How long the bytes that an error shows are waited for.
const SAMPLE_TIME: Duration = Duration::from_secs(1);
/// How many of those that are sent in the background are under way at a time: each has a connection of
/// its own, also at a server that hangs and to which calls are given up one after the other.
const TOLD_AT_ONCE: usize = 32;
/// How many may be under way or wait; one more is dropped.
const TO_BE_TOLD: usize = 4096;

/// One address and what every request to it carries.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) sockets: Arc<SocketPool>,
    /// Path and query: what a request line has.
    path: Uri,
    pub(super) headers: HeaderMap,
    /// Largest answer, in bytes.
    pub(super) limit: u64,
    /// Events that may come before an answer.
    pub(super) events: u64,
    /// The longest silence of an answer that has begun.
    pub(super) stall: Option<Duration>,
    server: crate::model::ServerName,
    pub(super) hearing: Hearing,
    /// Requests of the server that are being answered.
    pub(super) answering: Arc<AtomicU32>,
    /// Whether the server has no way to say anything on its own.
    deaf: Arc<AtomicBool>,
    /// Messages in the background that are sent, and those with the ones that wait for it.
    telling: Arc<Semaphore>,
    to_be_told: Arc<Semaphore>,
}

/// In what a request is sent: what its answer's stream may say, and to whom.
#[derive(Clone, Copy, Default)]
pub(super) struct Talk<'a> {
    /// The headers of a legacy session, in which requests of the server are answered.
    pub(super) session: Option<&'a HeaderMap>,
    /// The caller behind the request.
    pub(super) relay: Option<&'a Arc<Relay>>,
}

/// What came back to a request.
pub(super) enum Reply {
    /// An answer to it, with any status.
    Answer(Answer),
    /// The server does not know the session; it did not run the request.
    SessionGone(TransportError),
}

/// What came back to a request for a document.
pub(super) enum Body {
    /// All of it.
    Whole(Bytes),
    /// An answer to the request, with a status that is no success.
    Answer(Answer),
}

impl Endpoint {
    /// Takes the address apart once, so that no request has to.
    pub(super) fn new(
        url: &Url,
        headers: &[(HeaderName, HeaderValue)],
        client: &HttpClient,
        options: &ConnectOptions,
        tasks: &TaskTracker,
    ) -> Result<Self, TransportError> {
        let refuse = |reason| TransportError::Address { address: shown(url), reason };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("it holds credentials; put them into headers.Authorization"));
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refuse("only http and https are spoken"));
        }
        let host = url.host_str().ok_or_else(|| refuse("it has no host"))?;
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let origin = Uri::builder()
            .scheme(url.scheme())
            .authority(authority.as_str())
            .path_and_query("/")
            .build()
            .ok()
            .ok_or_else(|| refuse("its host is not valid"))?;
        let path = path_of(url).ok_or_else(|| refuse("its path is not valid"))?;
        let host_header = HeaderValue::from_str(&authority)
            .ok()
            .ok_or_else(|| refuse("its host is not valid"))?;
        Ok(Self {
            sockets: SocketPool::new(
                client,
                origin,
                shown(url),
                options.connect_timeout,
                tasks.clone(),
            ),
            path,
            headers: base_headers(host_header, headers),
            limit: options.max_response_size,
            events: u64::from(options.max_events),
            stall: options.stall_timeout,
            server: options.server.clone(),
            hearing: options.hearing.clone(),
            answering: Arc::default(),
            deaf: Arc::default(),
            telling: Arc::new(Semaphore::new(TOLD_AT_ONCE)),
            to_be_told: Arc::new(Semaphore::new(TO_BE_TOLD)),
        })
    }

    /// The same server at another path.
    pub(super) fn at(&self, url: &Url) -> Option<Self> {
        Some(Self { path: path_of(url)?, ..self.clone() })
    }

    /// The server offers no stream for what it says on its own. If it announced to tell of changes,
    /// its lists have to be looked at all the same.
    pub(super) fn give_up_hearing(&self, offers: Offers) {
        if !self.deaf.swap(true, Ordering::Relaxed) && offers.list_changes {
            self.hearing.all_lists_may_have_changed();
        }
    }

    pub(super) fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::Relaxed)
    }

    /// Opens an event stream.
    pub(super) async fn get(&self, headers: HeaderMap) -> Result<Exchange, TransportError> {
        self.sockets.send(self.build(Method::GET, headers, Vec::new())).await
    }

    fn build(&self, method: Method, headers: HeaderMap, body: Vec<u8>) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = headers;
        request
    }

    pub(super) async fn post(
        &self,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Exchange, TransportError> {
        self.sockets.send(self.build(Method::POST, headers, body)).await
    }

    /// The same, given up unsent when `begin` says so: it is asked once, right before the first byte
    /// can go out.
    pub(super) async fn post_if(
        &self,
        headers: HeaderMap,
        body: Vec<u8>,
        begin: impl FnOnce() -> bool,
    ) -> Result<Exchange, TransportError> {
        self.sockets.send_if(self.build(Method::POST, headers, body), begin).await
    }

    /// What to say of a request whose time ran out, by what its ticket says of it.
    pub(super) fn out_of_time(&self, ticket: &Ticket, limit: Duration) -> TransportError {
        match ticket.withdraw() {
            // It waited for a connection to be sent on.
            Sent::No => {
                TransportError::ConnectTimeout { address: self.sockets.address().to_owned(), limit }
            }
            Sent::Yes => TransportError::Timeout { elapsed: limit },
        }
    }

    /// Sends a message to which nothing of interest comes back, in bounded time.
    pub(super) async fn tell(&self, method: Method, headers: HeaderMap, body: Vec<u8>) {
        let telling = async {
            if let Ok(exchange) = self.sockets.send(self.build(method, headers, body)).await {
                exchange.finish().await;
            }
        };
        if tokio::time::timeout(SIDE_MESSAGE, telling).await.is_err() {
            tracing::debug!(server.name = %self.server, "a message to the server found no answer");
        }
    }

    /// The same in the background, in turn with others.
    pub(super) fn tell_later(&self, headers: HeaderMap, body: Vec<u8>) {
        let Ok(place) = Arc::clone(&self.to_be_told).try_acquire_owned() else {
            tracing::debug!(server.name = %self.server, "dropped a message to a server that is slow to take them");
            return;
        };
        let endpoint = self.clone();
        self.spawn(async move {
            let telling = async {
                let _turn = endpoint.telling.acquire().await;
                endpoint.tell(Method::POST, headers, body).await;
            };
            if tokio::time::timeout(SIDE_MESSAGE, telling).await.is_err() {
                tracing::debug!(server.name = %endpoint.server, "a message to the server had no turn");
            }
            drop(place);
        });
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.sockets.tasks().spawn_on(work, &runtime);
        }
    }

    /// Reads the answer to request `id`.
    pub(super) async fn read(
        &self,
        mut exchange: Exchange,
        id: u64,
        talk: Talk<'_>,
    ) -> Result<Reply, TransportError> {
        if !exchange.status().is_success() {
            return self.read_refusal(exchange, id, talk.session).await;
        }
        check_encoding(&exchange)?;
        match Content::of(exchange.headers()) {
            Content::Json => {
                let body = exchange.collect(self.limit, self.stall).await?;
                exchange.finish().await;
                parse(&body, id).map(Reply::Answer)
            }
            Content::Events => {
                Box::pin(self.read_events(exchange, id, talk)).await.map(Reply::Answer)
            }
            Content::Other(found) => {
                let body = read_start(&mut exchange).await;
                Err(TransportError::ContentType { found, body })
            }
        }
    }

    /// Reads a whole document of JSON; of a refusal, the answer to `id` when it holds one.
    pub(super) async fn read_json(
        &self,
        mut exchange: Exchange,
        id: u64,
    ) -> Result<Body, TransportError> {
        if !exchange.status().is_success() {
            return match self.read_refusal(exchange, id, None).await? {
                Reply::Answer(answer) => Ok(Body::Answer(answer)),
                Reply::SessionGone(error) => Err(error),
            };
        }
        check_encoding(&exchange)?;
        if !matches!(Content::of(exchange.headers()), Content::Json) {
            return Err(self.refused(exchange).await);
        }
        let body = exchange.collect(self.limit, self.stall).await?;
        exchange.finish().await;
        Ok(Body::Whole(body))
    }

    /// Whether a message was taken: any 2xx says so, whatever stands in its body. A refusal can be
    /// the answer to `id`.
    pub(super) async fn acknowledged(
        &self,
        exchange: Exchange,
        id: u64,
    ) -> Result<Option<Answer>, TransportError> {
        if exchange.status().is_success() {
            exchange.finish().await;
            return Ok(None);
        }
        match self.read_refusal(exchange, id, None).await? {
            Reply::Answer(answer) => Ok(Some(answer)),
            Reply::SessionGone(error) => Err(error),
        }
    }

    /// What to say of an answer that is not what was asked for.
    pub(super) async fn refused(&self, mut exchange: Exchange) -> TransportError {
        let status = exchange.status();
        if status.is_success() {
            let found = match Content::of(exchange.headers()) {
                Content::Json => "application/json".to_owned(),
                Content::Events => "text/event-stream".to_owned(),
                Content::Other(found) => found,
            };
            let body = read_start(&mut exchange).await;
            return TransportError::ContentType { found, body };
        }
        match self.read_refusal(exchange, 0, None).await {
            Ok(Reply::Answer(answer)) => {
                TransportError::Rejected { status: status.as_u16(), body: sample(&answer.value) }
            }
            Ok(Reply::SessionGone(error)) | Err(error) => error,
        }
    }
}

/// A body that would have to be inflated is not read: nobody knows how large it becomes.
pub(super) fn check_encoding(exchange: &Exchange) -> Result<(), TransportError> {
    let mut encodings = exchange.headers().get_all(header::CONTENT_ENCODING).iter();
    match encodings.find(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        Some(encoding) => Err(TransportError::Encoding { encoding: sample(encoding.as_bytes()) }),
        None => Ok(()),
    }
}

pub(super) fn parse(message: &Bytes, id: u64) -> Result<Answer, TransportError> {
    Answer::parse(message, id)
        .map_err(|source| TransportError::NotAnAnswer { source, sample: sample(message) })
}

/// Whether a stream was opened.
pub(super) fn is_event_stream(exchange: &Exchange) -> bool {
    exchange.status().is_success() && matches!(Content::of(exchange.headers()), Content::Events)
}

pub(super) enum Content {
    Json,
    Events,
    Other(String),
}

impl Content {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or(b"none");
        let is = |name: &[u8]| {
            value.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
                && matches!(value.get(name.len()), None | Some(b';' | b' '))
        };
        if is(b"application/json") {
            Self::Json
        } else if is(b"text/event-stream") {
            Self::Events
        } else {
            Self::Other(sample(value))
        }
    }
}

/// The first bytes of a body that is only of interest in an error, as far as they come in time.
pub(super) async fn read_start(exchange: &mut Exchange) -> String {
    let mut start = Vec::new();
    // One more shows that there are more.
    let enough = SAMPLE + 1;
    let reading = async {
        while start.len() < enough {
            match exchange.frame().await {
                Some(Ok(bytes)) => {
                    let bytes = bytes.get(..bytes.len().min(enough)).unwrap_or_default();
                    start.extend_from_slice(bytes);
                }
                Some(Err(_)) | None => break,
            }
        }
    };
    // What comes later changes nothing.
    let _ = tokio::time::timeout(SAMPLE_TIME, reading).await;
    sample(&start)
}

/// An address without credentials, query and fragment: fit for errors and logs.
pub(super) fn shown(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{}://{host}:{port}{}", url.scheme(), url.path()),
        (Some(host), None) => format!("{}://{host}{}", url.scheme(), url.path()),
        (None, _) => format!("{}:", url.scheme()),
    }
}

fn path_of(url: &Url) -> Option<Uri> {
    let text = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    text.parse().ok()
}

fn base_headers(host: HeaderValue, configured: &[(HeaderName, HeaderValue)]) -> HeaderMap {
    const USER_AGENT: &str = concat!("switchyard/", env!("CARGO_PKG_VERSION"));
    let mut headers = HeaderMap::with_capacity(16);
    headers.insert(header::HOST, host);
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
    for (name, _) in configured.iter().filter(|(name, _)| is_configurable(name)) {
        headers.remove(name);
    }
    for (name, value) in configured.iter().filter(|(name, _)| is_configurable(name)) {
        let mut value = value.clone();
        value.set_sensitive(true);
        headers.append(name.clone(), value);
    }
    // What the reader below relies on is not up to the configuration.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// Framing of the message and the protocol's own headers are ours.
fn is_configurable(name: &HeaderName) -> bool {
    !matches!(
        *name,
        header::CONTENT_LENGTH
            | header::TRANSFER_ENCODING
            | header::CONNECTION
            | header::CONTENT_TYPE
            | header::ACCEPT
            | header::ACCEPT_ENCODING
    ) && *name != SESSION_ID
        && *name != PROTOCOL_VERSION
}
