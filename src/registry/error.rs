//! [`RegistryError`]: why a change of the registry was refused; [`LeaseError`]: why a request has no
//! connection.

use crate::error::ErrorCode;
use crate::model::{ServerName, ServerSource};
use crate::pool::PoolError;
use crate::store::StoreError;

/// Why a request has no connection to its server. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// There is none to be had.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The server is isolated and so many requesters use sessions at it, or so many are ending.
    #[error("all {limit} sessions at the server are in use (max_sessions)")]
    SessionsFull {
        /// The limit.
        limit: u32,
    },
    /// The session that the request belongs to ended meanwhile.
    #[error("the session ended")]
    SessionEnded,
}

/// Why a change of the registry was refused.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No such server.
    #[error("there is no server `{server}`{}", crate::model::did_you_mean(nearest))]
    Unknown {
        /// The name asked for.
        server: String,
        /// Names like it.
        nearest: Vec<String>,
    },
    /// There is one of this name already.
    #[error("there is a server `{server}` already (source: {}); remove it first, or change it with PUT", source_kind.as_str())]
    Exists {
        /// The name.
        server: ServerName,
        /// Where the existing one came from.
        source_kind: ServerSource,
    },
    /// The server belongs to the configuration file.
    #[error("the server `{server}` comes from {}; change it there and reload (enable and disable work here)", if path.is_empty() { "the configuration file" } else { path })]
    FromFile {
        /// The name.
        server: ServerName,
        /// The file.
        path: String,
    },
    /// The server is gone from the file it came from.
    #[error(
        "the server `{server}` is gone from the configuration file; put it back there, or add it anew (or remove it) here"
    )]
    Retired {
        /// The name.
        server: ServerName,
    },
    /// The specification cannot be used.
    #[error("the server `{server}` cannot be used: {problem}")]
    Target {
        /// The name.
        server: ServerName,
        /// What is wrong.
        problem: String,
    },
    /// The database could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RegistryError {
    /// The code callers see.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown { .. } => ErrorCode::ServerNotFound,
            Self::Exists { .. } | Self::FromFile { .. } | Self::Retired { .. } => {
                ErrorCode::Conflict
            }
            Self::Target { .. } => ErrorCode::InvalidRequest,
            Self::Store(_) => ErrorCode::Unexpected,
        }
    }
}
