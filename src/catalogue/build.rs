//! From what servers listed to the entries of a catalogue: names, filters, settings.
//!
//! Changes when an entry gains something that is decided once and not with every call.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::definitions::KnownTool;
use super::lists::ServerOffers;
use super::naming::{self, Collision};
use super::offers::{PromptEntry, ResourceEntry, ResourceServer, TemplateEntry};
use super::page::OfferedList;
use super::recording::{Recorder, Recording, RecordingSettings};
use super::snapshot::{Catalogue, CatalogueEntry, Entries, ListedTool};
use super::uri::{self, Template};
use crate::metrics::Metrics;
use crate::model::{ExposedName, NamingMode, ServerName, ToolName, ToolOverride, ToolStatus};
use crate::protocol::{Listed, with_member};
use crate::registry::{ServerHandle, Servers};

/// What building a catalogue needs beside what servers listed.
#[derive(Debug, Clone, Copy)]
pub(super) struct BuildSettings<'a> {
    pub(super) naming: NamingMode,
    pub(super) recording: &'a RecordingSettings,
}

/// What enabled servers listed last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) tools: &'a HashMap<ServerName, Vec<KnownTool>>,
    pub(super) offers: &'a HashMap<ServerName, ServerOffers>,
}

/// Makes all entries. `before` lends what did not change: metric handles, and what is ready to
/// send.
pub(super) fn entries(
    servers: &Servers,
    known: Known<'_>,
    settings: BuildSettings<'_>,
    metrics: &Metrics,
    before: &Catalogue,
) -> Entries {
    let mut entries = Entries {
        naming: settings.naming,
        servers: servers.keys().cloned().collect(),
        readers: servers
            .values()
            .filter(|handle| handle.enabled)
            .map(|handle| ResourceServer {
                handle: Arc::clone(handle),
                offers: known.offers.get(&handle.name).is_some_and(ServerOffers::has_resources),
            })
            .collect(),
        ..Entries::default()
    };
    tools(&mut entries, servers, known.tools, settings, metrics, before);
    prompts(&mut entries, servers, known.offers, before);
    resources(&mut entries, servers, known.offers, before);
    templates(&mut entries, servers, known.offers, before);
    entries
}

fn tools(
    entries: &mut Entries,
    servers: &Servers,
    known: &HashMap<ServerName, Vec<KnownTool>>,
    settings: BuildSettings<'_>,
    metrics: &Metrics,
    before: &Catalogue,
) {
    let mut offered: Vec<(&Arc<ServerHandle>, &KnownTool)> = Vec::new();
    for handle in servers.values().filter(|handle| handle.enabled) {
        let mut tools: Vec<&KnownTool> = known
            .get(&handle.name)
            .into_iter()
            .flatten()
            .filter(|tool| handle.spec.offers(tool.row.tool.as_str()))
            .collect();
        entries.held.extend(
            tools
                .iter()
                .filter(|tool| tool.row.status == ToolStatus::Held)
                .map(|tool| (handle.name.clone(), tool.row.tool.clone())),
        );
        tools.retain(|tool| matches!(tool.row.status, ToolStatus::Active | ToolStatus::Stale));
        tools.sort_by(|a, b| a.row.tool.cmp(&b.row.tool));
        offered.extend(tools.into_iter().map(|tool| (handle, tool)));
    }
    let pairs: Vec<(ServerName, ToolName)> =
        offered.iter().map(|(handle, tool)| (handle.name.clone(), tool.row.tool.clone())).collect();
    let naming::Names { names, collisions } =
        naming::expose(&pairs, &entries.servers, settings.naming);
    entries.collisions.extend(collisions);
    let mut recorder = Recorder::new(settings.recording);
    for ((handle, tool), exposed) in offered.into_iter().zip(names) {
        let Some(exposed) = exposed else { continue };
        let names = [exposed.as_str(), tool.row.tool.as_str()];
        let recording = recorder.of((&handle.name, &handle.spec), names);
        entries.tools.push(Arc::new(tool_entry(handle, tool, exposed, recording, metrics, before)));
    }
}

