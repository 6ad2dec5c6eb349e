//! [`ServerHandle`]: everything a call needs of one server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use super::breaker::ServerBreaker;
use super::breakers::Breakers;
use super::error::LeaseError;
use super::isolation::{IsolatedSessions, Opening, SessionLease};
use super::latency::LatencyWindow;
use super::limiter::Limiter;
use super::notices::{Notices, Subscriptions, TooManySubscriptions};
use super::scrub::scrubbed;
use super::target::{connect_options, target};
use crate::clock;
use crate::config::{Environment, secrets_of, shown_address};
use crate::guard::{ProcessTable, Usage};
use crate::metrics::{ChildMetrics, ServerMetrics};
use crate::model::{
    BreakerScope, Dialect, Era, Requester, Secret, ServerName, ServerSettings, ServerSource,
    ServerSpec, SessionHash, SessionMode, Timestamp, ToolName, TransportSpec, Uptime,
};
use crate::pool::{
    Children, ConnectOptions, ConnectionPool, Hearing, HttpClient, Lease, PoolError, PoolState,
    Target, Urgency,
};
use crate::protocol::{LogLevel, OutgoingRequest, RawObject};
use crate::redact::{InForce, Payload, Strictness};
use crate::store::{DiscoveryRow, ServerRow};

/// One server: its specification, connections, limits and state. Made anew when the
/// specification changes.
#[derive(Debug)]
pub struct ServerHandle {
    /// Its name.
    pub name: ServerName,
    /// What the operator says about it.
    pub spec: ServerSpec,
    /// The numbers in force.
    pub settings: ServerSettings,
    /// Where it came from.
    pub source: ServerSource,
    /// Whether calls are routed to it.
    pub enabled: bool,
    /// Whether it is gone from the file it came from.
    pub retired: bool,
    /// Counts changes of the specification.
    pub revision: i64,
    /// When it was added.
    pub created_at: Timestamp,
    /// Host and port it is reached at, where it is reached over HTTP.
    pub peer: Option<(Arc<str>, u16)>,
    /// Its metrics.
    pub metrics: ServerMetrics,
    /// Calls at it and waiting for it.
    pub limiter: Limiter,
    /// Whether attempts may be made. Outlives the handle: a change of numbers forgets no failure.
    pub breaker: Arc<ServerBreaker>,
    breakers: Arc<Breakers>,
    /// The connection that all share; also an isolated server is asked for its tools over it.
    pool: Result<ConnectionPool, String>,
    isolated: Option<IsolatedSessions>,
    children: Children,
    /// For a child process only.
    child_metrics: Option<ChildMetrics>,
    subscriptions: Arc<Subscriptions>,
    sealed_problem: Option<String>,
    secrets: Vec<Secret>,
    redaction: InForce,
    status: Mutex<ServerStatus>,
    latency: LatencyWindow,
    last_success_second: AtomicU64,
    /// The least severe log messages asked for on the shared connection.
    log_level: AtomicU8,
    /// Whether the last attempt reached it.
    reachable: AtomicBool,
    /// Whether it answers and does not let us in.
    unauthorized: AtomicBool,
    /// What the log says of it: [`UNSAID`], [`SAID_UP`] or [`SAID_DOWN`].
    said: AtomicU8,
    /// Connections opened again, as counted so far, and those of them that an operator asked for.
    seen_reconnects: AtomicU64,
    asked_reconnects: AtomicU64,
    /// One discovery at a time.
    pub discovering: tokio::sync::Mutex<()>,
}

/// The log says nothing yet of whether the server is up.
const UNSAID: u8 = 0;
/// It says that it is.
const SAID_UP: u8 = 1;
/// It says that it is not.
const SAID_DOWN: u8 = 2;

/// What is known of a server's condition.
#[derive(Debug, Clone, Default)]
pub struct ServerStatus {
    /// The last discovery that worked, and the last error.
    pub discovery: DiscoveryRow,
    /// Whether a discovery was tried since the start.
    pub tried: bool,
}

/// How a server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    /// The last contact succeeded.
    Up,
    /// The last contact failed.
    Down,
    /// There was none yet.
    Connecting,
    /// Calls are not routed to it.
    Disabled,
}

impl ServerState {
    /// The name in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Connecting => "connecting",
            Self::Disabled => "disabled",
        }
    }
}

/// What handles need of the registry they are in.
pub(super) struct Means<'a> {
    pub(super) environment: &'a Environment,
    pub(super) client: &'a HttpClient,
    pub(super) tasks: &'a TaskTracker,
    pub(super) notices: &'a Notices,
    pub(super) breakers: &'a Arc<Breakers>,
    pub(super) guard: Option<&'a Path>,
    pub(super) redaction: &'a InForce,
}

