//! Circuit breakers over HTTP: how they stand, how they came to it, and an operator's word.
//!
//! Changes when a breaker shows something else or can be told something else. Reading asks the
//! database for the history; no call waits for that.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::query::{self, Asked};
use super::{Shared, body, servers};
use crate::clock;
use crate::edge::Edge;
use crate::edge::auth::RequestContext;
use crate::edge::error::ApiError;
use crate::error::ErrorCode;
use crate::model::{
    BreakerEvent, BreakerState, ServerName, ToolName, TransitionReason, cut_after, nearest,
};
use crate::registry::{BreakerCommand, BreakerView, Order, ServerBreaker, ServerHandle};
use crate::store::EventRow;

/// Transitions shown with a breaker; the rest is in its history.
const LAST: u32 = 5;
/// Transitions of a page unless asked otherwise.
const PAGE: u16 = 100;
/// Characters of an operator's reason: it goes to callers.
const REASON_LIMIT: usize = 500;

/// How one breaker stands.
#[derive(Serialize)]
pub(super) struct Standing {
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<String>,
    state: BreakerState,
    /// Counted failures in a row, and how many open it.
    failures: u32,
    threshold: u32,
    /// Openings since it was last closed by success.
    trips: u32,
    /// When it lets an attempt through again; null when it does, or when only an operator will.
    open_until: Option<String>,
    /// When a repeat makes sense; null unless it refuses now.
    retry_after_ms: Option<u64>,
    /// Probes under way.
    probing: u32,
    reason: Option<TransitionReason>,
    last_error: Option<String>,
    last_error_at: Option<String>,
    forced: Option<Forced>,
    generation: u64,
}

/// An operator's word, as long as it holds.
#[derive(Serialize)]
struct Forced {
    by: Option<String>,
    note: Option<String>,
    until: Option<String>,
}

#[derive(Serialize)]
struct Breaker {
    #[serde(flatten)]
    standing: Standing,
    last_transitions: Vec<Change>,
    /// What an operator should know of an order that was just given.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'static str>,
}

/// The order is in force; a crash before it is stored would undo it.
const NOT_STORED: &str =
    "in force, but not stored yet: the database cannot be written at the moment";

#[derive(Serialize)]
pub(super) struct BreakerList {
    circuit_breakers: Vec<Breaker>,
    total: usize,
}

/// One transition.
#[derive(Serialize)]
struct Change {
    at: String,
    from: BreakerState,
    to: BreakerState,
    reason: TransitionReason,
    failures: u32,
    trips: u32,
    error: Option<String>,
    actor: Option<String>,
    note: Option<String>,
    open_for_ms: Option<u64>,
}

#[derive(Serialize)]
struct Entry {
    id: i64,
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<String>,
    #[serde(flatten)]
    change: Change,
}

