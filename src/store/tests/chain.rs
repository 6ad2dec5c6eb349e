//! The chain of the ledger: what a change of the file looks like to whoever verifies it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, SqliteConnection, raw_sql};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock;
use crate::store::{Checkpoint, EntryRow, Fault, Finding, Verified};

pub(super) fn entry(number: i64) -> EntryRow {
    EntryRow {
        seq: 0,
        at: at(number),
        kind: "server.added".to_owned(),
        actor: "ops".to_owned(),
        subject: format!("s{number}"),
        detail: format!(r#"{{"n":{number}}}"#),
    }
}

pub(super) fn tried(number: u64) -> CallRow {
    let attempt = |n: u64| AttemptRow {
        began: Duration::from_micros(n),
        took: Duration::from_micros(10),
        outcome: Outcome::Unavailable,
        failure: Some(Failure::NotSent),
        error: Some("refused".to_owned()),
        http_status: Some(500),
        probe: false,
    };
    CallRow { attempt_list: (0..number % 3).map(attempt).collect(), ..call(number) }
}

/// Rows 1 to 60: entries 1, 21 and 41, the rest calls.
pub(super) async fn written() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).await.unwrap();
    for part in 0..3_u64 {
        let calls: Vec<_> = (0..19).map(|n| tried(part * 100 + n)).collect();
        let last = store.append_ledger(&[entry(part as i64)], &calls).await.unwrap().last;
        assert_eq!(last, i64::try_from(part + 1).unwrap() * 20);
    }
    store.close().await.unwrap();
    folder
}

async fn verified(folder: &TempDir) -> Verified {
    Store::verify_ledger(folder.path(), &[]).await.unwrap()
}

pub(super) async fn tamper(folder: &TempDir, sql: &str) {
    let path = folder.path().join("audit.db");
    let mut file = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut file).await.unwrap();
    file.close().await.unwrap();
}

fn findings(verified: &Verified) -> Vec<(i64, Fault)> {
    verified.findings.iter().map(|Finding { seq, fault }| (*seq, *fault)).collect()
}

async fn columns(table: &str) -> Vec<(String, String)> {
    let folder = written().await;
    let path = folder.path().join("audit.db");
    let mut file: SqliteConnection =
        SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    let sql = format!("select name, type from pragma_table_info('{table}')");
    sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut file).await.unwrap()
}

#[tokio::test]
async fn an_untouched_ledger_verifies() {
    let folder = written().await;
    let found = verified(&folder).await;
    assert!(found.is_good(), "{found:?}");
    assert_eq!((found.base, found.head, found.rows, found.unchained), (0, 60, 60, 0));
    assert_eq!(found.exit_code(), 0);
    // Also beside a router that writes.
    let store = Store::open(folder.path()).await.unwrap();
    for number in 0..20 {
        store.append_calls(&[tried(number)]).await.unwrap();
        let found = verified(&folder).await;
        assert!(found.is_good(), "{found:?}");
        assert_eq!(found.head, 61 + i64::try_from(number).unwrap());
    }
}

/// One change in any column of any table, at a row that has something there.
#[tokio::test]
async fn audit_tamper_any_column() {
    for (table, row) in
        [("calls", 35), ("entries", 21), ("attempts", 35), ("payloads", 35), ("ledger", 1)]
    {
        for (column, kind) in columns(table).await {
            if column == "seq" || column == "id" && table == "ledger" {
                continue;
            }
            let folder = written().await;
            let changed = match kind.as_str() {
                "INTEGER" => format!("coalesce({column}, 0) + 1"),
                "TEXT" => format!("coalesce({column}, '') || 'x'"),
                "BLOB" => format!("cast(coalesce({column}, x'00') || x'00' as blob)"),
                other => panic!("{other}"),
            };
            // `n` of an attempt is a part of its key: the last of them is moved.
            let place = match table {
                "attempts" => format!("seq = {row} and n = 2"),
                "ledger" => "id = 1".to_owned(),
                _ => format!("seq = {row}"),
            };
            tamper(&folder, &format!("update {table} set {column} = {changed} where {place}"))
                .await;
            let found = verified(&folder).await;
            let first = findings(&found).first().copied();
            // What that row says is about the whole chain.
            let named = first.is_some_and(|(seq, _)| seq == row || table == "ledger");
            assert!(named, "{table}.{column}: {found:?}");
            assert_eq!(found.exit_code(), 10, "{table}.{column}: {found:?}");
        }
    }
}

