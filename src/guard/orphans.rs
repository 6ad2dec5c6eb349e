//! What the router does about a guard that was killed: it ends what that guard left behind.
//!
//! Changes when the rules for orphans do.
//!
//! A router that calls [`adopt_orphans`] is the next subreaper above its guards, so what a killed
//! guard leaves becomes a child of the router itself. A child of this process that is no guard is
//! such an orphan.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitOptions, waitpid};

use super::table::{ProcessTable, signal};

/// Guards that this process started and that were not reaped when orphans were last looked for.
/// Children are a matter of the whole process.
static GUARDS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
static ADOPTING: AtomicBool = AtomicBool::new(false);

/// From now on, descendants of this process that lose their guard become children of this process,
/// for [`end_orphans`]. Only for a process whose children are all started with [`start_guard`].
///
/// # Errors
/// Where the kernel has nothing of the kind.
pub fn adopt_orphans() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        ADOPTING.store(true, Ordering::Relaxed);
        Ok(())
    }
    #[cfg(not(target_os = "linux"))]
    Err(io::ErrorKind::Unsupported.into())
}

/// Starts a guard with `start`, which says its process id, and knows it from then on.
///
/// # Errors
/// Those of `start`.
pub fn start_guard<T>(start: impl FnOnce() -> io::Result<(T, Option<u32>)>) -> io::Result<T> {
    // Under the lock: a guard that is not known yet must not be taken for an orphan.
    let mut guards = GUARDS.lock();
    let (started, pid) = start()?;
    if ADOPTING.load(Ordering::Relaxed) {
        guards.extend(pid.and_then(|pid| i32::try_from(pid).ok()));
    }
    Ok(started)
}

/// Kills and reaps children of this process that are no guards, with all their descendants, if
/// [`adopt_orphans`] was called. Whether none was left; if not, call again a little later.
#[must_use]
pub fn end_orphans() -> bool {
    if !ADOPTING.load(Ordering::Relaxed) {
        return true;
    }
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let mut guards = GUARDS.lock();
    let Ok(table) = ProcessTable::read() else { return true };
    let children: BTreeSet<i32> = table.all_children(own).collect();
    guards.retain(|guard| children.contains(guard));
    let mut none = true;
    for orphan in children.difference(&guards).copied() {
        none = false;
        for pid in std::iter::once(orphan).chain(table.descendants(orphan)) {
            signal(pid, Signal::KILL);
        }
        if let Some(pid) = Pid::from_raw(orphan) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
    none
}
