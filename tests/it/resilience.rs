//! The breaker as callers, servers and operators see it: when it refuses, who may probe, what it
//! remembers, and what it leaves alone.

mod clock_set;
mod forwarded;
mod hasty;
mod life;
mod refusals;
mod restarts;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use switchyard::app::ADMIN_SOCKET;
use switchyard::model::{CallId, Caller, Entrance, Scopes, ToolCall, ToolTarget, Via};
use switchyard::router::CallAnswer;
use tokio::task::JoinHandle;

use crate::support::{
    Answer, Fault, Http, Rig, Router, SOON, TestApp, breaker_state, eventually, figure, full,
    own_time, poll_once, promised, total, transitions,
};

/// One attempt for each call, so that a call is an attempt.
const ONCE: &str = "retry_mode: off";

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn key(key: impl std::fmt::Display) -> String {
    json!({ "key": key.to_string() }).to_string()
}

/// Calls until the breaker is open; the moment when it opened, at the latest.
async fn trip(http: &Http, socket: &Http, rig: &Rig, tool: &str) -> Instant {
    rig.set(tool, Fault::status(500));
    eventually(SOON, "the breaker opens", || async {
        http.call(&format!("up__{tool}"), &key("trip")).await;
        (breaker_state(socket, "up").await == "open").then_some(())
    })
    .await;
    Instant::now()
}

async fn trip_app(app: &TestApp, rig: &Rig, tool: &str) -> Instant {
    trip(app.http(), &app.socket(), rig, tool).await
}

/// A call that begins again while it is refused, until it is let through and answered.
fn persistent(http: &Http, tool: &'static str) -> JoinHandle<Answer> {
    let http = http.clone();
    tokio::spawn(async move {
        loop {
            let answer = http.call(tool, &key("persistent")).await;
            let reason = answer.json()["reason"].clone();
            if reason != "breaker_open" && reason != "breaker_probing" {
                return answer;
            }
        }
    })
}

#[track_caller]
fn refused(answer: &Answer, reasons: &[&str]) -> Value {
    let json = answer.json();
    assert_eq!(answer.status, 503, "{json}");
    assert_eq!(json["error_code"], "MCPCircuitOpenError", "{json}");
    assert!(reasons.contains(&json["reason"].as_str().unwrap()), "{json}");
    assert_eq!(json["outcome"], "not_sent", "{json}");
    assert_eq!(json["retriable"], true, "{json}");
    assert!(json["retry_after_ms"].as_u64().is_some(), "{json}");
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1, "{json}");
    json
}

/// A call as the doors hand it to the router.
fn call_of(tool: &str) -> ToolCall {
    ToolCall {
        id: CallId::from_uuid(uuid::Uuid::now_v7()),
        caller: Arc::new(Caller::anonymous(Scopes::ALL)),
        session: None,
        client: None,
        client_capabilities: None,
        entrance: Entrance::Rest,
        via: Via::default(),
        view: None,
        trace: None,
        request_id: None,
        target: ToolTarget { tool: tool.to_owned(), server: None },
        params: None,
        arguments: Some(key("x").into()),
        deadline: None,
        request_bytes: 0,
    }
}

#[track_caller]
fn refused_at_the_router(answer: &CallAnswer) {
    let reason = answer.result.as_ref().unwrap_err().reason();
    assert!(["breaker_probing", "breaker_open"].contains(&reason), "{answer:?}");
}

