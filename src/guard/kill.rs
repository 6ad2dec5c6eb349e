//! How whole trees of processes are killed while they still grow.
//!
//! Changes when the way to outrun what forks does.
//!
//! The table of all processes takes milliseconds to read, and a process that starts its successor
//! and ends is gone by then. So children are read from the lists that the kernel keeps of them,
//! which takes microseconds, and each is stopped the moment it is seen: whoever is stopped starts
//! nobody. Only when nobody new is seen are all of them killed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use rustix::process::Signal;

use super::table::{ProcessTable, signal};

/// How often is looked for new ones before those that were found are killed. Also bounds the time
/// that is spent without a pause.
const LOOKS: usize = 50;

/// Whether the kernel lists children. Sandboxes that only act like one may not.
static LISTS: LazyLock<bool> =
    LazyLock::new(|| Path::new("/proc/thread-self/children").try_exists().unwrap_or(false));

/// Whose child is whose.
pub(super) struct Lookup {
    /// Where the kernel has no lists.
    table: Option<ProcessTable>,
}

impl Lookup {
    /// As it is now.
    fn now() -> Self {
        // Without `/proc` there are neither guards nor children of them.
        Self { table: (!*LISTS).then(|| ProcessTable::read().unwrap_or_default()) }
    }

    /// The children of `pid`, if only as zombies. One of them may be missing while others end.
    pub(super) fn children(&self, pid: i32) -> Vec<i32> {
        match &self.table {
            Some(table) => table.all_children(pid).map(|child| child.pid).collect(),
            None => listed(pid),
        }
    }
}

/// What the kernel lists for all threads of `pid`.
fn listed(pid: i32) -> Vec<i32> {
    let mut found = Vec::new();
    // It and its threads may end meanwhile.
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return found };
    for thread in threads.flatten() {
        let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        found.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    found
}

/// Kills all that descends from `pid`. Who is started meanwhile may be left: look again.
pub fn kill_descendants(pid: i32) {
    kill_trees(|lookup| lookup.children(pid), |_| false);
}

/// Kills `roots`, which are asked for again and again, and all that descends from them. `reap` is asked of each
/// root after each look, and says that it has ended and is gone: of whoever starts its successor and ends
/// thousands would be in the way of the next look else.
pub(super) fn kill_trees(roots: impl Fn(&Lookup) -> Vec<i32>, reap: impl Fn(i32) -> bool) {
    let mut stopped = BTreeSet::new();
    for _ in 0..LOOKS {
        let lookup = Lookup::now();
        let roots = roots(&lookup);
        let (mut next, mut found) = (roots.clone(), false);
        while let Some(pid) = next.pop() {
            // Before its children are looked for, so that no further ones can follow.
            if stopped.insert(pid) {
                found = true;
                signal(pid, Signal::STOP);
            }
            next.extend(lookup.children(pid));
        }
        for ended in roots.into_iter().filter(|pid| reap(*pid)) {
            // The number is another's soon.
            stopped.remove(&ended);
        }
        if !found {
            break;
        }
    }
    for pid in stopped {
        signal(pid, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_table_say_the_same_and_all_are_killed() {
        let mut outer = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & sh -c 'sleep 60 & wait' & wait"])
            .spawn()
            .unwrap();
        let pid = i32::try_from(outer.id()).unwrap();
        let table = || Lookup { table: Some(ProcessTable::read().unwrap()) };
        let below = |lookup: &Lookup| {
            let mut found: Vec<i32> = Vec::new();
            let mut next = vec![pid];
            while let Some(parent) = next.pop() {
                let children = lookup.children(parent);
                found.extend(&children);
                next.extend(children);
            }
            found.sort_unstable();
            found
        };
        let found = loop {
            let found = below(&table());
            if found.len() == 3 {
                break found;
            }
            std::thread::yield_now();
        };
        if *LISTS {
            assert_eq!(below(&Lookup { table: None }), found);
        }
        kill_descendants(pid);
        outer.wait().unwrap();
        // Nobody of ours waits for those whose parent was killed before them, so they may be left
        // as zombies.
        while found.iter().any(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with('Z'))
        }) {
            std::thread::yield_now();
        }
    }
}
