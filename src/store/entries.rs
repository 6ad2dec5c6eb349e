//! What the ledger has beside calls, as it can be asked for.
//!
//! Changes when entries can be looked for differently.

use super::{Backend, Cursor, EntryRow, Store, StoreError};
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

impl Store {
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
