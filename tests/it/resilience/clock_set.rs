//! The clock of the wall is set, before a restart and while the router runs: what is open stays open for
//! as long as it should.

use std::path::{Path, PathBuf};

use super::restarts::{Restarted, open_database, stored};
use super::*;

/// Stands between the router and the clock of the wall, and adds what a file says.
const SHIM: &str = r#"
    #define _GNU_SOURCE
    #include <fcntl.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <sys/time.h>
    #include <time.h>
    #include <unistd.h>
    static long shift(void) {
        static volatile long *seconds;
        if (!seconds) {
            const char *path = getenv("IT_CLOCK");
            int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
            void *map = file < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
            if (file >= 0) close(file);
            if (map == MAP_FAILED) return 0;
            seconds = map;
        }
        return *seconds;
    }
    int clock_gettime(clockid_t clock, struct timespec *now) {
        int done = syscall(SYS_clock_gettime, clock, now);
        if (done == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
        return done;
    }
    int gettimeofday(struct timeval *restrict now, void *restrict zone) {
        struct timespec time;
        (void)zone;
        if (clock_gettime(CLOCK_REALTIME, &time) != 0) return -1;
        now->tv_sec = time.tv_sec;
        now->tv_usec = time.tv_nsec / 1000;
        return 0;
    }
    time_t time(time_t *at) {
        struct timespec now;
        if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
        if (at) *at = now.tv_sec;
        return now.tv_sec;
    }"#;

/// A clock of the wall that can be set, for routers that are started by its script.
struct Clock {
    file: PathBuf,
    script: String,
    _folder: tempfile::TempDir,
}

impl Clock {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (source, shim, file) = (at("shim.c"), at("shim.so"), at("shift"));
        std::fs::write(&source, SHIM).unwrap();
        // The database engine needs a C compiler, too.
        let mut compiler = std::process::Command::new("cc");
        let compiler = compiler.args(["-shared", "-fPIC", "-o"]).arg(&shim).arg(&source);
        assert!(compiler.status().unwrap().success());
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let script = format!("export LD_PRELOAD='{}' IT_CLOCK='{}'", path(&shim), path(&file));
        let clock = Self { file, script, _folder: folder };
        clock.set(0);
        clock
    }

    /// The wall is this far ahead of what it is.
    fn set(&self, seconds: i64) {
        use std::os::unix::fs::FileExt as _;
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&self.file).unwrap();
        file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }
}

/// What a refusal says is left, in milliseconds, and between which moments it said so.
async fn left(router: &Router) -> (i64, Instant, Instant) {
    let before = Instant::now();
    let answer = router.http.call("up__tool", &key("x")).await;
    let after = Instant::now();
    let left = refused(&answer, &["breaker_open"])["retry_after_ms"].as_i64().unwrap();
    (left, before, after)
}

fn between(earlier: Instant, later: Instant) -> i64 {
    i64::try_from(later.saturating_duration_since(earlier).as_millis()).unwrap()
}

/// When the router itself says that it is.
async fn its_time(router: &Router) -> i64 {
    let shown = router.http.get("/mcp/circuit-breakers/up").await.expect(200).json();
    let until = shown["open_until"].as_str().unwrap_or_else(|| panic!("{shown}"));
    until.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

/// Set by an hour over a restart: what is left is never more than the whole period, and never less than
/// nothing. Set by a day while it runs: nothing that is left changes by more than 50 ms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_clock_back() {
    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    const CLOSE: i64 = 50;
    let period = Duration::from_secs(figure(15, 30) as u64);
    let clock = Clock::new();
    for shift in [-HOUR, HOUR] {
        clock.set(0);
        let (open, router) = Restarted::open_after(&clock.script, period).await;
        // While it runs.
        let (mut before, shown) = (left(&router).await, its_time(&router).await);
        for day in [DAY, -DAY, 0] {
            clock.set(day);
            let now = left(&router).await;
            let (shortest, longest) = (between(before.2, now.1), between(before.1, now.2));
            let range = before.0 - longest - CLOSE..=before.0 - shortest + CLOSE;
            assert!(
                range.contains(&now.0),
                "{} became {} at {day}, not {range:?}",
                before.0,
                now.0
            );
            let moved = its_time(&router).await - shown - day * 1000;
            assert!(moved.abs() < 20_000, "the clock was not set: {moved} ms");
            before = now;
        }
        eventually(SOON, "the state is stored", || async {
            (stored(&router).await.as_deref() == Some("open")).then_some(())
        })
        .await;
        let address = router.address;
        let folder = router.kill().await;
        clock.set(shift);
        let router = Router::start_again_after(&clock.script, folder, address).await;
        if shift < 0 {
            // What was opened in an hour has all of its period left, and no more.
            let (rest, ..) = left(&router).await;
            let whole = i64::try_from(period.as_millis()).unwrap();
            assert!(rest <= whole, "{rest} ms are left of {whole}");
            let (_, refusals) = open.probed(&router).await;
            assert!(refusals > 0, "nobody was refused");
        } else {
            let (_, refusals) = open.probed(&router).await;
            assert_eq!(refusals, 0, "the first call is the probe");
        }
        assert_eq!(router.stop().await.0, 0);
    }
}

