//! Lists of calls, newest first: from the index, and what is not in it yet from the ledger.
//!
//! Changes when calls can be looked for differently.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use futures_util::future::try_join_all;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqlitePool};

use super::fts::TextQuery;
use super::hits::Hits;
use super::postings::{Places, chunk_of, decode_times, place_of, seq_of};
use super::scan::{Looked, PATIENCE, Range};
use super::{Dimension, PART, damaged};
use crate::clock;
use crate::model::{Outcome, TraceId};
use crate::store::sqlite::audit::{SELECT, call};
use crate::store::sqlite::{READERS, SqliteStore};
use crate::store::{AuditFilter, CallRow, Cursor, Page, StoreError};

/// Chunks of the first look; each further one takes twice as many.
const FIRST_LOOK: i64 = 32;
const LARGEST_LOOK: i64 = 1024;
/// Parts whose text is looked through at the same time: as many as there are connections.
const PARTS_AT_ONCE: usize = READERS as usize;

/// Bytes of a trace's id that its calls are found by.
const TRACE_HALF: usize = 8;
/// Calls of a trace that are looked at at once.
const OF_TRACE: i64 = 256;

/// What is looked for, in numbers of words: one of each list.
struct Wanted {
    words: Vec<Vec<i64>>,
    since: i64,
    until: i64,
    /// The chunks that can have it.
    first_chunk: i64,
    last_chunk: i64,
}

impl SqliteStore {
    pub(in crate::store) async fn audit_page(
        &self,
        filter: &AuditFilter,
        cursor: Option<Cursor>,
        limit: u16,
    ) -> Result<Page<CallRow>, StoreError> {
        self.audit_page_within(filter, cursor, limit, PATIENCE).await
    }

    /// The same, looking at rows that are not in the index for so long.
    pub(in crate::store) async fn audit_page_within(
        &self,
        filter: &AuditFilter,
        cursor: Option<Cursor>,
        limit: u16,
        patience: Duration,
    ) -> Result<Page<CallRow>, StoreError> {
        let text = filter.text.as_deref().map(parse_text).transpose()?;
        let limit = usize::from(limit.max(1));
        let below = cursor.map_or(i64::MAX, |Cursor(seq)| seq);
        let plain = *filter == AuditFilter::default();
        let until = clock::uptime().plus(patience);
        let indexed = self.index.indexed_seq().await;
        // One more than asked for says whether there is a next page. Without a filter the ledger is
        // as fast as any index.
        let above = if plain { 0 } else { indexed };
        let newest = Range { above, below };
        let Looked { mut rows, mut reached } =
            self.look_through(filter, text.as_ref(), newest, limit + 1, until).await?;
        if rows.len() <= limit && above > 0 && reached.is_none() {
            let below = below.min(above.saturating_add(1));
            let need = limit + 1 - rows.len();
            let older = match &filter.trace {
                Some(trace) => self.look_up_trace(*trace, filter, text.as_ref(), below, need).await,
                None => self.look_up(filter, text.as_ref(), below, need).await,
            };
            match older {
                Ok(older) => rows.extend(older),
                Err(error) => {
                    self.index.unread(&error);
                    let older = Range { above: 0, below };
                    let older =
                        self.look_through(filter, text.as_ref(), older, need, until).await?;
                    rows.extend(older.rows);
                    reached = older.reached;
                }
            }
        }
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = match rows.last() {
            Some(row) if more => Some(Cursor(row.seq)),
            _ => reached.map(Cursor),
        };
        Ok(Page { rows, next, index: self.index_state_at(indexed).await? })
    }

    /// The newest calls below `below` by the index.
    async fn look_up(
        &self,
        filter: &AuditFilter,
        text: Option<&TextQuery>,
        mut below: i64,
        need: usize,
    ) -> Result<Vec<CallRow>, StoreError> {
        let readers = self.index.readers().ok_or(StoreError::Closed)?;
        let Some(wanted) = Wanted::resolve(&readers, filter).await? else { return Ok(Vec::new()) };
        let mut rows = Vec::new();
        // Retention may be ahead of the index: then some of the calls found are gone.
        loop {
            let missing = need - rows.len();
            let found = match text {
                None => self.find(&readers, &wanted, below, missing).await?,
                Some(text) => self.find_text(&readers, &wanted, text, below, missing).await?,
            };
            let complete = found.len() < missing;
            below = found.last().copied().unwrap_or(0);
            rows.extend(self.calls(&found).await?);
            if complete || rows.len() >= need {
                return Ok(rows);
            }
        }
    }

