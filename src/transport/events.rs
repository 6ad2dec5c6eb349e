//! Reads event streams: up to the answer to a request, or to their end.
//!
//! Changes when what may come on a stream does, or how much of it. Knows nothing of how a stream was
//! opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{self, HeaderName, HeaderValue};

use super::endpoint::{Endpoint, Talk, is_event_stream, parse};
use super::error::TransportError;
use super::notice::Notice;
use super::pace::Pace;
use super::relay::{Relay, answer_server, reply_of_client, server_request};
use super::socket::Exchange;
use crate::clock;
use crate::protocol::{Answer, MessageKind, SseError, SseParser, message_kind};

/// How many requests of the server are being answered at a time.
const SERVER_REQUESTS: u32 = 64;
/// How often the stream of one answer is taken up again.
const RESUMPTIONS: u32 = 32;
/// How long to wait before a stream is opened again, where the server does not say.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// The longest wait that a server may ask for.
pub(super) const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How many bytes may come before and with an answer, in largest answers. Progress and log messages
/// of an honest server are small; this is for those that never come to the point.
const ANSWERS: u64 = 16;
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The right to answer a request of the server; a server that asks without end gets no more.
struct Turn(Arc<AtomicU32>);

impl Turn {
    fn take(count: &Arc<AtomicU32>) -> Option<Self> {
        let turn = Self(Arc::clone(count));
        (count.fetch_add(1, Ordering::Relaxed) < SERVER_REQUESTS).then_some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How far a stream came.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// The id of the last event that had one.
    pub(super) last_id: Option<String>,
    /// How long the server wants us to wait before we come back.
    pub(super) retry: Option<Duration>,
    /// Events so far.
    events: u64,
    /// Bytes so far.
    bytes: u64,
}

/// What a stream is read for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stream {
    /// The answer to this request.
    Answer {
        /// The request's id.
        id: u64,
    },
    /// What the server says on its own, for as long as it likes.
    Own {
        /// The id of the request that asked for it, where one did.
        id: Option<u64>,
    },
}

impl Stream {
    const fn id(self) -> Option<u64> {
        match self {
            Self::Answer { id } => Some(id),
            Self::Own { id } => id,
        }
    }
}

/// How a stream ended.
pub(super) enum StreamEnd {
    /// With the answer.
    Answer(Answer),
    /// Without.
    Over,
    /// Without, and with something that should have been one.
    Garbage(TransportError),
}

impl Endpoint {
    /// Reads a stream up to the answer to `id`. A legacy stream that ends before it, and had said
    /// where it was, is taken up again there (specification 2025-11-25, basic/transports,
    /// "Resumability and Redelivery").
    pub(super) async fn read_events(
        &self,
        exchange: Exchange,
        id: u64,
        talk: Talk<'_>,
    ) -> Result<Answer, TransportError> {
        let mut place = Place::default();
        let mut exchange = exchange;
        for resumed in 0..=RESUMPTIONS {
            let stream = Stream::Answer { id };
            let ended = match self.read_stream(exchange, stream, talk, &mut place).await {
                Ok(StreamEnd::Answer(answer)) => return Ok(answer),
                Ok(StreamEnd::Over) => TransportError::StreamEnded,
                Ok(StreamEnd::Garbage(error)) => return Err(error),
                Err(error @ TransportError::Broken { .. }) => error,
                // The same would come again.
                Err(error) => return Err(error),
            };
            let (Some(session), Some(last), true) =
                (talk.session, &place.last_id, resumed < RESUMPTIONS)
            else {
                return Err(ended);
            };
            let Ok(last) = HeaderValue::from_str(last) else { return Err(ended) };
            tokio::time::sleep(place.retry.unwrap_or(RETRY)).await;
            let mut headers = session.clone();
            headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
            headers.insert(LAST_EVENT_ID, last);
            exchange = match self.get(headers).await {
                Ok(exchange) if is_event_stream(&exchange) => exchange,
                _ => return Err(ended),
            };
        }
        Err(TransportError::StreamEnded)
    }

