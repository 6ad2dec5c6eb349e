//! `switchyard stdio`: an MCP server on stdin and stdout, in front of a running router.
//!
//! Changes when the stdio binding of MCP does, or when a client expects more of a server it
//! launched. It forwards messages as bytes and decides nothing about them; a router that restarts
//! behind it is not noticed by the client.

mod answers;
mod message;
mod pipe;
mod relay;
mod session;
mod tools;
mod trouble;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::serve::Signals;
use super::{CliError, Context, Status};
use crate::protocol::{RpcErrorCode, error_response};
use message::{Message, same_id};
use pipe::Line;
use relay::Relay;

/// Messages under way. Full: stdin is not read, and the client waits on its pipe.
const IN_FLIGHT: usize = 1024;
/// How long the last answers may take when the client has closed stdin.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Arguments of `stdio`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Is an MCP server on standard input and output and forwards every message to a running router, for MCP clients that can only launch commands. The router is found as by every other command: --url with --key, else the admin socket in the data folder. Clients launch it in a folder of their own, so name the data folder by its whole path, or use --url.\n\nThe router may restart meanwhile: messages that had not been sent wait for it, and a session is begun anew without the client's knowledge. A call that may have been executed is never repeated; it gets an error that says so. Standard output carries the protocol only; logs go to standard error.",
    after_help = "Examples:\n  switchyard stdio                                    the router of ./switchyard-data\n  switchyard stdio --data-dir /var/lib/switchyard\n  switchyard stdio --url http://127.0.0.1:8300 --view research\n\nIn the configuration of a desktop client:\n  {\"mcpServers\": {\"switchyard\": {\n    \"command\": \"switchyard\",\n    \"args\": [\"stdio\", \"--url\", \"http://127.0.0.1:8300\"],\n    \"env\": {\"SWITCHYARD_KEY\": \"sy_…\"}}}}"
)]
pub(super) struct Args {
    /// The view of the router's tools to offer, instead of all of them
    #[arg(long, value_name = "NAME")]
    view: Option<String>,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Status, CliError> {
    // Before anything is read, so that no signal is lost.
    let mut signals = Signals::new()?;
    let client = context.client()?;
    tracing::debug!("forwarding to {}", client.describe());
    let mut path = vec!["mcp".to_owned()];
    path.extend(args.view.into_iter().flat_map(|view| ["v".to_owned(), view]));
    let (out, writer) = pipe::write()?;
    let mut bridge = Bridge::new(Relay::new(client, path, out));
    let mut lines = pipe::read()?;
    let relay = Arc::clone(&bridge.relay);
    let ended = tokio::select! {
        () = bridge.serve(&mut lines) => Ended::ByClient,
        () = signals.received() => Ended::BySignal,
        () = relay.client_gone() => Ended::ClientGone,
    };
    tracing::debug!("ending: {ended:?}");
    tokio::select! {
        () = bridge.drain() => {}
        () = signals.received() => {}
        () = relay.client_gone() => {}
    }
    bridge.end().await;
    relay.end_session().await;
    drop((bridge, relay));
    writer.finish().await;
    Ok(Status::Done)
}

/// Why it is time to end.
#[derive(Debug)]
enum Ended {
    ByClient,
    BySignal,
    ClientGone,
}

/// A request that has no answer yet.
struct Pending {
    serial: u64,
    modern: bool,
    /// Whether it still waits for a router, and has not left us.
    waiting: Arc<AtomicBool>,
    /// The client does not want the answer any more: it gets none, also no error, and nobody waits
    /// for it at the end.
    abandoned: Arc<AtomicBool>,
    cancel: CancellationToken,
}

type Requests = Arc<Mutex<HashMap<String, Pending>>>;

/// Takes lines and starts a task for each message.
struct Bridge {
    relay: Arc<Relay>,
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    requests: Requests,
    serial: u64,
    /// Ends every task.
    all: CancellationToken,
    /// Ends those that have no end of their own.
    streams: CancellationToken,
    /// Ends the stream of server messages of the session.
    listening: CancellationToken,
}

impl Bridge {
    fn new(relay: Relay) -> Self {
        let all = CancellationToken::new();
        let streams = all.child_token();
        Self {
            relay: Arc::new(relay),
            tasks: TaskTracker::new(),
            places: Arc::new(Semaphore::new(IN_FLIGHT)),
            requests: Requests::default(),
            serial: 0,
            listening: streams.child_token(),
            all,
            streams,
        }
    }

