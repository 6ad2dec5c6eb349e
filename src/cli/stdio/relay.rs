//! [`Relay`]: takes one message to the router and its answer back, through restarts.
//!
//! Changes when it is decided anew what may be said twice, or how long to wait for a router. The
//! rule: a message that may have arrived is never repeated, unless repeating it does nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{Method, StatusCode};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::answers::{Answers, within};
use super::message::{Message, Reply};
use super::pipe::one_line;
use super::session::{Handshake, Session};
use super::tools::{self, Known, Tools};
use super::trouble::Trouble;
use crate::cli::client::{Ask, CALL_PATIENCE, Client, Problem};
use crate::clock;
use crate::model::{ProtocolVersion, Uptime};
use crate::protocol::{OutgoingRequest, RpcErrorCode, result_response};

/// How long a router that was there may be away: a restart takes a few seconds at most.
const AWAY: Duration = Duration::from_secs(30);
/// How long after our start a router may come, for both may be started together.
const START: Duration = Duration::from_secs(5);
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// The router's own answers, which need no server.
const OWN_PATIENCE: Duration = Duration::from_secs(30);
/// The end of a session may not hold up ours.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Between two streams of server messages. The second bound is for routers that keep closing them.
const FIRST_REOPEN: Duration = Duration::from_millis(500);
const LAST_REOPEN: Duration = Duration::from_secs(10);
/// Pages of a list that we ask for ourselves.
const MOST_PAGES: usize = 100;
const BOTH: &str = "application/json, text/event-stream";
const INITIALIZED: &[u8] = br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

/// What all messages of one client share.
pub(super) struct Relay {
    client: Client,
    path: Vec<String>,
    out: mpsc::Sender<Bytes>,
    session: Session,
    tools: Tools,
    reached: AtomicBool,
    started: Uptime,
}

impl Relay {
    /// Takes messages to the endpoint at `path` and writes to `out`.
    pub(super) fn new(client: Client, path: Vec<String>, out: mpsc::Sender<Bytes>) -> Self {
        Self {
            client,
            path,
            out,
            session: Session::new(),
            tools: Tools::new(),
            reached: AtomicBool::new(false),
            started: clock::uptime(),
        }
    }

    /// Takes a message to the router and writes all that comes back. A request gets an answer in
    /// any case. `waiting` is true while the message has not left us. Dropping the future closes
    /// the connection, which in the modern era cancels the request.
    ///
    /// What goes wrong with a request that is `abandoned` meanwhile is no answer to it.
    pub(super) async fn deliver(
        &self,
        message: &Message,
        waiting: &AtomicBool,
        abandoned: &AtomicBool,
    ) {
        let Err(trouble) = self.persist(message, waiting).await else { return };
        if abandoned.load(Ordering::Relaxed) {
            return;
        }
        if let Some(id) = &message.id {
            // Fails only when the client is gone, which the reader of stdin notices, too.
            let _ = self.say(trouble.answer(id).into()).await;
        } else if !matches!(trouble, Trouble::ClientGone) {
            let what = if message.method.is_empty() { "an answer" } else { &message.method };
            tracing::warn!("`{what}` was not delivered: {}", trouble.text());
        }
    }

