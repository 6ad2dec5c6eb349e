//! [`Redaction`]: what must never be kept or shown, from the file and from every server.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::Config;
use crate::model::Secret;
use crate::redact::{InForce, Redactor, Secrets};

/// Tells all who look through the redactor in force about secrets, wherever they come from.
#[derive(Debug)]
pub(super) struct Redaction {
    in_force: InForce,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    key_names: Vec<String>,
    of_file: Vec<Secret>,
    of_servers: Vec<Secret>,
}

impl Redaction {
    pub(super) fn new(config: &Config) -> Arc<Self> {
        let known = Known {
            key_names: config.audit.redact.clone(),
            of_file: config.secrets.clone(),
            of_servers: Vec::new(),
        };
        let redaction = Self { in_force: config.redaction.clone(), known: Mutex::default() };
        redaction.tell(&known);
        *redaction.known.lock() = known;
        Arc::new(redaction)
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
        self.in_force.set(Redactor::new(&known.key_names, &Secrets::from_iter(all)));
    }
}
