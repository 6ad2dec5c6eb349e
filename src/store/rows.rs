//! What the tables hold, in domain types; shared by all backends.
//!
//! Changes when a table gains something that callers must see. Knows no SQL.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::Serialize;

use super::StoreError;
use super::chain::Hash;
use crate::error::ErrorCode;
use crate::model::{
    BreakerState, CallId, ClientInfo, Entrance, Failure, Kept, Outcome, ProtocolVersion, Scopes,
    ServerName, ServerSource, ServerSpec, Timestamp, ToolName, ToolStatus, TraceId, ViewName,
};

/// One server of the registry.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerRow {
    /// Its name.
    pub name: ServerName,
    /// What was said about it, with sealed values opened.
    pub spec: ServerSpec,
    /// Why some values of `spec` are sealed still, and what to do; nobody may connect with them.
    pub sealed_problem: Option<String>,
    /// Whether the file or the request that brought it wants it enabled.
    pub enabled: bool,
    /// What an operator said since; wins over `enabled` and lasts over reloads.
    pub enabled_override: Option<bool>,
    /// Gone from the file it came from: disabled whatever the other two say.
    pub retired: bool,
    /// Where it came from.
    pub source: ServerSource,
    /// Increased with every change of `spec`, `enabled` or `source`.
    pub revision: i64,
    /// When it was first stored.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// What the last discovery found; `None` before the first.
    pub discovery: Option<DiscoveryRow>,
}

impl ServerRow {
    /// Whether calls are routed to it, all things considered.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        !self.retired && self.enabled_override.unwrap_or(self.enabled)
    }
}

/// A server to be put into the registry.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerUpsert {
    /// Its name.
    pub name: ServerName,
    /// What is said about it.
    pub spec: ServerSpec,
    /// Whether it shall be enabled, unless an operator said otherwise.
    pub enabled: bool,
    /// Where it comes from.
    pub source: ServerSource,
}

/// What an upsert did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upserted {
    /// It was not there before.
    Created,
    /// It was there and is different now.
    Changed,
    /// It was there just so; nothing was written.
    Unchanged,
}

/// What a discovery found, or why it failed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiscoveryRow {
    /// The protocol version in use, as written in messages.
    pub protocol_version: Option<String>,
    /// Which way of speaking was found to work; tried first next time.
    pub dialect: Option<String>,
    /// The server's `serverInfo`, raw JSON.
    pub server_info: Option<String>,
    /// The server's `instructions`.
    pub instructions: Option<String>,
    /// When a discovery last succeeded.
    pub ok_at: Option<Timestamp>,
    /// Why the last one failed; `None` when it did not.
    pub error: Option<String>,
    /// When it failed.
    pub error_at: Option<Timestamp>,
}

/// One tool of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolRow {
    /// The server.
    pub server: ServerName,
    /// The server's name for it.
    pub tool: ToolName,
    /// SHA-256 that identifies the definition.
    pub hash: [u8; 32],
    /// The definition, byte for byte as received.
    pub definition: Bytes,
    /// Where it stands.
    pub status: ToolStatus,
    /// Its place in the server's list.
    pub position: u32,
    /// When it was first seen; storing a known tool again does not change it.
    pub first_seen_at: Timestamp,
    /// When it was last seen.
    pub last_seen_at: Timestamp,
}

/// What happened to a tool's definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryKind {
    /// The tool is new.
    Added,
    /// Its definition changed.
    Changed,
    /// It is gone from the server's list.
    Removed,
    /// Somebody approved a changed definition.
    Approved,
}

impl HistoryKind {
    const ALL: [Self; 4] = [Self::Added, Self::Changed, Self::Removed, Self::Approved];

    /// The name in the database, the API and the metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::Approved => "approved",
        }
    }

    /// Reads a kind's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// One change of one tool's definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// The server.
    pub server: ServerName,
    /// The tool.
    pub tool: ToolName,
    /// The definition before.
    pub old_hash: Option<[u8; 32]>,
    /// The definition after.
    pub new_hash: Option<[u8; 32]>,
    /// What happened.
    pub kind: HistoryKind,
    /// When.
    pub at: Timestamp,
    /// Who did it; `None` when the server did.
    pub by: Option<String>,
}

