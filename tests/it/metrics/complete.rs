//! Whether the figures have every call: also those whose caller left, that were refused at the door, or
//! that the ledger had no place for.

use serde_json::json;

use crate::support::{Fault, Rig, SOON, TestApp, eventually, total};

const FAST: &str = "retry_delay: 100ms, circuit_breaker_threshold: 1000";

async fn retries(app: &TestApp, reason: &str) -> f64 {
    let reason = format!("reason=\"{reason}\"");
    total(&app.socket(), "switchyard_retries_total", &["server=\"up\"", &reason]).await
}

/// Attempts after the first, as the ledger has them, are the retries, also when nobody waits for the last.
#[tokio::test]
async fn a_retry_whose_caller_leaves_is_counted() {
    for rig in [Rig::legacy(&["read"]).await, Rig::modern(&["read"]).await] {
        rig.annotate("read", json!({ "readOnlyHint": true }));
        let app = TestApp::start(&rig.yaml("up", FAST)).await.ready().await;
        rig.next("read", &[Fault::Reset, Fault::hold(Fault::None)]);
        let http = app.http().clone();
        let call = tokio::spawn(async move { http.call("up__read", "{}").await });
        eventually(SOON, "the second attempt is under way", || async {
            (rig.counts("read").requests == 2).then_some(())
        })
        .await;
        assert_eq!(retries(&app, "ambiguous").await, 0.0, "it has not ended");
        call.abort();
        let entry = eventually(SOON, "the ledger has the call", || async {
            app.calls("limit=10").await.into_iter().next()
        })
        .await;
        assert_eq!((&entry["outcome"], &entry["attempts"]), (&json!("cancelled"), &json!(2)));
        assert_eq!(retries(&app, "ambiguous").await, 1.0);
        app.stop().await;
    }
}

/// A call that is sent again because the definition it was made from is old is no less a repeat.
#[tokio::test]
async fn a_call_with_a_newer_definition_is_counted_as_a_repeat() {
    let rig = Rig::modern(&["read"]).await;
    let app = TestApp::start(&rig.yaml("up", "retry_mode: off")).await.ready().await;
    let schema = json!({ "type": "object" });
    rig.define("read", json!({ "name": "read", "description": "New.", "inputSchema": schema }));
    rig.next("read", &[Fault::RpcError(-32020)]);
    let answer = app.http().call("up__read", "{}").await.expect(200);
    assert_eq!(answer.json()["attempts"], 2, "{}", answer.text());
    let attempts = app.entry_of(&answer).await["attempt_list"].clone();
    assert_eq!(attempts[0]["failure"], "refused", "{attempts}");
    assert_eq!(retries(&app, "refused").await, 1.0);
    app.stop().await;
}
