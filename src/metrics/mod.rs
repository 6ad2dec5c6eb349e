//! Every metric: name, help, labels and buckets. Nobody else writes a metric name.
//!
//! Changes when what we show changes. Handles are registered when a server or a tool enters the
//! catalogue; a call only touches atomics.
//!
//! Names follow OpenTelemetry's MCP semantic conventions, translated to Prometheus.

mod audit;
mod breaker;
mod rules;
mod series;
mod store;
mod tool;
mod trace;
mod view;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::model::{Era, ServerName, ToolStatus};

pub use audit::AuditMetrics;
pub use breaker::{BreakerMetrics, RetryMetrics};
pub use rules::{RuleScope, RuleTarget, burn_rate_rules};
pub use store::{FileSample, StoreMetrics};
pub use tool::{CallLabels, ToolMetrics};
pub use trace::TraceMetrics;
pub use view::ViewMetrics;

use series::ToolSeries;

/// The advised buckets of the semantic conventions in seconds, and three below them: a router's
/// own time is well under 10 ms.
const BUCKETS: [f64; 17] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0,
    300.0,
];

/// Name and help of the histogram whose series come with servers' first answers.
const ATTEMPTS: (&str, &str) = (
    "mcp_client_operation_duration_seconds",
    "Duration of single attempts at upstream servers, in seconds, of tool calls and of requests for prompts, resources and completion.",
);

/// Type of the text this exposition is in.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A metric could not be registered: two have one name.
#[derive(Debug, thiserror::Error)]
#[error("could not register a metric")]
pub struct MetricsError(#[from] prometheus::Error);

/// All metrics of one router.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The two histograms with a series for each tool.
    durations: Registry,
    /// Bytes of the last exposition.
    rendered: AtomicUsize,
    /// The ledger's.
    pub audit: AuditMetrics,
    /// The data folder's.
    pub store: StoreMetrics,
    /// What became of spans.
    pub traces: TraceMetrics,
    breakers: breaker::BreakerFamilies,
    tools: Arc<ToolSeries>,
    upstream_enabled: IntGaugeVec,
    upstream_up: IntGaugeVec,
    upstream_unauthorised: IntGaugeVec,
    upstream_last_success: GaugeVec,
    upstream_last_refresh: GaugeVec,
    upstream_inflight: IntGaugeVec,
    upstream_queue_depth: IntGaugeVec,
    upstream_sessions: IntGaugeVec,
    upstream_reconnects: IntCounterVec,
    upstream_tools: IntGaugeVec,
    child_processes: IntGaugeVec,
    child_roots: IntGaugeVec,
    child_limit: IntGaugeVec,
    child_resident: IntGaugeVec,
    child_restarts: IntCounterVec,
    definition_changes: IntCounterVec,
    definition_tokens: IntGaugeVec,
    view_calls: IntCounterVec,
    sessions: IntGaugeVec,
    /// Requests at the front door right now.
    pub inflight_requests: IntGauge,
    auth_failures: IntCounterVec,
    config_reloads: IntCounterVec,
    config_last_reload: Gauge,
    config_last_reload_successful: IntGauge,
}

/// Why a request was not let in; the `reason` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthFailure {
    /// Host or Origin not allowed.
    Origin,
    /// No key where one is needed.
    MissingKey,
    /// A key that is unknown, revoked or expired.
    InvalidKey,
    /// A key without the scope.
    Scope,
}

impl AuthFailure {
    const ALL: [Self; 4] = [Self::Origin, Self::MissingKey, Self::InvalidKey, Self::Scope];

    /// The name in the metrics and the ledger.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::MissingKey => "missing_key",
            Self::InvalidKey => "invalid_key",
            Self::Scope => "scope",
        }
    }
}

/// Why a connection was opened again; the `reason` label.
const RECONNECTS: [&str; 2] = ["lost", "admin"];