fn tool_entry(
    handle: &Arc<ServerHandle>,
    tool: &KnownTool,
    exposed: ExposedName,
    recording: Recording,
    metrics: &Metrics,
    before: &Catalogue,
) -> CatalogueEntry {
    let said: Option<&ToolOverride> = handle.spec.tool_overrides.get(tool.row.tool.as_str());
    let old = before.exposed(&exposed).filter(|old| old.server.name == handle.name);
    let same = old.filter(|old| old.definition.raw == tool.definition.raw);
    // The transport is among the labels of what is handed on.
    let kind = handle.spec.transport.kind();
    let measured = old.filter(|old| {
        // The series of a server that was removed are gone, whoever has its name now.
        old.server.spec.transport.kind() == kind && old.server.created_at == handle.created_at
    });
    CatalogueEntry {
        metrics: measured.map_or_else(
            || metrics.tool(Some(&handle.name), Some(&exposed)),
            |old| Arc::clone(&old.metrics),
        ),
        listed: same
            .map_or_else(|| ListedTool::of(&tool.definition, &exposed), |same| same.listed.clone()),
        exposed,
        tool: tool.row.tool.clone(),
        server: Arc::clone(handle),
        status: tool.row.status,
        first_seen_at: tool.row.first_seen_at,
        last_seen_at: tool.row.last_seen_at,
        replay: said.and_then(|said| said.replay),
        breaker: handle.tool_breaker(&tool.row.tool),
        timeout: said.and_then(|said| said.timeout).unwrap_or(handle.settings.timeout),
        recording,
        definition: tool.definition.clone(),
    }
}

/// Every element of one list of every enabled server, by server and in the server's order.
fn of_all<'a>(
    servers: &'a Servers,
    known: &'a HashMap<ServerName, ServerOffers>,
    list: OfferedList,
) -> Vec<(&'a Arc<ServerHandle>, &'a Listed)> {
    servers
        .values()
        .filter(|handle| handle.enabled)
        .filter_map(|handle| Some((handle, known.get(&handle.name)?)))
        .flat_map(|(handle, offers)| offers.list(list).iter().map(move |item| (handle, item)))
        .collect()
}

fn prompts(
    entries: &mut Entries,
    servers: &Servers,
    known: &HashMap<ServerName, ServerOffers>,
    before: &Catalogue,
) {
    let mut offered = of_all(servers, known, OfferedList::Prompts);
    // What is no name of a tool is none of a prompt either.
    offered.retain(|(_, item)| ToolName::parse(&item.key).is_ok());
    let pairs: Vec<(ServerName, ToolName)> = offered
        .iter()
        .filter_map(|(handle, item)| Some((handle.name.clone(), ToolName::parse(&item.key).ok()?)))
        .collect();
    let naming::Names { names, collisions } =
        naming::expose(&pairs, &entries.servers, entries.naming);
    let of_prompts = |c: Collision| Collision { list: OfferedList::Prompts, ..c };
    entries.collisions.extend(collisions.into_iter().map(of_prompts));
    for ((handle, item), exposed) in offered.into_iter().zip(names) {
        let Some(exposed) = exposed else { continue };
        let old = before.prompt(exposed.as_str());
        let same = old.filter(|old| Arc::ptr_eq(&old.server, handle) && old.raw == item.raw);
        entries.prompts.push(same.map_or_else(
            || {
                Arc::new(PromptEntry {
                    listed: shown(item, OfferedList::Prompts, exposed.as_str()),
                    exposed: exposed.as_str().to_owned(),
                    name: item.key.clone(),
                    server: Arc::clone(handle),
                    raw: item.raw.clone(),
                })
            },
            Arc::clone,
        ));
    }
}

/// The definition under the name or address that clients see.
fn shown(item: &Listed, list: OfferedList, exposed: &str) -> Bytes {
    if item.key == exposed {
        item.raw.clone()
    } else {
        with_member(&item.raw, list.key(), exposed).into()
    }
}

