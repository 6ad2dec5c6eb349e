//! What an HTTP server speaks, and the handshake of its era.
//!
//! Changes when the specification's rules for telling eras and transports apart do. Only
//! `server/discover`, `initialize` and plain `GET`s are ever sent: all do nothing.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method};
use tokio_util::task::TaskTracker;
use url::Url;

use super::endpoint::{Endpoint, PROTOCOL_VERSION, Reply, SESSION_ID, Talk};
use super::error::TransportError;
use super::handshake::{self, Finding};
use super::http::{HttpConnection, Session};
use super::jsonrpc::JsonrpcConnection;
use super::sse::SseConnection;
use super::{ConnectOptions, Connection, PeerInfo};
use crate::model::{Dialect, ProtocolVersion};
use crate::protocol::render_notification;

/// Id of the opening message; calls count on from it. Not 0, which some servers take for none.
pub(super) const HANDSHAKE: u64 = 1;

/// An endpoint that answered.
pub(super) struct Opened {
    pub(super) endpoint: Endpoint,
    pub(super) session: Session,
    pub(super) peer: PeerInfo,
}

/// Finds out what the server at `url` speaks: what it spoke last time first, else the modern era,
/// the legacy era and HTTP+SSE; the same at `/mcp`, when `url` has no path and nothing is there; and
/// last the predecessor's dialect.
pub(super) async fn open(
    endpoint: &Endpoint,
    url: &Url,
    options: &ConnectOptions,
    tasks: &TaskTracker,
) -> Result<Connection, TransportError> {
    let deeper = (url.path() == "/").then(|| {
        let mut deeper = url.clone();
        deeper.set_path("/mcp");
        deeper
    });
    let here = Address { endpoint: endpoint.clone(), url: url.clone() };
    let deeper = deeper.and_then(|url| Some(Address { endpoint: endpoint.at(&url)?, url }));
    let search = Search { here, deeper, options, tasks };
    // The search begins with the modern era anyway; only where it has two places to look at is
    // there something to know.
    let worth_a_try = |known: &Dialect| *known != Dialect::Modern || search.deeper.is_some();
    if let Some(known) = options.known_dialect.filter(worth_a_try) {
        match search.known(known).await {
            Err(error) if !error.is_unreachable() => {
                tracing::debug!(%error, dialect = known.as_str(), "the server does not speak what it spoke; asking anew");
            }
            settled => return settled,
        }
    }
    search.anew().await
}

struct Address {
    endpoint: Endpoint,
    url: Url,
}

struct Search<'a> {
    here: Address,
    /// Where else to look, when nothing is here.
    deeper: Option<Address>,
    options: &'a ConnectOptions,
    tasks: &'a TaskTracker,
}

impl Search<'_> {
    /// Tries one dialect wherever it can be.
    async fn known(&self, dialect: Dialect) -> Result<Connection, TransportError> {
        if dialect == Dialect::Jsonrpc {
            return self.jsonrpc().await;
        }
        match (self.speak(dialect, &self.here).await, &self.deeper) {
            (Err(error), Some(deeper)) if nothing_there(&error) => {
                self.speak(dialect, deeper).await
            }
            (settled, _) => settled,
        }
    }

    async fn speak(&self, dialect: Dialect, at: &Address) -> Result<Connection, TransportError> {
        match dialect {
            Dialect::Modern => match discover(&at.endpoint, self.options.probe_timeout).await? {
                Finding::Modern(peer) => Ok(self.modern(at, peer)),
                Finding::Legacy => self.legacy(at).await,
            },
            Dialect::Legacy => self.legacy(at).await,
            Dialect::Sse => SseConnection::open(&at.endpoint, &at.url, self.options, self.tasks)
                .await
                .map(Connection::Sse),
            Dialect::Jsonrpc => self.jsonrpc().await,
        }
    }

    fn modern(&self, at: &Address, peer: PeerInfo) -> Connection {
        let session = Session::modern(&at.endpoint.headers, peer.version);
        self.start(at, session, peer)
    }

    async fn legacy(&self, at: &Address) -> Result<Connection, TransportError> {
        let (session, peer) = initialize(&at.endpoint, self.options.connect_timeout, 0).await?;
        Ok(self.start(at, session, peer))
    }

    fn start(&self, at: &Address, session: Session, peer: PeerInfo) -> Connection {
        let opened = Opened { endpoint: at.endpoint.clone(), session, peer };
        Connection::Http(HttpConnection::start(opened, self.options, self.tasks))
    }

    async fn jsonrpc(&self) -> Result<Connection, TransportError> {
        JsonrpcConnection::open(&self.here.endpoint, &self.here.url, self.options)
            .await
            .map(|connection| Connection::Jsonrpc(Box::new(connection)))
    }

    /// Tries everything in order. What the server said at `url` itself is what is told when nothing
    /// was found.
    async fn anew(&self) -> Result<Connection, TransportError> {
        let first = match self.mcp(&self.here).await {
            Err(error) if says_something_else(&error) => error,
            settled => return settled,
        };
        if let Some(deeper) = &self.deeper
            && nothing_there(&first)
        {
            match self.mcp(deeper).await {
                Err(error) if !error.is_unreachable() => {}
                settled => return settled,
            }
        }
        match self.jsonrpc().await {
            Err(error) if !error.is_unreachable() => {
                tracing::debug!(%error, "the server does not speak the predecessor's dialect either");
            }
            settled => return settled,
        }
        Err(match first {
            TransportError::Rejected { .. }
            | TransportError::ContentType { .. }
            | TransportError::NotAnAnswer { .. } => TransportError::NotMcp {
                address: self.here.endpoint.sockets.address().to_owned(),
                source: Box::new(first),
            },
            other => other,
        })
    }

    /// Tries MCP of all ages at one address (specification 2025-11-25, basic/transports, "Backwards
    /// Compatibility"; 2026-07-28, basic/transports/streamable-http, the same).
    async fn mcp(&self, at: &Address) -> Result<Connection, TransportError> {
        match discover(&at.endpoint, self.options.probe_timeout).await {
            Ok(Finding::Modern(peer)) => return Ok(self.modern(at, peer)),
            Ok(Finding::Legacy) => {}
            Err(error) if error.is_unreachable() => return Err(error),
            Err(error) => tracing::debug!(%error, "the modern probe failed; trying the handshake"),
        }
        let refused = match self.legacy(at).await {
            Err(error) if wants_no_posts(&error) => error,
            settled => return settled,
        };
        match self.speak(Dialect::Sse, at).await {
            // A stream that opens and then breaks the rules says more than the refused handshake.
            Err(
                error @ (TransportError::ForeignEndpoint { .. }
                | TransportError::HandshakeRefused { .. }
                | TransportError::Version { .. }),
            ) => Err(error),
            Err(error) if !error.is_unreachable() => {
                tracing::debug!(%error, "the server does not speak HTTP+SSE either");
                Err(refused)
            }
            settled => settled,
        }
    }
}

