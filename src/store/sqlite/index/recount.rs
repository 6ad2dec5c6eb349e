//! Counting anew what is in the same minute as calls that left the ledger.
//!
//! Changes when sums are kept differently. Calls leave in the order of their commits, which is not quite
//! that of their times: some of a minute can be gone and others left.

use std::collections::{BTreeSet, HashMap};

use futures_util::TryStreamExt as _;
use sqlx::{Connection as _, Row, Sqlite, Transaction};

use super::follow::{Follower, HOUR, MINUTE, is_away, is_fault};
use super::postings::{CHUNK, Places, chunk_of, decode_times, place_of};
use super::rollup::{CellKey, Cells, FAULT, for_each, merge};
use super::{Dimension, Index, damaged};
use crate::store::StoreError;

/// Rows before other tasks of the thread get a turn.
const ROWS_AT_ONCE: usize = 128;

/// Notes the minutes to count anew when the calls before `seq` go; called while the index still has them.
pub(super) async fn note_minutes(
    transaction: &mut Transaction<'_, Sqlite>,
    index: &Index,
    seq: i64,
) -> Result<(), StoreError> {
    let boundary = chunk_of(seq);
    let kept: Option<i64> = sqlx::query_scalar("select min(min_ms) from chunks where chunk > ?")
        .bind(boundary)
        .fetch_one(&mut **transaction)
        .await?;
    let mut oldest = kept.unwrap_or(i64::MAX);
    let mut gone = Vec::new();
    for (place, at) in times_of(transaction, index, boundary).await? {
        if place < place_of(seq) {
            gone.push(at);
        } else {
            oldest = oldest.min(at);
        }
    }
    let first = oldest.div_euclid(MINUTE).saturating_mul(MINUTE);
    let mut minutes: BTreeSet<i64> =
        gone.iter().filter(|at| **at >= first).map(|at| at.div_euclid(MINUTE) * MINUTE).collect();
    let chunks: Vec<i64> =
        sqlx::query_scalar("select chunk from chunks where chunk < ? and max_ms >= ?")
            .bind(boundary)
            .bind(first)
            .fetch_all(&mut **transaction)
            .await?;
    let mut any = !gone.is_empty();
    for chunk in chunks {
        let times = times_of(transaction, index, chunk).await?;
        let times = times.into_iter().map(|(_, at)| at).filter(|at| *at >= first);
        minutes.extend(times.map(|at| at.div_euclid(MINUTE) * MINUTE));
        tokio::task::yield_now().await;
    }
    any |= sqlx::query_scalar::<_, bool>("select exists (select 1 from chunks where chunk < ?)")
        .bind(boundary)
        .fetch_one(&mut **transaction)
        .await?;
    // The hour of the oldest call that is left has lost whole minutes.
    if any && oldest < i64::MAX {
        minutes.insert(first);
    }
    for minute in minutes {
        sqlx::query("insert or ignore into recounts values (?)")
            .bind(minute)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

/// The places of a chunk that have a call, and when each of these came in.
pub(super) async fn times_of(
    transaction: &mut Transaction<'_, Sqlite>,
    index: &Index,
    chunk: i64,
) -> Result<Vec<(u16, i64)>, StoreError> {
    let stored = sqlx::query("select places, times from times where chunk = ?")
        .bind(chunk)
        .fetch_optional(&mut **transaction)
        .await?;
    let Some(stored) = stored else { return Ok(Vec::new()) };
    let bad = || damaged(&index.path, "times");
    let places = Places::decode(stored.try_get(0)?).ok_or_else(bad)?;
    let times = decode_times(stored.try_get(1)?).ok_or_else(bad)?;
    Ok(places.ascending().zip(times).collect())
}

impl Follower {
    /// Counts one of the noted minutes anew, and its hour of its minutes; `false` when none is noted.
    pub(super) async fn recount(&mut self, index: &Index) -> Result<bool, StoreError> {
        let mut transaction = self.writer(index).await?.begin().await?;
        let minute: Option<i64> = sqlx::query_scalar("select min(start) from recounts")
            .fetch_one(&mut *transaction)
            .await?;
        let Some(minute) = minute else { return Ok(false) };
        let sums = count(&mut transaction, minute).await?;
        put(&mut transaction, index, MINUTE, minute, sums).await?;
        let hour = minute.div_euclid(HOUR) * HOUR;
        let mut sums: HashMap<i64, Cells> = HashMap::new();
        let minutes = sqlx::query(
            "select server, cells from rollups where width = ? and start >= ? and start < ?",
        )
        .bind(MINUTE)
        .bind(hour)
        .bind(hour + HOUR)
        .fetch_all(&mut *transaction)
        .await?;
        for row in minutes {
            let cells = sums.entry(row.try_get(0)?).or_default();
            for_each(row.try_get(1)?, |key, body| body.add_to(cells.entry(key).or_default()))
                .ok_or_else(|| damaged(&index.path, "rollups"))?;
        }
        put(&mut transaction, index, HOUR, hour, sums).await?;
        sqlx::query("delete from recounts where start = ?")
            .bind(minute)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }
}

/// What the ledger has of a minute, as far as it is in the index, by server.
async fn count(
    transaction: &mut Transaction<'_, Sqlite>,
    minute: i64,
) -> Result<HashMap<i64, Cells>, StoreError> {
    const DIMENSIONS: [Dimension; 5] = [
        Dimension::Server,
        Dimension::Tool,
        Dimension::UpstreamTool,
        Dimension::Caller,
        Dimension::Outcome,
    ];
    let mut words: HashMap<(i64, String), i64> = HashMap::new();
    let mut sums: HashMap<i64, Cells> = HashMap::new();
    let chunks: Vec<i64> =
        sqlx::query_scalar("select chunk from chunks where min_ms < ? and max_ms >= ?")
            .bind(minute + MINUTE)
            .bind(minute)
            .fetch_all(&mut **transaction)
            .await?;
    for chunk in chunks {
        let mut found = Vec::new();
        let mut rows = sqlx::query(
            "select c.server, c.tool, c.upstream_tool, c.caller, c.outcome, c.error_code,
                    max(c.total_us, 0), max(c.request_bytes, 0), max(c.response_bytes, 0)
             from ledger.calls c
             where c.seq >= ? and c.seq < ? and c.seq <= (select indexed_seq from state)
                and c.started_at_ms >= ? and c.started_at_ms < ?",
        )
        .bind(chunk * CHUNK)
        .bind((chunk + 1) * CHUNK)
        .bind(minute)
        .bind(minute + MINUTE)
        .fetch(&mut **transaction);
        while let Some(row) = rows.try_next().await? {
            found.push(row);
            if found.len().is_multiple_of(ROWS_AT_ONCE) {
                tokio::task::yield_now().await;
            }
        }
        drop(rows);
        for row in found {
            let mut ids = [0_i64; DIMENSIONS.len()];
            for ((column, dimension), id) in DIMENSIONS.into_iter().enumerate().zip(&mut ids) {
                let Some(value) = row.try_get::<Option<String>, _>(column)? else { continue };
                let key = (dimension.number(), value);
                *id = match words.get(&key) {
                    Some(id) => *id,
                    None => {
                        let word: Option<i64> = sqlx::query_scalar(
                            "select id from words where dimension = ? and value = ?",
                        )
                        .bind(key.0)
                        .bind(key.1.as_str())
                        .fetch_optional(&mut **transaction)
                        .await?;
                        let word = word.unwrap_or(0);
                        words.insert(key, word);
                        word
                    }
                };
            }
            let [server, tool, upstream_tool, caller, outcome] = ids;
            let code: Option<&str> = row.try_get(5)?;
            let fault = if is_fault(row.try_get(4)?, code.unwrap_or_default()) { FAULT } else { 0 };
            // As the follower does: what no server has is one tool without a name.
            let tool = if upstream_tool != 0 || is_away(row.try_get(4)?) { tool } else { 0 };
            let key = CellKey { tool, upstream_tool, caller, outcome: outcome | fault };
            let cell = sums.entry(server).or_default().entry(key).or_default();
            let unsigned =
                |column| row.try_get::<i64, _>(column).map(|n| u64::try_from(n).unwrap_or(0));
            cell.record(unsigned(6)?, unsigned(7)?, unsigned(8)?);
        }
    }
    Ok(sums)
}

/// Puts sums in the place of those that were there.
async fn put(
    transaction: &mut Transaction<'_, Sqlite>,
    index: &Index,
    width: i64,
    start: i64,
    sums: HashMap<i64, Cells>,
) -> Result<(), StoreError> {
    sqlx::query("delete from rollups where width = ? and start = ?")
        .bind(width)
        .bind(start)
        .execute(&mut **transaction)
        .await?;
    for (server, cells) in sums {
        let cells = merge(&[], &cells).ok_or_else(|| damaged(&index.path, "rollups"))?;
        sqlx::query("insert into rollups values (?, ?, ?, ?)")
            .bind(width)
            .bind(start)
            .bind(server)
            .bind(cells)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}
