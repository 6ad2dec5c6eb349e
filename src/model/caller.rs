//! Who calls: [`Caller`], and what a caller may do: [`Scopes`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// One permission of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Call tools, list them over MCP.
    Call,
    /// Read the registry and the catalogue.
    Read,
    /// Read the ledger.
    Audit,
    /// Read the metrics.
    Metrics,
    /// Change the registry, keys and configuration.
    Admin,
}

impl Scope {
    /// Every scope, in the order they are shown.
    pub const ALL: [Self; 5] = [Self::Call, Self::Read, Self::Audit, Self::Metrics, Self::Admin];

    /// The name used in the database, the API and the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Read => "read",
            Self::Audit => "audit",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }

    /// Reads a scope's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

/// A set of [`Scope`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// No permission at all.
    pub const NONE: Self = Self(0);
    /// Every permission.
    pub const ALL: Self = Self(0b1_1111);
    /// What a caller without a key may do on a loopback address (`auth.mode: auto`).
    pub const LOOPBACK: Self = Self(0b0_1111);

    /// Whether `scope` is in the set.
    #[must_use]
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// The set with `scope` added.
    #[must_use]
    pub const fn with(self, scope: Scope) -> Self {
        Self(self.0 | (1 << scope as u8))
    }

    /// The scopes in the set, in display order.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        scopes.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, scope) in self.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            f.write_str(scope.as_str())?;
        }
        Ok(())
    }
}

/// How a caller proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthKind {
    /// Not at all: no key was needed.
    None,
    /// With a key.
    Key,
    /// By opening the admin socket, which only the owner of the data folder can.
    Socket,
}

/// What kind of caller made a call, as the metrics say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallerClass {
    /// It proved who it is: with a key, or by opening the admin socket.
    Key,
    /// It did not, and gave the name of its client, at the begin of its session or in the request.
    Client,
    /// Nothing is known of it.
    Anonymous,
}

impl CallerClass {
    /// Every class, in the order they are shown.
    pub const ALL: [Self; 3] = [Self::Key, Self::Client, Self::Anonymous];

    /// The class of a caller who gave the name of its client or not.
    #[must_use]
    pub const fn of(auth: AuthKind, names_client: bool) -> Self {
        match (auth, names_client) {
            (AuthKind::Key | AuthKind::Socket, _) => Self::Key,
            (AuthKind::None, true) => Self::Client,
            (AuthKind::None, false) => Self::Anonymous,
        }
    }

    /// The name in the metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Client => "client",
            Self::Anonymous => "anonymous",
        }
    }
}

/// The one value that says who makes a request and what it may do.
///
/// Rate limits, allow lists of servers and tools, and tokens of other issuers attach here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name in the ledger: the key's name, `anonymous`, or `admin-socket`.
    pub name: std::sync::Arc<str>,
    /// What it may do.
    pub scopes: Scopes,
    /// How it proved who it is.
    pub auth: AuthKind,
    /// Whether it reached us over the network; what came over the network may not name
    /// variables of our environment.
    pub remote: bool,
}

impl Caller {
    /// A caller without a key, on a loopback address.
    #[must_use]
    pub fn anonymous(scopes: Scopes) -> Self {
        Self { name: "anonymous".into(), scopes, auth: AuthKind::None, remote: true }
    }

    /// Whoever opened the admin socket.
    #[must_use]
    pub fn admin_socket() -> Self {
        Self {
            name: "admin-socket".into(),
            scopes: Scopes::ALL,
            auth: AuthKind::Socket,
            remote: false,
        }
    }

    /// Whether the caller has `scope`.
    #[must_use]
    pub const fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(scope)
    }
}
