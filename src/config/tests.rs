//! What a file may say, and what is said back when it may not.

mod knobs;
mod secrets;
mod slo;

use proptest::prelude::*;

use super::*;
use crate::model::{RetryMode, ServerSettings, TransportSpec};

fn environment() -> Environment {
    Environment::new(|name| match name {
        "TOKEN" => Some("tok-12345".to_owned()),
        "SECONDS" => Some("7".to_owned()),
        "INJECT" => Some("x\nmcp_servers: {evil: {url: http://evil}}".to_owned()),
        _ => None,
    })
}

fn read(text: &str) -> Result<Config, String> {
    parse(text, "switchyard.yaml", &environment()).map_err(|error| error.to_string())
}

fn refused(text: &str) -> String {
    read(text).err().unwrap_or_else(|| panic!("accepted: {text}"))
}

fn server<'a>(config: &'a Config, name: &str) -> &'a ServerSpec {
    config.servers.get(&ServerName::parse(name).unwrap()).unwrap()
}

const EXAMPLE: &str = r#"
listen: 127.0.0.1:8300
data_dir: ./switchyard-data
defaults:
  timeout: 30
  connect_timeout: 5
  retry_attempts: 3
  retry_delay: 1.0
  retry_max_delay: 30.0
  retry_mode: safe
  circuit_breaker_threshold: 5
  circuit_breaker_timeout: 30.0
  max_concurrency: 64
  max_response_size: 16MiB
