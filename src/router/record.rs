//! [`CallRecord`]: one call's ledger entry and observations, written whatever happens to it.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::again::Retry;
use super::answer::code_of;
use super::spans::{self, Ended, Turn};
use super::{CallAnswer, RouteError, UpstreamAnswer};
use crate::audit::{
    AttemptEntry, Attempts, AuditEntry, AuditSlot, CallBegun, Durability, NotRecorded, ToolLabel,
};
use crate::catalogue::{CatalogueEntry, Recording};
use crate::clock;
use crate::error::ErrorCode;
use crate::metrics::{CallLabels, ToolMetrics, ViewMetrics};
use crate::model::{
    ArgumentsLevel, AuthKind, BreakerState, CallerClass, CallerTrace, Entrance, Era, Failure, Kept,
    Knowledge, Outcome, ProtocolVersion, ResultsLevel, SpanId, Timestamp, ToolCall, TraceId,
    Uptime, cut_after,
};
use crate::pool::Relay;
use crate::protocol::{AnswerKind, first_text};
use crate::redact::Pointers;
use crate::telemetry::Operation;

/// Characters that the ledger has of a JSON-RPC error.
const RPC_ERROR: usize = 1024;
/// Characters that it has of a tool's own error message.
const ERROR_LINE: usize = 300;

#[derive(Debug)]
struct OpenAttempt {
    /// When, put off by what it waited for ourselves.
    began: Uptime,
    /// Since when it does that.
    waits_since: Option<Uptime>,
    probe: bool,
    /// The id of its span, where it is recorded.
    span: Option<SpanId>,
    /// What it repeats, if it does; put back when there is nothing to attempt after all.
    retry: Option<Retry>,
}

impl OpenAttempt {
    /// What it waited for is over, at `now`; gives how long that took.
    fn waited(&mut self, now: Uptime) -> Duration {
        let waited = self.waits_since.take().map(|since| now.since(since)).unwrap_or_default();
        self.began = self.began.plus(waited);
        waited
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) struct AttemptEnd {
    pub(super) outcome: Outcome,
    pub(super) failure: Option<Failure>,
    /// Without the server's secrets.
    pub(super) error: Option<String>,
    pub(super) http_status: Option<u16>,
    /// The code of the JSON-RPC error that was the answer; read only where spans are recorded.
    pub(super) rpc_code: Option<String>,
}

impl AttemptEnd {
    /// The server answered.
    pub(super) fn answered(outcome: Outcome, rpc_code: Option<String>) -> Self {
        let failure = (outcome != Outcome::Ok).then_some(Failure::Answered);
        Self { outcome, failure, error: None, http_status: None, rpc_code }
    }
}

/// What the client is told, which in strict durability is not said before the row is committed.
#[derive(Debug)]
struct Told {
    /// As in the row.
    outcome: Outcome,
    error: Option<ErrorCode>,
    attempts: u32,
    /// Empty where nothing is recorded.
    ended: Ended,
}

/// A call under way. Dropped without [`CallRecord::finish`], it is recorded as cancelled.
#[derive(Debug)]
pub(super) struct CallRecord {
    pub(super) call: ToolCall,
    pub(super) relay: Option<Arc<Relay>>,
    pub(super) started: Uptime,
    started_at: Timestamp,
    slot: Option<AuditSlot>,
    /// Whether its beginning is on record.
    intended: bool,
    entry: Option<Arc<CatalogueEntry>>,
    /// What is kept of a call that no tool was found for at once.
    unrouted: Option<Recording>,
    other: Arc<ToolMetrics>,
    view: Option<Arc<ViewMetrics>>,
    queued: Duration,
    attempts: Attempts,
    /// The attempt under way.
    open: Option<OpenAttempt>,
    /// What the next attempt repeats.
    retry: Option<Retry>,
    upstream: Duration,
    upstream_version: Option<ProtocolVersion>,
    /// How it ended, until that is in metrics and trace.
    told: Option<Told>,
    /// Where spans are recorded, or would be.
    pub(super) operation: Option<Arc<Operation>>,
}

impl CallRecord {
    pub(super) fn begin(
        call: ToolCall,
        relay: Option<Arc<Relay>>,
        started: Uptime,
        slot: AuditSlot,
        (other, view): (Arc<ToolMetrics>, Option<Arc<ViewMetrics>>),
        operation: Option<Arc<Operation>>,
    ) -> Self {
        Self {
            call,
            relay,
            started,
            started_at: clock::timestamp(),
            slot: Some(slot),
            intended: false,
            entry: None,
            unrouted: None,
            other,
            view,
            queued: Duration::ZERO,
            attempts: Attempts::default(),
            open: None,
            retry: None,
            upstream: Duration::ZERO,
            upstream_version: None,
            told: None,
            operation,
        }
    }

