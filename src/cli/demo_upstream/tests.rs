//! The bundled upstream over a real socket, spoken to without any client library.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{Answers, Eras, Fault, FaultPlan, Options, Tool, Upstream, serve_http};

async fn start(options: Options) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    serve_http(listener, options, CancellationToken::new()).unwrap()
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// One request on a connection of its own; `None` when the connection ends without a whole answer.
async fn send(up: &Upstream, http: &str, headers: &[(&str, &str)], body: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(up.address()).await.unwrap();
    let mut request = format!(
        "{http} /mcp HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    request.push_str(body);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    // A reset instead of an end is as good: the answer is cut either way.
    let _reset = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.get(9..12)?.parse().ok()?;
    let answer = Answer { status, head: head.to_owned(), body: body.to_owned() };
    let announced: usize = answer.header("content-length").map_or(0, |text| text.parse().unwrap());
    (announced == answer.body.len()).then_some(answer)
}

async fn handshake(up: &Upstream, version: &str) -> String {
    let body = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize",
        "params": {"protocolVersion": version, "capabilities": {}}});
    let answer = send(up, "POST", &[], &body.to_string()).await.unwrap();
    assert_eq!(answer.json()["result"]["protocolVersion"], version);
    answer.header("mcp-session-id").unwrap().to_owned()
}

fn call(tool: &str, arguments: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": tool, "arguments": arguments}})
    .to_string()
}

fn modern(method: &str, params: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":"m1","method":"{method}","params":{{{params}"_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{{}}}}}}}}"#
    )
}

const MODERN_CALL: [(&str, &str); 3] =
    [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "tools/call"), ("Mcp-Name", "echo")];

#[tokio::test]
async fn legacy_clients_shake_hands_list_and_call() {
    let up = start(Options::default()).await;
    for version in ["2025-03-26", "2025-06-18", "2025-11-25"] {
        let session = handshake(&up, version).await;
        let headers = [("mcp-session-id", session.as_str()), ("mcp-protocol-version", version)];
        let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(send(&up, "POST", &headers, note).await.unwrap().status, 202);
        let ping = r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#;
        assert_eq!(send(&up, "POST", &headers, ping).await.unwrap().json()["result"], json!({}));
        let echo = call("echo", &json!({"text": "hé"}));
        let answer = send(&up, "POST", &headers, &echo).await.unwrap().json();
        assert_eq!(answer["result"]["content"][0]["text"], "hé");
        assert_eq!(send(&up, "GET", &headers, "").await.unwrap().status, 405);
        assert_eq!(send(&up, "DELETE", &headers, "").await.unwrap().status, 204);
        assert_eq!(send(&up, "POST", &headers, ping).await.unwrap().status, 404);
    }
    assert_eq!(up.stats().calls_of(Tool::Echo), 3);
}

#[tokio::test]
async fn a_request_outside_a_session_is_refused_and_unknown_versions_too() {
    let up = start(Options::default()).await;
    let echo = call("echo", &json!({"text": "x"}));
    assert_eq!(send(&up, "POST", &[], &echo).await.unwrap().status, 400);
    let session = handshake(&up, "2025-11-25").await;
    up.forget_sessions();
    let headers = [("mcp-session-id", session.as_str())];
    assert_eq!(send(&up, "POST", &headers, &echo).await.unwrap().status, 404);
    let old = [("mcp-protocol-version", "1999-01-01")];
    let answer = send(&up, "POST", &old, &echo).await.unwrap();
    assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32022)));
    assert_eq!(answer.json()["error"]["data"]["requested"], "1999-01-01");
    assert_eq!(answer.json()["id"], 1);
    assert_eq!(send(&up, "POST", &[], "[]").await.unwrap().status, 400);
    assert_eq!(up.stats().calls(), 0);
}

#[tokio::test]
async fn batches_belong_to_the_oldest_version_alone() {
    let up = start(Options::default()).await;
    let session = handshake(&up, "2025-03-26").await;
    let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let ping = r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#;
    let echo = call("echo", &json!({"text": "x"}));
    let headers = [("mcp-session-id", session.as_str())];
    let batch = format!("[{ping},{note},{echo}]");
    let answers = send(&up, "POST", &headers, &batch).await.unwrap().json();
    assert_eq!((answers[0]["id"].as_i64(), answers[1]["id"].as_i64()), (Some(2), Some(1)));
    assert_eq!(answers.as_array().unwrap().len(), 2);
    assert_eq!(send(&up, "POST", &headers, &format!("[{note}]")).await.unwrap().status, 202);
    let newer = [("mcp-session-id", session.as_str()), ("mcp-protocol-version", "2025-06-18")];
    let answer = send(&up, "POST", &newer, &batch).await.unwrap();
    assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32600)));
}

