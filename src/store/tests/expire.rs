//! Payloads that go before their calls, and copies that go when nothing in them should be left.

use std::fs::{self, File};
use std::time::{Duration, UNIX_EPOCH};

use super::chain::tamper;
use super::upkeep::{DAY, NOW, fill};
use super::*;
use crate::store::Fault;

#[tokio::test]
async fn payloads_go_before_their_calls() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).await.unwrap();
    fill(&store, 100..120, 50).await;
    let calls = store.audit_count().await.unwrap();
    let cutoff = at(113 * DAY);
    let gone = store.expire_payloads(cutoff, at(NOW)).await.unwrap();
    assert_eq!(gone, 13 * 50);
    assert_eq!(store.audit_count().await.unwrap(), calls);
    let found = Store::verify_ledger(folder.path(), &[]).await.unwrap();
    assert!(found.is_good(), "{found:?}");
    assert_eq!(found.erased, 13 * 50);
    let rows = store.audit_after(0, 2_000).await.unwrap();
    for row in rows {
        let kept = store.audit_call(row.id).await.unwrap().unwrap().arguments.is_some();
        assert_eq!(kept, row.started_at >= cutoff, "{}", row.started_at);
    }
    let of_kind = async |kind: &str| {
        let entries = store.audit_entries(0, 1_000).await.unwrap();
        entries.into_iter().filter(|entry| entry.kind == kind).collect::<Vec<_>>()
    };
    // Each step has its own.
    let entries = of_kind("audit.expired").await;
    assert!(entries.len() > 1 && entries.iter().all(|entry| entry.actor == "router"));
    // Nothing more is due, and that makes no entry.
    assert_eq!(store.expire_payloads(cutoff, at(NOW)).await.unwrap(), 0);
    assert_eq!(of_kind("audit.expired").await.len(), entries.len());
    // One that is still to be there is missed.
    let last = store.audit_newest().await.unwrap();
    store.close().await.unwrap();
    tamper(&folder, &format!("delete from payloads where seq = {last}")).await;
    let found = Store::verify_ledger(folder.path(), &[]).await.unwrap();
    assert_eq!(
        found.findings.first().map(|one| (one.seq, one.fault)),
        Some((last, Fault::Payload))
    );
}

#[tokio::test]
async fn copies_in_which_nothing_should_be_left_go() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).await.unwrap();
    let write = |name: &str, day: u64| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create(path).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(day * 86_400)).unwrap();
    };
    write("audit.v3.db", 10);
    write("audit.v4.db", 30);
    write("audit.vx.db", 10);
    write("state.v2.db", 10);
    write("replaced/audit.db", 10);
    write("replaced/state.db", 30);
    let left = |name: &str| folder.path().join(name).exists();
    assert_eq!(store.remove_old_copies(at(20 * DAY)).await.unwrap(), ["audit.v3.db"]);
    assert!(left("audit.v4.db") && left("audit.vx.db") && left("state.v2.db"));
    assert!(left("replaced/audit.db") && left("audit.db"));
    let mut removed = store.remove_old_copies(at(40 * DAY)).await.unwrap();
    removed.sort();
    assert_eq!(removed, ["audit.v4.db", "replaced"]);
    assert!(!left("replaced") && left("audit.db") && left("state.db"));
    store.close().await.unwrap();
}
