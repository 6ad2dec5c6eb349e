//! Prometheus rules for what is promised of servers and tools: how much of the error budget is used, as
//! recording rules, and alerts on how fast. PURE.
//!
//! Changes when rules do. Windows and factors are those of "Alerting on SLOs" in the SRE workbook of
//! Google, chapter 5 (multiwindow, multi-burn-rate alerts). What counts as bad is in `docs/slo.md`, and
//! the same as `audit/slo.rs` counts in the ledger.

use std::fmt::Write as _;
use std::time::Duration;

use super::BUCKETS;
use crate::error::ErrorCode;
use crate::model::{Objective, format_duration};

/// Over which times the bad part is recorded.
const WINDOWS: [&str; 5] = ["5m", "30m", "1h", "6h", "3d"];

/// Burning this fast over both times is worth this alert.
struct Burn {
    factor: f64,
    short: &'static str,
    long: &'static str,
    severity: &'static str,
}

const BURNS: [Burn; 3] = [
    Burn { factor: 14.4, short: "5m", long: "1h", severity: "page" },
    Burn { factor: 6.0, short: "30m", long: "6h", severity: "page" },
    Burn { factor: 1.0, short: "6h", long: "3d", severity: "ticket" },
];

/// Whose calls a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleScope {
    /// The tool with this exposed name.
    Tool(String),
    /// Tools whose exposed names begin with the first, but with none of the others.
    Prefix(String, Vec<String>),
    /// Tools with these exposed names.
    Tools(Vec<String>),
}

/// One objective to make rules of.
#[derive(Debug, Clone)]
pub struct RuleTarget {
    /// The server's name.
    pub server: String,
    /// The tool's own name, where it is of one tool.
    pub tool: Option<String>,
    /// Whose calls.
    pub scope: RuleScope,
    /// What is promised.
    pub objective: Objective,
    /// Over which time.
    pub window: Duration,
}

/// The rules as a file of Prometheus.
#[must_use]
pub fn burn_rate_rules(targets: &[RuleTarget]) -> String {
    let mut out = String::from(
        "# Written by `switchyard slo --prometheus`: the error budgets of its configuration (`slo`).\n# Windows and factors: The Site Reliability Workbook, chapter 5, for a window of 30 days.\n",
    );
    if targets.is_empty() {
        out += "# Nothing is promised yet: give a server or a tool an `slo`.\ngroups: []\n";
        return out;
    }
    out += "groups:\n  - name: switchyard-slo-records\n    rules:\n";
    for target in targets {
        for window in WINDOWS {
            let _ = write!(
                out,
                "      - record: {}\n        labels: {{{}}}\n        expr: {}\n",
                record(window),
                labels(target),
                text(&bad_part(target, window))
            );
        }
    }
    out += "  - name: switchyard-slo-alerts\n    rules:\n";
    let mut alerts = 0;
    for target in targets {
        for burn in &BURNS {
            alerts += usize::from(push_alert(&mut out, target, burn));
        }
    }
    if alerts == 0 {
        // A list with comments alone is none.
        out += "      []\n";
    }
    out
}

fn record(window: &str) -> String {
    format!("switchyard:slo_bad:ratio_rate{window}")
}

/// JSON's texts are YAML's, too.
fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn labels(target: &RuleTarget) -> String {
    let mut out = format!("server: {}", text(&target.server));
    if let Some(tool) = &target.tool {
        let _ = write!(out, ", tool: {}", text(tool));
    }
    let _ = write!(out, ", objective: {}", target.objective.name);
    out
}

