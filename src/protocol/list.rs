//! Prompts, resources and templates as their server lists them: kept as received, read as far as
//! routing needs.

use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::object::RawObject;
use super::outgoing::push_string;
use crate::model::cut_after;

/// A definition larger than this is a fault of the server: in bytes.
pub(super) const DEFINITION_LIMIT: usize = 1024 * 1024;
/// One that is nested deeper is one, too: parsers of clients stop at 128 levels or so, and would
/// lose the whole list of every server to it.
pub(super) const DEPTH_LIMIT: usize = 100;
/// A longer name or address is a fault of the server: in bytes.
const KEY_LIMIT: usize = 8 * 1024;

/// Why something in a list is left out, or the list is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListedError {
    /// The answer has no list.
    #[error("the answer has no `{member}` list: {problem}")]
    NotAList {
        /// The member that should be there.
        member: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Not an object, or with a key twice.
    #[error("an element of `{member}` is not an object: {problem}")]
    NotAnObject {
        /// The list.
        member: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// No usable name or address.
    #[error(
        "an element of `{member}` has no usable `{key}`: it must have from 1 to {KEY_LIMIT} bytes"
    )]
    Key {
        /// The list.
        member: &'static str,
        /// What identifies its elements.
        key: &'static str,
    },
    /// Larger than the limit.
    #[error(
        "the definition of `{name}` has {size} bytes, more than the limit of {DEFINITION_LIMIT}"
    )]
    TooLarge {
        /// Its name or address.
        name: String,
        /// Its size in bytes.
        size: usize,
    },
    /// Nested deeper than the limit.
    #[error("the definition of `{name}` is nested deeper than {DEPTH_LIMIT} levels")]
    TooDeep {
        /// Its name or address.
        name: String,
    },
}

/// Whether a JSON text is nested deeper than `limit`; `text` is well-formed.
pub(super) fn is_deeper(text: &str, limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// One element of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What identifies it at its server: a name, an address or a template of addresses.
    pub key: String,
    /// The definition, byte for byte.
    pub raw: Bytes,
}

/// One page of `prompts/list`, `resources/list` or `resources/templates/list`.
#[derive(Debug, Default)]
pub struct ListedPage {
    /// The elements that could be read, in the server's order.
    pub items: Vec<Listed>,
    /// Those that could not, with the reason.
    pub problems: Vec<ListedError>,
    /// Where the next page begins. An empty one is a cursor like any other.
    pub next_cursor: Option<String>,
    /// How long the list may be kept (`ttlMs`, modern era).
    pub ttl: Option<Duration>,
}

/// No page of a server in good faith has more elements; each costs memory before it is looked at.
pub(super) const PAGE_ITEMS: usize = 20_000;

impl ListedPage {
    /// Reads the `result` of a list request: `member` is the list's name, `key` what identifies
    /// its elements. Each definition is copied, so that a small one does not keep a large page
    /// alive.
    ///
    /// # Errors
    /// When there is no list; single elements that cannot be read are `problems`.
    pub fn parse(
        result: &Bytes,
        member: &'static str,
        key: &'static str,
    ) -> Result<Self, ListedError> {
        let not_a_list = |problem: &dyn std::fmt::Display| ListedError::NotAList {
            member,
            problem: problem.to_string(),
        };
        let text = std::str::from_utf8(result).map_err(|error| not_a_list(&error))?;
        let object = RawObject::parse(text).map_err(|error| not_a_list(&error))?;
        let list = object.get(member).ok_or_else(|| not_a_list(&"it is missing"))?;
        let elements: Vec<&RawValue> =
            serde_json::from_str(list.get()).map_err(|error| not_a_list(&error))?;
        let mut page = Self {
            next_cursor: object.get_str("nextCursor").map(std::borrow::Cow::into_owned),
            ttl: ttl(object.get("ttlMs")),
            ..Self::default()
        };
        if elements.len() > PAGE_ITEMS {
            return Err(not_a_list(&format!("one page has {} elements", elements.len())));
        }
        for raw in elements {
            match Listed::parse(raw.get(), member, key) {
                Ok(item) => page.items.push(item),
                Err(problem) => page.problems.push(problem),
            }
        }
        Ok(page)
    }
}

