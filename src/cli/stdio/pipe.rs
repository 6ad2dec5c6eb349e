//! Stdin and stdout as lines, each in a thread of its own.
//!
//! Changes when the stdio binding's framing does. Threads, because stdin and stdout may be pipes,
//! files or a terminal, and only blocking reads and writes work on all of them. Nothing else in
//! this process may write to stdout while this runs.

use std::io::{self, BufRead, Write as _};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::cli::CliError;

/// The longest line that is taken from a client. More than any request a router accepts.
pub(super) const LONGEST_LINE: usize = 64 * 1024 * 1024;
/// Lines read ahead. Full: the thread stops reading, and the client waits on its pipe.
const READ_AHEAD: usize = 16;
/// Lines that wait to be written. Full: whoever has one waits, and with it the router's answer.
const WRITE_BEHIND: usize = 64;
/// How long a client that reads no more may keep us at the end.
const LAST_LINES: Duration = Duration::from_secs(2);

/// What stdin gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line without its end.
    Whole(Bytes),
    /// A line above [`LONGEST_LINE`], which was skipped.
    TooLong,
}

/// Reads stdin until it ends or the receiver is dropped.
pub(super) fn read() -> Result<mpsc::Receiver<Line>, CliError> {
    let (lines, incoming) = mpsc::channel(READ_AHEAD);
    start("stdin", move || {
        let mut stdin = io::stdin().lock();
        loop {
            match read_line(&mut stdin, LONGEST_LINE) {
                Ok(Some(line)) => {
                    if lines.blocking_send(line).is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "could not read standard input: {error}");
                    return;
                }
            }
        }
    })?;
    Ok(incoming)
}

/// The next line; `None` at the end. The last one may lack its line feed.
fn read_line(input: &mut impl BufRead, limit: usize) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    let mut too_long = false;
    loop {
        let available = match input.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let ended = available.is_empty();
        let end = memchr::memchr(b'\n', available);
        let part = available.get(..end.unwrap_or(available.len())).unwrap_or_default();
        too_long |= line.len().saturating_add(part.len()) > limit;
        if too_long {
            line = Vec::new();
        } else {
            line.extend_from_slice(part);
        }
        let taken = part.len().saturating_add(usize::from(end.is_some()));
        input.consume(taken);
        if end.is_some() || ended {
            return Ok(match (too_long, ended && line.is_empty()) {
                (true, _) => Some(Line::TooLong),
                (false, true) => None,
                (false, false) => Some(Line::Whole(line.into())),
            });
        }
    }
}

/// The thread that writes stdout.
pub(super) struct Writer {
    done: oneshot::Receiver<()>,
}

/// Starts to write what is sent to it, each message as a line. It ends when the last sender is
/// gone, or when the client reads no more; senders see that as a closed channel.
pub(super) fn write() -> Result<(mpsc::Sender<Bytes>, Writer), CliError> {
    let (out, mut lines) = mpsc::channel::<Bytes>(WRITE_BEHIND);
    let (ended, done) = oneshot::channel();
    start("stdout", move || {
        let mut stdout = io::stdout().lock();
        while let Some(line) = lines.blocking_recv() {
            let written = stdout.write_all(&line).and_then(|()| stdout.write_all(b"\n"));
            if let Err(error) = written.and_then(|()| stdout.flush()) {
                if error.kind() != io::ErrorKind::BrokenPipe {
                    tracing::error!(%error, "could not write to standard output: {error}");
                }
                break;
            }
        }
        // Nobody waits when the process is ending.
        let _ = ended.send(());
    })?;
    Ok((out, Writer { done }))
}

impl Writer {
    /// Waits for what is still to be written, for a bounded time. All senders must be gone.
    pub(super) async fn finish(self) {
        if tokio::time::timeout(LAST_LINES, self.done).await.is_err() {
            tracing::warn!("the client does not read its input; the last answers are lost");
        }
    }
}

fn start(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<(), CliError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    let doing = "start a thread for standard input or output";
    thread.map(drop).map_err(|source| CliError::Pipe { doing, source })
}

/// The message as it may stand on one line: a line feed can only be space between tokens there.
pub(super) fn one_line(message: Bytes) -> Bytes {
    if memchr::memchr2(b'\n', b'\r', &message).is_none() {
        return message;
    }
    message.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(mut input: &[u8], limit: usize) -> Vec<Line> {
        std::iter::from_fn(|| read_line(&mut input, limit).unwrap()).collect()
    }

    fn whole(text: &str) -> Line {
        Line::Whole(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn lines_are_told_apart() {
        assert_eq!(lines(b"", 9), []);
        assert_eq!(lines(b"a\n\nb", 9), [whole("a"), whole(""), whole("b")]);
        assert_eq!(lines(b"a\r\n", 9), [whole("a\r")]);
    }

    #[test]
    fn a_line_above_the_limit_is_skipped_whole() {
        let input = format!("{}\nnext\n{}", "x".repeat(10), "y".repeat(11));
        assert_eq!(lines(input.as_bytes(), 9), [Line::TooLong, whole("next"), Line::TooLong]);
        assert_eq!(
            lines(input.as_bytes(), 10),
            [whole(&"x".repeat(10)), whole("next"), Line::TooLong]
        );
    }

    proptest! {
        #[test]
        fn cuts_in_transit_change_nothing(
            parts in proptest::collection::vec("[ab]{0,6}", 0..8),
            buffer in 1_usize..9,
        ) {
            let text: String = parts.iter().map(|part| format!("{part}\n")).collect();
            let mut input = io::BufReader::with_capacity(buffer, text.as_bytes());
            let read: Vec<Line> =
                std::iter::from_fn(|| read_line(&mut input, 4).unwrap()).collect();
            let expected: Vec<Line> = parts
                .iter()
                .map(|part| if part.len() > 4 { Line::TooLong } else { whole(part) })
                .collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn a_message_on_one_line_means_the_same(
            value in proptest::collection::vec(".{0,9}", 0..5),
        ) {
            let pretty = serde_json::to_string_pretty(&value).unwrap().replace('\n', "\r\n");
            let line = one_line(pretty.into());
            prop_assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
            prop_assert_eq!(serde_json::from_slice::<Vec<String>>(&line).unwrap(), value);
        }
    }
}
