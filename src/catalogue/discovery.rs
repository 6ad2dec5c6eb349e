//! [`Discovery`]: asks servers for their tools and keeps the catalogue.
//!
//! Every server is asked on its own and with a bound of its own; one that hangs, lies or is away
//! keeps its last good list and is asked again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::definitions::{KnownTool, diff};
use super::schedule::{self, Plan};
use super::snapshot::{self, BuildSettings, Catalogue, CatalogueHandle};
use crate::clock;
use crate::metrics::Metrics;
use crate::model::{
    ArgumentsLevel, NamingMode, OnChange, ResultsLevel, ServerName, ToolName, ToolStatus,
};
use crate::protocol::{AnswerKind, OutgoingRequest, ToolDefinition, ToolList};
use crate::registry::{Registry, ServerHandle};
use crate::store::{DiscoveryRow, HistoryKind, HistoryRow, StoreError, ToolRow};

/// No server needs more pages for the tools that one may have.
const PAGE_LIMIT: usize = 1000;
/// How long one server's whole list may take.
const LIST_DEADLINE: Duration = Duration::from_secs(60);
/// How old the stored time of a server's last answer, or a tool's last sighting, may become.
const SEEN: Duration = Duration::from_secs(3600);
/// How often it is looked whether a server went away or came back between its turns.
const LOOK: Duration = Duration::from_secs(1);

/// What discovery is told by the configuration.
#[derive(Debug, Clone)]
pub struct DiscoverySettings {
    /// How exposed names are made.
    pub naming: NamingMode,
    /// The file's payload level for arguments.
    pub arguments: ArgumentsLevel,
    /// The file's payload level for results.
    pub results: ResultsLevel,
    /// Tools one server may have.
    pub tools_per_server: u32,
    /// How often a server that failed is asked again, at the latest.
    pub health_check_interval: Duration,
}

/// Keeps the catalogue of one router.
#[derive(Debug)]
pub struct Discovery {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    settings: ArcSwap<DiscoverySettings>,
    known: Mutex<HashMap<ServerName, Vec<KnownTool>>>,
    catalogue: CatalogueHandle,
    rebuilt: watch::Sender<u64>,
    started: watch::Sender<bool>,
}

