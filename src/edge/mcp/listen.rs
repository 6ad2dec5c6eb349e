//! Clients that listen: the stream of a legacy session, and `subscriptions/listen` of the modern
//! era. [`Listeners`] tells each what it asked to hear.
//!
//! Changes when what clients can listen to changes.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::methods::{Asked, not_found};
use super::reply::{Answered, Reply, Work};
use super::session::SUBSCRIPTIONS;
use super::stream::{EventStream, event_stream};
use crate::catalogue::{Catalogue, Discovery, OfferedList};
use crate::edge::Edge;
use crate::edge::door::Body;
use crate::edge::sessions::Session;
use crate::model::{ServerName, ViewName};
use crate::protocol::{RawObject, SUBSCRIPTION_ID, render_notification, result_response};
use crate::registry::{ServerHandle, TooManySubscriptions};
use crate::router::{Notice, Relay, RelayWishes, ServerMessage};

/// A resource that somebody wants to hear of; dropping it ends the subscription at its server.
#[derive(Debug)]
pub(in crate::edge) struct Watched {
    server: Arc<ServerHandle>,
    uri: String,
}

impl Watched {
    pub(super) fn new(
        server: &Arc<ServerHandle>,
        uri: String,
    ) -> Result<Self, TooManySubscriptions> {
        server.subscribe(&uri)?;
        Ok(Self { server: Arc::clone(server), uri })
    }

    /// Whether news of `uri` at `server` are news of this: the resource itself or a part of it.
    fn is(&self, server: &ServerName, uri: &str) -> bool {
        self.server.name == *server
            && uri.strip_prefix(self.uri.as_str()).is_some_and(|rest| {
                rest.is_empty() || self.uri.ends_with('/') || rest.starts_with(['/', '?', '#'])
            })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.server.unsubscribe(&self.uri);
    }
}

/// One client's open stream.
#[derive(Debug)]
struct Listener {
    relay: Arc<Relay>,
    /// Where it listens: what happens outside a view is not its business.
    view: Option<ViewName>,
    tools: bool,
    prompts: bool,
    resources: bool,
    wants: Wants,
}

/// Which resources, and how a message is marked.
#[derive(Debug)]
enum Wants {
    /// A legacy session: what it subscribed to.
    Session(Weak<Session>),
    /// A modern subscription: what it listed, by the address that the client knows.
    Listed {
        /// The id of the listening request, as JSON.
        subscription: Box<str>,
        resources: Vec<(String, Watched)>,
    },
}

/// Everybody who listens.
#[derive(Debug, Default)]
pub struct Listeners {
    open: Mutex<Vec<Arc<Listener>>>,
}

impl Listeners {
    /// Tells listeners of changes of the catalogue until `stop`, and ends their streams then.
    pub async fn run(self: Arc<Self>, discovery: Arc<Discovery>, stop: CancellationToken) {
        let mut rebuilt = discovery.subscribe();
        let mut seen = fingerprints(&discovery.catalogue().load());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = rebuilt.changed() => if changed.is_err() { break },
            }
            rebuilt.borrow_and_update();
            let catalogue = discovery.catalogue().load_full();
            let now = fingerprints(&catalogue);
            for (view, lists) in &now {
                let before = seen.get(view);
                for (at, kind) in OfferedList::ALL.into_iter().enumerate() {
                    if before.is_none_or(|before| before.get(at) != lists.get(at)) {
                        self.list_changed(view.as_ref(), kind);
                    }
                }
            }
            seen = now;
        }
        for listener in self.open.lock().iter() {
            if let Wants::Session(_) = listener.wants {
                listener.relay.cancel();
            }
        }
    }

    fn list_changed(&self, view: Option<&ViewName>, kind: OfferedList) {
        let method = match kind {
            OfferedList::Tools => "notifications/tools/list_changed",
            OfferedList::Prompts => "notifications/prompts/list_changed",
            OfferedList::Resources | OfferedList::Templates => {
                "notifications/resources/list_changed"
            }
        };
        for listener in self.open.lock().iter() {
            let wanted = match kind {
                OfferedList::Tools => listener.tools,
                OfferedList::Prompts => listener.prompts,
                OfferedList::Resources | OfferedList::Templates => listener.resources,
            };
            if wanted && listener.view.as_ref() == view {
                listener.tell(method, None);
            }
        }
    }

    /// Tells those who subscribed to a resource of `server` that it changed. A view that no longer
    /// has the server hears nothing of it.
    pub fn resource_updated(&self, catalogue: &Catalogue, server: &ServerName, uri: &str) {
        let has_server = |view: &ViewName| {
            catalogue.views().get(view).is_some_and(|view| view.spec.admits_server(server))
        };
        for listener in self.open.lock().iter() {
            if !listener.view.as_ref().is_none_or(has_server) {
                continue;
            }
            match &listener.wants {
                Wants::Session(session) => {
                    let Some(session) = session.upgrade() else { continue };
                    for (known, watched) in session.live().subscriptions.lock().iter() {
                        if watched.is(server, uri) {
                            listener.tell(
                                "notifications/resources/updated",
                                Some((known, watched, uri)),
                            );
                        }
                    }
                }
                Wants::Listed { resources, .. } => {
                    for (known, watched) in resources {
                        if watched.is(server, uri) {
                            listener.tell(
                                "notifications/resources/updated",
                                Some((known, watched, uri)),
                            );
                        }
                    }
                }
            }
        }
    }

    fn add(self: &Arc<Self>, listener: Listener) -> Open {
        let listener = Arc::new(listener);
        self.open.lock().push(Arc::clone(&listener));
        Open { listeners: Arc::clone(self), listener }
    }
}

