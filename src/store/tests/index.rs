//! The ledger's index against looking at every row.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::*;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// A ledger with its index, and all that was put into it.
struct Model {
    folder: tempfile::TempDir,
    store: Store,
    rows: Vec<CallRow>,
    random: Rng,
    last: i64,
    now: i64,
}

impl Model {
    async fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await;
        let random = Rng::with_seed(seed);
        let now = 1_790_000_000_000 + i64::try_from(seed).unwrap() * 7;
        Self { folder, store, rows: Vec::new(), random, last: 0, now }
    }

    fn row(&mut self) -> CallRow {
        let random = &mut self.random;
        self.now += random.i64(0..20_000);
        let late = if random.u8(..20) == 0 { random.i64(0..3 * HOUR) } else { random.i64(0..50) };
        let server = random.u8(0..4);
        let known = random.u8(..10) > 0;
        let outcome = Outcome::ALL[random.usize(..8).min(random.usize(..8))];
        let magnitude = random.u32(1..34);
        let word = |random: &mut Rng| {
            ["timeout", "Connection", "refused", "häßlich", "über", "number-17", "x_y", "42"]
                [random.usize(..8)]
        };
        let words = |random: &mut Rng| {
            let count = random.usize(..5);
            (0..count).map(|_| word(random)).collect::<Vec<_>>().join(" ")
        };
        // Some writers escape all that is not ASCII, and texts have lines.
        let written = |random: &mut Rng| {
            let text = words(random);
            let text = match random.u8(..3) {
                0 => text,
                1 => text.replace(' ', "\\n"),
                _ => text.replace('ü', "\\u00fc").replace('ß', "\\u00df"),
            };
            format!(r#"{{"q":"{text}"}}"#)
        };
        CallRow {
            started_at: at(self.now - late),
            caller: format!("caller-{}", random.u8(..3)).into(),
            session: (random.u8(..3) == 0).then(|| format!("session-{}", random.u8(..9)).into()),
            view: (random.u8(..4) == 0).then(|| ViewName::parse("support").unwrap()),
            tool: format!("s{server}__tool_{}", random.u8(..3)).into(),
            upstream_tool: known.then(|| ToolName::parse(&format!("tool_{server}")).unwrap()),
            server: known.then(|| name(&format!("s{server}"))),
            outcome,
            error_code: match outcome {
                Outcome::Timeout => Some(ErrorCode::Timeout),
                Outcome::Refused if random.u8(..2) == 0 => Some(ErrorCode::CircuitOpen),
                Outcome::Refused => Some(ErrorCode::ToolNotFound),
                _ => None,
            },
            error: (random.u8(..3) == 0).then(|| words(random)),
            total: Duration::from_micros(random.u64(..1 << magnitude)),
            request_bytes: random.u64(..100_000),
            response_bytes: random.u64(..100_000),
            arguments: (random.u8(..2) == 0).then(|| written(random)),
            result: (random.u8(..2) == 0).then(|| words(random)),
            trace_id: (random.u8(..2) == 0).then(|| paired(random.u64(..12))),
            ..call(1)
        }
    }

    async fn append(&mut self) {
        let count = self.random.usize(1..120);
        let mut new: Vec<CallRow> = (0..count).map(|_| self.row()).collect();
        self.store.append_calls(&new).await.unwrap();
        // Others take numbers from the same row: small holes and whole chunks and parts.
        let hole = match self.random.u8(..6) {
            0 => 0,
            1 => self.random.i64(1..9000),
            2 => self.random.i64(1..300_000),
            _ => self.random.i64(1..5),
        };
        let first = self.last;
        let script = format!(
            "update calls set seq = -(seq + {hole}) where seq > {first};
             update calls set seq = -seq where seq < 0;
             update payloads set seq = -(seq + {hole}) where seq > {first};
             update payloads set seq = -seq where seq < 0;
             update ledger set head_seq = head_seq + {hole};"
        );
        alter(&self.folder.path().join("audit.db"), script.leak()).await;
        for row in &mut new {
            self.last += 1;
            row.seq = self.last + hole;
        }
        self.last += hole;
        self.rows.extend(new);
    }

    async fn reopen(&mut self) {
        self.store.close().await.unwrap();
        // The lock on the folder goes with the last handle.
        let elsewhere = tempfile::tempdir().unwrap();
        self.store = open(elsewhere.path()).await;
        self.store = open(self.folder.path()).await;
    }

    fn filter(&mut self) -> AuditFilter {
        let random = &mut self.random;
        let mut maybe = |values: &[&str], odds: u8| {
            (random.u8(..odds) == 0).then(|| values[random.usize(..values.len())].to_owned())
        };
        let server = maybe(&["s0", "s1", "s3", "gone"], 4);
        let tool = maybe(&["tool_1", "s1__tool_1", "s2__tool_0", "tool_9"], 4);
        let caller = maybe(&["caller-0", "caller-1"], 4);
        let session = maybe(&["session-1", "session-5"], 8);
        let view = maybe(&["support"], 8);
        let error_code = maybe(&["MCPTimeoutError"], 8);
        let text = maybe(
            &[
                "timeout",
                "CONNECTION refused",
                "\"connection refused\"",
                "conn* 42",
                "ÜBER",
                "\"number 17\"",
                "x_y",
                "nowhere",
                "re* ti*",
                "häßlich",
            ],
            3,
        );
        let outcome = (random.u8(..4) == 0).then(|| Outcome::ALL[random.usize(..8)]);
        let length = self.now - 1_790_000_000_000;
        let time = |random: &mut Rng| {
            (random.u8(..4) == 0).then(|| at(1_790_000_000_000 + random.i64(-HOUR..length + HOUR)))
        };
        let (since, until) = (time(random), time(random));
        let trace = (random.u8(..5) == 0).then(|| paired(random.u64(..13)));
        AuditFilter {
            server,
            tool,
            outcome,
            caller,
            session,
            error_code,
            view,
            trace,
            since,
            until,
            text,
        }
    }

    async fn compare(&mut self) {
        for _ in 0..12 {
            let filter = self.filter();
            let limit = self.random.u16(1..90);
            let found: Vec<i64> =
                pages(&self.store, &filter, limit).await.iter().map(|row| row.seq).collect();
            let mut expected: Vec<i64> =
                self.rows.iter().filter(|row| fits(&filter, row)).map(|row| row.seq).collect();
            expected.reverse();
            assert_eq!(found, expected, "{filter:?}, {:?}", self.store.index_state().await);
        }
        for _ in 0..4 {
            let filter = AuditFilter {
                session: None,
                error_code: None,
                view: None,
                trace: None,
                text: None,
                ..self.filter()
            };
            self.compare_stats(filter).await;
        }
    }

    async fn compare_stats(&mut self, filter: AuditFilter) {
        let by = [StatsBy::Server, StatsBy::Tool, StatsBy::Caller][self.random.usize(..3)];
        let per = [StatsPer::Hour, StatsPer::Day, StatsPer::Total][self.random.usize(..3)];
        let since = filter.since.unwrap_or(at(0)).as_millis().div_euclid(MINUTE) * MINUTE;
        let until = filter.until.unwrap_or(at(self.now + 1));
        let until = (until.as_millis() + MINUTE - 1).div_euclid(MINUTE) * MINUTE;
        let within = [Duration::from_millis(3), Duration::from_secs(2)];
        let query = StatsQuery {
            by,
            per,
            filter: filter.clone(),
            since: at(since),
            until: at(until),
            within: within.to_vec(),
        };
        let found = self.store.audit_stats(&query).await.unwrap();
        assert_eq!((found.since, found.until), (at(since), at(until.max(since))));
        let mut expected: BTreeMap<(i64, Option<String>), Vec<&CallRow>> = BTreeMap::new();
        let range = AuditFilter { since: Some(at(since)), until: Some(at(until)), ..filter };
        for row in self.rows.iter().filter(|row| fits(&range, row)) {
            let known = row.upstream_tool.is_some() || row.outcome == Outcome::Unavailable;
            if range.tool.is_some() && !known {
                continue;
            }
            let name = match by {
                StatsBy::Server => row.server.as_ref().map(|name| name.as_str().to_owned()),
                StatsBy::Tool => known.then(|| row.tool.as_ref().to_owned()),
                StatsBy::Caller => Some(row.caller.as_ref().to_owned()),
            };
            let at = row.started_at.as_millis();
            let start = match per {
                StatsPer::Hour => at - at.rem_euclid(HOUR),
                StatsPer::Day => at - at.rem_euclid(24 * HOUR),
                StatsPer::Total => since,
            };
            expected.entry((start, name)).or_default().push(row);
        }
        assert_eq!(found.rows.len(), expected.len(), "{query:?}");
        assert!(found.rows.is_sorted_by_key(|row| (row.start, std::cmp::Reverse(row.calls))));
        for sum in found.rows {
            let rows = expected.get(&(sum.start.as_millis(), sum.name.clone())).unwrap();
            assert_eq!(sum.calls, rows.len() as u64, "{query:?}");
            let errors = rows.iter().filter(|row| row.outcome != Outcome::Ok).count();
            assert_eq!(sum.errors, errors as u64);
            let of = |outcome| rows.iter().filter(|row| row.outcome == outcome).count() as u64;
            assert_eq!(sum.outcomes, Outcome::ALL.map(of), "{query:?}");
            let is_fault = |row: &&&CallRow| {
                row.outcome == Outcome::Refused && row.error_code == Some(ErrorCode::CircuitOpen)
            };
            assert_eq!(sum.faults, rows.iter().filter(is_fault).count() as u64, "{query:?}");
            for (limit, found) in within.iter().zip(&sum.within) {
                let below = |part: f64| {
                    let answers = rows.iter().filter(|row| {
                        matches!(row.outcome, Outcome::Ok | Outcome::ToolError)
                            && row.total <= limit.mul_f64(part)
                    });
                    answers.count() as u64
                };
                assert!((below(0.95)..=below(1.05)).contains(found), "{found} within {limit:?}");
            }
            assert_eq!(sum.request_bytes, rows.iter().map(|row| row.request_bytes).sum::<u64>());
            assert_eq!(sum.response_bytes, rows.iter().map(|row| row.response_bytes).sum::<u64>());
            let mut times: Vec<u128> = rows.iter().map(|row| row.total.as_micros()).collect();
            times.sort_unstable();
            for (part, found) in [(0.5, sum.p50), (0.95, sum.p95)] {
                let rank = (1..times.len()).find(|rank| *rank as f64 >= times.len() as f64 * part);
                let rank = rank.unwrap_or(times.len());
                let (exact, found) = (times[rank - 1] as f64, found.unwrap().as_micros() as f64);
                assert!((exact - found).abs() <= exact * 0.05, "{found} for {exact}");
            }
        }
    }
}

