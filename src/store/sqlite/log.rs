//! [`Log`]: a database's write-ahead log, moved to its file and emptied.
//!
//! Changes when logs are kept short in another way.

use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};

use crate::store::StoreError;

/// Between two steps at least this long, and as long as the step took: others come first.
const REST: Duration = Duration::from_millis(2);
/// How often the log is tried to be emptied, and how long between.
const EMPTY_TRIES: u32 = 40;
const EMPTY_WAIT: Duration = Duration::from_millis(50);

/// The write-ahead log, kept short on a connection of its own: a writer that has to move it to the
/// file waits for that.
pub(super) struct Log {
    connection: SqliteConnection,
    steps: u32,
}

impl Log {
    /// That of the database that is opened so. Nothing may be attached: SQLite moves the logs of all
    /// databases of a connection, and keeps their writers waiting for that.
    pub(super) async fn open(options: &SqliteConnectOptions) -> Result<Self, StoreError> {
        // Whoever is at work goes first.
        let options = options.clone().busy_timeout(Duration::ZERO);
        Ok(Self { connection: options.connect().await?, steps: 0 })
    }

    pub(super) async fn after_step(&mut self, took: Duration) -> Result<(), StoreError> {
        self.steps = self.steps.wrapping_add(1);
        if self.steps.is_multiple_of(2) {
            self.checkpoint("pragma wal_checkpoint(passive)").await?;
        }
        tokio::time::sleep(took.max(REST)).await;
        Ok(())
    }

    /// Empties it, unless others keep it from that for too long.
    pub(super) async fn empty(&mut self) -> Result<bool, StoreError> {
        for _ in 0..EMPTY_TRIES {
            if self.shorten().await? {
                return Ok(true);
            }
            tokio::time::sleep(EMPTY_WAIT).await;
        }
        Ok(false)
    }

    /// Empties it, unless others keep it from that now.
    pub(super) async fn shorten(&mut self) -> Result<bool, StoreError> {
        self.checkpoint("pragma wal_checkpoint(passive)").await?;
        self.checkpoint("pragma wal_checkpoint(truncate)").await
    }

    /// Not only dropped, which closes it some time later: the last connection to go takes the log away.
    pub(super) async fn close(self) -> Result<(), StoreError> {
        self.connection.close().await?;
        Ok(())
    }

    async fn checkpoint(&mut self, sql: &'static str) -> Result<bool, StoreError> {
        match sqlx::query(sql).fetch_one(&mut self.connection).await.map_err(StoreError::from) {
            Ok(row) => Ok(row.try_get::<i64, _>(0)? == 0),
            Err(StoreError::Busy { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
