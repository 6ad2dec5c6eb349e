//! Real servers on loopback and real children, with their faults on the wire.

mod support;

mod detect;
mod http;
mod jsonrpc;
mod late;
mod refusals;
mod sse;
mod stdio;

pub(super) use support::options;
