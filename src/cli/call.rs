//! `switchyard call`: one tool call, its answer on standard output.
//!
//! Changes when arguments are written or answers are shown differently. Arguments go out as they
//! were typed and `--json` prints what came: nothing here reads a number.

use std::io;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{Ask, CALL_PATIENCE};
use super::table::Style;
use super::{CliError, Context, Status, notice, text};
use crate::model::parse_duration;

/// Arguments of `call`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Calls a tool and prints its answer. Arguments are one JSON object, or key=value pairs: a value that is valid JSON is sent as it is written, anything else as a string; key:=value insists on JSON; - reads the object from standard input.\n\nText is printed plainly; other content is described. --json prints the router's whole answer, byte for byte as the server gave it. The exit code is 1 when the call failed, with the reason on standard error.",
    after_help = "Examples:\n  switchyard call time__get_current_time timezone=UTC\n  switchyard call github__create_issue '{\"title\": \"Broken\", \"labels\": [\"bug\"]}'\n  switchyard call search query=\"rust 2024\" limit=5 exact:=true\n  switchyard call convert --server media --timeout 2m - < arguments.json\n  switchyard call echo text=hi --json | jq .data"
)]
pub(super) struct Args {
    /// The tool, as `switchyard tools` lists it, or by its own name if only one server has it
    tool: String,
    /// One JSON object, key=value pairs, or - for standard input
    #[arg(value_name = "JSON | KEY=VALUE")]
    arguments: Vec<String>,
    /// The server that has the tool
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Time limit of the whole call, as in 500ms, 30s, 2m
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
}

