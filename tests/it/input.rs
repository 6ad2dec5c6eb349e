//! What servers ask clients while they work: requests of legacy servers, relayed to the one client
//! that has the session, and the rounds of modern servers.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Role, SOON, Speaker, Stage, TestApp, eventually, messages, on_stage, play, total,
};

const PIPES: [Role; 2] = [Role::Legacy, Role::Stdio];
const ISOLATED: &str = "sessions: isolated";
const METHODS: [&str; 3] = ["sampling/createMessage", "elicitation/create", "roots/list"];

fn able() -> Value {
    json!({ "sampling": {}, "elicitation": { "form": {} }, "roots": { "listChanged": true } })
}

/// What the stage heard in answer to its questions, as its result says.
fn heard(answer: &Value) -> &Value {
    &answer["result"]["structuredContent"]["heard"]
}

#[tokio::test]
async fn a_question_of_a_server_reaches_the_client_and_the_answer_the_server() {
    for role in PIPES {
        let (app, stage) = on_stage(role, "", ISOLATED).await;
        let client = Speaker::legacy(&app, able()).await;
        for method in METHODS {
            let step = format!("ask={method}");
            let mut stream = client.call(&json!(1), None, play(method, &[&step])).open().await;
            let question = stream.next().await.unwrap();
            assert_eq!(
                (&question["method"], &question["params"]["tag"]),
                (&json!(method), &json!(method))
            );
            client.answer(&question["id"], "result", json!({ "said": [1.0, "é"] })).await;
            // A second answer is nobody's.
            client.answer(&question["id"], "result", json!({ "said": "again" })).await;
            let answer = stream.next().await.unwrap();
            assert_eq!(answer["id"], 1);
            assert_eq!(heard(&answer)[0]["result"], json!({ "said": [1.0, "é"] }));
            assert!(stream.is_over().await);
        }
        let error = json!({ "code": -1, "message": "declined" });
        let steps = ["ask=roots/list", "ask=elicitation/create"];
        let mut stream = client.call(&json!(1), None, play("no", &steps)).open().await;
        for _ in steps {
            let question = stream.next().await.unwrap();
            client.answer(&question["id"], "error", error.clone()).await;
        }
        let answer = stream.next().await.unwrap();
        assert_eq!((&heard(&answer)[0]["error"], &heard(&answer)[1]["error"]), (&error, &error));
        let declared = stage.seen("initialize").pop().unwrap();
        assert_eq!(declared.body["params"]["capabilities"], able());
        app.stop().await;
    }
}

#[tokio::test]
async fn a_question_reaches_the_client_of_its_session_and_no_other() {
    for role in PIPES {
        let (app, _stage) = on_stage(role, "", ISOLATED).await;
        let one = Speaker::legacy(&app, able()).await;
        let two = Speaker::legacy(&app, able()).await;
        let steps = ["ask=roots/list"];
        let mut of_one = one.call(&json!(1), None, play("one", &steps)).open().await;
        let mut of_two = two.call(&json!(1), None, play("two", &steps)).open().await;
        let (first, second) = (of_one.next().await.unwrap(), of_two.next().await.unwrap());
        assert_eq!(
            (&first["params"]["tag"], &second["params"]["tag"]),
            (&json!("one"), &json!("two"))
        );
        one.answer(&first["id"], "result", json!({ "of": "one" })).await;
        // Equal ids in two sessions are two questions.
        assert_eq!(heard(&of_one.next().await.unwrap())[0]["result"], json!({ "of": "one" }));
        assert_eq!(of_two.within(Duration::from_millis(200)).await, None);
        two.answer(&second["id"], "result", json!({ "of": "two" })).await;
        assert_eq!(heard(&of_two.next().await.unwrap())[0]["result"], json!({ "of": "two" }));
        app.stop().await;
    }
}

#[tokio::test]
async fn a_question_that_no_client_can_answer_is_answered_at_once() {
    for role in PIPES {
        for (settings, capabilities) in
            [(ISOLATED, json!({})), (ISOLATED, json!({ "roots": {} })), ("", able())]
        {
            let (app, _stage) = on_stage(role, "", settings).await;
            let began = Instant::now();
            let clients = [
                Speaker::legacy(&app, capabilities.clone()).await,
                Speaker::modern(&app, capabilities),
            ];
            for client in clients {
                let call = client.call(&json!(1), None, play("x", &["ask=elicitation/create"]));
                let answer = messages(&call.send().await.expect(200)).pop().unwrap();
                assert_eq!(heard(&answer)[0]["error"]["code"], -32601, "{role:?} {answer}");
            }
            // A server waits for a minute for its answer, the router for ten.
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
            app.stop().await;
        }
    }
}

