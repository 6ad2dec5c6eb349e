//! The command line: one file per command.
//!
//! Changes when a command or a global option does. Client commands speak to a running router over
//! its admin socket or HTTP, never to its database; nothing here decides anything about a call.

mod audit;
mod backup;
mod breakers;
mod call;
mod check;
mod client;
mod demo;
pub mod demo_upstream;
mod error;
mod import;
mod keys;
mod log;
mod output;
mod reload;
mod schema;
mod serve;
mod servers;
mod slo;
mod stdio;
mod table;
mod temp_folder;
mod text;
mod tools;
mod when;

use std::path::{Path, PathBuf};

use clap::{CommandFactory as _, Parser, Subcommand};
use serde::Deserialize;

pub use error::{CliError, Status};
pub use log::{LogFormat, log_to_stderr};
pub use output::notice;

use crate::config::{self, Config};
use crate::guard;
use crate::model::Secret;
use crate::redact;
use client::Client;
use output::{Color, Format, Output};

/// The configuration file that is read when none is named.
const DEFAULT_CONFIG: &str = "switchyard.yaml";
/// The data folder when nothing says otherwise.
const DEFAULT_DATA_DIR: &str = "switchyard-data";

/// A persistent router for MCP tool calls: one endpoint in front of many servers, every call on
/// record.
#[derive(Debug, Parser)]
#[command(
    name = "switchyard",
    version,
    disable_help_subcommand = true,
    after_help = "Try it:\n  switchyard demo --for 20s          the router with two bundled servers and light traffic\n  switchyard serve                   run the router with ./switchyard.yaml, or with defaults\n  switchyard servers add files -- npx -y @modelcontextprotocol/server-filesystem .\n  switchyard call files__list_directory path=.\n  switchyard audit list --since 1h\n\nExit codes: 0 done, 1 the call or check failed, 2 usage or configuration, 3 router unreachable,\n4 data folder in use by another router, 5 database damaged or newer."
)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Globals {
    /// Configuration file [default: ./switchyard.yaml if it exists]
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,

    /// Data folder [default: the configuration's, else ./switchyard-data]
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "SWITCHYARD_DATA_DIR",
        hide_env_values = true
    )]
    data_dir: Option<PathBuf>,

    /// Address of a running router, instead of the admin socket in the data folder
    #[arg(long, global = true, value_name = "URL", env = "SWITCHYARD_URL", hide_env_values = true)]
    url: Option<String>,

    /// Key for --url
    #[arg(
        long,
        global = true,
        value_name = "KEY",
        env = "SWITCHYARD_KEY",
        hide_env_values = true,
        value_parser = secret
    )]
    key: Option<Secret>,

    /// Print the router's answer as JSON
    #[arg(long, global = true)]
    json: bool,

    /// Colour in the output
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: Color,

    /// What to log, as in `info` or `switchyard::router=debug,warn`
    #[arg(long, global = true, value_name = "FILTER", env = "RUST_LOG", hide_env_values = true)]
    log: Option<String>,

    /// Form of the log: text for people, or one JSON object a line; auto: text on a terminal
    #[arg(
        long,
        global = true,
        value_name = "FORM",
        default_value = "auto",
        env = "SWITCHYARD_LOG_FORMAT",
        hide_env_values = true
    )]
    log_format: LogFormat,
}

#[expect(clippy::unnecessary_wraps, reason = "the shape clap asks of a value parser")]
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the router
    Serve(serve::Args),
    /// Run the router with two bundled servers and light traffic, in a temporary folder
    Demo(demo::Args),
    /// Be an MCP server on stdin and stdout, in front of a running router
    Stdio(stdio::Args),
    /// Validate a configuration; with --connect also every server in it
    Check(check::Args),
    /// Print the JSON Schema of the configuration
    Schema(schema::Args),
    /// Take over the servers of a desktop client's or editor's configuration
    Import(import::Args),
    /// Look at the servers behind the router, add and remove them
    Servers(servers::Args),
    /// Look at the tools the router offers
    Tools(tools::Args),
    /// Call a tool
    Call(call::Args),
    /// Read the ledger: every call, also refused and failed ones
    Audit(audit::Args),
    /// See what is promised of servers and tools, and how much of the error budget is left
    Slo(slo::Args),
    /// Look at circuit breakers and their history; open, close and reset them
    Breakers(breakers::Args),
    /// Make, list and revoke keys
    Keys(keys::Args),
    /// Copy databases and keys into a new folder, also while the router runs
    Backup(backup::Backup),
    /// Put a backup in the place of the data folder's content; the router must be stopped
    Restore(backup::Restore),
    /// Make the router read its configuration again
    Reload(reload::Args),
    /// A small MCP server with faults on demand, for the demo and for tests
    #[command(hide = true)]
    DemoUpstream(demo_upstream::Args),
}

