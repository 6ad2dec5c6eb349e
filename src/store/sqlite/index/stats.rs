//! Sums of calls: from the index, and what is not in it yet from the ledger.
//!
//! Changes when calls are summed differently.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, SqlitePool};

use super::follow::{HOUR, MINUTE, is_away, is_fault};
use super::rollup::{Cell, CellKey, for_each};
use super::scan::{LOOKED_AT, PATIENCE};
use super::search::push_filter;
use super::{Dimension, damaged};
use crate::clock;
use crate::model::{Outcome, Timestamp, Uptime};
use crate::store::sqlite::SqliteStore;
use crate::store::{
    AuditFilter, IndexState, Stats, StatsBy, StatsPer, StatsQuery, StatsRow, StoreError,
    StoreFailure,
};

const DAY: i64 = 24 * HOUR;
/// Times beyond it, thirty thousand years away, are as good as none.
const FAR: i64 = 1 << 50;
/// Rows of an answer at most.
const MOST_ROWS: usize = 50_000;
/// Rows before other tasks of the thread get a turn.
const ROWS_AT_ONCE: usize = 128;

/// What is summed for one name in one span.
#[derive(Default)]
struct Sum {
    cell: Cell,
    outcomes: [u64; Outcome::ALL.len()],
    faults: u64,
    /// Of calls that were answered, where that is asked for.
    answered: Cell,
}

impl Sum {
    /// Counts calls that ended so.
    fn ended(&mut self, outcome: Option<Outcome>, is_fault: bool, calls: u64) {
        if let Some(count) = outcome.and_then(|outcome| self.outcomes.get_mut(outcome.index())) {
            *count = count.saturating_add(calls);
        }
        if is_fault {
            self.faults = self.faults.saturating_add(calls);
        }
    }

    /// All but those that ended as `ok`.
    fn errors(&self) -> u64 {
        let fine = self.outcomes.get(Outcome::Ok.index()).copied().unwrap_or(0);
        self.cell.calls.saturating_sub(fine)
    }
}

/// Whether the time of a call that ended so is that of an answer.
fn is_answer(outcome: Option<Outcome>) -> bool {
    matches!(outcome, Some(Outcome::Ok | Outcome::ToolError))
}

