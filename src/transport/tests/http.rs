use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::task::TaskTracker;

use super::support::{
    Act, Received, Upstream, call, call_within, eventually, json, legacy, modern, open, options,
    read_request, response, result, status,
};
use crate::model::{Dialect, Failure, ProtocolVersion};
use crate::protocol::{AnswerKind, OutgoingRequest};
use crate::transport::{ConnectOptions, Connection, HttpClient, Target, TransportError};

const EVENTS: &str = "content-type: text/event-stream\r\n";
const JSON: &str = "content-type: application/json\r\n";

/// What becomes of a call to a modern server that does `act`.
async fn fault(act: impl Fn(&Received) -> Act + Send + Sync + 'static) -> TransportError {
    fault_within(Duration::from_secs(30), act).await
}

/// The same for an act without an end.
async fn fault_within(
    limit: Duration,
    act: impl Fn(&Received) -> Act + Send + Sync + 'static,
) -> TransportError {
    let upstream = Upstream::start(move |request| modern(request, || act(request))).await;
    let connection = upstream.connect().await;
    call_within(&connection, limit).await.unwrap_err()
}

#[tokio::test]
async fn a_result_comes_back_byte_for_byte() {
    const RESULT: &str =
        r#"{"n": 1.0,"big":1e400, "id":12345678901234567890123456789012345678901,"é":"\u00e9"}"#;
    let upstream =
        Upstream::start(|request| modern(request, || result(request.id(), RESULT))).await;
    let connection = upstream.connect().await;
    let answer = call(&connection).await.unwrap();
    assert_eq!(answer.kind, AnswerKind::Result);
    assert_eq!(answer.value, RESULT);
}

#[tokio::test]
async fn a_large_result_in_many_pieces_comes_back_byte_for_byte() {
    let text: String = (0..4000).map(|n| format!("{n} ")).collect();
    let expected = format!(r#"{{"text":"{text}"}}"#);
    let sent = expected.clone();
    let upstream = Upstream::start(move |request| {
        modern(request, || {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{sent}}}"#, request.id());
            let whole = response("200 OK", JSON, &body);
            Act::Write(whole.chunks(1000).map(<[u8]>::to_vec).collect())
        })
    })
    .await;
    let connection = upstream.connect().await;
    for _ in 0..3 {
        assert_eq!(call(&connection).await.unwrap().value, expected);
    }
    assert_eq!(upstream.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_modern_request_says_what_it_is() {
    let upstream = Upstream::start(|request| modern(request, || result(request.id(), "{}"))).await;
    let target = Target::Http {
        url: upstream.url.parse().unwrap(),
        headers: vec![(
            HeaderName::from_static("authorization"),
            HeaderValue::from_static("Bearer s3cret"),
        )],
    };
    assert!(!format!("{target:?}").contains("s3cret"));
    let connection = Connection::open(&target, &HttpClient::new(), &options(), &TaskTracker::new())
        .await
        .unwrap();
    assert_eq!(connection.peer().version, ProtocolVersion::V2026_07_28);
    assert!(!format!("{connection:?}").contains("s3cret"));
    let request = OutgoingRequest {
        name: Some("größe"),
        arguments: Some("{}"),
        ..OutgoingRequest::new("tools/call")
    };
    connection.request(&request, Duration::from_secs(30), None).await.unwrap();
    let received = upstream.last("tools/call");
    assert_eq!(received.header("mcp-method"), Some("tools/call"));
    assert_eq!(received.header("mcp-name"), Some("=?base64?Z3LDtsOfZQ==?="));
    assert_eq!(received.header("mcp-protocol-version"), Some("2026-07-28"));
    assert_eq!(received.header("accept"), Some("application/json, text/event-stream"));
    assert_eq!(received.header("accept-encoding"), Some("identity"));
    assert_eq!(received.header("authorization"), Some("Bearer s3cret"));
    assert!(received.header("user-agent").unwrap().starts_with("switchyard/"));
    assert!(upstream.url.contains(received.header("host").unwrap()));
    assert!(received.body.contains("io.modelcontextprotocol/protocolVersion"));
    assert_eq!(received.header("mcp-session-id"), None);
}

#[tokio::test]
async fn a_legacy_server_gets_a_handshake_and_its_session_back() {
    let upstream =
        Upstream::start(|request| legacy(request, "s1", || result(request.id(), "{}"))).await;
    let connection = upstream.connect().await;
    assert_eq!(connection.peer().version, ProtocolVersion::V2025_06_18);
    assert_eq!(connection.peer().server_info.as_deref(), Some(r#"{"name":"old"}"#));
    call(&connection).await.unwrap();
    for method in ["notifications/initialized", "tools/call"] {
        let received = upstream.last(method);
        assert_eq!(received.header("mcp-session-id"), Some("s1"));
        assert_eq!(received.header("mcp-protocol-version"), Some("2025-06-18"));
    }
    connection.close().await;
    let last = upstream.received.lock().last().unwrap().clone();
    assert!(last.head.starts_with("DELETE /mcp "), "{}", last.head);
    assert_eq!(last.header("mcp-session-id"), Some("s1"));
    assert!(!connection.is_alive());
}

#[tokio::test]
async fn an_error_to_the_probe_with_status_200_is_legacy() {
    let upstream = Upstream::start(|request| {
        if request.is("server/discover") {
            let id = request.id();
            return json(&format!(
                r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32602,"message":"no"}}}}"#
            ));
        }
        legacy(request, "s1", || result(request.id(), "{}"))
    })
    .await;
    assert_eq!(upstream.connect().await.peer().version, ProtocolVersion::V2025_06_18);
}

