//! [`Sessions`]: clients of the legacy era, remembered over restarts.
//!
//! The id is the client's; we keep its SHA-256. A session belongs to the caller who opened it
//! and to the view it was opened at: for anybody else, and elsewhere, it does not exist.
//!
//! Changes when what a session is or how long it lives does. Most clients never say that they are
//! done: a session ends when nobody used it for a while, and when `limits.sessions` are open, the
//! one that was unused the longest makes room for a new one.

mod commit;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;
use ring::rand::{SecureRandom as _, SystemRandom};

use tokio_util::task::TaskTracker;

use self::commit::{Commits, NotStored};
use super::auth::{RequestContext, sha256};
use super::error::ApiError;
use super::mcp::Live;
use crate::clock;
use crate::error::ErrorCode;
use crate::metrics::Metrics;
use crate::model::{ClientInfo, ProtocolVersion, SessionHash, SessionRef, Timestamp, ViewName};
use crate::protocol::{ClientAbilities, declared_abilities};
use crate::registry::Registry;
use crate::store::{SessionRow, Store, StoreError};

/// Rows of one transaction of the upkeep, so that clients who connect meanwhile get their turn.
const UPKEEP: usize = 500;
/// How many sessions are marked in one look as the next to make room.
const NEXT_TO_GO: usize = 256;
/// Longer capabilities are stored as what they come to: the requests that the client can answer.
const CAPABILITIES_LIMIT: usize = 2048;

/// One client's session.
#[derive(Debug)]
pub(super) struct Session {
    /// How calls refer to it.
    pub(super) reference: Arc<SessionRef>,
    /// The version agreed on.
    pub(super) version: ProtocolVersion,
    caller: Arc<str>,
    /// The view it was opened at.
    pub(super) view: Option<ViewName>,
    last_seen: AtomicI64,
    last_stored: AtomicI64,
    /// The requests of servers that its client can answer.
    pub(super) abilities: ClientAbilities,
    live: OnceLock<Box<Live>>,
}

impl Session {
    /// What it has under way.
    pub(super) fn live(&self) -> &Live {
        self.live.get_or_init(Box::default)
    }

    fn last_seen(&self) -> i64 {
        self.last_seen.load(Ordering::Relaxed)
    }

    /// Whether its client has a request under way or its stream open. Every request holds the
    /// session; beside them only [`Open`] does.
    fn is_in_use(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || self.live.get().is_some_and(|live| live.stream().is_some())
    }
}

/// How many sessions there may be and how long they live.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// Open at a time.
    pub count: usize,
    /// One that was not used for this long is forgotten.
    pub idle: Duration,
}

/// All open sessions.
#[derive(Debug)]
pub struct Sessions {
    store: Store,
    commits: Commits,
    metrics: Arc<Metrics>,
    /// Is told of every end.
    registry: Arc<Registry>,
    limits: SessionLimits,
    open: RwLock<Open>,
    random: SystemRandom,
    /// Ended to make room, since the start.
    evicted: AtomicU64,
}

#[derive(Debug, Default)]
struct Open {
    sessions: HashMap<SessionHash, Arc<Session>>,
    /// The sessions that were unused the longest when it was last looked, and since when. Those
    /// that were used since do not count; the others still are unused the longest.
    next_to_go: VecDeque<(i64, SessionHash)>,
}

impl Open {
    /// Takes out sessions until there is room for one more; `None` when all are in use.
    fn make_room(&mut self, limit: usize) -> Option<Vec<Arc<Session>>> {
        let mut out = Vec::new();
        while self.sessions.len() >= limit {
            let next = self.take_next_to_go().or_else(|| {
                self.look();
                self.take_next_to_go()
            });
            match next {
                Some(session) => out.push(session),
                None if out.is_empty() => return None,
                None => break,
            }
        }
        Some(out)
    }

    fn take_next_to_go(&mut self) -> Option<Arc<Session>> {
        while let Some((seen, hash)) = self.next_to_go.pop_front() {
            if let Some(session) = self.sessions.get(&hash)
                && session.last_seen() == seen
                && !session.is_in_use()
            {
                return self.sessions.remove(&hash);
            }
        }
        None
    }

    fn look(&mut self) {
        let mut unused: Vec<(i64, SessionHash)> = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.is_in_use())
            .map(|(hash, session)| (session.last_seen(), *hash))
            .collect();
        if unused.len() > NEXT_TO_GO {
            unused.select_nth_unstable(NEXT_TO_GO);
            unused.truncate(NEXT_TO_GO);
        }
        unused.sort_unstable();
        self.next_to_go = unused.into();
    }

    /// Takes out those of `idle` that still are not in use and were not used after `oldest`.
    fn expire(&mut self, idle: &[SessionHash], oldest: i64) -> Vec<Arc<Session>> {
        let expired = idle.iter().filter_map(|hash| {
            let session = self.sessions.get(hash)?;
            let stays = session.is_in_use() || session.last_seen() > oldest;
            if stays { None } else { self.sessions.remove(hash) }
        });
        let expired = expired.collect();
        if self.sessions.capacity() / 4 > self.sessions.len() {
            self.sessions.shrink_to(self.sessions.len() * 2);
        }
        expired
    }
}

