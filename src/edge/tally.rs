//! [`Tally`]: what comes so often that not each of it is put on record alone: refusals at the door, and reads
//! of what is kept of payloads.
//!
//! Changes when something else is counted on its way to the ledger, or the bounds of that change.
//!
//! Who is turned away costs the ledger next to nothing, however often: alike ones are one entry with their
//! number. The first comes within a second; while more come, the time between entries doubles, up to a
//! minute.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Edge;
use super::auth::RequestContext;
use crate::audit::AuditWriter;
use crate::clock;
use crate::metrics::AuthFailure;
use crate::model::{CallId, Timestamp, Uptime};
use crate::store::{Digester, EntryRow, Store};

/// The kinds of such entries.
const DENIED: &str = "auth.denied";
const READ: &str = "audit.read";

/// Between what happens and its entry, when little does and when much does.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// Entries at once; what is unlike all of these is counted together.
const ENTRIES: usize = 64;
/// Addresses, and texts or ids, that an entry has.
const ADDRESSES: usize = 8;
const SAID: usize = 16;
/// What stands for what is not told apart.
const OTHER: &str = "_other";

/// The paths that there are, as entries name them: nothing that a caller makes up.
const PATHS: [&str; 40] = [
    "/livez",
    "/readyz",
    "/metrics",
    "/mcp",
    "/mcp/v/{view}",
    "/mcp/call",
    "/mcp/servers",
    "/mcp/servers/{name}",
    "/mcp/servers/{name}/tools",
    "/mcp/servers/{name}/enable",
    "/mcp/servers/{name}/disable",
    "/mcp/servers/{name}/refresh",
    "/mcp/servers/{name}/reconnect",
    "/mcp/tools",
    "/mcp/tools/{name}/history",
    "/mcp/tools/{name}/approve",
    "/mcp/circuit-breakers",
    "/mcp/circuit-breakers/history",
    "/mcp/circuit-breakers/{name}",
    "/mcp/circuit-breakers/{name}/history",
    "/mcp/circuit-breakers/{name}/reset",
    "/mcp/circuit-breakers/{name}/open",
    "/mcp/circuit-breakers/{name}/close",
    "/mcp/views",
    "/mcp/health",
    "/mcp/audit",
    "/mcp/audit/events",
    "/mcp/audit/export",
    "/mcp/audit/tail",
    "/mcp/audit/stats",
    "/mcp/audit/purge",
    "/mcp/audit/erase",
    "/mcp/audit/{id}",
    "/mcp/slo",
    "/mcp/slo/rules",
    "/admin/reload",
    "/admin/keys",
    "/admin/keys/{id}",
    "/",
    OTHER,
];

/// Counts what is to be on record.
#[derive(Debug, Default)]
pub struct Tally {
    waiting: Mutex<HashMap<Key, Count>>,
    some: Notify,
}

/// What is alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    kind: &'static str,
    actor: Arc<str>,
    subject: &'static str,
    method: &'static str,
    reason: &'static str,
}

/// How often it was, and some of what was different.
#[derive(Debug)]
struct Count {
    count: u64,
    first: Timestamp,
    last: Timestamp,
    from: Vec<IpAddr>,
    said: Vec<Said>,
}

/// What differed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Said {
    /// As it was said: taken free of secrets when it is put on record.
    Words(String),
    /// What was searched for.
    Text(SearchedText),
}

/// What is put on record of a text that somebody searched for: whoever looks for what is to be erased
/// must not put it on record by that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct SearchedText {
    characters: usize,
    /// Keyed: a plain one of something short can be guessed.
    digest: String,
}

impl SearchedText {
    pub(super) fn new(text: &str, digester: &Digester) -> Self {
        let digest = digester.searched(text).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { characters: text.chars().count(), digest }
    }
}

/// A request that is turned away.
pub(super) struct Denied<'a> {
    /// Who makes it, as far as known.
    pub(super) caller: &'a Arc<str>,
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    /// Where it comes from; `None` over the admin socket.
    pub(super) peer: Option<IpAddr>,
    /// What it is told.
    pub(super) says: &'a str,
}

impl Edge {
    /// Counts a request that is turned away, for the metrics and the ledger.
    pub(super) fn denied(&self, why: AuthFailure, denied: &Denied<'_>) {
        self.metrics.auth_failure(why);
        let key = Key {
            kind: DENIED,
            actor: Arc::clone(denied.caller),
            subject: path(denied.path),
            method: method(denied.method),
            reason: why.as_str(),
        };
        self.tally.count(key, denied.peer, Said::Words(denied.says.to_owned()));
    }

    /// Counts that somebody saw what is kept of the payloads of the call `which`.
    pub(super) fn payloads_read(&self, context: &RequestContext, which: CallId) {
        self.read(context, "call", Said::Words(which.to_string()));
    }

    /// Counts that somebody searched for words in payloads.
    pub(super) fn payloads_searched(&self, context: &RequestContext, text: &str) {
        self.read(context, "search", Said::Text(SearchedText::new(text, &self.store.digester())));
    }

    fn read(&self, context: &RequestContext, how: &'static str, said: Said) {
        let key = Key {
            kind: READ,
            actor: Arc::clone(&context.caller.name),
            subject: "payloads",
            method: "GET",
            reason: how,
        };
        self.tally.count(key, context.via.address(), said);
    }
}

