//! `switchyard audit tail`: the last calls, and those that follow.
//!
//! Changes when a line about a call shows something else, or the way back to a router that went away
//! changes.

use std::io;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Deserialize;

use super::{Call, Filter, Page, is_narrow, newest, unreadable};
use crate::cli::client::{Ask, Client, ClientError};
use crate::cli::output::{Output, notice};
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
    // Read before the list: what comes between the two is in the list, or after this place.
    let mut last = match args.follow {
        true => place(&client).await?,
        false => 0,
    };
    let (calls, _) = newest(&client, &args.filter, args.limit).await?;
    for call in calls.iter().rev() {
        shown.print(call.get())?;
        let place: Place = serde_json::from_str(call.get()).map_err(|error| unreadable(&error))?;
        last = last.max(place.seq);
    }
    if !args.follow {
        return Ok(Status::Done);
    }
    let ask = args.filter.ask(&["mcp", "audit", "tail"])?;
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

/// The place of the newest call in the ledger, whatever the filter.
async fn place(client: &Client) -> Result<i64, CliError> {
    let ask = Ask::get(&["mcp", "audit"]).with("limit", Some("1"));
    let page: Page = client.request(ask).await?.parse()?;
    let Some(call) = page.calls.first() else { return Ok(0) };
    let place: Place = serde_json::from_str(call.get()).map_err(|error| unreadable(&error))?;
    Ok(place.seq)
}

/// Shows calls after `last` until that ends; gives why it did.
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
            && let Err(error) = shown.print(&event.data)
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

/// How calls are shown, one after the other.
struct Shown {
    out: Output,
    zone: TimeZone,
}

impl Shown {
    fn print(&self, json: &str) -> Result<(), CliError> {
        if self.out.is_json() { self.out.json(json) } else { self.out.line(self.line(json)?) }
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

    #[test]
    fn a_line_fits_the_terminal() {
        for width in [72, 80, 100, 120, 200] {
            let line = shown(Some(width)).line(CALL).unwrap();
            assert!(text::width(&line) <= width, "{width}: {line}");
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
