//! Writing the ledger: calls, their attempts and payloads, and the entries beside them, each a link of
//! the chain, in one transaction.
//!
//! Changes when the ledger has something new to write. Reading is `audit.rs`'s, checking `verify.rs`'s.

use std::sync::LazyLock;
use std::time::Duration;

use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row, Sqlite, SqliteConnection, Transaction};

use super::attempts::attempt_values;
use super::{SqliteStore, begin, hash_of, places};
use crate::clock;
use crate::error::ErrorCode;
use crate::model::{BreakerState, Entrance, Failure, Timestamp, ViewName};
use crate::store::chain::{
    ATTEMPT_COLUMNS, CALL_COLUMNS, Canonical, ENTRY_COLUMNS, Hash, Kind, LedgerKey, Value,
    canonical_call, canonical_entry,
};
use crate::store::column::hex;
use crate::store::courtesy::Courtesy;
use crate::store::spool::Link;
use crate::store::{
    AUDIT_STARTED, AUDIT_STOPPED, Appended, CALL_STARTED, CallRow, Checkpoint, EntryRow,
    StoreError, Unfinished,
};

const TABLE: &str = "ledger";

/// Rows that are given to SQLite at once, largest first. A batch is given in as many parts as its number has
/// binary digits that are set: each costs two switches of threads, which is more than the work of a few rows,
/// and where all processors are busy each of them waits for its turn.
const BLOCKS: [usize; 10] = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1];
/// Rows of the largest statement: larger blocks are several of them. Still larger ones are not faster.
const LARGEST: usize = 64;

