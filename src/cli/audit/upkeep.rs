//! `switchyard audit purge` and `erase`: removing from the ledger.
//!
//! Changes when something else can be removed.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::super::client::Ask;
use super::super::{CliError, Context, Status, notice, when};
use super::call_id;
use crate::clock;
use crate::model::CallId;

/// A large ledger takes minutes: others come first.
const PATIENCE: Duration = Duration::from_secs(6 * 3_600);

/// Arguments of `audit purge`.
#[derive(Debug, clap::Args)]
pub(super) struct Purge {
    /// Remove what was put on record before
    #[arg(long, value_name = "TIME")]
    before: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Arguments of `audit erase`.
#[derive(Debug, clap::Args)]
pub(super) struct Erase {
    /// Erase what this caller's calls were given and gave
    #[arg(long, value_name = "NAME", required_unless_present = "call", conflicts_with = "call")]
    caller: Option<String>,
    /// Erase what this call was given and gave
    #[arg(long, value_name = "ID", value_parser = call_id)]
    call: Option<CallId>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Deserialize)]
struct Pruned {
    rows: u64,
    through: i64,
    freed_bytes: u64,
}

#[derive(Deserialize)]
struct Erased {
    payloads: u64,
    #[serde(default)]
    logs_emptied: bool,
    #[serde(default)]
    not_looked_into: Vec<String>,
    #[serde(default)]
    waits_in: Option<String>,
}

pub(super) async fn purge(context: &Context, args: Purge) -> Result<Status, CliError> {
    let zone = when::zone();
    let before = when::parse(&args.before, clock::timestamp(), &zone)?;
    let what = format!("remove every call from before {}", when::local(before, &zone));
    confirm(args.yes, &what)?;
    let body = json!({ "before": before.to_string() }).to_string();
    let ask = Ask::post(&["mcp", "audit", "purge"]).json(body).patient(PATIENCE);
    let answer = context.client()?.request(ask).await?;
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
        return Ok(Status::Done);
    }
    let pruned: Pruned = answer.parse()?;
    if pruned.rows == 0 {
        context.out.line("nothing is that old")?;
        return Ok(Status::Done);
    }
    #[expect(clippy::cast_precision_loss, reason = "shown to one digit")]
    let freed = pruned.freed_bytes as f64 / f64::from(1 << 20);
    context.out.line(format!(
        "{} rows removed, up to row {}; {freed:.1} MiB given back",
        pruned.rows, pruned.through
    ))?;
    Ok(Status::Done)
}

pub(super) async fn erase(context: &Context, args: Erase) -> Result<Status, CliError> {
    let (what, body) = match (&args.caller, &args.call) {
        (Some(caller), _) => {
            (format!("the calls of {}", text(caller)), json!({ "caller": caller }))
        }
        (None, call) => {
            let call = call.as_ref().map(ToString::to_string).unwrap_or_default();
            (format!("call {call}"), json!({ "call": call }))
        }
    };
    confirm(args.yes, &format!("erase arguments and results of {what}"))?;
    let ask = Ask::post(&["mcp", "audit", "erase"]).json(body.to_string()).patient(PATIENCE);
    let answer = context.client()?.request(ask).await?;
    let erased: Erased = answer.parse()?;
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
    } else {
        context.out.line(format!("arguments and results of {} calls erased", erased.payloads))?;
    }
    let left = left(&erased);
    for line in &left {
        notice(line);
    }
    Ok(if left.is_empty() { Status::Done } else { Status::Failed })
}

/// Where there may still be some of what was to be erased, in words.
fn left(erased: &Erased) -> Vec<String> {
    let mut lines = Vec::new();
    if !erased.logs_emptied {
        lines.push("some bytes are still in audit.db-wal or audit-index.db-wal: another program has the database open; close it and erase again".to_owned());
    }
    if let Some(spool) = &erased.waits_in {
        lines.push(format!(
            "rows wait in the spool `{}` and are not in the ledger yet; erase again when they are",
            text(spool)
        ));
    }
    if !erased.not_looked_into.is_empty() {
        lines.push(
            "not looked into, and may hold some of it (remove what nobody needs, then erase again):"
                .to_owned(),
        );
        lines.extend(erased.not_looked_into.iter().map(|file| format!("  {}", text(file))));
    }
    lines
}

fn text(name: &str) -> std::borrow::Cow<'_, str> {
    super::text::escape_line(name)
}

/// Asks on a terminal; elsewhere it must be said.
fn confirm(yes: bool, what: &str) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(CliError::Unconfirmed);
    }
    notice(format!("{what}? This cannot be undone. [y/N]"));
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    let agreed = read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes");
    if agreed { Ok(()) } else { Err(CliError::Unconfirmed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_left_is_said_by_its_path() {
        let left = |json: &str| left(&serde_json::from_str(json).unwrap());
        let done = r#"{"payloads":1,"complete":true,"logs_emptied":true,"not_looked_into":[],"waits_in":null}"#;
        assert_eq!(left(done), Vec::<String>::new());
        let told = left(
            r#"{"payloads":0,"logs_emptied":false,"not_looked_into":["/d/audit.db.corrupt-1","/d/a\nb"],"waits_in":"/s.jsonl"}"#,
        );
        assert!(told[0].contains("audit.db-wal") && told[1].contains("`/s.jsonl`"), "{told:?}");
        assert_eq!(told[3..], ["  /d/audit.db.corrupt-1", "  /d/a\\nb"], "{told:?}");
    }
}
