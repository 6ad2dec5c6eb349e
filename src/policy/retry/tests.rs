//! The whole table of decisions, and the spread of delays.

use proptest::prelude::*;

use super::*;
use crate::model::RetryBudget;

fn settings(mode: RetryMode) -> RetrySettings {
    RetrySettings {
        mode,
        attempts: 3,
        delay: Duration::from_secs(1),
        max_delay: Duration::from_secs(30),
        jitter: RetryJitter::Equal,
        timeouts: RetryTimeouts::Never,
        budget: RetryBudget::default(),
    }
}

const LONG: Duration = Duration::from_secs(600);

fn failed(failure: Failure, may_pass: bool) -> Failed {
    Failed { failure, may_pass, retry_after: None, attempts: 1 }
}

fn stops(decision: Decision) -> Option<Suppressed> {
    match decision {
        Decision::Retry { .. } => None,
        Decision::Stop(why) => Some(why),
    }
}

#[test]
fn what_is_repeated_is_written_in_a_table() {
    use Failure::{Ambiguous, Answered, Cancelled, NotSent, Refused, Timeout};
    use RetryMode::{Off, Safe, Seed};
    const YES: Option<Suppressed> = None;
    const FINAL: Option<Suppressed> = Some(Suppressed::Final);
    const UNSAFE: Option<Suppressed> = Some(Suppressed::Unsafe);
    // Mode and failure; then a tool that is not declared safe to repeat, and one that is; each for
    // what may pass and for what only a change of configuration mends.
    let table = [
        (Safe, NotSent, [YES, FINAL], [YES, FINAL]),
        (Safe, Refused, [YES, FINAL], [YES, FINAL]),
        (Safe, Ambiguous, [UNSAFE, UNSAFE], [YES, FINAL]),
        (Safe, Timeout, [FINAL, FINAL], [FINAL, FINAL]),
        (Safe, Answered, [FINAL, FINAL], [FINAL, FINAL]),
        (Safe, Cancelled, [FINAL, FINAL], [FINAL, FINAL]),
        (Seed, NotSent, [YES, YES], [YES, YES]),
        (Seed, Refused, [YES, YES], [YES, YES]),
        (Seed, Ambiguous, [YES, YES], [YES, YES]),
        (Seed, Timeout, [FINAL, FINAL], [FINAL, FINAL]),
        (Seed, Answered, [FINAL, FINAL], [FINAL, FINAL]),
        (Seed, Cancelled, [FINAL, FINAL], [FINAL, FINAL]),
        (Off, NotSent, [FINAL, FINAL], [FINAL, FINAL]),
        (Off, Refused, [FINAL, FINAL], [FINAL, FINAL]),
        (Off, Ambiguous, [FINAL, FINAL], [FINAL, FINAL]),
        (Off, Timeout, [FINAL, FINAL], [FINAL, FINAL]),
        (Off, Answered, [FINAL, FINAL], [FINAL, FINAL]),
        (Off, Cancelled, [FINAL, FINAL], [FINAL, FINAL]),
    ];
    for (mode, failure, plain, declared) in table {
        for (replay_safe, expected) in [(false, plain), (true, declared)] {
            for (may_pass, expected) in [(true, expected[0]), (false, expected[1])] {
                let decision =
                    decide(&settings(mode), failed(failure, may_pass), replay_safe, LONG, 0.5);
                assert_eq!(stops(decision), expected, "{mode:?} {failure:?} {replay_safe}");
            }
        }
    }
}

#[test]
fn timeouts_are_repeated_only_where_that_is_wanted_and_safe() {
    let wanted = RetrySettings { timeouts: RetryTimeouts::ReplaySafe, ..settings(RetryMode::Safe) };
    let timeout = failed(Failure::Timeout, true);
    assert_eq!(stops(decide(&wanted, timeout, true, LONG, 0.5)), None);
    assert_eq!(stops(decide(&wanted, timeout, false, LONG, 0.5)), Some(Suppressed::Unsafe));
}

