//! The demo's traffic: real requests through both entrances to both servers.
//!
//! Changes when the demo should call something else. It knows the router only from outside.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::call;
use super::super::client::{Answer, Ask, CALL_PATIENCE, Client};
use crate::clock;
use crate::model::ProtocolVersion;

/// The names of the bundled servers, in the order of the traffic.
pub(super) const STEADY_AND_FLAKY: [&str; 2] = ["steady", "flaky"];
/// Ten calls a second: something happens on every screen, and a laptop does not notice.
const PACE: Duration = Duration::from_millis(100);
/// Should the router hang, the demo must not pile up requests without end.
const MOST_IN_FLIGHT: usize = 64;

/// What became of the calls.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Ledger ids of all that were answered.
    pub(super) ids: HashSet<String>,
    /// Calls by server.
    pub(super) by_server: BTreeMap<&'static str, usize>,
    /// Failed calls by server.
    pub(super) failed_by_server: BTreeMap<&'static str, usize>,
    /// Failed calls.
    pub(super) failed: usize,
    /// Requests without a proper answer.
    pub(super) lost: usize,
    durations_ms: Vec<f64>,
}

impl Tally {
    /// The duration below which `percent` of the calls lie.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.durations_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(at).copied().unwrap_or(0.0)
    }
}

/// How it goes.
pub(super) struct Progress {
    /// Calls so far.
    pub(super) calls: usize,
    /// Failed ones.
    pub(super) failed: usize,
    /// Median duration.
    pub(super) p50_ms: f64,
}

/// Traffic that runs until it is finished.
pub(super) struct Traffic {
    client: Arc<Client>,
    tally: Arc<Mutex<Tally>>,
    calls: TaskTracker,
    stop: CancellationToken,
}

impl Traffic {
    /// Starts calling through `client`.
    pub(super) fn start(client: Client) -> Self {
        let traffic = Self {
            client: Arc::new(client),
            tally: Arc::default(),
            calls: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let (client, tally) = (Arc::clone(&traffic.client), Arc::clone(&traffic.tally));
        let (calls, stop) = (traffic.calls.clone(), traffic.stop.clone());
        traffic.calls.spawn(async move {
            let mut tick = tokio::time::interval(PACE);
            tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
            for number in 0_u64.. {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = tick.tick() => {}
                }
                if calls.len() < MOST_IN_FLIGHT {
                    calls.spawn(one(number, Arc::clone(&client), Arc::clone(&tally)));
                }
            }
        });
        traffic
    }

    /// How it goes.
    pub(super) fn progress(&self) -> Progress {
        let tally = self.tally.lock();
        Progress { calls: tally.ids.len(), failed: tally.failed, p50_ms: tally.percentile(50) }
    }

    /// Begins no more calls, waits for those under way, gives what became of all.
    pub(super) async fn finish(self) -> (Arc<Client>, Tally) {
        self.stop.cancel();
        self.calls.close();
        self.calls.wait().await;
        let tally = std::mem::take(&mut *self.tally.lock());
        (self.client, tally)
    }
}

