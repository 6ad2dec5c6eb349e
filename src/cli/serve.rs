//! `switchyard serve`: runs the router until it is told to end.
//!
//! Changes when starting or stopping looks different to an operator. The router itself is `App`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, Context, DEFAULT_CONFIG, Status, guard_children, text};
use crate::app::{self, App, StartError};
use crate::config::{AuthMode, Config};
use crate::guard;

/// At most so often is looked for children to reap that nobody waits for.
const REAP: Duration = Duration::from_secs(1);

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Runs the router: reads the configuration, connects to the servers in it, and answers MCP clients on one address.\n\nWithout --config and without ./switchyard.yaml it starts with defaults; servers can be added while it runs. SIGHUP or `switchyard reload` reads the configuration again; SIGTERM or Ctrl-C ends it after calls in flight (at most shutdown_timeout, 10 s), a second one at once.",
    after_help = "Examples:\n  switchyard serve\n  switchyard serve --config /etc/switchyard.yaml --data-dir /var/lib/switchyard\n  switchyard serve --listen 127.0.0.1:0         a free port, printed when it listens\n  switchyard serve --log switchyard=debug\n  switchyard serve --recover                    after damage, without a backup"
)]
pub(super) struct Args {
    /// Address to listen on, instead of the configuration's
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Move databases that are damaged away, keep them as NAME.corrupt-TIME, and begin without them
    #[arg(long)]
    recover: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    tokio::select! {
        // Before there is anything to reap, so that no signal is lost.
        biased;
        error = reap_orphans() => Err(error),
        done = Box::pin(serve(context, args)) => done,
    }
}

/// As process 1 of a container we are given processes that we did not start, and may not let their
/// zombies stay. Returns only if their end cannot be noticed.
async fn reap_orphans() -> CliError {
    let mut ended = match signal(SignalKind::child()) {
        Ok(ended) => ended,
        Err(error) => return CliError::Signals(error),
    };
    loop {
        ended.recv().await;
        guard::reap_orphans();
        // Signals meanwhile are kept as one.
        tokio::time::sleep(REAP).await;
    }
}

async fn serve(context: &Context, args: Args) -> Result<Status, CliError> {
    // Before anything starts, so that no signal during the start is lost.
    let hangup = app::hangup();
    let mut signals = Signals::new()?;
    let mut config = context.load_config()?;
    if let Some(listen) = args.listen {
        config.listen = listen;
        must_not_be_open(&config)?;
    }
    config.recover = args.recover;
    if context.config_path().is_none() {
        tracing::info!(
            "no ./{DEFAULT_CONFIG} here and no --config: starting with defaults; add servers with `switchyard servers add`"
        );
    }
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    guard_children(&mut config);
    let data_dir = config.data_dir.display().to_string();

    let app = tokio::select! {
        app = App::start_heeding(config, hangup) => app?,
        () = signals.received() => return Err(CliError::Interrupted),
    };
    // Of the registry: those that were added while it ran last time count, too.
    let servers = text::count(app.servers(), "server");
    let listening = format!(
        "switchyard {} listening on http://{} ({servers}, data in {})",
        env!("CARGO_PKG_VERSION"),
        app.address(),
        text::escape_line(&data_dir),
    );
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        address = %app.address(),
        servers = app.servers(),
        "started with {servers}"
    );
    // Whoever started us may not care to read: no reason to stop.
    if context.out.line(&listening).is_err() {
        tracing::info!("{listening}");
    }
    signals.received().await;
    tracing::info!(
        "stopping: no new calls, waiting for those in flight; a second signal ends at once"
    );
    tokio::select! {
        summary = app.shutdown() => {
            tracing::info!(calls = summary.calls, "stopped after {}", text::count(
                usize::try_from(summary.calls).unwrap_or(usize::MAX), "call"));
            // The log says what is missing. Whoever started us is to know, too.
            Ok(if summary.missing == 0 { Status::Done } else { Status::Failed })
        }
        () = signals.received() => Err(CliError::Interrupted),
    }
}

/// The file was read with its own address, which may have been a safe one.
fn must_not_be_open(config: &Config) -> Result<(), CliError> {
    let address = config.listen;
    if config.auth != AuthMode::None || address.ip().is_loopback() {
        return Ok(());
    }
    let reason = "the configuration has `auth.mode: none`, and others can reach this address; set `auto` or `keys` there, or listen on 127.0.0.1";
    let source = io::Error::new(io::ErrorKind::InvalidInput, reason);
    Err(StartError::Bind { address, source }.into())
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Receives them from now on, instead of being ended by them.
    pub(super) fn new() -> Result<Self, CliError> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(CliError::Signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(CliError::Signals)?,
        })
    }

    /// The next of either. Dropping the future loses none.
    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_router_listens_on_loopback_only() {
        let config = |listen: &str, auth| Config {
            listen: listen.parse().unwrap(),
            auth,
            ..Config::defaults()
        };
        let error = must_not_be_open(&config("0.0.0.0:8300", AuthMode::None)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("0.0.0.0:8300") && text.contains("`auth.mode: none`"), "{text}");
        for (listen, auth) in [
            ("127.0.0.1:8300", AuthMode::None),
            ("[::1]:8300", AuthMode::None),
            ("0.0.0.0:8300", AuthMode::Auto),
            ("0.0.0.0:8300", AuthMode::Keys),
        ] {
            assert!(must_not_be_open(&config(listen, auth)).is_ok(), "{listen}");
        }
    }
}
