//! Long lists, lists without an end, and lists that change.

use std::time::Instant;

use serde_json::Value;
use switchyard::cli::demo_upstream::Options;

use crate::support::{
    Http, PROGRAM, Paged, Pages, SOON, TestApp, alive, eventually, legacy_body, upstream, yaml,
};

async fn listed(http: &Http) -> Vec<Value> {
    let list = http.post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    list.json()["result"]["tools"].as_array().unwrap().clone()
}

#[tokio::test]
async fn five_thousand_tools_over_a_hundred_pages_are_listed() {
    // Eleven tools are always there.
    let options = Options { extra_tools: 4989, page_size: 50, record: true, ..Options::default() };
    let up = upstream(options).await;
    let began = Instant::now();
    let file = yaml(&[("up", &up)]);
    let app = TestApp::start(&file).await;
    eventually(SOON * 4, "all tools are there", || async {
        let server = app.http().server("up").await?;
        (server["stale"] == false && server["tools"] == 5000).then_some(())
    })
    .await;
    println!("5,000 tools in 100 pages: {:?}", began.elapsed());
    let asked = || up.stats().seen().iter().filter(|seen| seen.method == "tools/list").count();
    assert_eq!(asked(), 100);
    let (last, text) = ("up__extra_4988", r#"{"text":"hi"}"#);
    app.http().call(last, text).await.expect(200);
    let refreshed = Instant::now();
    app.socket().post("/mcp/servers/up/refresh", "").await.expect(200);
    println!("the same again, nothing changed: {:?}", refreshed.elapsed());
    assert_eq!(asked(), 200);

    let folder = app.stop().await;
    up.stop().await;
    let began = Instant::now();
    let app = TestApp::start_in(folder, &file).await;
    assert_eq!(listed(app.http()).await.len(), 5000);
    println!("a start with 5,000 tools: {:?}", began.elapsed());
    app.stop().await;
}

#[tokio::test]
async fn a_list_that_makes_no_sense_ends_with_an_error_and_the_old_one_stays() {
    let up = Paged::start(Pages::Good).await;
    let file = format!(
        "limits: {{tools_per_server: 1000}}\nmcp_servers:\n  up: {{url: \"{}\"}}\n",
        up.url()
    );
    let app = TestApp::start(&file).await.ready().await;
    let names = || async {
        let tools = listed(app.http()).await;
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let good = ["up__first", "up__second", "up__third"];
    assert_eq!(names().await, good, "an empty cursor is followed");
    for (pages, problem, asked) in [
        (Pages::Circle, "circle", 3),
        (Pages::Flood, "more than 1000 tools (limits.tools_per_server)", 21),
        (Pages::Endless, "more than 1000 pages", 1000),
        (Pages::Waste, "a cursor has more than 64 KiB", 1),
    ] {
        up.set(pages);
        let began = Instant::now();
        app.socket().post("/mcp/servers/up/refresh", "").await;
        println!("{pages:?}: {:?}", began.elapsed());
        assert!(began.elapsed() < SOON * 4, "{pages:?}: {:?}", began.elapsed());
        let server = app.http().server("up").await.unwrap();
        let error = server["last_error"].as_str().unwrap().to_owned();
        assert!(error.contains(problem) && error.contains("tools/list"), "{pages:?}: {error}");
        assert_eq!(server["stale"], true, "{pages:?}");
        // The repeats after a failure ask, too.
        assert!(up.asked() >= asked, "{pages:?}: {}", up.asked());
        assert_eq!(names().await, good, "{pages:?}");
    }
    up.set(Pages::Good);
    app.socket().post("/mcp/servers/up/refresh", "").await.expect(200);
    let server = app.http().server("up").await.unwrap();
    assert_eq!((&server["stale"], &server["last_error"]), (&false.into(), &Value::Null));
    app.stop().await;
}

#[tokio::test]
async fn a_new_child_process_is_asked_for_its_tools_without_waiting_for_its_turn() {
    let mark = format!("{}8", u64::from(std::process::id()) + 1_000_000);
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("changed");
    // The program is another one when it is started again.
    let script = format!(
        "if [ -e '{changed}' ]; then exec {PROGRAM} demo-upstream stdio --extra-tools 3 --slow-ms {mark}; else exec {PROGRAM} demo-upstream stdio --slow-ms {mark}; fi",
        changed = changed.display()
    );
    let file = format!(
        "health_check_interval: 1h\nmcp_servers:\n  child: {{command: sh, args: [-c, {}]}}\n",
        Value::from(script)
    );
    let app = TestApp::start(&file).await.ready().await;
    assert_eq!(listed(app.http()).await.len(), 11);
    std::fs::write(&changed, "").unwrap();
    for pid in alive(&mark) {
        std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    }
    eventually(SOON, "a call succeeds", || async {
        let answer = app.http().call("child__echo", r#"{"text":"hi"}"#).await;
        (answer.status == 200).then_some(())
    })
    .await;
    // Its turn would come in an hour; a busy machine may take a while all the same.
    eventually(SOON * 4, "the new list is there", || async {
        (listed(app.http()).await.len() == 14).then_some(())
    })
    .await;
    app.stop().await;
}
