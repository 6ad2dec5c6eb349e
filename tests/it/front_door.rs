//! Who is let in: Host and Origin before anything else, then keys and their scopes, on every route.

use http::Method;
use switchyard::cli::demo_upstream::Options;

use crate::support::{Http, SOON, TestApp, eventually, legacy_body, upstream, yaml};

/// Every route with the scope it needs; `None` for those that are open to all.
const ROUTES: &[(Method, &str, Option<&str>)] = &[
    (Method::GET, "/livez", None),
    (Method::GET, "/readyz", None),
    (Method::POST, "/mcp", Some("call")),
    (Method::GET, "/mcp", Some("call")),
    (Method::DELETE, "/mcp", Some("call")),
    (Method::POST, "/mcp/v/all", Some("call")),
    (Method::GET, "/mcp/v/all", Some("call")),
    (Method::DELETE, "/mcp/v/all", Some("call")),
    (Method::POST, "/mcp/v/unknown", Some("call")),
    (Method::GET, "/mcp/v/unknown", Some("call")),
    (Method::DELETE, "/mcp/v/unknown", Some("call")),
    (Method::POST, "/mcp/call", Some("call")),
    (Method::GET, "/mcp/servers", Some("read")),
    (Method::POST, "/mcp/servers", Some("admin")),
    (Method::GET, "/mcp/servers/up", Some("read")),
    (Method::PUT, "/mcp/servers/up", Some("admin")),
    (Method::DELETE, "/mcp/servers/up", Some("admin")),
    (Method::GET, "/mcp/servers/up/tools", Some("read")),
    (Method::POST, "/mcp/servers/up/enable", Some("admin")),
    (Method::POST, "/mcp/servers/up/disable", Some("admin")),
    (Method::POST, "/mcp/servers/up/refresh", Some("admin")),
    (Method::POST, "/mcp/servers/up/reconnect", Some("admin")),
    (Method::GET, "/mcp/tools", Some("read")),
    (Method::GET, "/mcp/tools/up__echo/history", Some("read")),
    (Method::POST, "/mcp/tools/up__echo/approve", Some("admin")),
    (Method::GET, "/mcp/views", Some("read")),
    (Method::GET, "/mcp/health", Some("read")),
    (Method::GET, "/mcp/circuit-breakers", Some("read")),
    (Method::GET, "/mcp/circuit-breakers/history", Some("read")),
    (Method::GET, "/mcp/circuit-breakers/up", Some("read")),
    (Method::GET, "/mcp/circuit-breakers/up/history", Some("read")),
    (Method::POST, "/mcp/circuit-breakers/up/reset", Some("admin")),
    (Method::POST, "/mcp/circuit-breakers/up/open", Some("admin")),
    (Method::POST, "/mcp/circuit-breakers/up/close", Some("admin")),
    (Method::GET, "/mcp/audit", Some("audit")),
    (Method::GET, "/mcp/audit/tail", Some("audit")),
    (Method::GET, "/mcp/audit/0193e0a4-0000-7000-8000-000000000000", Some("audit")),
    (Method::GET, "/mcp/slo", Some("audit")),
    (Method::GET, "/mcp/slo/rules", Some("audit")),
    (Method::POST, "/mcp/audit/purge", Some("admin")),
    (Method::POST, "/mcp/audit/erase", Some("admin")),
    (Method::POST, "/admin/reload", Some("admin")),
    (Method::GET, "/admin/keys", Some("admin")),
    (Method::POST, "/admin/keys", Some("admin")),
    (Method::DELETE, "/admin/keys/nobody", Some("admin")),
    (Method::GET, "/metrics", Some("metrics")),
];

/// Paths that lead nowhere, with methods that nobody answers.
const NOWHERE: &[(Method, &str)] = &[
    (Method::GET, "/"),
    (Method::GET, "/nowhere"),
    (Method::POST, "/mcp/servers/up/nowhere"),
    (Method::PATCH, "/mcp"),
    (Method::PATCH, "/mcp/v/all"),
    (Method::GET, "/mcp/v"),
    (Method::POST, "/mcp/v/"),
    (Method::POST, "/mcp/v/all/more"),
    (Method::OPTIONS, "/mcp/call"),
    (Method::PUT, "/metrics"),
    (Method::GET, "/admin/reload"),
    (Method::GET, "//livez"),
];

fn every_path() -> impl Iterator<Item = (&'static Method, &'static str)> {
    let routes = ROUTES.iter().map(|(method, path, _)| (method, *path));
    routes.chain(NOWHERE.iter().map(|(method, path)| (method, *path)))
}

async fn app(settings: &str) -> (TestApp, switchyard::cli::demo_upstream::Upstream) {
    let up = upstream(Options::default()).await;
    let settings = format!("{settings}views: {{all: {{}}}}\n{}", yaml(&[("up", &up)]));
    let app = TestApp::start(&settings).await.ready().await;
    (app, up)
}

