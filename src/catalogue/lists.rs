//! Asks a server for one of its lists, page after page: bounded in elements, pages, bytes and time,
//! whatever the server answers.
//!
//! Changes when lists are asked for in another way, or get another bound.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::error::DiscoveryError;
use super::left_out::Problems;
use super::page::OfferedList;
use crate::model::{Era, cut_after};
use crate::pool::Lease;
use crate::protocol::{
    AnswerKind, Listed, ListedPage, OutgoingRequest, RawObject, ToolDefinition, ToolList,
};
use crate::registry::ServerHandle;
use crate::store::OfferKind;

/// No server needs more pages for what one may have.
const PAGE_LIMIT: usize = 1000;
/// All definitions of one list together, in bytes.
const BYTE_LIMIT: usize = 64 * 1024 * 1024;
/// A longer cursor is a fault of the server: in bytes.
const CURSOR_LIMIT: usize = 64 * 1024;
/// JSON-RPC: the server does not know the method.
const METHOD_NOT_FOUND: &str = "-32601";

/// What a server listed last beside its tools. Clones share the lists.
#[derive(Debug, Clone, Default)]
pub(super) struct ServerOffers {
    prompts: Arc<Vec<Listed>>,
    resources: Arc<Vec<Listed>>,
    templates: Arc<Vec<Listed>>,
    /// Whether it says that it offers resources, listed ones or not.
    pub(super) declares_resources: bool,
    /// Lists that could not be had at the last try, and why.
    pub(super) problems: Vec<(OfferedList, String)>,
}

/// The lists beside tools, and their names in the database.
pub(super) const OFFERS: [(OfferedList, OfferKind); 3] = [
    (OfferedList::Prompts, OfferKind::Prompt),
    (OfferedList::Resources, OfferKind::Resource),
    (OfferedList::Templates, OfferKind::Template),
];

impl ServerOffers {
    /// One of the lists; that of tools is kept elsewhere, and empty here.
    pub(super) fn list(&self, list: OfferedList) -> &[Listed] {
        match list {
            OfferedList::Tools => &[],
            OfferedList::Prompts => &self.prompts,
            OfferedList::Resources => &self.resources,
            OfferedList::Templates => &self.templates,
        }
    }

    /// Puts a new list in the place of the old one.
    pub(super) fn replace(&mut self, list: OfferedList, items: Vec<Listed>) {
        let place = match list {
            OfferedList::Tools => return,
            OfferedList::Prompts => &mut self.prompts,
            OfferedList::Resources => &mut self.resources,
            OfferedList::Templates => &mut self.templates,
        };
        *place = Arc::new(items);
    }

    /// Whether it may be asked for resources that nobody lists.
    pub(super) fn has_resources(&self) -> bool {
        self.declares_resources || !self.resources.is_empty() || !self.templates.is_empty()
    }
}

/// A whole list.
#[derive(Debug)]
pub(super) struct Walked<T> {
    /// Its elements, in the server's order.
    pub(super) items: Vec<T>,
    /// How long every page of it may be kept; `None` where one does not say so.
    pub(super) ttl: Option<Duration>,
    /// What is wrong with elements that are left out.
    pub(super) left_out: Problems,
}

impl<T> Walked<T> {
    /// The list of a server that does not have it: stays so until a new connection.
    pub(super) fn empty() -> Self {
        Self { items: Vec::new(), ttl: Some(Duration::MAX), left_out: Problems::default() }
    }
}

/// One page of any list.
struct PageRead<T> {
    items: Vec<T>,
    problems: Vec<String>,
    next_cursor: Option<String>,
    ttl: Option<Duration>,
}

/// The server's tools; at most `limit`.
pub(super) async fn tools(
    server: &ServerHandle,
    lease: &Lease,
    limit: usize,
) -> Result<Walked<ToolDefinition>, DiscoveryError> {
    let read = |result: &Bytes| {
        let page = ToolList::parse(result).map_err(|error| error.to_string())?;
        Ok(PageRead {
            items: page.tools,
            problems: page.problems.iter().map(ToString::to_string).collect(),
            next_cursor: page.next_cursor,
            ttl: page.ttl,
        })
    };
    walk(server, lease, OfferedList::Tools, limit, read, |tool| tool.raw.len()).await
}

