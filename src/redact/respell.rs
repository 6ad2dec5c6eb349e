//! Letters that are written in another way: percent-encoding, escapes of JSON and of programs, entities of
//! HTML and XML, quotes in quotes. PURE.
//!
//! Changes when secrets must be found in another way of writing. Each is taken off in one pass, and what
//! has none of it costs a search for one byte. What is looked for below is [`peel`](super::peel)'s.

use std::ops::Range;

use crate::model::CUT;

/// No entity takes more bytes.
const LONGEST_ENTITY: usize = 12;

/// Marks before which shells write a backslash: one bit for each byte of ASCII.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Marks(u128);

impl Marks {
    /// Those of secrets, and of what they may be encoded in; none where secrets have none.
    pub(super) fn of(secrets: impl Iterator<Item = u8>) -> Self {
        let mark = |byte: u8| is_mark(byte) && !b"-_./".contains(&byte);
        let bits = |bits: u128, byte: u8| bits | (1 << byte);
        match secrets.filter(|byte| mark(*byte)).fold(0, bits) {
            0 => Self(0),
            marks => Self(b"&#;%".iter().copied().fold(marks, bits)),
        }
    }

    /// Whether a backslash before `byte` may be one of a shell: before some JSON has them, too.
    fn tell(self, byte: u8) -> bool {
        let json = matches!(byte, b'"' | b'\\' | b'/' | b'\'');
        is_mark(byte) && !json && self.0 & (1 << byte) != 0
    }
}

fn is_mark(byte: u8) -> bool {
    byte.is_ascii_punctuation() || byte == b' '
}

/// `text` with each of these ways of writing taken off that it has; with `quoted`, also quotes in quotes,
/// and backslashes before `marks`.
pub(super) fn respellings(text: &str, quoted: bool, marks: Marks) -> impl Iterator<Item = Peeled> {
    let [shell, single, double] = match quoted {
        true => [unquoted(text), undoubled(text, b'\''), undoubled(text, b'"')],
        false => [None, None, None],
    };
    let slashed = if marks.0 == 0 { None } else { without_slashes(text, marks) };
    let unescaped = unescaped(text);
    [percent_decoded(text), unescaped, without_entities(text), slashed, shell, single, double]
        .into_iter()
        .flatten()
}

/// A text that was made of another.
pub(super) struct Peeled {
    pub(super) text: String,
    /// Places in it, and where they are in the other; what follows such a place follows there, too.
    pub(super) places: Vec<(usize, usize)>,
}

impl Peeled {
    /// Where in the other text what stands at `at` comes from.
    pub(super) fn source(&self, at: usize) -> usize {
        let after = self.places.partition_point(|(place, _)| *place <= at);
        let place = after.checked_sub(1).and_then(|place| self.places.get(place));
        place.map_or(at, |(place, source)| source + (at - place))
    }
}

/// A text under way to what it means.
struct Respelling<'a> {
    text: &'a [u8],
    /// What it means up to `from`.
    plain: Vec<u8>,
    from: usize,
    places: Vec<(usize, usize)>,
}

impl<'a> Respelling<'a> {
    const fn of(text: &'a str) -> Self {
        Self { text: text.as_bytes(), plain: Vec::new(), from: 0, places: Vec::new() }
    }

    /// What is written at this place means these bytes.
    fn means(&mut self, place: Range<usize>, bytes: &[u8]) {
        self.plain.extend_from_slice(self.text.get(self.from..place.start).unwrap_or_default());
        self.places.push((self.plain.len(), place.start));
        self.plain.extend_from_slice(bytes);
        self.from = place.end;
        self.places.push((self.plain.len(), place.end));
    }

    /// The whole; `None` when nothing was written in another way.
    fn end(mut self) -> Option<Peeled> {
        if self.places.is_empty() {
            return None;
        }
        self.plain.extend_from_slice(self.text.get(self.from..).unwrap_or_default());
        Some(Peeled { text: text_of(&self.plain, false), places: self.places })
    }
}

/// `text` without escapes of JSON and bytes such as `\x41`, however often each was escaped; `None` when there
/// is none.
fn unescaped(text: &str) -> Option<Peeled> {
    let mut plain = Respelling::of(text);
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', text.as_bytes().get(at..)?) {
        let start = at + found;
        let escape = text.get(start..)?.trim_start_matches('\\');
        at = text.len() - escape.len();
        if let Some((byte, length)) = escaped_byte(escape) {
            plain.means(start..at + length, &[byte]);
            at += length;
        } else if let Some((character, length)) = escaped_character(escape) {
            plain.means(start..at + length, character.encode_utf8(&mut [0; 4]).as_bytes());
            at += length;
        }
    }
    plain.end()
}