async fn one(number: u64, client: Arc<Client>, tally: Arc<Mutex<Tally>>) {
    let (server, ask, entrance) = plan(number);
    let begin = clock::uptime();
    let answer = client.ask(ask.patient(CALL_PATIENCE)).await;
    let took = clock::uptime().since(begin);
    let mut tally = tally.lock();
    let id = answer.as_ref().ok().and_then(|answer| {
        let id = answer.headers.get("x-request-id")?;
        Some(id.to_str().ok()?.to_owned())
    });
    let (Ok(answer), Some(id)) = (answer, id) else {
        tally.lost += 1;
        return;
    };
    tally.ids.insert(id);
    tally.durations_ms.push(took.as_secs_f64() * 1000.0);
    *tally.by_server.entry(server).or_default() += 1;
    if !succeeded(&answer, entrance) {
        tally.failed += 1;
        *tally.failed_by_server.entry(server).or_default() += 1;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entrance {
    Rest,
    Mcp,
}

/// Call `number`: servers take turns, then entrances, then tools.
fn plan(number: u64) -> (&'static str, Ask, Entrance) {
    let [steady, flaky] = STEADY_AND_FLAKY;
    let server = if number.is_multiple_of(2) { steady } else { flaky };
    let (tool, arguments) = match (number / 4) % 3 {
        0 => ("echo", format!("{{\"text\":\"call {number}\"}}")),
        1 => ("add", format!("{{\"a\":{number},\"b\":1}}")),
        _ => ("now", "{}".to_owned()),
    };
    let name = format!("{server}__{tool}");
    if (number / 2).is_multiple_of(2) {
        let body = call::body(&name, None, Some(&arguments), None);
        (server, Ask::post(&["mcp", "call"]).json(body), Entrance::Rest)
    } else {
        let params = format!("{{\"name\":\"{name}\",\"arguments\":{arguments},");
        (server, mcp_request("tools/call", Some(&name), &params), Entrance::Mcp)
    }
}

/// A request of the stateless era; `params` is an open object to which `_meta` is added.
pub(super) fn mcp_request(method: &'static str, name: Option<&str>, params: &str) -> Ask {
    let version = ProtocolVersion::LATEST.as_str();
    let body = format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\",\"params\":{params}\"_meta\":{{\"io.modelcontextprotocol/protocolVersion\":\"{version}\",\"io.modelcontextprotocol/clientInfo\":{{\"name\":\"switchyard-demo\",\"version\":\"{}\"}},\"io.modelcontextprotocol/clientCapabilities\":{{}}}}}}}}",
        env!("CARGO_PKG_VERSION")
    );
    let ask = Ask::post(&["mcp"])
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", version)
        .header("mcp-method", method)
        .json(body);
    match name {
        Some(name) => ask.header("mcp-name", name),
        None => ask,
    }
}

fn succeeded(answer: &Answer, entrance: Entrance) -> bool {
    let Ok(text) = answer.text() else { return false };
    match entrance {
        Entrance::Rest => call_succeeded(text),
        Entrance::Mcp => rpc_answer(text).is_some_and(|result| !result),
    }
}

/// Whether an answer of `/mcp/call` says so. `data` is passed over: it may hold any number.
fn call_succeeded(text: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Success {
        success: bool,
    }
    serde_json::from_str::<Success>(text).is_ok_and(|answer| answer.success)
}

/// Whether the JSON-RPC answer in `text` (JSON, or the last event of a stream) reports an error.
fn rpc_answer(text: &str) -> Option<bool> {
    #[derive(serde::Deserialize)]
    struct Message {
        #[serde(default)]
        result: Option<ToolResult>,
        #[serde(default)]
        error: Option<Box<RawValue>>,
    }
    #[derive(serde::Deserialize)]
    struct ToolResult {
        #[serde(default, rename = "isError")]
        is_error: bool,
    }
    let json = if text.trim_start().starts_with('{') {
        text
    } else {
        text.lines().rev().find_map(|line| line.strip_prefix("data:"))?
    };
    let message: Message = serde_json::from_str(json).ok()?;
    match (message.result, message.error) {
        (Some(result), None) => Some(result.is_error),
        _ => Some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_servers_both_entrances_and_every_tool_get_their_share() {
        let mut seen = BTreeMap::new();
        for number in 0..12 {
            let (server, _, entrance) = plan(number);
            *seen.entry((server, entrance == Entrance::Mcp)).or_insert(0) += 1;
        }
        assert_eq!(seen.into_values().collect::<Vec<_>>(), [3, 3, 3, 3]);
    }

    #[test]
    fn answers_are_read_from_json_and_from_a_stream() {
        for (text, failed) in [
            (r#"{"jsonrpc":"2.0","id":1,"result":{"content":[]}}"#, Some(false)),
            (r#"{"jsonrpc":"2.0","id":1,"result":{"isError":true}}"#, Some(true)),
            (r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603}}"#, Some(true)),
            ("event: message\ndata: {\"result\":{\"content\":[]}}\n\n", Some(false)),
            ("<html>", None),
        ] {
            assert_eq!(rpc_answer(text), failed, "{text}");
        }
    }

    #[test]
    fn success_is_read_whatever_the_data_is() {
        assert!(call_succeeded(r#"{"success":true,"data":{"n":1e400},"error":null}"#));
        assert!(!call_succeeded(r#"{"success":false,"data":null,"error":"x"}"#));
        assert!(!call_succeeded("{}"));
    }

    #[test]
    fn percentiles_are_of_the_calls_made() {
        let durations_ms = (1..=100).map(f64::from).rev().collect();
        let tally = Tally { durations_ms, ..Tally::default() };
        assert_eq!((tally.percentile(50), tally.percentile(99)), (50.0, 99.0));
        assert_eq!(Tally::default().percentile(50), 0.0);
    }
}