#[tokio::test]
async fn audit_tamper_rows() {
    type Case<'a> = (&'a str, &'a [(i64, Fault)], u8);
    let cases: [Case<'_>; 8] = [
        ("delete from calls where seq = 30", &[(30, Fault::Missing)], 11),
        ("delete from entries where seq = 21", &[(21, Fault::Missing)], 11),
        (
            "update calls set seq = -1 where seq = 30; update calls set seq = 30 where seq = 31;
             update calls set seq = 31 where seq = -1",
            &[
                (30, Fault::Payload),
                (30, Fault::Changed),
                (31, Fault::Payload),
                (31, Fault::Changed),
                (32, Fault::Changed),
            ],
            10,
        ),
        ("delete from calls where seq > 50", &[(51, Fault::Truncated)], 12),
        ("delete from calls; delete from entries", &[(1, Fault::Truncated)], 12),
        ("delete from payloads where seq = 30", &[(30, Fault::Payload)], 10),
        (
            "insert into attempts select 2, 9, 0, 0, 'ok', null, null, null, 0",
            &[(2, Fault::Changed)],
            10,
        ),
        (
            "insert into entries select 61, at_ms, kind, actor, subject, detail, hash from entries
             where seq = 41",
            &[(61, Fault::Changed)],
            10,
        ),
    ];
    for (sql, expected, code) in cases {
        let folder = written().await;
        tamper(&folder, sql).await;
        let found = verified(&folder).await;
        assert_eq!(findings(&found), expected, "{sql}: {found:?}");
        assert_eq!(found.exit_code(), code, "{sql}: {found:?}");
    }
}

/// The row that says where the chain begins and ends is gone, names another key, or claims an end that nobody
/// can look for.
#[tokio::test]
async fn audit_tamper_the_record_of_the_ends() {
    for (sql, expected) in [
        ("delete from ledger", (60, Fault::Ends)),
        ("update ledger set key_id = x'0000000000000000'", (60, Fault::Ends)),
        ("update ledger set head_seq = 9223372036854775807", (61, Fault::Truncated)),
    ] {
        let folder = written().await;
        tamper(&folder, sql).await;
        let found = verified(&folder).await;
        assert!(findings(&found).contains(&expected), "{sql}: {found:?}");
        assert!([10, 12].contains(&found.exit_code()), "{sql}: {found:?}");
    }
    // With every row, too: what was signed says that there was a ledger.
    let folder = written().await;
    let store = Store::open(folder.path()).await.unwrap();
    let signed = store.checkpoint(at(1)).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    tamper(
        &folder,
        "delete from ledger; delete from calls; delete from entries; delete from payloads;
         delete from attempts",
    )
    .await;
    let found = Store::verify_ledger(folder.path(), &[signed]).await.unwrap();
    assert_eq!(findings(&found), [(0, Fault::Ends)]);
    let refused = Store::verify_ledger(folder.path(), &[]).await.unwrap_err();
    assert!(matches!(refused, StoreError::NoChain { .. }), "{refused}");
}