/// A thousand callers at the moment when the open period ends: one of them is let through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_one_permit() {
    const CALLERS: usize = 1000;
    const PERIOD: Duration = Duration::from_millis(1500);
    const QUICK: Duration = Duration::from_millis(5);
    const THROTTLED: &str = "switchyard_audit_throttled_total";
    let rig = Rig::legacy(&["probe"]).await;
    let settings = format!(
        "{ONCE}, circuit_breaker_threshold: 1, circuit_breaker_timeout: 1500ms, max_concurrency: 2000"
    );
    let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
    // All but the probe are answered while it is under way, and nobody else comes to the server.
    let all_but_one = async |over: &(dyn Fn() -> usize + Sync), before: u64| {
        eventually(SOON * 2, "all but one are answered", || async {
            (over() == CALLERS - 1).then_some(())
        })
        .await;
        assert_eq!(rig.counts("probe").requests - before, 1);
        assert_eq!(breaker_state(&app.socket(), "up").await, "half_open");
        rig.release();
    };
    for _ in 0..figure(1, 5) {
        let mut lines = Vec::new();
        for _ in 0..CALLERS {
            lines.push(app.http().line().await);
        }
        let opened = trip_app(&app, &rig, "probe").await;
        rig.set("probe", Fault::hold(Fault::None));
        let before = rig.counts("probe").requests;
        let at = tokio::time::Instant::from_std(opened + PERIOD);
        let callers: Vec<_> = lines
            .into_iter()
            .map(|mut line| {
                let http = app.http().clone();
                tokio::spawn(async move {
                    tokio::time::sleep_until(at).await;
                    let body = format!(r#"{{"tool_name":"up__probe","arguments":{}}}"#, key("x"));
                    let call = http.request(&http::Method::POST, "/mcp/call").body(body);
                    line.send(call).await
                })
            })
            .collect();
        let over = || callers.iter().filter(|caller| caller.is_finished()).count();
        all_but_one(&over, before).await;
        let mut times: Vec<f64> = Vec::new();
        let mut served = 0;
        for answer in futures_util::future::join_all(callers).await {
            let answer = answer.unwrap();
            if answer.json()["success"] == true {
                served += 1;
                continue;
            }
            let json = refused(&answer, &["breaker_probing", "breaker_open"]);
            times.push(json["execution_time_ms"].as_f64().unwrap());
        }
        assert_eq!((served, times.len()), (1, CALLERS - 1));
        assert_eq!(rig.counts("probe").requests - before, 1);
        assert_eq!(breaker_state(&app.socket(), "up").await, "closed");
        times.sort_by(f64::total_cmp);
        let (median, worst) = (times[CALLERS / 2], times[CALLERS - 2]);
        println!("over the network: {median:.3} ms in the median, {worst:.3} at most");
    }
    // How long each takes is measured at the router itself, where a refusal is one poll of the call:
    // one that waited for anything would not be ready after it. The clock is the processor time of
    // the thread that polls, because the machine may take the thread away at any moment for longer
    // than all of this takes.
    let mut slowest = Vec::new();
    let slow = |slowest: &[Duration]| slowest.iter().min() > Some(&QUICK);
    while slowest.len() < figure(1, 5) || !full() && slow(&slowest) && slowest.len() < 5 {
        let opened = trip_app(&app, &rig, "probe").await;
        rig.set("probe", Fault::hold(Fault::None));
        let before = rig.counts("probe").requests;
        // A debug build writes its ledger so slowly that calls wait for it, before the breaker is asked.
        let throttled = app.metric(THROTTLED).await.unwrap();
        let at = tokio::time::Instant::from_std(opened + PERIOD);
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let router = app.router();
                tokio::spawn(async move {
                    tokio::time::sleep_until(at).await;
                    let mut call = pin!(router.call(call_of("up__probe"), None));
                    match poll_once(call.as_mut()).await {
                        (Poll::Ready(answer), took) => (answer, Some(took)),
                        (Poll::Pending, _) => (call.await, None),
                    }
                })
            })
            .collect();
        let over = || callers.iter().filter(|caller| caller.is_finished()).count();
        all_but_one(&over, before).await;
        let (mut times, mut kept_back) = (Vec::new(), 0_usize);
        for caller in callers {
            match caller.await.unwrap() {
                (answer, Some(took)) => {
                    refused_at_the_router(&answer);
                    times.push(took);
                }
                (answer, None) if answer.result.is_ok() => {}
                (answer, None) => {
                    refused_at_the_router(&answer);
                    kept_back += 1;
                }
            }
        }
        assert_eq!(times.len() + kept_back, CALLERS - 1, "one call is served");
        let kept_back_for_the_ledger = app.metric(THROTTLED).await.unwrap() - throttled;
        assert!(kept_back as f64 <= kept_back_for_the_ledger, "{kept_back} refusals waited");
        assert!(!full() || kept_back == 0, "{kept_back} refusals waited for the ledger");
        slowest.push(times.into_iter().max().unwrap());
    }
    println!("at the router: the slowest refusal took {slowest:?}");
    assert!(!slow(&slowest), "{slowest:?}");
    assert!(!full() || slowest.iter().max() <= Some(&QUICK), "{slowest:?}");
    app.stop().await;
}