/// Whether there is such an alert: a part of all calls never exceeds 1.
fn push_alert(out: &mut String, target: &RuleTarget, burn: &Burn) -> bool {
    let budget = 1.0 - target.objective.target;
    let most = rounded(burn.factor * budget);
    let of = match &target.tool {
        Some(tool) => format!("tool {tool} of server {}", target.server),
        None => format!("server {}", target.server),
    };
    let (name, short, long) = (target.objective.name, burn.short, burn.long);
    if most >= 1.0 {
        let _ = writeln!(
            out,
            "      # {name} of {}: no alert at {} times, which would be more than all calls.",
            // A name cannot end the comment.
            of.escape_debug(),
            burn.factor
        );
        return false;
    }
    let matchers = format!(
        "server={},tool={},objective={}",
        text(&target.server),
        text(target.tool.as_deref().unwrap_or_default()),
        text(name)
    );
    let expression = format!(
        "{}{{{matchers}}} > {most} and {}{{{matchers}}} > {most}",
        record(long),
        record(short)
    );
    let of = format!("{of} at {{{{ $labels.instance }}}}");
    let summary = format!("{name} of {of} uses up its error budget {} times too fast", burn.factor);
    let description = format!(
        "More than {} of the calls of the last {long} and of the last {short} were bad; {} may be over {}. See switchyard slo, and audit list for the calls.",
        percent(most),
        percent(budget),
        format_duration(target.window)
    );
    let _ = write!(
        out,
        "      - alert: SwitchyardSloBurnRate\n        expr: {}\n        labels: {{{}, severity: {}, window: {long}}}\n        annotations:\n          summary: {}\n          description: {}\n          runbook_url: docs/runbook.md#switchyardsloburnrate\n",
        text(&expression),
        labels(target),
        burn.severity,
        text(&summary),
        text(&description)
    );
    true
}

/// 14.4 times (1 - 0.99) without the dust of binary fractions.
fn rounded(number: f64) -> f64 {
    (number * 1e9).round() / 1e9
}

fn percent(part: f64) -> String {
    format!("{}%", rounded(part * 100.0))
}

/// The part of calls that were bad over `window`, of each router by itself.
fn bad_part(target: &RuleTarget, window: &str) -> String {
    let whose = whose(&target.scope);
    let sum = |suffix: &str, more: &str| {
        format!(
            "sum by (job, instance) (rate(mcp_server_operation_duration_seconds_{suffix}{{mcp_method_name=\"tools/call\",{whose},{more}}}[{window}]))"
        )
    };
    let faults: Vec<&str> =
        ErrorCode::ALL.iter().filter(|code| code.is_fault()).map(|code| code.as_str()).collect();
    let faults = faults.join("|");
    // A zero for each router that has calls, but none of these.
    let some = |sum: String, all: &str| format!("({sum} or 0 * {all})");
    match target.objective.within {
        None => {
            // What succeeded has no error type.
            let all = sum("count", &format!("error_type=~\"|tool_error|{faults}\""));
            let bad = sum("count", &format!("error_type=~\"{faults}\""));
            format!("{} / {all}", some(bad, &all))
        }
        Some(within) => {
            let timeout = ErrorCode::Timeout.as_str();
            let all = sum("count", &format!("error_type=~\"|tool_error|{timeout}\""));
            let good = |bound: f64| {
                let labels =
                    format!("error_type=~\"|tool_error\",le=~\"{}\"", bound_pattern(bound));
                some(sum("bucket", &labels), &all)
            };
            let (low, high, part) = between(within.as_secs_f64());
            let good = match part == 0.0 {
                true => good(low),
                // As histogram_quantile takes it: evenly between two bounds.
                false => {
                    let rest = rounded(1.0 - part);
                    format!("({rest} * {} + {part} * {})", good(low), good(high))
                }
            };
            format!("1 - {good} / {all}")
        }
    }
}

/// The buckets' bounds around a time in seconds, and how far it is from the first to the second.
fn between(seconds: f64) -> (f64, f64, f64) {
    let low = BUCKETS.iter().copied().rfind(|bound| *bound <= seconds);
    let high = BUCKETS.iter().copied().find(|bound| *bound > seconds);
    match (low, high) {
        (Some(low), Some(high)) => (low, high, rounded((seconds - low) / (high - low))),
        (Some(only), None) | (None, Some(only)) => (only, only, 0.0),
        (None, None) => (seconds, seconds, 0.0),
    }
}

