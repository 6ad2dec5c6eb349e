//! [`StdioConnection`]: MCP with a child process, one line for each message.
//!
//! Changes when the stdio transport's rules do. How processes start and end is `child.rs`.
//!
//! Three tasks for each child: a writer, which alone touches its input, so that a dropped call
//! never leaves half a line there, and puts what nobody waits for before requests; a reader, which hands answers to those who wait for them; and a
//! supervisor, which waits for the end and then tells everybody.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::aside::{self, Aside, Asides};
use super::channel::{Call, Carrier, Channel, Reply, Ticket, keep_subscribed};
use super::child::{Launch, Process, ProcessId, Running, StderrTail};
use super::children::Started;
use super::error::{Sent, TransportError, sample};
use super::handshake::{self, Finding};
use super::lines::{Line, LineSplitter, Oversized};
use super::pace::Pace;
use super::relay::Relay;
use super::unread::Unread;
use super::{ConnectOptions, PeerInfo, hear};
use crate::clock;
use crate::model::{Dialect, Era, ProtocolVersion};
use crate::protocol::{
    Answer, MessageKind, OutgoingRequest, RawObject, message_kind, render_notification,
};

/// Requests that wait for the child to read; callers wait beyond that, in their own time.
const QUEUE: usize = 16;
/// How long a child may ignore the modern probe; legacy servers often do.
const SILENCE: Duration = Duration::from_secs(2);
/// The least a child gets for its handshake: `npx` and `uvx` may have to install it first.
const START: Duration = Duration::from_secs(30);
/// How long the last answers of an ended child may take to be read, and how long a child may live
/// after it closed its input or its output.
const LINGER: Duration = Duration::from_millis(300);
/// Longer than any child lives.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a line may become that is too long anyway, in largest answers, before the child that
/// does not come to an end is ended.
const ENDLESS: usize = 16;
/// The same at least, in bytes: a small limit is for answers, and says nothing of the child.
const LEAST_ENDLESS: usize = 64 * 1024 * 1024;
/// Lines that are no messages, kept for error texts.
const PRINTED: usize = 5;

/// A conversation with a child process. Dropping it ends the child in the background.
pub struct StdioConnection {
    shared: Arc<Shared>,
    peer: PeerInfo,
    _stop_on_drop: DropGuard,
}

struct Shared {
    channel: Channel,
    process: Arc<ProcessId>,
    state: Mutex<State>,
    queue: mpsc::Sender<Outgoing>,
    unread: Unread,
    aside: Aside,
    stderr: StderrTail,
    limit: usize,
    /// The longest silence within an answer.
    stall: Option<Duration>,
}

#[derive(Default)]
struct State {
    printed: VecDeque<String>,
    /// How the child ended.
    end: Option<String>,
}

/// A request, or what has to come after one.
struct Outgoing {
    bytes: Vec<u8>,
    ticket: Arc<Ticket>,
}

impl StdioConnection {
    pub(super) async fn open(
        launch: &Launch<'_>,
        options: &ConnectOptions,
        tasks: &TaskTracker,
    ) -> Result<Self, TransportError> {
        let known_legacy = options.known_dialect == Some(Dialect::Legacy);
        let first = if known_legacy { Opening::Handshake } else { Opening::Probe };
        let started = Self::start(launch, options, tasks, first).await;
        let again = ConnectOptions { children: options.children.again(), ..options.clone() };
        match started {
            // Some legacy servers do not survive a message before the handshake.
            Err(TransportError::ChildExited { sent: Sent::Yes, .. }) if !known_legacy => {
                Self::start(launch, &again, tasks, Opening::Handshake).await
            }
            // What was legacy last time may be modern now.
            Err(TransportError::HandshakeRefused { .. } | TransportError::Version { .. })
                if known_legacy =>
            {
                Self::start(launch, &again, tasks, Opening::Probe).await
            }
            settled => settled,
        }
    }