/// The caller of a probe goes away, again and again: the next caller probes at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_cancel_returns_permit() {
    let rounds = figure(100, 1000);
    for rig in [Rig::legacy(&["probe"]).await, Rig::modern(&["probe"]).await] {
        let settings = format!(
            "{ONCE}, circuit_breaker_threshold: 1, circuit_breaker_timeout: 100ms, timeout: 60s"
        );
        let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
        trip_app(&app, &rig, "probe").await;
        rig.set("probe", Fault::HangBeforeHeaders);
        let mut since = Instant::now();
        let mut probe = persistent(app.http(), "up__probe");
        rig.call("probe", since).await;
        let mut waits = Vec::new();
        for _ in 0..rounds {
            refused(&app.http().call("up__probe", &key("x")).await, &["breaker_probing"]);
            probe.abort();
            since = Instant::now();
            probe = persistent(app.http(), "up__probe");
            waits.push(rig.call("probe", since).await.at.duration_since(since));
        }
        probe.abort();
        waits.sort_unstable();
        // With the way over the network, on which the kernel tells the router of the caller's going.
        println!(
            "admitted after {:?} in the median, {:?} at most",
            waits[rounds / 2],
            waits[rounds - 1]
        );
        assert!(waits[rounds - 1] < SOON, "{waits:?}");
        eventually(SOON, "the last caller's going is known", || async {
            let inflight = total(&app.socket(), "switchyard_upstream_inflight", &[]).await;
            (inflight == 0.0).then_some(())
        })
        .await;
        let quick = Duration::from_millis(10);
        let worst = promised(quick, async || probes_end_at_the_router(&app).await).await;
        println!("at the router: admitted after {worst:?} at most");
        assert!(worst <= quick, "{worst:?}");
        assert_eq!(breaker_state(&app.socket(), "up").await, "half_open");
        assert_eq!(transitions(&app.socket(), "up", &[]).await, 2.0);
        rig.set("probe", Fault::None);
        let answer = persistent(app.http(), "up__probe").await.unwrap();
        assert_eq!(answer.json()["success"], true, "{}", answer.text());
        assert_eq!(breaker_state(&app.socket(), "up").await, "closed");
        app.stop().await;
    }
}

/// A thousand probes end, half of them in a panic, and the next call is admitted at its first poll. The
/// clock is [`own_time`], from the moment at which the probe begins to end. Gives the longest.
async fn probes_end_at_the_router(app: &TestApp) -> Duration {
    const ROUNDS: usize = 1000;
    let router = app.router();
    let call = || Box::pin(router.call(call_of("up__probe"), None));
    let mut probe = call();
    assert!(poll_once(probe.as_mut()).await.0.is_pending());
    let mut worst = Duration::ZERO;
    for round in 0..ROUNDS {
        match poll_once(call().as_mut()).await {
            (Poll::Ready(answer), _) => refused_at_the_router(&answer),
            (Poll::Pending, _) => panic!("two probes at once"),
        }
        let began = own_time();
        if round % 2 == 0 {
            drop(probe);
        } else {
            let panics = catch_unwind(AssertUnwindSafe(move || {
                let _probe = probe;
                resume_unwind(Box::new("the task of the probe panics"));
            }));
            assert!(panics.is_err());
        }
        let mut next = call();
        let (first, _) = poll_once(next.as_mut()).await;
        let took = own_time() - began;
        assert!(first.is_pending(), "round {round}: {first:?}");
        worst = worst.max(took);
        probe = next;
        // The connections of those that went away are closed by others.
        tokio::task::yield_now().await;
    }
    worst
}

