//! [`ClientError`]: why the router could not be asked; [`Problem`]: what it said instead of yes.
//!
//! Changes when a failure of reaching the router deserves its own words.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

/// Why the router could not be asked, or what it answered instead.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the data folder's socket.
    #[error(
        "no router runs on the data folder `{}`\nstart one with `switchyard serve`, name its folder with --data-dir, or reach another with --url http://HOST:PORT", .0.display()
    )]
    NoRouter(PathBuf),
    /// The socket is there and may not be opened.
    #[error(
        "not permitted to open `{}`\nonly the user that runs the router may; become that user, or use --url http://HOST:PORT with --key", .0.display()
    )]
    Denied(PathBuf),
    /// The socket failed otherwise.
    #[error("could not connect to `{}`: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address of `--url` is none.
    #[error("`{0}` is not the address of a router; write it as http://HOST:PORT")]
    Address(String),
    /// A key that no header can carry.
    #[error("the key has characters that cannot be sent; copy it again from where it was shown")]
    Key,
    /// The address of `--url` did not accept a connection.
    #[error(
        "could not reach a router at {url}: {reason}\nis it running (`switchyard serve`), and is this its address?"
    )]
    Unreachable {
        /// The address.
        url: String,
        /// The innermost reason.
        reason: String,
    },
    /// Connected, and then no proper answer.
    #[error("the router did not finish its answer: {0}")]
    Broken(String),
    /// Connected, and then nothing for too long.
    #[error("the router at {target} did not answer within {} seconds", limit.as_secs())]
    Silent {
        /// Socket or address.
        target: String,
        /// How long it had.
        limit: Duration,
    },
    /// The answer is not what this program understands.
    #[error(
        "could not read the router's answer to {route}: {reason}\nis it a switchyard of another version?"
    )]
    Unreadable {
        /// What was asked.
        route: String,
        /// Why.
        reason: String,
    },
    /// The router said no.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// A stream that should go on came to its end.
    #[error("the router ended the stream; it may be stopping")]
    StreamEnded,
}

impl ClientError {
    /// The process' exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Address(_) | Self::Key => 2,
            Self::Refused(_) | Self::Unreadable { .. } => 1,
            Self::NoRouter(_)
            | Self::Denied(_)
            | Self::Socket { .. }
            | Self::Unreachable { .. }
            | Self::Broken(_)
            | Self::Silent { .. }
            | Self::StreamEnded => 3,
        }
    }
}

/// An error as the router tells it (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// What kind of thing went wrong.
    pub title: Option<String>,
    /// What went wrong here.
    pub detail: Option<String>,
    /// The stable name.
    pub error_code: Option<String>,
    /// What the name could have meant.
    pub candidates: Vec<String>,
    /// Names that look alike.
    pub nearest: Vec<String>,
    /// The same in the answer to a call.
    pub error: Option<String>,
}

impl Problem {
    /// Reads a refusal's body, whatever it is: a proxy between us and the router may have written it.
    pub(in crate::cli) fn read(status: StatusCode, body: &[u8]) -> Self {
        let mut problem: Self = serde_json::from_slice(body).unwrap_or_else(|_| Self {
            detail: std::str::from_utf8(body)
                .ok()
                .map(|text| crate::cli::text::first_line(text).chars().take(300).collect()),
            ..Self::default()
        });
        problem.status = status.as_u16();
        problem
    }

    /// Names to offer that the message does not hold already.
    fn offers(&self, said: &str) -> Vec<&str> {
        let names = self.nearest.iter().chain(&self.candidates).map(String::as_str);
        names.filter(|name| !said.contains(name)).collect()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = [&self.detail, &self.error, &self.title].into_iter().flatten();
        let told = texts.map(String::as_str).find(|text| !text.trim().is_empty());
        let said = told.unwrap_or("the router refused");
        f.write_str(said)?;
        if told.is_none() {
            write!(f, " with status {}", self.status)?;
        }
        let offers = self.offers(said);
        if !offers.is_empty() {
            write!(f, "\ndid you mean {}?", offers.join(", "))?;
        }
        match self.status {
            401 => f.write_str(
                "\ngive a key with --key or SWITCHYARD_KEY; `switchyard keys create NAME` on the router's machine makes one",
            ),
            403 => f.write_str(
                "\nthe key lacks the scope for this; the admin socket (no --url) needs none",
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_without_words_tells_its_status() {
        for body in ["", "\n", "{}", r#"{"detail":""}"#, r#"{"detail":" ","title":null}"#] {
            let problem = Problem::read(StatusCode::BAD_GATEWAY, body.as_bytes());
            assert_eq!(problem.to_string(), "the router refused with status 502", "{body:?}");
        }
        let binary = Problem::read(StatusCode::BAD_GATEWAY, &[0xff, 0xfe]);
        assert_eq!(binary.to_string(), "the router refused with status 502");
    }

    #[test]
    fn a_refusal_in_words_is_told_as_it_is() {
        let said = |body: &str| Problem::read(StatusCode::CONFLICT, body.as_bytes()).to_string();
        assert_eq!(said("no upstream\nmore"), "no upstream");
        assert_eq!(said(r#"{"detail":"","title":"Conflict"}"#), "Conflict");
        let known = said(r#"{"detail":"no tool `ad`","nearest":["add"]}"#);
        assert_eq!(known, "no tool `ad`\ndid you mean add?");
    }
}
