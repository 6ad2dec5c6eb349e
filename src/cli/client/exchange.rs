//! One exchange with the router: what is asked, and what came.
//!
//! Changes when requests have other parts.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde::de::DeserializeOwned;
use url::Url;

use super::{ClientError, PATIENCE, Problem};

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Status.
    pub(crate) status: StatusCode,
    /// Headers.
    pub(crate) headers: HeaderMap,
    /// Body, whole.
    pub(crate) body: Bytes,
    pub(super) route: String,
}

impl Answer {
    /// The answer if the router did what was asked.
    pub(crate) fn accepted(self) -> Result<Self, ClientError> {
        if self.status.is_success() {
            Ok(self)
        } else {
            Err(ClientError::Refused(Box::new(Problem::read(self.status, &self.body))))
        }
    }

    /// The body as text.
    pub(crate) fn text(&self) -> Result<&str, ClientError> {
        std::str::from_utf8(&self.body).map_err(|error| self.unreadable(&error))
    }

    /// The body as a value.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(|error| self.unreadable(&error))
    }

    fn unreadable(&self, error: &dyn fmt::Display) -> ClientError {
        ClientError::Unreadable { route: self.route.clone(), reason: error.to_string() }
    }
}

/// A request to the router.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(super) method: Method,
    segments: Vec<String>,
    query: Vec<(&'static str, String)>,
    pub(super) headers: Vec<(Cow<'static, str>, String)>,
    pub(super) body: Option<Bytes>,
    pub(super) patience: Duration,
}

impl Ask {
    /// A request; each part of `path` is one segment and is encoded as such.
    pub(crate) fn new(method: Method, path: &[&str]) -> Self {
        Self {
            method,
            segments: path.iter().map(|segment| (*segment).to_owned()).collect(),
            query: Vec::new(),
            headers: Vec::new(),
            body: None,
            patience: PATIENCE,
        }
    }

    /// A read.
    pub(crate) fn get(path: &[&str]) -> Self {
        Self::new(Method::GET, path)
    }

    /// A change.
    pub(crate) fn post(path: &[&str]) -> Self {
        Self::new(Method::POST, path)
    }

    /// With a query parameter, unless it is `None`.
    pub(crate) fn with(mut self, name: &'static str, value: Option<impl Into<String>>) -> Self {
        self.query.extend(value.map(|value| (name, value.into())));
        self
    }

    /// With a header.
    pub(crate) fn header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
    ) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With a JSON body.
    pub(crate) fn json(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// With another bound for the whole exchange.
    pub(crate) fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// What it asks for, for messages.
    pub(super) fn route(&self) -> String {
        format!("{} /{}", self.method, self.segments.join("/"))
    }

    pub(super) fn url(&self, base: &Url) -> Url {
        let mut url = base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(&self.segments);
        }
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        url
    }
}
