use std::path::Path;

use bytes::Bytes;
use prometheus::Registry;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use uuid::Uuid;

use super::super::{AttemptEntry, Attempts, AuditQuery, Redactor, Secrets, ToolLabel};
use super::*;
use crate::error::ErrorCode;
use crate::model::{
    ArgumentsLevel, CallId, CallerClass, Entrance, ExposedName, Failure, Outcome, ResultsLevel,
    Secret, ServerName, Timestamp, ToolName,
};
use crate::store::{AuditFilter, EventRow};

mod flood;
mod signed;
mod stuck;

/// For tests that wait until the writer gives up.
const IMPATIENT: Duration = Duration::from_millis(200);

struct Ledger {
    folder: Arc<tempfile::TempDir>,
    store: Store,
    writer: AuditWriter,
    tracker: TaskTracker,
    registry: Registry,
    redaction: InForce,
}

fn redact(redaction: &InForce, key: &str, secret: &str) {
    let secrets = Secrets::new(vec![Secret::new(secret)]);
    redaction.set(Redactor::new(&[key.to_owned()], &secrets));
}

impl Ledger {
    async fn start(durability: Durability) -> Self {
        Self::start_with(durability, PATIENCE).await
    }

    async fn start_with(durability: Durability, patience: Duration) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        Self::start_in(&folder, durability, patience).await
    }

    async fn start_in(
        folder: &Arc<tempfile::TempDir>,
        durability: Durability,
        patience: Duration,
    ) -> Self {
        let folder = Arc::clone(folder);
        let store = Store::open(folder.path()).await.unwrap();
        let registry = Registry::new();
        let tracker = TaskTracker::new();
        let settings = AuditSettings {
            durability,
            intent: IntentMode::usual(durability),
            checkpoints: vec![folder.path().to_owned()],
            data_dir: folder.path().to_owned(),
            spool: None,
            redaction: InForce::default(),
            recording: serde_json::Value::Null,
        };
        redact(&settings.redaction, "password", "known-secret-value");
        let metrics = AuditMetrics::register(&registry).unwrap();
        let writer = AuditWriter::start_with(store.clone(), &settings, metrics, &tracker, patience);
        Self { folder, store, writer, tracker, registry, redaction: settings.redaction }
    }

    fn metric(&self, line: &str) -> bool {
        let text =
            prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
        text.lines().any(|found| found == line)
    }

    async fn end(self) {
        self.writer.close().await;
        self.tracker.close();
        self.tracker.wait().await;
    }
}

