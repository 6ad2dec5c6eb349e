//! What a result says at its top level, and the form it takes for a client of the other era.

use std::collections::HashMap;

use bytes::Bytes;
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::object::BorrowedStr;
use crate::model::Era;

/// What the router must know of a result; everything else stays unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResultFacts {
    /// `isError` is true.
    pub is_error: bool,
    /// `resultType` is there.
    pub has_result_type: bool,
}

#[derive(Deserialize)]
struct TopLevel<'a> {
    #[serde(default, rename = "isError")]
    is_error: Option<bool>,
    #[serde(borrow, default, rename = "resultType")]
    result_type: Option<BorrowedStr<'a>>,
}

impl ResultFacts {
    /// Reads a result. Most results hold neither word, which a substring search finds out much
    /// faster than a parse; a word inside some text only costs the parse.
    #[must_use]
    pub fn of(result: &[u8]) -> Self {
        let mentioned = |word: &str| memmem::find(result, word.as_bytes()).is_some();
        if !mentioned("\"isError\"") && !mentioned("\"resultType\"") {
            return Self::default();
        }
        match serde_json::from_slice::<TopLevel<'_>>(result) {
            Ok(top) => Self {
                is_error: top.is_error == Some(true),
                has_result_type: top.result_type.is_some(),
            },
            // A key twice or of another type: what most readers would make of it.
            Err(_) => serde_json::from_slice::<HashMap<String, &RawValue>>(result).map_or_else(
                |_| Self::default(),
                |top| Self {
                    is_error: top.get("isError").is_some_and(|raw| raw.get() == "true"),
                    has_result_type: top.contains_key("resultType"),
                },
            ),
        }
    }
}

/// The result for a client of `era`: a modern client is promised a `resultType`, which a legacy
/// upstream does not give; everything else is as it came.
#[must_use]
pub fn result_for(era: Era, result: &Bytes, facts: ResultFacts) -> Bytes {
    if era == Era::Legacy || facts.has_result_type {
        return result.clone();
    }
    let members = result.strip_prefix(b"{").unwrap_or(result);
    let empty = members.trim_ascii_start().starts_with(b"}");
    let mut out = Vec::with_capacity(result.len() + 26);
    out.extend_from_slice(br#"{"resultType":"complete""#);
    if !empty {
        out.push(b',');
    }
    out.extend_from_slice(members);
    out.into()
}

/// The text of the first text content, for error messages and `/mcp/call`.
#[must_use]
pub fn first_text(result: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow, default)]
        text: Option<BorrowedStr<'a>>,
    }
    #[derive(Deserialize)]
    struct WithContent<'a> {
        #[serde(borrow, default)]
        content: Vec<Content<'a>>,
    }
    let parsed: WithContent<'_> = serde_json::from_slice(result).ok()?;
    parsed.content.into_iter().find_map(|content| content.text).map(|text| text.0.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(era: Era, result: &'static str) -> String {
        let result = Bytes::from_static(result.as_bytes());
        let out = result_for(era, &result, ResultFacts::of(&result));
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn only_the_top_level_counts() {
        let facts = |text: &str| ResultFacts::of(text.as_bytes());
        assert!(facts(r#"{"content":[],"isError":true}"#).is_error);
        assert!(!facts(r#"{"content":[],"isError":false}"#).is_error);
        assert!(!facts(r#"{"structuredContent":{"isError":true}}"#).is_error);
        assert!(!facts(r#"{"content":[{"type":"text","text":"\"isError\": true"}]}"#).is_error);
        assert!(facts(r#"{"resultType":"input_required"}"#).has_result_type);
        assert!(!facts(r#"{"x":{"resultType":"complete"}}"#).has_result_type);
        assert_eq!(facts(r#"{"isError":"yes"}"#), ResultFacts::default());
        assert!(facts(r#"{"isError":false,"isError":true}"#).is_error);
        assert!(facts(r#"{"isError":true,"resultType":1}"#).is_error);
    }

    #[test]
    fn a_modern_client_gets_its_result_type_and_nothing_else_changes() {
        assert_eq!(
            shaped(Era::Modern, r#"{"n": 1.0,"big":1e400}"#),
            r#"{"resultType":"complete","n": 1.0,"big":1e400}"#
        );
        assert_eq!(shaped(Era::Modern, "{ }"), r#"{"resultType":"complete" }"#);
        assert_eq!(shaped(Era::Modern, r#"{"resultType":"task"}"#), r#"{"resultType":"task"}"#);
        assert_eq!(shaped(Era::Legacy, r#"{"n": 1.0}"#), r#"{"n": 1.0}"#);
    }

    #[test]
    fn the_first_text_is_found() {
        let text = br#"{"content":[{"type":"image","data":"x"},{"type":"text","text":"a\nb"}]}"#;
        assert_eq!(first_text(text).as_deref(), Some("a\nb"));
        assert_eq!(first_text(b"{}"), None);
    }
}
