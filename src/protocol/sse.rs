//! Server-sent events: bytes in, whole events out, however they were cut in transit.
//!
//! Source: WHATWG HTML, section 9.2 "Server-sent events".

use std::time::Duration;

use bytes::{Bytes, BytesMut};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// `event:`, or `message`.
    pub event: String,
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
    last_id: Option<String>,
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
            last_id: None,
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
        while !chunk.is_empty() {
            if self.after_cr {
                self.after_cr = false;
                if let Some(rest) = chunk.strip_prefix(b"\n") {
                    chunk = rest;
                    continue;
                }
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', chunk) else {
                self.push_to_line(chunk)?;
                break;
            };
            let (line, rest) = chunk.split_at_checked(end).unwrap_or((chunk, &[]));
            self.push_to_line(line)?;
            self.after_cr = rest.first() == Some(&b'\r');
            chunk = rest.get(1..).unwrap_or_default();
            self.end_line(events)?;
        }
        Ok(())
    }

    /// The last `id:` of an ended event, also of one without data.
    #[must_use]
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
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

    fn end_line(&mut self, events: &mut Vec<SseEvent>) -> Result<(), SseError> {
        let line = self.line.split().freeze();
        let mut line: &[u8] = &line;
        if self.at_start {
            self.at_start = false;
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            self.dispatch(events);
            return Ok(());
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(0) => return Ok(()),
            Some(at) => {
                let (field, value) = line.split_at_checked(at).unwrap_or((line, b""));
                let value = value.strip_prefix(b":").unwrap_or(value);
                (field, value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &b""[..]),
        };
        match field {
            b"data" => {
                if self.data.len().saturating_add(value.len()) > self.limit {
                    return Err(SseError::TooLarge { limit: self.limit });
                }
                if self.has_data {
                    self.data.extend_from_slice(b"\n");
                }
                self.data.extend_from_slice(value);
                self.has_data = true;
            }
            b"event" => self.event = String::from_utf8_lossy(value).into_owned(),
            b"id" if !value.contains(&0) => {
                self.id = Some(String::from_utf8_lossy(value).into_owned());
            }
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let millis = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                self.retry = millis.map(Duration::from_millis);
            }
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self, events: &mut Vec<SseEvent>) {
        let event = std::mem::take(&mut self.event);
        let id = self.id.take();
        if id.is_some() {
            self.last_id.clone_from(&id);
        }
        if !std::mem::take(&mut self.has_data) {
            return;
        }
        events.push(SseEvent {
            event: if event.is_empty() { "message".to_owned() } else { event },
            data: self.data.split().freeze(),
            id,
        });
    }
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

    fn data(stream: &str) -> Vec<(String, String)> {
        parse(stream.as_bytes(), &[])
            .into_iter()
            .map(|e| (e.event, String::from_utf8(e.data.to_vec()).unwrap()))
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
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut parser = SseParser::new(100);
            let _ = parser.feed(&bytes, &mut Vec::new());
        }
    }
}
