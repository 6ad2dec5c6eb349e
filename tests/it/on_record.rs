//! What is on record beside calls: who is turned away, what administrators do, and who sees payloads.

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Value, json};
use switchyard::cli::demo_upstream::Options;
use switchyard::store::{EntryRow, Store};
use tempfile::TempDir;

use crate::support::{SOON, TestApp, eventually, switchyard, upstream};

/// Every entry of the ledger of a router that has ended, which is in order.
async fn entries(folder: &TempDir) -> Vec<EntryRow> {
    let arguments = ["--data-dir", "data", "audit", "verify"];
    switchyard(folder.path(), &arguments).await.expect(0);
    let store = Store::open(&folder.path().join("data")).await.unwrap();
    let entries = store.audit_entries(0, 1_000).await.unwrap();
    store.close().await.unwrap();
    entries
}

fn detail(entry: &EntryRow) -> Value {
    serde_json::from_str(&entry.detail).unwrap()
}

fn of_kind<'a>(entries: &'a [EntryRow], kind: &str) -> Vec<&'a EntryRow> {
    entries.iter().filter(|entry| entry.kind == kind).collect()
}

#[tokio::test]
async fn who_is_turned_away_is_on_record_whatever_it_was_for() {
    let app = TestApp::start("auth: {mode: keys}\n").await;
    let reader = app.keyed("reader", &["read"]).await;
    let wrong = app.http().with_key("sy_wrong-key-of-somebody");
    for _ in 0..200 {
        wrong.get("/admin/keys").await.expect(401);
    }
    app.http().get("/mcp/servers/up").await.expect(401);
    app.http().get("/wp-login.php").await.expect(401);
    reader.post("/mcp/audit/purge", r#"{"before":"30d"}"#).await.expect(403);
    reader.get("/mcp/audit/export").await.expect(403);
    reader.get("/mcp").await.expect(403);
    let evil = app.http().request(&Method::GET, "/mcp/tools").header("host", "evil.example");
    evil.send().await.expect(403);
    reader.get("/mcp/tools").await.expect(200);
    let entries = entries(&app.stop().await).await;
    let denied = of_kind(&entries, "auth.denied");
    let mut counts = BTreeMap::new();
    for entry in &denied {
        let detail = detail(entry);
        assert_eq!(detail["from"], json!(["127.0.0.1"]), "{entry:?}");
        assert!(!entry.detail.contains("sy_wrong-key"), "{entry:?}");
        let text = |key: &str| detail[key].as_str().unwrap().to_owned();
        let key = (entry.actor.clone(), text("method"), entry.subject.clone(), text("reason"));
        *counts.entry(key).or_insert(0) += detail["count"].as_u64().unwrap();
    }
    let expected = [
        ("reader", "GET", "/mcp", "scope", 1),
        ("reader", "GET", "/mcp/audit/export", "scope", 1),
        ("reader", "POST", "/mcp/audit/purge", "scope", 1),
        ("unauthenticated", "GET", "/admin/keys", "invalid_key", 200),
        ("unauthenticated", "GET", "/mcp/servers/{name}", "missing_key", 1),
        ("unauthenticated", "GET", "/mcp/tools", "origin", 1),
        ("unauthenticated", "GET", "_other", "missing_key", 1),
    ];
    let expected = expected.map(|(actor, method, subject, reason, count)| {
        let key = [actor, method, subject, reason].map(str::to_owned);
        let [actor, method, subject, reason] = key;
        ((actor, method, subject, reason), count)
    });
    assert_eq!(counts, BTreeMap::from(expected));
    // Alike ones are one entry each time, however many they are.
    assert!(denied.len() < 60, "{}", denied.len());
    let evil = denied.iter().find(|entry| entry.detail.contains("origin")).unwrap();
    assert!(evil.detail.contains("evil.example"), "{evil:?}");
}

#[tokio::test]
async fn what_a_file_changes_is_on_record() {
    let up = upstream(Options::default()).await;
    let url = up.url();
    let one = format!(
        "mcp_servers:\n  up: {{url: \"{url}\", headers: {{x-key: secret-value-one}}}}\n  gone: {{url: \"{url}\"}}\n"
    );
    let app = TestApp::start_with_file(&one).await;
    let two = format!(
        "http: {{allowed_hosts: [other.example]}}\nmcp_servers:\n  up: {{url: \"{url}\", timeout: 7s, headers: {{x-key: secret-value-two}}}}\n  child: {{command: \"false\", args: [one]}}\n"
    );
    let reload = async |yaml: &str, status: u16| {
        app.write_config(yaml);
        app.socket().post("/admin/reload", "").await.expect(status);
    };
    reload(&two, 200).await;
    reload("mcp_servers: {up: {}}", 400).await;
    reload(&two, 200).await;
    let mut over_api = json!({ "name": "api", "url": url });
    app.socket().post("/mcp/servers", over_api.to_string()).await.expect(201);
    over_api["timeout"] = "9s".into();
    app.socket().put("/mcp/servers/api", over_api.to_string()).await.expect(200);
    let folder = app.stop().await;
    let entries = entries(&folder).await;
    let told = |kind: &str, subject: &str| {
        let found: Vec<_> =
            of_kind(&entries, kind).into_iter().filter(|e| e.subject == subject).collect();
        assert_eq!(found.len(), 1, "{kind} {subject}: {found:?}");
        (found[0].actor.clone(), detail(found[0]))
    };
    for name in ["up", "gone"] {
        let (actor, detail) = told("server.added", name);
        assert_eq!((actor.as_str(), &detail["why"]), ("router", &"start".into()));
    }
    // Whoever comes first takes the change over: the request, or who watches the file.
    let (_, child) = told("server.added", "child");
    assert_eq!((&child["spec"]["command"], &child["source"]), (&"false".into(), &"config".into()));
    let (_, changed) = told("server.changed", "up");
    assert_eq!(changed["changed"], json!(["headers.x-key", "timeout"]));
    told("server.removed", "gone");
    assert_eq!(told("server.changed", "api").1["changed"], json!(["timeout"]));
    let reloads = of_kind(&entries, "config.reloaded");
    assert!(reloads.iter().any(|entry| entry.actor == "admin-socket"), "{reloads:?}");
    let settings: Vec<Value> =
        reloads.iter().map(|entry| detail(entry)["changed"].clone()).collect();
    assert_eq!(settings.iter().filter(|keys| **keys == json!(["http.allowed_hosts"])).count(), 1);
    let failed = of_kind(&entries, "config.reload_failed");
    assert!(failed.iter().any(|entry| entry.actor == "admin-socket"), "{failed:?}");
    for entry in &entries {
        assert!(!entry.detail.contains("secret-value"), "{entry:?}");
    }
    // The next start changes nothing.
    let app = TestApp::start_in(folder, &two).await;
    let after = self::entries(&app.stop().await).await;
    let servers = |entries: &[EntryRow]| {
        entries.iter().filter(|entry| entry.kind.starts_with("server.")).count()
    };
    assert_eq!(servers(&after), servers(&entries));
}

#[tokio::test]
async fn who_sees_payloads_is_on_record() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start(&crate::support::yaml(&[("up", &up)])).await.ready().await;
    let auditor = app.keyed("auditor", &["audit"]).await;
    let id = app.http().call("up__echo", r#"{"text":"marble"}"#).await.expect(200).id();
    let path = format!("/mcp/audit/{id}");
    for _ in 0..20 {
        auditor.get(&path).await.expect(200);
    }
    auditor.get("/mcp/audit").await.expect(200);
    auditor.get("/mcp/audit?text=marble").await.expect(200);
    auditor.get("/mcp/audit/export?text=marble&server=up").await.expect(200);
    let entries = entries(&app.stop().await).await;
    let reads = of_kind(&entries, "audit.read");
    let count = |how: &str| {
        let of = reads.iter().map(|entry| (entry, detail(entry)));
        of.filter(|(entry, detail)| entry.actor == "auditor" && detail["reason"] == how)
            .map(|(_, detail)| detail["count"].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!((count("call"), count("search")), (20, 1), "{reads:?}");
    assert!(reads.iter().any(|entry| detail(entry)["which"] == json!([id])), "{reads:?}");
    // That a text was searched for, and not which.
    let search = reads.iter().find(|entry| detail(entry)["reason"] == "search").unwrap();
    let searched = &detail(search)["which"][0];
    assert_eq!(searched["characters"], 6, "{search:?}");
    assert_eq!(searched["digest"].as_str().map(str::len), Some(64), "{search:?}");
    let exports = of_kind(&entries, "audit.exported");
    let export = detail(exports.first().unwrap());
    assert_eq!((&export["query"], &export["text"]), (&json!("server=up"), searched));
    assert!(entries.iter().all(|entry| !entry.detail.contains("marble")), "{entries:?}");
}

/// In `strict` nobody gets an export that is not on record.
#[tokio::test]
async fn an_export_that_cannot_be_recorded_is_none() {
    use sqlx::{ConnectOptions as _, Connection as _};
    let app = TestApp::start("audit: {durability: strict}\n").await;
    app.socket().get("/mcp/audit/export").await.expect(200);
    let file = app.data_dir().join("audit.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let mut other = options.connect().await.unwrap();
    sqlx::raw_sql("begin immediate").execute(&mut other).await.unwrap();
    let refused = app.socket().get("/mcp/audit/export?payloads=true").await.expect(503);
    assert_eq!(refused.json()["error_code"], "MCPAuditUnavailableError");
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    eventually(SOON * 2, "exports are there again", || async {
        (app.socket().get("/mcp/audit/export").await.status == 200).then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn a_call_says_where_it_came_from_and_how_it_was_kept() {
    let up = upstream(Options::default()).await;
    let yaml = format!(
        "mcp_servers: {{up: {{url: \"{}\", audit: {{arguments: raw, results: none}}}}}}\n",
        up.url()
    );
    let app = TestApp::start(&yaml).await.ready().await;
    let keys = ["remote_address", "arguments_level", "results_level", "breaker"];
    let told = async |http: &crate::support::Http| {
        let entry = app.entry_of(&http.call("up__echo", r#"{"text":"hi"}"#).await).await;
        keys.map(|key| entry[key].clone())
    };
    let expected = [json!("127.0.0.1"), "raw".into(), "none".into(), "closed".into()];
    assert_eq!(told(app.http()).await, expected);
    assert_eq!(told(&app.socket()).await[0], Value::Null);
    let reason = r#"{"reason":"for a test"}"#;
    app.socket().post("/mcp/circuit-breakers/up/open", reason).await.expect(200);
    assert_eq!(told(app.http()).await[3], "open");
    let csv = app.socket().get("/mcp/audit/export?format=csv").await.expect(200);
    assert!(csv.text().contains(",127.0.0.1,raw,none,closed\r\n"), "{}", csv.text());
    let refused = app.http().with_key("sy_wrong").call("up__echo", "{}").await.expect(401);
    let entry = app.entry_of(&refused).await;
    assert_eq!(keys.map(|key| entry[key].clone())[0], "127.0.0.1");
    let entries = entries(&app.stop().await).await;
    let started = detail(of_kind(&entries, "audit.started")[0]);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(started["boot_id"], boot.trim());
}

#[tokio::test]
async fn a_definition_with_a_secret_of_its_server_is_told() {
    let up = upstream(Options::default()).await;
    let yaml = format!(
        "mcp_servers: {{up: {{url: \"{}\", headers: {{x-api-key: \"Returns the text it is given.\"}}}}}}\n",
        up.url()
    );
    let app = TestApp::start(&yaml).await.ready().await;
    let entries = entries(&app.stop().await).await;
    let told = of_kind(&entries, "tool.holds_secret");
    assert!(told.iter().any(|entry| detail(entry)["tool"] == "echo"), "{told:?}");
    assert!(told.iter().all(|entry| entry.subject == "up"), "{told:?}");
}
