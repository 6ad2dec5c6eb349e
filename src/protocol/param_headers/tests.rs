use http::HeaderMap;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn of(schema: &str) -> Result<ParamHeaders, ParamHeaderError> {
    ParamHeaders::of(&format!(r#"{{"name":"t","inputSchema":{schema}}}"#))
}

/// The headers of three properties, one of them nested.
fn three() -> ParamHeaders {
    of(r#"{"type":"object","properties":{
        "region":{"type":"string","x-mcp-header":"Region"},
        "free":{"type":"number"},
        "where":{"type":"object","properties":{
            "zone":{"type":"integer","description":"not x-mcp-header","x-mcp-header":"Zone"}}},
        "dry":{"x-mcp-header":"Dry","type":"boolean"}}}"#)
    .unwrap()
}

fn rendered(headers: &ParamHeaders, arguments: &str) -> HeaderMap {
    headers.render(Some(arguments)).into_iter().collect()
}

fn lines(map: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<_> =
        map.iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
    lines.sort();
    lines
}

fn check(headers: &ParamHeaders, arguments: &str, map: &HeaderMap) -> Result<(), String> {
    headers.check(Some(arguments), |name| HeaderPresence::of(map.get_all(name)))
}

fn checked(arguments: &str, lines: &[(&'static str, &str)]) -> Result<(), String> {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    check(&three(), arguments, &map)
}

#[test]
fn a_definition_without_annotations_has_no_headers() {
    for definition in [
        r#"{"name":"t","inputSchema":{"type":"object"}}"#,
        r#"{"name":"t","description":"about x-mcp-header","inputSchema":{}}"#,
        r#"{"name":"t","outputSchema":{"properties":{"a":{"x-mcp-header":""}}}}"#,
        r#"{"name":"t","inputSchema":{"properties":{"x-mcp-header":{"type":"string"}}}}"#,
        r#"{"name":"t","inputSchema":{"properties":{"a":{"default":{"x-mcp-header":""}}}}}"#,
        r#"{"name":"t","inputSchema":{"$defs":{"A":{"properties":{"x-mcp-header":true}}}}}"#,
        r#"{"name":"t","inputSchema":{"required":["x-mcp-header"],"examples":[{"x-mcp-header":1}]}}"#,
    ] {
        let headers = ParamHeaders::of(definition).unwrap();
        assert!(headers.is_empty(), "{definition}");
        assert!(headers.render(Some(r#"{"a":"b"}"#)).is_empty());
        assert_eq!(headers.check(None, |_| HeaderPresence::Repeated), Ok(()));
    }
}

#[test]
fn every_rule_is_kept() {
    let in_property = |schema: &str| format!(r#"{{"properties":{{"p":{schema}}}}}"#);
    let string = r#"{"type":"string","x-mcp-header":"A"}"#;
    let integer = r#"{"type":"integer","x-mcp-header":"a"}"#;
    let deep = |n: usize| {
        let open = r#"{"properties":{"p":"#.repeat(n);
        format!("{open}{string}{}", "}}".repeat(n))
    };
    let many: Vec<_> =
        (0..65).map(|n| format!(r#""p{n}":{{"type":"string","x-mcp-header":"H{n}"}}"#)).collect();
    for (schema, rule) in [
        (in_property(r#"{"type":"string","x-mcp-header":1}"#), ParamHeaderRule::Text),
        (in_property(r#"{"type":"string","x-mcp-header":null}"#), ParamHeaderRule::Text),
        (in_property(r#"{"type":"string","x-mcp-header":""}"#), ParamHeaderRule::Empty),
        (in_property(r#"{"type":"string","x-mcp-header":"A b"}"#), ParamHeaderRule::Token),
        (in_property(r#"{"type":"string","x-mcp-header":"A:b"}"#), ParamHeaderRule::Token),
        (in_property(r#"{"type":"string","x-mcp-header":"Aé"}"#), ParamHeaderRule::Token),
        (in_property(r#"{"type":"string","x-mcp-header":"A\tb"}"#), ParamHeaderRule::Token),
        (in_property(r#"{"type":"string","x-mcp-header":"A\r\nb"}"#), ParamHeaderRule::Token),
        (in_property(r#"{"type":"number","x-mcp-header":"A"}"#), ParamHeaderRule::Primitive),
        (in_property(r#"{"type":"object","x-mcp-header":"A"}"#), ParamHeaderRule::Primitive),
        (in_property(r#"{"type":"array","x-mcp-header":"A"}"#), ParamHeaderRule::Primitive),
        (in_property(r#"{"type":"null","x-mcp-header":"A"}"#), ParamHeaderRule::Primitive),
        (in_property(r#"{"x-mcp-header":"A"}"#), ParamHeaderRule::Primitive),
        (
            in_property(r#"{"type":["string","null"],"x-mcp-header":"A"}"#),
            ParamHeaderRule::Primitive,
        ),
        (format!(r#"{{"properties":{{"p":{string},"q":{integer}}}}}"#), ParamHeaderRule::Unique),
        (
            format!(r#"{{"properties":{{"q":{{"properties":{{"r":{integer}}}}},"p":{string}}}}}"#),
            ParamHeaderRule::Unique,
        ),
        (r#"{"type":"object","x-mcp-header":"A"}"#.to_owned(), ParamHeaderRule::Reachable),
        (in_property(&format!(r#"{{"items":{string}}}"#)), ParamHeaderRule::Reachable),
        (in_property(&format!(r#"{{"prefixItems":[true,{string}]}}"#)), ParamHeaderRule::Reachable),
        (
            in_property(&format!(r#"{{"items":{}}}"#, in_property(string))),
            ParamHeaderRule::Reachable,
        ),
        (in_property(&format!(r#"{{"anyOf":[{string}]}}"#)), ParamHeaderRule::Reachable),
        (format!(r#"{{"oneOf":[{}]}}"#, in_property(string)), ParamHeaderRule::Reachable),
        (format!(r#"{{"if":{}}}"#, in_property(string)), ParamHeaderRule::Reachable),
        (format!(r#"{{"not":{string}}}"#), ParamHeaderRule::Reachable),
        (format!(r#"{{"$defs":{{"A":{string}}}}}"#), ParamHeaderRule::Reachable),
        (format!(r#"{{"patternProperties":{{"^a":{string}}}}}"#), ParamHeaderRule::Reachable),
        (format!(r#"{{"additionalProperties":{string}}}"#), ParamHeaderRule::Reachable),
        (format!(r#"{{"x-own":{{"y":{string}}}}}"#), ParamHeaderRule::Reachable),
        // A property of this name is no keyword.
        (
            format!(r#"{{"properties":{{"properties":{{"items":{string}}}}}}}"#),
            ParamHeaderRule::Reachable,
        ),
        (deep(65), ParamHeaderRule::Shallow),
        (format!(r#"{{"not":{}}}"#, deep(40)), ParamHeaderRule::Shallow),
        (format!(r#"{{"properties":{{{}}}}}"#, many.join(",")), ParamHeaderRule::Few),
        (format!(r#"{{"properties":{{"p":{string},"p":true}}}}"#), ParamHeaderRule::Readable),
        (r#"["x-mcp-header"]"#.to_owned(), ParamHeaderRule::Readable),
    ] {
        let error = of(&schema).unwrap_err();
        assert_eq!(error.rule, rule, "{schema}");
    }
    assert!(!of(&deep(64)).unwrap().is_empty());
    assert!(of(&format!(r#"{{"properties":{{{}}}}}"#, many[..64].join(","))).is_ok());
    // A property may have any name, also one of a keyword.
    assert!(of(&format!(r#"{{"properties":{{"items":{string}}}}}"#)).is_ok());
}

#[test]
fn an_error_names_property_annotation_and_rule() {
    let nested = r#"{"properties":{"a":{"properties":{"b\n":{"type":"string","x-mcp-header":"My\u0007 X"}}}}}"#;
    assert_eq!(
        of(nested).unwrap_err().to_string(),
        r"the property `a.b\n` has x-mcp-header `My\u{7} X`: it must have only characters that a header's name may have"
    );
    let elsewhere = r#"{"properties":{"a":{"oneOf":[{"x-mcp-header":"X"}]}}}"#;
    assert_eq!(
        of(elsewhere).unwrap_err().to_string(),
        "the property `a.oneOf.0` has x-mcp-header `X`: a chain of `properties` alone must lead to it"
    );
    let long = format!(r#"{{"properties":{{"{}":{{"x-mcp-header":"é"}}}}}}"#, "n".repeat(9999));
    assert!(of(&long).unwrap_err().to_string().len() < 300);
}

#[test]
fn hostile_nesting_is_survived() {
    for (open, close) in [("{\"not\":", "}"), ("{\"properties\":{\"a\":", "}}"), ("[", "]")] {
        let text = format!(
            r#"{{"items":{}{{"x-mcp-header":1}}{}}}"#,
            open.repeat(5000),
            close.repeat(5000)
        );
        assert!(of(&text).is_err());
    }
}

#[test]
fn arguments_become_headers() {
    for (arguments, expected) in [
        (
            r#"{"region":"us west","where":{"zone": 12345678901234567890123 },"dry":false,"free":1}"#,
            vec![
                "mcp-param-dry: false",
                "mcp-param-region: us west",
                "mcp-param-zone: 12345678901234567890123",
            ],
        ),
        (r#"{"region":"Zürich"}"#, vec!["mcp-param-region: =?base64?WsO8cmljaA==?="]),
        (r#"{"region":" a"}"#, vec!["mcp-param-region: =?base64?IGE=?="]),
        (r#"{"region":"a\r\nX: 1"}"#, vec!["mcp-param-region: =?base64?YQ0KWDogMQ==?="]),
        (r#"{"region":"a\tb"}"#, vec!["mcp-param-region: =?base64?YQli?="]),
        (
            r#"{"region":"=?base64?YQ==?="}"#,
            vec!["mcp-param-region: =?base64?PT9iYXNlNjQ/WVE9PT89?="],
        ),
        (r#"{"region":""}"#, vec!["mcp-param-region: "]),
        (r#"{"region":"\u0061"}"#, vec!["mcp-param-region: a"]),
        (r#"{"where":{"zone":1e3}}"#, vec!["mcp-param-zone: 1000"]),
        (r#"{"where":{"zone":-7.0}}"#, vec!["mcp-param-zone: -7"]),
        (r#"{"region":null,"where":{"zone":null}}"#, vec![]),
        (r#"{"region":["a"],"where":7,"dry":{}}"#, vec![]),
        (r#"{"region":"\ud800","dry":true}"#, vec!["mcp-param-dry: true"]),
        (r#"{"where":{"zone":1,"zone":2},"dry":true}"#, vec!["mcp-param-dry: true"]),
        (r#"{"region":"a","region":"b"}"#, vec![]),
        ("{}", vec![]),
        ("null", vec![]),
    ] {
        assert_eq!(lines(&rendered(&three(), arguments)), expected, "{arguments}");
    }
    assert!(three().render(None).is_empty());
}

#[test]
fn headers_that_say_what_the_arguments_say_are_accepted() {
    let (region, zone, dry) = ("mcp-param-region", "mcp-param-zone", "mcp-param-dry");
    for (arguments, headers) in [
        (r#"{"region":"Hello"}"#, vec![(region, "=?base64?SGVsbG8=?=")]),
        (r#"{"region":"Hello"}"#, vec![(region, "Hello")]),
        (r#"{"region":"Hello"}"#, vec![(region, " Hello\t")]),
        (r#"{"region":"SGVsbG8="}"#, vec![(region, "SGVsbG8=")]),
        (r#"{"region":"=?base64?SGVsbG8="}"#, vec![(region, "=?base64?SGVsbG8=")]),
        (r#"{"region":""}"#, vec![(region, "")]),
        (r#"{"region":""}"#, vec![(region, "=?base64??=")]),
        (r#"{"where":{"zone":42}}"#, vec![(zone, "42.0")]),
        (r#"{"where":{"zone":4.2e1}}"#, vec![(zone, "=?base64?NDI=?=")]),
        (r#"{"dry":true}"#, vec![(dry, "true"), ("mcp-param-unknown", "x")]),
        (r#"{"region":null}"#, vec![]),
        (r#"{"where":3}"#, vec![]),
        ("{}", vec![("mcp-param-unknown", "x"), ("mcp-param-unknown", "y")]),
        ("[]", vec![]),
    ] {
        assert_eq!(checked(arguments, &headers), Ok(()), "{arguments} {headers:?}");
    }
    assert_eq!(three().check(None, |_| HeaderPresence::Absent), Ok(()));
}

#[test]
fn headers_that_say_something_else_are_refused() {
    let (region, zone, dry) = ("mcp-param-region", "mcp-param-zone", "mcp-param-dry");
    for (arguments, headers) in [
        (r#"{"region":"Hello"}"#, vec![]),
        (r#"{"region":"Hello"}"#, vec![(region, "hello")]),
        (r#"{"region":"Hello"}"#, vec![(region, "=?base64?SGVsbG8?=")]),
        (r#"{"region":"Hello"}"#, vec![(region, "=?base64?SGVs!!!bG8=?=")]),
        (r#"{"region":"Hello"}"#, vec![(region, "Hello"), (region, "Hello")]),
        (r#"{"region":"Zürich"}"#, vec![(region, "Zürich")]),
        (r#"{"region":""}"#, vec![]),
        (r#"{"region":"a"}"#, vec![(region, "")]),
        (r#"{"region":"42"}"#, vec![(region, "42.0")]),
        (r#"{"where":{"zone":9007199254740993}}"#, vec![(zone, "9007199254740992")]),
        (r#"{"where":{"zone":42}}"#, vec![(zone, "")]),
        (r#"{"where":{"zone":42}}"#, vec![(zone, "0x2a")]),
        (r#"{"where":{"zone":42}}"#, vec![]),
        (r#"{"zone":42}"#, vec![(zone, "42")]),
        (r#"{"where":{"zone":1,"zone":2}}"#, vec![(zone, "1")]),
        (r#"{"dry":true}"#, vec![(dry, "True")]),
        (r#"{"dry":true}"#, vec![(dry, "1")]),
        (r#"{"region":null}"#, vec![(region, "null")]),
        ("{}", vec![(region, "")]),
        (r#"{"region":["a"]}"#, vec![]),
        (r#"{"region":{}}"#, vec![(region, "{}")]),
        (r#"{"region":"\ud800"}"#, vec![(region, "?")]),
        (r#"{"region":"a","region":"b"}"#, vec![(region, "a")]),
    ] {
        assert!(checked(arguments, &headers).is_err(), "{arguments} {headers:?}");
    }
    assert_eq!(
        checked(r#"{"where":{"zone":7}}"#, &[]).unwrap_err(),
        "header mcp-param-zone and argument `where.zone`: the argument is there and the header is not"
    );
}

fn value() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![
        any::<String>().prop_map(serde_json::Value::from),
        "[ -~]{0,12}".prop_map(serde_json::Value::from),
        "=\\?base64\\?[a-zA-Z0-9+/=]{0,8}(\\?=)?".prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<bool>().prop_map(serde_json::Value::from),
        Just(serde_json::Value::Null),
    ]
}

proptest! {
    #[test]
    fn what_is_rendered_is_accepted(a in value(), b in value(), c in value()) {
        let arguments = json!({"region": a, "where": {"zone": b}, "dry": c}).to_string();
        let map = rendered(&three(), &arguments);
        prop_assert_eq!(check(&three(), &arguments, &map), Ok(()));
    }

    #[test]
    fn integers_of_any_length_are_accepted_as_given(digits in "-?[1-9][0-9]{0,80}") {
        let arguments = format!(r#"{{"where":{{"zone":{digits}}}}}"#);
        let map = rendered(&three(), &arguments);
        prop_assert_eq!(map.get("mcp-param-zone").unwrap().to_str().unwrap(), &digits);
        prop_assert_eq!(check(&three(), &arguments, &map), Ok(()));
        let more = format!(r#"{{"where":{{"zone":{digits}1}}}}"#);
        prop_assert!(check(&three(), &more, &map).is_err());
    }

    #[test]
    fn a_changed_value_is_refused(a in value(), b in value()) {
        // Type alone makes no difference to a header: 1, "1" and "=?base64?MQ==?=" as given.
        let text = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => Some(text.clone()),
            serde_json::Value::Null => None,
            other => Some(other.to_string()),
        };
        prop_assume!(text(&a) != text(&b));
        // A header with a number's text agrees with a number of that value.
        prop_assume!(!(b.is_number() && text(&a).is_some_and(|a| same_number(&a, &b.to_string()))));
        let map = rendered(&three(), &json!({"region": a}).to_string());
        let answer = check(&three(), &json!({"region": b}).to_string(), &map);
        prop_assert!(answer.is_err());
    }

    #[test]
    fn a_header_of_any_bytes_is_accepted_for_its_own_text_alone(
        bytes in prop::collection::vec(any::<u8>(), 0..24), a in any::<String>(),
    ) {
        let arguments = json!({"region": a}).to_string();
        let answer = three().check(Some(&arguments), |name| match name.as_str() {
            "mcp-param-region" => HeaderPresence::Once(&bytes),
            _ => HeaderPresence::Absent,
        });
        if answer.is_ok() {
            let text = decode_header(std::str::from_utf8(&bytes).unwrap()).unwrap().into_owned();
            prop_assert_eq!(json!(text), a);
        }
    }

    #[test]
    fn any_schema_is_survived(text in "[\\[\\]{}\":,a]{0,12}|(\\{\"(properties|items|a)\":){1,4}\\{\"x-mcp-header\":\"a\"\\}{1,6}") {
        if let Ok(headers) = of(&text) {
            let _ = headers.render(Some("{}"));
        }
    }
}
