//! [`StoreError`]: everything that can go wrong with the database, named after what happened.
//!
//! Changes when a failure gets a name of its own. Knows SQLite's result codes, not its SQL.

use std::io;
use std::path::PathBuf;

use crate::error::ErrorCode;
use crate::model::ServerName;

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another router has the data folder.
    #[error(
        "could not use the data folder `{}`: another router{} has it; stop that one or give this one another `data_dir`",
        path.display(),
        pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
    )]
    InUse {
        /// Process id of the other router, when its lock file says so.
        pid: Option<u32>,
        /// The data folder.
        path: PathBuf,
    },
    /// The data folder's path is something else.
    #[error("could not use `{}` as data folder: it is not a folder; give another `data_dir`", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A file or folder cannot be made, read or written.
    #[error("could not {action} `{}`: {source}; check that file and folder belong to this user, and that their modes and their disk allow writing", path.display())]
    Files {
        /// What was tried: `create`, `read`, `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The data folder is on a network file system, where the write-ahead log is not safe.
    #[error(
        "could not use the data folder `{}`: it is on a network file system ({kind}), where SQLite loses data; put `data_dir` on a local disk",
        path.display()
    )]
    NetworkFileSystem {
        /// The data folder.
        path: PathBuf,
        /// Which network file system.
        kind: &'static str,
    },
    /// The database was written by a newer version.
    #[error(
        "could not open `{}`: it has schema {found} and this version knows up to {known}; run the newer version, or restore a backup made before the upgrade",
        path.display()
    )]
    NewerSchema {
        /// The database file.
        path: PathBuf,
        /// The schema version in the file.
        found: i64,
        /// The newest schema version known here.
        known: i64,
    },
    /// There is no room for what an upgrade needs: copies of the older files, and the change itself.
    #[error(
        "could not bring the data folder `{}` up to date: that takes {needed} bytes, for copies of its databases above all, and {free} are free; free {} more: nothing was changed",
        path.display(),
        needed.saturating_sub(*free)
    )]
    NoRoomToUpgrade {
        /// The data folder.
        path: PathBuf,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The file is a database of some other program.
    #[error("could not open `{}`: it is a database of another program; move it away or give another `data_dir`", path.display())]
    ForeignDatabase {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged, or not a database at all.
    #[error(
        "could not open `{}`: it is damaged ({detail}); nothing was changed; restore a backup, or let `switchyard serve --recover` move it away and begin without what is in it",
        path.display()
    )]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What the check found.
        detail: String,
    },
    /// The SQLite in this build has a known corruption bug.
    #[error(
        "could not use SQLite {version}: versions before 3.51.3 can corrupt a database; build with the bundled SQLite"
    )]
    OldEngine {
        /// Its version.
        version: String,
    },
    /// The key file for sealed values cannot be used.
    #[error(
        "could not use the key file `{}`: {reason}; restore it from a backup, or, when there is none, move what is left of it away: the router then makes a new one",
        path.display()
    )]
    SealKey {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file holds no chain: it is of an older version, or none at all.
    #[error(
        "the ledger `{}` has no chain to verify: it was last written by an older version; start the router with it once",
        path.display()
    )]
    NoChain {
        /// The file.
        path: PathBuf,
    },
    /// The key of the ledger is not there, or not the one the ledger was begun with.
    #[error(
        "could not use the key of the ledger, `{}`: {reason}; restore it from a backup: rows written with another key could not be verified. Without one, move audit.db away and a new ledger begins",
        path.display()
    )]
    LedgerKey {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A backup cannot be made there.
    #[error("could not make the backup `{}`: {reason}; give the name of a new folder", path.display())]
    BackupTarget {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The folder holds no backup, and no data of a router either.
    #[error("there is nothing to copy in `{}`: {file} is missing or empty", path.display())]
    NoBackup {
        /// The folder.
        path: PathBuf,
        /// What it lacks.
        file: &'static str,
    },
    /// A restore into the folder was cut off.
    #[error(
        "a restore into `{}` was cut off; the next start of the router finishes it, and so does another restore",
        path.display()
    )]
    RestoreCutOff {
        /// The data folder.
        path: PathBuf,
    },
    /// A sealed value does not open with the key file.
    #[error(
        "could not open the sealed value `{key}` of server `{server}`: it was sealed with another key file, or changed; restore the key file `seal.key`, or remove the server and add it again"
    )]
    Sealed {
        /// The server.
        server: String,
        /// Name of the header or environment variable.
        key: String,
    },
    /// A key of that name is in force.
    #[error(
        "could not create the key `{name}`: a key of this name is in force; revoke it or take another name"
    )]
    KeyNameTaken {
        /// The name.
        name: String,
    },
    /// The server is not, or no longer, in the registry.
    #[error("could not store tools of server `{name}`: it is not in the registry")]
    UnknownServer {
        /// The server.
        name: ServerName,
    },
    /// A page cursor that we did not make.
    #[error(
        "could not read the cursor `{cursor}`; pass the `next_cursor` of the page before unchanged, or none"
    )]
    BadCursor {
        /// The cursor as given, cut for display.
        cursor: String,
    },
    /// A text that cannot be looked for.
    #[error("could not read the text to look for: {reason}")]
    BadText {
        /// What is wrong with it.
        reason: String,
    },
    /// An answer with more sums than anybody reads.
    #[error(
        "could not sum the calls: there are more than {most} sums; ask for a shorter time, for days, or with a filter"
    )]
    TooManySums {
        /// How many there may be.
        most: usize,
    },
    /// More calls would have to be looked at one by one than one answer may take time for.
    #[error(
        "could not sum the calls in time: {behind} of them are not in the ledger's index yet, which is being made; ask again in a while, or for what is listed (`GET /mcp/audit`)"
    )]
    NotIndexed {
        /// How many were not looked at.
        behind: i64,
    },
    /// A stored value that this version does not understand.
    #[error(
        "could not read column `{column}` of table `{table}`: `{value}` is not a value this version knows"
    )]
    BadValue {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The value, cut for display.
        value: String,
    },
    /// The file in which rows of the ledger wait cannot be read.
    #[error("could not read the ledger's spool: {source}")]
    Spool {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What should be an export of the ledger is none, or cannot be read.
    #[error("could not verify the export: {reason}")]
    BadExport {
        /// What is wrong with it.
        reason: String,
    },
    /// Rows are asked for that the ledger does not have.
    #[error("could not export rows {from} to {to}: the ledger has rows {first} to {last}")]
    BadRange {
        /// The first row asked for.
        from: i64,
        /// The last.
        to: i64,
        /// The first row there is.
        first: i64,
        /// The last.
        last: i64,
    },
    /// Rows were removed that an export had not come to.
    #[error(
        "could not go on with the export: the rows that come next were removed meanwhile; begin again"
    )]
    Overtaken,
    /// The store was closed.
    #[error("could not use the database: the router is shutting down")]
    Closed,
    /// Another process holds the database's lock.
    #[error(
        "could not write to the database: another process holds its lock; close other programs that have it open"
    )]
    Busy {
        /// What SQLite said.
        #[source]
        source: sqlx::Error,
    },
    /// The disk is full.
    #[error("could not write to the database: the disk is full; free some space")]
    Full {
        /// What SQLite said.
        #[source]
        source: sqlx::Error,
    },
    /// The file or its folder is read-only.
    #[error(
        "could not write to the database: it is read-only; check owner and mode of the files in the data folder"
    )]
    ReadOnly {
        /// What SQLite said.
        #[source]
        source: sqlx::Error,
    },
    /// The file is damaged, found while running.
    #[error(
        "could not use the database: it is damaged or its disk fails; stop the router and restore a backup"
    )]
    Corrupt {
        /// What SQLite said.
        #[source]
        source: sqlx::Error,
    },
    /// A statement failed for a reason that is none of the above: a fault of ours.
    #[error("could not run a database statement: {source}")]
    Statement {
        /// What SQLite said.
        #[source]
        source: sqlx::Error,
    },
}

