//! [`Journal`]: what the state's writers have to put on record in the ledger, on its way to the ledger's
//! writer.
//!
//! Changes when another change of the state belongs on record. What is stored in the state comes first;
//! a crash within the time of one commit can lose the entry in the ledger.

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc;

use super::{Backend, EntryRow, EventRow, HistoryRow, Store};
use crate::model::{BreakerEvent, Timestamp};

/// Entries that wait for the ledger's writer.
const QUEUE: usize = 65_536;

impl Store {
    /// Puts something on record in the ledger that is stored nowhere else. It is lost, and that is logged,
    /// where there is no place in the queue.
    pub fn note(&self, entry: EntryRow) {
        self.journal.put(entry);
    }

    /// Puts on record that the folder was restored, where no router has said so since; whether it was.
    #[must_use]
    pub fn note_restore(&self, now: Timestamp) -> bool {
        let at = match &self.backend {
            Backend::Sqlite(store) => store.restored_at(),
        };
        if let Some(at) = at {
            let detail = json!({ "at": at.to_string() });
            let kind = "store.restored".to_owned();
            self.journal.note(now, kind, None, "data folder", &detail);
        }
        at.is_some()
    }

    /// What [`Self::note_restore`] said is on record, and is not said again.
    pub fn forget_restore(&self) {
        match &self.backend {
            Backend::Sqlite(store) => store.forget_restore(),
        }
    }
}

/// From those who change the state to the one who writes the ledger.
#[derive(Debug)]
pub(super) struct Journal {
    sender: mpsc::Sender<EntryRow>,
    receiver: Mutex<Option<mpsc::Receiver<EntryRow>>>,
    /// What found no place since that was last asked for.
    lost: Mutex<Option<Lost>>,
}

/// The times of the first and the last, and how many there are.
type Lost = (Timestamp, Timestamp, u64);

impl Store {
    /// Entries that never reached [`Self::journal`] because too many waited there: the times of the first and the
    /// last, and how many there are. Each is told once.
    #[must_use]
    pub fn lost_entries(&self) -> Option<(Timestamp, Timestamp, u64)> {
        self.journal.take_lost()
    }
}

impl Journal {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Self { sender, receiver: Mutex::new(Some(receiver)), lost: Mutex::default() }
    }

    /// The other end, for the one writer there is. A second one hears nothing.
    pub(super) fn take(&self) -> mpsc::Receiver<EntryRow> {
        self.receiver.lock().take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// What is missing because too many waited; it is told once.
    fn take_lost(&self) -> Option<Lost> {
        self.lost.lock().take()
    }

    pub(super) fn act(&self, event: &EventRow) {
        self.put(EntryRow {
            seq: 0,
            at: event.at,
            kind: event.kind.clone(),
            actor: event.actor.clone(),
            subject: event.subject.clone(),
            detail: event.detail.clone(),
        });
    }

    pub(super) fn definitions(&self, history: &[HistoryRow]) {
        let hex =
            |hash: [u8; 32]| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        for change in history {
            self.note(
                change.at,
                format!("tool.{}", change.kind.as_str()),
                change.by.as_deref(),
                change.server.as_str(),
                &json!({
                    "tool": change.tool.as_str(),
                    "old_hash": change.old_hash.map(hex),
                    "new_hash": change.new_hash.map(hex),
                }),
            );
        }
    }

    pub(super) fn transitions(&self, events: &[BreakerEvent]) {
        for event in events {
            self.note(
                event.at,
                "breaker.transition".to_owned(),
                event.actor.as_deref(),
                event.server.as_str(),
                &json!({
                    "tool": event.tool.as_ref().map(|tool| tool.as_str()),
                    "from": event.from.as_str(),
                    "to": event.to.as_str(),
                    "reason": event.reason.as_str(),
                    "failures": event.failures,
                    "trips": event.trips,
                    "error": event.error,
                    "note": event.note,
                }),
            );
        }
    }

    fn note(
        &self,
        at: Timestamp,
        kind: String,
        actor: Option<&str>,
        subject: &str,
        detail: &serde_json::Value,
    ) {
        self.put(EntryRow {
            seq: 0,
            at,
            kind,
            actor: actor.unwrap_or("router").to_owned(),
            subject: subject.to_owned(),
            detail: detail.to_string(),
        });
    }

    fn put(&self, entry: EntryRow) {
        match self.sender.try_send(entry) {
            // Without a writer there is no ledger to put it in: a command that only reads the state.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(EntryRow { at, kind, subject, .. })) => {
                let mut lost = self.lost.lock();
                if lost.is_none() {
                    // The first of them; how many there are is counted.
                    tracing::warn!(
                        kind,
                        subject,
                        "an entry is missing from the ledger: too many wait for it"
                    );
                }
                *lost = Some(lost.map_or((at, at, 1), |(from, to, count)| {
                    (from.min(at), to.max(at), count.saturating_add(1))
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_place_is_counted_and_told_once() {
        let journal = Journal::new();
        for number in 0..=QUEUE + 2 {
            journal.act(&EventRow {
                at: Timestamp::from_millis(i64::try_from(number).unwrap()),
                actor: "ops".to_owned(),
                kind: "server.added".to_owned(),
                subject: "s".to_owned(),
                detail: "{}".to_owned(),
            });
        }
        let at = |number: i64| Timestamp::from_millis(number);
        assert_eq!(journal.take_lost(), Some((at(65_536), at(65_538), 3)));
        assert_eq!(journal.take_lost(), None);
        let mut heard = journal.take();
        assert_eq!(heard.try_recv().unwrap().at, at(0));
    }
}
