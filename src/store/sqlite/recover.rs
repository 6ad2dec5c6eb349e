//! Databases that are damaged: found before anything can change them, and moved away when somebody says so.
//!
//! Changes when damage is found in another way, or something else goes with a damaged file. Nothing is ever
//! deleted here.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use sqlx::{ConnectOptions as _, Connection as _};

use super::backup::{beside, finish_restore, move_away};
use super::{
    AUDIT, STATE, Schema, Version, connect_options, files, identify, must_be_writable,
    prepare_folder, quick_check, size_of,
};
use crate::model::Timestamp;
use crate::store::{Checkpoint, Recovered, StoreError};

/// What belongs to a database file, which itself goes last: ended before that, it is there and damaged.
const BESIDE: [&str; 3] = ["-wal", "-shm", ""];
/// What is about the ledger and of no use to another one.
const OF_LEDGER: [&str; 2] = [Checkpoint::FILE, Checkpoint::OLD_FILE];

/// Looks at a database before anything can change it. Gives whether all of it was looked at, which is up to a
/// size of `up_to` bytes; `None` where there is nothing to look at, or where only a writer can look, because it
/// must roll back first what was cut off.
pub(super) async fn look(
    folder: &Path,
    schema: &Schema,
    up_to: u64,
) -> Result<Option<bool>, StoreError> {
    let path = folder.join(schema.file);
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(files("read", &path)(error)),
        Ok(file) if file.len() == 0 => return must_be_new(folder, &path).map(|()| None),
        Ok(_) => {}
    }
    for part in BESIDE {
        must_be_writable(&beside(&path, part))?;
    }
    let whole = size_of(&path).total() <= up_to;
    match examine(&path, schema, whole).await {
        Ok(()) => Ok(Some(whole)),
        Err(StoreError::Files { .. } | StoreError::ReadOnly { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// On a connection that cannot write, not even by moving the write-ahead log into the file when it is closed:
/// what is refused stays as it was found.
async fn examine(path: &Path, schema: &Schema, whole: bool) -> Result<(), StoreError> {
    let opening = |error| StoreError::while_opening(error, path);
    let options = connect_options(path, schema).read_only(true);
    let mut reader = options.connect().await.map_err(opening)?;
    let version = identify(&mut reader, path, schema).await?;
    if whole && matches!(version, Version::Known(_)) {
        quick_check(&mut reader, path).await?;
    }
    reader.close().await.map_err(opening)
}

/// An empty file is left by a first start that was cut off. Later, whatever was in it is lost: the key of
/// the ledger is made when both databases are.
fn must_be_new(folder: &Path, path: &Path) -> Result<(), StoreError> {
    if folder.join("ledger.key").exists() {
        let detail = "it is empty, and something was in it".to_owned();
        return Err(StoreError::Damaged { path: path.to_owned(), detail });
    }
    Ok(())
}

/// Says that a folder that had both databases has lost the one that a start makes anew without a word.
pub(super) fn warn_of_missing(folder: &Path) {
    let has = |file| folder.join(file).exists();
    if has("ledger.key") && has(AUDIT.file) && !has(STATE.file) {
        tracing::warn!(
            "`{}` is missing beside `{}`, and is made anew: servers that were added while the router ran, keys, sessions and the history of tools are not known any more. If it was not removed on purpose, stop the router and restore a backup",
            folder.join(STATE.file).display(),
            AUDIT.file
        );
    }
}

/// Moves damaged databases away. Reads both whole, so that it finds all that there is.
pub(in crate::store) async fn recover(
    folder: &Path,
    now: Timestamp,
) -> Result<Vec<Recovered>, StoreError> {
    let _lock = prepare_folder(folder).await?;
    finish_restore(folder)?;
    // Both before either is moved: what cannot be opened for another reason leaves all as it is.
    let mut damaged = Vec::new();
    for schema in [&STATE, &AUDIT] {
        match look(folder, schema, u64::MAX).await {
            Ok(_) => {}
            Err(StoreError::Damaged { detail, .. }) => damaged.push((schema.file, detail)),
            Err(error) => return Err(error),
        }
    }
    let mut moved = Vec::new();
    for (file, detail) in damaged {
        let path = folder.join(file);
        let end = ending(&path, now);
        if file == AUDIT.file {
            for name in OF_LEDGER {
                move_away(&folder.join(name), &beside(&folder.join(name), &end))?;
            }
        }
        for part in BESIDE {
            move_away(&beside(&path, part), &beside(&beside(&path, &end), part))?;
        }
        moved.push(Recovered { file, moved_to: beside(&path, &end), detail });
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(files("write", folder))?;
    Ok(moved)
}

/// What nothing of this file ends in yet: also not a log that was moved away by a recovery that was cut off.
fn ending(path: &Path, now: Timestamp) -> String {
    let time: String =
        now.to_string().chars().filter(|c| c.is_ascii_alphanumeric()).take(15).collect();
    let plain = format!(".corrupt-{time}Z");
    let is_free =
        |end: &String| BESIDE.iter().all(|part| !beside(&beside(path, end), part).exists());
    if is_free(&plain) {
        return plain;
    }
    let mut others = (2_u32..).map(|number| format!("{plain}.{number}"));
    others.find(is_free).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_given_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.db");
        let now = Timestamp::from_millis(1_796_000_000_123);
        for (expected, taken) in [("", "-wal"), (".2", ""), (".3", "")] {
            let end = ending(&path, now);
            assert_eq!(end, format!(".corrupt-20261130T005320Z{expected}"));
            fs::write(beside(&beside(&path, &end), taken), "").unwrap();
        }
    }
}
