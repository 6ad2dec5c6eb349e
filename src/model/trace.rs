//! Trace context: to which trace a request belongs, as its sender says it.
//!
//! Changes when the formats do. Source: W3C Trace Context, levels 1 and 2; W3C Baggage; SEP-414 for
//! the same fields in `_meta`. Knows nothing of where fields stand or what is recorded.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// The name of the field that says which trace and which span a request comes from.
pub const TRACEPARENT: &str = "traceparent";
/// The name of the field in which tracing systems keep what is theirs.
pub const TRACESTATE: &str = "tracestate";
/// The name of the field with what the application passes on.
pub const BAGGAGE: &str = "baggage";

/// Entries of `tracestate` at most (3.3.1.1).
const STATE_ENTRIES: usize = 32;
/// Bytes of `tracestate` that are passed on at most. At least 512 must be (3.3.1.5).
const STATE_BYTES: usize = 4096;
/// Bytes of `baggage` at most (W3C Baggage, 3.3.2).
const BAGGAGE_BYTES: usize = 8192;
/// Bytes of a `traceparent` of version 00.
const PARENT_BYTES: usize = 55;

/// The parent recorded the request, or may have.
const SAMPLED: u8 = 0b01;
/// The trace's id is random (level 2).
const RANDOM: u8 = 0b10;

/// Which trace. Never all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// Which span of a trace. Never all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

macro_rules! id_type {
    ($name:ident, $bytes:literal) => {
        impl $name {
            /// From its bytes; `None` when they are all zeros.
            #[must_use]
            pub fn from_bytes(bytes: [u8; $bytes]) -> Option<Self> {
                (bytes != [0; $bytes]).then_some(Self(bytes))
            }

            /// Reads lower-case hexadecimal digits.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::from_bytes(from_hex(text)?)
            }

            /// Its bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    };
}

id_type!(TraceId, 16);
id_type!(SpanId, 8);

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (to, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *to = digit(*high)? << 4 | digit(*low)?;
    }
    Some(out)
}

/// What `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The sender's span.
    pub span: SpanId,
    flags: u8,
}

impl TraceContext {
    /// The beginning of a trace with a random id.
    #[must_use]
    pub const fn root(trace: TraceId, span: SpanId, sampled: bool) -> Self {
        let flags = if sampled { RANDOM | SAMPLED } else { RANDOM };
        Self { trace, span, flags }
    }

    /// Reads a `traceparent`. Of a version after 00 the four fields that 00 has count, and it is
    /// passed on as 00 (4.3, "versioning").
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if !text.is_ascii() {
            return None;
        }
        let (fields, more) = text.split_at_checked(PARENT_BYTES)?;
        let mut fields = fields.split('-');
        let mut next = || fields.next();
        let [version] = from_hex::<1>(next()?)?;
        let trace = TraceId::parse(next()?)?;
        let span = SpanId::parse(next()?)?;
        let [flags] = from_hex::<1>(next()?)?;
        let flags = match version {
            0 if more.is_empty() => flags,
            0 | 0xff => return None,
            // What other bits mean there is not known.
            _ if more.is_empty() || more.starts_with('-') => flags & (SAMPLED | RANDOM),
            _ => return None,
        };
        Some(Self { trace, span, flags })
    }

    /// The same trace from another span on. Flags that are not known are not passed on (3.3.3).
    #[must_use]
    pub const fn from_span(self, span: SpanId) -> Self {
        Self { trace: self.trace, span, flags: self.flags & (SAMPLED | RANDOM) }
    }

    /// Whether the sender recorded the request, or may have.
    #[must_use]
    pub const fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The flags as they are on the wire.
    #[must_use]
    pub const fn flags(self) -> u8 {
        self.flags
    }

    /// As `traceparent`, ASCII.
    #[must_use]
    pub fn to_ascii(self) -> [u8; PARENT_BYTES] {
        let mut out = [b'-'; PARENT_BYTES];
        let fields = [(0, &[0][..]), (3, &self.trace.0), (36, &self.span.0), (53, &[self.flags])];
        for (at, bytes) in fields {
            for (to, byte) in out.get_mut(at..).unwrap_or_default().chunks_mut(2).zip(bytes) {
                if let [high, low] = to {
                    (*high, *low) = (hex_digit(byte >> 4), hex_digit(byte & 0xf));
                }
            }
        }
        out
    }
}

const fn hex_digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'a' + value - 10 }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.to_ascii()).unwrap_or_default())
    }
}

