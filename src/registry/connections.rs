//! [`Connections`]: the ways to one server that calls use: the connection that all share, and those of
//! single sessions.
//!
//! Changes when a server is held in another way. Handles come and go with each change of a
//! specification; where nothing changed of how the server is reached, the new handle has the
//! connections of the old one, and what runs there goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::condition::Condition;
use super::isolation::IsolatedSessions;
use super::limiter::Limiter;
use super::target::same_way;
use crate::metrics::ServerMetrics;
use crate::model::{ServerSettings, ServerSpec};
use crate::pool::{Children, ConnectionPool};
use crate::store::ServerRow;

/// The connections of one server.
#[derive(Debug)]
pub(super) struct Connections {
    /// The connection that all share; also an isolated server is asked for its tools over it.
    pub(super) pool: Result<ConnectionPool, String>,
    pub(super) isolated: Option<IsolatedSessions>,
    /// The least severe log messages asked for on the shared connection.
    pub(super) log_level: AtomicU8,
    /// Connections opened again, as counted so far, and those of them that an operator asked for.
    seen_reconnects: AtomicU64,
    asked_reconnects: AtomicU64,
    /// The longest that one attempt over them may take, in milliseconds.
    longest_attempt: AtomicU64,
}

impl Connections {
    pub(super) const fn new(
        pool: Result<ConnectionPool, String>,
        isolated: Option<IsolatedSessions>,
    ) -> Self {
        Self {
            pool,
            isolated,
            log_level: AtomicU8::new(u8::MAX),
            seen_reconnects: AtomicU64::new(0),
            asked_reconnects: AtomicU64::new(0),
            longest_attempt: AtomicU64::new(0),
        }
    }

    /// Attempts that take as long may be made over them, from now on.
    pub(super) fn bears(&self, attempt: Duration) {
        let millis = u64::try_from(attempt.as_millis()).unwrap_or(u64::MAX);
        self.longest_attempt.fetch_max(millis, Ordering::Relaxed);
    }

    /// The longest that one attempt over them may take.
    pub(super) fn longest_attempt(&self) -> Duration {
        Duration::from_millis(self.longest_attempt.load(Ordering::Relaxed))
    }

    /// How many shared connections were opened so far.
    pub(super) fn connects(&self) -> u64 {
        self.pool.as_ref().map_or(0, ConnectionPool::connects)
    }

    /// The next lease opens a new connection, at once.
    pub(super) fn reconnect(&self) {
        if let Ok(pool) = &self.pool {
            self.asked_reconnects.fetch_add(1, Ordering::Relaxed);
            pool.reset();
        }
    }

    /// Counts connections that were opened since the last look, beside the first.
    pub(super) fn count_reconnects(&self, metrics: &ServerMetrics) {
        let again = self.connects().saturating_sub(1);
        let before = self.seen_reconnects.swap(again, Ordering::Relaxed);
        let grown = again.saturating_sub(before);
        let asked = self.asked_reconnects.load(Ordering::Relaxed).min(grown);
        self.asked_reconnects.fetch_sub(asked, Ordering::Relaxed);
        let lost = grown.saturating_sub(asked);
        metrics.count_reconnects(lost, asked);
    }

    /// Closes them and ends the child processes behind them with all descendants.
    pub(super) async fn close(&self) {
        let shared = async {
            if let Ok(pool) = &self.pool {
                pool.note_end();
                pool.close().await;
            }
        };
        let isolated = async {
            if let Some(isolated) = &self.isolated {
                isolated.close().await;
            }
        };
        tokio::join!(shared, isolated);
    }
}

/// What a new handle has of the one before it, where the server is reached as before.
pub(super) struct Kept {
    pub(super) connections: Arc<Connections>,
    pub(super) condition: Arc<Condition>,
    pub(super) children: Children,
    /// Where as many calls may be at the server as before.
    pub(super) limiter: Option<Arc<Limiter>>,
}

/// Whether a server with this row and these settings is reached as the one of an enabled handle was.
pub(super) fn are_kept(
    (spec, settings): (&ServerSpec, &ServerSettings),
    row: &ServerRow,
    wanted: &ServerSettings,
) -> bool {
    row.is_enabled()
        && row.sealed_problem.is_none()
        && same_way((spec, settings), (&row.spec, wanted))
}

/// The longest that one attempt at a tool of this server may take.
pub(super) fn longest_attempt(spec: &ServerSpec, settings: &ServerSettings) -> Duration {
    let of_tools = spec.tool_overrides.values().filter_map(|tool| tool.timeout);
    of_tools.fold(settings.timeout, Duration::max)
}
