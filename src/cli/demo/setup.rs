//! What the demo sets up and must take down again: the temporary folder, the bundled HTTP server.
//!
//! Changes when the demo needs another thing around the router.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use uuid::Uuid;

use super::CliError;

/// A folder that goes when this value does.
pub(super) struct TempFolder(Option<PathBuf>);

impl TempFolder {
    /// A new folder of ours alone, where the system keeps temporary ones.
    pub(super) fn create() -> Result<Self, CliError> {
        let path =
            std::env::temp_dir().join(format!("switchyard-demo-{}", Uuid::now_v7().simple()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|source| CliError::Demo { doing: "make a temporary folder", source })?;
        Ok(Self(Some(path)))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or_else(|| Path::new(""))
    }

    /// Removes it and says so if it could not.
    pub(super) fn remove(mut self) -> Result<(), CliError> {
        let Some(path) = self.0.take() else { return Ok(()) };
        fs::remove_dir_all(path)
            .map_err(|source| CliError::Demo { doing: "remove its temporary folder", source })
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = fs::remove_dir_all(path);
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_goes_with_its_value_and_what_is_in_it() {
        let folder = TempFolder::create().unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("state.db"), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
        let folder = TempFolder::create().unwrap();
        let path = folder.path().to_owned();
        folder.remove().unwrap();
        assert!(!path.exists());
    }
}
