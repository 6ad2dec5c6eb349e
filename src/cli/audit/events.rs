//! `switchyard audit events`: what the ledger has beside calls.
//!
//! Changes when the table shows something else, or events can be asked for differently.

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{PAGE, is_narrow, list_limit, unreadable};
use crate::cli::client::{Ask, Client};
use crate::cli::table::{Cell, Style, Table};
use crate::cli::{CliError, Context, Status, when};
use crate::clock;
use crate::model::Timestamp;

/// Arguments of `audit events`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only events of this kind, or of all that begin so: server.*
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Only what this caller did, or the router
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Only events about this, for example a server
    #[arg(long, value_name = "NAME")]
    subject: Option<String>,
    /// Only events from then or later
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only events from before
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// At most so many, the newest
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = list_limit)]
    limit: usize,
}

#[derive(Deserialize)]
struct Page {
    events: Vec<Box<RawValue>>,
    #[serde(default)]
    next_cursor: Option<String>,
}

/// An event as far as a line shows it.
#[derive(Deserialize)]
pub(super) struct Event {
    #[serde(default, deserialize_with = "when::from_api")]
    pub(super) at: Option<Timestamp>,
    pub(super) kind: String,
    #[serde(default)]
    pub(super) actor: String,
    #[serde(default)]
    pub(super) subject: String,
    #[serde(default)]
    pub(super) detail: Value,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    let client = context.client()?;
    let (now, zone) = (clock::timestamp(), when::zone());
    let (since, until) = when::span(args.since.as_deref(), args.until.as_deref(), now, &zone)?;
    let ask = Ask::get(&["mcp", "audit", "events"])
        .with("kind", args.kind.as_deref())
        .with("actor", args.actor.as_deref())
        .with("subject", args.subject.as_deref())
        .with("since", since)
        .with("until", until);
    let (events, cursor) = newest(&client, &ask, args.limit).await?;
    let out = &context.out;
    if out.is_json() {
        let events: Vec<&str> = events.iter().map(|event| event.get()).collect();
        let cursor = Value::from(cursor);
        out.json(&format!("{{\"events\":[{}],\"next_cursor\":{cursor}}}", events.join(",")))?;
        return Ok(Status::Done);
    }
    if events.is_empty() {
        out.line("no events match")?;
        return Ok(Status::Done);
    }
    // The newest last, as in any log: next to where the reader is.
    let events: Vec<Event> = events
        .iter()
        .rev()
        .map(|event| serde_json::from_str(event.get()).map_err(|error| unreadable(&error)))
        .collect::<Result<_, _>>()?;
    out.table(&table(&events, &zone, is_narrow(out)))?;
    Ok(Status::Done)
}

/// The newest `limit` events, newest first, and the cursor behind them.
pub(super) async fn newest(
    client: &Client,
    ask: &Ask,
    limit: usize,
) -> Result<(Vec<Box<RawValue>>, Option<String>), CliError> {
    let mut events = Vec::new();
    let mut cursor: Option<String> = None;
    while events.len() < limit {
        let page = (limit - events.len()).min(PAGE);
        let ask = ask.clone().with("limit", Some(page.to_string())).with("cursor", cursor.take());
        let page: Page = client.request(ask).await?.parse()?;
        events.extend(page.events);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    Ok((events, cursor))
}

fn table(events: &[Event], zone: &TimeZone, narrow: bool) -> Table {
    let show = if narrow { when::local_short } else { when::local_precise };
    let mut table =
        Table::new().whole("TIME").whole("KIND").cut("ACTOR").cut("SUBJECT").cut("DETAIL");
    for event in events {
        table.row([
            event.at.map_or_else(String::new, |at| show(at, zone)).into(),
            Cell::from(event.kind.as_str()),
            event.actor.as_str().into(),
            event.subject.as_str().into(),
            Cell::new(detail(&event.detail), Style::Dim),
        ]);
    }
    table
}

/// The members of an object, one after the other.
pub(super) fn detail(value: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value {
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| format!("{name}={}", text(value)));
            members.collect::<Vec<_>>().join(" ")
        }
        Value::Null => String::new(),
        other => text(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text;

    #[test]
    fn an_event_is_one_line_that_fits() {
        let events: Vec<Event> = serde_json::from_str(
            r#"[{"seq":7,"at":"2026-11-24T10:00:00.5Z","kind":"audit.gap","actor":"router","subject":"ledger","detail":{"calls":3,"why":"disk\nfull"}}]"#,
        )
        .unwrap();
        let whole = table(&events, &TimeZone::UTC, true).render(None, false);
        assert_eq!(
            whole,
            "TIME            KIND       ACTOR   SUBJECT  DETAIL\n\
             11-24 10:00:00  audit.gap  router  ledger   calls=3 why=disk\\nfull\n"
        );
        let cut = table(&events, &TimeZone::UTC, true).render(Some(60), false);
        assert!(cut.lines().all(|line| text::width(line) <= 60), "{cut}");
    }
}