    async fn start(
        launch: &Launch<'_>,
        options: &ConnectOptions,
        tasks: &TaskTracker,
        opening: Opening,
    ) -> Result<Self, TransportError> {
        let process = launch.start()?;
        let id = process.child.id();
        tracing::info!(
            server.name = %options.server, process.id = id.started(), process.is_guard = id.guarded,
            "started `{}`", launch.command
        );
        let started = options.children.started(id.started(), id.guarded);
        let shared = Shared::run(process, started, options, tasks);
        let stop = shared.channel.stop.clone().drop_guard();
        let limit = options.connect_timeout.max(START);
        let silence = options.probe_timeout.min(SILENCE);
        match tokio::time::timeout(limit, shared.greet(opening, silence)).await {
            Ok(Ok(peer)) => {
                // While it certainly lives: later its id may have been given to another.
                shared.process.shown();
                tasks.spawn(Arc::clone(&shared).keep_subscribed(peer.clone()));
                Ok(Self { shared, peer, _stop_on_drop: stop })
            }
            Ok(Err(error)) => {
                options.children.failed(clock::uptime());
                Err(error)
            }
            Err(_elapsed) => {
                options.children.failed(clock::uptime());
                Err(TransportError::NoHandshake {
                    command: launch.command.to_owned(),
                    limit,
                    stderr: shared.stderr.lines(),
                    printed: shared.printed(),
                })
            }
        }
    }

    pub(super) const fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    pub(super) fn is_alive(&self) -> bool {
        self.shared.channel.is_alive()
    }

    pub(super) async fn request(
        &self,
        request: &OutgoingRequest<'_>,
        limit: Duration,
        relay: Option<&Arc<Relay>>,
    ) -> Result<Answer, TransportError> {
        let shared = &self.shared;
        let id = shared.channel.next_id();
        shared.exchange(id, request.render(id, self.peer.version), limit, relay).await
    }

    pub(super) fn notify(&self, method: &str, params: Option<&str>) {
        self.shared.tell(render_notification(method, params));
    }

    pub(super) async fn close(&self) {
        self.shared.channel.stop.cancel();
        self.shared.channel.ended.cancelled().await;
    }

    pub(super) fn stderr_tail(&self) -> Vec<String> {
        self.shared.stderr.lines()
    }

    pub(super) fn exit_status(&self) -> Option<String> {
        self.shared.state.lock().end.clone()
    }

    pub(super) fn process_id(&self) -> u32 {
        self.shared.process.shown()
    }

    pub(super) fn death(&self) -> Option<TransportError> {
        let end = self.exit_status()?;
        Some(self.shared.exited(end, Sent::No))
    }
}

impl fmt::Debug for StdioConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StdioConnection")
            .field("process_id", &self.shared.process.shown())
            .field("version", &self.peer.version)
            .finish_non_exhaustive()
    }
}

/// With what a conversation begins.
#[derive(Clone, Copy)]
enum Opening {
    Probe,
    Handshake,
}

impl Carrier for Shared {
    fn channel(&self) -> &Channel {
        &self.channel
    }

    fn tell(&self, bytes: Vec<u8>) {
        if !self.aside.push(one_line(bytes)) {
            tracing::debug!(server.name = %self.channel.server, "dropped a message to a child that does not read");
        }
    }

    async fn exchange(
        &self,
        id: u64,
        bytes: Vec<u8>,
        limit: Duration,
        relay: Option<&Arc<Relay>>,
    ) -> Reply {
        let bytes = one_line(bytes);
        let mut call = self.register(id, relay)?;
        let exchange = async {
            self.enqueue(bytes, &call.ticket).await?;
            call.reply().await
        };
        let outcome = tokio::time::timeout(limit, exchange).await;
        match outcome {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(match call.ticket.withdraw() {
                Sent::No => TransportError::NotRead { elapsed: limit },
                Sent::Yes => TransportError::Timeout { elapsed: limit },
            }),
        }
    }

    fn gone(&self) -> TransportError {
        let end = self.state.lock().end.clone();
        end.map_or(TransportError::Closed, |end| self.exited(end, Sent::No))
    }
}

