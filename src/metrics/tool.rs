//! Histograms of one tool: the two durations of the semantic conventions.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::LabelPair;
use prometheus::{Histogram, HistogramVec};

use super::Metrics;
use crate::error::ErrorCode;
use crate::model::{
    Entrance, Era, ExposedName, Outcome, ProtocolVersion, ServerName, TransportKind,
};

/// Stands for every tool that is not in the catalogue.
const OTHER: &str = "_other";

/// Labels of `mcp_server_operation_duration_seconds`.
pub(super) const SERVER_LABELS: [&str; 5] = [
    "mcp_method_name",
    "gen_ai_tool_name",
    "error_type",
    "mcp_protocol_version",
    "network_transport",
];
/// Labels of `mcp_client_operation_duration_seconds`.
pub(super) const CLIENT_LABELS: [&str; 6] = [
    "mcp_method_name",
    "gen_ai_tool_name",
    "error_type",
    "mcp_protocol_version",
    "network_transport",
    "server",
];

/// What any caller can make calls end with that reach no tool, from whichever entrance.
const ANYBODYS: [ErrorCode; 3] =
    [ErrorCode::ToolNotFound, ErrorCode::InvalidRequest, ErrorCode::Authentication];

/// One slot for each protocol version and one for calls that came without (`/mcp/call`).
const SLOTS: usize = ProtocolVersion::ALL.len() + 1;

/// What one finished call is labelled with.
#[derive(Debug, Clone, Copy)]
pub struct CallLabels {
    /// Through which door it came.
    pub entrance: Entrance,
    /// Whether it came over the admin socket.
    pub over_socket: bool,
    /// What went wrong; `None` for success.
    pub error: Option<ErrorCode>,
}

impl CallLabels {
    const fn version(self) -> &'static str {
        match self.entrance {
            Entrance::Mcp(version) => version.as_str(),
            Entrance::Rest => "",
        }
    }

    const fn transport(self) -> &'static str {
        if self.over_socket { "unix" } else { "tcp" }
    }

    fn error_type(self) -> &'static str {
        match self.error {
            None => "",
            Some(ErrorCode::Tool) => "tool_error",
            Some(code) => code.as_str(),
        }
    }
}

/// The series of one tool, each made when something first falls into it and then found by index: a
/// call hashes no label and takes no lock, whether it succeeded or not.
#[derive(Debug)]
struct Series<const ERRORS: usize> {
    succeeded: OnceLock<Histogram>,
    /// Made with the first failure: most tools of a large catalogue are never called.
    failed: OnceLock<Box<[OnceLock<Histogram>; ERRORS]>>,
}

impl<const ERRORS: usize> Series<ERRORS> {
    const fn new() -> Self {
        Self { succeeded: OnceLock::new(), failed: OnceLock::new() }
    }

    /// The one of success, or of the error with this number.
    fn of(&self, error: Option<usize>) -> Option<&OnceLock<Histogram>> {
        match error {
            None => Some(&self.succeeded),
            Some(error) => {
                let failed = || Box::new([const { OnceLock::new() }; ERRORS]);
                self.failed.get_or_init(failed).get(error)
            }
        }
    }
}

/// By protocol version, over the network and over the admin socket.
type Served = [[Series<{ ErrorCode::ALL.len() }>; SLOTS]; 2];
/// By protocol version.
type Attempted = [Series<{ Outcome::ALL.len() }>; SLOTS];

/// Handles of one tool.
#[derive(Debug)]
pub struct ToolMetrics {
    tool: String,
    server: String,
    operations: HistogramVec,
    attempts: HistogramVec,
    served: OnceLock<Box<Served>>,
    attempted: OnceLock<Box<Attempted>>,
}

impl Metrics {
    /// Handles for one tool. `_other` stands for every tool that is not in the catalogue.
    #[must_use]
    pub fn tool(
        &self,
        server: Option<&ServerName>,
        tool: Option<&ExposedName>,
    ) -> Arc<ToolMetrics> {
        if let (Some(server), Some(tool)) = (server, tool) {
            self.owners.lock().insert(tool.as_str().to_owned(), server.as_str().to_owned());
        }
        Arc::new(ToolMetrics {
            tool: tool.map_or(OTHER, ExposedName::as_str).to_owned(),
            server: server.map_or(OTHER, ServerName::as_str).to_owned(),
            operations: self.operations.clone(),
            attempts: self.attempts.clone(),
            served: OnceLock::new(),
            attempted: OnceLock::new(),
        })
    }

    /// Makes the series, at zero, that no server or tool has to be there for: a rate sees the first
    /// invented name then, and whoever invents many finds that there are all of them already.
    pub(super) fn begin_at_zero(&self) {
        let at_zero = |method: &str, tool: &str, error: &str, version: &str| {
            let _made = self.operations.with_label_values(&[method, tool, error, version, "tcp"]);
        };
        for version in std::iter::once("").chain(ProtocolVersion::ALL.map(ProtocolVersion::as_str))
        {
            for error in ANYBODYS {
                at_zero("tools/call", OTHER, error.as_str(), version);
            }
        }
        at_zero("tools/call", OTHER, ErrorCode::ServerNotFound.as_str(), "");
        for version in ProtocolVersion::ALL {
            at_zero("tools/list", "", "", version.as_str());
            if version.era() == Era::Legacy {
                at_zero("initialize", "", "", version.as_str());
            }
        }
    }

