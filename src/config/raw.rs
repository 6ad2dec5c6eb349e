//! The shape of `switchyard.yaml`. Doc comments here are the descriptions in the JSON Schema.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_yaml::Spanned;

use super::scalar::{Bytes, Field, Key, Node};
use super::{AuthMode, Durability};
use crate::model::{
    ArgumentsLevel, NamingMode, OnChange, Replay, ResultsLevel, RetryMode, SessionMode,
    TransportKind,
};

/// Configuration of Switchyard. Every key is optional. Any text may refer to environment
/// variables: `${NAME}`, `${NAME:-default}`, `${NAME:?message}`; `$$` is a dollar sign.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "Switchyard configuration")]
pub(super) struct RawConfig {
    /// Address to listen on. Default: 127.0.0.1:8300.
    pub(super) listen: Option<Field<String>>,
    /// Folder of the databases, key files and the admin socket, relative to the working folder.
    /// Default: ./switchyard-data.
    pub(super) data_dir: Option<Field<String>>,
    /// PostgreSQL in place of the two SQLite files, for several replicas.
    pub(super) database: Option<Field<String>>,
    /// Numbers for every server that does not say otherwise.
    pub(super) defaults: Option<RawKnobs>,
    /// How often servers that failed are asked again, at the latest. Default: 30 s.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) health_check_interval: Option<Field<Duration>>,
    /// The MCP servers, by name.
    #[schemars(with = "Option<BTreeMap<String, RawServer>>")]
    pub(super) mcp_servers: Option<BTreeMap<Key, Spanned<RawServer>>>,
    /// The MCP servers in the form of desktop clients and editors.
    #[serde(rename = "mcpServers")]
    #[schemars(with = "Option<BTreeMap<String, serde_json::Map<String, serde_json::Value>>>")]
    pub(super) client_servers: Option<BTreeMap<String, Spanned<Node>>>,
    /// Parts of the catalogue with a path of their own, `/mcp/v/VIEW`, by name.
    #[schemars(with = "Option<BTreeMap<String, RawView>>")]
    pub(super) views: Option<BTreeMap<Key, RawView>>,
    /// The ledger.
    pub(super) audit: Option<RawAudit>,
    /// Who needs a key.
    pub(super) auth: Option<RawAuth>,
    /// What the front door lets in.
    pub(super) http: Option<RawHttp>,
    /// How exposed tool names are made: `prefix` (SERVER__TOOL) or `bare`. Default: prefix.
    pub(super) naming: Option<Field<NamingMode>>,
    /// Limits of the router itself.
    pub(super) limits: Option<RawLimits>,
    /// Administration over HTTP.
    pub(super) admin: Option<RawAdmin>,
    /// Where traces go over OTLP.
    pub(super) otlp_endpoint: Option<Field<String>>,
    /// The predecessor's name for `defaults.timeout`.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) default_timeout: Option<Field<Duration>>,
    /// The predecessor's name for `defaults.retry_attempts`.
    pub(super) default_retry_attempts: Option<Field<u32>>,
    /// Of the predecessor; has no effect: connections are pooled as needed.
    #[schemars(with = "serde_json::Value")]
    pub(super) connection_pool_size: Option<Spanned<Node>>,
}

/// Numbers that hold for one server, or for all in `defaults`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawKnobs {
    /// Time limit of one attempt. Default: 30 s.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) timeout: Option<Field<Duration>>,
    /// Time limit for reaching the server. Default: 5 s.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) connect_timeout: Option<Field<Duration>>,
    /// Time limit of the whole call. Default: all attempts and delays, at most 10 min.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) call_deadline: Option<Field<Duration>>,
    /// Retries after the first attempt. Default: 3.
    #[schemars(extend("maximum" = 100))]
    pub(super) retry_attempts: Option<Field<u32>>,
    /// First delay between attempts; doubles. Default: 1 s.
    pub(super) retry_delay: Option<Field<Duration>>,
    /// Longest delay between attempts. Default: 30 s.
    pub(super) retry_max_delay: Option<Field<Duration>>,
    /// `safe`: what provably did not run; `seed`: as the predecessor did; `off`. Default: safe.
    pub(super) retry_mode: Option<Field<RetryMode>>,
    /// How much of the traffic may be retries.
    pub(super) retry_budget: Option<RawBudget>,
    /// Consecutive failures that open the breaker. Default: 5.
    #[schemars(extend("minimum" = 1))]
    pub(super) circuit_breaker_threshold: Option<Field<u32>>,
    /// How long an open breaker refuses. Default: 30 s.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) circuit_breaker_timeout: Option<Field<Duration>>,
    /// Calls in flight at the server; more wait in a bounded queue. Default: 64.
    #[schemars(extend("minimum" = 1, "maximum" = 100_000))]
    pub(super) max_concurrency: Option<Field<u32>>,
    /// Largest answer. Default: 16 MiB.
    #[schemars(extend("minimum" = 1024))]
    pub(super) max_response_size: Option<Field<Bytes>>,
    /// Longest silence of an answer over HTTP that has begun. Default: only `timeout` bounds it.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) stall_timeout: Option<Field<Duration>>,
    /// With `sessions: isolated`: sessions at the server. Default: 100.
    #[schemars(extend("minimum" = 1, "maximum" = 10_000))]
    pub(super) max_sessions: Option<Field<u32>>,
    /// With `sessions: isolated`: how long a session may be unused. Default: 10 min.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) session_idle_timeout: Option<Field<Duration>>,
}

