//! Circuit breakers as callers and operators see them: refusals, API, command line, history, metrics,
//! over restarts and changes of a server.

mod kept;
mod ours;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use switchyard::cli::demo_upstream::{Fault, FaultPlan, Options, Upstream};
use switchyard::model::BreakerScope;
use switchyard::store::{EventRow, Store};
use tempfile::TempDir;

use crate::support::{
    Answer, Fault as Act, Finished, Http, Legacy, Rig, Router, SOON, TestApp, eventually, modern,
    refusing, upstream,
};

const HI: &str = r#"{"text":"hi"}"#;
/// Nothing here is about retries, and no breaker ends its open period while a test looks at it.
const DEFAULTS: &str = "defaults: {retry_mode: off, circuit_breaker_threshold: 3, circuit_breaker_timeout: 2m, timeout: 30s}\n";

fn with(servers: &[(&str, &Upstream)], more: &str) -> String {
    let lines: String = servers
        .iter()
        .map(|(name, up)| format!("  {name}: {{url: \"{}\"{more}}}\n", up.url()))
        .collect();
    format!("{DEFAULTS}mcp_servers:\n{lines}")
}

async fn broken() -> Upstream {
    let up = upstream(Options::default()).await;
    up.faults().set(FaultPlan::calls(Fault::HttpStatus(500)));
    up
}

/// As many failures as open a breaker.
async fn fail_thrice(http: &Http, tool: &str) {
    for _ in 0..3 {
        let answer = http.call(tool, HI).await.expect(200).json();
        assert_eq!((&answer["success"], &answer["attempts"]), (&false.into(), &1.into()));
    }
}

async fn shown(http: &Http, name: &str) -> Value {
    http.get(&format!("/mcp/circuit-breakers/{name}")).await.expect(200).json()
}

async fn history(http: &Http, path: &str) -> Vec<Value> {
    let answer = http.get(&format!("/mcp/circuit-breakers/{path}")).await.expect(200).json();
    assert_eq!(answer["next_before"], Value::Null, "{answer}");
    answer["transitions"].as_array().unwrap().clone()
}

/// Steps as `from to reason`, oldest first.
fn steps(transitions: &[Value]) -> Vec<String> {
    let word = |one: &Value, key: &str| one[key].as_str().unwrap().to_owned();
    let step =
        |one: &Value| format!("{} {} {}", word(one, "from"), word(one, "to"), word(one, "reason"));
    transitions.iter().rev().map(step).collect()
}

async fn command(http: &Http, name: &str, verb: &str, body: &str) -> Answer {
    http.post(&format!("/mcp/circuit-breakers/{name}/{verb}"), body.to_owned()).await
}

