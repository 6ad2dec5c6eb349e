//! Server-sent events: bytes in, whole events out, however they were cut in transit.
//!
//! Source: WHATWG HTML, section 9.2 "Server-sent events".

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};

/// A line buffer that grew beyond this is not kept for the lines that follow: they would hold all of
/// it for as long as one of them is held.
const KEPT: usize = 64 * 1024;
/// The longest id and the longest event name. The standard has no bound, but both are kept beyond
/// their event, and an id goes back to the server in a header: a longer one is as if it were absent.
const LONGEST_NAME: usize = 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// `event:`, or `message`.
    pub event: Cow<'static, str>,
    /// The `data:` lines, joined by line feeds.
    pub data: Bytes,
    /// `id:`, when the event has one.
    pub id: Option<String>,
}

/// A stream broke a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// One event or line is larger than `limit` bytes.
    #[error("an event is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
}

/// Collects bytes and gives events.
#[derive(Debug)]
pub struct SseParser {
    line: BytesMut,
    data: BytesMut,
    has_data: bool,
    event: String,
    id: Option<String>,
    /// The id of the last event that had one, until it is asked for.
    new_id: Option<String>,
    retry: Option<Duration>,
    /// The last line ended in CR; a LF right after it belongs to the same line end.
    after_cr: bool,
    at_start: bool,
    limit: usize,
}

