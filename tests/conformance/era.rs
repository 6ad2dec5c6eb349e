//! Makes a server of both eras one of a single era, before the SDK sees the request. Changes when
//! an era is to be refused in another way.

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use clap::ValueEnum;
use http_body_util::Full;
use rmcp::model::ProtocolVersion;
use rmcp::transport::StreamableHttpService;
use serde_json::{Value, json};

use crate::handler::Fixture;
use crate::sessions::Sessions;

/// More than any scenario sends.
const LARGEST_BODY: usize = 4 << 20;
const VERSION: &str = "mcp-protocol-version";

/// Which protocol the server speaks.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Era {
    /// The handshake and 2026-07-28.
    Both,
    /// Only 2026-07-28.
    Modern,
    /// Only versions that begin with `initialize`.
    Legacy,
}

impl Era {
    /// What is offered and accepted, oldest first.
    pub fn versions(self) -> Vec<ProtocolVersion> {
        ProtocolVersion::KNOWN_VERSIONS
            .iter()
            .filter(|version| match self {
                Self::Both => true,
                Self::Modern => **version == ProtocolVersion::V_2026_07_28,
                Self::Legacy => **version != ProtocolVersion::V_2026_07_28,
            })
            .cloned()
            .collect()
    }
}

/// The SDK's answer, or a refusal if the request belongs to an era that is not spoken.
pub async fn answer(
    era: Era,
    service: &StreamableHttpService<Fixture, Sessions>,
    request: Request,
) -> Response {
    if era == Era::Both {
        return service.handle(request).await.map(Body::new);
    }
    if request.method() != Method::POST {
        if era == Era::Modern {
            return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "POST")]).into_response();
        }
        return service.handle(request).await.map(Body::new);
    }
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, LARGEST_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    let method = message["method"].as_str().unwrap_or_default();
    let modern_header = head
        .headers
        .get(VERSION)
        .is_some_and(|version| version == ProtocolVersion::V_2026_07_28.as_str());
    match (era, method) {
        (Era::Modern, "initialize") => {
            refusal(StatusCode::NOT_FOUND, &message, -32601, "initialize is not implemented")
        }
        (Era::Legacy, "server/discover") => {
            refusal(StatusCode::OK, &message, -32601, "Method not found")
        }
        (Era::Legacy, _) if modern_header => {
            refusal(StatusCode::BAD_REQUEST, &message, -32600, "Unsupported protocol version")
        }
        _ => {
            let request = Request::from_parts(head, Full::<Bytes>::new(body));
            service.handle(request).await.map(Body::new)
        }
    }
}

fn refusal(status: StatusCode, message: &Value, code: i32, text: &str) -> Response {
    let body = json!({
        "jsonrpc": "2.0",
        "id": message["id"],
        "error": { "code": code, "message": text },
    });
    (status, axum::Json(body)).into_response()
}
