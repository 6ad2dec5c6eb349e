//! What the name of a value says of it: that it is a secret, that it may be one, or nothing. PURE.
//!
//! Changes when other names tell of secrets, or of none. Where names and values stand is not known here.

use super::value::{LONGEST_NAME, is_number};

/// Names with this in them are of something else: what follows is the word that they only begin with.
const OTHERS: [&str; 5] = ["tokeniz", "tokenis", "secretary", "secretari", "passwordless"];
/// A name that ends so describes a secret: its value is a word.
const KINDS: [&str; 9] =
    ["type", "types", "policy", "policies", "algorithm", "format", "strategy", "status", "consent"];
/// A name that ends so has a number, or a time.
const MEASURES: [&str; 12] = [
    "length",
    "lifetime",
    "ttl",
    "maxage",
    "minage",
    "expiry",
    "expires",
    "expiresin",
    "expiresat",
    "expiration",
    "attempts",
    "retries",
];
/// A name that ends so has an address.
const ADDRESSES: [&str; 6] = ["url", "uri", "endpoint", "urls", "uris", "endpoints"];
/// Longer words describe nothing.
const LONGEST_KIND: usize = 24;
/// A part of an address that is as long and has digits may be a key.
const SHORTEST_KEY: usize = 8;
/// And this one whatever is in it.
const LONGEST_PART: usize = 24;

/// In a name of words, each goes on with so many small letters at least.
const SHORTEST_WORD: usize = 2;

/// What a name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// Nothing.
    Nothing,
    /// It depends on the value, and on where they stand.
    Perhaps,
    /// It is a secret.
    Secret,
}

impl From<bool> for Says {
    fn from(telling: bool) -> Self {
        if telling { Self::Secret } else { Self::Nothing }
    }
}

/// The names that are looked for.
pub(super) struct Names {
    /// In lower case, letters and digits only.
    parts: Vec<String>,
    /// How they begin.
    begins: Threes,
    /// Names that count as the last word of another.
    words: Vec<String>,
    /// How they end.
    ends: Threes,
}

impl Names {
    /// Names in any case; one with `=` before it only counts as the last word of another.
    pub(super) fn new(names: &[String]) -> Self {
        let (mut parts, mut words) = (Vec::new(), Vec::new());
        for name in names {
            match name.strip_prefix('=') {
                Some(word) => words.push(plain(word)),
                None => parts.push(plain(name)),
            }
        }
        parts.retain(|name| !name.is_empty());
        words.retain(|name| !name.is_empty());
        let begins = Threes::of(parts.iter().map(|part| part.bytes()));
        let ends = Threes::of(words.iter().map(|word| word.bytes().rev()));
        Self { parts, begins, words, ends }
    }

    pub(super) fn list(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().chain(&self.words).map(String::as_str)
    }

    /// What `name` says.
    pub(super) fn says(&self, name: &str) -> Says {
        let mut room = [0; LONGEST_NAME];
        match plain_within(name, &mut room) {
            Some(plain) => self.says_plainly(name, plain),
            None => self.says_plainly(name, plain(name).as_bytes()),
        }
    }

    /// What `name` says that is `plain` in lower case, letters and digits only.
    fn says_plainly(&self, name: &str, plain: &[u8]) -> Says {
        let mut rest = plain;
        while let [first, after @ ..] = rest {
            let three = [*first, at(rest, 1), at(rest, 2)];
            if self.begins.has(three) && self.begins_with_part(rest) {
                return Says::Secret;
            }
            rest = after;
        }
        let [third, second, last] = match plain {
            [.., third, second, last] => [*third, *second, *last],
            [second, last] => [0, *second, *last],
            [last] => [0, 0, *last],
            [] => return Says::Nothing,
        };
        let word = |word: &String| plain.ends_with(word.as_bytes()) && ends_with_word(name, word);
        match self.ends.has([last, second, third]) && self.words.iter().any(word) {
            true => Says::Perhaps,
            false => Says::Nothing,
        }
    }

    fn begins_with_part(&self, rest: &[u8]) -> bool {
        let of_other = |part: &String| {
            let is = |other: &str| other.len() > part.len() && rest.starts_with(other.as_bytes());
            OTHERS.into_iter().any(is)
        };
        self.parts.iter().any(|part| rest.starts_with(part.as_bytes()) && !of_other(part))
    }
}

