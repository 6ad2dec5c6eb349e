//! The ledger stays within its bounds and can be carried away and put back, under load and whenever
//! the process is killed: afterwards it is what it was or what it was to become, and verifies.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use switchyard::cli::demo_upstream::{Options, Upstream};
use switchyard::model::{CallId, Entrance, Outcome, Timestamp};
use switchyard::store::{CallRow, Store};
use tempfile::TempDir;

use crate::support::{
    Http, Router, SOON, TestApp, command, eventually, switchyard, upstream, yaml,
};

const HI: &str = r#"{"text":"hi"}"#;

/// Calls of long ago, in a data folder that no router has.
async fn fill(data_dir: &Path, count: u64) {
    let store = Store::open(data_dir).await.unwrap();
    let now = switchyard::clock::timestamp();
    for first in (0..count).step_by(500) {
        let calls: Vec<CallRow> = (first..count.min(first + 500))
            .map(|number| {
                let id = CallId::from_uuid(uuid::Uuid::now_v7());
                let at = Timestamp::from_millis(now.as_millis() - 86_400_000);
                CallRow {
                    caller: "filler".into(),
                    tool: "up__echo".into(),
                    arguments: Some(format!("filled-{number:06}").repeat(40)),
                    ..CallRow::new(id, at, Entrance::Rest, Outcome::Ok)
                }
            })
            .collect();
        store.append_calls(&calls).await.unwrap();
    }
    store.close().await.unwrap();
}

/// What `audit verify` says of a data folder; it must be good.
async fn verified(folder: &Path, data: &Path) -> Value {
    let data = data.to_str().unwrap();
    let said = switchyard(folder, &["--data-dir", data, "--json", "audit", "verify"]).await;
    said.expect(0).json()
}

async fn calls(http: &Http, count: usize) {
    for _ in 0..count {
        http.call("up__echo", HI).await.expect(200);
    }
}

async fn ready(router: &Router) {
    eventually(SOON, "the router is ready", || async { router.is_ready().await.then_some(()) })
        .await;
}

async fn started(up: &Upstream, filled: u64) -> Router {
    let folder = tempfile::tempdir().unwrap();
    if filled > 0 {
        fill(&folder.path().join("data"), filled).await;
    }
    let router = Router::start_in(folder, &yaml(&[("up", up)])).await;
    ready(&router).await;
    router
}

