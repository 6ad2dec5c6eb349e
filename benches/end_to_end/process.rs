//! A process under measurement with its descendants: CPU time and memory from /proc.

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

/// What /proc counts CPU time in: 100 per second on every Linux, whatever the kernel's own tick.
const TICKS_PER_SECOND: f64 = 100.0;
const GRACE: Duration = Duration::from_secs(5);

/// Memory of a process and its descendants, summed; pages that they share count once for each.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) resident_kib: u64,
    pub(crate) peak_kib: u64,
}

/// A child that does not outlive the benchmark.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start {}", command.get_program().display()))?;
        Ok(Self { child })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(|status| status.to_string())
    }

    /// Asks it to end and waits.
    pub(crate) fn stop(mut self) {
        self.terminate();
    }

    /// Ends it where it stands.
    pub(crate) fn kill(mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }

    fn terminate(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let (Some(pid), Ok(None)) = (pid, self.child.try_wait()) {
            let _gone = kill_process(pid, Signal::TERM);
        }
        let asked = Instant::now();
        while asked.elapsed() < GRACE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.terminate();
    }
}

/// User and system time of `pid` and its living descendants, in seconds.
pub(crate) fn cpu_seconds(pid: u32) -> Option<f64> {
    let mut ticks = 0;
    for pid in tree(pid) {
        let (_, own) = stat(pid)?;
        ticks += own;
    }
    Some(ticks as f64 / TICKS_PER_SECOND)
}

/// User and system time of this process alone, in seconds: what the load generator costs.
pub(crate) fn own_cpu_seconds() -> f64 {
    stat(std::process::id()).map_or(f64::NAN, |(_, ticks)| ticks as f64 / TICKS_PER_SECOND)
}

pub(crate) fn memory(pid: u32) -> Memory {
    let mut sum = Memory::default();
    for pid in tree(pid) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        sum.resident_kib += field("VmRSS:");
        sum.peak_kib += field("VmHWM:");
    }
    sum
}

/// `pid` and all that descend from it.
fn tree(pid: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(found) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some((parent, _)) = stat(found) {
            children.entry(parent).or_default().push(found);
        }
    }
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        all.extend(children.remove(pid).unwrap_or_default());
        at += 1;
    }
    all
}

/// Parent and CPU ticks of one process.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last one is fields.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    Some((u32::try_from(number(1)?).ok()?, number(11)? + number(12)?))
}
