//! The numbers that hold for one server, and what they come to with the defaults.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Per-server numbers, each optional: the server's own, else the file's `defaults`, else ours.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Knobs {
    /// One attempt's time limit.
    pub timeout: Option<Duration>,
    /// Time limit for reaching the server.
    pub connect_timeout: Option<Duration>,
    /// The whole call's time limit.
    pub call_deadline: Option<Duration>,
    /// Retries after the first attempt.
    pub retry_attempts: Option<u32>,
    /// First delay between attempts.
    pub retry_delay: Option<Duration>,
    /// Longest delay between attempts.
    pub retry_max_delay: Option<Duration>,
    /// Which failures are retried.
    pub retry_mode: Option<RetryMode>,
    /// How much of the traffic may be retries.
    pub retry_budget: Option<RetryBudget>,
    /// Consecutive failures that open the breaker.
    pub circuit_breaker_threshold: Option<u32>,
    /// How long an open breaker refuses at first.
    pub circuit_breaker_timeout: Option<Duration>,
    /// The longest it refuses, when it opens again and again.
    pub circuit_breaker_timeout_max: Option<Duration>,
    /// Probes at a time in half-open.
    pub half_open_max_calls: Option<u32>,
    /// Answered probes that close it.
    pub half_open_successes: Option<u32>,
    /// How long a probe may take to report.
    pub half_open_lease: Option<Duration>,
    /// The span over which the failure rate is taken.
    pub breaker_window: Option<Duration>,
    /// The failure rate that opens it.
    pub breaker_window_rate: Option<f64>,
    /// Attempts in the span below which no rate is taken.
    pub breaker_min_calls: Option<u32>,
    /// An attempt that took this long was slow.
    pub slow_call: Option<Duration>,
    /// The rate of slow attempts that opens it.
    pub slow_call_rate: Option<f64>,
    /// What has a breaker of its own.
    pub breaker_scope: Option<BreakerScope>,
    /// Whether a JSON-RPC error ends a row of failures.
    pub tool_error_resets: Option<bool>,
    /// Whether a 4xx counts as a failure.
    pub count_http_4xx: Option<bool>,
    /// What is sent as a probe.
    pub breaker_probe: Option<BreakerProbe>,
    /// How delays are spread.
    pub retry_jitter: Option<RetryJitter>,
    /// Whether timeouts are retried.
    pub retry_timeouts: Option<RetryTimeouts>,
    /// Whether a 503 says that the call was not run.
    pub unavailable_is_refusal: Option<bool>,
    /// Calls in flight.
    pub max_concurrency: Option<u32>,
    /// Largest answer in bytes.
    pub max_response_size: Option<u64>,
    /// Events that may come before an answer.
    pub max_events: Option<u32>,
    /// Longest silence of an answer that has begun.
    pub stall_timeout: Option<Duration>,
    /// Sessions at a server that is isolated.
    pub max_sessions: Option<u32>,
    /// How long such a session may be unused.
    pub session_idle_timeout: Option<Duration>,
}

