//! The SQLite backend: two files in the data folder and a third that is made of one of them, one
//! writer connection and a few readers each.
//!
//! Changes when the way files are opened, migrated or closed changes. The SQL of a table is in the
//! table's own file.

mod attempts;
mod audit;
mod backup;
mod breakers;
mod entries;
mod events;
mod expire;
mod export;
mod file_system;
mod index;
mod keys;
mod ledger;
mod ledger_key;
mod log;
mod migrate;
mod offers;
mod packed;
mod reading;
mod recover;
mod remains;
mod servers;
mod sessions;
mod spool;
mod tools;
mod upkeep;
mod verify;

#[cfg(test)]
mod tests;

pub(super) use backup::{backup, restore};
pub use export::LedgerExport;
pub(super) use recover::recover;
pub(super) use verify::{verify, verify_export};

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{Access, FlockOperation, access, flock};
use sqlx::pool::PoolOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Row, Sqlite, SqliteConnection, SqlitePool,
    Transaction, raw_sql,
};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};

use self::migrate::Copies;
use super::chain::{Digester, LedgerKey};
use super::courtesy::Courtesy;
use super::seal::Sealer;
use super::{FileSize, StoreError, StoreSize};
use crate::clock;

/// Marks a file as ours: "SwYd".
const APPLICATION_ID: i64 = 0x5377_5964;

/// How long a writer waits for another process' lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long another process may have the data folder's lock. One that was just being started when its router
/// was killed has what that had, until it is the program that it is to be.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);

/// Readers per file: pages are short, and each connection costs a thread and 2 MiB of cache.
const READERS: u32 = 2;

/// How many steps of SQLite's machine a check goes on for after the store was closed.
const STEPS_BETWEEN_LOOKS: i32 = 1000;

/// What is particular to one of the two files.
struct Schema {
    file: &'static str,
    /// Applied in order; `user_version` counts those applied. A shipped one is never edited.
    migrations: &'static [&'static str],
    /// Extra settings of a new file, before its first table.
    new_file: &'static str,
    /// Pages in the write-ahead log before they are moved to the file, on a disk that is large enough.
    log_pages: u64,
    /// The largest file, log included, that is read whole at every start to find damage.
    checked_up_to: u64,
}

const STATE: Schema = Schema {
    file: "state.db",
    migrations: &[
        include_str!("../../../migrations/sqlite/state/0001_state.sql"),
        include_str!("../../../migrations/sqlite/state/0002_offers.sql"),
        include_str!("../../../migrations/sqlite/state/0003_session_view.sql"),
        include_str!("../../../migrations/sqlite/state/0004_breakers.sql"),
    ],
    new_file: "",
    log_pages: 1_000,
    // Small and precious.
    checked_up_to: u64::MAX,
};

const AUDIT: Schema = Schema {
    file: "audit.db",
    migrations: &[
        include_str!("../../../migrations/sqlite/audit/0001_calls.sql"),
        include_str!("../../../migrations/sqlite/audit/0002_view.sql"),
        include_str!("../../../migrations/sqlite/audit/0003_attempts.sql"),
        include_str!("../../../migrations/sqlite/audit/0004_chain.sql"),
        include_str!("../../../migrations/sqlite/audit/0005_trace.sql"),
        include_str!("../../../migrations/sqlite/audit/0006_origin.sql"),
    ],
    // Retention gives pages back in small steps; this cannot be switched on later.
    new_file: "pragma auto_vacuum = incremental;",
    // 16 MiB: at full speed a checkpoint every few batches costs more than the log's space.
    log_pages: 4_000,
    // A few milliseconds; a larger one is checked once the router answers.
    checked_up_to: 8 * 1024 * 1024,
};

/// Both files, open.
pub(super) struct SqliteStore {
    state: Database,
    audit: Database,
    index: index::Index,
    sealer: Sealer,
    ledger_key: LedgerKey,
    /// Whoever removes rows of the ledger; one at a time.
    upkeep: Mutex<()>,
    /// Holds the lock on the data folder until the store is gone.
    _lock: File,
}

