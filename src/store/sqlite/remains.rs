//! Files beside the ledger that may hold what is erased from it, and into which nobody looks.
//!
//! Changes when something else leaves such a file. Nothing is ever deleted here: what is in them may be all
//! that there is of some calls.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf, absolute};

use super::AUDIT;

/// What belongs to a database that is in use, or to a copy that is erased in.
const WITH_IT: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// All files of a data folder that are named like the ledger and are neither it nor a copy that erasing knows
/// of, in order: above all a damaged one that was moved away, with its log.
pub(super) fn remains_of_ledger(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if path.file_name().is_some_and(is_unknown) {
            found.push(absolute(&path).unwrap_or(path));
        }
    }
    found.sort();
    Ok(found)
}

fn is_unknown(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let Some(rest) = name.strip_prefix("audit.") else { return false };
    let is_of = |file: &str| rest.strip_prefix(file).is_some_and(|part| WITH_IT.contains(&part));
    let ledger = AUDIT.file.strip_prefix("audit.").unwrap_or(AUDIT.file);
    let copy = version_of_copy(&name).is_some_and(|version| is_of(&format!("v{version}.db")));
    !is_of(ledger) && !copy
}

/// The version that a copy from before an upgrade is of, as it stands in the name of the copy, or of what
/// belongs to it.
fn version_of_copy(name: &str) -> Option<&str> {
    let (version, _) = name.strip_prefix("audit.v")?.split_once('.')?;
    version.parse::<usize>().is_ok().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_like_the_ledger_and_is_not_it_remains() {
        let known = [
            "audit.db",
            "audit.db-wal",
            "audit.db-shm",
            "audit.v3.db",
            "audit.v12.db-wal",
            "audit-index.db",
            "audit-index.db-wal",
            "state.db",
            "state.db.corrupt-20261130T005320Z",
            "checkpoints.jsonl.corrupt-20261130T005320Z",
            "ledger.key",
            "replaced",
        ];
        let unknown = [
            "audit.db.bak",
            "audit.db.corrupt-20261130T005320Z",
            "audit.db.corrupt-20261130T005320Z-wal",
            "audit.db.corrupt-20261130T005320Z.2",
            "audit.v3.db.old",
            "audit.vx.db",
        ];
        let folder = tempfile::tempdir().unwrap();
        for name in known.iter().chain(&unknown) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = remains_of_ledger(folder.path()).unwrap();
        let expected: Vec<_> = unknown.iter().map(|name| folder.path().join(name)).collect();
        assert_eq!(found, expected);
    }
}
