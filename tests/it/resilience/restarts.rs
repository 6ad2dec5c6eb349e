//! What a breaker is after a restart, whatever the clocks say.

use super::*;

/// A router over a database where the breaker of `up` is open.
pub(super) struct Restarted {
    rig: Rig,
    period: Duration,
    opened: Instant,
}

impl Restarted {
    async fn open(period: Duration) -> (Self, Router) {
        Self::open_after(":", period).await
    }

    /// The same with a router that a shell becomes after this script.
    pub(super) async fn open_after(script: &str, period: Duration) -> (Self, Router) {
        let rig = Rig::legacy(&["tool"]).await;
        let settings = format!(
            "{ONCE}, circuit_breaker_threshold: 2, circuit_breaker_timeout: {}ms",
            period.as_millis()
        );
        let router = Router::start_after(script, &rig.yaml("up", &settings)).await;
        eventually(SOON, "the tool is there", || async {
            let answer = router.http.call("up__tool", &key("first")).await;
            (answer.json()["success"] == true).then_some(())
        })
        .await;
        let opened = trip(&router.http, &socket(&router), &rig, "tool").await;
        rig.set("tool", Fault::hold(Fault::None));
        (Self { rig, period, opened }, router)
    }

    /// Calls without pause until one is let through; when that was at the latest, by the wall's clock,
    /// and how often it was refused before.
    pub(super) async fn probed(&self, router: &Router) -> (i64, usize) {
        let before = self.rig.counts("tool").requests;
        let http = router.http.clone();
        let probe = tokio::spawn(async move {
            for refusals in 0.. {
                let answer = http.call("up__tool", &key("persistent")).await;
                if answer.status != 503 {
                    return (answer, refusals);
                }
                refused(&answer, &["breaker_open"]);
            }
            unreachable!("it is refused for ever");
        });
        let limit = self.period + SOON;
        eventually(limit, "a probe is let through", || async {
            (self.rig.counts("tool").requests > before).then_some(())
        })
        .await;
        let at = wall();
        // It is the only one for as long as it is under way.
        for _ in 0..20 {
            let answer = router.http.call("up__tool", &key("x")).await;
            refused(&answer, &["breaker_probing"]);
        }
        assert_eq!(self.rig.counts("tool").requests, before + 1);
        self.rig.release();
        let (answer, refusals) = probe.await.unwrap();
        assert_eq!(answer.json()["success"], true);
        self.rig.set("tool", Fault::None);
        assert_eq!(breaker_state(&socket(router), "up").await, "closed");
        (at, refusals)
    }
}