impl Cli {
    /// The log filter: what was asked for, else what suits the command.
    #[must_use]
    pub fn log_filter(&self) -> &str {
        match (&self.globals.log, &self.command) {
            (Some(filter), _) if !filter.trim().is_empty() => filter,
            (_, Some(Command::Serve(_))) => "info",
            // The demo's second server fails on purpose; its own lines tell of it.
            (_, Some(Command::Demo(_))) => "error",
            _ => "warn",
        }
    }

    /// The form of the log.
    #[must_use]
    pub fn log_format(&self) -> LogFormat {
        self.globals.log_format
    }

    /// Runs the command.
    ///
    /// # Errors
    /// [`CliError`] with the exit code.
    pub async fn run(self) -> Result<Status, CliError> {
        let Self { globals, command } = self;
        let format = if globals.json { Format::Json } else { Format::Human };
        let context = Context { out: Output::detect(globals.color, format), globals };
        match command {
            None => {
                let help = Self::command().render_help();
                let help =
                    if context.out.colour { help.ansi().to_string() } else { help.to_string() };
                context.out.write(&help)?;
                Ok(Status::Done)
            }
            Some(Command::Serve(args)) => Box::pin(serve::run(&context, args)).await,
            Some(Command::Demo(args)) => Box::pin(demo::run(&context, args)).await,
            Some(Command::Stdio(args)) => Box::pin(stdio::run(&context, args)).await,
            Some(Command::Check(args)) => Box::pin(check::run(&context, args)).await,
            Some(Command::Schema(args)) => schema::run(&context, &args),
            Some(Command::Import(args)) => Box::pin(import::run(&context, args)).await,
            Some(Command::Servers(args)) => Box::pin(servers::run(&context, args)).await,
            Some(Command::Tools(args)) => Box::pin(tools::run(&context, args)).await,
            Some(Command::Call(args)) => Box::pin(call::run(&context, args)).await,
            Some(Command::Audit(args)) => Box::pin(audit::run(&context, args)).await,
            Some(Command::Slo(args)) => Box::pin(slo::run(&context, args)).await,
            Some(Command::Breakers(args)) => Box::pin(breakers::run(&context, args)).await,
            Some(Command::Keys(args)) => Box::pin(keys::run(&context, args)).await,
            Some(Command::Backup(args)) => Box::pin(backup::backup(&context, args)).await,
            Some(Command::Restore(args)) => Box::pin(backup::restore(&context, args)).await,
            Some(Command::Reload(args)) => Box::pin(reload::run(&context, args)).await,
            Some(Command::DemoUpstream(args)) => Box::pin(demo_upstream::main(args))
                .await
                .map(|()| Status::Done)
                .map_err(|error| CliError::Upstream(error.to_string())),
        }
    }
}

/// What every command gets: global options and the way to write.
struct Context {
    out: Output,
    globals: Globals,
}

impl Context {
    /// The configuration file to use, if there is one.
    fn config_path(&self) -> Option<PathBuf> {
        let default = || Some(PathBuf::from(DEFAULT_CONFIG)).filter(|path| path.exists());
        self.globals.config.clone().or_else(default)
    }

    /// The configuration to run with: the file's, or the defaults; `--data-dir` wins.
    fn load_config(&self) -> Result<Config, CliError> {
        let mut config = match self.config_path() {
            Some(path) => config::load(&path, &config::process_environment())?,
            None => Config::defaults(),
        };
        if let Some(data_dir) = &self.globals.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        Ok(config)
    }