/// What a server offers beside tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OfferKind {
    /// A prompt, by its name.
    Prompt,
    /// A resource, by its address.
    Resource,
    /// A template of addresses.
    Template,
}

impl OfferKind {
    const ALL: [Self; 3] = [Self::Prompt, Self::Resource, Self::Template];

    /// The name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Resource => "resource",
            Self::Template => "template",
        }
    }

    /// Reads a kind's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// One prompt, resource or template of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferRow {
    /// The server.
    pub server: ServerName,
    /// What it is.
    pub kind: OfferKind,
    /// What identifies it at its server.
    pub key: String,
    /// The definition, byte for byte as received.
    pub definition: Bytes,
}

/// One key of a caller. The key itself is known to its owner only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// Identifies it for good; may be shown.
    pub id: String,
    /// The name in the ledger; free again after revocation.
    pub name: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// What it allows.
    pub scopes: Scopes,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to about a minute.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// One legacy session, kept so that clients go on after a restart without a new handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// SHA-256 of the session id.
    pub hash: [u8; 32],
    /// Name of the caller it belongs to.
    pub caller: String,
    /// The view it was opened at, to which it belongs.
    pub view: Option<ViewName>,
    /// The version that was negotiated.
    pub protocol_version: ProtocolVersion,
    /// What the client said of itself.
    pub client: ClientInfo,
    /// The client's capabilities, raw JSON.
    pub capabilities: Option<String>,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was last used.
    pub last_seen_at: Timestamp,
}

/// One administrative act or change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// When.
    pub at: Timestamp,
    /// Who: a caller's name, or `router`.
    pub actor: String,
    /// What, for example `server.added`.
    pub kind: String,
    /// To what, for example a server's name.
    pub subject: String,
    /// The rest, a JSON object.
    pub detail: String,
}

/// One call in the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct CallRow {
    /// Place in the order of commits; given by the store, 0 before.
    pub seq: i64,
    /// The call's id.
    pub id: CallId,
    /// When it came in.
    pub started_at: Timestamp,
    /// Who called.
    pub caller: Arc<str>,
    /// Hash of the legacy session it belongs to.
    pub session: Option<Arc<str>>,
    /// What the client said of itself.
    pub client: Option<Arc<ClientInfo>>,
    /// Through which door it came.
    pub entrance: Entrance,
    /// At which view it came in.
    pub view: Option<ViewName>,
    /// The tool as exposed, or as asked for when it is unknown.
    pub tool: Arc<str>,
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
    /// The failure in words, redacted.
    pub error: Option<String>,
    /// What kind of failure the last attempt met.
    pub failure: Option<Failure>,
    /// HTTP status of our answer.
    pub http_status: u16,
    /// Attempts made.
    pub attempts: u32,
    /// Each of them, in their order. Pages leave it out, and calls from before it was kept have none.
    pub attempt_list: Vec<AttemptRow>,
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
    /// What is kept of the arguments. Pages leave it out.
    pub arguments: Option<String>,
    /// What is kept of the result. Pages leave it out.
    pub result: Option<String>,
    /// Keyed digest of the arguments as received.
    pub arguments_digest: Option<Hash>,
    /// Keyed digest of the result as received.
    pub result_digest: Option<Hash>,
    /// Its link in the chain; given by the store. `None` before, and for calls from before there was
    /// a chain.
    pub hash: Option<Hash>,
    /// The trace it belongs to.
    pub trace_id: Option<TraceId>,
    /// The address of its connection; `None` over the admin socket.
    pub remote: Option<IpAddr>,
    /// What was to be kept of its arguments and its result.
    pub levels: Option<Kept>,
    /// How its last attempt found the circuit breaker, or what refused it there.
    pub breaker: Option<BreakerState>,
}