/// How a tool's definition changed; the `kind` label.
pub const CHANGE_KINDS: [&str; 3] = ["added", "changed", "removed"];

impl Metrics {
    /// Registers everything on a registry of its own.
    ///
    /// # Errors
    /// Only when two metrics have one name.
    pub fn new() -> Result<Arc<Self>, MetricsError> {
        let (registry, durations) = (Registry::new(), Registry::new());
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let build_info = IntGaugeVec::new(
            Opts::new("switchyard_build_info", "Version and revision of this router; always 1."),
            &["version", "revision"],
        )?;
        build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION"), env!("SWITCHYARD_REVISION")])
            .set(1);
        registry.register(Box::new(build_info))?;
        let metrics = Self {
            audit: AuditMetrics::register(&registry)?,
            store: StoreMetrics::register(&registry)?,
            traces: TraceMetrics::register(&registry)?,
            breakers: breaker::BreakerFamilies::register(&registry)?,
            tools: Arc::new(ToolSeries::register(&registry, &durations, series::MOST)?),
            upstream_enabled: gauges(
                &registry,
                "switchyard_upstream_enabled",
                "Whether calls are routed to the server (1) or it is disabled (0).",
                &["server"],
            )?,
            upstream_up: gauges(
                &registry,
                "switchyard_upstream_up",
                "Whether the last contact with the server succeeded (1) or not (0).",
                &["server"],
            )?,
            upstream_unauthorised: gauges(
                &registry,
                "switchyard_upstream_unauthorised",
                "Whether the server answered the last contact with HTTP status 401 or 403 (1) or not (0).",
                &["server"],
            )?,
            upstream_last_success: times(
                &registry,
                "switchyard_upstream_last_success_timestamp_seconds",
                "When the server last answered, in seconds since the Unix epoch; 0 for never. After a start it is what was stored, which can be up to an hour older.",
            )?,
            upstream_last_refresh: times(
                &registry,
                "switchyard_upstream_last_refresh_timestamp_seconds",
                "When the server's tools were last known to be as listed, in seconds since the Unix epoch; 0 for never: a list of them could be had, or the server gave a sign of life while its word holds that the list stays the same or that it says when it changes. After a start as with the last success.",
            )?,
            upstream_inflight: gauges(
                &registry,
                "switchyard_upstream_inflight",
                "Calls and other requests in flight at the server.",
                &["server"],
            )?,
            upstream_queue_depth: gauges(
                &registry,
                "switchyard_upstream_queue_depth",
                "Calls and other requests waiting for a free place at the server.",
                &["server"],
            )?,
            upstream_sessions: gauges(
                &registry,
                "switchyard_upstream_sessions",
                "Isolated sessions at the server; 0 where all callers share one.",
                &["server"],
            )?,
            upstream_reconnects: counters(
                &registry,
                "switchyard_upstream_reconnects_total",
                "Connections to the server that were opened again, because one was lost or an operator asked for it.",
                &["server", "reason"],
            )?,
            upstream_tools: gauges(
                &registry,
                "switchyard_upstream_tools",
                "Tools of the server by status.",
                &["server", "status"],
            )?,
            child_processes: gauges(
                &registry,
                "switchyard_child_processes",
                "Processes of a server that is a child of the router, with all their descendants.",
                &["server"],
            )?,
            child_roots: gauges(
                &registry,
                "switchyard_child_root_processes",
                "Those of these processes that the router itself started, without what they started and without their guards.",
                &["server"],
            )?,
            child_limit: gauges(
                &registry,
                "switchyard_child_processes_limit",
                "Root processes that the configuration allows the server at a time: 1, for an isolated server max_sessions and 1 that is asked for its tools, 0 while it is disabled. Those that are replaced or end may be beyond it for up to a minute.",
                &["server"],
            )?,
            child_resident: gauges(
                &registry,
                "switchyard_child_resident_bytes",
                "Resident memory of these processes; what they share is counted for each.",
                &["server"],
            )?,
            child_restarts: counters(
                &registry,
                "switchyard_child_restarts_total",
                "Starts of the server's process after one that ended.",
                &["server"],
            )?,
            definition_changes: counters(
                &registry,
                "switchyard_tool_definition_changes_total",
                "Changes of tool definitions after the server's first discovery.",
                &["server", "kind"],
            )?,
            definition_tokens: gauges(
                &registry,
                "switchyard_tool_definition_tokens",
                "Estimate of the tokens that the server's listed tools take in a model's context: bytes of their names, descriptions and input schemas as listed, divided by 4.",
                &["server"],
            )?,
            view_calls: counters(
                &registry,
                "switchyard_view_calls_total",
                "Calls that came in at a view, by view and outcome; refused ones included.",
                &["view", "outcome"],
            )?,
            sessions: gauges(
                &registry,
                "switchyard_sessions",
                "Open sessions of clients by era; the modern era has none.",
                &["era"],
            )?,
            inflight_requests: {
                let gauge = IntGauge::new(
                    "switchyard_inflight_requests",
                    "Requests being answered right now, also those whose answer is a stream; streams that clients only listen to are none.",
                )?;
                registry.register(Box::new(gauge.clone()))?;
                gauge
            },
            auth_failures: counters(
                &registry,
                "switchyard_auth_failures_total",
                "Requests that were not let in, by reason.",
                &["reason"],
            )?,
            config_reloads: counters(
                &registry,
                "switchyard_config_reloads_total",
                "Reloads of the configuration by result.",
                &["result"],
            )?,
            config_last_reload: {
                let gauge = Gauge::new(
                    "switchyard_config_last_reload_success_timestamp_seconds",
                    "When the configuration was last loaded, in seconds since the Unix epoch.",
                )?;
                registry.register(Box::new(gauge.clone()))?;
                gauge
            },
            config_last_reload_successful: {
                let gauge = IntGauge::new(
                    "switchyard_config_last_reload_successful",
                    "Whether the configuration was taken over when it was last read (1) or not (0).",
                )?;
                registry.register(Box::new(gauge.clone()))?;
                gauge
            },
            registry,
            durations,
            rendered: AtomicUsize::new(0),
        };
        metrics.begin_at_zero();
        metrics.sessions.with_label_values(&[Era::Legacy.as_str()]).set(0);
        for failure in AuthFailure::ALL {
            metrics.auth_failures.with_label_values(&[failure.as_str()]).reset();
        }
        for result in ["success", "failure"] {
            metrics.config_reloads.with_label_values(&[result]).reset();
        }
        Ok(Arc::new(metrics))
    }

