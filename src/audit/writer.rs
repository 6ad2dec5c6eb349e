//! [`AuditWriter`]: the bounded queue in front of the ledger and the one task behind it.
//!
//! Changes when the promise of a durability, or the bounds of the queue, change. What a row looks
//! like is `entry.rs`'s, what is taken out of it `redact.rs`'s.
//!
//! A place in the queue is reserved before a call is dispatched, so that recording a call never
//! waits and never fails. When the places are used up, new calls wait for a quarter of a second and
//! are refused then. In `batched` they also wait, and are served then, when calls end faster than the task
//! writes: no row waits long for its commit. When the database cannot be written, `strict` refuses new calls and keeps what
//! it has; `batched` goes on serving, lets go of the oldest calls when half of the places are taken, and of
//! all after five seconds, counts them and says so. When its disk is nearly full, `strict` refuses calls that it might be unable to
//! record. With a spool, a file on another disk, neither happens: rows are synced there, and read back
//! into the database in their order when it can be written again.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use self::backlog::weight;
use self::task::Task;
use self::throttle::Throttle;
use super::{AuditEntry, CallBegun};
use crate::clock;
use crate::config::{Durability, IntentMode};
use crate::metrics::AuditMetrics;
use crate::model::{Timestamp, Uptime};
use crate::redact::{InForce, Payload, PointerSet, Redactor, Strictness};
use crate::store::{CallRow, Digester, EntryRow, Store};

/// Calls admitted and not yet committed.
const PLACES: usize = 16_384;
/// Bytes of payloads that wait; beyond it no call is admitted.
const HELD_BYTES: usize = 64 * 1024 * 1024;
/// How long a call waits for a place before it is refused.
const ADMISSION: Duration = Duration::from_millis(250);
/// Bytes of a text that is redacted for others.
const TEXT: usize = 1024;
/// A call that waits for its commit makes its row itself, if no more bytes than these must be looked
/// through: the writer would do it for one after the other while the disk has nothing to do. So does one that
/// finds [`LARGE`] waiting.
const ENCODED_BY_CALLER: usize = 16 * 1024;
/// Calls in one commit, and bytes of payloads: what takes longer keeps others waiting.
const BATCH: usize = 4_096;
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Calls that are worth a commit of their own in `batched`: what a commit writes anew, the last page of
/// each table, is then no more than the calls are themselves.
const WORTHWHILE: usize = 32;
/// Weight of calls that do not come together unless they come faster than they are written.
const LARGE: usize = 256;
/// How long a failing database is retried before `batched` gives up what it tries to commit, and how long
/// another process' lock is waited for before it counts as a failure.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the ledger is kept.
#[derive(Debug, Clone)]
pub struct AuditSettings {
    /// When a call's answer may go out.
    pub durability: Durability,
    /// What is never kept.
    pub redaction: InForce,
    /// What is kept of which calls, for the entry that says that the ledger is taken up.
    pub recording: serde_json::Value,
    /// Which calls must be on record before they are sent.
    pub intent: IntentMode,
    /// Folders in which signed checkpoints are kept.
    pub checkpoints: Vec<PathBuf>,
    /// The folder of the database, whose disk is watched.
    pub data_dir: PathBuf,
    /// File or folder for rows that cannot be committed, best on another disk.
    pub spool: Option<PathBuf>,
}

/// Why a call cannot be taken on: the answer is 503 `MCPAuditUnavailableError`, nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuditUnavailable {
    /// Every place is used and none became free in time.
    #[error("could not record the call: the ledger's queue is full; try again later")]
    QueueFull,
    /// The database cannot be written and `durability` is `strict`.
    #[error("could not record the call: the ledger cannot be written; see the router's log")]
    NotWritable,
    /// The disk of the database is nearly full and `durability` is `strict`.
    #[error("could not record the call: the disk of the ledger is nearly full; free some space")]
    NoSpace,
    /// The router is shutting down.
    #[error("could not record the call: the router is shutting down")]
    Closed,
}

/// A call was recorded, but it is not known to be in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("could not commit the call to the ledger in time; it may have run")]
pub struct NotRecorded;

/// Takes finished calls. Clones are handles to the same queue.
#[derive(Clone)]
pub struct AuditWriter {
    shared: Arc<Shared>,
    /// Shared with every slot, apart from `shared` because permits need it so.
    places: Arc<Semaphore>,
}

