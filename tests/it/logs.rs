//! The program's own log: a line for each change of state, none for a call, and never more than a line.

use std::time::Duration;

use serde_json::Value;

use switchyard::app::ADMIN_SOCKET;

use crate::support::{Fault, Http, Rig, Router, SOON, eventually, total};

/// The lines of the log, each of which is one object.
fn lines(router: &Router) -> Vec<Value> {
    let log = router.log();
    let parsed = |line: &str| -> Value {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    };
    log.lines().map(parsed).collect()
}

fn said(router: &Router, message: &str) -> usize {
    let lines = lines(router);
    lines.iter().filter(|line| line["message"].as_str().unwrap().contains(message)).count()
}

async fn until(router: &Router, message: &str, count: usize) {
    eventually(SOON, message, || async { (said(router, message) >= count).then_some(()) }).await;
    assert_eq!(said(router, message), count, "{}", router.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_state_are_one_line_each_and_calls_none() {
    let rig = Rig::legacy(&["pay"]).await;
    let router = Router::start(&rig.yaml("up", "retry_mode: off")).await;
    until(&router, "started with 1 server", 1).await;
    until(&router, "server up is up", 1).await;
    for line in lines(&router) {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "{line}");
        }
    }
    let up = lines(&router).into_iter().find(|line| line["message"] == "server up is up").unwrap();
    assert_eq!((&up["level"], &up["server.name"]), (&"INFO".into(), &"up".into()));
    let before = lines(&router).len();
    let call = async |tool: &str| router.http.call(tool, r#"{"key":"k"}"#).await;
    for _ in 0..20 {
        call("up__pay").await.expect(200);
    }
    // Also not of one that nobody has, whatever it is called.
    for tool in ["up__nope", r"a\nforged", r"\u001b[2J\u202e"] {
        call(tool).await.expect(404);
    }
    assert_eq!(lines(&router).len(), before, "{}", router.log());
    rig.down();
    for _ in 0..3 {
        call("up__pay").await;
    }
    until(&router, "server up is down", 1).await;
    let lines_now = lines(&router);
    let down = lines_now.iter().find(|line| line["message"].as_str().unwrap().contains("is down"));
    let down = down.unwrap();
    assert_eq!((&down["level"], &down["server.name"]), (&"WARN".into(), &"up".into()));
    assert!(down["error"].as_str().unwrap().contains("refused"), "{down}");
    rig.up();
    eventually(Duration::from_secs(10), "it answers again", || async {
        (call("up__pay").await.json()["success"] == true).then_some(())
    })
    .await;
    until(&router, "server up is up", 2).await;
    assert_eq!(said(&router, "server up is down"), 1, "{}", router.log());
    assert_eq!(router.stop().await.0, 0);
}

/// What a server calls its tools, and what it says, in both forms of the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_says_adds_no_line_and_moves_no_cursor() {
    const HOSTILE: &str =
        "x\r\n2026-11-24T10:00:00Z  INFO forged \u{1b}[2J\u{202e}\u{9b}31m\u{0}\u{2028}y";
    for form in ["text", "json"] {
        let rig = Rig::legacy(&["pay"]).await;
        let script = format!("export SWITCHYARD_LOG_FORMAT={form}");
        let router = Router::start_after(&script, &rig.yaml("up", "")).await;
        eventually(SOON, "it is up", || async {
            router.log().contains("server up is up").then_some(())
        })
        .await;
        let definition =
            serde_json::json!({ "name": HOSTILE, "inputSchema": { "type": "object" } });
        rig.define("pay", definition);
        let socket = Http::socket(router.data_dir().join(ADMIN_SOCKET));
        let refreshed = socket.post("/mcp/servers/up/refresh", "").await;
        assert_eq!(refreshed.status, 200, "{}", refreshed.text());
        eventually(SOON, "the change is logged", || async {
            router.log().contains("was added").then_some(())
        })
        .await;
        let log = router.log();
        assert!(log.contains("forged"), "{log}");
        for line in log.split('\n') {
            assert!(!line.starts_with("2026-11-24T10:00:00Z"), "{log}");
            let active = |c: char| c.is_control() || "\u{202e}\u{2028}".contains(c);
            assert!(!line.contains(active), "{line:?}");
        }
        if form == "json" {
            let found = lines(&router).into_iter().any(|line| line["tool.name"] == HOSTILE);
            assert!(found, "JSON means the same: {log}");
        }
        assert_eq!(router.stop().await.0, 0);
    }
}

