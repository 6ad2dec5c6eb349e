//! Breakers and retries of one server.

use prometheus::{
    Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::{Metrics, MetricsError, counters, gauges};
use crate::model::{BreakerState, Failure, ServerName, Timestamp, TransitionReason};

/// The transitions that happen by themselves: their series are there from the start.
const USUAL: [(BreakerState, BreakerState, TransitionReason); 8] = [
    (BreakerState::Closed, BreakerState::Open, TransitionReason::Failures),
    (BreakerState::Closed, BreakerState::Open, TransitionReason::FailureRate),
    (BreakerState::Closed, BreakerState::Open, TransitionReason::SlowCalls),
    (BreakerState::Open, BreakerState::HalfOpen, TransitionReason::Timer),
    (BreakerState::HalfOpen, BreakerState::Closed, TransitionReason::ProbeSucceeded),
    (BreakerState::HalfOpen, BreakerState::Open, TransitionReason::ProbeFailed),
    (BreakerState::HalfOpen, BreakerState::Open, TransitionReason::ProbeLeaseExpired),
    (BreakerState::HalfOpen, BreakerState::Open, TransitionReason::Restored),
];

/// What failures are retried at all.
const RETRIED: [Failure; 4] =
    [Failure::NotSent, Failure::Refused, Failure::Ambiguous, Failure::Timeout];

/// Why a retry was not made, of those that a person would like to know of.
const SUPPRESSED: [&str; 8] =
    ["unsafe", "attempts", "deadline", "budget", "breaker", "overload", "asked", "changed"];

/// The families of metrics.
#[derive(Debug)]
pub(super) struct BreakerFamilies {
    state: IntGaugeVec,
    tools_open: IntGaugeVec,
    transitions: IntCounterVec,
    rejections: IntCounterVec,
    open_until: GaugeVec,
    stale_results: IntCounterVec,
    retries: IntCounterVec,
    suppressed: IntCounterVec,
}

impl BreakerFamilies {
    pub(super) fn register(registry: &Registry) -> Result<Self, MetricsError> {
        Ok(Self {
            state: gauges(
                registry,
                "switchyard_breaker_state",
                "The state of the server's circuit breaker: 1 for the state it is in, else 0.",
                &["server", "state"],
            )?,
            tools_open: gauges(
                registry,
                "switchyard_breaker_tools_open",
                "Tools of the server whose own circuit breakers are open or half open (breaker_scope: tool); those that an operator forced are not among them. Looked at twice a second.",
                &["server"],
            )?,
            transitions: counters(
                registry,
                "switchyard_breaker_transitions_total",
                "Changes of state of the server's circuit breakers.",
                &["server", "from", "to", "reason"],
            )?,
            rejections: counters(
                registry,
                "switchyard_breaker_rejections_total",
                "Attempts that the server's circuit breakers refused; nothing was sent.",
                &["server"],
            )?,
            open_until: {
                let vec = GaugeVec::new(
                    Opts::new(
                        "switchyard_breaker_open_until_timestamp_seconds",
                        "When the open circuit breaker lets a probe through, in seconds since the Unix epoch; 0 when it is not open or has no end.",
                    ),
                    &["server"],
                )?;
                registry.register(Box::new(vec.clone()))?;
                vec
            },
            stale_results: counters(
                registry,
                "switchyard_breaker_stale_results_total",
                "Attempts that ended after the circuit breaker had changed its state, and so said nothing of it.",
                &["server"],
            )?,
            retries: counters(
                registry,
                "switchyard_retries_total",
                "Attempts that repeated a failed one, by what was known of that.",
                &["server", "reason"],
            )?,
            suppressed: counters(
                registry,
                "switchyard_retries_suppressed_total",
                "Failed attempts that were not repeated although their kind can be, by why.",
                &["server", "why"],
            )?,
        })
    }

    /// Removes the series of a server that is gone.
    pub(super) fn forget(&self, server: &str) {
        for state in BreakerState::ALL {
            let _ = self.state.remove_label_values(&[server, state.as_str()]);
        }
        for from in BreakerState::ALL {
            for to in BreakerState::ALL {
                for reason in TransitionReason::ALL {
                    let labels = [server, from.as_str(), to.as_str(), reason.as_str()];
                    let _ = self.transitions.remove_label_values(&labels);
                }
            }
        }
        let _ = self.tools_open.remove_label_values(&[server]);
        let _ = self.rejections.remove_label_values(&[server]);
        let _ = self.open_until.remove_label_values(&[server]);
        let _ = self.stale_results.remove_label_values(&[server]);
        for failure in RETRIED {
            let _ = self.retries.remove_label_values(&[server, failure.as_str()]);
        }
        for why in SUPPRESSED {
            let _ = self.suppressed.remove_label_values(&[server, why]);
        }
    }
}

/// Handles for one breaker.
#[derive(Debug, Clone)]
pub struct BreakerMetrics {
    server: ServerName,
    /// Of the server's own breaker; those of single tools only count.
    shown: Option<Shown>,
    transitions: IntCounterVec,
    /// Attempts refused.
    pub rejections: IntCounter,
    /// Reports that came too late to count.
    pub stale_results: IntCounter,
}

/// What is shown of a server's own breaker, and of those of its tools together.
#[derive(Debug, Clone)]
struct Shown {
    states: [IntGauge; BreakerState::ALL.len()],
    open_until: Gauge,
    tools_open: IntGauge,
}

impl Metrics {
    /// Handles for the breaker of a server or, with `is_servers` false, of one tool of it.
    #[must_use]
    pub fn breaker(&self, server: &ServerName, is_servers: bool) -> BreakerMetrics {
        let (families, name) = (&self.breakers, server.as_str());
        for (from, to, reason) in USUAL {
            let labels = [name, from.as_str(), to.as_str(), reason.as_str()];
            let _at_zero = families.transitions.with_label_values(&labels);
        }
        let gauge = |state: BreakerState| families.state.with_label_values(&[name, state.as_str()]);
        BreakerMetrics {
            server: server.clone(),
            shown: is_servers.then(|| Shown {
                states: BreakerState::ALL.map(gauge),
                open_until: families.open_until.with_label_values(&[name]),
                tools_open: families.tools_open.with_label_values(&[name]),
            }),
            transitions: families.transitions.clone(),
            rejections: families.rejections.with_label_values(&[name]),
            stale_results: families.stale_results.with_label_values(&[name]),
        }
    }

    pub(super) fn retries(&self, server: &str) -> RetryMetrics {
        let (families, retried) = (&self.breakers, RETRIED);
        RetryMetrics {
            retries: retried.map(|failure| {
                (failure, families.retries.with_label_values(&[server, failure.as_str()]))
            }),
            suppressed: SUPPRESSED
                .map(|why| (why, families.suppressed.with_label_values(&[server, why]))),
        }
    }
}

impl BreakerMetrics {
    /// Shows the state, and until when it refuses.
    pub fn set_state(&self, state: BreakerState, open_until: Option<Timestamp>) {
        let Some(shown) = &self.shown else { return };
        for (known, gauge) in BreakerState::ALL.iter().zip(&shown.states) {
            gauge.set(i64::from(*known == state));
        }
        #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are below 2^52")]
        let until = open_until.map_or(0.0, |at| at.as_millis() as f64 / 1000.0);
        shown.open_until.set(until);
    }

    /// Shows how many tools of the server have an open breaker of their own.
    pub fn set_tools_open(&self, tools: usize) {
        if let Some(shown) = &self.shown {
            shown.tools_open.set(i64::try_from(tools).unwrap_or(i64::MAX));
        }
    }

    /// Counts a change of state.
    pub fn count_transition(&self, from: BreakerState, to: BreakerState, reason: TransitionReason) {
        let labels = [self.server.as_str(), from.as_str(), to.as_str(), reason.as_str()];
        self.transitions.with_label_values(&labels).inc();
    }
}

/// Handles for the retries at one server.
#[derive(Debug)]
pub struct RetryMetrics {
    retries: [(Failure, IntCounter); RETRIED.len()],
    suppressed: [(&'static str, IntCounter); SUPPRESSED.len()],
}

impl RetryMetrics {
    /// Counts an attempt that repeats one that failed so.
    pub fn count(&self, failure: Failure) {
        if let Some((_, counter)) = self.retries.iter().find(|(known, _)| *known == failure) {
            counter.inc();
        }
    }

    /// Counts a retry that was not made; words beside the known ones are not counted.
    pub fn count_suppressed(&self, why: &str) {
        if let Some((_, counter)) = self.suppressed.iter().find(|(known, _)| *known == why) {
            counter.inc();
        }
    }
}
