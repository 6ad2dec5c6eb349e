//! [`Budget`]: how much of a server's traffic may be retries.
//!
//! A limit of attempts alone multiplies the load of a server that is failing already: with three
//! retries each, four times over. With a budget, retries stay a part of the calls, as in Finagle's
//! and Envoy's retry budgets: each call earns a fraction of a retry, and a few in every second are
//! free, so that a quiet server's calls can be retried, too.

use std::time::Duration;

use crate::model::{RetryBudget, Uptime};

/// Retries that may be made.
#[derive(Debug, Clone)]
pub struct Budget {
    settings: RetryBudget,
    /// Earned by calls.
    earned: f64,
    /// Given by time; at most what a second gives, and at least one retry.
    free: f64,
    since: Uptime,
}

impl Budget {
    /// A budget at `now`, in which no call has earned anything.
    #[must_use]
    pub fn new(settings: RetryBudget, now: Uptime) -> Self {
        Self { settings, earned: 0.0, free: most_free(&settings), since: now }
    }

    /// A call begins.
    pub fn deposit(&mut self) {
        self.earned = (self.earned + self.settings.ratio).min(self.settings.cap);
    }

    /// Takes a retry out. Whether there was one.
    pub fn withdraw(&mut self, now: Uptime) -> bool {
        let passed = now.since(self.since).min(Duration::from_secs(3600)).as_secs_f64();
        self.since = self.since.max(now);
        self.free =
            (self.free + passed * self.settings.min_per_second).min(most_free(&self.settings));
        for purse in [&mut self.free, &mut self.earned] {
            // Ten deposits of a tenth are a whole one, whatever binary fractions say.
            if *purse >= 1.0 - 1e-9 {
                *purse -= 1.0;
                return true;
            }
        }
        false
    }

    /// A retry that was taken out was not made after all. It goes back to what time gives, where that
    /// has room: what time gave meanwhile must not become savings.
    pub fn put_back(&mut self) {
        let most = most_free(&self.settings);
        if most > 0.0 {
            self.free = (self.free + 1.0).min(most);
        } else {
            self.earned = (self.earned + 1.0).min(self.settings.cap);
        }
    }

    /// Takes over other numbers; what was saved up stays, within them.
    pub fn configure(&mut self, settings: RetryBudget) {
        self.settings = settings;
        self.earned = self.earned.min(settings.cap);
        self.free = self.free.min(most_free(&settings));
    }
}

fn most_free(settings: &RetryBudget) -> f64 {
    if settings.min_per_second > 0.0 { settings.min_per_second.max(1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(ratio: f64, min_per_second: f64, cap: f64) -> RetryBudget {
        RetryBudget { ratio, min_per_second, cap }
    }

    #[test]
    fn calls_earn_a_part_of_a_retry_each() {
        let mut budget = Budget::new(settings(0.2, 0.0, 100.0), Uptime::default());
        assert!(!budget.withdraw(Uptime::default()));
        (0..10).for_each(|_| budget.deposit());
        assert!(budget.withdraw(Uptime::default()));
        assert!(budget.withdraw(Uptime::default()));
        assert!(!budget.withdraw(Uptime::from_millis(60_000)));
    }

    #[test]
    fn time_gives_some_and_saves_up_none_beyond_a_second() {
        let mut budget = Budget::new(settings(0.0, 3.0, 100.0), Uptime::default());
        let later = Uptime::from_millis(3_600_000);
        assert_eq!((0..10).filter(|_| budget.withdraw(later)).count(), 3);
        let later = Uptime::from_millis(3_600_334);
        assert_eq!((0..10).filter(|_| budget.withdraw(later)).count(), 1);
    }

    #[test]
    fn what_is_put_back_is_there_again_and_makes_no_savings() {
        let mut budget = Budget::new(settings(0.0, 1.0, 100.0), Uptime::default());
        for second in 0..50 {
            assert!(budget.withdraw(Uptime::from_millis(second * 1000)));
            budget.put_back();
        }
        let now = Uptime::from_millis(50_000);
        assert_eq!((0..10).filter(|_| budget.withdraw(now)).count(), 1);
        let mut budget = Budget::new(settings(1.0, 0.0, 5.0), Uptime::default());
        budget.deposit();
        assert!(budget.withdraw(now));
        budget.put_back();
        assert!(budget.withdraw(now) && !budget.withdraw(now));
    }

    #[test]
    fn what_is_earned_has_a_cap() {
        let mut budget = Budget::new(settings(1.0, 0.0, 5.0), Uptime::default());
        (0..1000).for_each(|_| budget.deposit());
        assert_eq!((0..10).filter(|_| budget.withdraw(Uptime::default())).count(), 5);
        budget.deposit();
        budget.configure(settings(1.0, 0.0, 0.5));
        assert!(!budget.withdraw(Uptime::default()));
    }

    proptest! {
        /// However calls, retries and time mix: retries never exceed their part of the calls and
        /// what time gave.
        #[test]
        fn retries_stay_within_the_budget(
            steps in proptest::collection::vec((0_u8..3, 0_u64..500), 1..400),
            ratio in 0.0_f64..1.0,
            min_per_second in 0.0_f64..20.0,
            cap in 0.0_f64..50.0,
        ) {
            let mut budget = Budget::new(settings(ratio, min_per_second, cap), Uptime::default());
            let (mut now, mut calls, mut retries) = (0_u64, 0.0, 0.0);
            for (step, millis) in steps {
                now += millis;
                match step {
                    0 => { budget.deposit(); calls += 1.0; }
                    _ => if budget.withdraw(Uptime::from_millis(now)) { retries += 1.0; }
                }
                let seconds = Duration::from_millis(now).as_secs_f64();
                let most = calls * ratio + seconds * min_per_second + min_per_second.max(1.0);
                prop_assert!(retries <= most + 1e-6, "{retries} > {most}");
            }
        }
    }
}