    /// The newest calls of a trace below `below`, by the index; what else is wanted of them is asked
    /// of the ledger, for there are few.
    async fn look_up_trace(
        &self,
        trace: TraceId,
        filter: &AuditFilter,
        text: Option<&TextQuery>,
        mut below: i64,
        need: usize,
    ) -> Result<Vec<CallRow>, StoreError> {
        let readers = self.index.readers().ok_or(StoreError::Closed)?;
        let half = trace.as_bytes().iter().copied().take(TRACE_HALF).collect::<Vec<u8>>();
        let mut rows = Vec::new();
        while rows.len() < need {
            let part: Option<i64> =
                sqlx::query_scalar("select max(part) from traces where part <= ?")
                    .bind(below.saturating_sub(1).div_euclid(PART))
                    .fetch_one(&readers)
                    .await?;
            let Some(part) = part else { break };
            let seqs: Vec<i64> = sqlx::query_scalar(
                "select seq from traces where part = ? and trace = ? and seq < ?
                 order by seq desc limit ?",
            )
            .bind(part)
            .bind(&half)
            .bind(below)
            .bind(OF_TRACE)
            .fetch_all(&readers)
            .await?;
            // The next look begins before these, or in the part before.
            let full = i64::try_from(seqs.len()).is_ok_and(|found| found == OF_TRACE);
            below = match seqs.last() {
                Some(last) if full => *last,
                _ => part * PART,
            };
            let missing = need - rows.len();
            rows.extend(self.calls_of(&seqs, filter, text, missing).await?);
        }
        Ok(rows)
    }

    /// The newest `need` of the calls with these numbers that the filter wants.
    async fn calls_of(
        &self,
        seqs: &[i64],
        filter: &AuditFilter,
        text: Option<&TextQuery>,
        need: usize,
    ) -> Result<Vec<CallRow>, StoreError> {
        let list: Vec<String> = seqs.iter().map(i64::to_string).collect();
        let mut query = QueryBuilder::<Sqlite>::new(SELECT);
        query.push(", p.arguments, p.result from calls c left join payloads p on p.seq = c.seq");
        query.push(" where c.seq in (select value from json_each(");
        query.push_bind(format!("[{}]", list.join(",")));
        query.push("))");
        push_filter(&mut query, filter);
        query.push(" order by c.seq desc");
        let mut found = query.build().fetch(&self.audit.readers);
        let mut rows = Vec::new();
        while rows.len() < need
            && let Some(row) = found.try_next().await?
        {
            if text.is_none_or(|text| has_text(text, &row)) {
                rows.push(call(&row)?);
            }
        }
        Ok(rows)
    }

    /// The calls with these numbers, newest first.
    async fn calls(&self, seqs: &[i64]) -> Result<Vec<CallRow>, StoreError> {
        if seqs.is_empty() {
            return Ok(Vec::new());
        }
        let mut query = QueryBuilder::<Sqlite>::new(SELECT);
        query.push(" from calls c where c.seq in (");
        let mut list = query.separated(", ");
        seqs.iter().for_each(|seq| {
            list.push_bind(*seq);
        });
        query.push(") order by c.seq desc");
        let rows = query.build().persistent(false).fetch_all(&self.audit.readers).await?;
        rows.iter().map(call).collect()
    }

