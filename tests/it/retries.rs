//! What is repeated after a failure and what never is, as servers count it and callers are told.

mod answered;
mod limits;
mod renewals;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{
    Fault, Http, Legacy, Rig, Router, SOON, TestApp, breaker_state, eventually, fastest, figure,
    full, total, withheld_from,
};
use serde_json::{Value, json};

/// A breaker that stays out of it, and short delays.
const OFTEN: &str = "circuit_breaker_threshold: 1000000, retry_delay: 100ms";
/// A budget that does, too.
const ENDLESS: &str = "retry_budget: {ratio: 100, min_per_second: 1000, cap: 100000}";

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn key(key: impl std::fmt::Display) -> String {
    json!({ "key": key.to_string() }).to_string()
}

/// What a server does that ran the call and then does not say so.
fn after_the_effect() -> Vec<Fault> {
    vec![
        Fault::Reset,
        Fault::ResetMidAnswer,
        Fault::Truncated,
        Fault::StreamEnds,
        Fault::HalfClose,
        Fault::Garbage,
        Fault::NoHttp,
        Fault::WrongId,
        Fault::InvalidUtf8,
        Fault::ContentType("text/html"),
        Fault::status(500),
        Fault::status(502),
    ]
}

fn idempotent() -> Value {
    json!({ "idempotentHint": true })
}

async fn rigs(tools: &[&str]) -> [Rig; 2] {
    [Rig::legacy(tools).await, Rig::modern(tools).await]
}

async fn router(rig: &Rig, settings: &str) -> TestApp {
    TestApp::start(&rig.yaml("up", settings)).await.ready().await
}

async fn retries(app: &TestApp) -> f64 {
    total(&app.socket(), "switchyard_retries_total", &["server=\"up\""]).await
}

async fn retries_after(app: &TestApp, reason: &str) -> f64 {
    let reason = format!("reason=\"{reason}\"");
    total(&app.socket(), "switchyard_retries_total", &["server=\"up\"", &reason]).await
}

async fn inflight(app: &TestApp) -> f64 {
    total(&app.socket(), "switchyard_upstream_inflight", &["server=\"up\""]).await
}

async fn suppressed(app: &TestApp, why: &str) -> f64 {
    let why = format!("why=\"{why}\"");
    total(&app.socket(), "switchyard_retries_suppressed_total", &["server=\"up\"", &why]).await
}

/// Makes so many calls with keys of their own over so many connections, and gives the answers.
async fn drive(http: &Http, tool: &str, calls: usize, lanes: usize) -> Vec<Value> {
    drive_numbers(http, tool, 0..calls, lanes).await
}

/// The same with these numbers as keys.
async fn drive_numbers(http: &Http, tool: &str, numbers: Range<usize>, lanes: usize) -> Vec<Value> {
    let calls = numbers.end;
    let next = Arc::new(AtomicUsize::new(numbers.start));
    let lanes = (0..lanes).map(|_| {
        let (http, next, tool) = (http.clone(), Arc::clone(&next), tool.to_owned());
        tokio::spawn(async move {
            let mut line = http.line().await;
            let mut answers = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= calls {
                    return answers;
                }
                let body = format!(r#"{{"tool_name":"{tool}","arguments":{}}}"#, key(number));
                let call = http.request(&http::Method::POST, "/mcp/call").body(body);
                answers.push(line.send(call).await.json());
            }
        })
    });
    let answers = futures_util::future::join_all(lanes).await;
    let answers: Vec<Value> = answers.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(answers.len(), numbers.len());
    answers
}

fn served(answers: &[Value]) -> usize {
    answers.iter().filter(|answer| answer["success"] == true).count()
}

/// The calls that reached the server all ran, each once.
#[track_caller]
fn each_ran_once(rig: &Rig, tool: &str, calls: usize) {
    let executed = rig.executed(tool);
    assert_eq!(rig.executed_twice(tool), Vec::<String>::new());
    assert_eq!(executed.len(), calls);
}