    /// The exposition, in the Prometheus text format.
    ///
    /// # Errors
    /// Only when a metric has no name or samples of two kinds.
    pub fn render(&self) -> Result<Vec<u8>, MetricsError> {
        // As large as the last one was and a bit: growing would hold up to three times of it.
        let last = self.rendered.load(Ordering::Relaxed);
        let mut out = Vec::with_capacity((last + last / 16).max(64 * 1024));
        // One after the other: what is gathered is several times what it says.
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        let durations = self.durations.gather();
        TextEncoder::new().encode(&durations, &mut out)?;
        let (name, help) = ATTEMPTS;
        if durations.iter().all(|family| family.name() != name) {
            // What there can be is said before there is some.
            out.extend_from_slice(
                format!("# HELP {name} {help}\n# TYPE {name} histogram\n").as_bytes(),
            );
        }
        self.rendered.store(out.len(), Ordering::Relaxed);
        Ok(out)
    }

    /// Handles for one server, all at zero until something happens.
    #[must_use]
    pub fn server(&self, server: &ServerName) -> ServerMetrics {
        let server = server.as_str();
        self.tools.begin_server(server);
        let statuses = [ToolStatus::Active, ToolStatus::Stale, ToolStatus::Gone, ToolStatus::Held];
        ServerMetrics {
            enabled: self.upstream_enabled.with_label_values(&[server]),
            up: self.upstream_up.with_label_values(&[server]),
            unauthorised: self.upstream_unauthorised.with_label_values(&[server]),
            definition_tokens: self.definition_tokens.with_label_values(&[server]),
            last_success: self.upstream_last_success.with_label_values(&[server]),
            last_refresh: self.upstream_last_refresh.with_label_values(&[server]),
            inflight: self.upstream_inflight.with_label_values(&[server]),
            queue_depth: self.upstream_queue_depth.with_label_values(&[server]),
            sessions: self.upstream_sessions.with_label_values(&[server]),
            retries: self.retries(server),
            reconnects: RECONNECTS
                .map(|reason| self.upstream_reconnects.with_label_values(&[server, reason])),
            tools: statuses
                .map(|status| {
                    (status, self.upstream_tools.with_label_values(&[server, status.as_str()]))
                })
                .into(),
            changes: CHANGE_KINDS
                .map(|kind| (kind, self.definition_changes.with_label_values(&[server, kind])))
                .into(),
        }
    }

