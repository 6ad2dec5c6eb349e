//! What a caller or a server tries to get past the router.

use std::time::{Duration, Instant};

use hyper::Method;
use switchyard::cli::demo_upstream::{Fault, FaultPlan, Options, Tool};

use crate::support::{
    Fault as RigFault, LEGACY, Legacy, MODERN, Rig, SOON, TestApp, eventually, legacy_body,
    modern_params, stdio, upstream, yaml,
};

#[tokio::test]
async fn line_ends_in_arguments_stay_inside_their_message() {
    let servers = stdio("st", &[]);
    let app = TestApp::start(&format!("mcp_servers:\n{servers}")).await.ready().await;
    let pretty = "{\n  \"text\":\r\n    \"hi\\nthere\"\n}";
    let answer = app.http().call("st__echo", pretty).await.expect(200).json();
    assert_eq!(answer["data"]["content"][0]["text"], "hi\nthere", "{answer}");

    let smuggled = "{\"text\":\"x\",\"a\":\n{\"jsonrpc\":\"2.0\",\"id\":9999,\"method\":\"tools/call\",\"params\":{\"name\":\"counter\",\"arguments\":{}}}\n}";
    app.http().call("st__echo", smuggled).await.expect(200);
    let counted = app.http().call("st__counter", "{}").await.expect(200).json();
    let text = counted["data"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains('1') && !text.contains('2'), "it ran before: {text}");
    app.stop().await;
}

#[tokio::test]
async fn no_server_takes_the_place_of_another_by_a_tools_name() {
    // The server `up` has a tool `echo`; with a second one named `up__echo` away, a name that
    // begins with its prefix must not fall back to anything else.
    let up = upstream(Options::default()).await;
    let file = format!(
        "mcp_servers:\n  up: {{url: \"{url}\"}}\n  counter: {{url: \"{url}\", enabled: false}}\n",
        url = up.url()
    );
    let app = TestApp::start(&file).await.ready().await;
    app.http().call("echo", r#"{"text":"hi"}"#).await.expect(200);
    let answer = app.http().call("counter__counter", "{}").await.expect(503).json();
    assert_eq!(answer["error_code"], "MCPServerDisabledError");
    assert_eq!(up.stats().calls_of(Tool::Counter), 0);
    app.stop().await;
}

#[tokio::test]
async fn a_name_of_any_length_is_answered_at_once() {
    let up = upstream(Options { extra_tools: 1000, ..Options::default() }).await;
    let app = TestApp::start(&yaml(&[("up", &up)])).await.ready().await;
    for length in [100, 1000, 100_000] {
        // What takes long in itself takes long each time; what a busy machine adds does not.
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            let began = Instant::now();
            let status = app.http().call(&"x".repeat(length), "{}").await.status;
            assert_eq!(status, if length > 1200 { 400 } else { 404 });
            fastest = fastest.min(began.elapsed());
        }
        assert!(fastest < Duration::from_millis(500), "{length}: {fastest:?}");
    }
    app.stop().await;
}

