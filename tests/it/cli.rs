//! The command line against a running router, as an operator types it.

use serde_json::Value;
use switchyard::cli::demo_upstream::Options;

use crate::support::{
    Finished, PROGRAM, Router, SOON, alive, eventually, stdio, switchyard, upstream, yaml,
};

async fn router() -> (Router, switchyard::cli::demo_upstream::Upstream) {
    let up = upstream(Options::default()).await;
    let router = Router::start(&yaml(&[("up", &up)])).await;
    eventually(SOON, "the router is ready", || async { router.is_ready().await.then_some(()) })
        .await;
    (router, up)
}

#[tokio::test]
async fn call_prints_the_answer() {
    let (router, _up) = router().await;
    let run = async |arguments: &[&str]| -> Finished { router.run(arguments).await };
    assert_eq!(run(&["call", "up__echo", "text=hello there"]).await.expect(0).out, "hello there\n");
    assert_eq!(run(&["call", "echo", r#"{"text":"é"}"#]).await.expect(0).out, "é\n");
    assert_eq!(run(&["call", "add", "--server", "up", "a=2", "b=40"]).await.expect(0).out, "42\n");
    let json = run(&["call", "up__echo_raw", r#"{"n":1e400}"#, "--json"]).await.expect(0);
    assert!(json.out.contains(r#""structuredContent":{"n":1e400}"#), "{}", json.out);
    let failed = run(&["call", "up__fail", "message=no luck"]).await.expect(1);
    assert!(failed.err.contains("no luck"), "{}", failed.err);
    let late = run(&["call", "up__sleep", "ms=60000", "--timeout", "500ms"]).await.expect(1);
    assert!(late.err.contains("no answer within"), "{}", late.err);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn servers_are_added_listed_switched_and_removed() {
    let (router, up) = router().await;
    let mark = format!("{}8", u64::from(std::process::id()) + 1_000_000);
    router.run(&["servers", "add", "web", &up.url(), "--description", "second"]).await.expect(0);
    let child = ["servers", "add", "child", "--", PROGRAM, "demo-upstream", "stdio", "--slow-ms"];
    let child: Vec<&str> = child.into_iter().chain([mark.as_str()]).collect();
    router.run(&child).await.expect(0);
    for tool in ["web__echo", "child__echo"] {
        assert_eq!(router.run(&["call", tool, "text=hi"]).await.expect(0).out, "hi\n");
    }
    let listed = router.run(&["servers", "list", "--json"]).await.expect(0).json();
    assert_eq!(listed["total"], 3);
    let table = router.run(&["servers"]).await.expect(0).out;
    for word in ["up", "web", "child", "stdio", "http"] {
        assert!(table.contains(word), "{table}");
    }
    let shown = router.run(&["servers", "show", "child"]).await.expect(0).out;
    assert!(shown.contains("demo-upstream"), "{shown}");
    router.run(&["servers", "disable", "web"]).await.expect(0);
    router.run(&["call", "web__echo", "text=hi"]).await.expect(1);
    router.run(&["servers", "enable", "web"]).await.expect(0);
    router.run(&["servers", "refresh", "web"]).await.expect(0);
    let again = router.run(&["servers", "add", "web", &up.url()]).await.expect(1);
    assert!(again.err.contains("web"), "{}", again.err);
    let filed = router.run(&["servers", "remove", "up"]).await.expect(1);
    assert!(filed.err.contains("switchyard.yaml"), "{}", filed.err);

    let (code, folder) = router.stop().await;
    assert_eq!((code, alive(&mark).len()), (0, 0));
    let router = Router::start_in(folder, &yaml(&[("up", &up)])).await;
    assert_eq!(router.run(&["call", "child__echo", "text=hi"]).await.expect(0).out, "hi\n");
    router.run(&["servers", "remove", "child"]).await.expect(0);
    router.run(&["servers", "remove", "web"]).await.expect(0);
    eventually(SOON, "the child ends", || async { alive(&mark).is_empty().then_some(()) }).await;
    router.run(&["call", "child__echo", "text=hi"]).await.expect(1);
    assert_eq!(router.run(&["servers", "--json"]).await.json()["total"], 1);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn tools_are_listed_searched_and_shown() {
    let (router, _up) = router().await;
    let table = router.run(&["tools", "list"]).await.expect(0).out;
    assert!(table.contains("up__echo") && table.contains("up__vendor"), "{table}");
    let found = router.run(&["tools", "list", "--search", "region", "--json"]).await.expect(0);
    assert_eq!(found.json()["total"], 1);
    let shown = router.run(&["tools", "show", "up__add"]).await.expect(0).out;
    assert!(shown.contains("Adds two numbers"), "{shown}");
    router.run(&["tools", "history", "up__add"]).await.expect(0);
    router.run(&["tools", "show", "nothing"]).await.expect(1);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn the_ledger_is_filtered_and_shown() {
    let (router, _up) = router().await;
    router.run(&["call", "up__echo", "text=needle"]).await.expect(0);
    router.run(&["call", "up__sleep", "ms=5000", "--timeout", "500ms"]).await.expect(1);
    router.run(&["call", "up__nothing"]).await.expect(1);
    let timeout = ["audit", "list", "--server", "up", "--outcome", "timeout", "--since", "1h"];
    let found = eventually(SOON, "the timeout is found", || async {
        let found = router.run(&timeout).await.expect(0).out;
        found.contains("up__sleep").then_some(found)
    })
    .await;
    assert!(!found.contains("up__echo"), "{found}");
    let json = |finished: Finished| -> Vec<Value> {
        let told = finished.json();
        told["calls"].as_array().or_else(|| told.as_array()).expect("calls").clone()
    };
    let filtered = async |arguments: &[&str]| {
        let arguments: Vec<&str> =
            ["audit", "list", "--json"].iter().chain(arguments).copied().collect();
        json(router.run(&arguments).await.expect(0))
    };
    assert_eq!(filtered(&[]).await.len(), 3);
    assert_eq!(filtered(&["--text", "needle"]).await.len(), 1);
    router.run(&["audit", "list", "--text", "\"open"]).await.expect(1);
    let sums = router.run(&["audit", "stats", "--by", "tool", "--json"]).await.expect(0).json();
    assert_eq!(sums["rows"].as_array().unwrap().len(), 3, "{sums}");
    let table = router.run(&["audit", "stats", "--per", "hour", "--server", "up"]).await.expect(0);
    for word in ["SERVER", "CALLS", "ERRORS", "P95", "up"] {
        assert!(table.out.contains(word), "{}", table.out);
    }
    assert_eq!(filtered(&["--outcome", "refused"]).await.len(), 1);
    assert_eq!(filtered(&["--tool", "up__echo"]).await.len(), 1);
    assert_eq!(filtered(&["--caller", "nobody"]).await.len(), 0);
    assert_eq!(filtered(&["--limit", "2"]).await.len(), 2);
    let id = filtered(&["--outcome", "timeout"]).await[0]["id"].as_str().unwrap().to_owned();
    let shown = router.run(&["audit", "show", &id]).await.expect(0).out;
    assert!(shown.contains("no answer within"), "{shown}");
    router.run(&["audit", "show", "0193e0a4-0000-7000-8000-000000000000"]).await.expect(1);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_key_opens_the_router_from_elsewhere() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&format!("auth: {{mode: keys}}\n{}", yaml(&[("up", &up)]))).await;
    let url = format!("http://{}", router.address);
    let made = router.run(&["keys", "create", "laptop", "--scopes", "call,read"]).await.expect(0);
    let key = made.out.split_whitespace().find(|word| word.starts_with("sy_")).unwrap();
    let listed = router.run(&["keys", "list"]).await.expect(0).out;
    assert!(listed.contains("laptop") && !listed.contains(key), "{listed}");
    let elsewhere = tempfile::tempdir().unwrap();
    let run = async |more: &[&str]| {
        let arguments: Vec<&str> =
            ["--url", &url, "--key", key].iter().chain(more).copied().collect();
        switchyard(elsewhere.path(), &arguments).await
    };
    assert_eq!(run(&["call", "up__echo", "text=hi"]).await.expect(0).out, "hi\n");
    run(&["servers"]).await.expect(0);
    let refused = run(&["audit"]).await;
    assert!(refused.err.contains("audit"), "{}", refused.err);
    assert_ne!(refused.code, 0);
    router.run(&["keys", "revoke", "laptop"]).await.expect(0);
    assert_ne!(run(&["servers"]).await.code, 0);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_configuration_is_checked_and_connected() {
    let up = upstream(Options::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let settings = format!("{}{}", yaml(&[("up", &up)]), stdio("child", &[]));
    std::fs::write(folder.path().join("switchyard.yaml"), &settings).unwrap();
    switchyard(folder.path(), &["check"]).await.expect(0);
    let checked = switchyard(folder.path(), &["check", "--connect"]).await.expect(0).out;
    for tool in ["up__echo", "child__echo"] {
        assert!(checked.contains(tool), "{checked}");
    }
    let json = switchyard(folder.path(), &["check", "--connect", "--json"]).await.expect(0);
    assert!(json.json().is_object());
    // What a server says of itself may have in it what it was given.
    let given = format!(
        "mcp_servers: {{up: {{url: \"{}\", headers: {{x-one: switchyard-demo-upstream, x-two: Returns the text it is given.}}}}}}\n",
        up.url()
    );
    std::fs::write(folder.path().join("switchyard.yaml"), given).unwrap();
    for more in [&[][..], &["--json"]] {
        let checked = [&["check", "--connect"], more].concat();
        let checked = switchyard(folder.path(), &checked).await.expect(0).out;
        assert!(checked.contains("***") && checked.contains("up__echo"), "{checked}");
        assert!(
            !checked.contains("switchyard-demo-upstream")
                && !checked.contains("Returns the text it"),
            "{checked}"
        );
    }
    assert!(!folder.path().join("switchyard-data").exists(), "a check leaves nothing");
}

#[tokio::test]
async fn a_clients_configuration_is_imported() {
    let folder = tempfile::tempdir().unwrap();
    let client = format!(
        r#"{{"mcpServers":{{"child":{{"command":"{PROGRAM}","args":["demo-upstream","stdio"]}},"docs":{{"type":"http","url":"http://127.0.0.1:9/mcp"}}}}}}"#
    );
    std::fs::write(folder.path().join("client.json"), client).unwrap();
    let printed = switchyard(folder.path(), &["import", "client.json", "--print"]).await.expect(0);
    std::fs::write(folder.path().join("switchyard.yaml"), &printed.out).unwrap();
    let checked = switchyard(folder.path(), &["check", "--json"]).await.expect(0).out;
    assert!(checked.contains("child") && checked.contains("docs"), "{checked}");
    std::fs::remove_file(folder.path().join("switchyard.yaml")).unwrap();

    let router = Router::start_in(folder, "").await;
    router.run(&["import", "client.json"]).await.expect(0);
    assert_eq!(router.run(&["call", "child__echo", "text=hi"]).await.expect(0).out, "hi\n");
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_reload_is_asked_for_and_told() {
    let (router, up) = router().await;
    Router::write(router.folder.path(), &yaml(&[("up", &up), ("more", &up)]));
    let told = router.run(&["reload"]).await.expect(0).out;
    assert!(told.contains("reloaded"), "{told}");
    assert_eq!(router.run(&["servers", "--json"]).await.json()["total"], 2);
    Router::write(router.folder.path(), "nonsense: 1\n");
    let failed = router.run(&["reload"]).await;
    assert_ne!(failed.code, 0);
    assert!(failed.err.contains("nonsense"), "{}", failed.err);
    assert_eq!(router.run(&["servers", "--json"]).await.json()["total"], 2);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn the_schema_is_json_and_knows_the_keys() {
    let folder = tempfile::tempdir().unwrap();
    let schema = switchyard(folder.path(), &["schema"]).await.expect(0).json();
    for key in ["listen", "mcp_servers", "audit", "auth"] {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
}

#[tokio::test]
async fn the_demo_counts_right_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ended = switchyard(folder.path(), &["demo", "--for", "3s"]).await.expect(0);
    let number = |before: &str| -> u64 {
        let line = ended.out.lines().find(|line| line.starts_with(before));
        let line = line.unwrap_or_else(|| panic!("no {before} in {}", ended.out));
        line.split_whitespace().filter_map(|word| word.parse().ok()).next().unwrap()
    };
    let (calls, rows) = (number("calls"), number("ledger rows"));
    assert_eq!(calls, rows);
    assert!(calls >= 10 && number("flaky") > 0 && number("steady") > 0, "{}", ended.out);
    assert!(ended.out.contains("(answers)"), "{}", ended.out);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let folder = folder.path().to_str().unwrap().to_owned();
    assert_eq!(alive(&folder), Vec::<u32>::new());
}
