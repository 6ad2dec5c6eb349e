//! [`Task`]: the one that writes the ledger.
//!
//! Changes when the order of commits does, or what is done when they fail.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::super::begun::interrupted;
use super::super::checkpoints::Checkpoints;
use super::{BATCH, Intent, Queued, Shared};
use crate::clock;
use crate::config::Durability;
use crate::model::{Timestamp, Uptime};
use crate::store::{
    AUDIT_STARTED, AUDIT_STOPPED, CALL_STARTED, CallRow, EntryRow, Store, StoreError,
};

/// How long the first call of a batch waits for others; with the commit it stays below 100 ms.
const COLLECT: Duration = Duration::from_millis(50);
/// Rows encoded, or bytes redacted, before other tasks of the thread get a turn.
const ENCODE_ROWS: usize = 128;
const ENCODE_BYTES: usize = 64 * 1024;
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// Entries beside calls that are kept while the database cannot be written.
const LARGEST_JOURNAL: usize = 16_384;

/// Something is missing.
const GAP: &str = "audit.gap";

/// The one that writes.
pub(super) struct Task {
    store: Store,
    shared: Arc<Shared>,
    failing_since: Option<Uptime>,
    /// Whether the metric of the oldest call is set.
    oldest: Option<()>,
    /// What others have to put on record beside calls.
    journal: mpsc::Receiver<EntryRow>,
    /// Such entries that wait for the next commit.
    notes: Vec<EntryRow>,
    /// What is missing from the ledger, until that is on record.
    gap: Option<Gap>,
    checkpoints: Checkpoints,
}

/// Calls that could not be put on record.
struct Gap {
    from: Timestamp,
    to: Timestamp,
    calls: u64,
}

/// What was taken from the queue at once.
struct Taken {
    entries: Vec<Queued>,
    intents: Vec<Intent>,
    flushes: Vec<oneshot::Sender<()>>,
}

impl Taken {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.intents.is_empty() && self.flushes.is_empty()
    }
}

impl Task {
    pub(super) fn new(store: Store, shared: Arc<Shared>, checkpoints: &[PathBuf]) -> Self {
        Self {
            journal: store.journal(),
            store,
            shared,
            failing_since: None,
            oldest: None,
            notes: Vec::new(),
            gap: None,
            checkpoints: Checkpoints::new(checkpoints),
        }
    }

    pub(super) async fn run(mut self) {
        self.begin().await;
        if let Ok(Some(oldest)) = self.store.audit_oldest().await {
            self.shared.metrics.oldest(oldest);
            self.oldest = Some(());
        }
        let mut spare = Vec::new();
        loop {
            let Some(mut taken) = self.take(spare) else { break };
            self.hear();
            if taken.is_empty() && self.notes.is_empty() {
                spare = taken.entries;
                self.checkpoints.keep(&self.store).await;
                self.wait().await;
                continue;
            }
            if !taken.intents.is_empty() || taken.entries.is_empty() {
                self.write_intents(taken.intents).await;
            }
            while !taken.entries.is_empty() {
                let rest = taken.entries.len().min(BATCH);
                let batch: Vec<Queued> = taken.entries.drain(..rest).collect();
                self.write(batch).await;
            }
            for flush in taken.flushes {
                // Nobody waits any more: nothing to tell.
                let _gone = flush.send(());
            }
            spare = taken.entries;
            // A burst must not keep its memory for ever.
            spare.shrink_to(BATCH);
            self.checkpoints.keep(&self.store).await;
        }
        self.hear();
        self.notes.push(entry(AUDIT_STOPPED, &serde_json::json!({})));
        self.write_intents(Vec::new()).await;
        self.checkpoints.end(&self.store).await;
    }

