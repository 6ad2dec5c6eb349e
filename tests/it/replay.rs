//! `switchyard audit replay` and `audit verify` as an operator uses them, beside a router that runs.

use serde_json::Value;
use switchyard::cli::demo_upstream::{Fault, FaultPlan, Options, Upstream};

use crate::support::{Router, SOON, eventually, upstream};

fn yaml(up: &Upstream, more: &str) -> String {
    format!("{more}mcp_servers:\n  up: {{url: \"{}\"}}\n", up.url())
}

async fn recorded(router: &Router, calls: u64) {
    eventually(SOON, "the calls are on record", || async {
        let page = router.http.get("/mcp/audit?limit=100").await.expect(200).json();
        (page["calls"].as_array()?.len() as u64 == calls).then_some(())
    })
    .await;
}

/// Calls of every kind: two that may be made again, and those that must not be.
async fn called(router: &Router) {
    eventually(SOON, "the server is up", || async {
        let server = router.http.server("up").await?;
        (server["state"] == "up").then_some(())
    })
    .await;
    for (tool, arguments) in [
        ("up__echo", r#"{"text":"hi"}"#),
        ("up__add", r#"{"a":1,"b":2.50}"#),
        ("up__counter", "{}"),
        ("up__echo", r#"{"text":"hi","password":"hunter2hunter2"}"#),
        ("up__no_such_tool", "{}"),
    ] {
        router.http.call(tool, arguments).await;
    }
    recorded(router, 5).await;
}

#[tokio::test]
async fn only_read_only_calls_with_whole_arguments_are_made_again() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&yaml(&up, "audit: {results: full}\n")).await;
    called(&router).await;
    let before = up.stats().calls();

    let planned = router.run(&["audit", "replay", "--dry-run"]).await.expect(0);
    let lines: Vec<Value> =
        planned.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tools: Vec<_> = lines.iter().map(|line| line["tool_name"].as_str().unwrap()).collect();
    assert_eq!(tools, ["up__echo", "up__add"], "oldest first");
    assert_eq!(lines[0]["arguments"]["text"], "hi");
    for told in ["1 call left out: its arguments were not kept whole", "2 calls left out"] {
        assert!(planned.err.contains(told), "{told}: {}", planned.err);
    }
    assert_eq!(up.stats().calls(), before, "nothing was sent");

    let again = router.run(&["--json", "audit", "replay"]).await.expect(0).json();
    let calls = again["calls"].as_array().unwrap();
    assert_eq!(calls.len(), 2);
    for call in calls {
        assert_eq!((&call["same_outcome"], &call["same_shape"]), (&true.into(), &true.into()));
    }
    assert_eq!(up.stats().calls(), before + 2);
    assert_eq!(again["more"], false);

    // The calls of that replay are not made again, and calls that are left out take no place of others.
    recorded(&router, 7).await;
    let one = router.run(&["--json", "audit", "replay", "--limit", "1"]).await.expect(0);
    assert!(one.err.is_empty(), "{}", one.err);
    let one = one.json();
    assert_eq!(one["calls"].as_array().unwrap().len(), 1, "{one}");
    assert_eq!(one["calls"][0]["tool"], "up__add", "{one}");
    assert_eq!((&one["more"], &one["skipped"]["a replay made it"]), (&true.into(), &2.into()));
    let planned = router.run(&["audit", "replay", "--dry-run", "--limit", "1"]).await.expect(0);
    assert!(planned.err.contains("the newest 1 of more; --limit for more"), "{}", planned.err);
}

/// A candidate whose server answers alike, and one that has lost a tool and breaks the other.
#[tokio::test]
async fn a_candidate_is_compared_with_what_is_on_record() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&yaml(&up, "audit: {results: full}\n")).await;
    called(&router).await;
    let candidate = router.data_dir().join("next.yaml");
    let replay = async |code| {
        let path = candidate.to_str().unwrap();
        router.run(&["--json", "audit", "replay", "--candidate", path]).await.expect(code).json()
    };
    let same = upstream(Options::default()).await;
    std::fs::write(&candidate, yaml(&same, "")).unwrap();
    let answer = replay(0).await;
    assert_eq!(answer["calls"].as_array().unwrap().len(), 2);
    assert_eq!(same.stats().calls(), 2, "made at the candidate's server");

    let broken = upstream(Options::default()).await;
    broken.faults().set(FaultPlan::calls(Fault::HttpStatus(500)));
    let less = format!(
        "mcp_servers:\n  up: {{url: \"{}\", retry_mode: off, tool_overrides: {{add: {{hidden: true}}}}}}\n",
        broken.url()
    );
    std::fs::write(&candidate, less).unwrap();
    let answer = replay(1).await;
    let calls = answer["calls"].as_array().unwrap();
    assert_eq!(calls.len(), 1, "the other tool is not there: {answer}");
    assert_eq!(calls[0]["same_outcome"], false, "{answer}");
    assert_eq!(calls[0]["outcome_now"], "MCPConnectionError", "{answer}");
    // The router whose ledger was read made none of these calls.
    recorded(&router, 5).await;
}

