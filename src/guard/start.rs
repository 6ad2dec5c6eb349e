//! [`Start`]: what to start, on its way from the router to the process that becomes the child.
//!
//! Changes when more has to be known of a child before it starts.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, access};
use rustix::process::{Pid, getppid};

use super::FAILED;

/// Where programs are looked for when the child has no `PATH`.
const USUAL_PATH: &str = "/bin:/usr/bin";
/// More than any kernel takes for arguments and environment.
const LARGEST: u32 = 64 * 1024 * 1024;

/// A child to be started.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// Program, looked up in the `PATH` of `env`.
    pub command: &'a str,
    /// Arguments.
    pub args: &'a [String],
    /// The whole environment.
    pub env: &'a [(OsString, OsString)],
    /// Working folder.
    pub cwd: Option<&'a Path>,
}

impl Start<'_> {
    /// The bytes that a starter reads from its standard input.
    ///
    /// # Errors
    /// When something in it can be in no command line or environment, or is too large for one.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let cwd = self.cwd.unwrap_or(Path::new(""));
        let mut fields = vec![cwd.as_os_str(), OsStr::new(self.command)];
        fields.extend(self.args.iter().map(OsStr::new));
        let variables = self.env.iter().flat_map(|(name, value)| [&**name, &**value]);
        let mut bytes = Vec::new();
        let count = u32::try_from(fields.len()).unwrap_or(u32::MAX);
        bytes.extend(count.to_le_bytes());
        for field in fields.into_iter().chain(variables) {
            if field.as_bytes().contains(&0) {
                let problem = "there is a NUL in its arguments, environment or folder";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
            }
            let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
            bytes.extend(length.to_le_bytes());
            bytes.extend(field.as_bytes());
        }
        let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= LARGEST);
        let length = length.ok_or(io::ErrorKind::ArgumentListTooLong)?;
        Ok([&length.to_le_bytes(), bytes.as_slice()].concat())
    }
}

/// What [`Start::encode`] wrote, as a command.
fn decode(bytes: &[u8]) -> Option<Command> {
    let (count, mut rest) = bytes.split_first_chunk::<4>()?;
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (field, after) =
            after.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        fields.push(OsString::from_vec(field.to_vec()));
        rest = after;
    }
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (words, variables) = fields.split_at_checked(count)?;
    let [cwd, program, args @ ..] = words else { return None };
    let mut command = Command::new(program);
    command.args(args).env_clear();
    if !cwd.is_empty() {
        command.current_dir(cwd);
    }
    for pair in variables.chunks(2) {
        let [name, value] = pair else { return None };
        command.env(name, value);
    }
    Some(command)
}

/// Becomes the child; returns only if that fails.
pub(super) fn run(guard: Pid) -> u8 {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Signal, set_parent_process_death_signal};
        // Where this is forbidden the guard still does its work.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
    }
    // The guard may have ended before the kernel knew of our wish.
    if getppid() != Some(guard) {
        return FAILED;
    }
    let command = match read() {
        Ok(command) => command,
        Err(error) => {
            complain(format_args!("could not be told what to start: {error}"));
            return FAILED;
        }
    };
    let Some(mut command) = command else { return FAILED };
    // Whatever guard and router may have been given.
    super::keep_descriptors();
    let error = command.exec();
    complain(format_args!("could not start {}: {error}", command.get_program().display()));
    // As shells have it.
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

/// Reads not a byte more than what is meant for us: the rest is the child's.
fn read() -> io::Result<Option<Command>> {
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut length = [0; 4];
    match stdin.read_exact(&mut length) {
        // Nobody wants the child any more.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u32::from_le_bytes(length);
    let mut bytes = Vec::new();
    let read = (&stdin).take(u64::from(length)).read_to_end(&mut bytes)?;
    if length > LARGEST || u32::try_from(read) != Ok(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    decode(&bytes).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// For the tail of standard error that the router keeps.
pub(super) fn complain(what: std::fmt::Arguments<'_>) {
    // There is nobody else to tell.
    let _ = writeln!(io::stderr(), "switchyard: {what}");
}

/// Why there is no program to start.
#[derive(Debug)]
pub enum NotStartable {
    /// There is none of that name.
    NotFound,
    /// There is one, and it cannot be started.
    NotExecutable(io::Error),
}

/// Looks for a program as the start of a child would: in `path`, the child's `PATH`, or, where the
/// command is a path itself, from its folder on.
///
/// # Errors
/// [`NotStartable`].
pub fn find_program(
    command: &str,
    path: Option<&OsStr>,
    cwd: Option<&Path>,
) -> Result<PathBuf, NotStartable> {
    let here = cwd.unwrap_or(Path::new("."));
    let mut problem = NotStartable::NotFound;
    if command.is_empty() {
        return Err(problem);
    }
    let folders: Vec<Cow<'_, Path>> = if command.contains('/') {
        vec![Cow::Borrowed(here)]
    } else {
        let path = path.unwrap_or(OsStr::new(USUAL_PATH));
        std::env::split_paths(path).map(|folder| Cow::Owned(here.join(folder))).collect()
    };
    for folder in folders {
        let file = folder.join(command);
        match executable(&file) {
            Ok(()) => return Ok(file),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => problem = NotStartable::NotExecutable(error),
        }
    }
    Err(problem)
}

fn executable(file: &Path) -> io::Result<()> {
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(access(file, Access::EXEC_OK)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_what_is_started() {
        let args = ["".to_owned(), "two words\n".to_owned()];
        let env = [("A".into(), "1=2".into()), ("EMPTY".into(), "".into())];
        let start = Start { command: "x", args: &args, env: &env, cwd: Some(Path::new("/tmp")) };
        let bytes = start.encode().unwrap();
        let (length, rest) = bytes.split_first_chunk::<4>().unwrap();
        assert_eq!(usize::try_from(u32::from_le_bytes(*length)).unwrap(), rest.len());
        let command = decode(rest).unwrap();
        assert_eq!(command.get_program(), "x");
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["", "two words\n"]);
        assert_eq!(command.get_current_dir(), Some(Path::new("/tmp")));
        let variables: Vec<_> =
            command.get_envs().map(|(name, value)| (name, value.unwrap())).collect();
        assert_eq!(variables, [("A".as_ref(), "1=2".as_ref()), ("EMPTY".as_ref(), "".as_ref())]);
        for cut in 0..rest.len() {
            let _ = decode(&rest[..cut]);
        }
        let bad = ["a\0b".to_owned()];
        let error = Start { args: &bad, ..start }.encode().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_program_is_found_where_the_child_would_find_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("plain"), "").unwrap();
        std::os::unix::fs::symlink("/bin/sh", folder.path().join("tool")).unwrap();
        let path = std::env::join_paths(["/no/such/folder".as_ref(), folder.path()]).unwrap();
        let find = |command: &str, cwd| find_program(command, Some(&path), cwd);
        assert_eq!(find("tool", None).unwrap(), folder.path().join("tool"));
        assert!(find("./tool", Some(folder.path())).is_ok());
        assert!(find("/bin/sh", None).is_ok());
        assert!(find_program("sh", None, None).is_ok());
        for missing in ["other", "./tool", "", "/no/such/file", "/bin/sh/x"] {
            assert!(matches!(find(missing, None), Err(NotStartable::NotFound)), "{missing}");
        }
        for bad in ["plain", "/etc/passwd", "/tmp"] {
            let Err(NotStartable::NotExecutable(error)) = find(bad, None) else { panic!("{bad}") };
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
