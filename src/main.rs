//! The `switchyard` program: arguments, runtime, exit code.
//!
//! Changes when the process around the commands does. What a command does is in `cli`.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use switchyard::cli::{self, Cli, CliError, Status};
use switchyard::guard;
use switchyard::redact;
use tokio::runtime::{Builder, Runtime};

fn main() -> ExitCode {
    // Before all else: there is a guard for each child process, so it has to be small.
    if let Some(code) = guard::run_if_meant(std::env::args_os()) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed standard output or error is no reason for another message.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match run(cli) {
        Ok(Status::Done) => ExitCode::SUCCESS,
        Ok(Status::Failed) => ExitCode::from(1),
        Ok(Status::Code(code)) => ExitCode::from(code),
        Err(error) => match error.downcast_ref::<CliError>() {
            Some(known) => {
                if !known.is_silent() {
                    cli::notice(format!("error: {known}"));
                }
                ExitCode::from(known.exit_code())
            }
            None => {
                cli::notice(format!("error: {error:#}"));
                ExitCode::from(2)
            }
        },
    }
}

fn run(cli: Cli) -> anyhow::Result<Status> {
    redact::report_panics();
    cli::log_to_stderr(cli.log_filter(), cli.log_format()).map_err(anyhow::Error::msg)?;
    let runtime = runtime().context("could not start the runtime")?;
    let status = runtime.block_on(cli.run());
    // Whatever still runs here has been told to end and has lost its chance.
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(status?)
}

/// The runtime of everything but connections, which have threads of their own (`edge`): discovery,
/// the ledger's writer, the admin socket, and the commands.
fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
