//! The form in which desktop clients and editors keep their servers: `mcpServers`.
//!
//! Clients add keys of their own, so unknown keys are noted here and not refused.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_yaml::Spanned;

use super::error::ConfigError;
use super::expand;
use super::knobs::RawServer;
use super::reader::Reader;
use super::scalar::{Field, Key, Node, from_yaml};
use super::server_to_json_full;
use crate::model::{ServerName, ServerSpec};

/// Reads the servers of a client's configuration file (`mcpServers`, or an editor's `servers`), or
/// of one of ours. Each comes with notes on what is not taken over. Variables need not be set:
/// references stay as written.
///
/// # Errors
/// [`ConfigError`] when the file cannot be read or a server makes no sense.
pub fn read(path: &Path) -> Result<Vec<(ServerName, ServerSpec, Vec<String>)>, ConfigError> {
    let file = path.display().to_string();
    let text = text_of(path)?;
    let yaml = |error: serde_yaml::Error| ConfigError::from_yaml(&file, &text, &error);
    let root: Spanned<Node> = from_yaml(&text).map_err(yaml)?;
    let Node::Map(root) = &root.value else {
        return Err(ConfigError::plain(&file, "expected a mapping with `mcpServers`"));
    };
    let mut reader = Reader::without_variables(&text);
    let mut taken = BTreeMap::new();
    let mut found = Vec::new();
    let ours = root.contains_key("mcp_servers");
    if ours {
        // Of our own form everything is taken over, and nothing else is understood.
        let ours: OurFile = from_yaml(&text).map_err(yaml)?;
        for (key, raw) in ours.mcp_servers.iter().flatten() {
            match ServerName::parse(&key.text) {
                Err(error) => reader.problem(&key.at, error.to_string()),
                Ok(name) => {
                    if let Some(spec) = reader.server(&key.text, &raw.value, &raw.referenced) {
                        taken.insert(name.clone(), spec.clone());
                        found.push((name, spec, std::mem::take(&mut reader.notes)));
                    }
                }
            }
        }
    }
    let theirs = ["mcpServers", "servers"].into_iter().find_map(|key| root.get(key));
    match theirs.map(|servers| &servers.value) {
        Some(Node::Map(servers)) => {
            for (name, node) in servers {
                if let Some((name, spec)) = server(&mut reader, &taken, name, node) {
                    taken.insert(name.clone(), spec.clone());
                    found.push((name, spec, std::mem::take(&mut reader.notes)));
                }
            }
        }
        _ if ours => {}
        _ => {
            return Err(ConfigError::plain(
                &file,
                "there is no mapping `mcpServers` (or `servers`) in this file",
            ));
        }
    }
    if reader.problems.is_empty() {
        Ok(found)
    } else {
        Err(ConfigError::new(&file, &text, reader.problems))
    }
}

/// A file of ours, of which only the servers matter here.
#[derive(Deserialize)]
struct OurFile {
    mcp_servers: Option<BTreeMap<Key, Spanned<RawServer>>>,
}

/// The text of a configuration file; of JSON without its comments, which editors allow.
pub(super) fn text_of(path: &Path) -> Result<String, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::unreadable(path, &error))?;
    let text = text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned);
    let json = path.extension().is_some_and(|extension| {
        extension.eq_ignore_ascii_case("json") || extension.eq_ignore_ascii_case("jsonc")
    });
    Ok(if json { without_comments(&text) } else { text })
}

/// JSON in which comments and tabs are blanks, so that everything keeps its line and column.
fn without_comments(text: &str) -> String {
    #[derive(PartialEq)]
    enum Inside {
        Code,
        Text,
        Line,
        Block,
    }
    let mut out = String::with_capacity(text.len());
    let mut inside = Inside::Code;
    let mut letters = text.chars().peekable();
    while let Some(c) = letters.next() {
        let next = letters.peek().copied();
        match (&inside, c) {
            (Inside::Text, '\\') => {
                out.push(c);
                out.extend(letters.next());
                continue;
            }
            (Inside::Text, '"') => inside = Inside::Code,
            (Inside::Code, '"') => inside = Inside::Text,
            (Inside::Code, '/') if next == Some('/') => inside = Inside::Line,
            (Inside::Code, '/') if next == Some('*') => {
                inside = Inside::Block;
                letters.next();
                out.push(' ');
            }
            (Inside::Line, '\n') => inside = Inside::Code,
            (Inside::Block, '*') if next == Some('/') => {
                inside = Inside::Code;
                letters.next();
                out.push_str("  ");
                continue;
            }
            _ => {}
        }
        let blank = match inside {
            Inside::Code => c == '\t',
            Inside::Text => false,
            Inside::Line | Inside::Block => c != '\n',
        };
        out.push(if blank { ' ' } else { c });
    }
    out
}

