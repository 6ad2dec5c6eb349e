//! Histograms of one tool: the two durations of the semantic conventions.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::Histogram;

use super::Metrics;
use super::series::{Owner, Side, ToolSeries};
use crate::error::ErrorCode;
use crate::model::{
    Entrance, Era, ExposedName, Outcome, ProtocolVersion, ServerName, TransportKind, Uptime,
};

/// Labels of both histograms; `server` is empty for what belongs to no tool of the catalogue.
pub(super) const LABELS: [&str; 6] = [
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
    owner: Owner,
    series: Arc<ToolSeries>,
    served: OnceLock<Box<Served>>,
    attempted: OnceLock<Box<Attempted>>,
}

impl Metrics {
    /// Handles for one tool of a server. Without them it is `_other`, which stands for every tool that
    /// is not in the catalogue.
    #[must_use]
    pub fn tool(
        &self,
        server: Option<&ServerName>,
        tool: Option<&ExposedName>,
    ) -> Arc<ToolMetrics> {
        let owner = match (server, tool) {
            (Some(server), Some(tool)) => self.tools.owner(server.as_str(), tool.as_str()),
            _ => ToolSeries::nobody(),
        };
        Arc::new(ToolMetrics {
            owner,
            series: Arc::clone(&self.tools),
            served: OnceLock::new(),
            attempted: OnceLock::new(),
        })
    }

    /// Makes the series, at zero, that no server or tool has to be there for: a rate sees the first
    /// invented name then, and whoever invents many finds that there are all of them already.
    pub(super) fn begin_at_zero(&self) {
        let nobody = ToolSeries::nobody();
        let refused = |error: ErrorCode, version| {
            let _made = self.tools.get(&nobody, Side::Served, [error.as_str(), version, "tcp"]);
        };
        for version in std::iter::once("").chain(ProtocolVersion::ALL.map(ProtocolVersion::as_str))
        {
            for error in ANYBODYS {
                refused(error, version);
            }
        }
        refused(ErrorCode::ServerNotFound, "");
        for version in ProtocolVersion::ALL {
            let _made = self.tools.operation("tools/list", ["", version.as_str(), "tcp"]);
            if version.era() == Era::Legacy {
                let _made = self.tools.operation("initialize", ["", version.as_str(), "tcp"]);
            }
        }
    }

    /// The catalogue has these tools now: `has` is asked with server and exposed name. The series of a
    /// tool that left it go an hour later, or sooner when many leave.
    pub fn tools_listed(&self, now: Uptime, has: impl Fn(&str, &str) -> bool) {
        self.tools.listed(now, has);
    }

    /// Removes the series of tools that left the catalogue an hour before `now`.
    pub fn forget_left_tools(&self, now: Uptime) {
        self.tools.forget_left(now);
    }

    /// Records an operation that is not a tool call, such as `tools/list`, as its client saw it.
    /// `method` must come from a closed set.
    pub fn observe_operation(&self, method: &str, labels: CallLabels, took: Duration) {
        let labels = [labels.error_type(), labels.version(), labels.transport()];
        self.tools.operation(method, labels).observe(took.as_secs_f64());
    }

    /// Records the attempt at `server` that such an operation was, and how it ended.
    pub fn observe_forwarded(
        &self,
        method: &'static str,
        server: &ServerName,
        version: Option<ProtocolVersion>,
        (transport, outcome): (TransportKind, Outcome),
        took: Duration,
    ) {
        let error = if outcome == Outcome::Ok { "" } else { outcome.as_str() };
        let version = version.map_or("", ProtocolVersion::as_str);
        let labels = [error, version, network(transport)];
        if let Some(series) = self.tools.forwarded(method, server.as_str(), labels) {
            series.observe(took.as_secs_f64());
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
        let make = || self.series.get(&self.owner, Side::Served, [error, version, transport]);
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
        let labels = [
            error.map_or("", Outcome::as_str),
            version.map_or("", ProtocolVersion::as_str),
            network,
        ];
        let make = || self.series.get(&self.owner, Side::Attempted, labels);
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

fn observe(
    series: Option<&OnceLock<Histogram>>,
    make: impl FnOnce() -> Option<Histogram>,
    took: Duration,
) {
    let took = took.as_secs_f64();
    if let Some(known) = series.and_then(OnceLock::get) {
        known.observe(took);
    } else if let Some(made) = make() {
        made.observe(took);
        if let Some(series) = series {
            // Another call that was first, too, has the same one.
            let _ = series.set(made);
        }
    }
}