#[tokio::test]
async fn the_last_finding_is_tried_first_and_not_believed_blindly() {
    let upstream =
        Upstream::start(|request| legacy(request, "s1", || result(request.id(), "{}"))).await;
    let known = |dialect| ConnectOptions { known_dialect: Some(dialect), ..options() };
    open(&upstream.url, &known(Dialect::Legacy)).await.unwrap();
    assert_eq!(upstream.count("server/discover"), 0);
    open(&upstream.url, &known(Dialect::Modern)).await.unwrap();
    let upstream =
        Upstream::start(|request| modern(request, || status("404 Not Found", "", ""))).await;
    let connection = open(&upstream.url, &known(Dialect::Legacy)).await.unwrap();
    assert_eq!(connection.peer().version, ProtocolVersion::V2026_07_28);
}

#[tokio::test]
async fn an_address_without_a_path_is_tried_at_mcp() {
    let upstream = Upstream::start(|request| {
        if request.head.starts_with("POST /mcp ") {
            modern(request, || result(request.id(), "{}"))
        } else {
            status("404 Not Found", "", "nothing here")
        }
    })
    .await;
    let connection = open(upstream.url.trim_end_matches("/mcp"), &options()).await.unwrap();
    call(&connection).await.unwrap();
}

#[tokio::test]
async fn what_is_no_mcp_server_is_said_to_be_none() {
    let upstream =
        Upstream::start(|_| status("200 OK", "content-type: text/html\r\n", "<h1>hi</h1>")).await;
    let error = open(&upstream.url, &options()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("MCP server") && text.contains("<h1>hi</h1>"), "{text}");
    assert_eq!(error.failure(), Failure::NotSent);
    assert_eq!(upstream.count("tools/call"), 0);
}

#[tokio::test]
async fn an_unauthorised_server_is_not_classified() {
    let upstream = Upstream::start(|_| status("401 Unauthorized", "", "")).await;
    let error = open(&upstream.url, &options()).await.unwrap_err();
    assert_eq!(error.to_string(), "the server answered 401; set headers.Authorization for it");
    assert_eq!((error.http_status(), error.failure()), (Some(401), Failure::Refused));
    assert_eq!(upstream.count("initialize"), 0);
}

