//! The ways in which a known secret can stand in a text. PURE.
//!
//! Changes when another encoding must be recognised.

use std::collections::HashSet;
use std::fmt::Write;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// Shorter lines of a secret are found everywhere: `}`, `-----`.
const SHORTEST_LINE: usize = 8;
/// A shorter secret is only found in the case that it has.
const SHORTEST_CASELESS: usize = 8;
/// Backslashes before one character: five times JSON in a string makes 31 of them.
const MOST_BACKSLASHES: usize = 32;
/// Backslashes that stand for backslashes.
const LONGEST_RUN: usize = 64;

/// How much of a secret a text begins with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Partly {
    /// Bytes of the text.
    pub(super) length: usize,
    /// Bytes of the secret.
    pub(super) of_secret: usize,
    /// Whether that is all of it.
    pub(super) whole: bool,
}

/// The lines of a secret that has several, such as a key in PEM or a document: what shows texts line by
/// line never shows it whole.
pub(super) fn lines_of(secret: &str) -> impl Iterator<Item = &str> {
    let several = secret.trim_end().contains('\n');
    secret
        .lines()
        .map(str::trim)
        .filter(move |line| several && line.len() >= SHORTEST_LINE && !line.starts_with("-----"))
}

/// The ways in which a secret can stand in a text.
pub(super) fn encodings(secret: &str) -> Vec<String> {
    let mut texts = vec![secret.to_owned()];
    texts.extend(json_forms(secret));
    for text in base64_forms(secret.as_bytes()) {
        if text.contains(['/', '+']) {
            texts.push(text.replace('/', "\\/"));
            texts.push(text.replace('+', "%2B").replace('/', "%2F"));
            texts.push(text.replace('+', "%2b").replace('/', "%2f"));
        }
        texts.push(text);
    }
    let hex = |byte: u8| format!("{byte:02x}");
    let hex: String = secret.bytes().map(hex).collect();
    texts.push(hex.to_ascii_uppercase());
    texts.push(hex);
    if is_caseless(secret) {
        texts.push(secret.to_ascii_uppercase());
        texts.push(secret.to_ascii_lowercase());
    }
    texts
}

/// Whether a secret is written in hex or base32, which mean the same in the other case.
fn is_caseless(secret: &str) -> bool {
    let all = |kind: fn(u8) -> bool| secret.bytes().all(kind);
    let hex = all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    let base32 = all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7' | b'='))
        || all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7' | b'='));
    // Words have no digits.
    let mixed = secret.bytes().any(|byte| byte.is_ascii_digit());
    secret.len() >= SHORTEST_CASELESS && mixed && (hex || base32)
}

/// As it stands inside a JSON string that is itself inside a string: escaped the short way, with
/// escaped slashes, and with everything beyond ASCII escaped.
fn json_forms(secret: &str) -> Vec<String> {
    let mut short = String::new();
    let mut ascii = String::new();
    for character in secret.chars() {
        let escaped = match character {
            '"' => "\\\"".to_owned(),
            '\\' => "\\\\".to_owned(),
            '\n' => "\\n".to_owned(),
            '\r' => "\\r".to_owned(),
            '\t' => "\\t".to_owned(),
            '\u{8}' => "\\b".to_owned(),
            '\u{c}' => "\\f".to_owned(),
            c if c < ' ' => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        };
        short.push_str(&escaped);
        if character.is_ascii() {
            ascii.push_str(&escaped);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                // Writing to a string cannot fail.
                let _infallible = write!(ascii, "\\u{unit:04x}");
            }
        }
    }
    vec![short.replace('/', "\\/"), short, ascii]
}

/// The first three bytes of every text that is `secret` with some bytes percent-encoded, or with
/// `+` for a space: encoders differ in what they leave as it is.
pub(super) fn percent_beginnings(secret: &str) -> HashSet<[u8; 3]> {
    let mut beginnings = vec![Vec::new()];
    for byte in secret.bytes().take(3) {
        let mut forms = vec![
            vec![byte],
            format!("%{byte:02X}").into_bytes(),
            format!("%{byte:02x}").into_bytes(),
        ];
        if byte == b' ' {
            forms.push(vec![b'+']);
        }
        beginnings = beginnings
            .iter()
            .flat_map(|before| forms.iter().map(move |form| [before.as_slice(), form].concat()))
            .collect();
    }
    beginnings.iter().filter_map(|text| text.first_chunk::<3>().copied()).collect()
}

/// How much of the percent-encoded form of `secret` stands at the beginning of `text`.
pub(super) fn percent_length(secret: &str, text: &str) -> Partly {
    let mut rest = text.as_bytes();
    let mut of_secret = 0;
    for byte in secret.bytes() {
        rest = match rest {
            [b'%', high, low, after @ ..] if hex(*high, *low) == Some(byte) => after,
            [b'+', after @ ..] if byte == b' ' => after,
            [first, after @ ..] if *first == byte => after,
            _ => break,
        };
        of_secret += 1;
    }
    Partly { length: text.len() - rest.len(), of_secret, whole: of_secret == secret.len() }
}