    async fn find(
        &self,
        readers: &SqlitePool,
        wanted: &Wanted,
        below: i64,
        need: usize,
    ) -> Result<Vec<i64>, StoreError> {
        let mut found = Vec::new();
        let mut last = wanted.last_chunk.min(chunk_of(below.saturating_sub(1)));
        let mut look = FIRST_LOOK;
        while last >= wanted.first_chunk {
            let mut looked = 0_i64;
            let mut query = wanted.chunks(wanted.first_chunk, last);
            query.push(" limit ").push_bind(look);
            let mut chunks = query.build().fetch(readers);
            while let Some(row) = chunks.try_next().await? {
                looked += 1;
                if looked % FIRST_LOOK == 0 {
                    tokio::task::yield_now().await;
                }
                let (chunk, mut places) = self.candidates(&row, wanted)?;
                last = chunk - 1;
                if chunk == chunk_of(below) {
                    places.before(place_of(below));
                }
                let missing = need - found.len();
                found.extend(places.ascending().rev().take(missing).map(|p| seq_of(chunk, p)));
                if found.len() >= need {
                    return Ok(found);
                }
            }
            if looked < look {
                break;
            }
            look = (look * 2).min(LARGEST_LOOK);
        }
        Ok(found)
    }

    /// What of a chunk is wanted, as a row of [`Wanted::chunks`] has it.
    fn candidates(&self, row: &SqliteRow, wanted: &Wanted) -> Result<(i64, Places), StoreError> {
        let bad = |table| damaged(&self.index.path, table);
        let chunk: i64 = row.try_get(0)?;
        let mut places: Option<Places> = None;
        let mut column = 3;
        for words in &wanted.words {
            let mut either: Option<Places> = None;
            for _ in words {
                let stored: Option<&[u8]> = row.try_get(column)?;
                column += 1;
                let Some(stored) = stored else { continue };
                let these = Places::decode(stored).ok_or_else(|| bad("postings"))?;
                match &mut either {
                    Some(either) => either.or(&these),
                    None => either = Some(these),
                }
            }
            let either = either.unwrap_or_else(Places::none);
            match &mut places {
                Some(places) => places.and(&either),
                None => places = Some(either),
            }
        }
        let all: Option<&[u8]> = row.try_get(1)?;
        let all = all.map(|all| Places::decode(all).ok_or_else(|| bad("times"))).transpose()?;
        // They are there where the bounds of the chunk do not answer the question.
        let times: Option<&[u8]> = row.try_get(2)?;
        if let (Some(all), Some(times)) = (&all, times) {
            let times = decode_times(times).ok_or_else(|| bad("times"))?;
            let wanted = wanted.since..wanted.until;
            let within = all.ascending().zip(times).filter(|(_, at)| wanted.contains(at));
            let within = Places::of(within.map(|(place, _)| place));
            match &mut places {
                Some(places) => places.and(&within),
                None => places = Some(within),
            }
        }
        Ok((chunk, places.or(all).unwrap_or_else(Places::none)))
    }

    async fn find_text(
        &self,
        readers: &SqlitePool,
        wanted: &Wanted,
        text: &TextQuery,
        below: i64,
        need: usize,
    ) -> Result<Vec<i64>, StoreError> {
        let parts: Vec<(i64, i64)> =
            sqlx::query_as("select part, generation from parts where part <= ? order by part desc")
                .bind(below.saturating_sub(1) / PART)
                .fetch_all(readers)
                .await?;
        let mut found = Vec::new();
        let mut parts = parts.as_slice();
        // The newest part often has enough; after it, every connection looks through one.
        let mut at_once = 1;
        while found.len() < need && !parts.is_empty() {
            let (now, later) = parts.split_at(at_once.min(parts.len()));
            let missing = need - found.len();
            let looks = now
                .iter()
                .map(|part| self.find_text_of(readers, wanted, text, *part, below, missing));
            found.extend(try_join_all(looks).await?.into_iter().flatten());
            (parts, at_once) = (later, PARTS_AT_ONCE);
        }
        found.truncate(need);
        Ok(found)
    }

    /// Those of one part, also when it is made anew meanwhile.
    async fn find_text_of(
        &self,
        readers: &SqlitePool,
        wanted: &Wanted,
        text: &TextQuery,
        (part, generation): (i64, i64),
        below: i64,
        need: usize,
    ) -> Result<Vec<i64>, StoreError> {
        let look =
            |generation| self.find_text_in(readers, wanted, text, (part, generation), below, need);
        match look(generation).await {
            Ok(found) => Ok(found),
            // The table is gone when the part was made anew meanwhile, or dropped.
            Err(error) => match generation_of(readers, part).await? {
                Some(now) if now != generation => look(now).await,
                Some(_) => Err(error),
                None => Ok(Vec::new()),
            },
        }
    }

