//! `switchyard audit tail`: the last calls, and those that follow.
//!
//! Changes when a line about a call shows something else, or the way back to a router that went away
//! changes.

use std::io;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Call, Filter, events, is_narrow, newest, unreadable};
use crate::cli::client::{Ask, Client, ClientError, Event};
use crate::cli::output::{Output, notice};
use crate::cli::table::Style;
use crate::cli::{CliError, Context, Status, text, when};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Show new calls as they end, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Begin with so many earlier calls
    #[arg(long, short = 'n', value_name = "N", default_value_t = 10)]
    limit: usize,
    /// Show also what is on record beside calls: acts, refusals, changes of tools, breakers, the ledger itself
    #[arg(long)]
    events: bool,
    /// Of that, only this kind, or all that begin so: server.*
    #[arg(long, value_name = "KIND", requires = "events")]
    kind: Option<String>,
}

/// The router says that it is alive three times in this.
const SILENCE: Duration = Duration::from_secs(45);
/// How long the first try to come back waits, and how long the others at most.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Place {
    seq: i64,
}

pub(super) async fn tail(context: &Context, args: Args) -> Result<Status, CliError> {
    let client = context.client()?;
    let shown = Shown { out: context.out, zone: when::zone() };
    // Read before the lists: what comes between is in a list, or after this place.
    let mut last = match args.follow || args.events {
        true => place(&client, args.events).await?,
        false => 0,
    };
    for (seq, told, json) in earlier(&client, &args, last).await? {
        shown.print(told, json.get())?;
        last = last.max(seq);
    }
    if !args.follow {
        return Ok(Status::Done);
    }
    let ask = args.filter.ask(&["mcp", "audit", "tail"])?;
    let ask = ask.with("events", args.events.then_some("true")).with("kind", args.kind.as_deref());
    let mut last = last.to_string();
    let (mut wait, mut told) = (FIRST_WAIT, false);
    loop {
        match follow(&client, ask.clone(), &shown, &mut last, &mut wait).await {
            CliError::Client(error) if is_away(&error) => {
                // A router that is back in a moment is not worth a word, and others only one.
                let away = wait > FIRST_WAIT;
                if away && !told {
                    let reason = error.to_string();
                    notice(format!("waiting for the router: {}", text::first_line(&reason)));
                }
                told = away;
            }
            error => return Err(error),
        }
        tokio::time::sleep(wait).await;
        wait = wait.saturating_mul(2).min(LONGEST_WAIT);
    }
}

/// The place of the newest call in the ledger, or with events of the newest row, whatever the filter.
async fn place(client: &Client, with_events: bool) -> Result<i64, CliError> {
    let (calls, _) = newest(client, &Filter::default(), 1).await?;
    let mut newest = calls;
    if with_events {
        newest.extend(events::newest(client, &events_ask(None), 1).await?.0);
    }
    newest.iter().try_fold(0, |last, json| Ok(seq(json)?.max(last)))
}

/// What there is already, oldest first, with its places.
async fn earlier(
    client: &Client,
    args: &Args,
    place: i64,
) -> Result<Vec<(i64, Told, Box<RawValue>)>, CliError> {
    let mut earlier = Vec::new();
    for call in newest(client, &args.filter, args.limit).await?.0 {
        earlier.push((seq(&call)?, Told::Call, call));
    }
    if args.events {
        let ask = args.filter.spanned(events_ask(args.kind.as_deref()))?;
        for event in events::newest(client, &ask, args.limit).await?.0 {
            earlier.push((seq(&event)?, Told::Entry, event));
        }
        // What came after the place may be in the list that was read later and not in the other: it is followed.
        earlier.retain(|(seq, ..)| *seq <= place);
    }
    earlier.sort_by_key(|(seq, ..)| *seq);
    Ok(earlier.split_off(earlier.len().saturating_sub(args.limit)))
}

fn events_ask(kind: Option<&str>) -> Ask {
    Ask::get(&["mcp", "audit", "events"]).with("kind", kind)
}

fn seq(json: &RawValue) -> Result<i64, CliError> {
    let place: Place = serde_json::from_str(json.get()).map_err(|error| unreadable(&error))?;
    Ok(place.seq)
}

/// Shows what comes after `last` until that ends; gives why it did.
async fn follow(
    client: &Client,
    ask: Ask,
    shown: &Shown,
    last: &mut String,
    wait: &mut Duration,
) -> CliError {
    let mut events = match client.events(ask.header("last-event-id", last.clone())).await {
        Ok(events) => events,
        Err(error) => return error.into(),
    };
    *wait = FIRST_WAIT;
    loop {
        let event = match events.next(SILENCE).await {
            Ok(event) => event,
            Err(error) => return error.into(),
        };
        if !event.data.is_empty()
            && let Err(error) = shown.print(Told::of(&event), &event.data)
        {
            return error;
        }
        // After it was shown, so that one which was cut off comes again.
        if let Some(id) = event.id {
            *last = id;
        }
    }
}

