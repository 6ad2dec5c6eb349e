//! Child processes: started without a shell in a group of their own, and ended with all they
//! started.
//!
//! Changes when the way processes are started or ended does. Knows nothing of MCP.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::error::TransportError;
use crate::model::Secret;

/// After its input is closed, a child may finish what it does.
const AFTER_CLOSE: Duration = Duration::from_millis(1500);
/// After TERM, it may clean up. Together with what comes before, a child whose session ended is gone
/// well within 5 s.
const AFTER_TERM: Duration = Duration::from_millis(1500);
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
}

/// A started child and its three pipes.
pub(super) struct Process {
    pub(super) child: Running,
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
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
        let mut command = Command::new(self.command);
        command
            .args(self.args)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(cwd) = self.cwd {
            command.current_dir(cwd);
        }
        let mut child = command.spawn().map_err(|source| self.explain(source, &environment))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let ((Some(stdin), Some(stdout), Some(stderr)), Some(group)) = (pipes, group) else {
            let source = io::Error::other("it ended before its pipes could be taken");
            return Err(TransportError::Spawn { command: self.command.to_owned(), source });
        };
        Ok(Process { child: Running { child, group: Group(group) }, stdin, stdout, stderr })
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

/// A child and all it starts, as one process group. Dropping it kills the group.
pub(super) struct Running {
    child: Child,
    group: Group,
}

impl Running {
    pub(super) fn id(&self) -> u32 {
        self.group.0.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits for the child to end, and then kills what it left behind.
    pub(super) async fn ended(&mut self) -> String {
        let status = self.child.wait().await;
        // The group keeps its number while anything in it lives, so this can hit a stranger only
        // if it is empty and its number was given away in this very moment.
        self.group.signal(Signal::KILL);
        status.map_or_else(|error| format!("could not be waited for: {error}"), describe)
    }

    /// Ends the child, whose input has been closed: patience, TERM, KILL.
    pub(super) async fn end(&mut self) -> String {
        if let Ok(status) = tokio::time::timeout(AFTER_CLOSE, self.ended()).await {
            return status;
        }
        self.group.signal(Signal::TERM);
        if let Ok(status) = tokio::time::timeout(AFTER_TERM, self.ended()).await {
            return status;
        }
        self.group.signal(Signal::KILL);
        self.ended().await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only when nobody waited for it: the runtime is going down.
        if self.child.id().is_some() {
            self.group.signal(Signal::KILL);
        }
    }
}

#[derive(Clone, Copy)]
struct Group(Pid);

impl Group {
    fn signal(self, signal: Signal) {
        if let Err(error) = kill_process_group(self.0, signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::debug!(%error, ?signal, "could not signal a process group");
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The end of what a child wrote on standard error.
#[derive(Default)]
pub(super) struct StderrTail(Mutex<VecDeque<u8>>);

impl StderrTail {
    /// Reads until the end: a pipe that nobody reads fills up and stops the child.
    pub(super) async fn drain(&self, mut stderr: ChildStderr) {
        let mut buffer = vec![0; 8 * 1024];
        while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
            self.push(buffer.get(..length).unwrap_or_default());
        }
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock();
        kept.extend(bytes);
        let surplus = kept.len().saturating_sub(STDERR_KEPT);
        kept.drain(..surplus);
    }

    /// The last lines, oldest first.
    pub(super) fn lines(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.0.lock().iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines: Vec<String> = text
            .lines()
            .rev()
            .map(|line| {
                line.chars()
                    .filter(|c| !c.is_control() || *c == '\t')
                    .take(STDERR_LINE)
                    .collect::<String>()
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
        assert!(tail.0.lock().len() <= STDERR_KEPT);
        let lines = tail.lines();
        assert_eq!(lines.len(), STDERR_LINES);
        assert_eq!(lines.last().unwrap(), "line 19999");
    }

    #[test]
    fn a_child_inherits_nothing_that_could_be_a_credential() {
        let env = [("OWN".to_owned(), Secret::new("value"))];
        let launch = Launch { command: "x", args: &[], env: &env, cwd: None };
        let environment = launch.environment();
        let names: Vec<_> = environment.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert!(names.contains(&"PATH") && names.contains(&"OWN"));
        // Cargo sets this for every test.
        assert!(!names.contains(&"CARGO_PKG_NAME"));
    }
}
