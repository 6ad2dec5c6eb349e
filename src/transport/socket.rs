//! [`SocketPool`]: keep-alive HTTP/1.1 connections to one address, driven by whoever uses them.
//!
//! Changes when the way bytes reach an HTTP upstream does. Knows nothing of MCP.
//!
//! A connection has no task of its own: the future that sends a request also drives the
//! connection, so that a call costs no spawn and no hand-over to another task. Measured beside the
//! usual pooled client, on a busy machine, that is a quarter less CPU time per call. It is why
//! HTTP/2 is not offered: there a connection must be driven for all its streams. And it is exact
//! about what was sent: a connection that ended while idle is noticed before a request is given to
//! it, and a request that was not begun comes back.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::runtime;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::error::TransportError;
use super::fair::{Fair, Paused};
use crate::clock;
use crate::model::Uptime;

/// Below the five seconds after which small servers close an idle connection, so that we seldom
/// meet one that is just being closed.
const IDLE: Duration = Duration::from_secs(4);
/// How long the rest of an answer may take, after what we wanted of it came, before its connection
/// is given up.
const DRAIN: Duration = Duration::from_millis(250);
/// How much of it is read; a new connection costs less than more.
const DRAINED: usize = 256 * 1024;

/// After this long without a byte the kernel asks whether the peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long it waits before it asks again.
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(15);
/// How often it asks in vain before the connection counts as broken.
const KEEPALIVE_TRIES: u32 = 4;

/// How often a connection may go round before other tasks get their turn: the runtime, when it wants
/// the task to pause, wakes it until it does.
const ROUNDS: u32 = 4;

/// The largest head of an answer, and what is read at a time.
const BUFFER: usize = 64 * 1024;

/// How often something may be read before the head of an answer is there. A head comes in a few pieces;
/// interim responses (1xx), of which HTTP allows any number, can go on for ever, and each is parsed.
const READS_OF_HEAD: u32 = 1024;

type Stream = Fair<MaybeHttpsStream<TokioIo<TcpStream>>>;
type Driver = http1::Connection<Stream, Full<Bytes>>;

/// Opens connections to HTTP upstreams; one for the whole process, cheap to clone.
///
/// Follows no redirect, repeats nothing, and reads no proxy from the environment.
#[derive(Clone, Debug)]
pub struct HttpClient {
    connector: HttpsConnector<HttpConnector>,
}

impl HttpClient {
    /// Prepares TLS with the web's root certificates.
    #[must_use]
    #[expect(
        clippy::expect_used,
        reason = "the provider is compiled in and has the cipher suites of TLS 1.2 and 1.3"
    )]
    pub fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // An event stream can be silent for hours; a peer that vanished must be noticed all the same.
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_AGAIN));
        tcp.set_keepalive_retries(Some(KEEPALIVE_TRIES));
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .expect("TLS 1.2 and 1.3 are available")
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Self { connector }
    }
}

impl Default for HttpClient {
    fn default() -> Self {
        Self::new()
    }
}

/// The waker of a connection: it wakes the task that drives it, but not while that task is at it.
///
/// The parts of a connection wake each other. In one task such a wake-up is only a reason to
/// go round once more; given to the runtime it would put the task into the queue and rouse
/// another thread to take it.
#[derive(Default)]
struct Gate {
    task: Mutex<Option<Waker>>,
    state: AtomicU8,
}

impl Gate {
    /// Nobody is driving: wake-ups go to the task.
    const OPEN: u8 = 0;
    /// The task is driving.
    const SHUT: u8 = 1;
    /// The task is driving, and something happened.
    const KNOCKED: u8 = 2;

    fn shut(&self, cx: &Context<'_>) {
        let mut task = self.task.lock();
        if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
        drop(task);
        self.state.store(Self::SHUT, Ordering::SeqCst);
    }

    /// Whether the task may go to sleep; if not, it must go round once more.
    fn try_open(&self) -> bool {
        let opened =
            self.state.compare_exchange(Self::SHUT, Self::OPEN, Ordering::SeqCst, Ordering::SeqCst);
        if opened.is_err() {
            self.state.store(Self::SHUT, Ordering::SeqCst);
        }
        opened.is_ok()
    }

    /// Opens; the task goes on by itself.
    fn open(&self) {
        self.state.store(Self::OPEN, Ordering::SeqCst);
    }