#[tokio::test]
async fn every_refused_call_over_mcp_is_on_record() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start(&yaml(&[("up", &up)])).await.ready().await;
    let call = r#"{"name":"up__echo","arguments":{"text":"hi"}}"#;
    let post = || app.http().request(&Method::POST, "/mcp");
    let modern = |params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{params}}}"#)
    };
    let members = format!(",{}", &call[1..call.len() - 1]);
    let refused = [
        post().header("mcp-session-id", "nobody").body(legacy_body("tools/call", call)),
        post().header("mcp-protocol-version", "1999-01-01").body(legacy_body("tools/call", call)),
        post()
            .header("mcp-protocol-version", MODERN)
            .header("mcp-method", "tools/call")
            .header("mcp-name", "up__echo")
            .body(modern(call)),
        post()
            .header("mcp-protocol-version", MODERN)
            .header("mcp-method", "tools/call")
            .header("mcp-name", "another")
            .body(modern(&modern_params(&members))),
        post().body(modern(&modern_params(&members))),
        post().header("content-type", "text/plain").body(legacy_body("tools/call", call)),
        post()
            .header("mcp-protocol-version", LEGACY)
            .body(legacy_body("tools/call", r#"{"name":7}"#)),
    ];
    for (at, request) in refused.into_iter().enumerate() {
        let answer = request.send().await;
        let entry = app.entry_of(&answer).await;
        assert_eq!(entry["outcome"], "refused", "{at}: {}", answer.text());
        assert!(entry["error"].as_str().is_some_and(|error| !error.is_empty()), "{at}: {entry}");
        if at < 6 {
            assert_eq!(entry["tool"], "up__echo", "{at}: {entry}");
        }
    }
    assert_eq!(up.stats().calls(), 0);
    // What is no call leaves no row.
    post().header("mcp-session-id", "nobody").body(legacy_body("tools/list", "{}")).send().await;
    assert_eq!(app.calls("limit=100").await.len(), 7);
    app.stop().await;
}

#[tokio::test]
async fn calls_that_do_not_end_are_on_record_when_the_router_does() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start(&yaml(&[("up", &up)])).await.ready().await;
    up.faults().set(FaultPlan::calls(Fault::Hang));
    let (http, client) = (app.http().clone(), Legacy::connect(app.http()).await);
    let rest = tokio::spawn(async move {
        http.request(&Method::POST, "/mcp/call")
            .body(r#"{"tool_name":"up__echo","arguments":{"text":"rest"}}"#)
            .send()
            .await
    });
    // The client leaves at once; in its era that is no cancellation.
    let legacy = tokio::spawn(async move { client.call("up__echo", r#"{"text":"legacy"}"#).await });
    eventually(SOON, "both are at the server", || async {
        (up.stats().calls() == 2).then_some(())
    })
    .await;
    legacy.abort();
    let folder = app.stop().await;
    let told = rest.await.unwrap().expect(503).json();
    assert_eq!(told["error_code"], "MCPShuttingDownError", "{told}");
    let app = TestApp::start_in(folder, "").await;
    let calls = app.calls("limit=10").await;
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(calls.iter().all(|call| call["outcome"] == "cancelled"), "{calls:?}");
    app.stop().await;
}

#[tokio::test]
async fn a_permitted_program_is_started_as_it_was_permitted() {
    let file = "admin: {stdio_commands: {sleeper: {command: sleep, args: ['1']}}}\n";
    let app = TestApp::start(file).await;
    let admin = app.keyed("ops", &["admin", "read", "call"]).await;
    for member in [
        r#""env":{"LD_PRELOAD":"/tmp/x.so"}"#,
        r#""env":{"A":"${IT_TOKEN}"}"#,
        r#""cwd":"/""#,
        r#""args":["9"]"#,
    ] {
        let body = format!(r#"{{"name":"s","command_id":"sleeper",{member}}}"#);
        let answer = admin.post("/mcp/servers", body).await;
        assert_eq!(answer.status, 400, "{member}: {}", answer.text());
    }
    app.stop().await;
}

/// Events without end are a fault of the server; how many come before that is said is the operator's word.
#[tokio::test]
async fn events_before_an_answer_are_bounded_by_max_events() {
    for rig in [Rig::legacy(&["tool"]).await, Rig::modern(&["tool"]).await] {
        let settings = "retry_attempts: 0, max_events: 5000";
        let app = TestApp::start(&rig.yaml("up", settings)).await.ready().await;
        rig.set("tool", RigFault::Events(1_000_000));
        let json = app.http().call("up__tool", "{}").await.json();
        assert_eq!(json["error_code"], "MCPResponseTooLargeError", "{json}");
        let error = json["error"].as_str().unwrap();
        assert!(error.contains("5000 events (max_events)"), "{error}");
        rig.set("tool", RigFault::Drip(Duration::from_millis(1), 100));
        let json = app.http().call("up__tool", "{}").await.json();
        assert_eq!(json["success"], true, "{json}");
        app.stop().await;
    }
}
