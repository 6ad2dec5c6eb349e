//! Whether the tables of a ledger are those that were made.
//!
//! Changes when a migration adds a table. Without its tables nothing can be verified row by row, and yet it is
//! known that somebody changed the file.

use sqlx::{AssertSqlSafe, SqliteConnection};

use super::super::Version;
use crate::store::chain::{ATTEMPT_COLUMNS, CALL_COLUMNS, ENTRY_COLUMNS, LedgerKey};
use crate::store::{Checkpoint, StoreError};

/// The first version of the file that has a chain.
const CHAINED: usize = 4;
/// The columns of the one row of table `ledger`.
const LEDGER: &str = "id, chain, key_id, base_seq, base_hash, head_seq, head_hash, mac";

/// Whether every table has all its columns.
pub(super) async fn are_whole(reader: &mut SqliteConnection) -> Result<bool, StoreError> {
    let tables = [
        ("ledger", LEDGER.to_owned()),
        ("calls", format!("seq, {}, hash", CALL_COLUMNS.join(", "))),
        ("attempts", format!("seq, {}", ATTEMPT_COLUMNS.join(", "))),
        ("entries", format!("seq, {}, hash", ENTRY_COLUMNS.join(", "))),
        ("payloads", "seq, arguments, result".to_owned()),
    ];
    for (table, columns) in tables {
        if !has(reader, table, &columns).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a file that says that it is older, or empty, was made to say so.
pub(super) async fn is_set_back(
    reader: &mut SqliteConnection,
    version: &Version,
    key: &LedgerKey,
    checkpoints: &[Checkpoint],
) -> Result<bool, StoreError> {
    let is_chained = match version {
        Version::Known(version) => *version >= CHAINED,
        Version::Empty => false,
    };
    if !is_chained && checkpoints.iter().any(|one| one.is_signed_by(key)) {
        return Ok(true);
    }
    Ok(are_whole(reader).await? || (is_chained && !has(reader, "ledger", LEDGER).await?))
}

async fn has(
    reader: &mut SqliteConnection,
    table: &str,
    columns: &str,
) -> Result<bool, StoreError> {
    let sql = format!("select {columns} from {table} limit 0");
    match sqlx::query(AssertSqlSafe(sql)).fetch_optional(reader).await.map_err(StoreError::from) {
        Ok(_none) => Ok(true),
        Err(StoreError::Statement { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
