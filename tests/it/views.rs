//! Views: a path of its own for each part of the catalogue, outside which nothing is there.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::Value;
use switchyard::cli::demo_upstream::{Options, Upstream};

use crate::support::{
    Answer, Http, Legacy, MODERN, Router, SOON, TestApp, eventually, hanging, legacy_body, modern,
    modern_at, modern_params, refusing, switchyard, upstream, yaml,
};

const HI: &str = r#"{"text":"hi"}"#;
const SUPPORT: &str = "/mcp/v/support";

/// Three servers with the same tools; `secret` is in no view but `all`.
const VIEWS: &str = r#"
views:
  support:
    description: Tools of the support agent
    servers: [tickets, wiki]
    tools: { allow: ["echo*", "tickets__a?d", "wiki__sleep", "fail"], deny: ["wiki__echo*", "*_raw"] }
  wiki: { servers: [wiki] }
  all: {}
"#;

async fn app_with(settings: &str) -> (TestApp, [Upstream; 3]) {
    let ups = [
        upstream(Options::default()).await,
        upstream(Options::default()).await,
        upstream(Options::default()).await,
    ];
    let servers = yaml(&[("tickets", &ups[0]), ("wiki", &ups[1]), ("secret", &ups[2])]);
    (TestApp::start(&format!("{settings}{servers}{VIEWS}")).await.ready().await, ups)
}

/// The tools of a list, by name, each as it stands there.
#[track_caller]
fn tools(answer: &Answer) -> Vec<(String, Value)> {
    let list = answer.json()["result"]["tools"].as_array().expect("tools").clone();
    list.into_iter().map(|tool| (tool["name"].as_str().unwrap().to_owned(), tool)).collect()
}

fn names(tools: &[(String, Value)]) -> Vec<&str> {
    tools.iter().map(|(name, _)| name.as_str()).collect()
}

