//! Servers as JSON, for the API and the command line, and the schema of the whole file.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::error::ConfigError;
use super::expand;
use super::knobs::{self, RawServer};
use super::raw::RawConfig;
use super::reader::Reader;
use super::scalar::from_yaml;
use crate::model::{
    AuditLevels, ServerName, ServerSpec, SloSpec, ToolFilter, ToolOverride, TransportSpec,
    format_duration,
};

/// The JSON Schema of the configuration file, for editors.
#[must_use]
pub fn json_schema() -> String {
    let schema = schemars::generate::SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<RawConfig>();
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}

/// Reads one server from a JSON body, strictly. References stay as written; whether they are
/// allowed is the caller's to decide.
///
/// # Errors
/// [`ConfigError`] names the key and the nearest valid one.
pub fn server_from_json(name: &ServerName, json: &[u8]) -> Result<ServerSpec, ConfigError> {
    let file = format!("server `{name}`");
    let invalid =
        |error: serde_json::Error| ConfigError::plain(&file, format!("not JSON: {error}"));
    // Read once as JSON, which is stricter, and then as what JSON is a part of.
    let strict: serde::de::IgnoredAny = serde_json::from_slice(json).map_err(invalid)?;
    let serde::de::IgnoredAny = strict;
    let text = String::from_utf8_lossy(json);
    let raw: RawServer = from_yaml(&text).map_err(|error| {
        let found = ConfigError::from_yaml(&file, "", &error);
        without_position(&file, found)
    })?;
    let mut reader = Reader::without_variables(&text);
    let spec = reader.server(name.as_str(), &raw, &serde_yaml::Location::UNKNOWN);
    match spec {
        Some(spec) if reader.problems.is_empty() => Ok(spec),
        _ => Err(without_position(&file, ConfigError::new(&file, "", reader.problems))),
    }
}

/// A body has no lines that its sender would recognise.
fn without_position(file: &str, error: ConfigError) -> ConfigError {
    let messages: Vec<String> = error.problems.into_iter().map(|problem| problem.message).collect();
    ConfigError::plain(file, messages.join("; "))
}

/// A server as the file would say it, with what is literal in header and environment values shown
/// as `***`.
#[must_use]
pub fn server_to_json(spec: &ServerSpec) -> Value {
    let mut shown = spec.clone();
    for value in shown.transport.secret_values_mut().values_mut() {
        *value = expand::masked(value);
    }
    if let TransportSpec::Http { url, .. }
    | TransportSpec::Sse { url, .. }
    | TransportSpec::Jsonrpc { url, .. } = &mut shown.transport
    {
        *url = shown_address(url);
    }
    server_to_json_full(&shown)
}

/// An address without what may be secret in it: credentials, and values in the query. With a
/// reference in it, it is shown as written.
#[must_use]
pub fn shown_address(url: &str) -> String {
    let Ok(mut parsed) = url::Url::parse(url) else { return url.to_owned() };
    if expand::has_reference(url) {
        return url.to_owned();
    }
    // Neither fails for a URL that has a host, and one without has no userinfo.
    let _ = parsed.set_username("");
    let _ = parsed.set_password(None);
    if parsed.query().is_some() {
        parsed.set_query(Some("***"));
        return parsed.to_string();
    }
    // As written: parsing may add a slash.
    if parsed.as_str().trim_end_matches('/') == url.trim_end_matches('/') {
        url.to_owned()
    } else {
        parsed.to_string()
    }
}

/// A server as the file would say it, with everything in it. Not for display.
#[must_use]
pub fn server_to_json_full(spec: &ServerSpec) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("transport", spec.transport.kind().as_str().into());
    match &spec.transport {
        TransportSpec::Http { url, headers }
        | TransportSpec::Sse { url, headers }
        | TransportSpec::Jsonrpc { url, headers } => {
            put("url", url.as_str().into());
            if !headers.is_empty() {
                put("headers", map(headers));
            }
        }
        TransportSpec::Stdio { command, args, env, cwd } => {
            put("command", command.as_str().into());
            if !args.is_empty() {
                put("args", args.clone().into());
            }
            if !env.is_empty() {
                put("env", map(env));
            }
            if let Some(cwd) = cwd {
                put("cwd", cwd.as_str().into());
            }
        }
    }
    if !spec.description.is_empty() {
        put("description", spec.description.as_str().into());
    }
    if !spec.enabled {
        put("enabled", false.into());
    }
    if spec.tools != ToolFilter::default() {
        put("tools", json!({ "allow": spec.tools.allow, "deny": spec.tools.deny }));
    }
    if !spec.tool_overrides.is_empty() {
        let overrides = spec.tool_overrides.iter();
        put(
            "tool_overrides",
            overrides
                .map(|(tool, said)| (tool.clone(), tool_override(said)))
                .collect::<Map<_, _>>()
                .into(),
        );
    }
    if spec.sessions != crate::model::SessionMode::default() {
        put("sessions", json!(spec.sessions));
    }
    if !spec.trust_annotations {
        put("trust_annotations", false.into());
    }
    if spec.on_change != crate::model::OnChange::default() {
        put("on_change", json!(spec.on_change));
    }
    if spec.audit != AuditLevels::default() {
        put("audit", levels(&spec.audit));
    }
    if let Some(promised) = spec.slo {
        put("slo", slo(promised));
    }
    for (key, value) in knobs::shown(&spec.knobs) {
        put(key, value);
    }
    Value::Object(out)
}

fn map(values: &BTreeMap<String, String>) -> Value {
    values
        .iter()
        .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
        .collect::<Map<_, _>>()
        .into()
}

fn levels(levels: &AuditLevels) -> Value {
    let mut out = Map::new();
    if let Some(arguments) = levels.arguments {
        out.insert("arguments".to_owned(), json!(arguments));
    }
    if let Some(results) = levels.results {
        out.insert("results".to_owned(), json!(results));
    }
    if !levels.redact.is_empty() {
        out.insert("redact".to_owned(), json!(levels.redact));
    }
    out.into()
}

fn slo(promised: SloSpec) -> Value {
    let mut out = Map::new();
    let latencies = [
        ("latency_p50", promised.latency_p50),
        ("latency_p95", promised.latency_p95),
        ("latency_p99", promised.latency_p99),
    ];
    for (key, within) in latencies {
        if let Some(within) = within {
            out.insert(key.to_owned(), format_duration(within).into());
        }
    }
    if let Some(success) = promised.success {
        out.insert("success".to_owned(), success.into());
    }
    out.insert("window".to_owned(), format_duration(promised.window).into());
    out.into()
}

fn tool_override(said: &ToolOverride) -> Value {
    let mut out = Map::new();
    if let Some(replay) = said.replay {
        out.insert("replay".to_owned(), json!(replay));
    }
    if let Some(timeout) = said.timeout {
        out.insert("timeout".to_owned(), format_duration(timeout).into());
    }
    if said.hidden {
        out.insert("hidden".to_owned(), true.into());
    }
    if said.audit != AuditLevels::default() {
        out.insert("audit".to_owned(), levels(&said.audit));
    }
    if let Some(promised) = said.slo {
        out.insert("slo".to_owned(), slo(promised));
    }
    out.into()
}
