//! [`RawObject`]: a JSON object as its members, values untouched.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Why bytes are not an object we accept.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Not JSON, not an object, or with a key twice.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

impl ObjectError {
    /// Whether it is JSON all the same: not an object, or with a key twice.
    #[must_use]
    pub fn is_json(&self) -> bool {
        let Self::Json(error) = self;
        error.is_data()
    }
}

/// The members of a JSON object in order, values as the bytes they were.
///
/// A key that stands twice is refused: two readers could take different values from it.
#[derive(Debug, Default)]
pub struct RawObject<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> RawObject<'a> {
    /// Reads an object.
    ///
    /// # Errors
    /// When `json` is not one object, has a key twice, or is followed by anything.
    pub fn parse(json: &'a str) -> Result<Self, ObjectError> {
        Ok(serde_json::from_str(json)?)
    }

    /// The value of `key` as raw JSON.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
    }

    /// The value of `key` when it is a string.
    #[must_use]
    pub fn get_str(&self, key: &str) -> Option<Cow<'a, str>> {
        self.get(key)
            .and_then(|raw| serde_json::from_str::<BorrowedStr<'a>>(raw.get()).ok())
            .map(|s| s.0)
    }

    /// Key and raw value of each member, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), *value))
    }

    /// Whether there are no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A key that differs from `known` only in case, if there is one: a sign of a request that
    /// lenient and strict readers would understand differently.
    #[must_use]
    pub fn miscased(&self, known: &[&'static str]) -> Option<(&str, &'static str)> {
        self.0.iter().find_map(|(key, _)| {
            known
                .iter()
                .find(|name| key.as_ref() != **name && key.eq_ignore_ascii_case(name))
                .map(|name| (key.as_ref(), *name))
        })
    }
}

/// A string that borrows from its source when it has no escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct BorrowedStr<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for RawObject<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = RawObject<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(8);
                // Quadratic below the bound, which real requests never reach; a set above it.
                let mut seen = std::collections::HashSet::new();
                while let Some(key) = map.next_key::<BorrowedStr<'de>>()? {
                    let key = key.0;
                    let duplicate = if members.len() < 32 {
                        members.iter().any(|(name, _)| *name == key)
                    } else {
                        if seen.is_empty() {
                            seen.extend(members.iter().map(|(name, _)| name.clone()));
                        }
                        !seen.insert(key.clone())
                    };
                    if duplicate {
                        return Err(de::Error::custom(format_args!(
                            "the key `{key}` stands twice"
                        )));
                    }
                    members.push((key, map.next_value()?));
                }
                Ok(RawObject(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_to_the_byte() {
        let json = r#"{"a": 1.0, "b":1e400 ,"c":{"x":1,"x":2},"\u0064": 1234567890123456789012345678901234567890}"#;
        let object = RawObject::parse(json).unwrap();
        let values: Vec<_> = object.iter().map(|(k, v)| (k.to_owned(), v.get())).collect();
        assert_eq!(
            values,
            [
                ("a".to_owned(), "1.0"),
                ("b".to_owned(), "1e400"),
                ("c".to_owned(), r#"{"x":1,"x":2}"#),
                ("d".to_owned(), "1234567890123456789012345678901234567890"),
            ]
        );
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        assert!(RawObject::parse(r#"{"a":1,"a":2}"#).is_err());
        assert!(RawObject::parse(r#"{"a":1,"\u0061":2}"#).is_err());
        let many: String = (0..40).map(|n| format!("\"k{n}\":0,")).collect();
        assert!(RawObject::parse(&format!("{{{many}\"z\":1}}")).is_ok());
        assert!(RawObject::parse(&format!("{{{many}\"k3\":1}}")).is_err());
        assert!(RawObject::parse(&format!("{{{many}\"z\":1,\"z\":1}}")).is_err());
    }

    #[test]
    fn trailing_data_and_other_types_are_refused() {
        for json in ["", "[]", "1", "{} {}", "{}x", "{\"a\":}"] {
            assert!(RawObject::parse(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_key_in_the_wrong_case_is_found() {
        let object = RawObject::parse(r#"{"Method":1}"#).unwrap();
        assert_eq!(object.miscased(&["id", "method"]), Some(("Method", "method")));
        let object = RawObject::parse(r#"{"method":1,"x":2}"#).unwrap();
        assert_eq!(object.miscased(&["id", "method"]), None);
    }
}
