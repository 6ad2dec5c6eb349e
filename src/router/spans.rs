//! What spans say of calls and of other requests: attributes by OpenTelemetry's conventions for MCP.
//!
//! Changes when the conventions or our additions do. Source: semantic-conventions-genai,
//! `docs/gen-ai/mcp.md` (2026), status: development. Never arguments, results, texts of errors, or
//! names that are in no catalogue.

use std::sync::Arc;

use bytes::Bytes;

use crate::catalogue::CatalogueEntry;
use crate::error::ErrorCode;
use crate::model::{
    AuthKind, CallId, Caller, Entrance, Failure, Outcome, ProtocolVersion, SessionRef, ToolCall,
    TransportKind, Via,
};
use crate::protocol::RawObject;
use crate::registry::ServerHandle;
use crate::telemetry::{Said, Value};

use super::{Forward, Refusal};

/// Stands for every tool that is not in the catalogue.
const OTHER: &str = "_other";
/// Longer ids of requests are cut.
const REQUEST_ID: usize = 64;

/// How an operation or an attempt ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// `None` for success.
    pub(super) error_type: Option<Value>,
    /// The code of the JSON-RPC error that was the answer.
    pub(super) rpc_code: Option<String>,
}

impl Ended {
    /// With an answer of the server, whose JSON-RPC error has `rpc_code`.
    pub(super) fn answered(outcome: Outcome, rpc_code: Option<String>) -> Self {
        let error_type = match (&rpc_code, outcome) {
            (_, Outcome::Ok) => None,
            (Some(code), _) => Some(Value::Text(code.clone())),
            (None, outcome) => Some(Value::Static(outcome.as_str())),
        };
        Self { error_type, rpc_code }
    }

    /// With an error of our own. Its name says more than the JSON-RPC code, which is the same for
    /// nearly all of them and stands beside it.
    pub(super) fn refused(code: ErrorCode, entrance: Entrance) -> Self {
        let rpc_code = match entrance {
            Entrance::Mcp(_) => Some(code.json_rpc_code().to_string()),
            Entrance::Rest => None,
        };
        Self { error_type: Some(Value::Static(code.as_str())), rpc_code }
    }

    /// Without an answer of the server.
    pub(super) fn failed(outcome: Outcome) -> Self {
        Self { error_type: Some(Value::Static(outcome.as_str())), rpc_code: None }
    }
}

/// The code of a JSON-RPC error, where it is one that fits.
pub(super) fn rpc_code(error: &[u8]) -> Option<String> {
    let object = RawObject::parse(std::str::from_utf8(error).ok()?).ok()?;
    let code: i64 = object.get("code")?.get().parse().ok()?;
    Some(code.to_string())
}

