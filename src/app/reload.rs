//! Reading the configuration again: on `SIGHUP`, when the file changes, and when asked over HTTP.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::recording;
use super::redaction::Redaction;
use super::{discovery_settings, edge_settings, seconds};
use crate::catalogue::Discovery;
use crate::clock;
use crate::config::{self, Config, Durability, Environment, IntentMode, OtlpConfig};
use crate::edge::{Edge, EdgeSettings, ReloadReport, ReloadRequest};
use crate::metrics::Metrics;
use crate::registry::{Cause, Registry};
use crate::store::{EventRow, Store};

/// How often the file is looked at. A look is one `stat`, which also sees renames and links that
/// are switched, on every file system.
const LOOK: Duration = Duration::from_secs(1);

/// Who changes what nobody asked us to change.
const ROUTER: &str = "router";
/// What is kept of calls is another from here on.
const RECORDING_CHANGED: &str = "audit.recording_changed";
/// The file was read again, or could not be.
const RELOADED: &str = "config.reloaded";
const NOT_RELOADED: &str = "config.reload_failed";

/// Takes a changed configuration over while the router runs.
pub(super) struct Reloader {
    pub(super) path: Option<PathBuf>,
    pub(super) address: SocketAddr,
    pub(super) environment: Environment,
    pub(super) registry: Arc<Registry>,
    pub(super) discovery: Arc<Discovery>,
    pub(super) edge: Arc<Edge>,
    pub(super) redaction: Arc<Redaction>,
    /// What the ledger is told to keep.
    pub(super) recording: serde_json::Value,
    pub(super) metrics: Arc<Metrics>,
    pub(super) hangup: Option<Signal>,
}

/// Listens for `SIGHUP`. Until this is called the signal ends the process, so it comes before
/// anything that takes time: a service manager may send it at any moment of the start.
pub(crate) fn hangup() -> Option<Signal> {
    match signal(SignalKind::hangup()) {
        Ok(hangup) => Some(hangup),
        Err(error) => {
            tracing::warn!(%error, "SIGHUP cannot be listened for: {error}");
            None
        }
    }
}

type Seen = Option<(SystemTime, u64, u64)>;

impl Reloader {
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<ReloadRequest>,
        stop: CancellationToken,
    ) {
        let mut seen = self.look();
        let mut known = self.fixed();
        loop {
            let hung_up = async {
                match &mut self.hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = hung_up => {
                    let _ = self.reload("SIGHUP", ROUTER, &mut known).await;
                }
                request = requests.recv() => match request {
                    Some(ReloadRequest { actor, answer }) => {
                        let report = self.reload("request", &actor, &mut known).await;
                        // Whoever asked may have left; the reload stands all the same.
                        let _ = answer.send(report);
                    }
                    None => return,
                },
                () = tokio::time::sleep(LOOK) => {
                    let now = self.look();
                    if now == seen || now.is_none() {
                        continue;
                    }
                    seen = now;
                    let _ = self.reload("file change", ROUTER, &mut known).await;
                }
            }
            seen = self.look().or(seen);
        }
    }

    fn look(&self) -> Seen {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::metadata(self.path.as_ref()?).ok()?;
        Some((metadata.modified().ok()?, metadata.ino(), metadata.len()))
    }

    /// What of the file as it is now takes a restart.
    fn fixed(&self) -> Option<Fixed> {
        config::load(self.path.as_ref()?, &self.environment).ok().map(|config| Fixed::of(&config))
    }

    async fn reload(
        &mut self,
        why: &str,
        actor: &str,
        known: &mut Option<Fixed>,
    ) -> Result<ReloadReport, String> {
        match self.take_over(why, actor, known).await {
            Ok(report) => {
                self.metrics.reload_succeeded(seconds(clock::timestamp()));
                tracing::info!(
                    servers = report.servers,
                    why,
                    "configuration reloaded ({why}): {} servers",
                    report.servers
                );
                for note in &report.notes {
                    tracing::info!("{note}");
                }
                Ok(report)
            }
            Err(problem) => {
                self.metrics.reload_failed();
                let problem = self.edge.audit.redacted(&problem);
                let detail = serde_json::json!({ "why": why, "problem": problem });
                note(&self.edge.store, NOT_RELOADED, "config", actor, &detail).await;
                tracing::error!(
                    why,
                    "configuration not reloaded ({why}), the old one stays: {problem}"
                );
                Err(problem)
            }
        }
    }

    async fn take_over(
        &mut self,
        why: &str,
        actor: &str,
        known: &mut Option<Fixed>,
    ) -> Result<ReloadReport, String> {
        let Some(path) = &self.path else {
            return Err("this router was started without a configuration file".to_owned());
        };
        let config = config::load(path, &self.environment).map_err(|error| error.to_string())?;
        let mut notes = config.notes.clone();
        let fixed = Fixed::of(&config);
        if let Some(known) = known {
            notes.extend(
                fixed
                    .changed_from(known)
                    .map(|key| format!("`{key}` changed; that takes a restart")),
            );
        }
        *known = Some(fixed);
        // Before it holds: no call is kept by a rule that is not on record.
        self.note_recording(&config, why, actor).await;
        self.redaction.reload(&config);
        let cause = Cause { why, actor };
        self.registry.apply(&config, cause).await.map_err(|error| error.to_string())?;
        self.discovery.configure(discovery_settings(&config));
        let settings = Arc::new(edge_settings(&config, self.address));
        let changed = changed_settings(&self.edge.settings.load_full(), &settings);
        let detail = serde_json::json!({ "why": why, "changed": changed, "notes": notes });
        note(&self.edge.store, RELOADED, "config", actor, &detail).await;
        self.edge.settings.store(settings);
        Ok(ReloadReport { servers: self.registry.servers().len(), notes })
    }

    /// Puts on record what changes of what is kept of calls.
    async fn note_recording(&mut self, config: &Config, why: &str, actor: &str) {
        let after = recording::of(config);
        let before = std::mem::replace(&mut self.recording, after);
        let Some(changed) = recording::changed(&before, &self.recording) else { return };
        let detail = serde_json::json!({ "why": why, "changed": changed });
        note(&self.edge.store, RECORDING_CHANGED, "audit", actor, &detail).await;
        tracing::warn!(actor, why, "what the ledger keeps of calls changed ({why}): {changed}");
    }
}