health_check_interval: 30
mcp_servers:
  github:
    transport: http
    url: ${GITHUB_MCP_URL:-https://api.githubcopilot.com/mcp/}
    headers: { Authorization: "Bearer ${TOKEN}" }
    description: GitHub
    enabled: true
    tools: { allow: ["*"], deny: ["delete_*"] }
  files:
    transport: stdio
    command: npx
    args: ["-y", "@modelcontextprotocol/server-filesystem", "."]
    env: { NODE_ENV: production }
    cwd: .
audit:
  durability: batched
  arguments: redacted
  results: summary
  redact: ["password", "token", "secret", "api_key", "authorization"]
  retention: 90d
  max_size: 10GiB
auth:
  mode: auto
http:
  allowed_hosts: []
  allowed_origins: []
naming: prefix
limits: { body: 4MiB, sessions: 20000, tools_per_server: 5000, list_page: 10000 }
admin: { stdio_commands: {} }
"#;

#[test]
fn the_whole_example_is_read() {
    let config = read(EXAMPLE).unwrap();
    assert_eq!(config.servers.len(), 2);
    assert_eq!(config.defaults.timeout, Some(Duration::from_secs(30)));
    assert_eq!(config.audit.retention, Duration::from_secs(90 * 86_400));
    let TransportSpec::Http { url, headers } = &server(&config, "github").transport else {
        panic!("not http")
    };
    assert_eq!(url, "${GITHUB_MCP_URL:-https://api.githubcopilot.com/mcp/}");
    assert_eq!(headers["Authorization"], "Bearer ${TOKEN}");
    let secrets: Vec<&str> = config.secrets.iter().map(Secret::expose).collect();
    assert_eq!(secrets, ["tok-12345"]);
    assert!(!server(&config, "github").tools.admits("delete_repo"));
}

#[test]
fn the_predecessors_file_is_read_as_it_is() {
    let config = read(
        r#"
default_timeout: 45
default_retry_attempts: 2
connection_pool_size: 10
health_check_interval: 15
mcp_servers: {git-ops: {url: "${GIT_OPS_URL:-http://localhost:8003}", transport: http, timeout: 60, retry_attempts: 3, retry_delay: 1.0, retry_max_delay: 30.0, circuit_breaker_threshold: 5, circuit_breaker_timeout: 30.0, enabled: true, description: "Git operations"}}
"#,
    )
    .unwrap();
    assert_eq!(config.defaults.timeout, Some(Duration::from_secs(45)));
    assert_eq!(config.defaults.retry_attempts, Some(2));
    assert_eq!(server(&config, "git-ops").knobs.timeout, Some(Duration::from_secs(60)));
    assert!(config.notes.iter().any(|note| note.contains("connection_pool_size")));
}

#[test]
fn a_file_that_says_nothing_is_the_defaults() {
    for text in ["", "\n", "# only a comment\n", "---\n"] {
        assert_eq!(read(text).unwrap().listen, Config::defaults().listen, "{text:?}");
    }
    let config = read("mcp_servers:\naudit:\nlisten:\n").unwrap();
    assert!(config.servers.is_empty());
}

#[test]
fn any_value_may_come_from_the_environment() {
    let config = read(
        "defaults: {timeout: '${SECONDS}', retry_mode: '${MODE:-off}'}\n\
         mcp_servers: {a: {url: 'http://h/mcp', enabled: '${ON:-false}', max_concurrency: '${N:-8}'}}\n\
         listen: '${LISTEN:-localhost:9000}'\n",
    )
    .unwrap();
    assert_eq!(config.defaults.timeout, Some(Duration::from_secs(7)));
    assert_eq!(config.defaults.retry_mode, Some(RetryMode::Off));
    assert_eq!(config.listen.port(), 9000);
    let a = server(&config, "a");
    assert_eq!((a.enabled, a.knobs.max_concurrency), (false, Some(8)));
}

#[test]
fn a_variable_never_changes_the_structure() {
    let config = read("mcp_servers:\n  a: {url: 'http://h/', description: '${INJECT}'}\n").unwrap();
    assert_eq!(config.servers.len(), 1);
    assert!(server(&config, "a").description.contains("evil"));
}

#[test]
fn mistakes_are_named_with_their_place_and_the_nearest_right_word() {
    for (text, expected) in [
        ("lisen: x\n", "switchyard.yaml:1:1: unknown key `lisen`; did you mean `listen`?"),
        (
            "mcp_servers:\n  a:\n    url: http://h/\n    retry_atempts: 3\n",
            "switchyard.yaml:4:5: unknown key `retry_atempts`; did you mean `retry_attempts`?",
        ),
        ("defaults: {timout: 3}\n", "unknown key `timout`; did you mean `timeout`?"),
        (
            "audit:\n  durabilty: strict\n",
            "switchyard.yaml:2:3: unknown key `durabilty`; did you mean `durability`?",
        ),
        (
            "audit:\n  durability: stric\n",
            "switchyard.yaml:2:15: `stric` is not one of batched, strict; did you mean `strict`?",
        ),
        ("a1b2: 1\n", "unknown key `a1b2`; keys here are listen, "),
        ("listen: a\nlisten: b\n", "switchyard.yaml:2:1: the key `listen` stands twice"),
        (
            "mcp_servers:\n  a: {url: http://h/}\n  a: {url: http://i/}\n",
            "switchyard.yaml:3:3: the key `a` stands twice",
        ),
        ("defaults:\n  timeout: soon\n", "switchyard.yaml:2:12: `soon` is not a duration"),
        ("defaults:\n  timeout: 0\n", "switchyard.yaml:2:12: `timeout` must be above zero"),
        ("defaults:\n  timeout: -1\n", "switchyard.yaml:2:12: `-1` is not a duration"),
        ("defaults:\n  max_response_size: lots\n", "`lots` is not a size"),
        (
            "defaults:\n  retry_attempts: many\n",
            "expected a whole number from 0 to 4294967295, found `many`",
        ),
        ("defaults:\n  retry_attempts: 1.5\n", "expected a whole number"),
        (
            "mcp_servers:\n  a: {url: 'http://h/${NOPE}'}\n",
            "switchyard.yaml:2:12: the environment variable `NOPE` is not set; set it, or give a default: ${NOPE:-value}",
        ),
        (
            "mcp_servers:\n  a:\n    command: x\n    env:\n      K: ${K:?ask the platform team}\n",
            "switchyard.yaml:5:10: the environment variable `K` is not set: ask the platform team",
        ),
        ("mcp_servers:\n  a: {}\n", "server `a` needs `url` (reached over HTTP) or `command`"),
        (
            "mcp_servers:\n  a: {url: 'http://h/', command: x}\n",
            "server `a` has both `url` and `command`; drop one of them",
        ),
        (
            "mcp_servers:\n  a: {transport: stdio, url: 'http://h/', command: x}\n",
            "`url` does not belong to transport `stdio`",
        ),
        ("mcp_servers:\n  a: {url: 'ftp://h/'}\n", "begins with `ftp:`; write http:// or https://"),
        ("mcp_servers:\n  a: {url: 'not an address'}\n", "is not an address"),
        ("mcp_servers:\n  'a b': {url: 'http://h/'}\n", "has the character ' '"),
        (
            "mcp_servers:\n  a: {url: 'http://h/', enabled: perhaps}\n",
            "expected true or false, found `perhaps`",
        ),
        (
            "mcp_servers: {wiki: {url: 'http://h/'}}\nviews:\n  v: {servers: [wikki]}\n",
            "switchyard.yaml:3:17: there is no server `wikki` in this file; did you mean `wiki`?",
        ),
        ("views:\n  'a/b': {}\n", "switchyard.yaml:2:3: `a/b` has the character '/'"),
        (
            "views:\n  v: {server: []}\n",
            "switchyard.yaml:2:7: unknown key `server`; did you mean `servers`?",
        ),
        (
            "views:\n  v: {tools: {alow: []}}\n",
            "switchyard.yaml:2:15: unknown key `alow`; did you mean `allow`?",
        ),
        ("views:\n  v: {}\n  v: {}\n", "switchyard.yaml:3:3: the key `v` stands twice"),
        ("mcp_servers: 3\n", "switchyard.yaml:1:14: "),
        ("listen: here\n", "`here` is not an address to listen on"),
        ("listen: 0.0.0.0:1\nauth: {mode: none}\n", "`auth.mode: none` is refused on 0.0.0.0:1"),
        ("database: postgres://h/db\n", "this version keeps its state in SQLite only"),
        ("- a\n- b\n", "switchyard.yaml:1:"),
        ("just text\n", "switchyard.yaml:1:"),
        ("listen: [1\n", "switchyard.yaml:"),
        ("listen:\n\t- x\n", "switchyard.yaml:"),
    ] {
        let message = refused(text);
        assert!(message.contains(expected), "{text}\n--- expected\n{expected}\n--- got\n{message}");
    }
}

#[test]
fn views_are_read_and_empty_ones_noted() {
    let config = read(
        "mcp_servers: {tickets: {url: 'http://h/'}, wiki: {url: 'http://i/'}}\n\
         mcpServers: {notes: {command: x}}\n\
         views:\n  support:\n    description: For support\n    servers: [tickets, notes]\n\
         \x20   tools: {allow: ['search*', 'tickets__get_*'], deny: ['*delete*']}\n\
         \x20 all: {}\n  closed: {tools: {deny: ['*']}}\n  nobody: {servers: []}\n",
    )
    .unwrap();
    let view = |name: &str| config.views.get(name).unwrap();
    let tickets = ServerName::parse("tickets").unwrap();
    assert_eq!(view("support").description, "For support");
    assert_eq!(view("support").servers.as_ref().unwrap().len(), 2);
    assert!(view("support").admits(&tickets, "get_one", "tickets__get_one"));
    assert!(!view("support").admits(&tickets, "put_one", "tickets__put_one"));
    assert!(view("all").admits(&tickets, "put_one", "tickets__put_one"));
    assert_eq!(view("all"), &ViewSpec::default());
    let notes = config.notes.join("\n");
    assert!(notes.contains("view `closed` offers no tool: `tools.deny` matches every"), "{notes}");
    assert!(notes.contains("view `nobody` offers no tool: `servers` is empty"), "{notes}");
    assert_eq!(config.notes.len(), 2, "{notes}");
}

#[test]
fn a_server_that_is_wrong_is_told_once_and_not_again_for_each_view() {
    let text =
        "mcp_servers: {bad: {url: 'ftp://h/'}, worse: {}}\nviews: {v: {servers: [bad, worse]}}\n";
    let message = refused(text);
    assert_eq!(message.matches("switchyard.yaml:").count(), 2, "{message}");
    assert!(!message.contains("there is no server"), "{message}");
}

#[test]
fn every_problem_is_reported_with_its_line() {
    let text = "defaults:\n  timeout: soon\n  retry_attempts: 1000\nlisten: here\n";
    let message = parse(text, "switchyard.yaml", &environment()).unwrap_err();
    let message = message.with_source().to_string();
    assert_eq!(message.matches("switchyard.yaml:").count(), 3, "{message}");
    assert!(message.contains("2 |   timeout: soon\n    |            ^"), "{message}");
}

#[test]
fn numbers_that_are_meant_as_texts_keep_their_letters() {
    let fifty = "12345678901234567890123456789012345678901234567890";
    let values = [
        ("F", "1.10"),
        ("V", "2.0"),
        ("Z", "01234"),
        ("P", "+49123"),
        ("H", "0x10"),
        ("T", "yes"),
        ("N", ".nan"),
        ("E", "1e3"),
        ("B", "True"),
        ("M", "-0.0"),
        ("I", fifty),
    ];
    let flow: Vec<String> = values.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    let text = format!(
        "# é\nmcp_servers:\n  a:\n    command: x\n    cwd: 1.0\n    description: 2.50\n    args: [&v 1.10, *v, 007]\n    env: {{{}}}\n",
        flow.join(", ")
    );
    for text in [text.clone(), format!("\u{feff}{text}"), text.replace('\n', "\r\n")] {
        let config = read(&text).unwrap();
        let a = server(&config, "a");
        let TransportSpec::Stdio { args, env, cwd, .. } = &a.transport else {
            panic!("no program")
        };
        assert_eq!(args, &["1.10", "1.10", "007"]);
        assert_eq!((cwd.as_deref(), a.description.as_str()), (Some("1.0"), "2.50"));
        for (key, value) in values {
            assert_eq!(env[key], value, "{key}");
        }
    }
    let json = br#"{"url": "http://h/", "headers": {"X-Version": 1.10}}"#;
    let spec = server_from_json(&ServerName::parse("a").unwrap(), json).unwrap();
    assert_eq!(spec.transport.secret_values()["X-Version"], "1.10");
}

#[test]
fn messages_do_not_tell_what_is_secret() {
    let environment = Environment::new(|_| Some("ftp://me:hunter22@h".to_owned()));
    for (text, expected) in [
        (
            "mcp_servers:\n  a: {url: 'http://h/', headers: {A: 'Bearer hunter22'}, timout: 3}\n",
            "did you mean `timeout`?",
        ),
        ("mcp_servers:\n  a: {url: '${U}'}\n", "`${U}` does not give an address"),
        ("mcp_servers:\n  a: {url: 'ftp://me:hunter22@h'}\n", "the address"),
        ("mcp_servers:\n  a: {url: 'http://me:hunter22@h:x'}\n", "the address"),
        ("defaults: {timeout: '${TK}'}\n", "`${TK}` does not give a duration"),
        ("listen: '${TK}'\n", "`${TK}` is not an address to listen on"),
        ("naming: '${TK}'\n", "`${TK}` does not give one of prefix bare"),
        (
            "mcp_servers:\n  a: {url: 'htp://h/?n=1&api_key=hunter22'}\n",
            "`htp://h/?n=1&api_key=***`",
        ),
        ("defaults: {password: hunter22}\n", "unknown key `password`"),
    ] {
        let error = parse(text, "x", &environment).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(expected) && !message.contains("hunter22"), "{text}\n{message}");
        let shown = error.with_source().to_string();
        assert!(!shown.contains("hunter22") && shown.matches('\n').count() == 2, "{shown}");
    }
    let text = "mcp_servers: {a: {url: 'http://usr:hunter22@h/', timeout: soon}}\n";
    let shown = parse(text, "x", &environment).unwrap_err().with_source().to_string();
    let caret = format!("'http://***@h/', timeout: soon}}}}\n    | {}^", " ".repeat(49));
    assert!(shown.contains(&caret), "{shown}");
}

