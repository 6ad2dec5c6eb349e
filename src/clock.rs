//! The two clocks. Everything else takes time as a value.
//!
//! Changes when the way we read time changes. `clippy.toml` forbids every other way.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use crate::model::{Timestamp, Uptime};

static STARTED: OnceLock<Instant> = OnceLock::new();

/// Time since the first reading, on the monotonic clock.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
pub fn uptime() -> Uptime {
    let now = Instant::now();
    Uptime::from_duration(now.saturating_duration_since(*STARTED.get_or_init(|| now)))
}

/// Wall-clock time since 1970, as exact as the clock is.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// Wall-clock time as it is stored.
#[must_use]
pub fn timestamp() -> Timestamp {
    Timestamp::from_millis(i64::try_from(since_epoch().as_millis()).unwrap_or(i64::MAX))
}
