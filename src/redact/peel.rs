//! Secrets below encodings: base64 and hex, also broken into lines, percent-encoding, escapes of JSON,
//! entities of HTML and XML, and their mixtures. PURE.
//!
//! Changes when secrets must be found below another encoding, or deeper. [`search`](super::search) finds
//! what is as it is, and known secrets that are encoded once; here encodings are taken off, and what is
//! below is searched again. Each step is linear in the text, and there are [`DEPTH`] of them.

use std::ops::Range;
use std::sync::LazyLock;

use super::redactor::Strictness;
use super::respell::{Marks, Peeled, hex, respellings, text_of};
use crate::model::CUT;

/// Encodings that are taken off, one below the other. What is left may be encoded once more.
pub(super) const DEPTH: u8 = 2;
/// A line that ends in so many characters of one word may go on in the next.
const LINE: usize = 16;
/// Shorter runs of letters and digits are looked into for no secret.
const SHORTEST_RUN: usize = 6;
/// And shorter ones than this for no secret that nobody told: `token=abcd` takes so many.
const SHORTEST_UNTOLD: usize = 14;
/// Fewer digits of hex beside other letters are no text of their own.
const SHORTEST_HEX: usize = 8;
/// What has so many letters in a row was meant to be read. Random bytes rarely have.
const READABLE: usize = 12;
/// So far on a run can be read if a secret that nobody told is in it: a large one of bytes costs no more.
const HEAD: usize = 256;
/// So long is a line of base64 that was broken somewhere, at least.
const LONG_LINE: usize = 40;
/// So much of a secret gives it away where its lines are seen one by one.
const PART: usize = 8;
/// Backslashes before the `n` of a line's end: as often as it may be escaped.
const MOST_BACKSLASHES: usize = 16;

/// Takes encodings off. Not `Debug`: it holds the secrets.
pub(super) struct Peeler {
    secrets: Vec<Box<str>>,
    /// Shorter runs can hold no known secret.
    told: usize,
    /// Nor anything else that is looked for.
    least: usize,
    /// Whether one of the secrets has a quote in it.
    quoted: bool,
    /// The marks before which shells write a backslash where they write one, encoded or not.
    marks: Marks,
}

/// Where something is in a text, as it is and encoded once.
type Find<'a> = &'a dyn Fn(&str) -> Vec<Range<usize>>;

/// What is looked for.
#[derive(Clone, Copy)]
pub(super) struct Sought<'a> {
    /// Known secrets.
    pub(super) known: Find<'a>,
    /// All that is one or looks like one.
    pub(super) any: Find<'a>,
}

