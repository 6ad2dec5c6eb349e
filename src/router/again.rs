//! What happens after a first attempt that failed: whether there is another, and when.
//!
//! The decisions are `policy`'s. Nothing else in the router sleeps.

use std::sync::Arc;

use super::attempt::{attempt, replay_safe};
use super::record::CallRecord;
use super::{RouteError, Router, UpstreamAnswer, admit};
use crate::catalogue::CatalogueEntry;
use crate::clock;
use crate::model::RetryMode;
use crate::policy::{self, Deadline, Decision, Failed, Suppressed};

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
            let settled = if error.headers_do_not_fit() && !std::mem::replace(&mut renewed, true) {
                let Some(new) = self.newer_definition(&entry, deadline, record).await else {
                    return Err(error);
                };
                entry = new;
                record.routed(&entry);
                let _place = match admit::admit(&entry, deadline).await {
                    Ok(place) => place,
                    Err(_busy) => return Err(error),
                };
                attempt(&entry, deadline, record).await
            } else {
                let server = &entry.server;
                match decide(&entry, &mut error, deadline, record.attempts()) {
                    Ok(after) => tokio::time::sleep(after).await,
                    Err(why) => {
                        server.metrics.retries.count_suppressed(why.as_str());
                        return Err(error);
                    }
                }
                // The place was given back meanwhile: a call that sleeps is not in flight.
                let _place = match admit::admit(&entry, deadline).await {
                    Ok(place) => place,
                    Err(_busy) => return Err(error),
                };
                if let Some(failure) = error.failure() {
                    server.metrics.retries.count(failure);
                }
                attempt(&entry, deadline, record).await
            };
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

    /// The definition of the tool that its server lists now, if it is another: the server refused a
    /// call because its headers do not fit, and did not run it, so the definition they were made
    /// from is old (specification 2026-07-28, basic/transports/streamable-http).
    async fn newer_definition(
        &self,
        old: &CatalogueEntry,
        deadline: Deadline,
        record: &CallRecord,
    ) -> Option<Arc<CatalogueEntry>> {
        let newer = |router: &Self| {
            router.lookup(&record.call.target, record.call.view.as_ref()).ok().filter(|new| {
                new.server.name == old.server.name
                    && new.tool == old.tool
                    && new.definition.hash != old.definition.hash
            })
        };
        if let Some(new) = newer(self) {
            return Some(new);
        }
        let asking = self.discovery.discover(&old.server);
        let _ = tokio::time::timeout(deadline.left(clock::uptime()), asking).await;
        newer(self)
    }
}

/// How long to wait before the next attempt, or why there is none.
fn decide(
    entry: &CatalogueEntry,
    error: &mut RouteError,
    deadline: Deadline,
    attempts: u32,
) -> Result<std::time::Duration, Suppressed> {
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
    // The predecessor knew no budget.
    if settings.mode != RetryMode::Seed && !server.breaker.take_retry() {
        return Err(Suppressed::Budget);
    }
    Ok(after)
}
