//! A server that does what its caller writes: each call carries the steps that are played before
//! its answer. It speaks the legacy or the modern era over HTTP, and the legacy one over a socket
//! that a shell makes a child's pipes of, and keeps everything it hears with the time.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use hyper::body::Frame;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use super::{LEGACY, MODERN, SOON, eventually};

/// What a modern message is marked with.
pub const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";
/// No script takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Legacy,
    Modern,
    /// Legacy, as a child with pipes.
    Stdio,
}

/// One message that came, or one stream that was opened.
#[derive(Debug, Clone)]
pub struct Seen {
    pub at: Instant,
    pub verb: Method,
    pub headers: HeaderMap,
    pub body: Value,
    /// When its connection was closed before the answer had been sent.
    pub gone: Arc<Mutex<Option<Instant>>>,
}

/// The server.
#[derive(Debug, Clone)]
pub struct Stage {
    pub role: Role,
    address: SocketAddr,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    role: Role,
    seen: Mutex<Vec<Seen>>,
    keep: bool,
    tools: Mutex<Vec<String>>,
    hearers: Mutex<Vec<Hearer>>,
    questions: Mutex<HashMap<String, oneshot::Sender<Value>>>,
    broken: Mutex<HashMap<String, Out>>,
    numbers: AtomicU64,
}

type Sender = mpsc::UnboundedSender<Bytes>;

/// Somebody with a stream for what belongs to no request.
#[derive(Debug)]
struct Hearer {
    lines: Sender,
    /// Modern: the id of the listening request.
    subscription: Option<Value>,
}

/// Where one request's messages go.
#[derive(Debug, Clone)]
enum Out {
    Line(Sender),
    /// Events, numbered in a stream of this number.
    Events(Arc<Mutex<Events>>),
}

#[derive(Debug)]
struct Events {
    stream: u64,
    next: u64,
    body: Option<Sender>,
    waiting: Vec<Bytes>,
}

impl Stage {
    pub async fn start(role: Role) -> Self {
        Self::with(role, true).await
    }

    /// One that keeps nothing, for very many calls.
    pub async fn forgetful(role: Role) -> Self {
        Self::with(role, false).await
    }

    async fn with(role: Role, keep: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            role,
            seen: Mutex::default(),
            keep,
            tools: Mutex::new(vec!["play".to_owned()]),
            hearers: Mutex::default(),
            questions: Mutex::default(),
            broken: Mutex::default(),
            numbers: AtomicU64::new(1),
        });
        if role == Role::Stdio {
            tokio::spawn(serve_lines(listener, Arc::clone(&inner)));
        } else {
            let app = axum::Router::new().fallback(serve).with_state(Arc::clone(&inner));
            tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        }
        Self { role, address, inner }
    }

    /// Its entry in `mcp_servers`, with further settings.
    pub fn entry(&self, name: &str, settings: &str) -> String {
        let Self { address, .. } = self;
        let (host, port) = (address.ip(), address.port());
        let place = match self.role {
            Role::Legacy | Role::Modern => format!("url: \"http://{address}/mcp\""),
            Role::Stdio => format!(
                "command: bash, args: [\"-c\", \"exec 3<>/dev/tcp/{host}/{port}; cat <&3 & cat >&3; kill -TERM 0\"]"
            ),
        };
        let settings = if settings.is_empty() { String::new() } else { format!(", {settings}") };
        format!("  {name}: {{{place}{settings}}}\n")
    }

    /// What came with this method, oldest first.
    pub fn seen(&self, method: &str) -> Vec<Seen> {
        let seen = self.inner.seen.lock();
        seen.iter().filter(|seen| seen.body["method"] == method).cloned().collect()
    }

    /// Everything that came.
    pub fn all(&self) -> Vec<Seen> {
        self.inner.seen.lock().clone()
    }

    /// The call with this tag, once it is there.
    pub async fn call(&self, tag: &str) -> Seen {
        let find = || async {
            let calls = self.seen("tools/call").into_iter();
            calls.rev().find(|seen| seen.body["params"]["arguments"]["tag"] == tag)
        };
        eventually(SOON, &format!("the call {tag} arrives"), find).await
    }

    /// How long after `since` the call `seen` was cancelled, by closing its connection or in words.
    pub async fn cancelled(&self, seen: &Seen, since: Instant) -> Duration {
        let find = || async {
            let told = self.seen("notifications/cancelled").into_iter();
            let mut told = told.filter(|told| told.body["params"]["requestId"] == seen.body["id"]);
            let closed = match self.role {
                Role::Modern => *seen.gone.lock(),
                Role::Legacy | Role::Stdio => told.next().map(|told| told.at),
            };
            closed.map(|at| at.saturating_duration_since(since))
        };
        eventually(SOON, "the call is cancelled", find).await
    }

    /// Whether the call was cancelled so far.
    pub fn is_cancelled(&self, seen: &Seen) -> bool {
        let told = self.seen("notifications/cancelled");
        let told = told.iter().any(|told| told.body["params"]["requestId"] == seen.body["id"]);
        told || self.role == Role::Modern && seen.gone.lock().is_some()
    }

    pub fn set_tools(&self, tools: &[&str]) {
        *self.inner.tools.lock() = tools.iter().map(|&tool| tool.to_owned()).collect();
    }

    /// Says something on its own to all who hear it.
    pub fn say(&self, method: &str, params: Value) {
        self.inner.say(method, params);
    }

    /// Waits until somebody hears what it says on its own.
    pub async fn heard(&self) {
        eventually(SOON, "somebody listens", || async {
            let mut hearers = self.inner.hearers.lock();
            hearers.retain(|hearer| !hearer.lines.is_closed());
            (!hearers.is_empty()).then_some(())
        })
        .await;
    }
}