impl ServerHandle {
    pub(super) fn new(
        row: &ServerRow,
        settings: ServerSettings,
        means: &Means<'_>,
        (metrics, child_metrics): (ServerMetrics, Option<ChildMetrics>),
        predecessor: Option<&Self>,
    ) -> Self {
        let status = predecessor.map_or_else(
            || ServerStatus { discovery: row.discovery.clone().unwrap_or_default(), tried: false },
            Self::status,
        );
        let subscriptions = predecessor.map_or_else(
            || Arc::new(Subscriptions::new()),
            |predecessor| Arc::clone(&predecessor.subscriptions),
        );
        let known_dialect = status.discovery.dialect.as_deref().and_then(Dialect::parse);
        let children = predecessor.map_or_else(
            || Children::new(means.guard),
            |predecessor| predecessor.children.of_successor(),
        );
        let options =
            connect_options(&row.name, &row.spec, &settings, known_dialect, children.clone());
        let usable = match &row.sealed_problem {
            // What is sealed must not be sent as if it were the value.
            Some(problem) => Err(problem.clone()),
            None => target(&row.spec, means.environment),
        };
        let peer = usable.as_ref().ok().and_then(Target::peer);
        let (client, tasks) = (means.client, means.tasks);
        let isolated = match (&usable, row.spec.sessions) {
            (Ok(target), SessionMode::Isolated) => {
                let opening = Opening {
                    target: target.clone(),
                    client: client.clone(),
                    options: options.clone(),
                    notices: means.notices.clone(),
                    tasks: tasks.clone(),
                };
                Some(IsolatedSessions::new(opening, &settings, metrics.sessions.clone()))
            }
            (Ok(_), SessionMode::Shared) | (Err(_), _) => None,
        };
        let hearing = Hearing {
            notices: means.notices.sink(&row.name, None),
            subscriptions: subscriptions.watch(),
            ..Hearing::default()
        };
        let options = ConnectOptions { hearing, ..options };
        let pool = usable
            .map(|target| ConnectionPool::new(target, client.clone(), options, tasks.clone()));
        metrics.up.set(0);
        metrics.enabled.set(i64::from(row.is_enabled()));
        metrics.unauthorised.set(0);
        if let Some(metrics) = &child_metrics {
            metrics.limit.set(match (row.is_enabled(), row.spec.sessions) {
                (false, _) => 0,
                (true, SessionMode::Shared) => 1,
                (true, SessionMode::Isolated) => i64::from(settings.max_sessions) + 1,
            });
        }
        Self {
            name: row.name.clone(),
            spec: row.spec.clone(),
            limiter: Limiter::new(settings.max_concurrency),
            breaker: means.breakers.of(&row.name, None, &settings),
            breakers: Arc::clone(means.breakers),
            settings,
            source: row.source,
            enabled: row.is_enabled(),
            retired: row.retired,
            revision: row.revision,
            created_at: row.created_at,
            peer,
            metrics,
            pool,
            isolated,
            children,
            child_metrics,
            subscriptions,
            sealed_problem: row.sealed_problem.clone(),
            secrets: secrets_of(&row.spec, means.environment),
            redaction: means.redaction.clone(),
            status: Mutex::new(status),
            latency: LatencyWindow::new(),
            last_success_second: AtomicU64::new(0),
            log_level: AtomicU8::new(u8::MAX),
            reachable: AtomicBool::new(true),
            unauthorized: AtomicBool::new(false),
            said: AtomicU8::new(UNSAID),
            seen_reconnects: AtomicU64::new(0),
            asked_reconnects: AtomicU64::new(0),
            discovering: tokio::sync::Mutex::new(()),
        }
    }

    /// Whether this handle is what `row` and `settings` ask for.
    pub(super) fn fits(&self, row: &ServerRow, settings: &ServerSettings) -> bool {
        self.spec == row.spec
            && self.settings == *settings
            && self.enabled == row.is_enabled()
            && self.retired == row.retired
            && self.sealed_problem == row.sealed_problem
            && self.source == row.source
    }

    /// The live connection that all share, opened if there is none. Dropping the future leaves an opening
    /// connection to the others that wait for it.
    ///
    /// # Errors
    /// [`PoolError`] when the server cannot be reached, or its specification cannot be used.
    pub async fn lease(&self) -> Result<Lease, PoolError> {
        self.shared(Urgency::Patient).await
    }

