//! What [`Task`] does when the database takes nothing and too much waits: what is let go of, so that calls
//! are served, and what is said of it.
//!
//! Changes when it is decided otherwise what is let go of first, or what an entry says about it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::backlog::weight;
use super::super::{HELD_BYTES, PLACES};
use super::{Task, entry};
use crate::clock;
use crate::config::Durability;
use crate::model::{Timestamp, Uptime};
use crate::store::{EntryRow, StoreError};

/// How often the queue is looked at while the database does not answer: often enough that nobody who waits for
/// a place waits in vain, however fast calls come.
const LOOK: Duration = Duration::from_millis(25);
/// A commit that takes this long is not a slow one: the disk hangs. Before that callers wait for their place, as
/// they do when calls come faster than the disk takes them; what is slow loses nothing.
const HANGS: Duration = Duration::from_secs(1);
/// A commit that takes this long waits for the disk, not for a processor: keeping calls back would not help it.
const SLOW: Duration = Duration::from_millis(150);
/// With a spool: how long another process' lock is waited for before rows go there.
const BEFORE_SPOOL: Duration = Duration::from_secs(1);
/// Calls, and bytes, that may wait while the database cannot be written: the rest is for new ones.
const MOST_WAITING: usize = PLACES / 2;
const MOST_BYTES: usize = HELD_BYTES / 2;
/// Entries beside calls that are kept while the database cannot be written.
const LARGEST_JOURNAL: usize = 16_384;

/// Something is missing.
pub(super) const GAP: &str = "audit.gap";

/// What could not be put on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    from: Timestamp,
    to: Timestamp,
    calls: u64,
    /// What there is beside calls: administrative acts, changes of definitions, transitions of breakers.
    entries: u64,
}

impl Gap {
    pub(super) fn and(&self, other: &Self) -> Self {
        Self {
            from: self.from.min(other.from),
            to: self.to.max(other.to),
            calls: self.calls.saturating_add(other.calls),
            entries: self.entries.saturating_add(other.entries),
        }
    }

    /// Calls, and entries beside them.
    pub(super) const fn lost(&self) -> (u64, u64) {
        (self.calls, self.entries)
    }

    pub(super) fn entry(&self) -> EntryRow {
        entry(
            GAP,
            &serde_json::json!({
                "reason": "the ledger could not be written",
                "from": self.from.to_string(),
                "to": self.to.to_string(),
                "calls": self.calls,
                "entries": self.entries,
            }),
        )
    }
}

/// The first and the last of these times, and how many there are.
fn span(times: impl Iterator<Item = Timestamp>) -> Option<(Timestamp, Timestamp, usize)> {
    times.fold(None, |span, at| {
        Some(span.map_or((at, at, 1), |(from, to, count)| (at.min(from), at.max(to), count + 1)))
    })
}

impl Task {
    /// Lets calls go, and remembers to say so.
    pub(super) fn lose(&mut self, times: impl Iterator<Item = Timestamp>) {
        let Some((from, to, calls)) = span(times) else { return };
        self.shared.metrics.dropped(calls);
        self.lack(Gap { from, to, calls: calls as u64, entries: 0 });
    }

    /// The same of what there is beside calls.
    fn lose_entries(&mut self, from: Timestamp, to: Timestamp, entries: u64) {
        tracing::warn!(entries, "{entries} entries are missing from the ledger: too many waited");
        self.shared.metrics.dropped_entries(entries);
        self.lack(Gap { from, to, calls: 0, entries });
    }

    fn lack(&mut self, lost: Gap) {
        self.gap = Some(self.gap.take().map_or(lost, |gap| gap.and(&lost)));
    }

    /// Counts what did not even find a place on its way here.
    pub(super) fn hear_of_lost(&mut self) {
        if let Some((from, to, entries)) = self.store.lost_entries() {
            self.lose_entries(from, to, entries);
        }
    }