    fn forget_task(&self) {
        *self.task.lock() = None;
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let knocked = self.state.compare_exchange(
            Self::SHUT,
            Self::KNOCKED,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        if knocked == Err(Self::OPEN)
            && let Some(task) = &*self.task.lock()
        {
            task.wake_by_ref();
        }
    }
}

/// One connection and its two ends in hyper.
struct Socket {
    /// `None` once the connection has ended; dropping it resolves what still waits.
    driver: Option<Pin<Box<Driver>>>,
    sender: http1::SendRequest<Full<Bytes>>,
    gate: Arc<Gate>,
    waker: Waker,
    paused: Paused,
    idle_since: Uptime,
    /// Where its readiness events arrive. Used from another runtime it would work, but each event
    /// would have to wake a thread.
    home: runtime::Id,
}

impl Socket {
    fn new(sender: http1::SendRequest<Full<Bytes>>, driver: Driver, paused: Paused) -> Self {
        let gate = Arc::new(Gate::default());
        let waker = Waker::from(Arc::clone(&gate));
        let driver = Some(Box::pin(driver));
        let idle_since = Uptime::default();
        let home = runtime::Handle::current().id();
        let mut socket = Self { driver, sender, gate, waker, paused, idle_since, home };
        socket.settle();
        socket
    }

    /// Lets the connection read and write what it can.
    fn drive(&mut self) {
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready()
        {
            self.driver = None;
        }
    }

    fn is_ready(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Drives the connection once, without waiting, and says whether it takes a request.
    fn settle(&mut self) -> bool {
        self.gate.forget_task();
        self.drive();
        self.is_ready()
    }

    /// Drives the connection until `part`, which waits for nothing but this connection, is ready.
    async fn drive_until<T>(&mut self, mut part: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        poll_fn(|cx| {
            self.gate.shut(cx);
            for _ in 0..ROUNDS {
                self.drive();
                if let Poll::Ready(done) = part(&mut Context::from_waker(&self.waker)) {
                    self.gate.open();
                    return Poll::Ready(done);
                }
                if self.paused.take() {
                    break;
                }
                if self.gate.try_open() {
                    return Poll::Pending;
                }
            }
            self.gate.open();
            // A task that wakes itself goes on before timers and other connections are looked at.
            let _pending = pin!(tokio::task::yield_now()).poll(cx);
            Poll::Pending
        })
        .await
    }

    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<http::Response<Incoming>, SendError> {
        let mut response = pin!(self.sender.try_send_request(request));
        let (paused, before) = (self.paused.clone(), self.paused.reads());
        let answered = self.drive_until(|cx| match response.as_mut().poll(cx) {
            Poll::Pending if paused.reads().wrapping_sub(before) > READS_OF_HEAD => {
                Poll::Ready(None)
            }
            polled => polled.map(Some),
        });
        let answered = answered.await.ok_or(SendError::NoHead)?;
        answered.map_err(|mut error| match error.take_message() {
            Some(request) => SendError::NotBegun(Box::new(request), error.into_error()),
            None => SendError::Begun(error.into_error()),
        })
    }
}

/// Why there is no response.
enum SendError {
    /// Not a byte was written; the request is intact.
    NotBegun(Box<Request<Full<Bytes>>>, hyper::Error),
    /// Something was, perhaps.
    Begun(hyper::Error),
    /// It was, and what came back has no end.
    NoHead,
}

/// Connections to one address.
pub(super) struct SocketPool {
    /// Scheme, host and port.
    origin: Uri,
    /// The same for people.
    address: String,
    connector: HttpsConnector<HttpConnector>,
    connect_timeout: Duration,
    idle: Mutex<Idle>,
    tasks: TaskTracker,
    closed: CancellationToken,
    _close_on_drop: DropGuard,
}

#[derive(Default)]
struct Idle {
    /// The most recently used is last and is taken first, so that the others grow old.
    sockets: Vec<Socket>,
    reaper_runs: bool,
}

impl SocketPool {
    pub(super) fn new(
        client: &HttpClient,
        origin: Uri,
        address: String,
        connect_timeout: Duration,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        let closed = CancellationToken::new();
        Arc::new(Self {
            origin,
            address,
            connector: client.connector.clone(),
            connect_timeout,
            idle: Mutex::default(),
            tasks,
            _close_on_drop: closed.clone().drop_guard(),
            closed,
        })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Drops every idle connection and keeps none from now on.
    pub(super) fn close(&self) {
        self.closed.cancel();
        let sockets = std::mem::take(&mut self.idle.lock().sockets);
        drop(sockets);
    }

    /// Sends `request`, whose URI is in origin form and which has its `Host`.
    ///
    /// A request that a reused connection provably did not begin goes out on another one.
    /// Dropping the future closes the connection, which is how HTTP/1.1 cancels.
    pub(super) async fn send(
        self: &Arc<Self>,
        request: Request<Full<Bytes>>,
    ) -> Result<Exchange, TransportError> {
        self.send_if(request, || true).await
    }

    /// The same, given up unsent when `begin` says so: it is asked once, when there is a connection
    /// and before the first byte can be written.
    pub(super) async fn send_if(
        self: &Arc<Self>,
        mut request: Request<Full<Bytes>>,
        begin: impl FnOnce() -> bool,
    ) -> Result<Exchange, TransportError> {
        let mut begin = Some(begin);
        loop {
            let reused = self.take_idle();
            let fresh = reused.is_none();
            let mut socket = match reused {
                Some(socket) => socket,
                None => self.connect().await?,
            };
            if begin.take().is_some_and(|begin| !begin()) {
                self.put_back(socket);
                return Err(TransportError::Closed);
            }
            match socket.send(request).await {
                Ok(response) => return Ok(Exchange::new(response, socket, Arc::clone(self))),
                Err(SendError::NotBegun(unsent, _)) if !fresh => request = *unsent,
                Err(SendError::NotBegun(_, source)) => {
                    return Err(TransportError::NotSent {
                        address: self.address.clone(),
                        source: Arc::new(source),
                    });
                }
                Err(SendError::Begun(source)) => return Err(self.broken(source)),
                Err(SendError::NoHead) => return Err(TransportError::NoHead),
            }
        }
    }

    pub(super) fn broken(&self, source: hyper::Error) -> TransportError {
        TransportError::Broken { address: self.address.clone(), source }
    }

    fn take_idle(&self) -> Option<Socket> {
        let here = runtime::Handle::current().id();
        loop {
            let mut socket = {
                let mut idle = self.idle.lock();
                let at = idle.sockets.iter().rposition(|socket| socket.home == here)?;
                let socket = idle.sockets.remove(at);
                if clock::uptime().since(socket.idle_since) > IDLE {
                    // The youngest of this runtime is too old, so all of it are.
                    let (old, others) = std::mem::take(&mut idle.sockets)
                        .into_iter()
                        .partition::<Vec<_>, _>(|socket| socket.home == here);
                    idle.sockets = others;
                    drop(idle);
                    drop(old);
                    return None;
                }
                socket
            };
            if socket.settle() {
                return Some(socket);
            }
        }
    }

    async fn connect(&self) -> Result<Socket, TransportError> {
        let connecting = async {
            let mut connector = self.connector.clone();
            poll_fn(|cx| connector.poll_ready(cx)).await?;
            let stream = connector.call(self.origin.clone()).await?;
            let (stream, paused) = Fair::new(stream);
            let (sender, connection) =
                http1::Builder::new().max_buf_size(BUFFER).handshake(stream).await?;
            Ok(Socket::new(sender, connection, paused))
        };
        match tokio::time::timeout(self.connect_timeout, Box::pin(connecting)).await {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(source)) => {
                Err(TransportError::Connect { address: self.address.clone(), source })
            }
            Err(_elapsed) => Err(TransportError::ConnectTimeout {
                address: self.address.clone(),
                limit: self.connect_timeout,
            }),
        }
    }

