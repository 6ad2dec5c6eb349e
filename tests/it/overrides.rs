//! What an operator says about single tools holds everywhere: hidden ones are nowhere, time limits
//! bound attempts, and a word on repeats wins over the server's hints.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Answer, Fault, Legacy, Rig, SOON, TestApp, eventually, modern, switchyard};

const NOTHING: &str = "{}";

/// The tools that a client is shown, by name.
#[track_caller]
fn names(list: &Value) -> Vec<String> {
    let tools = list["tools"].as_array().unwrap_or_else(|| panic!("no tools in {list}"));
    tools.iter().map(|tool| tool["name"].as_str().unwrap_or("null").to_owned()).collect()
}

async fn rigs(tools: &[&str]) -> [Rig; 2] {
    [Rig::legacy(tools).await, Rig::modern(tools).await]
}

async fn router(rig: &Rig, settings: &str) -> TestApp {
    TestApp::start(&rig.yaml("up", settings)).await.ready().await
}

/// What is said of a call, without what differs from call to call.
fn told(answer: &Answer, tool: &str) -> Value {
    let json = answer.json();
    let error = json["error"].as_str().unwrap().replace(tool, "TOOL");
    json!([
        answer.status,
        json["error_code"],
        json["reason"],
        json["outcome"],
        error,
        json["nearest"]
    ])
}

#[tokio::test]
async fn a_hidden_tool_is_in_no_list_and_cannot_be_called() {
    for rig in rigs(&["pay", "read", "zzzzzz"]).await {
        let app = TestApp::start(&format!(
            "{}views: {{all: {{}}, those: {{tools: {{allow: ['*zzzzzz', 'up__read']}}}}}}\n",
            rig.yaml("up", "tool_overrides: {zzzzzz: {hidden: true, replay: safe}}")
        ))
        .await
        .ready()
        .await;
        let (http, socket) = (app.http(), app.socket());
        let offered = ["up__pay", "up__read"];
        let legacy = Legacy::connect(http).await;
        let listed = legacy.request("tools/list", NOTHING).await.expect(200).json();
        assert_eq!(names(&listed["result"]), offered);
        let listed = modern(http, "tools/list", None, "").await.expect(200).json();
        assert_eq!(names(&listed["result"]), offered);
        for path in ["/mcp/tools", "/mcp/servers/up/tools", "/mcp/tools?server=up"] {
            let listed = socket.get(path).await.expect(200).json();
            assert_eq!(
                (names(&listed), &listed["total"]),
                (offered.map(str::to_owned).to_vec(), &2.into())
            );
        }
        let found = socket.get("/mcp/tools?search=zzzzzz").await.expect(200).json();
        assert_eq!(found["total"], 0, "{found}");
        let server = socket.server("up").await.unwrap();
        assert_eq!(server["tools"], 2, "{server}");
        let views = socket.get("/mcp/views").await.expect(200).json();
        let counts: Vec<(&str, u64)> = views["views"]
            .as_array()
            .unwrap()
            .iter()
            .map(|view| (view["name"].as_str().unwrap(), view["tools"].as_u64().unwrap()))
            .collect();
        assert_eq!(counts, [("all", 2), ("those", 1)]);
        let active = r#"switchyard_upstream_tools{server="up",status="active"}"#;
        assert_eq!(app.metric(active).await, Some(2.0));

        // Called by any of its names it is a tool that nobody has.
        let nobody = told(&http.call("up__qqqqqq", NOTHING).await.expect(404), "up__qqqqqq");
        assert_eq!(told(&http.call("up__zzzzzz", NOTHING).await, "up__zzzzzz"), nobody);
        let nobody = told(&http.call("qqqqqq", NOTHING).await.expect(404), "qqqqqq");
        assert_eq!(told(&http.call("zzzzzz", NOTHING).await, "zzzzzz"), nobody);
        let named = r#"{"tool_name":"zzzzzz","server_name":"up","arguments":{}}"#;
        assert_eq!(
            http.post("/mcp/call", named).await.expect(404).json()["error_code"],
            "MCPToolNotFoundError"
        );
        for path in ["/mcp", "/mcp/v/those"] {
            let error = crate::support::modern_at(http, path, "tools/call", Some("up__zzzzzz"), "")
                .await
                .json()["error"]
                .clone();
            assert_eq!(error["code"], -32602, "{error}");
        }
        let near = http.call("up__zzzzz", NOTHING).await.expect(404).json();
        assert!(!near.to_string().contains("zzzzzz"), "{near}");
        socket.get("/mcp/tools/up__zzzzzz/history").await.expect(404);
        assert_eq!(rig.counts("zzzzzz").requests, 0);
        app.stop().await;
    }
}

