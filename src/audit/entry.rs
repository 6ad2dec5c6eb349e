//! [`AuditEntry`]: one call as the call path hands it over, and what of it is held and stored.
//!
//! Changes when the ledger keeps something new of a call. Building and
//! moving one allocates nothing; queueing it copies small payloads, once.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::summary;
use crate::error::ErrorCode;
use crate::model::{
    ArgumentsLevel, BreakerState, CallId, CallerClass, ClientInfo, Entrance, ExposedName, Failure,
    Kept, Outcome, ResultsLevel, ServerName, Timestamp, ToolName, TraceId, ViewName, cut_after,
};
use crate::redact::{Payload, Pointers, Redactor, Strictness};
use crate::store::{AttemptRow, CallRow, Digester};

/// Characters kept of a tool's name that nobody knows.
const ASKED_NAME: usize = 128;
/// Bytes kept of an error's text.
const ERROR_TEXT: usize = 2 * 1024;
/// A payload larger than this is copied up to it when it is queued, so that a large buffer does not
/// stay in memory for the sake of the 64 KiB that are kept of it.
const LARGEST_HELD: usize = 256 * 1024;
/// Arguments and result of no more than this together are copied when they are queued.
const LARGEST_COPIED: usize = 16 * 1024;

/// The tool a call was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolLabel {
    /// A tool of the catalogue.
    Exposed(ExposedName),
    /// What was asked for and is not in the catalogue.
    Asked(Arc<str>),
}

impl ToolLabel {
    /// A name that is not in the catalogue, cut to 128 characters.
    #[must_use]
    pub fn asked(name: &str) -> Self {
        Self::Asked(cut_after(name, ASKED_NAME).into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Exposed(name) => name.as_str(),
            Self::Asked(name) => name,
        }
    }
}

/// One attempt, as the call path hands it over.
#[derive(Debug, Clone)]
pub struct AttemptEntry {
    /// When it began, since the call began.
    pub began: Duration,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// What kind of failure it met.
    pub failure: Option<Failure>,
    /// The failure in words, not yet redacted.
    pub error: Option<String>,
    /// HTTP status the server gave, where it gave one.
    pub http_status: Option<u16>,
    /// Whether it was let through to see whether the server is back.
    pub probe: bool,
}

impl AttemptEntry {
    fn into_row(self, redactor: &Redactor) -> AttemptRow {
        AttemptRow {
            began: self.began,
            took: self.took,
            outcome: self.outcome,
            failure: self.failure,
            error: self.error.map(|error| redactor.text(&error, ERROR_TEXT)),
            http_status: self.http_status,
            probe: self.probe,
        }
    }
}

/// The attempts of one call, in their order: the first in place, because most calls have one.
#[derive(Debug, Clone, Default)]
pub struct Attempts {
    first: Option<AttemptEntry>,
    rest: Vec<AttemptEntry>,
}

impl Attempts {
    /// Adds the next one.
    pub fn push(&mut self, attempt: AttemptEntry) {
        if self.first.is_none() {
            self.first = Some(attempt);
        } else {
            self.rest.push(attempt);
        }
    }

    /// Each of them, the first first.
    pub fn iter(&self) -> impl Iterator<Item = &AttemptEntry> {
        self.first.iter().chain(&self.rest)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        let rest = u32::try_from(self.rest.len()).unwrap_or(u32::MAX);
        u32::from(self.first.is_some()).saturating_add(rest)
    }

