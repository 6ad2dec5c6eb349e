//! [`Tools`]: which tools want arguments repeated in headers, as the router's lists say.
//!
//! Changes when tool definitions ask something else of a client. Only modern calls need it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use crate::protocol::{ParamHeaders, RawObject};

/// The mark in a definition's input schema (specification 2026-07-28, server/tools).
const MARK: &str = "\"x-mcp-header\"";
/// Names remembered. Full: everything is forgotten and learned anew, which costs one list.
const MOST_TOOLS: usize = 20_000;

/// What is known of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// It is not in any list that was seen.
    Unseen,
    /// Its arguments stay in the body.
    Plain,
    /// Its definition, as JSON, marks arguments for headers.
    Marked(Arc<str>),
}

/// The tools seen so far.
#[derive(Debug)]
pub(super) struct Tools {
    /// The definitions of tools that have marks; `None` for those that have none.
    seen: Mutex<HashMap<String, Option<Arc<str>>>>,
    /// One list at a time is asked for; the others wait for it.
    pub(super) asking: Semaphore,
}

/// The headers that repeat arguments of a call: name and value of each.
///
/// `definition` is the tool's, as JSON; `arguments` are the call's, as JSON.
pub(super) fn param_headers(definition: &str, arguments: Option<&str>) -> Vec<(String, String)> {
    // The router leaves tools out whose marks make no sense.
    let headers = ParamHeaders::of(definition).unwrap_or_default().render(arguments);
    let text = |value: &http::HeaderValue| value.to_str().map(str::to_owned).ok();
    headers
        .into_iter()
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), text(&value)?)))
        .collect()
}

impl Tools {
    pub(super) fn new() -> Self {
        Self { seen: Mutex::new(HashMap::new()), asking: Semaphore::new(1) }
    }

    /// What is known of the tool with this name.
    pub(super) fn known(&self, name: &str) -> Known {
        match self.seen.lock().get(name) {
            None => Known::Unseen,
            Some(None) => Known::Plain,
            Some(Some(definition)) => Known::Marked(Arc::clone(definition)),
        }
    }

    /// Forgets one tool, because its definition may have changed.
    pub(super) fn forget(&self, name: &str) {
        self.seen.lock().remove(name);
    }

    /// A whole list lacks this tool: there is nothing to learn of it.
    pub(super) fn is_not_listed(&self, name: &str) {
        self.seen.lock().entry(name.to_owned()).or_insert(None);
    }

    /// Learns from the `result` of a `tools/list`; gives the cursor of the next page.
    pub(super) fn learn(&self, result: &RawValue) -> Option<String> {
        #[derive(Deserialize)]
        struct Page<'a> {
            #[serde(borrow, default)]
            tools: Vec<&'a RawValue>,
            #[serde(default, rename = "nextCursor")]
            next_cursor: Option<String>,
        }
        let page: Page<'_> = serde_json::from_str(result.get()).ok()?;
        let mut seen = self.seen.lock();
        for tool in page.tools {
            let Ok(members) = RawObject::parse(tool.get()) else { continue };
            let Some(name) = members.get_str("name") else { continue };
            let marked = tool.get().contains(MARK).then(|| Arc::from(tool.get()));
            if seen.len() >= MOST_TOOLS {
                seen.clear();
            }
            seen.insert(name.into_owned(), marked);
        }
        page.next_cursor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_learned_from_lists() {
        let tools = Tools::new();
        assert_eq!(tools.known("a"), Known::Unseen);
        let page = r#"{"tools":[{"name":"a","inputSchema":{"type":"object"}},7,
            {"name":"b","inputSchema":{"properties":{"r":{"type":"string","x-mcp-header":"R"}}}}],
            "nextCursor":""}"#;
        assert_eq!(tools.learn(serde_json::from_str(page).unwrap()), Some(String::new()));
        assert_eq!(tools.known("a"), Known::Plain);
        assert!(matches!(tools.known("b"), Known::Marked(b) if b.starts_with(r#"{"name":"b""#)));
        tools.is_not_listed("b");
        assert!(matches!(tools.known("b"), Known::Marked(_)));
        tools.forget("b");
        tools.is_not_listed("b");
        assert_eq!(tools.known("b"), Known::Plain);
    }
}
