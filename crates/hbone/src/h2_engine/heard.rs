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

/// How many bytes pass, read or written, before other tasks have their turn: well below a
/// millisecond of work. h2 itself stops only when the connection is not ready.
const TURN: usize = 256 * 1024;

/// A connection whose reads are counted, which lets other tasks have their turn, and whose end
/// loses no data.
pub(crate) struct HeardIo<I> {
    io: I,
    heard: Heard,
    /// How many bytes have passed since other tasks had their turn.
    passed: usize,
    /// Why nothing can be written any more, until that is reported.
    write_error: Option<io::Error>,
    /// Once this side has ended: for how long it waits for the peer's end.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<I> HeardIo<I> {
    pub(crate) fn new(io: I, heard: Heard) -> Self {
        Self {
            io,
            heard,
            passed: 0,
            write_error: None,
            linger: None,
        }
    }
}

impl<I: AsyncRead + Unpin> HeardIo<I> {
    /// Waits, once enough bytes have passed, until other tasks have had their turn. A connection
    /// that is not ready ends the turn as well.
    fn poll_turn(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.passed < TURN {
            return Poll::Ready(());
        }
        self.passed = 0;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Keeps the error of a write of `length` bytes, and pretends that they were written. h2 then
    /// reads everything that the peer has sent before the connection ended, and the reason for it
    /// that an alert may give: in TLS 1.3, a server rejects the client's certificate only when the
    /// client has completed its handshake.
    fn keep_error(
        &mut self,
        written: Poll<io::Result<usize>>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(written) = written else {
            self.passed = 0;
            return Poll::Pending;
        };
        let written = written.unwrap_or_else(|error| {
            self.write_error.get_or_insert(error);
            length
        });
        self.passed += written;
        Poll::Ready(Ok(written))
    }

    /// The result of a read that returned nothing: the end of the connection.
    fn end(&mut self, read: io::Result<()>) -> io::Result<()> {
        match (read, self.write_error.take()) {
            (Err(error), _) if is_alert(&error) => Err(if self.heard.count() == 0 {
                describe(error)
            } else {
                error
            }),
            (_, Some(error)) => Err(error),
            (read, None) => read,
        }
    }
}

fn is_alert(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|e| e.downcast_ref());
    matches!(tls, Some(rustls::Error::AlertReceived(_)))
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
        ready!(this.poll_turn(cx));
        let before = to.filled().len();
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, to) else {
            this.passed = 0;
            return Poll::Pending;
        };
        let length = to.filled().len() - before;
        this.passed += length;
        if length == 0 {
            return Poll::Ready(this.end(read));
        }
        this.heard.increment();
        Poll::Ready(read)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HeardIo<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_turn(cx));
        let length = bytes.len();
        if this.write_error.is_some() {
            return this.keep_error(Poll::Ready(Ok(length)), length);
        }
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.keep_error(written, length)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_turn(cx));
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if this.write_error.is_some() {
            return this.keep_error(Poll::Ready(Ok(length)), length);
        }
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        this.keep_error(written, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.write_error.is_some() {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.keep_error(flushed.map_ok(|()| 0), 0).map_ok(|_| ())
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

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

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

    /// A connection that was reset: what precedes the reset can be read, and nothing be written.
    struct WasReset(&'static [u8]);

    impl AsyncRead for WasReset {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            to: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            to.put_slice(std::mem::take(&mut self.0));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for WasReset {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_precedes_a_reset_is_read_although_nothing_can_be_written() {
        let mut io = HeardIo::new(WasReset(b"last words"), Heard::default());
        io.write_all(b"lost").await.unwrap();
        io.flush().await.unwrap();
        let mut all = Vec::new();
        let end = io.read_to_end(&mut all).await;
        assert_eq!(all, b"last words");
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_connection_that_is_always_ready_lets_others_have_their_turn() {
        let mut io = HeardIo::new(tokio::io::repeat(0), Heard::default());
        let mut context = Context::from_waker(Waker::noop());
        let mut space = vec![0; 16 * 1024];
        for _ in 0..3 {
            let mut passed = 0;
            loop {
                let mut buffer = ReadBuf::new(&mut space);
                if Pin::new(&mut io)
                    .poll_read(&mut context, &mut buffer)
                    .is_pending()
                {
                    break;
                }
                passed += buffer.filled().len();
            }
            assert_eq!(passed, TURN);
        }
    }
}