/// What writes each of [`BLOCKS`].
type Statements = LazyLock<[&'static str; BLOCKS.len()]>;

static INSERT_CALLS: Statements =
    LazyLock::new(|| statements([("calls", &[&CALL_COLUMNS, &["hash"]])]));
static INSERT_ATTEMPTS: Statements =
    LazyLock::new(|| statements([("attempts", &[&ATTEMPT_COLUMNS])]));
static INSERT_PAYLOADS: Statements =
    LazyLock::new(|| statements([("payloads", &[&["arguments", "result"]])]));
static INSERT_ENTRIES: Statements =
    LazyLock::new(|| statements([("entries", &[&ENTRY_COLUMNS, &["hash"]])]));
/// As many rows of each of the three: most calls have one attempt and payloads.
static INSERT_TOGETHER: Statements = LazyLock::new(|| {
    statements([
        ("calls", &[&CALL_COLUMNS, &["hash"]]),
        ("attempts", &[&ATTEMPT_COLUMNS]),
        ("payloads", &[&["arguments", "result"]]),
    ])
});

/// A table, and its columns but for the number of the row.
type Table<'a> = (&'a str, &'a [&'a [&'a str]]);

fn statements<const TABLES: usize>(tables: [Table<'_>; TABLES]) -> [&'static str; BLOCKS.len()] {
    BLOCKS.map(|rows| {
        let one = tables.map(|(table, columns)| {
            let columns: Vec<&str> = std::iter::once("seq").chain(columns.concat()).collect();
            let values = places(columns.len(), rows.min(LARGEST));
            format!("insert into {table} ({}) values {values}", columns.join(", "))
        });
        let all = vec![one.join("; "); rows.div_ceil(LARGEST)].join("; ");
        // As others: once, for each of the few.
        &*all.leak()
    })
}

/// Where the chain ends, and what it is.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) chain: Vec<u8>,
    /// The last row that is not in the chain any more, or was never.
    pub(super) base: i64,
    pub(super) base_hash: Hash,
    /// The last row.
    pub(super) seq: i64,
    pub(super) hash: Hash,
}

impl Head {
    pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Self, StoreError> {
        let row = sqlx::query(
            "select chain, base_seq, base_hash, head_seq, head_hash from ledger where id = 1",
        )
        .fetch_one(connection)
        .await?;
        Ok(Self {
            chain: row.try_get("chain")?,
            base: row.try_get("base_seq")?,
            base_hash: hash_of(TABLE, "base_hash", row.try_get("base_hash")?)?,
            seq: row.try_get("head_seq")?,
            hash: hash_of(TABLE, "head_hash", row.try_get("head_hash")?)?,
        })
    }

    /// The next row.
    fn extend(&mut self, key: &LedgerKey, row: &Canonical) {
        self.seq = self.seq.saturating_add(1);
        self.hash = key.link(&self.hash, row);
    }

    pub(super) async fn write(
        &self,
        transaction: &mut Transaction<'_, Sqlite>,
        key: &LedgerKey,
    ) -> Result<(), StoreError> {
        let mac = key.ends(&self.chain, (self.base, &self.base_hash), (self.seq, &self.hash));
        sqlx::query(
            "update ledger set base_seq = ?, base_hash = ?, head_seq = ?, head_hash = ?, mac = ?
             where id = 1",
        )
        .bind(self.base)
        .bind(self.base_hash.to_vec())
        .bind(self.seq)
        .bind(self.hash.to_vec())
        .bind(mac.to_vec())
        .execute(&mut **transaction)
        .await?;
        Ok(())
    }
}

impl SqliteStore {
    /// Adds entries and then calls to the ledger.
    pub(in crate::store) async fn append_ledger(
        &self,
        entries: &[EntryRow],
        calls: &[CallRow],
    ) -> Result<Appended, StoreError> {
        let mut writer = self.audit.writer().await?;
        let mut transaction = begin(&mut writer).await?;
        let courtesy = &self.audit.courtesy;
        let began = clock::uptime();
        let last = append(&mut transaction, &self.ledger_key, entries, calls, courtesy).await?;
        let took = clock::uptime().since(began);
        transaction.commit().await?;
        Ok(Appended { last, took })
    }

    pub(in crate::store) fn ledger_courtesy(&self) -> Courtesy {
        self.audit.courtesy.clone()
    }
}

impl SqliteStore {
    pub(in crate::store) async fn shrink_ledger_log(&self) -> Result<(), StoreError> {
        let mut writer = self.audit.writer().await?;
        sqlx::raw_sql("pragma wal_checkpoint(truncate)").execute(&mut *writer).await?;
        Ok(())
    }

    pub(in crate::store) async fn checkpoint(
        &self,
        now: Timestamp,
    ) -> Result<Checkpoint, StoreError> {
        // On the writer's connection: readers can all be busy with queries.
        let mut writer = self.audit.writer().await?;
        let head = Head::read(&mut writer).await?;
        drop(writer);
        let (chain, hash) = (hex(&head.chain), hex(&head.hash));
        Checkpoint::sign(&self.ledger_key, chain, head.seq, hash, now.to_string())
            .ok_or(StoreError::Closed)
    }
}

impl SqliteStore {
    pub(in crate::store) async fn audit_entries(
        &self,
        seq: i64,
        limit: u16,
    ) -> Result<Vec<EntryRow>, StoreError> {
        let rows = sqlx::query(
            "select seq, at_ms, kind, actor, subject, detail from entries
             where seq > ? order by seq limit ?",
        )
        .bind(seq)
        .bind(limit)
        .fetch_all(&self.audit.readers)
        .await?;
        rows.iter().map(entry).collect()
    }

    pub(in crate::store) async fn unfinished(&self) -> Result<Option<Unfinished>, StoreError> {
        let mut reader = self.audit.readers.acquire().await?;
        let last = sqlx::query(
            "select seq, kind from entries where kind in (?, ?) order by seq desc limit 1",
        )
        .bind(AUDIT_STARTED)
        .bind(AUDIT_STOPPED)
        .fetch_optional(&mut *reader)
        .await?;
        let since: i64 = match &last {
            Some(last) if last.try_get::<&str, _>("kind")? == AUDIT_STARTED => {
                last.try_get("seq")?
            }
            Some(_) => return Ok(None),
            // Rows were removed up to after the last start: an end in order would be there.
            None => match pruned_through(&mut reader, &self.ledger_key).await? {
                Some(base) => base,
                None => return Ok(None),
            },
        };
        let begun = sqlx::query(
            "select seq, at_ms, kind, actor, subject, detail from entries
             where seq > ? and kind = ? and not exists
                (select 1 from calls where id = unhex(replace(subject, '-', '')))",
        )
        .bind(since)
        .bind(CALL_STARTED)
        .fetch_all(&mut *reader)
        .await?;
        let last: Option<i64> = sqlx::query_scalar(
            "select max(at) from
                (select started_at_ms as at from calls
                    where seq = (select max(seq) from calls)
                 union all select at_ms from entries where seq = (select max(seq) from entries))",
        )
        .fetch_one(&mut *reader)
        .await?;
        Ok(Some(Unfinished {
            last: last.map(Timestamp::from_millis),
            begun: begun.iter().map(entry).collect::<Result<_, _>>()?,
        }))
    }
}

/// The last row that was removed from the beginning of the chain, if any was.
async fn pruned_through(
    reader: &mut SqliteConnection,
    key: &LedgerKey,
) -> Result<Option<i64>, StoreError> {
    let row = sqlx::query("select chain, base_seq, base_hash from ledger where id = 1")
        .fetch_one(reader)
        .await?;
    let (chain, base): (Vec<u8>, i64) = (row.try_get("chain")?, row.try_get("base_seq")?);
    let hash = hash_of(TABLE, "base_hash", row.try_get("base_hash")?)?;
    Ok((hash != key.genesis(&chain, base)).then_some(base))
}

pub(super) fn entry(row: &SqliteRow) -> Result<EntryRow, StoreError> {
    Ok(EntryRow {
        seq: row.try_get("seq")?,
        at: Timestamp::from_millis(row.try_get("at_ms")?),
        kind: row.try_get("kind")?,
        actor: row.try_get("actor")?,
        subject: row.try_get("subject")?,
        detail: row.try_get("detail")?,
    })
}

/// The same within a transaction.
pub(super) async fn append(
    transaction: &mut Transaction<'_, Sqlite>,
    key: &LedgerKey,
    entries: &[EntryRow],
    calls: &[CallRow],
    courtesy: &Courtesy,
) -> Result<i64, StoreError> {
    append_links(transaction, key, links(key, entries, calls, courtesy), courtesy).await
}

/// The rows as they are before they have a number.
pub(super) fn links<'a>(
    key: &LedgerKey,
    entries: &'a [EntryRow],
    calls: &'a [CallRow],
    courtesy: &Courtesy,
) -> Vec<Link<'a>> {
    let entries = entries.iter().map(|entry| Link {
        kind: Kind::Entry,
        values: unnumbered(entry_values(entry)),
        attempts: Vec::new(),
        payload: None,
    });
    let calls = calls.iter().map(|call| {
        courtesy.give_way();
        let (arguments, result) = (call.arguments.as_deref(), call.result.as_deref());
        let kept = key.kept(arguments, result);
        Link {
            kind: Kind::Call,
            values: unnumbered(call_values(call, kept)),
            attempts: (1..)
                .zip(&call.attempt_list)
                .map(|(n, row)| attempt_values(n, row).to_vec())
                .collect(),
            payload: kept.map(|_| [Value::maybe_text(arguments), Value::maybe_text(result)]),
        }
    });
    entries.chain(calls).collect()
}

