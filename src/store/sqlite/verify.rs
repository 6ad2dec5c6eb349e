//! Verifying the ledger: every link of the chain, its ends, and what is kept of payloads.
//!
//! Changes when the chain covers something else. Opens the file for reading alone, also beside a
//! router that writes it. Rows are read in windows with a short transaction each, and checked against
//! the hash of the row before as it stands in the file, so that windows need nothing of each other and
//! are checked side by side.

mod ends;
mod tables;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::BufRead;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;

use sqlx::sqlite::SqliteRow;
use sqlx::{ConnectOptions as _, Row, SqliteConnection, TypeInfo as _, ValueRef as _};

use self::ends::{ends, last_row, without_ends};
use self::tables::{are_whole, is_set_back};
use super::backup::must_be_whole;
use super::packed::{Attempt, Call, Packed};
use super::{AUDIT, Version, connect_options, identify, ledger_key};
use crate::store::chain::{
    ATTEMPT_COLUMNS, CALL_COLUMNS, Canonical, ENTRY_COLUMNS, Hash, LedgerKey, PAYLOAD_DIGEST,
    Value, canonical_call, canonical_entry,
};
use crate::store::column::hex;
use crate::store::export::{self, PRUNED};
use crate::store::{Checkpoint, Fault, StoreError, Verified};

/// The kind of entries that say whose payloads were removed.
pub(super) const ERASED: &str = "audit.erased";
/// The kind of entries that say up to where payloads were removed because of their age.
pub(super) const EXPIRED: &str = "audit.expired";

/// Rows of a window.
const WINDOW: i64 = 512;
/// Windows that are read at once, at most: more would wait for the disk.
const READERS: usize = 8;
/// Column of a call's `seq` in what is selected; the others follow.
pub(super) const FIRST: usize = 1;

/// The one row of table `ledger`.
pub(super) struct State {
    pub(super) chain: Vec<u8>,
    pub(super) base: i64,
    pub(super) base_hash: Hash,
    pub(super) head: i64,
    pub(super) head_hash: Hash,
    pub(super) mac: Hash,
    pub(super) key_id: Vec<u8>,
}

/// What verification needs beside the rows.
struct Means {
    key: LedgerKey,
    records: Records,
    base: i64,
    base_hash: Hash,
    head: i64,
    next: AtomicI64,
}