impl Inner {
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn note(&self, verb: Method, headers: HeaderMap, body: Value) -> Seen {
        let seen = Seen { at: Instant::now(), verb, headers, body, gone: Arc::default() };
        if self.keep {
            self.seen.lock().push(seen.clone());
        }
        seen
    }

    fn say(&self, method: &str, params: Value) {
        for hearer in self.hearers.lock().iter() {
            let mut message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
            if let Some(id) = &hearer.subscription {
                message["params"]["_meta"] = json!({ SUBSCRIPTION: id });
            }
            let framed = match self.role {
                Role::Stdio => format!("{message}\n"),
                Role::Legacy | Role::Modern => format!("data: {message}\n\n"),
            };
            drop(hearer.lines.send(framed.into()));
        }
    }

    /// The answer to a request that needs no stream.
    fn plain(&self, request: &Value) -> Value {
        let capabilities = json!({
            "tools": { "listChanged": true },
            "resources": { "subscribe": true, "listChanged": true },
            "logging": {},
        });
        let info = json!({ "name": "stage", "version": "1" });
        let mut result = match request["method"].as_str().unwrap_or_default() {
            "server/discover" if self.role == Role::Modern => json!({
                "supportedVersions": [MODERN], "capabilities": capabilities,
                "_meta": { "io.modelcontextprotocol/serverInfo": info },
                "ttlMs": 0, "cacheScope": "private",
            }),
            "initialize" if self.role != Role::Modern => json!({
                "protocolVersion": LEGACY, "capabilities": capabilities, "serverInfo": info,
            }),
            "tools/list" => {
                let tools = self.tools.lock().clone();
                let tools = tools.iter().map(|name| {
                    json!({
                        "name": name, "inputSchema": { "type": "object" },
                    })
                });
                json!({ "tools": tools.collect::<Vec<_>>(), "ttlMs": 0, "cacheScope": "private" })
            }
            "resources/list" => {
                let resource = |uri: &str| json!({ "uri": uri, "name": uri });
                let resources = [resource("stage:one"), resource("stage:two")];
                json!({ "resources": resources, "ttlMs": 0, "cacheScope": "private" })
            }
            "resources/templates/list" => json!({ "resourceTemplates": [] }),
            "resources/subscribe" | "resources/unsubscribe" | "logging/setLevel" | "ping" => {
                json!({})
            }
            _ => {
                let error = json!({ "code": -32601, "message": "no such method" });
                return json!({ "jsonrpc": "2.0", "id": request["id"], "error": error });
            }
        };
        if self.role == Role::Modern {
            result["resultType"] = "complete".into();
        }
        json!({ "jsonrpc": "2.0", "id": request["id"], "result": result })
    }