fn at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

/// Which three bytes words can begin with: one bit for each hash of such.
struct Threes([u64; 16]);

impl Threes {
    fn of(words: impl Iterator<Item: Iterator<Item = u8>>) -> Self {
        let mut threes = Self([0; 16]);
        for mut word in words {
            match (word.next(), word.next(), word.next()) {
                (Some(first), Some(second), Some(third)) => threes.set([first, second, third]),
                // Whatever is behind it.
                _ => threes.0 = [u64::MAX; 16],
            }
        }
        threes
    }

    fn place([first, second, third]: [u8; 3]) -> (usize, u32) {
        let hash = u32::from_le_bytes([first, second, third, 0]).wrapping_mul(0x9e37_79b1) >> 22;
        (usize::try_from(hash >> 6).unwrap_or_default(), hash & 63)
    }

    fn set(&mut self, three: [u8; 3]) {
        let (word, bit) = Self::place(three);
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << bit;
        }
    }

    fn has(&self, three: [u8; 3]) -> bool {
        let (word, bit) = Self::place(three);
        self.0.get(word).is_some_and(|word| word & (1 << bit) != 0)
    }
}

/// Whether the last word of a name is `word`: `DB_PWD`, `userPwd`, `pwd`.
fn ends_with_word(name: &str, word: &str) -> bool {
    let name = name.trim_end_matches(|last: char| !last.is_alphanumeric());
    let Some(from) = name.len().checked_sub(word.len()) else { return plain(name) == word };
    let Some((before, last)) = name.split_at_checked(from) else { return false };
    if !last.eq_ignore_ascii_case(word) {
        return plain(name) == word;
    }
    let capital = last.starts_with(|first: char| first.is_ascii_uppercase());
    match before.chars().next_back() {
        None => true,
        Some(end) => !end.is_alphanumeric() || (capital && !end.is_uppercase()),
    }
}

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In JSON, or in quotes.
    Json,
    /// In the query of an address, or in a form.
    Query,
    /// Right behind `=`.
    Text,
    /// Behind a colon or a space.
    Prose,
}

/// Whether a value is a secret whose name says that it may be one. Names that are not known here are those
/// of an operator, who knows.
pub(super) fn fits(name: &str, value: &str, place: Place) -> bool {
    let is = |word: &str| ends_with_word(name, word);
    let digits = || value.bytes().all(|byte| byte.is_ascii_digit());
    if is("pass") || is("pwd") {
        const WORDS: [&str; 15] = [
            "true", "false", "yes", "no", "ok", "on", "off", "pass", "passed", "fail", "failed",
            "none", "pwd", "passwd", "password",
        ];
        let word = WORDS.iter().any(|word| value.eq_ignore_ascii_case(word))
            || !value.chars().any(char::is_alphanumeric);
        let object = place == Place::Json && matches!(value, "{" | "[");
        // How many passed, and the folder that a shell is in.
        let (first, rest) = value.split_once(' ').unwrap_or((value, ""));
        let count = first.len() < 4
            && first.bytes().all(|byte| byte.is_ascii_digit())
            && (rest.is_empty() || rest.contains('='));
        let folder = is("pwd")
            && (value.starts_with(['/', '~', '$', '.']) || value.get(1..3) == Some(":\\"));
        return place != Place::Prose && !word && !object && !count && !folder;
    }
    if is("auth") || is("bearer") {
        return is_key(value, 12);
    }
    if is("csrf") || is("xsrf") {
        return is_key(value, 8);
    }
    if is("sig") || is("signature") {
        return place == Place::Query && is_key(value, 12);
    }
    if is("dsn") {
        return value.contains('@');
    }
    if is("otp") {
        return (4..=10).contains(&value.len()) && digits();
    }
    if is("cvv") || is("cvc") {
        return (3..=4).contains(&value.len()) && digits();
    }
    true
}