/// How much of a server's traffic may be retries.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBudget {
    /// Retries per call, on average. Default: 0.2.
    #[schemars(extend("maximum" = 1000))]
    pub(super) ratio: Option<Field<f64>>,
    /// Retries per second that are always allowed. Default: 3.
    #[schemars(extend("maximum" = 1000))]
    pub(super) min_per_second: Option<Field<f64>>,
}

// The numbers of `RawKnobs` stand here again: flattening them in would lose the check of unknown keys
// and the places of values.
/// One MCP server: `url` for one that is reached over HTTP, `command` for one that is started.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawServer {
    /// `http`, `sse`, `stdio` or `jsonrpc`. Default: by `url` or `command`.
    pub(super) transport: Option<Field<TransportKind>>,
    /// Address of the MCP endpoint.
    pub(super) url: Option<Field<String>>,
    /// Headers of every request.
    pub(super) headers: Option<BTreeMap<String, Field<String>>>,
    /// Program to start, looked up in PATH.
    pub(super) command: Option<Field<String>>,
    /// Its arguments.
    pub(super) args: Option<Vec<Field<String>>>,
    /// Its environment, beside PATH, HOME and a few others.
    pub(super) env: Option<BTreeMap<String, Field<String>>>,
    /// Its working folder.
    pub(super) cwd: Option<Field<String>>,
    /// For people.
    pub(super) description: Option<Field<String>>,
    /// Whether calls are routed to it. Default: true.
    pub(super) enabled: Option<Field<bool>>,
    /// Which of its tools are offered.
    pub(super) tools: Option<RawFilter>,
    /// What you say about single tools, by the server's own name of the tool.
    pub(super) tool_overrides: Option<BTreeMap<String, RawOverride>>,
    /// `shared` (one session for all callers) or `isolated` (one for each session of a client).
    /// Default: shared.
    pub(super) sessions: Option<Field<SessionMode>>,
    /// Whether readOnlyHint and idempotentHint are believed, for retries only. Default: true.
    pub(super) trust_annotations: Option<Field<bool>>,
    /// When a tool's definition changes: `accept`, `warn` or `hold`. Default: warn.
    pub(super) on_change: Option<Field<OnChange>>,
    /// What the ledger keeps of its calls.
    pub(super) audit: Option<RawLevels>,
    /// Time limit of one attempt.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) timeout: Option<Field<Duration>>,
    /// Time limit for reaching the server.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) connect_timeout: Option<Field<Duration>>,
    /// Time limit of the whole call.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) call_deadline: Option<Field<Duration>>,
    /// Retries after the first attempt.
    #[schemars(extend("maximum" = 100))]
    pub(super) retry_attempts: Option<Field<u32>>,
    /// First delay between attempts; doubles.
    pub(super) retry_delay: Option<Field<Duration>>,
    /// Longest delay between attempts.
    pub(super) retry_max_delay: Option<Field<Duration>>,
    /// `safe`, `seed` or `off`.
    pub(super) retry_mode: Option<Field<RetryMode>>,
    /// How much of the traffic may be retries.
    pub(super) retry_budget: Option<RawBudget>,
    /// Consecutive failures that open the breaker.
    #[schemars(extend("minimum" = 1))]
    pub(super) circuit_breaker_threshold: Option<Field<u32>>,
    /// How long an open breaker refuses.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) circuit_breaker_timeout: Option<Field<Duration>>,
    /// Calls in flight at the server.
    #[schemars(extend("minimum" = 1, "maximum" = 100_000))]
    pub(super) max_concurrency: Option<Field<u32>>,
    /// Largest answer.
    #[schemars(extend("minimum" = 1024))]
    pub(super) max_response_size: Option<Field<Bytes>>,
    /// Longest silence of an answer over HTTP that has begun.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) stall_timeout: Option<Field<Duration>>,
    /// With `sessions: isolated`: sessions at the server.
    #[schemars(extend("minimum" = 1, "maximum" = 10_000))]
    pub(super) max_sessions: Option<Field<u32>>,
    /// With `sessions: isolated`: how long a session may be unused.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) session_idle_timeout: Option<Field<Duration>>,
}

