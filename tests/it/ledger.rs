//! Every call makes exactly one entry in the ledger, however it ends.

use std::time::{Duration, Instant};

use serde_json::Value;
use switchyard::cli::demo_upstream::{Fault, FaultPlan, Options, Upstream};

use crate::support::{
    Answer, Http, Legacy, MODERN, SOON, TestApp, eventually, legacy_body, modern, refusing,
    upstream,
};

const HI: &str = r#"{"text":"hi"}"#;

async fn app_with(rest: &str) -> (TestApp, Upstream) {
    let up = upstream(Options::default()).await;
    let yaml = format!(
        "defaults: {{retry_mode: off, circuit_breaker_threshold: 1000}}\n\
         mcp_servers:\n  up: {{url: \"{}\", timeout: 10s}}\n{rest}",
        up.url()
    );
    (TestApp::start(&yaml).await.ready().await, up)
}

#[track_caller]
fn says(entry: &Value, outcome: &str, code: Option<&str>, reason: &str) {
    assert_eq!(entry["outcome"], outcome, "{entry}");
    assert_eq!(entry["error_code"], code.map_or(Value::Null, Value::from), "{entry}");
    let error = entry["error"].as_str().unwrap_or_default();
    assert!(error.contains(reason), "{reason:?} is not in {entry}");
}

