//! [`Workers`]: threads that serve connections, each with a runtime of its own.
//!
//! Changes when the way connections are spread over processors does.
//!
//! A call is served from its first byte to its last on one thread: the client's connection, the
//! upstream's, their timers and their readiness events all belong to one runtime, so nothing has
//! to wake another thread. With one runtime of several threads every call paid for two or three
//! such wake-ups, which cost more than everything we do with its bytes.

use std::future::Future;
use std::net::{SocketAddr, TcpStream};
use std::num::NonZero;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

/// What a thread does when it ends and cannot be called off, as a look-up of a name, is waited for as
/// long, and then left to the end of the process.
const LAST: Duration = Duration::from_millis(100);
/// Accepted connections that wait for their thread; more wait in the listener's backlog.
const HANDOVER: usize = 256;

/// A connection on its way to the thread that serves it.
#[derive(Debug)]
pub(super) enum Handover {
    /// Over TCP, with the address it came in on and the one it is from.
    Network(TcpStream, SocketAddr, SocketAddr),
    /// Over the admin socket.
    Socket(UnixStream),
}

/// The threads and the way to them.
#[derive(Debug)]
pub(super) struct Workers {
    queues: Mutex<Vec<mpsc::Sender<Handover>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    next: AtomicUsize,
}

impl Workers {
    /// Starts a thread for each processor. `serve` is called on its thread for each connection
    /// and spawns what serves it.
    ///
    /// # Errors
    /// When the system gives no thread or no runtime.
    pub(super) fn start<F>(serve: F) -> std::io::Result<Self>
    where
        F: Fn(Handover) + Clone + Send + 'static,
    {
        let count = std::thread::available_parallelism().map_or(1, NonZero::get);
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        for number in 0..count {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (queue, handovers) = mpsc::channel(HANDOVER);
            let serve = serve.clone();
            let thread =
                std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                    runtime.block_on(work(handovers, serve));
                    runtime.shutdown_timeout(LAST);
                })?;
            queues.push(queue);
            threads.push(thread);
        }
        Ok(Self {
            queues: Mutex::new(queues),
            threads: Mutex::new(threads),
            next: AtomicUsize::new(0),
        })
    }

    /// Gives a connection to the next thread; waits while that one is behind.
    pub(super) fn hand_over(&self, handover: Handover) -> impl Future<Output = ()> + use<> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        let queue = {
            let queues = self.queues.lock();
            at.checked_rem(queues.len()).and_then(|at| queues.get(at).cloned())
        };
        async move {
            if let Some(queue) = queue {
                // A thread that is gone has been stopped, and so is the router.
                let _ = queue.send(handover).await;
            }
        }
    }

    /// Ends the threads; what still runs on them is dropped. Call when connections are done.
    pub(super) async fn stop(&self) {
        self.queues.lock().clear();
        let threads = std::mem::take(&mut *self.threads.lock());
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // A panic of a worker has been printed where it happened.
                let _ = thread.join();
            }
        });
        let _ = joined.await;
    }
}

async fn work(mut handovers: mpsc::Receiver<Handover>, serve: impl Fn(Handover)) {
    while let Some(handover) = handovers.recv().await {
        serve(handover);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look-up of a name at a resolver that does not answer is a thread that nobody can stop.
    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a thread that blocks is what is wanted here")]
    async fn what_cannot_be_called_off_does_not_hold_up_the_end() {
        const STUCK: Duration = Duration::from_secs(60);
        let (began, mut begins) = mpsc::channel(1);
        let workers = Workers::start(move |_handover| {
            let began = began.clone();
            tokio::task::spawn_blocking(move || {
                began.blocking_send(()).unwrap();
                std::thread::sleep(STUCK);
            });
        })
        .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        workers.hand_over(Handover::Network(stream, address, address)).await;
        begins.recv().await.unwrap();
        let stopped = tokio::time::timeout(STUCK / 2, workers.stop()).await;
        assert!(stopped.is_ok(), "it waits for what cannot be called off");
    }
}