    /// Handles for a server that is a child process, all at zero until something happens.
    #[must_use]
    pub fn children(&self, server: &ServerName) -> ChildMetrics {
        let server = server.as_str();
        ChildMetrics {
            processes: self.child_processes.with_label_values(&[server]),
            roots: self.child_roots.with_label_values(&[server]),
            limit: self.child_limit.with_label_values(&[server]),
            resident_bytes: self.child_resident.with_label_values(&[server]),
            restarts: self.child_restarts.with_label_values(&[server]),
        }
    }

    /// Removes the series of a server that is no child process any more.
    pub fn forget_children(&self, server: &ServerName) {
        let server = server.as_str();
        let _ = self.child_processes.remove_label_values(&[server]);
        let _ = self.child_roots.remove_label_values(&[server]);
        let _ = self.child_limit.remove_label_values(&[server]);
        let _ = self.child_resident.remove_label_values(&[server]);
        let _ = self.child_restarts.remove_label_values(&[server]);
    }

    /// Removes the series of a server that is gone.
    pub fn forget_server(&self, server: &ServerName) {
        self.forget_children(server);
        let server = server.as_str();
        // An error means that there was no such series, which is what is wanted.
        let _ = self.upstream_enabled.remove_label_values(&[server]);
        let _ = self.upstream_up.remove_label_values(&[server]);
        let _ = self.upstream_unauthorised.remove_label_values(&[server]);
        let _ = self.definition_tokens.remove_label_values(&[server]);
        let _ = self.upstream_last_success.remove_label_values(&[server]);
        let _ = self.upstream_last_refresh.remove_label_values(&[server]);
        let _ = self.upstream_inflight.remove_label_values(&[server]);
        let _ = self.upstream_queue_depth.remove_label_values(&[server]);
        let _ = self.upstream_sessions.remove_label_values(&[server]);
        for status in [ToolStatus::Active, ToolStatus::Stale, ToolStatus::Gone, ToolStatus::Held] {
            let _ = self.upstream_tools.remove_label_values(&[server, status.as_str()]);
        }
        for kind in CHANGE_KINDS {
            let _ = self.definition_changes.remove_label_values(&[server, kind]);
        }
        self.breakers.forget(server);
        for reason in RECONNECTS {
            let _ = self.upstream_reconnects.remove_label_values(&[server, reason]);
        }
        self.tools.forget_server(server);
    }

    /// Counts a request that was not let in.
    pub fn auth_failure(&self, failure: AuthFailure) {
        self.auth_failures.with_label_values(&[failure.as_str()]).inc();
    }

    /// Notes a reload that worked, at `seconds` since the Unix epoch.
    pub fn reload_succeeded(&self, seconds: f64) {
        self.config_reloads.with_label_values(&["success"]).inc();
        self.config_loaded(seconds);
    }

