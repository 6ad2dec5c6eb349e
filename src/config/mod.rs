//! The configuration: read from a file, complete and valid, or an error that helps.
//!
//! Changes when an operator can say something new. Nothing else reads the environment, and no
//! other code meets a value that was not checked here.

pub mod client;
mod error;
pub mod expand;
mod json;
mod knobs;
mod raw;
mod reader;
mod refuse;
mod scalar;
mod secrecy;
mod validate;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::model::{
    ArgumentsLevel, Knobs, LevelRule, NamingMode, ResultsLevel, Secret, ServerName, ServerSpec,
    ViewName, ViewSpec,
};
use crate::redact::InForce;
use expand::Variables;

pub use error::{ConfigError, Problem};
pub use json::{json_schema, server_from_json, server_to_json, server_to_json_full, shown_address};
pub use secrecy::secrets_of;

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

/// Where `${NAME}` gets its value.
#[derive(Clone)]
pub struct Environment(Arc<Lookup>);

impl Environment {
    /// Variables from a function.
    pub fn new(get: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(get))
    }
}

impl Variables for Environment {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

/// The environment of this process.
#[must_use]
pub fn process_environment() -> Environment {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    Environment::new(|name| std::env::var(name).ok())
}

/// Everything an operator said, with defaults for the rest.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Folder of databases, keys and admin socket; relative to the working folder.
    pub data_dir: PathBuf,
    /// Numbers for servers that do not say otherwise; what is open here is built in.
    pub defaults: Knobs,
    /// How often servers that failed are asked again, at the latest.
    pub health_check_interval: Duration,
    /// How long calls in flight have to end at shutdown.
    pub shutdown_timeout: Duration,
    /// The servers of the file, as written: references are expanded at connect.
    pub servers: BTreeMap<ServerName, ServerSpec>,
    /// Parts of the catalogue with a path of their own.
    pub views: BTreeMap<ViewName, ViewSpec>,
    /// The ledger.
    pub audit: AuditConfig,
    /// Who needs a key.
    pub auth: AuthMode,
    /// What the front door lets in.
    pub http: HttpConfig,
    /// How exposed names are made.
    pub naming: NamingMode,
    /// Limits of the router itself.
    pub limits: Limits,
    /// Administration over HTTP.
    pub admin: AdminConfig,
    /// Where spans go; `None` when none are recorded.
    pub otlp: Option<OtlpConfig>,
    /// Values that must never be shown or stored.
    pub secrets: Vec<Secret>,
    /// What is accepted and has no effect, for the start log.
    pub notes: Vec<String>,
    /// The file, if there is one.
    pub path: Option<PathBuf>,
    /// Where references get their values.
    pub environment: Environment,
    /// The program of guards, which end child processes with all their descendants however the
    /// router ends. No key of the file: the program that runs the router knows whether it is one
    /// ([`crate::guard::program`]). Without, children are process groups.
    pub guard: Option<PathBuf>,
    /// Whether damaged databases are moved away at the start. No key of the file: somebody says so, once.
    pub recover: bool,
    /// What must not be shown or stored, for all parts of the router, which keeps it up to date. No key
    /// of the file: a program whose log looks through it gives its own.
    pub redaction: InForce,
}

/// The ledger's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    /// When a call's answer may go out.
    pub durability: Durability,
    /// Which calls must be on record before they are sent.
    pub intent: IntentMode,
    /// What is kept of arguments.
    pub arguments: ArgumentsLevel,
    /// What is kept of results.
    pub results: ResultsLevel,
    /// Of which calls something else is kept; the first rule that is about a call decides.
    pub levels: Vec<LevelRule>,
    /// Parts of key names whose values are never kept.
    pub redact: Vec<String>,
    /// JSON pointers to places in arguments and results that are never kept.
    pub pointers: Vec<String>,
    /// How long calls are kept.
    pub retention: Duration,
    /// How long their arguments and results are; `None`: as long.
    pub payload_retention: Option<Duration>,
    /// How large the ledger may become, in bytes.
    pub max_size: u64,
    /// Where signed checkpoints go.
    pub checkpoints: Option<PathBuf>,
    /// File or folder where rows wait while the database cannot be written.
    pub spool: Option<PathBuf>,
}

