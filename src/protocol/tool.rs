//! Tool definitions: kept as received, read as far as routing needs, compared in canonical form.

use std::time::Duration;

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::list::{DEFINITION_LIMIT, DEPTH_LIMIT, PAGE_ITEMS, is_deeper, ttl};
use super::object::{BorrowedStr, RawObject};
use super::param_headers::{ParamHeaderError, ParamHeaders};
use crate::model::{NameError, ToolName};

/// Why an element of `tools` is not a tool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToolDefinitionError {
    /// The answer has no list of tools.
    #[error("the answer to tools/list has no `tools` list: {0}")]
    NotAList(String),
    /// Not an object, or with a key twice.
    #[error("a tool definition is not an object: {0}")]
    NotAnObject(String),
    /// No usable name.
    #[error("a tool definition has no usable name: {0}")]
    Name(#[from] NameError),
    /// It asks for parameter headers that make no sense; the specification wants it left out
    /// (2026-07-28, server/tools).
    #[error("the tool `{tool}`: {problem}")]
    ParamHeaders {
        /// The tool.
        tool: String,
        /// What is wrong.
        problem: ParamHeaderError,
    },
    /// It can only be called as a task, which is not offered.
    #[error("the tool `{tool}` can only be called as a task, which is not offered")]
    NeedsTasks {
        /// The tool.
        tool: String,
    },
    /// Larger than the limit.
    #[error("the definition of `{tool}` has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// The tool.
        tool: String,
        /// Its definition's size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Nested deeper than the limit.
    #[error("the definition of `{tool}` is nested deeper than {DEPTH_LIMIT} levels")]
    TooDeep {
        /// The tool.
        tool: String,
    },
}

/// One tool as its server describes it.
#[derive(Debug, Clone)]
pub struct ToolDefinition {
    /// The upstream's name.
    pub name: ToolName,
    /// The definition, byte for byte.
    pub raw: Bytes,
    /// SHA-256 of the canonical form: equal for definitions that differ only in spacing or order.
    pub hash: [u8; 32],
    /// `title`, or `annotations.title`.
    pub title: Option<String>,
    /// `description`.
    pub description: Option<String>,
    /// Bytes of `inputSchema` as it stands.
    pub schema_bytes: usize,
    /// `annotations.readOnlyHint`.
    pub read_only: bool,
    /// `annotations.idempotentHint`.
    pub idempotent: bool,
    /// Arguments that also travel as headers.
    pub param_headers: ParamHeaders,
}

/// One page of `tools/list`.
#[derive(Debug, Default)]
pub struct ToolList {
    /// The definitions that could be read, in the server's order.
    pub tools: Vec<ToolDefinition>,
    /// Those that could not, with the reason.
    pub problems: Vec<ToolDefinitionError>,
    /// Where the next page begins.
    pub next_cursor: Option<String>,
    /// How long the list may be kept (`ttlMs`, modern era).
    pub ttl: Option<Duration>,
}

impl ToolList {
    /// Reads the `result` of a `tools/list`.
    ///
    /// # Errors
    /// When there is no list; single definitions that cannot be read are `problems`.
    pub fn parse(result: &Bytes) -> Result<Self, ToolDefinitionError> {
        #[derive(Deserialize)]
        struct Page<'a> {
            #[serde(borrow)]
            tools: Vec<&'a RawValue>,
            #[serde(borrow, default, rename = "nextCursor")]
            next_cursor: Option<BorrowedStr<'a>>,
            #[serde(borrow, default, rename = "ttlMs")]
            ttl: Option<&'a RawValue>,
        }
        let page: Page<'_> = serde_json::from_slice(result)
            .map_err(|error| ToolDefinitionError::NotAList(error.to_string()))?;
        let mut list = Self {
            next_cursor: page.next_cursor.map(|cursor| cursor.0.into_owned()),
            ttl: ttl(page.ttl),
            ..Self::default()
        };
        if page.tools.len() > PAGE_ITEMS {
            let problem = format!("one page has {} elements", page.tools.len());
            return Err(ToolDefinitionError::NotAList(problem));
        }
        for raw in page.tools {
            match ToolDefinition::parse(&result.slice_ref(raw.get().as_bytes())) {
                Ok(tool) => list.tools.push(tool),
                Err(problem) => list.problems.push(problem),
            }
        }
        Ok(list)
    }
}

