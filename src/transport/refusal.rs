//! What an HTTP server refused: statuses that are no success, and errors of the protocol itself.
//!
//! Changes when another status or code means that a request was turned away.

use std::time::Duration;

use http::StatusCode;
use http::header::{self, HeaderMap};
use url::Url;

use super::endpoint::{Content, Endpoint, Reply, SESSION_ID, read_start, shown};
use super::error::{TransportError, sample};
use super::handshake;
use super::socket::Exchange;
use crate::clock;
use crate::model::Timestamp;
use crate::protocol::{Answer, AnswerKind, MessageKind, message_kind};

impl Endpoint {
    /// Reads what a request of ours was refused with, which can be the answer to `id`.
    pub(super) async fn read_refusal(
        &self,
        mut exchange: Exchange,
        id: u64,
        session: Option<&HeaderMap>,
    ) -> Result<Reply, TransportError> {
        let status = exchange.status();
        let code = status.as_u16();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                exchange.finish().await;
                return Err(TransportError::Unauthorized { status: code });
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let retry_after = retry_after(exchange.headers());
                exchange.finish().await;
                return Err(TransportError::Throttled { retry_after });
            }
            _ if status.is_redirection() => {
                let location = location(exchange.headers());
                exchange.finish().await;
                return Err(TransportError::Redirect { status: code, location });
            }
            _ => {}
        }
        let retry_after = retry_after(exchange.headers());
        let mut answer = None;
        let body = match Content::of(exchange.headers()) {
            Content::Json => {
                let body = exchange.collect(self.limit, self.stall).await?;
                exchange.finish().await;
                if message_kind(&body) == Ok(MessageKind::Answer(id)) {
                    answer = Answer::parse(&body, id).ok();
                }
                sample(&body)
            }
            Content::Events | Content::Other(_) => read_start(&mut exchange).await,
        };
        let has_session = session.is_some_and(|headers| headers.contains_key(SESSION_ID));
        if has_session && is_session_gone(status, &body, answer.is_some()) {
            return Ok(Reply::SessionGone(TransportError::Rejected { status: code, body }));
        }
        match answer {
            Some(answer) if answer.kind == AnswerKind::Error => Ok(Reply::Answer(answer)),
            _ if status.is_server_error() => {
                Err(TransportError::ServerFault { status: code, body, retry_after })
            }
            _ => Err(TransportError::Rejected { status: code, body }),
        }
    }
}

/// 404 says it by the specification. Some servers say 400 and that there is no such session, in an
/// error without our id: they did not look at the request either.
pub(super) fn is_session_gone(status: StatusCode, body: &str, answers_us: bool) -> bool {
    status == StatusCode::NOT_FOUND
        || (status == StatusCode::BAD_REQUEST
            && !answers_us
            && names_a_lost_session(&body.to_ascii_lowercase()))
}

/// How servers of the known SDKs say it. A message that only mentions a session may be the server's
/// opinion of the arguments.
fn names_a_lost_session(body: &str) -> bool {
    const SAID: [&str; 8] = [
        "session id",
        "session-id",
        "session not found",
        "no valid session",
        "invalid session",
        "unknown session",
        "session expired",
        "no such session",
    ];
    SAID.iter().any(|said| body.contains(said))
}

/// A protocol refusal is told apart from an answer of the tool: it can be repeated.
pub(super) fn check_refusal(answer: Answer) -> Result<Answer, TransportError> {
    // The shape is checked by eye first: results, which are most and can be large, are not read.
    if answer.kind == AnswerKind::Error
        && let Some(code @ (handshake::UNSUPPORTED_VERSION | handshake::HEADER_MISMATCH)) =
            handshake::error_code(&answer)
    {
        let message = handshake::error_message(&answer);
        return Err(TransportError::RefusedByProtocol { code, message });
    }
    Ok(answer)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Timestamp::from_millis(at.as_millisecond()).since(clock::timestamp()))
}

fn location(headers: &HeaderMap) -> String {
    let Some(text) = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()) else {
        return "nowhere".to_owned();
    };
    match Url::parse(text) {
        Ok(url) => shown(&url),
        Err(_) => text.split(['?', '#']).next().map(|s| sample(s.as_bytes())).unwrap_or_default(),
    }
}
