//! Which calls of one part have a text: by its table, or by the ledger where few are in question.
//!
//! Changes when the way to hits that cost least changes. The table knows all hits of a text, so that a
//! text which many calls have is dear when few of them are wanted: asked about one call it reads the
//! words' lists from the start. The ledger has each call's text at hand.

use std::collections::BTreeMap;

use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Row as _, SqlitePool};

use super::fts::TextQuery;
use super::postings::{CHUNK, Places, chunk_of, place_of, seq_of};
use super::search::has_text;
use super::text::text_table;
use crate::store::StoreError;

/// Up to so many candidates of a part, a thousandth of its calls, are looked at in the ledger.
const FEW: usize = 256;
/// The same of a chunk.
const FEW_OF_CHUNK: usize = 64;
/// Hits that are read first where candidates are few: of a rare text there are not more.
const FEW_HITS: i64 = 128;
/// More hits of a text in a part are not read before it is known which are wanted.
const MANY_HITS: i64 = 16_384;

/// Calls of the ledger before other tasks of the thread get a turn.
const AT_ONCE: usize = 32;

/// A text in one part.
pub(super) struct Hits<'a> {
    pub(super) ledger: &'a SqlitePool,
    pub(super) readers: &'a SqlitePool,
    pub(super) part: i64,
    pub(super) generation: i64,
    pub(super) text: &'a TextQuery,
}

impl Hits<'_> {
    /// The newest `limit` calls from `low` to before `high` that have the text, newest first.
    pub(super) async fn newest(
        &self,
        low: i64,
        high: i64,
        limit: i64,
    ) -> Result<Vec<i64>, StoreError> {
        // One value for all: the driver's price is by the row.
        let sql = format!(
            "select group_concat(rowid) from (select rowid from {table} where {table} match ?
                 and rowid >= ? and rowid < ? order by rowid desc limit ?)",
            table = text_table(self.part, self.generation)
        );
        let list: Option<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(self.text.expression())
            .bind(low)
            .bind(high)
            .bind(limit)
            .fetch_one(self.readers)
            .await?;
        Ok(numbers(list.as_deref()))
    }

    /// The newest `need` of the candidates that have the text, newest first.
    pub(super) async fn among(
        &self,
        candidates: &BTreeMap<i64, Places>,
        low: i64,
        high: i64,
        need: usize,
    ) -> Result<Vec<i64>, StoreError> {
        let wanted = |seq: &i64| {
            candidates.get(&chunk_of(*seq)).is_some_and(|places| places.has(place_of(*seq)))
        };
        let few = candidates.values().map(Places::count).sum::<usize>() <= FEW;
        // The words that begin with a prefix are merged first, which costs the same for few hits and all.
        let limit = match (few, self.text.has_prefix()) {
            (true, true) => 0,
            (true, false) => FEW_HITS,
            (false, true) => i64::MAX,
            (false, false) => MANY_HITS,
        };
        let hits = if limit > 0 { self.newest(low, high, limit).await? } else { Vec::new() };
        let complete = i64::try_from(hits.len()).is_ok_and(|hits| hits < limit);
        let mut found: Vec<i64> = hits.iter().copied().filter(wanted).take(need).collect();
        if complete || found.len() >= need {
            return Ok(found);
        }
        // A text that very many have: from here on by what else is wanted, chunk for chunk.
        let rest = hits.last().copied().unwrap_or(high);
        let mut looked_at = Vec::new();
        for (chunk, places) in candidates.range(..=chunk_of(rest)).rev() {
            let mut places = places.clone();
            if *chunk == chunk_of(rest) {
                places.before(place_of(rest));
            }
            let many = places.count() > FEW_OF_CHUNK;
            if !many {
                looked_at.extend(places.ascending().rev().map(|place| seq_of(*chunk, place)));
            }
            if many || looked_at.len() >= FEW {
                found.extend(self.of(&looked_at, need - found.len()).await?);
                looked_at.clear();
            }
            if many && found.len() < need {
                let (from, to) = (seq_of(*chunk, 0), rest.min(seq_of(*chunk + 1, 0)));
                let hits = self.newest(from, to, CHUNK).await?;
                found.extend(hits.into_iter().filter(wanted).take(need - found.len()));
            }
            if found.len() >= need {
                return Ok(found);
            }
        }
        found.extend(self.of(&looked_at, need - found.len()).await?);
        Ok(found)
    }

    /// The newest `need` of these that have the text in the ledger.
    async fn of(&self, seqs: &[i64], need: usize) -> Result<Vec<i64>, StoreError> {
        let mut found = Vec::new();
        if seqs.is_empty() || need == 0 {
            return Ok(found);
        }
        let list: Vec<String> = seqs.iter().map(i64::to_string).collect();
        let mut rows = sqlx::query(
            "select c.seq, c.error, p.arguments, p.result
             from calls c left join payloads p on p.seq = c.seq
             where c.seq in (select value from json_each(?)) order by c.seq desc",
        )
        .bind(format!("[{}]", list.join(",")))
        .fetch(self.ledger);
        let mut seen = 0_usize;
        while found.len() < need
            && let Some(row) = rows.try_next().await?
        {
            seen += 1;
            if seen.is_multiple_of(AT_ONCE) {
                tokio::task::yield_now().await;
            }
            if has_text(self.text, &row) {
                found.push(row.try_get(0)?);
            }
        }
        Ok(found)
    }
}

fn numbers(list: Option<&str>) -> Vec<i64> {
    list.iter().flat_map(|list| list.split(',')).filter_map(|seq| seq.parse().ok()).collect()
}
