//! The numbers that hold for one server or, in `defaults`, for all: shape, rules and way back into
//! JSON from one list, in which each key stands once.
//!
//! Changes when a server gets another number. A key that is missing here, or that the model does not
//! know, does not compile.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use serde_yaml::Spanned;

use super::raw::{RawBudget, RawFilter, RawLevels, RawOverride, RawSlo};
use super::reader::Reader;
use super::scalar::{Bytes, Field};
use crate::model::{
    BreakerProbe, BreakerScope, Knobs, OnChange, RetryBudget, RetryJitter, RetryMode,
    RetryTimeouts, SessionMode, TransportKind, format_duration,
};

// Two structs with the same fields: flattening one into the other would lose the check of unknown
// keys and the places of values.
macro_rules! knobs {
    (
        knobs { $(
            $(#[$meta:meta])+
            $key:ident: $raw:ty => $rule:ident $(($($bound:expr),+))?;
        )+ }
        server { $($(#[$own_meta:meta])+ $own:ident: $own_raw:ty,)+ }
    ) => {
        /// Numbers that hold for one server, or for all in `defaults`.
        #[derive(Debug, Default, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct RawKnobs {
            $($(#[$meta])+ pub(super) $key: Option<$raw>,)+
        }

        /// One MCP server: `url` for one that is reached over HTTP, `command` for one that is started.
        #[derive(Debug, Default, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct RawServer {
            $($(#[$own_meta])+ pub(super) $own: $own_raw,)+
            $($(#[$meta])+ pub(super) $key: Option<$raw>,)+
        }

        knobs!(@read RawKnobs $($key $rule [$($($bound),+)?])+);
        knobs!(@read RawServer $($key $rule [$($($bound),+)?])+);

        /// Every number that is set, under its key.
        pub(super) fn shown(knobs: &Knobs) -> impl Iterator<Item = (&'static str, Value)> {
            let Knobs { $($key),+ } = knobs;
            [$((stringify!($key), $key.as_ref().map(Shown::shown))),+]
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?)))
        }
    };
    (@read $section:ident $($key:ident $rule:ident [$($bound:expr),*])+) => {
        impl $section {
            /// Checks the numbers.
            pub(super) fn read(&self, reader: &mut Reader<'_>) -> Knobs {
                let knobs = Knobs {
                    $($key: $rule(reader, stringify!($key), self.$key.as_ref(), $($bound),*),)+
                };
                if let Some(longest) = &self.circuit_breaker_timeout_max {
                    longest_opening(reader, &knobs, longest);
                }
                knobs
            }
        }
    };
}

knobs! {
    knobs {
        /// Time limit of one attempt. Default: 30 s.
        #[schemars(extend("exclusiveMinimum" = 0))]
        timeout: Field<Duration> => span;
        /// Time limit for reaching the server. Default: 5 s.
        #[schemars(extend("exclusiveMinimum" = 0))]
        connect_timeout: Field<Duration> => span;
        /// Time limit of the whole call. Default: all attempts and delays, at most 10 min.
        #[schemars(extend("exclusiveMinimum" = 0))]
        call_deadline: Field<Duration> => span;
        /// Retries after the first attempt. Default: 3.
        #[schemars(extend("maximum" = 100))]
        retry_attempts: Field<u32> => count(0, 100);
        /// First delay between attempts; doubles. Default: 1 s.
        retry_delay: Field<Duration> => any;
        /// Longest delay between attempts. Default: 30 s.
        retry_max_delay: Field<Duration> => any;
        /// `safe`: what provably did not run; `seed`: as the predecessor did; `off`. Default: safe.
        retry_mode: Field<RetryMode> => any;
        /// How delays are spread: `equal` (a quarter to both sides) or `full` (anywhere below the
        /// delay). Default: equal.
        retry_jitter: Field<RetryJitter> => any;
        /// Whether timeouts are retried in mode `safe`: `never`, or `replay_safe` (for tools that are
        /// declared safe to repeat). Default: never.
        retry_timeouts: Field<RetryTimeouts> => any;
        /// Whether HTTP status 503 says that a call was not run. Default: false, it may have been.
        unavailable_is_refusal: Field<bool> => any;
        /// How much of the traffic may be retries.
        retry_budget: RawBudget => budget;
        /// Consecutive failures that open the breaker. Default: 5.
        #[schemars(extend("minimum" = 1))]
        circuit_breaker_threshold: Field<u32> => count(1, u32::MAX);
        /// How long an open breaker refuses. Default: 30 s.
        #[schemars(extend("exclusiveMinimum" = 0))]
        circuit_breaker_timeout: Field<Duration> => span;
        /// The longest it refuses: the time doubles with every failed probe in a row up to this.
        /// Default: circuit_breaker_timeout, so no growth.
        #[schemars(extend("exclusiveMinimum" = 0))]
        circuit_breaker_timeout_max: Field<Duration> => span;
        /// Probes at a time in half-open. Default: 1.
        #[schemars(extend("minimum" = 1, "maximum" = 1000))]
        half_open_max_calls: Field<u32> => count(1, 1000);
        /// Answered probes that close the breaker. Default: 1.
        #[schemars(extend("minimum" = 1, "maximum" = 1000))]
        half_open_successes: Field<u32> => count(1, 1000);
        /// How long a probe may take before it counts as failed. Default: what is left of its call,
        /// and 1 s.
        #[schemars(extend("exclusiveMinimum" = 0))]
        half_open_lease: Field<Duration> => span;
        /// The span over which the rate of failures is taken. Default: none is taken.
        #[schemars(extend("exclusiveMinimum" = 0))]
        breaker_window: Field<Duration> => span;
        /// The rate of failures in `breaker_window` that opens the breaker. Default: 0.5.
        #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1))]
        breaker_window_rate: Field<f64> => rate;
        /// Attempts in the span below which no rate is taken. Default: 20.
        #[schemars(extend("minimum" = 1))]
        breaker_min_calls: Field<u32> => count(1, u32::MAX);
        /// An attempt that took this long was slow. Default: none is.
        #[schemars(extend("exclusiveMinimum" = 0))]
        slow_call: Field<Duration> => span;
        /// The rate of slow attempts that opens the breaker. Default: 1.
        #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1))]
        slow_call_rate: Field<f64> => rate;
        /// What has a breaker: `server`, or `tool` (each tool one of its own for timeouts and broken
        /// answers, beside the server's). Default: server.
        breaker_scope: Field<BreakerScope> => any;
        /// Whether a JSON-RPC error ends a row of failures. Default: false.
        tool_error_resets: Field<bool> => any;
        /// Whether HTTP status 4xx is a failure. Default: false; true with `retry_mode: seed`.
        count_http_4xx: Field<bool> => any;
        /// What is sent as a probe: `call` (a caller's call) or `active` (a sign of life is asked for
        /// first). Default: call.
        breaker_probe: Field<BreakerProbe> => any;
        /// Calls in flight at the server; more wait in a bounded queue. Default: 64.
        #[schemars(extend("minimum" = 1, "maximum" = 100_000))]
        max_concurrency: Field<u32> => count(1, 100_000);
        /// Largest answer. Default: 16 MiB.
        #[schemars(extend("minimum" = 1024))]
        max_response_size: Field<Bytes> => size;
        /// Events that may come before an answer over HTTP. Default: 600000.
        #[schemars(extend("minimum" = 1))]
        max_events: Field<u32> => count(1, u32::MAX);
        /// Longest silence of an answer that has begun. Default: only `timeout` bounds it.
        #[schemars(extend("exclusiveMinimum" = 0))]
        stall_timeout: Field<Duration> => span;
        /// With `sessions: isolated`: sessions at the server. Default: 100.
        #[schemars(extend("minimum" = 1, "maximum" = 10_000))]
        max_sessions: Field<u32> => count(1, 10_000);
        /// With `sessions: isolated`: how long a session may be unused. Default: 10 min.
        #[schemars(extend("exclusiveMinimum" = 0))]
        session_idle_timeout: Field<Duration> => span;
    }
    server {
        /// `http`, `sse`, `stdio` or `jsonrpc`. Default: by `url` or `command`.
        transport: Option<Field<TransportKind>>,
        /// Address of the MCP endpoint.
        url: Option<Field<String>>,
        /// Headers of every request.
        headers: Option<BTreeMap<String, Field<String>>>,
        /// Program to start, looked up in PATH.
        command: Option<Field<String>>,
        /// Its arguments.
        args: Option<Vec<Field<String>>>,
        /// Its environment, beside PATH, HOME and a few others.
        env: Option<BTreeMap<String, Field<String>>>,
        /// Its working folder.
        cwd: Option<Field<String>>,
        /// For people.
        description: Option<Field<String>>,
        /// Whether calls are routed to it. Default: true.
        enabled: Option<Field<bool>>,
        /// Which of its tools are offered.
        tools: Option<RawFilter>,
        /// What you say about single tools, by the server's own name of the tool.
        tool_overrides: Option<BTreeMap<String, RawOverride>>,
        /// `shared` (one session for all callers) or `isolated` (one for each session of a client).
        /// Default: shared.
        sessions: Option<Field<SessionMode>>,
        /// Whether readOnlyHint and idempotentHint are believed, for retries only. Default: true.
        trust_annotations: Option<Field<bool>>,
        /// When a tool's definition changes: `accept`, `warn` or `hold`. Default: warn.
        on_change: Option<Field<OnChange>>,
        /// What the ledger keeps of its calls.
        audit: Option<RawLevels>,
        /// What is promised of its calls.
        #[schemars(with = "Option<RawSlo>")]
        slo: Option<Spanned<RawSlo>>,
    }
}

/// Whatever its type can be.
fn any<T: super::scalar::FromScalar>(
    reader: &mut Reader<'_>,
    _: &str,
    field: Option<&Field<T>>,
) -> Option<T> {
    reader.get(field)
}

fn span(reader: &mut Reader<'_>, key: &str, field: Option<&Field<Duration>>) -> Option<Duration> {
    reader.span(key, field)
}

fn count(
    reader: &mut Reader<'_>,
    key: &str,
    field: Option<&Field<u32>>,
    least: u32,
    most: u32,
) -> Option<u32> {
    let rule = match most {
        u32::MAX => format!("at least {least}"),
        _ => format!("from {least} to {most}"),
    };
    reader.check(key, field, &rule, |count| (least..=most).contains(count))
}

/// A part of attempts. Zero would open the breaker at the first success.
fn rate(reader: &mut Reader<'_>, key: &str, field: Option<&Field<f64>>) -> Option<f64> {
    reader.check(key, field, "above 0 and at most 1", |rate| *rate > 0.0 && *rate <= 1.0)
}

fn size(reader: &mut Reader<'_>, key: &str, field: Option<&Field<Bytes>>) -> Option<u64> {
    reader.check(key, field, "at least 1KiB", |size| size.0 >= 1024).map(|size| size.0)
}

fn budget(reader: &mut Reader<'_>, _: &str, raw: Option<&RawBudget>) -> Option<RetryBudget> {
    let raw = raw?;
    let usual = RetryBudget::default();
    // Both are false for what is no number.
    let to_thousand = |value: &f64| (0.0..=1000.0).contains(value);
    let to_million = |value: &f64| (1.0..=1_000_000.0).contains(value);
    Some(RetryBudget {
        ratio: reader
            .check("ratio", raw.ratio.as_ref(), "from 0 to 1000", to_thousand)
            .unwrap_or(usual.ratio),
        min_per_second: reader
            .check("min_per_second", raw.min_per_second.as_ref(), "from 0 to 1000", to_thousand)
            .unwrap_or(usual.min_per_second),
        cap: reader
            .check("cap", raw.cap.as_ref(), "from 1 to 1000000", to_million)
            .unwrap_or(usual.cap),
    })
}

/// Refuses a bound for the growth of open periods that lies below the first of them. Without a first
/// of its own a server has that of `defaults`, which a body over HTTP does not show: there the first
/// counts for the longest, too.
fn longest_opening(reader: &mut Reader<'_>, knobs: &Knobs, field: &Field<Duration>) {
    let first = knobs.circuit_breaker_timeout.or(reader.first_opening);
    let (Some(longest), Some(first)) = (knobs.circuit_breaker_timeout_max, first) else { return };
    if longest < first {
        let first = format_duration(first);
        reader.problem(
            &field.at,
            format!("`circuit_breaker_timeout_max` must not be below `circuit_breaker_timeout`, which is {first}"),
        );
    }
}

/// A number as the file would say it.
trait Shown {
    fn shown(&self) -> Value;
}

impl Shown for Duration {
    fn shown(&self) -> Value {
        format_duration(*self).into()
    }
}

macro_rules! shown_as_json {
    ($($type:ty),+) => { $(
        impl Shown for $type {
            fn shown(&self) -> Value {
                json!(self)
            }
        }
    )+ };
}

shown_as_json!(
    bool,
    u32,
    u64,
    f64,
    BreakerProbe,
    BreakerScope,
    RetryBudget,
    RetryJitter,
    RetryMode,
    RetryTimeouts
);
