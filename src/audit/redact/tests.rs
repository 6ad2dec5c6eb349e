use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;

const KEYS: [&str; 5] = ["password", "token", "secret", "api_key", "authorization"];

fn redactor(secrets: &[&str]) -> Redactor {
    let keys: Vec<String> = KEYS.iter().map(|key| (*key).to_owned()).collect();
    Redactor::new(&keys, &secrets.iter().map(|secret| Secret::new(*secret)).collect())
}

fn redacted(input: &str) -> String {
    redactor(&["correct horse/battery"]).payload(input.as_bytes(), Strictness::Everything)
}

#[test]
fn what_holds_no_secret_is_copied_byte_for_byte() {
    for text in [
        r#"{"a":1e400,"a":1.0,"b":1234567890123456789012345678901234567890}"#,
        "{ \"x\" :\t[ 1 , -0.5e+3 ,\n true,false , null ] , \"\" : {} , \"e\":[]}",
        r#"{"u":"\u00e9é\ud83d\ude00😀 \/ \b\f\n\r\t \"q\" \\"}"#,
        r#""just a string""#,
        "42",
        r#"{"lone":"\ud800 surrogate"}"#,
        r#"{"basic":"Basic functionality of sk-learn, tasks-and-more"}"#,
        r#"{"nested":"{\"a\": [1, 2.50]}"}"#,
        "not json at all",
        "{\"a\":1} trailing",
        "[1,]",
        "",
    ] {
        assert_eq!(redacted(text), text);
    }
}

