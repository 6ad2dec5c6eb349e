//! Values under telling names in a text that is no JSON: `password=…`, `"token":"…"`, `Cookie: …`. PURE.
//!
//! Changes when a name and its value can stand together in another way.

use std::ops::Range;

/// No name is looked for further back.
const LONGEST_NAME: usize = 96;
/// No credential in a header is looked for further on.
const LONGEST_CREDENTIAL: usize = 8 * 1024;

/// Where the values of names for which `telling` holds are, in order and without overlaps.
pub(super) fn spans(text: &str, telling: impl Fn(&str) -> bool) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut from = 0;
    while let Some(at) =
        text.as_bytes().get(from..).and_then(|rest| memchr::memchr2(b'=', b':', rest))
    {
        let at = from + at;
        from = at + 1;
        if let Some(span) = value_at(text, at, &telling) {
            from = span.end.max(from);
            spans.push(span);
        }
    }
    spans
}

/// The value that the sign at `at` gives to a telling name.
fn value_at(text: &str, at: usize, telling: impl Fn(&str) -> bool) -> Option<Range<usize>> {
    let sign = text.as_bytes().get(at)?;
    let before = text.get(text.floor_char_boundary(at.saturating_sub(LONGEST_NAME))..at)?;
    let before = before.trim_end_matches([' ', '\t']);
    let unquoted = before.strip_suffix(['"', '\'']);
    let quote = before.chars().next_back().filter(|_| unquoted.is_some());
    // The quotes of JSON that stands in a string have backslashes.
    let before = unquoted.map_or(before, |rest| rest.trim_end_matches('\\'));
    let length = before.bytes().rev().take_while(|byte| is_name(*byte)).count();
    let name = before.get(before.len() - length..)?;
    if name.is_empty() || !telling(name) {
        return None;
    }
    let outside = before.get(..before.len() - length)?;
    let after = text.get(at + 1..)?;
    let value = after.trim_start_matches([' ', '\t']);
    let start = text.len() - value.len();
    match (quote, sign) {
        (Some(quote), _) if outside.ends_with(quote) => range_of_quoted(value, start),
        (Some(_), _) => None,
        // A comparison.
        (None, b'=') if after.starts_with('=') => None,
        (None, b'=') => range_of_quoted(value, start),
        // The scheme of an address, or a path of names.
        (None, _) if after.starts_with("//") || after.starts_with(':') => None,
        (None, _) if is_header(name) => header_value(name, value, start),
        // It may be prose; in doubt it is a secret.
        (None, _) => range_of_quoted(value, start),
    }
}

const fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// Names that stand before a colon in headers and nowhere else.
fn is_header(name: &str) -> bool {
    name.contains('-')
        || ["authorization", "cookie"].iter().any(|header| name.eq_ignore_ascii_case(header))
}

/// The value of a header: to the end of the line for cookies, or where a credential follows a scheme, that.
fn header_value(name: &str, value: &str, start: usize) -> Option<Range<usize>> {
    let range = |from: usize, length: usize| (length > 0).then_some(from..from + length);
    let is = |suffix: &str| name.to_ascii_lowercase().ends_with(suffix);
    let ends = ['\n', '\r', '"', '\'', '`'];
    if is("cookie") {
        return range(start, value.find(ends).unwrap_or(value.len()));
    }
    if is("authorization") {
        let line = value.get(..value.floor_char_boundary(LONGEST_CREDENTIAL))?;
        let line = line.get(..line.find(ends).unwrap_or(line.len()))?;
        let scheme = line.split(' ').next().unwrap_or_default();
        let follows = scheme.len() < line.trim_end().len()
            && scheme.bytes().all(|byte| byte.is_ascii_alphabetic());
        if follows {
            let one =
                ["bearer", "basic", "token"].iter().any(|one| scheme.eq_ignore_ascii_case(one));
            let credential = line.get(scheme.len()..)?.trim_start();
            let from = start + line.len() - credential.len();
            return range(from, if one { bare(credential) } else { credential.len() });
        }
    }
    range(start, bare(value))
}

