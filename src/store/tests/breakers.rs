use std::time::Duration;

use super::{alter, at, name, open, spec};
use crate::model::{
    BreakerEvent, BreakerRecord, BreakerRow, BreakerState, ServerSource, ToolName, TransitionReason,
};
use crate::store::{Store, StoreError};

async fn with_servers(folder: &std::path::Path, servers: &[&str]) -> Store {
    let store = open(folder).await;
    for server in servers {
        let (server, spec) = (name(server), spec("${T}"));
        store.upsert_server(&server, &spec, true, ServerSource::Api, at(1)).await.unwrap();
    }
    store
}

fn row(server: &str, tool: Option<&str>, record: BreakerRecord) -> BreakerRow {
    BreakerRow {
        server: name(server),
        tool: tool.map(|tool| ToolName::parse(tool).unwrap()),
        record,
        last_error: Some("connection refused".to_owned()),
    }
}

fn event(server: &str, number: u32) -> BreakerEvent {
    BreakerEvent {
        id: 0,
        server: name(server),
        tool: None,
        at: at(i64::from(number)),
        from: BreakerState::Closed,
        to: BreakerState::Open,
        reason: TransitionReason::Failures,
        failures: number,
        trips: 1,
        open_for: Some(Duration::from_secs(30)),
        error: Some("connection refused".to_owned()),
        actor: None,
        note: None,
        trace_id: None,
    }
}

/// Every state and reason, with every optional value there and missing.
fn records() -> Vec<BreakerRecord> {
    let reasons = TransitionReason::ALL.into_iter().map(Some).chain([None]);
    reasons
        .zip(BreakerState::ALL.into_iter().cycle())
        .zip(0..)
        .map(|((reason, state), number): (_, u32)| BreakerRecord {
            state,
            failures: if number == 0 { u32::MAX } else { number },
            trips: number * 2,
            generation: if number == 1 { i64::MAX.cast_unsigned() } else { number.into() },
            opened_at: (number % 2 == 0).then(|| at(1_700_000_000_000 + i64::from(number))),
            open_for: (number % 3 == 0).then(|| Duration::from_millis(12_345)),
            last_failure_at: (number % 4 == 0).then(|| at(number.into())),
            reason,
        })
        .collect()
}

#[tokio::test]
async fn breakers_come_back_after_a_restart_as_they_were_saved() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_servers(folder.path(), &["a", "b"]).await;
    let tools = (0..).map(|number| format!("t{number:02}"));
    let mut saved: Vec<BreakerRow> = records()
        .into_iter()
        .zip(tools)
        .map(|(record, tool)| row("b", Some(&tool), record))
        .collect();
    saved.insert(0, row("b", None, BreakerRecord::default()));
    saved.insert(0, BreakerRow { last_error: None, ..row("a", None, BreakerRecord::default()) });
    store.save_breakers(&saved, &[]).await.unwrap();
    drop(store);

    let store = open(folder.path()).await;
    assert_eq!(store.breakers().await.unwrap(), saved);
    // The same key again changes the row, and only that one.
    saved[1].record =
        BreakerRecord { state: BreakerState::Open, failures: 5, ..BreakerRecord::default() };
    saved[1].last_error = None;
    store.save_breakers(&saved[1..2], &[]).await.unwrap();
    assert_eq!(store.breakers().await.unwrap(), saved);
}

#[tokio::test]
async fn an_open_period_is_never_stored_shorter_than_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_servers(folder.path(), &["s"]).await;
    for (period, stored) in [
        (Duration::from_nanos(1), Duration::from_millis(1)),
        (Duration::from_micros(30_000_001), Duration::from_millis(30_001)),
        (Duration::from_secs(30), Duration::from_secs(30)),
        (Duration::MAX, Duration::from_millis(i64::MAX.cast_unsigned())),
    ] {
        let record = BreakerRecord { open_for: Some(period), ..BreakerRecord::default() };
        store.save_breakers(&[row("s", None, record)], &[]).await.unwrap();
        assert_eq!(store.breakers().await.unwrap()[0].record.open_for, Some(stored));
    }
}

#[tokio::test]
async fn the_history_of_breakers_is_read_in_pages_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_servers(folder.path(), &["a", "b"]).await;
    let mut saved = Vec::new();
    for (number, (reason, state)) in
        (0..).zip(TransitionReason::ALL.into_iter().zip(BreakerState::ALL.into_iter().cycle()))
    {
        let mut event = event(if number % 3 == 0 { "a" } else { "b" }, number);
        (event.reason, event.to) = (reason, state);
        if number % 2 == 0 {
            (event.open_for, event.error) = (None, None);
            event.tool = Some(ToolName::parse("t").unwrap());
            (event.actor, event.note) = (Some("laptop".to_owned()), Some("maintenance".to_owned()));
        }
        saved.push(event);
    }
    let (first, second) = saved.split_at(5);
    store.save_breakers(&[], first).await.unwrap();
    store.save_breakers(&[], second).await.unwrap();
    store.save_breakers(&[], &[]).await.unwrap();
    drop(store);

    let store = open(folder.path()).await;
    let all = store.breaker_events(None, 100, None).await.unwrap();
    assert!(all.is_sorted_by(|newer, older| newer.id > older.id));
    let plain = |events: &[BreakerEvent]| -> Vec<BreakerEvent> {
        events.iter().map(|event| BreakerEvent { id: 0, ..event.clone() }).collect()
    };
    saved.reverse();
    assert_eq!(plain(&all), saved);
    let (mut pages, mut before) = (Vec::new(), None);
    loop {
        let page = store.breaker_events(Some(&name("b")), 3, before).await.unwrap();
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        pages.extend(page);
    }
    saved.retain(|event| event.server == name("b"));
    assert_eq!(plain(&pages), saved);
    assert_eq!(store.breaker_events(Some(&name("c")), 3, None).await.unwrap(), []);
    let tool = ToolName::parse("t").unwrap();
    for of in [None, Some(&tool)] {
        let events = store.breaker_transitions(&name("b"), of, 99, None).await.unwrap();
        let wanted = saved.iter().filter(|event| event.tool.as_ref() == of).cloned();
        assert_eq!(plain(&events), wanted.collect::<Vec<_>>(), "{of:?}");
        assert!(events.len() > 1, "{events:?}");
        let older = store.breaker_transitions(&name("b"), of, 1, Some(events[0].id)).await.unwrap();
        assert_eq!(older, &events[1..2]);
    }
}

