//! [`Tracer`]: spans of what clients ask for, sent to a collector over OTLP.
//!
//! Changes when it changes which spans are recorded or how they reach the task that sends them. What
//! a span says of a call is the router's; how it looks on the wire is `wire`'s; sending is `export`'s.
//!
//! Recording costs a call the building of a span and one `try_send`: a full queue drops the span and
//! counts it.

mod export;
mod wire;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::{HeaderMap, Uri};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::metrics::TraceMetrics;
use crate::model::{CallerTrace, OutgoingTrace, SpanId, TraceContext, TraceId, Uptime};

/// Spans that wait to be sent at most; one is about a kilobyte.
const QUEUE: usize = 4096;

/// Where spans go and which ones.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// Where batches are posted: `{base}/v1/traces`.
    pub address: Uri,
    /// Further headers of each request, the values marked as sensitive.
    pub headers: HeaderMap,
    /// The share of traces that begin here and are recorded, 0 to 1.
    pub sample: f64,
    /// What is said of this process.
    pub resource: Vec<(String, String)>,
}

/// Records spans. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Tracer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: mpsc::Sender<Span>,
    metrics: TraceMetrics,
    sample: Sample,
    signals: Signals,
}

/// What the task that sends is told, and what it tells.
#[derive(Debug, Clone, Default)]
struct Signals {
    /// Send what is there and end.
    ending: CancellationToken,
    /// End at once.
    abort: CancellationToken,
    /// It has ended.
    ended: CancellationToken,
}

/// Which of the traces that begin here are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sample {
    All,
    /// Those whose number is below; see [`Sample::takes`].
    Below(u64),
}

impl Sample {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of 2^63 is within u64, and one in 2^53 of it does not matter"
    )]
    fn of(ratio: f64) -> Self {
        if ratio >= 1.0 {
            Self::All
        } else {
            Self::Below((ratio.max(0.0) * (1_u64 << 63) as f64) as u64)
        }
    }

    /// As OpenTelemetry's `TraceIdRatioBased` decides it, so that others with the same ratio take the
    /// same traces.
    fn takes(self, trace: TraceId) -> bool {
        match self {
            Self::All => true,
            Self::Below(bound) => {
                let low = trace.as_bytes().iter().skip(8);
                let number = low.fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
                number >> 1 < bound
            }
        }
    }
}

impl Tracer {
    /// Begins to record; what is recorded is sent by a task on `tasks`.
    #[must_use]
    pub fn start(settings: TraceSettings, metrics: TraceMetrics, tasks: &TaskTracker) -> Self {
        let (queue, spans) = mpsc::channel(QUEUE);
        let signals = Signals::default();
        let sample = Sample::of(settings.sample);
        let exporter = export::Exporter::new(settings, metrics.clone());
        tasks.spawn(exporter.run(spans, signals.clone()));
        Self(Arc::new(Inner { queue, metrics, sample, signals }))
    }

    /// Sends what waits, for at most `limit`, and ends. What is recorded later is dropped.
    pub async fn close(&self, limit: Duration) {
        let signals = &self.0.signals;
        signals.ending.cancel();
        if tokio::time::timeout(limit, signals.ended.cancelled()).await.is_err() {
            signals.abort.cancel();
            signals.ended.cancelled().await;
        }
    }

    /// The beginning of an operation that `caller` asked for; `None` where its caller's trace goes
    /// on as it came, because the caller does not record it.
    #[must_use]
    pub fn begin(&self, caller: Option<&CallerTrace>) -> Option<Operation> {
        let parent = caller.and_then(|caller| caller.context);
        let span = new_span();
        let context = match parent {
            Some(parent) if parent.is_sampled() => parent.from_span(span),
            Some(_) => return None,
            None => {
                let trace = new_trace();
                TraceContext::root(trace, span, self.0.sample.takes(trace))
            }
        };
        Some(Operation {
            tracer: self.clone(),
            context,
            parent: parent.map(|parent| parent.span),
            around: caller.and_then(|caller| caller.around),
            state: caller.and_then(|caller| caller.state.clone()),
            began: clock::uptime(),
            began_at: clock::since_epoch(),
            sent_as: AtomicU64::new(0),
        })
    }

