//! The numbers of servers: each key is read, has its default, refuses what makes no sense, and
//! survives the way through JSON.

use std::collections::BTreeSet;

use super::*;
use crate::model::{
    BreakerProbe, BreakerScope, RetryBudget, RetryJitter, RetryTimeouts, format_duration,
};

/// One key: what a file may say, how it arrives, what holds without it, and what is refused.
struct Case {
    key: &'static str,
    written: &'static str,
    arrives: fn(&Knobs) -> String,
    read: &'static str,
    resolved: fn(&ServerSettings) -> String,
    default: &'static str,
    refused: &'static [(&'static str, &'static str)],
}

fn seconds(span: Duration) -> String {
    format_duration(span)
}

fn or_off(span: Option<Duration>) -> String {
    span.map_or_else(|| "off".to_owned(), format_duration)
}

fn all<T: fmt::Debug>(value: T) -> String {
    format!("{value:?}")
}

const NOT_A_SPAN: &[(&str, &str)] = &[
    ("soon", "`soon` is not a duration"),
    ("0", "must be above zero"),
    ("-1", "is not a duration"),
    ("[1]", "expected a duration"),
];
const NOT_A_DELAY: &[(&str, &str)] = &[("soon", "`soon` is not a duration")];
const NOT_A_SWITCH: &[(&str, &str)] = &[("perhaps", "expected true or false, found `perhaps`")];
const NOT_A_RATE: &[(&str, &str)] = &[
    ("0", "must be above 0 and at most 1"),
    ("1.01", "must be above 0 and at most 1"),
    ("-0.5", "must be above 0 and at most 1"),
    (".nan", "must be above 0 and at most 1"),
    ("half", "expected a number, found `half`"),
];
const NOT_ONE: &[(&str, &str)] =
    &[("0", "must be at least 1"), ("-1", "expected a whole number"), ("1.5", "expected a whole")];
const NOT_TO_A_THOUSAND: &[(&str, &str)] =
    &[("0", "must be from 1 to 1000"), ("1001", "must be from 1 to 1000")];

/// Rows of the table, in the order of the list in `config/knobs.rs`.
macro_rules! cases {
    ($($key:ident: $written:literal, $read:literal, |$settings:ident| $resolved:expr, $default:literal, $refused:expr;)+) => {
        vec![$(Case {
            key: stringify!($key),
            written: $written,
            arrives: |knobs| format!("{:?}", knobs.$key.unwrap()),
            read: $read,
            resolved: |$settings| $resolved,
            default: $default,
            refused: $refused,
        }),+]
    };
}

