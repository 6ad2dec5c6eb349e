//! Requests of clients: the envelope and the parts that we must read, strictly.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::answer::AnswerKind;
use super::client::LogLevel;
use super::names;
use super::object::RawObject;
use super::outgoing::push_string;
use crate::model::{BAGGAGE, ClientInfo, TRACEPARENT, TRACESTATE, TraceFields, cut_after};

/// JSON-RPC error codes of the specification that we use ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RpcErrorCode {
    /// Not JSON.
    Parse,
    /// Not a request.
    InvalidRequest,
    /// Unknown method.
    MethodNotFound,
    /// Wrong parameters, also an unknown tool.
    InvalidParams,
    /// A failure of ours.
    Internal,
    /// Headers and body disagree (2026-07-28).
    HeaderMismatch,
    /// The protocol version is not one of ours (2026-07-28).
    UnsupportedVersion,
}

impl RpcErrorCode {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> i64 {
        match self {
            Self::Parse => -32700,
            Self::InvalidRequest => -32600,
            Self::MethodNotFound => -32601,
            Self::InvalidParams => -32602,
            Self::Internal => -32603,
            Self::HeaderMismatch => -32020,
            Self::UnsupportedVersion => -32022,
        }
    }
}

/// Longer ids, which are also repeated in messages about their request, are no ids of a client.
const ID_LIMIT: usize = 512;

/// The id of a request: a string or an integer, as the JSON it came as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId<'a>(&'a str);

impl<'a> RequestId<'a> {
    fn parse(raw: &'a RawValue) -> Option<Self> {
        let text = raw.get();
        let digits = text.strip_prefix('-').unwrap_or(text);
        let integer = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let fits = text.len() <= ID_LIMIT;
        (fits && (integer || text.starts_with('"'))).then_some(Self(text))
    }

    /// The id as JSON.
    #[must_use]
    pub const fn json(self) -> &'a str {
        self.0
    }
}

/// Why a body is not a message we accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct IncomingError {
    /// The JSON-RPC code.
    pub code: RpcErrorCode,
    /// What is wrong.
    pub message: String,
    /// The request's id as JSON, where it could be read.
    pub id: Option<String>,
}

impl IncomingError {
    fn new(code: RpcErrorCode, message: impl Into<String>, id: Option<RequestId<'_>>) -> Self {
        Self { code, message: message.into(), id: id.map(|id| id.0.to_owned()) }
    }
}

/// One message of a client.
#[derive(Debug)]
pub enum Incoming<'a> {
    /// Wants an answer.
    Request {
        /// Its id.
        id: RequestId<'a>,
        /// Its method.
        method: Cow<'a, str>,
        /// Its parameters.
        params: Option<&'a RawValue>,
    },
    /// Wants none.
    Notification {
        /// Its method.
        method: Cow<'a, str>,
        /// Its parameters.
        params: Option<&'a RawValue>,
    },
    /// Answers a request of ours.
    Response {
        /// The id of that request, as JSON.
        id: &'a RawValue,
        /// Result or error.
        kind: AnswerKind,
        /// Its value.
        value: &'a RawValue,
    },
}

const ENVELOPE: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];