/// What a span says, as it is put together.
struct Attributes(Vec<(&'static str, Value)>);

impl Attributes {
    fn new(method: &'static str) -> Self {
        let mut list = Vec::with_capacity(22);
        list.push(("mcp.method.name", Value::Static(method)));
        Self(list)
    }

    fn add(&mut self, name: &'static str, value: impl Into<Option<Value>>) {
        self.0.extend(value.into().map(|value| (name, value)));
    }

    /// The tool, of which `None` is not in the catalogue; gives the rest of the span's name.
    fn tool(&mut self, name: Option<Arc<str>>) -> Arc<str> {
        let name = name.unwrap_or_else(|| OTHER.into());
        self.add("gen_ai.operation.name", Value::Static("execute_tool"));
        self.add("gen_ai.tool.name", Value::Shared(Arc::clone(&name)));
        name
    }

    /// Of whom the operation was asked, and how.
    fn asked(
        &mut self,
        id: CallId,
        version: Option<ProtocolVersion>,
        via: Via,
        caller: &Caller,
        session: Option<&SessionRef>,
        request_id: Option<&Bytes>,
    ) {
        self.version(version);
        self.add("jsonrpc.request.id", request_id.and_then(|id| readable_id(id)).map(Value::Text));
        // As the ledger has it. The id itself is what lets its bearer in.
        self.add("mcp.session.id", session.map(|session| Value::Shared(Arc::clone(&session.hash))));
        let transport = if caller.auth == AuthKind::Socket { "unix" } else { "tcp" };
        self.add("network.transport", Value::Static(transport));
        self.add("network.protocol.name", Value::Static("http"));
        self.add("network.protocol.version", Value::Static(via.http));
        if let Some(peer) = via.peer {
            self.add("client.address", Value::Text(peer.ip().to_canonical().to_string()));
            self.add("client.port", Value::Integer(i64::from(peer.port())));
        }
        self.add("switchyard.call.id", Value::Text(id.to_string()));
    }

    /// Where an attempt goes.
    fn sent_to(&mut self, server: &ServerHandle, version: Option<ProtocolVersion>, id: u64) {
        self.version(version);
        self.add("jsonrpc.request.id", (id != 0).then(|| Value::Text(id.to_string())));
        match server.spec.transport.kind() {
            TransportKind::Stdio => self.add("network.transport", Value::Static("pipe")),
            TransportKind::Http | TransportKind::Sse | TransportKind::Jsonrpc => {
                self.add("network.transport", Value::Static("tcp"));
                self.add("network.protocol.name", Value::Static("http"));
                // Towards servers there is no other.
                self.add("network.protocol.version", Value::Static("1.1"));
            }
        }
        if let Some((host, port)) = &server.peer {
            self.add("server.address", Value::Shared(Arc::clone(host)));
            self.add("server.port", Value::Integer(i64::from(*port)));
        }
        self.server(server);
    }

    fn server(&mut self, server: &ServerHandle) {
        self.add("switchyard.server", Value::Shared(server.name.clone().into_shared()));
    }

    fn version(&mut self, version: Option<ProtocolVersion>) {
        self.add("mcp.protocol.version", version.map(|version| Value::Static(version.as_str())));
    }

    fn said(mut self, method: &'static str, target: Option<Arc<str>>, ended: Ended) -> Said {
        let failed = ended.error_type.is_some();
        self.add("error.type", ended.error_type);
        self.add("rpc.response.status_code", ended.rpc_code.map(Value::Text));
        Said { method, target, failed, attributes: self.0 }
    }
}

/// The id of a request as text: what JSON has in quotes without them.
fn readable_id(json: &[u8]) -> Option<String> {
    let json = std::str::from_utf8(json).ok()?;
    let text = match json.starts_with('"') {
        true => serde_json::from_str(json).ok()?,
        false => json.to_owned(),
    };
    Some(text.chars().take(REQUEST_ID).collect())
}

const CALL: &str = "tools/call";

/// A call as its caller sees it.
pub(super) fn call(
    call: &ToolCall,
    entry: Option<&CatalogueEntry>,
    (outcome, attempts): (Outcome, u32),
    ended: Ended,
) -> Said {
    let mut list = Attributes::new(CALL);
    let tool = list.tool(entry.map(|entry| entry.exposed.clone().into_shared()));
    let session = call.session.as_deref();
    let version = version_of(call.entrance);
    list.asked(call.id, version, call.via, &call.caller, session, call.request_id.as_ref());
    if let Some(entry) = entry {
        list.server(&entry.server);
    }
    list.add("switchyard.outcome", Value::Static(outcome.as_str()));
    list.add("switchyard.attempts", Value::Integer(i64::from(attempts)));
    list.said(CALL, Some(tool), ended)
}

/// A call that was refused before it was one.
pub(super) fn refusal(refusal: &Refusal) -> Said {
    let mut list = Attributes::new(CALL);
    let tool = list.tool(None);
    let (session, request_id) = (refusal.session.as_deref(), refusal.request_id.as_ref());
    list.asked(refusal.id, refusal.at.version(), refusal.via, &refusal.caller, session, request_id);
    list.add("switchyard.outcome", Value::Static(Outcome::Refused.as_str()));
    let ended = Ended {
        error_type: Some(Value::Static(refusal.code.as_str())),
        rpc_code: refusal.rpc_code.map(|code| code.to_string()),
    };
    list.said(CALL, Some(tool), ended)
}

const fn version_of(entrance: Entrance) -> Option<ProtocolVersion> {
    match entrance {
        Entrance::Mcp(version) => Some(version),
        Entrance::Rest => None,
    }
}

/// Which attempt at a call it was.
pub(super) struct Turn {
    /// From 1 on.
    pub(super) number: u32,
    /// What the one before met, after which it was made.
    pub(super) after: Option<Failure>,
    /// The version spoken, where it came that far.
    pub(super) version: Option<ProtocolVersion>,
    /// The id it was sent with; 0 when it was not.
    pub(super) sent_as: u64,
    /// The status of an answer that was none.
    pub(super) http_status: Option<u16>,
}

/// One attempt at a call.
pub(super) fn attempt(entry: &CatalogueEntry, turn: &Turn, ended: Ended) -> Said {
    let mut list = Attributes::new(CALL);
    let tool = list.tool(Some(entry.tool.clone().into_shared()));
    list.sent_to(&entry.server, turn.version, turn.sent_as);
    list.add("switchyard.attempt.number", Value::Integer(i64::from(turn.number)));
    let after = turn.after.filter(|_| turn.number > 1);
    list.add("switchyard.attempt.after", after.map(|failure| Value::Static(failure.as_str())));
    let status = turn.http_status.map(|status| Value::Integer(i64::from(status)));
    list.add("http.response.status_code", status);
    list.said(CALL, Some(tool), ended)
}

/// A request other than a call, as its client sees it; `clean` takes out of addresses what must not
/// be shown.
pub(super) fn forwarded(forward: &Forward, ended: Ended, clean: &dyn Fn(&str) -> String) -> Said {
    let mut list = Attributes::new(forward.method);
    let prompt = about(&mut list, forward, SpanOf::Client, clean);
    let (version, session) = (Some(forward.version), forward.session.as_deref());
    list.asked(
        forward.id,
        version,
        forward.via,
        &forward.caller,
        session,
        forward.request_id.as_ref(),
    );
    list.server(&forward.server);
    list.said(forward.method, prompt, ended)
}

/// The one attempt at it.
pub(super) fn forward_attempt(
    forward: &Forward,
    version: Option<ProtocolVersion>,
    sent_as: u64,
    ended: Ended,
    clean: &dyn Fn(&str) -> String,
) -> Said {
    let mut list = Attributes::new(forward.method);
    let prompt = about(&mut list, forward, SpanOf::Server, clean);
    list.sent_to(&forward.server, version, sent_as);
    list.said(forward.method, prompt, ended)
}

/// In whose words a span speaks of what is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SpanOf {
    Client,
    Server,
}

/// What the request is about; gives the rest of the span's name. An address is told where it is in the
/// catalogue: what a template was filled with is an argument.
fn about(
    list: &mut Attributes,
    forward: &Forward,
    words: SpanOf,
    clean: &dyn Fn(&str) -> String,
) -> Option<Arc<str>> {
    let exposed = forward.exposed.as_deref();
    let worded = |own| if words == SpanOf::Client { exposed.unwrap_or(own) } else { own };
    if let Some(own) = forward.name.as_deref() {
        let prompt: Arc<str> = worded(own).into();
        list.add("gen_ai.prompt.name", Value::Shared(Arc::clone(&prompt)));
        return Some(prompt);
    }
    if let Some(own) = forward.uri.as_deref().filter(|_| exposed.is_some()) {
        list.add("mcp.resource.uri", Value::Text(clean(worded(own))));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_requests_are_text_whatever_they_were() {
        assert_eq!(readable_id(b"7").as_deref(), Some("7"));
        assert_eq!(readable_id(br#""a\u0062""#).as_deref(), Some("ab"));
        assert_eq!(readable_id(format!("\"{}\"", "x".repeat(200)).as_bytes()).unwrap().len(), 64);
    }

    #[test]
    fn only_a_number_is_a_code() {
        assert_eq!(rpc_code(br#"{"code":-32602,"message":"no"}"#).as_deref(), Some("-32602"));
        for error in [r#"{"code":"hunter2"}"#, r#"{"code":1.5}"#, "{}", "[]"] {
            assert_eq!(rpc_code(error.as_bytes()), None, "{error}");
        }
    }

    #[test]
    fn what_failed_has_a_type() {
        let of = |ended: Ended| (ended.error_type, ended.rpc_code);
        assert_eq!(of(Ended::answered(Outcome::Ok, None)), (None, None));
        assert_eq!(
            of(Ended::answered(Outcome::ToolError, None)),
            (Some(Value::Static("tool_error")), None)
        );
        let code = Some("-32602".to_owned());
        assert_eq!(
            of(Ended::answered(Outcome::RpcError, code.clone())),
            (Some(Value::Text("-32602".to_owned())), code)
        );
        let refused = Ended::refused(ErrorCode::Timeout, Entrance::Rest);
        assert_eq!(of(refused), (Some(Value::Static("MCPTimeoutError")), None));
    }
}
