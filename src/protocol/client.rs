//! What a client wants to hear and can do: [`LogLevel`] and [`ClientAbilities`].

use serde_json::value::RawValue;

use super::object::RawObject;

/// How severe a log message is (RFC 5424, as MCP names it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// `debug`.
    Debug,
    /// `info`.
    Info,
    /// `notice`.
    Notice,
    /// `warning`.
    Warning,
    /// `error`.
    Error,
    /// `critical`.
    Critical,
    /// `alert`.
    Alert,
    /// `emergency`.
    Emergency,
}

impl LogLevel {
    /// Every level, the least severe first.
    pub const ALL: [Self; 8] = [
        Self::Debug,
        Self::Info,
        Self::Notice,
        Self::Warning,
        Self::Error,
        Self::Critical,
        Self::Alert,
        Self::Emergency,
    ];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Alert => "alert",
            Self::Emergency => "emergency",
        }
    }

    /// Reads a level's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == text)
    }
}

/// Requests of servers that a client can answer: the capabilities it declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientAbilities {
    /// `sampling/createMessage`.
    pub sampling: bool,
    /// `elicitation/create`.
    pub elicitation: bool,
    /// `roots/list`.
    pub roots: bool,
}

impl ClientAbilities {
    /// Reads a `capabilities` object of a client; what is not one declares nothing.
    #[must_use]
    pub fn of(capabilities: &str) -> Self {
        let object = RawObject::parse(capabilities).unwrap_or_default();
        let declared = |key: &str| object.get(key).is_some_and(|raw| raw.get().starts_with('{'));
        Self {
            sampling: declared("sampling"),
            elicitation: declared("elicitation"),
            roots: declared("roots"),
        }
    }

    /// Whether any is declared.
    #[must_use]
    pub const fn any(self) -> bool {
        self.sampling || self.elicitation || self.roots
    }

    /// Whether a request with this method can be answered.
    #[must_use]
    pub fn covers(self, method: &str) -> bool {
        match method {
            "sampling/createMessage" => self.sampling,
            "elicitation/create" => self.elicitation,
            "roots/list" => self.roots,
            _ => false,
        }
    }
}

/// `params.level` of a `notifications/message`, which is the whole message.
#[must_use]
pub fn log_level(message: &[u8]) -> Option<LogLevel> {
    let text = std::str::from_utf8(message).ok()?;
    let params = RawObject::parse(text).ok()?.get("params").map(RawValue::get)?;
    LogLevel::parse(&RawObject::parse(params).ok()?.get_str("level")?)
}

/// The abilities of a client that servers may use.
const ABILITIES: [&str; 3] = ["sampling", "elicitation", "roots"];
/// Longer declarations are cut to their names: each session keeps one.
const DECLARATION_LIMIT: usize = 512;

/// A client's `capabilities` without what does not concern servers, as it declared them; none when
/// it declared nothing that does. At most 512 bytes: of longer ones only the names are kept.
#[must_use]
pub fn declared_abilities(capabilities: &str) -> Option<Box<str>> {
    let object = RawObject::parse(capabilities).unwrap_or_default();
    let members: Vec<(&str, &str)> = ABILITIES
        .into_iter()
        .filter_map(|key| Some((key, object.get(key)?.get())))
        .filter(|(_, value)| value.starts_with('{'))
        .collect();
    if members.is_empty() {
        return None;
    }
    let length = members.iter().fold(1, |sum, (key, value)| sum + key.len() + value.len() + 4);
    let kept = |value| if length <= DECLARATION_LIMIT { value } else { "{}" };
    let members: Vec<String> =
        members.into_iter().map(|(key, value)| format!(r#""{key}":{}"#, kept(value))).collect();
    Some(format!("{{{}}}", members.join(",")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_declared_objects_are_abilities() {
        let abilities = ClientAbilities::of(
            r#"{"sampling":{},"elicitation":true,"roots":{"listChanged":true}}"#,
        );
        assert_eq!(abilities, ClientAbilities { sampling: true, elicitation: false, roots: true });
        assert_eq!(ClientAbilities::of("[]"), ClientAbilities::default());
        assert!(abilities.covers("roots/list") && !abilities.covers("tools/list"));
    }

    #[test]
    fn what_is_declared_stays_as_it_was_declared() {
        let declared = |text: &str| declared_abilities(text).map(String::from);
        assert_eq!(
            declared(
                r#"{"experimental":{"x":1},"roots":{"listChanged":true},"elicitation":{ "form":{}, "url":{} },"sampling":false}"#
            )
            .as_deref(),
            Some(r#"{"elicitation":{ "form":{}, "url":{} },"roots":{"listChanged":true}}"#)
        );
        for nothing in ["{}", "[]", "", r#"{"experimental":{}}"#, r#"{"roots":null}"#] {
            assert_eq!(declared(nothing), None, "{nothing}");
        }
        let long = format!(r#"{{"sampling":{{"x":"{}"}},"roots":{{}}}}"#, "y".repeat(600));
        assert_eq!(declared(&long).as_deref(), Some(r#"{"sampling":{},"roots":{}}"#));
        for kept in [&long, r#"{"sampling":{"tools":{}}}"#] {
            let abilities = declared(kept).unwrap();
            assert_eq!(ClientAbilities::of(&abilities), ClientAbilities::of(kept));
        }
    }

    #[test]
    fn levels_are_ordered_by_severity() {
        assert!(LogLevel::parse("error") > LogLevel::parse("notice"));
        assert_eq!(LogLevel::parse("loud"), None);
        for level in LogLevel::ALL {
            assert_eq!(LogLevel::parse(level.as_str()), Some(level));
        }
    }
}
