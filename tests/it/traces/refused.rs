//! What is said of calls that were refused before there was one to route: what their requests said,
//! and what they were told.

use super::*;
use crate::support::Call;

/// `params` of a modern request with these members beside those of its trace.
fn modern_with(trace: &str, members: &str) -> String {
    let end = r#"clientCapabilities":{}"#;
    let params = modern_params(members);
    assert!(params.contains(end), "{params}");
    params.replace(end, &format!("{end}{}", meta(&parent(trace, "01"), "", "")))
}

fn post(http: &Http, params: &str) -> Call {
    let call = http.request(&Method::POST, "/mcp").body(legacy_body("tools/call", params));
    call.header("accept", "application/json, text/event-stream")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_says_what_its_request_said_and_what_it_was_told() {
    let rig = Rig::legacy(&["pay"]).await;
    let collector = Collector::start().await;
    let app = app(&rig, &collector, "").await;
    let client = Legacy::connect(app.http()).await;
    let trace = |n: usize| format!("{n}bf92f3577b34da6a3ce929d0e0e4736");
    let around = parent(OTHER, "01");
    // Its headers name another tool than its body.
    let params = modern_with(&trace(1), r#","name":"up__pay","arguments":{}"#);
    let mismatch = post(app.http(), &params)
        .header("mcp-protocol-version", MODERN)
        .header("mcp-method", "tools/call")
        .header("mcp-name", "up__other");
    // Without a name; in a session.
    let params = format!(r#"{{"_meta":{{"own":1{}}}}}"#, meta(&parent(&trace(2), "01"), "", ""));
    let malformed = post(app.http(), &params)
        .header("mcp-protocol-version", LEGACY)
        .header("mcp-session-id", &client.session);
    // A version that nobody speaks.
    let params = modern_with(&trace(3), r#","name":"up__pay""#);
    let unsupported = post(app.http(), &params).header("mcp-protocol-version", "2099-01-01");
    // At the door nothing is read but headers, and what is answered is no JSON-RPC.
    let door = post(&app.http().with_key("sy_wrong"), "{}")
        .header("mcp-protocol-version", MODERN)
        .header("traceparent", &parent(&trace(4), "01"));
    for (n, call, status, version, id, code) in [
        (1, mismatch, 400, some(MODERN), some("7"), some("-32020")),
        (2, malformed, 200, some(LEGACY), some("7"), some("-32602")),
        (3, unsupported, 400, None, some("7"), some("-32022")),
        (4, door, 401, some(MODERN), None, None),
    ] {
        let call = if n == 4 { call } else { call.header("traceparent", &around) };
        let answer = call.send().await.expect(status);
        if let Some(code) = &code {
            assert_eq!(answer.json()["error"]["code"].to_string(), *code, "{n}");
        }
        let [server] = &collector.trace(&trace(n), 1).await[..] else { unreachable!() };
        assert_eq!(server.parent(), SPAN, "{n}");
        assert_eq!(server.get("mcp.protocol.version"), version, "{n}");
        assert_eq!(server.get("jsonrpc.request.id"), id, "{n}");
        assert_eq!(server.get("rpc.response.status_code"), code, "{n}");
        assert_eq!(server.get("mcp.session.id").is_some(), n == 2, "{n}");
        let entry = app.entry_of(&answer).await;
        assert_eq!(entry["trace_id"], trace(n).as_str());
        assert_eq!(entry["http_status"], status, "{n}");
        if let Some(version) = version {
            assert_eq!(entry["protocol_version"], version.as_str(), "{n}");
        }
        if n == 2 {
            assert_eq!(entry["client_name"], "it", "{entry}");
            assert_eq!(server.get("mcp.session.id").as_deref(), entry["session"].as_str());
        }
    }
    assert!(collector.spans().iter().all(|got| got.trace() != OTHER));
    app.stop().await;
}
