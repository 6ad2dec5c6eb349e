//! What happens after a first attempt that failed: whether there is another, and when.
//!
//! The decisions are `policy`'s. Nothing else in the router sleeps.

use std::sync::Arc;
use std::time::Duration;

use super::attempt::{attempt, replay_safe};
use super::error::Outdated;
use super::record::CallRecord;
use super::{RouteError, Router, UpstreamAnswer, admit};
use crate::catalogue::CatalogueEntry;
use crate::clock;
use crate::metrics::RetryMetrics;
use crate::model::{Failure, RetryMode};
use crate::policy::{self, Deadline, Decision, Failed, SHORTEST_ATTEMPT, Suppressed};
use crate::registry::ServerBreaker;

impl Router {
    /// Makes further attempts after one that ended with `error`, while that is safe, within the
    /// deadline and the budget, and not refused by the breaker.
    ///
    /// # Errors
    /// The error of the last attempt that was made, with what is known after all of them.
    pub(super) async fn again(
        &self,
        mut entry: Arc<CatalogueEntry>,
        mut error: RouteError,
        deadline: Deadline,
        record: &mut CallRecord,
    ) -> Result<UpstreamAnswer, RouteError> {
        let mut renewed = false;
        loop {
            let outdated = error.outdated().filter(|_| !std::mem::replace(&mut renewed, true));
            let turn = match outdated {
                Some(Outdated::Definition) => {
                    self.renew(&entry, deadline, record, &error).await.ok_or(Suppressed::Final)
                }
                // The connection was given up, and the next one begins with the question for a version
                // and has a session of its own.
                Some(Outdated::Version | Outdated::Session) => {
                    let same = self.still(&entry, record).ok_or(Suppressed::Changed);
                    same.map(|same| (same, Retry { budget: None, after: error.failure() }))
                }
                None => self.repeat(&entry, &mut error, deadline, record).await,
            };
            let (next, retry) = match turn {
                Ok(turn) => turn,
                Err(why) => {
                    entry.server.metrics.retries.count_suppressed(why.as_str());
                    return Err(error);
                }
            };
            if !Arc::ptr_eq(&next, &entry) {
                record.routed(&next);
                entry = next;
            }
            let Ok(_place) = admit::admit(&entry, deadline).await else { return Err(error) };
            if deadline.left(clock::uptime()) < SHORTEST_ATTEMPT {
                let why = Suppressed::Deadline.as_str();
                entry.server.metrics.retries.count_suppressed(why);
                return Err(error);
            }
            if let Some(relay) = &record.relay {
                relay.begin_again();
            }
            // It is the attempt's from its beginning on, so that it counts also when the caller leaves.
            record.repeats(retry);
            let settled = attempt(&entry, deadline, record).await;
            record.repeats_not();
            match settled {
                Ok(answer) => return Ok(answer),
                Err(RouteError::BreakerOpen { rejection, .. }) => {
                    let why = Suppressed::Breaker.as_str();
                    entry.server.metrics.retries.count_suppressed(why);
                    error.wait_at_least(rejection.retry_after());
                    return Err(error);
                }
                Err(next @ RouteError::Upstream(_)) => {
                    error = next.after(&error, replay_safe(&entry));
                }
                // Nothing was sent this time: what happened before is what counts.
                Err(_other) => return Err(error),
            }
        }
    }

    /// Waits until it is time for a repeat, and gives what is repeated and the right to it.
    async fn repeat(
        &self,
        entry: &Arc<CatalogueEntry>,
        error: &mut RouteError,
        deadline: Deadline,
        record: &CallRecord,
    ) -> Result<(Arc<CatalogueEntry>, Retry), Suppressed> {
        if record.relay.as_ref().is_some_and(|relay| relay.has_asked()) {
            return Err(Suppressed::Asked);
        }
        let after = decide(entry, error, deadline, record.attempts())?;
        let retry = Retry::take(entry, error.failure())?;
        // The place was given back meanwhile: a call that sleeps is not in flight.
        let sleeper =
            entry.server.limiter.sleep(record.call.request_bytes).ok_or(Suppressed::Overload)?;
        tokio::time::sleep(after).await;
        drop(sleeper);
        let entry = self.still(entry, record).ok_or(Suppressed::Changed)?;
        Ok((entry, retry))
    }