/// One open file.
struct Database {
    path: PathBuf,
    options: SqliteConnectOptions,
    writer_options: SqliteConnectOptions,
    writer: Mutex<Option<SqliteConnection>>,
    /// How long the writer waits for another process' lock, in milliseconds.
    patience: AtomicU64,
    /// For what is asked from outside.
    readers: SqlitePool,
    /// For upkeep and metrics, which do not wait for what is asked from outside.
    own: SqlitePool,
    /// Whether the thread of the writer lets calls go first.
    courtesy: Courtesy,
    /// Whether the whole file was found good when it was opened.
    checked: bool,
    /// Tells a check that goes on beside the traffic to stop.
    closing: Arc<AtomicBool>,
    /// Held by a check; closing waits for it.
    checks: Mutex<()>,
}

impl SqliteStore {
    pub(super) async fn open(folder: &Path) -> Result<Self, StoreError> {
        let lock = prepare_folder(folder).await?;
        backup::finish_restore(folder)?;
        recover::warn_of_missing(folder);
        // Both before either is written: a refused start leaves the other one alone, too.
        let (state, audit) = tokio::join!(
            recover::look(folder, &STATE, STATE.checked_up_to),
            recover::look(folder, &AUDIT, AUDIT.checked_up_to)
        );
        let (state, audit) = (state?, audit?);
        let (mut state, mut audit) = tokio::try_join!(
            Opening::begin(folder, &STATE, state),
            Opening::begin(folder, &AUDIT, audit)
        )?;
        let copies = Copies::make(folder, &mut [&mut audit, &mut state]).await?;
        let (state, audit) = if copies.is_none() {
            tokio::try_join!(state.finish(), audit.finish())?
        } else {
            // The larger first: where that fails, both are as they were.
            let audit = audit.finish().await.inspect_err(|_error| {
                copies.forget(&STATE);
                copies.forget(&AUDIT);
            })?;
            (state.finish().await.inspect_err(|_error| copies.forget(&STATE))?, audit)
        };
        let ledger_key = ledger_key::open(&folder.join("ledger.key"), &audit).await?;
        let sealer = Sealer::new(folder.join("seal.key"));
        let upkeep = Mutex::new(());
        let index = index::Index::new(folder, &audit.path);
        Ok(Self { state, audit, index, sealer, ledger_key, upkeep, _lock: lock })
    }

    pub(super) async fn close(&self) -> Result<(), StoreError> {
        // It reads the ledger, too.
        self.index.close().await;
        let (state, audit) = tokio::join!(self.state.close(), self.audit.close());
        state.and(audit)
    }

    pub(super) fn size_bytes(&self) -> StoreSize {
        StoreSize {
            state: self.state.size(),
            audit: self.audit.size(),
            index: size_of(self.index.path()),
        }
    }

    pub(super) async fn check(&self) -> Result<(), StoreError> {
        let (state, audit) = tokio::join!(self.state.check(), self.audit.check());
        state.and(audit)
    }

    pub(super) fn digester(&self) -> Digester {
        self.ledger_key.digester()
    }

    pub(super) async fn check_ledger(&self) -> Result<(), StoreError> {
        if self.audit.checked { Ok(()) } else { self.audit.check().await }
    }
}

/// A file that is open for writing, and not brought up to date yet.
struct Opening<'a> {
    schema: &'a Schema,
    path: PathBuf,
    options: SqliteConnectOptions,
    writer: SqliteConnection,
    version: Version,
    courtesy: Courtesy,
    checked: bool,
}

impl<'a> Opening<'a> {
    /// `seen` is what [`recover::look`] saw of it.
    async fn begin(
        folder: &Path,
        schema: &'a Schema,
        seen: Option<bool>,
    ) -> Result<Self, StoreError> {
        let path = folder.join(schema.file);
        let found = create_private(&path)?;
        let options = connect_options(&path, schema)
            .pragma("wal_autocheckpoint", file_system::log_pages(folder, schema.log_pages));
        let opening = |error| StoreError::while_opening(error, &path);
        let synchronous = match found {
            Found::New => "off",
            Found::Existing => "full",
        };
        let mut writer = writing(&options, synchronous).connect().await.map_err(opening)?;
        let courtesy = Courtesy::default();
        courtesy.teach(&mut writer).await.map_err(opening)?;
        let version = identify(&mut writer, &path, schema).await?;
        let mut checked = true;
        if let Version::Known(version) = version {
            checked = seen.unwrap_or(size_of(&path).total() <= schema.checked_up_to);
            if checked && seen.is_none() {
                quick_check(&mut writer, &path).await?;
            }
            begin_writing(&mut writer, version).await.map_err(opening)?;
        }
        Ok(Self { schema, path, options, writer, version, courtesy, checked })
    }

