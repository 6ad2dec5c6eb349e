//! The catalogue over a real registry, a real database and servers that say what a test lets them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::{Json, Router};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::config::{self, Environment};
use crate::metrics::Metrics;
use crate::model::{ArgumentsLevel, Era, NamingMode, ResultsLevel, ServerName};
use crate::pool::ListKind;
use crate::registry::Registry;
use crate::store::{OfferKind, Store};

fn name(text: &str) -> ServerName {
    ServerName::parse(text).unwrap()
}

fn settings(naming: NamingMode, interval: Duration) -> DiscoverySettings {
    DiscoverySettings {
        views: std::collections::BTreeMap::new(),
        naming,
        recording: RecordingSettings {
            arguments: ArgumentsLevel::Full,
            results: ResultsLevel::Full,
            rules: Vec::new(),
            pointers: Vec::new(),
        },
        tools_per_server: 5000,
        list_page: 1000,
        health_check_interval: interval,
    }
}

const LONG: Duration = Duration::from_secs(3600);

struct Fixture {
    folder: TempDir,
    store: Store,
    registry: Arc<Registry>,
    discovery: Arc<Discovery>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Fixture {
    /// A registry of these servers, and what is in the folder's database.
    async fn open(folder: TempDir, yaml: &str, settings: DiscoverySettings) -> Self {
        let store = Store::open(folder.path()).await.unwrap();
        let metrics = Metrics::new().unwrap();
        let tasks = TaskTracker::new();
        let environment = Environment::new(|_| None);
        let config = config::parse(yaml, "test.yaml", &environment).unwrap();
        let registry = Registry::open(
            store.clone(),
            Arc::clone(&metrics),
            tasks.clone(),
            environment,
            Box::new(drop),
            &config,
        );
        let registry = Arc::new(registry.await.unwrap());
        let discovery = Discovery::load(Arc::clone(&registry), metrics, settings).await.unwrap();
        Self { folder, store, registry, discovery, stop: CancellationToken::new(), tasks }
    }

    /// The same with lists in the database: server, kind, and the keys of each list.
    async fn listed(naming: NamingMode, yaml: &str, lists: &[(&str, OfferKind, &[&str])]) -> Self {
        let empty = Self::open(tempfile::tempdir().unwrap(), yaml, settings(naming, LONG)).await;
        for (server, kind, keys) in lists {
            let member = match kind {
                OfferKind::Prompt => "name",
                OfferKind::Resource => "uri",
                OfferKind::Template => "uriTemplate",
            };
            let rows: Vec<(&str, bytes::Bytes)> = keys
                .iter()
                .map(|key| (*key, json!({member: key, "of": server}).to_string().into()))
                .collect();
            let rows: Vec<(&str, &bytes::Bytes)> =
                rows.iter().map(|(key, raw)| (*key, raw)).collect();
            empty.store.replace_offers(&name(server), *kind, &rows).await.unwrap();
        }
        Self::open(empty.close().await, yaml, settings(naming, LONG)).await
    }

    fn run(&self) {
        self.tasks.spawn(Arc::clone(&self.discovery).run(self.stop.clone()));
    }

    fn catalogue(&self) -> Arc<Catalogue> {
        self.discovery.catalogue().load_full()
    }

    fn keys(&self, list: OfferedList) -> Vec<String> {
        keys(&self.catalogue(), list)
    }

    async fn close(self) -> TempDir {
        self.stop.cancel();
        self.registry.close().await;
        self.tasks.close();
        tokio::time::timeout(Duration::from_secs(30), self.tasks.wait()).await.unwrap();
        self.store.close().await.unwrap();
        self.folder
    }
}

/// What clients see in a list.
fn keys(catalogue: &Catalogue, list: OfferedList) -> Vec<String> {
    let page = catalogue.page(list, Era::Modern, None, 1000).unwrap();
    let items: Vec<Value> =
        serde_json::from_slice(&[b"[", page.items.as_ref(), b"]"].concat()).unwrap();
    items.iter().map(|item| item[list.key()].as_str().unwrap().to_owned()).collect()
}

async fn eventually(what: &str, probe: impl Fn() -> bool) {
    let waiting = async {
        while !probe() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), waiting).await.is_ok(), "{what}");
}

const TWO: &str = "mcp_servers:
  a: {url: 'http://127.0.0.1:1/mcp'}
  b: {url: 'http://127.0.0.1:1/mcp'}
  c: {url: 'http://127.0.0.1:1/mcp', enabled: false}
