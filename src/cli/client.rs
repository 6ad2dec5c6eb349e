//! [`Client`]: how client commands reach a running router, over its admin socket or over HTTP.
//!
//! Changes when the way to the router changes. Knows paths and bodies only as bytes; what they mean
//! is the commands' matter.

mod error;
mod exchange;

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::model::Secret;
pub(crate) use error::{ClientError, Problem};
pub(crate) use exchange::{Answer, Ask};

/// The admin socket's name in the data folder.
pub(crate) const SOCKET: &str = "admin.sock";
/// Socket addresses hold 108 bytes; below that the path itself works everywhere.
const LONGEST_SOCKET_PATH: usize = 100;
/// A router answers its own state at once; what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// Calls end by their own deadline, which the router caps at ten minutes.
pub(crate) const CALL_PATIENCE: Duration = Duration::from_secs(660);
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(60);
/// More than any answer the router gives: results are capped per server, pages are short.
pub(crate) const LARGEST_ANSWER: usize = 256 * 1024 * 1024;

type Pool = legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

enum Target {
    Socket(PathBuf),
    Http(Box<Pool>),
}

/// The way to a running router.
pub(crate) struct Client {
    target: Target,
    base: Url,
    authorization: Option<HeaderValue>,
    tasks: TaskTracker,
}

impl Client {
    /// Over the admin socket of a data folder: full rights, no key.
    pub(crate) fn socket(data_dir: &Path) -> Result<Self, ClientError> {
        // The host is a formality on a socket, and a loopback name passes the Host check.
        let base = parse_address("http://localhost/")?;
        Ok(Self {
            target: Target::Socket(data_dir.to_owned()),
            base,
            authorization: None,
            tasks: TaskTracker::new(),
        })
    }

    /// Over HTTP or HTTPS.
    pub(crate) fn http(url: &str, key: Option<&Secret>) -> Result<Self, ClientError> {
        let base = parse_address(url)?;
        let authorization = key.map(authorization).transpose()?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_PATIENCE));
        // A stream may be silent for hours; a router that vanished must be noticed all the same.
        connector.set_keepalive(Some(KEEPALIVE));
        let provider = rustls::crypto::ring::default_provider();
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(provider)
            .map_err(|error| ClientError::Unreachable {
                url: base.to_string(),
                reason: error.to_string(),
            })?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let pool = legacy::Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self {
            target: Target::Http(Box::new(pool)),
            base,
            authorization,
            tasks: TaskTracker::new(),
        })
    }

    /// Where it goes, for messages.
    pub(crate) fn describe(&self) -> String {
        match &self.target {
            Target::Socket(folder) => folder.join(SOCKET).display().to_string(),
            Target::Http(_) => self.base.to_string(),
        }
    }

    /// Whether the key travels readable over a network.
    pub(crate) fn exposes_key(&self) -> bool {
        let loopback = match self.base.host() {
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => true,
        };
        self.authorization.is_some() && self.base.scheme() == "http" && !loopback
    }

    /// Asks and takes the whole answer, whatever its status.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Answer, ClientError> {
        let (limit, route) = (ask.patience, ask.route());
        let exchange = async {
            let response = self.open(ask).await?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER)
                .collect()
                .await
                .map_err(|error| ClientError::Broken(innermost(&*error)))?
                .to_bytes();
            Ok(Answer { status: parts.status, headers: parts.headers, body, route })
        };
        match timeout(limit, exchange).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(ClientError::Silent { target: self.describe(), limit }),
        }
    }

    /// Asks and takes the answer only if the router did what was asked.
    pub(crate) async fn request(&self, ask: Ask) -> Result<Answer, ClientError> {
        self.ask(ask).await?.accepted()
    }

    /// Opens an answer that is read piece by piece; only if the router does what was asked.
    pub(crate) async fn stream(&self, ask: Ask) -> Result<Response<Incoming>, ClientError> {
        let limit = ask.patience;
        let Ok(response) = timeout(limit, self.open(ask)).await else {
            return Err(ClientError::Silent { target: self.describe(), limit });
        };
        let response = response?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(ClientError::Refused(Box::new(Problem::read(status, &body))))
    }

    /// Opens a stream of server-sent events.
    pub(crate) async fn events(&self, ask: Ask) -> Result<Events, ClientError> {
        let response = self.stream(ask.header("accept", "text/event-stream")).await?;
        Ok(Events {
            body: response.into_body(),
            pending: Vec::new(),
            event: Event::default(),
            target: self.describe(),
        })
    }

    /// Asks and gives the answer as soon as its head is there, without any bound in time.
    /// Dropping the future or the body closes the connection.
    pub(crate) async fn open(&self, ask: Ask) -> Result<Response<Incoming>, ClientError> {
        let request = self.build(ask)?;
        match &self.target {
            Target::Http(pool) => pool.request(request).await.map_err(|error| {
                let reason = innermost(&error);
                if error.is_connect() {
                    ClientError::Unreachable { url: self.base.to_string(), reason }
                } else {
                    ClientError::Broken(reason)
                }
            }),
            Target::Socket(folder) => {
                let stream = connect(folder).await?;
                let broken = |error: hyper::Error| ClientError::Broken(innermost(&error));
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream))
                        .await
                        .map_err(broken)?;
                // Ends with the exchange; an error reaches the request itself.
                self.tasks.spawn(connection);
                sender.send_request(request).await.map_err(broken)
            }
        }
    }

    fn build(&self, ask: Ask) -> Result<Request<Full<Bytes>>, ClientError> {
        let url = ask.url(&self.base);
        let socket = matches!(self.target, Target::Socket(_));
        // A socket connection takes the path alone; the pooled client wants the whole address.
        let uri =
            if socket { url[url::Position::BeforePath..].to_owned() } else { url.to_string() };
        let mut request = Request::builder()
            .method(ask.method)
            .uri(uri)
            .header(USER_AGENT, concat!("switchyard/", env!("CARGO_PKG_VERSION")));
        if socket {
            request = request.header(HOST, "localhost");
        }
        if !ask.headers.iter().any(|(name, _)| name == ACCEPT.as_str()) {
            request = request.header(ACCEPT, "application/json");
        }
        if ask.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        for (name, value) in &ask.headers {
            request = request.header(name.as_ref(), value);
        }
        request
            .body(Full::new(ask.body.unwrap_or_default()))
            .map_err(|error| ClientError::Broken(error.to_string()))
    }
}