impl Knobs {
    /// These, and where they are silent those of `defaults`.
    #[must_use]
    pub fn or(&self, defaults: &Self) -> Self {
        Self {
            timeout: self.timeout.or(defaults.timeout),
            connect_timeout: self.connect_timeout.or(defaults.connect_timeout),
            call_deadline: self.call_deadline.or(defaults.call_deadline),
            retry_attempts: self.retry_attempts.or(defaults.retry_attempts),
            retry_delay: self.retry_delay.or(defaults.retry_delay),
            retry_max_delay: self.retry_max_delay.or(defaults.retry_max_delay),
            retry_mode: self.retry_mode.or(defaults.retry_mode),
            retry_budget: self.retry_budget.or(defaults.retry_budget),
            circuit_breaker_threshold: self
                .circuit_breaker_threshold
                .or(defaults.circuit_breaker_threshold),
            circuit_breaker_timeout: self
                .circuit_breaker_timeout
                .or(defaults.circuit_breaker_timeout),
            circuit_breaker_timeout_max: self
                .circuit_breaker_timeout_max
                .or(defaults.circuit_breaker_timeout_max),
            half_open_max_calls: self.half_open_max_calls.or(defaults.half_open_max_calls),
            half_open_successes: self.half_open_successes.or(defaults.half_open_successes),
            half_open_lease: self.half_open_lease.or(defaults.half_open_lease),
            breaker_window: self.breaker_window.or(defaults.breaker_window),
            breaker_window_rate: self.breaker_window_rate.or(defaults.breaker_window_rate),
            breaker_min_calls: self.breaker_min_calls.or(defaults.breaker_min_calls),
            slow_call: self.slow_call.or(defaults.slow_call),
            slow_call_rate: self.slow_call_rate.or(defaults.slow_call_rate),
            breaker_scope: self.breaker_scope.or(defaults.breaker_scope),
            tool_error_resets: self.tool_error_resets.or(defaults.tool_error_resets),
            count_http_4xx: self.count_http_4xx.or(defaults.count_http_4xx),
            breaker_probe: self.breaker_probe.or(defaults.breaker_probe),
            retry_jitter: self.retry_jitter.or(defaults.retry_jitter),
            retry_timeouts: self.retry_timeouts.or(defaults.retry_timeouts),
            unavailable_is_refusal: self.unavailable_is_refusal.or(defaults.unavailable_is_refusal),
            max_concurrency: self.max_concurrency.or(defaults.max_concurrency),
            max_response_size: self.max_response_size.or(defaults.max_response_size),
            max_events: self.max_events.or(defaults.max_events),
            stall_timeout: self.stall_timeout.or(defaults.stall_timeout),
            max_sessions: self.max_sessions.or(defaults.max_sessions),
            session_idle_timeout: self.session_idle_timeout.or(defaults.session_idle_timeout),
        }
    }
}

/// [`Knobs`] with every question answered.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerSettings {
    /// One attempt's time limit.
    pub timeout: Duration,
    /// Time limit for reaching the server.
    pub connect_timeout: Duration,
    /// The whole call's time limit.
    pub call_deadline: Duration,
    /// Whether somebody chose that limit; else it follows from the other numbers.
    pub call_deadline_is_chosen: bool,
    /// When a failed attempt is repeated.
    pub retry: RetrySettings,
    /// When attempts are not made at all.
    pub breaker: BreakerSettings,
    /// Whether a 503 says that the call was not run; else it may have been.
    pub unavailable_is_refusal: bool,
    /// Calls in flight.
    pub max_concurrency: u32,
    /// Largest answer in bytes.
    pub max_response_size: u64,
    /// Events that may come before an answer over HTTP.
    pub max_events: u32,
    /// Longest silence of an answer that has begun; `None`: only `timeout` bounds it.
    pub stall_timeout: Option<Duration>,
    /// Sessions at a server with [`SessionMode::Isolated`](super::SessionMode::Isolated).
    pub max_sessions: u32,
    /// How long such a session may be unused before it is closed.
    pub session_idle_timeout: Duration,
}

/// How many events may come before an answer: one in each millisecond of the longest call that the
/// defaults allow. Progress that people or models can follow is a thousand times slower.
const MAX_EVENTS: u32 = 600_000;

/// No call may take longer, whatever its attempts and delays add up to.
const LONGEST_CALL: Duration = Duration::from_secs(600);

impl ServerSettings {
    /// Fills what `knobs` leaves open with the built-in defaults.
    #[must_use]
    pub fn resolve(knobs: &Knobs) -> Self {
        let timeout = knobs.timeout.unwrap_or(Duration::from_secs(30));
        let retry = RetrySettings::resolve(knobs);
        Self {
            timeout,
            connect_timeout: knobs.connect_timeout.unwrap_or(Duration::from_secs(5)),
            call_deadline: knobs.call_deadline.unwrap_or_else(|| retry.longest_call(timeout)),
            call_deadline_is_chosen: knobs.call_deadline.is_some(),
            retry,
            breaker: BreakerSettings::resolve(knobs),
            unavailable_is_refusal: knobs.unavailable_is_refusal.unwrap_or(false),
            max_concurrency: knobs.max_concurrency.unwrap_or(64),
            max_response_size: knobs.max_response_size.unwrap_or(16 * 1024 * 1024),
            max_events: knobs.max_events.unwrap_or(MAX_EVENTS),
            stall_timeout: knobs.stall_timeout,
            max_sessions: knobs.max_sessions.unwrap_or(100),
            session_idle_timeout: knobs.session_idle_timeout.unwrap_or(Duration::from_secs(600)),
        }
    }

