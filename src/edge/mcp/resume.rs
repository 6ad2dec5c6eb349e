//! Streams that a legacy client can take up again after its connection broke.
//!
//! Each event of such a stream has an id; what was sent last is kept while the stream is open. When
//! the connection breaks, the call goes on, and its events wait for the client to come back with
//! `Last-Event-ID` (specification 2025-11-25, basic/transports, "Resumability and Redelivery").

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use parking_lot::Mutex;

use crate::clock;
use crate::model::Uptime;

/// Events kept of one stream; of those the client has most likely seen all.
const KEPT: usize = 128;
/// Broken streams kept for one session.
const PARKED: usize = 16;
/// How long a broken stream waits for its client.
const PATIENCE: Duration = Duration::from_secs(120);
/// How soon a client should come back, in milliseconds.
const RETRY: u32 = 500;

/// What one stream has said.
#[derive(Debug)]
pub(super) struct Journal {
    stream: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the first event kept.
    first: u64,
    events: VecDeque<Bytes>,
    done: bool,
    reader: Option<Waker>,
}

impl Journal {
    /// The journal of a stream with this number, unique in its session.
    pub(super) fn new(stream: u64) -> Self {
        Self { stream, state: Mutex::new(State { first: 1, ..State::default() }) }
    }

    /// The first event: only an id, from which the client can come back, and when it should.
    pub(super) fn opening(&self) -> Bytes {
        Bytes::from(format!("id: {}-0\nretry: {RETRY}\ndata: \n\n", self.stream))
    }

    /// Notes an event and gives it its id.
    pub(super) fn note(&self, event: &[u8]) -> Bytes {
        let mut state = self.state.lock();
        let number = state.first + state.events.len() as u64;
        let mut marked = format!("id: {}-{number}\n", self.stream).into_bytes();
        marked.extend_from_slice(event);
        let marked = Bytes::from(marked);
        if state.events.len() == KEPT {
            state.events.pop_front();
            state.first += 1;
        }
        state.events.push_back(marked.clone());
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        marked
    }

    /// Notes that there will be no more.
    pub(super) fn close(&self) {
        let reader = {
            let mut state = self.state.lock();
            state.done = true;
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// The event with this number, or the next one that is kept.
    fn poll(&self, number: u64, context: &Context<'_>) -> Poll<Option<(u64, Bytes)>> {
        let mut state = self.state.lock();
        let number = number.max(state.first);
        let at = usize::try_from(number - state.first).unwrap_or(usize::MAX);
        if let Some(event) = state.events.get(at) {
            return Poll::Ready(Some((number, event.clone())));
        }
        if state.done {
            return Poll::Ready(None);
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Broken streams of one session that wait for their client.
#[derive(Debug, Default)]
pub(super) struct Parked(Mutex<VecDeque<(Uptime, Arc<Journal>)>>);

impl Parked {
    /// Keeps a broken stream for a while.
    pub(super) fn park(&self, journal: Arc<Journal>) {
        let now = clock::uptime();
        let mut parked = self.0.lock();
        parked.retain(|(since, _)| now.since(*since) < PATIENCE);
        if parked.len() == PARKED {
            parked.pop_front();
        }
        parked.push_back((now, journal));
    }

    /// The rest of the stream that a client saw up to the event `last`.
    pub(super) fn resume(&self, last: &str) -> Option<Resumed> {
        let (stream, number) = last.split_once('-')?;
        let (stream, number): (u64, u64) = (stream.parse().ok()?, number.parse().ok()?);
        let parked = self.0.lock();
        let (_, journal) = parked.iter().find(|(_, journal)| journal.stream == stream)?;
        Some(Resumed { journal: Arc::clone(journal), next: number.checked_add(1)? })
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

/// The rest of a stream, as a body.
#[derive(Debug)]
pub(super) struct Resumed {
    journal: Arc<Journal>,
    next: u64,
}

impl HttpBody for Resumed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.journal.poll(self.next, context).map(|event| {
            event.map(|(number, event)| {
                self.next = number + 1;
                Ok(Frame::data(event))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(resumed: &mut Resumed) -> Vec<String> {
        let mut context = Context::from_waker(Waker::noop());
        std::iter::from_fn(|| match Pin::new(&mut *resumed).poll_frame(&mut context) {
            Poll::Ready(Some(Ok(frame))) => {
                Some(String::from_utf8(frame.into_data().ok()?.to_vec()).unwrap())
            }
            _ => None,
        })
        .collect()
    }

    #[test]
    fn a_client_gets_what_it_has_not_seen_and_what_still_comes() {
        let (parked, journal) = (Parked::default(), Arc::new(Journal::new(7)));
        assert_eq!(journal.opening(), "id: 7-0\nretry: 500\ndata: \n\n");
        for text in ["a", "b", "c"] {
            journal.note(format!("data: {text}\n\n").as_bytes());
        }
        assert!(parked.resume("7-1").is_none(), "nothing is parked yet");
        parked.park(Arc::clone(&journal));
        for unknown in ["8-1", "7", "x-1", "7-x", "7-18446744073709551615"] {
            assert!(parked.resume(unknown).is_none(), "{unknown}");
        }
        let mut resumed = parked.resume("7-1").unwrap();
        assert_eq!(read(&mut resumed), ["id: 7-2\ndata: b\n\n", "id: 7-3\ndata: c\n\n"]);
        journal.note(b"data: d\n\n");
        journal.close();
        assert_eq!(read(&mut resumed), ["id: 7-4\ndata: d\n\n"]);
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(Pin::new(&mut resumed).poll_frame(&mut context), Poll::Ready(None)));
        assert_eq!(read(&mut parked.resume("7-0").unwrap()).len(), 4);
    }

    #[test]
    fn neither_events_nor_streams_pile_up() {
        let (parked, journal) = (Parked::default(), Arc::new(Journal::new(1)));
        for _ in 0..KEPT * 2 {
            journal.note(b"data: x\n\n");
        }
        parked.park(Arc::clone(&journal));
        let rest = read(&mut parked.resume("1-0").unwrap());
        assert_eq!(rest.len(), KEPT);
        assert!(rest[0].starts_with(&format!("id: 1-{}\n", KEPT + 1)));
        for stream in 2..40 {
            parked.park(Arc::new(Journal::new(stream)));
        }
        assert!(parked.resume("1-0").is_none() && parked.resume("39-0").is_some());
        assert_eq!(parked.0.lock().len(), PARKED);
    }
}
