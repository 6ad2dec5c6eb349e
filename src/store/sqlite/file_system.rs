//! What the file system of the data folder is: whether it can have a write-ahead log, and how large one.
//!
//! Changes when another kind of file system is known not to do.

use std::path::Path;

use rustix::fs::statvfs;

#[cfg(target_os = "linux")]
use super::files;
use crate::store::StoreError;

/// Bytes of a page.
const PAGE: u64 = 4_096;
/// The part of a small disk that a write-ahead log may take: what retention and a ballast give back there is more.
const PART_OF_DISK: u64 = 64;
/// Fewer pages than this are moved to the file too often.
const LEAST_PAGES: u64 = 64;

/// How many pages a write-ahead log in `folder` may have before they are moved to the file: `most`, and less on
/// a disk of less than a gibibyte.
pub(super) fn log_pages(folder: &Path, most: u64) -> String {
    let total = statvfs(folder).map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
    pages_for(total, most).to_string()
}

fn pages_for(total: u64, most: u64) -> u64 {
    match total {
        // Not every file system says.
        0 => most,
        total => (total / PART_OF_DISK / PAGE).clamp(LEAST_PAGES.min(most), most),
    }
}

/// Refuses what several machines can have mounted: the processes of a write-ahead log share memory.
#[cfg(target_os = "linux")]
pub(super) fn refuse_network(folder: &Path) -> Result<(), StoreError> {
    let found = rustix::fs::statfs(folder).map_err(|error| files("read", folder)(error.into()))?;
    // The field's type differs between architectures; the magic numbers fit 32 bits.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "32-bit magics")]
    let magic = found.f_type as u32;
    match network(magic) {
        Some(kind) => Err(StoreError::NetworkFileSystem { path: folder.to_owned(), kind }),
        None => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn refuse_network(_folder: &Path) -> Result<(), StoreError> {
    Ok(())
}

/// The name of a file system over a network, by the number that `statfs` gives: those of `linux/magic.h`, and of
/// the sources of what is not part of the kernel. FUSE has one number for all: it does not tell sshfs from a
/// local one.
#[cfg(target_os = "linux")]
const fn network(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x0102_1997 => "9p",
        0x00c3_6400 => "Ceph",
        0x0bd0_0bd0 => "Lustre",
        0x564c => "NCP",
        0x7375_7245 => "Coda",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        0x2003_0528 => "OrangeFS",
        0x786f_4256 => "VirtualBox shared folder",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_has_a_small_log() {
        const MIB: u64 = 1 << 20;
        for (total, pages) in
            [(0, 4_000), (8 * MIB, 64), (24 * MIB, 96), (128 * MIB, 512), (1024 * MIB, 4_000)]
        {
            assert_eq!(pages_for(total, 4_000), pages, "{total}");
        }
        assert_eq!(pages_for(8 * MIB, 10), 10);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn network_file_systems_are_told_from_local_ones() {
        // ext4, XFS, Btrfs, tmpfs, overlayfs, F2FS, ZFS, and what FUSE is.
        for local in [
            0xef53,
            0x5846_5342,
            0x9123_683e,
            0x0102_1994,
            0x794c_7630,
            0xf2f5_2010,
            0x2fc1_2fc1,
            0x6573_5546,
        ] {
            assert_eq!(network(local), None, "{local:x}");
        }
        for (magic, kind) in [
            (0x6969, "NFS"),
            (0xff53_4d42, "SMB"),
            (0x6b41_4653, "AFS"),
            (0x0102_1997, "9p"),
            (0x00c3_6400, "Ceph"),
            (0x0bd0_0bd0, "Lustre"),
        ] {
            assert_eq!(network(magic), Some(kind), "{magic:x}");
        }
    }
}
