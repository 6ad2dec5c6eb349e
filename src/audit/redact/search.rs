//! Finding secrets in one string: known values in all their encodings, and what looks like a
//! credential.
//!
//! Every pattern is at least three bytes long. A bit set over hashes of three bytes tells at each
//! position whether a pattern can begin there; only then are the patterns with those three bytes
//! compared. So one pass serves any number of patterns.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use super::Strictness;

/// Shorter secrets would be found everywhere, and hiding them would hide everything.
const SHORTEST_SECRET: usize = 4;
/// A PEM block without an end is hidden up to the end of what is searched.
const PEM_BEGIN: &str = "-----BEGIN ";
const PEM_END: &str = "-----END ";
/// How far a window reaches beyond a cut at least, so that a credential at the edge is seen whole.
const SHORTEST_WINDOW: usize = 1024;

/// 4 KiB of bits: a few hundred beginnings leave few false hits, and it stays in the first cache.
const KEY_BITS: u32 = 15;

/// Prefixes of keys that well-known services hand out, and how many characters follow at least.
const KEY_PREFIXES: [(&str, usize); 22] = [
    ("sk-", 16),
    ("sk_live_", 10),
    ("sk_test_", 10),
    ("rk_live_", 10),
    ("pk_live_", 10),
    ("sy_", 16),
    ("ghp_", 16),
    ("gho_", 16),
    ("ghu_", 16),
    ("ghs_", 16),
    ("ghr_", 16),
    ("github_pat_", 16),
    ("glpat-", 12),
    ("xoxb-", 10),
    ("xoxp-", 10),
    ("xoxa-", 10),
    ("xapp-", 10),
    ("npm_", 20),
    ("hf_", 20),
    ("AIza", 30),
    ("AKIA", 16),
    ("ASIA", 16),
];

