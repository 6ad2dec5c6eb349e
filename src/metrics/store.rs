//! What the data folder's files take.

use prometheus::{IntGauge, IntGaugeVec, Registry};

use super::{MetricsError, gauges};

/// One database file, as it was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSample {
    /// Its name in the data folder; of a closed set.
    pub file: &'static str,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of its write-ahead log.
    pub wal_bytes: u64,
    /// Bytes that it may grow to; 0 when nothing limits it.
    pub limit_bytes: u64,
}

/// What the data folder's files take. Looked up on a timer, never by a scrape.
#[derive(Debug)]
pub struct StoreMetrics {
    size: IntGaugeVec,
    limit: IntGaugeVec,
    wal: IntGaugeVec,
    free: IntGauge,
}

impl StoreMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, MetricsError> {
        let free = IntGauge::new(
            "switchyard_store_free_bytes",
            "Bytes that are free for the router on the file system of the data folder. Looked up every few seconds.",
        )?;
        registry.register(Box::new(free.clone()))?;
        Ok(Self {
            size: gauges(
                registry,
                "switchyard_store_size_bytes",
                "Size in bytes of a database file of the data folder, without its write-ahead log. Looked up every few seconds.",
                &["file"],
            )?,
            limit: gauges(
                registry,
                "switchyard_store_limit_bytes",
                "Bytes that the configuration lets a database file grow to (audit.max_size for the ledger) before its oldest rows are removed; 0: no limit.",
                &["file"],
            )?,
            wal: gauges(
                registry,
                "switchyard_store_wal_bytes",
                "Size in bytes of the write-ahead log of a database file.",
                &["file"],
            )?,
            free,
        })
    }

    /// Shows how large a file is.
    pub fn set_file(&self, sample: FileSample) {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.size.with_label_values(&[sample.file]).set(signed(sample.bytes));
        self.wal.with_label_values(&[sample.file]).set(signed(sample.wal_bytes));
        self.limit.with_label_values(&[sample.file]).set(signed(sample.limit_bytes));
    }

    /// Shows how much space is left.
    pub fn set_free(&self, bytes: u64) {
        self.free.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}
