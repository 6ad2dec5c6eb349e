//! The program's own log: a line for each change of state, none for a call, and never more than a line.

use std::time::Duration;

use serde_json::Value;

use switchyard::app::ADMIN_SOCKET;

use crate::support::{Http, Rig, Router, SOON, eventually};

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
