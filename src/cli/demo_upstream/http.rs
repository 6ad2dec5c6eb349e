//! Streamable HTTP for the bundled upstream: hyper without layers, because the benchmark measures
//! proxies against it and it must cost little itself.
//!
//! Changes when the HTTP binding does. Knows nothing of tools.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::engine::{Engine, McpHeaders, Reply, Via};
use super::faults::Faults;
use super::message::Envelope;
use super::stats::{SeenRequest, Stats};
use super::{Answers, Options};

/// Larger than what any test sends.
const BODY_LIMIT: usize = 64 * 1024 * 1024;

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const MCP_METHOD: HeaderName = HeaderName::from_static("mcp-method");
const MCP_NAME: HeaderName = HeaderName::from_static("mcp-name");
const MCP_PARAM_REGION: HeaderName = HeaderName::from_static("mcp-param-region");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// A running upstream. Cancelling the token it was started with, or [`Upstream::stop`], ends it at
/// once: connections are cut, not drained, as in a crash.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    engine: Arc<Engine>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    exit_fault: Arc<AtomicBool>,
}

impl Upstream {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of its MCP endpoint.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// What it saw; a clone outlives the upstream.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.engine.stats
    }

    /// The switch for its faults.
    #[must_use]
    pub fn faults(&self) -> &Arc<Faults> {
        &self.engine.options.faults
    }

    /// How many legacy sessions are open.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.engine.sessions()
    }

    /// Forgets every session, so that legacy clients get 404 until they begin anew.
    pub fn forget_sessions(&self) {
        self.engine.forget_sessions();
    }

    /// Cuts all connections, stops listening and waits until both is done. A new upstream may
    /// then listen on the same address.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.wait().await;
    }

    /// Waits until the upstream has ended by its token; false when a fault ended it.
    pub async fn finished(self) -> bool {
        self.tasks.wait().await;
        !self.exit_fault.load(Ordering::Acquire)
    }
}

/// Serves MCP at `/mcp` of `listener` until `shutdown` is cancelled.
///
/// # Errors
/// When the listener has no local address any more.
pub fn serve_http(
    listener: TcpListener,
    options: Options,
    shutdown: CancellationToken,
) -> io::Result<Upstream> {
    let address = listener.local_addr()?;
    let engine = Arc::new(Engine::new(options));
    let tasks = TaskTracker::new();
    let exit_fault = Arc::new(AtomicBool::new(false));
    let server = Server {
        engine: Arc::clone(&engine),
        shutdown: shutdown.clone(),
        exit_fault: Arc::clone(&exit_fault),
    };
    tasks.spawn(accept(listener, server, tasks.clone()));
    tasks.close();
    Ok(Upstream { address, engine, tasks, shutdown, exit_fault })
}

#[derive(Debug, Clone)]
struct Server {
    engine: Arc<Engine>,
    shutdown: CancellationToken,
    exit_fault: Arc<AtomicBool>,
}

/// The connection ends here, on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut on purpose")]
struct CutError;

async fn accept(listener: TcpListener, server: Server, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = server.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tasks.spawn(connection(stream, server.clone()));
            }
            // Out of file descriptors, most likely: give the others time to close.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn connection(stream: TcpStream, server: Server) {
    // Without it the answers of a keep-alive connection wait for delayed acknowledgements.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let shutdown = server.shutdown.clone();
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { server.handle(request).await }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // An error here is a client that went away or a cut on purpose; the client sees it.
    let _ended = shutdown.run_until_cancelled(connection).await;
}