impl<'a> Incoming<'a> {
    /// A notification of nothing, for where there is no single message.
    #[must_use]
    pub const fn nothing() -> Self {
        Self::Notification { method: Cow::Borrowed(""), params: None }
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`IncomingError`] with the JSON-RPC code that fits.
    pub fn parse(body: &'a [u8]) -> Result<Self, IncomingError> {
        use RpcErrorCode::{InvalidRequest, Parse};
        let text = match std::str::from_utf8(body) {
            Ok(text) => text,
            Err(error) => {
                return Err(IncomingError::new(
                    Parse,
                    format!("the body is not UTF-8: {error}"),
                    None,
                ));
            }
        };
        if is_batch(body) {
            let message = "batches are not accepted; send one message per request";
            return Err(IncomingError::new(InvalidRequest, message, None));
        }
        let object = RawObject::parse(text).map_err(|error| {
            let code = if error.is_json() { InvalidRequest } else { Parse };
            IncomingError::new(code, format!("the body is not a JSON-RPC message: {error}"), None)
        })?;
        let id = object.get("id").and_then(RequestId::parse);
        let invalid = |message: String| IncomingError::new(InvalidRequest, message, id);
        if let Some((found, known)) = object.miscased(&ENVELOPE) {
            return Err(invalid(format!(
                "the key `{found}` is not `{known}`; keys are case-sensitive"
            )));
        }
        if object.get_str("jsonrpc").as_deref() != Some("2.0") {
            return Err(invalid("`jsonrpc` must be \"2.0\"".to_owned()));
        }
        let Some(method) = object.get("method") else {
            let (kind, value) = match (object.get("result"), object.get("error")) {
                (Some(result), None) => (AnswerKind::Result, result),
                (None, Some(error)) => (AnswerKind::Error, error),
                _ => return Err(invalid("the message has no `method`".to_owned())),
            };
            return match object.get("id") {
                Some(id) => Ok(Self::Response { id, kind, value }),
                None => Err(invalid("the message has no `method` and no `id`".to_owned())),
            };
        };
        let Some(method) = object.get_str("method") else {
            return Err(invalid(format!("`method` must be a string, not {}", method.get())));
        };
        let params = object.get("params").filter(|raw| raw.get() != "null");
        if params.is_some_and(|raw| !raw.get().starts_with('{')) {
            return Err(invalid("`params` must be an object".to_owned()));
        }
        match (object.get("id"), id) {
            (Some(_), Some(id)) => Ok(Self::Request { id, method, params }),
            (Some(raw), None) => Err(invalid(format!(
                "`id` must be a string or an integer of at most {ID_LIMIT} bytes, not {}",
                cut_after(raw.get(), 32)
            ))),
            (None, _) => Ok(Self::Notification { method, params }),
        }
    }
}

/// Whether a body is an array, which only one protocol version allows.
#[must_use]
pub fn is_batch(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'[')
}

/// The messages of a batch, untouched.
///
/// # Errors
/// When it is no JSON array, empty, or has more than `limit` messages.
pub fn batch(body: &[u8], limit: usize) -> Result<Vec<&RawValue>, IncomingError> {
    let messages: Vec<&RawValue> = serde_json::from_slice(body).map_err(|error| {
        let message = format!("the body is not JSON: {error}");
        IncomingError::new(RpcErrorCode::Parse, message, None)
    })?;
    let invalid = |message| Err(IncomingError::new(RpcErrorCode::InvalidRequest, message, None));
    match messages.len() {
        0 => invalid("the batch is empty".to_owned()),
        count if count > limit => {
            invalid(format!("the batch has {count} messages; {limit} are allowed"))
        }
        _ => Ok(messages),
    }
}

/// As long as a tool's own name may be, and a server's name before it.
const NAME_LIMIT: usize = 1200;

/// The parameters of `tools/call`, read as far as routing needs.
#[derive(Debug)]
pub struct CallParams<'a> {
    /// The tool's name.
    pub name: Cow<'a, str>,
    /// `arguments`, untouched.
    pub arguments: Option<&'a RawValue>,
    /// What `_meta` says.
    pub meta: RequestMeta<'a>,
    /// All members, for forwarding.
    pub members: RawObject<'a>,
}

impl<'a> CallParams<'a> {
    /// Reads `params` of a `tools/call`.
    ///
    /// # Errors
    /// A text that says what is wrong, for an invalid-params error.
    pub fn parse(params: Option<&'a RawValue>) -> Result<Self, String> {
        let params = params.ok_or("`params` is missing; `tools/call` needs `name`")?;
        let members =
            RawObject::parse(params.get()).map_err(|error| format!("`params`: {error}"))?;
        if let Some((found, known)) = members.miscased(&["name", "arguments", "_meta"]) {
            return Err(format!("the key `{found}` is not `{known}`; keys are case-sensitive"));
        }
        let name = members.get_str("name").ok_or("`name` must be a string")?;
        if name.len() > NAME_LIMIT {
            return Err(format!("`name` is longer than {NAME_LIMIT} bytes"));
        }
        let meta = RequestMeta::of(&members)?;
        let arguments = members.get("arguments").filter(|raw| raw.get() != "null");
        if arguments.is_some_and(|raw| !raw.get().starts_with('{')) {
            return Err("`arguments` must be an object".to_owned());
        }
        Ok(Self { name, arguments, meta, members })
    }
}

