//! Many threads at one breaker, as calls are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};

use super::*;

/// At the moment of expiry as many get a ticket as there are probes, whoever comes first, and a ticket
/// that is given back without a word is there for another.
#[test]
fn as_many_tickets_as_probes_however_many_ask_at_once() {
    const THREADS: usize = 8;
    for round in 0..300_u64 {
        let probes = u32::try_from(round % 3 + 1).unwrap();
        let mut breaker =
            Breaker::new(BreakerSettings { threshold: 1, probes, successes: 9, ..settings() });
        let mut seen = Vec::new();
        let ticket = breaker.acquire(at(0), LEASE, 0.5, &mut seen).unwrap();
        breaker.report(ticket, Verdict::Failure, Duration::ZERO, at(0), 0.5, &mut seen);
        let (breaker, barrier) = (Mutex::new(breaker), Barrier::new(THREADS));
        let (now, given, held) = (at(30_000), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (breaker, barrier, given, held) = (&breaker, &barrier, &given, &held);
                scope.spawn(move || {
                    barrier.wait();
                    let mut seen = Vec::new();
                    let asked = breaker.lock().unwrap().acquire(now, LEASE, 0.5, &mut seen);
                    let Ok(ticket) = asked else { return };
                    given.fetch_add(1, Ordering::SeqCst);
                    let at_once = held.fetch_add(1, Ordering::SeqCst) + 1;
                    assert!(at_once <= usize::try_from(probes).unwrap(), "{at_once} at once");
                    if thread % 2 == 0 {
                        // Before the ticket is back, or another could count with it.
                        held.fetch_sub(1, Ordering::SeqCst);
                        let verdict = Verdict::Neutral;
                        let mut breaker = breaker.lock().unwrap();
                        breaker.report(ticket, verdict, Duration::ZERO, now, 0.5, &mut seen);
                    }
                });
            }
        });
        let mut breaker = breaker.into_inner().unwrap();
        let (given, held) = (given.into_inner(), held.into_inner());
        assert!(given >= usize::try_from(probes).unwrap(), "{given} given");
        let status = breaker.status(now);
        assert_eq!(usize::try_from(status.probing).unwrap(), held);
        let free = usize::try_from(probes).unwrap() - held;
        for _ in 0..free {
            assert!(breaker.acquire(now, LEASE, 0.5, &mut Vec::new()).is_ok(), "none is lost");
        }
        assert!(breaker.acquire(now, LEASE, 0.5, &mut Vec::new()).is_err());
    }
}
