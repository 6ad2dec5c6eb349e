//! What [`Task`] does with a spool: where rows go while the database cannot be written; and where it says at
//! the end what it could not put on record.
//!
//! Changes when it is decided otherwise what goes there, and when that is read back.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Task;
use super::crowd::Gap;
use crate::clock;
use crate::store::{AUDIT_STOPPED, CallRow, EntryRow, StoreError};

/// In the data folder: a spool of entries alone, from the end of one router to the start of the next.
pub(super) const UNSAID: &str = "ledger-unsaid.jsonl";
/// How long what was spooled is read back before new calls get their turn.
const READ_BACK: Duration = Duration::from_millis(500);

impl Task {
    /// Opens the spool; without one the ledger is kept all the same.
    pub(super) fn open_spool(&mut self, path: &Path) {
        let spool = match self.store.open_spool(path) {
            Ok(spool) => spool,
            Err(error) => {
                tracing::error!(%error, "the ledger has no spool: `{}`: {error}", path.display());
                self.shared.lacks_spool.store(true, Ordering::Relaxed);
                return;
            }
        };
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

    /// Commits what a router before this one could only say in a file. Killed anywhere, each entry is in
    /// the chain once.
    pub(super) async fn read_unsaid(&mut self) -> Result<(), StoreError> {
        if !self.unsaid.exists() {
            return Ok(());
        }
        let read = match self.store.open_spool(&self.unsaid) {
            Ok(mut unsaid) => loop {
                match self.store.drain_spool(&mut unsaid, u64::MAX, clock::timestamp()).await {
                    Ok(0) => break fs::remove_file(&self.unsaid),
                    Ok(_) => {}
                    Err(StoreError::Spool { source }) => break Err(source),
                    Err(error) => return Err(error),
                }
            },
            Err(error) => Err(error),
        };
        match read {
            // What is no spool of this ledger was moved away.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // Calls must not wait for it.
                let path = self.unsaid.display();
                tracing::error!(%error, "what is missing from the ledger could not be read from `{path}`: {error}");
            }
            Err(_) | Ok(()) => {}
        }
        Ok(())
    }

    /// Says in a file what could not be put on record, so that the next router can: above all how much is
    /// missing.
    pub(super) async fn leave_unsaid(&mut self) {
        let (calls, entries) = self.gap.as_ref().map_or((0, 0), Gap::lost);
        let mut notes: Vec<EntryRow> = self.gap.iter().map(Gap::entry).collect();
        notes.append(&mut self.notes);
        // Where the ledger was not taken up, how the router before ended is still to be said.
        notes.retain(|note| self.begun || note.kind != AUDIT_STOPPED);
        if notes.is_empty() {
            return;
        }
        let waiting = notes.iter().filter(|note| note.kind != AUDIT_STOPPED).count() as u64;
        let waiting = waiting.saturating_sub(u64::from(self.gap.is_some()));
        let written = match self.store.open_spool(&self.unsaid) {
            Ok(spool) => self.store.spool(spool, self.last, &notes, &[]).await.1,
            Err(error) => Err(error),
        };
        let error = written.err();
        let entries = entries.saturating_add(if error.is_some() { waiting } else { 0 });
        if calls.saturating_add(entries) == 0 {
            return;
        }
        self.shared.missing.store(calls.saturating_add(entries), Ordering::Relaxed);
        let path = self.unsaid.display();
        match error {
            None => tracing::error!(
                calls,
                entries,
                "{calls} calls and {entries} entries are missing from the ledger, which cannot be written; `{path}` says so, and the next start puts that on record"
            ),
            Some(error) => tracing::error!(
                calls,
                entries,
                %error,
                "{calls} calls and {entries} entries are missing from the ledger, which cannot be written, and that cannot be kept in `{path}`: {error}"
            ),
        }
    }
}
