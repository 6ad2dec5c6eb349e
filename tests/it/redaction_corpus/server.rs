//! A server that answers each call as it was told to, and shows all that it was given.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::secrets::{IN_HEADERS, known, written};
use crate::support::LEGACY;

/// How one call is answered.
#[derive(Debug, Clone)]
pub enum Reply {
    Result(Value),
    RpcError(Value),
    Status(u16, String),
    Redirect(String),
    ContentType(String),
    /// A log message before the answer.
    Log(String),
}

/// By `plan` in the arguments.
type Plans = Arc<Mutex<HashMap<u64, Reply>>>;

/// The server.
#[derive(Debug, Clone)]
pub struct Scripted {
    pub url: String,
    plans: Plans,
}

impl Scripted {
    pub async fn start() -> Self {
        let plans = Plans::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&plans));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, plans }
    }

    pub fn plan(&self, number: u64, reply: Reply) {
        self.plans.lock().insert(number, reply);
    }
}

async fn answer(State(plans): State<Plans>, headers: HeaderMap, body: String) -> Response {
    let Ok(message) = serde_json::from_str::<Value>(&body) else {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    };
    let id = &message["id"];
    if id.is_null() {
        return StatusCode::ACCEPTED.into_response();
    }
    let result = match message["method"].as_str().unwrap_or_default() {
        "initialize" => json!({
            "protocolVersion": LEGACY,
            "capabilities": { "tools": {}, "logging": {} },
            "serverInfo": { "name": format!("a {}", known(1)), "version": written(&known(2), 1) },
            "instructions": (0..IN_HEADERS)
                .map(|number| written(&known(number), number % super::secrets::WAYS))
                .collect::<Vec<_>>()
                .join(", "),
        }),
        "tools/list" => json!({ "tools": [
            { "name": "act", "inputSchema": { "type": "object" } },
        ] }),
        "tools/call" => {
            let number = message["params"]["arguments"]["plan"].as_u64().unwrap_or(0);
            let reply = plans.lock().get(&number).cloned();
            return played(id, reply.unwrap_or(Reply::Result(json!({ "content": [] }))), &headers);
        }
        "ping" => json!({}),
        _ => {
            let error = json!({ "code": -32601, "message": "no such method" });
            return document(&json!({ "jsonrpc": "2.0", "id": id, "error": error }), &headers);
        }
    };
    document(&json!({ "jsonrpc": "2.0", "id": id, "result": result }), &headers)
}

fn played(id: &Value, reply: Reply, headers: &HeaderMap) -> Response {
    let ok = |result: Value| json!({ "jsonrpc": "2.0", "id": id, "result": result });
    match reply {
        Reply::Result(result) => document(&ok(result), headers),
        Reply::RpcError(error) => {
            document(&json!({ "jsonrpc": "2.0", "id": id, "error": error }), headers)
        }
        Reply::Status(status, body) => {
            (StatusCode::from_u16(status).unwrap(), body).into_response()
        }
        Reply::Redirect(to) => (StatusCode::FOUND, [("location", to)]).into_response(),
        Reply::ContentType(kind) => ([("content-type", kind)], "x").into_response(),
        Reply::Log(text) => {
            let log = json!({ "jsonrpc": "2.0", "method": "notifications/message",
                "params": { "level": "error", "data": { "text": text } } });
            let done = ok(json!({ "content": [{ "type": "text", "text": "done" }] }));
            let events = format!("data: {log}\n\ndata: {done}\n\n");
            ([("content-type", "text/event-stream")], events).into_response()
        }
    }
}

/// An answer with what came in its headers in headers of its own.
fn document(answer: &Value, came: &HeaderMap) -> Response {
    let mut response = ([("content-type", "application/json")], answer.to_string()).into_response();
    for (name, value) in came.iter().filter(|(name, _)| name.as_str().starts_with("x-known")) {
        response.headers_mut().insert(name, value.clone());
    }
    response
}