    fn put_back(self: &Arc<Self>, mut socket: Socket) {
        if self.closed.is_cancelled() {
            return;
        }
        socket.gate.forget_task();
        socket.idle_since = clock::uptime();
        let start_reaper = {
            let mut idle = self.idle.lock();
            idle.sockets.push(socket);
            !std::mem::replace(&mut idle.reaper_runs, true)
        };
        if start_reaper && let Ok(runtime) = runtime::Handle::try_current() {
            self.tasks.spawn_on(reap(Arc::downgrade(self), self.closed.clone()), &runtime);
        }
    }

    /// Drops what has been idle too long; true while something is left.
    fn reap(&self) -> bool {
        let now = clock::uptime();
        let mut idle = self.idle.lock();
        let (keep, old) = std::mem::take(&mut idle.sockets)
            .into_iter()
            .partition::<Vec<_>, _>(|socket| now.since(socket.idle_since) <= IDLE);
        idle.sockets = keep;
        idle.reaper_runs = !idle.sockets.is_empty();
        let goes_on = idle.reaper_runs;
        drop(idle);
        drop(old);
        goes_on
    }
}

/// Closes connections that nobody uses any more; ends when there is none.
async fn reap(pool: Weak<SocketPool>, closed: CancellationToken) {
    // A little later than the oldest is due, so that one round is enough for it.
    let round = IDLE + Duration::from_millis(50);
    while tokio::time::timeout(round, closed.cancelled()).await.is_err() {
        let Some(pool) = pool.upgrade() else { return };
        if !pool.reap() {
            return;
        }
    }
}

/// A response whose body is still coming.
///
/// Dropping it closes the connection, unless it was [`Exchange::finish`]ed.
pub(super) struct Exchange {
    head: http::response::Parts,
    body: Incoming,
    socket: Socket,
    pool: Arc<SocketPool>,
}

impl Exchange {
    fn new(response: http::Response<Incoming>, socket: Socket, pool: Arc<SocketPool>) -> Self {
        let (head, body) = response.into_parts();
        Self { head, body, socket, pool }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.head.status
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// The next bytes of the body; `None` at its end.
    pub(super) async fn frame(&mut self) -> Option<Result<Bytes, TransportError>> {
        let Self { socket, body, .. } = self;
        let frame = socket
            .drive_until(|cx| {
                loop {
                    match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                        Some(Ok(frame)) => {
                            // Trailers say nothing that we read.
                            if let Ok(data) = frame.into_data() {
                                return Poll::Ready(Some(Ok(data)));
                            }
                        }
                        Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                        None => return Poll::Ready(None),
                    }
                }
            })
            .await;
        frame.map(|frame| frame.map_err(|error| self.pool.broken(error)))
    }