    /// Removes the series of a server's tools. What was labelled how is asked of the histograms
    /// themselves, so that a call has nothing to keep books on.
    pub(super) fn forget_tools(&self, server: &str) {
        let mut owners = self.owners.lock();
        forget(&self.operations, &SERVER_LABELS, |[_, tool, ..]| {
            owners.get(tool).is_some_and(|owner| owner == server)
        });
        forget(&self.attempts, &CLIENT_LABELS, |[.., of]| of == server);
        owners.retain(|_, owner| owner != server);
    }

    /// Records an operation that is not a tool call, such as `tools/list`, as its client saw it.
    /// `method` must come from a closed set.
    pub fn observe_operation(&self, method: &str, labels: CallLabels, took: Duration) {
        let (version, transport) = (labels.version(), labels.transport());
        self.operations
            .with_label_values(&[method, "", labels.error_type(), version, transport])
            .observe(took.as_secs_f64());
    }

    /// Records the attempt at `server` that such an operation was, and how it ended.
    pub fn observe_forwarded(
        &self,
        method: &str,
        server: &ServerName,
        version: Option<ProtocolVersion>,
        (transport, outcome): (TransportKind, Outcome),
        took: Duration,
    ) {
        let error = if outcome == Outcome::Ok { "" } else { outcome.as_str() };
        let version = version.map_or("", ProtocolVersion::as_str);
        self.attempts
            .with_label_values(&[method, "", error, version, network(transport), server.as_str()])
            .observe(took.as_secs_f64());
    }
}

/// Removes the series for whose labels, in the order of `names`, `is_gone` holds.
fn forget<const N: usize>(
    histograms: &HistogramVec,
    names: &[&str; N],
    is_gone: impl Fn([&str; N]) -> bool,
) {
    for family in histograms.collect() {
        for series in family.get_metric() {
            // Collected labels are sorted by name.
            let value = |name: &str| {
                let pair = series.get_label().iter().find(|pair| pair.name() == name);
                pair.map_or("", LabelPair::value)
            };
            let values = names.map(value);
            if is_gone(values) {
                // An error means that there is no such series, which is what is wanted.
                let _ = histograms.remove_label_values(&values);
            }
        }
    }
}

impl ToolMetrics {
    /// Records a call as its client saw it.
    pub fn observe_call(&self, labels: CallLabels, took: Duration) {
        let slot = match labels.entrance {
            Entrance::Mcp(version) => version.index(),
            Entrance::Rest => SLOTS - 1,
        };
        let (version, transport) = (labels.version(), labels.transport());
        let error = labels.error_type();
        let make = || {
            self.operations.with_label_values(&[
                "tools/call",
                &self.tool,
                error,
                version,
                transport,
            ])
        };
        let served =
            self.served.get_or_init(|| Box::new([const { [const { Series::new() }; SLOTS] }; 2]));
        let series = served.get(usize::from(labels.over_socket)).and_then(|by| by.get(slot));
        let series = series.and_then(|series| series.of(labels.error.map(|code| code as usize)));
        observe(series, make, took);
    }

    /// Records one attempt at the upstream that ended so.
    pub fn observe_attempt(
        &self,
        version: Option<ProtocolVersion>,
        transport: TransportKind,
        outcome: Outcome,
        took: Duration,
    ) {
        let network = network(transport);
        let error = (outcome != Outcome::Ok).then_some(outcome);
        let make = || {
            self.attempts.with_label_values(&[
                "tools/call",
                &self.tool,
                error.map_or("", Outcome::as_str),
                version.map_or("", ProtocolVersion::as_str),
                network,
                &self.server,
            ])
        };
        // A tool's transport is one: its handles are made anew with another.
        let slot = version.map_or(SLOTS - 1, ProtocolVersion::index);
        let attempted = self.attempted.get_or_init(|| Box::new([const { Series::new() }; SLOTS]));
        let series = attempted.get(slot).and_then(|series| series.of(error.map(Outcome::index)));
        observe(series, make, took);
    }
}

const fn network(transport: TransportKind) -> &'static str {
    match transport {
        TransportKind::Stdio => "pipe",
        TransportKind::Http | TransportKind::Sse | TransportKind::Jsonrpc => "tcp",
    }
}

fn observe(series: Option<&OnceLock<Histogram>>, make: impl FnOnce() -> Histogram, took: Duration) {
    match series {
        Some(series) => series.get_or_init(make).observe(took.as_secs_f64()),
        None => make().observe(took.as_secs_f64()),
    }
}