/// Verifies the ledger in `folder`, also against `checkpoints`.
///
/// # Errors
/// When the file or the key cannot be read; what is wrong with the rows is in [`Verified`].
pub(in crate::store) async fn verify(
    folder: &Path,
    key_path: &Path,
    checkpoints: &[Checkpoint],
) -> Result<Verified, StoreError> {
    must_be_whole(folder)?;
    let path = folder.join(AUDIT.file);
    let lacking = |reason| StoreError::LedgerKey { path: key_path.to_owned(), reason };
    let key = ledger_key::read(key_path)?.ok_or_else(|| lacking("it is missing"))?;
    let mut reader = open(&path).await?;
    let version = identify(&mut reader, &path, &AUDIT).await?;
    let is_newest = matches!(version, Version::Known(version) if version == AUDIT.migrations.len());
    if !is_newest && !is_set_back(&mut reader, &version, &key, checkpoints).await? {
        return Err(StoreError::NoChain { path });
    }
    if !is_newest || !are_whole(&mut reader).await? {
        let mut verified = Verified::default();
        verified.found(0, Fault::Tables);
        return Ok(verified);
    }
    let Some(state) = State::read(&mut reader).await? else {
        return without_ends(&mut reader, &key, checkpoints, path).await;
    };
    // The mark is ours: then it is the name of the key that was changed, and not the key.
    let is_ours = state.is_marked_by(&key);
    if state.key_id != key.id() && !is_ours {
        return Err(lacking("it is another one"));
    }
    let mut verified = Verified {
        chain: hex(&state.chain),
        base: state.base,
        head: state.head,
        head_hash: hex(&state.head_hash),
        unchained: count(&mut reader, "select count(*) from calls where hash is null").await?,
        ..Verified::default()
    };
    if !is_ours {
        verified.found(state.head, Fault::Changed);
    } else if state.key_id != key.id() {
        verified.found(state.head, Fault::Ends);
    }
    let records = Records::read(&mut reader, &state).await?;
    if !records.let_go(&state, &key) {
        verified.found(state.base.saturating_add(1), Fault::Beginning);
    }

    let means = Arc::new(Means {
        key,
        records,
        base: state.base,
        base_hash: state.base_hash,
        head: match is_ours {
            true => state.head,
            // Anybody can say that the end is far away: nobody looks for it for years.
            false => state.head.min(last_row(&mut reader).await?.saturating_add(WINDOW)),
        },
        next: AtomicI64::new(state.base),
    });
    let mut windows = tokio::task::JoinSet::new();
    // What is done with rows costs as much as to read them: no two readers share a thread for it.
    let runtime = tokio::runtime::Handle::current();
    for _ in 0..thread::available_parallelism().map_or(1, NonZero::get).min(READERS) {
        let (means, mut reader) = (Arc::clone(&means), open(&path).await?);
        let runtime = runtime.clone();
        windows.spawn_blocking(move || runtime.block_on(means.windows(&mut reader)));
    }
    let mut bare = Vec::new();
    while let Some(part) = windows.join_next().await {
        let (part, bare_of_part) = part.map_err(|_ended| StoreError::Closed)??;
        verified.rows += part.rows;
        verified.erased += part.erased;
        bare.extend(bare_of_part);
        let listed = part.findings.len() as u64;
        part.findings.iter().for_each(|finding| verified.found(finding.seq, finding.fault));
        verified.faults += part.faults - listed;
    }
    // A router may have removed rows and payloads meanwhile, and says so.
    let now = State::read(&mut reader).await?.filter(|now| now.is_marked_by(&means.key));
    let records = Records::read(&mut reader, now.as_ref().unwrap_or(&state)).await?;
    for seq in bare {
        match records.is_erased(seq) {
            true => verified.erased += 1,
            false if now.as_ref().is_some_and(|now| now.base >= seq) => {}
            false => verified.found(seq, Fault::Payload),
        }
    }
    let mut base = state.base;
    if let Some(now) = now.filter(|now| now.base != state.base) {
        base = now.base;
        if !records.let_go(&now, &means.key) {
            verified.found(now.base.saturating_add(1), Fault::Beginning);
        }
    }
    verified.base = base;
    ends(&mut reader, &state, base, &means.key, &mut verified).await?;
    compare(&mut reader, &state, &means.key, checkpoints, &mut verified).await?;
    Ok(verified)
}

/// Verifies an export with the key in a file.
pub(in crate::store) fn verify_export(
    export: &mut dyn BufRead,
    key_path: &Path,
    checkpoints: &[Checkpoint],
) -> Result<Verified, StoreError> {
    let key = ledger_key::read(key_path)?.ok_or_else(|| StoreError::LedgerKey {
        path: key_path.to_owned(),
        reason: "it is missing",
    })?;
    export::verify(export, &key, checkpoints)
}

async fn open(path: &Path) -> Result<SqliteConnection, StoreError> {
    // A window's rows find room: the thread that reads them waits for nobody.
    let room = usize::try_from(WINDOW).unwrap_or_default();
    let options = connect_options(path, &AUDIT).pragma("query_only", "on").row_buffer_size(room);
    options.connect().await.map_err(|error| StoreError::while_opening(error, path))
}

impl State {
    pub(super) async fn read(reader: &mut SqliteConnection) -> Result<Option<Self>, StoreError> {
        let row = sqlx::query("select * from ledger where id = 1").fetch_optional(reader).await?;
        let Some(row) = row else { return Ok(None) };
        // What is no hash any more is one that no mark fits.
        let hash = |column: &'static str| -> Result<Hash, StoreError> {
            let bytes: &[u8] = row.try_get(column)?;
            Ok(bytes.try_into().unwrap_or_default())
        };
        Ok(Some(Self {
            chain: row.try_get("chain")?,
            base: row.try_get("base_seq")?,
            base_hash: hash("base_hash")?,
            head: row.try_get("head_seq")?,
            head_hash: hash("head_hash")?,
            mac: hash("mac")?,
            key_id: row.try_get("key_id")?,
        }))
    }

    fn is_marked_by(&self, key: &LedgerKey) -> bool {
        let (base, head) = ((self.base, &self.base_hash), (self.head, &self.head_hash));
        self.mac == key.ends(&self.chain, base, head)
    }
}

/// What the ledger says of what was removed. Whoever forges that breaks the chain.
#[derive(Default)]
pub(super) struct Records {
    pruned: Vec<(i64, String)>,
    erased: Vec<(i64, i64)>,
    /// Up to here payloads may be gone.
    expired: i64,
}

