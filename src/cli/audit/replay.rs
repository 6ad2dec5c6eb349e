//! `switchyard audit replay`: recorded calls of tools that change nothing, made again, and how the answers
//! compare.
//!
//! Changes when a comparison shows something else. Which calls may be made again at all is decided here:
//! those of tools that are declared read-only now by servers that are believed, at the router the calls are
//! made at and at the one whose ledger is read, and whose arguments were kept whole. Nothing else is ever sent.

mod compare;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use self::compare::{Kept, is_whole};
use super::super::client::{Ask, CALL_PATIENCE, Client};
use super::super::table::{Cell, Style, Table};
use super::super::temp_folder::TempFolder;
use super::super::{CliError, Context, Status, guard_children, notice, text, when};
use super::list_limit;
use crate::app::App;
use crate::clock;
use crate::config;
use crate::model::{REPLAY_CLIENT, REPLAY_HEADER};

/// Calls of a page.
const PAGE: usize = 500;
/// Differences that are listed for people; all are in `--json`.
const LISTED: usize = 20;
/// How long a candidate may take to know its tools.
const START: std::time::Duration = std::time::Duration::from_secs(60);

/// Arguments of `audit replay`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only calls that began then or later
    #[arg(long, value_name = "TIME", default_value = "1h")]
    since: String,
    /// Only calls that began before
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only calls to this server
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Only calls of this tool
    #[arg(long, value_name = "NAME")]
    tool: Option<String>,
    /// Only calls of this caller
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,
    /// At most so many of those that can be made again, the newest
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = list_limit)]
    limit: usize,
    /// Make them with the servers of this configuration instead of those that run
    #[arg(long, value_name = "FILE")]
    candidate: Option<PathBuf>,
    /// Print what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Deserialize)]
struct Page {
    calls: Vec<Recorded>,
    #[serde(default)]
    next_cursor: Option<String>,
}

/// A call as the ledger has it.
#[derive(Deserialize)]
struct Recorded {
    id: String,
    tool: String,
    #[serde(default)]
    server: Option<String>,
    outcome: String,
    #[serde(default)]
    error_code: Option<String>,
    #[serde(default)]
    client_name: Option<String>,
    duration_ms: f64,
}

#[derive(Deserialize)]
struct Payloads {
    #[serde(default)]
    arguments: Option<Box<RawValue>>,
    #[serde(default)]
    result: Option<Value>,
}

#[derive(Deserialize)]
struct Tools {
    tools: Vec<Tool>,
}

#[derive(Deserialize)]
struct Tool {
    /// None for one that is held back.
    #[serde(default)]
    name: Option<String>,
    server_name: String,
    /// Whether it is declared to change nothing by a server that is believed.
    #[serde(default)]
    read_only: bool,
}

#[derive(Deserialize)]
struct Answered {
    success: bool,
    #[serde(default)]
    data: Option<Value>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    error_code: Option<String>,
    execution_time_ms: f64,
}

/// What became of one call.
#[derive(Serialize)]
struct Replayed {
    id: String,
    tool: String,
    outcome_then: String,
    outcome_now: String,
    same_outcome: bool,
    /// Null where nothing was kept to compare with.
    same_shape: Option<bool>,
    ms_then: f64,
    ms_now: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_now: Option<String>,
}

/// A call that can be made again, with its arguments and what is kept of its result.
type Suitable = (Recorded, Box<RawValue>, Option<Value>);

/// What is to be made again, and what is not.
struct Plan {
    /// Oldest first.
    calls: Vec<Suitable>,
    /// Of those that are no older than the first of these, or all where there is no more.
    skipped: BTreeMap<&'static str, usize>,
    /// Whether there are earlier calls that could be made again.
    more: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    let source = context.client()?;
    match args.candidate.clone() {
        None => replay(context, &args, &source, &source).await,
        Some(path) => {
            let folder = TempFolder::create()?;
            let mut config = config::load(&path, &config::process_environment())?;
            // What the real ledger has outside its folder is not this one's.
            config.audit.checkpoints = None;
            config.audit.spool = None;
            config.listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
            config.data_dir = folder.path().to_owned();
            guard_children(&mut config);
            let app = App::start(config).await?;
            let target = Client::socket(folder.path())?;
            let done = async {
                ready(&app, &target).await?;
                replay(context, &args, &source, &target).await
            };
            let status = done.await;
            app.shutdown().await;
            folder.remove()?;
            status
        }
    }
}

