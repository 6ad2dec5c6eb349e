//! Who a request is from: keys, their scopes, and what is allowed without one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use subtle::ConstantTimeEq as _;

use super::EdgeSettings;
use super::error::ApiError;
use crate::clock;
use crate::config::AuthMode;
use crate::error::ErrorCode;
use crate::metrics::AuthFailure;
use crate::model::{
    AuthKind, CallId, Caller, CallerTrace, Scopes, Secret, Timestamp, Via, ViewName,
};
use crate::store::{KeyRow, Store, StoreError};

/// Marks our keys, so that scanners for leaked secrets can find them.
const PREFIX: &str = "sy_";
/// Bytes of randomness in a key.
const KEY_BYTES: usize = 32;

/// Where a connection came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// Over TCP.
    Network,
    /// Over the admin socket.
    Socket,
}

/// The keys in force, looked up by the digest of what was presented.
#[derive(Debug)]
pub struct KeyRing {
    store: Store,
    keys: ArcSwap<HashMap<[u8; 32], Arc<Key>>>,
    anonymous: Arc<Caller>,
    unrestricted: Arc<Caller>,
    socket: Arc<Caller>,
    random: SystemRandom,
}

#[derive(Debug)]
struct Key {
    id: String,
    hash: [u8; 32],
    caller: Arc<Caller>,
    expires_at: Option<Timestamp>,
    last_used: AtomicI64,
    last_stored: AtomicI64,
}

/// A key just made; its text is shown this once.
#[derive(Debug)]
pub struct NewKey {
    /// Its id.
    pub id: String,
    /// Its name in the ledger.
    pub name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// The key.
    pub key: Secret,
}

