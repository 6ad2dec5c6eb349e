//! The task that sends spans: gathers a batch, posts it, posts it again where that may help.
//!
//! Changes when the way batches are sent does. Source: OTLP 1.x, "OTLP/HTTP" and "Failures".

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message as _;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::wire::{self, ExportTraceServiceResponse, Resource};
use super::{Signals, Span, TraceSettings};
use crate::metrics::TraceMetrics;

/// Spans of one request at most.
const BATCH: usize = 512;
/// How long a batch waits for more.
const GATHER: Duration = Duration::from_secs(1);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// How often a batch is sent again at most, after waits that double from the first to the longest:
/// within about a minute.
const AGAIN: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Bytes of an answer that are read.
const ANSWER: usize = 64 * 1024;

/// Sends batches.
pub(super) struct Exporter {
    address: Uri,
    headers: HeaderMap,
    resource: Resource,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    metrics: TraceMetrics,
    /// Whether the last batch did not arrive, which was said.
    failing: bool,
}

/// Why a batch did not arrive.
struct Refused {
    why: String,
    /// Whether it may arrive when it is sent again, and when at the earliest.
    again: Option<Duration>,
}

impl Refused {
    const fn for_good(why: String) -> Self {
        Self { why, again: None }
    }

    const fn for_now(why: String) -> Self {
        Self { why, again: Some(Duration::ZERO) }
    }
}

impl Exporter {
    #[expect(
        clippy::expect_used,
        reason = "the provider is compiled in and has the cipher suites of TLS 1.2 and 1.3"
    )]
    pub(super) fn new(settings: TraceSettings, metrics: TraceMetrics) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(REQUEST));
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .expect("TLS 1.2 and 1.3 are available")
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let mut headers = settings.headers;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let agent = concat!("switchyard/", env!("CARGO_PKG_VERSION"));
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(agent));
        Self {
            address: settings.address,
            headers,
            resource: Resource::new(settings.resource),
            client: Client::builder(TokioExecutor::new()).build(connector),
            metrics,
            failing: false,
        }
    }

    /// Sends what comes until it is told to end, or nobody is left who could record.
    pub(super) async fn run(mut self, mut spans: Receiver<Span>, signals: Signals) {
        let aborted = signals.abort.clone();
        let mut batch = Vec::with_capacity(BATCH);
        tokio::select! {
            () = self.send_all(&mut spans, &mut batch, &signals.ending) => {}
            () = aborted.cancelled() => {
                spans.close();
                self.metrics.dropped(batch.len().saturating_add(spans.len()));
            }
        }
        signals.ended.cancel();
    }

    async fn send_all(
        &mut self,
        spans: &mut Receiver<Span>,
        batch: &mut Vec<Span>,
        ending: &CancellationToken,
    ) {
        loop {
            tokio::select! {
                biased;
                () = ending.cancelled() => break,
                count = spans.recv_many(batch, BATCH) => if count == 0 { return },
            }
            tokio::select! {
                () = ending.cancelled() => {}
                () = gather(spans, batch) => {}
            }
            self.deliver(batch, ending).await;
            batch.clear();
        }
        // Nobody can add to what is sent now.
        spans.close();
        while spans.recv_many(batch, BATCH).await > 0 {
            self.deliver(batch, ending).await;
            batch.clear();
        }
    }

    /// Sends a batch, as often as it takes.
    async fn deliver(&mut self, batch: &[Span], ending: &CancellationToken) {
        let body = Bytes::from(wire::encode(&self.resource, batch));
        let mut wait = FIRST_WAIT;
        for left in (0..=AGAIN).rev() {
            let refused = match self.post(body.clone()).await {
                Ok(rejected) => return self.arrived(batch.len(), rejected),
                Err(refused) => refused,
            };
            self.failed(&refused.why);
            let Some(earliest) = refused.again.filter(|_| left > 0 && !ending.is_cancelled())
            else {
                break;
            };
            // Others that lost the same collector come back at other times.
            let spread = wait.mul_f64(0.75 + 0.5 * fastrand::f64());
            tokio::select! {
                // Once more at once; there is no later.
                () = ending.cancelled() => {}
                () = tokio::time::sleep(spread.max(earliest.min(LONGEST_WAIT))) => {}
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        self.metrics.failed(batch.len());
    }

    fn arrived(&mut self, count: usize, rejected: Option<(usize, String)>) {
        let (refused, why) = rejected.unwrap_or_default();
        let refused = refused.min(count);
        self.metrics.exported(count - refused);
        self.metrics.failed(refused);
        if refused > 0 {
            return self.failed(&format!("it refused {refused} of {count} spans: {why}"));
        }
        if std::mem::take(&mut self.failing) {
            tracing::info!(otlp.address = %self.address, "spans arrive at {} again", self.address);
        }
    }

    /// Says so once, until it is over.
    fn failed(&mut self, why: &str) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                otlp.address = %self.address,
                error = why,
                "spans do not arrive at {}: {why}; calls are not held up, and spans that do not fit the queue are dropped",
                self.address
            );
        }
    }

    /// Posts once; gives how many of the spans were refused, and why.
    async fn post(&self, body: Bytes) -> Result<Option<(usize, String)>, Refused> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.address.clone();
        *request.headers_mut() = self.headers.clone();
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| chain(&error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER).collect().await;
            let body = body.map_err(|error| format!("its answer broke off: {error}"))?.to_bytes();
            Ok::<_, String>(Response::from_parts(head, body))
        };
        let answer = match timeout(REQUEST, exchange).await {
            Ok(answer) => answer.map_err(Refused::for_now)?,
            Err(_elapsed) => {
                return Err(Refused::for_now(format!("no answer within {} s", REQUEST.as_secs())));
            }
        };
        match answer.status() {
            status if status.is_success() => Ok(rejected(answer.body())),
            status @ (StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT) => {
                let seconds = answer.headers().get(RETRY_AFTER);
                let seconds = seconds.and_then(|value| value.to_str().ok()?.trim().parse().ok());
                let earliest = seconds.map_or(Duration::ZERO, Duration::from_secs);
                Err(Refused { why: format!("status {status}"), again: Some(earliest) })
            }
            status => Err(Refused::for_good(format!("status {status}"))),
        }
    }
}

/// Adds what comes within a short time.
async fn gather(spans: &mut Receiver<Span>, batch: &mut Vec<Span>) {
    let gathering = async {
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            if spans.recv_many(batch, room).await == 0 {
                return;
            }
        }
    };
    // A batch that is not full goes out all the same.
    let _full = timeout(GATHER, gathering).await;
}

/// What a collector says that took a batch, when it did not take all of it.
fn rejected(body: &Bytes) -> Option<(usize, String)> {
    let partial = ExportTraceServiceResponse::decode(body.clone()).ok()?.partial_success?;
    let count = usize::try_from(partial.rejected_spans).ok().filter(|count| *count > 0)?;
    Some((count, partial.error_message.chars().take(200).collect()))
}

/// An error with what it comes from: the outer one of a client says little.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
