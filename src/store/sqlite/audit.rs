//! Reading tables `calls` and `payloads`: the ledger's calls. Writing them is `ledger.rs`'s.

use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::attempts::attempts_of;
use super::{SqliteStore, hash_of};
use crate::error::ErrorCode;
use crate::model::{
    ArgumentsLevel, BreakerState, CallId, ClientInfo, Entrance, Failure, Outcome, ProtocolVersion,
    ResultsLevel, ServerName, Timestamp, ToolName, TraceId, ViewName,
};
use crate::store::chain::Hash;
use crate::store::{CallRow, StoreError};

const TABLE: &str = "calls";

pub(super) const SELECT: &str =
    "select c.seq, c.id, c.started_at_ms, c.caller, c.session, c.client_name,
    c.client_version, c.entrance, c.protocol_version, c.tool, c.upstream_tool, c.server,
    c.definition_hash, c.outcome, c.error_code, c.error, c.failure, c.http_status, c.attempts,
    c.queue_us, c.upstream_us, c.total_us, c.request_bytes, c.response_bytes, c.view,
    c.arguments_digest, c.result_digest, c.hash, c.trace_id,
    c.remote_address, c.arguments_level, c.results_level, c.breaker";

impl SqliteStore {
    pub(in crate::store) async fn audit_after(
        &self,
        seq: i64,
        limit: u16,
    ) -> Result<Vec<CallRow>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new(SELECT);
        query.push(" from calls c where c.seq > ").push_bind(seq);
        query.push(" order by c.seq limit ").push_bind(i64::from(limit));
        let rows = query.build().fetch_all(&self.audit.readers).await?;
        rows.iter().map(call).collect()
    }

    pub(in crate::store) async fn audit_call(
        &self,
        id: CallId,
    ) -> Result<Option<CallRow>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new(SELECT);
        query.push(
            ", p.arguments, p.result from calls c left join payloads p on p.seq = c.seq
             where c.id = ",
        );
        query.push_bind(id.as_bytes().to_vec());
        let Some(row) = query.build().fetch_optional(&self.audit.readers).await? else {
            return Ok(None);
        };
        let mut found = call(&row)?;
        found.arguments = row.try_get("arguments")?;
        found.result = row.try_get("result")?;
        found.attempt_list = attempts_of(&self.audit.readers, found.seq).await?;
        Ok(Some(found))
    }

    pub(in crate::store) async fn audit_count(&self) -> Result<u64, StoreError> {
        let count: i64 =
            sqlx::query_scalar("select count(*) from calls").fetch_one(&self.audit.readers).await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    pub(in crate::store) async fn audit_oldest(&self) -> Result<Option<Timestamp>, StoreError> {
        let oldest: Option<i64> =
            sqlx::query_scalar("select started_at_ms from calls order by seq limit 1")
                .fetch_optional(&self.audit.own)
                .await?;
        Ok(oldest.map(Timestamp::from_millis))
    }
}

