//! Requests to an upstream: built by splicing, so that what came from the caller stays as it was.

use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderName, HeaderValue};
use serde_json::value::RawValue;

use super::client::LogLevel;
use super::names;
use super::object::RawObject;
use crate::model::{
    BAGGAGE, Era, OutgoingTrace, ProtocolVersion, TRACEPARENT, TRACESTATE, TraceContext,
};

/// Who we say we are to upstreams and clients: `clientInfo` and `serverInfo`.
#[derive(Debug, Clone, Copy)]
pub struct PeerIdentity;

impl PeerIdentity {
    /// The object as JSON.
    pub const JSON: &'static str = concat!(
        r#"{"name":"switchyard","title":"Switchyard","version":""#,
        env!("CARGO_PKG_VERSION"),
        r#""}"#
    );
}

/// One request to an upstream, independent of connection and era.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingRequest<'a> {
    /// JSON-RPC method.
    pub method: &'a str,
    /// The caller's `params` object as received; its `name` and `_meta` are replaced, everything
    /// else goes on byte for byte.
    pub params: Option<&'a RawObject<'a>>,
    /// `params.name` for the upstream: its own tool name. Also the `Mcp-Name` header in the modern era.
    pub name: Option<&'a str>,
    /// `params.uri` for the upstream, where it differs from the caller's; also the `Mcp-Name` header
    /// in the modern era.
    pub uri: Option<&'a str>,
    /// `params.ref` of a completion for the upstream, as JSON.
    pub reference: Option<&'a str>,
    /// `params.arguments`, where the caller's request has no `params` of its own (REST).
    pub arguments: Option<&'a str>,
    /// `params.cursor` of a list request of ours.
    pub cursor: Option<&'a str>,
    /// The capabilities to declare for this request to a modern upstream, as JSON.
    pub client_capabilities: &'a str,
    /// Further headers, for a modern upstream over HTTP.
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// Whether to ask for progress; the token is the request's id.
    pub progress: bool,
    /// The log messages to ask a modern upstream for.
    pub log_level: Option<LogLevel>,
    /// Tells a server that two requests are attempts at one call: `_meta` has it under
    /// [`IDEMPOTENCY_KEY`].
    pub idempotency_key: Option<&'a str>,
    /// To which trace it belongs: in `_meta`, and over HTTP in headers, too.
    pub trace: OutgoingTrace<'a>,
    /// Where to note the id it is sent with; the last one, where it is sent again.
    pub sent_as: Option<&'a AtomicU64>,
}

/// The key in `_meta` of a call that is the same for all attempts at it.
pub const IDEMPOTENCY_KEY: &str = "dev.switchyard/idempotencyKey";

impl<'a> OutgoingRequest<'a> {
    /// A request of our own without parameters.
    #[must_use]
    pub const fn new(method: &'a str) -> Self {
        Self {
            method,
            params: None,
            name: None,
            uri: None,
            reference: None,
            arguments: None,
            cursor: None,
            client_capabilities: "{}",
            headers: &[],
            progress: false,
            log_level: None,
            idempotency_key: None,
            trace: OutgoingTrace { context: None, state: None, baggage: None },
            sent_as: None,
        }
    }

