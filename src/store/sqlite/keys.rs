//! SQL of table `keys`.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{SqliteStore, begin, hash_of};
use crate::model::{Scope, Scopes, Timestamp};
use crate::store::{KeyRow, StoreError};

const TABLE: &str = "keys";

impl SqliteStore {
    pub(in crate::store) async fn keys(&self) -> Result<Vec<KeyRow>, StoreError> {
        let rows = sqlx::query(
            "select id, name, hash, scopes, created_at_ms, expires_at_ms, last_used_at_ms,
                revoked_at_ms
             from keys order by created_at_ms, id",
        )
        .fetch_all(&self.state.readers)
        .await?;
        rows.iter().map(key).collect()
    }

    pub(in crate::store) async fn insert_key(&self, row: &KeyRow) -> Result<(), StoreError> {
        let mut writer = self.state.writer().await?;
        let inserted = sqlx::query(
            "insert into keys
                (id, name, hash, scopes, created_at_ms, expires_at_ms, last_used_at_ms,
                 revoked_at_ms)
             values (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(row.id.as_str())
        .bind(row.name.as_str())
        .bind(row.hash.as_slice())
        .bind(row.scopes.to_string())
        .bind(row.created_at.as_millis())
        .bind(row.expires_at.map(Timestamp::as_millis))
        .bind(row.last_used_at.map(Timestamp::as_millis))
        .bind(row.revoked_at.map(Timestamp::as_millis))
        .execute(&mut *writer)
        .await;
        match inserted {
            Ok(_) => Ok(()),
            // Ids and hashes are random: the name is what people repeat.
            Err(error) if error.as_database_error().is_some_and(|e| e.is_unique_violation()) => {
                Err(StoreError::KeyNameTaken { name: row.name.clone() })
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(in crate::store) async fn revoke_key(
        &self,
        id_or_name: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut writer = self.state.writer().await?;
        let done = sqlx::query(
            "update keys set revoked_at_ms = ?
             where (id = ? or name = ?) and revoked_at_ms is null",
        )
        .bind(now.as_millis())
        .bind(id_or_name)
        .bind(id_or_name)
        .execute(&mut *writer)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    pub(in crate::store) async fn touch_keys(
        &self,
        used: &[(String, Timestamp)],
    ) -> Result<(), StoreError> {
        let mut writer = self.state.writer().await?;
        let mut transaction = begin(&mut writer).await?;
        for (id, at) in used {
            sqlx::query("update keys set last_used_at_ms = ? where id = ?")
                .bind(at.as_millis())
                .bind(id.as_str())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

fn key(row: &SqliteRow) -> Result<KeyRow, StoreError> {
    let scopes: &str = row.try_get("scopes")?;
    let maybe_at = |column| -> Result<Option<Timestamp>, StoreError> {
        Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_millis))
    };
    let scopes: Scopes = scopes
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| Scope::parse(name).ok_or_else(|| StoreError::bad_value(TABLE, "scopes", name)))
        .collect::<Result<_, _>>()?;
    Ok(KeyRow {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        hash: hash_of(TABLE, "hash", row.try_get("hash")?)?,
        scopes,
        created_at: Timestamp::from_millis(row.try_get("created_at_ms")?),
        expires_at: maybe_at("expires_at_ms")?,
        last_used_at: maybe_at("last_used_at_ms")?,
        revoked_at: maybe_at("revoked_at_ms")?,
    })
}
