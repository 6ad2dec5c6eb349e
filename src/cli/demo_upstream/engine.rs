//! [`Engine`]: an MCP message in, one [`Reply`] out, for both eras and both transports.
//!
//! Changes when the protocol does. Carries out what concerns content (errors, delays); how a
//! connection is cut is the transports' business.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::value::RawValue;

use super::faults::Fault;
use super::message::{self, Envelope, LEGACY, MODERN, Params};
use super::stats::Stats;
use super::tools::{self, Tool, ToolAnswer};
use super::{Eras, Options};

/// An id that no client of ours ever uses.
const FOREIGN_ID: &str = r#""nobody-asked-for-this""#;
/// The only version with batches.
const BATCH_VERSION: &str = "2025-03-26";
/// When so many are open, the table starts anew: nobody tracks which is the oldest.
const SESSION_LIMIT: usize = 100_000;

/// The headers that MCP gives a meaning to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct McpHeaders<'a> {
    pub(super) version: Option<&'a str>,
    pub(super) method: Option<&'a str>,
    pub(super) name: Option<&'a str>,
    pub(super) session: Option<&'a str>,
    /// What [`Tool::Region`] wants mirrored.
    pub(super) region: Option<&'a str>,
}

/// Where a message came from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Via<'a> {
    Http(McpHeaders<'a>),
    Stdio,
}

/// What the transport has to do.
#[derive(Debug)]
pub(super) enum Reply {
    /// Send this JSON; on HTTP with this status and perhaps a new session's id.
    Json { status: u16, text: String, session: Option<String> },
    /// Nothing to say: 202 on HTTP.
    Accepted,
    /// A bare HTTP status.
    Status(u16),
    /// Close the connection without an answer.
    Cut,
    /// Begin this answer and close the connection half-way.
    CutMidBody(String),
    /// Never answer.
    Hang,
    /// Answer with what is not JSON.
    Garbage,
    /// End the upstream.
    Exit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Era {
    Legacy,
    Modern,
}

/// The protocol side of one upstream.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) options: Options,
    pub(super) stats: Arc<Stats>,
    /// Open sessions of the legacy era, with how often `counter` ran in each.
    sessions: Mutex<HashMap<String, u64>>,
    random: SystemRandom,
}

