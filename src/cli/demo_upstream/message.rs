//! JSON-RPC and MCP messages as the bundled upstream reads and writes them.
//!
//! Changes when the wire does. Arguments stay the bytes they were: nothing here makes a
//! `serde_json::Value` of them.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// JSON-RPC: the body is not JSON.
pub(super) const PARSE_ERROR: i64 = -32700;
/// JSON-RPC: JSON, but not a request.
pub(super) const INVALID_REQUEST: i64 = -32600;
/// JSON-RPC: no such method.
pub(super) const METHOD_NOT_FOUND: i64 = -32601;
/// JSON-RPC: wrong parameters, and unknown tools.
pub(super) const INVALID_PARAMS: i64 = -32602;
/// JSON-RPC: our fault.
pub(super) const INTERNAL_ERROR: i64 = -32603;
/// What the official SDKs answer to a request outside a session.
pub(super) const SESSION_ERROR: i64 = -32000;
/// MCP 2026-07-28: header and body disagree.
pub(super) const HEADER_MISMATCH: i64 = -32020;
/// MCP 2026-07-28: the protocol version is not spoken here.
pub(super) const UNSUPPORTED_VERSION: i64 = -32022;

/// The modern version.
pub(super) const MODERN: &str = "2026-07-28";
/// The legacy versions, newest first.
pub(super) const LEGACY: [&str; 3] = ["2025-11-25", "2025-06-18", "2025-03-26"];

const SERVER_INFO: &str = concat!(
    r#"{"name":"switchyard-demo-upstream","version":""#,
    env!("CARGO_PKG_VERSION"),
    r#""}"#
);

/// The envelope of a message; a notification has no id, a response no method.
#[derive(Debug, Deserialize)]
pub(super) struct Envelope<'a> {
    #[serde(borrow)]
    pub(super) id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) params: Option<&'a RawValue>,
}

/// The parameters of every method that we know, together.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Params<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) arguments: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) cursor: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "protocolVersion")]
    pub(super) protocol_version: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "_meta")]
    pub(super) meta: Option<Meta<'a>>,
}

/// What we read of `_meta`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Meta<'a> {
    #[serde(borrow, rename = "io.modelcontextprotocol/protocolVersion")]
    pub(super) protocol_version: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "io.modelcontextprotocol/clientCapabilities")]
    pub(super) client_capabilities: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    /// Reads one message.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// Reads the parameters; absent ones are empty ones.
    pub(super) fn params(&self) -> Result<Params<'a>, serde_json::Error> {
        self.params.map_or_else(|| Ok(Params::default()), |raw| serde_json::from_str(raw.get()))
    }

    /// Whether it is an answer to us: it has an id and no method.
    pub(super) fn is_response(&self) -> bool {
        self.method.is_none() && self.id.is_some()
    }
}

/// A text as a JSON string.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A response with `result`, an object in JSON that is not empty. `modern` adds what every result
/// of 2026-07-28 has.
pub(super) fn result(id: &str, result: &str, modern: bool) -> String {
    let mut text = String::with_capacity(result.len().saturating_add(id.len()).saturating_add(192));
    text.push_str(r#"{"jsonrpc":"2.0","id":"#);
    text.push_str(id);
    text.push_str(r#","result":"#);
    match result.strip_prefix('{') {
        Some(rest) if modern => {
            text.push_str(
                r#"{"resultType":"complete","_meta":{"io.modelcontextprotocol/serverInfo":"#,
            );
            text.push_str(SERVER_INFO);
            text.push_str("},");
            text.push_str(rest);
        }
        Some(_) | None => text.push_str(result),
    }
    text.push('}');
    text
}

/// An error response; without `data` when that is empty. `id` is JSON, `null` when unknown.
pub(super) fn error(id: &str, code: i64, message: &str, data: &str) -> String {
    let message = quote(message);
    if data.is_empty() {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message}}}}}"#)
    } else {
        format!(
            r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message},"data":{data}}}}}"#
        )
    }
}

/// The result of `initialize`.
pub(super) fn initialize_result(version: &str) -> String {
    format!(
        r#"{{"protocolVersion":{},"capabilities":{{"tools":{{}}}},"serverInfo":{SERVER_INFO},"instructions":"Tools to try a router with."}}"#,
        quote(version)
    )
}

/// The result of `server/discover`.
pub(super) fn discover_result(supported: &[&str]) -> String {
    format!(
        r#"{{"supportedVersions":{},"capabilities":{{"tools":{{}}}},"instructions":"Tools to try a router with.","ttlMs":60000,"cacheScope":"public"}}"#,
        versions(supported)
    )
}

/// The `data` of [`UNSUPPORTED_VERSION`].
pub(super) fn unsupported_data(supported: &[&str], requested: &str) -> String {
    format!(r#"{{"supported":{},"requested":{}}}"#, versions(supported), quote(requested))
}

fn versions(list: &[&str]) -> String {
    let quoted: Vec<String> = list.iter().map(|version| quote(version)).collect();
    format!("[{}]", quoted.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_stay_the_bytes_they_were() {
        let body = br#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x","arguments":{ "n":1.0,"n":1e400 , "s":"\u00e9"}}}"#;
        let envelope = Envelope::parse(body).unwrap();
        let params = envelope.params().unwrap();
        assert_eq!(params.arguments.unwrap().get(), r#"{ "n":1.0,"n":1e400 , "s":"\u00e9"}"#);
        assert_eq!(envelope.id.unwrap().get(), r#""a""#);
    }

    #[test]
    fn a_modern_result_says_that_it_is_complete() {
        let text = result("7", r#"{"content":[]}"#, true);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["result"]["resultType"], "complete");
        assert_eq!(value["result"]["content"], serde_json::json!([]));
        assert_eq!(
            value["result"]["_meta"]["io.modelcontextprotocol/serverInfo"]["name"],
            "switchyard-demo-upstream"
        );
        assert_eq!(
            result("7", r#"{"a":1}"#, false),
            r#"{"jsonrpc":"2.0","id":7,"result":{"a":1}}"#
        );
    }
}
