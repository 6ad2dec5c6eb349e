//! Child processes: started without a shell, under a guard or as a group of their own, and ended
//! with all they started.
//!
//! Changes when the way processes are started or ended does. Knows nothing of MCP.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::error::TransportError;
use super::pace::Pace;
use crate::clock;
use crate::guard::{
    self, NotStartable, Start, end_orphans, find_program, kill_descendants, start_guard,
};
use crate::model::{CUT, Secret};

/// After its input is closed, a child may finish what it does.
const AFTER_CLOSE: Duration = Duration::from_millis(1500);
/// After TERM, it may clean up. Together with what comes before, a child whose session ended is gone
/// well within 5 s.
const AFTER_TERM: Duration = Duration::from_millis(1500);
/// How long a guard may take to kill and reap, which it does in milliseconds.
const GUARDS_TIME: Duration = Duration::from_millis(500);
/// What is kept of standard error.
const STDERR_KEPT: usize = 64 * 1024;
/// What is shown of it.
const STDERR_LINES: usize = 20;
/// Longest line shown.
const STDERR_LINE: usize = 400;

/// Variables that a child inherits: what programs need to find their things and to speak the
/// user's language, and nothing that could be a credential.
const INHERITED: [&str; 11] =
    ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TERM", "TMPDIR", "SHELL", "TZ", "PWD"];
const INHERITED_PREFIXES: [&str; 2] = ["LC_", "XDG_"];

/// What to start.
pub(super) struct Launch<'a> {
    pub(super) command: &'a str,
    pub(super) args: &'a [String],
    pub(super) env: &'a [(String, Secret)],
    pub(super) cwd: Option<&'a Path>,
    /// The program of guards, where children have one.
    pub(super) guard: Option<&'a Path>,
}

/// A started child and its three pipes.
pub(super) struct Process {
    pub(super) child: Running,
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
    /// To be written to its input before anything else.
    pub(super) first: Vec<u8>,
}

impl Launch<'_> {
    pub(super) fn start(&self) -> Result<Process, TransportError> {
        if let Some(cwd) = self.cwd
            && !cwd.is_dir()
        {
            return Err(TransportError::NoSuchFolder {
                command: self.command.to_owned(),
                cwd: cwd.display().to_string(),
            });
        }
        let environment = self.environment();
        let guarded = self.guard.is_some();
        let (mut child, first) = match self.guard {
            Some(guard) => self.start_guarded(guard, &environment)?,
            None => self.start_plain(&environment)?,
        };
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let ((Some(stdin), Some(stdout), Some(stderr)), Some(pid)) = (pipes, pid) else {
            let source = io::Error::other("it ended before its pipes could be taken");
            return Err(TransportError::Spawn { command: self.command.to_owned(), source });
        };
        let child = Running { child, process: ProcessId::new(pid, guarded) };
        Ok(Process { child, stdin, stdout, stderr, first })
    }

    /// As a process group of its own.
    fn start_plain(
        &self,
        environment: &[(OsString, OsString)],
    ) -> Result<(Child, Vec<u8>), TransportError> {
        let mut command = Command::new(self.command);
        command
            .args(self.args)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .kill_on_drop(true);
        if let Some(cwd) = self.cwd {
            command.current_dir(cwd);
        }
        let child = piped(command).spawn();
        Ok((child.map_err(|source| self.explain(source, environment))?, Vec::new()))
    }

    /// Under a guard, which reads the rest from its input. What can be known to fail is found out
    /// here: from down there comes a text on standard error and no more.
    fn start_guarded(
        &self,
        guard: &Path,
        environment: &[(OsString, OsString)],
    ) -> Result<(Child, Vec<u8>), TransportError> {
        let path = environment.iter().rev().find(|(name, _)| name == "PATH");
        let found = find_program(self.command, path.map(|(_, path)| &**path), self.cwd);
        found.map_err(|problem| {
            let source = match problem {
                NotStartable::NotFound => io::ErrorKind::NotFound.into(),
                NotStartable::NotExecutable(source) => source,
            };
            self.explain(source, environment)
        })?;
        let spawn = |source| TransportError::Spawn { command: self.command.to_owned(), source };
        let Self { command, args, cwd, .. } = *self;
        let first = Start { command, args, env: environment, cwd }.encode().map_err(spawn)?;
        let started = start_guard(|| {
            let child = piped(guard::command(guard).into()).spawn()?;
            let pid = child.id();
            Ok((child, pid))
        });
        Ok((started.map_err(spawn)?, first))
    }

    /// The environment of the child: a few variables of ours, then those of the specification.
    fn environment(&self) -> Vec<(OsString, OsString)> {
        let inherited = std::env::vars_os().filter(|(name, _)| {
            name.to_str().is_some_and(|name| {
                INHERITED.contains(&name)
                    || INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            })
        });
        let own = self.env.iter().map(|(name, value)| (name.into(), value.expose().into()));
        inherited.chain(own).collect()
    }

    fn explain(&self, source: io::Error, environment: &[(OsString, OsString)]) -> TransportError {
        let command = self.command.to_owned();
        if source.kind() != io::ErrorKind::NotFound {
            return TransportError::Spawn { command, source };
        }
        let path = environment.iter().rev().find(|(name, _)| name == "PATH");
        let path = path.map(|(_, path)| path.to_string_lossy().into_owned()).unwrap_or_default();
        TransportError::CommandNotFound { command, path }
    }
}