fn names(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn the_ledger_forgets_by_itself_what_is_too_old() {
    let up = upstream(Options::default()).await;
    let settings = format!("audit: {{retention: 8s}}\n{}", yaml(&[("up", &up)]));
    let app = TestApp::start(&settings).await.ready().await;
    let id = app.http().call("up__echo", HI).await.expect(200).id();
    app.entry(&id).await;
    eventually(SOON, "the call is forgotten", || async {
        let answer = app.socket().get(&format!("/mcp/audit/{id}")).await;
        (answer.status == 404).then_some(())
    })
    .await;
    eventually(SOON, "what was forgotten is counted", || async {
        let pruned = app.metric("switchyard_audit_pruned_total").await.unwrap();
        (pruned >= 1.0).then_some(())
    })
    .await;
    let data = app.data_dir();
    let folder = app.stop().await;
    assert!(verified(folder.path(), &data).await["base"].as_i64().unwrap() > 0);
}

#[tokio::test]
async fn the_ledger_is_purged_and_erased_by_command() {
    let up = upstream(Options::default()).await;
    let router = started(&up, 3_000).await;
    let data = router.data_dir();
    let last = router.http.call("up__echo", HI).await.expect(200).id();

    let unsaid = router.run(&["audit", "purge", "--before", "1h"]).await.expect(2);
    assert!(unsaid.err.contains("--yes"), "{unsaid:?}");
    let both = ["audit", "erase", "--caller", "filler", "--call", &last, "--yes"];
    router.run(&both).await.expect(2);
    router.run(&["audit", "erase", "--yes"]).await.expect(2);

    let erased = router.run(&["audit", "erase", "--caller", "filler", "--yes"]).await.expect(0);
    assert!(erased.out.contains("3000 calls erased"), "{erased:?}");
    for file in names(&data) {
        let bytes = std::fs::read(data.join(&file)).unwrap_or_default();
        assert!(memchr::memmem::find(&bytes, b"filled-").is_none(), "{file}");
    }
    assert_eq!(verified(router.folder.path(), &data).await["erased"], 3_000);

    // As a recovery leaves it: it may hold what was erased, and is not looked into.
    let corrupt = data.join("audit.db.corrupt-20261129T063000Z");
    std::fs::write(&corrupt, "filled-1").unwrap();
    let left = router.run(&["audit", "erase", "--caller", "filler", "--yes"]).await.expect(1);
    assert!(left.err.contains(corrupt.to_str().unwrap()), "{left:?}");
    let left = router.run(&["--json", "audit", "erase", "--caller", "filler", "--yes"]).await;
    let left = left.expect(1).json();
    assert_eq!((&left["complete"], &left["logs_emptied"]), (&false.into(), &true.into()));
    assert_eq!(left["not_looked_into"], serde_json::json!([corrupt]));
    assert!(corrupt.exists());
    std::fs::remove_file(corrupt).unwrap();
    router.run(&["audit", "erase", "--caller", "filler", "--yes"]).await.expect(0);

    let future = ["audit", "purge", "--before", "2999-01-01", "--yes"];
    let refused = router.run(&future).await.expect(1);
    assert!(refused.err.contains("has not come yet"), "{refused:?}");
    let purged = router.run(&["--json", "audit", "purge", "--before", "1h", "--yes"]).await;
    let purged = purged.expect(0).json();
    assert!(purged["rows"].as_u64().unwrap() >= 3_000, "{purged}");
    let left = verified(router.folder.path(), &data).await;
    assert_eq!(left["base"], purged["through"]);
    router.run(&["audit", "show", &last]).await.expect(0);
    let nobody = "0193e0a4-0000-7000-8000-000000000000";
    router.run(&["audit", "erase", "--call", nobody, "--yes"]).await.expect(1);
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    // Both acts are on record, in the ledger itself.
    let store = Store::open(&data).await.unwrap();
    let entries = store.audit_entries(0, 1_000).await.unwrap();
    for kind in ["audit.erase", "audit.erased", "audit.purge", "audit.pruned"] {
        let entry = entries.iter().find(|entry| entry.kind == kind);
        assert!(entry.is_some_and(|entry| entry.actor == "admin-socket"), "{kind}: {entries:?}");
    }
    drop(folder);
}

#[tokio::test]
async fn a_kill_while_rows_are_removed_leaves_a_good_ledger() {
    let up = upstream(Options::default()).await;
    let mut router = started(&up, 20_000).await;
    let mut bases = Vec::new();
    for round in 0..40 {
        calls(&router.http, 3).await;
        let mut purging = command(router.folder.path())
            .args(["audit", "purge", "--before", "1h", "--yes"])
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(100 + 150 * round.min(30))).await;
        let address = router.address;
        let folder = router.kill().await;
        let _ = purging.wait().await;
        let found = verified(folder.path(), &folder.path().join("data")).await;
        bases.push(found["base"].as_i64().unwrap());
        router = Router::start_again(folder, address).await;
        ready(&router).await;
        // On a busy machine it takes longer until there is something to cut off.
        if round >= 7 && bases.iter().any(|base| *base > 0) {
            break;
        }
    }
    assert!(bases.is_sorted(), "{bases:?}");
    assert!(bases.iter().any(|base| *base > 0), "{bases:?}: nothing was cut off");
    router.run(&["audit", "purge", "--before", "1h", "--yes"]).await.expect(0);
    let found = verified(router.folder.path(), &router.data_dir()).await;
    assert!(found["base"].as_i64().unwrap() >= 20_000, "{found}");
}

