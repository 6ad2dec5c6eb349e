//! [`Paged`]: a server whose list of tools has pages of every kind.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::{Json, Router};
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// What the pages are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Three, of one tool each; the second one's cursor is the empty text.
    Good,
    /// A third that says that the second comes next.
    Circle,
    /// Always another one, without tools.
    Endless,
    /// Always another one, with tools that were not there before.
    Flood,
    /// Always another one, with half a megabyte of what is no tool, and a cursor of that size.
    Waste,
}

#[derive(Debug)]
struct Script {
    pages: Pages,
    asked: usize,
}

/// A server of the legacy era.
#[derive(Debug)]
pub struct Paged {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

impl Paged {
    pub async fn start(pages: Pages) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script { pages, asked: 0 }));
        let app = Router::new()
            .route("/mcp", axum::routing::post(answer))
            .with_state(Arc::clone(&script));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, script }
    }

    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    pub fn set(&self, pages: Pages) {
        *self.script.lock() = Script { pages, asked: 0 };
    }

    /// Pages that were asked for since the last change.
    pub fn asked(&self) -> usize {
        self.script.lock().asked
    }
}

async fn answer(
    State(script): State<Arc<Mutex<Script>>>,
    Json(request): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let id = &request["id"];
    let result = match request["method"].as_str().unwrap() {
        "initialize" => json!({
            "protocolVersion": "2025-11-25", "capabilities": { "tools": {} },
            "serverInfo": { "name": "paged", "version": "1" }
        }),
        "tools/list" => script.lock().page(request["params"]["cursor"].as_str()),
        _ if id.is_null() => return (StatusCode::ACCEPTED, Json(Value::Null)),
        _ => {
            let error = json!({ "code": -32601, "message": "method not found" });
            return (StatusCode::OK, Json(json!({ "jsonrpc": "2.0", "id": id, "error": error })));
        }
    };
    (StatusCode::OK, Json(json!({ "jsonrpc": "2.0", "id": id, "result": result })))
}

impl Script {
    fn page(&mut self, cursor: Option<&str>) -> Value {
        self.asked += 1;
        let tool = |name: String| json!({ "name": name, "inputSchema": { "type": "object" } });
        let of = |tools: Vec<Value>, next: Option<String>| match next {
            Some(next) => json!({ "tools": tools, "nextCursor": next }),
            None => json!({ "tools": tools }),
        };
        let one = |name: &str, next: Option<&str>| {
            of(vec![tool(name.to_owned())], next.map(ToOwned::to_owned))
        };
        let fresh = format!("page {}", self.asked);
        match (self.pages, cursor) {
            (Pages::Good | Pages::Circle, None) => one("first", Some("")),
            (Pages::Good | Pages::Circle, Some("")) => one("second", Some("last")),
            (Pages::Good, _) => one("third", None),
            (Pages::Circle, _) => one("third", Some("")),
            (Pages::Endless, _) => of(Vec::new(), Some(fresh)),
            (Pages::Flood, _) => {
                let tools = (0..50).map(|n| tool(format!("t{}_{n}", self.asked))).collect();
                of(tools, Some(fresh))
            }
            (Pages::Waste, _) => {
                let waste = "x".repeat(512 * 1024);
                of(vec![json!({ "name": "", "waste": waste })], Some(format!("{fresh}{waste}")))
            }
        }
    }
}
