//! Rows of the ledger that wait outside the database, and their way back into the chain.
//!
//! Changes when what makes that exact does. How far a spool was read is an entry of the chain, committed
//! together with the rows: so each is there once, whenever this is cut off.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{Sqlite, Transaction};

use super::ledger::{append_links, links};
use super::{SqliteStore, begin};
use crate::model::Timestamp;
use crate::store::chain::{ATTEMPT_COLUMNS, CALL_COLUMNS, ENTRY_COLUMNS, Kind, Value};
use crate::store::spool::{Chunk, Link, Rejected, Spool};
use crate::store::{AUDIT_SPOOLED, CallRow, EntryRow, StoreError};

/// How far a spool was read, as it stands in the ledger.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    spool: String,
    from: u64,
    to: u64,
    rows: usize,
    /// Lines that could not be read back.
    damaged: usize,
    /// Rows that the database did not take.
    #[serde(default)]
    rejected: usize,
}

impl SqliteStore {
    pub(in crate::store) async fn set_ledger_patience(
        &self,
        patience: Duration,
    ) -> Result<(), StoreError> {
        self.audit.set_patience(patience).await
    }

    pub(in crate::store) fn open_spool(&self, path: &Path) -> io::Result<Spool> {
        Spool::open(path, &self.ledger_key)
    }

    pub(in crate::store) async fn spool(
        &self,
        mut spool: Spool,
        after: i64,
        entries: &[EntryRow],
        calls: &[CallRow],
    ) -> (Spool, io::Result<()>) {
        let key = &self.ledger_key;
        let encoded = spool.encode(key, after, &links(key, entries, calls, &self.audit.courtesy));
        let path = spool.path().to_owned();
        let writing = tokio::task::spawn_blocking(move || {
            let written = spool.write(&encoded);
            (spool, written)
        });
        match writing.await {
            Ok(done) => done,
            // It panicked: what is on disk is the truth.
            Err(error) => match self.open_spool(&path) {
                Ok(spool) => (spool, Err(io::Error::other(error))),
                Err(error) => (Spool::none(&path), Err(error)),
            },
        }
    }

    pub(in crate::store) async fn drain_spool(
        &self,
        spool: &mut Spool,
        limit: u64,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        if spool.waiting() == 0 {
            return Ok(0);
        }
        let failed = |source| StoreError::Spool { source };
        // Asked of the database each time: a commit whose answer did not come may be one.
        let mark = self.spool_mark(spool).await?;
        let from = mark.as_ref().map_or(spool.start(), |mark| mark.to);
        spool.read = Some(from);
        let limit = limit.min(spool.end());
        if from < limit {
            match self.put_back(spool, from..limit, &[], now).await {
                Err(error) if error.is_of_a_row() => {
                    let rejected = self.rejected_rows(spool, from..limit, now).await?;
                    if rejected.is_empty() {
                        return Err(error);
                    }
                    self.put_back(spool, from..limit, &rejected, now).await?;
                }
                done => done?,
            }
        }
        if spool.waiting() == 0 {
            spool.clear().map_err(failed)?;
            return Ok(0);
        }
        Ok(limit.saturating_sub(spool.read.unwrap_or(from)))
    }

    /// The rows of a part of the spool, and how many of its lines are none.
    fn part(&self, spool: &Spool, part: &Range<u64>) -> Result<Chunk, StoreError> {
        let chunk = spool.read(&self.ledger_key, part.start, part.end);
        let mut chunk = chunk.map_err(|source| StoreError::Spool { source })?;
        chunk.links.retain_mut(|link| {
            let fits = complete(link);
            chunk.damaged += usize::from(!fits);
            fits
        });
        Ok(chunk)
    }

    /// Commits a part of the spool without the rows that the database does not take, which are put
    /// beside it.
    async fn put_back(
        &self,
        spool: &mut Spool,
        part: Range<u64>,
        rejected: &[Rejected],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut chunk = self.part(spool, &part)?;
        if let Some(first) = rejected.first() {
            let aside = spool.set_aside(&chunk.links, rejected);
            let aside = aside.map_err(|source| StoreError::Spool { source })?;
            tracing::error!(
                rows = rejected.len(),
                "the ledger does not take {} rows of its spool ({}); they were put into `{}`",
                rejected.len(),
                first.why,
                aside.display()
            );
            let mut at = 0..;
            chunk.links.retain(|_| {
                let at = at.next();
                !rejected.iter().any(|rejected| Some(rejected.at) == at)
            });
        }
        let mark = Mark {
            spool: spool.head().spool.clone(),
            from: part.start,
            to: chunk.to,
            rows: chunk.links.len(),
            damaged: chunk.damaged,
            rejected: rejected.len(),
        };
        if mark.damaged > 0 {
            spool.damaged = true;
            tracing::error!(
                lines = mark.damaged,
                "{} lines of `{}` are not what was written; they are missing from the ledger",
                mark.damaged,
                spool.path().display()
            );
        }
        let mut writer = self.audit.writer().await?;
        let mut transaction = begin(&mut writer).await?;
        if part.start == spool.start() {
            leave_out_known(&mut transaction, spool.head().after, &mut chunk.links).await?;
        }
        chunk.links.insert(0, mark_entry(&mark, now));
        append_links(&mut transaction, &self.ledger_key, chunk.links, &self.audit.courtesy).await?;
        transaction.commit().await?;
        spool.read = Some(chunk.to);
        spool.rejected = spool.rejected.saturating_add(rejected.len() as u64);
        Ok(())
    }

