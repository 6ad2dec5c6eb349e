//! [`Rig`]: a server that breaks in every way a server can, and counts what it was made to do.
//!
//! It writes its bytes itself, so that it can say what no HTTP library would. It is discovered like
//! any server, legacy or modern; what becomes of a request is a [`Fault`], which can be chosen for
//! each tool and each method at any moment:
//!
//! ```ignore
//! let rig = Rig::legacy(&["pay", "read"]).await;
//! rig.annotate("read", json!({ "readOnlyHint": true }));
//! let app = TestApp::start(&rig.yaml("up", "timeout: 1s")).await.ready().await;
//! rig.set("pay", Fault::Reset);                       // executes, then resets
//! rig.mix("read", 200, &[Fault::Reset, Fault::status(500)]); // 200 of 1000 calls
//! rig.next("pay", &[Fault::status(503)]);             // once, then as set
//! app.http().call("up__pay", r#"{"key":"k1"}"#).await;
//! assert_eq!(rig.executed("pay")["k1"], 1);
//! ```
//!
//! A call is *executed* when it came whole, unless the fault says that it is not
//! ([`Fault::executes`]). Executions are counted by the argument `key`, else by all arguments.

mod fault;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::HeaderMap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use fault::Fault;
use wire::{Request, Then, Wire, head};

use super::{LEGACY, MODERN, SOON, eventually};

/// So many calls are kept to be looked at; counters know all of them.
const KEPT: usize = 4096;
/// A gigabyte, as the plans of abuse mean it.
pub const GIGABYTE: u64 = 1_000_000_000;

/// A call as the server saw it.
#[derive(Debug, Clone)]
pub struct RigCall {
    pub at: Instant,
    pub tool: String,
    /// What its executions are counted by.
    pub key: String,
    /// The whole message, with `params._meta`.
    pub body: Value,
    pub headers: HeaderMap,
    end: Arc<Mutex<CallEnd>>,
}

#[derive(Debug, Default)]
struct CallEnd {
    closed: Option<Instant>,
    told: Option<Instant>,
}

impl RigCall {
    /// When its connection was closed by the other side before the answer was complete.
    pub fn closed(&self) -> Option<Instant> {
        self.end.lock().closed
    }

    /// When `notifications/cancelled` came for it.
    pub fn told(&self) -> Option<Instant> {
        self.end.lock().told
    }
}

/// What was counted for one tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls that came whole.
    pub requests: u64,
    /// Calls that ran.
    pub executions: u64,
    /// Calls whose connection the other side closed before the answer was complete.
    pub closed: u64,
    /// Calls that the other side cancelled in words.
    pub told: u64,
}

/// The server. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Rig {
    address: SocketAddr,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    modern: bool,
    tools: Mutex<Vec<(String, String)>>,
    plans: Mutex<Plans>,
    seen: Mutex<Seen>,
    released: watch::Sender<u64>,
    up: Mutex<CancellationToken>,
    closes_idle: AtomicU32,
    accepted: AtomicU64,
    open: AtomicU64,
    has_resource: AtomicBool,
}

#[derive(Debug)]
struct Plans {
    fixed: HashMap<String, Fault>,
    mixed: HashMap<String, (u64, Vec<Fault>)>,
    next: HashMap<String, VecDeque<Fault>>,
    random: u64,
}

impl Plans {
    /// A number below `bound`; the same ones in every run.
    fn roll(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    fn choose(&mut self, name: &str) -> Fault {
        if let Some(fault) = self.next.get_mut(name).and_then(VecDeque::pop_front) {
            return fault;
        }
        if let Some((share, faults)) = self.mixed.get(name).cloned()
            && self.roll(1000) < share
        {
            let at = self.roll(faults.len() as u64);
            return faults[usize::try_from(at).unwrap()].clone();
        }
        self.fixed.get(name).cloned().unwrap_or(Fault::None)
    }
}

#[derive(Debug, Default)]
struct Seen {
    counts: HashMap<String, Counts>,
    executed: HashMap<String, HashMap<String, u32>>,
    calls: VecDeque<RigCall>,
    methods: HashMap<String, u64>,
}

impl Rig {
    /// A server of the legacy era with these tools, which each echo their argument `key`.
    pub async fn legacy(tools: &[&str]) -> Self {
        Self::start(false, tools).await
    }

    /// The same of the modern era.
    pub async fn modern(tools: &[&str]) -> Self {
        Self::start(true, tools).await
    }

