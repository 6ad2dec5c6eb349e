//! What metrics cost: recording one call, and one scrape of 200 servers with 50 tools each of which 500
//! were used. `cargo bench --bench metrics`
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a program that measures and says what it found"
)]

use std::time::{Duration, Instant};

use anyhow::Result;
use switchyard::error::ErrorCode;
use switchyard::metrics::{CallLabels, Metrics};
use switchyard::model::{
    CallerClass, Entrance, ExposedName, Outcome, ProtocolVersion, ServerName, ToolStatus,
    TransportKind,
};

const CALLS: u32 = 1_000_000;
const TRIES: usize = 7;

fn fastest(mut work: impl FnMut()) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let began = Instant::now();
        work();
        best = best.min(began.elapsed());
    }
    best
}

fn main() -> Result<()> {
    let metrics = Metrics::new()?;
    let version = ProtocolVersion::V2025_11_25;
    let took = Duration::from_micros(1234);
    let mut first = None;
    for number in 0..200 {
        let server = ServerName::parse(&format!("server-{number:03}"))?;
        metrics.server(&server).set_tools(&[(ToolStatus::Active, 50)].into());
        let _breaker = metrics.breaker(&server, true);
        for tool in 0..50 {
            let exposed = ExposedName::parse(&format!("{server}__tool_{tool:03}"))?;
            let tool_metrics = metrics.tool(Some(&server), Some(&exposed));
            if number % 2 == 0 && tool < 5 {
                tool_metrics.observe_attempt(Some(version), TransportKind::Http, Outcome::Ok, took);
                let entrance = Entrance::Mcp(version);
                let labels = CallLabels { entrance, over_socket: false, error: None };
                tool_metrics.observe_call(labels, took);
            }
            first.get_or_insert(tool_metrics);
        }
    }
    if let Some(tool) = first {
        for (error, outcome) in [(None, Outcome::Ok), (Some(ErrorCode::Timeout), Outcome::Timeout)]
        {
            let labels = CallLabels { entrance: Entrance::Mcp(version), over_socket: false, error };
            let all = fastest(|| {
                for _ in 0..CALLS {
                    metrics.audit.ended(CallerClass::Client, outcome);
                    tool.observe_attempt(Some(version), TransportKind::Http, outcome, took);
                    tool.observe_call(labels, took);
                }
            });
            println!("one call that ends as {}: {:?}", outcome.as_str(), all / CALLS);
        }
    }
    let bytes = metrics.render()?.len();
    println!("one scrape, {bytes} bytes: {:?}", fastest(|| drop(metrics.render())));
    Ok(())
}