#[derive(Serialize)]
pub(super) struct History {
    transitions: Vec<Entry>,
    next_before: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParameters {
    server: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    tool: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryParameters {
    tool: Option<String>,
    limit: Option<String>,
    before: Option<String>,
}

/// Rounded up: whoever comes back then is not too early.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn standing(handle: &ServerHandle, view: BreakerView) -> Standing {
    let status = view.status;
    let until = view.until.map(|at| at.to_string());
    let (open_until, forced) = match status.state {
        BreakerState::Open => (until, None),
        BreakerState::ForcedOpen | BreakerState::ForcedClosed => {
            let Order { actor, note } = match view.forced {
                Some(order) => order,
                None => Order { actor: String::new(), note: None },
            };
            let by = Some(actor).filter(|actor| !actor.is_empty());
            let open = status.state == BreakerState::ForcedOpen;
            (until.clone().filter(|_| open), Some(Forced { by, note, until }))
        }
        BreakerState::Closed | BreakerState::HalfOpen => (None, None),
    };
    Standing {
        server: view.server.as_str().to_owned(),
        tool: view.tool.map(|tool| tool.as_str().to_owned()),
        state: status.state,
        failures: status.failures,
        threshold: handle.settings.breaker.threshold,
        trips: status.trips,
        open_until,
        retry_after_ms: view.refusal.and_then(|refusal| refusal.retry_after()).map(millis),
        probing: status.probing,
        reason: view.reason,
        last_error: view.last_error,
        last_error_at: view.last_error_at.map(|at| at.to_string()),
        forced,
        generation: status.generation,
    }
}

/// How the breakers of a server stand: its own first.
pub(super) fn of_server(edge: &Edge, handle: &ServerHandle) -> Vec<Standing> {
    let breakers = edge.registry.breakers().of_server(&handle.name);
    breakers.iter().map(|breaker| standing(handle, breaker.view())).collect()
}

fn change(event: BreakerEvent) -> Change {
    Change {
        at: event.at.to_string(),
        from: event.from,
        to: event.to,
        reason: event.reason,
        failures: event.failures,
        trips: event.trips,
        error: event.error,
        actor: event.actor,
        note: event.note,
        open_for_ms: event.open_for.map(millis),
    }
}

async fn show_one(
    edge: &Shared,
    handle: &ServerHandle,
    breaker: &ServerBreaker,
) -> Result<Breaker, ApiError> {
    let view = breaker.view();
    // A tool's breaker that never changed has no history: a server can have thousands of them.
    let last = match &view.tool {
        Some(_) if view.reason.is_none() => Vec::new(),
        tool => edge.store.breaker_transitions(&view.server, tool.as_ref(), LAST, None).await?,
    };
    Ok(Breaker {
        standing: standing(handle, view),
        last_transitions: last.into_iter().map(change).collect(),
        warning: None,
    })
}

/// The breaker of a server, or of the named tool of it.
fn find(
    edge: &Shared,
    name: &str,
    tool: Option<&str>,
) -> Result<(Arc<ServerHandle>, Arc<ServerBreaker>), ApiError> {
    let handle = servers::find(edge, name)?;
    let Some(tool) = tool else {
        let breaker = Arc::clone(&handle.breaker);
        return Ok((handle, breaker));
    };
    let breakers = edge.registry.breakers().of_server(&handle.name);
    let views = breakers.iter().map(|breaker| (breaker, breaker.view().tool));
    let of_tools: Vec<_> = views.filter_map(|(breaker, of)| Some((breaker, of?))).collect();
    if let Some((breaker, _)) = of_tools.iter().find(|(_, of)| of.as_str() == tool) {
        return Ok((handle, Arc::clone(breaker)));
    }
    let tool = cut_after(tool, 128);
    let mut error = ApiError::new(
        ErrorCode::NotFound,
        if of_tools.is_empty() {
            format!("the tools of server `{name}` have no breakers of their own; leave `tool` out")
        } else {
            format!("no tool `{tool}` of server `{name}` has a breaker")
        },
    );
    error.nearest = nearest(&tool, of_tools.iter().map(|(_, of)| of.as_str()), 3);
    Err(error)
}

/// All breakers, or those of one server. That is how a server with a name that is another route's is
/// shown, such as `history`.
pub(super) async fn list(
    State(edge): State<Shared>,
    Asked(query): Asked<ListParameters>,
) -> Result<Json<BreakerList>, ApiError> {
    let one = query.server;
    let handles = match &one {
        Some(name) => vec![servers::find(&edge, name)?],
        None => edge.registry.servers().values().cloned().collect(),
    };
    edge.registry.breakers().written().await;
    let mut circuit_breakers = Vec::new();
    for handle in handles {
        for breaker in edge.registry.breakers().of_server(&handle.name) {
            circuit_breakers.push(show_one(&edge, &handle, &breaker).await?);
        }
    }
    Ok(Json(BreakerList { total: circuit_breakers.len(), circuit_breakers }))
}

pub(super) async fn show(
    State(edge): State<Shared>,
    Path(name): Path<String>,
    Asked(which): Asked<Which>,
) -> Result<impl axum::response::IntoResponse, ApiError> {
    let (handle, breaker) = find(&edge, &name, which.tool.as_deref())?;
    edge.registry.breakers().written().await;
    Ok(Json(show_one(&edge, &handle, &breaker).await?))
}

pub(super) async fn history(
    State(edge): State<Shared>,
    Asked(query): Asked<HistoryParameters>,
) -> Result<Json<History>, ApiError> {
    page(&edge, None, query).await
}

pub(super) async fn history_of(
    State(edge): State<Shared>,
    Path(name): Path<String>,
    Asked(query): Asked<HistoryParameters>,
) -> Result<Json<History>, ApiError> {
    let server = match ServerName::parse(&name) {
        Ok(server) => server,
        // Gives the answer that an unknown name gets everywhere.
        Err(_not_a_name) => servers::find(&edge, &name)?.name.clone(),
    };
    let history = page(&edge, Some(&server), query).await?;
    if history.transitions.is_empty() {
        // The history of a server that was removed stays; without any it is unknown.
        servers::find(&edge, &name)?;
    }
    Ok(history)
}

async fn page(
    edge: &Shared,
    server: Option<&ServerName>,
    query: HistoryParameters,
) -> Result<Json<History>, ApiError> {
    let tool = query.tool.as_deref().map(ToolName::parse).transpose();
    let tool = tool.map_err(|error| ApiError::invalid(format!("`tool`: {error}")))?;
    let limit = query::limit(query.limit.as_deref(), PAGE)?;
    let before = query.before.as_deref().map(str::parse).transpose();
    let before =
        before.map_err(|_no_number| ApiError::invalid("`before` is a number: `next_before`"))?;
    // One more shows whether there are others.
    let wanted = u32::from(limit) + 1;
    edge.registry.breakers().written().await;
    let mut events = match (server, &tool) {
        (Some(server), Some(tool)) => {
            edge.store.breaker_transitions(server, Some(tool), wanted, before).await?
        }
        (None, Some(_)) => {
            let detail = "`tool` belongs to a server: ask for /mcp/circuit-breakers/NAME/history";
            return Err(ApiError::invalid(detail));
        }
        (server, None) => edge.store.breaker_events(server, wanted, before).await?,
    };
    let more = events.len() > usize::from(limit);
    events.truncate(limit.into());
    let next_before = events.last().map(|event| event.id).filter(|_| more);
    let transitions = events.into_iter().map(|event| Entry {
        id: event.id,
        server: event.server.as_str().to_owned(),
        tool: event.tool.as_ref().map(|tool| tool.as_str().to_owned()),
        change: change(event),
    });
    Ok(Json(History { transitions: transitions.collect(), next_before }))
}

/// What an operator can want of a breaker: one route for each.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    Reset,
    Open,
    Close,
}

