//! [`Discovery`]: asks servers for what they offer and keeps the catalogue.
//!
//! Every server is asked on its own and with a bound of its own; one that hangs, lies or is away
//! keeps its last good lists and is asked again. Each list stands for itself: one that cannot be
//! had does not cost the others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::build::{self, BuildSettings, Known};
use super::definitions::{KnownTool, SEEN, diff, same_but_for_time};
use super::error::DiscoveryError;
use super::lists::{self, OFFERS, ServerOffers, Walked};
use super::page::OfferedList;
use super::schedule::{self, Action, Listing, Turns, Wanted};
use super::snapshot::{self, Catalogue, CatalogueHandle};
use crate::clock;
use crate::metrics::Metrics;
use crate::model::{
    ArgumentsLevel, Era, NamingMode, OnChange, ResultsLevel, ServerName, ToolName, ToolStatus,
    Uptime, ViewName, ViewSpec,
};
use crate::pool::{Lease, ListKind};
use crate::protocol::{Listed, OutgoingRequest, ToolDefinition};
use crate::registry::{Registry, ServerHandle, ServerState};
use crate::store::{DiscoveryRow, HistoryKind, HistoryRow, OfferKind, StoreError, ToolRow};

/// How long one whole list may take.
const LIST_DEADLINE: Duration = Duration::from_secs(60);
/// How long a sign of life may take.
const CHECK: Duration = Duration::from_secs(5);
/// How often it is looked whether a server went away or came back between its turns.
const LOOK: Duration = Duration::from_secs(1);

/// What discovery is told by the configuration.
#[derive(Debug, Clone)]
pub struct DiscoverySettings {
    /// The views.
    pub views: BTreeMap<ViewName, ViewSpec>,
    /// How exposed names are made.
    pub naming: NamingMode,
    /// The file's payload level for arguments.
    pub arguments: ArgumentsLevel,
    /// The file's payload level for results.
    pub results: ResultsLevel,
    /// Tools one server may have.
    /// The same for prompts, resources and templates.
    pub tools_per_server: u32,
    /// Elements on one page of a list of ours.
    pub list_page: u32,
    /// How often a server that failed is asked again, at the latest.
    pub health_check_interval: Duration,
}

/// What came of asking a server for its lists.
#[derive(Debug)]
struct Asked {
    /// How many tools it has, where they were asked for.
    tools: Result<Option<usize>, DiscoveryError>,
    /// Whether all other lists that were asked for could be had.
    offers: bool,
    /// How long all that was listed may be kept.
    ttl: Option<Duration>,
    /// Whether it says when a list changes.
    announces: bool,
    /// Connections that were opened until its lists were asked for.
    connects: u64,
}

/// A server and its turns.
#[derive(Debug)]
struct Plan {
    handle: Arc<ServerHandle>,
    turns: Turns,
    /// Connections that had been opened when its lists were last asked for.
    connects: Option<u64>,
}

/// What `run` has had done.
enum Done {
    Listed(Wanted, Asked),
    Checked(bool),
}

/// Keeps the catalogue of one router.
#[derive(Debug)]
pub struct Discovery {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    settings: ArcSwap<DiscoverySettings>,
    known: Mutex<HashMap<ServerName, Vec<KnownTool>>>,
    offers: Mutex<HashMap<ServerName, ServerOffers>>,
    /// What servers said since `run` last looked: at most one entry for each of the registry.
    notices: Mutex<HashMap<ServerName, Wanted>>,
    noticed: Notify,
    catalogue: CatalogueHandle,
    rebuilt: watch::Sender<u64>,
    started: watch::Sender<bool>,
}

