//! What ends the repeats of a call beside their number: those of too many others, and too little time.

use super::*;

/// So many calls may wait for their next attempt at one server, as docs/resilience.md has it.
const SLEEPERS: usize = 1024;
/// So many begin at a time, as many as the server has places.
const WAVE: usize = 128;

/// Where a tool is quick and the delay between attempts long, nearly all callers wait for their next
/// attempt, and that is no reason to turn one away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_are_served_at_a_fifth_of_faults() {
    const CALLERS: usize = 400;
    let rig = Rig::legacy(&["read"]).await;
    rig.annotate("read", idempotent());
    let settings = "circuit_breaker_threshold: 1000, retry_budget: {ratio: 1.0, cap: 1000}, \
        max_concurrency: 400, timeout: 20s";
    let app = router(&rig, settings).await;
    rig.mix("read", 200, &after_the_effect());
    let calls = figure(3, 10) * CALLERS;
    let answers = drive(app.http(), "up__read", calls, CALLERS).await;
    let (well, refused) = (served(&answers), suppressed(&app, "overload").await);
    println!(
        "{calls} calls of {CALLERS} callers: {well} served, {refused} not repeated for overload"
    );
    assert_eq!(refused, 0.0);
    assert!(well * 100 >= calls * 99, "{well} of {calls}");
    app.stop().await;
}

/// One call more than may wait is told what it has at once; with the others gone, calls wait again.
#[tokio::test]
async fn too_many_calls_that_wait_for_their_next_attempt_are_no_more() {
    let [rig, other] = rigs(&["read"]).await;
    let settings = format!("{OFTEN}, {ENDLESS}, call_deadline: 300s, max_concurrency: {WAVE}");
    let yaml = rig.yaml("up", &settings) + &other.entry("other", &settings);
    let app = TestApp::start(&yaml).await.ready().await;
    rig.set("read", Fault::retry_after(429, 100));
    let mut waiting = Vec::new();
    while waiting.len() < SLEEPERS {
        waiting.extend((0..WAVE).map(|number| {
            let http = app.http().clone();
            tokio::spawn(async move { http.call("up__read", &key(number)).await })
        }));
        eventually(SOON, "all wait", || async {
            let asked = rig.counts("read").requests == waiting.len() as u64;
            (asked && inflight(&app).await == 0.0).then_some(())
        })
        .await;
    }
    assert_eq!(suppressed(&app, "overload").await, 0.0);
    let since = Instant::now();
    let answer = app.http().call("up__read", &key("one more")).await;
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    let json = answer.json();
    assert_eq!((&json["success"], &json["attempts"]), (&false.into(), &1.into()), "{json}");
    assert_eq!(
        (&json["reason"], &json["outcome"]),
        (&"refused".into(), &"refused".into()),
        "{json}"
    );
    assert_eq!(app.entry_of(&answer).await["attempts"], 1);
    assert_eq!(suppressed(&app, "overload").await, 1.0);
    assert!(waiting.iter().all(|call| !call.is_finished()));
    assert_eq!(rig.counts("read").requests, SLEEPERS as u64 + 1);
    // It is the server's own limit.
    other.next("read", &[Fault::status(429)]);
    let json = app.http().call("other__read", "{}").await.json();
    assert_eq!((&json["success"], &json["attempts"]), (&true.into(), &2.into()), "{json}");
    // Whoever goes away makes room.
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    rig.set("read", Fault::None);
    eventually(SOON, "there is room", || async {
        rig.next("read", &[Fault::status(429)]);
        let json = app.http().call("up__read", &key("after")).await.json();
        (json["success"] == true && json["attempts"] == 2).then_some(())
    })
    .await;
    app.stop().await;
}

/// A repeat that would have less than ten milliseconds is neither waited for nor made. A busy machine
/// leaves it less still.
#[tokio::test]
async fn no_attempt_is_begun_with_next_to_no_time_left() {
    const DEADLINE: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_secs(1);
    for rig in rigs(&["read"]).await {
        let app = router(&rig, &format!("{OFTEN}, call_deadline: 2s")).await;
        let (bound, mut tries) = (DEADLINE - millis(200), 0_u32);
        let took = fastest(bound, async || {
            // What it leaves is the pause and five milliseconds, of which the way takes some.
            let first = DEADLINE - PAUSE - millis(5);
            rig.next("read", &[Fault::after(first, Fault::retry_after(429, PAUSE.as_secs()))]);
            let json = app.http().call("up__read", "{}").await.json();
            assert_eq!((&json["success"], &json["attempts"]), (&false.into(), &1.into()), "{json}");
            let known = (&json["reason"], &json["outcome"], &json["retriable"]);
            assert_eq!(known, (&"refused".into(), &"refused".into(), &true.into()), "{json}");
            tries += 1;
            Duration::from_secs_f64(json["execution_time_ms"].as_f64().unwrap() / 1000.0)
        })
        .await;
        // It was told when that was known, and not when the pause was over.
        assert!(took < bound, "{took:?}");
        assert_eq!(suppressed(&app, "deadline").await, f64::from(tries));
        assert_eq!(retries(&app).await, 0.0);
        assert_eq!(rig.counts("read").requests, u64::from(tries));
        app.stop().await;
    }
}

/// Calls that are under way when their server gets another address and those after it have one budget.
#[tokio::test]
async fn another_address_brings_no_second_budget() {
    let (old, new) = (Rig::legacy(&["read"]).await, Rig::legacy(&["read"]).await);
    let app = TestApp::start("").await.ready().await;
    let spec = |rig: &Rig| {
        rig.annotate("read", idempotent());
        json!({
            "name": "up", "url": rig.url(), "circuit_breaker_threshold": 1000,
            "retry_delay": "100ms", "retry_budget": {"ratio": 0, "min_per_second": 0.001},
        })
        .to_string()
    };
    app.socket().post("/mcp/servers", spec(&old)).await.expect(201);
    assert_eq!(app.http().call("up__read", "{}").await.json()["success"], true);
    old.set("read", Fault::hold(Fault::status(500)));
    new.set("read", Fault::status(500));
    let (http, since) = (app.http().clone(), Instant::now());
    let held = tokio::spawn(async move { http.call("up__read", &key("held")).await.json() });
    old.call("read", since).await;
    app.socket().put("/mcp/servers/up", spec(&new)).await.expect(200);
    let json = app.http().call("up__read", &key("after")).await.json();
    assert_eq!(json["success"], false, "{json}");
    old.release();
    let held = held.await.unwrap();
    let attempts = |json: &Value| json["attempts"].as_u64().unwrap();
    assert_eq!(attempts(&json) + attempts(&held), 2 + 1, "{json} {held}");
    assert_eq!((retries(&app).await, suppressed(&app, "budget").await), (1.0, 2.0));
    app.stop().await;
}
