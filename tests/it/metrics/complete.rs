//! Whether the figures have every call: also those whose caller left, that were refused at the door, or
//! that the ledger had no place for.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};
use switchyard::cli::demo_upstream::Options;

use super::scrape;
use crate::support::{
    Collector, Fault, Http, Legacy, MODERN, Received, Rig, SOON, Speaker, TestApp, eventually,
    legacy_body, modern, modern_params, total, upstream, yaml,
};

const HI: &str = r#"{"text":"hi"}"#;

const FAST: &str = "retry_delay: 100ms, circuit_breaker_threshold: 1000";

async fn retries(app: &TestApp, reason: &str) -> f64 {
    let reason = format!("reason=\"{reason}\"");
    total(&app.socket(), "switchyard_retries_total", &["server=\"up\"", &reason]).await
}

/// Attempts after the first, as the ledger has them, are the retries, also when nobody waits for the last.
#[tokio::test]
async fn a_retry_whose_caller_leaves_is_counted() {
    for rig in [Rig::legacy(&["read"]).await, Rig::modern(&["read"]).await] {
        rig.annotate("read", json!({ "readOnlyHint": true }));
        let app = TestApp::start(&rig.yaml("up", FAST)).await.ready().await;
        rig.next("read", &[Fault::Reset, Fault::hold(Fault::None)]);
        let http = app.http().clone();
        let call = tokio::spawn(async move { http.call("up__read", "{}").await });
        eventually(SOON, "the second attempt is under way", || async {
            (rig.counts("read").requests == 2).then_some(())
        })
        .await;
        assert_eq!(retries(&app, "ambiguous").await, 0.0, "it has not ended");
        call.abort();
        let entry = eventually(SOON, "the ledger has the call", || async {
            app.calls("limit=10").await.into_iter().next()
        })
        .await;
        assert_eq!((&entry["outcome"], &entry["attempts"]), (&json!("cancelled"), &json!(2)));
        assert_eq!(retries(&app, "ambiguous").await, 1.0);
        app.stop().await;
    }
}

/// A call that is sent again because the definition it was made from is old is no less a repeat.
#[tokio::test]
async fn a_call_with_a_newer_definition_is_counted_as_a_repeat() {
    let rig = Rig::modern(&["read"]).await;
    let app = TestApp::start(&rig.yaml("up", "retry_mode: off")).await.ready().await;
    let schema = json!({ "type": "object" });
    rig.define("read", json!({ "name": "read", "description": "New.", "inputSchema": schema }));
    rig.next("read", &[Fault::RpcError(-32020)]);
    let answer = app.http().call("up__read", "{}").await.expect(200);
    assert_eq!(answer.json()["attempts"], 2, "{}", answer.text());
    let attempts = app.entry_of(&answer).await["attempt_list"].clone();
    assert_eq!(attempts[0]["failure"], "refused", "{attempts}");
    assert_eq!(retries(&app, "refused").await, 1.0);
    app.stop().await;
}

/// Calls by tool and type of error.
type Calls = BTreeMap<(String, String), f64>;

fn label<'a>(labels: &'a str, name: &str) -> &'a str {
    let labels = labels
        .strip_prefix(&format!("{name}=\""))
        .or_else(|| labels.split_once(&format!(",{name}=\"")).map(|(_, rest)| rest));
    labels.unwrap_or_else(|| panic!("no {name}")).split_once('"').unwrap().0
}

async fn measured(app: &TestApp) -> Calls {
    let mut calls = Calls::new();
    for (name, labels, value) in scrape(app).await.samples {
        if name == "mcp_server_operation_duration_seconds_count"
            && label(&labels, "mcp_method_name") == "tools/call"
            && value > 0.0
        {
            let [tool, error] = ["gen_ai_tool_name", "error_type"].map(|of| label(&labels, of));
            *calls.entry((tool.to_owned(), error.to_owned())).or_default() += value;
        }
    }
    calls
}

fn of_rows(rows: &[Value]) -> Calls {
    let mut calls = Calls::new();
    for row in rows {
        let tool =
            if row["upstream_tool"].is_null() { "_other" } else { row["tool"].as_str().unwrap() };
        let error = match row["outcome"].as_str().unwrap() {
            "ok" => "",
            "tool_error" => "tool_error",
            _ => row["error_code"].as_str().unwrap(),
        };
        *calls.entry((tool.to_owned(), error.to_owned())).or_default() += 1.0;
    }
    calls
}

async fn sum(http: &Http, family: &str) -> f64 {
    total(http, family, &[]).await
}