    /// Those of one part, in its table of this generation.
    async fn find_text_in(
        &self,
        readers: &SqlitePool,
        wanted: &Wanted,
        text: &TextQuery,
        (part, generation): (i64, i64),
        below: i64,
        need: usize,
    ) -> Result<Vec<i64>, StoreError> {
        let hits = Hits { ledger: &self.audit.readers, readers, part, generation, text };
        let (low, high) = (part * PART, below.min((part + 1) * PART));
        if wanted.is_everything() {
            let limit = i64::try_from(need).unwrap_or(i64::MAX);
            return hits.newest(low, high, limit).await;
        }
        let candidates = self.candidates_of_part(readers, wanted, low, high).await?;
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        hits.among(&candidates, low, high, need).await
    }

    /// What is wanted of the numbers from `low` to before `high`, but for chunks without any.
    async fn candidates_of_part(
        &self,
        readers: &SqlitePool,
        wanted: &Wanted,
        low: i64,
        high: i64,
    ) -> Result<BTreeMap<i64, Places>, StoreError> {
        let first = wanted.first_chunk.max(chunk_of(low));
        let last = wanted.last_chunk.min(chunk_of(high.saturating_sub(1)));
        let mut candidates = BTreeMap::new();
        if first > last {
            return Ok(candidates);
        }
        for row in wanted.chunks(first, last).build().fetch_all(readers).await? {
            let (chunk, mut places) = self.candidates(&row, wanted)?;
            if chunk == chunk_of(high) {
                places.before(place_of(high));
            }
            if !places.is_empty() {
                candidates.insert(chunk, places);
            }
        }
        tokio::task::yield_now().await;
        Ok(candidates)
    }
}

async fn generation_of(readers: &SqlitePool, part: i64) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar("select generation from parts where part = ?")
        .bind(part)
        .fetch_optional(readers)
        .await?)
}

/// Whether a row with payloads has the text.
pub(in crate::store::sqlite) fn has_text(text: &TextQuery, row: &SqliteRow) -> bool {
    let column = |name| row.try_get(name).unwrap_or_default();
    text.matches(column("error"), column("arguments"), column("result"))
}

pub(in crate::store::sqlite) fn parse_text(text: &str) -> Result<TextQuery, StoreError> {
    TextQuery::parse(text).map_err(|reason| StoreError::BadText { reason })
}

