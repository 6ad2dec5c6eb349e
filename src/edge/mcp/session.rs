//! What a legacy session has under way: requests that can be cancelled, questions of servers that
//! wait for the client, the stream for everything else.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::listen::Watched;
use super::resume::{Journal, Journals};
use crate::clock;
use crate::edge::sessions::Session;
use crate::protocol::{Answer, LogLevel, RequestId, SERVER_QUESTION, server_question};
use crate::router::{Relay, ServerRequest};

/// Questions of servers that one client may leave unanswered; beyond that the oldest is given up.
const QUESTIONS: usize = 64;
/// Requests one session may have under way; beyond that the oldest can no longer be cancelled.
const REQUESTS: usize = 1024;
/// Resources one session may subscribe to.
pub(super) const SUBSCRIPTIONS: usize = 1000;

/// The part of a session that only some need, and that does not outlive the process.
#[derive(Debug, Default)]
pub(in crate::edge) struct Live {
    requests: Mutex<VecDeque<(Box<str>, Arc<Relay>)>>,
    pub(super) questions: Arc<Questions>,
    /// Streams that the client can take up again.
    pub(super) journals: Journals,
    next_stream: AtomicU64,
    /// The stream for what belongs to no request.
    stream: Mutex<Option<Arc<Relay>>>,
    /// 0: never set; else one more than the level's place.
    log_level: AtomicU8,
    /// By the address that the client knows.
    pub(super) subscriptions: Mutex<BTreeMap<String, Watched>>,
    /// Those that a server keeps for this session alone: its address to the one the client knows.
    pub(super) own_subscriptions: Mutex<BTreeMap<String, String>>,
}

impl Live {
    /// Makes a request cancellable for as long as the guard lives.
    pub(super) fn register(
        session: &Arc<Session>,
        id: RequestId<'_>,
        relay: &Arc<Relay>,
    ) -> Underway {
        let mut requests = session.live().requests.lock();
        if requests.len() >= REQUESTS {
            requests.pop_front();
        }
        requests.push_back((id.json().into(), Arc::clone(relay)));
        drop(requests);
        Underway { session: Arc::clone(session), relay: Arc::clone(relay) }
    }

    /// Cancels the request with this id, as JSON.
    pub(super) fn cancel(&self, id: &str) {
        let relay = {
            let requests = self.requests.lock();
            let found = requests.iter().find(|(under_way, _)| same_id(under_way, id));
            found.map(|(_, relay)| Arc::clone(relay))
        };
        if let Some(relay) = relay {
            relay.cancel();
        }
    }

    /// The journal of a new stream.
    pub(super) fn journal(&self) -> Arc<Journal> {
        // Sessions outlive the process, and an id of a stream must never mean another one.
        let base = u64::try_from(clock::timestamp().as_millis()).unwrap_or(0);
        let _ = self.next_stream.compare_exchange(0, base, Ordering::Relaxed, Ordering::Relaxed);
        let number = self.next_stream.fetch_add(1, Ordering::Relaxed) + 1;
        let journal = Arc::new(Journal::new(number));
        self.journals.open(&journal);
        journal
    }

    /// Makes `relay` the session's stream; one that was open ends.
    pub(super) fn open_stream(&self, relay: &Arc<Relay>) {
        let before = self.stream.lock().replace(Arc::clone(relay));
        if let Some(before) = before {
            before.cancel();
        }
    }

    /// Forgets the stream, if it is still this one.
    pub(super) fn close_stream(&self, relay: &Arc<Relay>) {
        let mut stream = self.stream.lock();
        if stream.as_ref().is_some_and(|open| Arc::ptr_eq(open, relay)) {
            *stream = None;
        }
    }

    /// The session's stream, if the client has one open.
    pub(in crate::edge) fn stream(&self) -> Option<Arc<Relay>> {
        self.stream.lock().clone()
    }

    /// The youngest request under way.
    pub(super) fn latest_request(&self) -> Option<Arc<Relay>> {
        self.requests.lock().back().map(|(_, relay)| Arc::clone(relay))
    }

    /// The level that the client set.
    pub(super) fn log_level(&self) -> Option<LogLevel> {
        let place = self.log_level.load(Ordering::Relaxed).checked_sub(1)?;
        LogLevel::ALL.get(usize::from(place)).copied()
    }

