//! What an operator says about one upstream server.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Knobs, SloSpec};

/// How to talk to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// Streamable HTTP; finds out which era the server speaks.
    Http,
    /// HTTP with server-sent events, the transport of 2024-11-05.
    Sse,
    /// A child process that speaks on its standard input and output.
    Stdio,
    /// The predecessor's dialect: bare JSON-RPC over HTTP without a handshake.
    Jsonrpc,
}

impl TransportKind {
    /// The name in the configuration, the database and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Sse => "sse",
            Self::Stdio => "stdio",
            Self::Jsonrpc => "jsonrpc",
        }
    }
}

/// Where a server is and how to reach it. Values are as written: `${VAR}` is not expanded here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum TransportSpec {
    /// Streamable HTTP.
    Http {
        /// Address of the MCP endpoint.
        url: String,
        /// Headers sent with every request, in order of name.
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
    /// HTTP+SSE of 2024-11-05.
    Sse {
        /// Address of the event stream.
        url: String,
        /// Headers sent with every request, in order of name.
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
    /// The predecessor's dialect.
    Jsonrpc {
        /// Base address: `{url}/mcp` and `{url}/mcp/tools` are used.
        url: String,
        /// Headers sent with every request, in order of name.
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
    /// A child process.
    Stdio {
        /// Program, looked up in `PATH`.
        command: String,
        /// Arguments.
        #[serde(default)]
        args: Vec<String>,
        /// Environment beside the few inherited variables.
        #[serde(default)]
        env: BTreeMap<String, String>,
        /// Working folder.
        #[serde(default)]
        cwd: Option<String>,
    },
}

impl TransportSpec {
    /// Which transport this is.
    #[must_use]
    pub const fn kind(&self) -> TransportKind {
        match self {
            Self::Http { .. } => TransportKind::Http,
            Self::Sse { .. } => TransportKind::Sse,
            Self::Jsonrpc { .. } => TransportKind::Jsonrpc,
            Self::Stdio { .. } => TransportKind::Stdio,
        }
    }

    /// The headers (HTTP kinds) or environment (stdio): the values that may hold secrets.
    #[must_use]
    pub const fn secret_values(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Http { headers, .. }
            | Self::Sse { headers, .. }
            | Self::Jsonrpc { headers, .. } => headers,
            Self::Stdio { env, .. } => env,
        }
    }

    /// The same, to change.
    pub const fn secret_values_mut(&mut self) -> &mut BTreeMap<String, String> {
        match self {
            Self::Http { headers, .. }
            | Self::Sse { headers, .. }
            | Self::Jsonrpc { headers, .. } => headers,
            Self::Stdio { env, .. } => env,
        }
    }
}

/// Everything an operator said about one server; what is not said is `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerSpec {
    /// How to reach it.
    pub transport: TransportSpec,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Whether calls are routed to it, as the file or the request says; the registry row may differ.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Numbers that override the defaults.
    #[serde(default)]
    pub knobs: Knobs,
    /// Which of its tools are offered.
    #[serde(default)]
    pub tools: ToolFilter,
    /// What the operator says about single tools, by upstream name.
    #[serde(default)]
    pub tool_overrides: BTreeMap<String, ToolOverride>,
    /// One upstream session for all callers, or one for each.
    #[serde(default)]
    pub sessions: SessionMode,
    /// Whether `readOnlyHint` and `idempotentHint` are believed, for retries only.
    #[serde(default = "yes")]
    pub trust_annotations: bool,
    /// What happens when a tool's definition changes.
    #[serde(default)]
    pub on_change: OnChange,
    /// What the ledger keeps for this server's calls.
    #[serde(default)]
    pub audit: AuditLevels,
    /// What is promised of its calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<SloSpec>,
}

const fn yes() -> bool {
    true
}

impl ServerSpec {
    /// A specification with nothing but a transport.
    #[must_use]
    pub fn new(transport: TransportSpec) -> Self {
        Self {
            transport,
            description: String::new(),
            enabled: true,
            knobs: Knobs::default(),
            tools: ToolFilter::default(),
            tool_overrides: BTreeMap::new(),
            sessions: SessionMode::default(),
            trust_annotations: true,
            on_change: OnChange::default(),
            audit: AuditLevels::default(),
            slo: None,
        }
    }

    /// Whether its tool of this upstream name is for anybody to see and call.
    #[must_use]
    pub fn offers(&self, tool: &str) -> bool {
        self.tools.admits(tool) && !self.tool_overrides.get(tool).is_some_and(|said| said.hidden)
    }
}

/// Which of a server's tools are offered: glob patterns over upstream names; `deny` wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ToolFilter {
    /// Offered when one of these matches.
    pub allow: Vec<String>,
    /// Not offered when one of these matches.
    pub deny: Vec<String>,
}

impl Default for ToolFilter {
    fn default() -> Self {
        Self { allow: vec!["*".to_owned()], deny: Vec::new() }
    }
}

impl ToolFilter {
    /// Whether a tool of this upstream name is offered.
    #[must_use]
    pub fn admits(&self, tool: &str) -> bool {
        self.admits_one_of(&[tool])
    }

    /// The same for a tool that goes by several names: a pattern counts when it matches any of
    /// them.
    #[must_use]
    pub fn admits_one_of(&self, names: &[&str]) -> bool {
        let hit = |patterns: &[String]| {
            patterns.iter().any(|pattern| names.iter().any(|name| glob_matches(pattern, name)))
        };
        hit(&self.allow) && !hit(&self.deny)
    }
}

