//! [`SloSpec`]: what an operator promises of a server or a tool, and how a [`Standing`] follows from
//! counts.
//!
//! Changes when something else can be promised. Which calls count is in `docs/slo.md`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Over what it is kept unless said otherwise.
pub const SLO_WINDOW: Duration = Duration::from_secs(30 * 86_400);

/// What is promised of a server or a tool.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SloSpec {
    /// Half of the answers take no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_p50: Option<Duration>,
    /// 95 of 100 answers take no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_p95: Option<Duration>,
    /// 99 of 100 answers take no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_p99: Option<Duration>,
    /// The part of calls, above 0 and below 1, that do not fail through a fault of server or router.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success: Option<f64>,
    /// Over which time, up to now.
    pub window: Duration,
}

impl Default for SloSpec {
    fn default() -> Self {
        Self {
            latency_p50: None,
            latency_p95: None,
            latency_p99: None,
            success: None,
            window: SLO_WINDOW,
        }
    }
}

/// One thing that is promised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// The key in the configuration: `success`, `latency_p95` and so on.
    pub name: &'static str,
    /// The part of calls that must be good, above 0 and below 1.
    pub target: f64,
    /// How long a good one may take; `None` where time is not what is promised.
    pub within: Option<Duration>,
}

impl SloSpec {
    /// Everything that it promises.
    pub fn objectives(&self) -> impl Iterator<Item = Objective> + use<> {
        let latency = |name, target, within: Option<Duration>| {
            within.map(|within| Objective { name, target, within: Some(within) })
        };
        [
            self.success.map(|target| Objective { name: "success", target, within: None }),
            latency("latency_p50", 0.5, self.latency_p50),
            latency("latency_p95", 0.95, self.latency_p95),
            latency("latency_p99", 0.99, self.latency_p99),
        ]
        .into_iter()
        .flatten()
    }
}

/// How calls of some time stand to an objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Calls that count.
    pub calls: u64,
    /// Those of them that were not good.
    pub bad: u64,
}

impl Standing {
    /// The part that was good; `None` without calls.
    #[must_use]
    pub fn attained(self) -> Option<f64> {
        self.bad_part().map(|bad| 1.0 - bad)
    }

    /// Whether the objective is met. Without calls nothing is missed.
    #[must_use]
    pub fn meets(self, target: f64) -> bool {
        self.budget_left(target) >= 0.0
    }

    /// How much faster the error budget is used up than would just last: 1 is just right.
    #[must_use]
    pub fn burn(self, target: f64) -> Option<f64> {
        self.bad_part().map(|bad| bad / (1.0 - target))
    }

    /// The part of the error budget that is left; below 0 when more than all is used up.
    #[must_use]
    pub fn budget_left(self, target: f64) -> f64 {
        let left = 1.0 - self.burn(target).unwrap_or(0.0);
        // 1 of 100 bad is just 99 %, whatever 1 - 0.99 is in binary.
        if left.abs() < 1e-9 { 0.0 } else { left }
    }

    #[expect(clippy::cast_precision_loss, reason = "a call in 2^52 changes nothing")]
    fn bad_part(self) -> Option<f64> {
        (self.calls > 0).then(|| self.bad as f64 / self.calls as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_what_the_target_leaves() {
        let of = |calls, bad| Standing { calls, bad };
        for (standing, target, left, burn, meets) in [
            (of(0, 0), 0.99, 1.0, None, true),
            (of(1000, 0), 0.99, 1.0, Some(0.0), true),
            (of(1000, 5), 0.99, 0.5, Some(0.5), true),
            (of(1000, 10), 0.99, 0.0, Some(1.0), true),
            (of(100, 1), 0.99, 0.0, Some(1.0), true),
            (of(1000, 11), 0.99, -0.1, Some(1.1), false),
            (of(10, 10), 0.5, -1.0, Some(2.0), false),
            (of(100_000, 100), 0.999, 0.0, Some(1.0), true),
        ] {
            let close = |one: f64, other: f64| (one - other).abs() < 1e-9;
            assert!(close(standing.budget_left(target), left), "{standing:?}");
            assert_eq!(standing.burn(target).is_some(), burn.is_some());
            if let (Some(found), Some(burn)) = (standing.burn(target), burn) {
                assert!(close(found, burn), "{standing:?}: {found}");
            }
            assert_eq!(standing.meets(target), meets, "{standing:?} of {target}");
        }
        assert_eq!(of(0, 0).attained(), None);
        assert_eq!(of(4, 1).attained(), Some(0.75));
    }

    #[test]
    fn a_specification_promises_what_is_set() {
        let second = Some(Duration::from_secs(1));
        let spec = SloSpec { latency_p99: second, success: Some(0.999), ..SloSpec::default() };
        let names: Vec<_> = spec.objectives().map(|objective| objective.name).collect();
        assert_eq!(names, ["success", "latency_p99"]);
        assert_eq!(SloSpec::default().objectives().count(), 0);
    }
}
