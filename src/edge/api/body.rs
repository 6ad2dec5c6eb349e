//! Bodies of REST requests, read strictly.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use serde_json::value::RawValue;

use super::Shared;
use crate::edge::door::read_body;
use crate::edge::error::ApiError;
use crate::model::{cut_after, nearest, parse_duration};
use crate::protocol::RawObject;

/// Reads a request's body within the limit.
pub(super) async fn bytes(edge: &Shared, body: Body) -> Result<Bytes, ApiError> {
    let limit = edge.settings.load().body_limit;
    read_body(body, limit).await
}

/// Reads a body as one JSON object with no other keys than `known`.
///
/// # Errors
/// When it is no object, has a key twice or one that is not known (the nearest is named).
pub(super) fn object<'a>(body: &'a [u8], known: &[&str]) -> Result<RawObject<'a>, ApiError> {
    let text = std::str::from_utf8(body)
        .map_err(|error| ApiError::invalid(format!("the body is not UTF-8: {error}")))?;
    let object = RawObject::parse(text)
        .map_err(|error| ApiError::invalid(format!("the body is not a JSON object: {error}")))?;
    if let Some((key, _)) = object.iter().find(|(key, _)| !known.contains(key)) {
        let like = nearest(key, known.iter().copied(), 1);
        let hint = match like.first() {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known keys: {}", known.join(", ")),
        };
        let key = cut_after(key, 64);
        return Err(ApiError::invalid(format!("unknown key `{key}`; {hint}")));
    }
    Ok(object)
}

/// A string member; absent or null is `None`.
pub(super) fn string(object: &RawObject<'_>, key: &str) -> Result<Option<String>, ApiError> {
    match object.get(key) {
        None => Ok(None),
        Some(raw) if raw.get() == "null" => Ok(None),
        Some(_) => match object.get_str(key) {
            Some(text) => Ok(Some(text.into_owned())),
            None => Err(ApiError::invalid(format!("`{key}` must be a string"))),
        },
    }
}

/// A member that is a duration above zero: a number of seconds, or a text such as `250ms`.
pub(super) fn span(object: &RawObject<'_>, key: &str) -> Result<Option<Duration>, ApiError> {
    let Some(raw) = object.get(key).map(RawValue::get).filter(|raw| *raw != "null") else {
        return Ok(None);
    };
    let text = object.get_str(key).map_or_else(|| raw.to_owned(), std::borrow::Cow::into_owned);
    let span =
        parse_duration(&text).map_err(|error| ApiError::invalid(format!("`{key}`: {error}")))?;
    if span.is_zero() {
        return Err(ApiError::invalid(format!("`{key}` must be above zero")));
    }
    Ok(Some(span))
}
