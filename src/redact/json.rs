//! Redaction of JSON while it is copied: a tokenizer with a stack of its own, so that depth costs
//! one byte and not a stack frame.

use std::borrow::Cow;

use super::names::Says;
use super::pairs::{Pairs, Part, hides, part};
use super::pointer::{PointerSet, Step};
use super::redactor::{RECORD_LIMIT, Redactor, Strictness, VALUE_LIMIT, cut};

/// The mask as a JSON string.
const MASK_STRING: &str = r#""***""#;

/// What may come next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    ValueOrEnd,
    KeyOrEnd,
    Key,
    Colon,
    CommaOrEnd,
    Nothing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Container {
    Object,
    Array,
}

/// What is taken out of a document.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) strictness: Strictness,
    /// Strings that hold JSON are looked into this many levels deep.
    pub(super) levels: u8,
    /// Places that are never kept.
    pub(super) pointers: Option<&'a PointerSet>,
    /// Where in the whole the document stands.
    pub(super) base: &'a [Step],
    /// Bytes of the whole, when what is here is its beginning.
    pub(super) whole: Option<usize>,
    pub(super) limits: Limits,
}

/// Bytes that are kept.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Of a string.
    value: usize,
    /// Of all of it.
    record: usize,
}

impl Limits {
    /// Those of the ledger's payloads.
    pub(super) const OF_PAYLOADS: Self = Self { value: VALUE_LIMIT, record: RECORD_LIMIT };
    /// None: what comes out is JSON again.
    pub(super) const NONE: Self = Self { value: usize::MAX, record: usize::MAX };
}

/// Whether a text begins as an object or an array does.
pub(super) fn looks_like(text: &str) -> bool {
    text.trim_start().starts_with(['{', '['])
}

/// Copies `text` with secrets replaced; `None` when it is not JSON.
pub(super) fn redact(redactor: &Redactor, text: &str, scope: Scope<'_>) -> Option<String> {
    let mut copy = Copy {
        redactor,
        scope,
        text,
        at: 0,
        out: String::with_capacity(text.len().min(scope.limits.record) + 16),
        open: Vec::new(),
        path: scope.base.to_vec(),
        hidden: None,
        part: None,
        pairs: Pairs::default(),
    };
    copy.run()?;
    Some(copy.out)
}

struct Copy<'a> {
    redactor: &'a Redactor,
    scope: Scope<'a>,
    text: &'a str,
    at: usize,
    out: String,
    open: Vec<Container>,
    /// The way to the value that comes next, as far as pointers go; with pointers only.
    path: Vec<Step>,
    /// While inside a value that is replaced as a whole: how many containers were open before it.
    hidden: Option<usize>,
    /// What the value that comes next is to a name that is a value.
    part: Option<Part>,
    pairs: Pairs,
}

impl<'a> Copy<'a> {
    fn run(&mut self) -> Option<()> {
        if self.walk().is_none() {
            // What is not whole is not kept: what it would have been is not known.
            let whole = self.scope.whole?;
            self.cut(whole);
        }
        self.pairs.mask(&mut self.out, MASK_STRING);
        Some(())
    }

    fn walk(&mut self) -> Option<()> {
        let mut expect = Expect::Value;
        loop {
            self.spaces();
            // Once nothing more is kept, the rest need not be read.
            if self.out.len() > self.scope.limits.record {
                let whole = self.scope.whole.unwrap_or(self.text.len());
                self.cut(whole);
                return Some(());
            }
            let Some(byte) = self.peek() else {
                return (expect == Expect::Nothing && self.scope.whole.is_none()).then_some(());
            };
            expect = match (expect, byte) {
                (Expect::KeyOrEnd, b'}') => self.end(Container::Object)?,
                (Expect::ValueOrEnd, b']') => self.end(Container::Array)?,
                (Expect::KeyOrEnd | Expect::Key, b'"') => self.key()?,
                (Expect::Colon, b':') => {
                    self.copy(1);
                    Expect::Value
                }
                (Expect::CommaOrEnd, b',') => {
                    self.copy(1);
                    match self.open.last()? {
                        Container::Object => Expect::Key,
                        Container::Array => {
                            self.next_element();
                            Expect::Value
                        }
                    }
                }
                (Expect::CommaOrEnd, b'}') => self.end(Container::Object)?,
                (Expect::CommaOrEnd, b']') => self.end(Container::Array)?,
                (Expect::Value | Expect::ValueOrEnd, _) => {
                    if self.open.last() == Some(&Container::Array) {
                        self.part = Some(Part::Element { first: expect == Expect::ValueOrEnd });
                    }
                    if self.hidden.is_none() && (self.is_named() || self.is_paired()) {
                        self.emit(MASK_STRING);
                        self.hidden = Some(self.open.len());
                    }
                    self.value(byte)?
                }
                _ => return None,
            };
        }
    }

