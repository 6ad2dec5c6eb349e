//! `GET /mcp/audit/export`: everything in the ledger that a filter admits, oldest first.
//!
//! Changes when an export can be asked for differently. The formats are `audit::export`'s.
//!
//! The body asks for the next calls when the connection takes them, in a short transaction of its
//! own: whoever reads slowly costs the memory of one stretch and keeps nothing in the database.

use std::borrow::Cow;
use std::fmt;
use std::vec;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use url::form_urlencoded;

use super::chain::{self, CHAIN};
use super::{is_true, unpaged, with_own};
use crate::audit::{CallRecordDetail, Durability, Encoder, ExportFormat, Payloads};
use crate::edge::api::Shared;
use crate::edge::auth::RequestContext;
use crate::edge::door::MayBeCut;
use crate::edge::error::ApiError;
use crate::edge::tally::SearchedText;
use crate::error::ErrorCode;
use crate::model::{AuthKind, cut_after, nearest};
use crate::store::{AuditFilter, EventRow, StoreError};

/// Calls read at once.
const STRETCH: u16 = 1000;
/// Bytes handed to the connection at once, about: some tens of calls, after which those of others
/// on this thread have their turn.
const CHUNK: usize = 16 * 1024;

/// What an export is asked for.
struct Wanted {
    format: ExportFormat,
    payloads: Payloads,
    filter: AuditFilter,
}

/// Reads the parameters: two of its own, and all of the list's that filter.
fn wanted(query: &str) -> Result<Wanted, ApiError> {
    let ([format, payloads], parameters) = with_own(query, ["format", "payloads"])?;
    let format = match format.as_deref() {
        None => ExportFormat::Jsonl,
        Some(text) => ExportFormat::parse(text).ok_or_else(|| {
            let [jsonl, csv] = ExportFormat::ALL.map(ExportFormat::as_str);
            let names = [jsonl, csv, CHAIN];
            let text = cut_after(text, 64);
            let hint = match nearest(&text, names.iter().copied(), 1).first() {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("formats are {}", names.join(", ")),
            };
            ApiError::invalid(format!("`format`: `{text}` is not one; {hint}"))
        })?,
    };
    let payloads = match is_true("payloads", payloads.as_deref())? {
        false => Payloads::Without,
        true => Payloads::With,
    };
    Ok(Wanted { format, payloads, filter: unpaged(&parameters, "an export")? })
}

pub(in crate::edge::api) async fn export(
    State(edge): State<Shared>,
    Extension(context): Extension<RequestContext>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = query.unwrap_or_default();
    if chain::is_wanted(&query) {
        return chain::export(edge, &context, &query).await;
    }
    let Wanted { format, payloads, filter } = wanted(&query)?;
    // Whoever exports after a call has come back expects to find it.
    edge.audit.flush().await;
    // Calls that come meanwhile are not in it: it would never end.
    let through = edge.ledger.newest().await?;
    // What can be refused is refused before the answer begins.
    let first = edge.ledger.between(&filter, 0, through, STRETCH, payloads).await?;
    note(&edge, &context, format.as_str(), &query).await?;
    let encoder = Encoder::new(format, payloads);
    let export = Export {
        edge,
        filter,
        encoder,
        payloads,
        reached: first.reached,
        through,
        calls: first.calls.into_iter(),
        text: encoder.header(),
    };
    let body = futures_util::stream::unfold(Some(export), |export| async move {
        let mut export = export?;
        match export.chunk().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(export))),
            Ok(None) => None,
            // The connection breaks off, so that no part is taken for the whole.
            Err(error) => {
                tracing::warn!(%error, "an export of the ledger was broken off: {error}");
                Some((Err(error), None))
            }
        }
    });
    Ok(answer(Body::from_stream(body), format.content_type(), format.as_str()))
}

/// The answer with an export that ends in `end` when it is saved.
pub(super) fn answer(body: Body, content_type: &'static str, end: &str) -> Response {
    let at: String = crate::clock::timestamp().to_string().chars().take(19).collect();
    let at = at.replace(['-', ':'], "");
    let name = format!("attachment; filename=\"switchyard-audit-{at}Z.{end}\"");
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(name) = HeaderValue::try_from(name) {
        headers.insert(CONTENT_DISPOSITION, name);
    }
    response.extensions_mut().insert(MayBeCut);
    response
}

