//! Servers come, change and go while the router runs, and are there after a restart.

use std::time::{Duration, Instant};

use serde_json::Value;
use switchyard::cli::demo_upstream::{Fault, FaultPlan, Options, Scope, Tool, When};

use crate::support::{PROGRAM, Router, SOON, TestApp, alive, eventually, stdio, upstream, yaml};

const HI: &str = r#"{"text":"hi"}"#;

/// A number that nobody else has on the command line, to find a child by.
fn mark(test: u64) -> String {
    format!("{}{test}", u64::from(std::process::id()) + 1_000_000)
}

#[tokio::test]
async fn a_server_added_over_http_is_callable_at_once_and_after_a_restart() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start("").await.ready().await;
    let admin = app.keyed("ops", &["admin", "read"]).await;
    let body = format!(r#"{{"name":"fresh","url":"{}","description":"new"}}"#, up.url());
    let began = Instant::now();
    let added = admin.post("/mcp/servers", body.clone()).await.expect(201).json();
    assert_eq!((&added["source"], &added["state"]), (&"api".into(), &"up".into()), "{added}");
    app.http().call("fresh__echo", HI).await.expect(200);
    // Its turn to be asked would come after half a minute.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    admin.post("/mcp/servers", body).await.expect(409);

    let app = TestApp::start_in(app.stop().await, "").await;
    let answer = app.http().call("fresh__echo", HI).await.expect(200);
    assert_eq!(answer.json()["success"], true);
    assert_eq!(app.http().server("fresh").await.unwrap()["description"], "new");
    app.stop().await;
}

