//! [`LineSplitter`]: what a child writes, cut into lines.
//!
//! Changes when the framing of the stdio transport does. Where the bytes were cut in transit makes
//! no difference.

use bytes::{Bytes, BytesMut};

/// A buffer that grew beyond this for one line is not kept for the lines that follow.
const KEPT: usize = 64 * 1024;

/// What there is room for at first.
const READ: usize = 8 * 1024;

/// One line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Without the blanks at its end.
    Whole(Bytes),
    /// Longer than may be.
    TooLong(Oversized),
}

/// Collects bytes and gives lines; holds at most the limit and what one read brings.
#[derive(Debug)]
pub(super) struct LineSplitter {
    buffer: BytesMut,
    /// There is no line end before this place.
    searched: usize,
    /// The line being read is too long; its bytes so far.
    oversized: Option<Oversized>,
    limit: usize,
}

impl LineSplitter {
    /// For lines of up to `limit` bytes, their end not counted.
    pub(super) fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::with_capacity(READ), searched: 0, oversized: None, limit }
    }

    /// Where the next bytes go, after what is there. Grown ahead of the read, so that a long line
    /// does not come in small pieces.
    pub(super) fn room(&mut self) -> &mut BytesMut {
        self.buffer.reserve(4 * 1024);
        &mut self.buffer
    }

    /// The next line that is complete.
    pub(super) fn next(&mut self) -> Option<Line> {
        let fresh = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(at) = memchr::memchr(b'\n', fresh) else {
            self.searched = self.buffer.len();
            if self.oversized.is_some() || self.searched > self.limit {
                self.oversized.get_or_insert_default().take(&self.buffer);
                self.buffer.clear();
                self.searched = 0;
                if self.buffer.capacity() > KEPT {
                    self.shrink();
                }
            }
            return None;
        };
        let mut line = self.buffer.split_to(self.searched + at + 1).freeze();
        if line.len() > KEPT {
            self.shrink();
        }
        self.searched = 0;
        line.truncate(line.len() - 1);
        if self.oversized.is_some() || line.len() > self.limit {
            let mut oversized = self.oversized.take().unwrap_or_default();
            oversized.take(&line);
            return Some(Line::TooLong(oversized));
        }
        line.truncate(line.trim_ascii_end().len());
        Some(Line::Whole(line))
    }

    /// The line being read, when it is too long already.
    pub(super) const fn too_long(&self) -> Option<&Oversized> {
        self.oversized.as_ref()
    }

    /// The beginning of a line that is not complete; empty when none has begun.
    pub(super) fn begun(&self) -> &[u8] {
        match &self.oversized {
            Some(oversized) => oversized.head(),
            None => &self.buffer,
        }
    }

    /// Lets go of the memory of a large line; what stands behind it is at most what one read brings.
    fn shrink(&mut self) {
        let mut small = BytesMut::with_capacity(READ.max(self.buffer.len()));
        small.extend_from_slice(&self.buffer);
        self.buffer = small;
    }
}

/// Beginning and end of a line that is too long to keep: where the id stands in all SDKs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Oversized {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Its bytes so far.
    pub(super) length: usize,
}

impl Oversized {
    const KEPT: usize = 64;

    fn take(&mut self, bytes: &[u8]) {
        self.length = self.length.saturating_add(bytes.len());
        let missing = Self::KEPT.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(bytes.get(..missing).unwrap_or_default());
        self.tail.extend_from_slice(
            bytes.get(bytes.len().saturating_sub(Self::KEPT)..).unwrap_or_default(),
        );
        let surplus = self.tail.len().saturating_sub(Self::KEPT);
        self.tail.drain(..surplus);
    }