/// A person is not asked twice by one call.
#[tokio::test]
async fn a_call_that_asked_its_client_something_is_not_made_anew() {
    let settings =
        format!("{ISOLATED}, tool_overrides: {{play: {{replay: safe}}}}, retry_delay: 100ms");
    let (app, stage) = on_stage(Role::Legacy, "", &settings).await;
    let client = Speaker::legacy(&app, able()).await;
    let call = client.call(&json!(1), None, play("x", &["ask=elicitation/create", "leave=9"]));
    let mut stream = call.open().await.expect_stream();
    let question = stream.next().await.unwrap();
    assert_eq!(question["method"], "elicitation/create", "{question}");
    client.answer(&question["id"], "result", json!({ "action": "decline" })).await;
    let answer = stream.next().await.unwrap();
    assert_eq!(answer["error"]["data"]["attempts"], 1, "{answer}");
    assert_eq!(answer["error"]["data"]["outcome"], "unknown", "{answer}");
    assert_eq!(stage.seen("tools/call").len(), 1);
    let suppressed = r#"switchyard_retries_suppressed_total{server="up",why="asked"}"#;
    assert_eq!(app.metric(suppressed).await, Some(1.0));
    app.stop().await;
}

/// The answer that the server got to its only question.
async fn told(stage: &Stage) -> Value {
    eventually(SOON, "the server is told", || async {
        let told = stage.all().into_iter().map(|seen| seen.body);
        told.into_iter().find(|body| body["id"].as_str().is_some_and(|id| id.starts_with("q-")))
    })
    .await
}

#[tokio::test]
async fn a_question_whose_client_is_gone_is_answered_at_once() {
    for role in PIPES {
        for (version, steps) in [
            ("2025-11-25", &["sleep=1000", "ask=roots/list"][..]),
            ("2025-06-18", &["sleep=1000", "ask=roots/list"]),
            ("2025-06-18", &["progress", "sleep=1000", "ask=roots/list"]),
        ] {
            let (app, stage) = on_stage(role, "", ISOLATED).await;
            let client = Speaker::of_version(app.http(), version, able()).await;
            let call = client.call(&json!(1), Some(&json!(1)), play("gone", steps));
            if steps[0] == "progress" {
                let mut stream = call.open().await;
                assert!(stream.next().await.is_some());
            } else {
                let waiting = tokio::spawn(call.send());
                stage.call("gone").await;
                waiting.abort();
            }
            assert_eq!(told(&stage).await["error"]["code"], -32601, "{role:?} {version}");
            app.stop().await;
        }
    }
}

#[tokio::test]
async fn a_client_that_comes_back_can_still_answer() {
    for role in PIPES {
        let (app, stage) = on_stage(role, "", ISOLATED).await;
        let client = Speaker::legacy(&app, able()).await;
        let steps = ["progress", "sleep=300", "ask=roots/list"];
        let mut stream = client.call(&json!(1), Some(&json!(1)), play("back", &steps)).open().await;
        let opening = stream.next_event().await.unwrap();
        drop(stream);
        stage.call("back").await;
        let mut stream = client.listen(opening.id.as_deref()).await.expect_stream();
        assert_eq!(stream.next().await.unwrap()["method"], "notifications/progress");
        let question = stream.next().await.unwrap();
        client.answer(&question["id"], "result", json!({ "roots": [] })).await;
        assert_eq!(heard(&stream.next().await.unwrap())[0]["result"], json!({ "roots": [] }));
        app.stop().await;
    }
}

/// Two stages, so that a second leg could go astray.
async fn two_modern() -> (TestApp, Stage, Stage) {
    let (up, other) = (Stage::start(Role::Modern).await, Stage::start(Role::Modern).await);
    let yaml = format!("mcp_servers:\n{}{}", up.entry("up", ""), other.entry("other", ""));
    (TestApp::start(&yaml).await.ready().await, up, other)
}

