//! Arguments and results come through byte for byte, whatever the eras and the upstream's transport.

use switchyard::cli::demo_upstream::{Answers, Eras, Options, Tool};

use crate::support::{Legacy, TestApp, between, legacy_body, modern, stdio, upstream};

/// Everything that a parser in between would change.
const ARGUMENTS: &[&str] = &[
    "{}",
    r#"{"n":1234567890123456789012345678901234567890}"#,
    r#"{"a":1.0,"b":1e400,"c":-0.0,"d":1E+2,"e":0.10}"#,
    r#"{"escaped":"\u00e9\u4e2d\ud83d\ude00\/","raw":"é中😀/"}"#,
    r#"{"twice":1,"twice":2,"twice":[{"x":1,"x":1}]}"#,
    r#"{ "spaces" :  [ 1 ,2,  3 ] , "b":null,"a":true }"#,
    r#"{"name":"not_the_tool","_meta":{"a":1},"jsonrpc":"1.0","id":99,"arguments":{"arguments":{}}}"#,
    r#"{"":"","\u0000":"\u0000\u001f","long":"0123456789012345678901234567890123456789"}"#,
];

/// What `echo_raw` answers: its arguments as a string and as they are.
fn echoed(arguments: &str) -> String {
    let quoted = serde_json::to_string(arguments).unwrap();
    format!(r#"{{"content":[{{"type":"text","text":{quoted}}}],"structuredContent":{arguments}}}"#)
}

/// One result through all three doors; `wraps` says whether the upstream adds members in front.
async fn through_all_doors(app: &TestApp, tool: &str, arguments: &str, result: &str) {
    let members = result.strip_prefix('{').unwrap();
    let legacy = Legacy::connect(app.http()).await;

    let answer = legacy.call(tool, arguments).await.expect(200);
    let got = between(answer.text(), r#"{"jsonrpc":"2.0","id":7,"result":{"#, "}");
    assert!(got.ends_with(members), "legacy: {got}\nwanted {members}");

    let arguments_member = format!(r#","arguments":{arguments}"#);
    let answer = modern(app.http(), "tools/call", Some(tool), &arguments_member).await.expect(200);
    let got = between(answer.text(), r#"{"jsonrpc":"2.0","id":7,"result":{"#, "}");
    assert!(got.starts_with(r#""resultType":"complete","#), "modern: {got}");
    assert!(got.ends_with(members), "modern: {got}\nwanted {members}");

    let answer = app.http().call(tool, arguments).await.expect(200);
    let got = between(answer.text(), r#"{"success":true,"data":{"#, r#","error":null,"#);
    assert!(got.ends_with(members), "rest: {got}\nwanted {members}");
}

async fn check(app: &TestApp, server: &str) {
    for arguments in ARGUMENTS {
        let tool = format!("{server}__echo_raw");
        through_all_doors(app, &tool, arguments, &echoed(arguments)).await;
    }
    let vendor = format!("{server}__vendor");
    through_all_doors(app, &vendor, "{}", Tool::VENDOR_RESULT).await;

    let size = 5_000_000;
    let large = format!(r#"{{"content":[{{"type":"text","text":"{}"}}]}}"#, "x".repeat(size));
    let answer =
        app.http().call(&format!("{server}__blob"), &format!(r#"{{"bytes":{size}}}"#)).await;
    let text = answer.expect(200);
    let got = between(text.text(), r#"{"success":true,"data":{"#, r#","error":null,"#);
    assert!(got.ends_with(&large[1..]), "{} bytes", got.len());
}

async fn over_http(eras: Eras, answers: Answers) {
    let up = upstream(Options { eras, answers, ..Options::default() }).await;
    let yaml = format!("mcp_servers:\n  up: {{url: \"{}\"}}\n", up.url());
    let app = TestApp::start(&yaml).await.ready().await;
    check(&app, "up").await;
    app.stop().await;
}

#[tokio::test]
async fn bytes_survive_over_http_as_json() {
    over_http(Eras::Legacy, Answers::Json).await;
    over_http(Eras::Modern, Answers::Json).await;
}

#[tokio::test]
async fn bytes_survive_over_http_as_events() {
    over_http(Eras::Legacy, Answers::Sse).await;
    over_http(Eras::Modern, Answers::Sse).await;
}

#[tokio::test]
async fn bytes_survive_over_stdio() {
    let servers = [stdio("old", &["--era", "legacy"]), stdio("new", &["--era", "modern"])];
    let app = TestApp::start(&format!("mcp_servers:\n{}", servers.concat())).await.ready().await;
    check(&app, "old").await;
    check(&app, "new").await;
    app.stop().await;
}

#[tokio::test]
async fn what_a_legacy_upstream_says_reaches_a_legacy_client_unchanged() {
    let up = upstream(Options { eras: Eras::Legacy, record: true, ..Options::default() }).await;
    let yaml = format!("mcp_servers:\n  up: {{url: \"{}\"}}\n", up.url());
    let app = TestApp::start(&yaml).await.ready().await;
    let legacy = Legacy::connect(app.http()).await;
    for arguments in ARGUMENTS {
        let answer = legacy.call("up__echo_raw", arguments).await.expect(200);
        let whole = format!(r#"{{"jsonrpc":"2.0","id":7,"result":{}}}"#, echoed(arguments));
        assert_eq!(answer.text(), whole);
        let seen = up.stats().seen_method("tools/call").pop().unwrap();
        let body = std::str::from_utf8(&seen.body).unwrap().to_owned();
        assert!(body.contains(&format!(r#""arguments":{arguments}"#)), "{body}");
    }
    app.stop().await;
}

#[tokio::test]
async fn an_id_of_the_client_comes_back_as_it_was_written() {
    let up = upstream(Options::default()).await;
    let yaml = format!("mcp_servers:\n  up: {{url: \"{}\"}}\n", up.url());
    let app = TestApp::start(&yaml).await.ready().await;
    for id in ["0", "-5", r#""text""#, r#""\u00e9é""#, "9007199254740993"] {
        let body = format!(
            r#"{{"id":{id},"params":{{"arguments":{{"text":"hi"}},"name":"up__echo"}},"method":"tools/call","jsonrpc":"2.0"}}"#
        );
        let answer = app.http().post("/mcp", body).await.expect(200);
        let begin = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"#);
        assert!(answer.text().starts_with(&begin), "{}", answer.text());
    }
    app.stop().await;
}

#[tokio::test]
async fn an_error_of_the_upstream_is_relayed_as_it_came() {
    let up = upstream(Options { eras: Eras::Legacy, ..Options::default() }).await;
    let yaml = format!("mcp_servers:\n  up: {{url: \"{}\"}}\n", up.url());
    let app = TestApp::start(&yaml).await.ready().await;
    let legacy = Legacy::connect(app.http()).await;
    let answer = legacy.call("up__rpc_error", r#"{"code":-31999,"message":"é \"odd\""}"#).await;
    let whole = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-31999,"message":"é \"odd\""}}"#;
    assert_eq!(answer.expect(200).text(), whole);
    app.stop().await;
}

#[tokio::test]
async fn vendor_keys_of_a_definition_reach_the_client() {
    let up = upstream(Options::default()).await;
    let yaml = format!("mcp_servers:\n  up: {{url: \"{}\"}}\n{}", up.url(), stdio("child", &[]));
    let app = TestApp::start(&yaml).await.ready().await;
    let legacy = app.http().post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    let new = modern(app.http(), "tools/list", None, "").await.expect(200);
    for listing in [legacy.text(), new.text()] {
        for server in ["up", "child"] {
            let rest = Tool::Vendor.definition().strip_prefix(r#"{"name":"vendor""#).unwrap();
            let wanted = format!(r#"{{"name":"{server}__vendor"{rest}"#);
            assert!(listing.contains(&wanted), "{listing}");
        }
    }
    app.stop().await;
}
