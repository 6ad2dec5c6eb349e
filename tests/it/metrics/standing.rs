//! Metrics that say how a server, its tools and the ledger's queue stand.

use std::time::Duration;

use crate::support::{Fault, Rig, SOON, TestApp, breaker_state, eventually, total};

/// In which time what is looked at on a timer is looked at again.
const LOOK: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_tool_that_was_only_refused_is_shown_with_its_server() {
    let rig = Rig::legacy(&["read"]).await;
    let app = TestApp::start(&rig.yaml("up", "")).await.ready().await;
    let socket = app.socket();
    let reason = r#"{"reason":"to see it refuse"}"#;
    socket.post("/mcp/circuit-breakers/up/open", reason).await.expect(200);
    app.http().call("up__read", "{}").await.expect(503);
    app.http().call("up__nothing", "{}").await.expect(404);
    let served = async |labels: &[&str]| {
        total(&socket, "mcp_server_operation_duration_seconds_count", labels).await
    };
    let refused =
        [r#"server="up""#, r#"gen_ai_tool_name="up__read""#, r#"error_type="MCPCircuitOpenError""#];
    assert_eq!(served(&refused).await, 1.0);
    let unknown = [r#"server="""#, r#"gen_ai_tool_name="_other""#];
    assert_eq!(served(&unknown).await, 1.0);
    assert_eq!(total(&socket, "mcp_client_operation_duration_seconds_count", &[]).await, 0.0);
    app.stop().await;
}

#[tokio::test]
async fn a_list_that_cannot_be_had_is_no_refresh_though_calls_are_answered() {
    let rig = Rig::legacy(&["read"]).await;
    let settings = format!("health_check_interval: 1s\n{}", rig.yaml("up", ""));
    let app = TestApp::start(&settings).await.ready().await;
    let at = async |what: &str| {
        let sample = format!("switchyard_upstream_last_{what}_timestamp_seconds{{server=\"up\"}}");
        app.metric(&sample).await.unwrap()
    };
    assert!(at("refresh").await > 1.7e9);
    rig.set("tools/list", Fault::status(500));
    eventually(SOON, "its list could not be had", || async {
        let stale = app.metric(r#"switchyard_upstream_tools{server="up",status="stale"}"#).await?;
        (stale == 1.0).then_some(())
    })
    .await;
    let refreshed = at("refresh").await;
    eventually(SOON, "it answered a call a while later", || async {
        app.http().call("up__read", "{}").await.expect(200);
        (at("success").await >= refreshed + 2.0).then_some(())
    })
    .await;
    assert_eq!(at("refresh").await, refreshed);
    rig.set("tools/list", Fault::None);
    eventually(SOON, "its list could be had again", || async {
        (at("refresh").await > refreshed).then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn open_breakers_of_tools_are_counted_while_they_decide_over_calls() {
    let rig = Rig::legacy(&["breaks", "cuts", "works"]).await;
    let settings = "retry_mode: off, circuit_breaker_threshold: 1, circuit_breaker_timeout: 10m, breaker_scope: tool";
    let app = TestApp::start(&rig.yaml("up", settings)).await.ready().await;
    let shows = async |tools: f64| {
        eventually(SOON, &format!("{tools} are open"), || async {
            let open = app.metric(r#"switchyard_breaker_tools_open{server="up"}"#).await?;
            (open == tools).then_some(())
        })
        .await;
    };
    shows(0.0).await;
    for tool in ["breaks", "cuts"] {
        rig.set(tool, Fault::Reset);
        app.http().call(&format!("up__{tool}"), "{}").await.expect(200);
    }
    app.http().call("up__works", "{}").await.expect(200);
    shows(2.0).await;
    assert_eq!(breaker_state(&app.socket(), "up").await, "closed");
    // One whose tool is gone keeps nobody waiting.
    rig.forget("cuts");
    app.socket().post("/mcp/servers/up/refresh", "").await.expect(200);
    shows(1.0).await;
    app.stop().await;
}

#[tokio::test]
async fn calls_under_way_hold_places_in_the_queue_of_the_ledger() {
    let rig = Rig::legacy(&["read"]).await;
    let app = TestApp::start(&rig.yaml("up", "timeout: 90s")).await.ready().await;
    let shows = async |places: f64| {
        eventually(LOOK, &format!("{places} places are taken"), || async {
            let taken = app.metric("switchyard_audit_queue_places").await?;
            let waiting = app.metric("switchyard_audit_queue_depth").await?;
            (taken == places && waiting == 0.0).then_some(())
        })
        .await;
    };
    shows(0.0).await;
    let limit = app.metric("switchyard_audit_queue_limit_bytes").await;
    assert_eq!(limit, Some(f64::from(64 << 20)));
    rig.set("read", Fault::hold(Fault::None));
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let http = app.http().clone();
            tokio::spawn(async move { http.call("up__read", "{}").await.status })
        })
        .collect();
    shows(3.0).await;
    rig.set("read", Fault::None);
    rig.release();
    for call in calls {
        assert_eq!(call.await.unwrap(), 200);
    }
    shows(0.0).await;
    assert_eq!(app.metric("switchyard_audit_queue_bytes").await, Some(0.0));
    app.stop().await;
}
