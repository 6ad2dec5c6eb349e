//! With `sessions: isolated` a server keeps for each client what it keeps, and no longer than the
//! client stays.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use http::Method;
use switchyard::cli::demo_upstream::{Eras, Options, Tool, Upstream};

use crate::support::{
    Answer, Http, LEGACY, Legacy, PROGRAM, Router, SOON, TestApp, alive, eventually, legacy_body,
    modern, upstream,
};

/// Marks the processes of one test.
fn mark(test: u32) -> String {
    format!("{}{test:02}", u64::from(std::process::id()) + 2_000_000)
}

/// A stateful child with these settings, whose processes carry the mark.
fn child(settings: &str, mark: &str) -> String {
    format!(
        "mcp_servers:\n  s: {{command: {PROGRAM}, args: [demo-upstream, stdio, --slow-ms, \"{mark}\"], {settings}}}\n"
    )
}

/// A server of the legacy era whose counter counts in each session.
async fn counting() -> Upstream {
    let options =
        Options { eras: Eras::Legacy, count_in_session: true, record: true, ..Options::default() };
    upstream(options).await
}

fn over_http(settings: &str, up: &Upstream) -> String {
    format!("mcp_servers:\n  s: {{url: \"{}\", {settings}}}\n", up.url())
}

/// What the counter of the answer says.
#[track_caller]
fn number(answer: Answer) -> u64 {
    let body = answer.expect(200).json();
    let text = body["result"]["content"][0]["text"].as_str();
    text.or_else(|| body["data"]["content"][0]["text"].as_str())
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("no number in {body}"))
}

async fn count(client: &Legacy) -> u64 {
    number(client.call("s__counter", "{}").await)
}

