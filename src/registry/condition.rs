//! [`Condition`]: what is known of whether a server is there and answers as it should.
//!
//! Changes when something else shows how a server stands. Calls, health checks and discovery each see
//! their part. A list of tools that cannot be had is kept apart from whether the server can be reached:
//! while calls succeed beside it, it is up, and its list has a problem.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use prometheus::{Gauge, IntGauge};

use super::said::{Said, Word};
use crate::clock;
use crate::metrics::ServerMetrics;
use crate::model::{ServerName, Timestamp, TraceId};
use crate::store::DiscoveryRow;

/// What is known of a server's condition.
#[derive(Debug, Clone, Default)]
pub struct ServerStatus {
    /// The last discovery that worked, and the last error.
    pub discovery: DiscoveryRow,
    /// Why its list of tools could not be had at the last try, although it was reached.
    pub list_error: Option<String>,
    /// Whether a discovery was tried since the start.
    pub tried: bool,
}

/// How it stands. What is shown and stored must be free of secrets when it comes here.
#[derive(Debug)]
pub(super) struct Condition {
    server: ServerName,
    up: IntGauge,
    unauthorised: IntGauge,
    last_success: Gauge,
    last_refresh: Gauge,
    status: Mutex<ServerStatus>,
    last_success_second: AtomicU64,
    /// Whether the last attempt reached it.
    reachable: AtomicBool,
    /// Whether it answers and does not let us in.
    unauthorized: AtomicBool,
    /// Whether its list of tools could not be had at the last try, although it was reached.
    unlisted: AtomicBool,
    /// Whether it answered a call since its list could not be had for the first time.
    serves: AtomicBool,
    said: Said,
}

impl Condition {
    /// Of a server of which no more is known than `status`.
    pub(super) fn new(server: ServerName, status: ServerStatus, metrics: &ServerMetrics) -> Self {
        metrics.up.set(0);
        metrics.unauthorised.set(0);
        if let Some(at) = status.discovery.ok_at {
            // As far as nothing newer is known.
            for gauge in [&metrics.last_success, &metrics.last_refresh] {
                gauge.set(gauge.get().max(seconds(at)));
            }
        }
        Self {
            server,
            up: metrics.up.clone(),
            unauthorised: metrics.unauthorised.clone(),
            last_success: metrics.last_success.clone(),
            last_refresh: metrics.last_refresh.clone(),
            status: Mutex::new(ServerStatus { list_error: None, ..status }),
            last_success_second: AtomicU64::new(0),
            reachable: AtomicBool::new(true),
            unauthorized: AtomicBool::new(false),
            unlisted: AtomicBool::new(false),
            serves: AtomicBool::new(false),
            said: Said::default(),
        }
    }

    /// What discovery knows.
    pub(super) fn status(&self) -> ServerStatus {
        self.status.lock().clone()
    }

    /// Whether the last attempt reached it.
    pub(super) fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Whether it was last seen to answer and not to let us in.
    pub(super) fn is_unauthorized(&self) -> bool {
        self.unauthorized.load(Ordering::Relaxed)
    }

    /// Whether its list of tools could not be had at the last try, although it was reached.
    pub(super) fn is_unlisted(&self) -> bool {
        self.unlisted.load(Ordering::Relaxed)
    }

    /// Whether calls succeed although its list of tools cannot be had.
    pub(super) fn serves_unlisted(&self) -> bool {
        self.is_unlisted() && self.serves.load(Ordering::Relaxed)
    }

    /// A discovery worked, or a health check: its tools are as listed now, or may be taken to be.
    pub(super) fn discovered(&self, discovery: DiscoveryRow) {
        let now = clock::timestamp();
        self.last_refresh.set(seconds(now));
        self.unlisted.store(false, Ordering::Relaxed);
        self.serves.store(false, Ordering::Relaxed);
        self.unauthorized.store(false, Ordering::Relaxed);
        *self.status.lock() = ServerStatus { discovery, list_error: None, tried: true };
        self.tell_up();
        self.succeeded(now);
    }

