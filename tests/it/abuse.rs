//! What a server sends, or does not send, that should hurt nobody but itself.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Answer, Fault, GIGABYTE, Http, Rig, Router, TestApp, eventually};

/// The tools of every server here: one that breaks and one that does not.
const TOOLS: [&str; 2] = ["bad", "good"];

/// The time limit of one attempt, where the test waits for it.
const LIMIT: Duration = Duration::from_millis(400);

async fn rigs() -> [Rig; 2] {
    [Rig::legacy(&TOOLS).await, Rig::modern(&TOOLS).await]
}

/// One attempt for each call, and a breaker that stays out of it.
const ONCE: &str = "retry_attempts: 0, circuit_breaker_threshold: 1000000";

/// This server and a good one, for a router's configuration.
async fn servers(rig: &Rig, settings: &str) -> String {
    let other = Rig::legacy(&["good"]).await;
    format!("{}{}", rig.yaml("up", &format!("{ONCE}, {settings}")), other.entry("other", ""))
}

async fn router(rig: &Rig, settings: &str) -> TestApp {
    TestApp::start(&servers(rig, settings).await).await.ready().await
}

fn key(key: &str) -> String {
    json!({ "key": key }).to_string()
}

/// The next calls at the same server and at another one get what is theirs.
async fn all_is_well(http: &Http, what: &str) {
    for (tool, times) in [("up__good", 5), ("other__good", 1)] {
        for time in 0..times {
            let key = format!("{what} {time}");
            let answer = http.call(tool, &json!({ "key": key }).to_string()).await;
            assert_eq!(text_of(&answer), key, "{what}: {}", answer.text());
        }
    }
}

#[track_caller]
fn text_of(answer: &Answer) -> String {
    let json = answer.json();
    let text = &json["data"]["content"][0]["text"];
    text.as_str().unwrap_or_else(|| panic!("{json}")).to_owned()
}

/// What the answer and the ledger say of a call that failed, and that they say the same.
async fn failed(app: &TestApp, answer: &Answer, code: &str, class: &str) {
    let json = answer.json();
    assert_eq!(json["error_code"], code, "{json}");
    assert_eq!(json["reason"], class, "{json}");
    assert_eq!(json["outcome"], "unknown", "{json}");
    assert_eq!(json["retriable"], false, "{json}");
    let entry = app.entry_of(answer).await;
    assert_eq!(entry["failure"], class, "{entry}");
    assert_eq!(entry["error_code"], code, "{entry}");
    assert_eq!(entry["error"], json["error"], "{entry}");
}

/// The call ends at its time limit, its connection is closed at once and the server told.
async fn hangs(fault: &Fault) {
    for rig in rigs().await {
        let app = router(&rig, "timeout: 400ms").await;
        rig.set("bad", fault.clone());
        let began = Instant::now();
        let answer = app.http().call("up__bad", &key("k")).await;
        let ended = Instant::now();
        let took = ended.duration_since(began);
        assert!(took >= LIMIT && took < LIMIT + Duration::from_millis(100), "{fault:?}: {took:?}");
        failed(&app, &answer, "MCPTimeoutError", "timeout").await;
        let call = rig.call("bad", began).await;
        let closed = rig.closed(&call, ended).await;
        assert!(closed <= Duration::from_millis(100), "{fault:?}: closed {closed:?} after");
        let cancelled = rig.cancelled(&call, ended).await;
        assert!(cancelled <= Duration::from_millis(100), "{fault:?}: told {cancelled:?} after");
        assert_eq!(rig.counts("bad").requests, 1, "{fault:?}");
        all_is_well(app.http(), "after a silence").await;
        app.stop().await;
    }
}

#[tokio::test]
async fn upstream_hang_before_headers() {
    hangs(&Fault::HangBeforeHeaders).await;
}

#[tokio::test]
async fn upstream_hang_after_headers() {
    hangs(&Fault::HangAfterHeaders).await;
}

#[tokio::test]
async fn upstream_hang_mid_event() {
    hangs(&Fault::HangMidEvent).await;
}

#[tokio::test]
async fn upstream_hang_mid_json() {
    hangs(&Fault::HangMidJson).await;
}

