//! [`ToolSeries`]: which series tools have, how many there may be, and when they go.
//!
//! Changes when these bounds do. A call meets the lock here only when it is the first to need a series.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramVec, IntCounter, Registry};

use super::tool::LABELS;
use super::{ATTEMPTS, MetricsError, histogram};
use crate::model::Uptime;

/// Series of tools that there may be, of both histograms together: ten thousand tools that are all
/// called and all succeed.
pub(super) const MOST: usize = 20_000;
/// The tool under which is counted what finds no place.
pub(super) const OVERFLOW: &str = "__overflow__";
/// How long the series of a tool stay that has left the catalogue: a scrape is to see its last calls,
/// and a list that comes back whole is to go on where it was.
const KEPT: Duration = Duration::from_secs(3600);
/// Of so many such tools at most: a server can name its tools anew for ever.
const MOST_KEPT: usize = 200;

/// One of the two histograms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Side {
    /// Calls as clients see them.
    Served,
    /// Attempts at servers.
    Attempted,
}

/// The labels beside tool and server, all from closed sets: error, protocol version, transport.
pub(super) type Labels = [&'static str; 3];

/// The series of all tools.
#[derive(Debug)]
pub(super) struct ToolSeries {
    served: HistogramVec,
    attempted: HistogramVec,
    overflow: IntCounter,
    most: usize,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    servers: HashMap<String, OfServer>,
    /// Series, those of [`OVERFLOW`] aside: their number is bounded by the servers.
    count: usize,
}

#[derive(Debug, Default)]
struct OfServer {
    gone: Arc<AtomicBool>,
    tools: HashMap<String, OfTool>,
    /// Attempts at what is no tool, by method: few, and not counted.
    forwarded: HashSet<(&'static str, Labels)>,
}

#[derive(Debug, Default)]
struct OfTool {
    series: HashSet<(Side, Labels)>,
    /// Since when it is not in the catalogue.
    left: Option<Uptime>,
}

/// Whose series.
#[derive(Debug)]
pub(super) struct Owner {
    server: String,
    tool: String,
    /// Set when the server is removed: what calls that end then still report is nobody's. `None` for
    /// what is in no catalogue, whose few series always stay.
    gone: Option<Arc<AtomicBool>>,
}

impl ToolSeries {
    /// At most `most` series, for histograms on `durations`.
    pub(super) fn register(
        registry: &Registry,
        durations: &Registry,
        most: usize,
    ) -> Result<Self, MetricsError> {
        let overflow = IntCounter::new(
            "switchyard_metrics_overflow_total",
            "Series of tools that were not made because there were 20000 of them; what belongs there is counted for the tool __overflow__.",
        )?;
        registry.register(Box::new(overflow.clone()))?;
        Ok(Self {
            served: histogram(
                durations,
                "mcp_server_operation_duration_seconds",
                "Duration of MCP operations as clients see them, in seconds; of tool calls with the server whose tool it is.",
                &LABELS,
            )?,
            attempted: histogram(durations, ATTEMPTS.0, ATTEMPTS.1, &LABELS)?,
            overflow,
            most,
            book: Mutex::default(),
        })
    }

    /// The owner of a tool's series.
    pub(super) fn owner(&self, server: &str, tool: &str) -> Owner {
        let mut book = self.book.lock();
        let gone = match book.servers.get(server) {
            Some(known) => Arc::clone(&known.gone),
            None => Arc::clone(&book.servers.entry(server.to_owned()).or_default().gone),
        };
        Owner { server: server.to_owned(), tool: tool.to_owned(), gone: Some(gone) }
    }

    /// The owner of what is counted for no tool of the catalogue.
    pub(super) fn nobody() -> Owner {
        Owner { server: String::new(), tool: "_other".to_owned(), gone: None }
    }

    /// One series, made if it is not there: the owner's, or that of [`OVERFLOW`] when there is no room.
    /// `None` when the server was removed.
    pub(super) fn get(&self, owner: &Owner, side: Side, labels: Labels) -> Option<Histogram> {
        let Some(gone) = &owner.gone else {
            return Some(self.make(side, &owner.server, &owner.tool, labels));
        };
        let mut book = self.book.lock();
        // Under the lock under which it is set.
        if gone.load(Ordering::Relaxed) {
            return None;
        }
        let Book { servers, count } = &mut *book;
        let tools = &mut servers.entry(owner.server.clone()).or_default().tools;
        let key = (side, labels);
        let is_there = tools.get(&owner.tool).is_some_and(|of| of.series.contains(&key));
        let tool = if is_there || *count < self.most { owner.tool.as_str() } else { OVERFLOW };
        if tool == OVERFLOW {
            self.overflow.inc();
        }
        let is_new = tools.entry(tool.to_owned()).or_default().series.insert(key);
        *count += usize::from(is_new && tool != OVERFLOW);
        Some(self.make(side, &owner.server, tool, labels))
    }

    /// Series of an operation that is no call of a tool.
    pub(super) fn operation(&self, method: &str, [error, version, transport]: Labels) -> Histogram {
        self.served.with_label_values(&of_method(method, "", [error, version, transport]))
    }

    /// Series of an attempt at what is no tool of this server; `None` when it was removed.
    pub(super) fn forwarded(
        &self,
        method: &'static str,
        server: &str,
        labels: Labels,
    ) -> Option<Histogram> {
        let mut book = self.book.lock();
        book.servers.get_mut(server)?.forwarded.insert((method, labels));
        Some(self.attempted.with_label_values(&of_method(method, server, labels)))
    }

    /// There is this server now.
    pub(super) fn begin_server(&self, server: &str) {
        let mut book = self.book.lock();
        if !book.servers.contains_key(server) {
            book.servers.insert(server.to_owned(), OfServer::default());
        }
    }

    fn make(&self, side: Side, server: &str, tool: &str, labels: Labels) -> Histogram {
        self.family(side).with_label_values(&all_labels(server, tool, labels))
    }

    const fn family(&self, side: Side) -> &HistogramVec {
        match side {
            Side::Served => &self.served,
            Side::Attempted => &self.attempted,
        }
    }

    /// Removes the series of a server's tools. Handles that are still in use make no new ones.
    pub(super) fn forget_server(&self, server: &str) {
        let mut book = self.book.lock();
        let Some(of) = book.servers.remove(server) else { return };
        of.gone.store(true, Ordering::Relaxed);
        for (method, labels) in of.forwarded {
            // An error means that there is no such series, which is what is wanted.
            let _ = self.attempted.remove_label_values(&of_method(method, server, labels));
        }
        for (tool, of_tool) in of.tools {
            book.count -= self.remove(server, &tool, &of_tool).min(book.count);
        }
    }

    /// The catalogue has these tools now: `has` is asked with server and exposed name. The series of
    /// others go some time after `now`.
    pub(super) fn listed(&self, now: Uptime, has: impl Fn(&str, &str) -> bool) {
        let mut book = self.book.lock();
        for (server, of) in &mut book.servers {
            for (tool, of_tool) in &mut of.tools {
                if tool == OVERFLOW || has(server, tool) {
                    of_tool.left = None;
                } else {
                    of_tool.left.get_or_insert(now);
                }
            }
        }
        self.tidy(&mut book, now);
    }

    /// Removes the series of tools that left the catalogue long before `now`.
    pub(super) fn forget_left(&self, now: Uptime) {
        self.tidy(&mut self.book.lock(), now);
    }

    fn tidy(&self, book: &mut Book, now: Uptime) {
        let Book { servers, count } = book;
        let mut left: Vec<(Uptime, String, String)> = Vec::new();
        for (server, of) in &*servers {
            let gone = of.tools.iter().filter_map(|(tool, of)| Some((of.left?, tool)));
            left.extend(gone.map(|(at, tool)| (at, server.clone(), tool.clone())));
        }
        left.sort_unstable();
        let surplus = left.len().saturating_sub(MOST_KEPT);
        for (at, (since, server, tool)) in left.into_iter().enumerate() {
            if at >= surplus && now.since(since) < KEPT {
                break;
            }
            let tools = servers.get_mut(&server).map(|of| &mut of.tools);
            if let Some(of_tool) = tools.and_then(|tools| tools.remove(&tool)) {
                *count -= self.remove(&server, &tool, &of_tool).min(*count);
            }
        }
    }

    /// How many series of those that count are gone.
    fn remove(&self, server: &str, tool: &str, of: &OfTool) -> usize {
        for (side, labels) in &of.series {
            // An error means that there is no such series, which is what is wanted.
            let _ = self.family(*side).remove_label_values(&all_labels(server, tool, *labels));
        }
        if tool == OVERFLOW { 0 } else { of.series.len() }
    }
}

/// In the order of [`LABELS`].
const fn of_method<'a>(
    method: &'a str,
    server: &'a str,
    [error, version, transport]: Labels,
) -> [&'a str; 6] {
    [method, "", error, version, transport, server]
}

/// The same of a tool's calls.
const fn all_labels<'a>(
    server: &'a str,
    tool: &'a str,
    [error, version, transport]: Labels,
) -> [&'a str; 6] {
    ["tools/call", tool, error, version, transport, server]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families(most: usize) -> (Registry, ToolSeries) {
        let registry = Registry::new();
        let series = ToolSeries::register(&registry, &registry, most).unwrap();
        (registry, series)
    }

    /// Tools that have series, the overflow's included, and how many series there are.
    fn shown(registry: &Registry) -> (HashSet<String>, usize) {
        let mut tools = HashSet::new();
        let mut count = 0;
        for family in registry.gather().iter().filter(|family| family.name().starts_with("mcp_")) {
            for metric in family.get_metric() {
                count += 1;
                let label = metric.get_label().iter().find(|l| l.name() == "gen_ai_tool_name");
                tools.insert(label.unwrap().value().to_owned());
            }
        }
        (tools, count)
    }

    fn overflowed(series: &ToolSeries) -> u64 {
        series.overflow.get()
    }

    fn call(series: &ToolSeries, owner: &Owner, error: &'static str) {
        for side in [Side::Served, Side::Attempted] {
            series.get(owner, side, [error, "", "tcp"]).unwrap().observe(0.1);
        }
    }

    #[test]
    fn a_server_that_renames_its_tools_for_ever_keeps_a_bounded_number_of_series() {
        let (registry, series) = families(MOST);
        call(&series, &series.owner("other", "other__get"), "");
        for round in 0..200 {
            let now = Uptime::from_millis(round * 1000);
            let names: Vec<String> = (0..50).map(|at| format!("up__tool_{round}_{at}")).collect();
            let has = |_: &str, tool: &str| tool == "other__get" || names.iter().any(|n| n == tool);
            series.listed(now, has);
            for name in &names {
                call(&series, &series.owner("up", name), "");
            }
            let (tools, count) = shown(&registry);
            assert!(tools.len() <= MOST_KEPT + 51 && count <= 2 * (MOST_KEPT + 51), "{count}");
            assert!(names.iter().all(|name| tools.contains(name)) && tools.contains("other__get"));
        }
        assert_eq!(overflowed(&series), 0);
        let book = series.book.lock();
        assert!(book.servers["up"].tools.len() <= MOST_KEPT + 50);
        assert_eq!(book.count, shown(&registry).1);
    }

    #[test]
    fn a_tool_that_left_is_shown_for_an_hour_and_one_that_comes_back_stays() {
        let (registry, series) = families(MOST);
        let at = |seconds: u64| Uptime::from_millis(seconds * 1000);
        for tool in ["s__left", "s__back"] {
            call(&series, &series.owner("s", tool), "");
        }
        series.listed(at(10), |_, _| false);
        series.listed(at(20), |_, tool| tool == "s__back");
        series.forget_left(at(10).plus(KEPT - Duration::from_millis(1)));
        assert_eq!(shown(&registry).1, 4);
        series.forget_left(at(10).plus(KEPT));
        let (tools, count) = shown(&registry);
        assert!(tools.contains("s__back") && count == 2, "{tools:?}");
    }

    #[test]
    fn what_finds_no_place_is_counted_for_the_overflow() {
        let (registry, series) = families(6);
        let owners: Vec<Owner> = (0..10).map(|at| series.owner("s", &format!("s__{at}"))).collect();
        for owner in &owners {
            call(&series, owner, "");
        }
        // Three tools have their two series; all others have these two together.
        let (tools, count) = shown(&registry);
        assert_eq!((tools.len(), count), (4, 8), "{tools:?}");
        assert!(tools.contains(OVERFLOW));
        assert_eq!(overflowed(&series), 14);
        let total: u64 = series
            .family(Side::Served)
            .with_label_values(&all_labels("s", OVERFLOW, ["", "", "tcp"]))
            .get_sample_count();
        assert_eq!(total, 7);
        // What is there stays in use, and what belongs to no tool always has its place.
        call(&series, &owners[0], "");
        call(&series, &ToolSeries::nobody(), "MCPToolNotFoundError");
        assert_eq!(overflowed(&series), 14);
        // Room that becomes free is used again.
        series.listed(Uptime::from_millis(0), |_, tool| tool != "s__0");
        series.forget_left(Uptime::default().plus(KEPT));
        call(&series, &series.owner("s", "s__new"), "");
        assert!(shown(&registry).0.contains("s__new"));
        series.forget_server("s");
        assert_eq!(shown(&registry).0, HashSet::from(["_other".to_owned()]));
        assert_eq!(series.book.lock().count, 0);
    }

    #[test]
    fn calls_that_end_when_their_server_is_gone_bring_nothing_back() {
        let (registry, series) = families(MOST);
        let late = series.owner("s", "s__get");
        call(&series, &late, "");
        series.forget_server("s");
        assert!(series.get(&late, Side::Served, ["MCPConnectionError", "", "tcp"]).is_none());
        assert!(series.get(&late, Side::Attempted, ["", "", "tcp"]).is_none());
        assert_eq!(shown(&registry).1, 0);
        // Another of its name begins at zero.
        call(&series, &series.owner("s", "s__get"), "");
        assert!(series.get(&late, Side::Served, ["", "", "tcp"]).is_none());
        assert_eq!(shown(&registry).1, 2);
    }
}
