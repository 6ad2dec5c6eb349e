//! SQL of table `offers`: prompts, resources and templates.

use std::sync::LazyLock;

use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::tools::{expect_server, server_name};
use super::{CHUNK, SqliteStore, begin, multi_row};
use crate::model::ServerName;
use crate::store::{OfferKind, OfferRow, StoreError};

const TABLE: &str = "offers";
const HEAD: &str = "insert into offers (server, kind, position, key, definition)";

static INSERT: LazyLock<[&str; 2]> =
    LazyLock::new(|| [CHUNK, 1].map(|rows| multi_row(HEAD, 5, rows, "")));

impl SqliteStore {
    pub(in crate::store) async fn offers(&self) -> Result<Vec<OfferRow>, StoreError> {
        let rows = sqlx::query(
            "select server, kind, key, definition from offers order by server, kind, position",
        )
        .fetch_all(&self.state.readers)
        .await?;
        rows.iter().map(offer).collect()
    }

    pub(in crate::store) async fn replace_offers(
        &self,
        server: &ServerName,
        kind: OfferKind,
        list: &[(&str, &Bytes)],
    ) -> Result<(), StoreError> {
        let mut writer = self.state.writer().await?;
        let mut transaction = begin(&mut writer).await?;
        expect_server(&mut transaction, server).await?;
        sqlx::query("delete from offers where server = ? and kind = ?")
            .bind(server.as_str())
            .bind(kind.as_str())
            .execute(&mut *transaction)
            .await?;
        let [many, one] = *INSERT;
        let (chunks, rest) = list.as_chunks::<CHUNK>();
        let statements = chunks.iter().map(|chunk| (many, chunk.as_slice()));
        let mut position = 0_u32;
        for (sql, rows) in statements.chain(rest.chunks(1).map(|row| (one, row))) {
            let mut query = sqlx::query(sql);
            for (key, definition) in rows {
                query = query
                    .bind(server.as_str())
                    .bind(kind.as_str())
                    .bind(position)
                    .bind(*key)
                    .bind(definition.as_ref());
                position = position.saturating_add(1);
            }
            query.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

fn offer(row: &SqliteRow) -> Result<OfferRow, StoreError> {
    let kind: &str = row.try_get("kind")?;
    Ok(OfferRow {
        server: server_name(TABLE, row.try_get("server")?)?,
        kind: OfferKind::parse(kind).ok_or_else(|| StoreError::bad_value(TABLE, "kind", kind))?,
        key: row.try_get("key")?,
        definition: Bytes::from(row.try_get::<Vec<u8>, _>("definition")?),
    })
}
