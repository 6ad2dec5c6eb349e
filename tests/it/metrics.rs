//! `/metrics` as Prometheus reads it.

mod bounds;
mod complete;
mod objective;
mod standing;
mod values;

use std::collections::{BTreeMap, BTreeSet};

use switchyard::cli::demo_upstream::Options;

use crate::support::{SOON, TestApp, eventually, legacy_body, stdio, upstream, yaml};

/// What one scrape says: help and type by family, and the samples.
#[derive(Debug, Default)]
struct Scrape {
    help: BTreeMap<String, String>,
    kind: BTreeMap<String, String>,
    samples: Vec<(String, String, f64)>,
}

/// Reads the text format, strictly.
fn parse(text: &str) -> Scrape {
    assert!(text.ends_with('\n'));
    let mut scrape = Scrape::default();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("help");
            assert!(scrape.help.insert(name.to_owned(), help.to_owned()).is_none(), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(scrape.kind.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
        } else {
            assert!(!line.starts_with('#') && !line.is_empty(), "{line:?}");
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').expect("a brace")),
                None => (series, ""),
            };
            let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
            assert!(name.chars().all(fine), "{line}");
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            scrape.samples.push((name.to_owned(), labels.to_owned(), value));
        }
    }
    let series: BTreeSet<_> =
        scrape.samples.iter().map(|(name, labels, _)| (name, labels)).collect();
    assert_eq!(series.len(), scrape.samples.len(), "a series stands twice");
    scrape
}

impl Scrape {
    /// The family of a sample.
    fn family<'a>(&self, sample: &'a str) -> &'a str {
        ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| {
                let name = sample.strip_suffix(suffix)?;
                (self.kind.get(name).map(String::as_str) == Some("histogram")).then_some(name)
            })
            .unwrap_or(sample)
    }

    fn families(&self) -> BTreeSet<String> {
        self.samples.iter().map(|(name, ..)| self.family(name).to_owned()).collect()
    }

    /// Names of the labels of a family, those aside that only a histogram's buckets have.
    fn labels(&self, family: &str) -> BTreeSet<String> {
        let samples = self.samples.iter().filter(|(name, ..)| self.family(name) == family);
        let labels = samples.flat_map(|(_, labels, _)| labels.split("\","));
        let names = labels.filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        names.filter(|name| name != "le").collect()
    }

    fn series(&self) -> BTreeSet<(String, String)> {
        self.samples.iter().map(|(name, labels, _)| (name.clone(), labels.clone())).collect()
    }
}

async fn scrape(app: &TestApp) -> Scrape {
    parse(app.http().get("/metrics").await.expect(200).text())
}

#[tokio::test]
async fn every_family_has_help_and_type_and_the_names_are_as_reviewed() {
    let up = upstream(Options::default()).await;
    // With everything that has metrics of its own: a child, a view.
    let yaml = format!("{}{}views: {{all: {{}}}}\n", yaml(&[("up", &up)]), stdio("child", &[]));
    let app = TestApp::start(&yaml).await.ready().await;
    let answer = app.http().get("/metrics").await.expect(200);
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    app.http().call("up__echo", r#"{"text":"hi"}"#).await.expect(200);
    app.http().post("/mcp", legacy_body("tools/list", "{}")).await.expect(200);
    let scrape = scrape(&app).await;
    let mut listing = String::new();
    for family in scrape.families() {
        let help = scrape.help.get(&family).unwrap_or_else(|| panic!("{family} has no HELP"));
        let kind = scrape.kind.get(&family).unwrap_or_else(|| panic!("{family} has no TYPE"));
        assert!(!help.is_empty(), "{family}");
        assert_eq!(kind == "counter", family.ends_with("_total"), "{family} is a {kind}");
        let labels = scrape.labels(&family).into_iter().collect::<Vec<_>>().join(",");
        listing += &format!("{kind:9} {family}{{{labels}}}\n");
    }
    insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("metric_names", listing);
    });
    app.stop().await;
}