/// Statements have rows of several tables and fixed numbers of rows; no row is left out, twice or at
/// another call's place.
#[tokio::test]
async fn batches_of_every_size_are_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).await.unwrap();
    let (mut written, mut next) = (Vec::new(), 0_u64);
    for size in (0..=9).chain([31, 63, 64, 65, 130, 195]) {
        let calls: Vec<CallRow> = (0..size)
            .map(|_| {
                next += 1;
                let kept = next.is_multiple_of(3).then(|| format!(r#"{{"n":{next}}}"#));
                CallRow { arguments: kept.clone(), result: kept, ..tried(next) }
            })
            .collect();
        let entries: Vec<_> = (0..size % 7).map(|n| entry(n as i64)).collect();
        let last = store.append_ledger(&entries, &calls).await.unwrap().last;
        let first = last - i64::try_from(calls.len()).unwrap() + 1;
        written.extend((first..).zip(calls));
    }
    for (seq, call) in &written {
        let read = store.audit_call(call.id).await.unwrap().unwrap();
        assert_eq!(read, CallRow { seq: *seq, hash: read.hash, ..call.clone() });
    }
    assert_eq!(store.audit_count().await.unwrap(), written.len() as u64);
    store.close().await.unwrap();
    let found = verified(&folder).await;
    assert!(found.is_good(), "{found:?}");
}

/// Rows that a router adds while somebody verifies are not taken for rows that somebody else added.
#[expect(clippy::disallowed_methods, reason = "awaited below")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_come_in_meanwhile_are_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).await.unwrap();
    store.append_ledger(&[entry(1)], &[tried(1)]).await.unwrap();
    let (writer, stop) = (store.clone(), CancellationToken::new());
    let (stopped, written) = (stop.clone(), Arc::new(AtomicU64::new(1)));
    let count = Arc::clone(&written);
    let writing = tokio::spawn(async move {
        let mut next = 1;
        while !stopped.is_cancelled() && next < 20_000 {
            let calls: Vec<_> = (next + 1..next + 4).map(tried).collect();
            writer.append_ledger(&[], &calls).await.unwrap();
            next += 3;
            count.store(next, Ordering::Relaxed);
        }
    });
    // A disk that others keep busy takes few commits in the time of thirty looks.
    let (mut looks, began) = (0, clock::uptime());
    while looks < 30 || written.load(Ordering::Relaxed) <= 90 {
        let found = verified(&folder).await;
        assert!(found.is_good(), "{found:?}");
        looks += 1;
        let took = clock::uptime().since(began);
        assert!(took < Duration::from_secs(120), "hardly anything came in: {written:?}");
    }
    stop.cancel();
    writing.await.unwrap();
    store.close().await.unwrap();
}

/// An entry about what was removed that is no text any more is a row that was changed, not a failure.
#[tokio::test]
async fn audit_tamper_a_record_that_is_no_text() {
    for kind in ["audit.pruned", "audit.erased"] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let record = EntryRow { kind: kind.to_owned(), ..entry(1) };
        store.append_ledger(&[record], &[tried(1), tried(2)]).await.unwrap();
        store.close().await.unwrap();
        tamper(&folder, "update entries set detail = cast(x'7b22ff227d' as text) where seq = 1")
            .await;
        let found = verified(&folder).await;
        assert_eq!(findings(&found), [(1, Fault::Changed)], "{kind}");
    }
}

/// Whoever cannot make the marks of a beginning and an end cannot move them.
#[tokio::test]
async fn audit_tamper_tables() {
    for sql in [
        "drop table ledger",
        "drop table attempts",
        "drop table payloads",
        "drop table calls",
        "drop table entries",
        "alter table calls drop column breaker",
        "pragma user_version = 0",
        "pragma user_version = 5",
        "drop table ledger; pragma user_version = 4",
    ] {
        let folder = written().await;
        tamper(&folder, &format!("pragma foreign_keys = off; {sql}")).await;
        let found = verified(&folder).await;
        assert_eq!(findings(&found), [(0, Fault::Tables)], "{sql}");
        assert_eq!(found.exit_code(), 10);
    }
    // What was signed tells that there was one, whatever is left.
    let folder = written().await;
    let store = Store::open(folder.path()).await.unwrap();
    let signed = store.checkpoint(at(1)).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    tamper(&folder, "drop table ledger; pragma user_version = 3").await;
    let refused = Store::verify_ledger(folder.path(), &[]).await.unwrap_err();
    assert!(matches!(refused, StoreError::NoChain { .. }), "{refused:?}");
    let found = Store::verify_ledger(folder.path(), &[signed]).await.unwrap();
    assert_eq!((findings(&found), found.exit_code()), (vec![(0, Fault::Tables)], 10));
}

#[tokio::test]
async fn audit_tamper_ends() {
    let folder = written().await;
    tamper(
        &folder,
        "delete from calls where seq > 50; delete from payloads where seq > 50;
         delete from attempts where seq > 50;
         update ledger set head_seq = 50, head_hash = (select hash from calls where seq = 50)",
    )
    .await;
    assert_eq!(findings(&verified(&folder).await), [(50, Fault::Changed)]);
    let folder = written().await;
    tamper(
        &folder,
        "update ledger set base_seq = 9, base_hash = (select hash from calls where seq = 9);
         delete from calls where seq < 10; delete from entries where seq < 10;
         delete from payloads where seq < 10; delete from attempts where seq < 10;",
    )
    .await;
    let found = findings(&verified(&folder).await);
    assert_eq!(found, [(10, Fault::Beginning), (60, Fault::Changed)]);
}

