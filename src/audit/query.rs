//! [`AuditQuery`]: the ledger as people and programs read it.
//!
//! Changes when the shape of a ledger entry in the API changes. Decides nothing: filter, page and
//! order are the store's.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::error::ErrorCode;
use crate::model::{
    ArgumentsLevel, BreakerState, CallId, Entrance, Failure, Outcome, ResultsLevel, ServerName,
    ToolName, ViewName,
};
use crate::store::{
    AttemptRow, AuditFilter, CallRow, Cursor, Depth, IndexState, StatsQuery, StatsRow, Store,
    StoreError, Stretch,
};

/// Calls converted before other tasks of the thread get a turn.
pub(super) const AT_ONCE: usize = 32;

/// Reads the ledger.
#[derive(Debug, Clone)]
pub struct AuditQuery {
    pub(super) store: Store,
}

/// One call, without payloads.
#[derive(Debug, Clone, Serialize)]
pub struct CallRecord {
    /// The call's id, equal to `x-request-id` and `request_id`.
    pub id: String,
    /// Place in the ledger.
    pub seq: i64,
    /// When it came in, RFC 3339.
    pub started_at: String,
    /// When it came in, milliseconds since 1970.
    pub started_at_ms: i64,
    /// Who called.
    pub caller: String,
    /// Hash of the legacy session.
    pub session: Option<String>,
    /// Name the client gave itself.
    pub client_name: Option<String>,
    /// Version the client gave itself.
    pub client_version: Option<String>,
    /// `mcp` or `rest`.
    pub entrance: &'static str,
    /// The protocol version in force, for `mcp`.
    pub protocol_version: Option<&'static str>,
    /// The view at which it came in.
    pub view: Option<ViewName>,
    /// The tool as exposed or as asked for.
    pub tool: String,
    /// The tool as its server names it.
    pub upstream_tool: Option<ToolName>,
    /// The server.
    pub server: Option<ServerName>,
    /// SHA-256 of the definition in force, hexadecimal.
    pub definition_hash: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Our code for a failure.
    pub error_code: Option<ErrorCode>,
    /// The failure in words.
    pub error: Option<String>,
    /// What kind of failure the last attempt met.
    pub failure: Option<Failure>,
    /// HTTP status of our answer.
    pub http_status: u16,
    /// Attempts made.
    pub attempts: u32,
    /// Time from request to answer, in milliseconds.
    pub duration_ms: f64,
    /// Time spent waiting for the server, in milliseconds.
    pub upstream_ms: f64,
    /// Time spent waiting for a free place, in milliseconds.
    pub queue_ms: f64,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the answer.
    pub response_bytes: u64,
    /// The trace it belongs to, 32 hexadecimal digits.
    pub trace_id: Option<String>,
    /// The address of its connection; null over the admin socket.
    pub remote_address: Option<String>,
    /// What was to be kept of its arguments.
    pub arguments_level: Option<ArgumentsLevel>,
    /// What was to be kept of its result.
    pub results_level: Option<ResultsLevel>,
    /// How its last attempt found the circuit breaker, or what refused it there.
    pub breaker: Option<BreakerState>,
}

/// One attempt of a call.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttemptRecord {
    /// Which one, from 1 on.
    pub n: u32,
    /// When it began, in milliseconds since the call began.
    pub began_ms: f64,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
    /// How it ended.
    pub outcome: Outcome,
    /// What kind of failure it met.
    pub failure: Option<Failure>,
    /// The failure in words.
    pub error: Option<String>,
    /// HTTP status the server gave, where it gave one.
    pub http_status: Option<u16>,
    /// Whether it was let through to see whether the server is back.
    pub probe: bool,
}

/// One call with its attempts and what is kept of its payloads.
#[derive(Debug, Clone, Serialize)]
pub struct CallRecordDetail {
    /// The call.
    #[serde(flatten)]
    pub call: CallRecord,
    /// What was tried, in order; empty also for calls from before it was kept.
    pub attempt_list: Vec<AttemptRecord>,
    /// The arguments: JSON as it was kept, or a string when they were cut.
    pub arguments: Option<Box<RawValue>>,
    /// The result or its summary, likewise.
    pub result: Option<Box<RawValue>>,
    /// Keyed digest of the arguments as they were received, hexadecimal.
    pub arguments_digest: Option<String>,
    /// The same of the result.
    pub result_digest: Option<String>,
}

