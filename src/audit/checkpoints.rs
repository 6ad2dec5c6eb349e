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
/// And when so many rows came since, but no more often than that: each costs a signature and a sync.
const ROWS: i64 = 1_000;
const AT_MOST: Duration = Duration::from_secs(1);
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
    /// When the end was last looked at: at first it is due.
    looked: Option<Uptime>,
    writing: Option<JoinHandle<()>>,
    failing: Arc<AtomicBool>,
}

impl Checkpoints {
    pub(super) fn new(folders: &[PathBuf]) -> Self {
        let files = folders.iter().map(|folder| folder.join(Checkpoint::FILE)).collect();
        let failing = Arc::new(AtomicBool::new(false));
        Self { files, last: None, looked: None, writing: None, failing }
    }

    /// In what time the next may be due.
    pub(super) fn due(&self) -> Duration {
        EVERY.saturating_sub(self.since(clock::uptime())).max(AT_MOST)
    }

    fn since(&self, now: Uptime) -> Duration {
        self.looked.map_or(Duration::MAX, |looked| now.since(looked))
    }

    /// Writes one if it is due; `seq` is the last row that is known to be committed.
    pub(super) async fn keep(&mut self, store: &Store, seq: i64) {
        let now = clock::uptime();
        let since = self.since(now);
        let signed = self.last.map_or(0, |(seq, _)| seq);
        let many = since >= AT_MOST && seq.saturating_sub(signed) >= ROWS;
        if since < EVERY && !many {
            return;
        }
        self.looked = Some(now);
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
