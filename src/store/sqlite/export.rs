//! Reading the ledger for an export that can be verified without it: rows as they stand in the file, a
//! bounded number at a time in short transactions.
//!
//! Changes when such an export takes something else from the file. What its lines look like is
//! `store/export.rs`'s.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};

use super::SqliteStore;
use super::verify::{FIRST, Records, State, base, hash_at, read_rows, stored_hash, values};
use crate::model::Timestamp;
use crate::store::StoreError;
use crate::store::chain::{
    ATTEMPT_COLUMNS, CALL_COLUMNS, ENTRY_COLUMNS, Hash, Kind, PAYLOAD_DIGEST, Value,
};
use crate::store::column::hex;
use crate::store::export::{Head, Payload, Row, Writer};

/// Rows read at once, and bytes of payloads unless a single row has more.
const WINDOW: i64 = 128;
const WINDOW_BYTES: u64 = 1 << 20;
/// Text handed over at once, at least but for the end.
const CHUNK: usize = 16 * 1024;

/// An export of the ledger under way, in parts.
pub struct LedgerExport {
    store: Arc<SqliteStore>,
    head: Head,
    writer: Option<Writer>,
    text: String,
    /// Up to here rows were read; the hash of that row, unless it is missing.
    reached: i64,
    before: Option<Hash>,
    /// What entries up to a row say of erased payloads.
    records: Option<(i64, Records)>,
}

impl std::fmt::Debug for LedgerExport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LedgerExport").field("head", &self.head).finish_non_exhaustive()
    }
}

impl LedgerExport {
    pub(in crate::store) async fn begin(
        store: Arc<SqliteStore>,
        from: Option<i64>,
        to: Option<i64>,
        payloads: bool,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let mut reader = store.audit.readers.acquire().await?;
        let state = read_state(&mut reader, &store).await?;
        let (first, last) = (state.base.saturating_add(1), state.head);
        let (from, to) = (from.unwrap_or(first), to.unwrap_or(last));
        if from < first || to > last || from > to.saturating_add(1) {
            return Err(StoreError::BadRange { from, to, first, last });
        }
        let before = match from == first {
            true => Some(state.base_hash),
            false => hash_at(&mut reader, from - 1).await?,
        };
        drop(reader);
        let head = Head {
            switchyard_ledger: 1,
            at: now.to_string(),
            chain: hex(&state.chain),
            key: hex(&state.key_id),
            base: state.base,
            base_hash: hex(&state.base_hash),
            head: state.head,
            head_hash: hex(&state.head_hash),
            mac: hex(&state.mac),
            from,
            to,
            payloads,
        };
        let mut text = String::new();
        let writer = Some(Writer::begin(&head, before.unwrap_or_default(), &mut text));
        Ok(Self { store, head, writer, text, reached: from - 1, before, records: None })
    }

