//! Taking over what a server said, or that it said nothing: into what is known, the database, its status
//! and the catalogue.
//!
//! Changes when what is kept of an answer changes.

use std::sync::Arc;
use std::time::Duration;

use super::Discovery;
use crate::catalogue::definitions::{SEEN, diff, same_but_for_time};
use crate::catalogue::error::DiscoveryError;
use crate::catalogue::lists::Walked;
use crate::catalogue::page::OfferedList;
use crate::clock;
use crate::model::{OnChange, ServerName, ToolName, ToolStatus};
use crate::protocol::{Listed, ToolDefinition};
use crate::registry::{ServerHandle, ServerStatus};
use crate::store::{
    DiscoveryRow, EntryRow, HistoryKind, HistoryRow, OfferKind, StoreError, ToolRow,
};

/// A shorter secret may be in a definition by chance.
const TELLING: usize = 8;

/// One list other than tools, and what came of asking for it.
pub(super) type OfferAnswer = (OfferedList, OfferKind, Result<Walked<Listed>, DiscoveryError>);

impl Discovery {
    /// Accepts the present definition of a held tool.
    ///
    /// # Errors
    /// When the database cannot be written. `Ok(false)` when no such tool is held.
    pub async fn approve(
        &self,
        server: &ServerName,
        tool: &ToolName,
        by: &str,
    ) -> Result<bool, StoreError> {
        // Not while its list is being compared with what is known.
        let handle = self.registry.server(server.as_str());
        let _one = match &handle {
            Some(handle) => Some(handle.discovering.lock().await),
            None => None,
        };
        let mut tools = self.known.lock().get(server).cloned().unwrap_or_default();
        let held =
            tools.iter_mut().find(|t| t.row.tool == *tool && t.row.status == ToolStatus::Held);
        let Some(held) = held else { return Ok(false) };
        held.row.status = ToolStatus::Active;
        let history = HistoryRow {
            server: server.clone(),
            tool: tool.clone(),
            old_hash: None,
            new_hash: Some(held.row.hash),
            kind: HistoryKind::Approved,
            at: clock::timestamp(),
            by: Some(by.to_owned()),
        };
        let rows: Vec<ToolRow> = tools.iter().map(|t| t.row.clone()).collect();
        self.registry.store().replace_tools(server, &rows, &[history]).await?;
        self.known.lock().insert(server.clone(), tools);
        self.rebuild();
        Ok(true)
    }

    /// Takes over what came of asking for lists other than tools; whether all could be had, and how
    /// long they may be kept.
    pub(super) async fn take_offers(
        &self,
        server: &Arc<ServerHandle>,
        declares_resources: bool,
        answers: Vec<OfferAnswer>,
    ) -> (bool, Option<Duration>) {
        let before = self.offers.lock().get(&server.name).cloned().unwrap_or_default();
        let mut offers = before.clone();
        offers.declares_resources = declares_resources;
        let mut ttl = Some(Duration::MAX);
        let mut changed = before.declares_resources != offers.declares_resources;
        let mut all = true;
        for (list, kind, listed) in answers {
            offers.problems.retain(|(of, _)| *of != list);
            let taken = match listed {
                Ok(walked) if walked.items == before.list(list) => {
                    self.left_out.tell(&server.name, list, &walked.left_out);
                    Ok(walked.ttl)
                }
                Ok(walked) => self.store_offers(server, kind, &walked.items).await.map(|()| {
                    changed = true;
                    self.left_out.tell(&server.name, list, &walked.left_out);
                    offers.replace(list, walked.items);
                    walked.ttl
                }),
                Err(error) => Err(error),
            };
            let of_list = match taken {
                Ok(of_list) => of_list,
                Err(DiscoveryError::Replaced) => return (false, None),
                Err(error) => {
                    let problem = server.scrub(&error.to_string());
                    if !before.problems.contains(&(list, problem.clone())) {
                        tracing::warn!(
                            server.name = %server.name, error = %problem,
                            "server {} could not be asked for its {}s: {problem}", server.name, list.noun()
                        );
                    }
                    offers.problems.push((list, problem));
                    all = false;
                    None
                }
            };
            ttl = ttl.zip(of_list).map(|(all, one)| all.min(one));
        }
        {
            let mut known = self.offers.lock();
            if !self.is_current(server) {
                return (false, None);
            }
            known.insert(server.name.clone(), offers);
        }
        if changed {
            self.rebuild();
        }
        (all, ttl)
    }

    async fn store_offers(
        &self,
        server: &Arc<ServerHandle>,
        kind: OfferKind,
        items: &[Listed],
    ) -> Result<(), DiscoveryError> {
        if !self.is_current(server) {
            return Err(DiscoveryError::Replaced);
        }
        let rows: Vec<_> = items.iter().map(|item| (item.key.as_str(), &item.raw)).collect();
        self.registry.store().replace_offers(&server.name, kind, &rows).await?;
        Ok(())
    }

    pub(super) async fn note_success(&self, server: &ServerHandle, row: DiscoveryRow) {
        let before = server.status().discovery;
        server.discovered(row.clone());
        if worth_a_write(&before, &row) {
            self.record(server, &row).await;
        }
    }

    /// The server could not be reached to be asked for anything, or gave no sign of life.
    pub(super) async fn note_failure(
        &self,
        server: &Arc<ServerHandle>,
        error: DiscoveryError,
    ) -> DiscoveryError {
        self.note(
            server,
            error,
            |status| status.discovery.error.as_deref(),
            |message, locked| {
                let at = clock::timestamp();
                match locked {
                    true => server.unauthorized(message, at),
                    false => server.failed(message, at),
                }
            },
        )
        .await
    }