/// Waits until every server was asked once.
async fn ready(app: &App, client: &Client) -> Result<(), CliError> {
    let until = clock::uptime().plus(START);
    // It is ready sooner: a server that is slow to start must not fail what it would have answered.
    while !(app.has_asked() && client.ask(Ask::get(&["readyz"])).await?.status.is_success())
        && clock::uptime() < until
    {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn replay(
    context: &Context,
    args: &Args,
    source: &Client,
    target: &Client,
) -> Result<Status, CliError> {
    let plan = plan(args, source, target).await?;
    if args.dry_run {
        show_plan(context, &plan)?;
        return Ok(Status::Done);
    }
    let mut replayed = Vec::with_capacity(plan.calls.len());
    for (call, arguments, result) in &plan.calls {
        // As they were kept, byte for byte.
        let body = format!(r#"{{"tool_name":{},"arguments":{arguments}}}"#, json!(call.tool));
        let ask = Ask::post(&["mcp", "call"]).json(body).header(REPLAY_HEADER, "1");
        let ask = ask.patient(CALL_PATIENCE);
        // Whatever its status: a refusal is an outcome, too.
        let answer: Answered = target.ask(ask).await?.parse()?;
        replayed.push(judge(call, result.as_ref(), answer));
    }
    show(context, &plan, &replayed)?;
    let same = |one: &Replayed| one.same_outcome && one.same_shape != Some(false);
    Ok(if replayed.iter().all(same) { Status::Done } else { Status::Failed })
}

fn judge(call: &Recorded, result: Option<&Value>, answer: Answered) -> Replayed {
    let word = |code: Option<&String>| code.cloned().unwrap_or_else(|| "ok".to_owned());
    let (then, now) = (word(call.error_code.as_ref()), word(answer.error_code.as_ref()));
    let kept = result.and_then(Kept::read);
    let same_shape = kept.zip(answer.data.as_ref()).map(|(kept, now)| kept.fits(now));
    Replayed {
        id: call.id.clone(),
        tool: call.tool.clone(),
        same_outcome: then == now,
        outcome_then: then,
        outcome_now: now,
        same_shape,
        ms_then: call.duration_ms,
        ms_now: answer.execution_time_ms,
        error_now: answer.error.filter(|_| !answer.success),
    }
}

/// The tools that are declared read-only by servers that are believed, by exposed name and server.
async fn read_only(client: &Client) -> Result<BTreeSet<(String, String)>, CliError> {
    let tools: Tools = client.request(Ask::get(&["mcp", "tools"])).await?.parse()?;
    let tools = tools.tools.into_iter().filter(|tool| tool.read_only);
    Ok(tools.filter_map(|tool| Some((tool.name?, tool.server_name))).collect())
}

async fn plan(args: &Args, source: &Client, target: &Client) -> Result<Plan, CliError> {
    let (there, here) = (read_only(source).await?, read_only(target).await?);
    let mut plan = Plan { calls: Vec::new(), skipped: BTreeMap::new(), more: false };
    let mut recorded = Newest::new(args)?;
    'all: while let Some(page) = recorded.page(args, source).await? {
        for call in page {
            let tool = (call.tool.clone(), call.server.clone().unwrap_or_default());
            let found = if !there.contains(&tool) || !here.contains(&tool) {
                Err(
                    "the tool is not declared read-only, its server is not trusted, or it is not there",
                )
            } else {
                suitable(call, source).await?
            };
            match found {
                // One more is looked for, to say that there is one.
                Ok(_) if plan.calls.len() >= args.limit => {
                    plan.more = true;
                    break 'all;
                }
                Ok(found) => plan.calls.push(found),
                Err(why) if plan.calls.len() < args.limit => {
                    *plan.skipped.entry(why).or_default() += 1;
                }
                Err(_) => {}
            }
        }
    }
    plan.calls.reverse();
    Ok(plan)
}

/// A call of a tool that may be called again, or why this call is not made again.
async fn suitable(
    call: Recorded,
    source: &Client,
) -> Result<Result<Suitable, &'static str>, CliError> {
    if call.client_name.as_deref() == Some(REPLAY_CLIENT) {
        return Ok(Err("a replay made it"));
    }
    if matches!(call.outcome.as_str(), "refused" | "cancelled" | "interrupted") {
        return Ok(Err("it was not answered then"));
    }
    let kept: Payloads = source.request(Ask::get(&["mcp", "audit", &call.id])).await?.parse()?;
    Ok(match kept.arguments {
        Some(arguments) if is_sendable(&arguments) => Ok((call, arguments, kept.result)),
        _ => Err("its arguments were not kept whole"),
    })
}

/// Whether arguments are an object of which nothing was taken out.
fn is_sendable(arguments: &RawValue) -> bool {
    serde_json::from_str::<Value>(arguments.get())
        .is_ok_and(|value| value.is_object() && is_whole(&value))
}

/// Reads calls page by page, the newest first.
struct Newest {
    since: Option<String>,
    until: Option<String>,
    /// Where the next page begins; `None` when there is none.
    next: Option<Option<String>>,
}

impl Newest {
    fn new(args: &Args) -> Result<Self, CliError> {
        let (now, zone) = (clock::timestamp(), when::zone());
        // Until now: what the replay itself makes is not in it.
        let until = args.until.as_deref().unwrap_or("now");
        let (since, until) = when::span(Some(&args.since), Some(until), now, &zone)?;
        Ok(Self { since, until, next: Some(None) })
    }

    async fn page(
        &mut self,
        args: &Args,
        client: &Client,
    ) -> Result<Option<Vec<Recorded>>, CliError> {
        let Some(cursor) = self.next.take() else { return Ok(None) };
        let ask = Ask::get(&["mcp", "audit"])
            .with("since", self.since.as_deref())
            .with("until", self.until.as_deref())
            .with("server", args.server.as_deref())
            .with("tool", args.tool.as_deref())
            .with("caller", args.caller.as_deref())
            .with("limit", Some(PAGE.to_string()))
            .with("cursor", cursor);
        let page: Page = client.request(ask).await?.parse()?;
        self.next = page.next_cursor.map(Some);
        Ok(Some(page.calls))
    }
}

fn show_plan(context: &Context, plan: &Plan) -> Result<(), CliError> {
    for (call, arguments, _) in &plan.calls {
        let (id, server, tool) = (json!(call.id), json!(call.server), json!(call.tool));
        let line = format!(
            r#"{{"id":{id},"server":{server},"tool_name":{tool},"arguments":{arguments}}}"#
        );
        context.out.line(text::escape_json(&line))?;
    }
    told(plan);
    notice(format!("{} would be made again", text::count(plan.calls.len(), "call")));
    Ok(())
}

fn told(plan: &Plan) {
    for (why, count) in &plan.skipped {
        notice(format!("{} left out: {why}", text::count(*count, "call")));
    }
    if plan.more {
        notice(format!("the newest {} of more; --limit for more", plan.calls.len()));
    }
}

fn show(context: &Context, plan: &Plan, replayed: &[Replayed]) -> Result<(), CliError> {
    if context.out.is_json() {
        let answer = json!({ "calls": replayed, "skipped": plan.skipped, "more": plan.more });
        return context.out.json(&answer.to_string());
    }
    let mut by_tool: BTreeMap<&str, Vec<&Replayed>> = BTreeMap::new();
    for one in replayed {
        by_tool.entry(&one.tool).or_default().push(one);
    }
    let mut table = Table::new()
        .whole("TOOL")
        .number("CALLS")
        .number("OTHER OUTCOME")
        .number("OTHER SHAPE")
        .number("P50 THEN")
        .number("P50 NOW");
    for (tool, calls) in &by_tool {
        let count = |wrong: &dyn Fn(&&&Replayed) -> bool| calls.iter().filter(wrong).count();
        let (outcome, shape) =
            (count(&|one| !one.same_outcome), count(&|one| one.same_shape == Some(false)));
        let number = |number: usize| {
            Cell::new(number.to_string(), if number > 0 { Style::Bad } else { Style::Plain })
        };
        let plain = |text: String| Cell::new(text, Style::Plain);
        table.row([
            plain((*tool).to_owned()),
            plain(calls.len().to_string()),
            number(outcome),
            number(shape),
            plain(when::milliseconds(median(calls.iter().map(|one| one.ms_then)))),
            plain(when::milliseconds(median(calls.iter().map(|one| one.ms_now)))),
        ]);
    }
    context.out.table(&table)?;
    let differ: Vec<_> =
        replayed.iter().filter(|one| !one.same_outcome || one.same_shape == Some(false)).collect();
    for one in differ.iter().take(LISTED) {
        let what = match (one.same_outcome, &one.error_now) {
            (false, Some(error)) => {
                format!(
                    "{} then, {} now: {}",
                    one.outcome_then,
                    one.outcome_now,
                    text::first_line(error)
                )
            }
            (false, None) => format!("{} then, {} now", one.outcome_then, one.outcome_now),
            (true, _) => "the result has another shape".to_owned(),
        };
        context.out.line(text::escape_line(&format!("{}  {}  {what}", one.id, one.tool)))?;
    }
    told(plan);
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
