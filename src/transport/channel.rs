//! [`Channel`]: many requests under way on one stream that carries every answer, and what else the
//! server says there.
//!
//! Changes when the rules for such streams do. How bytes travel is the [`Carrier`]'s: the pipes of
//! a child (`stdio.rs`), or an event stream and posts (`sse.rs`).

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::{Sent, TransportError, sample};
use super::notice::Notice;
use super::relay::{Relay, answer_server, reply_of_client, server_request};
use super::{ConnectOptions, Hearing, hear};
use crate::model::{ProtocolVersion, ServerName};
use crate::protocol::{Answer, OutgoingRequest, RawObject, render_notification};

/// Requests that wait for their answers; one more is refused unsent. Far above any sensible
/// `max_concurrency`, which holds callers back before this does.
const WAITING: usize = 16 * 1024;
/// Requests that were given up and whose answers may still come; those of the oldest are taken for
/// what nobody asked for.
const GIVEN_UP: usize = 4096;
/// Requests of a server that its client is being asked at a time.
const QUESTIONS: u32 = 64;

pub(super) type Reply = Result<Answer, TransportError>;

/// What is known of a stream: who waits on it, and who hears the rest.
pub(super) struct Channel {
    pub(super) server: ServerName,
    pub(super) hearing: Hearing,
    pub(super) tasks: TaskTracker,
    /// Asks for the end.
    pub(super) stop: CancellationToken,
    /// The end has come and everybody has been told.
    pub(super) ended: CancellationToken,
    next_id: AtomicU64,
    waiting: Mutex<Table>,
    /// Requests of the server that a client is being asked.
    asked: AtomicU32,
}

#[derive(Default)]
struct Table {
    requests: HashMap<u64, Waiting>,
    /// Sent, and no longer waited for.
    given_up: BTreeSet<u64>,
    over: bool,
}

impl Table {
    fn give_up(&mut self, id: u64) {
        self.given_up.insert(id);
        if self.given_up.len() > GIVEN_UP {
            self.given_up.pop_first();
        }
    }
}

struct Waiting {
    reply: oneshot::Sender<Reply>,
    ticket: Arc<Ticket>,
    relay: Option<Arc<Relay>>,
}

/// How the messages of a channel travel.
pub(super) trait Carrier: Send + Sync + 'static {
    fn channel(&self) -> &Channel;

    /// Sends a message that nobody waits for, before requests that wait to be sent; dropped when
    /// too much waits already because the server is slow to take it.
    fn tell(&self, message: Vec<u8>);

    /// Sends a rendered request and waits for its answer, at most `limit`.
    fn exchange(
        &self,
        id: u64,
        bytes: Vec<u8>,
        limit: Duration,
        relay: Option<&Arc<Relay>>,
    ) -> impl Future<Output = Reply> + Send;

    /// Why nothing can be sent any more.
    fn gone(&self) -> TransportError;

    /// Makes a place for the answer to `id`.
    fn register(
        &self,
        id: u64,
        relay: Option<&Arc<Relay>>,
    ) -> Result<Call<'_, Self>, TransportError>
    where
        Self: Sized,
    {
        let (sender, reply) = oneshot::channel();
        let ticket = Arc::new(Ticket::default());
        let waiting = Waiting { reply: sender, ticket: Arc::clone(&ticket), relay: relay.cloned() };
        let mut table = self.channel().waiting.lock();
        if table.over {
            drop(table);
            return Err(self.gone());
        }
        if table.requests.len() >= WAITING {
            return Err(TransportError::Full { limit: WAITING });
        }
        table.requests.insert(id, waiting);
        drop(table);
        Ok(Call { carrier: self, id, ticket, reply, answered: false })
    }

    /// A request of the server: for the one client, or refused.
    fn take_request(self: &Arc<Self>, id: String, method: String, message: &Bytes)
    where
        Self: Sized,
    {
        let channel = self.channel();
        let busy = channel.asked.load(Ordering::Relaxed) >= QUESTIONS;
        if method == "ping" || !channel.hearing.exclusive || busy {
            self.tell(answer_server(&id, &method));
            return;
        }
        let (request, reply) = server_request(method, message);
        match channel.latest_relay() {
            Some((_, relay)) => drop(relay.request(request)),
            None => channel.hearing.notices.take(Notice::Request(request)),
        }
        channel.asked.fetch_add(1, Ordering::Relaxed);
        let carrier = Arc::clone(self);
        channel.tasks.spawn(async move {
            let answer = tokio::select! {
                answer = reply_of_client(&id, reply) => Some(answer),
                () = carrier.channel().ended.cancelled() => None,
            };
            carrier.channel().asked.fetch_sub(1, Ordering::Relaxed);
            if let Some(answer) = answer {
                carrier.tell(answer);
            }
        });
    }
}

