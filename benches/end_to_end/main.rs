//! End-to-end benchmark: the same checked workload straight to the bundled upstream, through nginx
//! as a plain reverse proxy and through the router, interleaved in one run.
//!
//! `cargo bench --bench end_to_end -- --help`; what the numbers mean is in docs/benchmarks.md.
#![allow(
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::string_slice,
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark reads clocks, prints its results, and ends at the first surprise"
)]

mod kills;
mod load;
mod process;
mod report;
mod targets;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use crate::load::{Endpoint, Slice};
use crate::report::{Report, Row};
use crate::targets::{Sandbox, Target};

/// Benchmark of the whole router against the bundled upstream and nginx.
#[derive(Debug, Parser)]
#[command(name = "end_to_end")]
struct Options {
    /// A small run of about half a minute, to see that everything still works
    #[arg(long)]
    quick: bool,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    /// Rounds; every target is measured once in each, results are medians over rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per target and round
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Calls per target and round at most
    #[arg(long, default_value_t = 2_000_000)]
    calls: u64,
    /// Numbers of connections to measure with
    #[arg(long, value_delimiter = ',', default_value = "32,1")]
    connections: Vec<usize>,
    /// Starts of the router per kind of data folder
    #[arg(long, default_value_t = 5)]
    starts: usize,
    /// After that, end each router so many times with SIGKILL at full load, and see what it lost
    #[arg(long, default_value_t = 0)]
    kills: u32,
    /// Leave the router out
    #[arg(long)]
    no_router: bool,
    /// Leave nginx out
    #[arg(long)]
    no_nginx: bool,
    /// Another binary of the router
    #[arg(long, default_value = env!("CARGO_BIN_EXE_switchyard"))]
    router: String,
    /// A router more, with other settings of its ledger, as NAME=YAML: strict='{durability: strict}';
    /// repeatable
    #[arg(long, value_name = "NAME=YAML")]
    audit: Vec<String>,
    /// Another router that runs already, in front of --upstream-port, as NAME=URL; repeatable
    #[arg(long, value_name = "NAME=URL")]
    target: Vec<String>,
    /// Name of the echo tool at the --target in the same position
    #[arg(long, value_name = "NAME")]
    tool: Vec<String>,
    /// Process to measure for the --target in the same position, with its descendants
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// Port of the bundled upstream, so that other routers can be configured in advance
    #[arg(long, default_value_t = 0)]
    upstream_port: u16,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.quick {
        options.rounds = 2;
        options.seconds = 0.5;
        options.starts = 2;
        options.kills = options.kills.max(1);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime
        .context("could not start the load generator")
        .and_then(|runtime| runtime.block_on(run(&options)));
    match result {
        Ok(report) if options.json => println!("{:#}", report.json()),
        Ok(report) => print!("{}", report.text()),
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn run(options: &Options) -> Result<Report> {
    if options.connections.contains(&0) || options.rounds == 0 {
        bail!("--connections and --rounds must be at least 1");
    }
    if cfg!(debug_assertions) {
        eprintln!("warning: built without optimisation; the numbers mean nothing");
    }
    let sandbox = Sandbox::new(&options.router)?;
    let mut targets = vec![sandbox.upstream(options.upstream_port).await?];
    let upstream = targets[0].endpoint.address;
    if options.no_nginx || !targets::nginx_is_installed() {
        eprintln!("nginx is left out");
    } else {
        targets.push(sandbox.nginx(upstream).await?);
    }
    let mut starts = None;
    if !options.no_router {
        starts = Some(sandbox.measure_starts(upstream, options.starts).await?);
        targets.push(sandbox.router("router", upstream, "{}").await?);
    }
    for text in &options.audit {
        let (name, audit) = text.split_once('=').context("--audit is NAME=YAML")?;
        targets.push(sandbox.router(name, upstream, audit).await?);
    }
    targets.extend(others(options).await?);

    let mut report = Report::new(options.rounds, options.seconds, starts, sandbox.sync_ms()?);
    for target in &targets {
        report.idle(&target.name, target.memory());
    }
    for &connections in &options.connections {
        measure(options, &targets, connections, &mut report).await?;
    }
    for target in &targets {
        report.loaded(&target.name, target.memory());
    }
    let upstream_process = targets.remove(0);
    for target in targets {
        target.stop();
    }
    kill(options, &sandbox, upstream, &mut report).await?;
    upstream_process.stop();
    Ok(report)
}

/// Each of our routers is killed at full load, with a new data folder each time.
async fn kill(
    options: &Options,
    sandbox: &Sandbox,
    upstream: SocketAddr,
    report: &mut Report,
) -> Result<()> {
    let mut routers = Vec::new();
    if !options.no_router {
        routers.push(("router", "{}"));
    }
    for text in &options.audit {
        routers.push(text.split_once('=').context("--audit is NAME=YAML")?);
    }
    for &connections in &options.connections {
        for (name, audit) in &routers {
            let mut kills = Vec::new();
            for at in 0..options.kills {
                let data = format!("{name}-{connections}-killed-{at}");
                let router = sandbox.router(&data, upstream, audit).await?;
                kills.push(kills::kill(router, &sandbox.data(&data), connections, at).await?);
            }
            report.killed(name, connections, &kills);
        }
    }
    Ok(())
}

async fn others(options: &Options) -> Result<Vec<Target>> {
    let mut others = Vec::new();
    for (at, text) in options.target.iter().enumerate() {
        let (name, url) = text.split_once('=').context("--target is NAME=URL")?;
        let tool = options.tool.get(at).map_or("echo", String::as_str);
        let endpoint = Endpoint::from_url(url, tool)?;
        others.push(Target::running(name, endpoint, options.pid.get(at).copied()).await?);
    }
    Ok(others)
}

/// Rounds A B C A B C …: whatever else the machine does hits all alike.
async fn measure(
    options: &Options,
    targets: &[Target],
    connections: usize,
    report: &mut Report,
) -> Result<()> {
    let time = Duration::from_secs_f64(options.seconds);
    let warm_up = time.min(Duration::from_millis(500));
    for target in targets {
        load::run(&target.endpoint, connections, warm_up, options.calls)
            .await
            .with_context(|| format!("{} with {connections} connections", target.name))?;
    }
    let mut slices: Vec<Vec<(Slice, Option<f64>)>> = targets.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.rounds {
        for (target, slices) in targets.iter().zip(&mut slices) {
            let before = target.cpu_seconds();
            let slice = load::run(&target.endpoint, connections, time, options.calls)
                .await
                .with_context(|| format!("{} with {connections} connections", target.name))?;
            let cpu = target.cpu_seconds().zip(before).map(|(after, before)| after - before);
            slices.push((slice, cpu));
        }
    }
    for (target, slices) in targets.iter().zip(&slices) {
        report.push(Row::from_slices(&target.name, connections, slices));
    }
    Ok(())
}
