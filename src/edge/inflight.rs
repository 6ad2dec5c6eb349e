//! [`InFlight`]: requests being answered right now, counted until the last byte of an answer is made.
//!
//! Changes when what counts as being answered does.

use std::borrow::Borrow;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::Response;
use http_body_util::Either;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prometheus::IntGauge;

use super::door;

/// Marks an answer that is still being made while its body is sent. Streams that clients listen to are
/// no such answers: nothing is under way on them.
#[derive(Debug, Clone, Copy)]
pub(super) struct GoesOn;

/// Counts a request for as long as it lives.
#[derive(Debug)]
pub(super) struct InFlight<G: Borrow<IntGauge>>(G);

impl<G: Borrow<IntGauge>> InFlight<G> {
    pub(super) fn new(gauge: G) -> Self {
        gauge.borrow().inc();
        Self(gauge)
    }
}

impl<G: Borrow<IntGauge>> Drop for InFlight<G> {
    fn drop(&mut self) {
        self.0.borrow().dec();
    }
}

/// Counts an answer that is still being made to its end; most are made.
pub(super) fn until_its_end(
    response: Response<door::Body>,
    gauge: &IntGauge,
) -> Response<door::Body> {
    if response.extensions().get::<GoesOn>().is_none() {
        return response;
    }
    let inflight = InFlight::new(gauge.clone());
    response.map(|body| match body {
        Either::Right(body) => Either::Right(Body::new(Counted { body, _inflight: inflight })),
        whole @ Either::Left(_) => whole,
    })
}

/// A body whose request is counted until it has ended or nobody reads it any more.
struct Counted {
    body: Body,
    _inflight: InFlight<IntGauge>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
