//! The second place for rows: while the database cannot be written nothing is lost, and nothing is there
//! twice when it is back.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::failing::{SmallDisk, becomes_ready, lock, readiness, unlock};
use super::*;
use crate::support::figure;

struct Scene {
    rig: Rig,
    router: Router,
    yaml: String,
    spool: PathBuf,
    elsewhere: TempDir,
}

impl Scene {
    async fn start(durability: &str, folder: TempDir) -> Self {
        let rig = Rig::legacy(&["pay", "read"]).await;
        rig.annotate("read", json!({ "readOnlyHint": true }));
        let elsewhere = tempfile::tempdir().unwrap();
        let yaml = format!(
            "audit: {{durability: {durability}, spool: \"{}\"}}\n{}",
            elsewhere.path().display(),
            rig.yaml("up", ONCE)
        );
        let began = Instant::now();
        let router = Router::start_in(folder, &yaml).await;
        ready(&router, began).await;
        let spool = elsewhere.path().join("ledger-spool.jsonl");
        Self { rig, router, yaml, spool, elsewhere }
    }

    fn waiting(&self) -> u64 {
        std::fs::metadata(&self.spool).map_or(0, |file| file.len())
    }

    async fn spools(&self) {
        eventually(SOON, "rows go to the spool", || async {
            (self.waiting() > 4096).then_some(())
        })
        .await;
        assert_eq!(std::fs::metadata(&self.spool).unwrap().mode() & 0o777, 0o600);
        // It says so a moment after the first row is written.
        eventually(SOON, "it says that there is a spool", || async {
            let (status, text) = readiness(&self.router.http).await;
            assert_eq!(status, 200, "{text}");
            text.contains("spool").then_some(())
        })
        .await;
    }
}

/// That each answered call is on record once (the table sees to that), each with its beginning in
/// strict, and that nothing is said to be missing.
async fn all_are_there(data: &Path, heard: &[Heard], rig: &Rig) -> HashMap<String, Row> {
    let rows = rows(data).await;
    let missing = heard.iter().filter(|answer| !rows.contains_key(&answer.id)).count();
    let marks = entries(data, "audit.spooled").await;
    eprintln!("{} answers, {} rows, {missing} missing, {marks:?}", heard.len(), rows.len());
    assert_eq!(missing, 0);
    assert!(!marks.is_empty());
    for mark in &marks {
        assert_eq!(mark["damaged"], 0, "{mark}");
    }
    // Each part of each spool was read once, one after the other.
    for pair in marks.windows(2) {
        if pair[0]["spool"] == pair[1]["spool"] {
            assert_eq!(pair[0]["to"], pair[1]["from"], "{pair:?}");
        }
    }
    for call in rig.calls("pay") {
        let id = call.body["params"]["_meta"]["dev.switchyard/idempotencyKey"].as_str().unwrap();
        assert!(rows.contains_key(&plain(id)), "{call:?}");
    }
    let mut database = database(data).await;
    let twice: i64 = sqlx::query_scalar(
        "select count(*) from (select subject from entries where kind = 'call.started'
            group by subject having count(*) > 1)",
    )
    .fetch_one(&mut database)
    .await
    .unwrap();
    assert_eq!(twice, 0, "beginnings that are there twice");
    database.close().await.unwrap();
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spool_while_locked() {
    for durability in ["strict", "batched"] {
        let scene = Scene::start(durability, tempfile::tempdir().unwrap()).await;
        let (router, data) = (&scene.router, scene.router.data_dir());
        let callers = Callers::start(&router.http, "up__pay", 8, durability, Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let other = lock(&data).await;
        scene.spools().await;
        tokio::time::sleep(Duration::from_secs(figure(8, 60) as u64)).await;
        assert_eq!(readiness(&router.http).await.0, 200);
        unlock(other).await;
        eventually(SOON, "the spool is read back", || async {
            (scene.waiting() == 0).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let heard = callers.stop().await;
        assert!(heard.iter().all(|answer| answer.success), "all were served");
        let Scene { router, rig, .. } = scene;
        let (code, folder) = router.stop().await;
        assert_eq!(code, 0);
        all_are_there(&data, &heard, &rig).await;
        assert_eq!(entries(&data, "audit.gap").await, Vec::<Value>::new());
        verify(folder.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spool_while_the_disk_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&folder.path().join("data"), "192m") else { return };
    let scene = Scene::start("strict", folder).await;
    let (router, data) = (&scene.router, scene.router.data_dir());
    let callers = Callers::start(&router.http, "up__pay", 4, "full", Duration::from_millis(2));
    eventually(SOON, "rows go to the spool", || async {
        disk.fill(0);
        (scene.waiting() > 4096).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    disk.clear();
    eventually(SOON, "the spool is read back", || async { (scene.waiting() == 0).then_some(()) })
        .await;
    becomes_ready(&router.http, SOON).await;
    let heard = callers.stop().await;
    assert!(heard.iter().all(|answer| answer.success), "all were served");
    let Scene { router, rig, .. } = scene;
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    all_are_there(&data, &heard, &rig).await;
    verify(folder.path()).await;
    drop(disk);
}

/// Killed while rows go to the spool, while they are read back, and at any moment between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spool_and_kill9() {
    let mut dice = Dice::new();
    let mut scene = Scene::start("strict", tempfile::tempdir().unwrap()).await;
    let data = scene.router.data_dir();
    let mut heard = Vec::new();
    let kills = figure(4, 30);
    for time in 0..kills {
        let mark = time.to_string();
        let callers = Callers::start(&scene.router.http, "up__pay", 8, &mark, Duration::ZERO);
        let other = lock(&data).await;
        scene.spools().await;
        tokio::time::sleep(Duration::from_millis(dice.below(500))).await;
        // The lock goes before the router does, or after.
        let early = time % 2 == 0;
        let other = if early {
            unlock(other).await;
            None
        } else {
            Some(other)
        };
        tokio::time::sleep(Duration::from_millis(dice.below(if early { 1500 } else { 300 }))).await;
        let Scene { router, rig, yaml, spool, elsewhere } = scene;
        let folder = router.kill().await;
        heard.extend(callers.gone().await);
        if let Some(other) = other {
            unlock(other).await;
        }
        let began = Instant::now();
        let router = Router::start_in(folder, &yaml).await;
        ready(&router, began).await;
        scene = Scene { rig, router, yaml, spool, elsewhere };
        eventually(SOON, "the spool is read back", || async {
            (scene.waiting() == 0).then_some(())
        })
        .await;
    }
    assert!(heard.iter().all(|answer| answer.success));
    assert!(heard.len() > kills * 8, "{}", heard.len());
    let Scene { router, rig, .. } = scene;
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    let rows = all_are_there(&data, &heard, &rig).await;
    let unheard = rows.len() - heard.len();
    let interrupted = rows.values().filter(|row| row.outcome == "interrupted").count();
    eprintln!("{unheard} calls of which nobody heard, {interrupted} of them interrupted");
    assert!(unheard <= kills * 8 && interrupted <= unheard);
    verify(folder.path()).await;
}