impl Sessions {
    /// Reads the sessions that were open when the router last ran, and forgets those that were
    /// unused for too long. `tasks` gets the task that commits while there is something to commit.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub async fn load(
        store: Store,
        metrics: Arc<Metrics>,
        registry: Arc<Registry>,
        tasks: TaskTracker,
        limits: SessionLimits,
    ) -> Result<Self, StoreError> {
        store.delete_sessions_before(clock::timestamp().minus(limits.idle)).await?;
        let sessions: HashMap<SessionHash, Arc<Session>> = store
            .sessions()
            .await?
            .into_iter()
            .map(|row| {
                let version = row.protocol_version;
                let seen = row.last_seen_at.as_millis();
                let abilities = row.capabilities.as_deref().and_then(declared_abilities);
                let reference = SessionRef::new(row.hash, row.client, abilities);
                (row.hash, Arc::new(session(reference, row.caller.into(), row.view, version, seen)))
            })
            .collect();
        metrics.set_sessions(sessions.len());
        Ok(Self {
            commits: Commits::new(store.clone(), tasks),
            store,
            metrics,
            registry,
            limits,
            open: RwLock::new(Open { sessions, ..Open::default() }),
            random: SystemRandom::new(),
            evicted: AtomicU64::new(0),
        })
    }

    /// Opens a session and gives its id; it is in the database before this returns, unless that takes nothing
    /// now: then it is served from memory, and stored as soon as that is possible. When as many
    /// are open as may be, the one that was unused the longest ends.
    ///
    /// # Errors
    /// When there are too many and all are in use, or the session can never be stored.
    pub(super) async fn create(
        &self,
        context: &RequestContext,
        version: ProtocolVersion,
        client: ClientInfo,
        capabilities: Option<&str>,
    ) -> Result<String, ApiError> {
        let mut bytes = [0_u8; 16];
        self.random.fill(&mut bytes).ok().ok_or_else(|| {
            ApiError::new(ErrorCode::Unexpected, "the system gave no random bytes")
        })?;
        let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let hash = sha256(id.as_bytes());
        let now = clock::timestamp();
        let abilities = capabilities.and_then(declared_abilities);
        let row = SessionRow {
            hash,
            caller: context.caller.name.as_ref().to_owned(),
            view: context.view.clone(),
            protocol_version: version,
            client: client.clone(),
            capabilities: capabilities
                .filter(|declared| declared.len() <= CAPABILITIES_LIMIT)
                .or(abilities.as_deref())
                .map(str::to_owned),
            created_at: now,
            last_seen_at: now,
        };
        let reference = SessionRef::new(hash, client, abilities);
        // In memory before the commit, so that it counts; nobody knows its id before the answer.
        let (caller, view) = (Arc::clone(&context.caller.name), context.view.clone());
        let session = Arc::new(session(reference, caller, view, version, now.as_millis()));
        let evicted = {
            let mut open = self.open.write();
            let Some(evicted) = open.make_room(self.limits.count) else {
                let count = self.limits.count;
                let detail = format!("{count} sessions are open and in use (limits.sessions)");
                return Err(ApiError::new(ErrorCode::LimitReached, detail));
            };
            open.sessions.insert(hash, Arc::clone(&session));
            self.metrics.set_sessions(open.sessions.len());
            evicted
        };
        self.made_room(&evicted);
        let ended = evicted.iter().map(|session| session.reference.key);
        if let Err(error) = self.commits.commit_soon(row, ended).await
            && !error.is_kept()
        {
            let mut open = self.open.write();
            open.sessions.remove(&hash);
            self.metrics.set_sessions(open.sessions.len());
            return Err(error.into());
        }
        Ok(id)
    }

    fn made_room(&self, evicted: &[Arc<Session>]) {
        for session in evicted {
            self.ended(session);
            // Not for each: a crowd of clients that never end their sessions is one event.
            let before = self.evicted.fetch_add(1, Ordering::Relaxed);
            if before.is_multiple_of(1000) {
                tracing::warn!(
                    limit = self.limits.count,
                    "{} sessions are open (limits.sessions): the one that was unused the longest ended to make room, {} so far",
                    self.limits.count,
                    before + 1
                );
            }
        }
    }

    /// The session of this id, if it is this caller's at this view.
    pub(super) fn find(&self, id: &[u8], context: &RequestContext) -> Option<Arc<Session>> {
        let session = self.open.read().sessions.get(&sha256(id)).cloned()?;
        if session.caller != context.caller.name || session.view != context.view {
            return None;
        }
        session.last_seen.store(clock::timestamp().as_millis(), Ordering::Relaxed);
        Some(session)
    }

    /// Ends a session, and what servers keep for it alone. `Ok(false)`: there is none of this id
    /// for this caller at this view.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(super) async fn end(&self, id: &[u8], context: &RequestContext) -> Result<bool, NotStored> {
        let Some(session) = self.find(id, context) else { return Ok(false) };
        let hash = session.reference.key;
        let left = {
            let mut open = self.open.write();
            open.sessions.remove(&hash);
            open.sessions.len()
        };
        self.metrics.set_sessions(left);
        self.ended(&session);
        self.commits.commit(None, [hash]).await?;
        Ok(true)
    }

    /// The session with this hash, for what servers say to it.
    pub(super) fn by_hash(&self, hash: &SessionHash) -> Option<Arc<Session>> {
        self.open.read().sessions.get(hash).cloned()
    }

    fn ended(&self, session: &Session) {
        if let Some(live) = session.live.get() {
            live.end();
        }
        // In this order: whoever opens something for the session sees that it ended, or is found.
        session.reference.end();
        self.registry.end_session(&session.reference.key);
    }

    /// Forgets idle sessions and writes down when the others were last used.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn tidy(&self) -> Result<(), StoreError> {
        // A failure is logged there, and everything below meets the same.
        let _later = self.commits.retry().await;
        let now = clock::timestamp();
        let oldest = now.minus(self.limits.idle).as_millis();
        let (mut used, mut idle) = (Vec::new(), Vec::new());
        // Calls go on beside this look; what is done about it looks again.
        for (hash, session) in &self.open.read().sessions {
            if session.is_in_use() {
                session.last_seen.fetch_max(now.as_millis(), Ordering::Relaxed);
            }
            let seen = session.last_seen();
            if seen <= oldest {
                idle.push(*hash);
            } else if session.last_stored.load(Ordering::Relaxed) != seen {
                used.push((*hash, Timestamp::from_millis(seen)));
            }
        }
        let mut expired = Vec::new();
        if !idle.is_empty() {
            let ended = {
                let mut open = self.open.write();
                let ended = open.expire(&idle, oldest);
                self.metrics.set_sessions(open.sessions.len());
                ended
            };
            for session in ended {
                self.ended(&session);
                expired.push(session.reference.key);
            }
        }
        for part in used.chunks(UPKEEP) {
            self.store.touch_sessions(part).await?;
            let open = self.open.read();
            for (hash, seen) in part {
                if let Some(session) = open.sessions.get(hash) {
                    session.last_stored.store(seen.as_millis(), Ordering::Relaxed);
                }
            }
        }
        for part in expired.chunks(UPKEEP) {
            self.store.change_sessions(&[], part).await?;
        }
        Ok(())
    }
}

