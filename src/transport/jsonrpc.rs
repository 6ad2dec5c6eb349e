//! [`JsonrpcConnection`]: the predecessor's dialect. No handshake; the tools are a plain JSON
//! document, and a call is one bare JSON-RPC request.
//!
//! Changes when that dialect is read differently. Translates to what the rest of us expects of a
//! legacy server: a `tools/list`, and results that are objects.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::channel::Ticket;
use super::endpoint::{Body, Endpoint, shown};
use super::error::{TransportError, sample};
use super::http::trace_request;
use super::{ConnectOptions, Offers, PeerInfo};
use crate::model::ProtocolVersion;
use crate::protocol::{Answer, AnswerError, AnswerKind, OutgoingRequest, RawObject};

/// What its requests look like.
const VERSION: ProtocolVersion = ProtocolVersion::V2024_11_05;

/// A conversation in the predecessor's dialect.
pub struct JsonrpcConnection {
    /// `{url}/mcp/tools`.
    tools: Endpoint,
    /// `{url}/mcp`.
    calls: Endpoint,
    /// The headers of every request.
    headers: HeaderMap,
    peer: PeerInfo,
    next_id: AtomicU64,
    ended: CancellationToken,
}

impl JsonrpcConnection {
    /// Asks for the tools at `url`, which is where `base` is: a server that has them speaks it.
    pub(super) async fn open(
        base: &Endpoint,
        url: &Url,
        options: &ConnectOptions,
    ) -> Result<Self, TransportError> {
        let at = |path: &str| {
            let mut deeper = url.clone();
            deeper.set_path(&format!("{}{path}", url.path().trim_end_matches('/')));
            let endpoint = base.at(&deeper).ok_or_else(|| TransportError::Address {
                address: shown(&deeper),
                reason: "its path is not valid",
            })?;
            Ok::<_, TransportError>((endpoint, shown(&deeper)))
        };
        let (tools, address) = at("/mcp/tools")?;
        let (calls, _) = at("/mcp")?;
        let mut headers = base.headers.clone();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let connection = Self {
            tools,
            calls,
            headers,
            peer: PeerInfo {
                version: VERSION,
                server_info: None,
                capabilities: None,
                instructions: None,
                offers: Offers::UNDECLARED,
            },
            next_id: AtomicU64::new(1),
            ended: CancellationToken::new(),
        };
        let limit = options.connect_timeout;
        match tokio::time::timeout(limit, connection.list()).await {
            Ok(Ok(_)) => Ok(connection),
            Ok(Err(
                error @ (TransportError::Rejected { .. }
                | TransportError::ContentType { .. }
                | TransportError::NotAnAnswer { .. }),
            )) => Err(TransportError::NotMcp { address, source: Box::new(error) }),
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => Err(TransportError::Timeout { elapsed: limit }),
        }
    }

    pub(super) const fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.ended.is_cancelled()
    }

    /// Dropping the future closes the connection it is on, which is all the dialect has for it.
    pub(super) async fn request(
        &self,
        request: &OutgoingRequest<'_>,
        limit: Duration,
    ) -> Result<Answer, TransportError> {
        let ticket = Ticket::default();
        let outcome = match tokio::time::timeout(limit, self.attempt(request, &ticket)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(self.calls.out_of_time(&ticket, limit)),
        };
        // What speaks no longer so may speak something else by now: whoever owns this finds out.
        if let Err(TransportError::Rejected { status: 404 | 405, .. }) = &outcome {
            self.ended.cancel();
        }
        outcome
    }

    async fn attempt(
        &self,
        request: &OutgoingRequest<'_>,
        ticket: &Ticket,
    ) -> Result<Answer, TransportError> {
        let result = |value: Bytes| Answer::new(AnswerKind::Result, value);
        if request.method == "tools/call" {
            return self.call(request, ticket).await;
        }
        // Of what can be asked again in any case it is not of interest when it went out.
        ticket.take();
        match request.method {
            "tools/list" => self.list().await.map(result),
            "ping" => self.list().await.map(|_tools| result(Bytes::from_static(b"{}"))),
            _ => Ok(Answer::new(
                AnswerKind::Error,
                Bytes::from_static(
                    br#"{"code":-32601,"message":"the server's dialect has tools only"}"#,
                ),
            )),
        }
    }

    async fn call(
        &self,
        request: &OutgoingRequest<'_>,
        ticket: &Ticket,
    ) -> Result<Answer, TransportError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        // Nothing can be said before the answer.
        let body = OutgoingRequest { progress: false, ..*request }.render(id, VERSION);
        let mut headers = self.headers.clone();
        trace_request(&mut headers, request);
        let exchange = self.calls.post_if(headers, body, || ticket.take()).await?;
        match self.calls.read_json(exchange, id).await? {
            Body::Answer(answer) => Ok(answer),
            Body::Whole(message) => read_answer(&message, id)
                .map_err(|source| TransportError::NotAnAnswer { source, sample: sample(&message) }),
        }
    }

    /// The tools, as the result of a `tools/list`.
    async fn list(&self) -> Result<Bytes, TransportError> {
        let exchange = self.tools.get(self.headers.clone()).await?;
        let document = match self.tools.read_json(exchange, 0).await? {
            Body::Whole(document) => document,
            Body::Answer(answer) => answer.value,
        };
        tools_of(&document).ok_or_else(|| TransportError::NotAnAnswer {
            source: AnswerError::NotJsonRpc("it holds no list of tools".to_owned()),
            sample: sample(&document),
        })
    }

    pub(super) fn close(&self) {
        self.ended.cancel();
        self.calls.sockets.close();
    }
}

