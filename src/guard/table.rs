//! [`ProcessTable`]: which processes there are, and who descends from whom.
//!
//! Changes when more has to be known of a process.

use std::collections::{BTreeMap, VecDeque};
use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process};

/// What a number of processes takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// How many there are.
    pub processes: u64,
    /// Their resident memory in bytes; what they share is counted for each.
    pub resident_bytes: u64,
}

/// The processes of this machine that we can see, at one moment.
#[derive(Debug)]
pub struct ProcessTable {
    /// Processes by their parent.
    children: BTreeMap<i32, Vec<Entry>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    pid: i32,
    pages: u64,
    /// It ended and waits to be reaped.
    ended: bool,
}

impl ProcessTable {
    /// Reads it anew. Costs some ten microseconds for each process of the machine.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn read() -> io::Result<Self> {
        let mut children: BTreeMap<i32, Vec<Entry>> = BTreeMap::new();
        let mut text = String::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // It may have ended meanwhile.
            text.clear();
            let read = fs::File::open(entry.path().join("stat"))
                .and_then(|mut file| io::Read::read_to_string(&mut file, &mut text));
            if let (Ok(_), Some((parent, pages, ended))) = (read, parse(&text)) {
                children.entry(parent).or_default().push(Entry { pid, pages, ended });
            }
        }
        Ok(Self { children })
    }

    /// Those whose parent `pid` is, and also those that only wait to be reaped by it.
    pub(super) fn all_children(&self, pid: i32) -> impl Iterator<Item = i32> {
        self.children.get(&pid).into_iter().flatten().map(|entry| entry.pid)
    }

    /// All that descend from `pid` and have not ended, parents first; `pid` is not among them.
    pub fn descendants(&self, pid: i32) -> impl Iterator<Item = i32> {
        self.below(pid).into_iter().map(|entry| entry.pid)
    }

    /// What the descendants of `pid` take.
    #[must_use]
    pub fn usage_below(&self, pid: i32) -> Usage {
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(u64::MAX);
        self.below(pid).iter().fold(Usage::default(), |sum, entry| Usage {
            processes: sum.processes.saturating_add(1),
            resident_bytes: sum.resident_bytes.saturating_add(entry.pages.saturating_mul(page)),
        })
    }

    /// What `pid` and its descendants take.
    #[must_use]
    pub fn usage_of(&self, pid: i32) -> Usage {
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(u64::MAX);
        let own = self.children.values().flatten().find(|entry| entry.pid == pid && !entry.ended);
        let below = self.usage_below(pid);
        let Some(own) = own else { return below };
        Usage {
            processes: below.processes.saturating_add(1),
            resident_bytes: below.resident_bytes.saturating_add(own.pages.saturating_mul(page)),
        }
    }

    fn below(&self, pid: i32) -> Vec<Entry> {
        let (mut found, mut next) = (Vec::new(), VecDeque::from([pid]));
        while let Some(parent) = next.pop_front() {
            // A process is the child of one other: no circle.
            let children = self.children.get(&parent).into_iter().flatten();
            for entry in children.filter(|entry| !entry.ended) {
                found.push(*entry);
                next.push_back(entry.pid);
            }
        }
        found
    }
}

/// Sends `signal`; whoever ended meanwhile needs none, and who is not ours takes none.
pub(super) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Parent and resident pages in `/proc/PID/stat`, and whether the process has ended. Its name may
/// have anything in it, so fields are counted from the last parenthesis on.
fn parse(stat: &str) -> Option<(i32, u64, bool)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    // Fields 3 and 4 are read; resident pages are field 24.
    let pages = fields.nth(19)?.parse().ok()?;
    Some((parent, pages, ended))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_name() {
        let tail = "7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 9000000 321 184467 1 1 0";
        assert_eq!(parse(&format!("12 (sh) S {tail}")), Some((7, 321, false)));
        assert_eq!(parse(&format!("12 (a) b) S 9 (x) R {tail}")), Some((7, 321, false)));
        assert_eq!(parse(&format!("12 (sh) Z {tail}")), Some((7, 321, true)));
        for broken in ["", "12 (sh", "12 (sh) S", "12 (sh) S x 1"] {
            assert_eq!(parse(broken), None);
        }
    }

    #[test]
    fn descendants_are_found_at_any_depth() {
        let mut outer = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & sh -c 'sleep 60 & wait' & wait"])
            .spawn()
            .unwrap();
        let pid = i32::try_from(outer.id()).unwrap();
        let found = loop {
            let table = ProcessTable::read().unwrap();
            let found: Vec<i32> = table.descendants(pid).collect();
            if found.len() == 3 {
                let own = i32::try_from(std::process::id()).unwrap();
                assert!(table.all_children(own).any(|child| child == pid));
                let usage = table.usage_below(pid);
                assert_eq!((usage.processes, table.usage_of(pid).processes), (3, 4));
                assert!(table.usage_of(pid).resident_bytes > usage.resident_bytes);
                assert!(usage.resident_bytes > 3 * 4096, "{usage:?}");
                break found;
            }
            std::thread::yield_now();
        };
        signal(pid, Signal::KILL);
        for pid in found {
            signal(pid, Signal::KILL);
        }
        outer.wait().unwrap();
    }
}