    /// The server was reached, and its list of tools could not be had.
    pub(super) async fn note_unlisted(
        &self,
        server: &Arc<ServerHandle>,
        error: DiscoveryError,
    ) -> DiscoveryError {
        self.note(
            server,
            error,
            |status| status.list_error.as_deref(),
            |message, locked| server.unlisted(message, clock::timestamp(), locked),
        )
        .await
    }

    /// Notes by `note`, which is told whether the server does not let us in, that discovery failed; one
    /// line for each problem that is not the one `before`.
    async fn note(
        &self,
        server: &Arc<ServerHandle>,
        error: DiscoveryError,
        before: impl FnOnce(&ServerStatus) -> Option<&str>,
        note: impl FnOnce(&str, bool) -> DiscoveryRow,
    ) -> DiscoveryError {
        if !self.is_current(server) {
            return DiscoveryError::Replaced;
        }
        let message = server.scrub(&error.to_string());
        let status = server.status();
        if before(&status) != Some(message.as_str()) || !status.tried {
            tracing::warn!(
                server.name = %server.name, error = %message,
                "server {} could not be asked for its tools: {message}", server.name
            );
        }
        let discovery = note(&message, matches!(error, DiscoveryError::Unauthorized(_)));
        self.mark_stale(&server.name);
        self.record(server, &discovery).await;
        error
    }

    /// Whether this handle is still the server's; what another one finds out is of no use.
    fn is_current(&self, server: &Arc<ServerHandle>) -> bool {
        self.registry
            .server(server.name.as_str())
            .is_some_and(|current| Arc::ptr_eq(&current, server))
    }

    async fn record(&self, server: &ServerHandle, discovery: &DiscoveryRow) {
        if let Err(error) = self.registry.store().record_discovery(&server.name, discovery).await {
            tracing::warn!(server.name = %server.name, %error, "the result of a discovery could not be stored");
        }
    }

    pub(super) async fn take_over(
        &self,
        server: &Arc<ServerHandle>,
        listed: &[ToolDefinition],
    ) -> Result<(), DiscoveryError> {
        let before = self.known.lock().get(&server.name).cloned().unwrap_or_default();
        // A server whose first list was empty has had its first list.
        let first = before.is_empty() && server.status().discovery.ok_at.is_none();
        let (tools, history) =
            diff(&server.name, &before, listed, first, server.spec.on_change, clock::timestamp());
        if !self.is_current(server) {
            return Err(DiscoveryError::Replaced);
        }
        let same = history.is_empty() && same_but_for_time(&before, &tools);
        if !same {
            let rows: Vec<ToolRow> = tools.iter().map(|tool| tool.row.clone()).collect();
            self.registry.store().replace_tools(&server.name, &rows, &history).await?;
            self.tell_secrets(server, &rows);
        }
        if !first {
            for change in &history {
                server.metrics.count_change(change.kind.as_str());
                if server.spec.on_change != OnChange::Accept {
                    tracing::warn!(
                        server.name = %server.name, tool.name = %change.tool,
                        kind = change.kind.as_str(),
                        "tool {} of server {} was {}",
                        change.tool, server.name, change.kind.as_str()
                    );
                }
            }
        }
        {
            let mut known = self.known.lock();
            if !self.is_current(server) {
                return Err(DiscoveryError::Replaced);
            }
            known.insert(server.name.clone(), tools);
        }
        if !same {
            self.rebuild();
        }
        Ok(())
    }

    /// A definition is kept and listed as its server gave it. Where a secret of the server is in it, that
    /// is said.
    fn tell_secrets(&self, server: &ServerHandle, rows: &[ToolRow]) {
        let secrets = || server.secrets().iter().map(|secret| secret.expose().as_bytes());
        let holds = |row: &&ToolRow| {
            secrets()
                .filter(|secret| secret.len() >= TELLING)
                .any(|secret| memchr::memmem::find(&row.definition, secret).is_some())
        };
        for row in rows.iter().filter(holds) {
            tracing::warn!(
                server.name = %server.name, tool.name = %row.tool,
                "the definition of tool {} of server {} holds a secret that was given to the server; it is kept and listed as it is: use another secret",
                row.tool, server.name
            );
            self.registry.store().note(EntryRow {
                seq: 0,
                at: clock::timestamp(),
                kind: "tool.holds_secret".to_owned(),
                actor: "router".to_owned(),
                subject: server.name.as_str().to_owned(),
                detail: serde_json::json!({ "tool": row.tool.as_str() }).to_string(),
            });
        }
    }

    fn mark_stale(&self, server: &ServerName) {
        let mut changed = false;
        if let Some(tools) = self.known.lock().get_mut(server) {
            for tool in tools.iter_mut().filter(|tool| tool.row.status == ToolStatus::Active) {
                tool.row.status = ToolStatus::Stale;
                changed = true;
            }
        }
        if changed {
            self.rebuild();
        }
    }
}

/// Whether a discovery says anything but that the server still answers.
fn worth_a_write(before: &DiscoveryRow, after: &DiscoveryRow) -> bool {
    let same = DiscoveryRow { ok_at: None, ..before.clone() }
        == DiscoveryRow { ok_at: None, ..after.clone() };
    let lately =
        before.ok_at.zip(after.ok_at).is_some_and(|(before, after)| after.since(before) < SEEN);
    !(same && lately)
}