    /// Makes the tables of a new file, and changes those of an older one.
    async fn finish(self) -> Result<Database, StoreError> {
        let Self { schema, path, options, mut writer, version, courtesy, checked } = self;
        let done = match version {
            Version::Empty => create(&mut writer, schema)
                .await
                .map_err(|error| StoreError::while_opening(error, &path)),
            Version::Known(version) => migrate::migrate(&mut writer, &path, schema, version).await,
        };
        if let Err(error) = done {
            // Its log goes with it, which may be what the disk is full of.
            let _closed = writer.close().await;
            return Err(error);
        }
        let writer_options = writing(&options, "full");
        let options = options.pragma("query_only", "on");
        let (readers, own) = (pool(READERS, options.clone()), pool(1, options.clone()));
        let writer = Mutex::new(Some(writer));
        let closing = Arc::new(AtomicBool::new(false));
        let patience = AtomicU64::new(millis(BUSY_TIMEOUT));
        Ok(Database {
            path,
            options,
            writer_options,
            writer,
            patience,
            readers,
            own,
            courtesy,
            checked,
            closing,
            checks: Mutex::default(),
        })
    }
}

impl Database {
    /// The one connection that writes. Nothing but the database may be awaited while it is held.
    async fn writer(&self) -> Result<MappedMutexGuard<'_, SqliteConnection>, StoreError> {
        let writer = MutexGuard::try_map(self.writer.lock().await, Option::as_mut);
        let mut writer = writer.map_err(|_closed| StoreError::Closed)?;
        if writer.is_in_transaction() {
            self.settle(&mut writer).await?;
        }
        Ok(writer)
    }

    /// Makes a connection of use again of which the driver thinks that a transaction is open. SQLite rolls
    /// back by itself, for one on a full disk; the driver's own rollback fails then, and it refuses to
    /// begin another ever after.
    async fn settle(&self, writer: &mut SqliteConnection) -> Result<(), StoreError> {
        // A rollback may be under way: it is done when this is.
        raw_sql("select 1").execute(&mut *writer).await?;
        if writer.is_in_transaction() {
            let patience = Duration::from_millis(self.patience.load(Ordering::Relaxed));
            let mut fresh = self.writer_options.clone().busy_timeout(patience).connect().await?;
            self.courtesy.teach(&mut fresh).await?;
            // Nothing is left in it to be lost.
            let _closed = std::mem::replace(writer, fresh).close().await;
        }
        Ok(())
    }

    /// Changes how long the writer waits for another process' lock.
    async fn set_patience(&self, patience: Duration) -> Result<(), StoreError> {
        let millis = millis(patience);
        self.patience.store(millis, Ordering::Relaxed);
        let script = AssertSqlSafe(format!("pragma busy_timeout = {millis}"));
        raw_sql(script).execute(&mut *self.writer().await?).await?;
        Ok(())
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.closing.store(true, Ordering::Relaxed);
        tokio::join!(self.readers.close(), self.own.close());
        drop(self.checks.lock().await);
        let Some(mut writer) = self.writer.lock().await.take() else {
            return Ok(());
        };
        raw_sql("pragma wal_checkpoint(truncate)").execute(&mut writer).await?;
        writer.close().await?;
        Ok(())
    }

    /// On a connection of its own: a large file takes minutes, and the readers serve requests.
    async fn check(&self) -> Result<(), StoreError> {
        let _turn = self.checks.lock().await;
        if self.closing.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        let opening = |error| StoreError::while_opening(error, &self.path);
        let mut connection = self.options.connect().await.map_err(opening)?;
        let closing = Arc::clone(&self.closing);
        connection
            .lock_handle()
            .await?
            .set_progress_handler(STEPS_BETWEEN_LOOKS, move || !closing.load(Ordering::Relaxed));
        let verdict = quick_check(&mut connection, &self.path).await;
        // Not only dropped, which closes it some time later: the last connection to go takes the log away.
        connection.close().await.map_err(opening)?;
        if self.closing.load(Ordering::Relaxed) { Err(StoreError::Closed) } else { verdict }
    }

    fn size(&self) -> FileSize {
        size_of(&self.path)
    }
}