    /// Plays the steps of a call and answers it.
    async fn play(self: Arc<Self>, request: Value, out: Out) {
        let params = &request["params"];
        let arguments = &params["arguments"];
        let tag = &arguments["tag"];
        let mut heard = Vec::new();
        let mut progress = 0;
        for step in arguments["steps"].as_array().into_iter().flatten() {
            let step = step.as_str().unwrap();
            let (step, what) = step.split_once('=').unwrap_or((step, ""));
            let say = |method: &str, params: Value| {
                out.say(json!({ "jsonrpc": "2.0", "method": method, "params": params }));
            };
            match step {
                "progress" => {
                    progress += 1;
                    if let Some(token) = params["_meta"].get("progressToken") {
                        let params = json!({
                            "progressToken": token, "progress": progress, "message": tag,
                        });
                        say("notifications/progress", params);
                    }
                }
                "log" => say("notifications/message", json!({ "level": what, "data": tag })),
                "ask" => {
                    let id = format!("q-{}", self.number());
                    let (reply, answer) = oneshot::channel();
                    self.questions.lock().insert(id.clone(), reply);
                    let params = json!({ "tag": tag });
                    out.say(
                        json!({ "jsonrpc": "2.0", "id": id, "method": what, "params": params }),
                    );
                    let answer = tokio::time::timeout(PATIENCE, answer).await;
                    heard.push(answer.map(Result::unwrap).unwrap_or(Value::Null));
                }
                "sleep" => tokio::time::sleep(Duration::from_millis(what.parse().unwrap())).await,
                "hang" => std::future::pending().await,
                "prime" => out.break_off(&self, what),
                // The stream ends without the answer, for the first so many calls with this tag.
                "leave" => {
                    let seen = self.seen.lock();
                    let arguments = seen.iter().map(|seen| &seen.body["params"]["arguments"]);
                    let before = arguments.filter(|known| known["tag"] == *tag).count();
                    if before <= what.parse().unwrap() {
                        return out.end();
                    }
                }
                "need" if params["inputResponses"].is_null() => {
                    let result = json!({
                        "resultType": "input_required",
                        "inputRequests": { "k": { "method": what, "params": { "tag": tag } } },
                        "requestState": format!("state é \\ of {}", tag.as_str().unwrap_or_default()),
                    });
                    out.say(json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }));
                    return out.end();
                }
                "need" => heard.push(params["inputResponses"].clone()),
                other => panic!("no step {other}"),
            }
        }
        let mut result = json!({
            "content": [{ "type": "text", "text": tag }],
            "structuredContent": { "tag": tag, "heard": heard, "state": params["requestState"] },
        });
        if self.role == Role::Modern {
            result["resultType"] = "complete".into();
        }
        out.say(json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }));
        out.end();
    }
}

impl Out {
    fn say(&self, message: Value) {
        match self {
            Self::Line(lines) => drop(lines.send(format!("{message}\n").into())),
            Self::Events(events) => {
                let mut events = events.lock();
                events.next += 1;
                let id = format!("{}-{}", events.stream, events.next);
                let event = Bytes::from(format!("id: {id}\ndata: {message}\n\n"));
                match &events.body {
                    Some(body) => drop(body.send(event)),
                    None => events.waiting.push(event),
                }
            }
        }
    }

    fn end(&self) {
        if let Self::Events(events) = self {
            let mut events = events.lock();
            events.next = u64::MAX;
            events.body = None;
        }
    }

    /// Ends the stream; the rest waits for whoever comes back.
    fn break_off(&self, inner: &Inner, retry: &str) {
        let Self::Events(shared) = self else { return };
        let mut events = shared.lock();
        events.next += 1;
        let id = format!("{}-{}", events.stream, events.next);
        if let Some(body) = events.body.take() {
            drop(body.send(format!("id: {id}\nretry: {retry}\ndata: \n\n").into()));
        }
        inner.broken.lock().insert(id, self.clone());
    }
}

/// A body that knows whether it was sent to its end.
struct Body {
    events: mpsc::UnboundedReceiver<Bytes>,
    gone: Option<Arc<Mutex<Option<Instant>>>>,
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = self.events.poll_recv(context);
        if let Poll::Ready(None) = polled {
            self.gone = None;
        }
        polled.map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(gone) = &self.gone {
            *gone.lock() = Some(Instant::now());
        }
    }
}

/// Notes the time when it is dropped before it was told that all went well.
struct Watch(Option<Arc<Mutex<Option<Instant>>>>);

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(gone) = &self.0 {
            *gone.lock() = Some(Instant::now());
        }
    }
}

fn stream(events: mpsc::UnboundedReceiver<Bytes>, seen: &Seen) -> Response {
    let body = axum::body::Body::new(Body { events, gone: Some(Arc::clone(&seen.gone)) });
    ([("content-type", "text/event-stream")], body).into_response()
}

