//! Every metric: name, help, labels and buckets. Nobody else writes a metric name.
//!
//! Changes when what we show changes. Handles are registered when a server or a tool enters the
//! catalogue; a call only touches atomics.
//!
//! Names follow OpenTelemetry's MCP semantic conventions, translated to Prometheus.

mod audit;
mod breaker;
mod tool;
mod view;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::model::{Era, ServerName, ToolStatus};

pub use audit::AuditMetrics;
pub use breaker::{BreakerMetrics, RetryMetrics};
pub use tool::{CallLabels, ToolMetrics};
pub use view::ViewMetrics;

/// The advised buckets of the semantic conventions in seconds, and three below them: a router's
/// own time is well under 10 ms.
const BUCKETS: [f64; 17] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0,
    300.0,
];

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
    /// The ledger's.
    pub audit: AuditMetrics,
    breakers: breaker::BreakerFamilies,
    operations: HistogramVec,
    attempts: HistogramVec,
    /// Exposed names to servers: one of the two histograms does not say whose tool it is.
    owners: Mutex<HashMap<String, String>>,
    upstream_up: IntGaugeVec,
    upstream_last_success: GaugeVec,
    upstream_inflight: IntGaugeVec,
    upstream_queue_depth: IntGaugeVec,
    upstream_sessions: IntGaugeVec,
    upstream_reconnects: IntCounterVec,
    upstream_tools: IntGaugeVec,
    child_processes: IntGaugeVec,
    child_resident: IntGaugeVec,
    child_restarts: IntCounterVec,
    definition_changes: IntCounterVec,
    view_calls: IntCounterVec,
    sessions: IntGaugeVec,
    /// Requests at the front door right now.
    pub inflight_requests: IntGauge,
    auth_failures: IntCounterVec,
    config_reloads: IntCounterVec,
    config_last_reload: Gauge,
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

    const fn as_str(self) -> &'static str {
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
        let registry = Registry::new();
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
            breakers: breaker::BreakerFamilies::register(&registry)?,
            operations: histogram(
                &registry,
                "mcp_server_operation_duration_seconds",
                "Duration of MCP operations as clients see them, in seconds.",
                &tool::SERVER_LABELS,
            )?,
            attempts: histogram(
                &registry,
                "mcp_client_operation_duration_seconds",
                "Duration of single attempts at upstream servers, in seconds.",
                &tool::CLIENT_LABELS,
            )?,
            owners: Mutex::new(HashMap::new()),
            upstream_up: gauges(
                &registry,
                "switchyard_upstream_up",
                "Whether the last contact with the server succeeded (1) or not (0).",
                &["server"],
            )?,
            upstream_last_success: {
                let vec = GaugeVec::new(
                    Opts::new(
                        "switchyard_upstream_last_success_timestamp_seconds",
                        "When the server last answered, in seconds since the Unix epoch; 0 for never.",
                    ),
                    &["server"],
                )?;
                registry.register(Box::new(vec.clone()))?;
                vec
            },
            upstream_inflight: gauges(
                &registry,
                "switchyard_upstream_inflight",
                "Calls in flight at the server.",
                &["server"],
            )?,
            upstream_queue_depth: gauges(
                &registry,
                "switchyard_upstream_queue_depth",
                "Calls waiting for a free place at the server.",
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
                    "Requests being answered right now.",
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
            registry,
        };
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
        let mut out = Vec::with_capacity(64 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(out)
    }

    /// Handles for one server, all at zero until something happens.
    #[must_use]
    pub fn server(&self, server: &ServerName) -> ServerMetrics {
        let server = server.as_str();
        let statuses = [ToolStatus::Active, ToolStatus::Stale, ToolStatus::Gone, ToolStatus::Held];
        ServerMetrics {
            up: self.upstream_up.with_label_values(&[server]),
            last_success: self.upstream_last_success.with_label_values(&[server]),
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
            resident_bytes: self.child_resident.with_label_values(&[server]),
            restarts: self.child_restarts.with_label_values(&[server]),
        }
    }

    /// Removes the series of a server that is no child process any more.
    pub fn forget_children(&self, server: &ServerName) {
        let server = server.as_str();
        let _ = self.child_processes.remove_label_values(&[server]);
        let _ = self.child_resident.remove_label_values(&[server]);
        let _ = self.child_restarts.remove_label_values(&[server]);
    }

    /// Removes the series of a server that is gone.
    pub fn forget_server(&self, server: &ServerName) {
        self.forget_children(server);
        let server = server.as_str();
        // An error means that there was no such series, which is what is wanted.
        let _ = self.upstream_up.remove_label_values(&[server]);
        let _ = self.upstream_last_success.remove_label_values(&[server]);
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
        self.forget_tools(server);
    }

    /// Counts a request that was not let in.
    pub fn auth_failure(&self, failure: AuthFailure) {
        self.auth_failures.with_label_values(&[failure.as_str()]).inc();
    }

    /// Notes a reload that worked, at `seconds` since the Unix epoch.
    pub fn reload_succeeded(&self, seconds: f64) {
        self.config_reloads.with_label_values(&["success"]).inc();
        self.config_last_reload.set(seconds);
    }

    /// Notes a reload that changed nothing because the file is broken.
    pub fn reload_failed(&self) {
        self.config_reloads.with_label_values(&["failure"]).inc();
    }

    /// Notes when the configuration was loaded at start, in seconds since the Unix epoch.
    pub fn config_loaded(&self, seconds: f64) {
        self.config_last_reload.set(seconds);
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
    /// Last contact succeeded.
    pub up: IntGauge,
    /// Seconds since the epoch of the last answer.
    pub last_success: Gauge,
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
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Entrance, ExposedName, Outcome, ProtocolVersion, TransportKind, ViewName};

    fn call(metrics: &Metrics, server: &str, tool: &str, error_type: Option<&'static str>) {
        let server = ServerName::parse(server).unwrap();
        let exposed = ExposedName::parse(tool).unwrap();
        let tool = metrics.tool(Some(&server), Some(&exposed));
        let version = ProtocolVersion::V2025_06_18;
        let took = Duration::from_millis(3);
        for entrance in [Entrance::Rest, Entrance::Mcp(version)] {
            for over_socket in [false, true] {
                tool.observe_call(CallLabels { entrance, over_socket, error_type }, took);
            }
        }
        tool.observe_attempt(Some(version), TransportKind::Http, error_type, took);
        tool.observe_attempt(None, TransportKind::Stdio, error_type, took);
    }

    fn text(metrics: &Metrics) -> String {
        String::from_utf8(metrics.render().unwrap()).unwrap()
    }

    #[test]
    fn a_server_that_is_gone_leaves_nothing() {
        let metrics = Metrics::new().unwrap();
        let _other = metrics.server(&ServerName::parse("stays").unwrap());
        call(&metrics, "stays", "stays__get", None);
        metrics.observe_operation(
            "tools/list",
            ProtocolVersion::V2025_06_18,
            true,
            Duration::from_millis(1),
        );
        let before = text(&metrics);
        let gone = ServerName::parse("gone").unwrap();
        metrics.server(&gone).set_tools(&HashMap::from([(ToolStatus::Active, 2)]));
        for error_type in [None, Some("timeout")] {
            call(&metrics, "gone", "gone__get", error_type);
            call(&metrics, "gone", "other_name", error_type);
        }
        let with = text(&metrics);
        for name in ["gen_ai_tool_name=\"gone__get\"", "gen_ai_tool_name=\"other_name\""] {
            assert!(with.contains(name), "{with}");
        }
        metrics.forget_server(&gone);
        let series = |text: &str| -> Vec<String> {
            let own = text.lines().filter(|line| !line.contains("process_"));
            own.map(str::to_owned).collect()
        };
        assert_eq!(series(&text(&metrics)), series(&before));
    }

    #[test]
    fn a_view_begins_at_zero_and_leaves_nothing() {
        let metrics = Metrics::new().unwrap();
        let before = text(&metrics);
        let view = ViewName::parse("support").unwrap();
        let handles = metrics.view(&view);
        let sample = |outcome: &str, value: u64| {
            format!(
                "switchyard_view_calls_total{{outcome=\"{outcome}\",view=\"support\"}} {value}\n"
            )
        };
        for outcome in Outcome::ALL {
            assert!(text(&metrics).contains(&sample(outcome.as_str(), 0)));
        }
        handles.count(Outcome::Refused);
        assert!(text(&metrics).contains(&sample("refused", 1)));
        assert!(text(&metrics).contains(&sample("ok", 0)));
        // The same view again goes on counting.
        metrics.view(&view).count(Outcome::Refused);
        assert!(text(&metrics).contains(&sample("refused", 2)));
        metrics.forget_view(&view);
        assert!(!text(&metrics).contains("view_calls"));
        let own = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.contains("process_")).map(str::to_owned).collect()
        };
        assert_eq!(own(&text(&metrics)), own(&before));
    }

    #[test]
    fn a_name_that_another_server_took_over_stays_its_own() {
        let metrics = Metrics::new().unwrap();
        call(&metrics, "first", "get", None);
        call(&metrics, "second", "get", None);
        metrics.forget_server(&ServerName::parse("first").unwrap());
        let text = text(&metrics);
        assert!(text.contains("gen_ai_tool_name=\"get\""), "{text}");
        assert!(text.contains("server=\"second\"") && !text.contains("server=\"first\""), "{text}");
    }

    #[test]
    fn the_build_says_what_it_was_built_from() {
        let metrics = Metrics::new().unwrap();
        let text = text(&metrics);
        let line = text.lines().find(|line| line.starts_with("switchyard_build_info{")).unwrap();
        assert!(line.contains("revision=\"") && !line.contains("revision=\"\""), "{line}");
    }
}
