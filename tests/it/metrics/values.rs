//! Whether single metrics say what is so.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json, value::RawValue};
use switchyard::cli::demo_upstream::Options;
use switchyard::model::{BreakerState, Outcome};

use crate::support::{
    Fault, Http, Legacy, Rig, Router, SOON, TestApp, eventually, figure, legacy_body, modern,
    refusing, stdio, total, upstream, yaml,
};

const HI: &str = r#"{"text":"hi"}"#;
/// In which time what is looked at on a timer is looked at again.
const LOOK: Duration = Duration::from_secs(20);
const CLASSES: [&str; 3] = ["key", "client", "anonymous"];

/// What kind of caller a row of the ledger is of.
fn class_of(call: &Value) -> &'static str {
    match (call["caller"].as_str().unwrap(), call["client_name"].is_string()) {
        ("anonymous", true) => "client",
        ("anonymous" | "unauthenticated", false) => "anonymous",
        _ => "key",
    }
}

async fn shown(socket: &Http, class: &str, outcome: &str) -> f64 {
    let labels = [format!("caller_class=\"{class}\""), format!("outcome=\"{outcome}\"")];
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    total(socket, "switchyard_calls_total", &labels).await
}

#[tokio::test]
async fn calls_are_counted_by_class_and_outcome_as_the_ledger_has_them() {
    let up = upstream(Options::default()).await;
    let settings = format!(
        "defaults: {{retry_mode: off, circuit_breaker_threshold: 1000}}\n{}  away: {{url: \"http://{}/mcp\"}}\n",
        yaml(&[("up", &up)]),
        refusing().await,
    );
    let app = TestApp::start(&settings).await;
    let socket = app.socket();
    for class in CLASSES {
        for outcome in Outcome::ALL {
            assert_eq!(shown(&socket, class, outcome.as_str()).await, 0.0, "{class} {outcome:?}");
        }
    }
    let app = app.ready().await;
    let key = app.keyed("ci", &["call", "read"]).await;
    let reader = app.keyed("reader", &["read"]).await;
    let client = Legacy::connect(app.http()).await;
    for tool in ["up__echo", "up__fail", "up__rpc_error", "nobody__has", "away__echo"] {
        for http in [app.http(), &key, &socket] {
            http.call(tool, r#"{"text":"hi","message":"no"}"#).await;
        }
        client.call(tool, HI).await;
        modern(app.http(), "tools/call", Some(tool), r#","arguments":{}"#).await;
        reader.call(tool, HI).await.expect(403);
    }
    app.http().post("/mcp/call", "{").await.expect(400);
    // One whose caller goes away.
    let slow = format!(r#"{{"tool_name":"up__sleep","arguments":{}}}"#, r#"{"ms":60000}"#);
    let call = app.http().request(&http::Method::POST, "/mcp/call").body(slow);
    let _elapsed = tokio::time::timeout(Duration::from_millis(500), call.send()).await;
    eventually(SOON, "metrics and ledger say the same", || async {
        let mut rows: BTreeMap<(&str, String), f64> = BTreeMap::new();
        for call in app.calls("limit=1000").await {
            let outcome = call["outcome"].as_str().unwrap().to_owned();
            *rows.entry((class_of(&call), outcome)).or_default() += 1.0;
        }
        let (mut same, mut all) = (true, 0.0);
        for class in CLASSES {
            for outcome in Outcome::ALL.map(Outcome::as_str) {
                let counted = shown(&socket, class, outcome).await;
                all += counted;
                same &= counted == rows.get(&(class, outcome.to_owned())).copied().unwrap_or(0.0);
            }
        }
        let outcomes: std::collections::BTreeSet<_> =
            rows.keys().map(|(_, outcome)| outcome.as_str()).collect();
        let seen = ["ok", "tool_error", "rpc_error", "refused", "cancelled"];
        // Thirty by name, and the one that was left; what is malformed beside.
        (same && all >= 31.0 && seen.iter().all(|outcome| outcomes.contains(outcome))).then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn what_the_data_folder_takes_is_shown_from_the_first_scrape() {
    let app = TestApp::start("audit: {max_size: 32MiB}\n").await;
    let file = |family: &str, file: &str| format!("switchyard_store_{family}{{file=\"{file}\"}}");
    for name in ["state.db", "audit.db"] {
        assert!(app.metric(&file("size_bytes", name)).await > Some(0.0), "{name}");
    }
    for (name, limit) in [("state.db", 0), ("audit.db", 32 << 20), ("audit-index.db", 0)] {
        let shown = app.metric(&file("limit_bytes", name)).await;
        assert_eq!(shown, Some(f64::from(limit)), "{name}");
    }
    let folder = app.data_dir();
    let disk = rustix::fs::statvfs(&folder).unwrap();
    let free = app.metric("switchyard_store_free_bytes").await.unwrap();
    assert!(free > 0.0 && free <= (disk.f_blocks * disk.f_frsize) as f64, "{free}");
    assert_eq!(app.metric("switchyard_audit_queue_limit").await, Some(16_384.0));
    let lag = app.metric("switchyard_audit_index_lag_seconds").await.unwrap();
    assert!((0.0..60.0).contains(&lag), "{lag}");
    for _ in 0..20 {
        app.http().call("nobody__has", "{}").await.expect(404);
    }
    // A timer takes them; nothing but this test writes meanwhile.
    eventually(LOOK, "the files' sizes are shown", || async {
        for name in ["state.db", "audit.db", "audit-index.db"] {
            let length = |name: &str| std::fs::metadata(folder.join(name)).map_or(0, |m| m.len());
            let (size, wal) = (length(name), length(&format!("{name}-wal")));
            if app.metric(&file("size_bytes", name)).await? != size as f64
                || app.metric(&file("wal_bytes", name)).await? != wal as f64
            {
                return None;
            }
        }
        let lag = app.metric("switchyard_audit_index_lag_seconds").await?;
        let oldest = app.metric("switchyard_audit_oldest_timestamp_seconds").await?;
        (lag == 0.0 && oldest > 1.7e9).then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn tokens_are_those_of_the_definitions_as_listed() {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Tool<'a> {
        name: &'a str,
        #[serde(default)]
        description: String,
        #[serde(borrow)]
        input_schema: &'a RawValue,
    }
    let rig = Rig::legacy(&["read", "write", "secret"]).await;
    let schema = json!({"type": "object", "properties": {"path": {"type": "string"}}});
    rig.define("write", json!({"name": "write", "description": "Wörter.", "inputSchema": schema}));
    let settings = rig.yaml("up", "tools: {deny: [secret]}");
    let app = TestApp::start(&settings).await.ready().await;
    let sample = r#"switchyard_tool_definition_tokens{server="up"}"#;
    let list = app.http().post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    let list: BTreeMap<&str, &RawValue> = serde_json::from_slice(&list.body).unwrap();
    let list: BTreeMap<&str, &RawValue> = serde_json::from_str(list["result"].get()).unwrap();
    let tools: Vec<Tool<'_>> = serde_json::from_str(list["tools"].get()).unwrap();
    let bytes = tools.iter().map(|tool| {
        assert!(!tool.name.contains("secret"));
        tool.name.len() + tool.description.len() + tool.input_schema.get().len()
    });
    let tokens = bytes.sum::<usize>().div_ceil(4);
    assert_eq!(tools.len(), 2);
    assert_eq!(app.metric(sample).await, Some(tokens as f64));
    app.socket().post("/mcp/servers/up/disable", "").await.expect(200);
    eventually(SOON, "nothing is listed of it", || async {
        (app.metric(sample).await? == 0.0).then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn root_processes_stand_beside_what_the_configuration_allows() {
    let child =
        |name: &str, more: &str| stdio(name, &[]).replace("]}\n", &format!("], {more}}}\n"));
    let settings = format!(
        "mcp_servers:\n{}{}{}  far: {{url: \"http://127.0.0.1:9/mcp\", enabled: false}}\n",
        stdio("one", &[]),
        child("many", "sessions: isolated, max_sessions: 3"),
        child("off", "enabled: false")
    );
    let app = TestApp::start(&settings).await.ready().await;
    let sample =
        |family: &str, server: &str| format!("switchyard_child_{family}{{server=\"{server}\"}}");
    for (server, limit) in [("one", 1.0), ("many", 4.0), ("off", 0.0)] {
        assert_eq!(app.metric(&sample("processes_limit", server)).await, Some(limit), "{server}");
    }
    assert_eq!(app.metric(&sample("processes_limit", "far")).await, None);
    let first = Legacy::connect(app.http()).await;
    first.call("many__echo", HI).await.expect(200);
    for (server, roots) in [("one", 1.0), ("many", 2.0), ("off", 0.0)] {
        eventually(LOOK, "they are counted", || async {
            let found = app.metric(&sample("root_processes", server)).await?;
            let all = app.metric(&sample("processes", server)).await?;
            (found == roots && all >= found).then_some(())
        })
        .await;
    }
    app.socket().post("/mcp/servers/one/disable", "").await.expect(200);
    assert_eq!(app.metric(&sample("processes_limit", "one")).await, Some(0.0));
    app.stop().await;
}

#[tokio::test]
async fn a_server_that_does_not_let_us_in_is_shown_as_that() {
    let rig = Rig::legacy(&["read"]).await;
    for method in ["initialize", "server/discover"] {
        rig.set(method, Fault::bare_status(401));
    }
    let settings = rig.yaml("up", "retry_mode: off, circuit_breaker_threshold: 1000");
    let app = TestApp::start(&settings).await;
    let shows = async |value: f64| {
        eventually(SOON, &format!("it shows {value}"), || async {
            let shown = app.metric(r#"switchyard_upstream_unauthorised{server="up"}"#).await?;
            (shown == value).then_some(())
        })
        .await;
    };
    shows(1.0).await;
    assert_eq!(app.metric(r#"switchyard_upstream_up{server="up"}"#).await, Some(1.0));
    for method in ["initialize", "server/discover"] {
        rig.set(method, Fault::None);
    }
    app.socket().post("/mcp/servers/up/reconnect", "").await.expect(200);
    shows(0.0).await;
    for (status, value) in [(403, 1.0), (200, 0.0), (401, 1.0), (500, 0.0)] {
        let fault = if status == 200 { Fault::None } else { Fault::bare_status(status) };
        rig.set("read", fault);
        app.http().call("up__read", "{}").await.expect(200);
        shows(value).await;
    }
    app.stop().await;
}

#[tokio::test]
async fn after_a_kill_counters_begin_at_zero_and_gauges_are_right_at_once() {
    let rig = Rig::legacy(&["pay", "read"]).await;
    let settings = format!(
        "audit: {{durability: strict}}\n{}",
        rig.yaml(
            "up",
            "retry_mode: off, circuit_breaker_threshold: 1, circuit_breaker_timeout: 10m"
        )
    );
    let router = Router::start(&settings).await;
    let socket =
        |router: &Router| Http::socket(router.data_dir().join(switchyard::app::ADMIN_SOCKET));
    eventually(SOON, "its tools are known", || async {
        (router.http.server("up").await?["tools"] == 2).then_some(())
    })
    .await;
    for _ in 0..figure(3, 50) {
        router.http.call("up__read", "{}").await.expect(200);
    }
    // One is under way when the router is killed, and its beginning is on record.
    rig.set("pay", Fault::hold(Fault::None));
    let began = std::time::Instant::now();
    let began_at = jiff::Timestamp::now().as_second() as f64;
    let http = router.http.clone();
    let held = tokio::spawn(async move {
        let body = r#"{"tool_name":"up__pay","arguments":{}}"#;
        let call = http.request(&http::Method::POST, "/mcp/call").body(body);
        call.try_send().await.is_ok()
    });
    rig.call("pay", began).await;
    rig.set("read", Fault::Reset);
    router.http.call("up__read", "{}").await.expect(200);
    // Asked for from the database, and so stored.
    eventually(SOON, "the breaker opened", || async {
        let log = router.run(&["breakers", "history"]).await.expect(0).out;
        log.contains("open").then_some(())
    })
    .await;
    let tokens = total(&socket(&router), "switchyard_tool_definition_tokens", &[]).await;
    assert!(tokens > 0.0);
    let folder = router.kill().await;
    assert!(!held.await.unwrap());
    rig.down();

    let router = Router::start_in(folder, &settings).await;
    let socket = socket(&router);
    let answer = socket.get("/metrics").await.expect(200);
    let first = super::parse(answer.text());
    let value = |family: &str, labels: &str| -> f64 {
        let found = first.samples.iter().find(|(name, of, _)| name == family && of == labels);
        found.unwrap_or_else(|| panic!("no {family}{{{labels}}}")).2
    };
    for state in BreakerState::ALL.map(BreakerState::as_str) {
        let labels = format!(r#"server="up",state="{state}""#);
        let shown = value("switchyard_breaker_state", &labels);
        assert_eq!(shown, f64::from(u8::from(state == "open")), "{state}");
    }
    let until = value("switchyard_breaker_open_until_timestamp_seconds", r#"server="up""#);
    assert!(until > began_at, "{until}");
    // The server is away: what is known of it is from before the start.
    for family in ["last_success", "last_refresh"] {
        let family = format!("switchyard_upstream_{family}_timestamp_seconds");
        let at = value(&family, r#"server="up""#);
        assert!(at > began_at - 600.0, "{family}: {at}");
    }
    let tools: f64 = ["active", "stale"]
        .map(|status| {
            value("switchyard_upstream_tools", &format!(r#"server="up",status="{status}""#))
        })
        .iter()
        .sum();
    assert_eq!(tools, 2.0);
    assert_eq!(value("switchyard_tool_definition_tokens", r#"server="up""#), tokens);
    assert!(value("switchyard_audit_oldest_timestamp_seconds", "") > 1.7e9);
    for (name, labels, value) in &first.samples {
        let counts = name.starts_with("switchyard_") && first.kind[first.family(name)] == "counter";
        // What was cut off is put on record by this router.
        if counts && !labels.contains("interrupted") {
            assert_eq!(*value, 0.0, "{name}{{{labels}}}");
        }
    }
    for family in ["switchyard_calls_total", "switchyard_audit_events_total"] {
        eventually(SOON, "the call that was cut off is counted", || async {
            let interrupted = total(&socket, family, &["outcome=\"interrupted\""]).await;
            (interrupted == 1.0).then_some(())
        })
        .await;
    }
}