/// Adds rows to the chain in this order, whatever they are.
pub(super) async fn append_links(
    transaction: &mut Transaction<'_, Sqlite>,
    key: &LedgerKey,
    links: Vec<Link<'_>>,
    courtesy: &Courtesy,
) -> Result<i64, StoreError> {
    // Read anew: a place kept in memory is wrong after a commit whose answer was not awaited.
    let mut head = Head::read(transaction).await?;
    let mut entries = Vec::new();
    let mut calls = Vec::with_capacity(links.len());
    let (mut attempts, mut payloads) = (Vec::with_capacity(links.len()), Vec::new());
    for Link { kind, mut values, attempts: tried, payload } in links {
        courtesy.give_way();
        let seq = head.seq.saturating_add(1);
        let columns = values.get(1..).unwrap_or_default();
        let (form, rows) = match kind {
            Kind::Entry => (canonical_entry(seq, columns), &mut entries),
            Kind::Call => (canonical_call(seq, columns, &tried), &mut calls),
        };
        head.extend(key, &form);
        if let Some(first) = values.first_mut() {
            *first = Value::Integer(seq);
        }
        values.push(Value::Blob(head.hash.to_vec().into()));
        rows.push(values);
        attempts.extend(tried.into_iter().map(|values| numbered(seq, values)));
        payloads.extend(payload.map(|payload| numbered(seq, payload)));
    }
    insert(transaction, &INSERT_ENTRIES, [&entries], courtesy).await?;
    let [calls, attempts, payloads] =
        insert(transaction, &INSERT_TOGETHER, [&calls, &attempts, &payloads], courtesy).await?;
    insert(transaction, &INSERT_CALLS, [calls], courtesy).await?;
    insert(transaction, &INSERT_ATTEMPTS, [attempts], courtesy).await?;
    insert(transaction, &INSERT_PAYLOADS, [payloads], courtesy).await?;
    head.write(transaction, key).await?;
    Ok(head.seq)
}

fn numbered<'a>(seq: i64, values: impl IntoIterator<Item = Value<'a>>) -> Vec<Value<'a>> {
    std::iter::once(Value::Integer(seq)).chain(values).collect()
}

/// With room for the number in front and the hash at the end.
fn unnumbered<'a, const N: usize>(values: [Value<'a>; N]) -> Vec<Value<'a>> {
    let mut row = Vec::with_capacity(N.saturating_add(2));
    row.push(Value::Null);
    row.extend(values);
    row
}

