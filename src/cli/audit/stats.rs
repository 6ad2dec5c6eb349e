//! `switchyard audit stats`: sums of the ledger.
//!
//! Changes when sums show something else, or can be asked for differently.

use serde::Deserialize;

use crate::cli::client::Ask;
use crate::cli::table::{Cell, Style, Table};
use crate::cli::{CliError, Context, Status, when};
use crate::clock;
use crate::model::{Outcome, Timestamp};

/// Arguments of `audit stats`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Sum by this
    #[arg(long, value_enum, default_value_t = By::Server)]
    by: By,
    /// One sum for each of these
    #[arg(long, value_enum, default_value_t = Per::Total)]
    per: Per,
    /// Only calls to this server
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Only calls of this tool
    #[arg(long, value_name = "NAME")]
    tool: Option<String>,
    /// Only calls that ended so
    #[arg(long, value_parser = super::outcome)]
    outcome: Option<Outcome>,
    /// Only this caller's calls
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,
    /// Only calls that began then or later; the last day when nothing is said
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only calls that began before
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    Server,
    Tool,
    Caller,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Per {
    Hour,
    Day,
    Total,
}

impl By {
    const fn title(self) -> &'static str {
        match self {
            Self::Server => "SERVER",
            Self::Tool => "TOOL",
            Self::Caller => "CALLER",
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Tool => "tool",
            Self::Caller => "caller",
        }
    }
}

impl Per {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Total => "total",
        }
    }
}

#[derive(Deserialize)]
struct Sums {
    rows: Vec<Sum>,
}

#[derive(Deserialize)]
struct Sum {
    #[serde(default, deserialize_with = "when::from_api")]
    start: Option<Timestamp>,
    name: Option<String>,
    calls: u64,
    errors: u64,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    request_bytes: u64,
    response_bytes: u64,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    let (now, zone) = (clock::timestamp(), when::zone());
    let (since, until) = when::span(args.since.as_deref(), args.until.as_deref(), now, &zone)?;
    let ask = Ask::get(&["mcp", "audit", "stats"])
        .with("by", Some(args.by.as_str()))
        .with("per", Some(args.per.as_str()))
        .with("server", args.server.as_deref())
        .with("tool", args.tool.as_deref())
        .with("outcome", args.outcome.map(Outcome::as_str))
        .with("caller", args.caller.as_deref())
        .with("since", since)
        .with("until", until);
    let answer = context.client()?.request(ask).await?;
    let out = &context.out;
    if out.is_json() {
        out.json(answer.text()?)?;
        return Ok(Status::Done);
    }
    let sums: Sums = answer.parse()?;
    if sums.rows.is_empty() {
        out.line("no calls match")?;
        return Ok(Status::Done);
    }
    let mut table = Table::new();
    if args.per != Per::Total {
        table = table.whole("FROM");
    }
    let mut table = table
        .cut(args.by.title())
        .number("CALLS")
        .number("ERRORS")
        .number("P50")
        .number("P95")
        .number("IN")
        .number("OUT");
    for sum in sums.rows {
        let mut cells: Vec<Cell> = Vec::with_capacity(8);
        if args.per != Per::Total {
            let start = sum.start.map_or_else(String::new, |at| when::local(at, &zone));
            cells.push(start.into());
        }
        let duration =
            |ms: Option<f64>| Cell::from(ms.map_or_else(String::new, when::milliseconds));
        let errors = if sum.errors == 0 { Style::Dim } else { Style::Warn };
        cells.extend([
            sum.name.as_deref().unwrap_or("-").into(),
            sum.calls.to_string().into(),
            Cell::new(sum.errors.to_string(), errors),
            duration(sum.p50_ms),
            duration(sum.p95_ms),
            bytes(sum.request_bytes).into(),
            bytes(sum.response_bytes).into(),
        ]);
        table.row(cells);
    }
    out.table(&table)?;
    Ok(Status::Done)
}

/// A size as people read it: `512 B`, `1.4 KiB`, `23 MiB`.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let mut size = bytes as f64 / 1024.0;
    let mut units = UNITS.into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if size < 1023.5 {
            break;
        }
        size /= 1024.0;
        unit = next;
    }
    if size < 9.95 { format!("{size:.1} {unit}") } else { format!("{size:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits_and_a_unit() {
        for (size, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10_300, "10 KiB"),
            (1_048_570, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
        ] {
            assert_eq!(bytes(size), expected);
        }
    }
}
