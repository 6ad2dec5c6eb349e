//! From what a file says to a [`Config`]: references replaced, numbers checked, contradictions
//! refused. Every independent problem is reported, not only the first.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::raw::RawConfig;
use super::reader::Reader;
use super::refuse;
use super::scalar::{Field, Node};
use super::secrecy::Place;
use super::{
    AdminConfig, AuditConfig, AuthMode, Config, HttpConfig, IntentMode, Limits, OtlpConfig,
    StdioCommand, client,
};
use crate::model::{
    BreakerSettings, ServerName, ServerSettings, ToolFilter, ViewName, ViewSpec, did_you_mean,
    format_duration, nearest,
};

/// Key names whose values the ledger never keeps, unless the file has a list of its own.
pub(super) const REDACT: [&str; 29] = [
    "password",
    "token",
    "secret",
    "api_key",
    "authorization",
    "cookie",
    "passwd",
    "passphrase",
    "credential",
    "private_key",
    "access_key",
    "account_key",
    "subscription_key",
    "connection_string",
    "shared_access_signature",
    "x_amz_signature",
    "x_goog_signature",
    "=pass",
    "=pwd",
    "=auth",
    "=bearer",
    "=csrf",
    "=xsrf",
    "=sig",
    "=signature",
    "=dsn",
    "=otp",
    "=cvv",
    "=cvc",
];

/// Reads a whole file. The result only counts when the reader has no problems.
pub(super) fn config(reader: &mut Reader<'_>, raw: &RawConfig, path: Option<&Path>) -> Config {
    let mut config = Config::defaults();
    config.path = path.map(Path::to_path_buf);
    front_door(reader, raw, &mut config);
    ledger(reader, raw, &mut config);
    numbers(reader, raw, &mut config);
    config.otlp = otlp(reader, raw);
    servers(reader, raw, &mut config);
    views(reader, raw, &mut config);
    note_what_waits(reader, &config);
    config.secrets = std::mem::take(&mut reader.secrets);
    config.notes = std::mem::take(&mut reader.notes);
    config
}

fn front_door(reader: &mut Reader<'_>, raw: &RawConfig, config: &mut Config) {
    if let Some(field) = &raw.listen
        && let Some(text) = reader.get(Some(field))
    {
        let shown = match &field.node {
            Node::Text(written) => written,
            _ => &text,
        };
        match parse_listen(&text) {
            Some(address) => config.listen = address,
            None => reader.problem(
                &field.at,
                format!("`{shown}` is not an address to listen on; write HOST:PORT, such as 127.0.0.1:8300"),
            ),
        }
    }
    if let Some(raw) = &raw.http {
        config.http = HttpConfig {
            allowed_hosts: reader.texts_unless(raw.allowed_hosts.as_ref(), refuse::host),
            allowed_origins: reader.texts_unless(raw.allowed_origins.as_ref(), refuse::origin),
        };
    }
    if let Some(field) = raw.auth.as_ref().and_then(|auth| auth.mode.as_ref())
        && let Some(mode) = reader.get(Some(field))
    {
        config.auth = mode;
        if mode == AuthMode::None && !config.listen.ip().is_loopback() {
            reader.problem(
                &field.at,
                format!("`auth.mode: none` is refused on {}, which others can reach; use `auto` or `keys`", config.listen),
            );
        }
    }
    if let Some(raw) = &raw.admin {
        let commands = raw.stdio_commands.iter().flatten().filter_map(|(id, command)| {
            let args =
                command.args.iter().filter_map(|arg| reader.written(arg, Place::Public)).collect();
            let command = reader.written(&command.command, Place::Public)?;
            Some((id.clone(), StdioCommand { command, args }))
        });
        config.admin = AdminConfig { stdio_commands: commands.collect() };
    }
}

fn parse_listen(text: &str) -> Option<SocketAddr> {
    let text = text.trim();
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let text = text.strip_prefix("localhost:").map_or_else(
        || text.strip_prefix(':').map_or(text.to_owned(), |port| format!("127.0.0.1:{port}")),
        |port| format!("127.0.0.1:{port}"),
    );
    text.to_socket_addrs().ok()?.next()
}

