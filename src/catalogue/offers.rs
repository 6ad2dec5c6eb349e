//! Prompts, resources and templates in a [`Catalogue`]: their entries, and which server a name or
//! address leads to.
//!
//! Changes when the rules for finding them do.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::page::OfferedList;
use super::snapshot::{Catalogue, Entries, NotFound};
use super::uri::{self, Patience, Template};
use crate::model::{NamingMode, ServerName, nearest};
use crate::registry::ServerHandle;

/// One prompt.
#[derive(Debug)]
pub struct PromptEntry {
    /// The name clients see.
    pub exposed: String,
    /// The server's own name for it.
    pub name: String,
    /// Its server.
    pub server: Arc<ServerHandle>,
    /// Its definition, byte for byte as its server lists it.
    pub raw: Bytes,
    /// Its definition as clients see it.
    pub listed: Bytes,
}

/// One resource.
#[derive(Debug)]
pub struct ResourceEntry {
    /// The address clients see: the server's own, unless several servers list it.
    pub exposed: String,
    /// The server's own address for it.
    pub uri: String,
    /// Its server.
    pub server: Arc<ServerHandle>,
    /// Its definition, byte for byte as its server lists it.
    pub raw: Bytes,
    /// Its definition as clients see it.
    pub listed: Bytes,
}

/// One template of addresses.
#[derive(Debug)]
pub struct TemplateEntry {
    /// The template clients see: the server's own, unless several servers list it.
    pub exposed: String,
    /// The server's own template.
    pub template: String,
    /// Its server.
    pub server: Arc<ServerHandle>,
    /// Its definition, byte for byte as its server lists it.
    pub raw: Bytes,
    /// Its definition as clients see it.
    pub listed: Bytes,
    /// Finds addresses made of it; `None` when it is no template that we understand.
    pub(super) matcher: Option<Template>,
}

/// An enabled server that may be asked for resources.
#[derive(Debug, Clone)]
pub struct ResourceServer {
    /// The server.
    pub handle: Arc<ServerHandle>,
    /// Whether it is known to offer resources, listed ones or not.
    pub offers: bool,
}

/// Where a resource is.
#[derive(Debug, Clone)]
pub struct ResourceRoute {
    /// The server to ask.
    pub server: Arc<ServerHandle>,
    /// The server's own address for it, or its own template.
    pub uri: String,
}

/// What lookups go by.
#[derive(Debug, Default)]
pub(super) struct OfferIndex {
    prompts: HashMap<String, Arc<PromptEntry>>,
    prompts_by_name: HashMap<String, Vec<Arc<PromptEntry>>>,
    resources: HashMap<String, Vec<Arc<ResourceEntry>>>,
    templates: HashMap<String, Vec<Arc<TemplateEntry>>>,
    /// Who lists addresses or templates of a scheme.
    schemes: HashMap<String, BTreeSet<ServerName>>,
}

impl OfferIndex {
    pub(super) fn of(entries: &Entries) -> Self {
        let mut index = Self::default();
        for entry in &entries.prompts {
            index.prompts.insert(entry.exposed.clone(), Arc::clone(entry));
            index.prompts_by_name.entry(entry.name.clone()).or_default().push(Arc::clone(entry));
        }
        for entry in &entries.resources {
            index.note_scheme(&entry.uri, &entry.server.name);
            index.resources.entry(entry.uri.clone()).or_default().push(Arc::clone(entry));
        }
        for entry in &entries.templates {
            index.note_scheme(&entry.template, &entry.server.name);
            index.templates.entry(entry.template.clone()).or_default().push(Arc::clone(entry));
        }
        for collision in &entries.collisions {
            if matches!(collision.list, OfferedList::Resources | OfferedList::Templates) {
                for server in &collision.servers {
                    index.note_scheme(&collision.name, server);
                }
            }
        }
        index
    }

    fn note_scheme(&mut self, uri: &str, server: &ServerName) {
        if let Some(scheme) = uri::scheme(uri) {
            let servers = self.schemes.entry(scheme).or_default();
            if !servers.contains(server) {
                servers.insert(server.clone());
            }
        }
    }
}

impl Catalogue {
    /// Every prompt, by server and place in its list.
    #[must_use]
    pub fn prompts(&self) -> &[Arc<PromptEntry>] {
        &self.parts().prompts
    }

    /// Every resource, by server and place in its list.
    #[must_use]
    pub fn resources(&self) -> &[Arc<ResourceEntry>] {
        &self.parts().resources
    }

