//! One tool call and what can become of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Caller, CallerTrace, Requester, ServerName, SessionRef, ViewName};

/// Identifies a call everywhere: `x-request-id`, ledger row, log field. A UUIDv7, so time-ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallId(Uuid);

impl CallId {
    /// Wraps a UUID.
    #[must_use]
    pub const fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    /// The 16 bytes as stored.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From the 16 stored bytes.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }

    /// Reads the printed form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }

    /// Writes the printed form into `buffer` and returns it; for places where an allocation counts.
    pub fn encode(self, buffer: &mut [u8; 36]) -> &str {
        self.0.hyphenated().encode_lower(buffer)
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

/// Through which door a call came, and which dialect its answer wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// `POST /mcp`, with the protocol version in force for the request.
    Mcp(super::ProtocolVersion),
    /// `POST /mcp/call`.
    Rest,
}

/// On what a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Via {
    /// The other end of its connection; none on the admin socket.
    pub peer: Option<SocketAddr>,
    /// The version of HTTP it speaks.
    pub http: &'static str,
}

impl Via {
    /// The address it comes from; `None` over the admin socket. Headers that proxies set are not believed.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.peer.map(|peer| peer.ip())
    }
}

impl Default for Via {
    fn default() -> Self {
        Self { peer: None, http: "1.1" }
    }
}

/// The header by which `audit replay` marks the calls that it makes, and the client's name that these have on
/// record, so that they are not made again by the next one.
pub const REPLAY_HEADER: &str = "x-switchyard-replay";
/// See [`REPLAY_HEADER`].
pub const REPLAY_CLIENT: &str = "switchyard audit replay";

/// What a client said of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClientInfo {
    /// Name, cut to 128 characters.
    pub name: String,
    /// Version, cut to 64 characters.
    pub version: String,
}

/// Which tool a caller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolTarget {
    /// The exposed name, or the upstream's own name when it is unique or `server` is given.
    pub tool: String,
    /// The server, when the caller named it.
    pub server: Option<ServerName>,
}

/// A tool call as it enters the router; the same from both doors.
#[derive(Debug, Clone)]
pub struct ToolCall {
    /// The call's id.
    pub id: CallId,
    /// Who calls.
    pub caller: Arc<Caller>,
    /// The legacy session it belongs to, if any.
    pub session: Option<Arc<SessionRef>>,
    /// What a client without a session said of itself in the request.
    pub client: Option<ClientInfo>,
    /// What the client declared it can do, as JSON (modern era only): handed on per request.
    pub client_capabilities: Option<Bytes>,
    /// Through which door it came.
    pub entrance: Entrance,
    /// On what.
    pub via: Via,
    /// At which view it came in: only that view's tools are there for it.
    pub view: Option<ViewName>,
    /// To which trace it belongs, where the caller says so.
    pub trace: Option<Arc<CallerTrace>>,
    /// The id of its JSON-RPC request, as JSON.
    pub request_id: Option<Bytes>,
    /// Which tool.
    pub target: ToolTarget,
    /// The `params` object as received (MCP), or absent (REST).
    pub params: Option<Bytes>,
    /// `arguments` as received: raw JSON, never looked into on the call path.
    pub arguments: Option<Bytes>,
    /// The caller's own bound for the whole call.
    pub deadline: Option<Duration>,
    /// Bytes of the request body.
    pub request_bytes: u64,
}

impl ToolCall {
    /// Who makes it.
    #[must_use]
    pub fn requester(&self) -> Requester<'_> {
        Requester { id: self.id, caller: &self.caller, session: self.session.as_deref() }
    }
}

/// How a call ended, as the ledger and the metrics say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The upstream answered with a result.
    Ok,
    /// The upstream answered with a result that says `isError: true`.
    ToolError,
    /// The upstream answered with a JSON-RPC error.
    RpcError,
    /// Our clock ran out.
    Timeout,
    /// The upstream could not be reached or did not answer properly.
    Unavailable,
    /// We did not try: unknown, disabled, overloaded, not permitted, malformed.
    Refused,
    /// The caller went away or cancelled.
    Cancelled,
    /// The router ended while the call was under way.
    Interrupted,
}

impl Outcome {
    /// Every outcome, in the order they are shown.
    pub const ALL: [Self; 8] = [
        Self::Ok,
        Self::ToolError,
        Self::RpcError,
        Self::Timeout,
        Self::Unavailable,
        Self::Refused,
        Self::Cancelled,
        Self::Interrupted,
    ];

    /// Its place in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name in the database, the API, the metrics and the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ToolError => "tool_error",
            Self::RpcError => "rpc_error",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }

    /// Reads an outcome's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text)
    }
}

/// What kind of failure an attempt met; decides whether a repeat is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No byte of the request left us: DNS, refused, connect timeout, TLS, spawn failure.
    NotSent,
    /// The upstream provably did not run it: 429, unknown session, version or header mismatch.
    Refused,
    /// Bytes left us and then the connection, the child or the answer broke.
    Ambiguous,
    /// Our clock ran out.
    Timeout,
    /// A proper answer that reports an error.
    Answered,
    /// The caller left.
    Cancelled,
}

impl Failure {
    /// The name in the ledger.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Refused => "refused",
            Self::Ambiguous => "ambiguous",
            Self::Timeout => "timeout",
            Self::Answered => "answered",
            Self::Cancelled => "cancelled",
        }
    }

    /// What is known of the tool's execution after this failure.
    #[must_use]
    pub const fn knowledge(self) -> Knowledge {
        match self {
            Self::NotSent => Knowledge::NotSent,
            Self::Refused => Knowledge::Refused,
            Self::Ambiguous | Self::Timeout | Self::Cancelled => Knowledge::Unknown,
            Self::Answered => Knowledge::Executed,
        }
    }
}

/// Whose fault an error is, as far as the server's health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The server's: it is away, or does not answer properly.
    Server,
    /// The request's: the server is up and turned it away with a 3xx or 4xx.
    Request,
    /// Nobody's: it says nothing of the server.
    Nobody,
}

/// What is known of a tool's execution after a failure: `data.outcome` of our own errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Knowledge {
    /// Nothing was sent.
    NotSent,
    /// It was sent and not run.
    Refused,
    /// It may have run.
    Unknown,
    /// It ran.
    Executed,
}

impl Knowledge {
    /// What is known after this and another attempt of the same call: if one may have run it, the
    /// call may have run.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.max(other)
    }

    /// The name in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::Executed => "executed",
        }
    }
}