/// Sums by when their span begins, and name.
type Latest = HashMap<(i64, Option<String>), Sum>;

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
    /// The numbers of all outcomes, 0 for one that the index has not met.
    outcomes: [i64; Outcome::ALL.len()],
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
        let mut outcomes = [0; Outcome::ALL.len()];
        for (id, outcome) in outcomes.iter_mut().zip(Outcome::ALL) {
            let known = number(connection, Dimension::Outcome, Some(outcome.as_str())).await?;
            *id = known.unwrap_or(0);
        }
        let tool = filter.tool.as_deref();
        let exposed = number(connection, Dimension::Tool, tool).await?;
        let upstream = number(connection, Dimension::UpstreamTool, tool).await?;
        let tool = exposed.zip(upstream);
        if [server, caller, outcome].contains(&Some(0)) || tool == Some((0, 0)) {
            return Ok(None);
        }
        Ok(Some(Self { server, tool, caller, outcome, outcomes }))
    }

    /// The outcome with this number.
    fn outcome_of(&self, key: &CellKey) -> Option<Outcome> {
        let place = self.outcomes.iter().position(|id| *id == key.outcome_word() && *id != 0);
        place.and_then(|place| Outcome::ALL.get(place).copied())
    }

    fn admits(&self, key: &CellKey) -> bool {
        self.caller.is_none_or(|caller| caller == key.caller)
            && self.outcome.is_none_or(|outcome| outcome == key.outcome_word())
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
        self.audit_stats_within(query, PATIENCE).await
    }

    /// The same, looking at calls that are not in the index for so long.
    pub(in crate::store) async fn audit_stats_within(
        &self,
        query: &StatsQuery,
        patience: Duration,
    ) -> Result<Stats, StoreError> {
        let span = Span::of(query);
        let until = clock::uptime().plus(patience);
        let summed = match self.index.readers() {
            None => None,
            Some(readers) => match self.sums(&readers, query, span, until).await {
                Ok(summed) => Some(summed),
                Err(error)
                    if error.failure() == StoreFailure::Request
                        || matches!(error, StoreError::NotIndexed { .. }) =>
                {
                    return Err(error);
                }
                Err(error) => {
                    self.index.unread(&error);
                    None
                }
            },
        };
        let (mut rows, indexed) = match summed {
            Some(summed) => summed,
            None => {
                let latest = self.latest(query, span, 0, until).await?;
                let row = |((start, name), sum): ((i64, Option<String>), Sum)| {
                    sum.row(start, name, &query.within)
                };
                (latest.into_iter().map(row).collect(), 0)
            }
        };
        rows.sort_unstable_by(|a, b| {
            a.start.cmp(&b.start).then(b.calls.cmp(&a.calls)).then(a.name.cmp(&b.name))
        });
        let index = self.index_state_at(indexed).await?;
        let (since, until) =
            (Timestamp::from_millis(span.since), Timestamp::from_millis(span.until));
        Ok(Stats { since, until, rows, index })
    }

    /// What index and ledger have, and how far the index is.
    async fn sums(
        &self,
        readers: &SqlitePool,
        query: &StatsQuery,
        span: Span,
        until: Uptime,
    ) -> Result<(Vec<StatsRow>, i64), StoreError> {
        // One transaction: the sums go as far as it says.
        let mut transaction = readers.begin().await?;
        let indexed: i64 = sqlx::query_scalar("select indexed_seq from state")
            .fetch_one(&mut *transaction)
            .await?;
        let latest = self.latest(query, span, indexed, until).await?;
        let (mut latest, mut names) = by_number(&mut transaction, query.by, latest).await?;
        let mut rows: Vec<(i64, StatsRow)> = Vec::new();
        if let Some(filter) = Filter::resolve(&mut transaction, query).await? {
            // One span after the other: there may be many, and an open sum takes kilobytes.
            let mut open: Option<(i64, HashMap<i64, Sum>)> = None;
            for (width, from, until) in span.pieces() {
                let mut sql = QueryBuilder::<Sqlite>::new(
                    "select start, server, cells from rollups where width = ",
                );
                sql.push_bind(width).push(" and start >= ").push_bind(from);
                sql.push(" and start < ").push_bind(until);
                if let Some(server) = filter.server {
                    sql.push(" and server = ").push_bind(server);
                }
                sql.push(" order by start");
                let mut stored = sql.build().fetch(&mut *transaction);
                while let Some(row) = stored.try_next().await? {
                    let start = span.start(row.try_get(0)?);
                    if open.as_ref().is_none_or(|(open, _)| *open != start) {
                        if let Some((start, sums)) = open.take() {
                            finish(&mut rows, start, sums, &query.within)?;
                        }
                        open = Some((start, latest.remove(&start).unwrap_or_default()));
                    }
                    let Some((_, sums)) = &mut open else { continue };
                    self.add(sums, query, &filter, row.try_get(1)?, row.try_get(2)?)?;
                    tokio::task::yield_now().await;
                }
            }
            if let Some((start, sums)) = open {
                finish(&mut rows, start, sums, &query.within)?;
            }
        }
        for (start, sums) in latest {
            finish(&mut rows, start, sums, &query.within)?;
        }
        let ids = rows.iter().map(|(id, _)| *id).filter(|id| *id > 0).collect();
        names.extend(names_of(&mut transaction, &ids).await?);
        let named = rows.into_iter().map(|(id, row)| {
            let name = names.get(&id).cloned();
            StatsRow { name, ..row }
        });
        Ok((named.collect(), indexed))
    }

    fn add(
        &self,
        sums: &mut HashMap<i64, Sum>,
        query: &StatsQuery,
        filter: &Filter,
        server: i64,
        cells: &[u8],
    ) -> Result<(), StoreError> {
        for_each(cells, |key, cell| {
            if !filter.admits(&key) {
                return Some(());
            }
            let name = match query.by {
                StatsBy::Server => server,
                StatsBy::Tool => key.tool,
                StatsBy::Caller => key.caller,
            };
            let sum = sums.entry(name).or_default();
            let before = sum.cell.calls;
            cell.add_to(&mut sum.cell)?;
            let outcome = filter.outcome_of(&key);
            if is_answer(outcome) && !query.within.is_empty() {
                cell.add_to(&mut sum.answered)?;
            }
            let calls = sum.cell.calls.saturating_sub(before);
            sum.ended(outcome, key.is_fault(), calls);
            Some(())
        })
        .ok_or_else(|| damaged(&self.index.path, "rollups"))
    }

    /// What came after the index. Without it that may be all of the ledger: what cannot be summed in
    /// the time that an answer may take is refused.
    async fn latest(
        &self,
        query: &StatsQuery,
        span: Span,
        mut indexed: i64,
        until: Uptime,
    ) -> Result<Latest, StoreError> {
        let mut sums = Latest::new();
        loop {
            // Numbers may be missing; a hole must not cost a statement for each of its parts.
            let first: Option<i64> = sqlx::query_scalar("select min(seq) from calls where seq > ?")
                .bind(indexed)
                .fetch_one(&self.audit.readers)
                .await?;
            let Some(first) = first else { return Ok(sums) };
            let last = first.saturating_add(LOOKED_AT - 1);
            self.add_latest(query, span, (first, last), &mut sums).await?;
            indexed = last;
            if clock::uptime() >= until {
                let IndexState { behind, .. } = self.index_state_at(indexed).await?;
                if behind > 0 {
                    return Err(StoreError::NotIndexed { behind });
                }
            }
        }
    }

    /// Adds the calls with numbers from the first to the last.
    async fn add_latest(
        &self,
        query: &StatsQuery,
        span: Span,
        (first, last): (i64, i64),
        sums: &mut Latest,
    ) -> Result<(), StoreError> {
        let mut sql = QueryBuilder::<Sqlite>::new(
            "select c.server, c.tool, c.upstream_tool, c.caller, c.outcome, c.started_at_ms,
                    c.total_us, c.request_bytes, c.response_bytes, c.error_code
             from calls c where c.seq >= ",
        );
        sql.push_bind(first).push(" and c.seq <= ").push_bind(last);
        sql.push(" and c.started_at_ms >= ").push_bind(span.since);
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
            let outcome: &str = row.try_get(4)?;
            let known = row.try_get::<Option<&str>, _>(2)?.is_some() || is_away(outcome);
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
            let code: Option<&str> = row.try_get(9)?;
            let is_fault = is_fault(outcome, code.unwrap_or_default());
            let outcome = Outcome::parse(outcome);
            if is_answer(outcome) && !query.within.is_empty() {
                sum.answered.record(unsigned(6)?, 0, 0);
            }
            sum.ended(outcome, is_fault, 1);
            if sums.len() > MOST_ROWS {
                return Err(StoreError::TooManySums { most: MOST_ROWS });
            }
        }
        Ok(())
    }
}

