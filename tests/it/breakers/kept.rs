//! What of a breaker survives: restarts of the router, and what becomes of its server.

use serde_json::Value;
use switchyard::cli::demo_upstream::{Fault, FaultPlan, Options, Upstream};

use super::{
    DEFAULTS, HI, broken, command, fail_thrice, history, millis, ready, shown, steps, with,
};
use crate::support::{Http, Router, SOON, TestApp, eventually, upstream};

/// One server opened by failures, one held open by `ops`, one held closed for an hour.
async fn three_states(http: &Http, ops: &Http) -> [Value; 3] {
    fail_thrice(http, "failed__echo").await;
    let body = r#"{"reason":"broken by design"}"#;
    command(ops, "held", "open", body).await.expect(200);
    let body = r#"{"reason":"its errors are harmless","duration":3600}"#;
    command(ops, "free", "close", body).await.expect(200);
    [shown(http, "failed").await, shown(http, "held").await, shown(http, "free").await]
}

async fn stand_as_they_stood(http: &Http, before: &[Value; 3], calls: &dyn Fn() -> u64) {
    let sent = calls();
    for then in before {
        let name = then["server"].as_str().unwrap();
        let view = shown(http, name).await;
        for key in ["state", "failures", "trips", "reason", "last_error", "last_transitions"] {
            assert_eq!(view[key], then[key], "{name} {key}: {view}");
        }
        for key in ["by", "note"] {
            assert_eq!(view["forced"][key], then["forced"][key], "{name}: {view}");
        }
        let until = |view: &Value| match &view["forced"] {
            Value::Null => view["open_until"].clone(),
            forced => forced["until"].clone(),
        };
        match (until(then), until(&view)) {
            (Value::Null, after) => assert_eq!(after, Value::Null, "{view}"),
            (before, after) => {
                assert!((millis(&before) - millis(&after)).abs() <= 100, "{before} {after}");
            }
        }
    }
    http.call("failed__echo", HI).await.expect(503);
    let refused = http.call("held__echo", HI).await.expect(503).json();
    assert!(refused["error"].as_str().unwrap().contains("(broken by design)"), "{refused}");
    assert_eq!(refused.get("retry_after_ms"), None, "nobody knows when");
    assert_eq!(calls(), sent, "nothing was sent");
}

#[tokio::test]
async fn breakers_and_who_forced_them_survive_a_restart() {
    let [failed, held, free] = [broken().await, broken().await, broken().await];
    let yaml = with(&[("failed", &failed), ("held", &held), ("free", &free)], "");
    let app = TestApp::start(&yaml).await.ready().await;
    let ops = app.keyed("ops", &["admin"]).await;
    let before = three_states(app.http(), &ops).await;
    assert_eq!(before[1]["forced"]["by"], "ops");
    let past = history(app.http(), "history").await;
    assert_eq!(past.len(), 3);
    let app = TestApp::start_in(app.stop().await, &yaml).await.ready().await;
    let calls = || failed.stats().calls() + held.stats().calls() + free.stats().calls();
    stand_as_they_stood(app.http(), &before, &calls).await;
    assert_eq!(history(app.http(), "history").await, past, "a restart is no transition");
    let opened = r#"switchyard_breaker_state{server="held",state="forced_open"}"#;
    assert_eq!(app.metric(opened).await, Some(1.0));
    command(&app.socket(), "held", "reset", "").await.expect(200);
    app.http().call("held__echo", HI).await.expect(200);
    app.stop().await;
}

