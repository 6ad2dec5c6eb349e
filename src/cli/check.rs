//! `switchyard check`: is the configuration right, and do its servers answer?
//!
//! Changes when a check is reported differently. What is right is the configuration's matter.

use std::path::PathBuf;

use serde_json::json;

use super::table::{Cell, Style, Table};
use super::{CliError, Context, DEFAULT_CONFIG, Status, guard_children, servers, text, when};
use crate::app::{self, ServerProbe, StartError};
use crate::config::{self, Config};
use crate::model::{ServerName, ViewSpec};
use crate::store;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Validates a configuration without running it: syntax, keys, values, variables. With --connect it also connects to every server and lists its tools. Needs no running router.\n\nExit code 2 if the configuration is wrong, 1 if a server did not answer.",
    after_help = "Examples:\n  switchyard check\n  switchyard check /etc/switchyard.yaml --connect\n  switchyard check --connect --json"
)]
pub(super) struct Args {
    /// The file [default: --config, else ./switchyard.yaml]
    file: Option<PathBuf>,
    /// Connect to every server and list its tools
    #[arg(long)]
    connect: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    let path = args
        .file
        .or_else(|| context.config_path())
        .ok_or_else(|| CliError::NoConfig(DEFAULT_CONFIG.into()))?;
    let mut config = config::load(&path, &config::process_environment())?;
    guard_children(&mut config);
    if let Some(spool) = &config.audit.spool {
        store::spool_is_usable(spool)
            .map_err(|source| StartError::Spool { path: spool.clone(), source })?;
    }
    let probes = if args.connect { Some(Box::pin(app::probe(&config)).await) } else { None };
    let failed = probes.iter().flatten().filter(|probe| probe.result.is_err()).count();
    if context.out.is_json() {
        context.out.json(&as_json(&path.display().to_string(), &config, probes.as_deref()))?;
    } else {
        print(context, &path.display().to_string(), &config, probes.as_deref())?;
    }
    Ok(if failed == 0 { Status::Done } else { Status::Failed })
}

fn print(
    context: &Context,
    path: &str,
    config: &Config,
    probes: Option<&[ServerProbe]>,
) -> Result<(), CliError> {
    let out = &context.out;
    match probes {
        _ if config.servers.is_empty() => {}
        None => out.table(&configured(config))?,
        Some(probes) => {
            out.table(&probed(probes))?;
            for probe in probes {
                details(context, probe)?;
            }
        }
    }
    if !config.views.is_empty() {
        if !config.servers.is_empty() {
            out.line("")?;
        }
        out.table(&views(config, probes))?;
    }
    for note in &config.notes {
        out.line(out.paint(format!("note: {note}"), Style::Warn))?;
    }
    let servers = text::count(config.servers.len(), "server");
    let down = probes.unwrap_or_default().iter().filter(|probe| probe.result.is_err()).count();
    let (sentence, style) = match (probes, down) {
        (Some(_), 0) => (format!("{path}: good, {servers}, all answered"), Style::Good),
        (Some(_), down) => {
            (format!("{path}: good, but {down} of {servers} did not answer"), Style::Bad)
        }
        (None, _) => {
            (format!("{path}: good, {servers}, listens on {}", config.listen), Style::Good)
        }
    };
    out.line(out.paint(sentence, style))
}

fn configured(config: &Config) -> Table {
    let mut table = Table::new()
        .whole("NAME")
        .whole("TRANSPORT")
        .whole("ENABLED")
        .cut("TARGET")
        .cut("DESCRIPTION");
    for (name, spec) in &config.servers {
        let enabled =
            if spec.enabled { Cell::new("yes", Style::Good) } else { Cell::new("no", Style::Dim) };
        table.row([
            name.into(),
            spec.transport.kind().as_str().into(),
            enabled,
            servers::target(&spec.transport).into(),
            (&spec.description).into(),
        ]);
    }
    table
}

fn views(config: &Config, probes: Option<&[ServerProbe]>) -> Table {
    let mut table = Table::new().whole("VIEW").cut("SERVERS");
    if probes.is_some() {
        table = table.number("TOOLS");
    }
    let mut table = table.cut("ALLOW").cut("DENY").cut("DESCRIPTION");
    for (name, view) in &config.views {
        let servers = view.servers.as_ref().map_or_else(
            || "all".to_owned(),
            |servers| servers.iter().map(ServerName::as_str).collect::<Vec<_>>().join(", "),
        );
        let mut cells = vec![name.as_str().into(), servers.into()];
        if let Some(probes) = probes {
            let tools = offered(view, probes);
            let style = if tools == 0 { Style::Warn } else { Style::Plain };
            cells.push(Cell::new(tools.to_string(), style));
        }
        cells.extend([
            view.tools.allow.join(", ").into(),
            view.tools.deny.join(", ").into(),
            (&view.description).into(),
        ]);
        table.row(cells);
    }
    table
}

