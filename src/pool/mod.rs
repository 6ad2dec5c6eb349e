//! [`ConnectionPool`]: one connection to a server, opened when needed and again when lost.
//!
//! Changes when the rules for opening again do. Knows nothing of requests, retries or breakers.

#[cfg(test)]
mod tests;

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::error::ErrorCode;
use crate::model::{Blame, Dialect, Failure, Timestamp, TransportKind, Uptime, format_duration};
pub use crate::transport::{
    Children, ConnectOptions, Connection, Hearing, HttpClient, ListKind, Notice, NoticeSink,
    Offers, PeerInfo, Relay, RelayWishes, ServerMessage, ServerRequest, Target, TransportError,
};

/// The wait after the first failure; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait before a child is started again: a start is costly, and may fail for a reason
/// that lasts.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The longest wait before a server is reached for again over HTTP: a try costs next to nothing,
/// and a server that returns should be found at once.
const LONGEST_HTTP_WAIT: Duration = Duration::from_secs(2);
/// A connection that lived this long was healthy: its end begins a new count.
const HEALTHY: Duration = Duration::from_secs(60);

/// Why there is no connection. The call that asked for it was not sent.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PoolError {
    /// It was tried and failed.
    #[error("{error}")]
    Connect {
        /// Why.
        #[source]
        error: Arc<TransportError>,
    },
    /// It failed a moment ago; the next try is not due.
    #[error("{error} (next try in {})", format_duration(*.retry_in))]
    Backoff {
        /// Why the last try failed.
        #[source]
        error: Arc<TransportError>,
        /// When the next call will try again.
        retry_in: Duration,
    },
    /// The specification cannot be used, so there is nothing to connect to.
    #[error("the server's configuration cannot be used: {problem}")]
    Unusable {
        /// What is wrong with it.
        problem: String,
    },
    /// The connection was not there when the caller's time was up.
    #[error("no connection within {}", format_duration(*.waited))]
    Waited {
        /// How long the caller waited.
        waited: Duration,
    },
    /// The pool was closed: the server was removed, changed or disabled, or we are stopping.
    #[error("the connection to the server was closed")]
    Closed,
}

impl PoolError {
    /// What went wrong, without anything that the server says of it.
    #[must_use]
    pub fn in_our_words(&self) -> String {
        match self {
            Self::Connect { error } => error.in_our_words(),
            Self::Backoff { error, retry_in } => {
                format!("{} (next try in {})", error.in_our_words(), format_duration(*retry_in))
            }
            Self::Unusable { .. } | Self::Waited { .. } | Self::Closed => self.to_string(),
        }
    }

    /// `Refused` when the server answered that it does not want us, else `NotSent`: whatever
    /// happened, the call itself was not sent.
    #[must_use]
    pub fn failure(&self) -> Failure {
        match self.transport().map(TransportError::failure) {
            Some(Failure::Refused) => Failure::Refused,
            _ => Failure::NotSent,
        }
    }

    /// The error code callers see.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self.transport().map(TransportError::code) {
            // A handshake without an answer is not a call without an answer.
            None | Some(ErrorCode::Timeout) => match self {
                Self::Waited { .. } => ErrorCode::Timeout,
                _ => ErrorCode::Connection,
            },
            Some(code) => code,
        }
    }

    /// The HTTP status of the upstream, when that is what went wrong.
    #[must_use]
    pub fn http_status(&self) -> Option<u16> {
        self.transport().and_then(TransportError::http_status)
    }

    /// When another try makes sense, if that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Backoff { retry_in, .. } => Some(*retry_in),
            Self::Connect { error } => error.retry_after(),
            Self::Unusable { .. } | Self::Waited { .. } | Self::Closed => None,
        }
    }

    /// Whether the same try could go better a moment later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { error } | Self::Backoff { error, .. } => error.may_pass(),
            Self::Waited { .. } => true,
            Self::Unusable { .. } | Self::Closed => false,
        }
    }

    /// What the error says of the server's health.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Connect { error } | Self::Backoff { error, .. } => error.blame(),
            Self::Waited { .. } => Blame::Server,
            Self::Unusable { .. } | Self::Closed => Blame::Nobody,
        }
    }

    /// What went wrong below.
    #[must_use]
    pub fn transport(&self) -> Option<&TransportError> {
        match self {
            Self::Connect { error } | Self::Backoff { error, .. } => Some(error),
            Self::Unusable { .. } | Self::Waited { .. } | Self::Closed => None,
        }
    }
}

