//! The server that the conformance suite and the router meet: what the suite's scenarios ask for,
//! on the official SDK, so that its idea of the protocol is not ours. Changes when the suite wants
//! other tools, or the SDK's interface moves.
//!
//!     conformance-server [--port N] [--era both|modern|legacy]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::disallowed_methods,
    clippy::large_futures,
    clippy::needless_pass_by_value,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a fixture: a panic is its report, and it is not shipped"
)]

mod asking;
mod content;
mod era;
mod handler;
mod sealed;
mod sessions;
mod tools;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::routing::any;
use clap::Parser;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};

use crate::era::Era;
use crate::handler::{Fixture, Shared};
use crate::sessions::Sessions;

/// How long a client is told to wait before it comes back for a stream that was closed on it.
const COME_BACK_AFTER: Duration = Duration::from_millis(500);

#[derive(Parser)]
struct Options {
    /// Port on 127.0.0.1; 0 takes any
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Which protocol it speaks
    #[arg(long, value_enum, default_value_t = Era::Both)]
    era: Era,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let era = options.era;
    let shared = Arc::new(Shared::new(era));
    let config = StreamableHttpServerConfig::default()
        .with_sse_retry(Some(COME_BACK_AFTER))
        .with_legacy_session_mode(era != Era::Modern)
        .with_stateless_protocol_metadata_required(era == Era::Modern);
    let service = StreamableHttpService::new(
        move || Ok(Fixture::new(&shared)),
        Arc::new(Sessions::new(COME_BACK_AFTER)),
        config,
    );
    let answer = move |request: Request| {
        let service = service.clone();
        async move { era::answer(era, &service, request).await }
    };
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))
        .await
        .expect("the port is free");
    let address = listener.local_addr().expect("a bound socket has an address");
    println!("listening on http://{address}/mcp");
    axum::serve(listener, Router::new().route("/mcp", any(answer)))
        .await
        .expect("the listener lives as long as the process");
}