impl Discovery {
    /// Reads what was listed last from the database, so that it is offered before any server has
    /// answered.
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
        let mut lists: HashMap<(ServerName, OfferKind), Vec<Listed>> = HashMap::new();
        for row in registry.store().offers().await? {
            let item = Listed { key: row.key, raw: row.definition };
            lists.entry((row.server, row.kind)).or_default().push(item);
        }
        let mut offers: HashMap<ServerName, ServerOffers> = HashMap::new();
        for ((server, kind), items) in lists {
            for (list, _) in OFFERS.iter().filter(|(_, of)| *of == kind) {
                offers.entry(server.clone()).or_default().replace(*list, items.clone());
            }
        }
        let discovery = Arc::new(Self {
            registry,
            metrics,
            settings: ArcSwap::from_pointee(settings),
            known: Mutex::new(known),
            offers: Mutex::new(offers),
            notices: Mutex::new(HashMap::new()),
            noticed: Notify::new(),
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

    /// Elements on one page of a list.
    #[must_use]
    pub fn page_size(&self) -> usize {
        usize::try_from(self.settings.load().list_page).unwrap_or(usize::MAX)
    }

    /// Which lists of a server could not be had at the last try, and why; its tools apart, which
    /// are in its status.
    #[must_use]
    pub fn list_problems(&self, server: &ServerName) -> Vec<(OfferedList, String)> {
        self.offers.lock().get(server).map(|offers| offers.problems.clone()).unwrap_or_default()
    }

    /// A server says that one of its lists changed; it is asked again soon, however often it says
    /// so at most once a second. May be called from any thread, and never waits.
    pub fn notice(&self, server: &ServerName, kind: ListKind) {
        if self.registry.server(server.as_str()).is_none() {
            return;
        }
        let is_news = {
            let mut notices = self.notices.lock();
            let wanted = notices.entry(server.clone()).or_default();
            let before = std::mem::replace(wanted, wanted.and(Wanted::of(kind)));
            before != *wanted
        };
        if is_news {
            self.noticed.notify_one();
        }
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

    /// Whether each server that `among` picks has been asked once since the start.
    #[must_use]
    pub fn asked_once(&self, among: impl Fn(&ServerName) -> bool) -> bool {
        let servers = self.registry.servers();
        let mut picked = servers.values().filter(|handle| handle.enabled && among(&handle.name));
        picked.all(|handle| handle.status().tried)
    }

    /// Takes new settings over from a reloaded configuration.
    pub fn configure(&self, settings: DiscoverySettings) {
        self.settings.store(Arc::new(settings));
        self.rebuild();
    }

    /// Tools that are not callable (gone or held), for display: of those that are offered.
    #[must_use]
    pub fn inactive(&self) -> Vec<KnownTool> {
        let servers = self.registry.servers();
        let known = self.known.lock();
        known
            .iter()
            .filter_map(|(server, tools)| Some((servers.get(server)?, tools)))
            .flat_map(|(server, tools)| tools.iter().map(move |tool| (server, tool)))
            .filter(|(server, tool)| server.spec.offers(tool.row.tool.as_str()))
            .map(|(_, tool)| tool)
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
        // Not while its list is being compared with what is known.
        let handle = self.registry.server(server.as_str());
        let _one = match &handle {
            Some(handle) => Some(handle.discovering.lock().await),
            None => None,
        };
        let mut tools = self.known.lock().get(server).cloned().unwrap_or_default();
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
        let rows: Vec<ToolRow> = tools.iter().map(|t| t.row.clone()).collect();
        self.registry.store().replace_tools(server, &rows, &[history]).await?;
        self.known.lock().insert(server.clone(), tools);
        self.rebuild();
        Ok(true)
    }

    /// Asks one server for all its lists now and takes the answers over; gives the number of its
    /// tools. One at a time per server.
    ///
    /// # Errors
    /// [`DiscoveryError`], when its tools could not be had; the last good list stays and is marked
    /// stale. Another list that could not be had is in [`Self::list_problems`].
    pub async fn discover(&self, server: &Arc<ServerHandle>) -> Result<usize, DiscoveryError> {
        self.ask(server, Wanted::ALL).await.tools.map(Option::unwrap_or_default)
    }

    async fn ask(&self, server: &Arc<ServerHandle>, wanted: Wanted) -> Asked {
        let _one = server.discovering.lock().await;
        let unasked = |error, connects| Asked {
            tools: Err(error),
            offers: false,
            ttl: None,
            announces: false,
            connects,
        };
        let lease = match within("no connection", server.lease()).await {
            Ok(Ok(lease)) => lease,
            Ok(Err(error)) => {
                let error = DiscoveryError::of(&error, error.http_status());
                return unasked(self.note_failure(server, error).await, server.connects());
            }
            Err(error) => {
                return unasked(self.note_failure(server, error).await, server.connects());
            }
        };
        let connects = server.connects();
        let (tools, tools_ttl) = if wanted.tools {
            self.ask_tools(server, &lease).await
        } else {
            (Ok(None), Some(Duration::MAX))
        };
        // Another handle asks on its own.
        if matches!(tools, Err(DiscoveryError::Replaced)) {
            return Asked { tools, ..unasked(DiscoveryError::Replaced, connects) };
        }
        let (offers, ttl) = self.ask_offers(server, &lease, wanted).await;
        Asked {
            tools,
            offers,
            ttl: tools_ttl.zip(ttl).map(|(tools, others)| tools.min(others)),
            announces: lease.peer().offers.list_changes && lease.is_listening(),
            connects,
        }
    }

    async fn ask_tools(
        &self,
        server: &Arc<ServerHandle>,
        lease: &Lease,
    ) -> (Result<Option<usize>, DiscoveryError>, Option<Duration>) {
        let listed = if lease.peer().offers.tools {
            let asked = lists::tools(server, lease, self.limit());
            within("its list of tools was not complete", asked).await.and_then(|listed| listed)
        } else {
            Ok(Walked::empty())
        };
        let taken = match listed {
            Ok(Walked { items, ttl }) => {
                self.take_over(server, &items).await.map(|()| (items.len(), ttl))
            }
            Err(error) => Err(error),
        };
        match taken {
            Ok((count, ttl)) => {
                self.note_success(server, discovery_row(lease)).await;
                (Ok(Some(count)), ttl)
            }
            Err(error) => (Err(self.note_failure(server, error).await), None),
        }
    }

    /// Asks for prompts, resources and templates, each for itself; whether all could be had, and
    /// how long they may be kept.
    async fn ask_offers(
        &self,
        server: &Arc<ServerHandle>,
        lease: &Lease,
        wanted: Wanted,
    ) -> (bool, Option<Duration>) {
        let declared = lease.peer().offers;
        let limit = self.limit();
        let asked = OFFERS
            .iter()
            .filter(|(list, _)| match list {
                OfferedList::Tools => false,
                OfferedList::Prompts => wanted.prompts,
                OfferedList::Resources | OfferedList::Templates => wanted.resources,
            })
            .map(|(list, kind)| async move {
                let offered = match list {
                    OfferedList::Prompts => declared.prompts,
                    OfferedList::Tools | OfferedList::Resources | OfferedList::Templates => {
                        declared.resources
                    }
                };
                let listed = if offered {
                    let asked = lists::offers(server, lease, *list, limit);
                    within("its list was not complete", asked).await.and_then(|listed| listed)
                } else {
                    Ok(Walked::empty())
                };
                (*list, *kind, listed)
            });
        let before = self.offers.lock().get(&server.name).cloned().unwrap_or_default();
        let mut offers = before.clone();
        offers.declares_resources = declared.resources;
        let mut ttl = Some(Duration::MAX);
        let mut changed = before.declares_resources != offers.declares_resources;
        let mut all = true;
        for (list, kind, listed) in join_all(asked).await {
            offers.problems.retain(|(of, _)| *of != list);
            let taken = match listed {
                Ok(walked) if walked.items == before.list(list) => Ok(walked.ttl),
                Ok(walked) => self.store_offers(server, kind, &walked.items).await.map(|()| {
                    changed = true;
                    offers.replace(list, walked.items);
                    walked.ttl
                }),
                Err(error) => Err(error),
            };
            let of_list = match taken {
                Ok(of_list) => of_list,
                Err(DiscoveryError::Replaced) => return (false, None),
                Err(error) => {
                    let problem = server.scrub(&error.to_string());
                    if !before.problems.contains(&(list, problem.clone())) {
                        tracing::warn!(
                            server.name = %server.name, error = %problem,
                            "server {} could not be asked for its {}s: {problem}", server.name, list.noun()
                        );
                    }
                    offers.problems.push((list, problem));
                    all = false;
                    None
                }
            };
            ttl = ttl.zip(of_list).map(|(all, one)| all.min(one));
        }
        {
            let mut known = self.offers.lock();
            if !self.is_current(server) {
                return (false, None);
            }
            known.insert(server.name.clone(), offers);
        }
        if changed {
            self.rebuild();
        }
        (all, ttl)
    }

    async fn store_offers(
        &self,
        server: &Arc<ServerHandle>,
        kind: OfferKind,
        items: &[Listed],
    ) -> Result<(), DiscoveryError> {
        if !self.is_current(server) {
            return Err(DiscoveryError::Replaced);
        }
        let rows: Vec<_> = items.iter().map(|item| (item.key.as_str(), &item.raw)).collect();
        self.registry.store().replace_offers(&server.name, kind, &rows).await?;
        Ok(())
    }

    /// Asks for a sign of life: what every server of its era must answer, and runs nothing. Lists
    /// cost too much for that.
    async fn check(&self, server: &Arc<ServerHandle>) -> bool {
        let asked = async {
            let lease = server
                .lease()
                .await
                .map_err(|error| DiscoveryError::of(&error, error.http_status()))?;
            let method = match lease.peer().version.era() {
                Era::Legacy => "ping",
                Era::Modern => "server/discover",
            };
            // An error is an answer, and an answer proves life.
            match lease.request(&OutgoingRequest::new(method), CHECK, None).await {
                Ok(_) => Ok(discovery_row(&lease)),
                Err(error) => {
                    if !lease.is_alive() {
                        server.invalidate(&lease);
                    }
                    Err(DiscoveryError::of(&error, error.http_status()))
                }
            }
        };
        // A connection has a bound of its own, and a child may be long in starting.
        let problem = match tokio::time::timeout(LIST_DEADLINE, asked).await {
            Ok(Ok(row)) => {
                self.note_success(server, row).await;
                return true;
            }
            Ok(Err(problem)) => problem,
            Err(_) => DiscoveryError::Unreachable(format!(
                "no answer within {} s",
                LIST_DEADLINE.as_secs()
            )),
        };
        self.note_failure(server, problem).await;
        false
    }

    async fn note_success(&self, server: &ServerHandle, row: DiscoveryRow) {
        let before = server.status().discovery;
        server.discovered(row.clone());
        if worth_a_write(&before, &row) {
            self.record(server, &row).await;
        }
    }

    async fn note_failure(
        &self,
        server: &Arc<ServerHandle>,
        error: DiscoveryError,
    ) -> DiscoveryError {
        if !self.is_current(server) {
            return DiscoveryError::Replaced;
        }
        let message = server.scrub(&error.to_string());
        let before = server.status();
        if before.discovery.error.as_deref() != Some(&message) || !before.tried {
            tracing::warn!(
                server.name = %server.name, error = %message,
                "server {} could not be asked for its tools: {message}", server.name
            );
        }
        let at = clock::timestamp();
        let discovery = match error {
            DiscoveryError::Unauthorized(_) => server.unauthorized(&message, at),
            _ => server.failed(&message, at),
        };
        self.mark_stale(&server.name);
        self.record(server, &discovery).await;
        error
    }

    fn limit(&self) -> usize {
        usize::try_from(self.settings.load().tools_per_server).unwrap_or(usize::MAX)
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

    async fn take_over(
        &self,
        server: &Arc<ServerHandle>,
        listed: &[ToolDefinition],
    ) -> Result<(), DiscoveryError> {
        let before = self.known.lock().get(&server.name).cloned().unwrap_or_default();
        // A server whose first list was empty has had its first list.
        let first = before.is_empty() && server.status().discovery.ok_at.is_none();
        let (tools, history) =
            diff(&server.name, &before, listed, first, server.spec.on_change, clock::timestamp());
        if !self.is_current(server) {
            return Err(DiscoveryError::Replaced);
        }
        let same = history.is_empty() && same_but_for_time(&before, &tools);
        if !same {
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
        if !same {
            self.rebuild();
        }
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

    /// Builds the catalogue anew from the registry and what is known.
    fn rebuild(&self) {
        let mut known = self.known.lock();
        let mut offers = self.offers.lock();
        // Read under the locks, so that an older state never replaces a newer one.
        let settings = self.settings.load();
        let servers = self.registry.servers();
        known.retain(|server, _| servers.contains_key(server));
        offers.retain(|server, _| servers.contains_key(server));
        for handle in servers.values() {
            let tools = known.get(&handle.name).map_or(&[][..], Vec::as_slice);
            let tools = if handle.enabled { tools } else { &[] };
            handle.metrics.set_tools(&snapshot::count(&handle.spec, tools));
        }
        let build = BuildSettings {
            naming: settings.naming,
            arguments: settings.arguments,
            results: settings.results,
        };
        let before = self.catalogue.load();
        let known = Known { tools: &known, offers: &offers };
        let entries = build::entries(&servers, known, build, &self.metrics, &before);
        if entries.collisions != before.parts().collisions {
            for collision in &entries.collisions {
                let servers: Vec<&str> = collision.servers.iter().map(ServerName::as_str).collect();
                let noun = collision.list.noun();
                tracing::error!(
                    list = collision.list.method(), collision.name = %collision.name,
                    "the {noun} {} is offered by {}; none of them is exposed (naming: bare)",
                    collision.name, servers.join(" and ")
                );
            }
        }
        for gone in before.views().keys().filter(|name| !settings.views.contains_key(*name)) {
            self.metrics.forget_view(gone);
        }
        let catalogue =
            Catalogue::assemble(entries).with_views(&settings.views, &self.metrics, &before);
        self.catalogue.store(Arc::new(catalogue));
        self.rebuilt.send_modify(|change| *change = change.wrapping_add(1));
    }

    /// Asks servers when they appear, when they come back, when they say that something changed,
    /// and from time to time, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut registry_changed = self.registry.subscribe();
        let mut plan: HashMap<ServerName, Plan> = HashMap::new();
        let mut asking = FuturesUnordered::new();
        loop {
            let now = clock::uptime();
            let servers = self.registry.servers();
            // A handle kept here for a server that is disabled would keep its connections open.
            plan.retain(|name, _| servers.get(name).is_some_and(|handle| handle.enabled));
            let notices = std::mem::take(&mut *self.notices.lock());
            for handle in servers.values().filter(|handle| handle.enabled) {
                let entry =
                    plan.entry(handle.name.clone()).or_insert_with(|| Plan::new(handle, now));
                if !Arc::ptr_eq(&entry.handle, handle) {
                    *entry = Plan::new(handle, now);
                }
                if let Some(wanted) = notices.get(&handle.name) {
                    entry.turns.notice(*wanted, now);
                }
                if let Some(action) = entry.turns.begin(now) {
                    let (this, handle) = (Arc::clone(&self), Arc::clone(handle));
                    asking.push(Box::pin(async move {
                        let done = match action {
                            Action::List(wanted) => {
                                Done::Listed(wanted, this.ask(&handle, wanted).await)
                            }
                            Action::Check => Done::Checked(this.check(&handle).await),
                        };
                        (handle, done)
                    }));
                }
            }
            if !self.start_up_done() && plan.values().all(|plan| plan.turns.asked()) {
                self.started.send_replace(true);
            }
            let next = plan.values().filter_map(|plan| plan.turns.next()).min();
            let wait = next.map_or(LOOK, |next| next.since(now));
            tokio::select! {
                () = stop.cancelled() => return,
                changed = registry_changed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.rebuild();
                }
                () = self.noticed.notified() => {}
                Some((handle, done)) = asking.next() => {
                    let interval = self.settings.load().health_check_interval;
                    if let Some(entry) = plan.get_mut(&handle.name)
                        && Arc::ptr_eq(&entry.handle, &handle)
                    {
                        entry.finished(&done, interval, clock::uptime());
                    }
                }
                () = tokio::time::sleep(wait.clamp(Duration::from_millis(10), LOOK)) => {
                    let now = clock::uptime();
                    for entry in plan.values_mut() {
                        entry.look(now);
                    }
                }
            }
        }
    }
}

impl Plan {
    fn new(handle: &Arc<ServerHandle>, now: Uptime) -> Self {
        let turns = Turns::new(handle.name.as_str(), now);
        Self { handle: Arc::clone(handle), turns, connects: None }
    }

    fn finished(&mut self, done: &Done, interval: Duration, now: Uptime) {
        match done {
            Done::Listed(wanted, asked) => {
                let ok = asked.tools.is_ok() && (asked.offers || *wanted == Wanted::ALL);
                // A list that cannot be had is asked for again in the usual time.
                let poll = match asked.offers {
                    true => schedule::poll(interval, asked.ttl, asked.announces),
                    false => interval,
                };
                if *wanted == Wanted::ALL {
                    self.connects = Some(asked.connects);
                }
                self.turns.listed(Listing { wanted: *wanted, ok, interval, poll }, now);
            }
            Done::Checked(ok) => self.turns.checked(*ok, interval, now),
        }
    }

    /// Sees what happened between its turns.
    fn look(&mut self, now: Uptime) {
        // Who does not let us in is asked in its turn only.
        let up = self.handle.state() == ServerState::Up && !self.handle.is_unauthorized();
        self.turns.look(up, now);
        // Behind a new connection may be a new program.
        let connects = self.handle.connects();
        if self.connects.is_some_and(|before| before != connects) {
            self.connects = Some(connects);
            self.turns.notice(Wanted::ALL, now);
        }
    }
}

/// What a server said of itself, and that it did so now.
fn discovery_row(lease: &Lease) -> DiscoveryRow {
    let peer = lease.peer();
    DiscoveryRow {
        protocol_version: Some(peer.version.as_str().to_owned()),
        dialect: Some(lease.dialect().as_str().to_owned()),
        server_info: peer.server_info.clone(),
        instructions: peer.instructions.clone(),
        ok_at: Some(clock::timestamp()),
        error: None,
        error_at: None,
    }
}

/// Bounds the wait for a list.
async fn within<T>(what: &str, asked: impl Future<Output = T>) -> Result<T, DiscoveryError> {
    tokio::time::timeout(LIST_DEADLINE, asked).await.ok().ok_or_else(|| {
        DiscoveryError::Unreachable(format!("{what} after {} s", LIST_DEADLINE.as_secs()))
    })
}

/// Whether a discovery says anything but that the server still answers.
fn worth_a_write(before: &DiscoveryRow, after: &DiscoveryRow) -> bool {
    let same = DiscoveryRow { ok_at: None, ..before.clone() }
        == DiscoveryRow { ok_at: None, ..after.clone() };
    let lately =
        before.ok_at.zip(after.ok_at).is_some_and(|(before, after)| after.since(before) < SEEN);
    !(same && lately)
}