/// No MCP at this path, as far as the status can say.
fn nothing_there(error: &TransportError) -> bool {
    matches!(error.http_status(), Some(404 | 405 | 501))
}

/// `initialize` was turned away as something one does not post here.
fn wants_no_posts(error: &TransportError) -> bool {
    matches!(
        error,
        TransportError::Rejected { .. } | TransportError::ServerFault { status: 501, .. }
    )
}

/// There is a server, it had the question, and its answer is none of MCP; not one that is down, or
/// a proxy that says so.
fn says_something_else(error: &TransportError) -> bool {
    matches!(
        error,
        TransportError::Rejected { .. }
            | TransportError::ContentType { .. }
            | TransportError::NotAnAnswer { .. }
            | TransportError::HandshakeRefused { .. }
            | TransportError::ServerFault { status: 500 | 501, .. }
    )
}

async fn discover(endpoint: &Endpoint, limit: Duration) -> Result<Finding, TransportError> {
    let version = ProtocolVersion::LATEST;
    let request = handshake::discover();
    let mut headers = Session::modern(&endpoint.headers, version).headers;
    headers.insert(super::http::METHOD, HeaderValue::from_static("server/discover"));
    let probing = async {
        let exchange = endpoint.post(headers, request.render(HANDSHAKE, version)).await?;
        endpoint.read(exchange, HANDSHAKE, Talk::default()).await
    };
    match within(limit, probing).await? {
        Reply::Answer(answer) => Ok(handshake::read_discover(&answer)),
        Reply::SessionGone(error) => Err(error),
    }
}

/// The handshake of the legacy era; also what makes a lost session anew, as number `generation`.
pub(super) async fn initialize(
    endpoint: &Endpoint,
    limit: Duration,
    generation: u64,
) -> Result<(Session, PeerInfo), TransportError> {
    let handshake = async {
        let body = handshake::render_initialize(HANDSHAKE, &endpoint.hearing.client_capabilities);
        let exchange = endpoint.post(endpoint.headers.clone(), body).await?;
        let session_id = exchange.headers().get(SESSION_ID).cloned();
        let peer = match endpoint.read(exchange, HANDSHAKE, Talk::default()).await? {
            Reply::Answer(answer) => handshake::read_initialize(&answer)?,
            Reply::SessionGone(error) => return Err(error),
        };
        let session = Session::legacy(&endpoint.headers, peer.version, session_id, generation);
        let ready = render_notification("notifications/initialized", None);
        endpoint.tell(Method::POST, session.headers.clone(), ready).await;
        Ok((session, peer))
    };
    within(limit, handshake).await
}

async fn within<T>(
    limit: Duration,
    step: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    match tokio::time::timeout(limit, step).await {
        Ok(done) => done,
        Err(_elapsed) => Err(TransportError::Timeout { elapsed: limit }),
    }
}

impl Session {
    fn modern(base: &HeaderMap, version: ProtocolVersion) -> Self {
        let mut headers = base.clone();
        headers.insert(PROTOCOL_VERSION, HeaderValue::from_static(version.as_str()));
        Self { version, headers, generation: 0, lost: AtomicBool::new(false) }
    }

    fn legacy(
        base: &HeaderMap,
        version: ProtocolVersion,
        id: Option<HeaderValue>,
        generation: u64,
    ) -> Self {
        let mut headers = base.clone();
        headers.insert(PROTOCOL_VERSION, HeaderValue::from_static(version.as_str()));
        if let Some(mut id) = id {
            id.set_sensitive(true);
            headers.insert(SESSION_ID, id);
        }
        Self { version, headers, generation, lost: AtomicBool::new(false) }
    }
}