    /// The server could not be reached for a discovery, or gave no sign of life. Discovery has said
    /// why in the log.
    pub(super) fn failed(&self, error: String, at: Timestamp) -> DiscoveryRow {
        self.unlisted.store(false, Ordering::Relaxed);
        self.lost(Word::Down);
        let mut status = self.status.lock();
        status.list_error = None;
        status.tried = true;
        noted(&mut status.discovery, error, at)
    }

    /// The server answered a discovery or a health check with 401 or 403: it is up, and what it offers
    /// cannot be seen.
    pub(super) fn refused(&self, error: String, at: Timestamp) -> DiscoveryRow {
        let row = self.failed(error, at);
        self.locked_out();
        row
    }

    /// The server was reached, and its list of tools could not be had, `unauthorized` because it answered
    /// 401 or 403. That alone does not make a server unreachable that answers calls meanwhile.
    pub(super) fn unlisted(
        &self,
        error: String,
        at: Timestamp,
        unauthorized: bool,
    ) -> DiscoveryRow {
        if !self.unlisted.swap(true, Ordering::Relaxed) {
            self.serves.store(false, Ordering::Relaxed);
        }
        if !self.serves.load(Ordering::Relaxed) {
            self.lost(Word::Unlisted);
            if unauthorized {
                self.locked_out();
            }
        }
        let mut status = self.status.lock();
        status.list_error = Some(error.clone());
        status.tried = true;
        noted(&mut status.discovery, error, at)
    }

    /// An attempt of a call, in `trace`, did not reach it.
    pub(super) fn unreachable(&self, error: String, at: Timestamp, trace: Option<TraceId>) {
        self.serves.store(false, Ordering::Relaxed);
        self.unauthorized.store(false, Ordering::Relaxed);
        self.reachable.store(false, Ordering::Relaxed);
        if !self.said.is(Word::Down)
            && let Some(left_out) = self.said.line(Word::Down, clock::uptime())
        {
            tracing::warn!(
                server.name = %self.server, error, left_out = counted(left_out),
                trace_id = trace.map(tracing::field::display),
                "server {} is down: {error}", self.server
            );
        }
        noted(&mut self.status.lock().discovery, error, at);
        self.up.set(0);
        self.unauthorised.set(0);
        self.last_success_second.store(0, Ordering::Relaxed);
    }

    /// It answered a call.
    pub(super) fn answered(&self, at: Timestamp) {
        // That it answers does not mend its list, and the log says that it could not be had.
        if !self.said.is(Word::Unlisted) {
            self.tell_up();
        }
        if self.is_unlisted() && !self.serves.load(Ordering::Relaxed) {
            self.serves.store(true, Ordering::Relaxed);
        }
        let unauthorized = self.unauthorized.load(Ordering::Relaxed);
        if unauthorized {
            self.unauthorized.store(false, Ordering::Relaxed);
        }
        // Read first, here and above: the place is shared by all threads, and calls are many.
        if !self.reachable.load(Ordering::Relaxed) || unauthorized {
            let mut status = self.status.lock();
            let ServerStatus { discovery, list_error, .. } = &mut *status;
            discovery.error.clone_from(list_error);
        }
        self.succeeded(at);
    }

    /// It answered a request with this HTTP status, which made it fail.
    pub(super) fn answered_status(&self, status: u16) {
        self.unauthorised.set(i64::from(matches!(status, 401 | 403)));
    }

    fn tell_up(&self) {
        if !self.said.is(Word::Up)
            && let Some(left_out) = self.said.line(Word::Up, clock::uptime())
        {
            tracing::info!(
                server.name = %self.server, left_out = counted(left_out),
                "server {} is up", self.server
            );
        }
    }