    pub(super) fn routed(&mut self, entry: &Arc<CatalogueEntry>) {
        self.entry = Some(Arc::clone(entry));
    }

    /// What is kept of the call as long as there is no tool for it.
    pub(super) fn kept_unrouted(&mut self, recording: Recording) {
        self.unrouted = Some(recording);
    }

    pub(super) fn queued_until(&mut self, now: Uptime) {
        self.queued = now.since(self.started);
    }

    /// Attempts made so far, with the one under way.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts.len().saturating_add(u32::from(self.open.is_some()))
    }

    /// Whether the client can only be asked something while it waits, and did not say that it can be.
    pub(super) fn cannot_be_asked(&self) -> bool {
        matches!(self.call.entrance, Entrance::Mcp(version) if version.era() == Era::Legacy)
            && self.relay.as_ref().is_none_or(|relay| !relay.wishes().abilities.any())
    }

    /// The error of a call whose client did not give what its server asks for.
    pub(super) fn no_input(&self, problem: String) -> RouteError {
        let server = self.entry.as_ref().map(|entry| entry.server.name.clone());
        RouteError::NoInput { server, problem }
    }

    /// The next attempt is this retry.
    pub(super) fn repeats(&mut self, retry: Retry) {
        self.retry = Some(retry);
    }

    /// What did not come to an attempt is put back.
    pub(super) fn repeats_not(&mut self) {
        self.retry = None;
    }

    pub(super) fn attempt_begins(&mut self, began: Uptime, probe: bool) {
        let span = self.operation.as_ref().and_then(|operation| {
            operation.sent_as.store(0, Ordering::Relaxed);
            operation.attempt()
        });
        let retry = self.retry.take();
        self.open = Some(OpenAttempt { began, waits_since: None, probe, span, retry });
    }

    /// The span of the attempt under way.
    pub(super) fn attempt_span(&self) -> Option<SpanId> {
        self.open.as_ref()?.span
    }

    /// Whether what is only told by spans is of use.
    pub(super) fn is_traced(&self) -> bool {
        self.operation.as_ref().is_some_and(|operation| operation.trace().is_some())
    }

    /// The trace in which the call can be found.
    pub(super) fn trace(&self) -> Option<TraceId> {
        trace_of(self.operation.as_deref(), self.call.trace.as_deref())
    }

    /// Whether the beginning of the call must still be put on record before it is sent to `entry`.
    pub(super) fn wants_intent(&self, entry: &CatalogueEntry) -> bool {
        let wanted =
            self.slot.as_ref().is_some_and(|slot| slot.wants_intent(entry.definition.read_only));
        wanted && !self.intended
    }

    /// Puts it on record, within `limit`, and says how long that took: the attempt under way begins so
    /// much later, because that time is ours and not the server's.
    pub(super) async fn intend(
        &mut self,
        entry: &CatalogueEntry,
        limit: Duration,
    ) -> Result<Duration, NotRecorded> {
        if let Some(open) = &mut self.open {
            open.waits_since = Some(clock::uptime());
        }
        let Some(slot) = &self.slot else { return Err(NotRecorded) };
        slot.intend(self.begun(entry), limit).await?;
        self.intended = true;
        let open = self.open.as_mut();
        Ok(open.map(|open| open.waited(clock::uptime())).unwrap_or_default())
    }