/// The three fields as they came.
#[derive(Debug, Clone, Default)]
pub struct TraceFields<'a> {
    /// `traceparent`.
    pub traceparent: Option<Cow<'a, str>>,
    /// `tracestate`.
    pub tracestate: Option<Cow<'a, str>>,
    /// `baggage`.
    pub baggage: Option<Cow<'a, str>>,
}

/// What a caller says of its trace, as far as it is valid.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CallerTrace {
    /// The trace and the caller's span.
    pub context: Option<TraceContext>,
    /// What tracing systems keep in it; nothing without a context. Shared by all spans that have it.
    pub state: Option<Arc<str>>,
    /// What the application passes on.
    pub baggage: Option<Box<str>>,
    /// Another context that the HTTP request around it was sent in.
    pub around: Option<TraceContext>,
}

impl CallerTrace {
    /// What of `fields` is valid; `None` when nothing is. A state without a valid parent is not
    /// looked at (4.3).
    #[must_use]
    pub fn read(fields: &TraceFields<'_>) -> Option<Self> {
        let context = fields.traceparent.as_deref().and_then(TraceContext::parse);
        let state = fields.tracestate.as_deref().filter(|_| context.is_some()).and_then(state);
        let baggage = fields.baggage.as_deref().and_then(baggage);
        (context.is_some() || baggage.is_some()).then_some(Self {
            context,
            state,
            baggage,
            around: None,
        })
    }

    /// What a request says of itself, and where it says nothing valid, what came with it.
    #[must_use]
    pub fn of_request(request: Option<Self>, around: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        let Some(mut request) = request else { return around.cloned() };
        if let Some(around) = around {
            if request.context.is_none() {
                request.context = around.context;
                request.state.clone_from(&around.state);
            } else if request.context != around.context {
                request.around = around.context;
            }
            if request.baggage.is_none() {
                request.baggage.clone_from(&around.baggage);
            }
        }
        Some(Arc::new(request))
    }

    /// As it goes on when nothing is recorded.
    #[must_use]
    pub fn unchanged(&self) -> OutgoingTrace<'_> {
        let (state, baggage) = (self.state.as_deref(), self.baggage.as_deref());
        OutgoingTrace { context: self.context, state, baggage }
    }
}

/// What a request to a server says of its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutgoingTrace<'a> {
    /// The trace and the span it is sent from.
    pub context: Option<TraceContext>,
    /// `tracestate`.
    pub state: Option<&'a str>,
    /// `baggage`.
    pub baggage: Option<&'a str>,
}

/// A valid `tracestate` as it is; one invalid entry spoils all (3.3.1).
fn state(text: &str) -> Option<Arc<str>> {
    if text.len() > STATE_BYTES {
        return None;
    }
    let mut keys: Vec<&str> = Vec::new();
    for entry in text.split(',') {
        let entry = entry.trim_matches([' ', '\t']);
        if entry.is_empty() {
            continue;
        }
        let (key, value) = entry.split_once('=')?;
        let fits = is_state_key(key) && is_state_value(value);
        if !fits || keys.contains(&key) || keys.len() == STATE_ENTRIES {
            return None;
        }
        keys.push(key);
    }
    (!keys.is_empty()).then(|| text.into())
}

/// 3.3.1.3.1 of level 2, which allows what level 1 does and more.
fn is_state_key(key: &str) -> bool {
    let mut bytes = key.bytes();
    let begins = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let goes_on = |b: u8| {
        b.is_ascii_lowercase()
            || b.is_ascii_digit()
            || matches!(b, b'_' | b'-' | b'*' | b'/' | b'@')
    };
    begins && key.len() <= 256 && bytes.all(goes_on)
}

/// Printable ASCII without `,` and `=`, not ending in a space.
fn is_state_value(value: &str) -> bool {
    let fits = |b: u8| (0x20..=0x7e).contains(&b) && !matches!(b, b',' | b'=');
    (1..=256).contains(&value.len()) && value.bytes().all(fits)
}

/// Baggage that a header can carry. What is in it is the application's.
fn baggage(text: &str) -> Option<Box<str>> {
    let text = text.trim_matches([' ', '\t']);
    let fits = text.bytes().all(|b| (0x20..=0x7e).contains(&b) || b == b'\t');
    (fits && (1..=BAGGAGE_BYTES).contains(&text.len())).then(|| text.into())
}

#[cfg(test)]
mod tests;
