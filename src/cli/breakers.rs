//! `switchyard breakers`: the circuit breakers of the servers, and an operator's word on them.
//!
//! Changes when a breaker shows something else or can be told something else.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::client::{Ask, Client, ClientError};
use super::output::Output;
use super::table::{Cell, Style, Table};
use super::{CliError, Context, Status, notice, text, when};
use crate::model::{BreakerState, Timestamp, format_duration, parse_duration};

/// Arguments of `breakers`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Shows the circuit breakers of the servers and how they came to their states, and takes an operator's word: open refuses all calls to a server, close lets all through, reset begins anew.",
    after_help = "Examples:\n  switchyard breakers\n  switchyard breakers history github\n  switchyard breakers open github --reason 'maintenance until noon' --for 2h\n  switchyard breakers reset github"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List breakers with their state
    #[command(
        after_help = "Examples:\n  switchyard breakers list\n  switchyard breakers list --json"
    )]
    List,
    /// Show how breakers came to their states, the newest last
    #[command(
        after_help = "Examples:\n  switchyard breakers history\n  switchyard breakers history github --limit 500\n  switchyard breakers history github --json\n\nIt is kept over restarts, and also of servers that were removed."
    )]
    History(History),
    /// Let a breaker begin anew, closed; also ends what open or close said
    #[command(
        after_help = "Examples:\n  switchyard breakers reset github\n  switchyard breakers reset github --reason 'the proxy is mended'"
    )]
    Reset {
        #[command(flatten)]
        which: Which,
        /// Why, for the history
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Refuse all calls to a server, until the time is over or the breaker is reset
    #[command(
        after_help = "Examples:\n  switchyard breakers open github --reason 'maintenance' --for 10m\n  switchyard breakers open github --reason 'do not touch before we have looked'\n\nThose whose calls are refused are told the reason."
    )]
    Open {
        #[command(flatten)]
        which: Which,
        /// Why, for the history and for those whose calls are refused
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// How long, as in 10m [default: until reset]
        #[arg(long = "for", value_name = "DURATION")]
        during: Option<String>,
    },
    /// Let all calls to a server through whatever fails, until the time is over or it is reset
    #[command(
        after_help = "Examples:\n  switchyard breakers close github --for 10m\n  switchyard breakers close github --reason 'its errors are known and harmless'"
    )]
    Close {
        #[command(flatten)]
        which: Which,
        /// Why, for the history
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// How long, as in 10m [default: until reset]
        #[arg(long = "for", value_name = "DURATION")]
        during: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The server's name
    name: String,
    /// The breaker of this tool, where tools have their own (breaker_scope: tool)
    #[arg(long, value_name = "TOOL")]
    tool: Option<String>,
}

#[derive(Debug, clap::Args)]
struct History {
    /// Only this server's
    name: Option<String>,
    /// Only of this tool's breaker
    #[arg(long, value_name = "TOOL", requires = "name")]
    tool: Option<String>,
    /// At most so many, the newest
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = limit)]
    limit: usize,
}

/// Larger limits are fetched in pages of this.
const PAGE: usize = 500;

fn limit(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|limit| *limit > 0).ok_or_else(|| "not a number from 1 on".to_owned())
}

#[derive(Deserialize)]
struct BreakerList {
    circuit_breakers: Vec<Breaker>,
}

/// A breaker as the API shows it.
#[derive(Debug, Deserialize)]
pub(super) struct Breaker {
    server: String,
    #[serde(default)]
    tool: Option<String>,
    state: String,
    #[serde(default)]
    failures: u32,
    #[serde(default)]
    threshold: u32,
    #[serde(default)]
    trips: u32,
    #[serde(default, deserialize_with = "when::from_api")]
    open_until: Option<Timestamp>,
    #[serde(default)]
    probing: u32,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    last_error: Option<String>,
    #[serde(default, deserialize_with = "when::from_api")]
    last_error_at: Option<Timestamp>,
    #[serde(default)]
    forced: Option<Forced>,
}

#[derive(Debug, Default, Deserialize)]
struct Forced {
    #[serde(default)]
    by: Option<String>,
    #[serde(default)]
    note: Option<String>,
    #[serde(default, deserialize_with = "when::from_api")]
    until: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Page {
    transitions: Vec<Box<RawValue>>,
    #[serde(default)]
    next_before: Option<i64>,
}

#[derive(Deserialize)]
struct Transition {
    #[serde(default, deserialize_with = "when::from_api")]
    at: Option<Timestamp>,
    server: String,
    #[serde(default)]
    tool: Option<String>,
    from: String,
    to: String,
    reason: String,
    #[serde(default)]
    failures: u32,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    actor: Option<String>,
    #[serde(default)]
    note: Option<String>,
    #[serde(default)]
    open_for_ms: Option<u64>,
}

#[derive(Serialize)]
struct Words<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<&'a str>,
}