    /// Whether a pointer names the value that comes next.
    fn is_named(&self) -> bool {
        self.scope.pointers.is_some_and(|pointers| {
            self.path.len() == self.scope.base.len() + self.open.len() && pointers.names(&self.path)
        })
    }

    /// Cuts what is kept. Values whose names did not come any more are not kept.
    fn cut(&mut self, whole: usize) {
        self.pairs.give_up();
        self.pairs.mask(&mut self.out, MASK_STRING);
        cut(&mut self.out, self.scope.limits.record, whole);
    }

    /// Whether a telling name that is itself a value has the value that comes next.
    fn is_paired(&mut self) -> bool {
        let Some(part) = self.part else { return false };
        let (depth, at) = (self.open.len(), self.out.len());
        let rest = self.text.get(self.at..).unwrap_or_default();
        self.pairs.hides(part, depth, rest, at)
    }

    /// Begins a container: its first member or element comes next.
    fn open(&mut self, container: Container) {
        let deep = self.path.len() == self.scope.base.len() + self.open.len();
        self.open.push(container);
        if deep && self.scope.pointers.is_some_and(|pointers| self.path.len() < pointers.longest())
        {
            self.path.push(match container {
                Container::Object => Step::Member(String::new()),
                Container::Array => Step::Element(0),
            });
        }
    }

    fn close(&mut self) -> Option<Container> {
        let container = self.open.pop()?;
        self.path.truncate(self.scope.base.len() + self.open.len());
        self.pairs.close(self.open.len());
        Some(container)
    }

    /// The step at which the innermost container stands, as far as it is followed.
    fn step(&mut self) -> Option<&mut Step> {
        let followed = self.path.len() == self.scope.base.len() + self.open.len();
        self.path.last_mut().filter(|_| followed)
    }

    fn next_element(&mut self) {
        if let Some(Step::Element(at)) = self.step() {
            *at += 1;
        }
    }

    fn next_member(&mut self, name: &str) {
        if let Some(Step::Member(member)) = self.step() {
            member.clear();
            member.push_str(name);
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn emit(&mut self, text: &str) {
        if self.hidden.is_none() {
            self.out.push_str(text);
        }
    }

    /// Takes `length` bytes over as they are.
    fn copy(&mut self, length: usize) {
        let end = self.at + length;
        if self.hidden.is_none() {
            self.out.push_str(self.text.get(self.at..end).unwrap_or_default());
        }
        self.at = end;
    }

    fn spaces(&mut self) {
        let length = self
            .rest()
            .bytes()
            .position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))
            .unwrap_or(self.text.len() - self.at);
        if length > 0 {
            self.copy(length);
        }
    }

    fn value(&mut self, byte: u8) -> Option<Expect> {
        match byte {
            b'{' => {
                self.copy(1);
                self.open(Container::Object);
                return Some(Expect::KeyOrEnd);
            }
            b'[' => {
                self.copy(1);
                self.open(Container::Array);
                return Some(Expect::ValueOrEnd);
            }
            b'"' => self.string()?,
            b't' => self.word("true")?,
            b'f' => self.word("false")?,
            b'n' => self.word("null")?,
            b'-' | b'0'..=b'9' => self.number()?,
            _ => return None,
        }
        Some(self.after_value())
    }

    fn end(&mut self, container: Container) -> Option<Expect> {
        if self.close()? != container {
            return None;
        }
        self.copy(1);
        Some(self.after_value())
    }

    fn after_value(&mut self) -> Expect {
        if self.hidden == Some(self.open.len()) {
            self.hidden = None;
        }
        self.part = None;
        self.pairs.end_value(self.open.len(), self.out.len());
        if self.open.is_empty() { Expect::Nothing } else { Expect::CommaOrEnd }
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.rest().starts_with(word).then(|| self.copy(word.len()))
    }

    /// A number may be a secret too: a PIN, an account.
    fn number(&mut self) -> Option<()> {
        let length = number_length(self.rest().as_bytes())?;
        if self.scope.whole.is_some() && self.at + length == self.text.len() {
            return None;
        }
        let token = self.rest().get(..length)?;
        if self.redactor.replace(token, self.scope.limits.value, self.scope.strictness).is_some() {
            self.emit(MASK_STRING);
            self.at += length;
        } else {
            self.copy(length);
        }
        Some(())
    }

    fn key(&mut self) -> Option<Expect> {
        let token = self.string_token()?;
        let key = decode(token)?;
        self.next_member(&key);
        let says = match self.hidden {
            None => self.redactor.says(&key, self.scope.strictness),
            Some(_) => Says::Nothing,
        };
        if says != Says::Nothing {
            let length = token.len();
            self.write_string(&key, length, None);
            let after = self.rest();
            let colon = after.trim_start_matches([' ', '\t', '\n', '\r']);
            if !colon.starts_with(':') {
                return None;
            }
            self.copy(after.len() - colon.len() + 1);
            self.spaces();
            if hides(&key, says, self.rest()) {
                self.emit(MASK_STRING);
                self.hidden = Some(self.open.len());
            }
            return Some(Expect::Value);
        }
        let length = token.len();
        self.part = part(&key).filter(|_| self.scope.strictness == Strictness::Everything);
        self.write_string(&key, length, None);
        Some(Expect::Colon)
    }