/// The byte that is written here in hex after a backslash, and the bytes that it takes.
fn escaped_byte(text: &str) -> Option<(u8, usize)> {
    match text.as_bytes() {
        [b'x', high, low, ..] => Some(((hex(*high)? << 4) | hex(*low)?, 3)),
        // As shells write bytes that are no text.
        [high @ b'2'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', ..] => {
            Some((((high - b'0') << 6) | ((middle - b'0') << 3) | (low - b'0'), 3))
        }
        _ => None,
    }
}

/// `text` without entities of HTML and XML: those that every encoder writes, and numbers. `None` when there
/// is none.
fn without_entities(text: &str) -> Option<Peeled> {
    let mut plain = Respelling::of(text);
    for at in memchr::memchr_iter(b'&', text.as_bytes()) {
        let rest = text.get(at..)?;
        let letters = rest.bytes().skip(1).take(LONGEST_ENTITY);
        let length = 1 + letters.take_while(|b| b.is_ascii_alphanumeric() || *b == b'#').count();
        let (Some(entity), Some(after)) = (rest.get(1..length), rest.get(length..)) else {
            continue;
        };
        if after.starts_with(';')
            && let Some(character) = entity_means(entity)
        {
            plain.means(at..at + length + 1, character.encode_utf8(&mut [0; 4]).as_bytes());
        } else if after.starts_with(CUT) {
            // The cut went through one: before it ends what is known of a secret.
            plain.means(at..at + length, &[]);
        }
    }
    plain.end()
}

/// The character that an entity of this name stands for.
fn entity_means(name: &str) -> Option<char> {
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => {
            let number = name.strip_prefix('#')?;
            let number = match number.strip_prefix(['x', 'X']) {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => number.parse(),
            };
            char::from_u32(number.ok()?)?
        }
    })
}

/// `text` with each mark as it is that has a backslash before it, as shells write them; `None` when none of
/// `marks` has but those that JSON writes so, too.
fn without_slashes(text: &str, marks: Marks) -> Option<Peeled> {
    let mut plain = Respelling::of(text);
    let bytes = text.as_bytes();
    let (mut at, mut of_shell) = (0, false);
    while let Some(found) = memchr::memchr(b'\\', bytes.get(at..)?) {
        at += found;
        match bytes.get(at + 1) {
            Some(mark) if is_mark(*mark) => {
                of_shell |= marks.tell(*mark);
                plain.means(at..at + 2, &[*mark]);
                at += 2;
            }
            _ => at += 1,
        }
    }
    plain.end().filter(|_| of_shell)
}

/// `text` with each quote as it is that shells are given in quotes; `None` when there is none.
fn unquoted(text: &str) -> Option<Peeled> {
    let mut plain = Respelling::of(text);
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\'', bytes.get(at..)?) {
        at += found;
        let length = match bytes.get(at..)? {
            [_, b'\\', b'\'', b'\'', ..] => 4,
            [_, b'"', b'\'', b'"', b'\'', ..] => 5,
            _ => 1,
        };
        if length > 1 {
            plain.means(at..at + length, b"'");
        }
        at += length;
    }
    plain.end()
}

/// `text` with each of these quotes once where it is doubled; `None` when none is.
fn undoubled(text: &str, quote: u8) -> Option<Peeled> {
    let mut plain = Respelling::of(text);
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(found) = memchr::memchr(quote, bytes.get(at..)?) {
        at += found + 1;
        if bytes.get(at) == Some(&quote) {
            plain.means(at - 1..at + 1, &[quote]);
            at += 1;
        }
    }
    plain.end()
}

/// The character that is written here after a backslash, and the bytes that it takes.
fn escaped_character(text: &str) -> Option<(char, usize)> {
    let short = match text.as_bytes().first()? {
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'"' => '"',
        b'\'' => '\'',
        b'/' => '/',
        b'u' => {
            let unit = u32::from_str_radix(text.get(1..5)?, 16).ok()?;
            return Some((char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER), 5));
        }
        _ => return None,
    };
    Some((short, 1))
}

/// `text` with its percent-encoding taken off; `None` when there is none.
fn percent_decoded(text: &str) -> Option<Peeled> {
    let escape = |rest: &[u8]| match rest {
        [b'%', high, low, ..] => Some((hex(*high)? << 4) | hex(*low)?),
        _ => None,
    };
    let mut plain = Respelling::of(text);
    for at in memchr::memchr_iter(b'%', text.as_bytes()) {
        if let Some(byte) = text.as_bytes().get(at..).and_then(escape) {
            plain.means(at..at + 3, &[byte]);
        }
    }
    plain.end()
}

