//! [`Stats`]: what the bundled upstream saw, for assertions and summaries.
//!
//! Changes when a test or the demo wants to see more. Counts only; decides nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Method};
use parking_lot::Mutex;

use super::tools::Tool;

/// Enough for any one test; the oldest are forgotten first.
const KEPT_REQUESTS: usize = 4096;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct SeenRequest {
    /// HTTP method.
    pub http_method: Method,
    /// HTTP headers.
    pub headers: HeaderMap,
    /// JSON-RPC method; empty when the body has none.
    pub method: String,
    /// The body, untouched.
    pub body: Bytes,
}

/// Counters, shared by an upstream and whoever watches it.
#[derive(Debug, Default)]
pub struct Stats {
    requests: AtomicU64,
    executed: [AtomicU64; Tool::COUNT],
    seen: Mutex<VecDeque<SeenRequest>>,
}

impl Stats {
    /// JSON-RPC messages that arrived, of every kind.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How often tools ran, all together.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.executed.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// How often `tool` ran.
    #[must_use]
    pub fn calls_of(&self, tool: Tool) -> u64 {
        self.executed.get(tool.index()).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// The last requests, oldest first; empty unless `Options::record` is set.
    #[must_use]
    pub fn seen(&self) -> Vec<SeenRequest> {
        self.seen.lock().iter().cloned().collect()
    }

    /// Of [`Self::seen`] those with this JSON-RPC method.
    #[must_use]
    pub fn seen_method(&self, method: &str) -> Vec<SeenRequest> {
        self.seen.lock().iter().filter(|seen| seen.method == method).cloned().collect()
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one execution and returns its number, from 1.
    pub(super) fn count_call(&self, tool: Tool) -> u64 {
        self.executed
            .get(tool.index())
            .map_or(0, |count| count.fetch_add(1, Ordering::Relaxed).saturating_add(1))
    }

    pub(super) fn remember(&self, request: SeenRequest) {
        let mut seen = self.seen.lock();
        if seen.len() >= KEPT_REQUESTS {
            seen.pop_front();
        }
        seen.push_back(request);
    }
}
