//! Which values of a configuration are secrets.
//!
//! Changes when something else may hold a credential. Guessing wrong one way hides a harmless word
//! in the ledger, and the other way stores a password: in doubt a value is a secret.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Environment;
use super::expand::{self, Variables};
use crate::model::{Secret, ServerSpec, TransportSpec};

/// Shorter values would be found everywhere.
const SHORTEST_SECRET: usize = 4;
/// From this length on a literal value of a header or variable counts, whatever it is called.
const SHORTEST_UNNAMED: usize = 8;
/// Variables that hold no secret, whatever they are used for.
const PUBLIC_VARIABLES: [&str; 10] =
    ["HOME", "PATH", "USER", "LOGNAME", "PWD", "LANG", "SHELL", "TERM", "TMPDIR", "HOSTNAME"];
/// Headers that hold no credential.
const PUBLIC_HEADERS: [&str; 7] = [
    "accept",
    "accept-language",
    "content-type",
    "user-agent",
    "x-request-id",
    "origin",
    "referer",
];
/// Words that are settings; hiding them would hide half of the ledger.
const PLAIN_WORDS: [&str; 14] = [
    "true",
    "false",
    "none",
    "null",
    "yes",
    "no",
    "production",
    "development",
    "test",
    "debug",
    "info",
    "warn",
    "warning",
    "error",
];

/// Where a value stands, which decides whether a literal one may be a secret.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// The value of a header of this name.
    Header(&'a str),
    /// The value of a variable of this name, for a program.
    Env(&'a str),
    /// An address: its password is a secret, and the rest must be in errors.
    Address,
    /// Anything else; only what comes out of variables is a secret.
    Public,
}

/// The secrets of a text: `written` in the file, `value` with references replaced.
pub(super) fn of_text(
    written: &str,
    value: &str,
    place: Place<'_>,
    variables: &dyn Variables,
    found: &mut Vec<Secret>,
) {
    let mut add = |value: &str| {
        let mut add = |value: &str| {
            let secret = Secret::new(value);
            if value.len() >= SHORTEST_SECRET && !found.contains(&secret) {
                found.push(secret);
            }
        };
        add(value);
        // Names of hosts are shown in lower case, however they are written.
        if matches!(place, Place::Address) && value.len() >= SHORTEST_UNNAMED {
            add(&value.to_ascii_lowercase());
        }
    };
    for (name, default) in expand::references_with_defaults(written) {
        match variables.get(name).filter(|value| default.is_none() || !value.is_empty()) {
            Some(_) if PUBLIC_VARIABLES.contains(&name) => {}
            Some(value) => match (place, password(&value)) {
                // An address is no secret, and errors must be able to name it.
                (Place::Address, Ok(password)) => {
                    password.as_deref().map(&mut add);
                }
                _ if is_plain_word(&value) => {}
                _ => add(&value),
            },
            None => {
                let default = without_scheme(default.unwrap_or_default());
                // What a variable is called tells of its default where the place tells nothing.
                let told = sounds_secret(name) && !is_setting(default);
                if told || may_be_secret(default, place) {
                    add(default);
                }
            }
        }
    }
    if let Place::Address = place {
        if let Ok(Some(password)) = password(value) {
            add(&password);
        }
        let url = url::Url::parse(value);
        for (name, value) in url.iter().flat_map(url::Url::query_pairs) {
            if sounds_secret(&name) && !is_plain_word(&value) {
                add(&value);
            }
        }
        return;
    }
    let only_public = expand::has_reference(written)
        && !expand::has_literal_secret(written)
        && expand::references(written).iter().all(|name| PUBLIC_VARIABLES.contains(name));
    let credential = without_scheme(value);
    if !only_public && may_be_secret(credential, place) {
        add(credential);
        if let Some(password) = basic_password(value) {
            add(&password);
        }
    }
}

/// The password in the credential of the scheme `Basic`.
fn basic_password(value: &str) -> Option<String> {
    let (scheme, credential) = expand::split_scheme(value);
    let basic = scheme.trim().eq_ignore_ascii_case("basic");
    let decoded = STANDARD.decode(credential.trim()).ok().filter(|_| basic)?;
    String::from_utf8(decoded).ok()?.split_once(':').map(|(_, password)| password.to_owned())
}

/// Everything in one server that must not be shown or stored; what does not expand is left out.
#[must_use]
pub fn secrets_of(spec: &ServerSpec, environment: &Environment) -> Vec<Secret> {
    let mut found = Vec::new();
    let mut look = |written: &str, place: Place<'_>| {
        if let Ok(value) = expand::expand(written, environment) {
            of_text(written, &value, place, environment, &mut found);
        }
    };
    match &spec.transport {
        TransportSpec::Http { url, headers }
        | TransportSpec::Sse { url, headers }
        | TransportSpec::Jsonrpc { url, headers } => {
            look(url, Place::Address);
            for (name, value) in headers {
                look(value, Place::Header(name));
            }
        }
        TransportSpec::Stdio { command, args, env, cwd } => {
            for text in args.iter().chain([command]).chain(cwd) {
                look(text, Place::Public);
            }
            for (name, value) in env {
                look(value, Place::Env(name));
            }
        }
    }
    found
}

/// The credential behind the scheme of an Authorization header.
fn without_scheme(value: &str) -> &str {
    expand::split_scheme(value).1.trim()
}

/// The password of an address, if this is one.
fn password(value: &str) -> Result<Option<String>, url::ParseError> {
    url::Url::parse(value).map(|url| url.password().map(str::to_owned))
}

fn may_be_secret(value: &str, place: Place<'_>) -> bool {
    let long = value.len() >= SHORTEST_UNNAMED;
    match place {
        Place::Header(name) => {
            let public = PUBLIC_HEADERS.iter().any(|header| header.eq_ignore_ascii_case(name));
            !public && !is_plain_word(value) && (long || sounds_secret(name))
        }
        Place::Env(name) if sounds_secret(name) => !is_plain_word(value),
        Place::Env(_) => long && !is_setting(value),
        Place::Address | Place::Public => false,
    }
}

fn sounds_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["auth", "token", "secret", "key", "password", "passwd", "cookie", "credential"]
        .iter()
        .any(|word| key.contains(word))
}

fn is_plain_word(value: &str) -> bool {
    PLAIN_WORDS.iter().any(|word| word.eq_ignore_ascii_case(value))
}

/// Whether a value is obviously a setting: a plain word, a number, a path, a public address.
fn is_setting(value: &str) -> bool {
    let path = ["/", "./", "../", "~/"].iter().any(|start| value.starts_with(start))
        || value.get(1..3) == Some(":\\");
    let address = url::Url::parse(value).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
    });
    is_plain_word(value) || value.parse::<f64>().is_ok() || path || address
}
