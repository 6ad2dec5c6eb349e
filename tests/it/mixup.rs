//! Many clients with equal ids and equal progress tokens over the same sessions of the same
//! servers: each hears what is its own and nothing else.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{Role, Speaker, Stage, TestApp, Wire, messages, play, progress_of};

/// Calls at a time of each client at each server.
const LANES: usize = 4;

fn calls() -> usize {
    match std::env::var("SWITCHYARD_TEST_FULL") {
        Ok(value) if value == "1" => 100_000,
        _ => 4_800,
    }
}

/// One call after the other on one connection; equal in all clients but for the tags.
async fn lane(
    app: &TestApp,
    client: &Speaker,
    name: &str,
    server: &str,
    lane: usize,
    calls: usize,
) {
    let mut wire = Wire::open(app.port()).await;
    for number in 0..calls {
        let id = match number % 2 {
            0 => json!(lane * 1_000_000 + number),
            _ => json!(format!("{lane}/{number}")),
        };
        let tag = format!("{name} {server} {lane} {number}");
        let steps: &[&str] = match number % 3 {
            0 => &["progress", "progress"],
            1 => &["progress", "sleep=1", "progress"],
            _ => &["sleep=1"],
        };
        let mut params =
            json!({ "name": format!("{server}__play"), "arguments": play(&tag, steps) });
        params["_meta"]["progressToken"] = id.clone();
        let request = client.request(&id, "tools/call", params);
        let answer = wire.send(request.into_request()).await.expect(200);
        let heard = messages(&answer);
        let (last, before) = heard.split_last().unwrap();
        let said = steps.iter().filter(|step| **step == "progress").count();
        assert_eq!(before.len(), said, "{tag}: {heard:?}");
        for message in before {
            assert_eq!(progress_of(message), Some((&id, tag.as_str())), "{message}");
        }
        assert_eq!(last["id"], id, "{tag}: {last}");
        assert_eq!(last["result"]["content"][0]["text"], Value::from(tag), "{last}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_hears_what_is_another_clients() {
    let mut yaml = "mcp_servers:\n".to_owned();
    let servers = [("old", Role::Legacy), ("new", Role::Modern), ("child", Role::Stdio)];
    for (name, role) in servers {
        yaml += &Stage::forgetful(role).await.entry(name, "");
    }
    let app = TestApp::start(&yaml).await.ready().await;
    let clients = [
        ("anna", Speaker::legacy(&app, json!({})).await),
        ("bert", Speaker::legacy(&app, json!({})).await),
        ("carl", Speaker::modern(&app, json!({}))),
        ("dora", Speaker::modern(&app, json!({}))),
    ];
    let each = calls().div_ceil(servers.len() * clients.len() * LANES);
    let began = Instant::now();
    let mut lanes = Vec::new();
    for (client_name, client) in &clients {
        for (server, _) in servers {
            lanes.extend((0..LANES).map(|at| lane(&app, client, client_name, server, at, each)));
        }
    }
    let made = lanes.len() * each;
    futures_util::future::join_all(lanes).await;
    println!("{made} calls in {:.1} s", began.elapsed().as_secs_f64());
    app.stop().await;
}
