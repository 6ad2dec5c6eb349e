//! What servers turn away with a status: counted where the operator wants that, also when the same
//! status makes the router find out anew what the server speaks.

use axum::routing::{get, post};
use http::StatusCode;
use tokio::net::TcpListener;

use super::*;

/// A server of the predecessor's dialect that answers every call with `status`; its address.
async fn predecessor(status: StatusCode) -> String {
    let tools = json!({ "tools": [{ "name": "tool", "input_schema": { "type": "object" } }] });
    let tools = move || {
        let tools = tools.clone();
        async move { axum::Json(tools) }
    };
    let routes = axum::Router::new()
        .route("/mcp/tools", get(tools))
        .route("/mcp", post(move || async move { status }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    format!("http://{address}")
}

#[tokio::test]
async fn refusals_count_where_they_are_wanted_to() {
    let settings = format!("{ONCE}, circuit_breaker_threshold: 3");
    for counts in [true, false] {
        let settings = format!("{settings}, count_http_4xx: {counts}");
        for code in [400, 404, 405] {
            let rig = Rig::modern(&["tool"]).await;
            rig.set("tool", Fault::status(code));
            let old = predecessor(StatusCode::from_u16(code).unwrap()).await;
            let old = format!("  old: {{url: \"{old}\", transport: jsonrpc, {settings}}}\n");
            let yaml = rig.yaml("up", &settings) + &old;
            let app = TestApp::start(&yaml).await.ready().await;
            for server in ["up", "old"] {
                for _ in 0..3 {
                    assert_eq!(breaker_state(&app.socket(), server).await, "closed", "{code}");
                    let json = app.http().call(&format!("{server}__tool"), "{}").await.json();
                    assert_eq!(json["outcome"], "refused", "{server} {code}: {json}");
                }
                let state = if counts { "open" } else { "closed" };
                assert_eq!(breaker_state(&app.socket(), server).await, state, "{server} {code}");
            }
            app.stop().await;
        }
    }
}

/// The predecessor repeated and counted them.
#[tokio::test]
async fn seed_mode_repeats_and_counts_what_is_not_found() {
    let rig = Rig::modern(&["tool"]).await;
    rig.set("tool", Fault::status(404));
    let settings =
        "retry_mode: seed, retry_delay: 100ms, retry_attempts: 3, circuit_breaker_threshold: 5";
    let app = TestApp::start(&rig.yaml("up", settings)).await.ready().await;
    for (attempts, state) in [(4, "closed"), (1, "open")] {
        let json = app.http().call("up__tool", "{}").await.json();
        assert_eq!(json["attempts"], attempts, "{json}");
        assert_eq!(breaker_state(&app.socket(), "up").await, state, "{json}");
    }
    assert_eq!(rig.counts("tool").requests, 5);
    app.stop().await;
}

/// A refusal that ends the connection for the calls to come does not excuse what fails on it.
#[tokio::test]
async fn a_refusal_excuses_no_failure_of_another_call() {
    let rig = Rig::modern(&["fails", "refused"]).await;
    let settings = format!("{ONCE}, circuit_breaker_threshold: 1");
    let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
    rig.set("fails", Fault::hold(Fault::Reset));
    rig.set("refused", Fault::status(404));
    let (http, since) = (app.http().clone(), Instant::now());
    let fails = tokio::spawn(async move { http.call("up__fails", "{}").await.json() });
    rig.call("fails", since).await;
    let json = app.http().call("up__refused", "{}").await.json();
    assert_eq!(json["outcome"], "refused", "{json}");
    // The next one has another connection.
    let discovered = rig.asked("server/discover");
    app.http().call("up__refused", "{}").await;
    assert!(rig.asked("server/discover") > discovered);
    rig.release();
    let json = fails.await.unwrap();
    assert_eq!(json["outcome"], "unknown", "{json}");
    assert_eq!(breaker_state(&app.socket(), "up").await, "open");
    app.stop().await;
}

/// A gateway that gave up waiting says so with a status below 500, and the tool may have run.
#[tokio::test]
async fn what_a_gateway_says_that_waited_in_vain_is_no_refusal() {
    for rig in [Rig::legacy(&["pay", "read"]).await, Rig::modern(&["pay", "read"]).await] {
        rig.annotate("read", json!({ "idempotentHint": true }));
        let settings = "retry_delay: 100ms, circuit_breaker_threshold: 1";
        let app = TestApp::start(&rig.yaml("up", settings)).await.ready().await;
        for code in [408, 460, 499] {
            rig.next("pay", &[Fault::status(code)]);
            let json = app.http().call("up__pay", &key(code)).await.json();
            let known = (&json["outcome"], &json["retriable"], &json["attempts"]);
            assert_eq!(known, (&"unknown".into(), &false.into(), &1.into()), "{code}: {json}");
            rig.next("read", &[Fault::status(code)]);
            let json = app.http().call("up__read", &key(code)).await.json();
            let known = (&json["success"], &json["attempts"]);
            assert_eq!(known, (&true.into(), &2.into()), "{code}: {json}");
            // An error with our id is the server's own.
            rig.next("pay", &[Fault::StatusError(code, -32000)]);
            let json = app.http().call("up__pay", &key(format!("{code} answered"))).await.json();
            assert!(json["error"].to_string().contains("the server says no"), "{code}: {json}");
        }
        assert_eq!(rig.executed_twice("pay"), Vec::<String>::new());
        assert_eq!(rig.counts("pay").requests, 6);
        assert_eq!(breaker_state(&app.socket(), "up").await, "closed");
        app.stop().await;
    }
}
