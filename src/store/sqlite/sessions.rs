//! SQL of table `sessions`.

use std::sync::LazyLock;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{CHUNK, SqliteStore, begin, hash_of, multi_row};
use crate::model::{ClientInfo, ProtocolVersion, Timestamp, ViewName};
use crate::store::{SessionRow, StoreError};

const TABLE: &str = "sessions";

const HEAD: &str = "insert into sessions
    (hash, caller, protocol_version, client_name, client_version, capabilities, created_at_ms,
     last_seen_at_ms, view)";
const TAIL: &str = "on conflict (hash) do update set
    caller = excluded.caller, protocol_version = excluded.protocol_version,
    client_name = excluded.client_name, client_version = excluded.client_version,
    capabilities = excluded.capabilities, last_seen_at_ms = excluded.last_seen_at_ms,
    view = excluded.view";

static INSERT: LazyLock<[&str; 2]> =
    LazyLock::new(|| [CHUNK, 1].map(|rows| multi_row(HEAD, 9, rows, TAIL)));

static DELETE: LazyLock<[&str; 2]> = LazyLock::new(|| {
    [CHUNK, 1].map(|rows| multi_row("delete from sessions where hash in (", 1, rows, ")"))
});

const TOUCH_HEAD: &str = "with seen (hash, at) as (";
const TOUCH_TAIL: &str = ") update sessions set last_seen_at_ms = seen.at
    from seen where sessions.hash = seen.hash";

static TOUCH: LazyLock<[&str; 2]> =
    LazyLock::new(|| [CHUNK, 1].map(|rows| multi_row(TOUCH_HEAD, 2, rows, TOUCH_TAIL)));

/// The rows in as few statements as there are texts for: full chunks, then one by one.
fn statements<'a, T>(
    texts: &LazyLock<[&'static str; 2]>,
    rows: &'a [T],
) -> impl Iterator<Item = (&'static str, &'a [T])> + use<'a, T> {
    let [many, one] = **texts;
    let (chunks, rest) = rows.as_chunks::<CHUNK>();
    let chunks = chunks.iter().map(move |chunk| (many, chunk.as_slice()));
    chunks.chain(rest.chunks(1).map(move |row| (one, row)))
}

impl SqliteStore {
    pub(in crate::store) async fn sessions(&self) -> Result<Vec<SessionRow>, StoreError> {
        let rows = sqlx::query(
            "select hash, caller, protocol_version, client_name, client_version, capabilities,
                created_at_ms, last_seen_at_ms, view
             from sessions",
        )
        .fetch_all(&self.state.readers)
        .await?;
        rows.iter().map(session).collect()
    }

    pub(in crate::store) async fn change_sessions(
        &self,
        saved: &[SessionRow],
        ended: &[[u8; 32]],
    ) -> Result<(), StoreError> {
        let mut writer = self.state.writer().await?;
        let mut transaction = begin(&mut writer).await?;
        for (sql, rows) in statements(&INSERT, saved) {
            let mut query = sqlx::query(sql);
            for row in rows {
                query = query
                    .bind(row.hash.as_slice())
                    .bind(row.caller.as_str())
                    .bind(row.protocol_version.as_str())
                    .bind(row.client.name.as_str())
                    .bind(row.client.version.as_str())
                    .bind(row.capabilities.clone())
                    .bind(row.created_at.as_millis())
                    .bind(row.last_seen_at.as_millis())
                    .bind(row.view.clone().map(ViewName::into_shared));
            }
            query.execute(&mut *transaction).await?;
        }
        for (sql, hashes) in statements(&DELETE, ended) {
            let mut query = sqlx::query(sql);
            for hash in hashes {
                query = query.bind(hash.as_slice());
            }
            query.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(in crate::store) async fn touch_sessions(
        &self,
        seen: &[([u8; 32], Timestamp)],
    ) -> Result<(), StoreError> {
        let mut writer = self.state.writer().await?;
        let mut transaction = begin(&mut writer).await?;
        for (sql, rows) in statements(&TOUCH, seen) {
            let mut query = sqlx::query(sql);
            for (hash, at) in rows {
                query = query.bind(hash.as_slice()).bind(at.as_millis());
            }
            query.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(in crate::store) async fn delete_sessions_before(
        &self,
        last_seen: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut writer = self.state.writer().await?;
        let done = sqlx::query("delete from sessions where last_seen_at_ms < ?")
            .bind(last_seen.as_millis())
            .execute(&mut *writer)
            .await?;
        Ok(done.rows_affected())
    }
}

fn session(row: &SqliteRow) -> Result<SessionRow, StoreError> {
    let version: &str = row.try_get("protocol_version")?;
    let view: Option<&str> = row.try_get("view")?;
    Ok(SessionRow {
        hash: hash_of(TABLE, "hash", row.try_get("hash")?)?,
        caller: row.try_get("caller")?,
        view: view
            .map(|name| {
                ViewName::parse(name)
                    .map_err(|_not_a_name| StoreError::bad_value(TABLE, "view", name))
            })
            .transpose()?,
        protocol_version: ProtocolVersion::parse(version)
            .ok_or_else(|| StoreError::bad_value(TABLE, "protocol_version", version))?,
        client: ClientInfo {
            name: row.try_get("client_name")?,
            version: row.try_get("client_version")?,
        },
        capabilities: row.try_get("capabilities")?,
        created_at: Timestamp::from_millis(row.try_get("created_at_ms")?),
        last_seen_at: Timestamp::from_millis(row.try_get("last_seen_at_ms")?),
    })
}
