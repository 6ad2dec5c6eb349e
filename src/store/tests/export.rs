//! Exports that are verified without their ledger: whatever is done to one is found.

use super::chain::{entry, tamper, tried, written};
use super::upkeep::{DAY, NOW, fill};
use super::*;
use crate::store::{Checkpoint, EraseOf, Fault, PruneUntil, Verified};

async fn exported(folder: &Path, from: Option<i64>, to: Option<i64>, payloads: bool) -> String {
    let store = open(folder).await;
    let mut export = store.export_ledger(from, to, payloads, at(NOW)).await.unwrap();
    let mut text = String::new();
    while let Some(chunk) = export.chunk().await.unwrap() {
        text.push_str(&chunk);
    }
    store.close().await.unwrap();
    text
}

fn verify(text: &[u8], folder: &Path, checkpoints: &[Checkpoint]) -> Result<Verified, StoreError> {
    Store::verify_export(&mut &*text, &folder.join("ledger.key"), checkpoints)
}

#[track_caller]
fn good(text: &str, folder: &Path) -> Verified {
    let found = verify(text.as_bytes(), folder, &[]).unwrap();
    assert!(found.is_good(), "{found:?}\n{text}");
    found
}

#[track_caller]
fn found(text: &str, folder: &Path) -> (u8, i64, Fault) {
    let found = verify(text.as_bytes(), folder, &[]).unwrap();
    let first = found.findings.first().unwrap_or_else(|| panic!("nothing was found\n{text}"));
    (found.exit_code(), first.seq, first.fault)
}

