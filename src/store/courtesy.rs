//! [`Courtesy`]: threads that let others have the processor.
//!
//! Changes when it is decided otherwise who goes first. A commit of the ledger and a turn of its index are
//! milliseconds of work that nobody waits for. Where there are few processors, a call that becomes ready
//! meanwhile may be put behind such a thread, which the scheduler lets go on for a while first. One that
//! asks every few microseconds who else is there gives way at once. It must not do so for ever: where all
//! processors are busy all the time it would never get to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::SqliteConnection;

use crate::clock;
use crate::model::Uptime;

/// Steps of SQLite's machine between two times: some microseconds of work.
const STEPS: i32 = 60;

/// For how long threads that work on something give way to others. Clones are handles to the same one.
#[derive(Debug, Clone, Default)]
pub struct Courtesy(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// In microseconds of uptime.
    until: AtomicU64,
    times: AtomicU64,
}

impl Shared {
    fn give_way(&self) {
        if now() < self.until.load(Ordering::Relaxed) {
            self.times.fetch_add(1, Ordering::Relaxed);
            std::thread::yield_now();
        }
    }
}

impl Courtesy {
    /// Has the connection's thread ask. It keeps no other handler of its progress.
    pub(super) async fn teach(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let shared = Arc::clone(&self.0);
        connection.lock_handle().await?.set_progress_handler(STEPS, move || {
            shared.give_way();
            true
        });
        Ok(())
    }

    /// Lets others have the processor of the calling thread, if it is time for that.
    pub fn give_way(&self) {
        self.0.give_way();
    }

    /// A piece of work begins for which nobody waits: others go first, for so long at most.
    pub fn begin(&self, longest: Duration) {
        let until = now().saturating_add(micros(longest));
        self.0.until.store(until, Ordering::Relaxed);
    }

    /// It ended: what comes next is another's.
    pub fn end(&self) {
        self.0.until.store(0, Ordering::Relaxed);
    }
}

/// In microseconds of uptime.
fn now() -> u64 {
    micros(clock::uptime().since(Uptime::from_millis(0)))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use sqlx::Connection as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);
    /// Some 100,000 steps.
    const WORK: &str =
        "with recursive n(x) as (select 1 union all select x + 1 from n where x < 10000)
                        select sum(x) from n";

    /// How often a connection gave way during the work.
    async fn times(courtesy: &Courtesy, connection: &mut SqliteConnection) -> u64 {
        let before = courtesy.0.times.load(Ordering::Relaxed);
        let sum: i64 = sqlx::query_scalar(WORK).fetch_one(connection).await.unwrap();
        assert_eq!(sum, 50_005_000);
        courtesy.0.times.load(Ordering::Relaxed) - before
    }

    #[tokio::test]
    async fn others_go_first_for_a_while_and_in_one_piece_of_work() {
        let courtesy = Courtesy::default();
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        courtesy.teach(&mut connection).await.unwrap();
        assert_eq!(times(&courtesy, &mut connection).await, 0, "somebody may wait");
        courtesy.begin(LONG);
        assert!(times(&courtesy, &mut connection).await > 100);
        courtesy.end();
        assert_eq!(times(&courtesy, &mut connection).await, 0, "other work");
        courtesy.begin(Duration::ZERO);
        assert_eq!(times(&courtesy, &mut connection).await, 0, "too late");
    }
}