impl CallRow {
    /// A call of which nothing more is known.
    #[must_use]
    pub fn new(id: CallId, started_at: Timestamp, entrance: Entrance, outcome: Outcome) -> Self {
        Self {
            seq: 0,
            id,
            started_at,
            caller: "".into(),
            session: None,
            client: None,
            entrance,
            view: None,
            tool: "".into(),
            upstream_tool: None,
            server: None,
            definition_hash: None,
            outcome,
            error_code: None,
            error: None,
            failure: None,
            http_status: 0,
            attempts: 0,
            attempt_list: Vec::new(),
            queue: Duration::ZERO,
            upstream: Duration::ZERO,
            total: Duration::ZERO,
            request_bytes: 0,
            response_bytes: 0,
            arguments: None,
            result: None,
            arguments_digest: None,
            result_digest: None,
            hash: None,
            trace_id: None,
            remote: None,
            levels: None,
            breaker: None,
        }
    }
}

/// The kind of the entry with which a router begins to write a ledger.
pub const AUDIT_STARTED: &str = "audit.started";
/// The kind of the entry with which it ends in order: everything before is on record.
pub const AUDIT_STOPPED: &str = "audit.stopped";
/// The kind of the entry with which rows come back that waited outside the database.
pub const AUDIT_SPOOLED: &str = "audit.spooled";
/// The kind of the entry that says that a call is about to be sent.
pub const CALL_STARTED: &str = "call.started";

/// What a router that was cut off left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// When the last call that is on record came in, or the last entry was made.
    pub last: Option<Timestamp>,
    /// The beginnings of calls of which no end is on record.
    pub begun: Vec<EntryRow>,
}

/// What is on record beside calls: administrative acts, changes of definitions, transitions of
/// breakers, what happened to the ledger itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRow {
    /// Place in the order of commits; given by the store, 0 before.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// What, for example `server.added`.
    pub kind: String,
    /// Who: a caller's name, or `router`.
    pub actor: String,
    /// To what, for example a server's name.
    pub subject: String,
    /// The rest, a JSON object.
    pub detail: String,
}

/// What adding to the ledger did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The number of the last row.
    pub last: i64,
    /// How long it took until there was nothing left but to sync.
    pub took: Duration,
}

/// One attempt of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// When it began, since the call began.
    pub began: Duration,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// What kind of failure it met.
    pub failure: Option<Failure>,
    /// The failure in words, redacted.
    pub error: Option<String>,
    /// HTTP status the server gave, where it gave one.
    pub http_status: Option<u16>,
    /// Whether it was let through to see whether the server is back.
    pub probe: bool,
}

/// Which calls a page shall show; every field that is set must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditFilter {
    /// Calls to this server.
    pub server: Option<String>,
    /// Calls of this tool, by exposed or upstream name.
    pub tool: Option<String>,
    /// Calls that ended so.
    pub outcome: Option<Outcome>,
    /// Calls by this caller.
    pub caller: Option<String>,
    /// Calls in this session.
    pub session: Option<String>,
    /// Calls that failed with this code.
    pub error_code: Option<String>,
    /// Calls that came in at this view.
    pub view: Option<String>,
    /// Calls of this trace.
    pub trace: Option<TraceId>,
    /// Calls that came in at or after this.
    pub since: Option<Timestamp>,
    /// Calls that came in before this.
    pub until: Option<Timestamp>,
    /// Calls with these words, "phrases" and prefix* in error, arguments or result, as they were
    /// kept; case is ignored.
    pub text: Option<String>,
}

/// How much of each call a [`Stretch`] brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The call alone.
    Call,
    /// With its attempts.
    Attempts,
    /// With its attempts and payloads.
    Payloads,
}

/// Part of the ledger, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch<T> {
    /// The calls in it that the filter admits.
    pub calls: Vec<T>,
    /// Up to here, this included, there are no others; the next stretch goes on after it.
    pub reached: i64,
}