#[tokio::test]
async fn a_server_is_replaced_switched_and_removed() {
    let first = upstream(Options::default()).await;
    let second = upstream(Options { extra_tools: 3, ..Options::default() }).await;
    let app = TestApp::start("").await.ready().await;
    let socket = app.socket();
    let spec = |url: &str| format!(r#"{{"url":"{url}","timeout":"7s"}}"#);
    socket.put("/mcp/servers/it", spec(&first.url())).await.expect(404);
    let body = format!(r#"{{"name":"it","url":"{}"}}"#, first.url());
    socket.post("/mcp/servers", body).await.expect(201);
    let changed = socket.put("/mcp/servers/it", spec(&second.url())).await.expect(200).json();
    assert_eq!((&changed["tools"], &changed["revision"]), (&14.into(), &2.into()), "{changed}");
    app.http().call("it__echo", HI).await.expect(200);
    assert_eq!((first.stats().calls(), second.stats().calls()), (0, 1));

    let off = socket.post("/mcp/servers/it/disable", "").await.expect(200).json();
    assert_eq!((&off["enabled"], &off["state"]), (&false.into(), &"disabled".into()));
    let refused = app.http().call("it__echo", HI).await.expect(503);
    assert_eq!(refused.json()["error_code"], "MCPServerDisabledError");
    refused.header("retry-after");
    assert_eq!(app.http().get("/mcp/tools").await.json()["total"], 0);
    socket.post("/mcp/servers/it/refresh", "").await.expect(409);
    socket.post("/mcp/servers/it/enable", "").await.expect(200);
    app.http().call("it__echo", HI).await.expect(200);

    socket.delete("/mcp/servers/it").await.expect(204);
    app.http().call("it__echo", HI).await.expect(404);
    socket.get("/mcp/servers/it").await.expect(404);
    socket.delete("/mcp/servers/it").await.expect(404);
    app.stop().await;
}

#[tokio::test]
async fn what_is_no_server_is_refused_with_the_reason() {
    let app = TestApp::start("").await.ready().await;
    for (body, reason) in [
        (r#"{"url":"http://127.0.0.1:1/mcp"}"#, "name"),
        (r#"{"name":"a b","url":"http://127.0.0.1:1/mcp"}"#, "name"),
        (r#"{"name":"x"}"#, "url"),
        (r#"{"name":"x","url":"ftp://127.0.0.1/"}"#, "http"),
        (r#"{"name":"x","url":"http://127.0.0.1:1/mcp","timout":1}"#, "timeout"),
        (r#"{"name":"x","url":"http://127.0.0.1:1/mcp","url":"http://h/"}"#, "twice"),
        (r#"{"name":"x","url":"http://127.0.0.1:1/mcp"} x"#, ""),
        ("[]", ""),
    ] {
        let answer = app.socket().post("/mcp/servers", body).await.expect(400);
        let problem = answer.json();
        assert!(problem["detail"].as_str().unwrap().contains(reason), "{body}: {problem}");
    }
    assert_eq!(app.http().get("/mcp/servers").await.json()["total"], 0);
    app.stop().await;
}

#[tokio::test]
async fn servers_of_the_file_are_changed_in_the_file() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start_with_file(&yaml(&[("filed", &up)])).await.ready().await;
    let socket = app.socket();
    let body = format!(r#"{{"url":"{}"}}"#, up.url());
    for answer in
        [socket.put("/mcp/servers/filed", body).await, socket.delete("/mcp/servers/filed").await]
    {
        let detail = answer.expect(409).json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("switchyard.yaml"), "{detail}");
    }
    socket.post("/mcp/servers/filed/disable", "").await.expect(200);
    socket.post("/admin/reload", "").await.expect(200);
    assert_eq!(app.http().server("filed").await.unwrap()["enabled"], false, "over a reload");
    let app = TestApp::start_in(app.stop().await, &yaml(&[("filed", &up)])).await;
    assert_eq!(app.http().server("filed").await.unwrap()["enabled"], false, "over a restart");
    app.socket().post("/mcp/servers/filed/enable", "").await.expect(200);
    app.http().call("filed__echo", HI).await.expect(200);
    app.stop().await;
}

#[tokio::test]
async fn programs_and_variables_come_over_the_socket_only() {
    let up = upstream(Options { record: true, ..Options::default() }).await;
    let settings = format!(
        "admin: {{stdio_commands: {{bundled: {{command: {PROGRAM}, args: [demo-upstream, stdio]}}}}}}\n"
    );
    let app = TestApp::start(&settings).await.ready().await;
    let admin = app.keyed("ops", &["admin", "call"]).await;
    let program =
        format!(r#"{{"name":"child","command":"{PROGRAM}","args":["demo-upstream","stdio"]}}"#);
    let problem = admin.post("/mcp/servers", program.clone()).await.expect(403).json();
    assert_eq!(problem["error_code"], "MCPPermissionError");
    let variable = format!(
        r#"{{"name":"token","url":"{}","headers":{{"X-Token":"${{IT_TOKEN}}"}}}}"#,
        up.url()
    );
    admin.post("/mcp/servers", variable.clone()).await.expect(400);
    let in_url = r#"{"name":"token","url":"http://127.0.0.1:1/${IT_TOKEN}"}"#;
    admin.post("/mcp/servers", in_url).await.expect(400);
    assert_eq!(app.http().get("/mcp/servers").await.json()["total"], 0);

    admin.post("/mcp/servers", r#"{"name":"known","command_id":"bundled"}"#).await.expect(201);
    admin.call("known__echo", HI).await.expect(200);
    admin.post("/mcp/servers", r#"{"name":"x","command_id":"other"}"#).await.expect(400);
    let extra = r#"{"name":"x","command_id":"bundled","args":["-x"]}"#;
    admin.post("/mcp/servers", extra).await.expect(400);

    app.socket().post("/mcp/servers", program).await.expect(201);
    app.http().call("child__echo", HI).await.expect(200);
    let added = app.socket().post("/mcp/servers", variable).await.expect(201);
    assert!(!added.text().contains("token-from-the-environment"), "{}", added.text());
    app.http().call("token__echo", HI).await.expect(200);
    let seen = up.stats().seen_method("tools/call").pop().unwrap();
    assert_eq!(seen.headers["x-token"], "token-from-the-environment");
    app.stop().await;
}

#[tokio::test]
async fn a_literal_secret_is_sealed_and_not_shown() {
    let up = upstream(Options { record: true, ..Options::default() }).await;
    let app = TestApp::start("").await.ready().await;
    let body = format!(
        r#"{{"name":"it","url":"{}","headers":{{"Authorization":"Bearer open-sesame-42"}}}}"#,
        up.url()
    );
    let added = app.socket().post("/mcp/servers", body).await.expect(201);
    let shown = app.socket().get("/mcp/servers/it").await.expect(200);
    for text in [added.text(), shown.text()] {
        assert!(!text.contains("open-sesame-42"), "{text}");
    }
    let folder = app.stop().await;
    for entry in std::fs::read_dir(folder.path().join("data")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(14).any(|window| window == b"open-sesame-42"));
    }
    let app = TestApp::start_in(folder, "").await;
    app.http().call("it__echo", HI).await.expect(200);
    let seen = up.stats().seen_method("tools/call").pop().unwrap();
    assert_eq!(seen.headers["authorization"], "Bearer open-sesame-42");
    app.stop().await;
}

#[tokio::test]
async fn a_removed_servers_process_is_gone() {
    let mark = mark(1);
    let app = TestApp::start("").await.ready().await;
    let body = format!(
        r#"{{"name":"child","command":"sh","args":["-c","sleep {mark} & exec \"{PROGRAM}\" demo-upstream stdio --slow-ms {mark}"]}}"#
    );
    app.socket().post("/mcp/servers", body).await.expect(201);
    app.http().call("child__echo", HI).await.expect(200);
    assert_eq!(alive(&mark).len(), 2, "the server and what it started");
    app.socket().delete("/mcp/servers/child").await.expect(204);
    eventually(SOON, "its processes end", || async { alive(&mark).is_empty().then_some(()) }).await;
    app.stop().await;
}

#[tokio::test]
async fn processes_end_with_the_router() {
    let mark = mark(2);
    let child = format!("mcp_servers:\n{}", stdio("child", &["--slow-ms", &mark]));
    let app = TestApp::start(&child).await.ready().await;
    assert_eq!(alive(&mark).len(), 1);
    app.stop().await;
    assert_eq!(alive(&mark), Vec::<u32>::new());
}

#[tokio::test]
async fn a_changed_file_is_taken_over() {
    let one = upstream(Options::default()).await;
    let two = upstream(Options::default()).await;
    let app = TestApp::start_with_file(&yaml(&[("one", &one)])).await.ready().await;
    app.write_config(&yaml(&[("two", &two)]));
    eventually(SOON, "the new server is callable", || async {
        (app.http().call("two__echo", HI).await.status == 200).then_some(())
    })
    .await;
    let gone = app.http().server("one").await.unwrap();
    assert_eq!(gone["enabled"], false, "gone from the file, never deleted: {gone}");
    app.write_config(&yaml(&[("one", &one), ("two", &two)]));
    let report = app.socket().post("/admin/reload", "").await.expect(200).json();
    assert_eq!((&report["result"], &report["servers"]), (&"ok".into(), &2.into()));
    app.http().call("one__echo", HI).await.expect(200);
    app.stop().await;
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_says_why() {
    let up = upstream(Options::default()).await;
    let good = yaml(&[("up", &up)]);
    let app = TestApp::start_with_file(&good).await.ready().await;
    for (broken, reason) in [
        (good.replace("url", "ulr"), "did you mean `url`"),
        (format!("{good}nonsense: 1\n"), "nonsense"),
        ("mcp_servers: [\n".to_owned(), "switchyard.yaml:"),
        (format!("{good}  x: {{url: \"${{IT_UNSET}}\"}}\n"), "IT_UNSET"),
    ] {
        app.write_config(&broken);
        let problem = app.socket().post("/admin/reload", "").await.expect(400).json();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(reason) && detail.contains("switchyard.yaml"), "{detail}");
        let servers = app.http().get("/mcp/servers").await.json();
        assert_eq!(
            (&servers["total"], &servers["servers"][0]["enabled"]),
            (&1.into(), &true.into())
        );
        app.http().call("up__echo", HI).await.expect(200);
    }
    let failed = app.metric(r#"switchyard_config_reloads_total{result="failure"}"#).await;
    assert!(failed >= Some(4.0), "{failed:?}");
    let last = "switchyard_config_last_reload_successful";
    assert_eq!(app.metric(last).await, Some(0.0));
    app.write_config(&good);
    app.socket().post("/admin/reload", "").await.expect(200);
    assert_eq!(app.metric(last).await, Some(1.0));
    app.stop().await;
}

#[tokio::test]
async fn the_file_wins_over_a_server_of_the_same_name() {
    let old = upstream(Options::default()).await;
    let new = upstream(Options::default()).await;
    let app = TestApp::start("").await.ready().await;
    let body = format!(r#"{{"name":"both","url":"{}"}}"#, old.url());
    app.socket().post("/mcp/servers", body).await.expect(201);
    let app = TestApp::start_in(app.stop().await, &yaml(&[("both", &new)])).await.ready().await;
    assert_eq!(app.http().server("both").await.unwrap()["source"], "config");
    app.http().call("both__echo", HI).await.expect(200);
    assert_eq!((old.stats().calls_of(Tool::Echo), new.stats().calls_of(Tool::Echo)), (0, 1));
    app.stop().await;
}

#[tokio::test]
async fn a_hang_up_signal_reads_the_file_again() {
    let up = upstream(Options::default()).await;
    let router = Router::start("").await;
    Router::write(router.folder.path(), &yaml(&[("late", &up)]));
    router.signal("HUP").await;
    eventually(SOON, "the new server is callable", || async {
        (router.http.call("late__echo", HI).await.status == 200).then_some(())
    })
    .await;
    eventually(SOON, "the log says so", || async {
        router.log().contains("configuration reloaded (SIGHUP): 1 servers").then_some(())
    })
    .await;
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn tools_that_are_denied_or_hidden_are_not_there() {
    let up = upstream(Options::default()).await;
    let settings = format!(
        "mcp_servers:\n  up:\n    url: \"{}\"\n    tools: {{allow: [\"e*\", add, now], deny: [\"echo_*\"]}}\n    tool_overrides: {{now: {{hidden: true}}}}\n",
        up.url()
    );
    let app = TestApp::start(&settings).await.ready().await;
    let tools = app.http().get("/mcp/servers/up/tools").await.expect(200).json();
    let names: Vec<&Value> =
        tools["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect();
    assert_eq!(names, ["up__add", "up__echo"]);
    for tool in ["up__echo_raw", "up__now", "up__fail"] {
        app.http().call(tool, "{}").await.expect(404);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_bare_name_works_while_only_one_server_has_it() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start(&yaml(&[("one", &up)])).await.ready().await;
    app.http().call("echo", HI).await.expect(200);
    let body = format!(r#"{{"name":"two","url":"{}"}}"#, up.url());
    app.socket().post("/mcp/servers", body).await.expect(201);
    let refused = app.http().call("echo", HI).await.expect(404).json();
    assert_eq!(refused["nearest"], serde_json::json!(["one__echo", "two__echo"]), "{refused}");
    let named = format!(r#"{{"name":"echo","server_name":"two","arguments":{HI}}}"#);
    let answer = app.http().post("/mcp/call", named).await.expect(200).json();
    assert_eq!(answer["server_name"], "two");
    app.stop().await;
}

#[tokio::test]
async fn a_late_answer_of_a_replaced_server_changes_nothing() {
    let old = upstream(Options { extra_tools: 1, ..Options::default() }).await;
    let slow = Fault::Slow(Duration::from_secs(5));
    old.faults().set(FaultPlan { fault: slow, when: When::Always, scope: Scope::List });
    let new = upstream(Options::default()).await;
    let app = TestApp::start("").await;
    let body = |url: String| format!(r#"{{"name":"up","url":"{url}"}}"#);
    let (socket, url) = (app.socket(), old.url());
    let adding = tokio::spawn(async move { socket.post("/mcp/servers", body(url)).await.status });
    eventually(SOON, "the old server is being asked", || async {
        old.stats().requests().ge(&2).then_some(())
    })
    .await;
    app.socket().put("/mcp/servers/up", body(new.url())).await.expect(200);
    assert_eq!(adding.await.unwrap(), 201);
    // Longer than the old server takes.
    let began = Instant::now();
    eventually(SOON, "the old server has answered", || async {
        (began.elapsed() > Duration::from_millis(5500)).then_some(())
    })
    .await;
    let tools = app.http().get("/mcp/servers/up/tools").await.expect(200).json();
    let tools = tools["tools"].as_array().unwrap();
    assert!(!tools.is_empty());
    for tool in tools {
        assert_eq!(tool["status"], "active", "{tool}");
        assert_ne!(tool["tool"], "extra_0", "{tool}");
    }
    app.stop().await;
}
