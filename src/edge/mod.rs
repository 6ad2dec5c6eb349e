//! Everything that listens: the front door, the MCP endpoint, the REST API.
//!
//! Changes when what is served changes. Handlers parse, call the router or the registry, and
//! render; they decide nothing about calls.
//!
//! Order at the front door, for every route: Host, Origin, authentication, size, envelope,
//! agreement of headers and body, the rest.

mod api;
mod auth;
mod detach;
mod door;
mod error;
mod inflight;
mod mcp;
mod origin;
mod sessions;
mod tally;
mod trace;
mod workers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::audit::{AuditQuery, AuditWriter, Retention};
use crate::catalogue::{Catalogue, Discovery};
use crate::error::ErrorCode;
use crate::metrics::Metrics;
use crate::model::{
    ExposedName, ServerName, SessionScope, ToolName, ViewName, cut_after, did_you_mean, nearest,
};
use crate::registry::Registry;
use crate::router::{Notice, Router};
use crate::store::Store;

pub use auth::{KeyRing, NewKey};
pub use door::{FrontDoor, Listening};
pub use mcp::Listeners;
pub use sessions::{SessionLimits, Sessions};
pub use tally::Tally;

use error::ApiError;

/// What the front door is told by the configuration.
#[derive(Debug, Clone)]
pub struct EdgeSettings {
    /// Who needs a key.
    pub auth: crate::config::AuthMode,
    /// Whether the listen address is a loopback one.
    pub loopback: bool,
    /// Hosts accepted beside loopback names and the address itself, in lower case.
    pub allowed_hosts: Vec<String>,
    /// Origins accepted, in lower case.
    pub allowed_origins: Vec<String>,
    /// Largest body in bytes.
    pub body_limit: usize,
    /// Programs that the API may start, by id.
    pub stdio_commands: std::collections::BTreeMap<String, crate::config::StdioCommand>,
    /// The configuration file, for messages.
    pub config_path: Option<PathBuf>,
}

/// A request to read the configuration again.
#[derive(Debug)]
pub struct ReloadRequest {
    /// Who asks.
    pub actor: Arc<str>,
    /// For what came of it.
    pub answer: oneshot::Sender<Result<ReloadReport, String>>,
}

/// What a reload did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ReloadReport {
    /// Servers in the registry now.
    pub servers: usize,
    /// What the file said that is accepted and has no effect.
    pub notes: Vec<String>,
}

/// What every handler shares.
#[derive(Debug)]
pub struct Edge {
    /// Routes calls.
    pub router: Arc<Router>,
    /// Servers.
    pub registry: Arc<Registry>,
    /// Tools.
    pub discovery: Arc<Discovery>,
    /// Reads the ledger.
    pub ledger: AuditQuery,
    /// Keeps the ledger in its bounds, and removes on demand.
    pub retention: Arc<Retention>,
    /// Writes the ledger.
    pub audit: AuditWriter,
    /// The database.
    pub store: Store,
    /// Keys in force.
    pub keys: KeyRing,
    /// Open sessions of legacy clients.
    pub sessions: Sessions,
    /// Clients that listen.
    pub listeners: Arc<Listeners>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What is counted on its way to the ledger.
    pub tally: Tally,
    /// Settings in force.
    pub settings: ArcSwap<EdgeSettings>,
    /// Asks the owner for a reload.
    pub reload: mpsc::Sender<ReloadRequest>,
    /// Work that outlives its request.
    pub tasks: TaskTracker,
    /// Calls of clients that went away and must still be finished.
    pub calls: TaskTracker,
    /// Ends streams at shutdown.
    pub stop: tokio_util::sync::CancellationToken,
    /// Ends calls that did not end by themselves at shutdown.
    pub abort: tokio_util::sync::CancellationToken,
}

/// How long an API request that adds or changes a server waits for its first answer.
const FIRST_CONTACT: Duration = Duration::from_secs(5);

/// The catalogue as somebody sees it: the whole, or a view. Not to be held across an await.
struct Seen {
    whole: arc_swap::Guard<Arc<Catalogue>>,
    part: Option<Arc<Catalogue>>,
}

impl std::ops::Deref for Seen {
    type Target = Catalogue;

    fn deref(&self) -> &Catalogue {
        self.part.as_ref().unwrap_or(&self.whole)
    }
}

impl Edge {
    /// What is there for requests at `view`. Of a view that is gone nothing is.
    fn catalogue(&self, view: Option<&ViewName>) -> Seen {
        let whole = self.discovery.catalogue().load();
        let part = view.map(|name| {
            whole.views().get(name).map(|view| Arc::clone(&view.catalogue)).unwrap_or_default()
        });
        Seen { whole, part }
    }

    /// The view of this name.
    ///
    /// # Errors
    /// 404 when there is none, with the nearest names.
    fn view(&self, name: &str) -> Result<ViewName, ApiError> {
        let whole = self.discovery.catalogue().load();
        if let Some((name, _)) = whole.views().get_key_value(name) {
            return Ok(name.clone());
        }
        let nearest = nearest(name, whole.views().keys().map(ViewName::as_str), 3);
        let shown = cut_after(name, 64);
        let detail = format!("there is no view `{shown}`{}", did_you_mean(&nearest));
        Err(ApiError { nearest, ..ApiError::new(ErrorCode::NotFound, detail) })
    }

    /// Hands on what a server said on its own: to the session it belongs to, or to all who listen.
    pub fn heard(&self, server: &ServerName, scope: Option<&SessionScope>, notice: Notice) {
        match (scope, notice) {
            (_, Notice::ListChanged(kind)) => self.discovery.notice(server, kind),
            (None, Notice::ResourceUpdated { uri }) => {
                let catalogue = self.discovery.catalogue().load();
                self.listeners.resource_updated(&catalogue, server, &uri);
            }
            (Some(SessionScope::Session(hash)), notice) => {
                if let Some(session) = self.sessions.by_hash(hash) {
                    mcp::tell_session(&session, notice);
                }
            }
            // What it says belongs to nobody.
            _ => {}
        }
    }

    /// The exposed name of a server's tool, where it is callable.
    fn exposed_name(&self, server: &str, tool: &ToolName) -> Option<ExposedName> {
        self.discovery
            .catalogue()
            .load()
            .entries()
            .iter()
            .find(|entry| entry.server.name.as_str() == server && entry.tool == *tool)
            .map(|entry| entry.exposed.clone())
    }
}