fn arguments(json: &str) -> String {
    format!(r#","arguments":{json}"#)
}

#[tokio::test]
async fn both_eras_list_and_call_what_is_in_the_view() {
    let (app, _ups) = app_with("").await;
    let http = app.http();
    let whole = tools(&http.post("/mcp", legacy_body("tools/list", "{}")).await.expect(200));
    assert_eq!(whole.len(), 33);
    let legacy = Legacy::connect_at(http, SUPPORT).await;
    let with_session = tools(&legacy.request("tools/list", "{}").await.expect(200));
    let expected = ["tickets__add", "tickets__echo", "tickets__fail", "wiki__fail", "wiki__sleep"];
    assert_eq!(names(&with_session), expected);
    assert!(with_session.iter().all(|tool| whole.contains(tool)), "the same definitions");
    let without = http.post(SUPPORT, legacy_body("tools/list", "{}")).await.expect(200);
    assert_eq!(tools(&without), with_session);
    let listed = modern_at(http, SUPPORT, "tools/list", None, "").await.expect(200);
    assert_eq!(tools(&listed), with_session);
    let all = modern_at(http, "/mcp/v/all", "tools/list", None, "").await.expect(200);
    assert_eq!(tools(&all), whole);

    // By its own name as well: outside the view it would be that of three servers.
    for tool in ["tickets__echo", "echo"] {
        let answer = legacy.call(tool, HI).await.expect(200).json();
        assert_eq!(answer["result"]["content"][0]["text"], "hi", "{answer}");
        let answer = modern_at(http, SUPPORT, "tools/call", Some(tool), &arguments(HI)).await;
        let answer = answer.expect(200).json();
        assert_eq!(answer["result"]["content"][0]["text"], "hi", "{answer}");
    }
    let ambiguous = modern(http, "tools/call", Some("echo"), &arguments(HI)).await.json();
    assert!(ambiguous["error"].is_object(), "{ambiguous}");
    modern_at(http, SUPPORT, "server/discover", None, "").await.expect(200);
    app.stop().await;
}

/// The error of a call at a view, with what differs from call to call taken out.
async fn error_at(http: &Http, path: &str, tool: &str) -> (Value, Answer) {
    let answer = modern_at(http, path, "tools/call", Some(tool), &arguments(HI)).await.expect(200);
    let mut error = answer.json()["error"].clone();
    assert!(error.is_object(), "{tool} at {path}: {}", answer.text());
    let message = error["message"].as_str().unwrap().replace(tool, "TOOL");
    error["message"] = message.into();
    (error, answer)
}

#[tokio::test]
async fn a_tool_outside_the_view_is_one_that_nobody_has() {
    let (app, ups) = app_with("").await;
    let http = app.http();
    let (nobody, _) = error_at(http, SUPPORT, "nobody__zzzzzz").await;
    assert_eq!(nobody["code"], -32602);
    assert_eq!(nobody["data"]["error_code"], "MCPToolNotFoundError");
    // There, not in the view: of another server, of one of its own, by its own name.
    for tool in ["secret__list", "tickets__rpc_error", "rpc_error", "wiki__echo"] {
        let (error, answer) = error_at(http, SUPPORT, tool).await;
        assert_eq!(error["code"], nobody["code"], "{tool}");
        assert_eq!(error["data"]["error_code"], nobody["data"]["error_code"], "{tool}: {error}");
        assert!(error["data"]["server"].is_null(), "{error}");
        let near: Vec<&str> = error["data"]["nearest"]
            .as_array()
            .map(|near| near.iter().map(|name| name.as_str().unwrap()).collect())
            .unwrap_or_default();
        let offered =
            ["tickets__add", "tickets__echo", "tickets__fail", "wiki__fail", "wiki__sleep"];
        assert!(near.iter().all(|name| offered.contains(name)), "{near:?}");
        let entry = app.entry_of(&answer).await;
        assert_eq!((&entry["outcome"], &entry["server"]), (&"refused".into(), &Value::Null));
    }
    let (near, _) = error_at(http, SUPPORT, "secret__echo").await;
    assert_eq!(near["data"]["nearest"], serde_json::json!(["tickets__echo"]), "{near}");
    let ran: u64 = ups.iter().map(|up| up.stats().calls()).sum();
    assert_eq!(ran, 0, "nothing outside the view runs");

    // Nor does its state show: disabled, it is what it was.
    app.socket().post("/mcp/servers/secret/disable", "").await.expect(200);
    let (error, _) = error_at(http, SUPPORT, "secret__zzzzzz").await;
    assert_eq!(error, nobody);
    let (told, _) = error_at(http, "/mcp", "secret__zzzzzz").await;
    assert_eq!(told["data"]["server"], "secret", "where it may be told, it is: {told}");
    let (told, _) = error_at(http, "/mcp/v/all", "secret__zzzzzz").await;
    assert_eq!(told["data"]["server"], "secret", "{told}");
    app.stop().await;
}

#[tokio::test]
async fn a_server_that_is_away_is_told_where_it_belongs_only() {
    let up = upstream(Options::default()).await;
    let (away, stuck) = (refusing().await, hanging().await);
    let settings = format!(
        "{}  away: {{url: \"http://{away}/mcp\", connect_timeout: 5s}}\n  stuck: {{url: \"http://{stuck}/mcp\", timeout: 60s}}\n\
         views:\n  inside: {{servers: [up, away]}}\n  outside: {{servers: [up]}}\n  part: {{tools: {{allow: [\"*__echo\"]}}}}\n",
        yaml(&[("up", &up)])
    );
    let app = TestApp::start(&settings).await;
    let http = app.http();
    eventually(SOON, "the servers were asked", || async {
        let up = http.server("up").await?;
        let away = http.server("away").await?;
        (up["tools"] == 11 && up["stale"] == false && away["last_error"].is_string()).then_some(())
    })
    .await;
    let (told, _) = error_at(http, "/mcp/v/inside", "away__echo").await;
    assert_eq!(told["data"]["server"], "away");
    assert_eq!(told["data"]["error_code"], "MCPConnectionError", "{told}");
    let (nobody, _) = error_at(http, "/mcp/v/outside", "nobody__zzz").await;
    let (hidden, _) = error_at(http, "/mcp/v/outside", "away__zzz").await;
    assert_eq!(hidden, nobody);
    // The view has all servers, and of them only what is called echo.
    let (told, _) = error_at(http, "/mcp/v/part", "away__echo").await;
    assert_eq!(told["data"]["server"], "away", "{told}");
    let (nobody, _) = error_at(http, "/mcp/v/part", "nobody__zzz").await;
    let (hidden, _) = error_at(http, "/mcp/v/part", "away__zzz").await;
    assert_eq!(hidden, nobody);

    // `stuck` still owes its first answer: who may have its tools waits for it, nobody else does.
    let began = Instant::now();
    error_at(http, "/mcp", "stuck__echo").await;
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        error_at(http, "/mcp/v/outside", "stuck__echo").await;
        fastest = fastest.min(began.elapsed());
    }
    assert!(fastest < Duration::from_millis(500), "{fastest:?}");
    app.stop().await;
}

