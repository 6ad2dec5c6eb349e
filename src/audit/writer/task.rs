//! [`Task`]: the one that writes the ledger.
//!
//! Changes when the order of commits does, or what is done when they fail.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use self::crowd::{GAP, Gap};
use super::super::begun::{class_of, interrupted};
use super::super::checkpoints::Checkpoints;
use super::super::disk::{Disk, Space};
use super::backlog::{Backlog, weight};
use super::pace::Pace;
use super::{AuditSettings, BATCH, BATCH_BYTES, Intent, LARGE, Queued, Shared, WORTHWHILE};
use crate::clock;
use crate::config::{Durability, IntentMode};
use crate::model::Uptime;
use crate::redact::{Payload, Strictness};
use crate::store::{
    AUDIT_STARTED, AUDIT_STOPPED, CALL_STARTED, CallRow, Courtesy, EntryRow, Spool, Store,
    StoreError, StoreFailure,
};

mod aside;
mod crowd;

/// How long the first call of a batch waits for others; with the commit it stays below 100 ms.
const COLLECT: Duration = Duration::from_millis(50);
/// How long calls go first while a batch is written: where all processors are busy, it would never end else.
const COURTEOUS: Duration = Duration::from_millis(10);
/// How long calls are waited for at once with which a commit can be shared: the shortest that the timer knows.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Rows encoded, or bytes redacted, before other tasks of the thread get a turn.
const ENCODE_ROWS: usize = 128;
const ENCODE_BYTES: usize = 64 * 1024;
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// How long one attempt waits for another process' lock. In short parts, so that it is known soon that the
/// database takes nothing.
const LOCKED: Duration = Duration::from_millis(100);

/// The one that writes.
pub(super) struct Task {
    store: Store,
    shared: Arc<Shared>,
    failing_since: Option<Uptime>,
    /// Another process holds the database since then, and that is no failure yet.
    locked_since: Option<Uptime>,
    /// The database takes nothing, as far as is known.
    stuck: bool,
    /// The database is damaged or its disk fails: nothing is written until somebody has looked.
    stopped: bool,
    /// Whether the beginning is on record.
    begun: bool,
    /// Whether the metric of the oldest call is set.
    oldest: Option<()>,
    /// What others have to put on record beside calls.
    journal: mpsc::Receiver<EntryRow>,
    /// Such entries that wait for the next commit.
    notes: Vec<EntryRow>,
    /// What is missing from the ledger, until that is on record.
    gap: Option<Gap>,
    pace: Pace,
    /// What writing takes, and how long the last batch took but for the sync.
    backlog: Backlog,
    took: Duration,
    /// Lets calls go first, where nobody waits for commits.
    courtesy: Option<Courtesy>,
    checkpoints: Checkpoints,
    disk: Disk,
    /// What is kept of which calls when the ledger is taken up.
    recording: serde_json::Value,
    /// Where rows go while the database cannot be written.
    spool: Option<Spool>,
    /// Whether some wait there: others must not overtake them.
    spooling: bool,
    /// Up to where the spool is of a router before this one.
    inherited: u64,
    /// Where is said what could not be put on record when a router ended.
    unsaid: PathBuf,
    /// When the database was last tried while rows wait in the spool.
    tried: Option<Uptime>,
    /// The last row that is known to be committed.
    last: i64,
}

/// What was taken from the queue at once.
struct Taken {
    entries: VecDeque<Queued>,
    intents: Vec<Intent>,
    flushes: Vec<oneshot::Sender<()>>,
}

impl Taken {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.intents.is_empty() && self.flushes.is_empty()
    }
}

impl Task {
    pub(super) fn new(store: Store, shared: Arc<Shared>, settings: &AuditSettings) -> Self {
        // Callers wait for commits in `strict`, and where calls are put on record before they are sent.
        let nobody_waits =
            settings.durability == Durability::Batched && settings.intent == IntentMode::Off;
        Self {
            journal: store.journal(),
            courtesy: nobody_waits.then(|| store.ledger_courtesy()),
            store,
            shared,
            failing_since: None,
            locked_since: None,
            stuck: false,
            stopped: false,
            begun: false,
            oldest: None,
            notes: Vec::new(),
            gap: None,
            pace: Pace::default(),
            backlog: Backlog::default(),
            took: Duration::ZERO,
            checkpoints: Checkpoints::new(&settings.checkpoints),
            disk: Disk::new(&settings.data_dir),
            recording: settings.recording.clone(),
            spool: None,
            spooling: false,
            inherited: 0,
            unsaid: settings.data_dir.join(aside::UNSAID),
            tried: None,
            last: 0,
        }
    }