fn ledger(reader: &mut Reader<'_>, raw: &RawConfig, config: &mut Config) {
    let Some(raw) = &raw.audit else { return };
    let usual = AuditConfig::default();
    let durability = reader.get(raw.durability.as_ref()).unwrap_or(usual.durability);
    let (redact, pointers) = redacted(reader, raw.redact.as_ref(), usual.redact);
    config.audit = AuditConfig {
        durability,
        intent: reader.get(raw.intent.as_ref()).unwrap_or_else(|| IntentMode::usual(durability)),
        arguments: reader.get(raw.arguments.as_ref()).unwrap_or(usual.arguments),
        results: reader.get(raw.results.as_ref()).unwrap_or(usual.results),
        levels: raw.levels.iter().flatten().map(|rule| reader.level_rule(rule)).collect(),
        redact,
        pointers,
        retention: reader.span("retention", raw.retention.as_ref()).unwrap_or(usual.retention),
        payload_retention: reader.span("payload_retention", raw.payload_retention.as_ref()),
        max_size: reader
            .check("max_size", raw.max_size.as_ref(), "at least 16MiB", |size| size.0 >= 16 << 20)
            .map_or(usual.max_size, |size| size.0),
        checkpoints: reader.get(raw.checkpoints.as_ref()).map(PathBuf::from),
        spool: reader.get(raw.spool.as_ref()).map(PathBuf::from),
    };
}

/// Names of keys, and pointers. Pointers alone leave the usual names in force.
fn redacted(
    reader: &mut Reader<'_>,
    list: Option<&Vec<Field<String>>>,
    usual: Vec<String>,
) -> (Vec<String>, Vec<String>) {
    let Some(listed) = list else { return (usual, Vec::new()) };
    let is_pointer = |text: &str| text.starts_with('/');
    let refused = |text: &str| if is_pointer(text) { refuse::pointer(text) } else { None };
    let texts = reader.texts_unless(list, refused);
    let (pointers, names): (Vec<_>, Vec<_>) = texts.into_iter().partition(|text| is_pointer(text));
    let names = if names.is_empty() && !listed.is_empty() { usual } else { names };
    (names, pointers)
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            durability: super::Durability::Batched,
            intent: IntentMode::Off,
            arguments: crate::model::ArgumentsLevel::Redacted,
            results: crate::model::ResultsLevel::Summary,
            levels: Vec::new(),
            redact: REDACT.map(str::to_owned).to_vec(),
            pointers: Vec::new(),
            retention: Duration::from_secs(90 * 86_400),
            payload_retention: None,
            max_size: 10 << 30,
            checkpoints: None,
            spool: None,
        }
    }
}

