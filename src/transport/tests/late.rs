//! Answers on an event stream whose callers left before they came.

use std::time::Duration;

use super::sse::{accepted, calls};
use super::support::{call, call_within, options};
use crate::clock;
use crate::transport::{ConnectOptions, TransportError};

/// Answers that come after their callers left are not what nobody asked for, whose pace would make
/// these take a quarter of a minute.
#[tokio::test]
async fn late_answers_hold_up_nobody() {
    const LEFT: u64 = 6;
    let server = calls(|request, stream| {
        if request.id() > 1 + LEFT {
            stream.answer(request.id(), "{}");
        }
        accepted()
    });
    let options = ConnectOptions { max_response_size: 16 * 1024 * 1024, ..options() };
    let connection = server.open(&options).await.unwrap();
    let leaving = (0..LEFT).map(|_| call_within(&connection, Duration::from_secs(1)));
    for left in futures_util::future::join_all(leaving).await {
        let error = left.unwrap_err();
        assert!(matches!(error, TransportError::Timeout { .. }), "{error:?}");
    }
    let large = format!(r#"{{"x":"{}"}}"#, "x".repeat(15_000_000));
    for call in server.posts("tools/call") {
        server.stream.answer(call.id(), &large);
    }
    let began = clock::uptime();
    call(&connection).await.unwrap();
    let took = clock::uptime().since(began);
    assert!(took < Duration::from_secs(9), "{took:?}");
    connection.close().await;
}