/// Whether a value can be a key: at least `least` characters that keys have, with digits among letters or in
/// both cases, but no path and no words of names: `AuthKind::Key`, `HTTPBasicAuth`.
fn is_key(value: &str, least: usize) -> bool {
    let has = |kind: fn(&u8) -> bool| value.as_bytes().iter().any(kind);
    let wanted = |byte: u8| byte.is_ascii_alphanumeric() || b"._~+/=%:-|".contains(&byte);
    let mixed = || has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase);
    let words = || {
        let mut small =
            value.split(|c: char| !c.is_ascii_lowercase()).filter(|part| !part.is_empty());
        small.all(|part| part.len() >= SHORTEST_WORD)
    };
    value.len() >= least
        && value.bytes().all(wanted)
        && !value.contains("::")
        && has(u8::is_ascii_alphabetic)
        && (has(u8::is_ascii_digit) || (mixed() && !words()))
}

/// Whether a value is no secret because its name only speaks of one: `token_type: bearer`,
/// `password_min_length: 8`, `token_endpoint: https://…`.
pub(super) fn is_about(name: &str, value: &str) -> bool {
    let name = plain(name);
    let ends = |words: &[&str]| words.iter().any(|word| name.ends_with(word));
    let all = |kind: fn(u8) -> bool| value.bytes().all(kind);
    if ends(&KINDS) {
        return (1..=LONGEST_KIND).contains(&value.len())
            && all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'-'));
    }
    if ends(&MEASURES) {
        let time = |byte: u8| byte.is_ascii_digit() || b"-:.TZ+".contains(&byte);
        return is_number(value) || (value.len() >= 10 && value.starts_with("20") && all(time));
    }
    ends(&ADDRESSES) && is_public_address(value)
}

/// Whether a name speaks of the kind of a secret, so that an object below it has names of its own.
pub(super) fn is_policy(name: &str) -> bool {
    let name = plain(name);
    name.ends_with("policy") || name.ends_with("policies")
}

/// Whether an address has no query, no user, and no part that may be a key.
fn is_public_address(value: &str) -> bool {
    let rest = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
    let Some(rest) = rest else { return false };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.:_-".contains(&byte);
    let is_key = |part: &str| {
        let digits = part.bytes().any(|byte| byte.is_ascii_digit());
        part.len() >= LONGEST_PART || (part.len() >= SHORTEST_KEY && digits)
    };
    let mut parts = rest.split('/');
    // The host.
    parts.next().is_some_and(|host| !host.is_empty())
        && rest.bytes().all(plain)
        && !parts.any(is_key)
}

/// Letters and digits of a name of ASCII that fits, in lower case.
fn plain_within<'a>(name: &str, room: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut length = 0;
    for byte in name.bytes() {
        if !byte.is_ascii() {
            return None;
        }
        *room.get_mut(length)? = byte.to_ascii_lowercase();
        length += usize::from(byte.is_ascii_alphanumeric());
    }
    room.get(..length)
}

