//! Versions of the Model Context Protocol and the two eras they fall into.

use std::fmt;

/// A protocol version this router speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProtocolVersion {
    /// 2024-11-05: HTTP+SSE.
    V2024_11_05,
    /// 2025-03-26: Streamable HTTP, the only one with batches.
    V2025_03_26,
    /// 2025-06-18: structured content, the version header.
    V2025_06_18,
    /// 2025-11-25: the last with a handshake.
    V2025_11_25,
    /// 2026-07-28: stateless, no handshake.
    V2026_07_28,
}

/// With a handshake and sessions, or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Era {
    /// `initialize` first; up to 2025-11-25.
    Legacy,
    /// Everything in each request's `_meta`; from 2026-07-28.
    Modern,
}

/// The way of speaking that was found to work with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// The modern era.
    Modern,
    /// The legacy era, over Streamable HTTP or with a child process.
    Legacy,
    /// The legacy era over HTTP+SSE, the transport of 2024-11-05.
    Sse,
    /// The predecessor's bare JSON-RPC.
    Jsonrpc,
}

impl Dialect {
    const ALL: [Self; 4] = [Self::Modern, Self::Legacy, Self::Sse, Self::Jsonrpc];

    /// The name in the database and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Modern => "modern",
            Self::Legacy => "legacy",
            Self::Sse => "sse",
            Self::Jsonrpc => "jsonrpc",
        }
    }

    /// Reads a dialect's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dialect| dialect.as_str() == text)
    }
}

impl From<Era> for Dialect {
    fn from(era: Era) -> Self {
        match era {
            Era::Legacy => Self::Legacy,
            Era::Modern => Self::Modern,
        }
    }
}

impl Era {
    /// The name in the database and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Modern => "modern",
        }
    }

    /// Reads an era's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Legacy, Self::Modern].into_iter().find(|era| era.as_str() == text)
    }
}

impl ProtocolVersion {
    /// Every version, oldest first.
    pub const ALL: [Self; 5] = [
        Self::V2024_11_05,
        Self::V2025_03_26,
        Self::V2025_06_18,
        Self::V2025_11_25,
        Self::V2026_07_28,
    ];
    /// The newest with a handshake: what `initialize` negotiates when it does not know better.
    pub const LATEST_LEGACY: Self = Self::V2025_11_25;
    /// The newest without.
    pub const LATEST: Self = Self::V2026_07_28;

    /// The version as it is written in headers and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V2024_11_05 => "2024-11-05",
            Self::V2025_03_26 => "2025-03-26",
            Self::V2025_06_18 => "2025-06-18",
            Self::V2025_11_25 => "2025-11-25",
            Self::V2026_07_28 => "2026-07-28",
        }
    }

    /// Reads a version.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// The era the version belongs to.
    #[must_use]
    pub const fn era(self) -> Era {
        match self {
            Self::V2024_11_05 | Self::V2025_03_26 | Self::V2025_06_18 | Self::V2025_11_25 => {
                Era::Legacy
            }
            Self::V2026_07_28 => Era::Modern,
        }
    }

    /// Position in [`Self::ALL`], for tables by version.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
