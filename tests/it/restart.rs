//! After `kill -9` everything that was known is there at once, and nothing needs a hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use switchyard::cli::demo_upstream::{Options, Upstream};

use crate::support::{
    Http, Legacy, Router, SOON, alive, eventually, fastest, hold, legacy_body, stdio, switchyard,
    upstream, upstream_at, yaml,
};

const HI: &str = r#"{"text":"hi"}"#;

async fn listed(http: &Http) -> usize {
    let list = http.post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    list.json()["result"]["tools"].as_array().unwrap().len()
}

async fn ready(router: &Router) {
    eventually(SOON, "the router is ready", || async { router.is_ready().await.then_some(()) })
        .await;
}

/// Calls without pause until told otherwise; gives the number of answers.
fn load(http: &Http) -> (Vec<tokio::task::JoinHandle<()>>, Arc<AtomicU64>) {
    let answered = Arc::new(AtomicU64::new(0));
    let tasks = (0..6)
        .map(|_| {
            let (http, answered) = (http.clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                let body = format!(r#"{{"tool_name":"up__echo","arguments":{HI}}}"#);
                loop {
                    let call = http.request(&http::Method::POST, "/mcp/call").body(body.clone());
                    if call.try_send().await.is_err() {
                        return;
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    (tasks, answered)
}

#[tokio::test]
async fn after_a_kill_under_load_everything_is_there_at_once() {
    let up = upstream(Options::default()).await;
    let address = up.address();
    let settings = format!(
        "defaults: {{retry_mode: off, circuit_breaker_threshold: 1000}}\n{}",
        yaml(&[("up", &up)])
    );
    let router = Router::start(&settings).await;
    ready(&router).await;
    let client = Legacy::connect(&router.http).await;
    let first = client.call("up__echo", HI).await.expect(200).id();
    eventually(SOON, "the call is in the ledger", || async {
        (router.http.get(&format!("/mcp/audit/{first}")).await.status == 200).then_some(())
    })
    .await;
    let (tasks, answered) = load(&router.http);
    eventually(SOON, "load", || async { (answered.load(Ordering::Relaxed) > 50).then_some(()) })
        .await;
    let folder = router.kill().await;
    for task in tasks {
        task.await.unwrap();
    }
    up.stop().await;
    hold(address).unwrap();

    // The bound is for an idle machine; with tests beside this one the best of some starts counts.
    let mut starts = 0;
    let mut folder = folder;
    let router = loop {
        let router = Router::start_in(folder, &settings).await;
        assert_eq!(listed(&router.http).await, 11);
        let server = router.http.server("up").await.unwrap();
        let took = router.listening.elapsed();
        assert_eq!((&server["tools"], &server["stale"]), (&11.into(), &true.into()), "{server}");
        if took < Duration::from_millis(200) {
            break router;
        }
        starts += 1;
        assert!(starts < 20, "{took:?}");
        folder = router.kill().await;
    };

    let client = Legacy { http: router.http.clone(), ..client };
    client.request("ping", "{}").await.expect(200);
    let entry = router.http.get(&format!("/mcp/audit/{first}")).await.expect(200).json();
    assert_eq!(entry["outcome"], "ok");
    let refused = client.call("up__echo", HI).await.expect(200).json();
    assert_eq!(refused["error"]["data"]["error_code"], "MCPConnectionError", "{refused}");

    let _up = upstream_at(address, Options::default()).await;
    let answer = eventually(SOON, "calls succeed by themselves", || async {
        let answer = client.call("up__echo", HI).await.expect(200).json();
        (answer["error"].is_null()).then_some(answer)
    })
    .await;
    assert_eq!(answer["result"]["content"][0]["text"], "hi");
    eventually(SOON, "the list is fresh", || async {
        let server = router.http.server("up").await.unwrap();
        (server["stale"] == false && server["last_error"].is_null()).then_some(())
    })
    .await;
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn calls_answered_before_a_kill_are_in_the_ledger() {
    let up = upstream(Options::default()).await;
    let settings = format!("audit: {{durability: strict}}\n{}", yaml(&[("up", &up)]));
    let router = Router::start(&settings).await;
    ready(&router).await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(router.http.call("up__echo", HI).await.expect(200).id());
    }
    let router = Router::start_in(router.kill().await, &settings).await;
    for id in ids {
        router.http.get(&format!("/mcp/audit/{id}")).await.expect(200);
    }
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_killed_router_leaves_no_child_behind() {
    let mark = format!("{}7", u64::from(std::process::id()) + 1_000_000);
    let router =
        Router::start(&format!("mcp_servers:\n{}", stdio("child", &["--slow-ms", &mark]))).await;
    eventually(SOON, "the child runs", || async { (alive(&mark).len() == 1).then_some(()) }).await;
    let _folder = router.kill().await;
    eventually(SOON, "the child ends", || async { alive(&mark).is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn a_stop_waits_for_the_calls_in_flight() {
    let up: Upstream = upstream(Options::default()).await;
    let settings = format!("shutdown_timeout: 60s\n{}", yaml(&[("up", &up)]));
    let router = Router::start(&settings).await;
    ready(&router).await;
    let http = router.http.clone();
    let call = tokio::spawn(async move { http.call("up__sleep", r#"{"ms":600}"#).await });
    eventually(SOON, "the tool runs", || async { (up.stats().calls() == 1).then_some(()) }).await;
    let began = Instant::now();
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    // It ends with the call, and not with the time that it might have.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let answer = call.await.unwrap().expect(200);
    assert_eq!(answer.json()["success"], true);
    let router = Router::start_in(folder, "").await;
    router.http.get(&format!("/mcp/audit/{}", answer.id())).await.expect(200);
    assert_eq!(router.stop().await.0, 0);
}

/// A second router on the data folder of a running one ends at once, and that one notices nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_router_same_db() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&yaml(&[("up", &up)])).await;
    ready(&router).await;
    let (tasks, answered) = load(&router.http);
    let bound = Duration::from_secs(1);
    let second = ["serve", "--config", "switchyard.yaml"];
    let took = fastest(bound, async || {
        let began = Instant::now();
        let refused = switchyard(router.folder.path(), &second).await.expect(4);
        assert!(refused.err.contains(&router.pid().to_string()), "{refused:?}");
        began.elapsed()
    })
    .await;
    assert!(took <= bound, "{took:?}");
    let before = answered.load(Ordering::Relaxed);
    eventually(SOON, "calls go on", || async {
        (answered.load(Ordering::Relaxed) > before + 50).then_some(())
    })
    .await;
    let id = router.http.call("up__echo", HI).await.expect(200).id();
    assert_eq!(router.http.get("/readyz").await.status, 200);
    eventually(SOON, "the call is in the ledger", || async {
        (router.http.get(&format!("/mcp/audit/{id}")).await.status == 200).then_some(())
    })
    .await;
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    for task in tasks {
        task.await.unwrap();
    }
    switchyard(folder.path(), &["audit", "verify"]).await.expect(0);
}