    fn begun<'a>(&'a self, entry: &'a CatalogueEntry) -> CallBegun<'a> {
        CallBegun {
            id: self.call.id,
            started_at: self.started_at,
            caller: &self.call.caller.name,
            session: self.call.session.as_ref().map(|session| session.hash.as_ref()),
            entrance: self.call.entrance,
            view: self.call.view.as_ref(),
            tool: entry.exposed.as_str(),
            upstream_tool: &entry.tool,
            server: &entry.server.name,
            trace_id: self.trace(),
            remote: self.call.via.address(),
        }
    }

    /// What is kept of its payloads.
    fn levels(&self) -> Kept {
        let recording = self.entry.as_ref().map(|entry| &entry.recording);
        let recording = recording.or(self.unrouted.as_ref());
        let client = self.call.session.as_ref().map(|session| session.client.as_ref());
        let client = client.or(self.call.client.as_ref()).map(|client| client.name.as_str());
        recording.map_or((ArgumentsLevel::None, ResultsLevel::None), |recording| {
            recording.levels.of_call(&self.call.caller.name, client)
        })
    }

    /// Whether of what its server says in an error nothing is kept.
    pub(super) fn in_our_words(&self) -> bool {
        self.levels().1 == ResultsLevel::None
    }

    /// `text` without what the ledger does not keep either.
    pub(super) fn redacted(&self, text: &str) -> String {
        self.slot.as_ref().map(|slot| slot.redacted(text)).unwrap_or_default()
    }

    /// The attempt that began found that there is nothing to attempt.
    pub(super) fn attempt_withdrawn(&mut self) {
        self.open = None;
    }

    pub(super) fn sending(&mut self, version: ProtocolVersion) {
        self.upstream_version = Some(version);
    }

    /// Gives how long it took.
    pub(super) fn attempt_ends(&mut self, now: Uptime, end: AttemptEnd) -> Duration {
        let Some(mut open) = self.open.take() else { return Duration::ZERO };
        open.waited(now);
        let OpenAttempt { began, probe, span, retry, .. } = open;
        let took = now.since(began);
        self.upstream += took;
        if let Some(entry) = &self.entry {
            entry.metrics.observe_attempt(
                self.upstream_version,
                entry.server.spec.transport.kind(),
                end.outcome,
                took,
            );
            if let Some(retry) = retry {
                retry.made(&entry.server.metrics.retries);
            }
            if let Some((operation, span)) = self.operation.as_ref().zip(span) {
                let turn = Turn {
                    number: self.attempts.len().saturating_add(1),
                    after: self.attempts.iter().last().and_then(|before| before.failure),
                    version: self.upstream_version,
                    sent_as: operation.sent_as.load(Ordering::Relaxed),
                    http_status: end.http_status,
                };
                let ended = match end.failure {
                    None | Some(Failure::Answered) => Ended::answered(end.outcome, end.rpc_code),
                    Some(_) => Ended::failed(end.outcome),
                };
                operation.attempted(span, began, now, spans::attempt(entry, &turn, ended));
            }
        }
        self.attempts.push(AttemptEntry {
            began: began.since(self.started),
            took,
            outcome: end.outcome,
            failure: end.failure,
            error: end.error,
            http_status: end.http_status,
            probe,
        });
        took
    }

