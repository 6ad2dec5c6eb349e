//! [`Speaker`]: a client of either era that chooses its ids, tokens and capabilities, and reads
//! its answers as they come.

use http::Method;
use serde_json::{Value, json};

use super::http::Call;
use super::{Answer, Http, LEGACY, MODERN, Role, SOON, Stage, Stream, TestApp, eventually};

/// One client.
#[derive(Debug, Clone)]
pub struct Speaker {
    pub http: Http,
    pub version: &'static str,
    /// Legacy: its session.
    pub session: Option<String>,
    pub capabilities: Value,
}

/// Arguments that make the stage play `steps`.
pub fn play(tag: &str, steps: &[&str]) -> Value {
    json!({ "tag": tag, "steps": steps })
}

/// The message of a progress notification, if it is one.
pub fn progress_of(message: &Value) -> Option<(&Value, &str)> {
    if message["method"] != "notifications/progress" {
        return None;
    }
    Some((&message["params"]["progressToken"], message["params"]["message"].as_str()?))
}

impl Speaker {
    pub async fn legacy(app: &TestApp, capabilities: Value) -> Self {
        Self::of_version(app.http(), LEGACY, capabilities).await
    }

    pub fn modern(app: &TestApp, capabilities: Value) -> Self {
        Self { http: app.http().clone(), version: MODERN, session: None, capabilities }
    }

    /// A legacy client that shook hands for this version.
    pub async fn of_version(http: &Http, version: &'static str, capabilities: Value) -> Self {
        let mut client = Self { http: http.clone(), version, session: None, capabilities };
        let params = json!({
            "protocolVersion": version, "capabilities": client.capabilities,
            "clientInfo": { "name": "it", "version": "1" },
        });
        let answer = client.request(&json!(0), "initialize", params).send().await.expect(200);
        client.session = Some(answer.header("mcp-session-id").to_owned());
        client.tell("notifications/initialized", json!({})).await.expect(202);
        client
    }

    /// A message as it is.
    pub fn message(&self, message: &Value) -> Call {
        self.bytes(message.to_string())
    }

    pub fn bytes(&self, body: String) -> Call {
        let call = self
            .with_session(&Method::POST)
            .header("accept", "application/json, text/event-stream");
        call.body(body)
    }

    fn with_session(&self, verb: &Method) -> Call {
        let call = self.http.request(verb, "/mcp").header("mcp-protocol-version", self.version);
        match &self.session {
            Some(session) => call.header("mcp-session-id", session),
            None => call,
        }
    }

    /// A request; in the modern era with everything it must carry. `params._meta` stays.
    pub fn request(&self, id: &Value, method: &str, mut params: Value) -> Call {
        let modern = self.version == MODERN;
        if modern {
            let meta = &mut params["_meta"];
            meta["io.modelcontextprotocol/protocolVersion"] = MODERN.into();
            meta["io.modelcontextprotocol/clientCapabilities"] = self.capabilities.clone();
        }
        let name = params["name"].as_str().map(str::to_owned);
        let message = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let call = self.message(&message);
        if !modern {
            return call;
        }
        let call = call.header("mcp-method", method);
        match name {
            Some(name) => call.header("mcp-name", &name),
            None => call,
        }
    }

    /// A call of `up__play`; with a progress token when there is one.
    pub fn call(&self, id: &Value, token: Option<&Value>, arguments: Value) -> Call {
        let mut params = json!({ "name": "up__play", "arguments": arguments });
        if let Some(token) = token {
            params["_meta"]["progressToken"] = token.clone();
        }
        self.request(id, "tools/call", params)
    }

    pub async fn tell(&self, method: &str, params: Value) -> Answer {
        let message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        self.message(&message).send().await
    }

    /// Answers a request of the server.
    pub async fn answer(&self, id: &Value, member: &str, value: Value) {
        let message = json!({ "jsonrpc": "2.0", "id": id, member: value });
        self.message(&message).send().await.expect(202);
    }

    /// Opens the session's own stream, or takes up a broken one.
    pub async fn listen(&self, last: Option<&str>) -> Stream {
        let call = self.with_session(&Method::GET).header("accept", "text/event-stream");
        match last {
            Some(last) => call.header("last-event-id", last),
            None => call,
        }
        .open()
        .await
    }

    /// The status of a stream that is refused.
    pub async fn try_listen(&self, last: Option<&str>) -> u16 {
        let call = self.with_session(&Method::GET).header("accept", "text/event-stream");
        let call = match last {
            Some(last) => call.header("last-event-id", last),
            None => call,
        };
        call.send().await.status
    }

    pub async fn end(&self) -> Answer {
        self.with_session(&Method::DELETE).send().await
    }
}

/// A router in front of a stage with the name `up`; `yaml` comes before its servers.
pub async fn on_stage(role: Role, yaml: &str, settings: &str) -> (TestApp, Stage) {
    let stage = Stage::start(role).await;
    let yaml = format!("{yaml}mcp_servers:\n{}", stage.entry("up", settings));
    let app = TestApp::start(&yaml).await.ready().await;
    // After a start the lists arrive one after the other, tools first.
    let client = Speaker::modern(&app, json!({}));
    eventually(SOON, "every list was asked for", || async {
        let list = client.request(&json!(0), "resources/list", json!({})).send().await.json();
        (!list["result"]["resources"].as_array()?.is_empty()).then_some(())
    })
    .await;
    (app, stage)
}
