//! Sums of calls: from the index, and what is not in it yet from the ledger.
//!
//! Changes when calls are summed differently.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, SqlitePool};

use super::follow::{HOUR, MINUTE};
use super::rollup::{Cell, CellKey, for_each};
use super::search::push_filter;
use super::{Dimension, damaged};
use crate::model::{Outcome, Timestamp};
use crate::store::sqlite::SqliteStore;
use crate::store::{AuditFilter, Stats, StatsBy, StatsPer, StatsQuery, StatsRow, StoreError};

const DAY: i64 = 24 * HOUR;
/// Times beyond it, thirty thousand years away, are as good as none.
const FAR: i64 = 1 << 50;
/// Rows before other tasks of the thread get a turn.
const ROWS_AT_ONCE: usize = 128;

/// What is summed for one name in one span.
#[derive(Default)]
struct Sum {
    cell: Cell,
    errors: u64,
}

/// By begin of the span and name.
type Sums<N> = HashMap<(i64, N), Sum>;

/// From when until when, in whole minutes.
#[derive(Clone, Copy)]
struct Span {
    since: i64,
    until: i64,
    per: StatsPer,
}

impl Span {
    fn of(query: &StatsQuery) -> Self {
        let clamp = |at: Timestamp| at.as_millis().clamp(-FAR, FAR);
        let up = |millis: i64| (millis + MINUTE - 1).div_euclid(MINUTE) * MINUTE;
        let since = clamp(query.since).div_euclid(MINUTE) * MINUTE;
        Self { since, until: up(clamp(query.until)).max(since), per: query.per }
    }

    /// When the row begins that a call at `at` is summed in.
    fn start(self, at: i64) -> i64 {
        match self.per {
            StatsPer::Hour => at.div_euclid(HOUR) * HOUR,
            StatsPer::Day => at.div_euclid(DAY) * DAY,
            StatsPer::Total => self.since,
        }
    }

    /// What to read: width of the sums, from, until.
    fn pieces(self) -> Vec<(i64, i64, i64)> {
        let first = (self.since + HOUR - 1).div_euclid(HOUR) * HOUR;
        let last = self.until.div_euclid(HOUR) * HOUR;
        if first >= last {
            return vec![(MINUTE, self.since, self.until)];
        }
        vec![(MINUTE, self.since, first), (HOUR, first, last), (MINUTE, last, self.until)]
    }
}

/// The filter in numbers of words; 0 is the number of none.
struct Filter {
    server: Option<i64>,
    tool: Option<(i64, i64)>,
    caller: Option<i64>,
    outcome: Option<i64>,
    ok: i64,
}

impl Filter {
    /// `None` when a value is in no call of the index.
    async fn resolve(
        connection: &mut SqliteConnection,
        query: &StatsQuery,
    ) -> Result<Option<Self>, StoreError> {
        let filter = &query.filter;
        let server = number(connection, Dimension::Server, filter.server.as_deref()).await?;
        let caller = number(connection, Dimension::Caller, filter.caller.as_deref()).await?;
        let outcome = filter.outcome.map(Outcome::as_str);
        let outcome = number(connection, Dimension::Outcome, outcome).await?;
        let ok = number(connection, Dimension::Outcome, Some(Outcome::Ok.as_str())).await?;
        let tool = filter.tool.as_deref();
        let exposed = number(connection, Dimension::Tool, tool).await?;
        let upstream = number(connection, Dimension::UpstreamTool, tool).await?;
        let tool = exposed.zip(upstream);
        if [server, caller, outcome].contains(&Some(0)) || tool == Some((0, 0)) {
            return Ok(None);
        }
        Ok(Some(Self { server, tool, caller, outcome, ok: ok.unwrap_or(0) }))
    }

    fn admits(&self, key: &CellKey) -> bool {
        self.caller.is_none_or(|caller| caller == key.caller)
            && self.outcome.is_none_or(|outcome| outcome == key.outcome)
            && self.tool.is_none_or(|(exposed, upstream)| {
                key.tool != 0
                    && (key.tool == exposed || (upstream != 0 && key.upstream_tool == upstream))
            })
    }
}

