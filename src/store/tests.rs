mod attempts;
mod breakers;
mod chain;
mod expire;
mod export;
mod hits;
mod index;
mod kills;
mod scan;
mod upkeep;
mod words;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::error::ErrorCode;
use crate::model::{
    ArgumentsLevel, BreakerState, ClientInfo, Entrance, Failure, Outcome, ProtocolVersion,
    ResultsLevel, Scope, Scopes, ToolStatus, TraceId, TransportSpec, ViewName,
};

/// Whether what takes long is done as often as it may be.
#[allow(clippy::disallowed_methods, reason = "whoever runs the tests says how much they do")]
fn is_full() -> bool {
    std::env::var("SWITCHYARD_TEST_FULL").is_ok_and(|value| value == "1")
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn name(text: &str) -> ServerName {
    ServerName::parse(text).unwrap()
}

fn spec(header: &str) -> ServerSpec {
    let headers = BTreeMap::from([("authorization".to_owned(), header.to_owned())]);
    ServerSpec::new(TransportSpec::Http { url: "http://127.0.0.1:1/mcp".to_owned(), headers })
}

fn tool(server: &str, tool: &str, definition: &str, position: u32) -> ToolRow {
    let digest = ring::digest::digest(&ring::digest::SHA256, definition.as_bytes());
    ToolRow {
        server: name(server),
        tool: ToolName::parse(tool).unwrap(),
        hash: digest.as_ref().try_into().unwrap(),
        definition: Bytes::copy_from_slice(definition.as_bytes()),
        status: ToolStatus::Active,
        position,
        first_seen_at: at(10),
        last_seen_at: at(10),
    }
}

fn trace(number: u64) -> TraceId {
    TraceId::from_bytes((u128::from(number) << 96 | 0xabc).to_be_bytes()).unwrap()
}

pub(in crate::store) fn call(number: u64) -> CallRow {
    CallRow {
        seq: 0,
        id: CallId::from_uuid(Uuid::now_v7()),
        started_at: at(i64::try_from(number).unwrap()),
        caller: if number.is_multiple_of(2) { "alice" } else { "bob" }.into(),
        session: number.is_multiple_of(5).then(|| "0123456789abcdef".into()),
        client: number.is_multiple_of(3).then(|| {
            Arc::new(ClientInfo { name: "inspector".to_owned(), version: "1.0".to_owned() })
        }),
        entrance: if number.is_multiple_of(4) {
            Entrance::Rest
        } else {
            Entrance::Mcp(ProtocolVersion::V2025_06_18)
        },
        view: number.is_multiple_of(7).then(|| ViewName::parse("support").unwrap()),
        tool: format!("s__tool_{}", number % 10).into(),
        upstream_tool: Some(ToolName::parse(&format!("tool_{}", number % 10)).unwrap()),
        server: Some(name(if number < 500 { "early" } else { "late" })),
        definition_hash: Some([7; 32]),
        outcome: if number.is_multiple_of(100) { Outcome::Timeout } else { Outcome::Ok },
        error_code: number.is_multiple_of(100).then_some(ErrorCode::Timeout),
        error: number.is_multiple_of(100).then(|| format!("took 100% of 30_s, call {number}")),
        failure: number.is_multiple_of(100).then_some(Failure::Timeout),
        http_status: 200,
        attempts: 1,
        attempt_list: Vec::new(),
        queue: Duration::from_micros(3),
        upstream: Duration::from_micros(1500),
        total: Duration::from_micros(1600),
        request_bytes: 200,
        response_bytes: u64::MAX / 4,
        arguments: Some(format!(r#"{{"n":{number}}}"#)),
        result: number.is_multiple_of(2).then(|| r#"{"bytes":3}"#.to_owned()),
        arguments_digest: Some([1; 32]),
        result_digest: number.is_multiple_of(2).then_some([2; 32]),
        hash: None,
        trace_id: number.is_multiple_of(5).then(|| trace(number / 10)),
        remote: number.is_multiple_of(3).then(|| [192, 0, 2, 7].into()),
        levels: Some((ArgumentsLevel::Redacted, ResultsLevel::Raw)),
        breaker: number.is_multiple_of(4).then_some(BreakerState::HalfOpen),
    }
}

async fn open(folder: &Path) -> Store {
    Store::open(folder).await.unwrap()
}

/// Kept with its trait alive: `unwrap_err` wants `Debug` of the good side, which `Store` has.
async fn refusal(folder: &Path) -> StoreError {
    Store::open(folder).await.unwrap_err()
}

#[tokio::test]
async fn a_fresh_folder_is_private_and_complete() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("a/data");
    let store = open(&folder).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for file in ["state.db", "audit.db", "state.db-wal", "audit.db-wal", "router.lock"] {
        assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
    }
    assert!(!folder.join("seal.key").exists(), "made when first needed only");
    assert!(store.size_bytes().audit.database_bytes > 0);
    store.check().await.unwrap();
    store.close().await.unwrap();
    assert!(!folder.join("audit.db-wal").exists());
    assert!(matches!(store.servers().await, Err(StoreError::Closed)));
    assert!(matches!(store.append_calls(&[call(1)]).await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn a_second_router_is_refused_until_the_first_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await;
    let error = refusal(folder.path()).await;
    assert!(
        matches!(error, StoreError::InUse { pid: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    assert_eq!(error.exit_code(), 4);
    first.append_calls(&[call(1)]).await.unwrap();
    drop(first);
    assert_eq!(open(folder.path()).await.audit_count().await.unwrap(), 1);
}

#[tokio::test]
async fn servers_last_over_a_restart_and_the_operator_wins_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (github, plain) = (name("github"), spec("Bearer ${TOKEN}"));
    let put = |spec: &ServerSpec, now| {
        let (store, github, spec) = (store.clone(), github.clone(), spec.clone());
        async move {
            store.upsert_server(&github, &spec, true, ServerSource::Config, at(now)).await.unwrap()
        }
    };
    assert_eq!(put(&plain, 1).await, Upserted::Created);
    assert_eq!(put(&plain, 2).await, Upserted::Unchanged);
    assert_eq!(put(&spec("literal"), 3).await, Upserted::Changed);
    assert_eq!(put(&spec("literal"), 4).await, Upserted::Unchanged, "sealed anew, yet the same");
    assert!(store.set_server_enabled(&github, false, at(5)).await.unwrap());
    assert!(!store.set_server_enabled(&name("nobody"), false, at(5)).await.unwrap());
    assert_eq!(put(&plain, 6).await, Upserted::Changed);
    let found = DiscoveryRow {
        protocol_version: Some("2025-06-18".to_owned()),
        dialect: Some("legacy".to_owned()),
        server_info: Some(r#"{"name":"x"}"#.to_owned()),
        ok_at: Some(at(7)),
        ..DiscoveryRow::default()
    };
    assert!(store.record_discovery(&github, &found).await.unwrap());
    drop(store);

    let store = open(folder.path()).await;
    let row = store.servers().await.unwrap().remove(0);
    assert!(row.enabled && !row.is_enabled(), "{row:?}");
    assert_eq!((row.spec, row.revision, row.created_at), (plain.clone(), 3, at(1)));
    assert_eq!(row.discovery, Some(found));
    store.set_server_enabled(&github, true, at(8)).await.unwrap();
    store.retire_servers(std::slice::from_ref(&github), at(9)).await.unwrap();
    assert!(!store.servers().await.unwrap().remove(0).is_enabled(), "gone from the file");
    store.upsert_server(&github, &plain, true, ServerSource::Config, at(10)).await.unwrap();
    assert!(store.servers().await.unwrap().remove(0).is_enabled(), "back in the file");
}

#[tokio::test]
async fn sealed_values_are_in_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let secret = "ghp_a-literal-secret-in-a-header";
    store.upsert_server(&name("s"), &spec(secret), true, ServerSource::Api, at(1)).await.unwrap();
    let values = store.servers().await.unwrap().remove(0).spec.transport;
    assert_eq!(values.secret_values()["authorization"], secret);
    for file in fs::read_dir(folder.path()).unwrap() {
        let path = file.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        assert!(memchr::memmem::find(&bytes, b"literal-secret").is_none(), "{}", path.display());
    }
}

/// What a start finds: the server `s` from the API, and what it says of its sealed values.
async fn sealed_state(store: &Store) -> (String, Option<String>) {
    let rows = store.servers().await.unwrap();
    let row = rows.into_iter().find(|row| row.name == name("s")).unwrap();
    (row.spec.transport.secret_values()["authorization"].clone(), row.sealed_problem)
}

#[tokio::test]
async fn a_server_whose_values_do_not_open_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("seal.key");
    let store = open(folder.path()).await;
    store
        .upsert_server(&name("s"), &spec("literal"), true, ServerSource::Api, at(1))
        .await
        .unwrap();
    let file = name("from-file");
    store.upsert_server(&file, &spec("other"), true, ServerSource::Config, at(1)).await.unwrap();
    drop(store);
    let right = fs::read(&key).unwrap();
    for (wrong, why) in [
        (None, "it is missing"),
        (Some(vec![0; 31]), "32 bytes"),
        (Some(vec![0; 32]), "`authorization` does not open"),
    ] {
        match wrong {
            Some(bytes) => fs::write(&key, bytes).unwrap(),
            None => fs::remove_file(&key).unwrap(),
        }
        let (value, problem) = sealed_state(&open(folder.path()).await).await;
        let problem = problem.unwrap();
        assert!(value.starts_with("sealed:v1:"), "{value}");
        assert!(problem.contains(why) && problem.contains("seal.key"), "{problem}");
        assert!(problem.contains("servers remove s"), "{problem}");
    }
    fs::write(&key, right).unwrap();
    assert_eq!(sealed_state(&open(folder.path()).await).await, ("literal".to_owned(), None));

    fs::remove_file(&key).unwrap();
    let store = open(folder.path()).await;
    // The next start stores the file's servers before anybody reads them.
    let again = store.upsert_server(&file, &spec("other"), true, ServerSource::Config, at(2)).await;
    assert_eq!(again.unwrap(), Upserted::Changed, "sealed anew");
    assert!(sealed_state(&store).await.1.is_some(), "needs the old key");
    assert!(store.delete_server(&name("s")).await.unwrap());
    store.upsert_server(&name("s"), &spec("anew"), true, ServerSource::Api, at(3)).await.unwrap();
    drop(store);
    let store = open(folder.path()).await;
    assert!(store.servers().await.unwrap().iter().all(|row| row.sealed_problem.is_none()));
    assert_eq!(sealed_state(&store).await.0, "anew");
}

#[tokio::test]
async fn tools_are_replaced_as_a_whole_and_keep_their_history() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let server = name("s");
    let orphan = store.replace_tools(&server, &[tool("s", "a", "{}", 0)], &[]).await;
    assert!(matches!(orphan, Err(StoreError::UnknownServer { .. })), "{orphan:?}");
    store.upsert_server(&server, &spec("${T}"), true, ServerSource::Api, at(1)).await.unwrap();

    let many: Vec<ToolRow> = (0..123)
        .map(|n| tool("s", &format!("tool{n}"), &format!(r#"{{ "n":{n}.0 }}"#), n))
        .collect();
    store.replace_tools(&server, &many, &[]).await.unwrap();
    assert_eq!(store.tools().await.unwrap(), many);

    let mut changed = tool("s", "tool1", r#"{"n":"changed"}"#, 0);
    (changed.first_seen_at, changed.last_seen_at) = (at(99), at(99));
    let history = HistoryRow {
        server: server.clone(),
        tool: changed.tool.clone(),
        old_hash: Some(many[1].hash),
        new_hash: Some(changed.hash),
        kind: HistoryKind::Changed,
        at: at(99),
        by: None,
    };
    store
        .replace_tools(&server, std::slice::from_ref(&changed), std::slice::from_ref(&history))
        .await
        .unwrap();
    let tools = store.tools().await.unwrap();
    let row = tools.iter().find(|row| row.tool == changed.tool).unwrap();
    assert_eq!((row.first_seen_at, row.last_seen_at, row.hash), (at(10), at(99), changed.hash));
    assert_eq!(tools.iter().filter(|row| row.status == ToolStatus::Gone).count(), 122);
    assert_eq!(store.mark_tools_stale(&server).await.unwrap(), 1);

    assert!(store.delete_server(&server).await.unwrap());
    assert!(!store.delete_server(&server).await.unwrap());
    assert_eq!(store.tools().await.unwrap(), []);
    let kept = store.tool_history(&server, &changed.tool, 10).await.unwrap();
    assert_eq!(kept, [history]);
    let definition = store.definition(&many[1].hash).await.unwrap();
    assert_eq!(definition.as_deref(), Some(br#"{ "n":1.0 }"#.as_slice()));
}

#[tokio::test]
async fn lists_beside_tools_are_replaced_whole_and_go_with_their_server() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let server = name("s");
    let written: Vec<(String, Bytes)> = (0..123)
        .map(|n| (format!("x:{n}"), Bytes::from(format!(r#"{{ "uri":"x:{n}","n":1.0 }}"#))))
        .collect();
    let list: Vec<(&str, &Bytes)> =
        written.iter().map(|(key, definition)| (key.as_str(), definition)).collect();
    let unknown = store.replace_offers(&server, OfferKind::Resource, &list).await.unwrap_err();
    assert!(matches!(unknown, StoreError::UnknownServer { .. }), "{unknown}");
    store.upsert_server(&server, &spec("x"), true, ServerSource::Config, at(1)).await.unwrap();
    store.replace_offers(&server, OfferKind::Resource, &list).await.unwrap();
    store.replace_offers(&server, OfferKind::Prompt, &list[..1]).await.unwrap();
    drop(store);

    let store = open(folder.path()).await;
    let rows = store.offers().await.unwrap();
    assert_eq!(rows.len(), 124);
    assert_eq!((rows[0].kind, rows[0].key.as_str()), (OfferKind::Prompt, "x:0"));
    let back: Vec<_> =
        rows[1..].iter().map(|row| (row.key.clone(), row.definition.clone())).collect();
    assert_eq!(back, written, "in the server's order, byte for byte");
    store.replace_offers(&server, OfferKind::Resource, &list[5..6]).await.unwrap();
    assert_eq!(store.offers().await.unwrap().len(), 2);
    store.delete_server(&server).await.unwrap();
    assert_eq!(store.offers().await.unwrap(), []);
}

#[tokio::test]
async fn a_keys_name_is_free_again_after_revocation() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let key = |id: &str, byte: u8| KeyRow {
        id: id.to_owned(),
        name: "ci".to_owned(),
        hash: [byte; 32],
        scopes: Scopes::NONE.with(Scope::Call).with(Scope::Audit),
        created_at: at(1),
        expires_at: Some(at(100)),
        last_used_at: None,
        revoked_at: None,
    };
    store.insert_key(&key("a", 1)).await.unwrap();
    let error = store.insert_key(&key("b", 2)).await.unwrap_err();
    assert!(matches!(&error, StoreError::KeyNameTaken { name } if name == "ci"), "{error}");
    assert!(store.revoke_key("ci", at(5)).await.unwrap());
    assert!(!store.revoke_key("ci", at(6)).await.unwrap());
    store.insert_key(&key("b", 2)).await.unwrap();
    store.touch_keys(&[("b".to_owned(), at(9))]).await.unwrap();
    let keys = store.keys().await.unwrap();
    assert_eq!(keys[0], KeyRow { revoked_at: Some(at(5)), ..key("a", 1) });
    assert_eq!(keys[1], KeyRow { last_used_at: Some(at(9)), ..key("b", 2) });
}

#[tokio::test]
async fn sessions_and_events_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let session = |byte: u8| SessionRow {
        hash: [byte; 32],
        caller: "anonymous".to_owned(),
        view: byte.is_multiple_of(2).then(|| ViewName::parse("support").unwrap()),
        protocol_version: ProtocolVersion::V2025_11_25,
        client: ClientInfo { name: "c".to_owned(), version: "1".to_owned() },
        capabilities: Some("{}".to_owned()),
        created_at: at(1),
        last_seen_at: at(i64::from(byte)),
    };
    let all: Vec<SessionRow> = (0..120).map(session).collect();
    store.change_sessions(&all, &[]).await.unwrap();
    store.change_sessions(&all[..3], &[]).await.unwrap();
    store.touch_sessions(&[([0; 32], at(500))]).await.unwrap();
    assert_eq!(store.delete_sessions_before(at(100)).await.unwrap(), 99);
    store.change_sessions(&[], &[[100; 32], [101; 32]]).await.unwrap();
    let event = EventRow {
        at: at(3),
        actor: "admin-socket".to_owned(),
        kind: "server.added".to_owned(),
        subject: "s".to_owned(),
        detail: "{}".to_owned(),
    };
    store.append_event(&EventRow { at: at(2), ..event.clone() }).await.unwrap();
    store.append_event(&event).await.unwrap();
    drop(store);
    let store = open(folder.path()).await;
    let mut sessions = store.sessions().await.unwrap();
    sessions.sort_by_key(|row| row.hash);
    assert_eq!(sessions.len(), 19);
    assert_eq!(sessions[0], SessionRow { last_seen_at: at(500), ..session(0) });
    assert_eq!(sessions[1], session(102));
    assert_eq!(store.events(1).await.unwrap(), [event]);
}

async fn pages(store: &Store, filter: &AuditFilter, limit: u16) -> Vec<CallRow> {
    let (mut rows, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.audit_page(filter, cursor, limit).await.unwrap();
        assert!(page.rows.len() <= usize::from(limit));
        rows.extend(page.rows);
        match page.next {
            // Through its printed form, as clients do.
            Some(next) => cursor = Some(Cursor::parse(&next.to_string()).unwrap()),
            None => return rows,
        }
    }
}

#[tokio::test]
async fn the_ledger_is_paged_and_filtered() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let calls: Vec<CallRow> = (0..1000).map(call).collect();
    for batch in calls.chunks(333) {
        store.append_calls(batch).await.unwrap();
    }
    drop(store);
    let store = open(folder.path()).await;
    assert_eq!(store.audit_count().await.unwrap(), 1000);
    assert_eq!(store.audit_oldest().await.unwrap(), Some(at(0)));

    let mut all = pages(&store, &AuditFilter::default(), 77).await;
    assert!(all.iter_mut().all(|row| row.hash.take().is_some()));
    let mut expected: Vec<CallRow> = (1..)
        .zip(&calls)
        .map(|(seq, row)| CallRow { seq, arguments: None, result: None, ..row.clone() })
        .collect();
    expected.reverse();
    assert_eq!(all, expected);

    let text = |text: &str| Some(text.to_owned());
    let none = AuditFilter::default;
    for (filter, count) in [
        (AuditFilter { server: text("late"), ..none() }, 500),
        (AuditFilter { tool: text("tool_3"), ..none() }, 100),
        (AuditFilter { tool: text("s__tool_3"), ..none() }, 100),
        (AuditFilter { outcome: Some(Outcome::Timeout), ..none() }, 10),
        (AuditFilter { error_code: text("MCPTimeoutError"), ..none() }, 10),
        (AuditFilter { caller: text("bob"), ..none() }, 500),
        (AuditFilter { session: text("0123456789abcdef"), ..none() }, 200),
        (AuditFilter { view: text("support"), ..none() }, 143),
        (AuditFilter { view: text("Support"), ..none() }, 0),
        (AuditFilter { trace: Some(trace(7)), ..none() }, 2),
        (AuditFilter { trace: Some(trace(700)), ..none() }, 0),
        (AuditFilter { trace: Some(trace(7)), caller: text("bob"), ..none() }, 1),
        (AuditFilter { since: Some(at(990)), ..none() }, 10),
        (AuditFilter { until: Some(at(5)), ..none() }, 5),
        (AuditFilter { text: text("100% OF 30_s"), ..none() }, 10),
        (AuditFilter { text: text("100x of"), ..none() }, 0),
        (AuditFilter { text: text(r#""n 77""#), ..none() }, 1),
        (AuditFilter { text: text("n:77*"), ..none() }, 11),
        (AuditFilter { text: text("bytes 3"), ..none() }, 500),
        (AuditFilter { text: text("'; drop table calls; --"), ..none() }, 0),
        (
            AuditFilter {
                server: text("late"),
                caller: text("alice"),
                since: Some(at(900)),
                ..none()
            },
            50,
        ),
    ] {
        assert_eq!(pages(&store, &filter, 9).await.len(), count, "{filter:?}");
    }

    let after = store.audit_after(990, 5).await.unwrap();
    assert_eq!(after.iter().map(|row| row.seq).collect::<Vec<_>>(), [991, 992, 993, 994, 995]);
    let found = store.audit_call(calls[500].id).await.unwrap().unwrap();
    assert_eq!(found, CallRow { seq: 501, hash: found.hash, ..calls[500].clone() });
    assert_eq!(store.audit_call(CallId::from_uuid(Uuid::now_v7())).await.unwrap(), None);
}

#[test]
fn cursors_we_did_not_make_are_refused() {
    for text in ["", "x", "AAAAAAAAAAA", "_________wA", "AAAAAAAAAAE=", "'; --"] {
        let error = Cursor::parse(text).unwrap_err();
        assert!(matches!(error, StoreError::BadCursor { .. }), "{text}");
    }
}

#[tokio::test]
async fn a_batch_that_cannot_be_stored_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let twice = call(1);
    let mut batch: Vec<CallRow> = (2..60).map(call).collect();
    batch.extend([twice.clone(), twice]);
    assert!(matches!(store.append_calls(&batch).await, Err(StoreError::Statement { .. })));
    assert_eq!(store.audit_count().await.unwrap(), 0);
    store.append_calls(&[call(3)]).await.unwrap();
    assert_eq!(store.audit_after(0, 10).await.unwrap()[0].seq, 1, "no gap");
}

/// Bytes of a folder's files, to see that a refused start changes nothing.
fn bytes(folder: &Path, file: &str) -> Vec<u8> {
    fs::read(folder.join(file)).unwrap()
}

#[tokio::test]
async fn garbage_is_refused_and_left_alone() {
    for file in ["state.db", "audit.db"] {
        let folder = tempfile::tempdir().unwrap();
        let garbage = "this is not a database, but somebody's notes\n".repeat(200);
        fs::write(folder.path().join(file), &garbage).unwrap();
        let error = refusal(folder.path()).await;
        assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().contains(file), "{error}");
        assert_eq!(bytes(folder.path(), file), garbage.as_bytes());
    }
}

#[tokio::test]
async fn a_damaged_page_is_found_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let server = name("s");
    store.upsert_server(&server, &spec("${T}"), true, ServerSource::Api, at(1)).await.unwrap();
    let tools: Vec<ToolRow> =
        (0..200).map(|n| tool("s", &format!("t{n}"), &format!("{{\"n\":{n}}}"), n)).collect();
    store.replace_tools(&server, &tools, &[]).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let mut damaged = bytes(folder.path(), "state.db");
    let end = damaged.len();
    // The last pages hold the rows that came last.
    damaged[end - 4096 * 4..].fill(0x5a);
    fs::write(folder.path().join("state.db"), &damaged).unwrap();
    let error = refusal(folder.path()).await;
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert_eq!(bytes(folder.path(), "state.db"), damaged);
}

#[tokio::test]
async fn a_damaged_ledger_is_found_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store.append_calls(&(0..2000).map(call).collect::<Vec<_>>()).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let mut damaged = bytes(folder.path(), "audit.db");
    let middle = damaged.len() / 4096 / 2 * 4096;
    damaged[middle..middle + 4096 * 3].fill(0xff);
    fs::write(folder.path().join("audit.db"), &damaged).unwrap();
    let error = refusal(folder.path()).await;
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("audit.db"), "{error}");
    assert_eq!(error.exit_code(), 5);
    assert_eq!(bytes(folder.path(), "audit.db"), damaged);
}

/// Runs one statement on a closed database, as a newer version or another program would.
async fn alter(path: &Path, sql: &'static str) {
    use sqlx::{ConnectOptions, Connection};
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_and_a_foreign_database_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store.close().await.unwrap();
    drop(store);
    alter(&folder.path().join("audit.db"), "pragma user_version = 99").await;
    let before = bytes(folder.path(), "audit.db");
    let error = refusal(folder.path()).await;
    assert!(matches!(error, StoreError::NewerSchema { found: 99, .. }), "{error:?}");
    assert_eq!(error.exit_code(), 5);
    assert_eq!(bytes(folder.path(), "audit.db"), before);

    let folder = tempfile::tempdir().unwrap();
    alter(&folder.path().join("state.db"), "create table other (x)").await;
    let error = refusal(folder.path()).await;
    assert!(matches!(error, StoreError::ForeignDatabase { .. }), "{error:?}");
}

#[tokio::test]
async fn files_of_the_first_version_are_brought_up_to_date_with_their_rows() {
    const STATE: &str = concat!(
        include_str!("../../migrations/sqlite/state/0001_state.sql"),
        "insert into sessions values (zeroblob(32), 'me', '2025-11-25', 'c', '1', null, 1, 2);
         pragma application_id = 1400330596; pragma user_version = 1;"
    );
    const AUDIT: &str = concat!(
        include_str!("../../migrations/sqlite/audit/0001_calls.sql"),
        "insert into calls values (1, zeroblob(16), 5, 'me', null, null, null, 'rest', null,
            's__t', 't', 's', null, 'ok', null, null, null, 200, 1, 0, 1, 2, 3, 4);
         pragma application_id = 1400330596; pragma user_version = 1;"
    );
    let folder = tempfile::tempdir().unwrap();
    alter(&folder.path().join("state.db"), STATE).await;
    alter(&folder.path().join("audit.db"), AUDIT).await;
    let store = open(folder.path()).await;
    let sessions = store.sessions().await.unwrap();
    assert_eq!(sessions.len(), 1);
    assert_eq!((sessions[0].caller.as_str(), &sessions[0].view), ("me", &None));
    store.append_calls(&[call(7)]).await.unwrap();
    let rows = pages(&store, &AuditFilter::default(), 9).await;
    let seen: Vec<_> = rows.iter().map(|row| (row.seq, row.view.is_some())).collect();
    assert_eq!(seen, [(2, true), (1, false)]);
    assert_eq!((&*rows[1].tool, rows[1].response_bytes), ("s__t", 4));
    for copy in ["state.v1.db", "audit.v1.db"] {
        assert!(folder.path().join(copy).exists(), "{copy}");
    }
}

#[tokio::test]
async fn a_start_that_was_cut_off_is_taken_up_again() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("state.db"), "").unwrap();
    // WAL switched on, no table yet: where a kill can leave a new file.
    alter(&folder.path().join("audit.db"), "pragma journal_mode = wal").await;
    let store = open(folder.path()).await;
    store.append_calls(&[call(1)]).await.unwrap();
    assert_eq!(store.servers().await.unwrap(), []);
}

#[tokio::test]
async fn a_path_that_is_no_folder_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = refusal(&path).await;
        assert!(matches!(error, StoreError::NotAFolder { .. }), "{error:?}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_says_so() {
    if rustix::process::geteuid().is_root() {
        // Root writes anywhere: there is nothing to see.
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let error = refusal(folder.path()).await;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(matches!(error, StoreError::Files { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 2);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_says_so() {
    if rustix::process::geteuid().is_root() {
        // Root writes anywhere: there is nothing to see.
        return;
    }
    for file in ["state.db", "audit.db"] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await;
        store.close().await.unwrap();
        drop(store);
        let path = folder.path().join(file);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        let error = refusal(folder.path()).await;
        assert!(matches!(&error, StoreError::Files { path: named, .. } if *named == path));
        assert_eq!(error.exit_code(), 2);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        open(folder.path()).await;
    }
}

#[tokio::test]
async fn another_process_lock_is_waited_out() {
    use sqlx::{ConnectOptions, Connection};
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let options =
        sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join("audit.db"));
    let mut other = options.connect().await.unwrap();
    let held = other.begin_with("begin immediate").await.unwrap();
    let row = call(1);
    let mut append = std::pin::pin!(store.append_calls(std::slice::from_ref(&row)));
    let early = tokio::time::timeout(Duration::from_millis(100), append.as_mut()).await;
    assert!(early.is_err(), "the lock is held");
    held.rollback().await.unwrap();
    append.await.unwrap();
    assert_eq!(store.audit_count().await.unwrap(), 1);
}

const CHILD_FOLDER: &str = "SWITCHYARD_TEST_STORE_CHILD";

/// Not a test of its own: the process that the next one kills.
#[tokio::test]
#[ignore = "run by `what_was_committed_survives_a_kill` in a process of its own"]
async fn child_that_appends_until_it_is_killed() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else { return };
    let store = open(Path::new(&folder)).await;
    for number in 0.. {
        let batch: Vec<CallRow> = (0..7).map(|n| call(number * 7 + n)).collect();
        store.append_calls(&batch).await.unwrap();
        for row in batch {
            println!("committed {}", row.id);
        }
    }
}

#[tokio::test]
async fn what_was_committed_survives_a_kill() {
    use std::io::BufRead;
    let folder = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::child_that_appends_until_it_is_killed"])
        .args(["--ignored", "--nocapture"])
        .env(CHILD_FOLDER, folder.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = io::BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut committed =
        lines.filter_map(|line| line.split_once("committed ").map(|(_, id)| id.to_owned()));
    let mut ids: Vec<String> = committed.by_ref().take(150).collect();
    let error = refusal(folder.path()).await;
    assert!(
        matches!(error, StoreError::InUse { pid: Some(pid), .. } if pid == child.id()),
        "{error}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    ids.extend(committed);

    let store = open(folder.path()).await;
    store.check().await.unwrap();
    let rows = store.audit_after(0, u16::MAX).await.unwrap();
    assert!(rows.iter().map(|row| row.seq).eq(1..=i64::try_from(rows.len()).unwrap()), "no gap");
    assert!(rows.len() % 7 == 0 && rows.len() >= ids.len(), "batches are whole");
    let stored: Vec<String> = rows.iter().map(|row| row.id.to_string()).collect();
    assert_eq!(stored[..ids.len()], ids, "all that were acknowledged, in order");
}