#[tokio::test]
async fn what_a_modern_server_needs_a_legacy_client_is_asked() {
    let (app, stage, other) = two_modern().await;
    let client = Speaker::legacy(&app, able()).await;
    for method in METHODS {
        let step = format!("need={method}");
        let mut stream = client.call(&json!("i"), None, play(method, &[&step])).open().await;
        let question = stream.next().await.unwrap();
        assert_eq!(
            (&question["method"], &question["params"]["tag"]),
            (&json!(method), &json!(method))
        );
        client.answer(&question["id"], "result", json!({ "n": 1.0 })).await;
        let answer = stream.next().await.unwrap();
        assert_eq!(answer["id"], "i");
        assert_eq!(heard(&answer)[0], json!({ "k": { "n": 1.0 } }));
        let state = &answer["result"]["structuredContent"]["state"];
        assert_eq!(*state, format!("state é \\ of {method}"));
        assert!(stream.is_over().await);
    }
    assert_eq!((stage.seen("tools/call").len(), other.seen("tools/call").len()), (6, 0));
    for seen in stage.seen("tools/call") {
        let meta = &seen.body["params"]["_meta"];
        assert_eq!(meta["io.modelcontextprotocol/clientCapabilities"], able());
    }
    eventually(SOON, "each leg is on record", || async {
        let calls = app.calls("limit=100").await;
        let ids: std::collections::BTreeSet<_> =
            calls.iter().map(|call| call["id"].to_string()).collect();
        (ids.len() == 6 && calls.iter().all(|call| call["outcome"] == "ok")).then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn what_a_legacy_client_cannot_give_is_a_clear_error() {
    let (app, stage, _other) = two_modern().await;
    for capabilities in [json!({}), json!({ "roots": {} })] {
        let client = Speaker::legacy(&app, capabilities).await;
        let call = client.call(&json!(1), None, play("x", &["need=elicitation/create"]));
        let answer = call.send().await.expect(200).json();
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("declare"), "{message}");
    }
    let client = Speaker::legacy(&app, able()).await;
    let mut stream =
        client.call(&json!(1), None, play("x", &["need=elicitation/create"])).open().await;
    let question = stream.next().await.unwrap();
    client.answer(&question["id"], "error", json!({ "code": -1, "message": "not now" })).await;
    let answer = stream.next().await.unwrap();
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("not now"), "{message}");
    assert_eq!(stage.seen("tools/call").len(), 3, "none has a second leg");
    // Ledger and metrics have what the clients were told. Where one was asked, the server had answered.
    for (outcome, count) in [("refused", 3), ("ok", 2)] {
        let calls = eventually(SOON, &format!("{count} are {outcome}"), || async {
            let calls = app.calls(&format!("outcome={outcome}")).await;
            (calls.len() == count).then_some(calls)
        })
        .await;
        if outcome == "refused" {
            for call in &calls {
                assert_eq!(call["error_code"], "MCPInputRequiredError", "{call}");
                assert_eq!((&call["tool"], &call["server"]), (&json!("up__play"), &json!("up")));
            }
        }
    }
    let count = "mcp_server_operation_duration_seconds_count";
    for (error, calls) in [("MCPInputRequiredError", 3.0), ("", 2.0)] {
        let error = format!("error_type=\"{error}\"");
        let labels = ["mcp_method_name=\"tools/call\"", "gen_ai_tool_name=\"up__play\"", &error];
        assert_eq!(total(&app.socket(), count, &labels).await, calls, "{error}");
    }
    app.stop().await;
}

#[tokio::test]
async fn between_modern_peers_rounds_pass_as_they_are() {
    let (app, stage, other) = two_modern().await;
    let client = Speaker::modern(&app, able());
    let arguments = play("m", &["need=elicitation/create"]);
    let first = client.call(&json!(1), None, arguments.clone()).send().await.expect(200).json();
    let result = &first["result"];
    assert_eq!(result["resultType"], "input_required");
    let asked = json!({ "k": { "method": "elicitation/create", "params": { "tag": "m" } } });
    assert_eq!(
        (&result["inputRequests"], &result["requestState"]),
        (&asked, &json!("state é \\ of m"))
    );
    let params = json!({
        "name": "up__play", "arguments": arguments,
        "inputResponses": { "k": { "n": 1.0 } }, "requestState": result["requestState"],
    });
    let second = client.request(&json!(2), "tools/call", params).send().await.expect(200).json();
    assert_eq!(second["id"], 2);
    assert_eq!(heard(&second)[0], json!({ "k": { "n": 1.0 } }));
    assert_eq!(second["result"]["structuredContent"]["state"], "state é \\ of m");
    assert_eq!((stage.seen("tools/call").len(), other.seen("tools/call").len()), (2, 0));
    eventually(SOON, "both are on record", || async {
        (app.calls("limit=9").await.len() == 2).then_some(())
    })
    .await;
    app.stop().await;
}
