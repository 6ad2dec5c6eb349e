//! The server's methods other than calls of tools. Changes when the suite asks for more of the
//! protocol.
#![expect(deprecated, reason = "older clients set log levels")]

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult, ErrorCode,
    GetPromptRequestParams, GetPromptResponse, ListPromptsResult, ListResourceTemplatesResult,
    ListResourcesResult, ListToolsResult, PaginatedRequestParams, ProtocolVersion,
    ReadResourceRequestParams, ReadResourceResponse, ServerConfig, SetLevelRequestParams,
    SubscribeRequestParams, SubscriptionFilter, Tool, UnsubscribeRequestParams,
};
use rmcp::service::{NotificationContext, Peer, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::asking::{Asked, Context, ask, one_field};
use crate::content::{
    WATCHED, cacheable, complete, embedded, image, prompts, resource, resources, templates, text,
    tools, typed,
};
use crate::era::Era;
use crate::sealed::Seal;

/// Changes kept for listeners that are slow; older ones are dropped.
const CHANGES_KEPT: usize = 16;

/// Something that listeners are told.
#[derive(Clone, Copy)]
pub enum Change {
    Tools,
    Prompts,
    Watched,
}

/// What all clients see alike.
pub struct Shared {
    era: Era,
    pub seal: Seal,
    pub extra_tool: AtomicBool,
    pub extra_prompt: AtomicBool,
    pub changes: broadcast::Sender<Change>,
}

impl Shared {
    pub fn new(era: Era) -> Self {
        Self {
            era,
            seal: Seal::new(),
            extra_tool: AtomicBool::new(false),
            extra_prompt: AtomicBool::new(false),
            changes: broadcast::channel(CHANGES_KEPT).0,
        }
    }
}

/// The server as one session sees it; in the modern era as one request does.
pub struct Fixture {
    pub shared: Arc<Shared>,
    subscribed: Arc<Mutex<HashSet<String>>>,
    /// The rank below which a session wants no log messages.
    pub threshold: Mutex<usize>,
}

/// Levels of log messages, the least urgent first.
const LEVELS: &[&str] =
    &["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

/// How urgent a level is.
pub fn rank(level: &Value) -> usize {
    LEVELS.iter().position(|known| level == known).unwrap_or_default()
}

impl Fixture {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone(), subscribed: Arc::default(), threshold: Mutex::new(0) }
    }

    fn has_extra_tool(&self) -> bool {
        self.shared.extra_tool.load(Ordering::SeqCst)
    }
}

/// Tells a session of an older era what changes, until it is gone.
async fn relay(
    peer: Peer<RoleServer>,
    subscribed: Arc<Mutex<HashSet<String>>>,
    mut changes: broadcast::Receiver<Change>,
) {
    while let Ok(change) = changes.recv().await {
        let sent = match change {
            Change::Tools => peer.notify_tool_list_changed().await,
            Change::Prompts => peer.notify_prompt_list_changed().await,
            Change::Watched if subscribed.lock().contains(WATCHED) => {
                peer.notify_resource_updated(typed(json!({ "uri": WATCHED }))).await
            }
            Change::Watched => Ok(()),
        };
        if sent.is_err() {
            return;
        }
    }
}

impl ServerHandler for Fixture {
    fn get_info(&self) -> ServerConfig {
        typed(json!({
            "protocolVersion": self.shared.era.versions().last(),
            "capabilities": {
                "tools": { "listChanged": true },
                "prompts": { "listChanged": true },
                "resources": { "subscribe": true },
                "completions": {},
                "logging": {},
            },
            "serverInfo": { "name": "conformance-fixture", "version": "1.0.0" },
            "instructions": "Does what the conformance suite asks for.",
        }))
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Owned(self.shared.era.versions())
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        let changes = self.shared.changes.subscribe();
        tokio::spawn(relay(context.peer, self.subscribed.clone(), changes));
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(cacheable(json!({ "tools": tools(self.has_extra_tool()) })))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tools(self.has_extra_tool()).into_iter().find(|tool| tool["name"] == name).map(typed)
    }

