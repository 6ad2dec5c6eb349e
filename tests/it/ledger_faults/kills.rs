//! `kill -9` at random moments.

use super::*;
use crate::support::{Fault, figure};

/// Answered calls, and what came of the starts.
struct Killed {
    heard: Vec<(Heard, Instant)>,
    folder: TempDir,
    starts: Vec<Duration>,
}

/// Kills the router again and again while callers call without pause.
async fn kill(rig: &Rig, yaml: &str, kills: usize, callers: usize) -> Killed {
    let mut dice = Dice::new();
    let mut folder = tempfile::tempdir().unwrap();
    let (mut heard, mut starts) = (Vec::new(), Vec::new());
    rig.set("pay", Fault::after(Duration::from_millis(3), Fault::None));
    for time in 0..kills {
        let began = Instant::now();
        let router = Router::start_in(folder, yaml).await;
        starts.push(ready(&router, began).await);
        let http = &router.http;
        let count = callers;
        let callers = Callers::start(http, "up__pay", count, &time.to_string(), Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(100 + dice.below(700))).await;
        callers.heard(count * 2).await;
        let killed = Instant::now();
        folder = router.kill().await;
        heard.extend(callers.gone().await.into_iter().map(|answer| (answer, killed)));
    }
    // One that ends in order says what the last one left unsaid.
    let began = Instant::now();
    let router = Router::start_in(folder, yaml).await;
    starts.push(ready(&router, began).await);
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    starts.sort();
    Killed { heard, folder, starts }
}

impl Killed {
    fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    fn ready_soon(&self) {
        let (median, longest) = (self.starts[self.starts.len() / 2], self.starts.last().unwrap());
        eprintln!("ready after {median:?} (median), {longest:?} (longest)");
        // The longest is for an idle machine; what makes a start slow is there at each of them.
        let bound = if figure(0, 1) == 1 { *longest } else { self.starts[0] };
        assert!(bound <= Duration::from_secs(2), "{:?}", self.starts);
    }
}

/// No call is answered before it is on record, and no call that changes something is sent before its
/// beginning is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill9_strict() {
    let rig = Rig::legacy(&["pay"]).await;
    let yaml = format!("audit: {{durability: strict}}\n{}", rig.yaml("up", ONCE));
    let kills = figure(6, 50);
    let killed = kill(&rig, &yaml, kills, 32).await;
    let data = killed.data();
    let rows = rows(&data).await;
    let lost: Vec<_> =
        killed.heard.iter().filter(|(heard, _)| !rows.contains_key(&heard.id)).collect();
    let answered = killed.heard.len();
    eprintln!("{answered} calls answered, {} rows, {kills} kills", rows.len());
    assert!(lost.is_empty(), "{} of {answered} lost, {:?}", lost.len(), lost[0]);
    for (heard, _) in &killed.heard {
        assert!(heard.success, "{heard:?}");
        assert_eq!(rows[&heard.id].outcome, "ok", "{heard:?}");
    }
    // What the server counted is on record, whatever the caller heard of it.
    let executed = rig.executed("pay");
    assert!(executed.values().all(|times| *times == 1));
    let known = rows.values().filter(|row| row.outcome == "ok" || row.outcome == "interrupted");
    assert!(known.count() >= executed.len(), "{} executed", executed.len());
    for call in rig.calls("pay") {
        let id = call.body["params"]["_meta"]["dev.switchyard/idempotencyKey"].as_str().unwrap();
        assert!(rows.contains_key(&plain(id)), "{call:?}");
    }
    assert!(answered > kills * 32, "{answered}");
    assert_eq!(entries(&data, "audit.gap").await.len(), kills);
    verify(killed.folder.path()).await;
    killed.ready_soon();
}

/// How late the machine lets come what a commit needs, a short pause and a write that is synced, until
/// it is told to stop; the median.
async fn lateness(stop: tokio_util::sync::CancellationToken) -> Duration {
    const PAUSE: Duration = Duration::from_millis(50);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("written");
    let mut late = Vec::new();
    while !stop.is_cancelled() {
        let began = Instant::now();
        tokio::time::sleep(PAUSE).await;
        let path = path.clone();
        let writing = tokio::task::spawn_blocking(move || {
            std::fs::write(&path, "x")?;
            std::fs::File::open(&path)?.sync_data()
        });
        writing.await.unwrap().unwrap();
        late.push(began.elapsed().saturating_sub(PAUSE));
    }
    late.sort();
    late[late.len() / 2]
}

