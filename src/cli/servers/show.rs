//! What is seen of servers: all in a table, one with everything.
//!
//! Changes when a server shows something else.

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use crate::cli::breakers::{self, Breaker};
use crate::cli::client::Ask;
use crate::cli::table::{Cell, Style, Table};
use crate::cli::{CliError, Context, Status, text, when};
use crate::model::{Timestamp, TransportSpec};

/// A server as the API shows it.
#[derive(Debug, Deserialize)]
pub(in crate::cli) struct Server {
    pub(in crate::cli) name: String,
    #[serde(default)]
    pub(super) transport: String,
    #[serde(default)]
    target: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    enabled: bool,
    #[serde(default)]
    source: String,
    #[serde(default)]
    pub(in crate::cli) state: String,
    #[serde(default)]
    protocol_version: Option<String>,
    #[serde(default)]
    dialect: Option<String>,
    #[serde(default)]
    pub(in crate::cli) tools: usize,
    #[serde(default)]
    stale: bool,
    #[serde(default)]
    pub(super) last_error: Option<String>,
    #[serde(default, deserialize_with = "when::from_api")]
    last_error_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "when::from_api")]
    last_discovery_at: Option<Timestamp>,
    #[serde(default)]
    in_flight: u64,
    #[serde(default)]
    upstream_sessions: u64,
    #[serde(default)]
    processes: Option<u64>,
    #[serde(default)]
    resident_bytes: Option<u64>,
    #[serde(default)]
    breaker: String,
    #[serde(default)]
    circuit_breakers: Vec<Breaker>,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    server_info: Value,
    #[serde(default)]
    left_out: Vec<LeftOut>,
    #[serde(default)]
    instructions: Option<String>,
    #[serde(default)]
    stderr: Vec<String>,
}

/// Elements of a list of the server that are not offered.
#[derive(Debug, Deserialize)]
struct LeftOut {
    list: String,
    count: usize,
    reason: String,
}

#[derive(Deserialize)]
struct ServerList {
    servers: Vec<Server>,
}

/// Where a server is, without what could be secret in it.
pub(in crate::cli) fn target(spec: &TransportSpec) -> String {
    match spec {
        TransportSpec::Http { url, .. }
        | TransportSpec::Sse { url, .. }
        | TransportSpec::Jsonrpc { url, .. } => match Url::parse(url) {
            Ok(mut parsed) if parsed.password().is_some() || parsed.query().is_some() => {
                let _ = parsed.set_password(parsed.password().map(|_| "***"));
                parsed.set_query(parsed.query().map(|_| "***"));
                parsed.to_string()
            }
            _ => url.clone(),
        },
        TransportSpec::Stdio { command, args, .. } => std::iter::once(command.as_str())
            .chain(args.iter().map(String::as_str))
            .fold(String::new(), |line, word| {
                if line.is_empty() { word.to_owned() } else { format!("{line} {word}") }
            }),
    }
}

fn state(server: &Server) -> Cell {
    let style = match server.state.as_str() {
        "up" => Style::Good,
        "down" => Style::Bad,
        "connecting" => Style::Warn,
        _ => Style::Dim,
    };
    Cell::new(&server.state, style)
}

pub(super) async fn list(context: &Context) -> Result<Status, CliError> {
    let client = context.client()?;
    let answer = client.request(Ask::get(&["mcp", "servers"])).await?;
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
        return Ok(Status::Done);
    }
    let ServerList { servers } = answer.parse()?;
    if servers.is_empty() {
        context.out.line(
            "no servers yet; add one with `switchyard servers add NAME URL` or `switchyard servers add NAME -- COMMAND`",
        )?;
        return Ok(Status::Done);
    }
    let mut table = Table::new()
        .whole("NAME")
        .whole("STATE")
        .whole("BREAKER")
        .number("TOOLS")
        .whole("TRANSPORT")
        .whole("PROTOCOL")
        .whole("SOURCE")
        .cut("TARGET")
        .cut("LAST ERROR");
    for server in &servers {
        let tools = format!("{}{}", server.tools, if server.stale { " stale" } else { "" });
        table.row([
            (&server.name).into(),
            state(server),
            Cell::new(&server.breaker, breakers::style(&server.breaker)),
            Cell::new(tools, if server.stale { Style::Warn } else { Style::Plain }),
            (&server.transport).into(),
            server.protocol_version.as_deref().unwrap_or_default().into(),
            (&server.source).into(),
            (&server.target).into(),
            text::first_line(server.last_error.as_deref().unwrap_or_default()).into(),
        ]);
    }
    context.out.table(&table)?;
    Ok(Status::Done)
}