/// When a call's answer may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// At once; its row is committed at most 100 ms later.
    Batched,
    /// After its row is committed.
    Strict,
}

/// Which calls must be on record before they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntentMode {
    /// None.
    Off,
    /// Those of tools that are not declared to change nothing.
    SideEffects,
    /// All.
    All,
}

impl IntentMode {
    /// What holds where nothing is said: who waits for the end of a call to be on record wants to
    /// know of its beginning, too.
    #[must_use]
    pub const fn usual(durability: Durability) -> Self {
        match durability {
            Durability::Batched => Self::Off,
            Durability::Strict => Self::SideEffects,
        }
    }
}

/// Who needs a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// On a loopback address only administration does; elsewhere everybody.
    Auto,
    /// Everybody.
    Keys,
    /// Nobody; loopback only.
    None,
}

/// What the front door lets in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpConfig {
    /// Host names beside loopback names and the listen address.
    pub allowed_hosts: Vec<String>,
    /// Origins of pages that may use the router.
    pub allowed_origins: Vec<String>,
}

/// Limits of the router itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest request body in bytes.
    pub body: u64,
    /// Open sessions of legacy clients.
    pub sessions: u32,
    /// How long such a session may be unused.
    pub session_idle: Duration,
    /// Tools one server may have; also prompts, resources and resource templates.
    pub tools_per_server: u32,
    /// Elements on one page of a list.
    pub list_page: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 4 << 20,
            sessions: 20_000,
            session_idle: Duration::from_secs(30 * 60),
            tools_per_server: 5000,
            list_page: 10_000,
        }
    }
}

/// Where spans go.
#[derive(Debug, Clone, PartialEq)]
pub struct OtlpConfig {
    /// Where they are posted.
    pub address: http::Uri,
    /// Further headers, whose values are not shown.
    pub headers: http::HeaderMap,
    /// The share of traces that begin here and are recorded, 0 to 1.
    pub sample: f64,
}

/// Administration over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AdminConfig {
    /// Programs that may be registered over HTTP, by id.
    pub stdio_commands: BTreeMap<String, StdioCommand>,
}

/// A program that may be registered over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StdioCommand {
    /// The program.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
}

/// The port when none is given.
const PORT: u16 = 8300;

impl Config {
    /// What holds without any file.
    #[must_use]
    pub fn defaults() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
            data_dir: PathBuf::from("./switchyard-data"),
            defaults: Knobs::default(),
            health_check_interval: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(10),
            servers: BTreeMap::new(),
            views: BTreeMap::new(),
            audit: AuditConfig::default(),
            auth: AuthMode::Auto,
            http: HttpConfig::default(),
            naming: NamingMode::Prefix,
            limits: Limits::default(),
            admin: AdminConfig::default(),
            otlp: None,
            secrets: Vec::new(),
            notes: Vec::new(),
            path: None,
            environment: process_environment(),
            guard: None,
            recover: false,
            redaction: InForce::default(),
        }
    }
}

/// Reads a configuration file.
///
/// # Errors
/// [`ConfigError`] with file, line, column and what to do.
pub fn load(path: &Path, environment: &Environment) -> Result<Config, ConfigError> {
    let text = client::text_of(path)?;
    let mut config = parse(&text, &path.display().to_string(), environment)?;
    config.path = Some(path.to_path_buf());
    Ok(config)
}

/// Reads a configuration; `file` stands for it in messages.
///
/// # Errors
/// [`ConfigError`] with line, column and what to do.
pub fn parse(text: &str, file: &str, environment: &Environment) -> Result<Config, ConfigError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // A file of nothing but comments says nothing, and that is allowed.
    let says_nothing = text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---"
    });
    let raw = if says_nothing {
        raw::RawConfig::default()
    } else {
        scalar::from_yaml(text).map_err(|error| ConfigError::from_yaml(file, text, &error))?
    };
    let mut reader = reader::Reader::new(environment, text);
    let mut config = validate::config(&mut reader, &raw, None);
    if !reader.problems.is_empty() {
        return Err(ConfigError::new(file, text, reader.problems));
    }
    config.environment = environment.clone();
    Ok(config)
}
