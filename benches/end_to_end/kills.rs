//! What a `kill -9` costs at full load: the age of the newest call on record, and how many are lost.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::load;
use crate::targets::Target;

/// How long calls go on before the first kill; each further one comes a little later than the one before.
const AFTER: Duration = Duration::from_millis(1_200);
const LATER: Duration = Duration::from_millis(37);
const STEPS: u32 = 11;

/// One kill.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kill {
    /// Calls that were answered, a second.
    pub(crate) calls_per_second: f64,
    /// Answered calls without a row.
    pub(crate) lost: u64,
    /// From the end of the newest call on record to the kill.
    pub(crate) newest_ms: f64,
}

/// Calls over so many connections, until the router is killed in the midst of it.
pub(crate) async fn kill(target: Target, data: &Path, connections: usize, at: u32) -> Result<Kill> {
    let after = AFTER + LATER * (at % STEPS);
    let before = rows(data).await?.0;
    let endpoint = target.endpoint.clone();
    let killing = async {
        tokio::time::sleep(after).await;
        let now = SystemTime::now();
        target.kill();
        now
    };
    let (answered, killed) = tokio::join!(load::until_cut(&endpoint, connections), killing);
    let answered = answered?;
    let killed = killed.duration_since(UNIX_EPOCH)?.as_secs_f64() * 1e3;
    let (count, newest_ms) = rows(data).await?;
    Ok(Kill {
        calls_per_second: answered as f64 / after.as_secs_f64(),
        lost: answered.saturating_sub(count - before),
        newest_ms: killed - newest_ms,
    })
}

/// How many calls are on record, and when the last of them ended, in milliseconds since 1970.
async fn rows(data: &Path) -> Result<(u64, f64)> {
    let options = SqliteConnectOptions::new().filename(data.join("audit.db"));
    let mut ledger = SqliteConnection::connect_with(&options).await?;
    let (count, newest): (i64, f64) = sqlx::query_as(
        "select count(*), coalesce(max(started_at_ms + total_us / 1000.0), 0.0) from calls",
    )
    .fetch_one(&mut ledger)
    .await
    .context("could not read the ledger")?;
    ledger.close().await?;
    Ok((count.try_into()?, newest))
}
