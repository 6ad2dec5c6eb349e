//! [`Discovery`]: asks servers for what they offer and keeps the catalogue.
//!
//! Every server is asked on its own and with a bound of its own; one that hangs, lies or is away
//! keeps its last good lists and is asked again. Each list stands for itself: one that cannot be
//! had does not cost the others.
//!
//! Here is what is known and the catalogue made of it; [`ask`] asks a server, [`take`] takes over what
//! it said, [`run`] gives each its turn.

mod ask;
mod run;
mod take;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::build::{self, BuildSettings, Known};
use super::definitions::KnownTool;
use super::left_out::{Lack, LeftOut};
use super::lists::{OFFERS, ServerOffers};
use super::page::OfferedList;
use super::recording::{Recording, RecordingSettings};
use super::schedule::Wanted;
use super::snapshot::{self, Catalogue, CatalogueHandle};
use crate::clock;
use crate::metrics::Metrics;
use crate::model::{NamingMode, ServerName, ToolStatus, ToolTarget, ViewName, ViewSpec};
use crate::pool::ListKind;
use crate::protocol::{Listed, ToolDefinition};
use crate::registry::{Registry, ServerHandle};
use crate::store::{OfferKind, StoreError};

/// What discovery is told by the configuration.
#[derive(Debug, Clone)]
pub struct DiscoverySettings {
    /// The views.
    pub views: BTreeMap<ViewName, ViewSpec>,
    /// How exposed names are made.
    pub naming: NamingMode,
    /// What the ledger keeps of calls.
    pub recording: RecordingSettings,
    /// Tools one server may have.
    /// The same for prompts, resources and templates.
    pub tools_per_server: u32,
    /// Elements on one page of a list of ours.
    pub list_page: u32,
    /// How often a server is asked, give or take a fifth; one that failed sooner at first.
    pub health_check_interval: Duration,
}

/// Keeps the catalogue of one router.
#[derive(Debug)]
pub struct Discovery {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    settings: ArcSwap<DiscoverySettings>,
    known: Mutex<HashMap<ServerName, Vec<KnownTool>>>,
    offers: Mutex<HashMap<ServerName, ServerOffers>>,
    left_out: LeftOut,
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
            left_out: LeftOut::default(),
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

    /// What the ledger keeps of a call whose tool is not in the catalogue: what it would keep if its
    /// server had the tool.
    #[must_use]
    pub fn recording_of(&self, target: &ToolTarget) -> Recording {
        let (prefix, rest) = match target.tool.split_once("__") {
            Some((prefix, rest)) => (Some(prefix), Some(rest)),
            None => (None, None),
        };
        let named = target.server.as_ref().map(ServerName::as_str);
        let server = named.or(prefix).and_then(|name| self.registry.server(name));
        let of_server = server.as_ref().map(|handle| (&handle.name, &handle.spec));
        let names: Vec<&str> = std::iter::once(target.tool.as_str()).chain(rest).collect();
        self.settings.load().recording.of(of_server, &names)
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

    /// What is left out of the lists that a server gave last.
    #[must_use]
    pub fn left_out(&self, server: &ServerName) -> Vec<Lack> {
        self.left_out.of(server)
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

    /// Whether each server has been asked once since the start, or what it listed before is known.
    #[must_use]
    pub fn knows_all(&self) -> bool {
        self.asked_once(|server| self.known.lock().get(server).is_none_or(Vec::is_empty))
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

    /// Builds the catalogue anew from the registry and what is known.
    fn rebuild(&self) {
        let mut known = self.known.lock();
        let mut offers = self.offers.lock();
        // Read under the locks, so that an older state never replaces a newer one.
        let settings = self.settings.load();
        let servers = self.registry.servers();
        known.retain(|server, _| servers.contains_key(server));
        offers.retain(|server, _| servers.contains_key(server));
        self.left_out.retain(|server| servers.contains_key(server));
        for handle in servers.values() {
            let tools = known.get(&handle.name).map_or(&[][..], Vec::as_slice);
            let tools = if handle.enabled { tools } else { &[] };
            handle.metrics.set_tools(&snapshot::count(&handle.spec, tools));
        }
        let build = BuildSettings { naming: settings.naming, recording: &settings.recording };
        let before = self.catalogue.load();
        let known = Known { tools: &known, offers: &offers };
        let entries = build::entries(&servers, known, build, &self.metrics, &before);
        let listed = snapshot::listed_bytes(&entries.tools);
        for handle in servers.values() {
            let bytes = listed.get(&handle.name).copied().unwrap_or(0);
            handle.metrics.set_definition_bytes(bytes);
        }
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
        self.metrics.tools_listed(clock::uptime(), |server, tool| catalogue.has(server, tool));
        self.catalogue.store(Arc::new(catalogue));
        self.rebuilt.send_modify(|change| *change = change.wrapping_add(1));
    }
}