#[test]
fn what_can_never_work_is_refused() {
    for (text, expected) in [
        ("mcp_servers:\n  a: {url: 'http://user:pw@h/'}\n", "put them into `headers`"),
        (
            "mcp_servers:\n  a: {url: 'http://h/', headers: {A: \"x\\ny\"}}\n",
            "header `A` has a line break",
        ),
        (
            "mcp_servers:\n  a: {command: x, env: {'A=B': c}}\n",
            "`A=B` cannot be the name of a variable",
        ),
        ("mcp_servers:\n  a: {command: x, env: {\"A\\0\": c}}\n", "`A\\0` cannot be the name"),
        ("mcp_servers:\n  a: {command: x, args: [\"a\\0\"]}\n", "NUL character"),
        ("http: {allowed_origins: ['https://h/path']}\n", "`https://h/path` is not an origin"),
        ("http: {allowed_origins: [h.example]}\n", "is not an origin"),
        ("http: {allowed_origins: ['*']}\n", "is not an origin"),
        ("http: {allowed_hosts: ['https://h']}\n", "`https://h` is not a host name"),
        ("http: {allowed_hosts: [h/path]}\n", "is not a host name"),
        ("data_dir: ''\n", "`data_dir` must be a folder"),
        ("data_dir: ./d\naudit: {checkpoints: d/checks}\n", "`checkpoints` lies inside `data_dir`"),
        ("data_dir: ./d\naudit: {spool: ./d/spool.jsonl}\n", "`spool` lies inside `data_dir`"),
    ] {
        let message = refused(text);
        assert!(message.contains(expected), "{text}\n{message}");
    }
    read("http: {allowed_origins: ['https://a.example:8443', 'http://[::1]:3', 'vscode-webview://x1'], allowed_hosts: [h.example, 'h:80', '::1', '[::1]:80']}\naudit: {checkpoints: ./data-checks}\ndata_dir: ./data\n").unwrap();
}