#[tokio::test]
async fn with_bare_names_a_view_names_no_server_outside_it() {
    let ups = [upstream(Options::default()).await, upstream(Options::default()).await];
    let servers = yaml(&[("tickets", &ups[0]), ("wiki", &ups[1]), ("secret", &ups[1])]);
    let app = TestApp::start(&format!("naming: bare\n{servers}{VIEWS}")).await;
    eventually(SOON, "all three collide", || async {
        let answer = modern(app.http(), "tools/call", Some("echo"), &arguments(HI)).await;
        let told = answer.json()["error"].to_string();
        ["tickets", "wiki", "secret"].iter().all(|name| told.contains(name)).then_some(())
    })
    .await;
    let (told, _) = error_at(app.http(), SUPPORT, "fail").await;
    let text = told.to_string();
    assert!(text.contains("tickets") && text.contains("wiki"), "{text}");
    assert!(!text.contains("secret"), "{text}");
    // One server of the view has it, and two outside: as nothing is exposed, nothing is there.
    let (told, _) = error_at(app.http(), "/mcp/v/wiki", "echo").await;
    let text = told.to_string();
    assert!(!text.contains("secret") && !text.contains("tickets"), "{text}");
    app.stop().await;
}

#[tokio::test]
async fn a_session_belongs_to_the_view_it_was_opened_at() {
    let (app, ups) = app_with("").await;
    let at_view = Legacy::connect_at(app.http(), SUPPORT).await;
    let whole = Legacy::connect(app.http()).await;
    let moved = |client: &Legacy, path: &str| Legacy { path: path.to_owned(), ..client.clone() };
    let check = async |at_view: &Legacy, whole: &Legacy| {
        at_view.request("ping", "{}").await.expect(200);
        whole.request("ping", "{}").await.expect(200);
        for stranger in [
            moved(at_view, "/mcp"),
            moved(at_view, "/mcp/v/wiki"),
            moved(whole, SUPPORT),
            moved(whole, "/mcp/v/all"),
        ] {
            stranger.request("ping", "{}").await.expect(404);
            stranger.call("tickets__echo", HI).await.expect(404);
            let end = stranger.http.request(&Method::DELETE, &stranger.path);
            end.header("mcp-session-id", &stranger.session).send().await.expect(404);
        }
    };
    check(&at_view, &whole).await;

    let servers = yaml(&[("tickets", &ups[0]), ("wiki", &ups[1])]);
    let folder = app.stop().await;
    let app = TestApp::start_in(folder, &format!("{servers}{VIEWS}")).await.ready().await;
    let (at_view, whole) = (
        Legacy { http: app.http().clone(), ..at_view },
        Legacy { http: app.http().clone(), ..whole },
    );
    check(&at_view, &whole).await;
    let end = || {
        let end = app.http().request(&Method::DELETE, SUPPORT);
        end.header("mcp-session-id", &at_view.session)
    };
    end().send().await.expect(204);
    end().send().await.expect(404);
    at_view.request("ping", "{}").await.expect(404);
    app.http().get(SUPPORT).await.expect(405);
    app.stop().await;
}

