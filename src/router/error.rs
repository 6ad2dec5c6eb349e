//! [`RouteError`]: every way in which a call does not get an answer of its upstream.

use std::time::Duration;

use crate::audit::AuditUnavailable;
use crate::catalogue::NotFound;
use crate::error::ErrorCode;
use crate::model::{
    Failure, Knowledge, Outcome, ServerName, ToolName, cut_after, did_you_mean, format_duration,
};
use crate::policy::{self, Rejection};
use crate::pool::TransportError;
use crate::protocol::RpcErrorCode;
use crate::registry::ServerBreaker;

use super::answer::UpstreamAnswer;
use super::upstream::{UpstreamError, UpstreamFailure};

/// The `reason` in error data: stable words for programs.
pub type Reason = &'static str;

/// Why a call has no upstream answer.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No tool of this name.
    #[error("there is no tool `{tool}`{}", did_you_mean(nearest))]
    ToolNotFound {
        /// The name asked for.
        tool: String,
        /// Names like it.
        nearest: Vec<String>,
    },
    /// Several servers have a tool of this name.
    #[error("several servers have a tool `{tool}`; say which: {}", candidates.join(", "))]
    ToolAmbiguous {
        /// The name asked for.
        tool: String,
        /// The clear names.
        candidates: Vec<String>,
    },
    /// Names are bare and several servers have it.
    #[error(
        "the tool name `{tool}` is offered by {}; with `naming: bare` none of them is exposed",
        list(servers)
    )]
    ToolCollision {
        /// The name asked for.
        tool: String,
        /// The servers.
        servers: Vec<ServerName>,
    },
    /// Its definition changed and waits for approval.
    #[error(
        "the definition of tool `{tool}` of server `{server}` changed and waits for approval (switchyard tools approve)"
    )]
    ToolHeld {
        /// The name asked for.
        tool: String,
        /// Its server.
        server: ServerName,
    },
    /// No server of this name.
    #[error("there is no server `{server}`{}", did_you_mean(nearest))]
    ServerNotFound {
        /// The name asked for.
        server: String,
        /// Names like it.
        nearest: Vec<String>,
    },
    /// The server is disabled.
    #[error("the server `{server}` is disabled (switchyard servers enable {server})")]
    ServerDisabled {
        /// The server.
        server: ServerName,
    },
    /// The tool may exist, but its server was never reached.
    #[error("the server `{server}` of tool `{tool}` could not be reached yet: {problem}")]
    ServerUnavailable {
        /// The server.
        server: ServerName,
        /// The name asked for.
        tool: String,
        /// What was wrong at the last try.
        problem: String,
    },
    /// The circuit breaker lets no attempt through.
    #[error("{}", breaker_text(server, tool.as_ref(), *rejection, note.as_deref()))]
    BreakerOpen {
        /// The server.
        server: ServerName,
        /// The tool, where it is the tool's own breaker.
        tool: Option<ToolName>,
        /// Why, and when to ask again.
        rejection: Rejection,
        /// What the operator who opened it gave as the reason. What made it open by itself is not
        /// told: it may quote what the server sent to another caller.
        note: Option<String>,
    },
    /// Too many calls at the server.
    #[error(
        "the server `{server}` has {limit} calls in flight and no place came free (max_concurrency)"
    )]
    Overloaded {
        /// The server.
        server: ServerName,
        /// Its limit.
        limit: u32,
    },
    /// The server is isolated and all its sessions are in use.
    #[error(
        "all {limit} sessions at the server `{server}` are in use (max_sessions); nothing was sent"
    )]
    SessionsFull {
        /// The server.
        server: ServerName,
        /// Its limit.
        limit: u32,
    },
    /// The session ended before the call was sent.
    #[error(
        "the session ended before the call was sent to the server `{server}`; nothing was sent"
    )]
    SessionEnded {
        /// The server.
        server: ServerName,
    },
    /// The ledger cannot take the call.
    #[error("{0}; nothing was sent")]
    AuditUnavailable(AuditUnavailable),
    /// The call is over, but its row could not be committed (`durability: strict`).
    #[error("{}", not_recorded(*.known))]
    NotRecorded {
        /// What is known of the tool's execution.
        known: Knowledge,
    },
    /// The server asks for input that the client cannot or did not give.
    #[error("{problem}")]
    NoInput {
        /// The server.
        server: Option<ServerName>,
        /// What is missing.
        problem: String,
    },
    /// The upstream could not be reached or did not answer properly. Boxed: answers are moved more
    /// often than errors.
    #[error("{0}")]
    Upstream(Box<UpstreamFailure>),
}

