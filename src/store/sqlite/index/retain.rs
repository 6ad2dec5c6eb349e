//! What leaves the index after it left the ledger.
//!
//! Changes when retention does. Everything happens in small steps between which the
//! follower has its turn.

use std::collections::HashSet;

use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection, raw_sql};

use super::postings::chunk_of;
use super::rollup::for_each;
use super::text::text_table;
use super::{Dimension, Index, PART, damaged};
use crate::store::StoreError;
use crate::store::sqlite::SqliteStore;

/// Chunks, sums and words of one step.
const CHUNKS_AT_ONCE: i64 = 16;
/// Calls in traces that are forgotten at once.
const TRACES_AT_ONCE: i64 = 8192;
const ROWS_AT_ONCE: i64 = 512;
/// Pages given back in one step.
const PAGES_AT_ONCE: i64 = 1024;

impl SqliteStore {
    /// Drops what is of calls before `seq`, as far as it lies apart from what is of later ones: a
    /// chunk, a part of the text, an hour.
    pub(in crate::store) async fn index_forget_below(&self, seq: i64) -> Result<(), StoreError> {
        let chunk = chunk_of(seq);
        loop {
            let mut follower = self.index.follower.lock().await;
            follower.forget_memory();
            let writer = follower.writer(&self.index).await?;
            if !forget_chunks(writer, chunk).await? {
                break;
            }
        }
        loop {
            let mut follower = self.index.follower.lock().await;
            if !forget_traces(follower.writer(&self.index).await?, seq / PART).await? {
                break;
            }
        }
        loop {
            let mut follower = self.index.follower.lock().await;
            if !forget_part(follower.writer(&self.index).await?, seq / PART).await? {
                break;
            }
        }
        loop {
            let mut follower = self.index.follower.lock().await;
            if !forget_sums(follower.writer(&self.index).await?).await? {
                break;
            }
        }
        self.forget_words(chunk).await?;
        loop {
            let mut follower = self.index.follower.lock().await;
            if !give_back(follower.writer(&self.index).await?).await? {
                return Ok(());
            }
        }
    }

    async fn forget_words(&self, chunk: i64) -> Result<(), StoreError> {
        let mut after = 0_i64;
        let mut summed: Option<HashSet<i64>> = None;
        loop {
            let mut follower = self.index.follower.lock().await;
            let writer = follower.writer(&self.index).await?;
            let words: Vec<(i64, i64)> = sqlx::query_as(
                "select id, dimension from words where id > ? and last_chunk < ?
                 order by id limit ?",
            )
            .bind(after)
            .bind(chunk)
            .bind(ROWS_AT_ONCE)
            .fetch_all(&mut *writer)
            .await?;
            let Some((last, _)) = words.last().copied() else { return Ok(()) };
            after = last;
            // Sums know their words by number. What is read of them once holds for all steps: a
            // word that comes back meanwhile has a later chunk, and is not deleted.
            let summed = match &mut summed {
                Some(summed) => summed,
                None => summed.insert(words_of_sums(writer, &self.index).await?),
            };
            let mut transaction = writer.begin().await?;
            for (id, dimension) in words {
                let postings_only = [Dimension::Session, Dimension::ErrorCode, Dimension::View];
                if summed.contains(&id) && !postings_only.iter().any(|d| d.number() == dimension) {
                    continue;
                }
                sqlx::query("delete from words where id = ? and last_chunk < ?")
                    .bind(id)
                    .bind(chunk)
                    .execute(&mut *transaction)
                    .await?;
            }
            transaction.commit().await?;
        }
    }
}

async fn forget_chunks(writer: &mut SqliteConnection, below: i64) -> Result<bool, StoreError> {
    let mut transaction = writer.begin().await?;
    let end: Option<i64> = sqlx::query_scalar(
        "select max(chunk) from (select chunk from chunks where chunk < ? order by chunk limit ?)",
    )
    .bind(below)
    .bind(CHUNKS_AT_ONCE)
    .fetch_one(&mut *transaction)
    .await?;
    let Some(end) = end else { return Ok(false) };
    for sql in [
        "delete from postings where chunk <= ?",
        "delete from times where chunk <= ?",
        "delete from chunks where chunk <= ?",
    ] {
        sqlx::query(sql).bind(end).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

async fn forget_traces(writer: &mut SqliteConnection, below: i64) -> Result<bool, StoreError> {
    let forgotten = sqlx::query(
        "delete from traces where (part, trace, seq) in
            (select part, trace, seq from traces where part < ? order by 1, 2, 3 limit ?)",
    )
    .bind(below)
    .bind(TRACES_AT_ONCE)
    .execute(writer)
    .await?;
    Ok(forgotten.rows_affected() > 0)
}

async fn forget_part(writer: &mut SqliteConnection, below: i64) -> Result<bool, StoreError> {
    let mut transaction = writer.begin().await?;
    let oldest: Option<(i64, i64)> =
        sqlx::query_as("select part, generation from parts where part < ? order by part limit 1")
            .bind(below)
            .fetch_optional(&mut *transaction)
            .await?;
    let Some((part, generation)) = oldest else { return Ok(false) };
    let script = format!(
        "drop table {}; drop table if exists {}; delete from parts where part = {part};",
        text_table(part, generation),
        text_table(part, generation + 1)
    );
    raw_sql(AssertSqlSafe(script)).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Drops sums that end before the first of the calls that are left.
async fn forget_sums(writer: &mut SqliteConnection) -> Result<bool, StoreError> {
    let gone = sqlx::query(
        "delete from rollups where (width, start, server) in (
             select width, start, server from rollups
             where start + width <= (select ifnull(min(min_ms), 9223372036854775807) from chunks)
             limit ?)",
    )
    .bind(ROWS_AT_ONCE)
    .execute(writer)
    .await?;
    Ok(gone.rows_affected() > 0)
}

async fn words_of_sums(
    writer: &mut SqliteConnection,
    index: &Index,
) -> Result<HashSet<i64>, StoreError> {
    let mut words = HashSet::new();
    let mut sums = sqlx::query("select server, cells from rollups").fetch(writer);
    while let Some(row) = sums.try_next().await? {
        words.insert(row.try_get(0)?);
        for_each(row.try_get(1)?, |key, _| {
            words.extend([key.tool, key.upstream_tool, key.caller, key.outcome_word()]);
            Some(())
        })
        .ok_or_else(|| damaged(&index.path, "rollups"))?;
        tokio::task::yield_now().await;
    }
    Ok(words)
}

/// Gives free pages back to the file system; `false` when few are left, which merges use again.
pub(super) async fn give_back(writer: &mut SqliteConnection) -> Result<bool, StoreError> {
    let free: i64 = sqlx::query_scalar("pragma freelist_count").fetch_one(&mut *writer).await?;
    if free < PAGES_AT_ONCE {
        return Ok(false);
    }
    // Each page is a step of the statement.
    raw_sql(AssertSqlSafe(format!("pragma incremental_vacuum({PAGES_AT_ONCE})")))
        .execute(writer)
        .await?;
    Ok(true)
}