impl Server {
    async fn handle(&self, request: Request<Incoming>) -> Result<Response<Answer>, CutError> {
        if request.uri().path() != "/mcp" {
            return Ok(plain(StatusCode::NOT_FOUND, "the endpoint is /mcp"));
        }
        let (head, body) = request.into_parts();
        match head.method {
            Method::POST => self.post(&head.headers, body).await,
            Method::DELETE => Ok(self.delete(&head.headers)),
            _ => {
                let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "POST or DELETE");
                response
                    .headers_mut()
                    .insert(header::ALLOW, HeaderValue::from_static("POST, DELETE"));
                Ok(response)
            }
        }
    }

    fn delete(&self, headers: &HeaderMap) -> Response<Answer> {
        match text(headers, &SESSION_ID) {
            Some(id) if self.engine.end_session(id) => empty(StatusCode::NO_CONTENT),
            Some(_) => plain(StatusCode::NOT_FOUND, "session not found"),
            None => plain(StatusCode::METHOD_NOT_ALLOWED, "there is no session to end"),
        }
    }

    async fn post(
        &self,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Answer>, CutError> {
        if !text(headers, &header::CONTENT_TYPE).is_some_and(is_json) {
            return Ok(plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "application/json is expected"));
        }
        let Ok(body) = Limited::new(body, BODY_LIMIT).collect().await else {
            return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE, "the body is cut or too large"));
        };
        let body = body.to_bytes();
        if self.engine.options.record {
            self.remember(headers, &body);
        }
        if self.engine.options.stderr_noise > 0 {
            super::stdio::make_noise(self.engine.options.stderr_noise);
        }
        let mcp = McpHeaders {
            version: text(headers, &PROTOCOL_VERSION),
            method: text(headers, &MCP_METHOD),
            name: text(headers, &MCP_NAME),
            session: text(headers, &SESSION_ID),
            region: text(headers, &MCP_PARAM_REGION),
        };
        match self.engine.answer(&body, Via::Http(mcp)).await {
            Reply::Json { status, text, session } => Ok(self.json(status, text, session)),
            Reply::Accepted => Ok(empty(StatusCode::ACCEPTED)),
            Reply::Status(status) => Ok(refusal(status)),
            Reply::Cut => Err(CutError),
            Reply::CutMidBody(text) => {
                Ok(typed(StatusCode::OK, JSON, Answer::Cut(Some(text.into()))))
            }
            Reply::Hang => std::future::pending().await,
            Reply::Garbage => {
                let garbage = Bytes::from_static(b"<html>this is not what you asked for");
                Ok(typed(StatusCode::OK, JSON, Answer::whole(garbage)))
            }
            Reply::Exit => {
                self.exit_fault.store(true, Ordering::Release);
                self.shutdown.cancel();
                Err(CutError)
            }
        }
    }

    /// Errors with a status travel as JSON always; everything else as the options say.
    fn json(&self, status: u16, text: String, session: Option<String>) -> Response<Answer> {
        let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = match self.engine.options.answers {
            Answers::Sse if code == StatusCode::OK => {
                let mut response =
                    typed(code, EVENT_STREAM, Answer::whole(Bytes::from(event(&text))));
                let headers = response.headers_mut();
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
                headers.insert(
                    HeaderName::from_static("x-accel-buffering"),
                    HeaderValue::from_static("no"),
                );
                response
            }
            Answers::Sse | Answers::Json => typed(code, JSON, Answer::whole(Bytes::from(text))),
        };
        if let Some(value) = session.and_then(|id| HeaderValue::try_from(id).ok()) {
            response.headers_mut().insert(SESSION_ID, value);
        }
        response
    }

    fn remember(&self, headers: &HeaderMap, body: &Bytes) {
        let method = Envelope::parse(body)
            .ok()
            .and_then(|envelope| envelope.method.map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        self.engine.stats.remember(SeenRequest {
            http_method: Method::POST,
            headers: headers.clone(),
            method,
            body: body.clone(),
        });
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// One message as an event; a comment and an empty priming event come first, as real servers send
/// them.
fn event(text: &str) -> String {
    let mut event = String::with_capacity(text.len().saturating_add(64));
    event.push_str(": welcome\n\nid: 0\ndata:\n\nevent: message\n");
    // Both end a line of an event stream, and both may stand between the tokens of JSON.
    for line in text.split(['\n', '\r']) {
        event.push_str("data: ");
        event.push_str(line);
        event.push('\n');
    }
    event.push('\n');
    event
}

fn typed(status: StatusCode, content_type: HeaderValue, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Answer> {
    typed(
        status,
        HeaderValue::from_static("text/plain; charset=utf-8"),
        Answer::whole(Bytes::from_static(text.as_bytes())),
    )
}

fn empty(status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(Answer::Whole(None));
    *response.status_mut() = status;
    response
}

fn refusal(status: u16) -> Response<Answer> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = plain(status, "refused on purpose");
    if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// A response's body: whole, or one that breaks off half-way although its length was announced.
#[derive(Debug)]
enum Answer {
    Whole(Option<Bytes>),
    Cut(Option<Bytes>),
}

impl Answer {
    fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = CutError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutError>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Cut(rest) => Poll::Ready(Some(match rest.take() {
                Some(mut bytes) => Ok(Frame::data(bytes.split_to(bytes.len() / 2))),
                None => Err(CutError),
            })),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        let size = match self {
            Self::Whole(bytes) => bytes.as_ref().map(Bytes::len),
            Self::Cut(rest) => rest.as_ref().map(Bytes::len),
        };
        SizeHint::with_exact(size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0))
    }
}
