//! [`Aside`]: a queue of messages that nobody waits for: cancellations, answers to a server's own
//! requests, notifications of clients.
//!
//! Changes when what may wait for a slow server does. Requests have their own way, in their callers'
//! time: behind them a cancellation would come too late, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

/// How many bytes may wait: the cancellations of all requests that may be under way on a channel, at
/// some 250 bytes with what keeps them. The last message to find room may be larger than what is left.
const ROOM: usize = 4 * 1024 * 1024;
/// What a message takes beside its bytes.
const MESSAGE: usize = 128;

/// Where messages go in.
pub(super) struct Aside {
    sender: mpsc::Sender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
}

/// Where they come out, in order.
pub(super) struct Asides {
    receiver: mpsc::Receiver<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
}

pub(super) fn queue() -> (Aside, Asides) {
    // Never full before the room is.
    let (sender, receiver) = mpsc::channel(ROOM / MESSAGE + 1);
    let waiting = Arc::<AtomicUsize>::default();
    (Aside { sender, waiting: Arc::clone(&waiting) }, Asides { receiver, waiting })
}

impl Aside {
    /// Whether there was room for the message and somebody to take it.
    pub(super) fn push(&self, message: Vec<u8>) -> bool {
        let cost = message.len().saturating_add(MESSAGE);
        if self.waiting.fetch_add(cost, Ordering::Relaxed) >= ROOM {
            self.waiting.fetch_sub(cost, Ordering::Relaxed);
            return false;
        }
        self.sender.try_send(message).is_ok()
    }
}

impl Asides {
    /// The next message; `None` when there will be none. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> Option<Vec<u8>> {
        let message = self.receiver.recv().await?;
        self.waiting.fetch_sub(message.len().saturating_add(MESSAGE), Ordering::Relaxed);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_may_wait_is_bounded_in_bytes_and_makes_room_again() {
        let (aside, mut asides) = queue();
        // One that is too large for any room goes where nothing waits, and then no other does.
        assert!(aside.push(vec![0; 2 * ROOM]));
        assert!(!aside.push(vec![1]));
        assert_eq!(asides.next().await.map(|message| message.len()), Some(2 * ROOM));
        assert_eq!((0..ROOM).take_while(|_| aside.push(vec![2; 128])).count(), ROOM / 256);
        assert_eq!(asides.next().await, Some(vec![2; 128]));
        assert!(aside.push(vec![3]));
        drop(asides);
        assert!(!aside.push(vec![4]));
    }
}
