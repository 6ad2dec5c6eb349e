//! Rules of the source that no compiler knows: who may import whom, what is pure, how long a file
//! may be.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Open to all.
const OPEN: &[&str] = &["model", "error"];
/// Open to all but the pure modules.
const CLOCK: &str = "clock";

/// Who may import whom; a new arrow is an edit here.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("error", &[]),
    ("clock", &[]),
    ("protocol", &[]),
    ("policy", &[]),
    ("redact", &[]),
    ("config", &["policy", "redact"]),
    ("metrics", &[]),
    ("store", &[]),
    ("audit", &["store", "config", "metrics", "redact"]),
    ("guard", &[]),
    ("telemetry", &["metrics"]),
    ("transport", &["guard", "protocol"]),
    ("pool", &["transport", "protocol", "metrics"]),
    ("registry", &["pool", "policy", "store", "config", "protocol", "metrics", "guard", "redact"]),
    ("catalogue", &["registry", "pool", "protocol", "store", "metrics", "redact"]),
    (
        "router",
        &[
            "catalogue",
            "registry",
            "pool",
            "policy",
            "audit",
            "protocol",
            "metrics",
            "redact",
            "telemetry",
        ],
    ),
    (
        "edge",
        &["router", "catalogue", "registry", "audit", "store", "config", "protocol", "metrics"],
    ),
    (
        "app",
        &[
            "edge",
            "router",
            "catalogue",
            "registry",
            "pool",
            "transport",
            "audit",
            "store",
            "metrics",
            "config",
            "policy",
            "protocol",
            "redact",
            "telemetry",
        ],
    ),
    ("cli", &["app", "config", "store", "protocol", "guard", "redact"]),
    ("main", &["app", "config", "store", "protocol", "cli", "guard", "redact"]),
    ("lib", &[]),
];

/// Values in, values out.
const PURE: &[&str] = &[
    "model",
    "protocol",
    "policy",
    "catalogue/naming",
    "catalogue/page",
    "catalogue/uri",
    "catalogue/schedule",
    "redact/address",
    "redact/encoding",
    "redact/json",
    "redact/keys",
    "redact/named",
    "redact/names",
    "redact/pairs",
    "redact/peel",
    "redact/pointer",
    "redact/redactor",
    "redact/respell",
    "redact/search",
    "redact/value",
    "audit/export",
    "audit/writer/backlog",
    "audit/writer/pace",
    "store/chain",
    "store/column",
    "store/sqlite/index/fts",
    "store/sqlite/index/postings",
    "store/sqlite/index/rollup",
    "store/sqlite/index/unescape",
    "store/sqlite/index/unicode61",
    "store/sqlite/index/varint",
    "edge/origin",
    "error",
];

/// What a pure module must not say. Each is looked for as a word or path.
const IMPURE: &[&str] = &[
    "async fn",
    "async move",
    ".await",
    "tokio",
    "crate::clock",
    "clock::",
    "rand::",
    "ring::rand",
    "tracing",
    "Mutex",
    "RwLock",
    "ArcSwap",
    "std::fs",
    "std::net::Tcp",
    "std::thread",
    "std::env",
    "Instant",
    "SystemTime",
];

/// No file is longer.
const LONGEST: usize = 800;

/// The source with everything that is compiled for tests only, comments and text left out.
fn shipped(source: &str) -> String {
    let mut kept = String::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            skip_item(&mut lines);
            continue;
        }
        let code = line.split("//").next().unwrap_or_default();
        kept.push_str(code);
        kept.push('\n');
    }
    without_text(&kept)
}

/// Skips one item: to the `;` or to the brace that closes it.
fn skip_item<'a>(lines: &mut impl Iterator<Item = &'a str>) {
    let (mut depth, mut begun) = (0_i32, false);
    for line in lines {
        let opened = line.matches('{').count();
        let closed = line.matches('}').count();
        depth += i32::try_from(opened).unwrap() - i32::try_from(closed).unwrap();
        begun |= opened > 0;
        if depth <= 0 && (begun || line.trim_end().ends_with(';')) {
            return;
        }
    }
}

/// Replaces what stands between quotes on one line.
fn without_text(source: &str) -> String {
    let mut out = String::new();
    for line in source.lines() {
        let mut inside = false;
        let mut before = ' ';
        for c in line.chars() {
            if c == '"' && before != '\\' && before != '\'' {
                inside = !inside;
            } else if !inside {
                out.push(c);
            }
            before = c;
        }
        out.push('\n');
    }
    out
}

/// Top-level modules that the source names as `crate::module` or `use crate::{module, …}`.
fn imports(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in source.match_indices("crate::") {
        if source[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &source[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.extend(first_name(rest)),
            Some(group) => found.extend(members(group).iter().filter_map(|m| first_name(m))),
        }
    }
    found
}

/// The members of a group, up to the brace that closes it.
fn members(group: &str) -> Vec<String> {
    let mut members = vec![String::new()];
    let mut depth = 0;
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => members.push(String::new()),
            c if depth == 0 => members.last_mut().unwrap().push(c),
            _ => {}
        }
    }
    members
}

