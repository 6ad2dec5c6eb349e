//! What each tool does. Changes when a scenario wants another behaviour.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rmcp::ErrorData;
use rmcp::model::{CallToolRequestParams, CallToolResponse, CallToolResult, ServerNotification};
use serde_json::{Value, json};

use crate::asking::{
    Answers, Asked, Context, Questions, ask, can_answer, confirmation, form, is_modern, one_field,
    roots, sampling,
};
use crate::content::{WAV, complete, embedded, image, text, typed};
use crate::handler::{Change, Fixture, rank};
use crate::sessions::CLOSED_EARLY;

/// Between two notifications of a tool, so that they arrive one by one.
const PAUSE: Duration = Duration::from_millis(50);

type Outcome = Result<CallToolResponse, ErrorData>;

fn done(contents: Vec<Value>) -> Outcome {
    Ok(CallToolResponse::Complete(complete(json!({ "content": contents }))))
}

fn said(words: impl Into<String>) -> Outcome {
    done(vec![text(words)])
}

fn failed(words: impl Into<String>) -> Outcome {
    let result: CallToolResult = complete(json!({ "content": [text(words)], "isError": true }));
    Ok(CallToolResponse::Complete(result))
}

/// The end of a tool that asked something: its words, once it has the answers.
fn then(asked: Asked, words: impl FnOnce(&Answers) -> String) -> Outcome {
    match asked {
        Asked::Answers(answers) => said(words(&answers)),
        Asked::Pending(result) => Ok(result.into()),
        Asked::Refused(why) => failed(why),
    }
}

