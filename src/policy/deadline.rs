//! [`Deadline`]: when a call must be over, and what an attempt may take of the rest.

use std::time::Duration;

use crate::model::Uptime;

/// The one bound of a call: every attempt and every wait fits inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    at: Uptime,
    total: Duration,
}

impl Deadline {
    /// A deadline `total` after `started`.
    #[must_use]
    pub fn new(started: Uptime, total: Duration) -> Self {
        Self { at: started.plus(total), total }
    }

    /// What is left at `now`; zero when it has passed.
    #[must_use]
    pub fn left(&self, now: Uptime) -> Duration {
        self.at.since(now)
    }

    /// The whole span.
    #[must_use]
    pub const fn total(&self) -> Duration {
        self.total
    }

    /// What one attempt may take: its own limit, or the rest when that is shorter.
    #[must_use]
    pub fn attempt(&self, now: Uptime, timeout: Duration) -> Duration {
        self.left(now).min(timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_never_outlives_the_call() {
        let deadline = Deadline::new(Uptime::from_millis(1000), Duration::from_millis(500));
        let at = Uptime::from_millis;
        assert_eq!(deadline.attempt(at(1000), Duration::from_secs(30)), Duration::from_millis(500));
        assert_eq!(deadline.attempt(at(1400), Duration::from_secs(30)), Duration::from_millis(100));
        assert_eq!(
            deadline.attempt(at(1400), Duration::from_millis(50)),
            Duration::from_millis(50)
        );
        assert_eq!(deadline.left(at(9000)), Duration::ZERO);
        let endless = Deadline::new(at(1), Duration::MAX);
        assert!(endless.left(at(1)) > Duration::from_secs(600));
    }
}
