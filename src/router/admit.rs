//! Whether a call may go to its server now: the server is enabled and has a free place.
//!
//! The breaker's permit is taken later, for each attempt: a call that waits here must not hold one.

use crate::catalogue::CatalogueEntry;
use crate::clock;
use crate::policy::Deadline;
use crate::registry::Place;

use super::RouteError;

/// Takes a place at the server; waits for one within the deadline, but not in front of a breaker
/// that is open.
///
/// # Errors
/// [`RouteError::ServerDisabled`], [`RouteError::BreakerOpen`] or [`RouteError::Overloaded`].
pub(super) async fn admit(
    entry: &CatalogueEntry,
    deadline: Deadline,
) -> Result<Place<'_>, RouteError> {
    let server = &entry.server;
    if !server.enabled {
        return Err(RouteError::ServerDisabled { server: server.name.clone() });
    }
    if let Some(place) = server.limiter.try_enter() {
        return Ok(place);
    }
    if let Some(rejection) = server.breaker.refuses() {
        return Err(RouteError::breaker(&server.breaker, rejection));
    }
    let left = deadline.left(clock::uptime());
    let place = server.limiter.enter(left, |change| server.metrics.queue_depth.add(change)).await;
    place.ok().ok_or_else(|| RouteError::Overloaded {
        server: server.name.clone(),
        limit: server.settings.max_concurrency,
    })
}
