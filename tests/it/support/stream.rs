//! Answers read message by message, and connections that are used again.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::Answer;

/// Longer than any message takes to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    pub id: Option<String>,
    pub retry: Option<u64>,
    /// The message; null when the event has none.
    pub data: Value,
}

/// An answer that is still being read. Dropping it closes its connection.
#[derive(Debug)]
pub struct Stream {
    pub status: u16,
    pub headers: HeaderMap,
    body: Incoming,
    buffer: Vec<u8>,
    ready: VecDeque<Event>,
    /// Lines that are no events.
    pub comments: Vec<String>,
    connection: tokio::task::JoinHandle<()>,
    _sender: SendRequest<Full<Bytes>>,
}

impl Stream {
    pub(super) async fn open(socket: TcpStream, request: Request<Full<Bytes>>) -> Self {
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
        let (head, body) = answer.expect("an answer begins in time").unwrap().into_parts();
        Self {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            buffer: Vec::new(),
            ready: VecDeque::new(),
            comments: Vec::new(),
            connection,
            _sender: sender,
        }
    }

    #[track_caller]
    pub fn expect_stream(self) -> Self {
        assert_eq!(
            (self.status, &self.headers["content-type"]),
            (200, &"text/event-stream".parse().unwrap())
        );
        self
    }

    /// The next event, or none when the answer has ended.
    pub async fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await;
            let frame = frame.expect("an event in time")?.ok()?;
            self.buffer.extend_from_slice(frame.data_ref().expect("data"));
            while let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let text: Vec<u8> = self.buffer.drain(..end + 2).collect();
                self.take(std::str::from_utf8(&text).unwrap());
            }
        }
    }

    /// The next message, or none when the answer has ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            let event = self.next_event().await?;
            if !event.data.is_null() {
                return Some(event.data);
            }
        }
    }

    /// The next message, if it comes within `limit`.
    pub async fn within(&mut self, limit: Duration) -> Option<Value> {
        tokio::time::timeout(limit, self.next()).await.ok().flatten()
    }

    /// Every message up to the end.
    pub async fn rest(&mut self) -> Vec<Value> {
        let mut all = Vec::new();
        while let Some(message) = self.next().await {
            all.push(message);
        }
        all
    }

    /// Waits for the end, and says whether nothing more came.
    pub async fn is_over(&mut self) -> bool {
        self.next().await.is_none()
    }

    fn take(&mut self, text: &str) {
        let mut event = Event { id: None, retry: None, data: Value::Null };
        let mut any = false;
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            any |= !field.is_empty();
            match field {
                "" => self.comments.push(value.to_owned()),
                "id" => event.id = Some(value.to_owned()),
                "retry" => event.retry = Some(value.parse().unwrap()),
                "data" if value.is_empty() => {}
                "data" => event.data = serde_json::from_str(value).unwrap(),
                "event" => assert_eq!(value, "message"),
                other => panic!("a field {other}"),
            }
        }
        if any {
            self.ready.push_back(event);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A connection for many requests, one after the other.
#[derive(Debug)]
pub struct Wire(SendRequest<Full<Bytes>>);

impl Wire {
    pub async fn open(port: u16) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Answer {
        let exchange = async {
            self.0.ready().await.unwrap();
            let (head, body) = self.0.send_request(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Answer { status: head.status.as_u16(), headers: head.headers, body }
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time")
    }
}

/// The messages of an answer, in either form.
#[track_caller]
pub fn messages(answer: &Answer) -> Vec<Value> {
    if answer.header("content-type") == "application/json" {
        return vec![answer.json()];
    }
    let data = answer.text().lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| !data.is_empty()).map(|data| serde_json::from_str(data).unwrap()).collect()
}