#[tokio::test]
async fn calls_are_counted_on_both_sides() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start(&yaml(&[("up", &up)])).await.ready().await;
    for _ in 0..3 {
        app.http().call("up__echo", r#"{"text":"hi"}"#).await.expect(200);
    }
    app.http().call("up__fail", "{}").await.expect(200);
    let scrape = scrape(&app).await;
    for side in ["server", "client"] {
        let name = format!("mcp_{side}_operation_duration_seconds_count");
        let count = |tool: &str, error: &str| -> f64 {
            let tool = format!(r#"gen_ai_tool_name="{tool}""#);
            let error = format!(r#"error_type="{error}""#);
            let samples = scrape.samples.iter();
            let wanted = samples.filter(|(sample, labels, _)| {
                *sample == name && labels.contains(&tool) && labels.contains(&error)
            });
            wanted.map(|(_, _, value)| value).sum()
        };
        assert_eq!(count("up__echo", ""), 3.0, "{side}");
        assert_eq!(count("up__fail", "tool_error"), 1.0, "{side}");
    }
    for bound in ["0.001", "0.01", "0.05", "1", "300", "+Inf"] {
        let bound = format!(r#"le="{bound}""#);
        assert!(scrape.samples.iter().any(|(name, labels, _)| {
            name == "mcp_server_operation_duration_seconds_bucket" && labels.contains(&bound)
        }));
    }
    app.stop().await;
}

#[tokio::test]
async fn names_that_callers_invent_add_no_series() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start(&yaml(&[("up", &up)])).await.ready().await;
    let provoke = async |at: usize| {
        app.http().call(&format!("invented_{at}"), "{}").await.expect(404);
        app.http().call(&format!("invented_{at}__tool"), "{}").await.expect(404);
        let body = format!(r#"{{"name":"t{at}","server_name":"s{at}"}}"#);
        app.http().post("/mcp/call", body).await.expect(404);
        app.http().post("/mcp", legacy_body(&format!("method/{at}"), "{}")).await.expect(400);
        app.http().get(&format!("/route/{at}")).await.expect(404);
    };
    provoke(0).await;
    // The ledger's own numbers follow its commits.
    eventually(SOON, "the refusals are committed", || async {
        let refused = app.metric(r#"switchyard_audit_events_total{outcome="refused"}"#).await;
        (refused >= Some(3.0)).then_some(())
    })
    .await;
    let before = scrape(&app).await.series();
    for at in 1..20 {
        provoke(at).await;
    }
    let after = scrape(&app).await.series();
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&(String, String)>::new());
    let other = |(_, labels): &&(String, String)| labels.contains(r#"gen_ai_tool_name="_other""#);
    assert!(after.iter().any(|series| other(&series)), "{after:?}");
    assert!(!after.iter().any(|(_, labels)| labels.contains("invented")));
    app.stop().await;
}

#[tokio::test]
async fn a_servers_series_are_there_from_the_start() {
    let app = TestApp::start(
        "mcp_servers:\n  quiet: {url: \"http://127.0.0.1:9/mcp\", enabled: false}\n",
    )
    .await;
    for (sample, value) in [
        (r#"switchyard_upstream_up{server="quiet"}"#, 0.0),
        (r#"switchyard_upstream_enabled{server="quiet"}"#, 0.0),
        (r#"switchyard_upstream_inflight{server="quiet"}"#, 0.0),
        (r#"switchyard_upstream_queue_depth{server="quiet"}"#, 0.0),
        (r#"switchyard_upstream_last_success_timestamp_seconds{server="quiet"}"#, 0.0),
        (r#"switchyard_upstream_tools{server="quiet",status="active"}"#, 0.0),
        (r#"switchyard_audit_events_total{outcome="ok"}"#, 0.0),
        (r#"switchyard_audit_events_total{outcome="timeout"}"#, 0.0),
        (r#"switchyard_auth_failures_total{reason="missing_key"}"#, 0.0),
        (r#"switchyard_config_reloads_total{result="failure"}"#, 0.0),
        ("switchyard_audit_dropped_total", 0.0),
    ] {
        assert_eq!(app.metric(sample).await, Some(value), "{sample}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_removed_servers_series_go_and_a_used_ones_follow() {
    let up = upstream(Options::default()).await;
    let app = TestApp::start("").await.ready().await;
    let body = format!(r#"{{"name":"brief","url":"{}"}}"#, up.url());
    app.socket().post("/mcp/servers", body).await.expect(201);
    assert_eq!(app.metric(r#"switchyard_upstream_up{server="brief"}"#).await, Some(1.0));
    assert_eq!(app.metric(r#"switchyard_upstream_enabled{server="brief"}"#).await, Some(1.0));
    let tools = r#"switchyard_upstream_tools{server="brief",status="active"}"#;
    assert_eq!(app.metric(tools).await, Some(11.0));
    app.http().call("brief__echo", r#"{"text":"hi"}"#).await.expect(200);
    app.socket().delete("/mcp/servers/brief").await.expect(204);
    assert_eq!(app.metric(r#"switchyard_upstream_up{server="brief"}"#).await, None);
    assert_eq!(app.metric(tools).await, None);
    app.stop().await;
}