    /// The next lines; `None` after the last.
    ///
    /// # Errors
    /// [`StoreError::Overtaken`] when rows were removed that were to come, [`StoreError::BadValue`], and what
    /// any statement can give. What there is by then is no export.
    pub async fn chunk(&mut self) -> Result<Option<String>, StoreError> {
        while self.text.len() < CHUNK {
            if self.reached < self.head.to {
                self.window().await?;
                continue;
            }
            if let Some(writer) = self.writer.take() {
                writer.end(&self.store.ledger_key, &mut self.text);
            }
            break;
        }
        let text = std::mem::take(&mut self.text);
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    async fn window(&mut self) -> Result<(), StoreError> {
        let store = Arc::clone(&self.store);
        let mut reader = store.audit.readers.acquire().await?;
        let last = self.window_end(&mut reader).await?;
        let (calls, attempts, entries) = read_rows(&mut reader, self.reached, last).await?;
        // What is gone by now would look like a gap.
        if base(&mut reader).await?.is_none_or(|(base, _)| base > self.reached) {
            return Err(StoreError::Overtaken);
        }
        let mut tried: BTreeMap<i64, Vec<Vec<Value<'_>>>> = BTreeMap::new();
        for row in &attempts {
            let seq = row.try_get(0)?;
            let values = columns(row, seq, FIRST, ATTEMPT_COLUMNS.len())?;
            tried.entry(seq).or_default().push(values);
        }
        let mut rows = BTreeMap::new();
        for row in &calls {
            let seq: i64 = row.try_get(0)?;
            let attempts = tried.remove(&seq).unwrap_or_default();
            let hash_column = FIRST + CALL_COLUMNS.len();
            let values = columns(row, seq, FIRST, CALL_COLUMNS.len())?;
            let has_payload = row.try_get::<Option<i64>, _>(hash_column + 1)?.is_some();
            let payload = match (has_payload, self.head.payloads) {
                (true, true) => {
                    let kept = columns(row, seq, hash_column + 2, 2)?;
                    kept.try_into().map_or(Payload::None, Payload::Kept)
                }
                (true, false) => Payload::None,
                (false, _) => {
                    let had =
                        values.get(PAYLOAD_DIGEST).is_some_and(|digest| *digest != Value::Null);
                    let erased = had && self.is_erased(&mut reader, seq).await?;
                    if erased { Payload::Erased } else { Payload::None }
                }
            };
            let hash = stored_hash(row, hash_column);
            rows.insert(
                seq,
                Row { seq, prev: None, kind: Kind::Call, values, attempts, payload, hash },
            );
        }
        for row in &entries {
            let seq: i64 = row.try_get(0)?;
            let values = columns(row, seq, FIRST, ENTRY_COLUMNS.len())?;
            let (attempts, payload) = (Vec::new(), Payload::None);
            let hash = stored_hash(row, FIRST + ENTRY_COLUMNS.len());
            rows.insert(
                seq,
                Row { seq, prev: None, kind: Kind::Entry, values, attempts, payload, hash },
            );
        }
        for (seq, mut row) in rows {
            row.prev = self.before.filter(|_| self.reached.saturating_add(1) == seq);
            (self.reached, self.before) = (seq, row.hash);
            if let Some(writer) = &mut self.writer {
                writer.row(&row, &mut self.text);
            }
        }
        if self.reached < last {
            (self.reached, self.before) = (last, None);
        }
        Ok(())
    }

    /// The last row of the next window.
    async fn window_end(&self, reader: &mut SqliteConnection) -> Result<i64, StoreError> {
        let last = self.reached.saturating_add(WINDOW).min(self.head.to);
        let lengths = sqlx::query(
            "select seq, coalesce(octet_length(arguments), 0) + coalesce(octet_length(result), 0)
             from payloads where seq > ? and seq <= ? order by seq",
        )
        .bind(self.reached)
        .bind(last)
        .fetch_all(reader)
        .await?;
        let mut bytes = 0_u64;
        for row in &lengths {
            bytes = bytes.saturating_add(u64::try_from(row.try_get::<i64, _>(1)?).unwrap_or(0));
            if bytes > WINDOW_BYTES {
                return Ok(row.try_get(0)?);
            }
        }
        Ok(last)
    }

    /// Whether an entry says that this row's payload was erased. Entries that came since are read when one is
    /// asked for of which the others say nothing.
    async fn is_erased(
        &mut self,
        reader: &mut SqliteConnection,
        seq: i64,
    ) -> Result<bool, StoreError> {
        if let Some((_, records)) = &self.records
            && records.is_erased(seq)
        {
            return Ok(true);
        }
        let state = read_state(reader, &self.store).await?;
        if self.records.as_ref().is_none_or(|(head, _)| *head < state.head) {
            let records = Records::read(reader, &state).await?;
            self.records = Some((state.head, records));
        }
        Ok(self.records.as_ref().is_some_and(|(_, records)| records.is_erased(seq)))
    }
}

async fn read_state(
    reader: &mut SqliteConnection,
    store: &SqliteStore,
) -> Result<State, StoreError> {
    let state = State::read(reader).await?;
    state.ok_or_else(|| StoreError::NoChain { path: store.audit.path.clone() })
}

fn columns(
    row: &SqliteRow,
    seq: i64,
    first: usize,
    count: usize,
) -> Result<Vec<Value<'_>>, StoreError> {
    values(row, first, count).ok_or_else(|| StoreError::bad_value("calls", "seq", &seq.to_string()))
}
