//! What to do about a failure, and how long there is to do it. PURE: no clock, no random, no I/O.
//!
//! Changes when the resilience semantics change. The shells around it are `ServerHandle` in the
//! registry and the attempt loop in the router.

mod breaker;
mod budget;
mod classify;
mod deadline;
mod retry;
mod window;

pub use breaker::{Breaker, BreakerStatus, Command, Rejection, Ticket, Transition, Verdict};
pub use budget::Budget;
pub use classify::{outcome_of, repeat_is_safe, replay_safe, verdict_of, verdict_of_silence};
pub use deadline::Deadline;
pub use retry::{Decision, Failed, SHORTEST_ATTEMPT, SHORTEST_DELAY, Suppressed, decide, delay};
