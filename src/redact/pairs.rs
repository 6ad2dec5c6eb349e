//! Names that are values themselves: `{"name": "API_KEY", "value": …}`, `["Cookie", …]`,
//! `["--password", …]`; and values of telling names that are no secrets. PURE.
//!
//! Changes when JSON gives names to values in another way.

use std::borrow::Cow;
use std::ops::Range;

use super::names::{Place, Says, fits, is_about, is_policy};
use super::value::{LONGEST_NAME, counts, is_name, is_number, is_plain};

/// What a value is to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// `{"name": this, …}`
    Name,
    /// `{"field": this, …}`
    Field,
    /// `{"value": this, …}`
    Value,
    /// `{"content": this, …}`, which has a name only where that is a field or header.
    Content,
    /// `[this, …]`
    Element {
        /// Whether none is before it.
        first: bool,
    },
}

/// What the member of an object that is called `key` is to another.
pub(super) fn part(key: &str) -> Option<Part> {
    let is = |words: &[&str]| words.iter().any(|word| key.eq_ignore_ascii_case(word));
    match key.len() {
        3..=9 if is(&["name", "key", "variable", "parameter", "option"]) => Some(Part::Name),
        5..=6 if is(&["field", "header"]) => Some(Part::Field),
        5..=6 if is(&["value", "values"]) => Some(Part::Value),
        7 if is(&["content"]) => Some(Part::Content),
        _ => None,
    }
}

/// Whether the value that `rest` begins with is a secret, after what its name says.
pub(super) fn hides(name: &str, says: Says, rest: &str) -> bool {
    let fits = || value(rest).is_some_and(|value| fits(name, &value, Place::Json));
    match says {
        Says::Nothing => false,
        Says::Perhaps => fits() && !stays(name, rest),
        Says::Secret => !stays(name, rest),
    }
}

/// The text, number or first bracket that `rest` begins with.
fn value(rest: &str) -> Option<Cow<'_, str>> {
    let length = match rest.as_bytes().first()? {
        b'"' => {
            let text = rest.get(1..)?;
            let text = text.get(..quoted_json(text))?;
            return Some(match text.contains('\\') {
                true => text.replace("\\/", "/").into(),
                false => text.into(),
            });
        }
        b'{' | b'[' => 1,
        _ => rest.find([',', '}', ']', ' ', '\n', '\r', '\t']).unwrap_or(rest.len()),
    };
    rest.get(..length).map(Cow::Borrowed)
}

/// Whether the value that `rest` begins with is no secret though `name` is telling.
fn stays(name: &str, rest: &str) -> bool {
    let about = |value: &str| (is_number(value) && counts(name)) || is_about(name, value);
    match rest.as_bytes().first() {
        Some(b't' | b'f' | b'n') => true,
        Some(b'-' | b'0'..=b'9') => {
            counts(name) || value(rest).is_some_and(|value| is_about(name, &value))
        }
        Some(b'"') => {
            // Of one without an end, nobody knows what it would have been.
            let ends =
                |value: &str| rest.get(value.len() + 1..).is_some_and(|rest| rest.starts_with('"'));
            value(rest).is_some_and(|value| ends(&value) && about(&value))
        }
        // `prompt_tokens_details`: its members are looked at one by one.
        Some(b'{') => {
            let of = name.to_ascii_lowercase();
            let of = of.strip_suffix("details").unwrap_or_default();
            is_policy(name) || (counts(of) && of.trim_end_matches('_').ends_with("tokens"))
        }
        _ => false,
    }
}

/// An object with a name or a value in it.
struct Pair {
    depth: usize,
    /// The name, if it is telling, what it says, and whether it is one of a field.
    name: Option<(String, Says, bool)>,
    /// A value before the name, in what is kept, and whether only a field's name counts.
    value: Option<(Range<usize>, bool)>,
    /// Whether that value has not ended.
    under_way: bool,
}

/// The names and values of the containers that are open.
#[derive(Default)]
pub(super) struct Pairs {
    open: Vec<Pair>,
    /// The telling element before, what it says, the number of containers around it, and whether it is a
    /// flag.
    element: Option<(String, Says, usize, bool)>,
    /// What of the kept text is the value of a name that came later.
    later: Vec<Range<usize>>,
}

impl Pairs {
    fn at(&mut self, depth: usize) -> Option<&mut Pair> {
        if self.open.last().is_none_or(|pair| pair.depth != depth) {
            self.open.push(Pair { depth, name: None, value: None, under_way: false });
        }
        self.open.last_mut()
    }

