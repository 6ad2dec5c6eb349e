//! The words of the circuit breaker: what others store, show and count of it.
//!
//! Changes when a state or a reason is added. How states follow each other is `policy`'s.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ServerName, Timestamp, ToolName, TraceId};

/// How a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Attempts go through.
    #[default]
    Closed,
    /// Attempts are refused until a time.
    Open,
    /// A few attempts go through to see whether the server is back.
    HalfOpen,
    /// An operator refuses all attempts.
    ForcedOpen,
    /// An operator lets all attempts through, whatever comes of them.
    ForcedClosed,
}

impl BreakerState {
    /// Every state, in the order they are shown.
    pub const ALL: [Self; 5] =
        [Self::Closed, Self::Open, Self::HalfOpen, Self::ForcedOpen, Self::ForcedClosed];

    /// The name in the database, the API, the metrics and the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedOpen => "forced_open",
            Self::ForcedClosed => "forced_closed",
        }
    }

    /// Reads a state's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// Why a breaker changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransitionReason {
    /// As many failures in a row as `circuit_breaker_threshold`.
    Failures,
    /// Too large a part of the last calls failed.
    FailureRate,
    /// Too large a part of the last calls was slow.
    SlowCalls,
    /// The open period is over, and an attempt came.
    Timer,
    /// Enough probes were answered.
    ProbeSucceeded,
    /// A probe failed.
    ProbeFailed,
    /// A probe did not report in time.
    ProbeLeaseExpired,
    /// An operator said so.
    Forced,
    /// The time an operator gave is over.
    ForcedUntilOver,
    /// An operator let it begin anew.
    Reset,
    /// The server is another thing now: its address, program or credentials changed, or it was
    /// enabled again.
    Changed,
    /// The router was started again and its probes with the process that made them are gone.
    Restored,
}

impl TransitionReason {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::Failures,
        Self::FailureRate,
        Self::SlowCalls,
        Self::Timer,
        Self::ProbeSucceeded,
        Self::ProbeFailed,
        Self::ProbeLeaseExpired,
        Self::Forced,
        Self::ForcedUntilOver,
        Self::Reset,
        Self::Changed,
        Self::Restored,
    ];

    /// The name in the database, the API and the metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::FailureRate => "failure_rate",
            Self::SlowCalls => "slow_calls",
            Self::Timer => "timer",
            Self::ProbeSucceeded => "probe_succeeded",
            Self::ProbeFailed => "probe_failed",
            Self::ProbeLeaseExpired => "probe_lease_expired",
            Self::Forced => "forced",
            Self::ForcedUntilOver => "forced_until_over",
            Self::Reset => "reset",
            Self::Changed => "changed",
            Self::Restored => "restored",
        }
    }

    /// Reads a reason's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// What of a breaker survives the process: wall-clock times, because the monotonic clock does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BreakerRecord {
    /// The state.
    pub state: BreakerState,
    /// Counted failures in a row.
    pub failures: u32,
    /// Openings since it was last closed by success.
    pub trips: u32,
    /// Counts transitions.
    pub generation: u64,
    /// When the open or forced state began.
    pub opened_at: Option<Timestamp>,
    /// How long that state is to last; `None` where it does not end by itself.
    pub open_for: Option<Duration>,
    /// When an attempt failed last.
    pub last_failure_at: Option<Timestamp>,
    /// Why it is in this state; `None` where it was never in another.
    pub reason: Option<TransitionReason>,
}

impl BreakerRecord {
    /// When the state is over; `None` where it does not end by itself.
    #[must_use]
    pub fn ends_at(&self) -> Option<Timestamp> {
        Some(self.opened_at?.plus(self.open_for?))
    }
}

/// One stored breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerRow {
    /// Whose breaker.
    pub server: ServerName,
    /// The tool, where breakers are for single tools.
    pub tool: Option<ToolName>,
    /// Its condition.
    pub record: BreakerRecord,
    /// The last counted failure in words, without secrets.
    pub last_error: Option<String>,
}

/// One transition in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerEvent {
    /// Place in the history; zero until it is stored.
    pub id: i64,
    /// Whose breaker.
    pub server: ServerName,
    /// The tool, where breakers are for single tools.
    pub tool: Option<ToolName>,
    /// When.
    pub at: Timestamp,
    /// The state before.
    pub from: BreakerState,
    /// The state after.
    pub to: BreakerState,
    /// Why.
    pub reason: TransitionReason,
    /// Failures in a row at that moment.
    pub failures: u32,
    /// Openings since it was last closed by success.
    pub trips: u32,
    /// How long the new state is to last, where that is known.
    pub open_for: Option<Duration>,
    /// The failure that caused it, in words, without secrets.
    pub error: Option<String>,
    /// Who did it, when a person did.
    pub actor: Option<String>,
    /// What that person gave as the reason.
    pub note: Option<String>,
    /// The trace of the call whose failure caused it; for the log, and not stored.
    pub trace_id: Option<TraceId>,
}
