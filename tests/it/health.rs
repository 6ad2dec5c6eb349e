//! Whether servers are there, as operators see it.

use super::support::{Fault, Rig, SOON, TestApp, eventually};

#[tokio::test]
async fn a_server_that_does_not_let_us_in_is_up_with_a_problem() {
    let rig = Rig::legacy(&["read"]).await;
    for method in ["initialize", "server/discover"] {
        rig.set(method, Fault::bare_status(401));
    }
    let app = TestApp::start(&rig.yaml("up", "retry_mode: off")).await;
    eventually(SOON, "it is up and says why nothing is listed", || async {
        let server = app.http().server("up").await?;
        let told = server["last_error"].as_str()?.contains("401");
        (server["state"] == "up" && told).then_some(())
    })
    .await;
    assert_eq!(app.metric("switchyard_upstream_up{server=\"up\"}").await, Some(1.0));
    let server = app.http().server("up").await.unwrap();
    assert_eq!(server["breaker"], "closed", "{server}");
    // Asked now, it says the same.
    let health = app.http().get("/mcp/health").await.expect(200).json();
    let asked = &health["servers"][0];
    assert_eq!((&health["status"], &asked["state"]), (&"ok".into(), &"up".into()), "{health}");
    assert_eq!(asked["healthy"], true, "{health}");
    assert!(asked["error"].as_str().unwrap().contains("401"), "{health}");
    // It lets us in again.
    for method in ["initialize", "server/discover"] {
        rig.set(method, Fault::None);
    }
    app.socket().post("/mcp/servers/up/reconnect", "").await.expect(200);
    let server = app.http().server("up").await.unwrap();
    assert_eq!((&server["state"], &server["tools"]), (&"up".into(), &1.into()), "{server}");
    assert!(server["last_error"].is_null(), "{server}");
    app.stop().await;
}

/// The same of a server that turns away what it is asked over a connection that there is.
#[tokio::test]
async fn a_server_that_no_longer_lets_us_in_is_healthy_with_an_error() {
    let rig = Rig::legacy(&["read"]).await;
    let app = TestApp::start(&rig.yaml("up", "")).await.ready().await;
    for (code, healthy) in [(401, true), (403, true), (500, false), (404, false)] {
        rig.set("ping", Fault::bare_status(code));
        let health = app.http().get("/mcp/health").await.expect(200).json();
        let asked = &health["servers"][0];
        assert_eq!(asked["healthy"], healthy, "{health}");
        assert_eq!(asked["state"], if healthy { "up" } else { "down" }, "{health}");
        assert_eq!(health["status"], if healthy { "ok" } else { "degraded" }, "{health}");
        assert!(asked["error"].as_str().unwrap().contains(&code.to_string()), "{health}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_new_connection_is_opened_when_an_operator_asks_for_it() {
    let rig = Rig::legacy(&["read"]).await;
    let app = TestApp::start(&rig.yaml("up", "")).await.ready().await;
    let before = rig.asked("initialize");
    let answer = app.socket().post("/mcp/servers/up/reconnect", "").await.expect(200).json();
    assert_eq!(answer["state"], "up", "{answer}");
    assert!(rig.asked("initialize") > before);
    let metric = "switchyard_upstream_reconnects_total{reason=\"admin\",server=\"up\"}";
    eventually(SOON, "it is counted", || async {
        (app.metric(metric).await? == 1.0).then_some(())
    })
    .await;
    app.socket().post("/mcp/servers/nobody/reconnect", "").await.expect(404);
    app.http().post("/mcp/servers/up/reconnect", "").await.expect(403);
    app.stop().await;
}