#[tokio::test]
async fn an_untouched_export_verifies() {
    let folder = written().await;
    let ledger = Store::verify_ledger(folder.path(), &[]).await.unwrap();
    for payloads in [false, true] {
        let text = exported(folder.path(), None, None, payloads).await;
        let whole = good(&text, folder.path());
        assert_eq!(Verified { checkpoints: 0, ..whole }, ledger);
        assert_eq!(text.lines().count(), 62);
        assert_eq!(text.contains(r#""payload":{"arguments":"{\"n\":"#), payloads);
        let part = exported(folder.path(), Some(10), Some(50), payloads).await;
        let part = good(&part, folder.path());
        assert_eq!((part.base, part.head, part.rows), (9, 50, 41));
    }
    let none = exported(folder.path(), Some(61), None, true).await;
    assert_eq!(good(&none, folder.path()).rows, 0);
    let store = open(folder.path()).await;
    for (from, to) in [(Some(0), None), (None, Some(61)), (Some(50), Some(40)), (Some(62), None)] {
        let refused = store.export_ledger(from, to, true, at(1)).await.unwrap_err();
        assert!(matches!(refused, StoreError::BadRange { first: 1, last: 60, .. }), "{refused}");
    }
}

/// A ledger of few rows: an entry, calls with and without attempts, one of which was erased.
async fn few() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let calls = [tried(2), tried(3), tried(100)];
    store.append_ledger(&[entry(1)], &calls).await.unwrap();
    store.erase(&EraseOf::Call(calls[1].id), "ops", at(NOW)).await.unwrap();
    store.close().await.unwrap();
    folder
}

#[tokio::test]
async fn every_changed_byte_is_found() {
    let folder = few().await;
    for (from, payloads) in [(None, true), (Some(3), false)] {
        let text = exported(folder.path(), from, None, payloads).await;
        good(&text, folder.path());
        let first = text.lines().next().unwrap().len();
        let mut bytes = text.into_bytes();
        for place in 0..bytes.len() {
            for bit in [0x01, 0x20, 0x80] {
                bytes[place] ^= bit;
                match verify(&bytes, folder.path(), &[]) {
                    Ok(found) => assert!(found.exit_code() >= 10, "byte {place} ^ {bit}"),
                    // The first line is none any more, or of a ledger with another key.
                    Err(StoreError::BadExport { .. }) if place <= first => {}
                    Err(error) => panic!("byte {place} ^ {bit}: {error}"),
                }
                bytes[place] ^= bit;
            }
        }
    }
}

#[tokio::test]
async fn lines_that_were_removed_moved_or_added_are_found() {
    let folder = written().await;
    for payloads in [false, true] {
        let text = exported(folder.path(), None, None, payloads).await;
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let seq = |line: usize| i64::try_from(line).unwrap();
        let without = |line: usize| [&lines[..line], &lines[line + 1..]].concat().concat();
        for line in 1..=59 {
            assert_eq!(found(&without(line), folder.path()), (11, seq(line), Fault::Missing));
        }
        assert_eq!(found(&without(60), folder.path()), (12, 60, Fault::Truncated));
        assert_eq!(found(&without(61), folder.path()), (12, 61, Fault::Truncated));
        assert!(matches!(
            verify(without(0).as_bytes(), folder.path(), &[]),
            Err(StoreError::BadExport { .. })
        ));
        for line in 1..60 {
            let mut swapped = lines.clone();
            swapped.swap(line, line + 1);
            let swapped = found(&swapped.concat(), folder.path());
            assert_eq!(swapped, (10, seq(line), Fault::Changed));
            let mut twice = lines.clone();
            twice.insert(line, lines[line]);
            assert_eq!(found(&twice.concat(), folder.path()), (10, seq(line), Fault::Changed));
        }
        // From one place to another far away.
        let mut moved = lines.clone();
        let line = moved.remove(10);
        moved.insert(50, line);
        assert_eq!(found(&moved.concat(), folder.path()).0, 10);
        // Many at once.
        let gap = [&lines[..5], &lines[25..]].concat().concat();
        let gap = verify(gap.as_bytes(), folder.path(), &[]).unwrap();
        assert_eq!((gap.faults, gap.exit_code()), (20, 11), "{gap:?}");
        // What comes after the end.
        let longer = text.clone() + lines[5];
        assert_eq!(found(&longer, folder.path()).0, 10);
        for more in ["\n", "x", "x\n"] {
            let longer = text.clone() + more;
            assert_eq!(found(&longer, folder.path()), (10, 60, Fault::Changed), "{more:?}");
        }
    }
}

/// Lines are looked at in batches, and those by several threads: where they meet, nothing is lost.
#[tokio::test]
async fn faults_are_found_in_each_of_many_lines() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    fill(&store, 0..130, 40).await;
    store.close().await.unwrap();
    drop(store);
    let text = exported(folder.path(), None, None, false).await;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let rows = lines.len() - 2;
    assert!(rows > 5_000, "{rows}");
    let seq = |line: usize| i64::try_from(line).unwrap();
    let whole = good(&text, folder.path());
    assert_eq!((whole.rows, whole.head), (rows as u64, seq(rows)));
    for line in [1, 2_047, 2_048, 4_096, rows - 1] {
        let changed = lines[line].replacen("\"outcome\":\"ok\"", "\"outcome\":\"timeout\"", 1);
        let mut other = lines.clone();
        other[line] = &changed;
        if changed != lines[line] {
            assert_eq!(found(&other.concat(), folder.path()), (10, seq(line), Fault::Changed));
        }
        let mut swapped = lines.clone();
        swapped.swap(line, line + 1);
        assert_eq!(found(&swapped.concat(), folder.path()), (10, seq(line), Fault::Changed));
        let mut shorter = lines.clone();
        shorter.remove(line);
        assert_eq!(found(&shorter.concat(), folder.path()), (11, seq(line), Fault::Missing));
        let cut = lines[..=line].concat();
        assert_eq!(found(&cut, folder.path()), (12, seq(line) + 1, Fault::Truncated));
    }
}