fn piped(mut command: Command) -> Command {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A child and all it starts. Dropping it kills them.
pub(super) struct Running {
    child: Child,
    process: Arc<ProcessId>,
}

impl Running {
    pub(super) const fn id(&self) -> &Arc<ProcessId> {
        &self.process
    }

    /// Waits for the child to end, and then kills what it left behind.
    pub(super) async fn ended(&mut self) -> String {
        let status = self.child.wait().await;
        if self.process.guarded {
            // A guard that ended on its own has left nothing. It also ends by the signal that ended
            // its child, so this may be in vain.
            if status.as_ref().is_ok_and(|status| status.signal().is_some()) {
                self.process.end_group();
                end_what_a_guard_left().await;
            }
        } else {
            // The group keeps its number while anything in it lives, so this can hit a stranger only
            // if it is empty and its number was given away in this very moment.
            self.process.signal(Signal::KILL);
        }
        status.map_or_else(|error| format!("could not be waited for: {error}"), describe)
    }

    /// Ends the child, whose input has been closed: patience, TERM, KILL.
    pub(super) async fn end(&mut self) -> String {
        if let Ok(status) = tokio::time::timeout(AFTER_CLOSE, self.ended()).await {
            return status;
        }
        if !self.reaped() {
            self.process.signal(Signal::TERM);
        }
        let patience = if self.process.guarded { AFTER_TERM + GUARDS_TIME } else { AFTER_TERM };
        if let Ok(status) = tokio::time::timeout(patience, self.ended()).await {
            return status;
        }
        if !self.reaped() {
            self.process.kill();
        }
        if let Ok(status) = tokio::time::timeout(GUARDS_TIME, self.ended()).await {
            return status;
        }
        if !self.reaped() {
            // The guard does not do its work: somebody stopped it.
            self.process.kill_with_guard();
        }
        self.ended().await
    }

    /// Whether it ended and was waited for: its number may be another's from then on. What it left
    /// may still have to be ended.
    fn reaped(&self) -> bool {
        self.child.id().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only when nobody waited for it: the runtime is going down.
        if !self.reaped() {
            self.process.kill();
        }
    }
}

/// For the case that the guard was killed, with which its child was killed, too.
async fn end_what_a_guard_left() {
    let ending = async {
        while !end_orphans() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(GUARDS_TIME, ending).await.is_err() {
        tracing::warn!("processes that a killed guard left behind could not be ended");
    }
}

/// Which process was started: the child, or its guard.
pub(super) struct ProcessId {
    pid: Pid,
    pub(super) guarded: bool,
    /// The child of the guard, once it is known.
    own: OnceLock<Pid>,
}

impl ProcessId {
    fn new(pid: Pid, guarded: bool) -> Arc<Self> {
        Arc::new(Self { pid, guarded, own: OnceLock::new() })
    }

    /// The one that was started.
    pub(super) fn started(&self) -> u32 {
        number(self.pid)
    }

    /// The child; its guard as long as the child cannot be seen.
    pub(super) fn shown(&self) -> u32 {
        if !self.guarded {
            return number(self.pid);
        }
        number(self.child().unwrap_or(self.pid))
    }

    fn child(&self) -> Option<Pid> {
        if let Some(own) = self.own.get() {
            return Some(*own);
        }
        // The first child of a guard is the one it was started for: those it adopts stand behind.
        let path = format!("/proc/{0}/task/{0}/children", self.pid);
        let children = std::fs::read_to_string(path).ok()?;
        let first = Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)?;
        Some(*self.own.get_or_init(|| first))
    }

    /// Of a guard, TERM and USR1 are orders to end or to kill what it guards.
    fn signal(&self, signal: Signal) {
        let sent = match self.guarded {
            true => kill_process(self.pid, signal),
            false => kill_process_group(self.pid, signal),
        };
        tell(sent, signal);
    }

    fn kill(&self) {
        self.signal(if self.guarded { Signal::USR1 } else { Signal::KILL });
    }

    /// Does the guard's work, and ends the guard.
    fn kill_with_guard(&self) {
        if self.guarded {
            kill_descendants(self.pid.as_raw_nonzero().get());
        }
        self.signal(Signal::KILL);
    }

    /// Kills the group of a child whose guard was killed.
    fn end_group(&self) {
        if let Some(own) = self.own.get() {
            tell(kill_process_group(*own, Signal::KILL), Signal::KILL);
        }
    }
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

fn tell(sent: rustix::io::Result<()>, signal: Signal) {
    if let Err(error) = sent
        && error != rustix::io::Errno::SRCH
    {
        tracing::debug!(%error, ?signal, "could not signal a process");
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The end of what a child wrote on standard error: whole lines, and the beginning of the one that is
/// being written. What has lost its beginning is not kept: nobody could tell a secret in it.
#[derive(Default)]
pub(super) struct StderrTail(Mutex<Tail>);

#[derive(Default)]
struct Tail {
    kept: VecDeque<u8>,
    /// In a line that lost its beginning: nothing is kept until it ends.
    headless: bool,
}

impl StderrTail {
    /// Reads until the end: a pipe that nobody reads fills up and stops the child.
    pub(super) async fn drain(&self, mut stderr: ChildStderr) {
        let mut buffer = vec![0; 8 * 1024];
        let mut pace = Pace::new(Pace::STANDARD_ERROR, clock::uptime());
        while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
            self.push(buffer.get(..length).unwrap_or_default());
            pace.keep(length, 0).await;
        }
    }

    fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock();
        let mut bytes = bytes;
        if tail.headless {
            let Some(end) = memchr::memchr(b'\n', bytes) else { return };
            tail.headless = false;
            bytes = bytes.get(end + 1..).unwrap_or_default();
        }
        tail.kept.extend(bytes);
        let surplus = tail.kept.len().saturating_sub(STDERR_KEPT);
        if surplus == 0 {
            return;
        }
        // Up to the beginning of a line.
        match tail.kept.iter().skip(surplus - 1).position(|byte| *byte == b'\n') {
            Some(more) => drop(tail.kept.drain(..surplus + more)),
            None => {
                tail.kept.clear();
                tail.headless = true;
            }
        }
    }

    /// The last lines, oldest first.
    pub(super) fn lines(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.0.lock().kept.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines: Vec<String> = text
            .lines()
            .rev()
            .map(|line| {
                let mut shown = line.chars().filter(|c| !c.is_control() || *c == '\t');
                let mut line: String = shown.by_ref().take(STDERR_LINE).collect();
                line.extend(shown.next().map(|_| CUT));
                line
            })
            .filter(|line| !line.trim().is_empty())
            .take(STDERR_LINES)
            .collect();
        lines.reverse();
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_standard_error_is_kept() {
        let tail = StderrTail::default();
        for number in 0..20_000 {
            tail.push(format!("line {number}\n").as_bytes());
        }
        assert!(tail.0.lock().kept.len() <= STDERR_KEPT);
        let lines = tail.lines();
        assert_eq!(lines.len(), STDERR_LINES);
        assert_eq!(lines.last().unwrap(), "line 19999");
    }

    #[test]
    fn a_line_that_lost_its_beginning_is_not_kept() {
        let secret = "S3cr3t-value-of-a-child";
        for more in 0..secret.len() + 3 {
            let tail = StderrTail::default();
            // The last byte that goes is one of each of the secret's in turn.
            let rest = STDERR_KEPT - more;
            tail.push(format!("{secret}{}\nwhole\n", "x".repeat(rest)).as_bytes());
            assert_eq!(tail.lines(), ["whole"], "{more}");
        }
        let tail = StderrTail::default();
        for _ in 0..3 {
            tail.push("y".repeat(STDERR_KEPT).as_bytes());
        }
        tail.push(b"yy\nnext\n");
        assert_eq!(tail.lines(), ["next"]);
        // A line of which all is there stays, however much was before it.
        let tail = StderrTail::default();
        tail.push(format!("{}\n{}\n", "x".repeat(10), "z".repeat(STDERR_KEPT - 1)).as_bytes());
        assert!(tail.lines()[0].starts_with("zzz"));
    }

    #[test]
    fn a_child_inherits_nothing_that_could_be_a_credential() {
        let env = [("OWN".to_owned(), Secret::new("value"))];
        let launch = Launch { command: "x", args: &[], env: &env, cwd: None, guard: None };
        let environment = launch.environment();
        let names: Vec<_> = environment.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert!(names.contains(&"PATH") && names.contains(&"OWN"));
        // Cargo sets this for every test.
        assert!(!names.contains(&"CARGO_PKG_NAME"));
    }
}