impl Shared {
    /// Starts the tasks around a process.
    fn run(
        process: Process,
        started: Started,
        options: &ConnectOptions,
        tasks: &TaskTracker,
    ) -> Arc<Self> {
        let Process { child, stdin, stdout, stderr, first } = process;
        let (queue, lines) = mpsc::channel(QUEUE);
        let (aside, asides) = aside::queue();
        let shared = Arc::new(Self {
            channel: Channel::new(options, tasks),
            process: Arc::clone(child.id()),
            state: Mutex::default(),
            queue,
            unread: Unread::default(),
            aside,
            stderr: StderrTail::default(),
            limit: usize::try_from(options.max_response_size).unwrap_or(usize::MAX),
            stall: options.stall_timeout,
        });
        let input_end = CancellationToken::new();
        let writer = Writer { asides, lines, stdin, broken: input_end.clone() };
        tasks.spawn(writer.run(first, shared.channel.stop.clone()));
        let read_end = CancellationToken::new();
        {
            let (shared, read_end) = (Arc::clone(&shared), read_end.clone());
            tasks.spawn(async move {
                let _read_end = read_end.drop_guard();
                tokio::select! {
                    () = shared.read(stdout) => {}
                    // Of a child that said more than it may, the rest.
                    () = shared.channel.ended.cancelled() => {}
                }
            });
        }
        let stderr_end = CancellationToken::new();
        {
            let (shared, stderr_end) = (Arc::clone(&shared), stderr_end.clone());
            tasks.spawn(async move {
                let _stderr_end = stderr_end.drop_guard();
                shared.stderr.drain(stderr).await;
            });
        }
        let supervised = Arc::clone(&shared);
        tasks.spawn(async move {
            supervise(supervised, child, Ends { input_end, read_end, stderr_end }).await;
            drop(started);
        });
        shared
    }

    fn printed(&self) -> Vec<String> {
        self.state.lock().printed.iter().cloned().collect()
    }

    fn exited(&self, status: String, sent: Sent) -> TransportError {
        TransportError::ChildExited {
            status,
            stderr: self.stderr.lines(),
            printed: self.printed(),
            sent,
        }
    }

    async fn enqueue(&self, bytes: Vec<u8>, ticket: &Arc<Ticket>) -> Result<(), TransportError> {
        let _room = self.unread.room(bytes.len())?;
        let line = Outgoing { bytes, ticket: Arc::clone(ticket) };
        match self.queue.send(line).await {
            Ok(()) => Ok(()),
            Err(_gone) => Err(self.gone()),
        }
    }

    /// Finds out the era and does the handshake.
    async fn greet(&self, opening: Opening, silence: Duration) -> Result<PeerInfo, TransportError> {
        let mut probe = None;
        if let Opening::Probe = opening {
            let id = self.channel.next_id();
            let mut call = self.register(id, None)?;
            let mut bytes = handshake::discover().render(id, ProtocolVersion::LATEST);
            bytes.push(b'\n');
            self.enqueue(bytes, &call.ticket).await?;
            match tokio::time::timeout(silence, call.reply()).await {
                Ok(Ok(answer)) => {
                    if let Finding::Modern(peer) = handshake::read_discover(&answer) {
                        return Ok(peer);
                    }
                }
                Ok(Err(error @ TransportError::ChildExited { .. })) => return Err(error),
                Ok(Err(_)) => {}
                // A modern child may only be slow to start: its answer is still welcome.
                Err(_elapsed) => probe = Some(call),
            }
        }
        let id = self.channel.next_id();
        let mut call = self.register(id, None)?;
        let bytes = handshake::render_initialize(id, &self.channel.hearing.client_capabilities);
        self.enqueue(one_line(bytes), &call.ticket).await?;
        let reply = match &mut probe {
            None => call.reply().await,
            Some(probe) => tokio::select! {
                // A modern child answers both, and only the first with what we want.
                biased;
                Some(peer) = modern(probe) => {
                    // Never cancelled: the specification forbids that for `initialize`.
                    call.let_go();
                    return Ok(peer);
                }
                reply = call.reply() => reply,
            },
        };
        let greeted = reply.and_then(|answer| handshake::read_initialize(&answer));
        if let (Err(_), Some(probe)) = (&greeted, &mut probe)
            && let Ok(Some(peer)) = tokio::time::timeout(silence, modern(probe)).await
        {
            return Ok(peer);
        }
        if let Some(probe) = &mut probe {
            // Its late answer is of no interest, and no reason to send a cancellation.
            probe.let_go();
        }
        let peer = greeted?;
        let mut line = render_notification("notifications/initialized", None);
        line.push(b'\n');
        self.enqueue(line, &Arc::default()).await?;
        Ok(peer)
    }

