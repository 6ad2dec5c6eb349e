//! Bringing older files up to date: all of them, or none.
//!
//! Changes when an upgrade needs something else before it changes a file. What it changes is in
//! `migrations/`. Copies of all older files are made before the first is changed, where there is room for
//! them: else a disk that fills up leaves one file that the previous version does not open any more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, SqliteConnection, raw_sql};

use super::backup::beside;
use super::{Opening, Schema, Version, begin, create_private, files, stamp};
use crate::store::StoreError;

/// What the changes themselves write: migrations add tables and columns and fill none.
const ROOM: u64 = 2 << 20;

/// Copies of older files, as they were.
#[derive(Default)]
pub(super) struct Copies {
    made: Vec<(&'static str, PathBuf)>,
}

impl Copies {
    /// Copies those of these files that are older. None is left when that fails.
    pub(super) async fn make(
        folder: &Path,
        opened: &mut [&mut Opening<'_>],
    ) -> Result<Self, StoreError> {
        let mut copies = Self::default();
        let mut needed = 0_u64;
        for opening in opened.iter_mut().filter(|opening| opening.is_older()) {
            let copy = opening.copy();
            let bytes = used_bytes(&mut opening.writer, &opening.path).await?;
            // What is left of one that was cut off makes room for it.
            let left = fs::metadata(&copy).map_or(0, |file| file.len());
            needed = needed.saturating_add(bytes.saturating_sub(left));
            copies.made.push((opening.schema.file, copy));
        }
        if copies.is_none() {
            return Ok(copies);
        }
        must_fit(folder, needed.saturating_add(ROOM))?;
        let written = copies.write(opened).await;
        written.inspect_err(|_error| copies.made.iter().for_each(|(_, copy)| forget(copy)))?;
        Ok(copies)
    }

    async fn write(&self, opened: &mut [&mut Opening<'_>]) -> Result<(), StoreError> {
        for opening in opened {
            let copy = self.made.iter().find(|(file, _)| *file == opening.schema.file);
            let Some((_, copy)) = copy else { continue };
            remove(copy)?;
            create_private(copy)?;
            sqlx::query("vacuum into ?")
                .bind(copy.to_string_lossy().into_owned())
                .execute(&mut opening.writer)
                .await
                .map_err(|error| StoreError::while_opening(error, &opening.path))?;
        }
        Ok(())
    }

    pub(super) const fn is_none(&self) -> bool {
        self.made.is_empty()
    }

    /// Removes that of a file that was not changed after all: it would take its space for nothing.
    pub(super) fn forget(&self, schema: &Schema) {
        let of = self.made.iter().filter(|(file, _)| *file == schema.file);
        of.for_each(|(_, copy)| forget(copy));
    }
}

impl Opening<'_> {
    fn is_older(&self) -> bool {
        matches!(self.version, Version::Known(version) if version < self.schema.migrations.len())
    }

    /// Where a copy of it goes.
    fn copy(&self) -> PathBuf {
        match self.version {
            Version::Known(version) => self.path.with_extension(format!("v{version}.db")),
            Version::Empty => self.path.with_extension("v0.db"),
        }
    }
}

/// Brings an older file up to date in one transaction.
pub(super) async fn migrate(
    writer: &mut SqliteConnection,
    path: &Path,
    schema: &Schema,
    version: usize,
) -> Result<(), StoreError> {
    let pending = schema.migrations.get(version..).unwrap_or_default();
    if pending.is_empty() {
        return Ok(());
    }
    let mut transaction = begin(writer).await?;
    let script = format!("{} {}", pending.concat(), stamp(schema));
    raw_sql(AssertSqlSafe(script)).execute(&mut *transaction).await?;
    let broken: Option<SqliteRow> = sqlx::query("select * from pragma_foreign_key_check limit 1")
        .fetch_optional(&mut *transaction)
        .await?;
    if broken.is_some() {
        return Err(StoreError::Damaged {
            path: path.to_owned(),
            detail: "rows refer to others that are not there".to_owned(),
        });
    }
    transaction.commit().await?;
    Ok(())
}

/// What a copy of the file takes.
async fn used_bytes(writer: &mut SqliteConnection, path: &Path) -> Result<u64, StoreError> {
    let bytes: i64 = sqlx::query_scalar(
        "select (select page_count from pragma_page_count)
              - (select freelist_count from pragma_freelist_count)",
    )
    .fetch_one(&mut *writer)
    .await
    .map_err(|error| StoreError::while_opening(error, path))?;
    let page: i64 = sqlx::query_scalar("select page_size from pragma_page_size")
        .fetch_one(writer)
        .await
        .map_err(|error| StoreError::while_opening(error, path))?;
    Ok(u64::try_from(bytes.saturating_mul(page)).unwrap_or(0))
}

fn must_fit(folder: &Path, needed: u64) -> Result<(), StoreError> {
    // A file system that does not say how large it is has room.
    let Ok(disk) = statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if disk.f_blocks == 0 || free >= needed {
        return Ok(());
    }
    Err(StoreError::NoRoomToUpgrade { path: folder.to_owned(), needed, free })
}

fn remove(copy: &Path) -> Result<(), StoreError> {
    for part in ["-journal", "-wal", "-shm", ""] {
        let path = beside(copy, part);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(files("write", &path)(error));
            }
            Err(_) | Ok(()) => {}
        }
    }
    Ok(())
}

/// As far as that goes: what is told is why it is of no use.
fn forget(copy: &Path) {
    if let Err(error) = remove(copy) {
        tracing::warn!(%error, "a copy that is of no use is left: {error}");
    }
}
