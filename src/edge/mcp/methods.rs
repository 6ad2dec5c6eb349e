//! The methods that clients of both eras have: lists, tool calls, prompts, resources, completion.
//!
//! Changes when one of these methods does. What only one era has is in `legacy` and `modern`.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::value::RawValue;

use super::render;
use super::reply::{Answered, Pending, Reply, Work};
use super::rounds::{self, End, Leg};
use super::session::Live;
use super::stream::Resumable;
use super::{Refusing, Told, Who};
use crate::catalogue::{Lookup, NotFound, OfferedList};
use crate::clock;
use crate::edge::auth::RequestContext;
use crate::edge::detach::Detached;
use crate::edge::sessions::Session;
use crate::edge::{Edge, Seen};
use crate::error::ErrorCode;
use crate::metrics::CallLabels;
use crate::model::{
    AuthKind, CallerTrace, ClientInfo, Entrance, Era, ProtocolVersion, ToolCall, ToolTarget,
    cut_after, did_you_mean,
};
use crate::protocol::{
    CallParams, HeaderPresence, LogLevel, RawObject, RequestId, RequestMeta, RpcErrorCode,
    error_response, reference_to,
};
use crate::router::{CallAnswer, Forward, Relay, RelayWishes};

/// One request, and everything known about who makes it.
pub(super) struct Asked<'a> {
    pub(super) edge: &'a Arc<Edge>,
    pub(super) context: &'a RequestContext,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a Bytes,
    pub(super) version: ProtocolVersion,
    pub(super) id: RequestId<'a>,
    pub(super) params: Option<&'a RawValue>,
    /// Legacy: the session, if there is one.
    pub(super) session: Option<&'a Arc<Session>>,
    /// Modern: what the client says of itself.
    pub(super) client: Option<ClientInfo>,
    /// Modern: what it declares, as JSON.
    pub(super) capabilities: Option<&'a str>,
    /// Modern: the log messages it wants.
    pub(super) log_level: Option<LogLevel>,
}

