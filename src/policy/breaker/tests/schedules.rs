//! Callers at one breaker, in orders that a scheduler of our own decides: at each lock and each look at
//! the clock another may go on. What fails comes back with its schedule, and fails again.

use shuttle::rand::{Rng as _, thread_rng};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::sync::{Arc, Mutex};
use shuttle::{check_pct, check_random, thread};

use super::*;

const CALLERS: usize = 4;
const CALLS: usize = 5;

/// A breaker as a server has it: behind one lock, for the time of one step. The clock is read before
/// the lock is taken, so that whoever waits for the lock comes with a time that is past.
struct Shared {
    clock: AtomicU64,
    core: Mutex<Core>,
}

struct Core {
    breaker: Breaker,
    transitions: Vec<Transition>,
    /// Probes that were let through and did not report.
    probes: Vec<Ticket>,
}

impl Core {
    /// What holds between any two steps.
    fn check(&self, now: Uptime) {
        let steps = &self.transitions;
        let chain = steps.windows(2).all(|pair| pair[0].to == pair[1].from);
        assert!(chain, "no step is lost or out of order: {steps:?}");
        let status = self.breaker.status(now);
        assert_eq!(status.generation, steps.len() as u64, "each step is a generation: {steps:?}");
        assert_eq!(status.state, steps.last().map_or(BreakerState::Closed, |last| last.to));
        let settings = &self.breaker.settings;
        match status.state {
            BreakerState::Closed => assert!(status.failures < settings.threshold),
            BreakerState::HalfOpen => {
                let out = self.probes.iter().filter(|probe| probe.generation == status.generation);
                assert_eq!(out.count() as u64, u64::from(status.probing), "no permit is lost");
                assert!(status.probing <= settings.probes, "none is given twice: {status:?}");
            }
            _ => {}
        }
    }
}

impl Shared {
    fn now(&self) -> Uptime {
        at(self.clock.load(Ordering::SeqCst))
    }

    fn acquire(&self) -> Option<Ticket> {
        let now = self.now();
        let mut core = self.core.lock().unwrap();
        let Core { breaker, transitions, .. } = &mut *core;
        let ticket = breaker.acquire(now, LEASE, 0.5, transitions).ok();
        let state = breaker.state();
        match ticket {
            Some(ticket) if ticket.is_probe() => {
                assert_eq!(state, BreakerState::HalfOpen);
                core.probes.push(ticket);
            }
            Some(_) => {
                assert!(matches!(state, BreakerState::Closed | BreakerState::ForcedClosed));
            }
            None => assert!(!matches!(state, BreakerState::Closed | BreakerState::ForcedClosed)),
        }
        core.check(now);
        ticket
    }

    fn report(&self, ticket: Ticket, verdict: Verdict) {
        let now = self.now();
        let mut core = self.core.lock().unwrap();
        let Core { breaker, transitions, probes } = &mut *core;
        let (before, generation) = (transitions.len(), breaker.generation);
        let heard = breaker.report(ticket, verdict, Duration::ZERO, now, 0.5, transitions);
        if ticket.generation != generation {
            assert!(!heard, "a result of another generation was heard");
        }
        if !heard {
            use TransitionReason::{ForcedUntilOver, ProbeLeaseExpired};
            let by_time =
                |step: &Transition| matches!(step.reason, ProbeLeaseExpired | ForcedUntilOver);
            assert!(transitions[before..].iter().all(by_time), "and changed the state");
        }
        if ticket.is_probe() {
            let own = probes.iter().position(|probe| *probe == ticket).expect("let through once");
            probes.swap_remove(own);
        }
        core.check(now);
    }

    fn command(&self, command: Command) {
        let now = self.now();
        let mut core = self.core.lock().unwrap();
        let step = core.breaker.command(command, now);
        core.transitions.extend(step);
        core.check(now);
    }
}

/// One caller: it asks, and says how it went, or that it went away, or nothing ever.
fn caller(shared: &Shared) {
    for _ in 0..CALLS {
        let Some(ticket) = shared.acquire() else { continue };
        let verdict = match thread_rng().gen_range(0..8) {
            0 => continue,
            1 => Verdict::Neutral,
            2 => Verdict::Answered,
            3 | 4 => Verdict::Success,
            _ => Verdict::Failure,
        };
        shared.report(ticket, verdict);
    }
}

/// One life of a breaker, with callers, time that passes, and an operator.
fn life(probes: u32, successes: u32) {
    let settings = BreakerSettings { threshold: 2, probes, successes, ..settings() };
    let core =
        Core { breaker: Breaker::new(settings), transitions: Vec::new(), probes: Vec::new() };
    let shared = Arc::new(Shared { clock: AtomicU64::new(1_000_000), core: Mutex::new(core) });
    let mut threads: Vec<_> = (0..CALLERS)
        .map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || caller(&shared))
        })
        .collect();
    let time = Arc::clone(&shared);
    threads.push(thread::spawn(move || {
        for _ in 0..6 {
            let step = [1, 999, 1_000, 15_000, 30_000][thread_rng().gen_range(0..5)];
            time.clock.fetch_add(step, Ordering::SeqCst);
        }
    }));
    let operator = Arc::clone(&shared);
    threads.push(thread::spawn(move || {
        let during = Some(Duration::from_secs(20));
        operator.command(Command::ForceOpen { during });
        operator.command(Command::Reset);
    }));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    // Whatever happened: a server that is well again is let in again, after a lease and a period.
    for _ in 0..2 {
        shared.clock.fetch_add(31_000, Ordering::SeqCst);
        shared.command_of_time();
    }
    for _ in 0..successes.max(1) {
        let ticket = shared.acquire().expect("the breaker is stuck");
        shared.report(ticket, Verdict::Success);
    }
    assert_eq!(shared.core.lock().unwrap().breaker.state(), BreakerState::Closed);
}

impl Shared {
    /// Lets time alone do what it does.
    fn command_of_time(&self) {
        let now = self.now();
        let mut core = self.core.lock().unwrap();
        let Core { breaker, transitions, .. } = &mut *core;
        breaker.settle(now, 0.5, transitions);
        core.check(now);
    }
}

#[test]
fn no_order_of_callers_breaks_the_rules() {
    for (probes, successes) in [(1, 1), (2, 2)] {
        check_random(move || life(probes, successes), 500);
        // Few changes of thread at the worst places, which chance alone seldom finds.
        check_pct(move || life(probes, successes), 500, 3);
    }
}
