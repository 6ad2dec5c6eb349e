//! Calls and their attempts for verification, a whole window in one answer.
//!
//! Changes when rows can be had faster in another way. A row of its own for each call copies each of
//! its columns and hands them from thread to thread, which costs more than the hashes. What does not
//! fit into an answer as what it should be, such as a number where a text belongs, is left to whoever
//! reads column by column: `None` says nothing against a row.

use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;

use serde::Deserialize;
use serde::de::{SeqAccess, Visitor};
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use crate::store::StoreError;
use crate::store::chain::{ATTEMPT_COLUMNS, CALL_COLUMNS, Hash, Value};
use crate::store::column::unhex;

/// Columns of a call that are no texts and no numbers: JSON knows nothing else.
const BLOBS: [&str; 5] =
    ["id", "definition_hash", "arguments_digest", "result_digest", "payload_digest"];

/// What is selected of a call: its columns, `seq`, the hash, and the payload's `seq` and two texts.
const OF_A_CALL: usize = CALL_COLUMNS.len() + 5;
/// The same of an attempt: its columns and `seq`.
const OF_AN_ATTEMPT: usize = ATTEMPT_COLUMNS.len() + 1;

/// Whether there is a blob where none belongs comes with the rows: JSON's functions take one for what
/// it would be in JSON's binary form.
static CALLS: LazyLock<String> = LazyLock::new(|| {
    let columns = CALL_COLUMNS.map(|name| match BLOBS.contains(&name) {
        true => blob(&format!("c.{name}")),
        false => format!("c.{name}"),
    });
    let plain = CALL_COLUMNS.iter().filter(|name| !BLOBS.contains(name));
    let plain = plain.map(|name| format!("c.{name}"));
    let plain = plain.chain(["p.arguments", "p.result"].map(str::to_owned));
    format!(
        "select json_group_array(json_array({}, c.seq, {}, p.seq, p.arguments, p.result)),
            coalesce(max({}), 0)
         from calls c left join payloads p on p.seq = c.seq where c.seq > ? and c.seq <= ?",
        columns.join(", "),
        blob("c.hash"),
        any_blob(plain),
    )
});

static ATTEMPTS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select json_group_array(json_array({}, seq)), coalesce(max({}), 0)
         from attempts where seq > ? and seq <= ?",
        ATTEMPT_COLUMNS.join(", "),
        any_blob(ATTEMPT_COLUMNS.iter().map(|&name| name.to_owned())),
    )
});

/// Blobs alone come after the empty one in SQLite's order of values.
fn any_blob(columns: impl Iterator<Item = String>) -> String {
    columns.map(|column| format!("{column} >= x''")).collect::<Vec<_>>().join(" or ")
}

/// Digits for a blob; what is neither one nor null becomes what is no list of digits.
fn blob(column: &str) -> String {
    format!(
        "case typeof({column}) when 'blob' then hex({column}) when 'null' then null
             else json_array({column}) end"
    )
}

/// The rows of a window as the database wrote them.
pub(super) struct Packed {
    calls: String,
    attempts: String,
}

/// A call for verification.
pub(super) struct Call<'a> {
    pub(super) seq: i64,
    /// What is hashed of it; `None` when a column is not what it says it is.
    pub(super) values: Option<Vec<Value<'a>>>,
    pub(super) stored: Option<Hash>,
    pub(super) has_payload: bool,
    /// What is kept of arguments and result; `None` when that is no text.
    pub(super) payload: Option<[Option<Cow<'a, str>>; 2]>,
}

/// An attempt for verification: its call's `seq`, and what is hashed of it.
pub(super) type Attempt<'a> = (i64, Option<Vec<Value<'a>>>);

