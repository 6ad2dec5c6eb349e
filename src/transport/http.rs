//! [`HttpConnection`]: Streamable HTTP, both eras.
//!
//! Changes when the rules for requests and sessions over HTTP do. Knows nothing of sockets; those
//! are `socket.rs`, bodies are `endpoint.rs`, and refusals are `refusal.rs`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Method;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::channel::Ticket;
use super::detect::{self, Opened};
use super::endpoint::{Endpoint, Reply, SESSION_ID, Talk};
use super::error::{Sent, TransportError};
use super::refusal::{check_refusal, speaks_otherwise};
use super::relay::Relay;
use super::{ConnectOptions, PeerInfo, hear};
use crate::model::{BAGGAGE, Era, ProtocolVersion, TRACEPARENT, TRACESTATE};
use crate::protocol::{Answer, OutgoingRequest, encode_header, render_notification};

pub(super) const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");
/// Bound of the session's deletion at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// What every request of an agreed conversation carries.
pub(super) struct Session {
    pub(super) version: ProtocolVersion,
    /// All headers but those that name the single request.
    pub(super) headers: HeaderMap,
    /// Counts sessions, so that one loss is repaired once.
    pub(super) generation: u64,
    /// The server said in an answer that it is no more.
    pub(super) lost: AtomicBool,
}

/// A conversation over Streamable HTTP.
pub struct HttpConnection {
    endpoint: Endpoint,
    session: ArcSwap<Session>,
    peer: PeerInfo,
    next_id: AtomicU64,
    connect_timeout: Duration,
    renewal: tokio::sync::Mutex<Renewal>,
    failed_renewals: AtomicU64,
    ended: CancellationToken,
}

#[derive(Default)]
struct Renewal {
    last_failure: Option<Arc<TransportError>>,
}

impl HttpConnection {
    /// A conversation that was opened; hears the server from now on.
    pub(super) fn start(
        opened: Opened,
        options: &ConnectOptions,
        tasks: &TaskTracker,
    ) -> Arc<Self> {
        let connection = Arc::new(Self {
            endpoint: opened.endpoint,
            session: ArcSwap::from_pointee(opened.session),
            peer: opened.peer,
            next_id: AtomicU64::new(detect::HANDSHAKE + 1),
            connect_timeout: options.connect_timeout,
            renewal: tokio::sync::Mutex::default(),
            failed_renewals: AtomicU64::new(0),
            ended: CancellationToken::new(),
        });
        let hears = hear::run(Arc::downgrade(&connection), connection.ended.clone());
        tasks.spawn(hears);
        connection
    }

    pub(super) const fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.ended.is_cancelled()
    }

    pub(super) async fn request(
        &self,
        request: &OutgoingRequest<'_>,
        limit: Duration,
        relay: Option<&Arc<Relay>>,
    ) -> Result<Answer, TransportError> {
        let ticket = Ticket::default();
        match tokio::time::timeout(limit, self.attempt(request, &ticket, relay)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(self.endpoint.out_of_time(&ticket, limit)),
        }
    }

    async fn attempt(
        &self,
        request: &OutgoingRequest<'_>,
        ticket: &Ticket,
        relay: Option<&Arc<Relay>>,
    ) -> Result<Answer, TransportError> {
        let mut session = self.session.load_full();
        if session.lost.load(Ordering::Relaxed) {
            session = Box::pin(self.renew(&session)).await?;
        }
        match self.call(request, ticket, &session, relay).await? {
            Reply::Answer(answer) => Ok(answer),
            // The server did not run it, so once more is safe; twice would be a loop.
            Reply::SessionGone(_) => {
                let renewed = Box::pin(self.renew(&session)).await?;
                match Box::pin(self.call(request, ticket, &renewed, relay)).await? {
                    Reply::Answer(answer) => Ok(answer),
                    Reply::SessionGone(error) => {
                        Err(TransportError::SessionLost { source: Arc::new(error) })
                    }
                }
            }
        }
    }

    async fn call(
        &self,
        request: &OutgoingRequest<'_>,
        ticket: &Ticket,
        session: &Arc<Session>,
        relay: Option<&Arc<Relay>>,
    ) -> Result<Reply, TransportError> {
        let id = self.next_id();
        let body = request.render(id, session.version);
        let mut headers = session.headers.clone();
        let modern = session.version.era() == Era::Modern;
        let mut cancel = None;
        if modern {
            name_request(&mut headers, request);
        } else {
            cancel = Some(CancelOnDrop { connection: self, session, id, ticket });
        }
        trace_request(&mut headers, request);
        let outcome = async {
            let begin = || {
                // It is taken already when a session was lost; the request goes out all the same.
                ticket.take();
                true
            };
            let exchange = self.endpoint.post_if(headers, body, begin).await?;
            let talk = Talk { session: (!modern).then_some(&session.headers), relay };
            self.endpoint.read(exchange, id, talk).await
        }
        .await;
        if let Some(cancel) = cancel
            && !outcome.as_ref().is_err_and(TransportError::is_given_up)
        {
            cancel.disarm();
        }
        let outcome = match outcome {
            Ok(Reply::Answer(answer)) if modern => check_refusal(answer).map(Reply::Answer),
            other => other,
        };
        match &outcome {
            Err(error) => self.note(error, modern, session),
            Ok(Reply::Answer(answer)) => self.heed(answer, modern),
            Ok(Reply::SessionGone(_)) => {}
        }
        outcome
    }

    /// Notices that the server no longer speaks what was agreed, so that whoever owns this
    /// connection opens another one and finds out anew.
    fn note(&self, error: &TransportError, modern: bool, session: &Session) {
        if !modern
            && session.headers.contains_key(SESSION_ID)
            && matches!(error, TransportError::Rejected { status: 404, .. })
        {
            session.lost.store(true, Ordering::Relaxed);
        }
        let changed = match error {
            TransportError::RefusedByProtocol { .. } => true,
            TransportError::Rejected { status: 400 | 404 | 405, .. } => modern,
            _ => false,
        };
        if changed {
            self.ended.cancel();
        }
    }

    /// Notices what an answer says of the requests after it.
    fn heed(&self, answer: &Answer, modern: bool) {
        if speaks_otherwise(answer, modern) {
            self.ended.cancel();
        }
    }

    /// Makes the session anew, once for all who found it gone.
    pub(super) async fn renew(&self, lost: &Session) -> Result<Arc<Session>, TransportError> {
        let failures = self.failed_renewals.load(Ordering::Acquire);
        let mut renewal = self.renewal.lock().await;
        let current = self.session.load_full();
        if current.generation != lost.generation {
            return Ok(current);
        }
        if self.failed_renewals.load(Ordering::Acquire) != failures
            && let Some(source) = &renewal.last_failure
        {
            return Err(TransportError::SessionLost { source: Arc::clone(source) });
        }
        let generation = lost.generation.saturating_add(1);
        match detect::initialize(&self.endpoint, self.connect_timeout, generation).await {
            Ok((session, peer)) => {
                // The calls under way go on; the next finds a connection that knows what the server
                // offers now.
                if peer.capabilities != self.peer.capabilities || peer.version != self.peer.version
                {
                    self.ended.cancel();
                }
                let session = Arc::new(session);
                self.session.store(Arc::clone(&session));
                // A server that lost its sessions was most likely started anew.
                self.endpoint.hearing.all_lists_may_have_changed();
                Ok(session)
            }
            Err(error) => {
                if !error.is_unreachable() {
                    self.ended.cancel();
                }
                let source = Arc::new(error);
                renewal.last_failure = Some(Arc::clone(&source));
                self.failed_renewals.fetch_add(1, Ordering::AcqRel);
                Err(TransportError::SessionLost { source })
            }
        }
    }

    /// A message that wants no answer.
    pub(super) async fn notify(&self, method: &str, params: Option<&str>) {
        let session = self.session.load_full();
        let mut headers = session.headers.clone();
        if session.version.era() == Era::Modern {
            name_request(&mut headers, &OutgoingRequest::new(method));
        }
        self.endpoint.tell(Method::POST, headers, render_notification(method, params)).await;
    }

    pub(super) fn is_listening(&self) -> bool {
        !self.endpoint.is_deaf()
    }

    pub(super) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn session(&self) -> Arc<Session> {
        self.session.load_full()
    }

    /// An id for a request of our own.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) async fn close(&self) {
        self.ended.cancel();
        let session = self.session.load_full();
        if session.headers.contains_key(SESSION_ID) {
            let farewell = self.endpoint.tell(Method::DELETE, session.headers.clone(), Vec::new());
            if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
                tracing::debug!("the deletion of a session found no answer");
            }
        }
        self.endpoint.sockets.close();
    }
}