pub(super) fn call(row: &SqliteRow) -> Result<CallRow, StoreError> {
    let bad = |column: &'static str, value: &str| StoreError::bad_value(TABLE, column, value);
    let id: &[u8] = row.try_get("id")?;
    let outcome: &str = row.try_get("outcome")?;
    let error_code: Option<&str> = row.try_get("error_code")?;
    let failure: Option<&str> = row.try_get("failure")?;
    let server: Option<&str> = row.try_get("server")?;
    let view: Option<&str> = row.try_get("view")?;
    let trace_id: Option<&str> = row.try_get("trace_id")?;
    let upstream_tool: Option<&str> = row.try_get("upstream_tool")?;
    let definition_hash: Option<&[u8]> = row.try_get("definition_hash")?;
    let client_name: Option<String> = row.try_get("client_name")?;
    let client_version: Option<String> = row.try_get("client_version")?;
    Ok(CallRow {
        seq: row.try_get("seq")?,
        id: CallId::from_slice(id).ok_or_else(|| bad("id", &format!("{} bytes", id.len())))?,
        started_at: Timestamp::from_millis(row.try_get("started_at_ms")?),
        caller: row.try_get::<&str, _>("caller")?.into(),
        session: row.try_get::<Option<&str>, _>("session")?.map(Into::into),
        client: client_name
            .map(|name| Arc::new(ClientInfo { name, version: client_version.unwrap_or_default() })),
        entrance: entrance(row)?,
        view: view
            .map(|name| ViewName::parse(name).map_err(|_not_a_name| bad("view", name)))
            .transpose()?,
        tool: row.try_get::<&str, _>("tool")?.into(),
        upstream_tool: upstream_tool
            .map(|name| ToolName::parse(name).map_err(|_not_a_name| bad("upstream_tool", name)))
            .transpose()?,
        server: server
            .map(|name| ServerName::parse(name).map_err(|_not_a_name| bad("server", name)))
            .transpose()?,
        definition_hash: definition_hash
            .map(|bytes| hash_of(TABLE, "definition_hash", bytes))
            .transpose()?,
        outcome: Outcome::parse(outcome).ok_or_else(|| bad("outcome", outcome))?,
        error_code: error_code
            .map(|name| {
                ErrorCode::ALL
                    .into_iter()
                    .find(|code| code.as_str() == name)
                    .ok_or_else(|| bad("error_code", name))
            })
            .transpose()?,
        error: row.try_get("error")?,
        failure: failure
            .map(|name| parse_failure(name).ok_or_else(|| bad("failure", name)))
            .transpose()?,
        http_status: row.try_get("http_status")?,
        attempts: row.try_get("attempts")?,
        attempt_list: Vec::new(),
        queue: duration(TABLE, row, "queue_us")?,
        upstream: duration(TABLE, row, "upstream_us")?,
        total: duration(TABLE, row, "total_us")?,
        request_bytes: unsigned(TABLE, row, "request_bytes")?,
        response_bytes: unsigned(TABLE, row, "response_bytes")?,
        arguments: None,
        result: None,
        arguments_digest: digest(row, "arguments_digest")?,
        result_digest: digest(row, "result_digest")?,
        hash: digest(row, "hash")?,
        trace_id: trace_id
            .map(|id| TraceId::parse(id).ok_or_else(|| bad("trace_id", id)))
            .transpose()?,
        remote: read(row, "remote_address", |text| text.parse().ok())?,
        levels: {
            let arguments = read(row, "arguments_level", ArgumentsLevel::parse)?;
            arguments.zip(read(row, "results_level", ResultsLevel::parse)?)
        },
        breaker: read(row, "breaker", BreakerState::parse)?,
    })
}

/// What a text in a column means.
fn read<T>(
    row: &SqliteRow,
    column: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, StoreError> {
    let text: Option<&str> = row.try_get(column)?;
    text.map(|text| parse(text).ok_or_else(|| StoreError::bad_value(TABLE, column, text)))
        .transpose()
}

fn digest(row: &SqliteRow, column: &'static str) -> Result<Option<Hash>, StoreError> {
    let bytes: Option<&[u8]> = row.try_get(column)?;
    bytes.map(|bytes| hash_of(TABLE, column, bytes)).transpose()
}

fn entrance(row: &SqliteRow) -> Result<Entrance, StoreError> {
    let entrance: &str = row.try_get("entrance")?;
    let version: Option<&str> = row.try_get("protocol_version")?;
    match (entrance, version) {
        ("rest", _) => Ok(Entrance::Rest),
        ("mcp", Some(version)) => ProtocolVersion::parse(version)
            .map(Entrance::Mcp)
            .ok_or_else(|| StoreError::bad_value(TABLE, "protocol_version", version)),
        _ => Err(StoreError::bad_value(TABLE, "entrance", entrance)),
    }
}

pub(super) fn parse_failure(name: &str) -> Option<Failure> {
    [
        Failure::NotSent,
        Failure::Refused,
        Failure::Ambiguous,
        Failure::Timeout,
        Failure::Answered,
        Failure::Cancelled,
    ]
    .into_iter()
    .find(|failure| failure.as_str() == name)
}

pub(super) fn duration(
    table: &'static str,
    row: &SqliteRow,
    column: &'static str,
) -> Result<Duration, StoreError> {
    unsigned(table, row, column).map(Duration::from_micros)
}

fn unsigned(table: &'static str, row: &SqliteRow, column: &'static str) -> Result<u64, StoreError> {
    let value: i64 = row.try_get(column)?;
    u64::try_from(value)
        .map_err(|_negative| StoreError::bad_value(table, column, &value.to_string()))
}
