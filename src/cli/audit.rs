//! `switchyard audit`: reads the ledger.
//!
//! Changes when the ledger can be asked for differently. What is shown of it is the files' of its
//! commands.

mod events;
mod export;
mod list;
mod replay;
mod show;
mod stats;
mod tail;
mod upkeep;
mod verify;

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{Ask, Client, ClientError};
use super::output::Output;
use super::table::Style;
use super::{CliError, Context, Status, text, when};
use crate::clock;
use crate::model::{CallId, Outcome, Timestamp, TraceId};

/// Arguments of `audit`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Reads the ledger: one entry per call, also refused and failed ones.",
    after_help = "Examples:\n  switchyard audit\n  switchyard audit list --server github --outcome timeout --since 1h\n  switchyard audit tail -f\n  switchyard audit export --since 7d --out calls.jsonl"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List calls, the newest last
    #[command(
        after_help = "Examples:\n  switchyard audit list --server github --outcome timeout --since 1h\n  switchyard audit list --since 2026-11-24 --until '2026-11-24 12:00' --limit 1000\n  switchyard audit list --caller laptop --text 'connection refused' --json\n  switchyard audit list --trace 4bf92f3577b34da6a3ce929d0e0e4736\n\nTimes: how long ago (90s, 15m, 1h, 7d), a date, a local time, or RFC 3339."
    )]
    List(list::Args),
    /// Show everything about one call
    #[command(
        after_help = "Examples:\n  switchyard audit show 0193a5c0-7a1e-7cc3-98c4-dc0c0c07398f"
    )]
    Show {
        /// The call's id: `request_id` of its answer, header x-request-id
        #[arg(value_parser = call_id)]
        id: CallId,
    },
    /// Show sums: calls, errors, times and bytes by server, tool or caller
    #[command(
        after_help = "Examples:\n  switchyard audit stats\n  switchyard audit stats --by tool --since 7d\n  switchyard audit stats --by caller --per hour --server github --json\n\nErrors are calls that did not end as `ok`. Sums begin and end at whole minutes; hours and days are those of UTC."
    )]
    Stats(stats::Args),
    /// Show the last calls; with -f also new ones as they end, until Ctrl-C
    #[command(
        after_help = "Examples:\n  switchyard audit tail\n  switchyard audit tail -f --server github\n  switchyard audit tail -f --outcome timeout --events --kind 'breaker.*'\n  switchyard audit tail -f -n 0 --json | jq -c 'select(.outcome != \"ok\")'\n\nWith -f it waits for a router that restarts, and goes on where it was: no call is missing or\nshown twice. Filters other than --since and --until are of calls alone; --kind is of what is beside them."
    )]
    Tail(tail::Args),
    /// List what is on record beside calls: acts, changes of tools, breakers, the ledger itself
    #[command(
        after_help = "Examples:\n  switchyard audit events --since 1d\n  switchyard audit events --kind 'server.*' --actor laptop\n  switchyard audit events --kind audit.gap --json"
    )]
    Events(events::Args),
    /// Write all calls that match, the oldest first
    #[command(
        after_help = "Examples:\n  switchyard audit export --since 7d --out calls.jsonl\n  switchyard audit export --format csv --server github --out github.csv\n  switchyard audit export --payloads --outcome tool_error | jq -c '[.tool, .arguments]'\n  switchyard audit export --format chain --out ledger.jsonl && switchyard audit verify --export ledger.jsonl\n\nA file appears under its name when it is complete, readable by its owner only. CSV has one line for\neach call, without its attempts; what a spreadsheet would take for a formula has a ' in front."
    )]
    Export(export::Args),
    /// Make recorded calls of read-only tools again, and compare the answers
    #[command(
        long_about = "Makes recorded calls again, at the servers that run or at those of a candidate configuration, and compares outcome, shape of the result and time. Only calls of tools that are declared read-only (readOnlyHint), by both, and whose arguments the ledger kept whole: nothing else is ever sent. A result is compared as far as it was kept: with `results: full` or `raw` by its names and types, with `summary` by its kinds of content.\n\nExit code 1 when an answer differs.",
        after_help = "Examples:\n  switchyard audit replay --since 1d --tool docs__search --dry-run\n  switchyard audit replay --since 1h --candidate next.yaml\n  switchyard audit replay --server docs --json | jq '.calls[] | select(.same_outcome | not)'"
    )]
    Replay(replay::Args),
    /// Verify that the ledger is what was written
    #[command(
        long_about = "Reads the ledger's file and its key in the data folder, also beside a router that runs, and checks each row against the chain, what is kept of payloads, and signed checkpoints. With --export it checks a file from `audit export --format chain` instead, for which it needs nothing but the key.\n\nExit codes: 0 good, 10 a row was changed, added or moved, 11 rows are missing, 12 the end is missing, 5 the file cannot be read.",
        after_help = "Examples:\n  switchyard audit verify\n  switchyard --data-dir /var/lib/switchyard audit verify --checkpoints /mnt/worm/switchyard --json\n  switchyard audit verify --export ledger.jsonl --ledger-key ledger.key"
    )]
    Verify(verify::Args),
    /// Remove the oldest calls for good
    #[command(
        long_about = "Removes what was put on record before TIME and gives the space back, as retention does by itself. The ledger says up to where and by whom, and still verifies.",
        after_help = "Examples:\n  switchyard audit purge --before 30d\n  switchyard audit purge --before 2026-11-01 --yes"
    )]
    Purge(upkeep::Purge),
    /// Erase arguments and results of a caller or a call for good
    #[command(
        long_about = "Erases arguments and results from all files in the data folder; that the calls were made stays on record, with the text of their errors. The ledger says whose payloads were erased and by whom, and still verifies. Backups and exports elsewhere are not touched. Damaged databases that were moved away, and what lies beside the spool, are not looked into: they are named, and the exit code is 1 as long as there are any.",
        after_help = "Examples:\n  switchyard audit erase --caller laptop\n  switchyard audit erase --call 0193a5c0-7a1e-7cc3-98c4-dc0c0c07398f --yes"
    )]
    Erase(upkeep::Erase),
}

