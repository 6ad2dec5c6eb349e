//! SQL of tables `breakers` and `breaker_events`.

use std::time::Duration;

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, Transaction};

use super::tools::{server_name, tool_name};
use super::{SqliteStore, begin};
use crate::model::{
    BreakerEvent, BreakerRecord, BreakerRow, BreakerState, ServerName, Timestamp, ToolName,
    TransitionReason,
};
use crate::store::StoreError;

const TABLE: &str = "breakers";
const EVENTS: &str = "breaker_events";

/// Events kept of each server: at one opening a minute and three events for each, two days.
const EVENTS_KEPT: i64 = 10_000;
/// A server's history is trimmed each time it has grown by so many: finding the place walks over
/// all that are kept.
const TRIMMED_EVERY: i64 = 256;

const SELECT: &str = "select server, tool, state, failures, trips, generation, opened_at_ms,
    open_for_ms, last_failure_at_ms, reason, last_error
    from breakers where replica = '' order by server, tool";

// A server can be deleted while a transition of its breaker waits to be stored.
const UPSERT: &str = "insert into breakers
    (server, tool, state, failures, trips, generation, opened_at_ms, open_for_ms,
     last_failure_at_ms, reason, last_error)
    select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11
    where exists (select 1 from servers where name = ?1)
    on conflict (server, replica, tool) do update set
        state = excluded.state, failures = excluded.failures, trips = excluded.trips,
        generation = excluded.generation, opened_at_ms = excluded.opened_at_ms,
        open_for_ms = excluded.open_for_ms, last_failure_at_ms = excluded.last_failure_at_ms,
        reason = excluded.reason, last_error = excluded.last_error";

const INSERT_EVENT: &str = "insert into breaker_events
    (server, tool, at_ms, from_state, to_state, reason, failures, trips, open_for_ms, error, actor,
     note, n)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 1 + coalesce(
        (select n from breaker_events where server = ?1 order by id desc limit 1), 0))
    returning n";

const SELECT_EVENTS: &str =
    "select id, at_ms, server, tool, from_state, to_state, reason, failures,
    trips, open_for_ms, error, actor, note from breaker_events where true";

const TRIM_EVENTS: &str = "delete from breaker_events where server = ?1 and id <=
    (select id from breaker_events where server = ?1 order by id desc limit 1 offset ?2)";

impl SqliteStore {
    pub(in crate::store) async fn breakers(&self) -> Result<Vec<BreakerRow>, StoreError> {
        let rows = sqlx::query(SELECT).fetch_all(&self.state.readers).await?;
        rows.iter().map(breaker).collect()
    }

    pub(in crate::store) async fn save_breakers(
        &self,
        rows: &[BreakerRow],
        events: &[BreakerEvent],
    ) -> Result<(), StoreError> {
        if rows.is_empty() && events.is_empty() {
            return Ok(());
        }
        let mut writer = self.state.writer().await?;
        let mut transaction = begin(&mut writer).await?;
        for row in rows {
            let record = &row.record;
            sqlx::query(UPSERT)
                .bind(row.server.as_str())
                .bind(row.tool.as_ref().map_or("", ToolName::as_str))
                .bind(record.state.as_str())
                .bind(record.failures)
                .bind(record.trips)
                .bind(i64::try_from(record.generation).unwrap_or(i64::MAX))
                .bind(record.opened_at.map(Timestamp::as_millis))
                .bind(record.open_for.map(millis))
                .bind(record.last_failure_at.map(Timestamp::as_millis))
                .bind(record.reason.map(TransitionReason::as_str))
                .bind(row.last_error.as_deref())
                .execute(&mut *transaction)
                .await?;
        }
        for event in events {
            insert_event(&mut transaction, event).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(in crate::store) async fn breaker_events(
        &self,
        server: Option<&ServerName>,
        limit: u32,
        before_id: Option<i64>,
    ) -> Result<Vec<BreakerEvent>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new(SELECT_EVENTS);
        if let Some(server) = server {
            query.push(" and server = ").push_bind(server.as_str().to_owned());
        }
        self.page_of_events(query, limit, before_id).await
    }

    pub(in crate::store) async fn breaker_transitions(
        &self,
        server: &ServerName,
        tool_of: Option<&ToolName>,
        limit: u32,
        before_id: Option<i64>,
    ) -> Result<Vec<BreakerEvent>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new(SELECT_EVENTS);
        query.push(" and server = ").push_bind(server.as_str().to_owned());
        let tool = tool_of.map_or("", ToolName::as_str);
        query.push(" and tool = ").push_bind(tool.to_owned());
        self.page_of_events(query, limit, before_id).await
    }