";

/// `server uri` of where a resource is found, or why not.
fn find(catalogue: &Catalogue, uri: &str) -> String {
    told(catalogue.find_resource(uri))
}

fn told(found: Result<ResourceRoute, NotFound>) -> String {
    match found {
        Ok(route) => format!("{} {}", route.server.name, route.uri),
        Err(NotFound::Unknown { nearest }) => format!("unknown {}", nearest.join(" ")),
        Err(NotFound::Ambiguous { candidates }) => format!("ambiguous {}", candidates.join(" ")),
        Err(NotFound::Collision { servers }) => format!("collision {servers:?}"),
        Err(NotFound::Held { server }) => format!("held {server}"),
    }
}

#[tokio::test]
async fn with_prefixes_every_resource_can_be_addressed() {
    use OfferKind::{Resource, Template};
    let lists: &[(&str, OfferKind, &[&str])] = &[
        ("a", Resource, &["file:///1", "file:///both", "switchyard://b/stolen:1"]),
        ("b", Resource, &["file:///both", "db://x", "switchyard://elsewhere/y:1"]),
        ("a", Template, &["note://{id}", "same://{id}", "deep://{+path}"]),
        ("b", Template, &["note://b/{id}", "same://{id}", "deep://{+path}/end"]),
        ("c", Resource, &["off:1"]),
    ];
    let fixture = Fixture::listed(NamingMode::Prefix, TWO, lists).await;
    let catalogue = fixture.catalogue();
    let both = ["switchyard://a/file%3A%2F%2F%2Fboth", "switchyard://b/file%3A%2F%2F%2Fboth"];
    assert_eq!(
        keys(&catalogue, OfferedList::Resources),
        [
            "file:///1",
            both[0],
            "switchyard://a/switchyard%3A%2F%2Fb%2Fstolen%3A1",
            both[1],
            "db://x",
            "switchyard://elsewhere/y:1"
        ]
    );
    assert_eq!(
        keys(&catalogue, OfferedList::Templates),
        [
            "note://{id}",
            "switchyard://a/same://{id}",
            "deep://{+path}",
            "note://b/{id}",
            "switchyard://b/same://{id}",
            "deep://{+path}/end"
        ]
    );
    for (uri, expected) in [
        ("file:///1", "a file:///1"),
        ("file:///both", &format!("ambiguous {}", both.join(" "))),
        (both[1], "b file:///both"),
        ("switchyard://a/db%3A%2F%2Fx", "a db://x"),
        ("switchyard://b/stolen:1", "b stolen:1"),
        ("switchyard://a/switchyard%3A%2F%2Fb%2Fstolen%3A1", "a switchyard://b/stolen:1"),
        ("switchyard://elsewhere/y:1", "b switchyard://elsewhere/y:1"),
        ("switchyard://c/off%3A1", "unknown "),
        ("note://7", "a note://7"),
        ("note://b/7", "b note://b/7"),
        ("deep://x/y/end", "b deep://x/y/end"),
        ("deep://x/y", "a deep://x/y"),
        (
            "same://a%20b",
            "ambiguous switchyard://a/same%3A%2F%2Fa%2520b switchyard://b/same%3A%2F%2Fa%2520b",
        ),
        ("switchyard://a/same://a%20b", "a same://a%20b"),
        ("switchyard://a/same%3A%2F%2Fa%2520b", "a same://a%20b"),
        ("db://unlisted", "b db://unlisted"),
        ("DB://unlisted", "b DB://unlisted"),
        ("file:///unlisted", "unknown file:///1"),
        ("off:1", "unknown "),
    ] {
        assert_eq!(find(&catalogue, uri), expected, "{uri}");
    }
    for (template, expected) in [
        ("note://{id}", "a note://{id}"),
        ("switchyard://b/same://{id}", "b same://{id}"),
        ("same://{id}", "ambiguous switchyard://a/same://{id} switchyard://b/same://{id}"),
        ("db://x", "unknown "),
    ] {
        assert_eq!(told(catalogue.find_template(template)), expected, "{template}");
    }

    // A part of it is a catalogue of its own.
    let mut part = catalogue.parts().clone();
    part.resources.retain(|entry| entry.server.name == name("b"));
    part.templates.retain(|entry| entry.server.name == name("b"));
    part.readers.retain(|reader| reader.handle.name == name("b"));
    let part = Catalogue::assemble(part);
    assert_eq!(part.resources().len(), 3);
    assert_eq!(find(&part, "file:///both"), "b file:///both");
    assert_eq!(find(&part, "same://1"), "b same://1");
    assert_eq!(find(&part, both[0]), "unknown ");
    let differ = |list| part.fingerprint(list) != catalogue.fingerprint(list);
    assert!(differ(OfferedList::Resources) && !differ(OfferedList::Prompts));

    // What did not change is not made again.
    fixture.discovery.configure(settings(NamingMode::Prefix, LONG));
    let again = fixture.catalogue();
    assert!(catalogue.resources().iter().zip(again.resources()).all(|(a, b)| Arc::ptr_eq(a, b)));
    assert!(catalogue.templates().iter().zip(again.templates()).all(|(a, b)| Arc::ptr_eq(a, b)));
    fixture.close().await;
}

