//! [`IsolatedSessions`]: one session or child process at a server for each requester, in place of
//! one for all.
//!
//! Changes when the rules for opening and closing such sessions do. A session is opened on first
//! use; it is closed when its requester's own session ends, when it was not used for long, when
//! another needs its place, and with the server. Servers that are shared never come here.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio_util::task::TaskTracker;

use super::error::LeaseError;
use super::notices::Notices;
use crate::clock;
use crate::model::{
    Dialect, Requester, ServerName, ServerSettings, SessionHash, SessionScope, Uptime,
};
use crate::pool::{
    ConnectOptions, Connection, ConnectionPool, Hearing, HttpClient, Lease, PoolError, Target,
    Urgency,
};

/// So many sessions may be ending at a time, if the limit of open ones is not above it: a child may
/// take seconds to end, and calls that come fast must not leave ever more of them behind.
const ENDING: usize = 8;

/// A connection in use, shared or of one requester. While it is there, its session is not closed
/// for being idle or to make room.
#[derive(Debug)]
pub struct SessionLease {
    lease: Lease,
    held: Option<Held>,
}

impl SessionLease {
    /// On the connection that all share.
    pub(super) const fn shared(lease: Lease) -> Self {
        Self { lease, held: None }
    }

    /// The shared connection, if it is that.
    pub(super) const fn as_shared(&self) -> Option<&Lease> {
        match self.held {
            None => Some(&self.lease),
            Some(_) => None,
        }
    }

    /// Gives the session's own connection up, so that the next request of the session opens
    /// another.
    pub(super) fn invalidate_own(&self) {
        if let Some(held) = &self.held {
            held.pool.invalidate(&self.lease);
        }
    }

    /// Whether we closed it meanwhile: its session ended, the server was changed, an operator wanted
    /// another connection. What then fails says nothing of the server.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.lease.was_closed() || self.held.as_ref().is_some_and(|held| held.pool.is_closed())
    }
}

impl Deref for SessionLease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.lease
    }
}

/// The isolated sessions of one server.
#[derive(Debug)]
pub(super) struct IsolatedSessions(Arc<Inner>);

struct Inner {
    server: ServerName,
    idle: Duration,
    target: Target,
    client: HttpClient,
    options: ConnectOptions,
    notices: Notices,
    tasks: TaskTracker,
    /// Sessions on their way out.
    endings: TaskTracker,
    gauge: IntGauge,
    table: Mutex<Table<ConnectionPool>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IsolatedSessions")
            .field("server", &self.server)
            .field("open", &self.table.lock().slots.len())
            .field("ending", &self.endings.len())
            .finish_non_exhaustive()
    }
}

/// How the connections of isolated sessions are made.
pub(super) struct Opening {
    pub(super) target: Target,
    pub(super) client: HttpClient,
    pub(super) options: ConnectOptions,
    pub(super) notices: Notices,
    pub(super) tasks: TaskTracker,
}

impl IsolatedSessions {
    pub(super) fn new(opening: Opening, settings: &ServerSettings, gauge: IntGauge) -> Self {
        let limit = usize::try_from(settings.max_sessions).unwrap_or(usize::MAX);
        Self(Arc::new(Inner {
            server: opening.options.server.clone(),
            idle: settings.session_idle_timeout,
            target: opening.target,
            client: opening.client,
            options: opening.options,
            notices: opening.notices,
            tasks: opening.tasks,
            endings: TaskTracker::new(),
            gauge,
            table: Mutex::new(Table::new(limit)),
        }))
    }

    /// The requester's own connection, opened if there is none.
    ///
    /// The `shared` one comes first where a session has to be opened: it tells how the server is
    /// spoken to, its waits after failures hold for all sessions together, and when the server keeps
    /// nothing between requests, it is all that is needed.
    pub(super) async fn lease(
        &self,
        requester: &Requester<'_>,
        urgency: Urgency,
        shared: impl Future<Output = Result<Lease, PoolError>>,
    ) -> Result<SessionLease, LeaseError> {
        let scope = requester.scope();
        let known = Held::rejoin(&self.0, &scope);
        if let Some(held) = &known
            && let Some(lease) = held.pool.current()
        {
            return Ok(SessionLease { lease, held: known });
        }
        let shared = shared.await?;
        if shared.is_stateless() {
            return Ok(SessionLease::shared(shared));
        }
        let held = match known {
            Some(held) => held,
            None => Held::enter(&self.0, requester, scope, shared.dialect())?,
        };
        drop(shared);
        match held.pool.lease(urgency).await {
            Ok(lease) => Ok(SessionLease { lease, held: Some(held) }),
            Err(PoolError::Closed) if !self.0.table.lock().closed => Err(LeaseError::SessionEnded),
            Err(error) => Err(error.into()),
        }
    }

