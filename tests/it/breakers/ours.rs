//! What says nothing of a server, because the router or its callers did it; and what does, and where.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use super::{DEFAULTS, history, shown, steps};
use crate::support::{Fault, Legacy, PROGRAM, Rig, SOON, TestApp, eventually, total};

/// One failure opens a breaker.
const FRAGILE: &str = "retry_mode: off, circuit_breaker_threshold: 1, circuit_breaker_timeout: 5m";

async fn inflight(app: &TestApp, calls: f64) {
    eventually(SOON, "the call is under way", || async {
        let now = total(&app.socket(), "switchyard_upstream_inflight", &["server=\"up\""]).await;
        (now == calls).then_some(())
    })
    .await;
}

#[track_caller]
fn untouched(view: &Value) {
    let seen = (&view["state"], &view["failures"], &view["last_error"]);
    assert_eq!(seen, (&"closed".into(), &0.into(), &Value::Null), "{view}");
}

/// A connection that ends because its client's session did, or because an operator wanted another,
/// takes calls with it; the server did nothing wrong.
#[tokio::test]
async fn what_the_router_closes_says_nothing_of_the_server() {
    for sessions in ["isolated", "shared"] {
        let yaml = format!(
            "mcp_servers:\n  up: {{command: {PROGRAM}, args: [demo-upstream, stdio], {FRAGILE}, sessions: {sessions}}}\n"
        );
        let app = TestApp::start(&yaml).await.ready().await;
        let client = Legacy::connect(app.http()).await;
        let (http, session) = (client.http.clone(), client.session.clone());
        let call =
            tokio::spawn(async move { client.call("up__sleep", r#"{"ms":90000}"#).await.json() });
        inflight(&app, 1.0).await;
        let since = Instant::now();
        if sessions == "isolated" {
            let request = http.request(&Method::DELETE, "/mcp");
            request.header("mcp-session-id", &session).send().await.expect(204);
        } else {
            app.socket().post("/mcp/servers/up/reconnect", "").await.expect(200);
        }
        let answer = call.await.unwrap();
        assert!(since.elapsed() < Duration::from_secs(20), "{sessions}: {answer}");
        assert!(answer["error"].is_object(), "{sessions}: {answer}");
        untouched(&shown(app.http(), "up").await);
        let listed = app.http().server("up").await.unwrap();
        assert_eq!(listed["state"], "up", "{sessions}: {listed}");
        let answer = app.http().call("up__echo", r#"{"text":"hi"}"#).await.json();
        assert_eq!(answer["success"], true, "{answer}");
        app.stop().await;
    }
}

/// What a call comes to that is still at the old address does not count against the new.
#[tokio::test]
async fn a_call_at_the_old_address_decides_nothing_for_the_new_one() {
    let [old, new] = [Rig::legacy(&["read"]).await, Rig::legacy(&["read"]).await];
    let app = TestApp::start(DEFAULTS).await.ready().await;
    let socket = app.socket();
    let body = |rig: &Rig| {
        let members = json!({
            "name": "up", "url": rig.url(), "circuit_breaker_threshold": 1, "timeout": "4s",
        });
        members.to_string()
    };
    socket.post("/mcp/servers", body(&old)).await.expect(201);
    old.set("read", Fault::HangBeforeHeaders);
    let (http, since) = (app.http().clone(), Instant::now());
    let call = tokio::spawn(async move { http.call("up__read", "{}").await.json() });
    old.call("read", since).await;
    socket.put("/mcp/servers/up", body(&new)).await.expect(200);
    let answer = call.await.unwrap();
    assert_eq!(answer["reason"], "timeout", "{answer}");
    untouched(&shown(app.http(), "up").await);
    assert_eq!(history(app.http(), "history").await, Vec::<Value>::new());
    let answer = app.http().call("up__read", "{}").await.json();
    assert_eq!(answer["success"], true, "{answer}");
    assert_eq!(new.counts("read").requests, 1);
    app.stop().await;
}

/// A call that waits for its next attempt goes where its server is then, and nowhere when it is gone.
#[tokio::test]
async fn a_retry_goes_where_the_server_is_now() {
    let [old, new] = [Rig::legacy(&["read"]).await, Rig::legacy(&["read"]).await];
    let app =
        TestApp::start("defaults: {retry_delay: 4s, retry_max_delay: 4s}\n").await.ready().await;
    let socket = app.socket();
    let body = |rig: &Rig| json!({ "name": "up", "url": rig.url() }).to_string();
    socket.post("/mcp/servers", body(&old)).await.expect(201);
    for there in [true, false] {
        old.set("read", Fault::status(429));
        new.set("read", Fault::status(429));
        let (http, since) = (app.http().clone(), Instant::now());
        let call = tokio::spawn(async move { http.call("up__read", "{}").await.json() });
        let now = if there { &old } else { &new };
        now.call("read", since).await;
        inflight(&app, 0.0).await;
        if there {
            new.set("read", Fault::None);
            socket.put("/mcp/servers/up", body(&new)).await.expect(200);
        } else {
            socket.post("/mcp/servers/up/disable", "").await.expect(200);
        }
        let answer = call.await.unwrap();
        assert_eq!(answer["success"], there, "{answer}");
        assert_eq!(answer["attempts"], if there { 2 } else { 1 }, "{answer}");
    }
    assert_eq!((old.counts("read").requests, new.counts("read").requests), (1, 2));
    let suppressed = r#"switchyard_retries_suppressed_total{server="up",why="changed"}"#;
    assert_eq!(app.metric(suppressed).await, Some(1.0));
    app.stop().await;
}

/// A server that was given another address while no router ran begins closed, and stays so.
#[tokio::test]
async fn a_server_changed_while_no_router_ran_begins_closed_for_good() {
    let [old, new] = [Rig::legacy(&["read"]).await, Rig::legacy(&["read"]).await];
    old.set("read", Fault::status(500));
    let app = TestApp::start(&old.yaml("up", FRAGILE)).await.ready().await;
    app.http().call("up__read", "{}").await;
    assert_eq!(shown(app.http(), "up").await["state"], "open");
    let mut folder = app.stop().await;
    for _ in 0..2 {
        let app = TestApp::start_in(folder, &new.yaml("up", FRAGILE)).await.ready().await;
        untouched(&shown(app.http(), "up").await);
        let past = steps(&history(app.http(), "history").await);
        assert_eq!(past, ["closed open failures", "open closed changed"]);
        folder = app.stop().await;
    }
}

/// The texts of failures are kept and shown for long: they hold no credentials.
#[tokio::test]
async fn a_failure_is_kept_without_what_looks_like_a_credential() {
    const BODY: &str = "no such token: ghp_abcdefghijklmnopqrstuvwxyz0123456789";
    let rig = Rig::legacy(&["read"]).await;
    let headers = String::new();
    rig.set("read", Fault::Status { code: 500, body: BODY, headers, executes: true });
    let app = TestApp::start(&rig.yaml("up", FRAGILE)).await.ready().await;
    app.http().call("up__read", "{}").await;
    let view = shown(app.http(), "up").await;
    assert!(view["last_error"].as_str().unwrap().contains("no such token: ***"), "{view}");
    assert!(!view.to_string().contains("ghp_"), "{view}");
    let past = history(app.http(), "history").await;
    assert!(past[0]["error"].as_str().unwrap().contains("***"), "{past:?}");
    app.stop().await;
}

/// Where tools have breakers of their own, the server's is decided by the server's being there: a
/// tool that hangs does not keep the others waiting.
#[tokio::test]
async fn a_tool_that_hangs_does_not_hold_up_the_servers_probe() {
    for rig in [Rig::legacy(&["hang", "read"]).await, Rig::modern(&["hang", "read"]).await] {
        let settings = "retry_mode: off, circuit_breaker_threshold: 1, circuit_breaker_timeout: 300ms, \
             breaker_scope: tool, timeout: 60s";
        let app = TestApp::start(&rig.yaml("up", settings)).await.ready().await;
        rig.set("hang", Fault::HangBeforeHeaders);
        rig.down();
        app.http().call("up__read", "{}").await;
        assert_eq!(shown(app.http(), "up").await["state"], "open");
        rig.up();
        eventually(SOON, "the open time is over", || async {
            shown(app.http(), "up").await["open_until"].is_null().then_some(())
        })
        .await;
        let (http, since) = (app.http().clone(), Instant::now());
        let hanging = tokio::spawn(async move { http.call("up__hang", "{}").await });
        rig.call("hang", since).await;
        let answer = app.http().call("up__read", "{}").await.json();
        assert_eq!(answer["success"], true, "{answer}");
        assert_eq!(shown(app.http(), "up").await["state"], "closed");
        hanging.abort();
        app.stop().await;
    }
}

/// A probe at a server with a session for each client is a try of its own, however lately that
/// client's connection failed.
#[tokio::test]
async fn a_probe_of_an_isolated_session_is_a_try_of_its_own() {
    let rig = Rig::legacy(&["read"]).await;
    let settings = "retry_mode: off, circuit_breaker_threshold: 3, circuit_breaker_timeout: 100ms, \
         sessions: isolated";
    let app = TestApp::start(&rig.yaml("up", settings)).await.ready().await;
    let client = Legacy::connect(app.http()).await;
    let answer = client.call("up__read", "{}").await.json();
    assert!(answer["result"].is_object(), "{answer}");
    rig.down();
    eventually(SOON, "the breaker opens", || async {
        client.call("up__read", "{}").await;
        (shown(app.http(), "up").await["trips"] != 0).then_some(())
    })
    .await;
    // The waits of the pools grow to two seconds; the probe does not wait for them.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(120)).await;
        client.call("up__read", "{}").await;
    }
    rig.up();
    tokio::time::sleep(Duration::from_millis(120)).await;
    let answer = client.call("up__read", "{}").await.json();
    assert!(answer["result"].is_object(), "{answer}");
    assert_eq!(shown(app.http(), "up").await["state"], "closed");
    app.stop().await;
}