struct Shared {
    durability: Durability,
    intent: IntentMode,
    patience: Duration,
    queue: Mutex<Queue>,
    /// The queue is no longer empty, or there is something else to do.
    work: Notify,
    /// There is no reason to wait for more.
    hurry: Notify,
    /// So many calls that wait for their commit are such a reason.
    wanted: AtomicUsize,
    /// A place or bytes became free.
    freed: Notify,
    held_bytes: AtomicUsize,
    throttle: Throttle,
    failing: AtomicBool,
    /// What a router before this one left unsaid is on record.
    begun: AtomicBool,
    /// There is a spool, and it takes rows in place of the database.
    has_spool: AtomicBool,
    /// There should be one, and it could not be opened.
    lacks_spool: AtomicBool,
    spools: AtomicBool,
    /// There is next to no space left on the disk.
    scarce: AtomicBool,
    /// The disk was found full, and what could be done at once was. For the one that removes old rows,
    /// which may be at it.
    full: Notify,
    closed: AtomicBool,
    /// What was not on record in the end: calls, and entries beside them.
    missing: AtomicU64,
    redaction: InForce,
    digester: Digester,
    metrics: AuditMetrics,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Queued>,
    /// When the first of these came.
    since: Option<Uptime>,
    /// What must be on record before a call is sent.
    intents: Vec<Intent>,
    flushes: Vec<oneshot::Sender<()>>,
    /// The task is gone: what comes now is lost, and counted.
    ended: bool,
}

struct Queued {
    call: Call,
    /// Held of its arguments and result.
    bytes: usize,
    /// Gives the place back when the row is committed.
    place: OwnedSemaphorePermit,
    waiter: Option<oneshot::Sender<()>>,
}

/// A finished call on its way to the ledger.
enum Call {
    Received(AuditEntry),
    Encoded(CallRow),
}

impl Call {
    fn encoded(self, redactor: &Redactor, digester: &Digester) -> CallRow {
        match self {
            Self::Received(entry) => entry.into_row(redactor, digester),
            Self::Encoded(row) => row,
        }
    }

    const fn started_at(&self) -> Timestamp {
        match self {
            Self::Received(entry) => entry.started_at,
            Self::Encoded(row) => row.started_at,
        }
    }
}

/// The beginning of a call, and who waits until it is committed.
struct Intent {
    row: EntryRow,
    waiter: oneshot::Sender<()>,
}

/// A reserved place in the queue. Dropping it gives the place back.
#[must_use = "a call that is admitted must be recorded"]
pub struct AuditSlot {
    shared: Arc<Shared>,
    place: OwnedSemaphorePermit,
}

impl std::fmt::Debug for AuditWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuditWriter").field("durability", &self.shared.durability).finish()
    }
}

impl std::fmt::Debug for AuditSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuditSlot")
    }
}

impl AuditWriter {
    /// Starts the task that writes, on `tracker`. It ends after [`Self::close`].
    #[must_use]
    pub fn start(
        store: Store,
        settings: &AuditSettings,
        metrics: AuditMetrics,
        tracker: &TaskTracker,
    ) -> Self {
        Self::start_with(store, settings, metrics, tracker, PATIENCE)
    }

    fn start_with(
        store: Store,
        settings: &AuditSettings,
        metrics: AuditMetrics,
        tracker: &TaskTracker,
        patience: Duration,
    ) -> Self {
        metrics.queue_limit(PLACES, HELD_BYTES);
        let shared = Arc::new(Shared {
            durability: settings.durability,
            intent: settings.intent,
            patience,
            queue: Mutex::default(),
            work: Notify::new(),
            hurry: Notify::new(),
            wanted: AtomicUsize::new(0),
            freed: Notify::new(),
            held_bytes: AtomicUsize::new(0),
            throttle: Throttle::new(),
            failing: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            has_spool: AtomicBool::new(false),
            lacks_spool: AtomicBool::new(false),
            spools: AtomicBool::new(false),
            scarce: AtomicBool::new(false),
            full: Notify::new(),
            closed: AtomicBool::new(false),
            missing: AtomicU64::new(0),
            redaction: settings.redaction.clone(),
            digester: store.digester(),
            metrics,
        });
        let task = Task::new(store, Arc::clone(&shared), settings);
        tracker.spawn(task.run(settings.spool.clone()));
        Self { shared, places: Arc::new(Semaphore::new(PLACES)) }
    }