    async fn shared(&self, urgency: Urgency) -> Result<Lease, PoolError> {
        match &self.pool {
            Ok(pool) => pool.lease(urgency).await,
            Err(problem) => Err(PoolError::Unusable { problem: problem.clone() }),
        }
    }

    /// The live connection that a request is to use: the shared one, or, where the server is
    /// isolated and remembers, the requester's own. Opened if there is none; dropping the future
    /// leaves an opening connection to the others that wait for it.
    ///
    /// # Errors
    /// [`LeaseError`]; nothing was sent.
    pub async fn lease_for(
        &self,
        requester: &Requester<'_>,
        urgency: Urgency,
    ) -> Result<SessionLease, LeaseError> {
        let shared = self.shared(urgency);
        match &self.isolated {
            None => Ok(SessionLease::shared(shared.await?)),
            // Boxed, so that calls to shared servers do not carry the room for it.
            Some(isolated) => Box::pin(isolated.lease(requester, urgency, shared)).await,
        }
    }

    /// The breaker of one tool, where the specification wants tools to have their own.
    #[must_use]
    pub fn tool_breaker(&self, tool: &ToolName) -> Option<Arc<ServerBreaker>> {
        match self.settings.breaker.scope {
            BreakerScope::Server => None,
            BreakerScope::Tool => Some(self.breakers.of(&self.name, Some(tool), &self.settings)),
        }
    }

    /// Gives up on a connection of [`Self::lease_for`] that proved dead.
    pub fn give_up(&self, lease: &SessionLease) {
        match lease.as_shared() {
            Some(shared) => self.invalidate(shared),
            None => lease.invalidate_own(),
        }
    }

    /// Whether each client has a session of its own at it.
    #[must_use]
    pub fn keeps_sessions(&self) -> bool {
        let shared = self.pool.as_ref().ok().and_then(ConnectionPool::current);
        self.isolated.is_some() && !shared.is_some_and(|lease| lease.is_stateless())
    }

    /// The live connection that is kept for a session of a client alone, if there is one.
    pub(super) fn own_connection(&self, session: &SessionHash) -> Option<Lease> {
        self.isolated.as_ref()?.current(session)
    }

    /// Sets the level of log messages where it is kept: for the session alone, or for all.
    pub(super) async fn set_log_level(&self, session: &SessionHash, level: LogLevel) {
        let lease = match &self.isolated {
            Some(_) => self.own_connection(session),
            None => self.pool.as_ref().ok().and_then(ConnectionPool::current),
        };
        let Some(lease) = lease else { return };
        let peer = lease.peer();
        if peer.version.era() == Era::Modern || !peer.offers.logging {
            return;
        }
        if self.isolated.is_none()
            && self.log_level.fetch_min(level as u8, Ordering::Relaxed) <= level as u8
        {
            return;
        }
        let params = format!(r#"{{"level":"{}"}}"#, level.as_str());
        let params = RawObject::parse(&params).unwrap_or_default();
        let request =
            OutgoingRequest { params: Some(&params), ..OutgoingRequest::new("logging/setLevel") };
        if let Err(error) = lease.request(&request, self.settings.timeout, None).await {
            tracing::debug!(server.name = %self.name, %error, "a log level could not be set");
        }
    }

    /// How many isolated sessions there are at it.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.isolated.as_ref().map_or(0, IsolatedSessions::count)
    }

    /// Closes what was kept for a session of a client, in the background.
    pub(super) fn end_session(&self, session: &SessionHash) {
        if let Some(isolated) = &self.isolated {
            isolated.end_session(session);
        }
    }

    /// Closes isolated sessions that were not used for long, in the background.
    pub(super) fn tidy(&self, now: Uptime) {
        self.count_reconnects();
        if let Some(isolated) = &self.isolated {
            isolated.tidy(now);
        }
    }

    /// Closes isolated sessions that are not in use, in the background.
    pub(super) fn close_unused_sessions(&self, now: Uptime) {
        if let Some(isolated) = &self.isolated {
            isolated.close_unused(now, Duration::ZERO);
        }
    }

    /// Whether child processes of it run.
    pub(super) fn has_children(&self) -> bool {
        self.children.any()
    }

    /// Shows what its child processes take.
    pub(super) fn measure_children(&self, table: Option<&ProcessTable>) {
        let Some(metrics) = &self.child_metrics else { return };
        metrics.restarts.inc_by(self.children.take_restarts());
        let usage = table.map(|table| self.children.usage(table)).unwrap_or_default();
        metrics.processes.set(i64::try_from(usage.processes).unwrap_or(i64::MAX));
        metrics.resident_bytes.set(i64::try_from(usage.resident_bytes).unwrap_or(i64::MAX));
        metrics.roots.set(i64::try_from(self.children.count()).unwrap_or(i64::MAX));
    }

