//! What metrics cost, and that no caller can make them cost more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;
use switchyard::cli::demo_upstream::Options;
use switchyard::error::ErrorCode;
use switchyard::metrics::{CallLabels, Metrics, ToolMetrics};
use switchyard::model::{
    CallerClass, Entrance, ExposedName, Outcome, ProtocolVersion, ServerName, ToolStatus,
    TransportKind,
};

use super::{parse, scrape};
use crate::support::{
    Call, Http, Legacy, Rig, Router, SOON, TestApp, eventually, figure, legacy_body, modern_params,
    processor_time, upstream, yaml,
};

const HI: &str = r#"{"text":"hi"}"#;
const MIB: u64 = 1024 * 1024;
/// How much slower than a release build this one may be.
const SLOWER: u32 = if cfg!(debug_assertions) { 20 } else { 1 };

/// The fastest of some tries, in processor time: a busy machine only makes one slower.
fn fastest(mut work: impl FnMut()) -> Duration {
    let times = (0..7).map(|_| {
        let began = processor_time();
        work();
        processor_time() - began
    });
    times.min().unwrap()
}

fn tool(metrics: &Metrics, server: &str, tool: usize) -> Arc<ToolMetrics> {
    let exposed = ExposedName::parse(&format!("{server}__tool_{tool:03}")).unwrap();
    metrics.tool(Some(&ServerName::parse(server).unwrap()), Some(&exposed))
}

/// All that is recorded of one call.
fn record(metrics: &Metrics, tool: &ToolMetrics, failed: bool) {
    let took = Duration::from_micros(1234);
    let error = failed.then_some(ErrorCode::Timeout);
    let outcome = if failed { Outcome::Timeout } else { Outcome::Ok };
    let version = ProtocolVersion::V2025_11_25;
    metrics.audit.ended(CallerClass::Client, outcome);
    tool.observe_attempt(Some(version), TransportKind::Http, outcome, took);
    let entrance = Entrance::Mcp(version);
    tool.observe_call(CallLabels { entrance, over_socket: false, error }, took);
}

#[test]
fn recording_a_call_costs_less_than_a_microsecond() {
    const CALLS: u32 = 50_000;
    let metrics = Metrics::new().unwrap();
    let tool = tool(&metrics, "up", 1);
    for failed in [false, true] {
        let took = fastest(|| (0..CALLS).for_each(|_| record(&metrics, &tool, failed))) / CALLS;
        eprintln!("one call (failed: {failed}): {took:?} of processor time");
        assert!(took < Duration::from_micros(1) * SLOWER, "{took:?} (failed: {failed})");
    }
}

/// 200 servers with 50 tools each, 500 of them used.
fn large() -> Arc<Metrics> {
    let metrics = Metrics::new().unwrap();
    for number in 0..200 {
        let name = format!("server-{number:03}");
        let parsed = ServerName::parse(&name).unwrap();
        metrics.server(&parsed).set_tools(&[(ToolStatus::Active, 50)].into());
        let _breaker = metrics.breaker(&parsed, true);
        let tools: Vec<_> = (0..50).map(|number| tool(&metrics, &name, number)).collect();
        for tool in tools.iter().take(if number % 2 == 0 { 5 } else { 0 }) {
            record(&metrics, tool, false);
        }
    }
    metrics
}

#[test]
fn two_hundred_servers_and_five_hundred_used_tools_are_rendered_in_fifty_milliseconds() {
    let metrics = large();
    let text = String::from_utf8(metrics.render().unwrap()).unwrap();
    let used = text.lines().filter(|line| {
        line.starts_with("mcp_server_operation_duration_seconds_count{")
            && line.contains("gen_ai_tool_name=\"server-")
    });
    let used = used.count();
    assert_eq!(used, 500);
    let took = fastest(|| drop(metrics.render().unwrap()));
    let samples = parse(&text).samples.len();
    eprintln!("{samples} samples, {} bytes: {took:?} of processor time", text.len());
    assert!(took < Duration::from_millis(50) * SLOWER, "{took:?}");
}

