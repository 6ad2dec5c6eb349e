//! Lists that are meant to hurt: too many tools, too large, too deep, and with addresses in them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{Fault, Http, Rig, Router, TestApp, eventually, fastest, legacy_body};

/// More than any list takes that comes to an end.
const LONG: &str = "60s";
/// Longer than a list takes that is refused.
const LISTED: Duration = Duration::from_secs(60);

async fn listed(http: &Http) -> Vec<Value> {
    let list = http.post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    list.json()["result"]["tools"].as_array().unwrap().clone()
}

fn has(tools: &[Value], name: &str) -> bool {
    tools.iter().any(|tool| tool["name"] == name)
}

/// A router before a hostile server and a good one, once both were asked.
async fn router(rig: &Rig, timeout: &str) -> TestApp {
    let other = Rig::legacy(&["good"]).await;
    let settings = format!("timeout: {timeout}");
    let file = format!("{}{}", rig.yaml("up", &settings), other.entry("other", ""));
    let app = TestApp::start(&file).await;
    eventually(LISTED, "both servers were asked", || async {
        let servers = [app.http().server("up").await?, app.http().server("other").await?];
        let asked = |server: &Value| {
            server["last_error"].is_string() || server["tools"] != 0 && server["stale"] == false
        };
        servers.iter().all(asked).then_some(())
    })
    .await;
    app
}

