//! Traces: what callers say of theirs goes on to servers, what is recorded reaches a collector, and the
//! ledger says which call belongs to which trace.

mod refused;
mod resources;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::IntoResponse as _;
use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    Answer, Collector, Fault, Http, LEGACY, Legacy, MODERN, Received, Rig, Role, Router, SOON,
    Stage, TestApp, Verdict, eventually, figure, hanging, legacy_body, modern_params, play,
    refusing, switchyard, total,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER: &str = "5bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn parent(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{SPAN}-{flags}")
}

/// `_meta` members that say this, with a comma before each.
fn meta(parent: &str, state: &str, baggage: &str) -> String {
    let fields = [("traceparent", parent), ("tracestate", state), ("baggage", baggage)];
    let fields = fields.iter().filter(|(_, value)| !value.is_empty());
    fields.map(|(name, value)| format!(r#","{name}":"{value}""#)).collect()
}

/// How a call comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Legacy,
    Modern,
    Rest,
}

/// A call with these members of `_meta` (not over REST, which has none) and these headers.
async fn call(http: &Http, door: Door, tool: &str, meta: &str, headers: &[(&str, &str)]) -> Answer {
    let key = r#""arguments":{"key":"k"}"#;
    let call = match door {
        Door::Rest => http
            .request(&Method::POST, "/mcp/call")
            .body(format!(r#"{{"tool_name":"{tool}",{key}}}"#)),
        Door::Legacy => {
            let client = Legacy::connect(http).await;
            let params = format!(r#"{{"name":"{tool}",{key},"_meta":{{"own":1{meta}}}}}"#);
            http.request(&Method::POST, "/mcp")
                .header("accept", "application/json, text/event-stream")
                .header("mcp-session-id", &client.session)
                .body(legacy_body("tools/call", &params))
        }
        Door::Modern => {
            let params = modern_params(&format!(r#","name":"{tool}",{key}"#));
            let end = r#"clientCapabilities":{}"#;
            assert!(params.contains(end), "{params}");
            let params = params.replace(end, &format!("{end}{meta}"));
            http.request(&Method::POST, "/mcp")
                .header("accept", "application/json, text/event-stream")
                .header("mcp-protocol-version", MODERN)
                .header("mcp-method", "tools/call")
                .header("mcp-name", tool)
                .body(legacy_body("tools/call", &params))
        }
    };
    headers.iter().fold(call, |call, (name, value)| call.header(name, value)).send().await
}

/// What the server heard of a trace with its last call: in headers and in `_meta`, field by field.
#[track_caller]
fn heard(rig: &Rig, tool: &str) -> [Option<String>; 3] {
    let call = rig.calls(tool).pop().expect("a call");
    ["traceparent", "tracestate", "baggage"].map(|name| {
        let header = call.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let meta = call.body["params"]["_meta"][name].as_str().map(str::to_owned);
        assert_eq!(header, meta, "{name} is the same in both: {}", call.body);
        header
    })
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

async fn app(rig: &Rig, collector: &Collector, settings: &str) -> TestApp {
    let yaml = format!("{}{}", collector.yaml(), rig.yaml("up", settings));
    TestApp::start(&yaml).await.ready().await
}

async fn spans(app: &TestApp, result: &str) -> f64 {
    let result = format!("result=\"{result}\"");
    total(&app.socket(), "switchyard_trace_spans_total", &[&result]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_from_the_client_through_the_router_to_the_server() {
    for rig in [Rig::legacy(&["pay"]).await, Rig::modern(&["pay"]).await] {
        let collector = Collector::start().await;
        let app = app(&rig, &collector, "").await;
        for (n, door) in [Door::Legacy, Door::Modern, Door::Rest].into_iter().enumerate() {
            let trace = format!("{n}bf92f3577b34da6a3ce929d0e0e4736");
            let (own, around) = (parent(&trace, "01"), parent(OTHER, "01"));
            let (fields, header) = match door {
                // What the request says wins over what the HTTP request around it says.
                Door::Legacy | Door::Modern => {
                    (meta(&own, "rojo=1,congo=2", "user=alice"), &around)
                }
                Door::Rest => (String::new(), &own),
            };
            let headers = match door {
                Door::Rest => {
                    vec![
                        ("traceparent", header.as_str()),
                        ("tracestate", "rojo=1,congo=2"),
                        ("baggage", "user=alice"),
                    ]
                }
                _ => vec![("traceparent", header.as_str()), ("tracestate", "other=1")],
            };
            let answer = call(app.http(), door, "up__pay", &fields, &headers).await.expect(200);
            let [server, client] = &collector.trace(&trace, 2).await[..] else { unreachable!() };
            assert!(server.is_server() && client.is_client(), "{server:?} {client:?}");
            assert_eq!((server.parent(), client.parent()), (SPAN.to_owned(), server.id()));
            // The server below goes on from the attempt at it.
            let next = format!("00-{trace}-{}-01", client.id());
            assert_eq!(
                heard(&rig, "pay"),
                [Some(next), some("rojo=1,congo=2"), some("user=alice")]
            );
            conventions(&rig, door, server, client, &answer);
            let around = if door == Door::Rest { vec![] } else { vec![OTHER.to_owned()] };
            assert_eq!((server.links(), client.links()), (around, vec![]));
            assert_eq!(app.entry_of(&answer).await["trace_id"], trace.as_str());
        }
        // Nothing of the other trace but links: it was of the HTTP request alone.
        assert!(collector.spans().iter().all(|got| got.trace() != OTHER));
        app.stop().await;
    }
}

#[track_caller]
fn conventions(rig: &Rig, door: Door, server: &Received, client: &Received, answer: &Answer) {
    let call = rig.calls("pay").pop().unwrap();
    let [host, port] = [rig.host(), rig.port().to_string()];
    let of = |got: &Received, names: &[&str]| -> Vec<Option<String>> {
        names.iter().map(|name| got.get(name)).collect()
    };
    assert_eq!((&*server.span.name, &*client.span.name), ("tools/call up__pay", "tools/call pay"));
    for (got, tool) in [(server, "up__pay"), (client, "pay")] {
        assert_eq!(
            of(got, &["mcp.method.name", "gen_ai.operation.name", "gen_ai.tool.name"]),
            [some("tools/call"), some("execute_tool"), some(tool)]
        );
        assert_eq!(
            of(got, &["network.transport", "network.protocol.name", "error.type"]),
            [some("tcp"), some("http"), None]
        );
        assert_eq!(got.get("network.protocol.version"), some("1.1"));
        assert!(!got.has_failed());
        assert!(got.span.end_time_unix_nano >= got.span.start_time_unix_nano);
        assert_eq!(got.span.trace_state, "rojo=1,congo=2");
        assert_eq!(got.span.flags & 0xff, 1, "sampled");
        // Whether the parent is of another process.
        assert_eq!(got.span.flags & 0x300, if got.is_server() { 0x300 } else { 0x100 });
        assert_eq!(got.scope, "switchyard");
        assert_eq!(got.resource("service.name"), some("switchyard"));
        assert_eq!(got.resource("service.version"), some(env!("CARGO_PKG_VERSION")));
        assert!(got.resource("service.instance.id").is_some());
        assert_eq!(got.get("switchyard.server"), some("up"));
        let said = format!("{:?}", got.span);
        assert!(!said.contains("alice"), "baggage is not recorded: {said}");
        assert!(!said.contains("\"k\"") && !said.contains("structuredContent"), "{said}");
    }
    assert!(client.span.start_time_unix_nano >= server.span.start_time_unix_nano);
    assert!(client.span.end_time_unix_nano <= server.span.end_time_unix_nano);
    let version = match door {
        Door::Legacy => some("2025-11-25"),
        Door::Modern => some(MODERN),
        Door::Rest => None,
    };
    assert_eq!(server.get("mcp.protocol.version"), version);
    let id = if door == Door::Rest { None } else { some("7") };
    assert_eq!(server.get("jsonrpc.request.id"), id);
    assert_eq!(server.get("mcp.session.id").is_some(), door == Door::Legacy);
    assert_eq!(server.get("switchyard.call.id"), Some(answer.id()));
    assert_eq!(server.get("switchyard.outcome"), some("ok"));
    assert_eq!(server.get("client.address"), some("127.0.0.1"));
    assert!(server.get("client.port").is_some_and(|port| port.parse::<u16>().is_ok()));
    assert_eq!((client.get("client.address"), client.get("client.port")), (None, None));
    assert_eq!(client.get("jsonrpc.request.id"), Some(call.body["id"].to_string()));
    assert_eq!(of(client, &["server.address", "server.port"]), [Some(host), Some(port)]);
    assert_eq!(client.get("switchyard.attempt.number"), some("1"));
    assert_eq!(client.get("switchyard.attempt.after"), None);
    let version = if rig.is_modern() { MODERN } else { "2025-11-25" };
    assert_eq!(client.get("mcp.protocol.version"), some(version));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_attempt_is_a_child_that_says_why_it_was_made() {
    let rig = Rig::legacy(&["read"]).await;
    rig.annotate("read", json!({ "readOnlyHint": true }));
    let collector = Collector::start().await;
    let app = app(&rig, &collector, "retry_delay: 100ms, circuit_breaker_threshold: 100").await;
    rig.next("read", &[Fault::Reset, Fault::status(429)]);
    let header = parent(TRACE, "01");
    let answer = call(app.http(), Door::Rest, "up__read", "", &[("traceparent", &header)]).await;
    assert_eq!(answer.expect(200).json()["attempts"], 3);
    let found = collector.trace(TRACE, 4).await;
    let (server, attempts) = found.split_first().unwrap();
    assert!(server.is_server() && !server.has_failed(), "{server:?}");
    assert_eq!(server.get("switchyard.attempts"), some("3"));
    let expected = [
        ("1", None, some("unavailable"), None),
        ("2", some("ambiguous"), some("unavailable"), some("429")),
        ("3", some("refused"), None, None),
    ];
    for (attempt, (number, after, error, status)) in attempts.iter().zip(expected) {
        assert_eq!(attempt.parent(), server.id());
        assert_eq!(attempt.get("switchyard.attempt.number"), some(number));
        assert_eq!(attempt.get("switchyard.attempt.after"), after);
        assert_eq!(attempt.get("error.type"), error, "{attempt:?}");
        assert_eq!(attempt.has_failed(), error.is_some());
        assert_eq!(attempt.get("http.response.status_code"), status);
    }
    // Each request says which attempt it is of.
    let said: Vec<String> = rig
        .calls("read")
        .iter()
        .map(|call| call.headers["traceparent"].to_str().unwrap().to_owned())
        .collect();
    let ids: Vec<String> =
        attempts.iter().map(|got| format!("00-{TRACE}-{}-01", got.id())).collect();
    assert_eq!(said, ids);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_says_so_in_its_span_and_never_with_what_was_said() {
    let rig = Rig::modern(&["no", "bad"]).await;
    rig.set("no", Fault::RpcError(-32099));
    rig.set("bad", Fault::ToolError);
    let collector = Collector::start().await;
    let app = app(&rig, &collector, "").await;
    let trace = |n: usize| format!("{n}bf92f3577b34da6a3ce929d0e0e4736");
    let call = async |n: usize, tool: &str| {
        let meta = meta(&parent(&trace(n), "01"), "", "");
        call(app.http(), Door::Legacy, tool, &meta, &[]).await
    };
    call(1, "up__no").await.expect(200);
    call(2, "up__bad").await.expect(200);
    call(3, "up__hunter2").await.expect(200);
    for (n, count, error, code) in [
        (1, 2, "-32099", some("-32099")),
        (2, 2, "tool_error", None),
        (3, 1, "MCPToolNotFoundError", some("-32602")),
    ] {
        for got in collector.trace(&trace(n), count).await {
            assert!(got.has_failed(), "{got:?}");
            assert_eq!(got.get("error.type"), some(error));
            assert_eq!(got.get("rpc.response.status_code"), code);
            let said = format!("{:?}", got.span);
            assert!(!said.contains("the server says no"), "{said}");
            assert!(!said.contains("hunter2"), "a name that is in no catalogue: {said}");
        }
    }
    let [unknown] = &collector.trace(&trace(3), 1).await[..] else { unreachable!() };
    assert_eq!(unknown.span.name, "tools/call _other");
    // A request that was no call, with what its headers say.
    let header = parent(&trace(4), "01");
    let answer = app
        .http()
        .request(&Method::POST, "/mcp/call")
        .header("traceparent", &header)
        .body("{}")
        .send()
        .await
        .expect(400);
    let [refused] = &collector.trace(&trace(4), 1).await[..] else { unreachable!() };
    assert!(refused.is_server() && refused.has_failed());
    assert_eq!(app.entry(&answer.id()).await["trace_id"], trace(4).as_str());
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_collector_a_trace_goes_on_as_it_came() {
    for rig in [Rig::legacy(&["pay"]).await, Rig::modern(&["pay"]).await] {
        let app = TestApp::start(&rig.yaml("up", "")).await.ready().await;
        let (own, around) = (parent(TRACE, "01"), parent(OTHER, "00"));
        let around = [("traceparent", around.as_str()), ("tracestate", "h=1"), ("baggage", "b=1")];
        for door in [Door::Legacy, Door::Modern] {
            let fields = meta(&own, "m=1", "a=1");
            let answer = call(app.http(), door, "up__pay", &fields, &around).await.expect(200);
            assert_eq!(heard(&rig, "pay"), [some(&own), some("m=1"), some("a=1")]);
            assert_eq!(app.entry_of(&answer).await["trace_id"], TRACE);
            // The rest of `_meta` is as it was.
            if door == Door::Legacy {
                assert_eq!(rig.calls("pay").pop().unwrap().body["params"]["_meta"]["own"], 1);
            }
        }
        let answer = call(app.http(), Door::Rest, "up__pay", "", &around).await.expect(200);
        assert_eq!(heard(&rig, "pay"), [some(around[0].1), some("h=1"), some("b=1")]);
        assert_eq!(app.entry_of(&answer).await["trace_id"], OTHER);
        // Nothing said, nothing passed on.
        let answer = call(app.http(), Door::Modern, "up__pay", "", &[]).await.expect(200);
        assert_eq!(heard(&rig, "pay"), [None, None, None]);
        assert_eq!(app.entry_of(&answer).await["trace_id"], Value::Null);
        assert_eq!(spans(&app, "exported").await, 0.0);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_context_is_dropped() {
    let rig = Rig::legacy(&["pay"]).await;
    let (zero, upper) = (parent(&"0".repeat(32), "01"), parent(&TRACE.to_uppercase(), "01"));
    let later = format!("{}-more", parent(TRACE, "01"));
    let bad = [zero.as_str(), &upper, &later, "nonsense", ""];
    let app = TestApp::start(&rig.yaml("up", "")).await.ready().await;
    for parent in bad {
        for (door, fields, headers) in [
            (Door::Legacy, meta(parent, "m=1", "a=1"), vec![]),
            (
                Door::Rest,
                String::new(),
                vec![("traceparent", parent), ("tracestate", "m=1"), ("baggage", "a=1")],
            ),
        ] {
            let answer = call(app.http(), door, "up__pay", &fields, &headers).await.expect(200);
            assert_eq!(heard(&rig, "pay"), [None, None, some("a=1")], "{parent}");
            assert_eq!(app.entry_of(&answer).await["trace_id"], Value::Null);
        }
    }
    // What is no text is no context either, and no reason to refuse the call.
    let fields = r#","traceparent":{"a":1},"tracestate":7,"baggage":["x"]"#;
    call(app.http(), Door::Modern, "up__pay", fields, &[]).await.expect(200);
    assert_eq!(heard(&rig, "pay"), [None, None, None]);
    app.stop().await;
    // Where spans are recorded, a new trace begins.
    let collector = Collector::start().await;
    let app = self::app(&rig, &collector, "").await;
    call(app.http(), Door::Legacy, "up__pay", &meta(&zero, "m=1", ""), &[]).await.expect(200);
    let [Some(next), None, None] = heard(&rig, "pay") else { panic!("{:?}", heard(&rig, "pay")) };
    let trace = next[3..35].to_owned();
    let [server, client] = &collector.trace(&trace, 2).await[..] else { unreachable!() };
    assert_eq!((server.parent(), client.parent()), (String::new(), server.id()));
    assert_eq!(next, format!("00-{trace}-{}-03", client.id()), "sampled, with a random id");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_version_is_passed_on_as_the_one_we_know() {
    let rig = Rig::modern(&["pay"]).await;
    let app = TestApp::start(&rig.yaml("up", "")).await.ready().await;
    let later = format!("cc-{TRACE}-{SPAN}-f1-what-the-future-will-be-like");
    call(app.http(), Door::Modern, "up__pay", &meta(&later, "", ""), &[]).await.expect(200);
    assert_eq!(heard(&rig, "pay"), [some(&parent(TRACE, "01")), None, None]);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sampled_is_not_exported() {
    let rig = Rig::legacy(&["pay"]).await;
    let collector = Collector::start().await;
    let yaml = format!("{}otlp_sample: 0\n{}", collector.yaml(), rig.yaml("up", ""));
    let app = TestApp::start(&yaml).await.ready().await;
    // The caller does not record it: it goes on as it came.
    let theirs = parent(TRACE, "00");
    let fields = meta(&theirs, "m=1", "a=1");
    let answer = call(app.http(), Door::Legacy, "up__pay", &fields, &[]).await.expect(200);
    assert_eq!(heard(&rig, "pay"), [some(&theirs), some("m=1"), some("a=1")]);
    assert_eq!(app.entry_of(&answer).await["trace_id"], TRACE, "the caller has a context");
    // A trace that begins here and is not taken: the servers behind hear of that.
    let answer = call(app.http(), Door::Legacy, "up__pay", "", &[]).await.expect(200);
    let [Some(next), None, None] = heard(&rig, "pay") else { panic!("{:?}", heard(&rig, "pay")) };
    assert!(next.ends_with("-02") && !next.contains(TRACE), "{next}");
    assert_eq!(app.entry_of(&answer).await["trace_id"], Value::Null, "there is no such span");
    // The share is of traces that begin here only.
    let fields = meta(&parent(OTHER, "01"), "", "");
    call(app.http(), Door::Legacy, "up__pay", &fields, &[]).await.expect(200);
    collector.trace(OTHER, 2).await;
    app.stop().await;
    assert_eq!(collector.spans().len(), 2, "{:?}", collector.spans());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_process_hears_of_the_trace_in_meta() {
    let stage = Stage::start(Role::Stdio).await;
    let collector = Collector::start().await;
    let yaml = format!("{}mcp_servers:\n{}", collector.yaml(), stage.entry("up", ""));
    let app = TestApp::start(&yaml).await.ready().await;
    let arguments = play("one", &[]).to_string();
    let body = format!(r#"{{"tool_name":"up__play","arguments":{arguments}}}"#);
    let header = parent(TRACE, "01");
    let call = app.http().request(&Method::POST, "/mcp/call").header("traceparent", &header);
    call.header("baggage", "a=1").body(body).send().await.expect(200);
    let [_server, client] = &collector.trace(TRACE, 2).await[..] else { unreachable!() };
    let meta = &stage.call("one").await.body["params"]["_meta"];
    assert_eq!(meta["traceparent"], format!("00-{TRACE}-{}-01", client.id()));
    assert_eq!(meta["baggage"], "a=1");
    assert_eq!(client.get("network.transport"), some("pipe"));
    assert_eq!((client.get("server.address"), client.get("network.protocol.name")), (None, None));
    app.stop().await;
}

/// Through the program, so that its log and its end are those of an operator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_are_sent_and_are_in_no_log() {
    const SECRET: &str = "s3cr3t-of-the-collector";
    let rig = Rig::legacy(&["pay"]).await;
    let collector = Collector::start().await;
    collector.set(Verdict::Status(401));
    let yaml = format!(
        "{}otlp_headers: {{authorization: \"Bearer {SECRET}\", x-tenant: blue}}\n{}",
        collector.yaml(),
        rig.yaml("up", "")
    );
    let router = Router::start(&yaml).await;
    eventually(SOON, "the server is up", || async {
        (router.http.server("up").await?["state"] == "up").then_some(())
    })
    .await;
    let failed = || total(&router.http, "switchyard_trace_spans_total", &["result=\"failed\""]);
    for n in 1..=3_u32 {
        call(&router.http, Door::Rest, "up__pay", "", &[]).await.expect(200);
        let wanted = f64::from(2 * n);
        eventually(SOON, "the spans failed", || async { (failed().await >= wanted).then_some(()) })
            .await;
    }
    let said = |log: &str, what: &str| log.lines().filter(|line| line.contains(what)).count();
    let log = router.log();
    assert_eq!(said(&log, "do not arrive"), 1, "once for each change: {log}");
    assert!(log.contains("401"), "{log}");
    // Half of a batch is refused in words that a terminal would act upon.
    collector.set(Verdict::Refuse(1));
    call(&router.http, Door::Rest, "up__pay", "", &[]).await.expect(200);
    eventually(SOON, "one failed", || async { (failed().await >= 7.0).then_some(()) }).await;
    collector.set(Verdict::Take);
    call(&router.http, Door::Rest, "up__pay", "", &[]).await.expect(200);
    eventually(SOON, "they arrive", || async {
        (said(&router.log(), "arrive at") >= 2).then_some(())
    })
    .await;
    let log = router.log();
    assert_eq!((said(&log, "do not arrive"), said(&log, "again")), (1, 1), "{log}");
    let headers = collector.requests().pop().unwrap();
    assert_eq!(headers["authorization"], format!("Bearer {SECRET}"));
    assert_eq!(headers["x-tenant"], "blue");
    assert!(!log.contains(SECRET), "{log}");
    let exported = total(&router.http, "switchyard_trace_spans_total", &["result=\"exported\""]);
    assert_eq!(exported.await, 3.0);
    let (code, folder) = router.stop().await;
    let log = std::fs::read_to_string(folder.path().join("stderr.log")).unwrap();
    assert_eq!(code, 0, "{log}");
    assert!(!log.contains(SECRET), "{log}");
}

/// What is recorded right before the end is not lost, and a collector that says nothing does not hold
/// the end up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_spans_are_sent_at_the_end() {
    let rig = Rig::legacy(&["pay"]).await;
    let collector = Collector::start().await;
    let app = app(&rig, &collector, "").await;
    for _ in 0..20 {
        call(app.http(), Door::Rest, "up__pay", "", &[]).await.expect(200);
    }
    app.stop().await;
    assert_eq!(collector.spans().len(), 40);
    collector.set(Verdict::Hang);
    let app = self::app(&rig, &collector, "").await;
    call(app.http(), Door::Rest, "up__pay", "", &[]).await.expect(200);
    let began = Instant::now();
    app.stop().await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// The fastest of several rounds of calls.
async fn fastest(app: &TestApp, calls: usize) -> Duration {
    let mut best = Duration::MAX;
    let mut line = app.http().line().await;
    for _ in 0..5 {
        let began = Instant::now();
        for _ in 0..calls {
            let body = r#"{"tool_name":"up__pay","arguments":{"key":"k"}}"#;
            let request = app.http().request(&Method::POST, "/mcp/call").body(body);
            assert_eq!(line.send(request).await.status, 200);
        }
        best = best.min(began.elapsed());
    }
    best
}

/// Whether nobody listens or nobody answers: calls go on as without, and what waits is bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    let rig = Rig::legacy(&["pay"]).await;
    let base = TestApp::start(&rig.yaml("up", "")).await.ready().await;
    for away in [refusing().await, hanging().await] {
        let yaml = format!("otlp_endpoint: http://{away}\n{}", rig.yaml("up", ""));
        let app = TestApp::start(&yaml).await.ready().await;
        // In turns, so that a busy moment of the machine is in both.
        let (mut without, mut with) = (Duration::MAX, Duration::MAX);
        for _ in 0..3 {
            without = without.min(fastest(&base, 40).await);
            with = with.min(fastest(&app, 40).await);
        }
        assert!(with < without * 3, "{with:?} with a collector at {away}, {without:?} without");
        let calls = figure(2600, 20_000);
        let mut line = app.http().line().await;
        for _ in 0..calls {
            let body = r#"{"tool_name":"up__pay","arguments":{"key":"k"}}"#;
            let request = app.http().request(&Method::POST, "/mcp/call").body(body);
            assert_eq!(line.send(request).await.status, 200);
        }
        let dropped = spans(&app, "dropped").await;
        // Two for each call: what neither fits the queue nor the batch under way is counted.
        let made = (2 * (calls + 3 * 5 * 40)) as f64;
        let given_up = spans(&app, "failed").await;
        let most = made - 4096.0 - 512.0 - given_up;
        assert!(dropped >= most && dropped > 0.0, "{dropped} of {made}, {given_up} given up");
        assert_eq!(spans(&app, "exported").await, 0.0);
        app.stop().await;
    }
    base.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_finds_the_calls_of_a_trace() {
    let rig = Rig::legacy(&["pay"]).await;
    let router = Router::start(&rig.yaml("up", "")).await;
    eventually(SOON, "the server is up", || async {
        (router.http.server("up").await?["state"] == "up").then_some(())
    })
    .await;
    let header = parent(TRACE, "00");
    let mut ids = Vec::new();
    for tool in ["up__pay", "up__pay", "up__unknown"] {
        let answer = call(&router.http, Door::Rest, tool, "", &[("traceparent", &header)]).await;
        ids.push(answer.id());
        call(&router.http, Door::Rest, tool, "", &[]).await;
    }
    let found = async |query: &str| -> Vec<String> {
        let answer = router.http.get(&format!("/mcp/audit?{query}")).await.expect(200).json();
        let calls = answer["calls"].as_array().unwrap().iter().rev();
        calls.map(|call| call["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(found(&format!("trace={TRACE}")).await, ids);
    assert_eq!(found(&format!("trace={}", TRACE.to_uppercase())).await, ids);
    assert_eq!(found(&format!("trace={TRACE}&tool=up__pay")).await, ids[..2]);
    assert!(found(&format!("trace={OTHER}")).await.is_empty());
    // Also when the index has them.
    eventually(Duration::from_secs(20), "the index has them", || async {
        let state = router.http.get("/mcp/audit?limit=1").await.json();
        (state["index"]["behind"] == 0).then_some(())
    })
    .await;
    assert_eq!(found(&format!("trace={TRACE}")).await, ids);
    assert_eq!(found(&format!("trace={TRACE}&outcome=refused")).await, ids[2..]);
    assert_eq!(found(&format!("trace={TRACE}&text=nowhere")).await.len(), 0);
    assert_eq!(found(&format!("trace={TRACE}&text=unknown")).await, ids[2..]);
    for wrong in ["", "x", "00000000000000000000000000000000", &TRACE[1..]] {
        let refused = router.http.get(&format!("/mcp/audit?trace={wrong}")).await;
        assert_eq!(refused.status, 400, "{wrong}");
    }
    let list = router.run(&["audit", "list", "--trace", TRACE, "--ids"]).await.expect(0).out;
    assert_eq!(list.lines().count(), 4, "{list}");
    assert!(ids.iter().all(|id| list.contains(id.as_str())), "{list}");
    let shown = router.run(&["audit", "show", &ids[0]]).await.expect(0).out;
    assert!(shown.contains("trace_id") && shown.contains(TRACE), "{shown}");
    let export = router.run(&["audit", "export", "--trace", TRACE]).await.expect(0).out;
    assert_eq!(export.matches(&format!(r#""trace_id":"{TRACE}""#)).count(), 3, "{export}");
    let csv = router.run(&["audit", "export", "--format", "csv", "--trace", TRACE]).await.expect(0);
    assert!(csv.out.lines().next().unwrap().contains(",trace_id,"), "{}", csv.out);
    assert_eq!(csv.out.matches(TRACE).count(), 3);
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    let verified = switchyard(folder.path(), &["--data-dir", "data", "audit", "verify"]).await;
    assert_eq!(verified.code, 0, "{} {}", verified.out, verified.err);
}

type Asked = Arc<Mutex<Vec<(HeaderMap, Value)>>>;

/// A server of the legacy era with a tool and a prompt, and what it is asked of the prompt.
async fn prompter() -> (SocketAddr, Asked) {
    let asked = Asked::default();
    let kept = Arc::clone(&asked);
    let answer = move |headers: HeaderMap, body: String| {
        let kept = Arc::clone(&kept);
        async move {
            let request: Value = serde_json::from_str(&body).unwrap();
            if request["id"].is_null() {
                return StatusCode::ACCEPTED.into_response();
            }
            let result = match request["method"].as_str().unwrap() {
                "initialize" => json!({
                    "protocolVersion": LEGACY, "capabilities": { "tools": {}, "prompts": {} },
                    "serverInfo": { "name": "prompter", "version": "1" },
                }),
                "tools/list" => {
                    json!({ "tools": [{ "name": "t", "inputSchema": { "type": "object" } }] })
                }
                "prompts/list" => json!({ "prompts": [{ "name": "greet" }] }),
                "prompts/get" => {
                    kept.lock().push((headers, request.clone()));
                    json!({ "messages": [] })
                }
                _ => Value::Null,
            };
            let (member, value) = match result {
                Value::Null => ("error", json!({ "code": -32601, "message": "no such method" })),
                result => ("result", result),
            };
            let answer = json!({ "jsonrpc": "2.0", "id": request["id"], member: value });
            ([("content-type", "application/json")], answer.to_string()).into_response()
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().route("/mcp", axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_an_operation_too() {
    let (address, asked) = prompter().await;
    let collector = Collector::start().await;
    let yaml =
        format!("{}mcp_servers:\n  up: {{url: \"http://{address}/mcp\"}}\n", collector.yaml());
    let app = TestApp::start(&yaml).await.ready().await;
    let client = Legacy::connect(app.http()).await;
    eventually(SOON, "the prompt is listed", || async {
        let listed = client.request("prompts/list", "{}").await.json();
        (listed["result"]["prompts"][0]["name"] == "up__greet").then_some(())
    })
    .await;
    let own = parent(TRACE, "01");
    let params =
        format!(r#"{{"name":"up__greet","_meta":{{"own":1{}}}}}"#, meta(&own, "m=1", "a=1"));
    let answer = client.request("prompts/get", &params).await.expect(200).json();
    assert!(answer["result"]["messages"].is_array(), "{answer}");
    let [server, attempt] = &collector.trace(TRACE, 2).await[..] else { unreachable!() };
    assert!(server.is_server() && attempt.is_client());
    assert_eq!((server.parent(), attempt.parent()), (SPAN.to_owned(), server.id()));
    for (got, prompt) in [(server, "up__greet"), (attempt, "greet")] {
        assert_eq!(got.span.name, format!("prompts/get {prompt}"));
        assert_eq!(got.get("mcp.method.name"), some("prompts/get"));
        assert_eq!(got.get("gen_ai.prompt.name"), some(prompt));
        assert_eq!((got.get("gen_ai.operation.name"), got.get("error.type")), (None, None));
    }
    let (headers, body) = asked.lock().pop().unwrap();
    let next = format!("00-{TRACE}-{}-01", attempt.id());
    for (name, value) in [("traceparent", next.as_str()), ("tracestate", "m=1"), ("baggage", "a=1")]
    {
        assert_eq!(headers[name], value);
        assert_eq!(body["params"]["_meta"][name], value, "{body}");
    }
    assert_eq!(attempt.get("jsonrpc.request.id"), Some(body["id"].to_string()));
    app.stop().await;
}