fn cases() -> Vec<Case> {
    cases! {
        timeout: "7", "7s", |s| seconds(s.timeout), "30s", NOT_A_SPAN;
        connect_timeout: "250ms", "250ms", |s| seconds(s.connect_timeout), "5s", NOT_A_SPAN;
        // Four attempts of 30 s and three delays of at most 30 s.
        call_deadline: "2m", "120s", |s| seconds(s.call_deadline), "210s", NOT_A_SPAN;
        retry_attempts: "0", "0", |s| all(s.retry.attempts), "3",
            &[("101", "must be from 0 to 100"), ("-1", "expected a whole number")];
        retry_delay: "0", "0ns", |s| seconds(s.retry.delay), "1s", NOT_A_DELAY;
        retry_max_delay: "1.5", "1.5s", |s| seconds(s.retry.max_delay), "30s", NOT_A_DELAY;
        retry_mode: "seed", "Seed", |s| all(s.retry.mode), "Safe",
            &[("sead", "`sead` is not one of safe, seed, off; did you mean `seed`?")];
        retry_jitter: "full", "Full", |s| all(s.retry.jitter), "Equal",
            &[("ful", "`ful` is not one of equal, full; did you mean `full`?")];
        retry_timeouts: "replay_safe", "ReplaySafe", |s| all(s.retry.timeouts), "Never",
            &[("always", "`always` is not one of never, replay_safe")];
        unavailable_is_refusal: "yes", "true", |s| all(s.unavailable_is_refusal), "false",
            NOT_A_SWITCH;
        retry_budget: "{ratio: 1, cap: 7.5}",
            "RetryBudget { ratio: 1.0, min_per_second: 3.0, cap: 7.5 }",
            |s| all(s.retry.budget), "RetryBudget { ratio: 0.2, min_per_second: 3.0, cap: 100.0 }",
            &[
                ("{ratio: -1}", "`ratio` must be from 0 to 1000"),
                ("{min_per_second: .inf}", "`min_per_second` must be from 0 to 1000"),
                ("{cap: 0}", "`cap` must be from 1 to 1000000"),
                ("{cap: .nan}", "`cap` must be from 1 to 1000000"),
                ("{capp: 1}", "unknown key `capp`; did you mean `cap`?"),
                ("7", "expected a mapping"),
            ];
        circuit_breaker_threshold: "1", "1", |s| all(s.breaker.threshold), "5", NOT_ONE;
        circuit_breaker_timeout: "12s", "12s", |s| seconds(s.breaker.open_for), "30s", NOT_A_SPAN;
        circuit_breaker_timeout_max: "5m", "300s", |s| seconds(s.breaker.open_for_max), "30s",
            NOT_A_SPAN;
        half_open_max_calls: "2", "2", |s| all(s.breaker.probes), "1", NOT_TO_A_THOUSAND;
        half_open_successes: "3", "3", |s| all(s.breaker.successes), "1", NOT_TO_A_THOUSAND;
        half_open_lease: "9", "9s", |s| or_off(s.breaker.lease), "off", NOT_A_SPAN;
        breaker_window: "1m", "60s", |s| or_off(s.breaker.window), "off", NOT_A_SPAN;
        breaker_window_rate: "0.25", "0.25", |s| all(s.breaker.window_rate), "inf", NOT_A_RATE;
        breaker_min_calls: "50", "50", |s| all(s.breaker.min_calls), "20", NOT_ONE;
        slow_call: "800ms", "800ms", |s| or_off(s.breaker.slow_call), "off", NOT_A_SPAN;
        slow_call_rate: "1", "1.0", |s| all(s.breaker.slow_call_rate), "1.0", NOT_A_RATE;
        breaker_scope: "tool", "Tool", |s| all(s.breaker.scope), "Server",
            &[("tools", "`tools` is not one of server, tool; did you mean `tool`?")];
        tool_error_resets: "true", "true", |s| all(s.breaker.tool_error_resets), "false",
            NOT_A_SWITCH;
        count_http_4xx: "on", "true", |s| all(s.breaker.count_http_4xx), "false", NOT_A_SWITCH;
        breaker_probe: "active", "Active", |s| all(s.breaker.probe), "Call",
            &[("ping", "`ping` is not one of call, active")];
        max_concurrency: "8", "8", |s| all(s.max_concurrency), "64",
            &[("0", "must be from 1 to 100000"), ("100001", "must be from 1 to 100000")];
        max_response_size: "64KiB", "65536", |s| all(s.max_response_size), "16777216",
            &[("1000", "must be at least 1KiB"), ("lots", "`lots` is not a size")];
        max_events: "10000", "10000", |s| all(s.max_events), "600000", NOT_ONE;
        stall_timeout: "2s", "2s", |s| or_off(s.stall_timeout), "off", NOT_A_SPAN;
        max_sessions: "7", "7", |s| all(s.max_sessions), "100",
            &[("0", "must be from 1 to 10000"), ("10001", "must be from 1 to 10000")];
        session_idle_timeout: "90s", "90s", |s| seconds(s.session_idle_timeout), "10m",
            NOT_A_SPAN;
    }
}

/// The keys that the schema has for a part of the file.
fn keys_of(part: &str) -> BTreeSet<String> {
    let schema: serde_json::Value = serde_json::from_str(&json_schema()).unwrap();
    schema["$defs"][part]["properties"].as_object().unwrap().keys().cloned().collect()
}

