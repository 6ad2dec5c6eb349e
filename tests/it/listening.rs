//! What clients hear without asking each time: the stream of a legacy session and the subscription
//! of a modern client, both about servers of every kind.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use switchyard::cli::demo_upstream::{Eras, Options};

use crate::support::{
    Role, SUBSCRIPTION, Speaker, Stage, Stream, TestApp, hold, on_stage, upstream, upstream_at,
    yaml,
};

const ROLES: [Role; 3] = [Role::Legacy, Role::Modern, Role::Stdio];
/// So seldom that only what the server says can be the reason to look again.
const SELDOM: &str = "health_check_interval: 600\n";
const CHANGED: &str = "notifications/tools/list_changed";
const UPDATED: &str = "notifications/resources/updated";
/// Long enough for what would come.
const QUIET: Duration = Duration::from_millis(300);

/// Opens a subscription and checks that it is acknowledged first.
async fn subscribe(client: &Speaker, id: &Value, wanted: Value, honoured: &Value) -> Stream {
    let params = json!({ "notifications": wanted });
    let call = client.request(id, "subscriptions/listen", params);
    let mut stream = call.open().await.expect_stream();
    let first = stream.next().await.unwrap();
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(first["params"]["_meta"], json!({ SUBSCRIPTION: id }));
    assert_eq!(first["params"]["notifications"], *honoured);
    stream
}

/// The next message, which has this method. News of other lists may come before it: after a start
/// the lists arrive one after the other.
async fn next_of(stream: &mut Stream, method: &str) -> Value {
    loop {
        let message = stream.next().await.expect("a message");
        let said = message["method"].as_str().unwrap_or_default();
        if said == method || !said.ends_with("/list_changed") {
            assert_eq!(said, method, "{message}");
            return message;
        }
    }
}

async fn is_quiet(stream: &mut Stream) {
    assert_eq!(stream.within(QUIET).await, None);
}

fn change_tools(stage: &Stage, tools: &[&str]) {
    stage.set_tools(tools);
    stage.say(CHANGED, json!({}));
}

#[tokio::test]
async fn clients_of_both_eras_hear_that_the_tools_changed() {
    for role in ROLES {
        let (app, stage) = on_stage(role, SELDOM, "").await;
        let old = Speaker::legacy(&app, json!({})).await;
        let new = Speaker::modern(&app, json!({}));
        let mut of_old = old.listen(None).await.expect_stream();
        let tools = json!({ "toolsListChanged": true });
        let mut of_new = subscribe(&new, &json!("s 1"), tools.clone(), &tools).await;
        let others = json!({ "promptsListChanged": true, "toolsListChanged": false });
        let honoured = json!({ "promptsListChanged": true });
        let mut deaf = subscribe(&new, &json!(2), others, &honoured).await;
        stage.heard().await;
        // What changes nothing is no news.
        stage.say(CHANGED, json!({}));
        for tools in [&["play", "more"][..], &["play"]] {
            change_tools(&stage, tools);
            let said = next_of(&mut of_old, CHANGED).await;
            assert_eq!(said.get("params"), None, "{said}");
            let said = next_of(&mut of_new, CHANGED).await;
            assert_eq!(said["params"], json!({ "_meta": { SUBSCRIPTION: "s 1" } }));
            let list = old.request(&json!(1), "tools/list", json!({})).send().await.json();
            assert_eq!(list["result"]["tools"].as_array().unwrap().len(), tools.len());
        }
        for stream in [&mut of_old, &mut of_new, &mut deaf] {
            is_quiet(stream).await;
        }
        let stopped = tokio::spawn(app.stop());
        for (stream, id) in [(&mut of_new, json!("s 1")), (&mut deaf, json!(2))] {
            let result = json!({ "resultType": "complete", "_meta": { SUBSCRIPTION: id } });
            let last = json!({ "jsonrpc": "2.0", "id": id, "result": result });
            assert_eq!(stream.rest().await, [last]);
        }
        assert!(of_old.is_over().await);
        stopped.await.unwrap();
    }
}