    /// The tool as it is now, if it is the one that was called: its server may have been changed,
    /// disabled or removed meanwhile.
    fn still(&self, old: &Arc<CatalogueEntry>, record: &CallRecord) -> Option<Arc<CatalogueEntry>> {
        let now = self.lookup(&record.call.target, record.call.view.as_ref()).ok()?;
        let server = self.discovery.server(now.server.name.as_str())?;
        let same = now.server.name == old.server.name
            && now.tool == old.tool
            && now.definition.hash == old.definition.hash;
        (same && server.enabled && Arc::ptr_eq(&server, &now.server)).then_some(now)
    }

    /// The definition of the tool that its server lists now, if it is another: the server refused a
    /// call because its headers do not fit, and did not run it, so the definition they were made
    /// from is old (specification 2026-07-28, basic/transports/streamable-http). That is not waited for
    /// and takes nothing of the budget, but it is counted as what it is, a repeat.
    async fn renew(
        &self,
        old: &CatalogueEntry,
        deadline: Deadline,
        record: &CallRecord,
        error: &RouteError,
    ) -> Option<(Arc<CatalogueEntry>, Retry)> {
        let newer = || {
            let found = self.lookup(&record.call.target, record.call.view.as_ref()).ok();
            let newer = found.filter(|new| {
                new.server.name == old.server.name
                    && new.tool == old.tool
                    && new.definition.hash != old.definition.hash
            });
            newer.map(|new| (new, Retry { budget: None, after: error.failure() }))
        };
        if let Some(new) = newer() {
            return Some(new);
        }
        let asking = self.discovery.discover(&old.server);
        let _ = tokio::time::timeout(deadline.left(clock::uptime()), asking).await;
        newer()
    }
}

/// A retry taken out of the budget; dropped before it is made, it is put back.
#[derive(Debug)]
pub(super) struct Retry {
    /// `None` where there is no budget.
    budget: Option<Arc<ServerBreaker>>,
    /// What the attempt met that is repeated.
    after: Option<Failure>,
}

impl Retry {
    fn take(entry: &CatalogueEntry, after: Option<Failure>) -> Result<Self, Suppressed> {
        let server = &entry.server;
        // The predecessor knew no budget.
        if server.settings.retry.mode == RetryMode::Seed {
            return Ok(Self { budget: None, after });
        }
        match server.breaker.take_retry() {
            true => Ok(Self { budget: Some(Arc::clone(&server.breaker)), after }),
            false => Err(Suppressed::Budget),
        }
    }

    /// It was made, however it ended: it is spent, and counted.
    pub(super) fn made(mut self, metrics: &RetryMetrics) {
        self.budget = None;
        if let Some(failure) = self.after {
            metrics.count(failure);
        }
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.put_retry_back();
        }
    }
}

/// How long to wait before the next attempt, or why there is none.
fn decide(
    entry: &CatalogueEntry,
    error: &mut RouteError,
    deadline: Deadline,
    attempts: u32,
) -> Result<Duration, Suppressed> {
    let server = &entry.server;
    let RouteError::Upstream(last) = &*error else {
        return Err(Suppressed::Final);
    };
    let failed = Failed {
        failure: last.failure,
        may_pass: last.source.may_pass(),
        retry_after: last.retry_after,
        attempts,
    };
    let settings = &server.settings.retry;
    let left = deadline.left(clock::uptime());
    let random = fastrand::f64();
    let after = match policy::decide(settings, failed, replay_safe(entry), left, random) {
        Decision::Retry { after } => after,
        Decision::Stop(why) => return Err(why),
    };
    let breakers = [Some(&server.breaker), entry.breaker.as_ref()];
    if let Some(rejection) =
        breakers.into_iter().flatten().find_map(|breaker| breaker.would_refuse())
    {
        error.wait_at_least(rejection.retry_after());
        return Err(Suppressed::Breaker);
    }
    Ok(after)
}