impl Peeler {
    pub(super) fn new<'a>(secrets: impl Iterator<Item = &'a str>, strictness: Strictness) -> Self {
        let secrets: Vec<Box<str>> = secrets.map(Into::into).collect();
        let shortest = secrets.iter().map(|secret| secret.len()).min();
        // Three bytes are four characters.
        let told = shortest.map_or(usize::MAX, |shortest| (shortest * 4 / 3).max(SHORTEST_RUN));
        let least = match strictness {
            Strictness::Everything => told.min(SHORTEST_UNTOLD),
            Strictness::KnownSecrets => told,
        };
        let quoted = secrets.iter().any(|secret| secret.contains(['\'', '"']));
        let marks = Marks::of(secrets.iter().flat_map(|secret| secret.bytes()));
        Self { secrets, told, least, quoted, marks }
    }

    /// Where secrets are in `text` below what is found without. In no order, and they may overlap.
    pub(super) fn spans(&self, text: &str, sought: Sought<'_>) -> Vec<Range<usize>> {
        if self.least == usize::MAX {
            return Vec::new();
        }
        let mut spans = self.below(text, sought, DEPTH);
        if self.secrets.is_empty() {
            return spans;
        }
        let mut from = 0;
        // Children's last lines are shown in one, with this between them.
        for line in text.split(['\n', '|']) {
            let found = self.line(line);
            spans.extend(found.map(|span| span.start + from..span.end + from));
            from += line.len() + 1;
        }
        spans
    }

    fn below(&self, text: &str, sought: Sought<'_>, depth: u8) -> Vec<Range<usize>> {
        let Some(whole) = unbroken(text) else {
            let mut found = self.respelled(text, sought, sought.any, depth);
            found.extend(self.decoded(text, sought, depth));
            return found;
        };
        // Where a credential ends that nobody told is not known in it: the next line may not be its.
        let mut found = (sought.known)(&whole.text);
        found.extend(self.respelled(&whole.text, sought, sought.known, depth));
        found.extend(self.decoded(&whole.text, sought, depth));
        // Each byte stands for itself: what was left out after the last is not part of it.
        let end = |end: usize| whole.source(end.saturating_sub(1)) + 1;
        let source = |span: Range<usize>| whole.source(span.start)..end(span.end);
        let mut found: Vec<_> = found.into_iter().map(source).collect();
        found.extend(self.respelled(text, sought, sought.any, depth));
        found
    }

    /// Where they are in a text with letters that are written in another way, as far as `find` goes, and
    /// below.
    fn respelled(
        &self,
        text: &str,
        sought: Sought<'_>,
        find: Find<'_>,
        depth: u8,
    ) -> Vec<Range<usize>> {
        let Some(depth) = depth.checked_sub(1) else { return Vec::new() };
        let mut found = Vec::new();
        for plain in respellings(text, self.quoted, self.marks) {
            let mut below = find(&plain.text);
            below.extend(self.below(&plain.text, sought, depth));
            let source = |span: Range<usize>| plain.source(span.start)..plain.source(span.end);
            found.extend(below.into_iter().map(source));
        }
        found
    }

    /// The runs of base64 and hex that they are in.
    fn decoded(&self, text: &str, sought: Sought<'_>, depth: u8) -> Vec<Range<usize>> {
        let Some(depth) = depth.checked_sub(1) else { return Vec::new() };
        let mut found = Vec::new();
        for run in runs(text, self.least) {
            let Some(letters) = text.get(run.clone()) else { continue };
            let cut = text.get(run.end..).is_some_and(|rest| rest.starts_with(CUT));
            let readable =
                letters.as_bytes().get(..HEAD).is_none_or(|head| decodings(head, is_readable));
            if !readable && self.secrets.is_empty() {
                continue;
            }
            let holds = |bytes: &[u8]| {
                let readable = readable && is_readable(bytes);
                if !readable && !cut && letters.len() < self.told {
                    return false;
                }
                let text = text_of(bytes, cut);
                let find = if readable { sought.any } else { sought.known };
                !find(&text).is_empty() || !self.below(&text, sought, depth).is_empty()
            };
            if decodings(letters.as_bytes(), holds) {
                found.push(run.start..run.end + padding(text, run.end));
            }
        }
        found
    }

    /// A line of base64 or hex, seen without the lines before and after it: it may end with the
    /// beginning of a secret, begin with its end, or be from its middle.
    fn line(&self, text: &str) -> Option<Range<usize>> {
        let line = text.trim_end().trim_end_matches('=');
        let start = line.bytes().rev().take_while(|byte| is_base64(*byte)).count();
        let run = line.len() - start..line.len();
        let letters = line.get(run.clone())?;
        let alone = line.get(..run.start)?.trim_start().is_empty();
        let broken = letters.len() >= LONG_LINE;
        let seen = broken || (alone && letters.len() > PART);
        if !seen {
            return None;
        }
        let holds = |bytes: &[u8]| {
            self.secrets.iter().map(|secret| secret.as_bytes()).any(|secret| {
                let most = secret.len().min(bytes.len());
                let begins = |n: usize| secret.get(..n).is_some_and(|part| bytes.ends_with(part));
                let ends = |n: usize| {
                    secret.get(secret.len() - n..).is_some_and(|part| bytes.starts_with(part))
                };
                let inside = || {
                    let middle = bytes.get(..bytes.len().min(LONG_LINE)).unwrap_or_default();
                    middle.len() > PART && secret.windows(middle.len()).any(|part| part == middle)
                };
                (broken && (PART..=most).any(begins))
                    || (alone && ((PART..=most).any(ends) || inside()))
            })
        };
        let found = decodings(letters.as_bytes(), holds);
        found.then(|| run.start..run.end + padding(text, run.end))
    }
}