/// Where a server's annotations are not believed, only the operator's word makes a call repeatable; where
/// they are, it can take that away.
#[tokio::test]
async fn hints_of_a_server_that_is_not_trusted_do_not_count() {
    let up = upstream(Options::default()).await;
    let settings = |more: &str| {
        format!("audit: {{results: full}}\nmcp_servers:\n  up: {{url: \"{}\"{more}}}\n", up.url())
    };
    let mut folder = tempfile::tempdir().unwrap();
    for (more, replayed) in [
        (", trust_annotations: false", &[][..]),
        (", trust_annotations: false, tool_overrides: {echo: {replay: safe}}", &["up__echo"]),
        (", tool_overrides: {echo: {replay: unsafe}}", &["up__add"]),
        // What is not declared read-only stays so, also when it may be repeated.
        (", tool_overrides: {counter: {replay: safe}}", &["up__add", "up__echo"]),
    ] {
        let router = Router::start_in(folder, &settings(more)).await;
        eventually(SOON, "the server is up", || async {
            let server = router.http.server("up").await?;
            (server["state"] == "up" && server["stale"] == false).then_some(())
        })
        .await;
        for (tool, arguments) in [
            ("up__echo", r#"{"text":"a"}"#),
            ("up__add", r#"{"a":1,"b":2}"#),
            ("up__counter", "{}"),
        ] {
            router.http.call(tool, arguments).await.expect(200);
        }
        let before = up.stats().calls();
        let plan = async || router.run(&["audit", "replay", "--dry-run"]).await.expect(0);
        eventually(SOON, "the calls are on record", || async {
            (plan().await.err.contains("call")).then_some(())
        })
        .await;
        let planned = plan().await;
        let lines = planned.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let tools: std::collections::BTreeSet<String> =
            lines.map(|line| line["tool_name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(tools.iter().collect::<Vec<_>>(), replayed, "{more}");
        let again = router.run(&["--json", "audit", "replay"]).await.expect(0).json();
        let count = again["calls"].as_array().unwrap().len() as u64;
        assert_eq!(up.stats().calls(), before + count, "{more}");
        assert_eq!(count == 0, replayed.is_empty(), "{more}: {again}");
        folder = router.stop().await.1;
    }
}

#[tokio::test]
async fn a_ledger_is_verified_beside_the_router_that_writes_it() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&yaml(&up, "")).await;
    called(&router).await;
    let good = router.run(&["audit", "verify"]).await.expect(0);
    assert!(good.out.contains("good: nothing was changed"), "{}", good.out);
    let json = router.run(&["--json", "audit", "verify"]).await.expect(0).json();
    assert_eq!(json["faults"], 0);
    assert!(json["rows"].as_u64().unwrap() >= 6, "five calls and the start: {json}");
    let folder = router.kill().await;
    let router = Router::start_in(folder, &yaml(&up, "")).await;
    router.run(&["audit", "verify"]).await.expect(0);
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    // The folder of a router that does not run, and no configuration.
    let data = folder.path().join("data");
    let arguments = ["--data-dir", data.to_str().unwrap(), "audit", "verify"];
    crate::support::switchyard(folder.path(), &arguments).await.expect(0);
    std::fs::remove_file(data.join("ledger.key")).unwrap();
    let lost = crate::support::switchyard(folder.path(), &arguments).await;
    assert!(lost.err.contains("ledger.key") && lost.err.contains("missing"), "{}", lost.err);
}