    /// The live connection of a client's session, if there is one.
    pub(super) fn current(&self, session: &SessionHash) -> Option<Lease> {
        let table = self.0.table.lock();
        table.slots.get(&SessionScope::Session(*session))?.value.current()
    }

    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.0.table.lock().slots.len()
    }

    /// Closes, in the background, the one of a client's session that ended.
    pub(super) fn end_session(&self, session: &SessionHash) {
        let ended = self.0.table.lock().take(&SessionScope::Session(*session));
        if let Some(pool) = ended {
            self.0.end(pool);
        }
    }

    /// Closes, in the background, those that were not used for as long as the server's settings
    /// say.
    pub(super) fn tidy(&self, now: Uptime) {
        self.close_unused(now, self.0.idle);
    }

    /// Closes, in the background, those that are not in use and were not for `idle`.
    pub(super) fn close_unused(&self, now: Uptime, idle: Duration) {
        let unused = self.0.table.lock().take_idle(now, idle);
        for pool in unused {
            self.0.end(pool);
        }
    }

    /// Closes all and opens no other; resolves when all connections are closed and all children
    /// gone.
    pub(super) async fn close(&self) {
        let all = self.0.table.lock().close();
        for pool in all {
            self.0.end(pool);
        }
        self.0.endings.close();
        self.0.endings.wait().await;
    }
}

impl Inner {
    /// Ends a session that is out of the table: in order, in the background, in bounded time.
    fn end(&self, pool: ConnectionPool) {
        self.gauge.dec();
        // Without a runtime the connection is dropped, which ends a child too.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.endings.spawn_on(async move { pool.close().await }, &runtime);
        }
    }

    fn open(
        &self,
        requester: &Requester<'_>,
        scope: &SessionScope,
        dialect: Dialect,
    ) -> ConnectionPool {
        let abilities = requester.session.and_then(|session| session.abilities.as_deref());
        let options = ConnectOptions {
            known_dialect: Some(dialect),
            hearing: Hearing {
                notices: self.notices.sink(&self.server, Some(scope.clone())),
                // All who use a key share its session; what names no request is nobody's then.
                exclusive: !matches!(scope, SessionScope::Caller(_)),
                client_capabilities: abilities.unwrap_or("{}").to_owned(),
                ..Hearing::default()
            },
            ..self.options.clone()
        };
        self.gauge.inc();
        ConnectionPool::new(self.target.clone(), self.client.clone(), options, self.tasks.clone())
    }
}

/// The use of an isolated session by one request.
struct Held {
    sessions: Arc<Inner>,
    scope: SessionScope,
    number: u64,
    pool: ConnectionPool,
}

impl Held {
    /// Uses a session that is there.
    fn rejoin(sessions: &Arc<Inner>, scope: &SessionScope) -> Option<Self> {
        let (number, pool) = sessions.table.lock().rejoin(scope)?;
        Some(Self { sessions: Arc::clone(sessions), scope: scope.clone(), number, pool })
    }

