//! Looking at the ledger row by row, for what its index does not have.
//!
//! Changes when rows are looked at differently. A statement looks at a bounded number of rows and an
//! answer for a bounded time, so that neither holds up other readers, nor the log, while the index is
//! made anew.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::{QueryBuilder, Sqlite};

use super::fts::TextQuery;
use super::search::{has_text, push_filter};
use crate::clock;
use crate::model::Uptime;
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::audit::{SELECT, call};
use crate::store::{AuditFilter, CallRow, StoreError};

/// How long rows are looked at for one answer; then it says how far that came.
pub(in crate::store::sqlite) const PATIENCE: Duration = Duration::from_secs(3);
/// Numbers that one statement looks at: some tens of milliseconds, also when none is wanted.
pub(in crate::store::sqlite) const LOOKED_AT: i64 = 16_384;
/// The same where each row's texts are read.
const LOOKED_INTO: i64 = 1_024;
/// Rows before other tasks of the thread get a turn.
const AT_ONCE: usize = 32;

/// Which rows are wanted of the ledger itself.
#[derive(Clone, Copy)]
pub(super) struct Range {
    /// Only later ones.
    pub(super) above: i64,
    /// Only earlier ones.
    pub(super) below: i64,
}

/// Rows that were found, newest first.
pub(super) struct Looked {
    pub(super) rows: Vec<CallRow>,
    /// Below this nothing was looked at, for want of time; `None` when all was, or enough was found.
    pub(super) reached: Option<i64>,
}

impl SqliteStore {
    /// Looks at every row of the range, the newest first, until `need` are found or it is `until`.
    pub(super) async fn look_through(
        &self,
        filter: &AuditFilter,
        text: Option<&TextQuery>,
        mut range: Range,
        need: usize,
        until: Uptime,
    ) -> Result<Looked, StoreError> {
        let mut rows = Vec::new();
        let most = if text.is_some() { LOOKED_INTO } else { LOOKED_AT };
        loop {
            // Numbers may be missing; a hole must not cost a statement for each of its parts.
            let newest: Option<i64> =
                sqlx::query_scalar("select max(seq) from calls where seq > ? and seq < ?")
                    .bind(range.above)
                    .bind(range.below)
                    .fetch_one(&self.audit.readers)
                    .await?;
            let Some(newest) = newest else { return Ok(Looked { rows, reached: None }) };
            let above = range.above.max(newest.saturating_sub(most));
            let stretch = Range { above, below: newest.saturating_add(1) };
            self.look_at(filter, text, stretch, need, &mut rows).await?;
            if rows.len() >= need {
                return Ok(Looked { rows, reached: None });
            }
            range.below = above.saturating_add(1);
            if range.below > range.above.saturating_add(1) && clock::uptime() >= until {
                return Ok(Looked { rows, reached: Some(range.below) });
            }
        }
    }

    /// Adds those of a stretch, up to `need` in all.
    async fn look_at(
        &self,
        filter: &AuditFilter,
        text: Option<&TextQuery>,
        range: Range,
        need: usize,
        rows: &mut Vec<CallRow>,
    ) -> Result<(), StoreError> {
        let mut query = ledger_query(filter, text.is_some(), range);
        if text.is_none() {
            let missing = need.saturating_sub(rows.len());
            query.push(" limit ").push_bind(i64::try_from(missing).unwrap_or(i64::MAX));
        }
        let mut found = query.build().fetch(&self.audit.readers);
        let mut seen = 0_usize;
        while rows.len() < need
            && let Some(row) = found.try_next().await?
        {
            seen += 1;
            if seen.is_multiple_of(AT_ONCE) {
                tokio::task::yield_now().await;
            }
            if text.is_none_or(|text| has_text(text, &row)) {
                rows.push(call(&row)?);
            }
        }
        Ok(())
    }
}

/// The calls of a range of the ledger that the filter wants, newest first; its text is left to
/// whoever reads them.
fn ledger_query(filter: &AuditFilter, with_text: bool, range: Range) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(SELECT);
    if with_text {
        query.push(", p.arguments, p.result from calls c left join payloads p on p.seq = c.seq");
    } else {
        query.push(" from calls c");
    }
    query.push(" where c.seq > ").push_bind(range.above);
    query.push(" and c.seq < ").push_bind(range.below);
    push_filter(&mut query, filter);
    query.push(" order by c.seq desc");
    query
}
