//! [`Relay`]: the way back to a caller for what a server says while its request is under way.
//!
//! Changes when what may be said during a request changes. Carries progress, log messages and
//! requests of the server to whoever answers the caller; and the caller's cancellation the other
//! way. It is a short queue with a waker and no task of its own: the future that serves the caller
//! takes from it between polls of the call.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::protocol::{
    Answer, AnswerKind, ClientAbilities, LogLevel, RawObject, error_response, log_level,
    result_response,
};

/// Messages that wait for a slow caller. A transport that reads for one caller alone waits beyond
/// that; one that reads for many drops the oldest notification.
const QUEUE: usize = 64;
/// The same in bytes.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Messages that wait for a client which only listens. Whoever falls behind further cannot be told
/// everything: its stream ends, and it comes back and looks for itself.
const LISTENER_QUEUE: usize = 1024;
/// How long a client may take to answer a request of a server; people may have to decide.
const CLIENT_PATIENCE: Duration = Duration::from_secs(600);

/// What the caller wants to hear.
#[derive(Debug, Clone, Default)]
pub struct RelayWishes {
    /// The caller's progress token as JSON; none: no progress.
    pub progress_token: Option<Box<str>>,
    /// The least severe log message it wants; none: no log messages.
    pub log_level: Option<LogLevel>,
    /// Whether it said so itself: only then a modern server is asked for log messages.
    pub asks_for_log: bool,
    /// The requests it can answer.
    pub abilities: ClientAbilities,
}

impl RelayWishes {
    /// Whether the caller asked to hear anything while it waits.
    #[must_use]
    pub const fn wants_news(&self) -> bool {
        self.progress_token.is_some() || self.asks_for_log
    }
}

/// A request of a server on its way to the client that must answer it.
#[derive(Debug)]
pub struct ServerRequest {
    /// JSON-RPC method.
    pub method: String,
    /// `params` as JSON.
    pub params: Option<Bytes>,
    /// Takes the answer. Dropped unanswered, the server is told that nobody will.
    pub reply: oneshot::Sender<Answer>,
}

/// Something for the caller.
#[derive(Debug)]
pub enum ServerMessage {
    /// A whole JSON-RPC notification, ready to send.
    Notification(Bytes),
    /// A request, which needs an id of ours.
    Request(ServerRequest),
}

/// Between one call under way and whoever answers its caller.
pub struct Relay {
    wishes: RelayWishes,
    /// Whether a message must not be lost: the stream ends when one would be.
    whole: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<ServerMessage>,
    /// Bytes of the notifications in it.
    bytes: usize,
    cancelled: bool,
    /// Nobody listens any more.
    closed: bool,
    /// A request of the server went to the caller.
    asked: bool,
    /// The furthest progress that the caller was told.
    progress: Option<f64>,
    /// Progress must be beyond this: the request was made anew, and what the caller was told must
    /// not go backwards (specification, basic/utilities/progress).
    floor: Option<f64>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn is_full(&self) -> bool {
        self.queue.len() >= QUEUE || self.bytes >= QUEUE_BYTES
    }
}

fn size(message: &ServerMessage) -> usize {
    match message {
        ServerMessage::Notification(bytes) => bytes.len(),
        ServerMessage::Request(_) => 0,
    }
}

impl Relay {
    /// A relay for a caller with these wishes.
    #[must_use]
    pub fn new(wishes: RelayWishes) -> Self {
        Self { wishes, whole: false, state: Mutex::default() }
    }

    /// A relay for a client that only listens.
    #[must_use]
    pub fn of_listener(wishes: RelayWishes) -> Self {
        Self { whole: true, ..Self::new(wishes) }
    }

    /// What the caller wants to hear.
    #[must_use]
    pub const fn wishes(&self) -> &RelayWishes {
        &self.wishes
    }

    /// Hands on a notification of the server that belongs to the request with the id `request_id`
    /// of ours, if the caller wants it. `message` is the whole JSON-RPC message.
    ///
    /// Progress gets the caller's own token; progress with a token that is not `request_id` belongs
    /// to somebody else and is dropped.
    pub fn notify(&self, method: &str, message: &Bytes, request_id: u64) {
        let message = match method {
            "notifications/progress" => self.own_progress(message, request_id),
            "notifications/message" => {
                let level = log_level(message);
                let wanted =
                    self.wishes.log_level.zip(level).is_some_and(|(least, it)| it >= least);
                wanted.then(|| message.clone())
            }
            _ => Some(message.clone()),
        };
        if let Some(message) = message {
            self.push(ServerMessage::Notification(message));
        }
    }

    /// Hands on a request of the server; gives it back when the caller cannot answer it.
    ///
    /// # Errors
    /// The request, when the caller did not declare the capability or is gone.
    pub fn request(&self, request: ServerRequest) -> Result<(), ServerRequest> {
        let deaf = {
            let state = self.state.lock();
            state.closed || state.cancelled
        };
        if deaf || !self.wishes.abilities.covers(&request.method) {
            return Err(request);
        }
        self.state.lock().asked = true;
        self.push(ServerMessage::Request(request));
        Ok(())
    }