#[test]
fn wrong_shapes_are_told_in_words() {
    for (text, expected) in [
        ("auth: none\n", "x:1:7: expected a mapping (KEY: VALUE lines), found a text"),
        ("mcp_servers: [a]\n", "x:1:14: expected a mapping (KEY: VALUE lines), found a list"),
        (
            "mcp_servers:\n  a: http://x\n",
            "x:2:6: expected a mapping (KEY: VALUE lines), found a text",
        ),
        (
            "mcp_servers:\n  a: {command: x, args: \"x\"}\n",
            "x:2:25: expected a list, such as [\"x\"], found a text",
        ),
        ("audit: {redact: password}\n", "x:1:17: expected a list, such as [\"x\"], found a text"),
        ("audit: {redact: [pin, /a~b]}\n", "x:1:23: `/a~b`: in a JSON pointer `~` is followed by"),
        (
            "mcp_servers:\n  a: {url: 'http://h', audit: {redact: [/ok, pin]}}\n",
            "x:2:46: `pin`: a JSON pointer begins with `/`",
        ),
        (
            "mcp_servers:\n  a:\n    url: http://h\n    tool_overrides: {t: {audit: {redact: [\"/~\"]}}}\n",
            "x:4:43: `/~`: ",
        ),
        (
            "audit:\n  levels:\n    - {caller: x}\n",
            "x:3:7: a rule of `levels` needs `arguments` or `results`",
        ),
        ("audit: {levels: [{caler: x, arguments: full}]}\n", "did you mean `caller`"),
        ("audit: {levels: [{caller: x, arguments: all}]}\n", "x:1:41: "),
        ("audit: 3\n", "expected a mapping (KEY: VALUE lines), found a number"),
        ("defaults: {timeout: .inf}\n", "`inf` is not a duration"),
        ("defaults: {retry_budget: {ratio: .nan}}\n", "`ratio` must be from 0 to 1000"),
        ("listen: ':1'\n---\nlisten: ':2'\n", "more than one document"),
        ("mcp_servers:\n  a: {url: [x]}\n", "expected a text, found a list"),
        ("mcp_servers:\n  ok: {url: 'http://h/'}\n  a b:\n    url: http://h/\n", "x:3:3: "),
    ] {
        let message = parse(text, "x", &environment()).unwrap_err().to_string();
        assert!(message.contains(expected) && message.lines().count() == 1, "{text}\n{message}");
        assert!(!message.contains("at line"), "{text}\n{message}");
    }
    let deep = parse(&format!("listen: {}", "[".repeat(20_000)), "x", &environment());
    let message = deep.unwrap_err().to_string();
    assert!(message.contains("nested deeper"), "{message}");
}