impl ToolDefinition {
    /// Reads one definition. `raw` is copied, so that a small definition does not keep a large
    /// page alive.
    ///
    /// # Errors
    /// [`ToolDefinitionError`] when it has no name or is no object.
    pub fn parse(raw: &Bytes) -> Result<Self, ToolDefinitionError> {
        let text = std::str::from_utf8(raw)
            .map_err(|error| ToolDefinitionError::NotAnObject(error.to_string()))?;
        let members = RawObject::parse(text)
            .map_err(|error| ToolDefinitionError::NotAnObject(error.to_string()))?;
        let name = ToolName::parse(members.get_str("name").as_deref().unwrap_or_default())?;
        if raw.len() > DEFINITION_LIMIT {
            return Err(ToolDefinitionError::TooLarge {
                tool: name.as_str().to_owned(),
                size: raw.len(),
                limit: DEFINITION_LIMIT,
            });
        }
        if is_deeper(text, DEPTH_LIMIT) {
            return Err(ToolDefinitionError::TooDeep { tool: name.as_str().to_owned() });
        }
        let annotations = members
            .get("annotations")
            .and_then(|raw| RawObject::parse(raw.get()).ok())
            .unwrap_or_default();
        let hint = |key: &str| annotations.get(key).is_some_and(|raw| raw.get() == "true");
        let owned =
            |text: Option<std::borrow::Cow<'_, str>>| text.map(std::borrow::Cow::into_owned);
        let param_headers = ParamHeaders::of(text).map_err(|problem| {
            ToolDefinitionError::ParamHeaders { tool: name.as_str().to_owned(), problem }
        })?;
        let canonical = canonical_json(text);
        let mut hash = [0_u8; 32];
        hash.copy_from_slice(digest(&SHA256, canonical.as_bytes()).as_ref());
        let definition = Self {
            param_headers,
            title: owned(members.get_str("title").or_else(|| annotations.get_str("title"))),
            description: owned(members.get_str("description")),
            schema_bytes: members.get("inputSchema").map_or(0, |schema| schema.get().len()),
            read_only: hint("readOnlyHint"),
            idempotent: hint("idempotentHint"),
            raw: Bytes::copy_from_slice(raw),
            hash,
            name,
        };
        if definition.needs_tasks() {
            let tool = definition.name.as_str().to_owned();
            return Err(ToolDefinitionError::NeedsTasks { tool });
        }
        Ok(definition)
    }
}

/// Below this the text is compared as it is: no schema of use nests deeper.
const CANONICAL_DEPTH: usize = 64;

/// JSON with keys sorted, no spacing, strings in one spelling, and numbers as written (two
/// spellings of a number are two texts: rounding would hide a change).
#[must_use]
pub fn canonical_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    push_canonical(&mut out, text.trim(), CANONICAL_DEPTH);
    out
}

fn push_canonical(out: &mut String, text: &str, depth: usize) {
    let pushed = depth > 0
        && match text.as_bytes().first() {
            Some(b'{') => push_canonical_object(out, text, depth).is_some(),
            Some(b'[') => push_canonical_array(out, text, depth).is_some(),
            Some(b'"') => push_canonical_string(out, text).is_some(),
            _ => false,
        };
    if !pushed {
        out.push_str(text);
    }
}

fn push_canonical_object(out: &mut String, text: &str, depth: usize) -> Option<()> {
    let object = RawObject::parse(text).ok()?;
    let mut members: Vec<_> = object.iter().collect();
    members.sort_by_key(|(key, _)| *key);
    out.push('{');
    for (at, (key, value)) in members.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        out.push_str(&serde_json::Value::from(key).to_string());
        out.push(':');
        push_canonical(out, value.get(), depth - 1);
    }
    out.push('}');
    Some(())
}

fn push_canonical_array(out: &mut String, text: &str, depth: usize) -> Option<()> {
    let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    out.push('[');
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        push_canonical(out, item.get(), depth - 1);
    }
    out.push(']');
    Some(())
}

fn push_canonical_string(out: &mut String, text: &str) -> Option<()> {
    let string: String = serde_json::from_str(text).ok()?;
    out.push_str(&serde_json::Value::from(string).to_string());
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tool(text: &str) -> ToolDefinition {
        ToolDefinition::parse(&Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    #[test]
    fn spacing_order_and_spelling_do_not_change_the_hash_but_content_does() {
        let a = tool(r#"{"name":"t","inputSchema":{"a":1,"b":["x","é"]}}"#);
        let b = tool(r#"{"inputSchema": {"b": ["x", "\u00e9"], "a": 1}, "name": "t"}"#);
        let c = tool(r#"{"name":"t","inputSchema":{"a":1.0,"b":["x","é"]}}"#);
        let d = tool(r#"{"name":"t","inputSchema":{"a":1,"b":["é","x"]}}"#);
        assert_eq!(a.hash, b.hash);
        assert_ne!(a.hash, c.hash);
        assert_ne!(a.hash, d.hash);
    }

    #[test]
    fn hints_are_read() {
        let t = tool(
            r#"{"name":"t","annotations":{"readOnlyHint":true,"idempotentHint":"true","title":"T"},"description":"d"}"#,
        );
        assert!(t.read_only && !t.idempotent);
        assert_eq!((t.title.as_deref(), t.description.as_deref()), (Some("T"), Some("d")));
    }

    #[test]
    fn one_bad_definition_does_not_hide_the_others() {
        let list = ToolList::parse(&Bytes::from_static(
            br#"{"tools":[{"name":"a"},{"name":""},7,{"name":"b","name":"c"},{"name":"d"}],"nextCursor":""}"#,
        ))
        .unwrap();
        let names: Vec<_> = list.tools.iter().map(|t| t.name.as_str().to_owned()).collect();
        assert_eq!(names, ["a", "d"]);
        assert_eq!(list.problems.len(), 3);
        assert_eq!(list.next_cursor.as_deref(), Some(""));
        assert!(ToolList::parse(&Bytes::from_static(b"{}")).is_err());
        assert!(ToolList::parse(&Bytes::from_static(b"{\"tools\":{}}")).is_err());
    }

    #[test]
    fn hostile_nesting_is_survived() {
        let deep = format!(r#"{{"name":"t","x":{}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
        let t = ToolDefinition::parse(&Bytes::from(deep));
        assert!(t.is_ok() || t.is_err());
    }

    proptest! {
        #[test]
        fn canonical_json_is_stable(text in "[\\[\\]{}\":,a0. ]{0,40}") {
            let once = canonical_json(&text);
            prop_assert_eq!(canonical_json(&once), once);
        }
    }
}
