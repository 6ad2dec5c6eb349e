//! 234 secrets, planted wherever somebody outside can put a text: none of them is in any file of the
//! data folder, in what is made of it, in the log or in an answer to an operator.

mod secrets;
mod server;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::support::{LEGACY, Legacy, MODERN, Router, SOON, eventually, legacy_body, switchyard};
use secrets::{IN_HEADERS, KNOWN, Needles, PLACED, SHAPED, WAYS, known, placed, shaped, written};
use server::{Reply, Scripted};

/// Where a text can be put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Argument,
    NestedArgument,
    ArgumentsKey,
    JsonInArgument,
    JsonInJsonInArgument,
    Result,
    StructuredResult,
    JsonInResult,
    ToolError,
    ToolErrorAcrossTheCut,
    RpcMessage,
    RpcData,
    RpcErrorAcrossTheCut,
    Body,
    BodyAcrossTheCut,
    Location,
    ContentType,
    Log,
    ToolName,
    ToolNameAcrossTheCut,
    /// Of a server that is not there.
    ServerName,
    LegacyClient,
    ModernClient,
    MalformedBody,
    UnknownKey,
    Path,
    Search,
    Header,
    Credential,
}

impl Place {
    const ALL: [Self; 29] = [
        Self::Argument,
        Self::NestedArgument,
        Self::ArgumentsKey,
        Self::JsonInArgument,
        Self::JsonInJsonInArgument,
        Self::Result,
        Self::StructuredResult,
        Self::JsonInResult,
        Self::ToolError,
        Self::ToolErrorAcrossTheCut,
        Self::RpcMessage,
        Self::RpcData,
        Self::RpcErrorAcrossTheCut,
        Self::Body,
        Self::BodyAcrossTheCut,
        Self::Location,
        Self::ContentType,
        Self::Log,
        Self::ToolName,
        Self::ToolNameAcrossTheCut,
        Self::ServerName,
        Self::LegacyClient,
        Self::ModernClient,
        Self::MalformedBody,
        Self::UnknownKey,
        Self::Path,
        Self::Search,
        Self::Header,
        Self::Credential,
    ];

    /// Whether only what stands on one line of plain letters can be put there.
    const fn is_narrow(self) -> bool {
        matches!(
            self,
            Self::Location
                | Self::ContentType
                | Self::Path
                | Self::Search
                | Self::Header
                | Self::Credential
        )
    }
}

struct Scene {
    router: Router,
    upstream: Scripted,
    /// What operators were answered.
    told: String,
}

/// A text of JSON that says the same with quotes around.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

