//! Values under telling names in a text that is no JSON: `password=…`, `"token":"…"`, `Cookie: …`,
//! `--api-key …`, `<secret>…</secret>`. PURE.
//!
//! Changes when a name and its value can stand together in another way.

use std::ops::Range;

use super::address;
use super::names::{Place, Says, fits};
use super::value::{
    LONGEST_NAME, Within, behind_type, goes_on, has_parts, is_name, is_plain, quoted_length, range,
};

/// No credential in a header is looked for further on.
const LONGEST_CREDENTIAL: usize = 8 * 1024;

/// Where the values of names are that are secrets after what `telling` says of them, and names and
/// passwords in addresses, in order and without overlaps.
pub(super) fn spans(text: &str, telling: impl Fn(&str) -> Says) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let (mut from, mut barren) = (0, 0);
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
            (_, Some(sign)) if text.as_bytes().get(sign..sign + 3) == Some(b"://") => {
                (sign, address::user_info(text, sign + 3, &mut barren))
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
fn value_of_flag(text: &str, at: usize, telling: impl Fn(&str) -> Says) -> Option<Range<usize>> {
    let rest = text.get(at + 2..)?;
    let length = rest.bytes().take(LONGEST_NAME).take_while(|byte| is_name(*byte)).count();
    let (name, after) = rest.split_at_checked(length)?;
    let value = after.trim_start_matches([' ', '\t']);
    let flag = value.len() < after.len() && !value.starts_with(['-', '=', ':']);
    let says = if flag { telling(name) } else { Says::Nothing };
    if says == Says::Nothing {
        return None;
    }
    let span = range(value, text.len() - value.len(), Within::Words);
    secret(text, name, says, Place::Text, span)
}

/// The range of a value that stands at a place, unless it is plain that it is no secret.
fn secret(
    text: &str,
    name: &str,
    says: Says,
    place: Place,
    span: Option<Range<usize>>,
) -> Option<Range<usize>> {
    span.filter(|span| {
        let Some(value) = text.get(span.clone()) else { return false };
        let quoted =
            || text.get(..span.start).is_some_and(|before| before.ends_with(['"', '\'', '`']));
        let fits = || fits(name, value, if quoted() { Place::Json } else { place });
        !is_plain(name, value) && (says == Says::Secret || fits())
    })
}

/// What stands in the element of a telling name whose tag ends at `at`.
fn content_at(text: &str, at: usize, telling: impl Fn(&str) -> Says) -> Option<Range<usize>> {
    let before = text.get(text.floor_char_boundary(at.saturating_sub(LONGEST_NAME))..at)?;
    let (_, tag) = before.rsplit_once('<')?;
    // Attributes may follow its name.
    let tag = tag.split_ascii_whitespace().next().filter(|_| !tag.ends_with('/'))?;
    let is_tag = !tag.is_empty() && tag.bytes().all(|byte| is_name(byte) || byte == b':');
    let says = if is_tag { telling(tag) } else { Says::Nothing };
    if says == Says::Nothing {
        return None;
    }
    let content = text.get(at + 1..)?;
    let data = content.trim_start();
    if let Some(data) = data.strip_prefix("<![CDATA[") {
        let start = text.len() - data.len();
        let length = data.find("]]>").unwrap_or(data.len());
        return (length > 0).then_some(start..start + length);
    }
    let length = content.find('<')?;
    // `Vec<Token>` is none.
    let closed = content.get(length..)?.starts_with("</");
    secret(text, tag, says, Place::Text, (closed && length > 0).then_some(at + 1..at + 1 + length))
}

/// How many of the last bytes can be of a name.
fn name_length(text: &str) -> usize {
    text.bytes().rev().take_while(|byte| is_name(*byte)).count()
}

/// The value that the sign at `at` gives to a telling name.
fn value_at(text: &str, at: usize, telling: impl Fn(&str) -> Says) -> Option<Range<usize>> {
    let sign = text.as_bytes().get(at)?;
    let from = text.floor_char_boundary(at.saturating_sub(LONGEST_NAME));
    let before = text.get(from..at)?.trim_end_matches([' ', '\t']);
    // As Markdown writes it.
    let before = before.strip_suffix("**").unwrap_or(before);
    let unquoted = before.strip_suffix(['"', '\'', '`']);
    let quote = before.chars().next_back().filter(|_| unquoted.is_some());
    // The quotes of JSON that stands in a string have backslashes.
    let before = unquoted.map_or(before, |rest| rest.trim_end_matches('\\'));
    let (mut outside, mut name) = before.split_at_checked(before.len() - name_length(before))?;
    if name.is_empty() {
        return None;
    }
    let mut says = telling(name);
    if says == Says::Nothing {
        // `ACCESS KEY=…`: both words together.
        let first = outside.strip_suffix([' ', '\t'])?;
        let (around, word) = first.split_at_checked(first.len() - name_length(first))?;
        says = telling(before.get(around.len()..)?);
        let alone = || telling(word) == Says::Secret && !name.eq_ignore_ascii_case("key");
        if word.is_empty() || says != Says::Secret || alone() {
            return None;
        }
        (outside, name) = (around, before.get(around.len()..)?);
    }
    let named = Named { name, outside, quote, whole: from == 0 };
    let span = value_behind(text, at, *sign, &named);
    secret(text, name, says, place(text, at, outside), span)
}

/// Where the value stands that the sign at `at` gives to a name with `outside` before it.
fn place(text: &str, at: usize, outside: &str) -> Place {
    let is = |at: usize, kind: fn(&u8) -> bool| text.as_bytes().get(at).is_some_and(kind);
    let alone = |byte: &u8| byte.is_ascii_whitespace();
    if !is(at, |sign| *sign == b'=') || is(at + 1, alone) || (at > 0 && is(at - 1, alone)) {
        return Place::Prose;
    }
    match outside.ends_with(['?', '&']) || outside.ends_with("&amp;") {
        true => Place::Query,
        false => Place::Text,
    }
}

/// A telling name and what is before it.
struct Named<'a> {
    name: &'a str,
    outside: &'a str,
    /// Whether that is all that is before it.
    whole: bool,
    /// The quote behind it.
    quote: Option<char>,
}

