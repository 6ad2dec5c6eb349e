//! [`ConfigError`]: what is wrong with a configuration, where, and what to do.

use std::fmt;
use std::path::Path;
use std::sync::LazyLock;

use serde_yaml::Location;

use super::scalar::{Node, from_yaml};
use super::validate::REDACT;
use crate::model::nearest;
use crate::redact::{Redactor, Secrets};

/// Characters of a line that are shown.
const LINE: usize = 160;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1; 0 when it has no place in the text.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// What is wrong and what to do.
    pub message: String,
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, or what stands for it.
    pub file: String,
    /// What is wrong, in the order of the text; at least one.
    pub problems: Vec<Problem>,
    /// The lines that problems point at.
    lines: Vec<(u64, String)>,
}

impl ConfigError {
    pub(super) fn new(file: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        let lines = text
            .lines()
            .zip(1_u64..)
            .filter(|(_, number)| problems.iter().any(|problem| problem.line == *number))
            .map(|(line, number)| (number, line.to_owned()))
            .collect();
        Self { file: file.to_owned(), problems, lines }
    }

    pub(super) fn plain(file: &str, message: impl Into<String>) -> Self {
        let problem = Problem { line: 0, column: 0, message: message.into() };
        Self { file: file.to_owned(), problems: vec![problem], lines: Vec::new() }
    }

    pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        let file = path.display().to_string();
        let message = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "there is no such file; write one (README.md has an example), or leave out --config to start with the defaults".to_owned()
            }
            std::io::ErrorKind::PermissionDenied => {
                "permission denied; make the file readable for this user".to_owned()
            }
            _ => format!("could not read the file: {error}"),
        };
        Self::plain(&file, message)
    }

    /// From what the YAML reader says; its message is put into our words where it names keys.
    pub(super) fn from_yaml(file: &str, text: &str, error: &serde_yaml::Error) -> Self {
        let bare = error.without_snippet();
        let (line, column) = position(bare.location().as_ref());
        let message = yaml_message(bare, text, line, column);
        Self::new(file, text, vec![Problem { line, column, message }])
    }
}

const MAPPING: &str = "a mapping (KEY: VALUE lines)";
const TOO_MUCH: &str =
    "the file is larger, nested deeper or has more aliases than is read; make it simpler";
const LIST: &str = "a list, such as [\"x\"]";

fn yaml_message(error: &serde_yaml::Error, text: &str, line: u64, column: u64) -> String {
    use serde_yaml::Error as Yaml;
    match error {
        Yaml::SerdeUnknownField { field, expected, .. } => unknown_key(field, expected),
        Yaml::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{key}` stands twice; remove one of the two")
        }
        Yaml::DuplicateMappingKey { key: None, .. } => "a key stands twice".to_owned(),
        Yaml::SerdeMissingField { field, .. } => format!("the key `{field}` is missing"),
        Yaml::SerdeInvalidType { unexpected, expected, .. } => {
            format!("expected {}, found {}", expected_kind(expected), unexpected_kind(unexpected))
        }
        Yaml::Unexpected { expected, .. } => {
            let expected = expected_kind(expected);
            match found_at(text, line, column) {
                Some(found) => format!("expected {expected}, found {found}"),
                None => format!("expected {expected}"),
            }
        }
        Yaml::MultipleDocuments { .. } => {
            "the file holds more than one document; keep one, without a second `---`".to_owned()
        }
        Yaml::Budget { .. }
        | Yaml::AliasReplayLimitExceeded { .. }
        | Yaml::AliasExpansionLimitExceeded { .. }
        | Yaml::AliasReplayStackDepthExceeded { .. } => TOO_MUCH.to_owned(),
        Yaml::AliasError { error, .. } => yaml_message(error, text, line, column),
        Yaml::Eof { .. } => "the file ends too early".to_owned(),
        Yaml::Message { msg, .. } => msg.clone(),
        other => without_place(&one_line(&other.render_with_options(bare_rendering()))),
    }
}

/// What the reader expects, in words.
fn expected_kind(expected: &str) -> &str {
    let any = |words: &[&str]| words.iter().any(|word| expected.contains(word));
    if any(&["mapping", "map", "struct "]) {
        MAPPING
    } else if any(&["sequence", "list"]) {
        LIST
    } else if any(&["scalar", "string"]) {
        "a single value"
    } else {
        expected
    }
}

/// What serde found, without the value: it may be a secret.
fn unexpected_kind(unexpected: &str) -> &'static str {
    match unexpected.split([' ', '`']).next().unwrap_or_default() {
        "string" | "character" => "a text",
        "integer" | "floating" => "a number",
        "boolean" => "true or false",
        "sequence" => "a list",
        "map" => "a mapping",
        "unit" | "Option" | "null" => "nothing",
        _ => "something else",
    }
}

