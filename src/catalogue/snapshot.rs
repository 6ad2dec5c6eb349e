//! [`Catalogue`]: every tool by name, immutable, with all that a call needs at hand.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::definitions::KnownTool;
use super::naming::{self, Collision};
use crate::metrics::{Metrics, ToolMetrics};
use crate::model::{
    ArgumentsLevel, AuditLevels, ExposedName, NamingMode, Replay, ResultsLevel, ServerName,
    Timestamp, ToolName, ToolOverride, ToolStatus, ToolTarget, nearest,
};
use crate::protocol::ToolDefinition;
use crate::registry::{ServerHandle, Servers};

/// One callable tool.
#[derive(Debug)]
pub struct CatalogueEntry {
    /// The name clients see.
    pub exposed: ExposedName,
    /// The server's own name for it.
    pub tool: ToolName,
    /// Its server.
    pub server: Arc<ServerHandle>,
    /// Its definition.
    pub definition: ToolDefinition,
    /// Active, or stale when the server could not be asked again.
    pub status: ToolStatus,
    /// When it was first listed.
    pub first_seen_at: Timestamp,
    /// When it was last listed.
    pub last_seen_at: Timestamp,
    /// What the operator says about running it again.
    pub replay: Option<Replay>,
    /// One attempt's time limit.
    pub timeout: Duration,
    /// What the ledger keeps of its calls.
    pub levels: (ArgumentsLevel, ResultsLevel),
    /// Its metrics.
    pub metrics: Arc<ToolMetrics>,
}

/// All tools at one moment.
#[derive(Debug, Default)]
pub struct Catalogue {
    entries: Vec<Arc<CatalogueEntry>>,
    by_exposed: HashMap<ExposedName, Arc<CatalogueEntry>>,
    by_tool: HashMap<ToolName, Vec<Arc<CatalogueEntry>>>,
    /// Every server of the registry, also those without tools.
    servers: Vec<ServerName>,
    /// The elements of `tools` in `tools/list`, ready to send.
    listing: Bytes,
    /// Names that could not be given.
    pub collisions: Vec<Collision>,
    /// Tools that wait for approval.
    pub held: Vec<(ServerName, ToolName)>,
}

/// The catalogue in force, swapped whole.
pub type CatalogueHandle = Arc<ArcSwap<Catalogue>>;

/// What a lookup found.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// One tool.
    Found(&'a Arc<CatalogueEntry>),
    /// None.
    NotFound(NotFound),
}

/// Why a name leads to no tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotFound {
    /// No tool of this name; names like it.
    Unknown {
        /// Best first.
        nearest: Vec<String>,
    },
    /// Several servers have a tool of this name.
    Ambiguous {
        /// The names that would be clear.
        candidates: Vec<String>,
    },
    /// Several servers have it and names are bare.
    Collision {
        /// The servers.
        servers: Vec<ServerName>,
    },
    /// The definition changed and waits for approval.
    Held {
        /// The server.
        server: ServerName,
    },
}

/// What building a catalogue needs beside the tools.
#[derive(Debug, Clone, Copy)]
pub(super) struct BuildSettings {
    pub(super) naming: NamingMode,
    pub(super) arguments: ArgumentsLevel,
    pub(super) results: ResultsLevel,
}

impl Catalogue {
    /// Builds a catalogue of the tools of enabled servers. `before` lends its metric handles.
    pub(super) fn build(
        servers: &Servers,
        known: &HashMap<ServerName, Vec<KnownTool>>,
        settings: BuildSettings,
        metrics: &Metrics,
        before: &Self,
    ) -> Self {
        let mut offered: Vec<(&Arc<ServerHandle>, &KnownTool)> = Vec::new();
        let mut held = Vec::new();
        for handle in servers.values().filter(|handle| handle.enabled) {
            let mut tools: Vec<&KnownTool> = known
                .get(&handle.name)
                .into_iter()
                .flatten()
                .filter(|tool| offers(handle, tool))
                .collect();
            held.extend(
                tools
                    .iter()
                    .filter(|tool| tool.row.status == ToolStatus::Held)
                    .map(|tool| (handle.name.clone(), tool.row.tool.clone())),
            );
            tools.retain(|tool| matches!(tool.row.status, ToolStatus::Active | ToolStatus::Stale));
            tools.sort_by(|a, b| a.row.tool.cmp(&b.row.tool));
            offered.extend(tools.into_iter().map(|tool| (handle, tool)));
        }
        let pairs: Vec<(ServerName, ToolName)> = offered
            .iter()
            .map(|(handle, tool)| (handle.name.clone(), tool.row.tool.clone()))
            .collect();
        let naming::Names { names, collisions } = naming::expose(&pairs, settings.naming);
        let mut catalogue = Self {
            collisions,
            held,
            servers: servers.keys().cloned().collect(),
            ..Self::default()
        };
        let mut listing = Vec::new();
        for ((handle, tool), exposed) in offered.into_iter().zip(names) {
            let Some(exposed) = exposed else { continue };
            if !listing.is_empty() {
                listing.push(b',');
            }
            listing.extend_from_slice(&tool.definition.renamed(&exposed));
            catalogue.insert(entry(handle, tool, exposed, settings, metrics, before));
        }
        catalogue.listing = listing.into();
        catalogue
    }

