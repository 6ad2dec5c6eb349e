//! From server and tool to the name that clients see. PURE.
//!
//! Changes when the rules of exposed names change. Names depend on the set of tools alone, never
//! on the order in which servers answered.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ring::digest::{SHA256, digest};

use super::page::OfferedList;
use crate::model::{ExposedName, NamingMode, ServerName, ToolName};

/// What model APIs accept at most.
const LIMIT: usize = 64;
/// Digits of the hash that tells shortened names apart: 30 bits.
const HASH_DIGITS: usize = 6;

/// A name that two or more would have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collision {
    /// In which list.
    pub list: OfferedList,
    /// The name.
    pub name: String,
    /// Who has it.
    pub servers: Vec<ServerName>,
}

/// What became of a set of tools.
#[derive(Debug, Default)]
pub struct Names {
    /// The exposed name of each tool, in the order given; `None` for a tool in a collision.
    pub names: Vec<Option<ExposedName>>,
    /// Names that could not be given (`naming: bare` only).
    pub collisions: Vec<Collision>,
}

/// Names every tool of the set. Prompts are named by the same rules.
///
/// `prefix`: `{server}__{tool}` with every character outside `[A-Za-z0-9_-]` replaced by `_`; a
/// name longer than 64 is cut and ends in a hash of the whole. Where two tools come to one name,
/// the one that needed no change keeps it (of several, the one with the longest server name) and the others get
/// the hash. `bare`: the upstream's own name; two servers with one name are a collision and
/// neither gets it.
///
/// `servers` are all there are, also those without tools: a name that speaks of one of them is never
/// given to a tool of another, which gets the hash instead.
#[must_use]
pub fn expose(tools: &[(ServerName, ToolName)], servers: &[ServerName], mode: NamingMode) -> Names {
    match mode {
        NamingMode::Prefix => prefixed(tools, servers),
        NamingMode::Bare => bare(tools),
    }
}

fn prefixed(tools: &[(ServerName, ToolName)], servers: &[ServerName]) -> Names {
    let natural: Vec<(String, bool)> = tools
        .iter()
        .map(|(server, tool)| {
            let (name, exact) = natural_name(server, tool);
            if means(&name, servers).is_none_or(|meant| meant == server) {
                (name, exact)
            } else {
                // Also while that server is away nobody may take its place.
                (hashed(&name, server, tool), false)
            }
        })
        .collect();
    let mut owner: BTreeMap<&str, Claim<'_>> = BTreeMap::new();
    for ((server, tool), (name, exact)) in tools.iter().zip(&natural) {
        let claim = claim(*exact, server, tool);
        owner.entry(name).and_modify(|best| *best = (*best).min(claim)).or_insert(claim);
    }
    let names = tools
        .iter()
        .zip(&natural)
        .map(|((server, tool), (name, exact))| {
            let keeps = owner.get(name.as_str()) == Some(&claim(*exact, server, tool));
            let name = if keeps { name.clone() } else { hashed(name, server, tool) };
            ExposedName::parse(&name).ok()
        })
        .collect();
    Names { names, collisions: Vec::new() }
}

/// The server that a name by rule speaks of: of several prefixes, the longest.
fn means<'a>(name: &str, servers: &'a [ServerName]) -> Option<&'a ServerName> {
    servers
        .iter()
        .filter(|server| {
            name.strip_prefix(server.as_str()).is_some_and(|rest| rest.starts_with("__"))
        })
        .max_by_key(|server| server.as_str().len())
}

/// Who keeps a contested name, least first: exact before changed, then the longest server name (a
/// name that begins with `a__b__` means server `a__b`, not a tool of `a`), then by name.
type Claim<'a> = (bool, Reverse<usize>, &'a ServerName, &'a ToolName);

fn claim<'a>(exact: bool, server: &'a ServerName, tool: &'a ToolName) -> Claim<'a> {
    (!exact, Reverse(server.as_str().len()), server, tool)
}

fn bare(tools: &[(ServerName, ToolName)]) -> Names {
    let mut servers: BTreeMap<&ToolName, Vec<&ServerName>> = BTreeMap::new();
    for (server, tool) in tools {
        servers.entry(tool).or_default().push(server);
    }
    let names = tools
        .iter()
        .map(|(_, tool)| {
            let unique = servers.get(tool).is_some_and(|servers| servers.len() == 1);
            unique.then(|| ExposedName::parse(tool.as_str()).ok()).flatten()
        })
        .collect();
    let collisions = servers
        .into_iter()
        .filter(|(_, servers)| servers.len() > 1)
        .map(|(tool, servers)| Collision {
            list: OfferedList::Tools,
            name: tool.as_str().to_owned(),
            servers: servers.into_iter().cloned().collect(),
        })
        .collect();
    Names { names, collisions }
}

