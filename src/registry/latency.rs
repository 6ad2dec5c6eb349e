//! [`LatencyWindow`]: the last few durations of a server, for people to look at.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// Enough for a stable p95, small enough to sort on request.
const SIZE: usize = 128;

/// A ring of durations; recording is two relaxed atomic writes.
#[derive(Debug)]
pub(super) struct LatencyWindow {
    next: AtomicUsize,
    /// Microseconds plus one; zero is an unused place.
    micros: [AtomicU32; SIZE],
}

impl LatencyWindow {
    pub(super) const fn new() -> Self {
        Self { next: AtomicUsize::new(0), micros: [const { AtomicU32::new(0) }; SIZE] }
    }

    pub(super) fn record(&self, took: Duration) {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % SIZE;
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX - 1).saturating_add(1);
        if let Some(place) = self.micros.get(at) {
            place.store(micros, Ordering::Relaxed);
        }
    }

    /// The values at the given quantiles in milliseconds; `None` before the first call.
    pub(super) fn quantiles(&self, quantiles: [f64; 2]) -> Option<[f64; 2]> {
        let mut seen: Vec<u32> = self
            .micros
            .iter()
            .map(|place| place.load(Ordering::Relaxed))
            .filter(|micros| *micros > 0)
            .collect();
        seen.sort_unstable();
        let last = seen.len().checked_sub(1)?;
        Some(quantiles.map(|quantile| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "at most SIZE values, quantiles within 0 and 1"
            )]
            let at = (last as f64 * quantile).round() as usize;
            seen.get(at).map_or(0.0, |micros| f64::from(*micros - 1) / 1000.0)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_latest_calls() {
        let window = LatencyWindow::new();
        assert_eq!(window.quantiles([0.5, 0.95]), None);
        window.record(Duration::from_secs(9999));
        for ms in 1..=128 {
            window.record(Duration::from_millis(ms));
        }
        assert_eq!(window.quantiles([0.0, 1.0]), Some([1.0, 128.0]));
        let [p50, p95] = window.quantiles([0.5, 0.95]).unwrap();
        assert!((64.0..=66.0).contains(&p50) && (121.0..=123.0).contains(&p95));
    }
}