/// An export takes much out of the router at once: who had one stays known. In `strict` there is none that
/// is not on record.
///
/// # Errors
/// In `strict`, 503 when it could not be recorded.
pub(super) async fn note(
    edge: &Shared,
    context: &RequestContext,
    format: &str,
    query: &str,
) -> Result<(), ApiError> {
    let over_socket = context.caller.auth == AuthKind::Socket;
    let (query, text) = without_text(query);
    let query = edge.audit.redacted(&query);
    let detail = match text.map(|text| SearchedText::new(&text, &edge.store.digester())) {
        None => serde_json::json!({ "query": query, "over_socket": over_socket }),
        Some(text) => {
            serde_json::json!({ "query": query, "text": text, "over_socket": over_socket })
        }
    };
    let event = EventRow {
        at: crate::clock::timestamp(),
        actor: context.caller.name.as_ref().to_owned(),
        kind: "audit.exported".to_owned(),
        subject: format.to_owned(),
        detail: detail.to_string(),
    };
    let mut recorded = true;
    if let Err(error) = edge.store.append_event(&event).await {
        tracing::error!(%error, "an export of the ledger could not be recorded: {error}");
        recorded = false;
    }
    if edge.audit.durability() == Durability::Strict {
        edge.audit.flush().await;
        if !recorded || !(edge.audit.is_healthy() || edge.audit.spools()) {
            let detail = "an export must be on record first, and that could not be written; see the router's log";
            return Err(ApiError::new(ErrorCode::AuditUnavailable, detail));
        }
    }
    Ok(())
}

/// A query without the text that it searches for, and that: words that somebody looks for are not put on record.
fn without_text(query: &str) -> (Cow<'_, str>, Option<String>) {
    let pairs = || form_urlencoded::parse(query.as_bytes());
    let Some((_, text)) = pairs().find(|(name, _)| name == "text") else {
        return (query.into(), None);
    };
    let rest = pairs().filter(|(name, _)| name != "text");
    let rest = form_urlencoded::Serializer::new(String::new()).extend_pairs(rest).finish();
    (rest.into(), Some(text.into_owned()))
}

/// Why an export ends before its end.
#[derive(Debug)]
pub(super) enum Broken {
    Stopping,
    Store(StoreError),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopping => f.write_str("the router is stopping"),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Broken {}

/// An export under way.
struct Export {
    edge: Shared,
    filter: AuditFilter,
    encoder: Encoder,
    payloads: Payloads,
    /// Up to here the ledger was looked at.
    reached: i64,
    /// Up to here it goes.
    through: i64,
    calls: vec::IntoIter<CallRecordDetail>,
    text: String,
}

impl Export {
    /// The next bytes; `None` after the last.
    async fn chunk(&mut self) -> Result<Option<Bytes>, Broken> {
        while self.text.len() < CHUNK {
            if self.edge.stop.is_cancelled() {
                return Err(Broken::Stopping);
            }
            if let Some(call) = self.calls.next() {
                self.encoder.call(&call, &mut self.text);
                continue;
            }
            if self.reached >= self.through {
                break;
            }
            let stretch = self
                .edge
                .ledger
                .between(&self.filter, self.reached, self.through, STRETCH, self.payloads)
                .await
                .map_err(Broken::Store)?;
            self.reached = stretch.reached;
            self.calls = stretch.calls.into_iter();
        }
        // Calls of others on this thread come in between, however fast this one is read.
        tokio::task::yield_now().await;
        let text = std::mem::take(&mut self.text);
        Ok((!text.is_empty()).then(|| text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_its_own_and_those_of_the_list() {
        let read = |query| wanted(query).ok().unwrap();
        let plain = read("");
        assert_eq!((plain.format, plain.payloads), (ExportFormat::Jsonl, Payloads::Without));
        assert_eq!(plain.filter, AuditFilter::default());
        let all = read("format=csv&server=a%26b&payloads=true&text=x+y%25");
        assert_eq!((all.format, all.payloads), (ExportFormat::Csv, Payloads::With));
        assert_eq!(all.filter.server.as_deref(), Some("a&b"));
        assert_eq!(all.filter.text.as_deref(), Some("x y%"));
    }

    #[test]
    fn what_it_does_not_understand_it_refuses() {
        for (query, reason) in [
            ("format=xml", "formats are jsonl, csv, chain"),
            ("format=json", "did you mean `jsonl`?"),
            ("format=csv&format=csv", "twice"),
            ("payloads=1", "`true` or `false`"),
            ("limit=5", "has no pages"),
            ("cursor=x", "has no pages"),
            ("sever=up", "sever"),
            ("outcome=timout", "did you mean `timeout`?"),
            ("since=yesterday", "`since`"),
        ] {
            let error = wanted(query).err().unwrap();
            assert_eq!(error.status(), 400, "{query}");
            assert!(error.detail.contains(reason), "{query}: {}", error.detail);
        }
    }
}
