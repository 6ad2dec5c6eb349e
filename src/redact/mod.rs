//! What must never be kept or shown, and taking it out of texts and JSON.
//!
//! Changes when another kind of secret must be recognised, or another part has to be kept clean. The
//! ledger, what is known of servers, the log and panics all look through the one [`Redactor`] that is in
//! force. Everything here is values in, values out, but for [`InForce`].

mod address;
mod encoding;
mod json;
mod keys;
mod named;
mod names;
mod pairs;
mod peel;
mod pointer;
mod redactor;
mod respell;
mod search;
mod value;

#[cfg(test)]
mod tests;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;

pub use pointer::{Pointer, PointerError, PointerSet, Pointers};
pub use redactor::{Payload, Redactor, Secrets, Strictness};

/// The redactor in force. Clones are handles to the same one.
#[derive(Clone, Default)]
pub struct InForce(Arc<ArcSwap<Redactor>>);

impl fmt::Debug for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InForce")
    }
}

impl InForce {
    /// The redactor of this moment.
    #[must_use]
    pub fn get(&self) -> Arc<Redactor> {
        self.0.load_full()
    }

    /// Another redactor from now on.
    pub fn set(&self, redactor: Redactor) {
        self.0.store(Arc::new(redactor));
    }

    /// A text without what must not be shown, however long it is.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        self.0.load().text(text, usize::MAX)
    }

    /// The first `limit` bytes of a text without what must not be shown.
    #[must_use]
    pub fn text_within(&self, text: &str, limit: usize) -> String {
        self.0.load().text(text, limit)
    }
}

/// What the output of this process on standard error must not show: its log, and panics. A program has
/// one of these, whoever runs in it.
#[must_use]
pub fn of_log() -> &'static InForce {
    static OF_LOG: LazyLock<InForce> = LazyLock::new(InForce::default);
    &OF_LOG
}

/// From now on a panic of this process is told without what its log must not show, too.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        let trace = Backtrace::capture();
        let trace = match trace.status() {
            BacktraceStatus::Captured => format!("\nstack backtrace:\n{trace}"),
            _ => String::new(),
        };
        let text = format!("\nthread '{name}' {panic}{trace}\n");
        // There is nobody left to tell that it cannot be told.
        let _told = LogLines::new(of_log().clone(), io::stderr()).write_all(text.as_bytes());
    }));
}

/// Where lines of the log go: what must not be shown is taken out of each before it is written.
#[derive(Debug)]
pub struct LogLines<W> {
    redaction: InForce,
    to: W,
}

impl<W: Write> LogLines<W> {
    /// Lines to `to`.
    pub const fn new(redaction: InForce, to: W) -> Self {
        Self { redaction, to }
    }
}

impl<W: Write> Write for LogLines<W> {
    /// Takes whole lines, as the log gives them.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(lines);
        let clean = self.redaction.0.load().log_lines(&text);
        self.to.write_all(clean.as_bytes())?;
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
