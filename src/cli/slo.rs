//! `switchyard slo`: what is promised of servers and tools, and how it stands.
//!
//! Changes when a promise shows something else.

use serde::Deserialize;

use super::client::Ask;
use super::table::{Cell, Style, Table};
use super::{CliError, Context, Status, notice, when};

/// Arguments of `slo`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Shows what `slo` in the configuration promises of servers and tools, and how the calls in the ledger stand to it: what was attained, how much of the error budget is left, and how fast it is being used up (1: it will just last).\n\nBad are calls that failed through a fault of the server or the router; an error that a tool reports is an answer, and what its caller caused does not count.\n\nExit code 0 also when an objective is missed; with --check 1.",
    after_help = "Examples:\n  switchyard slo\n  switchyard slo --check && echo 'all promises are kept'\n  switchyard slo --json | jq '.objectives[] | select(.budget_left < 0.25)'\n  switchyard slo --prometheus > switchyard-slo.rules.yaml"
)]
pub(super) struct Args {
    /// Only what is promised of this server and its tools
    #[arg(long, value_name = "NAME", conflicts_with = "prometheus")]
    server: Option<String>,
    /// Exit code 1 when an objective is missed
    #[arg(long, conflicts_with = "prometheus")]
    check: bool,
    /// Print recording rules and burn-rate alerts for Prometheus
    #[arg(long)]
    prometheus: bool,
}

#[derive(Deserialize)]
struct Objectives {
    objectives: Vec<Objective>,
}

#[derive(Deserialize)]
struct Objective {
    server: String,
    #[serde(default)]
    tool: Option<String>,
    objective: String,
    target: f64,
    within_ms: Option<f64>,
    window: String,
    calls: u64,
    bad: u64,
    attained: Option<f64>,
    met: bool,
    budget_left: f64,
    burn_hour: Option<f64>,
    burn_day: Option<f64>,
}

impl Objective {
    /// Whose it is.
    fn of(&self) -> String {
        match &self.tool {
            Some(tool) => format!("{} {tool}", self.server),
            None => self.server.clone(),
        }
    }

    fn promised(&self) -> String {
        match self.within_ms {
            Some(within) => {
                format!("{} within {}", percent(self.target), when::milliseconds(within))
            }
            None => percent(self.target),
        }
    }
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    let client = context.client()?;
    let out = &context.out;
    if args.prometheus {
        let rules = client.request(Ask::get(&["mcp", "slo", "rules"])).await?;
        out.write(rules.text()?)?;
        return Ok(Status::Done);
    }
    let ask = Ask::get(&["mcp", "slo"]).with("server", args.server.as_deref());
    let answer = client.request(ask).await?;
    let Objectives { objectives } = answer.parse()?;
    if out.is_json() {
        out.json(answer.text()?)?;
    } else if objectives.is_empty() {
        out.line("nothing is promised yet: give a server or a tool an `slo`, as in docs/slo.md")?;
    } else {
        out.table(&table(&objectives))?;
    }
    let missed: Vec<&Objective> = objectives.iter().filter(|objective| !objective.met).collect();
    if !args.check || missed.is_empty() {
        return Ok(Status::Done);
    }
    for objective in missed {
        notice(format!(
            "missed: {} of {} is {}, promised is {} over {}",
            objective.objective,
            objective.of(),
            objective.attained.map_or_else(String::new, percent),
            objective.promised(),
            objective.window
        ));
    }
    Ok(Status::Failed)
}

fn table(objectives: &[Objective]) -> Table {
    let mut table = Table::new()
        .cut("SERVER")
        .cut("TOOL")
        .whole("OBJECTIVE")
        .number("TARGET")
        .number("WINDOW")
        .number("ATTAINED")
        .number("CALLS")
        .number("BAD")
        .number("BUDGET LEFT")
        .number("BURN 1H")
        .number("BURN 1D");
    for objective in objectives {
        let left = match objective.budget_left {
            left if left < 0.0 => Style::Bad,
            left if left < 0.25 => Style::Warn,
            _ => Style::Good,
        };
        table.row([
            objective.server.as_str().into(),
            objective.tool.as_deref().unwrap_or("-").into(),
            Cell::from(&objective.objective),
            objective.promised().into(),
            Cell::from(&objective.window),
            objective.attained.map_or_else(|| "-".to_owned(), percent).into(),
            objective.calls.to_string().into(),
            objective.bad.to_string().into(),
            Cell::new(percent(objective.budget_left), left),
            burn(objective.burn_hour),
            burn(objective.burn_day),
        ]);
    }
    table
}

/// How fast the budget is used up: beyond 1 it will not last.
fn burn(burn: Option<f64>) -> Cell {
    match burn {
        None => "-".into(),
        Some(burn) => {
            let style = if burn > 1.0 { Style::Warn } else { Style::Plain };
            Cell::new(format!("{burn:.1}"), style)
        }
    }
}

/// With as many digits as tell, at most three, and never rounded up to what was not reached.
fn percent(part: f64) -> String {
    let shown = format!("{:.3}", (part * 100_000.0 + 1e-6).floor() / 1000.0);
    let shown = shown.trim_end_matches('0').trim_end_matches('.');
    format!("{}%", if shown == "-0" { "0" } else { shown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_short_and_never_too_good() {
        for (part, shown) in [
            (0.99, "99%"),
            (0.999, "99.9%"),
            (0.99999, "99.999%"),
            (0.999_999_9, "99.999%"),
            (1.0, "100%"),
            (0.0, "0%"),
            (-1.5, "-150%"),
            (0.333_333, "33.333%"),
        ] {
            assert_eq!(percent(part), shown);
        }
    }
}
