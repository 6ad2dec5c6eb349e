//! What leaves the index after it left the ledger.
//!
//! Changes when retention does. Everything happens in small steps between which the
//! follower has its turn.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection, raw_sql};

use super::follow::Follower;
use super::postings::{Places, chunk_of, encode, encode_times, place_of};
use super::recount::{note_minutes, times_of};
use super::rollup::for_each;
use super::text::text_table;
use super::{Dimension, Index, PART, damaged};
use crate::clock;
use crate::store::StoreError;
use crate::store::sqlite::SqliteStore;

/// Chunks, sums and words of one step.
const CHUNKS_AT_ONCE: i64 = 16;
/// Calls in traces that are forgotten at once.
const TRACES_AT_ONCE: i64 = 8192;
const ROWS_AT_ONCE: i64 = 512;
/// Pages given back in one step, and how few are kept for what comes next.
const PAGES_AT_ONCE: i64 = 1024;
const PAGES_KEPT: i64 = 64;
/// A part is made anew when what is left in it is no more than so many times what is gone: else short
/// retention would index each call many times.
const WORTH: i64 = 4;
/// And when it was last made so long ago.
pub(super) const LONGEST_REST: Duration = Duration::from_hours(24);

/// When the text of the calls of a part that are gone leaves the index, where others are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store::sqlite) enum Rest {
    /// At once.
    Now,
    /// When it is worth the work, or old.
    Worth,
}

impl SqliteStore {
    /// Drops what is of calls before `seq`. The text of a part of which some are left is made anew by
    /// the follower, and so are the sums of their minute.
    pub(in crate::store) async fn index_forget_below(&self, seq: i64) -> Result<(), StoreError> {
        self.forget_below(seq, Rest::Now).await
    }

    /// The same; the rest of a part when there is enough of it.
    pub(in crate::store::sqlite) async fn forget_below(
        &self,
        seq: i64,
        rest: Rest,
    ) -> Result<(), StoreError> {
        let chunk = chunk_of(seq);
        {
            let mut follower = self.index.follower.lock().await;
            let mut transaction = follower.writer(&self.index).await?.begin().await?;
            note_minutes(&mut transaction, &self.index, seq).await?;
            transaction.commit().await?;
        }
        loop {
            let mut follower = self.index.follower.lock().await;
            follower.forget_memory();
            let writer = follower.writer(&self.index).await?;
            if !forget_chunks(writer, chunk).await? {
                trim_chunk(writer, &self.index, seq).await?;
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
                follower.mark_rest(&self.index, seq, rest).await?;
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
        self.index.follower.lock().await.freed = true;
        Ok(())
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

impl Follower {
    /// Marks the text of the part of which calls before `seq` are gone and later ones left.
    async fn mark_rest(&mut self, index: &Index, seq: i64, rest: Rest) -> Result<(), StoreError> {
        let part = seq.div_euclid(PART);
        // What is being made anew may have calls that are gone by now.
        let begun = self.refreshing.as_ref().is_some_and(|begun| begun.part() == part);
        sqlx::query(
            "update parts set stale = stale + 1
             where part = ?1 and first_seq < ?2 and (stale = 0 or ?3) and (?4 or made_ms <= ?5
                or (?2 - first_seq) * ?6
                    >= min((part + 1) * ?7, (select indexed_seq from state) + 1) - ?2)",
        )
        .bind(part)
        .bind(seq)
        .bind(begun)
        .bind(rest == Rest::Now)
        .bind(clock::timestamp().minus(LONGEST_REST).as_millis())
        .bind(WORTH)
        .bind(PART)
        .execute(self.writer(index).await?)
        .await?;
        Ok(())
    }
}

/// Takes the calls before `seq` out of their chunk.
async fn trim_chunk(
    writer: &mut SqliteConnection,
    index: &Index,
    seq: i64,
) -> Result<(), StoreError> {
    let (chunk, first) = (chunk_of(seq), place_of(seq));
    let mut transaction = writer.begin().await?;
    let all = times_of(&mut transaction, index, chunk).await?;
    let kept: Vec<(u16, i64)> = all.iter().copied().filter(|(place, _)| *place >= first).collect();
    if kept.len() == all.len() {
        return Ok(());
    }
    let (places, times): (Vec<u16>, Vec<i64>) = kept.into_iter().unzip();
    let bounds = times.iter().min().zip(times.iter().max());
    for sql in ["delete from times where chunk = ?", "delete from chunks where chunk = ?"] {
        sqlx::query(sql).bind(chunk).execute(&mut *transaction).await?;
    }
    if let Some((min, max)) = bounds {
        sqlx::query("insert into chunks values (?, ?, ?)")
            .bind(chunk)
            .bind(*min)
            .bind(*max)
            .execute(&mut *transaction)
            .await?;
        sqlx::query("insert into times values (?, ?, ?)")
            .bind(chunk)
            .bind(encode(&places))
            .bind(encode_times(&times))
            .execute(&mut *transaction)
            .await?;
    }
    let postings = sqlx::query("select word, places from postings where chunk = ?")
        .bind(chunk)
        .fetch_all(&mut *transaction)
        .await?;
    for row in postings {
        let word: i64 = row.try_get(0)?;
        let found =
            Places::decode(row.try_get(1)?).ok_or_else(|| damaged(&index.path, "postings"))?;
        let kept: Vec<u16> = found.ascending().filter(|place| *place >= first).collect();
        if kept.is_empty() {
            sqlx::query("delete from postings where chunk = ? and word = ?")
                .bind(chunk)
                .bind(word)
                .execute(&mut *transaction)
                .await?;
            // It is in no later one, unless it says so.
            sqlx::query("update words set last_chunk = ?1 - 1 where id = ?2 and last_chunk = ?1")
                .bind(chunk)
                .bind(word)
                .execute(&mut *transaction)
                .await?;
        } else if kept.len() < found.ascending().count() {
            sqlx::query("update postings set places = ? where chunk = ? and word = ?")
                .bind(encode(&kept))
                .bind(chunk)
                .bind(word)
                .execute(&mut *transaction)
                .await?;
        }
        tokio::task::yield_now().await;
    }
    transaction.commit().await?;
    Ok(())
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
    if free <= PAGES_KEPT {
        return Ok(false);
    }
    let pages = (free - PAGES_KEPT).min(PAGES_AT_ONCE);
    // Each page is a step of the statement.
    raw_sql(AssertSqlSafe(format!("pragma incremental_vacuum({pages})"))).execute(writer).await?;
    Ok(true)
}
