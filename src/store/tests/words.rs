//! The words of payloads, wherever they are looked for, and that none of them outlasts its call.

#![allow(
    clippy::disallowed_methods,
    reason = "a test awaits its tasks, and measures as a user does"
)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A call with these payloads.
fn saying(number: u64, arguments: &str, result: Option<&str>) -> CallRow {
    CallRow {
        arguments: Some(arguments.to_owned()),
        result: result.map(str::to_owned),
        ..call(number)
    }
}

async fn found(store: &Store, text: &str) -> Vec<i64> {
    let filter = AuditFilter { text: Some(text.to_owned()), ..AuditFilter::default() };
    pages(store, &filter, 500).await.iter().map(|row| row.seq).collect()
}

/// As `json.dumps` of Python writes it, as serde does, in a string of JSON, and cut.
#[tokio::test]
async fn words_beside_an_escape_are_found_in_the_index_and_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let nested = r#"{"content":[{"type":"text","text":"{\"city\":\"Gen\\u00e8ve\",\"note\":\"alpha\\nbeta\"}"}]}"#;
    let calls = [
        saying(1, r#"{"q":"first line\nsecond line","n":"Z\u00fcrich"}"#, None),
        saying(3, r#"{"na\u00efve":1}"#, Some(nested)),
        saying(5, r#"{"path":"C:\\temp\\new","cut":"one\ttwo\u00…[cut, 90 bytes]"#, None),
        saying(7, r#"{"q":"second"}"#, Some("plain C:\\new text")),
    ];
    store.append_calls(&calls).await.unwrap();
    let expected: [(&str, &[i64]); 10] = [
        ("second", &[4, 1]),
        ("nsecond", &[]),
        ("\"line second\"", &[1]),
        ("zürich", &[1]),
        ("00fcrich", &[]),
        ("naïve", &[2]),
        ("\"genève note alpha beta\"", &[2]),
        ("temp new", &[3]),
        ("two one", &[3]),
        ("\"c new text\"", &[4]),
    ];
    for indexed in [false, true] {
        for (text, seqs) in expected {
            assert_eq!(found(&store, text).await, seqs, "{text}, indexed: {indexed}");
        }
        store.index_ledger().await.unwrap();
    }
}

#[tokio::test]
async fn payloads_with_escapes_are_indexed_also_where_they_are_many_or_large() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    // More bytes than are read at once, and more rows.
    let long = format!(r#"{{"body":"{}\nlastword"}}"#, r"filler \u00e9t\u00e9 ".repeat(250_000));
    let mut calls = vec![saying(1, r#"{"q":"before\nall"}"#, None), saying(3, &long, None)];
    calls.extend((0..1_500).map(|number| {
        let escaped = if number % 2 == 0 { r"\n" } else { " " };
        saying(number * 2 + 1, &format!(r#"{{"q":"of{escaped}many{number}"}}"#), None)
    }));
    store.append_calls(&calls).await.unwrap();
    store.index_ledger().await.unwrap();
    for (text, seqs) in [
        ("before all", [1].as_slice()),
        ("\"filler été filler\"", &[2]),
        ("lastword", &[2]),
        ("many0", &[3]),
        ("many1", &[4]),
        ("many1498 of", &[1501]),
        ("many1499 of", &[1502]),
    ] {
        assert_eq!(found(&store, text).await, seqs, "{text}");
    }
}

async fn alone(folder: &Path, file: &str) -> sqlx::SqliteConnection {
    use sqlx::ConnectOptions as _;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.join(file));
    options.busy_timeout(Duration::from_secs(10)).connect().await.unwrap()
}

async fn mark_all(folder: &Path) {
    let mut index = alone(folder, "audit-index.db").await;
    let marks = "update parts set stale = stale + 1";
    sqlx::query(marks).execute(&mut index).await.unwrap();
}

/// Some that are in the index, each with a word of its own.
async fn indexed(folder: &Path, count: u64) -> Store {
    let store = open(folder).await;
    let said = |number: u64| format!(r#"{{"q":"common word{number}"}}"#);
    let calls: Vec<_> = (0..count).map(|number| saying(number, &said(number), None)).collect();
    for some in calls.chunks(5_000) {
        store.append_calls(some).await.unwrap();
    }
    store.index_ledger().await.unwrap();
    store
}

/// An erasure and the one that follows the ledger make the same part anew, and neither loses a row.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_several_make_anew_is_made_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = indexed(folder.path(), 20_000).await;
    for round in 0..4_u64 {
        mark_all(folder.path()).await;
        let (one, other, third) = (store.clone(), store.clone(), store.clone());
        let id =
            pages(&store, &AuditFilter::default(), 500).await[usize::try_from(round).unwrap()].id;
        let following = tokio::spawn(async move { one.index_ledger().await });
        let beside = tokio::spawn(async move { other.index_ledger().await });
        let erased = third.erase(&EraseOf::Call(id), "ops", at(1)).await.unwrap();
        assert_eq!((erased.payloads, erased.complete), (1, true));
        following.await.unwrap().unwrap();
        beside.await.unwrap().unwrap();
        store.index_ledger().await.unwrap();
        let left = usize::try_from(19_999 - round).unwrap();
        assert_eq!(found(&store, "common").await.len(), left, "{round}");
        assert_eq!(found(&store, "word77").await, [78]);
    }
}

/// Whoever is asked for a text while its part is made anew has an answer, and the index is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_is_found_while_its_part_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let store = indexed(folder.path(), 300).await;
    let (follower, marked) = (store.clone(), folder.path().to_owned());
    let following = tokio::spawn(async move {
        for _ in 0..60 {
            mark_all(&marked).await;
            follower.index_ledger().await.unwrap();
        }
    });
    while !following.is_finished() {
        assert_eq!(found(&store, "word77").await, [78]);
    }
    following.await.unwrap();
    let mut index = alone(folder.path(), "audit-index.db").await;
    let made: i64 = sqlx::query_scalar("select max(generation) from parts")
        .fetch_one(&mut index)
        .await
        .unwrap();
    assert_eq!(made, 60, "it was not thrown away");
}

/// What keeps the index's log from being emptied is said, and the next one does it.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_says_when_the_index_s_log_could_not_be_emptied() {
    let folder = tempfile::tempdir().unwrap();
    let store = indexed(folder.path(), 300).await;
    let mut reader = alone(folder.path(), "audit-index.db").await;
    sqlx::raw_sql("begin; select * from state").execute(&mut reader).await.unwrap();
    let of = EraseOf::Caller("alice".to_owned());
    let erased = store.erase(&of, "ops", at(1)).await.unwrap();
    assert_eq!((erased.payloads, erased.complete), (150, false));
    sqlx::raw_sql("rollback").execute(&mut reader).await.unwrap();
    let again = store.erase(&of, "ops", at(2)).await.unwrap();
    assert_eq!((again.payloads, again.complete), (0, true));
    let log = fs::metadata(folder.path().join("audit-index.db-wal")).unwrap().len();
    assert_eq!(log, 0);
}

/// A reader of the ledger that takes its time holds up neither the writer nor the index.
#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_made_anew_keeps_no_writer_waiting_for_a_reader() {
    let folder = tempfile::tempdir().unwrap();
    let store = indexed(folder.path(), 300).await;
    mark_all(folder.path()).await;
    let mut reader = alone(folder.path(), "audit.db").await;
    sqlx::raw_sql("begin; select * from ledger").execute(&mut reader).await.unwrap();
    store.append_calls(&[call(1)]).await.unwrap();
    let began = std::time::Instant::now();
    let follower = store.clone();
    let following = tokio::spawn(async move { follower.index_ledger().await });
    while !following.is_finished() {
        store.append_calls(&[call(1)]).await.unwrap();
    }
    following.await.unwrap().unwrap();
    // A writer waits for five seconds.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(found(&store, "common").await.len(), 300);
}

/// What is pruned leaves the index, too: its words, its sums and its space.
#[tokio::test]
async fn what_is_pruned_leaves_the_index_and_its_space() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    upkeep::fill(&store, 0..100, 200).await;
    store.index_ledger().await.unwrap();
    let bytes = async || {
        let mut index = alone(folder.path(), "audit-index.db").await;
        sqlx::raw_sql("pragma wal_checkpoint(truncate)").execute(&mut index).await.unwrap();
        store.size_bytes().index.database_bytes
    };
    let holds = |number: u64| {
        let said = format!("{number:08}").repeat(3);
        let file = fs::read(folder.path().join("audit-index.db")).unwrap();
        memchr::memmem::find(&file, said.as_bytes()).is_some()
    };
    let full = bytes().await;
    assert!(full > 5 << 20 && holds(17_999) && holds(18_000), "{full}");
    let day = upkeep::DAY;
    let until = PruneUntil::Before(at(90 * day));
    let pruned = store.prune(until, "ops", at(upkeep::NOW)).await.unwrap();
    assert_eq!(pruned.rows, 90 * 201);
    store.index_ledger().await.unwrap();
    let left = bytes().await;
    assert!(left * 100 <= full * 15, "{left} of {full} bytes for a tenth of the calls");
    assert!(!holds(17_999) && !holds(100) && holds(18_000) && holds(19_999));
    let query = StatsQuery {
        by: StatsBy::Server,
        per: StatsPer::Total,
        filter: AuditFilter::default(),
        since: at(0),
        until: at(200 * day),
        within: Vec::new(),
    };
    let sums = store.audit_stats(&query).await.unwrap();
    assert_eq!(sums.rows.iter().map(|row| row.calls).sum::<u64>(), 2_000);
    // Few of a part: later, or when somebody asks for it.
    let few = PruneUntil::Before(at(91 * day));
    store.prune(few, "router", at(upkeep::NOW)).await.unwrap();
    store.index_ledger().await.unwrap();
    bytes().await;
    assert!(holds(18_000));
    store.index_forget_below(91 * 201).await.unwrap();
    store.index_ledger().await.unwrap();
    bytes().await;
    assert!(!holds(18_000) && holds(18_200));
    assert_eq!(pages(&store, &AuditFilter::default(), 500).await.len(), 1_800);
}

/// Words with letters of any script and size, among them those that the standard library folds otherwise.
fn word() -> impl Strategy<Value = String> {
    proptest::string::string_regex(
        "[\\p{L}\\p{N}]{1,4}|[İıẞßſKµςσΣǅﬁᏸᎠꭰაᲐ\\p{Lu}\\p{Lt}]{1,3}|[a-zé][\u{300}-\u{345}]{0,2}[\\p{L}\\p{M}]",
    )
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A word that is copied from the record finds its call, and the index finds what is found without it.
    #[test]
    fn a_word_finds_itself_in_the_index_and_without_it(
        words in proptest::collection::vec(word(), 1..24),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let store = open(folder.path()).await;
            let calls: Vec<CallRow> = (1..)
                .zip(&words)
                .map(|(n, word)| saying(n * 2 + 1, &json!({ "q": word }).to_string(), None))
                .collect();
            store.append_calls(&calls).await.unwrap();
            let asked: Vec<String> = words
                .iter()
                .flat_map(|word| [word.clone(), word.to_lowercase(), word.to_uppercase()])
                .filter(|word| word.chars().any(char::is_alphabetic))
                .collect();
            let mut without = Vec::new();
            for word in &asked {
                without.push(try_found(&store, word).await);
            }
            store.index_ledger().await.unwrap();
            for (word, without) in asked.iter().zip(without) {
                prop_assert_eq!(&try_found(&store, word).await, &without, "{}", word);
                if let (Some(at), Some(seqs)) = (words.iter().position(|w| w == word), without) {
                    prop_assert!(seqs.contains(&(at as i64 + 1)), "{word}: {seqs:?}");
                }
            }
            Ok(())
        })?;
    }
}