#[tokio::test]
async fn an_answer_that_stops_ends_at_the_longest_silence_and_a_slow_one_does_not() {
    let stall = Duration::from_millis(300);
    for rig in rigs().await {
        let app = router(&rig, "timeout: 10s, stall_timeout: 300ms").await;
        for fault in [Fault::HangAfterHeaders, Fault::HangMidEvent, Fault::HangMidJson] {
            rig.set("bad", fault.clone());
            let began = Instant::now();
            let answer = app.http().call("up__bad", &key("k")).await;
            let took = began.elapsed();
            assert!(took >= stall && took < stall + Duration::from_secs(1), "{fault:?}: {took:?}");
            failed(&app, &answer, "MCPTimeoutError", "timeout").await;
            assert!(answer.text().contains("stall_timeout"), "{}", answer.text());
            let call = rig.call("bad", began).await;
            rig.cancelled(&call, Instant::now()).await;
        }
        // An answer that has not begun may take its time; one that goes on, too.
        rig.set("bad", Fault::after(stall * 3, Fault::Event));
        let answer = app.http().call("up__bad", &key("late")).await;
        assert_eq!(text_of(&answer), "late");
        rig.set("bad", Fault::Drip(Duration::from_millis(100), 10));
        let answer = app.http().call("up__bad", &key("slow")).await;
        assert_eq!(text_of(&answer), "slow");
        all_is_well(app.http(), "after stalls").await;
        app.stop().await;
    }
}

/// Calls fail in this class, and nobody else is the worse for it.
async fn breaks(faults: &[Fault], code: &str) {
    for rig in rigs().await {
        let app = router(&rig, "timeout: 5s").await;
        for fault in faults {
            rig.set("bad", fault.clone());
            let before = rig.counts("bad").requests;
            for time in 0..3 {
                let began = Instant::now();
                let answer = app.http().call("up__bad", &key("k")).await;
                assert!(
                    began.elapsed() < Duration::from_secs(1),
                    "{fault:?}: {:?}",
                    began.elapsed()
                );
                failed(&app, &answer, code, "ambiguous").await;
                all_is_well(app.http(), &format!("after {fault:?} {time}")).await;
            }
            assert_eq!(rig.counts("bad").requests - before, 3, "{fault:?}");
        }
        app.stop().await;
    }
}

#[tokio::test]
async fn upstream_half_close() {
    breaks(&[Fault::HalfClose, Fault::Truncated, Fault::StreamEnds], "MCPConnectionError").await;
}

#[tokio::test]
async fn upstream_rst() {
    breaks(&[Fault::Reset, Fault::ResetMidAnswer], "MCPConnectionError").await;
}

#[tokio::test]
async fn wrong_id() {
    breaks(&[Fault::WrongId], "MCPProtocolError").await;
}

#[tokio::test]
async fn wrong_content_type() {
    let kinds =
        ["text/html", "application/octet-stream", "application/jsonp", "text/event-streams"];
    let faults = kinds.map(Fault::ContentType);
    breaks(&faults, "MCPProtocolError").await;
}

#[tokio::test]
async fn invalid_utf8() {
    breaks(&[Fault::InvalidUtf8, Fault::Garbage], "MCPProtocolError").await;
}

#[tokio::test]
async fn statuses_without_an_answer() {
    breaks(
        &[Fault::status(500), Fault::bare_status(500), Fault::bare_status(502)],
        "MCPConnectionError",
    )
    .await;
    breaks(&[Fault::NoHttp], "MCPConnectionError").await;
}

/// The first answer counts, what comes after it is nobody's.
async fn answers_once(fault: &Fault) {
    for rig in rigs().await {
        let app = router(&rig, "timeout: 5s").await;
        rig.set("bad", fault.clone());
        for time in 0..20 {
            let key = format!("{time}");
            let answer = app.http().call("up__bad", &json!({ "key": key }).to_string()).await;
            assert_eq!(text_of(&answer), key, "{fault:?}: {}", answer.text());
            if time % 5 == 0 {
                all_is_well(app.http(), &format!("after {fault:?} {time}")).await;
            }
        }
        assert_eq!(rig.counts("bad").requests, 20, "{fault:?}");
        app.stop().await;
    }
}