impl fmt::Debug for HttpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConnection")
            .field("address", &self.endpoint.sockets.address())
            .field("version", &self.peer.version)
            .finish_non_exhaustive()
    }
}

/// The headers by which intermediaries route a modern request.
pub(super) fn name_request(headers: &mut HeaderMap, request: &OutgoingRequest<'_>) {
    let method = match request.method {
        "tools/call" => Some(HeaderValue::from_static("tools/call")),
        "tools/list" => Some(HeaderValue::from_static("tools/list")),
        other => HeaderValue::from_str(other).ok(),
    };
    if let Some(method) = method {
        headers.insert(METHOD, method);
    }
    if let Some(name) = request.name.or(request.uri)
        && let Ok(name) = HeaderValue::from_str(&encode_header(name))
    {
        headers.insert(NAME, name);
    }
    for (name, value) in request.headers {
        headers.insert(name.clone(), value.clone());
    }
}

/// Bytes of a header that is passed on for the sake of traces.
const LONGEST_TRACE_HEADER: usize = 4 * 1024;

/// The headers that say to which trace a request belongs, for what is in front of a server and does not
/// read bodies.
pub(super) fn trace_request(headers: &mut HeaderMap, request: &OutgoingRequest<'_>) {
    let mut add = |name: &'static str, value: HeaderValue| {
        // What the configuration says stays.
        headers.entry(name).or_insert(value);
    };
    if let Some(context) = request.trace.context
        && let Ok(value) = HeaderValue::from_bytes(&context.to_ascii())
    {
        add(TRACEPARENT, value);
    }
    for (name, value) in [(TRACESTATE, request.trace.state), (BAGGAGE, request.trace.baggage)] {
        // Of a line longer than this, servers refuse the request; `_meta` has it anyhow.
        let value = value.filter(|value| value.len() <= LONGEST_TRACE_HEADER);
        if let Some(Ok(value)) = value.map(HeaderValue::from_str) {
            add(name, value);
        }
    }
}

/// Tells a legacy server that nobody waits any more, when the future of a request is dropped that
/// was sent.
struct CancelOnDrop<'a> {
    connection: &'a HttpConnection,
    session: &'a Arc<Session>,
    id: u64,
    ticket: &'a Ticket,
}

impl CancelOnDrop<'_> {
    fn disarm(self) {
        std::mem::forget(self);
    }
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.ticket.withdraw() == Sent::No {
            return;
        }
        let params = format!(r#"{{"requestId":{},"reason":"no longer waited for"}}"#, self.id);
        let body = render_notification("notifications/cancelled", Some(&params));
        self.connection.endpoint.tell_later(self.session.headers.clone(), body);
    }
}