/// How a state stands out.
pub(super) fn style(state: &str) -> Style {
    match BreakerState::parse(state) {
        Some(BreakerState::Closed) => Style::Good,
        Some(BreakerState::Open) => Style::Bad,
        Some(BreakerState::HalfOpen | BreakerState::ForcedOpen | BreakerState::ForcedClosed) => {
            Style::Warn
        }
        None => Style::Plain,
    }
}

fn named(server: &str, tool: Option<&str>) -> String {
    tool.map_or_else(|| server.to_owned(), |tool| format!("{server}/{tool}"))
}

impl Breaker {
    fn until(&self, zone: &TimeZone) -> String {
        let until = self.forced.as_ref().map_or(self.open_until, |forced| forced.until);
        match (until, BreakerState::parse(&self.state)) {
            (Some(at), _) => when::local(at, zone),
            (None, Some(BreakerState::ForcedOpen | BreakerState::ForcedClosed)) => {
                "reset".to_owned()
            }
            (None, Some(BreakerState::Open)) => "the next call".to_owned(),
            (None, _) => String::new(),
        }
    }

    fn why(&self) -> String {
        let mut why = self.reason.clone().unwrap_or_default();
        if let Some(Forced { by, note, .. }) = &self.forced {
            if let Some(by) = by {
                why += &format!(" by {by}");
            }
            if let Some(note) = note {
                why += &format!(": {note}");
            }
        }
        why
    }

    /// All of it in a sentence, for the breaker's line among a server's properties.
    pub(super) fn sentence(&self, zone: &TimeZone) -> String {
        let until = self.until(zone);
        let mut said = self.tool.as_ref().map(|tool| format!("{tool}: ")).unwrap_or_default();
        said += &self.state;
        if !until.is_empty() {
            said += &format!(" until {until}");
        }
        if self.reason.is_some() && self.state != BreakerState::Closed.as_str() {
            said += &format!(" ({})", self.why());
        }
        if self.probing > 0 {
            said += &format!(", {} under way", text::count(self.probing as usize, "probe"));
        }
        if self.failures > 0 {
            said += &format!(", {} of {} failures in a row", self.failures, self.threshold);
        }
        if let Some(error) = self.last_error.as_ref().filter(|_| self.failures > 0) {
            said += &format!("; last failure: {error}");
            if let Some(at) = self.last_error_at {
                said += &format!(" (at {})", when::local(at, zone));
            }
        }
        said
    }

    /// Whether a server's properties are incomplete without it.
    pub(super) fn is_worth_a_line(&self) -> bool {
        self.tool.is_none() || self.failures > 0 || self.state != BreakerState::Closed.as_str()
    }
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    match args.action.unwrap_or(Action::List) {
        Action::List => list(context).await,
        Action::History(asked) => history(context, asked).await,
        Action::Reset { which, reason } => {
            command(context, "reset", &which, reason.as_deref(), None).await
        }
        Action::Open { which, reason, during } => {
            command(context, "open", &which, Some(&reason), during.as_deref()).await
        }
        Action::Close { which, reason, during } => {
            command(context, "close", &which, reason.as_deref(), during.as_deref()).await
        }
    }
}

async fn list(context: &Context) -> Result<Status, CliError> {
    let client = context.client()?;
    let answer = client.request(Ask::get(&["mcp", "circuit-breakers"])).await?;
    let out = &context.out;
    if out.is_json() {
        out.json(answer.text()?)?;
        return Ok(Status::Done);
    }
    let BreakerList { circuit_breakers } = answer.parse()?;
    if circuit_breakers.is_empty() {
        out.line("no breakers yet: each server has one; see `switchyard servers`")?;
        return Ok(Status::Done);
    }
    let zone = when::zone();
    let mut table = Table::new()
        .whole("NAME")
        .whole("STATE")
        .number("FAILURES")
        .number("TRIPS")
        .whole("UNTIL")
        .cut("WHY")
        .cut("LAST ERROR");
    for breaker in &circuit_breakers {
        table.row([
            named(&breaker.server, breaker.tool.as_deref()).into(),
            Cell::new(&breaker.state, style(&breaker.state)),
            format!("{}/{}", breaker.failures, breaker.threshold).into(),
            breaker.trips.to_string().into(),
            breaker.until(&zone).into(),
            breaker.why().into(),
            text::first_line(breaker.last_error.as_deref().unwrap_or_default()).into(),
        ]);
    }
    out.table(&table)?;
    Ok(Status::Done)
}