/// Tokens as anyone would take them; nothing of the index is used here.
fn tokens(text: &str) -> Vec<String> {
    let said: Option<BTreeMap<String, String>> = serde_json::from_str(text).ok();
    let said = said.and_then(|said| Some(format!("q {}", said.get("q")?)));
    let text = said.as_deref().unwrap_or(text);
    let words = text.split(|c: char| !c.is_alphanumeric());
    words.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

fn has_text(query: &str, row: &CallRow) -> bool {
    let texts: Vec<Vec<String>> = [&row.error, &row.arguments, &row.result]
        .into_iter()
        .flatten()
        .map(|t| tokens(t))
        .collect();
    let phrases: Vec<&str> = match query.strip_prefix('"') {
        Some(phrase) => vec![phrase.trim_end_matches('"')],
        None => query.split(' ').collect(),
    };
    phrases.iter().all(|phrase| {
        let wanted = tokens(phrase);
        texts.iter().any(|text| {
            text.windows(wanted.len()).any(|window| match phrase.ends_with('*') {
                true => window[0].starts_with(&wanted[0]),
                false => window == wanted,
            })
        })
    })
}

/// Two each have the same first half.
fn paired(number: u64) -> TraceId {
    let id = u128::from(number / 2) << 96 | u128::from(number + 1);
    TraceId::from_bytes(id.to_be_bytes()).unwrap()
}

fn fits(filter: &AuditFilter, row: &CallRow) -> bool {
    let is = |wanted: &Option<String>, has: Option<&str>| {
        wanted.as_deref().is_none_or(|wanted| Some(wanted) == has)
    };
    is(&filter.server, row.server.as_ref().map(ServerName::as_str))
        && (is(&filter.tool, Some(&row.tool))
            || is(&filter.tool, row.upstream_tool.as_ref().map(ToolName::as_str)))
        && filter.outcome.is_none_or(|outcome| outcome == row.outcome)
        && is(&filter.caller, Some(&row.caller))
        && is(&filter.session, row.session.as_deref())
        && is(&filter.error_code, row.error_code.map(ErrorCode::as_str))
        && is(&filter.view, row.view.as_ref().map(ViewName::as_str))
        && filter.trace.is_none_or(|trace| row.trace_id == Some(trace))
        && filter.since.is_none_or(|since| row.started_at >= since)
        && filter.until.is_none_or(|until| row.started_at < until)
        && filter.text.as_deref().is_none_or(|text| has_text(text, row))
}

#[tokio::test]
async fn every_answer_is_that_of_looking_at_every_row() {
    for seed in 0..12 {
        let mut model = Model::new(seed).await;
        for _ in 0..8 {
            model.append().await;
            match model.random.u8(..4) {
                0 => {}
                1 => model.reopen().await,
                _ => model.store.index_ledger().await.unwrap(),
            }
            model.compare().await;
        }
        model.store.index_ledger().await.unwrap();
        let state = model.store.index_state().await.unwrap();
        assert_eq!(state, IndexState { seq: model.last, behind: 0 });
        model.compare().await;
    }
}

/// Also where damage is found only after some statements.
async fn catch_up(store: &Store) {
    for _ in 0..5 {
        if store.index_ledger().await.is_ok() {
            return;
        }
    }
    store.index_ledger().await.unwrap();
}

#[tokio::test]
async fn an_index_that_cannot_be_used_is_made_anew() {
    let mut model = Model::new(100).await;
    for _ in 0..6 {
        model.append().await;
    }
    model.store.index_ledger().await.unwrap();
    let path = model.folder.path().join("audit-index.db");
    let mut other = Model::new(101).await;
    other.append().await;
    other.store.index_ledger().await.unwrap();
    other.store.close().await.unwrap();
    let foreign = fs::read(other.folder.path().join("audit-index.db")).unwrap();
    for what in ["garbage", "damage", "foreign", "version", "empty", "folder"] {
        model.store.close().await.unwrap();
        let mut bytes = fs::read(&path).unwrap();
        match what {
            "garbage" => bytes = vec![b'x'; 20_000],
            "damage" => {
                let end = bytes.len();
                bytes[8192..end].fill(0xff);
            }
            "foreign" => bytes = foreign.clone(),
            "version" => bytes[60..64].copy_from_slice(&99_u32.to_be_bytes()),
            _ => bytes.clear(),
        }
        fs::write(&path, &bytes).unwrap();
        if what == "folder" {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
        }
        model.reopen().await;
        model.compare().await;
        if what == "folder" {
            model.store.index_ledger().await.unwrap_err();
            model.append().await;
            model.compare().await;
            fs::remove_dir(&path).unwrap();
        }
        catch_up(&model.store).await;
        let state = model.store.index_state().await.unwrap();
        assert_eq!(state, IndexState { seq: model.last, behind: 0 }, "{what}");
        model.compare().await;
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{what}");
    }
}

#[tokio::test]
async fn damage_that_appears_in_use_costs_no_answer() {
    let mut model = Model::new(102).await;
    model.append().await;
    model.store.index_ledger().await.unwrap();
    let path = model.folder.path().join("audit-index.db");
    for table in
        ["postings set places = x'00'", "times set times = x'80'", "rollups set cells = x'ff'"]
    {
        alter(&path, format!("update {table}").leak()).await;
        model.compare().await;
        model.append().await;
        let _ = model.store.index_ledger().await;
        model.compare().await;
        alter(&path, "drop table if exists words").await;
        model.append().await;
        catch_up(&model.store).await;
        model.compare().await;
    }
}

#[tokio::test]
async fn what_a_kill_leaves_goes_on_where_it_was() {
    let mut model = Model::new(103).await;
    for n in 0..6 {
        model.append().await;
        if n != 3 {
            model.store.index_ledger().await.unwrap();
        }
        // The files as they are at this moment, logs included.
        let image = tempfile::tempdir().unwrap();
        for file in fs::read_dir(model.folder.path()).unwrap() {
            let file = file.unwrap();
            let name = file.file_name();
            if (name.to_str().unwrap().starts_with("audit") || name == "ledger.key")
                && !name.to_str().unwrap().ends_with("shm")
            {
                fs::copy(file.path(), image.path().join(name)).unwrap();
            }
        }
        let store = open(image.path()).await;
        let mut revived = Model {
            folder: image,
            store,
            rows: model.rows.clone(),
            random: model.random.fork(),
            last: model.last,
            now: model.now,
        };
        revived.compare().await;
        revived.append().await;
        revived.store.index_ledger().await.unwrap();
        revived.compare().await;
    }
}

async fn scalar(path: &Path, sql: &'static str) -> i64 {
    use sqlx::ConnectOptions as _;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = options.connect().await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
}

#[tokio::test]
async fn what_leaves_the_ledger_leaves_the_index() {
    let mut model = Model::new(104).await;
    for _ in 0..30 {
        model.append().await;
    }
    model.store.index_ledger().await.unwrap();
    let path = model.folder.path().join("audit-index.db");
    let (mut parts, mut words) = (i64::MAX, i64::MAX);
    for kept in [2000, 600, 40, 1] {
        let from = model.rows.len().saturating_sub(kept);
        model.rows.drain(..from);
        let first = model.rows[0].seq;
        let script = format!(
            "delete from calls where seq < {first}; delete from payloads where seq < {first};"
        );
        alter(&model.folder.path().join("audit.db"), script.leak()).await;
        // First without the index knowing.
        let filter = AuditFilter { caller: Some("caller-1".to_owned()), ..AuditFilter::default() };
        let expected = model.rows.iter().filter(|row| fits(&filter, row)).count();
        assert_eq!(pages(&model.store, &filter, 7).await.len(), expected);
        model.store.index_forget_below(first).await.unwrap();
        assert_eq!(pages(&model.store, &filter, 7).await.len(), expected);
        model.store.index_ledger().await.unwrap();
        model.compare().await;
        for _ in 0..8 {
            model.compare_stats(AuditFilter::default()).await;
        }
        let left = (
            scalar(&path, "select count(*) from parts").await,
            scalar(&path, "select count(*) from words").await,
        );
        assert!(left.0 <= parts && left.1 <= words);
        (parts, words) = left;
        let below = first >> 13;
        assert!(scalar(&path, "select min(chunk) from postings").await >= below);
        assert!(scalar(&path, "select min(part) from parts").await >= first >> 18);
        assert_eq!(scalar(&path, "select count(*) from rollups where start + width <= (select min(min_ms) from chunks)").await, 0);
    }
    assert!(parts <= 2 && words < 60, "{parts} {words}");
    for _ in 0..3 {
        model.append().await;
        model.store.index_ledger().await.unwrap();
    }
    let filter = AuditFilter { text: Some("timeout".to_owned()), ..AuditFilter::default() };
    let expected = model.rows.iter().filter(|row| fits(&filter, row)).count();
    assert_eq!(pages(&model.store, &filter, 7).await.len(), expected);
}

#[tokio::test]
async fn an_erased_payload_is_in_no_file_of_the_index() {
    let mut model = Model::new(105).await;
    for _ in 0..4 {
        model.append().await;
    }
    let secret = CallRow {
        arguments: Some(r#"{"note":"zqxwvhidden"}"#.to_owned()),
        error: Some("zqfailed".to_owned()),
        ..model.row()
    };
    let id = secret.id;
    model.store.append_calls(&[secret]).await.unwrap();
    model.store.index_ledger().await.unwrap();
    model.last = model.store.index_state().await.unwrap().seq;
    model.append().await;
    model.store.index_ledger().await.unwrap();
    let in_files = |folder: &Path| {
        ["audit-index.db", "audit-index.db-wal"].into_iter().any(|file| {
            let bytes = fs::read(folder.join(file)).unwrap_or_default();
            bytes.windows(9).any(|window| window == b"wvhidden\"" || window.ends_with(b"xwvhidden"))
        })
    };
    let hits = async |text: &str, store: &Store| {
        let filter = AuditFilter { text: Some(text.to_owned()), ..AuditFilter::default() };
        pages(store, &filter, 10).await.len()
    };
    assert_eq!(hits("zqxwvhidden", &model.store).await, 1);
    model.store.close().await.unwrap();
    assert!(in_files(model.folder.path()), "or the test below tells nothing");
    model.reopen().await;
    model.store.index_ledger().await.unwrap();
    let erased = model.store.erase(&EraseOf::Call(id), "ops", at(model.now)).await.unwrap();
    assert_eq!((erased.payloads, erased.complete), (1, true));
    assert_eq!(hits("zqxwvhidden", &model.store).await, 0);
    assert_eq!(hits("zqfailed", &model.store).await, 1, "the call itself is there");
    let filter = AuditFilter { text: Some("timeout".to_owned()), ..AuditFilter::default() };
    let expected = model.rows.iter().filter(|row| fits(&filter, row)).count();
    assert_eq!(pages(&model.store, &filter, 7).await.len(), expected);
    model.store.close().await.unwrap();
    assert!(!in_files(model.folder.path()));
    // One that a restart interrupted is ended by the next follower.
    alter(&model.folder.path().join("audit-index.db"), "update parts set stale = 1").await;
    model.reopen().await;
    model.store.index_ledger().await.unwrap();
    let path = model.folder.path().join("audit-index.db");
    assert_eq!(scalar(&path, "select sum(stale) from parts").await, 0);
    assert_eq!(hits("zqfailed", &model.store).await, 1);
}

#[tokio::test]
async fn a_text_that_cannot_be_looked_for_is_the_request_s_fault() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for text in ["", "\"open", "--", "a*", "*"] {
        let filter = AuditFilter { text: Some(text.to_owned()), ..AuditFilter::default() };
        let error = store.audit_page(&filter, None, 10).await.unwrap_err();
        assert!(matches!(error, StoreError::BadText { .. }), "{error}");
        assert_eq!(error.code(), ErrorCode::InvalidRequest);
    }
}

#[tokio::test]
async fn how_far_the_index_is_behind_is_told_by_the_oldest_call_that_is_not_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    assert_eq!(store.index_behind_since().await.unwrap(), None, "nobody follows yet");
    store.index_ledger().await.unwrap();
    assert_eq!(store.index_behind_since().await.unwrap(), Some(None));
    let ending = |started, seconds| CallRow {
        started_at: at(started),
        total: Duration::from_secs(seconds),
        ..call(seconds)
    };
    store.append_calls(&[ending(5_000, 2), ending(4_000, 1)]).await.unwrap();
    assert_eq!(store.index_behind_since().await.unwrap(), Some(Some(at(7_000))));
    store.index_ledger().await.unwrap();
    assert_eq!(store.index_behind_since().await.unwrap(), Some(None));
}
