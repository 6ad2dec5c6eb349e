//! Verifying an export: each line, that one follows upon the other, and the ends.
//!
//! Changes when something else of an export can be wrong. What a line holds and whether its hash is right
//! needs nothing of other lines, so batches of lines are divided among threads; what needs the line before
//! is done in order.

use std::collections::HashMap;
use std::io::{self, BufRead, Read as _};
use std::num::NonZero;
use std::panic::resume_unwind;
use std::thread;

use ring::digest::{Context, Digest, SHA256};

use super::{End, FORM, Head, PRUNED, Payload, Row, Tail, decode, hash};
use crate::store::chain::{
    Canonical, Hash, Kind, LedgerKey, PAYLOAD_DIGEST, Value, canonical_call, canonical_entry,
};
use crate::store::column::{hex, unhex};
use crate::store::verified::{Fault, Verified};
use crate::store::{Checkpoint, StoreError};

/// A longer line is none of ours.
const LONGEST: u64 = 256 << 20;
/// Lines of a batch and their bytes, unless a single one has more.
const BATCH: usize = 2_048;
const BATCH_BYTES: usize = 4 << 20;
/// Lines that are worth a thread.
const SHARE: usize = 128;

/// Verifies an export, also against `checkpoints` that are not younger than it.
pub(in crate::store) fn verify(
    export: &mut dyn BufRead,
    key: &LedgerKey,
    checkpoints: &[Checkpoint],
) -> Result<Verified, StoreError> {
    let mut lines = Lines { export, digest: Context::new(&SHA256) };
    let first = match lines.next()? {
        Next::Line(line) => line,
        Next::Cut | Next::Nothing => String::new(),
    };
    let head: Head = serde_json::from_str(&first)
        .ok()
        .filter(|head: &Head| head.switchyard_ledger == FORM)
        .ok_or_else(|| bad("its first line is not that of one (`--format chain`)"))?;
    let mut check = Check::new(key, head, &first)?;
    check.sign(checkpoints);
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let to = check.head.to;
    let mut batch = lines.batch()?;
    loop {
        let share = batch.rows.len().div_ceil(threads).max(SHARE);
        // While it is looked at, the next one is read.
        let next = thread::scope(|scope| {
            let look =
                |rows| thread::Builder::new().spawn_scoped(scope, move || look_at(rows, key, to));
            let shares = batch.rows.chunks(share).map(look).collect::<io::Result<Vec<_>>>();
            let shares = shares.map_err(|error| bad(format!("no thread for it: {error}")))?;
            let next = if batch.ending.is_none() { lines.batch().map(Some) } else { Ok(None) };
            for seen in shares {
                let seen = seen.join().unwrap_or_else(|panic| resume_unwind(panic));
                seen.into_iter().for_each(|seen| check.row(seen));
            }
            next
        })?;
        match (next, batch.ending) {
            (Some(next), _) => batch = next,
            (None, Some(Ending::Last { tail, line, sum, is_last })) => {
                check.end(&tail, &line, &sum, is_last);
                return Ok(check.verified);
            }
            (None, Some(Ending::Cut) | None) => {
                check.cut();
                return Ok(check.verified);
            }
        }
    }
}

fn look_at<'a>(rows: &'a [String], key: &LedgerKey, to: i64) -> Vec<Option<Seen<'a>>> {
    rows.iter().map(|line| Seen::of(line, key, to)).collect()
}

fn bad(reason: impl Into<String>) -> StoreError {
    StoreError::BadExport { reason: reason.into() }
}

/// Lines, and the sum of what was read.
struct Lines<'a> {
    export: &'a mut dyn BufRead,
    digest: Context,
}

enum Next {
    /// A line without its end. One that is no text becomes one that is none of ours.
    Line(String),
    /// Its end is missing: nothing can be said of it.
    Cut,
    Nothing,
}

/// Lines that are to be those of rows, and what comes after them where that is no more of them.
struct Batch {
    rows: Vec<String>,
    ending: Option<Ending>,
}

