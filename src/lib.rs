//! Switchyard: a persistent router for MCP tool calls.
//!
//! A call passes [`edge`] → [`router`] → [`catalogue`] → [`registry`] → [`pool`] → [`transport`], then
//! [`audit`] and [`metrics`]; everything else serves that line.
//!
//! In the order of dependence, each module knowing only what stands above it:
//!
//! - [`error`], [`model`]: the vocabulary; open to all
//! - [`clock`]: the two clocks; open to all but the pure modules
//! - [`protocol`], [`policy`]: pure: JSON-RPC and MCP messages; what a failure means
//! - [`redact`]: what must never be kept or shown, and taking it out
//! - [`config`]: from a file to values that were checked
//! - [`metrics`]: every metric's name, labels and buckets
//! - [`store`]: the one seam to a database
//! - [`audit`]: the ledger: one queue, one writer
//! - [`guard`]: the process that ends a child with all its descendants
//! - [`transport`], [`pool`]: conversations with servers, and the one that is open
//! - [`registry`]: which servers there are
//! - [`catalogue`]: which tools there are, under which names
//! - [`telemetry`]: spans, and how they reach a collector
//! - [`router`]: one call from name to answer
//! - [`edge`]: everything that listens
//! - [`app`]: all of it built, run and ended in order
//! - [`cli`]: the commands
//!
//! `ARCHITECTURE.md` has the code map, the import table and the invariants.

pub mod app;
pub mod audit;
pub mod catalogue;
pub mod cli;
pub mod clock;
pub mod config;
pub mod edge;
pub mod error;
pub mod guard;
pub mod metrics;
pub mod model;
pub mod policy;
pub mod pool;
pub mod protocol;
pub mod redact;
pub mod registry;
pub mod router;
pub mod store;
pub mod telemetry;
pub mod transport;
