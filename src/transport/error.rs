//! [`TransportError`]: what can go wrong between us and one upstream.
//!
//! Changes when a transport can fail in a new way. Knows nothing of retries or of callers: it says
//! what happened and whether the request had left us, and others decide.

use std::sync::Arc;
use std::time::Duration;

use crate::error::ErrorCode;
use crate::model::{Blame, CUT, Failure, format_duration};
use crate::protocol::{AnswerError, SseError};

/// An error of a library below us.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why an upstream could not be opened or did not answer properly.
///
/// Texts never hold header values, environment values, query strings or credentials of a URL. They
/// can hold the first 200 bytes of what an upstream sent where an answer should have been.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The address cannot be used.
    #[error("could not use the address {address}: {reason}")]
    Address {
        /// The address without credentials and query.
        address: String,
        /// What is wrong with it and what to do.
        reason: &'static str,
    },
    /// No connection: refused, no such host, TLS failed.
    #[error("could not connect to {address}: {reason}; is the server running there?", reason = innermost(.source.as_ref()))]
    Connect {
        /// Where to.
        address: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The connection was not there in time.
    #[error("could not connect to {address} within {}", format_duration(*.limit))]
    ConnectTimeout {
        /// Where to.
        address: String,
        /// The time allowed.
        limit: Duration,
    },
    /// The connection closed before the request was written.
    #[error("the connection to {address} closed before the request was sent")]
    NotSent {
        /// Where to.
        address: String,
        /// Why.
        #[source]
        source: Arc<hyper::Error>,
    },
    /// The connection broke after the request was written.
    #[error("the connection to {address} broke before the answer was complete: {reason}", reason = innermost(.source))]
    Broken {
        /// Where to.
        address: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// Our clock ran out.
    #[error("no answer within {}", format_duration(*.elapsed))]
    Timeout {
        /// The time waited.
        elapsed: Duration,
    },
    /// The time ran out while the request still waited for the child to read its input.
    #[error(
        "the child process did not read its input for {}; the request was not sent",
        format_duration(*.elapsed)
    )]
    NotRead {
        /// The time waited.
        elapsed: Duration,
    },
    /// 401 or 403: the server is up and does not let us in.
    #[error("the server answered {status}; set headers.Authorization for it")]
    Unauthorized {
        /// 401 or 403.
        status: u16,
    },
    /// 429.
    #[error("the server answered 429: too many requests")]
    Throttled {
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// 3xx.
    #[error(
        "the server answered {status} and points to {location}; redirects are not followed, use that address as `url` if you trust it"
    )]
    Redirect {
        /// The status.
        status: u16,
        /// Where it points, without credentials and query.
        location: String,
    },
    /// 4xx without an answer of MCP: the request was turned away.
    #[error("the server answered {status}{}", quoted(.body))]
    Rejected {
        /// The status.
        status: u16,
        /// The first bytes of the body.
        body: String,
    },
    /// 5xx without an answer of MCP.
    #[error("the server answered {status}{}", quoted(.body))]
    ServerFault {
        /// The status.
        status: u16,
        /// The first bytes of the body.
        body: String,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The server does not take our protocol version or headers (-32022, -32020).
    #[error("the server refused the request before running it (error {code}): {message}")]
    RefusedByProtocol {
        /// JSON-RPC code.
        code: i64,
        /// The server's words.
        message: String,
    },
    /// The server does not know the session of our event stream (HTTP+SSE) and did not run the request.
    #[error("the server forgot the session of its event stream and answered {status}{}", quoted(.body))]
    Forgotten {
        /// The status.
        status: u16,
        /// The first bytes of the body.
        body: String,
    },
    /// The legacy session was lost and could not be made anew.
    #[error("the server forgot our session and a new one could not be made: {source}")]
    SessionLost {
        /// Why not.
        #[source]
        source: Arc<TransportError>,
    },
    /// What is at the address does not speak MCP.
    #[error("could not find an MCP server at {address}: {source}")]
    NotMcp {
        /// Where.
        address: String,
        /// What it answered to `initialize`.
        #[source]
        source: Box<TransportError>,
    },
    /// An answer that is no answer to our request.
    #[error("{source}{}", quoted(.sample))]
    NotAnAnswer {
        /// What is wrong with it.
        #[source]
        source: AnswerError,
        /// Its first bytes.
        sample: String,
    },
    /// Neither JSON nor an event stream.
    #[error(
        "the answer has the content type `{found}`, not application/json or text/event-stream{}; is this an MCP endpoint?",
        quoted(.body)
    )]
    ContentType {
        /// What came.
        found: String,
        /// The first bytes of the body.
        body: String,
    },
    /// A compressed answer, which we did not ask for.
    #[error("the answer is compressed ({encoding}) although only `identity` was accepted")]
    Encoding {
        /// `Content-Encoding`.
        encoding: String,
    },
    /// The event stream ended and our answer had not come.
    #[error("the event stream ended without an answer")]
    StreamEnded,
    /// The event stream that is the session (HTTP+SSE) ended.
    #[error("the event stream of the session ended{}", match .sent {
        Sent::Yes => " before the answer came",
        Sent::No => "; the request was not sent",
    })]
    StreamLost {
        /// Whether the request had been posted.
        sent: Sent,
    },
    /// The event stream does not say where to post messages (HTTP+SSE).
    #[error(
        "the server at {address} sent no `endpoint` event within {}; does it speak HTTP+SSE of 2024-11-05?",
        format_duration(*.limit)
    )]
    NoEndpoint {
        /// Where.
        address: String,
        /// The time allowed.
        limit: Duration,
    },
    /// The event stream wants messages to be posted elsewhere (HTTP+SSE).
    #[error(
        "the server at {address} wants messages sent to {found}, which is another origin; that is refused, because it would send requests and credentials to a host you did not name"
    )]
    ForeignEndpoint {
        /// Where the stream is.
        address: String,
        /// Where it points.
        found: String,
    },
    /// Too many requests wait on one connection.
    #[error(
        "{limit} requests wait for answers on the one connection to the server; one more was not sent"
    )]
    Full {
        /// How many may wait.
        limit: usize,
    },
    /// Too much waits for a child that is slow to read.
    #[error(
        "requests of {bytes} bytes wait for the child process to read its input; one more was not sent"
    )]
    Unread {
        /// How much waits.
        bytes: usize,
    },
    /// The event stream broke a limit.
    #[error("the event stream cannot be read: {0}")]
    EventStream(#[source] SseError),
    /// Larger than `max_response_size`.
    #[error("the answer is larger than {limit} bytes; raise max_response_size if it should be")]
    ResponseTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The stream of one answer brought too much beside it.
    #[error(
        "the server sent more than {events} events (max_events) or {bytes} bytes and no answer"
    )]
    StreamTooLong {
        /// How many events may come.
        events: u64,
        /// How many bytes may come.
        bytes: u64,
    },
    /// Interim responses (1xx) without end.
    #[error("the server sent interim responses (1xx) without end and no answer")]
    NoHead,
    /// An answer had begun and did not go on.
    #[error(
        "the answer began and then nothing came for {} (stall_timeout)",
        format_duration(*.silence)
    )]
    Stalled {
        /// The longest silence that is allowed.
        silence: Duration,
    },
    /// The server answered `initialize` with an error.
    #[error("the server refused the handshake: {message}")]
    HandshakeRefused {
        /// The server's error as JSON, cut.
        message: String,
    },
    /// The server wants a protocol version that we do not speak.
    #[error(
        "the server speaks protocol version {found}, which is none of 2024-11-05 to 2026-07-28"
    )]
    Version {
        /// What it asked for.
        found: String,
    },
    /// The command is not there.
    #[error(
        "the command `{command}` was not found; looked in PATH={path}. Install it, or give its absolute path as `command`"
    )]
    CommandNotFound {
        /// The command.
        command: String,
        /// The `PATH` of the child.
        path: String,
    },
    /// The working folder is not there.
    #[error("the working folder `{cwd}` for `{command}` does not exist; correct `cwd`")]
    NoSuchFolder {
        /// The command.
        command: String,
        /// The folder.
        cwd: String,
    },
    /// The child could not be started.
    #[error("could not start `{command}`: {source}")]
    Spawn {
        /// The command.
        command: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The child ended, or closed its output.
    #[error("{}", child_text(.status, .stderr, .printed))]
    ChildExited {
        /// How it ended.
        status: String,
        /// Its last lines on standard error.
        stderr: Vec<String>,
        /// Lines on its standard output that were not messages.
        printed: Vec<String>,
        /// Whether the request had gone into its input.
        sent: Sent,
    },
    /// A child that runs did not answer the handshake.
    #[error(
        "`{command}` started but did not answer the handshake within {}{}",
        format_duration(*.limit),
        tail_text(.stderr, .printed)
    )]
    NoHandshake {
        /// The command.
        command: String,
        /// The time allowed.
        limit: Duration,
        /// Its last lines on standard error.
        stderr: Vec<String>,
        /// Lines on its standard output that were not messages.
        printed: Vec<String>,
    },
    /// We closed the connection.
    #[error("the connection was closed")]
    Closed,
}