/// The 99th percentile of `count` calls, one after the other.
async fn p99(http: &Http, count: usize) -> Duration {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        http.call("up__echo", HI).await.expect(200);
        times.push(began.elapsed());
    }
    times.sort_unstable();
    times[count * 99 / 100 - 1]
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_under_load() {
    let up = upstream(Options::default()).await;
    let router = Arc::new(started(&up, 10_000).await);
    calls(&router.http, 50).await;
    let place = tempfile::tempdir().unwrap();

    // Without and with backups in turn, so that both meet the same machine, and more often where it is
    // busy with other things: what holds calls up does so each time.
    let (mut without, mut with, mut made) = (Vec::new(), Vec::new(), Vec::new());
    // A fifth more, and what two processors add that also build and test meanwhile.
    let bound = |without: &[Duration]| {
        without.iter().min().unwrap().mul_f64(1.2) + Duration::from_millis(50)
    };
    for turn in 0..9 {
        if turn >= 3 && *with.iter().min().unwrap() <= bound(&without) {
            break;
        }
        without.push(p99(&router.http, 300).await);
        let done = Arc::new(AtomicBool::new(false));
        let backups = {
            let (router, done, place) =
                (Arc::clone(&router), Arc::clone(&done), place.path().join("b"));
            let first = made.len();
            tokio::spawn(async move {
                let mut made = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let target = format!("{}{}", place.display(), first + made.len());
                    router.run(&["backup", &target]).await.expect(0);
                    made.push(target);
                }
                made
            })
        };
        with.push(p99(&router.http, 300).await);
        done.store(true, Ordering::Relaxed);
        made.extend(backups.await.unwrap());
    }
    println!("p99 without backups {without:?}, with {with:?}, {} backups", made.len());
    assert!(*with.iter().min().unwrap() <= bound(&without), "{without:?}, {with:?}");

    // Every one is whole, private, and verifies to its end.
    let mut heads = Vec::new();
    for folder in &made {
        let found = verified(place.path(), Path::new(folder)).await;
        heads.push(found["head"].as_i64().unwrap());
        for file in names(Path::new(folder)) {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(Path::new(folder).join(&file)).unwrap().permissions();
            assert_eq!(mode.mode() & 0o777, 0o600, "{file}");
        }
    }
    assert!(heads.is_sorted() && heads.first() < heads.last(), "{heads:?}");
    let there = router.run(&["backup", &made[0]]).await.expect(2);
    assert!(there.err.contains("there already"), "{there:?}");
    let inside = router.data_dir().join("b");
    router.run(&["backup", inside.to_str().unwrap()]).await.expect(2);

    // While it runs nothing is put back; after that, all of it.
    let last = made.last().unwrap();
    let refused = router.run(&["restore", last]).await.expect(4);
    assert!(refused.err.contains("another router"), "{refused:?}");
    let router = Arc::into_inner(router).unwrap();
    let address = router.address;
    calls(&router.http, 20).await;
    let (_, folder) = router.stop().await;
    let later = verified(folder.path(), &folder.path().join("data")).await;
    switchyard(folder.path(), &["restore", last]).await.expect(0);
    let restored = verified(folder.path(), &folder.path().join("data")).await;
    assert_eq!(restored["head"], *heads.last().unwrap());
    assert!(restored["head"].as_i64() < later["head"].as_i64());
    // What was replaced is kept.
    let replaced = folder.path().join("data/replaced");
    assert_eq!(verified(folder.path(), &replaced).await["head"], later["head"]);
    // The restored router goes on.
    let router = Router::start_again(folder, address).await;
    ready(&router).await;
    calls(&router.http, 3).await;
    let (_, folder) = router.stop().await;
    let found = verified(folder.path(), &folder.path().join("data")).await;
    assert!(found["head"].as_i64() > restored["head"].as_i64(), "{found}");
    // And says once that it was restored.
    let data = folder.path().join("data");
    let store = Store::open(&data).await.unwrap();
    let entries = store.audit_entries(0, 10_000).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    assert_eq!(entries.iter().filter(|entry| entry.kind == "store.restored").count(), 1);
    assert!(!data.join("restored").exists());
    // Neither a folder that is no backup nor one that was damaged is put back.
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    switchyard(folder.path(), &["restore", empty]).await.expect(2);
    std::fs::remove_file(Path::new(last).join("ledger.key")).unwrap();
    switchyard(folder.path(), &["restore", last]).await.expect(2);
    let damaged = Path::new(&made[0]).join("audit.db");
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 4096 / 2 * 4096;
    bytes[middle..middle + 4096 * 3].fill(0xff);
    std::fs::write(&damaged, bytes).unwrap();
    switchyard(folder.path(), &["restore", &made[0]]).await.expect(5);
    let same = verified(folder.path(), &folder.path().join("data")).await;
    assert_eq!(same["head"], found["head"]);
}

