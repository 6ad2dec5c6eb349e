//! [`Connection`]: one open conversation with one upstream, whatever carries it.
//!
//! Changes when a transport is added. Knows nothing of retries, breakers, catalogues or callers; it
//! sends one request and says exactly what became of it.

mod aside;
mod channel;
mod child;
mod children;
mod detect;
mod endpoint;
mod error;
mod events;
mod fair;
mod handshake;
mod hear;
mod http;
mod jsonrpc;
mod lines;
mod notice;
mod pace;
mod refusal;
mod relay;
mod socket;
mod sse;
mod stdio;
mod unread;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderName, HeaderValue};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use url::Url;

pub use children::Children;
pub use error::{BoxError, Sent, TransportError};
pub use http::HttpConnection;
pub use jsonrpc::JsonrpcConnection;
pub use notice::{ListKind, Notice, NoticeSink};
pub use relay::{Relay, RelayWishes, ServerMessage, ServerRequest};
pub use socket::HttpClient;
pub use sse::SseConnection;
pub use stdio::StdioConnection;

use crate::model::{Dialect, Era, ProtocolVersion, Secret, ServerName, TransportKind};
use crate::protocol::{Answer, OutgoingRequest};

/// Where an upstream is, with everything expanded. Secrets are in memory only; `Debug` shows the
/// names of headers and variables, never their values, and no query of a URL.
#[derive(Clone)]
pub enum Target {
    /// Streamable HTTP.
    Http {
        /// Address of the MCP endpoint. Credentials in it are refused: they belong into a header.
        url: Url,
        /// Headers of every request.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
    /// A child process.
    Stdio {
        /// Program, looked up in `PATH`.
        command: String,
        /// Arguments.
        args: Vec<String>,
        /// Environment beside the few inherited variables.
        env: Vec<(String, Secret)>,
        /// Working folder.
        cwd: Option<PathBuf>,
    },
    /// HTTP+SSE of 2024-11-05.
    Sse {
        /// Address of the event stream.
        url: Url,
        /// Headers of every request.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
    /// The predecessor's dialect.
    Jsonrpc {
        /// Base address.
        url: Url,
        /// Headers of every request.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
}

impl Target {
    /// Which transport this is.
    #[must_use]
    pub const fn kind(&self) -> TransportKind {
        match self {
            Self::Http { .. } => TransportKind::Http,
            Self::Stdio { .. } => TransportKind::Stdio,
            Self::Sse { .. } => TransportKind::Sse,
            Self::Jsonrpc { .. } => TransportKind::Jsonrpc,
        }
    }

    /// Host and port, where it is reached over HTTP.
    #[must_use]
    pub fn peer(&self) -> Option<(Arc<str>, u16)> {
        match self {
            Self::Http { url, .. } | Self::Sse { url, .. } | Self::Jsonrpc { url, .. } => {
                Some((url.host_str()?.into(), url.port_or_known_default()?))
            }
            Self::Stdio { .. } => None,
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct(self.kind().as_str());
        match self {
            Self::Http { url, headers }
            | Self::Sse { url, headers }
            | Self::Jsonrpc { url, headers } => {
                let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
                out.field("url", &endpoint::shown(url)).field("headers", &names)
            }
            Self::Stdio { command, args, env, cwd } => {
                let names: Vec<&str> = env.iter().map(|(name, _)| name.as_str()).collect();
                out.field("command", command)
                    .field("args", &args.len())
                    .field("env", &names)
                    .field("cwd", cwd)
            }
        }
        .finish()
    }
}

/// How to open a connection.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The server's name, for logs.
    pub server: ServerName,
    /// Bound of the TCP and TLS connect, and of each step of the handshake over HTTP. A child
    /// process has at least 30 s for its handshake: its launcher may have to install it first.
    pub connect_timeout: Duration,
    /// Bound of one answer, of one event and of one line, in bytes.
    pub max_response_size: u64,
    /// Events that may come on the stream of one request before its answer.
    pub max_events: u32,
    /// Longest silence of an answer that has begun.
    pub stall_timeout: Option<Duration>,
    /// What the server was found to speak last time; it is tried first, where there is a choice.
    pub known_dialect: Option<Dialect>,
    /// Who hears what the server says on its own.
    pub hearing: Hearing,
    /// How long the modern probe may take before the legacy handshake is tried; at most 2 s with a
    /// child process.
    pub probe_timeout: Duration,
    /// The server's child processes, those of its other connections included.
    pub children: Children,
}

/// Who hears what a server says beside the answers to our requests.
#[derive(Debug, Clone)]
pub struct Hearing {
    /// Takes it.
    pub notices: NoticeSink,
    /// Resources whose changes somebody wants to hear of; followed as it changes.
    pub subscriptions: watch::Receiver<Arc<BTreeSet<String>>>,
    /// Whether one client alone uses the connection: only then can what the server asks or says
    /// outside of a request be told to the right one.
    pub exclusive: bool,
    /// The capabilities to declare in `initialize`, as JSON.
    pub client_capabilities: String,
}

impl Hearing {
    /// What was listed before may no longer be true.
    fn all_lists_may_have_changed(&self) {
        for kind in [ListKind::Tools, ListKind::Prompts, ListKind::Resources] {
            self.notices.take(Notice::ListChanged(kind));
        }
    }
}

impl Default for Hearing {
    /// Hears nothing and offers nothing.
    fn default() -> Self {
        Self {
            notices: NoticeSink::default(),
            subscriptions: watch::channel(Arc::default()).1,
            exclusive: false,
            client_capabilities: "{}".to_owned(),
        }
    }
}

/// What an upstream said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The version both sides speak.
    pub version: ProtocolVersion,
    /// `serverInfo` as raw JSON.
    pub server_info: Option<String>,
    /// `capabilities` as raw JSON.
    pub capabilities: Option<String>,
    /// `instructions`.
    pub instructions: Option<String>,
    /// What it offers.
    pub offers: Offers,
}

/// What a server declares to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offers {
    /// Tools; also when it declares nothing at all.
    pub tools: bool,
    /// Prompts.
    pub prompts: bool,
    /// Resources and templates.
    pub resources: bool,
    /// To say when a resource changes.
    pub subscriptions: bool,
    /// Completion of arguments.
    pub completions: bool,
    /// Log messages.
    pub logging: bool,
    /// To say when a list changes, for every list that it has.
    pub list_changes: bool,
    /// To say so for some list at least, which is worth listening to.
    pub some_list_changes: bool,
}

/// One open conversation with one upstream, shared by all callers or for one alone.
#[derive(Debug)]
pub enum Connection {
    /// Streamable HTTP.
    Http(Arc<HttpConnection>),
    /// A child process.
    Stdio(StdioConnection),
    /// HTTP+SSE of 2024-11-05.
    Sse(SseConnection),
    /// The predecessor's dialect.
    Jsonrpc(Box<JsonrpcConnection>),
}

impl Connection {
    /// Connects, finds out what the server speaks, and does the handshake. A target over HTTP can
    /// turn out to be any kind but a child process.
    ///
    /// Bounded by the connect and probe timeouts. Background work of the connection is spawned on
    /// `tasks`. Dropping the future gives up; a child process started by it is ended.
    ///
    /// # Errors
    /// [`TransportError`]: nothing that the server could execute was sent.
    pub async fn open(
        target: &Target,
        client: &HttpClient,
        options: &ConnectOptions,
        tasks: &TaskTracker,
    ) -> Result<Self, TransportError> {
        match target {
            Target::Http { url, headers } => {
                let endpoint = endpoint::Endpoint::new(url, headers, client, options, tasks)?;
                Box::pin(detect::open(&endpoint, url, options, tasks)).await
            }
            Target::Stdio { command, args, env, cwd } => {
                let guard = options.children.guard();
                let child = child::Launch { command, args, env, cwd: cwd.as_deref(), guard };
                Box::pin(StdioConnection::open(&child, options, tasks)).await.map(Self::Stdio)
            }
            Target::Sse { url, headers } => {
                let stream = endpoint::Endpoint::new(url, headers, client, options, tasks)?;
                let opening = SseConnection::open(&stream, url, options, tasks);
                Box::pin(opening).await.map(Self::Sse)
            }
            Target::Jsonrpc { url, headers } => {
                let base = endpoint::Endpoint::new(url, headers, client, options, tasks)?;
                let opening = JsonrpcConnection::open(&base, url, options);
                Box::pin(opening).await.map(|connection| Self::Jsonrpc(Box::new(connection)))
            }
        }
    }