    /// Whether nothing was tried.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

/// One call, finished or refused.
#[derive(Debug, Clone)]
pub struct AuditEntry {
    /// The call's id.
    pub id: CallId,
    /// When it came in.
    pub started_at: Timestamp,
    /// Who called.
    pub caller: Arc<str>,
    /// What kind of caller, for the metrics alone.
    pub class: CallerClass,
    /// Hash of the legacy session it belongs to.
    pub session: Option<Arc<str>>,
    /// What the client said of itself.
    pub client: Option<Arc<ClientInfo>>,
    /// Through which door it came.
    pub entrance: Entrance,
    /// At which view it came in.
    pub view: Option<ViewName>,
    /// The tool as exposed or as asked for.
    pub tool: ToolLabel,
    /// The tool as its server names it.
    pub upstream_tool: Option<ToolName>,
    /// The server.
    pub server: Option<ServerName>,
    /// The definition in force.
    pub definition_hash: Option<[u8; 32]>,
    /// How it ended.
    pub outcome: Outcome,
    /// Our code for a failure.
    pub error_code: Option<ErrorCode>,
    /// The failure in words, not yet redacted.
    pub error: Option<String>,
    /// What kind of failure the last attempt met.
    pub failure: Option<Failure>,
    /// HTTP status of our answer.
    pub http_status: u16,
    /// Attempts made.
    pub attempts: u32,
    /// Each of them.
    pub attempt_list: Attempts,
    /// Time spent waiting for a free place.
    pub queue: Duration,
    /// Time spent waiting for the server, over all attempts.
    pub upstream: Duration,
    /// Time from request to answer.
    pub total: Duration,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the answer.
    pub response_bytes: u64,
    /// The arguments as received, whatever the level: what is not kept is dropped in the queue.
    pub arguments: Option<Bytes>,
    /// Bytes of them, also when only their beginning is held.
    pub arguments_bytes: u64,
    /// The `result` as received, whatever the level.
    pub result: Option<Bytes>,
    /// What is kept of arguments and result.
    pub levels: Kept,
    /// Places in them that are never kept.
    pub pointers: Option<Arc<Pointers>>,
    /// The trace it belongs to.
    pub trace_id: Option<TraceId>,
    /// The address of its connection.
    pub remote: Option<IpAddr>,
    /// How its last attempt found the circuit breaker, or what refused it there.
    pub breaker: Option<BreakerState>,
}

impl AuditEntry {
    /// Lets go of what will not be stored, and gives the bytes that stay held.
    pub(super) fn slim(&mut self) -> usize {
        let (arguments, results) = self.levels;
        self.arguments_bytes = self.arguments.as_ref().map_or(0, |all| all.len() as u64);
        if arguments == ArgumentsLevel::None {
            self.arguments = None;
        }
        match results {
            ResultsLevel::None => self.result = None,
            ResultsLevel::Summary => {
                self.result = self.result.take().filter(|all| all.len() <= summary::LARGEST_READ);
            }
            ResultsLevel::Full | ResultsLevel::Raw => {}
        }
        let errors = self.attempt_list.iter().filter_map(|attempt| attempt.error.as_ref());
        let errors: usize = errors.map(String::len).sum();
        hold(&mut self.arguments, &mut self.result) + errors
    }

