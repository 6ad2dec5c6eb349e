//! How far a value goes that stands behind a telling name in a text, and which values are no secrets. PURE.
//!
//! Changes when values are written in another way. Where it cannot be told whether more belongs to a value,
//! it does: half of a secret is worse than a word too few.

use std::ops::Range;

use super::names::is_about;

/// No name is looked for further away.
pub(super) const LONGEST_NAME: usize = 96;
/// So far on the next part of a connection string is looked for.
const LONGEST_PART: usize = 256;
/// So far on the type of a variable goes at most, and the name of what a value is wrapped in.
const LONGEST_TYPE: usize = 64;
/// Numbers with more digits count nothing.
const LONGEST_COUNT: usize = 12;

/// Where name and value stand, which tells what can end the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Within {
    /// At the beginning of a line, all of which is theirs.
    Line {
        /// Spaces before the first letter.
        indent: usize,
        /// Whether a dash of a list is before the name.
        item: bool,
        /// Whether another flag of a command ends it.
        flag: bool,
    },
    /// In quotes around both.
    Quotes(char),
    /// In a list of parts with semicolons.
    Parts,
    /// Anywhere else: a space ends it.
    Words,
}

/// Where the value is that `value` begins with, which is at `start` in the text. Quotes around it stay,
/// brackets do not.
pub(super) fn range(value: &str, start: usize, within: Within) -> Option<Range<usize>> {
    if let Within::Line { indent, item, .. } = within
        && let Some(block) = block(value, indent, item)
    {
        return Some(start + block.start..start + block.end);
    }
    let found = match (literal(value), value.chars().next()?) {
        (Some(literal), _) => literal,
        (None, '{' | '[') => {
            let length = bracketed_length(value);
            Literal { value: 0..length, end: length, escaped: false }
        }
        (None, _) => Literal { value: 0..0, end: 0, escaped: false },
    };
    let rest = value.get(found.end..)?;
    let more = rest.chars().next().is_some_and(char::is_alphanumeric) && !found.escaped;
    let end = match found.end == 0 || more {
        true => found.end + bare_length(rest, within),
        false => found.value.end,
    };
    (end > found.value.start).then_some(start + found.value.start..start + end)
}

/// Whether a value is no secret whatever its name says: `true`, `false`, `null`, and a number where the
/// name speaks of a count.
pub(super) fn is_plain(name: &str, value: &str) -> bool {
    if ["true", "false", "null", "none"].iter().any(|plain| value.eq_ignore_ascii_case(plain)) {
        return true;
    }
    let first = value.split([' ', '\t']).next().unwrap_or_default();
    let first = first.trim_end_matches([',', ';', '.']);
    (is_number(first) && counts(name))
        || is_about(
            name,
            if is_number(first) { first } else { value.trim_end_matches([',', ';', '.']) },
        )
}

pub(super) fn is_number(text: &str) -> bool {
    let other = |byte: u8| matches!(byte, b'.' | b',' | b'_');
    (1..=LONGEST_COUNT).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || other(byte))
}

/// Whether a name speaks of how many there are: `max_tokens`, `token_count`, `tokensUsed`.
pub(super) fn counts(name: &str) -> bool {
    const MEASURES: [&str; 11] = [
        "",
        "count",
        "counts",
        "limit",
        "budget",
        "usage",
        "used",
        "total",
        "remaining",
        "left",
        "perminute",
    ];
    let letters = name.bytes().filter(u8::is_ascii_alphanumeric);
    let name: String = letters.map(|byte| char::from(byte.to_ascii_lowercase())).collect();
    let Some((_, measure)) = name.rsplit_once("token") else { return name.ends_with("count") };
    match measure.strip_prefix('s') {
        Some(measure) => MEASURES.contains(&measure),
        None => !measure.is_empty() && MEASURES.contains(&measure),
    }
}

pub(super) const fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// Bytes of a value without quotes.
pub(super) fn bare_length(value: &str, within: Within) -> usize {
    let ends = |(at, c): &(usize, char)| {
        value.get(at + c.len_utf8()..).is_none_or(|rest| ends_before(*c, rest, within))
    };
    let end = value.char_indices().find(ends).map_or(value.len(), |(at, _)| at);
    let length = |text: &str| text.trim_end_matches([' ', '\t']).len();
    let found = value.get(..end).unwrap_or_default();
    let quote = value.get(end..).is_some_and(|rest| rest.starts_with(['"', '\'', '`']));
    // The backslash is the quote's.
    if quote { found.trim_end_matches('\\').len() } else { length(found) }
}