impl Sum {
    fn row(&self, start: i64, name: Option<String>, within: &[Duration]) -> StatsRow {
        let quantile = |part| self.cell.latency.quantile(part).map(Duration::from_micros);
        StatsRow {
            start: Timestamp::from_millis(start),
            name,
            calls: self.cell.calls,
            errors: self.errors(),
            p50: quantile(0.5),
            p95: quantile(0.95),
            outcomes: self.outcomes,
            faults: self.faults,
            within: within
                .iter()
                .map(|limit| {
                    let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
                    self.answered.latency.within(micros)
                })
                .collect(),
            request_bytes: self.cell.request_bytes,
            response_bytes: self.cell.response_bytes,
        }
    }
}

/// Makes rows of the sums of a span, with the numbers of their names.
fn finish(
    rows: &mut Vec<(i64, StatsRow)>,
    start: i64,
    sums: HashMap<i64, Sum>,
    within: &[Duration],
) -> Result<(), StoreError> {
    rows.extend(sums.into_iter().map(|(id, sum)| (id, sum.row(start, None, within))));
    if rows.len() > MOST_ROWS {
        return Err(StoreError::TooManySums { most: MOST_ROWS });
    }
    Ok(())
}

/// Sums of one span after the other, by number of the name.
type Spans = BTreeMap<i64, HashMap<i64, Sum>>;

/// Sums by number instead of name. A name that the index does not have yet gets a number below 0;
/// those are given with their names.
async fn by_number(
    connection: &mut SqliteConnection,
    by: StatsBy,
    latest: Latest,
) -> Result<(Spans, HashMap<i64, String>), StoreError> {
    let dimension = match by {
        StatsBy::Server => Dimension::Server,
        StatsBy::Tool => Dimension::Tool,
        StatsBy::Caller => Dimension::Caller,
    };
    let (mut spans, mut names) = (Spans::new(), HashMap::new());
    let mut numbers: HashMap<String, i64> = HashMap::new();
    for ((start, name), sum) in latest {
        let id = match name {
            None => 0,
            Some(name) => match numbers.get(&name) {
                Some(id) => *id,
                None => {
                    let id = number(connection, dimension, Some(&name)).await?.unwrap_or(0);
                    let id =
                        if id == 0 { -1 - i64::try_from(names.len()).unwrap_or(0) } else { id };
                    if id < 0 {
                        names.insert(id, name.clone());
                    }
                    numbers.insert(name, id);
                    id
                }
            },
        };
        spans.entry(start).or_default().insert(id, sum);
    }
    Ok((spans, names))
}

async fn names_of(
    connection: &mut SqliteConnection,
    ids: &BTreeSet<i64>,
) -> Result<Vec<(i64, String)>, StoreError> {
    let list: Vec<String> = ids.iter().map(i64::to_string).collect();
    let words = "select id, value from words where id in (select value from json_each(?))";
    Ok(sqlx::query_as(words).bind(format!("[{}]", list.join(","))).fetch_all(connection).await?)
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
                filter: AuditFilter::default(),
                since: Timestamp::from_millis(since),
                until: Timestamp::from_millis(since + length),
                within: Vec::new(),
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
