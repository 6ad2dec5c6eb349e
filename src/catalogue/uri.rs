//! Addresses of resources: which server is meant, and whether a template could have made one. PURE.
//!
//! Changes when the form of addressed resources changes, or how much of RFC 6570 is understood.

use std::borrow::Cow;

use crate::model::ServerName;

/// Begins an address that names its server.
const ADDRESS: &str = "switchyard://";
/// A longer address is matched with no template: in bytes.
const LONGEST_URI: usize = 8 * 1024;
/// A template with more expressions than this is listed, but no address is found by it.
const EXPRESSIONS: usize = 32;
/// Steps that matching one address with all templates may take; some milliseconds. Templates come
/// from servers and addresses from clients, and neither may keep a thread busy.
const STEPS: usize = 4_000_000;

/// `switchyard://{server}/{uri, percent-encoded}`.
pub(super) fn address(server: &ServerName, uri: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |value: u8| DIGITS.get(usize::from(value)).map_or('0', |digit| char::from(*digit));
    let mut out = format!("{ADDRESS}{server}/");
    for byte in uri.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    out
}

/// `switchyard://{server}/{template}`. Not encoded, or its expressions would be none any more, and
/// what they expand to could not be told from the rest.
pub(super) fn address_template(server: &ServerName, template: &str) -> String {
    format!("{ADDRESS}{server}/{template}")
}