async fn status(http: &Http, method: &Method, path: &str) -> u16 {
    http.request(method, path).body("{}").status().await
}

#[tokio::test]
async fn a_foreign_host_is_turned_away_on_every_route() {
    let (app, _up) = app("").await;
    for (method, path) in every_path() {
        for host in ["evil.example.com", "127.0.0.1.evil.example.com", "0.0.0.0", "user@localhost"]
        {
            let call = app.http().request(method, path).header("host", host);
            assert_eq!(call.body("{}").status().await, 403, "{method} {path} for {host}");
        }
        let call = app.http().request(method, path).without("host");
        assert_eq!(call.body("{}").status().await, 403, "{method} {path} without host");
    }
    let call = app.http().request(&Method::GET, "/livez").header("host", "evil.example.com");
    let problem = call.send().await.expect(403);
    assert_eq!(problem.header("content-type"), "application/problem+json");
    assert_eq!(problem.json()["error_code"], "MCPForbiddenOriginError");
    assert!(problem.headers.contains_key("x-request-id"));
    app.stop().await;
}

#[tokio::test]
async fn a_foreign_origin_is_turned_away_on_every_route() {
    let (app, _up) = app("").await;
    let other_port = format!("http://127.0.0.1:{}", app.port().wrapping_add(1).max(1));
    for (method, path) in every_path() {
        for origin in ["http://evil.example.com", "null", "file://", other_port.as_str()] {
            let call = app.http().request(method, path).header("origin", origin);
            assert_eq!(call.body("{}").status().await, 403, "{method} {path} from {origin}");
        }
    }
    let own = format!("http://127.0.0.1:{}", app.port());
    let call = app.http().request(&Method::GET, "/mcp/servers").header("origin", &own);
    call.send().await.expect(200);
    assert!(app.metric(r#"switchyard_auth_failures_total{reason="origin"}"#).await > Some(0.0));
    app.stop().await;
}

#[tokio::test]
async fn hosts_and_origins_of_the_configuration_are_let_in() {
    let (app, _up) = app(
        "http: {allowed_hosts: [router.example], allowed_origins: [\"https://app.example\"]}\n",
    )
    .await;
    for (host, origin, expected) in [
        ("router.example", None, 200),
        ("Router.Example:8300", Some("https://app.example"), 200),
        ("localhost", Some("https://app.example"), 200),
        ("localhost", Some("https://app.example.evil.com"), 403),
        ("other.example", Some("https://app.example"), 403),
    ] {
        let mut call = app.http().request(&Method::GET, "/mcp/servers").header("host", host);
        if let Some(origin) = origin {
            call = call.header("origin", origin);
        }
        call.send().await.expect(expected);
    }
    app.stop().await;
}

async fn only_probes_answer_without_a_key(app: &TestApp) {
    for (method, path) in every_path() {
        let open = matches!(path, "/livez" | "/readyz");
        let got = status(app.http(), method, path).await;
        assert_eq!(got == 401, !open, "{method} {path}: {got}");
    }
    let answer = app.http().get("/mcp/servers").await.expect(401);
    assert!(answer.header("www-authenticate").starts_with("Bearer"));
    assert_eq!(answer.json()["error_code"], "MCPAuthenticationError");
}

#[tokio::test]
async fn with_keys_nothing_but_the_probes_answers_without_one() {
    let (app, _up) = app("auth: {mode: keys}\n").await;
    only_probes_answer_without_a_key(&app).await;
    app.stop().await;
}

#[tokio::test]
async fn beyond_loopback_nothing_but_the_probes_answers_without_a_key() {
    let (app, _up) = app("listen: 0.0.0.0:0\n").await;
    only_probes_answer_without_a_key(&app).await;
    let caller = app.keyed("remote", &["call", "read"]).await;
    caller.call("up__echo", r#"{"text":"hi"}"#).await.expect(200);
    app.stop().await;
}

#[tokio::test]
async fn on_loopback_only_administration_needs_a_key() {
    let (app, _up) = app("").await;
    for (method, path, scope) in ROUTES {
        let got = status(app.http(), method, path).await;
        assert_eq!(got == 403, *scope == Some("admin"), "{method} {path}: {got}");
        assert_ne!(got, 401, "{method} {path}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_key_opens_what_its_scopes_name_and_nothing_else() {
    let (app, _up) = app("auth: {mode: keys}\n").await;
    for held in ["call", "read", "audit", "metrics", "admin"] {
        let bearer = app.keyed(&format!("only-{held}"), &[held]).await;
        for (method, path, scope) in ROUTES {
            let got = status(&bearer, method, path).await;
            let allowed = scope.is_none_or(|scope| scope == held);
            assert_eq!(got != 403, allowed, "{method} {path} with {held}: {got}");
            assert_ne!(got, 401, "{method} {path} with {held}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn an_unknown_route_is_a_problem_with_its_own_words() {
    let (app, _up) = app("").await;
    let answer = app.http().get("/nowhere").await.expect(404);
    assert_eq!(answer.json()["error_code"], "MCPNotFoundError");
    let answer = app.http().put("/mcp/call", "{}").await.expect(405);
    assert_eq!(answer.json()["error_code"], "MCPMethodNotAllowedError");
    app.stop().await;
}

#[tokio::test]
async fn keys_are_made_used_listed_and_revoked() {
    let (app, _up) = app("auth: {mode: keys}\n").await;
    let socket = app.socket();
    let made = socket.post("/admin/keys", r#"{"name":"laptop","scopes":["call"]}"#).await;
    let key = made.expect(201).json()["key"].as_str().unwrap().to_owned();
    assert!(key.starts_with("sy_"));
    let bearer = app.http().with_key(&key);
    let answer = bearer.call("up__echo", r#"{"text":"hi"}"#).await.expect(200);
    assert_eq!(app.entry_of(&answer).await["caller"], "laptop");

    let list = socket.get("/admin/keys").await.expect(200);
    assert!(!list.text().contains(&key));
    assert!(list.json()["keys"][0]["last_used_at"].is_string());
    socket.post("/admin/keys", r#"{"name":"laptop"}"#).await.expect(409);
    for wrong in [
        r#"{"scopes":["call"]}"#,
        r#"{"name":"x","scopes":["cal"]}"#,
        r#"{"name":"a b"}"#,
        r#"{"name":"admin-socket"}"#,
        r#"{"name":"x","scope":["call"]}"#,
        r#"{"name":"x","expires_in":"soon"}"#,
    ] {
        socket.post("/admin/keys", wrong).await.expect(400);
    }
    socket.delete("/admin/keys/laptop").await.expect(204);
    bearer.call("up__echo", r#"{"text":"hi"}"#).await.expect(401);
    socket.delete("/admin/keys/laptop").await.expect(404);
    app.stop().await;
}

#[tokio::test]
async fn a_key_expires() {
    let (app, _up) = app("auth: {mode: keys}\n").await;
    let body = r#"{"name":"short","scopes":["read"],"expires_in":"300ms"}"#;
    let made = app.socket().post("/admin/keys", body).await.expect(201).json();
    let bearer = app.http().with_key(made["key"].as_str().unwrap());
    eventually(SOON, "the key expires", || async {
        (bearer.get("/mcp/servers").await.status == 401).then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn keys_outlive_a_restart() {
    let (app, _up) = app("auth: {mode: keys}\n").await;
    let made = app.socket().post("/admin/keys", r#"{"name":"ops"}"#).await.expect(201).json();
    let key = made["key"].as_str().unwrap().to_owned();
    let app = TestApp::start_in(app.stop().await, "auth: {mode: keys}\n").await;
    app.http().with_key(&key).get("/mcp/servers").await.expect(200);
    app.stop().await;
}

#[tokio::test]
async fn a_wrong_key_is_nobody_also_where_none_is_needed() {
    let (app, _up) = app("").await;
    for value in ["Bearer sy_wrong", "Bearer ", "Bearer", "Basic dXNlcjpwYXNz", "sy_wrong"] {
        for (method, path, _) in ROUTES.iter().filter(|(_, _, scope)| scope.is_some()) {
            let call = app.http().request(method, path).header("authorization", value);
            assert_eq!(call.body("{}").status().await, 401, "{method} {path} with {value}");
        }
    }
    let failures = app.metric(r#"switchyard_auth_failures_total{reason="invalid_key"}"#).await;
    assert!(failures > Some(0.0));
    app.stop().await;
}

#[tokio::test]
async fn a_key_makes_no_stronger_one() {
    let (app, _up) = app("").await;
    let admin = app.keyed("admin", &["admin"]).await;
    let body = r#"{"name":"more","scopes":["admin","call"]}"#;
    let problem = admin.post("/admin/keys", body).await.expect(403).json();
    assert!(problem["detail"].as_str().unwrap().contains("call"), "{problem}");
    admin.post("/admin/keys", r#"{"name":"same","scopes":["admin"]}"#).await.expect(201);
    app.stop().await;
}

#[tokio::test]
async fn the_socket_is_for_its_owner_and_may_do_everything() {
    use std::os::unix::fs::PermissionsExt as _;
    let (app, _up) = app("auth: {mode: keys}\n").await;
    let socket = app.data_dir().join("admin.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    for path in ["/mcp/servers", "/mcp/audit", "/metrics", "/admin/keys"] {
        app.socket().get(path).await.expect(200);
    }
    app.socket().post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    let folder = app.stop().await;
    assert!(!folder.path().join("data/admin.sock").exists());
}

#[tokio::test]
async fn no_authentication_is_refused_beyond_loopback() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = "listen: 0.0.0.0:0\nauth: {mode: none}\n";
    let error = TestApp::try_start_in(folder, yaml).await.unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("none"), "{error}");
}
