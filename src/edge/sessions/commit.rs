//! [`Commits`]: changes of the session table, many to a commit.
//!
//! Changes when the way sessions reach the database does. A commit waits for the disk; what comes
//! meanwhile shares the next one, so that a crowd of clients that connects at once does not queue. What the
//! database does not take now is kept, and goes with the next one that it takes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::edge::error::ApiError;
use crate::error::ErrorCode;
use crate::model::SessionHash;
use crate::store::{SessionRow, Store, StoreError, StoreFailure};

/// How long a client that opens a session waits until it is on disk.
const PATIENCE: Duration = Duration::from_secs(2);
/// Changes that may wait for the next commit; beyond that they are refused.
const QUEUE: usize = 16_384;
/// Changes of either kind that are kept for a database that takes none.
const MOST: usize = 32_768;

/// Why a change is not in the database.
#[derive(Debug, Clone, thiserror::Error)]
pub(in crate::edge) enum NotStored {
    /// The database failed.
    #[error("{0}")]
    Store(Arc<StoreError>),
    /// Too many wait already.
    #[error("{QUEUE} changes of sessions wait for the database; try again")]
    Full,
    /// The router ends.
    #[error("the router is stopping")]
    Stopping,
    /// The database does not answer; it may be stored later.
    #[error("the database does not answer")]
    Later,
}

impl NotStored {
    /// Whether the change is kept, and made when the database takes it.
    pub(super) fn is_kept(&self) -> bool {
        match self {
            Self::Store(error) => is_passing(error),
            Self::Later => true,
            Self::Full | Self::Stopping => false,
        }
    }
}

/// Whether the database may take the same later.
fn is_passing(error: &StoreError) -> bool {
    matches!(error.failure(), StoreFailure::Transient | StoreFailure::Space)
        || matches!(error, StoreError::ReadOnly { .. })
}

impl From<NotStored> for ApiError {
    fn from(error: NotStored) -> Self {
        let code = match &error {
            NotStored::Store(_) | NotStored::Later => ErrorCode::Unexpected,
            NotStored::Full | NotStored::Stopping => ErrorCode::LimitReached,
        };
        Self::new(code, error.to_string())
    }
}

#[derive(Debug)]
pub(super) struct Commits {
    store: Store,
    tasks: TaskTracker,
    waiting: Arc<Mutex<Waiting>>,
}

/// What the next commit takes.
#[derive(Debug, Default)]
struct Waiting {
    changes: Changes,
    /// A task is at it, and will take this too.
    committing: bool,
}

#[derive(Debug, Default)]
struct Changes {
    saved: Vec<SessionRow>,
    ended: Vec<SessionHash>,
    told: Vec<oneshot::Sender<Result<(), NotStored>>>,
}

impl Changes {
    /// Puts what was not stored before what came since; what ended meanwhile need not be stored at all.
    fn put_back(&mut self, saved: Vec<SessionRow>, ended: Vec<SessionHash>) {
        let since = std::mem::replace(&mut self.saved, saved);
        self.saved.extend(since);
        let since = std::mem::replace(&mut self.ended, ended);
        self.ended.extend(since);
        let gone: HashSet<SessionHash> = self.ended.iter().copied().collect();
        self.saved.retain(|row| !gone.contains(&row.hash));
        // The oldest go first: what is unused the longest is the least loss.
        for excess in [self.saved.len(), self.ended.len()].map(|count| count.saturating_sub(MOST)) {
            if excess > 0 {
                tracing::warn!(
                    "{excess} changes of sessions are lost: too many wait for the database"
                );
            }
        }
        self.saved.drain(..self.saved.len().saturating_sub(MOST));
        self.ended.drain(..self.ended.len().saturating_sub(MOST));
    }
}

impl Commits {
    pub(super) fn new(store: Store, tasks: TaskTracker) -> Self {
        Self { store, tasks, waiting: Arc::default() }
    }

    /// As [`Self::commit`], for no longer than a client should wait.
    pub(super) async fn commit_soon(
        &self,
        saved: SessionRow,
        ended: impl IntoIterator<Item = SessionHash>,
    ) -> Result<(), NotStored> {
        let commit = self.commit(Some(saved), ended);
        tokio::time::timeout(PATIENCE, commit).await.unwrap_or(Err(NotStored::Later))
    }

