//! [`ErrorCode`]: every failure of our own, in one table, with its renderings. No logic.
//!
//! Changes when a failure gets a name. A code never changes its meaning; a snapshot test lists all.

use serde::{Serialize, Serializer};

/// A failure of our own, as callers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The tool itself reported an error (`isError: true`).
    Tool,
    /// The upstream's JSON-RPC error, relayed.
    Rpc,
    /// Our clock ran out.
    Timeout,
    /// The upstream could not be reached, or the connection broke.
    Connection,
    /// The breaker is open.
    CircuitOpen,
    /// No such tool.
    ToolNotFound,
    /// No such server.
    ServerNotFound,
    /// The server is disabled.
    ServerDisabled,
    /// Too many calls in flight and waiting.
    Overloaded,
    /// The upstream's answer is larger than the limit.
    ResponseTooLarge,
    /// The upstream's answer is not MCP.
    Protocol,
    /// The caller may not do this.
    Permission,
    /// The caller cancelled or went away.
    Cancelled,
    /// The ledger cannot take the call.
    AuditUnavailable,
    /// The request is malformed.
    InvalidRequest,
    /// No key, or a wrong one.
    Authentication,
    /// Host or Origin is not allowed.
    ForbiddenOrigin,
    /// The request is larger than the limit.
    RequestTooLarge,
    /// No such route or thing.
    NotFound,
    /// The route does not know this method.
    MethodNotAllowed,
    /// It contradicts what is there.
    Conflict,
    /// A limit of the router is reached.
    LimitReached,
    /// The router is ending and takes no new requests.
    ShuttingDown,
    /// The server needs input that its client cannot or did not give.
    InputRequired,
    /// A fault of ours.
    Unexpected,
}

impl ErrorCode {
    /// Every code, in the order of the table.
    pub const ALL: [Self; 25] = [
        Self::Tool,
        Self::Rpc,
        Self::Timeout,
        Self::Connection,
        Self::CircuitOpen,
        Self::ToolNotFound,
        Self::ServerNotFound,
        Self::ServerDisabled,
        Self::Overloaded,
        Self::ResponseTooLarge,
        Self::Protocol,
        Self::Permission,
        Self::Cancelled,
        Self::AuditUnavailable,
        Self::InvalidRequest,
        Self::Authentication,
        Self::ForbiddenOrigin,
        Self::RequestTooLarge,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::LimitReached,
        Self::ShuttingDown,
        Self::InputRequired,
        Self::Unexpected,
    ];