#[derive(Clone)]
enum Pattern {
    /// A known secret in one of its encodings.
    Known(Box<str>),
    /// A known secret, percent-encoded in part or as a whole.
    PercentEncoded(Box<str>),
    /// A prefix and the least number of characters after it.
    KeyPrefix(&'static str, usize),
    /// `Bearer` or `Basic` and a credential.
    Scheme(&'static str),
    /// The beginning of a JSON Web Token.
    Jwt,
    /// The beginning of a PEM block.
    Pem,
}

/// Finds all of a set of patterns in one pass. Not `Debug`: it holds the secrets.
pub(super) struct Searcher {
    /// One bit for each hash of the first three bytes of a pattern.
    begins: Box<[u64]>,
    patterns: HashMap<[u8; 3], Vec<Pattern>>,
    longest: usize,
}

impl Searcher {
    pub(super) fn new(secrets: &[&str], strictness: Strictness) -> Self {
        let mut searcher = Self {
            begins: vec![0; 1 << (KEY_BITS - 6)].into_boxed_slice(),
            patterns: HashMap::new(),
            longest: SHORTEST_WINDOW,
        };
        let known: HashSet<String> = secrets
            .iter()
            .filter(|secret| secret.len() >= SHORTEST_SECRET)
            .flat_map(|secret| encodings(secret))
            .filter(|text| text.len() >= SHORTEST_SECRET)
            .collect();
        for text in known {
            searcher.longest = searcher.longest.max(text.len());
            searcher.add(text.as_bytes(), &Pattern::Known(text.clone().into_boxed_str()));
        }
        for secret in secrets.iter().filter(|secret| secret.len() >= SHORTEST_SECRET) {
            searcher.longest = searcher.longest.max(secret.len().saturating_mul(3));
            for beginning in percent_beginnings(secret) {
                searcher.add(&beginning, &Pattern::PercentEncoded((*secret).into()));
            }
        }
        if strictness == Strictness::Everything {
            for (prefix, rest) in KEY_PREFIXES {
                searcher.add(prefix.as_bytes(), &Pattern::KeyPrefix(prefix, rest));
            }
            for scheme in ["bearer", "basic"] {
                for variant in case_variants(scheme) {
                    searcher.add(&variant, &Pattern::Scheme(scheme));
                }
            }
            searcher.add(b"eyJ", &Pattern::Jwt);
            searcher.add(PEM_BEGIN.as_bytes(), &Pattern::Pem);
        }
        searcher
    }

    fn add(&mut self, text: &[u8], pattern: &Pattern) {
        let Some(first) = text.first_chunk::<3>() else { return };
        let hash = hash(*first);
        if let Some(word) = self.begins.get_mut(hash >> 6) {
            *word |= 1 << (hash & 63);
        }
        self.patterns.entry(*first).or_default().push(pattern.clone());
    }

    /// The longest text that one known secret can take.
    pub(super) const fn longest(&self) -> usize {
        self.longest
    }

    /// Where secrets are, in order, without overlaps.
    pub(super) fn spans(&self, text: &str) -> Vec<Range<usize>> {
        let bytes = text.as_bytes();
        let mut spans: Vec<Range<usize>> = Vec::new();
        for (at, window) in bytes.windows(3).enumerate() {
            let &[a, b, c] = window else { continue };
            let hash = hash([a, b, c]);
            if self.begins.get(hash >> 6).is_none_or(|word| word & (1 << (hash & 63)) == 0) {
                continue;
            }
            let Some(patterns) = self.patterns.get(&[a, b, c]) else { continue };
            let covered = spans.last().map_or(0, |span| span.end);
            // Known secrets may begin inside something hidden and reach beyond it. The others are
            // not looked for there, which also keeps `sk-sk-sk-…` from being read over and over.
            let inside = at < covered;
            let end = patterns
                .iter()
                .filter(|pattern| !inside || pattern.is_known_secret())
                .filter_map(|pattern| pattern.span(text, at))
                .max_by_key(|(_, end)| *end);
            match (end, spans.last_mut()) {
                (Some((_, end)), Some(last)) if inside => last.end = last.end.max(end),
                (Some((start, end)), _) => spans.push(start..end),
                (None, _) => {}
            }
        }
        spans
    }
}

impl Pattern {
    const fn is_known_secret(&self) -> bool {
        matches!(self, Self::Known(_) | Self::PercentEncoded(_))
    }

    /// What is hidden of the secret that begins at `at`.
    fn span(&self, text: &str, at: usize) -> Option<(usize, usize)> {
        let rest = text.get(at..)?;
        match self {
            Self::Known(known) => rest.starts_with(known.as_ref()).then(|| (at, at + known.len())),
            Self::PercentEncoded(secret) => {
                percent_length(secret, rest).map(|length| (at, at + length))
            }
            Self::KeyPrefix(prefix, least) => {
                let body = rest.strip_prefix(prefix)?;
                if !begins_word(text, at) {
                    return None;
                }
                let length = run(body, is_word);
                (length >= *least).then(|| (at, at + prefix.len() + length))
            }
            Self::Scheme(scheme) => {
                let name = rest.get(..scheme.len())?;
                if !name.eq_ignore_ascii_case(scheme) || !begins_word(text, at) {
                    return None;
                }
                let body = rest.get(scheme.len()..)?;
                let spaces = run(body, |byte| byte == b' ' || byte == b'\t');
                let credential = body.get(spaces..)?;
                let length = run(credential, is_token68);
                // "basic functionality" is prose; encoded credentials are mixed.
                let is_prose = *scheme == "basic"
                    && credential
                        .get(1..length)
                        .is_some_and(|tail| tail.bytes().all(|byte| byte.is_ascii_lowercase()));
                // The scheme's name stays: it is no secret, and says what was there.
                let start = at + scheme.len() + spaces;
                (spaces > 0 && length >= 8 && !is_prose).then(|| (start, start + length))
            }
            Self::Jwt => {
                if !begins_word(text, at) {
                    return None;
                }
                let length = run(rest, |byte| is_word(byte) || byte == b'.');
                let token = rest.get(..length)?;
                let parts = token.split('.').take(3).filter(|part| part.len() >= 4).count();
                (parts >= 2).then(|| (at, at + length))
            }
            Self::Pem => {
                let body = rest.strip_prefix(PEM_BEGIN)?;
                let end = body.find(PEM_END).and_then(|end| {
                    let label = end + PEM_END.len();
                    let dashes = body.get(label..)?.find("-----")?;
                    Some(label + dashes + 5)
                });
                let end = end.map_or(text.len(), |end| at + PEM_BEGIN.len() + end);
                Some((at, end))
            }
        }
    }
}

/// How many of the first bytes satisfy `wanted`. All of them are ASCII, so it is a character
/// boundary.
fn run(text: &str, wanted: impl Fn(u8) -> bool) -> usize {
    text.bytes().position(|byte| !wanted(byte)).unwrap_or(text.len())
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn is_token68(byte: u8) -> bool {
    is_word(byte) || matches!(byte, b'.' | b'~' | b'+' | b'/' | b'=' | b'%' | b':')
}

fn begins_word(text: &str, at: usize) -> bool {
    at.checked_sub(1)
        .and_then(|before| text.as_bytes().get(before))
        .is_none_or(|byte| !is_word(*byte))
}

/// Mixes three bytes into a number below `1 << KEY_BITS`.
fn hash([a, b, c]: [u8; 3]) -> usize {
    let value = u32::from_le_bytes([a, b, c, 0]);
    let mixed = value.wrapping_mul(0x9e37_79b1) >> (32 - KEY_BITS);
    usize::try_from(mixed).unwrap_or(0)
}

/// The first three letters in every mixture of cases.
fn case_variants(word: &str) -> Vec<Vec<u8>> {
    (0..8u8)
        .map(|upper| {
            let letters = word.bytes().take(3).enumerate();
            letters
                .map(
                    |(at, byte)| {
                        if upper & (1 << at) == 0 { byte } else { byte.to_ascii_uppercase() }
                    },
                )
                .collect()
        })
        .collect()
}

/// The ways in which a secret can stand in a text.
fn encodings(secret: &str) -> Vec<String> {
    let mut texts = vec![secret.to_owned()];
    texts.extend(json_forms(secret));
    texts.extend(base64_forms(secret.as_bytes()));
    texts
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
fn percent_beginnings(secret: &str) -> HashSet<[u8; 3]> {
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

/// How long the percent-encoded form of `secret` at the beginning of `text` is.
fn percent_length(secret: &str, text: &str) -> Option<usize> {
    let mut rest = text.as_bytes();
    for byte in secret.bytes() {
        rest = match rest {
            [b'%', high, low, after @ ..] if hex(*high, *low) == Some(byte) => after,
            [b'+', after @ ..] if byte == b' ' => after,
            [first, after @ ..] if *first == byte => after,
            _ => return None,
        };
    }
    Some(text.len() - rest.len())
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