fn imported(name: &str, text: &str) -> Result<Vec<(ServerName, ServerSpec, Vec<String>)>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    client::read(&path).map_err(|error| error.to_string())
}

#[test]
fn our_own_file_is_imported_whole() {
    let found = imported(
        "switchyard.yaml",
        "listen: ':1'\nmcp_servers:\n  a: {url: 'http://h/', timeout: 7, on_change: hold, tools: {deny: [x]}}\n",
    )
    .unwrap();
    let (name, spec, notes) = &found[0];
    assert_eq!((name.as_str(), notes.len()), ("a", 0));
    assert_eq!(spec.knobs.timeout, Some(Duration::from_secs(7)));
    assert!(spec.on_change == crate::model::OnChange::Hold && !spec.tools.admits("x"));
    let wrong =
        imported("x.yaml", "mcp_servers:\n  a: {url: 'http://h/', timout: 7}\n").unwrap_err();
    assert!(wrong.contains("did you mean `timeout`?"), "{wrong}");
}

#[test]
fn files_of_editors_may_have_comments() {
    let text = "{\n\t// one\n\t\"servers\": { /* two\n\t*/ \"a\": {\"url\": \"http://h//x/*y*/\\\"//\"}, // three\n\t}\n}\n";
    for name in ["mcp.json", "mcp.JSONC"] {
        let found = imported(name, text).unwrap();
        let TransportSpec::Http { url, .. } = &found[0].1.transport else { panic!("not http") };
        assert_eq!(url, "http://h//x/*y*/\"//");
    }
    let wrong =
        imported("x.json", "{/* é */ \"servers\": {\"a\": {\"comand\": \"x\"}}}").unwrap_err();
    assert!(wrong.contains("x.json:1:38: unknown key `comand`"), "{wrong}");
    assert_eq!(wrong.lines().count(), 1, "{wrong}");
}

