//! Values under telling names in a text that is no JSON: `password=…`, `"token":"…"`, `Cookie: …`,
//! `--api-key …`, `<secret>…</secret>`. PURE.
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
    let mut flags = memchr::memmem::find_iter(text.as_bytes(), "--").peekable();
    let mut signs = memchr::memchr3_iter(b'=', b':', b'>', text.as_bytes()).peekable();
    loop {
        while flags.next_if(|flag| *flag < from).is_some() {}
        while signs.next_if(|sign| *sign < from).is_some() {}
        let sign = signs.peek().copied();
        let (at, span) = match (flags.peek(), sign) {
            (Some(flag), sign) if sign.is_none_or(|sign| *flag < sign) => {
                (*flag + 1, value_of_flag(text, *flag, &telling))
            }
            (_, Some(sign)) if text.as_bytes().get(sign) == Some(&b'>') => {
                (sign, content_at(text, sign, &telling))
            }
            (_, Some(sign)) => (sign, value_at(text, sign, &telling)),
            (_, None) => return spans,
        };
        from = at + 1;
        if let Some(span) = span {
            from = span.end.max(from);
            spans.push(span);
        }
    }
}

/// The value behind the flag of a command that begins at `at`, where a space is between them.
fn value_of_flag(text: &str, at: usize, telling: impl Fn(&str) -> bool) -> Option<Range<usize>> {
    let rest = text.get(at + 2..)?;
    let length = rest.bytes().take(LONGEST_NAME).take_while(|byte| is_name(*byte)).count();
    let (name, after) = rest.split_at_checked(length)?;
    let value = after.trim_start_matches([' ', '\t']);
    let flag = value.len() < after.len() && !value.starts_with(['-', '=', ':']);
    (flag && telling(name)).then(|| range_of_quoted(value, text.len() - value.len()))?
}

/// What stands in the element of a telling name whose tag ends at `at`.
fn content_at(text: &str, at: usize, telling: impl Fn(&str) -> bool) -> Option<Range<usize>> {
    let before = text.get(text.floor_char_boundary(at.saturating_sub(LONGEST_NAME))..at)?;
    let (_, tag) = before.rsplit_once('<')?;
    let is_tag = !tag.is_empty() && tag.bytes().all(|byte| is_name(byte) || byte == b':');
    if !is_tag || !telling(tag) {
        return None;
    }
    let content = text.get(at + 1..)?;
    let length = content.find('<')?;
    // `Vec<Token>` is none.
    let closed = content.get(length..)?.starts_with("</");
    (closed && length > 0).then_some(at + 1..at + 1 + length)
}

