//! A server that is away, hangs or talks nonsense is its own problem.

use std::time::{Duration, Instant};

use switchyard::cli::demo_upstream::{Fault, FaultPlan, Options};

use crate::support::{
    Attended, Router, SOON, TestApp, eventually, full, garbage, hanging, legacy_body, promised,
    refusing, stdio, upstream, yaml,
};

/// The good server answers a call at once. Router, servers and test are one thread: what others have of
/// the machine does not count.
async fn answers_at_once(app: &TestApp) {
    let clock = Attended::begin();
    let answer = app.http().call("good__echo", r#"{"text":"hi"}"#).await.expect(200);
    let (took, _) = clock.elapsed();
    assert_eq!(answer.json()["success"], true);
    assert!(took < Duration::from_millis(400), "{took:?}");
}

#[tokio::test]
async fn bad_servers_do_not_touch_good_ones_and_say_what_is_wrong() {
    let good = upstream(Options::default()).await;
    let mut servers = format!("  good: {{url: \"{}\"}}\n", good.url());
    servers += &stdio("child", &[]);
    for (name, address) in
        [("dead", refusing().await), ("hanging", hanging().await), ("garbage", garbage().await)]
    {
        servers += &format!(
            "  {name}: {{url: \"http://{address}/mcp\", timeout: 500ms, connect_timeout: 500ms}}\n"
        );
    }
    // Whoever waited for this one would wait for a minute.
    servers += &format!(
        "  stuck: {{url: \"http://{}/mcp\", timeout: 60s, connect_timeout: 60s}}\n",
        hanging().await
    );
    servers += "  missing: {command: switchyard-it-no-such-program}\n";
    servers += "  loud: {command: sh, args: [-c, 'echo one; echo this is no json >&2; exit 3']}\n";
    let began = Instant::now();
    let app = TestApp::start(&format!("mcp_servers:\n{servers}")).await;
    for server in ["good", "child"] {
        eventually(SOON, &format!("{server} answers"), || async {
            let answer = app.http().call(&format!("{server}__echo"), r#"{"text":"hi"}"#).await;
            (answer.json()["success"] == true).then_some(())
        })
        .await;
        assert!(began.elapsed() < Duration::from_secs(30), "{server}: {:?}", began.elapsed());
    }
    for _ in 0..50 {
        answers_at_once(&app).await;
    }
    app.http().post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);

    for (name, reasons) in [
        ("dead", &["refused"][..]),
        ("hanging", &["ms", " s"]),
        ("garbage", &["HTTP", "http", "invalid", "not"]),
        ("missing", &["switchyard-it-no-such-program"]),
        ("loud", &["3", "json"]),
    ] {
        let server = eventually(SOON, &format!("{name} has its reason"), || async {
            let server = app.http().server(name).await?;
            server["last_error"].is_string().then_some(server)
        })
        .await;
        let reason = server["last_error"].as_str().unwrap();
        assert!(reasons.iter().any(|part| reason.contains(part)), "{name}: {reason}");
        assert_eq!(server["state"], "down", "{name}: {server}");
        assert!(server["last_error_at"].is_string());
        let answer = app.http().call(&format!("{name}__echo"), "{}").await.expect(200).json();
        assert_eq!(answer["success"], false);
        assert_eq!(answer["server_name"], name, "{answer}");
        assert_eq!(answer["error_code"], "MCPConnectionError", "{answer}");
    }
    for name in ["good", "child"] {
        let server = app.http().server(name).await.unwrap();
        assert_eq!((&server["state"], &server["stale"]), (&"up".into(), &false.into()));
        assert_eq!(server["tools"], 11);
    }
    let health = app.http().get("/mcp/health").await.expect(200).json();
    assert_eq!(health["status"], "degraded");
    let healthy: Vec<_> = health["servers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|server| server["healthy"] == true)
        .map(|server| &server["name"])
        .collect();
    assert_eq!(healthy, ["child", "good"], "{health}");
    app.stop().await;
}

#[tokio::test]
async fn discovery_one_hangs() {
    const GOOD: usize = 48;
    const HANGS: Duration = Duration::from_secs(12);
    const BOUND: Duration = Duration::from_secs(2);
    let mut good = Vec::new();
    for _ in 0..GOOD {
        good.push(upstream(Options::default()).await);
    }
    let (hangs, lies) = (upstream(Options::default()).await, upstream(Options::default()).await);
    let mut servers = String::from("mcp_servers:\n");
    for (number, up) in good.iter().enumerate() {
        servers += &format!("  s{number}: {{url: \"{}\"}}\n", up.url());
    }
    for (name, up) in [("hangs", &hangs), ("lies", &lies)] {
        servers +=
            &format!("  {name}: {{url: \"{}\", timeout: 12s, connect_timeout: 12s}}\n", up.url());
    }
    // All are well once, so that there are lists to keep.
    let app = TestApp::start(&servers).await.ready().await;
    let listed = app.http().get("/mcp/tools").await.expect(200).json()["total"].clone();
    assert_eq!(listed, (GOOD + 2) * 11);
    let first = app.http().post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    let mut folder = Some(app.stop().await);

    hangs.faults().set(FaultPlan::all(Fault::Hang));
    lies.faults().set(FaultPlan::all(Fault::Garbage));
    // Fifty servers, their router and this test share one thread here, beside those of all other tests.
    // Two seconds are promised where it is let run; to wait for the server that hangs takes longer on
    // this clock, too. The disk has no such clock, so the fastest start counts.
    let mut app = None;
    let took = promised(BOUND, async || {
        if let Some(app) = app.take() {
            folder = Some(TestApp::stop(app).await);
        }
        let clock = Attended::begin();
        let started = TestApp::start_in(folder.take().unwrap(), &servers).await;
        let asked = Attended::begin();
        let again = started.http().post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
        let (listed, _) = asked.elapsed();
        assert_eq!(again.body, first.body, "old lists are kept");
        eventually(SOON, "48 are usable", || async {
            let servers = started.http().get("/mcp/servers").await.json();
            let usable = servers["servers"].as_array()?.iter().filter(|server| {
                server["state"] == "up" && server["stale"] == false && server["tools"] == 11
            });
            (usable.count() == GOOD).then_some(())
        })
        .await;
        let (took, withheld) = clock.elapsed();
        println!(
            "listed after {listed:?}, {GOOD} usable after {took:?}, and {withheld:?} that others had \
             the processor"
        );
        app = Some(started);
        // No list waits: it is there in a quarter of the time.
        took.max(listed * 4)
    })
    .await;
    assert!(took <= BOUND, "{took:?}");
    let app = app.unwrap();
    for number in 0..GOOD {
        let answer = app.http().call(&format!("s{number}__echo"), r#"{"text":"hi"}"#).await;
        assert_eq!(answer.expect(200).json()["success"], true, "s{number}");
    }
    for name in ["hangs", "lies"] {
        let server = eventually(HANGS + SOON, &format!("{name} shows its error"), || async {
            let server = app.http().server(name).await?;
            server["last_error"].is_string().then_some(server)
        })
        .await;
        assert_eq!(
            (&server["state"], &server["stale"], &server["tools"]),
            (&"down".into(), &true.into(), &11.into()),
            "{server}"
        );
    }
    assert_eq!(app.http().get("/mcp/tools").await.json()["total"], listed, "and stay so");
    app.stop().await;
}

#[tokio::test]
async fn calls_that_hang_at_one_server_do_not_hold_up_another() {
    let bad = upstream(Options::default()).await;
    let good = upstream(Options::default()).await;
    let yaml = format!(
        "mcp_servers:\n  bad: {{url: \"{}\", timeout: 60s, max_concurrency: 2}}\n  good: {{url: \"{}\"}}\n",
        bad.url(),
        good.url()
    );
    let app = TestApp::start(&yaml).await.ready().await;
    bad.faults().set(FaultPlan::calls(Fault::Hang));
    let hung: Vec<_> = (0..20)
        .map(|_| {
            let http = app.http().clone();
            tokio::spawn(async move { http.call("bad__echo", r#"{"text":"x"}"#).await })
        })
        .collect();
    eventually(SOON, "calls hang", || async { (bad.stats().calls() >= 2).then_some(()) }).await;
    for _ in 0..50 {
        answers_at_once(&app).await;
    }
    hung.iter().for_each(tokio::task::JoinHandle::abort);
    app.stop().await;
}

#[tokio::test]
async fn a_list_that_cannot_be_refreshed_stays_and_is_called_stale() {
    let up = upstream(Options::default()).await;
    let yaml = format!("mcp_servers:\n  up: {{url: \"{}\"}}\n", up.url());
    let app = TestApp::start(&yaml).await.ready().await;
    let before = app.http().post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    up.faults().set(FaultPlan::all(Fault::HttpStatus(500)));
    let answer = app.socket().post("/mcp/servers/up/refresh", "").await.expect(200).json();
    assert_eq!((&answer["stale"], &answer["tools"]), (&true.into(), &11.into()), "{answer}");
    assert!(answer["last_error"].as_str().unwrap().contains("500"), "{answer}");
    let after = app.http().post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    assert_eq!(before.body, after.body);
    up.faults().clear();
    let answer = app.socket().post("/mcp/servers/up/refresh", "").await.expect(200).json();
    assert_eq!(
        (&answer["stale"], &answer["last_error"]),
        (&false.into(), &serde_json::Value::Null)
    );
    app.stop().await;
}

#[tokio::test]
async fn a_call_that_finds_no_free_place_in_time_is_refused() {
    let up = upstream(Options::default()).await;
    let yaml = format!("mcp_servers:\n  up: {{url: \"{}\", max_concurrency: 1}}\n", up.url());
    let app = TestApp::start(&yaml).await.ready().await;
    let http = app.http().clone();
    let first = tokio::spawn(async move { http.call("up__sleep", r#"{"ms":3000}"#).await });
    eventually(SOON, "the tool runs", || async { (up.stats().calls() == 1).then_some(()) }).await;
    let hurried = r#"{"tool_name":"up__echo","arguments":{"text":"hi"},"timeout":"100ms"}"#;
    let refused = app.http().post("/mcp/call", hurried).await.expect(503);
    refused.header("retry-after");
    let body = refused.json();
    assert_eq!(body["error_code"], "MCPOverloadedError");
    assert_eq!((&body["outcome"], &body["retriable"]), (&"not_sent".into(), &true.into()));
    let entry = app.entry_of(&refused).await;
    assert_eq!(entry["outcome"], "refused");
    assert!(entry["queue_ms"].as_f64().unwrap() >= 50.0, "{entry}");
    first.await.unwrap().expect(200);
    // One that has the time waits for the place, a second at most.
    let http = app.http().clone();
    let short = tokio::spawn(async move { http.call("up__sleep", r#"{"ms":200}"#).await });
    eventually(SOON, "the tool runs", || async { (up.stats().calls() == 2).then_some(()) }).await;
    let waited = app.http().call("up__echo", r#"{"text":"hi"}"#).await.expect(200);
    assert_eq!(waited.json()["success"], true);
    short.await.unwrap().expect(200);
    assert_eq!(up.stats().calls(), 3);
    app.stop().await;
}

/// Whoever starts a router and waits for it must not wait for its slowest server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_does_not_keep_the_router_from_being_ready() {
    let (good, bad) = (upstream(Options::default()).await, upstream(Options::default()).await);
    let servers = yaml(&[("good", &good), ("bad", &bad)]);
    let settings = format!("defaults: {{timeout: 60s, connect_timeout: 60s}}\n{servers}");
    let known = Router::start(&settings).await;
    eventually(SOON, "both were asked", || async { known.is_ready().await.then_some(()) }).await;
    let folder = known.kill().await;
    bad.faults().set(FaultPlan::all(Fault::Hang));
    // What is known of it needs no wait; where nothing is, there is a bound.
    for (folder, bound) in [(folder, 1), (tempfile::tempdir().unwrap(), 2)] {
        let router = Router::start_in(folder, &settings).await;
        let text = eventually(SOON, "the router is ready", || async {
            let answer = router.http.get("/readyz").await;
            (answer.status == 200).then(|| answer.text().to_owned())
        })
        .await;
        let took = router.listening.elapsed();
        eprintln!("ready {took:?} after it listened");
        assert!(took < Duration::from_secs(if full() { bound } else { 8 }), "{took:?}");
        assert_eq!(text, "ready; servers are still being asked for their tools\n");
        eventually(SOON, "the good server answers", || async {
            let answer = router.http.call("good__echo", r#"{"text":"hi"}"#).await;
            (answer.json()["success"] == true).then_some(())
        })
        .await;
        router.kill().await;
    }
}