/// How it stands with a server's connection, for people.
#[derive(Debug, Clone)]
pub enum PoolState {
    /// Nobody needed it yet, or it ended in order.
    Idle,
    /// The first try is under way.
    Connecting,
    /// There is one.
    Up,
    /// The last try failed, or the connection broke.
    Down {
        /// Why.
        error: Arc<TransportError>,
        /// Since when.
        since: Timestamp,
    },
}

impl PoolState {
    /// The name in the API.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Down { .. } => "down",
        }
    }
}

/// A connection in use. It stays usable for its holder when the pool moves on to another.
#[derive(Debug, Clone)]
pub struct Lease(Arc<Live>);

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0.connection
    }
}

impl Lease {
    /// Whether we closed the connection while it lived. What then fails says nothing of the server.
    #[must_use]
    pub fn was_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
struct Live {
    connection: Connection,
    since: Uptime,
    /// Set before we close it.
    closed: AtomicBool,
}

impl Live {
    fn new(connection: Connection) -> Self {
        Self { connection, since: clock::uptime(), closed: AtomicBool::new(false) }
    }

    async fn close(&self) {
        self.connection.close().await;
    }

    /// From here on its end is our doing.
    fn mark_closed(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// How urgently a connection is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// While the next try is not due, the failure of the last one is the answer.
    Patient,
    /// There is a try, however long ago the last one failed: whoever decides over a breaker learns
    /// nothing from what was found before. Children are still not started in a circle.
    AtOnce,
}

/// The connection to one server. Cheap to clone; all clones are one pool.
#[derive(Clone)]
pub struct ConnectionPool(Arc<Inner>);

struct Inner {
    target: Target,
    client: HttpClient,
    options: ConnectOptions,
    tasks: TaskTracker,
    /// What calls read, without a lock.
    current: ArcSwapOption<Live>,
    slot: Mutex<Slot>,
    closed: CancellationToken,
    connects: AtomicU64,
}

/// What the slow path decides by.
#[derive(Default)]
struct Slot {
    connecting: Option<watch::Receiver<Option<Outcome>>>,
    failed: Option<Failed>,
    /// Tries that failed since the last that did not.
    failures: u32,
    /// Connections that ended young since the last that did not.
    deaths: u32,
    known_dialect: Option<Dialect>,
    /// Whether there was a try before.
    tried: bool,
}

type Outcome = Result<Arc<Live>, PoolError>;

struct Failed {
    error: Arc<TransportError>,
    since: Timestamp,
    retry_at: Uptime,
}

impl ConnectionPool {
    /// A pool for the server at `target`; nothing is opened before it is needed.
    ///
    /// Work that must not end with the call that caused it is spawned on `tasks`.
    #[must_use]
    pub fn new(
        target: Target,
        client: HttpClient,
        options: ConnectOptions,
        tasks: TaskTracker,
    ) -> Self {
        let slot = Slot { known_dialect: options.known_dialect, ..Slot::default() };
        Self(Arc::new(Inner {
            target,
            client,
            options,
            tasks,
            current: ArcSwapOption::empty(),
            slot: Mutex::new(slot),
            closed: CancellationToken::new(),
            connects: AtomicU64::new(0),
        }))
    }

    /// The live connection, opened first if there is none.
    ///
    /// Callers who find none wait for one try together; whoever goes away does not end it. Bound
    /// the wait by the call's deadline.
    ///
    /// # Errors
    /// [`PoolError`]. After a failed try, at once for a short while; then the next call tries.
    pub async fn lease(&self, urgency: Urgency) -> Result<Lease, PoolError> {
        if let Some(live) = self.0.current.load_full()
            && live.connection.is_alive()
        {
            return Ok(Lease(live));
        }
        let mut outcome = match self.decide(urgency) {
            Decision::Use(live) => return Ok(Lease(live)),
            Decision::Fail(error) => return Err(error),
            Decision::Wait(outcome) => outcome,
        };
        match outcome.wait_for(Option::is_some).await {
            Ok(settled) => settled.clone().unwrap_or(Err(PoolError::Closed)).map(Lease),
            Err(_task_gone) => Err(PoolError::Closed),
        }
    }

    /// Drops a connection that proved dead, so that the next lease opens another. Does nothing when
    /// that has happened already.
    pub fn invalidate(&self, lease: &Lease) {
        let mut slot = self.0.slot.lock();
        self.0.retire(&mut slot, Cause::Dead, |live| Arc::ptr_eq(live, &lease.0));
    }

    /// Drops the connection, whatever its state, and forgets earlier failures: the next lease
    /// connects at once. A child that failed too often lately has one more try for that, once a minute.
    pub fn reset(&self) {
        let mut slot = self.0.slot.lock();
        self.0.retire(&mut slot, Cause::Wanted, |_| true);
        slot.failed = None;
        slot.failures = 0;
        slot.deaths = 0;
        self.0.options.children.pardon(clock::uptime());
    }

