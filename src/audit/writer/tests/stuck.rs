//! A database that takes nothing while calls come at full speed.

use super::*;
use crate::model::{BreakerEvent, BreakerState, TransitionReason};

/// Calls that come in bursts for a while, whatever becomes of them: so many in each five milliseconds.
async fn rush(writer: &AuditWriter, per_burst: usize, bursts: u32, arguments: &str) -> u64 {
    let every = Duration::from_millis(5);
    let began = clock::uptime();
    let mut made = 0;
    for burst in 1..=bursts {
        for _ in 0..per_burst {
            writer.admit().await.expect("every call is served").record(entry(arguments));
            made += 1;
        }
        let due = every * burst;
        tokio::time::sleep(due.saturating_sub(clock::uptime().since(began))).await;
    }
    made
}

async fn unlock(mut other: SqliteConnection) {
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
}

/// What the gaps say is missing: calls, and entries beside them.
async fn missing(store: &Store) -> Vec<(u64, u64)> {
    let all = entries(store).await.into_iter();
    let gaps = all.filter(|(kind, _, _)| kind == "audit.gap");
    let number = |detail: &serde_json::Value, name: &str| detail[name].as_u64().unwrap();
    gaps.map(|(_, _, detail)| (number(&detail, "calls"), number(&detail, "entries"))).collect()
}

/// Three seconds of it do not fit into the queue, nor into what is held: no call is refused all the same, and
/// one entry says exactly what is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batched_serves_at_full_speed_while_the_database_takes_nothing() {
    let large = format!(r#"{{"text":"{}"}}"#, "x".repeat(200 * 1024));
    // Of both, most of the time is waiting.
    let both = [(60, "{}"), (2, large.as_str())].map(|(per_burst, arguments)| async move {
        let ledger = Ledger::start(Durability::Batched).await;
        ledger.writer.flush().await;
        let other = lock(ledger.folder.path()).await;
        // Until the writer has tried; then less than the five seconds after which all that waits is given up.
        let mut made = rush(&ledger.writer, 1, 60, "{}").await;
        made += rush(&ledger.writer, per_burst, 600, arguments).await;
        unlock(other).await;
        ledger.writer.flush().await;
        let (kept, gaps) =
            (ledger.store.audit_count().await.unwrap(), missing(&ledger.store).await);
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        assert!(gaps[0].0 > 0 && kept > 0, "{kept} kept, {gaps:?}");
        assert_eq!(kept + gaps[0].0, made, "{gaps:?}");
        assert!(ledger.metric(&format!("switchyard_audit_dropped_total {}", gaps[0].0)));
        assert_eq!(ledger.writer.shared.held_bytes.load(Ordering::Relaxed), 0);
        ledger.end().await;
    });
    futures_util::future::join_all(both).await;
}

/// A short lock, and calls that all fit: nothing is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fits_is_kept_while_another_process_holds_the_database() {
    let ledger = Ledger::start(Durability::Batched).await;
    ledger.writer.flush().await;
    let other = lock(ledger.folder.path()).await;
    let made = rush(&ledger.writer, 20, 200, "{}").await;
    unlock(other).await;
    ledger.writer.flush().await;
    assert_eq!(ledger.store.audit_count().await.unwrap(), made);
    assert_eq!(missing(&ledger.store).await, []);
    ledger.end().await;
}