/// What a failure means for going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreFailure {
    /// May go away by itself: try again.
    Transient,
    /// Goes away when somebody frees space.
    Space,
    /// Does not go away: stop writing.
    Fatal,
    /// The request was wrong, the database is fine.
    Request,
}

impl StoreError {
    /// What the failure means for going on.
    #[must_use]
    pub const fn failure(&self) -> StoreFailure {
        match self {
            Self::Busy { .. } | Self::Overtaken | Self::NotIndexed { .. } => {
                StoreFailure::Transient
            }
            Self::Full { .. } | Self::NoRoomToUpgrade { .. } => StoreFailure::Space,
            Self::KeyNameTaken { .. }
            | Self::UnknownServer { .. }
            | Self::BadCursor { .. }
            | Self::BadText { .. }
            | Self::TooManySums { .. }
            | Self::BadRange { .. } => StoreFailure::Request,
            Self::InUse { .. }
            | Self::NotAFolder { .. }
            | Self::Files { .. }
            | Self::NetworkFileSystem { .. }
            | Self::NewerSchema { .. }
            | Self::ForeignDatabase { .. }
            | Self::Damaged { .. }
            | Self::OldEngine { .. }
            | Self::SealKey { .. }
            | Self::LedgerKey { .. }
            | Self::NoChain { .. }
            | Self::BackupTarget { .. }
            | Self::NoBackup { .. }
            | Self::RestoreCutOff { .. }
            | Self::Sealed { .. }
            | Self::BadValue { .. }
            | Self::Spool { .. }
            | Self::BadExport { .. }
            | Self::Closed
            | Self::ReadOnly { .. }
            | Self::Corrupt { .. }
            | Self::Statement { .. } => StoreFailure::Fatal,
        }
    }

