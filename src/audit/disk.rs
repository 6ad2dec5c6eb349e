//! [`Disk`]: the space that the ledger is written to, and the ballast in it.
//!
//! Changes when the router watches its disk otherwise. A full disk cannot be mended from within: also
//! removing rows and moving the write-ahead log need space. So a file lies there that can be removed.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::clock;
use crate::model::Uptime;

/// The file in the data folder.
const BALLAST: &str = "ballast";
const MIB: u64 = 1024 * 1024;
/// Its size: enough to prune and to move a write-ahead log.
const BALLAST_BYTES: u64 = 16 * MIB;
/// Below this the disk counts as full: the ballast goes before anybody meets the end. In `strict` nobody
/// would, because no calls are taken then.
const FULL: u64 = 4 * MIB;
/// Below this, `strict` takes no calls: what is dispatched must have room to be recorded.
const SCARCE: u64 = 64 * MIB;
/// Below this, or below a tenth of the disk, somebody should know.
const LOW: u64 = 1024 * MIB;
/// Room that must be there for a ballast to be made.
const ROOM: u64 = SCARCE + 2 * BALLAST_BYTES;
const LOOK: Duration = Duration::from_secs(5);
/// How often one looks while there is too little.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How much is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Space {
    /// Next to nothing.
    Scarce,
    /// Less than one would like.
    Low,
    /// Enough.
    Plenty,
}

impl Space {
    const fn of(free: u64, total: u64) -> Self {
        if free < SCARCE {
            Self::Scarce
        } else if free < LOW || free < total / 10 {
            Self::Low
        } else {
            Self::Plenty
        }
    }
}

/// The disk under the data folder.
pub(super) struct Disk {
    folder: PathBuf,
    space: Space,
    /// What was free when it was last looked at.
    free: u64,
    looked: Option<Uptime>,
}

impl Disk {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), space: Space::Plenty, free: u64::MAX, looked: None }
    }

    /// In what time to look next.
    pub(super) const fn every(&self) -> Duration {
        match self.space {
            Space::Scarce => LOOK_AGAIN,
            Space::Low | Space::Plenty => LOOK,
        }
    }

    /// Looks how much is free, if it is time, says when that has changed, and sees to the ballast.
    pub(super) async fn look(&mut self) -> Space {
        let now = clock::uptime();
        if self.looked.is_some_and(|at| now.since(at) < self.every()) {
            return self.space;
        }
        self.looked = Some(now);
        let folder = self.folder.clone();
        let looked = tokio::task::spawn_blocking(move || look(&folder)).await;
        // One that cannot be asked is not a full one.
        let Ok(Ok((free, space))) = looked else { return self.space };
        if space < self.space {
            tracing::warn!(
                disk.free_bytes = free,
                "the disk of `{}` has {} MiB left{}",
                self.folder.display(),
                free / MIB,
                match space {
                    Space::Scarce => "; with `durability: strict` no calls are taken",
                    Space::Low | Space::Plenty => "",
                }
            );
        }
        (self.space, self.free) = (space, free);
        space
    }

    /// Whether next to nothing was left when it was last looked at.
    pub(super) const fn is_full(&self) -> bool {
        self.free < FULL
    }

    /// Removes the ballast; whether there was one. It is made again when there is room.
    pub(super) async fn relieve(&mut self) -> bool {
        let path = self.folder.join(BALLAST);
        let removed = tokio::task::spawn_blocking(move || fs::remove_file(path)).await;
        let removed = matches!(removed, Ok(Ok(())));
        if removed {
            tracing::warn!(
                "the disk of `{}` is full: the ballast was removed",
                self.folder.display()
            );
        }
        removed
    }
}

fn look(folder: &Path) -> io::Result<(u64, Space)> {
    let disk = statvfs(folder)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let path = folder.join(BALLAST);
    if free >= ROOM && !path.exists() {
        make(&path)?;
    }
    Ok((free, Space::of(free, disk.f_blocks.saturating_mul(disk.f_frsize))))
}

/// Makes a file that takes its space for real. Where the file system cannot promise that there is none.
fn make(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    if let Err(error) = fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES) {
        fs::remove_file(path)?;
        if error != rustix::io::Errno::OPNOTSUPP {
            return Err(error.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn what_is_left_is_judged_by_size_and_share() {
        for (free, total, space) in [
            (0, 0, Space::Scarce),
            (SCARCE - 1, 100 * LOW, Space::Scarce),
            (SCARCE, 2 * SCARCE, Space::Low),
            (LOW - 1, 2 * LOW, Space::Low),
            (LOW, 10 * LOW, Space::Plenty),
            (LOW, 10 * LOW + 10, Space::Low),
        ] {
            assert_eq!(Space::of(free, total), space, "{free} of {total}");
        }
    }

    #[tokio::test]
    async fn the_ballast_takes_its_space_and_gives_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(BALLAST);
        let mut disk = Disk::new(folder.path());
        disk.look().await;
        let file = fs::metadata(&path).unwrap();
        assert_eq!((file.len(), file.mode() & 0o777), (BALLAST_BYTES, 0o600));
        assert!(file.blocks() * 512 >= BALLAST_BYTES, "{} blocks", file.blocks());
        assert!(disk.relieve().await && !path.exists());
        assert!(!disk.relieve().await, "there is none any more");
        disk.looked = None;
        disk.look().await;
        assert!(path.exists(), "made again");
    }
}