/// A request with much in it that its sender made up.
fn invented(http: &Http, at: usize) -> Call {
    let tool = format!("invented_{at}");
    let call = match at % 6 {
        0 => {
            let body = format!(r#"{{"tool_name":"{tool}","arguments":{{"a{at}":{at}}}}}"#);
            http.request(&Method::POST, "/mcp/call").body(body)
        }
        1 => {
            let body = format!(r#"{{"name":"t{at}","server_name":"s{at}"}}"#);
            http.request(&Method::POST, "/mcp/call").body(body)
        }
        // A client with a name of its own.
        2 => {
            let members = format!(r#","name":"{tool}","arguments":{{}}"#);
            let params = modern_params(&members).replace("\"it\"", &format!("\"client-{at}\""));
            http.request(&Method::POST, "/mcp")
                .header("mcp-protocol-version", crate::support::MODERN)
                .header("mcp-method", "tools/call")
                .header("mcp-name", &tool)
                .body(legacy_body("tools/call", &params))
        }
        // A session that is not there.
        3 => {
            let params = format!(r#"{{"name":"{tool}","arguments":{{}}}}"#);
            http.request(&Method::POST, "/mcp")
                .header("mcp-session-id", &format!("session-{at}"))
                .header("mcp-protocol-version", crate::support::LEGACY)
                .body(legacy_body("tools/call", &params))
        }
        // A call that works, with a header that says something else each time.
        4 => {
            let body = format!(r#"{{"tool_name":"up__echo","arguments":{HI}}}"#);
            http.request(&Method::POST, "/mcp/call").body(body)
        }
        _ => http.request(&Method::POST, "/mcp").body(legacy_body(&format!("method/{at}"), "{}")),
    };
    let call = match at % 5 {
        0 => call.header("authorization", &format!("Bearer sw_key_{at}")),
        1 => call.header("mcp-protocol-version", &format!("2025-01-{at}")),
        _ => call,
    };
    call.header("user-agent", &format!("agent/{at}"))
        .header("x-request-id", &format!("request-{at}"))
        .header("accept", "application/json, text/event-stream")
}

/// Also the first of a kind finds its series there.
#[tokio::test]
async fn a_new_router_has_all_series_that_callers_can_invent_names_for() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start(&yaml(&[("up", &up)])).await.ready().await;
    let before = scrape(&app).await;
    for family in ["mcp_server_operation_duration_seconds", "mcp_client_operation_duration_seconds"]
    {
        assert_eq!(before.kind.get(family).map(String::as_str), Some("histogram"), "{family}");
        assert!(before.help.contains_key(family), "{family}");
    }
    let mut line = app.http().line().await;
    // Without those of them that call a tool that is there.
    for at in (0..90).filter(|at| at % 6 != 4) {
        let answer = line.send(invented(app.http(), at)).await;
        assert!((400..500).contains(&answer.status) || answer.json()["error"].is_object(), "{at}");
    }
    Legacy::connect(app.http()).await.call("invented", HI).await;
    let (after, before) = (scrape(&app).await.series(), before.series());
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&(String, String)>::new());
    app.stop().await;
}

#[tokio::test]
async fn nothing_that_callers_invent_adds_a_series() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start(&yaml(&[("up", &up)])).await.ready().await;
    let send = async |range: std::ops::Range<usize>| {
        let mut line = app.http().line().await;
        for at in range {
            let answer = line.send(invented(app.http(), at)).await;
            assert!(answer.status < 500, "{at}: {}", answer.status);
        }
    };
    // Each kind of request in each of its forms makes the series that there are.
    send(0..60).await;
    let client = Legacy::connect(app.http()).await;
    client.call("up__echo", HI).await.expect(200);
    client.call("invented", HI).await;
    let settled = async || {
        eventually(SOON, "all is committed", || async {
            (app.metric("switchyard_audit_queue_depth").await? == 0.0).then_some(())
        })
        .await;
        scrape(&app).await.series()
    };
    let before = settled().await;
    let calls = figure(5_000, 100_000);
    let each = calls / 8;
    let sending = (0..8).map(|part| send(1_000 + part * each..1_000 + (part + 1) * each));
    futures_util::future::join_all(sending).await;
    for _ in 0..figure(20, 200) {
        let client = Legacy::connect(app.http()).await;
        client.call("up__echo", HI).await.expect(200);
    }
    let after = settled().await;
    let new: Vec<_> = after.difference(&before).collect();
    assert!(new.is_empty(), "{new:?}");
    let text = app.http().get("/metrics").await.expect(200);
    let words: BTreeSet<_> = ["invented", "client-", "session-", "agent/", "method/", "request-"]
        .into_iter()
        .filter(|word| text.text().contains(word))
        .collect();
    assert!(words.is_empty(), "{words:?}");
    app.stop().await;
}

/// Tools that have series, with the server that has them.
fn called(scrape: &super::Scrape) -> BTreeSet<String> {
    let counts = scrape
        .samples
        .iter()
        .filter(|(name, ..)| name == "mcp_server_operation_duration_seconds_count");
    let labels = counts.flat_map(|(_, labels, _)| labels.split(','));
    labels.filter(|label| label.starts_with("gen_ai_tool_name=\"up__")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_server_that_names_its_tools_anew_again_and_again_leaves_few_series() {
    const TOOLS: usize = 50;
    let rig = Rig::legacy(&["at_first"]).await;
    let app = TestApp::start(&rig.yaml("up", "")).await.ready().await;
    let rounds = figure(7, 200);
    for round in 0..rounds {
        for at in 0..TOOLS {
            if round > 0 {
                rig.forget(&format!("tool_{}_{at}", round - 1));
            }
            let name = format!("tool_{round}_{at}");
            rig.define(&name, json!({ "name": name, "inputSchema": { "type": "object" } }));
        }
        app.socket().post("/mcp/servers/up/refresh", "").await.expect(200);
        let mut line = app.http().line().await;
        for at in 0..TOOLS {
            let body = format!(r#"{{"tool_name":"up__tool_{round}_{at}","arguments":{{}}}}"#);
            let call = app.http().request(&Method::POST, "/mcp/call").body(body);
            line.send(call).await.expect(200);
        }
    }
    let scrape = scrape(&app).await;
    let tools = called(&scrape);
    // Two hundred that are gone, and those that are there.
    assert_eq!(tools.len(), 200 + TOOLS, "{tools:?}");
    let of = |round: usize| format!("gen_ai_tool_name=\"up__tool_{round}_");
    let has = |round: usize| tools.iter().filter(|tool| tool.starts_with(&of(round))).count();
    assert_eq!([has(0), has(rounds - 2), has(rounds - 1)], [0, TOOLS, TOOLS]);
    let overflow =
        scrape.samples.iter().find(|(name, ..)| name == "switchyard_metrics_overflow_total");
    assert_eq!(overflow.unwrap().2, 0.0);
    app.stop().await;
}

/// A router in front of `servers` servers with 50 tools each, which are one and the same.
async fn wide(servers: usize) -> (Router, switchyard::cli::demo_upstream::Upstream) {
    let up = upstream(Options { extra_tools: 39, ..Options::default() }).await;
    let lines: String =
        (0..servers).map(|at| format!("  s{at:03}: {{url: \"{}\"}}\n", up.url())).collect();
    let router = Router::start(&format!("mcp_servers:\n{lines}")).await;
    eventually(Duration::from_secs(60), "all tools are known", || async {
        let answer = router.http.get("/mcp/servers").await.json();
        let servers = answer["servers"].as_array()?;
        servers.iter().all(|server| server["tools"] == 50).then_some(())
    })
    .await;
    (router, up)
}

#[tokio::test]
async fn many_servers_and_tools_cost_little_time_and_memory() {
    let (servers, used) = (figure(20, 200), figure(50, 500));
    let (router, _up) = wide(servers).await;
    router.http.call("s000__echo", HI).await.expect(200);
    let idle = router.resident();
    router.forget_peak();
    let mut line = router.http.line().await;
    for at in 0..used {
        let tool = format!("s{:03}__extra_{}", at % servers, at / servers);
        let body = format!(r#"{{"tool_name":"{tool}","arguments":{HI}}}"#);
        let call = router.http.request(&Method::POST, "/mcp/call").body(body);
        line.send(call).await.expect(200);
    }
    let called = router.resident().saturating_sub(idle);
    let (scrapes, mut wall) = (20, Vec::new());
    let before = router.cpu();
    let mut bytes = 0;
    for _ in 0..scrapes {
        let began = Instant::now();
        let answer = line.send(router.http.request(&Method::GET, "/metrics")).await.expect(200);
        wall.push(began.elapsed());
        bytes = answer.body.len();
    }
    let cpu = (router.cpu() - before) / scrapes;
    let text = router.http.get("/metrics").await.expect(200);
    let seen = text.text().matches("mcp_client_operation_duration_seconds_count{").count();
    assert_eq!(seen, used + 1);
    let grown = router.peak().saturating_sub(idle);
    eprintln!(
        "{servers} servers, {used} tools used: {bytes} bytes, {cpu:?} of processor time and {:?} at best for a scrape, {:.1} MiB above the router before ({:.1} of them of the calls)",
        wall.iter().min().unwrap(),
        grown as f64 / MIB as f64,
        called as f64 / MIB as f64
    );
    assert!(grown < 40 * MIB, "{} MiB", grown / MIB);
    let slower = if std::env::var_os("SWITCHYARD_BIN").is_some() { 1 } else { SLOWER };
    assert!(cpu < Duration::from_millis(50) * slower, "{cpu:?}");
}

#[tokio::test]
async fn memory_does_not_grow_with_calls_and_scrapes() {
    let (router, _up) = wide(3).await;
    let mut line = router.http.line().await;
    let mut turn = async |times: usize| {
        for at in 0..times {
            let call = match at % 2 {
                0 => router.http.request(&Method::GET, "/metrics"),
                _ => invented(&router.http, at / 2),
            };
            line.send(call).await;
        }
    };
    // What grows up to a bound (the ledger's queue, caches of the database) has grown then.
    turn(figure(600, 4_000)).await;
    let before = router.resident();
    turn(figure(1_200, 20_000)).await;
    let grown = router.resident().saturating_sub(before);
    let scrape = router.http.get("/metrics").await.expect(200).body.len() as u64;
    eprintln!("{} KiB more after {} scrapes of {scrape} bytes", grown / 1024, figure(600, 10_000));
    // A tenth of what would be kept of these scrapes alone.
    let bound = (scrape * figure(600, 10_000) as u64 / 10).max(4 * MIB);
    assert!(grown < bound, "{} KiB", grown / 1024);
}
