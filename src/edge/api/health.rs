//! Health: of the process, and of every server.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use futures_util::future::join_all;
use http::StatusCode;
use serde::Serialize;

use super::Shared;
use crate::clock;
use crate::model::BreakerState;
use crate::protocol::OutgoingRequest;
use crate::registry::{ServerHandle, ServerState};

/// A server that says nothing for this long is not healthy now.
const CHECK: Duration = Duration::from_secs(5);
/// The start counts as done after this, whatever servers still keep silent: whoever starts a router can
/// count on it within two seconds.
const START_UP_BOUND: Duration = Duration::from_millis(1500);

#[derive(Serialize)]
struct ServerHealth {
    name: String,
    healthy: bool,
    state: &'static str,
    /// The state of its circuit breaker, which these questions neither ask nor tell.
    breaker: BreakerState,
    latency_ms: Option<f64>,
    error: Option<String>,
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    servers: Vec<ServerHealth>,
}

/// Asks every enabled server now, all at once, with a bound.
pub(super) async fn servers(State(edge): State<Shared>) -> impl IntoResponse {
    let all = edge.registry.servers();
    let checks = all.values().map(|handle| check(Arc::clone(handle)));
    let servers = join_all(checks).await;
    let healthy = servers.iter().all(|server| server.healthy || server.state == "disabled");
    Json(Health { status: if healthy { "ok" } else { "degraded" }, servers })
}

async fn check(handle: Arc<ServerHandle>) -> ServerHealth {
    let name = handle.name.as_str().to_owned();
    if !handle.enabled {
        let state = ServerState::Disabled.as_str();
        let breaker = handle.breaker.status().state;
        return ServerHealth {
            name,
            healthy: false,
            state,
            breaker,
            latency_ms: None,
            error: None,
        };
    }
    let began = clock::uptime();
    let asked = tokio::time::timeout(CHECK, ask(&handle)).await;
    let took = clock::uptime().since(began).as_secs_f64() * 1000.0;
    let (healthy, error) = match asked {
        Ok(Ok(())) => (true, None),
        Ok(Err(problem)) => (problem.answered, Some(handle.scrub(&problem.text))),
        Err(_) => (false, Some(format!("no answer within {} s", CHECK.as_secs()))),
    };
    let state = if healthy { ServerState::Up } else { ServerState::Down }.as_str();
    let breaker = handle.breaker.status().state;
    ServerHealth { name, healthy, state, breaker, latency_ms: healthy.then_some(took), error }
}

/// Why a server did not answer as it should.
struct Problem {
    text: String,
    /// It is there all the same, and does not let us in.
    answered: bool,
}

impl Problem {
    fn new(error: &impl ToString, http_status: Option<u16>) -> Self {
        Self { text: error.to_string(), answered: matches!(http_status, Some(401 | 403)) }
    }
}

/// A question that every server of its era must answer, and that runs no tool.
async fn ask(handle: &ServerHandle) -> Result<(), Problem> {
    let leased = handle.lease().await;
    let lease = leased.map_err(|error| Problem::new(&error, error.http_status()))?;
    let method = match lease.peer().version.era() {
        crate::model::Era::Legacy => "ping",
        crate::model::Era::Modern => "server/discover",
    };
    // An error is an answer, and an answer proves life.
    let answer = lease.request(&OutgoingRequest::new(method), CHECK, None).await;
    if answer.is_err() && !lease.is_alive() {
        handle.invalidate(&lease);
    }
    answer.map(drop).map_err(|error| Problem::new(&error, error.http_status()))
}

pub(super) async fn live() -> impl IntoResponse {
    (StatusCode::OK, "ok\n")
}

/// Ready: the database answers, the ledger takes calls, and servers whose tools are not known had their
/// chance to answer.
pub(super) async fn ready(State(edge): State<Shared>) -> impl IntoResponse {
    if edge.stop.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the router is stopping\n");
    }
    let started = edge.discovery.start_up_done()
        || edge.discovery.knows_all()
        || clock::uptime().since(crate::model::Uptime::default()) > START_UP_BOUND;
    if !started {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "servers are still being asked for their tools\n",
        );
    }
    if edge.audit.is_full() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the ledger's queue is full\n");
    }
    if !edge.audit.is_healthy() && !edge.audit.spools() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the ledger cannot be written\n");
    }
    if !edge.audit.is_begun() && !edge.audit.spools() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the ledger is being taken up\n");
    }
    if edge.audit.lacks_space() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the disk of the ledger is nearly full\n");
    }
    match edge.store.events(1).await {
        Ok(_) if edge.audit.spools() => {
            (StatusCode::OK, "ready; the ledger cannot be written and waits in its spool\n")
        }
        Ok(_) if edge.audit.lacks_spool() => (
            StatusCode::OK,
            "ready; the ledger's spool could not be opened, see the router's log\n",
        ),
        Ok(_) if !edge.discovery.start_up_done() => {
            (StatusCode::OK, "ready; servers are still being asked for their tools\n")
        }
        Ok(_) => (StatusCode::OK, "ready\n"),
        Err(error) => {
            tracing::error!(%error, "the database does not answer: {error}");
            (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n")
        }
    }
}
