//! [`ServerHandle`]: everything a call needs of one server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::breaker::ServerBreaker;
use super::breakers::Breakers;
use super::condition::{Condition, ServerStatus};
use super::connections::{Connections, Kept, are_kept, longest_attempt};
use super::error::LeaseError;
use super::isolation::{IsolatedSessions, Opening, SessionLease};
use super::latency::LatencyWindow;
use super::limiter::Limiter;
use super::notices::{Notices, Subscriptions, TooManySubscriptions};
use super::scrub::scrubbed;
use super::target::{connect_options, same_way, target};
use crate::config::{Environment, secrets_of, shown_address};
use crate::guard::{ProcessTable, Usage};
use crate::metrics::{ChildMetrics, ServerMetrics};
use crate::model::{
    BreakerScope, Dialect, Era, Requester, Secret, ServerName, ServerSettings, ServerSource,
    ServerSpec, SessionHash, SessionMode, Timestamp, ToolName, TraceId, TransportSpec, Uptime,
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
    pub limiter: Arc<Limiter>,
    /// Whether attempts may be made. Outlives the handle: a change of numbers forgets no failure.
    pub breaker: Arc<ServerBreaker>,
    breakers: Arc<Breakers>,
    connections: Arc<Connections>,
    condition: Arc<Condition>,
    children: Children,
    /// For a child process only.
    child_metrics: Option<ChildMetrics>,
    subscriptions: Arc<Subscriptions>,
    sealed_problem: Option<String>,
    secrets: Vec<Secret>,
    redaction: InForce,
    latency: LatencyWindow,
    /// One discovery at a time.
    pub discovering: tokio::sync::Mutex<()>,
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
        let kept = predecessor.and_then(|old| old.kept_for(row, &settings));
        let subscriptions = predecessor.map_or_else(
            || Arc::new(Subscriptions::new()),
            |predecessor| Arc::clone(&predecessor.subscriptions),
        );
        let usable = match &row.sealed_problem {
            // What is sealed must not be sent as if it were the value.
            Some(problem) => Err(problem.clone()),
            None => target(&row.spec, means.environment),
        };
        let peer = usable.as_ref().ok().and_then(Target::peer);
        let Kept { connections, condition, children, limiter } = kept.unwrap_or_else(|| {
            let status = predecessor.map_or_else(
                || ServerStatus {
                    discovery: row.discovery.clone().unwrap_or_default(),
                    ..ServerStatus::default()
                },
                Self::status,
            );
            let dialect = status.discovery.dialect.as_deref().and_then(Dialect::parse);
            let children = match predecessor {
                None => Children::new(means.guard),
                // Disabled and enabled again, it is no other program.
                Some(old) if same_way((&old.spec, &old.settings), (&row.spec, &settings)) => {
                    old.children.clone()
                }
                Some(old) => old.children.of_successor(),
            };
            let options =
                connect_options(&row.name, &row.spec, &settings, dialect, children.clone());
            let hearing = Hearing {
                notices: means.notices.sink(&row.name, None),
                subscriptions: subscriptions.watch(),
                ..Hearing::default()
            };
            let connections = open(usable, (row, &settings), (options, hearing), means, &metrics);
            Kept {
                connections: Arc::new(connections),
                condition: Arc::new(Condition::new(row.name.clone(), status, &metrics)),
                children,
                limiter: None,
            }
        });
        connections.bears(longest_attempt(&row.spec, &settings));
        metrics.enabled.set(i64::from(row.is_enabled()));
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
            limiter: limiter.unwrap_or_else(|| Arc::new(Limiter::new(settings.max_concurrency))),
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
            connections,
            condition,
            children,
            child_metrics,
            subscriptions,
            sealed_problem: row.sealed_problem.clone(),
            secrets: secrets_of(&row.spec, means.environment),
            redaction: means.redaction.clone(),
            latency: LatencyWindow::new(),
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

    /// What a handle for `row` and `settings` has of this one, if the server is reached as before:
    /// its connections with what runs there, and what is known of it.
    fn kept_for(&self, row: &ServerRow, settings: &ServerSettings) -> Option<Kept> {
        if !self.enabled
            || self.sealed_problem.is_some()
            || !are_kept((&self.spec, &self.settings), row, settings)
        {
            return None;
        }
        let as_many = self.settings.max_concurrency == settings.max_concurrency;
        Some(Kept {
            connections: Arc::clone(&self.connections),
            condition: Arc::clone(&self.condition),
            children: self.children.clone(),
            limiter: as_many.then(|| Arc::clone(&self.limiter)),
        })
    }

    /// Whether another handle has the connections of this one.
    pub(super) fn shares_connections(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.connections, &other.connections)
    }

    /// Whether nobody but the holders of this handle's one `Arc` uses its connections: no call, and
    /// no handle before it that had the same ones.
    pub(super) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.connections) == 1
    }

    /// The longest that one attempt over its connections may take.
    pub(super) fn longest_attempt(&self) -> Duration {
        self.connections.longest_attempt()
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
        match &self.connections.pool {
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
        match &self.connections.isolated {
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
        let shared = self.connections.pool.as_ref().ok().and_then(ConnectionPool::current);
        self.connections.isolated.is_some() && !shared.is_some_and(|lease| lease.is_stateless())
    }

    /// The live connection that is kept for a session of a client alone, if there is one.
    pub(super) fn own_connection(&self, session: &SessionHash) -> Option<Lease> {
        self.connections.isolated.as_ref()?.current(session)
    }

    /// Sets the level of log messages where it is kept: for the session alone, or for all.
    pub(super) async fn set_log_level(&self, session: &SessionHash, level: LogLevel) {
        let lease = match &self.connections.isolated {
            Some(_) => self.own_connection(session),
            None => self.connections.pool.as_ref().ok().and_then(ConnectionPool::current),
        };
        let Some(lease) = lease else { return };
        let peer = lease.peer();
        if peer.version.era() == Era::Modern || !peer.offers.logging {
            return;
        }
        if self.connections.isolated.is_none()
            && self.connections.log_level.fetch_min(level as u8, Ordering::Relaxed) <= level as u8
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
        self.connections.isolated.as_ref().map_or(0, IsolatedSessions::count)
    }

    /// Closes what was kept for a session of a client, in the background.
    pub(super) fn end_session(&self, session: &SessionHash) {
        if let Some(isolated) = &self.connections.isolated {
            isolated.end_session(session);
        }
    }

    /// Closes isolated sessions that were not used for long, in the background.
    pub(super) fn tidy(&self, now: Uptime) {
        self.connections.count_reconnects(&self.metrics);
        if let Some(isolated) = &self.connections.isolated {
            isolated.tidy(now);
        }
    }

    /// Closes isolated sessions that are not in use, in the background.
    pub(super) fn close_unused_sessions(&self, now: Uptime) {
        if let Some(isolated) = &self.connections.isolated {
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
        if let Ok(pool) = &self.connections.pool {
            pool.invalidate(lease);
        }
    }

    /// How many connections were opened so far: a server behind a new one may offer other things
    /// than it did.
    #[must_use]
    pub fn connects(&self) -> u64 {
        self.connections.connects()
    }

    /// Closes its connections and ends its child processes with all descendants.
    pub async fn close(&self) {
        self.connections.close().await;
    }

    /// The last lines of a child's standard error.
    #[must_use]
    pub fn stderr_tail(&self) -> Vec<String> {
        let lease = self.connections.pool.as_ref().ok().and_then(ConnectionPool::current);
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
        self.condition.status()
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> ServerState {
        if !self.enabled {
            return ServerState::Disabled;
        }
        let Ok(pool) = &self.connections.pool else { return ServerState::Down };
        if !self.condition.is_reachable() {
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
                let status = self.status();
                match (status.tried, &status.discovery.error) {
                    (false, _) => ServerState::Connecting,
                    (true, Some(_)) if !self.condition.serves_unlisted() => ServerState::Down,
                    (true, _) => ServerState::Up,
                }
            }
        }
    }

    /// Notes a discovery that worked: its tools are as listed now, or may be taken to be.
    pub fn discovered(&self, discovery: DiscoveryRow) {
        self.condition.discovered(discovery);
    }

    /// Notes a discovery that did not reach the server, or a health check that failed.
    pub fn failed(&self, error: &str, at: Timestamp) -> DiscoveryRow {
        self.condition.failed(self.scrub(error), at)
    }

    /// Notes a discovery or health check that the server answered with 401 or 403: it is up, and
    /// what it offers cannot be seen.
    pub fn unauthorized(&self, error: &str, at: Timestamp) -> DiscoveryRow {
        self.condition.refused(self.scrub(error), at)
    }

    /// Notes that its list of tools could not be had although it was reached; `unauthorized` when it
    /// answered 401 or 403.
    pub fn unlisted(&self, error: &str, at: Timestamp, unauthorized: bool) -> DiscoveryRow {
        self.condition.unlisted(self.scrub(error), at, unauthorized)
    }

    /// Notes the HTTP status with which the server failed a request.
    pub fn answered_status(&self, status: u16) {
        self.condition.answered_status(status);
    }

    /// Whether it was last seen to answer and not to let us in.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        self.condition.is_unauthorized()
    }

    /// Whether its list of tools could not be had at the last try, although it was reached.
    #[must_use]
    pub fn is_unlisted(&self) -> bool {
        self.condition.is_unlisted()
    }

    /// The next lease opens a new connection, at once.
    pub(super) fn reconnect(&self) {
        self.connections.reconnect();
    }

    /// Notes an answer to a call.
    pub fn answered(&self, took: Duration, at: Timestamp) {
        self.latency.record(took);
        self.condition.answered(at);
    }

    /// Notes that an attempt did not reach the server, of a call in `trace`.
    pub fn unreachable(&self, error: &str, at: Timestamp, trace: Option<TraceId>) {
        self.condition.unreachable(self.scrub(error), at, trace);
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

/// The connections of a server that is not reached as before: none is open yet.
fn open(
    usable: Result<Target, String>,
    (row, settings): (&ServerRow, &ServerSettings),
    (options, hearing): (ConnectOptions, Hearing),
    means: &Means<'_>,
    metrics: &ServerMetrics,
) -> Connections {
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
            Some(IsolatedSessions::new(opening, settings, metrics.sessions.clone()))
        }
        (Ok(_), SessionMode::Shared) | (Err(_), _) => None,
    };
    let options = ConnectOptions { hearing, ..options };
    let pool =
        usable.map(|target| ConnectionPool::new(target, client.clone(), options, tasks.clone()));
    Connections::new(pool, isolated)
}
