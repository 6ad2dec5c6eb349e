//! Breakers and their transitions in words.
//!
//! Changes when a breaker shows something else.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::cli::output::Output;
use crate::cli::table::Style;
use crate::cli::{text, when};
use crate::model::{BreakerState, Timestamp, format_duration};

/// A breaker as the API shows it.
#[derive(Debug, Deserialize)]
pub(in crate::cli) struct Breaker {
    pub(super) server: String,
    #[serde(default)]
    pub(super) tool: Option<String>,
    pub(super) state: String,
    #[serde(default)]
    pub(super) failures: u32,
    #[serde(default)]
    pub(super) threshold: u32,
    #[serde(default)]
    pub(super) trips: u32,
    #[serde(default, deserialize_with = "when::from_api")]
    open_until: Option<Timestamp>,
    #[serde(default)]
    probing: u32,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    pub(super) last_error: Option<String>,
    #[serde(default, deserialize_with = "when::from_api")]
    last_error_at: Option<Timestamp>,
    #[serde(default)]
    forced: Option<Forced>,
}

#[derive(Debug, Default, Deserialize)]
struct Forced {
    #[serde(default)]
    by: Option<String>,
    #[serde(default)]
    note: Option<String>,
    #[serde(default, deserialize_with = "when::from_api")]
    until: Option<Timestamp>,
}

/// One step of a breaker as the API shows it.
#[derive(Deserialize)]
pub(super) struct Transition {
    #[serde(default, deserialize_with = "when::from_api")]
    at: Option<Timestamp>,
    server: String,
    #[serde(default)]
    tool: Option<String>,
    from: String,
    to: String,
    reason: String,
    #[serde(default)]
    failures: u32,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    actor: Option<String>,
    #[serde(default)]
    note: Option<String>,
    #[serde(default)]
    open_for_ms: Option<u64>,
}

/// How a state stands out.
pub(in crate::cli) fn style(state: &str) -> Style {
    match BreakerState::parse(state) {
        Some(BreakerState::Closed) => Style::Good,
        Some(BreakerState::Open) => Style::Bad,
        Some(BreakerState::HalfOpen | BreakerState::ForcedOpen | BreakerState::ForcedClosed) => {
            Style::Warn
        }
        None => Style::Plain,
    }
}

pub(super) fn named(server: &str, tool: Option<&str>) -> String {
    tool.map_or_else(|| server.to_owned(), |tool| format!("{server}/{tool}"))
}

impl Breaker {
    pub(super) fn until(&self, zone: &TimeZone) -> String {
        let until = self.forced.as_ref().map_or(self.open_until, |forced| forced.until);
        match (until, BreakerState::parse(&self.state)) {
            (Some(at), _) => when::local(at, zone),
            (None, Some(BreakerState::ForcedOpen | BreakerState::ForcedClosed)) => {
                "reset".to_owned()
            }
            (None, Some(BreakerState::Open)) => "the next call".to_owned(),
            (None, _) => String::new(),
        }
    }

    pub(super) fn why(&self) -> String {
        let mut why = self.reason.clone().unwrap_or_default();
        if let Some(Forced { by, note, .. }) = &self.forced {
            if let Some(by) = by {
                why += &format!(" by {by}");
            }
            if let Some(note) = note {
                why += &format!(": {note}");
            }
        }
        why
    }

    /// All of it in a sentence, for the breaker's line among a server's properties.
    pub(in crate::cli) fn sentence(&self, zone: &TimeZone) -> String {
        let until = self.until(zone);
        let mut said = self.tool.as_ref().map(|tool| format!("{tool}: ")).unwrap_or_default();
        said += &self.state;
        if !until.is_empty() {
            said += &format!(" until {until}");
        }
        if self.reason.is_some() && self.state != BreakerState::Closed.as_str() {
            said += &format!(" ({})", self.why());
        }
        if self.probing > 0 {
            said += &format!(", {} under way", text::count(self.probing as usize, "probe"));
        }
        if self.failures > 0 {
            said += &format!(", {} of {} failures in a row", self.failures, self.threshold);
        }
        if let Some(error) = self.last_error.as_ref().filter(|_| self.failures > 0) {
            said += &format!("; last failure: {error}");
            if let Some(at) = self.last_error_at {
                said += &format!(" (at {})", when::local(at, zone));
            }
        }
        said
    }

    /// Whether a server's properties are incomplete without it.
    pub(in crate::cli) fn is_worth_a_line(&self) -> bool {
        self.tool.is_none() || self.failures > 0 || self.state != BreakerState::Closed.as_str()
    }
}

