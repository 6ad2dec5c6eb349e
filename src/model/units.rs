//! Durations and sizes as people write them in the configuration.

use std::time::Duration;

/// Why a text is not a duration or a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error(
        "`{0}` is not a duration; write seconds as a number, or a number with ms, s, m, h or d, such as 250ms, 30s, 5m, 7d"
    )]
    Duration(String),
    /// Not a size.
    #[error(
        "`{0}` is not a size; write bytes as a number, or a number with KiB, MiB, GiB, KB, MB or GB, such as 64KiB, 4MiB"
    )]
    Size(String),
}

/// Reads a duration: a bare number is seconds, else a number with `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// [`UnitError::Duration`] for anything else, also for negative and absurdly long ones
/// (over 100 years).
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let error = || UnitError::Duration(text.to_owned());
    let (number, unit) = split_unit(text.trim()).ok_or_else(error)?;
    let seconds_per_unit = match unit {
        "ms" => 0.001,
        "" | "s" | "sec" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        "w" => 604_800.0,
        _ => return Err(error()),
    };
    let seconds = number * seconds_per_unit;
    if seconds > 3_155_760_000.0 {
        return Err(error());
    }
    // Rounded to a microsecond, so that 0.1 s is 100 ms and not 100.000001 ms.
    Duration::try_from_secs_f64((seconds * 1e6).round() / 1e6).ok().ok_or_else(error)
}

/// Reads a size in bytes: a bare number, or a number with a binary (`KiB`) or decimal (`KB`) unit.
///
/// # Errors
/// [`UnitError::Size`] for anything else.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let error = || UnitError::Size(text.to_owned());
    let (number, unit) = split_unit(text.trim()).ok_or_else(error)?;
    let factor: f64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" | "k" => 1024.0,
        "mib" | "m" => 1024.0 * 1024.0,
        "gib" | "g" => 1024.0 * 1024.0 * 1024.0,
        "tib" | "t" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err(error()),
    };
    let bytes = (number * factor).round();
    // 2^53: beyond it a float no longer counts bytes.
    if !(0.0..=9_007_199_254_740_992.0).contains(&bytes) {
        return Err(error());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be within 0 and 2^53 just above"
    )]
    Ok(bytes as u64)
}

/// Writes a duration the way [`parse_duration`] reads it, in the largest unit that is exact.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".to_owned(),
        _ if millis.is_multiple_of(86_400_000) => format!("{}d", millis / 86_400_000),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        _ => format!("{millis}ms"),
    }
}

fn split_unit(text: &str) -> Option<(f64, &str)> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let number: f64 = number.parse().ok()?;
    number.is_finite().then_some((number, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_written() {
        for (text, millis) in [
            ("30", 30_000),
            ("1.5", 1_500),
            ("0.1", 100),
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("2 h", 7_200_000),
            ("7d", 604_800_000),
            ("0", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "-1", "5 parsecs", "s", "1e400", "9999999999d", "1..2", "NaN"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_as_written() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64KiB", 65_536),
            ("4MiB", 4_194_304),
            ("1 GB", 1_000_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "-1", "4 bananas", "MiB", "99999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_written_duration_reads_back() {
        for millis in [0, 1, 250, 1000, 90_000, 3_600_000, 86_400_000, 7 * 86_400_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
