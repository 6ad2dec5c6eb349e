//! What the ledger has beside calls, as it can be asked for.
//!
//! Changes when entries can be looked for differently.

use super::{AuditFilter, Backend, CallRow, Cursor, EntryRow, Store, StoreError};
use crate::model::Timestamp;

/// Which entries are wanted; every condition that is there must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntryFilter {
    /// Entries of this kind; with a `*` at its end, of all kinds that begin so.
    pub kind: Option<String>,
    /// Entries of what this caller did, or the router.
    pub actor: Option<String>,
    /// Entries about this.
    pub subject: Option<String>,
    /// Entries from this time on.
    pub since: Option<Timestamp>,
    /// Entries from before this time.
    pub until: Option<Timestamp>,
}

/// Some entries, and where the rest begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPage {
    /// The entries, newest first.
    pub rows: Vec<EntryRow>,
    /// Where the next page begins; `None` after the last. A page may have fewer entries than asked
    /// for, or none, and a next one: so far was looked in the time that one answer may take.
    pub next: Option<Cursor>,
}

/// Part of the ledger with what is on record beside calls, both oldest first.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeStretch {
    /// The calls in it that the filter of calls admits.
    pub calls: Vec<CallRow>,
    /// The entries in it that the filter of entries admits.
    pub entries: Vec<EntryRow>,
    /// Up to here, this included, there are no others; the next stretch goes on after it.
    pub reached: i64,
}

impl Store {
    /// Calls and what is on record beside them after the row `after`, to the newest; bounded as
    /// [`Self::audit_stretch`] is, with at most `limit` of either.
    ///
    /// # Errors
    /// [`StoreError::BadValue`] and what any statement can give.
    pub async fn audit_whole_stretch(
        &self,
        calls: &AuditFilter,
        entries: &EntryFilter,
        after: i64,
        limit: u16,
    ) -> Result<WholeStretch, StoreError> {
        match &self.backend {
            Backend::Sqlite(store) => store.audit_whole_stretch(calls, entries, after, limit).await,
        }
    }

    /// The `seq` of the newest row, a call or an entry; 0 when there is none.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn audit_end(&self) -> Result<i64, StoreError> {
        match &self.backend {
            Backend::Sqlite(store) => store.audit_end().await,
        }
    }

    /// What is on record beside calls, newest first, from `cursor` on.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn audit_entry_page(
        &self,
        filter: &EntryFilter,
        cursor: Option<Cursor>,
        limit: u16,
    ) -> Result<EntryPage, StoreError> {
        match &self.backend {
            Backend::Sqlite(store) => store.audit_entry_page(filter, cursor, limit).await,
        }
    }
}
