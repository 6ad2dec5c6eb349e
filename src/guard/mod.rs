//! The guard of a child process: a second process of this program that ends the child with all its
//! descendants, in whatever way the router ends.
//!
//! Changes when the way descendants are found and ended does. Knows nothing of MCP, has no runtime
//! and no log, because there is one of it for each child.
//!
//! A router that is killed cannot clean up, and what a child started may have left its process
//! group. So each child is started by three programs in a row:
//!
//! 1. The router starts a **guard** ([`command`]). It becomes the subreaper of all that is started
//!    below it: whoever loses its parent there becomes a child of the guard, whatever session it
//!    made. It sees the router's end on a file descriptor of that process.
//! 2. The guard starts a **starter**, which reads what to start from the child's standard input
//!    ([`Start`]), so that neither arguments nor secrets stand in two processes. It asks the kernel
//!    to be killed with the guard, for the case that somebody kills router and guard at once.
//! 3. The starter replaces itself by the child.
//!
//! A guard is not called `switchyard`, so that a `killall` of that name leaves it to do its work.

#[cfg(target_os = "linux")]
mod hold;
mod kill;
mod orphans;
mod start;
mod table;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

pub use kill::kill_descendants;
pub use orphans::{adopt_orphans, end_orphans, reap_orphans, start_guard};
pub use start::{NotStartable, Start, find_program};
pub use table::{ProcessTable, Usage};

/// What a guard is called. Not longer than the kernel keeps.
const NAME: &str = "mcp-child-guard";
/// The first argument of a guard; the router's process id follows.
const HOLD: &str = "--hold-child-of";
/// The first argument of a starter; the guard's process id follows.
const START: &str = "--start-child-of";
/// How a guard ends that could not start its child, or a starter that was left alone.
const FAILED: u8 = 125;

/// This program as the program of guards, where there can be guards.
///
/// Not its path: the file may be replaced while the router runs, and a guard of another version
/// need not understand us.
#[must_use]
pub fn program() -> Option<PathBuf> {
    let program = Path::new("/proc/self/exe");
    (cfg!(target_os = "linux") && program.exists()).then(|| program.to_owned())
}

/// Lets no program that this process starts have more of its descriptors than the standard streams:
/// with one that we inherited, such as a lock that a script holds, a child would hold it, too. Our own
/// ones never pass on.
pub fn keep_descriptors() {
    #[cfg(target_os = "linux")]
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
}

/// Acts as a guard or a starter, if the arguments of this process say so; to be called before
/// anything else, and to be followed by the end of the process.
#[must_use]
pub fn run_if_meant(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let word = arguments.nth(1)?;
    let hold = word == HOLD;
    if !hold && word != START {
        return None;
    }
    let parent = arguments.next().and_then(|text| text.to_str()?.parse::<i32>().ok());
    let parent = parent.and_then(rustix::process::Pid::from_raw);
    Some(ExitCode::from(match parent {
        Some(parent) if hold => run_guard(parent),
        Some(parent) => start::run(parent),
        None => FAILED,
    }))
}

#[cfg(target_os = "linux")]
use hold::run as run_guard;

#[cfg(not(target_os = "linux"))]
const fn run_guard(_router: rustix::process::Pid) -> u8 {
    FAILED
}

/// A guard to be started by this process. Its standard streams become the child's; the first bytes
/// on its input have to be a [`Start`].
#[must_use]
pub fn command(program: &Path) -> Command {
    let mut command = own_command(program);
    command.arg(HOLD).arg(std::process::id().to_string());
    // Out of the terminal's reach; and what ends the group of the router does not end the guard.
    command.process_group(0);
    command
}

/// This program with nothing of the environment but what it may need to be loaded.
fn own_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg0(NAME).env_clear();
    if let Some(libraries) = std::env::var_os("LD_LIBRARY_PATH") {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}