#[tokio::test]
async fn with_bare_names_what_two_servers_list_is_had_of_neither() {
    use OfferKind::{Prompt, Resource, Template};
    let lists: &[(&str, OfferKind, &[&str])] = &[
        ("a", Resource, &["file:///both", "file:///1"]),
        ("b", Resource, &["file:///both"]),
        ("a", Template, &["same://{id}"]),
        ("b", Template, &["same://{id}", "same://{id}/more", "tie://{x}"]),
        ("a", Prompt, &["x", "y"]),
        ("b", Prompt, &["x"]),
    ];
    let fixture = Fixture::listed(NamingMode::Bare, TWO, lists).await;
    let catalogue = fixture.catalogue();
    assert_eq!(keys(&catalogue, OfferedList::Resources), ["file:///1"]);
    assert_eq!(keys(&catalogue, OfferedList::Templates), ["same://{id}/more", "tie://{x}"]);
    assert_eq!(keys(&catalogue, OfferedList::Prompts), ["y"]);
    let collision = r#"collision ["a", "b"]"#;
    for (uri, expected) in [
        ("file:///both", collision),
        ("same://1", collision),
        ("same://1/more", "b same://1/more"),
        ("tie://2", "b tie://2"),
        // Both have addresses of this scheme, if hidden ones.
        ("file:///unlisted", "unknown file:///1"),
        ("switchyard://a/file%3A%2F%2F%2F1", "unknown "),
    ] {
        assert_eq!(find(&catalogue, uri), expected, "{uri}");
    }
    assert_eq!(told(catalogue.find_template("same://{id}")), collision);
    let refused = catalogue.find_prompt("x").unwrap_err();
    assert_eq!(refused, NotFound::Collision { servers: vec![name("a"), name("b")] });
    assert_eq!(catalogue.find_prompt("y").unwrap().name, "y");
    assert_eq!(catalogue.parts().collisions.len(), 3);
    fixture.close().await;
}