fn sample(view: &str, outcome: &str) -> String {
    format!(r#"switchyard_view_calls_total{{outcome="{outcome}",view="{view}"}}"#)
}

#[tokio::test]
async fn ledger_and_metric_know_the_view() {
    let (app, _ups) = app_with("").await;
    let http = app.http();
    for outcome in [
        "ok",
        "tool_error",
        "rpc_error",
        "timeout",
        "unavailable",
        "refused",
        "cancelled",
        "interrupted",
    ] {
        for view in ["support", "wiki", "all"] {
            assert_eq!(app.metric(&sample(view, outcome)).await, Some(0.0), "{view} {outcome}");
        }
    }
    let legacy = Legacy::connect_at(http, SUPPORT).await;
    let mut at_view = Vec::new();
    at_view.push((legacy.call("tickets__echo", HI).await, "ok"));
    at_view
        .push((modern_at(http, SUPPORT, "tools/call", Some("echo"), &arguments(HI)).await, "ok"));
    at_view.push((legacy.call("tickets__fail", "{}").await, "tool_error"));
    at_view.push((legacy.call("secret__echo", HI).await, "refused"));
    // Refused before there is a call to route.
    at_view.push((legacy.request("tools/call", r#"{"name":7}"#).await, "refused"));
    at_view.push((http.post(SUPPORT, "no json").await, "refused"));
    let wrong = http.request(&Method::POST, SUPPORT).header("authorization", "Bearer sy_no");
    at_view.push((wrong.body(legacy_body("tools/call", "{}")).send().await, "refused"));
    let elsewhere = [
        Legacy::connect(http).await.call("tickets__echo", HI).await,
        http.call("tickets__echo", HI).await,
    ];
    for (answer, outcome) in &at_view {
        let entry = app.entry_of(answer).await;
        assert_eq!((&entry["view"], &entry["outcome"]), (&"support".into(), &(*outcome).into()));
    }
    for answer in &elsewhere {
        assert_eq!(app.entry_of(answer).await["view"], Value::Null);
    }
    let ids = |calls: &[Value]| -> BTreeSet<String> {
        calls.iter().map(|call| call["id"].as_str().unwrap().to_owned()).collect()
    };
    let expected: BTreeSet<String> = at_view.iter().map(|(answer, _)| answer.id()).collect();
    assert_eq!(ids(&app.calls("view=support").await), expected);
    assert_eq!(app.calls("view=support&outcome=ok").await.len(), 2);
    assert_eq!(app.calls("view=wiki").await.len(), 0);
    for (outcome, count) in [("ok", 2.0), ("tool_error", 1.0), ("refused", 4.0), ("timeout", 0.0)] {
        assert_eq!(app.metric(&sample("support", outcome)).await, Some(count), "{outcome}");
        assert_eq!(app.metric(&sample("wiki", outcome)).await, Some(0.0), "{outcome}");
    }

    let mut tail = http.stream("/mcp/audit/tail?view=support").await;
    http.call("tickets__echo", HI).await.expect(200);
    let wanted = legacy.call("tickets__echo", HI).await.expect(200).id();
    let first = tail.next_line_with("data:").await;
    assert!(first.contains(&wanted), "{first}");
    app.stop().await;
}

#[tokio::test]
async fn a_call_that_is_abandoned_at_a_view_is_cancelled_there() {
    let (app, ups) = app_with("").await;
    let http = app.http().clone();
    let call = tokio::spawn(async move {
        let ms = arguments(r#"{"ms":60000}"#);
        modern_at(&http, SUPPORT, "tools/call", Some("wiki__sleep"), &ms).await
    });
    eventually(SOON, "it runs", || async { (ups[1].stats().calls() == 1).then_some(()) }).await;
    call.abort();
    eventually(SOON, "it is counted", || async {
        (app.metric(&sample("support", "cancelled")).await == Some(1.0)).then_some(())
    })
    .await;
    let calls = app.calls("view=support").await;
    assert_eq!((calls.len(), &calls[0]["outcome"]), (1, &"cancelled".into()));
    assert_eq!(calls[0]["protocol_version"], MODERN);
    app.stop().await;
}

#[tokio::test]
async fn a_view_that_is_not_there_is_a_problem_with_the_nearest_name() {
    let (app, _ups) = app_with("auth: {mode: keys}\n").await;
    let caller = app.keyed("agent", &["call"]).await;
    for method in [Method::POST, Method::GET, Method::DELETE, Method::PATCH] {
        let call = caller.request(&method, "/mcp/v/suport").body(legacy_body("tools/list", "{}"));
        let answer = call.send().await.expect(404);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let problem = answer.json();
        assert_eq!(problem["error_code"], "MCPNotFoundError");
        assert_eq!(problem["nearest"], serde_json::json!(["support"]));
        assert!(!answer.text().contains("wiki"), "{}", answer.text());
    }
    for path in [
        "/mcp/v/",
        "/mcp/v/zzz",
        "/mcp/v/support/",
        "/mcp/v/support/x",
        "/mcp/v/..",
        "/mcp/v/Support",
    ] {
        caller.post(path, legacy_body("tools/list", "{}")).await.expect(404);
    }
    // A call to it is a refused call; whoever has no key hears nothing of views.
    let refused = caller.post("/mcp/v/suport", legacy_body("tools/call", "{}")).await.expect(404);
    let entry = app.entry_of(&refused).await;
    assert_eq!((&entry["outcome"], &entry["view"]), (&"refused".into(), &Value::Null));
    assert!(entry["error"].as_str().unwrap().contains("suport"), "{entry}");
    for path in ["/mcp/v/suport", SUPPORT] {
        app.http().post(path, legacy_body("tools/list", "{}")).await.expect(401);
    }
    let reader = app.keyed("reader", &["read"]).await;
    for path in ["/mcp/v/suport", SUPPORT] {
        reader.post(path, legacy_body("tools/list", "{}")).await.expect(403);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_reload_adds_changes_and_removes_views() {
    let ups = [upstream(Options::default()).await, upstream(Options::default()).await];
    let servers = yaml(&[("one", &ups[0]), ("two", &ups[1])]);
    let app = TestApp::start_with_file(&servers).await.ready().await;
    let http = app.http();
    let reload = async |views: &str| {
        app.write_config(&format!("{servers}{views}"));
        app.socket().post("/admin/reload", "").await
    };
    let listed = async || {
        let answer = http.post("/mcp/v/new", legacy_body("tools/list", "{}")).await;
        (answer.status == 200).then(|| tools(&answer).len())
    };
    assert_eq!(listed().await, None);
    assert!(app.metric(&sample("new", "ok")).await.is_none());

    reload("views: {new: {servers: [one]}}\n").await.expect(200);
    assert_eq!(listed().await, Some(11));
    let client = Legacy::connect_at(http, "/mcp/v/new").await;
    client.call("one__echo", HI).await.expect(200);
    assert!(client.call("two__echo", HI).await.json()["error"].is_object());
    assert_eq!(app.metric(&sample("new", "ok")).await, Some(1.0));

    reload("views: {new: {tools: {allow: [\"*__echo\"]}}}\n").await.expect(200);
    assert_eq!(listed().await, Some(2));
    assert!(client.call("two__echo", HI).await.expect(200).json()["result"].is_object());
    assert_eq!(app.metric(&sample("new", "ok")).await, Some(2.0), "it goes on counting");

    let problem = reload("views: {new: {servers: [onne]}}\n").await.expect(400).json();
    assert!(problem["detail"].as_str().unwrap().contains("did you mean `one`?"), "{problem}");
    assert_eq!(listed().await, Some(2), "a broken file changes nothing");
    let report = reload("views: {new: {servers: []}}\n").await.expect(200).json();
    assert!(report["notes"].to_string().contains("view `new` offers no tool"), "{report}");
    assert_eq!(listed().await, Some(0));

    reload("").await.expect(200);
    assert_eq!(listed().await, None);
    client.request("ping", "{}").await.expect(404);
    Legacy { path: "/mcp".to_owned(), ..client.clone() }.request("ping", "{}").await.expect(404);
    assert!(app.metric(&sample("new", "ok")).await.is_none());
    app.stop().await;
}

#[tokio::test]
async fn tools_that_come_and_go_do_so_in_the_view() {
    let (app, _ups) = app_with("").await;
    let listed = async || {
        let answer = app.http().post(SUPPORT, legacy_body("tools/list", "{}")).await.expect(200);
        names(&tools(&answer)).iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()
    };
    app.socket().post("/mcp/servers/wiki/disable", "").await.expect(200);
    eventually(SOON, "the disabled server's tools are gone", || async {
        (listed().await == ["tickets__add", "tickets__echo", "tickets__fail"]).then_some(())
    })
    .await;
    let (told, _) = error_at(app.http(), SUPPORT, "wiki__sleep").await;
    assert_eq!(told["data"]["server"], "wiki", "it is one of the view's: {told}");
    app.socket().post("/mcp/servers/wiki/enable", "").await.expect(200);
    eventually(SOON, "they are back", || async { (listed().await.len() == 5).then_some(()) }).await;
    app.stop().await;
}

#[tokio::test]
async fn who_listens_at_a_view_hears_of_changes_in_it_only() {
    let (app, _ups) = app_with("").await;
    let http = app.http();
    let mut streams = Vec::new();
    for path in ["/mcp", "/mcp/v/wiki"] {
        let client = Legacy::connect_at(http, path).await;
        let stream = http.request(&Method::GET, path).header("accept", "text/event-stream");
        streams.push(stream.header("mcp-session-id", &client.session).stream().await);
        let params = modern_params(r#","notifications":{"toolsListChanged":true}"#);
        let stream = http
            .request(&Method::POST, path)
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", MODERN)
            .header("mcp-method", "subscriptions/listen")
            .body(legacy_body("subscriptions/listen", &params));
        let mut stream = stream.stream().await;
        let opened = stream.next_line_with("data: {").await;
        assert!(opened.contains("acknowledged"), "{opened}");
        streams.push(stream);
    }
    let [whole, whole_modern, view, view_modern] = &mut streams[..] else { panic!("four") };
    app.socket().post("/mcp/servers/secret/disable", "").await.expect(200);
    for stream in [whole, whole_modern] {
        let told = stream.next_line_with("data: {").await;
        assert!(told.contains("notifications/tools/list_changed"), "{told}");
    }
    for stream in [&mut *view, &mut *view_modern] {
        let quiet =
            tokio::time::timeout(Duration::from_millis(300), stream.next_line_with("data: {"));
        assert!(quiet.await.is_err(), "a change outside the view is told");
    }
    app.socket().post("/mcp/servers/wiki/disable", "").await.expect(200);
    for stream in [view, view_modern] {
        let told = stream.next_line_with("data: {").await;
        assert!(told.contains("notifications/tools/list_changed"), "{told}");
    }
    app.stop().await;
}

#[tokio::test]
async fn views_are_shown() {
    let (app, _ups) = app_with("").await;
    let shown = app.http().get("/mcp/views").await.expect(200).json();
    assert_eq!(shown["total"], 3);
    assert_eq!(
        shown["views"][1],
        serde_json::json!({
            "name": "support", "path": "/mcp/v/support",
            "description": "Tools of the support agent", "servers": ["tickets", "wiki"],
            "allow": ["echo*", "tickets__a?d", "wiki__sleep", "fail"],
            "deny": ["wiki__echo*", "*_raw"], "tools": 5,
        })
    );
    assert_eq!(
        (&shown["views"][0]["servers"], &shown["views"][0]["tools"]),
        (&Value::Null, &33.into())
    );
    let count = async |query: &str| {
        app.http().get(&format!("/mcp/tools?{query}")).await.expect(200).json()["total"].clone()
    };
    assert_eq!(count("view=support").await, 5);
    assert_eq!(count("view=support&server=wiki").await, 2);
    assert_eq!(count("view=wiki&search=sleep").await, 1);
    let unknown = app.http().get("/mcp/tools?view=wikki").await.expect(404).json();
    assert_eq!(unknown["nearest"], serde_json::json!(["wiki"]));
    app.stop().await;
}

#[tokio::test]
async fn the_command_line_speaks_of_views() {
    let up = upstream(Options::default()).await;
    let views = "views:\n  small: {description: Few, servers: [up], tools: {allow: [echo]}}\n  none: {tools: {allow: [nothing_like_it]}}\n  never: {servers: []}\n";
    let router = Router::start(&format!("{}{views}", yaml(&[("up", &up)]))).await;
    eventually(SOON, "the router is ready", || async { router.is_ready().await.then_some(()) })
        .await;
    let listed = router.run(&["tools", "list", "--view", "small"]).await.expect(0).out;
    assert!(listed.contains("up__echo") && !listed.contains("up__add"), "{listed}");
    let both = ["tools", "list", "--view", "small", "--server", "up", "--json"];
    assert_eq!(router.run(&both).await.expect(0).json()["total"], 1);
    let wrong = router.run(&["tools", "list", "--view", "smal"]).await.expect(1);
    assert!(wrong.err.contains("small"), "{}", wrong.err);

    let (http, hi) = (&router.http, arguments(HI));
    let call = modern_at(http, "/mcp/v/small", "tools/call", Some("echo"), &hi);
    let id = call.await.expect(200).id();
    router.http.call("up__add", r#"{"a":1,"b":2}"#).await.expect(200);
    let audit = router.run(&["audit", "list", "--view", "small", "--json"]).await.expect(0).json();
    assert_eq!(audit["calls"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&audit["calls"][0]["id"], &audit["calls"][0]["view"]),
        (&id.clone().into(), &"small".into())
    );
    let shown = router.run(&["audit", "show", &id]).await.expect(0).out;
    assert!(shown.lines().any(|line| line.split_whitespace().eq(["view", "small"])), "{shown}");

    let folder = router.folder.path();
    let check = switchyard(folder, &["check", "--connect"]).await.expect(0);
    for part in ["small", "Few", "view `never` offers no tool: `servers` is empty"] {
        assert!(check.out.contains(part), "{}", check.out);
    }
    let json = switchyard(folder, &["check", "--connect", "--json"]).await.expect(0).json();
    let counts: Vec<_> =
        json["views"].as_array().unwrap().iter().map(|v| (&v["name"], &v["tools"])).collect();
    assert_eq!(
        counts,
        [(&"never".into(), &0.into()), (&"none".into(), &0.into()), (&"small".into(), &1.into())]
    );
    assert_eq!(router.stop().await.0, 0);
}