/// The filter's values, each with the dimensions it may be in.
pub(super) fn values(filter: &AuditFilter) -> Vec<(&'static [Dimension], &str)> {
    const NAMES: &[Dimension] = &[Dimension::Tool, Dimension::UpstreamTool];
    let values: [(&'static [Dimension], Option<&str>); 7] = [
        (&[Dimension::Server], filter.server.as_deref()),
        (NAMES, filter.tool.as_deref()),
        (&[Dimension::Caller], filter.caller.as_deref()),
        (&[Dimension::Outcome], filter.outcome.map(Outcome::as_str)),
        (&[Dimension::Session], filter.session.as_deref()),
        (&[Dimension::ErrorCode], filter.error_code.as_deref()),
        (&[Dimension::View], filter.view.as_deref()),
    ];
    let given = |(dimensions, value): (_, Option<_>)| value.map(|value| (dimensions, value));
    values.into_iter().filter_map(given).collect()
}

impl Wanted {
    /// `None` when a value is in no call of the index.
    async fn resolve(
        readers: &SqlitePool,
        filter: &AuditFilter,
    ) -> Result<Option<Self>, StoreError> {
        let mut wanted = Self {
            words: Vec::new(),
            since: filter.since.map_or(i64::MIN, |at| at.as_millis()),
            until: filter.until.map_or(i64::MAX, |at| at.as_millis()),
            first_chunk: 0,
            last_chunk: i64::MAX,
        };
        for (dimensions, value) in values(filter) {
            let (mut ids, mut first, mut last) = (Vec::new(), i64::MAX, -1);
            for dimension in dimensions {
                let word: Option<(i64, i64, i64)> = sqlx::query_as(
                    "select id, first_chunk, last_chunk from words
                     where dimension = ? and value = ?",
                )
                .bind(dimension.number())
                .bind(value)
                .fetch_optional(readers)
                .await?;
                if let Some((id, first_chunk, last_chunk)) = word {
                    ids.push(id);
                    first = first.min(first_chunk);
                    last = last.max(last_chunk);
                }
            }
            if ids.is_empty() {
                return Ok(None);
            }
            wanted.words.push(ids);
            wanted.first_chunk = wanted.first_chunk.max(first);
            wanted.last_chunk = wanted.last_chunk.min(last);
        }
        Ok(Some(wanted))
    }

    fn is_everything(&self) -> bool {
        self.words.is_empty() && !self.has_times()
    }

    fn has_times(&self) -> bool {
        self.since > i64::MIN || self.until < i64::MAX
    }

    /// The chunks from `first` to `last` that can have it, newest first: number, all places and
    /// times where they are needed, and the places of each word.
    fn chunks(&self, first: i64, last: i64) -> QueryBuilder<Sqlite> {
        // Cross joins keep their order: chunks outside, one search in each for each word.
        let mut query = QueryBuilder::new("select c.chunk, t.places, ");
        if self.has_times() {
            query.push("case when c.min_ms < ").push_bind(self.since);
            query.push(" or c.max_ms >= ").push_bind(self.until).push(" then t.times end");
        } else {
            query.push("null");
        }
        let mut joins = String::new();
        let mut binds = Vec::new();
        let mut either = String::new();
        for (n, words) in self.words.iter().enumerate() {
            let names: Vec<String> = (0..words.len()).map(|m| format!("p{n}_{m}")).collect();
            for (name, word) in names.iter().zip(words) {
                let kind = if words.len() == 1 { "cross" } else { "left" };
                query.push(format!(", {name}.places"));
                joins.push_str(&format!(
                    " {kind} join postings {name} on {name}.chunk = c.chunk and {name}.word = "
                ));
                joins.push('\0');
                binds.push(*word);
            }
            if names.len() > 1 {
                let some: Vec<String> =
                    names.iter().map(|name| format!("{name}.word is not null")).collect();
                either.push_str(&format!(" and ({})", some.join(" or ")));
            }
        }
        query.push(" from chunks c");
        let mut binds = binds.into_iter();
        for part in joins.split('\0') {
            query.push(part);
            if !part.is_empty()
                && let Some(word) = binds.next()
            {
                query.push_bind(word);
            }
        }
        if self.words.is_empty() {
            query.push(" cross join times t on t.chunk = c.chunk");
        } else {
            query.push(" left join times t on t.chunk = c.chunk and (c.min_ms < ");
            query.push_bind(self.since).push(" or c.max_ms >= ").push_bind(self.until).push(")");
        }
        query.push(" where c.chunk >= ").push_bind(first);
        query.push(" and c.chunk <= ").push_bind(last);
        if self.has_times() {
            query.push(" and c.max_ms >= ").push_bind(self.since);
            query.push(" and c.min_ms < ").push_bind(self.until);
        }
        query.push(either).push(" order by c.chunk desc");
        query
    }
}

/// The filter but for its text, as conditions on `calls c`.
pub(in crate::store::sqlite) fn push_filter(
    query: &mut QueryBuilder<Sqlite>,
    filter: &AuditFilter,
) {
    for (dimensions, value) in values(filter) {
        query.push(" and (");
        let mut either = query.separated(" or ");
        for dimension in dimensions {
            either.push(dimension.column()).push_unseparated(" = ");
            either.push_bind_unseparated(value.to_owned());
        }
        query.push(")");
    }
    if let Some(trace) = filter.trace {
        query.push(" and c.trace_id = ").push_bind(trace.to_string());
    }
    if let Some(since) = filter.since {
        query.push(" and c.started_at_ms >= ").push_bind(since.as_millis());
    }
    if let Some(until) = filter.until {
        query.push(" and c.started_at_ms < ").push_bind(until.as_millis());
    }
}