/// The address under which each element is listed; `None` for one in a collision.
fn addresses(
    entries: &mut Entries,
    offered: &[(&Arc<ServerHandle>, &Listed)],
    list: OfferedList,
    address: impl Fn(&ServerName, &str) -> String,
) -> Vec<Option<String>> {
    let mut owners: BTreeMap<&str, Vec<&ServerName>> = BTreeMap::new();
    for (handle, item) in offered {
        owners.entry(&item.key).or_default().push(&handle.name);
    }
    let contested = |key: &str| owners.get(key).is_some_and(|owners| owners.len() > 1);
    match entries.naming {
        NamingMode::Prefix => {
            // An address that names one of our servers leads to that one, whoever lists it.
            let reserved = |key: &str| {
                uri::read_address(key).is_some_and(|(name, _)| servers_have(&entries.servers, name))
            };
            let exposed = |(handle, item): &(&Arc<ServerHandle>, &Listed)| {
                if contested(&item.key) || reserved(&item.key) {
                    Some(address(&handle.name, &item.key))
                } else {
                    Some(item.key.clone())
                }
            };
            offered.iter().map(exposed).collect()
        }
        NamingMode::Bare => {
            let exposed = |(_, item): &(&Arc<ServerHandle>, &Listed)| {
                (!contested(&item.key)).then(|| item.key.clone())
            };
            let exposed = offered.iter().map(exposed).collect();
            entries.collisions.extend(
                owners.into_iter().filter(|(_, owners)| owners.len() > 1).map(|(key, owners)| {
                    Collision {
                        list,
                        name: key.to_owned(),
                        servers: owners.into_iter().cloned().collect(),
                    }
                }),
            );
            exposed
        }
    }
}

fn servers_have(servers: &[ServerName], name: &str) -> bool {
    servers.iter().any(|server| server.as_str() == name)
}

fn resources(
    entries: &mut Entries,
    servers: &Servers,
    known: &HashMap<ServerName, ServerOffers>,
    before: &Catalogue,
) {
    let offered = of_all(servers, known, OfferedList::Resources);
    let exposed = addresses(entries, &offered, OfferedList::Resources, uri::address);
    for ((handle, item), exposed) in offered.into_iter().zip(exposed) {
        let Some(exposed) = exposed else { continue };
        let same = before.resource(&handle.name, &item.key).filter(|old| {
            Arc::ptr_eq(&old.server, handle) && old.raw == item.raw && old.exposed == exposed
        });
        entries.resources.push(same.map_or_else(
            || {
                Arc::new(ResourceEntry {
                    listed: shown(item, OfferedList::Resources, &exposed),
                    exposed,
                    uri: item.key.clone(),
                    server: Arc::clone(handle),
                    raw: item.raw.clone(),
                })
            },
            Arc::clone,
        ));
    }
}

fn templates(
    entries: &mut Entries,
    servers: &Servers,
    known: &HashMap<ServerName, ServerOffers>,
    before: &Catalogue,
) {
    let offered = of_all(servers, known, OfferedList::Templates);
    let exposed = addresses(entries, &offered, OfferedList::Templates, uri::address_template);
    for ((handle, item), exposed) in offered.into_iter().zip(exposed) {
        let Some(exposed) = exposed else { continue };
        let same = before.template(&handle.name, &item.key).filter(|old| {
            Arc::ptr_eq(&old.server, handle) && old.raw == item.raw && old.exposed == exposed
        });
        entries.templates.push(same.map_or_else(
            || {
                Arc::new(TemplateEntry {
                    listed: shown(item, OfferedList::Templates, &exposed),
                    exposed,
                    template: item.key.clone(),
                    server: Arc::clone(handle),
                    raw: item.raw.clone(),
                    matcher: Template::parse(&item.key),
                })
            },
            Arc::clone,
        ));
    }
}