/// Connections that are opened when they are needed, and then stay.
fn pool(most: u32, options: SqliteConnectOptions) -> SqlitePool {
    PoolOptions::<Sqlite>::new()
        .max_connections(most)
        .acquire_timeout(BUSY_TIMEOUT)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_lazy_with(options)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn size_of(database: &Path) -> FileSize {
    let wal = database.with_extension("db-wal");
    let length = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    FileSize { database_bytes: length(database), wal_bytes: length(&wal) }
}

/// Makes an existing file ready for writing, and fails when it cannot be written.
///
/// SQLite opens such a file for reading without a word and begins a transaction on it, too; only a
/// statement that writes tells. Writing the version that is there changes nothing.
async fn begin_writing(writer: &mut SqliteConnection, version: usize) -> Result<(), sqlx::Error> {
    let script = format!(
        "pragma journal_mode = wal; pragma synchronous = full;
         begin immediate; pragma user_version = {version}; rollback;"
    );
    raw_sql(AssertSqlSafe(script)).execute(writer).await?;
    Ok(())
}

/// Begins a transaction that takes the write lock at once: one that upgrades later fails without
/// waiting when another process holds the lock.
async fn begin(writer: &mut SqliteConnection) -> Result<Transaction<'_, Sqlite>, StoreError> {
    Ok(writer.begin_with("begin immediate").await?)
}

fn connect_options(path: &Path, schema: &Schema) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .pragma("trusted_schema", "off")
        .pragma("cell_size_check", "on")
        .pragma("mmap_size", "0")
        .pragma("temp_store", "memory")
        // What is deleted is overwritten where that costs no further page.
        .pragma("secure_delete", "fast")
        .pragma("journal_size_limit", "67108864")
        .pragma("wal_autocheckpoint", schema.log_pages.to_string())
        .disable_statement_logging()
}

/// For the connection that writes. Rows come at the end of tables: there is little that it needs again, and
/// what a cache could hold it would fill.
fn writing(options: &SqliteConnectOptions, synchronous: &'static str) -> SqliteConnectOptions {
    options.clone().pragma("synchronous", synchronous).pragma("cache_size", "-1024")
}

enum Version {
    Empty,
    Known(usize),
}

