//! What a server sends, or does not send, that should hurt nobody but itself.

use std::time::{Duration, Instant};

use serde_json::json;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::support::{
    Answer, Attended, Fault, GIGABYTE, Http, Legacy, Rig, Router, SOON, TestApp, eventually,
    fastest, promised,
};

/// The tools of every server here: one that breaks and one that does not.
const TOOLS: [&str; 2] = ["bad", "good"];

/// What runs long when it is asked for: seconds in which a stream goes on.
fn seconds(usual: u64, full: u64) -> Duration {
    match std::env::var("SWITCHYARD_TEST_FULL") {
        Ok(value) if value == "1" => Duration::from_secs(full),
        _ => Duration::from_secs(usual),
    }
}

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
    const LATE: Duration = Duration::from_millis(100);
    for rig in rigs().await {
        let app = router(&rig, "timeout: 400ms").await;
        rig.set("bad", fault.clone());
        let mut tries = 0;
        // What is late is the latest of three.
        let late = promised(LATE, async || {
            tries += 1;
            let (clock, began) = (Attended::begin(), Instant::now());
            let answer = app.http().call("up__bad", &key("k")).await;
            let ended = Instant::now();
            let took = ended.duration_since(began);
            assert!(took >= LIMIT, "{fault:?}: {took:?}");
            let (took, _) = clock.elapsed();
            failed(&app, &answer, "MCPTimeoutError", "timeout").await;
            let call = rig.call("bad", began).await;
            let closed = rig.closed(&call, ended).await;
            let cancelled = rig.cancelled(&call, ended).await;
            eprintln!("{fault:?}: {took:?}, closed {closed:?} and told {cancelled:?} after");
            took.saturating_sub(LIMIT).max(closed).max(cancelled)
        })
        .await;
        assert!(late <= LATE, "{fault:?}: {late:?}");
        assert_eq!(rig.counts("bad").requests, tries, "{fault:?}");
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
        let file = servers(&rig, "timeout: 60s, stall_timeout: 300ms").await;
        let patient = rig.entry("patient", &format!("{ONCE}, timeout: 60s, stall_timeout: 3s"));
        let app = TestApp::start(&(file + &patient)).await.ready().await;
        for fault in [Fault::HangAfterHeaders, Fault::HangMidEvent, Fault::HangMidJson] {
            rig.set("bad", fault.clone());
            let bound = stall + Duration::from_secs(1);
            let took = fastest(bound, async || {
                let began = Instant::now();
                let answer = app.http().call("up__bad", &key("k")).await;
                let took = began.elapsed();
                assert!(took >= stall, "{fault:?}: {took:?}");
                failed(&app, &answer, "MCPTimeoutError", "timeout").await;
                assert!(answer.text().contains("stall_timeout"), "{}", answer.text());
                let call = rig.call("bad", began).await;
                rig.cancelled(&call, Instant::now()).await;
                took
            })
            .await;
            assert!(took < bound, "{fault:?}: {took:?}");
        }
        // An answer that has not begun may take its time; one that goes on, too. Between two parts of
        // it a busy machine may stop for a while, so its server has more time.
        rig.set("bad", Fault::after(stall * 3, Fault::Event));
        let answer = app.http().call("up__bad", &key("late")).await;
        assert_eq!(text_of(&answer), "late");
        rig.set("bad", Fault::Drip(stall, 12));
        let began = Instant::now();
        let answer = app.http().call("patient__bad", &key("slow")).await;
        assert_eq!(text_of(&answer), "slow");
        assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
        all_is_well(app.http(), "after stalls").await;
        app.stop().await;
    }
}