    /// Every template, by server and place in its list.
    #[must_use]
    pub fn templates(&self) -> &[Arc<TemplateEntry>] {
        &self.parts().templates
    }

    /// The prompt with this exposed name.
    pub(super) fn prompt(&self, exposed: &str) -> Option<&Arc<PromptEntry>> {
        self.offers.prompts.get(exposed)
    }

    /// A server's resource by its own address.
    pub(super) fn resource(&self, server: &ServerName, uri: &str) -> Option<&Arc<ResourceEntry>> {
        self.offers.resources.get(uri)?.iter().find(|entry| entry.server.name == *server)
    }

    /// A server's template as it lists it.
    pub(super) fn template(&self, server: &ServerName, text: &str) -> Option<&Arc<TemplateEntry>> {
        self.offers.templates.get(text)?.iter().find(|entry| entry.server.name == *server)
    }

    /// Finds a prompt by its exposed name, by its own name behind a server's, or by its own name
    /// where that is unique; by the same rules as [`Catalogue::lookup`].
    ///
    /// # Errors
    /// Why there is none.
    pub fn find_prompt(&self, name: &str) -> Result<&Arc<PromptEntry>, NotFound> {
        if let Some(entry) = self.offers.prompts.get(name) {
            return Ok(entry);
        }
        let addressed = self.addressed(name);
        let mut candidates = self
            .offers
            .prompts_by_name
            .get(addressed.map_or(name, |(_, own)| own))
            .into_iter()
            .flatten()
            .filter(|entry| addressed.is_none_or(|(server, _)| entry.server.name == *server));
        match (candidates.next(), candidates.next()) {
            (Some(one), None) => Ok(one),
            (Some(one), Some(two)) => Err(NotFound::Ambiguous {
                candidates: [one, two]
                    .into_iter()
                    .chain(candidates)
                    .map(|entry| entry.exposed.clone())
                    .collect(),
            }),
            (None, _) => Err(self.collision(OfferedList::Prompts, name).unwrap_or_else(|| {
                let names = self.prompts().iter().map(|entry| entry.exposed.as_str());
                NotFound::Unknown { nearest: nearest(name, names, 3) }
            })),
        }
    }

