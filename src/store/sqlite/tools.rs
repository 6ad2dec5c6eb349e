//! SQL of tables `tools`, `tool_definitions` and `tool_history`: the catalogue.

use std::collections::HashSet;
use std::sync::LazyLock;

use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, Transaction};

use super::{CHUNK, SqliteStore, begin, hash_of, multi_row};
use crate::model::{ServerName, Timestamp, ToolName, ToolStatus};
use crate::store::{HistoryKind, HistoryRow, StoreError, ToolRow};

const DEFINITIONS: (&str, &str) = (
    "insert into tool_definitions (hash, definition, size_bytes)",
    "on conflict (hash) do nothing",
);
const TOOLS: (&str, &str) = (
    "insert into tools
        (server, name, hash, status, position, first_seen_at_ms, last_seen_at_ms)",
    "on conflict (server, name) do update set
        hash = excluded.hash, status = excluded.status, position = excluded.position,
        last_seen_at_ms = excluded.last_seen_at_ms",
);

static INSERT_DEFINITIONS: LazyLock<[&str; 2]> =
    LazyLock::new(|| [CHUNK, 1].map(|rows| multi_row(DEFINITIONS.0, 3, rows, DEFINITIONS.1)));
static INSERT_TOOLS: LazyLock<[&str; 2]> =
    LazyLock::new(|| [CHUNK, 1].map(|rows| multi_row(TOOLS.0, 7, rows, TOOLS.1)));

impl SqliteStore {
    pub(in crate::store) async fn tools(&self) -> Result<Vec<ToolRow>, StoreError> {
        let rows = sqlx::query(
            "select t.server, t.name, t.hash, d.definition, t.status, t.position,
                t.first_seen_at_ms, t.last_seen_at_ms
             from tools t join tool_definitions d on d.hash = t.hash
             order by t.server, t.position, t.name",
        )
        .fetch_all(&self.state.readers)
        .await?;
        rows.iter().map(tool).collect()
    }

    pub(in crate::store) async fn replace_tools(
        &self,
        server: &ServerName,
        tools: &[ToolRow],
        history: &[HistoryRow],
    ) -> Result<(), StoreError> {
        let mut writer = self.state.writer().await?;
        let mut transaction = begin(&mut writer).await?;
        expect_server(&mut transaction, server).await?;
        insert_definitions(&mut transaction, tools).await?;
        insert_tools(&mut transaction, server, tools).await?;
        mark_gone(&mut transaction, server, tools).await?;
        insert_history(&mut transaction, history).await?;
        transaction.commit().await?;
        Ok(())
    }

    pub(in crate::store) async fn mark_tools_stale(
        &self,
        server: &ServerName,
    ) -> Result<u64, StoreError> {
        let mut writer = self.state.writer().await?;
        let done = sqlx::query("update tools set status = ? where server = ? and status = ?")
            .bind(ToolStatus::Stale.as_str())
            .bind(server.as_str())
            .bind(ToolStatus::Active.as_str())
            .execute(&mut *writer)
            .await?;
        Ok(done.rows_affected())
    }

    pub(in crate::store) async fn tool_history(
        &self,
        server: &ServerName,
        tool: &ToolName,
        limit: u16,
    ) -> Result<Vec<HistoryRow>, StoreError> {
        let rows = sqlx::query(
            "select server, tool, old_hash, new_hash, kind, at_ms, actor from tool_history
             where server = ? and tool = ? order by id desc limit ?",
        )
        .bind(server.as_str())
        .bind(tool.as_str())
        .bind(limit)
        .fetch_all(&self.state.readers)
        .await?;
        rows.iter().map(history_row).collect()
    }

    pub(in crate::store) async fn definition(
        &self,
        hash: &[u8; 32],
    ) -> Result<Option<Bytes>, StoreError> {
        let found: Option<Vec<u8>> =
            sqlx::query_scalar("select definition from tool_definitions where hash = ?")
                .bind(hash.as_slice())
                .fetch_optional(&self.state.readers)
                .await?;
        Ok(found.map(Bytes::from))
    }
}

/// Fails when there is no such server.
pub(super) async fn expect_server(
    transaction: &mut Transaction<'_, Sqlite>,
    server: &ServerName,
) -> Result<(), StoreError> {
    let known = sqlx::query("select 1 from servers where name = ?")
        .bind(server.as_str())
        .fetch_optional(&mut **transaction)
        .await?;
    match known {
        Some(_) => Ok(()),
        None => Err(StoreError::UnknownServer { name: server.clone() }),
    }
}

async fn insert_definitions(
    transaction: &mut Transaction<'_, Sqlite>,
    tools: &[ToolRow],
) -> Result<(), StoreError> {
    let [many, one] = *INSERT_DEFINITIONS;
    let (chunks, rest) = tools.as_chunks::<CHUNK>();
    let statements = chunks.iter().map(|chunk| (many, chunk.as_slice()));
    for (sql, rows) in statements.chain(rest.chunks(1).map(|row| (one, row))) {
        let mut query = sqlx::query(sql);
        for row in rows {
            query = query
                .bind(row.hash.as_slice())
                .bind(row.definition.as_ref())
                .bind(i64::try_from(row.definition.len()).unwrap_or(i64::MAX));
        }
        query.execute(&mut **transaction).await?;
    }
    Ok(())
}