/// What calls are summed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsBy {
    /// The server.
    Server,
    /// The tool as exposed; calls of what no server has are one.
    Tool,
    /// The caller.
    Caller,
}

/// The span that each sum is of, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsPer {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// All of the time asked for.
    Total,
}

/// What is to be summed.
#[derive(Debug, Clone)]
pub struct StatsQuery {
    /// By what.
    pub by: StatsBy,
    /// Over what.
    pub per: StatsPer,
    /// Of which calls: server, tool, caller and outcome count, the rest is left out of account.
    pub filter: AuditFilter,
    /// Of calls that came in at or after this, down to the minute.
    pub since: Timestamp,
    /// Of calls that came in before this, up to the minute.
    pub until: Timestamp,
    /// How many answers took no longer than each of these is counted besides.
    pub within: Vec<Duration>,
}

/// The calls of one name in one span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatsRow {
    /// When the span begins.
    pub start: Timestamp,
    /// Server, tool or caller; `None` where calls have none.
    pub name: Option<String>,
    /// How many.
    pub calls: u64,
    /// How many did not end as `ok`.
    pub errors: u64,
    /// Half of them took no longer, within 5 %.
    pub p50: Option<Duration>,
    /// 95 of 100 took no longer, within 5 %.
    pub p95: Option<Duration>,
    /// How many ended so, in the order of [`Outcome::ALL`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// Those of the refused ones whose code [is a fault](ErrorCode::is_fault) of server or router.
    pub faults: u64,
    /// How many of those that ended as `ok` or `tool_error` took no longer than each of
    /// [`StatsQuery::within`], within 5 % of that time.
    pub within: Vec<u64>,
    /// Bytes of their requests.
    pub request_bytes: u64,
    /// Bytes of their answers.
    pub response_bytes: u64,
}

/// Sums, by begin of the span, then the most calls first.
#[derive(Debug, Clone)]
pub struct Stats {
    /// From when on, in whole minutes.
    pub since: Timestamp,
    /// Until when, in whole minutes.
    pub until: Timestamp,
    /// The sums.
    pub rows: Vec<StatsRow>,
    /// How far the index was. What came later was summed from the ledger itself.
    pub index: IndexState,
}

/// How far the ledger's index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct IndexState {
    /// Everything up to this number is in it; 0 when there is none yet.
    pub seq: i64,
    /// Numbers of the ledger after that.
    pub behind: i64,
}

/// Where the next page begins. Opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor(pub(super) i64);

impl Cursor {
    /// Reads a cursor's printed form.
    ///
    /// # Errors
    /// [`StoreError::BadCursor`] for anything that [`Cursor`] does not print.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| <[u8; 8]>::try_from(bytes).ok())
            .map(i64::from_be_bytes)
            .filter(|seq| *seq > 0)
            .map(Self)
            .ok_or_else(|| StoreError::BadCursor { cursor: text.chars().take(64).collect() })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0.to_be_bytes()))
    }
}

/// Some rows, and where the rest begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<Cursor>,
    /// How far the index was; what it does not have was looked for in the ledger itself.
    pub index: IndexState,
}

/// Sizes of the database's files, write-ahead logs included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreSize {
    /// Registry, catalogue and callers.
    pub state: FileSize,
    /// The ledger.
    pub audit: FileSize,
    /// What finds rows of the ledger.
    pub index: FileSize,
}

impl StoreSize {
    /// The ledger's file.
    pub const LEDGER: &str = "audit.db";

    /// Each file by its name in the data folder.
    #[must_use]
    pub const fn files(self) -> [(&'static str, FileSize); 3] {
        [("state.db", self.state), (Self::LEDGER, self.audit), ("audit-index.db", self.index)]
    }
}

/// Size of one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileSize {
    /// The database file.
    pub database_bytes: u64,
    /// Its write-ahead log.
    pub wal_bytes: u64,
}

impl FileSize {
    /// File and log.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.database_bytes.saturating_add(self.wal_bytes)
    }
}
