//! SQL that reads the ledger in the order of its commits, a short stretch at a time: for exports and
//! tails.
//!
//! A read transaction keeps the write-ahead log from being moved to the file, so none here grows
//! with the ledger or with the patience of whoever reads.

use std::collections::HashMap;

use futures_util::TryStreamExt as _;
use sqlx::{Acquire as _, QueryBuilder, Row as _, Sqlite, Transaction};

use super::SqliteStore;
use super::attempts::attempt;
use super::audit::{SELECT, call};
use super::entries::entries_between;
use super::index::{has_text, parse_text, push_filter};
use crate::store::{AuditFilter, CallRow, Depth, EntryFilter, StoreError, Stretch, WholeStretch};

/// Calls that one statement looks at: some tens of milliseconds, also when none of them is wanted.
const LOOKED_AT: i64 = 16_384;
/// Bytes of payloads in a stretch, unless a single call has more.
const PAYLOAD_BYTES: i64 = 4 * 1024 * 1024;
/// Rows read before other tasks of the thread, which are calls, get a turn.
const AT_ONCE: usize = 32;

impl SqliteStore {
    pub(in crate::store) async fn audit_stretch(
        &self,
        filter: &AuditFilter,
        after: i64,
        through: Option<i64>,
        limit: u16,
        depth: Depth,
    ) -> Result<Stretch<CallRow>, StoreError> {
        let mut connection = self.audit.readers.acquire().await?;
        let mut transaction = connection.begin().await?;
        // Numbers may be missing; a hole must not cost a statement for each of its parts.
        let bounds = sqlx::query(
            "select (select min(seq) from calls where seq > ?), (select max(seq) from calls)",
        )
        .bind(after)
        .fetch_one(&mut *transaction)
        .await?;
        let (first, newest): (Option<i64>, Option<i64>) = (bounds.try_get(0)?, bounds.try_get(1)?);
        let end = through.or(newest).unwrap_or(after).max(after);
        let Some(first) = first.filter(|first| *first <= end) else {
            return Ok(Stretch { calls: Vec::new(), reached: end });
        };
        let last = first.saturating_add(LOOKED_AT - 1).min(end);
        let limit = limit.max(1);
        let mut calls = matching(&mut transaction, filter, first, last, limit).await?;
        let mut cut = calls.len() == usize::from(limit);
        if depth == Depth::Payloads {
            cut |= add_payloads(&mut transaction, &mut calls).await?;
        }
        if depth != Depth::Call {
            add_attempts(&mut transaction, &mut calls).await?;
        }
        transaction.commit().await?;
        let reached = calls.last().filter(|_| cut).map_or(last, |call| call.seq);
        Ok(Stretch { calls, reached })
    }

    /// Both tables in one transaction: a row of the one must not come after a later one of the other was given.
    pub(in crate::store) async fn audit_whole_stretch(
        &self,
        filter: &AuditFilter,
        wanted: &EntryFilter,
        after: i64,
        limit: u16,
    ) -> Result<WholeStretch, StoreError> {
        let mut connection = self.audit.readers.acquire().await?;
        let mut transaction = connection.begin().await?;
        let bounds = sqlx::query(
            "select (select min(seq) from (select min(seq) as seq from calls where seq > ?1
                        union all select min(seq) from entries where seq > ?1)),
                    (select max(seq) from (select max(seq) as seq from calls
                        union all select max(seq) from entries))",
        )
        .bind(after)
        .fetch_one(&mut *transaction)
        .await?;
        let (first, newest): (Option<i64>, Option<i64>) = (bounds.try_get(0)?, bounds.try_get(1)?);
        let Some(first) = first else {
            let reached = newest.unwrap_or(after).max(after);
            return Ok(WholeStretch { calls: Vec::new(), entries: Vec::new(), reached });
        };
        let end = newest.unwrap_or(first);
        let last = first.saturating_add(LOOKED_AT - 1).min(end);
        let limit = limit.max(1);
        let mut calls = matching(&mut transaction, filter, first, last, limit).await?;
        let mut entries = entries_between(&mut transaction, wanted, first, last, limit).await?;
        transaction.commit().await?;
        // Beyond the last of a kind that was cut there may be more of it.
        let is_cut = |count: usize| count >= usize::from(limit);
        let call = calls.last().filter(|_| is_cut(calls.len())).map_or(last, |call| call.seq);
        let entry = entries.last().filter(|_| is_cut(entries.len())).map_or(last, |row| row.seq);
        let reached = call.min(entry);
        calls.retain(|call| call.seq <= reached);
        entries.retain(|entry| entry.seq <= reached);
        Ok(WholeStretch { calls, entries, reached })
    }

    /// All connections that questions from outside are answered with.
    #[cfg(test)]
    pub(in crate::store) async fn hold_readers(&self) -> Vec<sqlx::pool::PoolConnection<Sqlite>> {
        let mut held = Vec::new();
        for _ in 0..super::READERS {
            held.extend(self.audit.readers.acquire().await);
        }
        held
    }

    pub(in crate::store) async fn audit_newest(&self) -> Result<i64, StoreError> {
        let newest: Option<i64> =
            sqlx::query_scalar("select max(seq) from calls").fetch_one(&self.audit.readers).await?;
        Ok(newest.unwrap_or(0))
    }

    pub(in crate::store) async fn audit_end(&self) -> Result<i64, StoreError> {
        let newest: Option<i64> = sqlx::query_scalar(
            "select max(seq) from (select max(seq) as seq from calls
                union all select max(seq) from entries)",
        )
        .fetch_one(&self.audit.readers)
        .await?;
        Ok(newest.unwrap_or(0))
    }
}

