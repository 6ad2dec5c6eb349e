//! Every mistake gets a message that helps, an exit code that says what kind it was, and no crash.

use std::path::Path;

use switchyard::cli::demo_upstream::Options;

use crate::support::{Finished, Router, refusing, switchyard, upstream, yaml};

/// `serve` with this configuration, which must not start.
async fn serve(yaml: &str, more: &[&str]) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    serve_in(folder.path(), yaml, more).await
}

async fn serve_in(folder: &Path, yaml: &str, more: &[&str]) -> Finished {
    std::fs::write(folder.join("switchyard.yaml"), yaml).unwrap();
    let mut arguments = vec!["serve", "--config", "switchyard.yaml"];
    arguments.extend(more);
    switchyard(folder, &arguments).await
}

#[track_caller]
fn says(finished: &Finished, parts: &[&str]) {
    for part in parts {
        assert!(finished.err.contains(part), "{part:?} is not in:\n{}", finished.err);
    }
}

#[tokio::test]
async fn a_taken_port() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let ended = serve("data_dir: ./data\n", &["--listen", &address]).await.expect(2);
    says(&ended, &[&address, "taken", "--listen"]);
}

#[tokio::test]
async fn a_wrong_configuration() {
    for (yaml, parts) in [
        (
            "mcp_servers:\n  a:\n    url: http://h/\n    timout: 5\n",
            &["switchyard.yaml:4:5", "timout", "did you mean `timeout`"][..],
        ),
        ("lisen: 127.0.0.1:1\n", &["switchyard.yaml:1:1", "did you mean `listen`"]),
        ("listen: nowhere\n", &["switchyard.yaml:1:", "listen"]),
        ("listen: 127.0.0.1:1\nlisten: 127.0.0.1:2\n", &["switchyard.yaml:2:", "twice"]),
        ("mcp_servers: [\n", &["switchyard.yaml:"]),
        ("mcp_servers:\n  a: {url: 'http://h/', timeout: fast}\n", &["switchyard.yaml:2:", "fast"]),
        ("mcp_servers:\n  a: {}\n", &["switchyard.yaml:2:", "url", "command"]),
        (
            "mcp_servers:\n  a: {url: 'http://h/', command: x}\n",
            &["switchyard.yaml:2:", "url", "command"],
        ),
        ("audit: {durability: strickt}\n", &["switchyard.yaml:1:", "did you mean `strict`"]),
        (
            "mcp_servers:\n  a: {url: 'http://h/${IT_UNSET_VARIABLE}'}\n",
            &["switchyard.yaml:2:", "IT_UNSET_VARIABLE"],
        ),
        (
            "mcp_servers:\n  a: {url: 'http://h/', headers: {K: '${IT_UNSET:?ask the operator}'}}\n",
            &["switchyard.yaml:2:", "ask the operator"],
        ),
        ("listen: 0.0.0.0:0\nauth: {mode: none}\n", &["none"]),
    ] {
        let ended = serve(yaml, &[]).await.expect(2);
        says(&ended, parts);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("switchyard.yaml"), yaml).unwrap();
        let checked = switchyard(folder.path(), &["check"]).await.expect(2);
        says(&checked, parts);
    }
}

#[tokio::test]
async fn a_file_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let ended = switchyard(folder.path(), &["serve", "--config", "no.yaml"]).await.expect(2);
    says(&ended, &["no.yaml", "no such file"]);
    let ended = switchyard(folder.path(), &["check"]).await.expect(2);
    says(&ended, &["switchyard.yaml"]);
}

#[tokio::test]
async fn a_data_folder_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "x").unwrap();
    let listen = "listen: 127.0.0.1:0\n";
    let ended = serve_in(folder.path(), &format!("{listen}data_dir: ./file\n"), &[]).await;
    says(&ended.expect(2), &["file", "folder"]);
    let ended = serve_in(folder.path(), &format!("{listen}data_dir: ./file/deeper\n"), &[]).await;
    says(&ended.expect(2), &["file/deeper"]);
    // Nobody can make a folder here, whatever their rights.
    let ended =
        serve_in(folder.path(), &format!("{listen}data_dir: /proc/switchyard\n"), &[]).await;
    says(&ended.expect(2), &["/proc/switchyard", "could not"]);
}

