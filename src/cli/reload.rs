//! `switchyard reload`: makes the router read its configuration again.
//!
//! Changes when a reload answers differently.

use serde_json::Value;

use super::client::Ask;
use super::table::Style;
use super::{CliError, Context, Status};

/// Arguments of `reload`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Makes the running router read its configuration file again. A broken file changes nothing and is reported.",
    after_help = "Examples:\n  switchyard reload\n  switchyard check && switchyard reload"
)]
pub(super) struct Args {}

pub(super) async fn run(context: &Context, _args: Args) -> Result<Status, CliError> {
    let client = context.client()?;
    let answer = client.request(Ask::post(&["admin", "reload"])).await?;
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
        return Ok(Status::Done);
    }
    let mut told: Value = answer.parse()?;
    let fields = told.as_object_mut();
    let result = fields.and_then(|fields| fields.remove("result"));
    let well = result.as_ref().and_then(Value::as_str) == Some("ok");
    let (word, style) = if well { ("reloaded", Style::Good) } else { ("not reloaded", Style::Bad) };
    context.out.line(context.out.paint(word, style))?;
    for (name, value) in told.as_object().into_iter().flatten() {
        let value = match value {
            Value::Null => continue,
            Value::Array(items) if items.is_empty() => continue,
            Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
            value => plain(value),
        };
        context.out.line(context.out.paint(format!("{name}: {value}"), Style::Plain))?;
    }
    Ok(if well { Status::Done } else { Status::Failed })
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