    /// Tries what the database did not take before, if there is something.
    pub(super) async fn retry(&self) -> Result<(), NotStored> {
        let waits = {
            let waiting = self.waiting.lock();
            !waiting.changes.saved.is_empty() || !waiting.changes.ended.is_empty()
        };
        if waits { self.commit(None, None).await } else { Ok(()) }
    }

    /// Saves and removes; returns when that is on disk. A caller who gives up takes nothing back.
    pub(super) async fn commit(
        &self,
        saved: Option<SessionRow>,
        ended: impl IntoIterator<Item = SessionHash>,
    ) -> Result<(), NotStored> {
        let (tell, told) = oneshot::channel();
        let idle = {
            let mut waiting = self.waiting.lock();
            if waiting.changes.told.len() >= QUEUE {
                return Err(NotStored::Full);
            }
            waiting.changes.saved.extend(saved);
            waiting.changes.ended.extend(ended);
            waiting.changes.told.push(tell);
            !std::mem::replace(&mut waiting.committing, true)
        };
        if idle {
            self.tasks.spawn(run(self.store.clone(), Arc::clone(&self.waiting)));
        }
        told.await.unwrap_or(Err(NotStored::Stopping))
    }
}

/// Commits until nothing waits.
async fn run(store: Store, waiting: Arc<Mutex<Waiting>>) {
    while let Some(changes) = next(&waiting) {
        let Changes { saved, ended, told } = changes;
        let done = store.change_sessions(&saved, &ended).await.map_err(|error| {
            tracing::error!(%error, "sessions could not be stored: {error}");
            if is_passing(&error) {
                waiting.lock().changes.put_back(saved, ended);
            }
            NotStored::Store(Arc::new(error))
        });
        for tell in told {
            // Who asked may have gone.
            drop(tell.send(done.clone()));
        }
    }
}

fn next(waiting: &Mutex<Waiting>) -> Option<Changes> {
    let mut waiting = waiting.lock();
    waiting.committing = !waiting.changes.told.is_empty();
    waiting.committing.then(|| std::mem::take(&mut waiting.changes))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{ClientInfo, ProtocolVersion, Timestamp};

    fn row(number: u32) -> SessionRow {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        SessionRow {
            view: None,
            hash,
            caller: "c".into(),
            protocol_version: ProtocolVersion::LATEST_LEGACY,
            client: ClientInfo::default(),
            capabilities: None,
            created_at: Timestamp::from_millis(1),
            last_seen_at: Timestamp::from_millis(1),
        }
    }

    #[tokio::test]
    async fn a_crowd_shares_commits_and_each_is_told_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let commits = Commits::new(store.clone(), TaskTracker::new());
        let all = (0..2000).map(|number| commits.commit(Some(row(number)), None));
        let all = futures_util::future::join_all(all);
        let told = tokio::time::timeout(Duration::from_secs(5), all).await.unwrap();
        assert!(told.iter().all(Result::is_ok));
        assert_eq!(store.sessions().await.unwrap().len(), 2000);
        commits.commit(Some(row(5000)), (0..1999).map(|number| row(number).hash)).await.unwrap();
        let left: Vec<_> = store.sessions().await.unwrap().iter().map(|row| row.hash).collect();
        assert_eq!(left, [row(1999).hash, row(5000).hash]);
        assert!(!commits.waiting.lock().committing);
    }

    #[test]
    fn what_is_put_back_comes_first_and_what_ended_is_not_saved() {
        let mut changes = Changes::default();
        changes.saved.push(row(3));
        changes.ended.push(row(1).hash);
        changes.put_back(vec![row(1), row(2)], vec![row(9).hash]);
        assert_eq!(changes.saved, [row(2), row(3)]);
        assert_eq!(changes.ended, [row(9).hash, row(1).hash]);
        changes.put_back((10..40_000).map(row).collect(), Vec::new());
        assert_eq!(changes.saved.len(), MOST);
        assert_eq!(changes.saved.last(), Some(&row(3)));
    }

    #[tokio::test]
    async fn a_failure_reaches_everybody_who_waited_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let commits = Commits::new(store.clone(), TaskTracker::new());
        store.close().await.unwrap();
        let all = (0..10).map(|number| commits.commit(Some(row(number)), None));
        for told in futures_util::future::join_all(all).await {
            assert!(matches!(&told, Err(NotStored::Store(_))), "{told:?}");
        }
    }
}