#[test]
fn values_under_telling_keys_are_replaced_whatever_they_are() {
    for (input, expected) in [
        (r#"{"password":"x","n":1}"#, r#"{"password":"***","n":1}"#),
        (r#"{"DB_Password": 12, "n":1}"#, r#"{"DB_Password": "***", "n":1}"#),
        (r#"{"a":{"X-API-Key":[1,{"b":"]}"}]},"z":0}"#, r#"{"a":{"X-API-Key":"***"},"z":0}"#),
        (r#"{"accessToken":null}"#, r#"{"accessToken":"***"}"#),
        (r#"{"pass\u0077ord":{"password":"y"} }"#, r#"{"pass\u0077ord":"***" }"#),
        (r#"[{"secret":[]},{"secret":{}}]"#, r#"[{"secret":"***"},{"secret":"***"}]"#),
        (
            r#"{"body":"{\"password\":\"x\",\"n\":1}"}"#,
            r#"{"body":"{\"password\":\"***\",\"n\":1}"}"#,
        ),
    ] {
        assert_eq!(redacted(input), expected, "{input}");
    }
}

#[test]
fn what_looks_like_a_credential_is_replaced() {
    let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl";
    for secret in [
        jwt,
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "github_pat_11ABCDEFG0abcdefghijkl",
        "sk-proj-abcdefghijklmnop1234",
        "xoxb-1234567890-abcdef",
        "AKIAIOSFODNN7EXAMPLE",
        "sy_0123456789abcdef0123456789",
    ] {
        for text in [format!("use {secret}, please"), format!(r#"{{"q":"key={secret}"}}"#)] {
            let out = redacted(&text);
            assert!(!out.contains(secret) && out.contains("***"), "{out}");
        }
    }
    assert_eq!(redacted("Authorization: bEaReR abc.def-123"), "Authorization: bEaReR ***");
    assert_eq!(redacted(r#"["Basic dXNlcjpwYXNz"]"#), r#"["Basic ***"]"#);
    let pem = "a -----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- b";
    assert_eq!(redacted(pem), "a *** b");
    assert_eq!(redacted("a -----BEGIN PRIVATE KEY-----\nMIIE"), "a ***");
}

#[test]
fn only_known_secrets_are_taken_out_of_what_is_kept_in_full() {
    let input = br#"{"password":"x","q":"Bearer correct horse/battery","r":"ghp_abcdefghijklmnopqrstuvwxyz"}"#;
    let out = redactor(&["correct horse/battery"]).payload(input, Strictness::KnownSecrets);
    assert_eq!(out, r#"{"password":"x","q":"Bearer ***","r":"ghp_abcdefghijklmnopqrstuvwxyz"}"#);
}

#[test]
fn a_redactor_does_not_print_what_it_looks_for() {
    assert!(!format!("{:?}", redactor(&["hunter2hunter2"])).contains("hunter2"));
}

#[test]
fn secrets_that_overlap_are_both_replaced() {
    let out = redactor(&["abcd1234", "1234zzzz"]).text("<abcd1234zzzz>", 100);
    assert_eq!(out, "<***>");
}

#[test]
fn a_number_can_be_a_secret() {
    let out = redactor(&["8675309"]).payload(b"{\"pin\":8675309}", Strictness::Everything);
    assert_eq!(out, r#"{"pin":"***"}"#);
}

#[test]
fn long_values_and_records_are_cut_and_say_so() {
    let value = "é".repeat(10_000);
    let out = redacted(&format!(r#"{{"v":"{value}","w":1}}"#));
    assert!(out.ends_with(r#"é…[cut, 20000 bytes]","w":1}"#));
    assert!(out.len() < VALUE_LIMIT + 64);

    let many = format!("[{}]", vec!["\"0123456789\""; 20_000].join(","));
    let out = redacted(&many);
    assert!(out.ends_with(&format!("…[cut, {} bytes]", many.len())));
    assert!(out.len() < RECORD_LIMIT + 64);

    let text = "word ".repeat(50_000);
    let out = redacted(&text);
    assert!(out.ends_with("…[cut, 250000 bytes]") && out.len() < RECORD_LIMIT + 64);
}

#[test]
fn a_secret_across_the_cut_does_not_survive_in_part() {
    let secret = "S3cr3t-across-the-edge-of-what-is-kept";
    for before in VALUE_LIMIT - 40..VALUE_LIMIT + 2 {
        let input = format!(r#"{{"v":"{}{secret}{}"}}"#, "x".repeat(before), "y".repeat(5000));
        let out = redactor(&[secret]).payload(input.as_bytes(), Strictness::KnownSecrets);
        assert!(!out.contains("S3cr3t") && !out.contains("kept"), "{before}");
    }
}

#[test]
fn hostile_inputs_take_linear_time() {
    // Quadratic behaviour would take minutes here.
    for piece in ["sk-", "eyJ", "-----BEGIN ", "Bearer ", "[", "{\"a\":", "\\\"", "aaaaaaaa"] {
        let text = piece.repeat(400_000 / piece.len());
        let out = redactor(&["aaaaaaaaaaaaaaab"]).payload(text.as_bytes(), Strictness::Everything);
        assert!(out.len() < RECORD_LIMIT + 64, "{piece}");
    }
}

/// The ways in which the property plants a secret into a string.
fn plant(secret: &str, way: usize) -> String {
    match way {
        0 => secret.to_owned(),
        1 => STANDARD.encode(secret),
        2 => URL_SAFE_NO_PAD.encode(secret),
        3 | 7 => secret.bytes().fold(String::new(), |mut text, byte| {
            if byte.is_ascii_alphanumeric() || (way == 7 && b"!*~()".contains(&byte)) {
                text.push(char::from(byte));
            } else {
                write!(text, "%{byte:02X}").unwrap();
            }
            text
        }),
        4 => serde_json::to_string(secret).unwrap(),
        5 => STANDARD.encode(format!("user:{secret}")),
        _ => format!("https://u:{secret}@host/?q=1"),
    }
}

fn nest(inner: serde_json::Value, shape: &[u8], key: &str) -> serde_json::Value {
    shape.iter().fold(inner, |value, kind| match kind {
        0 => serde_json::json!([1, value, "x"]),
        1 => serde_json::json!({ "first": 1.5, key: value }),
        _ => serde_json::Value::from(value.to_string()),
    })
}

proptest! {
    #[test]
    fn a_planted_secret_never_survives(
        secret in "[A-Za-z0-9+/=_.~!@#$%^&*()<>?\"\\\\é-]{8,40}",
        way in 0usize..8,
        shape in prop::collection::vec(0u8..3, 0..4),
        key in "[a-z]{1,8}",
        before in "[ a-z]{0,20}",
        as_key in any::<bool>(),
    ) {
        let planted = plant(&secret, way);
        let text = format!("{before}{planted}");
        let inner = if as_key { serde_json::json!({ text.clone(): 1 }) } else { text.clone().into() };
        // One level of JSON in a string is undone by decoding, the next ones by looking inside.
        let strings = shape.iter().filter(|kind| **kind == 2).count();
        prop_assume!(strings <= 2);
        let input = nest(inner, &shape, &key).to_string();
        let redactor = redactor(&[&secret]);
        for strictness in [Strictness::Everything, Strictness::KnownSecrets] {
            let out = redactor.payload(input.as_bytes(), strictness);
            prop_assert!(!out.contains(&secret), "{out}");
            prop_assert!(!out.contains(&planted), "{out}");
            let escaped = serde_json::to_string(&planted).unwrap();
            let escaped = escaped.trim_matches('"');
            prop_assert!(!out.contains(escaped), "{out}");
            prop_assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{out}");
        }
        let out = redactor.text(&text, 1000);
        prop_assert!(!out.contains(&secret), "{out}");
    }

    #[test]
    fn any_json_without_secrets_is_copied(text in "[\\[\\]{}:,\"\\\\a-c0-9 .eE+-]{0,40}") {
        let out = redactor(&[]).payload(text.as_bytes(), Strictness::KnownSecrets);
        prop_assert_eq!(out, text);
    }

    #[test]
    fn the_tokenizer_agrees_with_a_parser(text in "[\\[\\]{}:,\"\\\\a-c0-9 .eE+-]{0,24}") {
        let ours = json::redact(&redactor(&[]), &text, Strictness::KnownSecrets, 0).is_some();
        let theirs = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
        prop_assert_eq!(ours, theirs);
    }
}