#[tokio::test]
async fn a_hidden_tool_stays_hidden_when_its_definition_is_held() {
    let rig = Rig::legacy(&["pay", "secret"]).await;
    let app = router(&rig, "on_change: hold, tool_overrides: {secret: {hidden: true}}").await;
    let socket = app.socket();
    for tool in ["pay", "secret"] {
        rig.annotate(tool, json!({ "title": "changed" }));
    }
    socket.post("/mcp/servers/up/refresh", "").await.expect(200);
    let listed = socket.get("/mcp/tools").await.expect(200).json();
    let held: Vec<&str> = listed["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| tool["tool"].as_str().unwrap())
        .collect();
    assert_eq!((held, &listed["total"]), (vec!["pay"], &1.into()), "{listed}");
    let waits = app.http().call("up__pay", NOTHING).await.json();
    assert_eq!(waits["reason"], "tool_held", "{waits}");
    let nothing = app.http().call("up__secret", NOTHING).await.expect(404).json();
    assert_eq!(nothing["reason"], "tool_not_found", "{nothing}");
    let held = r#"switchyard_upstream_tools{server="up",status="held"}"#;
    assert_eq!(app.metric(held).await, Some(1.0));
    socket.post("/mcp/tools/up__secret/approve", "").await.expect(404);
    app.stop().await;
}

#[tokio::test]
async fn a_hidden_tool_takes_no_name_from_others() {
    let (one, other) = (Rig::legacy(&["read"]).await, Rig::legacy(&["read"]).await);
    let app = TestApp::start(&format!(
        "naming: bare\nmcp_servers:\n{}{}",
        one.entry("one", "tool_overrides: {read: {hidden: true}}"),
        other.entry("other", "")
    ))
    .await;
    // The server whose only tool is hidden has none, so that it never is ready in the usual sense.
    eventually(SOON, "both were asked", || async {
        let asked = one.asked("tools/list") > 0 && other.asked("tools/list") > 0;
        let listed = app.socket().get("/mcp/tools").await.json();
        (asked && names(&listed) == ["read"]).then_some(())
    })
    .await;
    let answer = app.http().call("read", r#"{"key":"k"}"#).await.expect(200).json();
    assert_eq!((&answer["success"], &answer["server_name"]), (&true.into(), &"other".into()));
    assert_eq!((one.counts("read").requests, other.counts("read").requests), (0, 1));
    app.stop().await;
}

#[tokio::test]
async fn a_tool_is_hidden_and_shown_by_a_reload() {
    let rig = Rig::legacy(&["pay", "read"]).await;
    let file =
        |hidden: bool| rig.yaml("up", &format!("tool_overrides: {{pay: {{hidden: {hidden}}}}}"));
    let app = TestApp::start_with_file(&file(true)).await.ready().await;
    let listed = || async { names(&app.socket().get("/mcp/tools").await.json()) };
    assert_eq!(listed().await, ["up__read"]);
    app.http().call("up__pay", NOTHING).await.expect(404);
    app.write_config(&file(false));
    app.socket().post("/admin/reload", "").await.expect(200);
    eventually(SOON, "it is shown", || async {
        (listed().await == ["up__pay", "up__read"]).then_some(())
    })
    .await;
    let answer = app.http().call("up__pay", NOTHING).await.expect(200).json();
    assert_eq!(answer["success"], true, "{answer}");
    app.write_config(&file(true));
    app.socket().post("/admin/reload", "").await.expect(200);
    eventually(SOON, "it is hidden again", || async {
        (listed().await == ["up__read"]).then_some(())
    })
    .await;
    app.http().call("up__pay", NOTHING).await.expect(404);
    assert_eq!(rig.counts("pay").requests, 1);
    app.stop().await;
}

#[tokio::test]
async fn a_check_of_the_file_counts_no_hidden_tool() {
    let rig = Rig::legacy(&["pay", "secret"]).await;
    let folder = tempfile::tempdir().unwrap();
    let yaml = rig.yaml("up", "tool_overrides: {secret: {hidden: true}}");
    std::fs::write(folder.path().join("switchyard.yaml"), yaml).unwrap();
    let checked = switchyard(folder.path(), &["check", "--connect"]).await.expect(0);
    let said = format!("{}{}", checked.out, checked.err);
    assert!(said.contains("pay") && !said.contains("secret"), "{said}");
}

#[tokio::test]
async fn what_is_said_over_http_about_tools_is_shown_and_holds() {
    let rig = Rig::modern(&["pay", "secret"]).await;
    let app = TestApp::start("").await;
    let overrides =
        json!({ "secret": { "hidden": true }, "pay": { "replay": "unsafe", "timeout": "500ms" } });
    let body = json!({
        "name": "up", "url": rig.url(), "tool_overrides": overrides, "trust_annotations": false,
        "retry_attempts": 0,
    });
    app.socket().post("/mcp/servers", body.to_string()).await.expect(201);
    let shown = app.socket().get("/mcp/servers/up").await.expect(200).json();
    assert_eq!(shown["spec"]["tool_overrides"], overrides, "{shown}");
    assert_eq!(shown["spec"]["trust_annotations"], false);
    app.http().call("up__secret", NOTHING).await.expect(404);
    rig.set("pay", Fault::HangBeforeHeaders);
    let late = app.http().call("up__pay", NOTHING).await.json();
    assert_eq!(late["error_code"], "MCPTimeoutError", "{late}");
    assert!(late["error"].as_str().unwrap().contains("500ms"), "{late}");
    app.stop().await;
}

#[tokio::test]
async fn the_time_limit_of_a_tool_bounds_each_of_its_attempts() {
    for rig in rigs(&["slow", "other"]).await {
        let app = router(
            &rig,
            "timeout: 60s, retry_timeouts: replay_safe, retry_attempts: 2, retry_delay: 100ms, \
             tool_overrides: {slow: {timeout: 500ms, replay: safe}}",
        )
        .await;
        rig.set("slow", Fault::HangBeforeHeaders);
        rig.set("other", Fault::after(Duration::from_millis(800), Fault::None));
        let began = Instant::now();
        let answer = app.http().call("up__slow", NOTHING).await;
        let took = began.elapsed();
        let late = answer.json();
        assert_eq!(late["error_code"], "MCPTimeoutError", "{late}");
        assert_eq!((&late["attempts"], &late["outcome"]), (&3.into(), &"unknown".into()), "{late}");
        assert!(late["error"].as_str().unwrap().contains("500ms"), "{late}");
        // Three limits and two delays of at least a tenth of a second each.
        assert!(took >= Duration::from_millis(1700) && took < SOON, "{took:?}");
        assert_eq!(rig.counts("slow").requests, 3);
        // Others have the server's.
        let answer = app.http().call("up__other", NOTHING).await.json();
        assert_eq!(answer["success"], true, "{answer}");
        app.stop().await;
    }
}

#[tokio::test]
async fn a_tool_may_have_more_time_than_the_others_of_its_server() {
    for rig in rigs(&["slow", "other"]).await {
        let app = router(
            &rig,
            "timeout: 500ms, retry_attempts: 0, tool_overrides: {slow: {timeout: 60s}}",
        )
        .await;
        for tool in ["slow", "other"] {
            rig.set(tool, Fault::after(Duration::from_millis(1200), Fault::None));
        }
        let answer = app.http().call("up__slow", NOTHING).await.json();
        assert_eq!(answer["success"], true, "the call's own limit follows: {answer}");
        let late = app.http().call("up__other", NOTHING).await.json();
        assert_eq!(late["error_code"], "MCPTimeoutError", "{late}");
        app.stop().await;

        // A limit of the whole call that somebody chose holds for every tool.
        let app = router(
            &rig,
            "timeout: 500ms, call_deadline: 600ms, tool_overrides: {slow: {timeout: 60s}}",
        )
        .await;
        let late = app.http().call("up__slow", NOTHING).await.json();
        assert_eq!(late["error_code"], "MCPTimeoutError", "{late}");
        app.stop().await;
    }
}

/// One tool, what its server says of it, what the operator says, and whether it is repeated after an
/// attempt that may have run it.
#[tokio::test]
async fn the_operator_decides_on_repeats_before_the_hints_of_the_server() {
    let read_only = json!({ "readOnlyHint": true });
    let idempotent = json!({ "idempotentHint": true });
    let destructive = json!({ "destructiveHint": true, "idempotentHint": false });
    let none = json!({});
    for (hints, said, trusts, repeated) in [
        (&none, "", true, false),
        (&read_only, "", true, true),
        (&idempotent, "", true, true),
        (&read_only, "", false, false),
        (&idempotent, "", false, false),
        (&none, "tool_overrides: {pay: {replay: safe}}", true, true),
        (&none, "tool_overrides: {pay: {replay: safe}}", false, true),
        (&destructive, "tool_overrides: {pay: {replay: safe}}", true, true),
        (&read_only, "tool_overrides: {pay: {replay: unsafe}}", true, false),
        (&idempotent, "tool_overrides: {pay: {replay: unsafe}}", true, false),
        // Of another tool, and by another name than the server's own.
        (&none, "tool_overrides: {other: {replay: safe}, up__pay: {replay: safe}}", true, false),
    ] {
        for rig in rigs(&["pay"]).await {
            rig.annotate("pay", hints.clone());
            let comma = if said.is_empty() { "" } else { ", " };
            let app = router(
                &rig,
                &format!("retry_delay: 100ms, trust_annotations: {trusts}{comma}{said}"),
            )
            .await;
            let case = format!("{hints} {said} trust_annotations: {trusts}");
            rig.next("pay", &[Fault::Reset]);
            let answer = app.http().call("up__pay", r#"{"key":"k"}"#).await.json();
            assert_eq!(answer["success"], repeated, "{case}: {answer}");
            assert_eq!(rig.executed("pay")["k"], if repeated { 2 } else { 1 }, "{case}");
            if !repeated {
                assert_eq!(answer["outcome"], "unknown", "{case}: {answer}");
                assert_eq!(answer["retriable"], false, "{case}: {answer}");
            }
            app.stop().await;
        }
    }
}

/// What callers are told about a repeat of their own follows the same word, also where the router
/// itself repeats nothing.
#[tokio::test]
async fn callers_are_told_whether_a_repeat_of_their_own_is_safe() {
    let rig = Rig::legacy(&["pay", "read"]).await;
    let app = router(
        &rig,
        "retry_mode: off, tool_overrides: {read: {replay: safe}, pay: {replay: unsafe}}",
    )
    .await;
    for (tool, safe) in [("read", true), ("pay", false)] {
        rig.next(tool, &[Fault::Reset]);
        let answer = app.http().call(&format!("up__{tool}"), NOTHING).await.json();
        assert_eq!((&answer["outcome"], &answer["attempts"]), (&"unknown".into(), &1.into()));
        assert_eq!(answer["retriable"], safe, "{answer}");
    }
    app.stop().await;
}
