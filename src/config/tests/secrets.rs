//! What of a configuration is a secret, and how it is shown.

use super::*;

#[test]
fn what_may_be_a_secret_counts_as_one() {
    let text = "mcp_servers:
  a:
    url: 'https://h/mcp?key=${TOKEN}'
    headers: {Authorization: 'Bearer literal-1', X-Team: 'literal-2', Accept: application/json, Cookie: abcd, X-D: '${NO:-default-3}', X-M: 'pre-${SECONDS}-post'}
  b:
    command: x
    args: ['--level=${NO:-verbose-level}', literal-argument, '${MY_TOKEN:-default-6}', '${KEY_FILE:-/run/key}']
    env: {A: literal-4, B: production, C: /usr/local/lib, D: '123456789', E: 'https://h/x', F: 'postgres://u:p@h', PASSWORD: 5678, USE_AUTH: 'true', G: '${HOME}', H: '${NO:-default-5}', I: '${NO:-./relative}'}
";
    let environment = Environment::new(|name| match name {
        "TOKEN" => Some("tok-12345".to_owned()),
        "SECONDS" => Some("7".to_owned()),
        "HOME" => Some("/home/someone".to_owned()),
        _ => None,
    });
    let expected = [
        "5678",
        "abcd",
        "default-3",
        "default-5",
        "default-6",
        "literal-1",
        "literal-2",
        "literal-4",
        "postgres://u:p@h",
        "pre-7-post",
        "tok-12345",
    ];
    let config = parse(text, "x", &environment).unwrap();
    let sorted = |secrets: &[Secret]| {
        let mut secrets: Vec<String> = secrets.iter().map(|s| s.expose().to_owned()).collect();
        secrets.sort();
        secrets
    };
    assert_eq!(sorted(&config.secrets), expected);
    let single: Vec<Secret> =
        config.servers.values().flat_map(|spec| secrets_of(spec, &environment)).collect();
    assert_eq!(sorted(&single), expected);
    // What does not expand is no reason to forget the rest.
    let none = Environment::new(|_| None);
    let left: Vec<Secret> =
        config.servers.values().flat_map(|spec| secrets_of(spec, &none)).collect();
    assert!(sorted(&left).contains(&"literal-1".to_owned()));
}

#[test]
fn secrets_in_addresses_are_known_in_lower_case_too() {
    let environment = Environment::new(|name| match name {
        "TENANT" => Some("Tok3n-OF-Mine".to_owned()),
        "SHORT" => Some("AbCd".to_owned()),
        "KEY" => Some("In-A-Header".to_owned()),
        _ => None,
    });
    let text = "mcp_servers:\n  a: {url: 'https://${TENANT}.${SHORT}.example/', headers: {X-Key: '${KEY}'}}\n";
    let config = parse(text, "x", &environment).unwrap();
    let known: Vec<&str> = config.secrets.iter().map(Secret::expose).collect();
    assert!(known.contains(&"Tok3n-OF-Mine") && known.contains(&"tok3n-of-mine"), "{known:?}");
    assert_eq!(known.len(), 4, "{known:?}");
}

#[test]
fn an_address_is_shown_without_what_may_be_secret() {
    for (url, shown) in [
        ("http://u:p@h/x", "http://h/x"),
        ("http://h/x?key=1", "http://h/x?***"),
        ("http://h:1", "http://h:1"),
        ("${URL}", "${URL}"),
        ("http://h/${X}?k=${K}", "http://h/${X}?k=${K}"),
    ] {
        assert_eq!(shown_address(url), shown);
    }
}

#[test]
fn literal_values_are_not_shown() {
    let name = ServerName::parse("a").unwrap();
    let json = br#"{"command": "x", "env": {"A": "hidden", "B": "${B}", "C": "${C:-hidden}", "D": "Bearer ${D}", "E": "hidden${E}"}}"#;
    let shown = server_to_json(&server_from_json(&name, json).unwrap()).to_string();
    assert!(!shown.contains("hidden"), "{shown}");
    for kept in ["${B}", "${C:-***}", "Bearer ${D}", "***${E}"] {
        assert!(shown.contains(kept), "{shown}");
    }
}
