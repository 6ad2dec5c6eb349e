//! Clients of both eras in front of upstreams of both eras, and what each era's specification says
//! about requests that are wrong.

use http::Method;
use serde_json::{Value, json};
use switchyard::cli::demo_upstream::{Eras, Options, Upstream};

use crate::support::{
    Answer, LEGACY, Legacy, MODERN, TestApp, legacy_body, modern, modern_params, stdio, upstream,
};

const HI: &str = r#"{"text":"hi"}"#;

async fn app_with(eras: Eras) -> (TestApp, Upstream) {
    let up = upstream(Options { eras, record: true, ..Options::default() }).await;
    let yaml = format!("mcp_servers:\n  up: {{url: \"{}\"}}\n", up.url());
    (TestApp::start(&yaml).await.ready().await, up)
}

async fn app() -> (TestApp, Upstream) {
    app_with(Eras::Both).await
}

#[track_caller]
fn error_of(answer: &Answer) -> (u16, i64) {
    (answer.status, answer.json()["error"]["code"].as_i64().expect("an error"))
}

#[tokio::test]
async fn every_client_era_meets_every_upstream_era() {
    for (eras, spoken) in [(Eras::Legacy, LEGACY), (Eras::Modern, MODERN)] {
        let (app, up) = app_with(eras).await;
        let legacy = Legacy::connect(app.http()).await;
        let answer = legacy.call("up__echo", HI).await.expect(200).json();
        assert_eq!(answer["result"]["content"][0]["text"], "hi");
        let arguments = format!(r#","arguments":{HI}"#);
        let answer = modern(app.http(), "tools/call", Some("up__echo"), &arguments).await;
        let answer = answer.expect(200).json();
        assert_eq!(answer["result"]["content"][0]["text"], "hi");
        assert_eq!(answer["result"]["resultType"], "complete");
        let server = app.http().server("up").await.unwrap();
        assert_eq!(server["protocol_version"], spoken);
        for seen in up.stats().seen_method("tools/call") {
            assert_eq!(seen.headers["mcp-protocol-version"], spoken);
        }
        app.stop().await;
    }
}

#[tokio::test]
async fn initialize_agrees_on_a_legacy_version_and_nothing_else() {
    let (app, _up) = app().await;
    for (asked, agreed) in [
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        (LEGACY, LEGACY),
        (MODERN, LEGACY),
        ("2024-11-05", "2024-11-05"),
        ("1999-01-01", LEGACY),
    ] {
        let params = format!(
            r#"{{"protocolVersion":"{asked}","capabilities":{{}},"clientInfo":{{"name":"it","version":"1"}}}}"#
        );
        for header in [None, Some(asked)] {
            let call = app.http().request(&Method::POST, "/mcp");
            let call = match header {
                Some(version) => call.header("mcp-protocol-version", version),
                None => call,
            };
            let answer = call.body(legacy_body("initialize", &params)).send().await.expect(200);
            let result = answer.json()["result"].clone();
            assert_eq!(result["protocolVersion"], agreed, "asked for {asked}");
            assert_eq!(result["capabilities"]["tools"], json!({ "listChanged": true }));
            assert_eq!(result["serverInfo"]["name"], "switchyard");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_session_is_needed_known_and_ended() {
    let (app, _up) = app().await;
    let http = app.http();
    let without = http.post("/mcp", legacy_body("ping", "{}")).await;
    assert_eq!(without.status, 400, "{}", without.text());
    let stranger = Legacy { http: http.clone(), path: "/mcp".to_owned(), session: "0".repeat(32) };
    assert_eq!(stranger.request("ping", "{}").await.status, 404);
    assert_eq!(stranger.call("up__echo", HI).await.status, 404);

    let client = Legacy::connect(http).await;
    assert_eq!(client.request("ping", "{}").await.expect(200).json()["result"], json!({}));
    let end = || http.request(&Method::DELETE, "/mcp").header("mcp-session-id", &client.session);
    end().send().await.expect(204);
    end().send().await.expect(404);
    assert_eq!(client.request("ping", "{}").await.status, 404);
    http.delete("/mcp").await.expect(405);
    http.get("/mcp").await.expect(405);
    app.stop().await;
}

#[tokio::test]
async fn a_session_belongs_to_the_key_that_opened_it() {
    let (app, _up) = app().await;
    let mut keys = Vec::new();
    for name in ["one", "two"] {
        let made = app.socket().post("/admin/keys", format!(r#"{{"name":"{name}"}}"#)).await;
        keys.push(made.expect(201).json()["key"].as_str().unwrap().to_owned());
    }
    let one = Legacy::connect(&app.http().with_key(&keys[0])).await;
    one.request("ping", "{}").await.expect(200);
    let two = Legacy { http: app.http().with_key(&keys[1]), ..one.clone() };
    two.request("ping", "{}").await.expect(404);
    app.stop().await;
}

#[tokio::test]
async fn notifications_are_accepted() {
    let (app, _up) = app().await;
    let client = Legacy::connect(app.http()).await;
    for method in ["notifications/initialized", "notifications/cancelled", "notifications/x"] {
        let body = format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{{"requestId":9}}}}"#);
        let answer = client.send(body.clone()).await.expect(202);
        assert!(answer.body.is_empty());
        let answer = app
            .http()
            .request(&Method::POST, "/mcp")
            .header("mcp-protocol-version", MODERN)
            .header("mcp-method", method)
            .body(body)
            .send()
            .await
            .expect(202);
        assert!(answer.body.is_empty());
    }
    app.stop().await;
}

/// A modern request whose headers or parameters can be changed one by one.
async fn modern_with(app: &TestApp, headers: &[(&str, Option<&str>)], params: &str) -> Answer {
    let mut call = app
        .http()
        .request(&Method::POST, "/mcp")
        .header("mcp-protocol-version", MODERN)
        .header("mcp-method", "tools/call")
        .header("mcp-name", "up__echo");
    for (name, value) in headers {
        call = match value {
            Some(value) => call.header(name, value),
            None => call.without(name),
        };
    }
    call.body(legacy_body("tools/call", params)).send().await
}

#[tokio::test]
async fn headers_and_body_of_a_modern_request_must_agree() {
    let (app, up) = app().await;
    let good = modern_params(&format!(r#","name":"up__echo","arguments":{HI}"#));
    modern_with(&app, &[], &good).await.expect(200);
    modern_with(&app, &[("mcp-name", Some("=?base64?dXBfX2VjaG8=?="))], &good).await.expect(200);
    let before = up.stats().calls();
    for headers in [
        [("mcp-method", None)],
        [("mcp-method", Some("tools/list"))],
        [("mcp-name", None)],
        [("mcp-name", Some("up__add"))],
        [("mcp-name", Some("=?base64?!!?="))],
        [("mcp-protocol-version", None)],
    ] {
        let answer = modern_with(&app, &headers, &good).await;
        assert_eq!(error_of(&answer), (400, -32020), "{headers:?}");
    }
    let other = good.replace(MODERN, LEGACY);
    assert_eq!(error_of(&modern_with(&app, &[], &other).await), (400, -32020));
    assert_eq!(up.stats().calls(), before, "nothing was sent");
    app.stop().await;
}

#[tokio::test]
async fn an_unknown_version_is_answered_with_the_known_ones() {
    let (app, _up) = app().await;
    let good = modern_params(&format!(r#","name":"up__echo","arguments":{HI}"#));
    let unknown = good.replace(MODERN, "2031-01-01");
    let both = [("mcp-protocol-version", Some("2031-01-01"))];
    for answer in [
        modern_with(&app, &both, &unknown).await,
        modern_with(&app, &both, &format!(r#"{{"name":"up__echo","arguments":{HI}}}"#)).await,
    ] {
        assert_eq!(error_of(&answer), (400, -32022));
        let data = answer.json()["error"]["data"].clone();
        assert_eq!(data["requested"], "2031-01-01");
        assert_eq!(data["supported"], json!([MODERN, LEGACY, "2025-06-18", "2025-03-26"]));
        assert_eq!(answer.json()["id"], 7);
    }
    // Headers and body are compared before either is judged.
    assert_eq!(error_of(&modern_with(&app, &[], &unknown).await), (400, -32020));
    app.stop().await;
}

#[tokio::test]
async fn a_modern_request_must_say_its_version_and_capabilities() {
    let (app, _up) = app().await;
    let call = format!(r#""name":"up__echo","arguments":{HI}"#);
    let version = format!(r#""io.modelcontextprotocol/protocolVersion":"{MODERN}""#);
    for params in [
        format!("{{{call}}}"),
        format!(r#"{{"_meta":{{}},{call}}}"#),
        format!(r#"{{"_meta":{{{version}}},{call}}}"#),
        format!(r#"{{"_meta":7,{call}}}"#),
    ] {
        let answer = modern_with(&app, &[], &params).await;
        assert_eq!(error_of(&answer), (400, -32602), "{params}");
    }
    app.stop().await;
}

#[tokio::test]
async fn an_unknown_method_is_404_in_the_modern_era_and_200_before() {
    let (app, _up) = app().await;
    let client = Legacy::connect(app.http()).await;
    for method in ["resources/frobnicate", "tools/Call", "server/discover"] {
        let answer = client.request(method, "{}").await;
        assert_eq!(error_of(&answer), (200, -32601), "{method}");
    }
    for method in ["resources/frobnicate", "tools/Call", "ping"] {
        let answer = modern(app.http(), method, None, "").await;
        assert_eq!(error_of(&answer), (404, -32601), "{method}");
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_no_single_request_is_refused() {
    let (app, up) = app().await;
    let client = Legacy::connect(app.http()).await;
    let before = up.stats().calls();
    let one = legacy_body("tools/call", &format!(r#"{{"name":"up__echo","arguments":{HI}}}"#));
    for (body, code) in [
        (format!("[{one},{one}]"), -32600),
        (format!("[{one}]"), -32600),
        ("[]".to_owned(), -32600),
        ("7".to_owned(), -32600),
        (r#"{"jsonrpc":"1.0","id":7,"method":"ping"}"#.to_owned(), -32600),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#.to_owned(), -32600),
        (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#.to_owned(), -32600),
        (r#"{"jsonrpc":"2.0","id":7,"id":8,"method":"ping"}"#.to_owned(), -32600),
        (format!("{one} {one}"), -32700),
        (one[..one.len() - 1].to_owned(), -32700),
        ("not json".to_owned(), -32700),
        (String::new(), -32700),
    ] {
        let answer = client.send(body.clone()).await;
        assert_eq!(error_of(&answer), (400, code), "{body}");
    }
    assert_eq!(up.stats().calls(), before);
    app.stop().await;
}

#[tokio::test]
async fn the_content_type_must_be_json_and_an_answer_acceptable() {
    let (app, _up) = app().await;
    let body = legacy_body("tools/list", "{}");
    let call = || app.http().request(&Method::POST, "/mcp");
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/json5"] {
        call().header("content-type", kind).body(body.clone()).send().await.expect(415);
    }
    call().body(body.clone()).without("content-type").send().await.expect(415);
    let kind = "Application/JSON; charset=utf-8";
    call().header("content-type", kind).body(body.clone()).send().await.expect(200);
    call().header("accept", "text/html").body(body.clone()).send().await.expect(406);
    for accepted in ["*/*", "application/json", "text/event-stream, application/json;q=0.5"] {
        call().header("accept", accepted).body(body.clone()).send().await.expect(200);
    }
    app.stop().await;
}

#[tokio::test]
async fn server_discover_says_what_is_spoken() {
    let (app, _up) = app().await;
    let result = modern(app.http(), "server/discover", None, "").await.expect(200).json();
    let result = result["result"].clone();
    assert_eq!(result["supportedVersions"], json!([MODERN, LEGACY, "2025-06-18", "2025-03-26"]));
    assert_eq!(result["resultType"], "complete");
    assert_eq!(result["capabilities"]["tools"], json!({ "listChanged": true }));
    assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "switchyard");
    app.stop().await;
}

#[tokio::test]
async fn a_bare_call_of_the_predecessors_dialect_is_answered() {
    let (app, _up) = app().await;
    let params = format!(r#"{{"name":"up__echo","arguments":{HI}}}"#);
    let answer = app.http().post("/mcp", legacy_body("tools/call", &params)).await.expect(200);
    assert_eq!(answer.json()["result"]["content"][0]["text"], "hi");
    assert!(!answer.headers.contains_key("mcp-session-id"));
    let bare = params.replace("up__echo", "echo");
    app.http().post("/mcp", legacy_body("tools/call", &bare)).await.expect(200);
    app.http().post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    app.stop().await;
}

#[tokio::test]
async fn a_list_is_whole_stable_and_has_no_second_page() {
    let up = upstream(Options { page_size: 3, extra_tools: 40, ..Options::default() }).await;
    let servers =
        format!("  zeta: {{url: \"{}\"}}\n{}", up.url(), stdio("alpha", &["--page-size", "2"]));
    let app = TestApp::start(&format!("mcp_servers:\n{servers}")).await.ready().await;
    let list = app.http().post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    let names: Vec<String> = list.json()["result"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| tool["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 11 + 11 + 40);
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(names, sorted);
    assert_eq!(list.json()["result"]["nextCursor"], Value::Null);
    let again = app.http().post("/mcp", legacy_body("tools/list", "{}")).await;
    assert_eq!(list.body, again.body);
    let cursor = app.http().post("/mcp", legacy_body("tools/list", r#"{"cursor":"x"}"#)).await;
    assert_eq!(error_of(&cursor), (200, -32602));
    let tools = app.http().get("/mcp/tools?search=number%2039").await.expect(200).json();
    assert_eq!(tools["total"], 1);
    assert_eq!(tools["tools"][0]["name"], "zeta__extra_39");
    app.stop().await;
}

#[tokio::test]
async fn an_upstream_that_forgot_our_session_is_greeted_again() {
    let (app, up) = app_with(Eras::Legacy).await;
    app.http().call("up__echo", HI).await.expect(200);
    up.forget_sessions();
    let answer = app.http().call("up__echo", HI).await.expect(200).json();
    assert_eq!(answer["success"], true, "{answer}");
    app.stop().await;
}

#[tokio::test]
async fn our_own_failures_carry_their_reason_on_mcp() {
    let (app, _up) = app().await;
    let client = Legacy::connect(app.http()).await;
    let answer = client.call("up__ecko", HI).await;
    assert_eq!(error_of(&answer), (200, -32602));
    let error = answer.json()["error"].clone();
    assert_eq!(error["data"]["error_code"], "MCPToolNotFoundError");
    assert_eq!(error["data"]["reason"], "tool_not_found");
    assert_eq!(error["data"]["retriable"], false);
    assert!(error["message"].as_str().unwrap().contains("up__echo"), "{error}");
    app.stop().await;
}

#[tokio::test]
async fn bare_names_are_exposed_when_asked_for() {
    let up = upstream(Options::default()).await;
    let yaml = format!("naming: bare\nmcp_servers:\n  up: {{url: \"{}\"}}\n", up.url());
    let app = TestApp::start(&yaml).await.ready().await;
    let list = app.http().post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    assert_eq!(list.json()["result"]["tools"][0]["name"], "add");
    app.http().call("echo", HI).await.expect(200);
    let body = format!(r#"{{"name":"twin","url":"{}"}}"#, up.url());
    app.socket().post("/mcp/servers", body).await.expect(201);
    let refused = app.http().call("echo", HI).await.expect(404).json();
    let error = refused["error"].as_str().unwrap();
    assert!(error.contains("`up`") && error.contains("`twin`"), "{error}");
    app.stop().await;
}