    async fn persist(&self, message: &Message, waiting: &AtomicBool) -> Result<(), Trouble> {
        let began = clock::uptime();
        let mut wait = FIRST_WAIT;
        let (mut renewed, mut relearned) = (false, false);
        loop {
            waiting.store(false, Ordering::Relaxed);
            let trouble = match self.attempt(message, relearned).await {
                Ok(()) => return Ok(()),
                // An answer to a request of a session that is gone has no receiver any more.
                Err(Trouble::SessionGone(generation)) if !renewed && !message.method.is_empty() => {
                    match self.renew(generation).await {
                        // The renewal has said it.
                        Ok(()) if message.method == "notifications/initialized" => return Ok(()),
                        Ok(()) => {
                            renewed = true;
                            continue;
                        }
                        // The message itself was not run, whatever became of the handshake.
                        Err(Trouble::Lost(text)) => Trouble::Unreachable(text),
                        Err(trouble) => trouble,
                    }
                }
                Err(Trouble::HeadersDiffer) => {
                    relearned = true;
                    message.called_tool().into_iter().for_each(|tool| self.tools.forget(tool));
                    continue;
                }
                Err(trouble) => trouble,
            };
            let again = match &trouble {
                Trouble::Unreachable(_) => true,
                Trouble::Lost(_) => message.is_repeatable(),
                _ => false,
            };
            let last = if self.reached.load(Ordering::Relaxed) {
                began.plus(AWAY)
            } else {
                self.started.plus(START)
            };
            if !again || clock::uptime().plus(wait) > last {
                return Err(trouble);
            }
            tracing::debug!("trying again in {wait:?}: {}", trouble.text());
            waiting.store(true, Ordering::Relaxed);
            sleep(wait).await;
            wait = wait.saturating_mul(2).min(LONGEST_WAIT);
        }
    }

    async fn attempt(&self, message: &Message, relearned: bool) -> Result<(), Trouble> {
        let in_session = message.modern.is_none() && message.method != "initialize";
        let handshake = if in_session { self.session.current() } else { None };
        let more = self.param_headers(message).await;
        let mut answers = self.post(message, handshake.as_ref(), more).await?;
        let status = answers.status;
        if let Some(handshake) = &handshake
            && handshake.id.is_some()
            && status == StatusCode::NOT_FOUND
        {
            return Err(Trouble::SessionGone(handshake.generation));
        }
        let Some(id) = &message.id else {
            if status.is_success() {
                return Ok(());
            }
            let body = answers.next().await?.map(|(body, _)| body).unwrap_or_default();
            return Err(refusal(status, &body));
        };
        while let Some((data, _)) = answers.next().await? {
            let Some(reply) = Reply::parse(&data).filter(Reply::is_message) else {
                if answers.is_stream() {
                    tracing::warn!("the router sent what is no message; it is left out");
                    continue;
                }
                return Err(refusal(status, &data));
            };
            let differ = reply.error_code() == Some(RpcErrorCode::HeaderMismatch.number());
            // Only the router's own refusal, which comes before anything runs.
            let refused = status == StatusCode::BAD_REQUEST && !answers.is_stream();
            if differ && refused && !relearned && message.called_tool().is_some() {
                return Err(Trouble::HeadersDiffer);
            }
            if reply.answers(id) {
                self.note(message, &reply, answers.session.take()).await;
                return self.say(one_line(data)).await;
            }
            if answers.is_stream() {
                self.say(one_line(data)).await?;
            } else if let Some(error) = reply.error {
                // A refusal before the id was read; its sender must know it for an answer.
                let error = result_response(id, "error", error.get().as_bytes());
                return self.say(one_line(error.into())).await;
            } else {
                return Err(Trouble::Failed("the router answered something else".to_owned()));
            }
        }
        Err(Trouble::Lost("the router ended its answer before it was complete".to_owned()))
    }

    /// Remembers what an answer means for later messages.
    async fn note(&self, message: &Message, reply: &Reply<'_>, session: Option<String>) {
        let Some(result) = reply.result else { return };
        if message.method == "initialize" {
            let version = reply.result_text("protocolVersion");
            let replaced = self.session.begin(message.body.clone(), session, version);
            if let Some(replaced) = replaced {
                self.end(&replaced).await;
            }
        } else if message.method == "tools/list" && message.modern.is_some() {
            self.tools.learn(result);
        }
    }

    /// Writes a line.
    async fn say(&self, line: Bytes) -> Result<(), Trouble> {
        self.out.send(line).await.map_err(|_closed| Trouble::ClientGone)
    }

    fn ask(&self, method: Method) -> Ask {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        Ask::new(method, &path)
    }

