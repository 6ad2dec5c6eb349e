//! Plain values that every other module speaks in: names, ids, times, server specifications, calls.
//!
//! Changes when the vocabulary of the product changes. Knows nothing of I/O, clocks, locks or logs:
//! values in, values out.

mod breaker;
mod call;
mod caller;
mod name;
mod nearest;
mod printable;
mod recording;
mod secret;
mod server;
mod session;
mod settings;
mod slo;
mod time;
mod trace;
mod units;
mod version;
mod view;

pub use breaker::{BreakerEvent, BreakerRecord, BreakerRow, BreakerState, TransitionReason};
pub use call::{
    Blame, CallId, ClientInfo, Entrance, Failure, Knowledge, Outcome, REPLAY_CLIENT, REPLAY_HEADER,
    ToolCall, ToolTarget, Via,
};
pub use caller::{AuthKind, Caller, CallerClass, Scope, Scopes};
pub use name::{ExposedName, NameError, ServerName, ToolName, ViewName};
pub use nearest::{did_you_mean, nearest};
pub use printable::{CUT, cut_after, escape_block, escape_json, escape_line};
pub use recording::{Kept, LevelRule, Levels};
pub use secret::Secret;
pub use server::{
    ArgumentsLevel, AuditLevels, NamingMode, OnChange, Replay, ResultsLevel, ServerSource,
    ServerSpec, SessionMode, ToolFilter, ToolOverride, ToolStatus, TransportKind, TransportSpec,
};
pub use session::{Requester, SessionHash, SessionRef, SessionScope};
pub use settings::{
    BreakerProbe, BreakerScope, BreakerSettings, Knobs, RetryBudget, RetryJitter, RetryMode,
    RetrySettings, RetryTimeouts, ServerSettings,
};
pub use slo::{Objective, SLO_WINDOW, SloSpec, Standing};
pub use time::{Timestamp, Uptime};
pub use trace::{
    BAGGAGE, CallerTrace, OutgoingTrace, SpanId, TRACEPARENT, TRACESTATE, TraceContext,
    TraceFields, TraceId,
};
pub use units::{UnitError, format_duration, parse_duration, parse_size};
pub use version::{Dialect, Era, ProtocolVersion};
pub use view::ViewSpec;