    /// Puts on record that the ledger is written from here on, what a router that was cut off left
    /// unsaid, and the calls that were under way then.
    async fn begin(&mut self) {
        match self.store.unfinished().await {
            Ok(Some(unfinished)) => {
                let calls: Vec<CallRow> = unfinished.begun.iter().filter_map(interrupted).collect();
                self.notes.push(entry(
                    GAP,
                    &serde_json::json!({
                        "reason": "the router was cut off",
                        "after": unfinished.last.map(|at| at.to_string()),
                        "interrupted": calls.len(),
                    }),
                ));
                let notes = std::mem::take(&mut self.notes);
                if !self.commit(&notes, &calls).await {
                    self.notes = notes;
                } else if !calls.is_empty() {
                    tracing::warn!(
                        calls = calls.len(),
                        "{} calls were under way when the router was cut off",
                        calls.len()
                    );
                }
            }
            Ok(None) => {}
            Err(error) => {
                self.failed(&error);
            }
        }
        let version = env!("CARGO_PKG_VERSION");
        self.notes.push(entry(
            AUDIT_STARTED,
            &serde_json::json!({ "version": version, "pid": std::process::id() }),
        ));
    }

    /// Takes what others have to put on record.
    fn hear(&mut self) {
        while let Ok(entry) = self.journal.try_recv() {
            self.notes.push(entry);
        }
    }

    /// Waits for something to do.
    async fn wait(&mut self) {
        tokio::select! {
            () = self.shared.work.notified() => {
                if self.shared.durability == Durability::Batched {
                    self.collect().await;
                }
            }
            Some(entry) = self.journal.recv() => self.notes.push(entry),
            () = tokio::time::sleep(self.checkpoints.due()) => {}
        }
    }

    /// Commits the beginnings of calls, and what others have to put on record.
    async fn write_intents(&mut self, intents: Vec<Intent>) {
        let mut notes = std::mem::take(&mut self.notes);
        // Whoever does not wait any more does not send its call.
        let awaited = intents.into_iter().filter(|intent| !intent.waiter.is_closed());
        let (rows, waiters): (Vec<_>, Vec<_>) =
            awaited.map(|intent| (intent.row, intent.waiter)).unzip();
        notes.extend(rows);
        if notes.is_empty() || self.commit(&notes, &[]).await {
            for waiter in waiters {
                // The caller went away; its call is not sent.
                let _gone = waiter.send(());
            }
        } else {
            // What others said is still to be said; whoever waits for an intent is told by the
            // dropped waiter.
            notes.retain(|note| note.kind != CALL_STARTED);
            notes.truncate(LARGEST_JOURNAL);
            self.notes = notes;
        }
    }

    /// Takes everything that is queued; `None` when the writer is closed and all is done.
    fn take(&self, spare: Vec<Queued>) -> Option<Taken> {
        let mut queue = self.shared.queue.lock();
        if queue.entries.is_empty()
            && queue.intents.is_empty()
            && queue.flushes.is_empty()
            && self.shared.closed.load(Ordering::Relaxed)
        {
            queue.ended = true;
            return None;
        }
        Some(Taken {
            entries: std::mem::replace(&mut queue.entries, spare),
            intents: std::mem::take(&mut queue.intents),
            flushes: std::mem::take(&mut queue.flushes),
        })
    }

    /// Waits a little for more calls, without being woken for each.
    async fn collect(&self) {
        tokio::select! {
            () = tokio::time::sleep(COLLECT) => {}
            () = self.shared.hurry.notified() => {}
        }
    }

    async fn write(&mut self, batch: Vec<Queued>) {
        let redactor = self.shared.redactor.load_full();
        let digester = self.store.digester();
        let mut rows = Vec::with_capacity(batch.len());
        let mut places = Vec::with_capacity(batch.len());
        let mut waiters = Vec::new();
        let (mut held, mut encoded) = (0, 0);
        for queued in batch {
            rows.push(queued.entry.into_row(&redactor, &digester));
            places.push(queued.place);
            waiters.extend(queued.waiter);
            held += queued.bytes;
            encoded += queued.bytes;
            if encoded >= ENCODE_BYTES || rows.len().is_multiple_of(ENCODE_ROWS) {
                encoded = 0;
                tokio::task::yield_now().await;
            }
        }
        let notes = std::mem::take(&mut self.notes);
        let committed = self.commit(&notes, &rows).await;
        if committed {
            self.count(&rows);
            for waiter in waiters {
                // The caller went away: the row is there all the same.
                let _gone = waiter.send(());
            }
        } else {
            self.notes = notes;
            self.lose(&rows);
        }
        self.shared.metrics.dequeued(rows.len());
        self.shared.held_bytes.fetch_sub(held, Ordering::Relaxed);
        drop(places);
        self.shared.freed.notify_waiters();
    }