    /// Whether the caller was asked something: making its request anew would ask it again.
    #[must_use]
    pub fn has_asked(&self) -> bool {
        self.state.lock().asked
    }

    /// The request is made anew: progress counts from the beginning, and is told from where it was.
    pub fn begin_again(&self) {
        let mut state = self.state.lock();
        state.floor = state.progress;
    }

    fn own_progress(&self, message: &Bytes, request_id: u64) -> Option<Bytes> {
        let own = self.wishes.progress_token.as_deref()?;
        let text = std::str::from_utf8(message).ok()?;
        let params = RawObject::parse(text).ok()?.get("params")?.get();
        let params = RawObject::parse(params).ok()?;
        let token = params.get("progressToken")?.get();
        if token.parse() != Ok(request_id) {
            return None;
        }
        if let Some(progress) = params.get("progress").and_then(|raw| raw.get().parse().ok()) {
            let mut state = self.state.lock();
            if state.floor.is_some_and(|floor| progress <= floor) {
                return None;
            }
            state.progress = Some(progress);
        }
        let at = token.as_ptr() as usize - text.as_ptr() as usize;
        let (before, after) = (text.get(..at)?, text.get(at + token.len()..)?);
        Some(Bytes::from([before, own, after].concat()))
    }

    /// Queues a message as it is.
    pub fn push(&self, message: ServerMessage) {
        let mut state = self.state.lock();
        if state.closed || state.cancelled {
            return;
        }
        if self.whole && state.queue.len() >= LISTENER_QUEUE {
            drop(state);
            self.cancel();
            return;
        }
        while !self.whole && state.is_full() {
            // Newer progress says more than older; a request must not be lost.
            let is_notification = |m: &ServerMessage| matches!(m, ServerMessage::Notification(_));
            let Some(oldest) = state.queue.iter().position(is_notification) else { break };
            let gone = state.queue.remove(oldest);
            state.bytes = state.bytes.saturating_sub(gone.as_ref().map_or(0, size));
        }
        state.bytes += size(&message);
        state.queue.push_back(message);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Waits until there is room for another message; for a transport that reads for this caller
    /// alone.
    pub async fn room(&self) {
        poll_fn(|context| {
            let mut state = self.state.lock();
            if state.closed || state.cancelled || !state.is_full() {
                return Poll::Ready(());
            }
            state.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The next message, or `None` once cancelled; else registers to be woken for either.
    pub fn poll_next(&self, context: &Context<'_>) -> Poll<Option<ServerMessage>> {
        let mut state = self.state.lock();
        if state.cancelled {
            return Poll::Ready(None);
        }
        if let Some(message) = state.queue.pop_front() {
            state.bytes = state.bytes.saturating_sub(size(&message));
            let writer = state.writer.take();
            drop(state);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Poll::Ready(Some(message));
        }
        if !state.reader.as_ref().is_some_and(|reader| reader.will_wake(context.waker())) {
            state.reader = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Waits until the caller cancels, where nobody listens; what still comes is dropped.
    pub async fn cancelled(&self) {
        poll_fn(|context| {
            loop {
                match self.poll_next(context) {
                    Poll::Ready(Some(message)) => drop(message),
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }

    /// The caller no longer wants the answer.
    pub fn cancel(&self) {
        let (reader, queue) = {
            let mut state = self.state.lock();
            state.cancelled = true;
            (state.reader.take(), std::mem::take(&mut state.queue))
        };
        drop(queue);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Nobody listens any more: what is queued and what still comes is dropped, and requests of the
    /// server with it.
    pub fn close(&self) {
        let (queue, writer) = {
            let mut state = self.state.lock();
            state.closed = true;
            (std::mem::take(&mut state.queue), state.writer.take())
        };
        drop(queue);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("wishes", &self.wishes).finish_non_exhaustive()
    }
}

/// The answer to a request of the server: we are alive, and offer nothing.
pub(super) fn answer_server(id: &str, method: &str) -> Vec<u8> {
    if method == "ping" {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#).into_bytes()
    } else {
        format!(
            r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"the client does not offer this method"}}}}"#
        )
        .into_bytes()
    }
}

/// A request of the server on its way to a client, and where its answer will come.
pub(super) fn server_request(
    method: String,
    message: &Bytes,
) -> (ServerRequest, oneshot::Receiver<Answer>) {
    let params = std::str::from_utf8(message)
        .ok()
        .and_then(|text| RawObject::parse(text).ok()?.get("params"))
        .map(|params| message.slice_ref(params.get().as_bytes()));
    let (reply, answer) = oneshot::channel();
    (ServerRequest { method, params, reply }, answer)
}

/// The message that answers the server's request `id`, once the client has answered.
pub(super) async fn reply_of_client(id: &str, reply: oneshot::Receiver<Answer>) -> Vec<u8> {
    match tokio::time::timeout(CLIENT_PATIENCE, reply).await {
        Ok(Ok(Answer { kind: AnswerKind::Result, value, .. })) => {
            result_response(id, "result", &value)
        }
        Ok(Ok(Answer { kind: AnswerKind::Error, value, .. })) => {
            result_response(id, "error", &value)
        }
        Ok(Err(_gone)) => answer_server(id, ""),
        Err(_elapsed) => {
            error_response(Some(id), -32603, "the client did not answer in time", None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(relay: &Relay) -> Option<String> {
        let context = Context::from_waker(Waker::noop());
        match relay.poll_next(&context) {
            Poll::Ready(Some(ServerMessage::Notification(bytes))) => {
                Some(String::from_utf8(bytes.to_vec()).unwrap())
            }
            Poll::Ready(Some(ServerMessage::Request(request))) => Some(request.method),
            Poll::Ready(None) | Poll::Pending => None,
        }
    }

    fn progress(token: &str) -> Bytes {
        Bytes::from(format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken": {token} ,"progress":1.0}}}}"#
        ))
    }

    #[test]
    fn progress_gets_the_callers_token_and_only_its_own_passes() {
        let wishes =
            RelayWishes { progress_token: Some(r#""tok\"en""#.into()), ..RelayWishes::default() };
        let relay = Relay::new(wishes);
        for other in ["8", "\"7\"", "null", "7.0"] {
            relay.notify("notifications/progress", &progress(other), 7);
        }
        relay.notify("notifications/progress", &progress("7"), 7);
        let own = progress(r#""tok\"en""#);
        assert_eq!(next(&relay).as_deref(), std::str::from_utf8(&own).ok());
        assert_eq!(next(&relay), None);
        let silent = Relay::new(RelayWishes::default());
        silent.notify("notifications/progress", &progress("7"), 7);
        assert_eq!(next(&silent), None);
    }

    #[test]
    fn progress_of_a_request_made_anew_is_told_from_where_it_was() {
        let wishes = RelayWishes { progress_token: Some("1".into()), ..RelayWishes::default() };
        let relay = Relay::new(wishes);
        let tell = |number: &str, id: u64| {
            let text = format!(
                r#"{{"method":"notifications/progress","params":{{"progressToken":{id},"progress":{number}}}}}"#
            );
            relay.notify("notifications/progress", &Bytes::from(text), id);
            next(&relay).is_some()
        };
        assert!(tell("1", 7) && tell("2.5", 7));
        // What a server tells that counts backwards by itself is passed on as it is.
        assert!(tell("2", 7));
        relay.begin_again();
        assert!(!tell("1", 8) && !tell("2", 8));
        assert!(tell("2.1", 8) && tell("3", 8));
    }

    #[test]
    fn log_messages_pass_from_the_wanted_level_on() {
        let wishes = RelayWishes { log_level: Some(LogLevel::Warning), ..RelayWishes::default() };
        let relay = Relay::new(wishes);
        for level in ["debug", "notice", "warning", "emergency", "Warning"] {
            let text =
                format!(r#"{{"method":"notifications/message","params":{{"level":"{level}"}}}}"#);
            relay.notify("notifications/message", &Bytes::from(text), 1);
        }
        assert!(next(&relay).unwrap().contains("warning"));
        assert!(next(&relay).unwrap().contains("emergency"));
        assert_eq!(next(&relay), None);
    }

    #[test]
    fn a_slow_caller_loses_old_notifications_and_no_request() {
        let relay = Relay::new(RelayWishes {
            abilities: ClientAbilities::of(r#"{"sampling":{}}"#),
            ..RelayWishes::default()
        });
        let (reply, mut answer) = oneshot::channel();
        let method = "sampling/createMessage".to_owned();
        relay.request(ServerRequest { method, params: None, reply }).unwrap();
        for number in 0..QUEUE * 2 {
            relay.notify("notifications/x", &Bytes::from(number.to_string()), 1);
        }
        assert_eq!(next(&relay).as_deref(), Some("sampling/createMessage"));
        let left: Vec<String> = std::iter::from_fn(|| next(&relay)).collect();
        assert_eq!(left.last(), Some(&(QUEUE * 2 - 1).to_string()));
        assert!(answer.try_recv().is_err());
    }

    #[test]
    fn requests_need_the_capability_and_a_listener() {
        let request = |method: &str| ServerRequest {
            method: method.to_owned(),
            params: None,
            reply: oneshot::channel().0,
        };
        let abilities = ClientAbilities::of(r#"{"elicitation":{},"sampling":true}"#);
        let relay = Relay::new(RelayWishes { abilities, ..RelayWishes::default() });
        assert!(relay.request(request("sampling/createMessage")).is_err());
        assert!(relay.request(request("tools/call")).is_err());
        assert!(!relay.has_asked());
        assert!(relay.request(request("elicitation/create")).is_ok());
        assert!(relay.has_asked());
        relay.close();
        assert!(relay.request(request("elicitation/create")).is_err());
        assert_eq!(next(&relay), None);
    }
}