impl Fixture {
    pub async fn call(&self, call: CallToolRequestParams, context: &Context) -> Outcome {
        let arguments = Value::Object(call.arguments.clone().unwrap_or_default());
        let argument = |name: &str| {
            arguments[name].as_str().map(str::to_owned).ok_or_else(|| {
                ErrorData::invalid_params(format!("the argument {name} is missing"), None)
            })
        };
        match call.name.as_ref() {
            "test_simple_text" => said("This is a simple text response for testing."),
            "test_image_content" => done(vec![image()]),
            "test_audio_content" => {
                done(vec![json!({ "type": "audio", "data": WAV, "mimeType": "audio/wav" })])
            }
            "test_embedded_resource" => done(vec![embedded(
                "test://embedded-resource",
                "text/plain",
                "This is an embedded resource content.",
            )]),
            "test_multiple_content_types" => done(vec![
                text("Multiple content types test:"),
                image(),
                embedded("test://mixed-content-resource", "application/json", r#"{"test":"data"}"#),
            ]),
            "test_tool_with_logging" | "test_logging_tool" => self.log_thrice(context).await,
            "test_error_handling" => failed("This tool intentionally returns an error for testing"),
            "test_tool_with_progress" => progress_thrice(context).await,
            "test_sampling" => {
                let questions = vec![("sample", sampling(&argument("prompt")?, 100))];
                then(ask(context, questions, call.input_responses, None).await?, |answers| {
                    format!("LLM response: {}", answers["sample"]["content"]["text"])
                })
            }
            "test_elicitation" => {
                let question = form(&argument("message")?, user_schema());
                then(ask_one(context, question, call).await?, |answers| {
                    format!("User response: {}", answers["form"])
                })
            }
            "test_elicitation_sep1034_defaults" => {
                let question = form("Please review the defaults", defaults_schema());
                then(ask_one(context, question, call).await?, outcome_of_form)
            }
            "test_elicitation_sep1330_enums" => {
                let question = form("Please choose", enums_schema());
                then(ask_one(context, question, call).await?, outcome_of_form)
            }
            "test_streaming_elicitation" => {
                progress(context, 50).await;
                let question = one_field("What is your name?", "name");
                then(ask_one(context, question, call).await?, outcome_of_form)
            }
            CLOSED_EARLY => {
                tokio::time::sleep(2 * PAUSE).await;
                said("The answer came after the stream was closed.")
            }
            "json_schema_2020_12_tool" => said(format!("Called with {arguments}")),
            "test_header_parameter" => said(format!("The region is {}", argument("region")?)),
            "test_missing_capability" => {
                // Sampling is what it cannot do without; it does not ask for anything.
                if can_answer(context, "sampling/createMessage") {
                    return said("The client offers sampling.");
                }
                if !is_modern(context) {
                    return failed("the client does not offer sampling");
                }
                let missing = typed(json!({ "sampling": {} }));
                Err(ErrorData::missing_required_client_capability(missing))
            }
            "test_trigger_tool_change" => {
                self.shared.extra_tool.fetch_xor(true, Ordering::SeqCst);
                self.announce(Change::Tools)
            }
            "test_trigger_prompt_change" => {
                self.shared.extra_prompt.fetch_xor(true, Ordering::SeqCst);
                self.announce(Change::Prompts)
            }
            "test_trigger_resource_update" => self.announce(Change::Watched),
            "test_extra_tool" if self.shared.extra_tool.load(Ordering::SeqCst) => {
                said("I am here.")
            }
            _ => self.call_with_rounds(call, context).await,
        }
    }

    /// The tools that need one or more rounds with the client.
    async fn call_with_rounds(&self, call: CallToolRequestParams, context: &Context) -> Outcome {
        let name = call.name.clone();
        let given = call.input_responses;
        let state = match &call.request_state {
            Some(sealed) => self.shared.seal.open(&name, sealed)?,
            None => Value::Null,
        };
        let sealed = |state: Value| Some(self.shared.seal.close(&name, &state));
        match name.as_ref() {
            "test_input_required_result_elicitation" => {
                let questions = vec![("user_name", one_field("What is your name?", "name"))];
                then(ask(context, questions, given, None).await?, |answers| {
                    format!("Hello, {}!", answers["user_name"]["content"]["name"])
                })
            }
            "test_input_required_result_sampling" => {
                let questions =
                    vec![("capital_question", sampling("What is the capital of France?", 100))];
                then(ask(context, questions, given, None).await?, |answers| {
                    format!("The model says: {}", answers["capital_question"]["content"]["text"])
                })
            }
            "test_input_required_result_list_roots" => {
                let questions = vec![("client_roots", roots())];
                then(ask(context, questions, given, None).await?, |answers| {
                    format!("The roots are: {}", answers["client_roots"]["roots"])
                })
            }
            "test_input_required_result_request_state"
            | "test_input_required_result_tampered_state" => {
                if is_modern(context) && given.is_some() && state.is_null() {
                    return Err(ErrorData::invalid_params("requestState is missing", None));
                }
                let questions = vec![("confirm", confirmation())];
                then(ask(context, questions, given, sealed(json!(1))).await?, |_| {
                    "state-ok".to_owned()
                })
            }
            "test_input_required_result_multiple_inputs" => {
                let questions = vec![
                    ("user_name", one_field("What is your name?", "name")),
                    ("greeting", sampling("Generate a greeting", 50)),
                    ("client_roots", roots()),
                ];
                then(ask(context, questions, given, sealed(json!(1))).await?, |answers| {
                    format!("Answers to: {:?}", answers.keys().collect::<Vec<_>>())
                })
            }
            "test_input_required_result_multi_round" => {
                let first = one_field("Step 1: What is your name?", "name");
                let second = one_field("Step 2: What is your favorite color?", "color");
                let (given, name) = if state["name"].is_null() {
                    let questions: Questions = vec![("step1", first)];
                    match ask(context, questions, given, sealed(json!({ "step": 1 }))).await? {
                        Asked::Answers(answers) => {
                            (None, answers["step1"]["content"]["name"].clone())
                        }
                        other => return then(other, |_| String::new()),
                    }
                } else {
                    (given, state["name"].clone())
                };
                let questions: Questions = vec![("step2", second)];
                let state = sealed(json!({ "step": 2, "name": name }));
                then(ask(context, questions, given, state).await?, |answers| {
                    format!("{name} likes {}", answers["step2"]["content"]["color"])
                })
            }
            "test_input_required_result_capabilities" => {
                let questions: Questions = [
                    ("user_name", one_field("What is your name?", "name")),
                    ("greeting", sampling("Generate a greeting", 50)),
                    ("client_roots", roots()),
                ]
                .into_iter()
                .filter(|(_, question)| {
                    can_answer(context, question["method"].as_str().unwrap_or_default())
                })
                .collect();
                then(ask(context, questions, given, None).await?, |answers| {
                    format!("Answers to: {:?}", answers.keys().collect::<Vec<_>>())
                })
            }
            _ => Err(ErrorData::invalid_params(format!("no tool {name}"), None)),
        }
    }

    fn announce(&self, change: Change) -> Outcome {
        // Nobody may be listening.
        let listeners = self.shared.changes.send(change).unwrap_or_default();
        said(format!("Told {listeners} listeners."))
    }

    async fn log_thrice(&self, context: &Context) -> Outcome {
        for words in ["Tool execution started", "Tool processing data", "Tool execution completed"]
        {
            self.log(context, words).await;
            tokio::time::sleep(PAUSE).await;
        }
        said("Logged three times.")
    }

    /// At level `info`; in the modern era only for a request that wants it.
    async fn log(&self, context: &Context, words: &str) {
        let threshold = if is_modern(context) {
            context.meta.log_level().map(|level| rank(&json!(level)))
        } else {
            Some(*self.threshold.lock())
        };
        if threshold.is_some_and(|threshold| rank(&json!("info")) >= threshold) {
            let params = json!({ "level": "info", "logger": "fixture", "data": words });
            notify(context, "notifications/message", params).await;
        }
    }
}

async fn progress_thrice(context: &Context) -> Outcome {
    for done in [0, 50, 100] {
        progress(context, done).await;
        tokio::time::sleep(PAUSE).await;
    }
    said("Done, in three steps.")
}

async fn progress(context: &Context, done: u32) {
    if let Some(token) = context.meta.get_progress_token() {
        let params = json!({ "progressToken": token, "progress": done, "total": 100 });
        notify(context, "notifications/progress", params).await;
    }
}

async fn notify(context: &Context, method: &str, params: Value) {
    let notification: ServerNotification = typed(json!({ "method": method, "params": params }));
    // A client that has gone away misses it.
    let _ = context.peer.send_notification(notification).await;
}

async fn ask_one(
    context: &Context,
    question: Value,
    call: CallToolRequestParams,
) -> Result<Asked, ErrorData> {
    ask(context, vec![("form", question)], call.input_responses, None).await
}

fn outcome_of_form(answers: &Answers) -> String {
    let answer = &answers["form"];
    format!("Elicitation completed: action={}, content={}", answer["action"], answer["content"])
}

fn user_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "username": { "type": "string", "description": "User's response" },
            "email": { "type": "string", "description": "User's email address" },
        },
        "required": ["username", "email"],
    })
}

fn defaults_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "default": "John Doe" },
            "age": { "type": "integer", "default": 30 },
            "score": { "type": "number", "default": 95.5 },
            "status": {
                "type": "string",
                "enum": ["active", "inactive", "pending"],
                "default": "active",
            },
            "verified": { "type": "boolean", "default": true },
        },
    })
}

fn enums_schema() -> Value {
    let titled = |title: &str| {
        json!([
            { "const": "value1", "title": format!("First {title}") },
            { "const": "value2", "title": format!("Second {title}") },
            { "const": "value3", "title": format!("Third {title}") },
        ])
    };
    json!({
        "type": "object",
        "properties": {
            "untitledSingle": { "type": "string", "enum": ["option1", "option2", "option3"] },
            "titledSingle": { "type": "string", "oneOf": titled("Option") },
            "legacyEnum": {
                "type": "string",
                "enum": ["opt1", "opt2", "opt3"],
                "enumNames": ["Option One", "Option Two", "Option Three"],
            },
            "untitledMulti": {
                "type": "array",
                "items": { "type": "string", "enum": ["option1", "option2", "option3"] },
            },
            "titledMulti": { "type": "array", "items": { "anyOf": titled("Choice") } },
        },
    })
}