    /// Notes a reload that changed nothing because the file is broken.
    pub fn reload_failed(&self) {
        self.config_reloads.with_label_values(&["failure"]).inc();
        self.config_last_reload_successful.set(0);
    }

    /// Notes when the configuration was loaded at start, in seconds since the Unix epoch.
    pub fn config_loaded(&self, seconds: f64) {
        self.config_last_reload.set(seconds);
        self.config_last_reload_successful.set(1);
    }

    /// Sets the number of open legacy sessions.
    pub fn set_sessions(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.sessions.with_label_values(&[Era::Legacy.as_str()]).set(count);
    }
}

/// Handles for one server.
#[derive(Debug)]
pub struct ServerMetrics {
    /// Calls are routed to it.
    pub enabled: IntGauge,
    /// Last contact succeeded.
    pub up: IntGauge,
    /// Last contact was answered 401 or 403.
    pub unauthorised: IntGauge,
    definition_tokens: IntGauge,
    /// Seconds since the epoch of the last answer.
    pub last_success: Gauge,
    /// Seconds since the epoch at which its tools were last known to be as listed.
    pub last_refresh: Gauge,
    /// Calls in flight.
    pub inflight: IntGauge,
    /// Calls waiting.
    pub queue_depth: IntGauge,
    /// Isolated sessions.
    pub sessions: IntGauge,
    /// Retries.
    pub retries: RetryMetrics,
    reconnects: [IntCounter; RECONNECTS.len()],
    tools: Vec<(ToolStatus, IntGauge)>,
    changes: Vec<(&'static str, IntCounter)>,
}

/// Handles for a server that is a child process.
#[derive(Debug)]
pub struct ChildMetrics {
    /// Processes, descendants included.
    pub processes: IntGauge,
    /// Those that the router started.
    pub roots: IntGauge,
    /// How many of those there may be.
    pub limit: IntGauge,
    /// Their memory.
    pub resident_bytes: IntGauge,
    /// Starts after another one.
    pub restarts: IntCounter,
}

impl ServerMetrics {
    /// Counts connections that were opened again.
    pub fn count_reconnects(&self, lost: u64, asked: u64) {
        for (counter, count) in self.reconnects.iter().zip([lost, asked]) {
            counter.inc_by(count);
        }
    }

    /// Sets the number of tools by status; statuses not named become zero.
    pub fn set_tools(&self, counts: &HashMap<ToolStatus, i64>) {
        for (status, gauge) in &self.tools {
            gauge.set(counts.get(status).copied().unwrap_or(0));
        }
    }

    /// Sets what the server's listed tools take in a model's context, by the bytes a model reads.
    pub fn set_definition_bytes(&self, bytes: u64) {
        self.definition_tokens.set(i64::try_from(bytes.div_ceil(4)).unwrap_or(i64::MAX));
    }

    /// Counts a change of a definition; `kind` is one of [`CHANGE_KINDS`].
    pub fn count_change(&self, kind: &str) {
        if let Some((_, counter)) = self.changes.iter().find(|(known, _)| *known == kind) {
            counter.inc();
        }
    }
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<HistogramVec, MetricsError> {
    let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
    let vec = HistogramVec::new(options, labels)?;
    registry.register(Box::new(vec.clone()))?;
    Ok(vec)
}

/// Points in time of servers, in seconds since the Unix epoch.
fn times(registry: &Registry, name: &str, help: &str) -> Result<GaugeVec, MetricsError> {
    let vec = GaugeVec::new(Opts::new(name, help), &["server"])?;
    registry.register(Box::new(vec.clone()))?;
    Ok(vec)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, MetricsError> {
    let vec = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(vec.clone()))?;
    Ok(vec)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, MetricsError> {
    let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(vec.clone()))?;
    Ok(vec)
}

#[cfg(test)]
mod tests;
