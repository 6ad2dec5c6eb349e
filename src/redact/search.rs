//! Finding secrets in one string: known values in all their encodings, and what looks like a
//! credential.
//!
//! Every pattern is at least three bytes long. A bit set over hashes of three bytes tells at each
//! position whether a pattern can begin there; only then, and where the fourth byte fits, are the
//! patterns with those three bytes compared. So one pass serves any number of patterns.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::encoding::{
    Partly, encodings, escaped_beginnings, escaped_length, lines_of, percent_beginnings,
    percent_length,
};
use super::keys::{self, Body, KEYS};
use super::peel::{Peeler, Sought};
use super::redactor::Strictness;
use super::value::{Within, bare_length};
use crate::model::CUT;

/// Shorter secrets would be found everywhere, and hiding them would hide everything.
const SHORTEST_SECRET: usize = 4;
/// A secret that was cut is recognised by so many bytes of its beginning.
const TELLING: usize = 4;
/// What is left at most of an escape that a cut goes through.
const LONGEST_ESCAPE: usize = 12;
/// So far on the digits of a key are looked for.
const LONGEST_LOOK: usize = 40;
/// No name and password in an address are longer.
const LONGEST_USER_INFO: usize = 1024;
/// A PEM block without an end is hidden up to the end of what is searched.
const PEM_BEGIN: &str = "-----BEGIN ";
const PEM_END: &str = "-----END ";
/// How far a window reaches beyond a cut at least, so that a credential at the edge is seen whole.
const SHORTEST_WINDOW: usize = 1024;

/// 4 KiB of bits: a few hundred beginnings leave few false hits, and it stays in the first cache.
const KEY_BITS: u32 = 15;
/// A credential with marks in it and digits has so many letters at least.
const SHORTEST_MARKED: usize = 8;

