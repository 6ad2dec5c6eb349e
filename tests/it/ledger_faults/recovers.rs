//! A full disk that mends itself: what retention may remove makes the room that is needed, and nobody
//! lends a hand.

use switchyard::model::{CallId, Entrance, Outcome, Timestamp};
use switchyard::store::{CallRow, Store};

use super::failing::{SmallDisk, becomes_unready, lock, readiness, unlock};
use super::*;
use crate::support::figure;

/// How old the old rows are: so old that age is looked at once an hour only, and when the disk is full.
const OLD: Duration = Duration::from_secs(100 * 86_400);
/// Their size in mebibytes: more than a ballast needs to be made.
const SIZE: usize = 112;
/// When they become too old, after the start: the first look is over by then.
const DUE: Duration = Duration::from_secs(16);

/// Old rows with a payload of 64 KiB each; gives when they are from.
async fn fill(data: &Path) -> Timestamp {
    let store = Store::open(data).await.unwrap();
    let at = switchyard::clock::timestamp().minus(OLD);
    let mut dice = Dice::new();
    for _ in 0..SIZE {
        let calls: Vec<_> = (0..16)
            .map(|_| CallRow {
                caller: "old".into(),
                tool: "up__pay".into(),
                arguments: Some(format!("{:x}", dice.below(u64::MAX)).repeat(4_096)),
                ..CallRow::new(
                    CallId::from_uuid(uuid::Uuid::now_v7()),
                    at,
                    Entrance::Rest,
                    Outcome::Ok,
                )
            })
            .collect();
        store.append_calls(&calls).await.unwrap();
    }
    store.close().await.unwrap();
    at
}

