//! What became of spans.

use prometheus::{IntCounter, Registry};

use super::{MetricsError, counters};

/// What became of spans.
#[derive(Debug, Clone)]
pub struct TraceMetrics {
    exported: IntCounter,
    dropped: IntCounter,
    failed: IntCounter,
}

impl TraceMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, MetricsError> {
        let spans = counters(
            registry,
            "switchyard_trace_spans_total",
            "Recorded spans by what became of them: taken by the collector, dropped because too many waited, or refused by the collector or not delivered in time.",
            &["result"],
        )?;
        Ok(Self {
            exported: spans.with_label_values(&["exported"]),
            dropped: spans.with_label_values(&["dropped"]),
            failed: spans.with_label_values(&["failed"]),
        })
    }

    /// The collector took so many.
    pub(crate) fn exported(&self, spans: usize) {
        self.exported.inc_by(number(spans));
    }

    /// So many did not fit the queue, or were left when the router ended.
    pub(crate) fn dropped(&self, spans: usize) {
        self.dropped.inc_by(number(spans));
    }

    /// The collector did not take so many.
    pub(crate) fn failed(&self, spans: usize) {
        self.failed.inc_by(number(spans));
    }
}

fn number(spans: usize) -> u64 {
    u64::try_from(spans).unwrap_or(u64::MAX)
}