#[tokio::test]
async fn two_answers() {
    answers_once(&Fault::TwoAnswers).await;
    answers_once(&Fault::TwoResponses).await;
}

#[tokio::test]
async fn answer_then_garbage() {
    answers_once(&Fault::AnswerThenGarbage).await;
    answers_once(&Fault::AnswerThenFlood).await;
}

const MIB: u64 = 1024 * 1024;
/// Largest answer, when nothing is said.
const LARGEST: u64 = 16 * MIB;

/// A router as a process, whose memory and processor time are its own.
struct Measured {
    router: Router,
    before: u64,
    cpu: Duration,
    began: Instant,
}

impl Measured {
    async fn start(yaml: &str) -> Self {
        let router = Router::start(yaml).await;
        let ready = || async { (router.http.get("/readyz").await.status == 200).then_some(()) };
        eventually(Duration::from_secs(20), "the router is ready", ready).await;
        // What a first call needs is not what is measured.
        all_is_well(&router.http, "at the start").await;
        let (cpu, began) = (router.cpu(), Instant::now());
        let mut measured = Self { router, before: 0, cpu, began };
        measured.again();
        measured
    }

    fn again(&mut self) {
        self.router.forget_peak();
        self.before = self.router.resident();
        self.cpu = self.router.cpu();
        self.began = Instant::now();
    }

    /// By how much its memory had grown at the most.
    fn growth(&self) -> u64 {
        self.router.peak().saturating_sub(self.before)
    }

    /// The share of one processor that it used.
    fn load(&self) -> f64 {
        (self.router.cpu() - self.cpu).as_secs_f64() / self.began.elapsed().as_secs_f64()
    }

    async fn stop(self) {
        let log = self.router.log();
        assert!(!log.contains("panicked"), "{log}");
        assert_eq!(self.router.stop().await.0, 0);
    }
}

#[tokio::test]
async fn body_1gb() {
    for rig in rigs().await {
        let mut measured = Measured::start(&servers(&rig, "timeout: 20s").await).await;
        for fault in [Fault::Long(GIGABYTE), Fault::LongChunked(GIGABYTE)] {
            rig.set("bad", fault.clone());
            measured.again();
            let answer = measured.router.http.call("up__bad", &key("k")).await;
            let (took, growth) = (measured.began.elapsed(), measured.growth());
            println!("{fault:?}: {took:?}, {} KiB more", growth / 1024);
            let json = answer.json();
            assert_eq!(json["error_code"], "MCPResponseTooLargeError", "{json}");
            assert_eq!(json["outcome"], "unknown", "{json}");
            assert!(took <= Duration::from_secs(1), "{fault:?}: {took:?}");
            assert!(growth <= LARGEST + 8 * MIB, "{fault:?}: {growth}");
            all_is_well(&measured.router.http, "after a gigabyte").await;
        }
        measured.stop().await;
    }
}