/// `*` is any run of characters, `?` one character, everything else itself. Allocates nothing.
pub(super) fn glob_matches(pattern: &str, text: &str) -> bool {
    // The classic walk: on a mismatch go back to the last star and let it eat one more.
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    let mut star = None;
    loop {
        let (mut wanted, mut found) = (pattern.clone(), text.clone());
        match (wanted.next(), found.next()) {
            (Some('*'), _) => {
                star = Some((wanted.clone(), text.clone()));
                pattern = wanted;
            }
            (None, None) => return true,
            (Some('?'), Some(_)) => (pattern, text) = (wanted, found),
            (Some(one), Some(other)) if one == other => (pattern, text) = (wanted, found),
            (_, None) => return false,
            (_, Some(_)) => {
                let Some((after, eaten)) = &mut star else { return false };
                eaten.next();
                (pattern, text) = (after.clone(), eaten.clone());
            }
        }
    }
}

/// What an operator says about one tool.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolOverride {
    /// Whether a call may be repeated; wins over annotations.
    pub replay: Option<Replay>,
    /// One attempt's time limit.
    pub timeout: Option<Duration>,
    /// Neither listed nor callable.
    pub hidden: bool,
    /// What the ledger keeps for this tool's calls.
    pub audit: AuditLevels,
    /// What is promised of its calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slo: Option<SloSpec>,
}

/// Whether a call may be repeated after a failure that may have run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Replay {
    /// Yes.
    Safe,
    /// No.
    Unsafe,
}

/// One upstream session for all callers, or one for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SessionMode {
    /// One for all.
    #[default]
    Shared,
    /// One for each downstream session.
    Isolated,
}

/// How exposed names are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NamingMode {
    /// `{server}__{tool}`.
    #[default]
    Prefix,
    /// The upstream's own name.
    Bare,
}

/// What happens when a tool's definition changes after the first discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnChange {
    /// Taken silently.
    Accept,
    /// Taken, logged and kept in the history.
    #[default]
    Warn,
    /// Neither listed nor callable until approved.
    Hold,
}

/// What the ledger keeps of arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ArgumentsLevel {
    /// Nothing but the length.
    None,
    /// The arguments with secrets replaced.
    Redacted,
    /// The same; the word that goes with that of results.
    Full,
    /// The arguments without known secrets and named places, whatever else they hold.
    Raw,
}

impl ArgumentsLevel {
    const ALL: [Self; 4] = [Self::None, Self::Redacted, Self::Full, Self::Raw];

    /// The name in the configuration, the database and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Redacted => "redacted",
            Self::Full => "full",
            Self::Raw => "raw",
        }
    }

    /// Reads a level's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == text)
    }
}

/// What the ledger keeps of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResultsLevel {
    /// Nothing but the length.
    None,
    /// Kinds and sizes of the content, the first line of an error.
    Summary,
    /// The result with secrets replaced.
    Full,
    /// The result without known secrets and named places, whatever else it holds.
    Raw,
}

impl ResultsLevel {
    const ALL: [Self; 4] = [Self::None, Self::Summary, Self::Full, Self::Raw];

    /// The name in the configuration, the database and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Summary => "summary",
            Self::Full => "full",
            Self::Raw => "raw",
        }
    }

    /// Reads a level's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == text)
    }
}

/// Payload levels, each optional: the tool's, else the server's, else the file's. And what is never kept,
/// whatever the level: the tool's, the server's and the file's together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AuditLevels {
    /// What is kept of arguments.
    pub arguments: Option<ArgumentsLevel>,
    /// What is kept of results.
    pub results: Option<ResultsLevel>,
    /// Places in arguments and results that are never kept, as JSON pointers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redact: Vec<String>,
}

/// Where a registry entry came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerSource {
    /// The configuration file.
    Config,
    /// The API or the command line.
    Api,
}

impl ServerSource {
    /// The name in the database and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Api => "api",
        }
    }

    /// Reads a source's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Config, Self::Api].into_iter().find(|source| source.as_str() == text)
    }
}

/// Where a tool stands in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolStatus {
    /// In the server's last list.
    Active,
    /// In the last list we got; the server could not be asked again.
    Stale,
    /// No longer in the server's list.
    Gone,
    /// Its definition changed and waits for approval.
    Held,
}

impl ToolStatus {
    /// The name in the database, the API and the metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Stale => "stale",
            Self::Gone => "gone",
            Self::Held => "held",
        }
    }

    /// Reads a status' name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Stale, Self::Gone, Self::Held]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_people_expect() {
        for (pattern, text, expected) in [
            ("*", "anything", true),
            ("*", "", true),
            ("delete_*", "delete_repo", true),
            ("delete_*", "undelete_repo", false),
            ("*_file", "read_file", true),
            ("*_file", "read_files", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "acb", false),
            ("get_?", "get_x", true),
            ("get_?", "get_", false),
            ("exact", "exact", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(glob_matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn deny_wins_over_allow() {
        let filter = ToolFilter { allow: vec!["get_*".into()], deny: vec!["get_secret*".into()] };
        assert!(filter.admits("get_time"));
        assert!(!filter.admits("get_secrets"));
        assert!(!filter.admits("set_time"));
    }
}
