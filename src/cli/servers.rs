//! `switchyard servers`: the servers behind the router.
//!
//! Changes when an operator can say something else to a server. What is seen of one is `show`'s, how a
//! new one is written `add`'s.

mod add;
mod show;

use std::time::Duration;

use http::Method;

use self::add::Add;
pub(super) use self::add::AddError;
pub(super) use self::show::{Server, target};
use super::client::{Ask, Client};
use super::table::Style;
use super::{CliError, Context, Status, notice, text};
use crate::model::{ServerName, ServerSpec, Uptime};
use crate::{clock, config};

/// Arguments of `servers`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Shows the servers behind the router, adds and removes them. Changes hold at once and over restarts; servers from the configuration file are changed there.",
    after_help = "Examples:\n  switchyard servers\n  switchyard servers add time -- uvx mcp-server-time\n  switchyard servers show time"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List servers with their state
    #[command(
        after_help = "Examples:\n  switchyard servers list\n  switchyard servers list --json"
    )]
    List,
    /// Show one server: state, settings, last error, the end of its standard error
    #[command(after_help = "Examples:\n  switchyard servers show github")]
    Show {
        /// The server's name
        name: String,
    },
    /// Add a server by its address or its command
    #[command(
        after_help = "Examples:\n  switchyard servers add docs https://mcp.example.com/mcp\n  switchyard servers add gh https://api.example.com/mcp --header 'Authorization=Bearer ${TOKEN}'\n  switchyard servers add files -- npx -y @modelcontextprotocol/server-filesystem /srv/files\n  switchyard servers add db --env 'DSN=${DSN}' --cwd /srv -- ./mcp-db --read-only\n\n${VAR} is expanded by the router when it connects, so single quotes keep secrets out of the\nregistry. A command runs in the router's folder unless --cwd names another."
    )]
    Add(Add),
    /// Remove a server; its command is ended with all it started
    #[command(after_help = "Examples:\n  switchyard servers remove files")]
    Remove {
        /// The server's name
        name: String,
    },
    /// Route calls to a server again
    #[command(after_help = "Examples:\n  switchyard servers enable files")]
    Enable {
        /// The server's name
        name: String,
    },
    /// Route no calls to a server; lasts over restarts and reloads
    #[command(after_help = "Examples:\n  switchyard servers disable files")]
    Disable {
        /// The server's name
        name: String,
    },
    /// Open a new connection to a server, or start its program anew
    #[command(after_help = "Examples:\n  switchyard servers reconnect files")]
    Reconnect {
        /// The server's name
        name: String,
    },
    /// Ask a server for its tools again
    #[command(after_help = "Examples:\n  switchyard servers refresh files")]
    Refresh {
        /// The server's name
        name: String,
    },
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    match args.action.unwrap_or(Action::List) {
        Action::List => show::list(context).await,
        Action::Show { name } => show::show(context, &name).await,
        Action::Add(add) => {
            let (name, spec) = add.spec()?;
            let client = context.client()?;
            post(&client, Method::POST, &name, &spec).await?;
            report(context, &client, name.as_str()).await
        }
        Action::Remove { name } => {
            let client = context.client()?;
            client.request(Ask::new(Method::DELETE, &["mcp", "servers", &name])).await?;
            if !context.out.is_json() {
                context.out.line(context.out.paint(format!("removed {name}"), Style::Good))?;
            }
            Ok(Status::Done)
        }
        Action::Enable { name } => {
            let client = context.client()?;
            client.request(Ask::post(&["mcp", "servers", &name, "enable"])).await?;
            report(context, &client, &name).await
        }
        Action::Disable { name } => {
            let client = context.client()?;
            let ask = Ask::post(&["mcp", "servers", &name, "disable"]);
            let answer = client.request(ask).await?;
            if context.out.is_json() {
                context.out.json(answer.text()?)?;
            } else {
                context.out.line(context.out.paint(format!("disabled {name}"), Style::Good))?;
            }
            Ok(Status::Done)
        }
        Action::Reconnect { name } => {
            let client = context.client()?;
            let ask = Ask::post(&["mcp", "servers", &name, "reconnect"]);
            client.request(ask.patient(REFRESH_PATIENCE)).await?;
            report(context, &client, &name).await
        }
        Action::Refresh { name } => {
            let client = context.client()?;
            let ask = Ask::post(&["mcp", "servers", &name, "refresh"]);
            client.request(ask.patient(REFRESH_PATIENCE)).await?;
            report(context, &client, &name).await
        }
    }
}

/// Sends a server's specification: `POST` adds it, `PUT` replaces it.
pub(super) async fn post(
    client: &Client,
    method: Method,
    name: &ServerName,
    spec: &ServerSpec,
) -> Result<(), CliError> {
    let mut body = config::server_to_json_full(spec);
    if let Some(fields) = body.as_object_mut() {
        fields.insert("name".to_owned(), name.as_str().into());
    }
    let path: &[&str] = if method == Method::PUT {
        &["mcp", "servers", name.as_str()]
    } else {
        &["mcp", "servers"]
    };
    client.request(Ask::new(method, path).json(body.to_string())).await?;
    Ok(())
}

/// A first start of `npx` or `uvx` downloads; beyond this the state is shown as it is.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
/// The router bounds a discovery by the server's own time limits.
const REFRESH_PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// Waits until a server's state is known and says it.
async fn report(context: &Context, client: &Client, name: &str) -> Result<Status, CliError> {
    let begin: Uptime = clock::uptime();
    let (server, answer) = loop {
        let answer = client.request(Ask::get(&["mcp", "servers", name])).await?;
        let server: Server = answer.parse()?;
        if server.state != "connecting" || clock::uptime().since(begin) > CONNECT_PATIENCE {
            break (server, answer);
        }
        tokio::time::sleep(POLL).await;
    };
    let (status, style, sentence) = match server.state.as_str() {
        "up" => (
            Status::Done,
            Style::Good,
            format!(
                "{name} is up: {} over {}",
                text::count(server.tools, "tool"),
                server.transport
            ),
        ),
        "connecting" => (
            Status::Done,
            Style::Warn,
            format!("{name} is still connecting; see `switchyard servers show {name}`"),
        ),
        "disabled" => (Status::Done, Style::Warn, format!("{name} is disabled")),
        _ => (
            Status::Failed,
            Style::Bad,
            format!(
                "{name} is registered but not reachable: {}",
                server.last_error.as_deref().unwrap_or("no reason known yet")
            ),
        ),
    };
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
    } else {
        context.out.line(context.out.paint(sentence, style))?;
        if status == Status::Failed {
            notice(format!(
                "the router keeps trying; see `switchyard servers show {name}`, or `switchyard servers remove {name}`"
            ));
        }
    }
    Ok(status)
}
