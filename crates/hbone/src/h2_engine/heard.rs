//! Whether the peer of a connection has sent anything, which is what shows that it is alive.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::peer_alert::rejected_by_peer;

/// The number of reads of a connection that returned data. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Rc<Cell<u64>>);

impl Heard {
    pub(crate) fn count(&self) -> u64 {
        self.0.get()
    }

    fn increment(&self) {
        self.0.set(self.0.get() + 1);
    }
}

/// How long the end of a connection waits for the peer's.
const LINGER: Duration = Duration::from_secs(5);

/// A connection whose reads are counted, and whose end loses no data.
pub(crate) struct HeardIo<I> {
    io: I,
    heard: Heard,
    /// Once this side has ended: for how long it waits for the peer's end.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<I> HeardIo<I> {
    pub(crate) fn new(io: I, heard: Heard) -> Self {
        Self {
            io,
            heard,
            linger: None,
        }
    }
}

impl<I: AsyncRead + Unpin> HeardIo<I> {
    /// Replaces the error of a write by what the peer sent before it closed the connection, if it
    /// has sent nothing else. In TLS 1.3 a server rejects the client's certificate only when the
    /// client has completed its handshake, so the client learns it by an alert, or as a broken pipe
    /// if it does not read that.
    fn explain<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Poll::Ready(Err(error)) = written else {
            return written;
        };
        if self.heard.count() > 0 {
            return Poll::Ready(Err(error));
        }
        // The connection has ended, so there is soon something to read, or an error.
        let mut buffer = [0; 1];
        let read = Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut buffer));
        match read {
            Poll::Ready(Err(alert)) => Poll::Ready(Err(describe(alert))),
            Poll::Ready(Ok(())) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Describes an alert of the peer in words.
fn describe(error: io::Error) -> io::Error {
    let tls = error.get_ref().and_then(|e| e.downcast_ref());
    match tls {
        Some(rustls::Error::AlertReceived(alert)) => rejected_by_peer(*alert),
        _ => error,
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for HeardIo<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = to.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, to);
        if to.filled().len() > before {
            this.heard.increment();
        }
        if this.heard.count() == 0 {
            return read.map_err(describe);
        }
        read
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HeardIo<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.explain(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        this.explain(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.explain(cx, flushed)
    }

    /// Ends this side, then waits for the peer's end: if the socket were closed before the peer has
    /// everything, the kernel would discard the rest as soon as the peer sends anything.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut ignored = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut ignored);
            match Pin::new(&mut this.io).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return linger.as_mut().poll(cx).map(Ok),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn the_end_waits_for_that_of_the_peer() {
        let (io, mut peer) = duplex(64);
        let mut io = HeardIo::new(io, Heard::default());
        let mut end = pin!(io.shutdown());
        let mut context = Context::from_waker(Waker::noop());
        assert!(end.as_mut().poll(&mut context).is_pending());
        peer.write_all(b"late").await.unwrap();
        assert!(end.as_mut().poll(&mut context).is_pending());
        drop(peer);
        end.await.unwrap();
    }
}