impl Channel {
    pub(super) fn new(options: &ConnectOptions, tasks: &TaskTracker) -> Self {
        Self {
            server: options.server.clone(),
            hearing: options.hearing.clone(),
            tasks: tasks.clone(),
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
            next_id: AtomicU64::new(1),
            waiting: Mutex::default(),
            asked: AtomicU32::new(0),
        }
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.stop.is_cancelled() && !self.ended.is_cancelled()
    }

    /// Hands an answer to whoever waits for it, and says whether it was asked for; a late one, or one
    /// to nothing, goes nowhere.
    pub(super) fn take_answer(&self, id: u64, message: &Bytes) -> bool {
        let mut table = self.waiting.lock();
        let Some(waiting) = table.requests.remove(&id) else { return table.given_up.remove(&id) };
        drop(table);
        let answer = Answer::parse(message, id)
            .map_err(|source| TransportError::NotAnAnswer { source, sample: sample(message) });
        // The receiver may have just gone.
        drop(waiting.reply.send(answer));
        true
    }

    /// Progress names its request; everything else on one stream for all names none, and can only
    /// be told to somebody when one client alone uses it.
    pub(super) fn take_notification(&self, method: String, message: &Bytes) {
        if method == "notifications/progress" {
            let Some(id) = progress_of(message) else { return };
            let relay = self.waiting.lock().requests.get(&id).and_then(|call| call.relay.clone());
            if let Some(relay) = relay {
                relay.notify(&method, message, id);
            }
            return;
        }
        match Notice::of(&method, message) {
            Notice::Notification { .. } if !self.hearing.exclusive => {
                tracing::debug!(server.name = %self.server, method, "a message that belongs to nobody was dropped");
            }
            Notice::Notification { message, .. } => match self.latest_relay() {
                Some((id, relay)) => relay.notify(&method, &message, id),
                None => self.hearing.notices.take(Notice::Notification { method, message }),
            },
            notice => self.hearing.notices.take(notice),
        }
    }

    /// The caller of the latest request under way that has one.
    fn latest_relay(&self) -> Option<(u64, Arc<Relay>)> {
        let table = self.waiting.lock();
        let with_relay =
            table.requests.iter().filter_map(|(id, call)| Some((*id, call.relay.as_ref()?)));
        with_relay.max_by_key(|(id, _)| *id).map(|(id, relay)| (id, Arc::clone(relay)))
    }

    /// Whether an answer to `id` was asked for and did not come yet; to any, when nobody knows to
    /// which.
    pub(super) fn expects(&self, id: Option<u64>) -> bool {
        let table = self.waiting.lock();
        match id {
            Some(id) => table.requests.contains_key(&id) || table.given_up.contains(&id),
            None => !table.requests.is_empty() || !table.given_up.is_empty(),
        }
    }

    /// The answer to `id` came to its end, and nobody can have it; whether it was asked for.
    pub(super) fn drop_answer(&self, id: u64) -> bool {
        self.waiting.lock().given_up.remove(&id)
    }

    /// Fails the request `id`, whose answer may still come; all, when nobody knows which. Whether any
    /// was waited for.
    pub(super) fn fail(&self, id: Option<u64>, error: impl Fn() -> TransportError) -> bool {
        let mut table = self.waiting.lock();
        let failed: Vec<(u64, Waiting)> = match id {
            // Nobody may wait for it any more.
            Some(id) => table.requests.remove_entry(&id).into_iter().collect(),
            None => table.requests.drain().collect(),
        };
        failed.iter().for_each(|(id, _)| table.give_up(*id));
        drop(table);
        let any = !failed.is_empty();
        for (_, waiting) in failed {
            drop(waiting.reply.send(Err(error())));
        }
        any
    }

