//! Calls that end faster than they can be written.

use std::time::Instant;

use super::*;

/// As long as nothing holds up the disk, no row waits longer than what a `kill -9` may cost.
const OLDEST: Duration = Duration::from_millis(200);
const FLOOD: Duration = Duration::from_secs(1);

/// One that costs next to nothing before it is in the queue.
fn bare() -> AuditEntry {
    let mut bare = entry("{}");
    bare.levels = (ArgumentsLevel::None, ResultsLevel::None);
    bare.result = None;
    bare
}

fn committed(metrics: &AuditMetrics) -> usize {
    usize::try_from(metrics.calls_recorded()).unwrap()
}

/// Calls as fast as one thread makes them, for a while. How old the oldest row was that had no commit, each
/// time that was looked at, sorted; and the largest weight of what waited.
#[expect(
    clippy::disallowed_methods,
    reason = "time as it passes for the disk; the task is awaited"
)]
async fn flood(ledger: &Ledger) -> (Vec<Duration>, usize) {
    let before = committed(&ledger.writer.shared.metrics);
    let writer = ledger.writer.clone();
    let ended = Arc::new(Mutex::new(Vec::new()));
    let ends = Arc::clone(&ended);
    let flood = tokio::spawn(async move {
        let began = Instant::now();
        while began.elapsed() < FLOOD {
            let slot = writer.admit().await.expect("every call is served");
            slot.record(bare());
            ends.lock().push(Instant::now());
            tokio::task::yield_now().await;
        }
    });
    let (mut ages, mut most) = (Vec::new(), 0);
    while !flood.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let oldest = committed(&ledger.writer.shared.metrics) - before;
        ages.extend(ended.lock().get(oldest).map(Instant::elapsed));
        most = most.max(ledger.writer.shared.throttle.waiting());
    }
    flood.await.unwrap();
    ledger.writer.flush().await;
    ages.sort();
    assert_eq!(committed(&ledger.writer.shared.metrics) - before, ended.lock().len());
    assert_eq!(ledger.writer.shared.throttle.waiting(), 0);
    (ages, most)
}

/// Nothing but the ledger holds these calls up: not the queue's places, which are four times as many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_waits_long_however_fast_calls_end() {
    let ledger = Ledger::start(Durability::Batched).await;
    ledger.writer.flush().await;
    let mut shown = Vec::new();
    // Where the disk is busy for a while with something else, nobody is kept back: it may take several.
    for _ in 0..20 {
        let (ages, most) = flood(&ledger).await;
        assert!(most >= LARGE, "{most} wait");
        assert!(!ledger.metric("switchyard_audit_throttled_total 0"));
        shown.push((ages[ages.len() / 2], ages[ages.len() - 1], most));
        eprintln!("ages {:?}", shown.last());
        if most <= BATCH + 1 && ages[ages.len() * 9 / 10] <= OLDEST {
            ledger.end().await;
            return;
        }
    }
    panic!("rows wait too long: {shown:?}");
}

/// It is no reason to refuse a call, and none to keep it back for long.
#[tokio::test]
async fn whoever_is_kept_back_is_served() {
    let ledger = Ledger::start(Durability::Batched).await;
    ledger.writer.flush().await;
    let throttle = &ledger.writer.shared.throttle;
    throttle.add(10);
    throttle.limit(10);
    let began = clock::uptime();
    drop(ledger.writer.admit().await.unwrap());
    assert!(clock::uptime().since(began) >= ADMISSION);
    assert!(ledger.metric("switchyard_audit_throttled_total 1"));
    throttle.take(10);
    ledger.end().await;
}

/// What the disk or another process takes is not made shorter by keeping calls back.
#[tokio::test]
async fn nobody_is_kept_back_for_a_database_that_takes_nothing() {
    let ledger = Ledger::start(Durability::Batched).await;
    ledger.writer.flush().await;
    let other = lock(ledger.folder.path()).await;
    let throttle = &ledger.writer.shared.throttle;
    throttle.limit(1);
    ledger.writer.admit().await.unwrap().record(entry("{}"));
    let mut waits = Vec::new();
    for _ in 0..200 {
        let began = clock::uptime();
        ledger.writer.admit().await.unwrap().record(entry("{}"));
        waits.push(clock::uptime().since(began));
    }
    // It takes a moment until it is known.
    let longer = waits.iter().filter(|wait| **wait > Duration::from_millis(20)).count();
    assert!(longer <= 10, "{waits:?}");
    other.close().await.unwrap();
    ledger.writer.flush().await;
    throttle.add(PLACES);
    assert!(throttle.is_on(), "there is a limit again");
    throttle.take(PLACES);
    ledger.end().await;
}
