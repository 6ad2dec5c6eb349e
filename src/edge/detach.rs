//! [`Detached`]: a call that outlives the connection it came on.
//!
//! In the legacy era a lost connection is not a cancellation (specification 2025-11-25,
//! basic/transports), so the call must end as if the client were still there. Spawning every call
//! for that would cost each of them a task; this moves only those to a task whose client left.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Edge;
use crate::router::Relay;

/// A boxed future that is finished in the background when it is dropped before its end. There it
/// hears of nothing but its client's cancellation and the router's end: what servers ask it finds nobody.
pub(super) struct Detached<T: Send + 'static> {
    future: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    tasks: TaskTracker,
    abort: CancellationToken,
    relay: Option<Arc<Relay>>,
}

impl<T: Send + 'static> Detached<T> {
    pub(super) fn new(
        future: impl Future<Output = T> + Send + 'static,
        edge: &Edge,
        relay: Option<Arc<Relay>>,
    ) -> Self {
        let (tasks, abort) = (edge.calls.clone(), edge.abort.clone());
        Self { future: Some(Box::pin(future)), tasks, abort, relay }
    }
}

impl<T: Send + 'static> Detached<T> {
    /// Ends the call where it stands.
    pub(super) fn abandon(mut self) {
        self.future = None;
    }
}

impl<T: Send + 'static> Future for Detached<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(future) = self.future.as_mut() else { return Poll::Pending };
        let polled = future.as_mut().poll(context);
        if polled.is_ready() {
            self.future = None;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take()
            && tokio::runtime::Handle::try_current().is_ok()
            && !self.abort.is_cancelled()
        {
            let abort = self.abort.clone();
            let relay = self.relay.take().inspect(|relay| relay.close());
            let cancelled = async move {
                match relay {
                    Some(relay) => relay.cancelled().await,
                    None => std::future::pending().await,
                }
            };
            self.tasks.spawn(async move {
                tokio::select! {
                    _answer = future => {}
                    () = cancelled => {}
                    () = abort.cancelled() => {}
                }
            });
        }
    }
}
