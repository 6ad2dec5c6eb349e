//! `switchyard audit`: reads the ledger.
//!
//! Changes when a ledger entry shows something else, or can be asked for differently.

mod replay;
mod show;
mod verify;

use std::collections::HashSet;

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::client::{Ask, Client};
use super::output::Output;
use super::table::{Cell, Style, Table};
use super::{CliError, Context, Status, text, when};
use crate::clock;
use crate::model::{CallId, Outcome, Timestamp};

/// Arguments of `audit`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Reads the ledger: one entry per call, also refused and failed ones.",
    after_help = "Examples:\n  switchyard audit\n  switchyard audit list --server github --outcome timeout --since 1h\n  switchyard audit tail"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List calls, the newest last
    #[command(
        after_help = "Examples:\n  switchyard audit list --server github --outcome timeout --since 1h\n  switchyard audit list --since 2026-11-24 --until '2026-11-24 12:00' --limit 1000\n  switchyard audit list --caller laptop --text 'connection refused' --json\n\nTimes: how long ago (90s, 15m, 1h, 7d), a date, a local time, or RFC 3339."
    )]
    List(List),
    /// Show everything about one call
    #[command(
        after_help = "Examples:\n  switchyard audit show 0193a5c0-7a1e-7cc3-98c4-dc0c0c07398f"
    )]
    Show {
        /// The call's id: `request_id` of its answer, header x-request-id
        #[arg(value_parser = call_id)]
        id: CallId,
    },
    /// Show calls as they end; Ctrl-C stops
    #[command(
        after_help = "Examples:\n  switchyard audit tail\n  switchyard audit tail --server github --limit 0\n  switchyard audit tail --json | jq -c 'select(.outcome != \"ok\")'"
    )]
    Tail(Tail),
    /// Make recorded calls of read-only tools again, and compare the answers
    #[command(
        long_about = "Makes recorded calls again, at the servers that run or at those of a candidate configuration, and compares outcome, shape of the result and time. Only calls of tools that are declared read-only (readOnlyHint), by both, and whose arguments the ledger kept whole: nothing else is ever sent. A result is compared as far as it was kept: with `results: full` by its names and types, with `summary` by its kinds of content.\n\nExit code 1 when an answer differs.",
        after_help = "Examples:\n  switchyard audit replay --since 1d --tool docs__search --dry-run\n  switchyard audit replay --since 1h --candidate next.yaml\n  switchyard audit replay --server docs --json | jq '.calls[] | select(.same_outcome | not)'"
    )]
    Replay(replay::Args),
    /// Verify that the ledger is what was written
    #[command(
        long_about = "Reads the ledger's file and its key in the data folder, also beside a router that runs, and checks each row against the chain, what is kept of payloads, and signed checkpoints.\n\nExit codes: 0 good, 10 a row was changed, added or moved, 11 rows are missing, 12 the end is missing, 5 the file cannot be read.",
        after_help = "Examples:\n  switchyard audit verify\n  switchyard --data-dir /var/lib/switchyard audit verify --checkpoints /mnt/worm/switchyard --json"
    )]
    Verify(verify::Args),
}

#[derive(Debug, Default, Clone, clap::Args)]
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
    /// Only calls that came in at this view
    #[arg(long, value_name = "NAME")]
    view: Option<String>,
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    filter: Filter,
    /// Only calls that began then or later
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only calls that began before
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only calls whose arguments or error have this text
    #[arg(long)]
    text: Option<String>,
    /// At most so many, the newest
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, value_parser = list_limit)]
    limit: usize,
    /// Show the calls' ids whatever the terminal's width
    #[arg(long)]
    ids: bool,
}

#[derive(Debug, clap::Args)]
struct Tail {
    #[command(flatten)]
    filter: Filter,
    /// Begin with so many earlier calls
    #[arg(long, value_name = "N", default_value_t = 10)]
    limit: usize,
}

const DEFAULT_LIMIT: usize = 50;
/// Larger limits are fetched in pages of this.
const PAGE: usize = 500;
/// From this width on there is room for ids.
const WIDE: usize = 140;
/// Below this width a time does without year and milliseconds.
const NARROW: usize = 110;

fn is_narrow(out: &Output) -> bool {
    out.width.is_some_and(|width| width < NARROW)
}

fn outcome(text: &str) -> Result<Outcome, String> {
    Outcome::parse(text).ok_or_else(|| {
        let known: Vec<&str> = Outcome::ALL.into_iter().map(Outcome::as_str).collect();
        format!("`{text}` is not an outcome; there are {}", known.join(", "))
    })
}

fn call_id(text: &str) -> Result<CallId, String> {
    CallId::parse(text)
        .ok_or_else(|| "not the id of a call; `switchyard audit list --ids` shows them".to_owned())
}

fn list_limit(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|limit| *limit > 0).ok_or_else(|| "not a number from 1 on".to_owned())
}