/// Lines as in a log: the failure stands whole, so nothing is cut to the terminal's width.
pub(super) fn log(out: &Output, transitions: &[Transition], zone: &TimeZone) -> String {
    let name =
        |one: &Transition| text::escape_line(&named(&one.server, one.tool.as_deref())).into_owned();
    let step = |one: &Transition| format!("{} → {}", one.from, one.to);
    let widest = |of: &dyn Fn(&Transition) -> String| {
        transitions.iter().map(|one| text::width(&of(one))).max().unwrap_or_default()
    };
    let (names, steps) = (widest(&name), widest(&step));
    let pad = |text: &str, to: usize| " ".repeat(to.saturating_sub(text::width(text)));
    let mut lines = String::new();
    for one in transitions {
        let at = one.at.map_or_else(String::new, |at| when::local_precise(at, zone));
        let (name, step) = (name(one), step(one));
        lines += &format!("{at}  {name}{}  ", pad(&name, names));
        lines += &out.paint(&step, style(&one.to));
        lines += &format!("{}  {}\n", pad(&step, steps), text::escape_line(&told(one)));
    }
    lines
}

/// Why, by whom, for how long, and what failed.
fn told(one: &Transition) -> String {
    let mut told = one.reason.clone();
    if one.failures > 0 {
        told += &format!(" ({} in a row)", one.failures);
    }
    if let Some(actor) = &one.actor {
        told += &format!(" by {actor}");
    }
    if let Some(millis) = one.open_for_ms {
        told += &format!(", for {}", format_duration(Duration::from_millis(millis)));
    }
    if let Some(cause) = one.error.as_ref().or(one.note.as_ref()) {
        told += &format!(": {cause}");
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Format;
    use jiff::tz::offset;

    fn out() -> Output {
        Output { format: Format::Human, terminal: false, colour: false, width: Some(40) }
    }

    #[test]
    fn the_history_reads_like_a_log() {
        let transitions: Vec<Transition> = serde_json::from_str(
            r#"[
            {"at":"2026-11-24T12:30:00.123Z","server":"steady","from":"closed","to":"open","reason":"failures",
             "failures":5,"error":"could not connect to 127.0.0.1:1: refused\u001b[2J","open_for_ms":30000},
            {"at":"2026-11-24T12:30:30.5Z","server":"a","tool":"echo","from":"open","to":"half_open","reason":"timer","failures":0},
            {"at":"2026-11-24T12:31:00Z","server":"steady","from":"half_open","to":"forced_open","reason":"forced",
             "actor":"laptop","note":"maintenance","open_for_ms":600000}
            ]"#,
        )
        .unwrap();
        let zone = TimeZone::fixed(offset(2));
        assert_eq!(
            log(&out(), &transitions, &zone),
            "2026-11-24 14:30:00.123  steady  closed → open            failures (5 in a row), for 30s: could not connect to 127.0.0.1:1: refused\\u{1b}[2J\n\
             2026-11-24 14:30:30.500  a/echo  open → half_open         timer\n\
             2026-11-24 14:31:00.000  steady  half_open → forced_open  forced by laptop, for 10m: maintenance\n"
        );
    }

    #[test]
    fn a_breaker_is_told_in_a_sentence() {
        let zone = TimeZone::fixed(offset(0));
        let told = |json: &str| serde_json::from_str::<Breaker>(json).unwrap().sentence(&zone);
        assert_eq!(told(r#"{"server":"s","state":"closed","reason":"reset"}"#), "closed");
        assert_eq!(
            told(
                r#"{"server":"s","state":"closed","failures":2,"threshold":5,"last_error":"refused",
                 "last_error_at":"2026-11-24T12:00:00Z"}"#
            ),
            "closed, 2 of 5 failures in a row; last failure: refused (at 2026-11-24 12:00:00)"
        );
        assert_eq!(
            told(
                r#"{"server":"s","state":"forced_open","reason":"forced",
                 "forced":{"by":"ops","note":"maintenance","until":"2026-11-24T12:00:00Z"}}"#
            ),
            "forced_open until 2026-11-24 12:00:00 (forced by ops: maintenance)"
        );
        assert_eq!(
            told(r#"{"server":"s","state":"open","reason":"probe_failed"}"#),
            "open until the next call (probe_failed)"
        );
        assert_eq!(
            told(
                r#"{"server":"s","tool":"echo","state":"half_open","reason":"timer","probing":1}"#
            ),
            "echo: half_open (timer), 1 probe under way"
        );
    }
}
