//! A text that very many calls of a part have, of few callers and of many.

use super::*;

/// More than are read of a part before it is known which of them are wanted.
const CALLS: u64 = 20_000;

/// One of few calls, of some that are many in one chunk and few in the next, or of nearly all.
const fn caller(number: u64) -> &'static str {
    match number {
        n if n % 199 == 7 => "rare",
        n if n % 100 == 3 && n < 8_192 => "some",
        n if n % 200 == 3 && n < 16_384 => "some",
        n if n % 14 == 3 && n >= 16_384 => "some",
        _ => "others",
    }
}

const fn words(number: u64) -> &'static str {
    match number % 16 {
        0 => "one Common thing",
        1..15 => "common words here",
        _ => "here words are uncommon",
    }
}

fn said(number: u64) -> CallRow {
    let words = words(number);
    CallRow {
        caller: caller(number).into(),
        error: number.is_multiple_of(3).then(|| words.to_owned()),
        arguments: (number % 3 == 1).then(|| format!("{{\"q\":\"{words}\"}}")),
        result: (number % 3 == 2).then(|| words.to_owned()),
        ..call(number)
    }
}

#[tokio::test]
async fn a_text_that_many_calls_have_is_found_of_each_caller_and_on_each_page() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let rows: Vec<CallRow> = (0..CALLS).map(said).collect();
    for rows in rows.chunks(2_000) {
        store.append_calls(rows).await.unwrap();
    }
    store.index_ledger().await.unwrap();
    for (of, count, limits) in
        [("rare", 101, &[30, 900][..]), ("some", 379, &[30, 900]), ("others", 19_520, &[900])]
    {
        let mine = || (0..CALLS).rev().filter(|number| caller(*number) == of);
        assert_eq!(mine().count(), count, "{of}");
        // Each text, and a part of every text that has it.
        for (text, part) in [
            ("common", "ommon "),
            ("\"words here\"", "words here"),
            ("comm*", "ommon "),
            ("thing", "thing"),
            ("words nowhere", "nowhere"),
        ] {
            let hits = mine().filter(|number| words(*number).contains(part));
            let expected: Vec<i64> = hits.map(|number| number.cast_signed() + 1).collect();
            let filter = AuditFilter {
                caller: Some(of.to_owned()),
                text: Some(text.to_owned()),
                ..AuditFilter::default()
            };
            for limit in limits {
                let found = pages(&store, &filter, *limit).await;
                let found: Vec<i64> = found.iter().map(|row| row.seq).collect();
                assert_eq!(found, expected, "{text} of {of}, {limit} a page");
            }
        }
    }
}