/// Whether to come back: the router restarts, or what stands before it does.
fn is_away(error: &ClientError) -> bool {
    match error {
        ClientError::NoRouter(_)
        | ClientError::Unreachable { .. }
        | ClientError::Broken(_)
        | ClientError::Silent { .. }
        | ClientError::StreamEnded => true,
        ClientError::Socket { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
        ClientError::Refused(problem) => matches!(problem.status, 502..=504),
        ClientError::Denied(_)
        | ClientError::Address(_)
        | ClientError::Key
        | ClientError::Unreadable { .. } => false,
    }
}

/// What a line is about.
#[derive(Clone, Copy)]
enum Told {
    Call,
    Entry,
}

impl Told {
    fn of(event: &Event) -> Self {
        if event.kind == "entry" { Self::Entry } else { Self::Call }
    }
}

/// How calls are shown, one after the other, and what is beside them.
struct Shown {
    out: Output,
    zone: TimeZone,
}

impl Shown {
    fn print(&self, told: Told, json: &str) -> Result<(), CliError> {
        if self.out.is_json() {
            return self.out.json(json);
        }
        self.out.line(match told {
            Told::Call => self.line(json)?,
            Told::Entry => self.entry(json)?,
        })
    }

    /// In the columns of calls: who, what in place of the tool, to what, and the rest.
    fn entry(&self, json: &str) -> Result<String, CliError> {
        let event: events::Event =
            serde_json::from_str(json).map_err(|error| unreadable(&error))?;
        let out = &self.out;
        let narrow = is_narrow(out);
        let (actor, kind) = if narrow { (8, 18) } else { (12, 32) };
        let show = if narrow { when::local_short } else { when::local_precise };
        let head = format!(
            "{}  {}  {}  {}",
            event.at.map_or_else(String::new, |at| show(at, &self.zone)),
            self.column(Some(&event.actor), actor),
            self.column(Some(&event.kind), kind),
            self.column(Some(&event.subject), 11),
        );
        let detail = text::escape_line(&events::detail(&event.detail)).into_owned();
        let detail = match out.width {
            Some(width) => {
                let left = width.saturating_sub(text::width(&head) + 2).max(8);
                text::cut(&detail, left).into_owned()
            }
            None => detail,
        };
        let detail = Style::Dim.paint(&detail, out.colour);
        Ok(format!("{head}  {detail}").trim_end().to_owned())
    }

    fn line(&self, json: &str) -> Result<String, CliError> {
        let call = Call::read(json)?;
        let out = &self.out;
        let narrow = is_narrow(out);
        let (caller, tool) = if narrow { (8, 18) } else { (12, 32) };
        let head = format!(
            "{}  {}  {}",
            call.time(&self.zone, narrow),
            self.column(call.caller.as_deref(), caller),
            self.column(call.tool.as_deref(), tool),
        );
        let outcome = self.column(Some(&call.outcome), 11);
        let tries = call.tries().map_or_else(String::new, |tries| format!("  {tries} tries"));
        let reason = text::escape_line(call.reason());
        let end = format!("{:>8}{tries}  {reason}", call.duration());
        let used = text::width(&head) + text::width(&outcome) + 4;
        let end = match out.width {
            Some(width) => text::cut(&end, width.saturating_sub(used).max(8)).into_owned(),
            None => end,
        };
        let outcome = call.style().paint(&outcome, out.colour);
        Ok(format!("{head}  {outcome}  {}", end.trim_end()))
    }

    /// Lines come one by one, so that columns have a width of their own; what is longer moves the
    /// rest, or on a terminal is cut.
    fn column(&self, value: Option<&str>, width: usize) -> String {
        let value = text::escape_line(value.unwrap_or("-"));
        let value = if self.out.width.is_some() { text::cut(&value, width) } else { value };
        let blank = width.saturating_sub(text::width(&value));
        format!("{value}{:blank$}", "")
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::cli::client::Problem;
    use crate::cli::output::Format;

    fn shown(width: Option<usize>) -> Shown {
        let out = Output { format: Format::Human, terminal: width.is_some(), colour: false, width };
        Shown { out, zone: TimeZone::UTC }
    }

    const CALL: &str = r#"{"id":"1","started_at":"2026-11-24T10:00:01Z","caller":"laptop","tool":"github__search_repositories","outcome":"unavailable","attempts":3,"duration_ms":2400.0,"error":"could not connect: connection refused\nmore"}"#;

    #[test]
    fn a_call_is_one_line() {
        assert_eq!(
            shown(None).line(CALL).unwrap(),
            "2026-11-24 10:00:01.000  laptop        github__search_repositories       unavailable     2.4 s  3 tries  could not connect: connection refused"
        );
    }

    const ENTRY: &str = r#"{"seq":7,"at":"2026-11-24T10:00:00.5Z","at_ms":1,"kind":"breaker.transition","actor":"router","subject":"github","detail":{"from":"closed","to":"open","reason":"connection refused\nmore, and more of the same so that it is long"}}"#;

    #[test]
    fn an_entry_is_one_line_in_the_columns_of_calls() {
        assert_eq!(
            shown(None).entry(ENTRY).unwrap(),
            "2026-11-24 10:00:00.500  router        breaker.transition                github       from=closed reason=connection refused\\nmore, and more of the same so that it is long to=open"
        );
    }

    #[test]
    fn a_line_fits_the_terminal() {
        for width in [72, 80, 100, 120, 200] {
            for line in [shown(Some(width)).line(CALL), shown(Some(width)).entry(ENTRY)] {
                let line = line.unwrap();
                assert!(text::width(&line) <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn a_router_that_says_no_is_not_waited_for() {
        let refused =
            |status| is_away(&ClientError::Refused(Box::new(Problem::read(status, b"{}"))));
        assert!(refused(StatusCode::SERVICE_UNAVAILABLE) && refused(StatusCode::BAD_GATEWAY));
        assert!(!refused(StatusCode::UNAUTHORIZED) && !refused(StatusCode::BAD_REQUEST));
        assert!(is_away(&ClientError::StreamEnded) && !is_away(&ClientError::Key));
    }
}
