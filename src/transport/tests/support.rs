//! An HTTP server that answers with exactly the bytes a test wants, and what tests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::model::ServerName;
use crate::protocol::{Answer, OutgoingRequest};
use crate::transport::{
    Children, ConnectOptions, Connection, Hearing, HttpClient, Target, TransportError,
};

/// What a test server received.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) head: String,
    pub(super) body: String,
}

impl Received {
    pub(super) fn is(&self, method: &str) -> bool {
        self.body.contains(&format!(r#""method":"{method}""#))
    }

    pub(super) fn id(&self) -> u64 {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        body["id"].as_u64().unwrap()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// What a test server does with a request.
pub(super) enum Act {
    /// Writes the pieces one after the other and takes the next request.
    Write(Vec<Vec<u8>>),
    /// Writes and closes.
    WriteAndClose(Vec<u8>),
    /// Writes and then does nothing until the client closes.
    WriteAndHang(Vec<u8>),
    /// Writes the second again and again until the client closes.
    WriteForEver(Vec<u8>, Vec<u8>),
}

pub(super) fn response(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

pub(super) fn json(body: &str) -> Act {
    Act::Write(vec![response("200 OK", "content-type: application/json\r\n", body)])
}

pub(super) fn status(status: &str, headers: &str, body: &str) -> Act {
    Act::Write(vec![response(status, headers, body)])
}

pub(super) fn result(id: u64, result: &str) -> Act {
    json(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#))
}

/// The modern opening, or what the test wants for everything else.
pub(super) fn modern(request: &Received, other: impl FnOnce() -> Act) -> Act {
    if request.is("server/discover") {
        result(
            request.id(),
            r#"{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":0,"cacheScope":"public"}"#,
        )
    } else {
        other()
    }
}

/// The legacy opening with session `session`.
pub(super) fn legacy(request: &Received, session: &str, other: impl FnOnce() -> Act) -> Act {
    if request.head.starts_with("GET ") {
        status("405 Method Not Allowed", "", "")
    } else if request.is("server/discover") {
        status("400 Bad Request", "", "what?")
    } else if request.is("initialize") {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{},"result":{{"protocolVersion":"2025-06-18","capabilities":{{"tools":{{}}}},"serverInfo":{{"name":"old"}}}}}}"#,
            request.id()
        );
        let headers = format!("content-type: application/json\r\nMcp-Session-Id: {session}\r\n");
        status("200 OK", &headers, &body)
    } else if request.is("notifications/initialized") {
        status("202 Accepted", "", "")
    } else {
        other()
    }
}

pub(super) struct Upstream {
    pub(super) url: String,
    pub(super) received: Arc<Mutex<Vec<Received>>>,
    pub(super) connections: Arc<AtomicUsize>,
    /// Connections that the client closed.
    pub(super) closed: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl Upstream {
    pub(super) async fn start(handler: impl Fn(&Received) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        Self::on(listener, url, handler)
    }

    pub(super) fn on(
        listener: TcpListener,
        url: String,
        handler: impl Fn(&Received) -> Act + Send + Sync + 'static,
    ) -> Self {
        let stop = CancellationToken::new();
        let upstream = Self {
            url,
            received: Arc::default(),
            connections: Arc::default(),
            closed: Arc::default(),
            _stop: stop.clone().drop_guard(),
        };
        let handler = Arc::new(handler);
        let (received, connections, closed) = (
            Arc::clone(&upstream.received),
            Arc::clone(&upstream.connections),
            Arc::clone(&upstream.closed),
        );
        let tasks = TaskTracker::new();
        let spawner = tasks.clone();
        tasks.spawn(async move {
            let accepting = async {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    connections.fetch_add(1, Ordering::SeqCst);
                    let (handler, received, closed, stop) = (
                        Arc::clone(&handler),
                        Arc::clone(&received),
                        Arc::clone(&closed),
                        stop.clone(),
                    );
                    spawner.spawn(async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = serve(stream, &*handler, &received) => {
                                closed.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    });
                }
            };
            tokio::select! { () = accepting => {}, () = stop.cancelled() => {} }
        });
        upstream
    }

    pub(super) fn count(&self, method: &str) -> usize {
        self.received.lock().iter().filter(|request| request.is(method)).count()
    }

    pub(super) fn last(&self, method: &str) -> Received {
        self.received.lock().iter().rfind(|request| request.is(method)).unwrap().clone()
    }

    pub(super) async fn connect(&self) -> Connection {
        open(&self.url, &options()).await.unwrap()
    }
}

async fn serve(
    mut stream: TcpStream,
    handler: &(impl Fn(&Received) -> Act + Send + Sync),
    received: &Mutex<Vec<Received>>,
) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await {
        received.lock().push(request.clone());
        match handler(&request) {
            Act::Write(pieces) => {
                let slow = pieces.len() > 1;
                for piece in pieces {
                    if stream.write_all(&piece).await.is_err() {
                        return;
                    }
                    if slow {
                        // The network's delay, so that pieces arrive apart.
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
            }
            Act::WriteAndClose(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Act::WriteAndHang(bytes) => {
                let _ = stream.write_all(&bytes).await;
                while stream.read(&mut [0; 64]).await.is_ok_and(|length| length > 0) {}
                return;
            }
            Act::WriteForEver(first, again) => {
                let _ = stream.write_all(&first).await;
                while stream.write_all(&again).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                return;
            }
        }
    }
}

pub(super) async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Received> {
    loop {
        let text = String::from_utf8_lossy(buffer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut request = Received { head: head.to_owned(), body: String::new() };
            let length = request.header("content-length").map_or(0, |l| l.parse().unwrap());
            if body.len() >= length {
                request.body = body.get(..length).unwrap().to_owned();
                buffer.drain(..head.len() + 4 + length);
                return Some(request);
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(length) => buffer.extend_from_slice(&chunk[..length]),
        }
    }
}

pub(in crate::transport) fn options() -> ConnectOptions {
    ConnectOptions {
        server: ServerName::parse("test").unwrap(),
        connect_timeout: Duration::from_secs(30),
        max_response_size: 64 * 1024,
        max_events: 1000,
        stall_timeout: None,
        known_dialect: None,
        hearing: Hearing::default(),
        probe_timeout: Duration::from_secs(30),
        children: Children::default(),
    }
}

pub(super) async fn open(
    url: &str,
    options: &ConnectOptions,
) -> Result<Connection, TransportError> {
    let target = Target::Http { url: url.parse().unwrap(), headers: Vec::new() };
    Connection::open(&target, &HttpClient::new(), options, &TaskTracker::new()).await
}

pub(super) async fn call(connection: &Connection) -> Result<Answer, TransportError> {
    call_within(connection, Duration::from_secs(60)).await
}

pub(super) async fn call_within(
    connection: &Connection,
    limit: Duration,
) -> Result<Answer, TransportError> {
    let request = OutgoingRequest {
        name: Some("echo"),
        arguments: Some("{}"),
        ..OutgoingRequest::new("tools/call")
    };
    connection.request(&request, limit, None).await
}

/// Waits until `done`, or fails after half a minute.
pub(super) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect(what);
}
