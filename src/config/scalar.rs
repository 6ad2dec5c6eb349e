//! Values of the configuration file: a scalar, where it stands, and what it must become.
//!
//! Any string may refer to variables, also where the type is a number, a switch or a duration, so
//! every scalar is kept as written until the references are replaced.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Location, Spanned};

use crate::model::{nearest, parse_duration, parse_size};

/// Anything that YAML or JSON can say.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Node>>),
    Map(BTreeMap<String, Spanned<Node>>),
}

impl Node {
    /// Whether both mean the same; unlike `==`, also for NaN.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Float(one), Self::Float(other)) => one.total_cmp(other).is_eq(),
            _ => self == other,
        }
    }

    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                Node::deserialize(deserializer)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Integer(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Integer(value.into()))
            }

            fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
                Ok(Node::Integer(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, Spanned<Node>>()? {
                    if members.insert(key.clone(), value).is_some() {
                        return Err(de::Error::custom(format_args!(
                            "the key `{key}` stands twice"
                        )));
                    }
                }
                Ok(Node::Map(members))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// What a scalar can become.
pub(super) trait FromScalar: Sized {
    /// What is expected, for messages and the schema.
    const EXPECTED: &'static str;
    /// Whether the letters count and not the number: `1.10` stays `1.10`.
    const LITERAL: bool = false;

    /// Reads a scalar in which references are replaced already.
    fn read(node: &Node) -> Result<Self, String>;

    fn schema() -> Schema;
}

/// A value of the file that is to become a `T`.
#[derive(Debug, Clone)]
pub(super) struct Field<T> {
    pub(super) node: Node,
    /// Where it is used, for messages.
    pub(super) at: Location,
    /// Where its letters stand; elsewhere when `at` is an alias.
    pub(super) defined: Location,
    pub(super) kind: PhantomData<T>,
}

impl<'de, T> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::<Node>::deserialize(deserializer).map(Self::from)
    }
}

impl<T> From<Spanned<Node>> for Field<T> {
    fn from(spanned: Spanned<Node>) -> Self {
        Self {
            node: spanned.value,
            at: spanned.referenced,
            defined: spanned.defined,
            kind: PhantomData,
        }
    }
}

/// A key of the file that is a name, and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) at: Location,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { text: spanned.value, at: spanned.referenced })
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

/// Reads YAML, and so JSON.
pub(super) fn from_yaml<T: de::DeserializeOwned>(text: &str) -> Result<T, serde_yaml::Error> {
    let mut options = serde_yaml::Options::default();
    // `.inf` may be meant as a text; where a number is meant it is refused in our words.
    options.non_finite_float_policy = serde_yaml::NonFiniteFloatPolicy::PassThrough;
    serde_yaml::from_str_with_options(text, options)
}

impl<T: FromScalar> JsonSchema for Field<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::EXPECTED.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        T::schema()
    }
}

fn wrong<T: FromScalar>(node: &Node) -> String {
    format!("expected {}, found {}", T::EXPECTED, node.kind())
}

impl FromScalar for bool {
    const EXPECTED: &'static str = "true or false";

    fn read(node: &Node) -> Result<Self, String> {
        match node {
            Node::Bool(value) => Ok(*value),
            Node::Text(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Ok(true),
                "false" | "no" | "off" => Ok(false),
                _ => Err(format!("expected true or false, found `{text}`")),
            },
            _ => Err(wrong::<Self>(node)),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "anyOf": [
            { "type": "boolean" },
            { "type": "string", "pattern": "^([Tt]rue|TRUE|[Ff]alse|FALSE|[Yy]es|YES|[Nn]o|NO|[Oo]n|ON|[Oo]ff|OFF)$|\\$\\{" }
        ] })
    }
}

impl FromScalar for u32 {
    const EXPECTED: &'static str = "a whole number";

