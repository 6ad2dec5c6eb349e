//! [`Message`]: a client's line, read as far as its way to the router needs; [`Reply`]: what came
//! back. Values in, values out.
//!
//! Changes when HTTP headers depend on something else in a message. Nothing is written anew: a
//! message goes on as the bytes it was.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::protocol::{
    Incoming, IncomingError, ModernMeta, PROTOCOL_VERSION, RawObject, encode_header,
};

/// One message of the client.
#[derive(Debug)]
pub(super) struct Message {
    /// The line.
    pub(super) body: Bytes,
    /// The id as JSON, when it is a request.
    pub(super) id: Option<String>,
    /// The method; empty for an answer to a request of the server.
    pub(super) method: String,
    /// What the headers say of a request that names its protocol version; none in the legacy era.
    pub(super) modern: Option<Modern>,
    /// `params.arguments` of a `tools/call`.
    pub(super) arguments: Option<Bytes>,
    /// The id as JSON that a `notifications/cancelled` is about.
    pub(super) cancels: Option<String>,
}

/// What a modern request says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Modern {
    /// The protocol version, as text.
    pub(super) version: Option<String>,
    /// The tool, prompt, resource or task it is about.
    pub(super) name: Option<String>,
}

impl Message {
    /// Reads a line.
    ///
    /// # Errors
    /// [`IncomingError`] when it is no JSON-RPC message.
    pub(super) fn parse(body: Bytes) -> Result<Self, IncomingError> {
        let (id, method, params) = match Incoming::parse(&body)? {
            Incoming::Request { id, method, params } => {
                (Some(id.json().to_owned()), method.into_owned(), params)
            }
            Incoming::Notification { method, params } => (None, method.into_owned(), params),
            Incoming::Response { .. } => (None, String::new(), None),
        };
        let members = params.and_then(|raw| RawObject::parse(raw.get()).ok()).unwrap_or_default();
        let modern = ModernMeta::is_present(params).then(|| {
            let meta = members.get("_meta").and_then(|raw| RawObject::parse(raw.get()).ok());
            let version = meta.and_then(|meta| Some(meta.get_str(PROTOCOL_VERSION)?.into_owned()));
            let named = name_member(&method).and_then(|member| members.get_str(member));
            Modern { version, name: named.map(std::borrow::Cow::into_owned) }
        });
        let arguments = members.get("arguments").filter(|_| method == "tools/call");
        let arguments = arguments.map(|raw| body.slice_ref(raw.get().as_bytes()));
        let cancels = members.get("requestId").filter(|_| method == "notifications/cancelled");
        let cancels = cancels.map(|raw| raw.get().to_owned());
        Ok(Self { id, method, modern, arguments, cancels, body })
    }

    /// Whether doing it twice does nothing that doing it once does not.
    pub(super) fn is_repeatable(&self) -> bool {
        matches!(
            self.method.as_str(),
            "initialize"
                | "ping"
                | "server/discover"
                | "tools/list"
                | "prompts/list"
                | "resources/list"
                | "resources/templates/list"
        )
    }

    /// Whether its answer has no end of its own.
    pub(super) fn is_open_ended(&self) -> bool {
        self.method == "subscriptions/listen"
    }

    /// The tool that a modern request calls.
    pub(super) fn called_tool(&self) -> Option<&str> {
        self.modern.as_ref()?.name.as_deref().filter(|_| self.method == "tools/call")
    }

    /// The headers that repeat what the body of a modern request says (specification 2026-07-28,
    /// basic/transports/streamable-http).
    pub(super) fn headers(&self) -> Vec<(&'static str, String)> {
        let Some(modern) = &self.modern else { return Vec::new() };
        let method = (!self.method.is_empty()).then_some(self.method.as_str());
        [
            ("mcp-protocol-version", modern.version.as_deref()),
            ("mcp-method", method),
            ("mcp-name", modern.name.as_deref()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, encode_header(value?).into_owned())))
        .collect()
    }
}

/// Which member of `params` the header `Mcp-Name` repeats.
fn name_member(method: &str) -> Option<&'static str> {
    match method {
        "tools/call" | "prompts/get" => Some("name"),
        "resources/read" => Some("uri"),
        "tasks/get" | "tasks/update" | "tasks/cancel" => Some("taskId"),
        _ => None,
    }
}

/// A message of the router, read as far as we must.
#[derive(Debug, Deserialize)]
pub(super) struct Reply<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<&'a RawValue>,
    /// `result`.
    #[serde(borrow, default)]
    pub(super) result: Option<&'a RawValue>,
    /// `error`.
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
}

impl<'a> Reply<'a> {
    /// Reads a message; `None` when it is none.
    pub(super) fn parse(message: &'a [u8]) -> Option<Self> {
        // A list would be read as the members in their order.
        let is_object = message.trim_ascii_start().starts_with(b"{");
        is_object.then(|| serde_json::from_slice(message).ok())?
    }

