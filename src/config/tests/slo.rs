//! What is promised of servers and tools.

use std::time::Duration;

use super::*;
use crate::model::{SLO_WINDOW, SloSpec};

fn with(slo: &str) -> String {
    format!("mcp_servers:\n  a:\n    url: http://h/mcp\n    slo: {slo}\n")
}

#[test]
fn promises_of_servers_and_tools_are_read_and_shown_again() {
    let config = read(
        "mcp_servers:\n  \
           a:\n    \
             url: http://h/mcp\n    \
             slo: {latency_p95: 2s, success: 99.9%}\n    \
             tool_overrides:\n      \
               search: {slo: {latency_p50: 250ms, latency_p99: 300, success: 0.5, window: 7d}}\n      \
               other: {timeout: 3s}\n",
    )
    .unwrap();
    assert_eq!(config.notes, Vec::<String>::new());
    let a = server(&config, "a");
    let promised = SloSpec {
        latency_p95: Some(Duration::from_secs(2)),
        success: Some(0.999),
        window: SLO_WINDOW,
        ..SloSpec::default()
    };
    assert_eq!(a.slo, Some(promised));
    let search = SloSpec {
        latency_p50: Some(Duration::from_millis(250)),
        latency_p99: Some(Duration::from_secs(300)),
        success: Some(0.5),
        window: Duration::from_secs(7 * 86_400),
        ..SloSpec::default()
    };
    assert_eq!(a.tool_overrides["search"].slo, Some(search));
    assert_eq!(a.tool_overrides["other"].slo, None);
    let json = server_to_json(a).to_string();
    let back = server_from_json(&ServerName::parse("a").unwrap(), json.as_bytes()).unwrap();
    assert_eq!(&back, a, "{json}");
    // As the database keeps it, also what was kept before there were promises.
    let kept = serde_json::to_string(a).unwrap();
    assert_eq!(&serde_json::from_str::<ServerSpec>(&kept).unwrap(), a);
    let plain = read("mcp_servers: {a: {url: 'http://h/mcp'}}").unwrap();
    let kept = serde_json::to_string(server(&plain, "a")).unwrap();
    assert!(!kept.contains("\"slo\""), "{kept}");
}

#[test]
fn a_promise_that_cannot_be_kept_or_measured_is_refused() {
    for (slo, message) in [
        ("{}", "promises nothing"),
        ("{window: 7d}", "promises nothing"),
        ("{success: 99}", "write `99%`"),
        ("{success: 100%}", "above 0 and below 100%"),
        ("{success: 0}", "above 0 and below 100%"),
        ("{success: 101%}", "above 0 and below 100%"),
        ("{success: often}", "is not a part of all"),
        ("{latency_p95: 500us}", "is not a duration"),
        ("{latency_p95: 0}", "from 1ms to 300s"),
        ("{latency_p99: 6m}", "from 1ms to 300s"),
        ("{latency_p95: 2s, latency_p99: 1s}", "contradicts itself"),
        ("{success: 99%, window: 10m}", "from 1h to 366d"),
        ("{latency_p90: 1s}", "latency_p9"),
    ] {
        let error = read(&with(slo)).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains(":4:"), "{slo}: {error}");
    }
    let long = read(&format!("audit: {{retention: 10d}}\n{}", with("{success: 99%}"))).unwrap();
    assert!(long.notes.iter().any(|note| note.contains("longer than calls are kept")));
}
