//! What the ledger's writer reports.

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use crate::model::{CallerClass, Outcome, Timestamp};

/// From one fast commit on a local disk to one that waits out another process' lock.
const COMMIT_BUCKETS: [f64; 12] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// What the ledger's writer reports.
#[derive(Debug, Clone)]
pub struct AuditMetrics {
    /// One for each of [`Outcome::ALL`], in its order.
    recorded: [IntCounter; Outcome::ALL.len()],
    /// One for each class of caller and outcome, likewise.
    calls: [[IntCounter; Outcome::ALL.len()]; CallerClass::ALL.len()],
    throttled: IntCounter,
    dropped: IntCounter,
    dropped_entries: IntCounter,
    pruned: IntCounter,
    queue_depth: IntGauge,
    queue_limit: IntGauge,
    queue_places: IntGauge,
    queue_bytes: IntGauge,
    queue_limit_bytes: IntGauge,
    index_lag: Gauge,
    spool: IntGauge,
    spool_open: IntGauge,
    rejected: IntCounter,
    commit_duration: Histogram,
    oldest: Gauge,
}

impl AuditMetrics {
    /// Calls committed since the start.
    #[must_use]
    pub fn calls_recorded(&self) -> u64 {
        self.recorded.iter().map(IntCounter::get).sum()
    }