/// Whether a value ends before `c`, which `rest` follows.
fn ends_before(c: char, rest: &str, within: Within) -> bool {
    let alone = !goes_on(rest);
    let line = matches!(within, Within::Line { .. });
    let words = matches!(within, Within::Words);
    match c {
        '\n' | '\r' => true,
        c if c.is_whitespace() => match within {
            Within::Words => true,
            Within::Line { flag, .. } => {
                rest.starts_with("# ")
                    || (flag && rest.starts_with('-'))
                    || (!rest.starts_with([' ', '\t']) && begins_pair(rest, false, false))
            }
            _ => false,
        },
        '&' => begins_pair(rest, false, false) || (words && alone),
        ';' | ',' => begins_pair(rest, true, !line) || (words && alone),
        '"' | '\'' | '`' => match within {
            Within::Line { .. } => false,
            Within::Quotes(quote) => c == quote && alone,
            _ => alone,
        },
        '<' => rest.starts_with('/') || (!line && is_tag(rest)),
        '>' | ')' | ']' | '}' | '|' => alone && matches!(within, Within::Words | Within::Parts),
        _ => false,
    }
}

/// Whether what follows a mark looks as if it belonged to the same word.
pub(super) fn goes_on(rest: &str) -> bool {
    rest.chars().next().is_some_and(|c| c.is_alphanumeric() || "$!@#%^*_+=~/?-".contains(c))
}

/// Whether another name with its value comes next.
fn begins_pair(rest: &str, colon: bool, close: bool) -> bool {
    let rest = rest.strip_prefix("amp;").unwrap_or(rest).trim_start_matches(' ');
    let rest = rest.trim_start_matches(['\\', '"', '\'']);
    let length = rest.bytes().take(LONGEST_NAME).take_while(|byte| is_name(*byte)).count();
    let after = rest.get(length..).unwrap_or_default().trim_start_matches(['\\', '"', '\'']);
    if !rest.starts_with(|first: char| first.is_ascii_alphabetic() || matches!(first, '_' | '-')) {
        return false;
    }
    match after.strip_prefix(':').filter(|_| colon) {
        Some(value) => {
            !value.starts_with('/') && (close || value.starts_with([' ', '"', '\'', '\n']))
        }
        None => after.starts_with('=') && !after.starts_with("=="),
    }
}

/// Whether a tag goes on like this.
fn is_tag(rest: &str) -> bool {
    let length = rest.bytes().take(LONGEST_TYPE).take_while(|byte| is_name(*byte)).count();
    let after = rest.get(length..).unwrap_or_default();
    length == 0 || after.starts_with('>') || after.starts_with("/>")
}

/// A text in quotes.
struct Literal {
    /// What is in them.
    value: Range<usize>,
    /// Behind the last of them.
    end: usize,
    /// Whether they have backslashes.
    escaped: bool,
}

/// The text in quotes that `value` begins with, also one that something is made of: `b'…'`, `Some("…")`.
fn literal(value: &str) -> Option<Literal> {
    let mut at = 0;
    for _ in 0..3 {
        let rest = value.get(at..)?;
        let wraps = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':');
        let length = rest.bytes().take(LONGEST_TYPE).take_while(|byte| wraps(*byte)).count();
        let Some(inside) = rest.get(length..)?.strip_prefix('(').filter(|_| length > 0) else {
            break;
        };
        at = value.len() - inside.trim_start().len();
    }
    let rest = value.get(at..)?;
    let marks = rest.bytes().take(3).take_while(|byte| b"bBrRfFuUL@$#".contains(byte)).count();
    let slashes = rest.get(marks..)?.bytes().take_while(|byte| *byte == b'\\').count();
    let quote = rest.get(marks + slashes..)?.chars().next()?;
    let from = at + marks + slashes + 1;
    match quote {
        '"' | '\'' => {}
        // It is no apostrophe, but may be alone.
        '`' => {
            let body = value.get(from..)?;
            let line = body.find(['`', '\n'])?;
            let closed = body.get(line..)?.starts_with('`');
            return closed.then(|| Literal {
                value: from..from + line - slashes.min(line),
                end: from + line + 1,
                escaped: slashes > 0,
            });
        }
        _ => return None,
    }
    let body = value.get(from..)?;
    let two = [quote, quote].iter().collect::<String>();
    if slashes == 0
        && let Some(inside) = body.strip_prefix(&two)
    {
        let three = format!("{two}{quote}");
        // An empty text otherwise.
        if !inside.starts_with(quote)
            && body.len() > two.len()
            && value.get(at + marks..)?.starts_with(&three)
        {
            let length = inside.find(&three).unwrap_or(inside.len());
            let from = from + 2;
            let end = (from + length + 3).min(value.len());
            return Some(Literal { value: from..from + length, end, escaped: false });
        }
    }
    let length = quoted_length(body, quote, slashes);
    let end = (from + length + slashes + 1).min(value.len());
    Some(Literal { value: from..from + length, end, escaped: slashes > 0 })
}

