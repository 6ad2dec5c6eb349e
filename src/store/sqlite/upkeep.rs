//! Keeping the ledger in its bounds: the oldest rows go, payloads are erased, and the file becomes
//! smaller for it.
//!
//! Changes when rows leave the ledger in another way. Everything happens in small steps beside the writer of
//! calls, and a router that is killed between two of them leaves a ledger that verifies:
//! an entry in the chain says up to where rows may be gone before the first of them goes, and each step
//! moves the beginning of the chain together with the rows it removes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row, SqliteConnection, raw_sql};

use super::backup::REPLACED;
use super::index::Rest;
use super::ledger::{Head, append};
use super::log::Log;
use super::remains::remains_of_ledger;
use super::verify::{ERASED, hash_at};
use super::{AUDIT, SqliteStore, Version, begin, connect_options, files, identify};
use crate::clock;
use crate::model::Timestamp;
use crate::store::column::hex;
use crate::store::export::PRUNED;
use crate::store::upkeep::{Pace, ranges};
use crate::store::{CALL_STARTED, EntryRow, EraseOf, Erased, PruneUntil, Pruned, StoreError};

/// Rows that one entry in the chain lets go.
const RUN: usize = 50_000;
/// Rows that are read at once.
const PAGE: i64 = 5_000;
/// Rows of a step at most, and ranges of rows in an entry.
const STEP_ROWS: i64 = 2_000;
const STEP_RANGES: usize = 1_000;
/// Bytes of a step: what a row costs without payload, and the bounds of a step.
pub(super) const ROW_BYTES: u64 = 1_024;
pub(super) const STEP_BYTES: [u64; 3] = [64 << 10, 256 << 10, 2 << 20];
/// Pages given back in a step. Each may have to be read from the disk, as may those that point to it: a
/// millisecond for each was seen, and nothing tells beforehand.
const STEP_PAGES: [u64; 3] = [8, 32, 32];
/// Fewer rows than this are not pruned for their size: it is not they who take the space.
const FEWEST: i64 = 1_000;

/// A call that began longer ago is not under way: its end is missing.
const LONGEST_CALL: Duration = Duration::from_hours(24);

/// The numbers of the oldest and the newest row.
const BOUNDS: &str = "select
    (select min(seq) from (select min(seq) as seq from calls union all select min(seq) from entries
        union all select min(seq) from payloads union all select min(seq) from attempts)),
    (select max(seq) from (select max(seq) as seq from calls union all select max(seq) from entries))";

impl SqliteStore {
    pub(in crate::store) async fn prune(
        &self,
        until: PruneUntil,
        actor: &str,
        now: Timestamp,
    ) -> Result<Pruned, StoreError> {
        let _one_at_a_time = self.upkeep.lock().await;
        let before = self.audit.size().database_bytes;
        let mut log = Log::open(&self.audit.options).await?;
        let mut done = Pruned::default();
        let [least, first, most] = STEP_BYTES;
        let mut pace = Pace::new(least, first, most);
        while let Some(through) = self.due(until, now).await? {
            self.announce(through, actor, now).await?;
            while let Some((rows, last)) = self.prune_step(through, &mut pace, &mut log).await? {
                done.rows = done.rows.saturating_add(rows);
                done.through = last;
            }
            done.longest = done.longest.max(self.give_back(&mut log).await?);
        }
        // A run that was cut off has left pages that nobody uses.
        done.longest = done.longest.max(pace.longest()).max(self.give_back(&mut log).await?);
        if done.rows > 0 {
            log.empty().await?;
        }
        log.close().await?;
        // The rows are gone, whatever becomes of the index; the next run tries again.
        if let Err(error) = self.forget_in_index().await {
            tracing::warn!(%error, "old calls could not be taken out of the ledger's index: {error}");
        }
        done.freed_bytes = before.saturating_sub(self.audit.size().database_bytes);
        Ok(done)
    }

