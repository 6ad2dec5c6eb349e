//! Copies of the data folder's databases and keys, and putting them back.
//!
//! Changes when the data folder holds something else that a backup needs. A backup is a folder that is
//! there whole or not at all: it is made under another name and renamed. A restore is laid out beside
//! the files it replaces and then announced by one rename; who opens the data folder after that finishes
//! what was begun, so that a router meets what was there before or what was restored.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sqlx::{ConnectOptions as _, Connection as _};

use super::expire::written;
use super::{
    AUDIT, STATE, Schema, SqliteStore, Version, connect_options, create_private, files, identify,
    ledger_key, prepare_folder, quick_check,
};
use crate::model::Timestamp;
use crate::store::{Backup, Checkpoint, StoreError};

/// Kept beside the databases; a data folder need not have all of them.
const KEYS: [&str; 2] = ["ledger.key", "seal.key"];
/// Signed ends of the ledger. The first becomes the second when it is large: copied in this order, none is missed.
const SIGNED: [&str; 2] = [Checkpoint::FILE, Checkpoint::OLD_FILE];
/// Made anew from the ledger when they are missing; those of another ledger are wrong.
const DERIVED: [&str; 1] = ["audit-index.db"];
/// What belongs to a database file.
const BESIDE: [&str; 3] = ["", "-wal", "-shm"];
/// Where a restore is laid out, and where it is once all of it is there.
const LAID_OUT: &str = "restore.new";
const READY: &str = "restore.ready";
/// Where what a restore replaced is kept.
pub(super) const REPLACED: &str = "replaced";
/// Is there until a router has put on record that there was a restore.
const RESTORED: &str = "restored";

/// Copies databases and keys in `data_dir` into the new folder `target`, also while a router runs.
pub(in crate::store) async fn backup(data_dir: &Path, target: &Path) -> Result<Backup, StoreError> {
    must_be_whole(data_dir)?;
    let refuse = |reason| StoreError::BackupTarget { path: target.to_owned(), reason };
    let name = target.file_name().ok_or_else(|| refuse("it has no name"))?;
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let parent = parent.canonicalize().map_err(files("read", parent))?;
    let inside = data_dir.canonicalize().map_err(files("read", data_dir))?;
    if parent.starts_with(inside) {
        return Err(refuse("it lies inside the data folder"));
    }
    let target = parent.join(name);
    if fs::symlink_metadata(&target).is_ok() {
        return Err(refuse("it is there already"));
    }
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".partial");
    let partial = parent.join(hidden);
    let bytes = match copy_all(data_dir, &partial).await {
        Ok(bytes) => bytes,
        Err(error) => {
            // What cannot be removed is in nobody's way: the next backup of this name tries again.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
    };
    fs::rename(&partial, &target).map_err(files("create", &target))?;
    sync(&parent)?;
    Ok(Backup { folder: target, bytes })
}

/// Puts the backup `from` in the place of what is in `data_dir`, which no router may use meanwhile.
pub(in crate::store) async fn restore(data_dir: &Path, from: &Path) -> Result<Backup, StoreError> {
    must_be_whole(from)?;
    let _lock = prepare_folder(data_dir).await?;
    // One that was cut off is finished first: its files must not be mixed with these.
    finish_restore(data_dir)?;
    let laid_out = data_dir.join(LAID_OUT);
    let bytes = copy_all(from, &laid_out).await?;
    check_key(&laid_out).await?;
    // The next one's: with it, what an earlier restore replaced is gone.
    remove_folder(&data_dir.join(REPLACED))?;
    let ready = data_dir.join(READY);
    fs::rename(&laid_out, &ready).map_err(files("create", &ready))?;
    sync(data_dir)?;
    finish_restore(data_dir)?;
    Ok(Backup { folder: data_dir.to_owned(), bytes })
}

/// Ends a restore that was laid out. Whoever calls this holds the lock on the folder.
///
/// Each of its steps can be the last one before the process is killed: a file that was restored is not
/// among those that are laid out any more.
pub(super) fn finish_restore(data_dir: &Path) -> Result<(), StoreError> {
    // One that was cut off before all of it was there.
    remove_folder(&data_dir.join(LAID_OUT))?;
    let ready = data_dir.join(READY);
    if !ready.is_dir() {
        return Ok(());
    }
    let replaced = data_dir.join(REPLACED);
    private_folder(&replaced)?;
    for name in [AUDIT.file, STATE.file].iter().chain(&KEYS).chain(&SIGNED) {
        let (new, old) = (ready.join(name), data_dir.join(name));
        if !new.exists() {
            continue;
        }
        for end in BESIDE {
            move_away(&beside(&old, end), &beside(&replaced.join(name), end))?;
        }
        // A log that comes after its file would be taken for a part of the restored one.
        sync(&replaced)?;
        sync(data_dir)?;
        fs::rename(&new, &old).map_err(files("write", &old))?;
        sync(data_dir)?;
    }
    for end in BESIDE {
        for name in DERIVED {
            let path = beside(&data_dir.join(name), end);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(files("write", &path)(error));
                }
                Err(_) | Ok(()) => {}
            }
        }
    }
    // For the next router, which puts it on record.
    let mark = data_dir.join(RESTORED);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&mark)
        .map_err(files("create", &mark))?;
    remove_folder(&ready)?;
    sync(data_dir)
}