    /// The same, with a silence of at most `stall`.
    pub(super) async fn frame_in(
        &mut self,
        stall: Option<Duration>,
    ) -> Option<Result<Bytes, TransportError>> {
        let Some(stall) = stall else { return self.frame().await };
        // Boxed, so that answers without such a limit do not carry the room for it.
        match Box::pin(tokio::time::timeout(stall, self.frame())).await {
            Ok(frame) => frame,
            Err(_elapsed) => Some(Err(TransportError::Stalled { silence: stall })),
        }
    }

    /// Whether the body has been read to its end.
    pub(super) fn is_at_end(&self) -> bool {
        self.body.is_end_stream()
    }

    /// The whole body, at most `limit` bytes of it, with no silence longer than `stall`; one frame
    /// is taken as it is, without a copy.
    pub(super) async fn collect(
        &mut self,
        limit: u64,
        stall: Option<Duration>,
    ) -> Result<Bytes, TransportError> {
        let too_large = TransportError::ResponseTooLarge { limit };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let announced = usize::try_from(self.body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > limit {
            return Err(too_large);
        }
        let Some(first) = self.frame_in(stall).await.transpose()? else { return Ok(Bytes::new()) };
        if first.len() > limit {
            return Err(too_large);
        }
        if self.is_at_end() {
            return Ok(first);
        }
        let Some(second) = self.frame_in(stall).await.transpose()? else { return Ok(first) };
        let mut all = Vec::with_capacity(announced.max(first.len().saturating_mul(2)));
        all.extend_from_slice(&first);
        let mut next = Some(second);
        while let Some(bytes) = next {
            if all.len().saturating_add(bytes.len()) > limit {
                return Err(too_large);
            }
            all.extend_from_slice(&bytes);
            // A frame can be one byte, and hundreds of thousands of them be there already.
            tokio::task::coop::consume_budget().await;
            next = self.frame_in(stall).await.transpose()?;
        }
        Ok(Bytes::from(all))
    }

    /// Gives the connection back, when the body is at its end or nearly so; else it is closed.
    ///
    /// Many servers answer every request with an event stream and end it right after the answer:
    /// a moment of patience, away from the caller, saves a new connection for each call.
    pub(super) async fn finish(mut self) {
        let ended = self.is_at_end() || matches!(self.next_now().await, Some(None));
        if ended {
            self.give_back();
        } else if let Ok(runtime) = runtime::Handle::try_current() {
            let tasks = self.pool.tasks.clone();
            tasks.spawn_on(
                async move {
                    let drained = tokio::time::timeout(DRAIN, self.drain());
                    if drained.await == Ok(true) {
                        self.give_back();
                    }
                },
                &runtime,
            );
        }
    }

    /// Reads what is left; whether that was little.
    async fn drain(&mut self) -> bool {
        let mut left = DRAINED;
        while let Some(Ok(bytes)) = self.frame().await {
            match left.checked_sub(bytes.len()) {
                Some(less) => left = less,
                None => return false,
            }
            tokio::task::coop::consume_budget().await;
        }
        true
    }

    /// The next frame if it is there already.
    async fn next_now(&mut self) -> Option<Option<Result<Bytes, TransportError>>> {
        let mut frame = pin!(self.frame());
        poll_fn(|cx| match frame.as_mut().poll(cx) {
            Poll::Ready(frame) => Poll::Ready(Some(frame)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    fn give_back(mut self) {
        if self.socket.is_ready() || self.socket.settle() {
            self.pool.put_back(self.socket);
        }
    }
}
