//! Cancellation: how each era says it, that the server hears of it at once, and what is none.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Role, SOON, Speaker, Stage, TestApp, eventually, on_stage, play};

const ROLES: [Role; 3] = [Role::Legacy, Role::Modern, Role::Stdio];
/// What a server may have to wait until it hears of it.
const PROMPT: Duration = Duration::from_millis(100);

/// Tries until one was prompt, three times at least and twelve at most: the machine may be busy, the
/// router must not be. Gives how often.
async fn is_prompt(mut attempt: impl AsyncFnMut(usize) -> Duration) -> usize {
    let mut took = Vec::new();
    for number in 0..12 {
        took.push(attempt(number).await);
        if number >= 2 && took.iter().any(|took| *took < PROMPT) {
            return took.len();
        }
    }
    panic!("none was prompt: {took:?}");
}

/// Waits until the ledger has so many calls with this outcome.
async fn recorded(app: &TestApp, outcome: &str, number: usize) {
    eventually(SOON, &format!("{number} calls are {outcome}"), || async {
        let calls = app.calls("limit=100").await;
        (calls.iter().filter(|call| call["outcome"] == outcome).count() == number).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_modern_client_cancels_by_closing_its_connection_while_it_waits() {
    for role in ROLES {
        let (app, stage) = on_stage(role, "", "").await;
        let client = Speaker::modern(&app, json!({}));
        let tries = is_prompt(async |number| {
            let tag = format!("wait {number}");
            let call = client.call(&json!(1), None, play(&tag, &["hang"]));
            let waiting = tokio::spawn(call.send());
            let seen = stage.call(&tag).await;
            waiting.abort();
            stage.cancelled(&seen, Instant::now()).await
        })
        .await;
        recorded(&app, "cancelled", tries).await;
        app.stop().await;
    }
}

#[tokio::test]
async fn a_modern_client_cancels_by_closing_its_connection_in_mid_stream() {
    for role in ROLES {
        let (app, stage) = on_stage(role, "", "").await;
        let client = Speaker::modern(&app, json!({}));
        let tries = is_prompt(async |number| {
            let tag = format!("stream {number}");
            let arguments = play(&tag, &["progress", "hang"]);
            let mut stream = client.call(&json!(1), Some(&json!(1)), arguments).open().await;
            assert_eq!(
                stream.next().await.unwrap()["params"]["message"],
                Value::from(tag.as_str())
            );
            let seen = stage.call(&tag).await;
            drop(stream);
            stage.cancelled(&seen, Instant::now()).await
        })
        .await;
        recorded(&app, "cancelled", tries).await;
        app.stop().await;
    }
}

#[tokio::test]
async fn a_legacy_client_cancels_in_words_and_its_request_ends() {
    for role in ROLES {
        let (app, stage) = on_stage(role, "", "").await;
        let client = Speaker::legacy(&app, json!({})).await;
        let ids = [json!(5), json!("5"), json!("a \"b\" é")];
        let tries = is_prompt(async |number| {
            let id = &ids[number % ids.len()];
            let tag = format!("words {number}");
            let waiting = tokio::spawn(client.call(id, None, play(&tag, &["hang"])).send());
            let seen = stage.call(&tag).await;
            let since = Instant::now();
            client.tell("notifications/cancelled", json!({ "requestId": id })).await.expect(202);
            let took = stage.cancelled(&seen, since).await;
            let ended = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap().expect(200);
            assert!(!ended.text().contains("\"id\""), "{}", ended.text());
            took
        })
        .await;
        recorded(&app, "cancelled", tries).await;
        app.stop().await;
    }
}

#[tokio::test]
async fn a_legacy_client_cancels_in_mid_stream_and_the_stream_ends() {
    for role in ROLES {
        let (app, stage) = on_stage(role, "", "").await;
        let client = Speaker::legacy(&app, json!({})).await;
        let arguments = play("mid", &["progress", "hang"]);
        let mut stream = client.call(&json!("x"), Some(&json!("x")), arguments).open().await;
        assert!(stream.next().await.is_some());
        let seen = stage.call("mid").await;
        client.tell("notifications/cancelled", json!({ "requestId": "x" })).await.expect(202);
        stage.cancelled(&seen, Instant::now()).await;
        assert!(stream.is_over().await);
        recorded(&app, "cancelled", 1).await;
        app.stop().await;
    }
}

/// A call that hangs, of a client with its own session.
async fn hanging(client: &Speaker, stage: &Stage, tag: &str) -> crate::support::Seen {
    tokio::spawn(client.call(&json!(1), None, play(tag, &["hang"])).send());
    stage.call(tag).await
}

#[tokio::test]
async fn nobody_cancels_what_is_another_sessions() {
    for role in ROLES {
        let (app, stage) = on_stage(role, "", "").await;
        let one = Speaker::legacy(&app, json!({})).await;
        let two = Speaker::legacy(&app, json!({})).await;
        let of_one = hanging(&one, &stage, "one").await;
        // The server's own id of the call, unknown ids, and nothing.
        for params in [
            json!({ "requestId": 1 }),
            json!({ "requestId": of_one.body["id"] }),
            json!({ "requestId": "1" }),
            json!({ "requestId": null }),
            json!({}),
        ] {
            two.tell("notifications/cancelled", params).await.expect(202);
        }
        for params in [json!({ "requestId": "1" }), json!({ "requestId": 2 }), json!({})] {
            one.tell("notifications/cancelled", params).await.expect(202);
        }
        let of_two = hanging(&two, &stage, "two").await;
        two.tell("notifications/cancelled", json!({ "requestId": 1 })).await.expect(202);
        stage.cancelled(&of_two, Instant::now()).await;
        tokio::time::sleep(PROMPT).await;
        assert!(!stage.is_cancelled(&of_one));
        one.tell("notifications/cancelled", json!({ "requestId": 1 })).await.expect(202);
        stage.cancelled(&of_one, Instant::now()).await;
        recorded(&app, "cancelled", 2).await;
        app.stop().await;
    }
}

#[tokio::test]
async fn a_legacy_client_that_merely_leaves_cancels_nothing() {
    for role in ROLES {
        let (app, stage) = on_stage(role, "", "").await;
        for (number, version) in ["2025-11-25", "2025-06-18"].into_iter().enumerate() {
            let client = Speaker::of_version(app.http(), version, json!({})).await;
            let (waits, streams) = (format!("waits {number}"), format!("streams {number}"));
            let call = client.call(&json!(1), None, play(&waits, &["sleep=300"]));
            let waiting = tokio::spawn(call.send());
            let first = stage.call(&waits).await;
            waiting.abort();
            let arguments = play(&streams, &["progress", "sleep=300", "progress"]);
            let mut stream = client.call(&json!(2), Some(&json!(2)), arguments).open().await;
            assert!(stream.next().await.is_some());
            drop(stream);
            let second = stage.call(&streams).await;
            recorded(&app, "ok", 2 * number + 2).await;
            assert!(!stage.is_cancelled(&first) && !stage.is_cancelled(&second));
        }
        app.stop().await;
    }
}

#[tokio::test]
async fn a_legacy_client_that_left_can_still_cancel() {
    for role in ROLES {
        let (app, stage) = on_stage(role, "", "").await;
        for (number, version) in ["2025-11-25", "2025-06-18"].into_iter().enumerate() {
            let client = Speaker::of_version(app.http(), version, json!({})).await;
            let (waits, streams) = (format!("waits {number}"), format!("streams {number}"));
            let waiting =
                tokio::spawn(client.call(&json!(1), None, play(&waits, &["hang"])).send());
            let first = stage.call(&waits).await;
            waiting.abort();
            let arguments = play(&streams, &["progress", "hang"]);
            let mut stream = client.call(&json!(2), Some(&json!(2)), arguments).open().await;
            assert!(stream.next().await.is_some());
            let second = stage.call(&streams).await;
            drop(stream);
            // Long enough for the router to notice that both connections are gone.
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(!stage.is_cancelled(&first) && !stage.is_cancelled(&second));
            for (id, seen) in [(1, &first), (2, &second)] {
                client
                    .tell("notifications/cancelled", json!({ "requestId": id }))
                    .await
                    .expect(202);
                stage.cancelled(seen, Instant::now()).await;
            }
            recorded(&app, "cancelled", 2 * number + 2).await;
        }
        app.stop().await;
    }
}

#[tokio::test]
async fn a_client_of_the_plain_api_cancels_by_closing_its_connection() {
    for role in ROLES {
        let (app, stage) = on_stage(role, "", "").await;
        let http = app.http().clone();
        let tries = is_prompt(async |number| {
            let tag = format!("plain {number}");
            let (http, arguments) = (http.clone(), play(&tag, &["hang"]).to_string());
            let waiting = tokio::spawn(async move { http.call("up__play", &arguments).await });
            let seen = stage.call(&tag).await;
            waiting.abort();
            stage.cancelled(&seen, Instant::now()).await
        })
        .await;
        recorded(&app, "cancelled", tries).await;
        app.stop().await;
    }
}
