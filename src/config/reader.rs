//! [`Reader`]: takes values out of what a file says, and collects what is wrong with them.
//!
//! References are replaced here, except in what is only expanded at connect; every independent
//! problem is kept with its place.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_yaml::{Location, Spanned};

use super::error::{Problem, position, without_secrets};
use super::expand::{self, Variables};
use super::knobs::RawServer;
use super::raw::{RawLevelRule, RawLevels, RawOverride, RawSlo};
use super::refuse;
use super::scalar::{Field, FromScalar, Node, from_yaml};
use super::secrecy::{self, Place};
use crate::model::{
    AuditLevels, LevelRule, SLO_WINDOW, Secret, ServerSpec, SloSpec, ToolFilter, ToolOverride,
    TransportKind, TransportSpec,
};

/// What a promised latency may be: what the metrics' buckets reach.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(300);
const HOUR: Duration = Duration::from_secs(3600);

/// Reads fields and collects what is wrong with them.
pub(super) struct Reader<'a> {
    variables: Option<&'a dyn Variables>,
    /// The text that is read.
    source: &'a str,
    pub(super) problems: Vec<Problem>,
    pub(super) secrets: Vec<Secret>,
    pub(super) notes: Vec<String>,
    /// How long a breaker is open at first where a server does not say; `None` where that is not
    /// known.
    pub(super) first_opening: Option<Duration>,
}

impl<'a> Reader<'a> {
    /// A reader that replaces references by `variables`.
    pub(super) fn new(variables: &'a dyn Variables, source: &'a str) -> Self {
        Self {
            variables: Some(variables),
            source,
            problems: Vec::new(),
            secrets: Vec::new(),
            notes: Vec::new(),
            first_opening: None,
        }
    }

    /// A reader for what does not come from the file: it replaces nothing.
    pub(super) fn without_variables(source: &'a str) -> Self {
        Self {
            variables: None,
            source,
            problems: Vec::new(),
            secrets: Vec::new(),
            notes: Vec::new(),
            first_opening: None,
        }
    }

    pub(super) fn problem(&mut self, at: &Location, message: impl Into<String>) {
        let (line, column) = position(Some(at));
        self.problems.push(Problem { line, column, message: message.into() });
    }

    /// The value of a field as it is written: a number that is meant as a text keeps its letters.
    fn written_node<T: FromScalar>(&self, field: &Field<T>) -> Result<Node, String> {
        let node = &field.node;
        if !T::LITERAL || !matches!(node, Node::Bool(_) | Node::Integer(_) | Node::Float(_)) {
            return Ok(node.clone());
        }
        let span = field.defined.span();
        let start = span.byte_offset().and_then(|start| usize::try_from(start).ok());
        let length = span.byte_len().and_then(|length| usize::try_from(length).ok());
        let letters = start
            .zip(length)
            .and_then(|(start, length)| self.source.get(start..start.checked_add(length)?))
            .map(str::trim)
            // Whatever is found there must mean the same value.
            .filter(|text| from_yaml::<Node>(text).is_ok_and(|found| found.is_like(node)));
        letters
            .map(|text| Node::Text(text.to_owned()))
            .ok_or_else(|| format!("expected a text, found {}; write it in quotes", node.kind()))
    }

    /// The value of a field, with references replaced.
    pub(super) fn get<T: FromScalar>(&mut self, field: Option<&Field<T>>) -> Option<T> {
        let field = field?;
        let written = match self.written_node(field) {
            Ok(node) => node,
            Err(message) => {
                self.problem(&field.at, message);
                return None;
            }
        };
        let mut expanded = None;
        let node = match written {
            // `key:` with nothing behind it is a key that is not there.
            Node::Null => return None,
            Node::Text(text) if expand::has_reference(&text) => {
                let Some(variables) = self.variables else {
                    self.problem(&field.at, "`${…}` is not replaced here; give the value itself");
                    return None;
                };
                match expand::expand(&text, variables) {
                    Ok(value) => {
                        expanded = Some(text);
                        Node::Text(value)
                    }
                    Err(error) => {
                        self.problem(&field.at, error.to_string());
                        return None;
                    }
                }
            }
            Node::Text(text) => Node::Text(text.replace("$$", "$")),
            node => node,
        };
        match T::read(&node) {
            Ok(value) => Some(value),
            Err(message) => {
                // What a variable holds may be a secret that was put into the wrong one.
                let message = expanded.map_or(message, |written| {
                    format!("`{written}` does not give {}", T::EXPECTED)
                });
                self.problem(&field.at, message);
                None
            }
        }
    }