const fn not_recorded(known: Knowledge) -> &'static str {
    match known {
        Knowledge::Executed => {
            "the tool ran, but the call could not be recorded; do not repeat it blindly"
        }
        Knowledge::Unknown => {
            "the tool may have run, and the call could not be recorded; do not repeat it blindly"
        }
        Knowledge::Refused => {
            "the server refused the call and did not run the tool, and that could not be recorded"
        }
        Knowledge::NotSent => "nothing was sent, and that could not be recorded",
    }
}

fn breaker_text(
    server: &ServerName,
    tool: Option<&ToolName>,
    rejection: Rejection,
    note: Option<&str>,
) -> String {
    let of = tool.map(|tool| format!("tool `{tool}` of ")).unwrap_or_default();
    let because = note.map(|note| format!(" ({note})")).unwrap_or_default();
    match rejection {
        Rejection::Open { retry_after: Some(wait) } => format!(
            "the circuit breaker of {of}server `{server}` is open for another {}{because}; nothing was sent",
            rounded(wait)
        ),
        Rejection::Open { retry_after: None } => format!(
            "the circuit breaker of {of}server `{server}` is held open by an operator{because}; nothing was sent"
        ),
        Rejection::Probing { .. } => format!(
            "the circuit breaker of {of}server `{server}` is trying the server with another call{because}; nothing was sent"
        ),
    }
}

/// Fit for a sentence: whole seconds where it is more than one.
fn rounded(wait: Duration) -> String {
    let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    let shown = if millis > 1000 { millis.div_ceil(1000).saturating_mul(1000) } else { millis };
    format_duration(Duration::from_millis(shown))
}

fn list(servers: &[ServerName]) -> String {
    servers.iter().map(|server| format!("`{server}`")).collect::<Vec<_>>().join(" and ")
}

/// What a server refuses a call for, without having run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outdated {
    /// The definition that the headers repeating the call's parameters were made from.
    Definition,
    /// The version that was agreed on.
    Version,
    /// The session, where another one takes another connection.
    Session,
}

impl RouteError {
    pub(super) fn breaker(breaker: &ServerBreaker, rejection: Rejection) -> Self {
        let view = breaker.view();
        let note = view.forced.and_then(|order| order.note);
        Self::BreakerOpen { server: view.server, tool: view.tool, rejection, note }
    }

    /// This error of an attempt, with what is known of the call after an earlier one.
    pub(super) fn after(mut self, earlier: &Self, replay_safe: bool) -> Self {
        if let Self::Upstream(failed) = &mut self {
            failed.known = failed.known.and(earlier.knowledge());
            failed.repeat_is_safe = policy::repeat_is_safe(failed.known, replay_safe);
        }
        self
    }

    /// Of an attempt whose failure the server put into an answer, the answer: that is what callers get.
    pub(super) fn into_answer(self) -> Result<UpstreamAnswer, Self> {
        match self {
            Self::Upstream(failed) => failed.into_answer().map_err(Self::Upstream),
            other => Err(other),
        }
    }

    /// A repeat makes no sense earlier than this.
    pub(super) fn wait_at_least(&mut self, wait: Option<Duration>) {
        if let Self::Upstream(failed) = self {
            failed.retry_after = wait.max(failed.retry_after);
        }
    }