#[tokio::test]
async fn an_answer_of_the_upstream_is_one_entry_with_its_outcome() {
    let (app, _up) = app_with("").await;
    for (tool, arguments, outcome, code, reason) in [
        ("echo", HI, "ok", None, ""),
        ("fail", r#"{"message":"no luck"}"#, "tool_error", Some("MCPToolError"), ""),
        ("rpc_error", r#"{"message":"odd"}"#, "rpc_error", Some("MCPRpcError"), "odd"),
    ] {
        let name = format!("up__{tool}");
        let member = format!(r#","arguments":{arguments}"#);
        let legacy = Legacy::connect(app.http()).await;
        for (answer, entrance, version) in [
            (app.http().call(&name, arguments).await, "rest", Value::Null),
            (legacy.call(&name, arguments).await, "mcp", "2025-11-25".into()),
            (modern(app.http(), "tools/call", Some(&name), &member).await, "mcp", MODERN.into()),
        ] {
            let entry = app.entry_of(&answer.expect(200)).await;
            says(&entry, outcome, code, reason);
            assert_eq!(
                (&entry["entrance"], &entry["protocol_version"]),
                (&entrance.into(), &version)
            );
            assert_eq!((&entry["server"], &entry["tool"]), (&"up".into(), &name.as_str().into()));
            assert_eq!((&entry["upstream_tool"], &entry["attempts"]), (&tool.into(), &1.into()));
            assert_eq!(
                (&entry["caller"], &entry["http_status"]),
                (&"anonymous".into(), &200.into())
            );
            assert_eq!(entry["arguments"], serde_json::from_str::<Value>(arguments).unwrap());
            assert_eq!(entry["arguments_digest"].as_str().unwrap().len(), 64);
            assert!(
                entry["duration_ms"].as_f64().unwrap() >= entry["upstream_ms"].as_f64().unwrap()
            );
            if entrance == "mcp" {
                assert_eq!(
                    (&entry["client_name"], &entry["client_version"]),
                    (&"it".into(), &"1.2".into())
                );
            }
        }
    }
    let answer = app.http().call("up__echo", HI).await;
    assert_eq!(answer.json()["request_id"], answer.id());
    app.stop().await;
}

#[tokio::test]
async fn a_call_without_an_answer_is_one_entry_with_its_reason() {
    let (app, up) = app_with(&format!(
        "  away: {{url: \"http://{}/mcp\", connect_timeout: 5s}}\n",
        refusing().await
    ))
    .await;
    let slow = r#"{"tool_name":"up__sleep","arguments":{"ms":5000},"timeout":"500ms"}"#;
    let answer = app.http().post("/mcp/call", slow).await.expect(200);
    assert_eq!(answer.json()["error_code"], "MCPTimeoutError");
    let entry = app.entry_of(&answer).await;
    says(&entry, "timeout", Some("MCPTimeoutError"), "no answer within");
    assert_eq!((&entry["failure"], &entry["server"]), (&"timeout".into(), &"up".into()));

    let answer = app.http().call("away__echo", HI).await.expect(200);
    let entry = app.entry_of(&answer).await;
    says(&entry, "unavailable", Some("MCPConnectionError"), "refused");
    assert_eq!(entry["server"], "away");

    for (fault, outcome, code) in [
        (Fault::Cut, "unavailable", "MCPConnectionError"),
        (Fault::CutMidBody, "unavailable", "MCPConnectionError"),
        (Fault::HttpStatus(500), "unavailable", "MCPConnectionError"),
        (Fault::HttpStatus(503), "unavailable", "MCPConnectionError"),
        (Fault::Garbage, "unavailable", "MCPProtocolError"),
        (Fault::WrongId, "unavailable", "MCPProtocolError"),
    ] {
        up.faults().set(FaultPlan::calls(fault));
        let answer = app.http().call("up__counter", "{}").await.expect(200);
        let body = answer.json();
        assert_eq!((&body["success"], &body["data"]), (&false.into(), &Value::Null), "{fault:?}");
        let entry = app.entry_of(&answer).await;
        assert_eq!(entry["error_code"], body["error_code"]);
        assert_eq!(entry["error"], body["error"]);
        says(&entry, outcome, Some(code), "up");
        up.faults().clear();
    }
    app.http().call("up__echo", HI).await.expect(200);
    app.stop().await;
}

#[tokio::test]
async fn an_answer_beyond_the_limit_is_refused_and_recorded() {
    let up = upstream(Options::default()).await;
    let yaml = format!("mcp_servers:\n  up: {{url: \"{}\", max_response_size: 64KiB}}\n", up.url());
    let app = TestApp::start(&yaml).await.ready().await;
    let answer = app.http().call("up__blob", r#"{"bytes":70000}"#).await.expect(200);
    let entry = app.entry_of(&answer).await;
    assert_eq!(entry["error_code"], "MCPResponseTooLargeError", "{entry}");
    let answer = app.http().call("up__blob", r#"{"bytes":60000}"#).await.expect(200);
    assert_eq!(answer.json()["success"], true);
    app.stop().await;
}

#[tokio::test]
async fn a_refusal_is_one_entry_with_its_reason() {
    let (app, up) = app_with("  off: {url: \"http://127.0.0.1:9/mcp\", enabled: false}\n").await;
    let http = app.http();
    let reader = app.keyed("reader", &["read"]).await;
    let wrong = http.with_key("sy_wrong");
    let unnamed = legacy_body("tools/call", r#"{"arguments":{}}"#);
    let bare = legacy_body("tools/call", r#"{"name":"up__echo","arguments":{"text":"x"}}"#);
    let refused: Vec<(&str, Answer, u16, &str, &str)> = vec![
        ("unknown", http.call("up__ecko", HI).await, 404, "MCPToolNotFoundError", "up__echo"),
        ("disabled", http.call("off__echo", HI).await, 503, "MCPServerDisabledError", "off"),
        ("no name", http.post("/mcp/call", "{}").await, 400, "MCPInvalidRequestError", "tool_name"),
        (
            "unknown key",
            http.post("/mcp/call", r#"{"tool_name":"up__echo","argumens":{}}"#).await,
            400,
            "MCPInvalidRequestError",
            "arguments",
        ),
        ("no JSON", http.post("/mcp/call", "{").await, 400, "MCPInvalidRequestError", ""),
        ("broken", http.post("/mcp", "{").await, 400, "MCPInvalidRequestError", ""),
        ("unnamed", http.post("/mcp", unnamed).await, 200, "MCPInvalidRequestError", "name"),
        ("no scope", reader.post("/mcp", bare.clone()).await, 403, "MCPPermissionError", "call"),
        ("wrong key", wrong.call("up__echo", HI).await, 401, "MCPAuthenticationError", "key"),
        ("wrong key", wrong.post("/mcp", bare).await, 401, "MCPAuthenticationError", "key"),
    ];
    for (what, answer, status, code, reason) in refused {
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        let entry = app.entry_of(&answer).await;
        says(&entry, "refused", Some(code), reason);
        let caller = match what {
            "no scope" => "reader",
            "wrong key" => "unauthenticated",
            _ => "anonymous",
        };
        assert_eq!(entry["caller"], caller, "{what}");
    }
    assert_eq!(up.stats().calls(), 0, "nothing was sent");
    assert_eq!(app.calls("outcome=refused&limit=1000").await.len(), 10);
    app.stop().await;
}

#[tokio::test]
async fn a_call_without_the_scope_is_recorded_over_rest_too() {
    let (app, up) = app_with("").await;
    let reader = app.keyed("reader", &["read"]).await;
    let answer = reader.call("up__echo", HI).await.expect(403);
    let entry = app.entry_of(&answer).await;
    says(&entry, "refused", Some("MCPPermissionError"), "call");
    assert_eq!((&entry["caller"], &entry["entrance"]), (&"reader".into(), &"rest".into()));
    assert_eq!(up.stats().calls(), 0);
    app.stop().await;
}

#[tokio::test]
async fn the_tail_shows_calls_as_they_are_committed() {
    let (app, _up) = app_with("shutdown_timeout: 60s\n").await;
    app.http().call("up__echo", HI).await.expect(200);
    only_entry(&app).await;
    let mut tail = app.http().stream("/mcp/audit/tail?outcome=tool_error").await;
    app.http().call("up__echo", HI).await.expect(200);
    let failed = app.http().call("up__fail", "{}").await.expect(200).id();
    let event = tail.next_line_with("data:").await;
    let call: Value = serde_json::from_str(event.trim_start_matches("data:")).unwrap();
    assert_eq!((&call["id"], &call["outcome"]), (&failed.into(), &"tool_error".into()));
    // An open stream must not hold up the end.
    let began = Instant::now();
    app.stop().await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_and_recorded() {
    let (app, _up) = app_with("limits: {body: 64KiB}\n").await;
    let large = format!(r#"{{"text":"{}"}}"#, "x".repeat(70_000));
    let call = format!(r#"{{"name":"up__echo","arguments":{large}}}"#);
    for answer in [
        app.http().call("up__echo", &large).await,
        app.http().post("/mcp", legacy_body("tools/call", &call)).await,
    ] {
        let entry = app.entry_of(&answer.expect(413)).await;
        says(&entry, "refused", Some("MCPRequestTooLargeError"), "limits.body");
    }
    app.stop().await;
}

/// Starts a call that takes `ms`, waits until it runs upstream, and hangs up.
async fn hang_up(up: &Upstream, call: impl Future<Output = Answer> + Send + 'static) {
    let before = up.stats().calls();
    let call = tokio::spawn(call);
    eventually(SOON, "the tool runs", || async { (up.stats().calls() > before).then_some(()) })
        .await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
}

async fn only_entry(app: &TestApp) -> Value {
    eventually(SOON, "the call is in the ledger", || async { app.calls("").await.pop() }).await
}

#[tokio::test]
async fn hanging_up_cancels_a_call_over_rest() {
    let (app, up) = app_with("").await;
    let http = app.http().clone();
    hang_up(&up, async move { http.call("up__sleep", r#"{"ms":5000}"#).await }).await;
    says(&only_entry(&app).await, "cancelled", Some("MCPCancelledError"), "went away");
    app.stop().await;
}

#[tokio::test]
async fn hanging_up_cancels_a_modern_call() {
    let (app, up) = app_with("").await;
    let http = app.http().clone();
    hang_up(&up, async move {
        modern(&http, "tools/call", Some("up__sleep"), r#","arguments":{"ms":5000}"#).await
    })
    .await;
    let entry = only_entry(&app).await;
    says(&entry, "cancelled", Some("MCPCancelledError"), "went away");
    assert_eq!(entry["protocol_version"], MODERN);
    app.stop().await;
}

#[tokio::test]
async fn hanging_up_does_not_cancel_a_legacy_call() {
    let (app, up) = app_with("").await;
    let client = Legacy::connect(app.http()).await;
    hang_up(&up, async move { client.call("up__sleep", r#"{"ms":400}"#).await }).await;
    let entry = only_entry(&app).await;
    says(&entry, "ok", None, "");
    assert!(entry["duration_ms"].as_f64().unwrap() >= 400.0, "{entry}");
    assert_eq!(app.calls("").await.len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn filters_find_what_they_name_and_pages_lose_nothing() {
    let other = upstream(Options::default()).await;
    let (app, _up) = app_with(&format!("  other: {{url: \"{}\"}}\n", other.url())).await;
    let robot = app.keyed("robot", &["call"]).await;
    let mut ids = Vec::new();
    for at in 0..23 {
        let text = format!(r#"{{"text":"number-{at}"}}"#);
        ids.push(app.http().call("up__echo", &text).await.expect(200).id());
    }
    robot.call("other__fail", "{}").await.expect(200);
    let slow = r#"{"tool_name":"other__sleep","arguments":{"ms":5000},"timeout":0.05}"#;
    let last = robot.post("/mcp/call", slow).await.expect(200);
    app.entry(&last.id()).await;
    for (query, count) in [
        ("server=up", 23),
        ("server=other", 2),
        ("tool=up__echo", 23),
        ("tool=echo", 23),
        ("outcome=timeout&server=other&since=1h", 1),
        ("outcome=timeout&server=up", 0),
        ("outcome=tool_error", 1),
        ("caller=robot", 2),
        ("caller=anonymous", 23),
        ("error_code=MCPTimeoutError", 1),
        ("text=number-17", 1),
        ("since=2020-01-01T00:00:00Z&until=2020-01-02", 0),
        ("until=1h", 0),
        ("since=3600", 25),
        ("limit=7", 7),
    ] {
        assert_eq!(app.calls(query).await.len(), count, "{query}");
    }
    for wrong in ["outcome=timout", "since=yesterday", "cursor=x", "limit=x", "sever=up"] {
        let answer = app.http().get(&format!("/mcp/audit?{wrong}")).await.expect(400);
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
    let mut paged = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/mcp/audit?server=up&limit=5{cursor}");
        let page = app.http().get(&path).await.expect(200).json();
        let calls = page["calls"].as_array().unwrap();
        assert!(calls.len() <= 5);
        paged.extend(calls.iter().map(|call| call["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
        // What comes in between must not shift the pages.
        app.http().call("other__echo", HI).await.expect(200);
    }
    paged.reverse();
    assert_eq!(paged, ids);
    app.http().get("/mcp/audit/0193e0a4-0000-7000-8000-000000000000").await.expect(404);
    app.http().get("/mcp/audit/nonsense").await.expect(400);
    app.stop().await;
}

#[tokio::test]
async fn secrets_are_not_in_the_ledger() {
    let up = upstream(Options::default()).await;
    let yaml = format!(
        "mcp_servers:\n  up: {{url: \"{}\", headers: {{X-Token: \"${{IT_TOKEN}}\"}}}}\n",
        up.url()
    );
    let app = TestApp::start(&yaml).await.ready().await;
    let arguments = r#"{"text":"before token-from-the-environment after","api_key":"sesame-1","nested":{"Password":"sesame-2","n":1e400}}"#;
    let answer = app.http().call("up__echo_raw", arguments).await.expect(200);
    assert!(answer.text().contains("sesame-1"), "the upstream got the arguments whole");
    let path = format!("/mcp/audit/{}", app.entry_of(&answer).await["id"].as_str().unwrap());
    let text = app.http().get(&path).await.expect(200).text().to_owned();
    assert!(text.contains("before *** after"), "{text}");
    assert!(text.contains("1e400"), "{text}");
    app.socket().get("/mcp/servers/up").await.expect(200);
    let folder = app.stop().await;
    for entry in std::fs::read_dir(folder.path().join("data")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for secret in ["sesame-1", "sesame-2", "token-from-the-environment"] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is in {}", path.display());
        }
    }
}

#[tokio::test]
async fn payload_levels_of_a_server_are_kept() {
    let up = upstream(Options::default()).await;
    let yaml = format!(
        "mcp_servers:\n  all: {{url: \"{0}\", audit: {{arguments: raw, results: full}}}}\n  nothing: {{url: \"{0}\", audit: {{arguments: none, results: none}}}}\n",
        up.url()
    );
    let app = TestApp::start(&yaml).await.ready().await;
    let arguments = r#"{"text":"hi","password":"sesame"}"#;
    let entry = app.entry_of(&app.http().call("all__echo", arguments).await).await;
    assert_eq!(entry["arguments"], serde_json::from_str::<Value>(arguments).unwrap());
    assert_eq!(entry["result"]["content"][0]["text"], "hi");
    let entry = app.entry_of(&app.http().call("nothing__echo", arguments).await).await;
    assert_eq!((&entry["arguments"], &entry["result"]), (&Value::Null, &Value::Null));
    app.stop().await;
}

#[tokio::test]
async fn in_strict_durability_the_entry_is_there_when_the_answer_is() {
    let (app, _up) = app_with("audit: {durability: strict}\n").await;
    for at in 0..10 {
        let answer = app.http().call("up__echo", &format!(r#"{{"text":"{at}"}}"#)).await;
        let path = format!("/mcp/audit/{}", answer.expect(200).id());
        app.http().get(&path).await.expect(200);
    }
    app.stop().await;
}

#[tokio::test]
async fn many_calls_at_once_are_as_many_entries() {
    let (app, up) = app_with("").await;
    let calls = (0..8).map(|_| {
        let http: Http = app.http().clone();
        tokio::spawn(async move {
            for _ in 0..25 {
                http.call("up__counter", "{}").await.expect(200);
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    eventually(SOON, "200 entries", || async {
        (app.calls("limit=1000").await.len() == 200).then_some(())
    })
    .await;
    assert_eq!(up.stats().calls(), 200);
    let counted = app.metric(r#"switchyard_audit_events_total{outcome="ok"}"#).await;
    assert_eq!(counted, Some(200.0));
    app.stop().await;
}