    fn succeeded(&self, at: Timestamp) {
        if !self.reachable.load(Ordering::Relaxed) {
            self.reachable.store(true, Ordering::Relaxed);
        }
        if self.unauthorised.get() != 0 {
            self.unauthorised.set(0);
        }
        // A gauge of seconds needs one write a second, not one a call.
        let second = u64::try_from(at.as_millis() / 1000).unwrap_or(0);
        if self.last_success_second.swap(second, Ordering::Relaxed) != second {
            self.last_success.set(seconds(at));
            self.up.set(1);
        }
    }

    fn lost(&self, word: Word) {
        self.last_success_second.store(0, Ordering::Relaxed);
        self.reachable.store(false, Ordering::Relaxed);
        self.unauthorized.store(false, Ordering::Relaxed);
        self.serves.store(false, Ordering::Relaxed);
        self.said.elsewhere(word);
        self.up.set(0);
        self.unauthorised.set(0);
    }

    fn locked_out(&self) {
        self.unauthorized.store(true, Ordering::Relaxed);
        self.reachable.store(true, Ordering::Relaxed);
        self.up.set(1);
        self.unauthorised.set(1);
    }
}

/// Changes that were left out, where there were any.
fn counted(left_out: u32) -> Option<u32> {
    (left_out > 0).then_some(left_out)
}

/// Whole seconds since the Unix epoch, as a gauge has them.
#[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
fn seconds(at: Timestamp) -> f64 {
    at.as_millis().div_euclid(1000) as f64
}

fn noted(discovery: &mut DiscoveryRow, error: String, at: Timestamp) -> DiscoveryRow {
    discovery.error = Some(error);
    discovery.error_at = Some(at);
    discovery.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn condition() -> Condition {
        let name = ServerName::parse("s").unwrap();
        let metrics = Metrics::new().unwrap().server(&name);
        Condition::new(name, ServerStatus::default(), &metrics)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(second * 1000)
    }

    fn error(condition: &Condition) -> Option<String> {
        condition.status().discovery.error
    }

    #[test]
    fn a_list_that_cannot_be_had_does_not_flap_beside_calls_that_succeed() {
        let condition = condition();
        condition.discovered(DiscoveryRow::default());
        assert_eq!(condition.up.get(), 1);
        condition.unlisted("no list".to_owned(), at(0), false);
        assert_eq!(condition.up.get(), 0, "nothing else is known of it");
        for second in 1..100 {
            condition.answered(at(second));
            assert_eq!((condition.up.get(), error(&condition).as_deref()), (1, Some("no list")));
            assert!(condition.said.is(Word::Unlisted), "no line");
            condition.unlisted("no list".to_owned(), at(second), second % 2 == 0);
            assert!(condition.serves_unlisted() && condition.is_reachable());
            assert_eq!((condition.up.get(), condition.unauthorised.get()), (1, 0), "{second}");
        }
        condition.discovered(DiscoveryRow::default());
        assert!(condition.said.is(Word::Up) && !condition.is_unlisted());
        assert_eq!(error(&condition), None);
    }

    #[test]
    fn what_calls_cannot_reach_is_down_whatever_its_list_is() {
        let condition = condition();
        condition.unlisted("no list".to_owned(), at(0), false);
        condition.answered(at(1));
        condition.unreachable("refused".to_owned(), at(2), None);
        assert!(condition.said.is(Word::Down) && !condition.serves_unlisted());
        assert_eq!((condition.up.get(), error(&condition).as_deref()), (0, Some("refused")));
        condition.unlisted("no list".to_owned(), at(3), true);
        assert_eq!((condition.up.get(), condition.unauthorised.get()), (1, 1), "it is there");
        condition.unreachable("refused".to_owned(), at(4), None);
        condition.answered(at(5));
        assert_eq!((condition.up.get(), error(&condition).as_deref()), (1, Some("no list")));
        condition.failed("refused".to_owned(), at(6));
        condition.answered(at(7));
        assert_eq!((condition.up.get(), error(&condition)), (1, None), "that was no list's fault");
    }
}