    /// Takes out of the index what the ledger has no more; also what a run that was cut off left there.
    async fn forget_in_index(&self) -> Result<(), StoreError> {
        let mut reader = self.audit.own.acquire().await?;
        let (oldest, _) = bounds(&mut reader).await?;
        drop(reader);
        if oldest > 1 {
            self.forget_below(oldest, Rest::Worth).await?;
        }
        Ok(())
    }

    /// The last row of the next run; `None` when nothing is to go.
    async fn due(&self, until: PruneUntil, now: Timestamp) -> Result<Option<i64>, StoreError> {
        let mut reader = self.audit.own.acquire().await?;
        let due = match until {
            // What comes in while this runs is not old.
            PruneUntil::Before(cutoff) => due_by_age(&mut reader, cutoff.min(now), now).await?,
            PruneUntil::Fits(bytes) => due_by_size(&mut reader, bytes).await?,
        };
        match due {
            Some(due) => before_calls_under_way(&mut reader, due, now).await,
            None => Ok(None),
        }
    }

    /// Puts on record that the rows up to `through` go, before the first of them does.
    async fn announce(&self, through: i64, actor: &str, now: Timestamp) -> Result<(), StoreError> {
        let mut writer = self.audit.writer().await?;
        let mut transaction = begin(&mut writer).await?;
        // Rows from before the chain have none.
        let hash = hash_at(&mut transaction, through).await?.map(|hash| hex(&hash));
        let entry = EntryRow {
            seq: 0,
            at: now,
            kind: PRUNED.to_owned(),
            actor: actor.to_owned(),
            subject: "ledger".to_owned(),
            detail: json!({ "through": through, "hash": hash }).to_string(),
        };
        append(&mut transaction, &self.ledger_key, &[entry], &[], &self.audit.courtesy).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Removes the oldest rows, up to `through` at most; gives how many, and the last of them.
    async fn prune_step(
        &self,
        through: i64,
        pace: &mut Pace,
        log: &mut Log,
    ) -> Result<Option<(u64, i64)>, StoreError> {
        let mut reader = self.audit.own.acquire().await?;
        let Some(last) = step_end(&mut reader, through, pace.size()).await? else {
            return Ok(None);
        };
        let last = hashed_row(&mut reader, last, through).await?;
        let rows = read_ahead(&mut reader, last).await?;
        drop(reader);
        // One text: each statement of its own waits for two changes of threads.
        let script = format!(
            "update ledger set base_seq = {last}, base_hash =
                coalesce((select hash from calls where seq = {last}),
                         (select hash from entries where seq = {last}))
             where id = 1 and base_seq < {last};
             delete from payloads where seq <= {last};
             delete from attempts where seq <= {last};
             delete from calls where seq <= {last};
             delete from entries where seq <= {last};"
        );
        let mut writer = self.audit.writer().await?;
        let began = clock::uptime();
        let mut transaction = begin(&mut writer).await?;
        raw_sql(AssertSqlSafe(script)).execute(&mut *transaction).await?;
        // Marked with the key, in the same commit.
        let head = Head::read(&mut transaction).await?;
        head.write(&mut transaction, &self.ledger_key).await?;
        transaction.commit().await?;
        drop(writer);
        let took = clock::uptime().since(began);
        let rows = u64::try_from(rows).unwrap_or(0);
        pace.took(took);
        log.after_step(took).await?;
        Ok(Some((rows, last)))
    }

    /// Gives unused pages back to the file system; how long the longest step took.
    pub(super) async fn give_back(&self, log: &mut Log) -> Result<Duration, StoreError> {
        let [least, first, most] = STEP_PAGES;
        let mut pace = Pace::new(least, first, most);
        let mut unused = i64::MAX;
        loop {
            let left: i64 =
                sqlx::query_scalar("pragma freelist_count").fetch_one(&self.audit.own).await?;
            // A file from before pages could be given back keeps them.
            if left == 0 || left >= unused {
                return Ok(pace.longest());
            }
            unused = left;
            let sql = format!("pragma incremental_vacuum({})", pace.size());
            let mut writer = self.audit.writer().await?;
            let began = clock::uptime();
            raw_sql(AssertSqlSafe(sql)).execute(&mut *writer).await?;
            drop(writer);
            let took = clock::uptime().since(began);
            pace.took(took);
            log.after_step(took).await?;
        }
    }
}

impl SqliteStore {
    pub(in crate::store) async fn erase(
        &self,
        of: &EraseOf,
        actor: &str,
        now: Timestamp,
    ) -> Result<Erased, StoreError> {
        let _one_at_a_time = self.upkeep.lock().await;
        let mut log = Log::open(&self.audit.options).await?;
        let mut done = Erased::default();
        let [least, first, most] = STEP_BYTES;
        let mut pace = Pace::new(least, first, most);
        let mut after = 0;
        let head: i64 = sqlx::query_scalar("select head_seq from ledger where id = 1")
            .fetch_one(&self.audit.own)
            .await?;
        while after < head {
            let (rows, next) = self.payloads_of(of, after, head).await?;
            after = next;
            let mut rows = rows.as_slice();
            while !rows.is_empty() {
                let mut bytes = 0_u64;
                let fitting = rows.iter().take(STEP_RANGES).take_while(|(_, length)| {
                    let fits = bytes < pace.size();
                    bytes = bytes.saturating_add(length.saturating_add(ROW_BYTES));
                    fits
                });
                let count = fitting.count().max(1);
                let (step, rest) = rows.split_at_checked(count).unwrap_or((rows, &[]));
                let numbers: Vec<i64> = step.iter().map(|(seq, _)| *seq).collect();
                self.erase_step(of, &numbers, actor, now, &mut pace, &mut log).await?;
                done.payloads = done.payloads.saturating_add(count as u64);
                rows = rest;
            }
        }
        // What an erasure that was cut off left there goes with it.
        let indexed = self.index_erase().await?;
        done.longest = pace.longest().max(self.give_back(&mut log).await?);
        done.logs_emptied = log.empty().await? && indexed;
        log.close().await?;
        let mut beside = Vec::new();
        if let Some(folder) = self.audit.path.parent() {
            erase_in_copies(folder, of).await?;
            beside = remains_of_ledger(folder).map_err(files("read", folder))?;
        }
        done.beside(beside, None);
        Ok(done)
    }

