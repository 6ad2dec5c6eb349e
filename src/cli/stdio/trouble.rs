//! [`Trouble`]: why a message had no answer, and what its sender is told.
//!
//! Changes when a failure on the way to the router deserves its own words. What is known of the
//! request decides whether it may be said again, so each failure says that.

use serde_json::json;

use crate::cli::client::ClientError;
use crate::model::Knowledge;
use crate::protocol::{RpcErrorCode, error_response};

/// Why a message had no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There was no connection: the message never left us.
    Unreachable(String),
    /// The same, and waiting will not help.
    Barred(String),
    /// It left us, and no whole answer came.
    Lost(String),
    /// The router knows no session of this generation; it did not run the message.
    SessionGone(u64),
    /// The router misses headers that a tool's definition asks for; it did not run the message.
    HeadersDiffer,
    /// The router said no in words that are no JSON-RPC.
    Refused(String),
    /// The router failed, or answered in words that are none.
    Failed(String),
    /// The client reads no more.
    ClientGone,
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match error {
            ClientError::NoRouter(_)
            | ClientError::Unreachable { .. }
            | ClientError::Socket { .. } => Self::Unreachable(text),
            ClientError::Denied(_) | ClientError::Address(_) | ClientError::Key => {
                Self::Barred(text)
            }
            ClientError::Broken(_)
            | ClientError::Silent { .. }
            | ClientError::Unreadable { .. }
            | ClientError::StreamEnded => Self::Lost(text),
            ClientError::Refused(_) => Self::Refused(text),
        }
    }
}

impl Trouble {
    /// The stable name, `data.reason` of the error.
    const fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) | Self::Barred(_) => "router_unreachable",
            Self::Lost(_) => "router_connection_lost",
            Self::SessionGone(_) => "router_session_lost",
            Self::HeadersDiffer => "header_mismatch",
            Self::Refused(_) => "router_refused",
            Self::Failed(_) => "router_failed",
            Self::ClientGone => "client_gone",
        }
    }

    /// What is known of the message's execution.
    const fn knowledge(&self) -> Knowledge {
        match self {
            Self::Unreachable(_) | Self::Barred(_) => Knowledge::NotSent,
            Self::Lost(_) | Self::Failed(_) | Self::ClientGone => Knowledge::Unknown,
            Self::SessionGone(_) | Self::HeadersDiffer | Self::Refused(_) => Knowledge::Refused,
        }
    }

    /// What to tell, on one line.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Unreachable(text)
            | Self::Barred(text)
            | Self::Lost(text)
            | Self::Refused(text)
            | Self::Failed(text) => text.replace('\n', "; "),
            Self::SessionGone(_) => {
                "the router does not know this session any more; connect again".to_owned()
            }
            Self::HeadersDiffer => {
                "the router expects other headers for this tool; list the tools again".to_owned()
            }
            Self::ClientGone => "the client reads no more".to_owned(),
        }
    }

    /// The error for the request with this id.
    pub(super) fn answer(&self, id: &str) -> Vec<u8> {
        let outcome = self.knowledge().as_str();
        let data = json!({ "reason": self.reason(), "outcome": outcome }).to_string();
        let code = RpcErrorCode::Internal.number();
        error_response(Some(id), code, &self.text(), Some(&data))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn an_error_says_what_to_do_and_what_is_known() {
        let trouble = Trouble::from(ClientError::NoRouter(PathBuf::from("/data")));
        let answer = String::from_utf8(trouble.answer("\"a\"")).unwrap();
        assert!(answer.starts_with(r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32603,"#));
        assert!(answer.contains("switchyard serve") && answer.contains("/data"), "{answer}");
        assert!(answer.contains(r#""outcome":"not_sent""#), "{answer}");
        assert!(!answer.contains("\\n"), "{answer}");
        let lost = Trouble::from(ClientError::Broken("reset".to_owned())).answer("1");
        assert!(String::from_utf8(lost).unwrap().contains(r#""outcome":"unknown""#));
    }
}
