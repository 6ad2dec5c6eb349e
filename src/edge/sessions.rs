//! [`Sessions`]: clients of the legacy era, remembered over restarts.
//!
//! The id is the client's; we keep its SHA-256. A session belongs to the caller who opened it:
//! for anybody else it does not exist.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::auth::sha256;
use super::error::ApiError;
use crate::clock;
use crate::error::ErrorCode;
use crate::metrics::Metrics;
use crate::model::{Caller, ClientInfo, ProtocolVersion, SessionRef, Timestamp};
use crate::store::{SessionRow, Store, StoreError};

/// A session that was not used for this long is forgotten.
const IDLE: Duration = Duration::from_secs(30 * 60);

/// One client's session.
#[derive(Debug)]
pub(super) struct Session {
    /// How the ledger refers to it.
    pub(super) reference: SessionRef,
    /// The version agreed on.
    pub(super) version: ProtocolVersion,
    caller: Arc<str>,
    last_seen: AtomicI64,
    last_stored: AtomicI64,
}

/// All open sessions.
#[derive(Debug)]
pub struct Sessions {
    store: Store,
    metrics: Arc<Metrics>,
    limit: usize,
    open: RwLock<HashMap<[u8; 32], Arc<Session>>>,
    random: SystemRandom,
}

impl Sessions {
    /// Reads the sessions that were open when the router last ran.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn load(store: Store, metrics: Arc<Metrics>, limit: u32) -> Result<Self, StoreError> {
        let oldest = clock::timestamp().minus(IDLE);
        let open: HashMap<[u8; 32], Arc<Session>> = store
            .sessions()
            .await?
            .into_iter()
            .filter(|row| row.last_seen_at > oldest)
            .map(|row| {
                let version = row.protocol_version;
                let seen = row.last_seen_at.as_millis();
                let session = session(&row.hash, &row.caller, row.client, version, seen);
                (row.hash, Arc::new(session))
            })
            .collect();
        metrics.set_sessions(open.len());
        Ok(Self {
            store,
            metrics,
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
        caller: &Caller,
        version: ProtocolVersion,
        client: ClientInfo,
        capabilities: Option<String>,
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
        let row = SessionRow {
            hash,
            caller: caller.name.as_ref().to_owned(),
            protocol_version: version,
            client: client.clone(),
            capabilities,
            created_at: now,
            last_seen_at: now,
        };
        self.store.save_sessions(&[row]).await?;
        let session = session(&hash, &caller.name, client, version, now.as_millis());
        let mut open = self.open.write();
        open.insert(hash, Arc::new(session));
        self.metrics.set_sessions(open.len());
        Ok(id)
    }

    /// The session of this id, if it is `caller`'s.
    pub(super) fn find(&self, id: &[u8], caller: &Caller) -> Option<Arc<Session>> {
        let session = self.open.read().get(&sha256(id)).cloned()?;
        if session.caller != caller.name {
            return None;
        }
        session.last_seen.store(clock::timestamp().as_millis(), Ordering::Relaxed);
        Some(session)
    }

    /// Ends a session. `Ok(false)`: there is none of this id for this caller.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(super) async fn end(&self, id: &[u8], caller: &Caller) -> Result<bool, StoreError> {
        if self.find(id, caller).is_none() {
            return Ok(false);
        }
        let hash = sha256(id);
        let left = {
            let mut open = self.open.write();
            open.remove(&hash);
            open.len()
        };
        self.metrics.set_sessions(left);
        self.store.delete_sessions(&[hash]).await?;
        Ok(true)
    }

    /// Forgets idle sessions and writes down when the others were last used.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn tidy(&self) -> Result<(), StoreError> {
        let oldest = clock::timestamp().minus(IDLE);
        let mut used: Vec<([u8; 32], Timestamp)> = Vec::new();
        let left = {
            let mut open = self.open.write();
            open.retain(|hash, session| {
                let seen = session.last_seen.load(Ordering::Relaxed);
                if session.last_stored.swap(seen, Ordering::Relaxed) != seen {
                    used.push((*hash, Timestamp::from_millis(seen)));
                }
                seen > oldest.as_millis()
            });
            open.shrink_to_fit();
            open.len()
        };
        self.metrics.set_sessions(left);
        if !used.is_empty() {
            self.store.touch_sessions(&used).await?;
        }
        self.store.delete_sessions_before(oldest).await.map(drop)
    }
}

fn session(
    hash: &[u8; 32],
    caller: &str,
    client: ClientInfo,
    version: ProtocolVersion,
    seen: i64,
) -> Session {
    let shown: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Session {
        reference: SessionRef { hash: shown.into(), client: Arc::new(client) },
        version,
        caller: caller.into(),
        last_seen: AtomicI64::new(seen),
        last_stored: AtomicI64::new(seen),
    }
}
