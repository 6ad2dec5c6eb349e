//! Reading table `entries`: what is on record beside calls. Writing it is `ledger.rs`'s.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::SqliteStore;
use super::index::{LOOKED_AT, PATIENCE};
use super::ledger::entry;
use crate::clock;
use crate::store::{Cursor, EntryFilter, EntryPage, EntryRow, StoreError};

/// Entries from `first` to `last` that the filter wants, oldest first, at most `limit`.
pub(super) async fn entries_between(
    reader: &mut SqliteConnection,
    filter: &EntryFilter,
    first: i64,
    last: i64,
    limit: u16,
) -> Result<Vec<EntryRow>, StoreError> {
    let mut query = matching(filter, first, last.saturating_add(1));
    query.push(" order by seq limit ").push_bind(i64::from(limit));
    query.build().fetch_all(reader).await?.iter().map(entry).collect()
}

impl SqliteStore {
    pub(in crate::store) async fn audit_entry_page(
        &self,
        filter: &EntryFilter,
        cursor: Option<Cursor>,
        limit: u16,
    ) -> Result<EntryPage, StoreError> {
        let limit = usize::from(limit.max(1));
        let mut below = cursor.map_or(i64::MAX, |Cursor(seq)| seq);
        let until = clock::uptime().plus(PATIENCE);
        let mut rows = Vec::new();
        // One more than asked for says whether there is a next page.
        while rows.len() <= limit {
            let oldest: Option<i64> = sqlx::query_scalar(
                "select min(seq) from
                    (select seq from entries where seq < ? order by seq desc limit ?)",
            )
            .bind(below)
            .bind(LOOKED_AT)
            .fetch_one(&self.audit.readers)
            .await?;
            let Some(oldest) = oldest else { return Ok(EntryPage { rows, next: None }) };
            let missing = (limit + 1).saturating_sub(rows.len());
            let mut query = matching(filter, oldest, below);
            query.push(" order by seq desc limit ");
            query.push_bind(i64::try_from(missing).unwrap_or(i64::MAX));
            let found = query.build().fetch_all(&self.audit.readers).await?;
            for row in &found {
                rows.push(entry(row)?);
            }
            below = oldest;
            if rows.len() <= limit && clock::uptime() >= until {
                return Ok(EntryPage { rows, next: Some(Cursor(below)) });
            }
        }
        rows.truncate(limit);
        let next = rows.last().map(|row| Cursor(row.seq));
        Ok(EntryPage { rows, next })
    }
}

/// Entries from `oldest` to before `below` that the filter wants.
fn matching(filter: &EntryFilter, oldest: i64, below: i64) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(
        "select seq, at_ms, kind, actor, subject, detail from entries where seq >= ",
    );
    query.push_bind(oldest).push(" and seq < ").push_bind(below);
    if let Some(kind) = &filter.kind {
        match kind.strip_suffix('*') {
            Some(begin) => {
                query.push(" and substr(kind, 1, length(").push_bind(begin.to_owned());
                query.push(")) = ").push_bind(begin.to_owned());
            }
            None => {
                query.push(" and kind = ").push_bind(kind.clone());
            }
        }
    }
    for (column, value) in [("actor", &filter.actor), ("subject", &filter.subject)] {
        if let Some(value) = value {
            query.push(format!(" and {column} = ")).push_bind(value.clone());
        }
    }
    if let Some(since) = filter.since {
        query.push(" and at_ms >= ").push_bind(since.as_millis());
    }
    if let Some(until) = filter.until {
        query.push(" and at_ms < ").push_bind(until.as_millis());
    }
    query
}
