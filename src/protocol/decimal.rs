//! JSON numbers compared and written by value, whatever their length.
//!
//! Changes when numbers are needed for more than that.

use serde_json::value::RawValue;

/// A number without exponent is written out up to this many digits, or as many as it was given in.
const WRITTEN_OUT: usize = 64;

/// Whether both are JSON numbers of the same value: `42`, `42.0` and `4.2e1` are.
pub(super) fn same_number(a: &str, b: &str) -> bool {
    match (Decimal::parse(a), Decimal::parse(b)) {
        (Some(a), Some(b)) => a == b,
        // An exponent beyond 64 bits.
        _ => a == b,
    }
}

/// An integer without point and exponent, where it was not given as such and is not much longer
/// then; any other number as it was given.
pub(super) fn plain(number: &str) -> String {
    Decimal::parse(number)
        .and_then(|decimal| decimal.integer(number.len().max(WRITTEN_OUT)))
        .unwrap_or_else(|| number.to_owned())
}

/// Digits that begin and end with another than zero, times a power of ten.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    /// Empty for zero, whose sign and exponent are dropped.
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// Reads a JSON number; `None` for anything else and when the exponent is beyond 64 bits.
    fn parse(text: &str) -> Option<Self> {
        let numeric = text.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        let json: &RawValue = serde_json::from_str(text).ok().filter(|_| numeric)?;
        // Spacing around a number is JSON, and no part of the number.
        if json.get().len() != text.len() {
            return None;
        }
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = [whole, fraction].concat();
        let digits = all.trim_matches('0').to_owned();
        if digits.is_empty() {
            return Some(Self { negative: false, digits, exponent: 0 });
        }
        let zeros = all.len() - all.trim_end_matches('0').len();
        let exponent = exponent
            .parse::<i64>()
            .ok()?
            .checked_sub(i64::try_from(fraction.len()).ok()?)?
            .checked_add(i64::try_from(zeros).ok()?)?;
        Some(Self { negative, digits, exponent })
    }

    /// The digits of an integer, when they are not more than `most`.
    fn integer(&self, most: usize) -> Option<String> {
        if self.digits.is_empty() {
            return Some("0".to_owned());
        }
        let zeros = usize::try_from(self.exponent).ok()?;
        if self.digits.len().checked_add(zeros)? > most {
            return None;
        }
        let sign = if self.negative { "-" } else { "" };
        Some(format!("{sign}{}{}", self.digits, "0".repeat(zeros)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn value_counts_and_not_spelling() {
        for (a, b) in [
            ("42", "42.0"),
            ("42", "4.2e1"),
            ("42", "420E-1"),
            ("-7", "-0.7e+1"),
            ("0", "-0"),
            ("0", "0.00e5"),
            ("100", "1e2"),
            ("9007199254740993", "9007199254740993.0"),
            ("1e99999999999999999999", "1e99999999999999999999"),
        ] {
            assert!(same_number(a, b) && same_number(b, a), "{a} {b}");
        }
        for (a, b) in [
            ("42", "-42"),
            ("42", "43"),
            ("1", "10"),
            ("0.1", "1"),
            ("9007199254740992", "9007199254740993"),
            ("1e400", "1e401"),
            ("42", "042"),
            ("42", "+42"),
            ("42", " 42"),
            ("42", ""),
            ("42", "0x2a"),
            ("42", "42."),
            ("42", "\"42\""),
            ("1e9223372036854775807", "10e9223372036854775807"),
        ] {
            assert!(!same_number(a, b) && !same_number(b, a), "{a} {b}");
        }
    }

    #[test]
    fn integers_are_written_out_and_the_rest_as_given() {
        for (given, written) in [
            ("42", "42"),
            ("-7", "-7"),
            ("1.0", "1"),
            ("1e3", "1000"),
            ("-0", "0"),
            ("-12.50e2", "-1250"),
            ("1.5", "1.5"),
            ("1e400", "1e400"),
            ("1e99999999999999999999", "1e99999999999999999999"),
        ] {
            assert_eq!(plain(given), written);
        }
        let long = "1234567890".repeat(30);
        assert_eq!(plain(&long), long);
    }

    proptest! {
        #[test]
        fn what_is_written_has_the_same_value(
            number in "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,5})?([eE][+-]?[0-9]{1,3})?",
        ) {
            prop_assert!(same_number(&number, &plain(&number)));
        }

        #[test]
        fn integers_are_the_same_when_they_are_equal(a in any::<i128>(), b in any::<i128>(), zeros in 0_usize..9) {
            prop_assert_eq!(same_number(&a.to_string(), &b.to_string()), a == b);
            let shifted = format!("{a}{}e-{zeros}", "0".repeat(zeros));
            prop_assert!(same_number(&a.to_string(), &shifted) || a == 0);
            prop_assert_eq!(plain(&a.to_string()), a.to_string());
        }
    }
}
