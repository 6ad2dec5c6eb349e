//! What to do about a failure, and how long there is to do it. PURE: no clock, no random, no I/O.
//!
//! Changes when the resilience semantics change. The shells around it are `ServerHandle` in the
//! registry and the attempt loop in the router.

mod classify;
mod deadline;

pub use classify::{outcome_of, repeat_is_safe, replay_safe};
pub use deadline::Deadline;