    /// Fails all requests, now and from now on; `error` is told whether one had been sent.
    pub(super) fn end(&self, error: impl Fn(Sent) -> TransportError) {
        let requests = {
            let mut table = self.waiting.lock();
            table.over = true;
            std::mem::take(&mut table.requests)
        };
        for waiting in requests.into_values() {
            let sent = waiting.ticket.withdraw();
            drop(waiting.reply.send(Err(error(sent))));
        }
    }
}

/// Where a message is: settles the race between whoever sends it and a caller who gives up.
#[derive(Default)]
pub(super) struct Ticket(AtomicU8);

impl Ticket {
    const QUEUED: u8 = 0;
    const WRITTEN: u8 = 1;
    const WITHDRAWN: u8 = 2;

    fn advance(&self, to: u8) -> bool {
        self.0.compare_exchange(Self::QUEUED, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The message goes out now; false when its caller gave up.
    pub(super) fn take(&self) -> bool {
        self.advance(Self::WRITTEN)
    }

    /// Not a byte of the message could be written, and none will be.
    pub(super) fn put_back(&self) {
        self.0.store(Self::QUEUED, Ordering::Release);
    }

    /// Nobody wants the message sent any more; says whether it had been.
    pub(super) fn withdraw(&self) -> Sent {
        let withdrawn = self.advance(Self::WITHDRAWN);
        if withdrawn || self.0.load(Ordering::Acquire) == Self::WITHDRAWN {
            Sent::No
        } else {
            Sent::Yes
        }
    }
}

/// A request under way. Dropping it forgets the request, and tells the server if it was sent.
pub(super) struct Call<'a, C: Carrier> {
    carrier: &'a C,
    id: u64,
    pub(super) ticket: Arc<Ticket>,
    reply: oneshot::Receiver<Reply>,
    pub(super) answered: bool,
}

impl<C: Carrier> Call<'_, C> {
    pub(super) async fn reply(&mut self) -> Reply {
        let reply = (&mut self.reply).await;
        // Of an answer that does not come to its end the server is told that nobody waits for it.
        self.answered = !matches!(reply, Ok(Err(TransportError::Stalled { .. })));
        reply.unwrap_or(Err(TransportError::Closed))
    }

    /// No answer is wanted any more, and the server is not told: it need not know, or must not, as
    /// with `initialize`.
    pub(super) fn let_go(&mut self) {
        self.forget();
        self.answered = true;
    }

    /// Waits no longer; says whether the request had been sent.
    fn forget(&self) -> Sent {
        let sent = self.ticket.withdraw();
        let mut table = self.carrier.channel().waiting.lock();
        if table.requests.remove(&self.id).is_some() && sent == Sent::Yes {
            table.give_up(self.id);
        }
        sent
    }
}

impl<C: Carrier> Drop for Call<'_, C> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        if self.forget() == Sent::Yes {
            let params = format!(r#"{{"requestId":{},"reason":"no longer waited for"}}"#, self.id);
            let message = render_notification("notifications/cancelled", Some(&params));
            self.carrier.tell(message);
        }
    }
}

