//! [`ViewCatalogue`]: the part of the catalogue that one view offers.
//!
//! Changes when what a view shows, or keeps to itself, changes. Which tools are in it is
//! [`ViewSpec::admits`]'s matter.

use std::sync::Arc;

use super::naming::Collision;
use super::page::OfferedList;
use super::snapshot::{Catalogue, Entries};
use crate::metrics::ViewMetrics;
use crate::model::{ServerName, ViewSpec};

/// A view as it is now. Its entries and their exposed names are those of the whole catalogue.
#[derive(Debug)]
pub struct ViewCatalogue {
    /// What the operator says about it.
    pub spec: ViewSpec,
    /// Its tools, as a catalogue of their own: what is not in it is unknown there.
    pub catalogue: Arc<Catalogue>,
    /// Its metrics.
    pub metrics: Arc<ViewMetrics>,
}

impl ViewCatalogue {
    /// The part of `whole` that `spec` admits. Prompts and resources are in a view when their
    /// server is.
    pub(super) fn of(whole: &Entries, spec: &ViewSpec, metrics: Arc<ViewMetrics>) -> Self {
        let has = |server: &ServerName| spec.admits_server(server);
        let tools = whole.tools.iter().filter(|entry| {
            spec.admits(&entry.server.name, entry.tool.as_str(), entry.exposed.as_str())
        });
        let held = whole.held.iter().filter(|(server, tool)| {
            spec.admits(server, tool.as_str(), &format!("{server}__{tool}"))
        });
        let entries = Entries {
            tools: tools.cloned().collect(),
            prompts: whole.prompts.iter().filter(|e| has(&e.server.name)).cloned().collect(),
            resources: whole.resources.iter().filter(|e| has(&e.server.name)).cloned().collect(),
            templates: whole.templates.iter().filter(|e| has(&e.server.name)).cloned().collect(),
            readers: whole.readers.iter().filter(|r| has(&r.handle.name)).cloned().collect(),
            naming: whole.naming,
            // All of them: a prefixed name means its server here as well. It only cannot be had.
            servers: whole.servers.clone(),
            collisions: whole.collisions.iter().filter_map(|found| within(found, spec)).collect(),
            held: held.cloned().collect(),
        };
        Self { spec: spec.clone(), catalogue: Arc::new(Catalogue::assemble(entries)), metrics }
    }

    /// Whether it may be said why a tool of this name is not there: only of one that would be in
    /// the view if its server gave it. `asked` begins with the server's name and `__`.
    #[must_use]
    pub fn tells(&self, server: &ServerName, asked: &str) -> bool {
        let own = asked.strip_prefix(server.as_str()).and_then(|rest| rest.strip_prefix("__"));
        own.is_some_and(|own| self.spec.admits(server, own, asked))
    }
}

/// A collision as far as it lies within the view: a server outside is not named, and with one
/// server left there is nothing to tell apart.
fn within(collision: &Collision, spec: &ViewSpec) -> Option<Collision> {
    let seen = |server: &&ServerName| match collision.list {
        OfferedList::Tools => spec.admits(server, &collision.name, &collision.name),
        OfferedList::Prompts | OfferedList::Resources | OfferedList::Templates => {
            spec.admits_server(server)
        }
    };
    let servers: Vec<ServerName> = collision.servers.iter().filter(seen).cloned().collect();
    (servers.len() > 1).then(|| Collision { servers, ..collision.clone() })
}