/// An older copy of the whole file verifies by itself; a checkpoint that was kept elsewhere tells.
#[tokio::test]
async fn audit_tamper_rollback() {
    let folder = written().await;
    let old = tempfile::tempdir().unwrap();
    for file in ["audit.db", "ledger.key"] {
        fs::copy(folder.path().join(file), old.path().join(file)).unwrap();
    }
    let store = Store::open(folder.path()).await.unwrap();
    let early = store.checkpoint(at(1)).await.unwrap();
    store.append_calls(&(0..10).map(tried).collect::<Vec<_>>()).await.unwrap();
    let late = store.checkpoint(at(2)).await.unwrap();
    store.close().await.unwrap();
    assert_eq!((early.seq, late.seq), (60, 70));
    let both = [early.clone(), late.clone()];
    let found = Store::verify_ledger(folder.path(), &both).await.unwrap();
    assert!(found.is_good() && found.checkpoints == 2, "{found:?}");
    let found = Store::verify_ledger(old.path(), &both).await.unwrap();
    assert_eq!(findings(&found), [(61, Fault::Truncated)]);
    assert!(Store::verify_ledger(old.path(), &[early]).await.unwrap().is_good());
    // What nobody signed says nothing, and neither does another ledger's.
    let forged = Checkpoint { seq: 90, ..late.clone() };
    assert!(Store::verify_ledger(old.path(), &[forged]).await.unwrap().is_good());
    let other = written().await;
    assert_eq!(Store::verify_ledger(other.path(), &both).await.unwrap().checkpoints, 0);
    // A row that was written anew in the place of a signed one, by whoever has the key.
    let store = Store::open(old.path()).await.unwrap();
    store.append_calls(&(0..20).map(tried).collect::<Vec<_>>()).await.unwrap();
    store.close().await.unwrap();
    let found = Store::verify_ledger(old.path(), &both).await.unwrap();
    assert_eq!(findings(&found), [(70, Fault::Checkpoint)]);
}

#[tokio::test]
async fn a_ledger_is_written_with_its_own_key_alone() {
    let folder = written().await;
    let key = folder.path().join("ledger.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let kept = fs::read(&key).unwrap();
    for bytes in [None, Some(vec![7; 32]), Some(vec![7; 31])] {
        fs::remove_file(&key).unwrap_or_default();
        if let Some(bytes) = bytes {
            fs::write(&key, bytes).unwrap();
        }
        for refused in [
            Store::open(folder.path()).await.map(drop),
            Store::verify_ledger(folder.path(), &[]).await.map(drop),
        ] {
            assert!(matches!(refused, Err(StoreError::LedgerKey { .. })), "{refused:?}");
        }
    }
    fs::write(&key, kept).unwrap();
    assert!(verified(&folder).await.is_good());
}

/// Calls from before there was a chain stay, and are said to be outside it.
#[tokio::test]
async fn a_ledger_from_before_the_chain_begins_one() {
    let folder = written().await;
    tamper(&folder, "update calls set hash = null; delete from entries; delete from ledger").await;
    let store = Store::open(folder.path()).await.unwrap();
    store.append_calls(&(0..5).map(tried).collect::<Vec<_>>()).await.unwrap();
    store.close().await.unwrap();
    let found = verified(&folder).await;
    assert!(found.is_good(), "{found:?}");
    assert_eq!((found.base, found.head, found.rows, found.unchained), (60, 65, 5, 57));
}

/// What stands outside the chain proves nothing, and is found itself, where it stands.
#[tokio::test]
async fn audit_tamper_outside_the_chain() {
    for (sql, first) in [
        // A forged word that rows were removed in order.
        (
            "insert into entries select -1, at_ms, 'audit.pruned', actor, subject, json_object(
                 'through', 9, 'hash', lower(hex((select hash from calls where seq = 9)))), hash
                 from entries where seq = 21;
             update ledger set base_seq = 9, base_hash = (select hash from calls where seq = 9);
             delete from calls where seq < 10; delete from payloads where seq < 10;
             delete from attempts where seq < 10",
            -1,
        ),
        // The same of payloads.
        (
            "insert into entries select 0, at_ms, 'audit.erased', actor, subject, '{\"rows\":[[1,60]]}', hash
                 from entries where seq = 21; delete from payloads",
            0,
        ),
        (
            "insert into entries select 0, at_ms, kind, actor, subject, detail, hash
                 from entries where seq = 21",
            0,
        ),
        (
            "insert into calls select -5, x'0193e0a4000070008000000000000000', started_at_ms, caller, session,
                 client_name, client_version, entrance, protocol_version, tool, upstream_tool, server,
                 definition_hash, outcome, error_code, error, failure, http_status, attempts, queue_us,
                 upstream_us, total_us, request_bytes, response_bytes, view, arguments_digest,
                 result_digest, payload_digest, hash, trace_id, remote_address, arguments_level,
                 results_level, breaker from calls where seq = 30",
            -5,
        ),
        ("insert into attempts values (9999, 1, 0, 0, 'ok', null, null, null, 0)", 9999),
        ("insert into attempts values (21, 1, 0, 0, 'ok', null, null, null, 0)", 21),
        ("insert into attempts values (60, 9, 0, 0, 'ok', null, null, null, 0)", 60),
        ("insert into payloads values (21, 'x', null)", 21),
        ("insert into payloads values (-5, 'x', null)", -5),
        // What was taken from a call is found at that call first.
        ("update attempts set seq = 9999 where seq = 35 and n = 2", 35),
        ("update payloads set seq = 9999 where seq = 35", 35),
    ] {
        let folder = written().await;
        tamper(&folder, sql).await;
        let found = verified(&folder).await;
        let at = found.findings.first().map(|finding| finding.seq);
        assert_eq!(at, Some(first), "{sql}: {found:?}");
    }
    // Without the row that says where the chain begins and ends nothing is written any more.
    let folder = written().await;
    tamper(&folder, "delete from ledger").await;
    let refused = Store::open(folder.path()).await.map(drop);
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
}

