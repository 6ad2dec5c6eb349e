//! What a configuration changes of the servers there are, as it stands on record.
//!
//! Changes when another change of a server belongs on record, or is told otherwise.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::config::{server_to_json, server_to_json_full};
use crate::model::{ServerName, ServerSpec, Timestamp};
use crate::store::{EntryRow, ServerRow, ServerUpsert, Upserted};

/// Why the servers of a configuration are brought in, and who wants it.
#[derive(Debug, Clone, Copy)]
pub struct Cause<'a> {
    /// `start`, or what a reload came from.
    pub why: &'a str,
    /// Who asked: a caller's name, or `router`.
    pub actor: &'a str,
}

/// The entries of what was done: servers that were added or changed, and those that are gone from the file.
pub(super) fn entries(
    before: &[ServerRow],
    upserts: &[(ServerUpsert, Upserted)],
    gone: &[ServerName],
    cause: Cause<'_>,
    at: Timestamp,
) -> Vec<EntryRow> {
    let known = |name: &ServerName| before.iter().find(|row| row.name == *name);
    let entry = |name: &ServerName, kind: &str, mut detail: Value| {
        if let Some(detail) = detail.as_object_mut() {
            detail.insert("why".to_owned(), cause.why.into());
            detail.insert("source".to_owned(), "config".into());
        }
        EntryRow {
            seq: 0,
            at,
            kind: kind.to_owned(),
            actor: cause.actor.to_owned(),
            subject: name.as_str().to_owned(),
            detail: detail.to_string(),
        }
    };
    let written = upserts.iter().filter(|(_, done)| *done != Upserted::Unchanged);
    let written = written.map(|(server, _)| {
        let spec = server_to_json(&server.spec);
        match known(&server.name).filter(|row| !row.retired) {
            None => entry(&server.name, "server.added", json!({ "spec": spec })),
            Some(row) => {
                let changed = changed_keys(&row.spec, &server.spec);
                let detail = json!({ "changed": changed, "spec": spec });
                entry(&server.name, "server.changed", detail)
            }
        }
    });
    let gone = gone.iter().map(|name| {
        let spec = known(name).map(|row| server_to_json(&row.spec));
        entry(name, "server.removed", json!({ "spec": spec }))
    });
    written.chain(gone).collect()
}

/// The keys whose values differ, those within `headers` and the like by their names: what they are may be
/// secret.
#[must_use]
pub fn changed_keys(before: &ServerSpec, after: &ServerSpec) -> BTreeSet<String> {
    let (before, after) = (server_to_json_full(before), server_to_json_full(after));
    let mut keys = BTreeSet::new();
    differing(&before, &after, "", &mut keys);
    keys
}

fn differing(before: &Value, after: &Value, path: &str, keys: &mut BTreeSet<String>) {
    if before == after {
        return;
    }
    let empty = Value::Object(serde_json::Map::new());
    // One that is not there has no members.
    let members = |value: &Value| match value {
        Value::Null => empty.as_object().cloned(),
        value => value.as_object().cloned(),
    };
    let (Some(old), Some(new)) = (members(before), members(after)) else {
        keys.insert(path.to_owned());
        return;
    };
    if old.is_empty() && new.is_empty() {
        keys.insert(path.to_owned());
    }
    for key in old.keys().chain(new.keys()) {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let [old, new] = [&old, &new].map(|members| members.get(key).unwrap_or(&Value::Null));
        differing(old, new, &path, keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Environment};

    fn spec(yaml: &str) -> ServerSpec {
        let yaml = format!("mcp_servers: {{s: {yaml}}}");
        let config = config::parse(&yaml, "x", &Environment::new(|_| None)).unwrap();
        config.servers.into_values().next().unwrap()
    }

    #[test]
    fn what_changed_is_told_by_its_keys() {
        let one = spec("{url: 'http://h/', headers: {X-Key: hunter2hunter2, X-Same: a}}");
        for (other, expected) in [
            (
                "{url: 'http://h/', headers: {X-Key: other-secret, X-Same: a}}",
                &["headers.X-Key"][..],
            ),
            ("{url: 'http://h/'}", &["headers.X-Key", "headers.X-Same"]),
            (
                "{url: 'http://i/', timeout: 3, headers: {X-Key: hunter2hunter2, X-Same: a}}",
                &["timeout", "url"],
            ),
            (
                "{command: sh, args: [-c, id]}",
                &["args", "command", "headers.X-Key", "headers.X-Same", "transport", "url"],
            ),
        ] {
            let changed = changed_keys(&one, &spec(other));
            assert_eq!(changed.iter().collect::<Vec<_>>(), expected, "{other}");
        }
        assert!(changed_keys(&one, &one.clone()).is_empty());
    }
}
