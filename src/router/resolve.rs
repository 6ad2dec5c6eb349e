//! From a name to a catalogue entry.

use std::sync::Arc;

use super::{RouteError, Router, START_UP_PATIENCE};
use crate::catalogue::{CatalogueEntry, Lookup, NotFound};
use crate::model::{ServerName, ToolCall, ToolTarget, ViewName};

impl Router {
    /// Finds a tool that was not found at once. A name that is unknown while servers are still being
    /// asked for the first time waits a moment for them. In a view nothing outside it is found, waited
    /// for or told.
    pub(super) async fn resolve(
        &self,
        call: &ToolCall,
        not_found: NotFound,
    ) -> Result<Arc<CatalogueEntry>, RouteError> {
        let (target, view) = (&call.target, call.view.as_ref());
        if self.start_up_done(view) || !matches!(not_found, NotFound::Unknown { .. }) {
            return Err(self.explain(target, view, not_found));
        }
        let patience = START_UP_PATIENCE.min(call.deadline.unwrap_or(START_UP_PATIENCE));
        let found = tokio::time::timeout(patience, self.await_tool(target, view)).await;
        match found {
            Ok(Some(entry)) => Ok(entry),
            Ok(None) | Err(_) => {
                self.lookup(target, view).map_err(|problem| self.explain(target, view, problem))
            }
        }
    }

    async fn await_tool(
        &self,
        target: &ToolTarget,
        view: Option<&ViewName>,
    ) -> Option<Arc<CatalogueEntry>> {
        let mut rebuilt = self.rebuilt.clone();
        loop {
            // Marked as seen before the look, so that no rebuild falls between the two.
            rebuilt.borrow_and_update();
            if let Ok(entry) = self.lookup(target, view) {
                return Some(entry);
            }
            if self.start_up_done(view) || rebuilt.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Whether every server that could have the tool was asked once.
    fn start_up_done(&self, view: Option<&ViewName>) -> bool {
        self.discovery.start_up_done()
            || view.is_some_and(|name| {
                let catalogue = self.catalogue.load();
                catalogue.views().get(name).is_none_or(|view| {
                    self.discovery.asked_once(|server| view.spec.admits_server(server))
                })
            })
    }

    pub(super) fn lookup(
        &self,
        target: &ToolTarget,
        view: Option<&ViewName>,
    ) -> Result<Arc<CatalogueEntry>, NotFound> {
        let whole = self.catalogue.load();
        let catalogue = match view {
            None => &**whole,
            Some(name) => match whole.views().get(name) {
                Some(view) => &*view.catalogue,
                // Taken out of the configuration while the call came in.
                None => return Err(NotFound::Unknown { nearest: Vec::new() }),
            },
        };
        match catalogue.lookup(target) {
            Lookup::Found(entry) => Ok(Arc::clone(entry)),
            Lookup::NotFound(not_found) => Err(not_found),
        }
    }

    /// Whether a caller may hear of this server when it asks for `tool`.
    fn tells(&self, view: Option<&ViewName>, server: &ServerName, tool: &str) -> bool {
        view.is_none_or(|name| {
            let catalogue = self.catalogue.load();
            catalogue.views().get(name).is_some_and(|view| view.tells(server, tool))
        })
    }

    fn explain(
        &self,
        target: &ToolTarget,
        view: Option<&ViewName>,
        not_found: NotFound,
    ) -> RouteError {
        let named = target.server.as_ref().map(|server| server.as_str().to_owned());
        // A tool may be away because its server is: say that rather than "unknown".
        let prefix = target.tool.split_once("__").map(|(server, _)| server.to_owned());
        for name in named.iter().chain(&prefix) {
            match self.discovery.server(name) {
                Some(server) if !self.tells(view, &server.name, &target.tool) => {}
                Some(server) if !server.enabled => {
                    return RouteError::ServerDisabled { server: server.name.clone() };
                }
                Some(server) => {
                    if matches!(not_found, NotFound::Unknown { .. })
                        && !self
                            .catalogue
                            .load()
                            .entries()
                            .iter()
                            .any(|e| e.server.name == server.name)
                        && let Some(problem) = server.status().discovery.error
                    {
                        return RouteError::ServerUnavailable {
                            server: server.name.clone(),
                            tool: target.tool.clone(),
                            problem,
                        };
                    }
                }
                None if Some(name) == named.as_ref() => {
                    return RouteError::ServerNotFound {
                        server: name.clone(),
                        nearest: self.discovery.nearest_servers(name),
                    };
                }
                None => {}
            }
        }
        RouteError::not_found(&target.tool, not_found)
    }
}