/// How long the probe had that did not report, in milliseconds, as the history has it.
async fn lease_that_ended(app: &TestApp) -> i64 {
    let history = eventually(SOON, "it is in the history", || async {
        let history = app.http().get("/mcp/circuit-breakers/up/history").await.expect(200).json();
        (history["transitions"][0]["reason"] == "probe_lease_expired").then_some(history)
    })
    .await;
    let at = |newest: usize, reason: &str| {
        let step = &history["transitions"][newest];
        assert_eq!(step["reason"], reason, "{history}");
        step["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond()
    };
    at(0, "probe_lease_expired") - at(1, "timer")
}

/// A probe without an answer holds the breaker half-open for its lease and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_hung_probe() {
    let rig = Rig::legacy(&["probe"]).await;
    let settings = format!(
        "{ONCE}, circuit_breaker_threshold: 1, circuit_breaker_timeout: 400ms, timeout: 80s"
    );
    const LEASE: Duration = Duration::from_secs(3);
    let app = TestApp::start(&rig.yaml("up", &format!("{settings}, half_open_lease: 3s")))
        .await
        .ready()
        .await;
    let socket = app.socket();
    trip_app(&app, &rig, "probe").await;
    rig.set("probe", Fault::hold(Fault::status(500)));
    let since = Instant::now();
    let probe = persistent(app.http(), "up__probe");
    let probed = rig.call("probe", since).await.at;
    let refusal = app.http().call("up__probe", &key("x")).await;
    refused(&refusal, &["breaker_probing"]);
    // Nobody calls meanwhile: the lease ends all the same.
    let reopened = eventually(SOON, "the lease is over", || async {
        match breaker_state(&socket, "up").await.as_str() {
            "half_open" => None,
            "open" => Some(Instant::now()),
            other => panic!("the breaker is {other}"),
        }
    });
    let lease = reopened.await.duration_since(probed);
    assert!(lease >= LEASE - millis(100) && lease < SOON, "{lease:?}");
    // The machine may have been late to show it; the router knows when it was.
    let lease = lease_that_ended(&app).await;
    assert!((2990..=3050).contains(&lease), "{lease} ms");
    assert_eq!(transitions(&socket, "up", &["reason=\"probe_lease_expired\""]).await, 1.0);
    assert_eq!(rig.counts("probe").requests, 2);
    // The next probe closes it while the first still hangs, and what that comes to is no matter.
    rig.set("probe", Fault::None);
    let answer = persistent(app.http(), "up__probe").await.unwrap();
    assert_eq!(answer.json()["success"], true, "{}", answer.text());
    assert_eq!(breaker_state(&socket, "up").await, "closed");
    let before = transitions(&socket, "up", &[]).await;
    rig.release();
    assert_eq!(probe.await.unwrap().json()["success"], false);
    assert_eq!(breaker_state(&socket, "up").await, "closed");
    assert_eq!(transitions(&socket, "up", &[]).await, before);
    assert_eq!(total(&socket, "switchyard_breaker_stale_results_total", &[]).await, 1.0);
    app.stop().await;
}

/// What was under way when the breaker changed its state says nothing of the server as it is then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_results_ignored() {
    for closed_again in [false, true] {
        let rig = Rig::legacy(&["slow", "bad"]).await;
        let settings = format!(
            "{ONCE}, circuit_breaker_threshold: 3, circuit_breaker_timeout: {}, max_concurrency: 200",
            if closed_again { "200ms" } else { "30s" }
        );
        let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
        let socket = app.socket();
        rig.next("slow", &vec![Fault::hold(Fault::None); 50]);
        rig.next("slow", &vec![Fault::hold(Fault::status(500)); 50]);
        let calls: Vec<_> = (0..100)
            .map(|number| {
                let http = app.http().clone();
                tokio::spawn(async move { http.call("up__slow", &key(number)).await })
            })
            .collect();
        eventually(SOON, "all calls are under way", || async {
            (rig.counts("slow").requests == 100).then_some(())
        })
        .await;
        trip_app(&app, &rig, "bad").await;
        let state = match closed_again {
            false => "open",
            true => {
                rig.set("bad", Fault::None);
                let answer = persistent(app.http(), "up__bad").await.unwrap();
                assert_eq!(answer.json()["success"], true);
                "closed"
            }
        };
        let before = transitions(&socket, "up", &[]).await;
        rig.release();
        let mut served = 0;
        for call in calls {
            served += u32::from(call.await.unwrap().json()["success"] == true);
        }
        assert_eq!(served, 50);
        assert_eq!(breaker_state(&socket, "up").await, state);
        assert_eq!(transitions(&socket, "up", &[]).await, before);
        assert_eq!(total(&socket, "switchyard_breaker_stale_results_total", &[]).await, 100.0);
        app.stop().await;
    }
}