    /// Whether it is a JSON-RPC message at all and not some other object.
    pub(super) fn is_message(&self) -> bool {
        self.method.is_some() || self.result.is_some() || self.error.is_some()
    }

    /// Whether it answers the request with this id.
    pub(super) fn answers(&self, id: &str) -> bool {
        let answer = self.method.is_none() && (self.result.is_some() || self.error.is_some());
        answer && self.id.is_some_and(|found| same_id(found.get(), id))
    }

    /// A member of the result that is a text.
    pub(super) fn result_text(&self, member: &str) -> Option<String> {
        let result = RawObject::parse(self.result?.get()).ok()?;
        result.get_str(member).map(std::borrow::Cow::into_owned)
    }

    /// The code of an error.
    pub(super) fn error_code(&self) -> Option<i64> {
        #[derive(Deserialize)]
        struct Coded {
            code: i64,
        }
        let error: Coded = serde_json::from_str(self.error?.get()).ok()?;
        Some(error.code)
    }
}

/// Ids are compared as they mean, because a string can be escaped in several ways.
pub(super) fn same_id(one: &str, other: &str) -> bool {
    let text = |json: &str| serde_json::from_str::<String>(json).ok();
    one == other || text(one).is_some_and(|one| Some(one) == text(other))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn modern(method: &str, members: &str) -> Message {
        parse(&format!(
            r#"{{"jsonrpc":"2.0","id":"a","method":"{method}","params":{{"_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}{members}}}}}"#
        ))
    }

    #[test]
    fn the_era_is_the_messages_own() {
        let legacy =
            parse(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}"#);
        assert_eq!((legacy.modern.is_none(), legacy.id.as_deref()), (true, Some("1")));
        assert_eq!(legacy.headers(), []);
        assert_eq!(legacy.called_tool(), None);
        let call = modern("tools/call", r#","name":"größe","arguments":{"a":1e400}"#);
        assert_eq!(call.arguments.as_deref(), Some(&br#"{"a":1e400}"#[..]));
        assert_eq!(call.called_tool(), Some("größe"));
        assert_eq!(
            call.headers(),
            [
                ("mcp-protocol-version", "2026-07-28".to_owned()),
                ("mcp-method", "tools/call".to_owned()),
                ("mcp-name", "=?base64?Z3LDtsOfZQ==?=".to_owned()),
            ]
        );
    }

    #[test]
    fn the_name_in_the_header_depends_on_the_method() {
        let all = r#","name":"n","uri":"u:x","taskId":"t""#;
        for (method, name) in [
            ("prompts/get", Some("n")),
            ("resources/read", Some("u:x")),
            ("tasks/get", Some("t")),
            ("tools/list", None),
            ("subscriptions/listen", None),
        ] {
            assert_eq!(modern(method, all).modern.unwrap().name.as_deref(), name, "{method}");
        }
    }

    #[test]
    fn only_what_changes_nothing_is_repeatable() {
        for method in ["initialize", "ping", "tools/list", "server/discover"] {
            assert!(modern(method, "").is_repeatable(), "{method}");
        }
        for method in ["tools/call", "prompts/get", "resources/read", "x/list"] {
            assert!(!modern(method, "").is_repeatable(), "{method}");
        }
    }

    #[test]
    fn a_cancellation_names_its_request() {
        let text =
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"7"}}"#;
        assert_eq!(parse(text).cancels.as_deref(), Some("\"7\""));
        assert!(!same_id("7", "\"7\""));
        assert!(same_id(r#""a\/b""#, r#""a/b""#));
    }

    #[test]
    fn an_answer_is_known_by_its_id() {
        let reply = |text: &'static str| Reply::parse(text.as_bytes()).unwrap();
        assert!(reply(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).answers("1"));
        assert!(!reply(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).answers("1"));
        assert!(!reply(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32020}}"#).answers("1"));
        assert_eq!(reply(r#"{"error":{"code":-32020,"message":""}}"#).error_code(), Some(-32020));
        assert!(!reply(r#"{"status":401}"#).is_message());
        assert!(Reply::parse(b"<html>").is_none() && Reply::parse(br#"[1,null,{}]"#).is_none());
    }

    proptest! {
        #[test]
        fn a_message_goes_on_as_it_was(text in "\\PC{0,40}", id in any::<i64>()) {
            let text = serde_json::Value::from(text);
            let line = format!(r#" {{"jsonrpc":"2.0", "id":{id},"method":"tools/call","params":{{"name":{text} ,"_meta":{{"io.modelcontextprotocol/protocolVersion":{text}}}}}}} "#);
            let message = parse(&line);
            prop_assert_eq!(&message.body, line.as_bytes());
            for (_, value) in message.headers() {
                prop_assert!(value.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
            }
        }
    }
}
