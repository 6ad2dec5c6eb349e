use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio_util::task::TaskTracker;

use super::support::{
    Act, Received, Upstream, call, call_within, eventually, json, options, result, status,
};
use crate::model::{Dialect, Failure, ProtocolVersion};
use crate::protocol::{Answer, AnswerKind, OutgoingRequest, RawObject};
use crate::transport::{Connection, HttpClient, Offers, Target, TransportError};

const TOOLS: &str =
    r#"{"tools": [{"name":"echo","description":"é", "input_schema":{"x": 1.0}}],"count":1}"#;

/// The list, or what the test wants for a call.
pub(super) fn predecessor(request: &Received, call: impl FnOnce() -> Act) -> Act {
    let line = request.head.lines().next().unwrap();
    match line {
        _ if line.starts_with("GET ") && line.contains("/mcp/tools") => json(TOOLS),
        _ if line.starts_with("POST ") && line.contains("/mcp ") && request.is("tools/call") => {
            call()
        }
        _ => status("404 Not Found", "", "no such route"),
    }
}

async fn open(url: &str) -> Result<Connection, TransportError> {
    let target = Target::Jsonrpc { url: url.parse().unwrap(), headers: Vec::new() };
    Connection::open(&target, &HttpClient::new(), &options(), &TaskTracker::new()).await
}

/// A server and its address without the path.
async fn server(call: impl Fn(&Received) -> Act + Send + Sync + 'static) -> (Upstream, String) {
    let upstream = Upstream::start(move |request| predecessor(request, || call(request))).await;
    let url = upstream.url.trim_end_matches("/mcp").to_owned();
    (upstream, url)
}

async fn ask(connection: &Connection, method: &str) -> Answer {
    let request = OutgoingRequest::new(method);
    connection.request(&request, Duration::from_secs(30), None).await.unwrap()
}

