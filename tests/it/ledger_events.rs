//! What the ledger has beside calls, as clients and operators read it.

use http::Method;
use serde_json::{Value, json};
use switchyard::cli::demo_upstream::Options;
use switchyard::store::Store;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::support::{Lines, Router, SOON, TestApp, command, eventually, upstream, yaml};

async fn events(router: &Router, query: &str) -> Vec<Value> {
    let page = router.http.get(&format!("/mcp/audit/events?{query}")).await.expect(200).json();
    page["events"].as_array().unwrap().clone()
}

#[tokio::test]
async fn acts_and_what_happened_to_the_ledger_are_listed() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&yaml(&[("up", &up)])).await;
    for act in ["disable", "enable"] {
        router.run(&["servers", act, "up"]).await.expect(0);
    }
    let kinds = |events: &[Value]| -> Vec<String> {
        events.iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect()
    };
    let acts = eventually(SOON, "both acts are on record", || async {
        let acts = events(&router, "kind=server.*&actor=admin-socket").await;
        (acts.len() == 2).then_some(acts)
    })
    .await;
    assert_eq!(kinds(&acts), ["server.enabled", "server.disabled"], "the newest first");
    assert_eq!(acts[0]["subject"], "up");
    assert!(acts[0]["detail"].is_object() && acts[0]["at"].is_string(), "{}", acts[0]);
    assert!(acts[0]["seq"].as_i64() > acts[1]["seq"].as_i64());
    for (query, expected) in [
        ("kind=server.enabled", 1),
        ("kind=server.enable", 0),
        ("kind=server.enable*&subject=up", 1),
        ("kind=server.*&subject=other", 0),
        ("kind=audit.started&actor=router", 1),
        ("kind=server.*&since=1h&actor=admin-socket", 2),
        ("until=1h", 0),
    ] {
        assert_eq!(events(&router, query).await.len(), expected, "{query}");
    }
    // Page by page it is the same as at once.
    let all = kinds(&events(&router, "").await);
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/mcp/audit/events?limit=2{cursor}");
        let page = router.http.get(&path).await.expect(200).json();
        let some = page["events"].as_array().unwrap();
        assert!(some.len() <= 2);
        paged.extend(kinds(some));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(paged, all);
    for wrong in ["kind=*.added", "since=soon", "cursor=x", "tool=x", "limit=x"] {
        router.http.get(&format!("/mcp/audit/events?{wrong}")).await.expect(400);
    }
    let shown = router.run(&["audit", "events", "--kind", "server.*", "--limit", "1"]).await;
    let shown = shown.expect(0).out;
    assert!(shown.contains("server.enabled") && !shown.contains("server.disabled"), "{shown}");
    let json = router.run(&["--json", "audit", "events", "--kind", "server.*"]).await.expect(0);
    assert!(json.json()["events"].as_array().unwrap().len() >= 2);
    let none = router.run(&["audit", "events", "--kind", "nothing"]).await.expect(0).out;
    assert_eq!(none, "no events match\n");
    let data = router.data_dir();
    let (code, _folder) = router.stop().await;
    assert_eq!(code, 0);
    let store = Store::open(&data).await.unwrap();
    let stopped = store.audit_entry_page(&Default::default(), None, 1).await.unwrap();
    assert_eq!(json!(stopped.rows[0].kind), "audit.stopped");
}

const HI: &str = r#"{"text":"hi"}"#;

/// The next event with data: its type, its id and what it says.
async fn told(tail: &mut Lines) -> (String, i64, Value) {
    let (mut kind, mut id) = (String::new(), 0);
    loop {
        let line = tail.next_line_with("").await;
        let value = |name: &str| line.strip_prefix(name).map(|value| value.trim().to_owned());
        if let Some(value) = value("event:") {
            kind = value;
        } else if let Some(value) = value("id:") {
            id = value.parse().unwrap();
        } else if let Some(value) = value("data:") {
            return (kind, id, serde_json::from_str(&value).unwrap());
        }
    }
}

