//! What counts as a sign of life of a server that is asked for one before a caller's tool.

use super::*;

const FRAGILE: &str = "circuit_breaker_threshold: 1, circuit_breaker_timeout: 200ms";

/// A server that turns the question away lives. With nothing else to go by, its breaker would stay
/// half-open for ever.
#[tokio::test]
async fn a_status_that_turns_the_question_away_proves_life() {
    for (rig, sign, codes) in [
        (Rig::legacy(&["tool"]).await, "ping", &[400, 403, 404, 405, 429][..]),
        (Rig::modern(&["tool"]).await, "server/discover", &[404]),
    ] {
        let settings = format!("{ONCE}, {FRAGILE}, breaker_probe: active");
        let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
        for code in codes {
            trip_app(&app, &rig, "tool").await;
            rig.set("tool", Fault::None);
            rig.set(sign, Fault::status(*code));
            let asked = rig.asked(sign);
            let answer = persistent(app.http(), "up__tool").await.unwrap();
            assert_eq!(answer.json()["success"], true, "{code}: {}", answer.text());
            assert!(rig.asked(sign) > asked, "{code}");
            assert_eq!(breaker_state(&app.socket(), "up").await, "closed", "{code}");
        }
        app.stop().await;
    }
}

/// The same where tools have breakers of their own, and the server's is decided by nothing else.
#[tokio::test]
async fn a_status_that_turns_the_question_away_closes_the_servers_breaker() {
    let rig = Rig::legacy(&["tool"]).await;
    let settings = format!("{ONCE}, {FRAGILE}, breaker_scope: tool");
    let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
    rig.set("ping", Fault::status(404));
    rig.down();
    eventually(SOON, "the breaker opens", || async {
        app.http().call("up__tool", "{}").await;
        (breaker_state(&app.socket(), "up").await == "open").then_some(())
    })
    .await;
    rig.up();
    let answer = persistent(app.http(), "up__tool").await.unwrap();
    assert_eq!(answer.json()["success"], true, "{}", answer.text());
    assert_eq!(breaker_state(&app.socket(), "up").await, "closed");
    app.stop().await;
}
