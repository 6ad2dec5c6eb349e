//! [`Said`]: what the log says of whether a server is up.
//!
//! Changes when a line about that is due at another time. One line for each change; of a server that
//! comes and goes with every call some lines, and then how many changes were left out.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::model::Uptime;

/// One line in this time, when changes do not end.
const EVERY: Duration = Duration::from_secs(10);
/// So many lines may come at once: a server that is restarted a few times is told in full.
const BURST: u32 = 6;

/// How a server stands, as far as the log is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub(super) enum Word {
    /// Nothing is known yet.
    #[default]
    Nothing = 0,
    /// It answers.
    Up = 1,
    /// It does not.
    Down = 2,
    /// It could be reached, and not asked for its tools.
    Unlisted = 3,
}

/// What was said, and how it is.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Both words in one, for the many calls that change neither.
    now: AtomicU8,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    said: Word,
    is: Word,
    /// Changes since the last line.
    changes: u32,
    /// When as many lines as ever may come at once again.
    full_at: Uptime,
}

const fn both(said: Word, is: Word) -> u8 {
    ((said as u8) << 4) | is as u8
}

impl Said {
    /// Whether it is so already, in the log too: then nobody need look at the clock.
    pub(super) fn is(&self, word: Word) -> bool {
        self.now.load(Ordering::Relaxed) == both(word, word)
    }

    /// It is so at `now`. Gives the number of changes that were left out before, if there is to be a
    /// line about this one.
    pub(super) fn line(&self, word: Word, now: Uptime) -> Option<u32> {
        if self.is(word) {
            return None;
        }
        let mut lines = self.lines.lock();
        if lines.is != word {
            lines.is = word;
            lines.changes = lines.changes.saturating_add(1);
        }
        let full_at = lines.full_at.max(now).plus(EVERY);
        let due = lines.said != word && full_at.since(now) <= EVERY * BURST;
        let left_out = due.then(|| {
            lines.said = word;
            lines.full_at = full_at;
            std::mem::take(&mut lines.changes).saturating_sub(1)
        });
        self.now.store(both(lines.said, lines.is), Ordering::Relaxed);
        left_out
    }

    /// It is so, and another line has said why.
    pub(super) fn elsewhere(&self, word: Word) {
        let mut lines = self.lines.lock();
        (lines.said, lines.is, lines.changes) = (word, word, 0);
        self.now.store(both(word, word), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Uptime {
        Uptime::from_millis(millis)
    }

    #[test]
    fn each_change_is_a_line_and_the_same_again_is_none() {
        let said = Said::default();
        assert_eq!(said.line(Word::Up, at(0)), Some(0));
        assert_eq!(said.line(Word::Up, at(1)), None);
        assert_eq!(said.line(Word::Down, at(60_000)), Some(0));
        assert_eq!(said.line(Word::Down, at(60_001)), None);
        assert_eq!(said.line(Word::Up, at(61_000)), Some(0));
    }

    #[test]
    fn of_changes_without_end_there_are_few_lines_which_count_the_others() {
        let said = Said::default();
        let (mut lines, mut told) = (0, 0);
        for change in 0..100_000_u64 {
            let word = if change % 2 == 0 { Word::Up } else { Word::Down };
            if let Some(left_out) = said.line(word, at(change)) {
                lines += 1;
                told += left_out + 1;
            }
        }
        // In 100 s: six at once, and one in ten seconds after them.
        assert!((10..=17).contains(&lines), "{lines}");
        assert!((80_000..=100_000).contains(&told), "{told}");
        // In the end it is said how it is.
        assert!(said.line(Word::Down, at(200_000)).is_some() || said.is(Word::Down));
        assert!(said.line(Word::Up, at(200_001)).is_some() && said.is(Word::Up));
    }

    #[test]
    fn what_was_left_out_is_made_good_by_the_next_who_sees_it() {
        let said = Said::default();
        for change in 0..100 {
            let _ = said.line(if change % 2 == 0 { Word::Up } else { Word::Down }, at(0));
        }
        // The last line says `down` or `up`; the server is up from here on.
        let later = said.line(Word::Up, at(1)).or_else(|| said.line(Word::Up, at(60_000)));
        assert!(later.is_some() || said.is(Word::Up));
        assert!(said.is(Word::Up));
    }

    #[test]
    fn what_another_line_has_said_is_not_said_again() {
        let said = Said::default();
        said.elsewhere(Word::Unlisted);
        assert!(said.is(Word::Unlisted));
        assert_eq!(said.line(Word::Down, at(0)), Some(0));
        said.elsewhere(Word::Down);
        assert_eq!(said.line(Word::Down, at(1)), None);
    }
}
