//! [`Catalogue`]: everything that servers offer by name, immutable, with all that a call needs at
//! hand.
//!
//! Changes when a call needs to know more of a tool, or a list takes another form.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::definitions::KnownTool;
use super::naming::Collision;
use super::offers::{OfferIndex, PromptEntry, ResourceEntry, ResourceServer, TemplateEntry};
use super::page::{CursorError, Listing, OfferedList, Page};
use super::recording::Recording;
use super::view::ViewCatalogue;
use crate::metrics::{Metrics, ToolMetrics};
use crate::model::{
    Era, ExposedName, NamingMode, Replay, ServerName, ServerSpec, Timestamp, ToolName, ToolStatus,
    ToolTarget, ViewName, ViewSpec, nearest,
};
use crate::protocol::ToolDefinition;
use crate::registry::{ServerBreaker, ServerHandle};

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
    /// Its own breaker, beside its server's, where the specification wants one.
    pub breaker: Option<Arc<ServerBreaker>>,
    /// One attempt's time limit.
    pub timeout: Duration,
    /// What the ledger keeps of its calls.
    pub recording: Recording,
    /// Its metrics.
    pub metrics: Arc<ToolMetrics>,
    /// Its definition as clients see it.
    pub listed: ListedTool,
}

impl CatalogueEntry {
    /// Whether it is declared to change nothing, and that may be believed: the operator does not say
    /// otherwise, and believes the server's annotations or says that a call may be repeated.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        let trusted = match self.replay {
            Some(Replay::Unsafe) => false,
            Some(Replay::Safe) => true,
            None => self.server.spec.trust_annotations,
        };
        self.definition.read_only && trusted
    }
}

/// A tool's definition under its exposed name, ready to send. The two share their bytes when they
/// are the same.
#[derive(Debug, Clone)]
pub struct ListedTool {
    /// For clients of the legacy era.
    pub legacy: Bytes,
    /// For clients of the modern era.
    pub modern: Bytes,
}

/// What a catalogue is made of.
#[derive(Debug, Clone, Default)]
pub struct Entries {
    /// Callable tools, by server and name.
    pub tools: Vec<Arc<CatalogueEntry>>,
    /// Prompts, by server and place in its list.
    pub prompts: Vec<Arc<PromptEntry>>,
    /// Resources, by server and place in its list.
    pub resources: Vec<Arc<ResourceEntry>>,
    /// Templates, by server and place in its list.
    pub templates: Vec<Arc<TemplateEntry>>,
    /// Servers that may be asked for resources, also those that list none, by name.
    pub readers: Vec<ResourceServer>,
    /// How names were made.
    pub naming: NamingMode,
    /// Every server of the registry: what begins with the name of one means that one, also where
    /// nothing of it is to be had.
    pub servers: Vec<ServerName>,
    /// Names that could not be given.
    pub collisions: Vec<Collision>,
    /// Tools that wait for approval.
    pub held: Vec<(ServerName, ToolName)>,
}

/// All that can be called, got and read at one moment.
#[derive(Debug, Default)]
pub struct Catalogue {
    entries: Entries,
    by_exposed: HashMap<ExposedName, Arc<CatalogueEntry>>,
    by_tool: HashMap<ToolName, Vec<Arc<CatalogueEntry>>>,
    pub(super) offers: OfferIndex,
    listings: Listings,
    /// Parts of this catalogue, made with it.
    views: BTreeMap<ViewName, ViewCatalogue>,
}

/// Lists, ready to send.
#[derive(Debug, Default)]
struct Listings {
    tools_legacy: Listing,
    tools: Listing,
    prompts: Listing,
    resources: Listing,
    templates: Listing,
}

impl Listings {
    const fn of(&self, list: OfferedList, era: Era) -> &Listing {
        match (list, era) {
            (OfferedList::Tools, Era::Legacy) => &self.tools_legacy,
            (OfferedList::Tools, Era::Modern) => &self.tools,
            (OfferedList::Prompts, _) => &self.prompts,
            (OfferedList::Resources, _) => &self.resources,
            (OfferedList::Templates, _) => &self.templates,
        }
    }
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

/// Why a name or address leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotFound {
    /// Nothing of this name; names like it.
    Unknown {
        /// Best first.
        nearest: Vec<String>,
    },
    /// Several servers have one of this name.
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

impl ListedTool {
    /// A definition under its exposed name, as each era has it.
    pub(super) fn of(definition: &ToolDefinition, exposed: &ExposedName) -> Self {
        let modern = Bytes::from(definition.listed(exposed, Era::Modern));
        let legacy = Bytes::from(definition.listed(exposed, Era::Legacy));
        let legacy = if legacy == modern { modern.clone() } else { legacy };
        Self { legacy, modern }
    }

    const fn of_era(&self, era: Era) -> &Bytes {
        match era {
            Era::Legacy => &self.legacy,
            Era::Modern => &self.modern,
        }
    }
}

impl Catalogue {
    /// Makes a catalogue of these entries, which may be a part of another one's; their order is
    /// the order of the lists.
    #[must_use]
    pub fn assemble(entries: Entries) -> Self {
        let mut by_exposed = HashMap::with_capacity(entries.tools.len());
        let mut by_tool: HashMap<ToolName, Vec<Arc<CatalogueEntry>>> = HashMap::new();
        for entry in &entries.tools {
            by_exposed.insert(entry.exposed.clone(), Arc::clone(entry));
            by_tool.entry(entry.tool.clone()).or_default().push(Arc::clone(entry));
        }
        let tools = |era| Listing::new(entries.tools.iter().map(move |e| e.listed.of_era(era)));
        let same = entries.tools.iter().all(|entry| entry.listed.legacy == entry.listed.modern);
        let modern = tools(Era::Modern);
        let legacy = if same { modern.clone() } else { tools(Era::Legacy) };
        let listings = Listings {
            tools_legacy: legacy,
            tools: modern,
            prompts: Listing::new(entries.prompts.iter().map(|entry| &entry.listed)),
            resources: Listing::new(entries.resources.iter().map(|entry| &entry.listed)),
            templates: Listing::new(entries.templates.iter().map(|entry| &entry.listed)),
        };
        let offers = OfferIndex::of(&entries);
        Self { by_exposed, by_tool, listings, offers, entries, views: BTreeMap::new() }
    }

