//! [`DiscoveryError`]: why a list of a server could not be had.
//!
//! Changes when asking a server can fail in a new way.

use crate::store::StoreError;

/// Why a list of a server could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// It could not be reached or did not answer properly.
    #[error("{0}")]
    Unreachable(String),
    /// It is there and does not let us in (401 or 403).
    #[error("{0}")]
    Unauthorized(String),
    /// It answered with an error.
    #[error("the server answered {method} with the error {error}")]
    Refused {
        /// What it was asked.
        method: &'static str,
        /// The error, cut for display.
        error: String,
    },
    /// A list makes no sense.
    #[error("the server's answer to {method} cannot be used: {problem}")]
    BadList {
        /// What it was asked.
        method: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The server was changed or removed while it was asked.
    #[error("the server was changed while it was asked for its lists")]
    Replaced,
    /// The list could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl DiscoveryError {
    pub(super) fn of(error: &impl ToString, http_status: Option<u16>) -> Self {
        match http_status {
            Some(401 | 403) => Self::Unauthorized(error.to_string()),
            _ => Self::Unreachable(error.to_string()),
        }
    }
}