async fn insert_tools(
    transaction: &mut Transaction<'_, Sqlite>,
    server: &ServerName,
    tools: &[ToolRow],
) -> Result<(), StoreError> {
    let [many, one] = *INSERT_TOOLS;
    let (chunks, rest) = tools.as_chunks::<CHUNK>();
    let statements = chunks.iter().map(|chunk| (many, chunk.as_slice()));
    for (sql, rows) in statements.chain(rest.chunks(1).map(|row| (one, row))) {
        let mut query = sqlx::query(sql);
        for row in rows {
            query = query
                .bind(server.as_str())
                .bind(row.tool.as_str())
                .bind(row.hash.as_slice())
                .bind(row.status.as_str())
                .bind(row.position)
                .bind(row.first_seen_at.as_millis())
                .bind(row.last_seen_at.as_millis());
        }
        query.execute(&mut **transaction).await?;
    }
    Ok(())
}

/// Marks those of the server's tools that are not in `tools`; their rows stay.
async fn mark_gone(
    transaction: &mut Transaction<'_, Sqlite>,
    server: &ServerName,
    tools: &[ToolRow],
) -> Result<(), StoreError> {
    let present: HashSet<&str> = tools.iter().map(|row| row.tool.as_str()).collect();
    let stored: Vec<String> =
        sqlx::query_scalar("select name from tools where server = ? and status <> ?")
            .bind(server.as_str())
            .bind(ToolStatus::Gone.as_str())
            .fetch_all(&mut **transaction)
            .await?;
    for name in stored.into_iter().filter(|name| !present.contains(name.as_str())) {
        sqlx::query("update tools set status = ? where server = ? and name = ?")
            .bind(ToolStatus::Gone.as_str())
            .bind(server.as_str())
            .bind(name)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

async fn insert_history(
    transaction: &mut Transaction<'_, Sqlite>,
    history: &[HistoryRow],
) -> Result<(), StoreError> {
    for row in history {
        sqlx::query(
            "insert into tool_history (server, tool, old_hash, new_hash, kind, at_ms, actor)
             values (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(row.server.as_str())
        .bind(row.tool.as_str())
        .bind(row.old_hash.as_ref().map(|hash| hash.to_vec()))
        .bind(row.new_hash.as_ref().map(|hash| hash.to_vec()))
        .bind(row.kind.as_str())
        .bind(row.at.as_millis())
        .bind(row.by.clone())
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

fn tool(row: &SqliteRow) -> Result<ToolRow, StoreError> {
    const TABLE: &str = "tools";
    let status: &str = row.try_get("status")?;
    Ok(ToolRow {
        server: server_name(TABLE, row.try_get("server")?)?,
        tool: tool_name(TABLE, "name", row.try_get("name")?)?,
        hash: hash_of(TABLE, "hash", row.try_get("hash")?)?,
        definition: Bytes::from(row.try_get::<Vec<u8>, _>("definition")?),
        status: ToolStatus::parse(status)
            .ok_or_else(|| StoreError::bad_value(TABLE, "status", status))?,
        position: row.try_get("position")?,
        first_seen_at: Timestamp::from_millis(row.try_get("first_seen_at_ms")?),
        last_seen_at: Timestamp::from_millis(row.try_get("last_seen_at_ms")?),
    })
}

fn history_row(row: &SqliteRow) -> Result<HistoryRow, StoreError> {
    const TABLE: &str = "tool_history";
    let kind: &str = row.try_get("kind")?;
    let hash = |column: &'static str| -> Result<Option<[u8; 32]>, StoreError> {
        let bytes: Option<&[u8]> = row.try_get(column)?;
        bytes.map(|bytes| hash_of(TABLE, column, bytes)).transpose()
    };
    Ok(HistoryRow {
        server: server_name(TABLE, row.try_get("server")?)?,
        tool: tool_name(TABLE, "tool", row.try_get("tool")?)?,
        old_hash: hash("old_hash")?,
        new_hash: hash("new_hash")?,
        kind: HistoryKind::parse(kind).ok_or_else(|| StoreError::bad_value(TABLE, "kind", kind))?,
        at: Timestamp::from_millis(row.try_get("at_ms")?),
        by: row.try_get("actor")?,
    })
}

pub(super) fn server_name(table: &'static str, name: &str) -> Result<ServerName, StoreError> {
    ServerName::parse(name).map_err(|_not_a_name| StoreError::bad_value(table, "server", name))
}

pub(super) fn tool_name(
    table: &'static str,
    column: &'static str,
    name: &str,
) -> Result<ToolName, StoreError> {
    ToolName::parse(name).map_err(|_not_a_name| StoreError::bad_value(table, column, name))
}