#[test]
fn attempts_are_counted_and_the_server_may_ask_for_a_longer_wait() {
    let settings = settings(RetryMode::Safe);
    let after = |attempts, retry_after| {
        let failed = Failed { attempts, retry_after, ..failed(Failure::NotSent, true) };
        decide(&settings, failed, false, Duration::from_secs(50), 0.5)
    };
    for (attempts, seconds) in [(1, 1), (2, 2), (3, 4)] {
        assert_eq!(after(attempts, None), Decision::Retry { after: Duration::from_secs(seconds) });
    }
    assert_eq!(after(4, None), Decision::Stop(Suppressed::Attempts));
    let asked = Duration::from_secs(20);
    assert_eq!(after(1, Some(asked)), Decision::Retry { after: asked });
    let short = Duration::from_millis(5);
    assert_eq!(after(2, Some(short)), Decision::Retry { after: Duration::from_secs(2) });
    let too_long = Duration::from_secs(60);
    assert_eq!(after(1, Some(too_long)), Decision::Stop(Suppressed::Deadline));
}

/// The distance of a sample from the uniform distribution between two bounds (Kolmogorov and
/// Smirnov).
fn distance_from_uniform(mut sample: Vec<f64>, low: f64, high: f64) -> f64 {
    sample.sort_by(f64::total_cmp);
    let count = sample.len() as f64;
    sample
        .iter()
        .enumerate()
        .map(|(at, value)| {
            let expected = (value - low) / (high - low);
            let (below, above) = (at as f64 / count, (at + 1) as f64 / count);
            (expected - below).abs().max((above - expected).abs())
        })
        .fold(0.0, f64::max)
}

#[test]
fn jitter_bounds() {
    const COUNT: u32 = 100_000;
    let mut random = fastrand::Rng::with_seed(7);
    for (jitter, low) in [(RetryJitter::Equal, 0.75_f64), (RetryJitter::Full, 0.0)] {
        let high = if jitter == RetryJitter::Equal { 1.25 } else { 1.0 };
        let settings = RetrySettings { jitter, ..settings(RetryMode::Safe) };
        let mut below_the_cap = Vec::new();
        for number in 0..COUNT {
            let attempt = number % 10 + 1;
            let after = delay(&settings, attempt, random.f64());
            assert!((SHORTEST_DELAY..=settings.max_delay).contains(&after), "{after:?}");
            // 4 s at the third attempt: neither bound is near.
            let plain = delay(&settings, 3, random.f64()).as_secs_f64();
            if plain > SHORTEST_DELAY.as_secs_f64() {
                below_the_cap.push(plain);
            }
        }
        let low = (4.0 * low).max(SHORTEST_DELAY.as_secs_f64());
        let count = below_the_cap.len() as f64;
        let distance = distance_from_uniform(below_the_cap, low, 4.0 * high);
        // One in a thousand uniform samples is farther off.
        assert!(distance < 1.95 / count.sqrt(), "{jitter:?}: {distance}");
    }
}

proptest! {
    #[test]
    fn all_delays_of_a_call_fit_its_deadline(
        deadline in 0_u64..120_000,
        delay in 0_u64..10_000,
        max_delay in 0_u64..60_000,
        attempts in 0_u32..20,
        retry_after in proptest::option::of(0_u64..90_000),
        randoms in proptest::collection::vec(0.0_f64..=1.0, 25),
    ) {
        let settings = RetrySettings {
            attempts,
            delay: Duration::from_millis(delay),
            max_delay: Duration::from_millis(max_delay),
            ..settings(RetryMode::Safe)
        };
        let mut left = Duration::from_millis(deadline);
        let mut made = 1;
        for random in randoms {
            let failed = Failed {
                failure: Failure::NotSent,
                may_pass: true,
                retry_after: retry_after.map(Duration::from_millis),
                attempts: made,
            };
            let Decision::Retry { after } = decide(&settings, failed, false, left, random) else {
                break;
            };
            prop_assert!(after < left && after >= SHORTEST_DELAY);
            left -= after;
            made += 1;
        }
        prop_assert!(made <= attempts + 1);
    }

    #[test]
    fn no_settings_and_no_number_break_it(
        delay_ms in any::<u64>(),
        max in any::<u64>(),
        attempt in any::<u32>(),
        random in any::<f64>(),
    ) {
        let settings = RetrySettings {
            delay: Duration::from_millis(delay_ms),
            max_delay: Duration::from_millis(max),
            ..settings(RetryMode::Safe)
        };
        prop_assert!(delay(&settings, attempt, random) >= SHORTEST_DELAY);
    }
}
