//! The lists of what there is: tools, prompts, resources and templates, page by page.
//!
//! Changes when what a list says beside its items does. What is in it is the catalogue's.

use super::methods::Asked;
use super::reply::Reply;
use crate::catalogue::OfferedList;
use crate::clock;
use crate::error::ErrorCode;
use crate::model::Era;
use crate::protocol::{PeerIdentity, SERVER_INFO};

impl Asked<'_> {
    pub(super) fn list(&self, kind: OfferedList) -> Reply {
        let began = clock::uptime();
        let listed = self.listed(kind);
        let labels = self.labels(listed.is_err().then_some(ErrorCode::InvalidRequest));
        let took = clock::uptime().since(began);
        self.edge.metrics.observe_operation(kind.method(), labels, took);
        match listed {
            Ok(result) => Reply::result(self.id, &result),
            Err(message) => self.invalid(&message),
        }
    }

    /// A page of a list, or what is wrong with what was asked.
    fn listed(&self, kind: OfferedList) -> Result<Vec<u8>, String> {
        let members = self.members()?;
        let cursor = match members.get("cursor").filter(|raw| raw.get() != "null") {
            None => None,
            Some(raw) => match serde_json::from_str::<String>(raw.get()) {
                Ok(cursor) => Some(cursor),
                Err(_) => return Err("`cursor` must be a string".to_owned()),
            },
        };
        let catalogue = self.catalogue();
        let size = self.edge.discovery.page_size();
        let page = catalogue.page(kind, self.era(), cursor.as_deref(), size);
        let page = page.map_err(|error| error.to_string())?;
        let mut result = Vec::with_capacity(page.items.len() + 256);
        result.push(b'{');
        if self.era() == Era::Modern {
            result.extend_from_slice(br#""resultType":"complete","#);
        }
        for part in ["\"", kind.member(), "\":["] {
            result.extend_from_slice(part.as_bytes());
        }
        result.extend_from_slice(&page.items);
        result.push(b']');
        if let Some(next) = &page.next_cursor {
            // The cursor is base64 and needs no escaping.
            for part in [",\"nextCursor\":\"", next, "\""] {
                result.extend_from_slice(part.as_bytes());
            }
        }
        if self.era() == Era::Modern {
            // Servers of the legacy era may change their lists at any moment, so nothing may be kept.
            for part in [
                ",\"ttlMs\":0,\"cacheScope\":\"private\",\"_meta\":{\"",
                SERVER_INFO,
                "\":",
                PeerIdentity::JSON,
                "}",
            ] {
                result.extend_from_slice(part.as_bytes());
            }
        }
        result.push(b'}');
        Ok(result)
    }
}
