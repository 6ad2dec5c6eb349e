//! Whether a failed attempt is repeated, and when.
//!
//! A repeat must never give a tool's effect twice. So what decides is what is known of the failed
//! attempt ([`Failure`]) and whether the tool was declared safe to run again; how often it may be and
//! how long there is come after. Reasons and the table: `docs/resilience.md`.

use std::time::Duration;

use crate::model::{Failure, RetryJitter, RetryMode, RetrySettings, RetryTimeouts};

/// No delay is shorter, whatever the settings and the dice say: a server that just failed is not
/// helped by being asked again at once.
pub const SHORTEST_DELAY: Duration = Duration::from_millis(100);
/// With less time left no attempt is begun: it would be cut off before it could be answered, and
/// what then is known of it is less than before.
pub const SHORTEST_ATTEMPT: Duration = Duration::from_millis(10);

/// A failed attempt, as far as it matters for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// What is known of it.
    pub failure: Failure,
    /// Whether the same attempt could go better a moment later: `false` for what only a change of
    /// configuration mends.
    pub may_pass: bool,
    /// How long the server wants to be left alone.
    pub retry_after: Option<Duration>,
    /// Attempts made so far.
    pub attempts: u32,
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another attempt after a delay, if the budget has one left.
    Retry {
        /// How long to wait.
        after: Duration,
    },
    /// No further attempt.
    Stop(Suppressed),
}

/// Why a failed attempt is not repeated; the `why` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suppressed {
    /// Nothing is retried here, or nothing of this kind.
    Final,
    /// It may have run, and the tool is not declared safe to repeat.
    Unsafe,
    /// All attempts are used.
    Attempts,
    /// The delay does not fit the deadline.
    Deadline,
    /// Retries are too large a part of the traffic.
    Budget,
    /// The breaker opened meanwhile.
    Breaker,
    /// Too many calls wait for their next attempt already.
    Overload,
    /// The server asked the caller something during the attempt: a repeat would ask again.
    Asked,
    /// The server was changed, disabled or removed meanwhile, or the tool is another.
    Changed,
}

impl Suppressed {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::Final,
        Self::Unsafe,
        Self::Attempts,
        Self::Deadline,
        Self::Budget,
        Self::Breaker,
        Self::Overload,
        Self::Asked,
        Self::Changed,
    ];

    /// The name in the metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Unsafe => "unsafe",
            Self::Attempts => "attempts",
            Self::Deadline => "deadline",
            Self::Budget => "budget",
            Self::Breaker => "breaker",
            Self::Overload => "overload",
            Self::Asked => "asked",
            Self::Changed => "changed",
        }
    }
}

/// Decides after a failed attempt, with `left` of the call's time and `random` from 0 to 1.
///
/// In [`RetryMode::Seed`] everything is retried that is neither a timeout nor an answer, as the
/// predecessor did: also what may have run.
#[must_use]
pub fn decide(
    settings: &RetrySettings,
    failed: Failed,
    replay_safe: bool,
    left: Duration,
    random: f64,
) -> Decision {
    if let Some(why) = forbidden(settings, failed, replay_safe) {
        return Decision::Stop(why);
    }
    if failed.attempts > settings.attempts {
        return Decision::Stop(Suppressed::Attempts);
    }
    let after =
        delay(settings, failed.attempts, random).max(failed.retry_after.unwrap_or_default());
    if after.saturating_add(SHORTEST_ATTEMPT) > left {
        return Decision::Stop(Suppressed::Deadline);
    }
    Decision::Retry { after }
}

/// Why no number of attempts and no time would allow a repeat.
const fn forbidden(
    settings: &RetrySettings,
    failed: Failed,
    replay_safe: bool,
) -> Option<Suppressed> {
    match (settings.mode, failed.failure) {
        (RetryMode::Off, _) | (_, Failure::Answered | Failure::Cancelled) => {
            Some(Suppressed::Final)
        }
        (RetryMode::Seed, Failure::Timeout) => Some(Suppressed::Final),
        (RetryMode::Seed, Failure::NotSent | Failure::Refused | Failure::Ambiguous) => None,
        (RetryMode::Safe, Failure::NotSent | Failure::Refused) => match failed.may_pass {
            true => None,
            false => Some(Suppressed::Final),
        },
        (RetryMode::Safe, Failure::Ambiguous) => match (replay_safe, failed.may_pass) {
            (false, _) => Some(Suppressed::Unsafe),
            (true, true) => None,
            (true, false) => Some(Suppressed::Final),
        },
        (RetryMode::Safe, Failure::Timeout) => match (settings.timeouts, replay_safe) {
            (RetryTimeouts::Never, _) => Some(Suppressed::Final),
            (RetryTimeouts::ReplaySafe, false) => Some(Suppressed::Unsafe),
            (RetryTimeouts::ReplaySafe, true) => None,
        },
    }
}

/// The delay before the attempt after number `attempt`, which counts from one:
/// `delay * 2^(attempt - 1)`, at most `max_delay`, spread, and then held between
/// [`SHORTEST_DELAY`] and `max_delay`. `random` is from 0 to 1.
#[must_use]
pub fn delay(settings: &RetrySettings, attempt: u32, random: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(31);
    let grown = settings.delay.saturating_mul(1 << doublings).min(settings.max_delay);
    let random = random.clamp(0.0, 1.0);
    let factor = match settings.jitter {
        RetryJitter::Equal => 0.75 + random / 2.0,
        RetryJitter::Full => random,
    };
    // Beyond f64's reach a spread would make no difference.
    let spread = Duration::try_from_secs_f64(grown.as_secs_f64() * factor).unwrap_or(grown);
    spread.min(settings.max_delay).max(SHORTEST_DELAY)
}

#[cfg(test)]
mod tests;