impl Engine {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            stats: Arc::new(Stats::default()),
            sessions: Mutex::new(HashMap::new()),
            random: SystemRandom::new(),
        }
    }

    /// How many sessions are open.
    pub(super) fn sessions(&self) -> usize {
        self.sessions.lock().len()
    }

    /// Forgets every session, as a restart would.
    pub(super) fn forget_sessions(&self) {
        self.sessions.lock().clear();
    }

    /// Ends one session; whether it was there.
    pub(super) fn end_session(&self, id: &str) -> bool {
        self.sessions.lock().remove(id).is_some()
    }

    /// Answers a message or, in 2025-03-26, a batch. Dropping the future abandons a call that is
    /// being delayed.
    pub(super) async fn answer(&self, body: &[u8], via: Via<'_>) -> Reply {
        let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
        if first != Some(&b'[') {
            return self.answer_one(body, via).await;
        }
        let batches = match via {
            Via::Http(headers) => headers.version.is_none_or(|version| version == BATCH_VERSION),
            Via::Stdio => true,
        };
        if !batches || self.options.eras == Eras::Modern {
            return bad("null", message::INVALID_REQUEST, "batches are for 2025-03-26 only");
        }
        match serde_json::from_slice::<Vec<&RawValue>>(body) {
            Ok(messages) if !messages.is_empty() => self.answer_batch(&messages, via).await,
            Ok(_) => bad("null", message::INVALID_REQUEST, "a batch must not be empty"),
            Err(error) => bad("null", message::PARSE_ERROR, &error.to_string()),
        }
    }

    /// One after the other; a refusal or a fault on the way stands for the whole batch.
    async fn answer_batch(&self, messages: &[&RawValue], via: Via<'_>) -> Reply {
        let mut texts = Vec::new();
        for message in messages {
            match self.answer_one(message.get().as_bytes(), via).await {
                Reply::Json { session: Some(_), .. } => {
                    return bad("null", message::INVALID_REQUEST, "initialize travels alone");
                }
                Reply::Json { status: 200, text, .. } => texts.push(text),
                Reply::Accepted => {}
                other => return other,
            }
        }
        if texts.is_empty() {
            return Reply::Accepted;
        }
        rpc(200, format!("[{}]", texts.join(",")))
    }

    async fn answer_one(&self, body: &[u8], via: Via<'_>) -> Reply {
        self.stats.count_request();
        let envelope = match Envelope::parse(body) {
            Ok(envelope) => envelope,
            Err(error) if error.is_data() => {
                return bad("null", message::INVALID_REQUEST, "one request object is expected");
            }
            Err(error) => return bad("null", message::PARSE_ERROR, &error.to_string()),
        };
        if envelope.is_response() {
            return Reply::Accepted;
        }
        let id = envelope.id.map_or("null", |id| id.get());
        let Some(method) = envelope.method.as_deref() else {
            return bad(id, message::INVALID_REQUEST, "a request has a method");
        };
        let params = match envelope.params() {
            Ok(params) => params,
            Err(error) => return bad(id, message::INVALID_PARAMS, &error.to_string()),
        };
        let era = match self.era(id, method, &params, via) {
            Ok(era) => era,
            Err(reply) => return reply,
        };
        if envelope.id.is_none() {
            return Reply::Accepted;
        }
        match self.options.faults.strike(method) {
            Some(Fault::HttpStatus(status)) => Reply::Status(status),
            Some(Fault::Exit) => Reply::Exit,
            Some(Fault::RpcError) => {
                rpc(200, message::error(id, message::INTERNAL_ERROR, "failed on purpose", ""))
            }
            fault => self.dispatch(id, method, &params, via, era, fault).await,
        }
    }

    async fn dispatch(
        &self,
        id: &str,
        method: &str,
        params: &Params<'_>,
        via: Via<'_>,
        era: Era,
        fault: Option<Fault>,
    ) -> Reply {
        let id = if fault == Some(Fault::WrongId) { FOREIGN_ID } else { id };
        let modern = era == Era::Modern;
        let mut session = None;
        let mut delay = Duration::ZERO;
        let text = match (method, era) {
            ("initialize", Era::Legacy) => {
                session = self.new_session();
                let asked = params.protocol_version.as_deref();
                let version = LEGACY.into_iter().find(|known| asked == Some(known));
                let version = version.unwrap_or(LEGACY[0]);
                message::result(id, &message::initialize_result(version), false)
            }
            ("ping", Era::Legacy) => message::result(id, "{}", false),
            ("server/discover", Era::Modern) => {
                message::result(id, &message::discover_result(self.supported()), true)
            }
            ("tools/list", _) => match self.list(params.cursor.as_deref(), era) {
                Some(result) => message::result(id, &result, modern),
                None => message::error(id, message::INVALID_PARAMS, "unknown cursor", ""),
            },
            ("tools/call", _) => match self.call(params, via, fault) {
                ToolAnswer::Result(result, wait) => {
                    delay = wait;
                    message::result(id, &result, modern)
                }
                ToolAnswer::Error(code, text) => message::error(id, code, &text, ""),
            },
            _ => {
                let status = if modern { 404 } else { 200 };
                let text = message::error(id, message::METHOD_NOT_FOUND, "method not found", "");
                return rpc(status, text);
            }
        };
        if let Some(Fault::Slow(more)) = fault {
            delay = delay.saturating_add(more);
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match fault {
            Some(Fault::Cut) => Reply::Cut,
            Some(Fault::CutMidBody) => Reply::CutMidBody(text),
            Some(Fault::Hang) => Reply::Hang,
            Some(Fault::Garbage) => Reply::Garbage,
            _ => Reply::Json { status: 200, text, session },
        }
    }

    fn call(&self, params: &Params<'_>, via: Via<'_>, fault: Option<Fault>) -> ToolAnswer {
        let Some(name) = params.name.as_deref() else {
            return ToolAnswer::Error(
                message::INVALID_PARAMS,
                "a tool's name is needed".to_owned(),
            );
        };
        let Some(tool) = Tool::by_name(name).or_else(|| self.extra_tool(name)) else {
            return ToolAnswer::Error(message::INVALID_PARAMS, format!("Unknown tool: {name}"));
        };
        let answer = tool.run(params.arguments, &self.stats);
        if fault == Some(Fault::ToolError) {
            return ToolAnswer::Result(tools::failed_on_purpose(), Duration::ZERO);
        }
        match self.count_in_session(tool, via) {
            Some(count) => tools::count_result(count),
            None => answer,
        }
    }

    /// How often `counter` ran in its legacy session, when it counts so.
    fn count_in_session(&self, tool: Tool, via: Via<'_>) -> Option<u64> {
        let Via::Http(McpHeaders { session: Some(session), .. }) = via else { return None };
        if tool != Tool::Counter || !self.options.count_in_session {
            return None;
        }
        let mut sessions = self.sessions.lock();
        let count = sessions.get_mut(session)?;
        *count = count.saturating_add(1);
        Some(*count)
    }

    fn extra_tool(&self, name: &str) -> Option<Tool> {
        let number: usize = name.strip_prefix("extra_")?.parse().ok()?;
        (number < self.options.extra_tools).then_some(Tool::Echo)
    }

    /// One page of `tools/list`; nothing when the cursor is none of ours.
    fn list(&self, cursor: Option<&str>, era: Era) -> Option<String> {
        let total = Tool::COUNT.saturating_add(self.options.extra_tools);
        let start: usize = match cursor {
            None => 0,
            Some(text) => text.strip_prefix("from-")?.parse().ok().filter(|at| *at < total)?,
        };
        let size = if self.options.page_size == 0 { total } else { self.options.page_size };
        let end = start.saturating_add(size).min(total);
        let mut text = String::from(r#"{"tools":["#);
        for at in start..end {
            if at > start {
                text.push(',');
            }
            if let Some(tool) = Tool::ALL.get(at) {
                text.push_str(tool.definition());
            } else {
                let number = at.saturating_sub(Tool::COUNT);
                let _infallible = write!(
                    text,
                    r#"{{"name":"extra_{number}","description":"Returns the text it is given; number {number} of many.","inputSchema":{{"type":"object","properties":{{"text":{{"type":"string"}}}},"required":["text"]}},"annotations":{{"readOnlyHint":true}}}}"#
                );
            }
        }
        text.push(']');
        if end < total {
            let _infallible = write!(text, r#","nextCursor":"from-{end}""#);
        }
        if era == Era::Modern {
            text.push_str(r#","ttlMs":60000,"cacheScope":"public""#);
        }
        text.push('}');
        Some(text)
    }

    fn supported(&self) -> &'static [&'static str] {
        match self.options.eras {
            Eras::Both => &[MODERN, LEGACY[0], LEGACY[1], LEGACY[2]],
            Eras::Modern => &[MODERN],
            Eras::Legacy => &LEGACY,
        }
    }

    fn new_session(&self) -> Option<String> {
        if self.options.stateless {
            return None;
        }
        let mut bytes = [0_u8; 18];
        self.random.fill(&mut bytes).ok()?;
        let id = URL_SAFE_NO_PAD.encode(bytes);
        let mut sessions = self.sessions.lock();
        if sessions.len() >= SESSION_LIMIT {
            sessions.clear();
        }
        sessions.insert(id.clone(), 0);
        Some(id)
    }

    /// The era of a request, after the checks that belong to it.
    fn era(&self, id: &str, method: &str, params: &Params<'_>, via: Via<'_>) -> Result<Era, Reply> {
        let in_meta = params.meta.as_ref().and_then(|meta| meta.protocol_version.as_deref());
        let eras = self.options.eras;
        let headers = match via {
            Via::Http(headers) => headers,
            Via::Stdio => {
                return match (in_meta, eras) {
                    (None, Eras::Both | Eras::Legacy) | (Some(_), Eras::Legacy) => Ok(Era::Legacy),
                    (None, Eras::Modern) => {
                        Err(bad(id, message::INVALID_PARAMS, "_meta with the version is needed"))
                    }
                    (Some(version), Eras::Both | Eras::Modern) => {
                        self.modern(id, method, params, version, None)
                    }
                };
            }
        };
        if method == "initialize" && eras != Eras::Modern {
            return Ok(Era::Legacy);
        }
        match (headers.version, eras) {
            (Some(version), Eras::Both) if LEGACY.contains(&version) => {
                self.legacy(id, headers.session)
            }
            (Some(version), Eras::Both | Eras::Modern) => {
                self.modern(id, method, params, version, Some(headers))
            }
            (Some(version), Eras::Legacy) if !LEGACY.contains(&version) => {
                let text = format!("Bad Request: Unsupported protocol version: {version}");
                Err(bad(id, message::SESSION_ERROR, &text))
            }
            (None, Eras::Both) if in_meta.is_none() => self.legacy(id, headers.session),
            (None, Eras::Both | Eras::Modern) => {
                Err(bad(id, message::HEADER_MISMATCH, "the header MCP-Protocol-Version is missing"))
            }
            (Some(_) | None, Eras::Legacy) => self.legacy(id, headers.session),
        }
    }

    fn legacy(&self, id: &str, session: Option<&str>) -> Result<Era, Reply> {
        if self.options.stateless {
            return Ok(Era::Legacy);
        }
        match session {
            None => {
                Err(bad(id, message::SESSION_ERROR, "Bad Request: No valid session ID provided"))
            }
            Some(session) if self.sessions.lock().contains_key(session) => Ok(Era::Legacy),
            Some(_) => Err(rpc(404, message::error(id, -32001, "Session not found", ""))),
        }
    }

    /// The checks of 2026-07-28; `headers` are absent on stdio.
    fn modern(
        &self,
        id: &str,
        method: &str,
        params: &Params<'_>,
        version: &str,
        headers: Option<McpHeaders<'_>>,
    ) -> Result<Era, Reply> {
        if version != MODERN {
            let data = message::unsupported_data(self.supported(), version);
            let text = "Unsupported protocol version";
            return Err(rpc(400, message::error(id, message::UNSUPPORTED_VERSION, text, &data)));
        }
        let meta = params.meta.as_ref();
        let in_meta = meta.and_then(|meta| meta.protocol_version.as_deref());
        // Notifications carry no `_meta` of this kind.
        if id != "null" {
            let Some(in_meta) = in_meta else {
                let text = "_meta lacks io.modelcontextprotocol/protocolVersion";
                return Err(bad(id, message::INVALID_PARAMS, text));
            };
            if meta.and_then(|meta| meta.client_capabilities).is_none() {
                let text = "_meta lacks io.modelcontextprotocol/clientCapabilities";
                return Err(bad(id, message::INVALID_PARAMS, text));
            }
            if in_meta != version {
                let text = "MCP-Protocol-Version differs from the version in _meta";
                return Err(bad(id, message::HEADER_MISMATCH, text));
            }
        }
        let Some(headers) = headers else { return Ok(Era::Modern) };
        if headers.method != Some(method) {
            return Err(bad(id, message::HEADER_MISMATCH, "Mcp-Method differs from the method"));
        }
        if method == "tools/call" {
            let named = headers.name.and_then(decode_sentinel);
            if named.is_none() || named.as_deref() != params.name.as_deref() {
                return Err(bad(id, message::HEADER_MISMATCH, "Mcp-Name differs from the name"));
            }
            if params.name.as_deref() == Some(Tool::Region.name()) {
                let argument = params.arguments.and_then(|raw| tools::region(raw.get()));
                if headers.region.and_then(decode_sentinel) != argument {
                    let text = "Mcp-Param-Region differs from the argument region";
                    return Err(bad(id, message::HEADER_MISMATCH, text));
                }
            }
        }
        Ok(Era::Modern)
    }
}

/// A header value, decoded when it is wrapped as `=?base64?…?=`.
fn decode_sentinel(value: &str) -> Option<Cow<'_, str>> {
    match value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        None => Some(Cow::Borrowed(value)),
        Some(encoded) => String::from_utf8(STANDARD.decode(encoded).ok()?).ok().map(Cow::Owned),
    }
}

fn rpc(status: u16, text: String) -> Reply {
    Reply::Json { status, text, session: None }
}

fn bad(id: &str, code: i64, text: &str) -> Reply {
    rpc(400, message::error(id, code, text, ""))
}