/// How many of the tools that servers have now are in a view.
fn offered(view: &ViewSpec, probes: &[ServerProbe]) -> usize {
    let tools = probes.iter().flat_map(|probe| {
        let found = probe.result.iter().flat_map(|found| &found.tools);
        found.map(|(tool, exposed, _)| (&probe.name, tool, exposed))
    });
    // What collides has no exposed name and is nowhere.
    tools
        .filter(|(server, tool, exposed)| !exposed.is_empty() && view.admits(server, tool, exposed))
        .count()
}

fn probed(probes: &[ServerProbe]) -> Table {
    let mut table = Table::new()
        .whole("NAME")
        .whole("RESULT")
        .number("TOOLS")
        .whole("TRANSPORT")
        .whole("PROTOCOL")
        .number("TIME")
        .cut("SERVER OR REASON");
    for probe in probes {
        let (result, tools, protocol, told) = match &probe.result {
            Ok(found) => (
                Cell::new("up", Style::Good),
                found.tools.len().to_string(),
                found.protocol_version.as_str(),
                found.server_name.as_str(),
            ),
            Err(reason) => {
                (Cell::new("failed", Style::Bad), String::new(), "", text::first_line(reason))
            }
        };
        table.row([
            (&probe.name).into(),
            result,
            tools.into(),
            probe.transport.into(),
            protocol.into(),
            when::elapsed(probe.elapsed).into(),
            told.into(),
        ]);
    }
    table
}

fn details(context: &Context, probe: &ServerProbe) -> Result<(), CliError> {
    let out = &context.out;
    out.line("")?;
    out.line(out.paint(&probe.name, Style::Bold))?;
    let found = match &probe.result {
        Ok(found) => found,
        Err(reason) => {
            return out.line(format!("  {}", text::escape_block(reason).replace('\n', "\n  ")));
        }
    };
    for note in &found.notes {
        out.line(format!("  {}", out.paint(format!("note: {note}"), Style::Warn)))?;
    }
    if found.tools.is_empty() {
        return out.line("  no tools");
    }
    let mut table = Table::new().whole("TOOL").whole("OWN NAME").cut("DESCRIPTION");
    for (upstream, exposed, description) in &found.tools {
        table.row([exposed.into(), upstream.into(), text::first_line(description).into()]);
    }
    out.table(&table)
}

fn as_json(path: &str, config: &Config, probes: Option<&[ServerProbe]>) -> String {
    let servers: Vec<_> = config
        .servers
        .iter()
        .map(|(name, spec)| json!({"name": name.as_str(), "spec": config::server_to_json(spec)}))
        .collect();
    let views: Vec<_> = config
        .views
        .iter()
        .map(|(name, view)| {
            let servers = view.servers.as_ref();
            let mut told = json!({
                "name": name.as_str(),
                "description": view.description,
                "servers": servers.map(|names| names.iter().map(ServerName::as_str).collect::<Vec<_>>()),
                "allow": view.tools.allow,
                "deny": view.tools.deny,
            });
            if let (Some(probes), Some(fields)) = (probes, told.as_object_mut()) {
                fields.insert("tools".to_owned(), offered(view, probes).into());
            }
            told
        })
        .collect();
    let mut told = json!({
        "path": path,
        "listen": config.listen.to_string(),
        "data_dir": config.data_dir.display().to_string(),
        "servers": servers,
        "views": views,
        "notes": config.notes,
    });
    let probes = probes.map(|probes| probes.iter().map(probe_json).collect::<Vec<_>>());
    if let (Some(probes), Some(fields)) = (probes, told.as_object_mut()) {
        fields.insert("probes".to_owned(), probes.into());
    }
    told.to_string()
}

fn probe_json(probe: &ServerProbe) -> serde_json::Value {
    let elapsed_ms = probe.elapsed.as_secs_f64() * 1000.0;
    let (name, transport) = (probe.name.as_str(), probe.transport);
    match &probe.result {
        Ok(found) => {
            let tools: Vec<_> = found
                .tools
                .iter()
                .map(|(tool, exposed, description)| {
                    json!({"tool": tool, "name": exposed, "description": description})
                })
                .collect();
            json!({
                "name": name, "transport": transport, "elapsed_ms": elapsed_ms, "success": true,
                "protocol_version": found.protocol_version, "server_name": found.server_name,
                "tools": tools, "notes": found.notes,
            })
        }
        Err(error) => json!({
            "name": name, "transport": transport, "elapsed_ms": elapsed_ms, "success": false,
            "error": error,
        }),
    }
}