#[tokio::test]
async fn breakers_and_their_history_survive_a_kill() {
    let [failed, held, free] = [broken().await, broken().await, broken().await];
    let yaml = with(&[("failed", &failed), ("held", &held), ("free", &free)], "");
    let router = Router::start(&yaml).await;
    ready(&router, 3).await;
    let socket = Http::socket(router.data_dir().join("admin.sock"));
    let before = three_states(&router.http, &socket).await;
    let log = router.run(&["breakers", "history"]).await.expect(0).out;
    let router = Router::start_in(router.kill().await, &yaml).await;
    let calls = || failed.stats().calls() + held.stats().calls() + free.stats().calls();
    ready(&router, 3).await;
    stand_as_they_stood(&router.http, &before, &calls).await;
    let after = router.run(&["breakers", "history"]).await.expect(0).out;
    assert_eq!(after, log);
    for part in [
        "failed  closed → open ",
        "held    closed → forced_open    forced by admin-socket: broken by design",
        "free    closed → forced_closed  forced by admin-socket, for 1h: its errors are harmless",
    ] {
        assert!(after.contains(part), "{part:?} is not in\n{after}");
    }
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_server_that_was_removed_and_added_again_begins_closed_with_its_history() {
    let up = broken().await;
    let app = TestApp::start(DEFAULTS).await.ready().await;
    let socket = app.socket();
    let body = format!(r#"{{"name":"up","url":"{}"}}"#, up.url());
    socket.post("/mcp/servers", body.clone()).await.expect(201);
    fail_thrice(app.http(), "up__echo").await;
    assert_eq!(shown(app.http(), "up").await["state"], "open");
    socket.delete("/mcp/servers/up").await.expect(204);
    app.http().get("/mcp/circuit-breakers/up").await.expect(404);
    assert_eq!(app.http().get("/mcp/circuit-breakers").await.json()["total"], 0);
    let past = history(app.http(), "up/history").await;
    assert_eq!(steps(&past), ["closed open failures"], "what was stays");
    let opened = r#"switchyard_breaker_transitions_total{from="closed",reason="failures",server="up",to="open"}"#;
    assert_eq!(app.metric(opened).await, None);

    socket.post("/mcp/servers", body).await.expect(201);
    let view = shown(app.http(), "up").await;
    assert_eq!(
        (&view["state"], &view["failures"], &view["trips"], &view["last_error"], &view["reason"]),
        (&"closed".into(), &0.into(), &0.into(), &Value::Null, &Value::Null),
        "{view}"
    );
    assert_eq!(app.metric(opened).await, Some(0.0));
    fail_thrice(app.http(), "up__echo").await;
    let past = history(app.http(), "up/history").await;
    assert_eq!(steps(&past), ["closed open failures"; 2]);
    let app = TestApp::start_in(app.stop().await, DEFAULTS).await;
    assert_eq!(shown(app.http(), "up").await["state"], "open");
    app.stop().await;
}

#[tokio::test]
async fn a_server_at_another_address_or_enabled_again_begins_closed() {
    let (bad, good) = (broken().await, upstream(Options::default()).await);
    let app = TestApp::start(DEFAULTS).await.ready().await;
    let socket = app.socket();
    let body = |up: &Upstream| format!(r#"{{"name":"up","url":"{}"}}"#, up.url());
    socket.post("/mcp/servers", body(&bad)).await.expect(201);
    fail_thrice(app.http(), "up__echo").await;
    socket.put("/mcp/servers/up", body(&good)).await.expect(200);
    let view = shown(app.http(), "up").await;
    assert_eq!(
        (&view["state"], &view["failures"], &view["reason"], &view["last_error"]),
        (&"closed".into(), &0.into(), &"changed".into(), &Value::Null),
        "{view}"
    );
    app.http().call("up__echo", HI).await.expect(200);

    good.faults().set(FaultPlan::calls(Fault::HttpStatus(500)));
    fail_thrice(app.http(), "up__echo").await;
    let mut wider = body(&good);
    wider.insert_str(wider.len() - 1, r#","description":"the same server""#);
    socket.put("/mcp/servers/up", wider).await.expect(200);
    assert_eq!(shown(app.http(), "up").await["state"], "open", "it is the same server");
    socket.post("/mcp/servers/up/disable", "").await.expect(200);
    assert_eq!(shown(app.http(), "up").await["state"], "open", "kept while it is away");
    socket.post("/mcp/servers/up/enable", "").await.expect(200);
    assert_eq!(shown(app.http(), "up").await["state"], "closed");
    assert_eq!(
        steps(&history(app.http(), "up/history").await),
        [
            "closed open failures",
            "open closed changed",
            "closed open failures",
            "open closed changed"
        ]
    );
    app.stop().await;
}

#[tokio::test]
async fn a_call_that_outlives_its_server_leaves_no_trace_of_a_breaker() {
    let up = upstream(Options::default()).await;
    up.faults().set(FaultPlan::calls(Fault::Hang));
    let app = TestApp::start(DEFAULTS).await.ready().await;
    let socket = app.socket();
    let body = format!(
        r#"{{"name":"up","url":"{}","circuit_breaker_threshold":1,"timeout":"4s"}}"#,
        up.url()
    );
    socket.post("/mcp/servers", body).await.expect(201);
    let (http, sent) = (app.http().clone(), up.stats().calls());
    let call = tokio::spawn(async move { http.call("up__echo", HI).await });
    eventually(SOON, "the call is under way", || async {
        (up.stats().calls() > sent).then_some(())
    })
    .await;
    socket.delete("/mcp/servers/up").await.expect(204);
    assert_eq!(call.await.unwrap().json()["success"], false);
    app.http().get("/mcp/circuit-breakers/up/history").await.expect(404);
    let metrics = socket.get("/metrics").await.expect(200);
    let of_it: Vec<_> =
        metrics.text().lines().filter(|line| line.contains(r#"server="up""#)).collect();
    assert!(!of_it.iter().any(|line| line.contains("breaker")), "{of_it:?}");
    app.stop().await;
}
