//! The ledger where things break: the router is killed, the disk is full, the database is locked. What
//! callers and servers counted is compared with what is on record.

mod failing;
mod kills;
mod pressed;
mod reconcile;
mod recovers;
mod spool;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::support::{Http, Rig, Router, SOON, eventually, switchyard};

/// One attempt for each call, and a breaker that stays out of it.
const ONCE: &str = "retry_mode: off, circuit_breaker_threshold: 1000000";

/// A call as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    outcome: String,
    error_code: Option<String>,
    attempts: i64,
    started_at: i64,
}

async fn database(data: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(data.join("audit.db"));
    options.busy_timeout(SOON).connect().await.unwrap()
}

/// Every call in the ledger, by its id in hexadecimal digits. That each id is there once is the
/// table's own word.
async fn rows(data: &Path) -> HashMap<String, Row> {
    let mut database = database(data).await;
    let rows = sqlx::query(
        "select lower(hex(id)) as id, outcome, error_code, attempts, started_at_ms from calls",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();
    database.close().await.unwrap();
    rows.iter()
        .map(|row| {
            let call = Row {
                outcome: row.get("outcome"),
                error_code: row.get("error_code"),
                attempts: row.get("attempts"),
                started_at: row.get("started_at_ms"),
            };
            (row.get("id"), call)
        })
        .collect()
}

/// The entries of this kind, oldest first.
async fn entries(data: &Path, kind: &str) -> Vec<Value> {
    let mut database = database(data).await;
    let details: Vec<String> =
        sqlx::query_scalar("select detail from entries where kind = ? order by seq")
            .bind(kind)
            .fetch_all(&mut database)
            .await
            .unwrap();
    database.close().await.unwrap();
    details.iter().map(|detail| serde_json::from_str(detail).unwrap()).collect()
}

/// An id as the ledger's file has it.
fn plain(id: &str) -> String {
    id.replace('-', "")
}

async fn verify(folder: &Path) {
    switchyard(folder, &["audit", "verify"]).await.expect(0);
}

/// Waits until it is ready and gives how long that took since `began`.
async fn ready(router: &Router, began: Instant) -> Duration {
    eventually(SOON, "the router is ready", || async {
        let asked = router.http.request(&http::Method::GET, "/readyz").try_send().await;
        let settled = |text: &str| !text.contains("still being asked");
        asked.is_ok_and(|answer| answer.status == 200 && settled(answer.text())).then_some(())
    })
    .await;
    began.elapsed()
}

/// Numbers that are different in every run.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = u64::try_from(now.as_nanos() & u128::from(u64::MAX)).unwrap() | 1;
        eprintln!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// An answer as its caller saw it.
#[derive(Debug, Clone)]
struct Heard {
    id: String,
    at: Instant,
    success: bool,
    error_code: Option<String>,
    /// What is known of the call, where it failed.
    known: Option<String>,
}

/// Callers that call without pause, one call after the other each, until the router is gone or they
/// are told to stop. They give what they heard.
struct Callers {
    tasks: Vec<JoinHandle<Vec<Heard>>>,
    stop: tokio_util::sync::CancellationToken,
    answers: Arc<AtomicUsize>,
}

impl Callers {
    fn start(http: &Http, tool: &'static str, count: usize, mark: &str, pause: Duration) -> Self {
        let stop = tokio_util::sync::CancellationToken::new();
        let answers = Arc::new(AtomicUsize::new(0));
        let tasks = (0..count)
            .map(|caller| {
                let (http, stop, answers) = (http.clone(), stop.clone(), Arc::clone(&answers));
                let mark = format!("{mark}/{caller}");
                tokio::spawn(async move {
                    let mut heard = Vec::new();
                    for number in 0.. {
                        if stop.is_cancelled() {
                            break;
                        }
                        match call(&http, tool, &format!("{mark}/{number}")).await {
                            Some(answer) => heard.push(answer),
                            None => break,
                        }
                        answers.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(pause).await;
                    }
                    heard
                })
            })
            .collect();
        Self { tasks, stop, answers }
    }

    /// Waits until they have heard so many answers.
    async fn heard(&self, count: usize) {
        eventually(SOON, "calls are answered", || async {
            (self.answers.load(Ordering::Relaxed) >= count).then_some(())
        })
        .await;
    }

    /// Lets each end its call.
    async fn stop(self) -> Vec<Heard> {
        self.stop.cancel();
        self.gone().await
    }

    /// Waits until each has noticed that the router is gone.
    async fn gone(self) -> Vec<Heard> {
        let mut heard = Vec::new();
        for task in self.tasks {
            heard.extend(task.await.unwrap());
        }
        heard
    }
}

/// One call; `None` when the router went away.
async fn call(http: &Http, tool: &str, key: &str) -> Option<Heard> {
    let body = json!({ "tool_name": tool, "arguments": { "key": key } }).to_string();
    let call = http.request(&http::Method::POST, "/mcp/call").body(body);
    let answer = call.try_send().await.ok()?;
    let at = Instant::now();
    let body = answer.json();
    let text = |name: &str| body[name].as_str().map(str::to_owned);
    Some(Heard {
        id: plain(&answer.id()),
        at,
        success: body["success"] == true,
        error_code: text("error_code"),
        known: text("outcome"),
    })
}