/// One server-sent event.
#[derive(Debug, Default)]
pub(crate) struct Event {
    /// Its type; empty for a message.
    pub(crate) kind: String,
    /// By which the stream can be taken up after it.
    pub(crate) id: Option<String>,
    /// What it says; may be nothing.
    pub(crate) data: String,
}

/// A stream of server-sent events.
pub(crate) struct Events {
    body: Incoming,
    pending: Vec<u8>,
    event: Event,
    target: String,
}

impl Events {
    /// The next event. Dropping the future loses nothing but the event being read.
    ///
    /// # Errors
    /// [`ClientError::Silent`] when not even a comment came for `patience`.
    pub(crate) async fn next(&mut self, patience: Duration) -> Result<Event, ClientError> {
        loop {
            while let Some(line) = take_line(&mut self.pending) {
                let said = self.event.id.is_some() || !self.event.data.is_empty();
                if line.is_empty() && said {
                    return Ok(std::mem::take(&mut self.event));
                }
                let value =
                    |name| line.strip_prefix(name).map(|v| v.strip_prefix(' ').unwrap_or(v));
                if let Some(data) = value("data:") {
                    if !self.event.data.is_empty() {
                        self.event.data.push('\n');
                    }
                    self.event.data.push_str(data);
                } else if let Some(id) = value("id:") {
                    self.event.id = Some(id.to_owned());
                } else if let Some(kind) = value("event:") {
                    self.event.kind = kind.to_owned();
                }
            }
            let Ok(frame) = timeout(patience, self.body.frame()).await else {
                return Err(ClientError::Silent { target: self.target.clone(), limit: patience });
            };
            match frame {
                None => return Err(ClientError::StreamEnded),
                Some(Err(error)) => return Err(ClientError::Broken(innermost(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.pending.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn take_line(pending: &mut Vec<u8>) -> Option<String> {
    let end = memchr::memchr(b'\n', pending)?;
    let line: Vec<u8> = pending.drain(..=end).collect();
    let text = String::from_utf8_lossy(&line);
    Some(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn parse_address(text: &str) -> Result<Url, ClientError> {
    let url = Url::parse(text).ok();
    url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| ClientError::Address(text.to_owned()))
}

fn authorization(key: &Secret) -> Result<HeaderValue, ClientError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose().trim()))
        .map_err(|_unprintable| ClientError::Key)?;
    value.set_sensitive(true);
    Ok(value)
}

async fn connect(folder: &Path) -> Result<UnixStream, ClientError> {
    let path = folder.join(SOCKET);
    let stream = if path.as_os_str().len() > LONGEST_SOCKET_PATH {
        match File::open(folder) {
            // The folder stays open until the connection stands: the short path leads through it.
            Ok(handle) => {
                let short = format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd());
                UnixStream::connect(short).await
            }
            Err(error) => Err(error),
        }
    } else {
        UnixStream::connect(&path).await
    };
    stream.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::NotADirectory => ClientError::NoRouter(folder.to_owned()),
        io::ErrorKind::PermissionDenied => ClientError::Denied(path),
        _ => ClientError::Socket { path, source },
    })
}

/// What lies at the bottom: "connection refused" rather than "client error (connect)".
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    let mut text = at.to_string();
    if text.is_empty() {
        let _ = write!(text, "{error}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    #[test]
    fn names_and_filters_are_encoded() {
        let base = parse_address("https://gate.example/router/").unwrap();
        let ask = Ask::get(&["mcp", "tools", "a/b c?", "history"])
            .with("search", Some("x&y=z"))
            .with("server", None::<String>);
        assert_eq!(
            ask.url(&base).as_str(),
            "https://gate.example/router/mcp/tools/a%2Fb%20c%3F/history?search=x%26y%3Dz"
        );
        let base = parse_address("http://localhost").unwrap();
        assert_eq!(Ask::get(&["mcp", "health"]).url(&base).path(), "/mcp/health");
    }

    #[test]
    fn only_web_addresses_are_addresses() {
        for text in ["", "localhost:8300", "ftp://x/", "127.0.0.1", "http://"] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_problem_is_told_with_names_to_try() {
        let body = br#"{"status":404,"title":"unknown tool","detail":"no tool is called `ehco`","nearest":["demo__echo"]}"#;
        let problem = Problem::read(StatusCode::NOT_FOUND, body);
        assert_eq!(problem.to_string(), "no tool is called `ehco`\ndid you mean demo__echo?");
        let problem = Problem::read(StatusCode::BAD_GATEWAY, b"<html>nginx</html>");
        assert_eq!(problem.to_string(), "<html>nginx</html>");
        let problem = Problem::read(StatusCode::BAD_GATEWAY, b"{}");
        assert_eq!(problem.to_string(), "the router refused with status 502");
    }

    #[test]
    fn lines_come_whole_whatever_the_frames() {
        let mut pending = b"data: a\r\nda".to_vec();
        assert_eq!(take_line(&mut pending).as_deref(), Some("data: a"));
        assert_eq!(take_line(&mut pending), None);
        pending.extend_from_slice(b"ta: b\n");
        assert_eq!(take_line(&mut pending).as_deref(), Some("data: b"));
    }

    #[tokio::test]
    async fn a_data_folder_without_router_is_told_from_a_closed_one() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::socket(folder.path()).unwrap();
        let error = client.request(Ask::get(&["mcp", "servers"])).await.unwrap_err();
        assert!(matches!(error, ClientError::NoRouter(_)), "{error}");
        assert_eq!(error.exit_code(), 3);
        // A socket nobody listens on any more.
        drop(std::os::unix::net::UnixListener::bind(folder.path().join(SOCKET)).unwrap());
        let error = client.request(Ask::get(&["mcp", "servers"])).await.unwrap_err();
        assert!(matches!(error, ClientError::NoRouter(_)), "{error}");
    }

    #[tokio::test]
    async fn a_long_data_folder_path_is_reached_all_the_same() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let handle = File::open(&deep).unwrap();
        let short = format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd());
        let listener = tokio::net::UnixListener::bind(short).unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
            stream.write_all(answer).await.unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        };
        let client = Client::socket(&deep).unwrap();
        let (request, answer) =
            tokio::join!(server, client.request(Ask::get(&["mcp", "servers", "x y"])));
        assert!(request.starts_with("GET /mcp/servers/x%20y HTTP/1.1\r\n"), "{request}");
        assert_eq!(answer.unwrap().text().unwrap(), "{}");
    }
}
