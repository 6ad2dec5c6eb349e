//! `switchyard schema`: the JSON Schema of the configuration, made from the code.
//!
//! Changes when the schema is handed out differently; what is in it belongs to the configuration.

use super::{CliError, Context, Status};
use crate::config;

/// Arguments of `schema`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Prints the JSON Schema of the configuration. Editors with a YAML language server complete and check the file with it.",
    after_help = "Examples:\n  switchyard schema > switchyard.schema.json\n  # first line of switchyard.yaml, for editors:\n  # yaml-language-server: $schema=./switchyard.schema.json"
)]
pub(super) struct Args {}

pub(super) fn run(context: &Context, _args: &Args) -> Result<Status, CliError> {
    context.out.line(config::json_schema().trim_end())?;
    Ok(Status::Done)
}