#[test]
fn every_number_has_a_case_here_and_may_stand_at_a_server_and_in_the_defaults() {
    let cases: BTreeSet<String> = cases().iter().map(|case| case.key.to_owned()).collect();
    assert_eq!(keys_of("RawKnobs"), cases);
    assert!(keys_of("RawServer").is_superset(&cases));
}

#[test]
fn every_number_is_read_at_a_server_and_in_the_defaults() {
    for case in cases() {
        let (key, written) = (case.key, case.written);
        let config = read(&format!(
            "defaults: {{{key}: {written}}}\nmcp_servers: {{a: {{url: 'http://h/', {key}: {written}}}, b: {{url: 'http://h/'}}}}\n"
        ))
        .unwrap();
        assert_eq!((case.arrives)(&config.defaults), case.read, "{key}");
        let a = &server(&config, "a").knobs;
        assert_eq!((case.arrives)(a), case.read, "{key}");
        let b = &server(&config, "b").knobs;
        assert_eq!(b, &Knobs::default(), "{key}: what the defaults say is not the server's own");
        assert_eq!(a.or(&Knobs::default()), b.or(&config.defaults), "{key}");
    }
}

#[test]
fn every_number_has_its_default() {
    let usual = ServerSettings::resolve(&Knobs::default());
    for case in cases() {
        assert_eq!((case.resolved)(&usual), case.default, "{}", case.key);
    }
}

#[test]
fn every_bad_number_is_refused_with_its_place() {
    for case in cases() {
        let key = case.key;
        for (wrong, expected) in case.refused {
            for (text, line) in [
                (format!("defaults:\n  {key}: {wrong}\n"), 2),
                (format!("mcp_servers:\n  a:\n    url: http://h/\n    {key}: {wrong}\n"), 4),
            ] {
                let message = refused(&text);
                assert!(message.contains(expected), "{text}\n{message}");
                assert!(message.starts_with(&format!("switchyard.yaml:{line}:")), "{message}");
                assert_eq!(message.lines().count(), 1, "{message}");
                if expected.starts_with("must be") {
                    let column = text.lines().last().unwrap().find(wrong).unwrap() + 1;
                    let whole = format!("switchyard.yaml:{line}:{column}: `{key}` {expected}");
                    assert!(message.starts_with(&whole), "{whole}\n{message}");
                }
            }
        }
    }
}

#[test]
fn every_number_survives_the_way_through_json() {
    let name = ServerName::parse("a").unwrap();
    let through = |spec: &ServerSpec| {
        server_from_json(&name, server_to_json(spec).to_string().as_bytes()).unwrap()
    };
    let mut whole = String::new();
    for case in cases() {
        let said = format!("{}: {}", case.key, case.written);
        let config = read(&format!("mcp_servers: {{a: {{url: 'http://h/', {said}}}}}\n")).unwrap();
        let spec = server(&config, "a");
        assert!(server_to_json(spec).as_object().unwrap().contains_key(case.key), "{said}");
        assert_eq!(&through(spec), spec, "{said}");
        whole.push_str(&format!("    {said}\n"));
    }
    // And all of them together, also in the form in which they are stored.
    let config = read(&format!("mcp_servers:\n  a:\n    url: http://h/\n{whole}")).unwrap();
    let spec = server(&config, "a");
    assert_eq!(&through(spec), spec);
    let stored = serde_json::to_string(&spec.knobs).unwrap();
    assert_eq!(serde_json::from_str::<Knobs>(&stored).unwrap(), spec.knobs);
    assert_eq!(config.notes, Vec::<String>::new());
}