#[tokio::test]
async fn a_refused_connection_ends_the_search_at_once() {
    // Bound, so that nobody else gets the port, and not listening.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://u:p@{}/x?key=s3cret", socket.local_addr().unwrap());
    let error = open(&url, &options()).await.unwrap_err();
    assert!(matches!(error, TransportError::Address { .. }));
    assert!(!error.to_string().contains("u:p") && !error.to_string().contains("s3cret"));
    let error = open(&url.replace("u:p@", ""), &options()).await.unwrap_err();
    assert!(matches!(error, TransportError::Connect { .. }), "{error:?}");
    assert_eq!(error.failure(), Failure::NotSent);
    let text = error.to_string();
    assert!(text.contains("refused") && !text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn a_server_that_hangs_does_not_hold_up_the_opening() {
    let upstream = Upstream::start(|_| Act::WriteAndHang(Vec::new())).await;
    let short = ConnectOptions {
        connect_timeout: Duration::from_millis(60),
        probe_timeout: Duration::from_millis(60),
        ..options()
    };
    let opening = open(&upstream.url, &short);
    let error = tokio::time::timeout(Duration::from_secs(20), opening).await.unwrap().unwrap_err();
    assert!(matches!(error, TransportError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_hang_before_the_headers_is_a_timeout_and_closes_the_stream() {
    let upstream =
        Upstream::start(|request| modern(request, || Act::WriteAndHang(Vec::new()))).await;
    let connection = upstream.connect().await;
    let error = call_within(&connection, Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(error, TransportError::Timeout { .. }));
    assert_eq!(error.failure(), Failure::Timeout);
    eventually("the stream is closed", || upstream.closed.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_legacy_server_is_told_that_nobody_waits() {
    let upstream = Upstream::start(|request| {
        legacy(request, "s1", || {
            if request.is("tools/call") {
                Act::WriteAndHang(Vec::new())
            } else {
                status("202 Accepted", "", "")
            }
        })
    })
    .await;
    let connection = upstream.connect().await;
    assert!(call_within(&connection, Duration::from_millis(500)).await.is_err());
    eventually("a notification", || upstream.count("notifications/cancelled") == 1).await;
    let id = upstream.last("tools/call").id();
    let notice = upstream.last("notifications/cancelled");
    assert!(notice.body.contains(&format!(r#""requestId":{id},"#)), "{}", notice.body);
    assert_eq!(notice.header("mcp-session-id"), Some("s1"));
}

/// A server that hangs does not get a connection for each call that was given up.
#[tokio::test]
async fn a_server_that_hangs_is_told_of_some_at_a_time() {
    const CALLS: usize = 200;
    let upstream =
        Upstream::start(|request| legacy(request, "s1", || Act::WriteAndHang(Vec::new()))).await;
    let connection = upstream.connect().await;
    let calls = (0..CALLS).map(|_| call_within(&connection, Duration::from_millis(1500)));
    for outcome in futures_util::future::join_all(calls).await {
        assert_eq!(outcome.unwrap_err().failure(), Failure::Timeout);
    }
    let told = || upstream.count("notifications/cancelled");
    eventually("some are told", || told() >= 32).await;
    // Time for the others, if they came.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(told() < CALLS / 2, "{}", told());
}

#[tokio::test]
async fn broken_answers_are_ambiguous() {
    let partial = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"jsonrpc\"";
    let error = fault(|_| Act::WriteAndClose(partial.to_vec())).await;
    assert!(matches!(error, TransportError::Broken { .. }), "{error:?}");
    assert_eq!(error.failure(), Failure::Ambiguous);

    let error = fault(|_| Act::WriteAndClose(Vec::new())).await;
    assert!(matches!(error, TransportError::Broken { .. }), "{error:?}");

    let error = fault(|_| Act::WriteAndClose(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec())).await;
    assert!(matches!(error, TransportError::Broken { .. }), "{error:?}");

    let error = fault(|_| json(r#"{"jsonrpc":"2.0","id":99,"result":{}}"#)).await;
    assert!(matches!(error, TransportError::NotAnAnswer { .. }), "{error:?}");
    assert_eq!(error.failure(), Failure::Ambiguous);

    let error = fault(|_| status("200 OK", "content-type: text/html\r\n", "<p>login")).await;
    assert!(error.to_string().contains("text/html") && error.to_string().contains("<p>login"));
    assert_eq!(error.failure(), Failure::Ambiguous);

    let error = fault(|_| json("{garbage")).await;
    assert!(error.to_string().contains("{garbage"), "{error}");

    let error = fault(|request| {
        let mut body =
            format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{"x":""#, request.id()).into_bytes();
        body.extend_from_slice(b"\xff\xfe\"}}");
        let mut bytes =
            format!("HTTP/1.1 200 OK\r\n{JSON}content-length: {}\r\n\r\n", body.len()).into_bytes();
        bytes.extend(body);
        Act::Write(vec![bytes])
    })
    .await;
    assert!(matches!(error, TransportError::NotAnAnswer { .. }), "{error:?}");

    let error = fault(|request| {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, request.id());
        status("200 OK", &format!("{JSON}content-encoding: gzip\r\n"), &body)
    })
    .await;
    assert!(matches!(error, TransportError::Encoding { .. }), "{error:?}");

    let error = fault(|_| status("202 Accepted", "", "")).await;
    assert_eq!(error.failure(), Failure::Ambiguous);
}

#[tokio::test]
async fn statuses_say_whether_the_tool_can_have_run() {
    let error = fault(|_| status("429 Too Many Requests", "retry-after: 7\r\n", "")).await;
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    assert_eq!((error.http_status(), error.failure()), (Some(429), Failure::Refused));

    let past = "retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    let error = fault(move |_| status("503 Service Unavailable", past, "busy")).await;
    assert_eq!(error.retry_after(), Some(Duration::ZERO));
    assert_eq!((error.http_status(), error.failure()), (Some(503), Failure::Ambiguous));

    let error = fault(|_| status("500 Internal Server Error", "", &"x".repeat(5000))).await;
    assert_eq!(error.failure(), Failure::Ambiguous);
    assert!(error.to_string().contains("xxx") && error.to_string().len() < 300);

    let error = fault(|_| {
        status("307 Temporary Redirect", "location: https://u:p@other.example/mcp?k=1\r\n", "")
    })
    .await;
    assert_eq!(error.failure(), Failure::Refused);
    let text = error.to_string();
    assert!(text.contains("https://other.example/mcp") && !text.contains("u:p"), "{text}");

    let error = fault(|_| status("413 Content Too Large", "", "too much")).await;
    assert_eq!((error.http_status(), error.failure()), (Some(413), Failure::Refused));

    let error = fault(|request| {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{},"error":{{"code":-32020,"message":"header"}}}}"#,
            request.id()
        );
        status("400 Bad Request", JSON, &body)
    })
    .await;
    assert!(matches!(error, TransportError::RefusedByProtocol { code: -32020, .. }), "{error:?}");
    assert_eq!(error.failure(), Failure::Refused);
}

#[tokio::test]
async fn an_error_of_the_tool_is_relayed_whatever_its_status() {
    let upstream = Upstream::start(|request| {
        modern(request, || {
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":{},"error":{{"code":-32602,"message":"no such tool","data":[1.0]}}}}"#,
                request.id()
            );
            status("500 Internal Server Error", JSON, &body)
        })
    })
    .await;
    let answer = call(&upstream.connect().await).await.unwrap();
    assert_eq!(answer.kind, AnswerKind::Error);
    assert_eq!(answer.value, r#"{"code":-32602,"message":"no such tool","data":[1.0]}"#);
    assert_eq!(answer.refusal.map(|refusal| refusal.status), Some(500));
}

/// HTTP allows any number of interim responses, and each is parsed.
#[tokio::test]
async fn interim_responses_without_end_are_no_answer() {
    const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    let endless = |_: &Received| Act::WriteForEver(Vec::new(), INTERIM.to_vec());
    let error = fault_within(Duration::from_secs(60), endless).await;
    assert!(matches!(error, TransportError::NoHead), "{error:?}");
    assert_eq!(error.failure(), Failure::Ambiguous);
    let upstream = Upstream::start(|request| {
        modern(request, || {
            let mut bytes = "HTTP/1.1 102 Processing\r\n\r\n".repeat(1000).into_bytes();
            let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, request.id());
            bytes.extend_from_slice(&response("200 OK", JSON, &body));
            Act::Write(bytes.chunks(100).map(<[u8]>::to_vec).collect())
        })
    })
    .await;
    call(&upstream.connect().await).await.unwrap();
}

#[tokio::test]
async fn an_oversized_answer_is_refused_however_it_comes() {
    let started = crate::clock::uptime();
    // Announced and never sent: only the announcement can have been looked at.
    let error = fault(|_| {
        Act::WriteAndHang(
            format!("HTTP/1.1 200 OK\r\n{JSON}content-length: 1000000000\r\n\r\n{{").into_bytes(),
        )
    })
    .await;
    assert!(matches!(error, TransportError::ResponseTooLarge { limit: 65536 }), "{error:?}");
    assert_eq!(error.failure(), Failure::Ambiguous);
    let error = fault(|_| {
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000)).into_bytes();
        let head = format!("HTTP/1.1 200 OK\r\n{JSON}transfer-encoding: chunked\r\n\r\n");
        Act::WriteForEver(head.into_bytes(), chunk)
    })
    .await;
    assert!(matches!(error, TransportError::ResponseTooLarge { .. }), "{error:?}");
    let error = fault(|_| {
        let head = format!("HTTP/1.1 200 OK\r\n{EVENTS}\r\n");
        Act::WriteForEver(head.into_bytes(), vec![b'x'; 4096])
    })
    .await;
    assert!(matches!(error, TransportError::ResponseTooLarge { .. }), "{error:?}");
    // Each of them alone would go on until its limit.
    assert!(crate::clock::uptime().since(started) < Duration::from_secs(25));
}

#[tokio::test]
async fn an_answer_in_chunks_keeps_its_connection() {
    let upstream = Upstream::start(|request| {
        modern(request, || {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, request.id());
            let (first, second) = body.split_at(9);
            let chunks = format!("9\r\n{first}\r\n{:x}\r\n{second}\r\n", second.len());
            let head = format!("HTTP/1.1 200 OK\r\n{JSON}transfer-encoding: chunked\r\n\r\n");
            Act::Write(vec![format!("{head}{chunks}0\r\n\r\n").into_bytes()])
        })
    })
    .await;
    let connection = upstream.connect().await;
    for _ in 0..5 {
        call(&connection).await.unwrap();
    }
    assert_eq!(upstream.connections.load(Ordering::SeqCst), 1);
}

fn stream_of(events: &str) -> Vec<u8> {
    let chunk = format!("{:x}\r\n{events}\r\n0\r\n\r\n", events.len());
    format!("HTTP/1.1 200 OK\r\n{EVENTS}transfer-encoding: chunked\r\n\r\n{chunk}").into_bytes()
}

#[tokio::test]
async fn an_answer_in_a_stream_is_found_among_other_messages() {
    let upstream = Upstream::start(|request| {
        legacy(request, "s1", || {
            if !request.is("tools/call") {
                return status("202 Accepted", "", "");
            }
            let events = format!(
                ": hello\n\nid: 1\ndata:\n\nevent: message\ndata: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{{}}}}\n\n\
                 data: {{\"jsonrpc\":\"2.0\",\"id\":\"p1\",\"method\":\"ping\"}}\r\n\r\n\
                 data: {{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"sampling/createMessage\",\"params\":{{}}}}\n\n\
                 data: {{\"jsonrpc\":\"2.0\",\"id\":424242,\"result\":{{}}}}\n\n\
                 event: message\ndata: {{\"jsonrpc\":\"2.0\",\"id\":{},\ndata: \"result\":{{\"n\": 1.0}}}}\n\n",
                request.id()
            );
            let whole = stream_of(&events);
            Act::Write(whole.chunks(37).map(<[u8]>::to_vec).collect())
        })
    })
    .await;
    let connection = upstream.connect().await;
    assert_eq!(call(&connection).await.unwrap().value, r#"{"n": 1.0}"#);
    eventually("two answers to the server", || {
        let received = upstream.received.lock();
        let posts = received.iter().filter(|r| r.head.starts_with("POST "));
        posts.filter(|r| r.header("mcp-session-id").is_some()).count() == 4
    })
    .await;
    let received = upstream.received.lock();
    let bodies: Vec<&str> = received.iter().map(|request| request.body.as_str()).collect();
    assert!(bodies.contains(&r#"{"jsonrpc":"2.0","id":"p1","result":{}}"#), "{bodies:?}");
    assert!(bodies.iter().any(|b| b.contains(r#""id":7,"error":{"code":-32601"#)), "{bodies:?}");
}

#[tokio::test]
async fn a_stream_that_ends_after_the_answer_keeps_its_connection() {
    let upstream = Upstream::start(|request| {
        modern(request, || {
            let data = format!(
                "data: {{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{{}}}}\n\n",
                request.id()
            );
            let whole = stream_of(&data);
            let (answer, end) = whole.split_at(whole.len() - 5);
            Act::Write(vec![answer.to_vec(), end.to_vec()])
        })
    })
    .await;
    let connection = upstream.connect().await;
    // Without the patience for the end it would be one connection for each call, each time.
    let mut least = usize::MAX;
    for _ in 0..5 {
        let before = upstream.connections.load(Ordering::SeqCst);
        for _ in 0..20 {
            call(&connection).await.unwrap();
            // The end of the stream comes a little later; a caller in a hurry opens another connection.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        least = least.min(upstream.connections.load(Ordering::SeqCst) - before);
        if least <= 9 {
            break;
        }
    }
    assert!(least <= 9, "{least}");
}

#[tokio::test]
async fn streams_without_an_answer_fail_in_bounded_time() {
    let error = fault(|_| {
        Act::Write(vec![stream_of(
            "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/x\"}\n\n",
        )])
    })
    .await;
    assert!(matches!(error, TransportError::StreamEnded), "{error:?}");
    assert_eq!(error.failure(), Failure::Ambiguous);

    let error =
        fault(|_| Act::Write(vec![stream_of("data: {\"jsonrpc\":\"2.0\",\"id\":\n\n")])).await;
    assert!(matches!(error, TransportError::NotAnAnswer { .. }), "{error:?}");

    let error = fault_within(Duration::from_millis(500), |_| {
        let head = format!("HTTP/1.1 200 OK\r\n{EVENTS}\r\n");
        Act::WriteForEver(head.into_bytes(), b": still here\n\n".to_vec())
    })
    .await;
    assert!(matches!(error, TransportError::Timeout { .. }), "{error:?}");
}

/// A legacy server that forgot every session but the newest.
async fn forgetful(refusal: fn() -> Act) -> (Upstream, Arc<AtomicUsize>, Arc<AtomicU64>) {
    let executed = Arc::new(AtomicUsize::new(0));
    let session = Arc::new(AtomicU64::new(0));
    let (counter, current) = (Arc::clone(&executed), Arc::clone(&session));
    let upstream = Upstream::start(move |request| {
        if request.is("initialize") {
            current.fetch_add(1, Ordering::SeqCst);
        }
        let name = format!("s{}", current.load(Ordering::SeqCst));
        legacy(request, &name, || {
            if request.header("mcp-session-id") != Some(&name) {
                return refusal();
            }
            counter.fetch_add(1, Ordering::SeqCst);
            result(request.id(), "{}")
        })
    })
    .await;
    (upstream, executed, session)
}

#[tokio::test]
async fn a_lost_session_is_made_anew_once_for_all_and_each_call_runs_once() {
    let unknown: fn() -> Act = || status("404 Not Found", "", "");
    let other_sdk: fn() -> Act = || {
        let body = r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"},"id":null}"#;
        status("400 Bad Request", JSON, body)
    };
    for refusal in [unknown, other_sdk] {
        let (upstream, executed, session) = forgetful(refusal).await;
        let connection = upstream.connect().await;
        session.fetch_add(10, Ordering::SeqCst);
        let calls = (0..20).map(|_| call(&connection));
        for outcome in futures_util::future::join_all(calls).await {
            outcome.unwrap();
        }
        assert_eq!(executed.load(Ordering::SeqCst), 20);
        assert_eq!(upstream.count("initialize"), 2);
        assert!(connection.is_alive());
    }
}

#[tokio::test]
async fn a_session_lost_again_at_once_is_not_chased() {
    let upstream =
        Upstream::start(|request| legacy(request, "s1", || status("404 Not Found", "", "gone")))
            .await;
    let connection = upstream.connect().await;
    let error = call(&connection).await.unwrap_err();
    assert!(matches!(error, TransportError::SessionLost { .. }), "{error:?}");
    assert_eq!(error.failure(), Failure::Refused);
    assert_eq!(upstream.count("tools/call"), 2);
}

#[tokio::test]
async fn a_server_that_changed_its_era_ends_the_connection() {
    let turned = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&turned);
    let upstream = Upstream::start(move |request| {
        if now.load(Ordering::SeqCst) == 0 {
            modern(request, || result(request.id(), "{}"))
        } else {
            legacy(request, "s1", || status("400 Bad Request", "", "no session"))
        }
    })
    .await;
    let connection = upstream.connect().await;
    call(&connection).await.unwrap();
    turned.store(1, Ordering::SeqCst);
    let error = call(&connection).await.unwrap_err();
    assert_eq!(error.failure(), Failure::Refused);
    assert!(!connection.is_alive());
}

#[tokio::test]
async fn connections_are_reused_and_stale_ones_cost_nothing() {
    let upstream = Upstream::start(|request| {
        modern(request, || {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, request.id());
            // Closes after each answer without saying so.
            Act::WriteAndClose(response("200 OK", JSON, &body))
        })
    })
    .await;
    let connection = upstream.connect().await;
    for round in 0..30 {
        call(&connection).await.unwrap();
        eventually("the server closed", || upstream.closed.load(Ordering::SeqCst) > round).await;
        // Lets the end of the connection arrive; calls in a tight race may rightly be ambiguous.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(upstream.count("tools/call"), 30);
}

#[tokio::test]
async fn a_request_that_waited_for_a_connection_only_was_not_sent() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("http://{address}/mcp");
    let serving = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream, &mut Vec::new()).await.unwrap();
        let Act::Write(answer) = modern(&request, || unreachable!()) else { unreachable!() };
        let answer = String::from_utf8(answer.concat()).unwrap();
        // Nothing is left to send the next one on.
        let answer = answer.replacen("\r\n", "\r\nconnection: close\r\n", 1);
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    let options = options();
    let (connection, ()) = tokio::join!(open(&url, &options), serving);
    let connection = connection.unwrap();
    // Nobody accepts any more, and as many wait for it as may.
    let mut fillers = Vec::new();
    while let Ok(Ok(filler)) =
        tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await
    {
        fillers.push(filler);
        assert!(fillers.len() < 100);
    }
    let error = call_within(&connection, Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, TransportError::ConnectTimeout { .. }), "{error:?}");
    assert_eq!(error.failure(), Failure::NotSent);
}

#[tokio::test]
async fn equal_calls_at_once_get_their_own_answers() {
    let upstream = Upstream::start(|request| {
        modern(request, || {
            let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
            result(request.id(), &body["params"]["arguments"].to_string())
        })
    })
    .await;
    let connection = upstream.connect().await;
    for _ in 0..5 {
        let calls = (0..40).map(|n| {
            let connection = &connection;
            async move {
                let arguments = format!(r#"{{"n":{n}}}"#);
                let request = OutgoingRequest {
                    arguments: Some(&arguments),
                    ..OutgoingRequest::new("tools/call")
                };
                let answer =
                    connection.request(&request, Duration::from_secs(30), None).await.unwrap();
                assert_eq!(answer.value, arguments.as_bytes());
            }
        });
        futures_util::future::join_all(calls).await;
    }
    assert!(upstream.connections.load(Ordering::SeqCst) <= 41);
}

#[tokio::test]
async fn what_does_not_speak_tls_is_not_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/mcp", listener.local_addr().unwrap());
    let tasks = TaskTracker::new();
    tasks.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let error = open(&url, &options()).await.unwrap_err();
    assert!(matches!(error, TransportError::Connect { .. }), "{error:?}");
    assert_eq!(error.failure(), Failure::NotSent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_on_many_threads_are_neither_lost_nor_run_twice() {
    let upstream = Upstream::start(|request| {
        modern(request, || {
            let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
            result(request.id(), &body["params"]["arguments"].to_string())
        })
    })
    .await;
    let connection = Arc::new(upstream.connect().await);
    let tasks = TaskTracker::new();
    for worker in 0..16 {
        let connection = Arc::clone(&connection);
        tasks.spawn(async move {
            for n in 0..100 {
                // Large ones come in several reads, and exhaust what a task may do in one go.
                let filler = "z".repeat(if n % 10 == 0 { 60_000 } else { 10 });
                let arguments = format!(r#"{{"n":"{worker}-{n}","z":"{filler}"}}"#);
                let request = OutgoingRequest {
                    arguments: Some(&arguments),
                    ..OutgoingRequest::new("tools/call")
                };
                let answer =
                    connection.request(&request, Duration::from_secs(20), None).await.unwrap();
                assert_eq!(answer.value, arguments.as_bytes());
            }
        });
    }
    tasks.close();
    tokio::time::timeout(Duration::from_secs(60), tasks.wait()).await.unwrap();
    assert_eq!(upstream.count("tools/call"), 1600);
    assert!(upstream.connections.load(Ordering::SeqCst) <= 17);
}

#[tokio::test]
async fn a_closed_connection_closes_its_sockets() {
    let upstream = Upstream::start(|request| modern(request, || result(request.id(), "{}"))).await;
    let connection = upstream.connect().await;
    call(&connection).await.unwrap();
    connection.close().await;
    eventually("the server sees the end", || upstream.closed.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn idle_sockets_are_closed_by_us_and_opened_again() {
    let upstream = Upstream::start(|request| modern(request, || result(request.id(), "{}"))).await;
    let connection = upstream.connect().await;
    call(&connection).await.unwrap();
    eventually("the server sees the end", || upstream.closed.load(Ordering::SeqCst) == 1).await;
    call(&connection).await.unwrap();
    assert_eq!(upstream.connections.load(Ordering::SeqCst), 2);
}