#[test]
fn slips_in_the_form_of_clients_are_found_and_foreign_keys_are_not() {
    for (slip, known) in
        [("arg", "args"), ("envs", "env"), ("comand", "command"), ("header", "headers")]
    {
        let text = format!("mcpServers: {{a: {{command: x, {slip}: []}}}}\n");
        let message = refused(&text);
        assert!(message.contains(&format!("did you mean `{known}`?")), "{message}");
    }
    for foreign in [
        "autoApprove",
        "alwaysAllow",
        "timeout",
        "trust",
        "envFile",
        "dev",
        "name",
        "oauth",
        "tools",
        "gallery",
    ] {
        let config = read(&format!("mcpServers: {{a: {{command: x, {foreign}: []}}}}\n")).unwrap();
        assert!(config.notes.iter().any(|note| note.contains(foreign)), "{foreign}");
    }
}

#[test]
fn a_dollar_of_a_client_stays_one() {
    let config = read(r#"{"mcpServers": {"a": {"command": "x", "args": ["pa$$word", "$HOME", "a${TOKEN}$", "$${TOKEN}", "${"]}}}"#).unwrap();
    let TransportSpec::Stdio { args, .. } = &server(&config, "a").transport else { panic!() };
    let given: Vec<String> =
        args.iter().map(|arg| expand::expand(arg, &environment()).unwrap()).collect();
    assert_eq!(given, ["pa$$word", "$HOME", "atok-12345$", "$tok-12345", "${"]);
}

#[test]
fn hostile_files_end_quickly() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for n in 1..10 {
        let alias = vec![format!("*a{}", n - 1); 9].join(", ");
        bomb.push_str(&format!("a{n}: &a{n} [{alias}]\n"));
    }
    let began = crate::clock::uptime();
    refused(&bomb);
    refused(&format!("listen: {}", "[".repeat(20_000)));
    assert!(crate::clock::uptime().since(began) < Duration::from_secs(60));
}

#[test]
fn the_form_of_desktop_clients_is_read() {
    let config = read(
        r#"{"mcpServers": {
            "my files": {"command": "npx", "args": ["-y", "x"], "env": {"KEY": "${env:TOKEN}"}, "autoApprove": []},
            "remote": {"type": "streamable-http", "url": "https://h/mcp", "headers": {"X": "y"}},
            "off": {"url": "http://h/", "disabled": true}}}"#,
    )
    .unwrap();
    assert!(matches!(server(&config, "my-files").transport, TransportSpec::Stdio { .. }));
    assert!(matches!(server(&config, "remote").transport, TransportSpec::Http { .. }));
    assert!(!server(&config, "off").enabled);
    assert!(config.notes.iter().any(|note| note.contains("autoApprove")));
    assert!(config.notes.iter().any(|note| note.contains("`my-files`")));
    assert!(
        refused(r#"{"mcpServers": {"a": {"command": "x", "env": {"K": "${input:key}"}}}}"#)
            .contains("`${input:key}` is not a reference")
    );
}

