//! Streams that are taken up again: a client that comes back to us, and our coming back to a
//! server.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::support::{Role, Speaker, Stream, TestApp, on_stage, play};

const LEGACY_ROLES: [Role; 2] = [Role::Legacy, Role::Stdio];

/// Begins a call and reads to the first progress; gives the stream and the id of its last event.
async fn begin(client: &Speaker, id: u64, tag: &str, steps: &[&str]) -> (Stream, String) {
    let call = client.call(&json!(id), Some(&json!(id)), play(tag, steps));
    let mut stream = call.open().await.expect_stream();
    let opening = stream.next_event().await.unwrap();
    assert!(opening.data.is_null() && opening.retry.is_some(), "{opening:?}");
    let first = stream.next_event().await.unwrap();
    assert_eq!(first.data["params"]["progress"], 1);
    (stream, first.id.unwrap())
}

/// What a stream says to its end, briefly: the number of each progress, then the answer's tag.
async fn rest(stream: &mut Stream) -> Vec<Value> {
    let all = stream.rest().await;
    all.iter()
        .map(|message| match message["method"].is_null() {
            true => message["result"]["content"][0]["text"].clone(),
            false => message["params"]["progress"].clone(),
        })
        .collect()
}

async fn client(app: &TestApp) -> Speaker {
    Speaker::legacy(app, json!({})).await
}

#[tokio::test]
async fn a_client_that_comes_back_gets_the_rest_and_the_answer_once() {
    for role in [Role::Legacy, Role::Modern, Role::Stdio] {
        let (app, stage) = on_stage(role, "", "").await;
        let client = client(&app).await;
        let steps = ["progress", "sleep=150", "progress", "sleep=150", "progress"];
        let (stream, last) = begin(&client, 1, "back", &steps).await;
        drop(stream);
        // At once: the router may not know yet that the connection broke.
        let mut again = client.listen(Some(&last)).await.expect_stream();
        assert_eq!(rest(&mut again).await, [json!(2), json!(3), json!("back")]);
        assert_eq!(stage.seen("tools/call").len(), 1);
        app.stop().await;
    }
}

#[tokio::test]
async fn a_connection_that_breaks_more_than_once_loses_nothing() {
    let (app, _stage) = on_stage(Role::Legacy, "", "").await;
    let client = client(&app).await;
    let steps = ["progress", "sleep=150", "progress", "sleep=150", "progress"];
    let (stream, last) = begin(&client, 1, "twice", &steps).await;
    drop(stream);
    let mut again = client.listen(Some(&last)).await.expect_stream();
    let second = again.next_event().await.unwrap();
    assert_eq!(second.data["params"]["progress"], 2);
    drop(again);
    tokio::time::sleep(Duration::from_millis(400)).await;
    let mut again = client.listen(second.id.as_deref()).await.expect_stream();
    assert_eq!(rest(&mut again).await, [json!(3), json!("twice")]);
    app.stop().await;
}

#[tokio::test]
async fn a_connection_that_seems_to_live_is_given_up_for_the_one_that_comes_back() {
    let (app, _stage) = on_stage(Role::Legacy, "", "").await;
    let client = client(&app).await;
    let steps = ["progress", "sleep=2000", "progress"];
    let (mut stale, last) = begin(&client, 1, "stale", &steps).await;
    let mut again = client.listen(Some(&last)).await.expect_stream();
    assert_eq!(rest(&mut again).await, [json!(2), json!("stale")]);
    // Each message goes to one stream only.
    assert_eq!(rest(&mut stale).await, Vec::<Value>::new());
    app.stop().await;
}

#[tokio::test]
async fn an_answer_that_was_sent_into_a_broken_connection_is_not_lost() {
    let (app, _stage) = on_stage(Role::Legacy, "", "").await;
    let client = client(&app).await;
    let (mut stream, last) = begin(&client, 1, "sent", &["progress", "sleep=50", "progress"]).await;
    // The router has sent all of it; the client saw the first event only.
    assert_eq!(rest(&mut stream).await, [json!(2), json!("sent")]);
    drop(stream);
    let mut again = client.listen(Some(&last)).await.expect_stream();
    assert_eq!(rest(&mut again).await, [json!(2), json!("sent")]);
    app.stop().await;
}

#[tokio::test]
async fn streams_of_two_calls_are_told_apart_and_belong_to_their_session() {
    let (app, _stage) = on_stage(Role::Legacy, "", "").await;
    let (one, two) = (client(&app).await, client(&app).await);
    let steps = ["progress", "sleep=200", "progress"];
    let (stream, first) = begin(&one, 1, "first", &steps).await;
    drop(stream);
    let (stream, second) = begin(&one, 2, "second", &steps).await;
    drop(stream);
    // For another session this names nothing.
    let refused = two.try_listen(Some(&first)).await;
    assert_eq!(refused, 410);
    let mut again = one.listen(Some(&second)).await.expect_stream();
    assert_eq!(rest(&mut again).await, [json!(2), json!("second")]);
    let mut again = one.listen(Some(&first)).await.expect_stream();
    assert_eq!(rest(&mut again).await, [json!(2), json!("first")]);
    app.stop().await;
}

#[tokio::test]
async fn clients_of_earlier_versions_get_no_event_without_data() {
    let (app, _stage) = on_stage(Role::Legacy, "", "").await;
    for version in ["2025-06-18", "2025-03-26"] {
        let client = Speaker::of_version(app.http(), version, json!({})).await;
        let call = client.call(&json!(1), Some(&json!(1)), play("plain", &["progress"]));
        let mut stream = call.open().await.expect_stream();
        let first = stream.next_event().await.unwrap();
        assert!(!first.data.is_null() && first.id.is_none(), "{first:?}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_server_that_breaks_off_is_asked_for_the_rest() {
    let (app, stage) = on_stage(Role::Legacy, "", "").await;
    let clients = [client(&app).await, Speaker::modern(&app, json!({}))];
    for client in clients {
        let steps = ["prime=80", "sleep=200", "progress", "prime=80", "progress"];
        let began = Instant::now();
        let call = client.call(&json!(1), Some(&json!(1)), play("resumed", &steps));
        let mut stream = call.open().await.expect_stream();
        assert_eq!(rest(&mut stream).await, [json!(1), json!(2), json!("resumed")]);
        assert!(began.elapsed() >= Duration::from_millis(200));
    }
    let taken_up = stage
        .all()
        .into_iter()
        .filter(|seen| seen.verb == Method::GET && seen.headers.contains_key("last-event-id"));
    for seen in taken_up.inspect(|seen| assert!(seen.headers.contains_key("mcp-session-id"))) {
        assert_eq!(seen.headers["mcp-protocol-version"], "2025-11-25");
    }
    assert_eq!(stage.seen("tools/call").len(), 2, "nothing was sent twice");
    app.stop().await;
}

#[tokio::test]
async fn a_server_that_breaks_off_with_nothing_said_before_is_waited_for_too() {
    for role in LEGACY_ROLES {
        if role == Role::Stdio {
            continue;
        }
        let (app, _stage) = on_stage(role, "", "").await;
        let client = client(&app).await;
        let call = client.call(&json!(1), None, play("quiet", &["prime=50", "sleep=150"]));
        let answer = call.send().await.expect(200);
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.json()["result"]["content"][0]["text"], "quiet");
        app.stop().await;
    }
}