    /// Finds the server of a resource, listed or not.
    ///
    /// An address that names a server (`naming: prefix`) leads there. Else: who lists the address;
    /// whose template could have made it, of several the one with the most literal characters; who
    /// alone lists addresses of its scheme; who alone offers resources.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find_resource(&self, uri: &str) -> Result<ResourceRoute, NotFound> {
        if let Some(found) = self.addressed_resource(uri) {
            return found;
        }
        let listed = self.offers.resources.get(uri).into_iter().flatten();
        let listed = listed.map(|entry| (&entry.server, &entry.exposed, &entry.uri));
        if let Some(found) = only(listed) {
            return found;
        }
        if let Some(collision) = self.collision(OfferedList::Resources, uri) {
            return Err(collision);
        }
        if let Some(found) = self.by_template(uri) {
            return found;
        }
        if let Some(server) = self.by_scheme(uri).or_else(|| self.only_reader()) {
            return Ok(ResourceRoute { server: Arc::clone(server), uri: uri.to_owned() });
        }
        let uris = self.resources().iter().map(|entry| entry.exposed.as_str());
        Err(NotFound::Unknown { nearest: nearest(uri, uris, 3) })
    }

    /// Whether an address is listed as it is, and not made of a template or merely of a known kind.
    #[must_use]
    pub fn lists_resource(&self, uri: &str) -> bool {
        let own = self.read_address(uri).map(|(_, own)| own);
        [Some(uri), own.as_deref()]
            .into_iter()
            .flatten()
            .any(|uri| self.offers.resources.contains_key(uri))
    }

    /// Finds the server of a template, by the text that clients see or by the server's own; the
    /// route's `uri` is the server's own.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find_template(&self, template: &str) -> Result<ResourceRoute, NotFound> {
        if let Some((server, own)) = self.read_address(template) {
            let entry =
                self.template(server, &own).ok_or_else(|| self.unknown_template(template))?;
            return Ok(ResourceRoute {
                server: Arc::clone(&entry.server),
                uri: entry.template.clone(),
            });
        }
        let listed = self.offers.templates.get(template).into_iter().flatten();
        only(listed.map(|entry| (&entry.server, &entry.exposed, &entry.template))).unwrap_or_else(
            || {
                Err(self
                    .collision(OfferedList::Templates, template)
                    .unwrap_or_else(|| self.unknown_template(template)))
            },
        )
    }

    fn unknown_template(&self, template: &str) -> NotFound {
        let templates = self.templates().iter().map(|entry| entry.exposed.as_str());
        NotFound::Unknown { nearest: nearest(template, templates, 3) }
    }

    fn collision(&self, list: OfferedList, name: &str) -> Option<NotFound> {
        let found = self.parts().collisions.iter().find(|c| c.list == list && c.name == name)?;
        Some(NotFound::Collision { servers: found.servers.clone() })
    }

    /// The server that an address names, if it is one of ours, and the server's own address.
    fn read_address<'a>(&self, uri: &'a str) -> Option<(&ServerName, std::borrow::Cow<'a, str>)> {
        if self.parts().naming != NamingMode::Prefix {
            return None;
        }
        let (name, own) = uri::read_address(uri)?;
        let server = self.parts().servers.iter().find(|server| server.as_str() == name)?;
        Some((server, own))
    }

    fn addressed_resource(&self, uri: &str) -> Option<Result<ResourceRoute, NotFound>> {
        let (name, own) = self.read_address(uri)?;
        let reader = self.parts().readers.iter().find(|reader| reader.handle.name == *name);
        Some(match reader {
            Some(reader) => {
                Ok(ResourceRoute { server: Arc::clone(&reader.handle), uri: own.into_owned() })
            }
            None => Err(NotFound::Unknown { nearest: Vec::new() }),
        })
    }

    fn by_template(&self, uri: &str) -> Option<Result<ResourceRoute, NotFound>> {
        let mut patience = Patience::new();
        let mut best: Option<usize> = None;
        let mut owners: Vec<&Arc<ServerHandle>> = Vec::new();
        for entry in self.templates() {
            let Some(template) = &entry.matcher else { continue };
            if best.is_some_and(|best| template.literals() < best)
                || !template.matches(uri, &mut patience)
            {
                continue;
            }
            if best.is_none_or(|best| template.literals() > best) {
                owners.clear();
                best = Some(template.literals());
            }
            if owners.iter().all(|owner| owner.name != entry.server.name) {
                owners.push(&entry.server);
            }
        }
        if patience.is_exhausted() {
            // Some of the templates were not tried; to guess would be to ask the wrong server.
            return Some(Err(NotFound::Unknown { nearest: Vec::new() }));
        }
        let collided = self.parts().collisions.iter().find(|collision| {
            collision.list == OfferedList::Templates
                && Template::parse(&collision.name).is_some_and(|template| {
                    best.is_none_or(|best| template.literals() >= best)
                        && template.matches(uri, &mut patience)
                })
        });
        if let Some(collision) = collided {
            return Some(Err(NotFound::Collision { servers: collision.servers.clone() }));
        }
        match (owners.as_slice(), self.parts().naming) {
            ([], _) => None,
            ([one], _) => Some(Ok(ResourceRoute { server: Arc::clone(one), uri: uri.to_owned() })),
            (several, NamingMode::Prefix) => Some(Err(NotFound::Ambiguous {
                candidates: several.iter().map(|s| uri::address(&s.name, uri)).collect(),
            })),
            (several, NamingMode::Bare) => Some(Err(NotFound::Collision {
                servers: several.iter().map(|server| server.name.clone()).collect(),
            })),
        }
    }

    fn by_scheme(&self, uri: &str) -> Option<&Arc<ServerHandle>> {
        let servers = self.offers.schemes.get(&uri::scheme(uri)?)?;
        let only = servers.first().filter(|_| servers.len() == 1)?;
        let reader = self.parts().readers.iter().find(|reader| reader.handle.name == *only)?;
        Some(&reader.handle)
    }

    fn only_reader(&self) -> Option<&Arc<ServerHandle>> {
        let mut readers = self.parts().readers.iter().filter(|reader| reader.offers);
        let only = readers.next()?;
        readers.next().is_none().then_some(&only.handle)
    }
}

/// The only one of these, the clear addresses of several, or `None` of none.
fn only<'a>(
    mut listed: impl Iterator<Item = (&'a Arc<ServerHandle>, &'a String, &'a String)>,
) -> Option<Result<ResourceRoute, NotFound>> {
    let (server, exposed, uri) = listed.next()?;
    let mut candidates: Vec<String> = listed.map(|(_, exposed, _)| exposed.clone()).collect();
    Some(if candidates.is_empty() {
        Ok(ResourceRoute { server: Arc::clone(server), uri: uri.clone() })
    } else {
        candidates.insert(0, exposed.clone());
        Err(NotFound::Ambiguous { candidates })
    })
}
