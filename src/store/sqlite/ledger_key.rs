//! The key of the ledger: made with the ledger, and needed as long as it is written.
//!
//! Changes when the way a ledger gets its key does.

use std::io;
use std::path::Path;

use ring::rand::{SecureRandom as _, SystemRandom};
use sqlx::Row as _;

use super::{Database, begin};
use crate::store::StoreError;
use crate::store::chain::LedgerKey;
use crate::store::key_file::{KEY_LENGTH, make_key, read_key};

/// Bytes that identify a chain.
const CHAIN: usize = 16;

/// Reads the key, and begins the chain of a ledger that has none: the first key is made then. A ledger
/// that has one is written with its own key only, else it could never be verified again.
///
/// # Errors
/// [`StoreError::LedgerKey`] when the key is not there or not the right one.
pub(super) async fn open(path: &Path, audit: &Database) -> Result<LedgerKey, StoreError> {
    let mut writer = audit.writer().await?;
    let known = sqlx::query("select key_id from ledger where id = 1")
        .fetch_optional(&mut *writer)
        .await?
        .map(|row| row.try_get::<Vec<u8>, _>("key_id"))
        .transpose()?;
    let on_disk = read(path)?;
    let found = on_disk.is_some();
    let key = match (on_disk, &known) {
        (Some(key), _) => key,
        (None, Some(_)) => return Err(lacking(path, "it is missing")),
        (None, None) => {
            let secret = make_key(path).map_err(|source| StoreError::Files {
                action: "create",
                path: path.to_owned(),
                source,
            })?;
            key_of(path, &secret)?
        }
    };
    match known {
        Some(id) if id != key.id() => return Err(lacking(path, "it is another one")),
        Some(_) => {}
        None => {
            let mut chain = [0; CHAIN];
            SystemRandom::new()
                .fill(&mut chain)
                .map_err(|_unspecified| lacking(path, "the system gives no random numbers"))?;
            let mut transaction = begin(&mut writer).await?;
            let linked: bool = sqlx::query_scalar(
                "select exists (select 1 from entries)
                     or exists (select 1 from calls where hash is not null)",
            )
            .fetch_one(&mut *transaction)
            .await?;
            if linked {
                // A new chain would hide whatever was done to the old one.
                return Err(StoreError::Damaged {
                    path: audit.path.clone(),
                    detail: "rows of a hash chain are there, and where it begins and ends is not"
                        .to_owned(),
                });
            }
            let base: i64 = sqlx::query_scalar(
                "select coalesce(max(seq), 0) from
                    (select max(seq) as seq from calls union all select max(seq) from payloads
                     union all select max(seq) from attempts)",
            )
            .fetch_one(&mut *transaction)
            .await?;
            if found {
                tracing::warn!(
                    "{} holds no chain although there is a key of a ledger: a new chain begins. If the file was not moved away on purpose, something was done to it",
                    audit.path.display()
                );
            }
            let genesis = key.genesis(&chain, base);
            sqlx::query(
                "insert into ledger
                    (id, chain, key_id, base_seq, base_hash, head_seq, head_hash, mac)
                 values (1, ?1, ?2, ?3, ?4, ?3, ?4, ?5)",
            )
            .bind(chain.to_vec())
            .bind(key.id().to_vec())
            .bind(base)
            .bind(genesis.to_vec())
            .bind(key.ends(&chain, (base, &genesis), (base, &genesis)).to_vec())
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await?;
        }
    }
    Ok(key)
}

/// The key in a file; `None` when there is no file.
pub(super) fn read(path: &Path) -> Result<Option<LedgerKey>, StoreError> {
    match read_key(path) {
        Ok(secret) => key_of(path, &secret).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Files { action: "read", path: path.to_owned(), source }),
    }
}

fn key_of(path: &Path, secret: &[u8]) -> Result<LedgerKey, StoreError> {
    let secret: &[u8; KEY_LENGTH] =
        secret.try_into().map_err(|_length| lacking(path, "it does not hold 32 bytes"))?;
    Ok(LedgerKey::new(secret))
}

fn lacking(path: &Path, reason: &'static str) -> StoreError {
    StoreError::LedgerKey { path: path.to_owned(), reason }
}