async fn note(store: &Store, kind: &str, subject: &str, actor: &str, detail: &serde_json::Value) {
    let event = EventRow {
        at: clock::timestamp(),
        actor: actor.to_owned(),
        kind: kind.to_owned(),
        subject: subject.to_owned(),
        detail: detail.to_string(),
    };
    if let Err(error) = store.append_event(&event).await {
        tracing::error!(%error, kind, "`{kind}` could not be recorded: {error}");
    }
}

/// Which of the settings differ that say who is let in, and to what.
fn changed_settings(before: &EdgeSettings, after: &EdgeSettings) -> Vec<&'static str> {
    [
        ("auth.mode", before.auth != after.auth),
        ("http.allowed_hosts", before.allowed_hosts != after.allowed_hosts),
        ("http.allowed_origins", before.allowed_origins != after.allowed_origins),
        ("limits.body", before.body_limit != after.body_limit),
        ("admin.stdio_commands", before.stdio_commands != after.stdio_commands),
    ]
    .into_iter()
    .filter_map(|(key, changed)| changed.then_some(key))
    .collect()
}

/// What cannot change while the router runs.
#[derive(Debug, PartialEq)]
struct Fixed {
    listen: SocketAddr,
    data_dir: PathBuf,
    durability: Durability,
    intent: IntentMode,
    retention: Duration,
    payload_retention: Option<Duration>,
    max_size: u64,
    checkpoints: Option<PathBuf>,
    spool: Option<PathBuf>,
    sessions: u32,
    session_idle: Duration,
    otlp: Option<OtlpConfig>,
}

impl Fixed {
    fn of(config: &Config) -> Self {
        Self {
            listen: config.listen,
            data_dir: config.data_dir.clone(),
            durability: config.audit.durability,
            intent: config.audit.intent,
            checkpoints: config.audit.checkpoints.clone(),
            spool: config.audit.spool.clone(),
            retention: config.audit.retention,
            payload_retention: config.audit.payload_retention,
            max_size: config.audit.max_size,
            sessions: config.limits.sessions,
            session_idle: config.limits.session_idle,
            otlp: config.otlp.clone(),
        }
    }

    fn changed_from(&self, before: &Self) -> impl Iterator<Item = &'static str> + use<> {
        let (otlp, old) = (self.otlp.as_ref(), before.otlp.as_ref());
        let both = otlp.zip(old);
        [
            ("listen", self.listen != before.listen),
            ("data_dir", self.data_dir != before.data_dir),
            ("audit.durability", self.durability != before.durability),
            ("audit.intent", self.intent != before.intent),
            ("audit.checkpoints", self.checkpoints != before.checkpoints),
            ("audit.spool", self.spool != before.spool),
            ("audit.retention", self.retention != before.retention),
            ("audit.payload_retention", self.payload_retention != before.payload_retention),
            ("audit.max_size", self.max_size != before.max_size),
            ("limits.sessions", self.sessions != before.sessions),
            ("limits.session_idle", self.session_idle != before.session_idle),
            ("otlp_endpoint", otlp.map(|otlp| &otlp.address) != old.map(|old| &old.address)),
            ("otlp_headers", both.is_some_and(|(otlp, old)| otlp.headers != old.headers)),
            ("otlp_sample", both.is_some_and(|(otlp, old)| otlp.sample != old.sample)),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a change from one file to another needs a restart for.
    fn changed(before: &str, after: &str) -> Vec<&'static str> {
        let fixed = |text: &str| {
            Fixed::of(&config::parse(text, "test.yaml", &Environment::new(|_| None)).unwrap())
        };
        fixed(after).changed_from(&fixed(before)).collect()
    }

    #[test]
    fn where_spans_go_takes_a_restart() {
        const FIRST: &str = "otlp_endpoint: http://127.0.0.1:4318\notlp_headers: {x-key: one}\n";
        assert!(changed(FIRST, FIRST).is_empty());
        assert_eq!(changed(FIRST, &FIRST.replace("one", "two")), ["otlp_headers"]);
        assert_eq!(changed(FIRST, &format!("{FIRST}otlp_sample: 0.5\n")), ["otlp_sample"]);
        assert_eq!(changed(FIRST, &FIRST.replace("4318", "4319")), ["otlp_endpoint"]);
        assert_eq!(changed(FIRST, ""), ["otlp_endpoint"]);
        assert_eq!(changed("", FIRST), ["otlp_endpoint"]);
    }
}