#[tokio::test]
async fn an_end_that_was_cut_is_found_wherever_it_was_cut() {
    let folder = few().await;
    let text = exported(folder.path(), None, None, true).await;
    let first = text.find('\n').unwrap();
    for length in 0..text.len() {
        match verify(&text.as_bytes()[..length], folder.path(), &[]) {
            Ok(found) => assert_eq!((found.exit_code(), length > first), (12, true), "{length}"),
            Err(error) => assert!(length <= first, "{length}: {error}"),
        }
    }
}

/// Whoever has no key cannot make one line follow upon another, or an export of fewer rows.
#[tokio::test]
async fn lines_of_other_exports_do_not_fit() {
    let folder = written().await;
    let text = exported(folder.path(), None, None, true).await;
    let part = exported(folder.path(), Some(10), Some(50), true).await;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let of_part: Vec<&str> = part.split_inclusive('\n').collect();
    assert_eq!(lines[10..51], of_part[1..42], "the same rows");
    for (first, rows, last) in [
        (of_part[0], &lines[1..61], lines[61]),
        (lines[0], &of_part[1..42], of_part[42]),
        (of_part[0], &lines[10..50], of_part[42]),
        (of_part[0], &lines[10..51], lines[61]),
    ] {
        let mixed = [&[first], rows, &[last]].concat().concat();
        assert!(found(&mixed, folder.path()).0 >= 10);
    }
    // The beginning cut off, and the first line made to fit.
    for (from, to) in [("\"from\":10", "\"from\":20"), ("\"to\":50", "\"to\":45")] {
        let head = of_part[0].replace(from, to);
        assert_ne!(head, of_part[0]);
        let rows = if to.contains("from") { &of_part[11..42] } else { &of_part[1..37] };
        let cut = [&[head.as_str()], rows, &[of_part[42]]].concat().concat();
        assert!(found(&cut, folder.path()).0 >= 10, "{to}");
    }
    let other = written().await;
    let refused = verify(text.as_bytes(), other.path(), &[]).unwrap_err();
    assert!(refused.to_string().contains("another key"), "{refused}");
    for none in ["", "{}\n", "not JSON\n", "{\"seq\":1}\n"] {
        let refused = verify(none.as_bytes(), folder.path(), &[]).unwrap_err();
        assert!(matches!(refused, StoreError::BadExport { .. }), "{refused}");
        assert_eq!(refused.exit_code(), 5);
    }
}

/// What retention and erasing took out is no fault, and what others took out is.
#[tokio::test]
async fn what_left_the_ledger_in_order_is_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    fill(&store, 0..30, 40).await;
    let pruned = store.prune(PruneUntil::Before(at(10 * DAY)), "router", at(NOW)).await.unwrap();
    let of = EraseOf::Caller("alice".to_owned());
    let erased = store.erase(&of, "ops", at(NOW)).await.unwrap().payloads;
    assert!(pruned.rows > 0 && erased > 0);
    store.close().await.unwrap();
    drop(store);
    for payloads in [false, true] {
        let text = exported(folder.path(), None, None, payloads).await;
        let whole = good(&text, folder.path());
        assert_eq!((whole.base, whole.erased), (pruned.through, erased));
        let rows = i64::try_from(whole.rows).unwrap();
        assert_eq!(rows, whole.head - whole.base);
        // Also without the entries that say so.
        let part = exported(folder.path(), None, Some(pruned.through + 100), payloads).await;
        assert_eq!(good(&part, folder.path()).rows, 100);
        // Nobody can say it in their place.
        let bare = text.replacen(r#","erased":true"#, "", 1);
        assert_ne!(bare, text);
        let fault = found(&bare, folder.path());
        assert_eq!(fault.0, 10);
        assert_eq!(fault.2, if payloads { Fault::Payload } else { Fault::Changed });
    }
    // Payloads that others took out.
    let kept = fs::read(folder.path().join("audit.db")).unwrap();
    tamper(&folder, "delete from payloads where seq > (select max(seq) - 40 from payloads)").await;
    let text = exported(folder.path(), None, None, true).await;
    assert_eq!(found(&text, folder.path()).2, Fault::Payload);
    fs::write(folder.path().join("audit.db"), kept).unwrap();
    good(&exported(folder.path(), None, None, true).await, folder.path());
}