/// A stream that never comes to its answer ends at the time limit or before it, in `code`, and
/// costs at most so much memory. Meanwhile another server answers as always.
async fn never_ends(fault: Fault, limit: Duration, codes: &[&str], memory: u64) {
    for rig in rigs().await {
        let settings = format!("timeout: {}ms", limit.as_millis());
        let mut measured = Measured::start(&servers(&rig, &settings).await).await;
        rig.set("bad", fault.clone());
        measured.again();
        let http = measured.router.http.clone();
        let call = tokio::spawn(async move { http.call("up__bad", &key("k")).await });
        let mut slowest = Duration::ZERO;
        while !call.is_finished() {
            let began = Instant::now();
            measured.router.http.call("other__good", &key("k")).await.expect(200);
            slowest = slowest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (took, growth) = (measured.began.elapsed(), measured.growth());
        let answer = call.await.unwrap().json();
        println!(
            "{fault:?}: {took:?}, {} KiB more, others {slowest:?}: {}",
            growth / 1024,
            answer["error"]
        );
        assert!(codes.iter().any(|code| answer["error_code"] == *code), "{answer}");
        assert_eq!(answer["outcome"], "unknown", "{answer}");
        assert!(took <= limit + Duration::from_millis(250), "{fault:?}: {took:?}");
        assert!(growth <= memory, "{fault:?}: {growth}");
        assert!(slowest <= Duration::from_millis(250), "{fault:?}: another took {slowest:?}");
        all_is_well(&measured.router.http, "after a stream").await;
        measured.stop().await;
    }
}

#[tokio::test]
async fn sse_never_ending() {
    let codes = ["MCPTimeoutError", "MCPResponseTooLargeError"];
    let limit = Duration::from_secs(2);
    never_ends(Fault::Comments, limit, &codes, 8 * MIB).await;
    never_ends(Fault::Trickle(Duration::from_secs(1)), limit, &codes[..1], 8 * MIB).await;
    never_ends(Fault::Events(1_000_000), Duration::from_secs(20), &codes[1..], 8 * MIB).await;
    // One line may be as large as the largest answer.
    never_ends(Fault::Line(GIGABYTE), Duration::from_secs(5), &codes[1..], LARGEST + 8 * MIB).await;
}

#[tokio::test]
async fn heads_and_messages_that_never_end() {
    let codes = ["MCPTimeoutError", "MCPConnectionError", "MCPResponseTooLargeError"];
    let limit = Duration::from_secs(1);
    let log = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"still here"}}"#;
    let ping = r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#;
    for fault in [Fault::Informational, Fault::Say(log), Fault::Say(ping)] {
        never_ends(fault, limit, &codes, 8 * MIB).await;
    }
}

#[tokio::test]
async fn gzip_bomb() {
    for rig in rigs().await {
        let mut measured = Measured::start(&servers(&rig, "timeout: 5s").await).await;
        for encoding in ["gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "identity, gzip"] {
            // Ten megabytes that are ten gigabytes when they are inflated.
            rig.set("bad", Fault::Bomb(10_000_000, encoding));
            measured.again();
            let answer = measured.router.http.call("up__bad", &key("k")).await.json();
            let (took, growth) = (measured.began.elapsed(), measured.growth());
            println!("{encoding}: {took:?}, {} KiB more", growth / 1024);
            assert_eq!(answer["error_code"], "MCPProtocolError", "{answer}");
            assert_eq!(answer["outcome"], "unknown", "{answer}");
            assert!(answer["error"].as_str().unwrap().contains("compressed"), "{answer}");
            assert!(took <= Duration::from_secs(1), "{encoding}: {took:?}");
            assert!(growth <= 8 * MIB, "{encoding}: {growth}");
        }
        all_is_well(&measured.router.http, "after a bomb").await;
        measured.stop().await;
    }
}

#[tokio::test]
async fn a_server_that_never_stops_talking_on_its_own_costs_little() {
    let changed = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
    let other = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}"#;
    for (rig, stream) in rigs().await.into_iter().zip(["GET", "subscriptions/listen"]) {
        for fault in [Fault::Comments, Fault::Say(changed), Fault::Say(other)] {
            rig.set(stream, fault.clone());
            let mut measured = Measured::start(&servers(&rig, "").await).await;
            eventually(Duration::from_secs(5), "the stream is open", || async {
                (rig.asked(stream) > 0).then_some(())
            })
            .await;
            // What may come at once has come.
            tokio::time::sleep(Duration::from_secs(2)).await;
            let lists = rig.asked("tools/list");
            measured.again();
            tokio::time::sleep(Duration::from_secs(3)).await;
            let (load, growth) = (measured.load(), measured.growth());
            let lists = rig.asked("tools/list") - lists;
            println!(
                "{stream} {fault:?}: {:.1} % of a processor, {} KiB more, {lists} lists",
                load * 100.0,
                growth / 1024
            );
            assert!(load < 0.3, "{stream} {fault:?}: {load}");
            assert!(growth <= 8 * MIB, "{stream} {fault:?}: {growth}");
            all_is_well(&measured.router.http, "beside a flood").await;
            measured.stop().await;
        }
    }
}
