//! Asking one server: for its lists, each for itself, and for a sign of life.
//!
//! Changes when what is asked changes, or for how long it is waited for. What becomes of the answers
//! is `take`'s.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::Discovery;
use crate::catalogue::error::DiscoveryError;
use crate::catalogue::lists::{self, OFFERS, Walked};
use crate::catalogue::page::OfferedList;
use crate::catalogue::schedule::Wanted;
use crate::clock;
use crate::model::Era;
use crate::pool::Lease;
use crate::protocol::OutgoingRequest;
use crate::registry::ServerHandle;
use crate::store::DiscoveryRow;

/// How long one whole list may take.
const LIST_DEADLINE: Duration = Duration::from_secs(60);
/// How long a sign of life may take.
const CHECK: Duration = Duration::from_secs(5);

/// What came of asking a server for its lists.
#[derive(Debug)]
pub(super) struct Asked {
    /// How many tools it has, where they were asked for.
    pub(super) tools: Result<Option<usize>, DiscoveryError>,
    /// Whether all other lists that were asked for could be had.
    pub(super) offers: bool,
    /// How long all that was listed may be kept.
    pub(super) ttl: Option<Duration>,
    /// Whether it says when a list changes.
    pub(super) announces: bool,
    /// Connections that were opened until its lists were asked for.
    pub(super) connects: u64,
}

impl Discovery {
    /// Asks one server for all its lists now and takes the answers over; gives the number of its
    /// tools. One at a time per server.
    ///
    /// # Errors
    /// [`DiscoveryError`], when its tools could not be had; the last good list stays and is marked
    /// stale. Another list that could not be had is in [`Self::list_problems`].
    pub async fn discover(&self, server: &Arc<ServerHandle>) -> Result<usize, DiscoveryError> {
        self.ask(server, Wanted::ALL).await.tools.map(Option::unwrap_or_default)
    }

    pub(super) async fn ask(&self, server: &Arc<ServerHandle>, wanted: Wanted) -> Asked {
        let _one = server.discovering.lock().await;
        let unasked = |error, connects| Asked {
            tools: Err(error),
            offers: false,
            ttl: None,
            announces: false,
            connects,
        };
        let lease = match within("no connection", server.lease()).await {
            Ok(Ok(lease)) => lease,
            Ok(Err(error)) => {
                let error = DiscoveryError::of(&error, error.http_status());
                return unasked(self.note_failure(server, error).await, server.connects());
            }
            Err(error) => {
                return unasked(self.note_failure(server, error).await, server.connects());
            }
        };
        let connects = server.connects();
        let (tools, tools_ttl) = if wanted.tools {
            self.ask_tools(server, &lease).await
        } else {
            (Ok(None), Some(Duration::MAX))
        };
        // Another handle asks on its own.
        if matches!(tools, Err(DiscoveryError::Replaced)) {
            return Asked { tools, ..unasked(DiscoveryError::Replaced, connects) };
        }
        let (offers, ttl) = self.ask_offers(server, &lease, wanted).await;
        Asked {
            tools,
            offers,
            ttl: tools_ttl.zip(ttl).map(|(tools, others)| tools.min(others)),
            announces: lease.peer().offers.list_changes && lease.is_listening(),
            connects,
        }
    }

    async fn ask_tools(
        &self,
        server: &Arc<ServerHandle>,
        lease: &Lease,
    ) -> (Result<Option<usize>, DiscoveryError>, Option<Duration>) {
        let listed = if lease.peer().offers.tools {
            let asked = lists::tools(server, lease, self.limit());
            within("its list of tools was not complete", asked).await.and_then(|listed| listed)
        } else {
            Ok(Walked::empty())
        };
        let taken = match listed {
            Ok(Walked { items, ttl, left_out }) => {
                self.left_out.tell(&server.name, OfferedList::Tools, &left_out);
                self.take_over(server, &items).await.map(|()| (items.len(), ttl))
            }
            Err(error) => Err(error),
        };
        match taken {
            Ok((count, ttl)) => {
                self.note_success(server, discovery_row(server, lease)).await;
                (Ok(Some(count)), ttl)
            }
            Err(error) => (Err(self.note_unlisted(server, error).await), None),
        }
    }

