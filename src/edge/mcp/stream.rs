//! Answers as event streams: what a server says before its answer, then the answer, then the end.
//!
//! A stream has no task: its body polls the call. When the connection ends the body is dropped,
//! and the call with it, or the call goes on by itself, as its era wants.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response};
use http_body_util::Either;
use hyper::body::{Body as HttpBody, Frame};
use tokio::time::Interval;
use tokio_util::task::TaskTracker;

use super::reply::{Answered, Pending, Work, json};
use super::resume::Journal;
use super::session::Questions;
use crate::edge::door::Body;
use crate::edge::inflight::GoesOn;
use crate::edge::sessions::Session;
use crate::router::{Relay, ServerMessage};

/// How long a stream may be silent before a comment says that it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const STILL_HERE: Bytes = Bytes::from_static(b": still here\n\n");
static BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Waits for the answer, or for the first thing to be said before it.
pub(super) async fn respond(pending: Pending) -> Response<Body> {
    let Pending { answer: mut work, relay, questions, resumable } = pending;
    let Some(relay) = relay else {
        let Answered { status, message } = work.await;
        return json(status, message);
    };
    // A client that waits for progress shall see that its call is alive.
    let mut silence = relay.wishes().wants_news().then(|| Box::pin(tokio::time::sleep(KEEP_ALIVE)));
    let first = poll_fn(|context| {
        if let Poll::Ready(said) = relay.poll_next(context) {
            return Poll::Ready(First::Said(said));
        }
        if let Poll::Ready(answered) = Pin::new(&mut work).poll(context) {
            // What was said while it was made comes before it.
            return Poll::Ready(match relay.poll_next(context) {
                Poll::Ready(Some(said)) => First::Both(said, answered),
                Poll::Ready(None) | Poll::Pending => First::Answer(answered),
            });
        }
        match &mut silence {
            Some(silence) => silence.as_mut().poll(context).map(|()| First::Silence),
            None => Poll::Pending,
        }
    });
    match first.await {
        First::Answer(Answered { status, message }) => json(status, message),
        First::Said(None) => {
            work.abandon();
            // Nobody waits for an answer, and HTTP wants one.
            event_stream(EventStream::ended())
        }
        First::Said(Some(said)) => {
            let mut stream = EventStream::new(relay, Some(work), questions).keeping(resumable);
            stream.talk.take(said);
            going_on(stream)
        }
        First::Both(said, answered) => {
            let mut stream = EventStream::new(relay, None, questions).keeping(resumable);
            stream.talk.take(said);
            stream.talk.finish(&answered);
            event_stream(stream)
        }
        First::Silence => {
            let mut stream = EventStream::new(relay, Some(work), questions).keeping(resumable);
            stream.ready.push_back(STILL_HERE);
            going_on(stream)
        }
    }
}

enum First {
    Answer(Answered),
    Said(Option<ServerMessage>),
    Silence,
    Both(ServerMessage, Answered),
}

/// The response around a stream on which the answer is still to come.
fn going_on(stream: EventStream) -> Response<Body> {
    let mut response = event_stream(stream);
    response.extensions_mut().insert(GoesOn);
    response
}

/// The response around a stream.
pub(super) fn event_stream<B>(stream: B) -> Response<Body>
where
    B: HttpBody<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let mut response = Response::new(Either::Right(axum::body::Body::new(stream)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(BUFFERING.clone(), HeaderValue::from_static("no"));
    response
}

/// What a stream needs to be taken up again.
pub(super) struct Resumable {
    pub(super) session: Arc<Session>,
    pub(super) tasks: TaskTracker,
}

/// A stream that can be taken up again, and its journal.
struct Kept {
    resumable: Resumable,
    journal: Arc<Journal>,
}

/// What is said on a stream, as events.
struct Talk {
    relay: Option<Arc<Relay>>,
    work: Option<Work>,
    questions: Option<Arc<Questions>>,
    said: VecDeque<Bytes>,
}

impl Talk {
    const fn nothing() -> Self {
        Self { relay: None, work: None, questions: None, said: VecDeque::new() }
    }

    fn take(&mut self, said: ServerMessage) {
        match said {
            ServerMessage::Notification(message) => self.said.push_back(event(&message)),
            ServerMessage::Request(request) => {
                // Without a session nobody could answer; the dropped request says so.
                if let Some(questions) = &self.questions {
                    self.said.push_back(event(&questions.ask(request)));
                }
            }
        }
    }

    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(event) = self.said.pop_front() {
                return Poll::Ready(Some(event));
            }
            let Some(relay) = self.relay.clone() else { return Poll::Ready(None) };
            match relay.poll_next(context) {
                Poll::Ready(Some(said)) => {
                    self.take(said);
                    continue;
                }
                Poll::Ready(None) => {
                    self.relay = None;
                    if let Some(work) = self.work.take() {
                        work.abandon();
                    }
                    return Poll::Ready(None);
                }
                Poll::Pending => {}
            }
            let Some(work) = &mut self.work else { return Poll::Pending };
            let Poll::Ready(answered) = Pin::new(work).poll(context) else { return Poll::Pending };
            self.work = None;
            self.finish(&answered);
        }
    }

    /// Ends with the answer; what was said while it was made comes before it.
    fn finish(&mut self, answered: &Answered) {
        if let Some(relay) = self.relay.take() {
            let context = Context::from_waker(Waker::noop());
            while let Poll::Ready(Some(said)) = relay.poll_next(&context) {
                self.take(said);
            }
        }
        self.said.push_back(event(&answered.message));
    }

    /// Lets a call whose connection broke go on; what it says waits for the client.
    async fn go_on(mut self, journal: Arc<Journal>) {
        while let Some(event) = poll_fn(|context| self.next(context)).await {
            journal.note(&event);
        }
        journal.close();
    }
}

