//! What the ledger has beside calls, as clients and operators read it.

use serde_json::{Value, json};
use switchyard::cli::demo_upstream::Options;
use switchyard::store::Store;

use crate::support::{Router, SOON, eventually, upstream, yaml};

async fn events(router: &Router, query: &str) -> Vec<Value> {
    let page = router.http.get(&format!("/mcp/audit/events?{query}")).await.expect(200).json();
    page["events"].as_array().unwrap().clone()
}

#[tokio::test]
async fn acts_and_what_happened_to_the_ledger_are_listed() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&yaml(&[("up", &up)])).await;
    for act in ["disable", "enable"] {
        router.run(&["servers", act, "up"]).await.expect(0);
    }
    let kinds = |events: &[Value]| -> Vec<String> {
        events.iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect()
    };
    let acts = eventually(SOON, "both acts are on record", || async {
        let acts = events(&router, "kind=server.*&actor=admin-socket").await;
        (acts.len() == 2).then_some(acts)
    })
    .await;
    assert_eq!(kinds(&acts), ["server.enabled", "server.disabled"], "the newest first");
    assert_eq!(acts[0]["subject"], "up");
    assert!(acts[0]["detail"].is_object() && acts[0]["at"].is_string(), "{}", acts[0]);
    assert!(acts[0]["seq"].as_i64() > acts[1]["seq"].as_i64());
    for (query, expected) in [
        ("kind=server.enabled", 1),
        ("kind=server.enable", 0),
        ("kind=server.enable*&subject=up", 1),
        ("kind=server.*&subject=other", 0),
        ("kind=audit.started&actor=router", 1),
        ("kind=server.*&since=1h&actor=admin-socket", 2),
        ("until=1h", 0),
    ] {
        assert_eq!(events(&router, query).await.len(), expected, "{query}");
    }
    // Page by page it is the same as at once.
    let all = kinds(&events(&router, "").await);
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/mcp/audit/events?limit=2{cursor}");
        let page = router.http.get(&path).await.expect(200).json();
        let some = page["events"].as_array().unwrap();
        assert!(some.len() <= 2);
        paged.extend(kinds(some));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(paged, all);
    for wrong in ["kind=*.added", "since=soon", "cursor=x", "tool=x", "limit=x"] {
        router.http.get(&format!("/mcp/audit/events?{wrong}")).await.expect(400);
    }
    let shown = router.run(&["audit", "events", "--kind", "server.*", "--limit", "1"]).await;
    let shown = shown.expect(0).out;
    assert!(shown.contains("server.enabled") && !shown.contains("server.disabled"), "{shown}");
    let json = router.run(&["--json", "audit", "events", "--kind", "server.*"]).await.expect(0);
    assert!(json.json()["events"].as_array().unwrap().len() >= 2);
    let none = router.run(&["audit", "events", "--kind", "nothing"]).await.expect(0).out;
    assert_eq!(none, "no events match\n");
    let data = router.data_dir();
    let (code, _folder) = router.stop().await;
    assert_eq!(code, 0);
    let store = Store::open(&data).await.unwrap();
    let stopped = store.audit_entry_page(&Default::default(), None, 1).await.unwrap();
    assert_eq!(json!(stopped.rows[0].kind), "audit.stopped");
}
