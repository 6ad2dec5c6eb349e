//! [`ParamHeaders`]: arguments of a call that are repeated in `Mcp-Param-…` headers.
//!
//! Changes when the specification's rules for `x-mcp-header` do. Source: specification 2026-07-28,
//! basic/transports/streamable-http ("Custom Headers from Tool Parameters", "Value Encoding",
//! "Server Validation") and server/tools (`x-mcp-header`).

use std::borrow::Cow;

use http::{HeaderName, HeaderValue};
use memchr::memmem;
use serde_json::value::RawValue;

use super::decimal::{plain, same_number};
use super::names::{decode_header, encode_header};
use super::object::{BorrowedStr, RawObject};

/// The annotation of a property whose value is repeated in a header.
const ANNOTATION: &str = "x-mcp-header";
/// What all these headers begin with.
const PREFIX: &str = "mcp-param-";
/// Schemas that nest deeper around an annotation are refused.
const DEPTH: usize = 64;
/// A tool with more annotations is refused: HTTP servers take a hundred headers or so.
const MOST: usize = 64;

/// Why an annotation makes a tool's definition invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the property `{property}` has {ANNOTATION} `{annotation}`: {rule}")]
pub struct ParamHeaderError {
    /// The place in the schema: the names of properties with dots between, where there is another
    /// way to it with the schema's keywords.
    pub property: String,
    /// What the annotation says, shortened, control characters escaped; empty where that is unknown.
    pub annotation: String,
    /// The rule that it breaks.
    pub rule: ParamHeaderRule,
}

/// What an annotation must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParamHeaderRule {
    /// It is not a string.
    #[error("it must be a string")]
    Text,
    /// It is empty.
    #[error("it must not be empty")]
    Empty,
    /// It has a character that a header's name must not have (RFC 9110, `1*tchar`).
    #[error("it must have only characters that a header's name may have")]
    Token,
    /// Another property has it, or has it in other case.
    #[error("it must differ from all others, whatever the case")]
    Unique,
    /// The property is not a string, an integer or a boolean.
    #[error("the property's type must be string, integer or boolean")]
    Primitive,
    /// It stands in a schema that a chain of `properties` does not lead to.
    #[error("a chain of `properties` alone must lead to it")]
    Reachable,
    /// There are more than a request could carry.
    #[error("there must not be more than {MOST}")]
    Few,
    /// The schema around it nests too deeply.
    #[error("the schema around it must not nest deeper than {DEPTH}")]
    Shallow,
    /// The schema around it has a key twice or is no schema.
    #[error("the schema around it must be readable, without a key twice")]
    Readable,
}

/// How often a header is in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderPresence<'a> {
    /// Not at all.
    Absent,
    /// Once, with this value.
    Once(&'a [u8]),
    /// More than once, which is never right.
    Repeated,
}

impl<'a> HeaderPresence<'a> {
    /// From the values that a request has for a header.
    pub fn of(values: impl IntoIterator<Item = &'a HeaderValue>) -> Self {
        let mut values = values.into_iter();
        match (values.next(), values.next()) {
            (None, _) => Self::Absent,
            (Some(value), None) => Self::Once(value.as_bytes()),
            (Some(_), Some(_)) => Self::Repeated,
        }
    }
}

/// The headers that a call of one tool carries. Most tools have none, which costs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParamHeaders {
    /// The properties of the arguments that have an annotation or lead to one.
    properties: Vec<Property>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Property {
    name: Box<str>,
    /// The names that lead here, for messages.
    shown: Box<str>,
    header: Option<HeaderName>,
    properties: Vec<Self>,
}

impl ParamHeaders {
    /// Finds every annotation in the `inputSchema` of a tool's definition. A definition without the
    /// word is searched once and not parsed; a key that is spelled with escapes is not found.
    ///
    /// # Errors
    /// [`ParamHeaderError`] for the first annotation that breaks a rule. A client must not offer
    /// such a tool.
    pub fn of(definition: &str) -> Result<Self, ParamHeaderError> {
        if !mentions(definition) {
            return Ok(Self::default());
        }
        let schema = RawObject::parse(definition).ok().map(|tool| tool.get("inputSchema"));
        let mut walk = Walk::default();
        let properties = match schema {
            Some(Some(schema)) if mentions(schema.get()) => walk.schema(schema, DEPTH)?,
            Some(_) => Vec::new(),
            None => return Err(walk.error("", ParamHeaderRule::Readable)),
        };
        Ok(Self { properties })
    }

