//! `switchyard demo`: the real router with two bundled servers and light traffic.
//!
//! Changes when the tour through the product does. It leaves nothing behind: the data folder is
//! temporary, and the bundled servers end when this process does, however it ends.

mod ledger;
mod setup;
mod traffic;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::client::{Ask, Client};
use super::output::Output;
use super::serve::Signals;
use super::table::{Style, Table};
use super::temp_folder::TempFolder;
use super::{CliError, Context, Status, guard_children, text, when};
use crate::app::App;
use crate::clock;
use crate::config::Config;
use crate::model::{ServerName, ServerSpec, TransportSpec, parse_duration};
use ledger::Ledger;
use setup::Steady;
use traffic::{STEADY_AND_FLAKY, Tally, Traffic};

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Runs the real router in a temporary folder with two bundled MCP servers: `steady` over HTTP, and `flaky` over stdio, whose every fifth call fails. Light traffic goes through both; open the printed addresses while it runs. Ctrl-C or --for ends it with a summary, and nothing remains.",
    after_help = "Examples:\n  switchyard demo\n  switchyard demo --for 20s\n  switchyard demo --listen 127.0.0.1:0"
)]
pub(super) struct Args {
    /// End by itself after this time
    #[arg(long = "for", value_name = "DURATION")]
    duration: Option<String>,
    /// Address to listen on [default: 127.0.0.1:8300, or a free port if that is taken]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

/// Discovery of two local servers takes a fraction of this.
const READY_PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    let duration = args.duration.as_deref().map(parse_duration).transpose()?;
    let mut signals = Signals::new()?;
    let mut impatient = Signals::new()?;
    // The first signal ends the traffic, the second does not wait for the rest either.
    let impatience = async {
        impatient.received().await;
        impatient.received().await;
    };
    // Dropped last, so that nobody uses the folder any more when it goes.
    let folder = TempFolder::create()?;
    let steady = Steady::start().await?;
    let config = config(args.listen.unwrap_or_else(free_address), folder.path(), steady.url())?;
    let app = App::start(config).await?;
    let base = format!("http://{}", app.address());
    let path = folder.path();
    let work = async move {
        let toured = tour(context, &base, path, duration, &mut signals).await;
        app.shutdown().await;
        (toured, steady.stop().await)
    };
    let (toured, stopped) = tokio::select! {
        done = Box::pin(work) => done,
        () = impatience => return Err(CliError::Interrupted),
    };
    let removed = folder.remove();
    let tour = toured?;
    stopped?;
    removed?;
    let status = if tour.is_complete() { Status::Done } else { Status::Failed };
    summary(context, &tour)?;
    Ok(status)
}

/// The usual address, or one that is free.
fn free_address() -> SocketAddr {
    let usual = Config::defaults().listen;
    if TcpListener::bind(usual).is_ok() { usual } else { SocketAddr::new(usual.ip(), 0) }
}

fn config(listen: SocketAddr, data_dir: &Path, steady: &str) -> Result<Config, CliError> {
    let program = std::env::current_exe()
        .map_err(|source| CliError::Demo { doing: "find its own program", source })?;
    let mut steady =
        ServerSpec::new(TransportSpec::Http { url: steady.to_owned(), headers: BTreeMap::new() });
    steady.description = "Bundled server over HTTP".to_owned();
    let mut flaky = ServerSpec::new(TransportSpec::Stdio {
        command: program.to_string_lossy().into_owned(),
        args: ["demo-upstream", "stdio", "--fail-every", "5"].map(str::to_owned).to_vec(),
        env: BTreeMap::new(),
        cwd: None,
    });
    flaky.description = "Bundled server over stdio; every fifth call fails".to_owned();
    let mut config = Config::defaults();
    config.listen = listen;
    config.data_dir = data_dir.to_owned();
    guard_children(&mut config);
    for (name, spec) in STEADY_AND_FLAKY.into_iter().zip([steady, flaky]) {
        config.servers.insert(ServerName::parse(name)?, spec);
    }
    Ok(config)
}

/// What happened while the router ran.
struct Tour {
    tally: Tally,
    ledger: Ledger,
    unanswered: Vec<String>,
}

impl Tour {
    /// Every address answered, every call is on record.
    fn is_complete(&self) -> bool {
        self.unanswered.is_empty() && self.ledger.missing == 0 && self.tally.lost == 0
    }
}

async fn tour(
    context: &Context,
    base: &str,
    folder: &Path,
    duration: Option<Duration>,
    signals: &mut Signals,
) -> Result<Tour, CliError> {
    let out = &context.out;
    let client = Client::http(base, None)?;
    wait_until_ready(&client).await?;
    let unanswered = show_addresses(out, &client, base, folder).await?;
    let traffic = Traffic::start(client);
    let stopped = async {
        tokio::select! {
            () = signals.received() => {}
            () = sleep_or_forever(duration) => {}
        }
    };
    watch(out, &traffic, stopped).await?;
    let (client, tally) = traffic.finish().await;
    let ledger = ledger::read(&client, &tally.ids).await?;
    Ok(Tour { tally, ledger, unanswered })
}

