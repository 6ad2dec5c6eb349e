//! Whether a call may go to its server now.
//!
//! The breaker's permit will be taken here too: it is asked after the waiting room, so that a
//! call that waited does not hold a permit.

use crate::catalogue::CatalogueEntry;
use crate::clock;
use crate::policy::Deadline;
use crate::registry::Place;

use super::RouteError;
use super::record::CallRecord;

/// Takes a place at the server; waits for one within the deadline.
///
/// # Errors
/// [`RouteError::ServerDisabled`] or [`RouteError::Overloaded`].
pub(super) async fn admit<'a>(
    entry: &'a CatalogueEntry,
    deadline: Deadline,
    record: &mut CallRecord,
) -> Result<Place<'a>, RouteError> {
    let server = &entry.server;
    if !server.enabled {
        return Err(RouteError::ServerDisabled { server: server.name.clone() });
    }
    let left = deadline.left(clock::uptime());
    let place = server.limiter.enter(left, |change| server.metrics.queue_depth.add(change)).await;
    record.queued_until(clock::uptime());
    place.ok().ok_or_else(|| RouteError::Overloaded {
        server: server.name.clone(),
        limit: server.settings.max_concurrency,
    })
}