impl Asked<'_> {
    pub(super) fn era(&self) -> Era {
        self.version.era()
    }

    fn slice(&self, text: &str) -> Bytes {
        self.body.slice_ref(text.as_bytes())
    }

    /// What is there for this client: everything, or its view.
    pub(super) fn catalogue(&self) -> Seen {
        self.edge.catalogue(self.context.view.as_ref())
    }

    pub(super) fn invalid(&self, message: &str) -> Reply {
        Reply::error(StatusCode::OK, Some(self.id), RpcErrorCode::InvalidParams, message)
    }

    pub(super) fn members(&self) -> Result<RawObject<'_>, String> {
        RawObject::parse(self.params.map_or("{}", RawValue::get))
            .map_err(|error| format!("`params`: {error}"))
    }

    /// Answers a method of both eras; `None` when it is none.
    pub(super) async fn answer(&self, method: &str) -> Option<Reply> {
        Some(match method {
            "tools/call" => self.call().await,
            "tools/list" => self.list(OfferedList::Tools),
            "prompts/list" => self.list(OfferedList::Prompts),
            "resources/list" => self.list(OfferedList::Resources),
            "resources/templates/list" => self.list(OfferedList::Templates),
            "prompts/get" => self.measured("prompts/get", Self::get_prompt),
            "resources/read" => self.measured("resources/read", Self::read_resource),
            "completion/complete" => self.measured("completion/complete", Self::complete),
            _ => return None,
        })
    }

    /// What a request is measured by that ends so.
    pub(super) fn labels(&self, error: Option<ErrorCode>) -> CallLabels {
        labels(self.context, self.version, error)
    }

    /// What is sent on the router measures; what is refused before is measured here.
    fn measured(&self, method: &'static str, reply: impl FnOnce(&Self) -> Reply) -> Reply {
        let began = clock::uptime();
        let reply = reply(self);
        if !matches!(reply, Reply::Pending(_)) {
            let labels = self.labels(Some(ErrorCode::InvalidRequest));
            let took = clock::uptime().since(began);
            self.edge.metrics.observe_operation(method, labels, took);
        }
        reply
    }

    async fn call(&self) -> Reply {
        let params = match CallParams::parse(self.params) {
            Ok(params) => params,
            Err(message) => {
                let (status, code) = (StatusCode::OK, RpcErrorCode::InvalidParams);
                self.refuse(String::new(), Told { status, code, message: &message }).await;
                return self.invalid(&message);
            }
        };
        let target = ToolTarget { tool: params.name.into_owned(), server: None };
        if let Err(message) = self.check_param_headers(&target, params.arguments) {
            let (status, code) = (StatusCode::BAD_REQUEST, RpcErrorCode::HeaderMismatch);
            self.refuse(target.tool, Told { status, code, message: &message }).await;
            return Reply::error(status, Some(self.id), code, &message);
        }
        let relay = self.relay(params.meta.progress_token);
        let call = ToolCall {
            id: self.context.id,
            caller: Arc::clone(&self.context.caller),
            session: self.session.map(|session| Arc::clone(&session.reference)),
            client: self.client.clone(),
            client_capabilities: self.capabilities(),
            entrance: Entrance::Mcp(self.version),
            via: self.context.via,
            view: self.context.view.clone(),
            trace: self.trace(&params.meta),
            request_id: Some(self.slice(self.id.json())),
            target,
            arguments: params.arguments.map(|raw| self.slice(raw.get())),
            params: self.params.map(|raw| self.slice(raw.get())),
            deadline: None,
            request_bytes: self.body.len() as u64,
        };
        let (edge, id, era) = (Arc::clone(self.edge), self.slice(self.id.json()), self.era());
        let heard = relay.clone();
        let underway = self.underway(relay.as_ref());
        let work = async move {
            let _underway = underway;
            let answer = call_in_rounds(&edge, call, heard.as_ref(), era).await;
            render::call(&id, era, &answer)
        };
        self.pending(work, relay)
    }

    /// What the router would read from the arguments, and intermediaries read from the headers,
    /// must be the same (specification 2026-07-28, basic/transports/streamable-http).
    fn check_param_headers(
        &self,
        target: &ToolTarget,
        arguments: Option<&RawValue>,
    ) -> Result<(), String> {
        if self.era() == Era::Legacy {
            return Ok(());
        }
        let catalogue = self.catalogue();
        let Lookup::Found(entry) = catalogue.lookup(target) else { return Ok(()) };
        if entry.definition.param_headers.is_empty() {
            return Ok(());
        }
        entry.definition.param_headers.check(arguments.map(RawValue::get), |name| {
            HeaderPresence::of(self.headers.get_all(name))
        })
    }

    fn get_prompt(&self) -> Reply {
        let members = match self.members() {
            Ok(members) => members,
            Err(message) => return self.invalid(&message),
        };
        let Some(name) = members.get_str("name") else {
            return self.invalid("`name` must be a string");
        };
        let catalogue = self.catalogue();
        match catalogue.find_prompt(&name) {
            Ok(prompt) => {
                let mut forward = self.forward("prompts/get", &prompt.server);
                forward.name = Some(prompt.name.clone());
                forward.exposed = Some(prompt.exposed.as_str().into());
                self.pass_on(forward, &members, false)
            }
            Err(why) => self.invalid(&not_found("prompt", &name, &why)),
        }
    }

    fn read_resource(&self) -> Reply {
        let members = match self.members() {
            Ok(members) => members,
            Err(message) => return self.invalid(&message),
        };
        let Some(uri) = members.get_str("uri") else {
            return self.invalid("`uri` must be a string");
        };
        let catalogue = self.catalogue();
        match catalogue.find_resource(&uri) {
            Ok(route) => {
                let mut forward = self.forward("resources/read", &route.server);
                forward.uri = Some(route.uri);
                forward.exposed = catalogue.lists_resource(&uri).then(|| Arc::from(&*uri));
                self.pass_on(forward, &members, true)
            }
            Err(why) => self.no_resource(&uri, &why),
        }
    }

    /// The error for an unknown resource: each era has its own.
    pub(super) fn no_resource(&self, uri: &str, why: &NotFound) -> Reply {
        let message = not_found("resource", uri, why);
        let code = match self.era() {
            Era::Modern => RpcErrorCode::InvalidParams.number(),
            Era::Legacy => RESOURCE_NOT_FOUND,
        };
        let data = serde_json::json!({ "uri": uri }).to_string();
        let message = error_response(Some(self.id.json()), code, &message, Some(&data));
        Reply::Message(StatusCode::OK, message)
    }

    fn complete(&self) -> Reply {
        let members = match self.members() {
            Ok(members) => members,
            Err(message) => return self.invalid(&message),
        };
        let Some(reference) = members.get("ref") else { return self.invalid("`ref` is missing") };
        let said = match RawObject::parse(reference.get()) {
            Ok(said) => said,
            Err(error) => return self.invalid(&format!("`ref`: {error}")),
        };
        let catalogue = self.catalogue();
        let (server, key, value) = match said.get_str("type").as_deref() {
            Some("ref/prompt") => {
                let name = said.get_str("name").unwrap_or_default();
                match catalogue.find_prompt(&name) {
                    Ok(prompt) => (Arc::clone(&prompt.server), "name", prompt.name.clone()),
                    Err(why) => return self.invalid(&not_found("prompt", &name, &why)),
                }
            }
            Some("ref/resource") => {
                let uri = said.get_str("uri").unwrap_or_default();
                match catalogue.find_template(&uri) {
                    Ok(route) => (route.server, "uri", route.uri),
                    Err(why) => return self.invalid(&not_found("resource template", &uri, &why)),
                }
            }
            _ => return self.invalid("`ref.type` must be `ref/prompt` or `ref/resource`"),
        };
        let mut forward = self.forward("completion/complete", &server);
        forward.reference = Some(reference_to(reference, key, &value));
        self.pass_on(forward, &members, false)
    }

    pub(super) fn forward(
        &self,
        method: &'static str,
        server: &Arc<crate::registry::ServerHandle>,
    ) -> Forward {
        Forward {
            id: self.context.id,
            caller: Arc::clone(&self.context.caller),
            session: self.session.map(|session| Arc::clone(&session.reference)),
            method,
            server: Arc::clone(server),
            version: self.version,
            params: self.params.map(|raw| self.slice(raw.get())),
            via: self.context.via,
            exposed: None,
            name: None,
            uri: None,
            reference: None,
            client_capabilities: self.capabilities(),
            trace: None,
            request_id: Some(self.slice(self.id.json())),
        }
    }

    /// To which trace the request belongs: what it says itself comes before what its headers say,
    /// because those are of the HTTP request that carries it.
    fn trace(&self, meta: &RequestMeta<'_>) -> Option<Arc<CallerTrace>> {
        CallerTrace::of_request(CallerTrace::read(&meta.trace), self.context.trace.as_ref())
    }

    /// Sends a request on to its server; `cacheable` when its result carries cache fields in the
    /// modern era.
    pub(super) fn pass_on(
        &self,
        forward: Forward,
        members: &RawObject<'_>,
        cacheable: bool,
    ) -> Reply {
        let meta = match RequestMeta::of(members) {
            Ok(meta) => meta,
            Err(message) => return self.invalid(&message),
        };
        let forward = Forward { trace: self.trace(&meta), ..forward };
        let relay = self.relay(meta.progress_token);
        let underway = self.underway(relay.as_ref());
        let (edge, id, era) = (Arc::clone(self.edge), self.slice(self.id.json()), self.era());
        let heard = relay.clone();
        let work = async move {
            let _underway = underway;
            let leg = |params: Option<Bytes>| {
                let forward = Forward { params, ..forward.clone() };
                let (edge, heard) = (&edge, heard.as_ref());
                async move { edge.router.forward(&forward, heard).await }
            };
            let end = match era {
                Era::Modern => End::Answer(leg(forward.params.clone()).await),
                Era::Legacy => {
                    let params = forward.params.clone();
                    rounds::run(params, heard.as_ref(), |leg: &Leg| leg, leg).await
                }
            };
            match end {
                End::Answer(answer) => render::forwarded(&id, era, &answer, cacheable),
                End::NoInput(problem) => {
                    edge.router.forward_unanswered(&forward);
                    render::no_input(&id, &problem)
                }
            }
        };
        self.pending(work, relay)
    }

    /// The capabilities to declare upstream for this request.
    fn capabilities(&self) -> Option<Bytes> {
        match self.session {
            Some(session) => {
                let abilities = session.reference.abilities.as_deref()?;
                Some(Bytes::copy_from_slice(abilities.as_bytes()))
            }
            None => self.capabilities.map(|text| render::without_tasks(self.slice(text))),
        }
    }

    /// The way for what servers say before they answer, where this client can hear it.
    fn relay(&self, progress_token: Option<&RawValue>) -> Option<Arc<Relay>> {
        let progress_token = progress_token.map(|raw| raw.get().into());
        let wishes = match self.session {
            Some(session) => {
                let level = session.live().log_level();
                RelayWishes {
                    progress_token,
                    // A legacy server decides what a client hears that has not set a level.
                    log_level: Some(level.unwrap_or(LogLevel::Debug)),
                    asks_for_log: level.is_some(),
                    abilities: session.abilities,
                }
            }
            None if progress_token.is_none() && self.log_level.is_none() => return None,
            None => RelayWishes {
                progress_token,
                log_level: self.log_level,
                asks_for_log: self.log_level.is_some(),
                ..RelayWishes::default()
            },
        };
        Some(Arc::new(Relay::new(wishes)))
    }

    fn underway(&self, relay: Option<&Arc<Relay>>) -> Option<super::session::Underway> {
        let (session, relay) = self.session.zip(relay)?;
        Some(Live::register(session, self.id, relay))
    }

    fn pending(
        &self,
        work: impl Future<Output = Answered> + Send + 'static,
        relay: Option<Arc<Relay>>,
    ) -> Reply {
        let answer = match self.era() {
            Era::Modern => Work::Bound(Box::pin(work)),
            Era::Legacy => Work::Detached(Detached::new(work, self.edge, relay.clone())),
        };
        let questions = self.session.map(|session| Arc::clone(&session.live().questions));
        // Clients of earlier versions may stumble over an event without data.
        let resumable = self.session.filter(|_| self.version == ProtocolVersion::V2025_11_25);
        let resumable = resumable.map(|session| Resumable {
            session: Arc::clone(session),
            tasks: self.edge.calls.clone(),
        });
        Reply::Pending(Pending { answer, relay, questions, resumable })
    }

    /// Puts a call on record that is refused.
    async fn refuse(&self, tool: String, told: Told<'_>) {
        let (edge, context, body) = (self.edge, self.context, self.body);
        let who = Who { session: self.session, client: self.client.as_ref() };
        let refusing = Refusing { edge, context, body, version: Some(self.version), who };
        refusing.record(Some(self.id.json()), self.params, tool, told).await;
    }
}