fn entry(arguments: &str) -> AuditEntry {
    AuditEntry {
        id: CallId::from_uuid(Uuid::now_v7()),
        started_at: Timestamp::from_millis(1_700_000_000_000),
        caller: "alice".into(),
        class: CallerClass::Key,
        session: None,
        client: None,
        entrance: Entrance::Rest,
        view: None,
        tool: ToolLabel::Exposed(ExposedName::parse("s__echo").unwrap()),
        upstream_tool: None,
        server: None,
        definition_hash: None,
        outcome: Outcome::Ok,
        error_code: None,
        error: None,
        failure: None,
        http_status: 200,
        attempts: 1,
        attempt_list: Attempts::default(),
        queue: Duration::ZERO,
        upstream: Duration::from_millis(2),
        total: Duration::from_millis(3),
        request_bytes: 10,
        response_bytes: 20,
        arguments: Some(Bytes::copy_from_slice(arguments.as_bytes())),
        arguments_bytes: 0,
        result: Some(Bytes::from_static(br#"{"content":[{"type":"text","text":"hi"}]}"#)),
        levels: (ArgumentsLevel::Redacted, ResultsLevel::Summary),
        pointers: None,
        trace_id: None,
        remote: None,
        breaker: None,
    }
}

/// Holds the ledger's write lock as another process would.
async fn lock(folder: &Path) -> SqliteConnection {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.join("audit.db"));
    let mut other = options.connect().await.unwrap();
    sqlx::raw_sql("begin immediate").execute(&mut other).await.unwrap();
    other
}

#[tokio::test]
async fn everything_recorded_is_committed_by_flush_in_order() {
    let ledger = Ledger::start(Durability::Batched).await;
    let mut ids = Vec::new();
    for number in 0..5000 {
        let entry = entry(&format!(r#"{{"n":{number},"password":"hunter2"}}"#));
        ids.push(entry.id.to_string());
        ledger.writer.admit().await.unwrap().record(entry);
    }
    ledger.writer.flush().await;
    let query = AuditQuery::new(ledger.store.clone());
    assert_eq!(query.count().await.unwrap(), 5000);
    let stored = query.after(0, 5000).await.unwrap();
    assert_eq!(stored.into_iter().map(|call| call.id).collect::<Vec<_>>(), ids);
    let last = query.get(CallId::parse(&ids[4999]).unwrap()).await.unwrap().unwrap();
    let json = serde_json::to_value(&last).unwrap();
    assert_eq!(json["arguments"], serde_json::json!({"n": 4999, "password": "***"}));
    assert_eq!(json["result"]["content"], serde_json::json!(["text:2"]));
    assert_eq!(json["started_at"], "2023-11-14T22:13:20.000Z");
    assert_eq!((&json["duration_ms"], &json["entrance"]), (&3.0.into(), &"rest".into()));
    assert!(ledger.metric(r#"switchyard_audit_events_total{outcome="ok"} 5000"#));
    assert!(ledger.metric("switchyard_audit_queue_depth 0"));
    assert!(ledger.metric("switchyard_audit_oldest_timestamp_seconds 1700000000"));
    ledger.end().await;
}

#[tokio::test]
async fn batched_commits_by_itself() {
    let ledger = Ledger::start(Durability::Batched).await;
    ledger.writer.admit().await.unwrap().record(entry("{}"));
    let committed = async {
        while ledger.store.audit_count().await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), committed).await.unwrap();
    ledger.end().await;
}

/// Each commit writes the last page of each table anew: one after the other for a call or two each would
/// write many times what the calls are.
#[tokio::test]
async fn calls_that_keep_coming_share_commits() {
    let ledger = Ledger::start(Durability::Batched).await;
    ledger.writer.flush().await;
    let commits = || {
        let families = ledger.registry.gather();
        let commit =
            families.iter().find(|f| f.name() == "switchyard_audit_commit_duration_seconds");
        commit.unwrap().get_metric()[0].get_histogram().get_sample_count()
    };
    let (before, began) = (commits(), clock::uptime());
    let mut calls = 0;
    while clock::uptime().since(began) < Duration::from_millis(500) {
        ledger.writer.admit().await.unwrap().record(entry("{}"));
        calls += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    ledger.writer.flush().await;
    let periods = clock::uptime().since(began).as_millis() / 50;
    let most = u64::try_from(periods).unwrap() + calls / u64::try_from(WORTHWHILE).unwrap() + 2;
    let made = commits() - before;
    assert!((1..=most).contains(&made), "{made} commits of {calls} calls, at most {most}");
    assert_eq!(ledger.store.audit_count().await.unwrap(), calls);
    ledger.end().await;
}

#[tokio::test]
async fn a_strict_record_is_there_when_its_caller_hears_of_it() {
    let ledger = Ledger::start(Durability::Strict).await;
    for count in 1..=20 {
        let slot = ledger.writer.admit().await.unwrap();
        slot.record_durably(entry("{}")).await.unwrap();
        assert_eq!(ledger.store.audit_count().await.unwrap(), count);
    }
    ledger.end().await;
}

#[tokio::test]
async fn close_commits_what_is_queued_and_admits_no_more() {
    let ledger = Ledger::start(Durability::Batched).await;
    let late = ledger.writer.admit().await.unwrap();
    for _ in 0..100 {
        ledger.writer.admit().await.unwrap().record(entry("{}"));
    }
    let (writer, store) = (ledger.writer.clone(), ledger.store.clone());
    writer.close().await;
    assert_eq!(writer.admit().await.unwrap_err(), AuditUnavailable::Closed);
    ledger.tracker.close();
    ledger.tracker.wait().await;
    assert_eq!(store.audit_count().await.unwrap(), 100);
    late.record(entry("{}"));
    assert!(ledger.metric("switchyard_audit_dropped_total 1"), "lost, and counted");
    writer.flush().await;
}

#[tokio::test]
async fn a_full_queue_refuses_after_a_while_and_a_freed_place_is_taken() {
    let ledger = Ledger::start(Durability::Batched).await;
    let mut slots = Vec::new();
    for _ in 0..PLACES {
        slots.push(ledger.writer.admit().await.unwrap());
    }
    assert!(ledger.writer.is_full());
    let began = clock::uptime();
    assert_eq!(ledger.writer.admit().await.unwrap_err(), AuditUnavailable::QueueFull);
    assert!(clock::uptime().since(began) >= ADMISSION);
    // A recorded call gives its place back when it is committed, and wakes who waits. A busy disk may
    // take longer for that than one of them waits.
    slots.pop().unwrap().record(entry("{}"));
    let mut place = None;
    for _ in 0..100 {
        place = ledger.writer.admit().await.ok();
        if place.is_some() {
            break;
        }
    }
    drop(place.unwrap());
    // A slot that is dropped gives it back at once.
    drop(slots.pop());
    ledger.writer.admit().await.unwrap().record(entry("{}"));
    drop(slots);
    ledger.end().await;
}

#[tokio::test]
async fn held_bytes_are_bounded_too() {
    // In `batched` the oldest would make room.
    let ledger = Ledger::start(Durability::Strict).await;
    ledger.writer.flush().await;
    let mut other = lock(ledger.folder.path()).await;
    // Of a value in JSON no more is searched than is kept: what counts here is what is held.
    let large = format!(r#"{{"text":"{}"}}"#, "x".repeat(200 * 1024));
    let refused = loop {
        match ledger.writer.admit().await {
            Ok(slot) => slot.record(entry(&large)),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, AuditUnavailable::QueueFull);
    let held = ledger.writer.shared.held_bytes.load(Ordering::Relaxed);
    assert!((HELD_BYTES..HELD_BYTES + 300 * 1024).contains(&held), "{held}");
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    ledger.writer.flush().await;
    assert_eq!(ledger.writer.shared.held_bytes.load(Ordering::Relaxed), 0);
    assert!(ledger.metric("switchyard_audit_dropped_total 0"));
    other.close().await.unwrap();
    ledger.end().await;
}

#[tokio::test]
async fn what_is_kept_and_held_of_a_call_goes_by_its_level() {
    let ledger = Ledger::start(Durability::Batched).await;
    let mut bare = entry(r#"{"a":1}"#);
    bare.levels = (ArgumentsLevel::None, ResultsLevel::None);
    let mut huge = entry("{}");
    huge.result = Some(Bytes::from(vec![b'x'; 5 << 20]));
    let mut full = entry(r#"{"password":"known-secret-value","q":"Bearer abcdefghijkl"}"#);
    full.levels = (ArgumentsLevel::Full, ResultsLevel::Full);
    full.result = Some(Bytes::from(format!(r#"{{"t":"known-secret-value{}"}}"#, "y".repeat(9000))));
    let mut raw = full.clone();
    raw.id = CallId::from_uuid(Uuid::now_v7());
    raw.levels = (ArgumentsLevel::Raw, ResultsLevel::Raw);
    // As tools give it: JSON, text that is JSON, and text in which JSON stands.
    let named = r#"{"password":"hunter2","n":1}"#;
    let mut telling = full.clone();
    telling.id = CallId::from_uuid(Uuid::now_v7());
    let result = serde_json::json!({
        "structuredContent": { "Password": ["hunter2"], "n": 1 },
        "content": [
            { "type": "text", "text": named },
            { "type": "text", "text": format!("it is {named} and ghp_abcdefghijklmnopqrstuvwxyz") },
        ],
    });
    telling.result = Some(Bytes::from(result.to_string()));
    let mut kept = telling.clone();
    kept.id = CallId::from_uuid(Uuid::now_v7());
    kept.levels = raw.levels;
    assert_eq!(bare.slim(), 0);
    assert_eq!(huge.slim(), 2);
    let ids = [bare.id, huge.id, full.id, raw.id, telling.id, kept.id];
    for entry in [bare, huge, full, raw, telling, kept] {
        ledger.writer.admit().await.unwrap().record(entry);
    }
    ledger.writer.flush().await;
    let [bare, huge, full, raw, telling, kept] = ids.map(|id| {
        let store = ledger.store.clone();
        async move { store.audit_call(id).await.unwrap().unwrap() }
    });
    let (bare, huge, full) = tokio::join!(bare, huge, full);
    let (raw, telling, kept) = tokio::join!(raw, telling, kept);
    assert_eq!((bare.arguments, bare.result), (None, None));
    assert_eq!(huge.result.as_deref(), Some(r#"{"bytes":20}"#));
    let arguments = full.arguments.unwrap();
    assert_eq!(arguments, r#"{"password":"***","q":"Bearer ***"}"#);
    assert_eq!(raw.arguments.unwrap(), r#"{"password":"***","q":"Bearer abcdefghijkl"}"#);
    assert!(raw.result.unwrap().starts_with(r#"{"t":"***yyy"#));
    let telling = telling.result.unwrap();
    assert!(!telling.contains("hunter2") && !telling.contains("ghp_"), "{telling}");
    assert!(telling.contains(r#""n":1"#), "{telling}");
    let kept = kept.result.unwrap();
    assert!(kept.contains("hunter2") && kept.contains("ghp_abc"), "{kept}");
    let result = full.result.unwrap();
    assert!(result.starts_with(r#"{"t":"***yyy"#) && result.contains("…[cut, 9018 bytes]"));
    ledger.end().await;
}

#[tokio::test]
async fn a_refused_call_keeps_its_reason_without_secrets() {
    let ledger = Ledger::start(Durability::Batched).await;
    let mut refused = entry("{}");
    refused.outcome = Outcome::Refused;
    refused.error_code = Some(ErrorCode::ToolNotFound);
    refused.error = Some("no tool `known-secret-value`".to_owned());
    refused.tool = ToolLabel::asked(&format!("known-secret-value{}", "é".repeat(300)));
    (refused.result, refused.response_bytes) = (None, 0);
    ledger.writer.admit().await.unwrap().record(refused);
    ledger.writer.flush().await;
    let filter = AuditFilter { outcome: Some(Outcome::Refused), ..AuditFilter::default() };
    let page = AuditQuery::new(ledger.store.clone()).page(&filter, None, 10).await.unwrap();
    let call = &page.calls[0];
    assert_eq!(call.error.as_deref(), Some("no tool `***`"));
    assert_eq!(call.tool, format!("***{}…", "é".repeat(110)));
    assert!(page.next_cursor.is_none());
    ledger.end().await;
}

#[tokio::test]
async fn redaction_follows_a_reload() {
    let ledger = Ledger::start(Durability::Batched).await;
    redact(&ledger.redaction, "pin", "a-new-secret");
    let entry = entry(r#"{"pin":1,"password":"p","q":"a-new-secret"}"#);
    let id = entry.id;
    ledger.writer.admit().await.unwrap().record(entry);
    ledger.writer.flush().await;
    let row = ledger.store.audit_call(id).await.unwrap().unwrap();
    let expected = r#"{"pin":"***","password":"p","q":"***"}"#;
    assert_eq!(row.arguments.as_deref(), Some(expected));
    ledger.end().await;
}

#[tokio::test]
async fn batched_lets_go_of_calls_when_the_database_stays_away() {
    let ledger = Ledger::start_with(Durability::Batched, IMPATIENT).await;
    ledger.store.close().await.unwrap();
    ledger.writer.admit().await.unwrap().record(entry("{}"));
    ledger.writer.flush().await;
    assert!(ledger.metric("switchyard_audit_dropped_total 1"));
    assert!(!ledger.writer.is_healthy());
    // Serving goes on.
    ledger.writer.admit().await.unwrap().record(entry("{}"));
    ledger.end().await;
}

#[tokio::test]
async fn strict_refuses_before_dispatch_when_the_ledger_cannot_be_written() {
    let ledger = Ledger::start_with(Durability::Strict, IMPATIENT).await;
    let slot = ledger.writer.admit().await.unwrap();
    ledger.store.close().await.unwrap();
    assert_eq!(slot.record_durably(entry("{}")).await, Err(NotRecorded));
    assert_eq!(ledger.writer.admit().await.unwrap_err(), AuditUnavailable::NotWritable);
    ledger.end().await;
}

fn attempt(n: u32, error: Option<&str>) -> AttemptEntry {
    AttemptEntry {
        began: Duration::from_millis(u64::from(n) * 100),
        took: Duration::from_micros(2500),
        outcome: if error.is_some() { Outcome::Unavailable } else { Outcome::Ok },
        failure: error.is_some().then_some(Failure::NotSent),
        error: error.map(ToOwned::to_owned),
        http_status: error.is_none().then_some(200),
        probe: n == 2,
    }
}

#[tokio::test]
async fn each_attempt_is_recorded_and_shown_with_its_call() {
    let ledger = Ledger::start(Durability::Batched).await;
    let query = AuditQuery::new(ledger.store.clone());
    for count in [0, 1, 2, 5] {
        let mut list = Attempts::default();
        for n in 1..=count {
            list.push(attempt(n, (n < count).then_some("connection refused")));
        }
        assert_eq!((list.len(), list.is_empty()), (count, count == 0));
        let entry = AuditEntry { attempts: list.len(), attempt_list: list, ..entry("{}") };
        let id = entry.id;
        ledger.writer.admit().await.unwrap().record(entry);
        ledger.writer.flush().await;
        let json = serde_json::to_value(query.get(id).await.unwrap().unwrap()).unwrap();
        assert_eq!(json["attempts"], count);
        let shown: Vec<serde_json::Value> = (1..=count)
            .map(|n| {
                let last = n == count;
                serde_json::json!({
                    "n": n,
                    "began_ms": f64::from(n) * 100.0,
                    "took_ms": 2.5,
                    "outcome": if last { "ok" } else { "unavailable" },
                    "failure": (!last).then_some("not_sent"),
                    "error": (!last).then_some("connection refused"),
                    "http_status": last.then_some(200),
                    "probe": n == 2,
                })
            })
            .collect();
        assert_eq!(json["attempt_list"], serde_json::Value::from(shown));
    }
    ledger.end().await;
}

#[tokio::test]
async fn errors_of_attempts_are_redacted_and_cut_as_the_call_s_own() {
    let ledger = Ledger::start(Durability::Batched).await;
    let planted =
        "HTTP 401: token known-secret-value of Authorization: Bearer abcdefghijklmnop1234";
    let long = "x".repeat(2040) + "known-secret-value and more";
    let mut list = Attempts::default();
    for error in [planted, planted, &long] {
        list.push(attempt(1, Some(error)));
    }
    let entry = AuditEntry {
        attempts: list.len(),
        attempt_list: list,
        error: Some(planted.to_owned()),
        ..entry("{}")
    };
    let id = entry.id;
    ledger.writer.admit().await.unwrap().record(entry);
    ledger.writer.flush().await;
    let row = ledger.store.audit_call(id).await.unwrap().unwrap();
    let errors: Vec<&str> =
        row.attempt_list.iter().map(|attempt| attempt.error.as_deref().unwrap()).collect();
    assert_eq!(errors[0], row.error.as_deref().unwrap());
    assert!(errors[0].contains("HTTP 401: token ***"), "{}", errors[0]);
    assert_eq!(errors[1], errors[0]);
    assert!(errors[2].starts_with("xxx") && errors[2].len() < 2100, "{}", errors[2]);
    assert!(errors[2].ends_with(&format!("***…[cut, {} bytes]", long.len())), "{}", errors[2]);
    let folder = ledger.folder.path().to_owned();
    for file in std::fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for secret in ["known-secret", "abcdefghijklmnop1234"] {
            let found = memchr::memmem::find(&bytes, secret.as_bytes());
            assert!(found.is_none(), "{secret} is in {}", path.display());
        }
    }
    ledger.end().await;
}

async fn entries(store: &Store) -> Vec<(String, String, serde_json::Value)> {
    let rows = store.audit_entries(0, 1000).await.unwrap().into_iter();
    rows.map(|row| (row.kind, row.actor, serde_json::from_str(&row.detail).unwrap())).collect()
}

fn kinds(entries: &[(String, String, serde_json::Value)]) -> Vec<&str> {
    entries.iter().map(|(kind, _, _)| kind.as_str()).collect()
}

fn begun<'a>(id: CallId, tool: &'a ToolName, server: &'a ServerName) -> CallBegun<'a> {
    CallBegun {
        id,
        started_at: Timestamp::from_millis(5),
        caller: "me",
        session: None,
        entrance: Entrance::Rest,
        view: None,
        tool: "bank__pay",
        upstream_tool: tool,
        server,
        trace_id: None,
        remote: None,
    }
}

/// What a router that was cut off leaves behind is put on record by the next: the calls under way as
/// interrupted, and that something may be missing.
#[tokio::test]
async fn a_router_that_was_cut_off_is_followed_by_a_gap_and_interrupted_calls() {
    let (tool, server) = (ToolName::parse("pay").unwrap(), ServerName::parse("bank").unwrap());
    let ledger = Ledger::start(Durability::Strict).await;
    let slot = ledger.writer.admit().await.unwrap();
    assert!(slot.wants_intent(false) && !slot.wants_intent(true));
    let (ended, open) = (entry("{}"), CallId::from_uuid(Uuid::now_v7()));
    for id in [ended.id, open] {
        slot.intend(begun(id, &tool, &server), PATIENCE).await.unwrap();
    }
    slot.record_durably(ended).await.unwrap();
    assert_eq!(
        kinds(&entries(&ledger.store).await),
        ["audit.started", "call.started", "call.started"]
    );
    // Cut off: the files are as they were then.
    ledger.store.close().await.unwrap();
    let folder = Arc::new(tempfile::tempdir().unwrap());
    for file in ["state.db", "audit.db", "ledger.key"] {
        std::fs::copy(ledger.folder.path().join(file), folder.path().join(file)).unwrap();
    }

    for run in 0..2 {
        let ledger = Ledger::start_in(&folder, Durability::Strict, PATIENCE).await;
        ledger.writer.flush().await;
        let all = entries(&ledger.store).await;
        let expected =
            ["audit.started", "call.started", "call.started", "audit.gap", "audit.started"];
        if run == 0 {
            assert_eq!(kinds(&all), expected);
            assert_eq!(all[3].2["interrupted"], 1);
        } else {
            // The last ended in order: nothing to say, and no second row.
            assert_eq!(kinds(&all)[5..], ["audit.stopped", "audit.started"]);
        }
        assert_eq!(ledger.store.audit_count().await.unwrap(), 2);
        let row = ledger.store.audit_call(open).await.unwrap().unwrap();
        assert_eq!(
            (row.outcome, row.started_at),
            (Outcome::Interrupted, Timestamp::from_millis(5))
        );
        ledger.end().await;
    }
    let checkpoints = crate::store::Checkpoint::read_all(folder.path()).unwrap();
    assert_eq!(checkpoints.len(), 4, "one at each beginning and each end");
    let verified = Store::verify_ledger(folder.path(), &checkpoints).await.unwrap();
    assert!(verified.is_good() && verified.checkpoints == 4, "{verified:?}");
}

/// A call is not sent when its beginning cannot be put on record.
#[tokio::test]
async fn an_intent_that_is_not_committed_is_refused() {
    let (tool, server) = (ToolName::parse("pay").unwrap(), ServerName::parse("bank").unwrap());
    let ledger = Ledger::start_with(Durability::Strict, IMPATIENT).await;
    ledger.writer.flush().await;
    let slot = ledger.writer.admit().await.unwrap();
    ledger.store.close().await.unwrap();
    let id = CallId::from_uuid(Uuid::now_v7());
    assert_eq!(slot.intend(begun(id, &tool, &server), PATIENCE).await, Err(NotRecorded));
    drop(slot);
    ledger.end().await;
}

/// Acts, changes of definitions and transitions of breakers follow their commit into the chain.
#[tokio::test]
async fn what_changes_the_state_is_on_record_in_the_ledger() {
    let ledger = Ledger::start(Durability::Batched).await;
    let event = EventRow {
        at: Timestamp::from_millis(7),
        actor: "ops".to_owned(),
        kind: "server.added".to_owned(),
        subject: "bank".to_owned(),
        detail: r#"{"url":"http://127.0.0.1"}"#.to_owned(),
    };
    ledger.store.append_event(&event).await.unwrap();
    // Nothing else wakes the writer.
    let all = loop {
        let all = entries(&ledger.store).await;
        if all.len() == 2 {
            break all;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(kinds(&all), ["audit.started", "server.added"]);
    assert_eq!((all[1].1.as_str(), &all[1].2["url"]), ("ops", &"http://127.0.0.1".into()));
    ledger.end().await;
}
