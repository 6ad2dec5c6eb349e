//! `switchyard breakers`: the circuit breakers of the servers, and an operator's word on them.
//!
//! Changes when a breaker can be told or asked something else. How one is shown is `show`'s.

mod show;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub(super) use self::show::{Breaker, style};
use self::show::{Transition, log, named};
use super::client::{Ask, Client, ClientError};
use super::table::{Cell, Table};
use super::{CliError, Context, Status, notice, text, when};
use crate::model::parse_duration;

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

#[derive(Deserialize)]
struct Page {
    transitions: Vec<Box<RawValue>>,
    #[serde(default)]
    next_before: Option<i64>,
}

#[derive(Serialize)]
struct Words<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<&'a str>,
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
    use clap::Parser as _;

    fn parse(words: &[&str]) -> Result<Action, clap::Error> {
        let words = ["switchyard", "breakers"].iter().chain(words);
        match super::super::Cli::try_parse_from(words)?.command {
            Some(super::super::Command::Breakers(Args { action: Some(action) })) => Ok(action),
            other => panic!("{other:?}"),
        }
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
