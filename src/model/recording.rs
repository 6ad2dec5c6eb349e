//! What the ledger keeps of which call: [`LevelRule`] as it is written, [`Levels`] as a call finds it.
//!
//! Changes when calls can be told apart by something else.

use std::sync::Arc;

use serde::Serialize;

use super::server::glob_matches;
use super::{ArgumentsLevel, ResultsLevel};

/// One rule of `audit.levels`. Each pattern is a glob; what is not said is any.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LevelRule {
    /// The name of the caller's key, or `anonymous`, `admin-socket`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// What the client calls itself, which it is free to choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The tool, as exposed or as its server names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// What is kept of arguments; else what would hold without the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<ArgumentsLevel>,
    /// What is kept of results; else what would hold without the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub results: Option<ResultsLevel>,
}

impl LevelRule {
    /// Whether it is about a tool with one of these names, of this server.
    fn is_about(&self, server: Option<&str>, names: &[&str]) -> bool {
        let server = self
            .server
            .as_deref()
            .is_none_or(|pattern| server.is_some_and(|server| glob_matches(pattern, server)));
        let tool = |pattern: &str| names.iter().any(|name| glob_matches(pattern, name));
        server && self.tool.as_deref().is_none_or(tool)
    }
}

/// What is kept of arguments and results.
pub type Kept = (ArgumentsLevel, ResultsLevel);

/// The levels of one tool, ready for its calls: finding those of a call allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    /// What holds for callers of whom no rule speaks.
    pub usual: Kept,
    /// The others, in their order; most tools have none.
    by_caller: Option<Arc<[ByCaller]>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ByCaller {
    caller: Option<Box<str>>,
    client: Option<Box<str>>,
    kept: Kept,
}

impl Levels {
    /// The same for all callers.
    #[must_use]
    pub const fn of_all(usual: Kept) -> Self {
        Self { usual, by_caller: None }
    }

    /// Those of a tool of which `without` would be kept if there were no rules. The first rule that is
    /// about a call decides.
    #[must_use]
    pub fn of_tool(
        rules: &[LevelRule],
        server: Option<&str>,
        names: &[&str],
        without: Kept,
    ) -> Self {
        let mut by_caller = Vec::new();
        let mut usual = without;
        for rule in rules.iter().filter(|rule| rule.is_about(server, names)) {
            let kept = (rule.arguments.unwrap_or(without.0), rule.results.unwrap_or(without.1));
            if rule.caller.is_none() && rule.client.is_none() {
                usual = kept;
                break;
            }
            by_caller.push(ByCaller {
                caller: rule.caller.as_deref().map(Into::into),
                client: rule.client.as_deref().map(Into::into),
                kept,
            });
        }
        let by_caller = if by_caller.is_empty() { None } else { Some(by_caller.into()) };
        Self { usual, by_caller }
    }

    /// Those of a call by this caller, whose client calls itself so.
    #[must_use]
    pub fn of_call(&self, caller: &str, client: Option<&str>) -> Kept {
        let fits = |rule: &&ByCaller| {
            rule.caller.as_deref().is_none_or(|pattern| glob_matches(pattern, caller))
                && rule
                    .client
                    .as_deref()
                    .is_none_or(|pattern| client.is_some_and(|name| glob_matches(pattern, name)))
        };
        let rules = self.by_caller.as_deref().unwrap_or_default();
        rules.iter().find(fits).map_or(self.usual, |rule| rule.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ArgumentsLevel as A;
    use ResultsLevel as R;

    fn rule(caller: &str, client: &str, server: &str, tool: &str) -> LevelRule {
        let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        LevelRule {
            caller: said(caller),
            client: said(client),
            server: said(server),
            tool: said(tool),
            ..LevelRule::default()
        }
    }

    #[test]
    fn the_first_rule_that_is_about_a_call_decides() {
        let rules = [
            LevelRule { arguments: Some(A::Full), ..rule("debug*", "", "bank", "") },
            LevelRule { results: Some(R::None), ..rule("", "desk*", "", "") },
            LevelRule { arguments: Some(A::None), ..rule("", "", "bank", "pay") },
            LevelRule { arguments: Some(A::Full), ..rule("", "", "*", "*") },
        ];
        let without = (A::Redacted, R::Summary);
        let pay = Levels::of_tool(&rules, Some("bank"), &["bank__pay", "pay"], without);
        assert_eq!(pay.of_call("debugger", Some("desktop")), (A::Full, R::Summary));
        assert_eq!(pay.of_call("alice", Some("desktop")), (A::Redacted, R::None));
        assert_eq!(pay.of_call("alice", Some("other")), (A::None, R::Summary));
        assert_eq!(pay.of_call("alice", None), (A::None, R::Summary));
        let read = Levels::of_tool(&rules, Some("docs"), &["docs__read", "read"], without);
        assert_eq!(read.of_call("debugger", None), (A::Full, R::Summary));
        let unknown = Levels::of_tool(&rules[..3], None, &["pay"], without);
        assert_eq!(unknown.of_call("x", None), without);
        assert_eq!(Levels::of_tool(&[], Some("a"), &["b"], without), Levels::of_all(without));
    }
}