    pub(super) async fn run(mut self, spool: Option<PathBuf>) {
        if let Err(error) = self.store.set_ledger_patience(LOCKED).await {
            tracing::warn!(%error, "could not change how long the ledger waits for locks: {error}");
        }
        // What the chain ends with now is in no file that may be begun beside it.
        if let Ok(head) = self.store.checkpoint(clock::timestamp()).await {
            self.last = head.seq;
        }
        if let Some(path) = spool {
            self.open_spool(&path);
        }
        let began = clock::uptime();
        while let Err(error) = self.begin().await {
            if !self.waits_for_lock(&error, began) {
                self.failed(&error);
                break;
            }
            self.pause(FIRST_RETRY).await;
        }
        self.watch().await;
        if let Ok(Some(oldest)) = self.store.audit_oldest().await {
            self.shared.metrics.oldest(oldest);
            self.oldest = Some(());
        }
        self.checkpoints.keep(&self.store, self.last).await;
        self.limit_waiting();
        let mut spare = VecDeque::new();
        loop {
            match self.shared.durability {
                Durability::Strict => self.gather().await,
                Durability::Batched => self.collect().await,
            }
            let Some(mut taken) = self.take(spare) else { break };
            self.hear();
            self.watch().await;
            if taken.is_empty() && self.notes.is_empty() {
                spare = taken.entries;
                self.checkpoints.keep(&self.store, self.last).await;
                self.wait().await;
                continue;
            }
            self.write(&mut taken.entries, taken.intents).await;
            for flush in taken.flushes {
                // Nobody waits any more: nothing to tell.
                let _gone = flush.send(());
            }
            spare = taken.entries;
            // A burst must not keep its memory for ever.
            spare.shrink_to(BATCH);
            self.checkpoints.keep(&self.store, self.last).await;
        }
        self.hear();
        self.tried = None;
        self.notes.push(entry(AUDIT_STOPPED, &serde_json::json!({})));
        self.write(&mut VecDeque::new(), Vec::new()).await;
        self.leave_unsaid().await;
        self.checkpoints.end(&self.store).await;
    }

    /// Puts on record that the ledger is written from here on, what a router that was cut off left
    /// unsaid, and the calls that were under way then. Nothing is written before that but what that
    /// router left in files, and nothing is said while that is not done: then it is `false`.
    async fn begin(&mut self) -> Result<bool, StoreError> {
        if !self.read_back(self.inherited).await? {
            return Ok(false);
        }
        self.inherited = 0;
        self.read_unsaid().await?;
        let mut entries = Vec::new();
        let mut calls = Vec::new();
        if let Some(unfinished) = self.store.unfinished().await? {
            calls.extend(unfinished.begun.iter().filter_map(interrupted));
            entries.push(entry(
                GAP,
                &serde_json::json!({
                    "reason": "the router was cut off",
                    "after": unfinished.last.map(|at| at.to_string()),
                    "interrupted": calls.len(),
                }),
            ));
        }
        let version = env!("CARGO_PKG_VERSION");
        entries.push(entry(
            AUDIT_STARTED,
            &serde_json::json!({
                "version": version,
                "pid": std::process::id(),
                "boot_id": boot_id(),
                "recording": self.recording,
            }),
        ));
        self.append(&entries, &calls).await?;
        for call in &calls {
            self.shared.metrics.ended(class_of(call), call.outcome);
            self.shared.metrics.recorded(call.outcome);
        }
        self.begun = true;
        self.shared.begun.store(true, Ordering::Relaxed);
        if !calls.is_empty() {
            tracing::warn!(
                calls = calls.len(),
                "{} calls were under way when the router was cut off",
                calls.len()
            );
        }
        Ok(true)
    }

    /// Whether there is something to catch up with.
    const fn is_behind(&self) -> bool {
        !self.stopped && (self.failing_since.is_some() || self.spooling || !self.begun)
    }

    /// Whether the database is to be tried. While rows wait in the spool, that is not for each batch.
    fn is_due(&self) -> bool {
        !self.stopped
            && (!self.spooling
                || self.tried.is_none_or(|at| clock::uptime().since(at) >= LONGEST_RETRY))
    }

