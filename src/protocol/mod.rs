//! JSON-RPC and MCP messages of both eras: bytes in, values out.
//!
//! Changes when the wire format does. Knows nothing of sockets, clocks or the router: everything
//! here is a function of its arguments. Arguments and results stay raw bytes throughout.

mod answer;
mod client;
mod decimal;
mod definition_shape;
mod incoming;
mod input_required;
mod list;
mod names;
mod object;
mod outgoing;
mod param_headers;
mod shape;
mod splice;
mod sse;
mod tool;

pub use answer::{Answer, AnswerError, AnswerKind, HttpRefusal, MessageKind, message_kind};
pub use client::{ClientAbilities, LogLevel, declared_abilities, log_level};
pub use incoming::{
    CallParams, Incoming, IncomingError, ModernMeta, RequestId, RequestMeta, RpcErrorCode, batch,
    error_response, is_batch, push_head, result_response,
};
pub use input_required::{InputRequest, InputRequired, reference_to};
pub use list::{Listed, ListedError, ListedPage, with_member};
pub use names::{
    CLIENT_CAPABILITIES, CLIENT_INFO, HeaderDecodeError, LOG_LEVEL, PROTOCOL_VERSION, RESERVED,
    SERVER_INFO, SUBSCRIPTION_ID, decode_header, encode_header,
};
pub use object::{ObjectError, RawObject};
pub use outgoing::{
    IDEMPOTENCY_KEY, OutgoingRequest, PeerIdentity, SERVER_QUESTION, render_notification,
    server_question,
};
pub use param_headers::{HeaderPresence, ParamHeaderError, ParamHeaderRule, ParamHeaders};
pub use shape::{ResultFacts, cacheable_result_for, error_for, first_text, result_for};
pub use sse::{SseError, SseEvent, SseParser};
pub use tool::{ToolDefinition, ToolDefinitionError, ToolList, canonical_json};
