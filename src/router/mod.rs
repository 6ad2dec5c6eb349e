//! [`Router::call`]: one tool call from name to answer, the same for both doors.
//!
//! Changes when what happens to a call changes. Knows nothing of HTTP or sessions: it takes a
//! [`ToolCall`] and gives a [`CallAnswer`].
//!
//! The order is resolve → admit → attempt (→ again) → answer. Whatever becomes of the call, also when its
//! future is dropped, makes one ledger entry and one observation.

mod admit;
mod again;
mod answer;
mod attempt;
mod error;
mod forward;
mod record;
mod refusal;
mod resolve;
mod spans;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::audit::AuditWriter;
use crate::catalogue::{CatalogueHandle, Discovery};
use crate::clock;
use crate::metrics::{Metrics, ToolMetrics, ViewMetrics};
use crate::model::{CallerTrace, ToolCall, ViewName};
use crate::policy::Deadline;
use crate::telemetry::{Operation, Tracer};

pub use answer::{CallAnswer, UpstreamAnswer};
pub use error::{Reason, RouteError};
pub use forward::Forward;
pub use refusal::{Refusal, RefusedAt};
pub use upstream::{UpstreamError, UpstreamFailure};

pub use crate::pool::{ListKind, Notice, Relay, RelayWishes, ServerMessage, ServerRequest};

/// Routes calls.
#[derive(Debug)]
pub struct Router {
    catalogue: CatalogueHandle,
    discovery: Arc<Discovery>,
    rebuilt: watch::Receiver<u64>,
    audit: AuditWriter,
    metrics: Arc<Metrics>,
    /// Records spans, where they go anywhere.
    tracer: Option<Tracer>,
    /// For calls to tools that are not in the catalogue.
    other: Arc<ToolMetrics>,
}

impl Router {
    /// A router over a catalogue and a ledger.
    #[must_use]
    pub fn new(
        discovery: Arc<Discovery>,
        audit: AuditWriter,
        metrics: Arc<Metrics>,
        tracer: Option<Tracer>,
    ) -> Self {
        Self {
            catalogue: Arc::clone(discovery.catalogue()),
            rebuilt: discovery.subscribe(),
            discovery,
            audit,
            other: metrics.tool(None, None),
            metrics,
            tracer,
        }
    }

    /// Routes one call. Dropping the future cancels the call: the upstream is told, and the
    /// ledger says `cancelled`.
    ///
    /// What the server says about the call before it answers goes to `relay`.
    pub async fn call(&self, call: ToolCall, relay: Option<Arc<Relay>>) -> CallAnswer {
        let mut record = match self.admit(call, relay).await {
            Ok(record) => record,
            Err(refused) => return refused,
        };
        let result = match self.run(&mut record).await {
            Ok(answer) if answer.facts.is_input_required && record.cannot_be_asked() => {
                let problem = "the server needs input that this client did not declare it can give";
                Err(record.no_input(problem.to_owned()))
            }
            settled => settled,
        };
        record.finish(result, self.audit.durability()).await
    }

    /// Ends a call whose server asked for input that its client did not give: the round that was not
    /// made is on record as those before it are, each as a call of its own.
    pub async fn unanswered(&self, call: ToolCall, problem: String) -> CallAnswer {
        let mut record = match self.admit(call, None).await {
            Ok(record) => record,
            Err(refused) => return refused,
        };
        if let Ok(entry) = self.lookup(&record.call.target, record.call.view.as_ref()) {
            record.routed(&entry);
        }
        let result = Err(record.no_input(problem));
        record.finish(result, self.audit.durability()).await
    }

    /// Takes a place in the ledger.
    async fn admit(
        &self,
        call: ToolCall,
        relay: Option<Arc<Relay>>,
    ) -> Result<record::CallRecord, CallAnswer> {
        let started = clock::uptime();
        let operation = self.begin(call.trace.as_deref()).map(Arc::new);
        let slot = match self.audit.admit().await {
            Ok(slot) => slot,
            Err(why) => return Err(self.unrecorded(&call, operation.as_deref(), started, why)),
        };
        let other = Arc::clone(&self.other);
        let view = self.view_metrics(call.view.as_ref());
        Ok(record::CallRecord::begin(call, relay, started, slot, (other, view), operation))
    }

    async fn run(&self, record: &mut record::CallRecord) -> Result<UpstreamAnswer, RouteError> {
        let call = &record.call;
        let entry = match self.lookup(&call.target, call.view.as_ref()) {
            Ok(entry) => entry,
            Err(not_found) => {
                record.kept_unrouted(self.discovery.recording_of(&record.call.target));
                self.resolve(&record.call, not_found).await?
            }
        };
        record.routed(&entry);
        let server = Arc::clone(&entry.server);
        let total = record.call.deadline;
        let total = total.unwrap_or_else(|| server.settings.call_deadline_for(entry.timeout));
        let deadline = Deadline::new(record.started, total);
        let first = {
            let place = admit::admit(&entry, deadline).await;
            record.queued_until(clock::uptime());
            let _place = place?;
            attempt::attempt(&entry, deadline, record).await
        };
        match first {
            // Boxed: most calls have one attempt, and do not carry the room for others.
            Err(error @ RouteError::Upstream(_)) => {
                let settled = Box::pin(self.again(entry, error, deadline, record)).await;
                settled.or_else(RouteError::into_answer)
            }
            settled => settled,
        }
    }

    /// The beginning of an operation, where spans are recorded.
    fn begin(&self, caller: Option<&CallerTrace>) -> Option<Operation> {
        self.tracer.as_ref()?.begin(caller)
    }

    fn view_metrics(&self, view: Option<&ViewName>) -> Option<Arc<ViewMetrics>> {
        let view = view?;
        self.catalogue.load().views().get(view).map(|view| Arc::clone(&view.metrics))
    }
}

/// How long a call to an unknown tool waits for servers that were not asked yet since the start.
const START_UP_PATIENCE: Duration = Duration::from_secs(1);