/// What a request of either era says in `_meta`, as far as we act on it.
#[derive(Debug, Clone, Default)]
pub struct RequestMeta<'a> {
    /// `progressToken`, where it is a string or an integer.
    pub progress_token: Option<&'a RawValue>,
    /// The fields of the trace (SEP-414), where they are strings.
    pub trace: TraceFields<'a>,
}

impl<'a> RequestMeta<'a> {
    /// Reads `_meta` of a request's members.
    ///
    /// # Errors
    /// A text that says what is wrong with it.
    pub fn of(members: &RawObject<'a>) -> Result<Self, String> {
        let Some(meta) = members.get("_meta").filter(|raw| raw.get() != "null") else {
            return Ok(Self::default());
        };
        let meta = RawObject::parse(meta.get()).map_err(|error| format!("`_meta`: {error}"))?;
        Ok(Self {
            progress_token: meta.get("progressToken").filter(|raw| RequestId::parse(raw).is_some()),
            trace: TraceFields {
                traceparent: meta.get_str(TRACEPARENT),
                tracestate: meta.get_str(TRACESTATE),
                baggage: meta.get_str(BAGGAGE),
            },
        })
    }
}

/// What a modern request says of itself in `_meta`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModernMeta<'a> {
    /// The protocol version, as text.
    pub version: Cow<'a, str>,
    /// The declared capabilities, as JSON.
    pub client_capabilities: &'a str,
    /// Who the client is, if it says so.
    pub client: Option<ClientInfo>,
    /// The least severe log messages it wants.
    pub log_level: Option<LogLevel>,
}

impl<'a> ModernMeta<'a> {
    /// Whether `params._meta` names a protocol version, which makes a request modern.
    #[must_use]
    pub fn is_present(params: Option<&RawValue>) -> bool {
        params.is_some_and(|raw| {
            memchr::memmem::find(raw.get().as_bytes(), names::PROTOCOL_VERSION.as_bytes()).is_some()
                && Self::meta(Some(raw))
                    .is_ok_and(|meta| meta.get(names::PROTOCOL_VERSION).is_some())
        })
    }

    fn meta<'p>(params: Option<&'p RawValue>) -> Result<RawObject<'p>, String> {
        let params = RawObject::parse(params.map_or("{}", RawValue::get))
            .map_err(|error| format!("`params`: {error}"))?;
        let meta = params.get("_meta").ok_or("`params._meta` is missing")?;
        RawObject::parse(meta.get()).map_err(|error| format!("`params._meta`: {error}"))
    }

    /// Reads `params._meta` of a modern request.
    ///
    /// # Errors
    /// A text that says what is missing or wrong, for an invalid-params error.
    pub fn parse(params: Option<&'a RawValue>) -> Result<Self, String> {
        let meta = Self::meta(params)?;
        let version = meta
            .get_str(names::PROTOCOL_VERSION)
            .ok_or_else(|| format!("`_meta` needs the string `{}`", names::PROTOCOL_VERSION))?;
        let capabilities = meta
            .get(names::CLIENT_CAPABILITIES)
            .filter(|raw| raw.get().starts_with('{'))
            .ok_or_else(|| format!("`_meta` needs the object `{}`", names::CLIENT_CAPABILITIES))?;
        let client = meta.get(names::CLIENT_INFO).and_then(|raw| client_info(raw.get()));
        let log_level = meta.get_str(names::LOG_LEVEL).and_then(|text| LogLevel::parse(&text));
        Ok(Self { version, client_capabilities: capabilities.get(), client, log_level })
    }
}

impl ClientInfo {
    /// Reads `clientInfo`; other members are ignored, long values cut.
    #[must_use]
    pub fn from_json(json: &str) -> Option<Self> {
        client_info(json)
    }
}

fn client_info(json: &str) -> Option<ClientInfo> {
    let info = RawObject::parse(json).ok()?;
    let text = |key: &str, limit: usize| info.get_str(key).map(|value| cut_after(&value, limit));
    Some(ClientInfo { name: text("name", 128)?, version: text("version", 64).unwrap_or_default() })
}