fn numbers(reader: &mut Reader<'_>, raw: &RawConfig, config: &mut Config) {
    if let Some(folder) = reader
        .check("data_dir", raw.data_dir.as_ref(), "a folder", |folder| !folder.trim().is_empty())
    {
        config.data_dir = PathBuf::from(folder);
    }
    if let (Some(folder), Some(field)) =
        (&config.audit.checkpoints, raw.audit.as_ref().and_then(|raw| raw.checkpoints.as_ref()))
        && let Some(message) = refuse::checkpoints(folder, &config.data_dir)
    {
        reader.problem(&field.at, message);
    }
    if let (Some(spool), Some(field)) =
        (&config.audit.spool, raw.audit.as_ref().and_then(|raw| raw.spool.as_ref()))
        && let Some(message) = refuse::spool(spool, &config.data_dir)
    {
        reader.problem(&field.at, message);
    }
    if let Some(field) = &raw.database
        && let Some(text) = reader.get(Some(field))
    {
        let message = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            "this version keeps its state in SQLite only; leave `database` out".to_owned()
        } else {
            "`database` takes postgres://…; leave it out for SQLite in `data_dir`".to_owned()
        };
        reader.problem(&field.at, message);
    }
    reader.first_opening = Some(BreakerSettings::default().open_for);
    if let Some(raw) = &raw.defaults {
        config.defaults = raw.read(reader);
    }
    reader.first_opening = Some(ServerSettings::resolve(&config.defaults).breaker.open_for);
    if let Some(timeout) = reader.span("default_timeout", raw.default_timeout.as_ref()) {
        config.defaults.timeout.get_or_insert(timeout);
    }
    if let Some(attempts) = reader.get(raw.default_retry_attempts.as_ref()) {
        config.defaults.retry_attempts.get_or_insert(attempts);
    }
    if raw.connection_pool_size.is_some() {
        reader.notes.push(
            "`connection_pool_size` has no effect: connections are opened as needed and shared"
                .to_owned(),
        );
    }
    if let Some(interval) = reader.span("health_check_interval", raw.health_check_interval.as_ref())
    {
        config.health_check_interval = interval;
    }
    if let Some(timeout) = reader.get(raw.shutdown_timeout.as_ref()) {
        config.shutdown_timeout = timeout;
    }
    if let Some(naming) = reader.get(raw.naming.as_ref()) {
        config.naming = naming;
    }
    if let Some(raw) = &raw.limits {
        let usual = Limits::default();
        config.limits = Limits {
            body: reader
                .check("body", raw.body.as_ref(), "from 1KiB to 1GiB", |size| {
                    (1 << 10..=1 << 30).contains(&size.0)
                })
                .map_or(usual.body, |size| size.0),
            sessions: reader
                .check("sessions", raw.sessions.as_ref(), "at least 1", |count| *count >= 1)
                .unwrap_or(usual.sessions),
            session_idle: reader
                .span("session_idle", raw.session_idle.as_ref())
                .unwrap_or(usual.session_idle),
            tools_per_server: reader
                .check("tools_per_server", raw.tools_per_server.as_ref(), "at least 1", |count| {
                    *count >= 1
                })
                .unwrap_or(usual.tools_per_server),
            list_page: reader
                .check("list_page", raw.list_page.as_ref(), "at least 1", |count| *count >= 1)
                .unwrap_or(usual.list_page),
        };
    }
}

/// Where spans go.
fn otlp(reader: &mut Reader<'_>, raw: &RawConfig) -> Option<OtlpConfig> {
    let mut headers = HeaderMap::new();
    for (name, field) in raw.otlp_headers.iter().flatten() {
        let Some(value) = reader.value_of(field, Place::Header(name)) else { continue };
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value)) {
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
            (Err(_), _) => reader.problem(&field.at, format!("`{name}` is not a header name")),
            (Ok(_), Err(_)) => reader.problem(
                &field.at,
                format!("the value of header `{name}` has characters that a header must not have"),
            ),
        }
    }
    let range = |share: &f64| (0.0..=1.0).contains(share);
    let sample = reader.check("otlp_sample", raw.otlp_sample.as_ref(), "from 0 to 1", range);
    let Some(text) = reader.get(raw.otlp_endpoint.as_ref()).filter(|text| !text.trim().is_empty())
    else {
        for (key, said) in
            [("otlp_headers", raw.otlp_headers.is_some()), ("otlp_sample", sample.is_some())]
        {
            if said {
                reader.notes.push(format!("`{key}` has no effect without `otlp_endpoint`"));
            }
        }
        return None;
    };
    match refuse::collector(&text) {
        Ok(address) => Some(OtlpConfig { address, headers, sample: sample.unwrap_or(1.0) }),
        Err(message) => {
            if let Some(field) = &raw.otlp_endpoint {
                reader.problem(&field.at, message);
            }
            None
        }
    }
}