    pub(super) fn not_found(tool: &str, why: NotFound) -> Self {
        let tool = cut_after(tool, 128);
        match why {
            NotFound::Unknown { nearest } => Self::ToolNotFound { tool, nearest },
            NotFound::Ambiguous { candidates } => Self::ToolAmbiguous { tool, candidates },
            NotFound::Collision { servers } => Self::ToolCollision { tool, servers },
            NotFound::Held { server } => Self::ToolHeld { tool, server },
        }
    }

    /// What happened, without anything that the server says of it.
    #[must_use]
    pub fn in_our_words(&self) -> String {
        match self {
            Self::Upstream(failed) => failed.in_our_words(),
            Self::ServerUnavailable { server, tool, .. } => {
                format!("the server `{server}` of tool `{tool}` could not be reached yet")
            }
            other => other.to_string(),
        }
    }

    /// The code callers see.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::ToolNotFound { .. }
            | Self::ToolAmbiguous { .. }
            | Self::ToolCollision { .. }
            | Self::ToolHeld { .. } => ErrorCode::ToolNotFound,
            Self::ServerNotFound { .. } => ErrorCode::ServerNotFound,
            Self::ServerDisabled { .. } => ErrorCode::ServerDisabled,
            Self::ServerUnavailable { .. } => ErrorCode::Connection,
            Self::BreakerOpen { .. } => ErrorCode::CircuitOpen,
            Self::Overloaded { .. } | Self::SessionsFull { .. } => ErrorCode::Overloaded,
            Self::SessionEnded { .. } => ErrorCode::Cancelled,
            Self::AuditUnavailable(_) => ErrorCode::AuditUnavailable,
            Self::NotRecorded { known: Knowledge::NotSent | Knowledge::Refused } => {
                ErrorCode::AuditUnavailable
            }
            // Not a 503: whoever repeats a call that ran may run it twice.
            Self::NotRecorded { .. } => ErrorCode::Unexpected,
            Self::NoInput { .. } => ErrorCode::InputRequired,
            Self::Upstream(failed) => failed.source.code(),
        }
    }

    /// What of ours the server found to be old, where that is why it refused the call.
    pub(super) fn outdated(&self) -> Option<Outdated> {
        let Self::Upstream(failed) = self else { return None };
        let code = match &failed.source {
            UpstreamError::Request(TransportError::RefusedByProtocol { code, .. }) => code,
            UpstreamError::Request(TransportError::Forgotten { .. }) => {
                return Some(Outdated::Session);
            }
            _ => return None,
        };
        [
            (RpcErrorCode::HeaderMismatch, Outdated::Definition),
            (RpcErrorCode::UnsupportedVersion, Outdated::Version),
        ]
        .into_iter()
        .find_map(|(known, what)| (*code == known.number()).then_some(what))
    }

    /// How the call is recorded.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Upstream(failed) if failed.source.is_own_patience() => Outcome::Timeout,
            Self::Upstream(failed) => policy::outcome_of(failed.failure),
            Self::NotRecorded { known: Knowledge::NotSent | Knowledge::Refused } => {
                Outcome::Refused
            }
            Self::NotRecorded { .. } => Outcome::Ok,
            Self::SessionEnded { .. } => Outcome::Cancelled,
            Self::ServerUnavailable { .. } => Outcome::Unavailable,
            Self::ToolNotFound { .. }
            | Self::ToolAmbiguous { .. }
            | Self::ToolCollision { .. }
            | Self::ToolHeld { .. }
            | Self::ServerNotFound { .. }
            | Self::ServerDisabled { .. }
            | Self::BreakerOpen { .. }
            | Self::Overloaded { .. }
            | Self::SessionsFull { .. }
            | Self::NoInput { .. }
            | Self::AuditUnavailable(_) => Outcome::Refused,
        }
    }

    /// The class of the failure, where an attempt was made.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::Upstream(failed) => Some(failed.failure),
            _ => None,
        }
    }

    /// What is known of the tool's execution.
    #[must_use]
    pub fn knowledge(&self) -> Knowledge {
        match self {
            Self::NotRecorded { known } => *known,
            Self::Upstream(failed) => failed.known,
            // It answered with a question; what it did before is its own matter.
            Self::NoInput { .. } => Knowledge::Unknown,
            _ => Knowledge::NotSent,
        }
    }

    /// A stable word for what happened.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::ToolNotFound { .. } => "tool_not_found",
            Self::ToolAmbiguous { .. } => "tool_ambiguous",
            Self::ToolCollision { .. } => "tool_collision",
            Self::ToolHeld { .. } => "tool_held",
            Self::ServerNotFound { .. } => "server_not_found",
            Self::ServerDisabled { .. } => "server_disabled",
            Self::ServerUnavailable { .. } => "server_unavailable",
            Self::BreakerOpen { rejection: Rejection::Open { .. }, .. } => "breaker_open",
            Self::BreakerOpen { rejection: Rejection::Probing { .. }, .. } => "breaker_probing",
            Self::Overloaded { .. } => "overloaded",
            Self::SessionsFull { .. } => "sessions_full",
            Self::SessionEnded { .. } => "session_ended",
            Self::AuditUnavailable(_) => "audit_unavailable",
            Self::NotRecorded { .. } => "not_recorded",
            Self::NoInput { .. } => "no_input",
            // A last attempt that was not sent is not what matters after one that may have run.
            Self::Upstream(failed) => match (failed.known, failed.failure.knowledge()) {
                (Knowledge::Unknown, Knowledge::NotSent | Knowledge::Refused) => {
                    Failure::Ambiguous.as_str()
                }
                _ => failed.failure.as_str(),
            },
        }
    }

    /// Whether the caller can repeat the call without the risk of a second effect.
    #[must_use]
    pub fn retriable(&self) -> bool {
        match self {
            Self::Upstream(failed) => failed.repeat_is_safe,
            Self::NotRecorded { known } => {
                matches!(known, Knowledge::NotSent | Knowledge::Refused)
            }
            Self::BreakerOpen { .. }
            | Self::Overloaded { .. }
            | Self::SessionsFull { .. }
            | Self::AuditUnavailable(_)
            | Self::ServerUnavailable { .. } => true,
            Self::ToolNotFound { .. }
            | Self::ToolAmbiguous { .. }
            | Self::ToolCollision { .. }
            | Self::ToolHeld { .. }
            | Self::ServerNotFound { .. }
            | Self::ServerDisabled { .. }
            | Self::NoInput { .. }
            | Self::SessionEnded { .. } => false,
        }
    }

    /// When a repeat makes sense at the earliest.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Upstream(failed) => failed.retry_after,
            Self::BreakerOpen { rejection, .. } => rejection.retry_after(),
            Self::Overloaded { .. }
            | Self::SessionsFull { .. }
            | Self::AuditUnavailable(_)
            | Self::NotRecorded { .. } => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Names that would have worked.
    #[must_use]
    pub fn nearest(&self) -> &[String] {
        match self {
            Self::ToolNotFound { nearest, .. } | Self::ServerNotFound { nearest, .. } => nearest,
            Self::ToolAmbiguous { candidates, .. } => candidates,
            _ => &[],
        }
    }

    /// The server concerned, where one is.
    #[must_use]
    pub fn server(&self) -> Option<&ServerName> {
        match self {
            Self::ToolHeld { server, .. }
            | Self::ServerDisabled { server }
            | Self::ServerUnavailable { server, .. }
            | Self::BreakerOpen { server, .. }
            | Self::Overloaded { server, .. }
            | Self::SessionsFull { server, .. }
            | Self::SessionEnded { server } => Some(server),
            Self::Upstream(failed) => Some(&failed.server),
            Self::NoInput { server, .. } => server.as_ref(),
            Self::ToolNotFound { .. }
            | Self::ToolAmbiguous { .. }
            | Self::ToolCollision { .. }
            | Self::ServerNotFound { .. }
            | Self::AuditUnavailable(_)
            | Self::NotRecorded { .. } => None,
        }
    }
}