    /// Payloads among the next rows after `after`, with their lengths, and how far was looked.
    async fn payloads_of(
        &self,
        of: &EraseOf,
        after: i64,
        head: i64,
    ) -> Result<(Vec<(i64, u64)>, i64), StoreError> {
        const COLUMNS: &str = "select p.seq,
                coalesce(octet_length(p.arguments), 0) + coalesce(octet_length(p.result), 0)
            from payloads p join calls c on c.seq = p.seq where ";
        let (sql, last) = match of {
            EraseOf::Call(_) => (format!("{COLUMNS} c.id = ? order by p.seq"), head),
            EraseOf::Caller(_) => (
                format!("{COLUMNS} c.caller = ? and p.seq > ? and p.seq <= ? order by p.seq"),
                after.saturating_add(PAGE).min(head),
            ),
        };
        let query = sqlx::query(AssertSqlSafe(sql));
        let query = match of {
            EraseOf::Call(id) => query.bind(id.as_bytes().as_slice()),
            EraseOf::Caller(name) => query.bind(name).bind(after).bind(last),
        };
        let rows = query.fetch_all(&self.audit.own).await?;
        let rows = rows.iter().map(seq_and_length).collect::<Result<_, _>>()?;
        Ok((rows, last))
    }

    async fn erase_step(
        &self,
        of: &EraseOf,
        numbers: &[i64],
        actor: &str,
        now: Timestamp,
        pace: &mut Pace,
        log: &mut Log,
    ) -> Result<(), StoreError> {
        let rows = ranges(numbers);
        let (key, value) = match of {
            EraseOf::Caller(name) => ("caller", name.clone()),
            EraseOf::Call(id) => ("call", id.to_string()),
        };
        let entry = EntryRow {
            seq: 0,
            at: now,
            kind: ERASED.to_owned(),
            actor: actor.to_owned(),
            subject: "ledger".to_owned(),
            detail: json!({ "rows": rows, key: value }).to_string(),
        };
        // As for [`read_ahead`].
        sqlx::query(
            "select max(length(arguments)), max(length(result)) from payloads
             where seq in (select value from json_each(?))",
        )
        .bind(format!("{numbers:?}"))
        .fetch_one(&self.audit.own)
        .await?;
        let mut writer = self.audit.writer().await?;
        let began = clock::uptime();
        // What is deleted is overwritten, also where a whole page becomes free.
        raw_sql("pragma secure_delete = on").execute(&mut *writer).await?;
        let mut transaction = begin(&mut writer).await?;
        append(&mut transaction, &self.ledger_key, &[entry], &[], &self.audit.courtesy).await?;
        for (first, last) in &rows {
            sqlx::query("delete from payloads where seq >= ? and seq <= ?")
                .bind(first)
                .bind(last)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        raw_sql("pragma secure_delete = fast").execute(&mut *writer).await?;
        drop(writer);
        let took = clock::uptime().since(began);
        pace.took(took);
        log.after_step(took).await
    }
}

/// The last of the oldest rows that are from before `cutoff`. A row that claims to be from the future
/// keeps nothing, and neither does it go before the next one does.
async fn due_by_age(
    reader: &mut SqliteConnection,
    cutoff: Timestamp,
    now: Timestamp,
) -> Result<Option<i64>, StoreError> {
    let (mut after, mut due, mut seen) = (0, None, 0);
    // To remove nothing but entries about removing makes another such entry.
    let mut worth = false;
    while seen < RUN {
        let rows = sqlx::query(
            "select seq, at, own from
                (select * from (select seq, started_at_ms as at, false as own from calls
                    where seq > ?1 order by seq limit ?2)
                 union all
                 select * from (select seq, at_ms, kind = ?3 from entries
                    where seq > ?1 order by seq limit ?2))
             order by seq limit ?2",
        )
        .bind(after)
        .bind(PAGE)
        .bind(PRUNED)
        .fetch_all(&mut *reader)
        .await?;
        seen += rows.len();
        let Some(last) = rows.last() else { break };
        after = last.try_get("seq")?;
        for row in &rows {
            let at = Timestamp::from_millis(row.try_get("at")?);
            if at < cutoff {
                due = Some(row.try_get("seq")?);
                worth |= !row.try_get::<bool, _>("own")?;
            } else if at <= now {
                return Ok(due.filter(|_| worth));
            }
        }
    }
    Ok(due.filter(|_| worth))
}

/// The last of the oldest rows that are too many, as far as can be told from what a row takes.
async fn due_by_size(reader: &mut SqliteConnection, bytes: u64) -> Result<Option<i64>, StoreError> {
    let used = used_bytes(reader).await?;
    let (oldest, newest) = bounds(reader).await?;
    let rows = newest.saturating_sub(oldest).saturating_add(1);
    // Each run adds an entry: it must be worth more than that.
    if used <= bytes || rows <= FEWEST + FEWEST / 10 {
        return Ok(None);
    }
    let excess = u128::from(used - bytes) * u128::try_from(rows).unwrap_or(0) / u128::from(used);
    let excess = i64::try_from(excess).unwrap_or(i64::MAX).saturating_add(64);
    let excess = excess.min(i64::try_from(RUN).unwrap_or(i64::MAX)).min(rows - FEWEST);
    let through: Option<i64> = sqlx::query_scalar(
        "select max(seq) from (select max(seq) as seq from calls where seq < ?1
            union all select max(seq) from entries where seq < ?1)",
    )
    .bind(oldest.saturating_add(excess))
    .fetch_one(&mut *reader)
    .await?;
    Ok(through)
}

/// The last row up to `due` that is not after the beginning of a call that is under way: without it, nobody
/// would know of the call when the router is cut off.
async fn before_calls_under_way(
    reader: &mut SqliteConnection,
    due: i64,
    now: Timestamp,
) -> Result<Option<i64>, StoreError> {
    let first: Option<i64> = sqlx::query_scalar(
        "select min(e.seq) from entries e
         where e.seq <= ?1 and e.kind = ?2 and e.at_ms > ?3
            and e.seq > coalesce((select seq from entries
                where kind in ('audit.started', 'audit.stopped') order by seq desc limit 1), 0)
            and not exists
                (select 1 from calls c where c.id = unhex(replace(e.subject, '-', '')))",
    )
    .bind(due)
    .bind(CALL_STARTED)
    .bind(now.minus(LONGEST_CALL).as_millis())
    .fetch_one(&mut *reader)
    .await?;
    let Some(first) = first else { return Ok(Some(due)) };
    Ok(sqlx::query_scalar(
        "select max(seq) from (select max(seq) as seq from calls where seq < ?1
            union all select max(seq) from entries where seq < ?1)",
    )
    .bind(first)
    .fetch_one(&mut *reader)
    .await?)
}

