//! Making text anew without what left the ledger.
//!
//! Changes when text has to leave the index for another reason. What was erased is taken from the
//! ledger's own entries, so that it is known however an erasure ended. A part is made anew in steps;
//! whoever makes the next one goes on where the last one ended, and nobody makes one twice.

use std::collections::BTreeSet;

use serde::Deserialize;
use sqlx::{AssertSqlSafe, Connection, Sqlite, SqliteConnection, Transaction, raw_sql};

use super::follow::Follower;
use super::postings::CHUNK;
use super::retain::{LONGEST_REST, give_back};
use super::text::{copy_text, make_text, text_table};
use super::{Index, PART, options};
use crate::clock;
use crate::store::StoreError;
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::log::Log;
use crate::store::sqlite::verify::{ERASED, EXPIRED};

/// A part that is being made anew.
pub(super) struct Refresh {
    part: i64,
    generation: i64,
    /// How often it was marked when that began.
    marks: i64,
    /// Nothing in the new table is of an earlier number.
    first: i64,
    /// The last number that is in the new table.
    done: i64,
}

/// What an entry about erased payloads says of them.
#[derive(Deserialize)]
struct Erased {
    #[serde(default)]
    rows: Vec<(i64, i64)>,
}

impl SqliteStore {
    /// Makes the text of all that was erased anew of what the ledger still has; gives whether nothing
    /// of it is in the index's files.
    pub(in crate::store) async fn index_erase(&self) -> Result<bool, StoreError> {
        {
            let mut follower = self.index.follower.lock().await;
            let writer = follower.writer(&self.index).await?;
            let mut transaction = writer.begin().await?;
            mark_erased(&mut transaction).await?;
            transaction.commit().await?;
        }
        loop {
            let mut follower = self.index.follower.lock().await;
            if !follower.refresh(&self.index).await? {
                break;
            }
            drop(follower);
            tokio::task::yield_now().await;
        }
        // What was erased is in the log until then.
        let mut log = Log::open(&options(&self.index.path)).await?;
        let emptied = log.empty().await?;
        log.close().await?;
        Ok(emptied)
    }
}

impl Follower {
    /// What is to do when all calls are in the index; whether there is more of it.
    pub(super) async fn tidy(&mut self, index: &Index) -> Result<bool, StoreError> {
        let mut transaction = self.writer(index).await?.begin().await?;
        mark_erased(&mut transaction).await?;
        transaction.commit().await?;
        if self.recount(index).await? || self.refresh(index).await? {
            return Ok(true);
        }
        if self.freed {
            if give_back(self.writer(index).await?).await? {
                return Ok(true);
            }
            // What left is in the log until then, and the file as long as it was.
            let mut log = Log::open(&options(&index.path)).await?;
            self.freed = !log.shorten().await?;
            log.close().await?;
        }
        Ok(false)
    }

    /// A step of making a marked part anew; `false` when none is marked. The mark outlasts a restart.
    pub(super) async fn refresh(&mut self, index: &Index) -> Result<bool, StoreError> {
        let begun = self.refreshing.take();
        let mut transaction = self.writer(index).await?.begin().await?;
        let begun = match begun {
            Some(begun) if begun.is_current(&mut transaction).await? => Some(begun),
            _ => None,
        };
        let mut refresh = match begun {
            Some(begun) => begun,
            None => match Refresh::begin(&mut transaction).await? {
                Some(begun) => begun,
                None => return Ok(false),
            },
        };
        let indexed: i64 = sqlx::query_scalar("select indexed_seq from state")
            .fetch_one(&mut *transaction)
            .await?;
        let complete = refresh.step(&mut transaction, indexed).await?;
        transaction.commit().await?;
        self.freed |= complete;
        self.refreshing = Some(refresh).filter(|_| !complete);
        Ok(true)
    }
}

impl Refresh {
    pub(super) const fn part(&self) -> i64 {
        self.part
    }

