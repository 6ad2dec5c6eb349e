//! Calls at full speed, clients that come anew, and small disks, while the data folder cannot be written.

use switchyard::store::Checkpoint;

use super::failing::{
    SmallDisk, all_accounted_for, becomes_ready, becomes_unready, lock, readiness, unlock,
};
use super::*;
use crate::support::Legacy;

/// Calls with large arguments would fill what may be held within seconds: none is refused all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_by_other_process_with_large_calls() {
    let rig = Rig::legacy(&["pay"]).await;
    let yaml = format!("audit: {{arguments: full}}\n{}", rig.yaml("up", ONCE));
    let began = Instant::now();
    let router = Router::start(&yaml).await;
    ready(&router, began).await;
    let data = router.data_dir();
    let other = lock(&data).await;
    let large = "x".repeat(200 * 1024);
    let callers = Callers::start(&router.http, "up__pay", 8, &large, Duration::ZERO);
    // More than 64 MiB of them; on a busy machine until all that waits was given up once.
    let began = Instant::now();
    eventually(SOON, "they would not fit", || async {
        let many = callers.answers.load(Ordering::Relaxed) >= 400;
        (many || began.elapsed() > Duration::from_secs(15)).then_some(())
    })
    .await;
    unlock(other).await;
    becomes_ready(&router.http, SOON).await;
    let heard = callers.stop().await;
    let refused = heard.iter().filter(|answer| !answer.success).count();
    assert_eq!(refused, 0, "of {}", heard.len());
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    all_accounted_for(&data, &heard).await;
    verify(folder.path()).await;
}

/// Both clients' sessions are there when the router is killed and started again.
async fn are_remembered(router: Router, yaml: &str, clients: [Legacy; 2]) {
    let folder = router.kill().await;
    let began = Instant::now();
    let router = Router::start_in(folder, yaml).await;
    ready(&router, began).await;
    for client in clients {
        let client = Legacy { http: router.http.clone(), ..client };
        client.request("ping", "{}").await.expect(200);
    }
    assert_eq!(router.stop().await.0, 0);
}

async fn calls(client: &Legacy) {
    let answer = client.call("up__pay", r#"{"key":"new"}"#).await.expect(200).json();
    assert!(answer["error"].is_null(), "{answer}");
}

/// Clients that open a session meanwhile are served, and their sessions are stored later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legacy_clients_are_served_while_the_state_is_locked() {
    let rig = Rig::legacy(&["pay"]).await;
    let yaml = rig.yaml("up", ONCE);
    let began = Instant::now();
    let router = Router::start(&yaml).await;
    ready(&router, began).await;
    let options = SqliteConnectOptions::new().filename(router.data_dir().join("state.db"));
    let mut other = options.busy_timeout(SOON).connect().await.unwrap();
    sqlx::raw_sql("begin exclusive").execute(&mut other).await.unwrap();
    let first = Legacy::connect(&router.http).await;
    calls(&first).await;
    // For longer than a commit waits for the lock.
    eventually(SOON, "it says that the session is not stored", || async {
        router.log().contains("sessions could not be stored").then_some(())
    })
    .await;
    unlock(other).await;
    // What was not stored before goes with this one.
    let second = Legacy::connect(&router.http).await;
    are_remembered(router, &yaml, [first, second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legacy_clients_are_served_on_a_full_disk() {
    let rig = Rig::legacy(&["pay"]).await;
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&folder.path().join("data"), "48m") else { return };
    let yaml = rig.yaml("up", ONCE);
    let began = Instant::now();
    let router = Router::start_in(folder, &yaml).await;
    ready(&router, began).await;
    let callers = Callers::start(&router.http, "up__pay", 4, "full", Duration::from_millis(2));
    eventually(SOON, "it says that the ledger cannot be written", || async {
        disk.fill(0);
        (readiness(&router.http).await.0 == 503).then_some(())
    })
    .await;
    let first = Legacy::connect(&router.http).await;
    calls(&first).await;
    assert!(callers.stop().await.iter().all(|answer| answer.success), "all were served");
    disk.clear();
    becomes_ready(&router.http, SOON).await;
    let second = Legacy::connect(&router.http).await;
    are_remembered(router, &yaml, [first, second]).await;
    drop(disk);
}

/// On a disk of any size `strict` takes calls while there is room, refuses them when there is none, and takes
/// them again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full_audit_on_small_disks() {
    for size in ["24m", "48m", "128m"] {
        let rig = Rig::legacy(&["pay"]).await;
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let Some(disk) = SmallDisk::mount(&data, size) else { return };
        let yaml = format!("audit: {{durability: strict}}\n{}", rig.yaml("up", ONCE));
        let began = Instant::now();
        let router = Router::start_in(folder, &yaml).await;
        ready(&router, began).await;
        let http = &router.http;
        let mut heard = vec![call(http, "up__pay", "first").await.unwrap()];
        let ballast = data.join("ballast");
        eventually(SOON, "the ballast is made", || async { ballast.exists().then_some(()) }).await;
        disk.fill(0);
        becomes_unready(http).await;
        let refused = call(http, "up__pay", "refused").await.unwrap();
        assert_eq!(refused.known.as_deref(), Some("not_sent"), "{size}: {refused:?}");
        assert_eq!(rig.counts("pay").requests, 1, "{size}");
        disk.clear();
        becomes_ready(http, SOON).await;
        heard.push(call(http, "up__pay", "after").await.unwrap());
        let (code, folder) = router.stop().await;
        assert_eq!(code, 0);
        let rows = rows(&data).await;
        for answer in &heard {
            assert!(answer.success && rows[&answer.id].outcome == "ok", "{size}: {answer:?}");
        }
        verify(folder.path()).await;
        drop(disk);
    }
}

/// An older ledger that is put in the place of the newer one: the end was signed when the router began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_within_the_first_minute_is_found() {
    let rig = Rig::legacy(&["pay"]).await;
    let yaml = rig.yaml("up", ONCE);
    let began = Instant::now();
    let router = Router::start(&yaml).await;
    ready(&router, began).await;
    assert!(call(&router.http, "up__pay", "old").await.unwrap().success);
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    let data = folder.path().join("data");
    let signed = Checkpoint::read_all(&data).unwrap().len();
    let old = folder.path().join("old.db");
    std::fs::copy(data.join("audit.db"), &old).unwrap();

    let began = Instant::now();
    let router = Router::start_in(folder, &yaml).await;
    ready(&router, began).await;
    let new = call(&router.http, "up__pay", "new").await.unwrap();
    eventually(SOON, "the call is on record, and the beginning signed", || async {
        let known = rows(&data).await.contains_key(&new.id);
        (known && Checkpoint::read_all(&data).unwrap().len() > signed).then_some(())
    })
    .await;
    let folder = router.kill().await;
    verify(folder.path()).await;
    for log in ["audit.db-wal", "audit.db-shm"] {
        let _gone = std::fs::remove_file(data.join(log));
    }
    std::fs::copy(&old, data.join("audit.db")).unwrap();
    switchyard(folder.path(), &["audit", "verify"]).await.expect(12);
}
