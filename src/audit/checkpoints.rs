//! [`Checkpoints`]: when the end of the ledger is signed, and where that is kept.
//!
//! Changes when checkpoints are made more or less often, or kept elsewhere.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::clock;
use crate::model::Uptime;
use crate::store::{Checkpoint, Store};

/// While calls are made, the end is signed this often.
const EVERY: Duration = Duration::from_secs(60);
/// While nothing happens, too, more rarely: that nothing happened is worth knowing.
const IDLE: Duration = Duration::from_secs(600);
/// A file that is larger makes room for a new one, and is kept until that is as large.
const LARGEST: u64 = 16 << 20;

/// How long the end of the router waits for the last one to be written.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where checkpoints go, and the last one. They are written aside: a folder on another machine that
/// does not answer must not hold up the ledger.
pub(super) struct Checkpoints {
    files: Vec<PathBuf>,
    last: Option<(i64, Uptime)>,
    /// When the end was last looked at.
    looked: Uptime,
    writing: Option<JoinHandle<()>>,
    failing: Arc<AtomicBool>,
}

impl Checkpoints {
    pub(super) fn new(folders: &[PathBuf]) -> Self {
        let files = folders.iter().map(|folder| folder.join(Checkpoint::FILE)).collect();
        let failing = Arc::new(AtomicBool::new(false));
        Self { files, last: None, looked: clock::uptime(), writing: None, failing }
    }

    /// In what time the next may be due.
    pub(super) fn due(&self) -> Duration {
        EVERY.saturating_sub(clock::uptime().since(self.looked)).max(Duration::from_secs(1))
    }

    /// Writes one if it is due.
    pub(super) async fn keep(&mut self, store: &Store) {
        let now = clock::uptime();
        if now.since(self.looked) < EVERY {
            return;
        }
        self.looked = now;
        let Ok(checkpoint) = store.checkpoint(clock::timestamp()).await else { return };
        let idle = self.last.is_some_and(|(seq, at)| seq == checkpoint.seq && now.since(at) < IDLE);
        if !idle && self.writing.as_ref().is_none_or(JoinHandle::is_finished) {
            self.put(&checkpoint);
        }
    }

    /// Writes the last one.
    pub(super) async fn end(&mut self, store: &Store) {
        if let Some(writing) = &mut self.writing
            && tokio::time::timeout(PATIENCE, writing).await.is_err()
        {
            return;
        }
        match store.checkpoint(clock::timestamp()).await {
            Ok(checkpoint) => self.put(&checkpoint),
            Err(error) => {
                tracing::warn!(%error, "the end of the ledger could not be signed: {error}");
            }
        }
        if let Some(writing) = &mut self.writing {
            let _late = tokio::time::timeout(PATIENCE, writing).await;
        }
    }

    fn put(&mut self, checkpoint: &Checkpoint) {
        self.last = Some((checkpoint.seq, clock::uptime()));
        tracing::debug!(ledger.seq = checkpoint.seq, ledger.hash = checkpoint.hash, "checkpoint");
        let Ok(line) = serde_json::to_string(checkpoint) else { return };
        let (files, failing) = (self.files.clone(), Arc::clone(&self.failing));
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let mut failed = false;
            for file in &files {
                let Err(error) = append(file, &line) else { continue };
                failed = true;
                if !failing.load(Ordering::Relaxed) {
                    tracing::warn!(%error, "a checkpoint of the ledger could not be written to {}: {error}", file.display());
                }
            }
            failing.store(failed, Ordering::Relaxed);
        }));
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
