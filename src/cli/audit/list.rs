//! `switchyard audit list`: calls in a table, as a log that a person reads.
//!
//! Changes when the table shows something else.

use jiff::tz::TimeZone;
use serde_json::Value;

use super::{Call, Filter, is_narrow, list_limit, newest};
use crate::cli::table::{Cell, Style, Table};
use crate::cli::{CliError, Context, Status, when};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// At most so many, the newest
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, value_parser = list_limit)]
    limit: usize,
    /// Show the calls' ids whatever the terminal's width
    #[arg(long)]
    ids: bool,
}

const DEFAULT_LIMIT: usize = 50;
/// From this width on there is room for ids.
const WIDE: usize = 140;

impl Default for Args {
    fn default() -> Self {
        Self { filter: Filter::default(), limit: DEFAULT_LIMIT, ids: false }
    }
}

pub(super) async fn list(context: &Context, args: Args) -> Result<Status, CliError> {
    let client = context.client()?;
    let (calls, cursor) = newest(&client, &args.filter, args.limit).await?;
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
    // The newest last, as in any log: next to where the reader is.
    let calls: Vec<Call> =
        calls.iter().rev().map(|call| Call::read(call.get())).collect::<Result<_, _>>()?;
    let with_ids = args.ids || out.width.is_none_or(|width| width >= WIDE);
    out.table(&table(&calls, &when::zone(), with_ids, is_narrow(out)))?;
    Ok(Status::Done)
}

fn table(calls: &[Call], zone: &TimeZone, with_ids: bool, narrow: bool) -> Table {
    // Most calls take one attempt: a column that says so a hundred times hides those that did not.
    let with_tries = calls.iter().any(|call| call.tries().is_some());
    let mut table = Table::new().whole("TIME");
    if with_ids {
        table = table.whole("ID");
    }
    table = table.cut("CALLER").cut("TOOL").whole("OUTCOME").number("DURATION");
    if with_tries {
        table = table.number("TRIES");
    }
    let mut table = table.cut("ERROR");
    for call in calls {
        let mut cells = vec![call.time(zone, narrow).into()];
        if with_ids {
            cells.push(Cell::new(&call.id, Style::Dim));
        }
        cells.extend([
            call.caller.as_deref().unwrap_or_default().into(),
            call.tool.as_deref().unwrap_or_default().into(),
            Cell::new(&call.outcome, call.style()),
            call.duration().into(),
        ]);
        if with_tries {
            cells.push(call.tries().map_or_else(String::new, |tries| tries.to_string()).into());
        }
        cells.push(call.reason().into());
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text;

    fn calls() -> Vec<Call> {
        [
            r#"{"id":"1","started_at":"2026-11-24T10:00:00.5Z","caller":"laptop","tool":"up__echo","outcome":"ok","attempts":1,"duration_ms":3.14}"#,
            r#"{"id":"2","started_at":"2026-11-24T10:00:01Z","caller":"laptop","tool":"github__search_repositories","outcome":"unavailable","attempts":3,"duration_ms":2400.0,"error":"could not connect to the server: connection refused\nmore"}"#,
        ]
        .into_iter()
        .map(|json| Call::read(json).unwrap())
        .collect()
    }

    #[test]
    fn attempts_are_told_where_there_was_more_than_one() {
        let calls = calls();
        let shown = |calls: &[Call]| table(calls, &TimeZone::UTC, false, true).render(None, false);
        assert_eq!(
            shown(&calls),
            "TIME            CALLER  TOOL                         OUTCOME      DURATION  TRIES  ERROR\n\
             11-24 10:00:00  laptop  up__echo                     ok             3.1 ms\n\
             11-24 10:00:01  laptop  github__search_repositories  unavailable     2.4 s      3  could not connect to the server: connection refused\n"
        );
        assert!(!shown(&calls[..1]).contains("TRIES"));
    }

    #[test]
    fn it_fits_the_terminal() {
        for width in [80, 100, 120, 200] {
            let table = table(&calls(), &TimeZone::UTC, width >= WIDE, width < 110);
            let text = table.render(Some(width), false);
            assert!(text.lines().all(|line| text::width(line) <= width), "{text}");
        }
    }

    #[test]
    fn the_outcome_has_a_colour_of_its_own() {
        let text = table(&calls(), &TimeZone::UTC, false, false).render(None, true);
        assert!(text.contains("\x1b[32mok\x1b[0m"), "{text}");
        assert!(text.contains("\x1b[31munavailable\x1b[0m"), "{text}");
    }
}
