//! A database that cannot be written: locked, on a full disk, on a disk that fails.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;
use crate::support::{fastest, figure};

/// A lock as another process holds it on a database.
pub(super) async fn lock(data: &Path) -> SqliteConnection {
    let mut other = database(data).await;
    sqlx::raw_sql("begin exclusive").execute(&mut other).await.unwrap();
    other
}

pub(super) async fn unlock(mut other: SqliteConnection) {
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
}

pub(super) async fn readiness(http: &Http) -> (u16, String) {
    let answer = http.get("/readyz").await;
    (answer.status, answer.text().to_owned())
}

pub(super) async fn becomes_ready(http: &Http, within: Duration) {
    let began = Instant::now();
    eventually(within, "it is ready again", || async {
        (readiness(http).await.0 == 200).then_some(())
    })
    .await;
    eprintln!("ready after {:?}", began.elapsed());
}

pub(super) async fn becomes_unready(http: &Http) {
    eventually(SOON, "it says that the ledger cannot be written", || async {
        let (status, text) = readiness(http).await;
        (status == 503 && text.contains("ledger")).then_some(())
    })
    .await;
}

/// That every answer is on record or in just one gap, which says how many are not.
pub(super) async fn all_accounted_for(data: &Path, answers: &[Heard]) {
    let rows = rows(data).await;
    let missing = answers.iter().filter(|answer| !rows.contains_key(&answer.id)).count();
    let gaps = entries(data, "audit.gap").await;
    eprintln!("{} calls, {} rows, {missing} missing, {gaps:?}", answers.len(), rows.len());
    assert!(missing > 0, "nothing was let go of");
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(gaps[0]["calls"], missing, "{gaps:?}");
    assert!(gaps[0]["from"].as_str() <= gaps[0]["to"].as_str(), "{gaps:?}");
    assert_eq!(answers.len() - missing, rows.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_by_other_process() {
    let rig = Rig::legacy(&["pay"]).await;
    let began = Instant::now();
    let router = Router::start(&rig.yaml("up", ONCE)).await;
    ready(&router, began).await;
    let data = router.data_dir();
    let callers = Callers::start(&router.http, "up__pay", 4, "short", Duration::from_millis(5));
    let other = lock(&data).await;
    let locked = Instant::now();
    while locked.elapsed() < Duration::from_secs(figure(2, 3) as u64) {
        assert_eq!(readiness(&router.http).await.0, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    unlock(other).await;
    let mut heard = callers.stop().await;
    assert!(heard.iter().all(|answer| answer.success));
    eventually(SOON, "every call is on record", || async {
        let rows = rows(&data).await;
        heard.iter().all(|answer| rows.contains_key(&answer.id)).then_some(())
    })
    .await;
    assert_eq!(entries(&data, "audit.gap").await, Vec::<Value>::new());

    // For longer: calls are answered all the same, and what is missing is said.
    let callers = Callers::start(&router.http, "up__pay", 4, "long", Duration::from_millis(5));
    let other = lock(&data).await;
    let locked = Instant::now();
    becomes_unready(&router.http).await;
    assert_eq!(router.http.get("/livez").await.status, 200);
    let rest = Duration::from_secs(figure(16, 60) as u64).saturating_sub(locked.elapsed());
    tokio::time::sleep(rest).await;
    assert_eq!(readiness(&router.http).await.0, 503);
    unlock(other).await;
    becomes_ready(&router.http, SOON).await;
    heard.extend(callers.stop().await);
    assert!(heard.iter().all(|answer| answer.success), "all were served");
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    all_accounted_for(&data, &heard).await;
    verify(folder.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_by_other_process_in_strict() {
    let rig = Rig::legacy(&["pay", "read"]).await;
    rig.annotate("read", json!({ "readOnlyHint": true }));
    let yaml = format!("audit: {{durability: strict}}\n{}", rig.yaml("up", ONCE));
    let began = Instant::now();
    let router = Router::start(&yaml).await;
    ready(&router, began).await;
    let http = &router.http;
    assert!(call(http, "up__pay", "first").await.unwrap().success);
    let other = lock(&router.data_dir()).await;
    // Dispatched before anybody knows: it errs after five seconds, and says that it ran.
    let began = Instant::now();
    let (read, pay, unknown) = tokio::join!(
        call(http, "up__read", "caught"),
        call(http, "up__pay", "caught"),
        http.call("up__nothing", "{}")
    );
    let (read, pay) = (read.unwrap(), pay.unwrap());
    let took = began.elapsed();
    assert!((4..25).contains(&took.as_secs()), "{took:?}");
    assert_eq!((read.success, read.known.as_deref()), (false, Some("executed")), "{read:?}");
    assert_eq!(rig.counts("read").executions, 1);
    // What changes something is not sent before its beginning is on record.
    assert_eq!((pay.success, pay.known.as_deref()), (false, Some("not_sent")), "{pay:?}");
    assert_eq!(rig.counts("pay").executions, 1);
    // A call that was refused before anything was sent may be made again, and says that it is not on
    // record.
    let told = unknown.json();
    assert_eq!((unknown.status, &told["reason"]), (503, &"not_recorded".into()), "{told}");
    assert_eq!(
        (&told["outcome"], &told["retriable"]),
        (&"not_sent".into(), &true.into()),
        "{told}"
    );
    assert_eq!(told["error_code"], "MCPAuditUnavailableError", "{told}");
    assert!(told["error"].as_str().unwrap().contains("nothing was sent"), "{told}");
    becomes_unready(http).await;
    for tool in ["up__read", "up__pay"] {
        // It does not wait for the five seconds again.
        let bound = Duration::from_secs(2);
        let took = fastest(bound, async || {
            let began = Instant::now();
            let refused = call(http, tool, "refused").await.unwrap();
            assert_eq!(refused.error_code.as_deref(), Some("MCPAuditUnavailableError"));
            assert_eq!(refused.known.as_deref(), Some("not_sent"), "{refused:?}");
            began.elapsed()
        })
        .await;
        assert!(took < bound, "{took:?}");
    }
    assert_eq!((rig.counts("read").requests, rig.counts("pay").requests), (1, 1));
    unlock(other).await;
    becomes_ready(http, SOON).await;
    assert!(call(http, "up__pay", "after").await.unwrap().success);
    let rows = rows(&router.data_dir()).await;
    assert_eq!(rows[&read.id].outcome, "ok", "its row followed");
    assert_eq!(rows[&plain(&unknown.id())].outcome, "refused", "and so did this one");
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    assert_eq!(entries(&folder.path().join("data"), "audit.gap").await, Vec::<Value>::new());
    verify(folder.path()).await;
}

/// Stopped before the database could be written again: the count is not lost, and whoever stopped it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_while_it_cannot_be_written() {
    let rig = Rig::legacy(&["pay"]).await;
    let yaml = rig.yaml("up", ONCE);
    let router = Router::start(&yaml).await;
    ready(&router, Instant::now()).await;
    let data = router.data_dir();
    let other = lock(&data).await;
    let callers = Callers::start(&router.http, "up__pay", 4, "gone", Duration::from_millis(5));
    becomes_unready(&router.http).await;
    let heard = callers.stop().await;
    let (code, folder) = router.stop().await;
    assert_eq!(code, 1);
    let said = format!("{} calls and 0 entries are missing from the ledger", heard.len());
    eventually(SOON, "it says how many are missing", || async {
        let log = std::fs::read_to_string(folder.path().join("stderr.log")).unwrap_or_default();
        log.contains(&said).then_some(())
    })
    .await;
    unlock(other).await;
    let router = Router::start_in(folder, &yaml).await;
    ready(&router, Instant::now()).await;
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    all_accounted_for(&data, &heard).await;
    verify(folder.path()).await;
}

/// A small file system of its own; it goes with this.
pub(super) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, and a word about it, where one may not mount.
    pub(super) fn mount(folder: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "switchyard-test"])
            .arg(folder)
            .stderr(Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(folder.to_owned()));
        }
        eprintln!("SKIPPED: this test mounts a small file system, which needs root and `mount`");
        None
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Writes until so many bytes are left.
    pub(super) fn fill(&self, left: u64) {
        use std::io::Write as _;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(self.filler());
        let mut file = file.unwrap();
        for block in [1 << 20, 1 << 12] {
            let zeros = vec![0; block];
            while self.free() >= left + block as u64 && file.write_all(&zeros).is_ok() {}
        }
    }

    pub(super) fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.0).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    pub(super) fn clear(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: nobody may be left to wait for.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// What `state.db` holds, but for when servers were last asked and answered.
async fn state(data: &Path) -> Vec<String> {
    let options = SqliteConnectOptions::new().filename(data.join("state.db"));
    let mut state = options.busy_timeout(SOON).connect().await.unwrap();
    let verdict: String =
        sqlx::query_scalar("pragma integrity_check").fetch_one(&mut state).await.unwrap();
    assert_eq!(verdict, "ok");
    let mut content: Vec<String> = Vec::new();
    for sql in [
        "select json_group_array(json_array(name, transport, spec, enabled, enabled_override, retired, source,
            revision, created_at_ms, protocol_version, dialect, server_info, instructions)) from servers",
        "select json_group_array(json_array(hex(hash), hex(definition), size_bytes)) from tool_definitions",
        "select json_group_array(json_array(server, name, hex(hash), status, position, first_seen_at_ms))
            from tools",
        "select json_group_array(json_array(id, server, tool, hex(old_hash), hex(new_hash), kind, at_ms, actor))
            from tool_history",
        "select json_group_array(json_array(id, name, hex(hash), scopes, revoked_at_ms)) from keys",
        "select json_group_array(json_array(hex(hash), caller, client_name)) from sessions",
        "select json_group_array(json_array(id, at_ms, actor, kind, subject, detail)) from events",
    ] {
        content.push(sqlx::query_scalar(sql).fetch_one(&mut state).await.unwrap());
    }
    state.close().await.unwrap();
    assert!(content[0].contains("up"), "{content:?}");
    content
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full_audit() {
    let rig = Rig::legacy(&["pay"]).await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let Some(disk) = SmallDisk::mount(&data, "192m") else { return };
    let yaml = rig.yaml("up", ONCE);
    let began = Instant::now();
    let router = Router::start_in(folder, &yaml).await;
    ready(&router, began).await;
    let ballast = data.join("ballast");
    eventually(SOON, "the ballast is made", || async { ballast.exists().then_some(()) }).await;
    let before = state(&data).await;
    let callers = Callers::start(&router.http, "up__pay", 4, "full", Duration::from_millis(2));
    // The ballast is the first that goes; what it frees is taken again.
    eventually(SOON, "the ballast is removed", || async {
        disk.fill(0);
        (!ballast.exists()).then_some(())
    })
    .await;
    eventually(SOON, "it says that the ledger cannot be written", || async {
        disk.fill(0);
        (readiness(&router.http).await.0 == 503).then_some(())
    })
    .await;
    // Longer than anything is kept for.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(readiness(&router.http).await.0, 503);
    disk.clear();
    becomes_ready(&router.http, Duration::from_secs(figure(30, 10) as u64)).await;
    eventually(SOON, "the ballast is back", || async { ballast.exists().then_some(()) }).await;
    let heard = callers.stop().await;
    assert!(heard.iter().all(|answer| answer.success), "all were served");
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    all_accounted_for(&data, &heard).await;
    verify(folder.path()).await;
    assert_eq!(state(&data).await, before, "it was not touched");
    drop(disk);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full_audit_in_strict() {
    let rig = Rig::legacy(&["pay", "read"]).await;
    rig.annotate("read", json!({ "readOnlyHint": true }));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let Some(disk) = SmallDisk::mount(&data, "192m") else { return };
    let yaml = format!("audit: {{durability: strict}}\n{}", rig.yaml("up", ONCE));
    let began = Instant::now();
    let router = Router::start_in(folder, &yaml).await;
    ready(&router, began).await;
    let http = &router.http;
    let mut heard = vec![call(http, "up__read", "first").await.unwrap()];
    assert!(heard[0].success);
    let untouched = state(&data).await;
    // Nearly full: what could not be recorded is not sent. Full: the same.
    for (left, says) in [(8 << 20, "nearly full"), (0, "ledger")] {
        disk.fill(left);
        eventually(SOON + SOON, "it says so", || async {
            let (status, text) = readiness(http).await;
            (status == 503 && text.contains(says)).then_some(())
        })
        .await;
        let before = (rig.counts("read").requests, rig.counts("pay").requests);
        for tool in ["up__read", "up__pay"] {
            let refused = call(http, tool, "refused").await.unwrap();
            assert_eq!(refused.error_code.as_deref(), Some("MCPAuditUnavailableError"));
            assert_eq!(refused.known.as_deref(), Some("not_sent"), "{refused:?}");
        }
        assert_eq!((rig.counts("read").requests, rig.counts("pay").requests), before);
    }
    disk.clear();
    becomes_ready(http, Duration::from_secs(figure(30, 10) as u64)).await;
    for tool in ["up__read", "up__pay"] {
        heard.push(call(http, tool, "after").await.unwrap());
    }
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    let rows = rows(&data).await;
    for answer in &heard {
        assert!(answer.success && rows[&answer.id].outcome == "ok", "{answer:?}");
    }
    assert_eq!(entries(&data, "audit.gap").await, Vec::<Value>::new());
    verify(folder.path()).await;
    assert_eq!(state(&data).await, untouched, "it was not touched");
    drop(disk);
}

/// Makes every sync fail while a file of this name is there.
const FAILING_SYNC: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
static int fails(void) {
    const char *flag = getenv("FAIL_SYNC");
    if (flag && access(flag, F_OK) == 0) { errno = EIO; return 1; }
    return 0;
}
int fsync(int fd) { return fails() ? -1 : (int) syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return fails() ? -1 : (int) syscall(SYS_fdatasync, fd); }
"#;

/// What could not be synced is not said to be on record, and the ledger is left alone from then on.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsync_error() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("sync.c"), folder.path().join("sync.so"));
    std::fs::write(&source, FAILING_SYNC).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).args([&library, &source]);
    if !compiler.status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: this test compiles a few lines of C, which needs `cc`");
        return;
    }
    let flag = folder.path().join("fail");
    let rig = Rig::legacy(&["pay", "read"]).await;
    rig.annotate("read", json!({ "readOnlyHint": true }));
    let yaml = format!("audit: {{durability: strict}}\n{}", rig.yaml("up", ONCE));
    let script = format!("export LD_PRELOAD={} FAIL_SYNC={}", library.display(), flag.display());
    let began = Instant::now();
    let router = Router::start_after(&script, &yaml).await;
    ready(&router, began).await;
    let http = &router.http;
    let before = call(http, "up__pay", "before").await.unwrap();
    assert!(before.success);
    std::fs::write(&flag, "").unwrap();
    let caught = call(http, "up__read", "caught").await.unwrap();
    assert_eq!((caught.success, caught.known.as_deref()), (false, Some("executed")), "{caught:?}");
    becomes_unready(http).await;
    std::fs::remove_file(&flag).unwrap();
    // That syncs succeed again says nothing about those that did not.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(readiness(http).await.0, 503);
    for tool in ["up__read", "up__pay"] {
        let refused = call(http, tool, "refused").await.unwrap();
        assert_eq!(refused.known.as_deref(), Some("not_sent"), "{refused:?}");
    }
    assert_eq!((rig.counts("read").requests, rig.counts("pay").requests), (1, 1));
    let (_, folder) = router.stop().await;
    let began = Instant::now();
    let router = Router::start_in(folder, &yaml).await;
    ready(&router, began).await;
    let after = call(&router.http, "up__pay", "after").await.unwrap();
    assert!(after.success);
    let rows = rows(&router.data_dir()).await;
    assert!(rows.contains_key(&before.id) && rows.contains_key(&after.id));
    assert_eq!(entries(&router.data_dir(), "audit.gap").await.len(), 1);
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    verify(folder.path()).await;
}