/// Which calls are meant.
#[derive(Debug, Default, Clone, PartialEq, Eq, clap::Args)]
struct Filter {
    /// Only calls to this server
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Only calls of this tool
    #[arg(long, value_name = "NAME")]
    tool: Option<String>,
    /// Only calls that ended so
    #[arg(long, value_parser = outcome)]
    outcome: Option<Outcome>,
    /// Only this caller's calls
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,
    /// Only calls of this session
    #[arg(long, value_name = "HASH")]
    session: Option<String>,
    /// Only calls that failed with this code
    #[arg(long, value_name = "CODE")]
    error_code: Option<String>,
    /// Only calls that came in at this view
    #[arg(long, value_name = "NAME")]
    view: Option<String>,
    /// Only calls of this trace: 32 hexadecimal digits
    #[arg(long, value_name = "ID", value_parser = trace_id)]
    trace: Option<TraceId>,
    /// Only calls that began then or later
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only calls that began before
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only calls with these words, "a phrase" or a prefix* in error, arguments or result
    #[arg(long)]
    text: Option<String>,
}

/// Larger limits are fetched in pages of this.
const PAGE: usize = 500;
/// Below this width a time does without year and milliseconds.
const NARROW: usize = 110;

fn list_limit(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|limit| *limit > 0).ok_or_else(|| "not a number from 1 on".to_owned())
}

fn is_narrow(out: &Output) -> bool {
    out.width.is_some_and(|width| width < NARROW)
}

fn outcome(text: &str) -> Result<Outcome, String> {
    Outcome::parse(text).ok_or_else(|| {
        let known: Vec<&str> = Outcome::ALL.into_iter().map(Outcome::as_str).collect();
        format!("`{text}` is not an outcome; there are {}", known.join(", "))
    })
}

fn trace_id(text: &str) -> Result<TraceId, String> {
    TraceId::parse(&text.to_ascii_lowercase())
        .ok_or_else(|| "not the id of a trace, which is 32 hexadecimal digits".to_owned())
}

fn call_id(text: &str) -> Result<CallId, String> {
    CallId::parse(text)
        .ok_or_else(|| "not the id of a call; `switchyard audit list --ids` shows them".to_owned())
}

impl Filter {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A request for `path` with this filter. Times are made absolute here: an hour ago stays the
    /// same hour in all requests that are made of it.
    fn ask(&self, path: &[&str]) -> Result<Ask, CliError> {
        Ok(self
            .spanned(Ask::get(path))?
            .with("server", self.server.as_deref())
            .with("tool", self.tool.as_deref())
            .with("outcome", self.outcome.map(Outcome::as_str))
            .with("caller", self.caller.as_deref())
            .with("session", self.session.as_deref())
            .with("error_code", self.error_code.as_deref())
            .with("view", self.view.as_deref())
            .with("trace", self.trace.map(|trace| trace.to_string()))
            .with("text", self.text.as_deref()))
    }

    /// A request with the span of time alone.
    fn spanned(&self, ask: Ask) -> Result<Ask, CliError> {
        let now = clock::timestamp();
        let zone = when::zone();
        let (since, until) = when::span(self.since.as_deref(), self.until.as_deref(), now, &zone)?;
        Ok(ask.with("since", since).with("until", until))
    }
}

#[derive(Deserialize)]
struct Page {
    calls: Vec<Box<RawValue>>,
    #[serde(default)]
    next_cursor: Option<String>,
}

/// A ledger entry as far as a line shows it.
#[derive(Deserialize)]
struct Call {
    id: String,
    #[serde(default, deserialize_with = "when::from_api")]
    started_at: Option<Timestamp>,
    #[serde(default)]
    caller: Option<String>,
    #[serde(default)]
    tool: Option<String>,
    #[serde(default)]
    outcome: String,
    #[serde(default)]
    error_code: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    attempts: Option<u64>,
    #[serde(default)]
    duration_ms: Option<f64>,
}

