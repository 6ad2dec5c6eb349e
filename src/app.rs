//! [`App`]: builds all parts from a [`Config`], owns the tasks and the order of shutdown.
//!
//! Changes when a part is added. The order of building is chosen for the time to the first call:
//! the port is bound and the database opened before any server is asked for anything.

mod gauges;
mod probe;
mod recording;
mod redaction;
mod reload;

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{AuditQuery, AuditSettings, AuditWriter, Retention};
use crate::catalogue::{Discovery, DiscoverySettings, RecordingSettings};
use crate::clock;
use crate::config::expand::Variables as _;
use crate::config::{Config, ConfigError};
use crate::edge::{
    Edge, EdgeSettings, FrontDoor, KeyRing, Listening, SessionLimits, Sessions, Tally,
};
use crate::metrics::{Metrics, MetricsError};
use crate::registry::{Registry, RegistryError};
use crate::router::Router;
use crate::store::{self, EventRow, Recovered, Store, StoreError};
use crate::telemetry::{self, TraceSettings, Tracer};

use redaction::Redaction;

pub use probe::{ProbeOk, ServerProbe, probe};
pub(crate) use reload::hangup;

/// Where the admin socket is, inside the data folder.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// How often sessions and keys are tidied.
const TIDY: Duration = Duration::from_secs(30);
/// The same where sessions are to end so soon that this would be late.
const TIDY_AT_MOST: Duration = Duration::from_millis(250);
/// How often it is looked for isolated sessions that nobody used for long.
const LOOK_FOR_IDLE: Duration = Duration::from_secs(1);
/// How long the last spans have to be sent at the end, of what the drain left.
const LAST_SPANS: Duration = Duration::from_secs(5);
/// The same when it left nothing.
const LAST_SPANS_AT_LEAST: Duration = Duration::from_millis(500);
/// How old what is shown of child processes may be.
const MEASURE_CHILDREN: Duration = Duration::from_secs(2);

/// A running router.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    door: Arc<FrontDoor>,
    edge: Arc<Edge>,
    registry: Arc<Registry>,
    store: Store,
    audit: AuditWriter,
    tasks: TaskTracker,
    stop: CancellationToken,
    tracer: Option<Tracer>,
    /// How long calls in flight have to end.
    shutdown_timeout: Duration,
    socket: PathBuf,
}

/// What a router did in its life, for the last line it prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownSummary {
    /// Calls put on record since the start.
    pub calls: u64,
    /// Calls and entries that are missing from the ledger, which could not be told that either.
    pub missing: u64,
}

/// Why a router did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be bound.
    #[error("could not listen on {address}: {}", bind_advice(source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The admin socket cannot be made.
    #[error("could not make the admin socket {path}: {source}")]
    Socket {
        /// Where.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The ledger's spool cannot be used.
    #[error("could not use `audit.spool` {}: {source}; mount its disk, or take the key out if nothing waits in it", path.display())]
    Spool {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The threads that serve connections cannot be started.
    #[error("could not start the threads that serve connections: {source}")]
    Threads {
        /// Why.
        source: std::io::Error,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry cannot be built.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Two metrics have one name.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

fn bind_advice(source: &std::io::Error) -> String {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => {
            "the port is taken by another program; stop it, or choose another with --listen or `listen:`".to_owned()
        }
        std::io::ErrorKind::PermissionDenied => {
            "permission denied; ports below 1024 need privileges, choose a higher one".to_owned()
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; `127.0.0.1` is always there".to_owned()
        }
        _ => source.to_string(),
    }
}

impl StartError {
    /// The exit code of the process: 2 usage or configuration, 4 data folder in use, 5 database
    /// damaged or newer.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Store(error) | Self::Registry(RegistryError::Store(error)) => error.exit_code(),
            Self::Config(_)
            | Self::Bind { .. }
            | Self::Socket { .. }
            | Self::Spool { .. }
            | Self::Threads { .. }
            | Self::Registry(_)
            | Self::Metrics(_) => 2,
        }
    }
}

