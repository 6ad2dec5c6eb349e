//! What the first messages mean: `server/discover` of the modern era, `initialize` of the legacy.
//!
//! Changes when the specification's opening changes. Knows nothing of sockets or processes: it
//! makes requests and reads answers, for every transport alike.

use super::error::{TransportError, sample};
use super::{Offers, PeerInfo};
use crate::model::{Era, ProtocolVersion};
use crate::protocol::{Answer, AnswerError, AnswerKind, OutgoingRequest, PeerIdentity, RawObject};

/// Version mismatch: `data.supported` says what the server speaks.
pub(super) const UNSUPPORTED_VERSION: i64 = -32022;
/// A header is missing or disagrees with the body.
pub(super) const HEADER_MISMATCH: i64 = -32020;
/// The request needs a capability that we did not declare.
const MISSING_CAPABILITY: i64 = -32021;

/// What the answer to `server/discover` says about the era.
#[derive(Debug)]
pub(super) enum Finding {
    /// A server of the modern era.
    Modern(PeerInfo),
    /// Not one we can speak to without a handshake.
    Legacy,
}

/// The probe: a request that every modern server must answer and that does nothing.
pub(super) fn discover() -> OutgoingRequest<'static> {
    OutgoingRequest::new("server/discover")
}

/// The `initialize` message with our id and the capabilities to declare, as JSON.
pub(super) fn render_initialize(id: u64, capabilities: &str) -> Vec<u8> {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"initialize","params":{{"protocolVersion":"{}","capabilities":{capabilities},"clientInfo":{}}}}}"#,
        ProtocolVersion::LATEST_LEGACY,
        PeerIdentity::JSON
    )
    .into_bytes()
}

/// Reads an answer to `server/discover`; everything that is not surely modern is legacy.
pub(super) fn read_discover(answer: &Answer) -> Finding {
    let Some(object) = object(answer) else { return Finding::Legacy };
    match answer.kind {
        AnswerKind::Result => {
            let Some(version) =
                object.get("supportedVersions").and_then(|v| newest_modern(v.get()))
            else {
                return Finding::Legacy;
            };
            let server_info = object
                .get("_meta")
                .and_then(|meta| RawObject::parse(meta.get()).ok())
                .and_then(|meta| meta.get(crate::protocol::SERVER_INFO))
                .or_else(|| object.get("serverInfo"))
                .map(|info| info.get().to_owned());
            Finding::Modern(PeerInfo::read(version, server_info, &object))
        }
        AnswerKind::Error => match error_code(answer) {
            Some(UNSUPPORTED_VERSION) => object
                .get("data")
                .and_then(|data| RawObject::parse(data.get()).ok())
                .and_then(|data| data.get("supported"))
                .and_then(|versions| newest_modern(versions.get()))
                .map_or(Finding::Legacy, |version| Finding::Modern(PeerInfo::unknown(version))),
            // Only a modern server knows these codes; it is one, if a strict one.
            Some(HEADER_MISMATCH | MISSING_CAPABILITY) => {
                Finding::Modern(PeerInfo::unknown(ProtocolVersion::LATEST))
            }
            _ => Finding::Legacy,
        },
    }
}

/// Reads an answer to `initialize`.
pub(super) fn read_initialize(answer: &Answer) -> Result<PeerInfo, TransportError> {
    if answer.kind == AnswerKind::Error {
        return Err(TransportError::HandshakeRefused { message: sample(&answer.value) });
    }
    let object = object(answer).ok_or_else(|| TransportError::NotAnAnswer {
        source: AnswerError::ResultNotObject,
        sample: sample(&answer.value),
    })?;
    let found = object.get_str("protocolVersion").unwrap_or_default();
    let version = ProtocolVersion::parse(&found)
        .filter(|version| version.era() == Era::Legacy)
        .ok_or_else(|| TransportError::Version { found: sample(found.as_bytes()) })?;
    let server_info = object.get("serverInfo").map(|info| info.get().to_owned());
    Ok(PeerInfo::read(version, server_info, &object))
}

impl PeerInfo {
    fn read(version: ProtocolVersion, server_info: Option<String>, object: &RawObject<'_>) -> Self {
        let capabilities = object.get("capabilities").map(|raw| raw.get().to_owned());
        let offers = capabilities.as_deref().map_or(Offers::UNDECLARED, Offers::of);
        Self {
            version,
            server_info,
            offers,
            capabilities,
            instructions: object.get_str("instructions").map(std::borrow::Cow::into_owned),
        }
    }

    fn unknown(version: ProtocolVersion) -> Self {
        Self {
            version,
            server_info: None,
            capabilities: None,
            instructions: None,
            offers: Offers::UNDECLARED,
        }
    }
}

impl Offers {
    /// Of a server that says nothing about itself.
    pub(super) const UNDECLARED: Self = Self {
        tools: true,
        prompts: false,
        resources: false,
        subscriptions: false,
        completions: false,
        logging: false,
        list_changes: false,
        some_list_changes: false,
    };

