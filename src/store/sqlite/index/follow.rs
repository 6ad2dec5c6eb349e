//! [`Follower`]: reads what is new in the ledger and puts it into the index.
//!
//! Changes when what is indexed, or the pace of it, changes. One transaction has postings, sums,
//! text and how far they go, so the index is never half of something.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;
use sqlx::{AssertSqlSafe, Connection, Row, Sqlite, SqliteConnection, Transaction, raw_sql};
use tokio_util::sync::CancellationToken;

use super::postings::{CHUNK, Places, chunk_of, decode_times, encode, encode_times, place_of};
use super::refresh::{Refresh, mark_erased};
use super::rollup::{CellKey, Cells, FAULT, merge};
use super::text::write_text;
use super::{CHUNK_OF_ROWS, Dimension, Index, PART, damaged, is_damage};
use crate::clock;
use crate::error::ErrorCode;
use crate::model::Outcome;
use crate::store::StoreError;
use crate::store::sqlite::SqliteStore;

/// How often the ledger is looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// A transaction takes no more chunks once it took so long.
const LONG_ENOUGH: Duration = Duration::from_millis(200);
/// How long a transaction lets calls go first, unless the index is behind.
const COURTEOUS: Duration = Duration::from_millis(100);
/// Chunks of a transaction at most: what is summed of them is held in memory.
const MOST_CHUNKS: usize = 8;
/// The connection's cache of pages in KiB. A third of the speed hangs on the working set of merges; who has
/// caught up needs no speed, and gives the memory back.
const CACHE_BEHIND: u32 = 16 * 1024;
const CACHE_CAUGHT_UP: u32 = 1024;
/// Files thrown away at most, until the next start.
const MOST_DISCARDED: u32 = 10;
/// The wait after a failure, doubled each time up to the longest.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Rows that are read at once, and after which other tasks of the thread get a turn.
const ROWS_AT_ONCE: usize = 512;

pub(super) const MINUTE: i64 = 60_000;
pub(super) const HOUR: i64 = 3_600_000;

/// No word.
const NONE: usize = usize::MAX;

/// The one that writes the index.
#[derive(Default)]
pub(super) struct Follower {
    writer: Option<SqliteConnection>,
    /// The chunk that is not full yet, as it is in the file.
    open: Option<OpenChunk>,
    /// What of the text is being made anew.
    pub(super) refreshing: Option<Refresh>,
    /// Pages became free that are not given back yet.
    pub(super) freed: bool,
    closed: bool,
    /// Whether there is more to do than was done: the connection has the large cache then.
    behind: bool,
    /// How often the file was thrown away.
    discarded: u32,
}

/// What became of an attempt to catch up.
struct Progress {
    /// Whether there is more to do at once.
    more: bool,
}

/// A chunk in memory.
struct OpenChunk {
    chunk: i64,
    places: Vec<u16>,
    times: Vec<i64>,
    /// Where each value of each dimension is in `posted`.
    words: [HashMap<Box<str>, usize>; Dimension::ALL.len()],
    posted: Vec<Posted>,
}

/// Where in the chunk a value is.
struct Posted {
    dimension: Dimension,
    value: Box<str>,
    /// The word's number; 0 until it is known.
    id: i64,
    places: Vec<u16>,
    changed: bool,
}

/// A row as far as sums want it.
struct Counted {
    at: i64,
    micros: u64,
    request_bytes: u64,
    response_bytes: u64,
    slots: [usize; Dimension::ALL.len()],
}

/// Sums to add, by width, start and server.
type Sums = HashMap<(i64, i64, i64), Cells>;

impl Follower {
    pub(super) async fn close(&mut self) {
        self.closed = true;
        self.open = None;
        if let Some(writer) = self.writer.take()
            && let Err(error) = writer.close().await
        {
            tracing::warn!(%error, "the ledger's index could not be closed in order: {error}");
        }
    }

