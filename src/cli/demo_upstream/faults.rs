//! [`Faults`]: what goes wrong at the bundled upstream, and when.
//!
//! Changes when a new kind of misbehaviour is needed. Decides only; the engine and the transports
//! carry the decision out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// One kind of misbehaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The tool runs and reports `isError: true`.
    ToolError,
    /// A JSON-RPC error -32603; the tool does not run.
    RpcError,
    /// This HTTP status with a text body (503 and 429 with `Retry-After: 1`); the tool does not
    /// run. On stdio: no answer.
    HttpStatus(u16),
    /// The tool runs, then the connection is closed without an answer. On stdio: stdout ends.
    Cut,
    /// The tool runs, then the connection is closed in the middle of the answer.
    CutMidBody,
    /// The tool runs, the answer never comes.
    Hang,
    /// The tool runs, the answer is not JSON.
    Garbage,
    /// The tool runs, the answer comes later.
    Slow(Duration),
    /// The tool runs, the answer carries an id that nobody asked for.
    WrongId,
    /// The tool does not run; the upstream ends.
    Exit,
}

/// Which of the requests in scope are hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// All.
    Always,
    /// Every Nth; 0 never.
    Every(u64),
    /// The first N.
    First(u64),
}

/// Which requests are in scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    /// `tools/call`.
    Calls,
    /// `tools/list`.
    List,
    /// Every request, the handshake too.
    All,
}

/// A fault with its occasion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultPlan {
    /// What goes wrong.
    pub fault: Fault,
    /// Which of the requests in scope.
    pub when: When,
    /// Which requests are in scope.
    pub scope: Scope,
}

impl FaultPlan {
    /// `fault` for every `tools/call`.
    #[must_use]
    pub const fn calls(fault: Fault) -> Self {
        Self { fault, when: When::Always, scope: Scope::Calls }
    }

    /// `fault` for everything, the handshake too.
    #[must_use]
    pub const fn all(fault: Fault) -> Self {
        Self { fault, when: When::Always, scope: Scope::All }
    }

    /// The same for the first `n` requests only.
    #[must_use]
    pub const fn times(self, n: u64) -> Self {
        Self { when: When::First(n), ..self }
    }

    /// The same for every `n`th request only.
    #[must_use]
    pub const fn every(self, n: u64) -> Self {
        Self { when: When::Every(n), ..self }
    }
}

/// The switch: shared by an upstream and whoever makes it fail.
#[derive(Debug, Default)]
pub struct Faults {
    /// Spares the healthy path the lock.
    armed: AtomicBool,
    plan: Mutex<Option<(FaultPlan, u64)>>,
}

impl Faults {
    /// From now on `plan`; its count starts anew.
    pub fn set(&self, plan: FaultPlan) {
        *self.plan.lock() = Some((plan, 0));
        self.armed.store(true, Ordering::Release);
    }

    /// From now on healthy. Answers already hanging keep hanging.
    pub fn clear(&self) {
        *self.plan.lock() = None;
        self.armed.store(false, Ordering::Release);
    }

    /// The fault that hits a request for `method`, which is counted.
    pub(super) fn strike(&self, method: &str) -> Option<Fault> {
        if !self.armed.load(Ordering::Acquire) {
            return None;
        }
        let mut guard = self.plan.lock();
        let (plan, seen) = guard.as_mut()?;
        let in_scope = match plan.scope {
            Scope::Calls => method == "tools/call",
            Scope::List => method == "tools/list",
            Scope::All => true,
        };
        if !in_scope {
            return None;
        }
        *seen = seen.saturating_add(1);
        let hit = match plan.when {
            When::Always => true,
            When::Every(n) => n > 0 && seen.is_multiple_of(n),
            When::First(n) => *seen <= n,
        };
        hit.then_some(plan.fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strikes(plan: FaultPlan, method: &str) -> Vec<bool> {
        let faults = Faults::default();
        faults.set(plan);
        (0..6).map(|_| faults.strike(method).is_some()).collect()
    }

    #[test]
    fn a_plan_hits_the_requests_it_names() {
        let calls = FaultPlan::calls(Fault::Hang);
        assert_eq!(strikes(calls, "tools/call"), [true; 6]);
        assert_eq!(strikes(calls, "tools/list"), [false; 6]);
        assert_eq!(strikes(calls.every(3), "tools/call"), [false, false, true, false, false, true]);
        assert_eq!(strikes(calls.times(2), "tools/call"), [true, true, false, false, false, false]);
        assert_eq!(strikes(FaultPlan::all(Fault::Hang), "initialize"), [true; 6]);
    }

    #[test]
    fn cleared_faults_do_not_strike() {
        let faults = Faults::default();
        faults.set(FaultPlan::all(Fault::Cut));
        faults.clear();
        assert_eq!(faults.strike("tools/call"), None);
    }
}