fn millis(text: &Value) -> i64 {
    text.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// What was recorded of breakers in `events`, oldest first.
async fn acts(folder: &TempDir) -> Vec<EventRow> {
    let store = Store::open(&folder.path().join("data")).await.unwrap();
    let mut events = store.events(100).await.unwrap();
    store.close().await.unwrap();
    events.retain(|event| event.kind.starts_with("breaker."));
    events.reverse();
    events
}

async fn ready(router: &Router, servers: usize) {
    eventually(SOON, "the servers are up", || async {
        let list = router.http.get("/mcp/servers").await.expect(200).json();
        let servers_up = list["servers"].as_array()?.iter().filter(|one| one["state"] == "up");
        (servers_up.count() == servers).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_breaker_that_opened_is_seen_everywhere_with_the_failure_that_caused_it() {
    let (up, calm) = (broken().await, upstream(Options::default()).await);
    let router = Router::start(&with(&[("up", &up), ("calm", &calm)], "")).await;
    ready(&router, 2).await;
    let before = shown(&router.http, "up").await;
    assert_eq!((&before["state"], &before["failures"]), (&"closed".into(), &0.into()));
    assert_eq!(before["last_transitions"], json!([]));
    fail_thrice(&router.http, "up__echo").await;

    let earliest = now();
    let opened = shown(&router.http, "up").await;
    let latest = now();
    for (key, value) in [
        ("server", json!("up")),
        ("state", json!("open")),
        ("failures", json!(3)),
        ("threshold", json!(3)),
        ("trips", json!(1)),
        ("probing", json!(0)),
        ("reason", json!("failures")),
        ("forced", Value::Null),
        ("generation", json!(1)),
        ("tool", Value::Null),
    ] {
        assert_eq!(opened[key], value, "{key}: {opened}");
    }
    let error = opened["last_error"].as_str().unwrap();
    assert!(error.contains("500"), "{error}");
    assert!((0..60_000).contains(&(latest - millis(&opened["last_error_at"]))), "{opened}");
    let wait = opened["retry_after_ms"].as_i64().unwrap();
    assert!((60_000..=120_000).contains(&wait), "{opened}");
    // It was said at some time between the two.
    let said = millis(&opened["open_until"]) - wait;
    assert!((earliest - 100..=latest + 100).contains(&said), "{earliest} {latest}: {opened}");
    let last = &opened["last_transitions"][0];
    assert_eq!(steps(std::slice::from_ref(last)), ["closed open failures"]);
    assert_eq!((&last["error"], &last["open_for_ms"]), (&error.into(), &120_000.into()));
    assert_eq!((&last["actor"], &last["note"]), (&Value::Null, &Value::Null));

    let list = router.http.get("/mcp/circuit-breakers").await.expect(200).json();
    assert_eq!(list["total"], 2);
    let names: Vec<_> = list["circuit_breakers"].as_array().unwrap().iter().collect();
    assert_eq!([&names[0]["server"], &names[1]["server"]], ["calm", "up"], "in order");
    assert_eq!([&names[0]["state"], &names[1]["state"]], ["closed", "open"]);

    for (name, state) in [("up", "open"), ("calm", "closed")] {
        let listed = router.http.server(name).await.unwrap();
        assert_eq!(listed["breaker"], state, "{listed}");
        let server = router.http.get(&format!("/mcp/servers/{name}")).await.expect(200).json();
        assert_eq!(server["breaker"], state, "{server}");
        assert_eq!(server["circuit_breakers"][0]["state"], state, "{server}");
        let health = router.http.get("/mcp/health").await.expect(200).json();
        let of = health["servers"].as_array().unwrap().iter().find(|one| one["name"] == name);
        assert_eq!(of.unwrap()["breaker"], state, "{health}");
        assert_eq!(of.unwrap()["healthy"], true, "{health}");
    }

    let table = router.run(&["breakers"]).await.expect(0).out;
    let line = table.lines().find(|line| line.starts_with("up ")).unwrap();
    for part in [" open ", " 3/3 ", " 1 ", " failures ", "500"] {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    let log = router.run(&["breakers", "history", "up"]).await.expect(0).out;
    assert_eq!(log.lines().count(), 1, "{log}");
    for part in ["  up  closed → open  ", "failures (3 in a row), for 2m: ", error] {
        assert!(log.contains(part), "{part:?} is not in {log}");
    }
    let json = router.run(&["breakers", "history", "--json"]).await.expect(0).json();
    assert_eq!(json["transitions"][0]["error"], error);
    let json = router.run(&["breakers", "list", "--json"]).await.expect(0).json();
    assert_eq!(json["total"], 2);
    let servers = router.run(&["servers"]).await.expect(0).out;
    let line = servers.lines().find(|line| line.starts_with("up ")).unwrap();
    assert!(line.split_whitespace().any(|word| word == "open"), "{servers}");
    let server = router.run(&["servers", "show", "up"]).await.expect(0).out;
    let line = server.lines().find(|line| line.contains("breaker ")).unwrap();
    for part in ["open until 2", "3 of 3 failures in a row", error] {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_refused_call_says_so_in_each_entrance_and_when_to_come_again() {
    let up = broken().await;
    let app = TestApp::start(&with(&[("up", &up)], "")).await.ready().await;
    fail_thrice(app.http(), "up__echo").await;
    let sent = up.stats().calls();

    let refused = app.http().call("up__echo", HI).await.expect(503);
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    let body = refused.json();
    for (key, value) in [
        ("success", json!(false)),
        ("error_code", json!("MCPCircuitOpenError")),
        ("reason", json!("breaker_open")),
        ("outcome", json!("not_sent")),
        ("retriable", json!(true)),
        ("attempts", json!(0)),
        ("server_name", json!("up")),
    ] {
        assert_eq!(body[key], value, "{key}: {body}");
    }
    let wait = body["retry_after_ms"].as_u64().unwrap();
    assert!((1..=120_000).contains(&wait), "{body}");
    assert_eq!(seconds, wait.div_ceil(1000), "whole seconds, never too early");
    let entry = app.entry_of(&refused).await;
    assert_eq!(
        (&entry["outcome"], &entry["error_code"], &entry["attempts"]),
        (&"refused".into(), &"MCPCircuitOpenError".into(), &0.into())
    );

    let legacy = Legacy::connect(app.http()).await;
    let member = format!(r#","arguments":{HI}"#);
    for answer in [
        legacy.call("up__echo", HI).await,
        modern(app.http(), "tools/call", Some("up__echo"), &member).await,
    ] {
        let error = answer.expect(200).json()["error"].clone();
        assert_eq!(error["code"], -32603, "{error}");
        let data = error["data"].as_object().unwrap();
        let wait = data["retry_after_ms"].as_u64().unwrap();
        assert!((1..=120_000).contains(&wait), "{error}");
        let mut rest = data.clone();
        rest.remove("retry_after_ms");
        assert_eq!(
            Value::from(rest),
            json!({
                "error_code": "MCPCircuitOpenError", "reason": "breaker_open", "server": "up",
                "outcome": "not_sent", "attempts": 0, "retriable": true,
            })
        );
    }
    assert_eq!(up.stats().calls(), sent, "nothing was sent");
    app.stop().await;
}

#[tokio::test]
async fn while_a_probe_is_under_way_others_are_told_to_wait_a_moment() {
    let rig = Rig::legacy(&["echo"]).await;
    let yaml = format!("{DEFAULTS}{}", rig.yaml("up", "circuit_breaker_timeout: 50ms"));
    let app = TestApp::start(&yaml).await.ready().await;
    rig.set("echo", Act::status(500));
    fail_thrice(app.http(), "up__echo").await;
    rig.set("echo", Act::hold(Act::None));
    let sent = rig.counts("echo").requests;
    let http = app.http().clone();
    let probe = tokio::spawn(async move {
        eventually(SOON, "the probe is let through", || async {
            let answer = http.call("up__echo", HI).await;
            (answer.status != 503).then_some(answer)
        })
        .await
    });
    let half = eventually(SOON, "the breaker is half open", || async {
        let view = shown(app.http(), "up").await;
        (view["state"] == "half_open").then_some(view)
    })
    .await;
    assert_eq!((&half["probing"], &half["reason"]), (&1.into(), &"timer".into()), "{half}");
    let wait = half["retry_after_ms"].as_u64().unwrap();
    assert!((1..=1000).contains(&wait), "{half}");
    let refused = app.http().call("up__echo", HI).await.expect(503);
    assert_eq!(refused.header("retry-after"), "1");
    let body = refused.json();
    assert_eq!(
        (&body["reason"], &body["error_code"], &body["outcome"], &body["retriable"]),
        (
            &"breaker_probing".into(),
            &"MCPCircuitOpenError".into(),
            &"not_sent".into(),
            &true.into()
        ),
        "{body}"
    );
    rig.release();
    assert_eq!(probe.await.unwrap().expect(200).json()["success"], true);
    assert_eq!(rig.counts("echo").requests - sent, 1, "one probe");
    let closed = shown(app.http(), "up").await;
    assert_eq!((&closed["state"], &closed["trips"]), (&"closed".into(), &0.into()), "{closed}");
    assert_eq!(
        steps(&history(app.http(), "up/history").await),
        ["closed open failures", "open half_open timer", "half_open closed probe_succeeded"]
    );
    app.stop().await;
}

#[tokio::test]
async fn an_operators_open_refuses_with_the_reason_and_ends_by_itself() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start(&with(&[("up", &up)], "")).await.ready().await;
    let ops = app.keyed("ops", &["admin"]).await;
    let began = Instant::now();
    let body = r#"{"reason":" moving house ","duration":"4s"}"#;
    let view = command(&ops, "up", "open", body).await.expect(200).json();
    assert_eq!(view["state"], "forced_open", "{view}");
    assert_eq!(
        (&view["forced"]["by"], &view["forced"]["note"]),
        (&"ops".into(), &"moving house".into())
    );
    assert_eq!(view["forced"]["until"], view["open_until"]);
    let wait = view["retry_after_ms"].as_u64().unwrap();
    assert!((1..=4000).contains(&wait), "{view}");
    let last = &view["last_transitions"][0];
    assert_eq!(steps(std::slice::from_ref(last)), ["closed forced_open forced"]);
    assert_eq!(
        (&last["actor"], &last["note"], &last["open_for_ms"]),
        (&"ops".into(), &"moving house".into(), &4000.into())
    );
    let refused = app.http().call("up__echo", HI).await.expect(503).json();
    assert!(refused["error"].as_str().unwrap().contains("(moving house)"), "{refused}");
    assert_eq!(refused["reason"], "breaker_open");
    assert_eq!(up.stats().calls(), 0);

    eventually(SOON, "it ends by itself", || async {
        (app.http().call("up__echo", HI).await.status == 200).then_some(())
    })
    .await;
    assert!(began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());
    let view = shown(app.http(), "up").await;
    assert_eq!((&view["state"], &view["forced"]), (&"closed".into(), &Value::Null), "{view}");
    assert_eq!(view["reason"], "forced_until_over");
    let past = history(app.http(), "up/history").await;
    assert_eq!(steps(&past), ["closed forced_open forced", "forced_open closed forced_until_over"]);
    assert_eq!(past[0]["actor"], Value::Null, "time did it: {past:?}");
    let took = millis(&past[0]["at"]) - millis(&past[1]["at"]);
    assert!((3950..=4050).contains(&took), "{past:?}");

    let acts = acts(&app.stop().await).await;
    let [act] = &acts[..] else { panic!("{acts:?}") };
    assert_eq!(
        (act.actor.as_str(), act.kind.as_str(), act.subject.as_str()),
        ("ops", "breaker.forced_open", "up")
    );
    let detail: Value = serde_json::from_str(&act.detail).unwrap();
    assert_eq!(detail, json!({"tool": null, "reason": "moving house", "duration_ms": 4000}));
}

#[tokio::test]
async fn a_breaker_held_closed_lets_every_failure_through_until_it_is_reset() {
    let up = broken().await;
    let app = TestApp::start(&with(&[("up", &up)], "")).await.ready().await;
    let socket = app.socket();
    let view = command(&socket, "up", "close", "").await.expect(200).json();
    assert_eq!((&view["state"], &view["open_until"]), (&"forced_closed".into(), &Value::Null));
    assert_eq!(view["forced"], json!({"by": "admin-socket", "note": null, "until": null}));
    for _ in 0..2 {
        fail_thrice(app.http(), "up__echo").await;
    }
    let view = shown(app.http(), "up").await;
    assert_eq!((&view["state"], &view["failures"]), (&"forced_closed".into(), &6.into()));
    assert_eq!(view["retry_after_ms"], Value::Null);

    let view = command(&socket, "up", "reset", "").await.expect(200).json();
    assert_eq!(
        (&view["state"], &view["failures"], &view["forced"], &view["reason"]),
        (&"closed".into(), &0.into(), &Value::Null, &"reset".into())
    );
    fail_thrice(app.http(), "up__echo").await;
    app.http().call("up__echo", HI).await.expect(503);
    let body = r#"{"reason":"the disk was full"}"#;
    let view = command(&socket, "up", "reset", body).await.expect(200).json();
    assert_eq!((&view["state"], &view["failures"]), (&"closed".into(), &0.into()), "{view}");
    assert_eq!(view["last_transitions"][0]["note"], "the disk was full");
    app.http().call("up__echo", HI).await.expect(200);
    assert_eq!(
        steps(&history(app.http(), "up/history").await),
        [
            "closed forced_closed forced",
            "forced_closed closed reset",
            "closed open failures",
            "open closed reset"
        ],
        "a reset is a transition and deletes nothing"
    );
    let acts = acts(&app.stop().await).await;
    let kinds: Vec<_> = acts.iter().map(|act| (act.actor.as_str(), act.kind.as_str())).collect();
    assert_eq!(
        kinds,
        [
            ("admin-socket", "breaker.forced_closed"),
            ("admin-socket", "breaker.reset"),
            ("admin-socket", "breaker.reset")
        ]
    );
}

#[tokio::test]
async fn wrong_words_to_a_breaker_are_told_and_change_nothing() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start(&with(&[("steady", &up)], "")).await.ready().await;
    let socket = app.socket();
    let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(501));
    for (verb, body, part) in [
        ("open", "", "`reason` is missing"),
        ("open", "{}", "`reason` is missing"),
        ("open", r#"{"reason":"  "}"#, "`reason` is missing"),
        ("open", r#"{"reason":7}"#, "`reason` must be a string"),
        ("open", r#"{"reason":"x","duration":"soon"}"#, "`duration`: "),
        ("open", r#"{"reason":"x","duration":0}"#, "`duration` must be above zero"),
        ("open", r#"{"reason":"x","duration":-5}"#, "`duration`: "),
        ("open", r#"{"reason":"x","duratoin":"1m"}"#, "did you mean `duration`?"),
        ("open", &long, "`reason` is longer than 500 characters"),
        ("close", "[]", "not a JSON object"),
        ("close", "{", "not a JSON object"),
        ("close", r#"{"duration":true}"#, "`duration`: "),
        ("reset", r#"{"duration":"1m"}"#, "unknown key `duration`"),
    ] {
        let problem = command(&socket, "steady", verb, body).await.expect(400);
        assert_eq!(problem.header("content-type"), "application/problem+json");
        let problem = problem.json();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(part), "{verb} {body}: {detail}");
    }
    for path in ["?limit=many", "?limit=-1", "?before=x", "?befor=1", "?tool=x"] {
        let path = format!("/mcp/circuit-breakers/history{path}");
        let problem = app.http().get(&path).await.expect(400);
        assert_eq!(problem.header("content-type"), "application/problem+json", "{path}");
    }
    for path in ["stedy", "stedy/history", "stedy/reset", "stedy/open", "stedy/close"] {
        let full = format!("/mcp/circuit-breakers/{path}");
        let answer = match path.rsplit_once('/') {
            Some((_, "reset" | "open" | "close")) => socket.post(&full, r#"{"reason":"x"}"#).await,
            _ => socket.get(&full).await,
        };
        let problem = answer.expect(404).json();
        assert_eq!(problem["nearest"], json!(["steady"]), "{path}: {problem}");
    }
    socket.get("/mcp/circuit-breakers/no%20name%21/history").await.expect(404);
    let problem = socket.get("/mcp/circuit-breakers/steady?tool=echo").await.expect(404).json();
    assert!(problem["detail"].as_str().unwrap().contains("leave `tool` out"), "{problem}");
    assert_eq!(history(&socket, "history").await, Vec::<Value>::new());
    app.http().call("steady__echo", HI).await.expect(200);
    assert_eq!(acts(&app.stop().await).await, []);
}

#[tokio::test]
async fn a_tools_own_breaker_is_shown_and_told_by_the_tools_name() {
    let up = broken().await;
    let app = TestApp::start_tuned(&with(&[("up", &up)], ""), |knobs| {
        knobs.breaker_scope = Some(BreakerScope::Tool);
    })
    .await
    .ready()
    .await;
    fail_thrice(app.http(), "up__echo").await;
    app.http().call("up__echo", HI).await.expect(503);
    up.faults().clear();
    app.http().call("up__add", r#"{"a":1,"b":2}"#).await.expect(200);
    let (socket, all) = (app.socket(), app.http().get("/mcp/circuit-breakers").await.json());
    let all = all["circuit_breakers"].as_array().unwrap();
    assert_eq!(all.len(), 12, "the server's and its eleven tools'");
    assert_eq!((&all[0]["tool"], &all[0]["state"]), (&Value::Null, &"closed".into()));
    let open: Vec<_> = all.iter().filter(|one| one["state"] == "open").collect();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0]["tool"], "echo");
    assert_eq!(steps(open[0]["last_transitions"].as_array().unwrap()), ["closed open failures"]);
    assert_eq!(shown(app.http(), "up").await["last_transitions"], json!([]), "not the server's");
    assert_eq!(shown(app.http(), "up?tool=echo").await["state"], "open");

    let path = "/mcp/circuit-breakers/up/reset?tool=echo";
    let view = socket.post(path, "").await.expect(200).json();
    assert_eq!((&view["tool"], &view["state"]), (&"echo".into(), &"closed".into()), "{view}");
    app.http().call("up__echo", HI).await.expect(200);
    let problem = socket.post("/mcp/circuit-breakers/up/reset?tool=ehco", "").await;
    assert_eq!(problem.expect(404).json()["nearest"][0], "echo");
    let of_echo = history(app.http(), "up/history?tool=echo").await;
    assert_eq!(steps(&of_echo), ["closed open failures", "open closed reset"]);
    assert_eq!(history(app.http(), "up/history?tool=add").await, Vec::<Value>::new());
    assert_eq!(history(app.http(), "history").await, of_echo);
    app.stop().await;
}

#[tokio::test]
async fn the_history_comes_in_pages_newest_first() {
    let (one, two) = (upstream(Options::default()).await, upstream(Options::default()).await);
    let app = TestApp::start(&with(&[("one", &one), ("two", &two)], "")).await.ready().await;
    let socket = app.socket();
    for number in 0..5 {
        for name in ["one", "two"] {
            let body = format!(r#"{{"reason":"{name} {number}"}}"#);
            command(&socket, name, "reset", &body).await.expect(200);
        }
    }
    let all = history(app.http(), "history").await;
    let notes: Vec<_> = all.iter().map(|one| one["note"].as_str().unwrap()).collect();
    assert_eq!((notes.len(), notes[0], notes[9]), (10, "two 4", "one 0"));
    assert!(all.is_sorted_by(|newer, older| newer["id"].as_i64() > older["id"].as_i64()));
    for (path, wanted) in [("history", 10_usize), ("two/history", 5)] {
        for limit in [1, 2, 5, 100] {
            let (mut read, mut before, mut pages) = (Vec::new(), String::new(), 0);
            loop {
                let path = format!("/mcp/circuit-breakers/{path}?limit={limit}{before}");
                let page = app.http().get(&path).await.expect(200).json();
                let transitions = page["transitions"].as_array().unwrap();
                assert!((1..=limit).contains(&transitions.len()), "{page}");
                read.extend(transitions.clone());
                pages += 1;
                let Some(next) = page["next_before"].as_i64() else { break };
                before = format!("&before={next}");
            }
            assert_eq!((read.len(), pages), (wanted, wanted.div_ceil(limit)), "{path} {limit}");
            let expected =
                all.iter().filter(|one| path == "history" || one["server"] == "two").cloned();
            assert_eq!(read, expected.collect::<Vec<_>>());
        }
    }
    let last = shown(app.http(), "two").await["last_transitions"].clone();
    assert_eq!(last.as_array().unwrap().len(), 5);
    assert_eq!(last[0]["note"], "two 4");
    app.stop().await;
}

#[tokio::test]
async fn a_breakers_series_are_there_from_the_start_and_follow_at_once() {
    let up = broken().await;
    let app = TestApp::start(&with(&[("up", &up)], "")).await.ready().await;
    let state = |state: &str| format!(r#"switchyard_breaker_state{{server="up",state="{state}"}}"#);
    let opened = r#"switchyard_breaker_transitions_total{from="closed",reason="failures",server="up",to="open"}"#;
    let rejections = r#"switchyard_breaker_rejections_total{server="up"}"#;
    let until = r#"switchyard_breaker_open_until_timestamp_seconds{server="up"}"#;
    assert_eq!(app.metric(&state("closed")).await, Some(1.0));
    for state in ["open", "half_open", "forced_open", "forced_closed"].map(state) {
        assert_eq!(app.metric(&state).await, Some(0.0), "{state}");
    }
    for sample in [opened, rejections, until] {
        assert_eq!(app.metric(sample).await, Some(0.0), "{sample}");
    }
    fail_thrice(app.http(), "up__echo").await;
    assert_eq!(app.metric(&state("closed")).await, Some(0.0));
    assert_eq!(app.metric(&state("open")).await, Some(1.0));
    assert_eq!(app.metric(opened).await, Some(1.0));
    assert_eq!(app.metric(rejections).await, Some(0.0));
    let shown_until = millis(&shown(app.http(), "up").await["open_until"]);
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are below 2^52")]
    let expected = shown_until as f64 / 1000.0;
    let metric = app.metric(until).await.unwrap();
    assert!((metric - expected).abs() < 0.5, "{metric} {expected}");
    for _ in 0..2 {
        app.http().call("up__echo", HI).await.expect(503);
    }
    assert_eq!(app.metric(rejections).await, Some(2.0));
    command(&app.socket(), "up", "reset", "").await.expect(200);
    let reset = r#"switchyard_breaker_transitions_total{from="open",reason="reset",server="up",to="closed"}"#;
    assert_eq!(app.metric(reset).await, Some(1.0));
    assert_eq!(app.metric(&state("closed")).await, Some(1.0));
    assert_eq!(app.metric(until).await, Some(0.0));
    app.stop().await;
}

#[tokio::test]
async fn a_server_that_refuses_connections_opens_its_breaker_with_the_reason() {
    let up = upstream(Options::default()).await;
    let address = refusing().await;
    let app = TestApp::start(DEFAULTS).await.ready().await;
    let socket = app.socket();
    let body = format!(r#"{{"name":"up","url":"{}"}}"#, up.url());
    socket.post("/mcp/servers", body).await.expect(201);
    let body = format!(r#"{{"name":"up","url":"http://{address}/mcp"}}"#);
    socket.put("/mcp/servers/up", body).await.expect(200);
    eventually(SOON, "the breaker opens", || async {
        (app.http().call("up__echo", HI).await.status == 503).then_some(())
    })
    .await;
    let past = history(app.http(), "up/history").await;
    let [opened, ..] = &past[..] else { panic!("{past:?}") };
    assert_eq!((&opened["to"], &opened["reason"]), (&"open".into(), &"failures".into()));
    let error = opened["error"].as_str().unwrap();
    assert!(error.contains("refused"), "{error}");
    app.stop().await;
}

#[tokio::test]
async fn an_operator_commands_breakers_at_the_command_line() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&with(&[("up", &up)], "")).await;
    ready(&router, 1).await;
    let run = async |arguments: &[&str]| -> Finished { router.run(arguments).await };
    let said = run(&["breakers", "history"]).await.expect(0).out;
    assert_eq!(said, "no breaker changed its state yet\n");
    let open = ["breakers", "open", "up", "--reason", "moving house", "--for", "10m"];
    let said = run(&open).await.expect(0).out;
    assert!(said.starts_with("the breaker of up is forced_open until 2"), "{said}");
    let refused = run(&["call", "up__echo", "text=hi"]).await.expect(1);
    assert!(refused.err.contains("moving house"), "{}", refused.err);
    let table = run(&["breakers", "list"]).await.expect(0).out;
    assert!(table.contains("forced by admin-socket: moving house"), "{table}");
    let shown = run(&["servers", "show", "up"]).await.expect(0).out;
    assert!(shown.contains("(forced by admin-socket: moving house)"), "{shown}");
    let said = run(&["breakers", "close", "up"]).await.expect(0).out;
    assert_eq!(said, "the breaker of up is forced_closed until reset\n");
    assert_eq!(run(&["call", "up__echo", "text=hi"]).await.expect(0).out, "hi\n");
    let said = run(&["breakers", "reset", "up", "--reason", "done"]).await.expect(0).out;
    assert_eq!(said, "the breaker of up is closed\n");
    let json = run(&["breakers", "reset", "up", "--json"]).await.expect(0).json();
    assert_eq!((&json["server"], &json["state"]), (&"up".into(), &"closed".into()));

    let log = run(&["breakers", "history", "up"]).await.expect(0).out;
    let told: Vec<_> = log.lines().map(|line| line.split_once("  up  ").unwrap().1).collect();
    assert_eq!(
        told,
        [
            "closed → forced_open         forced by admin-socket, for 10m: moving house",
            "forced_open → forced_closed  forced by admin-socket",
            "forced_closed → closed       reset by admin-socket: done",
            "closed → closed              reset by admin-socket",
        ]
    );
    let short = run(&["breakers", "history", "up", "--limit", "1"]).await.expect(0);
    assert_eq!(short.out.lines().count(), 1);
    assert!(short.err.contains("older"), "{}", short.err);

    let unknown = run(&["breakers", "reset", "upp"]).await.expect(1);
    assert!(
        unknown.err.contains("did you mean up?") || unknown.err.contains("`up`"),
        "{}",
        unknown.err
    );
    let wrong = run(&["breakers", "open", "up", "--reason", "x", "--for", "soon"]).await.expect(2);
    assert!(wrong.err.contains("soon"), "{}", wrong.err);
    run(&["breakers", "open", "up"]).await.expect(2);
    let empty = run(&["breakers", "open", "up", "--reason", ""]).await.expect(1);
    assert!(empty.err.contains("`reason` is missing"), "{}", empty.err);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_server_named_like_another_route_is_shown_in_the_list_of_its_breakers() {
    let (one, other) = (upstream(Options::default()).await, upstream(Options::default()).await);
    let app = TestApp::start(&with(&[("history", &one), ("up", &other)], "")).await.ready().await;
    let list = async |query: &str| {
        let answer = app.http().get(&format!("/mcp/circuit-breakers{query}")).await;
        answer.expect(200).json()
    };
    command(&app.socket(), "history", "open", r#"{"reason":"moving house"}"#).await.expect(200);
    let shown = list("?server=history").await;
    assert_eq!(
        (&shown["total"], &shown["circuit_breakers"][0]["server"]),
        (&1.into(), &"history".into())
    );
    assert_eq!(shown["circuit_breakers"][0]["state"], "forced_open");
    assert_eq!(list("?server=up").await["circuit_breakers"][0]["state"], "closed");
    assert_eq!(list("").await["total"], 2);
    assert_eq!(history(app.http(), "history").await.len(), 1, "of all");
    assert_eq!(history(app.http(), "history/history").await.len(), 1, "of the server");
    let unknown = app.http().get("/mcp/circuit-breakers?server=histery").await.expect(404).json();
    assert_eq!(unknown["nearest"], json!(["history"]), "{unknown}");
    app.http().get("/mcp/circuit-breakers?name=up").await.expect(400);
    app.stop().await;
}