fn session(
    reference: SessionRef,
    caller: Arc<str>,
    view: Option<ViewName>,
    version: ProtocolVersion,
    seen: i64,
) -> Session {
    Session {
        abilities: reference.abilities.as_deref().map(ClientAbilities::of).unwrap_or_default(),
        reference: Arc::new(reference),
        version,
        caller,
        view,
        last_seen: AtomicI64::new(seen),
        last_stored: AtomicI64::new(seen),
        live: OnceLock::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(count: u8) -> Open {
        let mut open = Open::default();
        for number in 0..count {
            let reference = SessionRef::new([number; 32], ClientInfo::default(), None);
            let version = ProtocolVersion::LATEST_LEGACY;
            let session = session(reference, "c".into(), None, version, i64::from(number));
            open.sessions.insert([number; 32], Arc::new(session));
        }
        open
    }

    fn gone(out: Option<Vec<Arc<Session>>>) -> Vec<u8> {
        out.unwrap().iter().map(|session| session.reference.key[0]).collect()
    }

    #[test]
    fn those_unused_the_longest_make_room_unless_in_use() {
        let mut open = open(10);
        assert_eq!(gone(open.make_room(11)), [0_u8; 0]);
        assert_eq!(gone(open.make_room(10)), [0]);
        // Used after it was marked as the next to go, and a request under way.
        open.sessions[&[1; 32]].last_seen.store(100, Ordering::Relaxed);
        let request = Arc::clone(&open.sessions[&[2; 32]]);
        assert_eq!(gone(open.make_room(9)), [3]);
        drop(request);
        assert_eq!(gone(open.make_room(2)), [4, 5, 6, 7, 8, 9, 2]);
        let _request = Arc::clone(&open.sessions[&[1; 32]]);
        assert!(open.make_room(1).is_none(), "all are in use");
        assert!(open.sessions.contains_key(&[1; 32]));
    }

    #[test]
    fn only_what_still_is_idle_expires() {
        let mut open = open(10);
        let all: Vec<SessionHash> = open.sessions.keys().copied().collect();
        open.sessions[&[1; 32]].last_seen.store(100, Ordering::Relaxed);
        let _request = Arc::clone(&open.sessions[&[2; 32]]);
        let expired = open.expire(&all, 8);
        let mut left: Vec<u8> = open.sessions.keys().map(|hash| hash[0]).collect();
        left.sort_unstable();
        assert_eq!((expired.len(), left), (7, vec![1, 2, 9]));
    }
}