    /// Writes the entry and the observation; in strict durability waits until it is on disk.
    pub(super) async fn finish(
        mut self,
        result: Result<UpstreamAnswer, RouteError>,
        durability: Durability,
    ) -> CallAnswer {
        let now = clock::uptime();
        let total = now.since(self.started);
        let attempts = self.attempts.len();
        let mut entry = self.entry_base(total);
        let in_our_words = entry.levels.1 == ResultsLevel::None;
        match &result {
            Ok(answer) => {
                entry.outcome = answer.outcome;
                entry.error_code = code_of(answer.outcome);
                entry.response_bytes = answer.value.len() as u64;
                match answer.kind {
                    _ if in_our_words => entry.error = answer.in_our_words(),
                    AnswerKind::Result => {
                        if answer.outcome == Outcome::ToolError {
                            let clean = self.without_places(&answer.value, entry.pointers.as_ref());
                            entry.error = first_text(&clean).map(|text| first_line(&text));
                        }
                        entry.result = Some(answer.value.clone());
                    }
                    AnswerKind::Error => {
                        let clean = self.without_places(&answer.value, entry.pointers.as_ref());
                        let text = String::from_utf8_lossy(&clean);
                        entry.error = Some(cut_after(&text, RPC_ERROR));
                    }
                }
            }
            Err(error) => {
                entry.outcome = error.outcome();
                entry.error_code = Some(error.code());
                entry.error = Some(match in_our_words {
                    true => error.in_our_words(),
                    false => error.to_string(),
                });
                entry.failure = error.failure();
                if let RouteError::BreakerOpen { rejection, .. } = error {
                    entry.breaker = Some(rejection.state());
                }
                if entry.server.is_none() {
                    entry.server = error.server().cloned();
                }
            }
        }
        entry.http_status = match self.call.entrance {
            Entrance::Rest => entry.error_code.map_or(200, ErrorCode::http_status),
            Entrance::Mcp(_) => 200,
        };
        let ended = match &result {
            _ if !self.is_traced() => Ended::default(),
            Ok(answer) => Ended::answered(answer.outcome, answer.rpc_code()),
            Err(error) => Ended::refused(error.code(), self.call.entrance),
        };
        let (outcome, error) = (entry.outcome, entry.error_code);
        self.told = Some(Told { outcome, error, attempts, ended });
        let answer = CallAnswer {
            id: self.call.id,
            tool: std::mem::take(&mut self.call.target.tool),
            server: entry.server.clone(),
            attempts,
            total,
            result,
        };
        let trace = entry.trace_id;
        // Nothing was sent because the ledger cannot be written: its row may follow, and the caller is
        // not kept waiting for it.
        let waits = durability == Durability::Strict
            && !matches!(&answer.result, Err(RouteError::AuditUnavailable(_)));
        if !waits {
            self.tell(now);
        }
        let Some(slot) = self.slot.take() else { return answer };
        if !waits {
            slot.record(entry);
            return answer;
        }
        let recorded = slot.record_durably(entry).await;
        let Err(error) = recorded else {
            self.tell(clock::uptime());
            return answer;
        };
        tracing::error!(
            call.id = %answer.id,
            trace_id = trace.map(tracing::field::display),
            %error,
            "{error}"
        );
        let known = match &answer.result {
            Ok(_) => Knowledge::Executed,
            Err(error) => error.knowledge(),
        };
        let error = RouteError::NotRecorded { known };
        if let Some(told) = &mut self.told {
            told.error = Some(error.code());
            told.ended = Ended::refused(error.code(), self.call.entrance);
        }
        self.tell(clock::uptime());
        CallAnswer { result: Err(error), ..answer }
    }

    /// Puts what the client is told into metrics and trace, once: when it is told, which in strict
    /// durability is after the commit.
    fn tell(&mut self, now: Uptime) {
        let Some(Told { outcome, error, attempts, ended }) = self.told.take() else { return };
        self.observe(outcome, error, now.since(self.started));
        if self.is_traced() {
            self.operation_ends(now, (outcome, attempts), ended);
        }
    }