/// Calls of the last moment are lost, and that something may be is on record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill9_batched() {
    let rig = Rig::legacy(&["pay"]).await;
    let kills = figure(6, 50);
    let stop = tokio_util::sync::CancellationToken::new();
    let late = tokio::spawn(lateness(stop.clone()));
    let killed = kill(&rig, &rig.yaml("up", ONCE), kills, 32).await;
    stop.cancel();
    let late = late.await.unwrap();
    let data = killed.data();
    let rows = rows(&data).await;
    let mut lost = 0;
    let mut ages = HashMap::<Instant, Duration>::new();
    for (heard, at) in &killed.heard {
        let oldest = ages.entry(*at).or_default();
        if !rows.contains_key(&heard.id) {
            lost += 1;
            *oldest = (*oldest).max(at.saturating_duration_since(heard.at));
        }
    }
    let mut ages: Vec<_> = ages.into_values().collect();
    ages.sort();
    eprintln!(
        "{} calls answered, {lost} lost, the oldest of each kill {ages:?}; all is {late:?} late",
        killed.heard.len()
    );
    // The bound is for a disk and processors that nobody else keeps busy. A row goes through several
    // hands, each of which may be that late.
    let age = if figure(0, 1) == 1 { ages[ages.len() - 1] } else { ages[ages.len() / 2] };
    assert!(age <= Duration::from_millis(200) + late * 4, "{ages:?}, {late:?}");
    assert!(ages[ages.len() - 1] <= Duration::from_secs(2) + late * 40, "{ages:?}, {late:?}");
    let gaps = entries(&data, "audit.gap").await;
    assert_eq!(gaps.len(), kills, "{gaps:?}");
    for gap in gaps {
        assert_eq!(gap["reason"], "the router was cut off", "{gap}");
        assert!(gap["after"].is_string() && gap["interrupted"] == 0, "{gap}");
    }
    verify(killed.folder.path()).await;
    killed.ready_soon();
}

/// Each call that the server ran and whose end is not on record is one row that says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn intent_interrupted() {
    const HELD: usize = 24;
    let rig = Rig::legacy(&["pay", "read"]).await;
    rig.annotate("read", json!({ "readOnlyHint": true }));
    let yaml = format!("audit: {{durability: strict}}\n{}", rig.yaml("up", ONCE));
    let began = Instant::now();
    let mut router = Router::start(&yaml).await;
    ready(&router, began).await;
    let mut expected = HashSet::new();
    for time in 0..figure(2, 10) {
        for tool in ["pay", "read"] {
            rig.set(tool, Fault::None);
        }
        let answered = call(&router.http, "up__pay", &format!("{time}/answered")).await.unwrap();
        assert!(answered.success, "{answered:?}");
        for tool in ["pay", "read"] {
            rig.set(tool, Fault::hold(Fault::None));
        }
        let before = (rig.counts("pay").executions, rig.counts("read").executions);
        let mark = format!("{time}/held");
        let callers = [("up__pay", HELD), ("up__read", 4)]
            .map(|(tool, count)| Callers::start(&router.http, tool, count, &mark, Duration::ZERO));
        eventually(SOON, "all calls run", || async {
            let now = (rig.counts("pay").executions, rig.counts("read").executions);
            (now == (before.0 + HELD as u64, before.1 + 4)).then_some(())
        })
        .await;
        let folder = router.kill().await;
        for callers in callers {
            assert!(callers.gone().await.is_empty(), "nobody heard of it");
        }
        rig.release();
        let began = Instant::now();
        router = Router::start_in(folder, &yaml).await;
        ready(&router, began).await;
        let rows = rows(&router.data_dir()).await;
        for call in rig.calls("pay") {
            let id = call.body["params"]["_meta"]["dev.switchyard/idempotencyKey"].as_str();
            let row = &rows[&plain(id.unwrap())];
            let outcome = if call.key.contains("held") { "interrupted" } else { "ok" };
            assert_eq!(row.outcome, outcome, "{}", call.key);
            if call.key.contains("held") {
                expected.insert(plain(id.unwrap()));
            }
        }
        let found: HashSet<_> = rows
            .into_iter()
            .filter(|(_, row)| row.outcome == "interrupted")
            .map(|(id, _)| id)
            .collect();
        assert_eq!(found, expected, "no other");
        let gaps = entries(&router.data_dir(), "audit.gap").await;
        assert_eq!(gaps.last().unwrap()["interrupted"], HELD, "{gaps:?}");
    }
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    verify(folder.path()).await;
}