#[tokio::test]
async fn modern_clients_need_no_handshake() {
    let up = start(Options::default()).await;
    let headers = [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "server/discover")];
    let found = send(&up, "POST", &headers, &modern("server/discover", "")).await.unwrap().json();
    assert_eq!(found["result"]["supportedVersions"][0], "2026-07-28");
    assert_eq!(found["result"]["resultType"], "complete");
    assert_eq!(found["result"]["cacheScope"], "public");
    let body = modern("tools/call", r#""name":"echo","arguments":{"text":"a"},"#);
    let answer = send(&up, "POST", &MODERN_CALL, &body).await.unwrap();
    assert_eq!(answer.header("mcp-session-id"), None);
    assert_eq!(answer.json()["result"]["content"][0]["text"], "a");
    assert_eq!(answer.json()["result"]["resultType"], "complete");
    let headers = [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "ping")];
    let answer = send(&up, "POST", &headers, &modern("ping", "")).await.unwrap();
    assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (404, Some(-32601)));
}

#[tokio::test]
async fn modern_headers_must_agree_with_the_body() {
    let up = start(Options::default()).await;
    let body = modern("tools/call", r#""name":"echo","arguments":{"text":"a"},"#);
    let [version, method, name] = MODERN_CALL;
    let cases: [(&[(&str, &str)], i64); 5] = [
        (&[], -32020),
        (&[version, name], -32020),
        (&[version, method], -32020),
        (&[version, method, ("Mcp-Name", "add")], -32020),
        (&[version, method, ("Mcp-Name", "=?base64?!?=")], -32020),
    ];
    for (headers, code) in cases {
        let answer = send(&up, "POST", headers, &body).await.unwrap();
        assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(code)));
        assert_eq!(answer.json()["id"], "m1");
    }
    let encoded = [version, method, ("Mcp-Name", "=?base64?ZWNobw==?=")];
    assert_eq!(send(&up, "POST", &encoded, &body).await.unwrap().status, 200);
    let bare = call("echo", &json!({"text": "a"}));
    let answer = send(&up, "POST", &MODERN_CALL, &bare).await.unwrap();
    assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32602)));
}

#[tokio::test]
async fn an_annotated_argument_must_be_mirrored() {
    let up = start(Options::default()).await;
    let body = modern("tools/call", r#""name":"region","arguments":{"region":"Zürich"},"#);
    let [version, method, _] = MODERN_CALL;
    let name = ("Mcp-Name", "region");
    for wrong in
        [&[version, method, name][..], &[version, method, name, ("Mcp-Param-Region", "Bern")]]
    {
        let answer = send(&up, "POST", wrong, &body).await.unwrap();
        assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32020)));
    }
    let right = [version, method, name, ("Mcp-Param-Region", "=?base64?WsO8cmljaA==?=")];
    let answer = send(&up, "POST", &right, &body).await.unwrap().json();
    assert_eq!(answer["result"]["content"][0]["text"], "Zürich");
}

#[tokio::test]
async fn an_era_that_is_switched_off_is_refused() {
    let old = start(Options { eras: Eras::Legacy, ..Options::default() }).await;
    let headers = [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "server/discover")];
    let answer = send(&old, "POST", &headers, &modern("server/discover", "")).await.unwrap();
    assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32000)));
    handshake(&old, "2025-06-18").await;
    let new = start(Options { eras: Eras::Modern, ..Options::default() }).await;
    let hello = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{}}}"#;
    assert_eq!(send(&new, "POST", &[], hello).await.unwrap().status, 400);
    assert_eq!(
        send(&new, "POST", &headers, &modern("server/discover", "")).await.unwrap().status,
        200
    );
}