/// A bound as the exposition says it, and as Prometheus 3 stores it: `2` and `2.0`.
fn bound_pattern(bound: f64) -> String {
    let shown = bound.to_string();
    match shown.contains('.') {
        true => pattern(&shown),
        false => format!("{shown}([.]0)?"),
    }
}

/// The text as a pattern that matches it alone, without a backslash, which would have to be escaped
/// twice.
fn pattern(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_alphanumeric() || matches!(character, '_' | '-') {
            out.push(character);
        } else {
            let _ = write!(out, "[{character}]");
        }
    }
    out
}

fn whose(scope: &RuleScope) -> String {
    match scope {
        RuleScope::Tool(name) => format!("gen_ai_tool_name={}", text(name)),
        RuleScope::Prefix(prefix, others) => {
            let mut out = format!("gen_ai_tool_name=~\"{}.+\"", pattern(prefix));
            for other in others {
                let _ = write!(out, ",gen_ai_tool_name!~\"{}.+\"", pattern(other));
            }
            out
        }
        RuleScope::Tools(names) => {
            let names: Vec<String> = names.iter().map(|name| pattern(name)).collect();
            // None: a pattern that no tool has.
            let names = if names.is_empty() { vec!["_none".to_owned()] } else { names };
            format!("gen_ai_tool_name=~\"{}\"", names.join("|"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(objective: Objective, scope: RuleScope) -> RuleTarget {
        let window = Duration::from_secs(30 * 86_400);
        RuleTarget { server: "docs".to_owned(), tool: None, scope, objective, window }
    }

    fn latency(target: f64, millis: u64) -> Objective {
        Objective { name: "latency_p95", target, within: Some(Duration::from_millis(millis)) }
    }

    #[test]
    fn a_time_between_two_bounds_is_taken_evenly() {
        assert_eq!(between(2.0), (2.0, 5.0, 0.0));
        assert_eq!(between(3.5), (2.0, 5.0, 0.5));
        assert_eq!(between(0.001), (0.001, 0.002, 0.0));
        assert_eq!(between(300.0), (300.0, 300.0, 0.0));
        let rules = burn_rate_rules(&[target(latency(0.95, 3500), RuleScope::Tool("a".into()))]);
        assert!(rules.contains("0.5 * (sum by (job, instance) (rate("), "{rules}");
        assert!(rules.contains(r#"le=~\"2([.]0)?\""#) && rules.contains(r#"le=~\"5([.]0)?\""#));
    }

    #[test]
    fn what_can_never_be_is_no_alert() {
        let rules = burn_rate_rules(&[target(latency(0.5, 2000), RuleScope::Tool("a".into()))]);
        assert_eq!(rules.matches("alert: SwitchyardSloBurnRate").count(), 1, "{rules}");
        assert_eq!(rules.matches("# latency_p95 of server docs: no alert").count(), 2, "{rules}");
        let success = Objective { name: "success", target: 0.99, within: None };
        let rules = burn_rate_rules(&[target(success, RuleScope::Tool("a".into()))]);
        for most in ["> 0.144 and", "> 0.06 and", "> 0.01 and"] {
            assert!(rules.contains(most), "{most}: {rules}");
        }
        assert!(burn_rate_rules(&[]).ends_with("groups: []\n"));
    }

    #[test]
    fn names_match_themselves_alone() {
        let scope = RuleScope::Prefix("a_b__".into(), vec!["a_b__c__".into()]);
        assert_eq!(whose(&scope), r#"gen_ai_tool_name=~"a_b__.+",gen_ai_tool_name!~"a_b__c__.+""#);
        let scope = RuleScope::Tools(vec!["x.y".into(), "z".into()]);
        assert_eq!(whose(&scope), r#"gen_ai_tool_name=~"x[.]y|z""#);
        assert_eq!(bound_pattern(0.05), "0[.]05");
        assert_eq!(bound_pattern(60.0), "60([.]0)?");
    }
}