/// What stands at a place of the text.
fn found_at(text: &str, line: u64, column: u64) -> Option<&'static str> {
    let line = text.lines().nth(usize::try_from(line.checked_sub(1)?).ok()?)?;
    let skipped = usize::try_from(column.checked_sub(1)?).ok()?;
    let rest: String = line.chars().skip(skipped).collect();
    let word = rest.split([',', '}', ']', '#']).next().unwrap_or_default().trim();
    Some(match rest.chars().next()? {
        '[' => "a list",
        '-' if rest == "-" || rest.starts_with("- ") => "a list",
        '{' => "a mapping",
        _ if word.ends_with(':') || word.contains(": ") => "a mapping",
        _ => from_yaml::<Node>(word).map_or("a text", |node| node.kind()),
    })
}

/// A message of the reader without the place at its end, which stands before it already.
fn without_place(message: &str) -> String {
    if message.contains("recursion limit") {
        return TOO_MUCH.to_owned();
    }
    match message.rsplit_once(" at line ") {
        Some((bare, place))
            if place.bytes().all(|b| b.is_ascii_digit() || b", column".contains(&b)) =>
        {
            bare.to_owned()
        }
        _ => message.to_owned(),
    }
}

fn bare_rendering() -> serde_yaml::RenderOptions<'static> {
    let mut options = serde_yaml::RenderOptions::default();
    options.snippets = serde_yaml::SnippetMode::Off;
    options
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

pub(super) fn position(location: Option<&Location>) -> (u64, u64) {
    location.map_or((0, 0), |at| (at.line(), at.column()))
}

/// The message for a key that is not known, with the nearest that is.
pub(super) fn unknown_key(key: &str, known: &[&str]) -> String {
    let like = nearest(key, known.iter().copied(), 1);
    let key: String = key.chars().take(64).collect();
    match like.first() {
        Some(name) => format!("unknown key `{key}`; did you mean `{name}`?"),
        None => format!("unknown key `{key}`; keys here are {}", known.join(", ")),
    }
}

impl std::error::Error for ConfigError {}

/// A text of a configuration without what is, by its look or its name, a secret: what is written to a
/// terminal goes to a journal as well.
pub(super) fn without_secrets(text: &str) -> String {
    static REDACTOR: LazyLock<Redactor> =
        LazyLock::new(|| Redactor::new(&REDACT.map(str::to_owned), &Secrets::default()));
    REDACTOR.text(text, usize::MAX)
}

/// Where in `shown` that is, or what stands for it, which is at `column` of `line`.
fn column_in(shown: &str, line: &str, column: usize) -> usize {
    let alike = line.chars().zip(shown.chars()).take_while(|(one, other)| one == other).count();
    let after = line.chars().count().saturating_sub(column);
    let same_end = || line.chars().rev().zip(shown.chars().rev()).take(after).all(|(a, b)| a == b);
    if column > alike && same_end() {
        return shown.chars().count().saturating_sub(after);
    }
    column.min(alike)
}

/// A [`ConfigError`] with the lines it points at, for the terminal of whoever wrote them: a line
/// may hold a secret that nothing gives away.
#[derive(Debug, Clone, Copy)]
pub struct WithSource<'a>(&'a ConfigError);

impl ConfigError {
    /// The same with the lines that it points at. Not for logs and answers.
    #[must_use]
    pub fn with_source(&self) -> WithSource<'_> {
        WithSource(self)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, source: bool) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            if problem.line == 0 {
                write!(f, "{}: {}", self.file, problem.message)?;
                continue;
            }
            write!(f, "{}:{}:{}: {}", self.file, problem.line, problem.column, problem.message)?;
            let line = self.lines.iter().find(|(number, _)| source && *number == problem.line);
            if let Some((number, line)) = line {
                let column = usize::try_from(problem.column).unwrap_or(1).saturating_sub(1);
                let shown = without_secrets(line);
                let column = column_in(&shown, line, column);
                let line: String = shown.chars().take(LINE).collect();
                // Tabs stay tabs, so that the caret stands under its character.
                let indent: String =
                    line.chars().take(column).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                let margin = " ".repeat(number.to_string().len());
                write!(f, "\n  {number} | {line}\n  {margin} | {indent}^")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

impl fmt::Display for WithSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f, true)
    }
}