/// The name by rule, and whether it is exactly `{server}__{tool}`.
fn natural_name(server: &ServerName, tool: &ToolName) -> (String, bool) {
    let exact = format!("{server}__{tool}");
    let clean: String = exact
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' })
        .collect();
    if clean.len() > LIMIT {
        return (hashed(&clean, server, tool), false);
    }
    let unchanged = clean == exact;
    (clean, unchanged)
}

/// `name`, cut where needed, and the hash of what it stands for.
fn hashed(name: &str, server: &ServerName, tool: &ToolName) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let hash = digest(&SHA256, format!("{server}\0{tool}").as_bytes());
    let suffix: String = hash
        .as_ref()
        .iter()
        .take(HASH_DIGITS)
        .filter_map(|byte| DIGITS.get(usize::from(byte % 32)))
        .map(|digit| char::from(*digit))
        .collect();
    // `name` is ASCII here, so a cut by characters is a cut by bytes.
    let kept: String = name.chars().take(LIMIT - HASH_DIGITS - 1).collect();
    format!("{kept}_{suffix}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn tool(server: &str, tool: &str) -> (ServerName, ToolName) {
        (ServerName::parse(server).unwrap(), ToolName::parse(tool).unwrap())
    }

    fn names(tools: &[(ServerName, ToolName)], mode: NamingMode) -> Vec<Option<String>> {
        expose(tools, &[], mode)
            .names
            .into_iter()
            .map(|n| n.map(|n| n.as_str().to_owned()))
            .collect()
    }

    #[test]
    fn ordinary_names_are_server_and_tool() {
        assert_eq!(
            names(&[tool("time", "get_current_time"), tool("git-ops", "log")], NamingMode::Prefix),
            [Some("time__get_current_time".into()), Some("git-ops__log".into())]
        );
    }

    #[test]
    fn odd_and_long_names_are_made_acceptable_and_stay_apart() {
        let long = "x".repeat(100);
        let tools = [
            tool("a", "b.c"),
            tool("a", "b_c"),
            tool("a", "b/c"),
            tool("a", &long),
            tool("a", &format!("{long}y")),
            tool("a", "日本"),
        ];
        let named = names(&tools, NamingMode::Prefix);
        assert_eq!(named[1].as_deref(), Some("a__b_c"));
        assert!(named[0].as_deref().unwrap().starts_with("a__b_c_"));
        let set: HashSet<_> = named.iter().collect();
        assert_eq!(set.len(), tools.len());
    }

    #[test]
    fn two_ways_to_one_exact_name_stay_apart() {
        let named = names(&[tool("a__b", "c"), tool("a", "b__c")], NamingMode::Prefix);
        assert_eq!(named[0].as_deref(), Some("a__b__c"));
        assert!(named[1].as_deref().unwrap().starts_with("a__b__c_"));
    }

    #[test]
    fn no_tool_takes_the_name_of_another_server_that_is_away() {
        let servers = ["a", "a__b", "git_hub"].map(|name| ServerName::parse(name).unwrap());
        let tools = [tool("a", "b__c"), tool("git.hub", "x"), tool("a__b", "d"), tool("a", "d")];
        let named = expose(&tools, &servers, NamingMode::Prefix).names;
        let named: Vec<&str> = named.iter().map(|name| name.as_ref().unwrap().as_str()).collect();
        assert!(
            named[0].starts_with("a__b__c_") && named[1].starts_with("git_hub__x_"),
            "{named:?}"
        );
        assert_eq!(named[2..], ["a__b__d", "a__d"]);
    }

    #[test]
    fn a_bare_collision_names_both_servers() {
        let tools = [tool("a", "x"), tool("b", "x"), tool("b", "y.z")];
        let exposed = expose(&tools, &[], NamingMode::Bare);
        assert_eq!(names(&tools, NamingMode::Bare), [None, None, Some("y.z".into())]);
        assert_eq!(
            exposed.collisions,
            [Collision {
                list: OfferedList::Tools,
                name: "x".into(),
                servers: vec![tool("a", "x").0, tool("b", "x").0]
            }]
        );
    }

    proptest! {
        #[test]
        fn no_two_tools_share_a_name_and_order_does_not_matter(
            set in proptest::collection::hash_set(("[a-c_.]{0,2}", "[a-c_./ é]{1,3}|[a-c.]{60,70}"), 0..30),
        ) {
            let tools: Vec<_> = set
                .iter()
                .map(|(server, name)| tool(&format!("s{server}"), name))
                .collect();
            let named = names(&tools, NamingMode::Prefix);
            let unique: HashSet<_> = named.iter().collect();
            prop_assert_eq!(unique.len(), tools.len());
            for name in named.iter().flatten() {
                prop_assert!(name.len() <= LIMIT);
                prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
            }
            let mut reversed = tools;
            reversed.reverse();
            let mut back = names(&reversed, NamingMode::Prefix);
            back.reverse();
            prop_assert_eq!(back, named);
        }
    }
}
