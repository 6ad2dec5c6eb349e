use proptest::prelude::*;

use super::*;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn fields<'a>(parent: &'a str, state: &'a str, baggage: &'a str) -> TraceFields<'a> {
    let field = |text: &'a str| (!text.is_empty()).then_some(Cow::Borrowed(text));
    TraceFields { traceparent: field(parent), tracestate: field(state), baggage: field(baggage) }
}

#[test]
fn a_parent_of_version_00_is_read_and_written_to_the_byte() {
    for parent in [
        PARENT,
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        "00-00000000000000000000000000000001-0000000000000001-03",
        // A flag that nobody knows yet is passed on where nothing is recorded.
        "00-ffffffffffffffffffffffffffffffff-ffffffffffffffff-ff",
    ] {
        let context = TraceContext::parse(parent).unwrap();
        assert_eq!(context.to_string(), parent);
        assert_eq!(context.is_sampled(), context.flags() & 1 == 1);
    }
}

/// Cases of the W3C's own test suite (trace-context/test/test.py) among them.
#[test]
fn what_is_no_parent_is_refused() {
    for parent in [
        "",
        "00",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be-like",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0X",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00F067AA0BA902B7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-001",
        "00-4bf92f3577b34da6a3ce929d0e0e47366-00f067aa0ba902b7-1",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-001",
        "0.-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what",
        "FE-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
        " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ",
        "00-4bf92f3577b34da6a3ce929d0e0e47é-00f067aa0ba902b7-01",
    ] {
        assert_eq!(TraceContext::parse(parent), None, "{parent}");
    }
}

#[test]
fn a_later_version_counts_as_far_as_it_is_known() {
    for (parent, known) in [
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", PARENT),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-", PARENT),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-f5-what-the-future", PARENT),
        ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", PARENT),
    ] {
        assert_eq!(TraceContext::parse(parent).unwrap().to_string(), known);
    }
}

