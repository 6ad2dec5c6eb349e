//! [`UpstreamFailure`]: an attempt that got no proper answer, and what that says.
//!
//! Changes when an attempt can fail in a new way. What follows from it is `again`'s and the breaker's.

use std::time::Duration;

use crate::error::ErrorCode;
use crate::model::{Blame, Failure, Knowledge, ServerName, cut_after};
use crate::policy;
use crate::pool::{PoolError, TransportError};
use crate::protocol::{Answer, AnswerKind, RpcErrorCode};
use crate::registry::ServerHandle;

use super::answer::{UpstreamAnswer, error_in_our_words};
use super::spans::rpc_code;

/// Characters that a message of ours quotes of a server's error.
const QUOTED: usize = 200;

/// An attempt without a proper answer, and what is known of its call.
#[derive(Debug, thiserror::Error)]
#[error("{subject} server `{server}`: {problem}{}", advice(*known, *repeat_is_safe))]
pub struct UpstreamFailure {
    /// The server.
    pub server: ServerName,
    /// What was asked of it.
    pub subject: String,
    /// Whether a repeat cannot have a second effect.
    pub repeat_is_safe: bool,
    /// The limit that was in force.
    pub timeout: Duration,
    /// What happened, without the server's secrets.
    pub problem: String,
    /// What is known of the last attempt.
    pub failure: Failure,
    /// What is known of the call, after all its attempts.
    pub known: Knowledge,
    /// When a repeat makes sense at the earliest.
    pub retry_after: Option<Duration>,
    /// What happened, for its class; its own text is not for showing.
    pub source: UpstreamError,
}

