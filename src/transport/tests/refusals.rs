//! Statuses that are no success, and what they say of the request and of its session.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::jsonrpc::predecessor;
use super::sse::calls;
use super::support::{
    Act, Received, Upstream, call, json, legacy, modern, options, result, status,
};
use crate::model::Failure;
use crate::protocol::AnswerKind;
use crate::transport::{Connection, HttpClient, Target, TransportError};

const JSON: &str = "content-type: application/json\r\n";
const SEVEN: Duration = Duration::from_secs(7);

fn error(id: impl std::fmt::Display, code: i64, message: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":"{message}"}}}}"#)
}

/// A legacy server that runs each call and does `act` with the first.
async fn first(act: fn(&Received) -> Act) -> Upstream {
    let calls = Arc::new(AtomicUsize::new(0));
    Upstream::start(move |request| {
        legacy(request, "s1", || match calls.fetch_add(1, Ordering::SeqCst) {
            0 => act(request),
            _ => result(request.id(), "{}"),
        })
    })
    .await
}

#[tokio::test]
async fn what_carries_our_id_is_the_answer_and_is_not_asked_for_again() {
    let answers: [fn(&Received) -> Act; 4] = [
        |request| status("404 Not Found", JSON, &error(request.id(), -32001, "no such order")),
        |request| status("404 Not Found", JSON, &error(request.id(), -32001, "no session: paid")),
        |request| {
            let body = error(request.id(), -32000, "Bad Request: No valid session ID provided");
            status("400 Bad Request", JSON, &body)
        },
        |request| status("410 Gone", JSON, &error(request.id(), -32000, "Session not found")),
    ];
    for (number, act) in answers.into_iter().enumerate() {
        let upstream = first(act).await;
        let connection = upstream.connect().await;
        let answer = call(&connection).await.unwrap();
        assert_eq!(answer.kind, AnswerKind::Error, "{number}");
        assert_eq!((upstream.count("tools/call"), upstream.count("initialize")), (1, 1));
        call(&connection).await.unwrap();
        assert_eq!(upstream.count("initialize"), 1, "{number}");
        assert_eq!(upstream.count("tools/call"), 2, "{number}");
        assert!(connection.is_alive());
    }
}