impl fmt::Debug for JsonrpcConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonrpcConnection")
            .field("address", &self.calls.sockets.address())
            .finish_non_exhaustive()
    }
}

/// Reads the answer to `id`; a result that is no object becomes one.
fn read_answer(message: &Bytes, id: u64) -> Result<Answer, AnswerError> {
    #[derive(Deserialize)]
    struct Members<'a> {
        #[serde(borrow)]
        result: &'a RawValue,
        #[serde(borrow, default)]
        error: Option<&'a RawValue>,
    }
    let refused = match Answer::parse(message, id) {
        // `"result": null` reads like none.
        Err(refused @ (AnswerError::ResultNotObject | AnswerError::Neither)) => refused,
        settled => return settled,
    };
    match serde_json::from_slice::<Members<'_>>(message) {
        Ok(Members { result, error: None }) => {
            Ok(Answer::new(AnswerKind::Result, as_content(result.get())))
        }
        _ => Err(refused),
    }
}

/// A result of MCP with this value as its text: of a string its characters, of all else its JSON.
fn as_content(value: &str) -> Bytes {
    let mut out = String::with_capacity(value.len() + 48);
    out.push_str(r#"{"content":[{"type":"text","text":"#);
    if value.starts_with('"') {
        out.push_str(value);
    } else {
        out.push_str(&serde_json::Value::from(value).to_string());
    }
    out.push_str("}]}");
    out.into()
}

/// The result of a `tools/list` for a document of tools: an object with `tools`, or the bare list.
/// In each tool the key `input_schema` becomes `inputSchema`; every other byte is kept.
fn tools_of(document: &Bytes) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Document<'a> {
        #[serde(borrow)]
        tools: &'a RawValue,
    }
    let text = std::str::from_utf8(document).ok()?;
    let list = match text.trim_start().as_bytes().first()? {
        b'[' => text,
        _ => serde_json::from_str::<Document<'_>>(text).ok()?.tools.get(),
    };
    let tools: Vec<&RawValue> = serde_json::from_str(list).ok()?;
    let mut out = String::with_capacity(list.len() + 16);
    out.push_str(r#"{"tools":"#);
    let mut done = 0;
    for tool in tools {
        let Some((from, to)) = old_key(tool.get()) else { continue };
        let at = tool.get().as_ptr() as usize - list.as_ptr() as usize;
        out.push_str(list.get(done..at + from)?);
        out.push_str(r#""inputSchema""#);
        done = at + to;
    }
    out.push_str(list.get(done..)?);
    out.push('}');
    Some(out.into())
}

/// Where in `tool` the key `input_schema` stands with its quotes, if it stands for the schema.
fn old_key(tool: &str) -> Option<(usize, usize)> {
    let members = RawObject::parse(tool).ok()?;
    if members.get("inputSchema").is_some() {
        return None;
    }
    let value = members.get("input_schema")?.get();
    let before = tool.get(..value.as_ptr() as usize - tool.as_ptr() as usize)?;
    // However it is written, this key holds no quote.
    let end = before.rfind('"')?;
    let start = before.get(..end)?.rfind('"')?;
    Some((start, end + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tools(document: &str) -> Option<String> {
        let result = tools_of(&Bytes::copy_from_slice(document.as_bytes()))?;
        Some(String::from_utf8(result.to_vec()).unwrap())
    }

    #[test]
    fn only_the_name_of_the_schema_changes() {
        for (document, list) in [
            (
                r#"{"count":1,"tools": [ {"name":"a", "input_schema" : {"input_schema":1.0}, "n":1e400} ] ,"x":1}"#,
                r#"{"tools":[ {"name":"a", "inputSchema" : {"input_schema":1.0}, "n":1e400} ]}"#,
            ),
            (
                r#"[{"input\u005fschema":{},"name":"é"},{"name":"b","inputSchema":{}},{"name":"c"}]"#,
                r#"{"tools":[{"inputSchema":{},"name":"é"},{"name":"b","inputSchema":{}},{"name":"c"}]}"#,
            ),
            (
                r#"[{"inputSchema":{},"input_schema":{}},{"x":"\"input_schema\":1"},{"a":1,"a":2},7]"#,
                r#"{"tools":[{"inputSchema":{},"input_schema":{}},{"x":"\"input_schema\":1"},{"a":1,"a":2},7]}"#,
            ),
            (" [ ] ", r#"{"tools": [ ] }"#),
        ] {
            assert_eq!(tools(document).as_deref(), Some(list));
        }
        for document in ["", "{}", r#"{"tools":{}}"#, r#"{"tools":null}"#, "<html>", "[1", "3"] {
            assert_eq!(tools(document), None, "{document}");
        }
    }

    #[test]
    fn results_of_any_type_become_results_of_mcp() {
        let read = |message: &str| {
            read_answer(&Bytes::copy_from_slice(message.as_bytes()), 7)
                .map(|answer| String::from_utf8(answer.value.to_vec()).unwrap())
        };
        let text = |text: &str| Ok(format!(r#"{{"content":[{{"type":"text","text":{text}}}]}}"#));
        assert_eq!(read(r#"{"id":7,"result":{"n": 1.0}}"#), Ok(r#"{"n": 1.0}"#.to_owned()));
        assert_eq!(read(r#"{"id":7,"result":"a\n\u00e9"}"#), text(r#""a\n\u00e9""#));
        assert_eq!(read(r#"{"id":7,"result":[1.0, "x"]}"#), text(r#""[1.0, \"x\"]""#));
        assert_eq!(read(r#"{"id":7,"result":1e400}"#), text(r#""1e400""#));
        assert_eq!(read(r#"{"id":7,"result":null,"error":null}"#), text(r#""null""#));
        assert_eq!(read(r#"{"id":7,"error":{"code":1}}"#), Ok(r#"{"code":1}"#.to_owned()));
        for bad in [
            r#"{"id":8,"result":1}"#,
            r#"{"result":1}"#,
            r#"{"id":7}"#,
            r#"{"id":7,"result":1,"error":{}}"#,
            "[]",
            "7",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn translated_lists_say_the_same(
            names in proptest::collection::vec("\\PC{0,8}", 0..6),
            pretty in any::<bool>(),
            bare in any::<bool>(),
        ) {
            let old: Vec<_> = names
                .iter()
                .map(|name| serde_json::json!({"name": name, "input_schema": {"t": name}, "z": [1]}))
                .collect();
            let new: Vec<_> = names
                .iter()
                .map(|name| serde_json::json!({"name": name, "inputSchema": {"t": name}, "z": [1]}))
                .collect();
            let document = if bare { old.into() } else { serde_json::json!({"tools": old}) };
            let text = if pretty { format!("{document:#}") } else { document.to_string() };
            let back: serde_json::Value = serde_json::from_str(&tools(&text).unwrap()).unwrap();
            prop_assert_eq!(back, serde_json::json!({"tools": new}));
        }

        #[test]
        fn any_document_is_survived(text in "\\PC{0,40}") {
            let _ = tools(&text);
            let _ = read_answer(&Bytes::from(text.into_bytes()), 1);
        }
    }
}
