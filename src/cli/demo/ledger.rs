//! Whether the ledger holds the demo's calls: read through the API, as anybody could.
//!
//! Changes when the closing count does.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Deserialize;

use super::super::client::{Ask, Client};
use super::CliError;
use crate::clock;

/// What the ledger holds.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Rows in all.
    pub(super) rows: usize,
    /// Rows that are not the demo's: whoever tried what it printed.
    pub(super) others: usize,
    /// Calls of the demo without a row.
    pub(super) missing: usize,
    /// Rows of the demo's calls by outcome.
    pub(super) outcomes: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Page {
    calls: Vec<Row>,
    #[serde(default)]
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Row {
    id: String,
    outcome: String,
}

/// A batch is committed after 100 ms; a busy disk gets a little more.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// Reads the ledger until it holds every call in `ids`, or gives up waiting.
pub(super) async fn read(client: &Client, ids: &HashSet<String>) -> Result<Ledger, CliError> {
    let begin = clock::uptime();
    loop {
        let ledger = compare(&rows(client).await?, ids);
        if ledger.missing == 0 || clock::uptime().since(begin) > COMMIT_PATIENCE {
            return Ok(ledger);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn compare(rows: &[Row], ids: &HashSet<String>) -> Ledger {
    let mut ledger = Ledger { rows: rows.len(), missing: ids.len(), ..Ledger::default() };
    for row in rows {
        if ids.contains(&row.id) {
            ledger.missing = ledger.missing.saturating_sub(1);
            *ledger.outcomes.entry(row.outcome.clone()).or_default() += 1;
        } else {
            ledger.others += 1;
        }
    }
    ledger
}

async fn rows(client: &Client) -> Result<Vec<Row>, CliError> {
    let mut rows = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let ask = Ask::get(&["mcp", "audit"]).with("limit", Some("500")).with("cursor", cursor);
        let page: Page = client.request(ask).await?.parse()?;
        rows.extend(page.calls);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_rows_are_told_from_others_and_missing_ones() {
        let row = |id: &str, outcome: &str| Row { id: id.into(), outcome: outcome.into() };
        let rows = [row("a", "ok"), row("x", "refused"), row("b", "tool_error"), row("c", "ok")];
        let ids = ["a", "b", "c", "d"].map(str::to_owned).into();
        let ledger = compare(&rows, &ids);
        assert_eq!((ledger.rows, ledger.others, ledger.missing), (4, 1, 1));
        assert_eq!(ledger.outcomes["ok"], 2);
        assert!(!ledger.outcomes.contains_key("refused"));
    }
}