#[tokio::test]
async fn calls_refused_at_the_door_are_in_every_figure() {
    let up = upstream(Options::default()).await;
    let settings =
        format!("limits: {{body: 64KiB}}\n{}views: {{all: {{}}}}\n", yaml(&[("up", &up)]));
    let app = TestApp::start(&settings).await.ready().await;
    let (http, socket) = (app.http(), app.socket());
    let reader = app.keyed("reader", &["read"]).await;
    let wrong = http.with_key("sy_wrong");
    let call = legacy_body("tools/call", r#"{"name":"up__echo","arguments":{"text":"hi"}}"#);
    let unnamed = || legacy_body("tools/call", r#"{"arguments":{}}"#);
    let mut answers = vec![
        http.call("up__echo", HI).await,
        http.call("up__fail", "{}").await,
        http.call("nobody__has", "{}").await,
        socket.call("up__echo", HI).await,
    ];
    for http in [http, &socket, &reader, &wrong] {
        answers.push(http.post("/mcp/call", "{").await);
        answers.push(http.post("/mcp", unnamed()).await);
        answers.push(http.post("/mcp/v/all", unnamed()).await);
    }
    answers.push(http.post("/mcp", "{").await.expect(400));
    answers.push(http.post("/mcp/v/none", call.clone()).await.expect(404));
    for path in ["/mcp", "/mcp/v/all", "/mcp/call"] {
        answers.push(http.post(path, "x".repeat(70_000)).await.expect(413));
    }
    answers.push(Legacy::connect(http).await.request("tools/call", r#"{"name":7}"#).await);
    let post = || http.request(&Method::POST, "/mcp").body(call.clone());
    answers.push(post().header("mcp-session-id", "nobodys").send().await.expect(404));
    answers.push(post().header("mcp-protocol-version", "1999-01-01").send().await.expect(400));
    // Its headers do not say what its body does.
    let body = legacy_body("tools/call", &modern_params(r#","name":"up__echo""#));
    let modern_one = http.request(&Method::POST, "/mcp").header("mcp-protocol-version", MODERN);
    answers.push(modern_one.body(body).send().await.expect(400));
    answers
        .push(modern(http, "tools/call", Some("up__echo"), r#","arguments":{"text":"hi"}"#).await);
    let mut rows = Vec::new();
    for answer in &answers {
        rows.push(app.entry_of(answer).await);
    }
    let (measured, of_rows) = (measured(&app).await, of_rows(&rows));
    assert_eq!(measured, of_rows);
    for code in ["Permission", "Authentication", "InvalidRequest", "NotFound", "RequestTooLarge"] {
        let refused = ("_other".to_owned(), format!("MCP{code}Error"));
        assert!(measured.contains_key(&refused), "{code}: {measured:?}");
    }
    assert_eq!(sum(&socket, "switchyard_calls_total").await, rows.len() as f64);
    let at_view = rows.iter().filter(|row| row["view"] == "all").count();
    assert_eq!(sum(&socket, "switchyard_view_calls_total").await, at_view as f64);
    app.stop().await;
}

/// As another process would, so that nothing is committed.
async fn lock(app: &TestApp) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(app.data_dir().join("audit.db"));
    let options = options.busy_timeout(SOON);
    let mut other = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql("begin exclusive").execute(&mut other).await.unwrap();
    other
}

async fn unlock(mut other: SqliteConnection) {
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
}

/// While the ledger takes nothing, calls have no row, but are in every figure.
#[tokio::test]
async fn calls_without_a_place_in_the_ledger_are_in_every_figure() {
    let rig = Rig::legacy(&["read"]).await;
    // Sent without being on record before.
    rig.annotate("read", json!({ "readOnlyHint": true }));
    let settings =
        format!("audit: {{durability: strict}}\n{}views: {{all: {{}}}}\n", rig.yaml("up", FAST));
    let app = TestApp::start(&settings).await.ready().await;
    let (http, socket) = (app.http(), app.socket());
    let client = Legacy::connect_at(http, "/mcp/v/all").await;
    let other = lock(&app).await;
    // Nobody knows yet: it is sent, and errs when its row is not committed in time.
    let caught = client.call("up__read", "{}").await.json();
    assert_eq!(caught["error"]["data"]["reason"], "not_recorded", "{caught}");
    eventually(SOON, "calls are refused", || async {
        (http.get("/readyz").await.status == 503).then_some(())
    })
    .await;
    let unrecorded = caught["error"]["data"]["error_code"].as_str().unwrap().to_owned();
    let before = sum(&socket, "switchyard_calls_total").await;
    let refused = client.call("up__read", "{}").await.json();
    assert_eq!(refused["error"]["data"]["error_code"], "MCPAuditUnavailableError", "{refused}");
    client.request("tools/call", r#"{"name":7}"#).await;
    let expected = [
        // What its client was told, and not what its server said.
        (("up__read".to_owned(), unrecorded), 1.0),
        (("up__read".to_owned(), "MCPAuditUnavailableError".to_owned()), 1.0),
        (("_other".to_owned(), "MCPInvalidRequestError".to_owned()), 1.0),
    ];
    assert_eq!(measured(&app).await, Calls::from(expected));
    assert_eq!(sum(&socket, "switchyard_calls_total").await - before, 2.0);
    let view = total(&socket, "switchyard_view_calls_total", &["outcome=\"refused\""]).await;
    assert_eq!(view, 2.0);
    unlock(other).await;
    app.stop().await;
}

async fn seconds(app: &TestApp, side: &str) -> f64 {
    let family = format!("mcp_{side}_operation_duration_seconds_sum");
    total(&app.socket(), &family, &["mcp_method_name=\"tools/call\""]).await
}

fn length(span: &Received) -> Duration {
    Duration::from_nanos(span.span.end_time_unix_nano - span.span.start_time_unix_nano)
}

/// How long the ledger is kept from writing.
const HELD: Duration = Duration::from_millis(800);
/// That, less what clocks and threads may differ by.
const NEARLY: Duration = Duration::from_millis(700);

/// Calls a tool while the ledger cannot be written, and lets that wait for a while.
async fn held(app: &TestApp, tool: &str, sent: impl AsyncFn()) -> Value {
    let other = lock(app).await;
    let (http, tool) = (app.http().clone(), tool.to_owned());
    let call = tokio::spawn(async move { http.call(&tool, "{}").await.expect(200).json() });
    sent().await;
    tokio::time::sleep(HELD).await;
    unlock(other).await;
    call.await.unwrap()
}

async fn strict(rig: &Rig, collector: &Collector) -> TestApp {
    let yaml = format!(
        "{}audit: {{durability: strict}}\n{}",
        collector.yaml(),
        rig.yaml("up", "retry_mode: off")
    );
    TestApp::start(&yaml).await.ready().await
}

async fn both_spans(collector: &Collector) -> [Received; 2] {
    let spans = eventually(SOON, "both spans are there", || async {
        let spans = collector.spans();
        (spans.len() == 2).then_some(spans)
    });
    let mut spans = spans.await;
    spans.sort_by_key(Received::is_client);
    spans.try_into().unwrap()
}

/// A client waits for the commit, so that is in the time that clients see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_see_has_the_wait_for_the_commit_in_it() {
    let rig = Rig::legacy(&["read"]).await;
    rig.annotate("read", json!({ "readOnlyHint": true }));
    let collector = Collector::start().await;
    let app = strict(&rig, &collector).await;
    let began = std::time::Instant::now();
    let answer = held(&app, "up__read", async || {
        rig.call("read", began).await;
        // It has the server's answer, and waits.
        eventually(SOON, "its place is free", || async {
            let inflight = r#"switchyard_upstream_inflight{server="up"}"#;
            (app.metric(inflight).await == Some(0.0)).then_some(())
        })
        .await;
    })
    .await;
    assert_eq!(answer["success"], true, "{answer}");
    let (clients, servers) = (seconds(&app, "server").await, seconds(&app, "client").await);
    assert!(clients - servers >= NEARLY.as_secs_f64(), "{clients} s, {servers} s at the server");
    let [server, client] = both_spans(&collector).await;
    assert!(length(&server) >= length(&client) + NEARLY, "{server:?} {client:?}");
    app.stop().await;
}

/// A call that changes something is on record before it is sent. That wait is the router's own: no
/// figure of the server has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_servers_take_has_no_wait_for_the_ledger_in_it() {
    let rig = Rig::legacy(&["pay"]).await;
    let collector = Collector::start().await;
    let app = strict(&rig, &collector).await;
    let answer = held(&app, "up__pay", async || {
        // It has its place at the server, and waits.
        eventually(SOON, "it is under way", || async {
            let inflight = r#"switchyard_upstream_inflight{server="up"}"#;
            (app.metric(inflight).await == Some(1.0)).then_some(())
        })
        .await;
    })
    .await;
    assert_eq!((&answer["success"], rig.counts("pay").requests), (&json!(true), 1), "{answer}");
    let (clients, servers) = (seconds(&app, "server").await, seconds(&app, "client").await);
    assert!(clients - servers >= NEARLY.as_secs_f64(), "{clients} s, {servers} s at the server");
    let row = app.entry(answer["request_id"].as_str().unwrap()).await;
    let [all, upstream] = ["duration_ms", "upstream_ms"].map(|of| row[of].as_f64().unwrap());
    assert!(all - upstream >= NEARLY.as_secs_f64() * 1000.0, "{row}");
    let attempt = &row["attempt_list"][0];
    let [began, took] = ["began_ms", "took_ms"].map(|of| attempt[of].as_f64().unwrap());
    assert!(began >= NEARLY.as_secs_f64() * 1000.0 && began + took <= all + 1.0, "{row}");
    let [server, client] = both_spans(&collector).await;
    assert!(length(&server) >= length(&client) + NEARLY, "{server:?} {client:?}");
    app.stop().await;
}

/// What no ledger has, metrics have as they have calls: from both sides, however it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_no_calls_are_measured_like_calls() {
    const READ: &str = "mcp_method_name=\"resources/read\"";
    let rig = Rig::modern(&["t"]).await;
    rig.offer_resource();
    let collector = Collector::start().await;
    let settings = rig.yaml("up", "retry_mode: off, circuit_breaker_threshold: 1000");
    let app = TestApp::start(&format!("{}{settings}", collector.yaml())).await.ready().await;
    let socket = app.socket();
    let client = Speaker::modern(&app, json!({}));
    let over_socket = Speaker { http: socket.clone(), ..client.clone() };
    let list = |cursor: Value| client.request(&json!(0), "resources/list", cursor);
    let uri = eventually(SOON, "the resource is listed", || async {
        let listed = list(json!({})).send().await.json();
        listed["result"]["resources"][0]["uri"].as_str().map(str::to_owned)
    })
    .await;
    let read = |client: &Speaker| {
        let read = client.request(&json!(1), "resources/read", json!({ "uri": uri }));
        read.header("mcp-name", &uri)
    };
    let seen = async |side: &str, labels: &[&str]| {
        total(&socket, &format!("mcp_{side}_operation_duration_seconds_count"), labels).await
    };
    read(&client).send().await.expect(200);
    read(&over_socket).send().await.expect(200);
    rig.next("resources/read", &[Fault::RpcError(-32099), Fault::Reset]);
    read(&client).send().await.expect(200);
    read(&client).send().await.expect(200);
    rig.next("resources/read", &[Fault::hold(Fault::None)]);
    let asked = rig.asked("resources/read");
    let waiting = tokio::spawn(read(&client).send());
    let inflight = r#"switchyard_upstream_inflight{server="up"}"#;
    eventually(SOON, "it is under way", || async {
        let shown = app.metric(inflight).await == Some(1.0);
        (shown && rig.asked("resources/read") > asked).then_some(())
    })
    .await;
    waiting.abort();
    let cancelled = "error_type=\"MCPCancelledError\"";
    eventually(SOON, "it is over", || async {
        (seen("server", &[READ, cancelled]).await == 1.0).then_some(())
    })
    .await;
    assert_eq!(app.metric(inflight).await, Some(0.0));
    for (side, error, count) in [
        ("server", "", 2.0),
        ("server", "MCPRpcError", 1.0),
        ("server", "MCPConnectionError", 1.0),
        ("client", "", 2.0),
        ("client", "rpc_error", 1.0),
        ("client", "unavailable", 1.0),
        ("client", "cancelled", 1.0),
    ] {
        let error = format!("error_type=\"{error}\"");
        assert_eq!(seen(side, &[READ, &error]).await, count, "{side} {error}");
    }
    assert_eq!(seen("server", &[READ, "network_transport=\"unix\""]).await, 1.0);
    assert_eq!(seen("client", &[READ, "server=\"up\""]).await, 5.0);
    // What never came to a server.
    let unknown = client.request(&json!(2), "prompts/get", json!({ "name": "none" }));
    assert!(unknown.send().await.json()["error"].is_object());
    assert!(list(json!({ "cursor": 7 })).send().await.json()["error"].is_object());
    let invalid = "error_type=\"MCPInvalidRequestError\"";
    for method in ["prompts/get", "resources/list"] {
        let method = format!("mcp_method_name=\"{method}\"");
        assert_eq!(seen("server", &[&method, invalid]).await, 1.0, "{method}");
    }
    // Both spans of the one whose client left.
    for (kind, error) in [("client", "cancelled"), ("server", "MCPCancelledError")] {
        eventually(SOON, "its span is there", || async {
            let spans = collector.spans();
            let of = |got: &&Received| {
                got.is_client() == (kind == "client")
                    && got.get("error.type").as_deref() == Some(error)
            };
            spans.iter().find(of).map(|got| assert_eq!(got.span.name, "resources/read"))
        })
        .await;
    }
    app.stop().await;
}