pub(super) async fn show(context: &Context, name: &str) -> Result<Status, CliError> {
    let client = context.client()?;
    let answer = client.request(Ask::get(&["mcp", "servers", name])).await?;
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
        return Ok(Status::Done);
    }
    let server: Server = answer.parse()?;
    let out = &context.out;
    let zone = when::zone();
    let time = |at: Option<Timestamp>| at.map(|at| when::local(at, &zone));
    out.line(out.paint(&server.name, Style::Bold))?;
    let error = server.last_error.as_ref().map(|error| match time(server.last_error_at) {
        Some(at) => format!("{error} (at {at})"),
        None => error.clone(),
    });
    let isolated = server.spec.get("sessions").and_then(Value::as_str) == Some("isolated");
    let stale = if server.stale { " (stale: from the last list it gave)" } else { "" };
    for (label, value) in [
        ("state", Some(server.state.clone())),
        ("enabled", Some(if server.enabled { "yes" } else { "no" }.to_owned())),
        ("transport", Some(server.transport.clone())),
        ("target", Some(server.target.clone())),
        ("description", server.description.clone().filter(|text| !text.is_empty())),
        ("source", Some(server.source.clone())),
        ("protocol", server.protocol_version.clone()),
        ("dialect", server.dialect.clone()),
        ("server", shown(&server.server_info)),
        ("tools", Some(format!("{}{stale}", server.tools))),
        ("left out", left_out(&server)),
        ("breaker", breaker(&server, &zone)),
        ("in flight", Some(server.in_flight.to_string())),
        ("sessions", isolated.then(|| server.upstream_sessions.to_string())),
        (
            "processes",
            server.processes.map(|count| match server.resident_bytes {
                Some(bytes) if count > 0 => {
                    format!("{count} ({} MiB resident)", bytes.div_ceil(1 << 20))
                }
                _ => count.to_string(),
            }),
        ),
        ("last list", time(server.last_discovery_at)),
        ("last error", error),
    ] {
        if let Some(value) = value {
            out.line(format!("  {label:<12} {}", text::escape_line(&value)))?;
        }
    }
    if let Ok(spec) = serde_json::to_string_pretty(&server.spec)
        && !server.spec.is_null()
    {
        out.line(format!("\nspecification:\n{}", text::escape_block(&spec)))?;
    }
    if let Some(instructions) = server.instructions.filter(|text| !text.is_empty()) {
        out.line(format!("\ninstructions:\n{}", text::escape_block(instructions.trim_end())))?;
    }
    if !server.stderr.is_empty() {
        out.line("\nend of its standard error:")?;
        for line in &server.stderr {
            out.line(format!("  {}", text::escape_line(line)))?;
        }
    }
    Ok(Status::Done)
}

/// The server's own breaker, and those of its tools that are not simply closed.
fn breaker(server: &Server, zone: &TimeZone) -> Option<String> {
    let worth = server.circuit_breakers.iter().filter(|breaker| breaker.is_worth_a_line());
    let told: Vec<String> = worth.map(|breaker| breaker.sentence(zone)).collect();
    if told.is_empty() {
        return Some(server.breaker.clone()).filter(|state| !state.is_empty());
    }
    Some(told.join("; "))
}

/// How many elements of its lists are not offered, and why the first of each is not.
fn left_out(server: &Server) -> Option<String> {
    let told = server.left_out.iter().map(|LeftOut { list, count, reason }| match count {
        1 => format!("1 of its {list}: {reason}"),
        _ => format!("{count} of its {list}, the first: {reason}"),
    });
    let told: Vec<String> = told.collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// A value for one line: text as it is, `{name, version}` as people say it, else JSON.
fn shown(value: &Value) -> Option<String> {
    let field = |name| value.get(name).and_then(Value::as_str);
    match (value, field("name"), field("version"), field("state")) {
        (Value::Null, ..) => None,
        (Value::String(text), ..) => Some(text.clone()),
        (_, Some(name), Some(version), _) => Some(format!("{name} {version}")),
        (_, Some(word), None, _) | (_, None, _, Some(word)) => Some(word.to_owned()),
        _ => Some(value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_target_shows_no_secret() {
        let url = "https://user:pa55@h.example/mcp?key=s3cret".to_owned();
        let shown = target(&TransportSpec::Http { url, headers: BTreeMap::new() });
        assert_eq!(shown, "https://user:***@h.example/mcp?***");
        let url = "${BASE}/mcp".to_owned();
        let shown = target(&TransportSpec::Http { url, headers: BTreeMap::new() });
        assert_eq!(shown, "${BASE}/mcp");
    }
}
