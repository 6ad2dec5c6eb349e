//! `switchyard tools`: the tools the router offers, and how their definitions changed.
//!
//! Changes when the catalogue shows something else of a tool.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::client::{Ask, Client};
use super::table::{Cell, Style, Table};
use super::{CliError, Context, Status, text, when};
use crate::model::Timestamp;

/// Arguments of `tools`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Shows the tools the router offers, under the names clients see, and the history of their definitions.",
    after_help = "Examples:\n  switchyard tools\n  switchyard tools list --search issue\n  switchyard tools show github__create_issue"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List tools
    #[command(
        after_help = "Examples:\n  switchyard tools list\n  switchyard tools list --server github\n  switchyard tools list --search issue --json\n  switchyard tools list --view support"
    )]
    List(List),
    /// Show one tool with its parameters
    #[command(after_help = "Examples:\n  switchyard tools show github__create_issue")]
    Show {
        /// The tool's name
        name: String,
    },
    /// Show how a tool's definition changed
    #[command(after_help = "Examples:\n  switchyard tools history github__create_issue")]
    History {
        /// The tool's name
        name: String,
    },
    /// Accept a changed definition that is held back
    #[command(after_help = "Examples:\n  switchyard tools approve github__create_issue")]
    Approve {
        /// The tool's name
        name: String,
    },
}

#[derive(Debug, Default, clap::Args)]
struct List {
    /// Only this server's
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Only those whose name or description has this text
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only those of this view
    #[arg(long, value_name = "NAME")]
    view: Option<String>,
}

#[derive(Deserialize)]
struct ToolList {
    tools: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Tool {
    name: String,
    #[serde(default)]
    tool: String,
    #[serde(default)]
    server_name: String,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    input_schema: Option<Box<RawValue>>,
    #[serde(default)]
    annotations: Option<Box<RawValue>>,
    #[serde(default)]
    status: String,
    #[serde(default)]
    definition_hash: Option<String>,
    #[serde(default, deserialize_with = "when::from_api")]
    first_seen_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "when::from_api")]
    last_seen_at: Option<Timestamp>,
}

#[derive(Deserialize)]
struct History {
    history: Vec<Change>,
}

#[derive(Deserialize)]
struct Change {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    old_hash: Option<String>,
    #[serde(default)]
    new_hash: Option<String>,
    #[serde(default, deserialize_with = "when::from_api")]
    at: Option<Timestamp>,
    #[serde(default)]
    by: Option<String>,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    let client = context.client()?;
    match args.action.unwrap_or_else(|| Action::List(List::default())) {
        Action::List(filter) => list(context, &client, filter).await,
        Action::Show { name } => show(context, &client, &name).await,
        Action::History { name } => history(context, &client, &name).await,
        Action::Approve { name } => {
            let answer = client.request(Ask::post(&["mcp", "tools", &name, "approve"])).await?;
            if context.out.is_json() {
                context.out.json(answer.text()?)?;
            } else {
                context.out.line(context.out.paint(format!("approved {name}"), Style::Good))?;
            }
            Ok(Status::Done)
        }
    }
}

/// The tools the router knows; with `server` by way of that server, so that an unknown one is said.
async fn fetch(
    client: &Client,
    server: Option<&str>,
    search: Option<String>,
    view: Option<&str>,
) -> Result<super::client::Answer, CliError> {
    let ask = match (server, view) {
        (Some(server), None) => Ask::get(&["mcp", "servers", server, "tools"]),
        _ => Ask::get(&["mcp", "tools"]).with("server", server).with("view", view),
    };
    Ok(client.request(ask.with("search", search)).await?)
}

async fn list(context: &Context, client: &Client, filter: List) -> Result<Status, CliError> {
    let List { server, search, view } = &filter;
    let answer = fetch(client, server.as_deref(), search.clone(), view.as_deref()).await?;
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
        return Ok(Status::Done);
    }
    let ToolList { tools } = answer.parse()?;
    let tools: Vec<Tool> =
        tools.iter().filter_map(|tool| serde_json::from_str(tool.get()).ok()).collect();
    if tools.is_empty() {
        context.out.line(if search.is_some() || server.is_some() || view.is_some() {
            "no tool matches"
        } else {
            "no tools yet; add a server with `switchyard servers add`, or see `switchyard servers` for why one has none"
        })?;
        return Ok(Status::Done);
    }
    let mut table = Table::new().whole("NAME").whole("SERVER").whole("STATUS").cut("DESCRIPTION");
    for tool in &tools {
        table.row([
            (&tool.name).into(),
            (&tool.server_name).into(),
            status(&tool.status),
            text::first_line(tool.description.as_deref().unwrap_or_default()).into(),
        ]);
    }
    context.out.table(&table)?;
    Ok(Status::Done)
}

fn status(name: &str) -> Cell {
    let style = match name {
        "active" => Style::Good,
        "held" => Style::Bad,
        "stale" => Style::Warn,
        _ => Style::Dim,
    };
    Cell::new(name, style)
}