    fn record(&self, span: Span) {
        // Also when the task has ended: then nobody will send it any more.
        if self.0.queue.try_send(span).is_err() {
            self.0.metrics.dropped(1);
        }
    }
}

fn new_trace() -> TraceId {
    loop {
        if let Some(trace) = TraceId::from_bytes(fastrand::u128(..).to_be_bytes()) {
            return trace;
        }
    }
}

fn new_span() -> SpanId {
    loop {
        if let Some(span) = SpanId::from_bytes(fastrand::u64(..).to_be_bytes()) {
            return span;
        }
    }
}

/// What a client asked for, while it is under way: the span of kind SERVER, to be.
#[derive(Debug)]
pub struct Operation {
    tracer: Tracer,
    context: TraceContext,
    parent: Option<SpanId>,
    /// What the HTTP request around it belongs to, where that is something else.
    around: Option<TraceContext>,
    state: Option<Arc<str>>,
    began: Uptime,
    /// The same since 1970.
    began_at: Duration,
    /// The id with which the last request went to a server; 0 before.
    pub sent_as: AtomicU64,
}

impl Operation {
    /// The trace that it is recorded in.
    #[must_use]
    pub fn trace(&self) -> Option<TraceId> {
        self.context.is_sampled().then_some(self.context.trace)
    }

    /// The id for an attempt at a server; `None` when it is not recorded.
    #[must_use]
    pub fn attempt(&self) -> Option<SpanId> {
        self.context.is_sampled().then(new_span)
    }

    /// What a request to a server says, sent from the span of an attempt.
    #[must_use]
    pub fn outgoing<'a>(
        &'a self,
        attempt: Option<SpanId>,
        baggage: Option<&'a str>,
    ) -> OutgoingTrace<'a> {
        let context = attempt.map_or(self.context, |attempt| self.context.from_span(attempt));
        OutgoingTrace { context: Some(context), state: self.state.as_deref(), baggage }
    }

    /// Records an attempt at a server.
    pub fn attempted(&self, attempt: SpanId, began: Uptime, ended: Uptime, said: Said) {
        self.record(Span {
            context: self.context.from_span(attempt),
            parent: Some(self.context.span),
            has_remote_parent: false,
            link: None,
            state: self.state.clone(),
            kind: SpanKind::Client,
            began: self.at(began),
            ended: self.at(ended),
            said,
        });
    }

    /// Records the operation itself, which is over.
    pub fn ends(&self, ended: Uptime, said: Said) {
        self.record(Span {
            context: self.context,
            parent: self.parent,
            has_remote_parent: self.parent.is_some(),
            link: self.around,
            state: self.state.clone(),
            kind: SpanKind::Server,
            began: self.began_at,
            ended: self.at(ended),
            said,
        });
    }

    fn at(&self, time: Uptime) -> Duration {
        self.began_at.saturating_add(time.since(self.began))
    }

    fn record(&self, span: Span) {
        if self.context.is_sampled() {
            self.tracer.record(span);
        }
    }
}

/// What a span says.
#[derive(Debug, Clone)]
pub struct Said {
    /// The method; the first word of the name.
    pub method: &'static str,
    /// The rest of the name, from a closed set.
    pub target: Option<Arc<str>>,
    /// Whether it failed.
    pub failed: bool,
    /// Everything else.
    pub attributes: Vec<(&'static str, Value)>,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text of ours.
    Static(&'static str),
    /// A text that others have, too.
    Shared(Arc<str>),
    /// A text made for this.
    Text(String),
    /// A number.
    Integer(i64),
}

/// One span, finished.
#[derive(Debug)]
struct Span {
    context: TraceContext,
    parent: Option<SpanId>,
    /// Whether the parent is of another process.
    has_remote_parent: bool,
    /// A span of another process, to which it belongs as well.
    link: Option<TraceContext>,
    state: Option<Arc<str>>,
    kind: SpanKind,
    /// Since 1970.
    began: Duration,
    ended: Duration,
    said: Said,
}

#[derive(Debug, Clone, Copy)]
enum SpanKind {
    Server,
    Client,
}

/// What is said of this process: `service.name`, `service.version`, `service.instance.id`, and what
/// `OTEL_RESOURCE_ATTRIBUTES` says; `OTEL_SERVICE_NAME` wins over all (OpenTelemetry, "Resource SDK").
#[must_use]
pub fn resource(
    instance: String,
    variable: impl Fn(&str) -> Option<String>,
) -> Vec<(String, String)> {
    let mut all = vec![
        ("service.name".to_owned(), "switchyard".to_owned()),
        ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id".to_owned(), instance),
    ];
    let mut set =
        |name: String, value: String| match all.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => all.push((name, value)),
        };
    let said = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    for pair in said.split(',') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        let (name, value) = (unescaped(name.trim()), unescaped(value.trim()));
        if !name.is_empty() {
            set(name, value);
        }
    }
    if let Some(name) = variable("OTEL_SERVICE_NAME").filter(|name| !name.is_empty()) {
        set("service.name".to_owned(), name);
    }
    all
}