impl Default for List {
    fn default() -> Self {
        Self {
            filter: Filter::default(),
            since: None,
            until: None,
            text: None,
            limit: DEFAULT_LIMIT,
            ids: false,
        }
    }
}

impl Filter {
    fn apply(&self, ask: Ask) -> Ask {
        ask.with("server", self.server.as_deref())
            .with("tool", self.tool.as_deref())
            .with("outcome", self.outcome.map(Outcome::as_str))
            .with("caller", self.caller.as_deref())
            .with("session", self.session.as_deref())
            .with("view", self.view.as_deref())
    }

    /// Whether a call of the stream is wanted: the stream may carry more than was asked for.
    fn admits(&self, call: &Call) -> bool {
        fn fits(wanted: Option<&str>, has: Option<&str>) -> bool {
            wanted.is_none() || wanted == has
        }
        fits(self.server.as_deref(), call.server.as_deref())
            && (fits(self.tool.as_deref(), call.tool.as_deref())
                || fits(self.tool.as_deref(), call.upstream_tool.as_deref()))
            && fits(self.outcome.map(Outcome::as_str), Some(&call.outcome))
            && fits(self.caller.as_deref(), call.caller.as_deref())
            && fits(self.session.as_deref(), call.session.as_deref())
            && fits(self.view.as_deref(), call.view.as_deref())
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
    session: Option<String>,
    #[serde(default)]
    view: Option<String>,
    #[serde(default)]
    tool: Option<String>,
    #[serde(default)]
    upstream_tool: Option<String>,
    #[serde(default)]
    server: Option<String>,
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
    fn style(&self) -> Style {
        outcome_style(&self.outcome)
    }

    fn reason(&self) -> &str {
        let reason = self.error.as_deref().map(text::first_line).filter(|line| !line.is_empty());
        reason.or(self.error_code.as_deref()).unwrap_or_default()
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
    match args.action.unwrap_or_else(|| Action::List(List::default())) {
        Action::List(filter) => list(context, filter).await,
        Action::Show { id } => show::show(context, &id.to_string()).await,
        Action::Tail(tail) => follow(context, tail).await,
        Action::Replay(args) => Box::pin(replay::run(context, args)).await,
        Action::Verify(args) => verify::run(context, args).await,
    }
}

/// The newest `limit` calls, newest first, and the cursor behind them.
async fn newest(
    client: &Client,
    filter: &List,
) -> Result<(Vec<Box<RawValue>>, Option<String>), CliError> {
    let now = clock::timestamp();
    let zone = when::zone();
    let time = |text: &Option<String>| {
        let at = text.as_deref().map(|text| when::parse(text, now, &zone)).transpose();
        at.map(|at| at.map(|at| at.to_string()))
    };
    let (since, until) = (time(&filter.since)?, time(&filter.until)?);
    let mut calls = Vec::new();
    let mut cursor: Option<String> = None;
    while calls.len() < filter.limit {
        let page = (filter.limit - calls.len()).min(PAGE);
        let ask = filter
            .filter
            .apply(Ask::get(&["mcp", "audit"]))
            .with("since", since.clone())
            .with("until", until.clone())
            .with("text", filter.text.as_deref())
            .with("limit", Some(page.to_string()))
            .with("cursor", cursor.take());
        let page: Page = client.request(ask).await?.parse()?;
        let ended = page.calls.is_empty();
        calls.extend(page.calls);
        cursor = page.next_cursor;
        if ended || cursor.is_none() {
            break;
        }
    }
    Ok((calls, cursor))
}

async fn list(context: &Context, filter: List) -> Result<Status, CliError> {
    let client = context.client()?;
    let (calls, cursor) = newest(&client, &filter).await?;
    let out = &context.out;
    if out.is_json() {
        let calls: Vec<&str> = calls.iter().map(|call| call.get()).collect();
        let cursor = Value::from(cursor);
        out.json(&format!("{{\"calls\":[{}],\"next_cursor\":{cursor}}}", calls.join(",")))?;
        return Ok(Status::Done);
    }
    if calls.is_empty() {
        out.line("no calls match")?;
        return Ok(Status::Done);
    }
    let zone = when::zone();
    let with_ids = filter.ids || out.width.is_none_or(|width| width >= WIDE);
    let mut table = Table::new().whole("TIME");
    if with_ids {
        table = table.whole("ID");
    }
    let mut table = table
        .cut("CALLER")
        .cut("TOOL")
        .whole("OUTCOME")
        .number("DURATION")
        .number("TRIES")
        .cut("ERROR");
    // The newest last, as in any log: next to where the reader is.
    for call in calls.iter().rev() {
        let call: Call = serde_json::from_str(call.get()).map_err(|error| unreadable(&error))?;
        let mut cells = vec![time(&call, &zone, is_narrow(out)).into()];
        if with_ids {
            cells.push(Cell::new(&call.id, Style::Dim));
        }
        cells.extend([
            call.caller.as_deref().unwrap_or_default().into(),
            call.tool.as_deref().unwrap_or_default().into(),
            Cell::new(&call.outcome, call.style()),
            call.duration_ms.map_or_else(String::new, when::milliseconds).into(),
            call.attempts.map_or_else(String::new, |tries| tries.to_string()).into(),
            call.reason().into(),
        ]);
        table.row(cells);
    }
    out.table(&table)?;
    Ok(Status::Done)
}

fn time(call: &Call, zone: &TimeZone, narrow: bool) -> String {
    let show = if narrow { when::local_short } else { when::local_precise };
    call.started_at.map_or_else(String::new, |at| show(at, zone))
}

fn unreadable(error: &serde_json::Error) -> CliError {
    let (route, reason) = ("/mcp/audit".to_owned(), error.to_string());
    CliError::Client(super::client::ClientError::Unreadable { route, reason })
}

async fn follow(context: &Context, tail: Tail) -> Result<Status, CliError> {
    let client = context.client()?;
    let out = &context.out;
    // The stream is opened before the past is read, so that no call falls between the two.
    let ask = tail.filter.apply(Ask::get(&["mcp", "audit", "tail"]));
    let mut events = client.events(ask).await?;
    let past = List { filter: tail.filter.clone(), limit: tail.limit, ..List::default() };
    let (calls, _) = newest(&client, &past).await?;
    let zone = when::zone();
    let mut shown = HashSet::new();
    for call in calls.iter().rev() {
        shown.extend(print(out, call.get(), &tail.filter, &zone)?);
    }
    loop {
        let event = events.next().await?;
        let id = serde_json::from_str::<Value>(&event)
            .ok()
            .and_then(|call| call.get("id").and_then(Value::as_str).map(str::to_owned));
        // Only the overlap of past and stream can come twice.
        if !shown.is_empty() && id.is_some_and(|id| shown.remove(&id)) {
            continue;
        }
        print(out, &event, &tail.filter, &zone)?;
    }
}

/// Writes a line for a call; gives its id.
fn print(
    out: &Output,
    json: &str,
    filter: &Filter,
    zone: &TimeZone,
) -> Result<Option<String>, CliError> {
    let call: Call = serde_json::from_str(json).map_err(|error| unreadable(&error))?;
    if !filter.admits(&call) {
        return Ok(None);
    }
    if out.is_json() {
        out.json(json)?;
        return Ok(Some(call.id));
    }
    let tries = call.attempts.filter(|tries| *tries > 1);
    let tries = tries.map_or_else(String::new, |tries| format!(" {tries} tries"));
    let duration = call.duration_ms.map_or_else(String::new, when::milliseconds);
    let outcome = format!("{:<11}", call.outcome);
    let narrow = is_narrow(out);
    let tool_width = if narrow { 20 } else { 32 };
    let head = format!(
        "{}  {:<12}  {:<tool_width$}",
        time(&call, zone, narrow),
        text::escape_line(call.caller.as_deref().unwrap_or("-")),
        text::escape_line(call.tool.as_deref().unwrap_or("-")),
    );
    let end = format!("{duration:>8}{tries}  {}", text::escape_line(call.reason()));
    let room = out.width.map(|width| width.saturating_sub(text::width(&head) + 15));
    let end = room.map_or_else(|| end.clone(), |room| text::cut(&end, room.max(16)).into_owned());
    out.line(format!("{head}  {}  {}", out.paint(outcome, call.style()), end.trim_end()))?;
    Ok(Some(call.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(json: &str) -> Call {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_filter_holds_on_the_stream_too() {
        let entry = call(
            r#"{"id":"1","tool":"gh__get","upstream_tool":"get","server":"gh","outcome":"ok","caller":"me"}"#,
        );
        let admits = |filter: Filter| filter.admits(&entry);
        assert!(admits(Filter::default()));
        assert!(admits(Filter { server: Some("gh".into()), ..Filter::default() }));
        assert!(admits(Filter { tool: Some("get".into()), ..Filter::default() }));
        assert!(admits(Filter { tool: Some("gh__get".into()), ..Filter::default() }));
        assert!(!admits(Filter { tool: Some("put".into()), ..Filter::default() }));
        assert!(!admits(Filter { outcome: Some(Outcome::Timeout), ..Filter::default() }));
        assert!(!admits(Filter { session: Some("abc".into()), ..Filter::default() }));
        assert!(!admits(Filter { view: Some("support".into()), ..Filter::default() }));
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
        let id = "0193a5c0-7a1e-7cc3-98c4-dc0c0c07398f";
        for words in [["show", id].as_slice(), &["list", "--limit", "1"], &["tail", "--limit", "0"]]
        {
            let words = ["switchyard", "audit"].iter().chain(words);
            assert!(super::super::Cli::try_parse_from(words).is_ok());
        }
    }
}
