//! The form of an answer: plain JSON, or an event stream when something is said before it; and
//! which log messages are said at all.

use serde_json::{Value, json};

use crate::support::{
    Role, SOON, Speaker, TestApp, eventually, messages, on_stage, play, progress_of,
};

const ROLES: [Role; 3] = [Role::Legacy, Role::Modern, Role::Stdio];
const LEVEL: &str = "io.modelcontextprotocol/logLevel";

async fn both(app: &TestApp) -> [Speaker; 2] {
    [Speaker::legacy(app, json!({})).await, Speaker::modern(app, json!({}))]
}

#[tokio::test]
async fn an_answer_with_nothing_before_it_is_plain_json() {
    for role in ROLES {
        let (app, _stage) = on_stage(role, "", "").await;
        for client in both(&app).await {
            for (token, steps) in [(None, &["progress"][..]), (Some(json!("t")), &["sleep=20"])] {
                let call = client.call(&json!("i"), token.as_ref(), play("plain", steps));
                let answer = call.send().await.expect(200);
                assert_eq!(answer.header("content-type"), "application/json");
                assert_eq!(answer.json()["id"], "i");
                assert_eq!(answer.json()["result"]["content"][0]["text"], "plain");
            }
        }
        app.stop().await;
    }
}

#[tokio::test]
async fn an_answer_with_progress_before_it_is_a_stream_that_ends_with_it() {
    for role in ROLES {
        let (app, _stage) = on_stage(role, "", "").await;
        for client in both(&app).await {
            for steps in [
                &["progress", "progress", "progress"][..],
                &["progress", "sleep=50", "progress", "progress"],
            ] {
                let call = client.call(&json!("i"), Some(&json!("t é")), play("tag", steps));
                let mut stream = call.open().await.expect_stream();
                assert_eq!(stream.headers["x-accel-buffering"], "no");
                assert_eq!(stream.headers["cache-control"], "no-cache");
                for number in 1..=3 {
                    let message = stream.next().await.unwrap();
                    assert_eq!(progress_of(&message), Some((&json!("t é"), "tag")));
                    assert_eq!(message["params"]["progress"], number);
                }
                let answer = stream.next().await.unwrap();
                assert_eq!(
                    (&answer["id"], &answer["result"]["content"][0]["text"]),
                    (&json!("i"), &json!("tag"))
                );
                assert!(stream.is_over().await);
            }
        }
        app.stop().await;
    }
}

/// A call that was made anew counts from the beginning; its caller hears no step twice.
#[tokio::test]
async fn progress_of_a_call_that_was_made_anew_goes_on_from_where_it_was() {
    let settings = "tool_overrides: {play: {replay: safe}}, retry_delay: 100ms";
    let (app, stage) = on_stage(Role::Modern, "", settings).await;
    for client in both(&app).await {
        let tag = client.version;
        let steps = ["progress", "progress", "leave=1", "progress"];
        let call = client.call(&json!("i"), Some(&json!("t")), play(tag, &steps));
        let mut heard = messages(&call.send().await.expect(200));
        let answer = heard.pop().unwrap();
        assert_eq!(answer["result"]["content"][0]["text"], tag, "{answer}");
        let told: Vec<_> = heard.iter().map(|step| step["params"]["progress"].clone()).collect();
        assert_eq!(told, [1, 2, 3], "{heard:?}");
        let calls = stage.seen("tools/call").into_iter();
        assert_eq!(calls.filter(|seen| seen.body["params"]["arguments"]["tag"] == tag).count(), 2);
    }
    app.stop().await;
}

#[tokio::test]
async fn progress_comes_when_it_is_said_and_not_with_the_answer() {
    for role in ROLES {
        let (app, _stage) = on_stage(role, "", "").await;
        for client in both(&app).await {
            let call = client.call(&json!(1), Some(&json!(1)), play("now", &["progress", "hang"]));
            let mut stream = call.open().await.expect_stream();
            assert!(stream.next().await.is_some());
        }
        app.stop().await;
    }
}

/// Which log messages the client hears of a call that logs at these levels.
async fn logs(client: &Speaker, level: Option<&str>) -> Vec<String> {
    let steps = ["log=debug", "log=info", "log=warning", "log=error"];
    let mut params = json!({ "name": "up__play", "arguments": play("log", &steps) });
    if let Some(level) = level {
        params["_meta"][LEVEL] = level.into();
    }
    let answer = client.request(&json!(4), "tools/call", params).send().await.expect(200);
    let mut heard = messages(&answer);
    assert_eq!(heard.pop().unwrap()["id"], 4);
    heard
        .iter()
        .map(|said| {
            assert_eq!(
                (&said["method"], &said["params"]["data"]),
                (&json!("notifications/message"), &json!("log"))
            );
            said["params"]["level"].as_str().unwrap().to_owned()
        })
        .collect()
}

