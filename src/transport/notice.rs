//! [`Notice`]: what a server says beside any request.
//!
//! Changes when the specification gives servers more to say on their own.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::relay::ServerRequest;
use crate::protocol::RawObject;

/// Which list of a server changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListKind {
    /// `tools/list`.
    Tools,
    /// `prompts/list`.
    Prompts,
    /// `resources/list` and `resources/templates/list`.
    Resources,
}

/// Something a server said on its own.
#[derive(Debug)]
pub enum Notice {
    /// A list should be asked for again.
    ListChanged(ListKind),
    /// A resource that somebody subscribed to has changed.
    ResourceUpdated {
        /// Its address.
        uri: String,
    },
    /// Any other notification, as the whole message.
    Notification {
        /// Its method.
        method: String,
        /// The message.
        message: Bytes,
    },
    /// A request that belongs to none of ours.
    Request(ServerRequest),
}

impl Notice {
    /// Reads a notification; `message` is the whole JSON-RPC message.
    #[must_use]
    pub fn of(method: &str, message: &Bytes) -> Self {
        match method {
            "notifications/tools/list_changed" => Self::ListChanged(ListKind::Tools),
            "notifications/prompts/list_changed" => Self::ListChanged(ListKind::Prompts),
            "notifications/resources/list_changed" => Self::ListChanged(ListKind::Resources),
            "notifications/resources/updated" if updated_uri(message).is_some() => {
                Self::ResourceUpdated { uri: updated_uri(message).unwrap_or_default() }
            }
            _ => Self::Notification { method: method.to_owned(), message: message.clone() },
        }
    }
}

fn updated_uri(message: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(message).ok()?;
    let params = RawObject::parse(text).ok()?.get("params")?.get();
    RawObject::parse(params).ok()?.get_str("uri").map(std::borrow::Cow::into_owned)
}

/// Takes a server's notices; called from whichever task reads the server, so it must not wait.
#[derive(Clone)]
pub struct NoticeSink(Arc<dyn Fn(Notice) + Send + Sync>);

impl NoticeSink {
    /// A sink that calls `take`.
    pub fn new(take: impl Fn(Notice) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Hands a notice over.
    pub fn take(&self, notice: Notice) {
        (self.0)(notice);
    }
}

impl Default for NoticeSink {
    /// Drops everything.
    fn default() -> Self {
        Self::new(drop)
    }
}

impl fmt::Debug for NoticeSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoticeSink")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_are_told_apart() {
        let of = |method: &str, text: &'static str| {
            Notice::of(method, &Bytes::from_static(text.as_bytes()))
        };
        assert!(matches!(
            of("notifications/tools/list_changed", "{}"),
            Notice::ListChanged(ListKind::Tools)
        ));
        assert!(matches!(
            of("notifications/resources/updated", r#"{"params":{"uri":"a:b"}}"#),
            Notice::ResourceUpdated { uri } if uri == "a:b"
        ));
        assert!(matches!(of("notifications/resources/updated", "{}"), Notice::Notification { .. }));
    }
}
