//! Clocks for what is promised of the router alone, on a machine that does other things besides.
//!
//! With `SWITCHYARD_TEST_FULL=1` the machine is the router's, and all of them are the wall's clock: what
//! is promised then holds for everybody who looks, and for every try.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::full;

/// The processor time of this thread. It stands still while the machine runs something else.
pub fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap()
}

/// The least that an attempt took, of as many as it takes to stay within `bound`, at most ten. What
/// takes long in itself takes long each time; what a busy machine adds does not.
pub async fn fastest(bound: Duration, mut attempt: impl AsyncFnMut() -> Duration) -> Duration {
    let mut least = Duration::MAX;
    for _ in 0..10 {
        least = least.min(attempt().await);
        if least <= bound {
            break;
        }
    }
    least
}

/// What an attempt took: the least of some as in [`fastest`], and in a full run that of the one attempt
/// that is made.
pub async fn promised(bound: Duration, mut attempt: impl AsyncFnMut() -> Duration) -> Duration {
    if full() { attempt().await } else { fastest(bound, attempt).await }
}

/// The clock for what is over before anything else has its turn: the processor time of this thread, and
/// in a full run the time since the first reading.
pub fn own_time() -> Duration {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    if full() { FIRST.get_or_init(Instant::now).elapsed() } else { processor_time() }
}

/// Polls a future once; what came, and what it took by [`own_time`]. What is ready then has
/// waited for nothing.
pub async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> (Poll<F::Output>, Duration) {
    std::future::poll_fn(|context| {
        let began = own_time();
        let polled = future.as_mut().poll(context);
        Poll::Ready((polled, own_time() - began))
    })
    .await
}

/// A clock that runs while this thread waits or works, and stands still while it could work and the
/// machine runs something else. For a test whose runtime has no other thread.
#[derive(Debug, Clone, Copy)]
pub struct Attended {
    began: Instant,
    withheld: Duration,
}

impl Attended {
    pub fn begin() -> Self {
        Self { began: Instant::now(), withheld: withheld() }
    }

    /// The time since, and by how much the wall's clock was ahead.
    pub fn elapsed(&self) -> (Duration, Duration) {
        let withheld = if full() { Duration::ZERO } else { withheld() - self.withheld };
        (self.began.elapsed().saturating_sub(withheld), withheld)
    }
}

/// For how long this thread stood in the queue for a processor, as the kernel counts it.
fn withheld() -> Duration {
    queued("/proc/thread-self/schedstat".as_ref()).unwrap()
}

/// For how long threads of a process stood in the queue for a processor, taken together.
pub fn withheld_from(pid: u32) -> Duration {
    if full() {
        return Duration::ZERO;
    }
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.flatten().filter_map(|thread| queued(&thread.path().join("schedstat"))).sum()
}

/// `None` for a thread that ended.
fn queued(path: &Path) -> Option<Duration> {
    let stat = std::fs::read_to_string(path).ok()?;
    Some(Duration::from_nanos(stat.split(' ').nth(1)?.parse().unwrap()))
}