enum Ending {
    /// There is no last line.
    Cut,
    /// The last line, the sum of all before it, and whether nothing comes after it.
    Last { tail: Tail, line: String, sum: Digest, is_last: bool },
}

impl Lines<'_> {
    fn next(&mut self) -> Result<Next, StoreError> {
        let mut bytes = Vec::new();
        let read = (&mut *self.export).take(LONGEST).read_until(b'\n', &mut bytes);
        read.map_err(|error: io::Error| bad(error.to_string()))?;
        if bytes.len() as u64 == LONGEST {
            return Err(bad("a line in it is longer than any that is written"));
        }
        if bytes.is_empty() {
            return Ok(Next::Nothing);
        }
        self.digest.update(&bytes);
        if bytes.pop() != Some(b'\n') {
            return Ok(Next::Cut);
        }
        Ok(Next::Line(String::from_utf8(bytes).unwrap_or_default()))
    }

    fn batch(&mut self) -> Result<Batch, StoreError> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while rows.len() < BATCH && bytes < BATCH_BYTES {
            let sum = self.digest.clone();
            let Next::Line(line) = self.next()? else {
                return Ok(Batch { rows, ending: Some(Ending::Cut) });
            };
            if line.starts_with(r#"{"end":"#)
                && let Ok(tail) = serde_json::from_str::<Tail>(&line)
            {
                let is_last = matches!(self.next()?, Next::Nothing);
                let sum = sum.finish();
                let ending = Some(Ending::Last { tail, line, sum, is_last });
                return Ok(Batch { rows, ending });
            }
            bytes += line.len();
            rows.push(line);
        }
        Ok(Batch { rows, ending: None })
    }
}

/// A row and what can be said of it alone.
struct Seen<'a> {
    row: Row<'a>,
    /// Whether its hash is that of what stands in it; `false` when nothing can be said, because the row
    /// before is missing.
    linked: bool,
    /// The digest of what is kept of its payloads.
    kept: Option<Hash>,
}

impl<'a> Seen<'a> {
    /// `None` for a line that is none of those up to row `to`, or whose hash is another.
    fn of(line: &'a str, key: &LedgerKey, to: i64) -> Option<Self> {
        let row = decode(line).filter(|row| row.seq <= to)?;
        let stored = row.hash?;
        let linked = match row.prev {
            None => false,
            Some(prev) if key.link(&prev, &form(&row)) == stored => true,
            Some(_) => return None,
        };
        let kept = match &row.payload {
            Payload::Kept([arguments, result]) => match (text(arguments), text(result)) {
                (Some(arguments), Some(result)) => key.kept(arguments, result),
                _ => None,
            },
            Payload::None | Payload::Erased => None,
        };
        Some(Self { row, linked, kept })
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

    fn row(&mut self, seen: Option<Seen<'_>>) {
        let Some(Seen { row, linked, kept }) = seen else {
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
        self.payload(&row, kept);
        self.record(&row);
        if let (Some(hashes), Some(hash)) = (self.signed.get(&row.seq), row.hash)
            && hashes.iter().any(|signed| *signed != hex(&hash))
        {
            self.verified.found(row.seq, Fault::Checkpoint);
        }
        (self.next, self.before) = (row.seq.saturating_add(1), row.hash);
    }

    fn payload(&mut self, row: &Row<'_>, kept: Option<Hash>) {
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
            (Some(digest), Payload::Kept(_)) if self.head.payloads => {
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

    fn end(&mut self, tail: &Tail, line: &str, sum: &Digest, is_last: bool) {
        let End { rows, seq, hash: text, mac } = &tail.end;
        self.verified.head_hash.clone_from(text);
        let last = self.next.saturating_sub(1);
        if last < self.head.to {
            self.verified.found(self.next, Fault::Truncated);
        }
        let ends_well = hash(text).is_ok_and(|hash| {
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