    /// The connection that writes; opens the file when it is not open.
    pub(super) async fn writer(
        &mut self,
        index: &Index,
    ) -> Result<&mut SqliteConnection, StoreError> {
        if self.closed {
            return Err(StoreError::Closed);
        }
        self.settle().await;
        if self.writer.is_none() {
            let mut writer = index.open().await?;
            set_cache(&mut writer, CACHE_CAUGHT_UP).await?;
            self.behind = false;
            self.writer = Some(writer);
        }
        self.writer.as_mut().ok_or(StoreError::Closed)
    }

    /// Closes a connection of which the driver thinks that a transaction is open. SQLite rolls back by itself
    /// on a full disk, and the driver's own rollback fails then: what it begins next would be a part of that
    /// transaction, which never ends and keeps the ledger's log from being emptied.
    async fn settle(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        if !writer.is_in_transaction() {
            return;
        }
        // A rollback may be under way: it is done when this is.
        let answered = raw_sql("select 1").execute(&mut *writer).await.is_ok();
        if (!answered || writer.is_in_transaction())
            && let Some(writer) = self.writer.take()
        {
            // Nothing is left in it to be lost.
            let _closed = writer.close().await;
        }
    }

    /// Takes memory while there is much to do.
    async fn suit_cache(&mut self, behind: bool) -> Result<(), StoreError> {
        if self.behind != behind
            && let Some(writer) = &mut self.writer
        {
            let size = if behind { CACHE_BEHIND } else { CACHE_CAUGHT_UP };
            set_cache(writer, size).await?;
            self.behind = behind;
        }
        Ok(())
    }

    /// What is in memory may not be what is in the file.
    pub(super) fn forget_memory(&mut self) {
        self.open = None;
    }
}

async fn set_cache(writer: &mut SqliteConnection, kib: u32) -> Result<(), StoreError> {
    let sql = format!("pragma main.cache_size = -{kib}");
    raw_sql(AssertSqlSafe(sql)).execute(writer).await?;
    Ok(())
}

