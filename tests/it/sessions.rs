//! Sessions of legacy clients: whose they are, how long they live, what they cost, and that a
//! restart does not end them.

use std::time::{Duration, Instant};

use http::Method;
use switchyard::cli::demo_upstream::Options;
use switchyard::cli::demo_upstream::Upstream;

use crate::support::{
    Call, Http, LEGACY, Legacy, Lines, MODERN, Router, SOON, TestApp, eventually, legacy_body,
    modern_params, upstream, yaml,
};

const HI: &str = r#"{"text":"hi"}"#;

/// With SWITCHYARD_TEST_FULL=1 the figures that are promised, else a part of them.
fn full() -> bool {
    std::env::var_os("SWITCHYARD_TEST_FULL").is_some_and(|value| value == "1")
}

fn initialize(http: &Http) -> Call {
    let params = format!(
        r#"{{"protocolVersion":"{LEGACY}","capabilities":{{"roots":{{"listChanged":true}}}},"clientInfo":{{"name":"a-usual-client","version":"1.2.3"}}}}"#
    );
    post(http).body(legacy_body("initialize", &params))
}

fn post(http: &Http) -> Call {
    http.request(&Method::POST, "/mcp").header("accept", "application/json, text/event-stream")
}

fn in_session(call: Call, session: &str) -> Call {
    call.header("mcp-session-id", session).header("mcp-protocol-version", LEGACY)
}

/// Only the handshake's first half: nothing after the answer with the id.
async fn open(http: &Http) -> Legacy {
    let answer = initialize(http).send().await.expect(200);
    Legacy {
        http: http.clone(),
        session: answer.header("mcp-session-id").to_owned(),
        path: "/mcp".to_owned(),
    }
}

async fn listen(client: &Legacy) -> Lines {
    let call = client.http.request(&Method::GET, "/mcp").header("accept", "text/event-stream");
    let mut lines = in_session(call, &client.session).stream().await;
    assert_eq!(lines.next_line_with(":").await, ": open");
    lines
}

async fn ping(client: &Legacy) -> u16 {
    client.request("ping", "{}").await.status
}

async fn end(client: &Legacy) -> u16 {
    let call = client.http.request(&Method::DELETE, "/mcp");
    in_session(call, &client.session).send().await.status
}

async fn ready(router: &Router) {
    eventually(SOON, "the upstream answered", || async {
        let server = router.http.server("up").await?;
        (server["tools"] != 0 && server["stale"] == false).then_some(())
    })
    .await;
}

async fn running(settings: &str) -> (Router, Upstream) {
    let up = upstream(Options::default()).await;
    let router = Router::start(&format!("{settings}{}", yaml(&[("up", &up)]))).await;
    ready(&router).await;
    (router, up)
}