    /// The row to store. The costly part, done by the writer.
    pub(super) fn into_row(self, redactor: &Redactor, digester: &Digester) -> CallRow {
        let (arguments_level, results_level) = self.levels;
        let digest = |payload: &Option<Bytes>, length: u64| {
            payload.as_deref().map(|start| digester.digest(start, length))
        };
        let arguments_digest = digest(&self.arguments, self.arguments_bytes);
        let result_digest = digest(&self.result, self.response_bytes);
        let pointers = self.pointers.as_deref();
        let kept = |start: &Bytes, whole, pointers, strictness| {
            redactor.payload(Payload { start, whole, pointers }, strictness)
        };
        let (whole, named) = (self.arguments_bytes, pointers.map(Pointers::arguments));
        let arguments = self.arguments.and_then(|arguments| match arguments_level {
            ArgumentsLevel::None => None,
            ArgumentsLevel::Redacted | ArgumentsLevel::Full => {
                Some(kept(&arguments, whole, named, Strictness::Everything))
            }
            ArgumentsLevel::Raw => Some(kept(&arguments, whole, named, Strictness::KnownSecrets)),
        });
        let error = self.error.map(|error| redactor.text(&error, ERROR_TEXT));
        let result = match results_level {
            ResultsLevel::None => None,
            // A call that was refused has no result to summarise.
            ResultsLevel::Summary => {
                (self.result.is_some() || self.response_bytes > 0).then(|| {
                    let clean = |name: &str| redactor.text(name, ERROR_TEXT);
                    let bytes = self.response_bytes;
                    summary::summarize(self.result.as_deref(), bytes, clean, |line| {
                        match (pointers, &error) {
                            // What is named in the text was taken out of it there, and not here.
                            (Some(_), error) => error.clone().unwrap_or_default(),
                            (None, _) => redactor.text(line, ERROR_TEXT),
                        }
                    })
                })
            }
            ResultsLevel::Full | ResultsLevel::Raw => {
                let (whole, named) = (self.response_bytes, pointers.map(Pointers::results));
                let strictness = match results_level {
                    ResultsLevel::Raw => Strictness::KnownSecrets,
                    _ => Strictness::Everything,
                };
                self.result.map(|result| kept(&result, whole, named, strictness))
            }
        };
        // Nor is a server's name one, if it is of no tool.
        let asked = matches!(self.tool, ToolLabel::Asked(_));
        let made_up =
            |name: &ServerName| asked && redactor.text(name.as_str(), ERROR_TEXT) != name.as_str();
        let server = self.server.filter(|name| !made_up(name));
        let tool = match self.tool {
            ToolLabel::Exposed(name) => name.as_str().into(),
            // A caller can put anything here, also a secret.
            ToolLabel::Asked(name) => redactor.text(&name, ERROR_TEXT).into(),
        };
        CallRow {
            seq: 0,
            id: self.id,
            started_at: self.started_at,
            caller: self.caller,
            session: self.session,
            client: self.client.map(|client| redact_client(client, redactor)),
            entrance: self.entrance,
            view: self.view,
            tool,
            upstream_tool: self.upstream_tool,
            server,
            definition_hash: self.definition_hash,
            outcome: self.outcome,
            error_code: self.error_code,
            error,
            failure: self.failure,
            http_status: self.http_status,
            attempts: self.attempts,
            attempt_list: {
                let Attempts { first, rest } = self.attempt_list;
                first.into_iter().chain(rest).map(|attempt| attempt.into_row(redactor)).collect()
            },
            queue: self.queue,
            upstream: self.upstream,
            total: self.total,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            arguments,
            result,
            arguments_digest,
            result_digest,
            hash: None,
            trace_id: self.trace_id,
            remote: self.remote,
            levels: Some(self.levels),
            breaker: self.breaker,
        }
    }
}

/// Holds no more of large payloads than will be read, and small ones in a buffer of their own: as
/// received, a few bytes keep the whole buffer of their connection in memory.
fn hold(one: &mut Option<Bytes>, other: &mut Option<Bytes>) -> usize {
    let length = |payload: &Option<Bytes>| payload.as_ref().map_or(0, Bytes::len);
    let both = length(one) + length(other);
    if (1..=LARGEST_COPIED).contains(&both) {
        let mut copy = BytesMut::with_capacity(both);
        for payload in [one, other].into_iter().flatten() {
            copy.extend_from_slice(payload);
            *payload = copy.split().freeze();
        }
        return both;
    }
    for payload in [&mut *one, &mut *other].into_iter().flatten() {
        if let Some(head) = payload.get(..LARGEST_HELD)
            && payload.len() > LARGEST_HELD
        {
            *payload = Bytes::copy_from_slice(head);
        }
    }
    length(one) + length(other)
}

/// A client can call itself anything, also what it should keep to itself.
fn redact_client(client: Arc<ClientInfo>, redactor: &Redactor) -> Arc<ClientInfo> {
    let name = redactor.text(&client.name, client.name.len());
    let version = redactor.text(&client.version, client.version.len());
    if name == client.name && version == client.version {
        client
    } else {
        Arc::new(ClientInfo { name, version })
    }
}
