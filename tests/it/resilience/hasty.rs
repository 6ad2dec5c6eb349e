//! Callers that allow less time than their server is promised: what they wait for in vain says something
//! of a server that answers nobody, and nothing of one that does.

use tokio::net::{TcpSocket, TcpStream};

use super::*;

async fn call_within(http: &Http, tool: &str, timeout: &str) -> Value {
    let body = format!(r#"{{"tool_name":"up__{tool}","arguments":{{}},"timeout":{timeout}}}"#);
    http.post("/mcp/call", body).await.json()
}

/// A server that hangs opens its breaker, however little of its time callers allow; so does a probe
/// with such a limit, and it closes the breaker when it is answered.
#[tokio::test]
async fn a_server_that_answers_nobody_opens_the_breaker_for_callers_in_a_hurry() {
    let rig = Rig::legacy(&["tool"]).await;
    let settings = format!("{ONCE}, circuit_breaker_threshold: 3, circuit_breaker_timeout: 300ms");
    let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
    let socket = app.socket();
    rig.set("tool", Fault::HangBeforeHeaders);
    for _ in 0..3 {
        assert_eq!(breaker_state(&socket, "up").await, "closed");
        let json = call_within(app.http(), "tool", "2").await;
        assert_eq!(json["reason"], "timeout", "{json}");
    }
    assert_eq!(transitions(&socket, "up", &["reason=\"failures\""]).await, 1.0);
    // Each time the open period is over, one call more is all that the server gets.
    let probe = async || {
        eventually(SOON, "a probe is let through", || async {
            let json = call_within(app.http(), "tool", "2").await;
            (json["error_code"] != "MCPCircuitOpenError").then_some(json)
        })
        .await
    };
    for failed in [1.0, 2.0] {
        let json = probe().await;
        assert_eq!(json["reason"], "timeout", "{json}");
        assert_eq!(transitions(&socket, "up", &["reason=\"probe_failed\""]).await, failed);
    }
    assert_eq!(rig.counts("tool").requests, 5);
    rig.set("tool", Fault::None);
    let json = probe().await;
    assert_eq!(json["success"], true, "{json}");
    assert_eq!(breaker_state(&socket, "up").await, "closed");
    app.stop().await;
}

/// One failure would open it; a server that answers others meanwhile has none.
#[tokio::test]
async fn a_caller_in_a_hurry_says_nothing_of_a_server_that_answers_others() {
    let rig = Rig::legacy(&["slow", "quick"]).await;
    let settings = format!("{ONCE}, circuit_breaker_threshold: 1");
    let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
    rig.set("slow", Fault::HangBeforeHeaders);
    for answer in [Fault::None, Fault::RpcError(-32000)] {
        rig.set("quick", answer);
        let (http, since) = (app.http().clone(), Instant::now());
        let slow = tokio::spawn(async move { call_within(&http, "slow", "4").await });
        rig.call("slow", since).await;
        app.http().call("up__quick", "{}").await;
        assert!(!slow.is_finished());
        let json = slow.await.unwrap();
        assert_eq!(json["reason"], "timeout", "{json}");
        assert_eq!(breaker_state(&app.socket(), "up").await, "closed");
    }
    app.stop().await;
}

/// With a breaker for each tool it is the tool's own answers that count.
#[tokio::test]
async fn a_tool_that_hangs_opens_its_own_breaker_for_callers_in_a_hurry() {
    let rig = Rig::legacy(&["slow", "quick"]).await;
    let settings = format!("{ONCE}, circuit_breaker_threshold: 1, breaker_scope: tool");
    let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
    rig.set("slow", Fault::HangBeforeHeaders);
    let (http, since) = (app.http().clone(), Instant::now());
    let slow = tokio::spawn(async move { call_within(&http, "slow", "2").await });
    rig.call("slow", since).await;
    assert_eq!(app.http().call("up__quick", "{}").await.json()["success"], true);
    assert_eq!(slow.await.unwrap()["reason"], "timeout");
    refused(&app.http().call("up__slow", "{}").await, &["breaker_open"]);
    assert_eq!(app.http().call("up__quick", "{}").await.json()["success"], true);
    assert_eq!(breaker_state(&app.socket(), "up").await, "closed");
    app.stop().await;
}

/// Neither does a connection that takes longer than a caller in a hurry allows, and the server is not
/// down for it.
#[tokio::test]
async fn a_connection_that_a_caller_in_a_hurry_does_not_wait_for_is_no_failure() {
    let rig = Rig::legacy(&["tool"]).await;
    let settings = format!("{ONCE}, circuit_breaker_threshold: 1");
    let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
    rig.down();
    eventually(SOON, "it is gone", || async { (rig.open() == 0).then_some(()) }).await;
    // Nobody accepts there, and as many wait for it as may.
    let address = format!("{}:{}", rig.host(), rig.port()).parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    let _listener = socket.listen(1).unwrap();
    let mut fillers = Vec::new();
    while let Ok(Ok(filler)) = tokio::time::timeout(millis(300), TcpStream::connect(address)).await
    {
        fillers.push(filler);
        assert!(fillers.len() < 100);
    }
    for _ in 0..5 {
        let json = call_within(app.http(), "tool", "0.05").await;
        assert_eq!((&json["success"], &json["outcome"]), (&false.into(), &"not_sent".into()));
    }
    assert_eq!(breaker_state(&app.socket(), "up").await, "closed");
    let server = app.http().server("up").await.unwrap();
    assert_eq!((&server["state"], &server["last_error"]), (&"up".into(), &Value::Null), "{server}");
    // With more time it is one.
    let json = call_within(app.http(), "tool", "3").await;
    assert_eq!(json["outcome"], "not_sent", "{json}");
    assert_eq!(breaker_state(&app.socket(), "up").await, "open");
    app.stop().await;
}
