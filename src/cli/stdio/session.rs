//! [`Session`]: the legacy client's session with the router, which a restart may replace.
//!
//! Changes when the legacy handshake does. The client shook hands once and never hears of it when
//! the router has forgotten that: its `initialize` is kept, to be said again.

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// What a handshake led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handshake {
    /// `Mcp-Session-Id`, when the router gave one.
    pub(super) id: Option<String>,
    /// The protocol version agreed on; none when the answer named none.
    pub(super) version: Option<String>,
    /// The client's `initialize`.
    pub(super) opening: Bytes,
    /// Which handshake of this process it is.
    pub(super) generation: u64,
}

impl Handshake {
    /// The headers that put a message into the session.
    pub(super) fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let id = self.id.as_deref().map(|id| ("mcp-session-id", id));
        let version = self.version.as_deref().map(|version| ("mcp-protocol-version", version));
        id.into_iter().chain(version)
    }
}

/// The session as it is now.
#[derive(Debug)]
pub(super) struct Session {
    current: Mutex<Option<Handshake>>,
    /// One renewal at a time; the others wait for its result.
    renewal: Semaphore,
}

impl Session {
    pub(super) fn new() -> Self {
        Self { current: Mutex::new(None), renewal: Semaphore::new(1) }
    }

    /// The handshake in force, if there was one.
    pub(super) fn current(&self) -> Option<Handshake> {
        self.current.lock().clone()
    }

    /// A handshake succeeded; gives the one it replaces.
    pub(super) fn begin(
        &self,
        opening: Bytes,
        id: Option<String>,
        version: Option<String>,
    ) -> Option<Handshake> {
        let mut current = self.current.lock();
        let generation = current.as_ref().map_or(0, |old| old.generation.saturating_add(1));
        current.replace(Handshake { id, version, opening, generation })
    }

    /// Waits for the right to renew the handshake of `generation`; `None` when another has done
    /// so meanwhile. Dropping what it gives lets the next one try.
    pub(super) async fn renewal(
        &self,
        generation: u64,
    ) -> Option<(SemaphorePermit<'_>, Handshake)> {
        // Never closed.
        let permit = self.renewal.acquire().await.ok()?;
        let current = self.current()?;
        (current.generation == generation).then_some((permit, current))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_is_renewed_once_for_all() {
        let session = Session::new();
        assert_eq!(session.current(), None);
        session.begin(Bytes::from_static(b"{}"), Some("a".to_owned()), None);
        let (permit, old) = session.renewal(0).await.unwrap();
        assert_eq!(old.headers().collect::<Vec<_>>(), [("mcp-session-id", "a")]);
        let replaced = session.begin(old.opening, Some("b".to_owned()), Some("v".to_owned()));
        assert_eq!(replaced.unwrap().id.as_deref(), Some("a"));
        drop(permit);
        assert!(session.renewal(0).await.is_none());
        assert!(session.renewal(1).await.is_some());
    }
}