    /// Looks how much space there is. Where there is too little, old rows may be there that can go.
    async fn watch(&mut self) {
        let scarce = self.disk.look().await == Space::Scarce;
        let was = self.shared.scarce.swap(scarce, Ordering::Relaxed);
        if was && !scarce {
            self.shared.freed.notify_waiters();
        }
        let relieved = self.disk.is_full() && self.disk.relieve().await;
        if relieved || (scarce && !was) {
            self.shared.full.notify_one();
        }
    }

    /// Takes what others have to put on record.
    fn hear(&mut self) {
        while let Ok(entry) = self.journal.try_recv() {
            self.note(entry);
        }
        self.hear_of_lost();
    }

    /// Keeps an entry for the next commit. Known secrets have no place in it, whoever made it.
    fn note(&mut self, mut entry: EntryRow) {
        let redactor = self.shared.redaction.get();
        let detail = Payload::whole(entry.detail.as_bytes());
        entry.detail = redactor.uncut(detail, Strictness::KnownSecrets);
        entry.subject = redactor.text(&entry.subject, usize::MAX);
        self.notes.push(entry);
    }

    /// Waits for something to do. While the database fails, that is to try it again.
    async fn wait(&mut self) {
        if self.gap.is_some() && self.failing_since.is_none() {
            self.commit(&[], &[]).await;
        }
        if self.is_behind() {
            let pause = match self.tried {
                None if self.spooling => Duration::ZERO,
                _ => LONGEST_RETRY,
            };
            tokio::select! {
                () = self.shared.work.notified() => {}
                () = tokio::time::sleep(pause) => {
                    self.commit(&[], &[]).await;
                }
            }
            return;
        }
        tokio::select! {
            () = self.shared.work.notified() => {}
            Some(entry) = self.journal.recv() => self.note(entry),
            () = tokio::time::sleep(self.checkpoints.due().min(self.disk.every())) => {}
        }
    }

    /// Takes everything that is queued, at most one commit's calls; `None` when the writer is closed
    /// and all is done.
    fn take(&self, spare: VecDeque<Queued>) -> Option<Taken> {
        let mut queue = self.shared.queue.lock();
        if queue.entries.is_empty()
            && queue.intents.is_empty()
            && queue.flushes.is_empty()
            && self.shared.closed.load(Ordering::Relaxed)
        {
            queue.ended = true;
            return None;
        }
        let intents = std::mem::take(&mut queue.intents);
        let count = self.batch(&queue.entries);
        if count < queue.entries.len() {
            // What is asked to be flushed may be in the rest.
            let entries: VecDeque<Queued> = queue.entries.drain(..count).collect();
            self.shared.throttle.take(weights(&entries));
            return Some(Taken { entries, intents, flushes: Vec::new() });
        }
        self.shared.throttle.take(self.shared.throttle.waiting());
        Some(Taken {
            entries: std::mem::replace(&mut queue.entries, spare),
            intents,
            flushes: std::mem::take(&mut queue.flushes),
        })
    }

    /// How many wait for the next commit.
    fn waiting(&self) -> usize {
        let queue = self.shared.queue.lock();
        queue.entries.len().saturating_add(queue.intents.len())
    }

    /// How many of these make one commit.
    fn batch(&self, entries: &VecDeque<Queued>) -> usize {
        // What a commit took is given back before the next: these are the bytes of what waits.
        if entries.len() <= BATCH && self.shared.held_bytes.load(Ordering::Relaxed) <= BATCH_BYTES {
            return entries.len();
        }
        let mut bytes = 0_usize;
        let fitting = entries.iter().take(BATCH).take_while(|queued| {
            let fits = bytes < BATCH_BYTES;
            bytes = bytes.saturating_add(queued.bytes);
            fits
        });
        fitting.count()
    }

