//! What an HTTP server refused: statuses that are no success, and errors of the protocol itself.
//!
//! Changes when another status or code means that a request was turned away.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap};
use serde::Deserialize;
use url::Url;

use super::endpoint::{Content, Endpoint, Reply, SESSION_ID, check_encoding, read_start, shown};
use super::error::{TransportError, sample};
use super::handshake;
use super::socket::Exchange;
use crate::clock;
use crate::model::Timestamp;
use crate::protocol::{Answer, AnswerKind, HttpRefusal, MessageKind, message_kind};

/// How long a refusal may be silent, and how long all of it may take: its status says what there is to
/// say.
const SILENCE: Duration = Duration::from_secs(1);
const BODY: Duration = Duration::from_secs(5);

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
        let by_status = |body| match status.is_server_error() {
            true => TransportError::ServerFault { status: code, body, retry_after },
            false => TransportError::Rejected { status: code, body },
        };
        if check_encoding(&exchange).is_err() {
            // The status says what there is to say. Whether the answer to `id` stands below cannot be
            // seen, so that no session is taken for lost here and the request is not sent again.
            exchange.finish().await;
            return Err(by_status("(compressed)".to_owned()));
        }
        let mut answer = None;
        let (body, names_no_session) = match Content::of(exchange.headers()) {
            Content::Json => {
                let (body, is_whole) = self.read_in_time(&mut exchange).await?;
                if !is_whole {
                    // As above.
                    return Err(by_status(sample(&body)));
                }
                exchange.finish().await;
                if message_kind(&body) == Ok(MessageKind::Answer(id)) {
                    answer = Answer::parse(&body, id).ok();
                }
                (sample(&body), message_of(&body).is_some_and(|said| is_of_no_session(&said)))
            }
            Content::Events | Content::Other(_) => {
                let body = read_start(&mut exchange).await;
                let names_no_session = is_of_no_session(&body);
                (body, names_no_session)
            }
        };
        let has_session = session.is_some_and(|headers| headers.contains_key(SESSION_ID));
        // What carries our id is the answer: the server has looked at the request, and may have run it.
        let gone = match status {
            // By the specification; some servers that say so in known words give the id as well.
            StatusCode::NOT_FOUND => answer.is_none() || names_no_session,
            // By the custom of some servers.
            StatusCode::BAD_REQUEST => answer.is_none() && names_no_session,
            _ => false,
        };
        if has_session && gone {
            return Ok(Reply::SessionGone(TransportError::Rejected { status: code, body }));
        }
        match answer {
            Some(answer) if answer.kind == AnswerKind::Error || !status.is_server_error() => {
                let refusal = Some(HttpRefusal { status: code, retry_after });
                Ok(Reply::Answer(Answer { refusal, ..answer }))
            }
            _ => Err(by_status(body)),
        }
    }

    /// The body of a refusal as far as it comes in time and within the limit, and whether that is all of
    /// it.
    async fn read_in_time(&self, exchange: &mut Exchange) -> Result<(Bytes, bool), TransportError> {
        let silence = self.stall.map_or(SILENCE, |stall| stall.min(SILENCE));
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let mut body = Vec::new();
        let reading = async {
            while let Some(bytes) = exchange.frame_in(Some(silence)).await.transpose()? {
                if body.len().saturating_add(bytes.len()) > limit {
                    return Ok(false);
                }
                body.extend_from_slice(&bytes);
                // A frame can be one byte.
                tokio::task::coop::consume_budget().await;
            }
            Ok(true)
        };
        let is_whole = match tokio::time::timeout(BODY, reading).await {
            Ok(Err(TransportError::Stalled { .. })) | Err(_) => false,
            Ok(read) => read?,
        };
        Ok((body.into(), is_whole))
    }
}

/// The message of a JSON-RPC error, or of what looks like one.
fn message_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal {
        error: Option<Problem>,
        message: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Problem {
        Text(String),
        Error { message: String },
    }
    let refusal: Refusal = serde_json::from_slice(body).ok()?;
    match refusal.error {
        Some(Problem::Text(message) | Problem::Error { message }) => Some(message),
        None => refusal.message,
    }
}

/// Whether this is how servers of the known SDKs say, before they look at a request, that it belongs to
/// no session of theirs. It is what they say and not a part of something longer: a message that only
/// mentions a session may be a tool's.
fn is_of_no_session(message: &str) -> bool {
    const SAID: [&str; 12] = [
        "no valid session id",
        "invalid session id",
        "invalid or missing session id",
        "invalid or expired session id",
        "missing session id",
        "mcp-session-id header is required",
        "session id is required",
        "session id required",
        "session id missing",
        "session not found",
        "could not find session",
        "no transport found for sessionid",
    ];
    let message = message.trim().to_ascii_lowercase();
    let said = ["bad request: ", "not found: "]
        .iter()
        .find_map(|status| message.strip_prefix(status))
        .unwrap_or(&message);
    SAID.iter().any(|words| said.starts_with(words))
}

/// Whether a post to the session of an event stream was turned away because the session is gone.
/// Nothing is sent again on account of it, so that any word of it will do.
pub(super) fn is_session_gone(status: u16, body: &str) -> bool {
    matches!(status, 404 | 410)
        || status == 400 && names_a_session(&body.to_ascii_lowercase())
        || is_session_unknown(status, body)
}

/// The same of a post that surely did not run and is sent again over another stream: that takes the
/// words of known servers, as text or in JSON.
pub(super) fn is_session_unknown(status: u16, body: &str) -> bool {
    let message = message_of(body.as_bytes());
    matches!(status, 400 | 404) && is_of_no_session(message.as_deref().unwrap_or(body))
}

/// The same of an error with our id, which some servers give.
pub(super) fn answers_for_no_session(answer: &Answer) -> bool {
    answer.kind == AnswerKind::Error
        && answer.refusal.is_some_and(|refusal| refusal.status == 404)
        && message_of(&answer.value).is_some_and(|said| is_of_no_session(&said))
}

fn names_a_session(body: &str) -> bool {
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

/// A protocol refusal of a modern server is told apart from an answer of the tool: it can be repeated.
/// Not with a 5xx, which may come after the effect whatever the code says.
pub(super) fn check_refusal(answer: Answer) -> Result<Answer, TransportError> {
    let is_fault = answer.refusal.is_some_and(|refusal| refusal.status >= 500);
    if let Some(code) = protocol_refusal(&answer).filter(|_| !is_fault) {
        let message = handshake::error_message(&answer);
        return Err(TransportError::RefusedByProtocol { code, message });
    }
    Ok(answer)
}

/// The code by which a server of the modern era refuses version or headers. In the era before, it is as
/// good as any that a tool may choose.
fn protocol_refusal(answer: &Answer) -> Option<i64> {
    // The shape is checked by eye first: results, which are most and can be large, are not read.
    (answer.kind == AnswerKind::Error)
        .then(|| handshake::error_code(answer))
        .flatten()
        .filter(|code| matches!(*code, handshake::UNSUPPORTED_VERSION | handshake::HEADER_MISMATCH))
}

/// Whether what the server speaks has to be found out anew, though this stays the answer: a legacy
/// conversation was answered as a modern server would, with such a code and status 400, or a modern one
/// with such a code and a 5xx.
pub(super) fn speaks_otherwise(answer: &Answer, modern: bool) -> bool {
    answer.refusal.is_some_and(|HttpRefusal { status, .. }| match modern {
        true => status >= 500,
        false => status == 400,
    }) && protocol_refusal(answer).is_some()
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