#[derive(Clone)]
enum Pattern {
    /// A known secret in one of its encodings.
    Known(Box<str>),
    /// A known secret, percent-encoded in part or as a whole.
    PercentEncoded(Arc<str>),
    /// A known secret with escapes of JSON in it, once or several times.
    Escaped(Arc<str>),
    /// The beginning of a key, and what follows.
    Key(&'static str, Body),
    /// A key with this in its middle: where one is whose middle is there.
    Around(fn(&str, usize) -> Option<(usize, usize)>),
    /// The beginning of the key of a bot of Discord.
    Discord,
    /// `Bearer` or `Basic` and a credential.
    Scheme(&'static str),
    /// The beginning of a JSON Web Token.
    Jwt,
    /// The beginning of a PEM block.
    Pem,
    /// What stands before a host in an address: name and password.
    UserInfo,
}

/// Finds all of a set of patterns in one pass. Not `Debug`: it holds the secrets.
pub(super) struct Searcher {
    beginnings: Beginnings,
    longest: usize,
    peeler: Peeler,
}

impl Searcher {
    pub(super) fn new(secrets: &[&str], strictness: Strictness) -> Self {
        let mut patterns: Vec<(Vec<u8>, Pattern)> = Vec::new();
        let mut add = |beginning: &[u8], pattern: &Pattern| {
            patterns.push((beginning.to_vec(), pattern.clone()));
        };
        let mut searcher = Self {
            beginnings: Beginnings::default(),
            longest: SHORTEST_WINDOW,
            peeler: Peeler::new(std::iter::empty(), strictness),
        };
        // What has lines is also shown line by line.
        let secrets: HashSet<&str> = secrets
            .iter()
            .flat_map(|secret| std::iter::once(*secret).chain(lines_of(secret)))
            .filter(|secret| secret.len() >= SHORTEST_SECRET)
            .collect();
        let known: HashSet<String> = secrets
            .iter()
            .flat_map(|secret| encodings(secret))
            .filter(|text| text.len() >= SHORTEST_SECRET)
            .collect();
        for text in known {
            searcher.longest = searcher.longest.max(text.len());
            add(text.as_bytes(), &Pattern::Known(text.clone().into_boxed_str()));
        }
        searcher.peeler = Peeler::new(secrets.iter().copied(), strictness);
        for secret in secrets {
            // Each byte as `\\\\u00xx` in base64, the longest form that is looked for.
            searcher.longest = searcher.longest.max(secret.len().saturating_mul(12));
            let shared: Arc<str> = secret.into();
            for beginning in percent_beginnings(secret) {
                add(&beginning, &Pattern::PercentEncoded(Arc::clone(&shared)));
            }
            for beginning in escaped_beginnings(secret) {
                add(&beginning, &Pattern::Escaped(Arc::clone(&shared)));
            }
        }
        if strictness == Strictness::Everything {
            for (prefix, body) in KEYS {
                for beginning in beginnings(prefix) {
                    add(&beginning, &Pattern::Key(prefix, body));
                }
            }
            add(keys::TERRAFORM.as_bytes(), &Pattern::Around(keys::terraform));
            add(keys::TELEGRAM.as_bytes(), &Pattern::Around(keys::telegram));
            for beginning in keys::discord_beginnings() {
                add(&beginning, &Pattern::Discord);
            }
            for scheme in ["bearer", "basic"] {
                for variant in case_variants(scheme) {
                    add(&variant, &Pattern::Scheme(scheme));
                }
            }
            add(b"eyJ", &Pattern::Jwt);
            add(PEM_BEGIN.as_bytes(), &Pattern::Pem);
            add(b"://", &Pattern::UserInfo);
        }
        searcher.beginnings = Beginnings::new(patterns);
        searcher
    }

    /// The longest text that one known secret can take.
    pub(super) const fn longest(&self) -> usize {
        self.longest
    }

    /// Where secrets are, in order, without overlaps.
    pub(super) fn spans(&self, text: &str) -> Vec<Range<usize>> {
        self.found(text, |_| true)
    }

    /// Where they are below encodings, and what `named` finds there. In no order, and they may overlap.
    pub(super) fn spans_below(
        &self,
        text: &str,
        named: impl Fn(&str) -> Vec<Range<usize>>,
    ) -> Vec<Range<usize>> {
        let known = |text: &str| self.found(text, Pattern::is_known_secret);
        let any = |text: &str| {
            let mut found = self.spans(text);
            found.extend(named(text));
            found
        };
        self.peeler.spans(text, Sought { known: &known, any: &any })
    }

    /// Where those of the patterns are that are `wanted`, in order, without overlaps.
    fn found(&self, text: &str, wanted: impl Fn(&Pattern) -> bool) -> Vec<Range<usize>> {
        let bytes = text.as_bytes();
        let mut spans: Vec<Range<usize>> = Vec::new();
        for (at, window) in bytes.windows(3).enumerate() {
            let &[a, b, c] = window else { continue };
            let Some(patterns) = self.beginnings.at([a, b, c], || bytes.get(at + 3).copied())
            else {
                continue;
            };
            let covered = spans.last().map_or(0, |span| span.end);
            // Known secrets may begin inside something hidden and reach beyond it. The others are
            // not looked for there, which also keeps `sk-sk-sk-…` from being read over and over.
            let inside = at < covered;
            let end = patterns
                .iter()
                .filter(|(first, _)| *first == [a, b, c])
                .map(|(_, pattern)| pattern)
                .filter(|pattern| wanted(pattern) && (!inside || pattern.is_known_secret()))
                .filter_map(|pattern| pattern.span(text, at))
                .max_by_key(|(_, end)| *end);
            match (end, spans.last_mut()) {
                (Some((_, end)), Some(last)) if inside => last.end = last.end.max(end),
                // Those with something before their middle may reach back into the last.
                (Some((start, end)), _) => spans.push(start.max(covered)..end),
                (None, _) => {}
            }
        }
        spans
    }
}

/// Patterns by how they begin.
#[derive(Default)]
struct Beginnings {
    /// One bit for each hash of the first three bytes of a pattern.
    bits: Box<[u64]>,
    /// How many of them are set before each word.
    before: Box<[u32]>,
    /// For each that is set, in order.
    all: Vec<Beginning>,
}

/// The patterns whose first three bytes have one hash.
#[derive(Default)]
struct Beginning {
    /// One bit for each byte that can follow these three.
    next: [u64; 4],
    /// With the three.
    patterns: Vec<([u8; 3], Pattern)>,
}

impl Beginnings {
    /// Patterns, each with three bytes or more that it begins with. If there are more, one with another
    /// fourth is never found.
    fn new(patterns: Vec<(Vec<u8>, Pattern)>) -> Self {
        let mut by_hash: BTreeMap<usize, Beginning> = BTreeMap::new();
        for (beginning, pattern) in patterns {
            let Some(first) = beginning.first_chunk::<3>() else { continue };
            let of_hash = by_hash.entry(hash(*first)).or_default();
            match beginning.get(3) {
                Some(next) => of_hash.set(*next),
                None => of_hash.next = [u64::MAX; 4],
            }
            of_hash.patterns.push((*first, pattern));
        }
        let mut bits = vec![0; 1 << (KEY_BITS - 6)];
        for hash in by_hash.keys() {
            if let Some(word) = bits.get_mut(hash >> 6) {
                *word |= 1_u64 << (hash & 63);
            }
        }
        let mut set = 0;
        let before = bits.iter().map(|word| {
            let before = set;
            set += word.count_ones();
            before
        });
        Self { before: before.collect(), bits: bits.into(), all: by_hash.into_values().collect() }
    }

    /// Those that can begin with these three bytes and what is next, and some that do not.
    #[inline]
    fn at(&self, first: [u8; 3], next: impl Fn() -> Option<u8>) -> Option<&[([u8; 3], Pattern)]> {
        let hash = hash(first);
        let word = self.bits.get(hash >> 6)?;
        let bit = 1 << (hash & 63);
        if word & bit == 0 {
            return None;
        }
        let before = self.before.get(hash >> 6)? + (word & (bit - 1)).count_ones();
        let beginning = self.all.get(usize::try_from(before).ok()?)?;
        let fits = next().is_none_or(|next| beginning.has(next));
        fits.then_some(beginning.patterns.as_slice())
    }
}

impl Beginning {
    fn set(&mut self, next: u8) {
        if let Some(word) = self.next.get_mut(usize::from(next >> 6)) {
            *word |= 1 << (next & 63);
        }
    }

    fn has(&self, next: u8) -> bool {
        self.next.get(usize::from(next >> 6)).is_some_and(|word| word & (1 << (next & 63)) != 0)
    }
}

impl Pattern {
    const fn is_known_secret(&self) -> bool {
        matches!(self, Self::Known(_) | Self::PercentEncoded(_) | Self::Escaped(_))
    }

    /// What is hidden of the secret that begins at `at`.
    fn span(&self, text: &str, at: usize) -> Option<(usize, usize)> {
        let rest = text.get(at..)?;
        match self {
            Self::Known(known) => {
                let same = common_length(rest, known);
                let found = same == known.len() || (same >= TELLING && ends_cut(rest, same));
                found.then(|| (at, at + same))
            }
            Self::PercentEncoded(secret) => {
                found_partly(percent_length(secret, rest), rest).map(|length| (at, at + length))
            }
            Self::Escaped(secret) => {
                found_partly(escaped_length(secret, rest), rest).map(|length| (at, at + length))
            }
            Self::Key(prefix, key) => {
                let body = rest.strip_prefix(prefix)?;
                if !begins_word(text, at) && !begins_name(text, at, body) {
                    return None;
                }
                key.length(body).map(|length| (at, at + prefix.len() + length))
            }
            Self::Around(find) => find(text, at),
            Self::Discord => {
                let length = keys::discord(rest).filter(|_| begins_word(text, at))?;
                Some((at, at + length))
            }
            Self::Scheme(scheme) => {
                let name = rest.get(..scheme.len())?;
                if !name.eq_ignore_ascii_case(scheme) || !begins_word(text, at) {
                    return None;
                }
                let body = rest.get(scheme.len()..)?;
                let spaces = run(body, |byte| byte == b' ' || byte == b'\t');
                // Before what follows is read: `basic/basic/…` would be read over and over.
                if spaces == 0 {
                    return None;
                }
                let credential = body.get(spaces..)?;
                let encoded = run(credential, is_token68);
                // "basic functionality" is prose; encoded credentials are mixed.
                let basic = *scheme == "basic";
                let is_prose = basic
                    && credential
                        .get(1..encoded)
                        .is_some_and(|tail| tail.bytes().all(|byte| byte.is_ascii_lowercase()));
                // Others have marks of their own, and end where a word does.
                let length = if basic { encoded } else { encoded.max(word_length(credential)) };
                let whole = credential.get(..length)?;
                // The scheme's name stays: it is no secret, and says what was there.
                let start = at + scheme.len() + spaces;
                let enough = encoded >= 8
                    || (length >= SHORTEST_MARKED
                        && whole.bytes().any(|byte| byte.is_ascii_digit())
                        // What a server asks for.
                        && !whole.contains("=\""))
                    || (encoded > 0 && ends_cut(credential, encoded));
                (enough && !is_prose).then(|| (start, start + length))
            }
            Self::Jwt => {
                if !begins_word(text, at) {
                    return None;
                }
                // No more is read of what is none than its three parts: `eyJ.eyJ.…` begins anew at each.
                let (mut seen, mut parts) = (0, 0);
                for _ in 0..3 {
                    let part = run(rest.get(seen..)?, is_word);
                    parts += usize::from(part >= 4);
                    seen += part;
                    if !rest.get(seen..)?.starts_with('.') {
                        break;
                    }
                    seen += 1;
                }
                if parts >= 2 {
                    let length = run(rest, |byte| is_word(byte) || byte == b'.');
                    return Some((at, at + length));
                }
                ends_cut(rest, seen).then(|| (at, at + seen))
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
            Self::UserInfo => {
                let body = rest.strip_prefix("://")?;
                let length = body.bytes().take(LONGEST_USER_INFO).position(|byte| {
                    matches!(byte, b'@' | b'/' | b'?' | b'#' | b'"' | b'\'' | b'<' | b'>')
                        || byte.is_ascii_whitespace()
                })?;
                let named =
                    body.get(length..)?.starts_with('@') && body.get(..length)?.contains(':');
                named.then(|| (at + 3, at + 3 + length))
            }
        }
    }
}

/// Bytes of the word that a credential is, which may have marks in it.
fn word_length(text: &str) -> usize {
    let length = bare_length(text, Within::Words);
    let word = text.get(..length).unwrap_or_default();
    // Before a line's end in a text that has it escaped.
    let end = ["\\n", "\\r", "\\t"].iter().filter_map(|end| word.find(end));
    end.chain(word.find(CUT)).min().unwrap_or(length)
}

/// How many bytes two texts begin with alike.
fn common_length(one: &str, other: &str) -> usize {
    one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count()
}

/// Whether a text was cut after these bytes: what stands there may be the beginning of more.
pub(super) fn ends_cut(text: &str, length: usize) -> bool {
    text.get(length..).is_some_and(|rest| rest.starts_with(CUT))
}

/// How much of a text is a secret, or its beginning before a cut, which may go through an escape.
fn found_partly(found: Partly, text: &str) -> Option<usize> {
    if found.whole {
        return Some(found.length);
    }
    let rest = text.get(found.length..).filter(|_| found.of_secret >= TELLING)?;
    let escape = |c: char| matches!(c, '%' | '\\' | 'u') || c.is_ascii_hexdigit();
    let left = rest.chars().take(LONGEST_ESCAPE).take_while(|c| escape(*c)).count();
    ends_cut(rest, left).then_some(found.length + left)
}

/// How many of the first bytes satisfy `wanted`. All of them are ASCII, so it is a character
/// boundary.
pub(super) fn run(text: &str, wanted: impl Fn(u8) -> bool) -> usize {
    text.bytes().position(|byte| !wanted(byte)).unwrap_or(text.len())
}

pub(super) fn is_word(byte: u8) -> bool {
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

/// Whether this is where a tool's own name begins behind its server's, and it goes on like a key: those have
/// digits, and `web__npm_list_all_packages` has none.
fn begins_name(text: &str, at: usize, body: &str) -> bool {
    let letters = || body.bytes().take(LONGEST_LOOK).take_while(|byte| is_word(*byte));
    text.get(..at).is_some_and(|before| before.ends_with("__"))
        && letters().any(|byte| byte.is_ascii_digit())
}

/// Mixes three bytes into a number below `1 << KEY_BITS`, which what texts are full of, such as spaces,
/// shares with the beginning of no key.
fn hash([a, b, c]: [u8; 3]) -> usize {
    let value = u32::from_le_bytes([a, b, c, 0]);
    let mixed = value.wrapping_mul(0x1656_67b1) >> (32 - KEY_BITS);
    usize::try_from(mixed).unwrap_or(0)
}

/// The first three bytes of what begins with `prefix`, also where that has two and hex follows.
fn beginnings(prefix: &str) -> Vec<Vec<u8>> {
    if prefix.len() > 2 {
        return vec![prefix.as_bytes().to_vec()];
    }
    b"0123456789abcdefABCDEF".iter().map(|byte| [prefix.as_bytes(), &[*byte]].concat()).collect()
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
