//! Batches, which the version 2025-03-26 has and no other.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Answer, MODERN, Role, SOON, Speaker, TestApp, eventually, on_stage, play};

const WITH_BATCHES: &str = "2025-03-26";

async fn client(app: &TestApp) -> Speaker {
    Speaker::of_version(app.http(), WITH_BATCHES, json!({ "roots": {} })).await
}

fn request(id: &Value, method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

fn call(id: &Value, tag: &str) -> Value {
    request(id, "tools/call", json!({ "name": "up__play", "arguments": play(tag, &["sleep=30"]) }))
}

fn notification(method: &str) -> Value {
    json!({ "jsonrpc": "2.0", "method": method })
}

async fn send(client: &Speaker, batch: Value) -> Answer {
    client.message(&batch).send().await
}

#[track_caller]
fn error_of(answer: &Answer) -> (u16, i64) {
    (answer.status, answer.json()["error"]["code"].as_i64().expect("an error"))
}

#[tokio::test]
async fn each_request_of_a_batch_is_answered_and_each_call_has_a_row_of_its_own() {
    let (app, stage) = on_stage(Role::Legacy, "", "").await;
    let client = client(&app).await;
    let answer = send(
        &client,
        json!([
            call(&json!(1), "one"),
            notification("notifications/initialized"),
            call(&json!("1"), "two"),
            request(&json!("p"), "ping", json!({})),
            request(&json!("l"), "tools/list", json!({})),
            { "jsonrpc": "2.0", "id": "sy-99", "result": {} },
            call(&json!(3), "three"),
            request(&json!(4), "no/such", json!({})),
            7,
            { "jsonrpc": "1.0", "id": 5, "method": "ping" },
            {},
        ]),
    )
    .await
    .expect(200);
    assert_eq!(answer.header("content-type"), "application/json");
    let answers = answer.json().as_array().unwrap().clone();
    let of = |id: Value| {
        let mut found = answers.iter().filter(|answer| answer["id"] == id);
        let answer = found.next().unwrap_or_else(|| panic!("no {id} in {answers:?}"));
        assert!(found.next().is_none() || id.is_null());
        answer.clone()
    };
    for (id, tag) in [(json!(1), "one"), (json!("1"), "two"), (json!(3), "three")] {
        assert_eq!(of(id)["result"]["content"][0]["text"], tag);
    }
    assert_eq!(of(json!("p"))["result"], json!({}));
    assert_eq!(of(json!("l"))["result"]["tools"][0]["name"], "up__play");
    assert_eq!(of(json!(4))["error"]["code"], -32601);
    assert_eq!(of(json!(5))["error"]["code"], -32600);
    let nameless: Vec<_> = answers.iter().filter(|answer| answer["id"].is_null()).collect();
    assert_eq!(nameless.len(), 2, "{answers:?}");
    assert!(nameless.iter().all(|answer| answer["error"]["code"] == -32600));
    assert_eq!(answers.len(), 9);
    assert_eq!(stage.seen("tools/call").len(), 3);
    eventually(SOON, "each call is on record", || async {
        let calls = app.calls("limit=100").await;
        let ids: BTreeSet<_> = calls.iter().map(|call| call["id"].to_string()).collect();
        let ok = calls.iter().filter(|call| call["outcome"] == "ok").count();
        (ids.len() == 3 && ok == 3).then_some(())
    })
    .await;
    let first = app.entry_of(&answer).await;
    assert_eq!(first["outcome"], "ok");
    app.stop().await;
}

#[tokio::test]
async fn the_calls_of_a_batch_run_beside_each_other_and_each_can_be_cancelled() {
    let (app, stage) = on_stage(Role::Legacy, "", "").await;
    let client = client(&app).await;
    let hang = request(
        &json!(2),
        "tools/call",
        json!({ "name": "up__play", "arguments": play("hang", &["hang"]) }),
    );
    let batch = json!([call(&json!(1), "quick"), hang]);
    let waiting = tokio::spawn(client.message(&batch).send());
    let seen = stage.call("hang").await;
    client.tell("notifications/cancelled", json!({ "requestId": 2 })).await.expect(202);
    stage.cancelled(&seen, std::time::Instant::now()).await;
    let answer = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap().expect(200);
    let answers = answer.json();
    assert_eq!(answers.as_array().unwrap().len(), 1, "{answers}");
    assert_eq!(answers[0]["result"]["content"][0]["text"], "quick");
    app.stop().await;
}

#[tokio::test]
async fn a_batch_without_requests_is_accepted() {
    let (app, _stage) = on_stage(Role::Legacy, "", "").await;
    let client = client(&app).await;
    let response = json!({ "jsonrpc": "2.0", "id": "sy-0", "result": {} });
    for batch in [
        json!([notification("notifications/initialized")]),
        json!([notification("notifications/x"), response]),
    ] {
        assert!(send(&client, batch).await.expect(202).body.is_empty());
    }
    app.stop().await;
}

#[tokio::test]
async fn a_batch_that_is_none_or_too_large_is_refused_as_a_whole() {
    let (app, stage) = on_stage(Role::Legacy, "", "").await;
    let client = client(&app).await;
    assert_eq!(error_of(&send(&client, json!([])).await), (400, -32600));
    let many = |count| (0..count).map(|id| request(&json!(id), "ping", json!({}))).collect();
    let most = send(&client, Value::Array(many(100))).await.expect(200);
    assert_eq!(most.json().as_array().unwrap().len(), 100);
    assert_eq!(error_of(&send(&client, Value::Array(many(101))).await), (400, -32600));
    for (body, code) in [("[", -32700), ("[{}", -32700), ("[1,]", -32700)] {
        let answer = client.bytes(body.to_owned()).send().await;
        assert_eq!(error_of(&answer), (400, code), "{body}");
    }
    assert!(stage.seen("tools/call").is_empty());
    app.stop().await;
}

#[tokio::test]
async fn initialize_is_no_part_of_a_batch() {
    let (app, _stage) = on_stage(Role::Legacy, "", "").await;
    let client = client(&app).await;
    let params = json!({
        "protocolVersion": WITH_BATCHES, "capabilities": {},
        "clientInfo": { "name": "it", "version": "1" },
    });
    for method in ["initialize", "\\u0069nitialize"] {
        let initialize = request(&json!(1), "initialize", params.clone());
        let body = json!([initialize, request(&json!(2), "ping", json!({}))]).to_string();
        let body = body.replace("\"initialize\"", &format!("\"{method}\""));
        let answer = client.bytes(body).send().await.expect(200);
        assert!(!answer.headers.contains_key("mcp-session-id"));
        let answers = answer.json();
        assert_eq!(answers[0]["error"]["code"], -32600, "{answers}");
        assert_eq!(answers[1]["result"], json!({}));
    }
    app.stop().await;
}

#[tokio::test]
async fn other_versions_have_no_batches() {
    let (app, stage) = on_stage(Role::Legacy, "", "").await;
    let batch = json!([call(&json!(1), "x")]);
    for version in ["2025-06-18", "2025-11-25"] {
        let client = Speaker::of_version(app.http(), version, json!({})).await;
        assert_eq!(error_of(&send(&client, batch.clone()).await), (400, -32600));
    }
    let modern = Speaker::modern(&app, json!({}));
    let answer = modern.message(&batch).header("mcp-method", "tools/call").send().await;
    assert_eq!(error_of(&answer), (400, -32600), "{MODERN}");
    // Of a session that is not there.
    let mut stranger = client(&app).await;
    stranger.session = Some("0".repeat(32));
    assert_eq!(send(&stranger, batch).await.status, 404);
    assert!(stage.seen("tools/call").is_empty());
    app.stop().await;
}
