//! Key files in the data folder: 32 random bytes that only their owner can read.
//!
//! Changes when the way keys are kept does. What a key is for is known where it is used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};

/// Bytes of a key.
pub(super) const KEY_LENGTH: usize = 32;

/// Reads a key; what is too long or too short is given as it is, one byte more than a key at most.
pub(super) fn read_key(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(KEY_LENGTH);
    // One byte more than needed, to tell a longer file from a right one.
    File::open(path)?.take(KEY_LENGTH as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a new key beside its place and moves it there when it is safely on disk: a key that a
/// power cut takes away makes what was done with it unreadable.
pub(super) fn make_key(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; KEY_LENGTH];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_unspecified| io::Error::other("the system gives no random numbers"))?;
    let new = path.with_extension("key.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) | Ok(()) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(bytes)
}
