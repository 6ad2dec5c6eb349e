//! Counters of one view.

use std::sync::Arc;

use prometheus::IntCounter;

use super::Metrics;
use crate::model::{Outcome, ViewName};

/// Handles of one view: a call finds its counter without a hash or a lock.
#[derive(Debug)]
pub struct ViewMetrics {
    calls: [(Outcome, IntCounter); Outcome::ALL.len()],
}

impl Metrics {
    /// Handles for one view, all at zero until something happens.
    #[must_use]
    pub fn view(&self, view: &ViewName) -> Arc<ViewMetrics> {
        let counter = |outcome: Outcome| {
            self.view_calls.with_label_values(&[view.as_str(), outcome.as_str()])
        };
        Arc::new(ViewMetrics { calls: Outcome::ALL.map(|outcome| (outcome, counter(outcome))) })
    }

    /// Removes the series of a view that is gone.
    pub fn forget_view(&self, view: &ViewName) {
        for outcome in Outcome::ALL {
            // An error means that there is no such series, which is what is wanted.
            let _ = self.view_calls.remove_label_values(&[view.as_str(), outcome.as_str()]);
        }
    }
}

impl ViewMetrics {
    /// Counts a call that ended so.
    pub fn count(&self, outcome: Outcome) {
        if let Some((_, counter)) = self.calls.iter().find(|(known, _)| *known == outcome) {
            counter.inc();
        }
    }
}
