//! The books of three: what callers heard, what the server was made to do, what the ledger says.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::support::{Answer, Fault, figure};

/// Everything that goes wrong within one call and that the server knows of.
fn faults() -> Vec<Fault> {
    vec![
        Fault::Event,
        Fault::RpcError(-32_000),
        Fault::ToolError,
        Fault::HangBeforeHeaders,
        Fault::HangAfterHeaders,
        Fault::HangMidEvent,
        Fault::HangMidJson,
        Fault::HalfClose,
        Fault::Reset,
        Fault::ResetMidAnswer,
        Fault::Truncated,
        Fault::StreamEnds,
        Fault::CloseUnread,
        Fault::WrongId,
        Fault::TwoAnswers,
        Fault::ContentType("text/html"),
        Fault::InvalidUtf8,
        Fault::Garbage,
        Fault::NoHttp,
        Fault::status(429),
        Fault::status(500),
        Fault::status(503),
        Fault::retry_after(503, 0),
        Fault::status(404),
        Fault::status(400),
        Fault::status(401),
    ]
}

/// What the ledger must say of a call with this answer.
fn heard(answer: &Answer) -> Row {
    let body = answer.json();
    let error_code = body["error_code"].as_str().map(str::to_owned);
    let outcome = match error_code.as_deref() {
        None if body["success"] == true => "ok",
        Some("MCPToolError") => "tool_error",
        Some("MCPRpcError") => "rpc_error",
        Some("MCPTimeoutError") => "timeout",
        Some(_) => "unavailable",
        None => panic!("{body}"),
    };
    let attempts = body["attempts"].as_i64().unwrap();
    Row { outcome: outcome.to_owned(), error_code, attempts, started_at: 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconcile() {
    const CALLERS: usize = 32;
    let calls = figure(5_000, 200_000);
    let tools = ["pay", "read"];
    let rig = Rig::legacy(&tools).await;
    rig.annotate("read", json!({ "readOnlyHint": true }));
    let settings = "timeout: 1500ms, retry_delay: 5ms, circuit_breaker_threshold: 1000000";
    let began = Instant::now();
    let router = Router::start(&rig.yaml("up", settings)).await;
    ready(&router, began).await;
    for tool in tools {
        rig.mix(tool, 50, &faults());
    }

    let next = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (http, next) = (router.http.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                let mut line = http.line().await;
                let mut found = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= calls {
                        return found;
                    }
                    let tool = ["up__pay", "up__read"][number % 2];
                    let body = json!({ "tool_name": tool, "arguments": { "key": number } });
                    let call = http.request(&http::Method::POST, "/mcp/call");
                    let answer = line.send(call.body(body.to_string())).await;
                    found.push((number, plain(&answer.id()), heard(&answer)));
                }
            })
        })
        .collect();
    let mut found = Vec::new();
    for task in tasks {
        found.extend(task.await.unwrap());
    }
    println!("{calls} calls in {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(found.len(), calls);
    let (code, folder) = router.stop().await;
    assert_eq!(code, 0);
    let data = folder.path().join("data");

    // Callers and ledger, call by call.
    let rows = rows(&data).await;
    assert_eq!(rows.len(), calls);
    let mut outcomes = HashMap::<String, u64>::new();
    for (_, id, told) in &found {
        let row = Row { started_at: 0, ..rows[id].clone() };
        assert_eq!(row, *told, "{id}");
        *outcomes.entry(row.outcome).or_default() += 1;
    }
    println!("{outcomes:?}");
    for outcome in ["ok", "tool_error", "rpc_error", "timeout", "unavailable"] {
        assert!(outcomes.contains_key(outcome), "{outcome} is missing: {outcomes:?}");
    }

    // Server and ledger, tool by tool: an attempt that left is a request, and one that ran ran once.
    let mut database = database(&data).await;
    for tool in tools {
        let counts = rig.counts(tool);
        let (listed, left): (i64, i64) = sqlx::query_as(
            "select count(*), coalesce(sum(attempts.failure is not 'not_sent'), 0)
             from attempts join calls using (seq) where upstream_tool = ?",
        )
        .bind(tool)
        .fetch_one(&mut database)
        .await
        .unwrap();
        let said: i64 =
            sqlx::query_scalar("select sum(attempts) from calls where upstream_tool = ?")
                .bind(tool)
                .fetch_one(&mut database)
                .await
                .unwrap();
        println!("{tool}: {counts:?}, {said} attempts, {left} of them left");
        assert_eq!(listed, said, "{tool}: attempts by row and by number");
        assert_eq!(u64::try_from(left).unwrap(), counts.requests, "{tool}");
    }
    // What was answered well ran, and what is not safe to repeat ran once at most.
    assert_eq!(rig.executed_twice("pay"), Vec::<String>::new());
    let executed = [rig.executed("pay"), rig.executed("read")];
    for (number, _, told) in &found {
        let times = executed[number % 2].get(&number.to_string()).copied().unwrap_or_default();
        assert!(i64::from(times) <= told.attempts, "{number}: {times}, {told:?}");
        if told.outcome == "ok" || told.outcome == "tool_error" || told.outcome == "rpc_error" {
            assert!(times >= 1, "{number} was answered and did not run");
        }
    }
    let retried: i64 = sqlx::query_scalar("select count(*) from calls where attempts > 1")
        .fetch_one(&mut database)
        .await
        .unwrap();
    assert!(retried > 0, "nothing was tried again");
    database.close().await.unwrap();
    verify(folder.path()).await;
}