#[tokio::test]
async fn a_data_folder_of_another_router() {
    let router = Router::start("").await;
    let data = router.data_dir();
    let yaml = format!("listen: 127.0.0.1:0\ndata_dir: {}\n", data.display());
    let ended = serve(&yaml, &[]).await.expect(4);
    says(&ended, &[&data.display().to_string(), "another router"]);
    router.http.get("/livez").await.expect(200);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_damaged_database() {
    let router = Router::start("").await;
    let (_, folder) = router.stop().await;
    std::fs::write(folder.path().join("data/state.db"), "this is no database".repeat(1000))
        .unwrap();
    let yaml = std::fs::read_to_string(folder.path().join("switchyard.yaml")).unwrap();
    let ended = serve_in(folder.path(), &yaml, &[]).await.expect(5);
    says(&ended, &["state.db"]);
}

#[tokio::test]
async fn a_router_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["servers"][..],
        &["tools"],
        &["call", "x"],
        &["audit"],
        &["breakers"],
        &["keys"],
        &["reload"],
    ] {
        let ended = switchyard(folder.path(), arguments).await.expect(3);
        says(&ended, &["switchyard serve"]);
    }
    let url = format!("http://{}", refusing().await);
    let ended = switchyard(folder.path(), &["--url", &url, "servers"]).await.expect(3);
    says(&ended, &[&url]);
}

#[tokio::test]
async fn a_wrong_command_line() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["srve"][..],
        &["serve", "--listen", "nowhere"],
        &["servers", "add", "x"],
        &["servers", "add", "x", "ftp://h/"],
        &["servers", "add", "a b", "http://h/"],
        &["call", "x", "novalue", "k=v"],
        &["call", "x", "{"],
        &["call", "x", "k:=nope"],
        &["audit", "list", "--outcome", "timout"],
        &["audit", "list", "--since", "yesterdayish"],
        &["keys", "create", "x", "--scopes", "cal"],
        &["demo", "--for", "soon"],
        &["check", "--nonsense"],
    ] {
        let ended = switchyard(folder.path(), arguments).await;
        assert!(!ended.err.is_empty(), "{arguments:?}");
        ended.expect(2);
    }
}

#[tokio::test]
async fn a_tool_or_server_that_is_not_there() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&yaml(&[("up", &up)])).await;
    let ended = router.run(&["call", "up__ecko", "text=hi"]).await.expect(1);
    says(&ended, &["up__ecko", "up__echo"]);
    let ended = router.run(&["servers", "show", "upp"]).await;
    says(&ended, &["upp", "`up`"]);
    assert_ne!(ended.code, 0);
    ended.expect(1);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_program_or_address_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let address = refusing().await.to_string();
    let yaml = format!(
        "mcp_servers:\n  missing: {{command: switchyard-it-no-such-program}}\n  away: {{url: \"http://{address}/mcp\"}}\n"
    );
    std::fs::write(folder.path().join("switchyard.yaml"), &yaml).unwrap();
    let ended = switchyard(folder.path(), &["check", "--connect"]).await.expect(1);
    for part in ["switchyard-it-no-such-program", "not found", &address, "refused"] {
        assert!(ended.out.contains(part), "{part:?} is not in {}", ended.out);
    }
    let router = Router::start(&yaml).await;
    let ended = router.run(&["call", "away__echo", "text=hi"]).await.expect(1);
    says(&ended, &["away", "refused"]);
    let ended = router.run(&["call", "missing__echo"]).await.expect(1);
    says(&ended, &["switchyard-it-no-such-program"]);
    let log = router.log();
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(router.stop().await.0, 0);
}