/// Calls from `first` to `last` that the filter admits, oldest first.
async fn matching(
    transaction: &mut Transaction<'_, Sqlite>,
    filter: &AuditFilter,
    first: i64,
    last: i64,
    limit: u16,
) -> Result<Vec<CallRow>, StoreError> {
    let text = filter.text.as_deref().map(parse_text).transpose()?;
    let mut query = QueryBuilder::new(SELECT);
    query.push(match text {
        Some(_) => ", p.arguments, p.result from calls c left join payloads p on p.seq = c.seq",
        None => " from calls c",
    });
    query.push(" where c.seq >= ").push_bind(first).push(" and c.seq <= ").push_bind(last);
    push_filter(&mut query, filter);
    query.push(" order by c.seq");
    if text.is_none() {
        query.push(" limit ").push_bind(i64::from(limit));
    }
    let mut rows = query.build().fetch(&mut **transaction);
    let (mut calls, mut read) = (Vec::new(), 0_usize);
    while let Some(row) = rows.try_next().await? {
        read += 1;
        if read.is_multiple_of(AT_ONCE) {
            tokio::task::yield_now().await;
        }
        if text.as_ref().is_some_and(|text| !has_text(text, &row)) {
            continue;
        }
        calls.push(call(&row)?);
        if calls.len() == usize::from(limit) {
            break;
        }
    }
    Ok(calls)
}

/// The numbers as one value: the statement is the same for any count of them.
fn numbers(calls: &[CallRow]) -> String {
    let numbers: Vec<String> = calls.iter().map(|call| call.seq.to_string()).collect();
    format!("[{}]", numbers.join(","))
}

async fn add_attempts(
    transaction: &mut Transaction<'_, Sqlite>,
    calls: &mut [CallRow],
) -> Result<(), StoreError> {
    let numbers = numbers(calls);
    let mut rows = sqlx::query(
        "select seq, began_us, took_us, outcome, failure, error, http_status, probe
         from attempts where seq in (select value from json_each(?)) order by seq, n",
    )
    .bind(numbers)
    .fetch(&mut **transaction);
    let mut found = HashMap::new();
    let mut read = 0_usize;
    while let Some(row) = rows.try_next().await? {
        let seq: i64 = row.try_get("seq")?;
        found.entry(seq).or_insert_with(Vec::new).push(attempt(&row)?);
        read += 1;
        if read.is_multiple_of(AT_ONCE) {
            tokio::task::yield_now().await;
        }
    }
    for call in calls {
        call.attempt_list = found.remove(&call.seq).unwrap_or_default();
    }
    Ok(())
}

/// Adds payloads, and lets go of the calls whose payloads are too much for this stretch; says
/// whether there were any.
async fn add_payloads(
    transaction: &mut Transaction<'_, Sqlite>,
    calls: &mut Vec<CallRow>,
) -> Result<bool, StoreError> {
    // The lengths stand in the rows' heads: the texts themselves are not read for them.
    let rows = sqlx::query(
        "select seq, coalesce(octet_length(arguments), 0) + coalesce(octet_length(result), 0)
         from payloads where seq in (select value from json_each(?))",
    )
    .bind(numbers(calls))
    .fetch_all(&mut **transaction)
    .await?;
    let mut lengths = HashMap::new();
    for row in &rows {
        let (seq, length): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        lengths.insert(seq, length);
    }
    let mut total = 0_i64;
    let fitting = calls
        .iter()
        .take_while(|call| {
            total = total.saturating_add(lengths.get(&call.seq).copied().unwrap_or(0));
            total <= PAYLOAD_BYTES
        })
        .count();
    let cut = fitting < calls.len();
    calls.truncate(fitting.max(1));
    let rows = sqlx::query(
        "select seq, arguments, result from payloads
         where seq in (select value from json_each(?))",
    )
    .bind(numbers(calls))
    .fetch_all(&mut **transaction)
    .await?;
    let mut found = HashMap::new();
    for row in &rows {
        let seq: i64 = row.try_get("seq")?;
        found.insert(seq, (row.try_get("arguments")?, row.try_get("result")?));
    }
    for call in calls {
        (call.arguments, call.result) = found.remove(&call.seq).unwrap_or_default();
    }
    Ok(cut)
}