/// The number of a word, 0 when it has none; `None` for no word.
async fn number(
    connection: &mut SqliteConnection,
    dimension: Dimension,
    value: Option<&str>,
) -> Result<Option<i64>, StoreError> {
    let Some(value) = value else { return Ok(None) };
    let id: Option<i64> =
        sqlx::query_scalar("select id from words where dimension = ? and value = ?")
            .bind(dimension.number())
            .bind(value)
            .fetch_optional(connection)
            .await?;
    Ok(Some(id.unwrap_or(0)))
}

impl SqliteStore {
    pub(in crate::store) async fn audit_stats(
        &self,
        query: &StatsQuery,
    ) -> Result<Stats, StoreError> {
        let span = Span::of(query);
        let (mut sums, indexed) = match self.index.readers() {
            None => (Sums::new(), 0),
            Some(readers) => self.sums(&readers, query, span).await.unwrap_or_else(|error| {
                self.index.unread(&error);
                (Sums::new(), 0)
            }),
        };
        self.add_latest(&mut sums, query, span, indexed).await?;
        let mut rows: Vec<StatsRow> = sums
            .into_iter()
            .map(|((start, name), sum)| {
                let quantile = |part| sum.cell.latency.quantile(part).map(Duration::from_micros);
                StatsRow {
                    start: Timestamp::from_millis(start),
                    name,
                    calls: sum.cell.calls,
                    errors: sum.errors,
                    p50: quantile(0.5),
                    p95: quantile(0.95),
                    request_bytes: sum.cell.request_bytes,
                    response_bytes: sum.cell.response_bytes,
                }
            })
            .collect();
        rows.sort_unstable_by(|a, b| {
            a.start.cmp(&b.start).then(b.calls.cmp(&a.calls)).then(a.name.cmp(&b.name))
        });
        let index = self.index_state_at(indexed).await?;
        let (since, until) =
            (Timestamp::from_millis(span.since), Timestamp::from_millis(span.until));
        Ok(Stats { since, until, rows, index })
    }

    /// What the index has, and how far it is.
    async fn sums(
        &self,
        readers: &SqlitePool,
        query: &StatsQuery,
        span: Span,
    ) -> Result<(Sums<Option<String>>, i64), StoreError> {
        // One transaction: the sums go as far as it says.
        let mut transaction = readers.begin().await?;
        let indexed: i64 = sqlx::query_scalar("select indexed_seq from state")
            .fetch_one(&mut *transaction)
            .await?;
        let Some(filter) = Filter::resolve(&mut transaction, query).await? else {
            return Ok((Sums::new(), indexed));
        };
        let mut sums: Sums<i64> = Sums::new();
        for (width, from, until) in span.pieces() {
            let mut sql = QueryBuilder::<Sqlite>::new(
                "select start, server, cells from rollups where width = ",
            );
            sql.push_bind(width).push(" and start >= ").push_bind(from);
            sql.push(" and start < ").push_bind(until);
            if let Some(server) = filter.server {
                sql.push(" and server = ").push_bind(server);
            }
            let mut stored = sql.build().fetch(&mut *transaction);
            while let Some(row) = stored.try_next().await? {
                let (start, server): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
                let start = span.start(start);
                self.add(&mut sums, query.by, &filter, (start, server), row.try_get(2)?)?;
                tokio::task::yield_now().await;
            }
        }
        let names = names(&mut transaction, query.by).await?;
        let named =
            sums.into_iter().map(|((start, id), sum)| ((start, names.get(&id).cloned()), sum));
        Ok((named.collect(), indexed))
    }

