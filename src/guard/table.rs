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
#[derive(Debug, Default)]
pub struct ProcessTable {
    /// Processes by their parent.
    children: BTreeMap<i32, Vec<Entry>>,
}

/// One process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) pid: i32,
    /// When it was started, in ticks since the machine was. No other one has both numbers.
    pub(super) started: u64,
    pages: u64,
    /// Its first thread ended: it waits to be reaped, or goes on with its other threads.
    ended: bool,
}

impl ProcessTable {
    /// Reads it anew. Costs some ten microseconds for each process of the machine.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn read() -> io::Result<Self> {
        let mut children: BTreeMap<i32, Vec<Entry>> = BTreeMap::new();
        let mut bytes = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // It may have ended meanwhile.
            bytes.clear();
            let read = fs::File::open(entry.path().join("stat"))
                .and_then(|mut file| io::Read::read_to_end(&mut file, &mut bytes));
            if let (Ok(_), Some((parent, entry))) = (read, parse(pid, &bytes)) {
                children.entry(parent).or_default().push(entry);
            }
        }
        Ok(Self { children })
    }

    /// Those whose parent `pid` is, and also those that only wait to be reaped by it.
    pub(super) fn all_children(&self, pid: i32) -> impl Iterator<Item = Entry> {
        self.children.get(&pid).into_iter().flatten().copied()
    }

    /// All that descend from `pid`, parents first, zombies too; `pid` is not among them.
    pub(super) fn descendants(&self, pid: i32) -> Vec<Entry> {
        let (mut found, mut next) = (Vec::new(), VecDeque::from([pid]));
        while let Some(parent) = next.pop_front() {
            // A process is the child of one other: no circle. One whose first thread ended is not
            // passed over: its other threads may live and have children.
            for entry in self.children.get(&parent).into_iter().flatten() {
                found.push(*entry);
                next.push_back(entry.pid);
            }
        }
        found
    }

    /// What the descendants of `pid` take.
    #[must_use]
    pub fn usage_below(&self, pid: i32) -> Usage {
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(u64::MAX);
        let below = self.descendants(pid);
        let live = below.iter().filter(|entry| !entry.ended);
        live.fold(Usage::default(), |sum, entry| Usage {
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
}

/// Sends `signal`; whoever ended meanwhile needs none, and who is not ours takes none.
pub(super) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// The parent of a process and the rest of what `/proc/PID/stat` says. A name may have anything in
/// it, also half a letter, because it is cut to 15 bytes: fields are counted from the last
/// parenthesis on, and only they are text.
fn parse(pid: i32, stat: &[u8]) -> Option<(i32, Entry)> {
    let end = memchr::memrchr(b')', stat)?;
    let fields = std::str::from_utf8(stat.get(end..)?).ok()?;
    let mut fields = fields.split_ascii_whitespace().skip(1);
    let ended = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    // Fields 3 and 4 are read; the start is field 22, resident pages are field 24.
    let started = fields.nth(17)?.parse().ok()?;
    let pages = fields.nth(1)?.parse().ok()?;
    Some((parent, Entry { pid, started, pages, ended }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_name() {
        let tail = "7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 9000000 321 184467 1 1 0";
        let read = |name: &[u8], state: &str| {
            let stat = [b"12 (", name, b") ", state.as_bytes(), b" ", tail.as_bytes()].concat();
            parse(12, &stat).map(|(parent, entry)| {
                assert_eq!(entry.pid, 12);
                (parent, entry.started, entry.pages, entry.ended)
            })
        };
        assert_eq!(read(b"sh", "S"), Some((7, 12345, 321, false)));
        assert_eq!(read(b"a) b) S 9 (x", "R"), Some((7, 12345, 321, false)));
        // The first byte of two of a letter.
        assert_eq!(read(b"server-in-caf\xc3", "S"), Some((7, 12345, 321, false)));
        assert_eq!(read(b"sh", "Z"), Some((7, 12345, 321, true)));
        for broken in ["", "12 (sh", "12 (sh)", "12 (sh) S", "12 (sh) S x 1"] {
            assert!(parse(12, broken.as_bytes()).is_none());
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
            let found: Vec<i32> = table.descendants(pid).iter().map(|entry| entry.pid).collect();
            if found.len() == 3 {
                let own = i32::try_from(std::process::id()).unwrap();
                assert!(table.all_children(own).any(|child| child.pid == pid));
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
