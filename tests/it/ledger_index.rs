//! The ledger's lists, sums and texts as clients and operators ask for them.

use serde_json::{Value, json};
use switchyard::cli::demo_upstream::Options;

use crate::support::{SOON, TestApp, eventually, upstream};

/// Name, calls and errors of each sum.
async fn sums(app: &TestApp, query: &str) -> Vec<Value> {
    let answer = app.http().get(&format!("/mcp/audit/stats?{query}")).await.expect(200).json();
    let rows = answer["rows"].as_array().unwrap();
    rows.iter().map(|row| json!([row["name"], row["calls"], row["errors"]])).collect()
}

async fn check(app: &TestApp) {
    assert_eq!(
        sums(app, "by=tool").await,
        [json!(["up__echo", 7, 0]), json!([null, 1, 1]), json!(["up__fail", 1, 1])]
    );
    assert_eq!(sums(app, "by=caller&per=day").await, [json!(["anonymous", 9, 2])]);
    assert_eq!(sums(app, "tool=fail&per=hour&since=2h").await, [json!(["up", 1, 1])]);
    assert_eq!(sums(app, "outcome=timeout").await, [] as [Value; 0]);
    assert_eq!(sums(app, "since=2020-01-01&until=2020-01-02").await, [] as [Value; 0]);
    for (text, count) in [
        ("blue", 7),
        ("BLUE+whale", 7),
        ("%22blue+whale+3%22", 1),
        ("wha*", 7),
        ("whal", 0),
        ("%22whale+blue%22", 0),
        ("blue&tool=fail", 0),
        ("luck&outcome=tool_error", 1),
    ] {
        assert_eq!(app.calls(&format!("text={text}")).await.len(), count, "{text}");
    }
}

#[tokio::test]
async fn sums_and_texts_are_complete_at_once_and_when_indexed() {
    let up = upstream(Options::default()).await;
    let yaml = format!("mcp_servers:\n  up: {{url: \"{}\"}}\n", up.url());
    let app = TestApp::start(&yaml).await.ready().await;
    let http = app.http();
    for n in 0..7 {
        let arguments = json!({"text": format!("blue Whale {n}")}).to_string();
        http.call("up__echo", &arguments).await.expect(200);
    }
    http.call("up__fail", r#"{"message":"no luck"}"#).await.expect(200);
    http.call("up__ecko", "{}").await.expect(404);
    check(&app).await;
    eventually(SOON, "the index has caught up", || async {
        let page = app.http().get("/mcp/audit").await.expect(200).json();
        // Entries beside the calls have numbers, too.
        let newest = page["calls"][0]["seq"].as_i64();
        let index = &page["index"];
        (index["behind"] == 0 && index["seq"].as_i64() >= newest).then_some(())
    })
    .await;
    check(&app).await;
    let answer = app.http().get("/mcp/audit/stats?per=hour").await.expect(200).json();
    let row = &answer["rows"][0];
    assert!(row["p50_ms"].as_f64() <= row["p95_ms"].as_f64() && row["p50_ms"].is_f64(), "{row}");
    assert!(row["request_bytes"].as_u64() > Some(0), "{row}");
    for wrong in ["text=", "text=%22open", "text=a*", "text=--"] {
        let answer = app.http().get(&format!("/mcp/audit?{wrong}")).await.expect(400);
        assert!(answer.json()["detail"].as_str().unwrap().contains("text"), "{wrong}");
    }
    for wrong in ["by=view", "per=week", "session=x", "since=soon", "outcome=okay"] {
        app.http().get(&format!("/mcp/audit/stats?{wrong}")).await.expect(400);
    }
    let keyless = app.keyed("caller", &["call"]).await;
    keyless.get("/mcp/audit/stats").await.expect(403);
    app.stop().await;
}
