//! [`ViewSpec`]: which tools one view offers, as an operator says it.

use std::collections::BTreeSet;

use super::{ServerName, ToolFilter};

/// What an operator says about one view.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ViewSpec {
    /// For people.
    pub description: String,
    /// Its servers; `None` means all, also those that come later.
    pub servers: Option<BTreeSet<ServerName>>,
    /// Its tools, by exposed name or by the server's own.
    pub tools: ToolFilter,
}

impl ViewSpec {
    /// Whether a server's tools may be in the view.
    #[must_use]
    pub fn admits_server(&self, server: &ServerName) -> bool {
        self.servers.as_ref().is_none_or(|servers| servers.contains(server))
    }

    /// Whether a tool is in the view; `tool` is the server's own name for it.
    ///
    /// A pattern counts when it matches either of the two names, and a pattern of `deny` wins over
    /// any of `allow`.
    #[must_use]
    pub fn admits(&self, server: &ServerName, tool: &str, exposed: &str) -> bool {
        self.admits_server(server) && self.tools.admits_one_of(&[exposed, tool])
    }

    /// Why the view can never offer anything, whatever its servers have.
    #[must_use]
    pub fn always_empty(&self) -> Option<&'static str> {
        let everything =
            |pattern: &String| !pattern.is_empty() && pattern.chars().all(|c| c == '*');
        if self.servers.as_ref().is_some_and(BTreeSet::is_empty) {
            Some("`servers` is empty")
        } else if self.tools.allow.is_empty() {
            Some("`tools.allow` is empty")
        } else if self.tools.deny.iter().any(everything) {
            Some("`tools.deny` matches every tool")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server(name: &str) -> ServerName {
        ServerName::parse(name).unwrap()
    }

    fn view(servers: Option<&[&str]>, allow: &[&str], deny: &[&str]) -> ViewSpec {
        let list = |patterns: &[&str]| patterns.iter().map(|&p| p.to_owned()).collect();
        ViewSpec {
            description: String::new(),
            servers: servers.map(|names| names.iter().map(|name| server(name)).collect()),
            tools: ToolFilter { allow: list(allow), deny: list(deny) },
        }
    }

    #[test]
    fn a_pattern_matches_either_name_and_deny_wins() {
        let view = view(Some(&["tickets", "wiki"]), &["search*", "tickets__get_*"], &["*delete*"]);
        let admits =
            |name: &str, tool: &str| view.admits(&server(name), tool, &format!("{name}__{tool}"));
        assert!(admits("wiki", "search_pages"));
        assert!(admits("tickets", "get_one"));
        assert!(!admits("wiki", "get_one"), "the pattern names another server");
        assert!(!admits("wiki", "search_and_delete"));
        assert!(!admits("github", "search_code"), "not one of its servers");
    }

    #[test]
    fn what_can_never_offer_anything_is_told() {
        assert_eq!(ViewSpec::default().always_empty(), None);
        assert_eq!(view(None, &["none_of_this"], &["a*"]).always_empty(), None);
        for view in
            [view(Some(&[]), &["*"], &[]), view(None, &[], &[]), view(None, &["*"], &["a", "**"])]
        {
            assert!(view.always_empty().is_some());
            assert!(!view.admits(&server("s"), "t", "s__t"));
        }
    }

    /// Whether a glob matches, straight from its definition.
    fn matches(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, _) => text.is_empty(),
            (Some((b'*', rest)), _) => {
                (0..=text.len()).any(|skipped| matches(rest, &text[skipped..]))
            }
            (Some((b'?', rest)), Some((_, tail))) => matches(rest, tail),
            (Some((one, rest)), Some((other, tail))) => one == other && matches(rest, tail),
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn globs_do_what_their_definition_says(
            allow in prop::collection::vec("[ab_*?]{0,6}", 0..3),
            deny in prop::collection::vec("[ab_*?]{0,6}", 0..3),
            tool in "[ab_]{1,6}",
            listed in proptest::option::of(any::<bool>()),
        ) {
            let exposed = format!("a__{tool}");
            let spec = ViewSpec {
                servers: listed.map(|listed| {
                    BTreeSet::from([server(if listed { "a" } else { "b" })])
                }),
                tools: ToolFilter { allow: allow.clone(), deny: deny.clone() },
                ..ViewSpec::default()
            };
            let hit = |patterns: &[String]| patterns.iter().any(|pattern| {
                [&tool, &exposed].iter().any(|name| matches(pattern.as_bytes(), name.as_bytes()))
            });
            let expected = listed != Some(false) && hit(&allow) && !hit(&deny);
            prop_assert_eq!(spec.admits(&server("a"), &tool, &exposed), expected);
            if spec.always_empty().is_some() {
                prop_assert!(!spec.admits(&server("a"), &tool, &exposed));
            }
        }

        #[test]
        fn a_view_never_offers_more_for_another_deny(
            allow in prop::collection::vec("[ab_*?]{0,6}", 0..3),
            deny in "[ab_*?]{0,6}",
            tool in "[ab_]{1,6}",
        ) {
            let before = ViewSpec {
                tools: ToolFilter { allow: allow.clone(), deny: Vec::new() },
                ..ViewSpec::default()
            };
            let after = ViewSpec {
                tools: ToolFilter { allow, deny: vec![deny] },
                ..ViewSpec::default()
            };
            let exposed = format!("s__{tool}");
            prop_assert!(
                before.admits(&server("s"), &tool, &exposed)
                    || !after.admits(&server("s"), &tool, &exposed)
            );
        }
    }
}
