//! The shape of `switchyard.yaml`. Doc comments here are the descriptions in the JSON Schema.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_yaml::Spanned;

use super::knobs::{RawKnobs, RawServer};
use super::scalar::{Bytes, Field, Key, Node, Part};
use super::{AuthMode, Durability, IntentMode};
use crate::model::{ArgumentsLevel, NamingMode, Replay, ResultsLevel};

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
    /// How long calls in flight have to end after SIGTERM before they are cancelled; `0`: no time.
    /// Default: 10 s.
    pub(super) shutdown_timeout: Option<Field<Duration>>,
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
    /// Address of an OpenTelemetry collector: spans are posted to `{otlp_endpoint}/v1/traces` as
    /// protobuf. Default: none, and no spans are recorded.
    pub(super) otlp_endpoint: Option<Field<String>>,
    /// Further headers for the collector, such as its key.
    pub(super) otlp_headers: Option<BTreeMap<String, Field<String>>>,
    /// The share of traces that begin at the router and are recorded, 0 to 1; a caller's trace is
    /// recorded when the caller says so. Default: 1.
    #[schemars(extend("minimum" = 0, "maximum" = 1))]
    pub(super) otlp_sample: Option<Field<f64>>,
    /// The predecessor's name for `defaults.timeout`.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) default_timeout: Option<Field<Duration>>,
    /// The predecessor's name for `defaults.retry_attempts`.
    pub(super) default_retry_attempts: Option<Field<u32>>,
    /// Of the predecessor; has no effect: connections are pooled as needed.
    #[schemars(with = "serde_json::Value")]
    pub(super) connection_pool_size: Option<Spanned<Node>>,
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
    /// The most retries that can be saved up. Default: 100.
    #[schemars(extend("minimum" = 1, "maximum" = 1_000_000))]
    pub(super) cap: Option<Field<f64>>,
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
    /// What is promised of its calls.
    #[schemars(with = "Option<RawSlo>")]
    pub(super) slo: Option<Spanned<RawSlo>>,
}

/// What is promised of the calls of a server or a tool; `switchyard slo` says how it stands.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawSlo {
    /// Half of the answers take no longer: from 1 ms to 300 s.
    #[schemars(extend("minimum" = 0.001, "maximum" = 300))]
    pub(super) latency_p50: Option<Field<Duration>>,
    /// 95 of 100 answers take no longer.
    #[schemars(extend("minimum" = 0.001, "maximum" = 300))]
    pub(super) latency_p95: Option<Field<Duration>>,
    /// 99 of 100 answers take no longer.
    #[schemars(extend("minimum" = 0.001, "maximum" = 300))]
    pub(super) latency_p99: Option<Field<Duration>>,
    /// The part of calls that do not fail through a fault of the server or the router, as `99.9%`
    /// or 0.999: above 0 and below 100 %.
    pub(super) success: Option<Field<Part>>,
    /// Over which time, up to now: from 1h to 366d. Default: 30d.
    #[schemars(extend("minimum" = 3600, "maximum" = 31_622_400))]
    pub(super) window: Option<Field<Duration>>,
}

/// Payload levels.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLevels {
    /// `none`, `redacted` (`full` is the same) or `raw`.
    pub(super) arguments: Option<Field<ArgumentsLevel>>,
    /// `none`, `summary`, `full` or `raw`.
    pub(super) results: Option<Field<ResultsLevel>>,
    /// JSON pointers to places in arguments and results that are never kept, beside those of the file
    /// and the server; `*` is any member or element.
    pub(super) redact: Option<Vec<Field<String>>>,
}

/// What is kept of some calls. Patterns have `*` and `?`; what is left out is any.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLevelRule {
    /// The name of the caller's key, or `anonymous`, `admin-socket`.
    pub(super) caller: Option<Field<String>>,
    /// The name that the client gives itself; it is free to choose.
    pub(super) client: Option<Field<String>>,
    /// The server.
    pub(super) server: Option<Field<String>>,
    /// The tool, as exposed or as its server names it.
    pub(super) tool: Option<Field<String>>,
    /// `none`, `redacted` (`full` is the same) or `raw`.
    pub(super) arguments: Option<Field<ArgumentsLevel>>,
    /// `none`, `summary`, `full` or `raw`.
    pub(super) results: Option<Field<ResultsLevel>>,
}

/// The ledger.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAudit {
    /// `batched` (committed within 100 ms) or `strict` (the answer waits). Default: batched.
    pub(super) durability: Option<Field<Durability>>,
    /// Which calls are on record before they are sent, so that one that was cut off is known:
    /// `off`, `side_effects` (tools that are not declared read-only) or `all`. Default: off with
    /// `batched`, `side_effects` with `strict`.
    pub(super) intent: Option<Field<IntentMode>>,
    /// What is kept of arguments. Default: redacted.
    pub(super) arguments: Option<Field<ArgumentsLevel>>,
    /// What is kept of results. Default: summary.
    pub(super) results: Option<Field<ResultsLevel>>,
    /// Of which calls something else is kept, by caller, client, server and tool; the first rule that is
    /// about a call decides, before what tools and servers say.
    #[schemars(with = "Option<Vec<RawLevelRule>>")]
    pub(super) levels: Option<Vec<Spanned<RawLevelRule>>>,
    /// Keys whose values are never kept; part of a key is enough, and those named here replace the
    /// default list; with `=` before it, only the last word of one. What begins with `/` is a JSON pointer
    /// to a place in arguments and results that is never kept.
    pub(super) redact: Option<Vec<Field<String>>>,
    /// How long calls are kept. Default: 90d.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) retention: Option<Field<Duration>>,
    /// How long arguments and results are kept, where that is less long. Default: as long as their
    /// calls.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(super) payload_retention: Option<Field<Duration>>,
    /// How large the ledger may become. Default: 10GiB.
    #[schemars(extend("minimum" = 16_777_216))]
    pub(super) max_size: Option<Field<Bytes>>,
    /// Folder outside the data folder for signed checkpoints.
    pub(super) checkpoints: Option<Field<String>>,
    /// File or folder, best on another disk, where rows wait while the ledger's database cannot be
    /// written: calls go on, also with `strict`.
    pub(super) spool: Option<Field<String>>,
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
