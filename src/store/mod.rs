//! [`Store`]: the one seam to a database. Registry, catalogue, callers, sessions, ledger.
//!
//! Changes when the product has something new to remember. Callers see domain types and intent;
//! no SQL, no driver type and no transaction leaves this module. Every method that writes commits
//! before it returns; dropping its future before that leaves either all of it or nothing.

mod chain;
mod checkpoint;
mod column;
mod courtesy;
mod entries;
mod error;
mod expire;
mod export;
mod journal;
mod key_file;
mod rows;
mod seal;
mod spool;
mod sqlite;
mod upkeep;
mod verified;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::model::{
    BreakerEvent, BreakerRow, CallId, ServerName, ServerSource, ServerSpec, Timestamp, ToolName,
};

pub use chain::{Digester, Hash};
pub use checkpoint::Checkpoint;
pub use courtesy::Courtesy;
pub use entries::{EntryFilter, EntryPage, WholeStretch};
use journal::Journal;

pub use error::{StoreError, StoreFailure};
pub use rows::{
    AUDIT_SPOOLED, AUDIT_STARTED, AUDIT_STOPPED, Appended, AttemptRow, AuditFilter, CALL_STARTED,
    CallRow, Cursor, Depth, DiscoveryRow, EntryRow, EventRow, FileSize, HistoryKind, HistoryRow,
    IndexState, KeyRow, OfferKind, OfferRow, Page, ServerRow, ServerUpsert, SessionRow, Stats,
    StatsBy, StatsPer, StatsQuery, StatsRow, StoreSize, Stretch, ToolRow, Unfinished, Upserted,
};
pub use spool::{Spool, SpoolRemains, spool_is_usable, spool_remains};
pub use sqlite::LedgerExport;
pub use upkeep::{Backup, EraseOf, Erased, PruneUntil, Pruned, Recovered};
pub use verified::{Fault, Finding, Verified};

/// An open database. Clones are handles to the same one.
#[derive(Clone)]
pub struct Store {
    backend: Backend,
    journal: Arc<Journal>,
}

/// Closed set of backends: a `match` finds every place that a new one must fill.
#[derive(Clone)]
enum Backend {
    Sqlite(Arc<sqlite::SqliteStore>),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.backend {
            Backend::Sqlite(_) => f.write_str("Store(sqlite)"),
        }
    }
}

/// Forwards to the backend's method of the same name.
macro_rules! forward {
    ($store:expr, $method:ident($($argument:expr),*)) => {
        match &$store.backend {
            Backend::Sqlite(store) => store.$method($($argument),*).await,
        }
    };
}