/// What the sign at `at` gives to a name that is telling.
#[inline(never)]
fn value_behind(text: &str, at: usize, sign: u8, named: &Named<'_>) -> Option<Range<usize>> {
    let &Named { name, mut outside, whole, mut quote } = named;
    if let (Some('`'), Some(around)) = (quote, outside.strip_suffix('`')) {
        (outside, quote) = (around, None);
    }
    let after = text.get(at + 1..)?;
    let after = match (quote, outside.chars().next_back()) {
        // `**Password:** …`
        (None, Some('*')) => after.trim_start_matches('*'),
        (None, Some('`')) if after.starts_with('`') => {
            outside = outside.strip_suffix('`')?;
            after.strip_prefix('`')?
        }
        // A label.
        (None, Some(quote @ ('"' | '\''))) if after.starts_with(quote) => return None,
        _ => after,
    };
    // As Ruby and PHP write it, but no function: `token => token.trim()`.
    let after = match after.strip_prefix('>').filter(|_| sign == b'=') {
        Some(arrow) if arrow.trim_start_matches(' ').starts_with(['"', '\'', '\\']) => arrow,
        Some(_) => return None,
        None => after,
    };
    // As Go writes it.
    let after = after.strip_prefix('=').filter(|_| sign == b':').unwrap_or(after);
    let value = after.trim_start_matches([' ', '\t']);
    let value = quoted_below(value).unwrap_or(value);
    let start = text.len() - value.len();
    let within = within(outside, whole, name, quote.is_some(), value);
    let line = matches!(within, Within::Line { .. });
    match (quote, sign) {
        (Some(quote), _) if outside.ends_with(quote) => range(value, start, within),
        (Some(_), _) => None,
        // A comparison.
        (None, b'=') if after.starts_with('=') => None,
        // Cookies have names of their own.
        (None, b'=') if line && is_header(name) => header_value(name, value, start, within),
        (None, b'=') => range(value, start, within),
        // A path of names.
        (None, _) if after.starts_with(':') => None,
        (None, _) if is_header(name) => {
            // What a line of a header is quoted in ends it.
            if outside
                .chars()
                .next_back()
                .is_some_and(|quote| matches!(quote, '"' | '\'' | '`') && value.starts_with(quote))
            {
                return None;
            }
            header_value(name, value, start, within)
        }
        // It may be prose; in doubt it is a secret.
        (None, _) => {
            let value = behind_type(value).unwrap_or(value);
            range(value, text.len() - value.len(), within)
        }
    }
}

/// The text in quotes that begins in the next line.
fn quoted_below(value: &str) -> Option<&str> {
    let below = value.strip_prefix('\r').unwrap_or(value).strip_prefix('\n')?;
    let below = below.trim_start_matches([' ', '\t']);
    below.starts_with(['"', '\'']).then_some(below)
}

/// Where a name and its value stand. `outside` is what is before the name, `whole` whether that is all.
fn within(outside: &str, whole: bool, name: &str, quoted: bool, value: &str) -> Within {
    if quoted {
        return Within::Words;
    }
    if let Some(quote @ ('"' | '\'' | '`')) = outside.chars().next_back() {
        return Within::Quotes(quote);
    }
    let line = match outside.rfind(['\n', '\r']) {
        Some(end) => outside.get(end + 1..),
        None => Some(outside).filter(|_| whole),
    };
    if let Some(line) = line.filter(|line| line.split_whitespace().all(leads)) {
        return Within::Line {
            indent: line.len() - line.trim_start_matches([' ', '\t']).len(),
            item: line.contains('-'),
            flag: name.starts_with('-'),
        };
    }
    if outside.ends_with(';') && has_parts(value) {
        return Within::Parts;
    }
    Within::Words
}

