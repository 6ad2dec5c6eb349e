//! `GET /mcp/audit/export?format=chain`: the ledger so that it can be verified without it.
//!
//! Changes when such an export can be asked for differently. What it consists of is the store's.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use url::form_urlencoded;

use super::export::{Broken, answer, note};
use crate::audit::ExportFormat;
use crate::edge::api::Shared;
use crate::edge::auth::RequestContext;
use crate::edge::error::ApiError;

/// The name of the format.
pub(super) const CHAIN: &str = "chain";

#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    from: Option<i64>,
    to: Option<i64>,
    payloads: bool,
}

/// Whether it is this that a query asks for.
pub(super) fn is_wanted(query: &str) -> bool {
    form_urlencoded::parse(query.as_bytes()).any(|(name, value)| name == "format" && value == CHAIN)
}

fn wanted(query: &str) -> Result<Wanted, ApiError> {
    let (mut format, mut payloads, mut from, mut to) = (None, None, None, None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let own = match name.as_ref() {
            "format" => &mut format,
            "payloads" => &mut payloads,
            "from" => &mut from,
            "to" => &mut to,
            _ => {
                let name: String = name.chars().take(64).collect();
                return Err(ApiError::invalid(format!(
                    "`{name}`: format=chain takes `from`, `to` and `payloads` alone; rows that a filter leaves out would be gaps"
                )));
            }
        };
        if own.replace(value).is_some() {
            return Err(ApiError::invalid(format!("`{name}` is there twice")));
        }
    }
    let payloads = match payloads.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(ApiError::invalid("`payloads` is `true` or `false`")),
    };
    let number = |name: &str, text: Option<&str>| match text.map(str::parse).transpose() {
        Ok(number) => Ok(number),
        Err(_) => Err(ApiError::invalid(format!("`{name}` is the number of a row (`seq`)"))),
    };
    let (from, to) = (number("from", from.as_deref())?, number("to", to.as_deref())?);
    Ok(Wanted { from, to, payloads })
}

pub(super) async fn export(
    edge: Shared,
    context: &RequestContext,
    query: &str,
) -> Result<Response, ApiError> {
    let Wanted { from, to, payloads } = wanted(query)?;
    // Whoever exports after a call has come back expects to find it.
    edge.audit.flush().await;
    let now = crate::clock::timestamp();
    let export = edge.store.export_ledger(from, to, payloads, now).await?;
    note(&edge, context, CHAIN, query).await?;
    let export = Some((Arc::clone(&edge), export));
    let body = futures_util::stream::unfold(export, |export| async move {
        let (edge, mut export) = export?;
        if edge.stop.is_cancelled() {
            return Some((Err(Broken::Stopping), None));
        }
        // Calls of others on this thread come in between, however fast this one is read.
        tokio::task::yield_now().await;
        match export.chunk().await {
            Ok(Some(text)) => Some((Ok(Bytes::from(text)), Some((edge, export)))),
            Ok(None) => None,
            // The connection breaks off, so that no part is taken for the whole.
            Err(error) => {
                tracing::warn!(%error, "an export of the ledger was broken off: {error}");
                Some((Err(Broken::Store(error)), None))
            }
        }
    });
    let content_type = ExportFormat::Jsonl.content_type();
    Ok(answer(Body::from_stream(body), content_type, "chain.jsonl"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_by_rows_and_filtered_by_nothing() {
        for query in ["format=chain", "from=3&format=chain", "format=c%68ain"] {
            assert!(is_wanted(query), "{query}");
        }
        assert!(!is_wanted("format=jsonl&server=chain"));
        assert_eq!(wanted("format=chain").ok().unwrap(), Wanted::default());
        let all = wanted("format=chain&from=3&to=9&payloads=true").ok().unwrap();
        assert_eq!(all, Wanted { from: Some(3), to: Some(9), payloads: true });
        for (query, reason) in [
            ("format=chain&server=up", "would be gaps"),
            ("format=chain&since=1h", "would be gaps"),
            ("format=chain&from=x", "`from` is the number of a row"),
            ("format=chain&to=1h", "`to` is the number of a row"),
            ("format=chain&format=chain", "twice"),
            ("format=chain&payloads=1", "`true` or `false`"),
        ] {
            let error = wanted(query).err().unwrap();
            assert_eq!(error.status(), 400, "{query}");
            assert!(error.detail.contains(reason), "{query}: {}", error.detail);
        }
    }
}
