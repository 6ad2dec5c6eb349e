//! `switchyard stdio`, as a client that launches commands sees it: lines in, lines out, whatever
//! becomes of the router behind it.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use switchyard::cli::demo_upstream::{Answers, Options, Tool, Upstream};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Notify;

use crate::support::{
    Fault, LEGACY, MODERN, Rig, Router, SOON, command, eventually, fastest, modern_params,
    refusing, upstream, yaml,
};

/// Longer than any answer here takes, the wait for a router included.
const PATIENCE: Duration = Duration::from_secs(90);

/// `switchyard stdio` and the ends of its pipes.
struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Client {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut command = command(folder);
        command.arg("stdio").args(arguments).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    async fn send(&mut self, line: &str) {
        let line = format!("{line}\n");
        self.stdin.as_mut().unwrap().write_all(line.as_bytes()).await.unwrap();
    }

    async fn request(&mut self, id: &str, method: &str, params: &str) {
        self.send(&format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#
        ))
        .await;
    }

    /// A `tools/call` of the legacy era.
    async fn call(&mut self, id: &str, tool: &str, arguments: &str) {
        let params = format!(r#"{{"name":"{tool}","arguments":{arguments}}}"#);
        self.request(id, "tools/call", &params).await;
    }

    /// The next line. Every line there is must be a message.
    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.stdout.read_line(&mut line));
        read.await.expect("a line in time").unwrap();
        assert_eq!(parse(&line)["jsonrpc"], "2.0", "{line}");
        assert_eq!(line.pop(), Some('\n'));
        line
    }

    async fn next(&mut self) -> Value {
        parse(&self.line().await)
    }

    /// The next answer. A router that has just begun may say in between that its lists changed.
    async fn answer(&mut self) -> Value {
        loop {
            let next = self.next().await;
            if next["method"] != "notifications/tools/list_changed" {
                return next;
            }
        }
    }

    /// Shakes hands as clients of the legacy era do.
    async fn initialize(&mut self) -> Value {
        let params = format!(
            r#"{{"protocolVersion":"{LEGACY}","capabilities":{{"sampling":{{}}}},"clientInfo":{{"name":"it","version":"1"}}}}"#
        );
        self.request("0", "initialize", &params).await;
        let answer = self.next().await;
        self.send(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
        answer
    }

    async fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Closes stdin and waits for the end: exit code, what else stood on stdout, stderr.
    async fn finish(mut self) -> (i32, String, String) {
        drop(self.stdin.take());
        self.ended().await
    }

    async fn ended(&mut self) -> (i32, String, String) {
        let mut stderr = self.child.stderr.take().unwrap();
        let (mut out, mut error) = (String::new(), String::new());
        let all = async {
            let (read, logged) = tokio::join!(
                self.stdout.read_to_string(&mut out),
                stderr.read_to_string(&mut error)
            );
            read.and(logged).unwrap();
            self.child.wait().await.unwrap().code()
        };
        let code = tokio::time::timeout(PATIENCE, all).await.expect("it ends");
        assert!(!error.contains("panicked"), "{error}");
        (code.unwrap_or(-1), out, error)
    }
}

