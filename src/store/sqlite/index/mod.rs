//! The ledger's index: a third file, made of what is in the ledger and never more.
//!
//! Changes when the file's schema changes, or what happens to a file that cannot be used. Indexes in
//! the ledger itself would cost its writer three quarters of its speed; here one task (`follow`)
//! comes after it, some seconds behind at most, and whoever asks gets the rest from the ledger.
//!
//! `postings`, `rollup`, `fts`, `unescape`, `unicode61` and `varint` are values in, values out.

mod follow;
mod fts;
mod hits;
mod postings;
mod recount;
mod refresh;
mod retain;
mod rollup;
mod scan;
mod search;
mod stats;
mod text;
mod unescape;
mod unicode61;
mod varint;

pub(super) use retain::Rest;
pub(super) use scan::{LOOKED_AT, PATIENCE};
pub(super) use search::{has_text, parse_text, push_filter};

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection, SqlitePool, raw_sql};
use tokio::sync::Mutex;

use super::file_system::log_pages;
use super::{BUSY_TIMEOUT, READERS, SqliteStore, begin_writing, create_private, files, pool};
use crate::model::Timestamp;
use crate::store::courtesy::Courtesy;
use crate::store::{IndexState, StoreError};

const FILE: &str = "audit-index.db";

/// Marks a file as this index: "SwYi".
const APPLICATION_ID: i64 = 0x5377_5969;

/// Counts forms of the file. There are no migrations: another form is made anew.
const VERSION: i64 = 6;

/// Rows of a statement that inserts many.
const CHUNK_OF_ROWS: usize = 50;

/// Numbers of the ledger in one table of text: retention drops whole ones, and erasing a payload
/// makes one of them anew.
const PART: i64 = 1 << 18;

const SCHEMA: &str = "
-- How far the index is, and the id of that call: a ledger that has another there is another one.
create table state (
    one         integer primary key not null check (one = 1),
    indexed_seq integer not null,
    indexed_id  blob,
    erased_seq  integer not null                   -- up to here the ledger was asked what was erased
) strict;
insert into state values (1, 0, null, 0);

-- Every value of every dimension, with the chunks it is in.
create table words (
    id          integer primary key not null,
    dimension   integer not null,
    value       text not null,
    first_chunk integer not null,
    last_chunk  integer not null,
    unique (dimension, value)
) strict;

-- Chunks of the ledger's numbers, with the bounds of their calls' times.
create table chunks (
    chunk  integer primary key not null,
    min_ms integer not null,
    max_ms integer not null
) strict;

-- Which places of a chunk have a call, and when each of these came in.
create table times (
    chunk  integer primary key not null,
    places blob not null,
    times  blob not null
) strict;

-- Which places of a chunk have a value.
create table postings (
    chunk  integer not null,
    word   integer not null,
    places blob not null,
    primary key (chunk, word)
) strict, without rowid;

-- Sums of calls by when they came in: width 60000 or 3600000 ms, from start on. Server 0: none.
create table rollups (
    width  integer not null,
    start  integer not null,
    server integer not null,
    cells  blob not null,
    primary key (width, start, server)
) strict, without rowid;

-- The calls of a trace, by the first half of its id; part N has the numbers from N * 262144 on. An
-- id is in few calls, so that a bitmap for each would be many times as large; and ids come in no
-- order, so that only the pages of one part are written at a time.
create table traces (
    part  integer not null,
    trace blob not null,
    seq   integer not null,
    primary key (part, trace, seq)
) strict, without rowid;

-- The tables of text: part N has the numbers from N * 262144 on, in table text_N_GENERATION.
create table parts (
    part       integer primary key not null,
    generation integer not null,
    stale      integer not null,                   -- marks: to be made anew of what is left
    first_seq  integer not null,                   -- nothing in it is of an earlier number
    made_ms    integer not null                    -- when it was begun or made anew
) strict;

-- Minutes of which calls were removed: their sums are to be counted anew.
create table recounts (start integer primary key not null) strict;
";

/// What calls can be looked for by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dimension {
    Server,
    Tool,
    UpstreamTool,
    Caller,
    Outcome,
    Session,
    ErrorCode,
    View,
}

impl Dimension {
    const ALL: [Self; 8] = [
        Self::Server,
        Self::Tool,
        Self::UpstreamTool,
        Self::Caller,
        Self::Outcome,
        Self::Session,
        Self::ErrorCode,
        Self::View,
    ];

    /// Its number in the file.
    const fn number(self) -> i64 {
        self as i64
    }

    /// Its column of `calls c`.
    const fn column(self) -> &'static str {
        match self {
            Self::Server => "c.server",
            Self::Tool => "c.tool",
            Self::UpstreamTool => "c.upstream_tool",
            Self::Caller => "c.caller",
            Self::Outcome => "c.outcome",
            Self::Session => "c.session",
            Self::ErrorCode => "c.error_code",
            Self::View => "c.view",
        }
    }

    /// Its place in lists with a place for each.
    const fn slot(self) -> usize {
        self as usize
    }
}

