//! The ledger as lines of JSON that can be verified without it, by whoever has its key. PURE, but that
//! verifying reads.
//!
//! Changes when such an export says something else. The first line says of which ledger it is and from where
//! to where; then comes each row with all that its hash covers and the hash of the row before; the last
//! line holds a keyed digest of all before it. What is not written just as it would be written here was
//! changed: so there is no byte that can be changed without being found.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, Read as _};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::chain::{
    ATTEMPT_COLUMNS, CALL_COLUMNS, Canonical, ENTRY_COLUMNS, Hash, Kind, LedgerKey, PAYLOAD_DIGEST,
    Value, canonical_call, canonical_entry,
};
use super::spool::{Cell, cell, hex, unhex, value};
use super::verified::{Fault, Verified};
use super::{Checkpoint, StoreError};
use crate::model::escape_json;

/// The form of the lines.
const FORM: u32 = 1;
/// A longer line is none of ours.
const LONGEST: u64 = 256 << 20;
const PAYLOAD: [&str; 2] = ["arguments", "result"];

/// The kind of the entry that says up to which row rows were removed, and that row's hash.
pub(super) const PRUNED: &str = "audit.pruned";

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) switchyard_ledger: u32,
    /// When it was made, RFC 3339.
    pub(super) at: String,
    pub(super) chain: String,
    /// Which key the ledger is written with.
    pub(super) key: String,
    /// The last row before the chain, its last row, and the mark of both.
    pub(super) base: i64,
    pub(super) base_hash: String,
    pub(super) head: i64,
    pub(super) head_hash: String,
    pub(super) mac: String,
    /// The first row in it and the last.
    pub(super) from: i64,
    pub(super) to: i64,
    /// Whether what is kept of arguments and results is in it.
    pub(super) payloads: bool,
}

/// The last line.
#[derive(Serialize, Deserialize)]
struct Tail {
    end: End,
}

#[derive(Serialize, Deserialize)]
struct End {
    rows: u64,
    seq: i64,
    hash: String,
    mac: String,
}

/// A row as it stands in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row<'a> {
    pub(super) seq: i64,
    /// The hash of the row before; `None` where that row is missing.
    pub(super) prev: Option<Hash>,
    pub(super) kind: Kind,
    pub(super) values: Vec<Value<'a>>,
    pub(super) attempts: Vec<Vec<Value<'a>>>,
    pub(super) payload: Payload<'a>,
    pub(super) hash: Option<Hash>,
}

