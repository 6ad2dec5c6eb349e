//! `switchyard servers`: the servers behind the router.
//!
//! Changes when an operator can say or see something else of a server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::breakers::{self, Breaker};
use super::client::{Ask, Client};
use super::table::{Cell, Style, Table};
use super::{CliError, Context, Status, notice, text, when};
use crate::model::{ServerName, ServerSpec, Timestamp, TransportSpec, Uptime, parse_duration};
use crate::{clock, config};

/// Arguments of `servers`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Shows the servers behind the router, adds and removes them. Changes hold at once and over restarts; servers from the configuration file are changed there.",
    after_help = "Examples:\n  switchyard servers\n  switchyard servers add time -- uvx mcp-server-time\n  switchyard servers show time"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List servers with their state
    #[command(
        after_help = "Examples:\n  switchyard servers list\n  switchyard servers list --json"
    )]
    List,
    /// Show one server: state, settings, last error, the end of its standard error
    #[command(after_help = "Examples:\n  switchyard servers show github")]
    Show {
        /// The server's name
        name: String,
    },
    /// Add a server by its address or its command
    #[command(
        after_help = "Examples:\n  switchyard servers add docs https://mcp.example.com/mcp\n  switchyard servers add gh https://api.example.com/mcp --header 'Authorization=Bearer ${TOKEN}'\n  switchyard servers add files -- npx -y @modelcontextprotocol/server-filesystem /srv/files\n  switchyard servers add db --env 'DSN=${DSN}' --cwd /srv -- ./mcp-db --read-only\n\n${VAR} is expanded by the router when it connects, so single quotes keep secrets out of the\nregistry. A command runs in the router's folder unless --cwd names another."
    )]
    Add(Add),
    /// Remove a server; its command is ended with all it started
    #[command(after_help = "Examples:\n  switchyard servers remove files")]
    Remove {
        /// The server's name
        name: String,
    },
    /// Route calls to a server again
    #[command(after_help = "Examples:\n  switchyard servers enable files")]
    Enable {
        /// The server's name
        name: String,
    },
    /// Route no calls to a server; lasts over restarts and reloads
    #[command(after_help = "Examples:\n  switchyard servers disable files")]
    Disable {
        /// The server's name
        name: String,
    },
    /// Open a new connection to a server, or start its program anew
    #[command(after_help = "Examples:\n  switchyard servers reconnect files")]
    Reconnect {
        /// The server's name
        name: String,
    },
    /// Ask a server for its tools again
    #[command(after_help = "Examples:\n  switchyard servers refresh files")]
    Refresh {
        /// The server's name
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Add {
    /// Name of the server; its tools become NAME__TOOL
    name: String,
    /// Address of its MCP endpoint
    #[arg(value_name = "URL", conflicts_with = "command")]
    address: Option<String>,
    /// How to speak to the address
    #[arg(long, value_name = "KIND", value_parser = ["http", "sse", "jsonrpc"], conflicts_with = "command")]
    transport: Option<String>,
    /// Header sent with every request
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "command")]
    header: Vec<String>,
    /// Environment variable of the command
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "address")]
    env: Vec<String>,
    /// Folder the command runs in
    #[arg(long, value_name = "PATH", conflicts_with = "address")]
    cwd: Option<PathBuf>,
    /// What the server is, for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Time limit of one attempt, as in 30s
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// Command that serves MCP on its standard input and output, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Why a server cannot be added as it was written.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// A command where an address should be.
    #[error(
        "`{0}` is not an address (http:// or https://); for a command write `servers add NAME -- {0} …`"
    )]
    NotAddress(String),
    /// A header or variable without value.
    #[error("`{0}` is not NAME=VALUE")]
    NotPair(String),
    /// Neither address nor command.
    #[error(
        "it takes an address or a command: write `servers add {0} URL`, or `servers add {0} -- COMMAND`"
    )]
    NoTarget(ServerName),
}

impl Add {
    fn spec(self) -> Result<(ServerName, ServerSpec), CliError> {
        let name = ServerName::parse(&self.name)?;
        let transport = match self.address {
            Some(url) => address(url, self.transport.as_deref(), &self.header)?,
            None => {
                let mut words = self.command.into_iter();
                let command = words.next().ok_or_else(|| AddError::NoTarget(name.clone()))?;
                let here = std::env::current_dir().unwrap_or_default();
                TransportSpec::Stdio {
                    command: local_command(command, &here),
                    args: words.collect(),
                    env: pairs(&self.env)?,
                    cwd: self.cwd.map(|cwd| here.join(cwd).to_string_lossy().into_owned()),
                }
            }
        };
        let mut spec = ServerSpec::new(transport);
        spec.description = self.description.unwrap_or_default();
        spec.knobs.timeout = self.timeout.as_deref().map(parse_duration).transpose()?;
        Ok((name, spec))
    }
}

