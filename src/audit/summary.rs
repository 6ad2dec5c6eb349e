//! What `results: summary` keeps of a result: kinds and sizes of its content. PURE.
//!
//! Changes when results have another kind of content worth counting. Knows nothing of the ledger.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::model::cut_after;

/// Larger results are counted by bytes only: reading them would cost more than the call.
pub(super) const LARGEST_READ: usize = 256 * 1024;
/// Content items shown; the rest is counted.
const ITEMS: usize = 20;
/// Characters kept of an error's first line.
const ERROR_LINE: usize = 300;

#[derive(Deserialize)]
struct ToolResult<'a> {
    #[serde(borrow, default)]
    content: Vec<&'a RawValue>,
    #[serde(borrow, default, rename = "structuredContent")]
    structured: Option<&'a RawValue>,
    #[serde(default, rename = "isError")]
    is_error: bool,
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    text: Option<String>,
    data: Option<String>,
}

/// One line of JSON such as `{"content":["text:2"],"structured":true,"is_error":false,"bytes":123}`.
///
/// `redact` is applied to the names of kinds and `error_line` to an error's first line, the only texts
/// that are kept.
pub(super) fn summarize(
    result: Option<&[u8]>,
    bytes: u64,
    redact: impl Fn(&str) -> String,
    error_line: impl Fn(&str) -> String,
) -> String {
    let read = result.and_then(|result| serde_json::from_slice::<ToolResult<'_>>(result).ok());
    let Some(read) = read else {
        return format!(r#"{{"bytes":{bytes}}}"#);
    };
    let mut content: Vec<String> =
        read.content.iter().take(ITEMS).map(|item| describe(item.get(), &redact)).collect();
    if read.content.len() > ITEMS {
        content.push(format!("+{}", read.content.len() - ITEMS));
    }
    let mut summary = serde_json::json!({
        "content": content,
        "structured": read.structured.is_some(),
        "is_error": read.is_error,
        "bytes": bytes,
    });
    if read.is_error
        && let Some(line) = read.content.iter().find_map(|item| first_line(item.get()))
        && let Some(object) = summary.as_object_mut()
    {
        object.insert("error".to_owned(), cut_after(&error_line(&line), ERROR_LINE).into());
    }
    summary.to_string()
}

fn describe(raw: &str, redact: impl Fn(&str) -> String) -> String {
    let Ok(item) = serde_json::from_str::<Item<'_>>(raw) else {
        return format!("other:{}", raw.len());
    };
    // The server chooses the kind's name: no more than a name's worth of it is kept.
    let kind: String = redact(&item.kind)
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
        .take(24)
        .collect();
    let size = item.text.or(item.data).map_or(raw.len(), |text| text.len());
    format!("{kind}:{size}")
}

fn first_line(raw: &str) -> Option<String> {
    let text = serde_json::from_str::<Item<'_>>(raw).ok()?.text?;
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(result: &str) -> String {
        let redact = |text: &str| text.replace("hunter2", "***");
        summarize(Some(result.as_bytes()), result.len() as u64, redact, redact)
    }

    #[test]
    fn kinds_and_sizes_are_kept_and_nothing_else() {
        let result = r#"{"content":[{"type":"text","text":"h\u0069 there"},
            {"type":"image","data":"aGk=","mimeType":"image/png"},{"type":"odd kind! hunter2"},7],
            "structuredContent":{"a":1},"_meta":{"x":"y"}}"#;
        let bytes = result.len();
        assert_eq!(
            summary(result),
            format!(
                r#"{{"bytes":{bytes},"content":["text:8","image:4","oddkind:28","other:1"],"is_error":false,"structured":true}}"#
            )
        );
    }

    #[test]
    fn an_error_keeps_its_first_line_redacted_and_cut() {
        let text = format!("\\n  no access with hunter2 {} \\nsecond", "x".repeat(400));
        let result = format!(r#"{{"content":[{{"type":"text","text":"{text}"}}],"isError":true}}"#);
        let summary: serde_json::Value = serde_json::from_str(&summary(&result)).unwrap();
        let line = summary["error"].as_str().unwrap();
        assert!(line.starts_with("no access with *** xxx"), "{line}");
        assert_eq!(line.chars().count(), ERROR_LINE + 1);
    }

    #[test]
    fn what_is_no_tool_result_is_counted_only() {
        assert_eq!(summary("[1,"), r#"{"bytes":3}"#);
        assert_eq!(
            summarize(None, 9_000_000, str::to_owned, str::to_owned),
            r#"{"bytes":9000000}"#
        );
    }

    #[test]
    fn many_items_are_counted() {
        let items = vec![r#"{"type":"text","text":""}"#; 30].join(",");
        assert!(summary(&format!(r#"{{"content":[{items}]}}"#)).contains(r#""+10"]"#));
    }
}
