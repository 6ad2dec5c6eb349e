//! What becomes of a message: an answer that is there, one that is still to come, or none.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{Either, Full};

use super::session::Questions;
use super::stream::{self, Resumable};
use crate::edge::detach::Detached;
use crate::edge::door::Body;
use crate::protocol::{RequestId, RpcErrorCode, error_response, result_response};
use crate::router::Relay;

/// What is sent back for one message.
pub(super) enum Reply {
    /// No message, only a status.
    Empty(StatusCode),
    /// A whole JSON-RPC message.
    Message(StatusCode, Vec<u8>),
    /// A message that is still being made.
    Pending(Pending),
    /// Something that is no message of ours.
    Raw(Response<Body>),
}

/// An answer that is still being made, and what may be said before it.
pub(super) struct Pending {
    /// Makes the JSON-RPC message.
    pub(super) answer: Work,
    /// What the server says meanwhile, and the client's cancellation.
    pub(super) relay: Option<Arc<Relay>>,
    /// Takes the answers of the client to what servers ask it.
    pub(super) questions: Option<Arc<Questions>>,
    /// What a stream needs to be taken up again, where the client can do that.
    pub(super) resumable: Option<Resumable>,
}

/// A finished answer.
#[derive(Debug)]
pub(super) struct Answered {
    /// The HTTP status, where the answer is all there is.
    pub(super) status: StatusCode,
    /// The JSON-RPC message.
    pub(super) message: Vec<u8>,
}

/// Work on an answer.
pub(super) enum Work {
    /// Ends with the connection: that is how modern clients cancel.
    Bound(Pin<Box<dyn Future<Output = Answered> + Send>>),
    /// Goes on without the connection.
    Detached(Detached<Answered>),
}

impl Work {
    /// Ends the work where it stands, also work that would go on by itself.
    pub(super) fn abandon(self) {
        if let Self::Detached(work) = self {
            work.abandon();
        }
    }
}

impl Future for Work {
    type Output = Answered;

    fn poll(
        self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Answered> {
        match self.get_mut() {
            Self::Bound(work) => work.as_mut().poll(context),
            Self::Detached(work) => Pin::new(work).poll(context),
        }
    }
}

impl Reply {
    /// A result; `result` is raw JSON.
    pub(super) fn result(id: RequestId<'_>, result: &[u8]) -> Self {
        Self::Message(StatusCode::OK, result_response(id.json(), "result", result))
    }

    /// An error.
    pub(super) fn error(
        status: StatusCode,
        id: Option<RequestId<'_>>,
        code: RpcErrorCode,
        message: &str,
    ) -> Self {
        let id = id.map(|id| id.json());
        Self::Message(status, error_response(id, code.number(), message, None))
    }

    /// The answer over HTTP: one JSON object, or an event stream when something has to be said
    /// before it.
    pub(super) async fn respond(self) -> Response<Body> {
        match self {
            Self::Empty(status) => empty(status),
            Self::Message(status, message) => json(status, message),
            Self::Pending(pending) => stream::respond(pending).await,
            Self::Raw(response) => response,
        }
    }

    /// The answer as one message, for a batch; what is said before it is dropped. A request that
    /// was cancelled has none.
    pub(super) async fn message(self) -> Option<Vec<u8>> {
        match self {
            Self::Empty(_) | Self::Raw(_) => None,
            Self::Message(_, message) => Some(message),
            Self::Pending(Pending { answer: mut work, relay, .. }) => {
                let Some(relay) = relay else { return Some(work.await.message) };
                relay.close();
                tokio::select! {
                    biased;
                    answered = &mut work => Some(answered.message),
                    () = relay.cancelled() => {
                        work.abandon();
                        None
                    }
                }
            }
        }
    }
}

pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

pub(super) fn rpc_error(
    status: StatusCode,
    id: Option<&str>,
    code: RpcErrorCode,
    message: &str,
    data: Option<&str>,
) -> Response<Body> {
    json(status, error_response(id, code.number(), message, data))
}