    /// How callers see it.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::KeyNameTaken { .. } | Self::Overtaken => ErrorCode::Conflict,
            Self::UnknownServer { .. } => ErrorCode::ServerNotFound,
            Self::NotIndexed { .. } => ErrorCode::LimitReached,
            Self::BadCursor { .. }
            | Self::BadText { .. }
            | Self::TooManySums { .. }
            | Self::BadRange { .. } => ErrorCode::InvalidRequest,
            Self::InUse { .. }
            | Self::NotAFolder { .. }
            | Self::Files { .. }
            | Self::NetworkFileSystem { .. }
            | Self::NewerSchema { .. }
            | Self::ForeignDatabase { .. }
            | Self::Damaged { .. }
            | Self::OldEngine { .. }
            | Self::SealKey { .. }
            | Self::LedgerKey { .. }
            | Self::NoChain { .. }
            | Self::BackupTarget { .. }
            | Self::NoBackup { .. }
            | Self::RestoreCutOff { .. }
            | Self::Sealed { .. }
            | Self::BadValue { .. }
            | Self::Spool { .. }
            | Self::BadExport { .. }
            | Self::Closed
            | Self::Busy { .. }
            | Self::Full { .. }
            | Self::NoRoomToUpgrade { .. }
            | Self::ReadOnly { .. }
            | Self::Corrupt { .. }
            | Self::Statement { .. } => ErrorCode::Unexpected,
        }
    }

    /// The exit code when this ends the start: 4 for a folder in use, 5 for a damaged or newer
    /// database, 2 for everything that the operator's settings can mend.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::InUse { .. } => 4,
            Self::NewerSchema { .. }
            | Self::ForeignDatabase { .. }
            | Self::Damaged { .. }
            | Self::BadValue { .. }
            | Self::BadExport { .. }
            | Self::Corrupt { .. } => 5,
            Self::NotAFolder { .. }
            | Self::Files { .. }
            | Self::NetworkFileSystem { .. }
            | Self::OldEngine { .. }
            | Self::SealKey { .. }
            | Self::LedgerKey { .. }
            | Self::NoChain { .. }
            | Self::BackupTarget { .. }
            | Self::NoBackup { .. }
            | Self::RestoreCutOff { .. }
            | Self::Sealed { .. }
            | Self::KeyNameTaken { .. }
            | Self::UnknownServer { .. }
            | Self::BadCursor { .. }
            | Self::BadText { .. }
            | Self::TooManySums { .. }
            | Self::NotIndexed { .. }
            | Self::Spool { .. }
            | Self::BadRange { .. }
            | Self::Overtaken
            | Self::Closed
            | Self::Busy { .. }
            | Self::Full { .. }
            | Self::NoRoomToUpgrade { .. }
            | Self::ReadOnly { .. }
            | Self::Statement { .. } => 2,
        }
    }

    /// Whether the database is fine and does not take one of the rows: it breaks a rule of a table, or is
    /// too large.
    pub(super) fn is_of_a_row(&self) -> bool {
        let Self::Statement { source } = self else { return false };
        matches!(
            primary_code(source),
            Some(result_code::CONSTRAINT | result_code::MISMATCH | result_code::TOOBIG)
        )
    }

    pub(super) fn bad_value(table: &'static str, column: &'static str, value: &str) -> Self {
        Self::BadValue { table, column, value: value.chars().take(64).collect() }
    }
}

