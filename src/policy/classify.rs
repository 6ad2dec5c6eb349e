//! From a failure's class to what callers and the ledger are told.

use std::time::Duration;

use super::Verdict;
use crate::model::{Blame, Failure, Knowledge, Outcome, Replay};

/// How a call that ended in `failure` is recorded.
#[must_use]
pub const fn outcome_of(failure: Failure) -> Outcome {
    match failure {
        Failure::NotSent | Failure::Refused | Failure::Ambiguous => Outcome::Unavailable,
        Failure::Timeout => Outcome::Timeout,
        Failure::Answered => Outcome::RpcError,
        Failure::Cancelled => Outcome::Cancelled,
    }
}

/// Whether a tool may be run again after a call that may have run it.
///
/// The operator's word wins; hints count only where the operator trusts them. A read-only tool is
/// safe by definition; `idempotentHint` says so itself (specification, server/tools).
#[must_use]
pub const fn replay_safe(
    operator: Option<Replay>,
    trust_annotations: bool,
    read_only: bool,
    idempotent: bool,
) -> bool {
    match operator {
        Some(Replay::Safe) => true,
        Some(Replay::Unsafe) => false,
        None => trust_annotations && (read_only || idempotent),
    }
}

/// Whether the caller can repeat the call without the risk of a second effect, from what is known of
/// all its attempts: `retriable` in error data.
#[must_use]
pub const fn repeat_is_safe(known: Knowledge, replay_safe: bool) -> bool {
    match known {
        Knowledge::NotSent | Knowledge::Refused => true,
        Knowledge::Unknown => replay_safe,
        Knowledge::Executed => false,
    }
}

/// What an attempt that failed says to the breaker. `count_http_4xx` makes a failure of what the
/// server turned away.
#[must_use]
pub const fn verdict_of(blame: Blame, count_http_4xx: bool) -> Verdict {
    match (blame, count_http_4xx) {
        (Blame::Server, _) | (Blame::Request, true) => Verdict::Failure,
        (Blame::Request, false) | (Blame::Nobody, _) => Verdict::Neutral,
    }
}

/// An attempt that had this long can show that a server does not answer, whatever more it was promised.
const TRIAL: Duration = Duration::from_secs(1);

/// What an attempt says to the breaker that had `limit` for its answer and got none, at a server that
/// was promised `promised`.
///
/// Callers may be in more of a hurry than the server was ever promised to bear, and earlier attempts may
/// have left little. A tenth goes by before the attempt: callers often give the very limit of the server.
#[must_use]
pub fn verdict_of_silence(limit: Duration, promised: Duration) -> Verdict {
    let had = |whole: Duration| limit >= whole.saturating_sub(whole / 10);
    if had(promised) {
        Verdict::Failure
    } else if had(TRIAL) {
        Verdict::Unanswered
    } else {
        Verdict::Neutral
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_says_something_only_of_a_server_that_had_time() {
        let verdict = |limit, promised| {
            verdict_of_silence(Duration::from_millis(limit), Duration::from_millis(promised))
        };
        for (limit, promised, expected) in [
            (30_000, 30_000, Verdict::Failure),
            (27_000, 30_000, Verdict::Failure),
            (26_999, 30_000, Verdict::Unanswered),
            (900, 30_000, Verdict::Unanswered),
            (899, 30_000, Verdict::Neutral),
            (0, 30_000, Verdict::Neutral),
            // The server was promised less than that.
            (450, 500, Verdict::Failure),
            (449, 500, Verdict::Neutral),
        ] {
            assert_eq!(verdict(limit, promised), expected, "{limit} of {promised} ms");
        }
    }

    #[test]
    fn what_may_have_run_is_repeated_only_when_declared_safe() {
        for failure in [Failure::Ambiguous, Failure::Timeout, Failure::Cancelled] {
            assert!(!repeat_is_safe(failure.knowledge(), false));
            assert!(repeat_is_safe(failure.knowledge(), true));
        }
        for failure in [Failure::NotSent, Failure::Refused] {
            assert!(repeat_is_safe(failure.knowledge(), false));
        }
        assert!(!repeat_is_safe(Failure::Answered.knowledge(), true));
        assert_eq!(Knowledge::Unknown.and(Knowledge::NotSent), Knowledge::Unknown);
        assert_eq!(Knowledge::NotSent.and(Knowledge::Refused), Knowledge::Refused);
    }

    #[test]
    fn the_operator_wins_over_hints_and_hints_need_trust() {
        assert!(!replay_safe(Some(Replay::Unsafe), true, true, true));
        assert!(replay_safe(Some(Replay::Safe), false, false, false));
        assert!(replay_safe(None, true, true, false));
        assert!(replay_safe(None, true, false, true));
        assert!(!replay_safe(None, false, true, true));
        assert!(!replay_safe(None, true, false, false));
    }
}
