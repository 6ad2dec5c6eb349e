//! References to environment variables inside texts. PURE.
//!
//! Expansion happens after parsing, so a value can never change the structure of a file, and it
//! happens once, so a value can never refer to another variable.

/// Why a text does not expand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// The variable has no value and the reference no default.
    #[error(
        "the environment variable `{name}` is not set; set it, or give a default: ${{{name}:-value}}"
    )]
    Unset {
        /// The variable.
        name: String,
    },
    /// The reference demands the variable with a message of its own (`${NAME:?message}`).
    #[error("the environment variable `{name}` is not set: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The message.
        message: String,
    },
    /// `${` without `}`.
    #[error("`${{` is not closed by `}}`; write `$$` for a dollar sign")]
    Unclosed,
    /// What stands between the braces is no reference.
    #[error(
        "`${{{text}}}` is not a reference; write ${{NAME}}, ${{NAME:-default}} or ${{NAME:?message}}, and `$$` for a dollar sign"
    )]
    Malformed {
        /// What stands there.
        text: String,
    },
}

/// Where variables come from.
pub trait Variables {
    /// The value of a variable, if it is set.
    fn get(&self, name: &str) -> Option<String>;
}

#[derive(Clone, Copy)]
enum Piece<'a> {
    Text(&'a str),
    Reference { name: &'a str, otherwise: Otherwise<'a> },
}

#[derive(Clone, Copy)]
enum Otherwise<'a> {
    Fail,
    Default(&'a str),
    Message(&'a str),
}

/// Replaces every reference: `${NAME}`, `${NAME:-default}` (also for an empty value),
/// `${NAME:?message}`, and the editors' `${env:NAME}`. `$$` is a dollar sign; a dollar sign before
/// anything else stands for itself. A default is text and ends at the first `}`.
///
/// # Errors
/// [`ExpandError`] names the variable or what is wrong with the reference.
pub fn expand(text: &str, variables: &dyn Variables) -> Result<String, ExpandError> {
    let mut out = String::with_capacity(text.len());
    for piece in pieces(text)? {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Reference { name, otherwise } => {
                let value = variables.get(name);
                match (value, otherwise) {
                    (Some(value), Otherwise::Fail) => out.push_str(&value),
                    (Some(value), _) if !value.is_empty() => out.push_str(&value),
                    (_, Otherwise::Default(default)) => out.push_str(default),
                    (_, Otherwise::Message(message)) => {
                        return Err(ExpandError::Required {
                            name: name.to_owned(),
                            message: message.to_owned(),
                        });
                    }
                    (None, Otherwise::Fail) => {
                        return Err(ExpandError::Unset { name: name.to_owned() });
                    }
                }
            }
        }
    }
    Ok(out)
}

/// Whether a text refers to a variable (or tries to).
#[must_use]
pub fn has_reference(text: &str) -> bool {
    match pieces(text) {
        Ok(pieces) => pieces.iter().any(|piece| matches!(piece, Piece::Reference { .. })),
        Err(_) => true,
    }
}

/// The variables a text refers to.
#[must_use]
pub fn references(text: &str) -> Vec<&str> {
    let pieces = pieces(text).unwrap_or_default();
    pieces
        .into_iter()
        .filter_map(|piece| match piece {
            Piece::Reference { name, .. } => Some(name),
            Piece::Text(_) => None,
        })
        .collect()
}

/// The variables a text refers to, each with its default.
pub(super) fn references_with_defaults(text: &str) -> Vec<(&str, Option<&str>)> {
    let reference = |piece| match piece {
        Piece::Reference { name, otherwise: Otherwise::Default(default) } => {
            Some((name, Some(default)))
        }
        Piece::Reference { name, .. } => Some((name, None)),
        Piece::Text(_) => None,
    };
    pieces(text).unwrap_or_default().into_iter().filter_map(reference).collect()
}

/// Whether a text holds something that may be a secret by itself: a default, or letters beside
/// references other than a leading `Bearer ` or `Basic `.
#[must_use]
pub fn has_literal_secret(text: &str) -> bool {
    let (_, rest) = split_scheme(text);
    let Ok(pieces) = pieces(rest) else { return true };
    pieces.iter().any(|piece| match piece {
        Piece::Text(text) => !text.trim().is_empty(),
        Piece::Reference { otherwise: Otherwise::Default(default), .. } => !default.is_empty(),
        Piece::Reference { .. } => false,
    })
}

/// A text with everything but its references, and a leading `Bearer ` or `Basic `, as `***`.
#[must_use]
pub fn masked(text: &str) -> String {
    const MASK: &str = "***";
    let (scheme, rest) = split_scheme(text);
    let Ok(pieces) = pieces(rest) else { return format!("{scheme}{MASK}") };
    let mut out = scheme.to_owned();
    let mut hidden = false;
    for piece in pieces {
        match piece {
            Piece::Text(text) if text.trim().is_empty() => out.push_str(text),
            // One mask for one run of letters, also around `$$`.
            Piece::Text(_) if hidden => {}
            Piece::Text(_) => {
                out.push_str(MASK);
                hidden = true;
            }
            Piece::Reference { name, otherwise } => {
                hidden = false;
                match otherwise {
                    Otherwise::Fail => out.push_str(&format!("${{{name}}}")),
                    Otherwise::Default("") => out.push_str(&format!("${{{name}:-}}")),
                    Otherwise::Default(_) => out.push_str(&format!("${{{name}:-{MASK}}}")),
                    Otherwise::Message(message) => {
                        out.push_str(&format!("${{{name}:?{message}}}"));
                    }
                }
            }
        }
    }
    out
}

