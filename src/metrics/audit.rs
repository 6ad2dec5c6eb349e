//! What the ledger's writer reports.

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use crate::model::{Outcome, Timestamp};

/// From one fast commit on a local disk to one that waits out another process' lock.
const COMMIT_BUCKETS: [f64; 12] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// What the ledger's writer reports.
#[derive(Debug, Clone)]
pub struct AuditMetrics {
    /// One for each of [`Outcome::ALL`], in its order.
    recorded: [IntCounter; Outcome::ALL.len()],
    dropped: IntCounter,
    pruned: IntCounter,
    queue_depth: IntGauge,
    spool: IntGauge,
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
        let dropped = IntCounter::new(
            "switchyard_audit_dropped_total",
            "Tool calls that are missing from the ledger because it could not be written in time.",
        )?;
        registry.register(Box::new(dropped.clone()))?;
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
        let spool = IntGauge::new(
            "switchyard_audit_spool_bytes",
            "Bytes of rows that wait in the ledger's spool because its database could not be written.",
        )?;
        registry.register(Box::new(spool.clone()))?;
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
            dropped,
            pruned,
            queue_depth,
            spool,
            commit_duration,
            oldest,
        })
    }

    /// A call with this outcome is in the ledger.
    pub(crate) fn recorded(&self, outcome: Outcome) {
        let place = Outcome::ALL.iter().position(|known| *known == outcome);
        if let Some(counter) = place.and_then(|place| self.recorded.get(place)) {
            counter.inc();
        }
    }

    /// `calls` will never be in the ledger.
    pub(crate) fn dropped(&self, calls: usize) {
        self.dropped.inc_by(u64::try_from(calls).unwrap_or(u64::MAX));
    }

    /// `rows` were removed; what is left begins with the call that came in at `oldest`.
    pub(crate) fn pruned(&self, rows: u64, oldest: Option<Timestamp>) {
        self.pruned.inc_by(rows);
        match oldest {
            Some(at) => self.oldest(at),
            None => self.oldest.set(0.0),
        }
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
}
