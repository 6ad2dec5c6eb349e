//! Switchyard: a persistent router for MCP tool calls.

pub mod app;
pub mod audit;
pub mod catalogue;
pub mod cli;
pub mod clock;
pub mod config;
pub mod edge;
pub mod error;
pub mod metrics;
pub mod model;
pub mod policy;
pub mod pool;
pub mod protocol;
pub mod registry;
pub mod router;
pub mod store;
pub mod transport;
