//! What the headers of a request say of its trace.
//!
//! Changes when other headers do. What is valid is the model's to say.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};

use crate::model::{self, CallerTrace, TraceFields};

static TRACEPARENT: HeaderName = HeaderName::from_static(model::TRACEPARENT);
static TRACESTATE: HeaderName = HeaderName::from_static(model::TRACESTATE);
static BAGGAGE: HeaderName = HeaderName::from_static(model::BAGGAGE);

/// What is valid of it; `None` for nothing.
pub(super) fn of(headers: &HeaderMap) -> Option<Arc<CallerTrace>> {
    let traceparent = one(headers, &TRACEPARENT);
    let baggage = list(headers, &BAGGAGE);
    // Most requests have neither, and a state alone means nothing.
    if traceparent.is_none() && baggage.is_none() {
        return None;
    }
    let tracestate = list(headers, &TRACESTATE);
    CallerTrace::read(&TraceFields { traceparent, tracestate, baggage }).map(Arc::new)
}

/// The value of a header that must stand once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.to_str().ok().map(Cow::Borrowed))?
}

/// The value of a header that is one list, however many lines it has.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.to_str().ok()?;
    let mut all = Cow::Borrowed(first);
    for value in values {
        let all = all.to_mut();
        all.push(',');
        all.push_str(value.to_str().ok()?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_list_may_have_several_lines_and_a_parent_only_one() {
        let trace = of(&headers(&[
            ("traceparent", PARENT),
            ("tracestate", "a=1"),
            ("tracestate", "b=2"),
            ("baggage", "x=1"),
            ("baggage", "y=2"),
        ]))
        .unwrap();
        assert_eq!(trace.context.unwrap().to_string(), PARENT);
        assert_eq!(trace.state.as_deref(), Some("a=1,b=2"));
        assert_eq!(trace.baggage.as_deref(), Some("x=1,y=2"));
        // Which of the two is meant nobody can say.
        assert_eq!(of(&headers(&[("traceparent", PARENT), ("traceparent", PARENT)])), None);
        assert_eq!(of(&headers(&[])), None);
        let mut strange = headers(&[("traceparent", PARENT)]);
        strange.append("tracestate", http::HeaderValue::from_bytes(b"a=\xff").unwrap());
        assert_eq!(of(&strange).unwrap().state, None);
    }
}