/// Numbers beyond any type are looked at as text only; no parser here takes them.
fn parse(line: &str) -> Value {
    let line = line.replace("1e400", "1").replace("1E+400", "1");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

fn text(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

async fn router() -> (Router, Upstream) {
    let up = upstream(Options::default()).await;
    let router = Router::start(&yaml(&[("up", &up)])).await;
    ready(&router).await;
    (router, up)
}

async fn ready(router: &Router) {
    eventually(SOON, "the router is ready", || async { router.is_ready().await.then_some(()) })
        .await;
}

async fn sessions(router: &Router) -> String {
    let metrics = router.http.get("/metrics").await.expect(200);
    let line = metrics.text().lines().find(|line| line.starts_with("switchyard_sessions{"));
    line.unwrap().split_whitespace().last().unwrap().to_owned()
}

#[tokio::test]
async fn a_client_shakes_hands_lists_and_calls() {
    let (router, _up) = router().await;
    let mut client = Client::start(router.folder.path(), &[]);
    let hello = client.initialize().await;
    assert_eq!(hello["result"]["protocolVersion"], LEGACY);
    assert_eq!(hello["result"]["serverInfo"]["name"], "switchyard");
    client.request("\"list\"", "tools/list", "{}").await;
    let list = client.next().await;
    assert_eq!(list["id"], "list");
    assert_eq!(list["result"]["tools"].as_array().unwrap().len(), 11);
    client.call("1", "up__echo", r#"{"text":"größe 数 \u2028 🦀"}"#).await;
    assert_eq!(text(&client.next().await), "größe 数 \u{2028} 🦀");
    client.call("2", "up__echo_raw", r#"{"n":1e400}"#).await;
    let raw = client.line().await;
    assert!(raw.contains(r#""structuredContent":{"n":1e400}"#), "{raw}");
    client.call("3", "up__nothing", "{}").await;
    assert_eq!(client.next().await["error"]["data"]["error_code"], "MCPToolNotFoundError");
    client.request("4", "ping", "{}").await;
    assert_eq!(client.next().await["result"], serde_json::json!({}));
    // What is no message is answered here, and nothing else suffers.
    client.send("nonsense").await;
    assert_eq!(client.next().await["error"]["code"], -32700);
    client.send("").await;
    client.send(r#"{"jsonrpc":"2.0","id":5,"method":7}"#).await;
    assert_eq!(client.next().await["id"], 5);
    assert_eq!(sessions(&router).await, "1");
    let (code, out, _) = client.finish().await;
    assert_eq!((code, out.as_str()), (0, ""));
    assert_eq!(sessions(&router).await, "0", "the session is ended");
    let calls = router.http.get("/mcp/audit").await.expect(200).json();
    assert_eq!(calls["calls"].as_array().unwrap().len(), 3, "{calls}");
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_client_may_be_given_a_view() {
    let up = upstream(Options::default()).await;
    let views = "views: {small: {tools: {allow: [echo]}}}\n";
    let router = Router::start(&format!("{}{views}", yaml(&[("up", &up)]))).await;
    ready(&router).await;
    let mut client = Client::start(router.folder.path(), &["--view", "small"]);
    client.initialize().await;
    client.request("1", "tools/list", "{}").await;
    let list = client.next().await;
    let tools = list["result"]["tools"].as_array().unwrap();
    assert_eq!((tools.len(), &tools[0]["name"]), (1, &"up__echo".into()));
    client.call("2", "up__echo", r#"{"text":"hi"}"#).await;
    assert_eq!(text(&client.next().await), "hi");
    client.call("3", "up__add", r#"{"a":1,"b":2}"#).await;
    assert_eq!(client.next().await["error"]["data"]["error_code"], "MCPToolNotFoundError");
    assert_eq!(client.finish().await.0, 0);
    let calls = router.http.get("/mcp/audit?view=small").await.expect(200).json();
    assert_eq!(calls["calls"].as_array().unwrap().len(), 2, "{calls}");
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_pipe_that_ends_at_once_has_all_its_answers() {
    let (router, _up) = router().await;
    let url = format!("http://{}", router.address);
    let mut client = Client::start(router.folder.path(), &["--url", &url]);
    let params = format!(r#"{{"protocolVersion":"{LEGACY}","capabilities":{{}}}}"#);
    client.request("0", "initialize", &params).await;
    client.send(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
    client.request("1", "ping", "{}").await;
    client.call("2", "up__sleep", r#"{"ms":300}"#).await;
    // The last line lacks its end.
    let last = r#"{"jsonrpc":"2.0","id":3,"method":"tools/list"}"#;
    client.stdin.as_mut().unwrap().write_all(last.as_bytes()).await.unwrap();
    let (code, out, error) = client.finish().await;
    let mut ids: Vec<i64> = out
        .lines()
        .map(parse)
        .filter(|answer| answer["result"].is_object())
        .map(|answer| answer["id"].as_i64().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!((code, ids), (0, vec![0, 1, 2, 3]), "{out}\n{error}");
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn modern_requests_need_no_handshake_and_are_cancelled_by_their_id() {
    let (router, up) = router().await;
    let mut client = Client::start(router.folder.path(), &[]);
    client.request("\"d\"", "server/discover", &modern_params("")).await;
    let found = client.next().await;
    assert_eq!(found["result"]["supportedVersions"][0], MODERN, "{found}");
    let params = modern_params(r#","name":"up__echo","arguments":{"text":"hi"}"#);
    client.request("1", "tools/call", &params).await;
    let answer = client.next().await;
    assert_eq!((text(&answer), &answer["result"]["resultType"]), ("hi", &"complete".into()));
    // A name that no header can carry as it is.
    let params = modern_params(r#","name":"up__größe","arguments":{}"#);
    client.request("2", "tools/call", &params).await;
    let answer = client.next().await;
    assert_eq!(answer["error"]["data"]["error_code"], "MCPToolNotFoundError", "{answer}");
    let params = modern_params(r#","name":"up__sleep","arguments":{"ms":20000}"#);
    client.request("\"slow\"", "tools/call", &params).await;
    eventually(SOON, "the tool runs", || async {
        (up.stats().calls_of(Tool::Sleep) == 1).then_some(())
    })
    .await;
    let cancel =
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"slow"}}"#;
    client.send(cancel).await;
    eventually(SOON, "the call is abandoned", || async {
        let calls = router.http.get("/mcp/audit?outcome=cancelled").await.expect(200).json();
        (calls["calls"].as_array()?.len() == 1).then_some(())
    })
    .await;
    assert_eq!(sessions(&router).await, "0");
    let (code, out, error) = client.finish().await;
    assert_eq!((code, out.as_str(), error.as_str()), (0, "", ""));
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn answers_come_as_they_are_ready() {
    let rig = Rig::legacy(&["slow", "echo"]).await;
    let router = Router::start(&rig.yaml("up", "")).await;
    ready(&router).await;
    let url = format!("http://{}", router.address);
    let mut client = Client::start(router.folder.path(), &["--url", &url]);
    client.initialize().await;
    rig.set("slow", Fault::hold(Fault::None));
    client.call("\"slow\"", "up__slow", "{}").await;
    for id in 0..100 {
        client.call(&id.to_string(), "up__echo", &format!(r#"{{"key":"{id}"}}"#)).await;
    }
    let mut ids: Vec<i64> = Vec::new();
    for _ in 0..100 {
        let answer = client.next().await;
        let id = answer["id"].as_i64().unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(text(&answer), id.to_string());
        ids.push(id);
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..100).collect::<Vec<_>>());
    eventually(SOON, "the slow one is there", || async {
        (rig.counts("slow").requests == 1).then_some(())
    })
    .await;
    rig.release();
    assert_eq!(client.next().await["id"], "slow");
    assert_eq!(client.finish().await.0, 0);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_restart_of_the_router_goes_unnoticed() {
    let (router, up) = router().await;
    let address = router.address;
    let url = format!("http://{address}");
    let mut clients = [
        Client::start(router.folder.path(), &["--url", &url]),
        Client::start(router.folder.path(), &[]),
    ];
    for client in &mut clients {
        client.initialize().await;
        client.call("1", "up__echo", r#"{"text":"before"}"#).await;
        assert_eq!(text(&client.next().await), "before");
    }
    let folder = router.kill().await;
    for client in &mut clients {
        client.call("2", "up__echo", r#"{"text":"meanwhile"}"#).await;
        client.call("\"gone\"", "up__echo", r#"{"text":"cancelled"}"#).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for client in &mut clients {
        client
            .send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"gone"}}"#)
            .await;
    }
    let router = Router::start_again(folder, address).await;
    ready(&router).await;
    for client in &mut clients {
        let answer = client.next().await;
        assert_eq!((&answer["id"], text(&answer)), (&2.into(), "meanwhile"));
        client.call("3", "up__echo", r#"{"text":"after"}"#).await;
        assert_eq!(text(&client.next().await), "after");
    }
    assert_eq!(up.stats().calls(), 6, "what was cancelled while it waited never ran");
    assert_eq!(sessions(&router).await, "2", "the sessions are the old ones");
    for client in clients {
        let (code, out, _) = client.finish().await;
        assert_eq!((code, out.as_str()), (0, ""));
    }
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_session_the_router_forgot_is_begun_anew() {
    let (router, up) = router().await;
    let address = router.address;
    let mut client = Client::start(router.folder.path(), &["--url", &format!("http://{address}")]);
    client.initialize().await;
    drop(router.kill().await);
    // Another folder: nothing of the old router is left.
    let folder = tempfile::tempdir().unwrap();
    Router::write(folder.path(), &yaml(&[("up", &up)]));
    let router = Router::start_again(folder, address).await;
    ready(&router).await;
    for id in 0..10 {
        client.call(&id.to_string(), "up__echo", r#"{"text":"hi"}"#).await;
    }
    for _ in 0..10 {
        assert_eq!(text(&client.answer().await), "hi");
    }
    assert_eq!((sessions(&router).await.as_str(), up.stats().calls()), ("1", 10));
    let (code, out, _) = client.finish().await;
    assert_eq!(code, 0);
    assert!(out.lines().all(|line| line.contains("list_changed")), "{out}");
    assert_eq!(sessions(&router).await, "0");
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_call_that_may_have_run_is_not_repeated() {
    let (router, up) = router().await;
    let address = router.address;
    let mut client = Client::start(router.folder.path(), &["--url", &format!("http://{address}")]);
    client.initialize().await;
    client.call("1", "up__sleep", r#"{"ms":20000}"#).await;
    eventually(SOON, "the tool runs", || async {
        (up.stats().calls_of(Tool::Sleep) == 1).then_some(())
    })
    .await;
    let router = Router::start_again(router.kill().await, address).await;
    let error = client.answer().await;
    assert_eq!((&error["id"], &error["error"]["code"]), (&1.into(), &(-32603).into()), "{error}");
    assert_eq!(error["error"]["data"]["outcome"], "unknown");
    assert_eq!(error["error"]["data"]["reason"], "router_connection_lost");
    client.request("2", "ping", "{}").await;
    assert_eq!(client.answer().await["id"], 2);
    assert_eq!(up.stats().calls_of(Tool::Sleep), 1);
    assert_eq!(client.finish().await.0, 0);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn without_a_router_requests_are_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let address = refusing().await.to_string();
    let mut client = Client::start(folder.path(), &["--url", &format!("http://{address}")]);
    let began = Instant::now();
    let answer = client.initialize().await;
    assert!(began.elapsed() > Duration::from_secs(3), "a router may still come");
    assert!(began.elapsed() < Duration::from_secs(28), "{:?}", began.elapsed());
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("switchyard serve") && message.contains(&address), "{message}");
    assert_eq!(answer["error"]["data"]["outcome"], "not_sent");
    let (code, out, _) = client.finish().await;
    assert_eq!((code, out.as_str()), (0, ""));

    // One that comes a moment later is waited for.
    let mut client = Client::start(folder.path(), &["--url", &format!("http://{address}")]);
    client.request("1", "server/discover", &modern_params("")).await;
    Router::write(folder.path(), "");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let router = Router::start_again(folder, address.parse().unwrap()).await;
    assert_eq!(client.next().await["result"]["supportedVersions"][0], MODERN);
    assert_eq!(client.finish().await.0, 0);
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_signal_ends_it_in_order() {
    let (router, _up) = router().await;
    for name in ["TERM", "INT"] {
        let mut client = Client::start(router.folder.path(), &[]);
        client.initialize().await;
        client.call("1", "up__sleep", r#"{"ms":3000}"#).await;
        client.request("2", "ping", "{}").await;
        assert_eq!(client.next().await["id"], 2);
        client.signal(name).await;
        assert_eq!(client.next().await["id"], 1, "what is under way has its answer");
        let (code, out, _) = client.ended().await;
        assert_eq!((code, out.as_str()), (0, ""), "{name}");
        assert_eq!(sessions(&router).await, "0");
    }
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn a_client_that_went_away_ends_it() {
    let (router, _up) = router().await;
    let mut client = Client::start(router.folder.path(), &[]);
    client.initialize().await;
    let Client { mut child, stdin, stdout } = client;
    drop(stdout);
    let mut stdin = stdin.unwrap();
    stdin.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n").await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends");
    assert_eq!(ended.unwrap().code(), Some(0));
    assert_eq!(sessions(&router).await, "0");
    assert_eq!(router.stop().await.0, 0);
}

#[tokio::test]
async fn answers_as_streams_and_headers_of_calls_are_understood() {
    let options = Options { answers: Answers::Sse, record: true, ..Options::default() };
    let up = upstream(options).await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://{}", up.address());
    let mut client = Client::start(folder.path(), &["--url", &url]);
    client.initialize().await;
    up.forget_sessions();
    client.call("1", "echo", r#"{"text":"legacy"}"#).await;
    assert_eq!(text(&client.next().await), "legacy");
    let params = modern_params(r#","name":"echo","arguments":{"text":"modern"}"#);
    client.request("2", "tools/call", &params).await;
    assert_eq!(text(&client.next().await), "modern");
    assert_eq!(client.finish().await.0, 0);
    let seen = up.stats().seen();
    let count = |method: &str| seen.iter().filter(|seen| seen.method == method).count();
    assert_eq!((count("initialize"), count("notifications/initialized")), (2, 2));
    assert_eq!(count("tools/list"), 1, "the tool was in no list that had passed");
    let call = seen.iter().rfind(|seen| seen.method == "tools/call").unwrap();
    assert_eq!(call.headers["mcp-protocol-version"], MODERN);
    assert_eq!(call.headers["mcp-method"], "tools/call");
    assert_eq!(call.headers["mcp-name"], "echo");
    assert!(!call.headers.contains_key("mcp-session-id"));
    assert_eq!(
        call.body,
        format!(r#"{{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{params}}}"#)
    );
}

#[tokio::test]
async fn a_key_is_asked_for_and_used() {
    let up = upstream(Options::default()).await;
    let router = Router::start(&format!("auth: {{mode: keys}}\n{}", yaml(&[("up", &up)]))).await;
    let made = router.run(&["keys", "create", "desk", "--scopes", "call"]).await.expect(0);
    let key = made.out.split_whitespace().find(|word| word.starts_with("sy_")).unwrap();
    let url = format!("http://{}", router.address);
    let elsewhere = tempfile::tempdir().unwrap();
    let mut client = Client::start(elsewhere.path(), &["--url", &url]);
    let refused = client.initialize().await;
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("SWITCHYARD_KEY") && !message.contains('\n'), "{message}");
    assert_eq!(
        (&refused["id"], &refused["error"]["data"]["outcome"]),
        (&0.into(), &"refused".into())
    );
    assert_eq!(client.finish().await.0, 0);
    // What the client gave up is not waited for at the end, which would be for five seconds.
    let bound = Duration::from_secs(3);
    let took = fastest(bound, async || {
        let mut client = Client::start(elsewhere.path(), &["--url", &url, "--key", key]);
        client.initialize().await;
        client.request("1", "ping", "{}").await;
        assert_eq!(client.next().await["result"], serde_json::json!({}));
        client.call("2", "up__sleep", r#"{"ms":60000}"#).await;
        let cancelled =
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}"#;
        client.send(cancelled).await;
        client.request("3", "ping", "{}").await;
        assert_eq!(client.next().await["id"], 3);
        let began = Instant::now();
        assert_eq!(client.finish().await.0, 0);
        began.elapsed()
    })
    .await;
    assert!(took < bound, "{took:?}");
    router.kill().await;
}

/// A router on the wire that sends what the real one may send one day: progress, a request of its
/// own in the middle of a call, and a stream of server messages that it closes.
struct Wire {
    url: String,
    seen: Arc<Mutex<Vec<(String, String)>>>,
}

const STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

impl Wire {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answered = Arc::new(Notify::new());
        let all = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Self::answer(stream, Arc::clone(&all), Arc::clone(&answered)));
            }
        });
        Self { url, seen }
    }

    async fn answer(
        stream: TcpStream,
        seen: Arc<Mutex<Vec<(String, String)>>>,
        answered: Arc<Notify>,
    ) {
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await.unwrap() == 0 {
                return;
            }
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        stream.read_exact(&mut body).await.unwrap();
        let body = String::from_utf8(body).unwrap();
        let streams = seen.lock().iter().filter(|(head, _)| head.starts_with("GET")).count();
        seen.lock().push((head.clone(), body.clone()));
        let json = |more: &str, body: &str| {
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            )
        };
        let first = if head.starts_with("GET") && streams == 0 {
            format!(
                "{STREAM}id: e7\ndata:\n\nid: e8\ndata: {{\"jsonrpc\":\"2.0\",\ndata: \"method\":\"notifications/tools/list_changed\"}}\n\n"
            )
        } else if head.starts_with("GET") {
            STREAM.to_owned()
        } else if body.contains("\"initialize\"") {
            let result = format!(
                "{{\"jsonrpc\":\"2.0\",\n\"id\":0,\r\n\"result\":{{\"protocolVersion\":\"{LEGACY}\",\"capabilities\":{{}}}}}}"
            );
            json("Mcp-Session-Id: s1\r\n", &result)
        } else if body.contains("\"tools/call\"") {
            format!(
                "{STREAM}: hello\n\ndata: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{{\"progressToken\":1,\"progress\":1}}}}\n\nevent: message\ndata: {{\"jsonrpc\":\"2.0\",\"id\":\"s\",\ndata: \"method\":\"sampling/createMessage\",\"params\":{{}}}}\n\n"
            )
        } else {
            "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
        };
        stream.write_all(first.as_bytes()).await.unwrap();
        if body.contains("\"tools/call\"") {
            answered.notified().await;
            let last = "data: {\"jsonrpc\":\"2.0\",\"id\":9,\"result\":{\"content\":[]}}\n\n";
            stream.write_all(last.as_bytes()).await.unwrap();
        } else if body.contains("\"role\"") {
            answered.notify_one();
        } else if head.starts_with("GET") && streams > 0 {
            // Open until the other side closes it.
            let _ = stream.read(&mut [0; 16]).await;
        }
        let _ = stream.shutdown().await;
    }

    fn heads(&self, begin: &str) -> Vec<String> {
        let seen = self.seen.lock();
        seen.iter().map(|(head, _)| head).filter(|head| head.starts_with(begin)).cloned().collect()
    }
}

#[tokio::test]
async fn progress_and_requests_of_servers_pass_both_ways() {
    let wire = Wire::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut client = Client::start(folder.path(), &["--url", &wire.url, "--view", "a b"]);
    let hello = client.initialize().await;
    assert_eq!(hello["result"]["protocolVersion"], LEGACY);
    let changed = client.line().await;
    assert_eq!(changed, r#"{"jsonrpc":"2.0", "method":"notifications/tools/list_changed"}"#);
    client.call("9", "x", "{}").await;
    assert_eq!(client.next().await["method"], "notifications/progress");
    let asked = client.next().await;
    assert_eq!((&asked["method"], &asked["id"]), (&"sampling/createMessage".into(), &"s".into()));
    // In this era the server is told, and may answer all the same.
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":9}}"#;
    client.send(cancel).await;
    eventually(SOON, "the server is told", || async {
        wire.seen.lock().iter().any(|(_, body)| body == cancel).then_some(())
    })
    .await;
    let answer = r#"{"jsonrpc":"2.0","id":"s","result":{"role":"assistant"}}"#;
    client.send(answer).await;
    assert_eq!(client.next().await["id"], 9);
    let again = eventually(SOON, "the stream is opened again", || async {
        wire.heads("GET").get(1).cloned()
    })
    .await;
    assert!(again.contains("last-event-id: e8\r\n"), "{again}");
    let (code, out, _) = client.finish().await;
    assert_eq!((code, out.as_str()), (0, ""));
    let after = wire.heads("");
    assert!(after.iter().all(|head| head.contains(" /mcp/v/a%20b HTTP/1.1\r\n")), "{after:?}");
    for head in &after[1..] {
        assert!(head.contains("mcp-session-id: s1\r\n"), "{head}");
        assert!(head.contains(&format!("mcp-protocol-version: {LEGACY}\r\n")), "{head}");
    }
    assert_eq!(wire.heads("DELETE").len(), 1);
    assert!(wire.seen.lock().iter().any(|(_, body)| body == answer));
}

/// What a client says of its trace reaches the server as it said it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_through() {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let rig = Rig::modern(&["pay"]).await;
    let router = Router::start(&rig.yaml("up", "")).await;
    eventually(SOON, "the server is up", || async {
        (router.http.server("up").await?["state"] == "up").then_some(())
    })
    .await;
    let mut client = Client::start(router.folder.path(), &["--data-dir", "data"]);
    client.initialize().await;
    let meta = format!(r#"{{"traceparent":"{PARENT}","tracestate":"a=1","baggage":"b=2"}}"#);
    let params = format!(r#"{{"name":"up__pay","arguments":{{"key":"k"}},"_meta":{meta}}}"#);
    client.request("1", "tools/call", &params).await;
    assert_eq!(text(&client.next().await), "k");
    let call = rig.calls("pay").pop().unwrap();
    for (name, value) in [("traceparent", PARENT), ("tracestate", "a=1"), ("baggage", "b=2")] {
        assert_eq!(call.headers[name], value);
        assert_eq!(call.body["params"]["_meta"][name], value);
    }
    assert_eq!(client.finish().await.0, 0);
    assert_eq!(router.stop().await.0, 0);
}
