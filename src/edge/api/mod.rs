//! The REST API: one table of routes, each with the scope it needs.
//!
//! Changes when a route comes or goes.

mod admin;
mod audit;
mod audit_stats;
mod body;
mod breakers;
mod call;
mod health;
mod query;
mod servers;
mod slo;
mod tools;
mod upkeep;
mod views;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Router};

use self::breakers::Act;
use super::Edge;
use super::auth::RequestContext;
use super::error::ApiError;
use super::tally::Denied;
use crate::error::ErrorCode;
use crate::metrics::{AuthFailure, CONTENT_TYPE};
use crate::model::{Scope, cut_after};

type Shared = Arc<Edge>;

/// Every route but `POST /mcp` and the same at a view, which the front door takes itself. It also
/// finds the view, so that none of these meets an unknown one.
pub(super) fn routes(edge: Shared) -> Router {
    let call = Router::new()
        .route("/mcp", get(no_session).delete(no_session))
        .route("/mcp/v/{view}", get(no_session).delete(no_session))
        .route("/mcp/call", post(call::call));
    let read = Router::new()
        .route("/mcp/servers", get(servers::list).post(servers::add))
        .route(
            "/mcp/servers/{name}",
            get(servers::show).put(servers::replace).delete(servers::remove),
        )
        .route("/mcp/servers/{name}/tools", get(tools::of_server))
        .route("/mcp/tools", get(tools::list))
        .route("/mcp/tools/{name}/history", get(tools::history))
        .route("/mcp/circuit-breakers", get(breakers::list))
        .route("/mcp/circuit-breakers/history", get(breakers::history))
        .route("/mcp/circuit-breakers/{name}", get(breakers::show))
        .route("/mcp/circuit-breakers/{name}/history", get(breakers::history_of))
        .route("/mcp/views", get(views::list))
        .route("/mcp/health", get(health::servers));
    let on_breaker = |act: Act| post(breakers::act).layer(Extension(act));
    let admin = Router::new()
        .route("/mcp/servers/{name}/enable", post(servers::enable))
        .route("/mcp/servers/{name}/disable", post(servers::disable))
        .route("/mcp/servers/{name}/refresh", post(servers::refresh))
        .route("/mcp/servers/{name}/reconnect", post(servers::reconnect))
        .route("/mcp/circuit-breakers/{name}/reset", on_breaker(Act::Reset))
        .route("/mcp/circuit-breakers/{name}/open", on_breaker(Act::Open))
        .route("/mcp/circuit-breakers/{name}/close", on_breaker(Act::Close))
        .route("/mcp/tools/{name}/approve", post(tools::approve))
        .route("/mcp/audit/purge", post(upkeep::purge))
        .route("/mcp/audit/erase", post(upkeep::erase))
        .route("/admin/reload", post(admin::reload))
        .route("/admin/keys", get(admin::keys).post(admin::create_key))
        .route("/admin/keys/{id}", delete(admin::revoke_key));
    let audit = Router::new()
        .route("/mcp/audit", get(audit::list))
        .route("/mcp/audit/events", get(audit::events))
        .route("/mcp/audit/export", get(audit::export))
        .route("/mcp/audit/tail", get(audit::tail))
        .route("/mcp/audit/stats", get(audit_stats::stats))
        .route("/mcp/audit/{id}", get(audit::show))
        .route("/mcp/slo", get(slo::list))
        .route("/mcp/slo/rules", get(slo::rules));
    let metrics = Router::new().route("/metrics", get(metrics));
    let scoped = |routes: Router<Shared>, scope: Scope| {
        routes
            .route_layer(middleware::from_fn_with_state((Arc::clone(&edge), scope), require_scope))
    };
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .merge(scoped(call, Scope::Call))
        .merge(scoped(read, Scope::Read))
        .merge(scoped(admin, Scope::Admin))
        .merge(scoped(audit, Scope::Audit))
        .merge(scoped(metrics, Scope::Metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(edge)
}

/// Refuses callers without the scope; on a route that reads, every method that changes something
/// needs `admin`.
async fn require_scope(
    State((edge, scope)): State<(Shared, Scope)>,
    request: Request,
    next: Next,
) -> Response {
    let needed = match scope {
        Scope::Read if !request.method().is_safe() => Scope::Admin,
        scope => scope,
    };
    match request.extensions().get::<RequestContext>() {
        Some(context) if context.caller.may(needed) => next.run(request).await,
        Some(context) => {
            let detail = format!(
                "`{}` lacks the scope `{}`; use a key that has it, or the admin socket",
                context.caller.name,
                needed.as_str()
            );
            let error = ApiError::new(ErrorCode::Permission, detail);
            let denied = Denied {
                caller: &context.caller.name,
                method: request.method(),
                path: request.uri().path(),
                peer: context.via.address(),
                says: &error.detail,
            };
            edge.denied(AuthFailure::Scope, &denied);
            if request.uri().path() == "/mcp/call" {
                call::refuse(&edge, context, &error).await;
            }
            error.into_response()
        }
        None => ApiError::new(ErrorCode::Authentication, "a key is needed").into_response(),
    }
}

async fn not_found(request: Request) -> ApiError {
    let path = cut_after(request.uri().path(), 128);
    ApiError::new(ErrorCode::NotFound, format!("there is no route {path}"))
}

async fn method_not_allowed(request: Request) -> ApiError {
    let path = cut_after(request.uri().path(), 128);
    let detail = format!("{} is not a method of {path}", request.method());
    ApiError::new(ErrorCode::MethodNotAllowed, detail)
}

/// What comes here is no request of a session: those are taken at the door.
async fn no_session() -> ApiError {
    let detail = "POST messages; GET and DELETE belong to a session and need its Mcp-Session-Id";
    ApiError::new(ErrorCode::MethodNotAllowed, detail)
}

async fn metrics(State(edge): State<Shared>) -> Result<Response, ApiError> {
    // With thousands of tools it takes milliseconds, and this thread serves calls.
    let rendered = tokio::task::spawn_blocking(move || edge.metrics.render()).await;
    let failed = |error: &dyn std::fmt::Display| {
        ApiError::new(ErrorCode::Unexpected, format!("the metrics could not be rendered: {error}"))
    };
    let text = rendered.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    Ok(([(http::header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}