    fn string(&mut self) -> Option<()> {
        let token = self.string_token()?;
        let length = token.len();
        if self.hidden.is_some() {
            self.at += length;
            return Some(());
        }
        let value = decode(token)?;
        let followed = self.path.len() == self.scope.base.len() + self.open.len();
        let pointers = self.scope.pointers.filter(|_| followed);
        if let Some(part) = self.part.take() {
            let says = |name: &str| self.redactor.says(name, self.scope.strictness);
            self.pairs.name(part, &value, self.open.len(), &self.out, says);
        }
        self.write_string(&value, length, pointers);
        Some(())
    }

    /// Writes the string token of `length` bytes that stands here and means `value`. `pointers` go on in
    /// it when it holds JSON.
    fn write_string(&mut self, value: &str, length: usize, pointers: Option<&PointerSet>) {
        if self.hidden.is_some() {
            self.at += length;
            return;
        }
        let redactor = self.redactor;
        let holds_json = looks_like(value);
        let scope = Scope {
            levels: self.scope.levels.saturating_sub(1),
            pointers,
            base: &self.path,
            whole: None,
            ..self.scope
        };
        let nested =
            (self.scope.levels > 0 && holds_json).then(|| redact(redactor, value, scope)).flatten();
        let wanted_inside = || pointers.is_some_and(|pointers| pointers.names_inside(&self.path));
        if nested.is_none() && holds_json && wanted_inside() {
            // It cannot be told what of it is the place that is named.
            self.out.push_str(MASK_STRING);
            self.at += length;
            return;
        }
        let nested = nested.filter(|nested| nested != value);
        let (strictness, limit) = (self.scope.strictness, self.scope.limits.value);
        let kept = match &nested {
            Some(nested) => redactor.kept(nested, limit, strictness),
            None => redactor.kept(value, limit, strictness),
        };
        match kept.or(nested) {
            Some(kept) => {
                write_json_string(&mut self.out, &kept);
                self.at += length;
            }
            None => self.copy(length),
        }
    }

    /// The string that begins here, with its quotes.
    fn string_token(&self) -> Option<&'a str> {
        let rest = self.text.get(self.at..)?;
        let bytes = rest.as_bytes();
        let mut at = 1;
        loop {
            let special = memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
            at += special;
            if bytes.get(at) == Some(&b'"') {
                return rest.get(..=at);
            }
            at += 2;
        }
    }
}

/// What a string token means; `None` when it is malformed. A lone surrogate is malformed for the
/// decoder, yet common: it is replaced, so that the rest is still searched.
fn decode(token: &str) -> Option<Cow<'_, str>> {
    let inner = token.get(1..token.len().checked_sub(1)?)?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    let mut high: Option<u16> = None;
    while let Some((before, after)) = rest.split_once('\\') {
        if !before.is_empty() && high.take().is_some() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        text.push_str(before);
        let kind = after.chars().next()?;
        rest = after.get(kind.len_utf8()..)?;
        let simple = match kind {
            '"' | '\\' | '/' => Some(kind),
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'u' => None,
            _ => return None,
        };
        if let Some(simple) = simple {
            if high.take().is_some() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            text.push(simple);
            continue;
        }
        let unit = u16::from_str_radix(rest.get(..4)?, 16).ok()?;
        rest = rest.get(4..)?;
        match (high.take(), unit) {
            (None, 0xd800..=0xdbff) => high = Some(unit),
            (first, unit) => {
                let pair = [first.unwrap_or(unit), unit];
                let units = if first.is_some() { pair.as_slice() } else { &[unit] };
                text.push_str(&String::from_utf16_lossy(units));
            }
        }
    }
    if high.is_some() {
        text.push(char::REPLACEMENT_CHARACTER);
    }
    text.push_str(rest);
    Some(Cow::Owned(text))
}

fn write_json_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Length of the number at the beginning of `bytes`, by the grammar of RFC 8259.
fn number_length(bytes: &[u8]) -> Option<usize> {
    let digits = |from: usize| {
        let rest = bytes.get(from..).unwrap_or_default();
        rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len())
    };
    let mut at = usize::from(bytes.first() == Some(&b'-'));
    let whole = digits(at);
    if whole == 0 || (whole > 1 && bytes.get(at) == Some(&b'0')) {
        return None;
    }
    at += whole;
    if bytes.get(at) == Some(&b'.') {
        let fraction = digits(at + 1);
        if fraction == 0 {
            return None;
        }
        at += 1 + fraction;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
        let exponent = digits(at);
        if exponent == 0 {
            return None;
        }
        at += exponent;
    }
    Some(at)
}