    /// Whether a call that ends with it failed through a fault of the server or the router, and not
    /// through one of its caller or as its tool said: what counts against `slo`.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        match self {
            Self::Rpc
            | Self::Timeout
            | Self::Connection
            | Self::CircuitOpen
            | Self::Overloaded
            | Self::ResponseTooLarge
            | Self::Protocol
            | Self::AuditUnavailable
            | Self::LimitReached
            | Self::ShuttingDown
            | Self::Unexpected => true,
            Self::Tool
            | Self::ToolNotFound
            | Self::ServerNotFound
            | Self::ServerDisabled
            | Self::Permission
            | Self::Cancelled
            | Self::InvalidRequest
            | Self::Authentication
            | Self::ForbiddenOrigin
            | Self::RequestTooLarge
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::Conflict
            | Self::InputRequired => false,
        }
    }

    /// The stable name: `error_code` in answers, the ledger and the metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tool => "MCPToolError",
            Self::Rpc => "MCPRpcError",
            Self::Timeout => "MCPTimeoutError",
            Self::Connection => "MCPConnectionError",
            Self::CircuitOpen => "MCPCircuitOpenError",
            Self::ToolNotFound => "MCPToolNotFoundError",
            Self::ServerNotFound => "MCPServerNotFoundError",
            Self::ServerDisabled => "MCPServerDisabledError",
            Self::Overloaded => "MCPOverloadedError",
            Self::ResponseTooLarge => "MCPResponseTooLargeError",
            Self::Protocol => "MCPProtocolError",
            Self::Permission => "MCPPermissionError",
            Self::Cancelled => "MCPCancelledError",
            Self::AuditUnavailable => "MCPAuditUnavailableError",
            Self::InvalidRequest => "MCPInvalidRequestError",
            Self::Authentication => "MCPAuthenticationError",
            Self::ForbiddenOrigin => "MCPForbiddenOriginError",
            Self::RequestTooLarge => "MCPRequestTooLargeError",
            Self::NotFound => "MCPNotFoundError",
            Self::MethodNotAllowed => "MCPMethodNotAllowedError",
            Self::Conflict => "MCPConflictError",
            Self::LimitReached => "MCPLimitReachedError",
            Self::ShuttingDown => "MCPShuttingDownError",
            Self::InputRequired => "MCPInputRequiredError",
            Self::Unexpected => "UnexpectedError",
        }
    }

    /// Status on `/mcp/call` and the REST routes. 200 means: it was tried, the body says
    /// `success: false`.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Tool
            | Self::Rpc
            | Self::Timeout
            | Self::Connection
            | Self::ResponseTooLarge
            | Self::Protocol
            | Self::Cancelled
            | Self::InputRequired => 200,
            Self::InvalidRequest => 400,
            Self::Authentication => 401,
            Self::Permission | Self::ForbiddenOrigin => 403,
            Self::ToolNotFound | Self::ServerNotFound | Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict => 409,
            Self::RequestTooLarge => 413,
            Self::Unexpected => 500,
            Self::CircuitOpen
            | Self::ServerDisabled
            | Self::Overloaded
            | Self::AuditUnavailable
            | Self::LimitReached
            | Self::ShuttingDown => 503,
        }
    }

    /// Code of the JSON-RPC error on `/mcp`: -32602 for what the caller got wrong, else -32603.
    #[must_use]
    pub const fn json_rpc_code(self) -> i64 {
        match self {
            Self::ToolNotFound | Self::ServerNotFound | Self::InvalidRequest => -32602,
            Self::Tool
            | Self::Rpc
            | Self::Timeout
            | Self::Connection
            | Self::CircuitOpen
            | Self::ServerDisabled
            | Self::Overloaded
            | Self::ResponseTooLarge
            | Self::Protocol
            | Self::Permission
            | Self::Cancelled
            | Self::AuditUnavailable
            | Self::Authentication
            | Self::ForbiddenOrigin
            | Self::RequestTooLarge
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::Conflict
            | Self::LimitReached
            | Self::ShuttingDown
            | Self::InputRequired
            | Self::Unexpected => -32603,
        }
    }

    /// A short title for people (RFC 9457 `title`).
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Tool => "the tool reported an error",
            Self::Rpc => "the server answered with an error",
            Self::Timeout => "the call took too long",
            Self::Connection => "the server could not be reached",
            Self::CircuitOpen => "the server's circuit breaker is open",
            Self::ToolNotFound => "unknown tool",
            Self::ServerNotFound => "unknown server",
            Self::ServerDisabled => "the server is disabled",
            Self::Overloaded => "too many calls",
            Self::ResponseTooLarge => "the answer is too large",
            Self::Protocol => "the server's answer is not MCP",
            Self::Permission => "not permitted",
            Self::Cancelled => "the call was cancelled",
            Self::AuditUnavailable => "the ledger cannot take the call",
            Self::InvalidRequest => "malformed request",
            Self::Authentication => "a valid key is needed",
            Self::ForbiddenOrigin => "host or origin not allowed",
            Self::RequestTooLarge => "the request is too large",
            Self::NotFound => "not found",
            Self::MethodNotAllowed => "method not allowed",
            Self::Conflict => "conflict",
            Self::LimitReached => "a limit is reached",
            Self::ShuttingDown => "the router is stopping",
            Self::InputRequired => "the server needs input of the client",
            Self::Unexpected => "internal error",
        }
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
