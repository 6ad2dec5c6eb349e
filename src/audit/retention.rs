//! [`Retention`]: how old and how large the ledger may become, and removing what is beyond that.
//!
//! Changes when calls leave the ledger for another reason. The steps and their order are the store's.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::AuditWriter;
use crate::clock;
use crate::metrics::AuditMetrics;
use crate::model::Timestamp;
use crate::store::{EntryRow, EraseOf, Erased, PruneUntil, Pruned, Store, StoreError};

/// After a start, servers and sessions come first.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// How often the size is looked at.
const LOOK: Duration = Duration::from_secs(30);
/// How soon what could not be removed is tried again: a full disk waits for it.
const AGAIN: Duration = Duration::from_secs(3);
/// How often rows that became too old are removed: together, not one by one.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);
/// Each time, the size goes this part below its limit, so that there is something to do rarely.
const ROOM: u64 = 32;
/// Who did it, in the ledger.
const ACTOR: &str = "router";
/// Copies of the ledger, made by upgrades and restores, are gone.
const COPIES_REMOVED: &str = "audit.copies_removed";

/// Keeps the ledger within its age and size.
#[derive(Debug)]
pub struct Retention {
    store: Store,
    metrics: AuditMetrics,
    /// How long calls are kept.
    keep: Duration,
    /// How long their arguments and results are; as long as they when nothing is said.
    keep_payloads: Option<Duration>,
    /// Bytes that they may take.
    max_size: u64,
}

impl Retention {
    /// Calls are kept for `keep`, as long as they take no more than `max_size` bytes.
    #[must_use]
    pub const fn new(store: Store, metrics: AuditMetrics, keep: Duration, max_size: u64) -> Self {
        Self { store, metrics, keep, keep_payloads: None, max_size }
    }

    /// Arguments and results are kept for less long, where that is said.
    #[must_use]
    pub fn payloads(mut self, keep: Option<Duration>) -> Self {
        self.keep_payloads = keep;
        self
    }

    /// Looks again and again until `stop`, and at once when the writer finds the disk full.
    pub async fn run(self: Arc<Self>, writer: AuditWriter, stop: CancellationToken) {
        let mut wait = FIRST_LOOK.min(self.every());
        let mut aged = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = writer.disk_full() => aged = None,
            }
            wait = LOOK.min(self.every());
            let by_age = aged.is_none_or(|at| clock::uptime().since(at) >= self.every());
            if by_age {
                aged = Some(clock::uptime());
            }
            // Ended between two steps or within one: what is left is in order.
            let done = tokio::select! {
                () = stop.cancelled() => return,
                done = self.look(by_age) => done,
            };
            if !done {
                (wait, aged) = (wait.min(AGAIN), None);
            }
        }
    }

    fn every(&self) -> Duration {
        let shortest = self.keep_payloads.map_or(self.keep, |payloads| payloads.min(self.keep));
        (shortest / 100).clamp(Duration::from_millis(100), LONGEST_WAIT)
    }

    /// Whether nothing is left that should have been removed.
    async fn look(&self, by_age: bool) -> bool {
        let cutoff = clock::timestamp().minus(self.keep);
        let age = by_age.then_some(("age", PruneUntil::Before(cutoff)));
        let size = self.store.size_bytes().audit.database_bytes > self.max_size;
        let room = self.max_size - self.max_size / ROOM;
        let size = size.then_some(("size", PruneUntil::Fits(room)));
        let mut done = true;
        for (reason, until) in age.into_iter().chain(size) {
            match self.prune(until, ACTOR).await {
                Ok(Pruned { rows: 0, .. }) | Err(StoreError::Closed) => {}
                Ok(pruned) => tracing::info!(
                    rows = pruned.rows,
                    ledger.seq = pruned.through,
                    freed_bytes = pruned.freed_bytes,
                    "{} rows were removed from the ledger because of its {reason}",
                    pruned.rows
                ),
                Err(error) => {
                    done = false;
                    tracing::warn!(%error, "old rows could not be removed from the ledger: {error}");
                }
            }
        }
        if by_age {
            done &= self.expire(cutoff).await;
        }
        done
    }

    /// Removes what goes before its calls, and copies in which nothing is left that should be; whether that
    /// was done.
    async fn expire(&self, cutoff: Timestamp) -> bool {
        let now = clock::timestamp();
        let mut done = true;
        if let Some(keep) = self.keep_payloads {
            match self.store.expire_payloads(now.minus(keep), now).await {
                Ok(0) | Err(StoreError::Closed) => {}
                Ok(payloads) => tracing::info!(
                    payloads,
                    "arguments and results of {payloads} calls were removed from the ledger because of their age"
                ),
                Err(error) => {
                    done = false;
                    tracing::warn!(%error, "old arguments and results could not be removed from the ledger: {error}");
                }
            }
        }
        match self.store.remove_old_copies(cutoff).await {
            Ok(files) if files.is_empty() => {}
            Ok(files) => {
                tracing::info!(?files, "old copies of the ledger were removed");
                self.store.note(EntryRow {
                    seq: 0,
                    at: now,
                    kind: COPIES_REMOVED.to_owned(),
                    actor: ACTOR.to_owned(),
                    subject: "ledger".to_owned(),
                    detail: serde_json::json!({ "files": files }).to_string(),
                });
            }
            // They are no part of the ledger; the next look may do it.
            Err(error) => {
                tracing::warn!(%error, "old copies of the ledger could not be removed: {error}");
            }
        }
        done
    }

    /// Removes what is from before `cutoff`, as `actor` asked for.
    ///
    /// # Errors
    /// What any statement can give; what was removed by then stays so.
    pub async fn purge(&self, cutoff: Timestamp, actor: &str) -> Result<Pruned, StoreError> {
        let pruned = self.prune(PruneUntil::Before(cutoff), actor).await?;
        if pruned.rows > 0 {
            // Whoever asks for it means every word; retention by itself may leave some for a day.
            self.store.index_forget_below(pruned.through.saturating_add(1)).await?;
        }
        Ok(pruned)
    }

    /// Erases arguments and results, as `actor` asked for.
    ///
    /// # Errors
    /// What any statement can give; what was erased by then stays so.
    pub async fn erase(&self, of: &EraseOf, actor: &str) -> Result<Erased, StoreError> {
        self.store.erase(of, actor, clock::timestamp()).await
    }

    async fn prune(&self, until: PruneUntil, actor: &str) -> Result<Pruned, StoreError> {
        let pruned = self.store.prune(until, actor, clock::timestamp()).await?;
        if pruned.rows > 0 {
            self.metrics.pruned(pruned.rows, self.store.audit_oldest().await?);
        }
        Ok(pruned)
    }
}