/// Reads what the file says of itself, without changing it.
async fn identify(
    writer: &mut SqliteConnection,
    path: &Path,
    schema: &Schema,
) -> Result<Version, StoreError> {
    let row = sqlx::query(
        "select sqlite_version(), (select application_id from pragma_application_id),
                (select user_version from pragma_user_version),
                (select count(*) from sqlite_schema)",
    )
    .fetch_one(writer)
    .await
    .map_err(|error| StoreError::while_opening(error, path))?;
    let engine: String = row.try_get(0)?;
    let (application_id, found, objects): (i64, i64, i64) =
        (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    if is_older_than_3_51_3(&engine) {
        return Err(StoreError::OldEngine { version: engine });
    }
    if application_id == 0 && found == 0 && objects == 0 {
        return Ok(Version::Empty);
    }
    if application_id != APPLICATION_ID {
        return Err(StoreError::ForeignDatabase { path: path.to_owned() });
    }
    usize::try_from(found)
        .ok()
        .filter(|version| *version <= schema.migrations.len())
        .map(Version::Known)
        .ok_or_else(|| StoreError::NewerSchema {
            path: path.to_owned(),
            found,
            known: i64::try_from(schema.migrations.len()).unwrap_or(i64::MAX),
        })
}

fn is_older_than_3_51_3(version: &str) -> bool {
    let numbers: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    numbers.as_slice() < [3, 51, 3].as_slice()
}

/// Makes the tables of a new file. Nothing in it is worth a sync until it is complete; the one
/// checkpoint at the end puts file and log on disk before the first row that matters.
async fn create(writer: &mut SqliteConnection, schema: &Schema) -> Result<(), sqlx::Error> {
    let migrations = schema.migrations.concat();
    let script = format!(
        "{new_file} pragma journal_mode = wal;
         begin immediate;
         {migrations}
         {stamp}
         commit;
         pragma synchronous = full;
         pragma wal_checkpoint(passive);",
        new_file = schema.new_file,
        stamp = stamp(schema),
    );
    raw_sql(AssertSqlSafe(script)).execute(writer).await?;
    Ok(())
}

fn stamp(schema: &Schema) -> String {
    format!(
        "pragma application_id = {APPLICATION_ID}; pragma user_version = {};",
        schema.migrations.len()
    )
}

async fn quick_check(connection: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    let verdict: String = sqlx::query_scalar("pragma quick_check(1)")
        .fetch_one(connection)
        .await
        .map_err(|error| StoreError::while_opening(error, path))?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(StoreError::Damaged { path: path.to_owned(), detail: verdict })
}

/// Makes the folder, refuses one that cannot be used, and takes the lock that keeps out a second
/// router.
async fn prepare_folder(folder: &Path) -> Result<File, StoreError> {
    match fs::metadata(folder) {
        Ok(meta) if !meta.is_dir() => {
            return Err(StoreError::NotAFolder { path: folder.to_owned() });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(files("create", folder))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(StoreError::NotAFolder { path: folder.to_owned() });
        }
        Err(error) => return Err(files("read", folder)(error)),
    }
    file_system::refuse_network(folder)?;
    // The write-ahead logs come and go, so the folder must be writable as well.
    must_be_writable(folder)?;
    let path = folder.join("router.lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(files("write", &path))?;
    let began = clock::uptime();
    let locked = loop {
        let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        let held = matches!(locked, Err(rustix::io::Errno::WOULDBLOCK));
        if !held || clock::uptime().since(began) >= LOCK_PATIENCE {
            break locked;
        }
        tokio::time::sleep(LOCK_PATIENCE / 20).await;
    };
    match locked {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // The number is a courtesy: without it the message is still right.
            let pid = match lock.read_to_string(&mut text) {
                Ok(_) => text.trim().parse().ok(),
                Err(_) => None,
            };
            return Err(StoreError::InUse { pid, path: folder.to_owned() });
        }
        Err(error) => return Err(files("lock", &path)(error.into())),
    }
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(files("write", &path))?;
    Ok(lock)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    New,
    Existing,
}

/// Makes an empty file that only its owner can read; SQLite gives its log the same mode.
///
/// Never opens an existing one: closing a second descriptor of a database drops SQLite's locks.
fn create_private(path: &Path) -> Result<Found, StoreError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(Found::New),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            for file in [path, &path.with_extension("db-wal"), &path.with_extension("db-shm")] {
                must_be_writable(file)?;
            }
            // Left empty by a start that was cut off.
            let empty = fs::metadata(path).map_err(files("read", path))?.len() == 0;
            Ok(if empty { Found::New } else { Found::Existing })
        }
        Err(error) => Err(files("create", path)(error)),
    }
}

/// Asks the system without opening the file. One that is not there is fine.
fn must_be_writable(path: &Path) -> Result<(), StoreError> {
    match access(path, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(files("write", path)(error.into())),
    }
}

fn files<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::Files { action, path: path.to_owned(), source }
}

/// The text of a statement that inserts `rows` rows at once: `head values (?, …), … tail`.
///
/// Leaked once for each of the few statements, because the driver takes static texts without a copy.
fn multi_row(head: &str, columns: usize, rows: usize, tail: &str) -> &'static str {
    format!("{head} values {} {tail}", places(columns, rows)).leak()
}

/// `(?, …), …` for so many rows.
fn places(columns: usize, rows: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(", "));
    vec![row.as_str(); rows].join(", ")
}

/// Rows per multi-row statement: larger ones are not faster, and a fixed number keeps the
/// statement cache small.
const CHUNK: usize = 50;

fn hash_of(
    table: &'static str,
    column: &'static str,
    bytes: &[u8],
) -> Result<[u8; 32], StoreError> {
    bytes
        .try_into()
        .map_err(|_length| StoreError::bad_value(table, column, &format!("{} bytes", bytes.len())))
}
