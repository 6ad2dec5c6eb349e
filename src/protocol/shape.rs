//! What a result says at its top level, and the form that results and errors take for a client of
//! the other era.
//!
//! Changes when an era's results or error codes do.

use std::collections::HashMap;

use bytes::Bytes;
use memchr::memmem;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::object::BorrowedStr;
use super::splice::{Edit, splice};
use crate::model::Era;

/// What the router must know of a result; everything else stays unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResultFacts {
    /// `isError` is true.
    pub is_error: bool,
    /// `resultType` is there.
    pub has_result_type: bool,
    /// `resultType` is `input_required`: the upstream asks for more before it answers. Only a
    /// modern client can be given such a result.
    pub is_input_required: bool,
}

#[derive(Deserialize)]
struct TopLevel<'a> {
    #[serde(default, rename = "isError")]
    is_error: Option<bool>,
    #[serde(borrow, default, rename = "resultType", deserialize_with = "present")]
    result_type: Option<&'a RawValue>,
}

/// A value that is there, also when it is `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl ResultFacts {
    /// Reads a result. Most results hold neither word, which a substring search finds out much
    /// faster than a parse; a word inside some text only costs the parse.
    #[must_use]
    pub fn of(result: &[u8]) -> Self {
        if !mentions(result, "isError") && !mentions(result, "resultType") {
            return Self::default();
        }
        match serde_json::from_slice::<TopLevel<'_>>(result) {
            Ok(top) => Self::new(top.is_error == Some(true), top.result_type),
            // A key twice or of another type: what most readers would make of it.
            Err(_) => serde_json::from_slice::<HashMap<String, &RawValue>>(result).map_or_else(
                |_| Self::default(),
                |top| {
                    let is_error = top.get("isError").is_some_and(|raw| raw.get() == "true");
                    Self::new(is_error, top.get("resultType").copied())
                },
            ),
        }
    }

    fn new(is_error: bool, result_type: Option<&RawValue>) -> Self {
        let is_input_required = result_type
            .and_then(|raw| serde_json::from_str::<BorrowedStr<'_>>(raw.get()).ok())
            .is_some_and(|text| text.0 == "input_required");
        Self { is_error, has_result_type: result_type.is_some(), is_input_required }
    }
}

/// Whether `key` stands somewhere between quotes, as a key does.
fn mentions(json: &[u8], key: &str) -> bool {
    mentions_of(json, key).next().is_some()
}

/// What follows each place where `key` stands between quotes.
fn mentions_of<'a>(json: &'a [u8], key: &str) -> impl Iterator<Item = &'a [u8]> {
    memmem::find_iter(json, key).filter_map(move |at| {
        let quoted = json.get(at.checked_sub(1)?) == Some(&b'"');
        json.get(at + key.len()..)?.strip_prefix(b"\"").filter(|_| quoted)
    })
}

/// The result for a client of `era`; everything it does not speak of is as it came.
///
/// A modern client is promised a `resultType`, which a legacy upstream does not give. A legacy
/// client knows neither `resultType` nor the cache fields `ttlMs` and `cacheScope`, and must refuse
/// a `structuredContent` that is not an object (2025-11-25, schema `CallToolResult`). A result that
/// is not `complete` has no legacy form: the caller keeps it from legacy clients.
#[must_use]
pub fn result_for(era: Era, result: &Bytes, facts: ResultFacts) -> Bytes {
    match era {
        Era::Legacy => legacy_result(result, facts),
        Era::Modern if facts.has_result_type => result.clone(),
        Era::Modern => with_members(result, COMPLETE),
    }
}

