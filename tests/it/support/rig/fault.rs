//! [`Fault`]: the ways to break, and how each looks on the wire.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use super::Inner;
use super::wire::{CHUNK, CHUNKED, Then, Wire, bomb, head};

/// What becomes of a request that came whole.
#[derive(Debug, Clone)]
pub enum Fault {
    /// None: it is answered, in JSON.
    None,
    /// None: it is answered, in the one event of a stream.
    Event,
    /// First this long nothing, then another.
    After(Duration, Arc<Fault>),
    /// First nothing until [`Rig::release`], then another.
    Hold(Arc<Fault>),
    /// A JSON-RPC error with this code.
    RpcError(i64),
    /// The same with this status of HTTP.
    StatusError(u16, i64),
    /// A result that says `isError`.
    ToolError,
    /// Silence before the head of the answer, for ever.
    HangBeforeHeaders,
    /// Silence after the head.
    HangAfterHeaders,
    /// Silence in the middle of an event.
    HangMidEvent,
    /// Silence in the middle of a JSON document.
    HangMidJson,
    /// Our side of the connection is closed without a byte, the other is still read.
    HalfClose,
    /// The connection is reset (RST) without a byte.
    Reset,
    /// Half of the answer, then a reset.
    ResetMidAnswer,
    /// Half of the answer, then the connection is closed in order.
    Truncated,
    /// The stream ends in order, without the answer.
    StreamEnds,
    /// The connection is closed with the request unread; nothing is executed.
    CloseUnread,
    /// The answer has the id of no request of ours.
    WrongId,
    /// A stream with two answers of the right id, of which the second lies.
    TwoAnswers,
    /// Two whole HTTP responses, of which the second lies.
    TwoResponses,
    /// The whole answer, then bytes that are no HTTP.
    AnswerThenGarbage,
    /// A stream with the answer and then comments without end.
    AnswerThenFlood,
    /// The right answer as this content type.
    ContentType(&'static str),
    /// The answer, with bytes in it that are no UTF-8.
    InvalidUtf8,
    /// What is no JSON, as JSON.
    Garbage,
    /// What is no HTTP.
    NoHttp,
    /// A status with this body and these header lines, each with its end.
    Status { code: u16, body: &'static str, headers: String, executes: bool },
    /// A JSON document of so many bytes, with its length.
    Long(u64),
    /// A JSON document of so many bytes, in chunks.
    LongChunked(u64),
    /// `100 Continue` without end.
    Informational,
    /// Comments without end, as fast as they are read.
    Comments,
    /// One byte of a comment in each of these times, without end.
    Trickle(Duration),
    /// A stream with a comment in each of these times, so often, and then the answer.
    Drip(Duration, u32),
    /// So many small events, then silence.
    Events(u64),
    /// This message without end, as fast as it is read.
    Say(&'static str),
    /// One line of so many bytes, then the answer.
    Line(u64),
    /// A stream that stays open and silent, as a server's own stream does.
    OpenStream,
    /// A body of so many bytes that is a thousand times that when it is inflated, with this
    /// `Content-Encoding`.
    Bomb(u64, &'static str),
}

impl Fault {
    /// An answer with this status and a body; 429 and 503 do not execute, all others do.
    pub fn status(code: u16) -> Self {
        let executes = !matches!(code, 429 | 503);
        Self::Status { code, body: "it went wrong", headers: String::new(), executes }
    }

    /// The same without a body.
    pub fn bare_status(code: u16) -> Self {
        let executes = !matches!(code, 429 | 503);
        Self::Status { code, body: "", headers: String::new(), executes }
    }

    /// The same with `Retry-After`.
    pub fn retry_after(code: u16, seconds: u64) -> Self {
        let headers = format!("retry-after: {seconds}\r\n");
        Self::Status { code, body: "later", headers, executes: false }
    }

    pub fn after(time: Duration, then: Self) -> Self {
        Self::After(time, Arc::new(then))
    }

    pub fn hold(then: Self) -> Self {
        Self::Hold(Arc::new(then))
    }

    /// Whether the tool has run when this is seen.
    pub fn executes(&self) -> bool {
        match self {
            Self::After(_, then) | Self::Hold(then) => then.executes(),
            Self::Status { executes, .. } => *executes,
            Self::CloseUnread => false,
            _ => true,
        }
    }
}

impl Inner {
    pub async fn play(
        &self,
        wire: &mut Wire,
        fault: &Fault,
        id: &Value,
        answer: &str,
    ) -> io::Result<Then> {
        let mut fault = fault;
        loop {
            fault = match fault {
                Fault::After(time, then) => {
                    tokio::select! {
                        () = tokio::time::sleep(*time) => {}
                        gone = wire.closed() => return Err(gone),
                    }
                    then
                }
                Fault::Hold(then) => {
                    let mut released = self.released.subscribe();
                    tokio::select! {
                        _ = released.changed() => {}
                        gone = wire.closed() => return Err(gone),
                    }
                    then
                }
                _ => break,
            }
        }
        let half = answer.split_at(answer.len() / 2).0;
        match fault {
            Fault::After(..) | Fault::Hold(_) => unreachable!("peeled off above"),
            Fault::None | Fault::RpcError(_) | Fault::ToolError => {
                wire.document("200 OK", "application/json", "", answer.as_bytes()).await
            }
            Fault::StatusError(status, _) => {
                let status = format!("{status} Told");
                wire.document(&status, "application/json", "", answer.as_bytes()).await
            }
            Fault::Event => {
                wire.write(head("200 OK", "text/event-stream", CHUNKED).as_bytes()).await?;
                wire.chunk(format!("data: {answer}\n\n").as_bytes()).await?;
                wire.write(b"0\r\n\r\n").await?;
                Ok(Then::Keep)
            }
            Fault::HangBeforeHeaders => Err(wire.closed().await),
            Fault::HangAfterHeaders => {
                let length = format!("content-length: {}\r\n", answer.len());
                wire.write(head("200 OK", "application/json", &length).as_bytes()).await?;
                Err(wire.closed().await)
            }
            Fault::HangMidEvent => {
                wire.write(head("200 OK", "text/event-stream", CHUNKED).as_bytes()).await?;
                wire.chunk(format!("data: {half}").as_bytes()).await?;
                Err(wire.closed().await)
            }
            Fault::HangMidJson => {
                let length = format!("content-length: {}\r\n", answer.len());
                wire.write(head("200 OK", "application/json", &length).as_bytes()).await?;
                wire.write(half.as_bytes()).await?;
                Err(wire.closed().await)
            }
            Fault::HalfClose => {
                wire.socket.shutdown().await?;
                let _ = wire.closed().await;
                Ok(Then::Close)
            }
            Fault::Reset => wire.reset(),
            Fault::ResetMidAnswer | Fault::Truncated => {
                let length = format!("content-length: {}\r\n", answer.len());
                wire.write(head("200 OK", "application/json", &length).as_bytes()).await?;
                wire.write(half.as_bytes()).await?;
                match fault {
                    Fault::ResetMidAnswer => wire.reset(),
                    _ => Ok(Then::Close),
                }
            }
            Fault::StreamEnds => {
                wire.write(head("200 OK", "text/event-stream", CHUNKED).as_bytes()).await?;
                wire.write(b"0\r\n\r\n").await?;
                Ok(Then::Keep)
            }
            Fault::CloseUnread => Ok(Then::Close),
            Fault::WrongId => {
                let wrong = answer.replacen(&format!("\"id\":{id}"), "\"id\":987654321", 1);
                wire.document("200 OK", "application/json", "", wrong.as_bytes()).await
            }
            Fault::TwoAnswers => {
                wire.write(head("200 OK", "text/event-stream", CHUNKED).as_bytes()).await?;
                let second = lie(id);
                wire.chunk(format!("data: {answer}\n\ndata: {second}\n\n").as_bytes()).await?;
                wire.write(b"0\r\n\r\n").await?;
                Ok(Then::Keep)
            }
            Fault::TwoResponses => {
                // In one write, so that both are there when the first is read.
                let mut both = String::new();
                for answer in [answer, &lie(id)] {
                    let length = format!("content-length: {}\r\n", answer.len());
                    both += &head("200 OK", "application/json", &length);
                    both += answer;
                }
                wire.write(both.as_bytes()).await?;
                Ok(Then::Keep)
            }
            Fault::AnswerThenGarbage => {
                let length = format!("content-length: {}\r\n", answer.len());
                let all = head("200 OK", "application/json", &length)
                    + answer
                    + "\u{0}\u{1}HTTP/9.9 no\r\n{{{";
                wire.write(all.as_bytes()).await?;
                Ok(Then::Keep)
            }
            Fault::AnswerThenFlood => {
                wire.write(head("200 OK", "text/event-stream", CHUNKED).as_bytes()).await?;
                wire.chunk(format!("data: {answer}\n\n").as_bytes()).await?;
                wire.flood(&b": still here\n\n".repeat(CHUNK / 14)).await
            }
            Fault::ContentType(kind) => wire.document("200 OK", kind, "", answer.as_bytes()).await,
            Fault::InvalidUtf8 => {
                let mut bytes = answer.as_bytes().to_vec();
                let at = answer.find("\"text\":\"").map_or(2, |at| at + 8);
                bytes.splice(at..at, *b"\xff\xfe\xc3\x28");
                wire.document("200 OK", "application/json", "", &bytes).await
            }
            Fault::Garbage => {
                wire.document("200 OK", "application/json", "", b"<<< no { json ]").await
            }
            Fault::NoHttp => {
                wire.write(b"\x00\x01\xff SSH-2.0-nonsense\r\n\r\n").await?;
                Ok(Then::Close)
            }
            Fault::Status { code, body, headers, .. } => {
                let kind = if body.is_empty() { "" } else { "text/plain" };
                wire.document(&format!("{code} Told"), kind, headers, body.as_bytes()).await
            }
            Fault::Long(size) => {
                let length = format!("content-length: {size}\r\n");
                wire.write(head("200 OK", "application/json", &length).as_bytes()).await?;
                wire.fill(*size, false).await?;
                Ok(Then::Keep)
            }
            Fault::LongChunked(size) => {
                wire.write(head("200 OK", "application/json", CHUNKED).as_bytes()).await?;
                wire.fill(*size, true).await?;
                wire.write(b"0\r\n\r\n").await?;
                Ok(Then::Keep)
            }
            Fault::Informational => loop {
                wire.write(&b"HTTP/1.1 100 Continue\r\n\r\n".repeat(100)).await?;
            },
            Fault::Comments => {
                wire.write(head("200 OK", "text/event-stream", CHUNKED).as_bytes()).await?;
                wire.flood(&b": still here\n\n".repeat(CHUNK / 14)).await
            }
            Fault::Say(message) => {
                wire.write(head("200 OK", "text/event-stream", CHUNKED).as_bytes()).await?;
                let event = format!("data: {message}\n\n");
                wire.flood(&event.as_bytes().repeat(CHUNK / event.len())).await
            }
            Fault::Trickle(time) => {
                wire.write(head("200 OK", "text/event-stream", CHUNKED).as_bytes()).await?;
                loop {
                    wire.chunk(b":").await?;
                    tokio::select! {
                        () = tokio::time::sleep(*time) => {}
                        gone = wire.closed() => return Err(gone),
                    }
                }
            }
            Fault::Drip(time, count) => {
                wire.write(head("200 OK", "text/event-stream", CHUNKED).as_bytes()).await?;
                for _ in 0..*count {
                    wire.chunk(b": patience\n\n").await?;
                    tokio::time::sleep(*time).await;
                }
                wire.chunk(format!("data: {answer}\n\n").as_bytes()).await?;
                wire.write(b"0\r\n\r\n").await?;
                Ok(Then::Keep)
            }
            Fault::Events(count) => {
                wire.write(head("200 OK", "text/event-stream", CHUNKED).as_bytes()).await?;
                let block = b"data: {}\n\n".repeat(1000);
                for _ in 0..count.div_ceil(1000) {
                    wire.chunk(&block).await?;
                }
                Err(wire.closed().await)
            }
            Fault::Line(size) => {
                wire.write(head("200 OK", "text/event-stream", CHUNKED).as_bytes()).await?;
                wire.chunk(b"data: \"").await?;
                wire.fill(*size, true).await?;
                wire.chunk(format!("\"\n\ndata: {answer}\n\n").as_bytes()).await?;
                wire.write(b"0\r\n\r\n").await?;
                Ok(Then::Keep)
            }
            Fault::OpenStream => {
                wire.write(head("200 OK", "text/event-stream", CHUNKED).as_bytes()).await?;
                wire.chunk(b": hello\n\n").await?;
                Err(wire.closed().await)
            }
            Fault::Bomb(size, encoding) => {
                let more = format!("content-encoding: {encoding}\r\n");
                let mut bomb = bomb();
                bomb.resize(bomb.len() + usize::try_from(*size).unwrap(), 0);
                wire.document("200 OK", "application/json", &more, &bomb).await
            }
        }
    }
}

/// An answer of the right id that must not be believed.
fn lie(id: &Value) -> String {
    json!({ "jsonrpc": "2.0", "id": id, "result": {
        "content": [{ "type": "text", "text": "a lie" }], "resultType": "complete",
    } })
    .to_string()
}