async fn serve(
    State(inner): State<Arc<Inner>>,
    verb: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let seen = inner.note(verb.clone(), headers, body);
    let (sender, events) = mpsc::unbounded_channel();
    let request = seen.body.clone();
    if verb != Method::POST {
        let last = seen.headers.get("last-event-id").and_then(|id| id.to_str().ok());
        if verb != Method::GET || inner.role == Role::Modern {
            return StatusCode::METHOD_NOT_ALLOWED.into_response();
        }
        let Some(last) = last else {
            inner.hearers.lock().push(Hearer { lines: sender, subscription: None });
            return stream(events, &seen);
        };
        let Some(Out::Events(rest)) = inner.broken.lock().remove(last) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let mut rest = rest.lock();
        for event in rest.waiting.drain(..) {
            drop(sender.send(event));
        }
        if rest.next != u64::MAX {
            rest.body = Some(sender);
        }
        return stream(events, &seen);
    }
    if request["method"].is_null() || request.get("id").is_none() {
        let reply = request["id"].as_str().and_then(|id| inner.questions.lock().remove(id));
        if let Some(reply) = reply {
            drop(reply.send(request));
        }
        return StatusCode::ACCEPTED.into_response();
    }
    if request["method"] == "subscriptions/listen" && inner.role == Role::Modern {
        let filter = &request["params"]["notifications"];
        let id = &request["id"];
        let params = json!({ "_meta": { SUBSCRIPTION: id }, "notifications": filter });
        let method = "notifications/subscriptions/acknowledged";
        let message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        drop(sender.send(format!("data: {message}\n\n").into()));
        let subscription = Some(request["id"].clone());
        inner.hearers.lock().push(Hearer { lines: sender, subscription });
        return stream(events, &seen);
    }
    if request["method"] != "tools/call" {
        let answer = inner.plain(&request);
        let session = (request["method"] == "initialize").then(|| format!("s{}", inner.number()));
        let mut response = axum::Json(answer).into_response();
        if let Some(session) = session {
            response.headers_mut().insert("mcp-session-id", session.parse().unwrap());
        }
        return response;
    }
    let steps = request["params"]["arguments"]["steps"].to_string();
    let speaks =
        ["progress", "log=", "ask=", "prime=", "leave="].iter().any(|step| steps.contains(step));
    let out = Out::Events(Arc::new(Mutex::new(Events {
        stream: inner.number(),
        next: 0,
        body: Some(sender),
        waiting: Vec::new(),
    })));
    let mut watch = Watch(Some(Arc::clone(&seen.gone)));
    if speaks {
        tokio::spawn(inner.play(request, out));
        watch.0 = None;
        return stream(events, &seen);
    }
    inner.play(request, out).await;
    watch.0 = None;
    let mut events = events;
    let event = events.recv().await.unwrap();
    let text = std::str::from_utf8(&event).unwrap();
    let (_, message) = text.trim_end().split_once("data: ").unwrap();
    ([("content-type", "application/json")], message.to_owned()).into_response()
}

async fn serve_lines(listener: TcpListener, inner: Arc<Inner>) {
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(serve_child(socket, Arc::clone(&inner)));
    }
}

/// One child: the other end of its pipes.
async fn serve_child(socket: TcpStream, inner: Arc<Inner>) {
    let (read, mut write) = socket.into_split();
    let (lines, mut queue) = mpsc::unbounded_channel::<Bytes>();
    inner.hearers.lock().push(Hearer { lines: lines.clone(), subscription: None });
    tokio::spawn(async move {
        while let Some(line) = queue.recv().await {
            if write.write_all(&line).await.is_err() {
                return;
            }
        }
    });
    let mut read = BufReader::new(read).lines();
    while let Ok(Some(line)) = read.next_line().await {
        let request: Value = serde_json::from_str(&line).unwrap();
        inner.note(Method::POST, HeaderMap::new(), request.clone());
        let out = Out::Line(lines.clone());
        if request["method"].is_null() || request.get("id").is_none() {
            let reply = request["id"].as_str().and_then(|id| inner.questions.lock().remove(id));
            if let Some(reply) = reply {
                drop(reply.send(request));
            }
        } else if request["method"] == "tools/call" {
            tokio::spawn(Arc::clone(&inner).play(request, out));
        } else {
            out.say(inner.plain(&request));
        }
    }
}