    /// Keeps entries that were not committed for the next commit: as many as may wait, the oldest.
    pub(super) fn keep_notes(&mut self, mut notes: Vec<EntryRow>) {
        notes.append(&mut self.notes);
        let cut = notes.split_off(notes.len().min(LARGEST_JOURNAL));
        self.notes = notes;
        if let Some((from, to, entries)) = span(cut.iter().map(|note| note.at)) {
            self.lose_entries(from, to, entries as u64);
        }
    }

    /// Whether calls may be given up: the answers of `batched` are out, and it goes on serving.
    pub(super) fn may_lose(&self) -> bool {
        let closing = self.shared.closed.load(Ordering::Relaxed);
        (self.shared.durability == Durability::Batched || closing)
            && !self.shared.spools.load(Ordering::Relaxed)
            && self
                .failing_since
                .is_some_and(|since| clock::uptime().since(since) >= self.shared.patience)
    }

    /// Whether the oldest calls make room when too many wait. In `batched` that is as soon as the database is
    /// known to take nothing: at full speed the queue is full long before anybody gives up.
    pub(super) fn sheds(&self) -> bool {
        let serves = self.shared.durability == Durability::Batched
            && !self.shared.spools.load(Ordering::Relaxed);
        // They go there as soon as the attempt that is under way has ended.
        let has_elsewhere = self.spool.is_some() && self.failing_since.is_none();
        self.stuck && !has_elsewhere && (serves || self.may_lose())
    }

    /// Whether so many wait that new ones soon find no place.
    fn is_crowded(&self) -> bool {
        self.shared.held_bytes.load(Ordering::Relaxed) > MOST_BYTES
            || self.shared.queue.lock().entries.len() > MOST_WAITING
    }

    /// Lets go of the oldest calls that wait, so that there is a place for new ones.
    fn shed(&mut self) {
        if !self.sheds() {
            return;
        }
        let mut held = self.shared.held_bytes.load(Ordering::Relaxed);
        let (mut times, mut places, mut bytes, mut weighs) = (Vec::new(), Vec::new(), 0, 0);
        {
            let mut queue = self.shared.queue.lock();
            while queue.entries.len() > MOST_WAITING || held > MOST_BYTES {
                let Some(oldest) = queue.entries.pop_front() else { break };
                times.push(oldest.call.started_at());
                places.push(oldest.place);
                bytes += oldest.bytes;
                weighs += weight(oldest.bytes);
                held = held.saturating_sub(oldest.bytes);
            }
            self.shared.throttle.take(weighs);
        }
        if !times.is_empty() {
            self.lose(times.into_iter());
            self.dequeue(places, bytes);
        }
    }

    /// Waits for the database, and lets go of waiting calls when that takes too long.
    pub(super) async fn beside<T>(&mut self, doing: impl Future<Output = T>) -> T {
        let began = clock::uptime();
        let mut doing = std::pin::pin!(doing);
        loop {
            tokio::select! {
                done = &mut doing => return done,
                () = tokio::time::sleep(LOOK) => {
                    let time = clock::uptime().since(began);
                    self.stuck |= time >= HANGS;
                    if time >= SLOW {
                        self.shared.throttle.ease();
                    }
                    self.shed();
                }
            }
        }
    }

    /// Waits, and lets go of waiting calls.
    pub(super) async fn pause(&mut self, time: Duration) {
        let began = clock::uptime();
        self.shared.throttle.ease();
        loop {
            self.shed();
            let left = time.saturating_sub(clock::uptime().since(began));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }

    /// Whether to wait on for another process that holds the database, after an attempt that `began` then. That
    /// is a failure only when it lasts, or when rows can go elsewhere and too many wait.
    pub(super) fn waits_for_lock(&mut self, error: &StoreError, began: Uptime) -> bool {
        let is_first = self.failing_since.is_none() && !self.spooling;
        if !is_first || !matches!(error, StoreError::Busy { .. }) {
            return false;
        }
        self.stuck = true;
        let since = *self.locked_since.get_or_insert(began);
        let (patience, elsewhere) = match &self.spool {
            Some(_) => (BEFORE_SPOOL, self.is_crowded()),
            None => (self.shared.patience, false),
        };
        !elsewhere && clock::uptime().since(since) < patience
    }
}