    fn insert(&mut self, entry: CatalogueEntry) {
        let entry = Arc::new(entry);
        self.by_exposed.insert(entry.exposed.clone(), Arc::clone(&entry));
        self.by_tool.entry(entry.tool.clone()).or_default().push(Arc::clone(&entry));
        self.entries.push(entry);
    }

    /// Every tool, by server and name.
    #[must_use]
    pub fn entries(&self) -> &[Arc<CatalogueEntry>] {
        &self.entries
    }

    /// The elements of `tools` in `tools/list`: JSON objects with commas between.
    #[must_use]
    pub const fn listing(&self) -> &Bytes {
        &self.listing
    }

    /// How many callable tools each server has.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&ServerName, usize> {
        let mut counts = BTreeMap::new();
        for entry in &self.entries {
            *counts.entry(&entry.server.name).or_insert(0) += 1;
        }
        counts
    }

    /// Finds a tool by its exposed name, by its own name at a named server, or by its own name
    /// where that is unique.
    ///
    /// A name that begins with a server's name and `__` only ever means that server, also while it
    /// is away: no other server can take its place by giving a tool such a name.
    #[must_use]
    pub fn lookup(&self, target: &ToolTarget) -> Lookup<'_> {
        let at_server = |entry: &CatalogueEntry| {
            target.server.as_ref().is_none_or(|server| entry.server.name == *server)
        };
        if let Some(entry) = self.by_exposed.get(target.tool.as_str()).filter(|e| at_server(e)) {
            return Lookup::Found(entry);
        }
        let addressed = self.addressed(target);
        let mut candidates = self
            .by_tool
            .get(addressed.map_or(target.tool.as_str(), |(_, tool)| tool))
            .into_iter()
            .flatten()
            .filter(|entry| at_server(entry))
            .filter(|entry| addressed.is_none_or(|(server, _)| entry.server.name == *server));
        match (candidates.next(), candidates.next()) {
            (Some(one), None) => Lookup::Found(one),
            (Some(one), Some(two)) => Lookup::NotFound(NotFound::Ambiguous {
                candidates: [one, two]
                    .into_iter()
                    .chain(candidates)
                    .map(|entry| entry.exposed.as_str().to_owned())
                    .collect(),
            }),
            (None, _) => Lookup::NotFound(self.not_found(target)),
        }
    }

    /// The server that a prefixed name addresses (of several, the longest), and the rest.
    fn addressed<'t>(&self, target: &'t ToolTarget) -> Option<(&ServerName, &'t str)> {
        if target.server.is_some() {
            return None;
        }
        let rest =
            |server: &ServerName| target.tool.strip_prefix(server.as_str())?.strip_prefix("__");
        self.servers
            .iter()
            .filter_map(|server| Some((server, rest(server)?)))
            .max_by_key(|(server, _)| server.as_str().len())
    }

    fn not_found(&self, target: &ToolTarget) -> NotFound {
        if let Some(collision) = self.collisions.iter().find(|c| c.name == target.tool) {
            return NotFound::Collision { servers: collision.servers.clone() };
        }
        let held = self.held.iter().find(|(server, tool)| {
            target.server.as_ref().is_none_or(|wanted| wanted == server)
                && (tool.as_str() == target.tool || format!("{server}__{tool}") == target.tool)
        });
        if let Some((server, _)) = held {
            return NotFound::Held { server: server.clone() };
        }
        let names = self
            .entries
            .iter()
            .filter(|entry| target.server.as_ref().is_none_or(|s| entry.server.name == *s))
            .map(|entry| entry.exposed.as_str());
        NotFound::Unknown { nearest: nearest(&target.tool, names, 3) }
    }
}

fn offers(handle: &ServerHandle, tool: &KnownTool) -> bool {
    let name = tool.row.tool.as_str();
    let hidden = handle.spec.tool_overrides.get(name).is_some_and(|o| o.hidden);
    handle.spec.tools.admits(name) && !hidden
}

fn entry(
    handle: &Arc<ServerHandle>,
    tool: &KnownTool,
    exposed: ExposedName,
    settings: BuildSettings,
    metrics: &Metrics,
    before: &Catalogue,
) -> CatalogueEntry {
    let said: Option<&ToolOverride> = handle.spec.tool_overrides.get(tool.row.tool.as_str());
    let levels = said.map_or_else(AuditLevels::default, |said| said.audit);
    let handles = before
        .by_exposed
        .get(&exposed)
        .filter(|old| old.server.name == handle.name)
        .map(|old| Arc::clone(&old.metrics));
    CatalogueEntry {
        metrics: handles.unwrap_or_else(|| metrics.tool(Some(&handle.name), Some(&exposed))),
        exposed,
        tool: tool.row.tool.clone(),
        server: Arc::clone(handle),
        status: tool.row.status,
        first_seen_at: tool.row.first_seen_at,
        last_seen_at: tool.row.last_seen_at,
        replay: said.and_then(|said| said.replay),
        timeout: said.and_then(|said| said.timeout).unwrap_or(handle.settings.timeout),
        levels: (
            levels.arguments.or(handle.spec.audit.arguments).unwrap_or(settings.arguments),
            levels.results.or(handle.spec.audit.results).unwrap_or(settings.results),
        ),
        definition: tool.definition.clone(),
    }
}

/// Tools by server and status, for the metrics.
pub(super) fn count(known: &[KnownTool]) -> HashMap<ToolStatus, i64> {
    let mut counts = HashMap::new();
    for tool in known {
        *counts.entry(tool.row.status).or_insert(0) += 1;
    }
    counts
}