    /// Whether no header belongs to a call.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.properties.is_empty()
    }

    /// The headers that a call with `arguments` must carry, in the order of the schema. An argument
    /// that is `null` or absent has none; neither has one that no header can carry (an object, an
    /// array, text that is not Unicode), which the server will refuse.
    #[must_use]
    pub fn render(&self, arguments: Option<&str>) -> Vec<(HeaderName, HeaderValue)> {
        let render = |place: Place<'_, '_>| {
            let text = match Argument::of(place.value.ok()??) {
                Argument::Text(text) if text.is_empty() => String::new(),
                Argument::Text(text) => encode_header(&text).into_owned(),
                Argument::Number(number) => plain(number),
                Argument::Boolean(text) => text.to_owned(),
                Argument::Null | Argument::Other(_) => return None,
            };
            Some((place.header.clone(), HeaderValue::try_from(text).ok()?))
        };
        self.places(arguments).into_iter().filter_map(render).collect()
    }

    /// Checks that the headers of a call say what its `arguments` say: `header` looks one up by
    /// name. Headers that no property has an annotation for are the caller's to ignore.
    ///
    /// Text is compared after decoding, numbers by value whatever their length, and `null` is as
    /// good as absent. A header without an argument is an error too: somebody on the way may have
    /// believed it. So is an argument that no header can carry.
    ///
    /// # Errors
    /// What does not agree, for people; names are in it, values are not.
    pub fn check<'h>(
        &self,
        arguments: Option<&str>,
        header: impl Fn(&HeaderName) -> HeaderPresence<'h>,
    ) -> Result<(), String> {
        for place in self.places(arguments) {
            let agreed = place.value.map_err(str::to_owned).and_then(|value| {
                let argument = value.map_or(Argument::Null, Argument::of);
                agree(&argument, header(place.header))
            });
            if let Err(problem) = agreed {
                return Err(format!(
                    "header {} and argument `{}`: {problem}",
                    place.header, place.shown
                ));
            }
        }
        Ok(())
    }

    /// Every property that has a header, with what the arguments have there.
    fn places<'p, 'a>(&'p self, arguments: Option<&'a str>) -> Vec<Place<'p, 'a>> {
        let mut places = Vec::new();
        if !self.is_empty() {
            push_places(&mut places, &self.properties, &read(arguments));
        }
        places
    }
}

/// One property that has a header.
struct Place<'p, 'a> {
    shown: &'p str,
    header: &'p HeaderName,
    /// Its value; an error when the object around it cannot be read.
    value: Result<Option<&'a RawValue>, &'static str>,
}

fn push_places<'p, 'a>(
    places: &mut Vec<Place<'p, 'a>>,
    properties: &'p [Property],
    arguments: &Result<Option<RawObject<'a>>, &'static str>,
) {
    for property in properties {
        let value = match arguments {
            Ok(object) => Ok(object.as_ref().and_then(|object| object.get(&property.name))),
            Err(problem) => Err(*problem),
        };
        if let Some(header) = &property.header {
            places.push(Place { shown: &property.shown, header, value });
        }
        if !property.properties.is_empty() {
            let object = value.and_then(|value| read(value.map(RawValue::get)));
            push_places(places, &property.properties, &object);
        }
    }
}

/// An object with arguments: `None` when there is none. A value that is no object has nothing to
/// repeat, and is for others to refuse.
fn read(object: Option<&str>) -> Result<Option<RawObject<'_>>, &'static str> {
    match object {
        Some(text) if text.trim_ascii_start().starts_with('{') => RawObject::parse(text)
            .map(Some)
            .ok()
            .ok_or("the object around it cannot be read or has a key twice"),
        _ => Ok(None),
    }
}