/// `None` for what has no word to look for.
async fn try_found(store: &Store, text: &str) -> Option<Vec<i64>> {
    let filter = AuditFilter { text: Some(text.to_owned()), ..AuditFilter::default() };
    let page = store.audit_page(&filter, None, 500).await.ok()?;
    Some(page.rows.iter().map(|row| row.seq).collect())
}

#[tokio::test]
async fn letters_that_have_no_small_ones_of_their_own_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let calls = [
        saying(1, r#"{"q":"İzmir"}"#, None),
        saying(3, r#"{"q":"Ꭰꭰ"}"#, None),
        saying(5, r#"{"q":"cafe\u0301"}"#, None),
        saying(7, r#"{"q":"IZMIR ZÜRICH"}"#, None),
    ];
    store.append_calls(&calls).await.unwrap();
    for indexed in [false, true] {
        for (text, seqs) in [
            ("İzmir", [1].as_slice()),
            ("İZMIR", &[1]),
            ("izmir", &[4]),
            ("Ꭰꭰ", &[2]),
            ("café", &[]),
            ("cafe\u{301}", &[3]),
            ("CAFE\u{301}", &[3]),
            ("zürich", &[4]),
        ] {
            assert_eq!(found(&store, text).await, seqs, "{text}, indexed: {indexed}");
        }
        store.index_ledger().await.unwrap();
    }
}
