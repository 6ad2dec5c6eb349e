//! [`unescaped`]: JSON as a person reads it, for the words in it.
//!
//! Changes when words hide in payloads in another way. In `"first line\nsecond"` the letter `n`
//! belongs to no word, and `Z\u00fcrich` is one. A string that has JSON in it is read likewise.
//! Values in, values out.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

/// JSON in a string of JSON is read to this depth.
const DEPTH: u8 = 4;

/// The text with escapes of JSON resolved, also where it was cut; as it is where it has none, or is
/// no JSON.
pub(super) fn unescaped(text: &str) -> Cow<'_, str> {
    if memchr(b'\\', text.as_bytes()).is_none() || !begins_like_json(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    push_json(text, DEPTH, &mut out);
    Cow::Owned(out)
}

fn begins_like_json(text: &str) -> bool {
    text.trim_start().starts_with(['{', '[', '"'])
}

fn push_json(text: &str, depth: u8, out: &mut String) {
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once('"') {
        out.push_str(before);
        out.push('"');
        let start = out.len();
        rest = push_string(inside, out);
        let nested = out.get(start..).filter(|value| {
            depth > 1 && begins_like_json(value) && memchr(b'\\', value.as_bytes()).is_some()
        });
        if let Some(nested) = nested.map(str::to_owned) {
            out.truncate(start);
            push_json(&nested, depth - 1, out);
        }
        out.push('"');
    }
    out.push_str(rest);
}

/// Adds what a string says; gives what follows its closing quote.
fn push_string<'a>(text: &'a str, out: &mut String) -> &'a str {
    let mut rest = text;
    while let Some((plain, from)) =
        memchr2(b'"', b'\\', rest.as_bytes()).and_then(|at| rest.split_at_checked(at))
    {
        out.push_str(plain);
        if let Some(after) = from.strip_prefix('"') {
            return after;
        }
        rest = push_escape(from, out);
    }
    out.push_str(rest);
    ""
}

/// Adds what an escape means; gives what follows. One that is none is taken as it is.
fn push_escape<'a>(text: &'a str, out: &mut String) -> &'a str {
    let mut chars = text.chars();
    let (Some(sign), kind) = (chars.next(), chars.next()) else { return "" };
    let after = chars.as_str();
    match kind {
        Some(same @ ('"' | '\\' | '/')) => out.push(same),
        Some('n' | 't' | 'r' | 'b' | 'f') => out.push(' '),
        Some('u') => {
            if let Some((found, after)) = unicode(after) {
                out.push(found);
                return after;
            }
            out.push(' ');
        }
        _ => {
            out.push(sign);
            return text.get(sign.len_utf8()..).unwrap_or_default();
        }
    }
    after
}

/// The character after `\u`, which may take two escapes, and what follows it.
fn unicode(text: &str) -> Option<(char, &str)> {
    let unit = |text: &str| {
        let (digits, after) = text.split_at_checked(4)?;
        let number = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = number.then(|| u32::from_str_radix(digits, 16).ok())??;
        Some((number, after.len()))
    };
    let end = |left: usize| text.get(text.len().saturating_sub(left)..).unwrap_or_default();
    let (first, left) = unit(text)?;
    let after = end(left);
    if (0xd800..0xdc00).contains(&first)
        && let Some((second, left)) = after.strip_prefix("\\u").and_then(unit)
        && (0xdc00..0xe000).contains(&second)
    {
        let number = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return Some((char::from_u32(number)?, end(left)));
    }
    // Half of a pair alone is no character, and the one with the number 0 ends texts elsewhere.
    let found = char::from_u32(first).filter(|found| *found != '\0');
    Some((found.unwrap_or(' '), after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn escapes_are_what_they_mean() {
        for (json, read) in [
            (r#"{"q":"first line\nsecond line"}"#, r#"{"q":"first line second line"}"#),
            (r#"{"n":"Z\u00fcrich \uD83D\uDE00!"}"#, "{\"n\":\"Zürich \u{1f600}!\"}"),
            (r#"{"\u006eame":"C:\\new \/ \"x\""}"#, r#"{"name":"C:\new / "x""}"#),
            (r#"["a\u0000b \ud83d c \ude00\u0041"]"#, r#"["a b   c  A"]"#),
            (r#""{\"text\":\"one\\ntwo \\u00e9\"}""#, "\"{\"text\":\"one two é\"}\""),
            (r#"{"cut":"one\ntwo\u00f…"#, "{\"cut\":\"one two 00f…\""),
            (r#"{"cut":"one\"#, "{\"cut\":\"one\\\""),
            (r"plain \n text", r"plain \n text"),
            (r#"{"q":1.50,"w":null}"#, r#"{"q":1.50,"w":null}"#),
        ] {
            assert_eq!(unescaped(json), read, "{json}");
        }
        assert!(matches!(unescaped(r#"{"q":"no escape"}"#), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn any_json_says_what_its_strings_say(key in "[a-zé ]{0,9}", text in "[a-z][^\0]{0,30}") {
            let value = json!({ key.clone(): text });
            let ascii: String = value.to_string().chars().map(|c| match c {
                '\0'..='\x7f' => c.to_string(),
                c => c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
            }).collect();
            prop_assert_eq!(&serde_json::from_str::<Value>(&ascii).unwrap(), &value);
            // All signs below the space are spaces here.
            let spaced = |text: &str| text.replace(['\n', '\r', '\t', '\x08', '\x0c'], " ");
            let expected = spaced(&format!("{{\"{key}\":\"{text}\"}}"));
            for written in [value.to_string(), ascii] {
                let read = unescaped(&written).into_owned();
                prop_assert_eq!(read.as_str(), expected.as_str());
            }
        }

        #[test]
        fn nothing_breaks_it(text in "[\\[{\"]?[\\\\\"un0-9a-f{…é]{0,40}") {
            let read = unescaped(&text);
            prop_assert!(read.len() <= text.len() + 64, "{read}");
        }
    }
}
