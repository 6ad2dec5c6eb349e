//! What the router is given by whoever starts it: other processes, and descriptors.

use super::{
    Process, all_gone, answers, descendants, kill, mark, marked, processes, server, works,
};
use crate::support::{Router, SOON, command, eventually};

const DEMO: &str = r#"exec "$PROGRAM" demo-upstream stdio"#;

/// The process whose number is in this file of the router's folder.
fn noted(router: &Router, file: &str) -> Process {
    let pid = std::fs::read_to_string(router.folder.path().join(file)).unwrap();
    let pid: u32 = pid.trim().parse().unwrap();
    *processes().keys().find(|(other, _)| *other == pid).expect("it is there")
}

#[tokio::test]
async fn what_ran_before_the_router_is_spared() {
    let mark = mark("spared");
    // The router spares what is there when it begins.
    let script = "sh -c 'sleep 600 & echo $! > begun; wait; true' </dev/null >/dev/null 2>&1 &\n\
                  echo $! > sidecar\nuntil [ -s begun ]; do sleep 0.05; done";
    let router = Router::start_after(script, &server(DEMO, &mark, "")).await;
    answers(&router.http).await;
    let sidecar = noted(&router, "sidecar");
    let of_sidecar = eventually(SOON, "the sidecar has begun its own", || async {
        Some(descendants(sidecar.0)).filter(|all| all.len() == 1)
    })
    .await;
    let marked = eventually(SOON, "the child has become one", || async {
        Some(marked(&mark)).filter(|all| all.len() == 1)
    })
    .await;
    let guard = processes().iter().find(|(process, _)| process.0 == marked[0]).unwrap().1.2;
    let guarded = descendants(guard);
    // With a guard that was killed, and with one whose own child was and that ends alike.
    kill("KILL", &[guard]);
    all_gone(&guarded, "of the new ones nothing is asked").await;
    answers(&router.http).await;
    // Whoever lost its parent among them is spared, too.
    kill("KILL", &[sidecar.0]);
    eventually(SOON, "the sidecar is reaped", || async {
        (!processes().contains_key(&sidecar)).then_some(())
    })
    .await;
    let now = super::marked(&mark);
    kill("KILL", &now);
    eventually(SOON, "it answers again", || async {
        (super::marked(&mark) != now && works(&router.http).await).then_some(())
    })
    .await;
    let parent = eventually(SOON, "it lives, and sleeps", || async {
        let (_, state, parent) = processes().get(&of_sidecar[0]).cloned().expect("it lives");
        (state == 'S').then_some(parent)
    })
    .await;
    assert_eq!(parent, router.pid());
    assert_eq!(router.stop().await.0, 0);
    assert!(processes().contains_key(&of_sidecar[0]));
    kill("KILL", &[of_sidecar[0].0]);
    all_gone(&[], &mark).await;
}

#[tokio::test]
async fn adopted_processes_do_not_stay_zombies() {
    let mark = mark("adopted");
    // One that ends with the router's start, and one that does later.
    let script = "true &\necho $! > early\nsleep 60 </dev/null >/dev/null 2>&1 &\necho $! > late";
    let router = Router::start_after(script, &server(DEMO, &mark, "")).await;
    answers(&router.http).await;
    let late = noted(&router, "late");
    kill("KILL", &[late.0]);
    let early = std::fs::read_to_string(router.folder.path().join("early")).unwrap();
    let early: u32 = early.trim().parse().unwrap();
    eventually(SOON, "both are reaped", || async {
        let all = processes();
        let zombie = all.iter().any(|((pid, _), (_, _, parent))| {
            [early, late.0].contains(pid) && *parent == router.pid()
        });
        (!zombie).then_some(())
    })
    .await;
    // Those whom somebody waits for are not reaped before him.
    answers(&router.http).await;
    assert_eq!(router.stop().await.0, 0);
    all_gone(&[], &mark).await;
}

#[tokio::test]
async fn descriptors_of_the_router_are_not_its_childrens() {
    let mark = mark("descriptors");
    let script = "exec 7>> lock";
    let router = Router::start_after(script, &server(DEMO, &mark, "")).await;
    answers(&router.http).await;
    let has_lock = |pid: u32| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let mut targets = descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets.any(|target| target.ends_with("lock") && target.starts_with(router.folder.path()))
    };
    assert!(has_lock(router.pid()));
    let tree = descendants(router.pid());
    assert_eq!(tree.len(), 2, "guard and child");
    for (pid, _) in tree {
        assert!(!has_lock(pid), "{pid}");
    }
    assert_eq!(router.stop().await.0, 0);
    all_gone(&[], &mark).await;
}

/// The command line of a process, its words in one line.
fn line(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

#[tokio::test]
async fn the_demo_ends_what_a_killed_guard_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let demo = command(folder.path()).args(["demo", "--for", "300s"]).spawn().unwrap();
    let root = demo.id().unwrap();
    let flaky = |known: Option<Process>| {
        let found = descendants(root).into_iter();
        let mut found = found.filter(|process| {
            let is_guard = processes().get(process).is_none_or(|(name, ..)| name.contains("guard"));
            !is_guard && line(process.0).contains("--fail-every")
        });
        found.find(|process| Some(*process) != known)
    };
    let first = eventually(SOON, "its server runs", || async { flaky(None) }).await;
    let guard = processes()[&first].2;
    assert_ne!(guard, root);
    // A stopped one cannot end by itself, whoever closes its input.
    kill("STOP", &[first.0]);
    kill("KILL", &[guard]);
    eventually(SOON, "it is ended", || async { (!processes().contains_key(&first)).then_some(()) })
        .await;
    // The demo goes on with another, and ends in order.
    eventually(SOON, "another runs", || async { flaky(Some(first)) }).await;
    let tree = descendants(root);
    kill("INT", &[root]);
    let ended = tokio::time::timeout(SOON * 2, demo.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(said.contains("ledger rows"), "{said}");
    all_gone(&tree, "of the new ones nothing is asked").await;
}
