//! What the ledger is told to keep, in a form that the ledger itself can have: a change of that is on record.
//!
//! Changes when the configuration says something new of it.

use serde_json::{Map, Value, json};

use crate::config::{Config, server_to_json};

/// All that the configuration says about what is kept of calls. Holds no secret.
pub(super) fn of(config: &Config) -> Value {
    let audit = &config.audit;
    let mut told = json!({
        "arguments": audit.arguments,
        "results": audit.results,
        "redact": audit.redact.iter().chain(&audit.pointers).collect::<Vec<_>>(),
    });
    let servers: Map<String, Value> = config
        .servers
        .iter()
        .filter_map(|(name, spec)| {
            Some((name.as_str().to_owned(), of_server(&server_to_json(spec))?))
        })
        .collect();
    if let Some(members) = told.as_object_mut() {
        if !audit.levels.is_empty() {
            members.insert("levels".to_owned(), json!(audit.levels));
        }
        if !servers.is_empty() {
            members.insert("servers".to_owned(), servers.into());
        }
    }
    told
}

/// What a server's specification says of it, if it does.
fn of_server(spec: &Value) -> Option<Value> {
    let mut told = Map::new();
    if let Some(own) = spec.get("audit") {
        told.insert("audit".to_owned(), own.clone());
    }
    let overrides = spec.get("tool_overrides").and_then(Value::as_object);
    let tools: Map<String, Value> = overrides
        .into_iter()
        .flatten()
        .filter_map(|(tool, said)| Some((tool.clone(), said.get("audit")?.clone())))
        .collect();
    if !tools.is_empty() {
        told.insert("tools".to_owned(), tools.into());
    }
    (!told.is_empty()).then(|| told.into())
}

/// What is different, by key, with what it was and what it is; `None` when nothing is.
pub(super) fn changed(before: &Value, after: &Value) -> Option<Value> {
    let keys = [before, after].into_iter().filter_map(Value::as_object).flat_map(Map::keys);
    let mut told = Map::new();
    for key in keys {
        let (from, to) = (before.get(key), after.get(key));
        if from != to {
            told.insert(key.clone(), json!({ "from": from, "to": to }));
        }
    }
    (!told.is_empty()).then(|| told.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Environment};

    fn told(yaml: &str) -> Value {
        of(&config::parse(yaml, "x", &Environment::new(|_| None)).unwrap())
    }

    #[test]
    fn what_changed_is_told_and_nothing_else() {
        let before = told("audit: {redact: [pin, /a]}\nmcp_servers: {s: {url: 'http://h'}}\n");
        assert_eq!(before["redact"], json!(["pin", "/a"]));
        assert_eq!(before.get("servers"), None);
        let after = told(
            "audit: {redact: [pin, /a], levels: [{caller: x, arguments: full}]}
mcp_servers:
  s: {url: 'http://h', timeout: 3, tool_overrides: {t: {audit: {redact: [/b]}}, u: {hidden: true}}}
",
        );
        let changed = changed(&before, &after).unwrap();
        assert_eq!(
            changed,
            json!({
                "levels": { "from": null, "to": [{ "caller": "x", "arguments": "full" }] },
                "servers": { "from": null, "to": { "s": { "tools": { "t": { "redact": ["/b"] } } } } },
            })
        );
        assert_eq!(super::changed(&after, &after), None);
    }
}