/// When the breakers of a router that are not closed are so again, of servers and of tools.
async fn ends(router: &Router) -> Vec<(String, i64)> {
    let all = router.http.get("/mcp/circuit-breakers").await.expect(200).json();
    let all = all["circuit_breakers"].as_array().unwrap().iter();
    all.filter_map(|one| {
        let until: jiff::Timestamp = one["open_until"].as_str()?.parse().unwrap();
        Some((format!("{} {}", one["server"], one["tool"]), until.as_millisecond()))
    })
    .collect()
}

/// What is open and was stored as opened before now by the wall's clock, and so many seconds later.
async fn stored_before(router: &Router, seconds: i64) -> i64 {
    let mut database = open_database(&router.data_dir()).await;
    let before = jiff::Timestamp::now().as_millisecond() + seconds * 1000;
    let count = "select count(*) from breakers where state <> 'closed' and opened_at_ms < ?";
    sqlx::query_scalar(count).bind(before).fetch_one(&mut database).await.unwrap()
}

/// A clock that went back gives what is open its whole time once, and not with every start after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_after_the_clock_went_back_give_the_time_once() {
    const HOUR: i64 = 3600;
    const CLOSE: i64 = 200;
    let clock = Clock::new();
    let rig = Rig::legacy(&["tool"]).await;
    let settings = format!("{ONCE}, circuit_breaker_threshold: 1, circuit_breaker_timeout: 10m");
    let yaml = rig.yaml("up", &settings)
        + &rig.entry("tools", &format!("{settings}, breaker_scope: tool"))
        + &rig.entry("held", &settings);
    let mut router = Router::start_after(&clock.script, &yaml).await;
    for server in ["up", "tools", "held"] {
        eventually(SOON, "the tool is there", || async {
            let answer = router.http.call(&format!("{server}__tool"), &key("first")).await;
            (answer.json()["success"] == true).then_some(())
        })
        .await;
    }
    rig.set("tool", Fault::status(500));
    for server in ["up", "tools"] {
        router.http.call(&format!("{server}__tool"), &key("trip")).await;
    }
    let order = r#"{"reason": "maintenance", "duration": "10m"}"#;
    socket(&router).post("/mcp/circuit-breakers/held/open", order).await.expect(200);
    let mut first = Vec::new();
    for start in 0..4 {
        // Opened within the last minute as the clock is now, which a start has to store anew.
        let now = if start == 0 { 60 } else { 60 - HOUR };
        eventually(SOON, "it is stored", || async {
            (stored_before(&router, now).await == 3).then_some(())
        })
        .await;
        let ends = eventually(SOON, "all are shown", || async {
            let ends = ends(&router).await;
            (ends.len() == 3).then_some(ends)
        })
        .await;
        match start {
            0 => clock.set(-HOUR),
            1 => first = ends,
            _ => {
                for ((whose, end), (_, first)) in ends.iter().zip(&first) {
                    assert!((end - first).abs() <= CLOSE, "{whose}: {first} became {end}");
                }
            }
        }
        let (address, folder) = (router.address, router.kill().await);
        // Time that each start would give once more.
        tokio::time::sleep(millis(500)).await;
        router = Router::start_again_after(&clock.script, folder, address).await;
    }
    assert_eq!(router.stop().await.0, 0);
}