/// Writes rows of some tables, of each as many as there are of the one with the fewest; gives what is
/// left of each.
async fn insert<'r, 'v, const TABLES: usize>(
    transaction: &mut Transaction<'_, Sqlite>,
    statements: &Statements,
    mut rows: [&'r [Vec<Value<'v>>]; TABLES],
    courtesy: &Courtesy,
) -> Result<[&'r [Vec<Value<'v>>]; TABLES], StoreError> {
    for (sql, count) in statements.iter().zip(BLOCKS) {
        while rows.iter().all(|rows| rows.len() >= count) {
            let parts = rows.map(|rows| rows.split_at(count.min(rows.len())));
            let mut query = sqlx::query(*sql);
            for statement in 0..count.div_ceil(LARGEST) {
                let rows = |rows: &'r [Vec<Value<'v>>]| rows.chunks(LARGEST).nth(statement);
                for row in parts.iter().filter_map(|(block, _)| rows(block)).flatten() {
                    courtesy.give_way();
                    query = row.iter().fold(query, bind);
                }
            }
            query.execute(&mut **transaction).await?;
            rows = parts.map(|(_, rest)| rest);
        }
    }
    Ok(rows)
}

fn bind<'q>(
    query: Query<'q, Sqlite, SqliteArguments>,
    value: &'q Value<'_>,
) -> Query<'q, Sqlite, SqliteArguments> {
    match value {
        Value::Null => query.bind(None::<i64>),
        Value::Integer(number) => query.bind(*number),
        Value::Text(text) => query.bind(text.as_ref()),
        Value::Blob(bytes) => query.bind(bytes.as_ref()),
    }
}

fn entry_values(row: &EntryRow) -> [Value<'_>; ENTRY_COLUMNS.len()] {
    [
        Value::Integer(row.at.as_millis()),
        Value::text(row.kind.as_str()),
        Value::text(row.actor.as_str()),
        Value::text(row.subject.as_str()),
        Value::text(row.detail.as_str()),
    ]
}

fn call_values(row: &CallRow, kept: Option<Hash>) -> [Value<'_>; CALL_COLUMNS.len()] {
    let (entrance, version) = match row.entrance {
        Entrance::Mcp(version) => ("mcp", Some(version.as_str())),
        Entrance::Rest => ("rest", None),
    };
    let digest = |digest: &'_ Option<Hash>| {
        digest.map_or(Value::Null, |hash| Value::Blob(hash.to_vec().into()))
    };
    [
        Value::Blob(row.id.as_bytes().as_slice().into()),
        Value::Integer(row.started_at.as_millis()),
        Value::text(row.caller.as_ref()),
        Value::maybe_text(row.session.as_deref()),
        Value::maybe_text(row.client.as_ref().map(|client| client.name.as_str())),
        Value::maybe_text(row.client.as_ref().map(|client| client.version.as_str())),
        Value::text(entrance),
        Value::maybe_text(version),
        Value::text(row.tool.as_ref()),
        Value::maybe_text(row.upstream_tool.as_ref().map(|tool| tool.as_str())),
        Value::maybe_text(row.server.as_ref().map(|server| server.as_str())),
        Value::maybe_blob(row.definition_hash.as_ref().map(<[u8; 32]>::as_slice)),
        Value::text(row.outcome.as_str()),
        Value::maybe_text(row.error_code.map(ErrorCode::as_str)),
        Value::maybe_text(row.error.as_deref()),
        Value::maybe_text(row.failure.map(Failure::as_str)),
        Value::Integer(row.http_status.into()),
        Value::Integer(row.attempts.into()),
        Value::Integer(micros(row.queue)),
        Value::Integer(micros(row.upstream)),
        Value::Integer(micros(row.total)),
        Value::Integer(signed(row.request_bytes)),
        Value::Integer(signed(row.response_bytes)),
        Value::maybe_text(row.view.as_ref().map(ViewName::as_str)),
        digest(&row.arguments_digest),
        digest(&row.result_digest),
        digest(&kept),
        Value::maybe_text(row.trace_id.map(|trace| trace.to_string())),
        Value::maybe_text(row.remote.map(|address| address.to_string())),
        Value::maybe_text(row.levels.map(|(arguments, _)| arguments.as_str())),
        Value::maybe_text(row.levels.map(|(_, results)| results.as_str())),
        Value::maybe_text(row.breaker.map(BreakerState::as_str)),
    ]
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