    /// Reads lines until the output ends.
    async fn read(self: &Arc<Self>, mut stdout: ChildStdout) {
        let mut lines = LineSplitter::new(self.limit);
        let largest = u64::try_from(self.limit).unwrap_or(u64::MAX);
        let mut pace = Pace::new(Pace::shared_stream(largest), clock::uptime());
        // Lines since the last read that were no answers.
        let mut talk = 0;
        let mut excess = None::<Excess>;
        while let Ok(read @ 1..) = self.next_bytes(&mut stdout, &mut lines).await {
            pace.keep(read, std::mem::take(&mut talk)).await;
            while let Some(line) = lines.next() {
                match line {
                    Line::Whole(line) if self.take_line(&line) => pace.give_back(line.len()),
                    Line::Whole(_) => talk += 1,
                    Line::TooLong(line) => {
                        let given = excess.take().map_or(0, |excess| excess.given);
                        if self.refuse_oversized(&line) {
                            pace.give_back(line.length.saturating_sub(given));
                        } else {
                            talk += 1;
                            pace.keep(given, 0).await;
                        }
                    }
                }
                // One read can bring thousands of them; others have the thread in between.
                tokio::task::coop::consume_budget().await;
            }
            if let Some(line) = lines.too_long() {
                if line.length > self.longest() {
                    self.give_up(line);
                    return;
                }
                let excess = excess.get_or_insert_with(|| Excess {
                    is_answer: is_answer_begun(line.head()) && self.begin_oversized(line),
                    given: 0,
                });
                if excess.is_answer {
                    pace.give_back(line.length.saturating_sub(excess.given));
                    excess.given = line.length;
                }
            }
        }
    }

    /// Reads what comes next. An answer that has begun may not be silent for longer than
    /// `stall_timeout`, where that is set: then its call fails, and what still comes of it goes nowhere.
    async fn next_bytes(
        &self,
        stdout: &mut ChildStdout,
        lines: &mut LineSplitter,
    ) -> std::io::Result<usize> {
        let stall = self.stall.filter(|_| is_answer_begun(lines.begun()));
        if let Some(silence) = stall {
            match tokio::time::timeout(silence, stdout.read_buf(lines.room())).await {
                Ok(read) => return read,
                Err(_elapsed) => {
                    let id = Oversized::beginning(lines.begun()).first_id();
                    self.channel.fail(id, || TransportError::Stalled { silence });
                }
            }
        }
        stdout.read_buf(lines.room()).await
    }

    /// Takes a line to whom it concerns; whether it was an answer that somebody waited for.
    fn take_line(self: &Arc<Self>, line: &Bytes) -> bool {
        if line.is_empty() {
            return false;
        }
        match message_kind(line) {
            Ok(MessageKind::Answer(id)) => return self.channel.take_answer(id, line),
            Ok(MessageKind::Request { id, method }) => self.take_request(id, method, line),
            Ok(MessageKind::Notification { method }) => {
                self.channel.take_notification(method, line);
            }
            Err(_) => {
                let text = sample(line);
                tracing::debug!(server.name = %self.channel.server, line = %text, "not a message on standard output");
                let mut state = self.state.lock();
                if state.printed.len() == PRINTED {
                    state.printed.pop_front();
                }
                state.printed.push_back(text);
            }
        }
        false
    }