    /// How it begins.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Whether it is a message of the child's own, and no answer.
    pub(super) fn is_no_answer(&self) -> bool {
        memchr::memmem::find(&self.head, br#""method""#).is_some()
    }

    /// Of a line of which only this beginning is there.
    pub(super) fn beginning(bytes: &[u8]) -> Self {
        let mut beginning = Self::default();
        beginning.take(bytes);
        beginning
    }

    /// The id, where it stands first in the message.
    pub(super) fn first_id(&self) -> Option<u64> {
        let head: Vec<u8> = self.head.iter().copied().filter(|byte| *byte != b' ').collect();
        head.strip_prefix(br#"{"jsonrpc":"2.0","id":"#)
            .or_else(|| head.strip_prefix(br#"{"id":"#))
            .and_then(|rest| number_before(rest, b","))
    }

    /// The id of a whole line, where it stands for certain: first in the message, or last.
    pub(super) fn id(&self) -> Option<u64> {
        let last = || {
            let at = memchr::memmem::rfind(&self.tail, br#""id":"#)?;
            number_before(self.tail.get(at + 5..)?.trim_ascii_start(), b"}").filter(|_| {
                memchr::memchr_iter(b'}', self.tail.get(at..).unwrap_or_default()).count() == 1
            })
        };
        self.first_id().or_else(last)
    }
}

/// The number at the beginning of `text`, if `end` follows it.
fn number_before(text: &[u8], end: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at_checked(digits)?;
    rest.starts_with(end).then_some(())?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(stream: &[u8], cuts: &[usize], limit: usize) -> Vec<Line> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
        cuts.sort_unstable();
        let (mut lines, mut out, mut from) = (LineSplitter::new(limit), Vec::new(), 0);
        for cut in cuts.into_iter().chain([stream.len()]) {
            lines.room().extend_from_slice(&stream[from..cut]);
            out.extend(std::iter::from_fn(|| lines.next()));
            assert!(lines.buffer.len() <= limit, "no more is kept than a line may have");
            from = cut;
        }
        out
    }

    /// The same of the whole text at once.
    fn expected(stream: &[u8], limit: usize) -> Vec<Line> {
        let mut lines: Vec<&[u8]> = stream.split(|byte| *byte == b'\n').collect();
        lines.pop();
        let line = |line: &[u8]| {
            if line.len() <= limit {
                return Line::Whole(Bytes::copy_from_slice(line.trim_ascii_end()));
            }
            let kept = Oversized::KEPT.min(line.len());
            let (head, tail) = (line[..kept].to_vec(), line[line.len() - kept..].to_vec());
            Line::TooLong(Oversized { head, tail, length: line.len() })
        };
        lines.into_iter().map(line).collect()
    }

    #[test]
    fn the_limit_counts_the_bytes_before_the_line_end() {
        let whole = |text: &'static str| Line::Whole(Bytes::from_static(text.as_bytes()));
        assert_eq!(split(b"abcd\nab\r\n\nx", &[2], 4), [whole("abcd"), whole("ab"), whole("")]);
        assert!(matches!(&split(b"abcde\nab\n", &[], 4)[..], [Line::TooLong(_), Line::Whole(_)]));
        for cut in 0..=6 {
            assert!(matches!(&split(b"abcd\r\n", &[cut], 4)[..], [Line::TooLong(_)]), "{cut}");
        }
    }

    #[test]
    fn an_answer_too_long_still_says_whose_it_is() {
        let filler = "y".repeat(500);
        for (text, id) in [
            (format!(r#"{{"jsonrpc":"2.0","id":17,"result":{{"x":"{filler}"}}}}"#), Some(17)),
            (format!(r#"{{"result":{{"x":"{filler}"}},"id":18}}"#), Some(18)),
            (format!(r#"{{"result":{{"x":"{filler}","id":19}}}}"#), None),
        ] {
            for cut in [0, 10, 63, 64, 200, text.len() - 1] {
                let lines = split(format!("{text}\n").as_bytes(), &[cut], 100);
                let [Line::TooLong(line)] = &lines[..] else { panic!("{lines:?}") };
                assert_eq!(line.id(), id, "{text}");
            }
        }
    }

    #[test]
    fn the_memory_of_a_large_line_is_let_go() {
        let large = [&[b'x'; 20 * KEPT][..], b"\nabc"].concat();
        for limit in [usize::MAX, 10 * KEPT] {
            let mut lines = LineSplitter::new(limit);
            for piece in large.chunks(READ) {
                lines.room().extend_from_slice(piece);
                drop(lines.next());
            }
            assert!(lines.room().capacity() <= KEPT, "{}", lines.buffer.capacity());
            lines.room().extend_from_slice(b"d\n");
            assert_eq!(lines.next(), Some(Line::Whole(Bytes::from_static(b"abcd"))));
        }
    }

    proptest! {
        #[test]
        fn cuts_in_transit_change_nothing(
            stream in proptest::collection::vec(
                prop_oneof![4 => 0x20_u8..0x7f, 1 => Just(b'\n'), 1 => any::<u8>()], 0..600,
            ),
            cuts in proptest::collection::vec(any::<usize>(), 0..12),
            limit in prop_oneof![0_usize..12, 60_usize..140],
        ) {
            prop_assert_eq!(split(&stream, &cuts, limit), expected(&stream, limit));
        }
    }
}
