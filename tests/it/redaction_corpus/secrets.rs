//! The secrets: what each is, the ways in which it is written, and what must not be found of it.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};

/// Known ones: values of variables that the configuration expands.
pub const KNOWN: usize = 120;
/// So many of them are headers of a server; the others are variables of a child.
pub const IN_HEADERS: usize = 60;
/// Ones that are told by their shape or by the name beside them.
pub const SHAPED: usize = 102;
/// Ones at places that are named by pointers.
pub const PLACED: usize = 12;
/// The ways in which a known one is written.
pub const WAYS: usize = 17;

/// Letters and digits, the same for the same number in every run, and like no others.
pub fn letters(number: usize, length: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1);
    let mut text = String::new();
    while text.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let at = usize::try_from(state % 62).unwrap();
        text.push(char::from(
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"[at],
        ));
    }
    text
}

/// A known secret. What stands in a header has less to choose from.
pub fn known(number: usize) -> String {
    let (one, two) = (letters(number, 12), letters(number + 1000, 12));
    match if number < IN_HEADERS { number % 4 } else { number % 6 } {
        0 => one + &two,
        1 => format!("{one}/+={two}"),
        2 => format!("{one}\"\\{two}"),
        3 => format!("{one} &{two}"),
        4 => format!("{one}ü€{two}"),
        _ => format!("{one}\n{two}"),
    }
}

/// A known secret in one of its ways.
pub fn written(secret: &str, way: usize) -> String {
    let shifted = |before: &str, engine: &base64::engine::GeneralPurpose| {
        engine.encode(format!("{before}{secret}!"))
    };
    let escape = |text: &str| {
        text.encode_utf16().fold(String::new(), |mut out, unit| {
            write!(out, "\\u{unit:04x}").unwrap();
            out
        })
    };
    let quoted = |text: &str| serde_json::to_string(text).unwrap().trim_matches('"').to_owned();
    match way {
        0 => secret.to_owned(),
        1 => STANDARD.encode(secret),
        2 => shifted("a", &STANDARD),
        3 => shifted("ab", &STANDARD),
        4 => URL_SAFE_NO_PAD.encode(secret),
        5 => shifted("x", &URL_SAFE),
        6 => percent(secret, false),
        7 => percent(secret, true),
        8 => secret.bytes().map(|byte| format!("{byte:02x}")).collect(),
        9 => secret.bytes().map(|byte| format!("{byte:02X}")).collect(),
        10 => escape(secret),
        11 => quoted(&quoted(secret)),
        12 => quoted(&escape(secret)),
        13 => STANDARD.encode(STANDARD.encode(secret)),
        14 => percent(&percent(secret, true), false),
        15 => STANDARD.encode(percent(secret, false)),
        _ => {
            // As `base64` writes it, which breaks lines.
            let (one, two) = broken(secret);
            format!("{one}\n{two}")
        }
    }
}

/// Base64 in which the secret stands across the end of a line.
fn broken(secret: &str) -> (String, String) {
    let mut one = STANDARD.encode(format!("{}{secret}{}", "x".repeat(40), "y".repeat(20)));
    let two = one.split_off(76);
    (one, two)
}

fn percent(secret: &str, all: bool) -> String {
    secret.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() && !all {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").unwrap();
        }
        text
    })
}

