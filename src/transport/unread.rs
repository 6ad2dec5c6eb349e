//! [`Unread`]: how much may wait for a child that is slow to read its input.
//!
//! Changes when what may wait for a slow child does. What is queued is bounded by the queue; this is for
//! the callers in front of it, each with a request as large as a client may send.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::TransportError;

/// How many bytes may wait; the last request to find room may be larger than what is left.
const ROOM: usize = 64 * 1024 * 1024;

/// Bytes of requests that wait for a place in the queue.
#[derive(Default)]
pub(super) struct Unread(AtomicUsize);

/// The room that a request takes, until it is dropped.
pub(super) struct Room<'a> {
    unread: &'a Unread,
    bytes: usize,
}

impl Unread {
    pub(super) fn room(&self, bytes: usize) -> Result<Room<'_>, TransportError> {
        let room = Room { unread: self, bytes };
        let waiting = self.0.fetch_add(bytes, Ordering::Relaxed);
        if waiting < ROOM { Ok(room) } else { Err(TransportError::Unread { bytes: waiting }) }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.unread.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Failure;

    #[test]
    fn what_may_wait_is_bounded_in_bytes_and_makes_room_again() {
        let unread = Unread::default();
        let first = unread.room(ROOM - 1).ok().unwrap();
        // One that is too large for any room goes where there is some.
        let second = unread.room(10 * ROOM).ok().unwrap();
        let error = unread.room(1).err().unwrap();
        assert!(matches!(error, TransportError::Unread { bytes } if bytes == 11 * ROOM - 1));
        assert_eq!(error.failure(), Failure::NotSent);
        drop(second);
        assert!(unread.room(1).is_ok());
        drop(first);
        assert_eq!(unread.0.into_inner(), 0);
    }
}