    async fn start(modern: bool, tools: &[&str]) -> Self {
        let inner = Arc::new(Inner {
            modern,
            tools: Mutex::default(),
            plans: Mutex::new(Plans {
                fixed: HashMap::new(),
                mixed: HashMap::new(),
                next: HashMap::new(),
                random: 0x9e37_79b9_7f4a_7c15,
            }),
            seen: Mutex::default(),
            released: watch::channel(0).0,
            up: Mutex::default(),
            closes_idle: AtomicU32::new(0),
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
            has_resource: AtomicBool::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        listen(listener, &inner);
        let rig = Self { address, inner };
        for tool in tools {
            rig.define(tool, json!({ "name": tool, "inputSchema": { "type": "object" } }));
        }
        // A server that opens a stream of its own is the exception.
        rig.set("GET", Fault::bare_status(405));
        rig.set("subscriptions/listen", Fault::OpenStream);
        rig
    }

    pub fn host(&self) -> String {
        self.address.ip().to_string()
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn is_modern(&self) -> bool {
        self.inner.modern
    }

    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Its entry in `mcp_servers`, with further settings.
    pub fn entry(&self, name: &str, settings: &str) -> String {
        let settings = if settings.is_empty() { String::new() } else { format!(", {settings}") };
        format!("  {name}: {{url: \"{}\"{settings}}}\n", self.url())
    }

    /// A configuration with it alone.
    pub fn yaml(&self, name: &str, settings: &str) -> String {
        format!("mcp_servers:\n{}", self.entry(name, settings))
    }

    // --- what it offers; asked for at discovery ---

    /// Sets a tool's annotations.
    pub fn annotate(&self, tool: &str, annotations: Value) {
        let mut definition = json!({ "name": tool, "inputSchema": { "type": "object" } });
        definition["annotations"] = annotations;
        self.define(tool, definition);
    }

    /// Adds a tool or replaces its definition.
    pub fn define(&self, tool: &str, definition: Value) {
        self.define_raw(tool, definition.to_string());
    }

    /// The same with the definition's text, whatever it is.
    pub fn define_raw(&self, tool: &str, definition: String) {
        let mut tools = self.inner.tools.lock();
        match tools.iter_mut().find(|(name, _)| name == tool) {
            Some((_, old)) => *old = definition,
            None => tools.push((tool.to_owned(), definition)),
        }
    }

    /// Has a resource beside its tools from now on, whose text is `one`.
    pub fn offer_resource(&self) {
        self.inner.has_resource.store(true, Ordering::Relaxed);
    }

    /// Forgets a tool.
    pub fn forget(&self, tool: &str) {
        self.inner.tools.lock().retain(|(name, _)| name != tool);
    }

    // --- what it does; `name` is a tool, a method (`tools/list`, `initialize`) or `GET` ---

    /// What becomes of each request from now on.
    pub fn set(&self, name: &str, fault: Fault) {
        let mut plans = self.inner.plans.lock();
        plans.mixed.remove(name);
        plans.fixed.insert(name.to_owned(), fault);
    }

    /// What becomes of the next requests, one after the other, before all else holds.
    pub fn next(&self, name: &str, faults: &[Fault]) {
        let mut plans = self.inner.plans.lock();
        plans.next.entry(name.to_owned()).or_default().extend(faults.iter().cloned());
    }

    /// So many of 1000 requests, by chance, get one of these faults; the others what was set.
    pub fn mix(&self, name: &str, of_1000: u64, faults: &[Fault]) {
        self.inner.plans.lock().mixed.insert(name.to_owned(), (of_1000, faults.to_vec()));
    }

    /// Lets go on what [`Fault::Hold`] holds now.
    pub fn release(&self) {
        self.inner.released.send_modify(|count| *count += 1);
    }

    /// So many of 1000 times an idle connection is closed by surprise, within 3 ms after an answer.
    pub fn close_idle(&self, of_1000: u32) {
        self.inner.closes_idle.store(of_1000, Ordering::Relaxed);
    }

    /// Nobody listens any more, and every connection is closed.
    pub fn down(&self) {
        self.inner.up.lock().cancel();
    }

    /// Listens again, at the same address.
    pub fn up(&self) {
        self.down();
        *self.inner.up.lock() = CancellationToken::new();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        listen(socket.listen(1024).unwrap(), &self.inner);
    }

    // --- what it saw ---

    pub fn counts(&self, tool: &str) -> Counts {
        self.inner.seen.lock().counts.get(tool).copied().unwrap_or_default()
    }

    /// How often each key was executed.
    pub fn executed(&self, tool: &str) -> HashMap<String, u32> {
        self.inner.seen.lock().executed.get(tool).cloned().unwrap_or_default()
    }

    /// Keys that were executed more than once.
    pub fn executed_twice(&self, tool: &str) -> Vec<String> {
        let executed = self.executed(tool).into_iter();
        executed.filter(|(_, times)| *times > 1).map(|(key, _)| key).collect()
    }

    /// The last calls, oldest first; at most 4096 of them.
    pub fn calls(&self, tool: &str) -> Vec<RigCall> {
        let seen = self.inner.seen.lock();
        seen.calls.iter().filter(|call| call.tool == tool).cloned().collect()
    }

    /// How often a method came, or `GET` or `DELETE`.
    pub fn asked(&self, method: &str) -> u64 {
        self.inner.seen.lock().methods.get(method).copied().unwrap_or_default()
    }

    /// Connections that were taken so far.
    pub fn connections(&self) -> u64 {
        self.inner.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are open.
    pub fn open(&self) -> u64 {
        self.inner.open.load(Ordering::Relaxed)
    }

    /// Waits for a call that came after `since` and gives it.
    pub async fn call(&self, tool: &str, since: Instant) -> RigCall {
        eventually(SOON, &format!("a call of {tool} arrives"), || async {
            // Nothing else is copied: the calls that come meanwhile would wait for it.
            let seen = self.inner.seen.lock();
            seen.calls.iter().rev().find(|call| call.tool == tool && call.at >= since).cloned()
        })
        .await
    }

    /// How long after `since` the other side closed the call's connection.
    pub async fn closed(&self, call: &RigCall, since: Instant) -> Duration {
        let closed = eventually(SOON, "the connection is closed", || async { call.closed() });
        closed.await.saturating_duration_since(since)
    }

    /// How long after `since` the other side cancelled the call in the way of the era: in words, or
    /// by closing the connection.
    pub async fn cancelled(&self, call: &RigCall, since: Instant) -> Duration {
        let modern = self.inner.modern;
        let find = || async { if modern { call.closed() } else { call.told() } };
        let at = eventually(SOON, "the call is cancelled", find);
        at.await.saturating_duration_since(since)
    }
}

fn listen(listener: TcpListener, inner: &Arc<Inner>) {
    let (inner, down) = (Arc::clone(inner), inner.up.lock().clone());
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = down.cancelled() => return,
            };
            // Out of file descriptors, for example: those that were here go on.
            let Ok((socket, _)) = accepted else { continue };
            inner.accepted.fetch_add(1, Ordering::Relaxed);
            let (inner, down) = (Arc::clone(&inner), down.clone());
            tokio::spawn(async move {
                inner.open.fetch_add(1, Ordering::Relaxed);
                let mut wire = Wire { socket, buffer: BytesMut::new(), end: None };
                tokio::select! {
                    () = inner.serve(&mut wire) => {}
                    () = down.cancelled() => {}
                }
                inner.open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
}

fn no(id: &Value, code: i64) -> Value {
    let error = json!({ "code": code, "message": "the server says no" });
    json!({ "jsonrpc": "2.0", "id": id, "error": error })
}

impl Inner {
    async fn serve(&self, wire: &mut Wire) {
        loop {
            let share = self.closes_idle.load(Ordering::Relaxed);
            let patience = {
                let mut plans = self.plans.lock();
                let closes = plans.roll(1000) < u64::from(share);
                closes.then(|| Duration::from_micros(plans.roll(3000)))
            };
            let request = match patience {
                Some(patience) => match tokio::time::timeout(patience, wire.request()).await {
                    Ok(request) => request,
                    Err(_elapsed) => return,
                },
                None => wire.request().await,
            };
            let Ok(Some(request)) = request else { return };
            let answered = self.answer(wire, request).await;
            if let Err(_gone) = &answered {
                wire.note_closed(self);
            }
            wire.end = None;
            if answered.unwrap_or(Then::Close) == Then::Close {
                return;
            }
        }
    }

    async fn answer(&self, wire: &mut Wire, request: Request) -> io::Result<Then> {
        if request.verb != "POST" {
            *self.seen.lock().methods.entry(request.verb.clone()).or_default() += 1;
            let fault = match request.verb.as_str() {
                "GET" => self.plans.lock().choose("GET"),
                _ => Fault::bare_status(200),
            };
            return self.play(wire, &fault, &Value::Null, "").await;
        }
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let method = body["method"].as_str().unwrap_or_default().to_owned();
        *self.seen.lock().methods.entry(method.clone()).or_default() += 1;
        if body.get("id").is_none() || method.is_empty() {
            if method == "notifications/cancelled" {
                self.note_cancelled(&body["params"]["requestId"]);
            }
            wire.write(head("202 Accepted", "", "content-length: 0\r\n").as_bytes()).await?;
            return Ok(Then::Keep);
        }
        if method != "tools/call" {
            let fault = self.plans.lock().choose(&method);
            let answer = match fault {
                Fault::RpcError(code) => no(&body["id"], code).to_string(),
                _ => self.plain(&method, &body),
            };
            return self.play(wire, &fault, &body["id"], &answer).await;
        }
        let tool = body["params"]["name"].as_str().unwrap_or_default().to_owned();
        let fault = self.plans.lock().choose(&tool);
        let id = body["id"].clone();
        let key = match &body["params"]["arguments"]["key"] {
            Value::Null => body["params"]["arguments"].to_string(),
            Value::String(key) => key.clone(),
            other => other.to_string(),
        };
        wire.end = Some(self.note_call(&tool, &key, body, request.headers, fault.executes()));
        let mut result = json!({
            "content": [{ "type": "text", "text": key }],
            "structuredContent": { "tool": tool, "key": key },
        });
        if matches!(fault, Fault::ToolError) {
            result["isError"] = true.into();
        }
        self.mark(&mut result);
        let answer = match fault {
            Fault::RpcError(code) | Fault::StatusError(_, code) => no(&id, code),
            _ => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        };
        self.play(wire, &fault, &id, &answer.to_string()).await
    }

    fn mark(&self, result: &mut Value) {
        if self.modern {
            result["resultType"] = "complete".into();
        }
    }

    /// The answer to a request that is no call.
    fn plain(&self, method: &str, request: &Value) -> String {
        let mut capabilities = json!({ "tools": { "listChanged": true } });
        let has_resource = self.has_resource.load(Ordering::Relaxed);
        if has_resource {
            capabilities["resources"] = json!({});
        }
        let info = json!({ "name": "rig", "version": "1" });
        let id = &request["id"];
        let mut result = match method {
            "server/discover" if self.modern => json!({
                "supportedVersions": [MODERN], "capabilities": capabilities,
                "_meta": { "io.modelcontextprotocol/serverInfo": info },
                "ttlMs": 0, "cacheScope": "private",
            }),
            "initialize" if !self.modern => json!({
                "protocolVersion": LEGACY, "capabilities": capabilities, "serverInfo": info,
            }),
            "tools/list" => {
                // As text: a definition can be deeper than a parser goes.
                let tools = self.tools.lock();
                let tools: Vec<&str> = tools.iter().map(|(_, tool)| tool.as_str()).collect();
                let more = match self.modern {
                    true => r#","ttlMs":0,"cacheScope":"private","resultType":"complete""#,
                    false => "",
                };
                return format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"result":{{"tools":[{}]{more}}}}}"#,
                    tools.join(",")
                );
            }
            "ping" => json!({}),
            "resources/list" if has_resource => json!({
                "resources": [{ "uri": "rig:one", "name": "one" }],
                "ttlMs": 0, "cacheScope": "private",
            }),
            "resources/templates/list" if has_resource => json!({
                "resourceTemplates": [], "ttlMs": 0, "cacheScope": "private",
            }),
            "resources/read" if has_resource => json!({
                "contents": [{ "uri": "rig:one", "text": "one" }],
                "ttlMs": 0, "cacheScope": "private",
            }),
            _ => {
                let error = json!({ "code": -32601, "message": "no such method" });
                return json!({ "jsonrpc": "2.0", "id": id, "error": error }).to_string();
            }
        };
        self.mark(&mut result);
        json!({ "jsonrpc": "2.0", "id": id, "result": result }).to_string()
    }

    fn note_call(
        &self,
        tool: &str,
        key: &str,
        body: Value,
        headers: HeaderMap,
        executes: bool,
    ) -> Arc<Mutex<CallEnd>> {
        let at = Instant::now();
        let end = Arc::<Mutex<CallEnd>>::default();
        let mut seen = self.seen.lock();
        let counts = seen.counts.entry(tool.to_owned()).or_default();
        counts.requests += 1;
        if executes {
            counts.executions += 1;
            let executed = seen.executed.entry(tool.to_owned()).or_default();
            *executed.entry(key.to_owned()).or_default() += 1;
        }
        if seen.calls.len() == KEPT {
            seen.calls.pop_front();
        }
        let (tool, key) = (tool.to_owned(), key.to_owned());
        seen.calls.push_back(RigCall { at, tool, key, body, headers, end: Arc::clone(&end) });
        end
    }

    fn note_cancelled(&self, id: &Value) {
        let mut seen = self.seen.lock();
        let Seen { calls, counts, .. } = &mut *seen;
        if let Some(call) = calls.iter().rev().find(|call| call.body["id"] == *id) {
            call.end.lock().told.get_or_insert_with(Instant::now);
            counts.entry(call.tool.clone()).or_default().told += 1;
        }
    }
}