/// Why a server's list could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// It could not be reached or did not answer properly.
    #[error("{0}")]
    Unreachable(String),
    /// It answered `tools/list` with an error.
    #[error("the server answered tools/list with the error {0}")]
    Refused(String),
    /// Its list makes no sense.
    #[error("{0}")]
    BadList(String),
    /// The server was changed or removed while it was asked.
    #[error("the server was changed while it was asked for its tools")]
    Replaced,
    /// The list could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Discovery {
    /// Reads the last known tools from the database, so that they are listed before any server
    /// has answered.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn load(
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        settings: DiscoverySettings,
    ) -> Result<Arc<Self>, StoreError> {
        let mut known: HashMap<ServerName, Vec<KnownTool>> = HashMap::new();
        for mut row in registry.store().tools().await? {
            let Ok(definition) = ToolDefinition::parse(&row.definition) else { continue };
            // Until its server has answered again a tool is known, not seen.
            if row.status == ToolStatus::Active {
                row.status = ToolStatus::Stale;
            }
            known.entry(row.server.clone()).or_default().push(KnownTool { row, definition });
        }
        let discovery = Arc::new(Self {
            registry,
            metrics,
            settings: ArcSwap::from_pointee(settings),
            known: Mutex::new(known),
            catalogue: Arc::new(ArcSwap::from_pointee(Catalogue::default())),
            rebuilt: watch::Sender::new(0),
            started: watch::Sender::new(false),
        });
        discovery.rebuild();
        Ok(discovery)
    }

    /// The catalogue in force.
    #[must_use]
    pub const fn catalogue(&self) -> &CatalogueHandle {
        &self.catalogue
    }

    /// One server of the registry.
    #[must_use]
    pub fn server(&self, name: &str) -> Option<Arc<ServerHandle>> {
        self.registry.server(name)
    }

    /// Servers with a name like `name`.
    #[must_use]
    pub fn nearest_servers(&self, name: &str) -> Vec<String> {
        self.registry.nearest(name)
    }

    /// Sees a new number whenever the catalogue was rebuilt.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.rebuilt.subscribe()
    }

    /// Whether every server has been asked once since the start.
    #[must_use]
    pub fn start_up_done(&self) -> bool {
        *self.started.borrow()
    }

    /// Takes new settings over from a reloaded configuration.
    pub fn configure(&self, settings: DiscoverySettings) {
        self.settings.store(Arc::new(settings));
        self.rebuild();
    }

    /// Tools that are not callable (gone or held), for display.
    #[must_use]
    pub fn inactive(&self) -> Vec<KnownTool> {
        let known = self.known.lock();
        known
            .values()
            .flatten()
            .filter(|tool| matches!(tool.row.status, ToolStatus::Gone | ToolStatus::Held))
            .cloned()
            .collect()
    }

    /// Accepts the present definition of a held tool.
    ///
    /// # Errors
    /// When the database cannot be written. `Ok(false)` when no such tool is held.
    pub async fn approve(
        &self,
        server: &ServerName,
        tool: &ToolName,
        by: &str,
    ) -> Result<bool, StoreError> {
        let rows = {
            let mut known = self.known.lock();
            let Some(tools) = known.get_mut(server) else { return Ok(false) };
            let held =
                tools.iter_mut().find(|t| t.row.tool == *tool && t.row.status == ToolStatus::Held);
            let Some(held) = held else { return Ok(false) };
            held.row.status = ToolStatus::Active;
            let history = HistoryRow {
                server: server.clone(),
                tool: tool.clone(),
                old_hash: None,
                new_hash: Some(held.row.hash),
                kind: HistoryKind::Approved,
                at: clock::timestamp(),
                by: Some(by.to_owned()),
            };
            (tools.iter().map(|t| t.row.clone()).collect::<Vec<ToolRow>>(), history)
        };
        self.registry.store().replace_tools(server, &rows.0, &[rows.1]).await?;
        self.rebuild();
        Ok(true)
    }

    /// Asks one server for its tools now and takes the answer over. One at a time per server.
    ///
    /// # Errors
    /// [`DiscoveryError`]; the last good list stays and is marked stale.
    pub async fn discover(&self, server: &Arc<ServerHandle>) -> Result<usize, DiscoveryError> {
        let _one = server.discovering.lock().await;
        let asked = tokio::time::timeout(LIST_DEADLINE, self.list(server)).await;
        let outcome = match asked {
            Ok(Ok((discovery, tools))) => {
                let count = tools.len();
                self.take_over(server, &tools).await.map(|()| (discovery, count))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(DiscoveryError::Unreachable(format!(
                "its list of tools was not complete after {} s",
                LIST_DEADLINE.as_secs()
            ))),
        };
        match outcome {
            Ok((discovery, count)) => {
                let before = server.status().discovery;
                server.discovered(discovery.clone());
                if worth_a_write(&before, &discovery) {
                    self.record(server, &discovery).await;
                }
                Ok(count)
            }
            Err(_) if !self.is_current(server) => Err(DiscoveryError::Replaced),
            Err(error) => {
                let message = server.scrub(&error.to_string());
                let before = server.status();
                if before.discovery.error.as_deref() != Some(&message) || !before.tried {
                    tracing::warn!(
                        server.name = %server.name, error = %message,
                        "server {} could not be asked for its tools: {message}", server.name
                    );
                }
                let discovery = server.failed(&message, clock::timestamp());
                self.mark_stale(&server.name);
                self.record(server, &discovery).await;
                Err(error)
            }
        }
    }

    /// Whether this handle is still the server's; what another one finds out is of no use.
    fn is_current(&self, server: &Arc<ServerHandle>) -> bool {
        self.registry
            .server(server.name.as_str())
            .is_some_and(|current| Arc::ptr_eq(&current, server))
    }

    async fn record(&self, server: &ServerHandle, discovery: &DiscoveryRow) {
        if let Err(error) = self.registry.store().record_discovery(&server.name, discovery).await {
            tracing::warn!(server.name = %server.name, %error, "the result of a discovery could not be stored");
        }
    }

    async fn list(
        &self,
        server: &ServerHandle,
    ) -> Result<(DiscoveryRow, Vec<ToolDefinition>), DiscoveryError> {
        let unreachable =
            |error: &dyn std::fmt::Display| DiscoveryError::Unreachable(error.to_string());
        let lease = server.lease().await.map_err(|error| unreachable(&error))?;
        let peer = lease.peer();
        let discovery = DiscoveryRow {
            protocol_version: Some(peer.version.as_str().to_owned()),
            dialect: Some(peer.version.era().as_str().to_owned()),
            server_info: peer.server_info.clone(),
            instructions: peer.instructions.clone(),
            ok_at: Some(clock::timestamp()),
            error: None,
            error_at: None,
        };
        let mut tools = Vec::new();
        if !peer.offers.tools {
            return Ok((discovery, tools));
        }
        let limit = usize::try_from(self.settings.load().tools_per_server).unwrap_or(usize::MAX);
        let mut cursors = HashSet::new();
        let mut cursor: Option<String> = None;
        for _ in 0..PAGE_LIMIT {
            let request =
                OutgoingRequest { cursor: cursor.as_deref(), ..OutgoingRequest::new("tools/list") };
            let answer = match lease.request(&request, server.settings.timeout, None).await {
                Ok(answer) => answer,
                Err(error) => {
                    if !lease.is_alive() {
                        server.invalidate(&lease);
                    }
                    return Err(unreachable(&error));
                }
            };
            if answer.kind == AnswerKind::Error {
                let text: String =
                    String::from_utf8_lossy(&answer.value).chars().take(300).collect();
                return Err(DiscoveryError::Refused(text));
            }
            let page = ToolList::parse(&answer.value)
                .map_err(|error| DiscoveryError::BadList(error.to_string()))?;
            for problem in &page.problems {
                tracing::warn!(server.name = %server.name, %problem, "server {} lists a tool that is left out: {problem}", server.name);
            }
            tools.extend(page.tools);
            if tools.len() > limit {
                return Err(DiscoveryError::BadList(format!(
                    "it lists more than {limit} tools (limits.tools_per_server)"
                )));
            }
            match page.next_cursor {
                None => return Ok((discovery, tools)),
                Some(next) if cursors.insert(next.clone()) => cursor = Some(next),
                Some(_) => {
                    return Err(DiscoveryError::BadList(
                        "its pages go in a circle: a cursor came twice".to_owned(),
                    ));
                }
            }
        }
        Err(DiscoveryError::BadList(format!("its list has more than {PAGE_LIMIT} pages")))
    }

    async fn take_over(
        &self,
        server: &Arc<ServerHandle>,
        listed: &[ToolDefinition],
    ) -> Result<(), DiscoveryError> {
        let before = self.known.lock().get(&server.name).cloned().unwrap_or_default();
        let first = before.is_empty();
        let (tools, history) =
            diff(&server.name, &before, listed, server.spec.on_change, clock::timestamp());
        if !self.is_current(server) {
            return Err(DiscoveryError::Replaced);
        }
        if !history.is_empty() || !same_but_for_time(&before, &tools) {
            let rows: Vec<ToolRow> = tools.iter().map(|tool| tool.row.clone()).collect();
            self.registry.store().replace_tools(&server.name, &rows, &history).await?;
        }
        if !first {
            for change in &history {
                server.metrics.count_change(change.kind.as_str());
                if server.spec.on_change != OnChange::Accept {
                    tracing::warn!(
                        server.name = %server.name, tool.name = %change.tool,
                        kind = change.kind.as_str(),
                        "tool {} of server {} was {}",
                        change.tool, server.name, change.kind.as_str()
                    );
                }
            }
        }
        {
            let mut known = self.known.lock();
            if !self.is_current(server) {
                return Err(DiscoveryError::Replaced);
            }
            known.insert(server.name.clone(), tools);
        }
        self.rebuild();
        Ok(())
    }

    fn mark_stale(&self, server: &ServerName) {
        let mut changed = false;
        if let Some(tools) = self.known.lock().get_mut(server) {
            for tool in tools.iter_mut().filter(|tool| tool.row.status == ToolStatus::Active) {
                tool.row.status = ToolStatus::Stale;
                changed = true;
            }
        }
        if changed {
            self.rebuild();
        }
    }

    /// Builds the catalogue anew from the registry and the known tools.
    fn rebuild(&self) {
        let settings = self.settings.load();
        let servers = self.registry.servers();
        let mut known = self.known.lock();
        known.retain(|server, _| servers.contains_key(server));
        for handle in servers.values() {
            let tools = known.get(&handle.name).map_or(&[][..], Vec::as_slice);
            let tools = if handle.enabled { tools } else { &[] };
            handle.metrics.set_tools(&snapshot::count(tools));
        }
        let build = BuildSettings {
            naming: settings.naming,
            arguments: settings.arguments,
            results: settings.results,
        };
        let before = self.catalogue.load();
        let catalogue = Catalogue::build(&servers, &known, build, &self.metrics, &before);
        if catalogue.collisions != before.collisions {
            for collision in &catalogue.collisions {
                let servers: Vec<&str> = collision.servers.iter().map(ServerName::as_str).collect();
                tracing::error!(
                    tool.name = %collision.name,
                    "the tool name {} is offered by {}; none of them is exposed (naming: bare)",
                    collision.name, servers.join(" and ")
                );
            }
        }
        self.catalogue.store(Arc::new(catalogue));
        self.rebuilt.send_modify(|change| *change = change.wrapping_add(1));
    }

    /// Asks servers when they appear, when they come back, and for changes from time to time,
    /// until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut registry_changed = self.registry.subscribe();
        let mut plan: HashMap<ServerName, Plan> = HashMap::new();
        let mut asking = FuturesUnordered::new();
        loop {
            let now = clock::uptime();
            let servers = self.registry.servers();
            plan.retain(|name, _| servers.contains_key(name));
            for handle in servers.values().filter(|handle| handle.enabled) {
                let entry =
                    plan.entry(handle.name.clone()).or_insert_with(|| Plan::new(handle, now));
                if !Arc::ptr_eq(&entry.handle, handle) {
                    *entry = Plan::new(handle, now);
                }
                if entry.due <= now && !entry.asking {
                    entry.asking = true;
                    let (this, handle) = (Arc::clone(&self), Arc::clone(handle));
                    asking.push(async move {
                        let found = this.discover(&handle).await;
                        (handle, found.is_ok())
                    });
                }
            }
            let enabled = servers.values().filter(|handle| handle.enabled);
            if !self.start_up_done() && enabled.clone().all(|handle| handle.status().tried) {
                self.started.send_replace(true);
            }
            let next = plan.values().filter(|p| !p.asking).map(|p| p.due.since(now)).min();
            tokio::select! {
                () = stop.cancelled() => return,
                changed = registry_changed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.rebuild();
                }
                Some((handle, ok)) = asking.next() => {
                    let interval = self.settings.load().health_check_interval;
                    if let Some(entry) = plan.get_mut(&handle.name)
                        && Arc::ptr_eq(&entry.handle, &handle)
                    {
                        entry.finished(ok, interval, clock::uptime());
                    }
                }
                () = tokio::time::sleep(next.unwrap_or(LOOK).clamp(Duration::from_millis(10), LOOK)) => {
                    schedule::notice_changes(&mut plan);
                }
            }
        }
    }
}

/// Whether a discovery says anything but that the server still answers.
fn worth_a_write(before: &DiscoveryRow, after: &DiscoveryRow) -> bool {
    let same = DiscoveryRow { ok_at: None, ..before.clone() }
        == DiscoveryRow { ok_at: None, ..after.clone() };
    let lately =
        before.ok_at.zip(after.ok_at).is_some_and(|(before, after)| after.since(before) < SEEN);
    !(same && lately)
}

/// Whether two lists say the same; when tools were last seen is not worth a write each time.
fn same_but_for_time(before: &[KnownTool], after: &[KnownTool]) -> bool {
    before.len() == after.len()
        && before.iter().zip(after).all(|(before, after)| {
            let seen_lately = after.row.last_seen_at.since(before.row.last_seen_at) < SEEN;
            before.row.tool == after.row.tool
                && before.row.hash == after.row.hash
                && before.row.status == after.row.status
                && seen_lately
        })
}
