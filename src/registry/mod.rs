//! Which servers exist, and the handle that calls use for each.
//!
//! Changes when the rules of registration change. The database is the registry; this module keeps
//! what calls need of it in memory and swaps it whole. Knows nothing of tools.

mod breaker;
mod breakers;
mod changes;
mod condition;
mod connections;
mod error;
mod handle;
mod isolation;
mod latency;
mod limiter;
mod notices;
mod said;
mod scrub;
mod target;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::config::{Config, Environment};
use crate::guard::ProcessTable;
use crate::metrics::Metrics;
use crate::model::{
    Knobs, Secret, ServerName, ServerSettings, ServerSource, ServerSpec, SessionHash, SessionRef,
    TransportKind, Uptime,
};
pub use crate::policy::Command as BreakerCommand;
use crate::pool::HttpClient;
use crate::protocol::LogLevel;
use crate::redact::InForce;
use crate::store::{ServerRow, ServerUpsert, Store};

pub use breaker::{BreakerView, Order, Permit, ServerBreaker, Turn};
pub use breakers::Breakers;
pub use changes::{Cause, changed_keys};
pub use condition::ServerStatus;
pub use error::{LeaseError, RegistryError};
pub use handle::{ServerHandle, ServerState};
pub use isolation::SessionLease;
pub use limiter::{Limiter, Overloaded, Place, Sleeper};
pub use notices::{NoticeHandler, TooManySubscriptions};
pub use target::{connect_options, target};

use handle::Means;
use notices::Notices;

/// All servers by name, immutable; swapped whole on every change.
pub type Servers = BTreeMap<ServerName, Arc<ServerHandle>>;

/// Is told every value that must not be shown before the servers that hold them are in use.
pub type SecretKeeper = Box<dyn Fn(Vec<Secret>) + Send + Sync>;

/// The registry of one router.
pub struct Registry {
    keeper: SecretKeeper,
    store: Store,
    metrics: Arc<Metrics>,
    client: HttpClient,
    tasks: TaskTracker,
    /// Handles that were replaced are not waited for any longer.
    stopping: CancellationToken,
    environment: Environment,
    notices: Notices,
    breakers: Arc<Breakers>,
    guard: Option<PathBuf>,
    redaction: InForce,
    defaults: ArcSwap<Knobs>,
    /// The file whose servers cannot be changed over the API.
    config_path: ArcSwap<String>,
    servers: ArcSwap<Servers>,
    /// One change at a time; readers never wait for it.
    changing: tokio::sync::Mutex<()>,
    changed: watch::Sender<u64>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("servers", &self.servers.load().len())
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Reads the registry from the database and brings the servers of `config` in.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub async fn open(
        store: Store,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        environment: Environment,
        keeper: SecretKeeper,
        config: &Config,
    ) -> Result<Self, RegistryError> {
        let breakers = Arc::new(Breakers::load(&store, Arc::clone(&metrics)).await?);
        let registry = Self {
            keeper,
            breakers,
            store,
            metrics,
            client: HttpClient::new(),
            tasks,
            stopping: CancellationToken::new(),
            environment,
            notices: Notices::default(),
            guard: config.guard.clone(),
            redaction: config.redaction.clone(),
            defaults: ArcSwap::from_pointee(config.defaults.clone()),
            config_path: ArcSwap::from_pointee(String::new()),
            servers: ArcSwap::from_pointee(Servers::new()),
            changing: tokio::sync::Mutex::new(()),
            changed: watch::Sender::new(0),
        };
        registry.apply(config, Cause { why: "start", actor: "router" }).await?;
        Ok(registry)
    }

    /// The servers as they are now.
    #[must_use]
    pub fn servers(&self) -> Arc<Servers> {
        self.servers.load_full()
    }

    /// One server.
    #[must_use]
    pub fn server(&self, name: &str) -> Option<Arc<ServerHandle>> {
        self.servers.load().get(name).cloned()
    }

    /// Sees a new number after every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The breakers of all servers.
    #[must_use]
    pub const fn breakers(&self) -> &Arc<Breakers> {
        &self.breakers
    }

    /// Stores what changes of breakers until `stop`.
    pub async fn keep_breakers(self: Arc<Self>, stop: CancellationToken) {
        self.breakers.run(&self.store, stop).await;
    }