async fn sleep_or_forever(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

async fn wait_until_ready(client: &Client) -> Result<(), CliError> {
    #[derive(Deserialize)]
    struct Servers {
        servers: Vec<super::servers::Server>,
    }
    let begin = clock::uptime();
    loop {
        let listed: Servers = client.request(Ask::get(&["mcp", "servers"])).await?.parse()?;
        let ready = |name: &str| {
            let mut servers = listed.servers.iter();
            servers.any(|server| server.name == name && server.state == "up" && server.tools > 0)
        };
        // One that does not come up is part of what the demo shows: its calls fail, on record.
        if STEADY_AND_FLAKY.iter().all(|name| ready(name))
            || clock::uptime().since(begin) > READY_PATIENCE
        {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Prints what can be opened, each tried before it is printed; gives those that did not answer.
async fn show_addresses(
    out: &Output,
    client: &Client,
    base: &str,
    folder: &Path,
) -> Result<Vec<String>, CliError> {
    let mut unanswered = Vec::new();
    let mut lines = vec![format!(
        "switchyard {} demo: the router with two bundled servers, data in {}",
        env!("CARGO_PKG_VERSION"),
        folder.display()
    )];
    for (path, what) in [
        ("/mcp", "the endpoint for MCP clients"),
        ("/mcp/servers", "servers and their state"),
        ("/mcp/tools", "tools of both"),
        ("/mcp/audit", "the ledger: every call"),
        ("/metrics", "for Prometheus"),
        ("/mcp/health", "health, checked now"),
    ] {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let ask = match path {
            // The endpoint itself speaks JSON-RPC; a list of tools is its GET.
            "/mcp" => traffic::mcp_request("tools/list", None, "{"),
            "/metrics" => Ask::get(&segments).header("accept", "text/plain"),
            _ => Ask::get(&segments),
        };
        let answered = client.request(ask).await;
        let mark = match &answered {
            Ok(_) => out.paint("answers", Style::Good),
            Err(error) => {
                unanswered.push(path.to_owned());
                out.paint(format!("does not answer: {error}"), Style::Bad)
            }
        };
        lines.push(format!("  {:<38} {what} ({mark})", format!("{base}{path}")));
    }
    let program = std::env::args().next().unwrap_or_else(|| "switchyard".to_owned());
    lines.push("try, while it runs:".to_owned());
    lines.push(format!(
        "  curl -s {base}/mcp/call -H 'content-type: application/json' -d '{{\"tool_name\": \"steady__echo\", \"arguments\": {{\"text\": \"hello\"}}}}'"
    ));
    lines.push(format!(
        "  {program} --data-dir {} audit list --outcome tool_error",
        folder.display()
    ));
    if !out.is_json() {
        out.line(lines.join("\n"))?;
    }
    Ok(unanswered)
}

/// Says once a second how it goes, until `stopped`.
async fn watch(
    out: &Output,
    traffic: &Traffic,
    stopped: impl Future<Output = ()>,
) -> Result<(), CliError> {
    let begin = clock::uptime();
    let mut stopped = std::pin::pin!(stopped);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.tick().await;
    loop {
        tokio::select! {
            () = &mut stopped => break,
            _ = second.tick() => {}
        }
        if out.is_json() {
            continue;
        }
        let now = traffic.progress();
        let line = format!(
            "{:>5}s  {:>6} calls  {:>5} failed  p50 {}",
            clock::uptime().since(begin).as_secs(),
            now.calls,
            now.failed,
            when::milliseconds(now.p50_ms),
        );
        // A terminal shows one line that changes; a file gets one line a second.
        if out.terminal { out.write(&format!("\r{line}\x1b[K"))? } else { out.line(line)? }
    }
    if out.terminal && !out.is_json() { out.line("") } else { Ok(()) }
}

fn summary(context: &Context, tour: &Tour) -> Result<(), CliError> {
    let out = &context.out;
    let Tour { tally, ledger, unanswered } = tour;
    let calls = tally.ids.len();
    let (p50, p99) = (tally.percentile(50), tally.percentile(99));
    if out.is_json() {
        let told = json!({
            "calls": calls, "calls_by_server": tally.by_server, "failed": tally.failed,
            "outcomes": ledger.outcomes, "ledger_rows": ledger.rows, "ledger_others": ledger.others,
            "ledger_missing": ledger.missing, "lost": tally.lost, "p50_ms": p50, "p99_ms": p99,
            "unanswered": unanswered,
        });
        return out.json(&told.to_string());
    }
    out.line(out.paint("summary", Style::Bold))?;
    let mut table = Table::new().whole("CALLS TO").number("SENT").number("FAILED");
    for (server, sent) in &tally.by_server {
        let failed = tally.failed_by_server.get(server).copied().unwrap_or(0);
        table.row([server.into(), sent.to_string().into(), failed.to_string().into()]);
    }
    out.table(&table)?;
    let outcomes: Vec<String> =
        ledger.outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
    out.line(format!("outcomes     {}", text::escape_line(&outcomes.join(", "))))?;
    out.line(format!("calls        {calls}"))?;
    out.line(match (ledger.missing, ledger.others) {
        (0, 0) => format!("ledger rows  {} (every call, and nothing else)", ledger.rows),
        (0, others) => format!(
            "ledger rows  {} (every call of the demo, and {} from elsewhere)",
            ledger.rows,
            text::count(others, "call")
        ),
        (missing, _) => {
            let rows = format!("ledger rows  {} ({missing} of {calls} calls missing)", ledger.rows);
            out.paint(rows, Style::Bad)
        }
    })?;
    if tally.lost > 0 {
        let lost = text::count(tally.lost, "request");
        out.line(out.paint(format!("lost         {lost} without an answer"), Style::Bad))?;
    }
    out.line(format!(
        "latency      p50 {}, p99 {}",
        when::milliseconds(p50),
        when::milliseconds(p99)
    ))?;
    out.line("removed      the data folder; both bundled servers have ended")
}