/// A body of server-sent events.
pub(super) struct EventStream {
    talk: Talk,
    kept: Option<Kept>,
    /// To be sent as it is, before what is said.
    ready: VecDeque<Bytes>,
    silence: Interval,
    /// Runs when the stream ends, however it does.
    on_end: Option<Box<dyn Send>>,
}

impl EventStream {
    /// A stream of what comes through `relay`, ended by the message of `work`, or by the
    /// cancellation of the relay.
    pub(super) fn new(
        relay: Arc<Relay>,
        work: Option<Work>,
        questions: Option<Arc<Questions>>,
    ) -> Self {
        Self::of(Talk { relay: Some(relay), work, questions, said: VecDeque::new() })
    }

    fn of(talk: Talk) -> Self {
        let mut silence = tokio::time::interval(KEEP_ALIVE);
        // Else it would tick at once.
        silence.reset();
        Self { talk, kept: None, ready: VecDeque::new(), silence, on_end: None }
    }

    /// Keeps a journal of the stream, where it can be taken up again.
    fn keeping(mut self, resumable: Option<Resumable>) -> Self {
        if let Some(resumable) = resumable {
            let journal = resumable.session.live().journal();
            self.ready.push_back(journal.opening());
            self.kept = Some(Kept { resumable, journal });
        }
        self
    }

    fn ended() -> Self {
        let mut stream = Self::of(Talk::nothing());
        stream.ready.push_back(Bytes::from_static(b": cancelled\n\n"));
        stream
    }

    /// Drops `guard` when the stream ends.
    pub(super) fn holding(mut self, guard: impl Send + 'static) -> Self {
        self.on_end = Some(Box::new(guard));
        self
    }

    /// Sends a comment at once, so that the client sees the stream begin.
    pub(super) fn greeting(mut self) -> Self {
        self.ready.push_back(Bytes::from_static(b": open\n\n"));
        self
    }

    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(event) = self.ready.pop_front() {
            return Poll::Ready(Some(event));
        }
        if self.kept.as_ref().is_some_and(|kept| kept.journal.is_left(context)) {
            // Its client has come back on another connection.
            self.leave();
            return Poll::Ready(None);
        }
        let Poll::Ready(event) = self.talk.next(context) else { return Poll::Pending };
        let Some(event) = event else {
            if let Some(Kept { resumable, journal }) = self.kept.take() {
                journal.close();
                resumable.session.live().journals.sent(&journal);
            }
            return Poll::Ready(None);
        };
        Poll::Ready(Some(match &self.kept {
            Some(kept) => kept.journal.note(&event),
            None => event,
        }))
    }

    /// Goes on without the connection, where the client can come back for the rest.
    fn leave(&mut self) {
        let talk = std::mem::replace(&mut self.talk, Talk::nothing());
        match self.kept.take() {
            Some(Kept { resumable: Resumable { session, tasks }, journal })
                if tokio::runtime::Handle::try_current().is_ok() =>
            {
                session.live().journals.broke(&journal);
                tasks.spawn(talk.go_on(journal));
            }
            _ => {
                if let Some(relay) = &talk.relay {
                    relay.close();
                }
            }
        }
    }
}

impl HttpBody for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let now = match this.next(context) {
            Poll::Ready(Some(event)) => Some(event),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                let silent = this.silence.poll_tick(context).is_ready();
                silent.then_some(STILL_HERE)
            }
        };
        let Some(event) = now else { return Poll::Pending };
        this.silence.reset();
        Poll::Ready(Some(Ok(Frame::data(event))))
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        drop(self.on_end.take());
        self.leave();
    }
}

/// A message as one event. A line end in it, which JSON allows between tokens, would end the data
/// line; each line gets its own.
fn event(message: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(message.len() + 32);
    out.extend_from_slice(b"event: message\n");
    for line in message.split(|byte| matches!(byte, b'\n' | b'\r')) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.push(b'\n');
    out.into()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::SseParser;
    use crate::router::RelayWishes;

    /// The body of the answer when `said` is heard in the same step in which the answer is made.
    async fn body(said: &'static [&'static str]) -> String {
        let relay = Arc::new(Relay::new(RelayWishes::default()));
        let heard = Arc::clone(&relay);
        let answer = Work::Bound(Box::pin(async move {
            for message in said {
                heard.push(ServerMessage::Notification(Bytes::from_static(message.as_bytes())));
            }
            Answered { status: StatusCode::OK, message: b"{}".to_vec() }
        }));
        let pending = Pending { answer, relay: Some(relay), questions: None, resumable: None };
        let body = respond(pending).await.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn what_is_heard_together_with_the_answer_comes_before_it() {
        assert_eq!(body(&[]).await, "{}");
        let text = body(&["1", "2"]).await;
        let data: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data, ["1", "2", "{}"]);
    }

    proptest! {
        #[test]
        fn what_is_sent_as_an_event_is_read_as_the_same_json(
            text in "[a-z\\r\\n\\\\ é:]{0,30}", pretty: bool,
        ) {
            let value = serde_json::json!({ "a": text, "b": [1, { "c": text }] });
            let message = if pretty {
                serde_json::to_vec_pretty(&value).unwrap()
            } else {
                serde_json::to_vec(&value).unwrap()
            };
            let mut events = Vec::new();
            SseParser::new(1 << 16).feed(&event(&message), &mut events).unwrap();
            prop_assert_eq!(events.len(), 1);
            let read: serde_json::Value = serde_json::from_slice(&events[0].data).unwrap();
            prop_assert_eq!(read, value);
        }
    }
}