async fn show(context: &Context, client: &Client, name: &str) -> Result<Status, CliError> {
    let ToolList { tools } = fetch(client, None, None, None).await?.parse()?;
    let known: Vec<(Tool, &RawValue)> = tools
        .iter()
        .filter_map(|raw| Some((serde_json::from_str(raw.get()).ok()?, raw.as_ref())))
        .collect();
    let matching: Vec<&(Tool, &RawValue)> = match known.iter().find(|(tool, _)| tool.name == name) {
        Some(exact) => vec![exact],
        // As in a call: the upstream's own name will do.
        None => known.iter().filter(|(tool, _)| tool.tool == name).collect(),
    };
    if matching.is_empty() {
        let mut near: Vec<(f64, &str)> = known
            .iter()
            .map(|(tool, _)| {
                let likeness = strsim::jaro_winkler(name, &tool.name)
                    .max(strsim::jaro_winkler(name, &tool.tool));
                (likeness, tool.name.as_str())
            })
            .filter(|(likeness, _)| *likeness > 0.75)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        return Err(CliError::Client(super::client::ClientError::Refused(Box::new(
            super::client::Problem {
                status: 404,
                detail: Some(format!("no tool is called `{name}`; see `switchyard tools`")),
                nearest: near.into_iter().take(3).map(|(_, name)| name.to_owned()).collect(),
                ..Default::default()
            },
        ))));
    }
    for (tool, raw) in matching {
        if context.out.is_json() {
            context.out.json(raw.get())?;
        } else {
            print(context, tool)?;
        }
    }
    Ok(Status::Done)
}

fn print(context: &Context, tool: &Tool) -> Result<(), CliError> {
    let out = &context.out;
    let zone = when::zone();
    out.line(out.paint(&tool.name, Style::Bold))?;
    let time = |at: Option<Timestamp>| at.map(|at| when::local(at, &zone));
    for (label, value) in [
        ("server", Some(tool.server_name.clone())),
        ("own name", Some(tool.tool.clone()).filter(|own| !own.is_empty())),
        ("title", tool.title.clone()),
        ("status", Some(tool.status.clone())),
        ("annotations", tool.annotations.as_ref().map(|raw| raw.get().to_owned())),
        ("definition", tool.definition_hash.clone()),
        ("first seen", time(tool.first_seen_at)),
        ("last seen", time(tool.last_seen_at)),
    ] {
        if let Some(value) = value.filter(|value| value != "null") {
            out.line(format!("  {label:<12} {}", text::escape_line(&value)))?;
        }
    }
    if let Some(description) = tool.description.as_deref().filter(|text| !text.is_empty()) {
        out.line(format!("\n{}", text::escape_block(description.trim_end())))?;
    }
    let Some(schema) = &tool.input_schema else { return Ok(()) };
    match serde_json::from_str::<Value>(schema.get()) {
        Ok(schema) => parameters(context, &schema),
        // A number no machine type holds; what came is shown as it is.
        Err(_) => out.line(format!("\n{}", text::escape_json(schema.get()))),
    }
}

fn parameters(context: &Context, schema: &Value) -> Result<(), CliError> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let Some(properties) = properties.filter(|properties| !properties.is_empty()) else {
        return context.out.line("\nno parameters");
    };
    let required = schema.get("required").and_then(Value::as_array);
    let is_required =
        |name: &str| required.is_some_and(|names| names.iter().any(|one| one == name));
    let mut table = Table::new().whole("PARAMETER").whole("TYPE").whole("").cut("DESCRIPTION");
    for (name, property) in properties {
        let kind = match property.get("type") {
            Some(Value::String(kind)) => kind.clone(),
            Some(kinds) => kinds.to_string(),
            None => "any".to_owned(),
        };
        let description = property.get("description").and_then(Value::as_str).unwrap_or_default();
        let need = if is_required(name) { "required" } else { "" };
        table.row([
            name.into(),
            kind.into(),
            Cell::new(need, Style::Warn),
            text::first_line(description).into(),
        ]);
    }
    context.out.line("")?;
    context.out.table(&table)
}

async fn history(context: &Context, client: &Client, name: &str) -> Result<Status, CliError> {
    let answer = client.request(Ask::get(&["mcp", "tools", name, "history"])).await?;
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
        return Ok(Status::Done);
    }
    let History { history } = answer.parse()?;
    let zone = when::zone();
    let mut table = Table::new().whole("TIME").whole("CHANGE").whole("FROM").whole("TO").cut("BY");
    let short = |hash: &Option<String>| {
        hash.as_deref().map_or_else(String::new, |hash| hash.chars().take(12).collect())
    };
    for change in &history {
        table.row([
            change.at.map_or_else(String::new, |at| when::local(at, &zone)).into(),
            (&change.kind).into(),
            short(&change.old_hash).into(),
            short(&change.new_hash).into(),
            change.by.as_deref().unwrap_or_default().into(),
        ]);
    }
    context.out.table(&table)?;
    Ok(Status::Done)
}