/// The server's prompts, resources or templates; at most `limit`. What is there twice counts once.
pub(super) async fn offers(
    server: &ServerHandle,
    lease: &Lease,
    list: OfferedList,
    limit: usize,
) -> Result<Walked<Listed>, DiscoveryError> {
    let read = |result: &Bytes| {
        let page = ListedPage::parse(result, list.member(), list.key())
            .map_err(|error| error.to_string())?;
        Ok(PageRead {
            items: page.items,
            problems: page.problems.iter().map(ToString::to_string).collect(),
            next_cursor: page.next_cursor,
            ttl: page.ttl,
        })
    };
    let mut walked =
        walk(server, lease, list, limit, read, |item| item.raw.len() + item.key.len()).await?;
    let mut seen = HashSet::new();
    walked.items.retain(|item| seen.insert(item.key.clone()));
    Ok(walked)
}

async fn walk<T>(
    server: &ServerHandle,
    lease: &Lease,
    list: OfferedList,
    limit: usize,
    read: impl Fn(&Bytes) -> Result<PageRead<T>, String>,
    size: impl Fn(&T) -> usize,
) -> Result<Walked<T>, DiscoveryError> {
    let method = list.method();
    let bad = |problem: String| DiscoveryError::BadList { method, problem };
    let mut walked = Walked::empty();
    let mut bytes = 0_usize;
    let mut cursors: HashSet<String> = HashSet::new();
    let mut cursor: Option<String> = None;
    for _ in 0..PAGE_LIMIT {
        let request = OutgoingRequest { cursor: cursor.as_deref(), ..OutgoingRequest::new(method) };
        let answer = match lease.request(&request, server.settings.timeout, None).await {
            Ok(answer) => answer,
            Err(error) => {
                if !lease.is_alive() {
                    server.invalidate(lease);
                }
                return Err(DiscoveryError::of(&error, error.http_status()));
            }
        };
        if answer.kind == AnswerKind::Error {
            // Servers declare resources and know no templates.
            if list != OfferedList::Tools && cursor.is_none() && is_unknown_method(&answer.value) {
                return Ok(Walked::empty());
            }
            let error = cut_after(&String::from_utf8_lossy(&answer.value), 300);
            return Err(DiscoveryError::Refused { method, error });
        }
        let page = read(&answer.value).map_err(bad)?;
        page.problems.into_iter().for_each(|problem| walked.left_out.add(problem));
        bytes = bytes.saturating_add(page.items.iter().map(&size).sum());
        walked.items.extend(page.items);
        walked.ttl = walked.ttl.zip(page.ttl).map(|(whole, page)| whole.min(page));
        if walked.items.len() > limit {
            let noun = list.noun();
            return Err(bad(format!(
                "it lists more than {limit} {noun}s (limits.tools_per_server)"
            )));
        }
        if bytes > BYTE_LIMIT {
            return Err(bad(format!("its list has more than {} MiB", BYTE_LIMIT >> 20)));
        }
        let Some(next) = page.next_cursor else {
            if lease.peer().version.era() == Era::Legacy {
                walked.ttl = None;
            }
            return Ok(walked);
        };
        if next.len() > CURSOR_LIMIT {
            return Err(bad(format!("a cursor has more than {} KiB", CURSOR_LIMIT >> 10)));
        }
        if !cursors.insert(next.clone()) {
            return Err(bad("its pages go in a circle: a cursor came twice".to_owned()));
        }
        cursor = Some(next);
    }
    Err(bad(format!("its list has more than {PAGE_LIMIT} pages")))
}

fn is_unknown_method(error: &[u8]) -> bool {
    std::str::from_utf8(error)
        .ok()
        .and_then(|text| RawObject::parse(text).ok())
        .and_then(|object| object.get("code").map(|code| code.get() == METHOD_NOT_FOUND))
        .unwrap_or(false)
}