/// An operator's words.
struct Words {
    reason: Option<String>,
    during: Option<Duration>,
}

impl Act {
    const fn event_kind(self) -> &'static str {
        match self {
            Self::Reset => "breaker.reset",
            Self::Open => "breaker.forced_open",
            Self::Close => "breaker.forced_closed",
        }
    }

    fn read(self, bytes: &[u8], clean: impl Fn(&str) -> String) -> Result<Words, ApiError> {
        let known: &[&str] = match self {
            Self::Reset => &["reason"],
            Self::Open | Self::Close => &["reason", "duration"],
        };
        let empty = bytes.trim_ascii().is_empty();
        let object = body::object(if empty { b"{}" } else { bytes }, known)?;
        let reason = body::string(&object, "reason")?.map(|text| text.trim().to_owned());
        let reason = reason.filter(|text| !text.is_empty());
        if reason.as_ref().is_some_and(|text| text.chars().count() > REASON_LIMIT) {
            return Err(ApiError::invalid(format!(
                "`reason` is longer than {REASON_LIMIT} characters"
            )));
        }
        if reason.is_none() && matches!(self, Self::Open) {
            return Err(ApiError::invalid(
                "`reason` is missing: those whose calls are refused are told it",
            ));
        }
        let reason = reason.map(|text| clean(&text));
        Ok(Words { reason, during: body::span(&object, "duration")? })
    }

    const fn command(self, during: Option<Duration>) -> BreakerCommand {
        match self {
            Self::Reset => BreakerCommand::Reset,
            Self::Open => BreakerCommand::ForceOpen { during },
            Self::Close => BreakerCommand::ForceClosed { during },
        }
    }
}

/// Does what the route of an [`Act`] is for.
pub(super) async fn act(
    Extension(act): Extension<Act>,
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    Path(name): Path<String>,
    Asked(which): Asked<Which>,
    body: Body,
) -> Result<impl axum::response::IntoResponse, ApiError> {
    let (handle, breaker) = find(&edge, &name, which.tool.as_deref())?;
    let words = act.read(&body::bytes(&edge, body).await?, |text| edge.audit.redacted(text))?;
    let actor = context.caller.name.as_ref().to_owned();
    let order = Order { actor: actor.clone(), note: words.reason.clone() };
    breaker.command(act.command(words.during), Some(&order));
    // Answered when it is stored: what an operator was told holds over a crash.
    let stored = edge.registry.breakers().written().await;
    let kind = act.event_kind();
    let event = EventRow {
        at: clock::timestamp(),
        actor: actor.clone(),
        kind: kind.to_owned(),
        subject: handle.name.as_str().to_owned(),
        detail: serde_json::json!({
            "tool": which.tool,
            "reason": words.reason,
            "duration_ms": words.during.map(millis),
        })
        .to_string(),
    };
    if let Err(error) = edge.store.append_event(&event).await {
        tracing::error!(%error, "an administrative act could not be recorded: {error}");
    }
    tracing::info!(server.name = %handle.name, actor, kind, "{kind} {} by {actor}", handle.name);
    let shown = show_one(&edge, &handle, &breaker).await?;
    Ok(Json(Breaker { warning: (!stored).then_some(NOT_STORED), ..shown }))
}
