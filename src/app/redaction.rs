//! [`Redaction`]: what must never be kept or shown, from the file and from every server.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::Config;
use crate::model::Secret;
use crate::redact::{InForce, Redactor, Secrets};

/// Secrets that are not in use any more and are looked for all the same, until the router ends: a call
/// that is under way, a child that still runs or a row that waits may have them. The oldest go first.
const RETIRED: usize = 256;

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
    retired: VecDeque<Secret>,
}

impl Known {
    /// Keeps those of `before` that are in use nowhere now.
    fn retire(&mut self, before: Vec<Secret>) {
        let Self { of_file, of_servers, retired, .. } = self;
        for secret in before {
            if !of_file.contains(&secret) && !of_servers.contains(&secret) {
                // One that was retired before is as good as new.
                retired.retain(|known| *known != secret);
                retired.push_back(secret);
            }
        }
        while retired.len() > RETIRED {
            retired.pop_front();
        }
    }
}

impl Redaction {
    pub(super) fn new(config: &Config) -> Arc<Self> {
        let known = Known {
            key_names: config.audit.redact.clone(),
            of_file: config.secrets.clone(),
            of_servers: Vec::new(),
            retired: VecDeque::new(),
        };
        let redaction = Self { in_force: config.redaction.clone(), known: Mutex::default() };
        redaction.tell(&known);
        *redaction.known.lock() = known;
        Arc::new(redaction)
    }

    /// Takes over what the registry's servers hold.
    pub(super) fn keep(&self, of_servers: Vec<Secret>) {
        let mut known = self.known.lock();
        let before = std::mem::replace(&mut known.of_servers, of_servers);
        known.retire(before);
        self.tell(&known);
    }

    /// Takes over what a reloaded file says.
    pub(super) fn reload(&self, config: &Config) {
        let mut known = self.known.lock();
        known.key_names.clone_from(&config.audit.redact);
        let before = std::mem::replace(&mut known.of_file, config.secrets.clone());
        known.retire(before);
        self.tell(&known);
    }

    fn tell(&self, known: &Known) {
        let all = known.of_file.iter().chain(&known.of_servers).chain(&known.retired).cloned();
        self.in_force.set(Redactor::new(&known.key_names, &Secrets::from_iter(all)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Environment};

    #[test]
    fn a_secret_that_was_replaced_is_looked_for_until_the_end() {
        let config = config::parse("{}", "x", &Environment::new(|_| None)).unwrap();
        let redaction = Redaction::new(&config);
        let hides = |text: &str| !redaction.in_force.text(text).contains(text);
        let secret = |number: usize| Secret::new(format!("rotated-value-{number:04}"));
        redaction.keep(vec![secret(1), secret(2)]);
        redaction.keep(vec![secret(2), secret(3)]);
        redaction.reload(&config);
        for number in 1..=3 {
            assert!(hides(secret(number).expose()), "{number}");
        }
        // The oldest of too many is forgotten, and none that is in use.
        redaction.keep((10..10 + RETIRED).map(secret).collect());
        redaction.keep(vec![secret(10)]);
        assert!(!hides(secret(1).expose()));
        assert!(hides(secret(10).expose()) && hides(secret(9 + RETIRED).expose()));
        assert_eq!(redaction.known.lock().retired.len(), RETIRED);
    }
}