impl Scene {
    /// Puts `text` there, in a call of `server` where it is one.
    async fn plant(&self, plan: u64, place: Place, server: &str, text: &str) {
        let http = &self.router.http;
        let tool = format!("{server}__act");
        let body = |value: Value| value.to_string();
        let around = format!("before {text} after");
        let arguments = match place {
            Place::Argument => json!({ "plan": plan, "q": around }),
            Place::NestedArgument => json!({ "plan": plan, "a": [[{ "b": [1, around] }]] }),
            Place::ArgumentsKey => json!({ "plan": plan, around.as_str(): 1 }),
            Place::JsonInArgument => json!({ "plan": plan, "doc": body(json!({ "x": text })) }),
            Place::JsonInJsonInArgument => {
                json!({ "plan": plan, "doc": body(json!({ "in": body(json!([around])) })) })
            }
            _ => json!({ "plan": plan }),
        };
        let block = |text: &str| json!([{ "type": "text", "text": text }]);
        let far = |limit: usize| format!("{} {text} and more", "x".repeat(limit - 21));
        let reply = match place {
            Place::Result => Reply::Result(json!({ "content": block(&around) })),
            Place::StructuredResult => Reply::Result(
                json!({ "content": [], "structuredContent": { "deep": [{ "k": around }] } }),
            ),
            Place::JsonInResult => {
                Reply::Result(json!({ "content": block(&body(json!({ "t": text }))) }))
            }
            Place::ToolError => {
                Reply::Result(json!({ "content": block(&around), "isError": true }))
            }
            Place::ToolErrorAcrossTheCut => {
                Reply::Result(json!({ "content": block(&far(300)), "isError": true }))
            }
            Place::RpcMessage => Reply::RpcError(json!({ "code": -1, "message": around })),
            Place::RpcData => {
                Reply::RpcError(json!({ "code": -1, "message": "m", "data": { "d": [around] } }))
            }
            Place::RpcErrorAcrossTheCut => {
                // What stands before it in the error counts, too.
                Reply::RpcError(json!({ "code": -1, "message": far(1000) }))
            }
            Place::Body => Reply::Status(500, around.clone()),
            Place::BodyAcrossTheCut => Reply::Status(500, far(200)),
            Place::Location => Reply::Redirect(format!("http://127.0.0.1:1/x/{text}/y?z={text}")),
            Place::ContentType => Reply::ContentType(format!("text/{text}")),
            Place::Log => Reply::Log(around.clone()),
            _ => Reply::Result(json!({ "content": [] })),
        };
        self.upstream.plan(plan, reply);
        match place {
            Place::ToolName => drop(http.post("/mcp/call", call_body(&around, &arguments)).await),
            Place::ToolNameAcrossTheCut => {
                drop(http.post("/mcp/call", call_body(&far(128), &arguments)).await);
            }
            Place::ServerName => {
                let body = json!({ "tool_name": "x", "server_name": text });
                drop(http.post("/mcp/call", body.to_string()).await);
            }
            Place::LegacyClient => {
                let client = json!({ "name": around, "version": text });
                let params = format!(
                    r#"{{"protocolVersion":"{LEGACY}","capabilities":{{}},"clientInfo":{client}}}"#
                );
                let opened =
                    http.post("/mcp", legacy_body("initialize", &params)).await.expect(200);
                let session = opened.header("mcp-session-id").to_owned();
                let client = Legacy { http: http.clone(), path: "/mcp".to_owned(), session };
                client.call(&tool, &arguments.to_string()).await;
            }
            Place::ModernClient => {
                let meta = json!({
                    "io.modelcontextprotocol/protocolVersion": MODERN,
                    "io.modelcontextprotocol/clientInfo": { "name": far(128), "version": "1" },
                    "io.modelcontextprotocol/clientCapabilities": {},
                });
                let params = json!({ "_meta": meta, "name": tool, "arguments": arguments });
                let call = http.request(&Method::POST, "/mcp");
                let call = call
                    .header("accept", "application/json, text/event-stream")
                    .header("mcp-protocol-version", MODERN)
                    .header("mcp-method", "tools/call")
                    .header("mcp-name", &tool);
                call.body(legacy_body("tools/call", &params.to_string())).send().await.expect(200);
            }
            Place::MalformedBody => {
                drop(http.post("/mcp/call", format!("{{\"tool_name\":{text} ")).await);
                drop(http.post("/mcp", format!("{{\"method\":{},,", quoted(text))).await);
            }
            Place::UnknownKey => {
                let body = format!(r#"{{"tool_name":"x",{}:1}}"#, quoted(&around));
                http.post("/mcp/call", body).await;
                let method = legacy_body(quoted(&around).trim_matches('"'), "{}");
                drop(http.post("/mcp", method).await);
            }
            Place::Path => {
                drop(http.get(&format!("/mcp/v/{text}")).await);
                drop(http.get(&format!("/mcp/audit/{text}")).await);
            }
            Place::Search => drop(http.get(&format!("/mcp/audit?text={text}&tool={text}")).await),
            Place::Header => {
                let call = http.request(&Method::POST, "/mcp/call").header("x-forwarded-for", text);
                let call = call.header("mcp-session-id", text).header("origin", text);
                call.body(call_body(&tool, &arguments)).send().await;
            }
            Place::Credential => {
                let call = http.request(&Method::POST, "/mcp/call");
                let call = call.header("authorization", &format!("Bearer {text}"));
                call.body(call_body(&tool, &arguments)).send().await;
            }
            _ => drop(http.post("/mcp/call", call_body(&tool, &arguments)).await),
        }
    }

    /// A request of an operator, whose answer is looked through.
    async fn ask(&mut self, path: &str) -> Value {
        let answer = self.router.http.get(path).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        writeln!(self.told, "{path}: {text}").unwrap();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// The same over the command line.
    async fn run(&mut self, arguments: &[&str]) {
        let done = self.router.run(arguments).await;
        writeln!(self.told, "{arguments:?}: {}\n{}", done.out, done.err).unwrap();
    }
}

fn call_body(tool: &str, arguments: &Value) -> String {
    json!({ "tool_name": tool, "arguments": arguments }).to_string()
}

/// A child that says what it was given, a few secrets at a time, and ends; one more at each start.
const TELLTALE: &str = r#"
at=$(cat at 2>/dev/null || echo 60)
end=$((at + 4))
echo $end > at
while [ $at -lt $end ] && [ $at -lt 120 ]; do
  value=$(printenv CHILD_$at)
  printf 'stderr has %s here\n' "$value" >&2
  printf 'as %s\n' "$(printf %s "$value" | base64 | tr -d '\n')" >&2
  printf 'in lines\n%s\n' "$(printf '%045d%s' 0 "$value" | base64)" >&2
  printf 'stdout has %s here\n' "$value"
  at=$((at + 1))
done
exit 3
"#;

/// A child that serves, and tells what it was given in its log and in what it says of itself.
const TALKER: &str = r#"
printf 'started with %s\n%s\n' "$CHILD_61" "$CHILD_65" >&2
while read -r line; do
  id=$(printf %s "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
  case "$line" in
    *'"initialize"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"%s","version":"1"},"instructions":"with %s"}}\n' "$id" "$CHILD_60" "$CHILD_61";;
    *'"tools/list"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"tools":[{"name":"act","inputSchema":{"type":"object"}}]}}\n' "$id"
      printf '{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"error","data":"%s"}}\n' "$CHILD_60"
      printf 'no message: %s\n' "$CHILD_60";;
    *'"id"'*) printf '{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"%s"}}\n' "$id" "$CHILD_61";;
  esac
done
"#;

fn configuration(upstream: &Scripted, elsewhere: &Path) -> String {
    let headers: String =
        (0..IN_HEADERS).map(|n| format!("      X-Known-{n}: \"${{CORPUS_{n}}}\"\n")).collect();
    let env: String =
        (IN_HEADERS..KNOWN).map(|n| format!("      CHILD_{n}: \"${{CORPUS_{n}}}\"\n")).collect();
    let (url, elsewhere) = (&upstream.url, elsewhere.display());
    format!(
        "audit:
  durability: strict
  intent: all
  arguments: raw
  results: raw
  spool: \"{elsewhere}/spool/\"
  checkpoints: \"{elsewhere}/checkpoints\"
defaults: {{retry_mode: off, circuit_breaker_timeout: 1h}}
mcp_servers:
  known:
    url: \"{url}?api_key=${{CORPUS_0}}\"
    circuit_breaker_threshold: 1000000
    headers:
{headers}  usual:
    url: \"{url}\"
    circuit_breaker_threshold: 1000000
    audit: {{arguments: redacted, results: summary}}
  whole:
    url: \"{url}\"
    circuit_breaker_threshold: 1000000
    audit: {{arguments: full, results: full}}
  placed:
    url: \"{url}\"
    audit: {{redact: [/card/number]}}
    tool_overrides: {{act: {{audit: {{redact: ['/items/*/pin']}}}}}}
  flaky: {{url: \"{url}\", circuit_breaker_threshold: 1}}
  talker:
    command: sh
    args: [talker.sh]
    cwd: \"{elsewhere}\"
    env:
{env}  telltale:
    command: sh
    args: [telltale.sh]
    cwd: \"{elsewhere}\"
    env:
{env}"
    )
}

/// For a shell: the variables that the configuration expands.
fn exports() -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let exports = (0..KNOWN).map(|n| format!("export CORPUS_{n}={}\n", quoted(&known(n))));
    exports.chain(["export RUST_LOG=trace\n".to_owned()]).collect()
}

/// Run by the next one in a process of its own.
#[test]
#[ignore = "panics on purpose"]
fn a_panic_with_secrets() {
    let secrets = (0..KNOWN).map(|number| switchyard::model::Secret::new(known(number)));
    let secrets = switchyard::redact::Secrets::from_iter(secrets);
    let redactor = switchyard::redact::Redactor::new(&["password".to_owned()], &secrets);
    switchyard::redact::of_log().set(redactor);
    switchyard::redact::report_panics();
    let known = (0..KNOWN).map(|number| written(&known(number), number % WAYS));
    let shaped = (0..SHAPED).filter(|number| number % 51 < 18).map(|number| shaped(number).0);
    let all: Vec<String> = known.chain(shaped).collect();
    panic!("it went wrong with {} END", all.join("\n"));
}

#[test]
fn what_a_panic_says_is_looked_through_as_well() {
    let mut process = std::process::Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", "redaction_corpus::a_panic_with_secrets", "--ignored", "--nocapture"]);
    let done = process.env("RUST_BACKTRACE", "1").output().unwrap();
    let text = [done.stdout, done.stderr].concat();
    let shown = String::from_utf8_lossy(&text);
    assert!(shown.contains("panicked at") && shown.contains("it went wrong with ***"), "{shown}");
    assert!(shown.contains(" END") && shown.contains("stack backtrace"), "{shown}");
    let found = Needles::of_all().found_in(&text);
    assert!(found.is_empty(), "{found:#?}");
}

/// Everything in the files of a folder.
fn files(folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.is_file() {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redaction_corpus() {
    assert_eq!(KNOWN + SHAPED + PLACED, 234);
    let needles = Needles::of_all();
    // What is looked for can be found.
    for number in 0..KNOWN {
        for way in 0..WAYS {
            let text = format!("{{\"a\":\"{}\"}}", written(&known(number), way));
            assert!(!needles.found_in(text.as_bytes()).is_empty(), "{number} {way}");
        }
    }
    let upstream = Scripted::start().await;
    let elsewhere = tempfile::tempdir().unwrap();
    for folder in ["spool", "checkpoints"] {
        std::fs::create_dir(elsewhere.path().join(folder)).unwrap();
    }
    std::fs::write(elsewhere.path().join("talker.sh"), TALKER).unwrap();
    std::fs::write(elsewhere.path().join("telltale.sh"), TELLTALE).unwrap();
    let yaml = configuration(&upstream, elsewhere.path());
    let router = Router::start_after(&exports(), &yaml).await;
    let mut scene = Scene { router, upstream, told: String::new() };
    eventually(SOON * 4, "the servers are up", || async {
        for server in ["known", "usual", "whole", "placed", "flaky", "talker"] {
            if scene.router.http.server(server).await?["state"] != "up" {
                return None;
            }
        }
        Some(())
    })
    .await;

    let mut plan = 0;
    // Each known secret at several places, so that each place gets it in each way.
    for number in 0..KNOWN {
        for turn in 0..3 {
            plan += 1;
            let place = Place::ALL[(number * 3 + turn) % Place::ALL.len()];
            let round = (number * 3 + turn) / Place::ALL.len();
            let way = (number * 3 + turn + round) % WAYS;
            let way = if place.is_narrow() { [4, 6, 7, 8, 9, 14][way % 6] } else { way };
            let text = written(&known(number), way);
            scene.plant(plan, place, "known", &text).await;
        }
    }
    // What fails says it in lines of base64.
    for number in (0..IN_HEADERS).step_by(5) {
        plan += 1;
        scene.plant(plan, Place::Body, "known", &written(&known(number), WAYS - 1)).await;
    }
    // Names that nobody has, which the ledger would have columns for.
    for number in (0..SHAPED).filter(|number| number % 51 < 10) {
        plan += 1;
        let (_, seen) = shaped(number);
        scene.plant(plan, Place::ServerName, "usual", &format!("ghp_{seen}")).await;
    }
    // The ledger's database is away for a while: rows wait in the spool.
    let data = scene.router.data_dir();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("audit.db"));
    let mut other = options.connect().await.unwrap();
    sqlx::raw_sql("begin exclusive").execute(&mut other).await.unwrap();
    let told = [
        Place::Argument,
        Place::ArgumentsKey,
        Place::ToolError,
        Place::RpcMessage,
        Place::RpcData,
        Place::Body,
        Place::ToolName,
        Place::LegacyClient,
        Place::ModernClient,
        Place::JsonInArgument,
        Place::NestedArgument,
    ];
    for number in 0..SHAPED {
        for turn in 0..3 {
            plan += 1;
            let (text, _) = shaped(number);
            scene.plant(plan, told[(number + turn * 4) % told.len()], "usual", &text).await;
        }
        // What is kept whole is kept without them, too.
        for place in [Place::Result, Place::StructuredResult, Place::JsonInResult, Place::Argument]
        {
            plan += 1;
            scene.plant(plan, place, "whole", &shaped(number).0).await;
        }
    }
    let mut waiting = Vec::new();
    files(&elsewhere.path().join("spool"), &mut waiting);
    assert!(waiting.iter().any(|(_, bytes)| bytes.len() > 4096), "rows wait in the spool");
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    for number in 0..PLACED {
        plan += 1;
        let secret = placed(number);
        let document = match number % 2 {
            0 => json!({ "card": { "number": secret, "kind": "v" } }),
            _ => json!({ "items": [{ "pin": 1 }, { "pin": [secret] }] }),
        };
        let text = document.to_string();
        let block = json!([{ "type": "text", "text": text }]);
        scene.upstream.plan(
            plan,
            match number % 4 {
                0 => Reply::Result(json!({ "content": block, "structuredContent": document })),
                1 => Reply::Result(json!({ "content": block, "isError": true })),
                2 => Reply::RpcError(json!({ "code": -1, "message": "m", "data": document })),
                _ => Reply::Result(json!({ "content": [], "structuredContent": document })),
            },
        );
        let mut arguments = document.clone();
        arguments["plan"] = plan.into();
        scene.router.http.post("/mcp/call", call_body("placed__act", &arguments)).await;
    }
    // A breaker that opens with such a text, and a child that is started again and again.
    plan += 1;
    let text = format!("{} and {}", known(3), shaped(0).0);
    scene.plant(plan, Place::Body, "flaky", &text).await;
    let socket = crate::support::Http::socket(data.join("admin.sock"));
    for _ in 0..15 {
        socket.post("/mcp/servers/telltale/reconnect", "").await;
    }
    let mut told = String::new();
    eventually(SOON * 4, "the spool was read back", || async {
        let mut waiting = Vec::new();
        files(&elsewhere.path().join("spool"), &mut waiting);
        waiting.iter().all(|(_, bytes)| bytes.is_empty()).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;

    // What operators see.
    for path in [
        "/mcp/servers",
        "/mcp/tools",
        "/mcp/circuit-breakers",
        "/mcp/circuit-breakers/flaky",
        "/mcp/circuit-breakers/flaky/history",
        "/mcp/audit/stats?by=tool",
        "/mcp/circuit-breakers/history",
        "/mcp/health",
        "/readyz",
        "/metrics",
    ] {
        scene.ask(path).await;
    }
    for server in ["known", "usual", "whole", "placed", "flaky", "talker", "telltale"] {
        let answer = socket.get(&format!("/mcp/servers/{server}")).await;
        told += &String::from_utf8_lossy(&answer.body);
        scene.run(&["servers", "show", server]).await;
    }
    let page = scene.ask("/mcp/audit?limit=1000").await;
    let calls = page["calls"].as_array().unwrap().clone();
    assert!(calls.len() > 400, "{}", calls.len());
    for call in &calls {
        scene.ask(&format!("/mcp/audit/{}", call["id"].as_str().unwrap())).await;
    }
    for arguments in [
        &["servers", "list"][..],
        &["breakers"],
        &["breakers", "show", "flaky"],
        &["audit", "list", "--limit", "1000"],
        &["audit", "export", "--format", "jsonl", "--out", "export.jsonl"],
        &["audit", "export", "--format", "csv", "--out", "export.csv"],
        &["audit", "export"],
        &["backup", "backup"],
    ] {
        scene.run(arguments).await;
    }
    // What is kept says that these calls were made, and with what beside the secrets.
    let told = told + &scene.told;
    for kept in ["before *** after", r#""kind":"v""#, "\"number\":\"***\"", "started with ***"] {
        assert!(told.contains(kept), "{kept}");
    }

    let mut outputs = vec![("what operators were told".to_owned(), told.into_bytes())];
    files(scene.router.folder.path(), &mut outputs);
    let (code, folder) = scene.router.stop().await;
    assert_eq!(code, 0);
    files(folder.path(), &mut outputs);
    files(elsewhere.path(), &mut outputs);
    for made in ["export.jsonl", "export.csv", "backup/audit.db", "data/state.db", "stderr.log"] {
        assert!(
            outputs.iter().any(|(name, bytes)| name.ends_with(made) && bytes.len() > 1000),
            "{made}"
        );
    }
    let mut found = std::collections::BTreeMap::new();
    for (name, bytes) in &outputs {
        let file = name.rsplit('/').next().unwrap();
        for (secret, around) in needles.found_in(bytes) {
            found.entry((secret, file.to_owned())).or_insert(around);
        }
    }
    let total: usize = outputs.iter().map(|(_, bytes)| bytes.len()).sum();
    eprintln!(
        "{plan} plantings, {} outputs of {total} bytes, {} found",
        outputs.len(),
        found.len()
    );
    let shown: Vec<_> = found.iter().take(60).collect();
    assert!(found.is_empty(), "{} found: {shown:#?}", found.len());
    let arguments = ["--data-dir", "data", "audit", "verify"];
    switchyard(folder.path(), &arguments).await.expect(0);
}
