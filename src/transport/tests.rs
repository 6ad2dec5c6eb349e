//! Real servers on loopback and real children, with their faults on the wire.

mod support;

mod http;
mod stdio;