    /// Registers the ledger's metrics; every outcome is there at zero.
    ///
    /// # Errors
    /// When one of the names is taken in `registry`.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let recorded = IntCounterVec::new(
            Opts::new(
                "switchyard_audit_events_total",
                "Tool calls committed to the ledger, by how they ended.",
            ),
            &["outcome"],
        )?;
        registry.register(Box::new(recorded.clone()))?;
        let calls = IntCounterVec::new(
            Opts::new(
                "switchyard_calls_total",
                "Tool calls that ended, also refused ones, by how they ended and class of caller: key (with a key or over the admin socket), client (without, its client gave a name), anonymous. Each has its row in the ledger or is counted as dropped, but for those that were refused because the ledger had no place for them.",
            ),
            &["caller_class", "outcome"],
        )?;
        registry.register(Box::new(calls.clone()))?;
        let throttled = IntCounter::new(
            "switchyard_audit_throttled_total",
            "Tool calls that waited, for a quarter of a second at most, before they were sent, because calls ended faster than the ledger writes them; with durability batched.",
        )?;
        registry.register(Box::new(throttled.clone()))?;
        let dropped = IntCounter::new(
            "switchyard_audit_dropped_total",
            "Tool calls that are missing from the ledger because it could not be written in time.",
        )?;
        registry.register(Box::new(dropped.clone()))?;
        let dropped_entries = IntCounter::new(
            "switchyard_audit_dropped_entries_total",
            "Entries beside tool calls (administrative acts, changes of definitions, transitions of circuit breakers) that are missing from the ledger because it could not be written in time.",
        )?;
        registry.register(Box::new(dropped_entries.clone()))?;
        let pruned = IntCounter::new(
            "switchyard_audit_pruned_total",
            "Rows that were removed from the ledger because of their age or its size, or on demand.",
        )?;
        registry.register(Box::new(pruned.clone()))?;
        let queue_depth = IntGauge::new(
            "switchyard_audit_queue_depth",
            "Finished tool calls that wait to be committed to the ledger.",
        )?;
        registry.register(Box::new(queue_depth.clone()))?;
        let queue_limit = IntGauge::new(
            "switchyard_audit_queue_limit",
            "Tool calls that may be under way or wait for the ledger; a call that finds no place is refused.",
        )?;
        registry.register(Box::new(queue_limit.clone()))?;
        let queue_places = IntGauge::new(
            "switchyard_audit_queue_places",
            "Places of the ledger's queue that are taken, of switchyard_audit_queue_limit: by tool calls under way, and by finished ones that wait to be committed. Looked at every few seconds.",
        )?;
        registry.register(Box::new(queue_places.clone()))?;
        let queue_bytes = IntGauge::new(
            "switchyard_audit_queue_bytes",
            "Bytes of arguments and results of finished tool calls that wait to be committed to the ledger. Looked at every few seconds.",
        )?;
        registry.register(Box::new(queue_bytes.clone()))?;
        let queue_limit_bytes = IntGauge::new(
            "switchyard_audit_queue_limit_bytes",
            "Bytes of arguments and results that may wait for the ledger; beyond it calls are refused.",
        )?;
        registry.register(Box::new(queue_limit_bytes.clone()))?;
        let index_lag = Gauge::new(
            "switchyard_audit_index_lag_seconds",
            "How long ago, in seconds, the oldest call ended that is not in the ledger's index yet; 0 when all are. Looked up every few seconds.",
        )?;
        registry.register(Box::new(index_lag.clone()))?;
        let spool = IntGauge::new(
            "switchyard_audit_spool_bytes",
            "Bytes of rows that wait in the ledger's spool because its database could not be written.",
        )?;
        registry.register(Box::new(spool.clone()))?;
        let spool_open = IntGauge::new(
            "switchyard_audit_spool_open",
            "1 when the ledger has a spool to put rows in, 0 when none is configured or it could not be opened.",
        )?;
        registry.register(Box::new(spool_open.clone()))?;
        let rejected = IntCounter::new(
            "switchyard_audit_rejected_total",
            "Rows of the ledger's spool that the database did not take; they are in a file beside it.",
        )?;
        registry.register(Box::new(rejected.clone()))?;
        let commit_duration = Histogram::with_opts(
            HistogramOpts::new(
                "switchyard_audit_commit_duration_seconds",
                "Time in seconds to commit one batch of calls to the ledger, sync included.",
            )
            .buckets(COMMIT_BUCKETS.to_vec()),
        )?;
        registry.register(Box::new(commit_duration.clone()))?;
        let oldest = Gauge::new(
            "switchyard_audit_oldest_timestamp_seconds",
            "Unix time in seconds at which the oldest call in the ledger came in; 0 when it is empty.",
        )?;
        registry.register(Box::new(oldest.clone()))?;
        Ok(Self {
            recorded: Outcome::ALL.map(|outcome| recorded.with_label_values(&[outcome.as_str()])),
            calls: CallerClass::ALL.map(|class| {
                Outcome::ALL
                    .map(|outcome| calls.with_label_values(&[class.as_str(), outcome.as_str()]))
            }),
            throttled,
            dropped,
            dropped_entries,
            pruned,
            queue_depth,
            queue_limit,
            queue_places,
            queue_bytes,
            queue_limit_bytes,
            index_lag,
            spool,
            spool_open,
            rejected,
            commit_duration,
            oldest,
        })
    }

    /// A call with this outcome is in the ledger.
    pub(crate) fn recorded(&self, outcome: Outcome) {
        if let Some(counter) = self.recorded.get(outcome.index()) {
            counter.inc();
        }
    }

    /// A call ended, and its row is on its way to the ledger, or there was no place for one.
    pub fn ended(&self, class: CallerClass, outcome: Outcome) {
        let place = self.calls.get(class as usize);
        if let Some(counter) = place.and_then(|counters| counters.get(outcome.index())) {
            counter.inc();
        }
    }

    /// So many calls, and bytes of theirs, may be under way or wait to be committed.
    pub(crate) fn queue_limit(&self, calls: usize, bytes: usize) {
        self.queue_limit.set(i64::try_from(calls).unwrap_or(i64::MAX));
        self.queue_limit_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// So much of that is taken.
    pub(crate) fn queue_load(&self, calls: usize, bytes: usize) {
        self.queue_places.set(i64::try_from(calls).unwrap_or(i64::MAX));
        self.queue_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// How far the ledger's index is behind.
    pub(crate) fn index_lag(&self, lag: std::time::Duration) {
        self.index_lag.set(lag.as_secs_f64());
    }

    /// `calls` will never be in the ledger.
    pub(crate) fn dropped(&self, calls: usize) {
        self.dropped.inc_by(u64::try_from(calls).unwrap_or(u64::MAX));
    }

    /// `entries` beside calls will never be in the ledger.
    pub(crate) fn dropped_entries(&self, entries: u64) {
        self.dropped_entries.inc_by(entries);
    }

    /// `rows` were removed; what is left begins with the call that came in at `oldest`.
    pub(crate) fn pruned(&self, rows: u64, oldest: Option<Timestamp>) {
        self.pruned.inc_by(rows);
        match oldest {
            Some(at) => self.oldest(at),
            None => self.oldest.set(0.0),
        }
    }

    /// A call waits for the ledger before it is sent.
    pub(crate) fn throttled(&self) {
        self.throttled.inc();
    }

    /// A call waits to be committed.
    pub(crate) fn queued(&self) {
        self.queue_depth.inc();
    }

    /// `calls` wait no longer.
    pub(crate) fn dequeued(&self, calls: usize) {
        self.queue_depth.sub(i64::try_from(calls).unwrap_or(i64::MAX));
    }

    /// So many bytes wait in the spool.
    pub(crate) fn spooled(&self, bytes: u64) {
        self.spool.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// There is a spool to put rows in.
    pub(crate) fn spool_is_open(&self) {
        self.spool_open.set(1);
    }

    /// So many rows of the spool were set aside.
    pub(crate) fn rejected(&self, rows: u64) {
        self.rejected.inc_by(rows);
    }

    /// A batch was committed.
    pub(crate) fn committed(&self, duration: std::time::Duration) {
        self.commit_duration.observe(duration.as_secs_f64());
    }

    /// When the oldest call in the ledger came in.
    pub(crate) fn oldest(&self, at: Timestamp) {
        let since_epoch = at.since(Timestamp::from_millis(0));
        self.oldest.set(since_epoch.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_is_there_at_zero() {
        let registry = Registry::new();
        let metrics = AuditMetrics::register(&registry).unwrap();
        metrics.recorded(Outcome::Timeout);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for outcome in Outcome::ALL {
            let count = u8::from(outcome == Outcome::Timeout);
            let line = format!(
                "switchyard_audit_events_total{{outcome=\"{}\"}} {count}\n",
                outcome.as_str()
            );
            assert!(text.contains(&line), "{text}");
        }
        assert!(AuditMetrics::register(&registry).is_err(), "names are taken");
    }

    #[test]
    fn every_class_of_caller_has_every_outcome() {
        let registry = Registry::new();
        let metrics = AuditMetrics::register(&registry).unwrap();
        for (n, class) in CallerClass::ALL.into_iter().enumerate() {
            for (m, outcome) in Outcome::ALL.into_iter().enumerate() {
                for _ in 0..10 * n + m {
                    metrics.ended(class, outcome);
                }
            }
        }
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for (n, class) in CallerClass::ALL.into_iter().enumerate() {
            for (m, outcome) in Outcome::ALL.into_iter().enumerate() {
                let (class, outcome, count) = (class.as_str(), outcome.as_str(), 10 * n + m);
                let line = format!(
                    "switchyard_calls_total{{caller_class=\"{class}\",outcome=\"{outcome}\"}} {count}\n"
                );
                assert!(text.contains(&line), "{line}{text}");
            }
        }
    }
}