impl Listed {
    fn parse(raw: &str, member: &'static str, key: &'static str) -> Result<Self, ListedError> {
        let members = RawObject::parse(raw)
            .map_err(|error| ListedError::NotAnObject { member, problem: error.to_string() })?;
        let name = members.get_str(key).unwrap_or_default();
        if name.is_empty() || name.len() > KEY_LIMIT {
            return Err(ListedError::Key { member, key });
        }
        if raw.len() > DEFINITION_LIMIT {
            let name = cut_after(&name, 128);
            return Err(ListedError::TooLarge { name, size: raw.len() });
        }
        if is_deeper(raw, DEPTH_LIMIT) {
            return Err(ListedError::TooDeep { name: name.into_owned() });
        }
        Ok(Self { key: name.into_owned(), raw: Bytes::copy_from_slice(raw.as_bytes()) })
    }
}

/// `ttlMs` of a result: a number of milliseconds that is not negative.
pub(super) fn ttl(raw: Option<&RawValue>) -> Option<Duration> {
    raw?.get().parse().ok().map(Duration::from_millis)
}

/// The object `raw` with the string `value` in the place of its member `key`; every other byte as
/// received. Without such a member it stays as it is.
#[must_use]
pub fn with_member(raw: &[u8], key: &str, value: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + value.len());
    let spliced = std::str::from_utf8(raw).ok().and_then(|text| {
        let old = RawObject::parse(text).ok()?.get(key)?.get();
        let start = old.as_ptr() as usize - text.as_ptr() as usize;
        Some((text.get(..start)?, text.get(start + old.len()..)?))
    });
    match spliced {
        Some((before, after)) => {
            out.extend_from_slice(before.as_bytes());
            push_string(&mut out, value);
            out.extend_from_slice(after.as_bytes());
        }
        None => out.extend_from_slice(raw),
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn depth_counts_what_is_outside_of_texts() {
        assert!(!is_deeper(r#"{"a":[{}]}"#, 3) && is_deeper(r#"{"a":[{}]}"#, 2));
        assert!(!is_deeper(r#"{"[[{":"\\\"[[["}"#, 1));
        assert!(!is_deeper(&"[]".repeat(200), 1));
        let deep = format!("{}{}", "[".repeat(DEPTH_LIMIT + 1), "]".repeat(DEPTH_LIMIT + 1));
        assert!(is_deeper(&deep, DEPTH_LIMIT));
    }

    fn page(text: &'static str) -> Result<ListedPage, ListedError> {
        ListedPage::parse(&Bytes::from_static(text.as_bytes()), "resources", "uri")
    }

    #[test]
    fn one_bad_element_does_not_hide_the_others() {
        let page = page(
            r#"{"ttlMs": 1500,"resources":[{"uri":"a:1", "n":1.0},{"name":"x"},7,{"uri":"a:2","uri":"a:3"},{"uri":"a:4"}],"nextCursor":""}"#,
        )
        .unwrap();
        let keys: Vec<_> = page.items.iter().map(|item| item.key.as_str()).collect();
        assert_eq!(keys, ["a:1", "a:4"]);
        assert_eq!(page.items[0].raw, &br#"{"uri":"a:1", "n":1.0}"#[..]);
        assert_eq!(page.problems.len(), 3);
        assert_eq!(page.next_cursor.as_deref(), Some(""), "an empty cursor is one");
        assert_eq!(page.ttl, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["", "7", "{}", r#"{"resources":{}}"#, r#"{"resources":null}"#] {
            assert!(page(text).is_err(), "{text}");
        }
        let page = page(r#"{"resources":[],"nextCursor":null,"ttlMs":-1}"#).unwrap();
        assert_eq!((page.next_cursor, page.ttl), (None, None));
    }

    proptest! {
        #[test]
        fn only_the_member_changes(value in any::<String>(), before in any::<i64>()) {
            let raw = format!(r#"{{ "b": {before} , "uri" :"x","e":1e400}}"#);
            let out = String::from_utf8(with_member(raw.as_bytes(), "uri", &value)).unwrap();
            let quoted = out
                .strip_prefix(&format!(r#"{{ "b": {before} , "uri" :"#))
                .and_then(|rest| rest.strip_suffix(r#","e":1e400}"#))
                .unwrap();
            prop_assert_eq!(serde_json::from_str::<String>(quoted).unwrap(), value);
        }
    }
}
