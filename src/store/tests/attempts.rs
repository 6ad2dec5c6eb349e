use std::time::Duration;

use proptest::prelude::*;

use super::{alter, call, name, open};
use crate::model::{Failure, Outcome};
use crate::store::{AttemptRow, AuditFilter, CallRow, Store};

const FAILURES: [Option<Failure>; 7] = [
    None,
    Some(Failure::NotSent),
    Some(Failure::Refused),
    Some(Failure::Ambiguous),
    Some(Failure::Timeout),
    Some(Failure::Answered),
    Some(Failure::Cancelled),
];

fn any_attempt() -> impl Strategy<Value = AttemptRow> {
    (
        (0..=i64::MAX.cast_unsigned(), 0_u64..600_000_000),
        proptest::sample::select(Outcome::ALL.to_vec()),
        proptest::sample::select(FAILURES.to_vec()),
        proptest::option::of(".{0,40}"),
        proptest::option::of(any::<u16>()),
        any::<bool>(),
    )
        .prop_map(|((began, took), outcome, failure, error, http_status, probe)| AttemptRow {
            began: Duration::from_micros(began),
            took: Duration::from_micros(took),
            outcome,
            failure,
            error,
            http_status,
            probe,
        })
}

fn attempts(number: u64) -> Vec<AttemptRow> {
    (0..number)
        .map(|n| AttemptRow {
            began: Duration::from_micros(n * 1000 + number),
            took: Duration::from_micros(700 + n),
            outcome: if n + 1 == number { Outcome::Ok } else { Outcome::Unavailable },
            failure: (n + 1 < number).then_some(Failure::NotSent),
            error: (n + 1 < number).then(|| format!("attempt {n} of {number} was refused")),
            http_status: (n % 2 == 0).then_some(503),
            probe: n == 1,
        })
        .collect()
}

fn with_attempts(number: u64, list: Vec<AttemptRow>) -> CallRow {
    CallRow { attempts: list.len().try_into().unwrap(), attempt_list: list, ..call(number) }
}

/// Reads every call by its id and finds it as it was given, number apart.
async fn are_stored(store: &Store, given: &[CallRow]) {
    for row in given {
        let stored = store.audit_call(row.id).await.unwrap().unwrap();
        assert_eq!(stored.attempts as usize, stored.attempt_list.len());
        assert!(stored.hash.is_some());
        assert_eq!(stored, CallRow { seq: stored.seq, hash: stored.hash, ..row.clone() });
    }
}

#[tokio::test]
async fn attempts_come_back_with_their_call_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut given: Vec<CallRow> = Vec::new();
    for number in [1, 2, 5, 0, 3] {
        given.push(with_attempts(number, attempts(number)));
    }
    store.append_calls(&given).await.unwrap();
    are_stored(&store, &given).await;
    drop(store);
    let store = open(folder.path()).await;
    are_stored(&store, &given).await;
    let more = [with_attempts(9, attempts(2))];
    store.append_calls(&more).await.unwrap();
    are_stored(&store, &given).await;
    are_stored(&store, &more).await;
    // A page shows their number only.
    let page = store.audit_page(&AuditFilter::default(), None, 10).await.unwrap();
    assert!(page.rows.iter().all(|row| row.attempt_list.is_empty()));
    assert_eq!(page.rows.iter().map(|row| row.attempts).collect::<Vec<_>>(), [2, 3, 0, 5, 2, 1]);
}

#[tokio::test]
async fn every_number_of_attempts_in_a_commit_is_stored_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    // Statements hold fifty rows: a call's attempts fall before, after and across their ends.
    for (calls, each) in [(49, 1), (50, 1), (51, 1), (10, 5), (17, 3), (33, 3), (100, 1), (1, 101)]
    {
        let given: Vec<CallRow> =
            (1..=calls).map(|number| with_attempts(number, attempts(each))).collect();
        store.append_calls(&given).await.unwrap();
        are_stored(&store, &given).await;
    }
}

#[tokio::test]
async fn a_number_is_not_given_again_while_attempts_have_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store.append_calls(&[with_attempts(1, attempts(2))]).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    alter(&folder.path().join("audit.db"), "delete from calls; delete from payloads").await;
    let store = open(folder.path()).await;
    let next = [with_attempts(2, attempts(1))];
    store.append_calls(&next).await.unwrap();
    are_stored(&store, &next).await;
    assert_eq!(store.audit_after(0, 9).await.unwrap()[0].seq, 2);
}

#[tokio::test]
async fn calls_from_before_attempts_were_kept_have_none() {
    const SECOND: &str = concat!(
        include_str!("../../../migrations/sqlite/audit/0001_calls.sql"),
        include_str!("../../../migrations/sqlite/audit/0002_view.sql"),
        "insert into calls values (1, x'0193e0a4000070008000000000000000', 5, 'me', null, null, null,
            'rest', null, 's__t', 't', 's', null, 'ok', null, null, null, 200, 3, 0, 1, 2, 3, 4, 'v');
         pragma application_id = 1400330596; pragma user_version = 2;"
    );
    let folder = tempfile::tempdir().unwrap();
    alter(&folder.path().join("audit.db"), SECOND).await;
    let store = open(folder.path()).await;
    let old = store.audit_after(0, 1).await.unwrap().remove(0);
    let old = store.audit_call(old.id).await.unwrap().unwrap();
    assert_eq!((old.attempts, old.server, old.attempt_list), (3, Some(name("s")), Vec::new()));
    let new = [with_attempts(2, attempts(2))];
    store.append_calls(&new).await.unwrap();
    are_stored(&store, &new).await;
    assert!(folder.path().join("audit.v2.db").exists(), "a copy of the file as it was");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn attempts_come_out_as_they_went_in(
        lists in proptest::collection::vec(proptest::collection::vec(any_attempt(), 0..7), 0..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let store = open(folder.path()).await;
            let given: Vec<CallRow> =
                (1..).zip(lists).map(|(number, list)| with_attempts(number, list)).collect();
            store.append_calls(&given).await.unwrap();
            are_stored(&store, &given).await;
        });
    }
}
