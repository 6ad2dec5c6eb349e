//! Payloads that are kept for less long than their calls, and old copies of the ledger.
//!
//! Changes when something else goes by age alone. An entry in the chain comes with each step and says up to
//! where payloads are gone, so that a router that is killed in between leaves a ledger that verifies, and an
//! index that knows what it has to let go.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;
use sqlx::{AssertSqlSafe, Row, raw_sql};

use super::backup::REPLACED;
use super::ledger::append;
use super::log::Log;
use super::upkeep::{ROW_BYTES, STEP_BYTES, read_payloads};
use super::verify::EXPIRED;
use super::{SqliteStore, begin};
use crate::clock;
use crate::model::Timestamp;
use crate::store::upkeep::Pace;
use crate::store::{EntryRow, StoreError};

/// Payloads that are looked through at once.
const RUN: i64 = 20_000;
/// And at first.
const FEW: i64 = 64;

impl SqliteStore {
    pub(in crate::store) async fn expire_payloads(
        &self,
        cutoff: Timestamp,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let _one_at_a_time = self.upkeep.lock().await;
        let mut due = self.payloads_due(cutoff, now).await?;
        if due.is_empty() {
            return Ok(0);
        }
        let mut log = Log::open(&self.audit.options).await?;
        // Not the smallest steps: with each comes an entry.
        let [_, least, most] = STEP_BYTES;
        let mut pace = Pace::new(least, least, most);
        let (mut gone, mut through) = (0_u64, self.expired_through().await?);
        while !due.is_empty() {
            let mut rows = due.as_slice();
            while !rows.is_empty() {
                let mut bytes = 0_u64;
                let fitting = rows.iter().take_while(|(_, length)| {
                    let fits = bytes < pace.size();
                    bytes = bytes.saturating_add(length.saturating_add(ROW_BYTES));
                    fits
                });
                let count = fitting.count().max(1);
                let (step, rest) = rows.split_at_checked(count).unwrap_or((rows, &[]));
                let last = step.last().map_or(through, |(last, _)| *last);
                let took = self.expire_step((through, last), cutoff, now).await?;
                through = last;
                pace.took(took);
                log.after_step(took).await?;
                gone = gone.saturating_add(step.len() as u64);
                rows = rest;
            }
            due = self.payloads_due(cutoff, now).await?;
        }
        self.give_back(&mut log).await?;
        log.empty().await?;
        log.close().await?;
        Ok(gone)
    }

    /// The last row whose payload went before.
    async fn expired_through(&self) -> Result<i64, StoreError> {
        let through: Option<Option<i64>> = sqlx::query_scalar(
            "select json_extract(detail, '$.through') from entries where kind = ?
             order by seq desc limit 1",
        )
        .bind(EXPIRED)
        .fetch_optional(&self.audit.own)
        .await?;
        Ok(through.flatten().unwrap_or(0))
    }

    /// Removes the payloads after the first of these rows up to the last; gives how long that took.
    async fn expire_step(
        &self,
        (after, last): (i64, i64),
        cutoff: Timestamp,
        now: Timestamp,
    ) -> Result<Duration, StoreError> {
        let before = cutoff.to_string();
        let entry = EntryRow {
            seq: 0,
            at: now,
            kind: EXPIRED.to_owned(),
            actor: "router".to_owned(),
            subject: "ledger".to_owned(),
            detail: json!({ "rows": [[after.saturating_add(1), last]], "through": last, "before": before })
                .to_string(),
        };
        let mut reader = self.audit.own.acquire().await?;
        read_payloads(&mut reader, last).await?;
        drop(reader);
        let mut writer = self.audit.writer().await?;
        let began = clock::uptime();
        let mut transaction = begin(&mut writer).await?;
        append(&mut transaction, &self.ledger_key, &[entry], &[], &self.audit.courtesy).await?;
        let sql = format!("delete from payloads where seq <= {last}");
        raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
        transaction.commit().await?;
        drop(writer);
        Ok(clock::uptime().since(began))
    }

    /// The oldest payloads, with their lengths, as far as they are of calls from before `cutoff`. A call
    /// that claims to be from the future keeps none, and goes when the next one does.
    async fn payloads_due(
        &self,
        cutoff: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        // Mostly none is due, or few.
        let few = self.payloads_due_of(FEW, cutoff, now).await?;
        if few.len() < usize::try_from(FEW).unwrap_or(usize::MAX) {
            return Ok(few);
        }
        self.payloads_due_of(RUN, cutoff, now).await
    }

    /// The same among this many.
    async fn payloads_due_of(
        &self,
        most: i64,
        cutoff: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        // Lengths of columns, and not of copies: those are had without reading what is that long.
        let rows = sqlx::query(
            "select p.seq, coalesce(octet_length(p.arguments), 0) + coalesce(octet_length(p.result), 0),
                coalesce(c.started_at_ms, 0)
             from payloads p left join calls c on c.seq = p.seq order by p.seq limit ?",
        )
        .bind(most)
        .fetch_all(&self.audit.own)
        .await?;
        let (mut due, mut certain) = (Vec::new(), 0);
        for row in &rows {
            let (seq, length, at): (i64, i64, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let at = Timestamp::from_millis(at);
            if at >= cutoff && at <= now {
                break;
            }
            due.push((seq, u64::try_from(length).unwrap_or(0)));
            if at < cutoff {
                certain = due.len();
            }
        }
        due.truncate(certain);
        Ok(due)
    }

    pub(in crate::store) async fn remove_old_copies(
        &self,
        cutoff: Timestamp,
    ) -> Result<Vec<String>, StoreError> {
        // A restore must not be at it.
        let _one_at_a_time = self.upkeep.lock().await;
        match self.audit.path.parent() {
            Some(folder) => remove_old_copies(folder, cutoff),
            None => Ok(Vec::new()),
        }
    }
}

fn remove_old_copies(folder: &Path, cutoff: Timestamp) -> Result<Vec<String>, StoreError> {
    let failed = |action| {
        let path = folder.to_owned();
        move |source| StoreError::Files { action, path, source }
    };
    let mut removed = Vec::new();
    for file in fs::read_dir(folder).map_err(failed("read"))? {
        let path = file.map_err(failed("read"))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let version = name.strip_prefix("audit.v").and_then(|rest| rest.strip_suffix(".db"));
        let is_copy = version.is_some_and(|version| version.parse::<u32>().is_ok());
        let newest = match (is_copy, name == REPLACED) {
            (true, _) => written(&path),
            (_, true) => newest_in(&path),
            (false, false) => None,
        };
        // Where it cannot be told, it stays.
        if newest.is_none_or(|newest| newest >= cutoff) {
            continue;
        }
        let name = name.to_owned();
        if is_copy {
            fs::remove_file(&path).map_err(failed("remove"))?;
        } else {
            fs::remove_dir_all(&path).map_err(failed("remove"))?;
        }
        removed.push(name);
    }
    Ok(removed)
}

fn newest_in(folder: &Path) -> Option<Timestamp> {
    let files: Vec<PathBuf> = fs::read_dir(folder)
        .ok()?
        .map(|file| file.map(|file| file.path()))
        .collect::<Result<_, _>>()
        .ok()?;
    let times: Vec<Timestamp> = files.iter().map(|file| written(file)).collect::<Option<_>>()?;
    times.into_iter().max()
}

/// When a file was last written.
pub(super) fn written(path: &Path) -> Option<Timestamp> {
    let at = fs::metadata(path).ok()?.modified().ok()?;
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Some(Timestamp::from_millis(i64::try_from(since.as_millis()).ok()?))
}
