//! The ledger as a file that is verified where there is no ledger, as an auditor does.

use std::path::Path;

use switchyard::cli::demo_upstream::Options;

use crate::support::{Router, SOON, eventually, switchyard, upstream, yaml};

const HI: &str = r#"{"text":"hi"}"#;

#[tokio::test]
async fn an_export_is_verified_with_the_key_alone() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&yaml(&[("up", &up)])).await;
    eventually(SOON, "the router is ready", || async { router.is_ready().await.then_some(()) })
        .await;
    for _ in 0..40 {
        router.http.call("up__echo", HI).await.expect(200);
    }
    let last = router.http.call("up__fail", r#"{"message":"no"}"#).await.id();
    let here = tempfile::tempdir().unwrap();
    let (file, key) = (here.path().join("ledger.jsonl"), here.path().join("ledger.key"));
    std::fs::copy(router.data_dir().join("ledger.key"), &key).unwrap();
    let [file, key] = [&file, &key].map(|path| path.to_str().unwrap());
    let export = ["audit", "export", "--format", "chain", "--out", file];
    let verify = ["audit", "verify", "--export", file, "--ledger-key", key, "--json"];

    let made = router.run(&export).await.expect(0);
    let plain = std::fs::read_to_string(file).unwrap();
    let rows = plain.lines().count() - 2;
    assert!(rows > 40 && made.err.contains(&format!("{rows} rows in")), "{made:?}");
    let found = switchyard(here.path(), &verify).await.expect(0).json();
    assert_eq!((&found["rows"], &found["base"]), (&rows.into(), &0.into()), "{found}");
    assert!(!plain.contains("\"payload\":") && plain.contains(&last.replace('-', "")), "{plain}");

    // With payloads, also after some were erased and rows removed.
    router.run(&["audit", "erase", "--call", &last, "--yes"]).await.expect(0);
    router.run(&[&export[..], &["--payloads"]].concat()).await.expect(0);
    let found = switchyard(here.path(), &verify).await.expect(0).json();
    assert_eq!(found["erased"], 1, "{found}");
    let whole = std::fs::read_to_string(file).unwrap();
    assert!(whole.contains(r#""payload":{"arguments":"#), "{whole}");
    let (from, to) = ("5", "25");
    router.run(&[&export[..], &["--from", from, "--to", to]].concat()).await.expect(0);
    let found = switchyard(here.path(), &verify).await.expect(0).json();
    assert_eq!((&found["rows"], &found["base"]), (&21.into(), &4.into()), "{found}");
    router.run(&["audit", "purge", "--before", "0s", "--yes"]).await.expect(0);
    router.run(&export).await.expect(0);
    let found = switchyard(here.path(), &verify).await.expect(0).json();
    assert!(found["base"].as_i64() > Some(40), "{found}");

    // Whatever is done to it is found, and said.
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let changed = whole.replacen("up__echo", "up__ecno", 1);
    let missing = [&lines[..9], &lines[10..]].concat().concat();
    let cut = lines[..20].concat();
    for (text, code, says) in [
        (changed, 10, "was changed"),
        (missing, 11, "is missing"),
        (cut, 12, "to the end are missing"),
        (whole.clone(), 0, "good"),
    ] {
        std::fs::write(file, text).unwrap();
        let verdict = switchyard(here.path(), &verify[..6]).await.expect(code);
        assert!(verdict.out.contains(says) && verdict.out.contains(file), "{verdict:?}");
    }
    // The key in the data folder, and standard input.
    router.run(&["audit", "verify", "--export", file]).await.expect(0);
    let piped =
        format!("cat '{file}' | '{}' audit verify --export - --ledger-key '{key}'", program());
    let piped = std::process::Command::new("sh").args(["-c", &piped]).output().unwrap();
    assert!(piped.status.success(), "{piped:?}");

    // What cannot be verified, or asked for.
    std::fs::write(key, [7; 32]).unwrap();
    let other = switchyard(here.path(), &verify).await.expect(5);
    assert!(other.err.contains("another key"), "{other:?}");
    router.run(&["audit", "verify", "--export", "nowhere.jsonl"]).await.expect(2);
    let no_export = router.data_dir().join("ledger.key");
    let none = ["audit", "verify", "--export", no_export.to_str().unwrap()];
    router.run(&none).await.expect(5);
    for wrong in [
        ["--server", "up"].as_slice(),
        &["--since", "1h"],
        &["--from", "1000"],
        &["--from", "50", "--to", "10"],
    ] {
        let refused = router.run(&[&export[..], wrong].concat()).await;
        assert!([1, 2].contains(&refused.code), "{wrong:?}: {refused:?}");
        assert_eq!(std::fs::read_to_string(file).unwrap(), whole, "{wrong:?}");
    }
    router.run(&["audit", "export", "--from", "1"]).await.expect(2);
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    assert_eq!(names(here.path()), ["ledger.jsonl", "ledger.key"]);
    drop(folder);
}

fn program() -> String {
    std::env::var("SWITCHYARD_BIN").unwrap_or_else(|_unset| crate::support::PROGRAM.to_owned())
}

fn names(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