    /// Takes lines until there are no more.
    async fn serve(&mut self, lines: &mut mpsc::Receiver<Line>) {
        while let Ok(place) = Arc::clone(&self.places).acquire_owned().await {
            let Some(line) = lines.recv().await else { return };
            self.take(line, place).await;
        }
    }

    async fn take(&mut self, line: Line, place: OwnedSemaphorePermit) {
        let line = match line {
            Line::Whole(line) if line.trim_ascii().is_empty() => return,
            Line::Whole(line) => line,
            Line::TooLong => {
                let message = format!(
                    "a message has more than {} bytes; it was not read",
                    pipe::LONGEST_LINE
                );
                return self.refuse(None, RpcErrorCode::InvalidRequest, &message).await;
            }
        };
        let message = match Message::parse(line) {
            Ok(message) => message,
            Err(error) => {
                return self.refuse(error.id.as_deref(), error.code, &error.message).await;
            }
        };
        if message.cancels.as_deref().is_some_and(|id| self.cancel(id, &message)) {
            return;
        }
        // What follows in a client's stream may rest on the handshake, so it is over first.
        match message.method.as_str() {
            "initialize" => {
                // The old session's stream must not open another one.
                self.listening.cancel();
                let _ended = self.start(message, place).await;
            }
            "notifications/initialized" => {
                let _ended = self.start(message, place).await;
                self.listen();
            }
            _ => drop(self.start(message, place)),
        }
    }

    async fn refuse(&self, id: Option<&str>, code: RpcErrorCode, message: &str) {
        tracing::warn!("refused a line: {message}");
        self.relay.answer(error_response(id, code.number(), message, None)).await;
    }

    /// Cancels the request here; false when the router must be told.
    fn cancel(&self, id: &str, message: &Message) -> bool {
        let mut requests = self.requests.lock();
        let pending = requests.iter_mut().find(|(known, _)| same_id(known, id));
        let Some((_, pending)) = pending else {
            // In the modern era there is nothing behind it that could be told.
            return message.modern.is_some();
        };
        // There the end of its connection is the cancellation.
        let here = pending.modern || pending.waiting.load(Ordering::Relaxed);
        pending.abandoned.store(true, Ordering::Relaxed);
        if here {
            pending.cancel.cancel();
        }
        here
    }

    fn start(&mut self, message: Message, place: OwnedSemaphorePermit) -> JoinHandle<()> {
        self.serial = self.serial.saturating_add(1);
        let serial = self.serial;
        let cancel = if message.is_open_ended() {
            self.streams.child_token()
        } else {
            self.all.child_token()
        };
        let waiting = Arc::new(AtomicBool::new(false));
        let abandoned = Arc::new(AtomicBool::new(false));
        if let Some(id) = &message.id {
            let pending = Pending {
                serial,
                modern: message.modern.is_some(),
                waiting: Arc::clone(&waiting),
                abandoned: Arc::clone(&abandoned),
                cancel: cancel.clone(),
            };
            if self.requests.lock().insert(id.clone(), pending).is_some() {
                tracing::warn!("the client uses the id {id} for two requests at once");
            }
        }
        let (relay, requests) = (Arc::clone(&self.relay), Arc::clone(&self.requests));
        self.tasks.spawn(async move {
            let _place = place;
            let delivery = relay.deliver(&message, &waiting, &abandoned);
            let _cancelled = cancel.run_until_cancelled(delivery).await;
            if let Some(id) = &message.id {
                let mut requests = requests.lock();
                if requests.get(id).is_some_and(|pending| pending.serial == serial) {
                    requests.remove(id);
                }
            }
        })
    }

    /// Opens the stream of server messages of a session that has just begun.
    fn listen(&mut self) {
        self.listening.cancel();
        self.listening = self.streams.child_token();
        let (relay, ended) = (Arc::clone(&self.relay), self.listening.clone());
        drop(self.tasks.spawn(async move {
            let _ended = ended.run_until_cancelled(relay.listen()).await;
        }));
    }

    /// Waits for the answers under way, for a bounded time.
    async fn drain(&self) {
        self.streams.cancel();
        self.requests
            .lock()
            .values()
            .filter(|pending| pending.abandoned.load(Ordering::Relaxed))
            .for_each(|pending| {
                pending.cancel.cancel();
            });
        self.tasks.close();
        if timeout(LAST_ANSWERS, self.tasks.wait()).await.is_err() {
            tracing::warn!("{} messages had no answer in time", self.tasks.len());
        }
    }

    /// Ends all that is still under way.
    async fn end(&self) {
        self.all.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
