//! Connecting to every server of a configuration once, without a database: `check --connect`.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio_util::task::TaskTracker;

use crate::catalogue::expose;
use crate::clock;
use crate::config::Config;
use crate::model::{ServerName, ServerSettings, ServerSpec, ToolName};
use crate::pool::{Children, ConnectionPool, HttpClient, Urgency};
use crate::protocol::{AnswerKind, OutgoingRequest, RawObject, ToolDefinition, ToolList};
use crate::redact::{Payload, Redactor, Secrets, Strictness};
use crate::registry::{connect_options, target};

/// What one server said.
#[derive(Debug)]
pub struct ServerProbe {
    /// Its name.
    pub name: ServerName,
    /// Its transport.
    pub transport: &'static str,
    /// How long it took.
    pub elapsed: Duration,
    /// Its tools, or what is wrong.
    pub result: Result<ProbeOk, String>,
}

/// A server that works.
#[derive(Debug)]
pub struct ProbeOk {
    /// The version agreed on.
    pub protocol_version: String,
    /// What the server calls itself.
    pub server_name: String,
    /// Upstream name, exposed name and description of each tool.
    pub tools: Vec<(String, String, String)>,
    /// What is odd and no failure.
    pub notes: Vec<String>,
}

/// A server that has not answered after this has failed.
const DEADLINE: Duration = Duration::from_secs(60);
const PAGES: usize = 1000;

/// Connects to every enabled server of `config` at once and asks for its tools.
pub async fn probe(config: &Config) -> Vec<ServerProbe> {
    let tasks = TaskTracker::new();
    let client = HttpClient::new();
    let servers = config.servers.iter().filter(|(_, spec)| spec.enabled);
    let probes = servers.map(|(name, spec)| {
        let (client, tasks) = (client.clone(), tasks.clone());
        async move {
            let began = clock::uptime();
            let one = probe_one(config, name, spec, client, tasks);
            let result = match tokio::time::timeout(DEADLINE, one).await {
                Ok(result) => result,
                Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
            };
            let elapsed = clock::uptime().since(began);
            (name.clone(), spec.transport.kind().as_str(), elapsed, result)
        }
    });
    let found = join_all(probes).await;
    tasks.close();
    tasks.wait().await;
    let redactor = Redactor::new(&config.audit.redact, &Secrets::new(config.secrets.clone()));
    let clean = |probe: ServerProbe| {
        let result = match probe.result {
            Ok(ok) => Ok(ok.without_secrets(&redactor)),
            Err(error) => Err(redactor.text(&error, usize::MAX)),
        };
        ServerProbe { result, ..probe }
    };
    name_tools(config, found).into_iter().map(clean).collect()
}

impl ProbeOk {
    /// What a server says may have in it what it was given.
    fn without_secrets(mut self, redactor: &Redactor) -> Self {
        self.server_name = redactor.text(&self.server_name, usize::MAX);
        for note in &mut self.notes {
            *note = redactor.text(note, usize::MAX);
        }
        // A description may well say `token: ...` of an argument; tools are called by their names.
        for (_, _, description) in &mut self.tools {
            let payload = Payload::whole(description.as_bytes());
            *description = redactor.uncut(payload, Strictness::KnownSecrets);
        }
        self
    }
}

type Found = (ServerName, &'static str, Duration, Result<(ProbeOk, Vec<ToolDefinition>), String>);

/// Exposed names depend on the tools of all servers, so they come last.
fn name_tools(config: &Config, found: Vec<Found>) -> Vec<ServerProbe> {
    let pairs: Vec<(ServerName, ToolName)> = found
        .iter()
        .filter_map(|(name, _, _, result)| Some((name, result.as_ref().ok()?)))
        .flat_map(|(name, (_, tools))| tools.iter().map(|tool| (name.clone(), tool.name.clone())))
        .collect();
    let servers: Vec<ServerName> = config.servers.keys().cloned().collect();
    let mut names = expose(&pairs, &servers, config.naming).names.into_iter();
    found
        .into_iter()
        .map(|(name, transport, elapsed, result)| {
            let result = result.map(|(mut ok, tools)| {
                for tool in tools {
                    let exposed = names.next().flatten();
                    let upstream = tool.name.as_str().to_owned();
                    if exposed.is_none() {
                        ok.notes.push(format!("`{upstream}` collides with another server's tool"));
                    }
                    let exposed = exposed.map(|name| name.as_str().to_owned()).unwrap_or_default();
                    ok.tools.push((upstream, exposed, tool.description.unwrap_or_default()));
                }
                ok
            });
            ServerProbe { name, transport, elapsed, result }
        })
        .collect()
}

async fn probe_one(
    config: &Config,
    name: &ServerName,
    spec: &ServerSpec,
    client: HttpClient,
    tasks: TaskTracker,
) -> Result<(ProbeOk, Vec<ToolDefinition>), String> {
    let settings = ServerSettings::resolve(&spec.knobs.or(&config.defaults));
    let children = Children::new(config.guard.as_deref());
    let options = connect_options(name, spec, &settings, None, children);
    let pool = ConnectionPool::new(target(spec, &config.environment)?, client, options, tasks);
    let found = ask(&pool, spec, settings.timeout).await;
    pool.close().await;
    found
}

async fn ask(
    pool: &ConnectionPool,
    spec: &ServerSpec,
    timeout: Duration,
) -> Result<(ProbeOk, Vec<ToolDefinition>), String> {
    let lease = pool.lease(Urgency::Patient).await.map_err(|error| error.to_string())?;
    let peer = lease.peer();
    let server_name = peer.server_info.as_deref().and_then(|info| {
        RawObject::parse(info).ok()?.get_str("name").map(std::borrow::Cow::into_owned)
    });
    let mut ok = ProbeOk {
        protocol_version: peer.version.as_str().to_owned(),
        server_name: server_name.unwrap_or_default(),
        tools: Vec::new(),
        notes: Vec::new(),
    };
    let mut tools = Vec::new();
    let mut cursor: Option<String> = None;
    for _ in 0..if peer.offers.tools { PAGES } else { 0 } {
        let request =
            OutgoingRequest { cursor: cursor.as_deref(), ..OutgoingRequest::new("tools/list") };
        let answer =
            lease.request(&request, timeout, None).await.map_err(|error| error.to_string())?;
        if answer.kind == AnswerKind::Error {
            return Err(format!("tools/list was answered with {}", lossy(&answer.value)));
        }
        let page = ToolList::parse(&answer.value).map_err(|error| error.to_string())?;
        ok.notes.extend(page.problems.iter().map(ToString::to_string));
        tools.extend(page.tools.into_iter().filter(|tool| spec.offers(tool.name.as_str())));
        match page.next_cursor {
            None => break,
            Some(next) if Some(&next) == cursor.as_ref() => {
                return Err("its pages go in a circle: a cursor came twice".to_owned());
            }
            next => cursor = next,
        }
    }
    Ok((ok, tools))
}

fn lossy(value: &Bytes) -> String {
    String::from_utf8_lossy(value).chars().take(300).collect()
}
