//! Finding out what a server speaks: in which order, and what is remembered.

use super::jsonrpc::predecessor;
use super::sse::{Server, accepted, usual};
use super::support::{
    Act, Received, Upstream, call, legacy, modern, open, options, result, status,
};
use crate::model::{Dialect, Failure};
use crate::transport::{ConnectOptions, TransportError};

const NOT_HERE: &str = "405 Method Not Allowed";

fn knowing(dialect: Dialect) -> ConnectOptions {
    ConnectOptions { known_dialect: Some(dialect), ..options() }
}

/// What was asked, as method and path, and the JSON-RPC method of posts.
fn asked(received: &[Received]) -> Vec<String> {
    let short = |request: &Received| {
        let line = request.head.lines().next().unwrap().trim_end_matches(" HTTP/1.1");
        let body: serde_json::Value = serde_json::from_str(&request.body).unwrap_or_default();
        format!("{line} {}", body["method"].as_str().unwrap_or_default()).trim().to_owned()
    };
    received.iter().map(short).collect()
}

/// A server of HTTP+SSE that takes no posts at the address of its stream.
fn older(path: &str) -> (Server, String) {
    let begin = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nevent: endpoint\ndata: /messages\n\n";
    let server = Server::start(begin, |request, stream| {
        if !request.head.starts_with("POST /messages ") {
            return status(NOT_HERE, "", "");
        }
        usual(request, stream, || {
            stream.answer(request.id(), "{}");
            accepted()
        })
    });
    let url = server.url.replace("/sse", path);
    (server, url)
}

#[tokio::test]
async fn an_older_server_is_found_by_its_stream() {
    let (server, url) = older("/sse");
    let connection = open(&url, &options()).await.unwrap();
    assert_eq!(connection.dialect(), Dialect::Sse);
    call(&connection).await.unwrap();
    assert_eq!(
        asked(&server.received.lock())[..5],
        [
            "POST /sse server/discover",
            "POST /sse initialize",
            "GET /sse",
            "POST /messages initialize",
            "POST /messages notifications/initialized",
        ]
    );
    server.received.lock().clear();
    let connection = open(&url, &knowing(Dialect::Sse)).await.unwrap();
    call(&connection).await.unwrap();
    assert_eq!(asked(&server.received.lock())[..2], ["GET /sse", "POST /messages initialize"]);
}

#[tokio::test]
async fn an_endpoint_elsewhere_is_told_and_not_passed_over() {
    let begin = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nevent: endpoint\ndata: http://192.0.2.1/\n\n";
    let server = Server::start(begin, |_, _| status(NOT_HERE, "", ""));
    let error = open(&server.url, &options()).await.unwrap_err();
    assert!(matches!(error, TransportError::ForeignEndpoint { .. }), "{error:?}");
}

#[tokio::test]
async fn the_predecessors_dialect_comes_last() {
    let upstream =
        Upstream::start(|request| predecessor(request, || result(request.id(), "{}"))).await;
    let url = upstream.url.trim_end_matches("/mcp");
    let connection = open(url, &options()).await.unwrap();
    assert_eq!(connection.dialect(), Dialect::Jsonrpc);
    assert_eq!(
        asked(&upstream.received.lock()),
        [
            "POST / server/discover",
            "POST / initialize",
            "GET /",
            "POST /mcp server/discover",
            "POST /mcp initialize",
            "GET /mcp",
            "GET /mcp/tools",
        ]
    );
    call(&connection).await.unwrap();
    upstream.received.lock().clear();
    let connection = open(url, &knowing(Dialect::Jsonrpc)).await.unwrap();
    call(&connection).await.unwrap();
    assert_eq!(asked(&upstream.received.lock()), ["GET /mcp/tools", "POST /mcp tools/call"]);
}

#[tokio::test]
async fn one_that_answers_in_json_rpc_that_it_knows_no_handshake_is_found_too() {
    for code in ["200 OK", "400 Bad Request", "500 Internal Server Error"] {
        let upstream = Upstream::start(move |request| {
            if request.head.starts_with("POST /mcp ") && !request.is("tools/call") {
                let body = format!(
                    r#"{{"jsonrpc":"2.0","id":{},"error":{{"code":-32601,"message":"no"}}}}"#,
                    request.id()
                );
                return status(code, "content-type: application/json\r\n", &body);
            }
            predecessor(request, || result(request.id(), "{}"))
        })
        .await;
        let connection = open(upstream.url.trim_end_matches("/mcp"), &options()).await.unwrap();
        assert_eq!(connection.dialect(), Dialect::Jsonrpc);
        assert_eq!(upstream.count("tools/call"), 0);
    }
}