/// Whether a word can stand before the name that a line is about.
fn leads(word: &str) -> bool {
    const WORDS: [&str; 18] = [
        "-", "*", "**", "+", ">", "#", "//", "export", "set", "-x", "env", "arg", "setx",
        "declare", "local", "readonly", "$env:", "$",
    ];
    WORDS.iter().any(|lead| word.eq_ignore_ascii_case(lead))
}

/// Names that stand before a colon in headers and nowhere else.
fn is_header(name: &str) -> bool {
    name.contains('-')
        || ["authorization", "cookie"].iter().any(|header| name.eq_ignore_ascii_case(header))
}

/// The value of a header: what is quoted; to the end of the line for cookies; or where a credential follows
/// a scheme, that.
fn header_value(name: &str, value: &str, start: usize, within: Within) -> Option<Range<usize>> {
    let is = |suffix: &str| name.to_ascii_lowercase().ends_with(suffix);
    let span = |from: usize, length: usize| (length > 0).then_some(from..from + length);
    if value.trim_start_matches('\\').starts_with(['"', '\'', '[', '`']) {
        return range(value, start, within);
    }
    if is("cookie") {
        return span(start, parameters(value));
    }
    if is("authorization") {
        let line = value.get(..value.floor_char_boundary(LONGEST_CREDENTIAL))?;
        let scheme = line.bytes().take_while(u8::is_ascii_alphabetic).count();
        let behind = line.get(scheme..)?;
        // The next line is more of this one if it begins with a space.
        let folded = behind.trim_start_matches(['\r', '\n']).starts_with([' ', '\t']);
        let credential = if folded { behind.trim_start() } else { behind };
        if scheme > 0 && credential.len() < behind.len() && !credential.is_empty() {
            let from = start + line.len() - credential.len();
            let credential = value.get(from - start..)?;
            let one = ["bearer", "basic", "token"];
            let one = line
                .get(..scheme)
                .is_some_and(|scheme| one.iter().any(|one| scheme.eq_ignore_ascii_case(one)));
            return if one {
                range(credential, from, within)
            } else {
                span(from, parameters(credential))
            };
        }
    }
    range(value, start, within)
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
            b'"' | b'\'' | b'`' if slashes == 0 && value.get(at + 1..).is_some_and(goes_on) => {
                before = byte;
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
                .into()
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
            ("run --db-password=x y", "run --db-password=*** y"),
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
            ("an ACCESS KEY=v n", "an ACCESS KEY=*** n"),
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
            "token:\n ",
            "\ntoken: |\n",
            "token=a&",
            " token=a,b",
            "'token=a ",
            "token: Some(",
            "<token><![CDATA[",
            "token: `",
            "token: a = ",
            "://a:",
            "://a:b 'x",
            "token=\"\"\"",
        ];
        for piece in pieces {
            let text = piece.repeat(hostile_length() * 3 / 4 / piece.len());
            let out = in_linear_time(piece, || masked(&text));
            assert!(out.len() <= text.len() * 4, "{piece}");
        }
    }
    #[test]
    fn the_value_at_the_beginning_of_a_line_goes_to_its_end() {
        for (text, expected) in [
            ("passphrase_token: correct horse S", "passphrase_token: ***"),
            ("A=1\n  export token=a b,S # c\nB=2", "A=1\n  export token=*** # c\nB=2"),
            ("- password: a 'S\r\n- b: c", "- password: ***\r\n- b: c"),
            ("password=a S&user=bob", "password=***&user=bob"),
            ("password=a S; user=bob", "password=***; user=bob"),
            ("password=a user=bob", "password=*** user=bob"),
            ("cookie=a=1; b=S\nn", "cookie=***\nn"),
            ("--token=a&b c --n=1", "--token=*** --n=1"),
            ("X-Api-Key: a b\nAccept: x", "X-Api-Key: ***\nAccept: x"),
            ("Authorization: Bearer a,S\nb: c", "Authorization: Bearer ***\nb: c"),
            ("Authorization: Bearer\r\n S\r\nb: c", "Authorization: Bearer\r\n ***\r\nb: c"),
            ("db:\n  password:\n    S\n  n: 1", "db:\n  password:\n    ***\n  n: 1"),
            ("password: |-\n  S\n\n  S\nn: 1", "password: |-\n  ***\nn: 1"),
            ("password: >\n  S\n", "password: >\n  ***\n"),
            ("tokens:\n - S\n - S\nn: 1", "tokens:\n - ***\nn: 1"),
            ("tokens:\n- S\n- S\nn: 1", "tokens:\n- ***\nn: 1"),
            ("password =\n  \"S\"\nn", "password =\n  \"***\"\nn"),
            ("password: 'it''s S' n", "password: '***' n"),
        ] {
            assert_eq!(masked(text), expected, "{text}");
        }
    }

    #[test]
    fn the_value_is_taken_and_not_what_it_is_written_in() {
        for (text, expected) in [
            ("a\n**Password:** S T", "a\n**Password:** ***"),
            ("**Password**: S", "**Password**: ***"),
            ("`Password`: S T", "`Password`: ***"),
            ("the Password: `S T` is", "the Password: `***` is"),
            ("f(password=b'S T')", "f(password=b'***')"),
            ("User { password: Some(\"S T\"), n: 1 }", "User { password: Some(\"***\"), n: 1 }"),
            (
                "    password: Some(\n        \"S\",\n    ),",
                "    password: Some(\n        \"***\",\n    ),",
            ),
            ("const password: string = \"S\";", "const password: string = \"***\";"),
            ("mutation($token: String! = \"S\") {", "mutation($token: String! = \"***\") {"),
            ("\tpassword := \"S T\"\n", "\tpassword := \"***\"\n"),
            ("x password = \"\"\"\nS\n\"\"\" n", "x password = \"\"\"***\"\"\" n"),
            ("let password =\n  \"S\"", "let password =\n  \"***\""),
            ("<password><![CDATA[S<]]></password>", "<password><![CDATA[***]]></password>"),
            ("<password type=\"a\">S</password>", "<password type=\"a\">***</password>"),
            ("Server=x;Password=a S;Encrypt=yes", "Server=x;Password=***;Encrypt=yes"),
            ("run -e \"TOKEN=a S\" n", "run -e \"TOKEN=***\" n"),
            ("[\\\"--token=a&S\\\", 1]", "[\\\"--token=***\\\", 1]"),
        ] {
            assert_eq!(masked(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "max_tokens=256, temperature=0.7",
            "Total tokens: 1532, prompt tokens: 900",
            "tokens: 512 used",
            "{\"totalTokenCount\":12,\"token\":null,\"password\":false} x",
            "--max-tokens 256 -v",
            "password: true",
            "<tokens>12</tokens>",
            "a `{token: true, other: y}` b",
        ] {
            assert_eq!(masked(text), text);
        }
        assert_eq!(masked("password: 123456"), "password: ***");
        assert_eq!(masked("f(token=1, n=2)"), "f(token=***, n=2)");
        assert_eq!(masked("`{token: x, other: y}`"), "`{token: ***, other: y}`");
        assert_eq!(masked("{token:x,other:y}"), "{token:***,other:y}");
        assert_eq!(masked("go /?a=1&token=b&c=d e"), "go /?a=1&token=***&c=d e");
    }

    proptest::proptest! {
        #[test]
        fn no_mark_ends_a_value_before_the_word_does(
            mark in "[!-~]{1,2}", form in 0usize..16, tail in "[A-Z][a-z]{3}[0-9]{4}"
        ) {
            let value = format!("Aa1bC7{mark}{tail}");
            let forms = [
                "DB_PASSWORD=@", "A=1\nDB_PASSWORD=@\nB=2\n", "export API_TOKEN=@\n",
                "db:\n  password: @\n  port: 1\n", "[x]\npassword = @\n", "a.b=1\nx.secret=@\nc=2",
                "--token=@", "X-Api-Key: @\nAccept: x", "Authorization: Bearer @\nAccept: x",
                "tool --password=@ -v", "tool --password @ -v", "Cookie: sid=@; a=b\nX: y",
                "Server=x;Password=@;Encrypt=yes", "host=a password=@ dbname=b",
                "postgres://bob:@@db.example/x", "https://bob:@@h.example:8443/p?q=1",
            ];
            let text = forms[form].replacen('@', &value, 1);
            // A comma or semicolon with a name and `=` behind it is the next value, two quotes end one.
            let single = mark.len() == 1 || form < 9;
            proptest::prop_assume!(single && !mark.contains(['<', '/']));
            let out = masked(&text);
            proptest::prop_assert!(!out.contains(&tail), "{text} -> {out}");
        }

        #[test]
        fn spans_are_in_order(text in "(token|password=|[-:=\"'`<>@&;, \n|é(){}*]|://|Some\\(|a){0,40}") {
            let mut end = 0;
            let telling = |name: &str| (name.contains("token") || name.contains("password")).into();
            for span in spans(&text, telling) {
                proptest::prop_assert!(span.start >= end && span.start < span.end);
                proptest::prop_assert!(text.get(span.clone()).is_some(), "{text:?} {span:?}");
                end = span.end;
            }
        }
    }
}
