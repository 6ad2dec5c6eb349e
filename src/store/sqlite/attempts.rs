//! SQL of table `attempts`: what was tried for each call of the ledger.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqlitePool};

use super::audit::{duration, parse_failure};
use super::ledger::micros;
use crate::model::{Failure, Outcome};
use crate::store::chain::{ATTEMPT_COLUMNS, Value};
use crate::store::{AttemptRow, StoreError};

const TABLE: &str = "attempts";

/// The columns of an attempt after `seq`, in their order.
pub(super) fn attempt_values(n: i64, row: &AttemptRow) -> [Value<'_>; ATTEMPT_COLUMNS.len()] {
    [
        Value::Integer(n),
        Value::Integer(micros(row.began)),
        Value::Integer(micros(row.took)),
        Value::text(row.outcome.as_str()),
        Value::maybe_text(row.failure.map(Failure::as_str)),
        Value::maybe_text(row.error.as_deref()),
        row.http_status.map_or(Value::Null, |status| Value::Integer(status.into())),
        Value::Integer(row.probe.into()),
    ]
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

pub(super) fn attempt(row: &SqliteRow) -> Result<AttemptRow, StoreError> {
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