impl Records {
    /// Of what is in the chain: anybody can add a row outside it.
    pub(super) async fn read(
        reader: &mut SqliteConnection,
        state: &State,
    ) -> Result<Self, StoreError> {
        let sql = "select kind, detail from entries
            where seq > ? and seq <= ? and kind in (?, ?, ?)";
        let rows = sqlx::query(sql)
            .bind(state.base)
            .bind(state.head)
            .bind(PRUNED)
            .bind(ERASED)
            .bind(EXPIRED)
            .fetch_all(reader)
            .await?;
        let mut records = Self::default();
        for row in rows {
            let kind: &str = row.try_get("kind")?;
            // As bytes: what is no text any more was changed, and what is not readable, too. The chain tells.
            let Ok(detail) = row.try_get_unchecked::<&[u8], _>("detail") else { continue };
            let Ok(detail) = serde_json::from_slice::<serde_json::Value>(detail) else { continue };
            let through = detail.get("through").and_then(serde_json::Value::as_i64);
            if kind == EXPIRED {
                records.expired = records.expired.max(through.unwrap_or_default());
            } else if kind == PRUNED {
                let hash = detail.get("hash").and_then(serde_json::Value::as_str);
                records.pruned.extend(through.zip(hash.map(str::to_owned)));
            } else if let Some(ranges) = detail.get("rows") {
                let ranges = serde_json::from_value::<Vec<(i64, i64)>>(ranges.clone());
                records.erased.extend(ranges.unwrap_or_default());
            }
        }
        records.erased.sort_unstable();
        Ok(records)
    }

    /// Whether the chain may begin where it does: at its first row, or where an entry lets rows go up
    /// to there or further. Between the steps that remove them the beginning lies before what the entry
    /// names; then the first row that is left shows whether its hash is the right one.
    fn let_go(&self, state: &State, key: &LedgerKey) -> bool {
        let is_begin = state.base_hash == key.genesis(&state.chain, state.base);
        is_begin
            || self.pruned.iter().any(|(through, hash)| {
                *through > state.base || *through == state.base && *hash == hex(&state.base_hash)
            })
    }

    pub(super) fn is_erased(&self, seq: i64) -> bool {
        if seq <= self.expired {
            return true;
        }
        let after = self.erased.partition_point(|(first, _)| *first <= seq);
        // Ranges can overlap; there are few of them.
        self.erased.get(..after).unwrap_or_default().iter().any(|(_, last)| *last >= seq)
    }
}

impl Means {
    /// What was found, and the calls whose payload is missing without a record of it so far.
    async fn windows(
        &self,
        reader: &mut SqliteConnection,
    ) -> Result<(Verified, Vec<i64>), StoreError> {
        let (mut part, mut bare) = (Verified::default(), Vec::new());
        loop {
            let after = self.next.fetch_add(WINDOW, Ordering::Relaxed);
            if after >= self.head {
                return Ok((part, bare));
            }
            let last = after.saturating_add(WINDOW).min(self.head);
            self.window(reader, after, last, &mut part, &mut bare).await?;
        }
    }