    /// When answers may go out.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.shared.durability
    }

    /// Whether calls are committed as they come: `false` while the database cannot be written.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        !self.shared.failing.load(Ordering::Relaxed)
    }

    /// Whether the ledger was taken up: what a router that was cut off left unsaid is on record.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.shared.begun.load(Ordering::Relaxed)
    }

    /// Whether `strict` refuses calls because there is next to no space left on the disk.
    #[must_use]
    pub fn lacks_space(&self) -> bool {
        self.shared.durability == Durability::Strict
            && self.shared.scarce.load(Ordering::Relaxed)
            && !self.shared.has_spool.load(Ordering::Relaxed)
    }

    /// Whether rows are put into the spool because the database cannot be written.
    #[must_use]
    pub fn spools(&self) -> bool {
        self.shared.spools.load(Ordering::Relaxed)
    }

    /// Whether a spool is configured that could not be opened.
    #[must_use]
    pub fn lacks_spool(&self) -> bool {
        self.shared.lacks_spool.load(Ordering::Relaxed)
    }

    /// How many calls and entries are missing from the ledger without a word in it, once the task has ended.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.shared.missing.load(Ordering::Relaxed)
    }

    /// Resolves when there is next to no space left on the disk, and again when its ballast was
    /// removed: there is a little room now for whoever can make more.
    pub async fn disk_full(&self) {
        self.shared.full.notified().await;
    }

    /// Whether every place is taken, so that calls are being refused.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.places.available_permits() == 0 || self.shared.is_over_bytes()
    }

    /// Shows in the metrics how much of the queue is taken: by calls under way, too.
    pub fn show_load(&self) {
        let places = PLACES.saturating_sub(self.places.available_permits());
        self.shared.metrics.queue_load(places, self.shared.held_bytes.load(Ordering::Relaxed));
    }

    /// As [`AuditSlot::redacted`].
    #[must_use]
    pub fn redacted(&self, text: &str) -> String {
        self.shared.redacted(text)
    }

    /// Reserves a place for a call before it is dispatched. Waits only when none is free, or when more calls
    /// have ended than can be put on record in time.
    ///
    /// # Errors
    /// [`AuditUnavailable`] when there is no place within 250 ms, in `strict` also when the
    /// database cannot be written.
    pub async fn admit(&self) -> Result<AuditSlot, AuditUnavailable> {
        let throttle = &self.shared.throttle;
        if throttle.is_on() {
            self.shared.metrics.throttled();
            throttle.keep_back(ADMISSION).await;
        }
        match self.try_admit() {
            Err(AuditUnavailable::Closed) => return Err(AuditUnavailable::Closed),
            Err(_) => {}
            Ok(slot) => return Ok(slot),
        }
        // The timer is paid for by calls that have to wait only.
        match tokio::time::timeout(ADMISSION, self.wait_for_place()).await {
            Ok(admitted) => admitted,
            Err(_elapsed) => self.try_admit(),
        }
    }

    fn try_admit(&self) -> Result<AuditSlot, AuditUnavailable> {
        let shared = &self.shared;
        if shared.closed.load(Ordering::Relaxed) {
            return Err(AuditUnavailable::Closed);
        }
        if shared.durability == Durability::Strict
            && shared.failing.load(Ordering::Relaxed)
            && !shared.spools.load(Ordering::Relaxed)
        {
            return Err(AuditUnavailable::NotWritable);
        }
        if self.lacks_space() {
            return Err(AuditUnavailable::NoSpace);
        }
        if shared.is_over_bytes() {
            return Err(AuditUnavailable::QueueFull);
        }
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => Ok(AuditSlot { shared: Arc::clone(shared), place }),
            Err(_) => Err(AuditUnavailable::QueueFull),
        }
    }

    async fn wait_for_place(&self) -> Result<AuditSlot, AuditUnavailable> {
        loop {
            let freed = self.shared.freed.notified();
            match self.try_admit() {
                Ok(slot) => return Ok(slot),
                Err(AuditUnavailable::Closed) => return Err(AuditUnavailable::Closed),
                Err(
                    AuditUnavailable::QueueFull
                    | AuditUnavailable::NotWritable
                    | AuditUnavailable::NoSpace,
                ) => freed.await,
            }
        }
    }

    /// Resolves when everything recorded before is committed, or given up.
    pub async fn flush(&self) {
        let (done, committed) = oneshot::channel();
        {
            let mut queue = self.shared.queue.lock();
            if queue.ended {
                return;
            }
            queue.flushes.push(done);
        }
        self.shared.wake();
        // An error means that the task has ended, which it does when all is committed.
        let _ended = committed.await;
    }

    /// Admits no more calls, commits everything recorded and ends the task. Calls still in flight
    /// should have been recorded before.
    pub async fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.shared.freed.notify_waiters();
        self.shared.throttle.ease();
        self.flush().await;
    }
}

impl Shared {
    fn redacted(&self, text: &str) -> String {
        self.redaction.text_within(text, TEXT)
    }

