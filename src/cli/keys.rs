//! `switchyard keys`: makes, lists and revokes keys.
//!
//! Changes when a key gets a property. A key is shown once, when it is made.

use serde::{Deserialize, Serialize};

use super::client::Ask;
use super::table::{Cell, Style, Table};
use super::{CliError, Context, Status, notice, text, when};
use crate::clock;
use crate::model::{Scope, Timestamp, parse_duration};

/// Arguments of `keys`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Makes, lists and revokes keys. Over the admin socket this needs no key, so the first one can be made.",
    after_help = "Examples:\n  switchyard keys create laptop\n  switchyard keys list\n  switchyard keys revoke laptop"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a key and show it, once
    #[command(
        after_help = "Examples:\n  switchyard keys create laptop\n  switchyard keys create dashboard --scopes read,metrics --expires 90d\n  switchyard keys create ops --scopes call,read,audit,metrics,admin\n\nScopes: call (list and call tools), read (servers, tools, health), audit (the ledger),\nmetrics, admin (change servers, keys, configuration)."
    )]
    Create {
        /// What the ledger calls its bearer
        name: String,
        /// What it may do: call, read, audit, metrics, admin
        #[arg(long, visible_alias = "scope", value_delimiter = ',', value_parser = scope, default_value = "call,read", value_name = "SCOPE,…")]
        scopes: Vec<Scope>,
        /// How long it is valid, as in 30d [default: until revoked]
        #[arg(long, value_name = "DURATION")]
        expires: Option<String>,
    },
    /// List keys, without the keys themselves
    #[command(after_help = "Examples:\n  switchyard keys list\n  switchyard keys list --json")]
    List,
    /// Make a key invalid at once
    #[command(after_help = "Examples:\n  switchyard keys revoke laptop")]
    Revoke {
        /// Name or id of the key
        name: String,
    },
}

fn scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).ok_or_else(|| {
        let known: Vec<&str> = Scope::ALL.into_iter().map(Scope::as_str).collect();
        format!("`{text}` is not a scope; there are {}", known.join(", "))
    })
}

#[derive(Serialize)]
struct NewKey<'a> {
    name: &'a str,
    scopes: &'a [Scope],
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in: Option<f64>,
}

#[derive(Deserialize)]
struct MadeKey {
    name: String,
    key: String,
    #[serde(default)]
    scopes: Vec<String>,
}

#[derive(Deserialize)]
struct KeyList {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    id: serde_json::Value,
    name: String,
    #[serde(default)]
    scopes: Vec<String>,
    #[serde(default, deserialize_with = "when::from_api")]
    created_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "when::from_api")]
    last_used_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "when::from_api")]
    expires_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "when::from_api")]
    revoked_at: Option<Timestamp>,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    match args.action.unwrap_or(Action::List) {
        Action::Create { name, scopes, expires } => create(context, &name, &scopes, expires).await,
        Action::List => list(context).await,
        Action::Revoke { name } => {
            let client = context.client()?;
            client.request(Ask::new(http::Method::DELETE, &["admin", "keys", &name])).await?;
            if !context.out.is_json() {
                context.out.line(context.out.paint(format!("revoked {name}"), Style::Good))?;
            }
            Ok(Status::Done)
        }
    }
}

async fn create(
    context: &Context,
    name: &str,
    scopes: &[Scope],
    expires: Option<String>,
) -> Result<Status, CliError> {
    let expires_in = expires.as_deref().map(parse_duration).transpose()?;
    let new = NewKey { name, scopes, expires_in: expires_in.map(|time| time.as_secs_f64()) };
    let body = serde_json::to_vec(&new).unwrap_or_default();
    let client = context.client()?;
    let answer = client.request(Ask::post(&["admin", "keys"]).json(body)).await?;
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
        return Ok(Status::Done);
    }
    let made: MadeKey = answer.parse()?;
    // The key alone goes to standard output, so that `KEY=$(switchyard keys create x)` works.
    notice(format!(
        "key `{}` with scopes {}; it is shown this once and stored only as a digest:",
        made.name,
        made.scopes.join(", ")
    ));
    context.out.line(text::escape_line(&made.key))?;
    notice("use it as `Authorization: Bearer KEY`, or in SWITCHYARD_KEY together with --url");
    Ok(Status::Done)
}

async fn list(context: &Context) -> Result<Status, CliError> {
    let client = context.client()?;
    let answer = client.request(Ask::get(&["admin", "keys"])).await?;
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
        return Ok(Status::Done);
    }
    let KeyList { keys } = answer.parse()?;
    if keys.is_empty() {
        context.out.line("no keys yet; make one with `switchyard keys create NAME`")?;
        return Ok(Status::Done);
    }
    let zone = when::zone();
    let now = clock::timestamp();
    let time = |at: Option<Timestamp>| at.map_or_else(String::new, |at| when::local(at, &zone));
    let mut table = Table::new()
        .cut("NAME")
        .whole("STATE")
        .cut("SCOPES")
        .whole("CREATED")
        .whole("LAST USED")
        .whole("EXPIRES")
        .cut("ID");
    for key in &keys {
        let state = if key.revoked_at.is_some() {
            Cell::new("revoked", Style::Dim)
        } else if key.expires_at.is_some_and(|at| at <= now) {
            Cell::new("expired", Style::Warn)
        } else {
            Cell::new("valid", Style::Good)
        };
        table.row([
            (&key.name).into(),
            state,
            key.scopes.join(",").into(),
            time(key.created_at).into(),
            key.last_used_at.map_or_else(|| "never".to_owned(), |at| time(Some(at))).into(),
            time(key.expires_at).into(),
            Cell::new(
                key.id.as_str().map_or_else(|| key.id.to_string(), str::to_owned),
                Style::Dim,
            ),
        ]);
    }
    context.out.table(&table)?;
    Ok(Status::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn scopes(words: &[&str]) -> Result<Vec<Scope>, clap::Error> {
        let words = ["switchyard", "keys", "create", "laptop"].iter().chain(words);
        match super::super::Cli::try_parse_from(words)?.command {
            Some(super::super::Command::Keys(Args {
                action: Some(Action::Create { scopes, .. }),
            })) => Ok(scopes),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn scopes_are_given_in_one_word_or_in_many() {
        let expected = [Scope::Read, Scope::Metrics];
        assert_eq!(scopes(&["--scopes", "read,metrics"]).unwrap(), expected);
        assert_eq!(scopes(&["--scope", "read", "--scope", "metrics"]).unwrap(), expected);
        assert_eq!(scopes(&[]).unwrap(), [Scope::Call, Scope::Read]);
        let error = scopes(&["--scope", "root"]).unwrap_err().to_string();
        assert!(error.contains("call, read"), "{error}");
    }

    #[test]
    fn the_short_help_names_every_scope() {
        let command = <super::super::Cli as clap::CommandFactory>::command();
        let create = command.find_subcommand("keys").and_then(|c| c.find_subcommand("create"));
        let help = create.unwrap().clone().render_help().to_string();
        let line = help.lines().find(|line| line.contains("What it may do")).unwrap();
        for scope in Scope::ALL {
            assert!(line.contains(scope.as_str()), "{line}");
        }
    }
}