/// Globs over the server's own names; `deny` wins.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawFilter {
    /// Offered when one of these matches. Default: everything.
    pub(super) allow: Option<Vec<Field<String>>>,
    /// Not offered when one of these matches.
    pub(super) deny: Option<Vec<Field<String>>>,
}

/// One view: the tools that one kind of client needs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawView {
    /// For people.
    pub(super) description: Option<Field<String>>,
    /// Its servers. Default: all, also those added later.
    pub(super) servers: Option<Vec<Field<String>>>,
    /// Which of their tools are in it.
    pub(super) tools: Option<RawViewTools>,
}

/// Globs over the exposed name and the server's own name of a tool; `deny` wins.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawViewTools {
    /// In the view when one of these matches one of the two names. Default: everything.
    pub(super) allow: Option<Vec<Field<String>>>,
    /// Not in the view when one of these matches one of the two names.
    pub(super) deny: Option<Vec<Field<String>>>,
}

/// What is said about one tool.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawOverride {
    /// Whether a call may be repeated: `safe` or `unsafe`. Wins over the server's hints.
    pub(super) replay: Option<Field<Replay>>,
    /// Time limit of one attempt.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) timeout: Option<Field<Duration>>,
    /// Neither listed nor callable. Default: false.
    pub(super) hidden: Option<Field<bool>>,
    /// What the ledger keeps of its calls.
    pub(super) audit: Option<RawLevels>,
}

/// Payload levels.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLevels {
    /// `none`, `redacted` or `full`.
    pub(super) arguments: Option<Field<ArgumentsLevel>>,
    /// `none`, `summary` or `full`.
    pub(super) results: Option<Field<ResultsLevel>>,
}

/// The ledger.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAudit {
    /// `batched` (committed within 100 ms) or `strict` (the answer waits). Default: batched.
    pub(super) durability: Option<Field<Durability>>,
    /// What is kept of arguments. Default: redacted.
    pub(super) arguments: Option<Field<ArgumentsLevel>>,
    /// What is kept of results. Default: summary.
    pub(super) results: Option<Field<ResultsLevel>>,
    /// Keys whose values are never kept; part of a key is enough. Replaces the default list.
    pub(super) redact: Option<Vec<Field<String>>>,
    /// How long calls are kept. Default: 90d.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) retention: Option<Field<Duration>>,
    /// How large the ledger may become. Default: 10GiB.
    #[schemars(extend("minimum" = 16_777_216))]
    pub(super) max_size: Option<Field<Bytes>>,
    /// Folder outside the data folder for signed checkpoints.
    pub(super) checkpoints: Option<Field<String>>,
}

/// Who needs a key.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAuth {
    /// `auto`: on a loopback address only administration; `keys`: everything; `none`: nothing,
    /// loopback only. Default: auto.
    pub(super) mode: Option<Field<AuthMode>>,
}

/// What the front door lets in.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHttp {
    /// Host names beside loopback names and the listen address.
    pub(super) allowed_hosts: Option<Vec<Field<String>>>,
    /// Origins of pages that may use the router.
    pub(super) allowed_origins: Option<Vec<Field<String>>>,
}

/// Limits of the router itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    /// Largest request body. Default: 4 MiB.
    #[schemars(extend("minimum" = 1024, "maximum" = 1_073_741_824))]
    pub(super) body: Option<Field<Bytes>>,
    /// Open sessions of legacy clients; the one unused the longest makes room. Default: 20000.
    #[schemars(extend("minimum" = 1))]
    pub(super) sessions: Option<Field<u32>>,
    /// How long such a session may be unused. Default: 30m.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) session_idle: Option<Field<Duration>>,
    /// Tools one server may have; also prompts, resources and resource templates. Default: 5000.
    #[schemars(extend("minimum" = 1))]
    pub(super) tools_per_server: Option<Field<u32>>,
    /// Elements on one page of a list. Default: 10000.
    #[schemars(extend("minimum" = 1))]
    pub(super) list_page: Option<Field<u32>>,
}

/// Administration over HTTP.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAdmin {
    /// Programs that may be registered over HTTP, by id.
    pub(super) stdio_commands: Option<BTreeMap<String, RawCommand>>,
}

/// A program that may be registered over HTTP.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCommand {
    /// The program.
    pub(super) command: Field<String>,
    /// Its arguments.
    #[serde(default)]
    pub(super) args: Vec<Field<String>>,
}