/// Bytes of a value without quotes.
fn bare(value: &str) -> usize {
    let ends = |c: char| {
        c.is_whitespace()
            || matches!(c, '&' | ';' | ',' | '"' | '\'' | '`' | '<' | '>' | ')' | '}' | ']' | '|')
    };
    value.find(ends).unwrap_or(value.len())
}

/// A value that may stand in quotes, which stay, or in brackets, which do not.
fn range_of_quoted(value: &str, start: usize) -> Option<Range<usize>> {
    let slashes = value.bytes().take_while(|byte| *byte == b'\\').count();
    let quote = value.get(slashes..)?.chars().next()?;
    let (from, length) = match quote {
        '"' | '\'' => {
            let opened = slashes + 1;
            let body = value.get(opened..)?;
            (opened, quoted_length(body, quote, slashes))
        }
        '{' | '[' if slashes == 0 => (0, bracketed_length(value)),
        _ => (0, bare(value)),
    };
    (length > 0).then_some(start + from..start + from + length)
}

/// Bytes up to the quote that closes, which has as many backslashes as the one that opened.
fn quoted_length(body: &str, quote: char, slashes: usize) -> usize {
    let mut run = 0_usize;
    for (at, byte) in body.bytes().enumerate() {
        if byte == b'\\' {
            run += 1;
            continue;
        }
        // Inside, a quote has more of them: twice as many and one.
        let closes = run == slashes || (slashes == 0 && run.is_multiple_of(2));
        if char::from(byte) == quote && closes {
            return at - run.min(slashes);
        }
        run = 0;
    }
    body.len()
}

/// Bytes up to the bracket that closes.
fn bracketed_length(value: &str) -> usize {
    let mut depth = 0_i32;
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        let telling = |name: &str| {
            let name = name.to_ascii_lowercase();
            ["token", "password", "cookie", "authorization", "api-key"]
                .iter()
                .any(|word| name.contains(word))
        };
        let (mut out, mut at) = (String::new(), 0);
        for span in spans(text, telling) {
            out += text.get(at..span.start).unwrap();
            out += "***";
            at = span.end;
        }
        out + text.get(at..).unwrap()
    }

    #[test]
    fn values_of_telling_names_are_found() {
        for (text, expected) in [
            ("GET /x?token=abc&n=1", "GET /x?token=***&n=1"),
            ("password = 'it is' and", "password = '***' and"),
            ("--db-password=x y", "--db-password=*** y"),
            (r#"body: `{"password":"a\"b","n":1}`"#, r#"body: `{"password":"***","n":1}`"#),
            (r#"{\"token\": \"a b\", \"n\":1}"#, r#"{\"token\": \"***\", \"n\":1}"#),
            (r#"{"token":12,"n":1} {"password":{"a":"}"#, r#"{"token":***,"n":1} {"password":***"#),
            ("Set-Cookie: a=b; Path=/\r\nx: 1", "Set-Cookie: ***\r\nx: 1"),
            ("with Authorization: Bearer abc def", "with Authorization: Bearer *** def"),
            ("Authorization: Digest a=\"b\", c", "Authorization: Digest ***\"b\", c"),
            ("sent X-Api-Key: abc, and", "sent X-Api-Key: ***, and"),
            ("a\\npassword: hunter2\\nb", "a\\npassword: ***"),
            ("invalid token: it has ended", "invalid token: *** has ended"),
            ("  password: hunter2\n- token: 'a b'", "  password: ***\n- token: '***'"),
        ] {
            assert_eq!(masked(text), expected, "{text}");
        }
    }

    #[test]
    fn prose_stays() {
        for text in [
            "no such token, name=alice",
            "if token == other",
            "password://host",
            "model::password::new",
            "token:",
            "password=",
            "a: b, c=d",
        ] {
            assert_eq!(masked(text), text);
        }
    }

    #[test]
    fn hostile_texts_take_linear_time() {
        for piece in ["token=", "\"token\":\"\\", "token:{", "cookie: ", "=", "\\\"token\\\":"] {
            let text = piece.repeat(300_000 / piece.len());
            assert!(masked(&text).len() <= text.len() * 4, "{piece}");
        }
    }
}