#[tokio::test]
async fn a_refusal_that_only_mentions_a_session_is_not_a_lost_one() {
    let refusals: [fn(&Received) -> Act; 4] = [
        |_| status("400 Bad Request", "", "your session expired, log in to the shop again"),
        |_| status("400 Bad Request", JSON, &error("null", -32000, "paid, but session not found")),
        |_| status("400 Bad Request", JSON, r#"{"detail":"invalid session"}"#),
        |_| status("410 Gone", "", "Session not found"),
    ];
    for (number, act) in refusals.into_iter().enumerate() {
        let upstream = first(act).await;
        let connection = upstream.connect().await;
        let error = call(&connection).await.unwrap_err();
        assert_eq!(error.failure(), Failure::Refused, "{number}");
        assert_eq!((upstream.count("tools/call"), upstream.count("initialize")), (1, 1));
    }
}

#[tokio::test]
async fn a_lost_session_is_understood_in_the_words_of_known_servers() {
    let refusals: [fn(&Received) -> Act; 9] = [
        |_| status("404 Not Found", "", ""),
        |request| status("404 Not Found", JSON, &error(request.id(), -32001, "Session not found")),
        |_| status("404 Not Found", JSON, &error("null", -32001, "Session not found")),
        |_| status("404 Not Found", JSON, &error(r#""server-error""#, -32600, "Session not found")),
        |_| status("400 Bad Request", "", "Bad Request: No valid session ID provided"),
        |_| status("400 Bad Request", "", "Invalid session ID\n"),
        |_| {
            let said = "Bad Request: Mcp-Session-Id header is required";
            status("400 Bad Request", JSON, &error("null", -32000, said))
        },
        |_| {
            let body = error(r#""server-error""#, -32600, "Bad Request: Missing session ID");
            status("400 Bad Request", JSON, &body)
        },
        |_| status("400 Bad Request", JSON, r#"{"message":"Session ID missing"}"#),
    ];
    for (number, act) in refusals.into_iter().enumerate() {
        let upstream = first(act).await;
        let connection = upstream.connect().await;
        assert_eq!(call(&connection).await.unwrap().kind, AnswerKind::Result, "{number}");
        assert_eq!((upstream.count("tools/call"), upstream.count("initialize")), (2, 2));
    }
}

/// Over HTTP+SSE only what surely did not run is taken for a session that was forgotten, and is sent again
/// over another stream.
#[tokio::test]
async fn a_forgotten_stream_is_understood_in_the_words_of_known_servers() {
    type Case = (fn(&Received) -> Act, bool);
    let cases: [Case; 9] = [
        (|_| status("404 Not Found", "", "Could not find session"), true),
        (|_| status("404 Not Found", "", "Session not found\n"), true),
        (|_| status("400 Bad Request", "", "Invalid session ID"), true),
        (|_| status("400 Bad Request", "", "No transport found for sessionId"), true),
        (|_| status("404 Not Found", JSON, r#"{"error":"Session not found"}"#), true),
        (|one| status("404 Not Found", JSON, &error(one.id(), -32001, "Session not found")), true),
        (|_| status("404 Not Found", "", "no such page"), false),
        (|_| status("410 Gone", "", "Session not found"), false),
        (|_| status("400 Bad Request", "", "paid, but session not found"), false),
    ];
    for (number, (act, forgotten)) in cases.into_iter().enumerate() {
        let server = calls(move |request, _| act(request));
        let connection = server.open(&options()).await.unwrap();
        let error = call(&connection).await.unwrap_err();
        let found = matches!(error, TransportError::Forgotten { .. });
        assert_eq!(found, forgotten, "{number}: {error:?}");
        assert_eq!(error.failure(), Failure::Refused, "{number}: {error:?}");
        assert!(!connection.is_alive(), "{number}");
    }
    // An error with our id is an answer, unless it says just that.
    let server = calls(|request, _| {
        status("404 Not Found", JSON, &error(request.id(), -32001, "no such order"))
    });
    let connection = server.open(&options()).await.unwrap();
    assert_eq!(call(&connection).await.unwrap().kind, AnswerKind::Error);
    assert!(connection.is_alive());
}

/// The codes by which modern servers refuse version and headers are a tool's own in other eras.
#[tokio::test]
async fn codes_of_the_modern_era_mean_nothing_before_it() {
    for code in [-32020, -32022] {
        let upstream = Upstream::start(move |request| {
            legacy(request, "s1", || json(&error(request.id(), code, "the tool says no")))
        })
        .await;
        let connection = upstream.connect().await;
        assert_eq!(call(&connection).await.unwrap().kind, AnswerKind::Error);
        assert!(connection.is_alive());

        let upstream = Upstream::start(move |request| {
            predecessor(request, || json(&error(request.id(), code, "the tool says no")))
        })
        .await;
        let url = upstream.url.trim_end_matches("/mcp").parse().unwrap();
        let target = Target::Jsonrpc { url, headers: Vec::new() };
        let (client, tasks) = (HttpClient::new(), TaskTracker::new());
        let connection = Connection::open(&target, &client, &options(), &tasks).await.unwrap();
        assert_eq!(call(&connection).await.unwrap().kind, AnswerKind::Error);
        assert!(connection.is_alive());
    }
}

/// A server that was replaced by a modern one is not asked twice for one call, but found out anew.
#[tokio::test]
async fn a_legacy_server_that_became_modern_ends_the_connection() {
    let upstream = first(|request| {
        status("400 Bad Request", JSON, &error(request.id(), -32022, "unsupported version"))
    })
    .await;
    let connection = upstream.connect().await;
    assert_eq!(call(&connection).await.unwrap().kind, AnswerKind::Error);
    assert!(!connection.is_alive());
    assert_eq!(upstream.count("tools/call"), 1);
}

/// What is compressed is not read; the status is not, and says the same as ever.
#[tokio::test]
async fn the_status_of_a_compressed_refusal_counts() {
    async fn refused(line: &'static str, headers: &'static str) -> TransportError {
        let upstream = Upstream::start(move |request| {
            modern(request, || {
                let headers = format!("{JSON}content-encoding: gzip\r\n{headers}");
                status(line, &headers, "\u{1f}\u{8b}")
            })
        })
        .await;
        call(&upstream.connect().await).await.unwrap_err()
    }
    for line in ["401 Unauthorized", "403 Forbidden"] {
        let error = refused(line, "").await;
        assert!(matches!(error, TransportError::Unauthorized { .. }), "{error:?}");
    }
    let error = refused("429 Too Many Requests", "retry-after: 7\r\n").await;
    assert_eq!((error.failure(), error.retry_after()), (Failure::Refused, Some(SEVEN)));
    let error = refused("503 Service Unavailable", "retry-after: 7\r\n").await;
    assert_eq!((error.failure(), error.retry_after()), (Failure::Ambiguous, Some(SEVEN)));
    assert!(error.may_pass());
    let error = refused("400 Bad Request", "").await;
    assert_eq!((error.failure(), error.http_status()), (Failure::Refused, Some(400)));
}

/// Nobody can see whether it is the answer, so that the call is not sent again; the next one has a new
/// session.
#[tokio::test]
async fn a_compressed_404_repeats_nothing() {
    let upstream = first(|_| {
        let headers = format!("{JSON}content-encoding: gzip\r\n");
        status("404 Not Found", &headers, "\u{1f}\u{8b}")
    })
    .await;
    let connection = upstream.connect().await;
    let error = call(&connection).await.unwrap_err();
    assert_eq!((error.failure(), error.http_status()), (Failure::Refused, Some(404)));
    assert_eq!((upstream.count("tools/call"), upstream.count("initialize")), (1, 1));
    call(&connection).await.unwrap();
    assert_eq!((upstream.count("tools/call"), upstream.count("initialize")), (2, 2));
}

/// The body of a refusal only says more of it: one that does not come to its end is not waited for until
/// the deadline, and what cannot be seen for the missing rest repeats nothing.
#[tokio::test]
async fn a_refusal_whose_body_never_ends_is_told_by_its_status() {
    async fn refused(
        line: &'static str,
        headers: &'static str,
        act: fn(Vec<u8>) -> Act,
    ) -> TransportError {
        let upstream = Upstream::start(move |request| {
            legacy(request, "s1", || act(format!("HTTP/1.1 {line}\r\n{headers}").into_bytes()))
        })
        .await;
        let error = call(&upstream.connect().await).await.unwrap_err();
        assert_eq!((upstream.count("tools/call"), upstream.count("initialize")), (1, 1), "{line}");
        error
    }
    let silent = |mut head: Vec<u8>| {
        head.extend_from_slice(b"content-length: 1000\r\n\r\n{\"error\":\"out of");
        Act::WriteAndHang(head)
    };
    let endless = |mut head: Vec<u8>| {
        head.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
        Act::WriteForEver(head, b"4\r\nout \r\n".to_vec())
    };
    let (html, json) = ("content-type: text/html\r\n", JSON);
    let refused = [
        (500, refused("500 Internal Server Error", json, silent)),
        (503, refused("503 Service Unavailable", html, silent)),
        (502, refused("502 Bad Gateway", json, endless)),
        (404, refused("404 Not Found", json, silent)),
        (400, refused("400 Bad Request", html, silent)),
        (429, refused("429 Too Many Requests", json, silent)),
        (403, refused("403 Forbidden", json, endless)),
    ];
    let refused = refused.map(|(status, error)| async move { (status, error.await) });
    for (status, error) in futures_util::future::join_all(refused).await {
        assert_eq!(error.http_status(), Some(status), "{error:?}");
        let failure = if status >= 500 { Failure::Ambiguous } else { Failure::Refused };
        assert_eq!(error.failure(), failure, "{error:?}");
        if let TransportError::ServerFault { body, .. } | TransportError::Rejected { body, .. } =
            error
        {
            assert!(body.contains("out "), "{status}: {body}");
        }
    }
}
