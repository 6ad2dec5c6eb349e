//! Keys and reload.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use http::StatusCode;
use serde::Serialize;
use tokio::sync::oneshot;

use super::{Shared, body};
use crate::edge::ReloadRequest;
use crate::edge::auth::RequestContext;
use crate::edge::error::ApiError;
use crate::error::ErrorCode;
use crate::model::{AuthKind, Scope, Scopes, cut_after, nearest};
use crate::store::EventRow;

const KEY_NAME_LIMIT: usize = 64;

pub(super) async fn reload(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
) -> Result<impl IntoResponse, ApiError> {
    let (answer, answered) = oneshot::channel();
    let gone = || ApiError::new(ErrorCode::Unexpected, "the router is shutting down");
    let request = ReloadRequest { actor: Arc::clone(&context.caller.name), answer };
    edge.reload.send(request).await.ok().ok_or_else(gone)?;
    let report = answered.await.ok().ok_or_else(gone)?;
    let report = report.map_err(|problem| ApiError::new(ErrorCode::InvalidRequest, problem))?;
    Ok(Json(serde_json::json!({
        "result": "ok", "servers": report.servers, "notes": report.notes,
    })))
}

#[derive(Serialize)]
struct KeyView {
    id: String,
    name: String,
    scopes: Vec<Scope>,
    created_at: String,
    last_used_at: Option<String>,
    expires_at: Option<String>,
    revoked_at: Option<String>,
}

pub(super) async fn keys(State(edge): State<Shared>) -> Result<impl IntoResponse, ApiError> {
    edge.keys.save_use().await?;
    let keys: Vec<KeyView> = edge
        .keys
        .list()
        .await?
        .into_iter()
        .map(|row| KeyView {
            id: row.id,
            name: row.name,
            scopes: row.scopes.iter().collect(),
            created_at: row.created_at.to_string(),
            last_used_at: row.last_used_at.map(|at| at.to_string()),
            expires_at: row.expires_at.map(|at| at.to_string()),
            revoked_at: row.revoked_at.map(|at| at.to_string()),
        })
        .collect();
    Ok(Json(serde_json::json!({ "keys": keys })))
}

#[derive(Serialize)]
struct CreatedKey {
    id: String,
    name: String,
    scopes: Vec<Scope>,
    key: String,
}

pub(super) async fn create_key(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    body: Body,
) -> Result<impl IntoResponse, ApiError> {
    let bytes = body::bytes(&edge, body).await?;
    let object = body::object(&bytes, &["name", "scopes", "expires_in"])?;
    let name =
        body::string(&object, "name")?.ok_or_else(|| ApiError::invalid("`name` is missing"))?;
    let reserved = ["anonymous", "admin-socket", "unauthenticated"].contains(&name.as_str());
    let plain =
        name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@'));
    if name.is_empty() || name.len() > KEY_NAME_LIMIT || reserved || !plain {
        return Err(ApiError::invalid(format!(
            "`name` must be 1 to {KEY_NAME_LIMIT} letters, digits, `-`, `_`, `.` or `@`, and not one of ours"
        )));
    }
    let scopes: Vec<String> = match object.get("scopes") {
        None => vec!["call".to_owned(), "read".to_owned()],
        Some(raw) => serde_json::from_str(raw.get())
            .ok()
            .ok_or_else(|| ApiError::invalid("`scopes` must be a list of names"))?,
    };
    let scopes = scopes.iter().map(|text| scope(text)).collect::<Result<Scopes, _>>()?;
    // A key must not be able to make a stronger one.
    if let Some(missing) = scopes.iter().find(|scope| !context.caller.may(*scope)) {
        let detail =
            format!("`{}` lacks the scope `{}` itself", context.caller.name, missing.as_str());
        return Err(ApiError::new(ErrorCode::Permission, detail));
    }
    let expires_in = body::span(&object, "expires_in")?;
    let made = edge.keys.create(&name, scopes, expires_in).await?;
    note(&edge, &context, "key.created", &made.name, &made.scopes.to_string()).await;
    let created = CreatedKey {
        id: made.id,
        name: made.name,
        scopes: made.scopes.iter().collect(),
        // The one place where a key is shown: to whom it was made for, once.
        key: made.key.expose().to_owned(),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

fn scope(text: &str) -> Result<Scope, ApiError> {
    Scope::parse(text).ok_or_else(|| {
        let names = Scope::ALL.map(Scope::as_str);
        let like = nearest(text, names.iter().copied(), 1);
        let hint = match like.first() {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("scopes are {}", names.join(", ")),
        };
        ApiError::invalid(format!("`{text}` is not a scope; {hint}"))
    })
}

pub(super) async fn revoke_key(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    if !edge.keys.revoke(&id).await? {
        let id = cut_after(&id, 64);
        return Err(ApiError::new(ErrorCode::NotFound, format!("there is no key `{id}` in force")));
    }
    note(&edge, &context, "key.revoked", &id, "").await;
    Ok(StatusCode::NO_CONTENT)
}

async fn note(edge: &Shared, context: &RequestContext, kind: &str, subject: &str, detail: &str) {
    let over_socket = context.caller.auth == AuthKind::Socket;
    let event = EventRow {
        at: crate::clock::timestamp(),
        actor: context.caller.name.as_ref().to_owned(),
        kind: kind.to_owned(),
        subject: subject.to_owned(),
        detail: serde_json::json!({ "scopes": detail, "over_socket": over_socket }).to_string(),
    };
    if let Err(error) = edge.store.append_event(&event).await {
        tracing::error!(%error, "an administrative act could not be recorded: {error}");
    }
    tracing::info!(actor = %context.caller.name, kind, "{kind} {subject} by {}", context.caller.name);
}
