//! [`Answers`]: the messages in one answer of the router, be it one JSON object or a stream.
//!
//! Changes when the router answers in another form.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use super::trouble::Trouble;
use crate::cli::client::{LARGEST_ANSWER, innermost};
use crate::protocol::{SseEvent, SseParser};

/// What is still to be read of an answer. Dropping it closes the connection, unless all was read.
pub(super) struct Answers {
    /// The answer's status.
    pub(super) status: StatusCode,
    /// The session it opens.
    pub(super) session: Option<String>,
    body: Option<Incoming>,
    stream: Option<SseParser>,
    events: VecDeque<SseEvent>,
    silence: Option<Duration>,
}

impl Answers {
    /// Begins to read. `silence` is how long the router may say nothing.
    pub(super) fn new(response: Response<Incoming>, silence: Option<Duration>) -> Self {
        let headers = response.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let media = text(CONTENT_TYPE.as_str()).unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim();
        let is_stream =
            response.status().is_success() && media.eq_ignore_ascii_case("text/event-stream");
        Self {
            status: response.status(),
            session: text("mcp-session-id").map(str::to_owned),
            stream: is_stream.then(|| SseParser::new(LARGEST_ANSWER)),
            body: Some(response.into_body()),
            events: VecDeque::new(),
            silence,
        }
    }

    /// Whether it is a stream, whose messages are more than the answer.
    pub(super) fn is_stream(&self) -> bool {
        self.stream.is_some()
    }

    /// The next message and the stream's id for it; `None` when the answer has ended.
    ///
    /// # Errors
    /// [`Trouble::Lost`] when it broke off.
    pub(super) async fn next(&mut self) -> Result<Option<(Bytes, Option<String>)>, Trouble> {
        let Some(parser) = &mut self.stream else {
            let Some(body) = self.body.take() else { return Ok(None) };
            let body = within(self.silence, Limited::new(body, LARGEST_ANSWER).collect()).await?;
            let body = body.map_err(|error| lost(&innermost(&*error)))?.to_bytes();
            return Ok(Some((body, None)));
        };
        loop {
            while let Some(event) = self.events.pop_front() {
                // Without data it only sets the id from which a stream could be resumed.
                if event.event == "message" && !event.data.trim_ascii().is_empty() {
                    return Ok(Some((event.data, event.id)));
                }
            }
            let Some(body) = &mut self.body else { return Ok(None) };
            let Some(frame) = within(self.silence, body.frame()).await? else {
                self.body = None;
                return Ok(None);
            };
            let frame = frame.map_err(|error| lost(&innermost(&error)))?;
            let Ok(data) = frame.into_data() else { continue };
            let mut events = Vec::new();
            parser.feed(&data, &mut events).map_err(|error| lost(&error.to_string()))?;
            self.events.extend(events);
        }
    }
}

fn lost(reason: &str) -> Trouble {
    Trouble::Lost(format!("the router did not finish its answer: {reason}"))
}

/// What `future` gives, if it does within `limit`.
///
/// # Errors
/// [`Trouble::Lost`] when it does not.
pub(super) async fn within<F: Future>(
    limit: Option<Duration>,
    future: F,
) -> Result<F::Output, Trouble> {
    let Some(limit) = limit else { return Ok(future.await) };
    tokio::time::timeout(limit, future).await.map_err(|_elapsed| {
        Trouble::Lost(format!("the router said nothing for {} seconds", limit.as_secs()))
    })
}