    /// Uses a session, which begins with that if it is not there.
    fn enter(
        sessions: &Arc<Inner>,
        requester: &Requester<'_>,
        scope: SessionScope,
        dialect: Dialect,
    ) -> Result<Self, LeaseError> {
        let now = clock::uptime();
        let (entered, limit) = {
            let mut table = sessions.table.lock();
            // Under the lock: whoever ends the session notes it first and then looks here.
            if requester.has_ended() {
                return Err(LeaseError::SessionEnded);
            }
            let ending = sessions.endings.len();
            let make = || sessions.open(requester, &scope, dialect);
            (table.enter(&scope, now, ending, make), table.limit)
        };
        match entered {
            Ok(Entered { number, value, displaced }) => {
                if let Some(displaced) = displaced {
                    sessions.end(displaced);
                }
                Ok(Self { sessions: Arc::clone(sessions), scope, number, pool: value })
            }
            Err(Refused::Full) => {
                Err(LeaseError::SessionsFull { limit: u32::try_from(limit).unwrap_or(u32::MAX) })
            }
            Err(Refused::Closed) => Err(PoolError::Closed.into()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let now = clock::uptime();
        let over = self.sessions.table.lock().leave(&self.scope, self.number, now);
        if let Some(pool) = over {
            self.sessions.end(pool);
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({})", self.scope)
    }
}

/// Which sessions there are, how many use each, and which may go. Values in, values out.
struct Table<T> {
    limit: usize,
    slots: HashMap<SessionScope, Slot<T>>,
    /// The number of the next slot: a scope may have one, lose it, and have another.
    next: u64,
    closed: bool,
}

struct Slot<T> {
    number: u64,
    value: T,
    users: u32,
    last_used: Uptime,
}

/// A session in use, and what had to go for it.
#[derive(Debug, PartialEq, Eq)]
struct Entered<T> {
    number: u64,
    value: T,
    displaced: Option<T>,
}

#[derive(Debug, PartialEq, Eq)]
enum Refused {
    /// All are in use, or too many are still ending.
    Full,
    /// There will be no more.
    Closed,
}

impl<T: Clone> Table<T> {
    fn new(limit: usize) -> Self {
        Self { limit, slots: HashMap::new(), next: 0, closed: false }
    }

    /// One more user of a session that is there.
    fn rejoin(&mut self, scope: &SessionScope) -> Option<(u64, T)> {
        let slot = self.slots.get_mut(scope)?;
        slot.users = slot.users.saturating_add(1);
        Some((slot.number, slot.value.clone()))
    }

    /// One more user of a session, which is made if it is not there. When all places are taken, the
    /// one that was unused for longest goes. `ending` is how many are on their way out.
    fn enter(
        &mut self,
        scope: &SessionScope,
        now: Uptime,
        ending: usize,
        make: impl FnOnce() -> T,
    ) -> Result<Entered<T>, Refused> {
        if let Some((number, value)) = self.rejoin(scope) {
            return Ok(Entered { number, value, displaced: None });
        }
        if self.closed {
            return Err(Refused::Closed);
        }
        if ending >= self.limit.max(ENDING) {
            return Err(Refused::Full);
        }
        let displaced = if self.slots.len() < self.limit {
            None
        } else {
            let unused = self.slots.iter().filter(|(_, slot)| slot.users == 0);
            let oldest = unused.min_by_key(|(_, slot)| (slot.last_used, slot.number));
            let oldest = oldest.map(|(scope, _)| scope.clone()).ok_or(Refused::Full)?;
            self.take(&oldest)
        };
        let number = self.next;
        self.next = number.wrapping_add(1);
        let value = make();
        let slot = Slot { number, value: value.clone(), users: 1, last_used: now };
        self.slots.insert(scope.clone(), slot);
        Ok(Entered { number, value, displaced })
    }

    /// One user less; gives the session when that was its end.
    fn leave(&mut self, scope: &SessionScope, number: u64, now: Uptime) -> Option<T> {
        let slot = self.slots.get_mut(scope).filter(|slot| slot.number == number)?;
        slot.users = slot.users.saturating_sub(1);
        slot.last_used = slot.last_used.max(now);
        if slot.users == 0 && scope.is_once() { self.take(scope) } else { None }
    }

    /// Takes a session out, whoever uses it.
    fn take(&mut self, scope: &SessionScope) -> Option<T> {
        self.slots.remove(scope).map(|slot| slot.value)
    }

    /// Takes out those that nobody uses or used for `idle`.
    fn take_idle(&mut self, now: Uptime, idle: Duration) -> Vec<T> {
        let is_idle = |slot: &Slot<T>| slot.users == 0 && now.since(slot.last_used) >= idle;
        let taken = self.slots.extract_if(|_, slot| is_idle(slot)).map(|(_, slot)| slot.value);
        taken.collect()
    }

    /// Takes all out; there will be no more.
    fn close(&mut self) -> Vec<T> {
        self.closed = true;
        self.slots.drain().map(|(_, slot)| slot.value).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::CallId;

    fn caller(name: &str) -> SessionScope {
        SessionScope::Caller(name.into())
    }

    fn once(byte: u8) -> SessionScope {
        SessionScope::Once(CallId::from_slice(&[byte; 16]).unwrap())
    }

    fn at(second: u64) -> Uptime {
        Uptime::from_millis(second * 1000)
    }

    #[test]
    fn a_scope_keeps_its_session_and_others_have_theirs() {
        let mut table = Table::new(10);
        let first = table.enter(&caller("a"), at(0), 0, || 'a').unwrap();
        let again = table.enter(&caller("a"), at(0), 0, || 'x').unwrap();
        let other = table.enter(&caller("b"), at(0), 0, || 'b').unwrap();
        assert_eq!((first.value, again.value, other.value), ('a', 'a', 'b'));
        assert_eq!(first.number, again.number);
        assert_eq!(table.rejoin(&caller("b")), Some((other.number, 'b')));
        assert_eq!(table.rejoin(&caller("c")), None);
    }

    #[test]
    fn a_full_table_gives_up_what_was_unused_for_longest_and_nothing_in_use() {
        let mut table = Table::new(2);
        let a = table.enter(&caller("a"), at(0), 0, || 'a').unwrap();
        let b = table.enter(&caller("b"), at(1), 0, || 'b').unwrap();
        assert_eq!(table.enter(&caller("c"), at(2), 0, || 'c'), Err(Refused::Full));
        assert_eq!(table.leave(&caller("b"), b.number, at(3)), None);
        assert_eq!(table.leave(&caller("a"), a.number, at(4)), None);
        let c = table.enter(&caller("c"), at(5), 0, || 'c').unwrap();
        assert_eq!(c.displaced, Some('b'));
        assert_eq!(table.rejoin(&caller("a")), Some((a.number, 'a')));
        assert_eq!(table.enter(&caller("b"), at(6), 0, || 'b'), Err(Refused::Full));
    }

    #[test]
    fn ever_more_endings_are_not_let_pile_up() {
        let mut table = Table::new(1);
        assert_eq!(table.enter(&caller("a"), at(0), ENDING, || 'a'), Err(Refused::Full));
        assert!(table.enter(&caller("a"), at(0), ENDING - 1, || 'a').is_ok());
        // What is there can be used, however many are ending.
        assert!(table.enter(&caller("a"), at(0), ENDING, || 'x').is_ok());
    }

    #[test]
    fn a_session_for_one_call_ends_with_its_last_user() {
        let mut table = Table::new(10);
        let first = table.enter(&once(1), at(0), 0, || 1).unwrap();
        let second = table.enter(&once(1), at(0), 0, || 2).unwrap();
        assert_eq!(table.leave(&once(1), first.number, at(1)), None);
        assert_eq!(table.leave(&once(1), second.number, at(1)), Some(1));
        assert_eq!(table.leave(&once(1), second.number, at(1)), None);
    }

    #[test]
    fn only_what_nobody_uses_is_idle() {
        let mut table = Table::new(10);
        let a = table.enter(&caller("a"), at(0), 0, || 'a').unwrap();
        let _b = table.enter(&caller("b"), at(0), 0, || 'b').unwrap();
        let minute = Duration::from_secs(60);
        assert_eq!(table.take_idle(at(1000), minute), Vec::<char>::new());
        assert_eq!(table.leave(&caller("a"), a.number, at(1000)), None);
        assert_eq!(table.take_idle(at(1059), minute), Vec::<char>::new());
        assert_eq!(table.take_idle(at(1060), minute), ['a']);
        assert_eq!(table.close(), ['b']);
        assert_eq!(table.enter(&caller("a"), at(2000), 0, || 'a'), Err(Refused::Closed));
    }

    #[test]
    fn who_leaves_what_was_taken_does_not_touch_its_successor() {
        let mut table = Table::new(10);
        let old = table.enter(&caller("a"), at(0), 0, || 'o').unwrap();
        assert_eq!(table.take(&caller("a")), Some('o'));
        let _new = table.enter(&caller("a"), at(1), 0, || 'n').unwrap();
        assert_eq!(table.leave(&caller("a"), old.number, at(2)), None);
        assert_eq!(table.take_idle(at(9999), Duration::ZERO), Vec::<char>::new());
    }

    proptest! {
        /// Every session that was made is in the table or was given out once, none in use goes for
        /// another, and there are never more than the limit.
        #[test]
        fn no_session_is_lost_and_none_in_use_is_displaced(
            limit in 1_usize..5,
            steps in proptest::collection::vec((0_u8..8, 0_u8..4), 0..120),
        ) {
            let mut table = Table::new(limit);
            let (mut made, mut gone) = (0_u32, Vec::new());
            let mut users: Vec<(SessionScope, u64, u32)> = Vec::new();
            for (time, (who, what)) in (0..).zip(steps) {
                let scope = if who < 4 { caller(&who.to_string()) } else { once(who) };
                let now = at(time);
                match what {
                    0 | 1 => {
                        let next = made;
                        let mut fresh = false;
                        let make = || { fresh = true; next };
                        if let Ok(entered) = table.enter(&scope, now, 0, make) {
                            made += u32::from(fresh);
                            if let Some(displaced) = entered.displaced {
                                prop_assert!(users.iter().all(|(.., used)| *used != displaced));
                                gone.push(displaced);
                            }
                            users.push((scope, entered.number, entered.value));
                        } else {
                            prop_assert_eq!(table.slots.len(), limit);
                        }
                    }
                    2 => if let Some(at) = users.iter().position(|(used, ..)| *used == scope) {
                        let (scope, number, _) = users.remove(at);
                        gone.extend(table.leave(&scope, number, now));
                    },
                    _ => gone.extend(table.take_idle(now, Duration::from_secs(20))),
                }
                prop_assert!(table.slots.len() <= limit);
            }
            for (scope, number, _) in users {
                gone.extend(table.leave(&scope, number, at(1000)));
            }
            gone.extend(table.close());
            gone.sort_unstable();
            prop_assert_eq!(gone, (0..made).collect::<Vec<_>>());
        }
    }
}