/// Whether an export has what is kept of arguments and results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payloads {
    /// It has not.
    Without,
    /// It has.
    With,
}

/// Some calls, and where the rest begins.
#[derive(Debug, Clone, Serialize)]
pub struct CallRecordPage {
    /// The calls, newest first.
    pub calls: Vec<CallRecord>,
    /// The `cursor` of the next page; absent after the last.
    pub next_cursor: Option<String>,
    /// How far the index is. The page has later calls, too: those were looked for without it.
    pub index: IndexState,
}

/// Sums of calls.
#[derive(Debug, Clone, Serialize)]
pub struct CallStats {
    /// From when on, in whole minutes, RFC 3339.
    pub since: String,
    /// Until when, likewise.
    pub until: String,
    /// The sums, by time, then the most calls first.
    pub rows: Vec<CallStatsRow>,
    /// How far the index is. The sums have later calls, too.
    pub index: IndexState,
}

/// The calls of one server, tool or caller in one span of time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CallStatsRow {
    /// When the span begins, RFC 3339.
    pub start: String,
    /// The server, tool or caller; null where calls have none.
    pub name: Option<String>,
    /// How many calls.
    pub calls: u64,
    /// How many did not end as `ok`.
    pub errors: u64,
    /// Half of them took no longer, in milliseconds, within 5 %.
    pub p50_ms: Option<f64>,
    /// 95 of 100 took no longer, likewise.
    pub p95_ms: Option<f64>,
    /// Bytes of their requests.
    pub request_bytes: u64,
    /// Bytes of their answers.
    pub response_bytes: u64,
}

impl From<StatsRow> for CallStatsRow {
    fn from(row: StatsRow) -> Self {
        Self {
            start: row.start.to_string(),
            name: row.name,
            calls: row.calls,
            errors: row.errors,
            p50_ms: row.p50.map(millis),
            p95_ms: row.p95.map(millis),
            request_bytes: row.request_bytes,
            response_bytes: row.response_bytes,
        }
    }
}

impl AuditQuery {
    /// Reads from `store`.
    #[must_use]
    pub const fn new(store: Store) -> Self {
        Self { store }
    }

    /// A page of calls, newest first; `cursor` is the `next_cursor` of the page before.
    ///
    /// # Errors
    /// [`StoreError::BadCursor`] and what any statement can give.
    pub async fn page(
        &self,
        filter: &AuditFilter,
        cursor: Option<&str>,
        limit: u16,
    ) -> Result<CallRecordPage, StoreError> {
        let cursor = cursor.map(Cursor::parse).transpose()?;
        let page = self.store.audit_page(filter, cursor, limit).await?;
        Ok(CallRecordPage {
            calls: page.rows.into_iter().map(CallRecord::from).collect(),
            next_cursor: page.next.map(|cursor| cursor.to_string()),
            index: page.index,
        })
    }

    /// Sums of calls.
    ///
    /// # Errors
    /// [`StoreError::TooManySums`] and what any statement can give.
    pub async fn stats(&self, query: &StatsQuery) -> Result<CallStats, StoreError> {
        let stats = self.store.audit_stats(query).await?;
        Ok(CallStats {
            since: stats.since.to_string(),
            until: stats.until.to_string(),
            rows: stats.rows.into_iter().map(CallStatsRow::from).collect(),
            index: stats.index,
        })
    }