async fn set_level(client: &Speaker, level: &str) -> Value {
    let call = client.request(&json!(3), "logging/setLevel", json!({ "level": level }));
    call.send().await.expect(200).json()
}

#[tokio::test]
async fn a_legacy_client_hears_the_levels_it_set() {
    for role in [Role::Legacy, Role::Modern] {
        let (app, stage) = on_stage(role, "", "").await;
        let client = Speaker::legacy(&app, json!({})).await;
        let other = Speaker::legacy(&app, json!({})).await;
        assert_eq!(logs(&client, None).await, ["debug", "info", "warning", "error"]);
        assert_eq!(set_level(&client, "warning").await["result"], json!({}));
        assert_eq!(logs(&client, None).await, ["warning", "error"]);
        if role == Role::Modern {
            let asked = stage
                .seen("tools/call")
                .iter()
                .map(|seen| seen.body["params"]["_meta"][LEVEL].clone())
                .collect::<Vec<_>>();
            assert_eq!(asked, [Value::Null, json!("warning")]);
        }
        assert_eq!(logs(&other, None).await, ["debug", "info", "warning", "error"]);
        assert_eq!(set_level(&client, "loud").await["error"]["code"], -32602);
        assert_eq!(set_level(&client, "emergency").await["result"], json!({}));
        assert_eq!(logs(&client, None).await, Vec::<String>::new());
        app.stop().await;
    }
}

#[tokio::test]
async fn a_modern_client_hears_the_levels_it_asks_for_and_else_none() {
    for role in [Role::Legacy, Role::Modern] {
        let (app, stage) = on_stage(role, "", "").await;
        let client = Speaker::modern(&app, json!({}));
        assert_eq!(logs(&client, Some("warning")).await, ["warning", "error"]);
        assert_eq!(logs(&client, Some("debug")).await, ["debug", "info", "warning", "error"]);
        assert_eq!(logs(&client, None).await, Vec::<String>::new());
        // Progress alone asks for no log.
        let steps = ["log=error", "progress"];
        let answer = client.call(&json!(1), Some(&json!(1)), play("p", &steps)).send().await;
        let heard = messages(&answer.expect(200));
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(progress_of(&heard[0]).is_some());
        if role == Role::Modern {
            let asked = stage
                .seen("tools/call")
                .iter()
                .map(|seen| seen.body["params"]["_meta"][LEVEL].clone())
                .collect::<Vec<_>>();
            assert_eq!(asked, [json!("warning"), json!("debug"), Value::Null, Value::Null]);
        }
        app.stop().await;
    }
}

#[tokio::test]
async fn what_a_shared_child_logs_is_told_to_nobody() {
    let (app, _stage) = on_stage(Role::Stdio, "", "").await;
    for client in both(&app).await {
        assert_eq!(logs(&client, Some("debug")).await, Vec::<String>::new());
    }
    app.stop().await;
}

#[tokio::test]
async fn a_server_of_one_client_alone_is_told_its_level_and_logs_to_it() {
    for role in [Role::Legacy, Role::Stdio] {
        let (app, stage) = on_stage(role, "", "sessions: isolated").await;
        let client = Speaker::legacy(&app, json!({})).await;
        assert_eq!(logs(&client, None).await, ["debug", "info", "warning", "error"]);
        set_level(&client, "error").await;
        let told = || async {
            let told = stage.seen("logging/setLevel").pop()?;
            (told.body["params"]["level"] == "error").then_some(())
        };
        eventually(SOON, "it is told", told).await;
        assert_eq!(logs(&client, None).await, ["error"]);
        app.stop().await;
    }
}

/// A call whose answer has begun to stream is still being answered; who listens only is not.
#[tokio::test]
async fn a_call_that_streams_is_in_flight_until_its_end() {
    const GAUGE: &str = "switchyard_inflight_requests";
    let (app, stage) = on_stage(Role::Legacy, "", "").await;
    for client in both(&app).await {
        let listening = match client.session {
            Some(_) => Some(client.listen(None).await.expect_stream()),
            None => None,
        };
        let settles = async |count: f64| {
            // The request for the metrics is one itself.
            eventually(SOON, &format!("{count} are in flight"), || async {
                (app.metric(GAUGE).await? == count + 1.0).then_some(())
            })
            .await;
        };
        settles(0.0).await;
        let steps = ["progress", "sleep=60000"];
        let call = client.call(&json!(1), Some(&json!("t")), play("flight", &steps));
        let mut stream = call.open().await.expect_stream();
        assert!(stream.next().await.is_some());
        settles(1.0).await;
        match client.session {
            // A legacy call goes on without its connection.
            Some(_) => {
                let params = json!({ "requestId": 1 });
                client.tell("notifications/cancelled", params).await.expect(202);
            }
            None => drop(stream),
        }
        settles(0.0).await;
        drop(listening);
    }
    drop(stage);
    app.stop().await;
}
