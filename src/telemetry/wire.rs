//! Spans as OTLP has them: the messages of `ExportTraceServiceRequest`, as far as we fill them.
//!
//! Changes when OTLP or what we say in it does. Source: opentelemetry-proto 1.x,
//! `collector/trace/v1/trace_service.proto` and what it includes; a field keeps its number for good.
//! Tests decode what this makes with the messages that OpenTelemetry generates.

use prost::Message;

use super::{Span, SpanKind, Value};
use crate::model::TraceContext;

#[derive(Clone, PartialEq, Message)]
pub(super) struct ExportTraceServiceRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

/// What is said of this process.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<InstrumentationScope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<WireSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct InstrumentationScope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Link {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(fixed32, tag = "6")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "AnyKind", tags = "1, 3")]
    value: Option<AnyKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum AnyKind {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Integer(i64),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ExportTraceServiceResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub(super) rejected_spans: i64,
    #[prost(string, tag = "2")]
    pub(super) error_message: String,
}

const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const STATUS_ERROR: i32 = 2;
/// It is said whether the parent is of another process, and it is (`SpanFlags`).
const KNOWN_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

impl Resource {
    pub(super) fn new(said: Vec<(String, String)>) -> Self {
        let text = |(key, value)| KeyValue::new(key, AnyKind::Text(value));
        Self { attributes: said.into_iter().map(text).collect() }
    }
}

impl KeyValue {
    fn new(key: String, value: AnyKind) -> Self {
        Self { key, value: Some(AnyValue { value: Some(value) }) }
    }
}

/// A whole request with these spans.
pub(super) fn encode(resource: &Resource, spans: &[Span]) -> Vec<u8> {
    let scope = InstrumentationScope {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let spans = spans.iter().map(WireSpan::new).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    let resource_spans = vec![ResourceSpans { resource: Some(resource.clone()), scope_spans }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

impl WireSpan {
    fn new(span: &Span) -> Self {
        let nanos = |since_epoch: std::time::Duration| {
            u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
        };
        let remote = if span.has_remote_parent { IS_REMOTE } else { 0 };
        let said = &span.said;
        Self {
            trace_id: span.context.trace.as_bytes().to_vec(),
            span_id: span.context.span.as_bytes().to_vec(),
            trace_state: span.state.as_deref().unwrap_or_default().to_owned(),
            parent_span_id: span.parent.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
            flags: u32::from(span.context.flags()) | KNOWN_REMOTE | remote,
            name: match &said.target {
                Some(target) => format!("{} {target}", said.method),
                None => said.method.to_owned(),
            },
            kind: match span.kind {
                SpanKind::Server => SERVER,
                SpanKind::Client => CLIENT,
            },
            start_time_unix_nano: nanos(span.began),
            end_time_unix_nano: nanos(span.ended),
            attributes: said.attributes.iter().map(|(key, value)| attribute(key, value)).collect(),
            links: span.link.into_iter().map(Link::new).collect(),
            status: said.failed.then_some(Status { code: STATUS_ERROR }),
        }
    }
}

impl Link {
    fn new(to: TraceContext) -> Self {
        Self {
            trace_id: to.trace.as_bytes().to_vec(),
            span_id: to.span.as_bytes().to_vec(),
            flags: u32::from(to.flags()) | KNOWN_REMOTE | IS_REMOTE,
        }
    }
}

fn attribute(key: &str, value: &Value) -> KeyValue {
    let value = match value {
        Value::Static(text) => AnyKind::Text((*text).to_owned()),
        Value::Shared(text) => AnyKind::Text(text.as_ref().to_owned()),
        Value::Text(text) => AnyKind::Text(text.clone()),
        Value::Integer(number) => AnyKind::Integer(*number),
    };
    KeyValue::new(key.to_owned(), value)
}