    /// The rows after `after` up to `last`.
    async fn window(
        &self,
        reader: &mut SqliteConnection,
        after: i64,
        last: i64,
        part: &mut Verified,
        bare: &mut Vec<i64>,
    ) -> Result<(), StoreError> {
        let mut links = BTreeMap::new();
        let mut before = match after == self.base {
            true => Some(self.base_hash),
            false => hash_at(reader, after).await?,
        };
        let packed = Packed::read(reader, after, last).await?;
        let (plain, entries);
        let (calls, attempts) = match packed.as_ref().and_then(Packed::rows) {
            Some(rows) => {
                entries = read_entries(reader, after, last).await?;
                rows
            }
            None => {
                let (calls, attempts, rows) = read_rows(reader, after, last).await?;
                (plain, entries) = ((calls, attempts), rows);
                (
                    plain.0.iter().map(plain_call).collect::<Result<_, _>>()?,
                    plain.1.iter().map(plain_attempt).collect::<Result<_, _>>()?,
                )
            }
        };
        // What a router has removed by now is nothing to look for.
        let (base, base_hash) = base(reader).await?.unwrap_or((self.base, self.base_hash));
        let after = if base > after {
            before = Some(base_hash);
            base
        } else {
            after
        };
        // Where a row is missing, that is found; what an entry has beside it is nobody's.
        let alien: Option<i64> = sqlx::query_scalar(
            "select min(e.seq) from entries e where e.seq > ? and e.seq <= ?
                and exists (select 1 from payloads p where p.seq = e.seq)",
        )
        .bind(after)
        .bind(last)
        .fetch_one(&mut *reader)
        .await?;
        if let Some(seq) = alien {
            part.found(seq, Fault::Payload);
        }
        let of_entries: Vec<i64> = entries.iter().filter_map(|row| row.try_get(0).ok()).collect();
        let orphan = |of: i64, part: &mut Verified| {
            if of > after && of_entries.binary_search(&of).is_ok() {
                part.found(of, Fault::Changed);
            }
        };
        let mut attempts = attempts.into_iter().peekable();
        for call in calls {
            let seq = call.seq;
            if seq <= after {
                continue;
            }
            while let Some((of, _)) = attempts.next_if(|(of, _)| *of < seq) {
                orphan(of, part);
            }
            let mut tried = Vec::new();
            while let Some((_, values)) = attempts.next_if(|(of, _)| *of == seq) {
                tried.push(values);
            }
            links.insert(seq, self.call(call, tried, part, bare));
        }
        attempts.for_each(|(of, _)| orphan(of, part));
        for row in &entries {
            let seq: i64 = row.try_get(0)?;
            let values = values(row, FIRST, ENTRY_COLUMNS.len());
            let form = values.map(|values| canonical_entry(seq, &values));
            let link = (stored_hash(row, FIRST + ENTRY_COLUMNS.len()), form);
            if links.insert(seq, link).is_some() {
                part.found(seq, Fault::Changed);
            }
        }
        for seq in after.saturating_add(1)..=last {
            let Some((stored, form)) = links.remove(&seq) else {
                part.found(seq, Fault::Missing);
                before = None;
                continue;
            };
            part.rows += 1;
            let computed = before.zip(form).map(|(before, form)| self.key.link(&before, &form));
            // After a gap nothing can be said of the first row.
            if before.is_some() && (stored.is_none() || computed != stored) {
                part.found(seq, Fault::Changed);
            }
            before = stored;
        }
        Ok(())
    }

    fn call(
        &self,
        call: Call<'_>,
        tried: Vec<Option<Vec<Value<'_>>>>,
        part: &mut Verified,
        bare: &mut Vec<i64>,
    ) -> (Option<Hash>, Option<Canonical>) {
        let seq = call.seq;
        let payload_digest = call.values.as_ref().and_then(|values| {
            let Some(Value::Blob(digest)) = values.get(PAYLOAD_DIGEST) else { return None };
            digest.as_ref().try_into().ok()
        });
        let form = call.values.and_then(|values| {
            let tried: Option<Vec<_>> = tried.into_iter().collect();
            Some(canonical_call(seq, &values, tried?))
        });
        let kept = call
            .payload
            .and_then(|[arguments, result]| self.key.kept(arguments.as_deref(), result.as_deref()));
        match (payload_digest, call.has_payload) {
            (Some(_), false) if self.records.is_erased(seq) => part.erased += 1,
            (None, false) => {}
            (Some(_), false) => bare.push(seq),
            (None, true) => part.found(seq, Fault::Payload),
            (digest, true) if digest != kept => part.found(seq, Fault::Payload),
            (_, true) => {}
        }
        (call.stored, form)
    }
}

fn plain_call(row: &SqliteRow) -> Result<Call<'_>, StoreError> {
    let hash_column = FIRST + CALL_COLUMNS.len();
    let text = |column| row.try_get::<Option<&str>, _>(column).map(|text| text.map(Cow::Borrowed));
    Ok(Call {
        seq: row.try_get(0)?,
        values: values(row, FIRST, CALL_COLUMNS.len()),
        stored: stored_hash(row, hash_column),
        has_payload: row.try_get::<Option<i64>, _>(hash_column + 1).ok().flatten().is_some(),
        payload: match (text(hash_column + 2), text(hash_column + 3)) {
            (Ok(arguments), Ok(result)) => Some([arguments, result]),
            (Err(_), _) | (_, Err(_)) => None,
        },
    })
}

fn plain_attempt(row: &SqliteRow) -> Result<Attempt<'_>, StoreError> {
    Ok((row.try_get(0)?, values(row, FIRST, ATTEMPT_COLUMNS.len())))
}