    async fn call_tool(
        &self,
        call: CallToolRequestParams,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        self.call(call, &context).await
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListPromptsResult, ErrorData> {
        let with_extra = self.shared.extra_prompt.load(Ordering::SeqCst);
        Ok(cacheable(json!({ "prompts": prompts(with_extra) })))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: Context,
    ) -> Result<GetPromptResponse, ErrorData> {
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        let argument = |name: &str| {
            arguments[name].as_str().map(str::to_owned).ok_or_else(|| {
                ErrorData::invalid_params(format!("the argument {name} is missing"), None)
            })
        };
        let contents = match request.name.as_str() {
            "test_simple_prompt" => vec![text("This is a simple prompt for testing.")],
            "test_prompt_with_arguments" => vec![text(format!(
                "Prompt with arguments: arg1='{}', arg2='{}'",
                argument("arg1")?,
                argument("arg2")?
            ))],
            "test_prompt_with_embedded_resource" => vec![
                embedded(
                    &argument("resourceUri")?,
                    "text/plain",
                    "Embedded resource content for testing.",
                ),
                text("Please process the embedded resource above."),
            ],
            "test_prompt_with_image" => vec![image(), text("Please analyze the image above.")],
            "test_input_required_result_prompt" => {
                let question = one_field("What context should the prompt use?", "context");
                let questions = vec![("user_context", question)];
                match ask(&context, questions, request.input_responses, None).await? {
                    Asked::Answers(answers) => {
                        let given = &answers["user_context"]["content"]["context"];
                        vec![text(format!("In this context: {given}"))]
                    }
                    Asked::Pending(result) => return Ok(result.into()),
                    Asked::Refused(why) => return Err(ErrorData::invalid_params(why, None)),
                }
            }
            "test_extra_prompt" if self.shared.extra_prompt.load(Ordering::SeqCst) => {
                vec![text("I am here.")]
            }
            name => return Err(ErrorData::invalid_params(format!("no prompt {name}"), None)),
        };
        let messages: Vec<Value> = contents
            .into_iter()
            .map(|content| json!({ "role": "user", "content": content }))
            .collect();
        Ok(GetPromptResponse::Complete(complete(json!({ "messages": messages }))))
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(cacheable(json!({ "resources": resources() })))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(cacheable(json!({ "resourceTemplates": templates() })))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: Context,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let contents = resource(&request.uri).ok_or_else(|| {
            let data = json!({ "uri": request.uri });
            ErrorData::new(ErrorCode::RESOURCE_NOT_FOUND, "Resource not found", Some(data))
        })?;
        Ok(ReadResourceResponse::Complete(cacheable(json!({ "contents": [contents] }))))
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        _: Context,
    ) -> Result<(), ErrorData> {
        self.subscribed.lock().insert(request.uri);
        Ok(())
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _: Context,
    ) -> Result<(), ErrorData> {
        self.subscribed.lock().remove(&request.uri);
        Ok(())
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = self.shared.changes.subscribe();
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = context.cancelled() => return Ok(()),
            };
            let sink = context.sink();
            // What the filter does not hold is refused by the sink, and need not be sent.
            let _ = match change {
                Ok(Change::Tools) => sink.notify_tool_list_changed().await,
                Ok(Change::Prompts) => sink.notify_prompt_list_changed().await,
                Ok(Change::Watched) => sink.notify_resource_updated(WATCHED).await,
                Err(_) => return Ok(()),
            };
        }
    }

    async fn set_level(&self, request: SetLevelRequestParams, _: Context) -> Result<(), ErrorData> {
        *self.threshold.lock() = rank(&json!(request.level));
        Ok(())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _: Context,
    ) -> Result<CompleteResult, ErrorData> {
        let values: Vec<&str> = ["paris", "park", "party", "test"]
            .into_iter()
            .filter(|value| value.starts_with(&request.argument.value))
            .collect();
        let completion = json!({ "total": values.len(), "values": values, "hasMore": false });
        Ok(complete(json!({ "completion": completion })))
    }
}
