//! Asking the client something in the course of a request: in the modern era by a result that
//! wants input, in the older one by requests of the server. Changes when either way does.

use std::collections::BTreeMap;

use rmcp::model::{
    ClientCapabilities, InputRequiredResult, InputResponses, ProtocolVersion, ServerRequest,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer};
use serde_json::{Value, json};

use crate::content::typed;

pub type Context = RequestContext<RoleServer>;
pub type Answers = BTreeMap<String, Value>;
/// What is asked, by the key under which its answer comes back.
pub type Questions = Vec<(&'static str, Value)>;

/// What became of the questions.
pub enum Asked {
    /// All are answered.
    Answers(Answers),
    /// The client has to call again with the answers.
    Pending(InputRequiredResult),
    /// The client would not or could not.
    Refused(String),
}

pub fn is_modern(context: &Context) -> bool {
    context.protocol_version().is_some_and(|version| version == ProtocolVersion::V_2026_07_28)
}

/// Whether the client has said that it can be asked with `method`.
pub fn can_answer(context: &Context, method: &str) -> bool {
    let declared = serde_json::to_value(context.client_capabilities()).unwrap_or_default();
    !declared[capability(method)].is_null()
}

/// Gets the questions answered in the way of the client's era. `state` goes with the questions
/// where they are part of a result.
pub async fn ask(
    context: &Context,
    questions: Questions,
    given: Option<InputResponses>,
    state: Option<String>,
) -> Result<Asked, ErrorData> {
    if let Some((_, question)) =
        questions.iter().find(|(_, question)| !can_answer(context, method(question)))
    {
        let missing = capability(method(question));
        if is_modern(context) {
            let capabilities: ClientCapabilities = typed(json!({ missing: {} }));
            return Err(ErrorData::missing_required_client_capability(capabilities));
        }
        return Ok(Asked::Refused(format!("the client does not offer {missing}")));
    }
    if is_modern(context) {
        let given = given.unwrap_or_default();
        let answered = questions.iter().all(|(key, question)| {
            given.get(*key).is_some_and(|answer| fits(method(question), answer))
        });
        if answered {
            return Ok(Asked::Answers(given));
        }
        let requests: BTreeMap<&str, Value> = questions.into_iter().collect();
        return Ok(Asked::Pending(InputRequiredResult::new(Some(typed(json!(requests))), state)));
    }
    let mut answers = Answers::new();
    for (key, question) in questions {
        let request: ServerRequest = typed(question);
        match context.peer.send_request(request).await {
            Ok(answer) => {
                answers.insert(key.to_owned(), serde_json::to_value(answer).unwrap_or_default());
            }
            Err(error) => return Ok(Asked::Refused(format!("the client did not answer: {error}"))),
        }
    }
    Ok(Asked::Answers(answers))
}

fn method(question: &Value) -> &str {
    question["method"].as_str().unwrap_or_default()
}

fn capability(method: &str) -> &'static str {
    match method {
        "elicitation/create" => "elicitation",
        "sampling/createMessage" => "sampling",
        "roots/list" => "roots",
        _ => panic!("the fixture asks nothing else"),
    }
}

fn fits(method: &str, answer: &Value) -> bool {
    match method {
        "elicitation/create" => answer["action"].is_string(),
        "sampling/createMessage" => !answer["content"].is_null(),
        _ => answer["roots"].is_array(),
    }
}

/// Asks the user to fill in a form.
pub fn form(message: &str, schema: Value) -> Value {
    json!({
        "method": "elicitation/create",
        "params": { "message": message, "requestedSchema": schema },
    })
}

/// A form with one text field.
pub fn one_field(message: &str, field: &str) -> Value {
    form(
        message,
        json!({
            "type": "object",
            "properties": { field: { "type": "string" } },
            "required": [field],
        }),
    )
}

/// A form with one box to tick.
pub fn confirmation() -> Value {
    form(
        "Please confirm",
        json!({
            "type": "object",
            "properties": { "ok": { "type": "boolean" } },
            "required": ["ok"],
        }),
    )
}

/// Asks the client's model.
pub fn sampling(prompt: &str, max_tokens: u32) -> Value {
    json!({
        "method": "sampling/createMessage",
        "params": {
            "messages": [{ "role": "user", "content": { "type": "text", "text": prompt } }],
            "maxTokens": max_tokens,
        },
    })
}

/// Asks for the client's roots.
pub fn roots() -> Value {
    json!({ "method": "roots/list", "params": {} })
}