/// Whether a request had gone out when its connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It had, wholly or in part.
    Yes,
    /// Not a byte of it.
    No,
}

/// What others decide by.
struct Meaning {
    failure: Failure,
    code: ErrorCode,
    blame: Blame,
    may_pass: bool,
}

impl TransportError {
    /// What follows from each error.
    fn meaning(&self) -> Meaning {
        use Blame as B;
        use ErrorCode as C;
        use Failure as F;
        let meaning = |failure, code, blame, may_pass| Meaning { failure, code, blame, may_pass };
        match self {
            // We did it, or did not even try.
            Self::Closed | Self::Address { .. } => {
                meaning(F::NotSent, C::Connection, B::Nobody, false)
            }
            Self::Full { .. } | Self::Unread { .. } => {
                meaning(F::NotSent, C::Overloaded, B::Nobody, true)
            }
            // Nothing was sent.
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::NotSent { .. }
            | Self::NotRead { .. }
            | Self::Spawn { .. }
            | Self::NoHandshake { .. } => meaning(F::NotSent, C::Connection, B::Server, true),
            Self::CommandNotFound { .. } | Self::NoSuchFolder { .. } => {
                meaning(F::NotSent, C::Connection, B::Server, false)
            }
            Self::NoEndpoint { .. } => meaning(F::NotSent, C::Protocol, B::Server, true),
            Self::ForeignEndpoint { .. } | Self::HandshakeRefused { .. } | Self::Version { .. } => {
                meaning(F::NotSent, C::Protocol, B::Server, false)
            }
            Self::NotMcp { source, .. } => {
                Meaning { failure: F::NotSent, code: C::Protocol, ..source.meaning() }
            }
            // A gateway says so that gave up waiting, and what it waited for may have run.
            Self::Rejected { status: 408 | 460 | 499, .. } => {
                meaning(F::Ambiguous, C::Connection, B::Request, true)
            }
            // It was turned away.
            Self::Throttled { .. } => meaning(F::Refused, C::Connection, B::Request, true),
            Self::Unauthorized { .. } | Self::Redirect { .. } | Self::Rejected { .. } => {
                meaning(F::Refused, C::Connection, B::Request, false)
            }
            Self::RefusedByProtocol { .. } => meaning(F::Refused, C::Protocol, B::Nobody, false),
            Self::Forgotten { .. } => meaning(F::Refused, C::Connection, B::Nobody, false),
            Self::SessionLost { source } => {
                Meaning { failure: F::Refused, code: C::Connection, ..source.meaning() }
            }
            // It was sent, and what became of it is not known.
            Self::Broken { .. } | Self::ServerFault { .. } | Self::StreamEnded => {
                meaning(F::Ambiguous, C::Connection, B::Server, true)
            }
            Self::StreamLost { sent } | Self::ChildExited { sent, .. } => {
                let failure = match sent {
                    Sent::Yes => F::Ambiguous,
                    Sent::No => F::NotSent,
                };
                meaning(failure, C::Connection, B::Server, true)
            }
            Self::NotAnAnswer { .. } | Self::ContentType { .. } | Self::EventStream(_) => {
                meaning(F::Ambiguous, C::Protocol, B::Server, true)
            }
            Self::Encoding { .. } => meaning(F::Ambiguous, C::Protocol, B::Server, false),
            Self::ResponseTooLarge { .. } | Self::StreamTooLong { .. } | Self::NoHead => {
                meaning(F::Ambiguous, C::ResponseTooLarge, B::Server, false)
            }
            Self::Timeout { .. } | Self::Stalled { .. } => {
                meaning(F::Timeout, C::Timeout, B::Server, true)
            }
        }
    }