#[tokio::test]
async fn the_list_and_calls_are_translated() {
    let (upstream, url) = server(|request| {
        json(&format!(r#"{{"jsonrpc":"2.0","id":{},"result":"a \u00e9"}}"#, request.id()))
    })
    .await;
    for path in ["", "/", "/behind/a/prefix", "/behind/a/prefix/"] {
        let connection = open(&format!("{url}{path}")).await.unwrap();
        assert_eq!(connection.dialect(), Dialect::Jsonrpc);
        assert_eq!(connection.peer().version, ProtocolVersion::V2024_11_05);
        assert_eq!(connection.peer().offers, Offers { tools: true, ..Offers::default() });
        assert_eq!(
            ask(&connection, "tools/list").await.value,
            r#"{"tools":[{"name":"echo","description":"é", "inputSchema":{"x": 1.0}}]}"#
        );
        assert_eq!(ask(&connection, "ping").await.value, "{}");
        for method in ["prompts/list", "resources/read", "initialize"] {
            let answer = ask(&connection, method).await;
            assert_eq!(answer.kind, AnswerKind::Error);
            assert!(answer.value.starts_with(br#"{"code":-32601,"#));
        }
        connection.notify("notifications/roots/list_changed", None).await;
        let params = r#"{"name":"up__echo","arguments":{"n": 1.0},"_meta":{"progressToken":1}}"#;
        let params = RawObject::parse(params).unwrap();
        let request = OutgoingRequest {
            params: Some(&params),
            name: Some("echo"),
            progress: true,
            ..OutgoingRequest::new("tools/call")
        };
        let answer = connection.request(&request, Duration::from_secs(30), None).await.unwrap();
        assert_eq!(answer.value, r#"{"content":[{"type":"text","text":"a \u00e9"}]}"#);
        let sent = upstream.last("tools/call");
        assert!(sent.head.starts_with(&format!("POST {}/mcp ", path.trim_end_matches('/'))));
        let id = sent.id();
        assert_eq!(
            sent.body,
            format!(
                r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"echo","arguments":{{"n": 1.0}}}}}}"#
            )
        );
        connection.close().await;
        assert!(!connection.is_alive());
    }
    let received = upstream.received.lock();
    assert_eq!(received.iter().filter(|r| r.head.starts_with("POST ")).count(), 4, "{received:?}");
}

#[tokio::test]
async fn a_call_says_which_call_it_is_an_attempt_at() {
    let (upstream, url) = server(|request| result(request.id(), "{}")).await;
    let connection = open(&url).await.unwrap();
    let request = OutgoingRequest {
        name: Some("echo"),
        arguments: Some("{}"),
        idempotency_key: Some("the-call"),
        ..OutgoingRequest::new("tools/call")
    };
    connection.request(&request, Duration::from_secs(30), None).await.unwrap();
    let sent: serde_json::Value = serde_json::from_str(&upstream.last("tools/call").body).unwrap();
    assert_eq!(sent["params"]["_meta"]["dev.switchyard/idempotencyKey"], "the-call", "{sent}");
}

#[tokio::test]
async fn an_object_is_passed_on_as_it_is() {
    for object in [r#"{"content":[],"isError":true}"#, r#"{"rows": [1.0,1e400]}"#, "{ }"] {
        let (_upstream, url) = server(move |request| result(request.id(), object)).await;
        assert_eq!(call(&open(&url).await.unwrap()).await.unwrap().value, object);
    }
}

#[tokio::test]
async fn failures_of_a_call_are_told_apart() {
    let fault = async |limit: u64, act: fn(&Received) -> Act| {
        let (_upstream, url) = server(act).await;
        let connection = open(&url).await.unwrap();
        let outcome = call_within(&connection, Duration::from_millis(limit)).await;
        (outcome, connection.is_alive())
    };
    let (answer, alive) = fault(30_000, |request| {
        let id = request.id();
        let body =
            format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32000,"message":"x"}}}}"#);
        status("500 Internal Server Error", "content-type: application/json\r\n", &body)
    })
    .await;
    assert_eq!((answer.unwrap().kind, alive), (AnswerKind::Error, true));
    for (act, failure, stays) in [
        (
            (|_| status("503 Service Unavailable", "", "")) as fn(&Received) -> Act,
            Failure::Ambiguous,
            true,
        ),
        (|_| status("429 Too Many Requests", "", ""), Failure::Refused, true),
        (|_| status("404 Not Found", "", ""), Failure::Refused, false),
        (|_| json(r#"{"jsonrpc":"2.0","id":99999,"result":1}"#), Failure::Ambiguous, true),
        (|_| json("{"), Failure::Ambiguous, true),
        (|_| status("200 OK", "content-type: text/html\r\n", "<p>"), Failure::Ambiguous, true),
        (|_| Act::WriteAndClose(Vec::new()), Failure::Ambiguous, true),
        (|_| Act::WriteAndHang(Vec::new()), Failure::Timeout, true),
    ] {
        let limit = if failure == Failure::Timeout { 500 } else { 30_000 };
        let (outcome, alive) = fault(limit, act).await;
        let error = outcome.unwrap_err();
        assert_eq!((error.failure(), alive), (failure, stays), "{error:?}");
    }
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection() {
    let (upstream, url) = server(|_| Act::WriteAndHang(Vec::new())).await;
    let connection = open(&url).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(500), call(&connection)).await.is_err());
    eventually("it is closed", || upstream.closed.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn the_list_is_read_again_and_may_fail() {
    let gone = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&gone);
    let upstream = Upstream::start(move |request| match now.load(Ordering::SeqCst) {
        false => predecessor(request, || unreachable!()),
        true => status("404 Not Found", "", ""),
    })
    .await;
    let connection = open(upstream.url.trim_end_matches("/mcp")).await.unwrap();
    gone.store(true, Ordering::SeqCst);
    let request = OutgoingRequest::new("ping");
    let error = connection.request(&request, Duration::from_secs(30), None).await.unwrap_err();
    assert_eq!(error.http_status(), Some(404));
    assert!(!connection.is_alive(), "it may speak something else by now");
}

#[tokio::test]
async fn what_has_no_list_of_tools_is_no_such_server() {
    for (act, expected) in [
        ((|_: &Received| json(r#"{"status":"ok"}"#)) as fn(&Received) -> Act, "no list of tools"),
        (|_| status("200 OK", "content-type: text/html\r\n", "<h1>hi"), "<h1>hi"),
        (|_| status("404 Not Found", "", "nothing"), "could not find an MCP server"),
        (|_| status("401 Unauthorized", "", ""), "set headers.Authorization"),
        (|_| json(&format!("[{}]", " ".repeat(70_000))), "larger than 65536 bytes"),
    ] {
        let upstream = Upstream::start(act).await;
        let error = open(upstream.url.trim_end_matches("/mcp")).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    // Bound, so that nobody else gets the port, and not listening.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    let error = open(&url).await.unwrap_err();
    assert!(matches!(error, TransportError::Connect { .. }), "{error:?}");
}
