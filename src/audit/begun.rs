//! [`CallBegun`]: what is on record of a call before it is sent, and what becomes of it when the router
//! is cut off.
//!
//! Changes when the beginning of a call says more.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::{
    AuthKind, CallId, Caller, CallerClass, Entrance, Outcome, ProtocolVersion, Scopes, ServerName,
    Timestamp, ToolName, TraceId, ViewName,
};
use crate::store::{CALL_STARTED, CallRow, EntryRow};

/// The beginning of a call that is about to be sent.
#[derive(Debug, Clone, Copy)]
pub struct CallBegun<'a> {
    /// The call's id.
    pub id: CallId,
    /// When it came in.
    pub started_at: Timestamp,
    /// Who called.
    pub caller: &'a str,
    /// Hash of the legacy session it belongs to.
    pub session: Option<&'a str>,
    /// Through which door it came.
    pub entrance: Entrance,
    /// At which view it came in.
    pub view: Option<&'a ViewName>,
    /// The tool as exposed.
    pub tool: &'a str,
    /// The tool as its server names it.
    pub upstream_tool: &'a ToolName,
    /// The server.
    pub server: &'a ServerName,
    /// The trace it belongs to.
    pub trace_id: Option<TraceId>,
    /// The address of its connection.
    pub remote: Option<IpAddr>,
}

/// The same as it stands in the ledger.
#[derive(Debug, Serialize, Deserialize)]
struct Detail {
    started_at_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    /// `rest` when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    view: Option<String>,
    tool: String,
    upstream_tool: String,
    server: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remote_address: Option<IpAddr>,
}

impl CallBegun<'_> {
    pub(super) fn into_row(self, now: Timestamp) -> EntryRow {
        let detail = Detail {
            started_at_ms: self.started_at.as_millis(),
            session: self.session.map(str::to_owned),
            protocol_version: match self.entrance {
                Entrance::Mcp(version) => Some(version.as_str().to_owned()),
                Entrance::Rest => None,
            },
            view: self.view.map(|view| view.as_str().to_owned()),
            tool: self.tool.to_owned(),
            upstream_tool: self.upstream_tool.as_str().to_owned(),
            server: self.server.as_str().to_owned(),
            trace_id: self.trace_id.map(|trace| trace.to_string()),
            remote_address: self.remote,
        };
        EntryRow {
            seq: 0,
            at: now,
            kind: CALL_STARTED.to_owned(),
            actor: self.caller.to_owned(),
            subject: self.id.to_string(),
            detail: serde_json::to_string(&detail).unwrap_or_default(),
        }
    }
}

/// The row of a call that was under way when the router was cut off, from the row of its beginning.
/// `None` for what is no such row.
pub(super) fn interrupted(begun: &EntryRow) -> Option<CallRow> {
    let detail: Detail = serde_json::from_str(&begun.detail).ok()?;
    let entrance = match &detail.protocol_version {
        Some(version) => Entrance::Mcp(ProtocolVersion::parse(version)?),
        None => Entrance::Rest,
    };
    let id = CallId::parse(&begun.subject)?;
    let started_at = Timestamp::from_millis(detail.started_at_ms);
    Some(CallRow {
        caller: begun.actor.as_str().into(),
        session: detail.session.map(Into::into),
        view: detail.view.and_then(|view| ViewName::parse(&view).ok()),
        tool: detail.tool.into(),
        upstream_tool: ToolName::parse(&detail.upstream_tool).ok(),
        server: ServerName::parse(&detail.server).ok(),
        error: Some(
            "the router was cut off while the call was under way; the tool may have run".to_owned(),
        ),
        trace_id: detail.trace_id.and_then(|trace| TraceId::parse(&trace)),
        remote: detail.remote_address,
        ..CallRow::new(id, started_at, entrance, Outcome::Interrupted)
    })
}

/// What kind of caller made a call that was cut off. No key has the name of callers without one.
pub(super) fn class_of(interrupted: &CallRow) -> CallerClass {
    let auth = match interrupted.caller == Caller::anonymous(Scopes::NONE).name {
        true => AuthKind::None,
        false => AuthKind::Key,
    };
    CallerClass::of(auth, interrupted.session.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_was_cut_off_is_known_from_its_beginning() {
        let (tool, server) = (ToolName::parse("pay").unwrap(), ServerName::parse("bank").unwrap());
        let view = ViewName::parse("support").unwrap();
        for entrance in [Entrance::Rest, Entrance::Mcp(ProtocolVersion::V2025_06_18)] {
            let begun = CallBegun {
                id: CallId::parse("0193e0a4-0000-7000-8000-000000000000").unwrap(),
                started_at: Timestamp::from_millis(7),
                caller: "me",
                session: Some("abc"),
                entrance,
                view: Some(&view),
                tool: "bank__pay",
                upstream_tool: &tool,
                server: &server,
                trace_id: TraceId::from_bytes([7; 16]),
                remote: Some([10, 0, 0, 7].into()),
            };
            let row = interrupted(&begun.into_row(Timestamp::from_millis(9))).unwrap();
            assert_eq!(
                (row.id, row.started_at, row.entrance),
                (begun.id, begun.started_at, entrance)
            );
            assert_eq!((row.caller.as_ref(), row.session.as_deref()), ("me", Some("abc")));
            assert_eq!((row.tool.as_ref(), row.view), ("bank__pay", Some(view.clone())));
            assert_eq!((row.upstream_tool, row.server), (Some(tool.clone()), Some(server.clone())));
            assert_eq!(row.outcome, Outcome::Interrupted);
            assert_eq!((row.trace_id, row.remote), (begun.trace_id, begun.remote));
        }
    }
}