/// The first three bytes of every text that is `secret` with some characters escaped as in JSON.
pub(super) fn escaped_beginnings(secret: &str) -> HashSet<[u8; 3]> {
    let mut beginnings = vec![Vec::new()];
    for character in secret.chars().take(3) {
        let mut forms = vec![character.to_string()];
        // However often it is escaped: as a number, or the short way.
        let mut units = [0; 2];
        let unit = character.encode_utf16(&mut units).first().copied().unwrap_or_default();
        forms.extend([format!("\\u{unit:04x}"), format!("\\u{unit:04X}")]);
        forms.extend(["\\\\u".to_owned(), "\\\\\\".to_owned()]);
        if let Some(short) = short_escape(character) {
            forms.extend([format!("\\{short}"), format!("\\\\{short}")]);
        }
        beginnings = beginnings
            .iter()
            .flat_map(|before: &Vec<u8>| {
                forms.iter().map(move |form| [before.as_slice(), form.as_bytes()].concat())
            })
            .collect();
    }
    let beginnings = beginnings.iter().filter_map(|text| text.first_chunk::<3>().copied());
    // What has no escape in it is found as it is.
    beginnings.collect()
}

/// The letter that stands for a character after a backslash.
const fn short_escape(character: char) -> Option<char> {
    Some(match character {
        '"' | '\\' | '/' => character,
        '\u{8}' => 'b',
        '\u{c}' => 'f',
        '\n' => 'n',
        '\r' => 'r',
        '\t' => 't',
        _ => return None,
    })
}

/// How much of `secret`, with some characters escaped as in JSON, stands at the beginning of `text`.
pub(super) fn escaped_length(secret: &str, text: &str) -> Partly {
    let mut rest = text;
    let mut characters = secret.chars();
    let mut at = characters.clone();
    while let Some(character) = characters.next() {
        let Some(length) = escaped_character(character, rest) else { break };
        let (form, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        rest = after;
        if character == '\\' && form.ends_with('\\') {
            // Several of them are one run, however often each was escaped.
            while characters.as_str().starts_with('\\') {
                characters.next();
            }
        }
        at = characters.clone();
    }
    let of_secret = secret.len() - at.as_str().len();
    Partly { length: text.len() - rest.len(), of_secret, whole: of_secret == secret.len() }
}

/// Bytes of the escaped or plain form of one character at the beginning of `text`.
fn escaped_character(character: char, text: &str) -> Option<usize> {
    let slashes = text.bytes().take(MOST_BACKSLASHES).take_while(|byte| *byte == b'\\').count();
    if slashes == 0 {
        return text.starts_with(character).then(|| character.len_utf8());
    }
    let rest = text.get(slashes..)?;
    if let Some(digits) = rest.strip_prefix('u').and_then(|rest| rest.get(..4))
        && let Ok(unit) = u16::from_str_radix(digits, 16)
    {
        let mut units = [0; 2];
        let units = character.encode_utf16(&mut units);
        if units.first() == Some(&unit) {
            let first = slashes + 5;
            let Some(second) = units.get(1) else { return Some(first) };
            let rest = text.get(first..)?;
            let after = rest.trim_start_matches('\\').strip_prefix('u')?;
            let low = u16::from_str_radix(after.get(..4)?, 16).ok()?;
            return (low == *second).then(|| first + (rest.len() - after.len()) + 4);
        }
    }
    match short_escape(character)? {
        // The run is the character itself, or several of it.
        '\\' => Some(text.bytes().take(LONGEST_RUN).take_while(|byte| *byte == b'\\').count()),
        short => rest.starts_with(short).then(|| slashes + short.len_utf8()),
    }
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some((digit(high)? << 4) | digit(low)?)
}

/// The parts of a base64 text that any text around the secret leaves the same, one for each of the
/// three ways it can lie in the groups of three bytes; and the whole with and without padding.
fn base64_forms(secret: &[u8]) -> Vec<String> {
    let mut texts = Vec::new();
    for engine in [&STANDARD, &URL_SAFE] {
        let whole = engine.encode(secret);
        texts.push(whole.trim_end_matches('=').to_owned());
        texts.push(whole);
        for before in 0..3 {
            let mut shifted = vec![0; before];
            shifted.extend_from_slice(secret);
            let text = engine.encode(&shifted);
            // The characters that hold bits of the neighbours differ from text to text.
            let first = (before * 8).div_ceil(6);
            let last = shifted.len() * 8 / 6;
            if let Some(core) = text.get(first..last).filter(|core| core.len() >= 8) {
                texts.push(core.to_owned());
            }
        }
    }
    texts
}