    /// The message as one line of JSON, with `id` of ours and the `_meta` that `version` asks for.
    ///
    /// Dropped from the caller's `_meta`: the specification's own keys, which describe the caller
    /// to us and not us to the upstream, and `progressToken`, which is only unique within one
    /// client while this connection is shared by many, our own key, and the trace, which stands there as
    /// `trace` has it. Where progress is wanted, `id` stands in its place.
    #[must_use]
    pub fn render(&self, id: u64, version: ProtocolVersion) -> Vec<u8> {
        if let Some(sent_as) = self.sent_as {
            sent_as.store(id, Ordering::Relaxed);
        }
        let payload = self.arguments.map_or(0, str::len)
            + self
                .params
                .map_or(0, |params| params.iter().map(|(k, v)| k.len() + v.get().len() + 4).sum());
        let mut out = Vec::with_capacity(payload + self.method.len() + 384);
        out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
        push_number(&mut out, id);
        out.extend_from_slice(br#","method":""#);
        out.extend_from_slice(self.method.as_bytes());
        out.extend_from_slice(br#"","params":{"#);
        let mut separate = Separator::default();
        if let Some(name) = self.name {
            separate.before(&mut out);
            out.extend_from_slice(br#""name":"#);
            push_string(&mut out, name);
        }
        if let Some(uri) = self.uri {
            separate.before(&mut out);
            out.extend_from_slice(br#""uri":"#);
            push_string(&mut out, uri);
        }
        if let Some(reference) = self.reference {
            separate.before(&mut out);
            out.extend_from_slice(br#""ref":"#);
            out.extend_from_slice(reference.as_bytes());
        }
        if let Some(arguments) = self.arguments {
            separate.before(&mut out);
            out.extend_from_slice(br#""arguments":"#);
            out.extend_from_slice(arguments.as_bytes());
        }
        if let Some(cursor) = self.cursor {
            separate.before(&mut out);
            out.extend_from_slice(br#""cursor":"#);
            push_string(&mut out, cursor);
        }
        let mut meta = None;
        for (key, value) in self.params.into_iter().flat_map(RawObject::iter) {
            match key {
                "_meta" => meta = Some(value),
                "name" if self.name.is_some() => {}
                "uri" if self.uri.is_some() => {}
                "ref" if self.reference.is_some() => {}
                "arguments" if self.arguments.is_some() => {}
                _ => {
                    separate.before(&mut out);
                    push_string(&mut out, key);
                    out.push(b':');
                    out.extend_from_slice(value.get().as_bytes());
                }
            }
        }
        self.push_meta(&mut out, &mut separate, meta, id, version);
        out.extend_from_slice(b"}}");
        out
    }

    fn push_meta(
        &self,
        out: &mut Vec<u8>,
        separate_params: &mut Separator,
        meta: Option<&RawValue>,
        id: u64,
        version: ProtocolVersion,
    ) {
        let callers = meta.and_then(|raw| RawObject::parse(raw.get()).ok()).unwrap_or_default();
        let kept = |key: &str| {
            !key.starts_with(names::RESERVED)
                && !matches!(
                    key,
                    "progressToken" | IDEMPOTENCY_KEY | TRACEPARENT | TRACESTATE | BAGGAGE
                )
        };
        let modern = version.era() == Era::Modern;
        let keyed = self.idempotency_key.is_some();
        let traced = self.trace != OutgoingTrace::default();
        let added = modern || self.progress || keyed || traced;
        if !added && !callers.iter().any(|(key, _)| kept(key)) {
            return;
        }
        separate_params.before(out);
        out.extend_from_slice(br#""_meta":{"#);
        let mut separate = Separator::default();
        if modern {
            separate.before(out);
            for part in [
                "\"",
                names::PROTOCOL_VERSION,
                "\":\"",
                version.as_str(),
                "\",\"",
                names::CLIENT_INFO,
                "\":",
                PeerIdentity::JSON,
                ",\"",
                names::CLIENT_CAPABILITIES,
                "\":",
                self.client_capabilities,
            ] {
                out.extend_from_slice(part.as_bytes());
            }
            if let Some(level) = self.log_level {
                for part in [",\"", names::LOG_LEVEL, "\":\"", level.as_str(), "\""] {
                    out.extend_from_slice(part.as_bytes());
                }
            }
        }
        if self.progress {
            separate.before(out);
            out.extend_from_slice(br#""progressToken":"#);
            push_number(out, id);
        }
        if let Some(key) = self.idempotency_key {
            separate.before(out);
            for part in ["\"", IDEMPOTENCY_KEY, "\":"] {
                out.extend_from_slice(part.as_bytes());
            }
            push_string(out, key);
        }
        if traced {
            self.push_trace(out, &mut separate);
        }
        for (key, value) in callers.iter().filter(|(key, _)| kept(key)) {
            separate.before(out);
            push_string(out, key);
            out.push(b':');
            out.extend_from_slice(value.get().as_bytes());
        }
        out.push(b'}');
    }

    fn push_trace(&self, out: &mut Vec<u8>, separate: &mut Separator) {
        let parent = self.trace.context.map(TraceContext::to_ascii);
        let parent = parent.as_ref().and_then(|parent| std::str::from_utf8(parent).ok());
        let fields =
            [(TRACEPARENT, parent), (TRACESTATE, self.trace.state), (BAGGAGE, self.trace.baggage)];
        for (key, value) in fields {
            let Some(value) = value else { continue };
            separate.before(out);
            for part in ["\"", key, "\":"] {
                out.extend_from_slice(part.as_bytes());
            }
            push_string(out, value);
        }
    }
}

/// What the ids of our requests to clients begin with.
pub const SERVER_QUESTION: &str = "sy-";

/// A request of a server on its way to a client, with the id of ours that `number` gives.
#[must_use]
pub fn server_question(number: u64, method: &str, params: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::with_capacity(96 + params.map_or(0, <[u8]>::len));
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":""#);
    out.extend_from_slice(SERVER_QUESTION.as_bytes());
    push_number(&mut out, number);
    out.extend_from_slice(br#"","method":"#);
    push_string(&mut out, method);
    if let Some(params) = params {
        out.extend_from_slice(br#","params":"#);
        out.extend_from_slice(params);
    }
    out.push(b'}');
    out
}

/// A notification as one line of JSON; `params` is raw JSON.
#[must_use]
pub fn render_notification(method: &str, params: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + params.map_or(0, str::len));
    out.extend_from_slice(br#"{"jsonrpc":"2.0","method":""#);
    out.extend_from_slice(method.as_bytes());
    out.push(b'"');
    if let Some(params) = params {
        out.extend_from_slice(br#","params":"#);
        out.extend_from_slice(params.as_bytes());
    }
    out.push(b'}');
    out
}

#[derive(Default)]
struct Separator {
    needed: bool,
}

impl Separator {
    fn before(&mut self, out: &mut Vec<u8>) {
        if self.needed {
            out.push(b',');
        }
        self.needed = true;
    }
}

pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    // Most names need no escape; the serializer is for those that do.
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        out.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
    }
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0_u8; 20];
    let mut rest = number;
    let mut length = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        length += 1;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(digits.len() - length..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn only_name_and_meta_are_touched() {
        let params = r#"{"name":"up__echo","arguments":{"a": 1.0,"a":1e400},"x":[1, 2],"_meta":{"progressToken":1,"io.modelcontextprotocol/protocolVersion":"x","trace":"t"}}"#;
        let object = RawObject::parse(params).unwrap();
        let request = OutgoingRequest {
            params: Some(&object),
            name: Some("echo"),
            ..OutgoingRequest::new("tools/call")
        };
        assert_eq!(
            text(request.render(7, ProtocolVersion::V2025_11_25)),
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"a": 1.0,"a":1e400},"x":[1, 2],"_meta":{"trace":"t"}}}"#
        );
        let modern = text(request.render(7, ProtocolVersion::V2026_07_28));
        assert!(modern.contains(r#""io.modelcontextprotocol/protocolVersion":"2026-07-28""#));
        assert!(modern.contains(r#""trace":"t""#));
        assert!(!modern.contains("progressToken"));
    }

    #[test]
    fn attempts_at_one_call_have_one_key() {
        let params = r#"{"_meta":{"dev.switchyard/idempotencyKey":"the caller's","a":1}}"#;
        let object = RawObject::parse(params).unwrap();
        let request = OutgoingRequest {
            params: Some(&object),
            idempotency_key: Some("0193"),
            ..OutgoingRequest::new("tools/call")
        };
        assert_eq!(
            text(request.render(7, ProtocolVersion::V2025_11_25)),
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"_meta":{"dev.switchyard/idempotencyKey":"0193","a":1}}}"#
        );
    }

    #[test]
    fn the_trace_stands_as_it_is_given_and_never_as_the_caller_wrote_it() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let params = r#"{"arguments":{"a": 1.0},"_meta":{"traceparent":"x","tracestate":"y","baggage":7,"a":1}}"#;
        let object = RawObject::parse(params).unwrap();
        let with = |trace| {
            let sent_as = AtomicU64::new(0);
            let request = OutgoingRequest {
                params: Some(&object),
                trace,
                sent_as: Some(&sent_as),
                ..OutgoingRequest::new("tools/call")
            };
            let line = text(request.render(7, ProtocolVersion::V2025_11_25));
            assert_eq!(sent_as.into_inner(), 7);
            let head = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"arguments":{"a": 1.0},"_meta":{"#;
            line.strip_prefix(head).unwrap().strip_suffix("}}}").unwrap().to_owned()
        };
        assert_eq!(with(OutgoingTrace::default()), r#""a":1"#);
        let context = TraceContext::parse(parent);
        assert_eq!(
            with(OutgoingTrace { context, state: Some("k=\"v\""), baggage: None }),
            format!(r#""traceparent":"{parent}","tracestate":"k=\"v\"","a":1"#)
        );
        let baggage = OutgoingTrace { baggage: Some("b=1"), ..OutgoingTrace::default() };
        assert_eq!(with(baggage), r#""baggage":"b=1","a":1"#);
        let request = OutgoingRequest { trace: baggage, ..OutgoingRequest::new("prompts/get") };
        assert_eq!(
            text(request.render(1, ProtocolVersion::V2025_11_25)),
            r#"{"jsonrpc":"2.0","id":1,"method":"prompts/get","params":{"_meta":{"baggage":"b=1"}}}"#
        );
    }

    #[test]
    fn a_request_without_parameters_is_plain() {
        assert_eq!(
            text(OutgoingRequest::new("ping").render(u64::MAX, ProtocolVersion::V2025_03_26)),
            r#"{"jsonrpc":"2.0","id":18446744073709551615,"method":"ping","params":{}}"#
        );
    }

    proptest! {
        #[test]
        fn what_is_rendered_reads_back(
            id in any::<u64>(),
            name in any::<String>(),
            keys in proptest::collection::btree_map("[a-zA-Z\\\\\" é_]{1,8}", any::<i64>(), 0..6),
            modern in any::<bool>(),
        ) {
            let params = serde_json::to_string(&keys).unwrap();
            let object = RawObject::parse(&params).unwrap();
            let request = OutgoingRequest { params: Some(&object), name: Some(&name), ..OutgoingRequest::new("tools/call") };
            let version = if modern { ProtocolVersion::V2026_07_28 } else { ProtocolVersion::V2025_06_18 };
            let line = text(request.render(id, version));
            prop_assert!(!line.contains('\n'));
            let back: serde_json::Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(&back["id"], &serde_json::json!(id));
            prop_assert_eq!(&back["params"]["name"], &serde_json::json!(name));
            for (key, value) in &keys {
                if key != "name" && key != "_meta" {
                    prop_assert_eq!(&back["params"][key], &serde_json::json!(value));
                }
            }
            prop_assert_eq!(back["params"].get("_meta").is_some(), modern);
        }
    }
}