    /// Reads a stream to its end or up to the answer that it is read for; what else it says goes to
    /// whom it concerns. Notes in `place` how far it came.
    pub(super) async fn read_stream(
        &self,
        mut exchange: Exchange,
        stream: Stream,
        talk: Talk<'_>,
        place: &mut Place,
    ) -> Result<StreamEnd, TransportError> {
        let id = stream.id();
        let mut parser = SseParser::new(usize::try_from(self.limit).unwrap_or(usize::MAX));
        let mut pace = match stream {
            Stream::Answer { .. } => None,
            Stream::Own { .. } => Some(Pace::new(Pace::OWN_STREAM, clock::uptime())),
        };
        let mut garbage = None;
        while let Some(frame) = self.next_frame(&mut exchange, stream).await.transpose()? {
            let mut bytes: &[u8] = &frame;
            let mut events = 0_u64;
            place.bytes = place.bytes.saturating_add(frame.len() as u64);
            loop {
                let event = parser.next_event(&mut bytes).map_err(|error| match error {
                    SseError::TooLarge { .. } => {
                        TransportError::ResponseTooLarge { limit: self.limit }
                    }
                })?;
                place.retry = parser.retry().map(|retry| retry.min(LONGEST_RETRY)).or(place.retry);
                place.last_id = parser.take_id().or(place.last_id.take());
                let Some(event) = event else { break };
                events += 1;
                // A frame can hold tens of thousands of them; others have the thread in between.
                tokio::task::coop::consume_budget().await;
                if event.event != "message" || event.data.is_empty() {
                    continue;
                }
                match (message_kind(&event.data), id) {
                    (Ok(MessageKind::Answer(found)), Some(id)) if found == id => {
                        exchange.finish().await;
                        return parse(&event.data, id).map(StreamEnd::Answer);
                    }
                    (Ok(MessageKind::Request { id, method }), _) => {
                        self.take_request(id, method, &event.data, talk);
                    }
                    (Ok(MessageKind::Notification { method }), _) => {
                        self.take_notification(&method, &event.data, id, talk.relay).await;
                    }
                    (Ok(MessageKind::Answer(_)), _) | (Err(_), None) => {}
                    // An error to a request that the server could not read has the id null.
                    (Err(_), Some(id)) => match parse(&event.data, id) {
                        Ok(answer) => return Ok(StreamEnd::Answer(answer)),
                        Err(error) => garbage = Some(error),
                    },
                }
            }
            place.events = place.events.saturating_add(events);
            tokio::task::coop::consume_budget().await;
            match &mut pace {
                Some(pace) => pace.keep(frame.len(), events).await,
                None => self.check_length(place)?,
            }
        }
        Ok(garbage.map_or(StreamEnd::Over, StreamEnd::Garbage))
    }

    /// The next bytes of a stream. An answer that has begun may not be silent for longer than
    /// `stall_timeout`, where that is set; a stream of the server's own may be for days.
    async fn next_frame(
        &self,
        exchange: &mut Exchange,
        stream: Stream,
    ) -> Option<Result<Bytes, TransportError>> {
        match stream {
            Stream::Answer { .. } => exchange.frame_in(self.stall).await,
            Stream::Own { .. } => exchange.frame().await,
        }
    }

    /// Whether a stream that was to bring an answer has brought too much beside it.
    fn check_length(&self, place: &Place) -> Result<(), TransportError> {
        let bytes = self.limit.saturating_mul(ANSWERS);
        if place.events > self.events || place.bytes > bytes {
            return Err(TransportError::StreamTooLong { events: self.events, bytes });
        }
        Ok(())
    }

    async fn take_notification(
        &self,
        method: &str,
        message: &Bytes,
        id: Option<u64>,
        relay: Option<&Arc<Relay>>,
    ) {
        match (Notice::of(method, message), relay.zip(id)) {
            (Notice::Notification { .. }, Some((relay, id))) => {
                relay.notify(method, message, id);
                relay.room().await;
            }
            (notice, _) => self.hearing.notices.take(notice),
        }
    }

    /// A request of the server: for the caller, for whoever owns the connection, or refused.
    fn take_request(&self, id: String, method: String, message: &Bytes, talk: Talk<'_>) {
        let Some(session) = talk.session else { return };
        let Some(turn) = Turn::take(&self.answering) else { return };
        if method == "ping" || !self.hearing.exclusive {
            let (endpoint, session) = (self.clone(), session.clone());
            let body = answer_server(&id, &method);
            self.spawn(async move {
                let _turn = turn;
                endpoint.tell(Method::POST, session, body).await;
            });
            return;
        }
        let (request, reply) = server_request(method, message);
        match talk.relay {
            Some(relay) => drop(relay.request(request)),
            None => self.hearing.notices.take(Notice::Request(request)),
        }
        let (endpoint, session) = (self.clone(), session.clone());
        self.spawn(async move {
            let _turn = turn;
            let body = reply_of_client(&id, reply).await;
            endpoint.tell(Method::POST, session, body).await;
        });
    }
}
