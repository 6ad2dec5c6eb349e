//! What [`Task`] does with a spool: where rows go while the database cannot be written.
//!
//! Changes when it is decided otherwise what goes there, and when that is read back.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Task;
use crate::clock;
use crate::store::{CallRow, EntryRow, StoreError};

/// How long what was spooled is read back before new calls get their turn.
const READ_BACK: Duration = Duration::from_millis(500);

impl Task {
    /// Opens the spool; without one the ledger is kept all the same.
    pub(super) async fn open_spool(&mut self, path: &Path) {
        let spool = match self.store.open_spool(path) {
            Ok(spool) => spool,
            Err(error) => {
                tracing::error!(%error, "the ledger has no spool: `{}`: {error}", path.display());
                self.shared.lacks_spool.store(true, Ordering::Relaxed);
                return;
            }
        };
        // What the chain ends with now is not in the spool that may begin.
        if let Ok(head) = self.store.checkpoint(clock::timestamp()).await {
            self.last = head.seq;
        }
        self.inherited = spool.end();
        self.spooling = spool.waiting() > 0;
        self.shared.metrics.spooled(spool.waiting());
        self.shared.metrics.spool_is_open();
        self.spool = Some(spool);
        self.shared.has_spool.store(true, Ordering::Relaxed);
    }

    /// Commits what waits in the spool up to byte `limit`; `false` when that takes longer than new calls
    /// should wait.
    pub(super) async fn read_back(&mut self, limit: u64) -> Result<bool, StoreError> {
        let Some(spool) = &mut self.spool else { return Ok(true) };
        let began = clock::uptime();
        loop {
            let left = self.store.drain_spool(spool, limit, clock::timestamp()).await;
            self.shared.metrics.rejected(spool.take_rejected());
            if left? == 0 {
                break;
            }
            if clock::uptime().since(began) > READ_BACK {
                self.shared.metrics.spooled(spool.waiting());
                return Ok(false);
            }
        }
        self.shared.metrics.spooled(spool.waiting());
        if spool.waiting() == 0 && std::mem::take(&mut self.spooling) {
            tracing::info!("the ledger's spool was read back");
        }
        Ok(true)
    }

    /// Puts rows into the spool, so that they are on disk; `false` when there is none or that fails.
    pub(super) async fn put_aside(&mut self, notes: &[EntryRow], rows: &[CallRow]) -> bool {
        let Some(spool) = self.spool.take() else { return false };
        let mut written = Ok(());
        let spool = if notes.is_empty() && rows.is_empty() {
            spool
        } else {
            let spooled = self.store.spool(spool, self.last, notes, rows).await;
            written = spooled.1;
            spooled.0
        };
        self.shared.metrics.spooled(spool.waiting());
        let waits = spool.waiting() > 0;
        self.spool = Some(spool);
        if let Err(error) = written {
            if self.shared.spools.swap(false, Ordering::Relaxed) || !self.spooling {
                tracing::error!(%error, "the ledger's spool cannot be written: {error}");
            }
            return false;
        }
        self.shared.spools.store(true, Ordering::Relaxed);
        if waits && !std::mem::replace(&mut self.spooling, true) {
            tracing::warn!("the ledger's rows go to its spool");
            self.tried = Some(clock::uptime());
        }
        true
    }
}
