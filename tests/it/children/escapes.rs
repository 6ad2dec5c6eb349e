//! Descendants that are hard to find or to catch, and that end with the router all the same.

use std::path::Path;
use std::time::Duration;

use super::{all_gone, answers, descendants, kill, mark, marked, processes, server};
use crate::support::{Router, SOON, eventually, switchyard};

/// The names and states of all that descends from `root`.
fn names_below(root: u32) -> Vec<(String, char)> {
    let all = processes();
    let below = descendants(root);
    let named = below.iter().filter_map(|process| all.get(process));
    named.map(|(name, state, _)| (name.clone(), *state)).collect()
}

#[tokio::test]
async fn a_name_that_is_not_text_hides_nobody() {
    let mark = mark("bytes");
    // The first byte of two of a letter, as the kernel leaves it that cuts a long name.
    let script = r#"
        setsid sh -c "printf 'caf\303' > /proc/self/comm; sleep 1000; true" &
        exec "$PROGRAM" demo-upstream stdio"#;
    for in_order in [false, true] {
        let router = Router::start(&server(script, &mark, "")).await;
        eventually(SOON, "it has its name and a child", || async {
            let names = names_below(router.pid());
            let named = names.iter().any(|(name, _)| name.starts_with("caf\u{fffd}"));
            (named && names.iter().any(|(name, _)| name == "sleep")).then_some(())
        })
        .await;
        answers(&router.http).await;
        let tree = descendants(router.pid());
        assert_eq!(tree.len(), 4, "{:?}", names_below(router.pid()));
        if in_order {
            assert_eq!(router.stop().await.0, 0);
        } else {
            router.kill().await;
        }
        all_gone(&tree, &mark).await;
    }
}

/// Its first thread ends at once. The second starts a child and stays.
const HEADLESS: &str = r#"
    #include <pthread.h>
    #include <unistd.h>
    static void *stay(void *unused) {
        if (fork() == 0) {
            execlp("sleep", "sleep", "1000", (char *)0);
            _exit(1);
        }
        for (;;) pause();
    }
    int main(void) {
        pthread_t second;
        if (pthread_create(&second, 0, stay, 0) != 0) return 1;
        pthread_exit(0);
    }"#;

/// Compiled where it is used: the database engine needs a C compiler, too.
fn compile(name: &str, source: &str, folder: &Path) -> String {
    let (file, program) = (folder.join(format!("{name}.c")), folder.join(name));
    std::fs::write(&file, source).unwrap();
    let mut compiler = std::process::Command::new("cc");
    let compiled = compiler.arg("-pthread").arg("-o").arg(&program).arg(&file).status().unwrap();
    assert!(compiled.success());
    program.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_process_whose_first_thread_ended_hides_nobody() {
    let mark = mark("headless");
    let folder = tempfile::tempdir().unwrap();
    let program = compile("headless", HEADLESS, folder.path());
    let script = format!(r#"setsid "{program}" & exec "$PROGRAM" demo-upstream stdio"#);
    let router = Router::start(&server(&script, &mark, "")).await;
    eventually(SOON, "its first thread has ended, and it has a child", || async {
        let names = names_below(router.pid());
        let ended = names.contains(&("headless".to_owned(), 'Z'));
        (ended && names.iter().any(|(name, _)| name == "sleep")).then_some(())
    })
    .await;
    answers(&router.http).await;
    let tree = descendants(router.pid());
    assert_eq!(tree.len(), 4, "{:?}", names_below(router.pid()));
    router.kill().await;
    all_gone(&tree, &mark).await;
}

/// Starts its successor and ends, and so on as long as the file named first is there. Each leaves a
/// byte in the second. Nothing of it is there for longer than it takes to start a process.
const CHAIN: &str = r#"
    #include <fcntl.h>
    #include <unistd.h>
    int main(int count, char **words) {
        if (count != 3) return 1;
        setsid();
        int beats = open(words[2], O_WRONLY | O_CREAT | O_APPEND, 0600);
        while (access(words[1], F_OK) == 0 && write(beats, "x", 1) == 1)
            if (fork() > 0) _exit(0);
        return 0;
    }"#;

/// Many that do nothing, until the first of them ends: the more processes a machine has, the longer it
/// takes to look at all of them.
const CROWD: &str = r#"
    #include <signal.h>
    #include <sys/prctl.h>
    #include <unistd.h>
    int main(void) {
        for (int i = 0; i < 400; i++) {
            if (fork() == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                pause();
                _exit(0);
            }
        }
        pause();
    }"#;

/// How many there were in the chain.
fn beats(folder: &Path) -> u64 {
    std::fs::metadata(folder.join("beats")).map_or(0, |beats| beats.len())
}

/// The chain goes on.
async fn beating(folder: &Path) {
    let before = beats(folder);
    eventually(SOON, "the chain goes on", || async { (beats(folder) > before + 20).then_some(()) })
        .await;
}

/// The chain has ended in time, and nothing else is left.
async fn still(folder: &Path, mark: &str) {
    let began = std::time::Instant::now();
    let mut before = beats(folder);
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = beats(folder);
        if now == before {
            break;
        }
        assert!(began.elapsed() < super::gone(), "the chain goes on: {now}");
        before = now;
    }
    all_gone(&[], mark).await;
    assert_eq!(beats(folder), before);
}

#[tokio::test]
async fn a_chain_of_processes_that_end_at_once_is_caught() {
    let mark = mark("chain");
    // The chain ends with its folder, also when this test fails.
    let chained = tempfile::tempdir().unwrap();
    let folder = chained.path();
    let program = compile("chain", CHAIN, folder);
    let script = format!(
        r#""{program}" "{program}" "{}" </dev/null >/dev/null 2>&1 &
        exec "$PROGRAM" demo-upstream stdio"#,
        folder.join("beats").display()
    );
    let yaml = server(&script, &mark, "");
    let crowd = compile("crowd", CROWD, folder);
    let _crowd = tokio::process::Command::new(crowd).kill_on_drop(true).spawn().unwrap();

    // The router is killed.
    let router = Router::start(&yaml).await;
    answers(&router.http).await;
    beating(folder).await;
    router.kill().await;
    still(folder, &mark).await;

    // The guard is.
    let router = Router::start(&yaml).await;
    answers(&router.http).await;
    beating(folder).await;
    let guard = eventually(SOON, "the guard is seen", || async {
        let all = processes();
        let mut guards = all.iter().filter(|(_, (name, _, parent))| {
            *parent == router.pid() && name.starts_with("mcp-child-guard")
        });
        guards.next().map(|((pid, _), _)| *pid)
    })
    .await;
    kill("KILL", &[guard]);
    // Another guard has another chain.
    answers(&router.http).await;
    let (code, _folder) = router.stop().await;
    assert_eq!(code, 0);
    still(folder, &mark).await;
}

#[tokio::test]
async fn what_a_guard_killed_by_its_child_leaves_ends_with_a_check() {
    let mark = mark("check");
    let script = "setsid sleep 1000 & kill -9 $PPID; sleep 1000";
    let folder = tempfile::tempdir().unwrap();
    Router::write(folder.path(), &server(script, &mark, ""));
    let checked =
        switchyard(folder.path(), &["check", "--config", "switchyard.yaml", "--connect"]).await;
    // It had ended them before it did itself.
    assert_eq!(marked(&mark), Vec::<u32>::new(), "{checked:?}");
    checked.expect(1);
}