#[tokio::test]
async fn a_tail_has_events_among_calls_in_the_order_of_the_ledger() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start(&yaml(&[("up", &up)])).await.ready().await;
    let watcher = app.keyed("watcher", &["audit"]).await;
    app.http().get("/mcp/audit/events").await.expect(200);
    let tail = |query: &str, from: Option<i64>| {
        let call = watcher.request(&Method::GET, &format!("/mcp/audit/tail?{query}"));
        match from {
            Some(seq) => call.header("last-event-id", &seq.to_string()),
            None => call,
        }
    };
    let mut stream = tail("events=true", None).stream().await;
    let begin = stream.next_line_with("id:").await;
    let begin: i64 = begin.trim_start_matches("id:").trim().parse().unwrap();
    let mut calls_alone = tail("outcome=ok", None).stream().await;
    calls_alone.next_line_with("id:").await;
    for act in ["disable", "enable"] {
        app.http().call("up__echo", HI).await;
        app.socket().post(&format!("/mcp/servers/up/{act}"), "").await.expect(200);
        // Its entry is written beside the act: the next call is to come after it.
        eventually(SOON, "the act is on record", || async {
            let kind = format!("/mcp/audit/events?kind=server.{act}d");
            let page = app.http().get(&kind).await.expect(200).json();
            page["events"].as_array().is_some_and(|events| !events.is_empty()).then_some(())
        })
        .await;
    }
    eventually(SOON, "the server is back", || async {
        let body = format!(r#"{{"tool_name":"up__echo","arguments":{HI}}}"#);
        (app.http().post("/mcp/call", body).await.status == 200).then_some(())
    })
    .await;
    app.http().call("nobody__echo", "{}").await;
    let (mut seen, mut kinds) = (Vec::new(), Vec::new());
    loop {
        let (kind, id, value) = told(&mut stream).await;
        assert_eq!(value["seq"], id);
        assert_eq!(kind == "entry", value["kind"].is_string(), "{kind}: {value}");
        assert!(kind == "entry" || (kind.is_empty() && value["tool"].is_string()), "{value}");
        kinds.extend(value["kind"].as_str().map(str::to_owned));
        seen.push((id, value.clone()));
        if value["tool"] == "nobody__echo" {
            break;
        }
    }
    assert!(seen.is_sorted_by_key(|(id, _)| *id));
    let at = |kind: &str| kinds.iter().position(|one| one == kind);
    assert!(at("server.disabled").is_some() && at("server.disabled") < at("server.enabled"));
    // All of both that there is, and no more.
    let page = app.http().get("/mcp/audit?limit=1000").await.expect(200).json();
    let mut kept = page["calls"].as_array().unwrap().clone();
    let page = app.http().get("/mcp/audit/events?limit=1000").await.expect(200).json();
    kept.extend(page["events"].as_array().unwrap().clone());
    let end = seen.last().unwrap().0;
    let seq = |row: &Value| row["seq"].as_i64().unwrap();
    kept.retain(|row| (begin + 1..=end).contains(&seq(row)));
    kept.sort_by_key(seq);
    assert_eq!(seen.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>(), kept);

    // Taken up after any of them, a call or an entry.
    for (at, (id, _)) in seen.iter().enumerate().take(seen.len() - 1) {
        let mut again = tail("events=true", Some(*id)).stream().await;
        assert_eq!(told(&mut again).await.1, seen[at + 1].0, "after {id}");
    }
    // Filters of calls are of calls alone, and `kind` is of entries.
    let mut some = tail("events=true&kind=server.*&tool=nobody__echo", Some(begin)).stream().await;
    let mut found = Vec::new();
    loop {
        let (kind, _, value) = told(&mut some).await;
        found.push(if kind == "entry" { value["kind"].clone() } else { value["tool"].clone() });
        if kind.is_empty() {
            break;
        }
    }
    assert_eq!(json!(found), json!(["server.disabled", "server.enabled", "nobody__echo"]));
    // One that did not ask for them has none.
    for _ in 0..2 {
        let (kind, _, value) = told(&mut calls_alone).await;
        assert_eq!((kind.as_str(), &value["tool"]), ("", &json!("up__echo")));
    }
    for wrong in ["kind=server.*", "events=yes", "events=true&kind=*.x", "events=true&events=true"]
    {
        watcher.get(&format!("/mcp/audit/tail?{wrong}")).await.expect(400);
    }
    app.keyed("reader", &["read"]).await.get("/mcp/audit/tail?events=true").await.expect(403);
    app.stop().await;
}

#[tokio::test]
async fn the_tail_command_shows_events_over_a_restart() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&yaml(&[("up", &up)])).await;
    let first = router.http.call("up__echo", HI).await.expect(200).id();
    // Of what one commit holds the calls come last.
    eventually(SOON, "the call is on record", || async {
        let page = router.http.get("/mcp/audit?limit=1").await.expect(200).json();
        page["calls"].as_array().is_some_and(|calls| !calls.is_empty()).then_some(())
    })
    .await;
    router.run(&["servers", "disable", "up"]).await.expect(0);
    eventually(SOON, "the act is on record", || async {
        (!events(&router, "kind=server.disabled").await.is_empty()).then_some(())
    })
    .await;
    let last = router.run(&["audit", "tail", "--events", "-n", "2", "--json"]).await.expect(0).out;
    let last: Vec<Value> = last.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(last.len(), 2, "{last:?}");
    assert_eq!(last[1]["kind"], "server.disabled");
    let shown =
        router.run(&["audit", "tail", "--events", "--kind", "server.*"]).await.expect(0).out;
    assert!(shown.contains("up__echo") && shown.contains("server.disabled"), "{shown}");
    router.run(&["audit", "tail", "--kind", "server.*"]).await.expect(2);

    let follow = ["audit", "tail", "-f", "--events", "--json"];
    let mut tail = command(router.folder.path()).args(follow).spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut seen: Vec<Value> = Vec::new();
    let address = router.address;
    let mut folder = Some(router);
    loop {
        let line = tokio::time::timeout(SOON, lines.next_line()).await.expect("a line").unwrap();
        let value: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let is_old = value["kind"] == "server.disabled";
        seen.push(value);
        if is_old {
            break;
        }
    }
    let (code, kept) = folder.take().unwrap().stop().await;
    assert_eq!(code, 0);
    let router = Router::start_again(kept, address).await;
    router.http.call("nobody__echo", "{}").await;
    loop {
        let line = tokio::time::timeout(SOON, lines.next_line()).await.expect("a line").unwrap();
        let value: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let is_last = value["tool"] == "nobody__echo";
        seen.push(value);
        if is_last {
            break;
        }
    }
    tail.kill().await.unwrap();
    let seqs: Vec<i64> = seen.iter().map(|row| row["seq"].as_i64().unwrap()).collect();
    let whole: Vec<i64> = (seqs[0]..=*seqs.last().unwrap()).collect();
    assert_eq!(seqs, whole, "none is missing, none comes twice");
    let kinds = json!(seen.iter().map(|row| row["kind"].clone()).collect::<Vec<_>>()).to_string();
    assert!(kinds.contains("audit.stopped") && kinds.contains("audit.started"), "{kinds}");
    assert!(seen.iter().any(|row| row["id"] == first.as_str()));
    assert_eq!(router.stop().await.0, 0);
}