/// A secret that nobody told us, in the shape or beside the name that gives it away; and the part of it
/// that must not be found.
pub fn shaped(number: usize) -> (String, String) {
    let long = letters(2000 + number, 40);
    let short = &long[..24];
    let text = match number % 51 {
        0 => format!("use ghp_{long} now"),
        1 => format!("github_pat_{short}"),
        2 => format!("glpat-{short}."),
        3 => format!("key=sk-proj-{long}"),
        4 => format!("(AKIA{short})"),
        5 => format!("xoxb-{short}"),
        6 => format!("npm_{long}"),
        7 => format!("hf_{long}"),
        8 => format!("AIza{long}"),
        9 => format!("sk_live_{short}"),
        10 => format!("GOCSPX-{short}"),
        11 => format!("ya29.{long}"),
        12 => format!("dop_v1_{short}"),
        13 => format!("at eyJhbGciOiJIUzI1NiJ9.eyJzdWIi{short}.{short}"),
        14 => format!(
            "-----BEGIN RSA PRIVATE KEY-----\n{long}\n{short}\n-----END RSA PRIVATE KEY-----"
        ),
        15 => format!("Authorization: Bearer {long}"),
        16 => format!("proxy-authorization: Basic {}", STANDARD.encode(format!("bob:{short}"))),
        17 => format!("https://bob:{short}@db.example/x"),
        18 => format!("GET https://h/x?access_token={long}&page=2"),
        19 => format!("/cb?a=1&client_secret={short}#frag"),
        20 => format!("Set-Cookie: sid={short}; HttpOnly"),
        21 => format!("Cookie: a=b; sid={long}"),
        22 => format!("password={short} host=db"),
        23 => format!("{{\"api_key\": \"{short}\", \"n\": 1}}"),
        24 => format!("said {{\"Password\":\"{short} and {short}\"}} there"),
        25 => format!("{{'db_token': '{short}'}}"),
        26 => format!("X-Api-Key: {short}"),
        27 => format!("--private-key=\"{short} x\""),
        28 => format!("AWS_SECRET_ACCESS_KEY={long}"),
        29 => format!("host: db\npassphrase: {short}\nport: 1"),
        30 => format!("{{\"credentials\":{{\"user\":\"bob\",\"pin\":[\"{short}\"]}}}}"),
        31 => format!("Bearer   {long}"),
        32 => format!("pypi-{long}"),
        33 => format!("whsec_{short}"),
        34 => format!("failed:\nghp_{long}\tBearer {long}\nAKIA{short}"),
        35 => format!("/a?next=%2Fx%3Faccess%3Dghp_{long}"),
        36 => format!("%22xoxb-{short}%22 and Bearer%20{long}"),
        37 => format!("postgres%3A%2F%2Fu%3A{long}%40db"),
        38 => format!("/cb?state=password%3D{short}%26n%3D1"),
        39 => format!("x-api-key: \"{long}\""),
        40 => format!("Authorization: Bearer \"{long}\""),
        41 => format!("X-Auth-Token: `{long}`"),
        42 => format!("set-cookie: ['sid={short}']"),
        43 => format!("{{ headers: {{ Authorization: '{short}', cookie: '{short}' }} }}"),
        44 => format!("Authorization: Digest username=\"{short}\", response=\"{short}\""),
        45 => format!("web__ghp_{short}"),
        46 => STANDARD.encode(format!("{{\"password\":\"{long}\"}}")),
        47 => STANDARD.encode(format!("use npm_{long}")),
        48 => percent(&format!("{{\"password\":\"{short}\"}}"), false),
        49 => format!("run --password {short} or ACCESS KEY={short}"),
        _ => format!("<password>{short}</password>"),
    };
    let seen = match number % 51 {
        16 => STANDARD.encode(format!("bob:{short}")),
        46 => STANDARD.encode(format!("{{\"password\":\"{long}\"}}")),
        47 => STANDARD.encode(format!("use npm_{long}")),
        _ => short.to_owned(),
    };
    (text, seen)
}

/// A value that only its place makes a secret.
pub fn placed(number: usize) -> String {
    letters(3000 + number, 20)
}

/// What is looked for, and whose it is.
#[derive(Default)]
pub struct Needles {
    by_start: HashMap<[u8; 8], Vec<(Vec<u8>, String)>>,
    starts: HashSet<u16>,
}

impl Needles {
    /// Every secret, in every way, and in part.
    pub fn of_all() -> Self {
        let mut needles = Self::default();
        for number in 0..KNOWN {
            let secret = known(number);
            let name = |way: &str| format!("known {number} ({way})");
            let (one, two) = broken(&secret);
            needles.add(&one.as_bytes()[54..], &name("16, before the line's end"));
            needles.add(&two.as_bytes()[..8], &name("16, after the line's end"));
            for way in 0..16 {
                let text = match way {
                    // Without what the neighbours have a part in.
                    2 | 3 | 5 => {
                        let text = written(&secret, way);
                        text[3..text.len() - 5].to_owned()
                    }
                    _ => written(&secret, way),
                };
                needles.add(text.as_bytes(), &name(&way.to_string()));
                // Nor the beginning of one that was cut, but for the first four bytes.
                let head = match way {
                    10 => 40,
                    12 => 46,
                    14 => 40,
                    _ => 16,
                };
                let head = &text.as_bytes()[..head.min(text.len())];
                needles.add(head, &name(&format!("{way}, the beginning")));
            }
            let (head, tail) = (&secret.as_bytes()[..10], &secret.as_bytes()[secret.len() - 10..]);
            needles.add(head, &name("its beginning"));
            needles.add(tail, &name("its end"));
        }
        for number in 0..SHAPED {
            let secret = shaped(number).1;
            needles.add(&secret.as_bytes()[..10], &format!("shaped {number}"));
            needles.add(&secret.as_bytes()[secret.len() - 12..], &format!("shaped {number} (end)"));
        }
        for number in 0..PLACED {
            needles.add(placed(number).as_bytes(), &format!("placed {number}"));
        }
        needles
    }

    fn add(&mut self, needle: &[u8], name: &str) {
        let start = *needle.first_chunk::<8>().unwrap();
        self.starts.insert(u16::from_le_bytes([start[0], start[1]]));
        self.by_start.entry(start).or_default().push((needle.to_vec(), name.to_owned()));
    }

    /// Everything of it that is in `bytes`: whose it is, and what stands around it.
    pub fn found_in(&self, bytes: &[u8]) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for (at, window) in bytes.windows(8).enumerate() {
            if !self.starts.contains(&u16::from_le_bytes([window[0], window[1]])) {
                continue;
            }
            let key: [u8; 8] = window.try_into().unwrap();
            for (needle, name) in self.by_start.get(&key).into_iter().flatten() {
                if bytes[at..].starts_with(needle) {
                    let around = &bytes[at.saturating_sub(160)..(at + 60).min(bytes.len())];
                    found.push((name.clone(), String::from_utf8_lossy(around).into_owned()));
                }
            }
        }
        found
    }
}
