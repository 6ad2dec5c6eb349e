//! Child processes: all that a server started ends with the router, in whatever way that ends; and
//! what a bad one does stays its own trouble.

mod escapes;
mod household;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use switchyard::app::ADMIN_SOCKET;

use crate::support::{Answer, Http, PROGRAM, Router, SOON, TestApp, eventually, full};

const HI: &str = r#"{"text":"hi"}"#;
/// In which time nothing may be left where those that clear away are let run: what is promised.
const PROMISED: Duration = Duration::from_secs(5);

/// In which time nothing may be left in this run; what is forgotten stays for a quarter of an hour.
fn gone() -> Duration {
    if full() { PROMISED } else { SOON }
}
/// Processes of [`TREE`].
const GROWN: usize = 6;

/// As npx has it: a program that starts a shell that starts the server. The server starts another
/// that makes a session of its own and ignores TERM, and one whose parent ends at once.
const TREE: &str = r#"
    setsid sh -c "trap '' TERM HUP INT; sleep 1000; true" &
    (setsid sleep 1000 &)
    sh -c "\"$PROGRAM\" demo-upstream stdio; true"
    true"#;

/// A text that all processes of a server have in their environment.
fn mark(test: &str) -> String {
    format!("it-children-{test}-{}", std::process::id())
}

/// A server `s` that is this shell script.
fn server(script: &str, mark: &str, more: &str) -> String {
    // A dollar sign of the script is none of the configuration.
    let args = serde_json::json!(["-c", script.replace('$', "$$")]);
    format!(
        "mcp_servers:\n  s: {{command: sh, args: {args}, env: {{IT_MARK: {mark}, PROGRAM: '{PROGRAM}'}}{more}}}\n"
    )
}

/// A server in shell: what it does at the start and with a call, where `$id` is the request's id.
fn shell(start: &str, call: &str) -> String {
    let answer =
        |result: &str| format!(r#"printf '{{"jsonrpc":"2.0","id":%s,"result":{result}}}\n' "$id""#);
    let hello = answer(r#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{}}}"#);
    let tools = answer(r#"{"tools":[{"name":"echo","inputSchema":{"type":"object"}}]}"#);
    format!(
        r#"{start}
        while IFS= read -r line; do
            id=${{line#*'"id":'}}; id=${{id%%,*}}
            case $line in
            *'"method":"server/discover"'*) printf '{{"jsonrpc":"2.0","id":%s,"error":{{"code":-32601,"message":"no"}}}}\n' "$id";;
            *'"method":"initialize"'*) {hello};;
            *'"method":"tools/list"'*) {tools};;
            *'"method":"tools/call"'*) {call};;
            esac
        done"#
    )
}

const ANSWER: &str = r#"printf '{"jsonrpc":"2.0","id":%s,"result":{"content":[]}}\n' "$id""#;

/// A process by its number and the time of its start, which no other one has.
type Process = (u32, u64);

/// Every process there is: name, state and parent. Those that ended and wait to be reaped count.
fn processes() -> BTreeMap<Process, (String, char, u32)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = std::fs::read(entry.path().join("stat")) else { continue };
        // A name need not be text.
        let stat = String::from_utf8_lossy(&stat);
        let (name, fields) = stat.rsplit_once(')').unwrap();
        let (pid, name) = name.split_once(" (").unwrap();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let process = (pid.parse().unwrap(), fields[19].parse().unwrap());
        let state = fields[0].chars().next().unwrap();
        found.insert(process, (name.to_owned(), state, fields[1].parse().unwrap()));
    }
    found
}

/// All that descend from `root`, guards included.
fn descendants(root: u32) -> Vec<Process> {
    let all = processes();
    let mut below = vec![root];
    let mut found = Vec::new();
    while let Some(parent) = below.pop() {
        for (process, _) in all.iter().filter(|(_, (_, _, ppid))| *ppid == parent) {
            found.push(*process);
            below.push(process.0);
        }
    }
    found
}

/// Those of `known` that are still there, if only as zombies, and those that bear the mark.
fn left(known: &[Process], mark: &str) -> Vec<String> {
    let marked = marked(mark);
    let all = processes();
    let left =
        all.iter().filter(|(process, _)| known.contains(process) || marked.contains(&process.0));
    left.map(|(process, what)| format!("{process:?} {what:?}")).collect()
}