    /// The next part that is marked, with an empty table for it.
    async fn begin(transaction: &mut Transaction<'_, Sqlite>) -> Result<Option<Self>, StoreError> {
        let marked: Option<(i64, i64, i64)> = sqlx::query_as(
            "select part, generation, stale from parts where stale > 0 order by part limit 1",
        )
        .fetch_optional(&mut **transaction)
        .await?;
        let Some((part, generation, marks)) = marked else { return Ok(None) };
        let oldest: Option<i64> = sqlx::query_scalar("select min(seq) from ledger.calls")
            .fetch_one(&mut **transaction)
            .await?;
        // Left by one that was cut off.
        let drop = format!("drop table if exists {}", text_table(part, generation + 1));
        raw_sql(AssertSqlSafe(drop)).execute(&mut **transaction).await?;
        make_text(transaction, part, generation + 1).await?;
        let done = (part * PART).max(oldest.unwrap_or(i64::MAX)) - 1;
        // Traces are few and found by their id: those of a part are looked through once.
        sqlx::query("delete from traces where part = ? and seq <= ?")
            .bind(part)
            .bind(done)
            .execute(&mut **transaction)
            .await?;
        Ok(Some(Self { part, generation, marks, first: done.saturating_add(1), done }))
    }

    /// Retention may have dropped the part meanwhile, or the file was made anew.
    async fn is_current(&self, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(
            "select exists (select 1 from parts where part = ? and generation = ?)
                and exists (select 1 from sqlite_schema where name = ?)",
        )
        .bind(self.part)
        .bind(self.generation)
        .bind(text_table(self.part, self.generation + 1))
        .fetch_one(connection)
        .await?)
    }

    /// Copies the next numbers; the last step puts the new table in the old one's place.
    async fn step(
        &mut self,
        transaction: &mut Transaction<'_, Sqlite>,
        indexed: i64,
    ) -> Result<bool, StoreError> {
        let end = indexed.min((self.part + 1) * PART - 1);
        let last = end.min(self.done.saturating_add(CHUNK));
        copy_text(transaction, self.part, self.generation + 1, self.done, last).await?;
        self.done = self.done.max(last);
        if self.done < end {
            return Ok(false);
        }
        // Marked again since: it is made anew once more.
        let script = format!(
            "update parts set generation = generation + 1, stale = stale - {marks},
                first_seq = {first}, made_ms = {now}
             where part = {part};
             drop table {old};",
            marks = self.marks,
            first = self.first,
            now = clock::timestamp().as_millis(),
            part = self.part,
            old = text_table(self.part, self.generation)
        );
        raw_sql(AssertSqlSafe(script)).execute(&mut **transaction).await?;
        Ok(true)
    }
}

/// Marks the parts with text of payloads that were erased since this was last looked for.
///
/// In the transaction that goes on to index calls it comes first: what is erased in the ledger as
/// the transaction sees it is marked then, or not read.
pub(super) async fn mark_erased(
    transaction: &mut Transaction<'_, Sqlite>,
) -> Result<(), StoreError> {
    let (indexed, looked, newest): (i64, i64, Option<i64>) = sqlx::query_as(
        "select indexed_seq, erased_seq, (select max(seq) from ledger.entries) from state",
    )
    .fetch_one(&mut **transaction)
    .await?;
    let Some(newest) = newest.filter(|newest| *newest > looked) else { return Ok(()) };
    // Nothing is in the index yet that could have been erased.
    if indexed > 0 {
        let entries: Vec<(String, String)> = sqlx::query_as(
            "select kind, detail from ledger.entries where seq > ? and kind in (?, ?) order by seq",
        )
        .bind(looked)
        .bind(ERASED)
        .bind(EXPIRED)
        .fetch_all(&mut **transaction)
        .await?;
        let (mut parts, mut resting) = (BTreeSet::new(), BTreeSet::new());
        for (kind, detail) in entries {
            // One that says nothing readable is no entry of ours.
            let Ok(erased) = serde_json::from_str::<Erased>(&detail) else { continue };
            for (first, last) in erased.rows {
                let last = last.min(indexed);
                if first > last {
                    continue;
                }
                let touched = first.div_euclid(PART)..=last.div_euclid(PART);
                if kind == EXPIRED && (last + 1) % PART != 0 {
                    // The last one goes on to lose some: it is not made anew for each.
                    resting.insert(last.div_euclid(PART));
                    parts.extend(*touched.start()..*touched.end());
                } else {
                    parts.extend(touched);
                }
            }
        }
        let long_ago = clock::timestamp().minus(LONGEST_REST).as_millis();
        for part in resting {
            sqlx::query("update parts set stale = 1 where part = ? and stale = 0 and made_ms <= ?")
                .bind(part)
                .bind(long_ago)
                .execute(&mut **transaction)
                .await?;
        }
        for part in parts {
            sqlx::query("update parts set stale = stale + 1 where part = ?")
                .bind(part)
                .execute(&mut **transaction)
                .await?;
        }
    }
    sqlx::query("update state set erased_seq = ?").bind(newest).execute(&mut **transaction).await?;
    Ok(())
}
