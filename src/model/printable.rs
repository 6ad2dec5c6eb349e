//! Text from outside in a form that no terminal, pager or log reader acts upon.
//!
//! Changes when what such a reader must not receive changes. Knows nothing of where text comes from
//! or goes to.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a terminal could take `c` as a command or show it as something that is not there:
/// control characters, bidirectional overrides, line separators, invisible characters.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}'                  // soft hyphen
            | '\u{061c}'                // Arabic letter mark
            | '\u{180e}'                // Mongolian vowel separator
            | '\u{200b}'..='\u{200f}'   // zero width, left-to-right and right-to-left marks
            | '\u{2028}'..='\u{202e}'   // line separators, embeddings and overrides
            | '\u{2060}'..='\u{206f}'   // word joiner, isolates, deprecated format characters
            | '\u{feff}'                // byte order mark
            | '\u{fff9}'..='\u{fffb}'   // interlinear annotations
            | '\u{e0000}'..='\u{e007f}' // tags
        )
}

/// `text` on one line: whatever a terminal might act upon is written as an escape.
#[must_use]
pub fn escape_line(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// `text` with its line ends and tabs, everything else as [`escape_line`].
#[must_use]
pub fn escape_block(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

fn escape(text: &str, keep: fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(|c| is_unsafe(c) && !keep(c)) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_unsafe(c) || keep(c) => safe.push(c),
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            c => safe.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(safe)
}

/// JSON that means the same and holds nothing a terminal might act upon.
///
/// In a JSON document such characters can only stand inside strings, where `\uXXXX` is their equal;
/// line ends and tabs between the tokens stay.
#[must_use]
pub fn escape_json(json: &str) -> Cow<'_, str> {
    // Nearly all JSON is of such bytes alone, which is quickly seen.
    if json.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t')) {
        return Cow::Borrowed(json);
    }
    let keep = |c: char| matches!(c, '\n' | '\r' | '\t');
    if !json.chars().any(|c| is_unsafe(c) && !keep(c)) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if !is_unsafe(c) || keep(c) {
            safe.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a `String` cannot fail.
            let _ = write!(safe, "\\u{unit:04x}");
        }
    }
    Cow::Owned(safe)
}

/// Ends a text that is not whole: whoever looks for secrets in it knows that the last one may not be.
pub const CUT: char = '…';

/// At most `limit` characters of `text`, and [`CUT`] when there were more.
#[must_use]
pub fn cut_after(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some((end, _)) => {
            let mut cut = text.get(..end).unwrap_or_default().to_owned();
            cut.push(CUT);
            cut
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_was_cut_says_so() {
        assert_eq!(cut_after("éàü", 3), "éàü");
        assert_eq!(cut_after("éàüx", 3), "éàü…");
        assert_eq!(cut_after("", 0), "");
    }

    #[test]
    fn nothing_a_terminal_acts_upon_gets_through() {
        for (text, expected) in [
            ("plain – naïve 日本語 🚀", "plain – naïve 日本語 🚀"),
            ("\x1b[31mred\x1b[0m", "\\u{1b}[31mred\\u{1b}[0m"),
            ("a\u{9b}2J", "a\\u{9b}2J"),
            ("abc\u{202e}fdp.exe", "abc\\u{202e}fdp.exe"),
            ("two\nlines\r\n\tand tab", "two\\nlines\\r\\n\\tand tab"),
            ("bell\x07 del\x7f", "bell\\u{7} del\\u{7f}"),
            ("\u{2066}isolate\u{2069}", "\\u{2066}isolate\\u{2069}"),
        ] {
            assert_eq!(escape_line(text), expected);
        }
        assert_eq!(escape_block("a\n\tb\x1b"), "a\n\tb\\u{1b}");
    }

    #[test]
    fn escaped_json_means_the_same() {
        let json = "{\n\"a\": \"\u{9b}x\u{202e}\u{e0041}\", \"n\": 1e400}";
        let safe = escape_json(json);
        assert_eq!(safe, "{\n\"a\": \"\\u009bx\\u202e\\udb40\\udc41\", \"n\": 1e400}");
        let text = "\"\u{9b}\u{202e}\u{e0041}\"";
        let back: String = serde_json::from_str(&escape_json(text)).unwrap();
        assert_eq!(back, "\u{9b}\u{202e}\u{e0041}");
    }
}