impl Store {
    /// Opens the database in `data_dir`, making folder and files when they are missing, and keeps
    /// other routers out until the last handle is gone.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::NotAFolder`], [`StoreError::Files`],
    /// [`StoreError::NetworkFileSystem`], [`StoreError::NewerSchema`],
    /// [`StoreError::ForeignDatabase`], [`StoreError::Damaged`], [`StoreError::OldEngine`], and
    /// what any statement can give. A file that is refused is not changed.
    pub async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let store = sqlite::SqliteStore::open(data_dir).await?;
        let backend = Backend::Sqlite(Arc::new(store));
        Ok(Self { backend, journal: Arc::new(Journal::new()) })
    }

    /// Moves damaged databases in `data_dir` away, under a name that ends in `.corrupt-` and the time, so
    /// that [`Self::open`] makes new ones. Reads each of them whole. Nothing is deleted, and a database
    /// of another program or version is left alone.
    ///
    /// # Errors
    /// As [`Self::open`], but for [`StoreError::Damaged`].
    pub async fn recover(data_dir: &Path, now: Timestamp) -> Result<Vec<Recovered>, StoreError> {
        sqlite::recover(data_dir, now).await
    }

    /// Verifies the ledger in `data_dir` against its key and against checkpoints; also while a router
    /// writes it.
    ///
    /// # Errors
    /// [`StoreError::NoChain`], [`StoreError::LedgerKey`], and what opening and any statement can
    /// give. What is wrong with the rows is no error: it is in [`Verified`].
    pub async fn verify_ledger(
        data_dir: &Path,
        checkpoints: &[Checkpoint],
    ) -> Result<Verified, StoreError> {
        sqlite::verify(data_dir, &data_dir.join("ledger.key"), checkpoints).await
    }

    /// Verifies an export that [`Self::export_ledger`] made, with the key of its ledger in a file and against
    /// checkpoints. Holds some megabytes of it at a time.
    ///
    /// # Errors
    /// [`StoreError::BadExport`] when it is none or cannot be read, and [`StoreError::LedgerKey`]. What is
    /// wrong with the rows is no error: it is in [`Verified`].
    pub fn verify_export(
        export: &mut dyn io::BufRead,
        key: &Path,
        checkpoints: &[Checkpoint],
    ) -> Result<Verified, StoreError> {
        sqlite::verify_export(export, key, checkpoints)
    }

    /// Begins an export of the ledger that can be verified without it: rows `from` to `to`, or from the
    /// first that is left and to the newest, with what is kept of arguments and results or without.
    ///
    /// # Errors
    /// [`StoreError::BadRange`] and what any statement can give.
    pub async fn export_ledger(
        &self,
        from: Option<i64>,
        to: Option<i64>,
        payloads: bool,
        now: Timestamp,
    ) -> Result<LedgerExport, StoreError> {
        match &self.backend {
            Backend::Sqlite(store) => {
                LedgerExport::begin(Arc::clone(store), from, to, payloads, now).await
            }
        }
    }

    /// Copies the databases and keys in `data_dir` into the new folder `target`, also while a router
    /// runs. The copy is checked, on disk, and there whole or not at all.
    ///
    /// # Errors
    /// [`StoreError::BackupTarget`], [`StoreError::NoBackup`], [`StoreError::RestoreCutOff`],
    /// [`StoreError::Damaged`], and what opening and any statement can give.
    pub async fn backup(data_dir: &Path, target: &Path) -> Result<Backup, StoreError> {
        sqlite::backup(data_dir, target).await
    }

    /// Puts a backup in the place of what is in `data_dir`, which is kept in its folder `replaced`.
    /// Ended early, it leaves what was there before, or what the next [`Self::open`] makes whole.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while a router has the folder, [`StoreError::NoBackup`],
    /// [`StoreError::LedgerKey`], [`StoreError::Damaged`], and what opening and any statement can give.
    pub async fn restore(data_dir: &Path, from: &Path) -> Result<Backup, StoreError> {
        sqlite::restore(data_dir, from).await
    }

    /// The end of the ledger as it is at `now`, signed.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn checkpoint(&self, now: Timestamp) -> Result<Checkpoint, StoreError> {
        forward!(self, checkpoint(now))
    }

    /// Moves the write-ahead logs into the files and closes them. Later calls of any method give
    /// [`StoreError::Closed`]; the data folder stays locked until the last handle is dropped.
    ///
    /// # Errors
    /// What any statement can give; the files are safe all the same.
    pub async fn close(&self) -> Result<(), StoreError> {
        forward!(self, close())
    }

    /// Sizes of the files on disk.
    #[must_use]
    pub fn size_bytes(&self) -> StoreSize {
        match &self.backend {
            Backend::Sqlite(store) => store.size_bytes(),
        }
    }

    /// Checks both files for damage, beside the traffic. Reads them whole.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] with the first finding, and what any statement can give.
    pub async fn check(&self) -> Result<(), StoreError> {
        forward!(self, check())
    }

    /// Checks the ledger for damage, beside the traffic, unless it was small enough to be checked
    /// when it was opened. [`Self::close`] ends it early.
    ///
    /// The write-ahead log grows while this reads: what it has seen may not be moved to the file.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] with the first finding, [`StoreError::Closed`] when it was ended
    /// early, and what any statement can give.
    pub async fn check_ledger(&self) -> Result<(), StoreError> {
        forward!(self, check_ledger())
    }

    /// The registry, by name. A server whose sealed values do not open is there with
    /// [`ServerRow::sealed_problem`].
    ///
    /// # Errors
    /// [`StoreError::BadValue`], and what any statement can give.
    pub async fn servers(&self) -> Result<Vec<ServerRow>, StoreError> {
        forward!(self, servers())
    }

    /// Adds or changes one server; an operator's enable or disable stays.
    ///
    /// # Errors
    /// As [`Self::upsert_servers`].
    pub async fn upsert_server(
        &self,
        name: &ServerName,
        spec: &ServerSpec,
        enabled: bool,
        source: ServerSource,
        now: Timestamp,
    ) -> Result<Upserted, StoreError> {
        let server = ServerUpsert { name: name.clone(), spec: spec.clone(), enabled, source };
        let done = self.upsert_servers(&[server], now).await?;
        Ok(done.first().copied().unwrap_or(Upserted::Unchanged))
    }

    /// Adds or changes servers in one transaction; writes nothing for those that are just so.
    /// A server that was retired is back.
    ///
    /// # Errors
    /// [`StoreError::SealKey`] or [`StoreError::Files`] when a literal value cannot be sealed,
    /// and what any statement can give.
    pub async fn upsert_servers(
        &self,
        servers: &[ServerUpsert],
        now: Timestamp,
    ) -> Result<Vec<Upserted>, StoreError> {
        forward!(self, upsert_servers(servers, now))
    }

    /// Stores an operator's word, which wins over the file's and lasts over reloads. `false` when
    /// there is no such server.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn set_server_enabled(
        &self,
        name: &ServerName,
        enabled: bool,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        forward!(self, set_server_enabled(name, enabled, now))
    }

    /// Disables servers that are gone from the file they came from; nothing of them is lost.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn retire_servers(
        &self,
        names: &[ServerName],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        forward!(self, retire_servers(names, now))
    }

    /// Removes a server, its tools and its breakers; the history of both stays. `false` when there is no
    /// such server.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn delete_server(&self, name: &ServerName) -> Result<bool, StoreError> {
        forward!(self, delete_server(name))
    }

    /// Stores what a discovery found, in place of what the one before found. `false` when there is
    /// no such server.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn record_discovery(
        &self,
        name: &ServerName,
        found: &DiscoveryRow,
    ) -> Result<bool, StoreError> {
        forward!(self, record_discovery(name, found))
    }

    /// Every tool of every server, also those that are gone, by server and place in its list.
    ///
    /// # Errors
    /// [`StoreError::BadValue`] and what any statement can give.
    pub async fn tools(&self) -> Result<Vec<ToolRow>, StoreError> {
        forward!(self, tools())
    }

    /// Stores a server's tools as they are now: new and known ones as given, with the first sight
    /// of known ones kept; those that are not in `tools` become [`gone`](crate::model::ToolStatus).
    ///
    /// # Errors
    /// [`StoreError::UnknownServer`] and what any statement can give.
    pub async fn replace_tools(
        &self,
        server: &ServerName,
        tools: &[ToolRow],
        history: &[HistoryRow],
    ) -> Result<(), StoreError> {
        forward!(self, replace_tools(server, tools, history))?;
        self.journal.definitions(history);
        Ok(())
    }

    /// Marks a server's active tools stale; gives their number.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn mark_tools_stale(&self, server: &ServerName) -> Result<u64, StoreError> {
        forward!(self, mark_tools_stale(server))
    }

    /// The changes of one tool's definition, newest first.
    ///
    /// # Errors
    /// [`StoreError::BadValue`] and what any statement can give.
    pub async fn tool_history(
        &self,
        server: &ServerName,
        tool: &ToolName,
        limit: u16,
    ) -> Result<Vec<HistoryRow>, StoreError> {
        forward!(self, tool_history(server, tool, limit))
    }

    /// A definition by its hash, byte for byte as received.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn definition(&self, hash: &[u8; 32]) -> Result<Option<Bytes>, StoreError> {
        forward!(self, definition(hash))
    }

    /// Every prompt, resource and template of every server, by server, kind and place in its list.
    ///
    /// # Errors
    /// [`StoreError::BadValue`] and what any statement can give.
    pub async fn offers(&self) -> Result<Vec<OfferRow>, StoreError> {
        forward!(self, offers())
    }

    /// Stores one list of a server in place of the one before; each element is key and definition.
    ///
    /// # Errors
    /// [`StoreError::UnknownServer`] and what any statement can give.
    pub async fn replace_offers(
        &self,
        server: &ServerName,
        kind: OfferKind,
        list: &[(&str, &Bytes)],
    ) -> Result<(), StoreError> {
        forward!(self, replace_offers(server, kind, list))
    }

    /// Every stored breaker, by server and tool.
    ///
    /// # Errors
    /// [`StoreError::BadValue`] and what any statement can give.
    pub async fn breakers(&self) -> Result<Vec<BreakerRow>, StoreError> {
        forward!(self, breakers())
    }

    /// In one commit: stores how breakers stand, in place of how they stood, and adds to the
    /// history in this order; the events' `id` is given here. Either may be empty. The row of a
    /// server that is gone is left out, its events are not. The newest 10,000 events of each server
    /// are kept, and up to 255 beyond.
    ///
    /// # Errors
    /// What any statement can give; then nothing is stored.
    pub async fn save_breakers(
        &self,
        rows: &[BreakerRow],
        events: &[BreakerEvent],
    ) -> Result<(), StoreError> {
        forward!(self, save_breakers(rows, events))?;
        self.journal.transitions(events);
        Ok(())
    }

    /// The history of one server's breakers or of all, newest first, before the event `before_id`.
    ///
    /// # Errors
    /// [`StoreError::BadValue`] and what any statement can give.
    pub async fn breaker_events(
        &self,
        server: Option<&ServerName>,
        limit: u32,
        before_id: Option<i64>,
    ) -> Result<Vec<BreakerEvent>, StoreError> {
        forward!(self, breaker_events(server, limit, before_id))
    }

    /// The history of one breaker, newest first, before the event `before_id`: the server's own, or
    /// that of one tool.
    ///
    /// # Errors
    /// [`StoreError::BadValue`] and what any statement can give.
    pub async fn breaker_transitions(
        &self,
        server: &ServerName,
        tool: Option<&ToolName>,
        limit: u32,
        before_id: Option<i64>,
    ) -> Result<Vec<BreakerEvent>, StoreError> {
        forward!(self, breaker_transitions(server, tool, limit, before_id))
    }

    /// Every key, also revoked and expired ones, oldest first.
    ///
    /// # Errors
    /// [`StoreError::BadValue`] and what any statement can give.
    pub async fn keys(&self) -> Result<Vec<KeyRow>, StoreError> {
        forward!(self, keys())
    }

    /// Adds a key.
    ///
    /// # Errors
    /// [`StoreError::KeyNameTaken`] and what any statement can give.
    pub async fn insert_key(&self, key: &KeyRow) -> Result<(), StoreError> {
        forward!(self, insert_key(key))
    }

    /// Revokes the key with this id, or the one in force with this name. `false` when there is none.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn revoke_key(&self, id_or_name: &str, now: Timestamp) -> Result<bool, StoreError> {
        forward!(self, revoke_key(id_or_name, now))
    }

    /// Stores when keys were last used.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn touch_keys(&self, used: &[(String, Timestamp)]) -> Result<(), StoreError> {
        forward!(self, touch_keys(used))
    }

    /// Every stored session.
    ///
    /// # Errors
    /// [`StoreError::BadValue`] and what any statement can give.
    pub async fn sessions(&self) -> Result<Vec<SessionRow>, StoreError> {
        forward!(self, sessions())
    }

    /// In one commit: adds sessions, or changes those that are there, then removes others.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn change_sessions(
        &self,
        saved: &[SessionRow],
        ended: &[[u8; 32]],
    ) -> Result<(), StoreError> {
        forward!(self, change_sessions(saved, ended))
    }

    /// Stores when sessions were last used.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn touch_sessions(&self, seen: &[([u8; 32], Timestamp)]) -> Result<(), StoreError> {
        forward!(self, touch_sessions(seen))
    }

    /// Removes sessions that were last used before `last_seen`; gives their number.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn delete_sessions_before(&self, last_seen: Timestamp) -> Result<u64, StoreError> {
        forward!(self, delete_sessions_before(last_seen))
    }

    /// Stores an administrative act.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn append_event(&self, event: &EventRow) -> Result<(), StoreError> {
        forward!(self, append_event(event))?;
        self.journal.act(event);
        Ok(())
    }

    /// Administrative acts, newest first.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn events(&self, limit: u16) -> Result<Vec<EventRow>, StoreError> {
        forward!(self, events(limit))
    }

    /// Adds calls to the ledger in one transaction, in this order; `seq` is given here.
    ///
    /// # Errors
    /// What any statement can give; then none of them is stored.
    pub async fn append_calls(&self, calls: &[CallRow]) -> Result<(), StoreError> {
        self.append_ledger(&[], calls).await.map(drop)
    }

    /// Adds entries and then calls to the ledger, as one commit.
    ///
    /// # Errors
    /// What any statement can give; nothing was added then.
    pub async fn append_ledger(
        &self,
        entries: &[EntryRow],
        calls: &[CallRow],
    ) -> Result<Appended, StoreError> {
        forward!(self, append_ledger(entries, calls))
    }

    /// What lets calls go first while the ledger is written.
    #[must_use]
    pub fn ledger_courtesy(&self) -> Courtesy {
        match &self.backend {
            Backend::Sqlite(store) => store.ledger_courtesy(),
        }
    }

    /// Moves the ledger's write-ahead log into its file and gives its space back, as far as nobody
    /// reads.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn shrink_ledger_log(&self) -> Result<(), StoreError> {
        forward!(self, shrink_ledger_log())
    }

    /// How long a commit to the ledger waits for another process' lock.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn set_ledger_patience(&self, patience: Duration) -> Result<(), StoreError> {
        forward!(self, set_ledger_patience(patience))
    }

    /// Opens the file in which rows of the ledger wait while they cannot be committed.
    ///
    /// # Errors
    /// When it cannot be read or mended.
    pub fn open_spool(&self, path: &Path) -> io::Result<Spool> {
        match &self.backend {
            Backend::Sqlite(store) => store.open_spool(path),
        }
    }

    /// Puts entries and calls there instead of committing them, and returns when they are synced.
    /// `after` is a row that was committed before.
    ///
    /// # Errors
    /// When they could not be written; nothing of them is there then. The spool is not usable if this
    /// is dropped before it ends.
    pub async fn spool(
        &self,
        spool: Spool,
        after: i64,
        entries: &[EntryRow],
        calls: &[CallRow],
    ) -> (Spool, io::Result<()>) {
        match &self.backend {
            Backend::Sqlite(store) => store.spool(spool, after, entries, calls).await,
        }
    }

    /// Commits some of what waits there, up to byte `limit` of the file; gives what still waits before that. Each
    /// row is committed once, however often this is cut off. Empties a file that was read. A row that the
    /// database does not take is set aside ([`Spool::take_rejected`]), and holds up no other.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn drain_spool(
        &self,
        spool: &mut Spool,
        limit: u64,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        forward!(self, drain_spool(spool, limit, now))
    }

    /// What is to be on record in the ledger beside calls, for the one that writes it: acts, changes
    /// of definitions and transitions of breakers, after they were stored.
    #[must_use]
    pub fn journal(&self) -> mpsc::Receiver<EntryRow> {
        self.journal.take()
    }

    /// What a router that was cut off left behind; `None` when the last one ended in order.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn unfinished(&self) -> Result<Option<Unfinished>, StoreError> {
        forward!(self, unfinished())
    }

    /// Entries beside calls after number `seq`, in their order.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn audit_entries(&self, seq: i64, limit: u16) -> Result<Vec<EntryRow>, StoreError> {
        forward!(self, audit_entries(seq, limit))
    }

    /// What makes digests of payloads.
    #[must_use]
    pub fn digester(&self) -> Digester {
        match &self.backend {
            Backend::Sqlite(store) => store.digester(),
        }
    }

    /// Calls, newest first, without payloads and attempts, from `cursor` on. From the index as far
    /// as it is, and from the ledger itself beyond: none is missing.
    ///
    /// # Errors
    /// [`StoreError::BadText`], [`StoreError::BadValue`] and what any statement can give.
    pub async fn audit_page(
        &self,
        filter: &AuditFilter,
        cursor: Option<Cursor>,
        limit: u16,
    ) -> Result<Page<CallRow>, StoreError> {
        forward!(self, audit_page(filter, cursor, limit))
    }

    /// Sums of calls. As complete as [`Self::audit_page`].
    ///
    /// # Errors
    /// [`StoreError::TooManySums`] and what any statement can give.
    pub async fn audit_stats(&self, query: &StatsQuery) -> Result<Stats, StoreError> {
        forward!(self, audit_stats(query))
    }

    /// Keeps the ledger's index, some seconds behind at most, until `stop` or [`Self::close`]. The
    /// index is made of the ledger alone: one that is damaged, of another version or of another
    /// ledger is made anew, and no failure ends this.
    pub async fn follow_ledger(&self, stop: CancellationToken) {
        forward!(self, follow_ledger(stop));
    }

    /// Brings the index up to what is in the ledger now.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn index_ledger(&self) -> Result<(), StoreError> {
        forward!(self, index_ledger())
    }

    /// When the oldest call ended that is not in the ledger's index: `Some(None)` when all are in
    /// it, `None` while there is no index.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn index_behind_since(&self) -> Result<Option<Option<Timestamp>>, StoreError> {
        forward!(self, index_behind_since())
    }

    /// How far the index is.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn index_state(&self) -> Result<IndexState, StoreError> {
        forward!(self, index_state())
    }

    /// Drops from the index what is of calls before `seq`, which the ledger has no more, in small
    /// steps. Where others are left in the same 262,144 numbers of text, or in the same minute of
    /// sums, whoever follows the ledger makes that anew of them. None of it is found meanwhile.
    ///
    /// # Errors
    /// What any statement can give; then it can be repeated.
    pub async fn index_forget_below(&self, seq: i64) -> Result<(), StoreError> {
        forward!(self, index_forget_below(seq))
    }

    /// Calls that were stored after the one with `seq`, oldest first, without payloads and
    /// attempts.
    ///
    /// # Errors
    /// [`StoreError::BadValue`] and what any statement can give.
    pub async fn audit_after(&self, seq: i64, limit: u16) -> Result<Vec<CallRow>, StoreError> {
        forward!(self, audit_after(seq, limit))
    }

    /// One call with its payloads and attempts.
    ///
    /// # Errors
    /// [`StoreError::BadValue`] and what any statement can give.
    pub async fn audit_call(&self, id: CallId) -> Result<Option<CallRow>, StoreError> {
        forward!(self, audit_call(id))
    }

    /// Calls after the one with `after`, oldest first, up to `through`, or to the newest without it.
    ///
    /// One short transaction, whatever the filter and however many calls there are: it looks at a
    /// bounded number of calls and gives at most `limit` of them, and with payloads a few mebibytes
    /// or one call. It may give none although more follow: [`Stretch::reached`] says how far it
    /// came, and does not grow at the end.
    ///
    /// # Errors
    /// [`StoreError::BadValue`] and what any statement can give.
    pub async fn audit_stretch(
        &self,
        filter: &AuditFilter,
        after: i64,
        through: Option<i64>,
        limit: u16,
        depth: Depth,
    ) -> Result<Stretch<CallRow>, StoreError> {
        forward!(self, audit_stretch(filter, after, through, limit, depth))
    }

    /// The `seq` of the newest call, 0 when there is none.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn audit_newest(&self) -> Result<i64, StoreError> {
        forward!(self, audit_newest())
    }

    /// Removes the oldest rows of the ledger, on record in it as done by `actor`, and gives their space
    /// back. In steps, between which others write; ended early, what is left is in order.
    ///
    /// # Errors
    /// What any statement can give; the steps that were done stay done.
    pub async fn prune(
        &self,
        until: PruneUntil,
        actor: &str,
        now: Timestamp,
    ) -> Result<Pruned, StoreError> {
        forward!(self, prune(until, actor, now))
    }

    /// Erases arguments and results, on record in the ledger as done by `actor`; the calls stay. In
    /// steps, between which others write. Also in the copies that were made before an upgrade.
    ///
    /// # Errors
    /// What any statement can give; the steps that were done stay done.
    pub async fn erase(
        &self,
        of: &EraseOf,
        actor: &str,
        now: Timestamp,
    ) -> Result<Erased, StoreError> {
        forward!(self, erase(of, actor, now))
    }

    /// How many calls the ledger has.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn audit_count(&self) -> Result<u64, StoreError> {
        forward!(self, audit_count())
    }

    /// When the oldest call in the ledger came in.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn audit_oldest(&self) -> Result<Option<Timestamp>, StoreError> {
        forward!(self, audit_oldest())
    }
}

#[cfg(test)]
mod tests;