    /// One call with its attempts and payloads.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn get(&self, id: CallId) -> Result<Option<CallRecordDetail>, StoreError> {
        Ok(self.store.audit_call(id).await?.map(CallRecordDetail::from))
    }

    /// Calls stored after `seq`, oldest first.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn after(&self, seq: i64, limit: u16) -> Result<Vec<CallRecord>, StoreError> {
        let rows = self.store.audit_after(seq, limit).await?;
        Ok(rows.into_iter().map(CallRecord::from).collect())
    }

    /// Calls after the one with `after` up to `through`, oldest first, as far as one short transaction comes, with
    /// attempts or with attempts and payloads; see [`Store::audit_stretch`].
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn between(
        &self,
        filter: &AuditFilter,
        after: i64,
        through: i64,
        limit: u16,
        payloads: Payloads,
    ) -> Result<Stretch<CallRecordDetail>, StoreError> {
        let depth = match payloads {
            Payloads::Without => Depth::Attempts,
            Payloads::With => Depth::Payloads,
        };
        let stretch = self.store.audit_stretch(filter, after, Some(through), limit, depth).await?;
        Ok(converted(stretch).await)
    }

    /// The `seq` of the newest call, 0 when there is none.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn newest(&self) -> Result<i64, StoreError> {
        self.store.audit_newest().await
    }

    /// How many calls the ledger has.
    ///
    /// # Errors
    /// What any statement can give.
    pub async fn count(&self) -> Result<u64, StoreError> {
        self.store.audit_count().await
    }
}

impl AttemptRecord {
    fn new(n: u32, row: AttemptRow) -> Self {
        Self {
            n,
            began_ms: millis(row.began),
            took_ms: millis(row.took),
            outcome: row.outcome,
            failure: row.failure,
            error: row.error,
            http_status: row.http_status,
            probe: row.probe,
        }
    }
}

impl From<CallRow> for CallRecordDetail {
    fn from(mut row: CallRow) -> Self {
        Self {
            arguments: row.arguments.take().as_deref().map(json_or_string),
            result: row.result.take().as_deref().map(json_or_string),
            arguments_digest: row.arguments_digest.map(hex),
            result_digest: row.result_digest.map(hex),
            attempt_list: (1..)
                .zip(std::mem::take(&mut row.attempt_list))
                .map(|(n, attempt)| AttemptRecord::new(n, attempt))
                .collect(),
            call: row.into(),
        }
    }
}

impl From<CallRow> for CallRecord {
    fn from(row: CallRow) -> Self {
        let (entrance, protocol_version) = match row.entrance {
            Entrance::Mcp(version) => ("mcp", Some(version.as_str())),
            Entrance::Rest => ("rest", None),
        };
        Self {
            id: row.id.to_string(),
            seq: row.seq,
            started_at: row.started_at.to_string(),
            started_at_ms: row.started_at.as_millis(),
            caller: row.caller.as_ref().to_owned(),
            session: row.session.map(|session| session.as_ref().to_owned()),
            client_name: row.client.as_ref().map(|client| client.name.clone()),
            client_version: row.client.as_ref().map(|client| client.version.clone()),
            entrance,
            protocol_version,
            view: row.view,
            tool: row.tool.as_ref().to_owned(),
            upstream_tool: row.upstream_tool,
            server: row.server,
            definition_hash: row.definition_hash.map(hex),
            outcome: row.outcome,
            error_code: row.error_code,
            error: row.error,
            failure: row.failure,
            http_status: row.http_status,
            attempts: row.attempts,
            duration_ms: millis(row.total),
            upstream_ms: millis(row.upstream),
            queue_ms: millis(row.queue),
            request_bytes: row.request_bytes,
            response_bytes: row.response_bytes,
            trace_id: row.trace_id.map(|trace| trace.to_string()),
            remote_address: row.remote.map(|address| address.to_string()),
            arguments_level: row.levels.map(|(arguments, _)| arguments),
            results_level: row.levels.map(|(_, results)| results),
            breaker: row.breaker,
        }
    }
}

/// As readers get it. Calls of others on this thread come in between.
async fn converted<T: From<CallRow>>(stretch: Stretch<CallRow>) -> Stretch<T> {
    let mut calls = Vec::with_capacity(stretch.calls.len());
    for row in stretch.calls {
        calls.push(row.into());
        if calls.len().is_multiple_of(AT_ONCE) {
            tokio::task::yield_now().await;
        }
    }
    Stretch { calls, reached: stretch.reached }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn hex(hash: [u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Kept text as it goes out: as JSON when it is JSON, so that numbers beyond any type survive.
pub(super) fn json_or_string(text: &str) -> Box<RawValue> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    RawValue::from_string(text.to_owned())
        .or_else(|_not_json| RawValue::from_string(quoted(text)))
        .unwrap_or_else(|_impossible| RawValue::NULL.to_owned())
}
