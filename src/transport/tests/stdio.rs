use std::path::Path;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::support::{call, call_within, eventually, options};
use crate::clock;
use crate::model::{Dialect, Failure, ProtocolVersion, Secret};
use crate::protocol::{AnswerKind, OutgoingRequest};
use crate::transport::{ConnectOptions, Connection, HttpClient, Target, TransportError};

/// A server in shell. The parts say what it does at the start, with the probe, with the handshake
/// and with a call; `$id` is the request's id, and every line it gets goes to the file `$LOG`.
struct Script {
    start: &'static str,
    probe: &'static str,
    handshake: &'static str,
    call: &'static str,
}

const LEGACY: Script = Script {
    start: "",
    probe: r#"printf '{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}\n' "$id""#,
    handshake: r#"printf '{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{}}}}\n' "$id""#,
    call: r#"printf '{"jsonrpc":"2.0","id":%s,"result":{"n": 1.0,"big":1e400}}\n' "$id""#,
};

const MODERN: Script = Script {
    probe: r#"printf '{"jsonrpc":"2.0","id":%s,"result":{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}}}}\n' "$id""#,
    ..LEGACY
};

impl Script {
    fn text(&self) -> String {
        format!(
            r#"{}
            while IFS= read -r line; do
                printf '%s\n' "$line" >> "$LOG"
                id=${{line#*'"id":'}}; id=${{id%%,*}}
                case $line in
                *'"method":"server/discover"'*) {};;
                *'"method":"initialize"'*) {};;
                *'"method":"tools/call"'*) {};;
                esac
            done"#,
            self.start,
            or_nothing(self.probe),
            or_nothing(self.handshake),
            or_nothing(self.call)
        )
    }
}

fn or_nothing(command: &str) -> &str {
    if command.is_empty() { ":" } else { command }
}

/// A child and the file in which it keeps what it got.
struct Child {
    folder: tempfile::TempDir,
    tasks: TaskTracker,
}

impl Child {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), tasks: TaskTracker::new() }
    }

    fn target(&self, script: &Script) -> Target {
        let log = self.folder.path().join("log");
        Target::Stdio {
            command: "sh".to_owned(),
            args: vec!["-c".to_owned(), script.text()],
            env: vec![("LOG".to_owned(), Secret::new(log.to_str().unwrap()))],
            cwd: Some(self.folder.path().to_owned()),
        }
    }

    async fn open_with(
        &self,
        script: &Script,
        options: &ConnectOptions,
    ) -> Result<Connection, TransportError> {
        Connection::open(&self.target(script), &HttpClient::new(), options, &self.tasks).await
    }

    async fn open(&self, script: &Script) -> Connection {
        self.open_with(script, &options()).await.unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn number_in(&self, file: &str) -> Option<i32> {
        std::fs::read_to_string(self.folder.path().join(file)).ok()?.trim().parse().ok()
    }
}

/// Whether a process runs; one that ended and waits to be reaped by its parent does not.
fn runs(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))
    else {
        return false;
    };
    !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z')
}

fn pid(connection: &Connection) -> i32 {
    i32::try_from(connection.process_id().unwrap()).unwrap()
}