    /// Whether the request had left us, and what that says of a repeat.
    #[must_use]
    pub fn failure(&self) -> Failure {
        self.meaning().failure
    }

    /// The error code callers see.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.meaning().code
    }

    /// Whether the same request could go better a moment later. `false` for what only a change of a
    /// configuration, or of the server, mends.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        self.meaning().may_pass
    }

    /// What the error says of the server's health.
    #[must_use]
    pub fn blame(&self) -> Blame {
        self.meaning().blame
    }

    /// The HTTP status of the upstream, when that is what went wrong.
    #[must_use]
    pub fn http_status(&self) -> Option<u16> {
        match self {
            Self::Unauthorized { status }
            | Self::Redirect { status, .. }
            | Self::Rejected { status, .. }
            | Self::Forgotten { status, .. }
            | Self::ServerFault { status, .. } => Some(*status),
            Self::Throttled { .. } => Some(429),
            Self::SessionLost { source } => source.http_status(),
            Self::NotMcp { source, .. } => source.http_status(),
            _ => None,
        }
    }

    /// How long the upstream wants to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after } | Self::ServerFault { retry_after, .. } => *retry_after,
            Self::SessionLost { source } => source.retry_after(),
            _ => None,
        }
    }

    /// Whether we gave up an answer that the server may still be working at.
    pub(super) const fn is_given_up(&self) -> bool {
        matches!(
            self,
            Self::Stalled { .. }
                | Self::StreamTooLong { .. }
                | Self::NoHead
                | Self::ResponseTooLarge { .. }
        )
    }

    /// Whether the server could not be reached at all, so that asking it anything else is idle.
    pub(super) const fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::ConnectTimeout { .. }
                | Self::Address { .. }
                | Self::Closed
                | Self::Unauthorized { .. }
                | Self::Throttled { .. }
        )
    }
}