/// Large payloads go in several commits.
#[tokio::test]
async fn a_commit_takes_four_mebibytes() {
    let ledger = Ledger::start(Durability::Batched).await;
    ledger.writer.flush().await;
    let large = format!(r#"{{"text":"{}"}}"#, "x".repeat(100 * 1024));
    for _ in 0..200 {
        ledger.writer.admit().await.unwrap().record(entry(&large));
    }
    ledger.writer.flush().await;
    assert_eq!(ledger.store.audit_count().await.unwrap(), 200);
    let text = prometheus::TextEncoder::new().encode_to_string(&ledger.registry.gather()).unwrap();
    let count = "switchyard_audit_commit_duration_seconds_count ";
    let count = text.lines().find_map(|line| line.strip_prefix(count)).unwrap();
    assert!(count.parse::<u32>().unwrap() >= 5, "{count} commits of twenty mebibytes");
    ledger.end().await;
}

/// What is on record beside calls is bounded as well, and what is cut is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_beside_calls_are_not_lost_in_silence() {
    const EVENTS: u32 = 40_000;
    let ledger = Ledger::start_with(Durability::Batched, IMPATIENT).await;
    ledger.writer.flush().await;
    let other = lock(ledger.folder.path()).await;
    // The writer is at it, and hears of nothing meanwhile.
    ledger.writer.admit().await.unwrap().record(entry("{}"));
    for first in (0..EVENTS).step_by(10_000) {
        let events: Vec<_> = (first..first + 10_000).map(event).collect();
        ledger.store.save_breakers(&[], &events).await.unwrap();
    }
    // Each of these is over when the writer has given up once more.
    for _ in 0..3 {
        ledger.writer.admit().await.unwrap().record(entry("{}"));
        ledger.writer.flush().await;
    }
    unlock(other).await;
    let mut found = (0, 0);
    for _ in 0..600 {
        found = transitions(&ledger.store).await;
        if found.0 + found.1 >= u64::from(EVENTS) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(found.0 + found.1, u64::from(EVENTS), "{found:?}");
    assert!(found.1 > 0 && found.0 > 0, "{found:?}");
    assert!(ledger.metric(&format!("switchyard_audit_dropped_entries_total {}", found.1)));
    ledger.end().await;
}

/// How many transitions are on record, and how many entries are said to be missing.
async fn transitions(store: &Store) -> (u64, u64) {
    let (mut after, mut count, mut missing) = (0, 0, 0);
    loop {
        let rows = store.audit_entries(after, 1000).await.unwrap();
        let Some(last) = rows.last() else { return (count, missing) };
        after = last.seq;
        for row in rows {
            count += u64::from(row.kind == "breaker.transition");
            if row.kind == "audit.gap" {
                let detail: serde_json::Value = serde_json::from_str(&row.detail).unwrap();
                missing += detail["entries"].as_u64().unwrap();
            }
        }
    }
}

fn event(number: u32) -> BreakerEvent {
    BreakerEvent {
        id: 0,
        server: ServerName::parse("s").unwrap(),
        tool: None,
        at: Timestamp::from_millis(i64::from(number)),
        from: BreakerState::Closed,
        to: BreakerState::Open,
        reason: TransitionReason::Failures,
        failures: number,
        trips: 1,
        open_for: None,
        error: None,
        actor: None,
        note: None,
        trace_id: None,
    }
}

/// What a router could not put on record when it ended is put there by the next one, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_missing_at_the_end_is_on_record_after_the_next_start() {
    let ledger = Ledger::start_with(Durability::Batched, IMPATIENT).await;
    ledger.writer.flush().await;
    let (folder, writer) = (Arc::clone(&ledger.folder), ledger.writer.clone());
    let other = lock(folder.path()).await;
    for _ in 0..50 {
        writer.admit().await.unwrap().record(entry("{}"));
    }
    ledger.end().await;
    assert_eq!(writer.missing(), 50);
    unlock(other).await;
    let unsaid = folder.path().join("ledger-unsaid.jsonl");
    let left = std::fs::read(&unsaid).unwrap();
    for _ in 0..2 {
        let ledger = Ledger::start_in(&folder, Durability::Batched, PATIENCE).await;
        ledger.writer.flush().await;
        // Nothing was cut off: that would be another gap.
        assert_eq!(missing(&ledger.store).await, [(50, 0)]);
        assert!(!unsaid.exists());
        let writer = ledger.writer.clone();
        ledger.end().await;
        assert_eq!(writer.missing(), 0);
        assert!(Store::verify_ledger(folder.path(), &[]).await.unwrap().is_good());
        // As if it was killed before it could remove the file.
        std::fs::write(&unsaid, &left).unwrap();
    }
}