    fn read(node: &Node) -> Result<Self, String> {
        let out_of_range =
            |text: String| format!("expected a whole number from 0 to {}, found {text}", Self::MAX);
        match node {
            Node::Integer(value) => {
                Self::try_from(*value).ok().ok_or_else(|| out_of_range(value.to_string()))
            }
            Node::Float(value) => Err(out_of_range(value.to_string())),
            Node::Text(text) => {
                text.trim().parse().ok().ok_or_else(|| out_of_range(format!("`{text}`")))
            }
            _ => Err(wrong::<Self>(node)),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32 },
            { "type": "string", "pattern": "^ *\\+?[0-9]+ *$|\\$\\{" }
        ] })
    }
}

impl FromScalar for f64 {
    const EXPECTED: &'static str = "a number";

    fn read(node: &Node) -> Result<Self, String> {
        match node {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a setting beyond 2^53 is absurd anyway"
            )]
            Node::Integer(value) => Ok(*value as Self),
            Node::Float(value) => Ok(*value),
            Node::Text(text) => {
                text.trim().parse().ok().ok_or_else(|| format!("expected a number, found `{text}`"))
            }
            _ => Err(wrong::<Self>(node)),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "anyOf": [
            { "type": "number", "minimum": 0 },
            { "type": "string", "pattern": "^ *[0-9.]+([eE][+-]?[0-9]+)? *$|\\$\\{" }
        ] })
    }
}

impl FromScalar for String {
    const EXPECTED: &'static str = "a text";
    const LITERAL: bool = true;

    fn read(node: &Node) -> Result<Self, String> {
        match node {
            Node::Text(text) => Ok(text.clone()),
            // `NODE_ENV: 1` and `version: 2.0` mean the text.
            Node::Integer(value) => Ok(value.to_string()),
            Node::Float(value) => Ok(value.to_string()),
            Node::Bool(value) => Ok(value.to_string()),
            Node::Null | Node::List(_) | Node::Map(_) => Err(wrong::<Self>(node)),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

impl FromScalar for Duration {
    const EXPECTED: &'static str = "a duration (seconds, or a text such as 250ms, 30s, 5m, 7d)";

    fn read(node: &Node) -> Result<Self, String> {
        let text = match node {
            Node::Text(text) => text.clone(),
            Node::Integer(value) => value.to_string(),
            Node::Float(value) => value.to_string(),
            _ => return Err(wrong::<Self>(node)),
        };
        parse_duration(&text).map_err(|error| error.to_string())
    }

    fn schema() -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "number", "minimum": 0 },
                { "type": "string", "pattern": "^ *[0-9.]+ *(ms|s|sec|m|min|h|d|w)? *$|\\$\\{", "examples": ["250ms", "30s", "5m", "7d", "${TIMEOUT:-30}"] }
            ]
        })
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) u64);

impl FromScalar for Bytes {
    const EXPECTED: &'static str = "a size (bytes, or a text such as 64KiB, 4MiB)";

    fn read(node: &Node) -> Result<Self, String> {
        let text = match node {
            Node::Text(text) => text.clone(),
            Node::Integer(value) => value.to_string(),
            _ => return Err(wrong::<Self>(node)),
        };
        parse_size(&text).map(Self).map_err(|error| error.to_string())
    }

    fn schema() -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^ *[0-9.]+ *([kKmMgGtT]([iI]?[bB])?|[bB])? *$|\\$\\{", "examples": ["64KiB", "4MiB", "10GiB"] }
            ]
        })
    }
}

/// A part of a whole, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Part(pub(super) f64);

impl FromScalar for Part {
    const EXPECTED: &'static str =
        "a part of all (a text such as 99.9%, or a number such as 0.999)";

    fn read(node: &Node) -> Result<Self, String> {
        let text = match node {
            Node::Text(text) => text.clone(),
            Node::Integer(value) => value.to_string(),
            Node::Float(value) => value.to_string(),
            _ => return Err(wrong::<Self>(node)),
        };
        let number =
            |text: &str| text.trim().parse().ok().filter(|number: &f64| number.is_finite());
        let part = match text.trim().strip_suffix('%') {
            // Not divided: 99.9 / 100 is not the number nearest to 0.999.
            Some(percent) => {
                number(percent).and_then(|_| format!("{}e-2", percent.trim()).parse().ok())
            }
            None => match number(&text) {
                Some(number) if number > 1.0 => {
                    return Err(format!(
                        "`{text}` is more than all; write `{text}%` for a percentage"
                    ));
                }
                number => number,
            },
        };
        part.map(Self).ok_or_else(|| format!("`{text}` is not {}", Self::EXPECTED))
    }