#[tokio::test]
async fn pages_cover_every_tool_once() {
    let options = Options { stateless: true, page_size: 4, extra_tools: 3, ..Options::default() };
    let up = start(options).await;
    let mut names = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let params = if cursor.is_null() { json!({}) } else { json!({"cursor": cursor}) };
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params});
        let answer = send(&up, "POST", &[], &body.to_string()).await.unwrap();
        // 1e400 is no f64: only its neighbours are looked at.
        let result: Value = serde_json::from_str(&answer.body.replace("1e400", "1")).unwrap();
        let page = result["result"]["tools"].as_array().unwrap();
        assert!(page.len() <= 4);
        names.extend(page.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()));
        cursor = result["result"]["nextCursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    let mut expected: Vec<String> = Tool::ALL.iter().map(|tool| tool.name().to_owned()).collect();
    expected.extend((0..3).map(|n| format!("extra_{n}")));
    assert_eq!(names, expected);
    let wrong = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":""}}"#;
    assert_eq!(send(&up, "POST", &[], wrong).await.unwrap().json()["error"]["code"], -32602);
}

#[tokio::test]
async fn an_event_stream_carries_the_same_bytes() {
    let options = Options { stateless: true, answers: Answers::Sse, ..Options::default() };
    let up = start(options).await;
    let body = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"echo_raw\",\"arguments\":{\"a\":1.0,\n\"b\":2}}}";
    let answer = send(&up, "POST", &[], body).await.unwrap();
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let data: Vec<&str> =
        answer.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert!(data.join("\n").contains("\"structuredContent\":{\"a\":1.0,\n\"b\":2}"), "{data:?}");
}

#[tokio::test]
async fn faults_do_what_they_are_called() {
    let up = start(Options { stateless: true, ..Options::default() }).await;
    let count = call("counter", &json!({}));
    let outcome = async |fault: Fault| {
        up.faults().set(FaultPlan::calls(fault).times(1));
        let before = up.stats().calls_of(Tool::Counter);
        let waiting = send(&up, "POST", &[], &count);
        let answer = tokio::time::timeout(Duration::from_millis(300), waiting).await;
        (answer, up.stats().calls_of(Tool::Counter) - before)
    };
    let (answer, ran) = outcome(Fault::ToolError).await;
    assert_eq!(
        (answer.unwrap().unwrap().json()["result"]["isError"].as_bool(), ran),
        (Some(true), 1)
    );
    let (answer, ran) = outcome(Fault::RpcError).await;
    assert_eq!((answer.unwrap().unwrap().json()["error"]["code"].as_i64(), ran), (Some(-32603), 0));
    let (answer, ran) = outcome(Fault::HttpStatus(503)).await;
    let answer = answer.unwrap().unwrap();
    assert_eq!((answer.status, answer.header("retry-after"), ran), (503, Some("1"), 0));
    for fault in [Fault::Cut, Fault::CutMidBody] {
        let (answer, ran) = outcome(fault).await;
        assert!(answer.unwrap().is_none(), "{fault:?} must not give a whole answer");
        assert_eq!(ran, 1);
    }
    let (answer, ran) = outcome(Fault::Hang).await;
    assert!(answer.is_err());
    assert_eq!(ran, 1);
    let (answer, ran) = outcome(Fault::Garbage).await;
    assert!(serde_json::from_str::<Value>(&answer.unwrap().unwrap().body).is_err());
    assert_eq!(ran, 1);
    let (answer, ran) = outcome(Fault::WrongId).await;
    assert_ne!(answer.unwrap().unwrap().json()["id"], 1);
    assert_eq!(ran, 1);
    let healthy = send(&up, "POST", &[], &count).await.unwrap();
    assert_eq!(healthy.json()["id"], 1);
    let (answer, ran) = outcome(Fault::Exit).await;
    assert!(answer.unwrap().is_none());
    assert_eq!(ran, 0);
    assert!(!up.finished().await);
}

#[tokio::test]
async fn a_stopped_upstream_frees_its_address_for_the_next() {
    let up = start(Options { record: true, stateless: true, ..Options::default() }).await;
    let address = up.address();
    let echo = call("echo", &json!({"text": "x"}));
    send(&up, "POST", &[("x-test", "1")], &echo).await.unwrap();
    let seen = up.stats().seen_method("tools/call");
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].headers["x-test"], "1");
    assert_eq!(seen[0].body, echo);
    up.stop().await;
    let listener = TcpListener::bind(address).await.unwrap();
    let options = Options { stateless: true, ..Options::default() };
    let again = serve_http(listener, options, CancellationToken::new()).unwrap();
    assert_eq!(send(&again, "POST", &[], &echo).await.unwrap().status, 200);
}
