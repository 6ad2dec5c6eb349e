use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

use serde_json::{Value, json};

use super::json::{self, Scope};
use super::redactor::{RECORD_LIMIT, VALUE_LIMIT};
use super::*;
use crate::model::{CUT, Secret};

const KEYS: [&str; 5] = ["password", "token", "secret", "api_key", "authorization"];

fn redactor(secrets: &[&str]) -> Redactor {
    let keys: Vec<String> = KEYS.iter().map(|key| (*key).to_owned()).collect();
    Redactor::new(&keys, &secrets.iter().map(|secret| Secret::new(*secret)).collect())
}

fn redacted(input: &str) -> String {
    redactor(&["correct horse/battery"])
        .payload(Payload::whole(input.as_bytes()), Strictness::Everything)
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
        (r#"{"accessToken":"n"}"#, r#"{"accessToken":"***"}"#),
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
fn names_that_are_values_count_too() {
    for (input, expected) in [
        (r#"["a","--password","S","b"]"#, r#"["a","--password","***","b"]"#),
        (r#"["--api-key","--x","--api-key=S b"]"#, r#"["--api-key","--x","--api-key=***"]"#),
        (
            r#"[["Authorization","S"],["X-Api-Key", "S" ],["Token",1],["n","v"]]"#,
            r#"[["Authorization","***"],["X-Api-Key", "***" ],["Token","***"],["n","v"]]"#,
        ),
        (r#"{"a":["--password"],"b":["c"]}"#, r#"{"a":["--password"],"b":["c"]}"#),
        (r#"["token","b","c"]"#, r#"["token","b","c"]"#),
        (r#"["--max-tokens","256","--token",7]"#, r#"["--max-tokens","256","--token","***"]"#),
        (r#"{"name":"API_KEY","value":"S"}"#, r#"{"name":"API_KEY","value":"***"}"#),
        (
            r#"{"Value":"S","n":{"Value":"T"},"Key":"secret"}"#,
            r#"{"Value":"***","n":{"Value":"T"},"Key":"secret"}"#,
        ),
        (
            r#"[{"header":"x-token","value":{"a":["S"]}},1]"#,
            r#"[{"header":"x-token","value":"***"},1]"#,
        ),
        (r#"{"field":"password","content":"S"}"#, r#"{"field":"password","content":"***"}"#),
        (r#"{"content":5,"field":"password"}"#, r#"{"content":"***","field":"password"}"#),
        (r#"{"name":"get_token","content":"text"}"#, r#"{"name":"get_token","content":"text"}"#),
        (r#"{"value":true,"name":"token"}"#, r#"{"value":true,"name":"token"}"#),
        (r#"{"name":"max_tokens","value":256}"#, r#"{"name":"max_tokens","value":256}"#),
        (
            r#"{"value":"S","a":[{"value":"S","name":"token"}],"name":"token"}"#,
            r#"{"value":"***","a":[{"value":"***","name":"token"}],"name":"token"}"#,
        ),
        (r#"{"name":"n","value":"S"}"#, r#"{"name":"n","value":"S"}"#),
    ] {
        assert_eq!(redacted(input), expected, "{input}");
    }
    let part = br#"{"a":{"value":"S3cr3t","name":"tok"#;
    let part = Payload { start: part, whole: 100, pointers: None };
    let out = redactor(&[]).payload(part, Strictness::Everything);
    assert!(!out.contains("S3cr3t"), "{out}");
}

#[test]
fn what_is_no_secret_stays_under_a_telling_name() {
    for text in [
        r#"{"max_tokens":256,"usage":{"prompt_tokens":3,"totalTokenCount":12,"tokens":1.5}}"#,
        r#"{"prompt_tokens_details":{"cached_tokens":1,"audio_tokens":0}}"#,
        r#"{"password":null,"has_token":true,"password_set":false}"#,
    ] {
        assert_eq!(redacted(text), text);
    }
    assert_eq!(redacted(r#"{"password":123456}"#), r#"{"password":"***"}"#);
    assert_eq!(redacted(r#"{"tokens":["a"]}"#), r#"{"tokens":"***"}"#);
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
        "ya29.a0AfB_byC1234567890abcdef",
        "SG.abcdefghijklmnopqrstuv.0123456789abcdefghijklmnop",
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
fn certificates_and_public_keys_stay() {
    let of =
        |label: &str| format!("-----BEGIN {label}-----\nMIIBszCCAVmg\n-----END {label}-----\n");
    let (public, certificate) = (of("PUBLIC KEY"), of("CERTIFICATE"));
    let text = format!("{certificate}{public}{certificate} b");
    assert_eq!(redactor(&[]).text(&text, 1000), text);
    let text = format!("{certificate}{}{public}", of("PRIVATE KEY"));
    assert_eq!(redactor(&[]).text(&text, 1000), format!("{certificate}***\n{public}"));
    let text = format!("{certificate} Bearer abcdefgh12");
    assert_eq!(redactor(&["IBszCC"]).text(&text, 1000).matches("***").count(), 2);
    let many = "-----BEGIN CERTIFICATE-----".repeat(20_000);
    assert_eq!(redactor(&[]).text(&many, usize::MAX), many);
}

#[test]
fn names_count_in_texts_too() {
    for (text, expected) in [
        ("no `{\"api_key\": \"abc\"}` here", "no `{\"api_key\": \"***\"}` here"),
        ("https://h/p?access_token=abc&x=1", "https://h/p?access_token=***&x=1"),
        ("at https://alice:hunter2@host/x", "at https://***@host/x"),
        ("http://host:8300/x@y and a@b.c", "http://host:8300/x@y and a@b.c"),
    ] {
        assert_eq!(redactor(&[]).text(text, 1000), expected);
    }
    let known = Payload::whole(br#"{"q":"token=abc"}"#);
    assert_eq!(redactor(&[]).payload(known, Strictness::KnownSecrets), r#"{"q":"token=abc"}"#);
}

#[test]
fn a_secret_of_several_lines_is_found_line_by_line() {
    let key = "-----BEGIN KEY-----\nAAAAbbbbCCCC1234\nshort\nDDDDeeeeFFFF5678\n-----END KEY-----\n";
    let redactor = redactor(&[key]);
    assert_eq!(redactor.text("read DDDDeeeeFFFF5678.", 100), "read ***.");
    assert_eq!(redactor.text("a short line", 100), "a short line");
}

#[test]
fn the_beginning_of_a_secret_before_a_cut_is_taken_out() {
    let secret = "S3cr3t/of the-server+ü";
    let redactor = redactor(&[secret]);
    // The other ways put something before the secret.
    for way in [0, 1, 2, 3, 4, 7, 8, 9] {
        let (form, telling) = (plant(secret, way), if way == 9 { 24 } else { 8 });
        for length in (telling..form.len()).filter(|length| form.is_char_boundary(*length)) {
            let text = format!("said {}{CUT} and so on", form.get(..length).unwrap());
            let out = redactor.text(&text, 1000);
            let left = out.strip_prefix("said ").unwrap();
            assert!(!left.starts_with(form.get(..8).unwrap()), "{text} -> {out}");
        }
    }
    for (text, expected) in [
        ("a ghp_abc… b", "a ***… b"),
        ("a Bearer abc…", "a Bearer ***…"),
        ("a eyJhbGciOi… b", "a ***… b"),
        ("said S3c… b", "said S3c… b"),
    ] {
        assert_eq!(redactor.text(text, 1000), expected);
    }
}

#[test]
fn a_payload_whose_end_is_missing_keeps_what_is_whole() {
    let redactor = redactor(&["known-secret"]);
    let whole = format!(r#"{{"n":1,"password":"{}","m":"{}"}}"#, "x".repeat(500), "z".repeat(500));
    // But for the bracket at the end, a value is missing.
    for length in 0..whole.len() - 1 {
        let part = Payload {
            start: &whole.as_bytes()[..length],
            whole: whole.len() as u64,
            pointers: None,
        };
        let out = redactor.payload(part, Strictness::Everything);
        assert!(!out.contains('x') && !out.contains('z'), "{length}: {out}");
        assert!(out.ends_with(&format!("…[cut, {} bytes]", whole.len())), "{out}");
        if length > 20 {
            assert!(out.starts_with(r#"{"n":1,"password":"***""#), "{length}: {out}");
        }
    }
    let number = Payload { start: br#"{"n":12"#, whole: 100, pointers: None };
    let out = redactor.payload(number, Strictness::KnownSecrets);
    assert_eq!(out, r#"{"n":…[cut, 100 bytes]"#);
}

fn pointed(input: &str, pointers: &[&str]) -> String {
    let pointers = Pointers::new(pointers.iter().copied()).unwrap();
    let payload =
        Payload { pointers: Some(pointers.arguments()), ..Payload::whole(input.as_bytes()) };
    redactor(&[]).payload(payload, Strictness::KnownSecrets)
}

#[test]
fn what_a_pointer_names_is_replaced_and_nothing_else() {
    for (pointer, input, expected) in [
        ("/a/b", r#"{"a":{"b":{"c":[1]},"d":2},"b":3}"#, r#"{"a":{"b":"***","d":2},"b":3}"#),
        ("/a/1", r#"{"a":[0,[1],2],"b":1}"#, r#"{"a":[0,"***",2],"b":1}"#),
        (
            "/a/*/t",
            r#"{"a":[{"t":1},{"u":2},{"t":{}}]}"#,
            r#"{"a":[{"t":"***"},{"u":2},{"t":"***"}]}"#,
        ),
        (
            "/*/t",
            r#"{"a":{"t":1},"b":{"t":2},"t":3}"#,
            r#"{"a":{"t":"***"},"b":{"t":"***"},"t":3}"#,
        ),
        ("/a~1b/~0", r#"{"a/b":{"~":1},"a":1}"#, r#"{"a/b":{"~":"***"},"a":1}"#),
        ("/\u{e9}", r#"{"\u00e9":1,"é":2}"#, r#"{"\u00e9":"***","é":"***"}"#),
        ("/a", r#" { "a" : 1 , "a" : [ 2 ] } "#, r#" { "a" : "***" , "a" : "***" } "#),
        (
            "/body/pin",
            r#"{"body":"{\"pin\":1,\"n\":2}"}"#,
            r#"{"body":"{\"pin\":\"***\",\"n\":2}"}"#,
        ),
        ("/body/pin", r#"{"body":"{\"pin\":1} {","n":"{"}"#, r#"{"body":"***","n":"{"}"#),
        ("/a/b/c", r#"{"a":{"b":1}}"#, r#"{"a":{"b":1}}"#),
        ("/", r#"{"":1,"a":{"":2}}"#, r#"{"":"***","a":{"":2}}"#),
    ] {
        assert_eq!(pointed(input, &[pointer]), expected, "{pointer}");
    }
    assert_eq!(pointed("no JSON", &["/a"]), "***");
}

#[test]
fn in_results_pointers_begin_where_there_is_structure() {
    let pointers = Pointers::new(["/user/mail"]).unwrap();
    let user = json!({ "user": { "mail": "a@b.c", "n": 1 } });
    let input = json!({
        "content": [
            { "type": "text", "text": user.to_string() },
            { "type": "text", "text": "just words" },
            { "type": "text", "text": format!("\n {user}") },
            { "type": "text", "text": format!("{user}\n{user}") },
            { "type": "resource", "resource": { "uri": "x:y", "text": user.to_string() } },
        ],
        "structuredContent": user,
        "user": { "mail": "a@b.c" },
        "other": { "user": { "mail": "stays" } },
    });
    let input = input.to_string();
    let payload =
        Payload { pointers: Some(pointers.results()), ..Payload::whole(input.as_bytes()) };
    let out = redactor(&[]).payload(payload, Strictness::KnownSecrets);
    assert!(!out.contains("a@b.c") && out.contains("stays") && out.contains("just words"), "{out}");
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["content"][3]["text"], "***", "it cannot be told what is where");
    assert_eq!(value["structuredContent"]["user"]["n"], 1);
    let error = r#"{"code":-1,"message":"m","data":{"user":{"mail":"a@b.c"}}}"#;
    let payload =
        Payload { pointers: Some(pointers.results()), ..Payload::whole(error.as_bytes()) };
    let out = redactor(&[]).payload(payload, Strictness::Everything);
    assert!(!out.contains("a@b.c") && out.contains("-1"), "{out}");
}

#[test]
fn lines_of_a_log_stay_lines_and_json() {
    let redactor = redactor(&["known-secret"]);
    let line = "{\"level\":\"INFO\",\"message\":\"-----BEGIN X\\nknown-secret\",\"n\":1}\n";
    let out = redactor.log_lines(line);
    assert_eq!(out, "{\"level\":\"INFO\",\"message\":\"***\",\"n\":1}\n");
    assert_eq!(redactor.log_lines("INFO a known-secret\n"), "INFO a ***\n");
    assert_eq!(redactor.log_lines("a -----BEGIN X\nabc\n"), "a ***\n");
    let mut written = Vec::new();
    let in_force = InForce::default();
    in_force.set(redactor);
    LogLines::new(in_force.clone(), &mut written).write_all(line.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(written).unwrap(), out);
    assert_eq!(in_force.text("a known-secret"), "a ***");
    assert_eq!(format!("{in_force:?}"), "InForce");
}

#[test]
fn only_known_secrets_are_taken_out_of_what_is_kept_in_full() {
    let input = br#"{"password":"x","q":"Bearer correct horse/battery","r":"ghp_abcdefghijklmnopqrstuvwxyz"}"#;
    let out = redactor(&["correct horse/battery"])
        .payload(Payload::whole(input), Strictness::KnownSecrets);
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
    let out = redactor(&["8675309"])
        .payload(Payload::whole(b"{\"pin\":8675309}"), Strictness::Everything);
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
        let out =
            redactor(&[secret]).payload(Payload::whole(input.as_bytes()), Strictness::KnownSecrets);
        assert!(!out.contains("S3cr3t") && !out.contains("kept"), "{before}");
    }
}

/// How long a hostile text is, with `SWITCHYARD_TEST_FULL=1` five times as long. Both tell what is
/// quadratic, which takes minutes.
#[allow(clippy::disallowed_methods, reason = "whoever runs the tests says how much they do")]
pub(super) fn hostile_length() -> usize {
    let full = std::env::var("SWITCHYARD_TEST_FULL").is_ok_and(|value| value == "1");
    if full { 2_000_000 } else { 400_000 }
}

/// What `work` gives, which may take the processor so long as what is linear does on a slow machine.
#[track_caller]
pub(super) fn in_linear_time<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let began = now();
    let done = work();
    let took = now() - began;
    assert!(took < Duration::from_secs(20), "{what}: {took:?}");
    done
}

#[test]
fn hostile_inputs_take_linear_time() {
    for piece in ["sk-", "eyJ", "-----BEGIN ", "Bearer ", "[", "{\"a\":", "\\\"", "aaaaaaaa"] {
        let text = piece.repeat(400_000 / piece.len());
        let redactor = redactor(&["aaaaaaaaaaaaaaab"]);
        let payload = Payload::whole(text.as_bytes());
        let out = in_linear_time(piece, || redactor.payload(payload, Strictness::Everything));
        assert!(out.len() < RECORD_LIMIT + 64, "{piece}");
    }
    // What is shown of servers is read to its end.
    let pieces = [
        "eyJ.",
        "eyJa.b.c.",
        "eyJ-_",
        "__ghp_",
        "__eyJ",
        "basic/",
        "bearer/",
        "Basic a/",
        "sk-.",
        "://a:",
        "x=y;",
    ];
    for piece in pieces {
        let text = piece.repeat(hostile_length() / piece.len());
        let redactor = redactor(&["aaaaaaaaaaaaaaab"]);
        let out = in_linear_time(piece, || redactor.text(&text, usize::MAX));
        assert!(out.len() <= text.len(), "{piece}");
    }
}

#[test]
fn a_credential_behind_its_scheme_ends_where_the_word_does() {
    for (text, expected) in [
        ("sent Bearer aaa1!bbb, then", "sent Bearer ***, then"),
        ("sent Bearer aaaaaaaa!bbb(c then", "sent Bearer *** then"),
        ("a 'Bearer abcdefgh12$x' b", "a 'Bearer ***' b"),
        ("x=Bearer abcdefgh12&y=1", "x=Bearer ***&y=1"),
        ("(Bearer abcdefgh12)", "(Bearer ***)"),
        ("Bearer abcdefgh12$x\\nHost: a", "Bearer ***\\nHost: a"),
        ("<b>Bearer abcdefgh12</b>", "<b>Bearer ***</b>"),
        ("Bearer abcdefgh!x\u{2026}", "Bearer ***\u{2026}"),
        ("the bearer of (bad) news!", "the bearer of (bad) news!"),
        ("Bearer realm=\"a1\"", "Bearer realm=\"a1\""),
    ] {
        assert_eq!(redactor(&[]).text(text, 1000), expected, "{text}");
    }
}

#[test]
fn what_shells_write_is_a_known_secret_too() {
    for (secret, text) in [
        ("p@ss word", r"p\@ss\ word"),
        ("p@ss word", r"p@ss\ word"),
        ("a;b(c)d'e", r"a\;b\(c\)d\'e"),
        ("caf\u{e9} au lait", r"$'caf\303\251 au lait'"),
        ("two\nlines", r"$'two\nlines'"),
    ] {
        let out = redactor(&[secret]).text(&format!("set {text} x"), 1000);
        let marks = text.strip_prefix("$'").map_or(("", ""), |_| ("$'", "'"));
        assert_eq!(out, format!("set {}***{} x", marks.0, marks.1), "{text}");
    }
    let regex = r"matches \(a\|b\)\[c\] and C:\Users\x";
    assert_eq!(redactor(&["p@ss word"]).text(regex, 1000), regex);
}

#[test]
fn hex_and_base32_are_known_in_either_case() {
    for (secret, text) in [
        ("deadbeef01", "DEADBEEF01"),
        ("DEADBEEF01", "deadbeef01"),
        ("0123abcd-89ab-cdef", "0123ABCD-89AB-CDEF"),
        ("JBSWY3DPEHPK3PXP", "jbswy3dpehpk3pxp"),
        ("jbswy3dpehpk3pxp", "JBSWY3DPEHPK3PXP"),
    ] {
        assert_eq!(redactor(&[secret]).text(&format!("<{text}>"), 100), "<***>", "{text}");
    }
    // A word is not caseless, nor is what has other letters.
    assert_eq!(redactor(&["deadbeef"]).text("DEADBEEF", 100), "DEADBEEF");
    assert_eq!(redactor(&["hunter8888"]).text("HUNTER8888", 100), "HUNTER8888");
}

#[test]
fn keys_are_found_behind_the_name_of_a_server() {
    for (text, expected) in [
        ("no tool `web__ghp_abcdefghij0123456789`", "no tool `web__***`"),
        ("web__npm_list_all_the_packages_of_it", "web__npm_list_all_the_packages_of_it"),
        ("my_hf_abcdefghij0123456789abc", "my_hf_abcdefghij0123456789abc"),
    ] {
        assert_eq!(redactor(&[]).text(text, 1000), expected);
    }
}

#[test]
fn a_secret_is_found_however_often_it_was_escaped() {
    let secret = "pass\"w\\or\\\"d";
    let mut text = secret.to_owned();
    for times in 1..=4 {
        text = Value::from(text).to_string();
        let out = redactor(&[secret]).text(&format!("say {text} then"), 10_000);
        assert!(!out.contains("pass") && out.ends_with(" then"), "{times}: {out}");
    }
}

#[test]
fn tokens_are_found_by_their_first_parts() {
    for (text, expected) in [
        ("eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.sig and", "*** and"),
        ("eyJhbGciOiJub25lIn0.x.sign-ature.more", "***"),
        ("eyJhbGciOiJub25lIn0.e\u{2026}", "***\u{2026}"),
        ("eyJhbGciOi\u{2026}", "***\u{2026}"),
        ("eyJ.a.b.eyJ", "eyJ.a.b.eyJ"),
        ("eyJhbGciOiJub25lIn0 alone", "eyJhbGciOiJub25lIn0 alone"),
    ] {
        assert_eq!(redactor(&[]).text(text, 1000), expected);
    }
}

#[test]
fn a_line_of_the_log_stays_escaped_and_whole() {
    let hostile = "Bearer abcdefgh12 \u{9b}31m\u{202e}\u{2028}x";
    let long = "y".repeat(3 * RECORD_LIMIT);
    let line = crate::model::escape_json(&json!({ "error": hostile, "text": long }).to_string())
        .into_owned()
        + "\n";
    let out = redactor(&[]).log_lines(&line);
    assert_eq!(out, crate::model::escape_json(&out));
    let read: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(read["error"], "Bearer *** \u{9b}31m\u{202e}\u{2028}x");
    assert_eq!(read["text"], long);
    assert!(out.ends_with("}\n"));
}

/// The ways in which the property plants a secret into a string.
fn plant(secret: &str, way: usize) -> String {
    match way {
        0 => secret.to_owned(),
        1 => STANDARD.encode(secret),
        2 => URL_SAFE_NO_PAD.encode(secret),
        8 => secret.bytes().map(|byte| format!("{byte:02X}")).collect(),
        9 => {
            let escaped = |unit: u16| format!("\\u{unit:04X}");
            secret.encode_utf16().map(escaped).collect::<String>()
        }
        // A document in a string in a document in a string.
        10 => Value::from(json!({ "a": secret }).to_string()).to_string(),
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

fn nest(inner: Value, shape: &[u8], key: &str) -> Value {
    shape.iter().fold(inner, |value, kind| match kind {
        0 => json!([1, value, "x"]),
        1 => json!({ "first": 1.5, key: value }),
        _ => Value::from(value.to_string()),
    })
}

/// A document, a pointer to one of its values, and that value's text.
fn document_and_place() -> impl Strategy<Value = (Value, Vec<prop::sample::Index>)> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z~/{\\[\"é]{0,6}".prop_map(Value::from),
    ];
    let document = leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(Value::from),
            prop::collection::btree_map("[a-c~/*0é\"]{0,3}", inner, 1..4)
                .prop_map(|members| members.into_iter().collect::<Value>()),
        ]
    });
    (document, prop::collection::vec(any::<prop::sample::Index>(), 1..5))
}

/// Plants `marker` all over the value at the place that the choices lead to; its pointer, in which
/// some steps are `*`.
fn planted(document: &mut Value, choices: &[prop::sample::Index], stars: u8) -> Option<String> {
    let (mut pointer, mut exact) = (String::new(), String::new());
    for (depth, choice) in choices.iter().enumerate() {
        let step = match document.pointer(&exact).unwrap() {
            Value::Array(elements) if !elements.is_empty() => {
                choice.index(elements.len()).to_string()
            }
            Value::Object(members) if !members.is_empty() => {
                let key = members.keys().nth(choice.index(members.len())).unwrap();
                key.replace('~', "~0").replace('/', "~1")
            }
            _ => break,
        };
        exact += &format!("/{step}");
        pointer += "/";
        pointer += if stars & (1 << depth) == 0 { &step } else { "*" };
    }
    let marker = "MARKER";
    *document.pointer_mut(&exact).unwrap() =
        json!({ "x": [marker, { marker: format!("{{\"{marker}\":1}}") }], "y": marker });
    (!pointer.is_empty()).then_some(pointer)
}

proptest! {
    #[test]
    fn a_value_at_a_pointer_never_survives(
        (mut document, choices) in document_and_place(),
        stars in any::<u8>(),
        spaces in any::<bool>(),
        levels in 0usize..3,
    ) {
        let Some(pointer) = planted(&mut document, &choices, stars) else { return Ok(()) };
        let text = |value: &Value| match spaces {
            true => serde_json::to_string_pretty(value).unwrap(),
            false => value.to_string(),
        };
        // In a document in a string in a document, the way goes on.
        let (mut input, mut prefix) = (text(&document), String::new());
        for _ in 0..levels {
            input = text(&json!({ "in": input, "beside": 1 }));
            prefix += "/in";
        }
        let pointer = prefix + &pointer;
        let out = pointed(&input, &["/not/there", &pointer]);
        prop_assert!(!out.contains("MARKER"), "{pointer}: {out}");
        prop_assert!(serde_json::from_str::<Value>(&out).is_ok(), "{out}");
        // Where nothing is named, nothing is changed.
        let unchanged = pointed(&input, &["/not/there"]);
        prop_assert_eq!(unchanged.as_str(), input.as_str());
        // And with its end missing.
        for length in (0..input.len()).step_by(7).filter(|at| input.is_char_boundary(*at)) {
            let pointers = Pointers::new([pointer.as_str()]).unwrap();
            let part = Payload {
                start: &input.as_bytes()[..length],
                whole: input.len() as u64,
                pointers: Some(pointers.arguments()),
            };
            let out = redactor(&[]).payload(part, Strictness::KnownSecrets);
            prop_assert!(!out.contains("MARKER"), "{pointer}: {out}");
        }
    }

    #[test]
    fn a_planted_secret_never_survives(
        secret in "[A-Za-z0-9+/=_.~!@#$%^&*()<>?\"\\\\é-]{8,40}",
        way in 0usize..11,
        shape in prop::collection::vec(0u8..3, 0..4),
        key in "[a-z]{1,8}",
        before in "[ a-z]{0,20}",
        as_key in any::<bool>(),
    ) {
        let planted = plant(&secret, way);
        let text = format!("{before}{planted}");
        let inner = if as_key { json!({ text.clone(): 1 }) } else { text.clone().into() };
        // One level of JSON in a string is undone by decoding, the next ones by looking inside.
        let strings = shape.iter().filter(|kind| **kind == 2).count();
        prop_assume!(strings <= 2);
        let input = nest(inner, &shape, &key).to_string();
        let redactor = redactor(&[&secret]);
        for strictness in [Strictness::Everything, Strictness::KnownSecrets] {
            let out = redactor.payload(Payload::whole(input.as_bytes()), strictness);
            prop_assert!(!out.contains(&secret), "{out}");
            prop_assert!(!out.contains(&planted), "{out}");
            let escaped = serde_json::to_string(&planted).unwrap();
            let escaped = escaped.trim_matches('"');
            prop_assert!(!out.contains(escaped), "{out}");
            prop_assert!(serde_json::from_str::<Value>(&out).is_ok(), "{out}");
        }
        let out = redactor.text(&text, 1000);
        prop_assert!(!out.contains(&secret), "{out}");
    }

    #[test]
    fn a_value_is_taken_out_wherever_its_name_stands(
        swapped in any::<bool>(),
        shape in prop::collection::vec(0u8..3, 0..3),
        key in "[a-z]{1,8}",
        name in prop::sample::select(vec!["API_KEY", "x-token", "password"]),
        keys in prop::sample::select(vec![("name", "value"), ("Key", "Value"), ("field", "content")]),
    ) {
        // A string that begins with a quote is looked at as text.
        prop_assume!(!shape.windows(2).any(|pair| pair == [2, 2]));
        let (first, second) = (format!(r#""{}":"{name}""#, keys.0), format!(r#""{}":"MARKER""#, keys.1));
        let members = if swapped { [second, first] } else { [first, second] }.join(r#","n":[{"a":1}],"#);
        let inner: Value = serde_json::from_str(&format!("{{{members}}}")).unwrap();
        let input = nest(inner, &shape, &key).to_string();
        let out = redactor(&[]).payload(Payload::whole(input.as_bytes()), Strictness::Everything);
        prop_assert!(!out.contains("MARKER"), "{out}");
        prop_assert!(serde_json::from_str::<Value>(&out).is_ok(), "{out}");
    }

    #[test]
    fn any_json_without_secrets_is_copied(text in "[\\[\\]{}:,\"\\\\a-c0-9 .eE+-]{0,40}") {
        let out = redactor(&[]).payload(Payload::whole(text.as_bytes()), Strictness::KnownSecrets);
        prop_assert_eq!(out, text);
    }

    #[test]
    fn the_tokenizer_agrees_with_a_parser(text in "[\\[\\]{}:,\"\\\\a-c0-9 .eE+-]{0,24}") {
        let scope = Scope {
            strictness: Strictness::KnownSecrets,
            levels: 0,
            pointers: None,
            base: &[],
            whole: None,
            limits: json::Limits::NONE,
        };
        let ours = json::redact(&redactor(&[]), &text, scope).is_some();
        let theirs = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
        prop_assert_eq!(ours, theirs);
    }
}