#[test]
fn an_open_period_cannot_shrink() {
    let at = |text: &str| refused(text);
    let told =
        "`circuit_breaker_timeout_max` must not be below `circuit_breaker_timeout`, which is";
    for (text, place, first) in [
        (
            "defaults: {circuit_breaker_timeout: 10, circuit_breaker_timeout_max: 9}\n",
            "switchyard.yaml:1:70: ",
            "10s",
        ),
        ("defaults: {circuit_breaker_timeout_max: 29s}\n", "switchyard.yaml:1:41: ", "30s"),
        (
            "defaults: {circuit_breaker_timeout: 60}\nmcp_servers:\n  a: {url: 'http://h/', circuit_breaker_timeout_max: 45}\n",
            "switchyard.yaml:3:54: ",
            "1m",
        ),
    ] {
        let message = at(text);
        assert!(message.starts_with(place), "{message}");
        assert!(message.contains(&format!("{told} {first}")), "{message}");
    }
    // Equal is no growth. What a server inherits gives way to what it says itself.
    let config = read(
        "defaults: {circuit_breaker_timeout: 10, circuit_breaker_timeout_max: 10}\n\
         mcp_servers: {a: {url: 'http://h/', circuit_breaker_timeout: 60}}\n",
    )
    .unwrap();
    let settings = ServerSettings::resolve(&server(&config, "a").knobs.or(&config.defaults));
    assert_eq!(settings.breaker.open_for_max, Duration::from_secs(60));
    // A body over HTTP is judged by what it says itself.
    let name = ServerName::parse("a").unwrap();
    let said = |more: &str| {
        let json = format!(r#"{{"url": "http://h/", "circuit_breaker_timeout_max": 9{more}}}"#);
        server_from_json(&name, json.as_bytes()).map_err(|error| error.to_string())
    };
    assert!(said("").is_ok());
    let message = said(r#", "circuit_breaker_timeout": 10"#).unwrap_err();
    assert!(message.contains(told), "{message}");
}

#[test]
fn a_slip_in_a_new_key_finds_the_right_one() {
    for (slip, known) in [
        ("circuit_breaker_timeoutmax", "circuit_breaker_timeout_max"),
        ("half_open_max_call", "half_open_max_calls"),
        ("breaker_windows", "breaker_window"),
        ("retry_jiter", "retry_jitter"),
        ("unavailable_is_refused", "unavailable_is_refusal"),
    ] {
        for text in [
            format!("defaults:\n  {slip}: 1\n"),
            format!("mcp_servers:\n  a:\n    {slip}: 1\n    url: http://h/\n"),
        ] {
            let message = refused(&text);
            assert!(message.contains(&format!("did you mean `{known}`?")), "{message}");
        }
    }
}

#[test]
fn numbers_that_need_another_are_noted_and_others_are_not() {
    let config = read(
        "mcp_servers:\n  \
           a: {url: 'http://h/', breaker_window_rate: 0.3, breaker_min_calls: 5, slow_call_rate: 0.9}\n  \
           b: {url: 'http://h/', slow_call: 2s, slow_call_rate: 0.9, breaker_min_calls: 5}\n  \
           c: {url: 'http://h/', slow_call: 2s, breaker_window_rate: 0.3}\n",
    )
    .unwrap();
    assert_eq!(
        config.notes,
        [
            "server `a`: `breaker_window_rate` has no effect without `breaker_window`",
            "server `a`: `breaker_min_calls` has no effect without `breaker_window` or `slow_call`",
            "server `a`: `slow_call_rate` has no effect without `slow_call`",
            "server `c`: `breaker_window_rate` has no effect without `breaker_window`",
        ]
    );
    let config = read(
        "defaults: {breaker_window: 30s}\nmcp_servers: {a: {url: 'http://h/', breaker_window_rate: 0.3}}\n",
    )
    .unwrap();
    assert_eq!(config.notes, Vec::<String>::new());
}

#[test]
fn the_predecessors_numbers_keep_their_meaning_and_are_not_noted() {
    let config = read(
        "default_timeout: 45\ndefault_retry_attempts: 2\n\
         mcp_servers: {git-ops: {url: 'http://localhost:8003', transport: http, retry_delay: 1.0, retry_max_delay: 30.0, circuit_breaker_threshold: 5, circuit_breaker_timeout: 30.0, enabled: true}}\n",
    )
    .unwrap();
    assert_eq!(config.notes, Vec::<String>::new());
    let settings = ServerSettings::resolve(&server(&config, "git-ops").knobs.or(&config.defaults));
    assert_eq!(settings.timeout, Duration::from_secs(45));
    assert_eq!((settings.retry.attempts, settings.retry.mode), (2, RetryMode::Safe));
    assert_eq!(settings.retry.delay, Duration::from_secs(1));
    assert_eq!(
        (settings.breaker.threshold, settings.breaker.open_for),
        (5, Duration::from_secs(30))
    );
    assert_eq!(settings.breaker.open_for_max, settings.breaker.open_for);
}

#[test]
fn a_budget_of_a_server_replaces_that_of_the_defaults() {
    let config = read(
        "defaults: {retry_budget: {ratio: 0.5, cap: 10}}\n\
         mcp_servers: {a: {url: 'http://h/', retry_budget: {min_per_second: 0}}}\n",
    )
    .unwrap();
    let budget =
        ServerSettings::resolve(&server(&config, "a").knobs.or(&config.defaults)).retry.budget;
    assert_eq!(budget, RetryBudget { min_per_second: 0.0, ..RetryBudget::default() });
}

#[test]
fn words_are_read_from_variables_too() {
    let config = read(
        "defaults: {breaker_scope: '${S:-tool}', breaker_probe: '${S:-active}', retry_jitter: '${S:-FULL}', retry_timeouts: '${S:-replay_safe}', breaker_window_rate: '${S:-0.5}'}\n",
    )
    .unwrap();
    let knobs = &config.defaults;
    assert_eq!(knobs.breaker_scope, Some(BreakerScope::Tool));
    assert_eq!(knobs.breaker_probe, Some(BreakerProbe::Active));
    assert_eq!(knobs.retry_jitter, Some(RetryJitter::Full));
    assert_eq!(knobs.retry_timeouts, Some(RetryTimeouts::ReplaySafe));
    assert_eq!(knobs.breaker_window_rate, Some(0.5));
}

#[test]
fn the_schema_says_what_the_new_numbers_may_be() {
    let schema: serde_json::Value = serde_json::from_str(&json_schema()).unwrap();
    for part in ["RawKnobs", "RawServer"] {
        let knobs = &schema["$defs"][part]["properties"];
        for key in ["breaker_window_rate", "slow_call_rate"] {
            assert_eq!(knobs[key]["exclusiveMinimum"], 0, "{key}");
            assert_eq!(knobs[key]["maximum"], 1, "{key}");
        }
        assert_eq!(knobs["half_open_lease"]["exclusiveMinimum"], 0);
        assert_eq!(knobs["half_open_max_calls"]["maximum"], 1000);
        assert!(knobs["breaker_scope"].to_string().contains(r#"["server","tool"]"#));
        for (key, described) in knobs.as_object().unwrap() {
            let text = described["description"].as_str().unwrap_or_default();
            let own_or_budget = key == "retry_budget" || part == "RawServer";
            assert!(own_or_budget || text.contains("Default: "), "{key}: {text}");
        }
    }
    let budget = &schema["$defs"]["RawBudget"]["properties"]["cap"];
    assert_eq!((&budget["minimum"], &budget["maximum"]), (&1.into(), &1_000_000.into()));
}

/// A key nobody can read about is one nobody can use.
#[test]
fn every_number_is_documented() {
    let folder = env!("CARGO_MANIFEST_DIR");
    let text: String = ["README.md", "docs/resilience.md"]
        .iter()
        .map(|file| std::fs::read_to_string(format!("{folder}/{file}")).unwrap())
        .collect();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    for case in cases() {
        let names = [format!("`{}`", case.key), format!("`{}.", case.key)];
        let has = |cell: &str| names.iter().any(|name| cell.contains(name.as_str()));
        let first = |row: &&str| row.split('|').nth(1).is_some_and(has);
        assert!(rows.iter().any(first), "no table has a row for `{}`", case.key);
    }
}