    pub(super) fn set_log_level(&self, level: LogLevel) {
        self.log_level.store(level as u8 + 1, Ordering::Relaxed);
    }

    /// Ends everything: the session is over.
    pub(in crate::edge) fn end(&self) {
        if let Some(stream) = self.stream.lock().take() {
            stream.cancel();
        }
        self.subscriptions.lock().clear();
        self.own_subscriptions.lock().clear();
        self.journals.clear();
        self.questions.open.lock().clear();
    }
}

fn same_id(a: &str, b: &str) -> bool {
    let text = |json: &str| serde_json::from_str::<String>(json).ok();
    a == b || text(a).is_some_and(|a| text(b) == Some(a))
}

/// A request that the client may cancel.
pub(super) struct Underway {
    session: Arc<Session>,
    relay: Arc<Relay>,
}

impl Drop for Underway {
    fn drop(&mut self) {
        let mut requests = self.session.live().requests.lock();
        // The youngest is last and ends first more often than not.
        let at = requests.iter().rposition(|(_, relay)| Arc::ptr_eq(relay, &self.relay));
        if let Some(at) = at {
            requests.remove(at);
        }
    }
}

/// Questions of servers that a client was asked and has not answered.
#[derive(Debug, Default)]
pub(in crate::edge) struct Questions {
    next: AtomicU64,
    open: Mutex<VecDeque<(u64, oneshot::Sender<Answer>)>>,
}

impl Questions {
    /// The message that asks the client; its answer is awaited from now on.
    pub(super) fn ask(&self, request: ServerRequest) -> Vec<u8> {
        let ServerRequest { method, params, reply } = request;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock();
        open.retain(|(_, reply)| !reply.is_closed());
        if open.len() >= QUESTIONS {
            open.pop_front();
        }
        open.push_back((number, reply));
        drop(open);
        server_question(number, &method, params.as_deref())
    }

    /// Hands the client's answer to whoever asked; `id` is the answer's, as JSON.
    pub(super) fn answer(&self, id: &str, answer: Answer) {
        let number = serde_json::from_str::<String>(id)
            .ok()
            .and_then(|id| id.strip_prefix(SERVER_QUESTION)?.parse::<u64>().ok());
        let Some(number) = number else { return };
        let reply = {
            let mut open = self.open.lock();
            let at = open.iter().position(|(asked, _)| *asked == number);
            at.and_then(|at| open.remove(at))
        };
        if let Some((_, reply)) = reply {
            // Whoever asked may have given up.
            drop(reply.send(answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::AnswerKind;

    fn question(questions: &Questions) -> (String, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        let request = ServerRequest { method: "roots/list".to_owned(), params: None, reply };
        let message: serde_json::Value = serde_json::from_slice(&questions.ask(request)).unwrap();
        (message["id"].to_string(), answer)
    }

    fn result() -> Answer {
        Answer::new(AnswerKind::Result, "{}".into())
    }

    #[test]
    fn an_answer_reaches_who_asked_and_only_once() {
        let questions = Questions::default();
        let (first, mut one) = question(&questions);
        let (second, mut two) = question(&questions);
        assert_ne!(first, second);
        questions.answer("7", result());
        questions.answer("\"sy-99\"", result());
        questions.answer(&second, result());
        questions.answer(&second, result());
        assert!(one.try_recv().is_err());
        assert_eq!(two.try_recv().unwrap(), result());
    }

    #[test]
    fn unanswered_questions_do_not_pile_up() {
        let questions = Questions::default();
        let mut asked: Vec<_> = (0..QUESTIONS + 5).map(|_| question(&questions).1).collect();
        assert_eq!(questions.open.lock().len(), QUESTIONS);
        assert!(matches!(asked[0].try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        asked.clear();
        drop(question(&questions));
        assert_eq!(questions.open.lock().len(), 1);
    }

    #[test]
    fn ids_are_compared_as_json() {
        assert!(same_id("1", "1") && same_id(r#""a""#, r#""\u0061""#));
        assert!(!same_id("1", r#""1""#) && !same_id("1", "2"));
    }
}
