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
    /// How long an open breaker refuses.
    pub circuit_breaker_timeout: Option<Duration>,
    /// Calls in flight.
    pub max_concurrency: Option<u32>,
    /// Largest answer in bytes.
    pub max_response_size: Option<u64>,
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
            max_concurrency: self.max_concurrency.or(defaults.max_concurrency),
            max_response_size: self.max_response_size.or(defaults.max_response_size),
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
    /// Retries after the first attempt.
    pub retry_attempts: u32,
    /// First delay between attempts.
    pub retry_delay: Duration,
    /// Longest delay between attempts.
    pub retry_max_delay: Duration,
    /// Which failures are retried.
    pub retry_mode: RetryMode,
    /// How much of the traffic may be retries.
    pub retry_budget: RetryBudget,
    /// Consecutive failures that open the breaker.
    pub circuit_breaker_threshold: u32,
    /// How long an open breaker refuses.
    pub circuit_breaker_timeout: Duration,
    /// Calls in flight.
    pub max_concurrency: u32,
    /// Largest answer in bytes.
    pub max_response_size: u64,
    /// Sessions at a server with [`SessionMode::Isolated`](super::SessionMode::Isolated).
    pub max_sessions: u32,
    /// How long such a session may be unused before it is closed.
    pub session_idle_timeout: Duration,
}

/// No call may take longer, whatever its attempts and delays add up to.
const LONGEST_CALL: Duration = Duration::from_secs(600);

impl ServerSettings {
    /// Fills what `knobs` leaves open with the built-in defaults.
    #[must_use]
    pub fn resolve(knobs: &Knobs) -> Self {
        let timeout = knobs.timeout.unwrap_or(Duration::from_secs(30));
        let retry_attempts = knobs.retry_attempts.unwrap_or(3);
        let retry_max_delay = knobs.retry_max_delay.unwrap_or(Duration::from_secs(30));
        let longest = timeout
            .saturating_mul(retry_attempts.saturating_add(1))
            .saturating_add(retry_max_delay.saturating_mul(retry_attempts))
            .min(LONGEST_CALL);
        Self {
            timeout,
            connect_timeout: knobs.connect_timeout.unwrap_or(Duration::from_secs(5)),
            call_deadline: knobs.call_deadline.unwrap_or(longest),
            retry_attempts,
            retry_delay: knobs.retry_delay.unwrap_or(Duration::from_secs(1)),
            retry_max_delay,
            retry_mode: knobs.retry_mode.unwrap_or_default(),
            retry_budget: knobs.retry_budget.unwrap_or_default(),
            circuit_breaker_threshold: knobs.circuit_breaker_threshold.unwrap_or(5),
            circuit_breaker_timeout: knobs
                .circuit_breaker_timeout
                .unwrap_or(Duration::from_secs(30)),
            max_concurrency: knobs.max_concurrency.unwrap_or(64),
            max_response_size: knobs.max_response_size.unwrap_or(16 * 1024 * 1024),
            max_sessions: knobs.max_sessions.unwrap_or(100),
            session_idle_timeout: knobs.session_idle_timeout.unwrap_or(Duration::from_secs(600)),
        }
    }
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
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_second: 3.0 }
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
}