#[tokio::test]
async fn breakers_go_with_their_server_and_their_history_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_servers(folder.path(), &["a", "b"]).await;
    let (gone, kept) =
        (row("a", None, BreakerRecord::default()), row("b", None, BreakerRecord::default()));
    let rows = [gone.clone(), row("a", Some("t"), BreakerRecord::default()), kept.clone()];
    store.save_breakers(&rows, &[event("a", 1)]).await.unwrap();
    assert!(store.delete_server(&name("a")).await.unwrap());
    assert_eq!(store.breakers().await.unwrap(), std::slice::from_ref(&kept));
    // A transition that was on its way when the server was deleted.
    let late = [gone, BreakerRow { last_error: None, ..kept.clone() }];
    store.save_breakers(&late, &[event("a", 2)]).await.unwrap();
    assert_eq!(
        store.breakers().await.unwrap(),
        &late[1..],
        "the others of the same commit are stored"
    );
    let history = store.breaker_events(Some(&name("a")), 9, None).await.unwrap();
    assert_eq!(history.iter().map(|event| event.failures).collect::<Vec<_>>(), [2, 1]);
}

#[tokio::test]
async fn a_server_s_history_is_trimmed_and_the_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_servers(folder.path(), &["a", "b"]).await;
    store.save_breakers(&[], &[event("b", 1)]).await.unwrap();
    let newest = 10_300;
    // Turn about with another server: neither may depend on which ids it happens to get.
    let events: Vec<BreakerEvent> =
        (1..=newest).flat_map(|number| [event("a", number), event("c", number)]).collect();
    store.save_breakers(&[], &events).await.unwrap();
    for server in ["a", "c"] {
        let kept = store.breaker_events(Some(&name(server)), u32::MAX, None).await.unwrap();
        let numbers: Vec<u32> = kept.iter().map(|event| event.failures).collect();
        assert!((10_000..10_256).contains(&numbers.len()), "{server}: {}", numbers.len());
        let oldest = newest + 1 - u32::try_from(numbers.len()).unwrap();
        assert!(numbers.into_iter().eq((oldest..=newest).rev()), "{server}: the newest, no gap");
    }
    assert_eq!(store.breaker_events(Some(&name("b")), 9, None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_file_without_breakers_gets_them_and_keeps_its_rows() {
    const THIRD: &str = concat!(
        include_str!("../../../migrations/sqlite/state/0001_state.sql"),
        include_str!("../../../migrations/sqlite/state/0002_offers.sql"),
        include_str!("../../../migrations/sqlite/state/0003_session_view.sql"),
        "insert into servers (name, transport, spec, enabled, source, revision, created_at_ms,
            updated_at_ms)
         values ('s', 'http', '{\"transport\":{\"kind\":\"http\",\"url\":\"http://127.0.0.1:1/mcp\"}}', 1, 'api', 1, 5, 6);
         insert into sessions values (zeroblob(32), 'me', '2025-11-25', 'c', '1', null, 1, 2, 'v');
         insert into offers values ('s', 'prompt', 0, 'p', x'7b7d');
         pragma application_id = 1400330596; pragma user_version = 3;"
    );
    let folder = tempfile::tempdir().unwrap();
    alter(&folder.path().join("state.db"), THIRD).await;
    let store = open(folder.path()).await;
    assert_eq!(store.breakers().await.unwrap(), []);
    assert_eq!(store.servers().await.unwrap()[0].updated_at, at(6));
    assert_eq!(store.sessions().await.unwrap()[0].caller, "me");
    assert_eq!(store.offers().await.unwrap()[0].key, "p");
    let saved = row("s", None, BreakerRecord { failures: 3, ..BreakerRecord::default() });
    store.save_breakers(std::slice::from_ref(&saved), &[event("s", 3)]).await.unwrap();
    drop(store);
    let store = open(folder.path()).await;
    assert_eq!(store.breakers().await.unwrap(), [saved]);
    assert_eq!(store.breaker_events(None, 9, None).await.unwrap().len(), 1);
    assert!(folder.path().join("state.v3.db").exists(), "a copy of the file as it was");
}

#[tokio::test]
async fn a_state_that_nobody_knows_is_told_and_not_guessed() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_servers(folder.path(), &["s"]).await;
    store
        .save_breakers(&[row("s", None, BreakerRecord::default())], &[event("s", 1)])
        .await
        .unwrap();
    store.close().await.unwrap();
    drop(store);
    let state = folder.path().join("state.db");
    alter(&state, "update breakers set state = 'ajar'; update breaker_events set reason = 'wind'")
        .await;
    let store = open(folder.path()).await;
    let error = store.breakers().await.unwrap_err();
    assert!(matches!(error, StoreError::BadValue { .. }) && error.to_string().contains("ajar"));
    let error = store.breaker_events(None, 1, None).await.unwrap_err();
    assert!(matches!(error, StoreError::BadValue { .. }) && error.to_string().contains("wind"));
}