/// The cause at the bottom: the layers above it only repeat that something failed.
fn innermost<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// Bytes of a sample.
pub(super) const SAMPLE: usize = 200;

/// The first bytes of what was sent, fit for one line of an error; [`CUT`] at the end says that
/// there was more.
pub(super) fn sample(bytes: &[u8]) -> String {
    let start = bytes.get(..bytes.len().min(SAMPLE)).unwrap_or_default();
    let text = String::from_utf8_lossy(start);
    // A letter that the cut went through.
    let text = if start.len() < bytes.len() { text.trim_end_matches('\u{fffd}') } else { &text };
    // As lines of children are shown: whoever looks for secrets in it knows where lines were broken.
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines.join(" | ");
    let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if start.len() < bytes.len() {
        // And that the last one may not be whole.
        text.push(CUT);
    }
    text.trim().to_owned()
}

impl TransportError {
    /// What went wrong, without anything that the server says of it.
    #[must_use]
    pub fn in_our_words(&self) -> String {
        let words = match self {
            Self::Rejected { status, .. } | Self::ServerFault { status, .. } => {
                return format!("the server answered {status}");
            }
            Self::Redirect { status, .. } => {
                return format!(
                    "the server answered {status} and points elsewhere; redirects are not followed"
                );
            }
            Self::RefusedByProtocol { code, .. } => {
                return format!("the server refused the request before running it (error {code})");
            }
            Self::Forgotten { status, .. } => {
                return format!(
                    "the server forgot the session of its event stream and answered {status}"
                );
            }
            Self::SessionLost { source } => {
                let why = source.in_our_words();
                return format!(
                    "the server forgot our session and a new one could not be made: {why}"
                );
            }
            Self::NotMcp { address, source } => {
                let why = source.in_our_words();
                return format!("could not find an MCP server at {address}: {why}");
            }
            Self::ForeignEndpoint { address, .. } => {
                return format!(
                    "the server at {address} wants messages sent to another origin; that is refused"
                );
            }
            Self::ChildExited { status, .. } => return child_text(status, &[], &[]),
            Self::NoHandshake { command, limit, .. } => {
                let limit = format_duration(*limit);
                return format!(
                    "`{command}` started but did not answer the handshake within {limit}"
                );
            }
            Self::NotAnAnswer { .. } => "the answer is no JSON-RPC answer to the request",
            Self::ContentType { .. } => {
                "the content type of the answer is not application/json or text/event-stream; is this an MCP endpoint?"
            }
            Self::Encoding { .. } => {
                "the answer is compressed although only `identity` was accepted"
            }
            Self::HandshakeRefused { .. } => "the server refused the handshake",
            Self::Version { .. } => {
                "the server speaks a protocol version which is none of 2024-11-05 to 2026-07-28"
            }
            Self::Address { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::NotSent { .. }
            | Self::Broken { .. }
            | Self::Timeout { .. }
            | Self::NotRead { .. }
            | Self::Unauthorized { .. }
            | Self::Throttled { .. }
            | Self::StreamEnded
            | Self::StreamLost { .. }
            | Self::NoEndpoint { .. }
            | Self::Full { .. }
            | Self::Unread { .. }
            | Self::EventStream(_)
            | Self::ResponseTooLarge { .. }
            | Self::StreamTooLong { .. }
            | Self::NoHead
            | Self::Stalled { .. }
            | Self::CommandNotFound { .. }
            | Self::NoSuchFolder { .. }
            | Self::Spawn { .. }
            | Self::Closed => return self.to_string(),
        };
        words.to_owned()
    }
}

fn quoted(sample: &str) -> String {
    if sample.is_empty() { String::new() } else { format!(": `{sample}`") }
}

fn tail_text(stderr: &[String], printed: &[String]) -> String {
    let mut text = String::new();
    let tail = stderr.get(stderr.len().saturating_sub(5)..).unwrap_or_default();
    if !tail.is_empty() {
        text.push_str("; its last lines on standard error: ");
        text.push_str(&tail.join(" | "));
    }
    if !printed.is_empty() {
        text.push_str("; the server printed: ");
        text.push_str(&printed.join(" | "));
    }
    text
}

fn child_text(status: &str, stderr: &[String], printed: &[String]) -> String {
    format!("the server's process {status}{}", tail_text(stderr, printed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_have_nothing_of_what_the_server_says() {
        let body = || "Jane Doe, 4711".to_owned();
        let said = || vec![body()];
        let fault = || TransportError::ServerFault { status: 500, body: body(), retry_after: None };
        for (error, expected) in [
            (fault(), "the server answered 500"),
            (TransportError::Rejected { status: 400, body: body() }, "the server answered 400"),
            (
                TransportError::SessionLost { source: Arc::new(fault()) },
                "the server forgot our session and a new one could not be made: the server answered 500",
            ),
            (
                TransportError::RefusedByProtocol { code: -32022, message: body() },
                "the server refused the request before running it (error -32022)",
            ),
            (
                TransportError::ChildExited {
                    status: "exited with 1".to_owned(),
                    stderr: said(),
                    printed: said(),
                    sent: Sent::Yes,
                },
                "the server's process exited with 1",
            ),
            (
                TransportError::NotAnAnswer {
                    source: AnswerError::NotJsonRpc(body()),
                    sample: body(),
                },
                "the answer is no JSON-RPC answer to the request",
            ),
            (
                TransportError::ContentType { found: "text/html".to_owned(), body: body() },
                "the content type of the answer is not application/json or text/event-stream; is this an MCP endpoint?",
            ),
        ] {
            assert_eq!(error.in_our_words(), expected);
        }
        let timeout = TransportError::Timeout { elapsed: Duration::from_secs(1) };
        assert_eq!(timeout.in_our_words(), timeout.to_string());
    }

    #[test]
    fn a_sample_shows_lines_as_those_of_children_are_shown() {
        for (bytes, expected) in
            [("\r\n<a>\r\n  <b>\tc\n\n", "<a> | <b> c"), ("abc\ndef", "abc | def"), ("", "")]
        {
            assert_eq!(sample(bytes.as_bytes()), expected);
        }
        let long = sample("é\n".repeat(200).as_bytes());
        assert!(long.starts_with("é | é | ") && long.ends_with(CUT), "{long}");
    }
}
