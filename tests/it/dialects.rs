//! Servers that speak something older than Streamable HTTP, behind the router.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::support::{Answer, Legacy, SOON, TestApp, eventually, modern};

/// Longer than any double holds, so that a number that was read and written is seen.
const ARGUMENTS: &str = r#"{"text":"hi","n": 1.0,"big":12345678901234567890123}"#;

/// How many calls [`works`] makes.
const CALLS: usize = 4;

/// A server and what it was asked: path and JSON-RPC method.
#[derive(Clone, Default)]
struct Server {
    asked: Arc<Mutex<Vec<String>>>,
    streams: Arc<Mutex<HashMap<usize, mpsc::UnboundedSender<String>>>>,
    /// Streams that are open and whose sessions are unknown.
    forgotten: Arc<Mutex<HashMap<usize, mpsc::UnboundedSender<String>>>>,
    opened: Arc<Mutex<usize>>,
    tools: Arc<Mutex<Vec<&'static str>>>,
    /// Headers and body of each call.
    calls: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
}

impl Server {
    fn new() -> Self {
        let server = Self::default();
        *server.tools.lock() = vec!["echo", "fail"];
        server
    }

    async fn serve(&self, routes: Router<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = routes.with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        format!("http://{address}")
    }

    fn note(&self, method: &Method, uri: &Uri, body: &str) -> Value {
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        let called = body["method"].as_str().unwrap_or_default();
        self.asked.lock().push(format!("{method} {} {called}", uri.path()).trim().to_owned());
        body
    }

    fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock())
    }
}

fn json_answer(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// The arguments of a call as the bytes they came as.
fn arguments_in(body: &str) -> &str {
    #[derive(serde::Deserialize)]
    struct Request<'a> {
        #[serde(borrow)]
        params: Params<'a>,
    }
    #[derive(serde::Deserialize)]
    struct Params<'a> {
        #[serde(borrow)]
        arguments: &'a serde_json::value::RawValue,
    }
    serde_json::from_str::<Request<'_>>(body).unwrap().params.arguments.get()
}

/// A server as the predecessor's users wrote them: a list of tools, and bare calls.
fn predecessor() -> Router<Server> {
    async fn tools(State(server): State<Server>, method: Method, uri: Uri) -> Response {
        server.note(&method, &uri, "");
        let tools: Vec<Value> = server.tools.lock().iter().map(|name| {
            json!({"name": name, "description": "old", "input_schema": {"type": "object", "title": name}})
        }).collect();
        json_answer(json!({"tools": tools, "count": tools.len()}).to_string())
    }
    async fn call(
        State(server): State<Server>,
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: String,
    ) -> Response {
        let request = server.note(&method, &uri, &body);
        server.calls.lock().push((headers, request.clone()));
        let id = &request["id"];
        json_answer(match (request["method"].as_str(), request["params"]["name"].as_str()) {
            (Some("tools/call"), Some("echo")) => {
                let arguments = arguments_in(&body);
                format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[{{"type":"text","text":"hi"}}],"got":{arguments}}}}}"#
                )
            }
            (Some("tools/call"), Some("text")) => {
                format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"just text"}}"#)
            }
            (Some("tools/call"), _) => {
                format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32000,"message":"failed"}}}}"#
                )
            }
            _ => {
                format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"no"}}}}"#)
            }
        })
    }
    Router::new().route("/mcp/tools", get(tools)).route("/mcp", post(call))
}

/// A server of 2024-11-05.
fn older() -> Router<Server> {
    async fn stream(State(server): State<Server>, method: Method, uri: Uri) -> impl IntoResponse {
        server.note(&method, &uri, "");
        let session = {
            let mut opened = server.opened.lock();
            *opened += 1;
            *opened
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        server.streams.lock().insert(session, sender);
        let endpoint = Event::default().event("endpoint").data(format!("/messages?s={session}"));
        let events =
            futures_util::stream::unfold((Some(endpoint), receiver), |(first, mut rest)| async {
                if let Some(first) = first {
                    return Some((Ok::<_, Infallible>(first), (None, rest)));
                }
                let message = rest.recv().await?;
                Some((Ok(Event::default().event("message").data(message)), (None, rest)))
            });
        Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_millis(50)))
    }
    async fn message(
        State(server): State<Server>,
        Query(query): Query<HashMap<String, usize>>,
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: String,
    ) -> Response {
        let request = server.note(&method, &uri, &body);
        if request["method"] == "tools/call" {
            server.calls.lock().push((headers, request.clone()));
        }
        let Some(stream) = server.streams.lock().get(&query["s"]).cloned() else {
            return (StatusCode::NOT_FOUND, "Could not find session").into_response();
        };
        let result = match (request["method"].as_str(), request["params"]["name"].as_str()) {
            (Some("initialize"), _) => json!({
                "protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": {"name": "older", "version": "0"}
            }).to_string(),
            (Some("tools/list"), _) => {
                let tools: Vec<Value> = server.tools.lock().iter().map(|name| json!({"name": name, "inputSchema": {"type": "object", "title": name}})).collect();
                json!({"tools": tools}).to_string()
            }
            (Some("tools/call"), Some("echo")) => {
                let arguments = arguments_in(&body);
                format!(r#"{{"content":[{{"type":"text","text":"hi"}}],"got":{arguments}}}"#)
            }
            (Some("tools/call"), Some("fail")) => {
                let id = &request["id"];
                let _ = stream.send(format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32000,"message":"failed"}}}}"#));
                return StatusCode::ACCEPTED.into_response();
            }
            // A call that is never answered.
            (Some("tools/call"), _) => return StatusCode::ACCEPTED.into_response(),
            _ => "{}".to_owned(),
        };
        if !request["id"].is_null() {
            let _ = stream
                .send(format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, request["id"]));
        }
        StatusCode::ACCEPTED.into_response()
    }
    Router::new().route("/sse", get(stream)).route("/messages", post(message))
}