/// The good server is listed and answers, at once.
async fn others_are_well(app: &TestApp) {
    assert!(has(&listed(app.http()).await, "other__good"));
    let took = fastest(Duration::from_secs(1), async || {
        let began = Instant::now();
        let answer = app.http().call("other__good", r#"{"key":"k"}"#).await.expect(200).json();
        assert_eq!(answer["data"]["content"][0]["text"], "k", "{answer}");
        began.elapsed()
    })
    .await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// Asks the server again and gives what its last error says.
async fn refreshed(app: &TestApp) -> String {
    app.socket().post("/mcp/servers/up/refresh", "").await;
    let server = app.http().server("up").await.unwrap();
    server["last_error"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn tools_10000() {
    for rig in [Rig::legacy(&["good"]).await, Rig::modern(&["good"]).await] {
        let app = router(&rig, LONG).await;
        assert!(has(&listed(app.http()).await, "up__good"));
        for number in 0..10_000 {
            let name = format!("tool_{number}");
            rig.define(&name, json!({ "name": name, "inputSchema": { "type": "object" } }));
        }
        let began = Instant::now();
        let error = refreshed(&app).await;
        println!("10,000 tools: {:?}: {error}", began.elapsed());
        assert!(error.contains("more than 5000 tools"), "{error}");
        // What was listed before stays and works.
        let tools = listed(app.http()).await;
        assert!(has(&tools, "up__good") && tools.len() == 2, "{}", tools.len());
        app.http().call("up__good", r#"{"key":"k"}"#).await.expect(200);
        others_are_well(&app).await;
        app.stop().await;
    }
}

#[tokio::test]
#[expect(non_snake_case, reason = "the name that the plan of abuse gives it")]
async fn description_10MB() {
    let rig = Rig::legacy(&["good"]).await;
    let app = router(&rig, LONG).await;
    let large = "x".repeat(10_000_000);
    let tool = |description: &str| json!({ "name": "large", "description": description, "inputSchema": { "type": "object" } });
    rig.define("large", tool(&large));
    let began = Instant::now();
    let error = refreshed(&app).await;
    println!("a description of 10 MB: {:?}: {error:?}", began.elapsed());
    let tools = listed(app.http()).await;
    assert!(has(&tools, "up__good") && !has(&tools, "up__large"));
    app.http().call("up__large", "{}").await.expect(404);
    app.http().call("up__good", r#"{"key":"k"}"#).await.expect(200);
    others_are_well(&app).await;
    // With many of them not even the list is read.
    for number in 0..4 {
        rig.define(&format!("large_{number}"), tool(&large));
    }
    let error = refreshed(&app).await;
    assert!(error.contains("larger than 16777216 bytes"), "{error}");
    assert!(has(&listed(app.http()).await, "up__good"));
    others_are_well(&app).await;
    app.stop().await;
}

#[tokio::test]
async fn schema_depth_10000() {
    for (open, close) in [(r#"{"properties":{"a":"#, "}}"), (r#"{"anyOf":["#, "]}")] {
        let rig = Rig::legacy(&["good"]).await;
        let app = router(&rig, LONG).await;
        let depth = 10_000;
        let schema = format!("{}{{}}{}", open.repeat(depth), close.repeat(depth));
        let text = format!(
            r#"{{"name":"deep","inputSchema":{{"type":"object","properties":{{"x":{schema}}}}}}}"#
        );
        rig.define_raw("deep", text);
        let began = Instant::now();
        let error = refreshed(&app).await;
        println!("a schema of depth {depth}: {:?}: {error:?}", began.elapsed());
        let tools = listed(app.http()).await;
        assert!(has(&tools, "up__good") && !has(&tools, "up__deep"));
        app.http().call("up__deep", "{}").await.expect(404);
        app.http().call("up__good", r#"{"key":"k"}"#).await.expect(200);
        others_are_well(&app).await;
        app.stop().await;
    }
}

#[tokio::test]
async fn remote_ref() {
    // Whoever follows an address connects here.
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = trap.local_addr().unwrap();
    let rig = Rig::legacy(&["good"]).await;
    let schema = json!({
        "type": "object",
        "$schema": format!("http://{address}/dialect"),
        "$id": format!("http://{address}/id"),
        "$ref": format!("http://{address}/schema.json"),
        "properties": {
            "key": { "$ref": format!("http://{address}/key.json#/a") },
            "b": { "$dynamicRef": format!("http://{address}/b") },
        },
    });
    let icons = json!([{ "src": format!("http://{address}/icon.png") }]);
    let tool = json!({
        "name": "far", "description": format!("see http://{address}/more"),
        "inputSchema": schema, "outputSchema": schema, "icons": icons,
    });
    rig.define("far", tool);
    let app = router(&rig, LONG).await;
    let tools = listed(app.http()).await;
    let far = tools.iter().find(|tool| tool["name"] == "up__far").expect("it is listed");
    assert_eq!(far["inputSchema"], schema, "as the server says it");
    app.http().call("up__far", r#"{"key":"k"}"#).await.expect(200);
    app.socket().post("/mcp/servers/up/refresh", "").await.expect(200);
    others_are_well(&app).await;
    app.stop().await;
    let visited = tokio::time::timeout(Duration::from_millis(200), trap.accept()).await;
    assert!(visited.is_err(), "an address in a definition was followed");
}

#[tokio::test]
async fn lists_that_break_on_the_way_leave_the_old_ones() {
    let rig = Rig::legacy(&["good"]).await;
    // Two of them are waited for.
    let app = router(&rig, "4s").await;
    for fault in [
        Fault::Reset,
        Fault::Truncated,
        Fault::WrongId,
        Fault::InvalidUtf8,
        Fault::Garbage,
        Fault::status(500),
        Fault::Long(1_000_000_000),
        Fault::LongChunked(1_000_000_000),
        Fault::Line(1_000_000_000),
        Fault::Bomb(1_000_000, "gzip"),
        Fault::StreamEnds,
        Fault::Comments,
        Fault::HangMidJson,
    ] {
        rig.set("tools/list", fault.clone());
        let began = Instant::now();
        let error = refreshed(&app).await;
        assert!(!error.is_empty(), "{fault:?}");
        assert!(began.elapsed() < LISTED, "{fault:?}: {:?}", began.elapsed());
        app.http().call("up__good", r#"{"key":"k"}"#).await.expect(200);
        others_are_well(&app).await;
    }
    rig.set("tools/list", Fault::None);
    assert_eq!(refreshed(&app).await, "");
    app.stop().await;
}

/// A server whose tools are all left out must not look like one that has none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_out_is_shown_with_its_server() {
    let rig = Rig::legacy(&["good"]).await;
    let depth = 10_000;
    let (open, close) = (r#"{"properties":{"a":"#.repeat(depth), "}}".repeat(depth));
    rig.define_raw("deep", format!(r#"{{"name":"deep","inputSchema":{open}{{}}{close}}}"#));
    rig.define_raw("odd", r#"{"name":7}"#.to_owned());
    let router = Router::start(&rig.yaml("up", "")).await;
    let shown = async || {
        eventually(LISTED, "it was asked", || async {
            let server = router.http.get("/mcp/servers/up").await.expect(200).json();
            (server["state"] == "up" && server["stale"] == false && server["tools"] != 0)
                .then_some(server)
        })
        .await
    };
    let server = shown().await;
    assert_eq!(server["tools"], 1, "{server}");
    let left_out = &server["left_out"];
    assert_eq!(left_out.as_array().map(Vec::len), Some(1), "{left_out}");
    assert_eq!((&left_out[0]["list"], &left_out[0]["count"]), (&"tools".into(), &2.into()));
    let reason = left_out[0]["reason"].as_str().unwrap();
    assert!(reason.contains("deep") && reason.len() < 1000, "{reason}");
    let told = router.run(&["servers", "show", "up"]).await.expect(0).out;
    let line = format!("left out     2 of its tools, the first: {reason}");
    assert!(told.contains(&line), "{told}");
    // And no longer once nothing is.
    for name in ["deep", "odd"] {
        rig.define(name, json!({ "name": name, "inputSchema": { "type": "object" } }));
    }
    let socket = Http::socket(router.data_dir().join(switchyard::app::ADMIN_SOCKET));
    socket.post("/mcp/servers/up/refresh", "").await.expect(200);
    let server = shown().await;
    assert_eq!((&server["tools"], &server["left_out"]), (&3.into(), &json!([])), "{server}");
    assert_eq!(router.stop().await.0, 0);
}