/// Letters and digits of a key, in lower case.
pub(super) fn plain(key: &str) -> String {
    if key.is_ascii() {
        let letters = key.bytes().filter(u8::is_ascii_alphanumeric);
        return letters.map(|byte| char::from(byte.to_ascii_lowercase())).collect();
    }
    key.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::{Payload, Redactor, Secrets, Strictness};

    fn redacted(input: &str) -> String {
        let names = [
            "password",
            "token",
            "secret",
            "api_key",
            "authorization",
            "cookie",
            "credential",
            "account_key",
            "connection_string",
            "x_goog_signature",
            "=pass",
            "=pwd",
            "=auth",
            "=bearer",
            "=csrf",
            "=sig",
            "=signature",
            "=dsn",
            "=otp",
            "=cvv",
            "=pin",
        ];
        let redactor = Redactor::new(&names.map(str::to_owned), &Secrets::default());
        redactor.payload(Payload::whole(input.as_bytes()), Strictness::Everything)
    }

    #[test]
    fn short_names_count_as_words() {
        for (input, expected) in [
            (r#"{"user":"bob","pass":"hunter2"}"#, r#"{"user":"bob","pass":"***"}"#),
            (r#"{"userPwd":"a","MYSQL_PWD":"/b\/c"}"#, r#"{"userPwd":"***","MYSQL_PWD":"/b\/c"}"#),
            (r#"{"auths":{"h":{"auth":"dXNlcjpwYXNz"}}}"#, r#"{"auths":{"h":{"auth":"***"}}}"#),
            (r#"{"_auth":"dXNl\/cjpwYXNzd29yZA=="}"#, r#"{"_auth":"***"}"#),
            (r#"{"bearer":"a1b2c3d4e5f6"}"#, r#"{"bearer":"***"}"#),
            (r#"{"_csrf":"a1b2c3d4"}"#, r#"{"_csrf":"***"}"#),
            (r#"{"dsn":"bob:hunter2@tcp(db)/x"}"#, r#"{"dsn":"***"}"#),
            (r#"{"otp":"123456","cvv":123}"#, r#"{"otp":"***","cvv":"***"}"#),
            (r#"{"pin":{"a":1}}"#, r#"{"pin":"***"}"#),
            (r#"{"name":"SMTP_PASS","value":"S"}"#, r#"{"name":"SMTP_PASS","value":"***"}"#),
            (r#"["--pass","S"]"#, r#"["--pass","***"]"#),
            ("SMTP_PASS=hunter2\nA=1", "SMTP_PASS=***\nA=1"),
            ("user=bob&pass=hunter2&x=1", "user=bob&pass=***&x=1"),
            ("Server=x;Uid=bob;Pwd=S;Encrypt=yes", "Server=x;Uid=bob;Pwd=***;Encrypt=yes"),
            ("{user: 'bob', pass: 'hunter2'}", "{user: 'bob', pass: '***'}"),
            ("AccountName=a;AccountKey=Zq81LmNb==;X=y", "AccountName=a;AccountKey=***;X=y"),
            ("//registry.example/:_auth=dXNlcjpwYXNz", "//registry.example/:_auth=***"),
            ("at https://h/a?se=1&sig=a%2Bb1cdefghi%3D&sp=r", "at https://h/a?se=1&sig=***&sp=r"),
            (
                "https://h/a?Signature=a1b2c3d4e5f6~&Key-Pair-Id=K",
                "https://h/a?Signature=***&Key-Pair-Id=K",
            ),
            ("https://h/a?X-Goog-Signature=a1b2&n=1", "https://h/a?X-Goog-Signature=***&n=1"),
        ] {
            assert_eq!(redacted(input), expected, "{input}");
        }
    }

    #[test]
    fn short_names_hide_no_more_than_that() {
        for text in [
            r#"{"pass":12,"fail":3,"total":15}"#,
            r#"{"pass":true,"test_pass":"ok","pass_count":4,"passenger":"Bob","bypass":"x"}"#,
            r#"{"auth":{"type":"basic"},"a":{"auth":"none"},"b":{"auth":"client_credentials"}}"#,
            r#"{"security":[{"bearer":[]}],"oauth":"abc123def456x","author":"Bob-1234567890"}"#,
            r#"{"signature":"fn add(a: i32, b: i32) -> i32","sig":"a1b2c3d4e5f6g7"}"#,
            r#"{"dsn":"2.0.0","otp":"26.2","cvv":"required","csrf":"enabled"}"#,
            r#"{"spin":"fast","pins":[1,2]}"#,
            "--- PASS: TestRedactor (0.00s)",
            "PWD=/home/bob\nOLDPWD=/tmp",
            "pass=12 fail=3",
            "said \"pass=12 fail=3\"",
            "let pass = render(scene);",
            "to=<a@b.c>, dsn=2.0.0, status=sent",
            "auth=required and bearer=none, otp=27.1",
            "a pass: the mountain road",
            "inspect.signature(f, sig=sig)",
            "Caller { auth: AuthKind::None, bearer: config::Oauth2Mode, n: 1 }",
            "get(url, auth=HTTPBasicAuth, bearer=http.ClientSession)",
            "CLIENT_AUTH = ObjectIdentifier(\"1.3.6.1.5.5.7.3.2\")",
            "tls_auth = ExtendedKeyUsageOID.CLIENT_AUTH",
            "open(path, pwd=pwd), user_pass = netloc.split(\"@\", 1)",
        ] {
            assert_eq!(redacted(text), text);
        }
    }

    #[test]
    fn what_only_speaks_of_secrets_stays() {
        for text in [
            r#"{"token_type":"Bearer","tokenizer":"cl100k_base","max_tokens":"256"}"#,
            r#"{"tokens":12,"token_count":3,"prompt_tokens":4,"secretary":"Bob Smith"}"#,
            r#"{"password_policy":{"min_length":8,"symbols":true},"password_min_length":8}"#,
            r#"{"token_endpoint":"https://login.example.com/oauth/token","token_expires_in":3600}"#,
            r#"{"authorization_endpoint":"https://login.example.com/authorize"}"#,
            "token_type=bearer&expires_in=3600",
            "token_type: bearer\ntoken_expires_at: 2026-01-02T03:04:05Z",
            "token_endpoint: https://login.example.com/oauth/token",
        ] {
            assert_eq!(redacted(text), text);
        }
        for (input, expected) in [
            (
                r#"{"password_policy":{"secret":"S"},"token_type":"a1B2c3"}"#,
                r#"{"password_policy":{"secret":"***"},"token_type":"***"}"#,
            ),
            (r#"{"token":"bearer","tokens":"abc"}"#, r#"{"token":"***","tokens":"***"}"#),
            (
                r#"{"password_reset_url":"https://example.com/reset/a1b2c3d4e5f6"}"#,
                r#"{"password_reset_url":"***"}"#,
            ),
            (r#"{"tokenizer_secret":"S"}"#, r#"{"tokenizer_secret":"***"}"#),
        ] {
            assert_eq!(redacted(input), expected, "{input}");
        }
    }

    #[test]
    fn names_say_what_stands_behind_them() {
        let list = ["api_key", "Token", "secret", "password", "=pwd", "=pass", "x", "="];
        let names = Names::new(&list.map(str::to_owned));
        for name in [
            "X-API-Key",
            "apiKey",
            "tokens",
            "a.Token",
            "DB_PASSWORD",
            "box",
            "SecretÄ",
            "secret_arg",
        ] {
            assert_eq!(names.says(name), Says::Secret, "{name}");
        }
        for name in ["pwd", "DB_PWD", "userPwd", "SMTP_PASS", "pass", "db.pwd_", "$pwd"] {
            assert_eq!(names.says(name), Says::Perhaps, "{name}");
        }
        for name in
            ["tokenizer", "tokenize", "secretary", "cpwd", "OLDPWD", "compass", "bypass", ""]
        {
            assert_eq!(names.says(name), Says::Nothing, "{name}");
        }
        assert_eq!(names.says("tokenizer_password"), Says::Secret);
        assert_eq!(Names::new(&["secretary".to_owned()]).says("secretary"), Says::Secret);
        assert_eq!(Names::new(&[]).says("password"), Says::Nothing);
    }

    #[test]
    fn short_and_long_names_are_found() {
        let names = |list: &[&str]| {
            let list: Vec<_> = list.iter().map(|name| (*name).to_owned()).collect();
            Names::new(&list)
        };
        for (list, name, says) in [
            (&["=id"], "id", Says::Perhaps),
            (&["=id"], "user_id", Says::Perhaps),
            (&["=id"], "valid", Says::Nothing),
            (&["=q"], "q", Says::Perhaps),
            (&["=q"], "a.q", Says::Perhaps),
            (&["pw"], "dbpw", Says::Secret),
            (&["pw"], "p", Says::Nothing),
            (&["schl\u{fc}ssel"], "Mein SCHL\u{dc}SSEL", Says::Secret),
            (&["pass"], "\u{dc}pass", Says::Secret),
        ] {
            assert_eq!(names(list).says(name), says, "{list:?} {name}");
        }
        let long = "a_".repeat(LONGEST_NAME);
        assert_eq!(names(&["token"]).says(&format!("{long}token")), Says::Secret);
        assert_eq!(names(&["=pwd"]).says(&format!("{long}pwd")), Says::Perhaps);
    }

    #[test]
    fn what_is_about_a_secret_is_none() {
        for (name, value) in [
            ("token_type", "Bearer"),
            ("credentialType", "oauth-client"),
            ("password_min_length", "8"),
            ("token_expires_at", "2026-01-02T03:04:05Z"),
            ("tokenEndpoint", "https://login.example.com:8443/oauth2/v2.0/token"),
        ] {
            assert!(is_about(name, value), "{name}");
        }
        for (name, value) in [
            ("token_type", "aB3dE6gH9"),
            ("token", "Bearer"),
            ("password_length", "hunter2"),
            ("password_reset_url", "https://example.com/reset/a1b2c3d4e5"),
            ("password_reset_url", "https://example.com/reset?token=a"),
            ("secret_url", "https://bob:x@example.com/"),
            ("secret_url", "https://"),
            ("token_expires", "2026-hunter2"),
        ] {
            assert!(!is_about(name, value), "{name} {value}");
        }
    }
}
