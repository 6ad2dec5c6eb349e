//! What is on record beside calls, as people and programs read it.
//!
//! Changes when the shape of such an entry in the API changes.

use serde::Serialize;
use serde_json::value::RawValue;

use super::query::{AT_ONCE, AuditQuery, CallRecord, json_or_string};
use crate::store::{AuditFilter, Cursor, Depth, EntryFilter, EntryRow, StoreError};

/// An act, a change of a definition, a transition of a breaker, or what happened to the ledger.
#[derive(Debug, Clone, Serialize)]
pub struct EventRecord {
    /// Place in the ledger, among calls and events.
    pub seq: i64,
    /// When, RFC 3339.
    pub at: String,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// What, for example `server.added`.
    pub kind: String,
    /// Who: a caller's name, or `router`.
    pub actor: String,
    /// To what, for example a server's name.
    pub subject: String,
    /// The rest, an object.
    pub detail: Box<RawValue>,
}

/// Some events, and where the rest begins.
#[derive(Debug, Clone, Serialize)]
pub struct EventRecordPage {
    /// The events, newest first.
    pub events: Vec<EventRecord>,
    /// The `cursor` of the next page; absent after the last.
    pub next_cursor: Option<String>,
}

/// A row of the ledger.
#[derive(Debug, Clone)]
pub enum Told {
    /// A call.
    Call(Box<CallRecord>),
    /// What is on record beside calls.
    Event(EventRecord),
}

impl Told {
    /// Place in the ledger.
    #[must_use]
    pub const fn seq(&self) -> i64 {
        match self {
            Self::Call(call) => call.seq,
            Self::Event(event) => event.seq,
        }
    }
}

/// Part of the ledger as a tail gives it.
#[derive(Debug, Clone)]
pub struct Following {
    /// What is in it, oldest first.
    pub told: Vec<Told>,
    /// Up to here, this included, there is nothing else; the next part goes on after it.
    pub reached: i64,
}

impl From<EntryRow> for EventRecord {
    fn from(row: EntryRow) -> Self {
        Self {
            seq: row.seq,
            at: row.at.to_string(),
            at_ms: row.at.as_millis(),
            kind: row.kind,
            actor: row.actor,
            subject: row.subject,
            detail: json_or_string(&row.detail),
        }
    }
}

impl AuditQuery {
    /// Calls after the row `after`, with what is on record beside them where `events` says which, oldest first, as
    /// far as one short transaction comes; see [`crate::store::Store::audit_stretch`].
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn following(
        &self,
        filter: &AuditFilter,
        events: Option<&EntryFilter>,
        after: i64,
        limit: u16,
    ) -> Result<Following, StoreError> {
        let (calls, entries, reached) = match events {
            None => {
                let part =
                    self.store.audit_stretch(filter, after, None, limit, Depth::Call).await?;
                (part.calls, Vec::new(), part.reached)
            }
            Some(events) => {
                let part = self.store.audit_whole_stretch(filter, events, after, limit).await?;
                (part.calls, part.entries, part.reached)
            }
        };
        let mut told: Vec<Told> =
            entries.into_iter().map(|entry| Told::Event(entry.into())).collect();
        for (at, call) in calls.into_iter().enumerate() {
            told.push(Told::Call(Box::new(call.into())));
            if at % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
        told.sort_by_key(Told::seq);
        Ok(Following { told, reached })
    }

    /// The `seq` of the newest row, a call or an event; 0 when there is none.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn end(&self) -> Result<i64, StoreError> {
        self.store.audit_end().await
    }

    /// A page of what is on record beside calls, newest first; `cursor` is the `next_cursor` of the page
    /// before.
    ///
    /// # Errors
    /// [`StoreError::BadCursor`] and what any statement can give.
    pub async fn events(
        &self,
        filter: &EntryFilter,
        cursor: Option<&str>,
        limit: u16,
    ) -> Result<EventRecordPage, StoreError> {
        let cursor = cursor.map(Cursor::parse).transpose()?;
        let page = self.store.audit_entry_page(filter, cursor, limit).await?;
        Ok(EventRecordPage {
            events: page.rows.into_iter().map(EventRecord::from).collect(),
            next_cursor: page.next.map(|cursor| cursor.to_string()),
        })
    }
}