/// [`result_for`] for a result that clients may keep: a modern client is promised `ttlMs` and
/// `cacheScope` as well (2026-07-28, server/utilities/caching), and what the upstream did not say is
/// told as "not to be kept". An `input_required` result has no cache fields.
#[must_use]
pub fn cacheable_result_for(era: Era, result: &Bytes, facts: ResultFacts) -> Bytes {
    if era == Era::Legacy || facts.is_input_required {
        return result_for(era, result, facts);
    }
    let top = if mentions(result, "ttlMs") || mentions(result, "cacheScope") {
        serde_json::from_slice::<HashMap<String, &RawValue>>(result).unwrap_or_default()
    } else {
        HashMap::new()
    };
    let members: Vec<&str> = [
        (!facts.has_result_type).then_some(COMPLETE),
        (!top.contains_key("ttlMs")).then_some(r#""ttlMs":0"#),
        (!top.contains_key("cacheScope")).then_some(r#""cacheScope":"private""#),
    ]
    .into_iter()
    .flatten()
    .collect();
    if members.is_empty() {
        return result.clone();
    }
    with_members(result, &members.join(","))
}

const COMPLETE: &str = r#""resultType":"complete""#;

/// The object with `members` before its own.
fn with_members(object: &Bytes, members: &str) -> Bytes {
    let own = object.strip_prefix(b"{").unwrap_or(object);
    let empty = own.trim_ascii_start().starts_with(b"}");
    let mut out = Vec::with_capacity(object.len() + members.len() + 2);
    out.push(b'{');
    out.extend_from_slice(members.as_bytes());
    if !empty {
        out.push(b',');
    }
    out.extend_from_slice(own);
    out.into()
}

fn legacy_result(result: &Bytes, facts: ResultFacts) -> Bytes {
    // Most results have an object there or nothing, which is seen without a parse.
    let unstructured = || {
        mentions_of(result, "structuredContent").any(|after| {
            let value = after.trim_ascii_start().strip_prefix(b":");
            !value.is_some_and(|value| value.trim_ascii_start().starts_with(b"{"))
        })
    };
    let concerned = facts.has_result_type
        || mentions(result, "ttlMs")
        || mentions(result, "cacheScope")
        || unstructured();
    if !concerned {
        return result.clone();
    }
    let mut removed = false;
    let edited = std::str::from_utf8(result).ok().and_then(|text| {
        splice(text, |key, value| {
            let remove = match key {
                "resultType" | "ttlMs" | "cacheScope" => true,
                "structuredContent" => !value.get().starts_with('{'),
                _ => false,
            };
            removed |= remove;
            if remove { Edit::Remove } else { Edit::Keep }
        })
    });
    edited.filter(|_| removed).map_or_else(|| result.clone(), Bytes::from)
}

/// The JSON-RPC error object of an upstream for a client of `era`: two codes of the legacy era are
/// not to be used in the modern one, where -32602 stands for an unknown resource (-32002) and
/// -32603 for a wish to send the user to an address (-32042). Only the code changes.
#[must_use]
pub fn error_for(era: Era, error: &Bytes) -> Bytes {
    let mentioned = |code: &str| memmem::find(error, code.as_bytes()).is_some();
    if era == Era::Legacy || !(mentioned("-32002") || mentioned("-32042")) {
        return error.clone();
    }
    let mut replaced = false;
    let edited = std::str::from_utf8(error).ok().and_then(|text| {
        splice(text, |key, value| {
            let new = match (key, value.get()) {
                ("code", "-32002") => "-32602",
                ("code", "-32042") => "-32603",
                _ => return Edit::Keep,
            };
            replaced = true;
            Edit::Replace(new.into())
        })
    });
    edited.filter(|_| replaced).map_or_else(|| error.clone(), Bytes::from)
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
    use proptest::prelude::*;

    use super::super::splice::tests::{json, object};
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
        assert!(facts(r#"{"resultType":null}"#).has_result_type);
    }

    #[test]
    fn a_result_that_asks_for_more_is_known() {
        let asks = |text: &str| ResultFacts::of(text.as_bytes()).is_input_required;
        assert!(asks(r#"{"resultType":"input_required"}"#));
        assert!(asks(r#"{"resultType": "input\u005frequired", "isError":"x"}"#));
        assert!(!asks(r#"{"resultType":"complete"}"#));
        assert!(!asks(r#"{"resultType":["input_required"]}"#));
        assert!(!asks(r#"{"x":{"resultType":"input_required"}}"#));
    }

    #[test]
    fn a_modern_client_gets_its_result_type_and_nothing_else_changes() {
        assert_eq!(
            shaped(Era::Modern, r#"{"n": 1.0,"big":1e400}"#),
            r#"{"resultType":"complete","n": 1.0,"big":1e400}"#
        );
        assert_eq!(shaped(Era::Modern, "{ }"), r#"{"resultType":"complete" }"#);
        assert_eq!(shaped(Era::Modern, r#"{"resultType":"task"}"#), r#"{"resultType":"task"}"#);
        let modern = r#"{"structuredContent":[1],"ttlMs":1,"resultType":null}"#;
        assert_eq!(shaped(Era::Modern, modern), modern);
    }

    #[test]
    fn a_legacy_client_gets_only_what_its_schema_knows() {
        for (result, expected) in [
            (r#"{"n": 1.0}"#, r#"{"n": 1.0}"#),
            (r#"{"structuredContent":[1] , "n": 1.0}"#, r#"{ "n": 1.0}"#),
            (r#"{"n":1,"structuredContent" : null}"#, r#"{"n":1}"#),
            (
                r#"{"structuredContent" : {"a": 1e400} }"#,
                r#"{"structuredContent" : {"a": 1e400} }"#,
            ),
            (r#"{"resultType":"complete"}"#, "{}"),
            (
                r#"{"resultType":"complete","contents":[ ],"ttlMs":5 ,"cacheScope":"public"}"#,
                r#"{"contents":[ ]}"#,
            ),
            (
                r#"{"x":{"ttlMs":1,"structuredContent":1,"resultType":"a"}}"#,
                r#"{"x":{"ttlMs":1,"structuredContent":1,"resultType":"a"}}"#,
            ),
        ] {
            assert_eq!(shaped(Era::Legacy, result), expected);
        }
    }

    #[test]
    fn an_untouched_result_is_not_copied() {
        for (era, text) in [
            (Era::Legacy, r#"{"structuredContent":{"a":1},"content":[]}"#),
            (Era::Legacy, r#"{"content":["\"ttlMs\""],"x":{"structuredContent":1}}"#),
            (Era::Modern, r#"{"resultType":"complete"}"#),
        ] {
            let result = Bytes::copy_from_slice(text.as_bytes());
            let out = result_for(era, &result, ResultFacts::of(&result));
            assert_eq!(out.as_ptr(), result.as_ptr(), "{text}");
            let out = error_for(Era::Modern, &result);
            assert_eq!(out.as_ptr(), result.as_ptr(), "{text}");
        }
    }

    #[test]
    fn a_result_to_keep_says_how_long() {
        let kept = |era, text: &str| {
            let result = Bytes::copy_from_slice(text.as_bytes());
            let out = cacheable_result_for(era, &result, ResultFacts::of(&result));
            String::from_utf8(out.to_vec()).unwrap()
        };
        for (result, expected) in [
            ("{}", r#"{"resultType":"complete","ttlMs":0,"cacheScope":"private"}"#),
            (
                r#"{ "contents":[]}"#,
                r#"{"resultType":"complete","ttlMs":0,"cacheScope":"private", "contents":[]}"#,
            ),
            (
                r#"{"resultType":"complete","ttlMs":5}"#,
                r#"{"cacheScope":"private","resultType":"complete","ttlMs":5}"#,
            ),
            (
                r#"{"ttlMs":5,"cacheScope":"public","x":1}"#,
                r#"{"resultType":"complete","ttlMs":5,"cacheScope":"public","x":1}"#,
            ),
            (
                r#"{"x":{"ttlMs":5,"cacheScope":"public","resultType":""}}"#,
                r#"{"resultType":"complete","ttlMs":0,"cacheScope":"private","x":{"ttlMs":5,"cacheScope":"public","resultType":""}}"#,
            ),
            (r#"{"resultType":"input_required"}"#, r#"{"resultType":"input_required"}"#),
        ] {
            assert_eq!(kept(Era::Modern, result), expected);
        }
        assert_eq!(kept(Era::Legacy, r#"{"ttlMs":5,"contents":[]}"#), r#"{"contents":[]}"#);
    }

    #[test]
    fn a_code_of_the_legacy_era_is_told_in_the_modern_one() {
        let told = |era, text: &str| {
            let error = Bytes::copy_from_slice(text.as_bytes());
            String::from_utf8(error_for(era, &error).to_vec()).unwrap()
        };
        for (error, expected) in [
            (
                r#"{ "code" : -32002 , "message":"no -32002","data":{"code":-32002,"n":1e400}}"#,
                r#"{ "code" : -32602 , "message":"no -32002","data":{"code":-32002,"n":1e400}}"#,
            ),
            (r#"{"message":"","code":-32042}"#, r#"{"message":"","code":-32603}"#),
            (r#"{"code":-32603,"message":"-32042"}"#, r#"{"code":-32603,"message":"-32042"}"#),
            (r#"{"code":-320021,"message":""}"#, r#"{"code":-320021,"message":""}"#),
            ("-32002", "-32002"),
        ] {
            assert_eq!(told(Era::Modern, error), expected);
            assert_eq!(told(Era::Legacy, error), error);
        }
        for code in [-32020, -32021, -32022] {
            let error = format!(r#"{{"code":{code},"message":"m"}}"#);
            assert_eq!(told(Era::Legacy, &error), error);
            assert_eq!(told(Era::Modern, &error), error);
        }
    }

    proptest! {
        #[test]
        fn both_forms_are_what_a_parser_would_make_of_them(
            text in object(
                prop::collection::btree_map(
                    "[a-c]|resultType|ttlMs|cacheScope|structuredContent|isError", json(), 0..7,
                )
                .boxed(),
            )
        ) {
            type Members = serde_json::Map<String, serde_json::Value>;
            let result = Bytes::from(text);
            let facts = ResultFacts::of(&result);
            let own: Members = serde_json::from_slice(&result).unwrap();

            let mut legacy = own.clone();
            legacy.retain(|key, value| match key.as_str() {
                "resultType" | "ttlMs" | "cacheScope" => false,
                "structuredContent" => value.is_object(),
                _ => true,
            });
            let out: Members =
                serde_json::from_slice(&result_for(Era::Legacy, &result, facts)).unwrap();
            prop_assert_eq!(out, legacy);

            let mut modern = own;
            modern.entry("resultType").or_insert_with(|| "complete".into());
            let out: Members =
                serde_json::from_slice(&result_for(Era::Modern, &result, facts)).unwrap();
            prop_assert_eq!(&out, &modern);

            modern.entry("ttlMs").or_insert_with(|| 0.into());
            modern.entry("cacheScope").or_insert_with(|| "private".into());
            let out: Members =
                serde_json::from_slice(&cacheable_result_for(Era::Modern, &result, facts)).unwrap();
            prop_assert_eq!(&out, &modern);
        }
    }

    #[test]
    fn the_first_text_is_found() {
        let text = br#"{"content":[{"type":"image","data":"x"},{"type":"text","text":"a\nb"}]}"#;
        assert_eq!(first_text(text).as_deref(), Some("a\nb"));
        assert_eq!(first_text(b"{}"), None);
    }
}
