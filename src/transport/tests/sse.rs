use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::support::{
    Act, Received, call, call_within, eventually, options, read_request, response, status,
};
use crate::clock;
use crate::model::{Dialect, Failure, ProtocolVersion};
use crate::protocol::{AnswerKind, OutgoingRequest};
use crate::transport::{
    ConnectOptions, Connection, Hearing, HttpClient, ListKind, Notice, NoticeSink, Relay,
    RelayWishes, ServerMessage, Target, TransportError,
};

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
const ENDPOINT: &str = "event: endpoint\ndata: /messages?session=1\n\n";
const JSON: &str = "content-type: application/json\r\n";

/// The newest stream of a server.
#[derive(Clone, Default)]
pub(super) struct Stream(Arc<Mutex<Option<mpsc::Sender<Vec<u8>>>>>);

impl Stream {
    pub(super) fn write(&self, bytes: impl Into<Vec<u8>>) {
        let _ = self.0.lock().as_ref().unwrap().try_send(bytes.into());
    }

    pub(super) fn say(&self, message: &str) {
        self.write(format!("event: message\ndata: {message}\n\n"));
    }

    pub(super) fn answer(&self, id: u64, result: &str) {
        self.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#));
    }

    fn cut(&self) {
        self.0.lock().take();
    }
}

/// A server whose streams begin with given bytes, and whose posts are answered by a closure.
pub(super) struct Server {
    pub(super) url: String,
    pub(super) stream: Stream,
    pub(super) received: Arc<Mutex<Vec<Received>>>,
    /// Streams that the client closed.
    closed: Arc<AtomicUsize>,
    /// Takes no further connection, and refuses them.
    refuse: CancellationToken,
    /// Takes no further connection, and lets them wait.
    hold: CancellationToken,
    _stop: DropGuard,
}

impl Server {
    pub(super) fn start(
        begin: impl Into<Vec<u8>>,
        on_post: impl Fn(&Received, &Stream) -> Act + Send + Sync + 'static,
    ) -> Self {
        Self::with_backlog(1024, begin, on_post)
    }

    fn with_backlog(
        backlog: u32,
        begin: impl Into<Vec<u8>>,
        on_post: impl Fn(&Received, &Stream) -> Act + Send + Sync + 'static,
    ) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(backlog).unwrap();
        let stop = CancellationToken::new();
        let server = Self {
            url: format!("http://{}/sse", listener.local_addr().unwrap()),
            stream: Stream::default(),
            received: Arc::default(),
            closed: Arc::default(),
            refuse: CancellationToken::new(),
            hold: CancellationToken::new(),
            _stop: stop.clone().drop_guard(),
        };
        let one = One {
            begin: begin.into(),
            on_post: Arc::new(on_post),
            stream: server.stream.clone(),
            received: Arc::clone(&server.received),
            closed: Arc::clone(&server.closed),
        };
        let (refuse, hold) = (server.refuse.clone(), server.hold.clone());
        let tasks = TaskTracker::new();
        let spawner = tasks.clone();
        tasks.spawn(async move {
            let accepting = async {
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    let (one, stop) = (one.clone(), stop.clone());
                    spawner.spawn(async move {
                        tokio::select! { () = one.serve(socket) => {}, () = stop.cancelled() => {} }
                    });
                }
            };
            tokio::select! {
                () = accepting => {}
                () = stop.cancelled() => {}
                () = refuse.cancelled() => {}
                () = hold.cancelled() => stop.cancelled().await,
            }
        });
        server
    }

    pub(super) async fn open(
        &self,
        options: &ConnectOptions,
    ) -> Result<Connection, TransportError> {
        let auth = (HeaderName::from_static("authorization"), HeaderValue::from_static("s3cret"));
        let target = Target::Sse { url: self.url.parse().unwrap(), headers: vec![auth] };
        Connection::open(&target, &HttpClient::new(), options, &TaskTracker::new()).await
    }

    pub(super) fn posts(&self, method: &str) -> Vec<Received> {
        self.received.lock().iter().filter(|request| request.is(method)).cloned().collect()
    }
}

type OnPost = dyn Fn(&Received, &Stream) -> Act + Send + Sync;