    /// What its child processes took when they were last looked at; nothing for a server that is
    /// none.
    #[must_use]
    pub fn child_usage(&self) -> Option<Usage> {
        let metrics = self.child_metrics.as_ref()?;
        Some(Usage {
            processes: u64::try_from(metrics.processes.get()).unwrap_or(0),
            resident_bytes: u64::try_from(metrics.resident_bytes.get()).unwrap_or(0),
        })
    }

    /// From now on, one more wants to hear when this resource changes. Holds over reconnects and
    /// changes of the specification, until [`Self::unsubscribe`].
    ///
    /// # Errors
    /// When very many resources are followed already.
    pub fn subscribe(&self, uri: &str) -> Result<(), TooManySubscriptions> {
        self.subscriptions.subscribe(uri)
    }

    /// One less wants to hear when this resource changes.
    pub fn unsubscribe(&self, uri: &str) {
        self.subscriptions.unsubscribe(uri);
    }

    /// Gives up on a shared connection that proved dead.
    pub fn invalidate(&self, lease: &Lease) {
        if let Ok(pool) = &self.pool {
            pool.invalidate(lease);
        }
    }

    /// How many connections were opened so far: a server behind a new one may offer other things
    /// than it did.
    #[must_use]
    pub fn connects(&self) -> u64 {
        self.pool.as_ref().map_or(0, ConnectionPool::connects)
    }

    /// Closes its connections and ends its child processes with all descendants.
    pub async fn close(&self) {
        let shared = async {
            if let Ok(pool) = &self.pool {
                pool.close().await;
            }
        };
        let isolated = async {
            if let Some(isolated) = &self.isolated {
                isolated.close().await;
            }
        };
        tokio::join!(shared, isolated);
    }

    /// The last lines of a child's standard error.
    #[must_use]
    pub fn stderr_tail(&self) -> Vec<String> {
        let lease = self.pool.as_ref().ok().and_then(ConnectionPool::current);
        let lines = lease.map(|lease| lease.stderr_tail()).unwrap_or_default();
        lines.iter().map(|line| self.scrub(line)).collect()
    }

    /// Values that must not be shown: what its headers and environment hold.
    #[must_use]
    pub fn secrets(&self) -> &[Secret] {
        &self.secrets
    }

    /// `text` without the server's secrets, and without what must not be shown of others or looks like
    /// a credential. What a server prints or answers may repeat what it was given.
    #[must_use]
    pub fn scrub(&self, text: &str) -> String {
        self.redaction.text(&scrubbed(text, &self.secrets))
    }

    /// The same of a text that is JSON, and stays it.
    #[must_use]
    pub fn scrub_json(&self, json: &str) -> String {
        let redactor = self.redaction.get();
        redactor.uncut(Payload::whole(json.as_bytes()), Strictness::Everything)
    }

    /// What is known of its condition.
    #[must_use]
    pub fn status(&self) -> ServerStatus {
        self.status.lock().clone()
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> ServerState {
        if !self.enabled {
            return ServerState::Disabled;
        }
        let Ok(pool) = &self.pool else { return ServerState::Down };
        if !self.reachable.load(Ordering::Relaxed) {
            return ServerState::Down;
        }
        if self.is_unauthorized() {
            // It answered, and its problem is in the status.
            return ServerState::Up;
        }
        match pool.state() {
            PoolState::Up => ServerState::Up,
            PoolState::Down { .. } => ServerState::Down,
            PoolState::Idle | PoolState::Connecting => {
                let status = self.status.lock();
                match (status.tried, &status.discovery.error) {
                    (false, _) => ServerState::Connecting,
                    (true, Some(_)) => ServerState::Down,
                    (true, None) => ServerState::Up,
                }
            }
        }
    }

    /// Notes a discovery that worked.
    pub fn discovered(&self, discovery: DiscoveryRow) {
        let mut status = self.status.lock();
        status.discovery = discovery;
        status.tried = true;
        drop(status);
        self.unauthorized.store(false, Ordering::Relaxed);
        self.note_success(clock::timestamp());
    }

    /// Notes a discovery or health check that failed.
    pub fn failed(&self, error: &str, at: Timestamp) -> DiscoveryRow {
        self.last_success_second.store(0, Ordering::Relaxed);
        self.reachable.store(false, Ordering::Relaxed);
        self.unauthorized.store(false, Ordering::Relaxed);
        // Why, its discovery has said.
        self.said.store(SAID_DOWN, Ordering::Relaxed);
        let mut status = self.status.lock();
        status.discovery.error = Some(self.scrub(error));
        status.discovery.error_at = Some(at);
        status.tried = true;
        self.metrics.up.set(0);
        self.metrics.unauthorised.set(0);
        status.discovery.clone()
    }

    /// Notes a discovery or health check that the server answered with 401 or 403: it is up, and
    /// what it offers cannot be seen.
    pub fn unauthorized(&self, error: &str, at: Timestamp) -> DiscoveryRow {
        let row = self.failed(error, at);
        self.unauthorized.store(true, Ordering::Relaxed);
        self.reachable.store(true, Ordering::Relaxed);
        self.metrics.up.set(1);
        self.metrics.unauthorised.set(1);
        row
    }

    /// Notes the HTTP status with which the server failed a request.
    pub fn answered_status(&self, status: u16) {
        self.metrics.unauthorised.set(i64::from(matches!(status, 401 | 403)));
    }

    /// Whether it was last seen to answer and not to let us in.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        self.unauthorized.load(Ordering::Relaxed)
    }