/// A server that is started anew: what it refused is said again, and runs once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_refused_connection() {
    let calls = figure(100, 1000);
    for rig in rigs(&["pay"]).await {
        let settings = format!(
            "{OFTEN}, {ENDLESS}, retry_attempts: 100, retry_max_delay: 300ms, max_concurrency: 2000"
        );
        let mut app = router(&rig, &settings).await;
        // Once over the connection that there was, once where the router has none yet.
        for round in 0..2 {
            rig.down();
            eventually(SOON, "it is gone", || async { (rig.open() == 0).then_some(()) }).await;
            if round == 1 {
                app = TestApp::start_in(app.stop().await, &rig.yaml("up", &settings)).await;
            }
            let before = rig.executed("pay").len();
            let repeated = retries_after(&app, "not_sent").await;
            let callers: Vec<_> = (0..calls)
                .map(|number| {
                    let (http, key) = (app.http().clone(), key(format!("{round} {number}")));
                    tokio::spawn(async move { http.call("up__pay", &key).await })
                })
                .collect();
            eventually(SOON, "calls are repeated", || async {
                (retries_after(&app, "not_sent").await > repeated).then_some(())
            })
            .await;
            assert_eq!(rig.executed("pay").len(), before);
            rig.up();
            let mut most = 0;
            for caller in callers {
                let json = caller.await.unwrap().json();
                assert_eq!(json["success"], true, "{json}");
                most = most.max(json["attempts"].as_u64().unwrap());
            }
            assert!(most > 1);
            each_ran_once(&rig, "pay", before + calls);
        }
        app.stop().await;
    }
}

/// A server that ran the call and did not say so is not made to run it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_replay_after_send() {
    let calls = 10_000 / 2;
    for rig in rigs(&["pay"]).await {
        let app = router(&rig, &format!("{OFTEN}, {ENDLESS}, timeout: 10s")).await;
        rig.mix("pay", 800, &after_the_effect());
        let began = Instant::now();
        let answers = drive(app.http(), "up__pay", calls, 16).await;
        let well = served(&answers);
        println!("{calls} calls, {well} served, in {:?}", began.elapsed());
        each_ran_once(&rig, "pay", calls);
        assert_eq!(rig.counts("pay").requests, calls as u64);
        assert!(well > calls / 10 && well < calls / 3, "{well} of {calls}");
        for json in answers.iter().filter(|json| json["success"] == false) {
            assert_eq!(json["outcome"], "unknown", "{json}");
            assert_eq!(json["retriable"], false, "{json}");
            assert_eq!(json["attempts"], 1, "{json}");
            let error = json["error"].as_str().unwrap();
            assert!(error.contains("may have run"), "{json}");
        }
        assert_eq!(retries(&app).await, 0.0);
        assert_eq!(suppressed(&app, "unsafe").await, (calls - well) as f64);
        app.stop().await;
    }
}

/// The same with a tool that may be run again: three repeats are enough, and the budget is a bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_safe_retries() {
    let calls = figure(1000, 10_000);
    let rig = Rig::legacy(&["read"]).await;
    rig.annotate("read", idempotent());
    let settings = "circuit_breaker_threshold: 1000, retry_delay: 100ms, retry_attempts: 3, \
         retry_budget: {ratio: 1.0}, timeout: 10s";
    let app = router(&rig, settings).await;
    rig.mix("read", 200, &after_the_effect());
    let answers = drive(app.http(), "up__read", calls, 48).await;
    let (well, asked) = (served(&answers), rig.counts("read").requests);
    println!("{calls} calls at a fifth of faults: {well} served, {asked} attempts");
    assert!(well * 100 >= calls * 99, "{well} of {calls}");
    attempts_are_counted(&app, &answers, asked).await;
    app.stop().await;
}

/// No call was repeated more than three times, and all say the same of how often.
async fn attempts_are_counted(app: &TestApp, answers: &[Value], asked: u64) {
    let attempts: u64 = answers.iter().map(|json| json["attempts"].as_u64().unwrap()).sum();
    assert_eq!(attempts, asked);
    assert!(answers.iter().all(|json| json["attempts"].as_u64().unwrap() <= 1 + 3));
    assert_eq!(retries_after(app, "ambiguous").await, (asked - answers.len() as u64) as f64);
    assert_eq!(retries(app).await, (asked - answers.len() as u64) as f64);
}

/// What so many calls may be repeated by default: a fifth of them, three in each second, and the
/// first second's at once.
fn budget(calls: usize, began: Instant) -> f64 {
    calls as f64 * 0.2 + (began.elapsed().as_secs_f64() + 1.0) * 3.0
}

