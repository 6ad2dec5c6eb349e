//! The ledger with many rows: how fast it grows, and how fast it answers meanwhile.
//!
//! `SWITCHYARD_LEDGER_ROWS` says how many rows, 200,000 when it is not set; the figures below are
//! promised for 10,000,000. `SWITCHYARD_LEDGER_DAYS` says of how many days, 30 when it is not set and
//! never fewer. `cargo test --release --test it ledger_scale -- --nocapture` prints them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use switchyard::audit::AuditQuery;
use switchyard::error::ErrorCode;
use switchyard::model::{
    BreakerState, CallId, Entrance, Outcome, ServerName, Timestamp, ToolName, TraceId, ViewName,
};
use switchyard::store::{AuditFilter, CallRow, PruneUntil, StatsBy, StatsPer, StatsQuery, Store};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

const DAY: Duration = Duration::from_hours(24);
/// Rows of a commit, as the ledger's writer makes them.
const BATCH: usize = 4096;

/// Debug builds are about so much slower, and share their machine with other tests.
const SLACK: u32 = if cfg!(debug_assertions) { 10 } else { 1 };

/// What can be measured once only is the other tests' as much as ours beside them.
const MEASURED: f64 = if cfg!(debug_assertions) { 10.0 } else { 1.0 };

/// Somebody wants the figures: each is printed, not only the slowest of a kind.
fn asked_for_rows() -> bool {
    std::env::var_os("SWITCHYARD_LEDGER_ROWS").is_some()
}

fn rows() -> usize {
    std::env::var("SWITCHYARD_LEDGER_ROWS").ok().map_or(200_000, |rows| rows.parse().unwrap())
}

/// The questions below go back 26 days.
fn days() -> u32 {
    std::env::var("SWITCHYARD_LEDGER_DAYS").ok().map_or(30, |days| days.parse().unwrap()).max(30)
}

/// Calls that came in evenly over these days.
struct Calls {
    random: Rng,
    made: usize,
    first: Timestamp,
    step: Duration,
    names: Names,
}

struct Names {
    callers: Vec<Arc<str>>,
    tools: Vec<(Arc<str>, ToolName, ServerName)>,
    words: Vec<String>,
}

impl Calls {
    fn new(rows: usize) -> Self {
        let tool = |n: usize| {
            let (server, tool) = (format!("server-{}", n % 20), format!("tool_{n}"));
            let exposed = format!("{server}__{tool}").into();
            (exposed, ToolName::parse(&tool).unwrap(), ServerName::parse(&server).unwrap())
        };
        let mut random = Rng::with_seed(7);
        let word = |random: &mut Rng| {
            (0..random.usize(3..10)).map(|_| random.lowercase()).collect::<String>()
        };
        let names = Names {
            callers: (0..50).map(|n| format!("caller-{n}").into()).collect(),
            tools: (0..200).map(tool).collect(),
            words: (0..20_000).map(|_| word(&mut random)).collect(),
        };
        let first = Timestamp::from_millis(1_790_000_000_000);
        let step = (DAY * days()) / u32::try_from(rows).unwrap();
        Self { random, made: 0, first, step, names }
    }

    /// Few words are frequent and most are rare, as in any language.
    fn words(&mut self, count: usize) -> String {
        let mut text = String::new();
        for _ in 0..count {
            let n = self.names.words.len() as f64;
            #[expect(clippy::cast_possible_truncation, reason = "below the number of values")]
            let rank = (n.powf(self.random.f64()) - 1.0) as usize;
            text.push_str(&self.names.words[rank]);
            text.push(' ');
        }
        text
    }

    fn now(&self) -> Timestamp {
        self.first.plus(self.step * u32::try_from(self.made).unwrap())
    }

