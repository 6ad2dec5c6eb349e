//! The guard process itself.
//!
//! Changes when what a guard does on an end or a signal changes.
//!
//! The main thread starts the child and reaps: its own child and whatever became its child because
//! its parent ended. A second thread watches the router and takes signals. Neither ever wakes up
//! for nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, getppid,
    kill_process, pidfd_open, set_child_subreaper, set_dumpable_behavior, wait,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::pipe;

use super::kill::kill_descendants;
use super::start::complain;
use super::table::{ProcessTable, signal};
use super::{FAILED, NAME, START, own_command};

/// How long descendants may clean up after TERM.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 500_000_000 };
/// How often the router is looked for where it cannot be waited for.
const LOOK: Timespec = millis(250);
/// The longest wait between two rounds in which descendants are killed and reaped. Waits grow, because
/// who was killed is gone in one or two rounds.
const LONGEST_PAUSE: i64 = 100;
/// The watcher needs little.
const STACK: usize = 64 * 1024;

const fn millis(count: i64) -> Timespec {
    Timespec { tv_sec: 0, tv_nsec: count * 1_000_000 }
}

/// Starts the child and stays until it and all its descendants are gone.
pub(super) fn run(router: Pid) -> u8 {
    match hold(router) {
        Ok(status) => end_as(status),
        Err(error) => {
            complain(format_args!("could not guard a child: {error}"));
            FAILED
        }
    }
}

fn hold(router: Pid) -> io::Result<WaitStatus> {
    // Before the first child, so that no descendant is missed.
    set_child_subreaper(Some(getpid()))?;
    rustix::thread::set_name(&std::ffi::CString::new(NAME)?)?;
    let watched = Watched::new(router)?;
    let signals = Signals::new()?;
    let held = start().and_then(|child| {
        let watching = move || watch(&watched, &signals);
        thread::Builder::new().name(NAME.to_owned()).stack_size(STACK).spawn(watching)?;
        reap_until(child)
    });
    // Also when something failed: the child may have been started.
    end_all();
    held
}

/// Reaps until `child` ends.
fn reap_until(child: Pid) -> io::Result<WaitStatus> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => return Ok(status),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The router, as something to wait for.
enum Watched {
    Descriptor(OwnedFd),
    /// Where the kernel has no descriptors of processes, or a sandbox forbids them.
    Number(Pid),
}

impl Watched {
    fn new(router: Pid) -> io::Result<Self> {
        let watched = match pidfd_open(router, PidfdFlags::empty()) {
            Ok(descriptor) => Self::Descriptor(descriptor),
            Err(_) => Self::Number(router),
        };
        // Looked at after it was opened: from here on it can only be our parent.
        if getppid() != Some(router) {
            return Err(io::Error::other("the router has ended"));
        }
        Ok(watched)
    }
}

/// Signals as bytes on sockets.
struct Signals {
    /// End the child: TERM, patience, KILL.
    end: UnixStream,
    /// Kill it.
    kill: UnixStream,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let (end, sender) = UnixStream::pair()?;
        for number in [SIGTERM, SIGINT, SIGHUP] {
            pipe::register(number, sender.try_clone()?)?;
        }
        let (kill, sender) = UnixStream::pair()?;
        pipe::register(SIGUSR1, sender)?;
        Ok(Self { end, kill })
    }
}

/// Starts the child in a group of its own and gives it our standard streams for good.
fn start() -> io::Result<Pid> {
    use std::os::unix::process::CommandExt as _;
    let mut starter = own_command(Path::new("/proc/self/exe"));
    starter.arg(START).arg(getpid().to_string());
    starter.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    let child = starter.process_group(0).spawn()?;
    // Else the child would never see the end of its input, nor the router the end of its output.
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("the child has no process id"))
}

/// Waits for the end of the router or a signal, and ends all descendants then. The main thread
/// notices and ends the process.
fn watch(router: &Watched, signals: &Signals) {
    let (fd, number) = match router {
        Watched::Descriptor(descriptor) => (Some(descriptor.as_fd()), None),
        Watched::Number(router) => (None, Some(*router)),
    };
    let told = [signals.kill.as_fd(), signals.end.as_fd()];
    let urgent = |ready: &[bool]| {
        ready.iter().skip(1).any(|ready| *ready) || number.is_some_and(|pid| getppid() != Some(pid))
    };
    loop {
        let waiting = [Some(told[1]), Some(told[0]), fd];
        let ready = wait_for(&waiting, number.is_some().then_some(&LOOK));
        if urgent(&ready) {
            break;
        }
        if ready.first() == Some(&true) {
            tell_descendants(Signal::TERM);
            wait_for(&[Some(told[0]), fd], Some(&PATIENCE));
            break;
        }
    }
    // Again and again, because what is killed may have started something just before.
    for round in 1.. {
        kill_descendants(own());
        pause(round);
    }
}

/// Which of these can be read from; none after `limit`.
fn wait_for(waiting: &[Option<BorrowedFd<'_>>], limit: Option<&Timespec>) -> Vec<bool> {
    let mut polled: Vec<PollFd<'_>> =
        waiting.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    // An interrupted wait is one in which nothing happened.
    let _ = poll(&mut polled, limit);
    polled.iter().map(|fd| !fd.revents().is_empty()).collect()
}

fn pause(round: i64) {
    let _ = poll(&mut [], Some(&millis(round.min(LONGEST_PAUSE))));
}

fn own() -> i32 {
    getpid().as_raw_nonzero().get()
}

fn tell_descendants(what: Signal) {
    // Without `/proc` nothing could have been started.
    let Ok(table) = ProcessTable::read() else { return };
    for entry in table.descendants(own()) {
        signal(entry.pid, what);
    }
}

/// Kills and reaps whatever the child left, however long that takes. Nobody can escape: who loses
/// its parent becomes our child, so without children there are no descendants, and with one we
/// stay. That may be one whom the kernel does not let go of, or who is not ours to kill.
fn end_all() {
    for round in 1.. {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => break,
                Err(_none_left) => return,
            }
        }
        kill_descendants(own());
        pause(round);
    }
}

/// Ends as the child did, so that the router sees its code or its signal.
fn end_as(status: WaitStatus) -> u8 {
    if let Some(code) = status.exit_status() {
        return u8::try_from(code).unwrap_or(FAILED);
    }
    let number = status.terminating_signal().unwrap_or(0);
    if let Some(signal) = Signal::from_named_raw(number) {
        // The child may have left a core, and one of us would be of no use.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        let _ = signal_hook::low_level::emulate_default_handler(number);
        // The standard library takes a first SIGSEGV for a full stack, and lets the next one pass.
        for _ in 0..2 {
            let _ = kill_process(getpid(), signal);
        }
    }
    // As shells have it.
    u8::try_from(128 + number).unwrap_or(FAILED)
}
