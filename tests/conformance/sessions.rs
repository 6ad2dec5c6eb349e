//! Sessions of clients that began with a handshake: the SDK's own, but one tool's stream ends
//! before its answer is there. Changes when the SDK's session interface does.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, JsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::common::server_side_http::ServerSseMessage;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{SessionId, SessionManager};

/// The tool whose stream is closed after its first event, so that the client has to come back.
pub const CLOSED_EARLY: &str = "test_reconnection";

type Events = Pin<Box<dyn Stream<Item = ServerSseMessage> + Send + Sync>>;
type Local = LocalSessionManager;
type Failure = <Local as SessionManager>::Error;

pub struct Sessions(Local);

impl Sessions {
    pub fn new(retry: Duration) -> Self {
        let mut local = Local::default();
        local.session_config.sse_retry = Some(retry);
        Self(local)
    }
}

impl SessionManager for Sessions {
    type Error = Failure;
    type Transport = <Local as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), Failure> {
        self.0.create_session().await
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Failure> {
        self.0.initialize_session(id, message).await
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, Failure> {
        self.0.has_session(id).await
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), Failure> {
        self.0.close_session(id).await
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Failure> {
        let cut = is_closed_early(&message);
        let events = self.0.create_stream(id, message).await?;
        let events: Events = if cut { Box::pin(events.take(1)) } else { Box::pin(events) };
        Ok(events)
    }

    async fn accept_message(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<(), Failure> {
        self.0.accept_message(id, message).await
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Failure> {
        self.0.create_standalone_stream(id).await
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Failure> {
        self.0.resume(id, last_event_id).await
    }
}

fn is_closed_early(message: &ClientJsonRpcMessage) -> bool {
    let JsonRpcMessage::Request(request) = message else { return false };
    matches!(&request.request, ClientRequest::CallToolRequest(call) if call.params.name == CLOSED_EARLY)
}
