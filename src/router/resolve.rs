//! From a name to a catalogue entry.

use std::sync::Arc;

use super::{RouteError, Router, START_UP_PATIENCE};
use crate::catalogue::{CatalogueEntry, Lookup, NotFound};
use crate::model::ToolTarget;

impl Router {
    /// Finds the tool. A name that is unknown while servers are still being asked for the first
    /// time waits a moment for them.
    pub(super) async fn resolve(
        &self,
        target: &ToolTarget,
    ) -> Result<Arc<CatalogueEntry>, RouteError> {
        let not_found = match self.lookup(target) {
            Ok(entry) => return Ok(entry),
            Err(not_found) => not_found,
        };
        if self.discovery.start_up_done() || !matches!(not_found, NotFound::Unknown { .. }) {
            return Err(self.explain(target, not_found));
        }
        let found = tokio::time::timeout(START_UP_PATIENCE, self.await_tool(target)).await;
        match found {
            Ok(Some(entry)) => Ok(entry),
            Ok(None) | Err(_) => {
                self.lookup(target).map_err(|problem| self.explain(target, problem))
            }
        }
    }

    async fn await_tool(&self, target: &ToolTarget) -> Option<Arc<CatalogueEntry>> {
        let mut rebuilt = self.rebuilt.clone();
        loop {
            // Marked as seen before the look, so that no rebuild falls between the two.
            rebuilt.borrow_and_update();
            if let Ok(entry) = self.lookup(target) {
                return Some(entry);
            }
            if self.discovery.start_up_done() || rebuilt.changed().await.is_err() {
                return None;
            }
        }
    }

    fn lookup(&self, target: &ToolTarget) -> Result<Arc<CatalogueEntry>, NotFound> {
        match self.catalogue.load().lookup(target) {
            Lookup::Found(entry) => Ok(Arc::clone(entry)),
            Lookup::NotFound(not_found) => Err(not_found),
        }
    }

    fn explain(&self, target: &ToolTarget, not_found: NotFound) -> RouteError {
        let named = target.server.as_ref().map(|server| server.as_str().to_owned());
        // A tool may be away because its server is: say that rather than "unknown".
        let prefix = target.tool.split_once("__").map(|(server, _)| server.to_owned());
        for name in named.iter().chain(&prefix) {
            match self.discovery.server(name) {
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
