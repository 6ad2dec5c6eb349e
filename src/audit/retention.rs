//! [`Retention`]: how old and how large the ledger may become, and removing what is beyond that.
//!
//! Changes when calls leave the ledger for another reason. The steps and their order are the store's.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::AuditWriter;
use crate::clock;
use crate::metrics::AuditMetrics;
use crate::model::{Timestamp, Uptime};
use crate::store::{
    EntryRow, EraseOf, Erased, PruneUntil, Pruned, Store, StoreError, spool_remains,
};

/// After a start, servers and sessions come first.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// How often the size is looked at, which is to ask for that of a file. A small ledger at full speed grows by its
/// limit within seconds.
const LOOK: Duration = Duration::from_secs(1);
/// How soon it is tried again when nothing could be removed for the size: the few rows that stay are large.
const IN_VAIN: Duration = Duration::from_secs(30);
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
    /// Where rows wait that cannot be committed.
    spool: Option<PathBuf>,
}

/// What came of a look.
struct Looked {
    /// Nothing is left that should have been removed.
    done: bool,
    /// The size is too large, and nothing can be removed for it.
    in_vain: bool,
}

impl Retention {
    /// Calls are kept for `keep`, as long as they take no more than `max_size` bytes.
    #[must_use]
    pub const fn new(store: Store, metrics: AuditMetrics, keep: Duration, max_size: u64) -> Self {
        Self { store, metrics, keep, keep_payloads: None, max_size, spool: None }
    }

    /// Arguments and results are kept for less long, where that is said.
    #[must_use]
    pub fn payloads(mut self, keep: Option<Duration>) -> Self {
        self.keep_payloads = keep;
        self
    }

    /// Files may lie beside the spool, where there is one.
    #[must_use]
    pub fn spool(mut self, spool: Option<PathBuf>) -> Self {
        self.spool = spool;
        self
    }

