//! The tables of text: how the words of calls come into them.
//!
//! Changes when other text is indexed. A table has the calls of one part of the ledger.

use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite, Transaction};

use super::unescape::unescaped;
use super::{CHUNK_OF_ROWS, PART};
use crate::clock;
use crate::store::StoreError;

/// Rows with payloads that are read at once, and bytes of them unless one has more.
const ROWS_AT_ONCE: i64 = 1024;
const BYTES_AT_ONCE: i64 = 4 << 20;
/// Payloads without their escapes that are held in memory for one statement. Each statement makes a
/// segment of the index, which are merged later: there should be few.
const HELD_BYTES: usize = 16 << 20;

/// Where payloads that had escapes wait for the statement that indexes them; of this connection, in
/// memory.
pub(super) const DECODED: &str = "create temp table decoded (
    seq       integer primary key not null,
    arguments text,
    result    text
) strict;";

/// Indexes the text of the calls after `after`, up to `last`.
pub(super) async fn write_text(
    transaction: &mut Transaction<'_, Sqlite>,
    after: i64,
    last: i64,
) -> Result<(), StoreError> {
    // A chunk lies within one part, and so does what is read of it at once.
    let part = last / PART;
    let generation: Option<i64> = sqlx::query_scalar("select generation from parts where part = ?")
        .bind(part)
        .fetch_optional(&mut **transaction)
        .await?;
    let generation = match generation {
        Some(generation) => generation,
        None => {
            make_text(transaction, part, 0).await?;
            sqlx::query("insert into parts values (?, 0, 0, ?, ?)")
                .bind(part)
                .bind(after.saturating_add(1))
                .bind(clock::timestamp().as_millis())
                .execute(&mut **transaction)
                .await?;
            0
        }
    };
    copy_text(transaction, part, generation, after, last).await
}

/// Makes the table for a part's text.
pub(super) async fn make_text(
    transaction: &mut Transaction<'_, Sqlite>,
    part: i64,
    generation: i64,
) -> Result<(), StoreError> {
    let table = text_table(part, generation);
    let script = format!(
        "create virtual table {table} using fts5(error, arguments, result, content = '',
             columnsize = 0, tokenize = 'unicode61 remove_diacritics 0');
         insert into {table} ({table}, rank) values ('hashsize', 8388608);"
    );
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut **transaction).await?;
    Ok(())
}

/// Indexes the text of the calls after `after`, up to `last`, in a part's table. Text goes from file to
/// file; only payloads with escapes pass through here.
pub(super) async fn copy_text(
    transaction: &mut Transaction<'_, Sqlite>,
    part: i64,
    generation: i64,
    mut after: i64,
    last: i64,
) -> Result<(), StoreError> {
    let sql = format!(
        "insert into {} (rowid, error, arguments, result)
         select c.seq, c.error, coalesce(d.arguments, p.arguments), coalesce(d.result, p.result)
         from ledger.calls c left join ledger.payloads p on p.seq = c.seq
              left join temp.decoded d on d.seq = c.seq
         where c.seq > ? and c.seq <= ? and (c.error is not null or p.seq is not null)
         order by c.seq",
        text_table(part, generation)
    );
    while after < last {
        let (end, any) = decode(transaction, after, last).await?;
        sqlx::query(AssertSqlSafe(sql.as_str()))
            .bind(after)
            .bind(end)
            .execute(&mut **transaction)
            .await?;
        if any {
            sqlx::query("delete from temp.decoded").execute(&mut **transaction).await?;
        }
        after = end;
    }
    Ok(())
}

/// Resolves the escapes in payloads after `after`; gives up to where, and whether there were any.
async fn decode(
    transaction: &mut Transaction<'_, Sqlite>,
    after: i64,
    last: i64,
) -> Result<(i64, bool), StoreError> {
    let (mut reached, mut held) = (after, 0_usize);
    while reached < last {
        let end = stretch_end(transaction, reached, last).await?;
        let rows = sqlx::query(
            "select seq, arguments, result from ledger.payloads
             where seq > ? and seq <= ? and (instr(arguments, '\\') > 0 or instr(result, '\\') > 0)
             order by seq",
        )
        .bind(reached)
        .bind(end)
        .fetch_all(&mut **transaction)
        .await?;
        for some in rows.chunks(CHUNK_OF_ROWS) {
            let mut decoded = Vec::with_capacity(some.len());
            for row in some {
                let text = |column: usize| -> Result<Option<String>, StoreError> {
                    // What has no escapes is taken from the ledger.
                    let text = row.try_get::<Option<&str>, _>(column)?.map(unescaped);
                    Ok(text.and_then(|text| match text {
                        std::borrow::Cow::Borrowed(_) => None,
                        std::borrow::Cow::Owned(text) => Some(text),
                    }))
                };
                let (arguments, result) = (text(1)?, text(2)?);
                held += [&arguments, &result].into_iter().flatten().map(String::len).sum::<usize>();
                decoded.push((row.try_get::<i64, _>(0)?, arguments, result));
            }
            let mut insert = QueryBuilder::<Sqlite>::new("insert into temp.decoded ");
            insert.push_values(decoded, |mut row, (seq, arguments, result)| {
                row.push_bind(seq).push_bind(arguments).push_bind(result);
            });
            let full = some.len() == CHUNK_OF_ROWS;
            insert.build().persistent(full).execute(&mut **transaction).await?;
            tokio::task::yield_now().await;
        }
        reached = end;
        if held >= HELD_BYTES {
            break;
        }
    }
    Ok((reached, held > 0))
}

/// Up to where payloads after `after` are read at once. Their lengths stand in the rows' heads: the
/// texts themselves are not read for them.
async fn stretch_end(
    transaction: &mut Transaction<'_, Sqlite>,
    after: i64,
    last: i64,
) -> Result<i64, StoreError> {
    let row = sqlx::query(
        "select count(*), max(case when upto <= ?4 or n = 1 then seq end), max(seq) from
            (select seq, sum(bytes) over (order by seq) as upto, row_number() over (order by seq) as n
             from (select seq,
                        coalesce(octet_length(arguments), 0) + coalesce(octet_length(result), 0) as bytes
                   from ledger.payloads where seq > ?1 and seq <= ?2 order by seq limit ?3))",
    )
    .bind(after)
    .bind(last)
    .bind(ROWS_AT_ONCE)
    .bind(BYTES_AT_ONCE)
    .fetch_one(&mut **transaction)
    .await?;
    let (rows, fitting, newest): (i64, Option<i64>, Option<i64>) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    // All that there are: nothing of this follows before `last`.
    let all = rows < ROWS_AT_ONCE && fitting == newest;
    Ok(fitting.filter(|_| !all).unwrap_or(last))
}

pub(super) fn text_table(part: i64, generation: i64) -> String {
    format!("text_{part}_{generation}")
}
