//! The program's own log: lines for people, or JSON for everything that collects logs.
//!
//! Changes when the form of a line does. Whatever text from outside is in a line, a reader sees one
//! line, and a terminal gets no command: names of tools and messages of servers are anything.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};

use tracing::field::Field;
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{self, Writer};

use super::text::{escape_json, escape_line};
use crate::redact::{self, LogLines};

/// The form of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Logs to standard error from now on.
///
/// # Errors
/// What is wrong with `filter`.
pub fn log_to_stderr(filter: &str, form: LogFormat) -> Result<(), String> {
    let terminal = io::stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let json = match form {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let writer = || LogLines::new(redact::of_log().clone(), io::stderr());
    let log = log(filter, json, colour, writer)?;
    // Without another one before it this works, and a log is no reason not to start.
    let _ = tracing::dispatcher::set_global_default(log);
    Ok(())
}

fn log<W>(filter: &str, json: bool, colour: bool, writer: W) -> Result<Dispatch, String>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        format!("`{filter}` is not a log filter ({error}); write a level (info) or parts of it (switchyard::router=debug,warn)")
    })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter);
    Ok(if json {
        dispatch(lines.with_writer(Lines(writer)).json().flatten_event(true).finish())
    } else {
        let lines = lines.with_writer(writer).with_ansi(colour).with_target(false);
        dispatch(lines.compact().fmt_fields(format::debug_fn(field).delimited(" ")).finish())
    })
}

fn dispatch(subscriber: impl Subscriber + Send + Sync + 'static) -> Dispatch {
    Dispatch::new(subscriber)
}

/// One field of a line for people.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = format!("{value:?}");
    let value = escape_line(&value);
    match field.name() {
        "message" => writer.write_str(&value),
        name if writer.has_ansi_escapes() => write!(writer, "\x1b[2m{name}=\x1b[0m{value}"),
        name => write!(writer, "{name}={value}"),
    }
}

/// Writers of lines of JSON, each of which comes as a whole. JSON itself has escapes for the
/// characters below the space only.
struct Lines<W>(W);

/// One line.
struct Line<W>(W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for Lines<W> {
    type Writer = Line<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        Line(self.0.make_writer())
    }
}

impl<W: Write> Write for Line<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        self.0.write_all(escape_json(&text).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, colour: bool, say: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let log = log("info", json, colour, move || writer.clone()).unwrap();
        tracing::dispatcher::with_default(&log, say);
        String::from_utf8(kept.0.lock().clone()).unwrap()
    }

    const HOSTILE: [&str; 11] = [
        "a\r\n2026-11-24T10:00:00Z  INFO forged",
        "a\nforged",
        "a\0b",
        "\x1b[2J\x1b[31mred",
        "\x1b]0;title\x07",
        "\u{9b}31m",
        "\u{202e}gpj.exe",
        "\u{2066}iso\u{2069}\u{200f}",
        "\u{2028}line\u{85}next",
        "\u{feff}\u{200b}\u{e0041}",
        "\x7f\x08\x0c",
    ];

    fn say(text: &str) {
        let error = io::Error::other(text.to_owned());
        tracing::warn!(tool.name = %text, plain = text, debug = ?text, %error, "tool {text} failed: {error}");
    }

    #[test]
    fn a_line_stays_one_line_whatever_is_in_it() {
        for text in HOSTILE {
            for (json, colour) in [(false, false), (false, true), (true, false)] {
                let line = logged(json, colour, || say(text));
                let (line, rest) = line.split_once('\n').unwrap();
                assert_eq!(rest, "", "{line:?}");
                let bare = match colour {
                    true => ["\x1b[33m", "\x1b[2m", "\x1b[0m"]
                        .iter()
                        .fold(line.to_owned(), |line, ours| line.replace(ours, "")),
                    false => line.to_owned(),
                };
                assert_eq!(bare, escape_line(&bare), "{text:?}");
                assert!(line.contains("WARN"), "{line}");
                if json {
                    let object: serde_json::Value = serde_json::from_str(line).unwrap();
                    assert_eq!(object["tool.name"], text, "JSON means the same");
                    assert_eq!(object["message"], format!("tool {text} failed: {text}"));
                } else {
                    assert!(line.contains("tool.name="), "{line}");
                }
            }
        }
    }

    #[test]
    fn a_filter_that_is_none_is_refused_with_what_to_write() {
        let error = log("switchyard=loud", true, false, io::sink).unwrap_err();
        assert!(error.contains("switchyard=loud") && error.contains("info"), "{error}");
    }
}