    /// Lets calls go, and remembers to say so.
    fn lose(&mut self, rows: &[CallRow]) {
        self.shared.metrics.dropped(rows.len());
        let times = rows.iter().map(|row| row.started_at);
        let (Some(from), Some(to)) = (times.clone().min(), times.max()) else { return };
        let gap = self.gap.get_or_insert(Gap { from, to, calls: 0 });
        gap.from = gap.from.min(from);
        gap.to = gap.to.max(to);
        gap.calls = gap.calls.saturating_add(rows.len() as u64);
    }

    fn count(&mut self, rows: &[CallRow]) {
        for row in rows {
            self.shared.metrics.recorded(row.outcome);
        }
        if self.oldest.is_none()
            && let Some(first) = rows.first()
        {
            self.shared.metrics.oldest(first.started_at);
            self.oldest = Some(());
        }
    }

    /// Commits a batch, however often it must be tried; `false` when it was given up.
    async fn commit(&mut self, notes: &[EntryRow], rows: &[CallRow]) -> bool {
        let mut delay = FIRST_RETRY;
        loop {
            let began = clock::uptime();
            let gap = self.gap.as_ref().map(Gap::entry);
            let entries: Vec<EntryRow> = gap.into_iter().chain(notes.iter().cloned()).collect();
            let error = match self.store.append_ledger(&entries, rows).await {
                Ok(_last) => {
                    self.gap = None;
                    self.shared.metrics.committed(clock::uptime().since(began));
                    self.recovered();
                    return true;
                }
                Err(error) => error,
            };
            let failing = clock::uptime().since(self.failed(&error));
            let closing = self.shared.closed.load(Ordering::Relaxed);
            let keeps = self.shared.durability == Durability::Strict && !closing;
            if failing >= self.shared.patience && (!keeps || rows.is_empty()) {
                tracing::warn!(
                    calls = rows.len(),
                    error = &error as &dyn std::error::Error,
                    "{} calls are missing from the ledger: it could not be written",
                    rows.len()
                );
                return false;
            }
            tokio::time::sleep(delay).await;
            delay = delay.saturating_mul(2).min(LONGEST_RETRY);
        }
    }

    fn failed(&mut self, error: &StoreError) -> Uptime {
        *self.failing_since.get_or_insert_with(|| {
            self.shared.failing.store(true, Ordering::Relaxed);
            tracing::error!(
                error = error as &dyn std::error::Error,
                "the ledger cannot be written: {error}"
            );
            clock::uptime()
        })
    }

    fn recovered(&mut self) {
        if let Some(since) = self.failing_since.take() {
            self.shared.failing.store(false, Ordering::Relaxed);
            self.shared.freed.notify_waiters();
            let seconds = clock::uptime().since(since).as_secs_f64();
            tracing::info!(seconds, "the ledger is written again after {seconds:.1} s");
        }
    }
}

impl Gap {
    fn entry(&self) -> EntryRow {
        entry(
            GAP,
            &serde_json::json!({
                "reason": "the ledger could not be written",
                "from": self.from.to_string(),
                "to": self.to.to_string(),
                "calls": self.calls,
            }),
        )
    }
}

fn entry(kind: &str, detail: &serde_json::Value) -> EntryRow {
    EntryRow {
        seq: 0,
        at: clock::timestamp(),
        kind: kind.to_owned(),
        actor: "router".to_owned(),
        subject: "ledger".to_owned(),
        detail: detail.to_string(),
    }
}
