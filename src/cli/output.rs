//! [`Output`]: the one way to standard output.
//!
//! Changes when the command line's manner of writing changes. A reader that goes away
//! (`switchyard … | head`) ends the command quietly instead of with a panic.

use std::io::{self, IsTerminal as _, Write as _};

use super::error::CliError;
use super::table::{Style, Table};
use super::text;

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What people read, or JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Tables and sentences.
    Human,
    /// The router's answer as it came.
    Json,
}

/// Where and how a command writes its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// What people read, or JSON.
    pub(crate) format: Format,
    /// Whether standard output is a terminal.
    pub(crate) terminal: bool,
    /// Whether to use colour.
    pub(crate) colour: bool,
    /// Columns of the terminal; nothing is cut without one.
    pub(crate) width: Option<usize>,
}

impl Output {
    /// Looks at standard output and the environment.
    pub(crate) fn detect(color: Color, format: Format) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let colour = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
                let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
                terminal && !set("NO_COLOR") && !dumb
            }
        };
        let width = terminal
            .then(|| rustix::termios::tcgetwinsize(&stdout).ok())
            .flatten()
            .map(|size| usize::from(size.ws_col))
            .filter(|columns| *columns > 0);
        Self { format, terminal, colour, width }
    }

    /// Whether JSON is wanted.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes `text` as it is.
    pub(crate) fn write(&self, text: &str) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CliError::Output)
    }

    /// Writes bytes as they are.
    #[expect(clippy::unused_self, reason = "the one way to standard output")]
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), CliError> {
        io::stdout().lock().write_all(bytes).map_err(CliError::Output)
    }

    /// Writes a line of our own words; parts from outside must have been escaped.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> Result<(), CliError> {
        let text = text.as_ref();
        self.write(&format!("{text}\n"))
    }

    /// Writes a table.
    pub(crate) fn table(&self, table: &Table) -> Result<(), CliError> {
        self.write(&table.render(self.width, self.colour))
    }

    /// Writes JSON as it came; on a terminal with escapes for what the terminal might act upon.
    pub(crate) fn json(&self, json: &str) -> Result<(), CliError> {
        let json = json.trim_end_matches(['\n', '\r']);
        if self.terminal { self.line(text::escape_json(json)) } else { self.line(json) }
    }

    /// `text` in `style`, escaped.
    pub(crate) fn paint(&self, text: impl AsRef<str>, style: Style) -> String {
        style.paint(&text::escape_line(text.as_ref()), self.colour)
    }
}

/// Writes a line for people to standard error, which stays free for the answer's reader.
/// A closed standard error is no reason to stop.
pub fn notice(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", text::escape_block(text.as_ref()));
}