    /// The time limit of a whole call whose attempts may take `timeout` each. A limit that nobody
    /// chose makes room for a tool that was given more time than the others of its server.
    #[must_use]
    pub fn call_deadline_for(&self, timeout: Duration) -> Duration {
        match self.call_deadline_is_chosen {
            true => self.call_deadline,
            false => self.call_deadline.max(self.retry.longest_call(timeout)),
        }
    }
}

/// When a failed attempt is repeated.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrySettings {
    /// Which failures are retried.
    pub mode: RetryMode,
    /// Retries after the first attempt.
    pub attempts: u32,
    /// First delay between attempts; it doubles with each further one.
    pub delay: Duration,
    /// Longest delay between attempts.
    pub max_delay: Duration,
    /// How delays are spread.
    pub jitter: RetryJitter,
    /// Whether timeouts are retried.
    pub timeouts: RetryTimeouts,
    /// How much of the traffic may be retries.
    pub budget: RetryBudget,
}

impl RetrySettings {
    fn resolve(knobs: &Knobs) -> Self {
        Self {
            mode: knobs.retry_mode.unwrap_or_default(),
            attempts: knobs.retry_attempts.unwrap_or(3),
            delay: knobs.retry_delay.unwrap_or(Duration::from_secs(1)),
            max_delay: knobs.retry_max_delay.unwrap_or(Duration::from_secs(30)),
            jitter: knobs.retry_jitter.unwrap_or_default(),
            timeouts: knobs.retry_timeouts.unwrap_or_default(),
            budget: knobs.retry_budget.unwrap_or_default(),
        }
    }

    /// All attempts and delays, with a cap.
    fn longest_call(&self, timeout: Duration) -> Duration {
        timeout
            .saturating_mul(self.attempts.saturating_add(1))
            .saturating_add(self.max_delay.saturating_mul(self.attempts))
            .min(LONGEST_CALL)
    }
}

/// When attempts at a server are not made at all.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerSettings {
    /// Counted failures in a row that open the breaker.
    pub threshold: u32,
    /// How long it refuses when it opens for the first time.
    pub open_for: Duration,
    /// How long at most; the time doubles with every opening in a row. Not below `open_for`.
    pub open_for_max: Duration,
    /// Probes at a time in half-open.
    pub probes: u32,
    /// Answered probes that close it.
    pub successes: u32,
    /// How long a probe may take to report; `None` for its call's deadline and a second.
    pub lease: Option<Duration>,
    /// The span over which failures and slow attempts are counted; `None` to count no rate.
    pub window: Option<Duration>,
    /// The part of failures in the span that opens it.
    pub window_rate: f64,
    /// Attempts in the span below which no rate is taken.
    pub min_calls: u32,
    /// An attempt that took this long was slow; `None` to count none.
    pub slow_call: Option<Duration>,
    /// The part of slow attempts in the span that opens it.
    pub slow_call_rate: f64,
    /// What has a breaker of its own.
    pub scope: BreakerScope,
    /// Whether a JSON-RPC error ends a row of failures; else it says nothing while closed.
    pub tool_error_resets: bool,
    /// Whether a 4xx is a failure; else it says nothing.
    pub count_http_4xx: bool,
    /// What is sent as a probe.
    pub probe: BreakerProbe,
}

/// The span of the slow-call rate where only `slow_call` is set.
const DEFAULT_WINDOW: Duration = Duration::from_secs(30);