/// Errors of tools neither open a breaker nor keep it from opening; to a half-open one they prove
/// that the server lives.
#[tokio::test]
async fn tool_error_neutral() {
    let rig = Rig::legacy(&["tool"]).await;
    let settings = format!("{ONCE}, circuit_breaker_threshold: 5, circuit_breaker_timeout: 200ms");
    let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
    let socket = app.socket();
    let call = || app.http().call("up__tool", "{}");
    rig.next("tool", &vec![Fault::status(500); 4]);
    rig.next("tool", &vec![Fault::RpcError(-32603); 50]);
    rig.next("tool", &vec![Fault::ToolError; 50]);
    for _ in 0..104 {
        assert_eq!(call().await.json()["success"], false);
    }
    assert_eq!(breaker_state(&socket, "up").await, "closed");
    for (number, alive) in [Fault::RpcError(-32603), Fault::ToolError].into_iter().enumerate() {
        // One more failure in the first round; in the second the success of the probe began anew.
        let failures = if number == 0 { 1 } else { 5 };
        for failure in 1..=failures {
            assert_eq!(breaker_state(&socket, "up").await, "closed", "before {failure}");
            rig.next("tool", &[Fault::status(500)]);
            call().await;
        }
        assert_eq!(breaker_state(&socket, "up").await, "open");
        rig.next("tool", &[alive]);
        let answer = persistent(app.http(), "up__tool").await.unwrap();
        assert_eq!(answer.json()["success"], false, "{}", answer.text());
        assert_eq!(breaker_state(&socket, "up").await, "closed");
    }
    assert_eq!(call().await.json()["success"], true);
    assert_eq!(rig.counts("tool").requests, 104 + 1 + 1 + 5 + 1 + 1);
    app.stop().await;
}

fn socket(router: &Router) -> Http {
    Http::socket(router.data_dir().join(ADMIN_SOCKET))
}

