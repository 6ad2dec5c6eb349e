//! [`Tool`]: the bundled upstream's tools, their definitions and what they do.
//!
//! Changes when a tool is added. Knows nothing of transports and eras; waits for nobody (a delay
//! is part of the answer).

use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::message::{INTERNAL_ERROR, quote};
use super::stats::Stats;

/// `blob` makes nothing larger, so that a typing error cannot fill the memory.
const BLOB_LIMIT: usize = 256 * 1024 * 1024;
/// `sleep` sleeps no longer.
const SLEEP_LIMIT: Duration = Duration::from_secs(600);

/// A tool of the bundled upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// `{text}`: the text back. Read-only and idempotent.
    Echo,
    /// The bytes of `arguments` back, as text and as structured content.
    EchoRaw,
    /// `{a, b}`: their sum, with structured content.
    Add,
    /// The wall clock.
    Now,
    /// `{ms}`: answers so much later.
    Sleep,
    /// `{message}`: always `isError: true`.
    Fail,
    /// `{bytes}`: a text of that size.
    Blob,
    /// `{code, message}`: a JSON-RPC error.
    RpcError,
    /// Counts its executions, in this process or in the legacy session
    /// ([`Options::count_in_session`](super::Options::count_in_session)): neither read-only nor
    /// idempotent.
    Counter,
    /// `{region}`: the text back; modern clients must mirror it in the header `Mcp-Param-Region`.
    Region,
    /// Definition and result full of keys and numbers that only raw bytes survive.
    Vendor,
}

/// What became of a call.
#[derive(Debug)]
pub(super) enum ToolAnswer {
    /// The `result`, an object in JSON, to be sent after the delay.
    Result(String, Duration),
    /// A JSON-RPC error.
    Error(i64, String),
}

impl Tool {
    /// How many there are.
    pub const COUNT: usize = 11;