    /// Tries each row of a part of the spool for itself, and commits none.
    async fn rejected_rows(
        &self,
        spool: &Spool,
        part: Range<u64>,
        now: Timestamp,
    ) -> Result<Vec<Rejected>, StoreError> {
        let chunk = self.part(spool, &part)?;
        let mut writer = self.audit.writer().await?;
        let mut transaction = begin(&mut writer).await?;
        let mark = Mark {
            spool: spool.head().spool.clone(),
            from: part.start,
            to: chunk.to,
            rows: 0,
            damaged: 0,
            rejected: 0,
        };
        // What is ours to write must be taken: else it is not for the rows.
        append_links(
            &mut transaction,
            &self.ledger_key,
            vec![mark_entry(&mark, now)],
            &self.audit.courtesy,
        )
        .await?;
        let mut rejected = Vec::new();
        for (at, link) in chunk.links.into_iter().enumerate() {
            let mut one = vec![link];
            if part.start == spool.start() {
                leave_out_known(&mut transaction, spool.head().after, &mut one).await?;
            }
            sqlx::raw_sql("savepoint one_row").execute(&mut *transaction).await?;
            match append_links(&mut transaction, &self.ledger_key, one, &self.audit.courtesy).await
            {
                Ok(_) => {}
                Err(error) if error.is_of_a_row() => {
                    sqlx::raw_sql("rollback to one_row").execute(&mut *transaction).await?;
                    rejected.push(Rejected { at, why: error.to_string() });
                }
                Err(error) => return Err(error),
            }
            sqlx::raw_sql("release one_row").execute(&mut *transaction).await?;
        }
        transaction.rollback().await?;
        Ok(rejected)
    }

    async fn spool_mark(&self, spool: &Spool) -> Result<Option<Mark>, StoreError> {
        let mut reader = self.audit.readers.acquire().await?;
        // There are few rows after `after`. The newest may be of another spool.
        let detail: Option<String> = sqlx::query_scalar(
            "select detail from entries where seq > ? and kind = ? and instr(detail, ?) > 0
             order by seq desc limit 1",
        )
        .bind(spool.head().after)
        .bind(AUDIT_SPOOLED)
        .bind(&spool.head().spool)
        .fetch_optional(&mut *reader)
        .await?;
        let mark = detail.and_then(|detail| serde_json::from_str::<Mark>(&detail).ok());
        Ok(mark.filter(|mark| mark.spool == spool.head().spool))
    }
}

fn mark_entry(mark: &Mark, now: Timestamp) -> Link<'static> {
    Link {
        kind: Kind::Entry,
        values: vec![
            Value::Null,
            Value::Integer(now.as_millis()),
            Value::text(AUDIT_SPOOLED),
            Value::text("router"),
            Value::text("ledger"),
            Value::text(serde_json::to_string(mark).unwrap_or_default()),
        ],
        attempts: Vec::new(),
        payload: None,
    }
}

/// Adds columns that are newer than the row; `false` for a row that no table takes.
fn complete(link: &mut Link<'_>) -> bool {
    let columns = match link.kind {
        Kind::Call => CALL_COLUMNS.len(),
        Kind::Entry => ENTRY_COLUMNS.len(),
    };
    let fits = link.values.len() <= columns + 1
        && link.attempts.iter().all(|attempt| attempt.len() == ATTEMPT_COLUMNS.len());
    link.values.resize(columns + 1, Value::Null);
    fits
}

/// Leaves out what is in the ledger all the same: a commit that was reported as failed and then found
/// whole in the write-ahead log by the next start. It can only be what was spooled first.
async fn leave_out_known(
    transaction: &mut Transaction<'_, Sqlite>,
    after: i64,
    links: &mut Vec<Link<'static>>,
) -> Result<(), StoreError> {
    let there: i64 = sqlx::query_scalar(
        "select (select count(*) from calls where seq > ?1)
              + (select count(*) from entries where seq > ?1)",
    )
    .bind(after)
    .fetch_one(&mut **transaction)
    .await?;
    if there == 0 {
        return Ok(());
    }
    let mut kept = Vec::with_capacity(links.len());
    for link in links.drain(..) {
        let known: Option<i64> = match (link.kind, link.values.as_slice()) {
            (Kind::Call, [_, Value::Blob(id), ..]) => {
                sqlx::query_scalar("select seq from calls where id = ?")
                    .bind(id.as_ref())
                    .fetch_optional(&mut **transaction)
                    .await?
            }
            (
                Kind::Entry,
                [
                    _,
                    Value::Integer(at),
                    Value::Text(kind),
                    Value::Text(actor),
                    Value::Text(subject),
                    Value::Text(detail),
                ],
            ) => {
                sqlx::query_scalar(
                    "select seq from entries where seq > ? and at_ms = ? and kind = ?
                        and actor = ? and subject = ? and detail = ?",
                )
                .bind(after)
                .bind(at)
                .bind(kind.as_ref())
                .bind(actor.as_ref())
                .bind(subject.as_ref())
                .bind(detail.as_ref())
                .fetch_optional(&mut **transaction)
                .await?
            }
            _ => None,
        };
        if known.is_none() {
            kept.push(link);
        }
    }
    *links = kept;
    Ok(())
}