    async fn post(
        &self,
        message: &Message,
        handshake: Option<&Handshake>,
        more: Vec<(String, String)>,
    ) -> Result<Answers, Trouble> {
        let mut ask = self.ask(Method::POST).header(ACCEPT.as_str(), BOTH);
        for (name, value) in handshake.into_iter().flat_map(Handshake::headers) {
            ask = ask.header(name, value);
        }
        for (name, value) in message.headers() {
            ask = ask.header(name, value);
        }
        for (name, value) in more {
            ask = ask.header(name, value);
        }
        let patience = (!message.is_open_ended()).then_some(CALL_PATIENCE);
        let asked = self.client.open(ask.json(message.body.clone()));
        let response = within(patience, asked).await??;
        self.reached.store(true, Ordering::Relaxed);
        Ok(Answers::new(response, patience))
    }

    /// Asks something of our own; gives the answer and the session it opens.
    async fn inquire(&self, message: &Message) -> Result<(Bytes, Option<String>), Trouble> {
        let inquiry = async {
            let mut answers = self.post(message, None, Vec::new()).await?;
            let id = message.id.as_deref().unwrap_or_default();
            while let Some((data, _)) = answers.next().await? {
                if Reply::parse(&data).is_some_and(|reply| reply.answers(id)) {
                    return Ok((data, answers.session.take()));
                }
                if !answers.is_stream() {
                    return Err(refusal(answers.status, &data));
                }
            }
            Err(Trouble::Lost("the router ended its answer before it was complete".to_owned()))
        };
        within(Some(OWN_PATIENCE), inquiry).await?
    }

    /// Shakes hands again as the client did, because the router has forgotten that.
    async fn renew(&self, generation: u64) -> Result<(), Trouble> {
        let Some((_permit, old)) = self.session.renewal(generation).await else { return Ok(()) };
        let opening = Message::parse(old.opening.clone())
            .map_err(|error| Trouble::Failed(error.to_string()))?;
        let (answer, id) = self.inquire(&opening).await?;
        let reply = Reply::parse(&answer).filter(|reply| reply.result.is_some());
        let Some(reply) = reply else { return Err(refusal(StatusCode::OK, &answer)) };
        let version = reply.result_text("protocolVersion");
        if version != old.version {
            tracing::warn!(
                "the router now speaks {} and not {} as before",
                version.as_deref().unwrap_or("no version"),
                old.version.as_deref().unwrap_or("no version")
            );
        }
        self.session.begin(old.opening, id, version);
        tracing::info!("the router had forgotten the session; there is a new one");
        let initialized = Message::parse(Bytes::from_static(INITIALIZED))
            .map_err(|error| Trouble::Failed(error.to_string()))?;
        let handshake = self.session.current();
        let told = self.post(&initialized, handshake.as_ref(), Vec::new());
        if let Err(trouble) = within(Some(OWN_PATIENCE), told).await? {
            tracing::warn!("the new session may be incomplete: {}", trouble.text());
        }
        Ok(())
    }

    /// The headers that repeat arguments of a modern call.
    async fn param_headers(&self, message: &Message) -> Vec<(String, String)> {
        let Some(tool) = message.called_tool() else { return Vec::new() };
        if self.tools.known(tool) == Known::Unseen
            && let Err(trouble) = self.learn_of(tool, message).await
        {
            tracing::debug!("the tools could not be listed: {}", trouble.text());
        }
        let Known::Marked(definition) = self.tools.known(tool) else { return Vec::new() };
        let arguments = message.arguments.as_deref();
        tools::param_headers(&definition, arguments.and_then(|raw| std::str::from_utf8(raw).ok()))
    }

    /// Asks for the lists until the tool is in one.
    async fn learn_of(&self, tool: &str, message: &Message) -> Result<(), Trouble> {
        let _permit = self.tools.asking.acquire().await;
        let version = message.modern.as_ref().and_then(|modern| modern.version.as_deref());
        let Some(version) = version.and_then(ProtocolVersion::parse) else { return Ok(()) };
        let mut cursor: Option<String> = None;
        for _page in 0..MOST_PAGES {
            if self.tools.known(tool) != Known::Unseen {
                return Ok(());
            }
            let request =
                OutgoingRequest { cursor: cursor.as_deref(), ..OutgoingRequest::new("tools/list") };
            let request = Message::parse(request.render(0, version).into())
                .map_err(|error| Trouble::Failed(error.to_string()))?;
            let (answer, _) = self.inquire(&request).await?;
            cursor = Reply::parse(&answer)
                .and_then(|reply| reply.result)
                .and_then(|result| self.tools.learn(result));
            if cursor.is_none() {
                break;
            }
        }
        self.tools.is_not_listed(tool);
        Ok(())
    }