/// What follows the type of a variable that `value` begins with, where a text in quotes does.
pub(super) fn behind_type(value: &str) -> Option<&str> {
    let head = value.get(..value.floor_char_boundary(LONGEST_TYPE))?;
    let equals = head.find('=')?;
    let kind = head.get(..equals)?.trim_end_matches([' ', '\t']);
    let kind = kind.strip_prefix("&'static ").unwrap_or(kind);
    let is_type = !kind.is_empty()
        && kind.bytes().all(|byte| byte.is_ascii_alphabetic() || b"_<>[]?!&|.:'*".contains(&byte));
    let after = value.get(equals + 1..)?.trim_start_matches([' ', '\t']);
    (is_type && literal(after).is_some()).then_some(after)
}

/// The lines below a name that are its value: deeper ones, or those of a list. `value` is what follows the
/// name: nothing, or what YAML says of such lines.
fn block(value: &str, indent: usize, item: bool) -> Option<Range<usize>> {
    let (head, below) = value.split_once('\n')?;
    let head = head.trim();
    let marks = head.strip_prefix(['|', '>']).unwrap_or(head);
    let marks = marks.split(" #").next().unwrap_or_default();
    if !marks.trim().bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-')) {
        return None;
    }
    if head.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-')) {
        return None;
    }
    let first = value.len() - below.len();
    let (mut start, mut end, mut at) = (None, first, first);
    for (count, line) in below.split_inclusive('\n').enumerate() {
        let text = line.trim();
        let depth = line.bytes().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let belongs = depth > indent || (depth == indent && !item && text.starts_with("- "));
        match (text.is_empty(), start) {
            (true, None) if count > 1 => return None,
            (true, _) => {}
            (false, None) if belongs => {
                let list = text.starts_with("- ");
                let from = at + depth;
                if !list
                    && !head.starts_with(['|', '>'])
                    && let Some(found) = literal(value.get(from..)?)
                {
                    let inside = found.value;
                    return (!inside.is_empty()).then_some(from + inside.start..from + inside.end);
                }
                start = Some(from + if list { 2 } else { 0 });
                end = at + line.trim_end().len();
            }
            (false, None) => return None,
            (false, Some(_)) if belongs => end = at + line.trim_end().len(),
            (false, Some(_)) => break,
        }
        at += line.len();
    }
    Some(start?..end)
}

/// Bytes up to the quote that closes, which has as many backslashes as the one that opened.
pub(super) fn quoted_length(body: &str, quote: char, slashes: usize) -> usize {
    let mut run = 0_usize;
    let mut bytes = body.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        if byte == b'\\' {
            run += 1;
            continue;
        }
        // Inside, a quote has more of them: twice as many and one.
        let closes = run == slashes || (slashes == 0 && run.is_multiple_of(2));
        if char::from(byte) == quote && closes {
            // Or it is there twice.
            let twice = slashes == 0 && bytes.next_if(|(_, next)| *next == byte).is_some();
            if !twice {
                return at - run.min(slashes);
            }
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

/// Whether a value ends with a separator and another part comes.
pub(super) fn has_parts(value: &str) -> bool {
    let head = value.get(..value.floor_char_boundary(LONGEST_PART)).unwrap_or_default();
    head.find([';', '\n'])
        .is_some_and(|at| head.get(at..).is_some_and(|rest| rest.starts_with(';')))
}