    /// Notes a child that ended by itself, as whoever needs it next would: before [`Self::close`],
    /// after which nobody sees that it had.
    pub fn note_end(&self) {
        let _slot = self.0.slot.lock();
        if let Some(live) = self.0.current.load_full()
            && let Some(error) = live.connection.death()
        {
            self.0.note_death(&live, &Arc::new(error));
        }
    }

    /// Ends the connection in order and opens no other. Returns when a child is gone.
    pub async fn close(&self) {
        let live = {
            let _slot = self.0.slot.lock();
            self.0.closed.cancel();
            self.0.current.swap(None).inspect(|live| live.mark_closed())
        };
        if let Some(live) = live {
            live.close().await;
        }
    }

    /// Whether [`Self::close`] was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.closed.is_cancelled()
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> PoolState {
        let slot = self.0.slot.lock();
        let current = self.0.current.load_full();
        if current.is_some_and(|live| live.connection.is_alive()) {
            return PoolState::Up;
        }
        match &slot.failed {
            Some(failed) => {
                PoolState::Down { error: Arc::clone(&failed.error), since: failed.since }
            }
            None if slot.connecting.is_some() => PoolState::Connecting,
            None => PoolState::Idle,
        }
    }

    /// What the server said of itself, while it is connected.
    #[must_use]
    pub fn peer(&self) -> Option<PeerInfo> {
        self.current().map(|lease| lease.peer().clone())
    }

    /// The live connection, without opening one.
    #[must_use]
    pub fn current(&self) -> Option<Lease> {
        self.0.current.load_full().filter(|live| live.connection.is_alive()).map(Lease)
    }

    /// What the server was found to speak last, to be remembered over a restart.
    #[must_use]
    pub fn known_dialect(&self) -> Option<Dialect> {
        self.0.slot.lock().known_dialect
    }

    /// How many connections were opened so far.
    #[must_use]
    pub fn connects(&self) -> u64 {
        self.0.connects.load(Ordering::Relaxed)
    }

    fn decide(&self, urgency: Urgency) -> Decision {
        let inner = &self.0;
        let mut slot = inner.slot.lock();
        if inner.closed.is_cancelled() {
            return Decision::Fail(PoolError::Closed);
        }
        if let Some(live) = inner.current.load_full() {
            if live.connection.is_alive() {
                return Decision::Use(live);
            }
            inner.retire(&mut slot, Cause::Dead, |_| true);
        }
        if let Some(outcome) = &slot.connecting {
            return Decision::Wait(outcome.clone());
        }
        if let Some(failed) = slot.failed.as_ref().filter(|_| urgency == Urgency::Patient) {
            let retry_in = failed.retry_at.since(clock::uptime());
            if !retry_in.is_zero() {
                let error = Arc::clone(&failed.error);
                return Decision::Fail(PoolError::Backoff { error, retry_in });
            }
        }
        if let Some((error, retry_in)) = inner.options.children.wait(clock::uptime()) {
            return Decision::Fail(PoolError::Backoff { error, retry_in });
        }
        let (sender, outcome) = watch::channel(None);
        slot.connecting = Some(outcome.clone());
        let mut options =
            ConnectOptions { known_dialect: slot.known_dialect, ..inner.options.clone() };
        if std::mem::replace(&mut slot.tried, true) {
            options.children = options.children.again();
        }
        drop(slot);
        let task = Arc::clone(inner).connect(options, sender);
        inner.tasks.spawn(task);
        Decision::Wait(outcome)
    }
}

impl fmt::Debug for ConnectionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionPool")
            .field("server", &self.0.options.server)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// Why a connection is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// It is of no use any more.
    Dead,
    /// Somebody wants another.
    Wanted,
}

enum Decision {
    Use(Arc<Live>),
    Wait(watch::Receiver<Option<Outcome>>),
    Fail(PoolError),
}

impl Inner {
    fn longest_wait(&self) -> Duration {
        match self.target.kind() {
            TransportKind::Stdio => LONGEST_WAIT,
            TransportKind::Http | TransportKind::Sse | TransportKind::Jsonrpc => LONGEST_HTTP_WAIT,
        }
    }

