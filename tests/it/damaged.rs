//! A data folder that is damaged, read-only or of another version: the start says what is the matter and
//! leaves every byte as it was, or mends what may be mended.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use switchyard::cli::demo_upstream::{Options, Upstream};
use switchyard::store::Store;
use tempfile::TempDir;

use crate::support::{Finished, Router, SOON, command, eventually, switchyard, upstream, yaml};

const HI: &str = r#"{"text":"a text that is looked for"}"#;
const CALLS: usize = 120;
const PAGE: usize = 4096;
const NOBODY: u32 = 65_534;

async fn ready(router: &Router) {
    eventually(SOON, "the router is ready", || async { router.is_ready().await.then_some(()) })
        .await;
}

/// A folder in which a router ran that ended in order, or by `kill -9`.
async fn ran(up: &Upstream, killed: bool) -> TempDir {
    let router = Router::start(&yaml(&[("up", up)])).await;
    ready(&router).await;
    for _ in 0..CALLS {
        router.http.call("up__echo", HI).await.expect(200);
    }
    indexed(&router).await;
    if killed {
        return router.kill().await;
    }
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    folder
}

/// How many calls a list of all has.
async fn listed(router: &Router) -> usize {
    let list = router.http.get("/mcp/audit?limit=1000").await.expect(200);
    list.json()["calls"].as_array().unwrap().len()
}

async fn indexed(router: &Router) {
    eventually(SOON + SOON, "all calls are in the index", || async {
        let list = router.http.get("/mcp/audit?limit=1").await.expect(200).json();
        (list["index"]["behind"] == 0 && list["index"]["seq"].as_i64() > Some(1)).then_some(())
    })
    .await;
}

fn copied(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    fs::create_dir(to.path().join("data")).unwrap();
    for part in ["", "data"] {
        for entry in fs::read_dir(from.join(part)).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), to.path().join(part).join(entry.file_name())).unwrap();
            }
        }
    }
    to
}

/// What is in the folder, but for locks and what SQLite shares between processes.
fn bytes(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(data).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_file() && name != "router.lock" && !name.ends_with("-shm")
        {
            let bytes = fs::read(entry.path()).unwrap();
            if !(bytes.is_empty() && name.ends_with("-wal")) {
                found.insert(name, bytes);
            }
        }
    }
    found
}

/// Which files are not the same.
fn differing(one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let names = one.keys().chain(other.keys());
    let differing = names.filter(|name| one.get(*name) != other.get(*name));
    differing.cloned().collect()
}

async fn serve(folder: &Path, arguments: &[&str]) -> Finished {
    let serve = ["serve", "--config", "switchyard.yaml"];
    switchyard(folder, &[&serve, arguments].concat()).await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Page,
    Garbage,
    Truncated,
    Empty,
    Newer,
    Foreign,
}

impl Damage {
    fn of(self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        match self {
            Self::Page => bytes[2 * PAGE..3 * PAGE].fill(0x5a),
            Self::Garbage => bytes = b"this is not a database, but somebody's notes\n".repeat(200),
            Self::Truncated => bytes.truncate(bytes.len() / PAGE / 2 * PAGE),
            Self::Empty => bytes.clear(),
            Self::Newer => bytes[60..64].copy_from_slice(&99_u32.to_be_bytes()),
            Self::Foreign => bytes[68..72].copy_from_slice(b"else"),
        }
        fs::write(path, bytes).unwrap();
    }

    const fn says(self) -> &'static str {
        match self {
            Self::Page | Self::Truncated => "is damaged",
            Self::Garbage => "is damaged (not a database file)",
            Self::Empty => "is damaged (it is empty, and something was in it)",
            Self::Newer => "it has schema 99",
            Self::Foreign => "is a database of another program",
        }
    }
}

const DATABASES: [&str; 2] = ["state.db", "audit.db"];