    /// The value of a field that must satisfy `holds`.
    pub(super) fn check<T: FromScalar>(
        &mut self,
        key: &str,
        field: Option<&Field<T>>,
        rule: &str,
        holds: impl Fn(&T) -> bool,
    ) -> Option<T> {
        let value = self.get(field)?;
        if holds(&value) {
            return Some(value);
        }
        if let Some(field) = field {
            self.problem(&field.at, format!("`{key}` must be {rule}"));
        }
        None
    }

    pub(super) fn span(&mut self, key: &str, field: Option<&Field<Duration>>) -> Option<Duration> {
        self.check(key, field, "above zero", |span| !span.is_zero())
    }

    /// A text that stays as written and is expanded at connect; here only looked at.
    pub(super) fn written(&mut self, field: &Field<String>, place: Place<'_>) -> Option<String> {
        let read = self.written_node(field).and_then(|node| String::read(&node));
        let text = match read {
            Ok(text) => text,
            Err(message) => {
                self.problem(&field.at, message);
                return None;
            }
        };
        let Some(variables) = self.variables else { return Some(text) };
        match expand::expand(&text, variables) {
            Ok(value) => secrecy::of_text(&text, &value, place, variables, &mut self.secrets),
            Err(error) => self.problem(&field.at, error.to_string()),
        }
        Some(text)
    }

    /// The value of a text that may be a secret, with references replaced.
    pub(super) fn value_of(&mut self, field: &Field<String>, place: Place<'_>) -> Option<String> {
        let known = self.problems.len();
        let text = self.written(field, place)?;
        if self.problems.len() > known {
            return None;
        }
        expand::expand(&text, self.variables?).ok()
    }

    /// Texts for which `refused` has no reason.
    pub(super) fn texts_unless(
        &mut self,
        list: Option<&Vec<Field<String>>>,
        refused: impl Fn(&str) -> Option<String>,
    ) -> Vec<String> {
        let mut texts = Vec::new();
        for field in list.into_iter().flatten() {
            let Some(text) = self.get(Some(field)) else { continue };
            match refused(&text) {
                Some(message) => self.problem(&field.at, message),
                None => texts.push(text),
            }
        }
        texts
    }

    pub(super) fn texts(&mut self, list: Option<&Vec<Field<String>>>) -> Option<Vec<String>> {
        let list = list?;
        Some(list.iter().filter_map(|field| self.get(Some(field))).collect())
    }

    pub(super) fn levels(&mut self, raw: Option<&RawLevels>) -> AuditLevels {
        raw.map_or_else(AuditLevels::default, |raw| AuditLevels {
            arguments: self.get(raw.arguments.as_ref()),
            results: self.get(raw.results.as_ref()),
            redact: self.texts_unless(raw.redact.as_ref(), refuse::pointer),
        })
    }

    pub(super) fn level_rule(&mut self, raw: &Spanned<RawLevelRule>) -> LevelRule {
        let (raw, at) = (&raw.value, &raw.referenced);
        let rule = LevelRule {
            caller: self.get(raw.caller.as_ref()),
            client: self.get(raw.client.as_ref()),
            server: self.get(raw.server.as_ref()),
            tool: self.get(raw.tool.as_ref()),
            arguments: self.get(raw.arguments.as_ref()),
            results: self.get(raw.results.as_ref()),
        };
        if raw.arguments.is_none() && raw.results.is_none() {
            self.problem(at, "a rule of `levels` needs `arguments` or `results`: what is kept");
        }
        rule
    }

    fn tool_override(&mut self, raw: &RawOverride) -> ToolOverride {
        ToolOverride {
            replay: self.get(raw.replay.as_ref()),
            timeout: self.span("timeout", raw.timeout.as_ref()),
            hidden: self.get(raw.hidden.as_ref()).unwrap_or(false),
            audit: self.levels(raw.audit.as_ref()),
            slo: self.slo(raw.slo.as_ref()),
        }
    }