    async fn connect(
        self: Arc<Self>,
        options: ConnectOptions,
        sender: watch::Sender<Option<Outcome>>,
    ) {
        let turn = match self.target.kind() {
            TransportKind::Stdio => tokio::select! {
                turn = options.children.turn() => turn.map(Some),
                () = self.closed.cancelled() => Ok(None),
            },
            TransportKind::Http | TransportKind::Sse | TransportKind::Jsonrpc => Ok(None),
        };
        // Held until it is known what became of the opening.
        let _turn = match turn {
            Ok(turn) => turn,
            Err((error, retry_in)) => {
                // Those that were started meanwhile failed.
                self.slot.lock().connecting = None;
                let _ = sender.send(Some(Err(PoolError::Backoff { error, retry_in })));
                return;
            }
        };
        let opened = tokio::select! {
            opened = Connection::open(&self.target, &self.client, &options, &self.tasks) => opened,
            () = self.closed.cancelled() => Err(TransportError::Closed),
        };
        let outcome = self.settle(opened).await;
        // Nobody waits any more: the connection is there for the next who asks.
        let _ = sender.send(Some(outcome));
    }

    async fn settle(&self, opened: Result<Connection, TransportError>) -> Outcome {
        match opened {
            Ok(connection) => {
                let live = Arc::new(Live::new(connection));
                let closed = {
                    let mut slot = self.slot.lock();
                    slot.connecting = None;
                    slot.failed = None;
                    slot.failures = 0;
                    slot.known_dialect = Some(live.connection.dialect());
                    let closed = self.closed.is_cancelled();
                    if !closed {
                        self.current.store(Some(Arc::clone(&live)));
                    }
                    closed
                };
                if closed {
                    live.close().await;
                    return Err(PoolError::Closed);
                }
                self.connects.fetch_add(1, Ordering::Relaxed);
                Ok(live)
            }
            Err(error) => {
                let error = Arc::new(error);
                let mut slot = self.slot.lock();
                slot.connecting = None;
                if self.closed.is_cancelled() {
                    return Err(PoolError::Closed);
                }
                self.options.children.failed_with(&error);
                slot.failures = slot.failures.saturating_add(1);
                let wait = backoff(slot.failures.max(slot.deaths), self.longest_wait(), random());
                slot.fail(Arc::clone(&error), wait);
                Err(PoolError::Connect { error })
            }
        }
    }

    /// Notes for all connections to the server that its child ended by itself.
    fn note_death(&self, live: &Live, error: &Arc<TransportError>) {
        let (children, now) = (&self.options.children, clock::uptime());
        if self.target.kind() != TransportKind::Stdio {
            return;
        }
        if now.since(live.since) < HEALTHY {
            children.failed_with(error);
            children.failed(now);
        } else {
            children.ended();
        }
    }

    /// Takes the connection out, if it is the one meant, and ends it in the background.
    fn retire(&self, slot: &mut Slot, cause: Cause, is_meant: impl FnOnce(&Arc<Live>) -> bool) {
        let Some(live) = self.current.load_full().filter(is_meant) else { return };
        self.current.store(None);
        // An HTTP server that changed its mind is asked again at once: that costs one probe, and a
        // wait would hit all for what a single request may have caused.
        if let Some(error) = live.connection.death() {
            let lived = clock::uptime().since(live.since);
            slot.deaths = if lived < HEALTHY { slot.deaths.saturating_add(1) } else { 1 };
            // The first end may be an accident, and is repaired at once; a child that ends again
            // and again must not be started in a circle.
            let wait = match slot.deaths {
                0 | 1 => Duration::ZERO,
                more => backoff(more - 1, self.longest_wait(), random()),
            };
            let error = Arc::new(error);
            self.note_death(&live, &error);
            slot.fail(error, wait);
        } else if cause == Cause::Wanted || !live.connection.is_stateless() {
            // What is under way there ends with it, by us.
            live.mark_closed();
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.spawn_on(async move { live.close().await }, &runtime);
        }
    }
}

impl Slot {
    fn fail(&mut self, error: Arc<TransportError>, wait: Duration) {
        // Down since the first failure, not since the last try.
        let since = self.failed.as_ref().map_or_else(clock::timestamp, |failed| failed.since);
        self.failed = Some(Failed { error, since, retry_at: clock::uptime().plus(wait) });
    }
}

/// The wait after `failures` in a row, at most `longest`; `random` is in [0, 1) and moves it by up to
/// a fifth, so that servers that failed together are not tried together.
fn backoff(failures: u32, longest: Duration, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let wait = FIRST_WAIT.saturating_mul(1 << doublings).min(longest);
    wait.mul_f64(0.8 + 0.4 * random.clamp(0.0, 1.0)).min(longest)
}

/// A number in [0, 1) from the seeds of the standard library's hash maps: spread is all it is for.
fn random() -> f64 {
    let bits = u32::try_from(RandomState::new().hash_one(clock::uptime()) >> 32).unwrap_or(0);
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}
