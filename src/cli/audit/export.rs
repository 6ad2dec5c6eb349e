//! `switchyard audit export`: all calls that match, to a file or standard output.
//!
//! Changes when what is written, or how a file comes into being, changes. The formats are the
//! router's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::Filter;
use crate::cli::client::{Client, ClientError, innermost};
use crate::cli::output::{Output, notice};
use crate::cli::{CliError, Context, Status, text};
use crate::clock;
use crate::model::Uptime;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// How calls are written
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// Write to this file instead of standard output; one that is there is replaced at the end
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// With what is kept of arguments and results
    #[arg(long)]
    payloads: bool,
    /// With --format chain: from this row on (`seq`), instead of the first that is left
    #[arg(long, value_name = "ROW")]
    from: Option<i64>,
    /// With --format chain: up to this row, instead of the newest
    #[arg(long, value_name = "ROW")]
    to: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One JSON object a line, with attempts
    Jsonl,
    /// Comma-separated values with a header line
    Csv,
    /// Everything in the ledger, so that `audit verify --export` can verify it elsewhere
    Chain,
}

/// The router looks through a large ledger for some seconds before it finds something.
const SILENCE: Duration = Duration::from_secs(120);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_millis(200);

pub(super) async fn export(context: &Context, args: Args) -> Result<Status, CliError> {
    let client = context.client()?;
    let format = match args.format {
        Format::Jsonl => "jsonl",
        Format::Csv => "csv",
        Format::Chain => "chain",
    };
    let is_chain = args.format == Format::Chain;
    if is_chain && !args.filter.is_empty() {
        return Err(CliError::ExportOptions(
            "--format chain takes no filter: rows that are left out would be gaps; use --from and --to",
        ));
    }
    if !is_chain && (args.from.is_some() || args.to.is_some()) {
        return Err(CliError::ExportOptions(
            "--from and --to are for --format chain; use --since and --until",
        ));
    }
    let ask = args
        .filter
        .ask(&["mcp", "audit", "export"])?
        .with("from", args.from.map(|row| row.to_string()))
        .with("to", args.to.map(|row| row.to_string()))
        .with("format", Some(format))
        .with("payloads", args.payloads.then_some("true"));
    let ask = ask.header("accept", "*/*").patient(SILENCE);
    let mut target = match args.out {
        Some(path) => Target::File(Partial::create(path)?),
        None => Target::Output(context.out),
    };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Signals)?;
    let mut progress = Progress::new(&target, args.format);
    // Dropped before its end, the target removes what it has written.
    tokio::select! {
        done = transfer(&client, ask, &mut target, &mut progress) => {
            progress.clear();
            done?;
        }
        _ = interrupt.recv() => return Err(CliError::NothingWritten),
        _ = terminate.recv() => return Err(CliError::NothingWritten),
    }
    match target {
        Target::Output(out) => out.write("")?,
        Target::File(file) => {
            let path = file.complete()?;
            let what = if is_chain { "row" } else { "call" };
            notice(format!("{} in {}", text::count(progress.calls(), what), path.display()));
        }
    }
    Ok(Status::Done)
}

async fn transfer(
    client: &Client,
    ask: crate::cli::client::Ask,
    target: &mut Target,
    progress: &mut Progress,
) -> Result<(), CliError> {
    let mut body = client.stream(ask).await?.into_body();
    loop {
        let Ok(frame) = timeout(SILENCE, body.frame()).await else {
            let target = client.describe();
            return Err(ClientError::Silent { target, limit: SILENCE }.into());
        };
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.map_err(|error| ClientError::Broken(innermost(&error)))?;
        if let Ok(data) = frame.into_data() {
            target.write(&data)?;
            progress.wrote(&data);
        }
    }
}

enum Target {
    Output(Output),
    File(Partial),
}

impl Target {
    fn write(&mut self, data: &[u8]) -> Result<(), CliError> {
        match self {
            Self::Output(out) => out.bytes(data),
            Self::File(partial) => partial.write(data),
        }
    }
}

/// A file that is being written beside its place. Dropped, it is gone.
struct Partial {
    path: PathBuf,
    beside: PathBuf,
    file: File,
}

impl Partial {
    fn create(path: PathBuf) -> Result<Self, CliError> {
        match fs::metadata(&path) {
            Ok(meta) if !meta.is_file() => return Err(CliError::NotAFile(path)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CliError::File { path, source: error });
            }
            Ok(_) | Err(_) => {}
        }
        let Some(name) = path.file_name() else { return Err(CliError::NotAFile(path)) };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.part", std::process::id()));
        let beside = path.with_file_name(hidden);
        // The ledger tells who did what: not for everybody on the machine.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside);
        match file {
            Ok(file) => Ok(Self { path, beside, file }),
            Err(source) => Err(CliError::File { path, source }),
        }
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> CliError + use<> {
        let path = self.path.clone();
        move |source| CliError::File { path, source }
    }

    fn write(&mut self, data: &[u8]) -> Result<(), CliError> {
        self.file.write_all(data).map_err(self.failed())
    }

    /// Puts it in its place, on disk.
    fn complete(self) -> Result<PathBuf, CliError> {
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.beside, &self.path))
            .and_then(|()| {
                let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
                File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
            })
            .map_err(self.failed())?;
        Ok(self.path.clone())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already when it is in its place.
        let _gone = fs::remove_file(&self.beside);
    }
}

/// How far it is, on standard error where somebody looks at it and the calls go elsewhere.
struct Progress {
    shown: bool,
    lines: usize,
    /// Lines that are no calls.
    headers: usize,
    bytes: usize,
    last: Uptime,
    written: bool,
}

impl Progress {
    fn new(target: &Target, format: Format) -> Self {
        let elsewhere = match target {
            Target::File(_) => true,
            Target::Output(out) => !out.terminal,
        };
        Self {
            shown: elsewhere && io::stderr().is_terminal(),
            lines: 0,
            headers: match format {
                Format::Jsonl => 0,
                Format::Csv => 1,
                Format::Chain => 2,
            },
            bytes: 0,
            last: clock::uptime(),
            written: false,
        }
    }

    /// Every call is one line, in both formats.
    fn calls(&self) -> usize {
        self.lines.saturating_sub(self.headers)
    }

    fn wrote(&mut self, data: &[u8]) {
        self.lines += memchr::memchr_iter(b'\n', data).count();
        self.bytes += data.len();
        let now = clock::uptime();
        if self.shown && now.since(self.last) >= PROGRESS {
            self.last = now;
            self.written = true;
            let mebibytes = self.bytes / (1024 * 1024);
            // A closed standard error is no reason to stop.
            let _ = write!(io::stderr(), "\r{} calls, {mebibytes} MiB\x1b[K", self.calls());
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.written) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let entries = fs::read_dir(folder.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
        };
        let path = folder.path().join("calls.csv");
        fs::write(&path, "old").unwrap();
        let mut partial = Partial::create(path.clone()).unwrap();
        partial.write(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(partial);
        assert_eq!(names(), ["calls.csv"], "what was begun is gone");
        let mut partial = Partial::create(path.clone()).unwrap();
        partial.write(b"new").unwrap();
        partial.complete().unwrap();
        assert_eq!((fs::read(&path).unwrap(), names().len()), (b"new".to_vec(), 1));
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let error = Partial::create("/dev/null".into()).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        let error = Partial::create("/nowhere/x.csv".into()).err().unwrap();
        assert_eq!(error.exit_code(), 1);
    }
}
