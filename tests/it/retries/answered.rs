//! Errors that servers put into an answer and call their own failure: HTTP 5xx around a JSON-RPC error.

use super::*;

async fn failures(app: &TestApp) -> u64 {
    let view = app.http().get("/mcp/circuit-breakers/up").await.expect(200).json();
    view["failures"].as_u64().unwrap()
}

/// They are failures to the breaker and may be repeated where that is safe; what callers get in the end is
/// what the server said.
#[tokio::test]
async fn an_error_with_a_5xx_is_a_failure_and_still_the_answer() {
    for rig in rigs(&["pay", "read"]).await {
        rig.annotate("read", idempotent());
        let settings = "retry_delay: 100ms, retry_attempts: 2, circuit_breaker_threshold: 7";
        let app = router(&rig, settings).await;
        let client = Legacy::connect(app.http()).await;
        // What may have run is not made to run again.
        rig.next("pay", &[Fault::StatusError(500, -32603)]);
        let answer = app.http().call("up__pay", &key("k")).await;
        let json = answer.json();
        assert_eq!((&json["success"], &json["attempts"]), (&false.into(), &1.into()), "{json}");
        assert!(json["error"].to_string().contains("the server says no"), "{json}");
        let entry = app.entry_of(&answer).await;
        assert_eq!(entry["outcome"], "rpc_error", "{entry}");
        assert_eq!(failures(&app).await, 1);
        rig.next("pay", &[Fault::StatusError(503, -32000)]);
        let json = client.call("up__pay", "{}").await.json();
        let error = (&json["error"]["code"], &json["error"]["message"]);
        assert_eq!(error, (&(-32000).into(), &"the server says no".into()), "{json}");
        assert_eq!(failures(&app).await, 2);
        assert_eq!(rig.counts("pay").requests, 2);
        // A tool that may be repeated is, and what comes last is what counts.
        rig.next("read", &[Fault::StatusError(502, -32000)]);
        let json = app.http().call("up__read", "{}").await.json();
        assert_eq!((&json["success"], &json["attempts"]), (&true.into(), &2.into()), "{json}");
        assert_eq!(retries_after(&app, "ambiguous").await, 1.0);
        assert_eq!(failures(&app).await, 0);
        rig.set("read", Fault::StatusError(500, -32603));
        let json = client.call("up__read", "{}").await.json();
        assert_eq!(json["error"]["code"], -32603, "{json}");
        assert_eq!(rig.counts("read").requests, 2 + 3);
        assert_eq!(failures(&app).await, 3);
        // The request's own fault is not the server's.
        for code in [-32700, -32600, -32601, -32602] {
            rig.next("read", &[Fault::StatusError(500, code)]);
            let json = client.call("up__read", "{}").await.json();
            assert_eq!(json["error"]["code"], code, "{json}");
        }
        assert_eq!((rig.counts("read").requests, failures(&app).await), (2 + 3 + 4, 3));
        // Others are, until the breaker is open.
        rig.set("pay", Fault::StatusError(500, -32603));
        for left in (0..4).rev() {
            let json = client.call("up__pay", "{}").await.json();
            assert_eq!(json["error"]["code"], -32603, "{json}");
            let state = if left == 0 { "open" } else { "closed" };
            assert_eq!(breaker_state(&app.socket(), "up").await, state);
        }
        app.stop().await;
    }
}

/// Where a 503 is known to be a refusal it is one also with an error in it.
#[tokio::test]
async fn an_error_with_a_503_is_repeated_where_that_is_a_refusal() {
    let rig = Rig::legacy(&["pay"]).await;
    let app = router(&rig, &format!("{OFTEN}, unavailable_is_refusal: true")).await;
    rig.next("pay", &[Fault::StatusError(503, -32000)]);
    let json = app.http().call("up__pay", "{}").await.json();
    assert_eq!((&json["success"], &json["attempts"]), (&true.into(), &2.into()), "{json}");
    app.stop().await;
}

/// The codes by which version and headers are refused say nothing beside a 5xx: the tool may have run.
#[tokio::test]
async fn an_error_of_the_protocol_with_a_5xx_is_no_refusal() {
    let rig = Rig::modern(&["pay"]).await;
    let app = router(&rig, OFTEN).await;
    let discovered = rig.asked("server/discover");
    let faults = [(500, -32022), (503, -32022), (500, -32020), (502, -32020)];
    for (status, code) in faults {
        rig.next("pay", &[Fault::StatusError(status, code)]);
        let answer = app.http().call("up__pay", &key(format!("{status} {code}"))).await;
        let json = answer.json();
        assert_eq!((&json["success"], &json["attempts"]), (&false.into(), &1.into()), "{json}");
        assert!(json["error"].to_string().contains("the server says no"), "{json}");
        let entry = app.entry_of(&answer).await;
        assert_eq!(entry["attempt_list"][0]["failure"], "ambiguous", "{entry}");
    }
    assert_eq!(failures(&app).await, faults.len() as u64);
    each_ran_once(&rig, "pay", faults.len());
    assert_eq!(retries(&app).await, 0.0);
    // What the server speaks is agreed on anew all the same, for the calls after it.
    let json = app.http().call("up__pay", &key("after")).await.json();
    assert_eq!(json["success"], true, "{json}");
    assert!(rig.asked("server/discover") >= discovered + faults.len() as u64);
    app.stop().await;
}
