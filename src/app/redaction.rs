//! [`Redaction`]: what the ledger must never keep, from the file and from every server.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::audit::{AuditWriter, Secrets};
use crate::config::Config;
use crate::model::Secret;

/// Tells the ledger's writer about secrets, wherever they come from.
#[derive(Debug)]
pub(super) struct Redaction {
    audit: AuditWriter,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    key_names: Vec<String>,
    of_file: Vec<Secret>,
    of_servers: Vec<Secret>,
}

impl Redaction {
    pub(super) fn new(audit: AuditWriter, config: &Config) -> Arc<Self> {
        let known = Known {
            key_names: config.audit.redact.clone(),
            of_file: config.secrets.clone(),
            of_servers: Vec::new(),
        };
        Arc::new(Self { audit, known: Mutex::new(known) })
    }

    /// Takes over what the registry's servers hold.
    pub(super) fn keep(&self, of_servers: Vec<Secret>) {
        let mut known = self.known.lock();
        known.of_servers = of_servers;
        self.tell(&known);
    }

    /// Takes over what a reloaded file says.
    pub(super) fn reload(&self, config: &Config) {
        let mut known = self.known.lock();
        known.key_names.clone_from(&config.audit.redact);
        known.of_file.clone_from(&config.secrets);
        self.tell(&known);
    }

    fn tell(&self, known: &Known) {
        let all = known.of_file.iter().chain(&known.of_servers).cloned();
        self.audit.set_redaction(&known.key_names, &Secrets::from_iter(all));
    }
}