/// An argument as a header sees it.
enum Argument<'a> {
    Null,
    Text(Cow<'a, str>),
    Number(&'a str),
    Boolean(&'a str),
    /// What no header can carry, in words.
    Other(&'static str),
}

impl<'a> Argument<'a> {
    fn of(value: &'a RawValue) -> Self {
        let text = value.get();
        match text.as_bytes().first() {
            Some(b'n') => Self::Null,
            Some(b't' | b'f') => Self::Boolean(text),
            Some(b'"') => serde_json::from_str::<BorrowedStr<'a>>(text)
                .map_or(Self::Other("text that is not Unicode"), |text| Self::Text(text.0)),
            Some(b'{') => Self::Other("an object"),
            Some(b'[') => Self::Other("an array"),
            _ => Self::Number(text),
        }
    }
}

fn agree(argument: &Argument<'_>, header: HeaderPresence<'_>) -> Result<(), String> {
    let value = match (argument, header) {
        (_, HeaderPresence::Repeated) => return Err("the header stands twice".to_owned()),
        (Argument::Null, HeaderPresence::Absent) => return Ok(()),
        (Argument::Null, HeaderPresence::Once(_)) => {
            return Err("the header is there and the argument is not".to_owned());
        }
        (Argument::Other(what), _) => {
            return Err(format!("the argument is {what}, which no header can carry"));
        }
        (_, HeaderPresence::Absent) => {
            return Err("the argument is there and the header is not".to_owned());
        }
        (_, HeaderPresence::Once(value)) => value,
    };
    let plain = value.iter().all(|b| matches!(b, b'\t' | 0x20..0x7f));
    let Some(value) = std::str::from_utf8(value).ok().filter(|_| plain) else {
        return Err("the header has characters that need base64".to_owned());
    };
    let value = decode_header(value).map_err(|error| error.to_string())?;
    let same = match argument {
        Argument::Text(text) => *text == value,
        Argument::Number(number) => same_number(number, &value),
        Argument::Boolean(text) => *text == value,
        Argument::Null | Argument::Other(_) => false,
    };
    if same { Ok(()) } else { Err("they differ".to_owned()) }
}

fn mentions(json: &str) -> bool {
    memmem::find(json.as_bytes(), ANNOTATION.as_bytes()).is_some()
}

/// How a value in a schema is to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// A schema, or an array of them.
    Schema,
    /// Names of the author's choice, each with a schema.
    Names,
    /// A value as it might be in an argument: a key in there says nothing.
    Data,
}

impl Reading {
    /// By the keyword (JSON Schema 2020-12 and draft 7). An unknown one may hold schemas.
    fn of(keyword: &str) -> Self {
        match keyword {
            "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas"
            | "dependencies" | "dependentRequired" => Self::Names,
            "default" | "const" | "enum" | "examples" => Self::Data,
            _ => Self::Schema,
        }
    }
}

/// The search for annotations in one schema. It enters only values that have the word in them.
#[derive(Default)]
struct Walk {
    path: Vec<String>,
    found: Vec<HeaderName>,
}

impl Walk {
    fn error(&self, annotation: &str, rule: ParamHeaderRule) -> ParamHeaderError {
        ParamHeaderError {
            property: short(&self.path.join(".")),
            annotation: short(annotation),
            rule,
        }
    }

    fn object<'a>(&self, value: &'a RawValue) -> Result<RawObject<'a>, ParamHeaderError> {
        RawObject::parse(value.get()).ok().ok_or_else(|| self.error("", ParamHeaderRule::Readable))
    }

    /// A schema that a chain of `properties` leads to: the properties below it that matter.
    fn schema(
        &mut self,
        schema: &RawValue,
        depth: usize,
    ) -> Result<Vec<Property>, ParamHeaderError> {
        let mut properties = Vec::new();
        for (keyword, value) in self.object(schema)?.iter() {
            if keyword == "properties" && value.get().starts_with('{') {
                if !mentions(value.get()) {
                    continue;
                }
                for (name, schema) in self.object(value)?.iter() {
                    if !mentions(schema.get()) || !schema.get().starts_with(['{', '[']) {
                        continue;
                    }
                    self.path.push(name.to_owned());
                    properties.extend(self.property(name, schema, depth)?);
                    self.path.pop();
                }
            } else if keyword == ANNOTATION {
                // The root is no property; one of a property has been taken by `property`.
                if self.path.is_empty() {
                    return Err(self.error(&shown(value), ParamHeaderRule::Reachable));
                }
            } else if mentions(value.get()) {
                self.elsewhere(keyword, value, Reading::of(keyword), depth)?;
            }
        }
        Ok(properties)
    }

    fn property(
        &mut self,
        name: &str,
        schema: &RawValue,
        depth: usize,
    ) -> Result<Option<Property>, ParamHeaderError> {
        let depth = depth.checked_sub(1).ok_or_else(|| self.error("", ParamHeaderRule::Shallow))?;
        let object = self.object(schema)?;
        let header = match object.get(ANNOTATION) {
            Some(annotation) => Some(self.header(annotation, &object)?),
            None => None,
        };
        let properties = self.schema(schema, depth)?;
        let matters = header.is_some() || !properties.is_empty();
        Ok(matters.then(|| Property {
            name: name.into(),
            shown: short(&self.path.join(".")).into(),
            header,
            properties,
        }))
    }

    /// The header of a property, by all rules but the place.
    fn header(
        &mut self,
        annotation: &RawValue,
        schema: &RawObject<'_>,
    ) -> Result<HeaderName, ParamHeaderError> {
        let Ok(BorrowedStr(name)) = serde_json::from_str(annotation.get()) else {
            return Err(self.error(annotation.get(), ParamHeaderRule::Text));
        };
        if name.is_empty() {
            return Err(self.error(&name, ParamHeaderRule::Empty));
        }
        if !name.bytes().all(is_tchar) {
            return Err(self.error(&name, ParamHeaderRule::Token));
        }
        // The name type keeps its text in lower case, so equal is equal whatever the case.
        let header = HeaderName::try_from(format!("{PREFIX}{name}"))
            .ok()
            .ok_or_else(|| self.error(&name, ParamHeaderRule::Token))?;
        let kind = schema.get_str("type");
        if !matches!(kind.as_deref(), Some("string" | "integer" | "boolean")) {
            return Err(self.error(&name, ParamHeaderRule::Primitive));
        }
        if self.found.contains(&header) {
            return Err(self.error(&name, ParamHeaderRule::Unique));
        }
        if self.found.len() >= MOST {
            return Err(self.error(&name, ParamHeaderRule::Few));
        }
        self.found.push(header.clone());
        Ok(header)
    }

    /// A value that no chain of `properties` leads to: an annotation in there is an error.
    fn elsewhere(
        &mut self,
        key: &str,
        value: &RawValue,
        reading: Reading,
        depth: usize,
    ) -> Result<(), ParamHeaderError> {
        if reading == Reading::Data {
            return Ok(());
        }
        self.path.push(key.to_owned());
        let depth = depth.checked_sub(1).ok_or_else(|| self.error("", ParamHeaderRule::Shallow))?;
        match value.get().as_bytes().first() {
            Some(b'{') => {
                for (key, value) in self.object(value)?.iter() {
                    let below = match reading {
                        Reading::Names => Reading::Schema,
                        Reading::Schema | Reading::Data if key == ANNOTATION => {
                            return Err(self.error(&shown(value), ParamHeaderRule::Reachable));
                        }
                        Reading::Schema | Reading::Data => Reading::of(key),
                    };
                    if mentions(value.get()) {
                        self.elsewhere(key, value, below, depth)?;
                    }
                }
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(value.get())
                    .ok()
                    .ok_or_else(|| self.error("", ParamHeaderRule::Readable))?;
                for (at, item) in items.into_iter().enumerate() {
                    if mentions(item.get()) {
                        self.elsewhere(&at.to_string(), item, Reading::Schema, depth)?;
                    }
                }
            }
            _ => {}
        }
        self.path.pop();
        Ok(())
    }
}

/// Text of others as a message has it: without control characters, and not long.
fn short(text: &str) -> String {
    text.escape_debug().take(80).collect()
}

/// An annotation's text, or its JSON when it is not text.
fn shown(annotation: &RawValue) -> String {
    serde_json::from_str(annotation.get()).unwrap_or_else(|_| annotation.get().to_owned())
}

/// Whether a header's name may have the character (RFC 9110, section 5.6.2).
const fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

#[cfg(test)]
mod tests;
