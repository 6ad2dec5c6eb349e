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

/// The file in each folder.
pub(super) const FILE: &str = "checkpoints.jsonl";
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
        let files = folders.iter().map(|folder| folder.join(FILE)).collect();
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
        fs::rename(path, path.with_extension("old.jsonl"))?;
    }
    let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())?;
    file.sync_data()
}

/// Reads the checkpoints in `folder`, oldest first; lines that are none are left out.
///
/// # Errors
/// When a file is there and cannot be read.
pub fn read_checkpoints(folder: &Path) -> io::Result<Vec<Checkpoint>> {
    let file = folder.join(FILE);
    let mut found = Vec::new();
    for path in [file.with_extension("old.jsonl"), file] {
        match fs::read_to_string(&path) {
            Ok(text) => {
                found.extend(text.lines().filter_map(|line| serde_json::from_str(line).ok()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
