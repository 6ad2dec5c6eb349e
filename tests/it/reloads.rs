//! A file that is read again while calls are under way: what runs at servers goes on.

use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};
use switchyard::cli::demo_upstream::Options;

use crate::support::{PROGRAM, Router, SOON, TestApp, alive, eventually, refusing, upstream, yaml};

/// A number that nobody else has on the command line, to find a child by.
fn mark(test: u64) -> String {
    format!("{}{test}", u64::from(std::process::id()) + 9_000_000)
}

/// A server over stdio, with further settings and environment.
fn child(mark: &str, more: &str) -> String {
    format!(
        "mcp_servers:\n  s: {{command: \"{PROGRAM}\", args: [demo-upstream, stdio, --slow-ms, \"{mark}\"]{more}}}\n"
    )
}

/// A call that sleeps at the server, once it is there.
async fn sleeping(app: &TestApp, millis: u64) -> tokio::task::JoinHandle<serde_json::Value> {
    let http = app.http().clone();
    let body = format!(r#"{{"ms":{millis}}}"#);
    let call = tokio::spawn(async move { http.call("s__sleep", &body).await.json() });
    eventually(SOON, "the call is under way", || async {
        (app.metric(r#"switchyard_upstream_inflight{server="s"}"#).await == Some(1.0)).then_some(())
    })
    .await;
    // It is counted before it is sent.
    tokio::time::sleep(Duration::from_millis(300)).await;
    call
}

async fn reload(app: &TestApp, yaml: &str) {
    app.write_config(yaml);
    app.socket().post("/admin/reload", "").await.expect(200);
}

#[tokio::test]
async fn a_server_that_is_reached_as_before_keeps_its_connection() {
    let mark = mark(1);
    let app = TestApp::start_with_file(&child(&mark, "")).await.ready().await;
    let before = alive(&mark);
    assert_eq!(before.len(), 1);
    let counted = async || {
        let answer = app.http().call("s__counter", "{}").await.expect(200).json();
        answer["data"]["content"][0]["text"].as_str().unwrap().to_owned()
    };
    let first = counted().await;
    assert!(first.contains('1'), "{first}");
    let call = sleeping(&app, 1500).await;
    for change in [
        "description: another",
        "description: another, max_concurrency: 7, retry_attempts: 0",
        "description: another, max_concurrency: 7, call_deadline: 50s, tool_overrides: {echo: {timeout: 1s}}",
        "circuit_breaker_threshold: 2, on_change: hold",
    ] {
        reload(&app, &child(&mark, &format!(", {change}"))).await;
        assert_eq!(alive(&mark), before, "{change}");
        assert!(app.http().server("s").await.unwrap()["state"] == "up", "{change}");
    }
    let answer = call.await.unwrap();
    assert_eq!(answer["success"], true, "{answer}");
    let second = counted().await;
    assert!(second.contains('2'), "it is the same process, with its memory: {second}");
    assert_eq!(alive(&mark), before);
    // What is reached in another way is another one, and the first is gone.
    reload(&app, &child(&mark, ", env: {IT: other}")).await;
    eventually(SOON, "there is another one alone", || async {
        let now = alive(&mark);
        (now.len() == 1 && now != before).then_some(())
    })
    .await;
    app.stop().await;
    assert_eq!(alive(&mark), Vec::<u32>::new());
}

#[tokio::test]
async fn a_call_at_a_server_that_was_replaced_has_its_time() {
    let mark = mark(2);
    let settings = |more: &str| child(&mark, &format!(", timeout: 100s{more}"));
    let app = TestApp::start_with_file(&settings("")).await.ready().await;
    let before = alive(&mark);
    // Longer than what uses a replaced server may go on in any case.
    let call = sleeping(&app, 33_000).await;
    reload(&app, &settings(", env: {IT: other}")).await;
    let answer = call.await.unwrap();
    assert_eq!(answer["success"], true, "{answer}");
    eventually(SOON, "the old one is gone", || async {
        let now = alive(&mark);
        (!before.iter().any(|pid| now.contains(pid))).then_some(())
    })
    .await;
    app.stop().await;
}

/// The end of the router does not wait for calls that the old server would still have time for.
#[tokio::test]
async fn a_server_that_was_replaced_ends_with_the_router() {
    let mark = mark(3);
    let settings = |more: &str| child(&mark, &format!(", timeout: 300s{more}"));
    let yaml = |more: &str| format!("shutdown_timeout: 1s\n{}", settings(more));
    let app = TestApp::start_with_file(&yaml("")).await.ready().await;
    let call = sleeping(&app, 250_000).await;
    reload(&app, &yaml(", env: {IT: other}")).await;
    eventually(SOON, "there are two", || async { (alive(&mark).len() == 2).then_some(()) }).await;
    let stopped = tokio::time::timeout(SOON, app.stop()).await;
    assert!(stopped.is_ok());
    eventually(SOON, "both are gone", || async { alive(&mark).is_empty().then_some(()) }).await;
    call.abort();
}

/// Service managers send it whenever they like; until the router is up it is kept for then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hang_up_signal_during_the_start_is_a_reload_once_the_router_is_up() {
    let up = upstream(Options::default()).await;
    let router = Router::start("").await;
    let data = router.data_dir();
    let (_, folder) = router.stop().await;
    let path = folder.path().to_owned();
    // The start waits for whoever has the database.
    let options = SqliteConnectOptions::new().filename(data.join("state.db"));
    let mut other = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql("begin exclusive").execute(&mut other).await.unwrap();
    let address = refusing().await;
    let starting = tokio::spawn(Router::start_again(folder, address));
    eventually(SOON, "the port is bound", || async {
        tokio::net::TcpStream::connect(address).await.ok().map(drop)
    })
    .await;
    // It has read its configuration by now.
    Router::write(&path, &yaml(&[("late", &up)]));
    let started = alive(&format!("--listen {address}"));
    assert_eq!(started.len(), 1, "{started:?}");
    let hangup = ["-HUP".to_owned(), started[0].to_string()];
    assert!(tokio::process::Command::new("kill").args(hangup).status().await.unwrap().success());
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let router = starting.await.unwrap();
    eventually(SOON, "the file was read again", || async {
        router.log().contains("configuration reloaded (SIGHUP): 1 servers").then_some(())
    })
    .await;
    eventually(SOON, "the new server is callable", || async {
        (router.http.call("late__echo", r#"{"text":"hi"}"#).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(router.stop().await.0, 0);
}