/// Bytes of the pages that hold something.
async fn used_bytes(reader: &mut SqliteConnection) -> Result<u64, StoreError> {
    let row = sqlx::query(
        "select (select page_count from pragma_page_count),
                (select freelist_count from pragma_freelist_count),
                (select page_size from pragma_page_size)",
    )
    .fetch_one(reader)
    .await?;
    let (pages, unused, size): (i64, i64, i64) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    Ok(u64::try_from(pages.saturating_sub(unused).saturating_mul(size)).unwrap_or(0))
}

async fn bounds(reader: &mut SqliteConnection) -> Result<(i64, i64), StoreError> {
    let row = sqlx::query(BOUNDS).fetch_one(reader).await?;
    let (oldest, newest): (Option<i64>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
    Ok((oldest.unwrap_or(0), newest.unwrap_or(0)))
}

/// The last row of a step that begins at the oldest row and takes about `budget` bytes.
async fn step_end(
    reader: &mut SqliteConnection,
    through: i64,
    budget: u64,
) -> Result<Option<i64>, StoreError> {
    let (oldest, _) = bounds(reader).await?;
    if oldest > through || oldest == 0 {
        return Ok(None);
    }
    let rows = i64::try_from(budget / ROW_BYTES).unwrap_or(STEP_ROWS).clamp(1, STEP_ROWS);
    let last = oldest.saturating_add(rows - 1).min(through);
    let payloads = sqlx::query(
        "select seq, coalesce(octet_length(arguments), 0) + coalesce(octet_length(result), 0)
         from payloads where seq >= ? and seq <= ? order by seq",
    )
    .bind(oldest)
    .bind(last)
    .fetch_all(reader)
    .await?;
    let mut bytes = 0_u64;
    for row in &payloads {
        let (seq, length) = seq_and_length(row)?;
        bytes = bytes.saturating_add(length);
        if bytes > budget {
            return Ok(Some(seq));
        }
    }
    Ok(Some(last))
}

/// Counts the rows up to `last`, and reads all that goes with them. What is old is seldom in memory, and
/// whoever removes it straight from the disk keeps others from writing meanwhile.
async fn read_ahead(reader: &mut SqliteConnection, last: i64) -> Result<i64, StoreError> {
    let rows = sqlx::query_scalar(
        // The last column of a row, and so all of its pages; and of calls what finds them by their id.
        "select (select count(*) from calls where seq <= ?1)
              + (select count(*) from entries where seq <= ?1),
            (select max(c.breaker) from calls c
                where c.seq <= ?1 and exists (select 1 from calls i where i.id = c.id)),
            (select max(hash) from entries where seq <= ?1),
            (select max(http_status) from attempts where seq <= ?1)",
    )
    .bind(last)
    .fetch_one(&mut *reader)
    .await?;
    read_payloads(reader, last).await?;
    Ok(rows)
}

/// The same for the payloads alone.
pub(super) async fn read_payloads(
    reader: &mut SqliteConnection,
    last: i64,
) -> Result<(), StoreError> {
    // A length in characters is had by reading them.
    sqlx::query("select max(length(arguments)), max(length(result)) from payloads where seq <= ?")
        .bind(last)
        .fetch_one(reader)
        .await?;
    Ok(())
}

/// The row `last`, whose hash becomes the beginning of the chain; or the next one that has a hash, where
/// somebody took it away: what is missing must not keep the rest.
async fn hashed_row(
    reader: &mut SqliteConnection,
    last: i64,
    through: i64,
) -> Result<i64, StoreError> {
    let base: i64 = sqlx::query_scalar("select base_seq from ledger where id = 1")
        .fetch_one(&mut *reader)
        .await?;
    // Rows from before the chain have none.
    if last <= base {
        return Ok(last);
    }
    let found: Option<i64> = sqlx::query_scalar(
        "select min(seq) from
            (select * from (select seq from calls
                where seq >= ?1 and seq <= ?2 and hash is not null order by seq limit 1)
             union all
             select * from (select seq from entries
                where seq >= ?1 and seq <= ?2 order by seq limit 1))",
    )
    .bind(last)
    .bind(through)
    .fetch_one(reader)
    .await?;
    found.ok_or_else(|| StoreError::bad_value("ledger", "base_seq", &last.to_string()))
}

fn seq_and_length(row: &SqliteRow) -> Result<(i64, u64), StoreError> {
    let (seq, length): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    Ok((seq, u64::try_from(length).unwrap_or(0)))
}

/// Copies that were made before an upgrade hold what the ledger held then, and so does what a restore
/// replaced.
async fn erase_in_copies(folder: &Path, of: &EraseOf) -> Result<(), StoreError> {
    let reading = |source| StoreError::Files { action: "read", path: folder.to_owned(), source };
    let replaced = Some(folder.join(REPLACED).join(AUDIT.file)).filter(|path| path.exists());
    let mut copies: Vec<PathBuf> = replaced.into_iter().collect();
    for file in fs::read_dir(folder).map_err(reading)? {
        let path = file.map_err(reading)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let version = name.strip_prefix("audit.v").and_then(|rest| rest.strip_suffix(".db"));
        if version.is_some_and(|version| version.parse::<usize>().is_ok()) {
            copies.push(path);
        }
    }
    for path in copies {
        let opening = |error| StoreError::while_opening(error, &path);
        let options = connect_options(&path, &AUDIT);
        let mut copy = options.connect().await.map_err(opening)?;
        if let Version::Known(_) = identify(&mut copy, &path, &AUDIT).await? {
            raw_sql("pragma secure_delete = on").execute(&mut copy).await?;
            let (column, query) = match of {
                EraseOf::Caller(_) => ("caller", None),
                EraseOf::Call(id) => ("id", Some(id.as_bytes().as_slice())),
            };
            let sql = format!(
                "delete from payloads where seq in (select seq from calls where {column} = ?)"
            );
            let delete = sqlx::query(AssertSqlSafe(sql));
            let delete = match (of, query) {
                (EraseOf::Caller(name), _) => delete.bind(name),
                (EraseOf::Call(_), id) => delete.bind(id),
            };
            delete.execute(&mut copy).await?;
            raw_sql("vacuum").execute(&mut copy).await?;
        }
        copy.close().await?;
    }
    Ok(())
}
