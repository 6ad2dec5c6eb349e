//! What upkeep of the databases is asked for and answers: pruning, erasing, backups; and how large the
//! steps are. PURE.
//!
//! Changes when rows can be removed for another reason, or the writer may wait for longer.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::model::{CallId, Timestamp};

/// Up to where the oldest rows are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneUntil {
    /// Up to the first row that is not older.
    Before(Timestamp),
    /// Until the rows take no more than so many bytes.
    Fits(u64),
}

/// What was pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Pruned {
    /// Calls and entries that are gone.
    pub rows: u64,
    /// The last of them; 0 when there was none.
    pub through: i64,
    /// Bytes by which the file became smaller.
    pub freed_bytes: u64,
    /// The longest that one step kept others from writing.
    #[serde(skip)]
    pub longest: Duration,
}

/// Whose payloads are erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EraseOf {
    /// Those of every call of one caller.
    Caller(String),
    /// Those of one call.
    Call(CallId),
}

/// What was erased.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Erased {
    /// Calls whose arguments and result are gone.
    pub payloads: u64,
    /// Whether nothing of them is left in any file: the logs were emptied, there is no file that was not looked
    /// into, and nothing waits in the spool.
    pub complete: bool,
    /// Whether the write-ahead logs were emptied. A program that has a database open can keep them from it.
    pub logs_emptied: bool,
    /// Files that were not looked into and may hold them, or the folder of such files where it cannot be read.
    pub not_looked_into: Vec<PathBuf>,
    /// The spool, where rows wait in it: they are not in the ledger yet, and are not erased when they come.
    pub waits_in: Option<PathBuf>,
    /// The longest that one step kept others from writing.
    #[serde(skip)]
    pub longest: Duration,
}

impl Erased {
    /// Adds files that were not looked into, and a spool in which rows wait.
    pub(crate) fn beside(&mut self, files: Vec<PathBuf>, waits_in: Option<PathBuf>) {
        self.not_looked_into.extend(files);
        self.waits_in = waits_in;
        self.complete =
            self.logs_emptied && self.not_looked_into.is_empty() && self.waits_in.is_none();
    }
}

/// A backup that was made, or put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backup {
    /// The folder that has it now.
    pub folder: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// A damaged database that was moved away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Its file.
    pub file: &'static str,
    /// Where it is now, with what belongs to it.
    pub moved_to: PathBuf,
    /// What was found.
    pub detail: String,
}

/// A step shall take about this long; the aim is that no step takes 50 ms.
const WANTED: Duration = Duration::from_millis(6);
/// From here on the next step is smaller.
const LONG: Duration = Duration::from_millis(12);

/// How large the next step is: grows while steps are fast and shrinks at once when one was slow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    size: u64,
    smallest: u64,
    largest: u64,
    longest: Duration,
}

impl Pace {
    pub(super) const fn new(smallest: u64, first: u64, largest: u64) -> Self {
        Self { size: first, smallest, largest, longest: Duration::ZERO }
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    pub(super) const fn longest(&self) -> Duration {
        self.longest
    }

    /// A step of this size took so long.
    pub(super) fn took(&mut self, time: Duration) {
        self.longest = self.longest.max(time);
        if time > LONG {
            self.size = (self.size / 2).max(self.smallest);
        } else if time < WANTED {
            self.size = (self.size + self.size / 4 + 1).min(self.largest);
        }
    }
}

/// Numbers in ascending order as ranges, first and last included.
pub(super) fn ranges(numbers: &[i64]) -> Vec<(i64, i64)> {
    let mut found: Vec<(i64, i64)> = Vec::new();
    for number in numbers {
        match found.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => found.push((*number, *number)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_step_makes_the_next_one_smaller() {
        let mut pace = Pace::new(10, 100, 130);
        pace.took(Duration::from_millis(1));
        assert_eq!(pace.size(), 126);
        pace.took(Duration::from_millis(1));
        assert_eq!(pace.size(), 130, "no more than the largest");
        pace.took(Duration::from_millis(9));
        assert_eq!(pace.size(), 130, "as wanted");
        for _ in 0..9 {
            pace.took(Duration::from_millis(13));
        }
        assert_eq!((pace.size(), pace.longest()), (10, Duration::from_millis(13)));
    }

    #[test]
    fn numbers_become_ranges_without_what_lies_between() {
        assert_eq!(ranges(&[]), []);
        assert_eq!(ranges(&[1, 2, 3, 5, 7, 8]), [(1, 3), (5, 5), (7, 8)]);
    }
}
