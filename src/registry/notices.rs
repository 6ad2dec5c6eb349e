//! Who hears what servers say on their own, and of which resources.
//!
//! Changes when what is heard of servers changes. Says whose session it came over; what is done
//! with it is the listener's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::model::{ServerName, SessionScope};
use crate::pool::{Notice, NoticeSink};

/// Takes what servers say on their own: which server, over whose session (none: over the one that
/// all share), and what. Called from the task that reads the server, so it must not wait.
pub type NoticeHandler = Box<dyn Fn(&ServerName, Option<&SessionScope>, Notice) + Send + Sync>;

/// Where all servers' notices come together.
#[derive(Clone, Default)]
pub(super) struct Notices(Arc<OnceLock<NoticeHandler>>);

impl Notices {
    /// From now on `handler` hears everything; the first handler stays.
    pub(super) fn set(&self, handler: NoticeHandler) -> bool {
        self.0.set(handler).is_ok()
    }

    /// The sink for connections to a server; what comes before there is a handler is dropped.
    pub(super) fn sink(&self, server: &ServerName, scope: Option<SessionScope>) -> NoticeSink {
        let (handler, server) = (Arc::clone(&self.0), server.clone());
        NoticeSink::new(move |notice| {
            if let Some(handler) = handler.get() {
                handler(&server, scope.as_ref(), notice);
            }
        })
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").field("heard", &self.0.get().is_some()).finish()
    }
}

/// Resources of one server that somebody may follow at a time.
const SUBSCRIPTION_LIMIT: usize = 10_000;

/// So many resources of the server are followed already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{SUBSCRIPTION_LIMIT} resources of the server are subscribed to already")]
pub struct TooManySubscriptions;

/// Which resources of a server are followed over the shared connection. Outlives connections and
/// changes of the specification.
#[derive(Debug)]
pub(super) struct Subscriptions {
    counts: Mutex<Counts>,
    wanted: watch::Sender<Arc<BTreeSet<String>>>,
}

impl Subscriptions {
    pub(super) fn new() -> Self {
        Self { counts: Mutex::default(), wanted: watch::Sender::default() }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<BTreeSet<String>>> {
        self.wanted.subscribe()
    }

    pub(super) fn subscribe(&self, uri: &str) -> Result<(), TooManySubscriptions> {
        let mut counts = self.counts.lock();
        if counts.add(uri, SUBSCRIPTION_LIMIT)? {
            // Under the lock, so that a later change is never overtaken by an earlier one.
            self.wanted.send_replace(Arc::new(counts.uris()));
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&self, uri: &str) {
        let mut counts = self.counts.lock();
        if counts.remove(uri) {
            self.wanted.send_replace(Arc::new(counts.uris()));
        }
    }
}

/// How many follow each resource.
#[derive(Debug, Default)]
struct Counts(BTreeMap<String, u32>);

impl Counts {
    /// One more; whether it is the first. At most `limit` resources.
    fn add(&mut self, uri: &str, limit: usize) -> Result<bool, TooManySubscriptions> {
        if let Some(count) = self.0.get_mut(uri) {
            *count = count.saturating_add(1);
            return Ok(false);
        }
        if self.0.len() >= limit {
            return Err(TooManySubscriptions);
        }
        self.0.insert(uri.to_owned(), 1);
        Ok(true)
    }

    /// One less; whether it was the last. One that nobody follows stays so.
    fn remove(&mut self, uri: &str) -> bool {
        match self.0.get_mut(uri) {
            Some(1) => self.0.remove(uri).is_some(),
            Some(count) => {
                *count -= 1;
                false
            }
            None => false,
        }
    }

    fn uris(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::pool::ListKind;

    #[test]
    fn a_full_table_takes_more_of_what_it_has() {
        let mut counts = Counts::default();
        assert_eq!(counts.add("a", 1), Ok(true));
        assert_eq!(counts.add("a", 1), Ok(false));
        assert_eq!(counts.add("b", 1), Err(TooManySubscriptions));
        assert!(!counts.remove("b") && !counts.remove("a") && counts.remove("a"));
        assert_eq!(counts.add("b", 1), Ok(true));
    }

    #[test]
    fn connections_see_the_first_and_the_last_subscriber() {
        let subscriptions = Subscriptions::new();
        let mut wanted = subscriptions.watch();
        let mut changed = move || {
            let changed = wanted.has_changed().unwrap();
            (changed, wanted.borrow_and_update().iter().cloned().collect::<Vec<_>>())
        };
        subscriptions.subscribe("a:1").unwrap();
        assert_eq!(changed(), (true, vec!["a:1".to_owned()]));
        subscriptions.subscribe("a:1").unwrap();
        subscriptions.unsubscribe("a:1");
        assert_eq!(changed(), (false, vec!["a:1".to_owned()]));
        // A connection that is opened later sees the same.
        assert_eq!(subscriptions.watch().borrow().len(), 1);
        subscriptions.unsubscribe("a:1");
        subscriptions.unsubscribe("a:1");
        assert_eq!(changed(), (true, Vec::new()));
    }

    #[test]
    fn notices_say_whose_session_they_came_over() {
        let notices = Notices::default();
        let server = ServerName::parse("files").unwrap();
        let shared = notices.sink(&server, None);
        let own = notices.sink(&server, Some(SessionScope::Caller("ci".into())));
        shared.take(Notice::ListChanged(ListKind::Tools));
        let heard = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&heard);
        let handler: NoticeHandler = Box::new(move |server, scope, notice| {
            assert_eq!(server.as_str(), "files");
            assert!(matches!(notice, Notice::ListChanged(ListKind::Tools)));
            count.fetch_add(if scope.is_some() { 10 } else { 1 }, Ordering::Relaxed);
        });
        assert!(notices.set(handler));
        assert!(!notices.set(Box::new(|_, _, _| panic!("the first stays"))));
        shared.take(Notice::ListChanged(ListKind::Tools));
        own.take(Notice::ListChanged(ListKind::Tools));
        assert_eq!(heard.load(Ordering::Relaxed), 11);
    }

    proptest! {
        #[test]
        fn what_is_followed_is_what_was_taken_more_often_than_given_back(
            steps in proptest::collection::vec((0_usize..4, any::<bool>()), 0..60)
        ) {
            let mut counts = Counts::default();
            let mut model = [0_u32; 4];
            for (at, add) in steps {
                let uri = format!("x:{at}");
                if add {
                    prop_assert_eq!(counts.add(&uri, 100), Ok(model[at] == 0));
                    model[at] += 1;
                } else {
                    prop_assert_eq!(counts.remove(&uri), model[at] == 1);
                    model[at] = model[at].saturating_sub(1);
                }
                let followed = model.iter().filter(|count| **count > 0).count();
                prop_assert_eq!(counts.uris().len(), followed);
            }
        }
    }
}