    async fn page_of_events(
        &self,
        mut query: QueryBuilder<Sqlite>,
        limit: u32,
        before_id: Option<i64>,
    ) -> Result<Vec<BreakerEvent>, StoreError> {
        if let Some(id) = before_id {
            query.push(" and id < ").push_bind(id);
        }
        query.push(" order by id desc limit ").push_bind(limit);
        let rows = query.build().fetch_all(&self.state.readers).await?;
        rows.iter().map(event).collect()
    }
}

async fn insert_event(
    transaction: &mut Transaction<'_, Sqlite>,
    event: &BreakerEvent,
) -> Result<(), StoreError> {
    let n: i64 = sqlx::query_scalar(INSERT_EVENT)
        .bind(event.server.as_str())
        .bind(event.tool.as_ref().map_or("", ToolName::as_str))
        .bind(event.at.as_millis())
        .bind(event.from.as_str())
        .bind(event.to.as_str())
        .bind(event.reason.as_str())
        .bind(event.failures)
        .bind(event.trips)
        .bind(event.open_for.map(millis))
        .bind(event.error.as_deref())
        .bind(event.actor.as_deref())
        .bind(event.note.as_deref())
        .fetch_one(&mut **transaction)
        .await?;
    if n % TRIMMED_EVERY == 0 {
        sqlx::query(TRIM_EVENTS)
            .bind(event.server.as_str())
            .bind(EVENTS_KEPT)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

fn breaker(row: &SqliteRow) -> Result<BreakerRow, StoreError> {
    let reason: Option<&str> = row.try_get("reason")?;
    let generation: i64 = row.try_get("generation")?;
    let at = |column| -> Result<Option<Timestamp>, StoreError> {
        Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_millis))
    };
    Ok(BreakerRow {
        server: server_name(TABLE, row.try_get("server")?)?,
        tool: tool(TABLE, row)?,
        record: BreakerRecord {
            state: state(TABLE, "state", row)?,
            failures: row.try_get("failures")?,
            trips: row.try_get("trips")?,
            generation: u64::try_from(generation).map_err(|_negative| {
                StoreError::bad_value(TABLE, "generation", &generation.to_string())
            })?,
            opened_at: at("opened_at_ms")?,
            open_for: open_for(TABLE, row)?,
            last_failure_at: at("last_failure_at_ms")?,
            reason: reason.map(|name| parse_reason(TABLE, name)).transpose()?,
        },
        last_error: row.try_get("last_error")?,
    })
}

fn event(row: &SqliteRow) -> Result<BreakerEvent, StoreError> {
    Ok(BreakerEvent {
        id: row.try_get("id")?,
        server: server_name(EVENTS, row.try_get("server")?)?,
        tool: tool(EVENTS, row)?,
        at: Timestamp::from_millis(row.try_get("at_ms")?),
        from: state(EVENTS, "from_state", row)?,
        to: state(EVENTS, "to_state", row)?,
        reason: parse_reason(EVENTS, row.try_get("reason")?)?,
        failures: row.try_get("failures")?,
        trips: row.try_get("trips")?,
        open_for: open_for(EVENTS, row)?,
        error: row.try_get("error")?,
        actor: row.try_get("actor")?,
        note: row.try_get("note")?,
        trace_id: None,
    })
}

fn tool(table: &'static str, row: &SqliteRow) -> Result<Option<ToolName>, StoreError> {
    match row.try_get("tool")? {
        "" => Ok(None),
        name => tool_name(table, "tool", name).map(Some),
    }
}

fn state(
    table: &'static str,
    column: &'static str,
    row: &SqliteRow,
) -> Result<BreakerState, StoreError> {
    let name: &str = row.try_get(column)?;
    BreakerState::parse(name).ok_or_else(|| StoreError::bad_value(table, column, name))
}

fn parse_reason(table: &'static str, name: &str) -> Result<TransitionReason, StoreError> {
    TransitionReason::parse(name).ok_or_else(|| StoreError::bad_value(table, "reason", name))
}

fn open_for(table: &'static str, row: &SqliteRow) -> Result<Option<Duration>, StoreError> {
    let value: Option<i64> = row.try_get("open_for_ms")?;
    value
        .map(|millis| {
            u64::try_from(millis).map(Duration::from_millis).map_err(|_negative| {
                StoreError::bad_value(table, "open_for_ms", &millis.to_string())
            })
        })
        .transpose()
}

/// Rounded up: what is read is never shorter than what was said.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}
