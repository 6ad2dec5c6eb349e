//! When a server is asked for its tools: at once when it appears, goes away or comes back, else in
//! turns.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::model::{ServerName, Uptime};
use crate::registry::{ServerHandle, ServerState};

/// The first repeat after a failure; doubles up to the health interval.
const FIRST_REPEAT: Duration = Duration::from_secs(1);

/// When a server is asked next.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) handle: Arc<ServerHandle>,
    pub(super) due: Uptime,
    pub(super) asking: bool,
    pub(super) failures: u32,
    /// Whether it was up when last looked at.
    noticed: bool,
}

impl Plan {
    pub(super) fn new(handle: &Arc<ServerHandle>, now: Uptime) -> Self {
        Self { handle: Arc::clone(handle), due: now, asking: false, failures: 0, noticed: false }
    }

    /// The interval, longer or shorter by up to a fifth, so that servers that started together are
    /// not asked together for ever.
    fn spread(&self, interval: Duration) -> Duration {
        let sum: u32 = self.handle.name.as_str().bytes().map(u32::from).sum();
        interval.mul_f64(0.8 + 0.4 * f64::from(sum % 64) / 63.0)
    }

    pub(super) fn finished(&mut self, ok: bool, interval: Duration, now: Uptime) {
        self.asking = false;
        self.failures = if ok { 0 } else { self.failures.saturating_add(1) };
        self.noticed = ok;
        let wait = if ok {
            self.spread(interval)
        } else {
            let doublings = self.failures.saturating_sub(1).min(16);
            FIRST_REPEAT.saturating_mul(1 << doublings).min(interval)
        };
        self.due = now.plus(wait);
    }
}

/// A server whose calls succeed again, or fail, is asked without waiting for its turn.
pub(super) fn notice_changes(plan: &mut HashMap<ServerName, Plan>) {
    let now = clock::uptime();
    for entry in plan.values_mut().filter(|entry| !entry.asking) {
        let up = entry.handle.state() == ServerState::Up;
        if up == (entry.failures > 0) && entry.noticed != up {
            entry.due = now;
        }
        entry.noticed = up;
    }
}