/// The budget and the attempts as they are by default, with a fifth of faults: a call needs a quarter
/// of a repeat. A fifth is earned by calls, and at 25 a second time gives the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_safe_retries_within_the_budget() {
    const GAP: Duration = Duration::from_millis(40);
    let calls = figure(400, 2000);
    let rig = Rig::legacy(&["read"]).await;
    rig.annotate("read", idempotent());
    let settings = "circuit_breaker_threshold: 1000000, retry_delay: 100ms, timeout: 10s";
    let app = router(&rig, settings).await;
    // One in five attempts, and not by chance: what a budget does with a row of bad luck is for others.
    let broken = after_the_effect();
    let faults = (0..calls * 2).map(|attempt| {
        let (five, at) = (attempt / 5, attempt % 5);
        if at == five * 2 % 5 { broken[five % broken.len()].clone() } else { Fault::None }
    });
    rig.next("read", &faults.collect::<Vec<_>>());
    let mut beat = tokio::time::interval(GAP);
    // A machine that was busy for a second is not followed by a second's calls at once.
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (began, mut callers) = (Instant::now(), Vec::new());
    for number in 0..calls {
        beat.tick().await;
        let (http, key) = (app.http().clone(), key(number));
        callers.push(tokio::spawn(async move { http.call("up__read", &key).await.json() }));
    }
    let answers = futures_util::future::join_all(callers).await;
    let answers: Vec<Value> = answers.into_iter().map(Result::unwrap).collect();
    let (well, asked) = (served(&answers), rig.counts("read").requests);
    let (most, repeated) = (budget(calls, began), (asked - calls as u64) as f64);
    println!(
        "{calls} calls at a fifth of faults: {well} served, {repeated} retries of at most {most:.1}"
    );
    assert!(well * 100 >= calls * 99, "{well} of {calls}");
    assert!(repeated <= most, "{repeated} > {most}");
    // More than what calls earn alone: it is the budget's bound that is near.
    assert!(repeated > calls as f64 * 0.2, "{repeated}");
    attempts_are_counted(&app, &answers, asked).await;
    app.stop().await;
}

/// The same with more faults than the budget has retries for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_end_with_the_budget() {
    let calls = figure(1000, 10_000);
    let rig = Rig::legacy(&["read"]).await;
    rig.annotate("read", idempotent());
    let settings = "circuit_breaker_threshold: 1000000, retry_delay: 100ms, timeout: 10s";
    let app = router(&rig, settings).await;
    rig.mix("read", 500, &after_the_effect());
    let began = Instant::now();
    let answers = drive(app.http(), "up__read", calls, 48).await;
    let (well, asked) = (served(&answers), rig.counts("read").requests);
    let (most, repeated) = (budget(calls, began), (asked - calls as u64) as f64);
    println!(
        "{calls} calls at half of faults: {well} served, {repeated} retries of at most {most:.1}"
    );
    assert!(repeated <= most, "{repeated} > {most}");
    assert!(repeated >= calls as f64 * 0.15, "{repeated}");
    assert_eq!(retries(&app).await, repeated);
    assert!(suppressed(&app, "budget").await > 0.0);
    app.stop().await;
}

/// A server that closes idle connections at any moment, also when a call is just coming.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepalive_race() {
    let wanted = figure(3000, 50_000) / 2;
    for rig in rigs(&["pay"]).await {
        let app = router(&rig, &format!("{OFTEN}, {ENDLESS}, timeout: 10s")).await;
        rig.close_idle(500);
        let (before, began) = (rig.connections(), Instant::now());
        let closed = || rig.connections() - before > wanted as u64 / 10;
        let mut answers = Vec::new();
        // A quick router seldom leaves a connection idle for long enough: as many calls as it takes, within bounds.
        while answers.len() < wanted || (!closed() && answers.len() < wanted * 10) {
            let numbers = answers.len()..answers.len() + wanted;
            answers.extend(drive_numbers(app.http(), "up__pay", numbers, 4).await);
        }
        let calls = answers.len();
        let failed: Vec<_> = answers.iter().filter(|json| json["success"] == false).collect();
        println!(
            "{calls} calls over {} connections in {:?}: {} failed ({:.3} %), {} repeated",
            rig.connections() - before,
            began.elapsed(),
            failed.len(),
            failed.len() as f64 * 100.0 / calls as f64,
            retries(&app).await
        );
        assert_eq!(rig.executed_twice("pay"), Vec::<String>::new());
        assert!(closed());
        for json in &failed {
            assert_eq!(json["outcome"], "unknown", "{json}");
        }
        // Each surprise costs one call at most.
        assert!(failed.len() as u64 <= rig.connections() - before);
        assert!(rig.executed("pay").len() >= calls - failed.len());
        app.stop().await;
    }
}

