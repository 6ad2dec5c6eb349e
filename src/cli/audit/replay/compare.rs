//! What two answers to the same call have in common. PURE.
//!
//! Changes when another difference matters.

use std::collections::BTreeMap;

use serde_json::Value;

/// The shape of a JSON value: names and types, no values. Elements of a list count as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    Null,
    Boolean,
    Number,
    Text,
    /// What its elements are, without repeats and in order of their first place.
    List(Vec<Shape>),
    Object(BTreeMap<String, Shape>),
    /// Something was taken out here: whatever it was.
    Masked,
}

impl Shape {
    pub(super) fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Boolean,
            Value::Number(_) => Self::Number,
            Value::String(text) if text == "***" => Self::Masked,
            Value::String(_) => Self::Text,
            Value::Array(elements) => {
                let mut shapes = Vec::new();
                for shape in elements.iter().map(Self::of) {
                    if !shapes.contains(&shape) {
                        shapes.push(shape);
                    }
                }
                Self::List(shapes)
            }
            Value::Object(members) => Self::Object(
                members.iter().map(|(key, value)| (key.clone(), Self::of(value))).collect(),
            ),
        }
    }

    /// Whether `now` may be what this was, of which something may have been taken out.
    fn fits(&self, now: &Self) -> bool {
        match (self, now) {
            (Self::Masked, _) => true,
            (Self::List(then), Self::List(now)) if then.iter().any(Self::is_masked) => {
                let known = |shape: &Self| then.iter().any(|then| then.fits(shape));
                now.iter().all(known) && then.is_empty() == now.is_empty()
            }
            (Self::List(then), Self::List(now)) => then == now,
            (Self::Object(then), Self::Object(now)) => {
                then.len() == now.len()
                    && then.iter().all(|(key, then)| now.get(key).is_some_and(|now| then.fits(now)))
            }
            _ => self == now,
        }
    }

    fn is_masked(&self) -> bool {
        match self {
            Self::Masked => true,
            Self::List(elements) => elements.iter().any(Self::is_masked),
            Self::Object(members) => members.values().any(Self::is_masked),
            Self::Null | Self::Boolean | Self::Number | Self::Text => false,
        }
    }
}

/// What the ledger kept of a result: the whole, or the summary of `results: summary`.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kept {
    Whole(Value),
    /// Kinds of content, whether there is structured content, whether it is an error.
    Summary(Vec<String>, bool, bool),
}

impl Kept {
    /// Reads it; `None` where nothing that could be compared was kept.
    pub(super) fn read(result: &Value) -> Option<Self> {
        let members = result.as_object()?;
        let bytes_only = members.len() == 1 && members.contains_key("bytes");
        if bytes_only {
            return None;
        }
        let is_summary = ["content", "structured", "is_error", "bytes"]
            .iter()
            .all(|key| members.contains_key(*key));
        if !is_summary {
            return Some(Self::Whole(result.clone()));
        }
        let kinds = members.get("content")?.as_array()?.iter().map(|item| kind(item.as_str()));
        let flag = |key| members.get(key).and_then(Value::as_bool).unwrap_or(false);
        Some(Self::Summary(kinds.collect(), flag("structured"), flag("is_error")))
    }

    /// Whether an answer of today has the shape of what was kept.
    pub(super) fn fits(&self, now: &Value) -> bool {
        match self {
            Self::Whole(then) => Shape::of(then).fits(&Shape::of(now)),
            Self::Summary(kinds, structured, is_error) => {
                let content = now.get("content").and_then(Value::as_array);
                let kinds_now = content.into_iter().flatten().map(|item| {
                    kind(Some(item.get("type").and_then(Value::as_str).unwrap_or("other")))
                });
                let mut kinds_now: Vec<String> = kinds_now.collect();
                let shown = kinds.len();
                if kinds.last().is_some_and(|last| last.starts_with('+')) {
                    // Only the first items were shown.
                    kinds_now.truncate(shown.saturating_sub(1));
                    return kinds.get(..shown.saturating_sub(1)) == Some(kinds_now.as_slice());
                }
                let error_now = now.get("isError").and_then(Value::as_bool).unwrap_or(false);
                *kinds == kinds_now
                    && *structured == now.get("structuredContent").is_some()
                    && *is_error == error_now
            }
        }
    }
}