/// An export is of what stands in the file: what was done to that is found in it.
#[tokio::test]
async fn an_export_of_a_ledger_that_was_changed_says_so() {
    for (sql, code, expected) in [
        ("update calls set caller = 'x' where seq = 35", 10, (35, Fault::Changed)),
        ("update entries set detail = '{}' where seq = 21", 10, (21, Fault::Changed)),
        ("update attempts set error = 'x' where seq = 35", 10, (35, Fault::Changed)),
        ("update payloads set arguments = 'x' where seq = 35", 10, (35, Fault::Payload)),
        ("delete from payloads where seq = 35", 10, (35, Fault::Payload)),
        ("delete from calls where seq = 30", 11, (30, Fault::Missing)),
        ("delete from calls where seq > 50", 12, (51, Fault::Truncated)),
        (
            "update ledger set base_seq = 9, base_hash = (select hash from calls where seq = 9);
             delete from calls where seq < 10; delete from entries where seq < 10;
             delete from payloads where seq < 10; delete from attempts where seq < 10;",
            10,
            (9, Fault::Changed),
        ),
    ] {
        let folder = written().await;
        tamper(&folder, sql).await;
        let text = exported(folder.path(), None, None, true).await;
        let (found_code, seq, fault) = found(&text, folder.path());
        assert_eq!((found_code, (seq, fault)), (code, expected), "{sql}");
    }
}

#[tokio::test]
async fn an_export_is_held_against_what_was_signed_before_it() {
    let folder = written().await;
    let before = exported(folder.path(), None, None, false).await;
    let store = open(folder.path()).await;
    let early = store.checkpoint(at(NOW - 2)).await.unwrap();
    store.append_calls(&(0..10).map(tried).collect::<Vec<_>>()).await.unwrap();
    let late = store.checkpoint(at(NOW - 1)).await.unwrap();
    let after = store.checkpoint(at(NOW + 1)).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let all = [early.clone(), late.clone(), after.clone()];
    let whole = exported(folder.path(), None, None, false).await;
    let held = |text: &str, checkpoints: &[Checkpoint]| {
        let found = verify(text.as_bytes(), folder.path(), checkpoints).unwrap();
        (found.exit_code(), found.checkpoints)
    };
    assert_eq!(held(&whole, &all), (0, 3));
    // That rows came later is no fault; that rows were there before and are not in it is one.
    assert_eq!(held(&before, &[early.clone(), after]), (0, 1));
    assert_eq!(held(&before, &[early.clone(), late]), (12, 2));
    // What nobody signed says nothing.
    let forged = Checkpoint { hash: "00".repeat(32), ..early };
    assert_eq!(held(&whole, &[forged]), (0, 0));
    // A ledger that was replaced by another one of the same router.
    fs::remove_file(folder.path().join("audit.db")).unwrap();
    let other = exported(folder.path(), None, None, false).await;
    assert_eq!(held(&other, &all[..2]).0, 12);
}

/// Rows that go while they are exported leave no export that looks whole.
#[tokio::test]
async fn an_export_does_not_outlive_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    fill(&store, 0..40, 40).await;
    let mut export = store.export_ledger(None, None, true, at(NOW)).await.unwrap();
    assert!(export.chunk().await.unwrap().is_some());
    store.prune(PruneUntil::Before(at(35 * DAY)), "router", at(NOW)).await.unwrap();
    let ended = loop {
        match export.chunk().await {
            Ok(Some(_)) => {}
            ended => break ended,
        }
    };
    assert!(matches!(ended, Err(StoreError::Overtaken)), "{ended:?}");
    store.close().await.unwrap();
}
