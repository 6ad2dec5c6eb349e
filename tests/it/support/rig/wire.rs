//! One connection of a [`Rig`](super::Rig): requests in, bytes out.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{CallEnd, Inner, Seen};

/// What is written at a time by those who write without end.
pub const CHUNK: usize = 64 * 1024;
pub const CHUNKED: &str = "transfer-encoding: chunked\r\n";

/// One connection.
pub struct Wire {
    pub socket: TcpStream,
    pub buffer: BytesMut,
    /// Where to note that it was closed, while a call is answered.
    pub end: Option<Arc<Mutex<CallEnd>>>,
}

pub struct Request {
    pub verb: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What becomes of a connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Keep,
    Close,
}
pub fn head(status: &str, kind: &str, more: &str) -> String {
    let kind = if kind.is_empty() { String::new() } else { format!("content-type: {kind}\r\n") };
    format!("HTTP/1.1 {status}\r\n{kind}{more}\r\n")
}

/// The beginning of a gzip file in which every further zero byte stands for 1032 zeros: one block
/// whose tables give one bit to the longest match (258 bytes) and one to the distance 1.
pub fn bomb() -> Vec<u8> {
    let mut bits: Vec<bool> = Vec::new();
    let mut number = |value: u32, count: u32| {
        bits.extend((0..count).map(|at| value >> at & 1 == 1));
    };
    number(1, 1); // the last block
    number(2, 2); // with its own tables
    number(29, 5); // 286 lengths of literals and matches
    number(0, 5); // one of a distance
    number(14, 4); // 18 lengths of the code below, in the format's order
    for length in [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 2] {
        number(length, 3);
    }
    // That code: `0` repeats zero (11 and seven bits more), `10` is the length 1, `11` the length 2.
    let zeros = |count: u32| [(0, 1), (count - 11, 7)];
    let (one, two) = ((0b01, 2), (0b11, 2));
    for (value, count) in
        [&[two][..], &zeros(138), &zeros(117), &[two], &zeros(28), &[one], &[one]].concat()
    {
        number(value, count);
    }
    number(0b01, 2); // one literal zero
    while !bits.len().is_multiple_of(8) {
        bits.push(false);
    }
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    file.extend(
        bits.chunks(8)
            .map(|byte| byte.iter().rev().fold(0_u8, |value, bit| value << 1 | u8::from(*bit))),
    );
    file
}

impl Wire {
    /// The next request; `None` when the other side closed instead.
    pub async fn request(&mut self) -> io::Result<Option<Request>> {
        let end = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        };
        let head = self.buffer.split_to(end + 4);
        let head = std::str::from_utf8(&head).unwrap();
        let mut lines = head.split("\r\n");
        let verb = lines.next().unwrap().split(' ').next().unwrap().to_owned();
        let headers: HeaderMap = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| {
                let name: HeaderName = name.parse().unwrap();
                (name, HeaderValue::from_str(value).unwrap())
            })
            .collect();
        let length = headers.get("content-length");
        let length = length.map_or(0, |length| length.to_str().unwrap().parse().unwrap());
        while self.buffer.len() < length {
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
        let body = self.buffer.split_to(length).freeze();
        Ok(Some(Request { verb, headers, body }))
    }

    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes).await
    }

    pub async fn chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
        self.write(bytes).await?;
        self.write(b"\r\n").await
    }

    pub async fn document(
        &mut self,
        status: &str,
        kind: &str,
        more: &str,
        body: &[u8],
    ) -> io::Result<Then> {
        let more = format!("{more}content-length: {}\r\n", body.len());
        let mut all = head(status, kind, &more).into_bytes();
        all.extend_from_slice(body);
        self.write(&all).await?;
        Ok(Then::Keep)
    }

    /// So many bytes that could stand in JSON.
    pub async fn fill(&mut self, mut size: u64, chunked: bool) -> io::Result<()> {
        let block = b"x".repeat(CHUNK);
        while size > 0 {
            let part = &block[..usize::try_from(size).unwrap_or(CHUNK).min(CHUNK)];
            match chunked {
                true => self.chunk(part).await?,
                false => self.write(part).await?,
            }
            size -= part.len() as u64;
        }
        Ok(())
    }

    /// The same block until the other side closes.
    pub async fn flood(&mut self, block: &[u8]) -> io::Result<Then> {
        loop {
            self.chunk(block).await?;
        }
    }

    /// Waits until the other side closes.
    pub async fn closed(&self) -> io::Error {
        let mut byte = [0];
        match self.socket.peek(&mut byte).await {
            Ok(0) => io::ErrorKind::UnexpectedEof.into(),
            // Nobody sends a request before the answer to the one before it.
            Ok(_) => io::Error::other("a request came before its time"),
            Err(error) => error,
        }
    }

    pub fn note_closed(&self, inner: &Inner) {
        let Some(end) = &self.end else { return };
        end.lock().closed.get_or_insert_with(Instant::now);
        let mut seen = inner.seen.lock();
        let Seen { calls, counts, .. } = &mut *seen;
        if let Some(call) = calls.iter().rev().find(|call| Arc::ptr_eq(&call.end, end)) {
            counts.entry(call.tool.clone()).or_default().closed += 1;
        }
    }

    pub fn reset(&self) -> io::Result<Then> {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO))?;
        Ok(Then::Close)
    }
}