/// The newest transitions, newest first, and where older ones begin.
async fn newest(
    client: &Client,
    asked: &History,
) -> Result<(Vec<Box<RawValue>>, Option<i64>), CliError> {
    let mut path = vec!["mcp", "circuit-breakers"];
    path.extend(asked.name.as_deref());
    path.push("history");
    let (mut transitions, mut before) = (Vec::new(), None);
    loop {
        let page = (asked.limit - transitions.len()).min(PAGE);
        let ask = Ask::get(&path)
            .with("tool", asked.tool.as_deref())
            .with("limit", Some(page.to_string()))
            .with("before", before.map(|id: i64| id.to_string()));
        let page: Page = client.request(ask).await?.parse()?;
        let ended = page.transitions.is_empty();
        transitions.extend(page.transitions);
        before = page.next_before;
        if ended || before.is_none() || transitions.len() >= asked.limit {
            return Ok((transitions, before));
        }
    }
}

async fn history(context: &Context, asked: History) -> Result<Status, CliError> {
    let client = context.client()?;
    let (transitions, before) = newest(&client, &asked).await?;
    let out = &context.out;
    if out.is_json() {
        let transitions: Vec<&str> = transitions.iter().map(|one| one.get()).collect();
        let before = serde_json::Value::from(before);
        out.json(&format!(
            "{{\"transitions\":[{}],\"next_before\":{before}}}",
            transitions.join(",")
        ))?;
        return Ok(Status::Done);
    }
    if transitions.is_empty() {
        out.line("no breaker changed its state yet")?;
        return Ok(Status::Done);
    }
    // The newest last, as in any log: next to where the reader is.
    let read = transitions.iter().rev().map(|raw| serde_json::from_str(raw.get()));
    let read = read.collect::<Result<Vec<Transition>, _>>().map_err(|error| {
        let route = "GET /mcp/circuit-breakers/history".to_owned();
        ClientError::Unreadable { route, reason: error.to_string() }
    })?;
    out.write(&log(out, &read, &when::zone()))?;
    if before.is_some() {
        notice(format!("there are older ones; see them with --limit {}", asked.limit * 4));
    }
    Ok(Status::Done)
}

/// Lines as in a log: the failure stands whole, so nothing is cut to the terminal's width.
fn log(out: &Output, transitions: &[Transition], zone: &TimeZone) -> String {
    let name =
        |one: &Transition| text::escape_line(&named(&one.server, one.tool.as_deref())).into_owned();
    let step = |one: &Transition| format!("{} → {}", one.from, one.to);
    let widest = |of: &dyn Fn(&Transition) -> String| {
        transitions.iter().map(|one| text::width(&of(one))).max().unwrap_or_default()
    };
    let (names, steps) = (widest(&name), widest(&step));
    let pad = |text: &str, to: usize| " ".repeat(to.saturating_sub(text::width(text)));
    let mut lines = String::new();
    for one in transitions {
        let at = one.at.map_or_else(String::new, |at| when::local_precise(at, zone));
        let (name, step) = (name(one), step(one));
        lines += &format!("{at}  {name}{}  ", pad(&name, names));
        lines += &out.paint(&step, style(&one.to));
        lines += &format!("{}  {}\n", pad(&step, steps), text::escape_line(&told(one)));
    }
    lines
}

/// Why, by whom, for how long, and what failed.
fn told(one: &Transition) -> String {
    let mut told = one.reason.clone();
    if one.failures > 0 {
        told += &format!(" ({} in a row)", one.failures);
    }
    if let Some(actor) = &one.actor {
        told += &format!(" by {actor}");
    }
    if let Some(millis) = one.open_for_ms {
        told += &format!(", for {}", format_duration(Duration::from_millis(millis)));
    }
    if let Some(cause) = one.error.as_ref().or(one.note.as_ref()) {
        told += &format!(": {cause}");
    }
    told
}