fn address(
    url: String,
    transport: Option<&str>,
    headers: &[String],
) -> Result<TransportSpec, CliError> {
    // `${VAR}` may stand anywhere, so only what is no address at all is refused here.
    let web = url.starts_with("http://") || url.starts_with("https://") || url.starts_with("${");
    if !web {
        return Err(AddError::NotAddress(url).into());
    }
    let headers = pairs(headers)?;
    Ok(match transport {
        Some("sse") => TransportSpec::Sse { url, headers },
        Some("jsonrpc") => TransportSpec::Jsonrpc { url, headers },
        _ => TransportSpec::Http { url, headers },
    })
}

/// `NAME=VALUE`, and `Name: value` as people copy it from elsewhere.
fn pairs(words: &[String]) -> Result<BTreeMap<String, String>, AddError> {
    let read = |word: &String| {
        let (name, value) = match (word.find('='), word.find(": ")) {
            (Some(equals), Some(colon)) if colon < equals => word.split_once(": ")?,
            (Some(_), _) => word.split_once('=')?,
            (None, _) => word.split_once(": ")?,
        };
        let name = name.trim();
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    words.iter().map(|word| read(word).ok_or_else(|| AddError::NotPair(word.clone()))).collect()
}

/// A relative path means the file the user sees, not one in the router's folder.
fn local_command(command: String, here: &Path) -> String {
    let path = Path::new(&command);
    let is_relative_path = path.is_relative() && command.contains('/');
    match is_relative_path.then(|| here.join(path)) {
        Some(file) if file.exists() => file.to_string_lossy().into_owned(),
        _ => command,
    }
}

/// Where a server is, without what could be secret in it.
pub(super) fn target(spec: &TransportSpec) -> String {
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

/// A server as the API shows it.
#[derive(Debug, Deserialize)]
pub(super) struct Server {
    pub(super) name: String,
    #[serde(default)]
    transport: String,
    #[serde(default)]
    target: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    enabled: bool,
    #[serde(default)]
    source: String,
    #[serde(default)]
    pub(super) state: String,
    #[serde(default)]
    protocol_version: Option<String>,
    #[serde(default)]
    dialect: Option<String>,
    #[serde(default)]
    pub(super) tools: usize,
    #[serde(default)]
    stale: bool,
    #[serde(default)]
    last_error: Option<String>,
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
    instructions: Option<String>,
    #[serde(default)]
    stderr: Vec<String>,
}

#[derive(Deserialize)]
struct ServerList {
    servers: Vec<Server>,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    match args.action.unwrap_or(Action::List) {
        Action::List => list(context).await,
        Action::Show { name } => show(context, &name).await,
        Action::Add(add) => {
            let (name, spec) = add.spec()?;
            let client = context.client()?;
            post(&client, Method::POST, &name, &spec).await?;
            report(context, &client, name.as_str()).await
        }
        Action::Remove { name } => {
            let client = context.client()?;
            client.request(Ask::new(Method::DELETE, &["mcp", "servers", &name])).await?;
            if !context.out.is_json() {
                context.out.line(context.out.paint(format!("removed {name}"), Style::Good))?;
            }
            Ok(Status::Done)
        }
        Action::Enable { name } => {
            let client = context.client()?;
            client.request(Ask::post(&["mcp", "servers", &name, "enable"])).await?;
            report(context, &client, &name).await
        }
        Action::Disable { name } => {
            let client = context.client()?;
            let ask = Ask::post(&["mcp", "servers", &name, "disable"]);
            let answer = client.request(ask).await?;
            if context.out.is_json() {
                context.out.json(answer.text()?)?;
            } else {
                context.out.line(context.out.paint(format!("disabled {name}"), Style::Good))?;
            }
            Ok(Status::Done)
        }
        Action::Reconnect { name } => {
            let client = context.client()?;
            let ask = Ask::post(&["mcp", "servers", &name, "reconnect"]);
            client.request(ask.patient(REFRESH_PATIENCE)).await?;
            report(context, &client, &name).await
        }
        Action::Refresh { name } => {
            let client = context.client()?;
            let ask = Ask::post(&["mcp", "servers", &name, "refresh"]);
            client.request(ask.patient(REFRESH_PATIENCE)).await?;
            report(context, &client, &name).await
        }
    }
}

/// Sends a server's specification: `POST` adds it, `PUT` replaces it.
pub(super) async fn post(
    client: &Client,
    method: Method,
    name: &ServerName,
    spec: &ServerSpec,
) -> Result<(), CliError> {
    let mut body = config::server_to_json_full(spec);
    if let Some(fields) = body.as_object_mut() {
        fields.insert("name".to_owned(), name.as_str().into());
    }
    let path: &[&str] = if method == Method::PUT {
        &["mcp", "servers", name.as_str()]
    } else {
        &["mcp", "servers"]
    };
    client.request(Ask::new(method, path).json(body.to_string())).await?;
    Ok(())
}

/// A first start of `npx` or `uvx` downloads; beyond this the state is shown as it is.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
/// The router bounds a discovery by the server's own time limits.
const REFRESH_PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// Waits until a server's state is known and says it.
async fn report(context: &Context, client: &Client, name: &str) -> Result<Status, CliError> {
    let begin: Uptime = clock::uptime();
    let (server, answer) = loop {
        let answer = client.request(Ask::get(&["mcp", "servers", name])).await?;
        let server: Server = answer.parse()?;
        if server.state != "connecting" || clock::uptime().since(begin) > CONNECT_PATIENCE {
            break (server, answer);
        }
        tokio::time::sleep(POLL).await;
    };
    let (status, style, sentence) = match server.state.as_str() {
        "up" => (
            Status::Done,
            Style::Good,
            format!(
                "{name} is up: {} over {}",
                text::count(server.tools, "tool"),
                server.transport
            ),
        ),
        "connecting" => (
            Status::Done,
            Style::Warn,
            format!("{name} is still connecting; see `switchyard servers show {name}`"),
        ),
        "disabled" => (Status::Done, Style::Warn, format!("{name} is disabled")),
        _ => (
            Status::Failed,
            Style::Bad,
            format!(
                "{name} is registered but not reachable: {}",
                server.last_error.as_deref().unwrap_or("no reason known yet")
            ),
        ),
    };
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
    } else {
        context.out.line(context.out.paint(sentence, style))?;
        if status == Status::Failed {
            notice(format!(
                "the router keeps trying; see `switchyard servers show {name}`, or `switchyard servers remove {name}`"
            ));
        }
    }
    Ok(status)
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

async fn list(context: &Context) -> Result<Status, CliError> {
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

async fn show(context: &Context, name: &str) -> Result<Status, CliError> {
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
    use super::*;
    use crate::model::TransportKind;
    use clap::Parser as _;

    fn parse(words: &[&str]) -> Result<Add, clap::Error> {
        let words = ["switchyard", "servers", "add"].iter().chain(words);
        let cli = super::super::Cli::try_parse_from(words)?;
        match cli.command {
            Some(super::super::Command::Servers(Args { action: Some(Action::Add(add)) })) => {
                Ok(add)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_is_added_by_address() {
        let add = parse(&[
            "github",
            "https://api.example/mcp",
            "--header",
            "Authorization=Bearer ${TOKEN}",
            "--header",
            "X-Time: 12=30",
            "--timeout",
            "5s",
        ]);
        let (name, spec) = add.unwrap().spec().unwrap();
        assert_eq!(name.as_str(), "github");
        assert_eq!(spec.knobs.timeout, Some(Duration::from_secs(5)));
        let TransportSpec::Http { url, headers } = spec.transport else { panic!() };
        assert_eq!(url, "https://api.example/mcp");
        assert_eq!(headers["Authorization"], "Bearer ${TOKEN}");
        assert_eq!(headers["X-Time"], "12=30");
        let (_, spec) = parse(&["s", "http://h/", "--transport", "sse"]).unwrap().spec().unwrap();
        assert_eq!(spec.transport.kind(), TransportKind::Sse);
    }

    #[test]
    fn a_server_is_added_by_command() {
        let add = parse(&["files", "--env", "A=b=c", "--", "npx", "-y", "--flag", "url"]);
        let (_, spec) = add.unwrap().spec().unwrap();
        let TransportSpec::Stdio { command, args, env, cwd } = spec.transport else { panic!() };
        assert_eq!((command.as_str(), cwd), ("npx", None));
        assert_eq!(args, ["-y", "--flag", "url"]);
        assert_eq!(env["A"], "b=c");
    }

    #[test]
    fn mistakes_in_adding_are_told() {
        let error = parse(&["x"]).unwrap().spec().unwrap_err();
        assert!(error.to_string().contains("servers add x -- COMMAND"), "{error}");
        assert_eq!(error.exit_code(), 2);
        assert!(parse(&["x", "--"]).unwrap().spec().is_err(), "nothing behind it");
        assert!(parse(&["x", "http://h/", "--", "npx"]).is_err(), "both");
        assert!(parse(&["x", "http://h/", "--env", "A=b"]).is_err(), "variable for an address");
        let error = parse(&["x", "npx"]).unwrap().spec().unwrap_err().to_string();
        assert!(error.contains("servers add NAME -- npx"), "{error}");
        let error = parse(&["x y", "http://h/"]).unwrap().spec().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let error = parse(&["x", "http://h/", "--header", "nope"]).unwrap().spec().unwrap_err();
        assert!(error.to_string().contains("NAME=VALUE"), "{error}");
    }

    #[test]
    fn a_relative_command_means_the_file_the_user_sees() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("server.sh"), "").unwrap();
        let file = folder.path().join("./server.sh");
        assert_eq!(local_command("./server.sh".into(), folder.path()), file.to_string_lossy());
        assert_eq!(local_command("npx".into(), folder.path()), "npx");
        assert_eq!(local_command("./gone.sh".into(), folder.path()), "./gone.sh");
    }

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