/// A server that comes and goes, under steady traffic: it gets what a breaker allows, every caller
/// an answer in time, and the router does not grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flapping_upstream() {
    const THRESHOLD: f64 = 5.0;
    const PLACES: f64 = 16.0;
    // 200 calls in a second where that is asked for.
    let gap = millis(figure(8, 5) as u64);
    const DEADLINE: Duration = Duration::from_secs(2);
    // Up, refused; up, reset after the call; up, hangs; and so on.
    let phases = figure(12, 200);
    let period = millis(figure(1000, 3000) as u64);
    let rig = Rig::legacy(&["tool"]).await;
    let steady = Rig::legacy(&["tool"]).await;
    let settings = "circuit_breaker_threshold: 5, circuit_breaker_timeout: 400ms, max_concurrency: 16, \
        timeout: 1s, call_deadline: 2s, retry_delay: 100ms";
    let yaml = rig.yaml("up", settings) + &steady.entry("steady", "max_concurrency: 1000");
    let router = Router::start(&yaml).await;
    let socket = socket(&router);
    for tool in ["up__tool", "steady__tool"] {
        eventually(SOON, "the tool is there", || async {
            let answer = router.http.call(tool, &key("first")).await;
            (answer.json()["success"] == true).then_some(())
        })
        .await;
    }
    let mut beat = tokio::time::interval(gap);
    // What a busy machine did not let begin is not begun at once.
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut attempts, mut served, mut refusals, mut calls) = (0_u64, 0_u64, 0_u64, 0_u64);
    // How long a call may take beyond what one takes at the same time at a server that is well, which is
    // what the machine makes of it.
    let limit = DEADLINE + millis(50);
    let (mut worst, mut worst_seen, mut late) = (Duration::ZERO, Duration::ZERO, 0_u64);
    let mut outcomes = HashSet::new();
    let mut memory = Vec::new();
    for phase in 0..phases {
        match phase % 6 {
            1 => rig.down(),
            2 => rig.up(),
            3 => rig.set("tool", Fault::Reset),
            5 => rig.set("tool", Fault::HangBeforeHeaders),
            _ => rig.set("tool", Fault::None),
        }
        let mut callers = tokio::task::JoinSet::new();
        let until = Instant::now() + period;
        while Instant::now() < until {
            beat.tick().await;
            calls += 1;
            for tool in ["up__tool", "steady__tool"] {
                let (http, key) = (router.http.clone(), key(calls));
                callers.spawn(async move {
                    let since = Instant::now();
                    (tool, http.call(tool, &key).await.json(), since.elapsed())
                });
            }
        }
        let (mut times, mut usual) = (Vec::new(), (Duration::ZERO, Duration::ZERO));
        while let Some(ended) = callers.join_next().await {
            let (tool, json, took) = ended.unwrap();
            let own = json["execution_time_ms"].as_f64().unwrap() / 1000.0;
            let own = Duration::from_secs_f64(own);
            if tool == "steady__tool" {
                assert_eq!(json["success"], true, "{json}");
                usual = (usual.0.max(own), usual.1.max(took));
                continue;
            }
            attempts += json["attempts"].as_u64().unwrap();
            served += u64::from(json["success"] == true);
            refusals += u64::from(json["error_code"] == "MCPCircuitOpenError");
            outcomes.insert(json["reason"].to_string());
            times.push((own, took));
        }
        for (own, took) in times {
            let (own, took) = match full() {
                true => (own, took),
                false => (own.saturating_sub(usual.0), took.saturating_sub(usual.1)),
            };
            worst = worst.max(own);
            worst_seen = worst_seen.max(took);
            late += u64::from(took > limit);
        }
        memory.push(router.resident());
    }
    let opened = transitions(&socket, "up", &["from=\"closed\"", "to=\"open\""]).await;
    let probes_failed = transitions(&socket, "up", &["reason=\"probe_failed\""]).await;
    let failed = u32::try_from(attempts - served).unwrap();
    let most = opened * (THRESHOLD + PLACES) + probes_failed;
    println!(
        "{calls} calls, {served} served, {refusals} refused; {attempts} attempts, {failed} failed of \
         at most {most} ({opened} times opened, {probes_failed} probes failed); slowest {worst:?} \
         ({worst_seen:?} seen, {late} late); memory {:?} MiB; {outcomes:?}",
        memory.iter().map(|bytes| bytes >> 20).collect::<Vec<_>>()
    );
    assert!(worst <= limit, "{worst:?}");
    // The same with the way to the router and back, which a busy machine makes long.
    assert!(
        if full() { late == 0 } else { late * 1000 <= calls },
        "{late} of {calls} answers came late, at most after {worst_seen:?}"
    );
    assert!(opened >= 1.0 && refusals > 0 && served > 0);
    assert!(f64::from(failed) <= most, "{failed} > {most}");
    // Nobody pays for a call that was let through into a refusal twice.
    assert_eq!(rig.executed_twice("tool"), Vec::<String>::new());
    let early = memory[memory.len() / 4];
    let last = *memory.last().unwrap();
    assert!(last <= early + early / 10 + (8 << 20), "{early} bytes grew to {last}");
    assert_eq!(router.stop().await.0, 0);
}