/// How often it was killed before its end.
async fn killed_after(folder: &Path, arguments: &[&str], time: Duration) -> bool {
    let mut child = command(folder).args(arguments).spawn().unwrap();
    match tokio::time::timeout(time, child.wait()).await {
        Ok(_) => false,
        Err(_) => {
            child.kill().await.unwrap();
            true
        }
    }
}

/// From ten milliseconds to a minute, in steps that grow with the time: on any machine some end within
/// what they are to cut off.
fn longer_and_longer() -> impl Iterator<Item = Duration> {
    let times = std::iter::successors(Some(0.010), |time| Some(time * 1.07 + 0.001));
    times.map(Duration::from_secs_f64).take_while(|time| *time < Duration::from_secs(60))
}

#[tokio::test]
async fn a_kill_during_a_backup_leaves_no_half_one() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fill(&data, 10_000).await;
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("copy");
    let data_text = data.to_str().unwrap();
    let arguments = ["--data-dir", data_text, "backup", target.to_str().unwrap()];
    let (mut killed, mut half) = (0, 0);
    for time in longer_and_longer() {
        if !killed_after(folder.path(), &arguments, time).await {
            break;
        }
        killed += 1;
        half += usize::from(place.path().join(".copy.partial").exists());
        assert!(!target.exists() || verified(place.path(), &target).await["head"] == 10_000);
        if target.exists() {
            break;
        }
    }
    assert!(killed > 2 && half > 0, "{killed} kills, {half} in the middle");
    assert_eq!(verified(place.path(), &target).await["head"], 10_000);
    assert_eq!(names(place.path()), ["copy"], "nothing is left of those that were cut off");
}

#[tokio::test]
async fn a_kill_during_a_restore_leaves_the_old_or_the_new() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(&old.path().join("data"), 4_000).await;
    fill(&new.path().join("data"), 5_000).await;
    let from = new.path().join("copy");
    let source = new.path().join("data");
    let made = ["--data-dir", source.to_str().unwrap(), "backup", from.to_str().unwrap()];
    switchyard(new.path(), &made).await.expect(0);

    let mut seen = Vec::new();
    for time in longer_and_longer() {
        let folder = copied(&old.path().join("data"));
        let data = folder.path().join("data");
        let arguments = ["--data-dir", data.to_str().unwrap(), "restore", from.to_str().unwrap()];
        let killed = killed_after(folder.path(), &arguments, time).await;
        // What a router that starts now would find.
        let cut_off = data.join("restore.ready").exists();
        if cut_off {
            let said = ["--data-dir", data.to_str().unwrap(), "audit", "verify"];
            let said = switchyard(folder.path(), &said).await.expect(2);
            assert!(said.err.contains("was cut off"), "{said:?}");
        }
        Store::open(&data).await.unwrap().close().await.unwrap();
        let head = verified(folder.path(), &data).await["head"].as_i64().unwrap();
        assert!(head == 4_000 || head == 5_000, "{head}");
        assert!(!cut_off || head == 5_000);
        seen.push((head, cut_off));
        assert!(!data.join("restore.new").exists() && !data.join("restore.ready").exists());
        if !killed {
            break;
        }
    }
    assert!(seen.iter().any(|(head, _)| *head == 4_000), "{seen:?}");
    assert_eq!(seen.last().map(|(head, _)| *head), Some(5_000), "{seen:?}");
}

/// A data folder like this one.
fn copied(data: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("data");
    std::fs::create_dir(&to).unwrap();
    for name in names(data) {
        if data.join(&name).is_file() {
            std::fs::copy(data.join(&name), to.join(&name)).unwrap();
        }
    }
    folder
}
