//! [`Gauges`]: metrics that need a look at files or the database, taken on a timer, so that neither a
//! call nor a scrape waits for them.
//!
//! Changes when another such value is shown.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::audit::AuditWriter;
use crate::clock;
use crate::metrics::{FileSample, Metrics};
use crate::model::Uptime;
use crate::store::{Store, StoreError, StoreSize};

/// How old what is shown may be.
const LOOK: Duration = Duration::from_secs(5);

/// What is looked at.
pub(super) struct Gauges {
    store: Store,
    audit: AuditWriter,
    metrics: Arc<Metrics>,
    data_dir: PathBuf,
    /// Bytes that the ledger may take.
    max_size: u64,
    began: Uptime,
}

impl Gauges {
    pub(super) fn new(
        store: Store,
        audit: AuditWriter,
        metrics: Arc<Metrics>,
        data_dir: PathBuf,
        max_size: u64,
    ) -> Self {
        Self { store, audit, metrics, data_dir, max_size, began: clock::uptime() }
    }

    /// Looks again and again until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.look() => {}
            }
        }
    }

    /// Looks at everything once.
    pub(super) async fn look(&self) {
        self.audit.show_load();
        self.metrics.forget_left_tools(clock::uptime());
        let (store, folder) = (self.store.clone(), self.data_dir.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let free = rustix::fs::statvfs(&folder);
            let free = free.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
            (store.size_bytes(), free)
        });
        if let Ok((sizes, free)) = looked.await {
            for (file, size) in sizes.files() {
                self.metrics.store.set_file(FileSample {
                    file,
                    bytes: size.database_bytes,
                    wal_bytes: size.wal_bytes,
                    limit_bytes: if file == StoreSize::LEDGER { self.max_size } else { 0 },
                });
            }
            // A disk that cannot be asked is shown as it was.
            if let Ok(free) = free {
                self.metrics.store.set_free(free);
            }
        }
        // Also set by whoever adds to the ledger or prunes it; here so that the first scrape has it.
        if let Ok(Some(oldest)) = self.store.audit_oldest().await {
            self.metrics.audit.oldest(oldest);
        }
        match self.store.index_behind_since().await {
            Ok(None) => self.metrics.audit.index_lag(clock::uptime().since(self.began)),
            Ok(Some(None)) => self.metrics.audit.index_lag(Duration::ZERO),
            Ok(Some(Some(since))) => {
                self.metrics.audit.index_lag(clock::timestamp().since(since));
            }
            Err(StoreError::Closed) => {}
            Err(error) => tracing::debug!(%error, "the lag of the ledger's index is not known"),
        }
    }
}