#[tokio::test]
async fn prompts_are_found_as_tools_are() {
    let lists: &[(&str, OfferKind, &[&str])] =
        &[("a", OfferKind::Prompt, &["z", "own", "a b"]), ("b", OfferKind::Prompt, &["z", "a__z"])];
    let fixture = Fixture::listed(NamingMode::Prefix, TWO, lists).await;
    let catalogue = fixture.catalogue();
    let prompts = keys(&catalogue, OfferedList::Prompts);
    assert_eq!(prompts, ["a__z", "a__own", "a__a_b", "b__z", "b__a__z"]);
    for (asked, expected) in
        [("a__z", "a z"), ("own", "a own"), ("b__z", "b z"), ("a__a b", "a a b")]
    {
        let found = catalogue.find_prompt(asked).unwrap();
        assert_eq!(format!("{} {}", found.server.name, found.name), expected);
    }
    let candidates = vec!["a__z".to_owned(), "b__z".to_owned()];
    assert_eq!(catalogue.find_prompt("z").unwrap_err(), NotFound::Ambiguous { candidates });
    let nearest = catalogue.find_prompt("owm").unwrap_err();
    assert_eq!(nearest, NotFound::Unknown { nearest: vec!["a__own".to_owned()] });
    // Bytes are ready: other members stay as they were.
    let page = catalogue.page(OfferedList::Prompts, Era::Legacy, None, 1).unwrap();
    assert_eq!(page.items, r#"{"name":"a__z","of":"a"}"#);
    assert!(page.next_cursor.is_some());
    fixture.close().await;
}

/// A server of one era that answers list requests with what it is told to.
struct Scripted {
    address: SocketAddr,
    script: Arc<Script>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Script {
    modern: bool,
    announces: bool,
    broken: AtomicBool,
    /// Result by method.
    results: Mutex<HashMap<String, Value>>,
    asked: Mutex<Vec<String>>,
}

impl Script {
    fn set(&self, list: OfferedList, keys: &[&str]) {
        let items: Vec<Value> = keys.iter().map(|key| json!({ list.key(): key })).collect();
        let mut result = json!({ list.member(): items });
        if self.modern {
            result["resultType"] = "complete".into();
            result["ttlMs"] = 60_000.into();
            result["cacheScope"] = "public".into();
        }
        self.results.lock().insert(list.method().to_owned(), result);
    }

    fn asked(&self, method: &str) -> usize {
        self.asked.lock().iter().filter(|asked| *asked == method).count()
    }

    fn answer(&self, request: &Value) -> Value {
        let method = request["method"].as_str().unwrap_or_default();
        self.asked.lock().push(method.to_owned());
        let flag = json!({ "listChanged": self.announces });
        let capabilities = json!({ "tools": flag, "prompts": flag, "resources": flag });
        let result = match method {
            "initialize" if !self.modern => json!({
                "protocolVersion": "2025-11-25", "capabilities": capabilities,
                "serverInfo": { "name": "scripted", "version": "1" }
            }),
            "server/discover" if self.modern => json!({
                "resultType": "complete", "supportedVersions": ["2026-07-28"],
                "capabilities": capabilities, "ttlMs": 0, "cacheScope": "public"
            }),
            "ping" if !self.modern => json!({}),
            method => match self.results.lock().get(method) {
                Some(result) => result.clone(),
                None => {
                    let error = json!({ "code": -32601, "message": "method not found" });
                    return json!({ "jsonrpc": "2.0", "id": request["id"], "error": error });
                }
            },
        };
        json!({ "jsonrpc": "2.0", "id": request["id"], "result": result })
    }
}

async fn post(
    State(script): State<Arc<Script>>,
    Json(request): Json<Value>,
) -> (http::StatusCode, Json<Value>) {
    let status = match request.get("id") {
        _ if script.broken.load(Ordering::Relaxed) => http::StatusCode::INTERNAL_SERVER_ERROR,
        Some(_) => http::StatusCode::OK,
        None => http::StatusCode::ACCEPTED,
    };
    (status, Json(script.answer(&request)))
}

/// A stream on which nothing is ever said.
async fn silence() -> impl axum::response::IntoResponse {
    let nothing = futures_util::stream::pending::<Result<bytes::Bytes, std::convert::Infallible>>();
    let body = axum::body::Body::from_stream(nothing);
    ([(http::header::CONTENT_TYPE, "text/event-stream")], body)
}

impl Scripted {
    async fn start(script: Script) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(script);
        let app = Router::new()
            .route("/mcp", axum::routing::post(post).get(silence))
            .with_state(Arc::clone(&script));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let stopped = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                served = async { axum::serve(listener, app).await } => served.unwrap(),
                () = stopped.cancelled() => {}
            }
        });
        for list in OfferedList::ALL {
            script.set(list, &[]);
        }
        Self { address, script, stop, tasks }
    }

    fn yaml(&self) -> String {
        format!("mcp_servers:\n  up: {{url: 'http://{}/mcp'}}\n", self.address)
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[tokio::test]
async fn what_was_listed_is_offered_after_a_restart_without_its_server() {
    let up = Scripted::start(Script::default()).await;
    let script = Arc::clone(&up.script);
    script.set(OfferedList::Tools, &["t"]);
    script.set(OfferedList::Prompts, &["p", "q"]);
    script.set(OfferedList::Resources, &["x:2", "x:1", "x:2"]);
    script.set(OfferedList::Templates, &["x:{id}"]);
    let yaml = up.yaml();
    let bare = || settings(NamingMode::Bare, LONG);
    let fixture = Fixture::open(tempfile::tempdir().unwrap(), &yaml, bare()).await;
    let server = fixture.discovery.server("up").unwrap();
    assert_eq!(fixture.discovery.discover(&server).await.unwrap(), 1);
    assert_eq!(fixture.keys(OfferedList::Prompts), ["p", "q"]);
    assert_eq!(fixture.keys(OfferedList::Resources), ["x:2", "x:1"], "its order, once each");
    assert_eq!(fixture.keys(OfferedList::Templates), ["x:{id}"]);
    assert_eq!(fixture.discovery.list_problems(&server.name), []);

    // One list that makes no sense costs no other, and keeps what it was.
    script.results.lock().insert("prompts/list".into(), json!({ "prompts": 7 }));
    script.set(OfferedList::Resources, &["x:3"]);
    script.results.lock().remove("resources/templates/list");
    assert_eq!(fixture.discovery.discover(&server).await.unwrap(), 1);
    assert_eq!(fixture.keys(OfferedList::Prompts), ["p", "q"]);
    assert_eq!(fixture.keys(OfferedList::Resources), ["x:3"]);
    assert_eq!(fixture.keys(OfferedList::Templates), Vec::<String>::new(), "a method it lacks");
    let problems = fixture.discovery.list_problems(&server.name);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].0, OfferedList::Prompts);
    assert!(problems[0].1.contains("prompts/list"), "{problems:?}");
    // Nor do tools.
    script.results.lock().insert("tools/list".into(), json!({ "tools": 7 }));
    script.set(OfferedList::Resources, &["x:4"]);
    let error = fixture.discovery.discover(&server).await.unwrap_err();
    assert!(matches!(error, DiscoveryError::BadList { method: "tools/list", .. }), "{error}");
    assert_eq!(fixture.keys(OfferedList::Tools), ["t"]);
    assert_eq!(fixture.keys(OfferedList::Resources), ["x:4"]);

    up.stop().await;
    let fixture = Fixture::open(fixture.close().await, &yaml, bare()).await;
    let all = || OfferedList::ALL.map(|list| fixture.keys(list).join(" "));
    assert_eq!(all(), ["t", "p q", "x:4", ""]);
    let server = fixture.discovery.server("up").unwrap();
    fixture.discovery.discover(&server).await.unwrap_err();
    assert_eq!(all(), ["t", "p q", "x:4", ""]);
    fixture.close().await;
}