impl SqliteStore {
    /// Follows the ledger until `stop`. An index that is damaged is made anew; nothing that happens
    /// to it is a reason to end.
    pub(in crate::store) async fn follow_ledger(&self, stop: CancellationToken) {
        let mut failures = 0_u32;
        loop {
            let began = clock::uptime();
            let done = tokio::select! {
                () = stop.cancelled() => return,
                done = self.catch_up() => done,
            };
            let wait = match done {
                Ok(Progress { more }) => {
                    failures = 0;
                    // A third of the time is others' while there is much to do.
                    if more { clock::uptime().since(began) / 2 } else { PERIOD }
                }
                Err(StoreError::Closed) => return,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    let why: &dyn std::error::Error = &error;
                    tracing::warn!(error = why, "the ledger's index could not be written: {error}");
                    PERIOD.saturating_mul(1 << failures.min(6)).min(LONGEST_WAIT)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Puts everything that is in the ledger into the index.
    pub(in crate::store) async fn index_ledger(&self) -> Result<(), StoreError> {
        while self.catch_up().await?.more {}
        Ok(())
    }

    async fn catch_up(&self) -> Result<Progress, StoreError> {
        let mut follower = self.index.follower.lock().await;
        if self.index.suspect.swap(false, Ordering::Relaxed) {
            self.index.discard(&mut follower).await?;
        }
        let mut done = follower.advance(&self.index).await;
        if matches!(done, Ok(Progress { more: false })) {
            done = follower.tidy(&self.index).await.map(|more| Progress { more });
        }
        if let Ok(Progress { more }) = done {
            follower.suit_cache(more).await?;
        }
        if let Err(error) = &done {
            follower.forget_memory();
            if is_damage(error) {
                self.index.discard(&mut follower).await?;
            }
        }
        done
    }
}

impl Index {
    /// Throws a damaged file away: the next attempt makes it anew. One that is damaged again and
    /// again stays as it is: a disk that fails, or a fault of ours, is not mended so.
    async fn discard(&self, follower: &mut Follower) -> Result<(), StoreError> {
        follower.forget_memory();
        follower.refreshing = None;
        follower.discarded = follower.discarded.saturating_add(1);
        if follower.discarded > MOST_DISCARDED {
            return Ok(());
        }
        tracing::warn!("the ledger's index is damaged and made anew; lists are slower until then");
        let readers = self.readers.write().take();
        if let Some(readers) = readers {
            readers.close().await;
        }
        if let Some(writer) = follower.writer.take() {
            // It is thrown away, whatever it says.
            let _ = writer.close().await;
        }
        self.remove()
    }
}

impl Follower {
    /// One transaction: some chunks of what is new.
    async fn advance(&mut self, index: &Index) -> Result<Progress, StoreError> {
        let began = clock::uptime();
        self.writer(index).await?;
        index.courtesy.begin(if self.behind { Duration::ZERO } else { COURTEOUS });
        let (Some(writer), open) = (self.writer.as_mut(), &mut self.open) else {
            return Err(StoreError::Closed);
        };
        let indexed: i64 =
            sqlx::query_scalar("select indexed_seq from state").fetch_one(&mut *writer).await?;
        let Some(mut next) = next_call(&mut *writer, indexed).await? else {
            return Ok(Progress { more: false });
        };
        // Not `immediate`: that would take the lock of the ledger, too, from its writer.
        let mut transaction = writer.begin().await?;
        mark_erased(&mut transaction).await?;
        let mut sums = Sums::new();
        let mut done = indexed;
        let mut more = true;
        for _ in 0..MOST_CHUNKS {
            let chunk = chunk_of(next);
            if open.as_ref().is_none_or(|open| open.chunk != chunk) {
                *open = Some(OpenChunk::load(&mut transaction, chunk, index).await?);
            }
            let Some(open) = open.as_mut() else { break };
            let (rows, last) = read(&mut transaction, open, done).await?;
            open.write(&mut transaction).await?;
            add_up(open, &rows, &mut sums).await;
            write_text(&mut transaction, done, last).await?;
            write_traces(&mut transaction, done, last).await?;
            done = last;
            let Some(later) = next_call(&mut transaction, done).await? else {
                more = false;
                break;
            };
            next = later;
            if clock::uptime().since(began) >= LONG_ENOUGH {
                break;
            }
        }
        write_sums(&mut transaction, &sums, index).await?;
        sqlx::query(
            "update state set indexed_seq = ?1,
                indexed_id = (select id from ledger.calls where seq = ?1)",
        )
        .bind(done)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Progress { more })
    }
}

async fn next_call(
    connection: &mut SqliteConnection,
    after: i64,
) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar("select min(seq) from ledger.calls where seq > ?")
        .bind(after)
        .fetch_one(connection)
        .await?)
}

/// A call as the follower reads it.
#[derive(Deserialize)]
struct Call<'a>(
    i64,
    i64,
    u64,
    u64,
    u64,
    /// In the order of the dimensions.
    #[serde(borrow)]
    [Option<Word<'a>>; Dimension::ALL.len()],
);

/// A value of a dimension, not copied where it is written plainly.
#[derive(Deserialize)]
struct Word<'a>(#[serde(borrow)] Cow<'a, str>);

/// Many calls in one answer: a row of its own for each would wake two threads for each, which costs
/// more than everything else that is done with it.
static CALLS: LazyLock<String> = LazyLock::new(|| {
    let words = Dimension::ALL.map(Dimension::column).join(", ");
    format!(
        "select json_group_array(json_array(seq, started_at_ms, max(total_us, 0),
                max(request_bytes, 0), max(response_bytes, 0), json_array({words})))
         from (select * from ledger.calls where seq > ? and seq < ? order by seq limit {ROWS_AT_ONCE}) c"
    )
});

