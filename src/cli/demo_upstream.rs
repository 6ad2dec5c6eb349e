//! The bundled upstream: a small, real MCP server of both eras over HTTP and stdio, whose faults
//! can be switched on and off while it runs.
//!
//! `switchyard demo` puts the router in front of it, the integration tests run it in process, and
//! the benchmark measures against it. It changes when one of the three needs another behaviour. It
//! is an upstream like any other and must not know the router: no module of ours but the wall
//! clock is used here, and no parser of theirs, so that a fault in one is not repeated in the other.

mod engine;
mod faults;
mod http;
mod message;
mod stats;
mod stdio;
#[cfg(test)]
mod tests;
mod tools;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use faults::{Fault, FaultPlan, Faults, Scope, When};
pub use http::{Upstream, serve_http};
pub use stats::{SeenRequest, Stats};
pub use tools::Tool;

/// Arguments of `switchyard demo-upstream`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    transport: TransportArgs,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum TransportArgs {
    /// Serve Streamable HTTP at /mcp; prints the address
    Http {
        /// Port, 0 for a free one
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// Address to listen on
        #[arg(long, default_value = "127.0.0.1")]
        listen: IpAddr,
        /// Answer with plain JSON (the default)
        #[arg(long, conflicts_with = "sse")]
        json_only: bool,
        /// Answer with an event stream of one message
        #[arg(long)]
        sse: bool,
        /// Hand out no session ids to legacy clients
        #[arg(long)]
        stateless: bool,
        /// Let the tool counter count in each session of a legacy client for itself
        #[arg(long, conflicts_with = "stateless")]
        count_in_session: bool,
        /// End when stdin is closed, so that whoever started it cannot leave it behind
        #[arg(long)]
        until_stdin_closes: bool,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Serve one client on stdin and stdout; ends when stdin is closed
    Stdio {
        #[command(flatten)]
        common: CommonArgs,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct CommonArgs {
    /// Which protocol versions to speak
    #[arg(long, value_enum, default_value_t = Eras::Both)]
    era: Eras,
    /// Tools per page of tools/list, 0 for all in one
    #[arg(long, default_value_t = 0)]
    page_size: usize,
    /// List so many further tools, which all behave like echo
    #[arg(long, default_value_t = 0)]
    extra_tools: usize,
    /// What goes wrong, when something does
    #[arg(long, value_enum)]
    fault: Option<FaultKind>,
    /// Let every Nth request fail (tool error unless --fault says otherwise)
    #[arg(long, value_name = "N")]
    fail_every: Option<u64>,
    /// Let only the first N requests fail
    #[arg(long, value_name = "N", conflicts_with = "fail_every")]
    fail_first: Option<u64>,
    /// Which requests the fault is for
    #[arg(long, value_enum, default_value_t = Scope::Calls)]
    fault_on: Scope,
    /// Delay of --fault slow, in milliseconds
    #[arg(long, default_value_t = 1000)]
    slow_ms: u64,
    /// Status of --fault http-status
    #[arg(long, default_value_t = 500)]
    status: u16,
    /// Write so many bytes to stderr with every request
    #[arg(long, default_value_t = 0)]
    stderr_noise: usize,
}

/// The faults by name; [`Fault`] has their parameters too.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FaultKind {
    ToolError,
    RpcError,
    HttpStatus,
    Cut,
    CutMidBody,
    Hang,
    Garbage,
    Slow,
    WrongId,
    Exit,
}

/// Which protocol versions an upstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Eras {
    /// With and without handshake.
    #[default]
    Both,
    /// 2025-03-26, 2025-06-18 and 2025-11-25.
    Legacy,
    /// 2026-07-28.
    Modern,
}

/// How answers travel over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Answers {
    /// One JSON object.
    #[default]
    Json,
    /// An event stream that ends after the answer.
    Sse,
}