    /// Passes on what the router says of itself in the legacy era, until it offers no such stream.
    pub(super) async fn listen(&self) {
        let mut last: Option<String> = None;
        let mut wait = FIRST_REOPEN;
        while let Some(handshake) = self.session.current() {
            let began = clock::uptime();
            match self.listen_once(&handshake, &mut last).await {
                Ok(Listening::NotOffered) => return,
                Ok(Listening::Ended) => {}
                Err(Trouble::SessionGone(generation)) => {
                    last = None;
                    if let Err(trouble) = self.renew(generation).await {
                        tracing::debug!("no new session yet: {}", trouble.text());
                    }
                }
                Err(Trouble::ClientGone) => return,
                Err(trouble) => tracing::debug!("no stream of server messages: {}", trouble.text()),
            }
            if clock::uptime().since(began) > LAST_REOPEN {
                wait = FIRST_REOPEN;
            }
            sleep(wait).await;
            wait = wait.saturating_mul(2).min(LAST_REOPEN);
        }
    }

    async fn listen_once(
        &self,
        handshake: &Handshake,
        last: &mut Option<String>,
    ) -> Result<Listening, Trouble> {
        let mut ask = self.ask(Method::GET).header(ACCEPT.as_str(), "text/event-stream");
        for (name, value) in handshake.headers() {
            ask = ask.header(name, value);
        }
        if let Some(last) = last.as_deref() {
            ask = ask.header("last-event-id", last);
        }
        let mut answers = Answers::new(self.client.open(ask).await?, None);
        if answers.status == StatusCode::NOT_FOUND && handshake.id.is_some() {
            return Err(Trouble::SessionGone(handshake.generation));
        }
        if answers.status.is_client_error() || answers.status.is_success() && !answers.is_stream() {
            return Ok(Listening::NotOffered);
        }
        if !answers.is_stream() {
            return Ok(Listening::Ended);
        }
        while let Some((data, id)) = answers.next().await? {
            if Reply::parse(&data).is_some_and(|reply| reply.is_message()) {
                self.say(one_line(data)).await?;
            }
            if id.is_some() {
                *last = id;
            }
        }
        Ok(Listening::Ended)
    }

    /// Waits until the client reads no more.
    pub(super) async fn client_gone(&self) {
        self.out.closed().await;
    }

    /// Writes an answer of our own, where the message never reached the relay.
    pub(super) async fn answer(&self, line: Vec<u8>) {
        let _ = self.say(line.into()).await;
    }

    /// Ends the legacy session, if there is one.
    pub(super) async fn end_session(&self) {
        if let Some(handshake) = self.session.current() {
            self.end(&handshake).await;
        }
    }

    async fn end(&self, handshake: &Handshake) {
        if handshake.id.is_none() {
            return;
        }
        let mut ask = self.ask(Method::DELETE);
        for (name, value) in handshake.headers() {
            ask = ask.header(name, value);
        }
        match within(Some(END_PATIENCE), self.client.open(ask)).await {
            Ok(Ok(_ended)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the session was not ended: {error}"),
            Err(trouble) => tracing::debug!("the session was not ended: {}", trouble.text()),
        }
    }
}

/// How a stream of server messages ended.
enum Listening {
    Ended,
    NotOffered,
}

/// What a status without a JSON-RPC message means.
fn refusal(status: StatusCode, body: &[u8]) -> Trouble {
    if status.is_success() {
        return Trouble::Failed("the router's answer is no JSON-RPC message".to_owned());
    }
    let text = Problem::read(status, body).to_string();
    match status {
        // A proxy that misses its router says so; nobody knows whether the message came through.
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Trouble::Lost(text)
        }
        _ if status.is_client_error() => Trouble::Refused(text),
        _ => Trouble::Failed(text),
    }
}