/// The calls of the open chunk after `after`, put into it; gives them and the last one's number.
async fn read(
    transaction: &mut Transaction<'_, Sqlite>,
    open: &mut OpenChunk,
    after: i64,
) -> Result<(Vec<Counted>, i64), StoreError> {
    let end = (open.chunk + 1).saturating_mul(CHUNK);
    let (mut rows, mut last) = (Vec::new(), after);
    loop {
        let text: String = sqlx::query_scalar(AssertSqlSafe(CALLS.as_str()))
            .bind(last)
            .bind(end)
            .fetch_one(&mut **transaction)
            .await?;
        let calls: Vec<Call<'_>> =
            serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(error.into()))?;
        for call in &calls {
            last = call.0;
            rows.push(open.add(call));
        }
        if calls.len() < ROWS_AT_ONCE {
            return Ok((rows, last));
        }
    }
}

impl OpenChunk {
    fn new(chunk: i64) -> Self {
        Self {
            chunk,
            places: Vec::new(),
            times: Vec::new(),
            words: std::array::from_fn(|_| HashMap::new()),
            posted: Vec::new(),
        }
    }

    /// As it is in the file, where a run before began it.
    async fn load(
        transaction: &mut Transaction<'_, Sqlite>,
        chunk: i64,
        index: &Index,
    ) -> Result<Self, StoreError> {
        let mut open = Self::new(chunk);
        let stored = sqlx::query("select places, times from times where chunk = ?")
            .bind(chunk)
            .fetch_optional(&mut **transaction)
            .await?;
        let Some(stored) = stored else { return Ok(open) };
        let list = |bytes: &[u8]| Places::decode(bytes).map(|places| places.ascending().collect());
        open.places = list(stored.try_get(0)?).ok_or_else(|| damaged(&index.path, "times"))?;
        open.times =
            decode_times(stored.try_get(1)?).ok_or_else(|| damaged(&index.path, "times"))?;
        let postings = sqlx::query(
            "select w.dimension, w.value, w.id, p.places
             from postings p join words w on w.id = p.word where p.chunk = ?",
        )
        .bind(chunk)
        .fetch_all(&mut **transaction)
        .await?;
        for row in postings {
            let number: i64 = row.try_get(0)?;
            let dimension = Dimension::ALL
                .into_iter()
                .find(|dimension| dimension.number() == number)
                .ok_or_else(|| damaged(&index.path, "words"))?;
            let slot = open.slot(dimension, row.try_get(1)?);
            if let Some(posted) = open.posted.get_mut(slot) {
                posted.id = row.try_get(2)?;
                posted.places =
                    list(row.try_get(3)?).ok_or_else(|| damaged(&index.path, "postings"))?;
            }
        }
        Ok(open)
    }

    /// Where a value of a dimension is kept.
    fn slot(&mut self, dimension: Dimension, value: &str) -> usize {
        let Some(words) = self.words.get_mut(dimension.slot()) else { return NONE };
        if let Some(slot) = words.get(value) {
            return *slot;
        }
        let slot = self.posted.len();
        words.insert(value.into(), slot);
        let places = Vec::new();
        self.posted.push(Posted { dimension, value: value.into(), id: 0, places, changed: false });
        slot
    }

    fn add(&mut self, call: &Call<'_>) -> Counted {
        let Call(seq, at, micros, request_bytes, response_bytes, words) = call;
        let place = place_of(*seq);
        let mut slots = [NONE; Dimension::ALL.len()];
        for ((dimension, word), slot) in Dimension::ALL.into_iter().zip(words).zip(&mut slots) {
            let Some(Word(value)) = word else { continue };
            *slot = self.slot(dimension, value);
            if let Some(posted) = self.posted.get_mut(*slot) {
                posted.places.push(place);
                posted.changed = true;
            }
        }
        self.places.push(place);
        self.times.push(*at);
        Counted {
            at: *at,
            micros: *micros,
            request_bytes: *request_bytes,
            response_bytes: *response_bytes,
            slots,
        }
    }

