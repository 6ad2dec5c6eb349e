//! Streams that a legacy client can take up again after its connection broke.
//!
//! Each event of such a stream has an id, and what was sent last is kept. When the connection
//! breaks, the call goes on, and its events wait for the client to come back with `Last-Event-ID`
//! (specification 2025-11-25, basic/transports, "Resumability and Redelivery"). A client may know
//! of the break before we do, and of one after we had sent everything.

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
/// The same in bytes; the last event is always kept.
const KEPT_BYTES: usize = 4 * 1024 * 1024;
/// Streams of one session that can be taken up again.
const STREAMS: usize = 32;
/// Streams kept of those that were sent to their end.
const SENT: usize = 4;
/// Of those, none with more than so many bytes: most likely the client has them.
const SENT_BYTES: usize = 64 * 1024;
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
    bytes: usize,
    done: bool,
    /// The client reads elsewhere; the connection that the stream was on is given up.
    left: bool,
    reader: Option<Waker>,
    /// The stream on its first connection.
    writer: Option<Waker>,
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
        state.bytes += marked.len();
        while state.events.len() >= KEPT || (state.bytes > KEPT_BYTES && !state.events.is_empty()) {
            let gone = state.events.pop_front();
            state.bytes = state.bytes.saturating_sub(gone.map_or(0, |gone| gone.len()));
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

    /// Whether the client reads elsewhere; else registers the stream to be woken for that.
    pub(super) fn is_left(&self, context: &Context<'_>) -> bool {
        let mut state = self.state.lock();
        if !state.left && !state.writer.as_ref().is_some_and(|w| w.will_wake(context.waker())) {
            state.writer = Some(context.waker().clone());
        }
        state.left
    }

    /// Notes that the client reads elsewhere.
    fn leave(&self) {
        let writer = {
            let mut state = self.state.lock();
            state.left = true;
            state.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    fn bytes(&self) -> usize {
        self.state.lock().bytes
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

/// Where a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// On its connection, as far as we know.
    Open,
    /// Sent to its end then.
    Sent(Uptime),
    /// Without a connection since then.
    Broken(Uptime),
}

/// The streams of one session that its client can take up again, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Journals(Mutex<VecDeque<(Where, Arc<Journal>)>>);

impl Journals {
    /// Knows a stream that begins. When there are too many, one that was sent is forgotten, else
    /// the oldest.
    pub(super) fn open(&self, journal: &Arc<Journal>) {
        let now = clock::uptime();
        let mut streams = self.0.lock();
        streams.retain(|(place, _)| match place {
            Where::Open => true,
            Where::Sent(since) | Where::Broken(since) => now.since(*since) < PATIENCE,
        });
        if streams.len() >= STREAMS {
            let sent = streams.iter().position(|(place, _)| matches!(place, Where::Sent(_)));
            streams.remove(sent.unwrap_or(0));
        }
        streams.push_back((Where::Open, Arc::clone(journal)));
    }

    /// The stream has lost its connection and waits for its client.
    pub(super) fn broke(&self, journal: &Arc<Journal>) {
        self.put(journal, Where::Broken(clock::uptime()));
    }

    /// The stream was sent to its end. It may not have arrived; a few are kept for that.
    pub(super) fn sent(&self, journal: &Arc<Journal>) {
        self.put(journal, Where::Sent(clock::uptime()));
        let large = journal.bytes() > SENT_BYTES;
        let mut streams = self.0.lock();
        if large {
            streams.retain(|(_, other)| !Arc::ptr_eq(other, journal));
        }
        let is_sent = |(place, _): &(Where, _)| matches!(place, Where::Sent(_));
        if streams.iter().filter(|stream| is_sent(stream)).count() > SENT
            && let Some(oldest) = streams.iter().position(is_sent)
        {
            streams.remove(oldest);
        }
    }

    fn put(&self, journal: &Arc<Journal>, place: Where) {
        let mut streams = self.0.lock();
        if let Some(stream) = streams.iter_mut().find(|(_, other)| Arc::ptr_eq(other, journal)) {
            stream.0 = place;
        }
    }

    /// The rest of the stream that a client saw up to the event `last`. The connection that it was
    /// on is given up.
    pub(super) fn resume(&self, last: &str) -> Option<Resumed> {
        let (stream, number) = last.split_once('-')?;
        let (stream, number): (u64, u64) = (stream.parse().ok()?, number.parse().ok()?);
        let next = number.checked_add(1)?;
        let journal = {
            let streams = self.0.lock();
            let (_, journal) = streams.iter().find(|(_, journal)| journal.stream == stream)?;
            Arc::clone(journal)
        };
        journal.leave();
        Some(Resumed { journal, next })
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

    fn journal(journals: &Journals, stream: u64) -> Arc<Journal> {
        let journal = Arc::new(Journal::new(stream));
        journals.open(&journal);
        journal
    }

    #[test]
    fn a_client_gets_what_it_has_not_seen_and_what_still_comes() {
        let journals = Journals::default();
        let journal = journal(&journals, 7);
        assert_eq!(journal.opening(), "id: 7-0\nretry: 500\ndata: \n\n");
        for text in ["a", "b", "c"] {
            journal.note(format!("data: {text}\n\n").as_bytes());
        }
        for unknown in ["8-1", "7", "x-1", "7-x", "7-18446744073709551615"] {
            assert!(journals.resume(unknown).is_none(), "{unknown}");
        }
        let mut context = Context::from_waker(Waker::noop());
        assert!(!journal.is_left(&context));
        let mut resumed = journals.resume("7-1").unwrap();
        assert!(journal.is_left(&context));
        journals.broke(&journal);
        assert_eq!(read(&mut resumed), ["id: 7-2\ndata: b\n\n", "id: 7-3\ndata: c\n\n"]);
        journal.note(b"data: d\n\n");
        journal.close();
        assert_eq!(read(&mut resumed), ["id: 7-4\ndata: d\n\n"]);
        assert!(matches!(Pin::new(&mut resumed).poll_frame(&mut context), Poll::Ready(None)));
        assert_eq!(read(&mut journals.resume("7-0").unwrap()).len(), 4);
    }

    #[test]
    fn neither_events_nor_streams_pile_up() {
        let journals = Journals::default();
        let first = journal(&journals, 1);
        for _ in 0..KEPT * 2 {
            first.note(b"data: x\n\n");
        }
        journals.broke(&first);
        let rest = read(&mut journals.resume("1-0").unwrap());
        assert_eq!(rest.len(), KEPT);
        assert!(rest[0].starts_with(&format!("id: 1-{}\n", KEPT + 1)));
        for stream in 2..80 {
            journal(&journals, stream);
        }
        assert!(journals.resume("1-0").is_none() && journals.resume("79-0").is_some());
        assert_eq!(journals.0.lock().len(), STREAMS);
    }

    #[test]
    fn of_what_was_sent_little_is_kept() {
        let journals = Journals::default();
        let broken = journal(&journals, 1);
        journals.broke(&broken);
        for stream in 2..80 {
            let sent = journal(&journals, stream);
            sent.note(b"data: x\n\n");
            sent.close();
            journals.sent(&sent);
        }
        assert_eq!(journals.0.lock().len(), SENT + 1);
        assert!(journals.resume("1-0").is_some() && journals.resume("79-0").is_some());
        let large = journal(&journals, 80);
        large.note(&vec![b'x'; SENT_BYTES]);
        journals.sent(&large);
        assert!(journals.resume("80-0").is_none());
    }
}