impl Tally {
    fn count(&self, mut key: Key, from: Option<IpAddr>, said: Said) {
        let now = clock::timestamp();
        let mut waiting = self.waiting.lock();
        if waiting.len() >= ENTRIES && !waiting.contains_key(&key) {
            key = Key { actor: OTHER.into(), subject: OTHER, method: OTHER, reason: OTHER, ..key };
        }
        let count = match waiting.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Count {
                count: 0,
                first: now,
                last: now,
                from: Vec::new(),
                said: Vec::new(),
            }),
        };
        count.count += 1;
        count.last = now;
        if let Some(from) = from
            && count.from.len() < ADDRESSES
            && !count.from.contains(&from)
        {
            count.from.push(from);
        }
        if count.said.len() < SAID && !count.said.contains(&said) {
            count.said.push(said);
        }
        if waiting.len() == 1 {
            self.some.notify_one();
        }
    }

    /// Puts what was counted on record, until `stop`; what is left then is for [`Self::write`].
    pub async fn run(&self, store: &Store, audit: &AuditWriter, stop: CancellationToken) {
        let mut wait = SHORTEST;
        let mut written: Option<Uptime> = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.some.notified() => {}
            }
            let goes_on = written.is_some_and(|at| clock::uptime().since(at) < wait);
            wait = if goes_on { (wait * 2).min(LONGEST) } else { SHORTEST };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            self.write(store, audit);
            written = Some(clock::uptime());
        }
    }

    /// Puts what was counted on record now.
    pub fn write(&self, store: &Store, audit: &AuditWriter) {
        let counted = std::mem::take(&mut *self.waiting.lock());
        for (key, mut count) in counted {
            for said in &mut count.said {
                if let Said::Words(words) = said {
                    *words = audit.redacted(words);
                }
            }
            store.note(entry(&key, &count));
        }
    }
}

fn entry(key: &Key, count: &Count) -> EntryRow {
    let said = if key.kind == READ { "which" } else { "told" };
    let detail = json!({
        "reason": key.reason,
        "method": key.method,
        "count": count.count,
        "first": count.first.to_string(),
        "last": count.last.to_string(),
        "from": count.from,
        said: count.said,
    });
    EntryRow {
        seq: 0,
        at: count.last,
        kind: key.kind.to_owned(),
        actor: key.actor.as_ref().to_owned(),
        subject: key.subject.to_owned(),
        detail: detail.to_string(),
    }
}

/// The path that a request is for, as the table of routes has it.
fn path(path: &str) -> &'static str {
    // One that is written out comes before one with a name in it.
    let is_exact = |known: &&&str| **known == path;
    let fits = |known: &&&str| {
        let (mut known, mut asked) = (known.split('/'), path.split('/'));
        loop {
            match (known.next(), asked.next()) {
                (None, None) => return true,
                (Some(known), Some(asked)) if known == asked || known.starts_with('{') => {}
                _ => return false,
            }
        }
    };
    PATHS.iter().find(is_exact).or_else(|| PATHS.iter().find(fits)).copied().unwrap_or(OTHER)
}

fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_its_name() {
        for (asked, expected) in [
            ("/admin/keys", "/admin/keys"),
            ("/admin/keys/0193", "/admin/keys/{id}"),
            ("/mcp/audit/export", "/mcp/audit/export"),
            ("/mcp/audit/0193e0a4", "/mcp/audit/{id}"),
            ("/mcp/v/a", "/mcp/v/{view}"),
            ("/mcp/circuit-breakers/history", "/mcp/circuit-breakers/history"),
            ("/mcp/circuit-breakers/up/reset", "/mcp/circuit-breakers/{name}/reset"),
            ("/wp-login.php", OTHER),
            ("/mcp/servers/a/b/c", OTHER),
        ] {
            assert_eq!(path(asked), expected);
        }
        let table = include_str!("api/mod.rs");
        let routes = table.split(".route(").skip(1).filter_map(|rest| rest.split('"').nth(1));
        let mut count = 0;
        for route in routes {
            assert!(PATHS.contains(&route), "{route}");
            count += 1;
        }
        assert!(count > 30, "{count}");
    }

    #[test]
    fn alike_ones_are_one_and_there_are_not_many() {
        let tally = Tally::default();
        let key = |actor: &str| Key {
            kind: DENIED,
            actor: actor.into(),
            subject: "/mcp",
            method: "POST",
            reason: "invalid_key",
        };
        for number in 0..1000_u32 {
            let from = IpAddr::from(number.to_be_bytes());
            tally.count(key("unauthenticated"), Some(from), Said::Words("no".to_owned()));
            tally.count(key(&number.to_string()), None, Said::Words(number.to_string()));
        }
        let waiting = tally.waiting.lock();
        assert_eq!(waiting.len(), ENTRIES + 1);
        let one = &waiting[&key("unauthenticated")];
        assert_eq!((one.count, one.from.len(), one.said.len()), (1000, ADDRESSES, 1));
        let rest = waiting.iter().find(|(key, _)| key.subject == OTHER).unwrap().1;
        assert_eq!((rest.count, rest.said.len()), (1000 - (ENTRIES as u64 - 1), SAID));
        let (key, _) = waiting.iter().next().unwrap();
        let entry = entry(key, one);
        let detail: serde_json::Value = serde_json::from_str(&entry.detail).unwrap();
        assert_eq!((&detail["count"], &detail["from"][0]), (&1000.into(), &"0.0.0.0".into()));
    }
}