/// What a request is measured by that is no call and ends so.
pub(super) fn labels(
    context: &RequestContext,
    version: ProtocolVersion,
    error: Option<ErrorCode>,
) -> CallLabels {
    let over_socket = context.caller.auth == AuthKind::Socket;
    CallLabels { entrance: Entrance::Mcp(version), over_socket, error }
}

/// The code for it in the legacy era (2025-11-25, server/resources).
const RESOURCE_NOT_FOUND: i64 = -32002;

/// A tool call, with as many rounds as the server needs of a legacy client.
async fn call_in_rounds(
    edge: &Arc<Edge>,
    call: ToolCall,
    relay: Option<&Arc<Relay>>,
    era: Era,
) -> CallAnswer {
    if era == Era::Modern || relay.is_none_or(|relay| !relay.wishes().abilities.any()) {
        return edge.router.call(call, relay.cloned()).await;
    }
    let mut id = Some(call.id);
    // Each leg is a call of its own in the ledger, also one that cannot be made.
    let mut next = |params: Option<Bytes>| {
        let id = id.take().unwrap_or_else(crate::edge::door::new_id);
        ToolCall { id, params, ..call.clone() }
    };
    let leg = |params: Option<Bytes>| edge.router.call(next(params), relay.cloned());
    let params = call.params.clone();
    match Box::pin(rounds::run(params, relay, |answer: &CallAnswer| &answer.result, leg)).await {
        End::Answer(answer) => answer,
        End::NoInput(problem) => {
            let call = next(call.params.clone());
            Box::pin(edge.router.unanswered(call, problem)).await
        }
    }
}

/// Why there is nothing of this name, for people.
pub(super) fn not_found(what: &str, name: &str, why: &NotFound) -> String {
    let name = cut_after(name, 200);
    match why {
        NotFound::Unknown { nearest } => {
            format!("there is no {what} `{name}`{}", did_you_mean(nearest))
        }
        NotFound::Ambiguous { candidates } => {
            format!("several servers have a {what} `{name}`; say which: {}", candidates.join(", "))
        }
        NotFound::Collision { servers } => {
            let servers: Vec<String> = servers.iter().map(|name| format!("`{name}`")).collect();
            format!(
                "the {what} `{name}` is offered by {}; with `naming: bare` none of them is exposed",
                servers.join(" and ")
            )
        }
        NotFound::Held { server } => {
            format!("the {what} `{name}` of server `{server}` waits for approval")
        }
    }
}