impl Packed {
    /// The rows after `after` up to `last`; `None` when they do not fit into such an answer.
    pub(super) async fn read(
        reader: &mut SqliteConnection,
        after: i64,
        last: i64,
    ) -> Result<Option<Self>, StoreError> {
        let mut answers = Vec::with_capacity(2);
        for sql in [&CALLS, &ATTEMPTS] {
            let query = sqlx::query(AssertSqlSafe(sql.as_str())).bind(after).bind(last);
            let answer = query.fetch_one(&mut *reader).await;
            let answer = answer.and_then(|row| Ok((row.try_get(0)?, row.try_get::<i64, _>(1)?)));
            match answer.map_err(StoreError::from) {
                Ok((text, 0)) => answers.push(text),
                Err(error @ StoreError::Busy { .. }) => return Err(error),
                Ok(_) | Err(_) => return Ok(None),
            }
        }
        let attempts = answers.pop().unwrap_or_default();
        Ok(answers.pop().map(|calls| Self { calls, attempts }))
    }

    /// The rows, by their numbers; `None` when one is not what it should be.
    pub(super) fn rows(&self) -> Option<(Vec<Call<'_>>, Vec<Attempt<'_>>)> {
        let calls: Vec<Columns<'_, OF_A_CALL>> = serde_json::from_str(&self.calls).ok()?;
        let attempts: Vec<Columns<'_, OF_AN_ATTEMPT>> =
            serde_json::from_str(&self.attempts).ok()?;
        let mut calls: Vec<_> = calls.into_iter().map(call).collect::<Option<_>>()?;
        let mut attempts: Vec<_> = attempts.into_iter().map(attempt_of).collect::<Option<_>>()?;
        // They come in this order, which the database does not promise; to have it sort costs a copy.
        calls.sort_by_key(|call| call.seq);
        attempts.sort_by_key(|(seq, values)| (*seq, number(values.as_deref().unwrap_or_default())));
        Some((calls, attempts))
    }
}