#[derive(Clone)]
struct One {
    begin: Vec<u8>,
    on_post: Arc<OnPost>,
    stream: Stream,
    received: Arc<Mutex<Vec<Received>>>,
    closed: Arc<AtomicUsize>,
}

impl One {
    async fn serve(self, mut socket: TcpStream) {
        let mut buffer = Vec::new();
        while let Some(request) = read_request(&mut socket, &mut buffer).await {
            self.received.lock().push(request.clone());
            if request.head.starts_with("GET ") {
                let (sender, mut bytes) = mpsc::channel(4096);
                *self.stream.0.lock() = Some(sender);
                socket.write_all(&self.begin).await.unwrap();
                let (mut reader, mut writer) = socket.split();
                let writing = async {
                    while let Some(bytes) = bytes.recv().await {
                        if writer.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                };
                let mut nothing = [0];
                tokio::select! {
                    () = writing => {}
                    _end = reader.read(&mut nothing) => { self.closed.fetch_add(1, Ordering::SeqCst); }
                }
                return;
            }
            match (self.on_post)(&request, &self.stream) {
                Act::Write(pieces) => socket.write_all(&pieces.concat()).await.unwrap(),
                Act::WriteAndClose(bytes) => return socket.write_all(&bytes).await.unwrap(),
                Act::WriteAndHang(bytes) => {
                    socket.write_all(&bytes).await.unwrap();
                    while socket.read(&mut [0; 64]).await.is_ok_and(|length| length > 0) {}
                    return;
                }
                Act::WriteForEver(..) => unreachable!(),
            }
        }
    }
}

pub(super) fn accepted() -> Act {
    status("202 Accepted", "", "Accepted")
}

/// The handshake and acknowledgements, or what the test wants for everything else.
pub(super) fn usual(request: &Received, stream: &Stream, other: impl FnOnce() -> Act) -> Act {
    if request.is("initialize") {
        stream.answer(
            request.id(),
            r#"{"protocolVersion":"2024-11-05","capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true}},"serverInfo":{"name":"older"}}"#,
        );
        accepted()
    } else if request.body.contains(r#""method":"notifications/"#) {
        accepted()
    } else {
        other()
    }
}

fn begin() -> String {
    format!("{HEAD}: hello\n\n{ENDPOINT}")
}

/// A server that answers calls with `act`.
pub(super) fn calls(act: impl Fn(&Received, &Stream) -> Act + Send + Sync + 'static) -> Server {
    Server::start(begin(), move |request, stream| usual(request, stream, || act(request, stream)))
}

#[tokio::test]
async fn a_result_comes_back_byte_for_byte_on_the_stream() {
    const RESULT: &str = r#"{"n": 1.0,"big":1e400,"é":"\u00e9"}"#;
    let server = calls(|request, stream| {
        stream.answer(request.id(), RESULT);
        accepted()
    });
    let connection = server.open(&options()).await.unwrap();
    assert_eq!(connection.dialect(), Dialect::Sse);
    assert_eq!(connection.peer().version, ProtocolVersion::V2024_11_05);
    assert_eq!(connection.peer().server_info.as_deref(), Some(r#"{"name":"older"}"#));
    for _ in 0..3 {
        let answer = call(&connection).await.unwrap();
        assert_eq!((answer.kind, &answer.value[..]), (AnswerKind::Result, RESULT.as_bytes()));
    }
    {
        let received = server.received.lock();
        assert!(received[0].head.starts_with("GET /sse "), "{received:?}");
        assert_eq!(received[0].header("accept"), Some("text/event-stream"));
        assert!(received[1].is("initialize") && received[2].is("notifications/initialized"));
        for request in received.iter() {
            assert_eq!(request.header("authorization"), Some("s3cret"));
        }
        for post in &received[1..] {
            assert!(post.head.starts_with("POST /messages?session=1 "), "{}", post.head);
        }
        assert!(received[1].body.contains(r#""protocolVersion":"2025-11-25""#));
    }
    assert!(!format!("{connection:?}").contains("s3cret"));
    connection.close().await;
    assert!(!connection.is_alive());
    assert!(connection.death().is_none());
    assert_eq!(call(&connection).await.unwrap_err().failure(), Failure::NotSent);
    eventually("the stream is closed", || server.closed.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_dropped_connection_closes_its_stream() {
    let server = calls(|_, _| accepted());
    drop(server.open(&options()).await.unwrap());
    eventually("the stream is closed", || server.closed.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn an_endpoint_elsewhere_is_refused_and_nothing_is_sent_there() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = other.local_addr().unwrap();
    for named in [format!("http://{elsewhere}/m?key=s3cret"), format!("//{elsewhere}/m")] {
        let begin = format!("{HEAD}event: endpoint\ndata: {named}\n\n");
        let server = Server::start(begin, |_, _| accepted());
        let error = server.open(&options()).await.unwrap_err();
        assert!(matches!(error, TransportError::ForeignEndpoint { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&elsewhere.to_string()) && text.contains("another origin"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
        assert_eq!(error.failure(), Failure::NotSent);
        assert_eq!(server.received.lock().len(), 1);
    }
    let asked = tokio::time::timeout(Duration::from_millis(50), other.accept()).await;
    assert!(asked.is_err(), "{asked:?}");
}

#[tokio::test]
async fn the_endpoint_may_come_late_and_must_come() {
    let quick = ConnectOptions { connect_timeout: Duration::from_millis(400), ..options() };
    let server = Server::start(format!("{HEAD}data: early\n\n"), |request, stream| {
        usual(request, stream, accepted)
    });
    let stream = server.stream.clone();
    let late = async {
        eventually("a stream", || stream.0.lock().is_some()).await;
        for byte in ENDPOINT.bytes() {
            tokio::time::sleep(Duration::from_millis(2)).await;
            stream.write([byte]);
        }
    };
    let usual_options = options();
    let (connection, ()) = tokio::join!(server.open(&usual_options), late);
    connection.unwrap();

    let silent = Server::start(HEAD, |_, _| accepted());
    let stream = silent.stream.clone();
    let started = clock::uptime();
    let comments = async {
        eventually("a stream", || stream.0.lock().is_some()).await;
        loop {
            stream.write(": still here\n\n");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let error = tokio::select! {
        opened = silent.open(&quick) => opened.unwrap_err(),
        () = comments => unreachable!(),
    };
    assert!(matches!(error, TransportError::NoEndpoint { .. }), "{error:?}");
    // It would go on for ever.
    assert!(clock::uptime().since(started) < Duration::from_secs(20));
    assert_eq!(silent.received.lock().len(), 1);
    eventually("the stream is closed", || silent.closed.load(Ordering::SeqCst) == 1).await;

    let over = Server::start(format!("{HEAD}data: x\n\n"), |_, _| accepted());
    let stream = over.stream.clone();
    let cut = async {
        eventually("a stream", || stream.0.lock().is_some()).await;
        stream.cut();
    };
    let (opened, ()) = tokio::join!(over.open(&usual_options), cut);
    let error = opened.unwrap_err();
    assert!(matches!(error, TransportError::NotMcp { .. }), "{error:?}");
}

#[tokio::test]
async fn what_gives_no_stream_is_told_apart() {
    for (bytes, expected) in [
        (response("200 OK", "content-type: text/html\r\n", "<p>hi"), "<p>hi"),
        (response("404 Not Found", "", "nothing here"), "could not find an MCP server"),
        (response("401 Unauthorized", "", ""), "set headers.Authorization"),
        (response("307 Temporary Redirect", "location: /sse/\r\n", ""), "points to /sse/"),
        (response("503 Service Unavailable", "", "busy"), "503"),
    ] {
        let server = Server::start(bytes, |_, _| accepted());
        let error = server.open(&options()).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_handshake_that_fails_is_not_cancelled() {
    let quick = ConnectOptions { connect_timeout: Duration::from_millis(200), ..options() };
    let silent = Server::start(begin(), |_, _| accepted());
    let error = silent.open(&quick).await.unwrap_err();
    assert!(matches!(error, TransportError::Timeout { .. }), "{error:?}");
    let refusing = Server::start(begin(), |request, stream| {
        let id = request.id();
        stream.say(&format!(r#"{{"id":{id},"error":{{"code":-32000,"message":"no"}}}}"#));
        accepted()
    });
    let error = refusing.open(&options()).await.unwrap_err();
    assert!(matches!(error, TransportError::HandshakeRefused { .. }), "{error:?}");
    let modern = Server::start(begin(), |request, stream| {
        stream.answer(request.id(), r#"{"protocolVersion":"2026-07-28","capabilities":{}}"#);
        accepted()
    });
    let error = modern.open(&options()).await.unwrap_err();
    assert!(matches!(error, TransportError::Version { .. }), "{error:?}");
    for server in [silent, refusing, modern] {
        eventually("the stream is closed", || server.closed.load(Ordering::SeqCst) == 1).await;
        assert!(server.posts("notifications/cancelled").is_empty());
    }
}

/// Notices as a list, and how to hear them.
fn hearing(exclusive: bool) -> (Arc<Mutex<Vec<String>>>, Hearing) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&heard);
    let notices = NoticeSink::new(move |notice| {
        list.lock().push(match notice {
            Notice::ListChanged(ListKind::Tools) => "tools".to_owned(),
            Notice::ListChanged(kind) => format!("{kind:?}"),
            Notice::ResourceUpdated { uri } => uri,
            Notice::Notification { method, .. } => method,
            Notice::Request(request) => request.method,
        });
    });
    (heard, Hearing { notices, exclusive, ..Hearing::default() })
}

#[tokio::test]
async fn the_end_of_the_stream_is_the_end_of_the_session() {
    let chunked =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    for whole in [false, true] {
        let begin = if whole { begin() } else { format!("{chunked}{}", chunk(ENDPOINT)) };
        let server = Server::start(begin, move |request, stream| {
            if request.is("initialize") && !whole {
                let data = format!(
                    "data: {{\"id\":{},\"result\":{{\"protocolVersion\":\"2025-03-26\",\"capabilities\":{{}}}}}}\n\n",
                    request.id()
                );
                stream.write(format!("{:x}\r\n{data}\r\n", data.len()));
                return accepted();
            }
            usual(request, stream, accepted)
        });
        let (heard, hearing) = hearing(false);
        let connection = server.open(&ConnectOptions { hearing, ..options() }).await.unwrap();
        let cutting = async {
            eventually("two calls", || server.posts("tools/call").len() == 2).await;
            let half = "data: {\"jsonrpc\":\"2.0\",\"id\":2,\"res";
            server.stream.write(if whole { half.to_owned() } else { format!("ff\r\n{half}") });
            server.stream.cut();
        };
        let (one, two, ()) = tokio::join!(call(&connection), call(&connection), cutting);
        for error in [one.unwrap_err(), two.unwrap_err()] {
            assert!(matches!(error, TransportError::StreamLost { .. }), "{error:?}");
            assert_eq!(error.failure(), Failure::Ambiguous);
        }
        assert!(!connection.is_alive());
        let error = call(&connection).await.unwrap_err();
        assert_eq!(error.failure(), Failure::NotSent, "{error:?}");
        assert!(connection.death().is_some());
        assert_eq!(server.posts("tools/call").len(), 2);
        eventually("word of the lists", || *heard.lock() == ["tools", "Prompts", "Resources"])
            .await;
    }
}

#[tokio::test]
async fn an_answer_may_overtake_its_acknowledgement() {
    let server = calls(|request, stream| {
        stream.answer(request.id(), "{}");
        Act::WriteAndHang(Vec::new())
    });
    let connection = server.open(&options()).await.unwrap();
    // Each acknowledgement would be waited for for a quarter of a second.
    let mut fastest = Duration::MAX;
    for _ in 0..8 {
        let started = clock::uptime();
        for _ in 0..5 {
            call(&connection).await.unwrap();
        }
        fastest = fastest.min(clock::uptime().since(started));
        if fastest < Duration::from_secs(1) {
            break;
        }
    }
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    connection.close().await;
    assert!(server.posts("notifications/cancelled").is_empty());
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_the_server_is_told() {
    for acknowledges in [true, false] {
        let server = calls(move |_, _| match acknowledges {
            true => accepted(),
            false => Act::WriteAndHang(Vec::new()),
        });
        let connection = server.open(&options()).await.unwrap();
        let error = call_within(&connection, Duration::from_millis(700)).await.unwrap_err();
        assert!(matches!(error, TransportError::Timeout { .. }), "{error:?}");
        // A caller that goes away.
        let leaving = tokio::time::timeout(Duration::from_millis(700), call(&connection));
        assert!(leaving.await.is_err());
        eventually("both cancelled", || server.posts("notifications/cancelled").len() == 2).await;
        let calls = server.posts("tools/call");
        for (cancelled, call) in server.posts("notifications/cancelled").iter().zip(calls) {
            let id = call.id();
            assert!(cancelled.body.contains(&format!(r#""requestId":{id},"#)), "{cancelled:?}");
        }
        // A late answer is nobody's.
        server.stream.answer(2, "{}");
        assert!(connection.is_alive());
    }
}

#[tokio::test]
async fn the_server_is_told_of_every_call_that_is_given_up() {
    const CALLS: usize = 300;
    let server = calls(|_, _| accepted());
    let connection = server.open(&options()).await.unwrap();
    {
        let calling = (0..CALLS).map(|_| call_within(&connection, Duration::from_secs(60)));
        let calling = futures_util::future::join_all(calling);
        let posted = || server.posts("tools/call").len() == CALLS;
        tokio::select! {
            _ended = calling => panic!("there are no answers"),
            () = eventually("all are posted", posted) => {}
        }
    }
    let told = || server.posts("notifications/cancelled").len() == CALLS;
    eventually("all are called off", told).await;
}

#[tokio::test]
async fn ten_thousand_answers_in_any_order_find_their_callers() {
    const WAVE: usize = 100;
    let waiting = Mutex::new(Vec::new());
    let server = calls(move |request, stream| {
        let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
        let mut waiting = waiting.lock();
        waiting.push((request.id(), body["params"]["arguments"]["n"].clone()));
        if waiting.len() == WAVE {
            for (id, n) in waiting.drain(..).rev() {
                stream.answer(id, &format!(r#"{{"n":{n}}}"#));
            }
        }
        accepted()
    });
    let connection = server.open(&options()).await.unwrap();
    for wave in 0..10_000 / WAVE {
        let calls = (0..WAVE).map(|caller| {
            let connection = &connection;
            async move {
                let arguments = format!(r#"{{"n":{}}}"#, wave * WAVE + caller);
                let request = OutgoingRequest {
                    name: Some("echo"),
                    arguments: Some(&arguments),
                    ..OutgoingRequest::new("tools/call")
                };
                let answer = connection.request(&request, Duration::from_secs(20), None).await;
                assert_eq!(answer.unwrap().value, arguments);
            }
        });
        futures_util::future::join_all(calls).await;
    }
    assert_eq!(server.posts("tools/call").len(), 10_000);
}

#[tokio::test]
async fn an_oversized_event_ends_the_session_in_bounded_memory() {
    let server = calls(|_, stream| {
        stream.write("data: {\"id\":2,");
        for _ in 0..40 {
            stream.write([b' '; 4096]);
        }
        accepted()
    });
    let connection = server.open(&options()).await.unwrap();
    let error = call(&connection).await.unwrap_err();
    assert!(matches!(error, TransportError::ResponseTooLarge { limit: 65536 }), "{error:?}");
    assert_eq!(error.failure(), Failure::Ambiguous);
    eventually("the stream is closed", || server.closed.load(Ordering::SeqCst) == 1).await;
    assert!(!connection.is_alive());
}

#[tokio::test]
async fn the_status_of_a_post_says_what_became_of_its_request() {
    let server = calls(|request, stream| match request.id() {
        2 => status("500 Internal Server Error", "", "oops"),
        3 => status("429 Too Many Requests", "retry-after: 7\r\n", ""),
        4 => status("403 Forbidden", "", ""),
        5 => {
            let body = r#"{"jsonrpc":"2.0","id":5,"error":{"code":-32602,"message":"no"}}"#;
            status("400 Bad Request", JSON, body)
        }
        6 => status("400 Bad Request", "", "not now"),
        7 => Act::WriteAndClose(Vec::new()),
        8 => {
            stream.answer(8, "{}");
            status("200 OK", "content-type: text/plain\r\n", "whatever")
        }
        _ => status("404 Not Found", "", "Could not find session"),
    });
    let connection = server.open(&options()).await.unwrap();
    let fails = async |expected: Failure, status: Option<u16>| {
        let error = call(&connection).await.unwrap_err();
        assert_eq!((error.failure(), error.http_status()), (expected, status), "{error:?}");
    };
    fails(Failure::Ambiguous, Some(500)).await;
    fails(Failure::Refused, Some(429)).await;
    fails(Failure::Refused, Some(403)).await;
    assert_eq!(call(&connection).await.unwrap().kind, AnswerKind::Error);
    fails(Failure::Refused, Some(400)).await;
    fails(Failure::Ambiguous, None).await;
    call(&connection).await.unwrap();
    assert!(connection.is_alive());
    fails(Failure::Refused, Some(404)).await;
    assert!(!connection.is_alive());
    assert!(connection.death().is_some());
    // Only what may be running is called off.
    let cancelled = server.posts("notifications/cancelled");
    assert_eq!(cancelled.len(), 2, "{cancelled:?}");
    for (cancelled, id) in cancelled.iter().zip([2, 7]) {
        assert!(cancelled.body.contains(&format!(r#""requestId":{id},"#)), "{cancelled:?}");
    }
}

#[tokio::test]
async fn a_request_that_finds_no_connection_was_not_sent() {
    let server = Server::start(begin(), |request, stream| {
        let acknowledged = usual(request, stream, accepted);
        match acknowledged {
            // Nothing is left to post on.
            Act::Write(pieces) => Act::WriteAndClose(pieces.concat()),
            other => other,
        }
    });
    let connection = server.open(&options()).await.unwrap();
    server.refuse.cancel();
    let url: url::Url = server.url.parse().unwrap();
    let address = url.socket_addrs(|| None).unwrap()[0];
    eventually("nobody accepts", || std::net::TcpStream::connect(address).is_err()).await;
    let error = call(&connection).await.unwrap_err();
    assert!(matches!(error, TransportError::Connect { .. }), "{error:?}");
    assert_eq!(error.failure(), Failure::NotSent);
    assert!(connection.is_alive());
}

#[tokio::test]
async fn a_request_that_still_waits_for_a_connection_when_the_stream_ends_was_not_sent() {
    let server = Server::with_backlog(1, begin(), |request, stream| {
        match usual(request, stream, accepted) {
            Act::Write(pieces) => Act::WriteAndClose(pieces.concat()),
            other => other,
        }
    });
    let connection = server.open(&options()).await.unwrap();
    server.hold.cancel();
    let url: url::Url = server.url.parse().unwrap();
    let address = url.socket_addrs(|| None).unwrap()[0];
    let mut fillers = Vec::new();
    while let Ok(Ok(filler)) =
        tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await
    {
        fillers.push(filler);
        assert!(fillers.len() < 100);
    }
    let cutting = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.stream.cut();
    };
    let (outcome, ()) = tokio::join!(call(&connection), cutting);
    let error = outcome.unwrap_err();
    assert!(matches!(error, TransportError::StreamLost { .. }), "{error:?}");
    assert_eq!(error.failure(), Failure::NotSent);
    assert!(server.posts("tools/call").is_empty());
}

fn next(relay: &Relay) -> Option<String> {
    match relay.poll_next(&Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(ServerMessage::Notification(bytes))) => {
            Some(String::from_utf8(bytes.to_vec()).unwrap())
        }
        Poll::Ready(Some(ServerMessage::Request(request))) => Some(request.method),
        Poll::Ready(None) | Poll::Pending => None,
    }
}

#[tokio::test]
async fn progress_reaches_the_caller_whose_request_it_is_about() {
    let server = calls(|request, stream| {
        if request.id() == 3 {
            for id in [3, 2] {
                stream.say(&format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{id},"progress":{id}}}}}"#
                ));
            }
            stream.say(r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"error","data":"whose?"}}"#);
            stream.answer(2, "{}");
            stream.answer(3, "{}");
        }
        accepted()
    });
    let (heard, hearing) = hearing(false);
    let connection = server.open(&ConnectOptions { hearing, ..options() }).await.unwrap();
    let relay = || {
        Arc::new(Relay::new(RelayWishes {
            progress_token: Some("1".into()),
            log_level: crate::protocol::LogLevel::parse("debug"),
            ..RelayWishes::default()
        }))
    };
    let (first, second) = (relay(), relay());
    let ask = async |relay: &Arc<Relay>| {
        let request = OutgoingRequest {
            name: Some("echo"),
            arguments: Some("{}"),
            progress: true,
            ..OutgoingRequest::new("tools/call")
        };
        connection.request(&request, Duration::from_secs(5), Some(relay)).await.unwrap();
    };
    let later = async {
        eventually("the first call", || server.posts("tools/call").len() == 1).await;
        ask(&second).await;
    };
    tokio::join!(ask(&first), later);
    for (relay, progress) in [(first, 2), (second, 3)] {
        let message: serde_json::Value = serde_json::from_str(&next(&relay).unwrap()).unwrap();
        assert_eq!(message["params"]["progressToken"], 1);
        assert_eq!(message["params"]["progress"], progress);
        assert_eq!(next(&relay), None);
    }
    assert!(heard.lock().is_empty(), "a log message of one stream for all is nobody's");
}

#[tokio::test]
async fn what_the_server_says_and_asks_goes_where_it_belongs() {
    for exclusive in [false, true] {
        let server = calls(|_, _| accepted());
        let (heard, hearing) = hearing(exclusive);
        let connection = server.open(&ConnectOptions { hearing, ..options() }).await.unwrap();
        for message in [
            r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":7,"method":"roots/list"}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:b"}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info"}}"#,
            "no message",
            r#"{"jsonrpc":"2.0","id":99,"result":{}}"#,
        ] {
            server.stream.say(message);
        }
        let own: &[&str] = match exclusive {
            true => &["roots/list", "tools", "a:b", "notifications/message"],
            false => &["tools", "a:b"],
        };
        eventually("all notices", || *heard.lock() == own).await;
        let said = |text: &str| server.received.lock().iter().any(|post| post.body == text);
        eventually("a pong", || said(r#"{"jsonrpc":"2.0","id":"p","result":{}}"#)).await;
        // The sink drops the request, so nobody will answer it.
        let refusal = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"the client does not offer this method"}}"#;
        eventually("a refusal", || said(refusal)).await;
        connection.notify("notifications/roots/list_changed", None).await;
        eventually("our notification", || {
            server.posts("notifications/roots/list_changed").len() == 1
        })
        .await;
    }
}

#[tokio::test]
async fn subscriptions_follow_what_is_wanted() {
    let server = calls(|request, stream| {
        stream.answer(request.id(), "{}");
        accepted()
    });
    let (wanted, subscriptions) = watch::channel(Arc::default());
    let hearing = Hearing { subscriptions, ..Hearing::default() };
    let _connection = server.open(&ConnectOptions { hearing, ..options() }).await.unwrap();
    wanted.send_replace(Arc::new(["a:1".to_owned(), "a:2".to_owned()].into()));
    eventually("two subscriptions", || server.posts("resources/subscribe").len() == 2).await;
    wanted.send_replace(Arc::new(["a:2".to_owned()].into()));
    eventually("one less", || server.posts("resources/unsubscribe").len() == 1).await;
    assert!(server.posts("resources/unsubscribe")[0].body.contains("a:1"));
}

#[tokio::test]
async fn a_silent_stream_stays_open() {
    let quick = ConnectOptions { connect_timeout: Duration::from_secs(1), ..options() };
    let server = calls(|request, stream| {
        stream.answer(request.id(), "{}");
        accepted()
    });
    let connection = server.open(&quick).await.unwrap();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.stream.write(": ping\r\n\r\n");
    }
    call(&connection).await.unwrap();
    assert!(connection.is_alive());
}

/// Half an event, and then nothing: what waits on the stream fails, and the stream ends with it.
#[tokio::test]
async fn an_event_that_stops_half_way_ends_the_stream_at_the_longest_silence() {
    let server = calls(|request, stream| {
        stream.write(format!("data: {{\"jsonrpc\":\"2.0\",\"id\":{},", request.id()));
        accepted()
    });
    let options = ConnectOptions { stall_timeout: Some(Duration::from_millis(200)), ..options() };
    let connection = server.open(&options).await.unwrap();
    // A stream on which nothing has begun may be silent.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(connection.is_alive());
    let error = call(&connection).await.unwrap_err();
    assert!(matches!(error, TransportError::Stalled { .. }), "{error}");
    assert_eq!(error.failure(), Failure::Timeout);
    eventually("the stream is closed", || !connection.is_alive()).await;
}