async fn command(
    context: &Context,
    verb: &str,
    which: &Which,
    reason: Option<&str>,
    during: Option<&str>,
) -> Result<Status, CliError> {
    // Refused here, where a wrong word is a wrong command line.
    during.map(parse_duration).transpose()?;
    let body = serde_json::to_vec(&Words { reason, duration: during }).unwrap_or_default();
    let ask = Ask::post(&["mcp", "circuit-breakers", &which.name, verb])
        .with("tool", which.tool.as_deref())
        .json(body);
    let answer = context.client()?.request(ask).await?;
    let out = &context.out;
    if out.is_json() {
        out.json(answer.text()?)?;
        return Ok(Status::Done);
    }
    let breaker: Breaker = answer.parse()?;
    let name = named(&breaker.server, breaker.tool.as_deref());
    let until = match breaker.until(&when::zone()) {
        until if until.is_empty() => until,
        until => format!(" until {until}"),
    };
    let said = format!("the breaker of {name} is {}{until}", breaker.state);
    out.line(out.paint(said, style(&breaker.state)))?;
    Ok(Status::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Format;
    use clap::Parser as _;
    use jiff::tz::offset;

    fn out() -> Output {
        Output { format: Format::Human, terminal: false, colour: false, width: Some(40) }
    }

    fn parse(words: &[&str]) -> Result<Action, clap::Error> {
        let words = ["switchyard", "breakers"].iter().chain(words);
        match super::super::Cli::try_parse_from(words)?.command {
            Some(super::super::Command::Breakers(Args { action: Some(action) })) => Ok(action),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_history_reads_like_a_log() {
        let transitions: Vec<Transition> = serde_json::from_str(
            r#"[
            {"at":"2026-11-24T12:30:00.123Z","server":"steady","from":"closed","to":"open","reason":"failures",
             "failures":5,"error":"could not connect to 127.0.0.1:1: refused\u001b[2J","open_for_ms":30000},
            {"at":"2026-11-24T12:30:30.5Z","server":"a","tool":"echo","from":"open","to":"half_open","reason":"timer","failures":0},
            {"at":"2026-11-24T12:31:00Z","server":"steady","from":"half_open","to":"forced_open","reason":"forced",
             "actor":"laptop","note":"maintenance","open_for_ms":600000}
            ]"#,
        )
        .unwrap();
        let zone = TimeZone::fixed(offset(2));
        assert_eq!(
            log(&out(), &transitions, &zone),
            "2026-11-24 14:30:00.123  steady  closed → open            failures (5 in a row), for 30s: could not connect to 127.0.0.1:1: refused\\u{1b}[2J\n\
             2026-11-24 14:30:30.500  a/echo  open → half_open         timer\n\
             2026-11-24 14:31:00.000  steady  half_open → forced_open  forced by laptop, for 10m: maintenance\n"
        );
    }

    #[test]
    fn a_breaker_is_told_in_a_sentence() {
        let zone = TimeZone::fixed(offset(0));
        let told = |json: &str| serde_json::from_str::<Breaker>(json).unwrap().sentence(&zone);
        assert_eq!(told(r#"{"server":"s","state":"closed","reason":"reset"}"#), "closed");
        assert_eq!(
            told(
                r#"{"server":"s","state":"closed","failures":2,"threshold":5,"last_error":"refused",
                 "last_error_at":"2026-11-24T12:00:00Z"}"#
            ),
            "closed, 2 of 5 failures in a row; last failure: refused (at 2026-11-24 12:00:00)"
        );
        assert_eq!(
            told(
                r#"{"server":"s","state":"forced_open","reason":"forced",
                 "forced":{"by":"ops","note":"maintenance","until":"2026-11-24T12:00:00Z"}}"#
            ),
            "forced_open until 2026-11-24 12:00:00 (forced by ops: maintenance)"
        );
        assert_eq!(
            told(r#"{"server":"s","state":"open","reason":"probe_failed"}"#),
            "open until the next call (probe_failed)"
        );
        assert_eq!(
            told(
                r#"{"server":"s","tool":"echo","state":"half_open","reason":"timer","probing":1}"#
            ),
            "echo: half_open (timer), 1 probe under way"
        );
    }

    #[test]
    fn open_takes_a_reason_and_the_others_need_none() {
        assert!(parse(&["open", "s"]).is_err());
        let Action::Open { which, reason, during } =
            parse(&["open", "s", "--tool", "t", "--reason", "why", "--for", "10m"]).unwrap()
        else {
            panic!()
        };
        assert_eq!((which.name.as_str(), which.tool.as_deref()), ("s", Some("t")));
        assert_eq!((reason.as_str(), during.as_deref()), ("why", Some("10m")));
        assert!(matches!(parse(&["close", "s"]).unwrap(), Action::Close { reason: None, .. }));
        assert!(matches!(parse(&["reset", "s"]).unwrap(), Action::Reset { reason: None, .. }));
        assert!(parse(&["history", "--tool", "t"]).is_err(), "of which server?");
        assert!(parse(&["history", "--limit", "0"]).is_err());
    }
}