/// What tells one list from another, for the whole catalogue and for each view.
type Fingerprints = HashMap<Option<ViewName>, [[u8; 8]; OfferedList::ALL.len()]>;

fn fingerprints(catalogue: &Catalogue) -> Fingerprints {
    let of = |part: &Catalogue| OfferedList::ALL.map(|kind| part.fingerprint(kind));
    let views =
        catalogue.views().iter().map(|(name, view)| (Some(name.clone()), of(&view.catalogue)));
    views.chain([(None, of(catalogue))]).collect()
}

impl Listener {
    /// Queues a notification; `about` is a resource as the client knows it, as it is watched, and
    /// as its server named it.
    fn tell(&self, method: &str, about: Option<(&str, &Watched, &str)>) {
        let uri = about.map(|(known, watched, uri)| if uri == watched.uri { known } else { uri });
        let uri = uri.map(|uri| format!(r#""uri":{}"#, serde_json::Value::from(uri)));
        let mark = match &self.wants {
            Wants::Session(_) => None,
            Wants::Listed { subscription, .. } => {
                Some(format!(r#""_meta":{{"{SUBSCRIPTION_ID}":{subscription}}}"#))
            }
        };
        let members: Vec<String> = uri.into_iter().chain(mark).collect();
        let params = (!members.is_empty()).then(|| format!("{{{}}}", members.join(",")));
        let message = render_notification(method, params.as_deref());
        self.relay.push(ServerMessage::Notification(message.into()));
    }
}

/// Takes a listener off the list when its stream ends.
struct Open {
    listeners: Arc<Listeners>,
    listener: Arc<Listener>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.listeners.open.lock();
        if let Some(at) = open.iter().position(|other| Arc::ptr_eq(other, &self.listener)) {
            open.swap_remove(at);
        }
        drop(open);
        if let Wants::Session(session) = &self.listener.wants
            && let Some(session) = session.upgrade()
        {
            session.live().close_stream(&self.listener.relay);
        }
    }
}

/// The stream of a legacy session; one that it had before ends.
pub(super) fn session_stream(edge: &Arc<Edge>, session: &Arc<Session>) -> http::Response<Body> {
    let relay = Arc::new(Relay::of_listener(RelayWishes {
        log_level: Some(crate::protocol::LogLevel::Debug),
        abilities: session.abilities,
        ..RelayWishes::default()
    }));
    session.live().open_stream(&relay);
    let open = edge.listeners.add(Listener {
        relay: Arc::clone(&relay),
        view: session.view.clone(),
        tools: true,
        prompts: true,
        resources: true,
        wants: Wants::Session(Arc::downgrade(session)),
    });
    let questions = Some(Arc::clone(&session.live().questions));
    event_stream(EventStream::new(relay, None, questions).greeting().holding(open))
}

/// What the server of an isolated session says on its own, for the session's client.
pub(in crate::edge) fn tell_session(session: &Session, notice: Notice) {
    let live = session.live();
    match notice {
        Notice::Notification { method, message } => {
            let level = live.log_level().unwrap_or(crate::protocol::LogLevel::Debug);
            let said = crate::protocol::log_level(&message);
            if method == "notifications/message" && said.is_some_and(|said| said < level) {
                return;
            }
            if let Some(relay) = live.stream().or_else(|| live.latest_request()) {
                relay.push(ServerMessage::Notification(message));
            }
        }
        // Dropped when nobody can answer it, which tells the server so.
        Notice::Request(request) => {
            if let Some(relay) = live.stream().or_else(|| live.latest_request()) {
                drop(relay.request(request));
            }
        }
        Notice::ResourceUpdated { uri } => {
            if let Some(relay) = live.stream() {
                let known = live.own_subscriptions.lock().get(&uri).cloned();
                let uri = known.unwrap_or(uri);
                let params = format!(r#"{{"uri":{}}}"#, serde_json::Value::from(uri));
                let method = "notifications/resources/updated";
                let message = render_notification(method, Some(&params));
                relay.push(ServerMessage::Notification(message.into()));
            }
        }
        Notice::ListChanged(_) => {}
    }
}

/// Opens a subscription of the modern era.
pub(super) fn listen(asked: &Asked<'_>) -> Reply {
    let edge = asked.edge;
    let members = match asked.members() {
        Ok(members) => members,
        Err(message) => return asked.invalid(&message),
    };
    let filter = match members.get("notifications").map(|raw| RawObject::parse(raw.get())) {
        Some(Ok(filter)) => filter,
        Some(Err(error)) => return asked.invalid(&format!("`notifications`: {error}")),
        None => return asked.invalid("`notifications` is missing"),
    };
    let wants = |key: &str| filter.get(key).is_some_and(|raw| raw.get() == "true");
    let (tools, prompts, resources) =
        (wants("toolsListChanged"), wants("promptsListChanged"), wants("resourcesListChanged"));
    let uris: Vec<String> = match filter.get("resourceSubscriptions").map(RawValue::get) {
        None | Some("null") => Vec::new(),
        Some(list) => match serde_json::from_str(list) {
            Ok(uris) => uris,
            Err(_) => return asked.invalid("`resourceSubscriptions` must be a list of strings"),
        },
    };
    if uris.len() > SUBSCRIPTIONS {
        return asked.invalid(&format!("a stream may subscribe to {SUBSCRIPTIONS} resources"));
    }
    let catalogue = asked.catalogue();
    let mut watched = Vec::new();
    for uri in uris {
        match catalogue.find_resource(&uri) {
            Ok(route) => match Watched::new(&route.server, route.uri) {
                Ok(resource) => watched.push((uri, resource)),
                Err(error) => return asked.invalid(&error.to_string()),
            },
            Err(why) => tracing::debug!("{}", not_found("resource", &uri, &why)),
        }
    }
    let mut honoured: Vec<String> = [
        ("toolsListChanged", tools),
        ("promptsListChanged", prompts),
        ("resourcesListChanged", resources),
    ]
    .into_iter()
    .filter(|(_, wanted)| *wanted)
    .map(|(key, _)| format!(r#""{key}":true"#))
    .collect();
    if !watched.is_empty() {
        let uris: Vec<&str> = watched.iter().map(|(uri, _)| uri.as_str()).collect();
        honoured.push(format!(r#""resourceSubscriptions":{}"#, serde_json::Value::from(uris)));
    }
    let id = asked.id.json();
    let mark = format!(r#""_meta":{{"{SUBSCRIPTION_ID}":{id}}}"#);
    let params = format!(r#"{{{mark},"notifications":{{{}}}}}"#, honoured.join(","));
    let acknowledged =
        render_notification("notifications/subscriptions/acknowledged", Some(&params));
    let relay = Arc::new(Relay::of_listener(RelayWishes::default()));
    relay.push(ServerMessage::Notification(acknowledged.into()));
    let open = edge.listeners.add(Listener {
        relay: Arc::clone(&relay),
        view: asked.context.view.clone(),
        tools,
        prompts,
        resources,
        wants: Wants::Listed { subscription: id.into(), resources: watched },
    });
    let result = format!(r#"{{"resultType":"complete",{mark}}}"#);
    let message = result_response(id, "result", result.as_bytes());
    let stop = edge.stop.clone();
    let work = async move {
        stop.cancelled().await;
        Answered { status: http::StatusCode::OK, message }
    };
    let stream = EventStream::new(relay, Some(Work::Bound(Box::pin(work))), None);
    Reply::Raw(event_stream(stream.holding(open)))
}
