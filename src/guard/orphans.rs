//! What the router does about a guard that was killed: it ends what that guard left behind.
//!
//! Changes when the rules for orphans do.
//!
//! A router that calls [`adopt_orphans`] is the next subreaper above its guards, so what a killed
//! guard leaves becomes a child of the router itself. A child of this process that is no guard is
//! such an orphan, unless it was there before the first guard: whatever started the router may have
//! started others before in the same process (`sidecar & exec switchyard serve`).

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::process::{Pid, WaitOptions, test_kill_process, waitpid};

use super::kill::kill_trees;
use super::table::ProcessTable;

/// Children are a matter of the whole process.
static KNOWN: Mutex<Known> = Mutex::new(Known { guards: BTreeSet::new(), spared: BTreeSet::new() });
static ADOPTING: AtomicBool = AtomicBool::new(false);

/// Descendants that are no orphans.
struct Known {
    /// Guards that this process started and that were not reaped when they were last looked for.
    guards: BTreeSet<i32>,
    /// Processes from before, with the time of their start.
    spared: BTreeSet<(i32, u64)>,
}

impl Known {
    fn forget_reaped_guards(&mut self) {
        // One that cannot be seen for another reason must not be taken for an orphan, once it can.
        self.guards.retain(|guard| {
            let pid = Pid::from_raw(*guard);
            pid.is_some_and(|pid| test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
        });
    }

    /// Reaps children in `table` that ended and are no guards, also those from before: nobody else
    /// waits for them.
    fn reap(&self, table: &ProcessTable) {
        let strangers = table.all_children(own()).map(|child| child.pid);
        for pid in strangers.filter(|pid| !self.guards.contains(pid)) {
            reap(pid);
        }
    }
}

/// Whether this child had ended; then it is gone.
fn reap(pid: i32) -> bool {
    let child = Pid::from_raw(pid);
    child.is_some_and(|pid| matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some(_))))
}

fn own() -> i32 {
    i32::try_from(std::process::id()).unwrap_or_default()
}

/// From now on, descendants of this process that lose their guard become children of this process,
/// for [`end_orphans`]. Only for a process whose children are all started with [`start_guard`] from
/// now on; those that it has already, and theirs, are spared.
///
/// # Errors
/// Where the kernel has nothing of the kind.
pub fn adopt_orphans() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let mut known = KNOWN.lock();
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        if !ADOPTING.load(Ordering::Relaxed) {
            let table = ProcessTable::read()?;
            let before = table.descendants(own());
            known.spared = before.iter().map(|entry| (entry.pid, entry.started)).collect();
            // Of those that ended already nothing will be heard.
            known.reap(&table);
            ADOPTING.store(true, Ordering::Relaxed);
        }
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
    let mut known = KNOWN.lock();
    let (started, pid) = start()?;
    if ADOPTING.load(Ordering::Relaxed) {
        known.guards.extend(pid.and_then(|pid| i32::try_from(pid).ok()));
    }
    Ok(started)
}

/// Kills and reaps children of this process that are neither guards nor from before, with all their
/// descendants, if [`adopt_orphans`] was called. Whether none was left; if not, call again a little
/// later.
#[must_use]
pub fn end_orphans() -> bool {
    if !ADOPTING.load(Ordering::Relaxed) {
        return true;
    }
    let mut known = KNOWN.lock();
    known.forget_reaped_guards();
    let Ok(table) = ProcessTable::read() else { return true };
    let children: Vec<_> = table.all_children(own()).collect();
    let spared: BTreeSet<i32> = children
        .iter()
        .filter(|child| known.spared.contains(&(child.pid, child.started)))
        .map(|child| child.pid)
        .collect();
    let is_orphan = |pid: &i32| !known.guards.contains(pid) && !spared.contains(pid);
    let none = !children.iter().any(|child| is_orphan(&child.pid));
    if !none {
        kill_trees(|lookup| lookup.children(own()).into_iter().filter(is_orphan).collect(), reap);
    }
    known.reap(&table);
    none
}

/// Reaps children of this process that ended and are no guards, if [`adopt_orphans`] was called:
/// orphans, and as process 1 of a container whoever loses its parent there. To be called after each
/// `SIGCHLD`.
pub fn reap_orphans() {
    if !ADOPTING.load(Ordering::Relaxed) {
        return;
    }
    let mut known = KNOWN.lock();
    known.forget_reaped_guards();
    if let Ok(table) = ProcessTable::read() {
        known.reap(&table);
    }
}
