//! What is promised of servers and tools, and how their calls stand to it.

use std::path::Path;
use std::process::{Command, Output};

use http::Method;
use serde_json::Value;
use switchyard::app::ADMIN_SOCKET;

use crate::support::{Fault, Http, Rig, Router, SOON, eventually};

fn objective<'a>(all: &'a Value, tool: Option<&str>, name: &str) -> &'a Value {
    let tool = tool.map_or(Value::Null, Value::from);
    let all = all["objectives"].as_array().unwrap();
    let wanted = |one: &&Value| one["tool"] == tool && one["objective"] == name;
    all.iter().find(wanted).unwrap_or_else(|| panic!("no {name} of {tool}: {all:?}"))
}

async fn ready(router: &Router, tools: usize) {
    eventually(SOON, "its tools are known", || async {
        (router.http.server("up").await?["tools"] == tools).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_error_budget_is_what_faults_of_server_and_router_leave() {
    let rig = Rig::legacy(&["read", "write"]).await;
    let settings = rig.yaml(
        "up",
        "retry_mode: off, circuit_breaker_threshold: 1000, slo: {latency_p95: 20s, success: 90%}, tool_overrides: {write: {slo: {success: 99%, window: 7d}}}",
    );
    let router = Router::start(&settings).await;
    ready(&router, 2).await;
    let http = &router.http;
    for (fault, times) in
        [(Fault::None, 20), (Fault::ToolError, 5), (Fault::RpcError(-32000), 2), (Fault::Reset, 3)]
    {
        rig.set("read", fault);
        for _ in 0..times {
            http.call("up__read", "{}").await.expect(200);
        }
    }
    for _ in 0..4 {
        http.call("up__write", "{}").await.expect(200);
    }
    // What callers cause does not count.
    for _ in 0..10 {
        http.call("up__nothing", "{}").await.expect(404);
    }
    rig.set("read", Fault::hold(Fault::None));
    let body = r#"{"tool_name":"up__read","arguments":{"key":"left"}}"#;
    let call = http.request(&Method::POST, "/mcp/call").body(body);
    let _left = tokio::time::timeout(std::time::Duration::from_millis(300), call.send()).await;
    let all = eventually(SOON, "the call that was left is on record", || async {
        let cancelled = http.get("/mcp/audit?outcome=cancelled").await.expect(200).json();
        let found = cancelled["calls"].as_array()?.len() == 1;
        let all = http.get("/mcp/slo").await.expect(200).json();
        found.then_some(all)
    })
    .await;
    let success = objective(&all, None, "success");
    assert_eq!((&success["calls"], &success["bad"]), (&34.into(), &5.into()), "{success}");
    assert_eq!((&success["met"], &success["window"]), (&false.into(), &"30d".into()), "{success}");
    let near = |value: &Value, expected: f64| {
        let found = value.as_f64().unwrap_or_else(|| panic!("{value} in {all}"));
        assert!((found - expected).abs() < 1e-9, "{found} for {expected}");
    };
    near(&success["attained"], 29.0 / 34.0);
    near(&success["budget_left"], 1.0 - 5.0 / 3.4);
    for burn in ["burn_hour", "burn_day"] {
        near(&success[burn], 5.0 / 3.4);
    }
    let p95 = objective(&all, None, "latency_p95");
    assert_eq!((&p95["calls"], &p95["bad"], &p95["met"]), (&29.into(), &0.into(), &true.into()));
    near(&p95["within_ms"], 20_000.0);
    let write = objective(&all, Some("write"), "success");
    assert_eq!((&write["calls"], &write["bad"]), (&4.into(), &0.into()), "{write}");
    assert_eq!((&write["exposed"], &write["window"]), (&"up__write".into(), &"7d".into()));

    // A call that the breaker refuses is one that the server cost its caller.
    let socket = Http::socket(router.data_dir().join(ADMIN_SOCKET));
    let reason = r#"{"reason":"to see it refuse"}"#;
    socket.post("/mcp/circuit-breakers/up/open", reason).await.expect(200);
    http.call("up__write", "{}").await.expect(503);
    let all = http.get("/mcp/slo?server=up").await.expect(200).json();
    let write = objective(&all, Some("write"), "success");
    assert_eq!((&write["calls"], &write["bad"]), (&5.into(), &1.into()), "{write}");
    assert_eq!(write["met"], false, "{write}");
    // The same when all of it is in the ledger's index.
    eventually(SOON, "the index has it", || async {
        let all = http.get("/mcp/slo").await.expect(200).json();
        (all["index"]["behind"] == 0).then_some(())
    })
    .await;
    let again = http.get("/mcp/slo?server=up").await.expect(200).json();
    assert_eq!(again["objectives"], all["objectives"]);
    let problem = http.get("/mcp/slo?server=upp").await.expect(404).json();
    assert_eq!(problem["nearest"][0], "up", "{problem}");

    let shown = router.run(&["slo"]).await.expect(0).out;
    for word in ["latency_p95", "95% within 20.0 s", "write", "80%", "BUDGET LEFT"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let json = router.run(&["slo", "--json", "--server", "up"]).await.expect(0).json();
    assert_eq!(json["objectives"], all["objectives"]);
    let missed = router.run(&["slo", "--check"]).await.expect(1).err;
    assert_eq!(missed.matches("missed: success of").count(), 2, "{missed}");
    router.run(&["slo", "--server", "upp"]).await.expect(1);
}

#[tokio::test]
async fn nothing_is_missed_where_nothing_is_promised_or_called() {
    let rig = Rig::legacy(&["read"]).await;
    let router = Router::start(&rig.yaml("up", "")).await;
    ready(&router, 1).await;
    let shown = router.run(&["slo", "--check"]).await.expect(0).out;
    assert!(shown.contains("nothing is promised yet"), "{shown}");
    let rules = router.run(&["slo", "--prometheus"]).await.expect(0).out;
    assert!(rules.ends_with("groups: []\n"), "{rules}");
    // Over the API, while it runs, of a tool that nobody has called.
    let socket = Http::socket(router.data_dir().join(ADMIN_SOCKET));
    let body = format!(
        r#"{{"name":"added","url":"{}","slo":{{"success":0.999}},"tool_overrides":{{"read":{{"slo":{{"latency_p99":"1s"}}}}}}}}"#,
        rig.url()
    );
    socket.post("/mcp/servers", body).await.expect(201);
    let all = router.http.get("/mcp/slo").await.expect(200).json();
    assert_eq!(all["total"], 2, "{all}");
    let success = objective(&all, None, "success");
    assert_eq!((&success["calls"], &success["met"]), (&0.into(), &true.into()), "{success}");
    assert!(success["attained"].is_null() && success["burn_hour"].is_null(), "{success}");
    assert_eq!(success["budget_left"], 1.0, "{success}");
    router.run(&["slo", "--check"]).await.expect(0);
}

/// `promtool` with these arguments; `None` where it is not installed.
fn promtool(folder: &Path, arguments: &[&str]) -> Option<Output> {
    match Command::new("promtool").args(arguments).current_dir(folder).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("promtool is not installed: nothing but YAML was checked");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Calls of `quiet` all succeed. Every fifth of `up` fails, and of those that succeed one half takes
/// longer than 2 s and the other less than 1 s.
const RULES_TEST: &str = r#"
rule_files: [slo.yaml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'mcp_server_operation_duration_seconds_count{mcp_method_name="tools/call",gen_ai_tool_name="up__read",error_type=""}'
        values: '0+80x500'
      - series: 'mcp_server_operation_duration_seconds_bucket{mcp_method_name="tools/call",gen_ai_tool_name="up__read",error_type="",le="1"}'
        values: '0+40x500'
      - series: 'mcp_server_operation_duration_seconds_bucket{mcp_method_name="tools/call",gen_ai_tool_name="up__read",error_type="",le="2"}'
        values: '0+40x500'
      - series: 'mcp_server_operation_duration_seconds_bucket{mcp_method_name="tools/call",gen_ai_tool_name="up__read",error_type="",le="5"}'
        values: '0+80x500'
      - series: 'mcp_server_operation_duration_seconds_count{mcp_method_name="tools/call",gen_ai_tool_name="up__read",error_type="MCPConnectionError"}'
        values: '0+20x500'
      - series: 'mcp_server_operation_duration_seconds_count{mcp_method_name="tools/call",gen_ai_tool_name="up__read",error_type="MCPToolNotFoundError"}'
        values: '0+500x500'
      - series: 'mcp_server_operation_duration_seconds_count{mcp_method_name="tools/call",gen_ai_tool_name="up__longer__read",error_type="MCPConnectionError"}'
        values: '0+500x500'
      - series: 'mcp_server_operation_duration_seconds_count{instance="second",mcp_method_name="tools/call",gen_ai_tool_name="up__read",error_type=""}'
        values: '0+900x500'
      - series: 'mcp_server_operation_duration_seconds_bucket{instance="second",mcp_method_name="tools/call",gen_ai_tool_name="up__read",error_type="",le="0.5"}'
        values: '0+900x500'
      - series: 'mcp_server_operation_duration_seconds_bucket{instance="second",mcp_method_name="tools/call",gen_ai_tool_name="up__read",error_type="",le="1"}'
        values: '0+900x500'
      - series: 'mcp_server_operation_duration_seconds_bucket{instance="second",mcp_method_name="tools/call",gen_ai_tool_name="up__read",error_type="",le="2"}'
        values: '0+900x500'
      - series: 'mcp_server_operation_duration_seconds_bucket{instance="second",mcp_method_name="tools/call",gen_ai_tool_name="up__read",error_type="",le="5"}'
        values: '0+900x500'
      - series: 'mcp_server_operation_duration_seconds_count{mcp_method_name="tools/call",gen_ai_tool_name="quiet__read",error_type=""}'
        values: '0+100x500'
      - series: 'mcp_server_operation_duration_seconds_bucket{mcp_method_name="tools/call",gen_ai_tool_name="quiet__read",error_type="",le="0.5"}'
        values: '0+100x500'
    promql_expr_test:
      - expr: switchyard:slo_bad:ratio_rate1h{instance="",server="up",tool="",objective="success"}
        eval_time: 2h
        exp_samples:
          - {labels: 'switchyard:slo_bad:ratio_rate1h{server="up",objective="success"}', value: 0.2}
      - expr: round(switchyard:slo_bad:ratio_rate1h{instance="",server="up",tool="read",objective="latency_p95"}, 0.001)
        eval_time: 2h
        exp_samples:
          - {labels: '{server="up",tool="read",objective="latency_p95"}', value: 0.5}
      - expr: round(switchyard:slo_bad:ratio_rate1h{instance="",server="up",tool="read",objective="latency_p99"}, 0.001)
        eval_time: 2h
        exp_samples:
          - {labels: '{server="up",tool="read",objective="latency_p99"}', value: 0.25}
      - expr: count by (severity) (ALERTS{alertstate="firing",server="up",tool="",objective="success"})
        eval_time: 2h
        exp_samples:
          - {labels: '{severity="page"}', value: 2}
          - {labels: '{severity="ticket"}', value: 1}
      - expr: ALERTS{server="quiet"}
        eval_time: 2h
        exp_samples: []
      # Of two routers each stands for itself.
      - expr: switchyard:slo_bad:ratio_rate1h{instance="second",server="up",tool="",objective="success"}
        eval_time: 2h
        exp_samples:
          - {labels: 'switchyard:slo_bad:ratio_rate1h{instance="second",server="up",objective="success"}', value: 0}
"#;

#[tokio::test]
async fn prometheus_takes_the_rules_and_they_fire_when_the_budget_burns() {
    let rig = Rig::legacy(&["read", "odd.na\"me"]).await;
    let settings = format!(
        "mcp_servers:\n{}{}{}",
        rig.entry(
            "up",
            r#"slo: {success: 99%, latency_p50: 1s}, tool_overrides: {read: {slo: {latency_p95: 2s, latency_p99: 3500ms, window: 7d}}, 'odd.na"me': {slo: {success: 99.99%}}, gone: {slo: {success: 90%}}}"#
        ),
        rig.entry("up__longer", ""),
        rig.entry("quiet", "slo: {success: 99.9%, latency_p99: 500ms}")
    );
    let router = Router::start(&settings).await;
    ready(&router, 2).await;
    let rules = router.run(&["slo", "--prometheus"]).await.expect(0).out;
    let parsed: Value = serde_yaml::from_str(&rules).unwrap_or_else(|e| panic!("{e}: {rules}"));
    let groups = parsed["groups"].as_array().unwrap();
    let [records, alerts] = &groups[..] else { panic!("{parsed}") };
    // Eight objectives over five times; 14.4 and 6 times the budget of a median, and 14.4 times that
    // of 90 %, are more than all calls.
    assert_eq!(records["rules"].as_array().unwrap().len(), 8 * 5, "{rules}");
    assert_eq!(alerts["rules"].as_array().unwrap().len(), 8 * 3 - 3, "{rules}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("slo.yaml"), &rules).unwrap();
    std::fs::write(folder.path().join("test.yaml"), RULES_TEST).unwrap();
    for arguments in [["check", "rules", "slo.yaml"], ["test", "rules", "test.yaml"]] {
        let Some(output) = promtool(folder.path(), &arguments) else { continue };
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}\n{rules}");
    }
    // The series that the rules ask for are those that there are.
    router.http.call("up__read", "{}").await.expect(200);
    let metrics = router.http.get("/metrics").await.expect(200);
    for series in [
        r#"mcp_server_operation_duration_seconds_count{error_type="",gen_ai_tool_name="up__read",mcp_method_name="tools/call""#,
        r#"mcp_server_operation_duration_seconds_bucket{error_type="",gen_ai_tool_name="up__read",mcp_method_name="tools/call""#,
        r#"le="2""#,
    ] {
        assert!(metrics.text().contains(series), "{series}");
    }
}