/// The text with `%XX` replaced, as in W3C Baggage.
fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let escaped = more.get(..2).filter(|_| *first == b'%').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        match escaped {
            Some(byte) => {
                out.push(byte);
                rest = more.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_traces_is_taken_and_always_the_same() {
        let trace = |low: u64| {
            let mut bytes = [1; 16];
            bytes[8..].copy_from_slice(&low.to_be_bytes());
            TraceId::from_bytes(bytes).unwrap()
        };
        let half = Sample::of(0.5);
        assert!(half.takes(trace(0)) && half.takes(trace((1 << 63) - 1)));
        assert!(!half.takes(trace(1 << 63)) && !half.takes(trace(u64::MAX)));
        assert!(Sample::of(1.0).takes(trace(u64::MAX)));
        assert!(!Sample::of(0.0).takes(trace(0)));
        let taken = (0..10_000).filter(|_| Sample::of(0.1).takes(new_trace())).count();
        assert!((700..1300).contains(&taken), "{taken}");
    }

    /// Thousands of them may wait, and a state may be four kilobytes.
    #[test]
    fn spans_share_the_state_of_their_caller() {
        let (queue, mut spans) = mpsc::channel(2);
        let metrics = crate::metrics::Metrics::new().unwrap().traces.clone();
        let (sample, signals) = (Sample::All, Signals::default());
        let tracer = Tracer(Arc::new(Inner { queue, metrics, sample, signals }));
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let caller = CallerTrace::read(&crate::model::TraceFields {
            traceparent: Some(parent.into()),
            tracestate: Some("a=1".into()),
            baggage: None,
        });
        let caller = caller.unwrap();
        let operation = tracer.begin(Some(&caller)).unwrap();
        let said = || Said { method: "m", target: None, failed: false, attributes: Vec::new() };
        let now = clock::uptime();
        operation.attempted(operation.attempt().unwrap(), now, now, said());
        operation.ends(now, said());
        for _ in 0..2 {
            let state = spans.try_recv().unwrap().state.unwrap();
            assert!(Arc::ptr_eq(&state, caller.state.as_ref().unwrap()));
        }
    }

    #[test]
    fn the_environment_says_more_of_the_process() {
        let of = |attributes: &'static str, name: &'static str| {
            resource("7".to_owned(), move |variable| match variable {
                "OTEL_RESOURCE_ATTRIBUTES" => Some(attributes.to_owned()),
                "OTEL_SERVICE_NAME" => Some(name.to_owned()),
                _ => None,
            })
        };
        let value = |all: &[(String, String)], name: &str| {
            let of: Vec<_> = all.iter().filter(|(known, _)| known == name).collect();
            assert!(of.len() <= 1, "{all:?}");
            of.first().map(|(_, value)| value.clone())
        };
        let usual = of("", "");
        assert_eq!(value(&usual, "service.name").as_deref(), Some("switchyard"));
        assert_eq!(value(&usual, "service.instance.id").as_deref(), Some("7"));
        let said = of("service.name=a, deployment.environment=pro%2Cd%,nonsense,=x", "");
        assert_eq!(value(&said, "service.name").as_deref(), Some("a"));
        assert_eq!(value(&said, "deployment.environment").as_deref(), Some("pro,d%"));
        assert_eq!(value(&of("service.name=a", "b"), "service.name").as_deref(), Some("b"));
    }
}
