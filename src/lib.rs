//! Switchyard: a persistent router for MCP tool calls.

pub mod clock;
pub mod config;
pub mod error;
pub mod model;
pub mod policy;
pub mod protocol;