/// How an upstream behaves.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Versions it speaks.
    pub eras: Eras,
    /// How answers travel over HTTP.
    pub answers: Answers,
    /// No session ids for legacy clients.
    pub stateless: bool,
    /// `counter` counts in each legacy session for itself.
    pub count_in_session: bool,
    /// Tools per page of `tools/list`; 0 means all in one.
    pub page_size: usize,
    /// Further tools, which all behave like `echo`.
    pub extra_tools: usize,
    /// Bytes written to stderr with every request.
    pub stderr_noise: usize,
    /// Keep the last requests with their headers in [`Stats`].
    pub record: bool,
    /// What goes wrong; shared, so that it can be changed while the upstream runs.
    pub faults: Arc<Faults>,
}

/// Why the bundled upstream ended.
#[derive(Debug, thiserror::Error)]
pub enum DemoUpstreamError {
    /// The address could not be bound.
    #[error("could not listen on {address}: {source}; choose another with --port or --listen")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Stdin or stdout broke.
    #[error("could not {action}: {source}")]
    Pipe {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// `--fault exit` did its work.
    #[error("ended in the middle of a request, as asked by --fault exit")]
    ExitFault,
}

/// Runs the upstream until it is told to end.
///
/// One thread is enough for it: a current-thread runtime makes it the cheapest.
///
/// # Errors
/// [`DemoUpstreamError`] when the address is taken, a pipe breaks, or the fault `exit` struck.
pub async fn main(args: Args) -> Result<(), DemoUpstreamError> {
    match args.transport {
        TransportArgs::Http {
            port,
            listen,
            json_only: _,
            sse,
            stateless,
            count_in_session,
            until_stdin_closes,
            common,
        } => {
            let mut options = common.options();
            options.answers = if sse { Answers::Sse } else { Answers::Json };
            options.stateless = stateless;
            options.count_in_session = count_in_session;
            run_http(SocketAddr::new(listen, port), options, until_stdin_closes).await
        }
        TransportArgs::Stdio { common } => stdio::serve(common.options()).await,
    }
}

async fn run_http(
    address: SocketAddr,
    options: Options,
    until_stdin_closes: bool,
) -> Result<(), DemoUpstreamError> {
    let listen_error = |source| DemoUpstreamError::Listen { address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(listen_error)?;
    let shutdown = CancellationToken::new();
    if until_stdin_closes {
        stdio::cancel_at_end_of_stdin(shutdown.clone())?;
    }
    let upstream = serve_http(listener, options, shutdown).map_err(listen_error)?;
    writeln!(std::io::stdout().lock(), "listening on {}", upstream.url())
        .map_err(|source| DemoUpstreamError::Pipe { action: "print the address", source })?;
    if upstream.finished().await { Ok(()) } else { Err(DemoUpstreamError::ExitFault) }
}

impl CommonArgs {
    fn options(&self) -> Options {
        let faults = Arc::new(Faults::default());
        if let Some(plan) = self.plan() {
            faults.set(plan);
        }
        Options {
            eras: self.era,
            page_size: self.page_size,
            extra_tools: self.extra_tools,
            stderr_noise: self.stderr_noise,
            faults,
            ..Options::default()
        }
    }

    fn plan(&self) -> Option<FaultPlan> {
        let when = match (self.fail_every, self.fail_first) {
            (Some(n), _) => When::Every(n),
            (None, Some(n)) => When::First(n),
            (None, None) => When::Always,
        };
        let kind = match (self.fault, when) {
            (Some(kind), _) => kind,
            (None, When::Always) => return None,
            (None, When::Every(_) | When::First(_)) => FaultKind::ToolError,
        };
        let fault = match kind {
            FaultKind::ToolError => Fault::ToolError,
            FaultKind::RpcError => Fault::RpcError,
            FaultKind::HttpStatus => Fault::HttpStatus(self.status),
            FaultKind::Cut => Fault::Cut,
            FaultKind::CutMidBody => Fault::CutMidBody,
            FaultKind::Hang => Fault::Hang,
            FaultKind::Garbage => Fault::Garbage,
            FaultKind::Slow => Fault::Slow(Duration::from_millis(self.slow_ms)),
            FaultKind::WrongId => Fault::WrongId,
            FaultKind::Exit => Fault::Exit,
        };
        Some(FaultPlan { fault, when, scope: self.fault_on })
    }
}