impl SseParser {
    /// A parser that refuses events and lines of more than `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            line: BytesMut::new(),
            data: BytesMut::new(),
            has_data: false,
            event: String::new(),
            id: None,
            new_id: None,
            retry: None,
            after_cr: false,
            at_start: true,
            limit,
        }
    }

    /// Takes the next bytes and appends the events they complete to `events`.
    ///
    /// # Errors
    /// [`SseError::TooLarge`]; the parser must not be used after it.
    pub fn feed(&mut self, mut chunk: &[u8], events: &mut Vec<SseEvent>) -> Result<(), SseError> {
        while let Some(event) = self.next_event(&mut chunk)? {
            events.push(event);
        }
        Ok(())
    }

    /// Takes bytes from the front of `chunk` and gives the event they complete; `None` when all are
    /// taken. Whoever asks for one event after the other holds one, however many came together.
    ///
    /// # Errors
    /// [`SseError::TooLarge`]; the parser must not be used after it.
    pub fn next_event(&mut self, chunk: &mut &[u8]) -> Result<Option<SseEvent>, SseError> {
        while !chunk.is_empty() {
            if self.after_cr {
                self.after_cr = false;
                if let Some(rest) = chunk.strip_prefix(b"\n") {
                    *chunk = rest;
                    continue;
                }
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', chunk) else {
                let rest = std::mem::take(chunk);
                self.push_to_line(rest)?;
                break;
            };
            let (line, rest) = chunk.split_at_checked(end).unwrap_or((chunk, &[]));
            self.push_to_line(line)?;
            self.after_cr = rest.first() == Some(&b'\r');
            *chunk = rest.get(1..).unwrap_or_default();
            if let Some(event) = self.end_line()? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Whether an event has begun and is not complete; a comment is none.
    #[must_use]
    pub fn is_within_event(&self) -> bool {
        self.has_data
            || !self.event.is_empty()
            || self.line.first().is_some_and(|first| *first != b':')
    }

    /// The last `id:` of an ended event, also of one without data; once, until another one comes.
    #[must_use]
    pub fn take_id(&mut self) -> Option<String> {
        self.new_id.take()
    }

    /// The last `retry:`: how long to wait before the stream is opened again.
    #[must_use]
    pub const fn retry(&self) -> Option<Duration> {
        self.retry
    }

    fn push_to_line(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        if self.line.len().saturating_add(bytes.len()) > self.limit.saturating_add(16) {
            return Err(SseError::TooLarge { limit: self.limit });
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self) -> Result<Option<SseEvent>, SseError> {
        let mut line = self.line.split();
        if line.len() > KEPT {
            self.line = BytesMut::new();
        }
        if self.at_start {
            self.at_start = false;
            if line.starts_with(b"\xef\xbb\xbf") {
                line.advance(3);
            }
        }
        if line.is_empty() {
            return Ok(self.dispatch());
        }
        // A comment.
        if line.first() == Some(&b':') {
            return Ok(None);
        }
        let (field, value) = match memchr::memchr(b':', &line) {
            Some(at) => {
                let field = line.split_to(at);
                line.advance(1);
                if line.first() == Some(&b' ') {
                    line.advance(1);
                }
                (field, line)
            }
            None => (line, BytesMut::new()),
        };
        match &*field {
            b"data" => {
                if self.data.len().saturating_add(value.len()) > self.limit {
                    return Err(SseError::TooLarge { limit: self.limit });
                }
                if self.has_data {
                    self.data.extend_from_slice(b"\n");
                    self.data.extend_from_slice(&value);
                } else {
                    // Most events have one line, which can be large: it is not copied.
                    self.data = value;
                }
                self.has_data = true;
            }
            b"event" if value.len() <= LONGEST_NAME => self.event = text(&value),
            b"id" if value.len() <= LONGEST_NAME && !value.contains(&0) => {
                self.id = Some(text(&value));
            }
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                // One beyond any clock says nothing, and leaves the one before in force.
                let millis = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
                self.retry = millis.map(Duration::from_millis).or(self.retry);
            }
            _ => {}
        }
        Ok(None)
    }

    fn dispatch(&mut self) -> Option<SseEvent> {
        let event = std::mem::take(&mut self.event);
        let id = self.id.take();
        if id.is_some() {
            self.new_id.clone_from(&id);
        }
        if !std::mem::take(&mut self.has_data) {
            return None;
        }
        let data = std::mem::take(&mut self.data).freeze();
        let event = if event.is_empty() { Cow::Borrowed("message") } else { Cow::Owned(event) };
        Some(SseEvent { event, data, id })
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(stream: &[u8], cuts: &[usize]) -> Vec<SseEvent> {
        let mut parser = SseParser::new(1 << 20);
        let mut events = Vec::new();
        let mut from = 0;
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (stream.len() + 1)).collect();
        cuts.sort_unstable();
        for cut in cuts.into_iter().chain([stream.len()]) {
            parser.feed(&stream[from..cut], &mut events).unwrap();
            from = cut;
        }
        events
    }

    #[test]
    fn an_event_that_has_begun_is_told_from_a_comment() {
        for (stream, within) in [
            ("", false),
            (": no", false),
            (": no\n", false),
            ("d", true),
            ("data: x", true),
            ("data: x\n", true),
            ("event: message\n", true),
            ("event: message\ndata: x\n\n", false),
            ("data: x\n\n: no", false),
        ] {
            let mut parser = SseParser::new(1 << 20);
            parser.feed(stream.as_bytes(), &mut Vec::new()).unwrap();
            assert_eq!(parser.is_within_event(), within, "{stream:?}");
        }
    }

    fn data(stream: &str) -> Vec<(String, String)> {
        parse(stream.as_bytes(), &[])
            .into_iter()
            .map(|e| (e.event.into_owned(), String::from_utf8(e.data.to_vec()).unwrap()))
            .collect()
    }

    fn message(text: &str) -> (String, String) {
        ("message".into(), text.into())
    }

    #[test]
    fn every_line_end_and_field_form_is_read() {
        assert_eq!(
            data("data: a\n\ndata:b\r\n\r\ndata: c\r\r"),
            [message("a"), message("b"), message("c")]
        );
        assert_eq!(data("data: 1\ndata: 2\ndata\n\n"), [message("1\n2\n")]);
        assert_eq!(data("event: endpoint\ndata: /x\n\n"), [("endpoint".into(), "/x".into())]);
        assert_eq!(data(": keep-alive\n\nretry: 5\n\nid: 1\n\ndata: x\n\n"), [message("x")]);
        assert_eq!(data("\u{feff}data: x\n\n"), [message("x")]);
        assert_eq!(data("id: 1\ndata:\n\n"), [message("")]);
        assert_eq!(data("data: unfinished\n"), []);
    }

    #[test]
    fn an_event_above_the_limit_is_refused() {
        let mut parser = SseParser::new(64);
        let mut events = Vec::new();
        assert!(parser.feed(&[b'x'; 100], &mut events).is_err());
        let mut parser = SseParser::new(64);
        let line = format!("data: {}\n", "y".repeat(40));
        assert!(parser.feed(line.as_bytes(), &mut events).is_ok());
        assert!(parser.feed(line.as_bytes(), &mut events).is_err());
    }

    #[test]
    fn a_large_event_is_held_once_and_lets_go_of_its_buffer() {
        let mut parser = SseParser::new(1 << 20);
        let mut events = Vec::new();
        let large = format!("data: {}\n\ndata: x\n\n", "y".repeat(KEPT + 1));
        parser.feed(large.as_bytes(), &mut events).unwrap();
        assert_eq!(events[0].data.len(), KEPT + 1);
        assert!(parser.data.capacity() == 0 && parser.line.capacity() < KEPT);
        // Nor is that of a line that is no data.
        let comment = format!(": {}\n", "y".repeat(10 * KEPT));
        for piece in comment.as_bytes().chunks(1000) {
            parser.feed(piece, &mut events).unwrap();
        }
        assert!(parser.line.capacity() < KEPT, "{}", parser.line.capacity());
    }

    #[test]
    fn a_name_or_an_id_that_is_too_long_is_as_if_it_were_absent() {
        let (fits, long) = ("i".repeat(LONGEST_NAME), "i".repeat(LONGEST_NAME + 1));
        let mut parser = SseParser::new(1 << 20);
        let mut events = Vec::new();
        for (id, event, is_id, is_event) in [
            (&fits, &fits, Some(&fits), &*fits),
            (&long, &long, None, "message"),
            (&fits, &long, Some(&fits), "message"),
        ] {
            let stream = format!("id: {id}\nevent: {event}\ndata: x\n\n");
            parser.feed(stream.as_bytes(), &mut events).unwrap();
            let found = events.pop().unwrap();
            assert_eq!((found.id.as_ref(), &*found.event), (is_id, is_event));
            assert_eq!(parser.take_id().as_ref(), is_id);
        }
    }

    #[test]
    fn an_id_is_given_once() {
        let mut parser = SseParser::new(64);
        let mut ids = |stream: &str| {
            parser.feed(stream.as_bytes(), &mut Vec::new()).unwrap();
            parser.take_id()
        };
        assert_eq!(ids("id: 1\ndata: x\n\nid: 2\n\n").as_deref(), Some("2"));
        assert_eq!(ids("data: x\n\nid: 3\n"), None);
        assert_eq!(ids("\n").as_deref(), Some("3"));
    }

    #[test]
    fn events_come_one_by_one() {
        let mut parser = SseParser::new(64);
        let mut chunk: &[u8] = b"data: 1\n\n: c\n\ndata: 2\n\ndata: 3";
        let mut next = || parser.next_event(&mut chunk).unwrap().map(|event| event.data);
        assert_eq!(next(), Some(Bytes::from_static(b"1")));
        assert_eq!(next(), Some(Bytes::from_static(b"2")));
        assert_eq!((next(), next()), (None, None));
        assert!(chunk.is_empty());
    }

    proptest! {
        #[test]
        fn cuts_in_transit_change_nothing(
            lines in proptest::collection::vec("(data: ?[a-z:]{0,5}|event: x|id: 9|: c|)", 0..12),
            ends in proptest::collection::vec(prop_oneof!["\n", "\r", "\r\n"], 12),
            cuts in proptest::collection::vec(any::<usize>(), 0..10),
        ) {
            let stream: String = lines.iter().zip(&ends).map(|(l, e)| format!("{l}{e}")).collect();
            prop_assert_eq!(parse(stream.as_bytes(), &cuts), parse(stream.as_bytes(), &[]));
        }

        #[test]
        fn any_bytes_are_read_as_the_standard_says_however_they_were_cut(
            stream in proptest::collection::vec(piece(), 0..40),
            cuts in proptest::collection::vec(any::<usize>(), 0..10),
        ) {
            let stream = stream.concat();
            let cut = Read::of(&stream, &cuts, 1 << 20);
            prop_assert!(!cut.refused);
            prop_assert_eq!(cut, by_the_standard(&stream));
        }

        #[test]
        fn the_limit_holds_wherever_the_cuts_are(
            stream in proptest::collection::vec(piece(), 0..60),
            cuts in proptest::collection::vec(any::<usize>(), 0..10),
            limit in 0_usize..40,
        ) {
            let stream = stream.concat();
            let (cut, whole) = (Read::of(&stream, &cuts, limit), Read::of(&stream, &[], limit));
            prop_assert!(cut.events.iter().all(|event| event.data.len() <= limit + 1));
            prop_assert_eq!(cut, whole);
        }
    }

    /// A piece of a stream: a field, a line end, or anything.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => "(data|id|event|retry|other)?:? ?[a-z0-9:]{0,4}".prop_map(String::into_bytes),
            5 => prop_oneof!["\n", "\r", "\r\n", "\n\n"].prop_map(String::into_bytes),
            1 => proptest::collection::vec(any::<u8>(), 0..6),
            1 => Just(b"\xef\xbb\xbf".to_vec()),
        ]
    }

    /// All that came of a stream.
    #[derive(Debug, PartialEq, Eq, Default)]
    struct Read {
        events: Vec<SseEvent>,
        last_id: Option<String>,
        retry: Option<Duration>,
        refused: bool,
    }

    impl Read {
        fn of(stream: &[u8], cuts: &[usize], limit: usize) -> Self {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
            cuts.sort_unstable();
            let (mut parser, mut read, mut from) = (SseParser::new(limit), Self::default(), 0);
            for cut in cuts.into_iter().chain([stream.len()]) {
                if parser.feed(&stream[from..cut], &mut read.events).is_err() {
                    read.refused = true;
                    break;
                }
                from = cut;
            }
            read.last_id = parser.take_id();
            read.retry = parser.retry();
            read
        }
    }

    /// The standard's own algorithm, on the whole stream: line ends, then fields, then dispatch.
    fn by_the_standard(stream: &[u8]) -> Read {
        let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
        let (mut lines, mut line, mut at) = (Vec::new(), Vec::new(), 0);
        while at < stream.len() {
            match stream[at] {
                b'\r' if stream.get(at + 1) == Some(&b'\n') => {
                    at += 1;
                    lines.push(std::mem::take(&mut line));
                }
                b'\r' | b'\n' => lines.push(std::mem::take(&mut line)),
                byte => line.push(byte),
            }
            at += 1;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut read = Read::default();
        let (mut data, mut event, mut id) = (Vec::new(), String::new(), None);
        for line in lines {
            if line.is_empty() {
                read.last_id = id.clone().or(read.last_id);
                let (data, event): (Vec<u8>, _) =
                    (std::mem::take(&mut data), std::mem::take(&mut event));
                let id = id.take();
                // Every data line left a line feed.
                if let Some((_, data)) = data.split_last() {
                    let event = if event.is_empty() { "message".to_owned() } else { event };
                    let event = Cow::Owned(event);
                    read.events.push(SseEvent { event, data: Bytes::copy_from_slice(data), id });
                }
                continue;
            }
            let mut parts = line.splitn(2, |byte| *byte == b':');
            let field = parts.next().unwrap();
            let value = parts.next().unwrap_or_default();
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match field {
                b"data" => data.extend_from_slice(&[value, b"\n"].concat()),
                b"event" => event = text(value),
                b"id" if !value.contains(&0) => id = Some(text(value)),
                b"retry" if value.iter().all(u8::is_ascii_digit) => {
                    let millis = text(value).parse().ok().map(Duration::from_millis);
                    read.retry = millis.or(read.retry);
                }
                _ => {}
            }
        }
        read
    }
}
