//! What is asked of a ledger that has no index: an answer in bounded time, and none that is wrong.

use super::*;
use crate::store::{EntryFilter, EntryRow, WholeStretch};

/// More calls than one statement looks at, the oldest of which is the only one of its kind.
async fn many(folder: &Path) -> Store {
    let store = open(folder).await;
    let mut calls: Vec<CallRow> = (1..=40_000).map(|number| call(number % 99 + 1)).collect();
    calls[0].outcome = Outcome::Interrupted;
    calls[0].error = Some("theneedle".to_owned());
    for some in calls.chunks(5_000) {
        store.append_calls(some).await.unwrap();
    }
    store
}

#[tokio::test]
async fn a_list_without_an_index_comes_in_parts_of_bounded_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = many(folder.path()).await;
    let Backend::Sqlite(sqlite) = &store.backend;
    let interrupted = AuditFilter { outcome: Some(Outcome::Interrupted), ..AuditFilter::default() };
    let text = AuditFilter { text: Some("theneedle".to_owned()), ..AuditFilter::default() };
    for (filter, least) in [(interrupted, 3), (text, 30)] {
        let (mut parts, mut found, mut cursor) = (0, Vec::new(), None);
        loop {
            let page = sqlite.audit_page_within(&filter, cursor, 10, Duration::ZERO).await.unwrap();
            parts += 1;
            found.extend(page.rows.iter().map(|row| row.seq));
            assert_eq!(page.index, IndexState { seq: 0, behind: 40_000 });
            assert!(page.next.is_none() || page.next != cursor, "each part goes on");
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(found, [1], "{filter:?}");
        assert!(parts >= least, "{parts} parts: one statement looked at nearly everything");
    }
    // What is near the end is found in the first part.
    let all = AuditFilter { caller: Some("alice".to_owned()), ..AuditFilter::default() };
    let page = sqlite.audit_page_within(&all, None, 10, Duration::ZERO).await.unwrap();
    assert_eq!((page.rows.len(), page.next), (10, page.rows.last().map(|row| Cursor(row.seq))));
}

/// Calls and what is beside them come in the order of the chain, each once, wherever a part ends.
#[tokio::test]
async fn a_whole_stretch_gives_both_tables_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let note = |number: u64| EntryRow {
        seq: 0,
        at: at(i64::try_from(number).unwrap()),
        kind: if number.is_multiple_of(3) { "server.added" } else { "audit.read" }.to_owned(),
        actor: "ops".to_owned(),
        subject: number.to_string(),
        detail: "{}".to_owned(),
    };
    // Runs of either kind, of lengths from none to many.
    let mut number = 0;
    for (notes, calls) in [(0, 7), (9, 0), (1, 1), (2, 5), (0, 1), (30, 2), (3, 40), (1, 0)] {
        let notes: Vec<EntryRow> = (number..number + notes).map(note).collect();
        let calls: Vec<CallRow> = (number + 1..=number + calls).map(call).collect();
        number += 50;
        store.append_ledger(&notes, &calls).await.unwrap();
    }
    let end = store.audit_end().await.unwrap();
    let servers = EntryFilter { kind: Some("server.*".to_owned()), ..EntryFilter::default() };
    let nobody = AuditFilter { caller: Some("nobody".to_owned()), ..AuditFilter::default() };
    let (all, none) =
        (AuditFilter::default(), EntryFilter { until: Some(at(-1)), ..servers.clone() });
    for (calls, entries) in [
        (&all, &EntryFilter::default()),
        (&all, &servers),
        (&nobody, &EntryFilter::default()),
        (&nobody, &servers),
        (&all, &none),
        (&nobody, &none),
    ] {
        let whole = store.audit_whole_stretch(calls, entries, 0, 1_000).await.unwrap();
        assert_eq!(whole.reached, end);
        let rows = |part: &WholeStretch| {
            let calls = part.calls.iter().map(|call| call.seq);
            let mut rows: Vec<i64> = calls.chain(part.entries.iter().map(|e| e.seq)).collect();
            rows.sort_unstable();
            rows
        };
        for limit in [1, 2, 3, 7, 31] {
            let (mut after, mut found) = (0, Vec::new());
            while after < end {
                let part = store.audit_whole_stretch(calls, entries, after, limit).await.unwrap();
                assert!(part.reached > after && rows(&part).iter().all(|seq| *seq > after));
                assert!(part.calls.len().max(part.entries.len()) <= usize::from(limit));
                assert!(rows(&part).iter().all(|seq| *seq <= part.reached));
                found.extend(rows(&part));
                after = part.reached;
            }
            assert_eq!(found, rows(&whole), "{limit} {calls:?} {entries:?}");
        }
    }
    let rest = store.audit_whole_stretch(&all, &servers, end, 9).await.unwrap();
    assert_eq!((rest.calls.len(), rest.entries.len(), rest.reached), (0, 0, end));
    let whole = store.audit_whole_stretch(&all, &EntryFilter::default(), 0, 1_000).await.unwrap();
    assert_eq!(i64::try_from(whole.calls.len() + whole.entries.len()).unwrap(), end);
}

#[tokio::test]
async fn sums_without_an_index_are_refused_when_they_take_too_long() {
    let folder = tempfile::tempdir().unwrap();
    let store = many(folder.path()).await;
    let Backend::Sqlite(sqlite) = &store.backend;
    let query = StatsQuery {
        by: StatsBy::Server,
        per: StatsPer::Total,
        filter: AuditFilter::default(),
        since: at(0),
        until: at(100_000),
        within: Vec::new(),
    };
    let refused = sqlite.audit_stats_within(&query, Duration::ZERO).await.unwrap_err();
    assert!(matches!(refused, StoreError::NotIndexed { behind: 23_616 }), "{refused}");
    assert_eq!(refused.code().http_status(), 503);
    let minute = Duration::from_mins(1);
    let summed = sqlite.audit_stats_within(&query, minute).await.unwrap();
    assert_eq!(summed.rows.iter().map(|row| row.calls).sum::<u64>(), 40_000);
    store.index_ledger().await.unwrap();
    let indexed = sqlite.audit_stats_within(&query, Duration::ZERO).await.unwrap();
    assert_eq!(indexed.rows, summed.rows);
}

/// Upkeep has a reader of its own.
#[tokio::test]
async fn whoever_asks_from_outside_does_not_hold_up_retention() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store.append_calls(&[call(1), call(2), call(3)]).await.unwrap();
    let Backend::Sqlite(sqlite) = &store.backend;
    let held = sqlite.hold_readers().await;
    let began = crate::clock::uptime();
    assert!(store.audit_oldest().await.unwrap().is_some());
    let pruned = store.prune(PruneUntil::Before(at(3)), "ops", at(1_000)).await.unwrap();
    assert_eq!(pruned.rows, 2);
    let took = crate::clock::uptime().since(began);
    assert!(took < Duration::from_secs(4), "{took:?}");
    drop(held);
}