    /// The number of the word in a slot; 0 for none.
    fn id(&self, counted: &Counted, dimension: Dimension) -> i64 {
        let slot = counted.slots.get(dimension.slot()).copied().unwrap_or(NONE);
        self.posted.get(slot).map_or(0, |posted| posted.id)
    }

    /// The word in a slot; none is empty.
    fn word(&self, counted: &Counted, dimension: Dimension) -> &str {
        let slot = counted.slots.get(dimension.slot()).copied().unwrap_or(NONE);
        self.posted.get(slot).map_or("", |posted| &posted.value)
    }

    /// Whether the call was refused through a fault of server or router.
    fn is_fault(&self, counted: &Counted) -> bool {
        is_fault(self.word(counted, Dimension::Outcome), self.word(counted, Dimension::ErrorCode))
    }

    async fn write(&mut self, transaction: &mut Transaction<'_, Sqlite>) -> Result<(), StoreError> {
        self.name(transaction).await?;
        let (min, max) = (self.times.iter().min(), self.times.iter().max());
        let (Some(min), Some(max)) = (min.copied(), max.copied()) else { return Ok(()) };
        sqlx::query("insert or replace into chunks values (?, ?, ?)")
            .bind(self.chunk)
            .bind(min)
            .bind(max)
            .execute(&mut **transaction)
            .await?;
        sqlx::query("insert or replace into times values (?, ?, ?)")
            .bind(self.chunk)
            .bind(encode(&self.places))
            .bind(encode_times(&self.times))
            .execute(&mut **transaction)
            .await?;
        let chunk = self.chunk;
        let mut changed: Vec<&mut Posted> =
            self.posted.iter_mut().filter(|posted| posted.changed).collect();
        // In the order of the table.
        changed.sort_unstable_by_key(|posted| posted.id);
        for rows in changed.chunks_mut(CHUNK_OF_ROWS) {
            let sql = many("insert or replace into postings", 3, rows.len(), "");
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(rows.len() == CHUNK_OF_ROWS);
            for posted in rows.iter_mut() {
                query = query.bind(chunk).bind(posted.id).bind(encode(&posted.places));
                posted.changed = false;
            }
            query.execute(&mut **transaction).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Gives each value that is new in this chunk its number.
    async fn name(&mut self, transaction: &mut Transaction<'_, Sqlite>) -> Result<(), StoreError> {
        let unnamed: Vec<usize> = (0..)
            .zip(&self.posted)
            .filter(|(_, posted)| posted.id == 0)
            .map(|(slot, _)| slot)
            .collect();
        for slots in unnamed.chunks(CHUNK_OF_ROWS) {
            let sql = many(
                "insert into words (dimension, value, first_chunk, last_chunk)",
                4,
                slots.len(),
                "on conflict (dimension, value) do update set last_chunk = excluded.last_chunk
                 returning id, dimension, value",
            );
            let mut query =
                sqlx::query(AssertSqlSafe(sql)).persistent(slots.len() == CHUNK_OF_ROWS);
            for posted in slots.iter().filter_map(|slot| self.posted.get(*slot)) {
                query = query
                    .bind(posted.dimension.number())
                    .bind(posted.value.as_ref().to_owned())
                    .bind(self.chunk)
                    .bind(self.chunk);
            }
            for row in query.fetch_all(&mut **transaction).await? {
                let number: i64 = row.try_get(1)?;
                let slot = usize::try_from(number)
                    .ok()
                    .and_then(|number| self.words.get(number))
                    .and_then(|words| words.get(row.try_get::<&str, _>(2).ok()?).copied());
                if let Some(posted) = slot.and_then(|slot| self.posted.get_mut(slot)) {
                    posted.id = row.try_get(0)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a call that ended so was refused through a fault of server or router.
pub(super) fn is_fault(outcome: &str, code: &str) -> bool {
    outcome == Outcome::Refused.as_str()
        && ErrorCode::ALL.iter().any(|known| known.as_str() == code && known.is_fault())
}

/// Whether a call that ended so and has no tool of a server was for a server that there is, whose tools are not
/// known yet.
pub(super) fn is_away(outcome: &str) -> bool {
    outcome == Outcome::Unavailable.as_str()
}

/// Adds the rows to the sums of their minutes and hours.
async fn add_up(open: &OpenChunk, rows: &[Counted], sums: &mut Sums) {
    for (n, row) in rows.iter().enumerate() {
        let server = open.id(row, Dimension::Server);
        let upstream_tool = open.id(row, Dimension::UpstreamTool);
        // What somebody asked for that no server has is as many names as somebody likes.
        let named = upstream_tool != 0 || is_away(open.word(row, Dimension::Outcome));
        let tool = if named { open.id(row, Dimension::Tool) } else { 0 };
        let key = CellKey {
            tool,
            upstream_tool,
            caller: open.id(row, Dimension::Caller),
            outcome: open.id(row, Dimension::Outcome) | if open.is_fault(row) { FAULT } else { 0 },
        };
        for width in [MINUTE, HOUR] {
            let start = row.at.div_euclid(width) * width;
            let cell = sums.entry((width, start, server)).or_default().entry(key).or_default();
            cell.record(row.micros, row.request_bytes, row.response_bytes);
        }
        if n.is_multiple_of(ROWS_AT_ONCE) {
            tokio::task::yield_now().await;
        }
    }
}

/// Adds the sums to those in the file, many at once: few calls are in each.
async fn write_sums(
    transaction: &mut Transaction<'_, Sqlite>,
    sums: &Sums,
    index: &Index,
) -> Result<(), StoreError> {
    // In the order of the table.
    let mut all: Vec<(&(i64, i64, i64), &Cells)> = sums.iter().collect();
    all.sort_unstable_by_key(|(key, _)| **key);
    for some in all.chunks(CHUNK_OF_ROWS) {
        let full = some.len() == CHUNK_OF_ROWS;
        let head = "with wanted (width, start, server) as (";
        let tail = ") select r.width, r.start, r.server, r.cells from wanted w
             cross join rollups r on (r.width, r.start, r.server) = (w.width, w.start, w.server)";
        let sql = AssertSqlSafe(many(head, 3, some.len(), tail));
        let query = some.iter().fold(sqlx::query(sql), |query, ((width, start, server), _)| {
            query.bind(*width).bind(*start).bind(*server)
        });
        let mut stored: HashMap<(i64, i64, i64), Vec<u8>> = HashMap::new();
        for row in query.persistent(full).fetch_all(&mut **transaction).await? {
            stored.insert((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?), row.try_get(3)?);
        }
        let sql = AssertSqlSafe(many("insert or replace into rollups", 4, some.len(), ""));
        let mut query = sqlx::query(sql).persistent(full);
        for (key, cells) in some {
            let old = stored.remove(key).unwrap_or_default();
            let merged = merge(&old, cells).ok_or_else(|| damaged(&index.path, "rollups"))?;
            let (width, start, server) = **key;
            query = query.bind(width).bind(start).bind(server).bind(merged);
        }
        query.execute(&mut **transaction).await?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Indexes the traces of the calls after `after`, up to `last`.
async fn write_traces(
    transaction: &mut Transaction<'_, Sqlite>,
    after: i64,
    last: i64,
) -> Result<(), StoreError> {
    // In the order of the table. An id that is none is found by nobody.
    sqlx::query(
        "insert or ignore into traces (part, trace, seq)
         select c.seq / ?1, unhex(substr(c.trace_id, 1, 16)) as half, c.seq from ledger.calls c
         where c.seq > ?2 and c.seq <= ?3 and half is not null order by 1, 2, 3",
    )
    .bind(PART)
    .bind(after)
    .bind(last)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// A statement with `rows` rows.
fn many(head: &str, columns: usize, rows: usize, tail: &str) -> String {
    let row = format!("({})", vec!["?"; columns].join(", "));
    format!("{head} values {} {tail}", vec![row.as_str(); rows].join(", "))
}