    fn slo(&mut self, raw: Option<&Spanned<RawSlo>>) -> Option<SloSpec> {
        let at = raw?.referenced;
        let raw = &raw?.value;
        let fine = |span: &Duration| (SHORTEST..=LONGEST).contains(span);
        let mut latency = |key: &str, field: Option<&Field<Duration>>| {
            self.check(key, field, "from 1ms to 300s", fine)
        };
        let (latency_p50, latency_p95, latency_p99) = (
            latency("latency_p50", raw.latency_p50.as_ref()),
            latency("latency_p95", raw.latency_p95.as_ref()),
            latency("latency_p99", raw.latency_p99.as_ref()),
        );
        let success = self
            .check("success", raw.success.as_ref(), "above 0 and below 100%", |part| {
                part.0 > 0.0 && part.0 < 1.0
            })
            .map(|part| part.0);
        let window = self.check("window", raw.window.as_ref(), "from 1h to 366d", |window| {
            (HOUR..=366 * 24 * HOUR).contains(window)
        });
        let said = [&raw.latency_p50, &raw.latency_p95, &raw.latency_p99];
        if raw.success.is_none() && said.iter().all(|said| said.is_none()) {
            self.problem(
                &at,
                "`slo` promises nothing; give `success` (99.9%) or one of `latency_p50`, `latency_p95` and `latency_p99` (2s)",
            );
        }
        let ordered: Vec<_> =
            [latency_p50, latency_p95, latency_p99].into_iter().flatten().collect();
        if !ordered.is_sorted() {
            self.problem(
                &at,
                "`slo` contradicts itself: `latency_p50` may not be above `latency_p95`, nor that above `latency_p99`",
            );
        }
        Some(SloSpec {
            latency_p50,
            latency_p95,
            latency_p99,
            success,
            window: window.unwrap_or(SLO_WINDOW),
        })
    }

    /// Reads one server; `at` is where it stands.
    pub(super) fn server(
        &mut self,
        name: &str,
        raw: &RawServer,
        at: &Location,
    ) -> Option<ServerSpec> {
        let transport = self.transport(name, raw, at)?;
        let mut spec = ServerSpec::new(transport);
        spec.knobs = raw.read(self);
        spec.description = self.get(raw.description.as_ref()).unwrap_or_default();
        spec.enabled = self.get(raw.enabled.as_ref()).unwrap_or(true);
        if let Some(filter) = &raw.tools {
            let all = ToolFilter::default();
            spec.tools = ToolFilter {
                allow: self.texts(filter.allow.as_ref()).unwrap_or(all.allow),
                deny: self.texts(filter.deny.as_ref()).unwrap_or(all.deny),
            };
        }
        spec.tool_overrides = raw
            .tool_overrides
            .iter()
            .flatten()
            .map(|(tool, said)| (tool.clone(), self.tool_override(said)))
            .collect();
        spec.sessions = self.get(raw.sessions.as_ref()).unwrap_or_default();
        spec.trust_annotations = self.get(raw.trust_annotations.as_ref()).unwrap_or(true);
        spec.on_change = self.get(raw.on_change.as_ref()).unwrap_or_default();
        spec.audit = self.levels(raw.audit.as_ref());
        spec.slo = self.slo(raw.slo.as_ref());
        Some(spec)
    }

