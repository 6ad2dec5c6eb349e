//! What the server has to show: tools, prompts, resources and pieces of content. Changes when the
//! suite asks for other ones.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// One grey pixel.
pub const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg==";
/// A millisecond of silence.
pub const WAV: &str = "UklGRiwAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQgAAACAgICAgICAgA==";

/// How long lists may be kept, in milliseconds: not long, for they change on demand.
const LIST_LIFE: u32 = 1_000;

/// One of the SDK's types; they cannot be built by their fields.
pub fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the fixture's own values have the shape the SDK wants")
}

/// A complete result with hints for caches.
pub fn cacheable<T: DeserializeOwned>(mut value: Value) -> T {
    value["resultType"] = json!("complete");
    value["ttlMs"] = json!(LIST_LIFE);
    value["cacheScope"] = json!("public");
    typed(value)
}

/// A complete result.
pub fn complete<T: DeserializeOwned>(mut value: Value) -> T {
    value["resultType"] = json!("complete");
    typed(value)
}

pub fn text(text: impl Into<String>) -> Value {
    json!({ "type": "text", "text": text.into() })
}

pub fn image() -> Value {
    json!({ "type": "image", "data": PNG, "mimeType": "image/png" })
}

pub fn embedded(uri: &str, mime_type: &str, text: &str) -> Value {
    json!({ "type": "resource", "resource": { "uri": uri, "mimeType": mime_type, "text": text } })
}

/// Tools in the order in which they are listed; the first can be called without arguments.
pub fn tools(with_extra: bool) -> Vec<Value> {
    let mut tools = vec![
        plain("test_simple_text", "Answers with one text"),
        plain("test_image_content", "Answers with an image"),
        plain("test_audio_content", "Answers with a sound"),
        plain("test_embedded_resource", "Answers with a resource"),
        plain("test_multiple_content_types", "Answers with a text, an image and a resource"),
        plain("test_tool_with_logging", "Writes three log messages while it works"),
        plain("test_logging_tool", "Writes log messages if the caller wants any"),
        plain("test_error_handling", "Always fails"),
        plain("test_tool_with_progress", "Reports its progress three times"),
        tool("test_sampling", "Has the client's model answer a prompt", required("prompt")),
        tool("test_elicitation", "Asks the user for a name and an address", required("message")),
        plain("test_elicitation_sep1034_defaults", "Asks the user, with defaults"),
        plain("test_elicitation_sep1330_enums", "Asks the user to choose, in five ways"),
        plain("test_reconnection", "Closes its stream before it has answered"),
        tool("json_schema_2020_12_tool", "Has a schema with newer keywords", newer_schema()),
        tool(
            "test_header_parameter",
            "Has an argument that travels as a header too",
            header_schema(),
        ),
        plain("test_input_required_result_elicitation", "Needs the user's name"),
        plain("test_input_required_result_sampling", "Needs an answer of the client's model"),
        plain("test_input_required_result_list_roots", "Needs the client's roots"),
        plain("test_input_required_result_request_state", "Needs its state back"),
        plain("test_input_required_result_multiple_inputs", "Needs three things at once"),
        plain("test_input_required_result_multi_round", "Needs one thing after another"),
        plain("test_input_required_result_tampered_state", "Refuses a state that was changed"),
        plain("test_input_required_result_capabilities", "Needs only what the client can give"),
        plain("test_missing_capability", "Works only for clients that offer sampling"),
        plain("test_streaming_elicitation", "Asks the user in the course of a stream"),
        plain("test_trigger_tool_change", "Adds a tool, or removes it again"),
        plain("test_trigger_prompt_change", "Adds a prompt, or removes it again"),
        plain("test_trigger_resource_update", "Says that the watched resource has changed"),
    ];
    if with_extra {
        tools.push(plain("test_extra_tool", "Is not always there"));
    }
    tools
}

fn plain(name: &str, description: &str) -> Value {
    tool(name, description, json!({ "type": "object", "properties": {} }))
}

fn tool(name: &str, description: &str, schema: Value) -> Value {
    json!({ "name": name, "description": description, "inputSchema": schema })
}

fn required(argument: &str) -> Value {
    json!({
        "type": "object",
        "properties": { argument: { "type": "string" } },
        "required": [argument],
    })
}

fn header_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "region": { "type": "string", "x-mcp-header": "Region" },
            "amount": { "type": "integer" },
        },
        "required": ["region"],
    })
}

fn newer_schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": { "street": { "type": "string" }, "city": { "type": "string" } },
            },
        },
        "properties": {
            "name": { "type": "string" },
            "address": { "$ref": "#/$defs/address" },
            "contactMethod": { "type": "string", "enum": ["phone", "email"] },
            "phone": { "type": "string" },
            "email": { "type": "string" },
        },
        "allOf": [{ "anyOf": [{ "required": ["phone"] }, { "required": ["email"] }] }],
        "if": { "properties": { "contactMethod": { "const": "phone" } }, "required": ["contactMethod"] },
        "then": { "required": ["phone"] },
        "else": { "required": ["email"] },
        "additionalProperties": false,
    })
}

pub fn prompts(with_extra: bool) -> Vec<Value> {
    let mut prompts = vec![
        json!({ "name": "test_simple_prompt", "description": "One message" }),
        json!({
            "name": "test_prompt_with_arguments",
            "description": "Repeats its arguments",
            "arguments": [
                { "name": "arg1", "description": "The first", "required": true },
                { "name": "arg2", "description": "The second", "required": true },
            ],
        }),
        json!({
            "name": "test_prompt_with_embedded_resource",
            "description": "Holds a resource",
            "arguments": [
                { "name": "resourceUri", "description": "Which resource", "required": true },
            ],
        }),
        json!({ "name": "test_prompt_with_image", "description": "Holds an image" }),
        json!({ "name": "test_input_required_result_prompt", "description": "Asks the user first" }),
    ];
    if with_extra {
        prompts.push(json!({ "name": "test_extra_prompt", "description": "Is not always there" }));
    }
    prompts
}

/// The resource whose changes can be subscribed to.
pub const WATCHED: &str = "test://watched-resource";

pub fn resources() -> Value {
    json!([
        {
            "uri": "test://static-text",
            "name": "static-text",
            "description": "A text that never changes",
            "mimeType": "text/plain",
        },
        {
            "uri": "test://static-binary",
            "name": "static-binary",
            "description": "An image that never changes",
            "mimeType": "image/png",
        },
        {
            "uri": WATCHED,
            "name": "watched-resource",
            "description": "A text that changes",
            "mimeType": "text/plain",
        },
    ])
}

pub fn templates() -> Value {
    json!([{
        "uriTemplate": "test://template/{id}/data",
        "name": "template",
        "description": "Data of any id",
        "mimeType": "application/json",
    }])
}

/// The contents behind a URI, if there are any.
pub fn resource(uri: &str) -> Option<Value> {
    match uri {
        "test://static-text" => Some(json!({
            "uri": uri,
            "mimeType": "text/plain",
            "text": "This is the content of the static text resource.",
        })),
        "test://static-binary" => Some(json!({ "uri": uri, "mimeType": "image/png", "blob": PNG })),
        WATCHED => Some(json!({ "uri": uri, "mimeType": "text/plain", "text": "Watch me." })),
        _ => {
            let id = uri.strip_prefix("test://template/")?.strip_suffix("/data")?;
            let data = json!({
                "id": id,
                "templateTest": true,
                "data": format!("Data for ID: {id}"),
            });
            Some(json!({ "uri": uri, "mimeType": "application/json", "text": data.to_string() }))
        }
    }
}