/// A server that always fails gets a fifth more than it is offered, and behind a breaker next to
/// nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_storm() {
    let calls = figure(800, 20_000);
    let rig = Rig::legacy(&["read"]).await;
    rig.annotate("read", idempotent());
    let app = router(&rig, "circuit_breaker_threshold: 1000000, retry_delay: 100ms").await;
    rig.set("read", Fault::status(500));
    let began = Instant::now();
    let answers = drive(app.http(), "up__read", calls, 32).await;
    let load = rig.counts("read").requests;
    let most = calls as f64 * 1.2 + (began.elapsed().as_secs_f64() + 1.0) * 3.0;
    println!("{calls} offered in {:?}: {load} came of at most {most}", began.elapsed());
    assert_eq!(served(&answers), 0);
    assert!(load as f64 <= most, "{load} > {most}");
    assert!(load > calls as u64);
    app.stop().await;

    const PERIOD: Duration = Duration::from_millis(500);
    const PERIODS: u32 = 6;
    let rig = Rig::legacy(&["read"]).await;
    rig.annotate("read", idempotent());
    let app = router(&rig, "circuit_breaker_timeout: 500ms, retry_delay: 100ms").await;
    rig.set("read", Fault::status(500));
    eventually(SOON, "the breaker opens", || async {
        app.http().call("up__read", "{}").await;
        (breaker_state(&app.socket(), "up").await == "open").then_some(())
    })
    .await;
    let (before, since) = (rig.counts("read").requests, Instant::now());
    assert!(before <= 5 + 1, "{before}");
    let mut offered = 0;
    while since.elapsed() < PERIOD * PERIODS || offered <= 500 {
        offered += drive(app.http(), "up__read", 100, 16).await.len();
    }
    let probes = rig.counts("read").requests - before;
    let periods = since.elapsed().div_duration_f64(PERIOD);
    println!("{offered} offered to an open breaker in {periods:.1} periods: {probes} came");
    assert!(probes >= 2 && probes as f64 <= periods + 1.0, "{probes}");
    app.stop().await;
}

