//! [`AuditQuery::standings`]: how the calls in the ledger stand to what is promised of them.
//!
//! Changes when other calls count. What counts is said to users in `docs/slo.md`, and to Prometheus in
//! `metrics/rules.rs`; the three must agree.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::query::AuditQuery;
use crate::model::{Objective, Outcome, ServerName, Standing, Timestamp};
use crate::store::{AuditFilter, IndexState, StatsBy, StatsPer, StatsQuery, StatsRow, StoreError};

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// One thing that is promised, and of what.
#[derive(Debug, Clone)]
pub struct Promise {
    /// Of this server's calls.
    pub server: ServerName,
    /// Of those to this tool alone, by its exposed name.
    pub tool: Option<String>,
    /// What.
    pub objective: Objective,
    /// Over which time.
    pub window: Duration,
}

/// How the calls stand to one promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standings {
    /// Those of its window.
    pub window: Standing,
    /// Those of the last hour.
    pub hour: Standing,
    /// Those of the last day.
    pub day: Standing,
}

impl AuditQuery {
    /// How calls up to `now` stand to each of these; and how far the index was, beyond which they were
    /// taken from the ledger itself.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn standings(
        &self,
        promises: &[Promise],
        now: Timestamp,
    ) -> Result<(Vec<Standings>, IndexState), StoreError> {
        let within: BTreeSet<Duration> =
            promises.iter().filter_map(|promise| promise.objective.within).collect();
        let within: Vec<Duration> = within.into_iter().collect();
        let spans: BTreeSet<Duration> =
            promises.iter().map(|promise| promise.window).chain([HOUR, DAY]).collect();
        let mut index = IndexState::default();
        let mut sums: HashMap<(bool, Duration, String), StatsRow> = HashMap::new();
        for (by, of_tools) in [(StatsBy::Server, false), (StatsBy::Tool, true)] {
            if !promises.iter().any(|promise| promise.tool.is_some() == of_tools) {
                continue;
            }
            for span in &spans {
                let query = StatsQuery {
                    by,
                    per: StatsPer::Total,
                    filter: AuditFilter::default(),
                    since: now.minus(*span),
                    until: now,
                    within: within.clone(),
                };
                let found = self.store.audit_stats(&query).await?;
                index = found.index;
                for row in found.rows {
                    if let Some(name) = row.name.clone() {
                        sums.insert((of_tools, *span, name), row);
                    }
                }
            }
        }
        let standing = |promise: &Promise, span: Duration| {
            let (of_tool, name) = match &promise.tool {
                Some(tool) => (true, tool.clone()),
                None => (false, promise.server.as_str().to_owned()),
            };
            let row = sums.get(&(of_tool, span, name));
            row.map_or_else(Standing::default, |row| standing(row, promise.objective, &within))
        };
        let all = promises.iter().map(|promise| Standings {
            window: standing(promise, promise.window),
            hour: standing(promise, HOUR),
            day: standing(promise, DAY),
        });
        Ok((all.collect(), index))
    }
}

/// How the calls of a sum stand to an objective. An error that the tool reports is an answer; what was
/// refused or ended through its caller does not count.
fn standing(row: &StatsRow, objective: Objective, within: &[Duration]) -> Standing {
    let of = |outcome: Outcome| row.outcomes.get(outcome.index()).copied().unwrap_or(0);
    let answered = of(Outcome::Ok).saturating_add(of(Outcome::ToolError));
    match objective.within {
        None => {
            let failed =
                [Outcome::RpcError, Outcome::Timeout, Outcome::Unavailable, Outcome::Interrupted];
            let bad = failed.into_iter().map(of).fold(row.faults, u64::saturating_add);
            Standing { calls: answered.saturating_add(bad), bad }
        }
        Some(limit) => {
            // What fails fast is the other objective's; whoever waited in vain waited too long.
            let calls = answered.saturating_add(of(Outcome::Timeout));
            let place = within.iter().position(|known| *known == limit);
            let good = place.and_then(|place| row.within.get(place)).copied().unwrap_or(0);
            Standing { calls, bad: calls.saturating_sub(good) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_caused_does_not_count_and_what_it_waited_for_does() {
        let mut outcomes = [0; Outcome::ALL.len()];
        for (outcome, calls) in [
            (Outcome::Ok, 90),
            (Outcome::ToolError, 10),
            (Outcome::RpcError, 3),
            (Outcome::Timeout, 4),
            (Outcome::Unavailable, 5),
            (Outcome::Refused, 50),
            (Outcome::Cancelled, 60),
            (Outcome::Interrupted, 1),
        ] {
            outcomes[outcome.index()] = calls;
        }
        let row = StatsRow {
            start: Timestamp::from_millis(0),
            name: None,
            calls: 223,
            errors: 133,
            p50: None,
            p95: None,
            outcomes,
            faults: 7,
            within: vec![20, 80],
            request_bytes: 0,
            response_bytes: 0,
        };
        let within = [Duration::from_secs(1), Duration::from_secs(2)];
        let success = Objective { name: "success", target: 0.99, within: None };
        assert_eq!(standing(&row, success, &within), Standing { calls: 120, bad: 20 });
        let p95 = Objective { name: "latency_p95", target: 0.95, within: Some(within[1]) };
        assert_eq!(standing(&row, p95, &within), Standing { calls: 104, bad: 24 });
    }
}
