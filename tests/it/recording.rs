//! What the ledger is told to keep, by caller and by place, and that a change of it is on record; and its
//! spool where it cannot be used as it should.

use std::os::unix::fs::MetadataExt as _;

use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
use switchyard::cli::demo_upstream::{Fault, FaultPlan, Options};

use crate::support::{
    Answer, Fault as RigFault, Http, Rig, Router, SOON, Speaker, TestApp, eventually, switchyard,
    upstream,
};

async fn database(data: &std::path::Path) -> SqliteConnection {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("audit.db"));
    options.connect().await.unwrap()
}

/// Details of the ledger's entries of this kind, with who made them.
async fn entries(data: &std::path::Path, kind: &str) -> Vec<(String, Value)> {
    let mut database = database(data).await;
    let rows: Vec<(String, String)> =
        sqlx::query_as("select actor, detail from entries where kind = ? order by seq")
            .bind(kind)
            .fetch_all(&mut database)
            .await
            .unwrap();
    database.close().await.unwrap();
    rows.into_iter()
        .map(|(actor, detail)| (actor, serde_json::from_str(&detail).unwrap()))
        .collect()
}

const ARGUMENTS: &str = r#"{"text":"hi","password":"sesame"}"#;

#[tokio::test]
async fn where_no_results_are_kept_nothing_is_that_a_server_says_of_a_failure() {
    let up = upstream(Options::default()).await;
    let yaml = format!(
        "mcp_servers:\n  up: {{url: \"{}\", retry_mode: off, audit: {{arguments: none, results: none}}}}\n",
        up.url()
    );
    let app = TestApp::start(&yaml).await.ready().await;
    let advice = "; the tool may have run, check before repeating";
    for (fault, kept, attempt) in [
        (Fault::ToolError, "the tool reported an error".to_owned(), Value::Null),
        (Fault::RpcError, "JSON-RPC error -32603".to_owned(), Value::Null),
        (
            Fault::HttpStatus(500),
            format!("tool `counter` of server `up`: the server answered 500{advice}"),
            "the server answered 500".into(),
        ),
        (
            Fault::Garbage,
            format!(
                "tool `counter` of server `up`: the answer is no JSON-RPC answer to the request{advice}"
            ),
            "the answer is no JSON-RPC answer to the request".into(),
        ),
    ] {
        up.faults().set(FaultPlan::calls(fault));
        let answer = app.http().call("up__counter", "{}").await;
        if fault != Fault::Garbage {
            assert!(answer.text().contains("on purpose"), "{fault:?}: {}", answer.text());
        }
        let entry = app.entry_of(&answer).await;
        assert_eq!(entry["error"], kept.as_str(), "{fault:?}");
        assert_eq!(entry["result"], Value::Null, "{fault:?}");
        assert_eq!(entry["attempt_list"][0]["error"], attempt, "{fault:?}: {entry}");
    }
    let breaker = app.socket().get("/mcp/circuit-breakers?server=up").await.expect(200);
    assert!(breaker.text().contains("the answer is no JSON-RPC answer"), "{}", breaker.text());
    holds_nowhere(&app.stop().await, &["on purpose"]);
}