fn result_of(answer: &Answer) -> &str {
    let text = answer.text();
    assert!(text.contains(&format!(r#""got":{ARGUMENTS}"#)), "{text}");
    text
}

/// Through every door, and what the router says of the server.
async fn works(app: &TestApp, dialect: &str) {
    let client = Legacy::connect(app.http()).await;
    let listed = client.request("tools/list", "{}").await.expect(200).json();
    let tool = &listed["result"]["tools"][0];
    assert_eq!(tool["name"], "up__echo");
    assert_eq!(tool["inputSchema"], json!({"type": "object", "title": "echo"}), "{tool}");
    assert!(tool.get("input_schema").is_none());
    result_of(&client.call("up__echo", ARGUMENTS).await.expect(200));
    let failed = client.call("up__fail", "{}").await.expect(200).json();
    assert_eq!(failed["error"]["code"], -32000, "{failed}");
    let members = format!(r#","arguments":{ARGUMENTS}"#);
    let answer = modern(app.http(), "tools/call", Some("up__echo"), &members).await.expect(200);
    assert!(result_of(&answer).contains(r#""resultType":"complete""#), "{}", answer.text());
    let answer = app.http().call("up__echo", ARGUMENTS).await.expect(200);
    assert_eq!(app.entry_of(&answer).await["outcome"], "ok");
    let server = app.socket().get("/mcp/servers/up").await.expect(200).json();
    assert_eq!(
        (&server["dialect"], &server["protocol_version"]),
        (&json!(dialect), &json!("2024-11-05")),
        "{server}"
    );
    let health = app.socket().get("/mcp/health").await.expect(200).json();
    assert_eq!(health["status"], "ok", "{health}");
}

fn config(settings: &str) -> String {
    format!("mcp_servers:\n  up: {{{settings}}}\n")
}

#[tokio::test]
async fn a_server_of_the_predecessors_dialect_is_found_and_remembered() {
    let server = Server::new();
    let url = server.serve(predecessor()).await;
    for path in ["", "/"] {
        let yaml = config(&format!("url: \"{url}{path}\""));
        let app = TestApp::start(&yaml).await.ready().await;
        works(&app, "jsonrpc").await;
        let asked = server.take_asked();
        let first = |what: &str| asked.iter().position(|it| it == what).unwrap();
        assert!(first("GET /mcp/tools") < first("POST /mcp tools/call"), "{asked:?}");
        let calls = asked.iter().filter(|it| *it == "POST /mcp tools/call").count();
        assert_eq!(calls, CALLS, "only what clients called");
        assert!(asked.contains(&"POST /mcp server/discover".to_owned()), "{asked:?}");
        let folder = app.stop().await;

        let app = TestApp::start_in(folder, &yaml).await.ready().await;
        works(&app, "jsonrpc").await;
        let asked = server.take_asked();
        let others: Vec<_> = asked
            .iter()
            .filter(|it| !["GET /mcp/tools", "POST /mcp tools/call"].contains(&it.as_str()))
            .collect();
        assert!(others.is_empty(), "{asked:?}");
        app.stop().await;
    }
    let app = TestApp::start(&config(&format!("url: \"{url}\", transport: jsonrpc"))).await;
    let app = app.ready().await;
    works(&app, "jsonrpc").await;
    assert_eq!(server.take_asked()[0], "GET /mcp/tools");
    app.stop().await;
}

#[tokio::test]
async fn a_result_that_is_only_text_reaches_the_client_as_content() {
    let server = Server::new();
    server.tools.lock().push("text");
    let url = server.serve(predecessor()).await;
    let app = TestApp::start(&config(&format!("url: \"{url}\""))).await.ready().await;
    let client = Legacy::connect(app.http()).await;
    let answer = client.call("up__text", "{}").await.expect(200).json();
    assert_eq!(answer["result"]["content"], json!([{"type": "text", "text": "just text"}]));
    let answer = app.http().call("up__text", "{}").await.expect(200);
    assert!(answer.text().contains("just text"), "{}", answer.text());
    app.stop().await;
}

#[tokio::test]
async fn a_server_over_http_and_sse_is_found_and_remembered() {
    let server = Server::new();
    let url = server.serve(older()).await;
    let yaml = config(&format!("url: \"{url}/sse\""));
    let app = TestApp::start(&yaml).await.ready().await;
    works(&app, "sse").await;
    server.take_asked();
    let folder = app.stop().await;
    let app = TestApp::start_in(folder, &yaml).await.ready().await;
    works(&app, "sse").await;
    let asked = server.take_asked();
    assert_eq!(asked[..2], ["GET /sse", "POST /messages initialize"], "{asked:?}");
    app.stop().await;
    let app = TestApp::start(&config(&format!("url: \"{url}/sse\", transport: sse"))).await;
    let app = app.ready().await;
    works(&app, "sse").await;
    assert_eq!(server.take_asked()[..2], ["GET /sse", "POST /messages initialize"]);
    app.stop().await;
}

#[tokio::test]
async fn a_session_that_ends_fails_what_was_under_way_and_the_next_call_opens_another() {
    let server = Server::new();
    server.tools.lock().push("never");
    let url = server.serve(older()).await;
    let app = TestApp::start(&config(&format!("url: \"{url}/sse\""))).await.ready().await;
    let client = Legacy::connect(app.http()).await;
    let cutting = async {
        eventually(SOON, "the call is there", || async {
            let calls = server.asked.lock();
            calls.iter().any(|it| it == "POST /messages tools/call").then_some(())
        })
        .await;
        server.streams.lock().clear();
    };
    let (failed, ()) = tokio::join!(client.call("up__never", "{}"), cutting);
    let failed = failed.expect(200).json();
    assert_eq!(failed["error"]["data"]["error_code"], "MCPConnectionError", "{failed}");
    assert!(failed.to_string().contains("before the answer came"), "{failed}");
    eventually(SOON, "calls succeed again", || async {
        let answer = client.call("up__echo", ARGUMENTS).await.expect(200);
        answer.json()["error"].is_null().then_some(())
    })
    .await;
    assert_eq!(*server.opened.lock(), 2);
    app.stop().await;
}

/// Whatever the retry policy and the tool: a server that does not know the session ran nothing.
#[tokio::test]
async fn a_call_to_a_session_that_was_forgotten_is_sent_once_more() {
    for mode in ["safe", "off"] {
        let server = Server::new();
        let url = server.serve(older()).await;
        let settings = format!(
            "url: \"{url}/sse\", retry_mode: {mode}, circuit_breaker_threshold: 1, \
             retry_budget: {{ratio: 0, min_per_second: 0}}"
        );
        let app = TestApp::start(&config(&settings)).await.ready().await;
        let opened = *server.opened.lock();
        for attempts in 1..=2 {
            let answer = app.http().call("up__echo", ARGUMENTS).await.expect(200);
            result_of(&answer);
            assert_eq!(answer.json()["attempts"], attempts, "{}", answer.text());
            assert_eq!(*server.opened.lock(), opened + attempts - 1);
            // The stream stays open, and what is posted finds no session.
            server.forgotten.lock().extend(server.streams.lock().drain());
        }
        assert_eq!(server.calls.lock().len(), 3);
        app.stop().await;
    }
}

#[tokio::test]
async fn a_trace_goes_on_in_headers_and_meta() {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (routes, transport, path) in [(predecessor(), "jsonrpc", ""), (older(), "sse", "/sse")] {
        let server = Server::new();
        let address = server.serve(routes).await;
        let yaml =
            format!("mcp_servers:\n  up: {{url: \"{address}{path}\", transport: {transport}}}\n");
        let app = TestApp::start(&yaml).await.ready().await;
        let call = app
            .http()
            .request(&Method::POST, "/mcp/call")
            .header("traceparent", PARENT)
            .header("tracestate", "a=1")
            .header("baggage", "b=2");
        let body = format!(r#"{{"tool_name":"up__echo","arguments":{ARGUMENTS}}}"#);
        result_of(&call.body(body).send().await.expect(200));
        let (headers, body) = server.calls.lock().pop().unwrap();
        for (name, value) in [("traceparent", PARENT), ("tracestate", "a=1"), ("baggage", "b=2")] {
            assert_eq!(headers[name], value, "{transport}");
            assert_eq!(body["params"]["_meta"][name], value, "{transport}");
        }
        // Nothing of one call is left for the next.
        result_of(&app.http().call("up__echo", ARGUMENTS).await.expect(200));
        let (headers, body) = server.calls.lock().pop().unwrap();
        assert!(!headers.contains_key("traceparent"), "{transport}");
        assert!(body["params"]["_meta"].get("traceparent").is_none(), "{transport}");
        app.stop().await;
    }
}