/// What went wrong with the upstream.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// There was no connection.
    #[error(transparent)]
    Connect(#[from] PoolError),
    /// There was one, and the request failed.
    #[error(transparent)]
    Request(#[from] TransportError),
    /// There was one, and the server gave no sign of life over it when it was asked for one before
    /// the call.
    #[error("the server gave no sign of life: {0}")]
    NoLife(#[source] TransportError),
    /// It answered with an error of its own, and HTTP says that this is the server's failure. The caller
    /// gets that error, if no further attempt brings a better answer.
    #[error("the server answered {status}: `{said}`", status = status_of(.0), said = quoted(.0))]
    Answered(Answer),
}

/// Whether an answer is a failure of the server and not only of what it was asked: an error with a 5xx,
/// unless its code says that the request was wrong.
pub(super) fn is_server_fault(answer: &Answer) -> bool {
    const OF_THE_REQUEST: [RpcErrorCode; 4] = [
        RpcErrorCode::Parse,
        RpcErrorCode::InvalidRequest,
        RpcErrorCode::MethodNotFound,
        RpcErrorCode::InvalidParams,
    ];
    answer.kind == AnswerKind::Error
        && answer.refusal.is_some_and(|refusal| refusal.status >= 500)
        && !rpc_code(&answer.value).is_some_and(|code| {
            OF_THE_REQUEST.iter().any(|known| known.number().to_string() == code)
        })
}

fn status_of(answer: &Answer) -> u16 {
    answer.refusal.map_or(200, |refusal| refusal.status)
}

fn quoted(answer: &Answer) -> String {
    let text = cut_after(&String::from_utf8_lossy(&answer.value), QUOTED);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl UpstreamFailure {
    /// What a failed attempt at `server` comes to, when it is the only one.
    pub(super) fn new(
        server: &ServerHandle,
        subject: String,
        error: UpstreamError,
        timeout: Duration,
        replay_safe: bool,
    ) -> Self {
        let failure = error.failure_at(server.settings.unavailable_is_refusal);
        let known = failure.knowledge();
        Self {
            server: server.name.clone(),
            subject,
            repeat_is_safe: policy::repeat_is_safe(known, replay_safe),
            timeout,
            problem: server.scrub(&error.to_string()),
            failure,
            known,
            retry_after: error.retry_after(),
            source: error,
        }
    }
}

impl UpstreamFailure {
    /// The problem as it is kept: as it is, or without anything that the server says of it.
    pub(super) fn kept_problem(&self, in_our_words: bool) -> String {
        if in_our_words { self.source.in_our_words() } else { self.problem.clone() }
    }

    /// The whole, without anything that the server says of it.
    pub(super) fn in_our_words(&self) -> String {
        let Self { subject, server, known, repeat_is_safe, .. } = self;
        let problem = self.source.in_our_words();
        format!("{subject} server `{server}`: {problem}{}", advice(*known, *repeat_is_safe))
    }

    /// The answer of the server, where that is what failed.
    pub(super) fn into_answer(self: Box<Self>) -> Result<UpstreamAnswer, Box<Self>> {
        match &self.source {
            UpstreamError::Answered(answer) => Ok(UpstreamAnswer::of_error(answer.value.clone())),
            _ => Err(self),
        }
    }
}

impl UpstreamError {
    /// What went wrong, without anything that the server says of it.
    #[must_use]
    pub fn in_our_words(&self) -> String {
        match self {
            Self::Connect(error) => error.in_our_words(),
            Self::Request(error) => error.in_our_words(),
            Self::NoLife(error) => {
                format!("the server gave no sign of life: {}", error.in_our_words())
            }
            Self::Answered(answer) => {
                let error = error_in_our_words(&answer.value);
                format!("the server answered {} with a {error}", status_of(answer))
            }
        }
    }

    /// The class of the failure.
    #[must_use]
    pub fn failure(&self) -> Failure {
        match self {
            // Waiting for a connection until the deadline is a timeout of which it is known that
            // nothing was sent; that is what counts.
            Self::Connect(error) => error.failure(),
            Self::Request(error) => error.failure(),
            Self::NoLife(_) => Failure::NotSent,
            Self::Answered(_) => Failure::Ambiguous,
        }
    }

    /// The same, where the operator says whether a 503 means that the call was not run.
    pub(super) fn failure_at(&self, unavailable_is_refusal: bool) -> Failure {
        match self.failure() {
            Failure::Ambiguous if unavailable_is_refusal && self.http_status() == Some(503) => {
                Failure::Refused
            }
            failure => failure,
        }
    }

    /// The code callers see.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Connect(error) => error.code(),
            Self::Request(error) | Self::NoLife(error) => error.code(),
            Self::Answered(_) => ErrorCode::Connection,
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Connect(error) => error.retry_after(),
            Self::Request(error) | Self::NoLife(error) => error.retry_after(),
            Self::Answered(answer) => answer.refusal?.retry_after,
        }
    }

    /// Whether the same attempt could go better a moment later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Connect(error) => error.may_pass(),
            Self::Request(error) | Self::NoLife(error) => error.may_pass(),
            Self::Answered(_) => true,
        }
    }

    /// What it says of the server's health.
    pub(super) fn blame(&self) -> Blame {
        match self {
            Self::Connect(error) => error.blame(),
            Self::Request(error) | Self::NoLife(error) => error.blame(),
            Self::Answered(_) => Blame::Server,
        }
    }

    /// The HTTP status of the upstream, when that is what went wrong.
    pub(super) fn http_status(&self) -> Option<u16> {
        match self {
            Self::Connect(error) => error.http_status(),
            Self::Request(error) | Self::NoLife(error) => error.http_status(),
            Self::Answered(answer) => Some(status_of(answer)),
        }
    }

    /// Whether our own time ran out before there was a connection.
    pub(super) const fn is_own_patience(&self) -> bool {
        matches!(self, Self::Connect(PoolError::Waited { .. }))
    }

    /// Whether more time might have made it another end, where connections are waited for as long as
    /// `connect_timeout`.
    pub(super) fn ran_out_of_time(&self, connect_timeout: Duration) -> bool {
        match self {
            Self::Connect(error) => matches!(error, PoolError::Waited { .. }),
            Self::Request(error) | Self::NoLife(error) => match error {
                TransportError::Timeout { .. } | TransportError::NotRead { .. } => true,
                TransportError::ConnectTimeout { limit, .. } => *limit < connect_timeout,
                _ => false,
            },
            Self::Answered(_) => false,
        }
    }

    /// Whether it repeats what an earlier try found, without a try of its own.
    pub(super) const fn is_second_hand(&self) -> bool {
        matches!(self, Self::Connect(PoolError::Backoff { .. }))
    }
}

/// What an agent should know before it repeats.
fn advice(known: Knowledge, repeat_is_safe: bool) -> &'static str {
    match known {
        Knowledge::Unknown if !repeat_is_safe => "; the tool may have run, check before repeating",
        Knowledge::NotSent => "; nothing was sent",
        Knowledge::Unknown | Knowledge::Refused | Knowledge::Executed => "",
    }
}
