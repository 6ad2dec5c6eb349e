//! [`Sessions`]: clients of the legacy era, remembered over restarts.
//!
//! The id is the client's; we keep its SHA-256. A session belongs to the caller who opened it
//! and to the view it was opened at: for anybody else, and elsewhere, it does not exist.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;
use ring::rand::{SecureRandom as _, SystemRandom};

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

/// A session that was not used for this long is forgotten.
const IDLE: Duration = Duration::from_secs(30 * 60);
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
}

/// All open sessions.
#[derive(Debug)]
pub struct Sessions {
    store: Store,
    metrics: Arc<Metrics>,
    /// Is told of every end.
    registry: Arc<Registry>,
    limit: usize,
    open: RwLock<HashMap<SessionHash, Arc<Session>>>,
    random: SystemRandom,
}

impl Sessions {
    /// Reads the sessions that were open when the router last ran.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn load(
        store: Store,
        metrics: Arc<Metrics>,
        registry: Arc<Registry>,
        limit: u32,
    ) -> Result<Self, StoreError> {
        let oldest = clock::timestamp().minus(IDLE);
        let open: HashMap<SessionHash, Arc<Session>> = store
            .sessions()
            .await?
            .into_iter()
            .filter(|row| row.last_seen_at > oldest)
            .map(|row| {
                let version = row.protocol_version;
                let seen = row.last_seen_at.as_millis();
                let abilities = row.capabilities.as_deref().and_then(declared_abilities);
                let reference = SessionRef::new(row.hash, row.client, abilities);
                (row.hash, Arc::new(session(reference, &row.caller, row.view, version, seen)))
            })
            .collect();
        metrics.set_sessions(open.len());
        Ok(Self {
            store,
            metrics,
            registry,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            open: RwLock::new(open),
            random: SystemRandom::new(),
        })
    }

    /// Opens a session and gives its id; it is in the database before this returns.
    ///
    /// # Errors
    /// When there are too many, or the database cannot be written.
    pub(super) async fn create(
        &self,
        context: &RequestContext,
        version: ProtocolVersion,
        client: ClientInfo,
        capabilities: Option<&str>,
    ) -> Result<String, ApiError> {
        if self.open.read().len() >= self.limit {
            let detail = format!("{} sessions are open (limits.sessions)", self.limit);
            return Err(ApiError::new(ErrorCode::LimitReached, detail));
        }
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
        self.store.save_sessions(&[row]).await?;
        let reference = SessionRef::new(hash, client, abilities);
        let (caller, view) = (&context.caller.name, context.view.clone());
        let session = session(reference, caller, view, version, now.as_millis());
        let mut open = self.open.write();
        open.insert(hash, Arc::new(session));
        self.metrics.set_sessions(open.len());
        Ok(id)
    }

    /// The session of this id, if it is this caller's at this view.
    pub(super) fn find(&self, id: &[u8], context: &RequestContext) -> Option<Arc<Session>> {
        let session = self.open.read().get(&sha256(id)).cloned()?;
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
    pub(super) async fn end(
        &self,
        id: &[u8],
        context: &RequestContext,
    ) -> Result<bool, StoreError> {
        let Some(session) = self.find(id, context) else { return Ok(false) };
        let hash = session.reference.key;
        let left = {
            let mut open = self.open.write();
            open.remove(&hash);
            open.len()
        };
        self.metrics.set_sessions(left);
        self.ended(&session);
        self.store.delete_sessions(&[hash]).await?;
        Ok(true)
    }

    /// The session with this hash, for what servers say to it.
    pub(super) fn by_hash(&self, hash: &SessionHash) -> Option<Arc<Session>> {
        self.open.read().get(hash).cloned()
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
        let oldest = clock::timestamp().minus(IDLE);
        let mut used: Vec<(SessionHash, Timestamp)> = Vec::new();
        let mut idle = Vec::new();
        let left = {
            let mut open = self.open.write();
            open.retain(|hash, session| {
                let seen = session.last_seen.load(Ordering::Relaxed);
                if session.last_stored.swap(seen, Ordering::Relaxed) != seen {
                    used.push((*hash, Timestamp::from_millis(seen)));
                }
                let stays = seen > oldest.as_millis();
                if !stays {
                    idle.push(Arc::clone(session));
                }
                stays
            });
            open.shrink_to_fit();
            open.len()
        };
        self.metrics.set_sessions(left);
        for session in idle {
            self.ended(&session);
        }
        if !used.is_empty() {
            self.store.touch_sessions(&used).await?;
        }
        self.store.delete_sessions_before(oldest).await.map(drop)
    }
}

fn session(
    reference: SessionRef,
    caller: &str,
    view: Option<ViewName>,
    version: ProtocolVersion,
    seen: i64,
) -> Session {
    Session {
        abilities: reference.abilities.as_deref().map(ClientAbilities::of).unwrap_or_default(),
        reference: Arc::new(reference),
        version,
        caller: caller.into(),
        view,
        last_seen: AtomicI64::new(seen),
        last_stored: AtomicI64::new(seen),
        live: OnceLock::new(),
    }
}