/// A JSON-RPC error as JSON; `id` and `data` are raw JSON.
#[must_use]
pub fn error_response(id: Option<&str>, code: i64, message: &str, data: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(96 + message.len() + data.map_or(0, str::len));
    out.extend_from_slice(br#"{"jsonrpc":"2.0","#);
    // A message whose id could not be read gets null (JSON-RPC 2.0, section 5).
    out.extend_from_slice(br#""id":"#);
    out.extend_from_slice(id.unwrap_or("null").as_bytes());
    out.extend_from_slice(br#","error":{"code":"#);
    out.extend_from_slice(code.to_string().as_bytes());
    out.extend_from_slice(br#","message":"#);
    push_string(&mut out, message);
    if let Some(data) = data {
        out.extend_from_slice(br#","data":"#);
        out.extend_from_slice(data.as_bytes());
    }
    out.extend_from_slice(b"}}");
    out
}

/// A JSON-RPC answer as JSON, `member` being `result` or `error` and `value` its raw JSON.
#[must_use]
pub fn result_response(id: &str, member: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(40 + id.len() + value.len());
    push_head(&mut out, id, member);
    out.extend_from_slice(value);
    out.push(b'}');
    out
}

/// The part of [`result_response`] before the value; for answers too large to copy.
pub fn push_head(out: &mut Vec<u8>, id: &str, member: &str) {
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(br#",""#);
    out.extend_from_slice(member.as_bytes());
    out.extend_from_slice(br#"":"#);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code(body: &str) -> RpcErrorCode {
        Incoming::parse(body.as_bytes()).unwrap_err().code
    }

    #[test]
    fn messages_are_told_apart() {
        assert!(matches!(
            Incoming::parse(br#"{"jsonrpc":"2.0","id":"a","method":"ping"}"#),
            Ok(Incoming::Request { method, params: None, .. }) if method == "ping"
        ));
        assert!(matches!(
            Incoming::parse(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#),
            Ok(Incoming::Notification { .. })
        ));
        assert!(matches!(
            Incoming::parse(br#"{"jsonrpc":"2.0","id":1,"result":{}}"#),
            Ok(Incoming::Response { .. })
        ));
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for (body, expected) in [
            ("", RpcErrorCode::Parse),
            ("{", RpcErrorCode::Parse),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping"} x"#, RpcErrorCode::Parse),
            (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#, RpcErrorCode::InvalidRequest),
            ("7", RpcErrorCode::InvalidRequest),
            (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, RpcErrorCode::InvalidRequest),
            (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, RpcErrorCode::InvalidRequest),
            (r#"{"id":1,"method":"ping"}"#, RpcErrorCode::InvalidRequest),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, RpcErrorCode::InvalidRequest),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, RpcErrorCode::InvalidRequest),
            (r#"{"jsonrpc":"2.0","id":1,"Method":"ping"}"#, RpcErrorCode::InvalidRequest),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, RpcErrorCode::InvalidRequest),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}"#,
                RpcErrorCode::InvalidRequest,
            ),
            (r#"{"jsonrpc":"2.0","id":1}"#, RpcErrorCode::InvalidRequest),
        ] {
            assert_eq!(code(body), expected, "{body}");
        }
    }

    #[test]
    fn the_id_is_echoed_in_errors_as_it_came() {
        let error = Incoming::parse(br#"{"jsonrpc":"2.0","id":"x\u0041","method":1}"#).unwrap_err();
        assert_eq!(error.id.as_deref(), Some(r#""x\u0041""#));
    }

    #[test]
    fn arguments_are_passed_on_untouched() {
        let raw: &RawValue = serde_json::from_str(
            r#"{"name":"t","arguments":{"a":1e400,"a": 1.0},"inputResponses":{}}"#,
        )
        .unwrap();
        let params = CallParams::parse(Some(raw)).unwrap();
        assert_eq!(params.name, "t");
        assert_eq!(params.arguments.unwrap().get(), r#"{"a":1e400,"a": 1.0}"#);
        for bad in [
            r#"{"name":1}"#,
            r#"{"arguments":{}}"#,
            r#"{"name":"t","arguments":[]}"#,
            r#"{"name":"t","Arguments":{}}"#,
            r#"{"name":"t","name":"u"}"#,
        ] {
            let raw: &RawValue = serde_json::from_str(bad).unwrap();
            assert!(CallParams::parse(Some(raw)).is_err(), "{bad}");
        }
        assert!(CallParams::parse(None).is_err());
    }

    #[test]
    fn a_modern_request_says_version_and_capabilities() {
        let raw: &RawValue = serde_json::from_str(
            r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"n","version":"1"}}}"#,
        )
        .unwrap();
        assert!(ModernMeta::is_present(Some(raw)));
        let meta = ModernMeta::parse(Some(raw)).unwrap();
        assert_eq!(meta.version, "2026-07-28");
        assert_eq!(meta.client.unwrap().name, "n");
        let raw: &RawValue = serde_json::from_str(
            r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#,
        )
        .unwrap();
        assert!(ModernMeta::parse(Some(raw)).unwrap_err().contains("clientCapabilities"));
        assert!(ModernMeta::parse(None).is_err());
        assert!(!ModernMeta::is_present(None));
    }

    proptest! {
        #[test]
        fn any_body_is_survived(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Incoming::parse(&body);
            let _ = batch(&body, 3);
        }

        #[test]
        fn what_is_no_json_is_refused_and_nothing_else_is_called_that(
            body in prop_oneof![
                "[\\[\\]{}\",:0-9a-z ]{0,30}",
                "\\{\"jsonrpc\":\"2.0\"(,\"(id|method|params)\":(1|\"a\"|\\{\\}|null|x)){0,3}\\}?",
            ],
        ) {
            let json = serde_json::from_str::<serde::de::IgnoredAny>(&body).is_ok();
            match Incoming::parse(body.as_bytes()) {
                Ok(_) => prop_assert!(json),
                // What has a key twice may be called that before its end is read.
                Err(error) => prop_assert!(error.code != RpcErrorCode::Parse || !json),
            }
            let messages = serde_json::from_str::<Vec<serde::de::IgnoredAny>>(&body);
            let count = messages.map_or(0, |messages| messages.len());
            prop_assert_eq!(batch(body.as_bytes(), 3).is_ok(), (1..=3).contains(&count));
        }

        #[test]
        fn every_message_is_read_as_what_it_is(
            id in prop::option::of(prop_oneof![
                any::<i64>().prop_map(serde_json::Value::from),
                any::<String>().prop_map(serde_json::Value::from),
            ]),
            called in any::<String>(),
            text in any::<String>(),
            params: bool,
            pretty: bool,
            copies in 1_usize..5,
        ) {
            let mut message = serde_json::json!({ "jsonrpc": "2.0", "method": called, text: [1] });
            for (key, value) in [("id", &id), ("params", &params.then(|| serde_json::json!({"a": 1})))] {
                if let Some(value) = value {
                    message[key] = value.clone();
                }
            }
            // A key of the envelope by chance is another test's matter.
            prop_assume!(message["method"] == called.as_str() && message["jsonrpc"] == "2.0");
            let known = message.as_object().unwrap().keys().filter(|key| {
                ENVELOPE.iter().any(|known| known.eq_ignore_ascii_case(key))
            });
            let members = 2 + usize::from(id.is_some()) + usize::from(params);
            prop_assume!(known.count() == members);
            let write = |value: &serde_json::Value| {
                let bytes = if pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
                bytes.unwrap()
            };
            let body = write(&message);
            let json = |raw: &str| serde_json::from_str::<serde_json::Value>(raw).unwrap();
            let (found, method, members) = match Incoming::parse(&body).unwrap() {
                Incoming::Request { id, method, params } => (Some(json(id.json())), method, params),
                Incoming::Notification { method, params } => (None, method, params),
                Incoming::Response { .. } => panic!("it has a method"),
            };
            prop_assert_eq!((found, method.as_ref()), (id, called.as_str()));
            prop_assert_eq!(members.is_some(), params);
            let many = write(&serde_json::json!(vec![message.clone(); copies]));
            let read = batch(&many, copies).unwrap();
            prop_assert!(read.iter().all(|raw| json(raw.get()) == message));
            prop_assert_eq!(read.len(), copies);
            prop_assert!(batch(&many, copies - 1).is_err());
        }

        #[test]
        fn an_error_is_always_json(message in any::<String>()) {
            let bytes = error_response(Some("1"), -32603, &message, Some("{\"a\":1}"));
            let back: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(&back["error"]["message"], &serde_json::json!(message));
        }

        #[test]
        fn a_result_is_spliced_in_to_the_byte(id in 0_u64.., value in "\\{\"a\":[0-9]{1,40}\\}") {
            let bytes = result_response(&id.to_string(), "result", value.as_bytes());
            let text = String::from_utf8(bytes).unwrap();
            prop_assert_eq!(text, format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{value}}}"));
        }
    }
}