    fn add(
        &self,
        sums: &mut Sums<i64>,
        by: StatsBy,
        filter: &Filter,
        (start, server): (i64, i64),
        cells: &[u8],
    ) -> Result<(), StoreError> {
        // Cells of one name lie together for a tool; else there are few names.
        let mut local: BTreeMap<i64, Sum> = BTreeMap::new();
        let added = for_each(cells, |key, cell| {
            if !filter.admits(&key) {
                return Some(());
            }
            let name = match by {
                StatsBy::Server => server,
                StatsBy::Tool => key.tool,
                StatsBy::Caller => key.caller,
            };
            let sum = local
                .entry(name)
                .or_insert_with(|| sums.remove(&(start, name)).unwrap_or_default());
            let before = sum.cell.calls;
            cell.add_to(&mut sum.cell)?;
            if key.outcome != filter.ok {
                sum.errors = sum.errors.saturating_add(sum.cell.calls - before);
            }
            Some(())
        });
        sums.extend(local.into_iter().map(|(name, sum)| ((start, name), sum)));
        added.ok_or_else(|| damaged(&self.index.path, "rollups"))
    }

    /// Adds what came after the index.
    async fn add_latest(
        &self,
        sums: &mut Sums<Option<String>>,
        query: &StatsQuery,
        span: Span,
        indexed: i64,
    ) -> Result<(), StoreError> {
        let mut sql = QueryBuilder::<Sqlite>::new(
            "select c.server, c.tool, c.upstream_tool, c.caller, c.outcome, c.started_at_ms,
                    c.total_us, c.request_bytes, c.response_bytes
             from calls c where c.seq > ",
        );
        sql.push_bind(indexed).push(" and c.started_at_ms >= ").push_bind(span.since);
        sql.push(" and c.started_at_ms < ").push_bind(span.until);
        // Only what sums are kept by.
        let filter = AuditFilter {
            server: query.filter.server.clone(),
            tool: query.filter.tool.clone(),
            caller: query.filter.caller.clone(),
            outcome: query.filter.outcome,
            ..AuditFilter::default()
        };
        push_filter(&mut sql, &filter);
        let mut found = sql.build().fetch(&self.audit.readers);
        let mut seen = 0_usize;
        while let Some(row) = found.try_next().await? {
            seen += 1;
            if seen.is_multiple_of(ROWS_AT_ONCE) {
                tokio::task::yield_now().await;
            }
            let known = row.try_get::<Option<&str>, _>(2)?.is_some();
            if query.filter.tool.is_some() && !known {
                continue;
            }
            let name: Option<String> = match query.by {
                StatsBy::Server => row.try_get(0)?,
                StatsBy::Tool if known => Some(row.try_get(1)?),
                StatsBy::Tool => None,
                StatsBy::Caller => row.try_get(3)?,
            };
            let sum = sums.entry((span.start(row.try_get(5)?), name)).or_default();
            let unsigned =
                |column| row.try_get::<i64, _>(column).map(|n| u64::try_from(n).unwrap_or(0));
            sum.cell.record(unsigned(6)?, unsigned(7)?, unsigned(8)?);
            if row.try_get::<&str, _>(4)? != Outcome::Ok.as_str() {
                sum.errors = sum.errors.saturating_add(1);
            }
        }
        Ok(())
    }
}

/// The words of what is grouped by; there are as many as servers, tools or callers.
async fn names(
    connection: &mut SqliteConnection,
    by: StatsBy,
) -> Result<HashMap<i64, String>, StoreError> {
    let dimension = match by {
        StatsBy::Server => Dimension::Server,
        StatsBy::Tool => Dimension::Tool,
        StatsBy::Caller => Dimension::Caller,
    };
    let words: Vec<(i64, String)> =
        sqlx::query_as("select id, value from words where dimension = ?")
            .bind(dimension.number())
            .fetch_all(connection)
            .await?;
    Ok(words.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_pieces_are_the_span(since in -DAY..3 * DAY, length in 0..3 * DAY) {
            let span = Span::of(&StatsQuery {
                by: StatsBy::Server,
                per: StatsPer::Total,
                filter: crate::store::AuditFilter::default(),
                since: Timestamp::from_millis(since),
                until: Timestamp::from_millis(since + length),
            });
            prop_assert!(span.since <= since && since < span.since + MINUTE);
            prop_assert!(span.until >= since + length && span.until < since + length + MINUTE);
            let mut at = span.since;
            for (width, from, until) in span.pieces() {
                prop_assert_eq!(from, at);
                prop_assert!(from % width == 0 && until % width == 0);
                at = until;
            }
            prop_assert_eq!(at, span.until);
        }
    }
}