/// Servers as a configuration file of ours.
#[must_use]
pub fn to_yaml(servers: &[(ServerName, ServerSpec)]) -> String {
    let mut out = String::from("mcp_servers:\n");
    for (name, spec) in servers {
        // JSON is YAML, so values need no form of their own.
        out.push_str(&format!("  {}:\n", serde_json::Value::from(name.as_str())));
        if let serde_json::Value::Object(members) = server_to_json_full(spec) {
            for (key, value) in members {
                out.push_str(&format!("    {key}: {value}\n"));
            }
        }
    }
    if servers.is_empty() {
        out.push_str("  {}\n");
    }
    out
}

/// One server of the client form, under a name that is free and allowed.
pub(super) fn server(
    reader: &mut Reader<'_>,
    taken: &BTreeMap<ServerName, ServerSpec>,
    name: &str,
    node: &Spanned<Node>,
) -> Option<(ServerName, ServerSpec)> {
    let Node::Map(members) = &node.value else {
        reader.problem(
            &node.referenced,
            format!("server `{name}`: expected a mapping, found {}", node.value.kind()),
        );
        return None;
    };
    let clean = clean_name(name, taken)?;
    if clean.as_str() != name {
        reader.notes.push(format!("server `{name}` is called `{clean}` here"));
    }
    let mut raw = RawServer::default();
    let before = reader.problems.len();
    for (key, value) in members {
        take(reader, &mut raw, name, key, value);
    }
    if reader.problems.len() > before {
        // What is missing now is what was misspelt.
        return None;
    }
    let spec = reader.server(name, &raw, &node.referenced)?;
    Some((clean, spec))
}

fn take(
    reader: &mut Reader<'_>,
    raw: &mut RawServer,
    server: &str,
    key: &str,
    value: &Spanned<Node>,
) {
    match key {
        "type" | "transport" => raw.transport = Some(field(value)),
        "url" | "serverUrl" | "httpUrl" => raw.url = Some(field(value)),
        "command" => raw.command = Some(field(value)),
        "cwd" => raw.cwd = Some(field(value)),
        "description" => raw.description = Some(field(value)),
        "enabled" => raw.enabled = Some(field(value)),
        "disabled" => {
            let enabled = Node::Bool(value.value != Node::Bool(true));
            raw.enabled = Some(Spanned::new(enabled, value.referenced, value.defined).into());
        }
        "args" => match &value.value {
            Node::List(items) => raw.args = Some(items.iter().map(field).collect()),
            other => reader.problem(
                &value.referenced,
                format!("`args` of server `{server}` must be a list, not {}", other.kind()),
            ),
        },
        "env" | "headers" => match &value.value {
            Node::Map(map) => {
                let map = map.iter().map(|(name, value)| (name.clone(), field(value))).collect();
                *(if key == "env" { &mut raw.env } else { &mut raw.headers }) = Some(map);
            }
            Node::Null => {}
            other => reader.problem(
                &value.referenced,
                format!("`{key}` of server `{server}` must be a mapping, not {}", other.kind()),
            ),
        },
        other if let Some(known) = meant(other) => reader.problem(
            &value.referenced,
            format!("unknown key `{other}` of server `{server}`; did you mean `{known}`?"),
        ),
        other => reader.notes.push(format!(
            "`{other}` of server `{server}` is another program's setting and has no effect here"
        )),
    }
}

fn field<T>(value: &Spanned<Node>) -> Field<T> {
    let mut value = value.clone();
    if let Node::Text(text) = &mut value.value {
        *text = expand::with_plain_dollars(text);
    }
    Field::from(value)
}

/// The known key that an unknown one is a slip of: one letter away, or two in a long one.
fn meant(key: &str) -> Option<&'static str> {
    const KNOWN: [&str; 13] = [
        "type",
        "transport",
        "url",
        "serverUrl",
        "httpUrl",
        "command",
        "cwd",
        "description",
        "enabled",
        "disabled",
        "args",
        "env",
        "headers",
    ];
    let allowed = if key.len() >= 6 { 2 } else { 1 };
    KNOWN
        .into_iter()
        .map(|known| (strsim::osa_distance(&key.to_lowercase(), &known.to_lowercase()), known))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// A free name made of allowed characters.
fn clean_name(name: &str, taken: &BTreeMap<ServerName, ServerSpec>) -> Option<ServerName> {
    let clean: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '-' })
        .take(60)
        .collect();
    let clean = clean.trim_start_matches(['_', '-', '.']);
    let clean = if clean.is_empty() { "server" } else { clean };
    (1..1000)
        .map(|n| if n == 1 { clean.to_owned() } else { format!("{clean}-{n}") })
        .filter_map(|name| ServerName::parse(&name).ok())
        .find(|name| !taken.contains_key(name))
}