impl Call {
    fn read(json: &str) -> Result<Self, CliError> {
        serde_json::from_str(json).map_err(|error| unreadable(&error))
    }

    fn style(&self) -> Style {
        outcome_style(&self.outcome)
    }

    fn reason(&self) -> &str {
        let reason = self.error.as_deref().map(text::first_line).filter(|line| !line.is_empty());
        reason.or(self.error_code.as_deref()).unwrap_or_default()
    }

    /// How many attempts it took, where that was more than the usual one.
    fn tries(&self) -> Option<u64> {
        self.attempts.filter(|attempts| *attempts > 1)
    }

    fn duration(&self) -> String {
        self.duration_ms.map_or_else(String::new, when::milliseconds)
    }

    fn time(&self, zone: &TimeZone, narrow: bool) -> String {
        let show = if narrow { when::local_short } else { when::local_precise };
        self.started_at.map_or_else(String::new, |at| show(at, zone))
    }
}

fn outcome_style(outcome: &str) -> Style {
    match Outcome::parse(outcome) {
        Some(Outcome::Ok) => Style::Good,
        Some(Outcome::ToolError | Outcome::Refused | Outcome::Cancelled) => Style::Warn,
        Some(
            Outcome::RpcError | Outcome::Timeout | Outcome::Unavailable | Outcome::Interrupted,
        ) => Style::Bad,
        None => Style::Plain,
    }
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    match args.action.unwrap_or_else(|| Action::List(list::Args::default())) {
        Action::List(args) => list::list(context, args).await,
        Action::Show { id } => show::show(context, &id.to_string()).await,
        Action::Stats(args) => stats::run(context, args).await,
        Action::Tail(args) => tail::tail(context, args).await,
        Action::Events(args) => events::run(context, args).await,
        Action::Export(args) => export::export(context, args).await,
        Action::Replay(args) => Box::pin(replay::run(context, args)).await,
        Action::Verify(args) => verify::run(context, args).await,
        Action::Purge(args) => upkeep::purge(context, args).await,
        Action::Erase(args) => upkeep::erase(context, args).await,
    }
}

/// The newest `limit` calls, newest first, and the cursor behind them.
async fn newest(
    client: &Client,
    filter: &Filter,
    limit: usize,
) -> Result<(Vec<Box<RawValue>>, Option<String>), CliError> {
    let ask = filter.ask(&["mcp", "audit"])?;
    let mut calls = Vec::new();
    let mut cursor: Option<String> = None;
    while calls.len() < limit {
        let page = (limit - calls.len()).min(PAGE);
        let ask = ask.clone().with("limit", Some(page.to_string())).with("cursor", cursor.take());
        let page: Page = client.request(ask).await?.parse()?;
        calls.extend(page.calls);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    Ok((calls, cursor))
}

fn unreadable(error: &serde_json::Error) -> CliError {
    let (route, reason) = ("/mcp/audit".to_owned(), error.to_string());
    CliError::Client(ClientError::Unreadable { route, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(json: &str) -> Call {
        Call::read(json).unwrap()
    }

    #[test]
    fn the_reason_is_one_line() {
        let entry = call(r#"{"id":"1","error":"\n refused \nmore","error_code":"MCPToolError"}"#);
        assert_eq!(entry.reason(), "refused");
        let entry = call(r#"{"id":"1","error_code":"MCPToolError"}"#);
        assert_eq!(entry.reason(), "MCPToolError");
    }

    #[test]
    fn an_unknown_outcome_is_refused_with_the_known_ones() {
        assert_eq!(outcome("timeout"), Ok(Outcome::Timeout));
        assert!(outcome("time-out").unwrap_err().contains("timeout"));
    }

    #[test]
    fn what_no_call_can_answer_is_a_mistake_in_usage() {
        use clap::Parser as _;
        let refused = |words: &[&str]| {
            let words = ["switchyard", "audit"].iter().chain(words);
            let error = super::super::Cli::try_parse_from(words).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert!(refused(&["show", "nope"]).contains("audit list --ids"));
        for limit in ["0", "-1", "many", ""] {
            refused(&["list", "--limit", limit]);
        }
        refused(&["export", "--format", "xml"]);
        let id = "0193a5c0-7a1e-7cc3-98c4-dc0c0c07398f";
        for words in [
            ["show", id].as_slice(),
            &["list", "--limit", "1"],
            &["tail", "--limit", "0"],
            &["tail", "-f", "-n", "5", "--text", "x"],
            &["export", "--format", "csv", "--out", "x.csv", "--since", "1h"],
        ] {
            let words = ["switchyard", "audit"].iter().chain(words);
            assert!(super::super::Cli::try_parse_from(words).is_ok());
        }
    }
}
