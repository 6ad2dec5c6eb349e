//! Names: of servers, of tools as the upstream calls them, of tools as we expose them.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a name must not be empty")]
    Empty,
    /// The text is longer than `limit` bytes.
    #[error("`{name}` is longer than {limit} bytes")]
    TooLong {
        /// The text, cut for display.
        name: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// The text has a character outside the allowed set.
    #[error(
        "`{name}` has the character {character:?}; a name is made of letters, digits, `_`, `-` and `.`, and begins with a letter or digit"
    )]
    Character {
        /// The text as given.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name as shared text, without a copy.
            #[must_use]
            pub fn into_shared(self) -> Arc<str> {
                self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(value: String) -> Result<Self, NameError> {
                Self::parse(&value)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name_type! {
    /// The name an operator gave to an upstream server; the prefix of its exposed tools.
    ///
    /// 1 to 64 bytes of `[A-Za-z0-9_.-]`, beginning with a letter or digit.
    ServerName
}

name_type! {
    /// The name an operator gave to a view; the last part of its path `/mcp/v/{view}`.
    ///
    /// 1 to 64 bytes of `[A-Za-z0-9_.-]`, beginning with a letter or digit.
    ViewName
}

name_type! {
    /// A tool's name as its server gives it: any non-empty text of at most 1,024 bytes.
    ToolName
}

name_type! {
    /// A tool's name as clients of the router see it: 1 to 64 bytes of `[A-Za-z0-9_-]`
    /// with `naming: prefix`; the upstream's own name with `naming: bare`.
    ExposedName
}

/// Model APIs that accept server-qualified names cap them at 64 characters.
const SERVER_NAME_LIMIT: usize = 64;
/// The specification says 1 to 128 characters; longer ones are routable, absurd ones are not.
const TOOL_NAME_LIMIT: usize = 1024;

impl ServerName {
    /// Checks and takes a server's name.
    ///
    /// # Errors
    /// [`NameError`] names what is wrong with it.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check_given(name)?;
        Ok(Self(name.into()))
    }
}

impl ViewName {
    /// Checks and takes a view's name.
    ///
    /// # Errors
    /// [`NameError`] names what is wrong with it.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check_given(name)?;
        Ok(Self(name.into()))
    }
}

impl ToolName {
    /// Takes a tool's name as an upstream gives it.
    ///
    /// # Errors
    /// [`NameError::Empty`] or [`NameError::TooLong`].
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check_length(name, TOOL_NAME_LIMIT)?;
        Ok(Self(name.into()))
    }
}

impl ExposedName {
    /// Takes a name made by the naming rules.
    ///
    /// # Errors
    /// [`NameError::Empty`] or [`NameError::TooLong`].
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check_length(name, TOOL_NAME_LIMIT)?;
        Ok(Self(name.into()))
    }
}

/// The rule for names that an operator gives.
fn check_given(name: &str) -> Result<(), NameError> {
    check_length(name, SERVER_NAME_LIMIT)?;
    let allowed =
        |at: usize, c: char| c.is_ascii_alphanumeric() || (at > 0 && matches!(c, '_' | '-' | '.'));
    match name.char_indices().find(|(at, c)| !allowed(*at, *c)) {
        Some((_, character)) => Err(NameError::Character { name: name.to_owned(), character }),
        None => Ok(()),
    }
}

fn check_length(name: &str, limit: usize) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > limit {
        let cut: String = name.chars().take(32).collect();
        return Err(NameError::TooLong { name: format!("{cut}…"), limit });
    }
    Ok(())
}