/// The index as the store holds it: perhaps open.
pub(super) struct Index {
    path: PathBuf,
    ledger: PathBuf,
    /// Connections that read; none while the file is not open.
    readers: RwLock<Option<SqlitePool>>,
    follower: Mutex<follow::Follower>,
    /// Somebody met damage while reading.
    suspect: AtomicBool,
    /// How long the thread that writes lets calls go first.
    courtesy: Courtesy,
}

impl Index {
    /// Nothing is opened: the start waits for no index.
    pub(super) fn new(folder: &Path, ledger: &Path) -> Self {
        Self {
            path: folder.join(FILE),
            ledger: ledger.to_owned(),
            readers: RwLock::new(None),
            follower: Mutex::default(),
            suspect: AtomicBool::new(false),
            courtesy: Courtesy::default(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn readers(&self) -> Option<SqlitePool> {
        self.readers.read().clone()
    }

    /// Closes the file; later calls find none and open none.
    pub(super) async fn close(&self) {
        let readers = self.readers.write().take();
        if let Some(readers) = readers {
            readers.close().await;
        }
        self.follower.lock().await.close().await;
    }

    /// Opens the file, or makes a new one in place of one that cannot be used.
    async fn open(&self) -> Result<SqliteConnection, StoreError> {
        match self.open_file().await {
            Ok(Some(writer)) => return self.with_readers(writer),
            Ok(None) => {}
            Err(error) => {
                let why: &dyn std::error::Error = &error;
                tracing::warn!(error = why, "the ledger's index cannot be used: {error}");
            }
        }
        self.remove()?;
        match self.open_file().await? {
            Some(writer) => self.with_readers(writer),
            None => Err(StoreError::Damaged {
                path: self.path.clone(),
                detail: "a file just made is not what it should be".to_owned(),
            }),
        }
    }

    fn with_readers(&self, writer: SqliteConnection) -> Result<SqliteConnection, StoreError> {
        let options = options(&self.path).pragma("query_only", "on");
        *self.readers.write() = Some(pool(READERS, options));
        Ok(writer)
    }

    /// `None` when the file is of another form or of another ledger.
    async fn open_file(&self) -> Result<Option<SqliteConnection>, StoreError> {
        create_private(&self.path)?;
        let opening = |error| StoreError::while_opening(error, &self.path);
        let mut writer = options(&self.path).connect().await.map_err(opening)?;
        let usable = self.prepare(&mut writer).await;
        if matches!(usable, Ok(true)) {
            return Ok(Some(writer));
        }
        // Not only dropped, which closes it some time later: it would take the log of the next file away.
        let closed = writer.close().await;
        usable?;
        closed?;
        Ok(None)
    }

    /// Makes the tables of a new file; whether the file is of this form and of this ledger.
    async fn prepare(&self, writer: &mut SqliteConnection) -> Result<bool, StoreError> {
        let opening = |error| StoreError::while_opening(error, &self.path);
        self.courtesy.teach(writer).await.map_err(opening)?;
        let row = sqlx::query(
            "select (select application_id from pragma_application_id),
                    (select user_version from pragma_user_version),
                    (select count(*) from sqlite_schema)",
        )
        .fetch_one(&mut *writer)
        .await
        .map_err(opening)?;
        let found: (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        match found {
            (0, 0, 0) => {
                let script = format!(
                    "pragma auto_vacuum = incremental; pragma journal_mode = wal; begin immediate; {SCHEMA}
                     pragma application_id = {APPLICATION_ID}; pragma user_version = {VERSION};
                     commit;"
                );
                raw_sql(AssertSqlSafe(script)).execute(&mut *writer).await.map_err(opening)?;
            }
            (APPLICATION_ID, VERSION, _) => {
                let version = usize::try_from(VERSION).unwrap_or_default();
                begin_writing(writer, version).await.map_err(opening)?;
                raw_sql("pragma synchronous = normal").execute(&mut *writer).await?;
            }
            _ => return Ok(false),
        }
        sqlx::query("attach database ? as ledger")
            .bind(self.ledger.to_string_lossy().into_owned())
            .execute(&mut *writer)
            .await?;
        // The ledger is read once, from its beginning to its end.
        raw_sql("pragma ledger.cache_size = -512").execute(&mut *writer).await?;
        raw_sql(text::DECODED).execute(&mut *writer).await?;
        // The id of the call there is in no other ledger, nor in an older copy of this one; and an
        // older copy has not the entries that were looked at.
        let same = sqlx::query_scalar(
            "select (indexed_seq = 0 or indexed_id is
                    (select c.id from ledger.calls c where c.seq = indexed_seq))
                and erased_seq <= (select coalesce(max(seq), 0) from ledger.entries) from state",
        )
        .fetch_one(writer)
        .await
        .map_err(opening)?;
        Ok(same)
    }

    /// Nobody may have the file open.
    fn remove(&self) -> Result<(), StoreError> {
        for path in [
            self.path.clone(),
            self.path.with_extension("db-wal"),
            self.path.with_extension("db-shm"),
        ] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(files("write", &path)(error));
                }
                Err(_) | Ok(()) => {}
            }
        }
        Ok(())
    }

