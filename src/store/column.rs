//! A column of a row in JSON, as the spool, exports and what the database packs have it. PURE.
//!
//! Changes when a column is written otherwise. Numbers, texts and nulls are what JSON calls so; bytes are an
//! object with their digits: `{"hex":"00ff"}`.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::chain::Value;

/// The one key of an object that stands for bytes.
const HEX: &str = "hex";

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Integer(number) => serializer.serialize_i64(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Blob(bytes) => {
                let mut object = serializer.serialize_map(Some(1))?;
                object.serialize_entry(HEX, &hex(bytes))?;
                object.end()
            }
        }
    }
}

/// A text is not copied where it is written plainly.
impl<'de: 'a, 'a> Deserialize<'de> for Value<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Column;
        impl<'de> Visitor<'de> for Column {
            type Value = Value<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer, a text, null or the digits of bytes")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Value<'de>, E> {
                Ok(Value::Null)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value<'de>, E> {
                Ok(Value::Integer(number))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value<'de>, E> {
                i64::try_from(number).map(Value::Integer).map_err(E::custom)
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Value<'de>, E> {
                Ok(Value::text(text))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Value<'de>, E> {
                Ok(Value::text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value<'de>, A::Error> {
                let key: Option<&str> = object.next_key()?;
                let digits: &str = object.next_value()?;
                match (key, unhex(digits), object.next_key::<&str>()?) {
                    (Some(HEX), Some(bytes), None) => Ok(Value::Blob(bytes.into())),
                    _ => Err(de::Error::custom("no digits of bytes")),
                }
            }
        }
        deserializer.deserialize_any(Column)
    }
}

/// Verifying reads and writes hundreds of digits for each row.
pub(in crate::store) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(if digit < 10 { b'0' + digit } else { b'a' - 10 + digit }));
        }
    }
    text
}

pub(in crate::store) fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(pairs.len());
    let mut seen = 0;
    for &[high, low] in pairs {
        let (high, low) = (digit(high), digit(low));
        // Asked once, at the end: digits come in no order that a processor could foresee.
        seen |= high | low;
        bytes.push(high << 4 | low);
    }
    (seen < 16).then_some(bytes)
}

/// What a digit stands for; [`NO_DIGIT`] for what is none.
fn digit(letter: u8) -> u8 {
    match DIGITS.get(usize::from(letter)) {
        Some(digit) => *digit,
        None => NO_DIGIT,
    }
}

const NO_DIGIT: u8 = 0xff;

#[expect(clippy::indexing_slicing, reason = "at compile time")]
static DIGITS: [u8; 256] = {
    let mut table = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 10 {
        table[(b'0' + value) as usize] = value;
        value += 1;
    }
    while value < 16 {
        table[(b'a' + value - 10) as usize] = value;
        table[(b'A' + value - 10) as usize] = value;
        value += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn digits_are_written_and_read_as_numbers_are(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut digits = String::new();
            bytes.iter().for_each(|byte| write!(digits, "{byte:02x}").unwrap());
            prop_assert_eq!(&hex(&bytes), &digits);
            prop_assert_eq!(unhex(&digits.to_uppercase()), Some(bytes.clone()));
            prop_assert_eq!(unhex(&digits), Some(bytes));
        }

        #[test]
        fn what_is_no_digit_is_not_read(text in "[0-9a-fA-F]{0,6}[\\x00-\\x7fé]{0,2}") {
            let whole = text.len() % 2 == 0 && text.chars().all(|letter| letter.is_ascii_hexdigit());
            prop_assert_eq!(unhex(&text).is_some(), whole, "{}", text);
        }
    }

    #[test]
    fn a_column_is_read_as_it_was_written() {
        for (value, text) in [
            (Value::Null, "null"),
            (Value::Integer(i64::MIN), "-9223372036854775808"),
            (Value::text("plain"), r#""plain""#),
            (Value::text("é\"\n"), r#""é\"\n""#),
            (Value::Blob(vec![0, 255].into()), r#"{"hex":"00ff"}"#),
            (Value::Blob(Vec::new().into()), r#"{"hex":""}"#),
        ] {
            assert_eq!(serde_json::to_string(&value).unwrap(), text);
            assert_eq!(serde_json::from_str::<Value<'_>>(text).unwrap(), value);
        }
    }

    #[test]
    fn what_is_no_column_is_not_read() {
        for text in [
            "true",
            "0.5",
            "9223372036854775808",
            "[]",
            "{}",
            r#"{"hex":null}"#,
            r#"{"hex":"0"}"#,
            r#"{"hex":"0g"}"#,
            r#"{"hex":"00","hex":"00"}"#,
            r#"{"text":"00"}"#,
            r#""a"#,
        ] {
            assert!(serde_json::from_str::<Value<'_>>(text).is_err(), "{text}");
        }
    }
}