    /// Asks for prompts, resources and templates, each for itself; whether all could be had, and
    /// how long they may be kept.
    async fn ask_offers(
        &self,
        server: &Arc<ServerHandle>,
        lease: &Lease,
        wanted: Wanted,
    ) -> (bool, Option<Duration>) {
        let declared = lease.peer().offers;
        let limit = self.limit();
        let asked = OFFERS
            .iter()
            .filter(|(list, _)| match list {
                OfferedList::Tools => false,
                OfferedList::Prompts => wanted.prompts,
                OfferedList::Resources | OfferedList::Templates => wanted.resources,
            })
            .map(|(list, kind)| async move {
                let offered = match list {
                    OfferedList::Prompts => declared.prompts,
                    OfferedList::Tools | OfferedList::Resources | OfferedList::Templates => {
                        declared.resources
                    }
                };
                let listed = if offered {
                    let asked = lists::offers(server, lease, *list, limit);
                    within("its list was not complete", asked).await.and_then(|listed| listed)
                } else {
                    Ok(Walked::empty())
                };
                (*list, *kind, listed)
            });
        let answers = join_all(asked).await;
        self.take_offers(server, declared.resources, answers).await
    }

    /// Asks for a sign of life: what every server of its era must answer, and runs nothing. Lists
    /// cost too much for that.
    pub(super) async fn check(&self, server: &Arc<ServerHandle>) -> bool {
        let asked = async {
            let lease = server
                .lease()
                .await
                .map_err(|error| DiscoveryError::of(&error, error.http_status()))?;
            let method = match lease.peer().version.era() {
                Era::Legacy => "ping",
                Era::Modern => "server/discover",
            };
            // An error is an answer, and an answer proves life.
            match lease.request(&OutgoingRequest::new(method), CHECK, None).await {
                Ok(_) => Ok(discovery_row(server, &lease)),
                Err(error) => {
                    if !lease.is_alive() {
                        server.invalidate(&lease);
                    }
                    Err(DiscoveryError::of(&error, error.http_status()))
                }
            }
        };
        // A connection has a bound of its own, and a child may be long in starting.
        let problem = match tokio::time::timeout(LIST_DEADLINE, asked).await {
            Ok(Ok(row)) => {
                self.note_success(server, row).await;
                return true;
            }
            Ok(Err(problem)) => problem,
            Err(_) => DiscoveryError::Unreachable(format!(
                "no answer within {} s",
                LIST_DEADLINE.as_secs()
            )),
        };
        self.note_failure(server, problem).await;
        false
    }

    fn limit(&self) -> usize {
        usize::try_from(self.settings.load().tools_per_server).unwrap_or(usize::MAX)
    }
}

/// What a server said of itself, and that it did so now. It is kept and shown.
fn discovery_row(server: &ServerHandle, lease: &Lease) -> DiscoveryRow {
    let peer = lease.peer();
    DiscoveryRow {
        protocol_version: Some(peer.version.as_str().to_owned()),
        dialect: Some(lease.dialect().as_str().to_owned()),
        server_info: peer.server_info.as_deref().map(|info| server.scrub_json(info)),
        instructions: peer.instructions.as_deref().map(|text| server.scrub(text)),
        ok_at: Some(clock::timestamp()),
        error: None,
        error_at: None,
    }
}

/// Bounds the wait for a list.
async fn within<T>(what: &str, asked: impl Future<Output = T>) -> Result<T, DiscoveryError> {
    tokio::time::timeout(LIST_DEADLINE, asked).await.ok().ok_or_else(|| {
        DiscoveryError::Unreachable(format!("{what} after {} s", LIST_DEADLINE.as_secs()))
    })
}