pub(super) async fn read_rows(
    reader: &mut SqliteConnection,
    after: i64,
    last: i64,
) -> Result<(Vec<SqliteRow>, Vec<SqliteRow>, Vec<SqliteRow>), StoreError> {
    let calls = format!(
        "select c.seq, {}, c.hash, p.seq, p.arguments, p.result
         from calls c left join payloads p on p.seq = c.seq
         where c.seq > ? and c.seq <= ? order by c.seq",
        CALL_COLUMNS.map(|column| format!("c.{column}")).join(", ")
    );
    let attempts = format!(
        "select seq, {} from attempts where seq > ? and seq <= ? order by seq, n",
        ATTEMPT_COLUMNS.join(", ")
    );
    let rows = |sql| sqlx::query(sqlx::AssertSqlSafe(sql)).bind(after).bind(last);
    let calls = rows(calls).fetch_all(&mut *reader).await?;
    let attempts = rows(attempts).fetch_all(&mut *reader).await?;
    Ok((calls, attempts, read_entries(reader, after, last).await?))
}

async fn read_entries(
    reader: &mut SqliteConnection,
    after: i64,
    last: i64,
) -> Result<Vec<SqliteRow>, StoreError> {
    let entries = format!(
        "select seq, {}, hash from entries where seq > ? and seq <= ? order by seq",
        ENTRY_COLUMNS.join(", ")
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(entries)).bind(after).bind(last);
    Ok(rows.fetch_all(reader).await?)
}

/// Columns as they stand in the file; `None` when one cannot be read as what it says it is.
pub(super) fn values(row: &SqliteRow, first: usize, count: usize) -> Option<Vec<Value<'_>>> {
    (first..first + count)
        .map(|column| {
            let raw = row.try_get_raw(column).ok()?;
            if raw.is_null() {
                return Some(Value::Null);
            }
            Some(match raw.type_info().name() {
                "INTEGER" => Value::Integer(row.try_get_unchecked(column).ok()?),
                "TEXT" => {
                    let bytes: &[u8] = row.try_get_unchecked(column).ok()?;
                    Value::text(std::str::from_utf8(bytes).ok()?)
                }
                "BLOB" => Value::Blob(row.try_get_unchecked::<&[u8], _>(column).ok()?.into()),
                _ => return None,
            })
        })
        .collect()
}

pub(super) fn stored_hash(row: &SqliteRow, column: usize) -> Option<Hash> {
    row.try_get::<Option<&[u8]>, _>(column).ok().flatten()?.try_into().ok()
}

pub(super) async fn hash_at(
    reader: &mut SqliteConnection,
    seq: i64,
) -> Result<Option<Hash>, StoreError> {
    let row = sqlx::query(
        "select hash from calls where seq = ?1 union all select hash from entries where seq = ?1",
    )
    .bind(seq)
    .fetch_optional(reader)
    .await?;
    Ok(row.as_ref().and_then(|row| stored_hash(row, 0)))
}

/// The last row that is not in the chain, and its hash.
pub(super) async fn base(reader: &mut SqliteConnection) -> Result<Option<(i64, Hash)>, StoreError> {
    let row = sqlx::query("select base_seq, base_hash from ledger where id = 1")
        .fetch_optional(reader)
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(stored_hash(&row, 1).map(|hash| row.try_get(0).map(|seq| (seq, hash))).transpose()?)
}

async fn count(reader: &mut SqliteConnection, sql: &'static str) -> Result<u64, StoreError> {
    let count: i64 = sqlx::query_scalar(sql).fetch_one(reader).await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Whether the rows are those that were signed.
async fn compare(
    reader: &mut SqliteConnection,
    state: &State,
    key: &LedgerKey,
    checkpoints: &[Checkpoint],
    verified: &mut Verified,
) -> Result<(), StoreError> {
    let chain = hex(&state.chain);
    let ours = checkpoints.iter().filter(|one| one.is_signed_by(key));
    let mut cut = None;
    for checkpoint in ours {
        if checkpoint.chain != chain {
            // Signed with this key, and not this ledger: the whole was replaced.
            cut = Some(state.base.saturating_add(1));
            continue;
        }
        if checkpoint.seq <= state.base {
            continue;
        }
        verified.checkpoints += 1;
        if checkpoint.seq > state.head {
            cut = Some(state.head.saturating_add(1));
            continue;
        }
        // A row that is missing was found already.
        let hash = hash_at(reader, checkpoint.seq).await?;
        if hash.is_some_and(|hash| hex(&hash) != checkpoint.hash) {
            verified.found(checkpoint.seq, Fault::Checkpoint);
        }
    }
    if let Some(seq) = cut {
        verified.found(seq, Fault::Truncated);
    }
    Ok(())
}