    /// Whether the value that `rest` begins with has a telling name. `depth` containers are open, and `at`
    /// is where it will stand in what is kept.
    pub(super) fn hides(&mut self, part: Part, depth: usize, rest: &str, at: usize) -> bool {
        match part {
            Part::Name | Part::Field => false,
            Part::Element { .. } => {
                let Some((name, says, of, flag)) = self.element.take() else { return false };
                of == depth && is_behind(&name, says, flag, rest)
            }
            Part::Value | Part::Content => {
                let content = part == Part::Content;
                let Some(pair) = self.at(depth) else { return false };
                if let Some((name, says, field)) = &pair.name {
                    return (*field || !content) && hides(name, *says, rest);
                }
                if !rest.starts_with(['{', '[']) {
                    pair.value = Some((at..at, content));
                    pair.under_way = true;
                }
                false
            }
        }
    }

    /// A value ended where `depth` containers are open, and with it what is kept so far.
    pub(super) fn end_value(&mut self, depth: usize, end: usize) {
        if let Some(pair) = self.open.last_mut().filter(|pair| pair.depth == depth)
            && pair.under_way
        {
            pair.under_way = false;
            if let Some((value, _)) = &mut pair.value {
                value.end = end;
            }
        }
    }

    /// The next value is the text `name`, which may be telling.
    pub(super) fn name(
        &mut self,
        part: Part,
        name: &str,
        depth: usize,
        kept: &str,
        says: impl Fn(&str) -> Says,
    ) {
        if matches!(part, Part::Value | Part::Content) || name.len() > LONGEST_NAME {
            return;
        }
        let flag = name.starts_with('-');
        if matches!(part, Part::Element { first: false }) && !flag {
            return;
        }
        let whole = |byte: u8| is_name(byte) || (byte == b' ' && !flag);
        let says = if name.bytes().all(whole) { says(name) } else { Says::Nothing };
        if says == Says::Nothing {
            return;
        }
        if matches!(part, Part::Element { .. }) {
            self.element = Some((name.to_owned(), says, depth, flag));
            return;
        }
        let field = part == Part::Field;
        let Some(pair) = self.at(depth) else { return };
        pair.name = Some((name.to_owned(), says, field));
        if let Some((value, content)) = pair.value.take()
            && (field || !content)
            && kept.get(value.clone()).is_some_and(|value| hides(name, says, value))
        {
            self.later.push(value);
        }
    }

    /// There are only `depth` containers left.
    pub(super) fn close(&mut self, depth: usize) {
        self.element = None;
        while self.open.pop_if(|pair| pair.depth > depth).is_some() {}
    }

    /// No more names come: values without one may be anything.
    pub(super) fn give_up(&mut self) {
        for pair in self.open.drain(..).filter(|pair| !pair.under_way) {
            self.later.extend(pair.value.map(|(value, _)| value));
        }
    }

    /// Puts `mask` for values whose names came later.
    pub(super) fn mask(&mut self, kept: &mut String, mask: &str) {
        if self.later.is_empty() {
            return;
        }
        self.later.sort_by_key(|value| value.start);
        let (mut masked, mut at) = (String::with_capacity(kept.len()), 0);
        for value in self.later.drain(..) {
            masked.push_str(kept.get(at..value.start).unwrap_or_default());
            masked.push_str(mask);
            at = value.end;
        }
        masked.push_str(kept.get(at..).unwrap_or_default());
        *kept = masked;
    }
}

/// Whether the element that `rest` begins with is the value of the telling one before it: of a flag, or of
/// the first of two.
fn is_behind(name: &str, says: Says, flag: bool, rest: &str) -> bool {
    if rest.starts_with(['{', '[']) || !hides(name, says, rest) {
        return false;
    }
    let Some(text) = rest.strip_prefix('"') else {
        let digit = |c: char| c.is_ascii_digit() || ".eE+-".contains(c);
        return flag || rest.trim_start_matches(digit).trim_start().starts_with(']');
    };
    let length = quoted_json(text);
    let value = text.get(..length).unwrap_or_default();
    if is_plain(name, value) {
        return false;
    }
    let last = || text.get(length + 1..).is_some_and(|rest| rest.trim_start().starts_with(']'));
    if flag { !value.starts_with('-') } else { last() }
}

/// Bytes up to the quote that ends a string of JSON.
fn quoted_json(text: &str) -> usize {
    let mut escaped = false;
    let ends = |byte: u8| {
        let end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        end
    };
    text.bytes().position(ends).unwrap_or(text.len())
}