    /// An answer without the places in it that the ledger never keeps, of which its error may be one.
    fn without_places<'a>(
        &self,
        answer: &'a [u8],
        pointers: Option<&Arc<Pointers>>,
    ) -> Cow<'a, [u8]> {
        match (pointers, &self.slot) {
            (Some(pointers), Some(slot)) => {
                slot.redacted_json(answer, pointers.results()).into_bytes().into()
            }
            _ => answer.into(),
        }
    }

    fn observe(&self, outcome: Outcome, error: Option<ErrorCode>, total: Duration) {
        let labels = CallLabels {
            entrance: self.call.entrance,
            over_socket: self.call.caller.auth == AuthKind::Socket,
            error,
        };
        if let Some(view) = &self.view {
            view.count(outcome);
        }
        self.entry.as_ref().map_or(&self.other, |entry| &entry.metrics).observe_call(labels, total);
    }

    fn operation_ends(&self, now: Uptime, how: (Outcome, u32), ended: Ended) {
        if let Some(operation) = &self.operation {
            operation.ends(now, spans::call(&self.call, self.entry.as_deref(), how, ended));
        }
    }

    fn entry_base(&mut self, total: Duration) -> AuditEntry {
        let trace_id = self.trace();
        let met = |attempt: &AttemptEntry| match attempt.probe {
            true => BreakerState::HalfOpen,
            false => BreakerState::Closed,
        };
        let breaker = self.attempts.iter().last().map(met);
        let levels = self.levels();
        let call = &mut self.call;
        let routed = self.entry.as_ref();
        // Before the client is taken out of the call.
        let class = class_of(call);
        let client = match &call.session {
            Some(session) => Some(Arc::clone(&session.client)),
            None => call.client.take().map(Arc::new),
        };
        let recording = routed.map(|entry| &entry.recording).or(self.unrouted.as_ref());
        AuditEntry {
            id: call.id,
            started_at: self.started_at,
            caller: Arc::clone(&call.caller.name),
            class,
            session: call.session.as_ref().map(|session| Arc::clone(&session.hash)),
            client,
            entrance: call.entrance,
            view: call.view.clone(),
            tool: routed.map_or_else(
                || ToolLabel::asked(&call.target.tool),
                |entry| ToolLabel::Exposed(entry.exposed.clone()),
            ),
            upstream_tool: routed.map(|entry| entry.tool.clone()),
            server: routed
                .map(|entry| entry.server.name.clone())
                .or_else(|| call.target.server.clone()),
            definition_hash: routed.map(|entry| entry.definition.hash),
            outcome: Outcome::Cancelled,
            error_code: None,
            error: None,
            failure: None,
            http_status: 0,
            attempts: self.attempts.len(),
            attempt_list: std::mem::take(&mut self.attempts),
            queue: self.queued,
            upstream: self.upstream,
            total,
            request_bytes: call.request_bytes,
            response_bytes: 0,
            arguments: call.arguments.take(),
            arguments_bytes: 0,
            result: None,
            levels,
            pointers: recording.and_then(|recording| recording.pointers.clone()),
            trace_id,
            remote: call.via.address(),
            breaker,
        }
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else {
            // Where its client left while the row was being committed: it ended as that says.
            return self.tell(clock::uptime());
        };
        let now = clock::uptime();
        self.attempt_ends(
            now,
            AttemptEnd {
                outcome: Outcome::Cancelled,
                failure: Some(Failure::Cancelled),
                error: None,
                http_status: None,
                rpc_code: None,
            },
        );
        let total = now.since(self.started);
        if self.is_traced() {
            let ended = Ended::refused(ErrorCode::Cancelled, self.call.entrance);
            self.operation_ends(now, (Outcome::Cancelled, self.attempts.len()), ended);
        }
        let mut entry = self.entry_base(total);
        entry.error_code = Some(ErrorCode::Cancelled);
        entry.error = Some("the caller went away before the answer".to_owned());
        self.observe(Outcome::Cancelled, Some(ErrorCode::Cancelled), total);
        slot.record(entry);
    }
}

pub(super) fn class_of(call: &ToolCall) -> CallerClass {
    let client = call.session.as_ref().map(|session| session.client.as_ref());
    let client = client.or(call.client.as_ref());
    CallerClass::of(call.caller.auth, client.is_some_and(|client| !client.name.is_empty()))
}

/// The trace in which an operation can be found: the one it was recorded in, else its caller's.
pub(super) fn trace_of(
    operation: Option<&Operation>,
    caller: Option<&CallerTrace>,
) -> Option<TraceId> {
    let callers = || caller?.context.map(|context| context.trace);
    operation.and_then(Operation::trace).or_else(callers)
}

/// What a ledger row shows of a tool's own error message.
fn first_line(text: &str) -> String {
    cut_after(text.lines().next().unwrap_or_default(), ERROR_LINE)
}