/// With `locked`, another program keeps the database for so long that rows are lost.
async fn recovers(durability: &str, locked: bool) {
    let rig = Rig::legacy(&["pay"]).await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let Some(disk) = SmallDisk::mount(&data, "288m") else { return };
    let at = fill(&data).await;
    let age = switchyard::clock::timestamp().as_millis() - at.as_millis();
    let keep = age / 1_000 + i64::try_from(DUE.as_secs()).unwrap();
    let began = Instant::now();
    let yaml = format!(
        "audit: {{durability: {durability}, intent: off, retention: {keep}s}}\n{}",
        rig.yaml("up", ONCE)
    );
    let router = Router::start_in(folder, &yaml).await;
    ready(&router, began).await;
    let http = &router.http;
    let ballast = data.join("ballast");
    eventually(SOON, "the ballast is made", || async { ballast.exists().then_some(()) }).await;
    let mut heard = vec![call(http, "up__pay", "first").await.unwrap()];
    tokio::time::sleep((DUE + Duration::from_secs(1)).saturating_sub(began.elapsed())).await;
    // Too old by now, and nobody has looked since.
    assert_eq!(entries(&data, "audit.pruned").await, Vec::<Value>::new());

    let other = if locked { Some(lock(&data).await) } else { None };
    let callers = Callers::start(http, "up__pay", 4, "full", Duration::from_millis(5));
    disk.fill(0);
    if let Some(other) = other {
        becomes_unready(http).await;
        // Longer than anything is kept for.
        tokio::time::sleep(Duration::from_secs(9)).await;
        unlock(other).await;
    } else {
        eventually(Duration::from_secs(20), "the ballast is removed", || async {
            (!ballast.exists()).then_some(())
        })
        .await;
    }
    // Nobody helps from here on: what filled the disk stays.
    let full = Instant::now();
    let bound = Duration::from_secs(figure(20, 10) as u64);
    eventually(bound, "it is ready, and the ballast is there again", || async {
        let pruned = !entries(&data, "audit.pruned").await.is_empty();
        (pruned && ballast.exists() && readiness(http).await.0 == 200).then_some(())
    })
    .await;
    eprintln!("{durability}: mended after {:?}, {} bytes free", full.elapsed(), disk.free());
    let after = call(http, "up__pay", "after").await.unwrap();
    assert!(after.success, "{after:?}");
    eventually(bound, "calls are on record again", || async {
        rows(&data).await.contains_key(&after.id).then_some(())
    })
    .await;
    assert!(full.elapsed() <= bound, "{:?}", full.elapsed());

    heard.push(after);
    heard.extend(callers.stop().await);
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    let rows = rows(&data).await;
    let missing = |answer: &&Heard| answer.success && !rows.contains_key(&answer.id);
    let missing = heard.iter().filter(missing).count();
    let gaps = entries(&data, "audit.gap").await;
    let said: u64 = gaps.iter().map(|gap| gap["calls"].as_u64().unwrap()).sum();
    eprintln!("{durability}: {} calls, {missing} missing, {gaps:?}", heard.len());
    assert_eq!(said, u64::try_from(missing).unwrap(), "{gaps:?}");
    if durability == "strict" {
        assert_eq!(missing, 0);
        // Where it is mended before anybody looks, calls wait that long and none is refused.
        for answer in heard.iter().filter(|answer| !answer.success) {
            assert_eq!(answer.known.as_deref(), Some("not_sent"), "{answer:?}");
        }
    } else {
        assert!(heard.iter().all(|answer| answer.success), "all were served");
    }
    assert_eq!(missing > 0, locked);
    assert!(heard.iter().any(|answer| answer.success && rows.contains_key(&answer.id)));
    verify(folder.path()).await;
    drop(disk);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full_recovers_itself() {
    recovers("batched", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full_recovers_itself_in_strict() {
    recovers("strict", false).await;
}

/// And one entry says exactly how many rows are missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full_recovers_itself_after_rows_were_lost() {
    recovers("batched", true).await;
}

/// Databases of three migrations ago, the ledger with ten mebibytes.
async fn older(data: &Path) {
    const STATE: &str = concat!(
        include_str!("../../../migrations/sqlite/state/0001_state.sql"),
        include_str!("../../../migrations/sqlite/state/0002_offers.sql"),
        include_str!("../../../migrations/sqlite/state/0003_session_view.sql"),
    );
    const AUDIT: &str = concat!(
        include_str!("../../../migrations/sqlite/audit/0001_calls.sql"),
        include_str!("../../../migrations/sqlite/audit/0002_view.sql"),
        include_str!("../../../migrations/sqlite/audit/0003_attempts.sql"),
        "create table filler (x blob); insert into filler values (randomblob(10485760));",
    );
    for (name, script) in [("state.db", STATE), ("audit.db", AUDIT)] {
        let options = SqliteConnectOptions::new().filename(data.join(name)).create_if_missing(true);
        let mut file = options.connect().await.unwrap();
        let script = format!(
            "pragma journal_mode = wal; {script}
             pragma application_id = 1400330596; pragma user_version = 3;"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(script)).execute(&mut file).await.unwrap();
        file.close().await.unwrap();
    }
}

async fn version(data: &Path, name: &str) -> i64 {
    let options = SqliteConnectOptions::new().filename(data.join(name)).read_only(true);
    let mut file = options.connect().await.unwrap();
    sqlx::query_scalar("pragma user_version").fetch_one(&mut file).await.unwrap()
}

/// An upgrade that does not fit leaves both databases to the version before, and says what it takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_that_does_not_fit_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let Some(disk) = SmallDisk::mount(&data, "64m") else { return };
    older(&data).await;
    disk.fill(6 << 20);
    Router::write(folder.path(), "");
    let refused = switchyard(folder.path(), &["serve", "--config", "switchyard.yaml"]).await;
    let refused = refused.expect(2);
    let needed =
        refused.err.split_once("that takes ").and_then(|(_, rest)| rest.split_once(" bytes"));
    let needed: u64 = needed.unwrap_or_else(|| panic!("{refused:?}")).0.parse().unwrap();
    assert!((10 << 20..14 << 20).contains(&needed), "{refused:?}");
    assert!(disk.free() > 5 << 20, "{}", disk.free());
    for name in ["state", "audit"] {
        assert_eq!(version(&data, &format!("{name}.db")).await, 3);
        for end in ["", "-journal", "-wal"] {
            assert!(!data.join(format!("{name}.v3.db{end}")).exists(), "{name}{end}");
        }
    }
    disk.clear();
    let router = Router::start_in(folder, "").await;
    ready(&router, Instant::now()).await;
    for name in ["state", "audit"] {
        assert!(version(&data, &format!("{name}.db")).await > 3);
        assert_eq!(version(&data, &format!("{name}.v3.db")).await, 3);
    }
    assert_eq!(router.stop().await.0, 0);
}
