//! `switchyard import`: takes over the servers of a desktop client's or editor's configuration.
//!
//! Changes when taking over is reported differently. Reading those files belongs to `config`.

use std::path::PathBuf;

use http::Method;
use serde_json::json;

use super::client::{Client, ClientError};
use super::table::{Cell, Style, Table};
use super::{CliError, Context, Status, notice, servers};
use crate::config;
use crate::model::{ServerName, ServerSpec};

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Reads client configuration files (JSON or YAML with `mcpServers`) and registers their servers with the running router or, with --print, writes them as YAML for switchyard.yaml.",
    after_help = "Examples:\n  switchyard import ~/.config/Claude/claude_desktop_config.json\n  switchyard import .mcp.json .vscode/mcp.json --print >> switchyard.yaml\n  switchyard import .mcp.json --replace"
)]
pub(super) struct Args {
    /// Files with `mcpServers`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print YAML instead of registering
    #[arg(long)]
    print: bool,
    /// Replace servers of the same name
    #[arg(long, conflicts_with = "print")]
    replace: bool,
}

enum Fate {
    Added,
    Replaced,
    Failed(String),
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    let mut found: Vec<(ServerName, ServerSpec)> = Vec::new();
    // All files are read before anything is registered: a broken one changes nothing.
    for path in &args.files {
        for (name, spec, notes) in config::client::read(path)? {
            for note in notes {
                notice(format!("{}: {name}: {note}", path.display()));
            }
            if found.iter().any(|(known, _)| *known == name) {
                notice(format!(
                    "{}: {name}: left out, an earlier file has a server of this name",
                    path.display()
                ));
            } else {
                found.push((name, spec));
            }
        }
    }
    if args.print {
        context.out.line(config::client::to_yaml(&found).trim_end())?;
        return Ok(Status::Done);
    }
    if found.is_empty() {
        notice("no servers found in these files");
        return Ok(Status::Done);
    }
    let client = context.client()?;
    let mut fates = Vec::with_capacity(found.len());
    for (name, spec) in &found {
        fates.push((name, register(&client, name, spec, args.replace).await?));
    }
    print(context, &fates)?;
    let failed = fates.iter().any(|(_, fate)| matches!(fate, Fate::Failed(_)));
    Ok(if failed { Status::Failed } else { Status::Done })
}

async fn register(
    client: &Client,
    name: &ServerName,
    spec: &ServerSpec,
    replace: bool,
) -> Result<Fate, CliError> {
    let refusal = match servers::post(client, Method::POST, name, spec).await {
        Ok(()) => return Ok(Fate::Added),
        Err(CliError::Client(ClientError::Refused(problem))) => problem,
        Err(error) => return Err(error),
    };
    if refusal.status != 409 || !replace {
        let hint = if refusal.status == 409 { "; --replace takes the new one" } else { "" };
        return Ok(Fate::Failed(format!("{refusal}{hint}")));
    }
    match servers::post(client, Method::PUT, name, spec).await {
        Ok(()) => Ok(Fate::Replaced),
        Err(CliError::Client(ClientError::Refused(problem))) => {
            Ok(Fate::Failed(problem.to_string()))
        }
        Err(error) => Err(error),
    }
}

fn print(context: &Context, fates: &[(&ServerName, Fate)]) -> Result<(), CliError> {
    if context.out.is_json() {
        let servers: Vec<_> = fates
            .iter()
            .map(|(name, fate)| match fate {
                Fate::Added => json!({"name": name.as_str(), "result": "added"}),
                Fate::Replaced => json!({"name": name.as_str(), "result": "replaced"}),
                Fate::Failed(error) => {
                    json!({"name": name.as_str(), "result": "failed", "error": error})
                }
            })
            .collect();
        return context.out.json(&json!({ "servers": servers }).to_string());
    }
    let mut table = Table::new().whole("NAME").whole("RESULT").cut("REASON");
    for (name, fate) in fates {
        let (word, style, reason) = match fate {
            Fate::Added => ("added", Style::Good, ""),
            Fate::Replaced => ("replaced", Style::Good, ""),
            Fate::Failed(reason) => ("failed", Style::Bad, reason.as_str()),
        };
        table.row([name.as_str().into(), Cell::new(word, style), reason.into()]);
    }
    context.out.table(&table)?;
    context.out.line("see `switchyard servers` for their state")
}
