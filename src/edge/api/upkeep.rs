//! Removing from the ledger on demand.
//!
//! Changes when something else can be removed. Each is recorded as an act before it begins.

use std::future::Future;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::{Extension, Json};

use super::{Shared, audit, body};
use crate::edge::auth::RequestContext;
use crate::edge::error::ApiError;
use crate::error::ErrorCode;
use crate::model::{AuthKind, CallId, cut_after};
use crate::store::{EraseOf, EventRow, StoreError};

pub(super) async fn purge(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    body: Body,
) -> Result<impl IntoResponse, ApiError> {
    let bytes = body::bytes(&edge, body).await?;
    let object = body::object(&bytes, &["before"])?;
    let before =
        body::string(&object, "before")?.ok_or_else(|| ApiError::invalid("`before` is missing"))?;
    let cutoff = audit::point("before", &before)?;
    let now = crate::clock::timestamp();
    if cutoff > now {
        return Err(ApiError::invalid(format!(
            "`before`: {cutoff} has not come yet (it is {now}); say a time that is past"
        )));
    }
    let detail = serde_json::json!({ "before": cutoff.to_string() });
    record(&edge, &context, "audit.purge", detail).await?;
    let (retention, actor) = (Arc::clone(&edge.retention), Arc::clone(&context.caller.name));
    let purging = async move { retention.purge(cutoff, &actor).await };
    Ok(Json(to_the_end(&edge, purging).await?))
}

pub(super) async fn erase(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    body: Body,
) -> Result<impl IntoResponse, ApiError> {
    let bytes = body::bytes(&edge, body).await?;
    let object = body::object(&bytes, &["caller", "call"])?;
    let of = match (body::string(&object, "caller")?, body::string(&object, "call")?) {
        (Some(caller), None) => EraseOf::Caller(caller),
        (None, Some(id)) => EraseOf::Call(CallId::parse(&id).ok_or_else(|| {
            let id = cut_after(&id, 64);
            ApiError::invalid(format!("`{id}` is not a call id; ids look like 0193e0a4-…"))
        })?),
        (None, None) | (Some(_), Some(_)) => {
            return Err(ApiError::invalid("say either `caller` or `call`"));
        }
    };
    // Calls that have ended are to be found.
    edge.audit.flush().await;
    let detail = match &of {
        EraseOf::Caller(name) => serde_json::json!({ "caller": edge.audit.redacted(name) }),
        EraseOf::Call(id) => {
            if edge.ledger.get(*id).await?.is_none() {
                let detail = format!("there is no call {id} in the ledger");
                return Err(ApiError::new(ErrorCode::NotFound, detail));
            }
            serde_json::json!({ "call": id.to_string() })
        }
    };
    record(&edge, &context, "audit.erase", detail).await?;
    let (retention, actor) = (Arc::clone(&edge.retention), Arc::clone(&context.caller.name));
    let erasing = async move { retention.erase(&of, &actor).await };
    Ok(Json(to_the_end(&edge, erasing).await?))
}

/// What was begun goes on when whoever asked for it does not wait, until the router ends: then it ends
/// between two steps.
async fn to_the_end<T: Send + 'static>(
    edge: &Shared,
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let stop = edge.stop.clone();
    let work = edge.tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => Err(StoreError::Closed),
            done = work => done,
        }
    });
    work.await.unwrap_or(Err(StoreError::Closed))
}

/// What cannot be undone is not done without a record of it.
async fn record(
    edge: &Shared,
    context: &RequestContext,
    kind: &str,
    mut detail: serde_json::Value,
) -> Result<(), ApiError> {
    if let Some(detail) = detail.as_object_mut() {
        let over_socket = context.caller.auth == AuthKind::Socket;
        detail.insert("over_socket".to_owned(), over_socket.into());
    }
    let event = EventRow {
        at: crate::clock::timestamp(),
        actor: context.caller.name.as_ref().to_owned(),
        kind: kind.to_owned(),
        subject: "ledger".to_owned(),
        detail: detail.to_string(),
    };
    edge.store.append_event(&event).await?;
    tracing::info!(actor = %context.caller.name, kind, "{kind} by {}", context.caller.name);
    Ok(())
}