/// The wall's clock in milliseconds, as the API shows times.
fn wall() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// When an open breaker lets a probe through, as the API shows it.
async fn open_until(http: &Http) -> i64 {
    let shown = http.get("/mcp/circuit-breakers/up").await.expect(200).json();
    let until = shown["open_until"].as_str().unwrap_or_else(|| panic!("{shown}"));
    until.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

/// `kill -9` of a router does not send the next one to a server that is known to be down: open with
/// 12 s left, 2 s down, 10 s left, to 0.2 s.
///
/// What is compared is when the router says that the time is over, before and after, and in each
/// refusal; a busy machine makes answers late, and none of these wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_open_12s() {
    const LEFT: Duration = Duration::from_secs(12);
    const DOWN: Duration = Duration::from_secs(2);
    const CLOSE: i64 = 200;
    let period = Duration::from_secs(figure(14, 30) as u64);
    let (open, router) = Restarted::open(period).await;
    let calls = open.rig.counts("tool").requests;
    let until = open_until(&router.http).await;
    tokio::time::sleep_until((open.opened + period - LEFT).into()).await;
    let address = router.address;
    let killed = Instant::now();
    let folder = router.kill().await;
    tokio::time::sleep_until((killed + DOWN).into()).await;
    let router = Router::start_again(folder, address).await;
    assert_eq!(breaker_state(&socket(&router), "up").await, "open");
    let after = open_until(&router.http).await;
    println!("open until {until} before, until {after} after the restart; it is {}", wall());
    assert!((after - until).abs() <= CLOSE, "{until} became {after}");
    let (http, mut told) = (router.http.clone(), 0);
    let probe = tokio::spawn(async move {
        loop {
            let began = wall();
            let answer = http.call("up__tool", &key("x")).await;
            if answer.json()["success"] == true {
                return (answer, told);
            }
            let json = refused(&answer, &["breaker_open"]);
            let left = i64::try_from(json["retry_after_ms"].as_u64().unwrap()).unwrap();
            // It was said at some time between the two.
            let (earliest, latest) = (began + left, wall() + left);
            assert!(earliest <= until + CLOSE && latest >= until - CLOSE, "{until}: {json}");
            assert!(began <= until + CLOSE, "{} ms too late: {json}", began - until);
            told += 1;
            tokio::time::sleep(millis(20)).await;
        }
    });
    eventually(period + SOON, "a probe is let through", || async {
        (open.rig.counts("tool").requests > calls).then_some(())
    })
    .await;
    assert!(wall() >= until - CLOSE, "{} ms too early", until - wall());
    // It is the only one for as long as it is under way.
    for _ in 0..20 {
        let answer = router.http.call("up__tool", &key("y")).await;
        refused(&answer, &["breaker_probing"]);
    }
    assert_eq!(open.rig.counts("tool").requests, calls + 1);
    open.rig.release();
    let (_, told) = probe.await.unwrap();
    assert!(told > 50, "{told} refusals");
    assert_eq!(breaker_state(&socket(&router), "up").await, "closed");
    assert_eq!(router.stop().await.0, 0);
}

/// What is stored is of an hour before or after: the breaker never stays open for longer than it is
/// configured to, and never for less than nothing.
///
/// As above it is compared when the router says that the time is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_with_what_another_hour_stored() {
    const HOUR: i64 = 3_600_000;
    const CLOSE: i64 = 200;
    let period = Duration::from_secs(8);
    // What was opened in an hour has the whole period left; what was opened an hour ago, nothing.
    for shift in [HOUR, -HOUR] {
        let (open, router) = Restarted::open(period).await;
        eventually(SOON, "the state is stored", || async {
            (stored(&router).await.as_deref() == Some("open")).then_some(())
        })
        .await;
        let (address, data) = (router.address, router.data_dir());
        let folder = router.kill().await;
        let mut database = open_database(&data).await;
        let shifted = sqlx::query(
            "update breakers set opened_at_ms = opened_at_ms + ?,
             last_failure_at_ms = last_failure_at_ms + ?",
        )
        .bind(shift)
        .bind(shift)
        .execute(&mut database);
        assert_eq!(shifted.await.unwrap().rows_affected(), 1);
        database.close().await.unwrap();
        let before = wall();
        let router = Router::start_again(folder, address).await;
        let started = wall();
        if shift > 0 {
            let until = open_until(&router.http).await;
            let whole = i64::try_from(period.as_millis()).unwrap();
            let (least, most) = (before + whole - CLOSE, started + whole + CLOSE);
            println!("started from {before} to {started}: open until {until}");
            assert!((least..=most).contains(&until), "{until} is not in {least}..={most}");
            let (at, refusals) = open.probed(&router).await;
            assert!(at >= until - CLOSE, "{} ms too early", until - at);
            assert!(refusals > 0, "nobody was refused");
        } else {
            let (_, refusals) = open.probed(&router).await;
            assert_eq!(refusals, 0, "the first call is the probe");
        }
        assert_eq!(router.stop().await.0, 0);
    }
}

pub(super) async fn open_database(data: &std::path::Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(data.join("state.db"));
    options.busy_timeout(SOON).connect().await.unwrap()
}

pub(super) async fn stored(router: &Router) -> Option<String> {
    let mut database = open_database(&router.data_dir()).await;
    let row = sqlx::query_scalar("select state from breakers where server = 'up'");
    row.fetch_optional(&mut database).await.unwrap()
}