/// Says which settings are read and checked and have no effect beside the others.
fn note_what_waits(reader: &mut Reader<'_>, config: &Config) {
    let mut note = |text: String| reader.notes.push(text);
    for rule in &config.audit.levels {
        if let Some(server) = &rule.server
            && !server.contains(['*', '?'])
            && !config.servers.contains_key(server.as_str())
        {
            note(format!(
                "`audit.levels`: there is no server `{server}` in this file; the rule is for one that is added otherwise"
            ));
        }
    }
    for (name, spec) in &config.servers {
        let of_tools = spec.tool_overrides.values().map(|said| said.slo);
        let windows = of_tools.chain([spec.slo]).flatten().map(|slo| slo.window);
        if windows.max().is_some_and(|window| window > config.audit.retention) {
            note(format!(
                "server `{name}`: `slo.window` is longer than calls are kept (`audit.retention: {}`)",
                format_duration(config.audit.retention)
            ));
        }
        let own = &spec.knobs;
        let all = own.or(&config.defaults);
        let mut idle = |key: &str, needs: &str| {
            note(format!("server `{name}`: `{key}` has no effect without {needs}"));
        };
        if own.breaker_window_rate.is_some() && all.breaker_window.is_none() {
            idle("breaker_window_rate", "`breaker_window`");
        }
        if own.breaker_min_calls.is_some()
            && all.breaker_window.is_none()
            && all.slow_call.is_none()
        {
            idle("breaker_min_calls", "`breaker_window` or `slow_call`");
        }
        if own.slow_call_rate.is_some() && all.slow_call.is_none() {
            idle("slow_call_rate", "`slow_call`");
        }
    }
}

fn servers(reader: &mut Reader<'_>, raw: &RawConfig, config: &mut Config) {
    for (name, server) in raw.mcp_servers.iter().flatten() {
        let parsed = match ServerName::parse(&name.text) {
            Ok(parsed) => parsed,
            Err(error) => {
                reader.problem(&name.at, error.to_string());
                continue;
            }
        };
        if let Some(spec) = reader.server(&name.text, &server.value, &server.referenced) {
            config.servers.insert(parsed, spec);
        }
    }
    for (name, server) in raw.client_servers.iter().flatten() {
        if let Some((name, spec)) = client::server(reader, &config.servers, name, server) {
            config.servers.insert(name, spec);
        }
    }
}

fn views(reader: &mut Reader<'_>, raw: &RawConfig, config: &mut Config) {
    for (name, view) in raw.views.iter().flatten() {
        let parsed = match ViewName::parse(&name.text) {
            Ok(parsed) => parsed,
            Err(error) => {
                reader.problem(&name.at, error.to_string());
                continue;
            }
        };
        let servers = view.servers.as_ref().map(|listed| {
            listed.iter().filter_map(|field| server_of_view(reader, raw, config, field)).collect()
        });
        let all = ToolFilter::default();
        let tools = view.tools.as_ref();
        let (allow, deny) = tools.map_or((None, None), |tools| {
            (reader.texts(tools.allow.as_ref()), reader.texts(tools.deny.as_ref()))
        });
        let spec = ViewSpec {
            description: reader.get(view.description.as_ref()).unwrap_or_default(),
            servers,
            tools: ToolFilter { allow: allow.unwrap_or(all.allow), deny: deny.unwrap_or(all.deny) },
        };
        if let Some(why) = spec.always_empty() {
            reader.notes.push(format!("view `{parsed}` offers no tool: {why}"));
        }
        config.views.insert(parsed, spec);
    }
}

/// A server that a view names: one of the file.
fn server_of_view(
    reader: &mut Reader<'_>,
    raw: &RawConfig,
    config: &Config,
    field: &Field<String>,
) -> Option<ServerName> {
    let text = reader.get(Some(field))?;
    if let Some((name, _)) = config.servers.get_key_value(text.as_str()) {
        return Some(name.clone());
    }
    // A server with a problem of its own is reported there.
    let written = raw.mcp_servers.iter().flatten().any(|(name, _)| name.text == text)
        || raw.client_servers.iter().flatten().any(|(name, _)| *name == text);
    if !written {
        let like = nearest(&text, config.servers.keys().map(ServerName::as_str), 3);
        let shown: String = text.chars().take(64).collect();
        reader.problem(
            &field.at,
            format!("there is no server `{shown}` in this file{}", did_you_mean(&like)),
        );
    }
    None
}