/// What a line has of arguments and result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Payload<'a> {
    None,
    Kept([Value<'a>; 2]),
    /// The ledger had it, and says that it was erased.
    Erased,
}

#[derive(Deserialize)]
struct Line {
    seq: i64,
    prev: Option<String>,
    call: Option<HashMap<String, Cell>>,
    entry: Option<HashMap<String, Cell>>,
    #[serde(default)]
    attempts: Vec<HashMap<String, Cell>>,
    payload: Option<HashMap<String, Cell>>,
    #[serde(default)]
    erased: bool,
    hash: Option<String>,
}

/// Writes an export.
pub(super) struct Writer {
    digest: Context,
    rows: u64,
    last: (i64, Hash),
}

impl Writer {
    /// The first line; `before` is the hash of the row before the first.
    pub(super) fn begin(head: &Head, before: Hash, out: &mut String) -> Self {
        let last = (head.from.saturating_sub(1), before);
        let mut writer = Self { digest: Context::new(&SHA256), rows: 0, last };
        let line = serde_json::to_string(head).unwrap_or_default();
        writer.line(&line, out);
        writer
    }

    pub(super) fn row(&mut self, row: &Row<'_>, out: &mut String) {
        self.rows = self.rows.saturating_add(1);
        self.last = (row.seq, row.hash.unwrap_or_default());
        self.line(&encode(row), out);
    }

    pub(super) fn end(self, key: &LedgerKey, out: &mut String) {
        let sum = self.digest.finish();
        let (seq, hash) = self.last;
        let mac = hex(&key.exported(sum.as_ref(), self.rows, seq, &hash));
        let end = End { rows: self.rows, seq, hash: hex(&hash), mac };
        out.push_str(&serde_json::to_string(&Tail { end }).unwrap_or_default());
        out.push('\n');
    }

    fn line(&mut self, line: &str, out: &mut String) {
        self.digest.update(line.as_bytes());
        self.digest.update(b"\n");
        out.push_str(line);
        out.push('\n');
    }
}

fn encode(row: &Row<'_>) -> String {
    let mut line = String::with_capacity(1_024);
    // Writing to a string cannot fail.
    let _ = write!(line, r#"{{"seq":{},"prev":{}"#, row.seq, quoted(row.prev));
    let (name, columns) = match row.kind {
        Kind::Call => ("call", CALL_COLUMNS.as_slice()),
        Kind::Entry => ("entry", ENTRY_COLUMNS.as_slice()),
    };
    let _ = write!(line, r#","{name}":"#);
    object(columns, &row.values, &mut line);
    if !row.attempts.is_empty() {
        line.push_str(r#","attempts":["#);
        for (number, attempt) in row.attempts.iter().enumerate() {
            if number > 0 {
                line.push(',');
            }
            object(&ATTEMPT_COLUMNS, attempt, &mut line);
        }
        line.push(']');
    }
    match &row.payload {
        Payload::None => {}
        Payload::Kept(values) => {
            line.push_str(r#","payload":"#);
            object(&PAYLOAD, values, &mut line);
        }
        Payload::Erased => line.push_str(r#","erased":true"#),
    }
    let _ = write!(line, r#","hash":{}}}"#, quoted(row.hash));
    match escape_json(&line) {
        std::borrow::Cow::Borrowed(_) => line,
        std::borrow::Cow::Owned(line) => line,
    }
}

fn quoted(hash: Option<Hash>) -> String {
    hash.map_or_else(|| "null".to_owned(), |hash| format!(r#""{}""#, hex(&hash)))
}

/// Columns that are null are left out.
fn object(columns: &[&str], values: &[Value<'_>], line: &mut String) {
    line.push('{');
    let mut first = true;
    for (column, value) in columns.iter().zip(values).filter(|(_, value)| **value != Value::Null) {
        if !std::mem::take(&mut first) {
            line.push(',');
        }
        let value = serde_json::to_string(&cell(value)).unwrap_or_default();
        let _ = write!(line, r#""{column}":{value}"#);
    }
    line.push('}');
}

/// `None` for a line that we did not write like this.
fn decode(line: &str) -> Option<Row<'static>> {
    let read: Line = serde_json::from_str(line).ok()?;
    let (kind, values) = match (read.call, read.entry) {
        (Some(call), None) => (Kind::Call, columns(&CALL_COLUMNS, call)?),
        (None, Some(entry)) => (Kind::Entry, columns(&ENTRY_COLUMNS, entry)?),
        _ => return None,
    };
    let attempts = read.attempts.into_iter().map(|attempt| columns(&ATTEMPT_COLUMNS, attempt));
    let payload = match (read.payload, read.erased) {
        (None, false) => Payload::None,
        (None, true) => Payload::Erased,
        (Some(kept), _) => {
            let [arguments, result] = columns(&PAYLOAD, kept)?.try_into().ok()?;
            Payload::Kept([arguments, result])
        }
    };
    let row = Row {
        seq: read.seq,
        prev: read.prev.as_deref().map(hash).transpose().ok()?,
        kind,
        values,
        attempts: attempts.collect::<Option<_>>()?,
        payload,
        hash: read.hash.as_deref().map(hash).transpose().ok()?,
    };
    (encode(&row) == line).then_some(row)
}

fn columns(names: &[&str], mut cells: HashMap<String, Cell>) -> Option<Vec<Value<'static>>> {
    names.iter().map(|name| cells.remove(*name).map_or(Some(Value::Null), value)).collect()
}

fn hash(text: &str) -> Result<Hash, ()> {
    unhex(text).and_then(|bytes| bytes.try_into().ok()).ok_or(())
}

/// Verifies an export, also against `checkpoints` that are not younger than it.
pub(super) fn verify(
    export: &mut dyn BufRead,
    key: &LedgerKey,
    checkpoints: &[Checkpoint],
) -> Result<Verified, StoreError> {
    let mut lines = Lines { export, digest: Context::new(&SHA256) };
    let first = lines.next()?.unwrap_or_default();
    let head: Head = serde_json::from_str(&first)
        .ok()
        .filter(|head: &Head| head.switchyard_ledger == FORM)
        .ok_or_else(|| bad("its first line is not that of one (`--format chain`)"))?;
    let mut check = Check::new(key, head, &first)?;
    check.sign(checkpoints);
    loop {
        let before = lines.digest.clone();
        let Some(line) = lines.next()? else {
            check.cut();
            break;
        };
        if line.starts_with(r#"{"end":"#)
            && let Ok(tail) = serde_json::from_str::<Tail>(&line)
        {
            let is_last = lines.next()?.is_none();
            check.end(&tail, &line, before, is_last);
            break;
        }
        check.row(&line);
    }
    Ok(check.verified)
}

fn bad(reason: impl Into<String>) -> StoreError {
    StoreError::BadExport { reason: reason.into() }
}

/// Lines, and the sum of what was read.
struct Lines<'a> {
    export: &'a mut dyn BufRead,
    digest: Context,
}

impl Lines<'_> {
    /// The next line without its end. One that is no text becomes one that is none of ours.
    fn next(&mut self) -> Result<Option<String>, StoreError> {
        let mut bytes = Vec::new();
        let read = (&mut *self.export).take(LONGEST).read_until(b'\n', &mut bytes);
        read.map_err(|error: io::Error| bad(error.to_string()))?;
        if bytes.len() as u64 == LONGEST {
            return Err(bad("a line in it is longer than any that is written"));
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        self.digest.update(&bytes);
        // Without its end it was cut: nothing can be said of it.
        if bytes.pop() != Some(b'\n') {
            return Ok(None);
        }
        Ok(Some(String::from_utf8(bytes).unwrap_or_default()))
    }
}

struct Check<'a> {
    key: &'a LedgerKey,
    head: Head,
    /// The row that comes next, and the hash of the one before it; `None` where nothing can be said.
    next: i64,
    before: Option<Hash>,
    /// What entries let go: up to which row, and its hash.
    pruned: Vec<(i64, Option<String>)>,
    /// Hashes of rows that were signed.
    signed: HashMap<i64, Vec<String>>,
    verified: Verified,
}

impl<'a> Check<'a> {
    fn new(key: &'a LedgerKey, head: Head, line: &str) -> Result<Self, StoreError> {
        let mut verified = Verified {
            chain: head.chain.clone(),
            base: head.from.saturating_sub(1),
            head: head.to,
            ..Verified::default()
        };
        let marked = match (unhex(&head.chain), hash(&head.base_hash), hash(&head.head_hash)) {
            (Some(chain), Ok(base), Ok(last)) => {
                head.mac == hex(&key.ends(&chain, (head.base, &base), (head.head, &last)))
            }
            _ => false,
        };
        if !marked && head.key != hex(&key.id()) {
            return Err(bad("it is of a ledger with another key"));
        }
        let within = head.from > head.base && head.to <= head.head && head.to >= verified.base;
        let as_written = serde_json::to_string(&head).is_ok_and(|text| text == line);
        if !marked || !within || !as_written || head.key != hex(&key.id()) {
            verified.found(verified.base, Fault::Changed);
        }
        let is_first = head.from == head.base.saturating_add(1);
        let before = if is_first { hash(&head.base_hash).ok() } else { None };
        let next = head.from;
        let (pruned, signed) = (Vec::new(), HashMap::new());
        Ok(Self { key, head, next, before, pruned, signed, verified })
    }

    /// Takes what was signed of these rows; an end that was signed before this was made must be in the
    /// ledger it is of.
    fn sign(&mut self, checkpoints: &[Checkpoint]) {
        for checkpoint in checkpoints.iter().filter(|one| one.is_signed_by(self.key)) {
            let older = checkpoint.at.as_str() <= self.head.at.as_str();
            if checkpoint.chain != self.head.chain {
                if older {
                    // Signed with this key, and not of this ledger: the whole was replaced.
                    self.verified.found(self.head.base.saturating_add(1), Fault::Truncated);
                }
            } else if checkpoint.seq > self.head.head && older {
                self.verified.checkpoints += 1;
                self.verified.found(self.head.head.saturating_add(1), Fault::Truncated);
            } else if (self.head.from..=self.head.to).contains(&checkpoint.seq) {
                self.verified.checkpoints += 1;
                self.signed.entry(checkpoint.seq).or_default().push(checkpoint.hash.clone());
            }
        }
    }

    fn row(&mut self, line: &str) {
        let row = decode(line).filter(|row| row.seq <= self.head.to);
        let Some((row, linked)) = row.and_then(|row| Some((self.linked(&row)?, row))).map(swap)
        else {
            // Where it stands is all that is known of it.
            self.verified.found(self.next, Fault::Changed);
            (self.next, self.before) = (self.next.saturating_add(1), None);
            return;
        };
        if row.seq < self.next {
            // One that was missed and comes later was moved; any other is there twice.
            self.verified.moved(row.seq);
            return;
        }
        let missing = row.seq.saturating_sub(self.next);
        self.verified.missing(self.next, missing);
        let follows = missing == 0 && self.before.is_some();
        if (follows && row.prev != self.before) || (missing == 0 && !linked) {
            self.verified.found(row.seq, Fault::Changed);
        }
        self.verified.rows += 1;
        self.payload(&row);
        self.record(&row);
        if let (Some(hashes), Some(hash)) = (self.signed.get(&row.seq), row.hash)
            && hashes.iter().any(|signed| *signed != hex(&hash))
        {
            self.verified.found(row.seq, Fault::Checkpoint);
        }
        (self.next, self.before) = (row.seq.saturating_add(1), row.hash);
    }

    /// Whether the row's hash is that of what stands in it; `None` when it is not, `false` when nothing can be
    /// said, because the row before is missing.
    fn linked(&self, row: &Row<'_>) -> Option<bool> {
        let stored = row.hash?;
        let Some(prev) = row.prev else { return Some(false) };
        (self.key.link(&prev, &form(row)) == stored).then_some(true)
    }

    fn payload(&mut self, row: &Row<'_>) {
        if row.kind == Kind::Entry {
            if row.payload != Payload::None || !row.attempts.is_empty() {
                self.verified.found(row.seq, Fault::Changed);
            }
            return;
        }
        let digest = match row.values.get(PAYLOAD_DIGEST) {
            Some(Value::Blob(bytes)) => Some(bytes.as_ref()),
            _ => None,
        };
        let good = match (digest, &row.payload) {
            (Some(_), Payload::Erased) => {
                self.verified.erased += 1;
                true
            }
            (Some(digest), Payload::Kept([arguments, result])) if self.head.payloads => {
                let kept = match (text(arguments), text(result)) {
                    (Some(arguments), Some(result)) => self.key.kept(arguments, result),
                    _ => None,
                };
                kept.is_some_and(|kept| kept.as_slice() == digest)
            }
            (None, Payload::None) => true,
            (Some(_), Payload::None) => !self.head.payloads,
            _ => false,
        };
        if !good {
            self.verified.found(row.seq, Fault::Payload);
        }
    }

    /// What an entry says of rows that were removed.
    fn record(&mut self, row: &Row<'_>) {
        let [_, Value::Text(kind), .., Value::Text(detail)] = row.values.as_slice() else { return };
        if row.kind == Kind::Entry
            && kind == PRUNED
            && let Ok(detail) = serde_json::from_str::<serde_json::Value>(detail)
            && let Some(through) = detail.get("through").and_then(serde_json::Value::as_i64)
        {
            let hash = detail.get("hash").and_then(serde_json::Value::as_str).map(str::to_owned);
            self.pruned.push((through, hash));
        }
    }

    /// There is no last line.
    fn cut(&mut self) {
        self.verified.found(self.next, Fault::Truncated);
    }

    fn end(&mut self, tail: &Tail, line: &str, before: Context, is_last: bool) {
        let End { rows, seq, hash: text, mac } = &tail.end;
        self.verified.head_hash.clone_from(text);
        let last = self.next.saturating_sub(1);
        if last < self.head.to {
            self.verified.found(self.next, Fault::Truncated);
        }
        let ends_well = hash(text).is_ok_and(|hash| {
            let sum = before.finish();
            let is_head = self.head.to != self.head.head || hex(&hash) == self.head.head_hash;
            *text == hex(&hash)
                && *mac == hex(&self.key.exported(sum.as_ref(), *rows, *seq, &hash))
                && is_head
                && *seq == self.head.to
                && (self.before.is_none() || self.before == Some(hash))
        });
        let as_written = serde_json::to_string(tail).is_ok_and(|text| text == line);
        if self.verified.is_good() && !(ends_well && as_written && is_last) {
            self.verified.found(last, Fault::Changed);
        }
        if !self.begins_well() {
            self.verified.found(self.head.from, Fault::Beginning);
        }
    }

    /// Whether the ledger may begin where it does, as far as this export reaches: at its first row, or where
    /// an entry in it lets the rows before go.
    fn begins_well(&self) -> bool {
        let Head { base, head, from, to, base_hash, .. } = &self.head;
        if *from != base.saturating_add(1) || to != head {
            return true;
        }
        let chain = unhex(&self.head.chain).unwrap_or_default();
        *base_hash == hex(&self.key.genesis(&chain, *base))
            || self.pruned.iter().any(|(through, hash)| {
                through > base || through == base && hash.as_ref() == Some(base_hash)
            })
    }
}

fn swap<A, B>((one, other): (A, B)) -> (B, A) {
    (other, one)
}

fn form(row: &Row<'_>) -> Canonical {
    match row.kind {
        Kind::Call => canonical_call(row.seq, &row.values, &row.attempts),
        Kind::Entry => canonical_entry(row.seq, &row.values),
    }
}

/// A text or nothing.
fn text<'v>(value: &'v Value<'_>) -> Option<Option<&'v str>> {
    match value {
        Value::Null => Some(None),
        Value::Text(text) => Some(Some(text)),
        Value::Integer(_) | Value::Blob(_) => None,
    }
}
