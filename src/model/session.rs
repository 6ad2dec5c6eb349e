//! Sessions of clients: [`SessionRef`], and whose session at a server a request uses:
//! [`SessionScope`].
//!
//! Changes when requests are told apart by something new.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{AuthKind, CallId, Caller, ClientInfo};

/// The SHA-256 of a session id. The id itself is the client's and is never kept.
pub type SessionHash = [u8; 32];

/// A legacy session as calls and the ledger know it.
#[derive(Debug)]
pub struct SessionRef {
    /// What it is found by.
    pub key: SessionHash,
    /// How the ledger names it: the first 16 hex digits of `key`.
    pub hash: Arc<str>,
    /// What the client said of itself at `initialize`.
    pub client: Arc<ClientInfo>,
    /// What it declared it can do for servers, as a JSON object; none when that is nothing.
    pub abilities: Option<Box<str>>,
    ended: AtomicBool,
}

impl SessionRef {
    /// A session that goes on.
    #[must_use]
    pub fn new(key: SessionHash, client: ClientInfo, abilities: Option<Box<str>>) -> Self {
        let hash = hex(&key).into();
        Self { key, hash, client: Arc::new(client), abilities, ended: AtomicBool::new(false) }
    }

    /// Notes that it ended: a request that is still under way begins nothing new in its name.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Whether it ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// The first 16 hex digits.
fn hex(hash: &SessionHash) -> String {
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Whose session at a server a request uses, where the server is not shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SessionScope {
    /// The one of a client's legacy session.
    Session(SessionHash),
    /// The one of a caller who has a name but no session: whoever has the key of this name, or the
    /// admin socket.
    Caller(Arc<str>),
    /// One for this call alone: nothing says which calls belong together.
    Once(CallId),
}

impl SessionScope {
    /// Whether it ends with the request that began it.
    #[must_use]
    pub const fn is_once(&self) -> bool {
        matches!(self, Self::Once(_))
    }
}

impl fmt::Display for SessionScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(hash) => write!(f, "session {}", hex(hash)),
            Self::Caller(name) => write!(f, "caller {name}"),
            Self::Once(id) => write!(f, "call {id}"),
        }
    }
}

/// Who makes a request, for choosing its session at a server.
#[derive(Debug, Clone, Copy)]
pub struct Requester<'a> {
    /// The request.
    pub id: CallId,
    /// Who makes it.
    pub caller: &'a Caller,
    /// The legacy session it belongs to, if any.
    pub session: Option<&'a SessionRef>,
}

impl Requester<'_> {
    /// Whose session the request uses.
    #[must_use]
    pub fn scope(&self) -> SessionScope {
        match (self.session, self.caller.auth) {
            (Some(session), _) => SessionScope::Session(session.key),
            (None, AuthKind::Key | AuthKind::Socket) => {
                SessionScope::Caller(Arc::clone(&self.caller.name))
            }
            (None, AuthKind::None) => SessionScope::Once(self.id),
        }
    }

    /// Whether the session it belongs to ended meanwhile.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.session.is_some_and(SessionRef::has_ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Scopes;

    #[test]
    fn a_session_comes_before_a_key_and_a_key_before_the_call() {
        let id = CallId::from_slice(&[7; 16]).unwrap();
        let anonymous = Caller::anonymous(Scopes::ALL);
        let keyed =
            Caller { name: "ci".into(), auth: AuthKind::Key, ..Caller::anonymous(Scopes::ALL) };
        let session = SessionRef::new([0xab; 32], ClientInfo::default(), None);
        let scope = |caller, session| Requester { id, caller, session }.scope();
        assert_eq!(scope(&anonymous, None), SessionScope::Once(id));
        assert_eq!(scope(&keyed, None), SessionScope::Caller("ci".into()));
        for caller in [&anonymous, &keyed] {
            assert_eq!(scope(caller, Some(&session)), SessionScope::Session([0xab; 32]));
        }
        assert_eq!(scope(&keyed, Some(&session)).to_string(), "session abababababababab");
        assert_eq!(session.hash.as_ref(), "abababababababab");
    }

    #[test]
    fn who_asks_sees_that_the_session_ended() {
        let session = SessionRef::new([1; 32], ClientInfo::default(), None);
        let caller = Caller::anonymous(Scopes::ALL);
        let id = CallId::from_slice(&[7; 16]).unwrap();
        let requester = Requester { id, caller: &caller, session: Some(&session) };
        assert!(!requester.has_ended());
        session.end();
        assert!(requester.has_ended());
    }
}