    /// Waits a little for more calls, without being woken for each: also right after a commit, during
    /// which only a few may have come.
    async fn collect(&self) {
        while let Some(rest) = self.until_commit() {
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = self.shared.hurry.notified() => {}
            }
        }
    }

    /// How long what is queued waits for more; `None` when nothing is, or it is to be committed now.
    fn until_commit(&self) -> Option<Duration> {
        let queue = self.shared.queue.lock();
        let in_a_hurry = queue.entries.len() >= WORTHWHILE
            || self.shared.held_bytes.load(Ordering::Relaxed) >= BATCH_BYTES
            || !queue.intents.is_empty()
            || !queue.flushes.is_empty()
            || self.shared.closed.load(Ordering::Relaxed);
        let since = queue.since.filter(|_| !in_a_hurry && !queue.entries.is_empty())?;
        let rest = COLLECT.saturating_sub(clock::uptime().since(since));
        (!rest.is_zero()).then_some(rest)
    }

    /// Waits for calls with which the next commit can be shared, if that is worth it.
    async fn gather(&mut self) {
        loop {
            let waiting = self.waiting();
            if waiting == 0 || !self.pace.waits(waiting, clock::uptime()) {
                break;
            }
            self.shared.wanted.store(self.pace.expected(), Ordering::Relaxed);
            tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = self.shared.hurry.notified() => {}
            }
        }
        self.shared.wanted.store(0, Ordering::Relaxed);
    }

    /// Commits calls, the beginnings of others, and what others have to put on record.
    async fn write(&mut self, batch: &mut VecDeque<Queued>, mut intents: Vec<Intent>) {
        let weight = weights(batch);
        let started = clock::uptime();
        self.took = Duration::ZERO;
        // So much comes together only if it comes faster than it is written: then the writer has its turns.
        if let Some(courtesy) = self.courtesy.as_ref().filter(|_| weight < LARGE) {
            courtesy.begin(COURTEOUS);
        }
        let redactor = self.shared.redaction.get();
        let mut rows = Vec::with_capacity(batch.len());
        let mut places = Vec::with_capacity(batch.len());
        let mut waiters = Vec::with_capacity(batch.len());
        let (mut held, mut encoded) = (0, 0);
        for queued in batch.drain(..) {
            if let Some(courtesy) = &self.courtesy {
                courtesy.give_way();
            }
            rows.push(queued.call.encoded(&redactor, &self.shared.digester));
            places.push(queued.place);
            waiters.extend(queued.waiter);
            held += queued.bytes;
            encoded += queued.bytes;
            if encoded >= ENCODE_BYTES || rows.len().is_multiple_of(ENCODE_ROWS) {
                encoded = 0;
                tokio::task::yield_now().await;
            }
        }
        let mut notes = std::mem::take(&mut self.notes);
        // Whoever does not wait any more does not send the call either.
        intents.retain(|intent| !intent.waiter.is_closed());
        for intent in intents {
            notes.push(intent.row);
            waiters.push(intent.waiter);
        }
        if rows.is_empty() && notes.is_empty() {
            return;
        }
        let began = clock::uptime();
        if self.commit(&notes, &rows).await {
            if weight >= LARGE {
                self.backlog.wrote(weight, began.since(started) + self.took);
            }
            self.limit_waiting();
            let released = waiters.len();
            for waiter in waiters {
                // The caller went away: what it waited for is there all the same.
                let _gone = waiter.send(());
            }
            self.count(&rows);
            self.pace.committed(released, self.waiting(), began, clock::uptime());
        } else {
            // What others said is still to be said; whoever waits for an intent is told by the
            // dropped waiter.
            notes.retain(|note| note.kind != CALL_STARTED);
            self.keep_notes(notes);
            self.lose(rows.iter().map(|row| row.started_at));
        }
        self.dequeue(places, held);
        if let Some(courtesy) = &self.courtesy {
            courtesy.end();
        }
    }

    /// Bounds how many calls may wait from now on. In `strict` there are no more than callers, who wait for
    /// them. While there is something to catch up with first, keeping calls back would not help.
    fn limit_waiting(&self) {
        if self.is_behind() {
            self.shared.throttle.ease();
        } else if self.shared.durability == Durability::Batched {
            self.shared.throttle.limit(self.backlog.limit());
        }
    }

    /// Gives back what these calls took of the queue.
    fn dequeue(&self, places: Vec<OwnedSemaphorePermit>, held: usize) {
        self.shared.metrics.dequeued(places.len());
        self.shared.held_bytes.fetch_sub(held, Ordering::Relaxed);
        drop(places);
        self.shared.freed.notify_waiters();
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

    /// Adds to the ledger. Lets go of waiting calls when that takes too long.
    async fn append(&mut self, entries: &[EntryRow], rows: &[CallRow]) -> Result<(), StoreError> {
        let store = self.store.clone();
        let appended = self.beside(store.append_ledger(entries, rows)).await?;
        (self.last, self.took) = (appended.last, appended.took);
        Ok(())
    }

    /// Commits a batch after all that comes before it; `false` when some of that still waits.
    async fn try_commit(
        &mut self,
        notes: &[EntryRow],
        rows: &[CallRow],
    ) -> Result<bool, StoreError> {
        if !self.begun && !self.begin().await? {
            return Ok(false);
        }
        if !self.read_back(u64::MAX).await? {
            return Ok(false);
        }
        if self.sheds() {
            // What is let go of while the database does not answer belongs into the same entry.
            self.append(&[], &[]).await?;
            self.stuck = false;
        }
        let gap = self.gap.take();
        let entries: Vec<EntryRow> =
            gap.iter().map(Gap::entry).chain(notes.iter().cloned()).collect();
        let appended = self.append(&entries, rows).await;
        if appended.is_err() {
            // With what was let go of meanwhile.
            self.gap = match (gap, self.gap.take()) {
                (Some(one), Some(other)) => Some(one.and(&other)),
                (one, other) => one.or(other),
            };
        }
        appended.map(|()| true)
    }

    /// Commits a batch, however often it must be tried, or puts it into the spool; `false` when it was
    /// given up.
    async fn commit(&mut self, notes: &[EntryRow], rows: &[CallRow]) -> bool {
        let mut delay = FIRST_RETRY;
        loop {
            if self.is_due() {
                let began = clock::uptime();
                self.tried = Some(began);
                match self.try_commit(notes, rows).await {
                    Ok(true) => {
                        self.shared.metrics.committed(clock::uptime().since(began));
                        self.recovered();
                        return true;
                    }
                    // It goes on at once.
                    Ok(false) => self.tried = None,
                    Err(error) => {
                        if self.relieve(&error).await {
                            continue;
                        }
                        if self.waits_for_lock(&error, began) {
                            self.pause(FIRST_RETRY).await;
                            continue;
                        }
                        // First the spool: `strict` takes calls as long as one of the two is written.
                        let aside = self.put_aside(notes, rows).await;
                        self.failed(&error);
                        if aside {
                            return true;
                        }
                    }
                }
            }
            if (self.spooling || self.stopped) && self.put_aside(notes, rows).await {
                return true;
            }
            let patient = self
                .failing_since
                .is_none_or(|since| clock::uptime().since(since) < self.shared.patience);
            if self.stopped || (!patient && (self.may_lose() || rows.is_empty())) {
                break;
            }
            self.pause(delay).await;
            delay = delay.saturating_mul(2).min(LONGEST_RETRY);
        }
        if !rows.is_empty() {
            tracing::warn!(
                calls = rows.len(),
                "{} calls are missing from the ledger: it could not be written",
                rows.len()
            );
        }
        false
    }

    /// Does what can be done about a full disk; whether that may have helped.
    async fn relieve(&mut self, error: &StoreError) -> bool {
        if error.failure() != StoreFailure::Space || !self.disk.relieve().await {
            return false;
        }
        // Whether the log can be moved or not, there is room to go on with.
        let store = self.store.clone();
        let _moved = self.beside(store.shrink_ledger_log()).await;
        self.shared.full.notify_one();
        true
    }

    fn failed(&mut self, error: &StoreError) {
        self.stuck = true;
        if matches!(error, StoreError::Corrupt { .. })
            && !std::mem::replace(&mut self.stopped, true)
        {
            // What was said to be on disk may not be: going on could bury it.
            tracing::error!(
                "the ledger's database is not written any more; check the disk, then start the router again"
            );
        }
        self.failing_since.get_or_insert_with(|| {
            self.shared.failing.store(true, Ordering::Relaxed);
            tracing::error!(
                error = error as &dyn std::error::Error,
                "the ledger cannot be written: {error}"
            );
            clock::uptime()
        });
    }

    fn recovered(&mut self) {
        (self.stuck, self.locked_since) = (false, None);
        if let Some(since) = self.failing_since.take() {
            self.shared.failing.store(false, Ordering::Relaxed);
            self.shared.freed.notify_waiters();
            let seconds = clock::uptime().since(since).as_secs_f64();
            tracing::info!(seconds, "the ledger is written again after {seconds:.1} s");
        }
        self.shared.spools.store(false, Ordering::Relaxed);
    }
}

fn weights(calls: &VecDeque<Queued>) -> usize {
    calls.iter().map(|queued| weight(queued.bytes)).sum()
}

/// Tells one boot of the machine from the next; `None` where the system does not say.
fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
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