async fn count_modern(http: &Http) -> u64 {
    number(modern(http, "tools/call", Some("s__counter"), r#","arguments":{}"#).await)
}

async fn end(client: &Legacy) {
    let request = client.http.request(&Method::DELETE, "/mcp");
    request.header("mcp-session-id", &client.session).send().await.expect(204);
}

async fn sessions(app: &TestApp) -> u64 {
    app.http().server("s").await.unwrap()["upstream_sessions"].as_u64().unwrap()
}

/// The one process that is there and was not before.
fn newcomer(mark: &str, before: &BTreeSet<u32>) -> u32 {
    let new: Vec<u32> = alive(mark).into_iter().filter(|pid| !before.contains(pid)).collect();
    assert_eq!(new.len(), 1, "{new:?}");
    new[0]
}

fn runs(pid: u32) -> bool {
    // One that ended and was not waited for yet is a zombie, and that is not gone.
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Longer than a child has to end, which is three seconds and a half, and the machine to say so.
const GONE: Duration = SOON;

#[tokio::test]
async fn each_session_has_a_child_of_its_own_which_ends_with_it() {
    let mark = mark(1);
    let app = TestApp::start(&child("sessions: isolated", &mark)).await.ready().await;
    let asked = alive(&mark).into_iter().collect::<BTreeSet<_>>();
    assert_eq!((asked.len(), sessions(&app).await), (1, 0), "the one that is asked for tools");
    let (a, b) = (Legacy::connect(app.http()).await, Legacy::connect(app.http()).await);
    for expected in 1..=3 {
        assert_eq!(count(&a).await, expected);
    }
    let of_a = newcomer(&mark, &asked);
    for expected in 1..=2 {
        assert_eq!(count(&b).await, expected);
    }
    assert_eq!(count(&a).await, 4);
    assert_eq!((alive(&mark).len(), sessions(&app).await), (3, 2));
    assert_eq!(app.metric(r#"switchyard_upstream_sessions{server="s"}"#).await, Some(2.0));
    end(&a).await;
    eventually(GONE, "the child is gone", || async { (!runs(of_a)).then_some(()) }).await;
    assert_eq!(count(&b).await, 3);
    assert_eq!((alive(&mark).len(), sessions(&app).await), (2, 1));
    assert_eq!(app.metric(r#"switchyard_upstream_sessions{server="s"}"#).await, Some(1.0));
    a.call("s__counter", "{}").await.expect(404);
    app.stop().await;
    assert_eq!(alive(&mark), Vec::<u32>::new());
}

#[tokio::test]
async fn a_shared_server_is_one_for_all() {
    let mark = mark(2);
    let app = TestApp::start(&child("sessions: shared", &mark)).await.ready().await;
    let (a, b) = (Legacy::connect(app.http()).await, Legacy::connect(app.http()).await);
    assert_eq!((count(&a).await, count(&b).await, count(&a).await), (1, 2, 3));
    end(&a).await;
    assert_eq!((count(&b).await, alive(&mark).len(), sessions(&app).await), (4, 1, 0));
    app.stop().await;
    let up = counting().await;
    let app = TestApp::start(&over_http("sessions: shared", &up)).await.ready().await;
    let (a, b) = (Legacy::connect(app.http()).await, Legacy::connect(app.http()).await);
    assert_eq!((count(&a).await, count(&b).await, up.sessions()), (1, 2, 1));
    app.stop().await;
}

/// Many clients at once do not start more children than may fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_of_many_clients_that_all_fail_are_started_in_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let starts = folder.path().join("starts");
    // The first one serves; all others end at once.
    let script = format!(
        "echo x >> {0}; [ $(wc -l < {0}) -gt 1 ] && exit 3; exec {PROGRAM} demo-upstream stdio --era legacy",
        starts.display()
    );
    let yaml = format!(
        "mcp_servers:\n  s: {{command: sh, args: [\"-c\", \"{script}\"], sessions: isolated, retry_mode: off, circuit_breaker_threshold: 100000}}\n"
    );
    let app = TestApp::start(&yaml).await.ready().await;
    let calls = (0..40).map(|_| async {
        let client = Legacy::connect(app.http()).await;
        let answer = client.call("s__echo", r#"{"text":"hi"}"#).await.json();
        assert!(answer["error"].is_object(), "{answer}");
    });
    futures_util::future::join_all(calls).await;
    let started = std::fs::read_to_string(&starts).unwrap().lines().count();
    // The one that serves, and nine that fail: one more opening could be two more starts.
    assert!((2..=10).contains(&started), "{started}");
    app.stop().await;
}

#[tokio::test]
async fn a_child_that_ignores_term_is_gone_in_time_all_the_same() {
    let mark = mark(3);
    let script = format!(
        "trap '' TERM; \\\"{PROGRAM}\\\" demo-upstream stdio --era legacy --slow-ms {mark}; while :; do sleep 0.2; done"
    );
    let yaml = format!(
        "mcp_servers:\n  s: {{command: sh, args: [\"-c\", \"{script}\"], sessions: isolated}}\n"
    );
    let app = TestApp::start(&yaml).await.ready().await;
    let asked = alive(&mark).into_iter().collect::<BTreeSet<_>>();
    let client = Legacy::connect(app.http()).await;
    assert_eq!(count(&client).await, 1);
    let own: Vec<u32> = alive(&mark).into_iter().filter(|pid| !asked.contains(pid)).collect();
    assert_eq!(own.len(), 2, "the shell and the server");
    let began = Instant::now();
    end(&client).await;
    let ended = began.elapsed();
    let all_gone = || async { own.iter().all(|pid| !runs(*pid)).then_some(()) };
    eventually(GONE, "both are gone", all_gone).await;
    let gone = began.elapsed();
    assert!(gone > Duration::from_secs(2), "it was given its time: {gone:?}");
    // Whoever waited for it would have heard of the end when it was gone.
    assert!(ended + Duration::from_millis(500) < gone, "{ended:?} of {gone:?}");
    assert!(asked.iter().all(|pid| runs(*pid)));
    app.stop().await;
    assert_eq!(alive(&mark), Vec::<u32>::new());
}

#[tokio::test]
async fn each_session_has_a_session_over_http_too() {
    let up = counting().await;
    let app = TestApp::start(&over_http("sessions: isolated", &up)).await.ready().await;
    assert_eq!(up.sessions(), 1, "the one that is asked for tools");
    let (a, b) = (Legacy::connect(app.http()).await, Legacy::connect(app.http()).await);
    assert_eq!(up.sessions(), 1, "nothing is opened before it is used");
    assert_eq!((count(&a).await, count(&b).await, count(&a).await, count(&b).await), (1, 1, 2, 2));
    assert_eq!((up.sessions(), sessions(&app).await), (3, 2));
    end(&b).await;
    eventually(SOON, "it is ended", || async { (up.sessions() == 2).then_some(()) }).await;
    assert_eq!(count(&a).await, 3);
    app.stop().await;
    assert_eq!(up.sessions(), 0, "all are ended in order");
}

#[tokio::test]
async fn a_server_that_keeps_nothing_needs_no_sessions() {
    let up = upstream(Options { eras: Eras::Modern, ..Options::default() }).await;
    let app = TestApp::start(&over_http("sessions: isolated", &up)).await.ready().await;
    let client = Legacy::connect(app.http()).await;
    assert_eq!((count(&client).await, count_modern(app.http()).await), (1, 2));
    assert_eq!(sessions(&app).await, 0);
    app.stop().await;
}

#[tokio::test]
async fn what_is_idle_is_closed_and_opened_again() {
    let mark = mark(4);
    let settings = "sessions: isolated, session_idle_timeout: 4s";
    let app = TestApp::start(&child(settings, &mark)).await.ready().await;
    let asked = alive(&mark).into_iter().collect::<BTreeSet<_>>();
    let client = Legacy::connect(app.http()).await;
    assert_eq!((count(&client).await, count(&client).await), (1, 2));
    let own = newcomer(&mark, &asked);
    // A call that takes longer than the timeout is no idleness.
    client.call("s__sleep", r#"{"ms":6000}"#).await.expect(200);
    assert_eq!(count(&client).await, 3);
    eventually(GONE, "the child is gone", || async { (!runs(own)).then_some(()) }).await;
    assert_eq!(sessions(&app).await, 0);
    assert_eq!(count(&client).await, 1, "the session goes on, with a new child");
    assert!(asked.iter().all(|pid| runs(*pid)), "the shared one stays");
    app.stop().await;
}

#[tokio::test]
async fn a_new_session_takes_the_place_of_the_one_unused_for_longest() {
    let up = counting().await;
    let yaml = over_http("sessions: isolated, max_sessions: 2", &up);
    let app = TestApp::start(&yaml).await.ready().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(Legacy::connect(app.http()).await);
    }
    let [a, b, c] = clients.try_into().unwrap();
    assert_eq!((count(&a).await, count(&b).await, count(&a).await), (1, 1, 2));
    assert_eq!(count(&c).await, 1);
    assert_eq!(sessions(&app).await, 2);
    assert_eq!(count(&a).await, 3, "it was used later than the other");
    assert_eq!(count(&b).await, 1, "it had to go");

    // Nothing in use goes: the sleepers hold both places.
    let sleepers: Vec<_> = [a.clone(), b.clone()]
        .into_iter()
        .map(|client| tokio::spawn(async move { client.call("s__sleep", r#"{"ms":5000}"#).await }))
        .collect();
    eventually(SOON, "both sleep", || async {
        (up.stats().calls_of(Tool::Sleep) == 2).then_some(())
    })
    .await;
    let refused = c.call("s__counter", "{}").await.expect(200);
    let body = refused.json();
    let data = &body["error"]["data"];
    assert_eq!(data["error_code"], "MCPOverloadedError", "{body}");
    assert_eq!((&data["reason"], &data["attempts"]), (&"sessions_full".into(), &0.into()));
    assert_eq!((&data["outcome"], &data["retriable"]), (&"not_sent".into(), &true.into()));
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("max_sessions") && message.contains('2'), "{message}");
    assert_eq!(app.entry_of(&refused).await["outcome"], "refused");
    assert_eq!(app.http().server("s").await.unwrap()["state"], "up");
    app.http().call("s__counter", "{}").await.expect(503).header("retry-after");
    for sleeper in sleepers {
        sleeper.await.unwrap().expect(200);
    }
    assert_eq!((count(&c).await, sessions(&app).await), (1, 2));
    app.stop().await;
}

#[tokio::test]
async fn who_has_no_session_has_one_by_key_or_for_the_call() {
    let mark = mark(5);
    let app = TestApp::start(&child("sessions: isolated", &mark)).await.ready().await;
    assert_eq!((count_modern(app.http()).await, count_modern(app.http()).await), (1, 1));
    let rest = app.http().call("s__counter", "{}").await;
    assert_eq!(number(rest), 1);
    let bare = app.http().post("/mcp", legacy_body("tools/call", r#"{"name":"s__counter"}"#)).await;
    assert_eq!(number(bare), 1);
    assert_eq!(sessions(&app).await, 0);
    eventually(GONE, "their children end", || async { (alive(&mark).len() == 1).then_some(()) })
        .await;
    let (ci, other) = (app.keyed("ci", &["call"]).await, app.keyed("other", &["call"]).await);
    assert_eq!((count_modern(&ci).await, count_modern(&other).await), (1, 1));
    assert_eq!((count_modern(&ci).await, count_modern(&ci).await), (2, 3));
    assert_eq!(number(ci.call("s__counter", "{}").await), 4);
    assert_eq!(number(app.socket().call("s__counter", "{}").await), 1);
    assert_eq!((count_modern(&other).await, sessions(&app).await), (2, 3));
    // With a session it is the session that counts, whoever's it is.
    let client = Legacy::connect(&ci).await;
    assert_eq!((count(&client).await, count_modern(&ci).await), (1, 5));
    app.stop().await;
    assert_eq!(alive(&mark), Vec::<u32>::new());
}

#[tokio::test]
async fn a_server_hears_what_its_client_can_do_also_after_a_restart() {
    let up = counting().await;
    let yaml = over_http("sessions: isolated", &up);
    let app = TestApp::start(&yaml).await.ready().await;
    let params = format!(
        r#"{{"protocolVersion":"{LEGACY}","capabilities":{{"experimental":{{"x":{{}}}},"elicitation":{{"form":{{}},"url":{{}}}},"sampling":{{"tools":{{}}}}}},"clientInfo":{{"name":"it","version":"1"}}}}"#
    );
    let answer = app.http().post("/mcp", legacy_body("initialize", &params)).await.expect(200);
    let session = answer.header("mcp-session-id").to_owned();
    let declared = || {
        let seen = up.stats().seen_method("initialize");
        let all = seen.iter().map(|seen| {
            let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
            body["params"]["capabilities"].to_string()
        });
        all.collect::<Vec<_>>()
    };
    let expected = r#"{"elicitation":{"form":{},"url":{}},"sampling":{"tools":{}}}"#;
    let path = "/mcp".to_owned();
    let client = Legacy { http: app.http().clone(), path, session: session.clone() };
    assert_eq!(declared(), ["{}"]);
    assert_eq!(count(&client).await, 1);
    assert_eq!(declared().last().unwrap(), expected);
    assert_eq!(count(&Legacy::connect(app.http()).await).await, 1);
    assert_eq!(declared().last().unwrap(), "{}");
    count_modern(app.http()).await;
    assert_eq!(declared().last().unwrap(), "{}");
    let folder = app.stop().await;
    let app = TestApp::start_in(folder, &yaml).await.ready().await;
    let client = Legacy { http: app.http().clone(), path: "/mcp".to_owned(), session };
    assert_eq!(count(&client).await, 1);
    assert_eq!(declared().last().unwrap(), expected);
    app.stop().await;
}

#[tokio::test]
async fn a_child_that_dies_is_replaced_for_its_own_session_alone() {
    let mark = mark(6);
    let app = TestApp::start(&child("sessions: isolated", &mark)).await.ready().await;
    let asked = alive(&mark).into_iter().collect::<BTreeSet<_>>();
    let (a, b) = (Legacy::connect(app.http()).await, Legacy::connect(app.http()).await);
    assert_eq!((count(&a).await, count(&a).await), (1, 2));
    let of_a = newcomer(&mark, &asked).to_string();
    assert_eq!(count(&b).await, 1);
    let killed = std::process::Command::new("kill").args(["-KILL", &of_a]).status().unwrap();
    assert!(killed.success());
    eventually(SOON, "it is gone", || async { (alive(&mark).len() == 2).then_some(()) }).await;
    eventually(SOON, "there is a new one", || async {
        let body = a.call("s__counter", "{}").await.expect(200).json();
        (body["result"]["content"][0]["text"] == "1").then_some(())
    })
    .await;
    assert_eq!((count(&b).await, sessions(&app).await), (2, 2));
    app.stop().await;
}

#[tokio::test]
async fn a_session_that_ends_takes_its_call_along_and_nobody_elses() {
    let mark = mark(7);
    let app = TestApp::start(&child("sessions: isolated", &mark)).await.ready().await;
    let (a, b) = (Legacy::connect(app.http()).await, Legacy::connect(app.http()).await);
    assert_eq!((count(&a).await, count(&b).await), (1, 1));
    let sleeper = a.clone();
    let asleep = tokio::spawn(async move { sleeper.call("s__sleep", r#"{"ms":60000}"#).await });
    eventually(SOON, "it sleeps", || async {
        (app.http().server("s").await?["in_flight"] == 1).then_some(())
    })
    .await;
    end(&a).await;
    // Well before its time limit.
    let asleep = tokio::time::timeout(Duration::from_secs(20), asleep);
    let body = asleep.await.unwrap().unwrap().expect(200).json();
    assert!(body["error"].is_object(), "{body}");
    eventually(GONE, "the child is gone", || async { (alive(&mark).len() == 2).then_some(()) })
        .await;
    let server = app.http().server("s").await.unwrap();
    assert_eq!((&server["state"], &server["upstream_sessions"]), (&"up".into(), &1.into()));
    assert_eq!(count(&b).await, 2);
    app.stop().await;
}

#[tokio::test]
async fn a_call_that_waits_while_its_session_ends_opens_nothing() {
    let up = counting().await;
    let yaml = over_http("sessions: isolated, max_concurrency: 1", &up);
    let app = TestApp::start(&yaml).await.ready().await;
    let mut tries = 0;
    let (first, late, ran) = loop {
        tries += 1;
        let ran = up.stats().calls_of(Tool::Counter);
        let (a, b) = (Legacy::connect(app.http()).await, Legacy::connect(app.http()).await);
        let (sleeps, began) = (b.clone(), Instant::now());
        let sleep = r#"{"ms":700}"#;
        let first = tokio::spawn(async move { sleeps.call("s__sleep", sleep).await.expect(200) });
        let taken = || async { (up.stats().calls_of(Tool::Sleep) == tries).then_some(()) };
        eventually(SOON, "the place is taken", taken).await;
        let late = a.clone();
        let late = tokio::spawn(async move { late.call("s__counter", "{}").await.expect(200) });
        let waiting = r#"switchyard_upstream_queue_depth{server="s"}"#;
        eventually(SOON, "it waits", || async {
            (app.metric(waiting).await == Some(1.0) || late.is_finished()).then_some(())
        })
        .await;
        end(&a).await;
        // Before the place can have come free.
        let in_time = began.elapsed() < Duration::from_millis(700);
        let late = late.await.unwrap();
        // It waits for a second, which on a busy machine may be over before the place is free.
        let in_vain = late.json()["error"]["data"]["reason"] == "overloaded";
        if in_time && !in_vain || tries == 20 {
            break (first, late, ran);
        }
        first.await.unwrap();
        end(&b).await;
        eventually(SOON, "it is ended", || async { (up.sessions() == 1).then_some(()) }).await;
    };
    let body = late.json();
    let data = &body["error"]["data"];
    assert_eq!((&data["reason"], &data["outcome"]), (&"session_ended".into(), &"not_sent".into()));
    let entry = app.entry_of(&late).await;
    assert_eq!(
        (&entry["outcome"], &entry["attempts"]),
        (&"cancelled".into(), &0.into()),
        "{entry}"
    );
    first.await.unwrap();
    let server = app.http().server("s").await.unwrap();
    assert_eq!((&server["state"], &server["upstream_sessions"]), (&"up".into(), &1.into()));
    assert_eq!((up.sessions(), up.stats().calls_of(Tool::Counter)), (2, ran));
    app.stop().await;
}

#[tokio::test]
async fn sessions_end_with_their_server() {
    let mark = mark(8);
    let app = TestApp::start("").await.ready().await;
    let body = |idle: &str| {
        format!(
            r#"{{"name":"s","command":"{PROGRAM}","args":["demo-upstream","stdio","--slow-ms","{mark}"],"sessions":"isolated","session_idle_timeout":"{idle}"}}"#
        )
    };
    let gone = || async { alive(&mark).is_empty().then_some(()) };
    let client = Legacy::connect(app.http()).await;
    app.socket().post("/mcp/servers", body("5m")).await.expect(201);
    let shown = app.socket().get("/mcp/servers/s").await.expect(200).json();
    assert_eq!(shown["spec"]["sessions"], "isolated", "{shown}");
    assert_eq!(count(&client).await, 1);
    assert_eq!(alive(&mark).len(), 2);
    app.socket().post("/mcp/servers/s/disable", "").await.expect(200);
    eventually(GONE, "disabled, it has no processes", gone).await;
    app.socket().post("/mcp/servers/s/enable", "").await.expect(200);
    assert_eq!((count(&client).await, count(&client).await), (1, 2));
    let old = alive(&mark).into_iter().collect::<BTreeSet<_>>();
    app.socket().put("/mcp/servers/s", body("6m")).await.expect(200);
    assert_eq!(count(&client).await, 1, "replaced, it begins anew");
    eventually(GONE, "the old ones are gone", || async {
        old.iter().all(|pid| !runs(*pid)).then_some(())
    })
    .await;
    assert_eq!((alive(&mark).len(), sessions(&app).await), (2, 1));
    assert_eq!(app.metric(r#"switchyard_upstream_sessions{server="s"}"#).await, Some(1.0));
    app.socket().delete("/mcp/servers/s").await.expect(204);
    assert_eq!(alive(&mark), Vec::<u32>::new());
    app.stop().await;
}

#[tokio::test]
async fn the_command_line_says_how_many_there_are() {
    let up = counting().await;
    let router = Router::start(&over_http("sessions: isolated", &up)).await;
    let checked = router.run(&["check", "--config", "switchyard.yaml"]).await.expect(0);
    assert!(!format!("{}{}", checked.out, checked.err).contains("no effect"), "{checked:?}");
    let client = Legacy::connect(&router.http).await;
    eventually(SOON, "the tools are known", || async {
        let answer = client.call("s__counter", "{}").await.expect(200);
        answer.json()["result"].is_object().then_some(())
    })
    .await;
    let shown = router.run(&["servers", "show", "s"]).await.expect(0);
    let line = shown.out.lines().find_map(|line| line.trim().strip_prefix("sessions"));
    assert_eq!(line.map(str::trim), Some("1"), "{}", shown.out);
    assert_eq!(router.stop().await.0, 0);
    assert_eq!(up.sessions(), 0);
}

#[tokio::test]
async fn a_program_that_cannot_start_is_one_failure_for_all_sessions() {
    let yaml = "mcp_servers:\n  s: {command: switchyard-it-no-such-program, sessions: isolated}\n";
    let app = TestApp::start(yaml).await;
    let clients = [Legacy::connect(app.http()).await, Legacy::connect(app.http()).await];
    for client in &clients {
        let body = client.call("s__counter", "{}").await.expect(200).json();
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("switchyard-it-no-such-program"), "{body}");
    }
    assert_eq!(sessions(&app).await, 0);
    app.stop().await;
}
