//! [`ApiError`]: what the REST routes answer when they do not do what was asked (RFC 9457).

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use crate::config::ConfigError;
use crate::error::ErrorCode;
use crate::registry::RegistryError;
use crate::store::StoreError;

/// A refusal or failure of a REST route.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) code: ErrorCode,
    pub(super) detail: String,
    pub(super) status: Option<u16>,
    pub(super) nearest: Vec<String>,
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    error_code: ErrorCode,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    nearest: &'a [String],
}

impl ApiError {
    pub(super) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), status: None, nearest: Vec::new() }
    }

    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, detail)
    }

    pub(super) fn status(&self) -> u16 {
        self.status.unwrap_or_else(|| self.code.http_status())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let problem = Problem {
            r#type: "about:blank",
            title: self.code.title(),
            status,
            detail: &self.detail,
            error_code: self.code,
            nearest: &self.nearest,
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = Response::new(body.into());
        *response.status_mut() =
            StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == 401 {
            headers
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"switchyard\""));
        }
        if status == 503 {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let code = error.code();
        if code == ErrorCode::Unexpected {
            tracing::error!(%error, "the database failed a request: {error}");
        }
        Self::new(code, error.to_string())
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        let detail = error.to_string();
        let code = error.code();
        match error {
            RegistryError::Store(error) => error.into(),
            RegistryError::Unknown { nearest, .. } => Self { nearest, ..Self::new(code, detail) },
            RegistryError::Exists { .. }
            | RegistryError::Retired { .. }
            | RegistryError::FromFile { .. }
            | RegistryError::Target { .. } => Self::new(code, detail),
        }
    }
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        Self::invalid(error.to_string())
    }
}