/// Calls fail in this class, and nobody else is the worse for it.
async fn breaks(faults: &[Fault], code: &str) {
    for rig in rigs().await {
        let app = router(&rig, "timeout: 30s").await;
        for fault in faults {
            rig.set("bad", fault.clone());
            let before = rig.counts("bad").requests;
            let mut fastest = Duration::MAX;
            for time in 0..3 {
                let began = Instant::now();
                let answer = app.http().call("up__bad", &key("k")).await;
                fastest = fastest.min(began.elapsed());
                failed(&app, &answer, code, "ambiguous").await;
                all_is_well(app.http(), &format!("after {fault:?} {time}")).await;
            }
            assert!(fastest < Duration::from_secs(1), "{fault:?}: {fastest:?}");
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
        let app = router(&rig, "timeout: 30s").await;
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
    began: Instant,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

/// Floods take all that a machine has; what is measured beside another one says nothing.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Measured {
    async fn start(yaml: &str) -> Self {
        let alone = ALONE.lock().await;
        let router = Router::start(yaml).await;
        let ready = || async { router.is_ready().await.then_some(()) };
        eventually(SOON, "the router is ready", ready).await;
        // What a first call needs is not what is measured.
        all_is_well(&router.http, "at the start").await;
        let began = Instant::now();
        let mut measured = Self { router, before: 0, began, _alone: alone };
        measured.again();
        measured
    }

    fn again(&mut self) {
        self.router.forget_peak();
        self.before = self.router.resident();
        self.began = Instant::now();
    }

    /// By how much its memory had grown at the most.
    fn growth(&self) -> u64 {
        self.router.peak().saturating_sub(self.before)
    }

    /// The share of one processor that it uses, once it is below `bound`: what may come at once has
    /// come by then.
    async fn load_below(&self, bound: f64) -> f64 {
        let mut load = 1.0;
        for _ in 0..10 {
            let (cpu, began) = (self.router.cpu(), Instant::now());
            tokio::time::sleep(Duration::from_secs(2)).await;
            load = (self.router.cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
            if load < bound {
                return load;
            }
        }
        panic!("it still uses {:.0} % of a processor", load * 100.0);
    }

    async fn stop(self) {
        let log = self.router.log();
        assert!(!log.contains("panicked"), "{log}");
        assert_eq!(self.router.stop().await.0, 0);
    }
}

#[tokio::test]
#[expect(non_snake_case, reason = "the name that the plan of abuse gives it")]
async fn body_1GB() {
    for rig in rigs().await {
        let mut measured = Measured::start(&servers(&rig, "timeout: 20s").await).await;
        for fault in [Fault::Long(GIGABYTE), Fault::LongChunked(GIGABYTE)] {
            rig.set("bad", fault.clone());
            let took = promised(Duration::from_secs(1), async || {
                measured.again();
                let answer = measured.router.http.call("up__bad", &key("k")).await;
                let (took, growth) = (measured.began.elapsed(), measured.growth());
                println!("{fault:?}: {took:?}, {} KiB more", growth / 1024);
                let json = answer.json();
                assert_eq!(json["error_code"], "MCPResponseTooLargeError", "{json}");
                assert_eq!(json["outcome"], "unknown", "{json}");
                assert!(growth <= LARGEST + 8 * MIB, "{fault:?}: {growth}");
                let call = rig.call("bad", measured.began).await;
                rig.cancelled(&call, measured.began).await;
                took
            })
            .await;
            assert!(took <= Duration::from_secs(1), "{fault:?}: {took:?}");
            all_is_well(&measured.router.http, "after a gigabyte").await;
        }
        measured.stop().await;
    }
}

/// A stream that never comes to its answer ends at the time limit or before it, in `code`, and
/// costs at most so much memory. Meanwhile another server answers as always.
async fn never_ends(fault: Fault, limit: Duration, codes: &[&str], memory: u64) -> String {
    const LATE: Duration = Duration::from_millis(500);
    const SLOWEST: Duration = Duration::from_secs(1);
    let mut report = String::new();
    for rig in rigs().await {
        let settings = format!("timeout: {}ms", limit.as_millis());
        let mut measured = Measured::start(&servers(&rig, &settings).await).await;
        rig.set("bad", fault.clone());
        // Of each the least in some tries: a flood leaves little of a busy machine to others, but what
        // the router keeps from them it keeps each time.
        let (mut late, mut slowest) = (Duration::MAX, Duration::MAX);
        for _ in 0..5 {
            measured.again();
            let http = measured.router.http.clone();
            let call = tokio::spawn(async move { http.call("up__bad", &key("k")).await });
            let mut slow = Duration::ZERO;
            while !call.is_finished() {
                let began = Instant::now();
                measured.router.http.call("other__good", &key("k")).await.expect(200);
                slow = slow.max(began.elapsed());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let (took, growth) = (measured.began.elapsed(), measured.growth());
            let ended = Instant::now();
            let answer = call.await.unwrap().json();
            report += &format!(
                "{fault:?}: {took:?}, {} KiB more, others {slow:?}: {}\n",
                growth / 1024,
                answer["error_code"]
            );
            assert!(codes.iter().any(|code| answer["error_code"] == *code), "{answer}");
            assert_eq!(answer["outcome"], "unknown", "{answer}");
            assert!(growth <= memory, "{fault:?}: {growth}");
            let call = rig.call("bad", measured.began).await;
            let told = rig.cancelled(&call, ended).await;
            late = late.min(took.saturating_sub(limit).max(told));
            slowest = slowest.min(slow);
            if late <= LATE && slowest <= SLOWEST {
                break;
            }
        }
        assert!(late <= LATE, "{fault:?}: ended or told {late:?} late");
        assert!(slowest <= SLOWEST, "{fault:?}: another took {slowest:?}");
        all_is_well(&measured.router.http, "after a stream").await;
        measured.stop().await;
    }
    report
}

#[tokio::test]
async fn sse_never_ending() {
    let codes = ["MCPTimeoutError", "MCPResponseTooLargeError"];
    let limit = seconds(2, 15);
    print!("{}", never_ends(Fault::Comments, limit, &codes, 8 * MIB).await);
    print!(
        "{}",
        never_ends(Fault::Trickle(Duration::from_secs(1)), limit, &codes[..1], 8 * MIB).await
    );
    print!(
        "{}",
        never_ends(Fault::Events(1_000_000), Duration::from_secs(60), &codes[1..], 8 * MIB).await
    );
    // One line may be as large as the largest answer.
    print!(
        "{}",
        never_ends(Fault::Line(GIGABYTE), Duration::from_secs(30), &codes[1..], LARGEST + 8 * MIB)
            .await
    );
}

#[tokio::test]
async fn heads_and_messages_that_never_end() {
    let codes = ["MCPTimeoutError", "MCPConnectionError", "MCPResponseTooLargeError"];
    let limit = Duration::from_secs(1);
    let log = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"still here"}}"#;
    let ping = r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#;
    for fault in [Fault::Informational, Fault::Say(log), Fault::Say(ping)] {
        print!("{}", never_ends(fault, limit, &codes, 8 * MIB).await);
    }
}

#[tokio::test]
async fn gzip_bomb() {
    for rig in rigs().await {
        let mut measured = Measured::start(&servers(&rig, "timeout: 30s").await).await;
        for encoding in ["gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "identity, gzip"] {
            // Ten megabytes that are ten gigabytes when they are inflated.
            rig.set("bad", Fault::Bomb(10_000_000, encoding));
            let took = fastest(Duration::from_secs(1), async || {
                measured.again();
                let answer = measured.router.http.call("up__bad", &key("k")).await.json();
                let (took, growth) = (measured.began.elapsed(), measured.growth());
                println!("{encoding}: {took:?}, {} KiB more", growth / 1024);
                assert_eq!(answer["error_code"], "MCPProtocolError", "{answer}");
                assert_eq!(answer["outcome"], "unknown", "{answer}");
                assert!(answer["error"].as_str().unwrap().contains("compressed"), "{answer}");
                assert!(growth <= 8 * MIB, "{encoding}: {growth}");
                took
            })
            .await;
            assert!(took <= Duration::from_secs(1), "{encoding}: {took:?}");
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
            eventually(SOON, "the stream is open", || async {
                (rig.asked(stream) > 0).then_some(())
            })
            .await;
            measured.load_below(0.3).await;
            let lists = rig.asked("tools/list");
            measured.again();
            let load = measured.load_below(0.3).await;
            let growth = measured.growth();
            let lists = rig.asked("tools/list") - lists;
            println!(
                "{stream} {fault:?}: {:.1} % of a processor, {} KiB more, {lists} lists",
                load * 100.0,
                growth / 1024
            );
            assert!(growth <= 8 * MIB, "{stream} {fault:?}: {growth}");
            assert!(lists <= 30, "{stream} {fault:?}: asked for its list {lists} times");
            all_is_well(&measured.router.http, "beside a flood").await;
            measured.stop().await;
        }
    }
}

/// A server in shell that answers calls of `good` with their key, and on one of `bad` begins to
/// write as fast as it is read.
fn flooding(flood: &str) -> String {
    let say = |what: &str| format!(r#"printf '{{"jsonrpc":"2.0","id":%s,{what}}}\n' "$id""#);
    let legacy = say(r#""error":{"code":-32601,"message":"no"}"#);
    let hello = say(r#""result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{}}}"#);
    let tools =
        TOOLS.map(|name| format!(r#"{{"name":"{name}","inputSchema":{{"type":"object"}}}}"#));
    let tools = say(&format!(r#""result":{{"tools":[{}]}}"#, tools.join(",")));
    let answer = say(r#""result":{"content":[{"type":"text","text":"'"$key"'"}]}"#);
    let script = format!(
        r#"while IFS= read -r line; do
            id=${{line#*'"id":'}}; id=${{id%%,*}}
            key=${{line#*'"key":"'}}; key=${{key%%'"'*}}
            case $line in
            *'"method":"server/discover"'*) {legacy};;
            *'"method":"initialize"'*) {hello};;
            *'"method":"tools/list"'*) {tools};;
            *'"name":"bad"'*) {flood};;
            *'"name":"good"'*) {answer};;
            esac
        done"#
    );
    json!(["-c", script.replace('$', "$$")]).to_string()
}

/// How long a hundred calls of another server take, in order.
async fn others(http: &Http) -> Vec<Duration> {
    let mut took = Vec::new();
    for number in 0..100 {
        let began = Instant::now();
        let answer = http.call("other__good", &key(&number.to_string())).await;
        assert_eq!(text_of(&answer), number.to_string());
        took.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    took.sort_unstable();
    took
}

#[tokio::test]
async fn a_child_that_never_stops_writing_costs_little() {
    let other = Rig::legacy(&["good"]).await;
    for flood in [
        r#"yes '{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"x"}}'"#,
        r#"yes '{"jsonrpc":"2.0","id":"p","method":"ping"}'"#,
        "yes 'no message'",
        "yes ''",
        "cat /dev/zero",
        "yes 'went wrong' >&2",
    ] {
        let file = format!(
            "mcp_servers:\n  up: {{command: sh, args: {}, {ONCE}, timeout: 60}}\n{}",
            flooding(flood),
            other.entry("other", "")
        );
        let mut measured = Measured::start(&file).await;
        let before = others(&measured.router.http).await;
        measured.again();
        let http = measured.router.http.clone();
        let call = tokio::spawn(async move { http.call("up__bad", &key("k")).await });
        let took = others(&measured.router.http).await;
        let load = measured.load_below(0.3).await;
        let growth = measured.growth();
        println!(
            "{flood}: {:.1} % of a processor, {} KiB more, others {:?}, {:?}",
            load * 100.0,
            growth / 1024,
            took[50],
            took[90]
        );
        assert!(growth <= LARGEST + 8 * MIB, "{flood}: {growth}");
        // Where the machine alone makes them slow, the flood may make them twice as slow.
        let bound = Duration::from_millis(500).max(before[90] * 2);
        assert!(took[90] <= bound, "{flood}: others took {took:?}, before it {before:?}");
        assert!(!call.is_finished(), "{}", call.await.unwrap().text());
        call.abort();
        measured.stop().await;
    }
}

/// A server of HTTP+SSE that answers, and else sends comments as fast as they are read.
async fn babbling() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (answers, queue) = mpsc::channel::<String>(100);
    let queue = std::sync::Arc::new(tokio::sync::Mutex::new(queue));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(babble(socket, answers.clone(), std::sync::Arc::clone(&queue)));
        }
    });
    format!("http://{address}/sse")
}

async fn babble(
    mut socket: TcpStream,
    answers: mpsc::Sender<String>,
    queue: std::sync::Arc<tokio::sync::Mutex<mpsc::Receiver<String>>>,
) {
    let mut request = Vec::new();
    while let Ok(1..) = socket.read_buf(&mut request).await {
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        if head.starts_with("GET") {
            let mut queue = queue.lock().await;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nevent: endpoint\ndata: /post\n\n";
            let mut next = head.as_bytes().to_vec();
            let noise = b": still here\n\n".repeat(5000);
            while socket.write_all(&next).await.is_ok() {
                next = match queue.try_recv() {
                    Ok(answer) => format!("data: {answer}\n\n").into_bytes(),
                    Err(_) => noise.clone(),
                };
            }
            return;
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() < length.unwrap().parse::<usize>().unwrap() {
            continue;
        }
        let message: serde_json::Value = serde_json::from_str(body).unwrap();
        let result = match message["method"].as_str().unwrap() {
            "initialize" => json!({
                "protocolVersion": "2024-11-05", "capabilities": { "tools": {} },
                "serverInfo": { "name": "babbling", "version": "1" },
            }),
            "tools/list" => json!({ "tools": [{ "name": "good", "inputSchema": {} }] }),
            _ => {
                let key = &message["params"]["arguments"]["key"];
                json!({ "content": [{ "type": "text", "text": key }] })
            }
        };
        if let Some(id) = message.get("id") {
            let answer = json!({ "jsonrpc": "2.0", "id": id, "result": result });
            answers.send(answer.to_string()).await.unwrap();
        }
        socket.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        request.clear();
    }
}

#[tokio::test]
async fn a_stream_for_all_answers_that_never_stops_costs_little() {
    let other = Rig::legacy(&["good"]).await;
    let url = babbling().await;
    let file = format!(
        "mcp_servers:\n  up: {{transport: sse, url: \"{url}\"}}\n{}",
        other.entry("other", "")
    );
    let mut measured = Measured::start(&file).await;
    // What may come at once is read through, and calls are answered all the while.
    let until = Instant::now() + Duration::from_secs(5);
    let mut number = 0;
    while Instant::now() < until {
        all_is_well(&measured.router.http, &format!("number {number}")).await;
        number += 1;
    }
    measured.again();
    let load = measured.load_below(0.8).await;
    let growth = measured.growth();
    println!("{number} rounds; {:.1} % of a processor, {} KiB more", load * 100.0, growth / 1024);
    assert!(growth <= 8 * MIB, "{growth}");
    all_is_well(&measured.router.http, "in the end").await;
    measured.stop().await;
}

#[tokio::test]
async fn a_handshake_that_never_ends_costs_the_others_nothing() {
    for (rig, method) in rigs().await.into_iter().zip(["initialize", "server/discover"]) {
        for fault in [Fault::Comments, Fault::Long(GIGABYTE), Fault::Informational] {
            rig.set(method, fault.clone());
            let other = Rig::legacy(&["good"]).await;
            let file =
                format!("{}{}", rig.yaml("up", "connect_timeout: 1s"), other.entry("other", ""));
            let app = TestApp::start(&file).await;
            eventually(SOON, "the good server is there", || async {
                let server = app.http().server("other").await?;
                (server["tools"] == 1).then_some(())
            })
            .await;
            // The router, both servers and this test are one thread; what others have of the machine
            // does not count.
            for _ in 0..20 {
                let clock = Attended::begin();
                app.http().call("other__good", &key("k")).await.expect(200);
                let (took, _) = clock.elapsed();
                assert!(took < Duration::from_millis(500), "{method} {fault:?}: {took:?}");
            }
            eventually(SOON, "the error is shown", || async {
                let server = app.http().server("up").await?;
                server["last_error"].is_string().then_some(())
            })
            .await;
            rig.set(method, Fault::None);
            app.socket().post("/mcp/servers/up/refresh", "").await;
            eventually(SOON, "it is taken up", || async {
                (app.http().call("up__good", &key("k")).await.status == 200).then_some(())
            })
            .await;
            app.stop().await;
        }
    }
}

#[tokio::test]
async fn what_is_an_answer_is_one_and_what_was_not_taken_is_not_executed() {
    for rig in rigs().await {
        let app = router(&rig, "timeout: 30s").await;
        for (fault, outcome) in
            [(Fault::RpcError(-32000), "rpc_error"), (Fault::ToolError, "tool_error")]
        {
            rig.set("bad", fault);
            let answer = app.http().call("up__bad", &key("told")).await;
            assert_eq!(app.entry_of(&answer).await["outcome"], outcome);
        }
        assert_eq!(rig.executed("bad")["told"], 2);
        assert_eq!(rig.executed_twice("bad"), ["told"]);
        let client = Legacy::connect(app.http()).await;
        for (fault, class, wait) in [
            (Fault::retry_after(429, 7), "refused", Some(7000)),
            (Fault::retry_after(503, 7), "ambiguous", Some(7000)),
            (Fault::CloseUnread, "ambiguous", None),
        ] {
            rig.set("bad", fault.clone());
            let answer = client.call("up__bad", &key("refused")).await;
            let entry = app.entry_of(&answer).await;
            assert_eq!(entry["failure"], class, "{fault:?}: {entry}");
            let data = &answer.json()["error"]["data"];
            assert_eq!(data["retry_after_ms"].as_u64(), wait, "{fault:?}: {}", answer.text());
        }
        assert_eq!(rig.executed("bad").get("refused"), None);
        assert_eq!(rig.counts("bad").requests, 5);
        app.stop().await;
    }
}

#[tokio::test]
async fn connections_that_the_server_closes_while_idle_cost_no_second_execution() {
    let rig = Rig::modern(&["pay"]).await;
    rig.annotate("pay", json!({ "destructiveHint": true }));
    let app = TestApp::start(&rig.yaml("up", ONCE)).await.ready().await;
    rig.close_idle(500);
    let (mut failed, mut called) = (0, 0);
    // A quick machine is seldom slow enough between two calls: as many as it takes, within bounds.
    while called < 500 || (rig.connections() <= 100 && called < 5_000) {
        let number = called;
        called += 1;
        let answer = app.http().call("up__pay", &json!({ "key": number }).to_string()).await;
        failed += usize::from(answer.json()["success"] == false);
    }
    println!("{failed} of {called} failed over {} connections", rig.connections());
    assert!(rig.connections() > 100);
    assert_eq!(rig.executed_twice("pay"), Vec::<String>::new());
    assert!(rig.executed("pay").len() >= called - failed);
    app.stop().await;
}

#[tokio::test]
async fn a_server_may_go_and_come_back_with_calls_under_way() {
    for rig in rigs().await {
        let app = router(&rig, "timeout: 60s").await;
        rig.set("bad", Fault::hold(Fault::None));
        rig.mix("good", 0, &[Fault::Reset]);
        let http = app.http().clone();
        let held = tokio::spawn(async move { http.call("up__bad", &key("held")).await });
        let call =
            rig.call("bad", Instant::now().checked_sub(Duration::from_secs(1)).unwrap()).await;
        assert_eq!(call.key, "held");
        assert!(call.headers.contains_key("content-length"));
        rig.release();
        assert_eq!(text_of(&held.await.unwrap()), "held");

        rig.down();
        eventually(SOON, "every connection is closed", || async {
            (rig.open() == 0).then_some(())
        })
        .await;
        let answer = app.http().call("up__good", &key("away")).await;
        assert_eq!(app.entry_of(&answer).await["failure"], "not_sent");
        rig.up();
        rig.next("good", &[Fault::Reset]);
        let answer = app.http().call("up__good", &key("first")).await;
        assert_eq!(app.entry_of(&answer).await["failure"], "ambiguous");
        all_is_well(app.http(), "after the return").await;
        rig.forget("bad");
        app.socket().post("/mcp/servers/up/refresh", "").await.expect(200);
        app.http().call("up__bad", "{}").await.expect(404);
        app.stop().await;
    }
}