/// Every way to fail is answered within the deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadline_never_exceeded() {
    const DEADLINE: Duration = Duration::from_millis(450);
    let slack = millis(50);
    let mut patient = after_the_effect();
    patient.extend([
        Fault::HangBeforeHeaders,
        Fault::HangAfterHeaders,
        Fault::HangMidEvent,
        Fault::HangMidJson,
        Fault::CloseUnread,
        Fault::status(503),
        Fault::status(429),
        Fault::retry_after(429, 60),
        Fault::after(millis(190), Fault::status(500)),
        Fault::Trickle(millis(20)),
        Fault::Drip(millis(20), 1000),
    ]);
    let floods = [Fault::Comments, Fault::Informational, Fault::Long(1 << 30)];
    let faults: Vec<Fault> = patient.iter().chain(&floods).cloned().collect();
    let names: Vec<String> = (0..faults.len()).map(|number| format!("t{number}")).collect();
    let rig = Rig::legacy(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for (name, fault) in names.iter().zip(&faults) {
        rig.annotate(name, idempotent());
        rig.set(name, fault.clone());
    }
    let settings = format!(
        "{OFTEN}, {ENDLESS}, call_deadline: 450ms, timeout: 200ms, retry_attempts: 20, retry_max_delay: 100ms"
    );
    let router =
        Router::start(&rig.yaml("up", &format!("{settings}, retry_timeouts: replay_safe"))).await;
    eventually(SOON, "the tools are there", || async {
        (router.http.server("up").await?["tools"] == faults.len()).then_some(())
    })
    .await;
    // The time is the router's own, from the call to its answer; the way back to a caller that a busy
    // machine does not let read is not in it. Neither is what the machine withheld from the router:
    // a server that floods it is one of those that want the processor. In a full run it is the caller's.
    let try_it = async |name: &str, fault: &str| {
        let before = withheld_from(router.pid());
        let mut line = router.http.line().await;
        let body = format!(r#"{{"tool_name":"up__{name}","arguments":{}}}"#, key(name));
        let call = router.http.request(&http::Method::POST, "/mcp/call").body(body);
        let since = Instant::now();
        let json = line.send(call).await.json();
        let seen = since.elapsed();
        let withheld = withheld_from(router.pid()) - before;
        assert_eq!(json["success"], false, "{fault}: {json}");
        let own = Duration::from_secs_f64(json["execution_time_ms"].as_f64().unwrap() / 1000.0);
        let took = if full() { seen } else { own };
        println!("{took:?} ({withheld:?} withheld): {fault}");
        assert!(took <= DEADLINE + slack + withheld, "{fault}: {took:?}, {withheld:?} withheld");
        took
    };
    let mut seen = Vec::new();
    let (patient, floods) = names.split_at(patient.len());
    // Some at a time of those that leave the processor alone.
    for some in patient.chunks(6).chain(floods.chunks(1)) {
        let tries = some.iter().map(|name| {
            let number: usize = name[1..].parse().unwrap();
            let (try_it, fault) = (&try_it, format!("{:?}", faults[number]));
            async move { try_it(name, &fault).await }
        });
        seen.extend(futures_util::future::join_all(tries).await);
    }
    rig.down();
    seen.push(try_it("t0", "refused").await);
    assert!(seen.into_iter().max() > Some(DEADLINE / 2));
    assert_eq!(router.stop().await.0, 0);
}

/// A server that wants to be left alone for longer than the call may take: the caller is told so at
/// once, and for how long.
#[tokio::test]
async fn a_wait_beyond_the_deadline_fails_at_once() {
    for rig in rigs(&["tool"]).await {
        let app = router(&rig, &format!("{OFTEN}, call_deadline: 50s")).await;
        let client = Legacy::connect(app.http()).await;
        rig.set("tool", Fault::retry_after(429, 60));
        let since = Instant::now();
        let json = client.call("up__tool", "{}").await.json();
        // Well before its deadline, and the minute.
        assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
        let data = &json["error"]["data"];
        assert_eq!(data["retry_after_ms"], 60_000, "{json}");
        assert_eq!(data["outcome"], "refused", "{json}");
        assert_eq!(data["retriable"], true, "{json}");
        assert_eq!(data["attempts"], 1, "{json}");
        assert_eq!(suppressed(&app, "deadline").await, 1.0);
        // One that fits is kept to.
        rig.set("tool", Fault::None);
        let (bound, mut tries) = (Duration::from_secs(2), 0.0);
        let took = fastest(bound, async || {
            rig.next("tool", &[Fault::retry_after(429, 1)]);
            let since = Instant::now();
            let json = client.call("up__tool", "{}").await.json();
            assert_eq!(json["result"]["content"][0]["text"], "{}", "{json}");
            let took = since.elapsed();
            assert!(took >= Duration::from_secs(1), "{took:?}");
            tries += 1.0;
            took
        })
        .await;
        assert!(took < bound, "{took:?}");
        assert_eq!(retries_after(&app, "refused").await, tries);
        app.stop().await;
    }
}

/// Servers can tell a repeat from a new call.
#[tokio::test]
async fn one_idempotency_key_for_all_attempts() {
    for rig in rigs(&["read"]).await {
        rig.annotate("read", json!({ "readOnlyHint": true }));
        let app = router(&rig, OFTEN).await;
        let mut keys = Vec::new();
        for _ in 0..2 {
            let before = rig.calls("read").len();
            rig.next("read", &[Fault::status(500), Fault::Reset]);
            let answer = app.http().call("up__read", &key("k")).await;
            let json = answer.json();
            assert_eq!(json["success"], true, "{json}");
            assert_eq!(json["attempts"], 3, "{json}");
            let calls = rig.calls("read").split_off(before);
            assert_eq!(calls.len(), 3);
            for call in &calls {
                let key = &call.body["params"]["_meta"]["dev.switchyard/idempotencyKey"];
                assert_eq!(*key, answer.id(), "{}", call.body);
                assert_eq!(call.body["params"]["arguments"], calls[0].body["params"]["arguments"]);
            }
            let ids: Vec<_> = calls.iter().map(|call| call.body["id"].to_string()).collect();
            assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
            keys.push(answer.id());
            let entry = app.entry_of(&answer).await;
            assert_eq!(entry["attempts"], 3, "{entry}");
            assert_eq!(entry["outcome"], "ok", "{entry}");
            let list = entry["attempt_list"].as_array().unwrap();
            let ends: Vec<_> = list.iter().map(|one| (&one["outcome"], &one["failure"])).collect();
            let (failed, ambiguous) = (Value::from("unavailable"), Value::from("ambiguous"));
            let (ok, none) = (Value::from("ok"), Value::Null);
            assert_eq!(ends, [(&failed, &ambiguous), (&failed, &ambiguous), (&ok, &none)]);
        }
        assert_ne!(keys[0], keys[1]);
        assert_eq!(retries_after(&app, "ambiguous").await, 4.0);
        app.stop().await;
    }
}

/// `retry_mode: seed` repeats as the predecessor did: all but timeouts and what tools answer.
#[tokio::test]
async fn seed_mode_repeats_what_may_have_run() {
    let rig = Rig::legacy(&["tool"]).await;
    let settings =
        "retry_mode: seed, retry_delay: 100ms, timeout: 3s, circuit_breaker_threshold: 5";
    let app = router(&rig, settings).await;
    let call = async || app.http().call("up__tool", &key("k")).await;
    rig.next("tool", &[Fault::status(500), Fault::Reset]);
    let json = call().await.json();
    assert_eq!((&json["success"], &json["attempts"]), (&true.into(), &3.into()), "{json}");
    assert_eq!(rig.executed("tool")["k"], 3);
    for fault in [Fault::HangBeforeHeaders, Fault::RpcError(-32000), Fault::ToolError] {
        let before = rig.counts("tool").requests;
        rig.next("tool", std::slice::from_ref(&fault));
        let json = call().await.json();
        assert_eq!(json["success"], false, "{json}");
        assert_eq!(json["attempts"], 1, "{json}");
        assert_eq!(rig.counts("tool").requests - before, 1, "{fault:?}");
        assert_eq!(call().await.json()["success"], true);
    }
    // Four attempts of one call and one of the next: each counts.
    rig.set("tool", Fault::status(500));
    let json = call().await.json();
    assert_eq!(json["attempts"], 4, "{json}");
    assert_eq!(json["outcome"], "unknown", "{json}");
    assert_eq!(json["retriable"], false, "{json}");
    assert_eq!(breaker_state(&app.socket(), "up").await, "closed");
    let json = call().await.json();
    assert_eq!(json["attempts"], 1, "{json}");
    assert_eq!(json["error_code"], "MCPConnectionError", "{json}");
    assert_eq!(breaker_state(&app.socket(), "up").await, "open");
    app.stop().await;
}

#[tokio::test]
async fn nothing_is_repeated_when_retries_are_off() {
    let rig = Rig::legacy(&["read"]).await;
    rig.annotate("read", json!({ "readOnlyHint": true }));
    let app = router(&rig, &format!("{OFTEN}, retry_mode: off")).await;
    for fault in [Fault::status(500), Fault::status(429), Fault::CloseUnread] {
        let before = rig.counts("read").requests;
        rig.next("read", std::slice::from_ref(&fault));
        let json = app.http().call("up__read", "{}").await.json();
        assert_eq!(json["success"], false, "{json}");
        assert_eq!(json["attempts"], 1, "{json}");
        assert_eq!(rig.counts("read").requests - before, 1, "{fault:?}");
    }
    rig.down();
    eventually(SOON, "it is gone", || async { (rig.open() == 0).then_some(()) }).await;
    let json = app.http().call("up__read", "{}").await.json();
    assert_eq!((&json["attempts"], &json["outcome"]), (&1.into(), &"not_sent".into()), "{json}");
    assert_eq!(retries(&app).await, 0.0);
    app.stop().await;
}

/// Which tools may run again: the operator's word wins over the server's hints, which need trust.
#[tokio::test]
async fn the_operator_decides_what_is_safe_to_repeat() {
    let overrides = "tool_overrides: {forbidden: {replay: unsafe}, allowed: {replay: safe}}";
    for (trust, believed) in [("true", true), ("false", false)] {
        for rig in rigs(&["forbidden", "allowed", "reads", "same", "plain"]).await {
            rig.annotate("forbidden", json!({ "readOnlyHint": true, "idempotentHint": true }));
            rig.annotate("reads", json!({ "readOnlyHint": true }));
            rig.annotate("same", idempotent());
            let settings = format!("{OFTEN}, {ENDLESS}, trust_annotations: {trust}, {overrides}");
            let app = router(&rig, &settings).await;
            for (tool, repeated) in [
                ("forbidden", false),
                ("allowed", true),
                ("reads", believed),
                ("same", believed),
                ("plain", false),
            ] {
                rig.next(tool, &[Fault::status(500)]);
                let json = app.http().call(&format!("up__{tool}"), "{}").await.json();
                assert_eq!(json["success"], repeated, "{tool}: {json}");
                let requests = rig.counts(tool).requests;
                assert_eq!(requests, if repeated { 2 } else { 1 }, "{tool}, trust: {trust}");
                if !repeated {
                    assert_eq!(json["outcome"], "unknown", "{tool}: {json}");
                    assert_eq!(json["retriable"], false, "{tool}: {json}");
                }
                // What did not run is repeated for all.
                rig.next(tool, &[Fault::status(429)]);
                let json = app.http().call(&format!("up__{tool}"), "{}").await.json();
                assert_eq!(json["success"], true, "{tool}: {json}");
            }
            app.stop().await;
        }
    }
}

/// An attempt that timed out is repeated only where the operator wants it and the tool allows it.
#[tokio::test]
async fn timeouts_are_repeated_only_on_request() {
    for wanted in [false, true] {
        let rig = Rig::legacy(&["read", "pay"]).await;
        rig.annotate("read", idempotent());
        let timeouts = if wanted { "replay_safe" } else { "never" };
        let settings = format!("{OFTEN}, timeout: 1500ms, retry_timeouts: {timeouts}");
        let app = router(&rig, &settings).await;
        for (tool, repeated) in [("read", wanted), ("pay", false)] {
            rig.next(tool, &[Fault::HangBeforeHeaders]);
            let json = app.http().call(&format!("up__{tool}"), "{}").await.json();
            assert_eq!(json["success"], repeated, "{tool}: {json}");
            assert_eq!(json["attempts"], if repeated { 2 } else { 1 }, "{tool}: {json}");
        }
        assert_eq!(retries_after(&app, "timeout").await, f64::from(u8::from(wanted)));
        app.stop().await;
    }
}

/// A 503 may come after the effect, unless the operator knows that it does not.
#[tokio::test]
async fn a_503_is_repeated_where_it_is_a_refusal() {
    for refusal in [false, true] {
        let rig = Rig::legacy(&["pay"]).await;
        let settings = format!("{OFTEN}, unavailable_is_refusal: {refusal}");
        let app = router(&rig, &settings).await;
        rig.next("pay", &[Fault::status(503)]);
        let json = app.http().call("up__pay", "{}").await.json();
        assert_eq!(json["success"], refusal, "{json}");
        assert_eq!(json["attempts"], if refusal { 2 } else { 1 }, "{json}");
        if !refusal {
            assert_eq!(json["outcome"], "unknown", "{json}");
        }
        // No other status is meant.
        rig.next("pay", &[Fault::status(502)]);
        let json = app.http().call("up__pay", "{}").await.json();
        assert_eq!(
            (&json["success"], &json["outcome"]),
            (&false.into(), &"unknown".into()),
            "{json}"
        );
        app.stop().await;
    }
}

/// A breaker that opens during a call's retries ends the call, which is told what happened to it.
#[tokio::test]
async fn a_breaker_that_opens_ends_the_retries() {
    let rig = Rig::legacy(&["read", "other"]).await;
    rig.annotate("read", idempotent());
    // Opened by the call's own attempts.
    let settings = "circuit_breaker_threshold: 2, circuit_breaker_timeout: 2m, retry_delay: 100ms, \
         retry_attempts: 10";
    let app = router(&rig, settings).await;
    let client = Legacy::connect(app.http()).await;
    rig.set("read", Fault::Reset);
    let since = Instant::now();
    let json = client.call("up__read", "{}").await.json();
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    ended_by_the_breaker(&json, 2);
    assert_eq!(rig.counts("read").requests, 2);
    assert_eq!(suppressed(&app, "breaker").await, 1.0);
    assert_eq!(breaker_state(&app.socket(), "up").await, "open");
    app.stop().await;
    // The same with the breaker of the tool alone, for a delay that would be long.
    let long = settings.replace("retry_delay: 100ms", "retry_delay: 90s, retry_max_delay: 90s");
    let long = long.replace("circuit_breaker_threshold: 2", "circuit_breaker_threshold: 1");
    let app = router(&rig, &format!("{long}, breaker_scope: tool")).await;
    let client = Legacy::connect(app.http()).await;
    let since = Instant::now();
    ended_by_the_breaker(&client.call("up__read", "{}").await.json(), 1);
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    assert_eq!(suppressed(&app, "breaker").await, 1.0);
    assert_eq!(breaker_state(&app.socket(), "up").await, "closed");
    app.stop().await;
    // Opened by another call's, while this one waits.
    rig.set("read", Fault::Reset);
    let settings = settings.replace("retry_delay: 100ms", "retry_delay: 5s");
    let app = router(&rig, &settings).await;
    let client = Legacy::connect(app.http()).await;
    let before = rig.counts("read").requests;
    let waits = tokio::spawn(async move { client.call("up__read", "{}").await.json() });
    eventually(SOON, "the first attempt is over", || async {
        (rig.counts("read").requests > before && inflight(&app).await == 0.0).then_some(())
    })
    .await;
    rig.set("other", Fault::status(500));
    eventually(SOON, "the breaker opens", || async {
        app.http().call("up__other", "{}").await;
        (breaker_state(&app.socket(), "up").await == "open").then_some(())
    })
    .await;
    ended_by_the_breaker(&waits.await.unwrap(), 1);
    assert_eq!(rig.counts("read").requests - before, 1);
    assert_eq!(suppressed(&app, "breaker").await, 1.0);
    app.stop().await;
}

#[track_caller]
fn ended_by_the_breaker(json: &Value, attempts: u32) {
    let data = &json["error"]["data"];
    assert_eq!(data["attempts"], attempts, "{json}");
    assert_eq!(data["reason"], "ambiguous", "{json}");
    assert_eq!(data["outcome"], "unknown", "{json}");
    assert_eq!(data["error_code"], "MCPConnectionError", "{json}");
    let wait = data["retry_after_ms"].as_u64().unwrap();
    assert!((60_000..=120_000).contains(&wait), "{json}");
}

/// An attempt that was not sent does not make known what became of the one before it.
#[tokio::test]
async fn what_is_unknown_stays_unknown() {
    for (mode, retriable) in [("safe", true), ("seed", false)] {
        let rig = Rig::legacy(&["tool"]).await;
        if retriable {
            rig.annotate("tool", idempotent());
        }
        let settings = format!("{OFTEN}, retry_mode: {mode}, retry_attempts: 2");
        let app = router(&rig, &settings).await;
        rig.set("tool", Fault::HangBeforeHeaders);
        let http = app.http().clone();
        let since = Instant::now();
        let call = tokio::spawn(async move { http.call("up__tool", "{}").await });
        rig.call("tool", since).await;
        rig.down();
        let answer = call.await.unwrap();
        let json = answer.json();
        assert_eq!(json["attempts"], 3, "{mode}: {json}");
        assert_eq!(json["reason"], "ambiguous", "{mode}: {json}");
        assert_eq!(json["outcome"], "unknown", "{mode}: {json}");
        assert_eq!(json["retriable"], retriable, "{mode}: {json}");
        let told = json["error"].as_str().unwrap().contains("may have run");
        assert_eq!(told, !retriable, "{mode}: {json}");
        assert!(!json["error"].as_str().unwrap().contains("nothing was sent"), "{mode}: {json}");
        assert_eq!(app.entry_of(&answer).await["attempts"], 3);
        assert_eq!(rig.executed("tool")["{}"], 1);
        app.stop().await;
    }
}

/// A caller that goes away while its call waits for a retry: there is none.
#[tokio::test]
async fn a_cancelled_wait_is_followed_by_no_attempt() {
    for rig in rigs(&["read"]).await {
        rig.annotate("read", idempotent());
        let app = router(&rig, "retry_delay: 4s, circuit_breaker_threshold: 1000").await;
        rig.set("read", Fault::status(500));
        let http = app.http().clone();
        let since = Instant::now();
        let call = tokio::spawn(async move { http.call("up__read", "{}").await });
        rig.call("read", since).await;
        eventually(SOON, "the attempt is over", || async {
            (inflight(&app).await == 0.0).then_some(())
        })
        .await;
        call.abort();
        let entry = eventually(SOON, "the ledger has the call", || async {
            app.calls("limit=10").await.into_iter().next()
        })
        .await;
        // Before the earliest moment at which the second attempt could have begun.
        assert!(since.elapsed() < millis(3000), "too late to be sure: {:?}", since.elapsed());
        assert_eq!(entry["outcome"], "cancelled", "{entry}");
        assert_eq!(entry["attempts"], 1, "{entry}");
        // Longer than the longest delay; that nothing happens shows only in time.
        tokio::time::sleep(millis(5500)).await;
        assert_eq!(rig.counts("read").requests, 1);
        assert_eq!(retries(&app).await, 0.0);
        assert_eq!(app.calls("limit=10").await.len(), 1);
        app.stop().await;
    }
}
