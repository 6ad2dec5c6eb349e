//! An MCP client of either era, as bytes.

use http::Method;

use super::{Answer, Http};

pub const LEGACY: &str = "2025-11-25";
pub const MODERN: &str = "2026-07-28";

/// A JSON-RPC request.
pub fn legacy_body(method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{params}}}"#)
}

/// A client that shook hands.
#[derive(Debug, Clone)]
pub struct Legacy {
    pub http: Http,
    pub path: String,
    pub session: String,
}

impl Legacy {
    pub async fn connect(http: &Http) -> Self {
        Self::connect_at(http, "/mcp").await
    }

    /// The same at another path than `/mcp`.
    pub async fn connect_at(http: &Http, path: &str) -> Self {
        let params = format!(
            r#"{{"protocolVersion":"{LEGACY}","capabilities":{{}},"clientInfo":{{"name":"it","version":"1.2"}}}}"#
        );
        let answer = http.post(path, legacy_body("initialize", &params)).await.expect(200);
        let session = answer.header("mcp-session-id").to_owned();
        let client = Self { http: http.clone(), path: path.to_owned(), session };
        let body = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        client.send(body.to_owned()).await.expect(202);
        client
    }

    pub async fn request(&self, method: &str, params: &str) -> Answer {
        self.send(legacy_body(method, params)).await
    }

    /// `tools/call` with these arguments, as they are.
    pub async fn call(&self, tool: &str, arguments: &str) -> Answer {
        self.request("tools/call", &format!(r#"{{"name":"{tool}","arguments":{arguments}}}"#)).await
    }

    pub async fn send(&self, body: String) -> Answer {
        self.http
            .request(&Method::POST, &self.path)
            .header("accept", "application/json, text/event-stream")
            .header("mcp-session-id", &self.session)
            .header("mcp-protocol-version", LEGACY)
            .body(body)
            .send()
            .await
    }
}

/// `params` of a modern request; `members` are the other members, each with a comma before it.
pub fn modern_params(members: &str) -> String {
    format!(
        r#"{{"_meta":{{"io.modelcontextprotocol/protocolVersion":"{MODERN}","io.modelcontextprotocol/clientInfo":{{"name":"it","version":"1.2"}},"io.modelcontextprotocol/clientCapabilities":{{}}}}{members}}}"#
    )
}

/// A request of the modern era; for `tools/call` with the tool's name.
pub async fn modern(http: &Http, method: &str, tool: Option<&str>, members: &str) -> Answer {
    modern_at(http, "/mcp", method, tool, members).await
}

/// The same at another path than `/mcp`.
pub async fn modern_at(
    http: &Http,
    path: &str,
    method: &str,
    tool: Option<&str>,
    members: &str,
) -> Answer {
    let call = http
        .request(&Method::POST, path)
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", MODERN)
        .header("mcp-method", method);
    let call = match tool {
        Some(tool) => call.header("mcp-name", tool),
        None => call,
    };
    let name = tool.map(|tool| format!(r#","name":"{tool}""#)).unwrap_or_default();
    let params = modern_params(&format!("{name}{members}"));
    call.body(legacy_body(method, &params)).send().await
}