/// The resources of the stage as a client knows them.
async fn resources(app: &TestApp) -> Vec<String> {
    let client = Speaker::legacy(app, json!({})).await;
    let list = client.request(&json!(1), "resources/list", json!({})).send().await.json();
    let list = list["result"]["resources"].as_array().unwrap().clone();
    list.iter().map(|resource| resource["uri"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn clients_of_both_eras_hear_of_the_resources_they_subscribed_to() {
    for role in ROLES {
        let (app, stage) = on_stage(role, SELDOM, "").await;
        let uris = resources(&app).await;
        let old = Speaker::legacy(&app, json!({})).await;
        let new = Speaker::modern(&app, json!({}));
        let mut of_old = old.listen(None).await.expect_stream();
        let wanted = json!({ "resourceSubscriptions": [uris[0]] });
        let mut of_new = subscribe(&new, &json!(7), wanted.clone(), &wanted).await;
        let one = json!({ "uri": uris[0] });
        let call = old.request(&json!(1), "resources/subscribe", one.clone());
        assert_eq!(call.send().await.json()["result"], json!({}));
        told(&stage, "stage:one").await;
        stage.heard().await;
        stage.say(UPDATED, json!({ "uri": "stage:two" }));
        stage.say(UPDATED, json!({ "uri": "stage:one" }));
        assert_eq!(next_of(&mut of_old, UPDATED).await["params"], one);
        let said = next_of(&mut of_new, UPDATED).await;
        assert_eq!(said["params"], json!({ "uri": uris[0], "_meta": { SUBSCRIPTION: 7 } }));
        let call = old.request(&json!(1), "resources/unsubscribe", one);
        assert_eq!(call.send().await.json()["result"], json!({}));
        stage.say(UPDATED, json!({ "uri": "stage:one" }));
        next_of(&mut of_new, UPDATED).await;
        for stream in [&mut of_old, &mut of_new] {
            is_quiet(stream).await;
        }
        if role != Role::Modern {
            assert!(stage.seen("resources/unsubscribe").is_empty(), "one still follows it");
            drop(of_new);
            crate::support::eventually(crate::support::SOON, "nobody follows it", || async {
                stage.seen("resources/unsubscribe").pop()
            })
            .await;
        }
        app.stop().await;
    }
}

/// Waits until the server was told that somebody follows the resource.
async fn told(stage: &Stage, uri: &str) {
    let find = || async {
        let told = match stage.role {
            Role::Modern => stage.seen("subscriptions/listen"),
            Role::Legacy | Role::Stdio => stage.seen("resources/subscribe"),
        };
        told.into_iter().find(|told| told.body["params"].to_string().contains(uri))
    };
    crate::support::eventually(crate::support::SOON, "the server is told", find).await;
}

#[tokio::test]
async fn a_second_stream_takes_the_place_of_the_first_and_the_end_of_the_session_ends_it() {
    let (app, _stage) = on_stage(Role::Legacy, "", "").await;
    let client = Speaker::legacy(&app, json!({})).await;
    let mut first = client.listen(None).await.expect_stream();
    let mut second = client.listen(None).await.expect_stream();
    assert!(first.is_over().await);
    is_quiet(&mut second).await;
    client.end().await.expect(204);
    assert!(second.is_over().await);
    assert_eq!(client.listen(None).await.status, 404);
    app.stop().await;
}

#[tokio::test]
async fn a_session_of_somebody_else_has_no_stream_for_us() {
    let (app, stage) = on_stage(Role::Legacy, SELDOM, "").await;
    let one = app.keyed("one", &["call"]).await;
    let two = app.keyed("two", &["call"]).await;
    let client = Speaker::of_version(&one, "2025-11-25", json!({})).await;
    let mut own = client.listen(None).await.expect_stream();
    let thief = Speaker { http: two, ..client.clone() };
    assert_eq!(thief.listen(None).await.status, 404);
    assert_eq!(thief.listen(Some("1-0")).await.status, 404);
    thief.end().await.expect(404);
    let get =
        |version| app.http().request(&Method::GET, "/mcp").header("mcp-protocol-version", version);
    assert_eq!(get("2025-11-25").send().await.status, 400, "without a session");
    assert_eq!(get("2026-07-28").send().await.status, 405, "the modern era has none");
    // The owner's is untouched.
    stage.heard().await;
    change_tools(&stage, &["play", "more"]);
    next_of(&mut own, CHANGED).await;
    app.stop().await;
}

/// It has forgotten its sessions and has a tool more; nobody tells the router so.
#[tokio::test]
async fn a_server_that_was_restarted_with_other_tools_is_called_and_its_list_told() {
    for eras in [Eras::Legacy, Eras::Modern] {
        let before = upstream(Options { eras, ..Options::default() }).await;
        let address = before.address();
        let file = format!("{SELDOM}{}", yaml(&[("up", &before)]));
        let app = TestApp::start(&file).await.ready().await;
        let old = Speaker::legacy(&app, json!({})).await;
        let new = Speaker::modern(&app, json!({}));
        let mut of_old = old.listen(None).await.expect_stream();
        let tools = json!({ "toolsListChanged": true });
        let mut of_new = subscribe(&new, &json!(1), tools.clone(), &tools).await;
        let echo = |client: &Speaker| {
            let params = json!({ "name": "up__echo", "arguments": { "text": "hi" } });
            client.request(&json!(2), "tools/call", params)
        };
        assert_eq!(echo(&old).send().await.json()["result"]["content"][0]["text"], "hi");
        before.stop().await;
        hold(address).unwrap();
        let after =
            upstream_at(address, Options { eras, extra_tools: 1, ..Options::default() }).await;
        for client in [&old, &new] {
            assert_eq!(echo(client).send().await.json()["result"]["content"][0]["text"], "hi");
        }
        if eras == Eras::Legacy {
            // The call met a session that was gone, which says that the server began anew.
            next_of(&mut of_old, CHANGED).await;
            next_of(&mut of_new, CHANGED).await;
            let list = old.request(&json!(3), "tools/list", json!({})).send().await.json();
            let names = list["result"]["tools"].as_array().unwrap().iter();
            assert!(names.into_iter().any(|tool| tool["name"] == "up__extra_0"), "{list}");
            let history = app.http().get("/mcp/tools/up__extra_0/history").await.json();
            assert_eq!(history["history"][0]["kind"], "added", "{history}");
        }
        app.stop().await;
        after.stop().await;
    }
}