#[test]
fn a_server_over_the_api_is_read_strictly() {
    let name = ServerName::parse("a").unwrap();
    let read = |json: &str| server_from_json(&name, json.as_bytes()).map_err(|e| e.to_string());
    let spec = read(r#"{"url": "http://h/mcp", "timeout": "250ms", "headers": {"A": "é\u00e9"}}"#)
        .unwrap();
    assert_eq!(spec.knobs.timeout, Some(Duration::from_millis(250)));
    for (json, expected) in [
        (r#"{"url": "http://h/", "timeuot": 1}"#, "did you mean `timeout`?"),
        (r#"{"url": "http://h/", "url": "http://i/"}"#, "stands twice"),
        (r#"{"url": "http://h/"} x"#, "not JSON"),
        ("url: http://h/", "not JSON"),
        (r#"{"timeout": 1}"#, "needs `url`"),
        (r#"{"url": "http://h/", "timeout": "${T}"}"#, "is not replaced here"),
    ] {
        let message = read(json).unwrap_err();
        assert!(message.contains(expected), "{json}: {message}");
    }
}

#[test]
fn isolated_sessions_have_bounds_which_defaults_may_set() {
    let config = read(
        "defaults: {max_sessions: 7}\n\
         mcp_servers:\n  \
           a: {url: 'http://h/mcp', sessions: isolated, session_idle_timeout: 90s}\n  \
           b: {url: 'http://h/mcp', max_sessions: 10000}\n",
    )
    .unwrap();
    assert_eq!(config.notes, Vec::<String>::new());
    let resolved = |name: &str| {
        let settings = ServerSettings::resolve(&server(&config, name).knobs.or(&config.defaults));
        (settings.max_sessions, settings.session_idle_timeout.as_secs())
    };
    assert_eq!((resolved("a"), resolved("b")), ((7, 90), (10_000, 600)));
    let a = server(&config, "a");
    let json = server_to_json(a).to_string();
    let back = server_from_json(&ServerName::parse("a").unwrap(), json.as_bytes()).unwrap();
    assert_eq!(&back, a);
    for wrong in ["max_sessions: 0", "max_sessions: 10001", "session_idle_timeout: 0"] {
        let error = read(&format!("mcp_servers: {{a: {{url: 'http://h/mcp', {wrong}}}}}"));
        let (key, _) = wrong.split_once(':').unwrap();
        assert!(error.unwrap_err().to_string().contains(key), "{wrong}");
    }
}

#[test]
fn a_collector_is_an_address_and_its_headers_are_secrets() {
    let said = "otlp_headers: {authorization: \"Bearer ${TOKEN}\", x-tenant: literal-of-mine}\n";
    let config = read(&format!("otlp_endpoint: http://127.0.0.1:4318\n{said}")).unwrap();
    let otlp = config.otlp.unwrap();
    assert_eq!(otlp.address, "http://127.0.0.1:4318/v1/traces");
    assert_eq!(
        (&otlp.headers["authorization"], otlp.sample),
        (&"Bearer tok-12345".parse().unwrap(), 1.0)
    );
    for secret in ["tok-12345", "literal-of-mine"] {
        assert!(config.secrets.contains(&Secret::new(secret)), "{secret}");
        assert!(!format!("{:?}", otlp.headers).contains(secret), "{:?}", otlp.headers);
    }
    for (text, address) in [
        ("https://otel.example.com/base/", "https://otel.example.com/base/v1/traces"),
        ("http://[::1]:4318/v1/traces", "http://[::1]:4318/v1/traces"),
    ] {
        let config = read(&format!("otlp_endpoint: {text}\notlp_sample: 0.25")).unwrap();
        let otlp = config.otlp.unwrap();
        assert_eq!((otlp.address.to_string(), otlp.sample), (address.to_owned(), 0.25));
    }
    for empty in ["", "otlp_endpoint: ${NOTHING:-}", "otlp_endpoint:"] {
        assert!(read(empty).unwrap().otlp.is_none(), "{empty}");
    }
    let notes = read(&format!("{said}otlp_sample: 0.5")).unwrap().notes;
    assert_eq!(notes.len(), 2, "{notes:?}");
    for (text, expected) in [
        ("otlp_endpoint: collector:4318", "must begin with http"),
        ("otlp_endpoint: unix:///run/otel.sock", "must begin with http"),
        ("otlp_endpoint: nonsense", "is not an address"),
        ("otlp_endpoint: http://me:tok-12345@h", "put them into `otlp_headers`"),
        ("otlp_endpoint: http://h/?key=tok-12345", "query"),
        ("otlp_endpoint: http://h\notlp_sample: 1.5", "from 0 to 1"),
        ("otlp_endpoint: http://h\notlp_sample: -0.1", "from 0 to 1"),
        ("otlp_endpoint: http://h\notlp_headers: {\"a b\": x}", "not a header name"),
        ("otlp_endpoint: http://h\notlp_headers: {a: \"x\\ny\"}", "must not have"),
        ("otlp_endpoint: http://h\notlp_headers: {a: \"${UNSET}\"}", "UNSET"),
    ] {
        let error = refused(text);
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains("tok-12345") || text.contains("tok-12345"), "{error}");
    }
}

#[test]
fn the_committed_schema_is_the_one_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/switchyard.schema.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == json_schema(),
        "docs/switchyard.schema.json is not what the code says; run: switchyard schema > docs/switchyard.schema.json"
    );
}

#[test]
fn the_schema_says_what_numbers_and_switches_may_be() {
    let schema: serde_json::Value = serde_json::from_str(&json_schema()).unwrap();
    let knobs = &schema["$defs"]["RawKnobs"]["properties"];
    assert_eq!(knobs["timeout"]["exclusiveMinimum"], 0);
    assert_eq!(knobs["retry_delay"].get("exclusiveMinimum"), None);
    assert_eq!(knobs["max_concurrency"]["minimum"], 1);
    for key in ["timeout", "max_concurrency", "max_response_size"] {
        assert!(knobs[key].to_string().contains("pattern"), "{key}");
    }
    let enabled = schema["$defs"]["RawServer"]["properties"]["enabled"].to_string();
    assert!(enabled.contains("[Yy]es"), "{enabled}");
    let client = schema["properties"]["mcpServers"].to_string();
    assert!(
        client.contains(r#""additionalProperties":{"additionalProperties":true,"type":"object"}"#),
        "{client}"
    );
}

proptest! {
    #[test]
    fn servers_written_as_yaml_read_back(
        command in "[a-zA-Z0-9 /\"'{}:#éß\\\\-]{1,20}",
        args in proptest::collection::vec("[ -~é]{0,12}", 0..4),
        seconds in proptest::option::of(1_u64..100_000),
        enabled in any::<bool>(),
    ) {
        prop_assume!(!command.trim().is_empty());
        let args: Vec<String> = args.into_iter().map(|arg| arg.replace('$', "")).collect();
        let mut spec = ServerSpec::new(TransportSpec::Stdio {
            command,
            args,
            env: BTreeMap::from([("KEY".to_owned(), "va: l'ue # x".to_owned())]),
            cwd: None,
        });
        spec.enabled = enabled;
        spec.knobs.timeout = seconds.map(Duration::from_millis);
        let yaml = client::to_yaml(&[(ServerName::parse("s-1.x").unwrap(), spec.clone())]);
        let config = read(&yaml).unwrap();
        prop_assert_eq!(server(&config, "s-1.x"), &spec);
    }

    #[test]
    fn any_text_is_survived(text in "[a-z_:{}\\[\\]\"'$ \n\t-]{0,60}") {
        let _ = read(&text);
    }
}

#[test]
fn pointers_stand_beside_names_and_rules_are_kept_in_order() {
    let parsed = |yaml: &str| parse(yaml, "x", &environment()).unwrap();
    let usual = parsed("").audit.redact;
    assert!(usual.contains(&"cookie".to_owned()) && usual.len() > 5);
    for (list, names, pointers) in [
        ("[/a, pin, '/b/*']", vec!["pin".to_owned()], vec!["/a", "/b/*"]),
        ("[/a]", usual, vec!["/a"]),
        ("[]", Vec::new(), Vec::new()),
    ] {
        let audit = parsed(&format!("audit: {{redact: {list}}}\n")).audit;
        assert_eq!(
            (audit.redact, audit.pointers),
            (names, pointers.iter().map(|p| (*p).to_owned()).collect())
        );
    }
    let config = parsed(
        "audit:
  levels:
    - {caller: 'a*', server: gone, arguments: none}
    - {tool: t, results: full}
mcp_servers:
  s: {url: 'http://h', audit: {redact: [/x]}, tool_overrides: {t: {audit: {redact: [/y], results: none}}}}
",
    );
    let rules = &config.audit.levels;
    assert_eq!((rules.len(), rules[0].caller.as_deref()), (2, Some("a*")));
    assert_eq!(rules[1].results, Some(ResultsLevel::Full));
    assert!(
        config.notes.iter().any(|note| note.contains("no server `gone`")),
        "{:?}",
        config.notes
    );
    // Over the API and back it is the same.
    let (name, spec) = config.servers.iter().next().unwrap();
    let again = server_from_json(name, server_to_json(spec).to_string().as_bytes()).unwrap();
    assert_eq!(&again, spec);
    assert_eq!(again.tool_overrides["t"].audit.redact, ["/y"]);
    // And in the database.
    let stored = serde_json::to_string(spec).unwrap();
    assert_eq!(&serde_json::from_str::<ServerSpec>(&stored).unwrap(), spec);
}

#[test]
fn what_an_address_and_basic_hold_is_secret() {
    let config = parse(
        "mcp_servers:
  s:
    url: http://h/mcp?access_token=abcd-1234-efgh&region=eu-central-1
    headers: {Authorization: Basic Ym9iOmh1bnRlcjItaHVudGVyMg==}
",
        "x",
        &environment(),
    )
    .unwrap();
    let secrets: Vec<&str> = config.secrets.iter().map(Secret::expose).collect();
    for known in ["abcd-1234-efgh", "Ym9iOmh1bnRlcjItaHVudGVyMg==", "hunter2-hunter2"] {
        assert!(secrets.contains(&known), "{known}: {secrets:?}");
    }
    assert!(!secrets.contains(&"eu-central-1"));
}