impl App {
    /// Starts a router: binds the port, opens the data folder, serves what is known, and asks the
    /// servers in the background.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_heeding(config, hangup()).await
    }

    /// The same where [`hangup`] was called before: a `SIGHUP` that came since then is a reload once
    /// the router runs.
    pub(crate) async fn start_heeding(
        config: Config,
        hangup: Option<Signal>,
    ) -> Result<Self, StartError> {
        let environment = config.environment.clone();
        let address = config.listen;
        let listener = match bind(address) {
            Ok(listener) => listener,
            Err(source) => return Err(bind_failure(address, source, &config.data_dir).await),
        };
        let address =
            listener.local_addr().map_err(|source| StartError::Bind { address, source })?;
        if let Some(path) = &config.audit.spool {
            store::spool_is_usable(path)
                .map_err(|source| StartError::Spool { path: path.clone(), source })?;
        }
        // Before anything is opened that could say what it was given.
        let redaction = Redaction::new(&config);
        let metrics = Metrics::new()?;
        let recovered = match config.recover {
            true => Store::recover(&config.data_dir, clock::timestamp()).await?,
            false => Vec::new(),
        };
        let store = Store::open(&config.data_dir).await?;
        record_recovery(&store, &recovered).await?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());

        let audit_settings = AuditSettings {
            durability: config.audit.durability,
            intent: config.audit.intent,
            checkpoints: std::iter::once(config.data_dir.clone())
                .chain(config.audit.checkpoints.clone())
                .collect(),
            data_dir: config.data_dir.clone(),
            spool: config.audit.spool.clone(),
            redaction: config.redaction.clone(),
            recording: recording::of(&config),
        };
        let audit =
            AuditWriter::start(store.clone(), &audit_settings, metrics.audit.clone(), &tasks);
        if store.note_restore(clock::timestamp()) {
            let (audit, store) = (audit.clone(), store.clone());
            tasks.spawn(async move {
                audit.flush().await;
                if audit.is_healthy() {
                    store.forget_restore();
                }
            });
        }
        let (ending, closing) = (audit.clone(), store.clone());
        let starting = async {
            let keeper = Arc::clone(&redaction);
            let registry = Registry::open(
                store.clone(),
                Arc::clone(&metrics),
                tasks.clone(),
                environment.clone(),
                Box::new(move |secrets| keeper.keep(secrets)),
                &config,
            );
            let registry = Arc::new(registry.await?);
            let discovery = Discovery::load(
                Arc::clone(&registry),
                Arc::clone(&metrics),
                discovery_settings(&config),
            )
            .await?;
            let retention = Retention::new(
                store.clone(),
                metrics.audit.clone(),
                config.audit.retention,
                config.audit.max_size,
            );
            let retention = retention
                .payloads(config.audit.payload_retention)
                .spool(config.audit.spool.clone());
            let retention = Arc::new(retention);
            let tracer = tracer(&config, &metrics, &tasks);
            let (reload, reload_requests) = mpsc::channel(4);
            let edge = Arc::new(Edge {
                router: Arc::new(Router::new(
                    Arc::clone(&discovery),
                    audit.clone(),
                    Arc::clone(&metrics),
                    tracer.clone(),
                )),
                registry: Arc::clone(&registry),
                discovery: Arc::clone(&discovery),
                ledger: AuditQuery::new(store.clone()),
                retention: Arc::clone(&retention),
                keys: KeyRing::load(store.clone()).await?,
                sessions: Sessions::load(
                    store.clone(),
                    Arc::clone(&metrics),
                    Arc::clone(&registry),
                    tasks.clone(),
                    session_limits(&config),
                )
                .await?,
                listeners: Arc::default(),
                tally: Tally::default(),
                store: store.clone(),
                audit: audit.clone(),
                settings: ArcSwap::from_pointee(edge_settings(&config, address)),
                metrics: Arc::clone(&metrics),
                reload,
                tasks: tasks.clone(),
                calls: TaskTracker::new(),
                stop: stop.clone(),
                abort: CancellationToken::new(),
            });
            let hearing = Arc::downgrade(&edge);
            registry.on_notice(Box::new(move |server, scope, notice| {
                if let Some(edge) = hearing.upgrade() {
                    edge.heard(server, scope, notice);
                }
            }));
            let (socket, socket_listener) = bind_socket(&config.data_dir)?;
            metrics.config_loaded(seconds(clock::timestamp()));
            let gauges = gauges::Gauges::new(
                store.clone(),
                audit.clone(),
                Arc::clone(&metrics),
                config.data_dir.clone(),
                config.audit.max_size,
            );
            // The first scrape is to have them, too.
            gauges.look().await;

            let door = FrontDoor::open(Arc::clone(&edge))
                .map_err(|source| StartError::Threads { source })?;
            tasks.spawn(Arc::clone(&door).serve(Listening::Network(listener)));
            tasks.spawn(Arc::clone(&door).serve(Listening::Socket(socket_listener)));
            tasks.spawn(Arc::clone(&discovery).run(stop.clone()));
            tasks.spawn(Arc::clone(&registry).keep_breakers(stop.clone()));
            let listeners = Arc::clone(&edge.listeners);
            tasks.spawn(listeners.run(Arc::clone(&discovery), stop.clone()));
            let every = (config.limits.session_idle / 4).clamp(TIDY_AT_MOST, TIDY);
            tasks.spawn(tidy(Arc::clone(&edge), every, stop.clone()));
            tasks.spawn(count(Arc::clone(&edge), stop.clone()));
            tasks.spawn(close_idle(Arc::clone(&registry), stop.clone()));
            tasks.spawn(measure_children(Arc::clone(&registry), stop.clone()));
            tasks.spawn(gauges.run(stop.clone()));
            tasks.spawn(check_ledger(store.clone(), stop.clone()));
            tasks.spawn(retention.run(audit.clone(), stop.clone()));
            tasks.spawn(follow_ledger(store.clone(), stop.clone()));
            let reloader = reload::Reloader {
                path: config.path.clone(),
                address,
                environment,
                registry: Arc::clone(&registry),
                discovery,
                edge: Arc::clone(&edge),
                redaction,
                recording: recording::of(&config),
                hangup,
                metrics,
            };
            tasks.spawn(reloader.run(reload_requests, stop.clone()));
            if !edge.settings.load().loopback && edge.keys.is_empty() {
                tracing::warn!(
                    "{address} is not a loopback address and there is no key yet, so every request is answered 401; make the first key on this machine: switchyard --data-dir {} keys create NAME --scopes call,read",
                    config.data_dir.display()
                );
            }
            let shutdown_timeout = config.shutdown_timeout;
            Ok(Self {
                address,
                door,
                edge,
                registry,
                store,
                audit,
                tasks,
                stop,
                tracer,
                shutdown_timeout,
                socket,
            })
        };
        let started: Result<Self, StartError> = starting.await;
        if started.is_err() {
            // The ledger was begun, and ends in order: nothing was cut off.
            ending.close().await;
            let _closed = closing.close().await;
        }
        started
    }

    /// The address that is listened on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The way of a call, for programs that have the router in them and need no HTTP.
    #[must_use]
    pub fn router(&self) -> Arc<Router> {
        Arc::clone(&self.edge.router)
    }

    /// Whether every server has been asked for its tools once.
    pub(crate) fn has_asked(&self) -> bool {
        self.edge.discovery.start_up_done()
    }

    /// How many servers the registry has.
    #[must_use]
    pub fn servers(&self) -> usize {
        self.registry.servers().len()
    }

    /// Runs until `shutdown` and ends in order.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> ShutdownSummary {
        shutdown.await;
        self.shutdown().await
    }

    /// Ends: takes no new calls, lets those in flight end for a bounded time and cancels the rest,
    /// closes connections and child processes, flushes the ledger, closes the database.
    pub async fn shutdown(self) -> ShutdownSummary {
        let began = clock::uptime();
        // Streams end first: they would keep their connections open for ever.
        self.stop.cancel();
        self.door.close(self.shutdown_timeout).await;
        self.registry.close().await;
        // What did not end in time is dropped with its thread, and recorded as it is dropped.
        self.door.stop().await;
        // What became of breakers is on record, too.
        self.registry.save_breakers().await;
        self.edge.tally.write(&self.store, &self.edge.audit);
        let left = self.shutdown_timeout.saturating_sub(clock::uptime().since(began));
        let traced = async {
            if let Some(tracer) = &self.tracer {
                tracer.close(left.clamp(LAST_SPANS_AT_LEAST, LAST_SPANS)).await;
            }
        };
        tokio::join!(self.audit.close(), traced);
        let calls = self.edge.metrics.audit.calls_recorded();
        for saved in [self.edge.sessions.tidy().await, self.edge.keys.save_use().await] {
            if let Err(error) = saved {
                tracing::warn!(%error, "the last use of sessions or keys could not be stored: {error}");
            }
        }
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await.is_err() {
            tracing::warn!(
                tasks = self.tasks.len(),
                "{} tasks did not end in time",
                self.tasks.len()
            );
        }
        // Gone already is as good as removed.
        let _ = std::fs::remove_file(&self.socket);
        if let Err(error) = self.store.close().await {
            tracing::warn!(%error, "the database could not be closed in order: {error}");
        }
        ShutdownSummary { calls, missing: self.audit.missing() }
    }
}