/// `text` without the ends of lines that break a long word, also where they are escaped and what comes
/// next is indented. `None` when there is none.
fn unbroken(text: &str) -> Option<Peeled> {
    memchr::memchr3(b'\n', b'\\', b'|', text.as_bytes())?;
    let bytes = text.as_bytes();
    let mut whole = Peeled { text: String::new(), places: Vec::new() };
    let (mut at, mut from, mut word) = (0, 0, 0_usize);
    while let Some(byte) = bytes.get(at) {
        if is_base64(*byte) {
            word += 1;
            at += 1;
            continue;
        }
        let gap = if word >= LINE { line_end(bytes.get(at..).unwrap_or_default()) } else { 0 };
        if gap > 0 && bytes.get(at + gap).is_some_and(|byte| is_base64(*byte)) {
            whole.places.push((whole.text.len(), from));
            whole.text.push_str(text.get(from..at)?);
            at += gap;
            from = at;
        } else {
            word = 0;
            at += 1;
        }
    }
    if whole.places.is_empty() {
        return None;
    }
    whole.places.push((whole.text.len(), from));
    whole.text.push_str(text.get(from..)?);
    Some(whole)
}

/// Bytes of the end of a line, real, escaped or as it is shown of children, and of the spaces that follow; 0
/// when it is none.
fn line_end(bytes: &[u8]) -> usize {
    let (mut at, mut ended) = (0, false);
    if bytes.starts_with(b" | ") {
        (at, ended) = (3, true);
    }
    loop {
        match bytes.get(at) {
            Some(b'\n') => ended = true,
            Some(b'\r') => {}
            Some(b' ' | b'\t') if ended => {}
            Some(b'\\') => {
                let rest = bytes.get(at..).unwrap_or_default();
                let slashes =
                    rest.iter().take(MOST_BACKSLASHES).take_while(|byte| **byte == b'\\').count();
                match rest.get(slashes) {
                    Some(b'n') => ended = true,
                    Some(b'r') => {}
                    _ => break,
                }
                at += slashes;
            }
            _ => break,
        }
        at += 1;
    }
    if ended { at } else { 0 }
}

/// Whether bytes have letters enough in a row to be a text.
fn is_readable(bytes: &[u8]) -> bool {
    let least = bytes.len().min(READABLE);
    let is_letter = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r');
    let mut row = 0;
    bytes.iter().any(|byte| {
        row = if is_letter(byte) { row + 1 } else { 0 };
        row >= least
    })
}

/// Runs of characters of base64, at least `least` of them, or fewer where they were cut; those of hex are
/// such, too.
fn runs(text: &str, least: usize) -> impl Iterator<Item = Range<usize>> + '_ {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = bytes.get(at..)?;
            let start = at + rest.iter().position(|byte| is_base64(*byte))?;
            let rest = bytes.get(start..)?;
            let length = rest.iter().position(|byte| !is_base64(*byte)).unwrap_or(rest.len());
            at = start + length;
            let is_cut = || text.get(at..).is_some_and(|rest| rest.starts_with(CUT));
            if length >= least || (length >= SHORTEST_RUN && is_cut()) {
                return Some(start..at);
            }
        }
    })
}

/// Signs that fill the last group after `at`.
fn padding(text: &str, at: usize) -> usize {
    let rest = text.as_bytes().get(at..).unwrap_or_default();
    rest.iter().take(2).take_while(|byte| **byte == b'=').count()
}

/// Whether `holds` is true for what a run means in one of the ways to read it: something may stand right
/// before its first group.
fn decodings(run: &[u8], holds: impl Fn(&[u8]) -> bool) -> bool {
    let mut bytes = Vec::with_capacity(run.len());
    let mut read = |letters: &[u8], skip: usize, decode: fn(&[u8], &mut Vec<u8>)| {
        bytes.clear();
        decode(letters.get(skip..).unwrap_or_default(), &mut bytes);
        holds(&bytes)
    };
    // Databases write `0x` or `\x` before it, and anything may stand before that.
    run.split(|byte| !byte.is_ascii_hexdigit())
        .filter(|part| part.len() == run.len() || part.len() >= SHORTEST_HEX)
        .any(|part| (0..2).any(|skip| read(part, skip, from_hex)))
        || (0..4).any(|skip| read(run, skip, from_base64))
}

/// Appends what letters of hex stand for; half a byte at the end is left out.
fn from_hex(letters: &[u8], bytes: &mut Vec<u8>) {
    let (pairs, _) = letters.as_chunks::<2>();
    bytes.extend(
        pairs.iter().map(|[high, low]| {
            (hex(*high).unwrap_or_default() << 4) | hex(*low).unwrap_or_default()
        }),
    );
}