/// What a digit of hex stands for.
pub(super) const fn hex(byte: u8) -> Option<u8> {
    Some(match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        b'A'..=b'F' => byte - b'A' + 10,
        _ => return None,
    })
}

/// Bytes as a text of the same length, in which what is no text is nothing that is looked for.
pub(super) fn text_of(bytes: &[u8], cut: bool) -> String {
    let mut text = String::with_capacity(bytes.len() + CUT.len_utf8());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(std::iter::repeat_n('\0', chunk.invalid().len()));
    }
    if cut {
        text.push(CUT);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::model::Secret;
    use crate::redact::{Redactor, Secrets};

    fn redactor(secret: &str) -> Redactor {
        Redactor::new(&[], &Secrets::new(vec![Secret::new(secret)]))
    }

    /// `text` as it is written in many ways, without regard to what would have to be.
    fn writings(text: &str) -> Vec<String> {
        let named = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let named = named.replace('"', "&quot;").replace('\'', "&#39;");
        let bytes = |all: bool| {
            let byte = |byte: u8| match all || !byte.is_ascii_alphanumeric() {
                true => format!("\\x{byte:02x}"),
                false => char::from(byte).to_string(),
            };
            text.bytes().map(byte).collect()
        };
        let shell = |c: char| match c != '-' && (c.is_ascii_punctuation() || c == ' ') {
            true => vec!['\\', c],
            false => vec![c],
        };
        let number = |c: char| format!("&#{};", u32::from(c));
        let hex = |c: char| format!("&#x{:X};", u32::from(c));
        vec![
            named.replace('&', "&amp;"),
            named,
            text.chars().map(number).collect(),
            text.chars().map(hex).collect(),
            bytes(true),
            bytes(false),
            text.replace('\'', r"'\''"),
            text.replace('\'', r#"'"'"'"#),
            text.replace('\'', "''"),
            text.replace('"', "\"\""),
            text.replace('\'', "\\'"),
            text.chars().flat_map(shell).collect(),
        ]
    }

    #[test]
    fn secrets_are_found_however_they_are_written() {
        for secret in ["tr0ub4dor&3 Zq81LmN<x>", "it's \"so\" 'hard'", "gr\u{fc}n & <b>"] {
            for written in writings(secret) {
                let out = redactor(secret).text(&format!("<b>{written}</b>, x"), 1000);
                assert_eq!(out, "<b>***</b>, x", "{written}");
            }
        }
        let keys = ["password".to_owned()];
        let any = Redactor::new(&keys, &Secrets::default());
        for (text, expected) in [
            ("{&quot;password&quot;:&quot;v&quot;,", "{&quot;password&quot;:&quot;***&quot;,"),
            ("a\\x20ghp_abcdefghij0123456789", "a\\x20***"),
            ("Q&A, AT&T; &#; &#x; &lt &no; \\x, \\xg", "Q&A, AT&T; &#; &#x; &lt &no; \\x, \\xg"),
        ] {
            assert_eq!(any.text(text, 1000), expected);
        }
    }

    #[test]
    fn a_cut_may_go_through_an_entity() {
        let redactor = redactor("tr0ub4dor&3 Zq81LmN<x>");
        for cut in
            ["tr0ub4dor&", "tr0ub4dor&a", "tr0ub4dor&amp", "tr0ub4dor&amp;3 Z", "tr0ub4dor&#3"]
        {
            assert_eq!(redactor.text(&format!("x {cut}\u{2026}"), 1000), "x ***\u{2026}");
        }
    }

    #[test]
    fn hostile_texts_take_linear_time() {
        for piece in ["&", "&amp;", "&#x26;", "&amp", "\\x", "\\x5c", "''", "'\\''", "\"", "0x4"] {
            let text = piece.repeat(1_000_000 / piece.len());
            let out = redactor("aaaaaaa'aaaaaaab").text(&text, usize::MAX);
            assert!(out.len() <= text.len());
        }
    }

    proptest! {
        #[test]
        fn a_secret_in_any_writing_never_survives(
            secret in "[A-Za-z0-9&<>\"'\u{e9}=;#-]{8,40}",
            before in "[ a-z&;\\\\']{0,10} ",
            after in " [ a-z&;\\\\']{0,10}",
        ) {
            for written in writings(&secret) {
                let out = redactor(&secret).text(&format!("{before}{written}{after}"), 1000);
                prop_assert!(!out.contains(&written) && out.contains("***"), "{written}: {out}");
            }
        }

        #[test]
        fn nothing_is_taken_out_of_what_holds_no_secret(text in "[ -~\n&;#x\\\\'\"]{0,200}") {
            let kept = redactor("\u{1}never-'-there\u{1}").text(&text, 1000);
            prop_assert_eq!(kept, text);
        }
    }
}
