//! Names and passwords in addresses, also where a password is not encoded as it should be. PURE.
//!
//! Changes when addresses hold secrets in another way. What follows the rules is found by
//! [`search`](super::search), too.

use std::ops::Range;

/// No name and password are longer.
const LONGEST: usize = 1024;
/// A name without a password that has as many letters and digits is a key.
const SHORTEST_KEY: usize = 20;
/// And this one whatever is in it.
const LONGEST_NAME: usize = 40;

/// What stands before the host of the address whose authority begins at `start`. Before `barren` there is
/// no `@` that an authority could end with.
pub(super) fn user_info(text: &str, start: usize, barren: &mut usize) -> Option<Range<usize>> {
    let body = text.get(start..text.floor_char_boundary(start.saturating_add(LONGEST)))?;
    // Most addresses have none.
    memchr::memchr(b'@', body.as_bytes())?;
    let authority = body.find(['/', '?', '#']).unwrap_or(body.len()).min(word(body));
    let first = body.get(..authority)?;
    let found = |at: usize| (at > 0).then_some(start..start + at);
    if let Some(at) = first.rfind('@') {
        let user = first.get(..at)?;
        return found(at).filter(|_| user.contains(':') || is_key(user));
    }
    // A password with `/`, `?` or `#` in it looks like a host and a port that is none.
    let (_, port) = first.split_once(':')?;
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
    if first.starts_with('[') || (is_port && !port.is_empty()) || start < *barren {
        return None;
    }
    let end = word(body);
    let at = body.get(..end)?.rfind('@');
    if at.is_none() {
        *barren = start + end;
    }
    found(at?)
}

/// Bytes up to a space, or to a quote or bracket behind which nothing goes on that has an `@`.
fn word(body: &str) -> usize {
    let mut last = None;
    for (at, c) in body.char_indices() {
        if c.is_whitespace() {
            return last.unwrap_or(at);
        }
        if c == '@' {
            // What was in doubt was part of it.
            last = None;
        }
        if matches!(c, '"' | '\'' | '`' | '<' | '>') {
            let goes_on = body.get(at + 1..).is_some_and(super::value::goes_on);
            if !goes_on {
                return last.unwrap_or(at);
            }
            last = last.or(Some(at));
        }
    }
    last.unwrap_or(body.len())
}

fn is_key(user: &str) -> bool {
    let has = |kind: fn(&u8) -> bool| user.as_bytes().iter().any(kind);
    user.len() >= LONGEST_NAME
        || (user.len() >= SHORTEST_KEY && has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        let start = text.find("://").unwrap() + 3;
        user_info(text, start, &mut 0).map_or_else(
            || text.to_owned(),
            |span| {
                let (before, after) = (text.get(..span.start), text.get(span.end..));
                format!("{}***{}", before.unwrap(), after.unwrap())
            },
        )
    }

    #[test]
    fn passwords_in_addresses_need_not_be_encoded() {
        for mark in "@#/?'\"<>`!$&()*+,;=[]|{}^%~:\\é".chars() {
            let text = format!("to 'postgres://bob:aB1{mark}Tail9@db/x'");
            assert_eq!(masked(&text), "to 'postgres://***@db/x'", "{text}");
        }
        for (text, expected) in [
            ("a://u:p@h/x@y", "a://***@h/x@y"),
            ("a://u:p@h1:1,h2:2/x", "a://***@h1:1,h2:2/x"),
            ("https://0123456789abcdefABCD@h/x", "https://***@h/x"),
        ] {
            assert_eq!(masked(text), expected);
        }
    }

    #[test]
    fn addresses_without_passwords_stay() {
        for text in [
            "http://host:8080/@scope/x",
            "http://[::1]:80/a@b",
            "ssh://git@host/x",
            "https://first.last@host/x",
            "https://host/@name and a@b.c",
            "{\"a\":\"http://h:x\",\"b\":\"c@d\"}",
            "http://h:x/y z@",
        ] {
            assert_eq!(masked(text), text);
        }
    }
}
