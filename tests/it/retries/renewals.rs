//! What is made good and sent again whatever the retry policy.

use super::*;

/// A server that wants another version did not run the call. The router asks what it speaks now and sends
/// the call once more, in every mode and whatever the tool.
#[tokio::test]
async fn a_call_refused_for_its_version_is_sent_once_more() {
    for mode in ["safe", "off"] {
        let rig = Rig::modern(&["pay"]).await;
        let settings = format!("retry_mode: {mode}, circuit_breaker_threshold: 1");
        let app = router(&rig, &settings).await;
        let discovered = rig.asked("server/discover");
        rig.next("pay", &[Fault::RpcError(-32022)]);
        let json = app.http().call("up__pay", &key("k")).await.json();
        assert_eq!((&json["success"], &json["attempts"]), (&true.into(), &2.into()), "{json}");
        assert!(rig.asked("server/discover") > discovered, "the version is agreed on anew");
        // Counted as what it is, an attempt after the first.
        assert_eq!(retries(&app).await, 1.0);
        // Once: what is refused again is.
        let requests = rig.counts("pay").requests;
        rig.set("pay", Fault::RpcError(-32022));
        let json = app.http().call("up__pay", &key("k")).await.json();
        assert_eq!((&json["success"], &json["outcome"]), (&false.into(), &"refused".into()));
        assert_eq!(rig.counts("pay").requests - requests, 2, "{json}");
        assert_eq!(breaker_state(&app.socket(), "up").await, "closed");
        app.stop().await;
    }
}
