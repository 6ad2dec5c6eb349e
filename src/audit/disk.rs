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
/// Below this, or below a tenth of the disk, somebody should know.
const LOW: u64 = 1024 * MIB;
const LOOK: Duration = Duration::from_secs(5);
/// How often one looks while there is too little.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Sizes in bytes that go by the size of the disk: each a part of a small one, and no more than what is enough
/// on any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    /// Size of the ballast: enough to prune and to move a write-ahead log.
    ballast: u64,
    /// Below this the disk counts as full: the ballast goes before anybody meets the end. In `strict` nobody
    /// would, because no calls are taken then.
    full: u64,
    /// Below this, `strict` takes no calls: what is dispatched must have room to be recorded.
    scarce: u64,
    /// From this on it takes them again, so that it does not change its mind with each call.
    enough: u64,
    /// Room that must be there for a ballast to be made.
    room: u64,
}

impl Bounds {
    /// Those of a disk of `total` bytes; of one that does not say, nothing is too little.
    fn of(total: u64) -> Self {
        let (ballast, scarce) = ((total / 16).min(16 * MIB), (total / 16).min(64 * MIB));
        Self {
            ballast,
            full: (total / 64).min(4 * MIB),
            scarce,
            enough: scarce + scarce / 4,
            room: scarce + 2 * ballast,
        }
    }
}

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
    /// After it was `self` before.
    fn next(self, free: u64, total: u64) -> Self {
        let bounds = Bounds::of(total);
        let enough = if self == Self::Scarce { bounds.enough } else { bounds.scarce };
        if free < enough {
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
    /// Whether next to nothing was left when it was last looked at.
    full: bool,
    looked: Option<Uptime>,
}

impl Disk {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), space: Space::Plenty, full: false, looked: None }
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
        let Ok(Ok((free, total))) = looked else { return self.space };
        let space = self.space.next(free, total);
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
        (self.space, self.full) = (space, free < Bounds::of(total).full);
        space
    }

    /// Whether next to nothing was left when it was last looked at.
    pub(super) const fn is_full(&self) -> bool {
        self.full
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

/// Bytes that are free, and bytes of the whole. Sees to the ballast.
fn look(folder: &Path) -> io::Result<(u64, u64)> {
    let disk = statvfs(folder)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let total = disk.f_blocks.saturating_mul(disk.f_frsize);
    let path = folder.join(BALLAST);
    let Bounds { ballast, room, .. } = Bounds::of(total);
    if ballast > 0 && free >= room && !path.exists() {
        make(&path, ballast)?;
    }
    Ok((free, total))
}

/// Makes a file that takes its space for real. Where the file system cannot promise that there is none.
fn make(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    if let Err(error) = fallocate(&file, FallocateFlags::empty(), 0, bytes) {
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
        let scarce = 64 * MIB;
        for (before, free, total, space) in [
            // It does not say how large it is.
            (Space::Plenty, 0, 0, Space::Low),
            (Space::Plenty, scarce - 1, 100 * LOW, Space::Scarce),
            (Space::Plenty, scarce, 100 * LOW, Space::Low),
            (Space::Scarce, scarce + 15 * MIB, 100 * LOW, Space::Scarce),
            (Space::Scarce, scarce + 16 * MIB, 100 * LOW, Space::Low),
            (Space::Plenty, LOW - 1, 2 * LOW, Space::Low),
            (Space::Plenty, LOW, 10 * LOW, Space::Plenty),
            (Space::Plenty, LOW, 10 * LOW + 10, Space::Low),
            // Of a small one it is a part.
            (Space::Plenty, 3 * MIB, 48 * MIB, Space::Low),
            (Space::Plenty, 3 * MIB - 1, 48 * MIB, Space::Scarce),
            (Space::Scarce, 4 * MIB, 48 * MIB, Space::Low),
        ] {
            assert_eq!(before.next(free, total), space, "{free} of {total} after {before:?}");
        }
    }

    /// On a disk of any size there is room for calls, and for a ballast, before it is nearly full.
    #[test]
    fn bounds_fit_into_the_disk() {
        for total in [1, 24, 48, 128, 1024, 1 << 20].map(|mebibytes| mebibytes * MIB) {
            let Bounds { ballast, full, scarce, enough, room } = Bounds::of(total);
            assert!(full < scarce && scarce < enough && enough <= room - ballast, "{total}");
            assert!(room <= total / 4 && full < ballast, "{total}");
        }
        let large = Bounds::of(1024 * MIB);
        assert_eq!((large.ballast, large.full, large.scarce), (16 * MIB, 4 * MIB, 64 * MIB));
    }

    #[tokio::test]
    async fn the_ballast_takes_its_space_and_gives_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(BALLAST);
        let mut disk = Disk::new(folder.path());
        disk.look().await;
        let file = fs::metadata(&path).unwrap();
        let disk_of_it = statvfs(folder.path()).unwrap();
        let bytes = Bounds::of(disk_of_it.f_blocks * disk_of_it.f_frsize).ballast;
        assert_eq!((file.len(), file.mode() & 0o777), (bytes, 0o600));
        assert!(file.blocks() * 512 >= bytes, "{} blocks", file.blocks());
        assert!(disk.relieve().await && !path.exists());
        assert!(!disk.relieve().await, "there is none any more");
        disk.looked = None;
        disk.look().await;
        assert!(path.exists(), "made again");
    }
}
