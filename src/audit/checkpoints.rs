//! [`Checkpoints`]: when the end of the ledger is signed, and where that is kept.
//!
//! Changes when checkpoints are made more or less often, or kept elsewhere.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;
use crate::model::Uptime;
use crate::store::{Checkpoint, Store};

/// While calls are made, the end is signed this often.
const EVERY: Duration = Duration::from_secs(60);
/// While nothing happens, too, more rarely: that nothing happened is worth knowing.
const IDLE: Duration = Duration::from_secs(600);
/// A file that is larger makes room for a new one, and is kept until that is as large.
const LARGEST: u64 = 16 << 20;

/// Where checkpoints go, and the last one.
pub(super) struct Checkpoints {
    files: Vec<PathBuf>,
    last: Option<(i64, Uptime)>,
    began: Uptime,
    failing: bool,
}

impl Checkpoints {
    pub(super) fn new(folders: &[PathBuf]) -> Self {
        let files = folders.iter().map(|folder| folder.join(Checkpoint::FILE)).collect();
        Self { files, last: None, began: clock::uptime(), failing: false }
    }

    /// In what time the next may be due.
    pub(super) fn due(&self) -> Duration {
        let passed = clock::uptime().since(self.last.map_or(self.began, |(_, at)| at));
        EVERY.saturating_sub(passed).max(Duration::from_secs(1))
    }

    /// Writes one if it is due.
    pub(super) async fn keep(&mut self, store: &Store) {
        let now = clock::uptime();
        let passed = now.since(self.last.map_or(self.began, |(_, at)| at));
        if passed >= EVERY {
            let Ok(checkpoint) = store.checkpoint(clock::timestamp()).await else { return };
            let idle = self.last.is_some_and(|(seq, _)| seq == checkpoint.seq);
            if !idle || passed >= IDLE {
                self.put(checkpoint).await;
            }
        }
    }

    /// Writes one.
    pub(super) async fn write(&mut self, store: &Store) {
        match store.checkpoint(clock::timestamp()).await {
            Ok(checkpoint) => self.put(checkpoint).await,
            Err(error) => {
                tracing::warn!(%error, "the end of the ledger could not be signed: {error}")
            }
        }
    }

    async fn put(&mut self, checkpoint: Checkpoint) {
        self.last = Some((checkpoint.seq, clock::uptime()));
        tracing::debug!(ledger.seq = checkpoint.seq, ledger.hash = checkpoint.hash, "checkpoint");
        let Ok(line) = serde_json::to_string(&checkpoint) else { return };
        let files = self.files.clone();
        let written = tokio::task::spawn_blocking(move || {
            files
                .iter()
                .try_for_each(|file| append(file, &line).map_err(|error| (file.clone(), error)))
        });
        let failed = match written.await {
            Ok(Err((file, error))) => Some((file, error)),
            Ok(Ok(())) | Err(_) => None,
        };
        if let Some((file, error)) = &failed
            && !self.failing
        {
            tracing::warn!(%error, "a checkpoint of the ledger could not be written to {}: {error}", file.display());
        }
        self.failing = failed.is_some();
    }
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|file| file.len() > LARGEST) {
        fs::rename(path, path.with_file_name(Checkpoint::OLD_FILE))?;
    }
    let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())?;
    file.sync_data()
}
