//! What every test needs: the router, upstreams, a client. Changes when a test has to see or do
//! something that cannot be seen or done yet; asserts nothing about the router itself.

mod app;
mod clocks;
mod collector;
mod figures;
mod http;
mod mcp;
mod paged;
mod ports;
mod process;
mod rig;
mod speaker;
mod stage;
mod stream;
mod upstream;

use std::future::Future;
use std::time::{Duration, Instant};

pub use app::TestApp;
pub use clocks::{Attended, fastest, own_time, poll_once, processor_time, promised, withheld_from};
pub use collector::{Collector, Received, Verdict};
pub use figures::{breaker_state, figure, full, total, transitions};
pub use http::{Answer, Call, Http, Lines};
pub use mcp::{LEGACY, Legacy, MODERN, legacy_body, modern, modern_at, modern_params};
pub use paged::{Paged, Pages};
pub use ports::{hold, refusing};
pub use process::{Finished, Router, alive, command, switchyard};
pub use rig::{Fault, GIGABYTE, Rig};
pub use speaker::{Speaker, on_stage, play, progress_of};
pub use stage::{Role, SUBSCRIPTION, Seen, Stage};
pub use stream::{Stream, Wire, messages};
pub use upstream::{garbage, hanging, stdio, upstream, upstream_at, yaml};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_switchyard");

/// Waits until `probe` gives a value.
///
/// # Panics
/// When it has not after `limit`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(began.elapsed() < limit, "{what}: not after {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What things may take at most that come to pass or never do. Generous, because tests run beside each
/// other and beside whatever else the machine does; a promise about time has a bound of its own.
pub const SOON: Duration = Duration::from_secs(30);

/// The text between two marks, byte for byte.
///
/// # Panics
/// When one of them is not there.
pub fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {text}"));
    let end = rest.rfind(after).unwrap_or_else(|| panic!("no {after:?} in {rest}"));
    &rest[..end]
}
