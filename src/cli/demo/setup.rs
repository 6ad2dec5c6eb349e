//! What the demo sets up and must take down again: the bundled HTTP server.
//!
//! Changes when the demo needs another thing around the router.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::CliError;

/// The bundled server over HTTP: a child of this process.
pub(super) struct Steady {
    child: Child,
    url: String,
}

const START_PATIENCE: Duration = Duration::from_secs(10);
const STOP_PATIENCE: Duration = Duration::from_secs(2);

impl Steady {
    /// Starts it and waits for its address.
    pub(super) async fn start() -> Result<Self, CliError> {
        let failed = |source| CliError::Demo { doing: "start its HTTP server", source };
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .args(["demo-upstream", "http", "--port", "0", "--until-stdin-closes"])
            // Its standard input closes when this process is gone, even after a kill -9.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            // Out of the terminal's reach: Ctrl-C is ours to handle, the server ends last.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stdout = child.stdout.take().ok_or_else(|| failed(io::Error::other("no output")))?;
        let mut line = String::new();
        let mut stdout = BufReader::new(stdout);
        match timeout(START_PATIENCE, stdout.read_line(&mut line)).await {
            Ok(read) => read.map_err(failed)?,
            Err(_elapsed) => return Err(failed(io::ErrorKind::TimedOut.into())),
        };
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        let url =
            url.ok_or_else(|| failed(io::Error::other(format!("it said `{}`", line.trim()))))?;
        Ok(Self { url: url.to_owned(), child })
    }

    /// Its address.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Ends it and waits until it is gone.
    pub(super) async fn stop(mut self) -> Result<(), CliError> {
        drop(self.child.stdin.take());
        if timeout(STOP_PATIENCE, self.child.wait()).await.is_ok() {
            return Ok(());
        }
        self.child
            .kill()
            .await
            .map_err(|source| CliError::Demo { doing: "end its HTTP server", source })
    }
}