    /// What the server said of itself.
    #[must_use]
    pub fn peer(&self) -> &PeerInfo {
        match self {
            Self::Http(connection) => connection.peer(),
            Self::Stdio(connection) => connection.peer(),
            Self::Sse(connection) => connection.peer(),
            Self::Jsonrpc(connection) => connection.peer(),
        }
    }

    /// What was found to work with the server.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match self {
            Self::Http(_) | Self::Stdio(_) => self.peer().version.era().into(),
            Self::Sse(_) => Dialect::Sse,
            Self::Jsonrpc(_) => Dialect::Jsonrpc,
        }
    }

    /// Whether requests can still succeed. False for a child that ended, for an event stream that
    /// did, and for an HTTP server that no longer speaks what was agreed.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match self {
            Self::Http(connection) => connection.is_alive(),
            Self::Stdio(connection) => connection.is_alive(),
            Self::Sse(connection) => connection.is_alive(),
            Self::Jsonrpc(connection) => connection.is_alive(),
        }
    }

    /// Sends one request and waits for its answer, at most `timeout`.
    ///
    /// Dropping the future cancels the request upstream: its connection is closed, and in the legacy
    /// era and on stdio `notifications/cancelled` is sent, in the background and best effort; the
    /// same when the timeout fires. The predecessor's dialect knows no cancellation.
    ///
    /// What the server says about the request before it answers goes to `relay`.
    ///
    /// # Errors
    /// [`TransportError`]; [`TransportError::failure`] says what that means for a repeat.
    pub async fn request(
        &self,
        request: &OutgoingRequest<'_>,
        timeout: Duration,
        relay: Option<&Arc<Relay>>,
    ) -> Result<Answer, TransportError> {
        match self {
            Self::Http(connection) => connection.request(request, timeout, relay).await,
            // Boxed, so that requests over HTTP do not carry the room for them.
            Self::Stdio(connection) => Box::pin(connection.request(request, timeout, relay)).await,
            Self::Sse(connection) => Box::pin(connection.request(request, timeout, relay)).await,
            Self::Jsonrpc(connection) => Box::pin(connection.request(request, timeout)).await,
        }
    }

    /// Whether what the server says on its own reaches us, as far as is known.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        match self {
            Self::Http(connection) => connection.is_listening(),
            Self::Sse(_) | Self::Stdio(_) => true,
            Self::Jsonrpc(_) => false,
        }
    }

    /// Tells the server something, best effort and in bounded time; `params` is raw JSON.
    pub async fn notify(&self, method: &str, params: Option<&str>) {
        match self {
            Self::Http(connection) => connection.notify(method, params).await,
            Self::Stdio(connection) => connection.notify(method, params),
            Self::Sse(connection) => connection.notify(method, params),
            // The dialect has no such messages.
            Self::Jsonrpc(_) => {}
        }
    }

    /// Ends the conversation in order: the legacy session is deleted; a child gets its input
    /// closed, then TERM after 1.5 s, then KILL after another 1.5 s. Bounded by that.
    pub async fn close(&self) {
        match self {
            Self::Http(connection) => connection.close().await,
            Self::Stdio(connection) => connection.close().await,
            Self::Sse(connection) => connection.close().await,
            Self::Jsonrpc(connection) => connection.close(),
        }
    }

    /// The last lines that a child wrote on standard error, oldest first, not redacted.
    #[must_use]
    pub fn stderr_tail(&self) -> Vec<String> {
        match self {
            Self::Stdio(connection) => connection.stderr_tail(),
            Self::Http(_) | Self::Sse(_) | Self::Jsonrpc(_) => Vec::new(),
        }
    }

    /// How a child ended, once it has.
    #[must_use]
    pub fn exit_status(&self) -> Option<String> {
        match self {
            Self::Stdio(connection) => connection.exit_status(),
            Self::Http(_) | Self::Sse(_) | Self::Jsonrpc(_) => None,
        }
    }

    /// The process id of a child.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        match self {
            Self::Stdio(connection) => Some(connection.process_id()),
            Self::Http(_) | Self::Sse(_) | Self::Jsonrpc(_) => None,
        }
    }

    /// Whether the server keeps nothing between requests: closing the connection ends none that is under
    /// way. A child has its memory, whatever it speaks.
    #[must_use]
    pub fn is_stateless(&self) -> bool {
        match self {
            Self::Http(connection) => connection.peer().version.era() == Era::Modern,
            Self::Jsonrpc(_) => true,
            Self::Sse(_) | Self::Stdio(_) => false,
        }
    }

    /// How the server ended the conversation, when it did: a child by its own end, an event stream
    /// by its.
    #[must_use]
    pub fn death(&self) -> Option<TransportError> {
        match self {
            Self::Stdio(connection) => connection.death(),
            Self::Sse(connection) => connection.death(),
            Self::Http(_) | Self::Jsonrpc(_) => None,
        }
    }
}
