//! [`Pointers`]: places in arguments and results that are never kept. PURE.
//!
//! Changes when a place can be named in another way. A pointer is that of RFC 6901, in which `*` also
//! stands for any member and any element.

use std::fmt;
use std::sync::Arc;

/// More would be a program and not a place.
const MOST_STEPS: usize = 64;

/// Where in a tool's result a pointer begins, beside the result itself: what has a structure of its own.
/// A text that is JSON is looked into, because servers give the same structure as text as well.
const IN_RESULTS: [&[&str]; 4] = [
    &["structuredContent"],
    &["content", "*", "text"],
    &["content", "*", "resource", "text"],
    // Of a JSON-RPC error.
    &["data"],
];

/// Why a text is no pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PointerError {
    /// It does not begin as one.
    #[error("a JSON pointer begins with `/`, such as /user/email or /items/*/token")]
    NoSlash,
    /// `~` stands for nothing here.
    #[error("in a JSON pointer `~` is followed by 0 or 1: `~0` is `~`, `~1` is `/`")]
    Tilde,
    /// It is too long.
    #[error("a JSON pointer of more than {MOST_STEPS} steps is not taken")]
    TooLong,
}

/// What one step of a pointer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// Any member or element.
    Any,
    /// The member of this name, or the element of this number.
    One { name: Box<str>, index: Option<usize> },
}

impl Wanted {
    fn of(name: String) -> Self {
        if name == "*" {
            return Self::Any;
        }
        let plain = name == "0" || !name.starts_with('0');
        let digits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
        let index = if plain && digits { name.parse().ok() } else { None };
        Self::One { name: name.into(), index }
    }

    fn takes(&self, step: &Step) -> bool {
        match (self, step) {
            (Self::Any, _) => true,
            (Self::One { name, .. }, Step::Member(member)) => **name == **member,
            (Self::One { index, .. }, Step::Element(at)) => *index == Some(*at),
        }
    }
}

/// One step on the way to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Member(String),
    Element(usize),
}

/// A place in a JSON document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer(Vec<Wanted>);

impl Pointer {
    /// Reads a pointer.
    ///
    /// # Errors
    /// [`PointerError`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, PointerError> {
        let steps = text.strip_prefix('/').ok_or(PointerError::NoSlash)?;
        let steps: Vec<Wanted> = steps
            .split('/')
            .map(|step| unescaped(step).map(Wanted::of))
            .collect::<Result<_, _>>()?;
        if steps.len() > MOST_STEPS {
            return Err(PointerError::TooLong);
        }
        Ok(Self(steps))
    }
}

/// RFC 6901, section 4.
fn unescaped(step: &str) -> Result<String, PointerError> {
    let mut parts = step.split('~');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (stands_for, rest) = match (part.strip_prefix('0'), part.strip_prefix('1')) {
            (Some(rest), _) => ('~', rest),
            (_, Some(rest)) => ('/', rest),
            (None, None) => return Err(PointerError::Tilde),
        };
        name.push(stands_for);
        name.push_str(rest);
    }
    Ok(name)
}

/// Pointers into one kind of document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PointerSet {
    pointers: Vec<Vec<Wanted>>,
    longest: usize,
}

impl PointerSet {
    fn new(pointers: Vec<Vec<Wanted>>) -> Self {
        let longest = pointers.iter().map(Vec::len).max().unwrap_or(0);
        Self { pointers, longest }
    }

    /// Steps of the longest of them.
    pub(super) const fn longest(&self) -> usize {
        self.longest
    }

    /// Whether one of them is this place.
    pub(super) fn names(&self, path: &[Step]) -> bool {
        self.pointers.iter().any(|pointer| pointer.len() == path.len() && leads(pointer, path))
    }

    /// Whether one of them is a place inside this one.
    pub(super) fn names_inside(&self, path: &[Step]) -> bool {
        self.pointers.iter().any(|pointer| pointer.len() > path.len() && leads(pointer, path))
    }
}

fn leads(pointer: &[Wanted], path: &[Step]) -> bool {
    pointer.iter().zip(path).all(|(wanted, step)| wanted.takes(step))
}

/// What is never kept of one tool's arguments and results.
#[derive(Clone, PartialEq, Eq)]
pub struct Pointers {
    arguments: PointerSet,
    results: PointerSet,
}

impl fmt::Debug for Pointers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pointers").field(&self.arguments.pointers.len()).finish()
    }
}

impl Pointers {
    /// Those of these texts, which were checked when they were read; `None` when there are none.
    #[must_use]
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Option<Arc<Self>> {
        let pointers = texts.into_iter().filter_map(|text| Pointer::parse(text).ok());
        let arguments: Vec<Vec<Wanted>> = pointers.map(|pointer| pointer.0).collect();
        if arguments.is_empty() {
            return None;
        }
        let inside = IN_RESULTS.iter().flat_map(|root| {
            let root = root.iter().map(|step| Wanted::of((*step).to_owned()));
            let root: Vec<Wanted> = root.collect();
            arguments.iter().map(move |pointer| [root.as_slice(), pointer].concat())
        });
        let results = arguments.iter().cloned().chain(inside).collect();
        Some(Arc::new(Self {
            results: PointerSet::new(results),
            arguments: PointerSet::new(arguments),
        }))
    }

    /// Those into arguments.
    #[must_use]
    pub const fn arguments(&self) -> &PointerSet {
        &self.arguments
    }

    /// Those into results, what is structured in them, and JSON-RPC errors.
    #[must_use]
    pub const fn results(&self) -> &PointerSet {
        &self.results
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, index: Option<usize>) -> Wanted {
        Wanted::One { name: name.into(), index }
    }

    #[test]
    fn pointers_are_read_as_rfc_6901_says() {
        for (text, steps) in [
            ("/", vec![one("", None)]),
            ("/a/b", vec![one("a", None), one("b", None)]),
            ("/a~1b/m~0n/~01", vec![one("a/b", None), one("m~n", None), one("~1", None)]),
            (
                "/items/*/0/01/-",
                vec![
                    one("items", None),
                    Wanted::Any,
                    one("0", Some(0)),
                    one("01", None),
                    one("-", None),
                ],
            ),
            ("/ k\"l/é", vec![one(" k\"l", None), one("é", None)]),
        ] {
            assert_eq!(Pointer::parse(text), Ok(Pointer(steps)), "{text}");
        }
        assert_eq!(Pointer::parse("a/b"), Err(PointerError::NoSlash));
        assert_eq!(Pointer::parse(""), Err(PointerError::NoSlash));
        for text in ["/a~", "/a~2", "/~/b"] {
            assert_eq!(Pointer::parse(text), Err(PointerError::Tilde), "{text}");
        }
        assert_eq!(Pointer::parse(&"/a".repeat(65)), Err(PointerError::TooLong));
    }

    #[test]
    fn a_step_takes_its_member_its_element_or_any() {
        let set = PointerSet::new(vec![
            Pointer::parse("/a/*/1").unwrap().0,
            Pointer::parse("/b").unwrap().0,
        ]);
        let member = |name: &str| Step::Member(name.to_owned());
        let long = |last| [member("a"), Step::Element(7), last];
        assert!(set.names(&long(Step::Element(1))) && set.names(&long(member("1"))));
        assert!(set.names(&[member("a"), member("x"), member("1")]));
        assert!(!set.names(&long(Step::Element(2))) && !set.names(&[member("a")]));
        assert!(set.names(&[member("b")]) && !set.names_inside(&[member("b")]));
        assert!(set.names_inside(&[]) && set.names_inside(&[member("a"), member("q")]));
        assert_eq!(set.longest(), 3);
    }
}