/// Appends what letters of base64 stand for, in either alphabet; bits that make no byte are left out.
fn from_base64(letters: &[u8], bytes: &mut Vec<u8>) {
    /// Four letters are three bytes.
    fn group(values: &[u8; 256], letters: [u8; 4]) -> [u8; 3] {
        let value = |letter: u8| values.get(usize::from(letter)).copied().unwrap_or_default();
        let [a, b, c, d] = letters.map(|letter| u32::from(value(letter)));
        let [_, first, second, third] = ((a << 18) | (b << 12) | (c << 6) | d).to_be_bytes();
        [first, second, third]
    }
    let values: &[u8; 256] = &BASE64;
    let (groups, rest) = letters.as_chunks::<4>();
    for letters in groups {
        bytes.extend_from_slice(&group(values, *letters));
    }
    let mut last = [b'A'; 4];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let whole = rest.len().saturating_sub(1);
    bytes.extend(group(values, last).into_iter().take(whole));
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
}

/// What each letter of base64 stands for, in either alphabet.
static BASE64: LazyLock<[u8; 256]> = LazyLock::new(|| {
    std::array::from_fn(|letter| match u8::try_from(letter).unwrap_or_default() {
        letter @ b'A'..=b'Z' => letter - b'A',
        letter @ b'a'..=b'z' => letter - b'a' + 26,
        letter @ b'0'..=b'9' => letter - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => 0,
    })
});

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use crate::model::Secret;
    use crate::redact::tests::{hostile_length, in_linear_time};
    use crate::redact::{Payload, Redactor, Secrets, Strictness};

    fn redactor(secret: &str) -> Redactor {
        Redactor::new(&[], &Secrets::new(vec![Secret::new(secret)]))
    }

    fn percent(text: &str) -> String {
        text.bytes().fold(String::new(), |mut out, byte| {
            match byte.is_ascii_alphanumeric() {
                true => out.push(char::from(byte)),
                false => write!(out, "%{byte:02X}").unwrap(),
            }
            out
        })
    }

    fn hex(text: &str) -> String {
        text.bytes().fold(String::new(), |mut out, byte| {
            write!(out, "{byte:02x}").unwrap();
            out
        })
    }

    fn wrapped(text: &str, width: usize, end: &str) -> String {
        let lines = text.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).unwrap());
        lines.collect::<Vec<_>>().join(end)
    }

    const LONG: &str =
        "S3cr3t/of.more-than=one&line-of-base64 which goes on, and on, to the end of its 90 bytes!";

    #[test]
    fn secrets_are_found_below_broken_lines() {
        let base64 = STANDARD.encode(format!("token={LONG}"));
        for (width, end) in [
            (76, "\n"),
            (76, "\r\n"),
            (64, "\n"),
            (60, "\n    "),
            (76, "\\n"),
            (76, "\\\\r\\\\n"),
            (20, "\n"),
        ] {
            for (text, below) in [(&base64, "base64"), (&hex(LONG), "hex")] {
                let text = format!("it is\n{}=\nafter", wrapped(text, width, end));
                let out = redactor(LONG).text(&text, usize::MAX);
                assert_eq!(out.lines().next(), Some("it is"), "{below} {width} {end:?}: {out}");
                let left = out.trim_start_matches("it is\n").len();
                assert!(left < 40 && out.ends_with("\nafter"), "{below} {width} {end:?}: {out}");
            }
        }
        let whole = "Some-long-word-that-ends-a-line\nand another one stays";
        assert_eq!(redactor(LONG).text(whole, 1000), whole);
    }

    #[test]
    fn lines_of_base64_are_known_one_by_one() {
        let redactor = redactor(LONG);
        for (width, text) in [
            (76, STANDARD.encode(LONG)),
            (64, STANDARD.encode(format!("config:\n  token: {LONG}\n  more: yes\n"))),
            (60, hex(LONG)),
        ] {
            for line in wrapped(&text, width, "\n").lines() {
                let out = redactor.text(&format!("{line}\n"), usize::MAX);
                // What says less than eight bytes of it stays.
                assert!(out == "***\n" || line.len() < 24, "{line}: {out}");
                let out = redactor.text(&format!("said: a | {line} | b"), usize::MAX);
                assert!(out == "said: a | *** | b" || line.len() < 24, "{line}: {out}");
            }
            let out = redactor.text(&format!("said: {} | (b)", wrapped(&text, width, " | ")), 1000);
            assert_eq!(out, "said: *** | (b)");
        }
        let line = STANDARD.encode("nothing that anybody was told to keep from being shown");
        assert_eq!(redactor.text(&line, 1000), line);
    }

    #[test]
    fn secrets_are_found_below_two_encodings() {
        let base64 = |text: &str| STANDARD.encode(text);
        let json = |text: &str| serde_json::to_string(text).unwrap();
        for secret in ["hunter2-and&more", "a \"b\" \\ c\n\u{fc}", LONG] {
            for text in [
                base64(&base64(secret)),
                base64(&format!("x{}", base64(secret))),
                base64(&wrapped(&base64(secret), 76, "\n")),
                wrapped(&base64(&wrapped(&base64(secret), 76, "\n")), 76, "\n"),
                base64(&base64(&base64(secret))),
                URL_SAFE_NO_PAD.encode(URL_SAFE_NO_PAD.encode(secret)),
                base64(&percent(secret)),
                base64(&json(secret)),
                base64(&json(&json(secret))),
                base64(&hex(secret)),
                hex(&base64(secret)),
                hex(&hex(secret)),
                hex(secret).replace('a', "A"),
                percent(&percent(secret)),
                percent(&percent(&percent(secret))),
                percent(&percent(&base64(secret))),
                percent(&base64(&base64(secret))),
            ] {
                let out = redactor(secret).text(&format!("say {text} then"), usize::MAX);
                assert_eq!(out, "say *** then", "{secret:?}: {text}");
                let out = redactor(secret).text(&format!("v={text}&n=1"), usize::MAX);
                assert!(!out.contains(&text) && out.starts_with("v=***"), "{text}: {out}");
                let payload = serde_json::json!({ "a": [text], "b": 1 }).to_string();
                let out = redactor(secret)
                    .payload(Payload::whole(payload.as_bytes()), Strictness::KnownSecrets);
                assert_eq!(out, r#"{"a":["***"],"b":1}"#);
            }
        }
    }

    #[test]
    fn short_secrets_are_found_in_base64_of_more() {
        for secret in ["p4ss", "p4ssw"] {
            for before in ["", "u:", "ab:", "user:"] {
                let text = STANDARD.encode(format!("{before}{secret}@"));
                let out = redactor(secret).text(&format!("Basic: {text}"), 1000);
                assert_eq!(out, "Basic: ***", "{before}{secret}");
            }
        }
    }

    #[test]
    fn what_was_cut_is_known_by_its_beginning() {
        let text = STANDARD.encode(STANDARD.encode(LONG));
        for length in 16..text.len() {
            let out = redactor(LONG).text(&format!("{}…", text.get(..length).unwrap()), 1000);
            assert_eq!(out, "***…", "{length}");
        }
    }

    #[test]
    fn what_nobody_told_is_found_below_encodings() {
        let keys = ["password".to_owned(), "token".to_owned()];
        let json = r#"{"user":"bob","password":"hunter2"}"#;
        let key = "ghp_abcdefghij0123456789";
        for secrets in [Secrets::default(), Secrets::new(vec![Secret::new(LONG)])] {
            let redactor = Redactor::new(&keys, &secrets);
            for (text, expected) in [
                ("password%3Dhunter2%26n%3D1", "password%3D***%26n%3D1"),
                ("/a?next=%2Fx%3Ftoken%3Dabc%26n%3D1", "/a?next=%2Fx%3Ftoken%3D***%26n%3D1"),
                ("Bearer%20abcdefgh12%22", "Bearer%20***%22"),
                ("postgres%3A%2F%2Fu%3Apw%40h", "postgres%3A%2F%2F***%40h"),
                (r#"failed:\ntoken\u003dabc\n"#, r#"failed:\ntoken\u003d***\n"#),
                ("%7B%22password%22%3A%22v%22%7D", "%7B%22password%22%3A%22***%22%7D"),
                ("100%, 50%ab and C:\\new\\table", "100%, 50%ab and C:\\new\\table"),
            ] {
                assert_eq!(redactor.text(text, 1000), expected);
            }
            for before in ["%22", "%2522", "\\n", "\\\\t", "\\u000a", "x\\r\\n", "%3D"] {
                let text = format!("a {before}{key}, b");
                assert_eq!(redactor.text(&text, 1000), format!("a {before}***, b"));
            }
            for text in [
                STANDARD.encode(json),
                URL_SAFE_NO_PAD.encode(json),
                STANDARD.encode(STANDARD.encode(json)),
                percent(&STANDARD.encode(json)),
                wrapped(&STANDARD.encode(format!("{key} {}", "x".repeat(60))), 76, "\n") + ".",
                STANDARD.encode(format!("\u{e9}: {key}")),
                STANDARD.encode("password=v"),
                hex(json),
            ] {
                let out = redactor.text(&format!("say {text} then"), 1000);
                assert_eq!(out.replace("***.", "***"), "say *** then");
                let payload =
                    serde_json::json!({ "a": [text.trim_end_matches('.')], "b": 1 }).to_string();
                let payload = Payload::whole(payload.as_bytes());
                let out = redactor.payload(payload, Strictness::Everything);
                assert_eq!(out, r#"{"a":["***"],"b":1}"#);
                assert_ne!(redactor.payload(payload, Strictness::KnownSecrets), out);
            }
            for text in [
                STANDARD.encode(r#"{"cursor":12,"page":"the next one of many"}"#),
                "implementations/of_things-that-read-as-base64".to_owned(),
                format!("{key}\nnextline"),
            ] {
                let out = redactor.text(&text, 1000);
                assert_eq!(out, text.replace(key, "***"));
            }
        }
    }

    #[test]
    fn hex_is_found_behind_anything() {
        let redactor = Redactor::new(
            &["password".to_owned(), "api_key".to_owned()],
            &Secrets::new(vec![Secret::new("p4ss-w0rd")]),
        );
        for said in ["p4ss-w0rd", "password=Tq1dvK9w", r#"{"user":"x","api_key":"Tq2dvK9w"}"#] {
            for digits in [hex(said), hex(said).to_uppercase()] {
                for before in ["\\x", "\\\\x", "0x", "0X", "id", "z9_", "blob_", "a/", "fz"] {
                    let out = redactor.text(&format!("values ({before}{digits}), 1"), 1000);
                    assert!(out.starts_with("values (") && out.ends_with("***), 1"), "{out}");
                    assert!(out.len() < 25, "{before}{digits}: {out}");
                }
            }
        }
        for text in ["0x4142434445464748", "\\x4142434445464748", "at_0123456789abcdef01234567"] {
            assert_eq!(redactor.text(text, 1000), text);
        }
    }

    #[test]
    fn hostile_texts_take_linear_time() {
        let length = hostile_length() / 2;
        let nested = STANDARD.encode(STANDARD.encode("x".repeat(length * 7 / 10)));
        let texts =
            ["QUFB", "%25", "%", "\\", "\\n", "aaaaaaaaaaaaaaaaaaaa\n", "4141414141414141 "];
        for text in texts.map(|piece| piece.repeat(length / piece.len())).iter().chain([&nested]) {
            let redactor = redactor("aaaaaaaaaaaaaaab");
            let what = text.get(..20).unwrap();
            let out = in_linear_time(what, || redactor.text(text, usize::MAX));
            assert!(out.len() <= text.len());
        }
    }

    proptest! {
        #[test]
        fn letters_are_read_as_a_library_reads_them(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut read = Vec::new();
            for text in [STANDARD_NO_PAD.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes)] {
                super::from_base64(text.as_bytes(), &mut read);
                prop_assert_eq!(&std::mem::take(&mut read), &bytes);
            }
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            for text in [digits.to_uppercase() + "f", digits] {
                super::from_hex(text.as_bytes(), &mut read);
                prop_assert_eq!(&std::mem::take(&mut read), &bytes);
            }
        }

        #[test]
        fn nothing_is_taken_out_of_what_holds_no_secret(text in "[ -~\n%\\\\]{0,200}") {
            let kept = redactor("\u{1}never-there\u{1}").text(&text, 1000);
            prop_assert_eq!(kept, text);
        }

        #[test]
        fn what_stands_around_stays(
            before in "[ a-z%.]{0,20}[ .]",
            after in "[ .][ a-z%.]{0,20}",
            secret in "[A-Za-z0-9/+=&% -]{8,60}",
        ) {
            prop_assume!(!before.contains(secret.trim()) && !after.contains(secret.trim()));
            let text = format!("{before}{}{after}", STANDARD.encode(STANDARD.encode(&secret)));
            let out = redactor(&secret).text(&text, 1000);
            prop_assert_eq!(out, format!("{before}***{after}"));
        }
    }
}
