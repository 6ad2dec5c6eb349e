//! What a client wants to hear and can do: [`LogLevel`] and [`ClientAbilities`].

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
    const ALL: [Self; 8] = [
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
    fn levels_are_ordered_by_severity() {
        assert!(LogLevel::parse("error") > LogLevel::parse("notice"));
        assert_eq!(LogLevel::parse("loud"), None);
        for level in LogLevel::ALL {
            assert_eq!(LogLevel::parse(level.as_str()), Some(level));
        }
    }
}