#[tokio::test]
async fn nor_is_what_it_says_of_what_is_no_call() {
    let rig = Rig::legacy(&["probe"]).await;
    rig.offer_resource();
    let settings = "retry_mode: off, audit: {results: none}";
    let app = TestApp::start(&rig.yaml("up", settings)).await.ready().await;
    let client = Speaker::legacy(&app, json!({})).await;
    let uri = eventually(SOON, "the resource is listed", || async {
        let list = client.request(&json!(0), "resources/list", json!({})).send().await.json();
        list["result"]["resources"][0]["uri"].as_str().map(str::to_owned)
    })
    .await;
    rig.set("resources/read", RigFault::StatusError(500, -32000));
    let answer = client.request(&json!(1), "resources/read", json!({ "uri": uri })).send().await;
    assert!(answer.text().contains("the server answered 500: `{"), "{}", answer.text());
    let last_error = async || {
        let shown = app.socket().get("/mcp/circuit-breakers?server=up").await.expect(200).json();
        shown["circuit_breakers"][0]["last_error"].clone()
    };
    assert_eq!(last_error().await, "the server answered 500");
    rig.set("probe", RigFault::StatusError(500, -32000));
    let entry = app.entry_of(&app.http().call("up__probe", r#"{"key":"k"}"#).await).await;
    assert_eq!(entry["error"], "JSON-RPC error -32000");
    let answered = "the server answered 500 with a JSON-RPC error -32000";
    assert_eq!(entry["attempt_list"][0]["error"], answered, "{entry}");
    assert_eq!(last_error().await, answered);
    app.stop().await;
}

/// Of what is in the data folder of a router that has ended.
fn holds_nowhere(folder: &tempfile::TempDir, texts: &[&str]) {
    for entry in std::fs::read_dir(folder.path().join("data")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap_or_default();
        for text in texts {
            let found = bytes.windows(text.len()).any(|window| window == text.as_bytes());
            assert!(!found, "{text} is in {}", path.display());
        }
    }
}

#[tokio::test]
async fn the_reason_of_a_forced_breaker_is_kept_without_secrets() {
    let up = upstream(Options::default()).await;
    let yaml = format!(
        "mcp_servers: {{up: {{url: \"{}\", headers: {{x-api-key: hunter2-and-more}}}}}}\n",
        up.url()
    );
    let app = TestApp::start(&yaml).await.ready().await;
    let reason = r#"{"reason":"because Bearer abcdefgh12345 and hunter2-and-more"}"#;
    for act in ["open", "close", "reset"] {
        let path = format!("/mcp/circuit-breakers/up/{act}");
        app.socket().post(&path, reason).await.expect(200);
        if act == "open" {
            let refused = app.http().call("up__echo", "{}").await;
            assert!(refused.text().contains("because Bearer *** and ***"), "{}", refused.text());
        }
    }
    let past = app.socket().get("/mcp/circuit-breakers/up/history").await.expect(200);
    assert!(past.text().contains("because Bearer *** and ***"), "{}", past.text());
    // A name that nobody has can be anything.
    let nobody = r#"{"caller":"Bearer abcdefgh12345 hunter2-and-more"}"#;
    app.socket().post("/mcp/audit/erase", nobody).await.expect(200);
    holds_nowhere(&app.stop().await, &["abcdefgh12345", "hunter2-and-more"]);
}

#[tokio::test]
async fn what_is_kept_goes_by_caller_client_server_and_tool() {
    let up = upstream(Options::default()).await;
    let config = |rules: &str| {
        format!(
            "audit: {{levels: [{rules}]}}\nmcp_servers:\n  up: {{url: \"{0}\", audit: {{results: full}}}}\n  bank: {{url: \"{0}\", audit: {{arguments: none}}}}\n",
            up.url()
        )
    };
    let rules = "{caller: auditor, arguments: raw, results: none}, {caller: 'bot-*', server: up, tool: echo, arguments: none}, {client: shy, arguments: none, results: none}";
    let app = TestApp::start_with_file(&config(rules)).await.ready().await;
    let auditor = app.keyed("auditor", &["call"]).await;
    let bot = app.keyed("bot-7", &["call"]).await;
    let kept = async |http: &Http, tool: &str| {
        let entry = app.entry_of(&http.call(tool, ARGUMENTS).await).await;
        (entry["arguments"].clone(), entry["result"]["content"][0]["text"].clone())
    };
    let redacted = json!({ "text": "hi", "password": "***" });
    let full: Value = serde_json::from_str(ARGUMENTS).unwrap();
    assert_eq!(kept(&auditor, "up__echo").await, (full.clone(), Value::Null));
    assert_eq!(kept(&auditor, "bank__echo").await.0, full, "a rule comes before the server");
    assert_eq!(kept(&bot, "up__echo").await, (Value::Null, "hi".into()));
    assert_eq!(kept(&bot, "up__counter").await.0, redacted, "another tool");
    assert_eq!(kept(app.http(), "up__echo").await, (redacted.clone(), "hi".into()));
    assert_eq!(kept(app.http(), "bank__echo").await.0, Value::Null);
    // What is not there is kept as if its server had it.
    assert_eq!(kept(app.http(), "bank__no_such").await.0, Value::Null);
    assert_eq!(kept(app.http(), "up__no_such").await.0, redacted);
    assert_eq!(kept(&bot, "no_such").await.0, redacted);
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": crate::support::MODERN,
        "io.modelcontextprotocol/clientInfo": { "name": "shy", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let params = json!({ "_meta": meta, "name": "up__echo", "arguments": full }).to_string();
    let call = app.http().request(&http::Method::POST, "/mcp");
    let call = call
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", crate::support::MODERN)
        .header("mcp-method", "tools/call")
        .header("mcp-name", "up__echo");
    let answer: Answer = call.body(crate::support::legacy_body("tools/call", &params)).send().await;
    let entry = app.entry_of(&answer.expect(200)).await;
    assert_eq!((&entry["arguments"], &entry["result"]), (&Value::Null, &Value::Null));

    // Another rule, and a place that is never kept: on record with what it was and who asked for it.
    let data = app.data_dir();
    let started = entries(&data, "audit.started").await;
    let at_start = &started[0].1["recording"];
    assert_eq!(
        at_start["levels"][0],
        json!({ "caller": "auditor", "arguments": "raw", "results": "none" })
    );
    let rules = "{caller: auditor, arguments: none}";
    app.write_config(&config(rules).replace("results: full", "results: full, redact: [/text]"));
    app.socket().post("/admin/reload", "").await.expect(200);
    assert_eq!(kept(&auditor, "up__echo").await.0, Value::Null);
    let redacted = json!({ "text": "***", "password": "***" });
    assert_eq!(kept(app.http(), "up__echo").await.0, redacted);
    let changes = entries(&data, "audit.recording_changed").await;
    assert_eq!(changes.len(), 1, "{changes:?}");
    let (actor, detail) = &changes[0];
    assert_eq!(actor, "admin-socket");
    assert_eq!(detail["changed"]["levels"]["from"], at_start["levels"]);
    assert_eq!(detail["changed"]["levels"]["to"][0]["arguments"], "none");
    assert_eq!(detail["changed"]["servers"]["to"]["up"]["audit"]["redact"][0], "/text");
    assert_eq!(detail["changed"].get("arguments"), None);
    // The same again is no change.
    app.socket().post("/admin/reload", "").await.expect(200);
    app.http().call("up__echo", ARGUMENTS).await.expect(200);
    assert_eq!(entries(&data, "audit.recording_changed").await.len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn named_places_are_kept_at_no_level_and_reach_the_server() {
    let rig = Rig::legacy(&["pay"]).await;
    let yaml = format!(
        "audit: {{arguments: full, results: full, redact: [/card/number]}}\n{}",
        rig.yaml("up", "tool_overrides: {pay: {audit: {redact: ['/items/*/pin']}}}")
    );
    let app = TestApp::start(&yaml).await.ready().await;
    let arguments =
        r#"{"key":"k","card":{"number":4111,"n":1},"items":[{"pin":"1234"},{"pin":["5678"]}]}"#;
    let answer = app.http().call("up__pay", arguments).await.expect(200);
    let sent = rig.calls("pay");
    assert_eq!(sent[0].body["params"]["arguments"]["items"][1]["pin"][0], "5678");
    let entry = app.entry_of(&answer).await;
    assert_eq!(entry["arguments"]["card"]["number"], "***");
    assert_eq!(entry["arguments"]["items"], json!([{ "pin": "***" }, { "pin": "***" }]));
    assert_eq!(entry["arguments"]["key"], "k");
    app.stop().await;
}

#[tokio::test]
async fn a_spool_that_cannot_be_used_ends_the_check_and_the_start() {
    let folder = tempfile::tempdir().unwrap();
    for spool in ["gone/by/now.jsonl", "switchyard.yaml/x"] {
        Router::write(folder.path(), &format!("audit: {{spool: {spool}}}\n"));
        for command in ["check", "serve"] {
            let ended = switchyard(folder.path(), &[command]).await.expect(2);
            assert!(
                ended.err.contains("audit.spool") && ended.err.contains(spool),
                "{}",
                ended.err
            );
        }
    }
    assert!(!folder.path().join("data/audit.db").exists(), "nothing was begun");
    Router::write(folder.path(), "audit: {spool: spool.jsonl}\n");
    switchyard(folder.path(), &["check"]).await.expect(0);
    assert!(!folder.path().join("spool.jsonl").exists(), "a check makes none");
}

#[tokio::test]
async fn a_spool_elsewhere_takes_a_restart_and_is_told() {
    let elsewhere = tempfile::tempdir().unwrap();
    let spool =
        |name: &str| format!("audit: {{spool: \"{}/{name}\"}}\n", elsewhere.path().display());
    let app = TestApp::start_with_file(&spool("a")).await;
    assert_eq!(app.metric("switchyard_audit_spool_open").await, Some(1.0));
    app.write_config(&spool("b"));
    let report = app.socket().post("/admin/reload", "").await.expect(200).json();
    let notes = report["notes"].to_string();
    assert!(notes.contains("`audit.spool` changed; that takes a restart"), "{report}");
    app.stop().await;
    let app = TestApp::start("").await;
    assert_eq!(app.metric("switchyard_audit_spool_open").await, Some(0.0));
    app.stop().await;
}

/// A row that the database does not take is put aside, and those behind it come back.
#[tokio::test]
async fn a_row_that_is_refused_holds_up_no_other() {
    let rig = Rig::legacy(&["pay", "read"]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let spool = elsewhere.path().join("rows.jsonl");
    let yaml = format!("audit: {{spool: \"{}\"}}\n{}", spool.display(), rig.yaml("up", ""));
    let app = TestApp::start(&yaml).await.ready().await;
    let data = app.data_dir();
    let mut other = database(&data).await;
    sqlx::raw_sql("begin exclusive").execute(&mut other).await.unwrap();
    let mut ids = Vec::new();
    for tool in ["up__read", "up__pay", "up__read", "up__pay", "up__read"] {
        ids.push((tool, app.http().call(tool, r#"{"key":"k"}"#).await.expect(200).id()));
    }
    eventually(SOON * 2, "rows go to the spool", || async {
        (std::fs::metadata(&spool).map_or(0, |file| file.len()) > 1000).then_some(())
    })
    .await;
    sqlx::raw_sql(
        "create trigger refuse before insert on calls when new.tool = 'up__pay'
         begin select raise(abort, 'not these'); end;
         commit",
    )
    .execute(&mut other)
    .await
    .unwrap();
    eventually(SOON * 2, "the spool is read back", || async {
        (std::fs::metadata(&spool).map_or(1, |file| file.len()) == 0).then_some(())
    })
    .await;
    for (tool, id) in &ids {
        let status = app.socket().get(&format!("/mcp/audit/{id}")).await.status;
        assert_eq!(status, if *tool == "up__pay" { 404 } else { 200 }, "{tool}");
    }
    let rejected = elsewhere.path().join("rows.jsonl.rejected");
    let text = std::fs::read_to_string(&rejected).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["why"].as_str().unwrap().contains("not these"), "{line}");
        assert!(line["row"].to_string().contains("up__pay"), "{line}");
    }
    assert_eq!(std::fs::metadata(&rejected).unwrap().mode() & 0o777, 0o600);
    assert_eq!(app.metric("switchyard_audit_rejected_total").await, Some(2.0));
    let marks = entries(&data, "audit.spooled").await;
    assert_eq!(marks.iter().map(|(_, mark)| mark["rejected"].as_u64().unwrap()).sum::<u64>(), 2);
    sqlx::raw_sql("drop trigger refuse").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let after = app.http().call("up__pay", r#"{"key":"k"}"#).await.expect(200).id();
    app.entry(&after).await;
    let folder = app.stop().await;
    let arguments = ["--data-dir", "data", "audit", "verify"];
    switchyard(folder.path(), &arguments).await.expect(0);
}
