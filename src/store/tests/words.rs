//! The words of payloads, wherever they are looked for, and that none of them outlasts its call.

#![allow(
    clippy::disallowed_methods,
    reason = "a test awaits its tasks, and measures as a user does"
)]

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