impl SqliteStore {
    /// When the folder was restored, as long as that is not on record.
    pub(in crate::store) fn restored_at(&self) -> Option<Timestamp> {
        written(&self.audit.path.with_file_name(RESTORED))
    }

    /// It is on record.
    pub(in crate::store) fn forget_restore(&self) {
        // If the file stays, it is said once more.
        let _ = fs::remove_file(self.audit.path.with_file_name(RESTORED));
    }
}

/// Refuses a folder in which a restore was cut off: it is neither the one nor the other.
pub(super) fn must_be_whole(folder: &Path) -> Result<(), StoreError> {
    if folder.join(READY).is_dir() {
        return Err(StoreError::RestoreCutOff { path: folder.to_owned() });
    }
    Ok(())
}

/// Copies what a backup consists of into a new folder, checks it, and puts it on disk.
async fn copy_all(from: &Path, to: &Path) -> Result<u64, StoreError> {
    remove_folder(to)?;
    private_folder(to)?;
    let mut bytes = 0_u64;
    // Before the ledger: what is signed while that is copied is not in the copy.
    for name in SIGNED {
        match copy_file(from, to, name)? {
            Some(length) => bytes = bytes.saturating_add(length),
            // A folder without signed ends of its ledger must not keep another ledger's.
            None => create_private(&to.join(name)).map(drop)?,
        }
    }
    for schema in [&AUDIT, &STATE] {
        bytes = bytes.saturating_add(copy_database(from, to, schema).await?);
    }
    // After the databases: a key is made before what needs it.
    for name in KEYS {
        bytes = bytes.saturating_add(copy_file(from, to, name)?.unwrap_or(0));
    }
    sync(to)?;
    Ok(bytes)
}

/// Copies a file, if it is there, and gives its length.
fn copy_file(from: &Path, to: &Path, name: &str) -> Result<Option<u64>, StoreError> {
    let (source, copy) = (from.join(name), to.join(name));
    let mut reader = match File::open(&source) {
        Ok(reader) => reader,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(files("read", &source)(error)),
    };
    let mut writer = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&copy)
        .map_err(files("create", &copy))?;
    let copied = io::copy(&mut reader, &mut writer).and_then(|length| {
        writer.sync_all()?;
        Ok(length)
    });
    copied.map(Some).map_err(files("write", &copy))
}

async fn copy_database(from: &Path, to: &Path, schema: &Schema) -> Result<u64, StoreError> {
    let (source, copy) = (from.join(schema.file), to.join(schema.file));
    if !source.is_file() {
        return Err(StoreError::NoBackup { path: from.to_owned(), file: schema.file });
    }
    let opening = |error| StoreError::while_opening(error, &source);
    let mut reader = connect_options(&source, schema).connect().await.map_err(opening)?;
    if let Version::Empty = identify(&mut reader, &source, schema).await? {
        return Err(StoreError::NoBackup { path: from.to_owned(), file: schema.file });
    }
    create_private(&copy)?;
    sqlx::query("vacuum into ?")
        .bind(copy.to_string_lossy().into_owned())
        .execute(&mut reader)
        .await
        .map_err(opening)?;
    // Nothing was written: a log that others use stays theirs.
    reader.close().await?;
    let mut check = connect_options(&copy, schema)
        .pragma("query_only", "on")
        .connect()
        .await
        .map_err(|error| StoreError::while_opening(error, &copy))?;
    quick_check(&mut check, &copy).await?;
    check.close().await?;
    sync(&copy)?;
    Ok(fs::metadata(&copy).map_err(files("read", &copy))?.len())
}

/// A ledger without its key could never be written again.
async fn check_key(folder: &Path) -> Result<(), StoreError> {
    let (path, key_path) = (folder.join(AUDIT.file), folder.join("ledger.key"));
    let lacking = |reason| StoreError::LedgerKey { path: key_path.clone(), reason };
    let options = connect_options(&path, &AUDIT).pragma("query_only", "on");
    let mut reader =
        options.connect().await.map_err(|error| StoreError::while_opening(error, &path))?;
    let known: Option<String> =
        sqlx::query_scalar("select name from sqlite_schema where name = 'ledger'")
            .fetch_optional(&mut reader)
            .await?;
    let id: Option<Vec<u8>> = match known {
        // One of an older version, which gets its key when it is opened.
        None => None,
        Some(_) => {
            sqlx::query_scalar("select key_id from ledger where id = 1")
                .fetch_optional(&mut reader)
                .await?
        }
    };
    reader.close().await?;
    match (id, ledger_key::read(&key_path)?) {
        (None, _) => Ok(()),
        (Some(_), None) => Err(lacking("it is missing from the backup")),
        (Some(id), Some(key)) if id == key.id() => Ok(()),
        (Some(_), Some(_)) => Err(lacking("it is another one")),
    }
}

pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn private_folder(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(files("create", path)),
    }
}

fn remove_folder(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(files("write", path)),
    }
}

pub(super) fn move_away(from: &Path, to: &Path) -> Result<(), StoreError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        moved => moved.map_err(files("write", from)),
    }
}

/// Puts a file, or the names in a folder, on disk.
fn sync(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(files("write", path))
}