    fn transport(&mut self, name: &str, raw: &RawServer, at: &Location) -> Option<TransportSpec> {
        let kind = match (self.get(raw.transport.as_ref()), &raw.url, &raw.command) {
            (Some(kind), ..) => kind,
            (None, Some(_), None) => TransportKind::Http,
            (None, None, Some(_)) => TransportKind::Stdio,
            (None, Some(url), Some(_)) => {
                self.problem(
                    &url.at,
                    format!("server `{name}` has both `url` and `command`; drop one of them"),
                );
                return None;
            }
            (None, None, None) => {
                self.problem(at, format!("server `{name}` needs `url` (reached over HTTP) or `command` (started as a program)"));
                return None;
            }
        };
        let misplaced = |key: &str, kind: TransportKind| {
            format!(
                "`{key}` does not belong to transport `{}`; drop it, or change the transport",
                kind.as_str()
            )
        };
        if kind == TransportKind::Stdio {
            for (key, place) in [
                ("url", raw.url.as_ref().map(|field| field.at)),
                ("headers", first(raw.headers.as_ref())),
            ] {
                if let Some(place) = place {
                    self.problem(&place, misplaced(key, kind));
                }
            }
            let Some(command) = &raw.command else {
                self.problem(at, format!("server `{name}` has transport `stdio` and no `command`"));
                return None;
            };
            let text = self.written(command, Place::Public)?;
            if text.trim().is_empty() {
                self.problem(&command.at, "`command` is empty");
            }
            self.check_program(raw);
            return Some(TransportSpec::Stdio {
                command: text,
                args: raw
                    .args
                    .iter()
                    .flatten()
                    .filter_map(|arg| self.written(arg, Place::Public))
                    .collect(),
                env: self.secret_map(raw.env.as_ref(), |name| Place::Env(name)),
                cwd: raw.cwd.as_ref().and_then(|cwd| self.written(cwd, Place::Public)),
            });
        }
        let args = raw.args.as_ref().map(|args| args.first().map_or(*at, |arg| arg.at));
        let places = [
            ("command", raw.command.as_ref().map(|field| field.at)),
            ("args", args),
            ("env", first(raw.env.as_ref())),
            ("cwd", raw.cwd.as_ref().map(|field| field.at)),
        ];
        for (key, place) in places {
            if let Some(place) = place {
                self.problem(&place, misplaced(key, kind));
            }
        }
        let Some(field) = &raw.url else {
            self.problem(
                at,
                format!("server `{name}` has transport `{}` and no `url`", kind.as_str()),
            );
            return None;
        };
        let url = self.written(field, Place::Address)?;
        self.check_url(&url, &field.at);
        let headers = self.secret_map(raw.headers.as_ref(), |name| Place::Header(name));
        for (header, value) in raw.headers.iter().flatten() {
            if http::HeaderName::from_bytes(header.as_bytes()).is_err() {
                self.problem(&value.at, format!("`{header}` is not a header name"));
            }
            let sent = headers.get(header).and_then(|written| self.expanded(written));
            if let Some(message) = sent.and_then(|sent| refuse::header_value(header, &sent)) {
                self.problem(&value.at, message);
            }
        }
        Some(match kind {
            TransportKind::Sse => TransportSpec::Sse { url, headers },
            TransportKind::Jsonrpc => TransportSpec::Jsonrpc { url, headers },
            TransportKind::Http | TransportKind::Stdio => TransportSpec::Http { url, headers },
        })
    }

    /// Looks at everything that a program is started with.
    fn check_program(&mut self, raw: &RawServer) {
        for (name, value) in raw.env.iter().flatten() {
            if let Some(message) = refuse::env_name(name) {
                self.problem(&value.at, message);
            }
        }
        let args = raw.args.iter().flatten().chain(&raw.command).chain(&raw.cwd);
        for field in args.chain(raw.env.iter().flatten().map(|(_, value)| value)) {
            if let Node::Text(written) = &field.node
                && let Some(given) = self.expanded(written)
                && let Some(message) = refuse::program_text(&given)
            {
                self.problem(&field.at, message);
            }
        }
    }

    fn check_url(&mut self, written: &str, at: &Location) {
        // An unset variable is reported already.
        let Some(expanded) = self.expanded(written) else { return };
        // Neither what a variable holds nor a password is shown.
        let shown = match written.contains('@') {
            true => "the address".to_owned(),
            false => format!("`{}`", without_secrets(written)),
        };
        let message = match url::Url::parse(&expanded) {
            Ok(url) if !matches!(url.scheme(), "http" | "https") || !url.has_host() => {
                if expand::has_reference(written) {
                    format!("{shown} does not give an address with http:// or https://")
                } else {
                    format!("{shown} begins with `{}:`; write http:// or https://", url.scheme())
                }
            }
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                "an address with a name or password in it is refused, since addresses are shown; put them into `headers`, as Authorization: \"Basic …\"".to_owned()
            }
            Ok(_) => return,
            Err(error) => {
                format!("{shown} is not an address ({error}); write http://HOST:PORT/PATH")
            }
        };
        self.problem(at, message);
    }

    /// A text with references replaced, as far as that can be done here.
    fn expanded(&self, written: &str) -> Option<String> {
        match self.variables {
            Some(variables) => expand::expand(written, variables).ok(),
            None if expand::has_reference(written) => None,
            None => Some(written.to_owned()),
        }
    }

    fn secret_map(
        &mut self,
        map: Option<&BTreeMap<String, Field<String>>>,
        place: impl Fn(&str) -> Place<'_>,
    ) -> BTreeMap<String, String> {
        let read = |(key, field): (&String, &Field<String>)| {
            Some((key.clone(), self.written(field, place(key))?))
        };
        map.into_iter().flatten().filter_map(read).collect()
    }
}

fn first(map: Option<&BTreeMap<String, Field<String>>>) -> Option<Location> {
    map?.values().next().map(|field| field.at)
}
