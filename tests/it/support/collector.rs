//! [`Collector`]: a receiver of spans over OTLP, which reads them with the messages that
//! OpenTelemetry generates.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode as Status};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::TcpListener;

use super::{SOON, eventually};

/// What becomes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is taken.
    Take,
    /// It is taken but for so many.
    Refuse(i64),
    /// It is answered with this status.
    Status(u16),
    /// It is never answered.
    Hang,
}

/// A span with what stands around it.
#[derive(Debug, Clone)]
pub struct Received {
    pub span: Span,
    pub resource: Vec<KeyValue>,
    pub scope: String,
}

/// The receiver. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Collector {
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    verdict: Mutex<Verdict>,
    spans: Mutex<Vec<Received>>,
    requests: Mutex<Vec<HeaderMap>>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            verdict: Mutex::new(Verdict::Take),
            spans: Mutex::default(),
            requests: Mutex::default(),
        });
        let app = axum::Router::new().fallback(take).with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, inner }
    }

    /// The lines of a configuration that send spans to it.
    pub fn yaml(&self) -> String {
        format!("otlp_endpoint: http://{}/base/\n", self.address)
    }

    pub fn set(&self, verdict: Verdict) {
        *self.inner.verdict.lock() = verdict;
    }

    /// Everything that was taken.
    pub fn spans(&self) -> Vec<Received> {
        self.inner.spans.lock().clone()
    }

    /// The headers of each request, refused ones included.
    pub fn requests(&self) -> Vec<HeaderMap> {
        self.inner.requests.lock().clone()
    }

    /// The spans of a trace, once there are `count` of them, in the order in which they began.
    pub async fn trace(&self, trace: &str, count: usize) -> Vec<Received> {
        let what = format!("{count} spans of {trace}");
        let mut found = eventually(SOON, &what, || async {
            let spans = self.spans();
            let of: Vec<Received> = spans.into_iter().filter(|got| got.trace() == trace).collect();
            (of.len() >= count).then_some(of)
        })
        .await;
        assert_eq!(found.len(), count, "{found:?}");
        found.sort_by_key(|got| got.span.start_time_unix_nano);
        found
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    let of: Vec<&KeyValue> = attributes.iter().filter(|known| known.key == name).collect();
    assert!(of.len() <= 1, "{name} stands twice in {attributes:?}");
    match of.first()?.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{name}: {other:?}"),
    }
}

impl Received {
    pub fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// The id of its parent; empty for none.
    pub fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    /// The traces it is linked to.
    pub fn links(&self) -> Vec<String> {
        self.span.links.iter().map(|link| hex(&link.trace_id)).collect()
    }

    pub fn is_server(&self) -> bool {
        self.span.kind == SpanKind::Server as i32
    }

    pub fn is_client(&self) -> bool {
        self.span.kind == SpanKind::Client as i32
    }

    pub fn has_failed(&self) -> bool {
        self.span.status.as_ref().is_some_and(|status| status.code == Status::Error as i32)
    }

    /// An attribute as text.
    pub fn get(&self, name: &str) -> Option<String> {
        text(&self.span.attributes, name)
    }

    pub fn resource(&self, name: &str) -> Option<String> {
        text(&self.resource, name)
    }
}

async fn take(
    State(inner): State<Arc<Inner>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    assert_eq!(uri.path(), "/base/v1/traces");
    assert_eq!(headers["content-type"], "application/x-protobuf");
    inner.requests.lock().push(headers);
    let request = ExportTraceServiceRequest::decode(body).expect("a request of OTLP");
    let verdict = *inner.verdict.lock();
    let refused = match verdict {
        Verdict::Take => 0,
        Verdict::Refuse(count) => count,
        Verdict::Status(status) => {
            return StatusCode::from_u16(status).unwrap().into_response();
        }
        Verdict::Hang => std::future::pending().await,
    };
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        for of_scope in of_resource.scope_spans {
            let scope = of_scope.scope.map(|scope| scope.name).unwrap_or_default();
            let spans = of_scope.spans.into_iter().map(|span| {
                let (resource, scope) = (resource.clone(), scope.clone());
                Received { span, resource, scope }
            });
            inner.spans.lock().extend(spans);
        }
    }
    let partial = ExportTracePartialSuccess {
        rejected_spans: refused,
        error_message: "too \x1b[31mmany\r\nof them".to_owned(),
    };
    let answer = ExportTraceServiceResponse { partial_success: (refused > 0).then_some(partial) };
    ([("content-type", "application/x-protobuf")], answer.encode_to_vec()).into_response()
}