/// How many of the last bytes can be of a name.
fn name_length(text: &str) -> usize {
    text.bytes().rev().take_while(|byte| is_name(*byte)).count()
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
    let (mut outside, name) = before.split_at_checked(before.len() - name_length(before))?;
    if name.is_empty() {
        return None;
    }
    if !telling(name) {
        // `ACCESS KEY=…`: both words together.
        let first = outside.strip_suffix([' ', '\t'])?;
        let (around, word) = first.split_at_checked(first.len() - name_length(first))?;
        let both = telling(before.get(around.len()..)?);
        if word.is_empty() || !both || (telling(word) && !name.eq_ignore_ascii_case("key")) {
            return None;
        }
        outside = around;
    }
    let after = text.get(at + 1..)?;
    // As Ruby and PHP write it, but no function: `token => token.trim()`.
    let after = match after.strip_prefix('>').filter(|_| *sign == b'=') {
        Some(arrow) if arrow.trim_start_matches(' ').starts_with(['"', '\'', '\\']) => arrow,
        Some(_) => return None,
        None => after,
    };
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
        (None, _) if is_header(name) => {
            // What a line of a header is quoted in ends it.
            if outside
                .chars()
                .next_back()
                .is_some_and(|quote| matches!(quote, '"' | '\'' | '`') && value.starts_with(quote))
            {
                return None;
            }
            header_value(name, value, start)
        }
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

/// The value of a header: what is quoted; to the end of the line for cookies; or where a credential follows
/// a scheme, that.
fn header_value(name: &str, value: &str, start: usize) -> Option<Range<usize>> {
    let range = |from: usize, length: usize| (length > 0).then_some(from..from + length);
    let is = |suffix: &str| name.to_ascii_lowercase().ends_with(suffix);
    if let Some(body) = value.strip_prefix('`') {
        return range(start + 1, body.find(['`', '\n']).unwrap_or(body.len()));
    }
    if value.trim_start_matches('\\').starts_with(['"', '\'', '[']) {
        return range_of_quoted(value, start);
    }
    if is("cookie") {
        return range(start, parameters(value));
    }
    if is("authorization") {
        let line = value.get(..value.floor_char_boundary(LONGEST_CREDENTIAL))?;
        let line = line.get(..line.find(['\n', '\r']).unwrap_or(line.len()))?;
        let scheme = line.split(' ').next().unwrap_or_default();
        let follows = scheme.len() < line.trim_end().len()
            && scheme.bytes().all(|byte| byte.is_ascii_alphabetic());
        if follows {
            let one =
                ["bearer", "basic", "token"].iter().any(|one| scheme.eq_ignore_ascii_case(one));
            let credential = line.get(scheme.len()..)?.trim_start();
            let from = start + line.len() - credential.len();
            return if one {
                range_of_quoted(credential, from)
            } else {
                range(from, parameters(credential))
            };
        }
    }
    range(start, bare(value))
}

/// Bytes of a list such as `a="b", c=d; e`: to the end of the line, or to the quote that the whole of it
/// stands in, which is not where a value of it begins.
fn parameters(value: &str) -> usize {
    let (mut at, mut slashes, mut name) = (0, 0, true);
    let mut before = b' ';
    while let Some(byte) = value.as_bytes().get(at).copied() {
        match byte {
            b'\n' | b'\r' => return at,
            b'"' | b'\'' | b'`' if !name && before == b'=' => {
                let Some(body) = value.get(at + 1..) else { return at };
                at += 1 + quoted_length(body, char::from(byte), slashes) + slashes;
                before = b'"';
            }
            b'"' | b'\'' | b'`' => return at - slashes,
            b';' | b',' | b' ' => (name, before) = (true, byte),
            b'=' if name => (name, before) = (false, byte),
            // At the end of a value it fills base64.
            b'=' => before = b' ',
            b'\\' => {}
            _ => before = byte,
        }
        slashes = if byte == b'\\' { slashes + 1 } else { 0 };
        at += 1;
    }
    value.len()
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
    use crate::redact::tests::{hostile_length, in_linear_time};

    fn masked(text: &str) -> String {
        let telling = |name: &str| {
            let name = name.to_ascii_lowercase();
            let name = name.replace([' ', '_'], "-");
            ["token", "password", "cookie", "authorization", "api-key", "access-key", "secret"]
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
            ("Authorization: Digest a=\"b\", c", "Authorization: Digest ***"),
            (r#"-H 'Authorization: Digest a="b", c=d' x"#, "-H 'Authorization: Digest ***' x"),
            (r#"{\"h\":\"Cookie: a=b; c=d\"} n"#, r#"{\"h\":\"Cookie: ***\"} n"#),
            ("-H 'Cookie: a=b; sid=YWI=' x", "-H 'Cookie: ***' x"),
            (r#"Cookie: a="b c"; d="e""#, "Cookie: ***"),
            (r#"x-api-key: "v", n: 1"#, r#"x-api-key: "***", n: 1"#),
            (r#"x-api-key: \"v\", n: 1"#, r#"x-api-key: \"***\", n: 1"#),
            (r#"Authorization: "v""#, r#"Authorization: "***""#),
            (r#"Authorization: Bearer "v" n"#, r#"Authorization: Bearer "***" n"#),
            ("X-Auth-Token: `v` n", "X-Auth-Token: `***` n"),
            (r#"Set-Cookie: "v"; n"#, r#"Set-Cookie: "***"; n"#),
            ("set-cookie: ['v'], n", "set-cookie: ***, n"),
            (
                "{ headers: { Authorization: 'v', cookie: 'w' }, n: 1 }",
                "{ headers: { Authorization: '***', cookie: '***' }, n: 1 }",
            ),
            ("'token' => 'v', 'n' => 'w'", "'token' => '***', 'n' => 'w'"),
            ("ACCESS KEY=v n", "ACCESS KEY=*** n"),
            ("the secret key: v n", "the secret key: *** n"),
            ("run --password v -x", "run --password *** -x"),
            ("run --api-key \"v w\" --n=1", "run --api-key \"***\" --n=1"),
            ("<n>1</n><password>v</password>", "<n>1</n><password>***</password>"),
            ("<a:token>v</a:token>", "<a:token>***</a:token>"),
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
            "a password for n=1",
            "an Option<Token> and a <token>",
            "missing --token <TOKEN>, --token --n=1 and --token",
            "items.map(token => token.trim())",
            "-H \"Cookie: \" \"http://h\"",
        ] {
            assert_eq!(masked(text), text);
        }
    }

    #[test]
    fn hostile_texts_take_linear_time() {
        let pieces = [
            "token=",
            "\"token\":\"\\",
            "token:{",
            "cookie: ",
            "=",
            "\\\"token\\\":",
            "--",
            "--token ",
            "--token \"",
            "-- ",
            "<token>",
            "token a=",
            "cookie: a=\"",
            "authorization: x a=\"",
        ];
        for piece in pieces {
            let text = piece.repeat(hostile_length() * 3 / 4 / piece.len());
            let out = in_linear_time(piece, || masked(&text));
            assert!(out.len() <= text.len() * 4, "{piece}");
        }
    }
}