fn first_name(path: &str) -> Option<String> {
    let name: String = path
        .trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '*'))
        .collect();
    (!name.is_empty()).then_some(name)
}

/// What is wrong with one file; `path` is relative to `src`, without its ending.
fn problems(path: &str, source: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let module = path.split('/').next().unwrap_or_default();
    let lines = source.lines().count();
    if lines > LONGEST {
        problems.push(format!("{path}: {lines} lines, at most {LONGEST}"));
    }
    let in_tests = path.split('/').any(|part| part == "tests");
    if !source.starts_with("//!") && !in_tests {
        problems.push(format!("{path}: does not begin with `//!`"));
    }
    let code = shipped(source);
    if code.contains("use crate::*") {
        problems.push(format!("{path}: `use crate::*` hides who is imported"));
    }
    if in_tests {
        return problems;
    }
    let pure = PURE.iter().any(|pure| path == *pure || path.starts_with(&format!("{pure}/")));
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
        problems.push(format!("{path}: the module `{module}` is not in the table"));
        return problems;
    };
    for import in imports(&code) {
        let open = OPEN.contains(&import.as_str()) || (import == CLOCK && !pure);
        let macros = import.chars().all(|c| c.is_lowercase() || c == '_');
        if import != module && macros && !open && !allowed.contains(&import.as_str()) {
            problems.push(format!("{path}: `{module}` must not import `{import}`"));
        }
    }
    if pure {
        for word in IMPURE.iter().filter(|word| code.contains(**word)) {
            problems.push(format!("{path}: is pure and says `{word}`"));
        }
    }
    problems
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_source_keeps_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50, "the source is there");
    let mut found: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let path = file.strip_prefix(&root).unwrap().with_extension("");
            problems(path.to_str().unwrap(), &std::fs::read_to_string(file).unwrap())
        })
        .collect();
    found.sort();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_tests_keep_the_rules_for_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let source = std::fs::read_to_string(&file).unwrap();
        assert!(source.starts_with("//!"), "{}", file.display());
        assert!(source.lines().count() <= LONGEST, "{}", file.display());
    }
}

/// What is found in a source that begins as it should.
fn found(path: &str, code: &str) -> Vec<String> {
    problems(path, &format!("//! Text.\n\n{code}\n"))
}

#[test]
fn a_forbidden_import_is_found_however_it_is_written() {
    for code in [
        "use crate::edge::Edge;",
        "use crate::{edge::Edge, model};",
        "use crate::{\n    model::{self, Name},\n    edge::{Edge, EdgeSettings},\n};",
        "pub use crate::edge;",
        "fn f(edge: &crate::edge::Edge) {}",
        "fn f() { if crate::edge::x() { } }",
        "#[cfg(test)]\nmod tests {\n    use crate::app::App;\n}\nuse crate::edge::Edge;",
        "#[cfg(test)]\nuse crate::app::App;\nuse crate::edge::Edge;",
    ] {
        let problems = found("store/sqlite/audit", code);
        assert_eq!(problems, ["store/sqlite/audit: `store` must not import `edge`"], "{code}");
    }
}

#[test]
fn an_allowed_import_is_not_found() {
    for code in [
        "use crate::{model::{ServerName, ToolName}, error::ErrorCode, clock, store::Store};",
        "// use crate::edge::Edge;\nfn f() -> &'static str { \"use crate::edge::Edge;\" }",
        "#[cfg(test)]\nmod tests {\n    use crate::edge::Edge;\n    fn f() { if true {} }\n}",
        "#[cfg(test)]\nmod tests;",
        "/// [`crate::edge::Edge`] is another's.\nstruct S;",
    ] {
        assert_eq!(found("audit/writer", code), Vec::<String>::new(), "{code}");
    }
    assert_eq!(found("audit/writer/tests", "use crate::edge::Edge;"), Vec::<String>::new());
}

#[test]
fn the_other_rules_are_enforced() {
    assert_eq!(found("policy/retry", "use crate::clock;").len(), 2);
    assert_eq!(found("policy/retry", "fn f() { tokio::time::sleep(d); }").len(), 1);
    assert_eq!(found("catalogue/naming", "use parking_lot::Mutex;").len(), 1);
    assert_eq!(found("catalogue/snapshot", "use parking_lot::Mutex;").len(), 0);
    assert_eq!(found("redact/json", "async fn f() {}").len(), 1);
    assert_eq!(found("router/mod", "use crate::*;").len(), 1);
    assert_eq!(
        found("helpers", "fn f() {}"),
        ["helpers: the module `helpers` is not in the table"]
    );
    assert_eq!(problems("router/mod", "use crate::model;\n").len(), 1);
    assert_eq!(found("router/mod", &"\n".repeat(LONGEST)).len(), 1);
}
