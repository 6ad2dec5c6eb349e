//! The front door: accepts connections, turns away what must not come in, hands on the rest.
//!
//! Tool calls over MCP are by far the most frequent request, so `POST /mcp` is taken here and
//! does not pass the REST router.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use axum::response::IntoResponse as _;
use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::auth::{Door, RequestContext, nobody};
use super::error::ApiError;
use super::inflight::{self, InFlight};
use super::tally::Denied;
use super::workers::{Handover, Workers};
use super::{Edge, api, mcp, origin, trace};
use crate::error::ErrorCode;
use crate::metrics::AuthFailure;
use crate::model::{CallId, Scope, Via, format_duration};
use crate::router::{Refusal, RefusedAt};

/// An answer's body: whole for MCP, whatever axum makes for the rest.
pub(super) type Body = Either<Full<Bytes>, axum::body::Body>;

/// A connection without a request for this long is closed; so is one whose headers take longer.
const IDLE: Duration = Duration::from_secs(75);
/// A body must be complete after this.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// All headers of a request together, in bytes.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// How long calls that were cancelled at the end of the drain have to say so to their clients.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long the reader of an answer that may be cut has for its end when the router stops.
const CUT: Duration = Duration::from_secs(1);

/// Marks an answer whose reader can take it up again or ask anew, so that the drain does not wait
/// for one who does not read.
#[derive(Debug, Clone, Copy)]
pub(super) struct MayBeCut;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The path of calls that are not MCP.
const CALL: &str = "/mcp/call";

/// The path of a view is this and its name.
const VIEWS: &str = "/mcp/v/";

/// A new id for a call or request.
pub(super) fn new_id() -> CallId {
    CallId::from_uuid(uuid::Uuid::now_v7())
}

/// Serves an [`Edge`] on any number of listeners.
#[derive(Debug)]
pub struct FrontDoor {
    edge: Arc<Edge>,
    rest: axum::Router,
    closing: Arc<Closing>,
    connections: TaskTracker,
    /// Connections that came during the drain. Each hears that there is none to be served by, and
    /// the end does not wait for them.
    late: TaskTracker,
    workers: OnceLock<Workers>,
}

/// Tells connections to finish. The flags are what they look at on every poll; the tokens only wake
/// them once, because waiting on one takes a lock that all connections would share.
#[derive(Debug, Default)]
struct Closing {
    flag: AtomicBool,
    token: CancellationToken,
    /// The time for the drain is over: requests are ended where they stand.
    over: AtomicBool,
    /// Nothing is accepted any more.
    ended: CancellationToken,
}

/// What a listener is.
#[derive(Debug)]
pub enum Listening {
    /// TCP.
    Network(TcpListener),
    /// The admin socket.
    Socket(UnixListener),
}