/// Subscribes to what is wanted of a legacy server and follows as that changes.
pub(super) async fn keep_subscribed<C: Carrier>(
    carrier: &C,
    version: ProtocolVersion,
    wanted: &mut watch::Receiver<Arc<BTreeSet<String>>>,
) {
    let mut now = Arc::<BTreeSet<String>>::default();
    loop {
        let next = Arc::clone(&wanted.borrow_and_update());
        for (uri, method) in hear::changes(&now, &next) {
            let id = carrier.channel().next_id();
            let request = OutgoingRequest { uri: Some(uri), ..OutgoingRequest::new(method) };
            let changed = carrier.exchange(id, request.render(id, version), hear::SUBSCRIBE, None);
            if let Err(error) = changed.await {
                tracing::debug!(%error, uri, method, "a subscription was not changed");
            }
        }
        now = next;
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// The request that a progress message is about.
fn progress_of(message: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(message).ok()?;
    let params = RawObject::parse(text).ok()?.get("params")?.get();
    RawObject::parse(params).ok()?.get("progressToken")?.get().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A way on which nothing travels; what is told goes into a list.
    struct Nowhere {
        channel: Channel,
        told: Mutex<Vec<String>>,
    }

    impl Carrier for Nowhere {
        fn channel(&self) -> &Channel {
            &self.channel
        }

        fn tell(&self, message: Vec<u8>) {
            self.told.lock().push(String::from_utf8(message).unwrap());
        }

        async fn exchange(
            &self,
            _id: u64,
            _bytes: Vec<u8>,
            _limit: Duration,
            _relay: Option<&Arc<Relay>>,
        ) -> Reply {
            std::future::pending().await
        }

        fn gone(&self) -> TransportError {
            TransportError::Closed
        }
    }

    fn nowhere() -> Nowhere {
        let options = crate::transport::tests::options();
        Nowhere { channel: Channel::new(&options, &TaskTracker::new()), told: Mutex::default() }
    }

    #[test]
    fn so_many_may_wait_and_no_more() {
        let carrier = nowhere();
        let mut calls: Vec<_> =
            (0..WAITING as u64).map(|id| carrier.register(id, None).ok().unwrap()).collect();
        let refused = carrier.register(WAITING as u64, None).err().unwrap();
        assert!(matches!(refused, TransportError::Full { limit: WAITING }), "{refused:?}");
        assert_eq!(refused.failure(), crate::model::Failure::NotSent);
        calls.pop();
        assert!(carrier.register(WAITING as u64, None).is_ok());
        assert!(carrier.told.lock().is_empty(), "what was not sent needs no cancellation");
    }

    #[tokio::test]
    async fn the_end_tells_everybody_whether_the_request_was_sent() {
        let carrier = nowhere();
        let mut sent = carrier.register(1, None).ok().unwrap();
        let mut queued = carrier.register(2, None).ok().unwrap();
        assert!(sent.ticket.take());
        carrier.channel.end(|sent| TransportError::StreamLost { sent });
        let is = |reply: Reply, expected: Sent| matches!(reply, Err(TransportError::StreamLost { sent }) if sent == expected);
        assert!(is(sent.reply().await, Sent::Yes));
        assert!(is(queued.reply().await, Sent::No));
        assert!(!queued.ticket.take(), "it must not go out any more");
        assert!(carrier.register(3, None).is_err());
    }

    #[test]
    fn only_what_was_sent_is_called_off() {
        let carrier = nowhere();
        let calls: Vec<_> = (1..4).map(|id| carrier.register(id, None).ok().unwrap()).collect();
        assert!(calls[0].ticket.take() && calls[1].ticket.take());
        for (at, mut call) in calls.into_iter().enumerate() {
            if at == 1 {
                call.let_go();
            }
        }
        let told = carrier.told.lock();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains(r#""requestId":1,"#), "{told:?}");
        assert!(carrier.channel.waiting.lock().requests.is_empty());
    }

    #[test]
    fn a_late_answer_was_asked_for_and_that_once() {
        let carrier = nowhere();
        let answer = Bytes::from_static(b"{}");
        let calls: Vec<_> = (1..5).map(|id| carrier.register(id, None).ok().unwrap()).collect();
        let channel = &carrier.channel;
        assert!(calls[0..3].iter().all(|call| call.ticket.take()));
        assert!(channel.fail(Some(1), || TransportError::Closed));
        assert!(channel.expects(Some(1)));
        drop(calls);
        // Of what was not sent no answer can come, nor of what was never asked.
        for (id, asked_for) in [(1, true), (2, true), (4, false), (9, false)] {
            assert_eq!(channel.take_answer(id, &answer), asked_for, "{id}");
            assert!(!channel.take_answer(id, &answer), "{id} twice");
        }
        assert!(channel.expects(None) && channel.drop_answer(3));
        assert!(!channel.expects(None));
    }

    #[test]
    fn what_was_given_up_is_remembered_within_bounds() {
        let carrier = nowhere();
        for id in 0..=GIVEN_UP as u64 {
            assert!(carrier.register(id, None).ok().unwrap().ticket.take());
        }
        let channel = &carrier.channel;
        assert!(!channel.expects(Some(0)) && channel.expects(Some(1)));
        assert_eq!(channel.waiting.lock().given_up.len(), GIVEN_UP);
    }
}
