//! Requests that are no calls: forwarded to their server, they too ask its breaker.

use super::*;
use crate::support::Speaker;

/// One of them may be the probe, and without an answer holds the breaker half-open for its lease and no
/// longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forwarded_request_that_hangs_holds_the_breaker_for_its_lease() {
    let rig = Rig::legacy(&["probe"]).await;
    rig.offer_resource();
    let settings = format!(
        "{ONCE}, circuit_breaker_threshold: 1, circuit_breaker_timeout: 400ms, timeout: 80s, \
         half_open_lease: 3s"
    );
    let app = TestApp::start(&rig.yaml("up", &settings)).await.ready().await;
    let socket = app.socket();
    let client = Speaker::legacy(&app, json!({})).await;
    let uri = eventually(SOON, "the resource is listed", || async {
        let list = client.request(&json!(0), "resources/list", json!({})).send().await.json();
        list["result"]["resources"][0]["uri"].as_str().map(str::to_owned)
    })
    .await;
    let read =
        move |client: &Speaker| client.request(&json!(1), "resources/read", json!({ "uri": uri }));
    let json = read(&client).send().await.json();
    assert_eq!(json["result"]["contents"][0]["text"], "one", "{json}");
    trip_app(&app, &rig, "probe").await;
    rig.set("resources/read", Fault::hold(Fault::None));
    let asked = rig.asked("resources/read");
    let probe = tokio::spawn(async move {
        loop {
            let json = read(&client).send().await.json();
            if json["error"]["data"]["error_code"] != "MCPCircuitOpenError" {
                return json;
            }
        }
    });
    eventually(SOON, "it is let through", || async {
        (rig.asked("resources/read") > asked).then_some(())
    })
    .await;
    refused(&app.http().call("up__probe", &key("x")).await, &["breaker_probing"]);
    eventually(SOON, "the lease is over", || async {
        (breaker_state(&socket, "up").await == "open").then_some(())
    })
    .await;
    let lease = lease_that_ended(&app).await;
    assert!((2990..=3050).contains(&lease), "{lease} ms");
    assert_eq!(rig.counts("probe").requests, 1);
    // The next probe closes it, and what the first comes to is no matter.
    rig.set("probe", Fault::None);
    let answer = persistent(app.http(), "up__probe").await.unwrap();
    assert_eq!(answer.json()["success"], true, "{}", answer.text());
    let before = transitions(&socket, "up", &[]).await;
    assert!(!probe.is_finished());
    rig.release();
    let json = probe.await.unwrap();
    assert_eq!(json["result"]["contents"][0]["text"], "one", "{json}");
    assert_eq!(breaker_state(&socket, "up").await, "closed");
    assert_eq!(transitions(&socket, "up", &[]).await, before);
    app.stop().await;
}
