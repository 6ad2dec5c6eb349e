//! The ledger as lines of JSON that can be verified without it, by whoever has its key. PURE, but that
//! verifying reads and has threads.
//!
//! Changes when such an export says something else. The first line says of which ledger it is and from where
//! to where; then comes each row with all that its hash covers and the hash of the row before; the last
//! line holds a keyed digest of all before it. What is not written just as it would be written here was
//! changed: so there is no byte that can be changed without being found.

mod verify;

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

use ring::digest::{Context, SHA256};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::chain::{ATTEMPT_COLUMNS, CALL_COLUMNS, ENTRY_COLUMNS, Hash, Kind, LedgerKey, Value};
use super::column::{hex, unhex};
use crate::model::escape_json;

pub(super) use verify::verify;

/// The form of the lines.
const FORM: u32 = 1;
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
struct Line<'a> {
    seq: i64,
    #[serde(borrow)]
    prev: Option<&'a str>,
    #[serde(borrow)]
    call: Option<Named<'a>>,
    #[serde(borrow)]
    entry: Option<Named<'a>>,
    #[serde(borrow, default)]
    attempts: Vec<Named<'a>>,
    #[serde(borrow)]
    payload: Option<Named<'a>>,
    #[serde(default)]
    erased: bool,
    #[serde(borrow)]
    hash: Option<&'a str>,
}

/// Columns under their names, in the order in which they stand in the line.
struct Named<'a>(Vec<(&'a str, Value<'a>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Named<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Named<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("columns under their names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Named<'de>, A::Error> {
                let mut columns = Vec::with_capacity(CALL_COLUMNS.len());
                while let Some(column) = object.next_entry()? {
                    columns.push(column);
                }
                Ok(Named(columns))
            }
        }
        deserializer.deserialize_map(Object)
    }
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

/// The line of a row. What is written to memory cannot fail.
fn encode(row: &Row<'_>) -> String {
    let mut line = Vec::with_capacity(1_024);
    let _ = write!(line, r#"{{"seq":{},"prev":"#, row.seq);
    quoted(row.prev, &mut line);
    let (name, columns) = match row.kind {
        Kind::Call => (r#","call":"#, CALL_COLUMNS.as_slice()),
        Kind::Entry => (r#","entry":"#, ENTRY_COLUMNS.as_slice()),
    };
    line.extend_from_slice(name.as_bytes());
    object(columns, &row.values, &mut line);
    if !row.attempts.is_empty() {
        line.extend_from_slice(br#","attempts":["#);
        for (number, attempt) in row.attempts.iter().enumerate() {
            if number > 0 {
                line.push(b',');
            }
            object(&ATTEMPT_COLUMNS, attempt, &mut line);
        }
        line.push(b']');
    }
    match &row.payload {
        Payload::None => {}
        Payload::Kept(values) => {
            line.extend_from_slice(br#","payload":"#);
            object(&PAYLOAD, values, &mut line);
        }
        Payload::Erased => line.extend_from_slice(br#","erased":true"#),
    }
    line.extend_from_slice(br#","hash":"#);
    quoted(row.hash, &mut line);
    line.push(b'}');
    let line = String::from_utf8(line).unwrap_or_default();
    match escape_json(&line) {
        Cow::Borrowed(_) => line,
        Cow::Owned(line) => line,
    }
}

fn quoted(hash: Option<Hash>, line: &mut Vec<u8>) {
    match hash {
        None => line.extend_from_slice(b"null"),
        Some(hash) => {
            line.push(b'"');
            line.extend_from_slice(hex(&hash).as_bytes());
            line.push(b'"');
        }
    }
}

/// Columns that are null are left out.
fn object(columns: &[&str], values: &[Value<'_>], line: &mut Vec<u8>) {
    line.push(b'{');
    let mut first = true;
    for (column, value) in columns.iter().zip(values).filter(|(_, value)| **value != Value::Null) {
        if !std::mem::take(&mut first) {
            line.push(b',');
        }
        line.push(b'"');
        line.extend_from_slice(column.as_bytes());
        line.extend_from_slice(b"\":");
        let _ = serde_json::to_writer(&mut *line, value);
    }
    line.push(b'}');
}

/// `None` for a line that we did not write like this.
fn decode(line: &str) -> Option<Row<'_>> {
    let read: Line<'_> = serde_json::from_str(line).ok()?;
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
        prev: read.prev.map(hash).transpose().ok()?,
        kind,
        values,
        attempts: attempts.collect::<Option<_>>()?,
        payload,
        hash: read.hash.map(hash).transpose().ok()?,
    };
    (encode(&row) == line).then_some(row)
}

/// All columns, each where it belongs; `None` when they are others or in another order.
fn columns<'a>(names: &[&str], Named(columns): Named<'a>) -> Option<Vec<Value<'a>>> {
    let mut columns = columns.into_iter().peekable();
    let mut of = |name: &&str| columns.next_if(|(column, _)| column == name);
    let values = names.iter().map(|name| of(name).map_or(Value::Null, |(_, value)| value));
    let values = values.collect();
    columns.next().is_none().then_some(values)
}

fn hash(text: &str) -> Result<Hash, ()> {
    unhex(text).and_then(|bytes| bytes.try_into().ok()).ok_or(())
}
