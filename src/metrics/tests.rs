use std::time::Duration;

use super::*;
use crate::error::ErrorCode;
use crate::model::{Entrance, ExposedName, Outcome, ProtocolVersion, TransportKind, ViewName};

fn call(metrics: &Metrics, server: &str, tool: &str, error: Option<ErrorCode>) {
    let server = ServerName::parse(server).unwrap();
    let exposed = ExposedName::parse(tool).unwrap();
    let tool = metrics.tool(Some(&server), Some(&exposed));
    let version = ProtocolVersion::V2025_06_18;
    let took = Duration::from_millis(3);
    for entrance in [Entrance::Rest, Entrance::Mcp(version)] {
        for over_socket in [false, true] {
            tool.observe_call(CallLabels { entrance, over_socket, error }, took);
        }
    }
    let outcome = error.map_or(Outcome::Ok, |_| Outcome::Timeout);
    tool.observe_attempt(Some(version), TransportKind::Http, outcome, took);
    tool.observe_attempt(None, TransportKind::Stdio, outcome, took);
}

fn text(metrics: &Metrics) -> String {
    String::from_utf8(metrics.render().unwrap()).unwrap()
}

#[test]
fn a_server_that_is_gone_leaves_nothing() {
    let metrics = Metrics::new().unwrap();
    let _other = metrics.server(&ServerName::parse("stays").unwrap());
    call(&metrics, "stays", "stays__get", None);
    let entrance = Entrance::Mcp(ProtocolVersion::V2025_06_18);
    let labels = CallLabels { entrance, over_socket: true, error: None };
    metrics.observe_operation("tools/list", labels, Duration::from_millis(1));
    let before = text(&metrics);
    let gone = ServerName::parse("gone").unwrap();
    metrics.server(&gone).set_tools(&HashMap::from([(ToolStatus::Active, 2)]));
    for error in [None, Some(ErrorCode::Timeout)] {
        call(&metrics, "gone", "gone__get", error);
        call(&metrics, "gone", "other_name", error);
    }
    let how = (TransportKind::Http, Outcome::Timeout);
    metrics.observe_forwarded("prompts/get", &gone, None, how, Duration::from_millis(1));
    let with = text(&metrics);
    assert!(with.contains("mcp_method_name=\"prompts/get\""), "{with}");
    for name in ["gen_ai_tool_name=\"gone__get\"", "gen_ai_tool_name=\"other_name\""] {
        assert!(with.contains(name), "{with}");
    }
    metrics.forget_server(&gone);
    let series = |text: &str| -> Vec<String> {
        let own = text.lines().filter(|line| !line.contains("process_"));
        own.map(str::to_owned).collect()
    };
    assert_eq!(series(&text(&metrics)), series(&before));
}

#[test]
fn a_view_begins_at_zero_and_leaves_nothing() {
    let metrics = Metrics::new().unwrap();
    let before = text(&metrics);
    let view = ViewName::parse("support").unwrap();
    let handles = metrics.view(&view);
    let sample = |outcome: &str, value: u64| {
        format!("switchyard_view_calls_total{{outcome=\"{outcome}\",view=\"support\"}} {value}\n")
    };
    for outcome in Outcome::ALL {
        assert!(text(&metrics).contains(&sample(outcome.as_str(), 0)));
    }
    handles.count(Outcome::Refused);
    assert!(text(&metrics).contains(&sample("refused", 1)));
    assert!(text(&metrics).contains(&sample("ok", 0)));
    // The same view again goes on counting.
    metrics.view(&view).count(Outcome::Refused);
    assert!(text(&metrics).contains(&sample("refused", 2)));
    metrics.forget_view(&view);
    assert!(!text(&metrics).contains("view_calls"));
    let own = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.contains("process_")).map(str::to_owned).collect()
    };
    assert_eq!(own(&text(&metrics)), own(&before));
}

#[test]
fn a_name_that_another_server_took_over_stays_its_own() {
    let metrics = Metrics::new().unwrap();
    call(&metrics, "first", "get", None);
    call(&metrics, "second", "get", None);
    metrics.forget_server(&ServerName::parse("first").unwrap());
    let text = text(&metrics);
    assert!(text.contains("gen_ai_tool_name=\"get\""), "{text}");
    assert!(text.contains("server=\"second\"") && !text.contains("server=\"first\""), "{text}");
}

#[test]
fn the_build_says_what_it_was_built_from() {
    let metrics = Metrics::new().unwrap();
    let text = text(&metrics);
    let line = text.lines().find(|line| line.starts_with("switchyard_build_info{")).unwrap();
    assert!(line.contains("revision=\"") && !line.contains("revision=\"\""), "{line}");
}

#[test]
fn every_error_of_every_door_has_a_series_of_its_own() {
    let metrics = Metrics::new().unwrap();
    let (server, tool) = (ServerName::parse("s").unwrap(), ExposedName::parse("s__get").unwrap());
    let handles = metrics.tool(Some(&server), Some(&tool));
    let errors = || std::iter::once(None).chain(ErrorCode::ALL.map(Some));
    let versions = ProtocolVersion::ALL;
    // Each so often as tells it from all others.
    let mut expected = Vec::new();
    for (n, error) in errors().enumerate() {
        for (m, version) in std::iter::once(None).chain(versions.map(Some)).enumerate() {
            for over_socket in [false, true] {
                let times = 1 + 20 * n + 2 * m + usize::from(over_socket);
                let entrance = version.map_or(Entrance::Rest, Entrance::Mcp);
                for _ in 0..times {
                    let labels = CallLabels { entrance, over_socket, error };
                    handles.observe_call(labels, Duration::from_millis(1));
                }
                let error = match error {
                    None => "",
                    Some(ErrorCode::Tool) => "tool_error",
                    Some(code) => code.as_str(),
                };
                let version = version.map_or("", ProtocolVersion::as_str);
                let transport = if over_socket { "unix" } else { "tcp" };
                expected.push(format!(
                    "mcp_server_operation_duration_seconds_count{{error_type=\"{error}\",gen_ai_tool_name=\"s__get\",mcp_method_name=\"tools/call\",mcp_protocol_version=\"{version}\",network_transport=\"{transport}\",server=\"s\"}} {times}\n"
                ));
            }
        }
    }
    for (n, outcome) in Outcome::ALL.into_iter().enumerate() {
        for _ in 0..=n {
            handles.observe_attempt(None, TransportKind::Http, outcome, Duration::ZERO);
        }
        let error = if outcome == Outcome::Ok { "" } else { outcome.as_str() };
        expected.push(format!(
            "mcp_client_operation_duration_seconds_count{{error_type=\"{error}\",gen_ai_tool_name=\"s__get\",mcp_method_name=\"tools/call\",mcp_protocol_version=\"\",network_transport=\"tcp\",server=\"s\"}} {}\n",
            n + 1
        ));
    }
    let text = text(&metrics);
    for line in expected {
        assert!(text.contains(&line), "{line}");
    }
}

#[test]
fn what_attempts_are_is_said_before_there_is_one() {
    let metrics = Metrics::new().unwrap();
    let described = "# TYPE mcp_client_operation_duration_seconds histogram\n";
    assert_eq!(text(&metrics).matches(described).count(), 1);
    assert!(text(&metrics).contains("# HELP mcp_client_operation_duration_seconds "));
    call(&metrics, "s", "s__get", None);
    let text = text(&metrics);
    assert_eq!(text.matches(described).count(), 1, "{text}");
    // As a scraper reads it: what belongs together stands together.
    assert!(text.contains(&format!("{described}mcp_client_operation_duration_seconds_bucket{{")));
}