    /// Stores what is not stored yet of breakers, when the calls are over.
    pub async fn save_breakers(&self) {
        self.breakers.flush(&self.store).await;
    }

    /// The database behind the registry.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Gives up on the server's connection, whatever its state, and on what is known of failed tries:
    /// whoever needs it next opens a new one at once.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn reconnect(&self, name: &ServerName) -> Result<Arc<ServerHandle>, RegistryError> {
        let server = self.expect_server(name)?;
        server.reconnect();
        Ok(server)
    }

    /// Brings the servers of a configuration in: those of the file are upserted, those gone from
    /// it are disabled and never deleted, those of the API are left alone. A name in both: the
    /// file wins. What changes is on record before it is in use.
    ///
    /// # Errors
    /// When the database cannot be read or written; what was applied until then stays.
    pub async fn apply(&self, config: &Config, cause: Cause<'_>) -> Result<(), RegistryError> {
        let _changing = self.changing.lock().await;
        self.defaults.store(Arc::new(config.defaults.clone()));
        let path = config.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        self.config_path.store(Arc::new(path));
        let now = clock::timestamp();
        let rows = self.store.servers().await?;
        let mut gone = Vec::new();
        for row in &rows {
            let in_file = config.servers.contains_key(&row.name);
            if row.source == ServerSource::Config && !in_file && !row.retired {
                gone.push(row.name.clone());
                tracing::info!(server.name = %row.name, "server {} is no longer in the file and is now disabled", row.name);
            }
            if row.source == ServerSource::Api && in_file {
                tracing::warn!(server.name = %row.name, "server {} was added over the API and is now in the file, which wins", row.name);
            }
        }
        if !gone.is_empty() {
            self.store.retire_servers(&gone, now).await?;
        }
        for row in &rows {
            // What was changed in the file while no router ran.
            let changed = config.servers.get(&row.name).is_some_and(|spec| {
                spec.transport != row.spec.transport || (spec.enabled && !row.is_enabled())
            });
            if changed && self.server(row.name.as_str()).is_none() {
                self.breakers.changed(&row.name);
            }
        }
        let upserts: Vec<ServerUpsert> = config
            .servers
            .iter()
            .map(|(name, spec)| ServerUpsert {
                name: name.clone(),
                spec: spec.clone(),
                enabled: spec.enabled,
                source: ServerSource::Config,
            })
            .collect();
        if upserts.is_empty() && gone.is_empty() {
            return self.show(rows);
        }
        let done = self.store.upsert_servers(&upserts, now).await?;
        let upserts: Vec<_> = upserts.into_iter().zip(done).collect();
        for entry in changes::entries(&rows, &upserts, &gone, cause, now) {
            self.store.note(entry);
        }
        self.reload().await
    }

    /// Adds a server over the API.
    ///
    /// # Errors
    /// [`RegistryError::Exists`], or when the database cannot be written.
    pub async fn add(
        &self,
        name: &ServerName,
        spec: &ServerSpec,
    ) -> Result<Arc<ServerHandle>, RegistryError> {
        let _changing = self.changing.lock().await;
        // What is gone from the file may come back from here.
        if let Some(known) = self.server(name.as_str()).filter(|known| !known.retired) {
            return Err(RegistryError::Exists { server: name.clone(), source_kind: known.source });
        }
        self.check_target(name, spec)?;
        self.store
            .upsert_server(name, spec, spec.enabled, ServerSource::Api, clock::timestamp())
            .await?;
        self.reload().await?;
        self.expect_server(name)
    }

    /// Replaces a server that was added over the API.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::FromFile`], or when the database cannot be
    /// written.
    pub async fn replace(
        &self,
        name: &ServerName,
        spec: &ServerSpec,
    ) -> Result<Arc<ServerHandle>, RegistryError> {
        let _changing = self.changing.lock().await;
        self.expect_from_api(name)?;
        self.check_target(name, spec)?;
        self.store
            .upsert_server(name, spec, spec.enabled, ServerSource::Api, clock::timestamp())
            .await?;
        self.reload().await?;
        self.expect_server(name)
    }

    /// Removes a server that was added over the API; resolves when its connections are closed and
    /// its child processes gone.
    ///
    /// # Errors
    /// As [`Registry::replace`].
    pub async fn remove(&self, name: &ServerName) -> Result<(), RegistryError> {
        let gone = {
            let _changing = self.changing.lock().await;
            let gone = self.expect_from_api(name)?;
            self.store.delete_server(name).await?;
            self.reload().await?;
            // Not before it is out of sight: else a catalogue that is being put together could bring
            // a tool's breaker back.
            self.breakers.forget(name);
            self.metrics.forget_server(name);
            gone
        };
        gone.close().await;
        // Calls that this ended were counted once more.
        let _changing = self.changing.lock().await;
        if self.expect_server(name).is_err() {
            self.breakers.forget(name);
            self.metrics.forget_server(name);
        }
        Ok(())
    }

    /// Enables or disables a server; lasts over restarts and reloads, also for servers of the file.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], or when the database cannot be written.
    pub async fn set_enabled(
        &self,
        name: &ServerName,
        enabled: bool,
    ) -> Result<Arc<ServerHandle>, RegistryError> {
        let _changing = self.changing.lock().await;
        if self.expect_server(name)?.retired {
            return Err(RegistryError::Retired { server: name.clone() });
        }
        self.store.set_server_enabled(name, enabled, clock::timestamp()).await?;
        self.reload().await?;
        self.expect_server(name)
    }

    /// From now on `handler` hears what servers say on their own. Whether it is heard: the first
    /// handler stays. Without one, what they say is dropped.
    pub fn on_notice(&self, handler: NoticeHandler) -> bool {
        self.notices.set(handler)
    }

    /// Closes, in the background, what isolated servers keep for a session of a client that ended.
    /// Mark the session as ended first ([`SessionRef::end`](crate::model::SessionRef::end)), so that
    /// no call that is under way opens it again.
    pub fn end_session(&self, session: &SessionHash) {
        for server in self.servers.load().values() {
            server.end_session(session);
        }
    }

    /// Closes, in the background, sessions at isolated servers that were not used for long.
    pub fn tidy(&self, now: Uptime) {
        for server in self.servers.load().values() {
            server.tidy(now);
        }
    }

    /// Looks at what child processes take, for metrics and lists. Reads files of the kernel: some
    /// milliseconds on a busy machine, so not for a thread that serves connections.
    pub fn measure_children(&self) {
        let servers = self.servers.load();
        let any = servers.values().any(|server| server.has_children());
        let table = any.then(ProcessTable::read).and_then(Result::ok);
        for server in servers.values() {
            server.measure_children(table.as_ref());
        }
    }

    /// Closes every connection and child process.
    pub async fn close(&self) {
        self.stopping.cancel();
        let servers = self.servers.load_full();
        let closing = servers.values().map(|server| server.close());
        futures_util::future::join_all(closing).await;
    }

    fn expect_server(&self, name: &ServerName) -> Result<Arc<ServerHandle>, RegistryError> {
        self.server(name.as_str()).ok_or_else(|| RegistryError::Unknown {
            server: name.as_str().to_owned(),
            nearest: self.nearest(name.as_str()),
        })
    }

    fn expect_from_api(&self, name: &ServerName) -> Result<Arc<ServerHandle>, RegistryError> {
        let server = self.expect_server(name)?;
        match server.source {
            ServerSource::Api => Ok(server),
            ServerSource::Config if server.retired => Ok(server),
            ServerSource::Config => Err(RegistryError::FromFile {
                server: name.clone(),
                path: self.config_path.load().as_ref().clone(),
            }),
        }
    }

    fn check_target(&self, name: &ServerName, spec: &ServerSpec) -> Result<(), RegistryError> {
        target(spec, &self.environment)
            .map(drop)
            .map_err(|problem| RegistryError::Target { server: name.clone(), problem })
    }

    /// Tells the servers that keep a session for this client something about it.
    pub async fn notify_session(&self, session: &SessionRef, method: &str) {
        let servers = self.servers();
        let connections = servers.values().filter_map(|server| server.own_connection(&session.key));
        let telling = connections.map(|lease| async move { lease.notify(method, None).await });
        futures_util::future::join_all(telling).await;
    }

    /// Asks servers of the legacy era, which keep it for a whole session, for log messages from
    /// `level` on; of what they say each client then gets what it wants. On a shared connection the
    /// most that any client asked for holds.
    pub async fn set_log_level(&self, session: &SessionRef, level: LogLevel) {
        let servers = self.servers();
        let setting = servers.values().map(|server| server.set_log_level(&session.key, level));
        futures_util::future::join_all(setting).await;
    }

    /// Names like `name`, best first.
    #[must_use]
    pub fn nearest(&self, name: &str) -> Vec<String> {
        let servers = self.servers.load();
        crate::model::nearest(name, servers.keys().map(ServerName::as_str), 3)
    }

    /// Makes the handles fit the rows. A server that did not change keeps its handle; one that is
    /// reached as before keeps its connections.
    async fn reload(&self) -> Result<(), RegistryError> {
        let rows = self.store.servers().await?;
        self.show(rows)
    }

    #[expect(clippy::unnecessary_wraps, reason = "ends `apply` and `reload` alike")]
    fn show(&self, rows: Vec<ServerRow>) -> Result<(), RegistryError> {
        let defaults = self.defaults.load_full();
        let old = self.servers.load_full();
        let mut servers = Servers::new();
        for row in rows {
            let settings = ServerSettings::resolve(&row.spec.knobs.or(&defaults));
            let kept = old.get(&row.name).filter(|handle| handle.fits(&row, &settings));
            let handle = match kept {
                Some(handle) => Arc::clone(handle),
                None => {
                    let predecessor = old.get(&row.name);
                    let is_another = predecessor.is_some_and(|old| {
                        old.spec.transport != row.spec.transport
                            || (row.is_enabled() && !old.enabled)
                    });
                    if is_another {
                        self.breakers.changed(&row.name);
                    }
                    Arc::new(self.make_handle(&row, settings, predecessor))
                }
            };
            servers.insert(row.name, handle);
        }
        for (name, handle) in old.iter() {
            // Also a new handle goes on with what is there, if the server is reached as before.
            let replaced = servers.get(name).is_none_or(|new| !new.shares_connections(handle));
            if replaced {
                self.tasks.spawn(retire(Arc::clone(handle), self.stopping.clone()));
            }
        }
        let secrets = servers.values().flat_map(|handle| handle.secrets().iter().cloned());
        (self.keeper)(secrets.collect());
        self.servers.store(Arc::new(servers));
        self.changed.send_modify(|change| *change = change.wrapping_add(1));
        Ok(())
    }

    fn make_handle(
        &self,
        row: &ServerRow,
        settings: ServerSettings,
        predecessor: Option<&Arc<ServerHandle>>,
    ) -> ServerHandle {
        let means = Means {
            environment: &self.environment,
            client: &self.client,
            tasks: &self.tasks,
            notices: &self.notices,
            breakers: &self.breakers,
            guard: self.guard.as_deref(),
            redaction: &self.redaction,
        };
        let child_metrics = match row.spec.transport.kind() {
            TransportKind::Stdio => Some(self.metrics.children(&row.name)),
            TransportKind::Http | TransportKind::Sse | TransportKind::Jsonrpc => {
                self.metrics.forget_children(&row.name);
                None
            }
        };
        let metrics = (self.metrics.server(&row.name), child_metrics);
        ServerHandle::new(row, settings, &means, metrics, predecessor.map(Arc::as_ref))
    }
}

/// How long what uses a handle that was replaced may go on at least.
const RETIREMENT: Duration = Duration::from_secs(30);
/// How long a call may take at most from when it has its handle until it is sent.
const BEFORE: Duration = Duration::from_secs(5);

/// Closes a handle that was replaced, when nobody uses it any more, or when no attempt that was begun
/// at it may still be under way.
async fn retire(handle: Arc<ServerHandle>, stopping: CancellationToken) {
    let left = async {
        while Arc::strong_count(&handle) > 1 || !handle.is_alone() {
            // Their clients may end meanwhile, and would not be heard here.
            handle.close_unused_sessions(clock::uptime());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let longest = RETIREMENT.max(handle.longest_attempt().saturating_add(BEFORE));
    tokio::select! {
        _ = tokio::time::timeout(longest, left) => {}
        () = stopping.cancelled() => {}
    }
    handle.close().await;
}
