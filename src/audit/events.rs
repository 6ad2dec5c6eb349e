//! What is on record beside calls, as people and programs read it.
//!
//! Changes when the shape of such an entry in the API changes.

use serde::Serialize;
use serde_json::value::RawValue;

use super::query::{AuditQuery, json_or_string};
use crate::store::{Cursor, EntryFilter, EntryRow, StoreError};

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