/// The scheme of an Authorization header with the space behind it, and the rest.
pub(super) fn split_scheme(text: &str) -> (&str, &str) {
    ["bearer ".len(), "basic ".len()]
        .into_iter()
        .filter_map(|length| text.split_at_checked(length))
        .find(|(scheme, _)| ["bearer ", "basic "].contains(&scheme.to_ascii_lowercase().as_str()))
        .unwrap_or(("", text))
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, ExpandError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        pieces.push(Piece::Text(before));
        if let Some(after) = after.strip_prefix('$') {
            pieces.push(Piece::Text("$"));
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let (inside, after) = after.split_once('}').ok_or(ExpandError::Unclosed)?;
            pieces.push(reference(inside)?);
            rest = after;
        } else {
            pieces.push(Piece::Text("$"));
            rest = after;
        }
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

/// A text of a program that knows no `$$`: every dollar sign that begins no reference is doubled,
/// so that it is still there after expansion.
pub(super) fn with_plain_dollars(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let begins = after.starts_with('{') && after.contains('}');
        out.push_str(if begins { "$" } else { "$$" });
        rest = after;
    }
    out.push_str(rest);
    out
}

fn reference(inside: &str) -> Result<Piece<'_>, ExpandError> {
    let malformed = || ExpandError::Malformed { text: inside.to_owned() };
    let inside = inside.strip_prefix("env:").unwrap_or(inside);
    let (name, otherwise) = match inside.split_once(':') {
        None => (inside, Otherwise::Fail),
        Some((name, rest)) => match (rest.strip_prefix('-'), rest.strip_prefix('?')) {
            (Some(default), _) => (name, Otherwise::Default(default)),
            (None, Some(message)) => (name, Otherwise::Message(message)),
            (None, None) => return Err(malformed()),
        },
    };
    let mut letters = name.bytes();
    let named = letters.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && letters.all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if named { Ok(Piece::Reference { name, otherwise }) } else { Err(malformed()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl Variables for BTreeMap<&str, &str> {
        fn get(&self, name: &str) -> Option<String> {
            BTreeMap::get(self, name).map(|value| (*value).to_owned())
        }
    }

    fn with(text: &str) -> Result<String, ExpandError> {
        expand(text, &BTreeMap::from([("A", "1"), ("EMPTY", ""), ("EVIL", "${A} $$ \n- x: y")]))
    }

    #[test]
    fn every_form_is_replaced() {
        for (text, expected) in [
            ("plain", "plain"),
            ("${A}", "1"),
            ("x${A}y${A}", "x1y1"),
            ("${env:A}", "1"),
            ("${B:-two}", "two"),
            ("${EMPTY:-two}", "two"),
            ("${EMPTY}", ""),
            ("${A:-two}", "1"),
            ("${A:?needed}", "1"),
            ("${B:-http://h:1/x}", "http://h:1/x"),
            ("$$", "$"),
            ("$${A}", "${A}"),
            ("$A 5$", "$A 5$"),
            ("${EVIL}", "${A} $$ \n- x: y"),
        ] {
            assert_eq!(with(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_says_why() {
        assert_eq!(with("${B}"), Err(ExpandError::Unset { name: "B".into() }));
        assert_eq!(
            with("${B:?get one at x}").unwrap_err().to_string(),
            "the environment variable `B` is not set: get one at x"
        );
        assert_eq!(with("${A"), Err(ExpandError::Unclosed));
        for text in ["${}", "${1}", "${A B}", "${A:=x}", "${input:token}"] {
            assert!(matches!(with(text), Err(ExpandError::Malformed { .. })), "{text}");
        }
    }

    #[test]
    fn references_are_found() {
        assert_eq!(references("Bearer ${TOKEN} ${B:-x} $${C}"), ["TOKEN", "B"]);
        assert!(has_reference("${A}") && !has_reference("$${A}") && !has_reference("$A"));
    }

    #[test]
    fn only_references_are_shown() {
        for (text, shown) in [
            ("abc", "***"),
            ("Bearer abc", "Bearer ***"),
            ("Bearer ${T}", "Bearer ${T}"),
            ("basic ${T:-abc}", "basic ${T:-***}"),
            ("${A}:p$$w${B:-}", "${A}***${B:-}"),
            ("${A:?set it} ${env:B}", "${A:?set it} ${B}"),
            ("pa${ss", "***"),
        ] {
            assert_eq!(masked(text), shown);
            let secret = shown.contains("***");
            assert_eq!(has_literal_secret(text), secret, "{text}");
        }
        assert!(!has_literal_secret(""));
    }

    proptest! {
        #[test]
        fn a_text_without_dollars_is_itself(text in "[^$]*") {
            prop_assert_eq!(with(&text).unwrap(), text);
        }

        #[test]
        fn an_escaped_text_comes_back(text in any::<String>()) {
            let escaped = text.replace('$', "$$");
            prop_assert!(!has_reference(&escaped));
            prop_assert_eq!(with(&escaped).unwrap(), text);
        }

        #[test]
        fn a_value_is_never_expanded_again(value in any::<String>()) {
            let variables = BTreeMap::from([("A", value.as_str())]);
            prop_assert_eq!(expand("<${A}>", &variables).unwrap(), format!("<{value}>"));
        }
    }
}
