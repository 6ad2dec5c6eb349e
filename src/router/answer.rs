//! [`CallAnswer`]: what the doors render.

use std::time::Duration;

use bytes::Bytes;

use super::RouteError;
use super::spans::rpc_code;
use crate::error::ErrorCode;
use crate::model::{CallId, Outcome, ServerName, ToolCall};
use crate::protocol::{AnswerKind, ResultFacts};

/// What an upstream said, byte for byte.
#[derive(Debug)]
pub struct UpstreamAnswer {
    /// Result or JSON-RPC error.
    pub kind: AnswerKind,
    /// The value.
    pub value: Bytes,
    /// What its top level says.
    pub facts: ResultFacts,
    /// What that makes of the call.
    pub outcome: Outcome,
}

impl UpstreamAnswer {
    /// A JSON-RPC error.
    pub(super) fn of_error(value: Bytes) -> Self {
        let facts = ResultFacts::default();
        Self { kind: AnswerKind::Error, value, facts, outcome: Outcome::RpcError }
    }

    /// The code, where it is a JSON-RPC error.
    pub(super) fn rpc_code(&self) -> Option<String> {
        match self.kind {
            AnswerKind::Error => rpc_code(&self.value),
            AnswerKind::Result => None,
        }
    }

    /// What went wrong, without anything that the server says of it.
    pub(super) fn in_our_words(&self) -> Option<String> {
        match self.outcome {
            Outcome::ToolError => Some("the tool reported an error".to_owned()),
            Outcome::RpcError => Some(error_in_our_words(&self.value)),
            _ => None,
        }
    }
}

/// A JSON-RPC error without its message and data.
pub(super) fn error_in_our_words(error: &[u8]) -> String {
    let code = rpc_code(error).map(|code| format!(" {code}")).unwrap_or_default();
    format!("JSON-RPC error{code}")
}

/// The end of a call.
#[derive(Debug)]
pub struct CallAnswer {
    /// The call.
    pub id: CallId,
    /// The name it was called by.
    pub tool: String,
    /// The server it went to, where one was found.
    pub server: Option<ServerName>,
    /// Attempts made.
    pub attempts: u32,
    /// From entry to end.
    pub total: Duration,
    /// What came of it.
    pub result: Result<UpstreamAnswer, RouteError>,
}

impl CallAnswer {
    pub(super) fn unrecorded(call: &ToolCall, error: RouteError, total: Duration) -> Self {
        Self {
            id: call.id,
            tool: call.target.tool.clone(),
            server: None,
            attempts: 0,
            total,
            result: Err(error),
        }
    }

    /// The code of the failure, also of one that the tool or the upstream reported.
    #[must_use]
    pub fn error_code(&self) -> Option<ErrorCode> {
        match &self.result {
            Ok(answer) => code_of(answer.outcome),
            Err(error) => Some(error.code()),
        }
    }
}

/// The code of what an upstream reported.
pub(super) const fn code_of(outcome: Outcome) -> Option<ErrorCode> {
    match outcome {
        Outcome::ToolError => Some(ErrorCode::Tool),
        Outcome::RpcError => Some(ErrorCode::Rpc),
        Outcome::Ok
        | Outcome::Timeout
        | Outcome::Unavailable
        | Outcome::Refused
        | Outcome::Cancelled
        | Outcome::Interrupted => None,
    }
}
