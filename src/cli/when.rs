//! Points in time as people write and read them.
//!
//! Changes when the command line reads or shows time differently. Takes "now" as a value.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer};

use crate::model::{Timestamp, parse_duration};

/// Why a text is no point in time.
#[derive(Debug, thiserror::Error)]
pub enum WhenError {
    /// It is in no form of those that are known.
    #[error(
        "`{0}` is not a time; write how long ago (90s, 15m, 1h, 7d), a date (2026-11-24), a local time (2026-11-24 14:30) or RFC 3339 (2026-11-24T14:30:00Z)"
    )]
    Unknown(String),
    /// A span ends before it begins.
    #[error("--since ({0}) is later than --until ({1})")]
    Backwards(Timestamp, Timestamp),
}

/// Reads a point in time: how long before `now`, RFC 3339, or a date or time in `zone`.
pub(crate) fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, WhenError> {
    let text = text.trim();
    if text == "now" {
        return Ok(now);
    }
    // A bare number is refused: 2026 could be a year or seconds.
    let bare = text.chars().all(|c| c.is_ascii_digit());
    if let (false, Ok(ago)) = (bare, parse_duration(text.strip_suffix(" ago").unwrap_or(text))) {
        return Ok(now.minus(ago));
    }
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(Timestamp::from_millis(at.as_millisecond()));
    }
    text.parse::<jiff::civil::DateTime>()
        .ok()
        .and_then(|local| zone.to_zoned_datetime(local).ok())
        .map(|at| Timestamp::from_millis(at.timestamp().as_millisecond()))
        .ok_or_else(|| WhenError::Unknown(text.to_owned()))
}

/// Reads the ends of a span, as the API has them.
pub(crate) fn span(
    since: Option<&str>,
    until: Option<&str>,
    now: Timestamp,
    zone: &TimeZone,
) -> Result<(Option<String>, Option<String>), WhenError> {
    let read = |text: Option<&str>| text.map(|text| parse(text, now, zone)).transpose();
    let (since, until) = (read(since)?, read(until)?);
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(WhenError::Backwards(since, until));
    }
    Ok((since.map(|at| at.to_string()), until.map(|at| at.to_string())))
}

/// The machine's time zone, or UTC where none is known.
pub(crate) fn zone() -> TimeZone {
    TimeZone::system()
}

/// Local time to the second, as in `2026-11-24 14:30:00`.
pub(crate) fn local(at: Timestamp, zone: &TimeZone) -> String {
    format(at, zone, "%Y-%m-%d %H:%M:%S")
}

/// Local time without the year, where room is scarce.
pub(crate) fn local_short(at: Timestamp, zone: &TimeZone) -> String {
    format(at, zone, "%m-%d %H:%M:%S")
}

/// Local time to the millisecond.
pub(crate) fn local_precise(at: Timestamp, zone: &TimeZone) -> String {
    format(at, zone, "%Y-%m-%d %H:%M:%S%.3f")
}

fn format(at: Timestamp, zone: &TimeZone, pattern: &str) -> String {
    match jiff::Timestamp::from_millisecond(at.as_millis()) {
        Ok(instant) => instant.to_zoned_datetime(zone.clone()).strftime(pattern).to_string(),
        Err(_) => at.to_string(),
    }
}

/// A duration in milliseconds as people read it: `3.1 ms`, `420 ms`, `2.4 s`.
pub(crate) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// The same for a [`Duration`].
pub(crate) fn elapsed(duration: Duration) -> String {
    milliseconds(duration.as_secs_f64() * 1000.0)
}

/// A time as the API writes it: RFC 3339, or milliseconds since 1970.
pub(crate) fn from_api<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Timestamp>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Millis(i64),
        Text(String),
    }
    let written = Option::<Written>::deserialize(deserializer)?;
    Ok(written.and_then(|written| match written {
        Written::Millis(millis) => Some(Timestamp::from_millis(millis)),
        Written::Text(text) => text
            .parse::<jiff::Timestamp>()
            .ok()
            .map(|at| Timestamp::from_millis(at.as_millisecond())),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_millis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn a_span_does_not_end_before_it_begins() {
        let now = at("2026-11-24T12:00:00Z");
        let span = |since, until| span(since, until, now, &TimeZone::UTC);
        assert!(span(Some("2h"), Some("1h")).is_ok() && span(Some("1h"), Some("1h")).is_ok());
        assert!(span(Some("1h"), None).is_ok() && span(None, Some("1h")).is_ok());
        let error = span(Some("1h"), Some("2h")).unwrap_err().to_string();
        assert!(error.contains("is later than --until"), "{error}");
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let now = at("2026-11-24T12:00:00Z");
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        for (text, expected) in [
            ("1h", "2026-11-24T11:00:00Z"),
            ("90s ago", "2026-11-24T11:58:30Z"),
            ("7d", "2026-11-17T12:00:00Z"),
            ("now", "2026-11-24T12:00:00Z"),
            ("2026-11-24T10:15:00Z", "2026-11-24T10:15:00Z"),
            ("2026-11-24T10:15:00.250+01:00", "2026-11-24T09:15:00.250Z"),
            ("2026-11-24", "2026-11-23T22:00:00Z"),
            ("2026-11-24 14:30", "2026-11-24T12:30:00Z"),
            ("2026-11-24T14:30:05", "2026-11-24T12:30:05Z"),
        ] {
            assert_eq!(parse(text, now, &zone).unwrap(), at(expected), "{text}");
        }
        for text in ["", "yesterday", "2026", "24.11.2026", "25:00", "-1h"] {
            assert!(parse(text, now, &zone).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_shown_in_the_reader_s_zone() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let instant = at("2026-11-24T23:00:00.045Z");
        assert_eq!(local(instant, &zone), "2026-11-25 01:00:00");
        assert_eq!(local_precise(instant, &zone), "2026-11-25 01:00:00.045");
        assert_eq!(local_short(instant, &zone), "11-25 01:00:00");
    }

    #[test]
    fn durations_keep_a_readable_precision() {
        assert_eq!(milliseconds(0.42), "0.4 ms");
        assert_eq!(milliseconds(123.4), "123 ms");
        assert_eq!(milliseconds(2400.0), "2.4 s");
    }
}