    /// Tells the child what is wanted of its own messages, and follows as that changes.
    async fn keep_subscribed(self: Arc<Self>, peer: PeerInfo) {
        let mut wanted = self.channel.hearing.subscriptions.clone();
        let keeping = async {
            match peer.version.era() {
                Era::Legacy if peer.offers.subscriptions => {
                    keep_subscribed(&*self, peer.version, &mut wanted).await;
                }
                Era::Legacy => {}
                Era::Modern => self.keep_listening(&mut wanted, &peer).await,
            }
        };
        tokio::select! {
            () = keeping => {}
            () = self.channel.stop.cancelled() => {}
        }
    }

    async fn keep_listening(
        &self,
        wanted: &mut watch::Receiver<Arc<BTreeSet<String>>>,
        peer: &PeerInfo,
    ) {
        loop {
            let resources = match peer.offers.subscriptions {
                true => Arc::clone(&wanted.borrow_and_update()),
                false => Arc::default(),
            };
            let changed = async {
                if !peer.offers.subscriptions || wanted.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            if !peer.offers.some_list_changes && resources.is_empty() {
                changed.await;
                continue;
            }
            let params = hear::filter(peer.offers, &resources);
            let params = RawObject::parse(&params).unwrap_or_default();
            let request = OutgoingRequest {
                params: Some(&params),
                ..OutgoingRequest::new("subscriptions/listen")
            };
            let id = self.channel.next_id();
            // The answer comes when the subscription ends; dropping the wait cancels it.
            let listening = self.exchange(id, request.render(id, peer.version), FOREVER, None);
            tokio::select! {
                _ended = listening => return,
                () = changed => {}
            }
        }
    }

    /// Takes the beginning of an answer that is too large: fails its call as soon as it is known, and
    /// says whether, by what is known yet, the answer was asked for.
    fn begin_oversized(&self, line: &Oversized) -> bool {
        let id = line.first_id();
        if id.is_some() {
            self.channel.fail(id, || self.too_large());
        }
        self.channel.expects(id)
    }

    /// Fails the call whose answer is too large; all, when it does not say which. Whether it was asked
    /// for.
    fn refuse_oversized(&self, line: &Oversized) -> bool {
        if line.is_no_answer() {
            tracing::warn!(server.name = %self.channel.server, "a message of the child was too large and was dropped");
            return false;
        }
        let id = line.id();
        let failed = self.channel.fail(id, || self.too_large());
        id.map_or(failed, |id| self.channel.drop_answer(id))
    }

    fn too_large(&self) -> TransportError {
        let limit = u64::try_from(self.limit).unwrap_or(u64::MAX);
        TransportError::ResponseTooLarge { limit }
    }

    /// How long a line may become, thrown away as it comes.
    fn longest(&self) -> usize {
        self.limit.saturating_mul(ENDLESS).max(LEAST_ENDLESS)
    }

    /// Ends a child in the middle of a line without an end: nothing that others wait for comes after
    /// it. Whoever may be the one it is for is told that it is too large.
    fn give_up(&self, line: &Oversized) {
        let status = format!("wrote more than {} bytes in one line and was ended", self.longest());
        tracing::warn!(server.name = %self.channel.server, process.id = self.process.shown(), "the child {status}");
        let is_anybodys = is_answer_begun(line.head()) && line.first_id().is_none();
        self.state.lock().end.get_or_insert_with(|| status.clone());
        self.channel.end(|sent| match sent {
            Sent::Yes if is_anybodys => self.too_large(),
            sent => self.exited(status.clone(), sent),
        });
        self.channel.stop.cancel();
    }

    /// Tells everybody that the child has ended.
    fn end(&self, status: &str) {
        self.state.lock().end.get_or_insert_with(|| status.to_owned());
        self.channel.end(|sent| self.exited(status.to_owned(), sent));
    }
}

/// A line that is too long and is read to its end all the same.
struct Excess {
    /// An answer that was asked for, as far as its beginning says: it is not paced.
    is_answer: bool,
    /// So many bytes of it were given back.
    given: usize,
}

/// Whether the beginning of a line is one of an answer: what children print beside their messages, and
/// may leave without an end, is not waited for.
fn is_answer_begun(line: &[u8]) -> bool {
    line.trim_ascii_start().first() == Some(&b'{') && !Oversized::beginning(line).is_no_answer()
}

/// A message as the one line that it must be. What clients sent is passed on as it was, and may be
/// spread over lines; in JSON a line end only stands between tokens, but here it would end the
/// message and begin another one.
fn one_line(mut message: Vec<u8>) -> Vec<u8> {
    for byte in &mut message {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    message.push(b'\n');
    message
}

/// What the answer to the probe says, if that is that the child is modern.
async fn modern(probe: &mut Call<'_, Shared>) -> Option<PeerInfo> {
    if probe.answered {
        return None;
    }
    let answer = probe.reply().await.ok()?;
    match handshake::read_discover(&answer) {
        Finding::Modern(peer) => Some(peer),
        Finding::Legacy => None,
    }
}

/// Writes lines one after the other.
struct Writer {
    /// Written first: a cancellation must not wait behind what it makes idle.
    asides: Asides,
    lines: mpsc::Receiver<Outgoing>,
    stdin: ChildStdin,
    /// Cancelled when the child no longer reads.
    broken: CancellationToken,
}

impl Writer {
    /// Ends, and so closes the child's input, on `stop`.
    async fn run(mut self, first: Vec<u8>, stop: CancellationToken) {
        tokio::select! {
            () = self.write(first) => {
                self.broken.cancel();
                // What is queued stays there until it is known how the child ended: its callers are
                // told that, and that nothing was sent.
                stop.cancelled().await;
            }
            () = stop.cancelled() => {}
        }
    }

    /// Writes until the child no longer reads.
    async fn write(&mut self, first: Vec<u8>) {
        if self.stdin.write_all(&first).await.is_err() {
            return;
        }
        drop(first);
        loop {
            tokio::select! {
                biased;
                Some(message) = self.asides.next() => {
                    if self.stdin.write_all(&message).await.is_err() {
                        return;
                    }
                }
                Some(line) = self.lines.recv() => {
                    if line.ticket.take() && !write_line(&mut self.stdin, &line).await {
                        return;
                    }
                }
                else => return,
            }
        }
    }
}

/// Whether the line could be written. Its ticket says whether anything of it was.
async fn write_line(stdin: &mut ChildStdin, line: &Outgoing) -> bool {
    let mut left: &[u8] = &line.bytes;
    while !left.is_empty() {
        match stdin.write(left).await {
            Ok(written @ 1..) => left = left.get(written..).unwrap_or_default(),
            Ok(0) | Err(_) => {
                if left.len() == line.bytes.len() {
                    line.ticket.put_back();
                }
                return false;
            }
        }
    }
    true
}

/// Cancelled when a pipe of the child is of no use any more.
struct Ends {
    input_end: CancellationToken,
    read_end: CancellationToken,
    stderr_end: CancellationToken,
}

async fn supervise(shared: Arc<Shared>, mut child: Running, ends: Ends) {
    let Ends { input_end, read_end, stderr_end } = ends;
    let closed = async {
        tokio::select! {
            biased;
            () = read_end.cancelled() => "closed its output",
            () = input_end.cancelled() => "closed its input",
        }
    };
    let status = tokio::select! {
        status = child.ended() => status,
        () = shared.channel.stop.cancelled() => child.end().await,
        closed = closed => {
            // It mostly ends at the same time, and how it does says more.
            match tokio::time::timeout(LINGER, child.ended()).await {
                Ok(status) => status,
                Err(_elapsed) => {
                    // Before anybody can see that it is no longer alive, and start another.
                    shared.end(closed);
                    shared.channel.stop.cancel();
                    child.end().await
                }
            }
        }
    };
    // What it said before it ended still counts.
    let _ = tokio::time::timeout(LINGER, async {
        read_end.cancelled().await;
        stderr_end.cancelled().await;
    })
    .await;
    tracing::info!(server.name = %shared.channel.server, process.id = shared.process.shown(), "the child {status}");
    shared.end(&status);
    shared.channel.stop.cancel();
    shared.channel.ended.cancel();
}