    fn schema() -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1 },
                { "type": "string", "pattern": "^ *[0-9.]+ *%? *$|\\$\\{", "examples": ["99%", "99.9%"] }
            ]
        })
    }
}

/// Reads one of a closed set of words.
pub(super) fn choice<T: Copy>(node: &Node, choices: &[(&str, T)]) -> Result<T, String> {
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let one_of = names.join(", ");
    let Node::Text(text) = node else {
        // YAML reads `off` and `no` as switches in some readers; here they may come as either.
        let word = match node {
            Node::Bool(false) => choices.iter().find(|(name, _)| matches!(*name, "off" | "none")),
            _ => None,
        };
        return word
            .map(|(_, value)| *value)
            .ok_or_else(|| format!("expected one of {one_of}, found {}", node.kind()));
    };
    let found = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(text.trim()));
    found.map(|(_, value)| *value).ok_or_else(|| {
        match nearest(text, names.into_iter(), 1).first() {
            Some(name) => format!("`{text}` is not one of {one_of}; did you mean `{name}`?"),
            None => format!("`{text}` is not one of {one_of}"),
        }
    })
}

/// Makes a closed set of words a scalar.
macro_rules! choices {
    ($($type:ty { $($name:literal => $value:expr),+ $(,)? })+) => { $(
        impl FromScalar for $type {
            const EXPECTED: &'static str = concat!("one of" $(, " ", $name)+);

            fn read(node: &Node) -> Result<Self, String> {
                choice(node, &[$(($name, $value)),+])
            }

            fn schema() -> Schema {
                json_schema!({ "anyOf": [
                    { "enum": [$($name),+] },
                    { "type": "string", "pattern": "\\$\\{" }
                ] })
            }
        }
    )+ };
}

choices! {
    crate::model::TransportKind {
        "http" => Self::Http, "sse" => Self::Sse, "stdio" => Self::Stdio, "jsonrpc" => Self::Jsonrpc,
        "streamable-http" => Self::Http, "streamable_http" => Self::Http, "streamableHttp" => Self::Http,
    }
    crate::model::RetryMode { "safe" => Self::Safe, "seed" => Self::Seed, "off" => Self::Off }
    crate::model::RetryJitter { "equal" => Self::Equal, "full" => Self::Full }
    crate::model::RetryTimeouts { "never" => Self::Never, "replay_safe" => Self::ReplaySafe }
    crate::model::BreakerScope { "server" => Self::Server, "tool" => Self::Tool }
    crate::model::BreakerProbe { "call" => Self::Call, "active" => Self::Active }
    crate::model::SessionMode { "shared" => Self::Shared, "isolated" => Self::Isolated }
    crate::model::OnChange { "accept" => Self::Accept, "warn" => Self::Warn, "hold" => Self::Hold }
    crate::model::NamingMode { "prefix" => Self::Prefix, "bare" => Self::Bare }
    crate::model::Replay { "safe" => Self::Safe, "unsafe" => Self::Unsafe }
    crate::model::ArgumentsLevel {
        "none" => Self::None, "redacted" => Self::Redacted, "full" => Self::Full, "raw" => Self::Raw,
    }
    crate::model::ResultsLevel {
        "none" => Self::None, "summary" => Self::Summary, "full" => Self::Full, "raw" => Self::Raw,
    }
    super::AuthMode { "auto" => Self::Auto, "keys" => Self::Keys, "none" => Self::None }
    super::IntentMode {
        "off" => Self::Off, "side_effects" => Self::SideEffects, "all" => Self::All,
    }
    super::Durability { "batched" => Self::Batched, "strict" => Self::Strict }
}