/// A second router on one data folder usually meets the port of the first; then the folder is what
/// it should be told about.
async fn bind_failure(address: SocketAddr, source: std::io::Error, data_dir: &Path) -> StartError {
    if source.kind() == std::io::ErrorKind::AddrInUse
        && data_dir.join("router.lock").exists()
        && let Err(in_use @ StoreError::InUse { .. }) = Store::open(data_dir).await
    {
        return in_use.into();
    }
    StartError::Bind { address, source }
}

fn discovery_settings(config: &Config) -> DiscoverySettings {
    DiscoverySettings {
        views: config.views.clone(),
        naming: config.naming,
        recording: RecordingSettings {
            arguments: config.audit.arguments,
            results: config.audit.results,
            rules: config.audit.levels.clone(),
            pointers: config.audit.pointers.clone(),
        },
        tools_per_server: config.limits.tools_per_server,
        list_page: config.limits.list_page,
        health_check_interval: config.health_check_interval,
    }
}

/// What records spans, where the configuration says where they go.
fn tracer(config: &Config, metrics: &Metrics, tasks: &TaskTracker) -> Option<Tracer> {
    let otlp = config.otlp.as_ref()?;
    let instance = uuid::Uuid::now_v7().hyphenated().to_string();
    let settings = TraceSettings {
        address: otlp.address.clone(),
        headers: otlp.headers.clone(),
        sample: otlp.sample,
        resource: telemetry::resource(instance, |name| config.environment.get(name)),
    };
    tracing::info!(otlp.address = %otlp.address, "spans go to {}", otlp.address);
    Some(Tracer::start(settings, metrics.traces.clone(), tasks))
}