/// Why the arguments of a call are none.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    /// Neither pair nor object.
    #[error(
        "`{0}` is neither key=value nor a JSON object; write key=value, or one object such as '{{\"key\": \"value\"}}'"
    )]
    Shape(String),
    /// `key:=` with something that is not JSON.
    #[error("the value of `{key}` is not JSON: {reason}; with {key}=… it is sent as a string")]
    NotJson {
        /// The key.
        key: String,
        /// What the parser said.
        reason: String,
    },
    /// An object that is not JSON.
    #[error("the arguments are not JSON: {0}")]
    Broken(String),
    /// JSON, and no object.
    #[error("the arguments of a tool are a JSON object, not {0}")]
    NotObject(&'static str),
    /// A pair without key.
    #[error("`{0}` has no key before the `=`")]
    NoKey(String),
    /// A key twice.
    #[error("`{0}` is given twice; for a list write {0}:='[1, 2]'")]
    Twice(String),
    /// Standard input failed.
    #[error("could not read the arguments from standard input: {0}")]
    Stdin(#[source] io::Error),
}

/// The arguments as one JSON object, values as they were written. `None` when there are none.
fn arguments(
    words: &[String],
    stdin: impl FnOnce() -> io::Result<String>,
) -> Result<Option<String>, ArgumentError> {
    match words {
        [] => Ok(None),
        [dash] if dash == "-" => object(&stdin().map_err(ArgumentError::Stdin)?).map(Some),
        [word] if is_json_like(word) => object(word).map(Some),
        words => pairs(words).map(Some),
    }
}

/// Begins like JSON and not like a key.
fn is_json_like(word: &str) -> bool {
    let word = word.trim_start();
    word.starts_with(['{', '[', '"']) || (!word.contains('=') && raw(word).is_ok())
}

fn raw(text: &str) -> Result<&RawValue, serde_json::Error> {
    serde_json::from_str(text)
}

fn object(text: &str) -> Result<String, ArgumentError> {
    let value = raw(text).map_err(|error| ArgumentError::Broken(error.to_string()))?.get();
    match value.chars().next() {
        Some('{') => Ok(value.to_owned()),
        Some('[') => Err(ArgumentError::NotObject("a list")),
        Some('"') => Err(ArgumentError::NotObject("a string")),
        Some('t' | 'f') => Err(ArgumentError::NotObject("a truth value")),
        Some('n') => Err(ArgumentError::NotObject("null")),
        _ => Err(ArgumentError::NotObject("a number")),
    }
}

fn pairs(words: &[String]) -> Result<String, ArgumentError> {
    let mut keys: Vec<&str> = Vec::with_capacity(words.len());
    let mut object = String::from("{");
    for word in words {
        let (key, value) =
            word.split_once('=').ok_or_else(|| ArgumentError::Shape(word.clone()))?;
        let (key, value) = match key.strip_suffix(':') {
            Some(key) => {
                let json = raw(value).map_err(|error| ArgumentError::NotJson {
                    key: key.to_owned(),
                    reason: error.to_string(),
                })?;
                (key, json.get().to_owned())
            }
            None => {
                (key, raw(value).map_or_else(|_text| quote(value), |json| json.get().to_owned()))
            }
        };
        if key.is_empty() {
            return Err(ArgumentError::NoKey(word.clone()));
        }
        if keys.contains(&key) {
            return Err(ArgumentError::Twice(key.to_owned()));
        }
        if !keys.is_empty() {
            object.push(',');
        }
        object.push_str(&quote(key));
        object.push(':');
        object.push_str(&value);
        keys.push(key);
    }
    object.push('}');
    Ok(object)
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The body of `POST /mcp/call`; `arguments` is JSON already and goes in as it is.
pub(super) fn body(
    tool: &str,
    server: Option<&str>,
    arguments: Option<&str>,
    timeout_seconds: Option<f64>,
) -> String {
    let mut body = format!("{{\"tool_name\":{}", quote(tool));
    if let Some(server) = server {
        body.push_str(",\"server_name\":");
        body.push_str(&quote(server));
    }
    if let Some(seconds) = timeout_seconds {
        body.push_str(",\"timeout\":");
        body.push_str(&serde_json::Value::from(seconds).to_string());
    }
    if let Some(arguments) = arguments {
        body.push_str(",\"arguments\":");
        body.push_str(arguments);
    }
    body.push('}');
    body
}

/// The router's answer to a call, as far as it is shown.
#[derive(Deserialize)]
struct CallAnswer {
    success: bool,
    #[serde(default)]
    data: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    error_code: Option<String>,
    #[serde(default)]
    server_name: Option<String>,
    #[serde(default)]
    request_id: Option<String>,
    #[serde(default)]
    attempts: Option<u32>,
    #[serde(default)]
    nearest: Vec<String>,
    #[serde(default)]
    candidates: Vec<String>,
}

#[derive(Deserialize)]
struct ToolResult {
    #[serde(default)]
    content: Vec<Box<RawValue>>,
    #[serde(default, rename = "structuredContent")]
    structured: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    data: Option<String>,
    #[serde(default, rename = "mimeType")]
    mime_type: Option<String>,
    #[serde(default)]
    uri: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    resource: Option<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    #[serde(default)]
    uri: String,
    #[serde(default)]
    text: Option<String>,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    let timeout = args.timeout.as_deref().map(parse_duration).transpose()?;
    let arguments = arguments(&args.arguments, || io::read_to_string(io::stdin()))?;
    let body = body(
        &args.tool,
        args.server.as_deref(),
        arguments.as_deref(),
        timeout.map(|limit| limit.as_secs_f64()),
    );
    let client = context.client()?;
    let ask = Ask::post(&["mcp", "call"]).json(body).patient(CALL_PATIENCE);
    let answer = client.ask(ask).await?;
    let call = match answer.parse::<CallAnswer>() {
        Ok(call) => call,
        Err(unreadable) => {
            // Not the answer to a call: a refusal before it became one.
            if context.out.is_json() {
                context.out.json(&String::from_utf8_lossy(&answer.body))?;
            }
            answer.accepted()?;
            return Err(unreadable.into());
        }
    };
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
    } else if call.success {
        context.out.write(&render(&call, context))?;
    }
    if call.success {
        return Ok(Status::Done);
    }
    notice(failure(&call));
    Ok(Status::Failed)
}

/// The answer as people read it.
fn render(call: &CallAnswer, context: &Context) -> String {
    let data = call.data.as_deref().map_or("null", RawValue::get);
    let Ok(result) = serde_json::from_str::<ToolResult>(data) else {
        return line(data.to_owned());
    };
    let parts: Vec<String> =
        result.content.iter().map(|content| describe(content.get(), context)).collect();
    match (parts.is_empty(), result.structured) {
        (false, _) => parts.concat(),
        (true, Some(structured)) => line(text::escape_json(structured.get()).into_owned()),
        (true, None) => String::new(),
    }
}

fn describe(content: &str, context: &Context) -> String {
    let Ok(content) = serde_json::from_str::<Content>(content) else {
        return line(text::escape_json(content).into_owned());
    };
    // What goes to another program is handed over as it came; only a terminal acts upon escapes.
    let shown = |body: &str| {
        let safe = if context.out.terminal { text::escape_block(body) } else { body.into() };
        line(safe.into_owned())
    };
    let kind = content.mime_type.as_deref().unwrap_or("unknown type");
    let bytes = content.data.as_ref().map_or(0, |data| data.len() / 4 * 3);
    let note = match (content.kind.as_str(), &content.text, &content.resource) {
        ("text", Some(body), _) => return shown(body),
        ("image" | "audio", _, _) => format!("[{}: {kind}, about {bytes} bytes]", content.kind),
        ("resource", _, Some(Resource { uri, text: Some(body) })) => {
            return line(context.out.paint(format!("[resource: {uri}]"), Style::Dim))
                + &shown(body);
        }
        ("resource", _, Some(resource)) => format!("[resource: {}]", resource.uri),
        ("resource_link", _, _) => format!(
            "[link: {} {}]",
            content.name.unwrap_or_default(),
            content.uri.unwrap_or_default()
        ),
        (other, _, _) => format!("[{other}]"),
    };
    line(context.out.paint(note, Style::Dim))
}

fn line(mut text: String) -> String {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Why a call failed, and what to look at.
fn failure(call: &CallAnswer) -> String {
    let mut told = format!("error: {}", call.error.as_deref().unwrap_or("the call failed"));
    let names: Vec<&str> = call
        .nearest
        .iter()
        .chain(&call.candidates)
        .map(String::as_str)
        .filter(|name| !told.contains(name))
        .collect();
    if !names.is_empty() {
        told = format!("{told}\ndid you mean {}?", names.join(", "));
    }
    let mut facts: Vec<String> = Vec::new();
    facts.extend(call.error_code.clone());
    facts.extend(call.server_name.as_ref().map(|server| format!("server {server}")));
    let attempts = call.attempts.filter(|attempts| *attempts > 1);
    facts.extend(attempts.map(|attempts| format!("{attempts} attempts")));
    if !facts.is_empty() {
        told = format!("{told}\n({})", facts.join(", "));
    }
    if let Some(id) = &call.request_id {
        told = format!("{told}\nsee `switchyard audit show {id}`");
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(words: &[&str]) -> Result<Option<String>, ArgumentError> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        arguments(&words, || Ok("{\"from\": \"stdin\", \"n\": 1e400}\n".to_owned()))
    }

    #[test]
    fn arguments_are_sent_as_they_are_written() {
        for (words, expected) in [
            (&[][..], None),
            (&["timezone=UTC"], Some(r#"{"timezone":"UTC"}"#)),
            (
                &["n=1.0", "big=1234567890123456789012345678901234567890", "h=1e400"],
                Some(r#"{"n":1.0,"big":1234567890123456789012345678901234567890,"h":1e400}"#),
            ),
            (
                &["a=true", "b=null", "c=[1, 2]", "d=\"quoted\""],
                Some(r#"{"a":true,"b":null,"c":[1, 2],"d":"quoted"}"#),
            ),
            (
                &["text=a=b", "path=", "zip=01234", "say=he said \"hi\""],
                Some(r#"{"text":"a=b","path":"","zip":"01234","say":"he said \"hi\""}"#),
            ),
            (&["list:=[1]", "ключ=значение"], Some(r#"{"list":[1],"ключ":"значение"}"#)),
            (&["-"], Some("{\"from\": \"stdin\", \"n\": 1e400}")),
            (&[r#" {"a":1,"a":2, "u":"\u00e9é"} "#], Some(r#"{"a":1,"a":2, "u":"\u00e9é"}"#)),
        ] {
            assert_eq!(read(words).unwrap().as_deref(), expected, "{words:?}");
        }
    }

    #[test]
    fn mistakes_in_arguments_say_what_to_write() {
        for (words, expected) in [
            (&["text"][..], "`text` is neither key=value nor a JSON object"),
            (&["a=1", "loose"], "`loose` is neither key=value"),
            (&["a:=nope"], "the value of `a` is not JSON"),
            (&["{\"a\": }"], "the arguments are not JSON"),
            (&["[1]"], "not a list"),
            (&["5"], "not a number"),
            (&["a=1", "a=2"], "`a` is given twice"),
            (&["=x"], "has no key"),
        ] {
            let error = read(words).unwrap_err().to_string();
            assert!(error.contains(expected), "{words:?}: {error}");
        }
    }

    #[test]
    fn the_body_keeps_the_arguments_bytes() {
        assert_eq!(
            body("say \"x\"", Some("demo"), Some("{\"a\":1e400, \"a\":2}"), Some(1.5)),
            r#"{"tool_name":"say \"x\"","server_name":"demo","timeout":1.5,"arguments":{"a":1e400, "a":2}}"#
        );
        assert_eq!(body("echo", None, None, None), r#"{"tool_name":"echo"}"#);
    }

    #[test]
    fn a_failed_call_names_what_could_help() {
        let call: CallAnswer = serde_json::from_str(
            r#"{"success":false,"data":null,"error":"no tool `ehco`","error_code":"MCPToolNotFoundError","nearest":["demo__echo"],"request_id":"0193"}"#,
        )
        .unwrap();
        assert_eq!(
            failure(&call),
            "error: no tool `ehco`\ndid you mean demo__echo?\n(MCPToolNotFoundError)\nsee `switchyard audit show 0193`"
        );
    }

    proptest! {
        #[test]
        fn any_pair_makes_an_object_with_that_key(key in "[^=:\\pC][^=:]{0,8}", value in ".{0,12}") {
            let object = pairs(&[format!("{key}={value}")]).unwrap();
            let parsed: std::collections::BTreeMap<String, Box<RawValue>> =
                serde_json::from_str(&object).unwrap();
            prop_assert_eq!(parsed.keys().next().unwrap(), &key);
        }
    }
}