    fn is_over_bytes(&self) -> bool {
        self.held_bytes.load(Ordering::Relaxed) >= HELD_BYTES
    }

    fn wake(&self) {
        self.work.notify_one();
        self.hurry.notify_one();
    }

    fn push(
        &self,
        mut entry: AuditEntry,
        place: OwnedSemaphorePermit,
        waiter: Option<oneshot::Sender<()>>,
    ) {
        let bytes = entry.slim();
        let urgent = waiter.is_some();
        self.metrics.ended(entry.class, entry.outcome);
        let (id, trace_id) = (entry.id, entry.trace_id);
        let mut call = Call::Received(entry);
        let helps = urgent || self.throttle.waiting() >= LARGE;
        if helps && bytes <= ENCODED_BY_CALLER {
            call = Call::Encoded(call.encoded(&self.redaction.get(), &self.digester));
        }
        let (depth, held) = {
            let mut queue = self.queue.lock();
            if queue.ended {
                drop(queue);
                self.metrics.dropped(1);
                tracing::warn!(call.id = %id, trace_id = trace_id.map(tracing::field::display), "a call ended after the ledger was closed and is missing from it");
                return;
            }
            // Counted before the writer can see it, which takes it off again.
            let held = self.held_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
            self.throttle.add(weight(bytes));
            if queue.entries.is_empty() {
                queue.since = Some(clock::uptime());
            }
            queue.entries.push_back(Queued { call, bytes, place, waiter });
            (queue.entries.len(), held)
        };
        self.metrics.queued();
        // One wake for the first of a batch, one more when it is full: not one for each call.
        if depth == 1 {
            self.work.notify_one();
        }
        if (urgent && depth >= self.wanted.load(Ordering::Relaxed))
            || (depth == WORTHWHILE && self.durability == Durability::Batched)
            || depth == BATCH
            || (held >= BATCH_BYTES && held - bytes < BATCH_BYTES)
        {
            self.hurry.notify_one();
        }
    }
}

impl AuditSlot {
    /// Whether the beginning of a call must be on record before it is sent, for a tool that is
    /// declared to change nothing or not.
    #[must_use]
    pub fn wants_intent(&self, read_only: bool) -> bool {
        match self.shared.intent {
            IntentMode::Off => false,
            IntentMode::SideEffects => !read_only,
            IntentMode::All => true,
        }
    }

    /// Puts the beginning of a call on record, and resolves when it is committed.
    ///
    /// # Errors
    /// [`NotRecorded`] when it is not committed within five seconds and `limit`: the call must not be sent.
    pub async fn intend(&self, begun: CallBegun<'_>, limit: Duration) -> Result<(), NotRecorded> {
        let (waiter, committed) = oneshot::channel();
        {
            let mut queue = self.shared.queue.lock();
            if queue.ended || queue.intents.len() >= PLACES {
                return Err(NotRecorded);
            }
            queue.intents.push(Intent { row: begun.into_row(clock::timestamp()), waiter });
        }
        self.shared.wake();
        match tokio::time::timeout(self.shared.patience.min(limit), committed).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(NotRecorded),
        }
    }

    /// A text without what the ledger would not keep of it, for others that keep texts.
    #[must_use]
    pub fn redacted(&self, text: &str) -> String {
        self.shared.redacted(text)
    }

    /// JSON without what the ledger would not keep of it, and without the places that are named.
    #[must_use]
    pub fn redacted_json(&self, json: &[u8], pointers: &PointerSet) -> String {
        let payload = Payload { pointers: Some(pointers), ..Payload::whole(json) };
        self.shared.redaction.get().uncut(payload, Strictness::Everything)
    }

    /// Hands a finished call over. Neither waits nor fails, so it may be done while a cancelled
    /// call is being dropped.
    pub fn record(self, entry: AuditEntry) {
        self.shared.push(entry, self.place, None);
    }

    /// Hands a finished call over and resolves when its row is committed. The call is recorded
    /// even if the future is dropped after its first poll.
    ///
    /// # Errors
    /// [`NotRecorded`] when it is not committed within five seconds; the row may still follow.
    pub async fn record_durably(self, entry: AuditEntry) -> Result<(), NotRecorded> {
        let (done, committed) = oneshot::channel();
        let patience = self.shared.patience;
        self.shared.push(entry, self.place, Some(done));
        match tokio::time::timeout(patience, committed).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(NotRecorded),
        }
    }
}

mod backlog;
mod pace;
mod task;
#[cfg(test)]
mod tests;
mod throttle;