/// Live processes with the mark in their environment.
fn marked(mark: &str) -> Vec<u32> {
    let mark = format!("IT_MARK={mark}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            found.push(pid);
        }
    }
    found
}

async fn grown(mark: &str, count: usize) {
    eventually(SOON * 4, "the tree has grown", || async {
        (marked(mark).len() == count).then_some(())
    })
    .await;
}

/// Nothing is left in time, and no zombies either. Gives how long that took.
async fn all_gone(known: &[Process], mark: &str) -> Duration {
    let began = Instant::now();
    loop {
        let left = left(known, mark);
        if left.is_empty() {
            return began.elapsed();
        }
        assert!(began.elapsed() < gone(), "left after {:?}: {left:#?}", gone());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn kill(name: &str, pids: &[u32]) {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let sent = std::process::Command::new("kill").arg(format!("-{name}")).args(&pids).status();
    assert!(sent.unwrap().success());
}

fn socket(router: &Router) -> Http {
    Http::socket(router.data_dir().join(ADMIN_SOCKET))
}

async fn echo(http: &Http) -> Answer {
    http.call("s__echo", HI).await
}

async fn works(http: &Http) -> bool {
    echo(http).await.json()["success"] == true
}

/// Waits until it does, which after a start is when its tools are known.
async fn answers(http: &Http) {
    eventually(SOON, "it answers", || async { works(http).await.then_some(()) }).await;
}

/// The ledger's entry of a call.
async fn entry(admin: &Http, answer: &Answer) -> Value {
    let path = format!("/mcp/audit/{}", answer.id());
    eventually(SOON, "the ledger has it", || async {
        let answer = admin.get(&path).await;
        (answer.status == 200).then(|| answer.json())
    })
    .await
}

#[tokio::test]
async fn process_group_dies() {
    let mark = mark("tree");
    let router = Router::start(&server(TREE, &mark, "")).await;
    grown(&mark, GROWN).await;
    answers(&router.http).await;

    // The server is stopped.
    let tree = descendants(router.pid());
    assert_eq!(tree.len(), GROWN + 1, "with the guard: {:?}", left(&tree, &mark));
    router.run(&["servers", "disable", "s"]).await.expect(0);
    all_gone(&tree, &mark).await;
    router.run(&["servers", "enable", "s"]).await.expect(0);
    grown(&mark, GROWN).await;

    // It changes, again and again.
    let mut changes = Vec::new();
    for round in 0..if full() { 100 } else { 4 } {
        let tree = descendants(router.pid());
        assert_eq!(tree.len(), GROWN + 1, "{:?}", left(&tree, &mark));
        let changed = server(
            TREE,
            &mark,
            &format!(", description: 'number {round}', timeout: {}", 40 + round),
        );
        Router::write(router.folder.path(), &changed);
        router.run(&["reload"]).await.expect(0);
        changes.push(all_gone(&tree, "of the new ones nothing is asked").await);
        grown(&mark, GROWN).await;
    }
    assert!(changes.iter().min() <= Some(&PROMISED), "{changes:?}");

    // The router ends in order.
    let tree = descendants(router.pid());
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    all_gone(&tree, &mark).await;

    // The router is killed.
    let router = Router::start_in(folder, &server(TREE, &mark, "")).await;
    grown(&mark, GROWN).await;
    answers(&router.http).await;
    let tree = descendants(router.pid());
    assert_eq!(tree.len(), GROWN + 1);
    router.kill().await;
    all_gone(&tree, &mark).await;

    // It is killed while it starts a server.
    let mut kills = Vec::new();
    for wait in 0..if full() { 50 } else { 5 } {
        let router = Router::start(&server(TREE, &mark, "")).await;
        tokio::time::sleep(Duration::from_millis(wait * 7)).await;
        let tree = descendants(router.pid());
        router.kill().await;
        kills.push(all_gone(&tree, &mark).await);
    }
    assert!(kills.iter().min() <= Some(&PROMISED), "{kills:?}");
}

#[tokio::test]
async fn what_a_killed_guard_guarded_ends() {
    let mark = mark("guard");
    let router = Router::start(&server(TREE, &mark, "")).await;
    grown(&mark, GROWN).await;
    answers(&router.http).await;
    let tree = descendants(router.pid());
    let marked = marked(&mark);
    let guards: Vec<u32> =
        tree.iter().map(|(pid, _)| *pid).filter(|pid| !marked.contains(pid)).collect();
    assert_eq!(guards.len(), 1);
    kill("KILL", &guards);
    all_gone(&tree, "of the new ones nothing is asked").await;
    // And the router goes on with a new one.
    answers(&router.http).await;
    grown(&mark, GROWN).await;

    // An order to the guard is one to all it guards.
    let tree = descendants(router.pid());
    let now = self::marked(&mark);
    let guards: Vec<u32> =
        tree.iter().map(|(pid, _)| *pid).filter(|pid| !now.contains(pid)).collect();
    kill("TERM", &guards);
    all_gone(&tree, "of the new ones nothing is asked").await;
    let (code, _folder) = router.stop().await;
    assert_eq!(code, 0);
    all_gone(&[], &mark).await;
}

#[tokio::test]
async fn a_server_ends_with_router_and_guard_killed_at_once() {
    let mark = mark("both");
    let script = r#"exec "$PROGRAM" demo-upstream stdio"#;
    let router = Router::start(&server(script, &mark, "")).await;
    answers(&router.http).await;
    let tree = descendants(router.pid());
    assert_eq!(tree.len(), 2);
    let marked = marked(&mark);
    let guard = tree.iter().map(|(pid, _)| *pid).find(|pid| !marked.contains(pid)).unwrap();
    // A stopped one cannot have acted first.
    kill("STOP", &[guard]);
    kill("KILL", &[router.pid(), guard]);
    router.kill().await;
    all_gone(&tree, &mark).await;
}

#[tokio::test]
async fn a_guard_does_not_bear_the_routers_name() {
    let mark = mark("name");
    let secret = "open-sesame-for-the-guard";
    let script = r#"exec "$PROGRAM" demo-upstream stdio"#;
    let yaml = server(script, &mark, "").replace("IT_MARK:", &format!("TOKEN: {secret}, IT_MARK:"));
    let router = Router::start(&yaml).await;
    answers(&router.http).await;
    let marked = marked(&mark);
    let tree = descendants(router.pid());
    let guard = tree.iter().map(|(pid, _)| *pid).find(|pid| !marked.contains(pid)).unwrap();
    let proc = Path::new("/proc").join(guard.to_string());
    let read =
        |file: &str| String::from_utf8_lossy(&std::fs::read(proc.join(file)).unwrap()).into_owned();
    for file in ["comm", "cmdline", "environ", "task"] {
        if file == "task" {
            for thread in std::fs::read_dir(proc.join(file)).unwrap().flatten() {
                let name = std::fs::read_to_string(thread.path().join("comm")).unwrap();
                assert!(!name.contains("switchyard"), "{name}");
            }
        } else {
            let text = read(file);
            assert!(!text.contains("switchyard") || file == "environ", "{file}: {text}");
            assert!(!text.contains(secret), "{file}: {text}");
        }
    }
    // What the child has is its own, the guard's pipes to the router are not kept open by it.
    for descriptor in ["0", "1", "2"] {
        let target = std::fs::read_link(proc.join("fd").join(descriptor)).unwrap();
        assert_eq!(target, Path::new("/dev/null"));
    }
    let environ = std::fs::read(format!("/proc/{}/environ", marked[0])).unwrap();
    assert!(String::from_utf8_lossy(&environ).contains(secret));
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn children_are_counted_and_measured() {
    let mark = mark("count");
    let folder = tempfile::tempdir().unwrap();
    let starts = folder.path().join("starts");
    let start = format!("echo x >> '{}'; sleep 1000 &", starts.display());
    let script = shell(&start, "exit 3");
    let started = || std::fs::read_to_string(&starts).unwrap().lines().count();
    let app = TestApp::start(&server(&script, &mark, "")).await.ready().await;
    let metric =
        async |name: &str| app.metric(&format!("switchyard_child_{name}{{server=\"s\"}}")).await;
    assert_eq!(metric("restarts_total").await, Some(0.0));
    eventually(SOON, "both are seen", || async {
        (metric("processes").await? == 2.0).then_some(())
    })
    .await;
    let resident = metric("resident_bytes").await.unwrap();
    assert!((100_000.0..100_000_000.0).contains(&resident), "{resident}");
    let shown = app.http().server("s").await.unwrap();
    assert_eq!(shown["processes"], 2);
    assert!(shown["resident_bytes"].as_u64().unwrap() > 100_000, "{shown}");
    // The first end is repaired at once, by the next call.
    for _ in 0..2 {
        assert!(!works(app.http()).await);
    }
    eventually(SOON, "its restarts are counted", || async {
        let restarts = metric("restarts_total").await?;
        (restarts >= 1.0 && restarts + 1.0 == f64::from(u32::try_from(started()).unwrap()))
            .then_some(())
    })
    .await;
    app.socket().post("/mcp/servers/s/disable", "").await.expect(200);
    eventually(SOON, "none is left", || async {
        let none = metric("processes").await? == 0.0 && metric("resident_bytes").await? == 0.0;
        none.then_some(())
    })
    .await;
    let http = r#"{"name":"web","url":"http://127.0.0.1:9/mcp","enabled":false}"#;
    app.socket().post("/mcp/servers", http).await.expect(201);
    assert!(app.http().server("web").await.unwrap()["processes"].is_null());
    let text = app.socket().get("/metrics").await.expect(200);
    assert!(!text.text().contains("child_processes{server=\"web\"}"));
    app.stop().await;
    all_gone(&[], &mark).await;
}

#[tokio::test]
async fn stdio_garbage_stdout() {
    let noise =
        "head -c 300000 /dev/urandom; echo; echo '{\"jsonrpc\":\"2.0\",\"id\":'; echo '[1,2]'";
    // Beside what is right it harms nobody.
    let mark = mark("garbage");
    let script = shell(noise, &format!("{noise}; {ANSWER}"));
    let app = TestApp::start(&server(&script, &mark, "")).await.ready().await;
    for _ in 0..3 {
        assert!(works(app.http()).await);
    }
    app.stop().await;
    // Instead of an answer: none came in time, and the next call is none the worse.
    let script = shell("", &format!("if mkdir \"$IT_FOLDER\"; then {noise}; else {ANSWER}; fi"));
    let folder = tempfile::tempdir().unwrap();
    let once = folder.path().join("once");
    let env = format!("IT_FOLDER: '{}', IT_MARK:", once.display());
    let yaml = server(&script, &mark, ", timeout: 4").replace("IT_MARK:", &env);
    let app = TestApp::start(&yaml).await.ready().await;
    let answer = echo(app.http()).await;
    assert_eq!(app.entry_of(&answer).await["outcome"], "timeout", "{}", answer.text());
    assert!(works(app.http()).await);
    app.stop().await;
    // And nothing but it, to the end: nothing was sent.
    let script = "head -c 3000000 /dev/urandom; exit 0";
    let app = TestApp::start(&server(script, &mark, "")).await;
    app.socket().post("/mcp/servers/s/refresh", "").await.expect(200);
    let shown = app.http().server("s").await.unwrap();
    assert_eq!(shown["state"], "down", "{shown}");
    assert!(shown["last_error"].as_str().unwrap().contains("exited with code 0"), "{shown}");
    app.stop().await;
    all_gone(&[], &mark).await;
}

#[tokio::test]
async fn stdio_stderr_flood() {
    let bytes: u64 = if full() { 1 << 30 } else { 48 << 20 };
    let mark = mark("flood");
    let script = shell(
        "",
        &format!(
            "yes 'something went wrong' | head -c {bytes} >&2; echo >&2; echo last >&2; {ANSWER}"
        ),
    );
    let router = Router::start(&server(&script, &mark, ", timeout: 300")).await;
    let admin = socket(&router);
    eventually(SOON, "it is up", || async {
        (admin.server("s").await?["tools"] == 1).then_some(())
    })
    .await;
    let before = router.resident();
    answers(&router.http).await;
    let growth = router.resident().saturating_sub(before);
    assert!(growth < 8 << 20, "{growth} bytes for {bytes} on standard error");
    eventually(SOON, "the last line is kept", || async {
        let shown = admin.get("/mcp/servers/s").await.json();
        (shown["stderr"].as_array()?.last()? == "last").then_some(())
    })
    .await;
    assert_eq!(router.stop().await.0, 0);
    all_gone(&[], &mark).await;
}

#[tokio::test]
async fn stdio_exit_mid_call() {
    let mark = mark("exit");
    for (end, said) in [
        ("echo boom >&2; exit 3", "exited with code 3"),
        ("kill -9 $$", "ended by signal 9"),
        ("kill -SEGV $$", "ended by signal 11"),
        ("kill -TERM $$", "ended by signal 15"),
        ("exit 137", "exited with code 137"),
    ] {
        let script = shell("", &format!("if mkdir \"$IT_FOLDER\"; then {end}; else {ANSWER}; fi"));
        let folder = tempfile::tempdir().unwrap();
        let env = format!("IT_FOLDER: '{}', IT_MARK:", folder.path().join("once").display());
        let app = TestApp::start(&server(&script, &mark, "").replace("IT_MARK:", &env))
            .await
            .ready()
            .await;
        let answer = echo(app.http()).await;
        let entry = entry(&app.socket(), &answer).await;
        let class = (&entry["outcome"], &entry["failure"]);
        assert_eq!(class, (&"unavailable".into(), &"ambiguous".into()), "{entry}");
        assert!(answer.text().contains(said), "{}", answer.text());
        assert_eq!(said.contains("code 3"), answer.text().contains("boom"), "{}", answer.text());
        assert!(works(app.http()).await);
        app.stop().await;
    }
    all_gone(&[], &mark).await;
}

#[tokio::test]
async fn stdio_ignores_term() {
    let mark = mark("stubborn");
    let script = r#"trap '' TERM HUP INT
        setsid sh -c "trap '' TERM; while :; do sleep 1; done" &
        "$PROGRAM" demo-upstream stdio
        while :; do sleep 1; done"#;
    let app = TestApp::start(&server(script, &mark, "")).await.ready().await;
    assert!(works(app.http()).await);
    let tree = marked(&mark);
    assert!(tree.len() >= 4, "{tree:?}");
    let began = Instant::now();
    app.socket().post("/mcp/servers/s/disable", "").await.expect(200);
    let limit = if full() { Duration::from_secs(6) } else { SOON };
    eventually(limit, "all are gone", || async { marked(&mark).is_empty().then_some(()) }).await;
    // Not without the time to end by itself.
    assert!(began.elapsed() > Duration::from_millis(2500), "{:?}", began.elapsed());
    app.stop().await;
}

/// Processor time of a process and its children that ended.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..15].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// It says what it is, and then nobody can ever reach it again, although it lives.
#[tokio::test]
async fn a_server_that_closes_its_input_is_not_started_in_a_circle() {
    let mark = mark("deaf");
    let folder = tempfile::tempdir().unwrap();
    let spawns = folder.path().join("spawns");
    // Its tools become known, so that calls go on to want it.
    let start = format!("echo x >> '{0}'; starts=$(wc -l < '{0}')", spawns.display());
    let initialize = r#"*'"method":"initialize"'*) "#;
    let list = r#"*'"method":"tools/list"'*) "#;
    let script = shell(&start, ANSWER)
        .replace(initialize, &format!("{initialize} if [ $starts -gt 1 ]; then exec <&-; fi; "))
        .replace(list, &format!("{list} exec <&-; "))
        .replace("done", "done; while :; do sleep 1; done");
    let router =
        Router::start(&server(&script, &mark, ", circuit_breaker_threshold: 1000000")).await;
    let count = || std::fs::read_to_string(&spawns).unwrap_or_default().lines().count();
    let began = Instant::now();
    let time = Duration::from_secs(if full() { 58 } else { 15 });
    while began.elapsed() < time || count() < 2 && began.elapsed() < SOON * 2 {
        let answer = echo(&router.http).await;
        assert_eq!(answer.json()["success"], false);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("started {} times", count());
    assert!(count() >= 2, "it is tried again");
    assert!(count() <= 10, "{}", count());
    assert_eq!(router.stop().await.0, 0);
    all_gone(&[], &mark).await;
}

#[tokio::test]
async fn crash_loop() {
    let mark = mark("crash");
    let folder = tempfile::tempdir().unwrap();
    let spawns = folder.path().join("spawns");
    let script = format!("echo x >> '{}'; echo no license >&2; exit 1", spawns.display());
    let router = Router::start(&server(&script, &mark, "")).await;
    let count = || std::fs::read_to_string(&spawns).unwrap_or_default().lines().count();
    let call = async || {
        let answer = echo(&router.http).await;
        assert_eq!(answer.json()["success"], false);
        answer
    };
    // Callers that do not let up.
    let minutes = if full() { 3 } else { 0 };
    let mut counted = Vec::new();
    for second in 0..(minutes * 60).max(8) {
        for _ in 0..5 {
            call().await;
            tokio::time::sleep(Duration::from_millis(190)).await;
        }
        counted.push(count());
        let before = counted.get(usize::wrapping_sub(second, 60)).copied().unwrap_or(0);
        assert!(count() - before <= 10, "{} in a minute", count() - before);
    }
    assert!(count() >= 4, "it is tried again: {}", count());
    let refused = call().await;
    assert!(refused.text().contains("exited with code 1"), "{}", refused.text());
    assert!(refused.text().contains("no license"), "{}", refused.text());
    assert_eq!(refused.json()["outcome"], "not_sent", "{}", refused.text());
    // Left to itself it costs next to nothing.
    let (began, before) = (Instant::now(), processor_time(router.pid()));
    tokio::time::sleep(Duration::from_secs(if full() { 120 } else { 6 })).await;
    let spent = processor_time(router.pid()) - before;
    assert!(spent.as_secs_f64() <= 0.02 * began.elapsed().as_secs_f64(), "{spent:?}");
    // Whoever has repaired it need not wait.
    let restarts = socket(&router).get("/metrics").await.expect(200);
    let line =
        restarts.text().lines().find(|line| line.starts_with("switchyard_child_restarts_total{"));
    let restarts: f64 = line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(restarts >= 3.0, "{restarts}");
    let right = server(r#"exec "$PROGRAM" demo-upstream stdio"#, &mark, "");
    Router::write(router.folder.path(), &right);
    router.run(&["reload"]).await.expect(0);
    answers(&router.http).await;
    assert_eq!(router.stop().await.0, 0);
    all_gone(&[], &mark).await;
}

/// Whatever an operator does, short of another specification.
#[tokio::test]
async fn a_child_that_fails_is_started_no_more_often_for_being_asked_for() {
    let mark = mark("insist");
    for ways in [&["reconnect"][..], &["disable", "enable"]] {
        let folder = tempfile::tempdir().unwrap();
        let spawns = folder.path().join("spawns");
        let script = format!("echo x >> '{}'; exit 1", spawns.display());
        let app = TestApp::start(&server(&script, &mark, "")).await;
        let count = || std::fs::read_to_string(&spawns).unwrap_or_default().lines().count();
        let began = Instant::now();
        for _ in 0..25 {
            for way in ways {
                app.socket().post(&format!("/mcp/servers/s/{way}"), "").await.expect(200);
            }
        }
        let minutes = usize::try_from(began.elapsed().as_secs() / 60 + 1).unwrap();
        eprintln!("{ways:?}: started {} times in {:?}", count(), began.elapsed());
        // Ten, and one more try with its two starts.
        assert!(count() <= 12 * minutes, "{ways:?}: {}", count());
        assert!(count() >= 8, "{ways:?}: it is tried: {}", count());
        let shown = app.http().server("s").await.unwrap();
        assert!(shown["last_error"].as_str().unwrap().contains("next try in"), "{shown}");
        app.stop().await;
    }
    all_gone(&[], &mark).await;
}

/// Each call has a child of its own, so that no connection is ever opened again.
#[tokio::test]
async fn restarts_of_children_that_serve_one_call_each_are_counted() {
    let mark = mark("single");
    let yaml = server(&shell("", "exit 3"), &mark, ", sessions: isolated");
    let app = TestApp::start(&yaml).await.ready().await;
    for _ in 0..3 {
        assert!(!works(app.http()).await);
    }
    eventually(SOON, "those after the first are counted", || async {
        let restarts = app.metric(r#"switchyard_child_restarts_total{server="s"}"#).await?;
        (restarts == 2.0).then_some(())
    })
    .await;
    app.stop().await;
    all_gone(&[], &mark).await;
}
