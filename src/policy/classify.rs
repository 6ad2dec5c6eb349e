//! From a failure's class to what callers and the ledger are told.

use crate::model::{Failure, Outcome, Replay};

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

/// Whether the caller can repeat the call without the risk of a second effect: `retriable` in
/// error data.
#[must_use]
pub const fn repeat_is_safe(failure: Failure, replay_safe: bool) -> bool {
    match failure {
        Failure::NotSent | Failure::Refused => true,
        Failure::Ambiguous | Failure::Timeout | Failure::Cancelled => replay_safe,
        Failure::Answered => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_run_is_repeated_only_when_declared_safe() {
        for failure in [Failure::Ambiguous, Failure::Timeout, Failure::Cancelled] {
            assert!(!repeat_is_safe(failure, false));
            assert!(repeat_is_safe(failure, true));
        }
        for failure in [Failure::NotSent, Failure::Refused] {
            assert!(repeat_is_safe(failure, false));
        }
        assert!(!repeat_is_safe(Failure::Answered, true));
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