    /// Looks again and again until `stop`, and at once when the writer finds the disk full.
    pub async fn run(self: Arc<Self>, writer: AuditWriter, stop: CancellationToken) {
        let mut wait = FIRST_LOOK.min(self.every());
        let (mut aged, mut in_vain) = (None, None);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = writer.disk_full() => (aged, in_vain) = (None, None),
            }
            wait = LOOK.min(self.every());
            let is_due =
                |at: Option<Uptime>, every| at.is_none_or(|at| clock::uptime().since(at) >= every);
            let by_age = is_due(aged, self.every());
            let by_size = self.is_too_large() && is_due(in_vain, IN_VAIN);
            if by_age {
                aged = Some(clock::uptime());
            }
            // Ended between two steps or within one: what is left is in order.
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look(by_age, by_size) => looked,
            };
            if by_size {
                in_vain = looked.in_vain.then(clock::uptime);
            }
            if !looked.done {
                (wait, aged) = (AGAIN.min(self.every()), None);
            }
        }
    }

    fn is_too_large(&self) -> bool {
        self.store.size_bytes().audit.database_bytes > self.max_size
    }

    fn every(&self) -> Duration {
        let shortest = self.keep_payloads.map_or(self.keep, |payloads| payloads.min(self.keep));
        (shortest / 100).clamp(Duration::from_millis(100), LONGEST_WAIT)
    }

    async fn look(&self, by_age: bool, by_size: bool) -> Looked {
        let cutoff = clock::timestamp().minus(self.keep);
        let age = by_age.then_some(("age", PruneUntil::Before(cutoff)));
        let room = self.max_size - self.max_size / ROOM;
        let size = by_size.then_some(("size", PruneUntil::Fits(room)));
        let (mut done, mut in_vain) = (true, false);
        for (reason, until) in age.into_iter().chain(size) {
            match self.prune(until, ACTOR).await {
                Ok(Pruned { rows: 0, .. }) => in_vain = matches!(until, PruneUntil::Fits(_)),
                Err(StoreError::Closed) => {}
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
        Looked { done, in_vain }
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

    /// Erases arguments and results, as `actor` asked for, and says which files may hold them and were not looked
    /// into.
    ///
    /// # Errors
    /// What any statement can give; what was erased by then stays so.
    pub async fn erase(&self, of: &EraseOf, actor: &str) -> Result<Erased, StoreError> {
        let mut erased = self.store.erase(of, actor, clock::timestamp()).await?;
        let spool = self.spool.as_deref().map(spool_remains).unwrap_or_default();
        erased.beside(spool.beside, spool.waiting);
        for file in erased.not_looked_into.iter().chain(&erased.waits_in) {
            let file = file.display();
            tracing::warn!(
                "`{file}` may hold what was erased from the ledger; it was not looked into"
            );
        }
        Ok(erased)
    }

    async fn prune(&self, until: PruneUntil, actor: &str) -> Result<Pruned, StoreError> {
        let pruned = self.store.prune(until, actor, clock::timestamp()).await?;
        if pruned.rows > 0 {
            self.metrics.pruned(pruned.rows, self.store.audit_oldest().await?);
        }
        Ok(pruned)
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::audit::{AuditSettings, Durability, IntentMode};
    use crate::model::{CallId, Entrance, Outcome};
    use crate::redact::InForce;
    use crate::store::CallRow;

    /// What lies beside a spool is not passed over in silence.
    #[tokio::test]
    async fn an_erasure_names_what_lies_beside_the_spool() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(folder.path()).await.unwrap();
        let metrics = AuditMetrics::register(&Registry::new()).unwrap();
        let retention = Retention::new(store, metrics, Duration::from_hours(1), u64::MAX);
        let spool = other.path().join("spool.jsonl");
        let retention = retention.spool(Some(spool.clone()));
        let of = EraseOf::Caller("alice".to_owned());
        let erased = retention.erase(&of, "ops").await.unwrap();
        assert_eq!((erased.complete, erased.not_looked_into), (true, Vec::new()));
        let rejected = other.path().join("spool.jsonl.rejected");
        std::fs::write(&rejected, "a row").unwrap();
        let erased = retention.erase(&of, "ops").await.unwrap();
        assert_eq!((erased.complete, erased.not_looked_into), (false, vec![rejected.clone()]));
        std::fs::remove_file(rejected).unwrap();
        std::fs::write(&spool, "a row").unwrap();
        let erased = retention.erase(&of, "ops").await.unwrap();
        assert_eq!((erased.complete, erased.waits_in), (false, Some(spool)));
    }

    /// What comes between two looks at full speed is many times a small limit.
    #[tokio::test]
    async fn a_ledger_that_grows_fast_is_cut_back_at_once() {
        const LIMIT: u64 = 12 << 20;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let metrics = AuditMetrics::register(&Registry::new()).unwrap();
        let settings = AuditSettings {
            durability: Durability::Batched,
            intent: IntentMode::Off,
            checkpoints: Vec::new(),
            data_dir: folder.path().to_owned(),
            spool: None,
            redaction: InForce::default(),
            recording: serde_json::Value::Null,
        };
        let tracker = TaskTracker::new();
        let writer = AuditWriter::start(store.clone(), &settings, metrics.clone(), &tracker);
        let stop = CancellationToken::new();
        let keep = Duration::from_hours(24);
        let retention = Arc::new(Retention::new(store.clone(), metrics, keep, LIMIT));
        tracker.spawn(retention.run(writer.clone(), stop.clone()));
        // The first look is over.
        tokio::time::sleep(FIRST_LOOK + Duration::from_millis(500)).await;
        for _ in 0..4 {
            let rows: Vec<CallRow> = (0..500)
                .map(|_| CallRow {
                    arguments: Some("x".repeat(8 * 1024)),
                    ..CallRow::new(
                        CallId::from_uuid(uuid::Uuid::now_v7()),
                        clock::timestamp(),
                        Entrance::Rest,
                        Outcome::Ok,
                    )
                })
                .collect();
            store.append_calls(&rows).await.unwrap();
        }
        let mut size = u64::MAX;
        for _ in 0..200 {
            store.shrink_ledger_log().await.unwrap();
            size = store.size_bytes().audit.database_bytes;
            if size <= LIMIT && store.audit_count().await.unwrap() < 2_000 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(size <= LIMIT, "{size}");
        stop.cancel();
        writer.close().await;
        tracker.close();
        tracker.wait().await;
    }
}
