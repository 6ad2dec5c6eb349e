//! [`InputRequired`]: a result that says what the server needs to know before it can go on.
//!
//! Source: specification 2026-07-28, basic/patterns/mrtr.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::object::RawObject;
use super::outgoing::push_string;

/// More questions at once than any client could put to a person.
const REQUESTS: usize = 32;

/// What a server asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRequired {
    /// Its questions.
    pub requests: Vec<InputRequest>,
    /// What it wants back untouched, as JSON.
    state: Option<Bytes>,
}

/// One question of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRequest {
    /// The server's name for it.
    pub key: String,
    /// The method, as a legacy server would have called it.
    pub method: String,
    /// `params` as JSON.
    pub params: Option<Bytes>,
}

impl InputRequired {
    /// Reads a result whose `resultType` is `input_required`.
    ///
    /// # Errors
    /// A text that says what is wrong with it.
    pub fn parse(result: &Bytes) -> Result<Self, String> {
        let text = std::str::from_utf8(result).map_err(|error| error.to_string())?;
        let members = RawObject::parse(text).map_err(|error| error.to_string())?;
        let state = members.get("requestState").map(|raw| result.slice_ref(raw.get().as_bytes()));
        let mut requests = Vec::new();
        if let Some(asked) = members.get("inputRequests").filter(|raw| raw.get() != "null") {
            let asked = RawObject::parse(asked.get())
                .map_err(|error| format!("`inputRequests`: {error}"))?;
            for (key, request) in asked.iter() {
                if requests.len() == REQUESTS {
                    return Err(format!("it asks more than {REQUESTS} questions at once"));
                }
                let request = RawObject::parse(request.get())
                    .map_err(|error| format!("`inputRequests.{key}`: {error}"))?;
                let method = request
                    .get_str("method")
                    .ok_or_else(|| format!("`inputRequests.{key}` has no `method`"))?;
                requests.push(InputRequest {
                    key: key.to_owned(),
                    method: method.into_owned(),
                    params: request.get("params").map(|raw| result.slice_ref(raw.get().as_bytes())),
                });
            }
        }
        if requests.is_empty() && state.is_none() {
            return Err("it has neither `inputRequests` nor `requestState`".to_owned());
        }
        Ok(Self { requests, state })
    }

    /// The parameters of the next try: those of the last with `responses` (one for each request, in
    /// order, as JSON) and the server's state in the place of earlier ones.
    #[must_use]
    pub fn next_params(&self, params: Option<&str>, responses: &[Bytes]) -> Vec<u8> {
        let members = params.and_then(|text| RawObject::parse(text).ok()).unwrap_or_default();
        let mut out = Vec::with_capacity(params.map_or(0, str::len) + 256);
        out.push(b'{');
        for (key, value) in members.iter() {
            if !matches!(key, "inputResponses" | "requestState") {
                push_member(&mut out, key, value.get().as_bytes());
            }
        }
        if !self.requests.is_empty() {
            push_key(&mut out, "inputResponses");
            out.push(b'{');
            for (request, response) in self.requests.iter().zip(responses) {
                push_member(&mut out, &request.key, response);
            }
            out.push(b'}');
        }
        if let Some(state) = &self.state {
            push_member(&mut out, "requestState", state);
        }
        out.push(b'}');
        out
    }
}

fn push_key(out: &mut Vec<u8>, key: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    push_string(out, key);
    out.push(b':');
}

fn push_member(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    push_key(out, key);
    out.extend_from_slice(value);
}

/// `ref` of a completion with another name or address in it; every other byte stays.
#[must_use]
pub fn reference_to(reference: &RawValue, key: &str, value: &str) -> String {
    let members = RawObject::parse(reference.get()).unwrap_or_default();
    let mut out = vec![b'{'];
    for (name, raw) in members.iter() {
        if name == key {
            push_key(&mut out, name);
            push_string(&mut out, value);
        } else {
            push_member(&mut out, name, raw.get().as_bytes());
        }
    }
    out.push(b'}');
    String::from_utf8(out).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &'static str) -> Result<InputRequired, String> {
        InputRequired::parse(&Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn the_next_try_answers_each_question_and_returns_the_state() {
        let asked = parse(
            r#"{"resultType":"input_required","inputRequests":{"a":{"method":"elicitation/create","params":{"n":1.0}},"b":{"method":"roots/list"}},"requestState":"x\u0041"}"#,
        )
        .unwrap();
        assert_eq!(asked.requests[0].method, "elicitation/create");
        assert_eq!(asked.requests[0].params.as_deref(), Some(&br#"{"n":1.0}"#[..]));
        let next = asked.next_params(
            Some(
                r#"{"name":"t","requestState":"old","arguments":{"x": 1e400},"inputResponses":{}}"#,
            ),
            &[r#"{"action":"accept"}"#.into(), r#"{"roots":[]}"#.into()],
        );
        assert_eq!(
            std::str::from_utf8(&next).unwrap(),
            r#"{"name":"t","arguments":{"x": 1e400},"inputResponses":{"a":{"action":"accept"},"b":{"roots":[]}},"requestState":"x\u0041"}"#
        );
        let only_state = parse(r#"{"requestState":"s"}"#).unwrap();
        assert_eq!(only_state.next_params(None, &[]), br#"{"requestState":"s"}"#);
    }

    #[test]
    fn questions_that_make_no_sense_are_refused() {
        for text in [
            "{}",
            r#"{"inputRequests":{}}"#,
            r#"{"inputRequests":[]}"#,
            r#"{"inputRequests":{"a":1}}"#,
            r#"{"inputRequests":{"a":{"params":{}}}}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_reference_keeps_its_other_members() {
        let raw: Box<RawValue> =
            serde_json::from_str(r#"{"type":"ref/prompt", "name":"a__b","title":"T"}"#).unwrap();
        assert_eq!(
            reference_to(&raw, "name", "b"),
            r#"{"type":"ref/prompt","name":"b","title":"T"}"#
        );
    }
}