/// A server whose list of tools cannot be had, and which answers calls: it is up, one line says what is
/// wrong, and its list is asked for with growing waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_fails_beside_calls_is_one_line_and_no_flapping() {
    let rig = Rig::legacy(&["pay"]).await;
    let router = Router::start(&rig.yaml("up", "")).await;
    let socket = Http::socket(router.data_dir().join(ADMIN_SOCKET));
    until(&router, "server up is up", 1).await;
    rig.set("tools/list", Fault::status(500));
    socket.post("/mcp/servers/up/refresh", "").await.expect(200);
    let asked = rig.asked("tools/list");
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        let answer = router.http.call("up__pay", r#"{"key":"k"}"#).await.json();
        assert_eq!(answer["success"], true, "{answer}");
        assert_eq!(total(&socket, "switchyard_upstream_up", &[r#"server="up""#]).await, 1.0);
        let shown = socket.server("up").await.unwrap();
        assert_eq!((&shown["state"], &shown["stale"]), (&"up".into(), &true.into()), "{shown}");
        assert!(shown["last_error"].as_str().unwrap().contains("500"), "{shown}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(said(&router, "server up could not be asked for its tools"), 1, "{}", router.log());
    assert_eq!(said(&router, "server up is"), 1, "{}", router.log());
    // At once, as it is seen that it failed, and after 1, 2 and 4 s.
    let asked = rig.asked("tools/list") - asked;
    assert!((1..=4).contains(&asked), "{asked}");
    rig.set("tools/list", Fault::None);
    socket.post("/mcp/servers/up/refresh", "").await.expect(200);
    until(&router, "server up is up", 2).await;
    let shown = socket.server("up").await.unwrap();
    assert_eq!((&shown["stale"], &shown["last_error"]), (&false.into(), &Value::Null), "{shown}");
    assert_eq!(router.stop().await.0, 0);
}

/// A server that comes and goes with every call is told of in some lines, and what caused them can be
/// found by its trace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_and_goes_does_not_fill_the_log() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let rig = Rig::legacy(&["pay"]).await;
    let settings = "retry_mode: off, circuit_breaker_threshold: 1, circuit_breaker_timeout: 1ms";
    let router = Router::start(&rig.yaml("up", settings)).await;
    until(&router, "server up is up", 1).await;
    let call = async || {
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        let call = router.http.request(&http::Method::POST, "/mcp/call");
        let call = call.header("traceparent", &parent);
        let body = r#"{"tool_name":"up__pay","arguments":{"key":"k"}}"#;
        router.http.line().await.send(call.body(body)).await.json()["success"] == true
    };
    assert!(call().await);
    let began = std::time::Instant::now();
    const ROUNDS: usize = 25;
    for _ in 0..ROUNDS {
        rig.down();
        eventually(SOON, "it is gone", || async { (!call().await).then_some(()) }).await;
        rig.up();
        eventually(SOON, "it is back", || async { call().await.then_some(()) }).await;
    }
    let changes = || said(&router, "server up is ");
    // Six at once, and one more in each ten seconds.
    let most = 6 + began.elapsed().as_secs() / 10 + 1;
    assert!(changes() as u64 <= most, "{} lines: {}", changes(), router.log());
    for message in ["server up is down", "from closed to open"] {
        let line = lines(&router)
            .into_iter()
            .find(|line| line["message"].as_str().unwrap().contains(message))
            .unwrap_or_else(|| panic!("no {message}: {}", router.log()));
        assert_eq!(line["trace_id"], TRACE, "{line}");
    }
    // What was left out is counted by the next line.
    let mut round = 0;
    eventually(SOON * 2, "the next line is due", || {
        round += 1;
        if round % 2 == 0 {
            rig.up();
        } else {
            rig.down();
        }
        async {
            call().await;
            let lines = lines(&router);
            let left_out: u64 = lines.iter().filter_map(|line| line["left_out"].as_u64()).sum();
            (left_out > 0).then_some(())
        }
    })
    .await;
    assert_eq!(router.stop().await.0, 0);
}

/// What is wrong with a list is said once, however often it is asked for, and again when it is something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elements_that_are_left_out_are_told_of_once() {
    let rig = Rig::legacy(&["pay"]).await;
    rig.define_raw("bad", r#"{"name":7}"#.to_owned());
    let router = Router::start(&rig.yaml("up", "")).await;
    let socket = Http::socket(router.data_dir().join(ADMIN_SOCKET));
    until(&router, "that is left out", 1).await;
    for _ in 0..3 {
        socket.post("/mcp/servers/up/refresh", "").await.expect(200);
    }
    assert_eq!(said(&router, "that is left out"), 1, "{}", router.log());
    rig.define_raw("worse", r#"{"name":""}"#.to_owned());
    socket.post("/mcp/servers/up/refresh", "").await.expect(200);
    until(&router, "that is left out", 3).await;
    assert_eq!(router.stop().await.0, 0);
}
