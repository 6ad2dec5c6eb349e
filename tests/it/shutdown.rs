//! How the router ends when it is told to: nothing is lost, nothing waits for ever.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use switchyard::cli::demo_upstream::{Options, Tool};

use crate::support::{
    Answer, Http, Legacy, Router, SOON, alive, eventually, hanging, stdio, upstream,
};

const CALLS: usize = 200;
/// What calls may take to end after the signal, as the configuration has it.
const BOUND: Duration = Duration::from_secs(14);
/// What the shorter half of them takes: longer than it takes to begin them all, and much less than is
/// left after the signal.
const SHORT: u64 = 8_000;
/// What comes after: the cancelled calls' answers, the children, the ledger.
const REST: Duration = Duration::from_secs(20);

/// A number that nobody else has on the command line, to find a child by.
fn mark(test: u64) -> String {
    format!("{}{test}", u64::from(std::process::id()) + 3_000_000)
}

async fn called(http: Http, tool: &str, ms: u64, over_mcp: bool) -> Option<Answer> {
    let arguments = format!(r#"{{"ms":{ms}}}"#);
    let call = match over_mcp {
        true => {
            let params = format!(r#"{{"name":"{tool}","arguments":{arguments}}}"#);
            http.request(&http::Method::POST, "/mcp")
                .body(crate::support::legacy_body("tools/call", &params))
        }
        false => http
            .request(&http::Method::POST, "/mcp/call")
            .body(format!(r#"{{"tool_name":"{tool}","arguments":{arguments}}}"#)),
    };
    call.try_send().await.ok()
}

fn is_done(answer: &Answer) -> bool {
    answer.status == 200 && answer.text().contains("slept")
}

#[tokio::test]
async fn sigterm_drain() {
    let up = upstream(Options::default()).await;
    let mark = mark(1);
    let yaml = format!(
        "shutdown_timeout: {}ms\ndefaults: {{max_concurrency: 400, timeout: 60s}}\nmcp_servers:\n  up: {{url: \"{}\"}}\n{}",
        BOUND.as_millis(),
        up.url(),
        stdio("child", &["--slow-ms", &mark]),
    );
    let router = Router::start(&yaml).await;
    // Its session is open before the calls, and its call is one that outlives its connection.
    let legacy = Legacy::connect(&router.http).await;
    legacy.call("child__sleep", r#"{"ms":0}"#).await.expect(200);
    assert!(!alive(&mark).is_empty(), "the child runs");
    let calls: Vec<_> = (0..CALLS)
        .map(|number| {
            let server = if number % 2 == 0 { "up" } else { "child" };
            let ms = if number % 4 < 2 { SHORT } else { 60_000 };
            let (http, tool) = (router.http.clone(), format!("{server}__sleep"));
            let over_mcp = number % 8 < 4;
            (ms, tokio::spawn(async move { called(http, &tool, ms, over_mcp).await }))
        })
        .collect();
    let gauge = "switchyard_upstream_inflight{server=";
    eventually(SOON, "all calls are at their servers", || async {
        let metrics = router.http.get("/metrics").await;
        let inflight = metrics.text().lines().filter(|line| line.starts_with(gauge));
        let count = |line: &str| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
        (inflight.map(count).sum::<usize>() == CALLS).then_some(())
    })
    .await;
    let ran = || up.stats().calls_of(Tool::Sleep);
    eventually(SOON, "they run", || async { (ran() == CALLS as u64 / 2).then_some(()) }).await;

    let told = Instant::now();
    router.signal("TERM").await;
    let refused = eventually(SOON, "new calls are refused", || async {
        let answer = called(router.http.clone(), "up__sleep", 0, false).await?;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert!(told.elapsed() < BOUND, "{:?}", told.elapsed());
    assert_eq!(refused.json()["error_code"], "MCPShuttingDownError", "{}", refused.text());
    refused.header("retry-after");
    assert_eq!(refused.header("connection"), "close");
    assert_eq!(router.http.get("/readyz").await.status, 503);

    let (mut done, mut cancelled, mut ids) = (0, 0, BTreeSet::new());
    for (ms, call) in calls {
        let answer = call.await.unwrap().expect("an answer, and not a cut connection");
        assert!(told.elapsed() < BOUND + REST, "{:?}", told.elapsed());
        ids.insert(answer.id());
        match is_done(&answer) {
            true => done += 1,
            false => {
                assert_eq!(answer.status, 503, "after {ms} ms: {}", answer.text());
                assert_eq!(answer.json()["error_code"], "MCPShuttingDownError");
                cancelled += 1;
            }
        }
        assert_eq!(is_done(&answer), ms == SHORT, "{}", answer.text());
    }
    assert_eq!((done, cancelled, ids.len()), (CALLS / 2, CALLS / 2, CALLS));
    let (code, folder) = router.ended().await;
    assert_eq!(code, 0);
    assert!(told.elapsed() < BOUND + REST, "{:?}", told.elapsed());
    assert_eq!(alive(&mark), Vec::<u32>::new(), "the child is gone");
    assert_eq!(ran(), CALLS as u64 / 2, "nothing ran after the signal");

    let router = Router::start_in(folder, "").await;
    let rows = router.http.get("/mcp/audit?limit=1000").await.expect(200).json();
    let mut outcomes = std::collections::BTreeMap::<String, usize>::new();
    let mut found = 0;
    for row in rows["calls"].as_array().unwrap() {
        if ids.contains(row["id"].as_str().unwrap()) {
            found += 1;
            *outcomes.entry(row["outcome"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        if row["id"] == refused.id().as_str() {
            assert_eq!(row["outcome"], "refused", "{row}");
        }
    }
    assert_eq!(found, CALLS, "one row for each call: {outcomes:?}");
    assert_eq!(outcomes.get("ok"), Some(&(CALLS / 2)), "{outcomes:?}");
    assert_eq!(outcomes.get("cancelled"), Some(&(CALLS / 2)), "{outcomes:?}");
    router.stop().await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let up = upstream(Options::default()).await;
    let yaml = format!(
        "shutdown_timeout: 60s\nmcp_servers:\n  up: {{url: \"{}\"}}\n  mute: {{url: \"http://{}/mcp\"}}\n",
        up.url(),
        hanging().await
    );
    let router = Router::start(&yaml).await;
    let http = router.http.clone();
    let call = tokio::spawn(async move { called(http, "up__sleep", 50_000, false).await });
    eventually(SOON, "the call runs", || async { (up.stats().calls() == 1).then_some(()) }).await;
    router.signal("TERM").await;
    eventually(SOON, "it is stopping", || async {
        router.log().contains("a second signal ends at once").then_some(())
    })
    .await;
    let told = Instant::now();
    router.signal("TERM").await;
    let (code, _folder) = router.ended().await;
    assert_eq!(code, 130);
    // Else it waits for the call, for up to a minute.
    assert!(told.elapsed() < Duration::from_secs(20), "{:?}", told.elapsed());
    assert!(call.await.unwrap().is_none(), "the connection was cut");
}