    /// An index that cannot be read costs time and no answer.
    fn unread(&self, error: &StoreError) {
        if is_damage(error) {
            self.suspect.store(true, Ordering::Relaxed);
        }
        let why: &dyn std::error::Error = error;
        tracing::warn!(error = why, "the ledger's index could not be read: {error}");
    }

    /// Up to which of the ledger's numbers everything is in the index; 0 when there is none.
    async fn indexed_seq(&self) -> i64 {
        let Some(readers) = self.readers() else { return 0 };
        let seq = sqlx::query_scalar("select indexed_seq from state").fetch_one(&readers).await;
        seq.unwrap_or_else(|error| {
            self.unread(&error.into());
            0
        })
    }
}

/// Whether a file that gives this error should be made anew.
const fn is_damage(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Corrupt { .. } | StoreError::Damaged { .. } | StoreError::Statement { .. }
    )
}

fn damaged(path: &Path, table: &str) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), detail: format!("table {table}") }
}

fn options(path: &Path) -> SqliteConnectOptions {
    let folder = path.parent().unwrap_or(path);
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        // Bitmaps of a chunk stay whole in a page of twice the usual size.
        .page_size(8192)
        .busy_timeout(BUSY_TIMEOUT)
        .row_buffer_size(512)
        .pragma("synchronous", "normal")
        .pragma("trusted_schema", "off")
        .pragma("cell_size_check", "on")
        .pragma("mmap_size", "0")
        .pragma("temp_store", "memory")
        // What is erased from the ledger must not be left here.
        .pragma("secure_delete", "on")
        .pragma("journal_size_limit", "67108864")
        .pragma("wal_autocheckpoint", log_pages(folder, 2_000))
        .disable_statement_logging()
}

impl SqliteStore {
    /// How far the index is behind the ledger.
    pub(in crate::store) async fn index_state(&self) -> Result<IndexState, StoreError> {
        let seq = self.index.indexed_seq().await;
        self.index_state_at(seq).await
    }

    /// When the oldest call ended that is not in the index; `None` while there is no index.
    pub(in crate::store) async fn index_behind_since(
        &self,
    ) -> Result<Option<Option<Timestamp>>, StoreError> {
        let Some(readers) = self.index.readers() else { return Ok(None) };
        let seq: i64 =
            sqlx::query_scalar("select indexed_seq from state").fetch_one(&readers).await?;
        let ended: Option<i64> = sqlx::query_scalar(
            "select started_at_ms + total_us / 1000 from calls where seq > ? order by seq limit 1",
        )
        .bind(seq)
        .fetch_optional(&self.audit.own)
        .await?;
        Ok(Some(ended.map(Timestamp::from_millis)))
    }

    async fn index_state_at(&self, seq: i64) -> Result<IndexState, StoreError> {
        let last: Option<i64> =
            sqlx::query_scalar("select max(seq) from calls").fetch_one(&self.audit.readers).await?;
        Ok(IndexState { seq, behind: last.unwrap_or(0).saturating_sub(seq).max(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::CallRow;
    use crate::store::tests::call;

    /// SQLite ends the transaction on a full disk by itself, unseen by the driver. What comes after is a
    /// transaction of its own, also when that fails, and the ledger's log can be emptied.
    #[tokio::test]
    async fn a_full_disk_leaves_no_transaction_behind() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path()).await.unwrap();
        let calls = |from: u64| {
            let calls = (from..from + 500).map(|n| CallRow {
                arguments: Some(format!(r#"{{"text":"words-{n} and-more-{n}"}}"#)),
                ..call(n)
            });
            calls.collect::<Vec<_>>()
        };
        store.append_ledger(&[], &calls(1)).await.unwrap();
        store.index_ledger().await.unwrap();
        store.append_ledger(&[], &calls(1000)).await.unwrap();
        let mut follower = store.index.follower.lock().await;
        let writer = follower.writer(&store.index).await.unwrap();
        let mut ended = writer.begin().await.unwrap();
        raw_sql("rollback").execute(&mut *ended).await.unwrap();
        drop(ended);
        let writer = follower.writer(&store.index).await.unwrap();
        raw_sql("pragma max_page_count = 1").execute(writer).await.unwrap();
        drop(follower);
        store.index_ledger().await.unwrap_err();
        let mut follower = store.index.follower.lock().await;
        let writer = follower.writer(&store.index).await.unwrap();
        raw_sql("pragma max_page_count = 1000000").execute(writer).await.unwrap();
        drop(follower);
        store.index_ledger().await.unwrap();
        assert_eq!(store.index_state().await.unwrap().behind, 0);
        store.append_ledger(&[], &calls(9000)).await.unwrap();
        let log = folder.path().join("audit.db");
        let mut other = SqliteConnectOptions::new().filename(&log).connect().await.unwrap();
        let (busy, pages, moved): (i64, i64, i64) =
            sqlx::query_as("pragma wal_checkpoint(truncate)").fetch_one(&mut other).await.unwrap();
        assert_eq!((busy, pages), (0, moved), "somebody still reads an old state of the ledger");
        store.close().await.unwrap();
    }
}