/// SQLite's primary result codes, <https://www.sqlite.org/rescode.html>.
mod result_code {
    pub(super) const PERM: i32 = 3;
    pub(super) const BUSY: i32 = 5;
    pub(super) const LOCKED: i32 = 6;
    pub(super) const READONLY: i32 = 8;
    pub(super) const IOERR: i32 = 10;
    pub(super) const CORRUPT: i32 = 11;
    pub(super) const FULL: i32 = 13;
    pub(super) const CANTOPEN: i32 = 14;
    pub(super) const TOOBIG: i32 = 18;
    pub(super) const CONSTRAINT: i32 = 19;
    pub(super) const MISMATCH: i32 = 20;
    pub(super) const NOTADB: i32 = 26;
    /// Extended: the index of the write-ahead log could not grow, for want of space.
    pub(super) const IOERR_SHMSIZE: i32 = 4874;
}

fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let extended: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(match extended {
        result_code::IOERR_SHMSIZE => result_code::FULL,
        _ => extended & 0xff,
    })
}

impl From<sqlx::Error> for StoreError {
    fn from(source: sqlx::Error) -> Self {
        match primary_code(&source) {
            Some(result_code::BUSY | result_code::LOCKED) => Self::Busy { source },
            Some(result_code::FULL) => Self::Full { source },
            Some(result_code::READONLY | result_code::PERM | result_code::CANTOPEN) => {
                Self::ReadOnly { source }
            }
            Some(result_code::CORRUPT | result_code::NOTADB | result_code::IOERR) => {
                Self::Corrupt { source }
            }
            _ => match source {
                sqlx::Error::PoolTimedOut => Self::Busy { source },
                sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => Self::Closed,
                source => Self::Statement { source },
            },
        }
    }
}

impl StoreError {
    /// The same, met while `path` was opened: damage names the file.
    pub(super) fn while_opening(source: sqlx::Error, path: &std::path::Path) -> Self {
        match primary_code(&source) {
            Some(result_code::NOTADB) => {
                Self::Damaged { path: path.to_owned(), detail: "not a database file".to_owned() }
            }
            Some(result_code::CORRUPT) => {
                Self::Damaged { path: path.to_owned(), detail: source.to_string() }
            }
            Some(result_code::READONLY | result_code::PERM | result_code::CANTOPEN) => {
                Self::Files {
                    action: "write",
                    path: path.to_owned(),
                    source: io::Error::new(io::ErrorKind::PermissionDenied, source),
                }
            }
            _ => Self::from(source),
        }
    }
}