    /// The next lease opens a new connection, at once.
    pub(super) fn reconnect(&self) {
        if let Ok(pool) = &self.pool {
            self.asked_reconnects.fetch_add(1, Ordering::Relaxed);
            pool.reset();
        }
    }

    /// Counts connections that were opened since the last look, beside the first.
    fn count_reconnects(&self) {
        let again = self.connects().saturating_sub(1);
        let before = self.seen_reconnects.swap(again, Ordering::Relaxed);
        let grown = again.saturating_sub(before);
        let asked = self.asked_reconnects.load(Ordering::Relaxed).min(grown);
        self.asked_reconnects.fetch_sub(asked, Ordering::Relaxed);
        let lost = grown.saturating_sub(asked);
        self.metrics.count_reconnects(lost, asked);
    }

    /// Notes an answer to a call.
    pub fn answered(&self, took: Duration, at: Timestamp) {
        self.latency.record(took);
        self.note_success(at);
    }

    fn note_success(&self, at: Timestamp) {
        // Read first: the place is shared by all threads, and calls are many.
        if self.said.load(Ordering::Relaxed) != SAID_UP
            && self.said.swap(SAID_UP, Ordering::Relaxed) != SAID_UP
        {
            tracing::info!(server.name = %self.name, "server {} is up", self.name);
        }
        let unauthorized = self.unauthorized.load(Ordering::Relaxed);
        if unauthorized {
            self.unauthorized.store(false, Ordering::Relaxed);
        }
        if !self.reachable.swap(true, Ordering::Relaxed) || unauthorized {
            self.status.lock().discovery.error = None;
        }
        if self.metrics.unauthorised.get() != 0 {
            self.metrics.unauthorised.set(0);
        }
        // A gauge of seconds needs one write a second, not one a call.
        let second = u64::try_from(at.as_millis() / 1000).unwrap_or(0);
        if self.last_success_second.swap(second, Ordering::Relaxed) != second {
            #[expect(
                clippy::cast_precision_loss,
                reason = "seconds since 1970 are far below 2^52"
            )]
            self.metrics.last_success.set(second as f64);
            self.metrics.up.set(1);
        }
    }

    /// Notes that an attempt did not reach the server.
    pub fn unreachable(&self, error: &str, at: Timestamp) {
        self.unauthorized.store(false, Ordering::Relaxed);
        self.reachable.store(false, Ordering::Relaxed);
        if self.said.swap(SAID_DOWN, Ordering::Relaxed) != SAID_DOWN {
            let error = self.scrub(error);
            tracing::warn!(server.name = %self.name, error, "server {} is down: {error}", self.name);
        }
        {
            let mut status = self.status.lock();
            status.discovery.error = Some(self.scrub(error));
            status.discovery.error_at = Some(at);
        }
        self.metrics.up.set(0);
        self.metrics.unauthorised.set(0);
        self.last_success_second.store(0, Ordering::Relaxed);
    }

    /// Median and 95th percentile of the last calls, in milliseconds.
    #[must_use]
    pub fn latency_ms(&self) -> Option<[f64; 2]> {
        self.latency.quantiles([0.5, 0.95])
    }

    /// Where it is, for people, without any secret.
    #[must_use]
    pub fn display_target(&self) -> String {
        match &self.spec.transport {
            TransportSpec::Http { url, .. }
            | TransportSpec::Sse { url, .. }
            | TransportSpec::Jsonrpc { url, .. } => shown_address(url),
            TransportSpec::Stdio { command, args, .. } => {
                let mut line = command.clone();
                for arg in args {
                    line.push(' ');
                    line.push_str(arg);
                }
                line
            }
        }
    }
}