    /// The same with its views; `before` lends their metric handles.
    pub(super) fn with_views(
        mut self,
        specs: &BTreeMap<ViewName, ViewSpec>,
        metrics: &Metrics,
        before: &Self,
    ) -> Self {
        let views = specs.iter().map(|(name, spec)| {
            let handles = before.views.get(name).map(|old| Arc::clone(&old.metrics));
            let handles = handles.unwrap_or_else(|| metrics.view(name));
            (name.clone(), ViewCatalogue::of(&self.entries, spec, handles))
        });
        self.views = views.collect();
        self
    }

    /// The views, by name.
    #[must_use]
    pub const fn views(&self) -> &BTreeMap<ViewName, ViewCatalogue> {
        &self.views
    }

    /// What it was made of; a part of it can be assembled to a smaller catalogue.
    #[must_use]
    pub const fn parts(&self) -> &Entries {
        &self.entries
    }

    /// One page of a list, as clients of `era` see it. A list of at most `page_size` elements is
    /// one page; its bytes are ready and not copied.
    ///
    /// # Errors
    /// When `cursor` is not what an earlier page of the same list said.
    pub fn page(
        &self,
        list: OfferedList,
        era: Era,
        cursor: Option<&str>,
        page_size: usize,
    ) -> Result<Page, CursorError> {
        self.listings.of(list, era).page(list, cursor, page_size)
    }

    /// The same as long as clients see the same in a list.
    #[must_use]
    pub const fn fingerprint(&self, list: OfferedList) -> [u8; 8] {
        // A legacy client never sees more than a modern one.
        self.listings.of(list, Era::Modern).fingerprint()
    }

    /// The tool with this exposed name.
    pub(super) fn exposed(&self, exposed: &ExposedName) -> Option<&Arc<CatalogueEntry>> {
        self.by_exposed.get(exposed)
    }

    /// Whether this server has a tool with this exposed name.
    pub(super) fn has(&self, server: &str, exposed: &str) -> bool {
        self.by_exposed.get(exposed).is_some_and(|entry| entry.server.name.as_str() == server)
    }

    /// Every tool, by server and name.
    #[must_use]
    pub fn entries(&self) -> &[Arc<CatalogueEntry>] {
        &self.entries.tools
    }

    /// The elements of `tools` in `tools/list`: JSON objects with commas between.
    #[must_use]
    pub const fn listing(&self) -> &Bytes {
        self.listings.tools.bytes()
    }

    /// How many callable tools each server has.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&ServerName, usize> {
        let mut counts = BTreeMap::new();
        for entry in &self.entries.tools {
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
        let addressed = match target.server {
            Some(_) => None,
            None => self.addressed(&target.tool),
        };
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
    pub(super) fn addressed<'t>(&self, name: &'t str) -> Option<(&ServerName, &'t str)> {
        let rest = |server: &ServerName| name.strip_prefix(server.as_str())?.strip_prefix("__");
        self.entries
            .servers
            .iter()
            .filter_map(|server| Some((server, rest(server)?)))
            .max_by_key(|(server, _)| server.as_str().len())
    }

    fn not_found(&self, target: &ToolTarget) -> NotFound {
        let collides = |c: &&Collision| c.list == OfferedList::Tools && c.name == target.tool;
        if let Some(collision) = self.entries.collisions.iter().find(collides) {
            return NotFound::Collision { servers: collision.servers.clone() };
        }
        let held = self.entries.held.iter().find(|(server, tool)| {
            target.server.as_ref().is_none_or(|wanted| wanted == server)
                && (tool.as_str() == target.tool || format!("{server}__{tool}") == target.tool)
        });
        if let Some((server, _)) = held {
            return NotFound::Held { server: server.clone() };
        }
        let names = self
            .entries
            .tools
            .iter()
            .filter(|entry| target.server.as_ref().is_none_or(|s| entry.server.name == *s))
            .map(|entry| entry.exposed.as_str());
        NotFound::Unknown { nearest: nearest(&target.tool, names, 3) }
    }
}

/// Bytes that a model reads of the tools of each server: names, descriptions and schemas, as listed.
pub(super) fn listed_bytes(tools: &[Arc<CatalogueEntry>]) -> HashMap<&ServerName, u64> {
    let mut bytes = HashMap::new();
    for tool in tools {
        let description = tool.definition.description.as_deref().map_or(0, str::len);
        let read = tool.exposed.as_str().len() + description + tool.definition.schema_bytes;
        *bytes.entry(&tool.server.name).or_insert(0) += read as u64;
    }
    bytes
}

/// Tools that a server offers by status, for the metrics.
pub(super) fn count(spec: &ServerSpec, known: &[KnownTool]) -> HashMap<ToolStatus, i64> {
    let mut counts = HashMap::new();
    for tool in known.iter().filter(|tool| spec.offers(tool.row.tool.as_str())) {
        *counts.entry(tool.row.status).or_insert(0) += 1;
    }
    counts
}