#[tokio::test]
async fn only_the_list_that_changed_is_asked_for_and_a_flood_of_notices_is_one() {
    let up = Scripted::start(Script::default()).await;
    let bare = settings(NamingMode::Bare, LONG);
    let fixture = Fixture::open(tempfile::tempdir().unwrap(), &up.yaml(), bare).await;
    fixture.run();
    eventually("the server was asked", || fixture.discovery.start_up_done()).await;
    let asked = |list: OfferedList| up.script.asked(list.method());
    assert_eq!(OfferedList::ALL.map(asked), [1, 1, 1, 1]);

    up.script.set(OfferedList::Prompts, &["fresh"]);
    for _ in 0..10_000 {
        fixture.discovery.notice(&name("up"), ListKind::Prompts);
        fixture.discovery.notice(&name("nobody"), ListKind::Tools);
    }
    let fresh = || fixture.keys(OfferedList::Prompts) == ["fresh"];
    eventually("the new prompt is there", fresh).await;
    assert_eq!(OfferedList::ALL.map(asked), [1, 2, 1, 1]);
    fixture.close().await;
    up.stop().await;
}

#[tokio::test]
async fn a_server_that_promises_news_is_not_asked_for_lists_in_vain() {
    let scripts = [
        (Script { announces: true, ..Script::default() }, "ping"),
        (Script { modern: true, ..Script::default() }, "server/discover"),
    ];
    for (script, sign_of_life) in scripts {
        let up = Scripted::start(script).await;
        let often = settings(NamingMode::Bare, Duration::from_millis(200));
        let fixture = Fixture::open(tempfile::tempdir().unwrap(), &up.yaml(), often).await;
        fixture.run();
        eventually("the server was asked", || fixture.discovery.start_up_done()).await;
        let before = up.script.asked(sign_of_life);
        let checked = || up.script.asked(sign_of_life) >= before + 3;
        eventually("the server is asked for signs of life", checked).await;
        let asked = OfferedList::ALL.map(|list| up.script.asked(list.method()));
        assert_eq!(asked, [1, 1, 1, 1], "{sign_of_life}");

        // When none comes, it is down, and its tools are stale.
        let server = fixture.discovery.server("up").unwrap();
        up.script.broken.store(true, Ordering::Relaxed);
        let failed = || server.status().discovery.error.is_some();
        eventually("the loss is seen", failed).await;
        fixture.close().await;
        up.stop().await;
    }
}