    /// All, in the order of `tools/list`.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Echo,
        Self::EchoRaw,
        Self::Add,
        Self::Now,
        Self::Sleep,
        Self::Fail,
        Self::Blob,
        Self::RpcError,
        Self::Counter,
        Self::Region,
        Self::Vendor,
    ];

    /// The name as listed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::EchoRaw => "echo_raw",
            Self::Add => "add",
            Self::Now => "now",
            Self::Sleep => "sleep",
            Self::Fail => "fail",
            Self::Blob => "blob",
            Self::RpcError => "rpc_error",
            Self::Counter => "counter",
            Self::Region => "region",
            Self::Vendor => "vendor",
        }
    }

    /// The definition exactly as `tools/list` sends it.
    #[must_use]
    pub const fn definition(self) -> &'static str {
        match self {
            Self::Echo => {
                r#"{"name":"echo","title":"Echo","description":"Returns the text it is given.","inputSchema":{"type":"object","properties":{"text":{"type":"string","description":"What to return."}},"required":["text"]},"annotations":{"readOnlyHint":true,"idempotentHint":true,"openWorldHint":false}}"#
            }
            Self::EchoRaw => {
                r#"{"name":"echo_raw","description":"Returns the bytes of its arguments, as text and as structured content.","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true,"idempotentHint":true,"openWorldHint":false}}"#
            }
            Self::Add => {
                r#"{"name":"add","description":"Adds two numbers.","inputSchema":{"type":"object","properties":{"a":{"type":"number"},"b":{"type":"number"}},"required":["a","b"]},"outputSchema":{"type":"object","properties":{"sum":{"type":"number"}},"required":["sum"]},"annotations":{"readOnlyHint":true,"idempotentHint":true,"openWorldHint":false}}"#
            }
            Self::Now => {
                r#"{"name":"now","description":"The current time in UTC.","inputSchema":{"type":"object","properties":{}},"annotations":{"readOnlyHint":true,"openWorldHint":false}}"#
            }
            Self::Sleep => {
                r#"{"name":"sleep","description":"Answers after some milliseconds.","inputSchema":{"type":"object","properties":{"ms":{"type":"integer","minimum":0}},"required":["ms"]},"annotations":{"readOnlyHint":true,"idempotentHint":true,"openWorldHint":false}}"#
            }
            Self::Fail => {
                r#"{"name":"fail","description":"Always reports an error.","inputSchema":{"type":"object","properties":{"message":{"type":"string"}}},"annotations":{"readOnlyHint":true,"idempotentHint":true,"openWorldHint":false}}"#
            }
            Self::Blob => {
                r#"{"name":"blob","description":"Returns a text of the given size.","inputSchema":{"type":"object","properties":{"bytes":{"type":"integer","minimum":0}},"required":["bytes"]},"annotations":{"readOnlyHint":true,"idempotentHint":true,"openWorldHint":false}}"#
            }
            Self::RpcError => {
                r#"{"name":"rpc_error","description":"Answers with a JSON-RPC error.","inputSchema":{"type":"object","properties":{"code":{"type":"integer"},"message":{"type":"string"}}}}"#
            }
            Self::Counter => {
                r#"{"name":"counter","description":"Counts how often it ran.","inputSchema":{"type":"object","properties":{}},"annotations":{"readOnlyHint":false,"destructiveHint":false,"idempotentHint":false,"openWorldHint":false}}"#
            }
            Self::Region => {
                r#"{"name":"region","description":"Returns the region it is given, which travels in a header too.","inputSchema":{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"}},"required":["region"]},"annotations":{"readOnlyHint":true,"idempotentHint":true,"openWorldHint":false}}"#
            }
            Self::Vendor => {
                r#"{"name":"vendor","title":"V\u00e9ndor","description":"Raw é中😀, escaped \u00e9\u4e2d\ud83d\ude00, a slash \/.","x-vendor":{"weight":1.0,"limit":1e400,"serial":1234567890123456789012345678901234567890},"inputSchema":{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","properties":{"n":{"type":"number","multipleOf":1.0,"maximum":1e400,"x-serial":1234567890123456789012345678901234567890}},"$defs":{"unused":{"anyOf":[{"const":1.0},{"const":-0.0}]}},"additionalProperties":true},"annotations":{"readOnlyHint":true,"x-hint":"vendor"},"_meta":{"vendor.example/key":{"b":1,"a":2.50}}}"#
            }
        }
    }

    /// The result of [`Self::Vendor`], for byte-for-byte comparison.
    pub const VENDOR_RESULT: &'static str = r#"{"content":[{"type":"text","text":"raw é中😀 escaped \u00e9\u4e2d\ud83d\ude00 slash \/","x-vendor":{"weight":1.0}},{"type":"x-vendor/thing","payload":1e400}],"x-vendor-result":{"serial":1234567890123456789012345678901234567890,"one":1.0,"minus":-0.0,"limit":1E+400,"b":1,"a":2.50},"isError":false}"#;

    pub(super) const fn index(self) -> usize {
        self as usize
    }

    pub(super) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.name() == name)
    }

    /// Runs the tool, which is counted.
    pub(super) fn run(self, arguments: Option<&RawValue>, stats: &Stats) -> ToolAnswer {
        let count = stats.count_call(self);
        let arguments = arguments.map_or("{}", RawValue::get);
        match self {
            Self::Echo => echo(arguments),
            Self::EchoRaw => now(format!(
                r#"{{"content":[{{"type":"text","text":{}}}],"structuredContent":{arguments}}}"#,
                quote(arguments)
            )),
            Self::Add => add(arguments),
            Self::Now => {
                now(text_result(&format!(r#""{}""#, crate::clock::timestamp()), Success::Yes))
            }
            Self::Sleep => sleep(arguments),
            Self::Fail => fail(arguments),
            Self::Blob => blob(arguments),
            Self::RpcError => rpc_error(arguments),
            Self::Counter => count_result(count),
            Self::Region => match region(arguments) {
                Some(region) => now(text_result(&quote(&region), Success::Yes)),
                None => wrong_arguments("region must be a string"),
            },
            Self::Vendor => now(Self::VENDOR_RESULT.to_owned()),
        }
    }
}

#[derive(Clone, Copy)]
enum Success {
    Yes,
    No,
}

#[derive(Deserialize)]
struct EchoArguments<'a> {
    #[serde(borrow)]
    text: &'a RawValue,
}

#[derive(Deserialize)]
struct AddArguments {
    a: f64,
    b: f64,
}

#[derive(Deserialize)]
struct SleepArguments {
    ms: u64,
}

#[derive(Deserialize)]
struct BlobArguments {
    bytes: usize,
}

#[derive(Deserialize)]
struct RegionArguments<'a> {
    #[serde(borrow)]
    region: Cow<'a, str>,
}

#[derive(Deserialize)]
struct ErrorArguments<'a> {
    code: Option<i64>,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
}

fn now(result: String) -> ToolAnswer {
    ToolAnswer::Result(result, Duration::ZERO)
}