    /// The data folder whose router is meant.
    fn data_dir(&self) -> Result<PathBuf, CliError> {
        if let Some(data_dir) = &self.globals.data_dir {
            return Ok(data_dir.clone());
        }
        let Some(path) = self.config_path() else {
            return Ok(PathBuf::from(DEFAULT_DATA_DIR));
        };
        match config::load(&path, &config::process_environment()) {
            Ok(config) => Ok(config.data_dir),
            // The router's shell may have variables that this one lacks, and a file that is
            // broken by now does not move a router that runs: the folder alone is enough here.
            Err(error) => literal_data_dir(&path).ok_or(CliError::Config(error)),
        }
    }

    /// The way to the running router.
    fn client(&self) -> Result<Client, CliError> {
        let Some(url) = &self.globals.url else {
            return Ok(Client::socket(&self.data_dir()?)?);
        };
        let client = Client::http(url, self.globals.key.as_ref())?;
        if client.exposes_key() {
            notice(format!("warning: the key travels unencrypted to {url}; prefer https"));
        }
        Ok(client)
    }
}

/// Prepares this process for child processes: each has a guard, they get none of our descriptors,
/// and what a killed guard leaves becomes ours to end.
fn guard_children(config: &mut Config) {
    // And what this process says looks through what the router knows.
    config.redaction = redact::of_log().clone();
    guard::keep_descriptors();
    config.guard = guard::program();
    if config.guard.is_some()
        && let Err(error) = guard::adopt_orphans()
    {
        tracing::warn!(%error, "what a killed guard leaves behind cannot be ended: {error}");
    }
}

/// `data_dir` of a file that does not load as a whole, when it is written without variables.
fn literal_data_dir(path: &Path) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Location {
        data_dir: Option<String>,
    }
    let text = std::fs::read_to_string(path).ok()?;
    let location: Location = serde_yaml::from_str(&text).ok()?;
    let folder = location.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.to_owned());
    (!folder.contains('$')).then(|| PathBuf::from(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_examples() {
        fn walk(command: &clap::Command, path: &str) {
            if command.is_hide_set() {
                return;
            }
            let help = command.clone().render_long_help().to_string();
            assert!(command.get_about().is_some(), "{path} says nothing of itself");
            if command.get_subcommands().next().is_none() {
                assert!(help.contains("Examples:"), "{path} has no examples:\n{help}");
            }
            for child in command.get_subcommands() {
                walk(child, &format!("{path} {}", child.get_name()));
            }
        }
        walk(&Cli::command(), "switchyard");
    }

    #[test]
    fn help_is_as_reviewed() {
        let mut command = Cli::command().term_width(100);
        insta::assert_snapshot!(command.render_help());
    }

    #[test]
    fn global_options_stand_anywhere() {
        let cli = Cli::try_parse_from(["switchyard", "servers", "list", "--json"]).unwrap();
        assert!(cli.globals.json);
        let cli = Cli::try_parse_from(["switchyard", "--data-dir", "/x", "audit"]).unwrap();
        assert_eq!(cli.globals.data_dir.as_deref(), Some(Path::new("/x")));
    }

    #[test]
    fn no_command_shadows_a_global_option() {
        // clap keeps values by id: an argument of the same id would set the global one too.
        fn walk(command: &clap::Command, globals: &[clap::Id]) {
            for argument in command.get_arguments() {
                assert!(!globals.contains(argument.get_id()), "{}: {argument}", command.get_name());
            }
            command.get_subcommands().for_each(|command| walk(command, globals));
        }
        let command = Cli::command();
        let globals: Vec<clap::Id> = command
            .get_arguments()
            .filter(|argument| argument.is_global_set())
            .map(|argument| argument.get_id().clone())
            .collect();
        assert_eq!(globals.len(), 8);
        command.get_subcommands().for_each(|command| walk(command, &globals));
    }

    #[test]
    fn a_key_is_never_shown() {
        let cli = Cli::try_parse_from(["switchyard", "--key", "sy_very_secret", "tools"]).unwrap();
        assert!(!format!("{cli:?}").contains("very_secret"));
    }

    #[test]
    fn the_data_folder_is_found_in_a_file_that_does_not_load() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("switchyard.yaml");
        std::fs::write(&path, "data_dir: /var/lib/sy\nmcp_servers: {a: {url: '${NOPE}'}}\n")
            .unwrap();
        assert_eq!(literal_data_dir(&path), Some(PathBuf::from("/var/lib/sy")));
        std::fs::write(&path, "data_dir: ${HOME}/sy\n").unwrap();
        assert_eq!(literal_data_dir(&path), None);
    }
}