#[tokio::test]
async fn both_eras_answer_byte_for_byte() {
    for (script, version) in
        [(LEGACY, ProtocolVersion::V2025_06_18), (MODERN, ProtocolVersion::V2026_07_28)]
    {
        let child = Child::new();
        let connection = child.open(&script).await;
        assert_eq!(connection.peer().version, version);
        let answer = call(&connection).await.unwrap();
        assert_eq!(answer.value, r#"{"n": 1.0,"big":1e400}"#);
        let handshaken = child.log().contains("notifications/initialized");
        assert_eq!(handshaken, version == ProtocolVersion::V2025_06_18);
        connection.close().await;
        assert_eq!(connection.exit_status().as_deref(), Some("exited with code 0"));
        assert!(!runs(pid(&connection)));
    }
}

#[tokio::test]
async fn a_server_that_ignores_the_probe_starts_all_the_same() {
    // The probe is waited for for two seconds, and no longer: the fastest of some tries.
    let mut fastest = Duration::MAX;
    for _ in 0..8 {
        let started = clock::uptime();
        let child = Child::new();
        let connection = child.open(&Script { probe: "", ..LEGACY }).await;
        call(&connection).await.unwrap();
        fastest = fastest.min(clock::uptime().since(started));
        if fastest < Duration::from_millis(2900) {
            break;
        }
    }
    assert!(fastest < Duration::from_millis(2900), "{fastest:?}");
    let child = Child::new();
    let known = ConnectOptions { known_dialect: Some(Dialect::Legacy), ..options() };
    child.open_with(&Script { probe: "", ..LEGACY }, &known).await.unwrap();
    assert!(!child.log().contains("server/discover"));
}

#[tokio::test]
async fn a_modern_server_that_is_slow_to_start_is_found() {
    let child = Child::new();
    let quick = ConnectOptions { probe_timeout: Duration::from_millis(50), ..options() };
    let slow = Script {
        start: "sleep 0.3",
        handshake: r#"printf '{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}\n' "$id""#,
        ..MODERN
    };
    let connection = child.open_with(&slow, &quick).await.unwrap();
    assert_eq!(connection.peer().version, ProtocolVersion::V2026_07_28);
}

#[tokio::test]
async fn a_server_that_dies_of_the_probe_gets_the_handshake_only() {
    let child = Child::new();
    let connection = child.open(&Script { probe: "exit 1", ..LEGACY }).await;
    call(&connection).await.unwrap();
    assert_eq!(child.log().matches("server/discover").count(), 1);
}

#[tokio::test]
async fn a_remembered_legacy_server_may_have_become_modern() {
    let child = Child::new();
    let modern_only = Script {
        handshake: r#"printf '{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}\n' "$id""#,
        ..MODERN
    };
    let known = ConnectOptions { known_dialect: Some(Dialect::Legacy), ..options() };
    let connection = child.open_with(&modern_only, &known).await.unwrap();
    assert_eq!(connection.peer().version, ProtocolVersion::V2026_07_28);
}

#[tokio::test]
async fn a_child_gets_its_own_variables_and_no_credentials_of_ours() {
    let child = Child::new();
    let answer_environment = Script {
        call: r#"printf '{"jsonrpc":"2.0","id":%s,"result":{"cargo":"%s","log":"%s"}}\n' "$id" "$CARGO_PKG_NAME" "${LOG##*/}""#,
        ..LEGACY
    };
    let connection = child.open(&answer_environment).await;
    assert_eq!(call(&connection).await.unwrap().value, r#"{"cargo":"","log":"log"}"#);
    let shown = format!("{:?}", child.target(&LEGACY));
    assert!(!shown.contains(child.log().as_str()) && shown.contains("LOG"), "{shown}");
}

#[tokio::test]
async fn a_missing_command_or_folder_is_explained() {
    let open = async |command: &str, cwd: Option<&str>| {
        let target = Target::Stdio {
            command: command.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: cwd.map(Into::into),
        };
        let tasks = TaskTracker::new();
        Connection::open(&target, &HttpClient::new(), &options(), &tasks).await.unwrap_err()
    };
    let error = open("no-such-command-here", None).await;
    let text = error.to_string();
    assert!(text.contains("`no-such-command-here` was not found; looked in PATH=/"), "{text}");
    assert_eq!(error.failure(), Failure::NotSent);
    let error = open("sh", Some("/no/such/folder")).await;
    assert!(error.to_string().contains("`/no/such/folder`"), "{error}");
    let error = open("/etc/passwd", None).await;
    assert!(matches!(error, TransportError::Spawn { .. }), "{error:?}");
}

#[tokio::test]
async fn a_child_that_ends_at_once_says_why() {
    let child = Child::new();
    let usage = Script { start: "echo 'usage: x FILE'; echo 'no FILE' >&2; exit 2", ..LEGACY };
    let error = child.open_with(&usage, &options()).await.unwrap_err();
    let text = error.to_string();
    for part in ["exited with code 2", "no FILE", "usage: x FILE"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_child_that_ends_in_a_call_fails_it_with_its_last_words() {
    let child = Child::new();
    let connection = child.open(&Script { call: "echo boom >&2; exit 3", ..LEGACY }).await;
    let error = call(&connection).await.unwrap_err();
    assert_eq!(error.failure(), Failure::Ambiguous);
    let text = error.to_string();
    assert!(text.contains("exited with code 3") && text.contains("boom"), "{text}");
    assert!(!connection.is_alive());
    assert_eq!(connection.stderr_tail(), ["boom"]);
    let error = call(&connection).await.unwrap_err();
    assert_eq!(error.failure(), Failure::NotSent);
    assert!(connection.death().unwrap().to_string().contains("code 3"));
}

#[tokio::test]
async fn an_answer_right_before_the_end_still_counts() {
    let child = Child::new();
    let last = Script {
        call: r#"printf '{"jsonrpc":"2.0","id":%s,"result":{}}\n' "$id"; exit 0"#,
        ..LEGACY
    };
    let connection = child.open(&last).await;
    call(&connection).await.unwrap();
}

#[tokio::test]
async fn a_child_that_closes_its_output_is_dead() {
    let child = Child::new();
    let connection =
        child.open(&Script { call: "exec >&-; while :; do sleep 1; done", ..LEGACY }).await;
    let error = call(&connection).await.unwrap_err();
    assert!(error.to_string().contains("closed its output"), "{error}");
    assert!(!connection.is_alive());
}

#[tokio::test]
async fn a_timeout_tells_the_child_and_ignores_the_late_answer() {
    let child = Child::new();
    let slow = Script {
        call: r#"case $line in *late*) sleep 2;; esac; printf '{"jsonrpc":"2.0","id":%s,"result":{"id":%s}}\n' "$id" "$id""#,
        ..LEGACY
    };
    let connection = child.open(&slow).await;
    let late = OutgoingRequest { name: Some("late"), ..OutgoingRequest::new("tools/call") };
    let error = connection.request(&late, Duration::from_millis(500), None).await.unwrap_err();
    assert!(matches!(error, TransportError::Timeout { .. }), "{error:?}");
    let answer = call(&connection).await.unwrap();
    let log = child.log();
    let id = log.lines().rfind(|line| line.contains("tools/call")).unwrap();
    let id = id.split_once(r#""id":"#).unwrap().1.split_once(',').unwrap().0;
    assert_eq!(answer.value, format!(r#"{{"id":{id}}}"#));
    assert_eq!(log.matches("notifications/cancelled").count(), 1, "{log}");
}

#[tokio::test]
async fn a_child_that_does_not_read_holds_up_nobody_for_long() {
    let child = Child::new();
    let connection = child.open(&Script { call: "sleep 30", ..LEGACY }).await;
    let limit = Duration::from_millis(500);
    assert_eq!(call_within(&connection, limit).await.unwrap_err().failure(), Failure::Timeout);
    let large = format!(r#"{{"x":"{}"}}"#, "y".repeat(LARGE));
    let request = OutgoingRequest { arguments: Some(&large), ..OutgoingRequest::new("tools/call") };
    let stuck = connection.request(&request, limit, None).await.unwrap_err();
    assert_eq!(stuck.failure(), Failure::Timeout);
    for _ in 0..40 {
        let error =
            connection.request(&request, Duration::from_millis(10), None).await.unwrap_err();
        assert!(matches!(error, TransportError::NotRead { .. }), "{error:?}");
        assert_eq!(error.failure(), Failure::NotSent);
    }
    connection.close().await;
    assert!(!runs(pid(&connection)));
}

/// A call whose arguments are more than a pipe holds: the writer gets stuck in it.
const LARGE: usize = 300_000;

#[tokio::test]
async fn a_child_that_closes_its_input_is_dead_and_each_call_knows_what_was_written_of_it() {
    let child = Child::new();
    let deaf = Script {
        call: "touch called; while [ ! -e go ]; do sleep 0.01; done; exec <&-; while :; do sleep 1; done",
        ..LEGACY
    };
    let connection = child.open(&deaf).await;
    let written = call(&connection);
    let large = format!(r#"{{"x":"{}"}}"#, "y".repeat(LARGE));
    let in_part = async {
        eventually("it was called", || child.folder.path().join("called").exists()).await;
        let request =
            OutgoingRequest { arguments: Some(&large), ..OutgoingRequest::new("tools/call") };
        connection.request(&request, Duration::from_secs(20), None).await
    };
    let queued = async {
        eventually("it was called", || child.folder.path().join("called").exists()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        tokio::join!(call(&connection), async {
            std::fs::write(child.folder.path().join("go"), "").unwrap();
        })
    };
    let (written, in_part, (queued, ())) = tokio::join!(written, in_part, queued);
    for (outcome, failure) in [
        (written, Failure::Ambiguous),
        (in_part, Failure::Ambiguous),
        (queued, Failure::NotSent),
        (call(&connection).await, Failure::NotSent),
    ] {
        let error = outcome.unwrap_err();
        assert!(error.to_string().contains("closed its input"), "{error}");
        assert_eq!(error.failure(), failure, "{error:?}");
    }
    assert!(!connection.is_alive());
    assert!(connection.death().unwrap().to_string().contains("closed its input"));
}

#[tokio::test]
async fn a_line_of_which_nothing_could_be_written_was_not_sent() {
    let child = Child::new();
    let deaf = Script { call: "exec <&-; touch deaf; while :; do sleep 1; done", ..LEGACY };
    let connection = child.open(&deaf).await;
    let unwritten = async {
        eventually("it is deaf", || child.folder.path().join("deaf").exists()).await;
        call(&connection).await
    };
    let (written, unwritten) = tokio::join!(call(&connection), unwritten);
    assert_eq!(written.unwrap_err().failure(), Failure::Ambiguous);
    let error = unwritten.unwrap_err();
    assert!(error.to_string().contains("closed its input"), "{error}");
    assert_eq!(error.failure(), Failure::NotSent);
}

#[tokio::test]
async fn cancellations_do_not_wait_behind_requests_and_none_is_lost() {
    const CALLS: usize = 300;
    let child = Child::new();
    let script = Script {
        call: r#"case $line in *stop*) while [ ! -e go ]; do sleep 0.01; done;; esac"#,
        ..LEGACY
    };
    let connection = std::sync::Arc::new(child.open(&script).await);
    let start = |name: &'static str, arguments: String| {
        let connection = std::sync::Arc::clone(&connection);
        child.tasks.spawn(async move {
            let request = OutgoingRequest {
                name: Some(name),
                arguments: Some(&arguments),
                ..OutgoingRequest::new("tools/call")
            };
            connection.request(&request, Duration::from_secs(60), None).await
        })
    };
    let held: Vec<_> = (0..CALLS).map(|_| start("held", "{}".to_owned())).collect();
    eventually("all are there", || child.log().matches(r#""held""#).count() == CALLS).await;
    let stop = start("stop", "{}".to_owned());
    eventually("it reads no further", || child.log().contains(r#""stop""#)).await;
    let stuck = start("stuck", format!(r#"{{"x":"{}"}}"#, "y".repeat(LARGE)));
    let queued: Vec<_> = (0..40).map(|_| start("queued", "{}".to_owned())).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    held.iter().for_each(tokio::task::JoinHandle::abort);
    for held in held {
        assert!(held.await.unwrap_err().is_cancelled());
    }
    std::fs::write(child.folder.path().join("go"), "").unwrap();
    eventually("all are read", || child.log().matches(r#""queued""#).count() == 40).await;
    let log = child.log();
    let (before, _) = log.split_once(r#""queued""#).unwrap();
    assert_eq!(before.matches("notifications/cancelled").count(), CALLS);
    for task in queued.iter().chain([&stop, &stuck]) {
        assert!(!task.is_finished());
        task.abort();
    }
}

#[tokio::test]
async fn what_is_no_message_is_skipped_and_requests_of_the_server_are_answered() {
    let child = Child::new();
    let chatty = Script {
        start: "echo 'npm WARN deprecated'; echo",
        call: r#"echo '{"jsonrpc":"2.0","id":"p","method":"ping"}'; echo '{"jsonrpc":"2.0","id":5,"method":"roots/list"}';
            echo '{"jsonrpc":"2.0","method":"notifications/message","params":{}}'; echo '{"jsonrpc":"2.0","id":99999,"result":{}}'; echo '{oops';
            printf '{"jsonrpc":"2.0","id":%s,"result":{}}\r\n' "$id""#,
        ..LEGACY
    };
    let connection = child.open(&chatty).await;
    assert_eq!(call(&connection).await.unwrap().kind, AnswerKind::Result);
    eventually("both answers", || {
        let log = child.log();
        log.contains(r#"{"jsonrpc":"2.0","id":"p","result":{}}"#)
            && log.contains(r#""id":5,"error":{"code":-32601"#)
    })
    .await;
    assert!(connection.is_alive());
}

#[tokio::test]
async fn an_oversized_line_fails_its_own_call_only() {
    let first = r#"printf '{"jsonrpc":"2.0","id":%s,"result":{"x":"' "$id"; head -c 300000 /dev/zero | tr '\0' x; echo '"}}'"#;
    let last = r#"printf '{"result":{"x":"'; head -c 300000 /dev/zero | tr '\0' x; printf '"},"jsonrpc":"2.0","id":%s}\n' "$id""#;
    let nowhere = r#"head -c 300000 /dev/zero | tr '\0' x; echo"#;
    for large in [first, last, nowhere] {
        let child = Child::new();
        let connection = child.open(&Script { call: large, ..LEGACY }).await;
        for _ in 0..2 {
            let error = call(&connection).await.unwrap_err();
            assert!(matches!(error, TransportError::ResponseTooLarge { .. }), "{error:?}");
            assert_eq!(error.failure(), Failure::Ambiguous);
        }
        assert!(connection.is_alive());
    }
}

/// An answer that is too large fails its call when it says whose it is, and its rest, which nobody
/// keeps, holds up no other.
#[tokio::test]
async fn the_rest_of_an_oversized_answer_holds_up_nobody() {
    // Read at the pace of what nobody asked for, these three would take twenty seconds.
    let first = r#"printf '{"jsonrpc":"2.0","id":%s,"result":{"x":"' "$id"; head -c 200000 /dev/zero
        until [ -e go ]; do sleep 0.05; done; head -c 40000000 /dev/zero; echo '"}}'"#;
    let last = r#"printf '{"result":{"x":"'; head -c 40000000 /dev/zero; printf '"},"jsonrpc":"2.0","id":%s}\n' "$id""#;
    let script = [first, last, last, LEGACY.call];
    let call_text = format!(
        r#"if mkdir a; then {}; elif mkdir b; then {}; elif mkdir c; then {}; else {}; fi 2>/dev/null"#,
        script[0], script[1], script[2], script[3]
    );
    let child = Child::new();
    let connection = child.open(&Script { call: call_text.leak(), ..LEGACY }).await;
    // The line does not end before this is known.
    let error = call(&connection).await.unwrap_err();
    assert!(matches!(error, TransportError::ResponseTooLarge { .. }), "{error:?}");
    let began = clock::uptime();
    std::fs::write(child.folder.path().join("go"), "").unwrap();
    for _ in 0..2 {
        let error = call(&connection).await.unwrap_err();
        assert!(matches!(error, TransportError::ResponseTooLarge { .. }), "{error:?}");
    }
    call(&connection).await.unwrap();
    let took = clock::uptime().since(began);
    assert!(took < Duration::from_secs(12), "{took:?}");
    connection.close().await;
}

/// Nothing comes after a line without an end: the child is ended, and who waits there is told.
#[tokio::test]
async fn a_child_whose_answer_never_ends_is_ended() {
    for (start, own) in
        [(r#""jsonrpc":"2.0","id":'"$id"',"result":{"x":"#, true), (r#""result":{"x":"#, false)]
    {
        let text = format!(
            r#"printf '%s' '{{{start}'; until [ -e go ]; do sleep 0.05; done; cat /dev/zero"#
        );
        let child = Child::new();
        let connection = child.open(&Script { call: text.leak(), ..LEGACY }).await;
        let beside = async {
            eventually("the first call is there", || child.log().contains("tools/call")).await;
            let calling = call(&connection);
            let going = async {
                // The second is written by then, and the child does not read it.
                tokio::time::sleep(Duration::from_millis(300)).await;
                std::fs::write(child.folder.path().join("go"), "").unwrap();
            };
            tokio::join!(calling, going).0
        };
        let (first, second) = tokio::join!(call(&connection), beside);
        let (first, second) = (first.unwrap_err(), second.unwrap_err());
        assert!(matches!(first, TransportError::ResponseTooLarge { .. }), "{first:?}");
        // Where it does not say whose it is, it may be any of theirs.
        assert_eq!(matches!(second, TransportError::ChildExited { .. }), own, "{second:?}");
        assert_eq!(second.failure(), Failure::Ambiguous);
        if own {
            assert!(second.to_string().contains("bytes in one line and was ended"), "{second}");
        }
        eventually("it is gone", || !connection.is_alive() && !runs(pid(&connection))).await;
        let end = connection.exit_status().unwrap();
        assert!(end.contains("bytes in one line"), "{end}");
    }
}

/// Answers that come after their callers left are not what nobody asked for.
#[tokio::test]
async fn late_answers_hold_up_nobody() {
    const LEFT: u64 = 6;
    // At the pace of what nobody asked for, they would take a quarter of a minute.
    let large = format!(
        r#"if [ "$id" -le {} ]; then until [ -e go ]; do sleep 0.05; done
            printf '{{"jsonrpc":"2.0","id":%s,"result":{{"x":"' "$id"; head -c 15000000 /dev/zero | tr '\0' x; echo '"}}}}'
            else {}; fi"#,
        2 + LEFT,
        LEGACY.call
    );
    let child = Child::new();
    let options = ConnectOptions { max_response_size: 16 * 1024 * 1024, ..options() };
    let script = Script { call: large.leak(), ..LEGACY };
    let connection = child.open_with(&script, &options).await.unwrap();
    let leaving = (0..LEFT).map(|_| call_within(&connection, Duration::from_secs(1)));
    for left in futures_util::future::join_all(leaving).await {
        let error = left.unwrap_err();
        assert!(matches!(error, TransportError::Timeout { .. }), "{error:?}");
    }
    let began = clock::uptime();
    std::fs::write(child.folder.path().join("go"), "").unwrap();
    call(&connection).await.unwrap();
    let took = clock::uptime().since(began);
    assert!(took < Duration::from_secs(9), "{took:?}");
    connection.close().await;
}

#[tokio::test]
async fn a_flood_on_standard_error_stops_nothing() {
    let child = Child::new();
    let flood = Script {
        call: r#"yes error | head -c 5000000 >&2; echo >&2; echo last >&2; printf '{"jsonrpc":"2.0","id":%s,"result":{}}\n' "$id""#,
        ..LEGACY
    };
    let connection = child.open(&flood).await;
    call(&connection).await.unwrap();
    eventually("the last line", || {
        connection.stderr_tail().last().is_some_and(|line| line == "last")
    })
    .await;
    assert!(connection.stderr_tail().len() <= 20);
}

#[tokio::test]
async fn calls_at_once_get_their_own_answers() {
    let child = Child::new();
    let echo = Script {
        call: r#"n=${line#*'"n":'}; printf '{"jsonrpc":"2.0","id":%s,"result":{"n":%s}}\n' "$id" "${n%%\}*}""#,
        ..MODERN
    };
    let connection = child.open(&echo).await;
    let calls = (0..100).map(|n| {
        let connection = &connection;
        async move {
            let arguments = format!(r#"{{"n":{n}}}"#);
            let request = OutgoingRequest {
                arguments: Some(&arguments),
                ..OutgoingRequest::new("tools/call")
            };
            let answer = connection.request(&request, Duration::from_secs(20), None).await.unwrap();
            assert_eq!(answer.value, arguments.as_bytes());
        }
    });
    futures_util::future::join_all(calls).await;
}

#[tokio::test]
async fn grandchildren_end_with_the_child_whatever_ends_it() {
    let tree = |call| Script { start: "sleep 1000 & echo $! > grandchild", call, ..LEGACY };
    // In order.
    let child = Child::new();
    let connection = child.open(&tree("")).await;
    let grandchild = child.number_in("grandchild").unwrap();
    assert!(runs(grandchild));
    connection.close().await;
    eventually("the grandchild is gone", || !runs(grandchild)).await;
    // By a crash.
    let child = Child::new();
    let connection = child.open(&tree("exit 9")).await;
    let grandchild = child.number_in("grandchild").unwrap();
    call(&connection).await.unwrap_err();
    eventually("the grandchild is gone", || !runs(grandchild)).await;
    // Because nobody wants it any more.
    let child = Child::new();
    let connection = child.open(&tree("")).await;
    let (leader, grandchild) = (pid(&connection), child.number_in("grandchild").unwrap());
    drop(connection);
    eventually("both are gone", || !runs(leader) && !runs(grandchild)).await;
}

#[tokio::test]
async fn a_child_that_ignores_everything_is_killed() {
    let child = Child::new();
    let stubborn =
        Script { call: "while :; do sleep 0.1; done", start: "trap '' TERM INT HUP", ..LEGACY };
    let connection = child.open(&stubborn).await;
    call_within(&connection, Duration::from_millis(50)).await.unwrap_err();
    let started = clock::uptime();
    connection.close().await;
    // It has three seconds, and a half, to be killed; whoever waits for it waits for ever.
    assert!(clock::uptime().since(started) < Duration::from_secs(20));
    assert!(!runs(pid(&connection)));
    assert_eq!(connection.exit_status().as_deref(), Some("was ended by signal 9"));
}

#[tokio::test]
async fn an_open_that_is_given_up_leaves_no_process() {
    let child = Child::new();
    let silent = Script { start: "echo $$ > leader", probe: "", handshake: "", ..LEGACY };
    let target = child.target(&silent);
    let client = HttpClient::new();
    let options = options();
    let opening = Connection::open(&target, &client, &options, &child.tasks);
    let mut opening = Box::pin(opening);
    tokio::select! {
        opened = &mut opening => panic!("{opened:?}"),
        () = eventually("it runs", || child.number_in("leader").is_some()) => {}
    }
    let leader = child.number_in("leader").unwrap();
    assert!(runs(leader));
    drop(opening);
    eventually("the child is gone", || !runs(leader)).await;
    child.tasks.close();
    tokio::time::timeout(Duration::from_secs(30), child.tasks.wait()).await.unwrap();
}

/// Half an answer, and then nothing: its call fails and the child is told; the next call is answered
/// when the child goes on.
#[tokio::test]
async fn an_answer_that_stops_half_way_fails_at_the_longest_silence() {
    let child = Child::new();
    let script = Script {
        call: r#"if mkdir once; then printf '{"jsonrpc":"2.0","id":%s,"resu' "$id"; sleep 2; printf 'lt":{}}\n'
            else printf '{"jsonrpc":"2.0","id":%s,"result":{"n":2}}\n' "$id"; fi"#,
        ..LEGACY
    };
    let options = ConnectOptions { stall_timeout: Some(Duration::from_millis(200)), ..options() };
    let connection = child.open_with(&script, &options).await.unwrap();
    let error = call(&connection).await.unwrap_err();
    assert!(matches!(error, TransportError::Stalled { .. }), "{error}");
    assert_eq!(error.failure(), Failure::Timeout);
    let answer = call(&connection).await.unwrap();
    assert_eq!(answer.value, r#"{"n":2}"#);
    eventually("the child is told", || child.log().contains("notifications/cancelled")).await;
    connection.close().await;
}

/// What a child prints beside its messages is no answer that has begun.
#[tokio::test]
async fn text_without_a_line_end_is_no_answer_that_stops() {
    let child = Child::new();
    let script = Script {
        call: r#"printf 'loading'; sleep 1; printf ' done\n{"jsonrpc":"2.0","id":%s,"result":{"n":3}}\n' "$id""#,
        ..LEGACY
    };
    let options = ConnectOptions { stall_timeout: Some(Duration::from_millis(200)), ..options() };
    let connection = child.open_with(&script, &options).await.unwrap();
    assert_eq!(call(&connection).await.unwrap().value, r#"{"n":3}"#);
    connection.close().await;
}
