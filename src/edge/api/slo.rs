//! What is promised of servers and tools, and how their calls stand to it, over HTTP.
//!
//! Changes when a promise shows something else. What counts is `audit`'s, rules are `metrics`'.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::query::Asked;
use crate::audit::Promise;
use crate::catalogue::{Catalogue, CatalogueEntry, expose};
use crate::clock;
use crate::edge::error::ApiError;
use crate::error::ErrorCode;
use crate::metrics::{RuleScope, RuleTarget, burn_rate_rules};
use crate::model::{
    NamingMode, Objective, ServerName, SloSpec, ToolName, escape_line, format_duration,
};
use crate::registry::ServerHandle;
use crate::store::IndexState;

/// One objective, and how the calls stand to it.
#[derive(Serialize)]
struct ObjectiveView {
    server: ServerName,
    /// The tool as its server names it; absent where all of the server's calls are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<String>,
    /// The same tool as clients see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    exposed: Option<String>,
    objective: &'static str,
    target: f64,
    within_ms: Option<f64>,
    window: String,
    /// Calls of the window that count, and those of them that were not good.
    calls: u64,
    bad: u64,
    /// Null without calls.
    attained: Option<f64>,
    met: bool,
    /// The part of the error budget that is left; below 0 when it is overdrawn.
    budget_left: f64,
    /// How many times faster it is used up than would just last; null without calls.
    burn_hour: Option<f64>,
    burn_day: Option<f64>,
}

#[derive(Serialize)]
struct Objectives {
    total: usize,
    objectives: Vec<ObjectiveView>,
    index: IndexState,
}

/// One objective of one server or tool.
struct Said {
    server: ServerName,
    tool: Option<String>,
    exposed: Option<String>,
    objective: Objective,
    window: Duration,
}

/// Everything that is promised, by server, the server's own first.
fn said(edge: &Shared) -> Vec<Said> {
    let (servers, catalogue) = (edge.registry.servers(), edge.catalogue(None));
    let naming = catalogue.parts().naming;
    let mut all = Vec::new();
    for server in servers.values().filter(|server| !server.retired) {
        let mut push = |tool: Option<&str>, slo: &SloSpec| {
            let exposed = tool.map(|tool| exposed(&catalogue, naming, server, tool));
            all.extend(slo.objectives().map(|objective| Said {
                server: server.name.clone(),
                tool: tool.map(str::to_owned),
                exposed: exposed.clone(),
                objective,
                window: slo.window,
            }));
        };
        if let Some(slo) = &server.spec.slo {
            push(None, slo);
        }
        for (tool, said) in &server.spec.tool_overrides {
            if let Some(slo) = &said.slo {
                push(Some(tool), slo);
            }
        }
    }
    all
}

/// The name that clients see; the one by rule while the tool is not listed.
fn exposed(catalogue: &Catalogue, naming: NamingMode, server: &ServerHandle, tool: &str) -> String {
    let is_it = |entry: &&std::sync::Arc<CatalogueEntry>| {
        entry.server.name == server.name && entry.tool.as_str() == tool
    };
    if let Some(entry) = catalogue.entries().iter().find(is_it) {
        return entry.exposed.as_str().to_owned();
    }
    let by_rule = ToolName::parse(tool).ok().and_then(|tool| {
        let names = expose(&[(server.name.clone(), tool)], &[], naming).names;
        names.into_iter().flatten().next()
    });
    by_rule.map_or_else(|| tool.to_owned(), |name| name.as_str().to_owned())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SloParameters {
    server: Option<String>,
}

pub(super) async fn list(
    State(edge): State<Shared>,
    Asked(query): Asked<SloParameters>,
) -> Result<impl IntoResponse, ApiError> {
    let mut said = said(&edge);
    if let Some(server) = query.server {
        if edge.registry.server(&server).is_none() {
            let mut error = ApiError::new(
                ErrorCode::ServerNotFound,
                format!("there is no server `{}`", escape_line(&server)),
            );
            error.nearest = edge.registry.nearest(&server);
            return Err(error);
        }
        said.retain(|said| said.server.as_str() == server);
    }
    let promises: Vec<Promise> = said
        .iter()
        .map(|said| Promise {
            server: said.server.clone(),
            tool: said.exposed.clone(),
            objective: said.objective,
            window: said.window,
        })
        .collect();
    // As with sums: whoever asks after a call has come back expects it to be counted.
    edge.audit.flush().await;
    let (standings, index) = edge.ledger.standings(&promises, clock::timestamp()).await?;
    let objectives: Vec<ObjectiveView> = said
        .into_iter()
        .zip(standings)
        .map(|(said, standing)| {
            let (objective, target) = (said.objective, said.objective.target);
            ObjectiveView {
                server: said.server,
                tool: said.tool,
                exposed: said.exposed,
                objective: objective.name,
                target,
                within_ms: objective.within.map(|within| within.as_secs_f64() * 1000.0),
                window: format_duration(said.window),
                calls: standing.window.calls,
                bad: standing.window.bad,
                attained: standing.window.attained(),
                met: standing.window.meets(target),
                budget_left: standing.window.budget_left(target),
                burn_hour: standing.hour.burn(target),
                burn_day: standing.day.burn(target),
            }
        })
        .collect();
    Ok(Json(Objectives { total: objectives.len(), objectives, index }))
}

/// Rules for Prometheus.
pub(super) async fn rules(State(edge): State<Shared>) -> impl IntoResponse {
    let catalogue = edge.catalogue(None);
    let targets: Vec<RuleTarget> = said(&edge)
        .into_iter()
        .map(|said| RuleTarget {
            scope: match said.exposed {
                Some(exposed) => RuleScope::Tool(exposed),
                None => whole(&edge, &catalogue, &said.server),
            },
            server: said.server.as_str().to_owned(),
            tool: said.tool,
            objective: said.objective,
            window: said.window,
        })
        .collect();
    ([(CONTENT_TYPE, "application/yaml")], burn_rate_rules(&targets))
}

/// All tools of a server, as they are told apart in the metrics.
fn whole(edge: &Shared, catalogue: &Catalogue, server: &ServerName) -> RuleScope {
    match catalogue.parts().naming {
        NamingMode::Prefix => {
            let prefix = |server: &ServerName| {
                let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                let clean = server.as_str().chars().map(|c| if fits(c) { c } else { '_' });
                clean.chain("__".chars()).collect::<String>()
            };
            let own = prefix(server);
            let servers = edge.registry.servers();
            let longer = servers
                .keys()
                .map(prefix)
                .filter(|other| other.len() > own.len() && other.starts_with(&own));
            RuleScope::Prefix(own.clone(), longer.collect())
        }
        NamingMode::Bare => {
            let own = catalogue.entries().iter().filter(|entry| entry.server.name == *server);
            RuleScope::Tools(own.map(|entry| entry.exposed.as_str().to_owned()).collect())
        }
    }
}
