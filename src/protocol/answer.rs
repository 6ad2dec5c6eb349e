//! Answers of an upstream: the envelope is read, the result stays bytes.

use std::time::Duration;

use crate::model::cut_after;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::object::BorrowedStr;

/// Why bytes are not the answer to our request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Not JSON, or not an object.
    #[error("the answer is not a JSON-RPC message: {0}")]
    NotJsonRpc(String),
    /// Neither `result` nor `error`, or both.
    #[error("the answer has neither `result` nor `error`, or both")]
    Neither,
    /// An answer to something else.
    #[error("the answer has the id {found}, not {expected}")]
    WrongId {
        /// The id we sent.
        expected: u64,
        /// The id that came, as JSON.
        found: String,
    },
    /// `result` is not an object.
    #[error("`result` is not an object")]
    ResultNotObject,
}

/// A proper answer: what the upstream said, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Result or error.
    pub kind: AnswerKind,
    /// The `result` or `error` value, a slice of what was received.
    pub value: Bytes,
    /// What HTTP said beside it, where that was no success.
    pub refusal: Option<HttpRefusal>,
}

/// The head of an HTTP response that is no success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpRefusal {
    /// Its status.
    pub status: u16,
    /// How long the server wants to be left alone (`Retry-After`).
    pub retry_after: Option<Duration>,
}

/// Which member an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// `result`.
    Result,
    /// `error`.
    Error,
}

/// What kind of message a line or event is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageKind {
    /// An answer to our request of this id.
    Answer(u64),
    /// A request of the upstream to us, with its id as JSON and its method.
    Request {
        /// The id as JSON.
        id: String,
        /// The method.
        method: String,
    },
    /// A notification.
    Notification {
        /// The method.
        method: String,
    },
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<BorrowedStr<'a>>,
}

impl Answer {
    /// An answer beside which nothing is to be said.
    #[must_use]
    pub const fn new(kind: AnswerKind, value: Bytes) -> Self {
        Self { kind, value, refusal: None }
    }

    /// Reads the answer to request `id` from a whole message.
    ///
    /// # Errors
    /// [`AnswerError`] when it is none; the upstream is at fault then.
    pub fn parse(message: &Bytes, id: u64) -> Result<Self, AnswerError> {
        let envelope: Envelope<'_> = parse(message)?;
        // An error to a request whose id the server could not read has the id null.
        let found = envelope.id.map_or("null", RawValue::get);
        let matches =
            found.parse::<u64>() == Ok(id) || (found == "null" && envelope.error.is_some());
        if !matches {
            return Err(AnswerError::WrongId { expected: id, found: cut(found) });
        }
        let (kind, value) = match (envelope.result, envelope.error) {
            (Some(result), None) => (AnswerKind::Result, result),
            (None, Some(error)) => (AnswerKind::Error, error),
            // Some servers write `"error": null` beside a result.
            (Some(result), Some(error)) if error.get() == "null" => (AnswerKind::Result, result),
            (Some(_), Some(_)) | (None, None) => return Err(AnswerError::Neither),
        };
        if kind == AnswerKind::Result && !value.get().starts_with('{') {
            return Err(AnswerError::ResultNotObject);
        }
        Ok(Self::new(kind, message.slice_ref(value.get().as_bytes())))
    }
}

/// What kind of message this is; for connections on which several can come.
///
/// # Errors
/// [`AnswerError::NotJsonRpc`] when it is none.
pub fn message_kind(message: &[u8]) -> Result<MessageKind, AnswerError> {
    let header: Header<'_> = parse(message)?;
    Ok(match (header.method, header.id) {
        (Some(method), Some(id)) => {
            MessageKind::Request { id: id.get().to_owned(), method: method.0.into_owned() }
        }
        (Some(method), None) => MessageKind::Notification { method: method.0.into_owned() },
        (None, id) => {
            let id = id.map_or("null", RawValue::get);
            let number = id.parse().ok().ok_or_else(|| {
                AnswerError::NotJsonRpc(format!("it has no method and the id {}", cut(id)))
            })?;
            MessageKind::Answer(number)
        }
    })
}

fn parse<'a, T: Deserialize<'a>>(message: &'a [u8]) -> Result<T, AnswerError> {
    serde_json::from_slice(message).map_err(|error| AnswerError::NotJsonRpc(error.to_string()))
}

fn cut(text: &str) -> String {
    cut_after(text, 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(message: &str) -> Result<(AnswerKind, String), AnswerError> {
        Answer::parse(&Bytes::copy_from_slice(message.as_bytes()), 7)
            .map(|a| (a.kind, String::from_utf8(a.value.to_vec()).unwrap()))
    }

    #[test]
    fn the_result_is_a_slice_of_the_message() {
        let message =
            Bytes::from_static(br#"{"jsonrpc":"2.0","id":7,"result":{"n": 1.0, "x":1e400 }}"#);
        let answer = Answer::parse(&message, 7).unwrap();
        assert_eq!(&answer.value[..], br#"{"n": 1.0, "x":1e400 }"#);
        assert!(message.as_ptr_range().contains(&answer.value.as_ptr()));
    }

    #[test]
    fn errors_and_faults_are_told_apart() {
        assert_eq!(
            answer(r#"{"id":7,"error":{"code":-32602,"message":"x"}}"#).unwrap().0,
            AnswerKind::Error
        );
        assert_eq!(answer(r#"{"id":null,"error":{"code":1}}"#).unwrap().0, AnswerKind::Error);
        assert_eq!(answer(r#"{"id":7,"result":{},"error":null}"#).unwrap().0, AnswerKind::Result);
        assert!(matches!(answer(r#"{"id":8,"result":{}}"#), Err(AnswerError::WrongId { .. })));
        assert!(matches!(answer(r#"{"id":"7","result":{}}"#), Err(AnswerError::WrongId { .. })));
        assert_eq!(answer(r#"{"id":7}"#), Err(AnswerError::Neither));
        assert_eq!(answer(r#"{"id":7,"result":{},"error":{}}"#), Err(AnswerError::Neither));
        assert_eq!(answer(r#"{"id":7,"result":[]}"#), Err(AnswerError::ResultNotObject));
        for garbage in ["", "<html>", "{", "{}}", "[1]", "\u{feff}{}"] {
            assert!(answer(garbage).is_err(), "{garbage}");
        }
        assert!(
            Answer::parse(&Bytes::from_static(b"{\"id\":7,\"result\":{\"x\":\"\xff\"}}"), 7)
                .is_err()
        );
    }

    #[test]
    fn messages_are_told_apart() {
        assert_eq!(message_kind(br#"{"id":3,"result":{}}"#), Ok(MessageKind::Answer(3)));
        assert_eq!(
            message_kind(br#"{"id":"a","method":"ping"}"#),
            Ok(MessageKind::Request { id: "\"a\"".into(), method: "ping".into() })
        );
        assert_eq!(
            message_kind(br#"{"method":"notifications/progress","params":{}}"#),
            Ok(MessageKind::Notification { method: "notifications/progress".into() })
        );
        assert!(message_kind(br#"{"id":"x","result":{}}"#).is_err());
        assert!(message_kind(b"npm WARN deprecated").is_err());
    }
}