impl BreakerSettings {
    fn resolve(knobs: &Knobs) -> Self {
        let open_for = knobs.circuit_breaker_timeout.unwrap_or(Duration::from_secs(30));
        Self {
            threshold: knobs.circuit_breaker_threshold.unwrap_or(5),
            open_for,
            open_for_max: knobs.circuit_breaker_timeout_max.unwrap_or(open_for).max(open_for),
            probes: knobs.half_open_max_calls.unwrap_or(1),
            successes: knobs.half_open_successes.unwrap_or(1),
            lease: knobs.half_open_lease,
            window: knobs.breaker_window.or_else(|| knobs.slow_call.map(|_| DEFAULT_WINDOW)),
            // A span that is there for slow calls alone says nothing of failures.
            window_rate: match knobs.breaker_window {
                Some(_) => knobs.breaker_window_rate.unwrap_or(0.5),
                None => f64::INFINITY,
            },
            min_calls: knobs.breaker_min_calls.unwrap_or(20),
            slow_call: knobs.slow_call,
            slow_call_rate: knobs.slow_call_rate.unwrap_or(1.0),
            scope: knobs.breaker_scope.unwrap_or_default(),
            tool_error_resets: knobs.tool_error_resets.unwrap_or(false),
            // The predecessor counted every error that was not the tool's.
            count_http_4xx: knobs
                .count_http_4xx
                .unwrap_or(knobs.retry_mode == Some(RetryMode::Seed)),
            probe: knobs.breaker_probe.unwrap_or_default(),
        }
    }
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self::resolve(&Knobs::default())
    }
}

/// What has a breaker of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BreakerScope {
    /// The server.
    #[default]
    Server,
    /// The server for failures to reach it, each of its tools for timeouts and broken answers.
    Tool,
}

/// What is sent to see whether a server is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BreakerProbe {
    /// A caller's call.
    #[default]
    Call,
    /// A sign of life is asked for first, and the call follows when it came.
    Active,
}

/// How delays between attempts are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RetryJitter {
    /// A quarter to both sides.
    #[default]
    Equal,
    /// Anywhere between nothing and the delay.
    Full,
}

/// Whether an attempt that timed out is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryTimeouts {
    /// It is not.
    #[default]
    Never,
    /// For tools that are declared safe to repeat.
    ReplaySafe,
}

/// Which failures are retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RetryMode {
    /// What provably did not run, and what may have run only for tools declared safe to repeat.
    #[default]
    Safe,
    /// Every error that is neither timeout nor tool error, as the predecessor did.
    Seed,
    /// Nothing.
    Off,
}

/// How much of a server's traffic may be retries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryBudget {
    /// Retries per call, on average.
    pub ratio: f64,
    /// Retries per second that are always allowed.
    pub min_per_second: f64,
    /// The most retries that can be saved up.
    pub cap: f64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_second: 3.0, cap: 100.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_deadline_covers_every_attempt_and_has_a_cap() {
        let knobs = Knobs {
            timeout: Some(Duration::from_secs(10)),
            retry_attempts: Some(1),
            retry_max_delay: Some(Duration::from_secs(5)),
            ..Knobs::default()
        };
        assert_eq!(ServerSettings::resolve(&knobs).call_deadline, Duration::from_secs(25));
        let knobs = Knobs { timeout: Some(Duration::from_secs(3600)), ..Knobs::default() };
        assert_eq!(ServerSettings::resolve(&knobs).call_deadline, LONGEST_CALL);
    }
    #[test]
    fn a_deadline_that_nobody_chose_makes_room_for_a_slow_tool() {
        let knobs = Knobs {
            timeout: Some(Duration::from_secs(1)),
            retry_attempts: Some(0),
            ..Knobs::default()
        };
        let settings = ServerSettings::resolve(&knobs);
        assert_eq!(settings.call_deadline_for(Duration::from_secs(60)), Duration::from_secs(60));
        assert_eq!(settings.call_deadline_for(Duration::from_millis(1)), Duration::from_secs(1));
        let chosen = Knobs { call_deadline: Some(Duration::from_secs(5)), ..knobs };
        let settings = ServerSettings::resolve(&chosen);
        assert_eq!(settings.call_deadline_for(Duration::from_secs(60)), Duration::from_secs(5));
    }
}
