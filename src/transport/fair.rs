//! [`Fair`]: a connection that lets others have their turn.
//!
//! Changes when connections to servers share their thread in another way. A server can send faster
//! than its bytes are understood, and a task that always finds more of them to read never pauses: the
//! runtime counts reads, and a few hundred kilobytes of the smallest messages that HTTP knows keep a
//! thread busy for long.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};

/// How much may be read at a time, by the room that is offered: a few milliseconds of work at worst.
const TURN: usize = 64 * 1024;

/// Says that a connection paused: whoever drives it has to come back, and nobody will wake it.
#[derive(Debug, Clone, Default)]
pub(super) struct Paused(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    paused: AtomicBool,
    reads: AtomicU32,
}

impl Paused {
    /// Whether it paused since the last time.
    pub(super) fn take(&self) -> bool {
        self.0.paused.load(Ordering::Relaxed) && self.0.paused.swap(false, Ordering::Relaxed)
    }

    /// How often something was read, from some number on and round.
    pub(super) fn reads(&self) -> u32 {
        self.0.reads.load(Ordering::Relaxed)
    }
}

/// A stream that pretends that there is nothing more to read after each [`TURN`].
#[derive(Debug)]
pub(super) struct Fair<T> {
    stream: T,
    read: usize,
    paused: Paused,
}

impl<T> Fair<T> {
    pub(super) fn new(stream: T) -> (Self, Paused) {
        let paused = Paused::default();
        (Self { stream, read: 0, paused: paused.clone() }, paused)
    }
}

impl<T: Read + Unpin> Read for Fair<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read >= TURN {
            self.read = 0;
            self.paused.0.paused.store(true, Ordering::Relaxed);
            return Poll::Pending;
        }
        let room = buffer.remaining();
        let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buffer) else {
            // Everything is read: the others have their turn anyway.
            self.read = 0;
            return Poll::Pending;
        };
        read?;
        self.read = self.read.saturating_add(room);
        // Nobody else writes it.
        self.paused.0.reads.store(self.paused.reads().wrapping_add(1), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for Fair<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Empty};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Counts how often a connection had nothing more to read although there was.
    #[tokio::test]
    async fn a_stream_pauses_after_each_turn_and_loses_nothing() {
        let size = 16 * TURN;
        let (near, mut far) = tokio::io::duplex(2 * size);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
        let far = async move {
            let mut request = [0; 1024];
            assert!(far.read(&mut request).await.unwrap() > 0);
            far.write_all(head.as_bytes()).await.unwrap();
            far.write_all(&vec![b'x'; size]).await.unwrap();
            far
        };
        let (stream, paused) = Fair::new(TokioIo::new(near));
        let (mut sender, driver) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(TURN)
            .handshake(stream)
            .await
            .unwrap();
        let mut driver = std::pin::pin!(driver);
        let answer = async {
            let request = http::Request::new(Empty::<bytes::Bytes>::new());
            sender.send_request(request).await.unwrap().into_body().collect().await.unwrap()
        };
        let mut answer = std::pin::pin!(answer);
        let mut pauses = 0;
        let reading = std::future::poll_fn(|cx| {
            loop {
                let _ = driver.as_mut().poll(cx);
                if let Poll::Ready(body) = answer.as_mut().poll(cx) {
                    return Poll::Ready(body);
                }
                if !paused.take() {
                    return Poll::Pending;
                }
                pauses += 1;
            }
        });
        let (body, _far) = tokio::join!(reading, far);
        assert_eq!(body.to_bytes().len(), size);
        // One between each two of its turns; rooms are often larger than what is read into them.
        assert!(pauses >= 15, "{pauses}");
    }
}