#[test]
fn a_span_of_our_own_keeps_the_trace_and_the_known_flags() {
    let theirs = TraceContext::parse(&PARENT.replace("-01", "-ff")).unwrap();
    let ours = theirs.from_span(SpanId::from_bytes([7; 8]).unwrap());
    assert_eq!(ours.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0707070707070707-03");
}

#[test]
fn a_state_is_taken_whole_or_not_at_all() {
    let many = |count: usize| {
        let entries: Vec<String> = (0..count).map(|n| format!("k{n}=v")).collect();
        entries.join(",")
    };
    let (longest, too_long) = ("a".repeat(256), "a".repeat(257));
    for (text, valid) in [
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", true),
        ("fw529a3039@dt=FfffffffCg0ONIWfJ1ts,1a-b*/_@=x", true),
        ("a=1 , \tb=2,,", true),
        ("a= leading", true),
        (&many(32), true),
        (&many(33), false),
        (&format!("{longest}={longest}"), true),
        (&format!("{too_long}=1"), false),
        (&format!("a={too_long}"), false),
        ("", false),
        (", ,", false),
        ("a", false),
        ("a=", false),
        ("=1", false),
        ("a=1,a=2", false),
        ("A=1", false),
        ("a b=1", false),
        ("a=b=c", false),
        ("a=\u{7f}", false),
        ("a=1\r\nx-evil: 1", false),
        ("a=é", false),
    ] {
        let trace = CallerTrace::read(&fields(PARENT, text, "")).unwrap();
        assert_eq!(trace.state.as_deref(), valid.then_some(text), "{text}");
        assert!(trace.context.is_some(), "a bad state does not spoil the parent");
    }
}

#[test]
fn without_a_parent_there_is_no_state_and_baggage_stands_alone() {
    assert_eq!(CallerTrace::read(&fields("nonsense", "a=1", "")), None);
    assert_eq!(CallerTrace::read(&fields("", "a=1", "")), None);
    let trace = CallerTrace::read(&fields("nonsense", "a=1", " user=alice,x=1;p=2 ")).unwrap();
    assert_eq!((trace.context, trace.state), (None, None));
    assert_eq!(trace.baggage.as_deref(), Some("user=alice,x=1;p=2"));
    let long = "b".repeat(BAGGAGE_BYTES + 1);
    for baggage in ["a=1\nb=2", "a=\u{1b}[31m", "a=é", long.as_str()] {
        assert_eq!(CallerTrace::read(&fields("", "", baggage)), None, "{baggage:?}");
    }
}

#[test]
fn a_request_wins_over_what_came_around_it_field_by_field() {
    let other = PARENT.replace("4bf9", "5bf9");
    let around = CallerTrace::read(&fields(&other, "h=1", "from=header")).map(Arc::new);
    let read = |parent, state, baggage| {
        let request = CallerTrace::read(&fields(parent, state, baggage));
        let trace = CallerTrace::of_request(request, around.as_ref()).unwrap();
        let parent = trace.context.unwrap().to_string();
        (
            parent,
            trace.state.as_deref().map(str::to_owned),
            trace.baggage.as_deref() == Some("from=header"),
        )
    };
    // The state goes with its parent: one trace has never the state of another.
    assert_eq!(read(PARENT, "", ""), (PARENT.to_owned(), None, true));
    assert_eq!(read(PARENT, "m=1", "a=1"), (PARENT.to_owned(), Some("m=1".to_owned()), false));
    assert_eq!(read("bad", "m=1", "a=1"), (other.clone(), Some("h=1".to_owned()), false));
    assert_eq!(read("", "", ""), (other, Some("h=1".to_owned()), true));
    assert_eq!(CallerTrace::of_request(None, None), None);
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(trace: [u8; 16], span: [u8; 8], flags: u8) {
        let ids = TraceId::from_bytes(trace).zip(SpanId::from_bytes(span));
        prop_assume!(ids.is_some());
        let (trace, span) = ids.unwrap();
        let context = TraceContext { trace, span, flags };
        let text = context.to_string();
        prop_assert_eq!(&text, &format!("00-{trace}-{span}-{flags:02x}"));
        prop_assert_eq!(TraceContext::parse(&text), Some(context));
        prop_assert_eq!(TraceId::parse(&trace.to_string()), Some(trace));
        prop_assert_eq!(SpanId::parse(&span.to_string()), Some(span));
    }

    /// The rule as the specification writes it, against the parser.
    #[test]
    fn the_parser_is_the_grammar(
        version in "[0-9a-fF]{2}",
        trace in "[0-9a-f]{31,33}|0{32}|[0-9A-F]{32}",
        span in "[0-9a-f]{15,17}|0{16}",
        flags in "[0-9a-fg]{1,3}",
        rest in "|-|-[a-z0-9-]{0,9}|[a-z0-9]{1,3}",
        separator in "-|-|-|_",
    ) {
        let text = format!("{version}-{trace}{separator}{span}-{flags}{rest}");
        let hex = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        // `flags` and `rest` run together where `rest` has no dash.
        let (flags, rest) = match rest.starts_with('-') {
            true => (flags, rest),
            false => (format!("{flags}{rest}"), String::new()),
        };
        let valid = separator == "-"
            && hex(&version, 2)
            && version != "ff"
            && hex(&trace, 32)
            && trace.bytes().any(|b| b != b'0')
            && hex(&span, 16)
            && span.bytes().any(|b| b != b'0')
            && hex(&flags, 2)
            && (version != "00" || rest.is_empty());
        prop_assert_eq!(TraceContext::parse(&text).is_some(), valid, "{}", text);
    }

    #[test]
    fn no_text_is_too_strange(parent: String, state: String, baggage: String) {
        let trace = CallerTrace::read(&fields(&parent, &state, &baggage));
        if let Some(trace) = trace {
            for text in [trace.state.as_deref(), trace.baggage.as_deref()].into_iter().flatten() {
                prop_assert!(text.bytes().all(|b| (0x20..=0x7e).contains(&b) || b == b'\t'));
            }
        }
    }

    #[test]
    fn almost_a_parent_never_panics(at in 0_usize..55, to in any::<char>()) {
        let mut text: Vec<char> = PARENT.chars().collect();
        text[at] = to;
        let text: String = text.into_iter().collect();
        if let Some(context) = TraceContext::parse(&text) {
            prop_assert_eq!(context.to_string().len(), PARENT_BYTES);
        }
    }
}
