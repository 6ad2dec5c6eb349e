//! Names the specification reserves, and header values that carry names.
//!
//! Source: specification 2026-07-28, basic/index (`_meta`) and basic/transports/streamable-http
//! (header encoding).

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Prefix of `_meta` keys that belong to the specification.
pub const RESERVED: &str = "io.modelcontextprotocol/";
/// `_meta` key: the protocol version of a modern request.
pub const PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
/// `_meta` key: what the client can do.
pub const CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
/// `_meta` key: who the client is.
pub const CLIENT_INFO: &str = "io.modelcontextprotocol/clientInfo";
/// `_meta` key: who the server is.
pub const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
/// `_meta` key: which log messages the client wants for this request.
pub const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";

/// `_meta` key: the subscription that a notification belongs to.
pub const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";

/// A header value with the base64 sentinel does not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the header value is wrapped as =?base64?…?= and does not hold base64 of UTF-8 text")]
pub struct HeaderDecodeError;

/// Reads a header value that may be wrapped as `=?base64?…?=`. Without both marks, which are
/// case-sensitive, it stands for itself.
///
/// # Errors
/// When it is wrapped and does not decode.
pub fn decode_header(value: &str) -> Result<Cow<'_, str>, HeaderDecodeError> {
    let value = value.trim_matches([' ', '\t']);
    let wrapped = value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?="));
    let Some(encoded) = wrapped else { return Ok(Cow::Borrowed(value)) };
    let bytes = STANDARD.decode(encoded).ok().ok_or(HeaderDecodeError)?;
    String::from_utf8(bytes).ok().map(Cow::Owned).ok_or(HeaderDecodeError)
}

/// Writes a header value, wrapped when it has characters that a header must not have or could be
/// taken for a wrapped one.
#[must_use]
pub fn encode_header(value: &str) -> Cow<'_, str> {
    let plain = !value.is_empty()
        && value.bytes().all(|b| (0x20..0x7f).contains(&b))
        && !value.starts_with([' ', '\t'])
        && !value.ends_with([' ', '\t'])
        && !value.starts_with("=?base64?");
    if plain {
        Cow::Borrowed(value)
    } else {
        Cow::Owned(format!("=?base64?{}?=", STANDARD.encode(value)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_names_stay_plain() {
        assert_eq!(encode_header("get_time"), "get_time");
        assert_eq!(decode_header(" get_time\t").unwrap(), "get_time");
    }

    #[test]
    fn bad_sentinels_are_refused() {
        for value in ["=?base64?%%%?=", "=?base64?SGVsbG8?=", "=?base64?/w==?="] {
            assert_eq!(decode_header(value), Err(HeaderDecodeError), "{value}");
        }
    }

    #[test]
    fn half_a_sentinel_stands_for_itself() {
        for value in ["=?base64?YWJj", "YWJj?=", "=?base64?=", "=?BASE64?YWJj?="] {
            assert_eq!(decode_header(value).unwrap(), value);
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(value in any::<String>()) {
            let encoded = encode_header(&value);
            prop_assert!(encoded.bytes().all(|b| (0x20..0x7f).contains(&b)));
            prop_assert_eq!(decode_header(&encoded).unwrap(), value.as_str());
        }

        #[test]
        fn decoding_never_panics(value in any::<String>(), wrapped: bool) {
            let value = if wrapped { format!("=?base64?{value}?=") } else { value };
            let _ = decode_header(&value);
        }

        #[test]
        fn wrapped_bytes_decode_if_they_are_text(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                any::<String>().prop_map(String::into_bytes),
            ],
        ) {
            let value = format!("=?base64?{}?=", STANDARD.encode(&bytes));
            let text = String::from_utf8(bytes).ok();
            prop_assert_eq!(decode_header(&value).ok().map(Cow::into_owned), text);
        }
    }
}
