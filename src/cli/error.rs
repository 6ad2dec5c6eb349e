//! [`CliError`]: why a command failed, and the exit code that says so.
//!
//! Changes when an exit code or a kind of failure is added. Exit codes are part of the interface:
//! 0 done, 1 the call or check failed, 2 usage or configuration, 3 router unreachable, 4 data folder
//! in use, 5 database damaged or newer, 10, 11 and 12 what `audit verify` found, 130 ended by a signal
//! before it was done.

use std::io;
use std::path::PathBuf;

use super::call::ArgumentError;
use super::client::ClientError;
use super::servers::AddError;
use super::when::WhenError;
use crate::app::StartError;
use crate::config::ConfigError;
use crate::model::{NameError, UnitError};
use crate::store::StoreError;

/// How a command that ran to its end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It did what was asked.
    Done,
    /// It ran, and what it ran failed: a call, a check. Said already.
    Failed,
    /// It ran, and what it found has an exit code of its own. Said already.
    Code(u8),
}

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is wrong.
    #[error("{}", .0.with_source())]
    Config(#[from] ConfigError),
    /// There is no configuration to look at.
    #[error(
        "no configuration file: `{0}` does not exist; name one, as in `switchyard check my.yaml`"
    )]
    NoConfig(PathBuf),
    /// The router could not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The router could not be asked, or said no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The files in the data folder cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Checkpoints cannot be read.
    #[error("could not read the checkpoints in {}: {source}", folder.display())]
    Checkpoints {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The arguments of a call are wrong.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// A server cannot be added like this.
    #[error(transparent)]
    Add(#[from] AddError),
    /// Not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Not a duration or size.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// Not a point in time.
    #[error(transparent)]
    When(#[from] WhenError),
    /// What cannot be undone was not confirmed.
    #[error("nothing was done: it cannot be undone and was not confirmed; say --yes")]
    Unconfirmed,
    /// Standard output could not be written; a reader that went away is no failure.
    #[error("could not write to standard output: {0}")]
    Output(#[source] io::Error),
    /// A file cannot be written where it was asked for.
    #[error("could not write `{}`: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Options of an export that do not go together.
    #[error("{0}")]
    ExportOptions(&'static str),
    /// A file cannot be read.
    #[error("could not read `{}`: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What stands where a file was asked for is none.
    #[error("`{}` is not a file; leave --out away and redirect standard output", .0.display())]
    NotAFile(PathBuf),
    /// A signal came before a file was complete.
    #[error("interrupted; nothing was written")]
    NothingWritten,
    /// Signals cannot be received.
    #[error("could not listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// The folder of a router that runs for a command alone.
    #[error("could not {doing} a temporary folder: {source}")]
    TempFolder {
        /// What it was about to do.
        doing: &'static str,
        /// Why it could not.
        #[source]
        source: io::Error,
    },
    /// Something the demo needs could not be had.
    #[error("the demo could not {doing}: {source}")]
    Demo {
        /// What it was about to do.
        doing: &'static str,
        /// Why it could not.
        #[source]
        source: io::Error,
    },
    /// The pipes to an MCP client could not be served.
    #[error("could not {doing}: {source}")]
    Pipe {
        /// What it was about to do.
        doing: &'static str,
        /// Why it could not.
        #[source]
        source: io::Error,
    },
    /// The hidden upstream failed.
    #[error("the demo upstream failed: {0}")]
    Upstream(String),
    /// A second signal: the user does not want to wait.
    #[error("ended without waiting for calls in flight")]
    Interrupted,
}

impl CliError {
    /// The process' exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Start(error) => error.exit_code(),
            Self::Client(error) => error.exit_code(),
            Self::Store(error) => error.exit_code(),
            Self::Checkpoints { .. } => 2,
            Self::Config(_)
            | Self::NoConfig(_)
            | Self::Argument(_)
            | Self::Add(_)
            | Self::Name(_)
            | Self::Unit(_)
            | Self::When(_)
            | Self::NotAFile(_)
            | Self::ExportOptions(_)
            | Self::Unreadable { .. }
            | Self::Unconfirmed => 2,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Output(_)
            | Self::File { .. }
            | Self::Signals(_)
            | Self::TempFolder { .. }
            | Self::Demo { .. }
            | Self::Pipe { .. }
            | Self::Upstream(_) => 1,
            Self::Interrupted | Self::NothingWritten => 130,
        }
    }

    /// Whether there is nothing to tell: the reader of our output has seen enough.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