#[tokio::test]
async fn a_finding_at_mcp_is_tried_there_at_once() {
    let at_mcp = |request: &Received, other: &dyn Fn() -> Act| {
        let here = request.head.lines().next().unwrap().contains(" /mcp ");
        if here { other() } else { status("404 Not Found", "", "") }
    };
    let upstream = Upstream::start(move |request| {
        at_mcp(request, &|| legacy(request, "s1", || result(request.id(), "{}")))
    })
    .await;
    let url = upstream.url.trim_end_matches("/mcp");
    assert_eq!(open(url, &options()).await.unwrap().dialect(), Dialect::Legacy);
    upstream.received.lock().clear();
    open(url, &knowing(Dialect::Legacy)).await.unwrap();
    assert_eq!(
        asked(&upstream.received.lock())[..2],
        ["POST / initialize", "POST /mcp initialize"]
    );

    let upstream = Upstream::start(move |request| {
        at_mcp(request, &|| modern(request, || result(request.id(), "{}")))
    })
    .await;
    let url = upstream.url.trim_end_matches("/mcp");
    let connection = open(url, &knowing(Dialect::Modern)).await.unwrap();
    assert_eq!(connection.dialect(), Dialect::Modern);
    assert_eq!(
        asked(&upstream.received.lock())[..2],
        ["POST / server/discover", "POST /mcp server/discover"]
    );

    let (_server, url) = older("");
    assert_eq!(open(&url, &options()).await.unwrap().dialect(), Dialect::Sse);
}

#[tokio::test]
async fn what_was_known_is_not_believed_blindly() {
    let upstream =
        Upstream::start(|request| modern(request, || status("404 Not Found", "", ""))).await;
    for dialect in [Dialect::Legacy, Dialect::Sse, Dialect::Jsonrpc, Dialect::Modern] {
        let connection = open(&upstream.url, &knowing(dialect)).await.unwrap();
        assert_eq!(connection.dialect(), Dialect::Modern);
    }
    let upstream =
        Upstream::start(|request| predecessor(request, || result(request.id(), "{}"))).await;
    for dialect in [Dialect::Legacy, Dialect::Sse, Dialect::Modern] {
        let url = upstream.url.trim_end_matches("/mcp");
        assert_eq!(open(url, &knowing(dialect)).await.unwrap().dialect(), Dialect::Jsonrpc);
    }
}

#[tokio::test]
async fn a_server_that_is_down_or_wants_a_key_is_not_searched() {
    for (answer, most) in [("503 Service Unavailable", 2), ("401 Unauthorized", 1)] {
        let upstream = Upstream::start(move |request| {
            if request.head.starts_with("GET ") {
                return predecessor(request, || unreachable!());
            }
            status(answer, "", "")
        })
        .await;
        let url = upstream.url.trim_end_matches("/mcp");
        let error = open(url, &options()).await.unwrap_err();
        assert_ne!(error.failure(), Failure::NotSent, "{error:?}");
        let asked = asked(&upstream.received.lock());
        assert!(
            asked.len() <= most && asked.iter().all(|it| it.starts_with("POST / ")),
            "{asked:?}"
        );
    }
    for dialect in [Dialect::Sse, Dialect::Jsonrpc, Dialect::Legacy] {
        let upstream = Upstream::start(|_| status("401 Unauthorized", "", "")).await;
        let error = open(&upstream.url, &knowing(dialect)).await.unwrap_err();
        assert!(matches!(error, TransportError::Unauthorized { .. }), "{error:?}");
        assert_eq!(upstream.received.lock().len(), 1);
    }
}

#[tokio::test]
async fn what_speaks_nothing_is_told_by_what_it_said_first() {
    let upstream = Upstream::start(|request| {
        let path = request.head.lines().next().unwrap().replace(" HTTP/1.1", "");
        status("404 Not Found", "", &format!("nothing at {path}"))
    })
    .await;
    let error = open(upstream.url.trim_end_matches("/mcp"), &options()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("could not find an MCP server"), "{text}");
    assert!(text.contains("nothing at POST /`"), "{text}");
    assert_eq!(error.failure(), Failure::NotSent);
    assert_eq!(upstream.count("tools/call"), 0);
}