fn session_limits(config: &Config) -> SessionLimits {
    SessionLimits {
        count: usize::try_from(config.limits.sessions).unwrap_or(usize::MAX),
        idle: config.limits.session_idle,
    }
}

fn edge_settings(config: &Config, address: SocketAddr) -> EdgeSettings {
    let lower = |list: &[String]| list.iter().map(|entry| entry.to_ascii_lowercase()).collect();
    EdgeSettings {
        auth: config.auth,
        loopback: address.ip().is_loopback(),
        allowed_hosts: lower(&config.http.allowed_hosts),
        allowed_origins: lower(&config.http.allowed_origins),
        body_limit: usize::try_from(config.limits.body).unwrap_or(usize::MAX),
        stdio_commands: config.admin.stdio_commands.clone(),
        config_path: config.path.clone(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^52")]
fn seconds(at: crate::model::Timestamp) -> f64 {
    at.as_millis() as f64 / 1000.0
}

/// Connections that wait to be accepted while a burst comes in.
const BACKLOG: i32 = 1024;

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    // A restart must not wait for the last connections of its predecessor to time out.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Longer paths do not fit a socket address.
const SOCKET_PATH_LIMIT: usize = 100;

fn bind_socket(data_dir: &Path) -> Result<(PathBuf, UnixListener), StartError> {
    let path = data_dir.join(ADMIN_SOCKET);
    let error = |source| StartError::Socket { path: path.display().to_string(), source };
    // The lock on the data folder is ours, so a socket that is there belongs to nobody.
    let _ = std::fs::remove_file(&path);
    let folder = std::fs::File::open(data_dir).map_err(error)?;
    let short = if path.as_os_str().len() > SOCKET_PATH_LIMIT {
        use std::os::fd::AsRawFd as _;
        PathBuf::from(format!("/proc/self/fd/{}/{ADMIN_SOCKET}", folder.as_raw_fd()))
    } else {
        path.clone()
    };
    let listener = UnixListener::bind(short).map_err(error)?;
    // Until this the folder's own 0700 keeps everybody else out.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, mode).map_err(error)?;
    Ok((path, listener))
}

/// What was given up is on record in what replaces it.
async fn record_recovery(store: &Store, recovered: &[Recovered]) -> Result<(), StoreError> {
    for Recovered { file, moved_to, detail } in recovered {
        tracing::warn!(
            "`{file}` was damaged ({detail}) and is now `{}`; the router begins without what is in it",
            moved_to.display()
        );
        let moved_to = moved_to.file_name().unwrap_or_default().to_string_lossy();
        let event = EventRow {
            at: clock::timestamp(),
            actor: "router".to_owned(),
            kind: "store.recovered".to_owned(),
            subject: (*file).to_owned(),
            detail: serde_json::json!({ "moved_to": moved_to, "damage": detail }).to_string(),
        };
        store.append_event(&event).await?;
    }
    Ok(())
}

/// A large ledger is checked while it is in use: the start does not wait for it.
async fn check_ledger(store: Store, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        checked = store.check_ledger() => match checked {
            Ok(()) | Err(StoreError::Closed) => {}
            Err(error) => tracing::error!(%error, "the ledger: {error}"),
        },
    }
}

/// On the main thread, which serves no connections.
async fn follow_ledger(store: Store, stop: CancellationToken) {
    store.follow_ledger(stop).await;
}

async fn count(edge: Arc<Edge>, stop: CancellationToken) {
    edge.tally.run(&edge.store, &edge.audit, stop).await;
}

async fn close_idle(registry: Arc<Registry>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_FOR_IDLE) => registry.tidy(clock::uptime()),
        }
    }
}

/// On the main thread, which serves no connections.
async fn measure_children(registry: Arc<Registry>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(MEASURE_CHILDREN) => registry.measure_children(),
        }
    }
}

async fn tidy(edge: Arc<Edge>, every: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        for done in [edge.sessions.tidy().await, edge.keys.save_use().await] {
            if let Err(error) = done {
                tracing::warn!(%error, "sessions or keys could not be tidied: {error}");
            }
        }
    }
}