impl KeyRing {
    /// Reads the keys from the database.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn load(store: Store) -> Result<Self, StoreError> {
        let ring = Self {
            store,
            keys: ArcSwap::default(),
            anonymous: Arc::new(Caller::anonymous(Scopes::LOOPBACK)),
            unrestricted: Arc::new(Caller::anonymous(Scopes::ALL)),
            socket: Arc::new(Caller::admin_socket()),
            random: SystemRandom::new(),
        };
        ring.reload().await?;
        Ok(ring)
    }

    async fn reload(&self) -> Result<(), StoreError> {
        let old = self.keys.load_full();
        let keys = self.store.keys().await?.into_iter().filter(|row| row.revoked_at.is_none());
        let keys = keys
            .map(|row| {
                let used = old.get(&row.hash).map_or_else(
                    || row.last_used_at.map_or(0, Timestamp::as_millis),
                    |key| key.last_used.load(Ordering::Relaxed),
                );
                let caller = Caller {
                    name: row.name.as_str().into(),
                    scopes: row.scopes,
                    auth: AuthKind::Key,
                    remote: true,
                };
                let key = Key {
                    id: row.id,
                    hash: row.hash,
                    caller: Arc::new(caller),
                    expires_at: row.expires_at,
                    last_used: AtomicI64::new(used),
                    last_stored: AtomicI64::new(used),
                };
                (key.hash, Arc::new(key))
            })
            .collect();
        self.keys.store(Arc::new(keys));
        Ok(())
    }

    /// Whether any key is in force.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.load().is_empty()
    }

    /// Every key ever made, newest last, for display.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn list(&self) -> Result<Vec<KeyRow>, StoreError> {
        self.store.keys().await
    }

    /// Makes a key.
    ///
    /// # Errors
    /// When the name is taken, the system has no randomness, or the database cannot be written.
    pub(super) async fn create(
        &self,
        name: &str,
        scopes: Scopes,
        expires_in: Option<Duration>,
    ) -> Result<NewKey, ApiError> {
        let mut bytes = [0_u8; KEY_BYTES];
        self.random.fill(&mut bytes).ok().ok_or_else(|| {
            ApiError::new(ErrorCode::Unexpected, "the system gave no random bytes")
        })?;
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        let now = clock::timestamp();
        let id = super::door::new_id().to_string();
        let row = KeyRow {
            id: id.clone(),
            name: name.to_owned(),
            hash: sha256(text.as_bytes()),
            scopes,
            created_at: now,
            last_used_at: None,
            expires_at: expires_in.map(|span| {
                let span = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
                Timestamp::from_millis(now.as_millis().saturating_add(span))
            }),
            revoked_at: None,
        };
        self.store.insert_key(&row).await?;
        self.reload().await?;
        Ok(NewKey { id, name: row.name, scopes, key: Secret::new(text) })
    }

    /// Revokes a key by id or name; it stops working before this returns.
    ///
    /// # Errors
    /// When the database cannot be written. `Ok(false)`: there is no such key.
    pub async fn revoke(&self, id_or_name: &str) -> Result<bool, StoreError> {
        let found = self.store.revoke_key(id_or_name, clock::timestamp()).await?;
        self.reload().await?;
        Ok(found)
    }

    /// Writes down when keys were last used.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn save_use(&self) -> Result<(), StoreError> {
        let mut used: Vec<(String, Timestamp)> = Vec::new();
        for key in self.keys.load().values() {
            let last = key.last_used.load(Ordering::Relaxed);
            if key.last_stored.swap(last, Ordering::Relaxed) != last {
                used.push((key.id.clone(), Timestamp::from_millis(last)));
            }
        }
        if used.is_empty() { Ok(()) } else { self.store.touch_keys(&used).await }
    }

    /// Says who makes a request.
    ///
    /// A key that is presented must be valid, also where none is needed: a typing error must not
    /// silently become somebody else.
    pub(super) fn identify(
        &self,
        headers: &HeaderMap,
        door: Door,
        settings: &EdgeSettings,
    ) -> Result<Arc<Caller>, AuthFailure> {
        if door == Door::Socket {
            return Ok(Arc::clone(&self.socket));
        }
        let Some(value) = headers.get(AUTHORIZATION) else {
            return match (settings.auth, settings.loopback) {
                (AuthMode::None, true) => Ok(Arc::clone(&self.unrestricted)),
                (AuthMode::Auto, true) => Ok(Arc::clone(&self.anonymous)),
                (AuthMode::Auto | AuthMode::None, false) | (AuthMode::Keys, _) => {
                    Err(AuthFailure::MissingKey)
                }
            };
        };
        let presented = value.to_str().ok().and_then(bearer).ok_or(AuthFailure::InvalidKey)?;
        let hash = sha256(presented.as_bytes());
        let keys = self.keys.load();
        let key = keys.get(&hash).ok_or(AuthFailure::InvalidKey)?;
        // The map's own comparison may stop early; it compares digests of a 256-bit secret, of
        // which nothing can be learned. This one is for the reader who would rather be sure.
        if !bool::from(key.hash.ct_eq(&hash)) {
            return Err(AuthFailure::InvalidKey);
        }
        let now = clock::timestamp();
        if key.expires_at.is_some_and(|at| at <= now) {
            return Err(AuthFailure::InvalidKey);
        }
        key.last_used.store(now.as_millis(), Ordering::Relaxed);
        Ok(Arc::clone(&key.caller))
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// SHA-256; keys and session ids are stored as this and nothing else.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0_u8; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// The caller in the ledger when there is none.
pub(super) fn nobody() -> Arc<Caller> {
    Arc::new(Caller {
        name: "unauthenticated".into(),
        scopes: Scopes::NONE,
        auth: AuthKind::None,
        remote: true,
    })
}

/// What one request is.
#[derive(Debug, Clone)]
pub(super) struct RequestContext {
    /// Its id.
    pub(super) id: CallId,
    /// Who makes it.
    pub(super) caller: Arc<Caller>,
    /// On what it came.
    pub(super) via: Via,
    /// The view it came in at; `None` for the whole catalogue.
    pub(super) view: Option<ViewName>,
    /// What its headers say of its trace.
    pub(super) trace: Option<Arc<CallerTrace>>,
}