/// Five hundred callers wait for a server that hangs; those of another one do not notice.
///
/// Two routers, of which one has the callers that wait, are called in turns: what else the machine
/// does meanwhile is the same for both, and the difference is what the callers make.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_upstream_isolated() {
    const CALLERS: usize = 500;
    const BLOCK: usize = 50;
    let calls = figure(2000, 10_000);
    let hung = Rig::legacy(&["tool"]).await;
    let quick = Rig::legacy(&["tool"]).await;
    let yaml = hung
        .yaml("hung", "timeout: 300s, max_concurrency: 600, circuit_breaker_threshold: 1000")
        + &quick.entry("quick", "");
    let routers = [Router::start(&yaml).await, Router::start(&yaml).await];
    let [alone, beside] = &routers;
    for router in &routers {
        eventually(SOON, "the servers are there", || async {
            let mut well = true;
            for tool in ["quick__tool", "hung__tool"] {
                well &= router.http.call(tool, "{}").await.json()["success"] == true;
            }
            well.then_some(())
        })
        .await;
    }
    hung.set("tool", Fault::HangBeforeHeaders);
    let before = hung.counts("tool").requests;
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let http = beside.http.clone();
            tokio::spawn(async move {
                let body = format!(r#"{{"tool_name":"hung__tool","arguments":{}}}"#, key(number));
                http.line()
                    .await
                    .send_patiently(http.request(&http::Method::POST, "/mcp/call").body(body))
                    .await
            })
        })
        .collect();
    eventually(SOON * 2, "all wait for the server that hangs", || async {
        (hung.counts("tool").requests - before == CALLERS as u64).then_some(())
    })
    .await;
    let mut lines = [alone.http.line().await, beside.http.line().await];
    let mut times = [Vec::with_capacity(calls), Vec::with_capacity(calls)];
    for number in 0..calls + calls / 10 {
        for turn in 0..2 {
            let which = (number + turn) % 2;
            let body = format!(r#"{{"tool_name":"quick__tool","arguments":{}}}"#, key(number));
            let call = alone.http.request(&http::Method::POST, "/mcp/call").body(body);
            let since = Instant::now();
            let answer = lines[which].send(call).await;
            let took = since.elapsed();
            assert_eq!(answer.json()["success"], true, "{}", answer.text());
            // The first ones find nothing warm.
            if number >= calls / 10 {
                times[which].push(took);
            }
        }
    }
    assert!(callers.iter().all(|caller| !caller.is_finished()));
    callers.iter().for_each(JoinHandle::abort);
    let [alone, beside] = &times;
    let p99 = |times: &[Duration]| {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        sorted[calls * 99 / 100]
    };
    let usual = p99(alone);
    let most = usual + (usual / 10).max(millis(1));
    // One in a hundred alone are slower than their p99, and no more beside those that hang may be slower
    // than what it may change to. A busy machine makes slow ones in rows, now at one router and now
    // at the other, so they are compared in blocks: the excess must not be more than chance gives
    // from block to block, but for one time in a thousand.
    let excess: Vec<f64> = (alone.chunks(BLOCK).zip(beside.chunks(BLOCK)))
        .map(|(alone, beside)| {
            let above = |times: &[Duration], bound| {
                times.iter().filter(|time| **time > bound).count() as f64
            };
            above(beside, most) - above(alone, usual)
        })
        .collect();
    let blocks = excess.len() as f64;
    let mean = excess.iter().sum::<f64>() / blocks;
    let variance = excess.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / (blocks - 1.0);
    let chance = 3.1 * (variance / blocks).sqrt();
    println!(
        "p99 {usual:?} alone, {:?} beside {CALLERS} that hang; {mean:.2} more of {BLOCK} above {most:?}, \
         where chance gives {chance:.2}",
        p99(beside)
    );
    assert!(mean <= chance, "{mean} > {chance}");
    let p99_beside = p99(beside);
    assert!(!full() || p99_beside <= most, "p99 {p99_beside:?} beside, {usual:?} alone");
    for router in routers {
        router.kill().await;
    }
}