/// Each of both databases, after an end in order and with a write-ahead log that a killed router left: the start
/// is refused with a documented exit code and text, and no byte is changed.
async fn is_refused_and_left_alone(damage: Damage) {
    let up = upstream(Options::default()).await;
    for killed in [false, true] {
        let ran = ran(&up, killed).await;
        for file in DATABASES {
            let folder = copied(ran.path());
            let data = folder.path().join("data");
            damage.of(&data.join(file));
            if killed {
                // What the log has of the file would mend it: this one has nothing to give.
                let path = data.join(format!("{file}-wal"));
                let mut log = fs::read(&path).unwrap();
                log[..32].fill(0x11);
                fs::write(path, log).unwrap();
            }
            let before = bytes(&data);
            let refused = serve(folder.path(), &[]).await.expect(5);
            let what = format!("{file} {damage:?} {killed}: {}", refused.err);
            assert!(refused.err.contains(damage.says()), "{what}");
            assert!(refused.err.contains(file), "{what}");
            let recipe = refused.err.contains("serve --recover");
            let mendable = ![Damage::Newer, Damage::Foreign].contains(&damage);
            assert_eq!(recipe, mendable, "{what}");
            assert_eq!(differing(&before, &bytes(&data)), [""; 0], "{what}");
            if mendable {
                continue;
            }
            serve(folder.path(), &["--recover"]).await.expect(5);
            assert!(bytes(&data) == before, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrupt_page() {
    is_refused_and_left_alone(Damage::Page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_file() {
    is_refused_and_left_alone(Damage::Garbage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncated_file() {
    is_refused_and_left_alone(Damage::Truncated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zero_length() {
    is_refused_and_left_alone(Damage::Empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_schema() {
    is_refused_and_left_alone(Damage::Newer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_programs_file() {
    is_refused_and_left_alone(Damage::Foreign).await;
}

/// `--recover` keeps the damaged file under another name, begins without what is in it, and says so in the
/// ledger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recover_moves_what_is_damaged_away() {
    let up = upstream(Options::default()).await;
    let ran = ran(&up, false).await;
    for file in DATABASES {
        for damage in [Damage::Page, Damage::Garbage, Damage::Truncated, Damage::Empty] {
            let folder = copied(ran.path());
            let data = folder.path().join("data");
            damage.of(&data.join(file));
            let before = bytes(&data);
            let router = Router::start_with(folder, &["--recover"]).await;
            ready(&router).await;
            let data = router.data_dir();
            router.http.call("up__echo", HI).await.expect(200);
            let calls = listed(&router).await;
            assert_eq!(calls, if file == "audit.db" { 1 } else { CALLS + 1 }, "{damage:?}");
            assert!(router.log().contains(".corrupt-"), "{}", router.log());
            let (code, folder) = router.stop().await;
            assert_eq!(code, 0);
            let after = bytes(&data);
            let moved = format!("{file}.corrupt-");
            let kept: Vec<_> = after.keys().filter(|name| name.starts_with(&moved)).collect();
            assert_eq!(kept.len(), 1, "{:?}", after.keys());
            assert!(after[kept[0]] == before[file], "{file} {damage:?}");
            let (act, ledger) = recorded(&data).await;
            assert_eq!(act["moved_to"], kept[0].as_str(), "{act}");
            assert_eq!(ledger, act);
            switchyard(folder.path(), &["audit", "verify"]).await.expect(0);
            // Not again.
            let router = Router::start_with(folder, &["--recover"]).await;
            ready(&router).await;
            let (code, _folder) = router.stop().await;
            assert_eq!(code, 0);
            let again = bytes(&data).into_keys().filter(|name| name.contains(".corrupt-"));
            assert_eq!(again.count(), after.keys().filter(|n| n.contains(".corrupt-")).count());
        }
    }
}

/// What was recorded of it, as an act and in the ledger.
async fn recorded(data: &Path) -> (Value, Value) {
    let store = Store::open(data).await.unwrap();
    let acts = store.events(100).await.unwrap();
    let act = acts.iter().find(|act| act.kind == "store.recovered").unwrap();
    let entries = store.audit_entries(0, 1_000).await.unwrap();
    let entry = entries.iter().find(|entry| entry.kind == "store.recovered").unwrap();
    let found = [&act.detail, &entry.detail].map(|text| serde_json::from_str(text).unwrap());
    store.close().await.unwrap();
    let [act, entry] = found;
    (act, entry)
}

/// A write-ahead log that was cut: what was committed before the cut is there, nothing after it, and the
/// chain has no hole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncated_wal() {
    let up = upstream(Options::default()).await;
    let ran = ran(&up, true).await;
    let all = ids(&copied(ran.path())).await;
    assert!(all.len() >= CALLS * 9 / 10, "{}", all.len());
    let mut counts = Vec::new();
    for file in DATABASES {
        let wal = format!("{file}-wal");
        let length = fs::metadata(ran.path().join("data").join(&wal)).unwrap().len();
        for keep in [0, 10, 32, length / 3, length / 2, length - 5_000, length - 1] {
            let folder = copied(ran.path());
            let path = folder.path().join("data").join(&wal);
            fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(keep).unwrap();
            let router = Router::start_with(folder, &[]).await;
            ready(&router).await;
            router.http.call("up__echo", HI).await.expect(200);
            let (code, folder) = router.stop().await;
            assert_eq!(code, 0, "{wal} {keep}");
            // 12 where an end was signed that is not there any more.
            let verdict = switchyard(folder.path(), &["audit", "verify"]).await;
            assert!([0, 12].contains(&verdict.code), "{wal} {keep}: {verdict:?}");
            let left = ids(&folder).await;
            let kept = left.len() - 1;
            assert_eq!(left[..kept], all[..kept], "{wal} {keep}");
            if file == "audit.db" {
                counts.push(kept);
            } else {
                assert_eq!(kept, all.len());
            }
        }
    }
    println!("{counts:?} of {}", all.len());
    assert!(counts.is_sorted() && counts.first() < counts.last(), "{counts:?}");
}

/// The calls in the ledger, in their order.
async fn ids(folder: &TempDir) -> Vec<String> {
    let store = Store::open(&folder.path().join("data")).await.unwrap();
    let rows = store.audit_after(0, 10_000).await.unwrap();
    store.close().await.unwrap();
    rows.iter().map(|row| row.id.to_string()).collect()
}

type Harm = Box<dyn Fn(&Path)>;

/// The index is made of the ledger: whatever is the matter with it, it is made anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_index_is_made_anew() {
    let up = upstream(Options::default()).await;
    let [ended, killed] = [ran(&up, false).await, ran(&up, true).await];
    let mut cases: Vec<(&TempDir, Harm)> = vec![
        (&killed, Box::new(|path| cut(&path.with_extension("db-wal"), 2))),
        (&killed, Box::new(|path| cut(&path.with_extension("db-wal"), 1_000_000))),
        (
            &ended,
            Box::new(|path| fs::set_permissions(path, PermissionsExt::from_mode(0o400)).unwrap()),
        ),
        (&ended, Box::new(|path| fs::remove_file(path).unwrap())),
    ];
    for damage in [Damage::Page, Damage::Garbage, Damage::Truncated, Damage::Empty, Damage::Newer] {
        cases.push((&ended, Box::new(move |path| damage.of(path))));
    }
    for (number, (ran, damage)) in cases.into_iter().enumerate() {
        let folder = copied(ran.path());
        let calls = ids(&copied(ran.path())).await.len();
        damage(&folder.path().join("data/audit-index.db"));
        let router = Router::start_with(folder, &[]).await;
        ready(&router).await;
        assert_eq!(listed(&router).await, calls, "case {number}");
        router.http.call("up__echo", HI).await.expect(200);
        indexed(&router).await;
        assert_eq!(listed(&router).await, calls + 1, "case {number}");
        let (code, folder) = router.stop().await;
        assert_eq!(code, 0);
        switchyard(folder.path(), &["audit", "verify"]).await.expect(0);
    }
}

fn cut(path: &Path, divisor: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / divisor).unwrap();
}

/// Makes everything in the folder another user's.
fn give(folder: &Path) {
    for entry in walk(folder) {
        std::os::unix::fs::chown(entry, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// The start as somebody whom modes bind; `None` where that cannot be had.
async fn serve_unprivileged(folder: &Path) -> Option<Finished> {
    if !rustix::process::geteuid().is_root() {
        return Some(serve(folder, &[]).await);
    }
    give(folder);
    let mut command = command(folder);
    command.args(["serve", "--config", "switchyard.yaml"]).uid(NOBODY).gid(NOBODY);
    match command.output().await {
        Ok(output) => Some(Finished {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }),
        Err(error) => {
            eprintln!("SKIPPED: another user cannot run the program here: {error}");
            None
        }
    }
}

/// What is read-only, a part of the data folder or the folder itself, is named, and nothing is changed.
async fn is_refused_read_only(parts: &[&str], mode: u32) {
    let up = upstream(Options::default()).await;
    let ran = ran(&up, false).await;
    for part in parts {
        let folder = copied(ran.path());
        let data = folder.path().join("data");
        let path = data.join(part);
        let before = bytes(&data);
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let Some(refused) = serve_unprivileged(folder.path()).await else { return };
        let refused = refused.expect(2);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        let text = &refused.err;
        assert!(text.contains("could not write") && text.contains("Permission denied"), "{text}");
        assert!(text.contains(part) && text.contains("their modes and their disk"), "{text}");
        assert!(bytes(&data) == before, "{part}: {text}");
    }
}

#[tokio::test]
async fn read_only_file() {
    is_refused_read_only(&DATABASES, 0o400).await;
}

#[tokio::test]
async fn read_only_dir() {
    is_refused_read_only(&[""], 0o500).await;
}

/// A file system that is read-only for everybody.
#[tokio::test]
async fn read_only_file_system() {
    let up = upstream(Options::default()).await;
    let ran = ran(&up, false).await;
    let data = ran.path().join("data");
    let before = bytes(&data);
    let mount = |arguments: &[&str]| {
        let mut mount = std::process::Command::new("mount");
        mount.args(arguments).arg(&data).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success())
    };
    if !mount(&["--bind", data.to_str().unwrap()]) {
        eprintln!("SKIPPED: this test mounts, which needs root and `mount`");
        return;
    }
    let refused = match mount(&["-o", "remount,bind,ro"]) {
        true => Some(serve(ran.path(), &[]).await),
        false => None,
    };
    let _unmounted = std::process::Command::new("umount").arg("-l").arg(&data).status();
    let refused = refused.unwrap().expect(2);
    assert!(refused.err.contains("Read-only file system"), "{}", refused.err);
    assert!(bytes(&data) == before);
}

#[tokio::test]
async fn a_state_that_is_missing_beside_a_ledger_is_told() {
    let router = Router::start("").await;
    ready(&router).await;
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    let router = Router::start_in(folder, "").await;
    ready(&router).await;
    assert!(!router.log().contains("is missing beside"), "{}", router.log());
    let (_, folder) = router.stop().await;
    fs::remove_file(folder.path().join("data/state.db")).unwrap();
    let router = Router::start_in(folder, "").await;
    eventually(SOON, "the log says so", || async {
        router.log().contains("is missing beside `audit.db`").then_some(())
    })
    .await;
    assert_eq!(router.stop().await.0, 0);
}
