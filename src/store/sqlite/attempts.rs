//! SQL of table `attempts`: what was tried for each call of the ledger.

use std::sync::LazyLock;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, SqlitePool, Transaction};

use super::audit::{duration, micros, parse_failure, statements};
use super::{CHUNK, multi_row};
use crate::model::{Failure, Outcome};
use crate::store::{AttemptRow, CallRow, StoreError};

const TABLE: &str = "attempts";

const HEAD: &str = "insert into attempts
    (seq, n, began_us, took_us, outcome, failure, error, http_status, probe)";
const COLUMNS: usize = 9;

static INSERT: LazyLock<[&str; 2]> =
    LazyLock::new(|| [CHUNK, 1].map(|rows| multi_row(HEAD, COLUMNS, rows, "")));

/// Stores the attempts of calls that have their numbers.
pub(super) async fn insert_attempts(
    transaction: &mut Transaction<'_, Sqlite>,
    calls: &[(i64, &CallRow)],
) -> Result<(), StoreError> {
    // Of all calls at once: most have one attempt, and a statement for each call is what costs.
    let attempts: Vec<(i64, u32, &AttemptRow)> = calls
        .iter()
        .flat_map(|(seq, call)| (1..).zip(&call.attempt_list).map(|(n, row)| (*seq, n, row)))
        .collect();
    let [many, one] = *INSERT;
    for (sql, rows) in statements(&attempts, many, one) {
        rows.iter()
            .fold(sqlx::query(sql), |query, (seq, n, row)| {
                query
                    .bind(*seq)
                    .bind(*n)
                    .bind(micros(row.began))
                    .bind(micros(row.took))
                    .bind(row.outcome.as_str())
                    .bind(row.failure.map(Failure::as_str))
                    .bind(row.error.as_deref())
                    .bind(row.http_status)
                    .bind(row.probe)
            })
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

/// The attempts of one call, in their order.
pub(super) async fn attempts_of(
    readers: &SqlitePool,
    seq: i64,
) -> Result<Vec<AttemptRow>, StoreError> {
    let rows = sqlx::query(
        "select began_us, took_us, outcome, failure, error, http_status, probe
         from attempts where seq = ? order by n",
    )
    .bind(seq)
    .fetch_all(readers)
    .await?;
    rows.iter().map(attempt).collect()
}

fn attempt(row: &SqliteRow) -> Result<AttemptRow, StoreError> {
    let bad = |column: &'static str, value: &str| StoreError::bad_value(TABLE, column, value);
    let outcome: &str = row.try_get("outcome")?;
    let failure: Option<&str> = row.try_get("failure")?;
    Ok(AttemptRow {
        began: duration(TABLE, row, "began_us")?,
        took: duration(TABLE, row, "took_us")?,
        outcome: Outcome::parse(outcome).ok_or_else(|| bad("outcome", outcome))?,
        failure: failure
            .map(|name| parse_failure(name).ok_or_else(|| bad("failure", name)))
            .transpose()?,
        error: row.try_get("error")?,
        http_status: row.try_get("http_status")?,
        probe: row.try_get("probe")?,
    })
}