/// A caller in a hurry says nothing of the server.
#[tokio::test]
async fn a_callers_own_short_timeout_does_not_open_the_breaker() {
    let rig = Rig::legacy(&["tool"]).await;
    let settings = format!("{ONCE}, circuit_breaker_threshold: 3, timeout: 1500ms");
    let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
    rig.set("tool", Fault::HangBeforeHeaders);
    let call = |timeout: &str| {
        let body = format!(r#"{{"tool_name":"up__tool","arguments":{{}},"timeout":{timeout}}}"#);
        app.http().post("/mcp/call", body)
    };
    for _ in 0..10 {
        let json = call("0.3").await.json();
        assert_eq!(json["reason"], "timeout", "{json}");
    }
    // One that gives as much time as the server has, or more, is as good as any.
    for timeout in ["5", "1.5", "null"] {
        assert_eq!(breaker_state(&app.socket(), "up").await, "closed");
        let json = call(timeout).await.json();
        assert_eq!(json["reason"], "timeout", "{json}");
    }
    assert_eq!(breaker_state(&app.socket(), "up").await, "open");
    app.stop().await;
}

/// Neither does an attempt that had only what earlier ones left of the call's time.
#[tokio::test]
async fn an_attempt_with_little_time_left_is_no_trial() {
    let rig = Rig::legacy(&["read"]).await;
    rig.annotate("read", json!({ "readOnlyHint": true }));
    let settings =
        "circuit_breaker_threshold: 2, timeout: 3s, call_deadline: 2400ms, retry_delay: 100ms";
    let app = TestApp::start(&rig.yaml("up", settings)).await.ready().await;
    let attempts = [Fault::after(millis(1500), Fault::Reset), Fault::HangBeforeHeaders];
    for state in ["closed", "open"] {
        let requests = rig.counts("read").requests;
        rig.next("read", &attempts);
        let json = app.http().call("up__read", "{}").await.json();
        assert_eq!(json["success"], false, "{json}");
        assert_eq!(breaker_state(&app.socket(), "up").await, state, "{json}");
        let made = if state == "closed" { 2 } else { 1 };
        assert_eq!(rig.counts("read").requests - requests, made, "{json}");
    }
    app.stop().await;
}

/// With a breaker for each tool, a tool that hangs takes no other with it; a server that is away
/// takes all.
#[tokio::test]
async fn breakers_of_single_tools() {
    let rig = Rig::legacy(&["hangs", "breaks", "works"]).await;
    let settings = format!("{ONCE}, circuit_breaker_threshold: 3, timeout: 1s");
    let app = TestApp::start(&rig.yaml("up", &format!("{settings}, breaker_scope: tool")))
        .await
        .ready()
        .await;
    let socket = app.socket();
    let call = async |tool: &str| app.http().call(&format!("up__{tool}"), "{}").await;
    rig.set("hangs", Fault::HangBeforeHeaders);
    rig.set("breaks", Fault::Reset);
    for tool in ["hangs", "breaks"] {
        for _ in 0..3 {
            assert_eq!(call(tool).await.json()["outcome"], "unknown");
        }
        let json = refused(&call(tool).await, &["breaker_open"]);
        let error = json["error"].as_str().unwrap();
        assert!(error.contains(&format!("tool `{tool}`")), "{error}");
        assert_eq!(rig.counts(tool).requests, 3);
        assert_eq!(call("works").await.json()["success"], true);
    }
    assert_eq!(breaker_state(&socket, "up").await, "closed");
    rig.down();
    eventually(SOON, "the server is gone", || async { (rig.open() == 0).then_some(()) }).await;
    for _ in 0..3 {
        let json = call("works").await.json();
        assert_eq!(json["outcome"], "not_sent", "{json}");
        assert_eq!(json["reason"], "not_sent", "{json}");
    }
    assert_eq!(breaker_state(&socket, "up").await, "open");
    let json = refused(&call("works").await, &["breaker_open"]);
    assert!(!json["error"].as_str().unwrap().contains("tool `"), "{json}");
    app.stop().await;
}

/// With an active probe no caller's tool runs before the server gave a sign of life.
#[tokio::test]
async fn an_active_probe_risks_no_tool() {
    for (rig, sign) in
        [(Rig::legacy(&["tool"]).await, "ping"), (Rig::modern(&["tool"]).await, "server/discover")]
    {
        let settings = format!(
            "{ONCE}, circuit_breaker_threshold: 1, circuit_breaker_timeout: 200ms, timeout: 1500ms"
        );
        let app = TestApp::start(&rig.yaml("up", &format!("{settings}, breaker_probe: active")))
            .await
            .ready()
            .await;
        let socket = app.socket();
        trip_app(&app, &rig, "tool").await;
        rig.set("tool", Fault::None);
        for (number, fault) in
            [Fault::HangBeforeHeaders, Fault::Reset, Fault::status(500)].into_iter().enumerate()
        {
            rig.set(sign, fault.clone());
            let asked = rig.asked(sign);
            let answer = persistent(app.http(), "up__tool").await.unwrap();
            let json = answer.json();
            assert_eq!(json["success"], false, "{fault:?}: {json}");
            assert_eq!(json["outcome"], "not_sent", "{fault:?}: {json}");
            assert!(rig.asked(sign) > asked, "{fault:?}");
            assert_eq!(rig.counts("tool").requests, 1, "{fault:?}");
            assert_eq!(breaker_state(&socket, "up").await, "open", "{fault:?}");
            let failed = transitions(&socket, "up", &["reason=\"probe_failed\""]).await;
            assert_eq!(failed, (number + 1) as f64, "{fault:?}");
        }
        rig.set(sign, Fault::None);
        let answer = persistent(app.http(), "up__tool").await.unwrap();
        assert_eq!(answer.json()["success"], true, "{}", answer.text());
        assert_eq!(rig.counts("tool").requests, 2);
        assert_eq!(breaker_state(&socket, "up").await, "closed");
        app.stop().await;
    }
}