/// `text` of `text:123`.
fn kind(item: Option<&str>) -> String {
    let item = item.unwrap_or_default();
    item.split_once(':').map_or(item, |(kind, _)| kind).to_owned()
}

/// Whether the ledger kept arguments as they were sent: nothing taken out, nothing cut.
pub(super) fn is_whole(arguments: &Value) -> bool {
    match arguments {
        Value::String(text) => is_whole_text(text),
        Value::Array(elements) => elements.iter().all(is_whole),
        Value::Object(members) => {
            members.iter().all(|(key, value)| is_whole_text(key) && is_whole(value))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

fn is_whole_text(text: &str) -> bool {
    !text.contains("***") && !text.contains("…[cut, ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_shape_is_names_and_types() {
        let shape = |value| Shape::of(&value);
        assert_eq!(shape(json!({"a": 1, "b": ["x", "y"]})), shape(json!({"b": ["z"], "a": 2.5})));
        for other in [json!({"a": 1}), json!({"a": "1", "b": ["x"]}), json!({"a": 1, "b": []})] {
            assert_ne!(shape(json!({"a": 1, "b": ["x"]})), shape(other));
        }
    }

    #[test]
    fn what_was_taken_out_fits_whatever_it_was() {
        let fits = |then: Value, now: Value| Shape::of(&then).fits(&Shape::of(&now));
        let then = json!({"pin": "***", "users": [{"token": "***", "n": 1}]});
        assert!(fits(then.clone(), json!({"pin": 1234, "users": [{"token": "x", "n": 1}]})));
        assert!(fits(then.clone(), json!({"pin": {}, "users": [{"token": [1], "n": 1}]})));
        assert!(!fits(then.clone(), json!({"pin": 1234, "users": [{"token": "x", "n": "1"}]})));
        assert!(!fits(then.clone(), json!({"pin": 1234, "users": []})));
        assert!(!fits(then, json!({"pin": 1234})));
        assert!(!fits(json!({"pin": 1}), json!({"pin": "***"})));
    }

    #[test]
    fn what_was_kept_is_compared_as_far_as_it_was_kept() {
        let now = json!({"content": [{"type": "text", "text": "a longer text"}], "isError": false});
        let summary =
            json!({"content": ["text:2"], "structured": false, "is_error": false, "bytes": 9});
        assert!(Kept::read(&summary).unwrap().fits(&now));
        for (key, value) in [
            ("content", json!(["image:2"])),
            ("structured", json!(true)),
            ("is_error", json!(true)),
        ] {
            let mut other = summary.clone();
            other[key] = value;
            assert!(!Kept::read(&other).unwrap().fits(&now), "{other}");
        }
        let whole = json!({"content": [{"type": "text", "text": "x"}], "isError": false});
        assert!(Kept::read(&whole).unwrap().fits(&now));
        assert!(!Kept::read(&json!({"content": []})).unwrap().fits(&now));
        assert_eq!(Kept::read(&json!({"bytes": 3})), None);
        assert_eq!(Kept::read(&json!("cut")), None);
    }

    #[test]
    fn arguments_with_something_taken_out_or_cut_are_not_whole() {
        assert!(is_whole(&json!({"a": [1, {"b": "c * d"}], "e": null})));
        for part in
            [json!({"***": 1}), json!({"a": [{"b": "***"}]}), json!("aaa…[cut, 9000 bytes]")]
        {
            assert!(!is_whole(&part), "{part}");
        }
    }
}
