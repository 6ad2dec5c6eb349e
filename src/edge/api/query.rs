//! [`Asked`]: the parameters of a request, and what is wrong with them in our words.
//!
//! Changes when parameters are read differently. Which there are is their routes'.

use axum::extract::{FromRequestParts, Query};
use http::Uri;
use http::request::Parts;
use serde::de::value::Error as Unread;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use url::form_urlencoded;

use crate::edge::error::ApiError;
use crate::model::{Timestamp, cut_after, nearest};

/// Rows of a page at most.
const LARGEST_PAGE: u16 = 1000;

/// The parameters of a request.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        read(&parts.uri).map(Self)
    }
}

/// The parameters of a request for `uri`. All that there are must be texts: what else they have to be, their
/// routes say.
pub(super) fn read<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    read_beside(uri, &[])
}

/// The same where the path has parameters beside these, which were read before and are not in `uri`.
pub(super) fn read_beside<T: DeserializeOwned>(uri: &Uri, own: &[&str]) -> Result<T, ApiError> {
    let names = names::<T>();
    let all = || names.iter().chain(own).copied();
    let listed = || all().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let mut seen = Vec::new();
    for (name, _) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        if !names.contains(&name.as_ref()) {
            let like = nearest(&name, all(), 1);
            let hint = like.first().map_or_else(String::new, |n| format!(" did you mean `{n}`?"));
            return Err(ApiError::invalid(format!(
                "`{}` is no parameter of this path;{hint} there are {}",
                cut_after(&name, 64),
                listed()
            )));
        }
        if seen.contains(&name) {
            return Err(ApiError::invalid(format!("`{name}` is there twice")));
        }
        seen.push(name);
    }
    let read = Query::try_from_uri(uri).map(|Query(query)| query);
    read.map_err(|_unread| {
        ApiError::invalid(format!("the query cannot be read; there are {}", listed()))
    })
}

/// How many rows a page has.
pub(super) fn limit(text: Option<&str>, otherwise: u16) -> Result<u16, ApiError> {
    let Some(text) = text else { return Ok(otherwise) };
    let limit = text.parse().ok().filter(|limit| (1..=LARGEST_PAGE).contains(limit));
    limit.ok_or_else(|| {
        let text = cut_after(text, 64);
        ApiError::invalid(format!("`limit`: `{text}` is not a number from 1 to {LARGEST_PAGE}"))
    })
}

/// Refuses a span that ends before it begins.
pub(super) fn span(since: Option<Timestamp>, until: Option<Timestamp>) -> Result<(), ApiError> {
    match (since, until) {
        (Some(since), Some(until)) if since > until => {
            Err(ApiError::invalid(format!("`since` ({since}) is later than `until` ({until})")))
        }
        _ => Ok(()),
    }
}

/// The names of all fields of `T`.
fn names<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names = Names(&[]);
    // It never gives a value: it only hears which fields are wanted.
    drop(T::deserialize(&mut names));
    names.0
}

struct Names(&'static [&'static str]);

impl<'de> Deserializer<'de> for &mut Names {
    type Error = Unread;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Unread> {
        self.0 = fields;
        Err(Unread::custom("only the names were wanted"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Unread> {
        Err(Unread::custom("not a structure"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Parameters {
        server: Option<String>,
        limit: Option<String>,
    }

    fn asked(query: &str) -> Result<Parameters, String> {
        let uri = format!("/x?{query}").parse().unwrap();
        read(&uri).map_err(|error| error.detail)
    }

    #[test]
    fn parameters_are_read_and_others_refused_with_those_that_there_are() {
        let some = asked("server=a%20b&limit=5").unwrap();
        assert_eq!((some.server.as_deref(), some.limit.as_deref()), (Some("a b"), Some("5")));
        assert!(asked("").is_ok());
        for (query, expected) in [
            ("limits=5", "did you mean `limit`? there are `server`, `limit`"),
            ("xyzzy=5", "`xyzzy` is no parameter of this path; there are `server`, `limit`"),
            ("limit=5&limit=6", "`limit` is there twice"),
        ] {
            let error = asked(query).unwrap_err();
            assert!(error.contains(expected), "{query}: {error}");
        }
        let uri = "/x?event=true".parse().unwrap();
        let error = read_beside::<Parameters>(&uri, &["events"]).unwrap_err().detail;
        assert!(
            error.contains("did you mean `events`? there are `server`, `limit`, `events`"),
            "{error}"
        );
    }

    #[test]
    fn a_limit_has_bounds_and_a_span_a_direction() {
        for (text, expected) in [(None, 100), (Some("1"), 1), (Some("1000"), 1000)] {
            assert_eq!(limit(text, 100).ok(), Some(expected));
        }
        for text in ["0", "1001", "5000", "x", "-1", "", "70000"] {
            let error = limit(Some(text), 100).unwrap_err().detail;
            assert_eq!(error, format!("`limit`: `{text}` is not a number from 1 to 1000"));
        }
        let at = |millis| Some(Timestamp::from_millis(millis));
        assert!(
            span(at(1), at(1)).is_ok() && span(at(2), None).is_ok() && span(None, at(1)).is_ok()
        );
        assert!(span(at(2), at(1)).unwrap_err().detail.contains("later than `until`"));
    }
}