    /// Reads a `capabilities` object.
    fn of(capabilities: &str) -> Self {
        let Ok(declared) = RawObject::parse(capabilities) else { return Self::UNDECLARED };
        let says = |feature: &str, key: &str| {
            declared
                .get(feature)
                .and_then(|raw| RawObject::parse(raw.get()).ok())
                .is_some_and(|feature| feature.get(key).is_some_and(|raw| raw.get() == "true"))
        };
        let offers = |feature: &str| declared.get(feature).is_some();
        Self {
            tools: offers("tools"),
            prompts: offers("prompts"),
            resources: offers("resources"),
            subscriptions: says("resources", "subscribe"),
            completions: offers("completions"),
            logging: offers("logging"),
            some_list_changes: ["tools", "prompts", "resources"]
                .iter()
                .any(|list| says(list, "listChanged")),
            list_changes: {
                let mut listed = ["tools", "prompts", "resources"]
                    .into_iter()
                    .filter(|list| offers(list))
                    .peekable();
                listed.peek().is_some() && listed.all(|list| says(list, "listChanged"))
            },
        }
    }
}

/// `code` of an error answer.
pub(super) fn error_code(answer: &Answer) -> Option<i64> {
    if answer.kind == AnswerKind::Result {
        return None;
    }
    object(answer)?.get("code")?.get().parse().ok()
}

/// `message` of an error answer, for one line of an error of ours.
pub(super) fn error_message(answer: &Answer) -> String {
    let message = object(answer).and_then(|object| object.get_str("message"));
    message.map_or_else(|| sample(&answer.value), |message| sample(message.as_bytes()))
}

fn object(answer: &Answer) -> Option<RawObject<'_>> {
    RawObject::parse(std::str::from_utf8(&answer.value).ok()?).ok()
}

fn newest_modern(versions: &str) -> Option<ProtocolVersion> {
    serde_json::from_str::<Vec<String>>(versions)
        .ok()?
        .iter()
        .filter_map(|version| ProtocolVersion::parse(version))
        .filter(|version| version.era() == Era::Modern)
        .max()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn answer(message: &str) -> Answer {
        Answer::parse(&Bytes::copy_from_slice(message.as_bytes()), 1).unwrap()
    }

    #[test]
    fn only_what_is_surely_modern_is_modern() {
        for (message, modern) in [
            (r#"{"id":1,"result":{"supportedVersions":["2026-07-28","2025-11-25"]}}"#, true),
            (r#"{"id":1,"result":{"supportedVersions":["2025-11-25"]}}"#, false),
            (r#"{"id":1,"result":{}}"#, false),
            (r#"{"id":1,"error":{"code":-32601,"message":"no"}}"#, false),
            (r#"{"id":1,"error":{"code":-32602,"message":"no"}}"#, false),
            (r#"{"id":1,"error":{"code":-32020,"message":"header"}}"#, true),
            (r#"{"id":1,"error":{"code":-32022,"data":{"supported":["2026-07-28"]}}}"#, true),
            (r#"{"id":1,"error":{"code":-32022,"data":{"supported":["2099-01-01"]}}}"#, false),
            (r#"{"id":null,"error":{"code":-32000,"message":"no session"}}"#, false),
        ] {
            let found = matches!(read_discover(&answer(message)), Finding::Modern(_));
            assert_eq!(found, modern, "{message}");
        }
    }

    #[test]
    fn what_a_server_says_of_itself_is_kept_as_it_was() {
        let Finding::Modern(peer) = read_discover(&answer(
            r#"{"id":1,"result":{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"instructions":"be\nkind","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"x" }}}}"#,
        )) else {
            panic!("legacy");
        };
        assert_eq!(peer.server_info.as_deref(), Some(r#"{"name":"x" }"#));
        assert_eq!(peer.instructions.as_deref(), Some("be\nkind"));
        assert!(peer.offers.tools);
        let peer = read_initialize(&answer(
            r#"{"id":1,"result":{"protocolVersion":"2025-06-18","capabilities":{"prompts":{}},"serverInfo":{"name":"y"}}}"#,
        ))
        .unwrap();
        assert_eq!(peer.version, ProtocolVersion::V2025_06_18);
        assert!(!peer.offers.tools && peer.offers.prompts);
    }

    #[test]
    fn a_handshake_with_an_unknown_version_fails() {
        for version in ["1999-01-01", "2026-07-28"] {
            let message = format!(r#"{{"id":1,"result":{{"protocolVersion":"{version}"}}}}"#);
            assert!(matches!(
                read_initialize(&answer(&message)),
                Err(TransportError::Version { found }) if found == version
            ));
        }
    }

    #[test]
    fn the_handshake_is_json_with_our_name() {
        let message: serde_json::Value =
            serde_json::from_slice(&render_initialize(3, r#"{"roots":{}}"#)).unwrap();
        assert_eq!(message["params"]["protocolVersion"], "2025-11-25");
        assert_eq!(message["params"]["clientInfo"]["name"], "switchyard");
        assert_eq!(message["params"]["capabilities"]["roots"], serde_json::json!({}));
        assert_eq!(message["id"], 3);
    }
}
