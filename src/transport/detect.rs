//! Which era an HTTP server speaks, and the handshake of that era.
//!
//! Changes when the specification's rules for telling eras apart do. Only `server/discover` and
//! `initialize` are ever sent: both do nothing.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method};
use url::Url;

use super::endpoint::{Endpoint, PROTOCOL_VERSION, Reply, SESSION_ID, Talk};
use super::error::TransportError;
use super::handshake::{self, Finding};
use super::http::Session;
use super::{ConnectOptions, PeerInfo};
use crate::model::{Era, ProtocolVersion};
use crate::protocol::render_notification;

/// Id of the opening message; calls count on from it. Not 0, which some servers take for none.
pub(super) const HANDSHAKE: u64 = 1;

/// An endpoint that answered.
pub(super) struct Opened {
    pub(super) endpoint: Endpoint,
    pub(super) session: Session,
    pub(super) peer: PeerInfo,
}

/// Finds the server at `url`, or at `url` with the path `/mcp` when it has none.
pub(super) async fn open(
    endpoint: Endpoint,
    url: &Url,
    options: &ConnectOptions,
) -> Result<Opened, TransportError> {
    let first = match detect(&endpoint, options).await {
        Ok((session, peer)) => return Ok(Opened { endpoint, session, peer }),
        Err(error) => error,
    };
    let nothing_there = matches!(first.http_status(), Some(404 | 405 | 501));
    if nothing_there && url.path() == "/" {
        let mut deeper = url.clone();
        deeper.set_path("/mcp");
        if let Some(endpoint) = endpoint.at(&deeper)
            && let Ok((session, peer)) = detect(&endpoint, options).await
        {
            return Ok(Opened { endpoint, session, peer });
        }
    }
    Err(match first {
        TransportError::Rejected { .. }
        | TransportError::ContentType { .. }
        | TransportError::NotAnAnswer { .. } => TransportError::NotMcp {
            address: endpoint.sockets.address().to_owned(),
            source: Box::new(first),
        },
        other => other,
    })
}

async fn detect(
    endpoint: &Endpoint,
    options: &ConnectOptions,
) -> Result<(Session, PeerInfo), TransportError> {
    let known_legacy = options.known_version.is_some_and(|v| v.era() == Era::Legacy);
    if known_legacy {
        match initialize(endpoint, options.connect_timeout, 0).await {
            Err(error) if !error.is_unreachable() => {}
            settled => return settled,
        }
    }
    match discover(endpoint, options.probe_timeout).await {
        Ok(Finding::Modern(peer)) => {
            return Ok((Session::modern(&endpoint.headers, peer.version), peer));
        }
        Ok(Finding::Legacy) => {}
        Err(error) if error.is_unreachable() => return Err(error),
        Err(error) => tracing::debug!(%error, "the modern probe failed; trying the handshake"),
    }
    initialize(endpoint, options.connect_timeout, 0).await
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
        Self { version, headers, generation: 0 }
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
        Self { version, headers, generation }
    }
}