/// The result of [`Tool::Counter`].
pub(super) fn count_result(count: u64) -> ToolAnswer {
    now(text_result(&format!(r#""{count}""#), Success::Yes))
}

/// A result with one text; `literal` is a JSON string with its quotes.
fn text_result(literal: &str, success: Success) -> String {
    let tail = match success {
        Success::Yes => "}]}",
        Success::No => r#"}],"isError":true}"#,
    };
    let mut text = String::with_capacity(literal.len().saturating_add(64));
    text.push_str(r#"{"content":[{"type":"text","text":"#);
    text.push_str(literal);
    text.push_str(tail);
    text
}

/// Wrong arguments are the tool's error, so that a model can read what was wrong.
fn wrong_arguments(problem: &str) -> ToolAnswer {
    now(text_result(&quote(&format!("wrong arguments: {problem}")), Success::No))
}

/// The literal is passed on as it came: nothing is unescaped and escaped again.
fn echo(arguments: &str) -> ToolAnswer {
    match serde_json::from_str::<EchoArguments<'_>>(arguments) {
        Ok(EchoArguments { text }) if text.get().starts_with('"') => {
            now(text_result(text.get(), Success::Yes))
        }
        Ok(_) => wrong_arguments("text must be a string"),
        Err(error) => wrong_arguments(&error.to_string()),
    }
}

fn add(arguments: &str) -> ToolAnswer {
    match serde_json::from_str::<AddArguments>(arguments) {
        Ok(AddArguments { a, b }) => {
            let sum = a + b;
            now(format!(
                r#"{{"content":[{{"type":"text","text":"{sum}"}}],"structuredContent":{{"sum":{sum}}}}}"#
            ))
        }
        Err(error) => wrong_arguments(&error.to_string()),
    }
}

fn sleep(arguments: &str) -> ToolAnswer {
    match serde_json::from_str::<SleepArguments>(arguments) {
        Ok(SleepArguments { ms }) => {
            let delay = Duration::from_millis(ms).min(SLEEP_LIMIT);
            ToolAnswer::Result(text_result(&format!(r#""slept {ms} ms""#), Success::Yes), delay)
        }
        Err(error) => wrong_arguments(&error.to_string()),
    }
}

fn fail(arguments: &str) -> ToolAnswer {
    match serde_json::from_str::<ErrorArguments<'_>>(arguments) {
        Ok(ErrorArguments { message, .. }) => {
            now(text_result(&quote(message.as_deref().unwrap_or("failed, as asked")), Success::No))
        }
        Err(error) => wrong_arguments(&error.to_string()),
    }
}

fn blob(arguments: &str) -> ToolAnswer {
    match serde_json::from_str::<BlobArguments>(arguments) {
        Ok(BlobArguments { bytes }) if bytes <= BLOB_LIMIT => {
            now(text_result(&format!(r#""{}""#, "x".repeat(bytes)), Success::Yes))
        }
        Ok(_) => wrong_arguments("bytes must be at most 256 MiB"),
        Err(error) => wrong_arguments(&error.to_string()),
    }
}

fn rpc_error(arguments: &str) -> ToolAnswer {
    match serde_json::from_str::<ErrorArguments<'_>>(arguments) {
        Ok(ErrorArguments { code, message }) => ToolAnswer::Error(
            code.unwrap_or(INTERNAL_ERROR),
            message.as_deref().unwrap_or("an error, as asked").to_owned(),
        ),
        Err(error) => wrong_arguments(&error.to_string()),
    }
}

/// The argument of [`Tool::Region`].
pub(super) fn region(arguments: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str::<RegionArguments<'_>>(arguments).ok().map(|found| found.region)
}

/// A tool's error in place of its result.
pub(super) fn failed_on_purpose() -> String {
    text_result(r#""failed on purpose""#, Success::No)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(tool: Tool, arguments: &str) -> String {
        let raw: &RawValue = serde_json::from_str(arguments).unwrap();
        match tool.run(Some(raw), &Stats::default()) {
            ToolAnswer::Result(result, _) => result,
            ToolAnswer::Error(code, message) => format!("{code} {message}"),
        }
    }

    #[test]
    fn definitions_are_json_under_their_own_name() {
        for tool in Tool::ALL {
            let value: serde_json::Value = match tool {
                // 1e400 is JSON, but no f64: the point of this tool.
                Tool::Vendor => serde_json::from_str(&tool.definition().replace("1e400", "1")),
                _ => serde_json::from_str(tool.definition()),
            }
            .unwrap();
            assert_eq!(value["name"], tool.name());
            assert_eq!(value["inputSchema"]["type"], "object");
            assert_eq!(Tool::by_name(tool.name()), Some(tool));
        }
        serde_json::from_str::<&RawValue>(Tool::VENDOR_RESULT).unwrap();
    }

    #[test]
    fn echo_raw_returns_the_bytes() {
        let arguments = r#"{"n": 1.0, "n": 1e400, "s": "\u00e9"}"#;
        let result = run(Tool::EchoRaw, arguments);
        assert!(result.ends_with(&format!(r#""structuredContent":{arguments}}}"#)), "{result}");
        assert!(result.contains(r#"{\"n\": 1.0, \"n\": 1e400, \"s\": \"\\u00e9\"}"#), "{result}");
    }

    #[test]
    fn tools_do_what_they_say() {
        assert_eq!(
            run(Tool::Echo, r#"{"text":"\u00e9"}"#),
            r#"{"content":[{"type":"text","text":"\u00e9"}]}"#
        );
        assert!(run(Tool::Echo, r#"{"text":1}"#).contains("isError"));
        assert!(run(Tool::Add, r#"{"a":2,"b":40}"#).contains(r#""sum":42}"#));
        assert!(run(Tool::Fail, "{}").contains("isError"));
        assert!(run(Tool::Blob, r#"{"bytes":5}"#).contains(r#""xxxxx""#));
        assert_eq!(run(Tool::RpcError, r#"{"code":-1,"message":"m"}"#), "-1 m");
    }

    #[test]
    fn the_counter_counts() {
        let stats = Stats::default();
        for _ in 0..3 {
            Tool::Counter.run(None, &stats);
        }
        assert_eq!((stats.calls_of(Tool::Counter), stats.calls()), (3, 3));
    }
}