impl FrontDoor {
    /// A front door for `edge`, with its threads.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn open(edge: Arc<Edge>) -> std::io::Result<Arc<Self>> {
        let door = Arc::new(Self {
            rest: api::routes(Arc::clone(&edge)),
            edge,
            closing: Arc::default(),
            connections: TaskTracker::new(),
            late: TaskTracker::new(),
            workers: OnceLock::new(),
        });
        let serving = Arc::downgrade(&door);
        let workers = Workers::start(move |handover| {
            if let Some(door) = serving.upgrade() {
                door.take_over(handover);
            }
        })?;
        door.workers.get_or_init(|| workers);
        Ok(door)
    }

    /// Accepts connections until [`FrontDoor::close`] is done: those that come while it drains are
    /// told so, which says more than a refused connection.
    pub async fn serve(self: Arc<Self>, listening: Listening) {
        loop {
            let accepted = tokio::select! {
                () = self.closing.ended.cancelled() => return,
                accepted = accept(&listening) => accepted,
            };
            match accepted {
                Ok(handover) => {
                    if let Some(workers) = self.workers.get() {
                        workers.hand_over(handover).await;
                    }
                }
                Err(error) => {
                    // Usually out of file descriptors: others must end before this can go on.
                    tracing::warn!(%error, "a connection could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Takes no new requests, lets open ones finish within `bound`, and ends; those that do not
    /// finish are cancelled at their servers, and their clients told.
    pub async fn close(&self, bound: Duration) {
        self.closing.flag.store(true, Ordering::Release);
        self.closing.token.cancel();
        self.connections.close();
        self.edge.calls.close();
        if tokio::time::timeout(bound, self.drained()).await.is_err() {
            let calls = self.edge.metrics.inflight_requests.get();
            tracing::warn!(
                calls,
                "{calls} requests did not finish within {}; they are cancelled (shutdown_timeout)",
                format_duration(bound)
            );
            self.closing.over.store(true, Ordering::Release);
            self.edge.abort.cancel();
            // Whoever takes no answer now is cut off with its thread.
            let _ = tokio::time::timeout(FAREWELL, self.drained()).await;
        }
        self.closing.ended.cancel();
    }

    async fn drained(&self) {
        self.connections.wait().await;
        self.edge.calls.wait().await;
    }

    /// Ends the threads that served connections.
    pub async fn stop(&self) {
        if let Some(workers) = self.workers.get() {
            workers.stop().await;
        }
    }

    /// Serves a connection on the thread this is called on.
    fn take_over(self: &Arc<Self>, handover: Handover) {
        let taken = match handover {
            Handover::Network(stream, local, peer) => {
                let way = Way { door: Door::Network, local: Some(local), peer: Some(peer) };
                TcpStream::from_std(stream).map(|stream| self.connection(TokioIo::new(stream), way))
            }
            Handover::Socket(stream) => {
                let way = Way { door: Door::Socket, local: None, peer: None };
                UnixStream::from_std(stream)
                    .map(|stream| self.connection(TokioIo::new(stream), way))
            }
        };
        if let Err(error) = taken {
            tracing::warn!(%error, "a connection could not be served: {error}");
        }
    }

    fn connection<T>(self: &Arc<Self>, io: TokioIo<T>, way: Way)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let this = Arc::clone(self);
        // Told to finish before its first request, it would close without a word.
        let is_late = self.closing.flag.load(Ordering::Acquire);
        let tracker = if is_late { &self.late } else { &self.connections };
        tracker.spawn(async move {
            let may_cut = AtomicBool::new(false);
            let mut cut = pin!(None);
            let service = service_fn(|request| {
                let this = Arc::clone(&this);
                let may_cut = &may_cut;
                async move {
                    let response = this.answer(request, way).await;
                    let marked = response.extensions().get::<MayBeCut>().is_some();
                    may_cut.store(marked, Ordering::Relaxed);
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE)
                .max_buf_size(MAX_HEADER_BYTES)
                .serve_connection(io, service);
            let mut connection = pin!(connection);
            let mut stop = pin!(this.closing.token.cancelled());
            let mut over = pin!(this.edge.abort.cancelled());
            let (mut watching, mut ending) = (false, is_late);
            let served = std::future::poll_fn(|context| {
                if !watching {
                    watching = true;
                    let _ = stop.as_mut().poll(context);
                }
                if !ending && this.closing.flag.load(Ordering::Acquire) {
                    ending = true;
                    let _ = over.as_mut().poll(context);
                    connection.as_mut().graceful_shutdown();
                }
                match connection.as_mut().poll(context) {
                    Poll::Ready(served) => return Poll::Ready(served),
                    Poll::Pending => {}
                }
                // Its body has ended or is about to; what is left waits for the reader.
                if ending && may_cut.load(Ordering::Relaxed) {
                    if cut.is_none() {
                        cut.set(Some(tokio::time::sleep(CUT)));
                    }
                    if let Some(cut) = cut.as_mut().as_pin_mut() {
                        return cut.poll(context).map(Ok);
                    }
                }
                Poll::Pending
            });
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection ended early: {error}");
            }
        });
    }

    async fn answer(&self, request: Request<Incoming>, way: Way) -> Response<Body> {
        let id = new_id();
        let gauge = &self.edge.metrics.inflight_requests;
        let _inflight = InFlight::new(gauge);
        let admitted = self.unless_over(self.admit(request, id, way)).await;
        let mut response = match admitted {
            Ok(response) => response,
            Err(error) => error.into_response().map(Either::Right),
        };
        if self.closing.flag.load(Ordering::Relaxed) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut buffer = [0_u8; 36];
        if let Ok(value) = HeaderValue::from_str(id.encode(&mut buffer)) {
            response.headers_mut().insert(REQUEST_ID.clone(), value);
        }
        inflight::until_its_end(response, gauge)
    }

    /// What `answer` gives, or that it was ended where it stood because the time for the drain is
    /// over. To drop it is to cancel it at its server.
    async fn unless_over<T>(
        &self,
        answer: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let mut answer = pin!(answer);
        let over = std::future::poll_fn(|context| match answer.as_mut().poll(context) {
            Poll::Ready(answered) => Poll::Ready(Some(answered)),
            Poll::Pending if self.closing.over.load(Ordering::Acquire) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        over.await.unwrap_or_else(|| {
            let detail = "the router is stopping, and the request did not end in time (shutdown_timeout); a call was cancelled, and the ledger has it";
            Err(ApiError::new(ErrorCode::ShuttingDown, detail))
        })
    }

    async fn admit(
        &self,
        request: Request<Incoming>,
        id: CallId,
        Way { door, local, peer }: Way,
    ) -> Result<Response<Body>, ApiError> {
        let (caller, body_limit) = {
            // Not held across an await: a thread has few places for such guards, and calls are many.
            let settings = self.edge.settings.load();
            let foreign = origin::check(
                request.headers(),
                request.uri(),
                local,
                &settings.allowed_hosts,
                &settings.allowed_origins,
            );
            if let Err(foreign) = foreign {
                let error = ApiError::new(ErrorCode::ForbiddenOrigin, foreign.to_string());
                self.note_denied(AuthFailure::Origin, &request, peer, &error);
                return Err(error);
            }
            let caller = self.edge.keys.identify(request.headers(), door, &settings);
            (caller, settings.body_limit)
        };
        let http = if request.version() == Version::HTTP_10 { "1.0" } else { "1.1" };
        let via = Via { peer, http };
        let path = request.uri().path();
        if matches!(path, "/livez" | "/readyz") {
            return self.rest(request).await;
        }
        let caller = match caller {
            Ok(caller) => caller,
            Err(failure) => {
                let error = turned_away(failure);
                self.note_denied(failure, &request, peer, &error);
                let path = path.to_owned();
                let trace = trace::of(request.headers());
                let context = RequestContext { id, caller: nobody(), via, view: None, trace };
                if request.method() == Method::POST {
                    self.turn_away(&path, request.headers(), context, &error).await;
                }
                return Err(error);
            }
        };
        let trace = trace::of(request.headers());
        let mut context = RequestContext { id, caller, via, view: None, trace };
        if self.closing.flag.load(Ordering::Relaxed) {
            let error = ApiError::new(
                ErrorCode::ShuttingDown,
                "the router is stopping and takes no new requests; nothing was done",
            );
            let is_call = request.method() == Method::POST && context.caller.may(Scope::Call);
            if is_call && let Some(at) = calls_at(path, request.headers()) {
                self.refuse(&context, at, &error).await;
            }
            return Err(error);
        }
        let mut is_endpoint = path == "/mcp";
        if !is_endpoint && let Some(name) = path.strip_prefix(VIEWS) {
            is_endpoint = true;
            match self.edge.view(name) {
                Ok(view) => context.view = Some(view),
                Err(unknown) if context.caller.may(Scope::Call) => {
                    if request.method() == Method::POST {
                        let version = mcp::announced(request.headers());
                        self.refuse(&context, RefusedAt::Mcp(version), &unknown).await;
                    }
                    return Err(unknown);
                }
                // Whoever may not call hears just that, further on.
                Err(_) => {}
            }
        }
        if is_endpoint && request.method() == Method::POST {
            let (head, body) = request.into_parts();
            let body = match read_body(body, body_limit).await {
                Ok(body) => body,
                Err(error) => {
                    let version = mcp::announced(&head.headers);
                    self.refuse(&context, RefusedAt::Mcp(version), &error).await;
                    return Err(error);
                }
            };
            return Ok(mcp::post(&self.edge, context, &head.headers, body).await);
        }
        if is_endpoint {
            let (method, headers) = (request.method(), request.headers());
            if let Some(answer) = mcp::of_session(&self.edge, &context, method, headers).await {
                return Ok(answer);
            }
        }
        let mut request = request;
        request.extensions_mut().insert(context);
        self.rest(request).await
    }

    async fn rest(&self, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
        let mut rest = self.rest.clone();
        match rest.call(request.map(axum::body::Body::new)).await {
            Ok(response) => Ok(response.map(Either::Right)),
            Err(never) => match never {},
        }
    }

    fn note_denied(
        &self,
        why: AuthFailure,
        request: &Request<Incoming>,
        peer: Option<SocketAddr>,
        error: &ApiError,
    ) {
        let (method, path) = (request.method(), request.uri().path());
        let nobody = nobody();
        let (caller, peer) = (&nobody.name, peer.map(|peer| peer.ip()));
        self.edge.denied(why, &Denied { caller, method, path, peer, says: &error.detail });
    }

    /// Puts a call that was turned away on record.
    async fn turn_away(
        &self,
        path: &str,
        headers: &HeaderMap,
        mut context: RequestContext,
        error: &ApiError,
    ) {
        if let Some(at) = calls_at(path, headers) {
            context.view = path.strip_prefix(VIEWS).and_then(|name| self.edge.view(name).ok());
            self.refuse(&context, at, error).await;
        }
    }

    async fn refuse(&self, context: &RequestContext, at: RefusedAt, error: &ApiError) {
        let refusal = Refusal {
            id: context.id,
            caller: Arc::clone(&context.caller),
            at,
            via: context.via,
            session: None,
            client: None,
            request_id: None,
            view: context.view.clone(),
            trace: context.trace.clone(),
            tool: String::new(),
            code: error.code,
            message: error.detail.clone(),
            http_status: error.status(),
            rpc_code: None,
            request_bytes: 0,
        };
        self.edge.router.refuse(refusal).await;
    }
}

/// Through which door calls come at this path.
fn calls_at(path: &str, headers: &HeaderMap) -> Option<RefusedAt> {
    match path {
        CALL => Some(RefusedAt::Rest),
        _ if path == "/mcp" || path.starts_with(VIEWS) => {
            Some(RefusedAt::Mcp(mcp::announced(headers)))
        }
        _ => None,
    }
}

/// What somebody without a good key is told.
fn turned_away(failure: AuthFailure) -> ApiError {
    let detail = match failure {
        AuthFailure::MissingKey => {
            "send a key as `Authorization: Bearer sy_…`; `switchyard keys create NAME` makes one"
        }
        AuthFailure::InvalidKey | AuthFailure::Origin | AuthFailure::Scope => {
            "the key is unknown, revoked or expired"
        }
    };
    ApiError::new(ErrorCode::Authentication, detail)
}

/// Which way a connection came.
#[derive(Debug, Clone, Copy)]
struct Way {
    door: Door,
    /// The address it came in on, and the one it is from; none over the admin socket.
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
}

async fn accept(listening: &Listening) -> std::io::Result<Handover> {
    match listening {
        Listening::Network(listener) => {
            let (stream, peer) = listener.accept().await?;
            // An answer is one write; waiting to fill a segment would only add delay.
            stream.set_nodelay(true)?;
            let local = stream.local_addr()?;
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            Ok(Handover::Network(stream.into_std()?, local, peer))
        }
        Listening::Socket(listener) => Ok(Handover::Socket(listener.accept().await?.0.into_std()?)),
    }
}

/// Reads a whole body.
///
/// # Errors
/// When it is larger than `limit`, too slow, or cut off.
pub(super) async fn read_body<B>(body: B, limit: usize) -> Result<Bytes, ApiError>
where
    B: hyper::body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || {
        let detail = format!("the body is larger than {limit} bytes (limits.body)");
        ApiError::new(ErrorCode::RequestTooLarge, detail)
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::invalid(format!("the body was cut off: {error}"))),
        Err(_) => Err(ApiError::invalid(format!(
            "the body was not complete after {} s",
            BODY_TIMEOUT.as_secs()
        ))),
    }
}