    fn next(&mut self) -> CallRow {
        self.made += 1;
        let now = self.now();
        let random = &mut self.random;
        let took =
            Duration::from_micros(1 << random.u32(8..20)) + Duration::from_micros(random.u64(..99));
        let late = if random.u8(..) == 0 { Duration::from_secs(random.u64(..300)) } else { took };
        let (tool, upstream, server) =
            self.names.tools[random.usize(..200).min(random.usize(..200))].clone();
        let caller = Arc::clone(&self.names.callers[random.usize(..50).min(random.usize(..50))]);
        let (outcome, error_code) = match random.u16(..1000) {
            0..=949 => (Outcome::Ok, None),
            950..=979 => (Outcome::ToolError, Some(ErrorCode::Tool)),
            980..=994 => (Outcome::Timeout, Some(ErrorCode::Timeout)),
            995..=998 => (Outcome::Unavailable, Some(ErrorCode::Connection)),
            _ => (Outcome::Cancelled, None),
        };
        let session = (self.made / 20_000 * 20 + random.usize(..20)).to_string();
        let view = (random.u8(..10) == 0).then(|| ViewName::parse("support").unwrap());
        let response_bytes = random.u64(..50_000);
        let text = self.words(9);
        let needle = if self.made % 1_000_003 == 77 { "needleinhay" } else { "" };
        CallRow {
            seq: 0,
            id: CallId::from_uuid(Uuid::now_v7()),
            started_at: now.minus(late),
            caller,
            session: Some(session.into()),
            client: None,
            entrance: Entrance::Rest,
            view,
            tool,
            upstream_tool: Some(upstream),
            server: Some(server),
            definition_hash: Some([7; 32]),
            outcome,
            error_code,
            error: error_code.map(|_| format!("could not reach it: {}", self.words(4))),
            failure: None,
            http_status: 200,
            attempts: 1,
            attempt_list: Vec::new(),
            queue: Duration::ZERO,
            upstream: took,
            total: took,
            request_bytes: 200,
            response_bytes,
            arguments: Some(format!(r#"{{"query":"{text}{needle}","limit":{}}}"#, self.made % 100)),
            result: Some(format!(r#"{{"bytes":{response_bytes},"content":["text"]}}"#)),
            arguments_digest: None,
            result_digest: None,
            hash: None,
            trace_id: TraceId::from_bytes(trace_of(self.made / 3)),
            remote: Some([127, 0, 0, 1].into()),
            levels: None,
            breaker: Some(BreakerState::Closed),
        }
    }

    fn batch(&mut self, count: usize) -> Vec<CallRow> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// The id of a trace: as good as random, and the same for the same number.
fn trace_of(number: usize) -> [u8; 16] {
    Rng::with_seed(u64::try_from(number).unwrap()).u128(1..).to_be_bytes()
}

/// Processor time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
    let ticks = |n: usize| fields[n].parse::<u64>().unwrap();
    Duration::from_millis((ticks(12) + ticks(13)) * 10)
}

struct Clock {
    name: String,
    limit: Duration,
    failed: Vec<String>,
    slowest: (Duration, String),
}

impl Clock {
    fn new(name: &str, millis: u64) -> Self {
        let limit = Duration::from_millis(millis);
        Self { name: name.to_owned(), limit, failed: Vec::new(), slowest: Default::default() }
    }

    /// Times an answer, and keeps what was too slow. What is slow in itself is slow each time:
    /// the fastest of five counts.
    async fn time<T>(&mut self, what: &str, mut answer: impl AsyncFnMut() -> T) -> T {
        let mut tries = Vec::new();
        loop {
            let began = Instant::now();
            let value = answer().await;
            tries.push(began.elapsed());
            let fastest = tries.iter().min().copied().unwrap_or_default();
            if fastest > self.limit * SLACK && tries.len() < 5 {
                continue;
            }
            let line = format!("{} {what}: {:.1} ms", self.name, fastest.as_secs_f64() * 1e3);
            if fastest > self.limit * SLACK {
                self.failed.push(line.clone());
            }
            if asked_for_rows() {
                eprintln!("{line}");
            }
            if fastest > self.slowest.0 {
                self.slowest = (fastest, line);
            }
            return value;
        }
    }
}

fn filters(now: Timestamp) -> Vec<(String, AuditFilter)> {
    let text = |text: &str| Some(text.to_owned());
    let none = AuditFilter::default;
    let session = text("3");
    let single = [
        ("server", AuditFilter { server: text("server-19"), ..none() }),
        ("tool", AuditFilter { tool: text("server-19__tool_199"), ..none() }),
        ("upstream tool", AuditFilter { tool: text("tool_42"), ..none() }),
        ("outcome", AuditFilter { outcome: Some(Outcome::Cancelled), ..none() }),
        ("caller", AuditFilter { caller: text("caller-49"), ..none() }),
        ("session", AuditFilter { session, ..none() }),
        ("error_code", AuditFilter { error_code: text("MCPTimeoutError"), ..none() }),
        ("view", AuditFilter { view: text("support"), ..none() }),
        ("trace", AuditFilter { trace: TraceId::from_bytes(trace_of(77)), ..none() }),
        ("nothing of it", AuditFilter { outcome: Some(Outcome::Interrupted), ..none() }),
    ];
    let both = |a: &AuditFilter, b: &AuditFilter| AuditFilter {
        server: a.server.clone().or(b.server.clone()),
        tool: a.tool.clone().or(b.tool.clone()),
        outcome: a.outcome.or(b.outcome),
        caller: a.caller.clone().or(b.caller.clone()),
        session: a.session.clone().or(b.session.clone()),
        error_code: a.error_code.clone().or(b.error_code.clone()),
        view: a.view.clone().or(b.view.clone()),
        trace: a.trace.or(b.trace),
        ..none()
    };
    let mut all = vec![("everything".to_owned(), none())];
    for (n, (name, filter)) in single.iter().enumerate() {
        all.push(((*name).to_owned(), filter.clone()));
        for (other, also) in &single[n + 1..] {
            all.push((format!("{name} and {other}"), both(filter, also)));
        }
    }
    let spans = [
        ("", None, None),
        (", an old hour", Some(now.minus(DAY * 20)), Some(now.minus(DAY * 20 - DAY / 24))),
        (", two weeks", Some(now.minus(DAY * 25)), Some(now.minus(DAY * 11))),
    ];
    let spanned = |(name, filter): (String, AuditFilter)| {
        spans.map(|(span, since, until)| {
            (format!("{name}{span}"), AuditFilter { since, until, ..filter.clone() })
        })
    };
    all.into_iter().flat_map(spanned).collect()
}

async fn ask_for_pages(query: &AuditQuery, filter: &AuditFilter, name: &str, clock: &mut Clock) {
    let mut cursor: Option<String> = None;
    for page in 1..=3 {
        let ask = async || query.page(filter, cursor.as_deref(), 100).await;
        let answer = clock.time(&format!("{name}, page {page}"), ask).await.unwrap();
        assert!(answer.index.behind < 60_000, "{:?}", answer.index);
        cursor = answer.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_scale() {
    let rows = rows();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).await.unwrap();
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let follower = store.clone();
    let stopped = stop.clone();
    tasks.spawn(async move { follower.follow_ledger(stopped).await });

    let mut calls = Calls::new(rows);
    let (mut writing, mut furthest) = (Duration::ZERO, 0);
    let (began, cpu_before) = (Instant::now(), cpu());
    let mut slowest = f64::MAX;
    let (mut window, mut window_rows) = (Duration::ZERO, 0);
    while calls.made < rows {
        let batch = calls.batch(BATCH.min(rows - calls.made));
        let started = Instant::now();
        store.append_calls(&batch).await.unwrap();
        writing += started.elapsed();
        window += started.elapsed();
        window_rows += batch.len();
        if window_rows >= 20 * BATCH {
            slowest = slowest.min(window_rows as f64 / window.as_secs_f64());
            (window, window_rows) = (Duration::ZERO, 0);
            furthest = furthest.max(store.index_state().await.unwrap().behind);
        }
    }
    let rate = rows as f64 / writing.as_secs_f64();
    println!(
        "{rows} rows in {:.0} s ({:.0} s of them writing): {rate:.0} rows/s, slowest 81,920 at {slowest:.0} rows/s",
        began.elapsed().as_secs_f64(),
        writing.as_secs_f64()
    );
    let caught = Instant::now();
    while store.index_state().await.unwrap().behind > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let whole = began.elapsed().as_secs_f64();
    println!(
        "the index was {furthest} behind at most, done {:.1} s after the last row: {:.0} rows/s; {:.0} s of processor in {whole:.0} s",
        caught.elapsed().as_secs_f64(),
        rows as f64 / whole,
        (cpu() - cpu_before).as_secs_f64(),
    );
    for file in ["audit.db", "audit-index.db", "audit-index.db-wal"] {
        let bytes = std::fs::metadata(folder.path().join(file)).map_or(0, |meta| meta.len());
        println!("{file}: {} MiB", bytes >> 20);
    }
    assert!(rate * f64::from(SLACK) >= 10_000.0, "{rate} rows/s");

    keep_up(&store, &mut calls).await;

    // Calls go on at a thousand a second while questions are asked.
    let (writer, stopped) = (store.clone(), stop.clone());
    let (now, mut later) = (calls.now(), calls);
    tasks.spawn(async move {
        while !stopped.is_cancelled() {
            writer.append_calls(&later.batch(100)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    let query = AuditQuery::new(store.clone());
    let mut lists = Clock::new("list", 100);
    for (name, filter) in filters(now) {
        ask_for_pages(&query, &filter, &name, &mut lists).await;
    }
    let mut sums = Clock::new("stats", 500);
    for (name, by, per, filter) in [
        ("by server, total", StatsBy::Server, StatsPer::Total, AuditFilter::default()),
        ("by tool, per hour", StatsBy::Tool, StatsPer::Hour, AuditFilter::default()),
        ("by caller, per hour", StatsBy::Caller, StatsPer::Hour, AuditFilter::default()),
        (
            "by tool of one caller, per day",
            StatsBy::Tool,
            StatsPer::Day,
            AuditFilter { caller: Some("caller-7".to_owned()), ..AuditFilter::default() },
        ),
    ] {
        for back in [1, 15] {
            let since = now.minus(DAY * back + Duration::from_mins(17));
            let query = StatsQuery {
                by,
                per,
                filter: filter.clone(),
                since,
                until: since.plus(DAY),
                within: Vec::new(),
            };
            let ask = async || store.audit_stats(&query).await;
            let answer = sums.time(&format!("{name}, {back} days ago"), ask).await.unwrap();
            assert!(!answer.rows.is_empty());
        }
    }
    let mut texts = Clock::new("text", 300);
    let frequent = [later_word(0), later_word(3)];
    let rare = later_word(15_000);
    let caller = || Some("caller-49".to_owned());
    for text in [
        "needleinhay".to_owned(),
        frequent[0].clone(),
        rare.clone(),
        format!("{} {rare}", frequent[0]),
        format!("\"{} {}\"", frequent[0], frequent[1]),
        format!("{}*", &rare[..3]),
        "co*".to_owned(),
        "\"could not reach it\"".to_owned(),
        "content".to_owned(),
        "nowhereatall".to_owned(),
    ] {
        for (with, filter) in [
            ("", AuditFilter::default()),
            (" of a caller", AuditFilter { caller: caller(), ..AuditFilter::default() }),
            (
                " of an old day",
                AuditFilter {
                    since: Some(now.minus(DAY * 20)),
                    until: Some(now.minus(DAY * 19)),
                    ..AuditFilter::default()
                },
            ),
            (
                " of rare ones",
                AuditFilter {
                    caller: caller(),
                    outcome: Some(Outcome::Cancelled),
                    ..AuditFilter::default()
                },
            ),
        ] {
            let filter = AuditFilter { text: Some(text.clone()), ..filter };
            ask_for_pages(&query, &filter, &format!("{text}{with}"), &mut texts).await;
        }
    }
    let mut whole = Clock::new("verify", 10_000 * (rows as u64).div_ceil(1_000_000));
    let verified = whole.time("all", || Store::verify_ledger(folder.path(), &[])).await.unwrap();
    assert!(verified.faults == 0 && verified.rows >= rows as u64, "{verified:?}");
    for clock in [&lists, &sums, &texts, &whole] {
        eprintln!("slowest {}", clock.slowest.1);
    }
    forget_half(&store, folder.path(), now).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    store.close().await.unwrap();
    let failed = [lists.failed, sums.failed, texts.failed, whole.failed].concat();
    assert!(failed.is_empty(), "too slow:\n{}", failed.join("\n"));
}

/// Ten thousand rows a second for a while: the index stays at most five seconds behind.
async fn keep_up(store: &Store, calls: &mut Calls) {
    const EVERY: Duration = Duration::from_millis(100);
    let (per_second, seconds) = (10_000 / SLACK as usize, 15);
    let (began, cpu_before) = (Instant::now(), cpu());
    let (mut furthest, mut late) = (0, Duration::ZERO);
    for turn in 1..=seconds * 10 {
        let batch = calls.batch(per_second / 10);
        store.append_calls(&batch).await.unwrap();
        let due = EVERY * u32::try_from(turn).unwrap();
        late = late.max(began.elapsed().saturating_sub(due));
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        if turn > 10 {
            furthest = furthest.max(store.index_state().await.unwrap().behind);
        }
    }
    let took = began.elapsed();
    let cpu = (cpu() - cpu_before).as_secs_f64();
    let lag = furthest as f64 / per_second as f64;
    eprintln!(
        "{per_second} rows/s for {:.0} s, at most {:.2} s late: the index {furthest} rows behind at most, {lag:.1} s; {cpu:.1} s of processor",
        took.as_secs_f64(),
        late.as_secs_f64(),
    );
    assert!(lag <= 5.0 * MEASURED, "{lag} s behind");
}

/// Half of the rows go while others come in: nobody waits long, and the space is given back.
async fn forget_half(store: &Store, folder: &Path, now: Timestamp) {
    // Not the length of the file: a part of the rows is still in the log beside it.
    let before = ledger_bytes(folder).await;
    let rows_before = store.audit_count().await.unwrap();
    let (first, newest) = (store.audit_oldest().await.unwrap().unwrap(), now);
    let half = (newest.as_millis() - first.as_millis()) / 2;
    let began = Instant::now();
    let until = PruneUntil::Before(Timestamp::from_millis(first.as_millis() + half));
    let pruned = store.prune(until, "operator", now).await.unwrap();
    let took = began.elapsed();
    // What the index had of them goes after them: the end is when nothing more follows.
    let settling = Instant::now();
    let share = async || {
        let after = ledger_bytes(folder).await;
        let rows = store.audit_count().await.unwrap();
        // What came in meanwhile takes space, too: more of it where pruning takes longer.
        let each = before as f64 / rows_before as f64;
        let added = (rows + pruned.rows) as f64 - rows_before as f64;
        (before as f64 + added * each - after as f64) / (pruned.rows as f64 * each)
    };
    let mut freed = share().await;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let more = share().await - freed;
        freed += more;
        if settling.elapsed() > Duration::from_secs(30) * SLACK || freed >= 0.95 && more < 0.001 {
            break;
        }
    }
    eprintln!("the index followed within {:.1} s", settling.elapsed().as_secs_f64());
    eprintln!(
        "{} rows pruned in {:.1} s, longest step {:.1} ms, {:.1} % of their space freed",
        pruned.rows,
        took.as_secs_f64(),
        pruned.longest.as_secs_f64() * 1e3,
        freed * 100.0
    );
    assert!(pruned.rows > 0 && freed >= 0.95, "{freed}");
    let bound = Duration::from_millis(50).mul_f64(f64::from(SLACK) * MEASURED);
    assert!(pruned.longest <= bound, "{:?}", pruned.longest);

    // The file follows as soon as no reader needs the old log.
    let began = Instant::now();
    loop {
        let bytes = pages_of(folder, "audit.db").await;
        let length = store.size_bytes().audit.database_bytes;
        if length <= bytes + bytes / 20 {
            break;
        }
        assert!(began.elapsed().as_secs() < 10, "a file of {length} bytes for {bytes} of rows");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What the ledger takes with its index, wherever their pages are.
async fn ledger_bytes(folder: &Path) -> u64 {
    pages_of(folder, "audit.db").await + pages_of(folder, "audit-index.db").await
}

async fn pages_of(folder: &Path, file: &str) -> u64 {
    let options = SqliteConnectOptions::new().filename(folder.join(file)).read_only(true);
    let mut connection = options.connect().await.unwrap();
    let bytes = sqlx::query_scalar::<_, i64>(
        "select page_count * page_size from pragma_page_count, pragma_page_size",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    u64::try_from(bytes).unwrap()
}

fn later_word(rank: usize) -> String {
    Calls::new(1).names.words[rank].clone()
}