fn call(Columns(mut columns): Columns<'_, OF_A_CALL>) -> Option<Call<'_>> {
    if columns.len() != OF_A_CALL {
        return None;
    }
    let mut text = || match columns.pop()? {
        Value::Null => Some(None),
        Value::Text(text) => Some(Some(text)),
        Value::Integer(_) | Value::Blob(_) => None,
    };
    let (result, arguments) = (text()?, text()?);
    let has_payload = columns.pop()? != Value::Null;
    let stored = match blob_of(columns.pop()?)? {
        Value::Blob(hash) => Some(hash.as_ref().try_into().ok()?),
        _ => None,
    };
    let Value::Integer(seq) = columns.pop()? else { return None };
    for (value, name) in columns.iter_mut().zip(CALL_COLUMNS) {
        if BLOBS.contains(&name) {
            *value = blob_of(std::mem::replace(value, Value::Null))?;
        }
    }
    let payload = Some([arguments, result]);
    Some(Call { seq, values: Some(columns), stored, has_payload, payload })
}

fn attempt_of(Columns(mut columns): Columns<'_, OF_AN_ATTEMPT>) -> Option<Attempt<'_>> {
    let Value::Integer(seq) = columns.pop()? else { return None };
    Some((seq, Some(columns)))
}

/// Which of its call's attempts one is.
fn number(attempt: &[Value<'_>]) -> Option<i64> {
    match attempt.first() {
        Some(Value::Integer(number)) => Some(*number),
        _ => None,
    }
}

fn blob_of(value: Value<'_>) -> Option<Value<'_>> {
    match value {
        Value::Null => Some(Value::Null),
        Value::Text(digits) => unhex(&digits).map(|bytes| Value::Blob(bytes.into())),
        Value::Integer(_) | Value::Blob(_) => None,
    }
}

/// The columns of a row, `N` of them.
struct Columns<'a, const N: usize>(Vec<Value<'a>>);

impl<'de: 'a, 'a, const N: usize> Deserialize<'de> for Columns<'a, N> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Row<const N: usize>;
        impl<'de, const N: usize> Visitor<'de> for Row<N> {
            type Value = Columns<'de, N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{N} columns")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut row: A) -> Result<Self::Value, A::Error> {
                // JSON does not say how many follow.
                let mut columns = Vec::with_capacity(N);
                while let Some(value) = row.next_element()? {
                    columns.push(value);
                }
                Ok(Columns(columns))
            }
        }
        deserializer.deserialize_seq(Row)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, raw_sql};

    use super::super::verify::{FIRST, read_rows, values};
    use super::super::{AUDIT, hash_of};
    use super::*;

    /// A ledger with one call, whose texts are as odd as they may be, and its attempts; its columns
    /// hold what they are given, as in a file that was changed from outside.
    async fn ledger() -> SqliteConnection {
        let mut ledger = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        for migration in AUDIT.migrations {
            let migration = migration.replace(") strict", ")").replace("), without", ") without");
            raw_sql(AssertSqlSafe(migration)).execute(&mut ledger).await.unwrap();
        }
        let given = CALL_COLUMNS.map(|name| match name {
            name if BLOBS.contains(&name) => "x'00ff'",
            "session" | "view" => "null",
            "started_at_ms" => "9223372036854775807",
            name if name.ends_with("_us") || name.ends_with("_bytes") => "-1",
            "http_status" | "attempts" => "2",
            _ => r#"'"\' || char(0) || char(10) || 'ü😀'"#,
        });
        let script = format!(
            r#"insert into calls (seq, {}, hash) values (7, {}, zeroblob(32));
               insert into payloads (seq, arguments) values (7, '{{"a": "\n"}}');
               insert into attempts (seq, n, began_us, took_us, outcome, probe)
                   values (7, 2, 5, 5, 'ok', 0), (7, 1, 0, 5, 'timeout', 0);"#,
            CALL_COLUMNS.join(", "),
            given.join(", "),
        );
        raw_sql(AssertSqlSafe(script)).execute(&mut ledger).await.unwrap();
        ledger
    }

    #[tokio::test]
    async fn an_answer_holds_what_the_columns_hold() {
        let mut ledger = ledger().await;
        let packed = Packed::read(&mut ledger, 0, 9).await.unwrap().unwrap();
        let (calls, attempts) = packed.rows().unwrap();
        let (plain, tried, _) = read_rows(&mut ledger, 0, 9).await.unwrap();
        assert_eq!((calls.len(), attempts.len()), (1, 2));
        let (call, row) = (&calls[0], &plain[0]);
        assert_eq!((call.seq, call.has_payload), (7, true));
        assert_eq!(call.values, values(row, FIRST, CALL_COLUMNS.len()));
        assert!(call.values.is_some());
        let hash = row.try_get(FIRST + CALL_COLUMNS.len()).unwrap();
        assert_eq!(call.stored, hash_of("calls", "hash", hash).ok());
        assert_eq!(call.payload, Some([Some(r#"{"a": "\n"}"#.into()), None]));
        for (attempt, row) in attempts.iter().zip(&tried) {
            assert_eq!(attempt, &(7, values(row, FIRST, ATTEMPT_COLUMNS.len())));
        }
    }

    #[tokio::test]
    async fn a_column_of_another_kind_is_left_to_others() {
        for change in [
            "update calls set caller = cast('a' as blob)",
            "update calls set id = 'ff'",
            "update calls set id = '[\"ff\"]'",
            "update calls set hash = 5",
            "update calls set queue_us = 0.5",
            "update payloads set result = x'00'",
            "update calls set caller = jsonb('\"a\"')",
            "update calls set total_us = jsonb('5')",
            "update attempts set error = x'00'",
            "update calls set error = cast(x'ff' as text)",
        ] {
            let mut ledger = ledger().await;
            raw_sql(change).execute(&mut ledger).await.unwrap();
            let packed = Packed::read(&mut ledger, 0, 9).await.unwrap();
            assert!(packed.as_ref().and_then(Packed::rows).is_none(), "{change}");
        }
    }
}