/// Reads an address that names its server: the server's name as written, and the server's own
/// address of the resource.
///
/// A `:`, which every absolute address has and an encoded one has not, tells the two forms apart.
pub(super) fn read_address(text: &str) -> Option<(&str, Cow<'_, str>)> {
    let (server, rest) = text.strip_prefix(ADDRESS)?.split_once('/')?;
    if rest.contains(':') { Some((server, rest.into())) } else { Some((server, decode(rest)?)) }
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(text.into());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || u8::try_from(char::from(bytes.next()?).to_digit(16)?).ok();
            out.push(digit()? << 4 | digit()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// The scheme of an address or of a template that begins with one, in lower case (RFC 3986, 3.1).
pub(super) fn scheme(uri: &str) -> Option<String> {
    let (scheme, _) = uri.split_once(':')?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let begins = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
    (begins && scheme.chars().all(legal)).then(|| scheme.to_ascii_lowercase())
}

/// What is left of [`STEPS`] for one address.
#[derive(Debug)]
pub(super) struct Patience {
    left: usize,
    exhausted: bool,
}

impl Patience {
    pub(super) const fn new() -> Self {
        Self { left: STEPS, exhausted: false }
    }

    /// Whether something was not tried for want of it.
    pub(super) const fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    fn take(&mut self, steps: usize) -> bool {
        let left = self.left.checked_sub(steps);
        self.exhausted |= left.is_none();
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

/// A template of addresses (RFC 6570, levels 1 to 3), as far as finding out what it could have
/// made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    parts: Vec<Part>,
    literals: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Expression(Expression),
}

/// What an expression can expand to: nothing, or `first` and any number of bytes but `stops`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Expression {
    first: Option<u8>,
    stops: &'static [u8],
}

impl Expression {
    /// Values may hold more than the specification lets through: clients differ in what they
    /// encode. What ends a segment, the path or the query does end the value.
    fn parse(text: &str) -> Option<Self> {
        let operator = text.chars().next()?;
        let several = text.contains([',', '*']);
        let (first, stops): (Option<u8>, &'static [u8]) = match operator {
            '+' => (None, b""),
            '#' => (Some(b'#'), b""),
            '.' => (Some(b'.'), b"/?#"),
            '/' if several => (Some(b'/'), b"?#"),
            '/' => (Some(b'/'), b"/?#"),
            ';' => (Some(b';'), b"/?#"),
            '?' => (Some(b'?'), b"#"),
            '&' => (Some(b'&'), b"#"),
            c if c.is_ascii_alphanumeric() || matches!(c, '_' | '%') => (None, b"/?#"),
            _ => return None,
        };
        Some(Self { first, stops })
    }
}

impl Template {
    /// Reads a template; `None` when it is none, or is longer than any of use.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut template = Self { parts: Vec::new(), literals: 0 };
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once('{') {
            let (inside, after) = after.split_once('}')?;
            template.push_literal(literal)?;
            template.parts.push(Part::Expression(Expression::parse(inside)?));
            rest = after;
        }
        template.push_literal(rest)?;
        let expressions = template.parts.iter().filter(|p| matches!(p, Part::Expression(_)));
        (expressions.count() <= EXPRESSIONS).then_some(template)
    }

    fn push_literal(&mut self, text: &str) -> Option<()> {
        if text.contains(['{', '}']) {
            return None;
        }
        if !text.is_empty() {
            self.literals += text.chars().count();
            self.parts.push(Part::Literal(text.to_owned()));
        }
        Some(())
    }

    /// How many characters stand fast: of two templates that could have made an address, the one
    /// with more of them says more about it.
    pub(super) const fn literals(&self) -> usize {
        self.literals
    }

    /// Whether `uri` could be an expansion. All ways to split it are followed at once, so that the
    /// time grows with the lengths of both and never with the number of ways; when the patience is
    /// used up, it is not.
    pub(super) fn matches(&self, uri: &str, patience: &mut Patience) -> bool {
        let uri = uri.as_bytes();
        if uri.len() > LONGEST_URI {
            return false;
        }
        if let Some(Part::Literal(literal)) = self.parts.first()
            && !uri.starts_with(literal.as_bytes())
        {
            return false;
        }
        // Whether the parts so far could have made the first `n` bytes.
        let mut reached = vec![false; uri.len() + 1];
        if let Some(start) = reached.first_mut() {
            *start = true;
        }
        for part in &self.parts {
            let steps = match part {
                Part::Literal(literal) => {
                    let from = reached.iter().filter(|reached| **reached).count();
                    uri.len().saturating_add(from.saturating_mul(literal.len()))
                }
                Part::Expression(_) => uri.len(),
            };
            if !patience.take(steps) {
                return false;
            }
            reached = match part {
                Part::Literal(literal) => after_literal(uri, &reached, literal.as_bytes()),
                Part::Expression(expression) => after_expression(uri, &reached, *expression),
            };
        }
        reached.last() == Some(&true)
    }
}

fn after_literal(uri: &[u8], reached: &[bool], literal: &[u8]) -> Vec<bool> {
    let mut after = vec![false; reached.len()];
    for (at, _) in reached.iter().enumerate().filter(|(_, reached)| **reached) {
        if uri.get(at..).is_some_and(|rest| rest.starts_with(literal))
            && let Some(place) = after.get_mut(at + literal.len())
        {
            *place = true;
        }
    }
    after
}

fn after_expression(uri: &[u8], reached: &[bool], expression: Expression) -> Vec<bool> {
    // An expression without values expands to nothing.
    let mut after = reached.to_vec();
    let mut inside = false;
    for (at, byte) in uri.iter().enumerate() {
        let begins_here = reached.get(at) == Some(&true);
        inside = match expression.first {
            None => (inside || begins_here) && !expression.stops.contains(byte),
            Some(first) => {
                (inside && !expression.stops.contains(byte)) || (begins_here && *byte == first)
            }
        };
        if inside && let Some(place) = after.get_mut(at + 1) {
            *place = true;
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server() -> ServerName {
        ServerName::parse("up.1").unwrap()
    }

    fn matches(template: &str, uri: &str) -> bool {
        Template::parse(template).unwrap().matches(uri, &mut Patience::new())
    }

    #[test]
    fn addresses_read_back_in_both_forms() {
        assert_eq!(
            address(&server(), "file:///a b%20é"),
            "switchyard://up.1/file%3A%2F%2F%2Fa%20b%2520%C3%A9"
        );
        assert_eq!(
            read_address("switchyard://up.1/file:///a%20b"),
            Some(("up.1", "file:///a%20b".into()))
        );
        for text in [
            "switchyard://up.1",
            "switchyard:/up/x",
            "file:///x",
            "switchyard://u/%zz",
            "switchyard://u/%f",
        ] {
            assert_eq!(read_address(text), None, "{text}");
        }
    }

    #[test]
    fn templates_match_what_they_expand_to_and_not_their_neighbours() {
        for (template, uri, expected) in [
            ("test://template/{id}/data", "test://template/123/data", true),
            ("test://template/{id}/data", "test://template/1/2/data", false),
            ("test://template/{id}/data", "test://template/123/date", false),
            ("file:///{+path}", "file:///a/b/c?d#e", true),
            ("file:///{path}", "file:///a/b", false),
            ("x:{/a}", "x:/b", true),
            ("x:{/a}", "x:", true),
            ("x:{/a}", "x:/b/c", false),
            ("x:{/a,b}", "x:/b/c", true),
            ("x://h/s{?q,lang}", "x://h/s?q=a&lang=b", true),
            ("x://h/s{?q,lang}", "x://h/s", true),
            ("x://h/s{?q,lang}", "x://h/s/t?q=a", false),
            ("x:{a}{b}a", "x:aaaa", true),
            ("x:y", "x:y", true),
            ("x:y", "x:yy", false),
            ("x:a{#f}", "x:a#/b/c", true),
        ] {
            assert_eq!(matches(template, uri), expected, "{template} {uri}");
        }
        for text in ["a:{", "a:}", "a:{x", "a:{{x}}", "a:{}", "a:{!x}"] {
            assert_eq!(Template::parse(text), None, "{text}");
        }
        assert_eq!(Template::parse("ab{c}d").unwrap().literals(), 3);
    }

    #[test]
    fn a_hostile_pair_of_template_and_address_is_given_up() {
        let template = Template::parse(&format!("{}b", "{+x}aaaaaaaaaaaaaaaa".repeat(30))).unwrap();
        let uri = "a".repeat(LONGEST_URI);
        let mut patience = Patience::new();
        for _ in 0..5000 {
            assert!(!template.matches(&uri, &mut patience));
        }
        assert!(patience.is_exhausted());
    }

    #[test]
    fn a_scheme_is_one_only_before_a_colon() {
        assert_eq!(scheme("File:///x").as_deref(), Some("file"));
        assert_eq!(scheme("{x}:y"), None);
        assert_eq!(scheme("no"), None);
        assert_eq!(scheme(":x"), None);
    }

    /// A template, and one of its expansions by the rules of RFC 6570.
    fn expanded() -> impl Strategy<Value = (String, String)> {
        let value = "[a-zA-Z0-9._~-]{0,4}|(%[0-9A-F]{2}){1,2}";
        let part = prop_oneof![
            "[a-z/.:=&?-]{1,4}".prop_map(|literal| (literal.clone(), literal)),
            value.prop_map(|v| ("{v}".to_owned(), v)),
            (value, value).prop_map(|(v, w)| ("{v,w}".to_owned(), format!("{v},{w}"))),
            "[a-z/?#:%-]{0,5}".prop_map(|v| ("{+v}".to_owned(), v)),
            proptest::option::of("[a-z/?#:-]{0,5}").prop_map(|v| {
                ("{#v}".to_owned(), v.map(|v| format!("#{v}")).unwrap_or_default())
            }),
            proptest::option::of(value)
                .prop_map(|v| ("{/v}".to_owned(), v.map(|v| format!("/{v}")).unwrap_or_default())),
            (value, value).prop_map(|(v, w)| ("{/v,w}".to_owned(), format!("/{v}/{w}"))),
            value.prop_map(|v| ("{.v}".to_owned(), format!(".{v}"))),
            value.prop_map(|v| ("{;v}".to_owned(), format!(";v={v}"))),
            proptest::option::of((value, value)).prop_map(|v| {
                let query = v.map(|(v, w)| format!("?v={v}&w={w}")).unwrap_or_default();
                ("{?v,w}".to_owned(), query)
            }),
            value.prop_map(|v| ("{&v}".to_owned(), format!("&v={v}"))),
        ];
        proptest::collection::vec(part, 0..8).prop_map(|parts| {
            let (templates, values): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            (templates.concat(), values.concat())
        })
    }

    proptest! {
        #[test]
        fn what_a_template_expands_to_matches_it((template, uri) in expanded()) {
            prop_assert!(matches(&template, &uri), "{} {}", template, uri);
        }

        #[test]
        fn any_text_is_survived(template in ".{0,30}", uri in ".{0,30}") {
            if let Some(template) = Template::parse(&template) {
                template.matches(&uri, &mut Patience::new());
            }
            let _ = read_address(&uri);
        }

        #[test]
        fn an_encoded_address_reads_back(uri in ".{0,40}") {
            let text = address(&server(), &uri);
            prop_assert!(text.is_ascii());
            let (name, back) = read_address(&text).unwrap();
            prop_assert_eq!((name, back.as_ref()), ("up.1", uri.as_str()));
        }
    }
}
