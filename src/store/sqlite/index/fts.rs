//! [`TextQuery`]: the words, "phrases" and prefix* that somebody looks for.
//!
//! Changes when text can be asked for differently. What is asked is taken apart into tokens here
//! and put together anew, so that nothing of it can be syntax of the full-text engine. Values in,
//! values out.

use super::unescape::unescaped;
use super::unicode61::{folded, tokens};

/// Characters of a query at most.
const LONGEST: usize = 512;
/// Terms of a query at most.
const MOST_TERMS: usize = 16;
/// Shorter prefixes are in nearly every row, and merging all their words takes seconds.
const SHORTEST_PREFIX: usize = 2;

/// What the text of a call must have: every term, each within one of error, arguments and result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store::sqlite) struct TextQuery(Vec<Term>);

/// Tokens that follow each other; the last may be the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    /// As they were written: the engine folds them itself.
    written: Vec<String>,
    /// As they are compared without it.
    folded: Vec<String>,
    prefix: bool,
}

impl TextQuery {
    /// Reads a query.
    ///
    /// # Errors
    /// What is wrong with it, for whoever wrote it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.chars().count() > LONGEST {
            return Err(format!("it is longer than {LONGEST} characters"));
        }
        let mut terms = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (written, after) = if let Some(inside) = rest.strip_prefix('"') {
                inside.split_once('"').ok_or("a quote is opened and not closed")?
            } else {
                let end = rest.find(|c: char| c.is_whitespace() || c == '"');
                rest.split_at_checked(end.unwrap_or(rest.len())).unwrap_or((rest, ""))
            };
            let quoted = rest.starts_with('"');
            let (written, prefix, after) = match (quoted, written.strip_suffix('*')) {
                (false, Some(word)) => (word, true, after),
                (false, None) => (written, false, after),
                (true, _) => match after.strip_prefix('*') {
                    Some(after) => (written, true, after),
                    None => (written, false, after),
                },
            };
            terms.extend(Term::new(written, prefix)?);
            rest = after.trim_start();
        }
        match terms.len() {
            0 if text.trim().is_empty() => {
                Err("it is empty; write words, \"a phrase\" or a prefix*".to_owned())
            }
            0 => Err("it has neither letter nor digit".to_owned()),
            1..=MOST_TERMS => Ok(Self(terms)),
            _ => Err(format!("it has more than {MOST_TERMS} words and phrases")),
        }
    }

    /// As the full-text engine wants it.
    pub(super) fn expression(&self) -> String {
        let terms = self.0.iter().map(|term| {
            // What separates tokens is in none of them, and a quote does.
            format!("\"{}\"{}", term.written.join(" "), if term.prefix { " *" } else { "" })
        });
        terms.collect::<Vec<_>>().join(" AND ")
    }

    /// Whether words are merged for it, which costs the same however few rows are wanted.
    pub(super) fn has_prefix(&self) -> bool {
        self.0.iter().any(|term| term.prefix)
    }

    /// Whether a call with this error and these payloads is one that the full-text engine would find.
    pub(super) fn matches(
        &self,
        error: Option<&str>,
        arguments: Option<&str>,
        result: Option<&str>,
    ) -> bool {
        let folded = |text: &str| tokens(text).map(folded).collect();
        let payloads = [arguments, result].map(|text| text.map(|text| folded(&unescaped(text))));
        let texts: Vec<Vec<String>> =
            [error.map(folded)].into_iter().chain(payloads).flatten().collect();
        self.0.iter().all(|term| texts.iter().any(|text| term.is_in(text)))
    }
}

impl Term {
    /// `None` for signs alone, which are not in any index.
    fn new(written: &str, prefix: bool) -> Result<Option<Self>, String> {
        let tokens: Vec<&str> = tokens(written).collect();
        let Some(last) = tokens.last() else { return Ok(None) };
        let cut = !written.ends_with(last);
        if prefix && (cut || last.chars().count() < SHORTEST_PREFIX) {
            return Err(format!(
                "`{written}*`: a prefix has at least {SHORTEST_PREFIX} letters or digits before the `*`"
            ));
        }
        let folded = tokens.iter().map(|token| folded(token)).collect();
        let written = tokens.into_iter().map(str::to_owned).collect();
        Ok(Some(Self { written, folded, prefix }))
    }

    fn is_in(&self, text: &[String]) -> bool {
        let Some((last, head)) = self.folded.split_last() else { return false };
        text.windows(self.folded.len()).any(|window| {
            window.split_last().is_some_and(|(found, before)| {
                before == head && if self.prefix { found.starts_with(last) } else { found == last }
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expression(text: &str) -> Result<String, String> {
        TextQuery::parse(text).map(|query| query.expression())
    }

    #[test]
    fn words_phrases_and_prefixes_are_read() {
        for (text, expected) in [
            ("timeout", r#""timeout""#),
            ("  Time  OUT ", r#""Time" AND "OUT""#),
            (r#""Connection refused" conn*"#, r#""Connection refused" AND "conn" *"#),
            (r#""connection ref"*"#, r#""connection ref" *"#),
            ("number-17", r#""number 17""#),
            (r#"a"b c"d"#, r#""a" AND "b c" AND "d""#),
            ("or NOT near", r#""or" AND "NOT" AND "near""#),
            ("col:x -y ^z", r#""col x" AND "y" AND "z""#),
            ("this - \"\" that", r#""this" AND "that""#),
            ("x') or 1=1; --'a", r#""x" AND "or" AND "1 1" AND "a""#),
        ] {
            assert_eq!(expression(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_looked_for_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("  ", "empty"),
            ("\"open", "not closed"),
            ("--", "neither letter nor digit"),
            ("\"\"", "neither letter nor digit"),
            ("*", "neither letter nor digit"),
            ("a*", "at least 2"),
            ("ab-*", "at least 2"),
            (&"x".repeat(600), "longer than"),
            (&"x ".repeat(20), "more than 16"),
        ] {
            let error = expression(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn simple_matching_does_as_the_engine() {
        let found = |query: &str, text: &str| {
            TextQuery::parse(query).unwrap().matches(None, Some(text), Some("other"))
        };
        assert!(found("REFUSED other", "connection refused by host"));
        assert!(found("\"connection refused\"", "Connection  refused."));
        assert!(!found("\"refused connection\"", "connection refused"));
        assert!(!found("\"refused other\"", "connection refused"), "a phrase is within one text");
        assert!(found("\"connection ref\"*", "connection refused"));
        assert!(!found("refuse", "connection refused"));
    }

    proptest! {
        #[test]
        fn nothing_written_becomes_syntax(text in "\\PC{0,40}") {
            if let Ok(expression) = expression(&text) {
                let outside: String = expression.split('"').step_by(2).collect();
                prop_assert!(outside.replace("AND", "").chars().all(|c| c == ' ' || c == '*'));
            }
        }
    }
}
