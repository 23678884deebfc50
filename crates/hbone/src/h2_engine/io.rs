//! A tunnel stream as a byte stream for the I/O of a nested tunnel.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::{into_io, received};
use crate::tunnel::StreamGuard;

/// Maximum size of one write, in bytes.
const LARGEST_WRITE: usize = 64 * 1024;

/// A tunnel stream that implements `AsyncRead` and `AsyncWrite`.
pub(crate) struct StreamIo {
    send: SendStream<Bytes>,
    recv: RecvStream,
    unread: Bytes,
    _guard: Option<StreamGuard>,
}

impl StreamIo {
    pub(super) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        guard: Option<StreamGuard>,
    ) -> Self {
        Self {
            send,
            recv,
            unread: Bytes::new(),
            _guard: guard,
        }
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            match received(ready!(this.recv.poll_data(cx)))? {
                Some(bytes) => this.unread = bytes,
                None => return Poll::Ready(Ok(())),
            }
        }
        let read = this.unread.len().min(to.remaining());
        to.put_slice(&this.unread[..read]);
        this.unread.advance(read);
        // Fails only if the stream is closed, and then no more data follows.
        let _ = this.recv.flow_control().release_capacity(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let wanted = bytes.len().min(LARGEST_WRITE);
        this.send.reserve_capacity(wanted);
        let mut granted = this.send.capacity();
        while granted == 0 {
            granted = match ready!(this.send.poll_capacity(cx)) {
                Some(granted) => granted.map_err(into_io)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let sent = granted.min(wanted);
        this.send
            .send_data(Bytes::copy_from_slice(&bytes[..sent]), false)
            .map_err(into_io)?;
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // the outer tunnel flushes on its own
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(
            self.get_mut()
                .send
                .send_data(Bytes::new(), true)
                .map_err(into_io),
        )
    }
}