async fn count(http: &Http) -> usize {
    let metrics = http.get("/metrics").await.expect(200);
    let value = metrics
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("switchyard_sessions{era=\"legacy\"} "));
    value.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_session_survives_a_kill_right_after_its_answer() {
    let (router, up) = running("").await;
    let old = Legacy::connect(&router.http).await;
    let stream = listen(&old).await;
    let ended = Legacy::connect(&router.http).await;
    assert_eq!(end(&ended).await, 204);
    assert_eq!((ping(&ended).await, end(&ended).await), (404, 404));
    let opened = futures_util::future::join_all((0..20).map(|_| open(&router.http))).await;
    let router = Router::start_in(router.kill().await, &yaml(&[("up", &up)])).await;
    drop(stream);
    ready(&router).await;

    let again = |client: Legacy| Legacy { http: router.http.clone(), ..client };
    let (old, ended) = (again(old), again(ended));
    let mut stream = listen(&old).await;
    let answer = old.call("up__echo", HI).await.expect(200).json();
    assert_eq!(answer["result"]["content"][0]["text"], "hi");
    for client in opened {
        assert_eq!(ping(&again(client)).await, 200);
    }
    assert_eq!(ping(&ended).await, 404);
    // The stream that was opened after the restart hears of changes.
    router.run(&["servers", "disable", "up"]).await.expect(0);
    let heard = stream.next_line_with("data:").await;
    assert!(heard.contains("list_changed"), "{heard}");
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_session_is_its_callers_alone_also_after_a_restart() {
    let router = Router::start("").await;
    let keyed = async |name: &str| {
        let body = format!(r#"{{"name":"{name}","scopes":["call","read"]}}"#);
        let socket = Http::socket(router.data_dir().join("admin.sock"));
        let made = socket.post("/admin/keys", body).await.expect(201).json();
        made["key"].as_str().unwrap().to_owned()
    };
    let (one, two) = (keyed("one").await, keyed("two").await);
    let session = open(&router.http.with_key(&one)).await.session;
    let router = Router::start_in(router.kill().await, "").await;
    let of = |http: Http| Legacy { http, session: session.clone(), path: "/mcp".to_owned() };
    for stranger in [of(router.http.with_key(&two)), of(router.http.clone())] {
        assert_eq!((ping(&stranger).await, end(&stranger).await), (404, 404));
    }
    let owner = of(router.http.with_key(&one));
    assert_eq!((ping(&owner).await, end(&owner).await, ping(&owner).await), (200, 204, 404));
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_session_that_nobody_uses_expires_and_one_in_use_does_not() {
    let (router, _up) = running("limits: {session_idle: 4s}\n").await;
    let idle = open(&router.http).await;
    let listening = open(&router.http).await;
    let _stream = listen(&listening).await;
    let calling = open(&router.http).await;
    let call = {
        let calling = calling.clone();
        tokio::spawn(async move { calling.call("up__sleep", r#"{"ms":9000}"#).await })
    };
    eventually(SOON, "the idle one is gone", || async {
        (count(&router.http).await == 2).then_some(())
    })
    .await;
    assert_eq!(ping(&idle).await, 404);
    assert!(call.await.unwrap().expect(200).json()["error"].is_null());
    assert_eq!((ping(&calling).await, ping(&listening).await), (200, 200));
    // It is gone from the database too; with the time it would have now it would be there.
    let router = Router::start_in(router.kill().await, "").await;
    let again = |client: &Legacy| Legacy { http: router.http.clone(), ..client.clone() };
    assert_eq!((ping(&again(&idle)).await, ping(&again(&calling)).await), (404, 200));
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn when_all_are_open_the_one_unused_the_longest_makes_room() {
    let limits = "limits: {sessions: 3}\n";
    let router = Router::start(limits).await;
    let apart = || tokio::time::sleep(Duration::from_millis(5));
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(open(&router.http).await);
        apart().await;
    }
    let stream = listen(&clients[0]).await;
    apart().await;
    // Used in the order 1, 2, 0; and 1 has been used again since.
    assert_eq!(ping(&clients[1]).await, 200);
    apart().await;
    clients.push(open(&router.http).await);
    assert_eq!(count(&router.http).await, 3);
    apart().await;
    assert_eq!(ping(&clients[2]).await, 404);
    clients.push(open(&router.http).await);
    // The first was unused longer still, but its stream is open.
    assert_eq!(ping(&clients[1]).await, 404);
    for client in [&clients[0], &clients[3], &clients[4]] {
        assert_eq!(ping(client).await, 200);
    }
    // When all listen there is nobody to send away.
    let _streams = [listen(&clients[3]).await, listen(&clients[4]).await];
    let full = initialize(&router.http).send().await.expect(503);
    let message = full.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("limits.sessions"), "{message}");
    assert_eq!(end(&clients[0]).await, 204);
    assert!(!stream.rest().await.contains("data:"), "its stream ended with it");
    clients.push(open(&router.http).await);

    let router = Router::start_in(router.kill().await, limits).await;
    assert_eq!(count(&router.http).await, 3);
    let again = clients.iter().map(|client| async {
        ping(&Legacy { http: router.http.clone(), ..client.clone() }).await
    });
    let again = futures_util::future::join_all(again).await;
    assert_eq!(again, [404, 404, 404, 200, 200, 200]);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn fewer_sessions_may_be_open_than_there_were() {
    let app = TestApp::start("").await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(open(app.http()).await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let app = TestApp::start_in(app.stop().await, "limits: {sessions: 4}\n").await;
    open(app.http()).await;
    assert_eq!(app.metric("switchyard_sessions{era=\"legacy\"}").await, Some(4.0));
    let again = |client: &Legacy| Legacy { http: app.http().clone(), ..client.clone() };
    assert_eq!((ping(&again(&clients[6])).await, ping(&again(&clients[7])).await), (404, 200));
    app.stop().await;
}

/// Opens sessions over a few connections at once; gives their ids and how long it took.
async fn crowd(http: &Http, count: usize) -> (Vec<String>, Duration) {
    const CONNECTIONS: usize = 32;
    let began = Instant::now();
    let each = |part: usize| async move {
        let mut line = http.line().await;
        let mut sessions = Vec::new();
        for _ in (part..count).step_by(CONNECTIONS) {
            let answer = line.send(initialize(http)).await.expect(200);
            sessions.push(answer.header("mcp-session-id").to_owned());
        }
        sessions
    };
    let sessions = futures_util::future::join_all((0..CONNECTIONS).map(each)).await;
    (sessions.concat(), began.elapsed())
}

/// One call in each session.
async fn call_once(http: &Http, sessions: &[String]) {
    let body = legacy_body("tools/call", &format!(r#"{{"name":"up__echo","arguments":{HI}}}"#));
    let each = |part: &'_ [String]| {
        let (part, body) = (part.to_vec(), body.clone());
        async move {
            let mut line = http.line().await;
            for session in part {
                let call = in_session(post(http), &session).body(body.clone());
                let answer = line.send(call).await.expect(200);
                assert!(answer.text().contains("result"), "{}", answer.text());
            }
        }
    };
    futures_util::future::join_all(sessions.chunks(sessions.len().div_ceil(32)).map(each)).await;
}

/// Ends sessions as a client does that is done.
async fn end_all(http: &Http, sessions: &[String]) {
    let each = |part: &'_ [String]| {
        let part = part.to_vec();
        async move {
            let mut line = http.line().await;
            for session in part {
                let call = in_session(http.request(&Method::DELETE, "/mcp"), &session);
                line.send(call).await.expect(204);
            }
        }
    };
    futures_util::future::join_all(sessions.chunks(sessions.len().div_ceil(32)).map(each)).await;
}

/// The router's memory, once every call is in the ledger and in its index.
async fn at_rest(router: &Router) -> u64 {
    eventually(SOON, "the ledger and its index have caught up", || async {
        let metrics = router.http.get("/metrics").await.expect(200);
        let written = metrics.text().lines().any(|line| line == "switchyard_audit_queue_depth 0");
        let page = router.http.get("/mcp/audit?limit=1").await.expect(200).json();
        (written && page["index"]["behind"] == 0).then_some(())
    })
    .await;
    router.resident()
}

#[tokio::test]
async fn a_session_costs_little_and_nothing_once_it_ended() {
    // The full number expires; that takes longer than opening it on the slowest machine.
    let (number, idle) = if full() { (10_000, 120) } else { (3000, 600) };
    // Without payloads, which the ledger's index would take memory for.
    let (router, _up) = running(&format!(
        "limits: {{session_idle: {idle}s}}\naudit: {{arguments: none, results: none}}\n"
    ))
    .await;
    // What the first requests need once: buffers, statements, pages of the database.
    let (warm, _) = crowd(&router.http, 300).await;
    // Some calls of each: what the ledger and its index need for them is not the sessions'.
    for _ in 0..5 {
        call_once(&router.http, &warm).await;
    }
    end_all(&router.http, &warm).await;
    assert_eq!(count(&router.http).await, 0);
    let before = at_rest(&router).await;
    let per_session =
        |now: u64, since: u64| now.saturating_sub(since) / u64::try_from(number).unwrap();

    let (sessions, took) = crowd(&router.http, number).await;
    let opened = router.resident();
    call_once(&router.http, &sessions).await;
    let called = at_rest(&router).await;
    assert_eq!(count(&router.http).await, number);
    if full() {
        eventually(Duration::from_secs(2 * idle), "all expire", || async {
            (count(&router.http).await == 0).then_some(())
        })
        .await;
    } else {
        end_all(&router.http, &sessions).await;
        assert_eq!(count(&router.http).await, 0);
    }
    let after = router.resident();
    let (again, took_again) = crowd(&router.http, number).await;
    call_once(&router.http, &again).await;
    let called_again = at_rest(&router).await;
    eprintln!(
        "{number} sessions: opened in {took:?} and {took_again:?}; {} KiB before, \
         {} B a session, {} B once it called; {} KiB after; {} B a session the second time",
        before / 1024,
        per_session(opened, before),
        per_session(called, before),
        after / 1024,
        per_session(called_again, before),
    );
    // Page caches of the database fill as rows come, whoever's they are; only the full number
    // stands out against them.
    let caches = 8 << 20;
    let bytes = |each: u64| each * u64::try_from(number).unwrap() + caches;
    assert!(called - before < bytes(1500), "{before} {opened} {called}");
    // The memory of the first is used for the second.
    let growth = called_again.saturating_sub(called);
    assert!(growth < bytes(100), "{before} {called} {after} {called_again}");
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_stop_ends_open_streams_in_order_and_soon() {
    let (legacy, modern) = if full() { (1000, 100) } else { (40, 10) };
    let (router, _up) = running("shutdown_timeout: 60s\n").await;
    let http = &router.http;
    let (sessions, _) = crowd(http, legacy).await;
    let mut streams = Vec::new();
    for session in sessions {
        streams
            .push(listen(&Legacy { http: http.clone(), session, path: "/mcp".to_owned() }).await);
    }
    let mut subscriptions = Vec::new();
    let params = modern_params(r#","notifications":{"toolsListChanged":true}"#);
    for _ in 0..modern {
        let call = post(http)
            .header("mcp-protocol-version", MODERN)
            .header("mcp-method", "subscriptions/listen")
            .body(legacy_body("subscriptions/listen", &params));
        let mut lines = call.stream().await;
        let first = lines.next_line_with("data:").await;
        assert!(first.contains("notifications/subscriptions/acknowledged"), "{first}");
        subscriptions.push(lines);
    }
    let began = Instant::now();
    let (code, _folder) = router.stop().await;
    let took = began.elapsed();
    eprintln!("{legacy} streams and {modern} subscriptions: ended in {took:?}");
    assert_eq!(code, 0);
    assert!(took < Duration::from_secs(30), "{took:?}");
    for stream in streams {
        assert!(!stream.rest().await.contains("data:"));
    }
    for subscription in subscriptions {
        let rest = subscription.rest().await;
        assert!(rest.contains(r#""id":7,"result":{"resultType":"complete""#), "{rest}");
    }
}
