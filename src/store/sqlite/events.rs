//! SQL of table `events`.

use sqlx::Row;

use super::SqliteStore;
use crate::model::Timestamp;
use crate::store::{EventRow, StoreError};

impl SqliteStore {
    pub(in crate::store) async fn append_event(&self, event: &EventRow) -> Result<(), StoreError> {
        let mut writer = self.state.writer().await?;
        sqlx::query(
            "insert into events (at_ms, actor, kind, subject, detail) values (?, ?, ?, ?, ?)",
        )
        .bind(event.at.as_millis())
        .bind(event.actor.as_str())
        .bind(event.kind.as_str())
        .bind(event.subject.as_str())
        .bind(event.detail.as_str())
        .execute(&mut *writer)
        .await?;
        Ok(())
    }

    pub(in crate::store) async fn events(&self, limit: u16) -> Result<Vec<EventRow>, StoreError> {
        let rows = sqlx::query(
            "select at_ms, actor, kind, subject, detail from events order by id desc limit ?",
        )
        .bind(limit)
        .fetch_all(&self.state.readers)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(EventRow {
                    at: Timestamp::from_millis(row.try_get("at_ms")?),
                    actor: row.try_get("actor")?,
                    kind: row.try_get("kind")?,
                    subject: row.try_get("subject")?,
                    detail: row.try_get("detail")?,
                })
            })
            .collect()
    }
}