/// A ledger that was replaced by an empty one is found by what was signed before.
#[tokio::test]
async fn audit_tamper_replaced() {
    let folder = written().await;
    let store = Store::open(folder.path()).await.unwrap();
    let signed = store.checkpoint(at(1)).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    fs::remove_file(folder.path().join("audit.db")).unwrap();
    let store = Store::open(folder.path()).await.unwrap();
    store.append_calls(&(0..5).map(tried).collect::<Vec<_>>()).await.unwrap();
    store.close().await.unwrap();
    let found = Store::verify_ledger(folder.path(), &[signed]).await.unwrap();
    assert_eq!((found.exit_code(), found.faults), (12, 1), "{found:?}");
}

/// A column that came later does not make the hashes of earlier rows wrong.
#[tokio::test]
async fn a_ledger_from_before_traces_still_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).await.unwrap();
    let untraced = |number| CallRow {
        trace_id: None,
        remote: None,
        levels: None,
        breaker: None,
        ..tried(number)
    };
    let calls: Vec<CallRow> = (0..20).map(untraced).collect();
    store.append_ledger(&[entry(1)], &calls).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    tamper(
        &folder,
        "alter table calls drop column trace_id; alter table calls drop column remote_address;
         alter table calls drop column arguments_level; alter table calls drop column results_level;
         alter table calls drop column breaker; pragma user_version = 4",
    )
    .await;
    let store = Store::open(folder.path()).await.unwrap();
    let found = verified(&folder).await;
    assert!(found.is_good() && found.rows == 21, "{found:?}");
    store.append_calls(&[tried(5), untraced(6)]).await.unwrap();
    let found = verified(&folder).await;
    assert!(found.is_good() && found.rows == 23, "{found:?}");
    let filter = AuditFilter { trace: Some(trace(0)), ..AuditFilter::default() };
    let page = store.audit_page(&filter, None, 10).await.unwrap();
    assert_eq!(page.rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [22]);
    store.close().await.unwrap();
    // What says that a call belongs to no trace is covered, too.
    tamper(&folder, "update calls set trace_id = null where seq = 22").await;
    assert_eq!(findings(&verified(&folder).await).first().map(|(seq, _)| *seq), Some(22));
    // And so is from where it came.
    tamper(&folder, "update calls set remote_address = '192.0.2.8' where seq = 23").await;
    assert!(findings(&verified(&folder).await).iter().any(|(seq, _)| *seq == 23));
}
