//! From a failure's class to what callers and the ledger are told.

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

#[cfg(test)]
mod tests {
    use super::*;

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
